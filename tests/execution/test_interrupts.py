"""Laws of interrupts and of processes: what runs is let finish, what finished is kept, nothing is left behind.

Signals, deaths and terminals are real. Scripts and tests wait for each other by files, with a deadline.
"""

from __future__ import annotations

import _thread
import asyncio
import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import checkpoint
from checkpoint import BrokenWorkers, CheckpointedRunner, ItemsFailed, Results, TooManyErrors, checkpointed
from checkpoint.execution import signals as signals_module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and process groups of POSIX")

ROOT = Path(checkpoint.__file__).parent.parent
DEADLINE = 30.0
ENGINES = ["serial", "threads", "processes", "asyncio"]
SIGNALS = [signal.SIGINT, signal.SIGTERM]
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


# --- jobs ------------------------------------------------------------------------------------------------------------

JOB = """
import asyncio, json, os, sys, threading, time
from checkpoint import checkpointed

def note(name, text):
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

def waits(n):
    return n >= FREE and not os.path.exists("go") and not os.path.exists(str(n))

def drawn(items):
    for n in items:
        note("drawn", n)
        yield n

def work(n):
    note("called", n)
    while waits(n):
        time.sleep(0.005)
    note("returned", n)
    return n * n

async def awork(n):
    note("called", n)
    try:
        while waits(n):
            await asyncio.sleep(0.005)
    except BaseException as error:
        note("ended", f"{n} {type(error).__name__}")
        raise
    note("returned", n)
    return n * n

FREE = 3
given = json.loads(os.environ["JOB"])
engine = given.pop("engine")
consume = given.pop("consume", "map")
options = {"progress": False, **given}
if engine != "serial":
    options["workers"] = 4
if engine == "processes":
    options |= {"executor": "processes", "chunksize": 1}
f = checkpointed("j", version=1)(awork if engine == "asyncio" else work)

def run(items):
    if consume == "map":
        return f.map(items, **options)
    for outcome in f.stream(drawn(items), **options):
        note("yielded", outcome.key)
        if consume == "busy" and outcome.key == FREE:
            note("away", outcome.key)
            while not os.path.exists("back"):
                time.sleep(0.005)

async def arun(items):
    asyncio.get_running_loop().slow_callback_duration = 60  # of what -X dev complains: the machine may be busy
    if consume == "map":
        return await f.map(items, **options)
    async for outcome in f.stream(drawn(items), **options):
        note("yielded", outcome.key)
        if consume == "busy" and outcome.key == FREE:
            note("away", outcome.key)
            while not os.path.exists("back"):
                await asyncio.sleep(0.005)
        if consume == "stream and await" and outcome.key == FREE - 1:
            note("awaiting", outcome.key)
            await asyncio.sleep(3600)

def main(items=range(20)):
    if engine == "asyncio":
        return asyncio.run(arun(items))
    return run(items)
"""

MAIN = """
if __name__ == "__main__":
    main()
    note("after", "the pass")
"""
LAST = {"serial": 3, "threads": 6, "processes": 6, "asyncio": 6}  # the last item that runs when those that wait do


class Job:
    """A script in a process of its own, and what it has noted."""

    def __init__(self, directory: Path, script: str, *arguments: str, **options: Any) -> None:
        self.directory = directory
        (directory / "job.py").write_text(script)
        self._files = [(directory / name).open("wb") for name in ("stdout", "stderr")]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JOB": json.dumps(options.pop("job", {})),
            **options.pop("env", {}),
        }
        command = [sys.executable, *options.pop("flags", ()), *(arguments or ("job.py",))]
        self.process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=self._files[0],
            stderr=options.pop("stderr", self._files[1]),
            start_new_session=True,
        )

    def lines(self, name: str) -> list[str]:
        """What was noted under the name."""
        path = self.directory / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def called(self) -> list[int]:
        return sorted(map(int, self.lines("called")))

    @property
    def stderr(self) -> str:
        return (self.directory / "stderr").read_text(errors="replace")

    def until(self, what: str, condition: Callable[[], object]) -> None:
        """Wait until it is so, while the job runs."""
        until(what, condition, lambda: f"exit code {self.process.poll()}, stderr:\n{self.stderr}")

    def until_full(self, engine: str) -> None:
        """Wait until what runs waits, and what finished is on disk."""
        last = LAST[engine]
        self.until("calls", lambda: self.called() == [*range(last + 1)])
        self.until("results", lambda: len(self.results()) == 3)

    def results(self) -> dict[Any, Any]:
        """What is on disk; read as any process may, at any time."""
        with CheckpointedRunner("j", self.directory / "checkpoints", version=1) as runner:
            return runner.get_all_results()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def go(self) -> None:
        (self.directory / "go").touch()

    def end(self, timeout: float = DEADLINE) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end; stderr:\n{self.stderr}") from None

    def close(self) -> None:
        """Leave nothing of it behind."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except OSError:
            pass
        self.process.wait()
        for file in self._files:
            file.close()


def until(what: str, condition: Callable[[], object], why: Callable[[], str] = str, timeout: float = DEADLINE) -> None:
    """Wait until it is so."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}: {why()}"
        time.sleep(0.005)


Starter = Callable[..., Job]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Starts jobs, which do not outlive the test."""
    jobs: list[Job] = []

    def start_job(script: str, *arguments: str, **options: Any) -> Job:
        jobs.append(Job(tmp_path, script, *arguments, **options))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.close()


def in_session(session: int) -> list[int]:
    """The processes of a session that live; zombies do not."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry))
    return found


def resumed(directory: Path, items: range = range(20)) -> list[int]:
    """What a pass calls that is run again."""
    calls = []

    def work(n: int) -> int:
        calls.append(n)
        return n * n

    f = checkpointed("j", version=1, checkpoint_dir=directory / "checkpoints")(work)
    assert f.map(items, progress=False) == [n * n for n in items]
    f.runner.close()
    return calls


def check_ended_by(job: Job, number: int) -> None:
    """It ended as Python programs end that got the signal."""
    code = job.end()
    if number == signal.SIGINT:
        assert code in (-2, 130), job.stderr
        assert job.stderr.splitlines()[-1].startswith("KeyboardInterrupt"), job.stderr
    else:
        assert code == 143, job.stderr
        assert "Traceback" not in job.stderr
    assert "never retrieved" not in job.stderr
    assert "was destroyed" not in job.stderr
    assert "Exception ignored" not in job.stderr
    assert job.lines("after") == [], "nothing of the script runs after the pass"


