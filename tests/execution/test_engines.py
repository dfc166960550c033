"""Every engine keeps every law of `checkpoint.testing`; what keeps one not is named; a killed driver loses nothing."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Ticker, in_time

from checkpoint import BrokenWorkers, CheckpointedRunner, checkpointed, clock, locks
from checkpoint.execution.call import Call
from checkpoint.execution.coordinator import Coordinator
from checkpoint.execution.interfaces import Grouping, Parallelism
from checkpoint.execution.scheduler import Attempt, Schedule
from checkpoint.outcomes import Done, Unit
from checkpoint.passes.pipeline import Pass
from checkpoint.storage.index import Index
from checkpoint.storage.journal import Journal
from checkpoint.testing import LAWS, Engine, Law, check, for_executor

HAS_LOKY = importlib.util.find_spec("loky") is not None
posix = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
FOREVER = 100  # seconds that no law takes, and no job
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@pytest.fixture(scope="module", autouse=True)
def _quick_starts() -> None:
    """Worker processes are forked with the modules that they need, instead of each importing them."""
    if METHOD == "forkserver":
        multiprocessing.set_forkserver_preload(["checkpoint.testing"])


@pytest.fixture(autouse=True)
def _in_time() -> Iterator[None]:
    """What waits for ever fails, and says where."""
    with in_time(FOREVER):
        yield


# --- every law × every engine ----------------------------------------------------------------------------------------


def process_pool() -> ProcessPoolExecutor:
    """The standard library's."""
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(METHOD))


def loky_pool() -> Executor:
    """Joblib's."""
    pool: Executor = importlib.import_module("loky").ProcessPoolExecutor(2)
    return pool


SHARED = ExitStack()  # executors that laws share which do not break them


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    with SHARED:
        yield


@cache
def shared(make: Callable[[], Executor]) -> Executor:
    """One for all."""
    return SHARED.enter_context(make())


def sharing(name: str, make: Callable[[], Executor]) -> Engine:
    """The engine of an executor in other processes; it is started once, but for the laws that break it."""
    return Engine(name, lambda: nullcontext({"executor": shared(make), "workers": 2}), is_local=False, fresh=make)


def own(name: str, **options: Any) -> Engine:
    """One of our own engines."""
    remote = options.get("executor") == "processes"
    is_async = name.startswith("asyncio")
    return Engine(name, lambda: nullcontext(options), is_async, is_local=not remote, survives=remote)


ENGINES = [
    own("serial"),
    own("4 threads", workers=4),
    own("processes", executor="processes", workers=2),
    own("asyncio, 1 task", workers=1),
    own("asyncio, 4 tasks", workers=4),
    for_executor(partial(ThreadPoolExecutor, 2)),
    sharing("ProcessPoolExecutor", process_pool),
    *([sharing("loky", loky_pool)] if HAS_LOKY else []),
]
SLOW = {"processes", "ProcessPoolExecutor", "loky"}  # those that begin processes


@pytest.mark.parametrize(
    "engine",
    [pytest.param(engine, id=engine.name, marks=pytest.mark.slow if engine.name in SLOW else ()) for engine in ENGINES],
)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_engine_keeps_every_law(law: Law, engine: Engine, tmp_path: Path) -> None:
    """One contract, whatever runs the function."""
    law(engine, tmp_path)


def test_every_law_says_what_it_is() -> None:
    """Its docstring is told when it is broken; names are directories."""
    assert all(law.__doc__ for law in LAWS)
    assert len({law.__name__ for law in LAWS}) == len(LAWS)


# --- what does not keep them -----------------------------------------------------------------------------------------


