"""Dask, Ray, submitit, executorlib and MPI keep the laws of every engine, on real clusters of this machine.

A worker is killed in the middle, and a driver. What a package is needed for is skipped where it is not installed.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from conftest import in_time

from checkpoint import BrokenWorkers, ExtraNeeded, InvalidOption, checkpointed
from checkpoint.errors import WorkerDied
from checkpoint.execution.clusters import Ray, executor_of
from checkpoint.testing import LAWS, Engine, Law

pytestmark = pytest.mark.slow

PACKAGES = ("distributed", "ray", "submitit", "executorlib", "mpi4py")
HAS = {name: importlib.util.find_spec(name) is not None for name in PACKAGES}
FOREVER = 100  # seconds that no test takes
posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")


def needs(package: str) -> pytest.MarkDecorator:
    """Skips where it is not installed."""
    return pytest.mark.skipif(not HAS[package], reason=f"{package} is not installed")


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """What waits for ever fails, and says where."""
    with in_time(FOREVER):
        yield


# --- clusters of this machine, each started once ---------------------------------------------------------------------


@contextmanager
def dask_cluster() -> Iterator[Any]:
    """A cluster of two processes with a thread each."""
    distributed = importlib.import_module("distributed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # it tells of each worker that is killed
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@contextmanager
def ray_cluster() -> Iterator[None]:
    """A cluster of two CPUs on this machine, which this process has joined."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # else Ray writes one into the home directory
    ray = importlib.import_module("ray")
    sigterm = signal.getsignal(signal.SIGTERM)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    signal.signal(signal.SIGTERM, sigterm)
    yield
    ray.shutdown()


STARTED = ExitStack()


@pytest.fixture(scope="module", autouse=True)
def _started() -> Iterator[None]:
    with STARTED:
        yield


@cache
def started(cluster: Callable[[], AbstractContextManager[Any]]) -> Any:
    """One for all tests of the module."""
    return STARTED.enter_context(cluster())


def dask_client() -> Any:
    """A client, which is shut down as an executor is: the cluster goes on."""
    distributed = importlib.import_module("distributed")
    return type("Client", (distributed.Client,), {"shutdown": distributed.Client.close})(started(dask_cluster))


def ray_executor() -> Ray:
    """Of the cluster that this process has joined."""
    started(ray_cluster)
    return Ray()


RESTARTED = {"block_allocation": True, "restart_limit": 9}