# --- the first signal ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize(
    ("engine", "consume", "number"),
    [
        *((e, "map", n) for e in ENGINES for n in [*SIGNALS, signal.SIGHUP]),
        *((e, "stream", SIGNALS[n % 2]) for n, e in enumerate(ENGINES)),
        *((e, "map", signal.SIGHUP) for e in ENGINES),
    ],
)
def test_the_first_signal_lets_what_runs_finish(
    start: Starter, tmp_path: Path, engine: str, consume: str, number: int
) -> None:
    """Nothing more is begun; what runs finishes and is saved; it is said once; then the process ends by the signal."""
    job = start(JOB + MAIN, job={"engine": engine, "consume": consume})
    job.until_full(engine)
    running = job.called()
    job.send(number)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.go()
    check_ended_by(job, number)
    assert job.called() == running, "nothing was begun after the signal"
    assert job.stderr.count("stopping") == 1
    assert "10 s" in job.stderr, "it says for how long"
    assert job.results() == {n: n * n for n in running}
    if consume == "stream":
        assert sorted(map(int, job.lines("yielded"))) == running[: len(job.lines("yielded"))]
    assert resumed(tmp_path) == [n for n in range(20) if n not in running]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "processes", "asyncio"])
def test_nothing_is_begun_after_the_signal_while_a_consumer_is_busy(start: Starter, engine: str) -> None:
    """Items that were drawn ahead are not begun, though whoever consumes the stream looks only much later."""
    job = start(JOB + MAIN, job={"engine": engine, "consume": "busy"})
    job.until_full(engine)
    job.until("what is drawn ahead", lambda: len(job.lines("drawn")) >= 9)
    (job.directory / "3").touch()
    job.until("the consumer", lambda: job.lines("away") and len(job.called()) == 8)
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.go()
    job.until("the rest", lambda: len(job.lines("returned")) == len(job.lines("called")))
    job.until("their records", lambda: len(job.results()) == len(job.lines("called")))
    (job.directory / "back").touch()
    check_ended_by(job, signal.SIGINT)
    assert job.called() == [*range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_signal_ends_an_endless_stream(start: Starter, engine: str) -> None:
    """Items without end are no reason to go on."""
    main = MAIN.replace("main()", "import itertools; main(itertools.count())")
    job = start(JOB + main, job={"engine": engine, "consume": "stream"})
    job.go()
    job.until("many calls", lambda: len(job.lines("called")) > 50)
    job.send(signal.SIGINT)
    check_ended_by(job, signal.SIGINT)
    assert sorted(map(int, job.lines("returned"))) == job.called()
    assert job.results().keys() == set(job.called())


# --- the second ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_second_signal_stops_at_once(start: Starter, tmp_path: Path, engine: str, number: int) -> None:
    """Calls that never end are left; what had finished is saved."""
    job = start(JOB + MAIN, job={"engine": engine, "grace": 3600})
    job.until_full(engine)
    running = job.called()
    job.send(number)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.send(number)
    check_ended_by(job, number)
    assert job.called() == running
    assert sorted(job.lines("returned")) == ["0", "1", "2"]
    assert job.results() == {0: 0, 1: 1, 2: 4}
    if engine == "asyncio":
        assert sorted(job.lines("ended")) == [f"{n} CancelledError" for n in range(3, 7)]
    job.go()
    assert resumed(tmp_path) == [*range(3, 20)]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["threads", "processes"])
def test_the_second_signal_stops_a_busy_consumer_too(start: Starter, engine: str) -> None:
    """It comes up in the body of the loop, and nobody waits for what runs."""
    job = start(JOB + MAIN, job={"engine": engine, "consume": "busy", "grace": 3600})
    job.until_full(engine)
    (job.directory / "3").touch()
    job.until("the consumer", lambda: job.lines("away"))
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.send(signal.SIGINT)
    check_ended_by(job, signal.SIGINT)


@pytest.mark.slow
def test_the_second_signal_names_how_it_ends(start: Starter) -> None:
    """Ctrl-C, and then a SIGTERM from whoever does not wait: the exit code is the second one's."""
    job = start(JOB + MAIN, job={"engine": "threads", "grace": 3600})
    job.until_full("threads")
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.send(signal.SIGTERM)
    check_ended_by(job, signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("second", ["a second signal", "grace"])
def test_a_consumer_that_awaits_something_else_is_stopped_too(start: Starter, number: int, second: str) -> None:
    """An `async for` whose body waits for its own affairs: the second signal, or the time, ends it the same way."""
    job = start(
        JOB + MAIN,
        job={"engine": "asyncio", "consume": "stream and await", "grace": 3600 if second != "grace" else 0.1},
        flags=["-W", "error"],
    )
    job.until("the consumer", lambda: job.lines("awaiting"))
    job.send(number)
    job.until("the message", lambda: "stopping" in job.stderr)
    if second != "grace":
        job.send(number)
    check_ended_by(job, number)


# --- the time --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize(("grace", "number"), [(0.3, signal.SIGTERM), (0, signal.SIGINT)])
@pytest.mark.parametrize("engine", ENGINES)
def test_after_the_grace_it_stops_by_itself(start: Starter, engine: str, grace: float, number: int) -> None:
    """One signal is enough: calls that never end are left when the time is up, at once where it is 0."""
    job = start(JOB + MAIN, job={"engine": engine, "grace": grace})
    job.until_full(engine)
    job.send(number)
    check_ended_by(job, number)
    assert job.stderr.count("stopping") == 1
    assert f"{grace:g} s" in job.stderr
    assert job.results() == {0: 0, 1: 1, 2: 4}


# --- handlers --------------------------------------------------------------------------------------------------------


def handlers() -> list[Any]:
    """Those of the signals."""
    return [signal.getsignal(number) for number in SIGNALS]


def square(n: int) -> int:
    """A function that returns."""
    return n * n


def raises(n: int) -> int:
    """A function that fails."""
    raise ValueError(n)


def interrupts(n: int) -> int:
    """A function that ends the pass."""
    raise KeyboardInterrupt


def unfinished() -> Iterator[int]:
    """Items that raise."""
    yield 1
    raise ConnectionError("the source is gone")


def options_of(engine: str) -> dict[str, Any]:
    """What makes `map` use the engine."""
    chosen: dict[str, dict[str, Any]] = {
        "threads": {"workers": 4},
        "processes": {"workers": 2, "executor": "processes"},
        "serial": {},
    }
    return {"progress": False, **chosen.get(engine, {"workers": 4})}


class Passes:
    """`map` and the first of `stream` on an engine; coroutine functions in a loop of their own."""

    def __init__(self, engine: str, function: Callable[[Any], Any], **options: Any) -> None:
        self.options = options_of(engine)
        self.is_async = engine == "asyncio"

        async def awaited(item: Any) -> Any:
            await asyncio.sleep(0)
            return function(item)

        self.f: Any = checkpointed("j", **options)(awaited if self.is_async else function)

    def map(self, items: Any, **options: Any) -> Results[Any]:
        options = {**self.options, **options}
        if not self.is_async:
            return self.f.map(items, **options)  # type: ignore[no-any-return]

        async def whole() -> Results[Any]:
            return await self.f.map(items, **options)  # type: ignore[no-any-return]

        return asyncio.run(whole())

    def break_after_one(self, items: Any, how: str) -> list[Any]:
        """The handlers while the stream is under way; then it is left."""
        if self.is_async:
            return asyncio.run(self._abreak(items, how))
        outcomes = self.f.stream(items, **self.options)
        next(outcomes)
        during = handlers()
        if how == "close":
            outcomes.close()
        del outcomes
        gc.collect()
        return during

    async def _abreak(self, items: Any, how: str) -> list[Any]:
        outcomes = self.f.stream(items, **self.options)
        await anext(outcomes)
        during = handlers()
        if how == "close":
            await outcomes.aclose()
        del outcomes
        gc.collect()
        await asyncio.sleep(0)
        return during


ENDS: list[tuple[str, Callable[[Any], Any], Any, dict[str, Any], type[BaseException] | None]] = [
    ("a normal end", square, [1, 2, 3], {}, None),
    ("failures", raises, [1, 2, 3], {}, ItemsFailed),
    ("too many failures", raises, [1, 2, 3], {"max_errors": 0}, TooManyErrors),
    ("the items raise", square, unfinished, {}, ConnectionError),
    ("the function raises KeyboardInterrupt", interrupts, [1, 2], {}, KeyboardInterrupt),
]


@pytest.mark.slow
@pytest.mark.parametrize(("reason", "function", "items", "options", "error"), ENDS, ids=[end[0] for end in ENDS])
@pytest.mark.parametrize("engine", ENGINES)
def test_handlers_are_put_back(
    engine: str, reason: str, function: Any, items: Any, options: dict[str, Any], error: type[BaseException] | None
) -> None:
    """Whatever ends a pass, the handlers are as they were."""
    before = handlers()
    passes = Passes(engine, function)
    items = items() if callable(items) else items
    if error is None:
        passes.map(items, **options)
    else:
        with pytest.raises(error):
            passes.map(items, **options)
    assert handlers() == before


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "drop"])
@pytest.mark.parametrize("engine", ENGINES)
def test_handlers_are_put_back_when_a_stream_is_left(engine: str, how: str) -> None:
    """Closed or collected, a generator leaves no handler behind; while it is suspended they are ours."""
    before = handlers()
    during = Passes(engine, square).break_after_one(range(100), how)
    assert all(one is not other for one, other in zip(during, before, strict=True))
    assert handlers() == before