class Twice(ThreadPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        super().submit(function, *given, **named)
        return super().submit(function, *given, **named)


class Behind(ThreadPoolExecutor):
    """Each call is answered with the answer to the one before."""

    before: Any = None

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        def run() -> Any:
            answer = function(*given, **named)
            told, self.before = self.before or answer, answer
            return told

        return super().submit(run)


class Tired(ThreadPoolExecutor):
    """Takes three tasks."""

    taken = 0

    def submit(self, function: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        self.taken += 1
        if self.taken > 3:
            raise RuntimeError("enough")
        return super().submit(function, *given, **named)


BROKEN = [
    (Twice, "each_item_is_called_once", "it runs each call a second time"),
    (Behind, "results_stand_in_the_order_of_the_items", "it mixes answers up"),
    (Tired, "each_item_is_called_once", "it stops taking calls"),
]


@pytest.mark.parametrize(("kind", "law", "reason"), BROKEN, ids=[reason for _, _, reason in BROKEN])
def test_a_broken_executor_is_told_which_laws_it_does_not_keep(
    kind: type[ThreadPoolExecutor], law: str, reason: str, tmp_path: Path
) -> None:
    """By name; those that it keeps are not named, and the law's own words are with its error."""
    laws = [one for one in LAWS if one.__name__ in (law, "no_items_make_no_results")]
    with pytest.raises(ExceptionGroup) as caught:
        check(for_executor(partial(kind, 2)), tmp_path, laws=laws)
    assert kind.__name__ in caught.value.message
    assert law in caught.value.message
    assert "no_items_make_no_results" not in caught.value.message
    notes = [note for error in caught.value.exceptions for note in error.__notes__]
    assert any(note.startswith(f"law: {law}: ") for note in notes)
    assert (tmp_path / law).is_dir()


def test_check_is_silent_where_all_laws_hold(tmp_path: Path) -> None:
    """And leaves each law's files in the directory that it was given."""
    check(own("serial"), tmp_path, laws=LAWS[:3])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(law.__name__ for law in LAWS[:3])


@pytest.mark.slow
@pytest.mark.promise("a given executor breaks")
@posix
def test_a_process_pool_whose_worker_is_killed_is_broken_and_no_item_has_failed(tmp_path: Path) -> None:
    """Its owner is told to run the same line again with a fresh one."""
    f = checkpointed("kills", checkpoint_dir=tmp_path)(kill_at_3)
    with process_pool() as executor, pytest.raises(BrokenWorkers, match="run the same line again with a fresh one"):
        f.map(range(8), executor=executor, progress=False)
    assert dict(f.errors) == {}


def kill_at_3(n: int) -> int:
    """A call that kills its process."""
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


# --- the driver is killed --------------------------------------------------------------------------------------------

JOB = """
import asyncio, multiprocessing, os, sys, time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

from checkpoint import checkpointed


def note(what, n):
    descriptor = os.open("calls.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, f"{what} {n}\\n".encode())
    os.close(descriptor)


def is_held_up(n):
    return n >= 30 and not os.path.exists("go on")


@checkpointed("job")
def work(n):
    note("begin", n)
    while is_held_up(n):
        time.sleep(0.005)
    note("end", n)
    return n * 10


@checkpointed("job")
async def awork(n):
    note("begin", n)
    while is_held_up(n):
        await asyncio.sleep(0.005)
    note("end", n)
    return n * 10


def on(executor, **options):
    with executor:
        return work.map(range(60), executor=executor, progress=False, chunksize=1, **options)


def main(kind):
    if kind == "serial":
        return work.map(range(60), progress=False)
    if kind == "threads":
        return work.map(range(60), progress=False, workers=4)
    if kind == "chunks":
        return work.map(range(60), progress=False, workers=2, chunksize=4)
    if kind == "processes":
        return work.map(range(60), progress=False, workers=2, executor="processes", chunksize=1)
    if kind == "chunks of processes":
        return work.map(range(60), progress=False, workers=2, executor="processes", chunksize=4)
    if kind == "asyncio":
        return asyncio.run(awork.map(range(60), progress=False, workers=4))
    if kind == "ThreadPoolExecutor":
        return on(ThreadPoolExecutor(4))
    if kind == "ProcessPoolExecutor":
        return on(ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("METHOD")))
    if kind == "loky":
        import loky
        return on(loky.ProcessPoolExecutor(2), workers=2)


if __name__ == "__main__":
    assert main(sys.argv[1]) == [n * 10 for n in range(60)]
"""

DRIVERS = [
    ("serial", 1),
    ("threads", 4),
    ("chunks", 8),
    ("processes", 2),
    ("chunks of processes", 8),
    ("asyncio", 4),
    ("ThreadPoolExecutor", 4),
    ("ProcessPoolExecutor", 2),
    *([("loky", 2)] if HAS_LOKY else []),
]


def lines_of(log: Path) -> list[tuple[str, int]]:
    """(what, item) of each line."""
    fields = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(what, int(n)) for what, n in fields]


def wait_until(holds: Callable[[], bool]) -> None:
    """Poll; the time limit of each test is the deadline."""
    while not holds():
        time.sleep(0.005)


def is_gone(group: int) -> bool:
    """Whether all processes of the group have ended, though nobody may have asked how."""
    if not Path("/proc/self/stat").exists():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return False
    return True


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C", "the parent of worker processes is killed")
@posix
@pytest.mark.parametrize(("kind", "at_once"), DRIVERS, ids=[kind for kind, _ in DRIVERS])
def test_a_killed_driver_loses_nothing_and_redoes_what_was_in_flight(kind: str, at_once: int, tmp_path: Path) -> None:
    """SIGKILL: what is in the journal is not called again; in all no more calls are made than there are items, and
    workers × chunksize. Our own worker processes end with their driver, whatever they are at.
    """
    job, log, errors = tmp_path / "job.py", tmp_path / "calls.log", tmp_path / "errors"
    job.write_text(JOB.replace("METHOD", METHOD))
    command = [sys.executable, str(job), kind]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    surroundings.pop("CHECKPOINT_DIR", None)
    with errors.open("wb") as stderr:
        driver = subprocess.Popen(command, cwd=tmp_path, env=surroundings, stderr=stderr, start_new_session=True)
        wait_until(lambda: sum(what == "end" for what, _ in lines_of(log)) >= 15 or driver.poll() is not None)
        driver.kill()
    assert driver.wait() == -signal.SIGKILL, errors.read_text()
    try:
        if kind not in ("ProcessPoolExecutor", "loky"):  # whose workers may wait for work for ever
            wait_until(lambda: is_gone(driver.pid))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(driver.pid))
    whole = (tmp_path / "checkpoints" / "job_results.jsonl").read_bytes().split(b"\n")[:-1]
    saved = {json.loads(line)["key"] for line in whole}
    (tmp_path / "go on").touch()
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    calls = Counter(n for what, n in lines_of(log) if what == "begin")
    assert set(calls) == set(range(60))
    assert {n for n in saved if calls[n] > 1} == set()
    assert sum(calls.values()) <= 60 + at_once


