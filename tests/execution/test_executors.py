"""Everybody's executors: each row of the guide's table is seen; what only looks like one is refused; calls travel."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import pytest
from conftest import in_time
from executors import PAGE, ROWS, TRIALS, Row, is_installed, written

from checkpoint import BrokenWorkers, InvalidOption, UnsendableItem, checkpointed
from checkpoint.execution import executors as executors_module
from checkpoint.execution.executors import make_calls

pytestmark = pytest.mark.slow

HAS_LOKY = importlib.util.find_spec("loky") is not None
QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory; what waits for ever fails, and says where."""
    monkeypatch.chdir(tmp_path)
    with in_time(100):
        yield


def double(n: int) -> int:
    """A function of a module."""
    return n * 2


# --- the table -------------------------------------------------------------------------------------------------------


def surroundings() -> dict[str, str]:
    """The environment of a child that uses what is installed here."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])
    found = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
    return found


def marks_of(row: Row) -> list[pytest.MarkDecorator]:
    """Where it is tried."""
    missing = pytest.mark.skipif(not is_installed(row), reason=f"{row.package} is not installed")
    return [missing, pytest.mark.soak] if row.is_slow else [missing]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("row", [pytest.param(row, id=row.name, marks=marks_of(row)) for row in ROWS])
def test_each_executor_does_what_its_row_says(row: Row, tmp_path: Path) -> None:
    """A script of its own, whose functions and classes are those of its main module."""
    script = str(Path(__file__).parents[1] / "executors.py")
    ran = subprocess.run(
        [sys.executable, script, "--try", row.name],
        cwd=tmp_path, env=surroundings(), capture_output=True, text=True, timeout=90, start_new_session=True,
    )  # fmt: skip
    seen = dict(json.loads(line) for line in ran.stdout.splitlines() if line.startswith("["))
    if ran.returncode != 0:
        seen.setdefault("a worker is killed", "ends the job")
    assert seen == {trial: row.word(trial) for trial in TRIALS}, ran.stderr


def test_the_table_of_the_guide_is_what_the_command_prints() -> None:
    """Nobody writes it by hand."""
    page = PAGE.read_text("utf-8")
    assert page == written(page), "run: python tests/executors.py --write"


# --- what only looks like an executor --------------------------------------------------------------------------------


class OtherOrder:
    """Takes something else before the function's arguments, as pebble.ProcessPool does."""

    def submit(self, function: Callable[..., Any], timeout: float, *given: Any) -> Future[Any]:
        raise AssertionError("it was given work")


class Named:
    """Takes the arguments in one."""

    def submit(self, function: Callable[..., Any], args: Any = (), kwargs: Any = None) -> Future[Any]:
        raise AssertionError("it was given work")


class Awaited:
    """Gives a coroutine."""

    async def submit(self, function: Callable[..., Any], *given: Any) -> Any:
        raise AssertionError("it was given work")


class NoFuture:
    """Gives what the function returns."""

    def submit(self, function: Callable[..., Any], *given: Any) -> Any:
        return function(*given)


LOOKALIKES: list[tuple[Callable[[], Any], str, str]] = [
    (OtherOrder, "takes 'timeout' before the function's arguments", "its calls would each lack an argument"),
    (Named, "takes 'args' before the function's arguments", "a task would be taken for a list"),
    (Awaited, "is a coroutine function", "nobody awaits it"),
    (NoFuture, "gives None, which has no done", "it calls at once"),
    (lambda: ThreadPool(1), 'no submit.*use executor="processes"', "a pool of multiprocessing"),
    (lambda: ThreadPoolExecutor, "a class; give one that is made of it", "it lacks its parentheses"),
    (lambda: "thread", "executor is 'thread'; give \"processes\"", "a word that is none"),
    (object, "no submit.*or leave it out", "anything else"),
]


@pytest.mark.parametrize(("make", "told", "reason"), LOOKALIKES, ids=[reason for *_, reason in LOOKALIKES])
def test_what_only_looks_like_an_executor_is_refused(make: Callable[[], Any], told: str, reason: str) -> None:
    """Before anything is run, with what to use."""
    calls: list[int] = []
    f = checkpointed("refused")(calls.append)
    given = make()
    with pytest.raises(InvalidOption, match=told):
        f.map([1, 2], executor=given, **QUIET)
    if hasattr(given, "terminate"):
        given.terminate()
        given.join()
    assert (calls, dict(f.errors)) == ([], {})


POOLS = [
    ("pebble", lambda package: package.ProcessPool(1), "pebble.ThreadPool"),
    ("joblib", lambda package: package.Parallel(2), "get_reusable_executor"),
    ("mpire", lambda package: package.WorkerPool(1), "processes"),
    ("gevent.threadpool", lambda package: package.ThreadPoolExecutor(1), "threads"),
    ("parsl.executors", lambda package: package.ThreadPoolExecutor(), "ParslPoolExecutor"),
    ("distributed", lambda package: package.LocalCluster, "distributed.Client"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "make", "told"), POOLS, ids=[name for name, *_ in POOLS])
def test_pools_of_packages_are_refused_with_what_to_use(name: str, make: Callable[[Any], Any], told: str) -> None:
    """Each by its own name for it."""
    package = pytest.importorskip(name)
    with pytest.raises(InvalidOption, match=told):
        checkpointed("refused")(double).map([1], executor=make(package), **QUIET)