class InACycle:
    """Holds something that only a garbage collection lets go of."""

    def __init__(self, held: Any) -> None:
        self.held, self.itself = held, self


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "collect"])
@pytest.mark.parametrize("engine", ["serial", "threads", "processes"])
def test_a_stream_that_another_thread_drops_leaves_no_handler(engine: str, how: str) -> None:
    """Only the main thread may set handlers: it does when it next runs, and a later pass is interrupted as ever."""
    before = handlers()
    passes = Passes(engine, square)
    gc.disable()
    try:
        kept = [InACycle(passes.f.stream(range(100), **passes.options))]
        next(kept[0].held)
        if how == "collect":
            kept.clear()
        thread = threading.Thread(target=gc.collect if how == "collect" else lambda: kept.pop().held.close())
        thread.start()
        thread.join()
    finally:
        gc.enable()
    until("the handlers", lambda: handlers() == before)


def test_a_handler_that_no_thread_could_put_back_does_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the main thread cannot be asked, the first signal puts it back, and does what it did."""
    before = handlers()
    monkeypatch.setattr(signals_module, "_put_back_soon", lambda: None)
    outcomes: list[Any] = [checkpointed("j")(square).stream(range(9), progress=False)]
    next(outcomes[0])
    thread = threading.Thread(target=lambda: outcomes.pop().close())
    thread.start()
    thread.join()
    assert handlers() != before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert handlers() == before


def test_the_first_signal_reaches_every_pass() -> None:
    """Of two streams that are under way, neither begins anything after it, and both end by it."""
    one = checkpointed("one")(square).stream(range(9), progress=False)
    other = checkpointed("other")(square).stream(range(9), workers=2, progress=False)
    next(one), next(other)
    signal.raise_signal(signal.SIGINT)
    for outcomes in (one, other):
        with pytest.raises(KeyboardInterrupt):
            list(outcomes)


def test_the_first_signal_stops_at_once_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while the process ends: nobody would count the grace down."""

    def refuse(*_: object) -> int:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    before = handlers()
    outcomes: Any = checkpointed("j")(square).stream(range(9), progress=False)
    next(outcomes)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert handlers() == before
    outcomes.close()


FORKS = """
import multiprocessing, signal, sys, time
from checkpoint import checkpointed

@checkpointed("j", version=1)
def f(n):
    reader, writer = multiprocessing.Pipe(duplex=False)
    def stands():
        are = [signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler) for n in (2, 15, 1)]
        writer.send([are, signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()])
        time.sleep(100)
    child = multiprocessing.get_context("fork").Process(target=stands)
    child.start()
    told = reader.recv()
    child.terminate()
    child.join()
    return [told, child.exitcode]

if __name__ == "__main__":
    f.map([1], progress=False, OPTIONS)
"""


@pytest.mark.slow
@pytest.mark.promise("fork")
@pytest.mark.parametrize("options", ["workers=1", "workers=2", "workers=2, executor='processes'"])
def test_what_is_forked_within_a_pass_keeps_no_handler_of_ours(start: Starter, options: str) -> None:
    """Whichever thread or process forks it: `terminate` ends it at once, and it has nothing to say."""
    job = start(FORKS.replace("OPTIONS", options))
    assert job.end() == 0, job.stderr
    assert job.results() == {1: [[[True] * 3, True], -15]}
    assert job.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_users_own_handler_is_kept_and_works(engine: str) -> None:
    """Who has set a handler gets the signals, during a pass too."""
    seen = []

    def mine(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    def items() -> Iterator[int]:
        for n in range(4):
            os.kill(os.getpid(), SIGNALS[n % 2])
            yield n

    before = handlers()
    try:
        for number in SIGNALS:
            signal.signal(number, mine)
        assert Passes(engine, square).map(items()) == [0, 1, 4, 9]
        assert handlers() == [mine, mine]
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    assert seen == SIGNALS * 2


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_handler_that_is_set_during_a_pass_stays(engine: str) -> None:
    """What the user sets meanwhile is not overwritten by what was there before."""

    def mine(number: int, frame: FrameType | None) -> None:
        raise AssertionError

    def items() -> Iterator[int]:
        yield 1
        signal.signal(signal.SIGTERM, mine)
        yield 2

    before = handlers()
    try:
        assert Passes(engine, square).map(items()) == [1, 4]
        assert handlers() == [before[0], mine]
    finally:
        signal.signal(signal.SIGTERM, before[1])


def test_a_loops_own_handler_is_kept() -> None:
    """`loop.add_signal_handler` is a handler that somebody set."""
    seen: list[str] = []

    def items() -> Iterator[int]:
        yield 1
        os.kill(os.getpid(), signal.SIGTERM)
        yield 2

    async def whole() -> Results[int]:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, seen.append, "SIGTERM")
        try:
            done = await checkpointed("j")(asquare).map(items(), progress=False, workers=2)
            while not seen:
                await asyncio.sleep(0.001)
            return done
        finally:
            loop.remove_signal_handler(signal.SIGTERM)

    assert asyncio.run(whole()) == [1, 4]
    assert seen == ["SIGTERM"]