# --- reports in an event loop ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("workers", "together"), [(1, 1), (2, 2), (64, 4)])
def test_a_busy_event_loop_deals_with_several_reports_at_a_time(workers: int, together: int, ticker: Ticker) -> None:
    """Each as it comes while there is time left, and again once there is: judged whenever all may have reported."""

    def reports_every(seconds: float) -> list[int]:
        sizes = []
        for _ in range(workers):
            ticker.tick(seconds)
            grouping.dealt(1)
            sizes.append(grouping.size)
        return sizes

    grouping = Grouping(workers)
    assert grouping.size == 1
    assert reports_every(0.001) == [1] * workers
    assert reports_every(0.00003) == [*[1] * (workers - 1), together]
    assert reports_every(0.00003) == [together] * workers
    assert reports_every(0.001)[-1] == 1


# --- reports from several threads ------------------------------------------------------------------------------------


class Desk:
    """What a pass is to a coordinator: its `settle` waits where it is told to."""

    name = "desk"
    items: Iterable[Any] = ()
    in_memory = is_watched = is_crowded = waits_for_medium = is_shared = limits_cost = has_unknown_costs = False

    def __init__(self) -> None:
        self.by: list[tuple[str, list[int]]] = []  # which thread settled which keys
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.takes: Callable[[], object] = lambda: None
        self.is_ended: Callable[[], object] = lambda: None

    @property
    def verdict(self) -> None:
        self.is_ended()

    def admit(self, item: Any) -> None: ...

    def admit_next(self, most: int) -> None: ...

    def begin_when_admitted(self) -> None: ...

    def begin_when_called(self) -> None: ...

    def begin(self, units: list[Unit], _: Any) -> tuple[list[Unit], int]:
        return units, 0

    def put_off(self, units: list[Unit]) -> None: ...

    def attempted(self, units: list[Unit], cost: float) -> None: ...

    def affords(self, units: list[Unit]) -> bool:
        return True

    def tell_paused(self, seconds: float | None) -> None: ...

    def settle(self, finished: list[Done]) -> None:
        self.by.append((threading.current_thread().name, [done.unit.key for done in finished]))
        self.begun.set()
        self.go_on.wait(FOREVER)
        self.takes()


