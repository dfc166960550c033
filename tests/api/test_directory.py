"""The law of the directory: it is found once, when something is first used; `chdir` later changes nothing."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner, checkpointed

CALLS: list[Any] = []


def wander(name: str) -> None:
    """Go on into a directory of this name."""
    os.makedirs(name, exist_ok=True)
    os.chdir(name)


def simulate(n: int) -> int:
    """A call that leaves the process somewhere else, as drivers of simulations do."""
    CALLS.append(n)
    wander(f"run{n}")
    return n


class Driver:
    """A method that does so."""

    @checkpointed("method", version=1)
    def run(self, n: int) -> int:
        return simulate(n)


def _by_function() -> Any:
    return checkpointed("function")(simulate)


def _by_method() -> Any:
    return checkpointed("method", version=1)(Driver.run.__wrapped__).__get__(Driver(), Driver)


def _by_environment() -> Any:
    os.environ["CHECKPOINT_DIR"] = "beside"
    return checkpointed("environment")(simulate)


def _by_argument() -> Any:
    return checkpointed("argument", checkpoint_dir="beside")(simulate)


def _by_copy() -> Any:
    return checkpointed("original")(simulate).options(name="copy")


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of its own, and no calls yet; it is left as it was found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKPOINT_DIR", "")
    CALLS.clear()


@pytest.mark.parametrize("make", [_by_function, _by_method, _by_environment, _by_argument, _by_copy])
def test_a_call_that_changes_the_directory_changes_no_checkpoint(tmp_path: Path, make: Callable[[], Any]) -> None:
    """Results are found again by the same line, and are where they were first."""
    function = make()
    assert function.map([1, 2], progress=False) == [1, 2]
    assert Path.cwd() != tmp_path
    assert dict(function.results) == {1: 1, 2: 2}
    assert function.plan([1, 2]).done == 2
    assert function.map([1, 2, 3], progress=False) == [1, 2, 3]
    assert CALLS == [1, 2, 3]
    assert function.runner.records.store.directory.parent == tmp_path.resolve()


def test_a_runner_stays_where_it_was_made(tmp_path: Path) -> None:
    """By hand the directory is found when the runner is made."""
    runner = CheckpointedRunner("hand")
    wander("elsewhere")
    runner.save_result(1, 1)
    assert (tmp_path / "checkpoints" / "hand_results.jsonl").exists()


def test_it_is_found_at_the_first_use_and_not_when_it_is_decorated(tmp_path: Path) -> None:
    """A script may go to its directory after it has imported its functions."""
    function = checkpointed("late")(lambda n: n)
    wander("work")
    function.map([1], progress=False)
    assert (tmp_path / "work/checkpoints/late_results.jsonl").exists()


def test_copies_go_where_their_original_is_and_it_goes_where_they_are(tmp_path: Path) -> None:
    """Whichever is used first; a copy with another directory is new."""
    original = checkpointed("original")(lambda n: n)
    first = original.options(name="first")
    first.map([1], progress=False)
    wander("elsewhere")
    for function in (original, first.options(name="second"), original.options(key=lambda n: n)):
        function.map([1], progress=False)
        assert function.runner.records.store.directory == tmp_path.resolve() / "checkpoints"
    apart = original.options(checkpoint_dir="checkpoints")
    apart.map([1], progress=False)
    assert (tmp_path / "elsewhere/checkpoints/original_results.jsonl").exists()


def test_another_directory_in_the_environment_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A suite of tests that sets it for each test keeps them apart, and who goes back finds what was there."""

    @checkpointed("env")
    def function(n: int) -> int:
        CALLS.append(n)
        return n

    for name in ("one", "two", "one"):
        monkeypatch.setenv("CHECKPOINT_DIR", name)
        function.map([1], progress=False)
        wander("deeper")
    assert CALLS == [1, 1]
    assert (tmp_path / "one/env_results.jsonl").exists()
    assert (tmp_path / "deeper/two/env_results.jsonl").exists()


@checkpointed("by_name")
def named(n: int) -> int:
    """A function that pickles by its name."""
    return n


@pytest.mark.slow
def test_a_pickled_copy_takes_its_directory_along(tmp_path: Path) -> None:
    """It arrives elsewhere, and means the checkpoint that it meant where it was pickled."""
    copy = named.options(name="copied")
    copy.map([1], progress=False)
    (tmp_path / "pickled").write_bytes(pickle.dumps(copy))
    wander("elsewhere")
    code = """
import pickle, sys
copy = pickle.load(open(sys.argv[1], "rb"))
print(copy.runner.records.store.directory)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pickled")],
        capture_output=True, text=True, env=environment, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path.resolve() / "checkpoints")