async def asquare(n: int) -> int:
    """A coroutine function."""
    await asyncio.sleep(0)
    return n * n


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_no_handler_is_touched_outside_the_main_thread(engine: str) -> None:
    """A pass in another thread leaves signals alone."""
    before, during, results = handlers(), [], []

    def items() -> Iterator[int]:
        during.extend(handlers())
        yield 3

    thread = threading.Thread(target=lambda: results.append(Passes(engine, square).map(items())))
    thread.start()
    thread.join(DEADLINE)
    assert results == [[9]]
    assert during == before == handlers()


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("engine", ENGINES)
def test_an_interrupted_pass_in_this_process_can_go_on(engine: str) -> None:
    """A notebook goes on after Ctrl-C: handlers are back, the lock is free, and what finished is not run again."""
    before = handlers()
    sent: list[int] = []

    def items() -> Iterator[int]:
        for n in range(20):
            if n == 5 and not sent:
                sent.append(n)
                os.kill(os.getpid(), signal.SIGINT)
            yield n

    passes = Passes(engine, square)
    with pytest.raises(KeyboardInterrupt):
        passes.map(items())
    assert handlers() == before
    done = set(passes.f.results)
    assert done <= set(range(6))
    assert passes.map(range(20)) == [n * n for n in range(20)]
    assert signal.getsignal(signal.SIGINT) is before[0]


def test_a_signal_as_a_pass_ends_is_not_lost() -> None:
    """A first signal in the last call: what it asked for happens, and no timer of it fires afterwards."""

    def last(n: int) -> int:
        signal.raise_signal(signal.SIGINT)
        return n

    f = checkpointed("j")(last)
    threads = _thread._count()
    for n in range(20):
        with pytest.raises(KeyboardInterrupt):
            f.map([n], progress=False, grace=3600)
        assert f.results[n] == n
    until("no timer", lambda: _thread._count() <= threads + 1)


# --- coroutines ------------------------------------------------------------------------------------------------------