# --- what an executor raises -----------------------------------------------------------------------------------------


class Raises(ThreadPoolExecutor):
    """Raises an error of its own class for each call, as where its workers lack a package of ours."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(1)
        self._error = error

    def submit(self, function: Callable[..., Any], /, *given: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        future.set_exception(self._error)
        return future


@pytest.mark.parametrize(
    "error",
    [TypeError("_many() missing 1 required argument"), ModuleNotFoundError("No module named 'checkpoint'"),
     ValueError("anything")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_of_the_executor_is_no_items_failure(error: BaseException) -> None:
    """Whichever class it comes in: what the function raises comes back as an answer."""
    f = checkpointed("raises")(double)
    with Raises(error) as executor, pytest.raises(BrokenWorkers, match=str(error).split()[0].strip("()")):
        f.map(range(4), executor=executor, **QUIET)
    assert dict(f.errors) == {}


def test_a_function_that_cannot_travel_is_no_items_failure() -> None:
    """It is told by what it refers to."""
    lock = threading.Lock()
    f = checkpointed("locked", version=1)(lambda n: (lock, n))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.raises(BrokenWorkers, match="lock"):
        f.map(range(4), executor=pool, **QUIET)
    assert dict(f.errors) == {}


# --- items that cannot travel ----------------------------------------------------------------------------------------


def spawned() -> Executor:
    """A pool, which is never started."""
    return ProcessPoolExecutor(2, mp_context=get_context("spawn"))


@pytest.mark.parametrize("batch_size", [None, 2])
@pytest.mark.parametrize("make", [lambda: "processes", spawned], ids=["processes", "a pool"])
def test_items_that_cannot_travel_are_told_before_anything_is_run(
    make: Callable[[], Any], batch_size: int | None, tmp_path: Path
) -> None:
    """The first one is looked at; nothing is recorded of it."""
    called = tmp_path / "called"
    decorator: Any = checkpointed("unsent", key="n", batch_size=batch_size)
    f = decorator(lambda item: called.touch())
    items = [{"n": n, "lock": threading.Lock()} for n in range(4)]
    with pytest.raises(UnsendableItem, match=r"cannot be sent to a worker process.*lock.*use threads"):
        f.map(items, executor=make(), workers=2, **QUIET)
    assert dict(f.errors) == {}
    assert not called.exists()


# --- what travels, and how often -------------------------------------------------------------------------------------


class Sends(Executor):
    """Two workers that hold what a process would: each opens a pickled parcel, and forgets what it was sent before."""

    def __init__(self, keeps: int) -> None:
        self.sizes: list[int] = []
        self._threads = ThreadPoolExecutor(1)  # one after the other: the order is that of the tasks
        self._kept: list[dict[bytes, Any]] = [{} for _ in range(2)]
        self._keeps = keeps

    def submit(self, function: Callable[..., Any], /, *given: Any) -> Future[Any]:  # type: ignore[override]
        import pickle

        packed = pickle.dumps((function, given))
        self.sizes.append(len(packed))

        def work(which: int) -> Any:
            kept = executors_module._calls
            kept.clear()
            kept.update(self._kept[which])
            called, given = pickle.loads(packed)
            answers = called(*given)
            self._kept[which] = dict(kept) if self._keeps else {}
            return answers

        return self._threads.submit(work, len(self.sizes) % 2)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._threads.shutdown(wait)


KEPT = [(1, 4, "each worker is sent it at most twice"), (0, 40, "it goes with each task, once none is seen to keep it")]


@pytest.mark.parametrize(("keeps", "most", "reason"), KEPT, ids=[reason for *_, reason in KEPT])
def test_a_large_call_travels_once_a_worker(keeps: int, most: int, reason: str) -> None:
    """All others bring what names it."""
    table = os.urandom(2_000_000)
    f = checkpointed("large", version=1)(lambda n: table[n])
    with Sends(keeps) as executor:
        assert f.map(range(40), executor=executor, workers=2, **QUIET) == list(table[:40])
    large = [size for size in executor.sizes if size > len(table)]
    assert 2 <= len(large) <= most
    assert keeps == 0 or max(set(executor.sizes) - set(large)) < 10_000


def test_a_pool_whose_workers_lack_a_module_is_sent_it_whole(tmp_path: Path) -> None:
    """A pool that was forked before the function was defined cannot find it by its name."""
    (tmp_path / "job.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from multiprocessing import get_context\n"
        "from checkpoint import checkpointed\n"
        "pool = ProcessPoolExecutor(1, mp_context=get_context('fork'))\n"
        "pool.submit(abs, 1).result()\n"
        "class Product:\n    def __init__(self, n): self.n = n\n"
        "def late(product): return product.n * 2\n"
        "f = checkpointed('late', key='n')(late)\n"
        "print(f.map([Product(1), Product(2)], executor=pool, progress=False)[:], dict(f.errors))\n"
    )
    ran = subprocess.run([sys.executable, "job.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "[2, 4] {}\n", ran.stderr


def test_what_a_worker_does_is_a_function_of_a_module() -> None:
    """Executors that keep functions by their names need one."""
    assert make_calls.__qualname__ == "make_calls"