class Nobody:
    """Workers that do nothing by themselves."""

    settles, shares_blame = True, False

    def start(self, task: Any) -> None: ...

    def close(self) -> None: ...


def reported(key: int) -> tuple[list[Attempt], list[Any]]:
    """A call that has returned."""
    return [Attempt([Unit(key, key)])], [(key, 0.0)]


@pytest.fixture
def at_work() -> Iterator[tuple[Coordinator, Desk]]:
    """A coordinator that has seen its desk settle fast, in its own thread."""
    desk, settled = Desk(), threading.Event()
    coordinator = Coordinator(desk, Call(str), Schedule(), Parallelism(4), settled.set)
    coordinator.begin(Nobody())
    coordinator.report(*reported(0))
    assert settled.wait(FOREVER)
    desk.begun.clear()
    yield coordinator, desk
    desk.go_on.set()
    coordinator.close()
    assert desk.by[0] == ("checkpoint-coordinator", [0])


def test_who_reports_settles_itself(at_work: tuple[Coordinator, Desk]) -> None:
    """Handing over to a thread and back would take longer."""
    coordinator, desk = at_work
    assert coordinator.deal_at_once([reported(1), reported(2)])
    assert desk.by[1:] == [(threading.current_thread().name, [1, 2])]


def test_who_reports_while_another_settles_does_not_wait_for_it(at_work: tuple[Coordinator, Desk]) -> None:
    """It is told that nobody has dealt with its report, and gives it to the coordinator."""
    coordinator, desk = at_work
    desk.go_on.clear()
    first = threading.Thread(target=coordinator.deal_at_once, args=([reported(1)],), name="first")
    first.start()
    assert desk.begun.wait(FOREVER)
    assert not coordinator.deal_at_once([reported(2)])
    coordinator.report(*reported(2))
    desk.go_on.set()
    first.join()
    coordinator.close()
    assert desk.by[1:] == [("first", [1]), ("checkpoint-coordinator", [2])]


def test_nobody_settles_by_itself_once_that_takes_long(
    at_work: tuple[Coordinator, Desk], ticker: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker's thread has calls to make."""
    coordinator, desk = at_work
    monkeypatch.setattr(clock, "perf_counter", ticker)
    desk.takes = lambda: ticker.tick(0.01)
    assert coordinator.deal_at_once([reported(1)])
    assert not coordinator.deal_at_once([reported(2)])


def test_who_reports_when_it_is_over_settles_nothing(at_work: tuple[Coordinator, Desk]) -> None:
    """A call that outlived the grace of its pass: the lock may be another process's by then."""
    coordinator, desk = at_work
    coordinator.close()
    assert not coordinator.deal_at_once([reported(1)])
    coordinator.report(*reported(2))
    assert [keys for _, keys in desk.by] == [[0]]


# --- streams that are dropped anywhere -------------------------------------------------------------------------------


class Kept:
    """What only a garbage collection lets go of."""

    def __init__(self, outcomes: Any) -> None:
        self.outcomes, self.me = outcomes, self


@pytest.fixture
def collecting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any, str], threading.Event]]:
    """Has garbage collected the next time that a method is called, and nowhere else; the event says that it was."""
    gc.collect()
    gc.disable()

    def arm(owner: Any, name: str) -> threading.Event:
        really, collected = getattr(owner, name), threading.Event()

        def method(*arguments: Any, **named: Any) -> Any:
            if not collected.is_set():
                collected.set()
                gc.collect()
            return really(*arguments, **named)

        monkeypatch.setattr(owner, name, method)
        return collected

    yield arm
    gc.enable()