AGAIN = "run the same line again for the rest"
CANCEL = (
    JOB
    + """
def is_full():
    if not os.path.exists("called"):
        return False
    with open("called") as file:
        return len(file.readlines()) == 7 and len(f.results) == 3

async def main():
    before = asyncio.all_tasks()
    task = asyncio.ensure_future(arun(range(20)))
    while not is_full():
        await asyncio.sleep(0.005)
    if HOW == "cancel":
        task.cancel("enough")
        try:
            await task
        except asyncio.CancelledError:
            note("ended_by", "CancelledError")
    assert asyncio.all_tasks() == before, asyncio.all_tasks()
    note("cancelling", asyncio.current_task().cancelling())

async def timed():
    before = asyncio.all_tasks()
    try:
        async with asyncio.timeout(None) as limit:
            asyncio.get_running_loop().create_task(expire(limit))
            await arun(range(20))
    except TimeoutError:
        note("ended_by", "TimeoutError")
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before, asyncio.all_tasks()
    note("cancelling", asyncio.current_task().cancelling())

async def expire(limit):
    while not is_full():
        await asyncio.sleep(0.005)
    limit.reschedule(0)

asyncio.run(main() if HOW == "cancel" else timed())
import gc; gc.collect()
note("after", "the pass")
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("consume", ["map", "stream"])
@pytest.mark.parametrize(("how", "ended_by"), [("cancel", "CancelledError"), ("timeout", "TimeoutError")])
def test_cancellation_ends_the_pass(start: Starter, tmp_path: Path, how: str, ended_by: str, consume: str) -> None:
    """`task.cancel()` and `asyncio.timeout` end it; what finished is kept and told, no call and no task is left."""
    script = CANCEL.replace("HOW", repr(how))
    job = start(script, job={"engine": "asyncio", "consume": consume}, flags=["-W", "error", "-X", "dev"])
    assert job.end() == 0, job.stderr
    of = " of 20" if consume == "map" else ""
    assert job.stderr == f"checkpoint 'j': cancelled with 3{of} done, all of them saved; {AGAIN}\n"
    assert job.lines("ended_by") == [ended_by]
    assert job.lines("cancelling") == ["0"]
    assert sorted(job.lines("ended")) == [f"{n} CancelledError" for n in range(3, 7)]
    assert job.results() == {0: 0, 1: 1, 2: 4}
    assert resumed(tmp_path) == [*range(3, 20)]


PLAIN_LOOP = (
    JOB
    + """
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(arun(range(20)))
except KeyboardInterrupt:
    note("ended_by", "KeyboardInterrupt")
    left = asyncio.all_tasks(loop)
    assert not left, left
loop.close()
import gc; gc.collect()
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("consume", ["map", "stream"])
@pytest.mark.parametrize("again", [False, True])
def test_a_plain_event_loop_is_interrupted_too(start: Starter, again: bool, consume: str) -> None:
    """KeyboardInterrupt comes out of `run_until_complete`, and no task is left behind."""
    job = start(PLAIN_LOOP, job={"engine": "asyncio", "consume": consume}, flags=["-W", "error", "-X", "dev"])
    job.until_full("asyncio")
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    if again:
        job.send(signal.SIGINT)
    else:
        job.go()
    assert job.end() == 0, job.stderr
    assert job.lines("ended_by") == ["KeyboardInterrupt"]
    told = [line for line in job.stderr.splitlines() if not line.startswith("checkpoint 'j': ")]
    assert told == []
    assert len(job.results()) == (3 if again else 7)


SWALLOWS = (
    JOB
    + """
CANCEL = False

async def swallows(n):
    note("called", n)
    while waits(n):
        try:
            await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            note("swallowed", n)
    return n * n

f = checkpointed("j", version=1)(swallows)

async def main():
    task = asyncio.ensure_future(arun(range(20)))
    while CANCEL and (len(f.results) < 3 or len(open("called").readlines()) < 7):
        await asyncio.sleep(0.005)
    if CANCEL:
        task.cancel()
    await task

loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(main())
except KeyboardInterrupt:
    note("ended_by", "KeyboardInterrupt")
    os._exit(0)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("consume", ["map", "stream"])
@pytest.mark.parametrize("by", ["a second signal", "grace", "a cancellation, and two signals"])
def test_calls_that_swallow_their_cancellation_hold_up_no_interrupt(start: Starter, by: str, consume: str) -> None:
    """The second signal, or the end of the time, leaves them: the checkpoint is free, and has what finished."""
    grace = 0.1 if by == "grace" else 3600
    script = (
        SWALLOWS if by != "a cancellation, and two signals" else SWALLOWS.replace("CANCEL = False", "CANCEL = True")
    )
    job = start(script, job={"engine": "asyncio", "consume": consume, "grace": grace})
    job.until_full("asyncio")
    if by == "a cancellation, and two signals":
        job.until("the cancellation", lambda: len(job.lines("swallowed")) == 4)
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    if by != "grace":
        job.send(signal.SIGINT)
    assert job.end() == 0, job.stderr
    assert job.lines("ended_by") == ["KeyboardInterrupt"]
    assert job.called() == [*range(7)]
    assert job.results() == {0: 0, 1: 1, 2: 4}
    assert job.stderr.count("all of them saved") == 1


@pytest.mark.slow
def test_a_consumer_that_gives_up_on_each_outcome_is_stopped_by_the_second_signal(start: Starter) -> None:
    """`wait_for` of Python 3.11 asks for each outcome in another task: the last one is told."""
    job = start(
        JOB
        + """
async def main():
    outcomes = f.stream(drawn(range(20)), **options)
    while True:
        note("yielded", (await asyncio.wait_for(anext(outcomes), 3600)).key)

asyncio.run(main())
""",
        job={"engine": "asyncio", "grace": 3600},
    )
    job.until_full("asyncio")
    job.until("the outcomes", lambda: len(job.lines("yielded")) == 3)
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.send(signal.SIGINT)
    assert job.end() in (-2, 130), job.stderr
    assert job.results() == {0: 0, 1: 1, 2: 4}


@pytest.mark.slow
@linux
@pytest.mark.parametrize("engine", ENGINES)
def test_a_terminal_that_is_closed_lets_what_runs_finish(tmp_path: Path, engine: str) -> None:
    """Its SIGHUP is taken as a SIGTERM is, though nobody can be told any more."""
    import pty

    options = json.dumps({"engine": engine, "progress": True})
    (tmp_path / "job.py").write_text(JOB + MAIN)
    pid, terminal = pty.fork()
    if not pid:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JOB": options}
        os.execve(sys.executable, [sys.executable, "job.py"], environment)
    running = [*range(LAST[engine] + 1)]

    def noted(name: str) -> list[int]:
        path = tmp_path / name
        return sorted(map(int, path.read_text().split())) if path.exists() else []

    try:
        until("calls", lambda: noted("called") == running)
        os.close(terminal)
        (tmp_path / "go").touch()
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    assert os.waitstatus_to_exitcode(status) == 143
    with CheckpointedRunner("j", tmp_path / "checkpoints", version=1) as runner:
        assert set(runner.get_all_results()) >= set(running)
    assert resumed(tmp_path) == [n for n in range(20) if n not in noted("returned")]


# --- processes: groups -----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP])
def test_worker_processes_finish_when_the_group_is_signalled(start: Starter, tmp_path: Path, number: int) -> None:
    """A terminal's Ctrl-C, and a scheduler's SIGTERM, go to all processes: workers leave it to the parent."""
    job = start(JOB + MAIN, job={"engine": "processes"})
    job.until_full("processes")
    running = job.called()
    os.killpg(job.process.pid, number)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.go()
    check_ended_by(job, number)
    assert job.stderr.count("Traceback") == (number == signal.SIGINT), "no worker has anything to say"
    assert job.results() == {n: n * n for n in running}
    assert resumed(tmp_path) == [n for n in range(20) if n not in running]


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_worker_processes_that_are_being_started_ignore_it_too(start: Starter, number: int) -> None:
    """A signal to the group while workers import the main module ends the pass, and none of them prints a traceback."""
    slow = 'if __name__ != "__main__":\n    note("importing", os.getpid())\n    while not os.path.exists("go"):\n'
    job = start(JOB + slow + "        time.sleep(0.005)\n" + MAIN, job={"engine": "processes"})
    job.until("a worker", lambda: job.lines("importing"))
    os.killpg(job.process.pid, number)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.go()
    check_ended_by(job, number)
    assert job.stderr.count("Traceback") == (number == signal.SIGINT)
    assert sorted(map(int, job.lines("returned"))) == job.called()


@pytest.mark.slow
def test_what_a_workers_function_starts_gets_signals_as_ever(start: Starter) -> None:
    """A child that a function starts and terminates is ended: what workers do about SIGTERM is not handed down."""
    script = """
import signal, subprocess, sys
from checkpoint import checkpointed

@checkpointed("j", version=1)
def ended_by(number):
    with subprocess.Popen(["sleep", "1000"]) as child:
        child.send_signal(number)
        try:
            return child.wait(5)
        except subprocess.TimeoutExpired:
            child.kill()
            return "nothing"

if __name__ == "__main__":
    ended_by.map([15, 1, 2], workers=1, executor="processes", progress=False)
"""
    job = start(script)
    assert job.end() == 0, job.stderr
    assert job.results() == {15: -15, 1: -1, 2: -2}


STARTS = """
import os, subprocess, sys, time
from checkpoint import checkpointed

@checkpointed("j", version=1, timeout=TIMEOUT)
def f(n):
    with subprocess.Popen([sys.executable, "-c", "import os, time; os.fork(); time.sleep(1000)"]) as child:
        with open("called", "a") as file: file.write(f"{n}\\n")
        return child.wait()

if __name__ == "__main__":
    f.map([1], workers=1, executor="processes", progress=False, return_exceptions=True)
    with open("after", "w") as file: file.write("the pass\\n")
    while not os.path.exists("end"): time.sleep(0.005)
"""


def started(job: Job) -> list[int]:
    """What the worker's function has started, and what that has forked."""
    sleeping = [pid for pid in in_session(job.process.pid) if b"time.sleep(1000)" in command_of(pid)]
    return [pid for pid in sleeping if b"checkpointed" not in command_of(pid)]


def command_of(pid: int) -> bytes:
    """The process's command line."""
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.slow
@pytest.mark.promise("the parent of worker processes is killed")
@linux
@pytest.mark.parametrize("how", ["a timeout", "the parent is killed", "the worker is killed", "the group is signalled"])
def test_what_a_worker_has_started_ends_with_it(start: Starter, how: str) -> None:
    """Processes, and those that they fork."""
    job = start(STARTS.replace("TIMEOUT", "2" if how == "a timeout" else "None"))
    job.until("what it starts", lambda: len(started(job)) == 2)
    if how == "the parent is killed":
        job.process.kill()
    elif how == "the worker is killed":
        _, worker = sorted(filter(is_ours, in_session(job.process.pid)))
        os.kill(worker, signal.SIGKILL)
        job.until("the next worker", lambda: len(job.lines("called")) == 2)
        job.until("no orphan", lambda: len(started(job)) == 2)
        return
    elif how == "the group is signalled":
        os.killpg(job.process.pid, signal.SIGINT)
    until("no orphan", lambda: not started(job), lambda: str(started(job)))


def stopped(pids: list[int]) -> list[bool]:
    """Whether each of the processes is."""
    return [Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] == "T" for pid in pids]


@pytest.mark.slow
@linux
def test_a_job_that_is_stopped_at_a_terminal_stops_as_a_whole_and_goes_on(tmp_path: Path) -> None:
    """Ctrl-Z and `fg` reach workers and what they have started; a job that no shell could have go on is not stopped."""
    (tmp_path / "shell.py").write_text(
        "import os, sys, time\npid = os.fork()\nif not pid:\n    os.setpgid(0, 0)\n"
        "    os.execv(sys.executable, [sys.executable, 'job.py'])\n"
        "open('pid', 'w').write(str(pid))\nos.waitpid(pid, 0)\n"
    )
    job = Job(tmp_path, STARTS.replace("TIMEOUT", "None"), "shell.py")
    group = 0
    try:
        job.until("what it starts", lambda: len(started(job)) == 2)
        group = int((tmp_path / "pid").read_text())
        all_of_it = [pid for pid in in_session(job.process.pid) if pid != job.process.pid and not is_tracker(pid)]
        assert len(all_of_it) == 5
        for number in (signal.SIGTSTP, signal.SIGCONT, signal.SIGTSTP, signal.SIGCONT):
            os.killpg(group, number)
            until("it", lambda: stopped(all_of_it) == [number == signal.SIGTSTP] * 5, lambda: str(stopped(all_of_it)))  # noqa: B023
    finally:
        if group:
            os.killpg(group, signal.SIGKILL)
        job.close()


def is_tracker(pid: int) -> bool:
    """Whether it is the resource tracker of multiprocessing, which ignores signals."""
    return b"resource_tracker" in command_of(pid)


# --- processes: none is left -----------------------------------------------------------------------------------------

BUSY = {
    "a long integer": "3 ** (10 ** 9)",
    "a regular expression": 're.match("(a+)+$", "a" * 60 + "b")',
    "sleep": "time.sleep(3600)",
}


@pytest.mark.slow
@pytest.mark.promise("the parent of worker processes is killed")
@linux
@pytest.mark.parametrize("busy", BUSY)
def test_no_worker_outlives_a_killed_parent(start: Starter, busy: str) -> None:
    """SIGKILL of the parent ends its workers whatever they do, in code that holds the interpreter's lock too."""
    script = JOB.replace("def waits(n):\n", f"import re\ndef waits(n):\n    if n >= FREE: {BUSY[busy]}\n") + MAIN
    job = start(script, job={"engine": "processes"})
    job.until_full("processes")
    assert len(in_session(job.process.pid)) >= 5
    job.process.kill()
    job.end()
    until("no worker", lambda: not in_session(job.process.pid), lambda: str(in_session(job.process.pid)))


LEAVES = {
    "a normal end": "f.map(range(3), **options)",
    "failures": "try: g.map(range(3), **options)\n    except ItemsFailed: pass",
    "the items raise": "try: f.map(broken(), **options)\n    except ConnectionError: pass",
    "a break": "for _ in f.stream(range(9), grace=0, **options): break",
    "a function that cannot be loaded": "try: h.map(range(3), **options)\n    except BrokenWorkers as e: kept = e",
    "a closed generator": "s = f.stream(range(9), grace=0, **options); next(s); s.close()",
}


@pytest.mark.slow
@linux
@pytest.mark.parametrize("leave", LEAVES)
def test_no_worker_outlives_its_pass(start: Starter, leave: str) -> None:
    """However a pass ends, its workers end, and what they are forked from; the process itself may go on for long."""
    script = f"""{JOB}
from checkpoint import BrokenWorkers, ItemsFailed
class Unloadable:
    __name__ = __qualname__ = "unloadable"
    def __call__(self, n):
        return n
    def __reduce__(self):
        return only_in, (os.getpid(),)
def only_in(pid):
    assert os.getpid() == pid, "not here"
    return Unloadable()
h = checkpointed("h", version=1)(Unloadable())
def broken():
    yield 1
    raise ConnectionError
def fails(n):
    raise ValueError(n)
g = checkpointed("g")(fails)
if __name__ == "__main__":
    {LEAVES[leave]}
    note("after", "the pass")
    while not os.path.exists("end"): time.sleep(0.005)
"""
    job = start(script, job={"engine": "processes"})
    job.until("the end of the pass", lambda: job.lines("after"))
    until("no worker", lambda: not any(map(is_ours, in_session(job.process.pid))))
    (job.directory / "end").touch()
    assert job.end() == 0, job.stderr
    until("no process", lambda: not in_session(job.process.pid))
    assert job.stderr == ""


def is_ours(pid: int) -> bool:
    """Whether it is a worker, or what workers are forked from."""
    return b"fork_server" in command_of(pid)


SUSPENDED = {
    "suspended": "outcomes = f.stream(range(20), **options); next(outcomes)",
    "suspended to the very end": "sys.kept = f.stream(range(20), **options); next(sys.kept)",
    "left to another thread": """threading.Thread(target=run, args=(range(20),), daemon=True).start()
    while not os.path.exists("yielded"): time.sleep(0.005)""",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "consume"),
    [*((engine, consume) for engine in ("threads", "processes") for consume in SUSPENDED), ("asyncio", "suspended")],
)
def test_the_interpreter_ends_though_calls_never_do(start: Starter, engine: str, consume: str) -> None:
    """Threads, processes and a stream that nobody finishes never keep the process alive."""
    if engine == "asyncio":
        script = f"""{JOB}
async def leaves():
    global outcomes
    outcomes = f.stream(range(20), **options)
    await anext(outcomes)
asyncio.run(leaves())
note("after", "the pass")
"""
    else:
        script = f"""{JOB}
if __name__ == "__main__":
    {SUSPENDED[consume]}
    note("after", "the pass")
"""
    job = start(script, job={"engine": engine, "consume": "stream", "grace": 3600})
    assert job.end() == 0, job.stderr
    assert job.lines("after") == ["the pass"]
    assert job.stderr == ""
    if sys.platform.startswith("linux"):
        until("no process", lambda: not in_session(job.process.pid), lambda: str(in_session(job.process.pid)))


