"""What the tests of the storage rooms share: runners that are closed, a clock that is ticked, a medium for free."""

from __future__ import annotations

import gc
import importlib
import os
import random
import re
import shutil
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from promises import NAMES

os.environ.setdefault("CHECKPOINT_LOCK_ORDER", "1")  # read where locks are made, from the first import on

from checkpoint import CheckpointedRunner, clock
from checkpoint.catalog.registry import REGISTRY
from checkpoint.storage import journal

Opener = Callable[..., CheckpointedRunner]

# A change is checked by the same examples as the one before. New ones are looked for where somebody reads what fails.
settings.register_profile("same examples", derandomize=True, print_blob=True)
IS_EXPLORING = bool(os.environ.get("CHECKPOINT_TEST_EXPLORE"))
if not IS_EXPLORING:
    settings.load_profile("same examples")


def seed_of_tests() -> int:
    """What tests draw by that have no hypothesis: CHECKPOINT_TEST_SEED, another one each time, or the same as ever."""
    drawn = random.randrange(1 << 32) if IS_EXPLORING else 218020849
    return int(os.environ.get("CHECKPOINT_TEST_SEED") or drawn)


# Who starts tests with nohup, or in the background of a script, has one of these ignored by all that they start.
for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if (_number := getattr(signal, _name, None)) is not None and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


def shown(value: Any) -> str:
    """The `repr` of a test's parameter, without addresses: workers of pytest-xdist compare the tests' names."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


# pytest-xdist gives the first eighth of all tests to the first of two workers, and small shares at the end.
# Modules that begin something for all of their tests (clusters, a server, a demo, type checkers) stand in that first
# share, so that no second worker begins it too; long tests come next, so that no worker ends with one alone.
FIRST = (
    "test_clusters.py", "test_mutants.py", "test_typing.py", "test_demo.py", "test_remote.py", "test_hostile.py",
    "test_crash_states.py", "test_fuzzing.py", "test_accept_machine.py", "test_machine.py",
)  # fmt: skip


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down which tests have passed, where CHECKPOINT_TEST_PASSED names a file: `.ci/run` runs none twice."""
    name = os.environ.get("CHECKPOINT_TEST_PASSED")
    if name and report.when == "call" and report.passed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(name, "a", encoding="utf-8") as file:
            print(ascii(report.nodeid), file=file)


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest, leave out what has passed, and refuse a marker that names no row of promises."""
    for item in items:
        if item.get_closest_marker("soak") is not None:
            item.add_marker("slow")
    if name := os.environ.get("CHECKPOINT_TEST_PASSED_BEFORE"):
        passed = set(Path(name).read_text("utf-8").splitlines())
        before = [item for item in items if ascii(item.nodeid) in passed]
        items[:] = [item for item in items if ascii(item.nodeid) not in passed]
        config.hook.pytest_deselected(items=before)
    places = {name: place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.path.name, len(FIRST)))
    for item in items:
        for marker in item.iter_markers("promise"):
            unknown = [name for name in marker.args if name not in NAMES]
            if unknown or not marker.args:
                what = f"{unknown[0]!r} is no row" if unknown else "it names no row"
                raise pytest.UsageError(f"{item.nodeid}: @pytest.mark.promise: {what} of tests/promises.py")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Let ``-n auto`` mean one worker more than cores: many tests wait for a disk, a process or a moment."""
    count = yield
    return count if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else count + 1


@contextmanager
def in_time(seconds: int) -> Iterator[None]:
    """What takes longer fails, and says where."""

    def give_up(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"it did not end within {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def own_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noted for the user of the tests is not this user's, and no test's is another's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("configuration")))
    monkeypatch.setenv("APPDATA", str(tmp_path_factory.mktemp("configuration")))


@pytest.fixture(autouse=True)
def torn_ends_are_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process writes the torn ends that tests make by the thousand: nobody waits to see them grow."""
    monkeypatch.setattr(journal, "_LOOK", 0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Opener]:
    """Opens runners of checkpoint "j" in `tmp_path`, and closes them after the test."""
    opened: list[CheckpointedRunner] = []

    def open_runner(name: str = "j", directory: Path = tmp_path, **options: Any) -> CheckpointedRunner:
        runner = CheckpointedRunner(name, directory, **options)
        opened.append(runner)
        return runner

    yield open_runner
    for runner in opened:
        runner.close()


class Ticker:
    """A monotonic clock that stands still until it is ticked."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time

    def tick(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture
def ticker(monkeypatch: pytest.MonkeyPatch) -> Ticker:
    """Time for the store; its thread is left out, so that a test tends the store itself."""
    ticker = Ticker()
    monkeypatch.setattr(clock, "monotonic", ticker)
    monkeypatch.setattr(REGISTRY, "maintain", lambda _: None)
    return ticker


@pytest.fixture
def free_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing costs nothing: for tests that open thousands of checkpoints and cause no power cut."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(os, "fdatasync", lambda fd: None, raising=False)


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """A collection looks only at what tests of this module make, and not at all that thousands of modules hold."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


AN_OLD_ONE = Path(__file__).parent / "data" / "written_with_short_digests"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The program of an earlier version, with its checkpoints."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(AN_OLD_ONE / "journals", tmp_path / "checkpoints")
    shutil.copy(AN_OLD_ONE / "earlier_job.py", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "earlier_job", raising=False)
    return vars(importlib.import_module("earlier_job"))