WITHIN = [(Pass, "settle"), (Index, "add"), (Coordinator, "_all_judged"), (Schedule, "answered"), (Journal, "append")]


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), WITHIN, ids=[name for _, name in WITHIN])
@pytest.mark.parametrize(
    "options", [{"workers": 4}, {"executor": "processes", "workers": 2}], ids=["threads", "processes"]
)
def test_a_stream_may_be_collected_by_the_thread_that_settles(
    options: dict[str, Any], owner: Any, name: str, collecting: Any, tmp_path: Path
) -> None:
    """In the middle of anything: its threads end, and the checkpoint can be mapped over again at once."""
    others = threading.enumerate()
    f = checkpointed("dropped", checkpoint_dir=tmp_path)(a_moment_and_then_longer)
    kept = Kept(f.stream(iter(range(10**6)), progress=False, grace=FOREVER / 10, **options))
    for _ in range(40):
        next(kept.outcomes)
    collected = collecting(owner, name)
    del kept
    assert collected.wait(FOREVER)
    left = {"checkpoint-tend", threading.current_thread().name}
    wait_until(lambda: {thread.name for thread in threading.enumerate() if thread not in others} <= left)
    assert list(f.map([-1, -2], progress=False)) == [-1, -2]


PROCESSES: dict[str, Any] = {"workers": 2, "executor": "processes"}
DROPPED = ["serial", "threads", "processes", "asyncio", "by hand"]


def dropped_in_a_cycle(how: str, directory: Path) -> tuple[Any, Any]:
    """A function, or a runner, and a cycle that holds a pass of it that is under way."""
    if how == "by hand":
        runner = CheckpointedRunner("dropped", directory)
        kept = Kept(runner.iterate(iter(range(10**6))))
        next(kept.outcomes)
        return runner, kept
    options = {"threads": {"workers": 4}, "processes": PROCESSES}.get(how, {})
    if how != "asyncio":
        f = checkpointed("dropped", checkpoint_dir=directory)(a_moment)
        kept = Kept(f.stream(iter(range(10**6)), progress=False, grace=FOREVER / 10, **options))
        next(kept.outcomes)
        return f, kept

    @checkpointed("dropped", checkpoint_dir=directory)
    async def g(n: int) -> int:
        await asyncio.sleep(0.005)
        return n

    async def begin() -> Kept:
        kept = Kept(g.stream(iter(range(10**6)), workers=4, progress=False))
        await anext(kept.outcomes)
        return kept

    loop = asyncio.new_event_loop()  # it stands still afterwards, as under a signal handler, or between cells
    kept = loop.run_until_complete(begin())
    return (g, loop), kept


@pytest.mark.slow
@pytest.mark.parametrize("where", ["here", "in another thread"])
@pytest.mark.parametrize("how", DROPPED)
def test_a_collection_waits_for_nothing_and_takes_no_lock(how: str, where: str, tmp_path: Path) -> None:
    """While every lock of ours is held by another thread, a pass that is let go of holds up nobody; then it ends."""
    gc.collect()
    gc.disable()
    release, held = threading.Event(), threading.Event()

    def hold_all() -> None:
        mine = [one for one in gc.get_objects() if type(one) is locks._Checked]
        with ExitStack() as stack:
            for one in sorted(mine, key=lambda one: one._rank):
                one._really.acquire()  # as if it were the only one: two checkpoints have locks of one rank
                stack.callback(one._really.release)
            held.set()
            release.wait(FOREVER)

    try:
        f, kept = dropped_in_a_cycle(how, tmp_path)
        holder = threading.Thread(target=hold_all)
        holder.start()
        assert held.wait(FOREVER)
        del kept
        if where == "here":
            gc.collect()
        else:
            thread = threading.Thread(target=gc.collect)
            thread.start()
            thread.join()
        release.set()
        holder.join()
    finally:
        release.set()
        gc.enable()
    if how == "by hand":
        assert next(iter(f.iterate([-1]))) == -1
    elif how == "asyncio":
        g, loop = f
        assert loop.run_until_complete(g.map([-1], progress=False)) == [-1]
        loop.close()
    else:
        assert list(f.map([-1, -2], progress=False)) == [-1, -2]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_a_stream_that_is_left_in_a_line_has_ended_in_the_next(engine: str, tmp_path: Path) -> None:
    """What ran has finished and is saved, and the checkpoint is free for others."""
    options = {"threads": {"workers": 4}, "processes": PROCESSES}.get(engine, {})
    f = checkpointed("left", checkpoint_dir=tmp_path)(a_moment)
    for outcome in f.stream(range(100), progress=False, **options):
        if outcome.key == 9:
            break
    assert not f.runner.records.store.writer.writing
    assert len(f.results) >= 1