def executorlib_executor(**options: Any) -> Executor:
    """Two processes that stay, and are begun again where they die; or as the options say."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # of pydantic
        executorlib = importlib.import_module("executorlib")
    executor: Executor = executorlib.SingleNodeExecutor(max_workers=2, **(options or RESTARTED))
    return executor


KINDS: dict[str, tuple[str, Callable[[], Any]]] = {
    "dask": ("distributed", dask_client),
    "ray": ("ray", ray_executor),
    "executorlib": ("executorlib", executorlib_executor),
}


on_each = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=needs(package)) for kind, (package, _) in KINDS.items()],
)


@cache
def shared(kind: str) -> Any:
    """One executor for all tests that do not break it."""
    return STARTED.enter_context(KINDS[kind][1]())


# --- every law -------------------------------------------------------------------------------------------------------

SLOW = {"two_thousand_tiny_items_are_all_done"}  # where each task takes milliseconds; see the test of chunks
TRIALS = [
    pytest.param(
        law,
        kind,
        id=f"{law.__name__}-{kind}",
        marks=[needs(package), *([pytest.mark.soak] if law.__name__ in SLOW else [])],
    )
    for kind, (package, _) in KINDS.items()
    for law in LAWS
]


@pytest.mark.parametrize(("law", "kind"), TRIALS)
def test_clusters_keep_every_law(law: Law, kind: str, tmp_path: Path) -> None:
    """One contract, whatever runs the function."""
    options = {"executor": shared(kind), "workers": 2 if kind == "executorlib" else 4}
    law(Engine(kind, lambda: nullcontext(options), is_local=False, fresh=KINDS[kind][1]), tmp_path)


@on_each
def test_tiny_items_travel_in_chunks(kind: str, tmp_path: Path) -> None:
    """A thousand calls a task, and each its own result."""
    calls = checkpointed("tiny", checkpoint_dir=tmp_path)(lambda n: n + 1)
    got = calls.map(range(100_000), executor=shared(kind), chunksize=1000, progress=False)
    assert got == list(range(1, 100_001))


# --- workers are killed ----------------------------------------------------------------------------------------------


def calls_in(directory: Path) -> Counter[int]:
    """How often each item was called."""
    log = directory / "calls"
    return Counter(map(int, log.read_text().split())) if log.exists() else Counter()


def noting(directory: Path, act: Callable[[int, int], Any]) -> Callable[[int], Any]:
    """A function that notes its calls and does `act(item, how often it was called)`; it travels by value."""
    log = str(directory / "calls")

    def work(n: int) -> Any:
        with open(log, "a") as file:
            file.write(f"{n}\n")
        with open(log) as file:
            return act(n, file.read().split().count(str(n)))

    return work


def wait_until(holds: Callable[[], bool]) -> None:
    """Poll; the time limit of each test is the deadline."""
    while not holds():
        time.sleep(0.005)


@pytest.mark.promise("a worker process dies")
@posix
@on_each
def test_a_worker_that_is_killed_takes_nothing_with_it(kind: str, tmp_path: Path) -> None:
    """Its item is called again, and all have their results; the same executor goes on."""
    pid, gate = tmp_path / "pid", tmp_path / "gate"

    def act(n: int, times: int) -> int:
        if n == 3 and times == 1:
            pid.write_text(str(os.getpid()))
            while not gate.exists():
                time.sleep(0.005)
        return n * 10

    def kill() -> None:
        wait_until(lambda: pid.exists() and pid.read_text() != "")
        os.kill(int(pid.read_text()), signal.SIGKILL)
        gate.touch()

    f = checkpointed("killed", checkpoint_dir=tmp_path)(noting(tmp_path, act))
    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill)
        assert f.map(range(20), executor=shared(kind), progress=False) == [n * 10 for n in range(20)]
        killed.result()
    assert calls_in(tmp_path)[3] == 2
    assert dict(f.errors) == {}


@pytest.mark.promise("a worker process dies")
@posix
@on_each
def test_an_item_that_kills_its_workers_fails_and_the_rest_is_done(kind: str, tmp_path: Path) -> None:
    """After three deaths that were told of; Dask, where nobody says otherwise, tells of every fourth.

    What executorlib keeps for all calls it begins again by itself, and does not tell: here each has its own process.
    """

    def act(n: int, times: int) -> int:
        if n == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    if kind == "dask":
        started(dask_cluster).scheduler.allowed_failures = 0
    f = checkpointed("poison", checkpoint_dir=tmp_path)(noting(tmp_path, act))
    with executorlib_executor(block_allocation=False) if kind == "executorlib" else nullcontext(shared(kind)) as given:
        got = f.map(range(8), executor=given, chunksize=4, progress=False, return_exceptions=True)
    assert [*got[:5], *got[6:]] == [0, 1, 2, 3, 4, 6, 7]
    assert list(f.errors) == [5]
    assert f.errors[5].type == "checkpoint.errors.WorkerDied"
    assert "exit code None" not in f.errors[5].message
    assert calls_in(tmp_path)[5] == 3


@pytest.mark.promise("a given executor breaks")
@posix
@needs("executorlib")
def test_executorlib_without_workers_is_broken_and_no_item_has_failed(tmp_path: Path) -> None:
    """Its processes were to stay, and all of them have died."""

    def act(n: int, times: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return n

    f = checkpointed("broken", checkpoint_dir=tmp_path)(noting(tmp_path, act))
    with executorlib_executor(block_allocation=True) as executor, pytest.raises(BrokenWorkers):
        f.map(range(8), executor=executor, progress=False)
    assert dict(f.errors) == {}


# --- the driver is killed --------------------------------------------------------------------------------------------

JOB = """
import os, sys, time
from dataclasses import dataclass

from checkpoint import checkpointed

HERE = os.path.dirname(os.path.abspath(__file__))


@dataclass
class Product:
    n: int
    times: int