# --- processes: deaths -----------------------------------------------------------------------------------------------

BIG = """
import os, sys, time
from checkpoint import checkpointed

@checkpointed("j", version=1)
def big(n):
    with open("called", "a") as file: file.write(f"{n}\\n")
    if n == 1 and not os.path.exists("pid"):
        with open("pid.part", "w") as file: file.write(str(os.getpid()))
        os.rename("pid.part", "pid")
        return "x" * SIZE
    return n

if __name__ == "__main__":
    done = big.map(range(8), workers=2, executor="processes", progress=False)
    assert [len(v) if isinstance(v, str) else v for v in done][2:] == [2, 3, 4, 5, 6, 7]
    print(type(done[1]).__name__)
"""


@pytest.mark.slow
@pytest.mark.promise("a worker process dies")
@pytest.mark.parametrize(
    "delays", [[0.0, 0.01, 0.04], pytest.param([n / 500 for n in range(60)], marks=pytest.mark.soak)]
)
def test_a_worker_that_is_killed_while_it_sends_takes_its_item_with_it_only(
    tmp_path: Path, delays: list[float]
) -> None:
    """SIGKILL from outside at any moment of a 50 MB result: the item is run again, the others are not even touched."""
    for number, delay in enumerate(delays):
        directory = tmp_path / str(number)
        directory.mkdir()
        job = Job(directory, BIG.replace("SIZE", "50_000_000"))
        try:
            job.until("the worker", lambda: (directory / "pid").exists())  # noqa: B023
            time.sleep(delay)  # the moment: anywhere in what follows
            try:
                os.kill(int((directory / "pid").read_text()), signal.SIGKILL)
            except ProcessLookupError:
                pass
            assert job.end() == 0, job.stderr
            called = job.called()
            assert sorted(set(called)) == [*range(8)]
            assert len(called) <= 9
            assert (directory / "stdout").read_text().strip() == ("int" if called.count(1) == 2 else "str")
        finally:
            job.close()