@pytest.mark.slow
def test_a_loop_that_is_closed_ends_what_it_maps(tmp_path: Path) -> None:
    """The checkpoint is free at once for this process, and for others before long, without a collection."""

    @checkpointed("closed", checkpoint_dir=tmp_path)
    async def f(n: int) -> int:
        await asyncio.sleep(0.005)
        return n

    async def some(count: int) -> None:
        async for outcome in f.stream(iter(range(10**6)), workers=4, progress=False):
            if outcome.key > count:
                await asyncio.sleep(FOREVER)

    def begin() -> Any:
        loop = asyncio.new_event_loop()
        loop.set_exception_handler(lambda loop, context: None)
        task = loop.create_task(some(10))
        loop.run_until_complete(asyncio.sleep(0.1))
        loop.close()
        return task

    tasks = [begin(), begin()]
    assert asyncio.run(f.map([-1], progress=False)) == [-1]
    tasks.append(begin())
    wait_until(lambda: not f.runner.records.store.writer.writing)
    for task in tasks:
        task._log_destroy_pending = False
        task.get_coro().close()


def a_moment(n: int) -> int:
    """Itself, after some time."""
    time.sleep(0.005)
    return n


def a_moment_and_then_longer(n: int) -> int:
    """Calls run still when the first forty have ended, on a busy machine too; and end one by one."""
    time.sleep(0.005 if n < 40 else 0.3 + n % 7 * 0.1)
    return n


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "name"), WITHIN[:2], ids=[name for _, name in WITHIN[:2]])
def test_a_stream_may_be_collected_by_the_event_loop_that_settles(
    owner: Any, name: str, collecting: Any, tmp_path: Path
) -> None:
    """The loop goes on."""

    @checkpointed("dropped", checkpoint_dir=tmp_path)
    async def f(n: int) -> int:
        await asyncio.sleep(0.005)
        return n

    async def main() -> list[int]:
        kept = Kept(f.stream(iter(range(10**6)), workers=4, progress=False))
        for _ in range(40):
            await anext(kept.outcomes)
        collected = collecting(owner, name)
        del kept
        while not collected.is_set():
            await asyncio.sleep(0.001)
        return list(await f.map([-1, -2], workers=2, progress=False))

    assert asyncio.run(main()) == [-1, -2]


# --- the order of locks ----------------------------------------------------------------------------------------------


def test_locks_are_taken_in_one_order() -> None:
    """Out of turn raises where that might wait; what is held may be taken again, and what may fail may be tried."""
    first, second = locks.rlock("store"), locks.lock("tending")
    with first, second, first:
        assert locks.holding() == ["store", "tending", "store"]
    with second, pytest.raises(locks.LockOrder, match="store was taken while tending"):
        first.acquire()
    with second:
        assert first.acquire(blocking=False)
        first.release()
        third = locks.rlock("store")  # nobody else can hold it yet
        with third:
            pass
    with second, pytest.raises(locks.LockOrder):
        third.acquire()
    assert locks.holding() == []


@pytest.mark.slow
def test_locks_cost_nothing_where_their_order_is_not_checked() -> None:
    """They are those of `threading`."""
    script = "import threading, checkpoint.locks as l; print(type(l.lock('pass')) is type(threading.Lock()))"
    environment = {name: value for name, value in os.environ.items() if name != locks.VARIABLE}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"