def note(what, n):
    descriptor = os.open(os.path.join(HERE, "calls.log"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{what} {n}\\n".encode())
    os.close(descriptor)


@checkpointed("job", checkpoint_dir=HERE)
def work(n: int) -> Product:
    note("begin", n)
    while n >= 20 and not os.path.exists(os.path.join(HERE, "go on")):
        time.sleep(0.005)
    note("end", n)
    return Product(n, n * 10)


def run(executor, **options):
    return list(work.map(range(30), executor=executor, progress=False, chunksize=1, **options))


def main(kind):
    if kind == "threads":
        return run(None, workers=4)
    if kind == "dask":
        from distributed import Client, LocalCluster
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster, Client(cluster) as it:
            return run(it)
    if kind == "ray":
        import ray
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        return run("ray")
    if kind == "executorlib":
        import executorlib
        with executorlib.SingleNodeExecutor(max_workers=2, block_allocation=True) as it:
            return run(it)
    if kind == "submitit":
        import submitit
        return run(submitit.LocalExecutor(os.path.join(HERE, "jobs")), workers=2)
    if kind == "mpi":
        from mpi4py.futures import MPIPoolExecutor
        with MPIPoolExecutor(2) as it:
            return run(it)


if __name__ == "__main__":
    assert main(sys.argv[1]) == [Product(n, n * 10) for n in range(30)]
"""


def surroundings() -> dict[str, str]:
    """The environment of a child that uses what is installed here."""
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]])  # where mpiexec is, as installed
    found = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
    return found


def run_job(directory: Path, kind: str) -> subprocess.Popen[bytes]:
    """The job, in a process group of its own."""
    job = directory / "job.py"
    job.write_text(JOB)
    with (directory / "errors").open("ab") as errors:
        return subprocess.Popen(
            [sys.executable, str(job), kind], cwd=directory, env=surroundings(), stderr=errors, start_new_session=True
        )


def lines_of(log: Path) -> list[tuple[str, int]]:
    """(what, item) of each line."""
    fields = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(what, int(n)) for what, n in fields]


DRIVERS = [
    pytest.param(kind, marks=needs(package))
    for kind, package in [("dask", "distributed"), ("ray", "ray"), ("executorlib", "executorlib"),
                          ("submitit", "submitit"), ("mpi", "mpi4py")]
]  # fmt: skip


@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@posix
@pytest.mark.parametrize("kind", DRIVERS)
def test_a_killed_driver_loses_nothing_and_any_engine_goes_on(kind: str, tmp_path: Path) -> None:
    """What is in the journal is not called again. The function is one of a script's `__main__`, and so is its class."""
    log, errors = tmp_path / "calls.log", tmp_path / "errors"
    driver = run_job(tmp_path, kind)
    enough = 4 if kind == "submitit" else 10  # each of its calls is a process that is begun for it
    wait_until(lambda: sum(what == "end" for what, _ in lines_of(log)) >= enough or driver.poll() is not None)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL, errors.read_text()
    saved = {record["key"] for record in map(json.loads, (tmp_path / "job_results.jsonl").read_bytes().splitlines())}
    assert len(saved) >= enough - 3  # all, but for what was on its way
    (tmp_path / "go on").touch()  # for workers that outlive their driver
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    again = run_job(tmp_path, "threads")
    assert again.wait() == 0, errors.read_text()
    calls = Counter(n for what, n in lines_of(log) if what == "begin")
    assert set(calls) == set(range(30))
    assert {n for n in saved if calls[n] > 1} == set()


@needs("mpi4py")
def test_a_job_on_mpi_ends_as_it_should(tmp_path: Path) -> None:
    """`MPIPoolExecutor` in a script, to its end."""
    (tmp_path / "go on").touch()
    assert run_job(tmp_path, "mpi").wait() == 0, (tmp_path / "errors").read_text()


ALONE: Any = {"start_new_session": True, "capture_output": True, "timeout": 90}  # MPI kills whole process groups
MPI_LAWS = """
from checkpoint.testing import LAWS, check, for_executor
from contextlib import nullcontext
from dataclasses import replace
from mpi4py.futures import MPIPoolExecutor

if __name__ == "__main__":
    engine = for_executor(lambda: MPIPoolExecutor(2))
    own = [law for law in LAWS if law.__name__.startswith("an_executor_")]
    check(engine, laws=own)
    with MPIPoolExecutor(2) as executor:  # to start one takes half a second
        shared = replace(engine, options=lambda: nullcontext({"executor": executor, "workers": 2}))
        check(shared, laws=[law for law in LAWS if law not in own and law.__name__ not in LEFT_OUT])
"""


@needs("mpi4py")
def test_mpi_keeps_every_law(tmp_path: Path) -> None:
    """In a process of its own: one that has begun with MPI ends with it."""
    script = tmp_path / "job.py"
    left_out = SLOW | {"what_a_broken_executor_was_at_has_not_failed"}  # it kills a worker: see below
    script.write_text(MPI_LAWS.replace("LEFT_OUT", repr(left_out)))
    ended = subprocess.run([sys.executable, str(script)], env=surroundings(), **ALONE)
    assert ended.returncode == 0, ended.stderr


MPI_DEATH = """
import os, signal, time
from checkpoint import checkpointed

HERE = os.path.dirname(os.path.abspath(__file__))
ONCE, JOURNAL = HERE + "/once", HERE + "/death_results.jsonl"

@checkpointed("death", checkpoint_dir=HERE)
def work(n):
    if n == 15 and not os.path.exists(ONCE):
        open(ONCE, "w").close()
        while open(JOURNAL, "rb").read().count(10) < 5:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGKILL)
    return n * 10

if __name__ == "__main__":
    from mpi4py.futures import MPIPoolExecutor
    with MPIPoolExecutor(2) as executor:
        assert work.map(range(30), executor=executor, progress=False) == [n * 10 for n in range(30)]
"""


@pytest.mark.promise("a worker process dies")
@needs("mpi4py")
def test_a_worker_of_mpi_that_dies_ends_the_job_and_the_next_goes_on(tmp_path: Path) -> None:
    """MPI itself ends all of a job's processes, the driver's too: nothing that was recorded is lost."""
    script, journal = tmp_path / "job.py", tmp_path / "death_results.jsonl"
    script.write_text(MPI_DEATH)
    command = [sys.executable, str(script)]
    assert subprocess.run(command, env=surroundings(), **ALONE).returncode != 0
    saved = journal.read_bytes()
    assert 5 <= saved.count(b"\n") < 30
    ended = subprocess.run(command, env=surroundings(), **ALONE)
    assert ended.returncode == 0, ended.stderr
    assert journal.read_bytes().startswith(saved)
    assert journal.read_bytes().count(b"\n") == 30


# --- submitit --------------------------------------------------------------------------------------------------------


@needs("submitit")
@posix
def test_jobs_of_submitit_are_looked_at_and_a_killed_one_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a process of its own; what it returns, raises and dies of is told apart."""
    submitit = importlib.import_module("submitit")
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 1)  # for what a dead job may have written

    def act(n: int, times: int) -> int:
        if n == 1:
            raise ValueError("one")
        if n == 2 and times == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return n * 10

    f = checkpointed("jobs", checkpoint_dir=tmp_path)(noting(tmp_path, act))
    executor = submitit.LocalExecutor(tmp_path / "jobs")
    got = f.map(range(4), executor=executor, workers=2, progress=False, return_exceptions=True)
    assert [got[0], *got[2:]] == [0, 20, 30]
    assert (f.errors[1].type, f.errors[1].message) == ("ValueError", "one")
    assert calls_in(tmp_path) == {0: 1, 1: 1, 2: 2, 3: 1}


@needs("submitit")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("law", [law for law in LAWS if law.__name__ not in SLOW], ids=lambda law: law.__name__)
def test_submitit_keeps_every_law(law: Law, tmp_path: Path) -> None:
    """Its debug executor, which calls in this process when it is asked whether a job is done, and leaves files open."""
    executor = importlib.import_module("submitit").DebugExecutor(tmp_path / "jobs")
    try:
        law(Engine("submitit", lambda: nullcontext({"executor": executor, "workers": 1}), is_local=False), tmp_path)
    finally:
        gc.collect()  # while what it left open is not complained of


# --- whatever has `submit` -------------------------------------------------------------------------------------------


class Jobs:
    """Has `submit`; what it gives has `done` and `result` and nothing else."""

    class Job:  # noqa: D106
        def __init__(self, future: Future[Any]) -> None:
            self.done, self.result = future.done, future.result

    def __init__(self, pool: Executor) -> None:
        self.pool = pool

    def submit(self, function: Callable[..., Any], *given: Any) -> Jobs.Job:
        return Jobs.Job(self.pool.submit(function, *given))


@pytest.mark.parametrize("law", [law for law in LAWS if law.__name__ not in SLOW], ids=lambda law: law.__name__)
def test_what_only_says_whether_it_is_done_keeps_every_law(law: Law, tmp_path: Path) -> None:
    """It is looked at."""

    @contextmanager
    def options() -> Iterator[dict[str, Any]]:
        with ThreadPoolExecutor(2) as pool:
            yield {"executor": Jobs(pool), "workers": 2}

    law(Engine("jobs", options), tmp_path)


class Blames(Executor):
    """Takes two calls at a time, and says of both that a worker died of them when it died of one."""

    _max_workers = 2

    def __init__(self) -> None:
        self._given: SimpleQueue[tuple[Future[Any], Callable[[], Any], Any] | None] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *given: Any) -> Future[Any]:  # type: ignore[override]
        future: Future[Any] = Future()
        self._given.put((future, partial(function, *given), given[0].given))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._given.put(None)

    def _work(self) -> None:
        while (first := self._given.get()) is not None:
            pair = [first]
            with suppress(Empty):
                pair += [second for second in [self._given.get(timeout=0.2)] if second is not None]
            for future, call, _ in pair:
                if any(5 in items for _, _, items in pair):
                    future.set_exception(WorkerDied("something", exitcode=None))
                else:
                    future.set_result(call())


@pytest.mark.promise("a worker process dies")
def test_a_call_that_only_ran_beside_one_that_kills_does_not_fail(tmp_path: Path) -> None:
    """As with Dask, which tells a death of all that the worker had; the last try is made with nothing beside it."""
    f = checkpointed("blames", checkpoint_dir=tmp_path)(lambda n: n * 10)
    with Blames() as executor:
        got = f.map([5, 6, *range(8, 12)], executor=executor, progress=False, return_exceptions=True)
    assert list(f.errors) == [5]
    assert "at last of something" in f.errors[5].message
    assert got[1:] == [60, 80, 90, 100, 110]


def test_ray_that_is_not_installed_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is run."""
    monkeypatch.setitem(sys.modules, "ray", None)
    f = checkpointed("missing", checkpoint_dir=tmp_path)(lambda n: n)
    with pytest.raises(ExtraNeeded, match=r"checkpoint-map\[ray\]"):
        f.map([1], executor="ray", progress=False)


COUNTS = [
    ({"_max_workers": 3}, 3, "as executors of the standard library have it"),
    ({"max_workers": 4}, 4, "as executorlib has it"),
    ({"num_workers": 5}, 5, "as mpi4py has it"),
    ({"max_workers": None}, None, "it is not known"),
]


@pytest.mark.parametrize(("attributes", "count", "reason"), COUNTS, ids=[reason for _, _, reason in COUNTS])
def test_the_number_of_workers_is_the_clusters(attributes: dict[str, Any], count: int | None, reason: str) -> None:
    """Where nobody says."""
    jobs = Jobs(ThreadPoolExecutor(1))
    vars(jobs).update(attributes)
    assert executor_of(jobs)._max_workers == count


@pytest.mark.parametrize(
    "kind", [pytest.param("dask", marks=needs("distributed")), pytest.param("ray", marks=needs("ray"))]
)
def test_a_cluster_counts_its_threads(kind: str) -> None:
    """Two, here."""
    given = shared(kind)
    wait_until(lambda: executor_of("ray" if kind == "ray" else given)._max_workers == 2)


# --- Dask ------------------------------------------------------------------------------------------------------------


@needs("distributed")
def test_dask_keeps_nothing_of_what_is_settled(tmp_path: Path) -> None:
    """Neither results nor tasks."""
    f = checkpointed("kept", checkpoint_dir=tmp_path)(lambda n: "x" * 1000)
    f.map(range(50), executor=shared("dask"), progress=False)
    wait_until(lambda: not started(dask_cluster).scheduler.tasks)


@pytest.mark.promise("a given executor breaks")
@needs("distributed")
def test_a_client_that_closes_in_the_middle_is_broken_and_no_item_has_failed(tmp_path: Path) -> None:
    """What was under way is called again by the same line."""
    client = dask_client()

    def items() -> Iterator[int]:
        yield from range(4)
        client.close()
        yield from range(4, 100)

    f = checkpointed("closes", checkpoint_dir=tmp_path)(noting(tmp_path, lambda n, times: n))
    with pytest.raises(BrokenWorkers, match="run the same line again with a fresh one"):
        f.map(items(), executor=client, progress=False)
    assert dict(f.errors) == {}
    assert f.map(range(100), executor=shared("dask"), chunksize=25, progress=False) == list(range(100))


@needs("distributed")
def test_an_asynchronous_client_is_refused(tmp_path: Path) -> None:
    """Before anything is run: nobody would await what it gives."""
    distributed = importlib.import_module("distributed")
    f = checkpointed("refused", checkpoint_dir=tmp_path)(lambda n: n)

    class Asynchronous(distributed.Client):  # type: ignore[misc, name-defined]
        asynchronous = True

        def __init__(self) -> None: ...
        def __repr__(self) -> str:
            return "Client()"

        def __del__(self) -> None: ...

    with pytest.raises(InvalidOption, match="asynchronous"):
        f.map([1], executor=Asynchronous())