@pytest.mark.slow
@pytest.mark.promise("a worker process dies")
def test_a_death_is_noticed_though_a_child_holds_the_pipe(start: Starter) -> None:
    """A process that the function forked, and that outlives it, has the worker's end of the pipe too."""
    script = """
import os, signal, time
from checkpoint import checkpointed

@checkpointed("j", version=1)
def f(n):
    with open("called", "a") as file: file.write(f"{n}\\n")
    if n == 1 and not os.path.exists("child"):
        child = os.fork()
        if not child:
            while not os.path.exists("end"): time.sleep(0.01)
            os._exit(0)
        with open("child", "w") as file: file.write(str(child))
        os.kill(os.getpid(), signal.SIGKILL)
    return n

if __name__ == "__main__":
    assert f.map(range(6), workers=2, executor="processes", progress=False) == [*range(6)]
"""
    job = start(script)
    assert job.end() == 0, job.stderr
    assert job.called() == [0, 1, 1, 2, 3, 4, 5]
    (job.directory / "end").touch()


# --- processes: what a script is -------------------------------------------------------------------------------------


@pytest.mark.slow
@linux
@pytest.mark.parametrize("call", ["f.map(range(8), {})", "list(f.stream(range(8), {}))"])
def test_a_script_without_a_guard_ends_with_an_error_that_shows_it(start: Starter, call: str) -> None:
    """Workers import the main module; where that maps in turn, it ends by itself, and starts nothing more."""
    script = f"""
from checkpoint import checkpointed
with open("imported", "a") as file: file.write("once\\n")
f = checkpointed("j")(abs)
{call.format('workers=2, executor="processes", progress=False')}
"""
    job = start(script)
    assert job.end() == 1
    assert "UnguardedMain" in job.stderr
    assert 'if __name__ == "__main__":' in job.stderr
    assert len(job.lines("imported")) <= 1 + 2, "no more workers than were asked for"
    until("no process", lambda: not in_session(job.process.pid), lambda: str(in_session(job.process.pid)))


TRAVELS = {
    "under the guard": """
if __name__ == "__main__":
    import math
    from checkpoint import checkpointed
    @checkpointed("j", version=1)
    def f(n): return math.isqrt(n)
    assert f.map([4, 9], workers=2, executor="processes", progress=False) == [2, 3]
""",
    "a closure": """
from checkpoint import checkpointed
def make(by):
    @checkpointed("j", version=by)
    def f(n): return n * by
    return f
if __name__ == "__main__":
    assert make(3).map([4, 9], workers=2, executor="processes", progress=False) == [12, 27]
""",
    "a lambda under the guard": """
if __name__ == "__main__":
    from checkpoint import checkpointed
    f = checkpointed("j", version=1)(lambda n: n + 1)
    assert f.map([4, 9], workers=2, executor="processes", progress=False) == [5, 10]
""",
    "dataclasses of the main module": """
from dataclasses import dataclass
from checkpoint import checkpointed
@dataclass(frozen=True)
class Point:
    x: int
@checkpointed("j", version=1, key=lambda p: p.x)
def double(p: Point) -> Point:
    assert type(p) is Point
    return Point(p.x * 2)
if __name__ == "__main__":
    done = double.map([Point(1), Point(2)], workers=2, executor="processes", progress=False)
    assert done == [Point(2), Point(4)] and type(done[0]) is Point
    values = [o.value for o in double.stream([Point(1), Point(5)], executor="processes", workers=1, progress=False)]
    assert [type(value) for value in values] == [Point, Point]
""",
    "dataclasses under the guard": """
if __name__ == "__main__":
    from dataclasses import dataclass
    from checkpoint import checkpointed
    @dataclass(frozen=True)
    class Point:
        x: int
    @checkpointed("j", version=1, key=lambda p: p.x)
    def double(p: Point) -> Point:
        assert type(p) is Point, (type(p), Point)
        return Point(p.x * 2)
    done = double.map([Point(1), Point(2)], workers=2, executor="processes", progress=False)
    assert done == [Point(2), Point(4)] and type(done[0]) is Point
""",
    "an exception of the main module": """
from checkpoint import checkpointed, ItemsFailed
class Mine(Exception): pass
@checkpointed("j", version=1)
def f(n): raise Mine(n)
if __name__ == "__main__":
    try: f.map([1], workers=1, executor="processes", progress=False)
    except ItemsFailed as error: assert [type(e) for e in error.exceptions] == [Mine], error.exceptions
    else: raise SystemExit("nothing was raised")
""",
    "a method": """
from dataclasses import dataclass
from checkpoint import checkpointed
@dataclass
class Scale:
    by: int
    @checkpointed("j")
    def times(self, n): return n * self.by
if __name__ == "__main__":
    assert Scale(3).times.map([1, 2], workers=2, executor="processes", progress=False) == [3, 6]
""",
}
ANYWHERE = ["a closure", "dataclasses of the main module", "dataclasses under the guard"]
WITHOUT_FILE = """
import sys, types
namespace = {"__name__": "__main__", "__builtins__": __builtins__}
main = types.ModuleType("__main__"); main.__dict__.update(namespace); sys.modules["__main__"] = main
exec(compile(open("cell.py").read(), "<cell 1>", "exec"), main.__dict__)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "what"),
    [
        *(("a script", what) for what in TRAVELS),
        *((where, what) for where in ("-c", "stdin", "a notebook") for what in ANYWHERE),
    ],
)
def test_functions_and_classes_of_the_main_module_work_in_processes(
    start: Starter, tmp_path: Path, where: str, what: str
) -> None:
    """Wherever the main module comes from, and whether or not a worker can import it."""
    source = TRAVELS[what]
    (tmp_path / "cell.py").write_text(source)
    if where == "a script":
        job = start(source)
    elif where == "-c":
        job = start("", "-c", source)
    elif where == "stdin":
        with (tmp_path / "cell.py").open("rb") as file:
            job = start("", "-", stdin=file)
    else:
        job = start(WITHOUT_FILE)
    assert job.end() == 0, job.stderr
    assert job.stderr == ""


NO_CLOUDPICKLE = 'import sys\nsys.modules["cloudpickle"] = None\n'


@pytest.mark.slow
def test_a_function_of_a_module_needs_no_cloudpickle(start: Starter, tmp_path: Path) -> None:
    """The standard pickle is enough for what has a name: of a module, and of a script."""
    (tmp_path / "sitecustomize.py").write_text(NO_CLOUDPICKLE)
    (tmp_path / "mine.py").write_text(
        'from checkpoint import checkpointed\n\n@checkpointed("m")\ndef f(n):\n    return n + 1\n'
    )
    job = start(
        "from mine import f\nfrom checkpoint import checkpointed\n"
        '@checkpointed("s")\ndef g(n):\n    return n + 2\n'
        'if __name__ == "__main__":\n'
        '    assert f.map([1], executor="processes", workers=1, progress=False) == [2]\n'
        '    assert g.map([1], executor="processes", workers=1, progress=False) == [3]\n',
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    assert job.end() == 0, job.stderr
    assert job.stderr == ""


@pytest.mark.slow
def test_a_closure_without_cloudpickle_names_the_extra(start: Starter, tmp_path: Path) -> None:
    """The error says what to install, and that a top-level function needs nothing; nothing was started."""
    (tmp_path / "sitecustomize.py").write_text(NO_CLOUDPICKLE)
    job = start(TRAVELS["a closure"], env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert job.end() == 1
    last = job.stderr.rstrip().splitlines()[-1]
    assert re.match(r"(checkpoint\.\w*\.?)ExtraNeeded: .*checkpoint-map\[processes\]", last), job.stderr


@pytest.mark.slow
def test_a_module_that_workers_cannot_import_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`BrokenWorkers` says why the function cannot be loaded; nothing is marked as failed."""
    (tmp_path / "elsewhere.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}: raise ImportError('not here, of all places')\n"
        "from checkpoint import checkpointed\n@checkpointed('j')\ndef f(n):\n    return n\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import elsewhere  # type: ignore[import-not-found]

    with pytest.raises(BrokenWorkers, match="not here, of all places"):
        elsewhere.f.map(range(4), workers=2, executor="processes", progress=False)
    assert dict(elsewhere.f.errors) == {}
    assert dict(elsewhere.f.results) == {}


# --- the bar ---------------------------------------------------------------------------------------------------------


def shown_on_a_terminal(start: Starter, engine: str, number: int) -> tuple[Job, str]:
    """What stands on a terminal of a job that is interrupted."""
    import pty

    controller, terminal = pty.openpty()
    job = start(
        JOB + MAIN,
        job={"engine": engine, "progress": True},
        stderr=terminal,
        env={"TERM": "xterm", "PYTHON_COLORS": "0"},
    )
    os.close(terminal)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(controller, 4096):
                shown.append(part)
        except OSError:  # Linux: the other end was closed
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    job.until_full(engine)
    job.send(number)
    job.until("the message", lambda: b"stopping" in b"".join(shown))
    job.go()
    job.end()
    reader.join(DEADLINE)
    os.close(controller)
    return job, b"".join(shown).decode()


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "number"), [*((e, SIGNALS[0]) for e in ENGINES), ("threads", SIGNALS[1])])
def test_a_terminals_lines_do_not_mix(start: Starter, engine: str, number: int) -> None:
    """Each message stands on a line of its own, and the bar's last line above the traceback tells how far it came."""
    job, shown = shown_on_a_terminal(start, engine, number)
    lines = [seen(line) for line in shown.replace("\r\n", "\n").split("\n")]
    messages = [line for line in lines if "checkpoint 'j'" in line]
    assert messages
    assert [line for line in messages if not line.startswith("checkpoint 'j': ")] == []
    bars = [line for line in lines if "item/s" in line]
    assert all(line.startswith("j: ") for line in bars), bars
    assert f"{len(job.results())}/20" in bars[-1]
    traceback = next((n for n, line in enumerate(lines) if line.startswith("Traceback")), len(lines))
    assert max(n for n, line in enumerate(lines) if "item/s" in line) < traceback


def seen(line: str) -> str:
    """What a terminal shows of a line: what follows a carriage return overwrites what stood there."""
    text = ""
    for part in line.split("\r"):
        text = part + text[len(part) :]
    return text


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_a_logs_lines_do_not_mix(start: Starter, engine: str) -> None:
    """Not on a terminal, every line is a whole one: a message, the bar's, or the traceback's."""
    job = start(JOB + MAIN, job={"engine": engine, "progress": True})
    job.until_full(engine)
    job.send(signal.SIGINT)
    job.until("the message", lambda: "stopping" in job.stderr)
    job.go()
    check_ended_by(job, signal.SIGINT)
    before = job.stderr.partition("Traceback")[0].splitlines()
    assert all(re.match(r"checkpoint 'j': |j:\s+\d+%.*item/s", line) for line in before), before
    assert sum(line.startswith("j: ") for line in before) == 1
    assert f"{len(job.results())}/20" in job.stderr
