"""Laws of what travels to workers and of what comes back, beyond those that every engine keeps."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice, repeat
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from checkpoint import BrokenWorkers, InvalidOption, Retry, StoreError, checkpointed
from checkpoint.execution import fork_server, worker_process
from checkpoint.execution import pipes as pipes_module
from checkpoint.execution import processes as processes_module
from checkpoint.execution.call import Call
from checkpoint.execution.cpus import cpu_count, thread_variables
from checkpoint.execution.interfaces import Died, Task, Unsent
from checkpoint.execution.processes import Processes
from checkpoint.execution.scheduler import Attempt
from checkpoint.execution.threads import Threads
from checkpoint.execution.transport import unpack
from checkpoint.outcomes import Unit

PROCESSES: dict[str, Any] = {"executor": "processes", "workers": 1, "progress": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory."""
    monkeypatch.chdir(tmp_path)


class Parent:
    """Its method is overridden, and called by `super`."""

    @checkpointed("parent", version=1)
    def score(self, n: int) -> str:
        return f"parent {n}"


class Child(Parent):
    """Overrides, replaces, mangles, and has methods of every kind."""

    @checkpointed("child", version=1)
    def score(self, n: int) -> str:
        return f"child {n}"

    def inherited(self, **options: Any) -> list[str]:
        return list(super().score.map([1], **options))

    first = score

    @checkpointed("replaced", version=1)  # type: ignore[no-redef]
    def score(self, n: int) -> str:
        return f"replaced {n}"

    @checkpointed("private", version=1)
    def __private(self, n: int) -> str:
        return f"private {n}"

    def mangled(self, **options: Any) -> list[str]:
        return list(self.__private.map([1], **options))

    @checkpointed("static")
    @staticmethod
    def static(n: int) -> str:
        return f"static {n}"

    @checkpointed("class", version=1)
    @classmethod
    def of_class(cls, n: int) -> str:
        return f"{cls.__name__} {n}"


class Grandchild(Child):
    """Inherits."""


METHODS = [
    (lambda **options: Child().inherited(**options), "parent 1", "super() calls the parent's"),
    (lambda **options: Child().first.map([1], **options), "child 1", "another name of what was replaced"),
    (lambda **options: Child().score.map([1], **options), "replaced 1", "what replaced it"),
    (lambda **options: Child().mangled(**options), "private 1", "a private name"),
    (lambda **options: Child.static.map([1], **options), "static 1", "a static method of the class"),
    (lambda **options: Child().static.map([1], **options), "static 1", "a static method of an instance"),
    (lambda **options: Grandchild.of_class.map([1], **options), "Grandchild 1", "a class method of a subclass"),
    (lambda **options: Child.of_class.options(name="x").map([1], **options), "Child 1", "a copy with another name"),
]


@pytest.mark.parametrize(("run", "want", "reason"), METHODS, ids=[reason for *_, reason in METHODS])
@pytest.mark.parametrize("options", [{"progress": False}, PROCESSES], ids=["here", "processes"])
def test_the_method_that_is_mapped_is_the_one_that_runs(run: Any, want: str, reason: str, options: Any) -> None:
    """Never one that only has its name."""
    assert list(run(**options)) == [want]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_hook_that_exits_ends_the_pass(workers: int) -> None:
    """Rather than leave it waiting for an answer that nobody gives."""

    def leaves(error: Exception) -> bool:
        sys.exit("enough")

    def fails(n: int) -> int:
        raise ValueError(n)

    async def afails(n: int) -> int:
        raise ValueError(n)

    with pytest.raises(SystemExit, match="enough"):
        checkpointed("s", retry=Retry(on=leaves))(fails).map(range(8), workers=workers, progress=False)
    with pytest.raises(SystemExit, match="enough"):
        asyncio.run(checkpointed("a", retry=Retry(on=leaves))(afails).map(range(8), workers=workers, progress=False))


class Unloadable:
    """An item that pickles, and does not unpickle."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> Any:
        return (Unloadable, ())


def number(item: Any) -> int:
    """What an item holds."""
    return item if isinstance(item, int) else item.n


@pytest.mark.slow
def test_an_item_that_a_worker_cannot_load_fails_by_itself_and_says_why() -> None:
    """The worker lives on; nobody is told of memory."""
    f = checkpointed("u", key=number)(number)
    results: Any = f.map([1, Unloadable(2), 3], return_exceptions=True, **PROCESSES)
    assert (results[0], results[2]) == (1, 3)
    assert "cannot load the item: TypeError" in results[1].message
    assert results[1].attempts == 1


@pytest.mark.slow
@pytest.mark.parametrize("timeout", [3e6, float("inf")])
def test_a_timeout_may_be_longer_than_the_system_can_wait(timeout: float) -> None:
    """Weeks, or for ever."""
    f = checkpointed("t", timeout=timeout)(number)
    assert f.map([1, 2], **PROCESSES) == [1, 2]


def test_equal_items_of_an_endless_input_are_not_drawn_without_end(tmp_path: Path) -> None:
    """While the first of them runs."""
    drawn = 0

    def items() -> Any:
        nonlocal drawn
        for item in repeat(1):
            drawn += 1
            yield item

    def waits(n: int) -> int:
        while drawn < 1000:
            pass
        return n

    stream = checkpointed("e")(waits).stream(items(), workers=2, progress=False)
    assert [outcome.value for outcome in islice(stream, 5)] == [1] * 5
    stream.close()  # type: ignore[attr-defined]
    assert drawn < 1100


def test_validate_must_be_a_plain_function() -> None:
    """What it returns is looked at, and an awaitable would always be true."""

    async def judge(value: int) -> bool:
        return False

    with pytest.raises(InvalidOption, match="plain function"):
        checkpointed("v", validate=judge)
    lazy = checkpointed("w", validate=lambda value: Later())(number)
    assert "plain function" in lazy.map([1], return_exceptions=True, progress=False)[0].message  # type: ignore[union-attr]


class Later:
    """Something to await."""

    def __await__(self) -> Any:
        yield


FULL = """
import resource, sys
from checkpoint import StoreError, checkpointed
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
computed = []
f = checkpointed("full")(lambda n: computed.append(n) or "x" * 1000)
def items():
    yield from range(12)
    raise LookupError("the items broke")
try:
    f.map(items(), workers=4, progress=False)
except StoreError as error:
    left = error.unsaved
assert sorted([*left, *f.results]) == sorted(computed), (sorted(left), sorted(f.results), computed)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="file-size limits are POSIX")
def test_values_that_the_store_refused_are_not_lost_when_the_items_fail_too() -> None:
    """The store's error holds them; what ended the pass is its cause."""
    ended = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert issubclass(StoreError, OSError)


# --- processes, and the thread that serves them ----------------------------------------------------------------------

DEADLINE = 60  # seconds that nothing takes
posix = pytest.mark.skipif(os.name == "nt", reason="signals and forks of POSIX")


def until(holds: Callable[[], object]) -> bool:
    """Poll, with a deadline."""
    end = time.monotonic() + DEADLINE
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)
    return True


class Hired:
    """Processes whose reports are kept: {item: its value, or what stands in place of answers}."""

    def __init__(self, function: Callable[[Any], Any], count: int, timeout: float | None = None) -> None:
        self.reports: list[list[Any]] = []
        self.told: dict[Any, Any] = {}
        self.before_report: Callable[[], object] = lambda: None
        self.processes = Processes(Call(function), count, self.report, timeout)

    def report(self, finished: list[tuple[Task, Any]]) -> None:
        self.before_report()
        self.reports.append([task[0].units[0].key for task, _ in finished])
        for task, answers in finished:
            told = answers
            if isinstance(answers, (bytes, list)):
                answer = unpack(answers)[0]
                told = answer[0] if type(answer) is tuple else answer
            self.told[task[0].units[0].key] = told

    def start(self, **items: Any) -> None:
        for key, item in items.items():
            self.processes.start([Attempt([Unit(item, key, 0)])])

    def until_told(self, *keys: str) -> list[Any]:
        """What is told of them, once it is."""
        until(lambda: self.told.keys() >= set(keys))
        return [self.told[key] for key in keys]


@contextmanager
def hired(function: Callable[[Any], Any], count: int, timeout: float | None = None) -> Iterator[Hired]:
    """They end with the block, whatever they are at."""
    them = Hired(function, count, timeout)
    try:
        yield them
    finally:
        them.processes.close()
        if (thread := them.processes._thread) is not None:
            thread.join(DEADLINE)
            assert not thread.is_alive()


def whole_messages(reader: Any, writer: Any, path: str | None) -> None:
    """What a worker does on Windows."""
    vars(worker_process)["make_pipe"] = pipes_module._WholePipe
    worker_process.serve(reader, writer, path)


@pytest.fixture(params=["in parts", "whole"])
def by_messages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that come in parts; and those of Windows, with what waits for them there."""
    if request.param == "whole":
        monkeypatch.setattr(fork_server, "make_pipe", pipes_module._WholePipe)
        monkeypatch.setattr(worker_process, "make_pipe", pipes_module._WholePipe)
        monkeypatch.setattr(processes_module, "make_selector", pipes_module._Waiter)
        monkeypatch.setattr(processes_module, "serve", whole_messages)


def act(item: Any) -> Any:
    """What a worker is told to do."""
    match item:
        case "pid":
            return os.getpid()
        case "wait", path:
            until(Path(path).exists)
            return path
        case "raise", text:
            raise ValueError(text)
        case "die", number:
            os.kill(os.getpid(), number)
        case "exit", code:
            os._exit(code)
        case "fork", value:
            os.fork()
            return value
        case "say more", path:
            (pipe,) = (one for one in gc.get_objects() if type(one) is pipes_module.make_pipe)
            threading.Thread(target=lambda: until(Path(path).exists) and pipe.send(b"more")).start()
            return path
        case "answer and die", path:
            until(Path(path).exists)
            write = os.write
            os.write = lambda number, data: (write(number, data), os._exit(7))[0]
            return path
        case "stop while it sends", size:
            write = os.write

            def writes_and_stops(number: int, data: bytes) -> int:
                os.write = write
                sent = write(number, data[: 1 << 20])
                os.kill(os.getpid(), signal.SIGSTOP)
                return sent

            def writes_size(number: int, data: bytes) -> int:
                os.write = writes_and_stops  # type: ignore[assignment]
                return write(number, data)

            os.write = writes_size  # type: ignore[assignment]
            return b"x" * size
    return len(item) if isinstance(item, bytes) else item


@pytest.mark.slow
@pytest.mark.usefixtures("by_messages")
def test_tasks_are_answered_whatever_becomes_of_others() -> None:
    """Values, failures, deaths and what cannot travel: each task is told of once, and by itself."""
    with hired(act, 2) as them:
        them.start(a=1, big=b"x" * 5_000_000, fails=("raise", "no"), lock=threading.Lock(), unloadable=Unloadable(3))
        them.start(exits=("exit", 3), b=2)
        fails, lock, unloadable, exits = them.until_told("fails", "lock", "unloadable", "exits")
        assert them.until_told("a", "big", "b") == [1, 5_000_000, 2]
        assert fails.failure.message == "no"
        assert isinstance(lock, Unsent)
        assert "cannot load the item: TypeError" in str(unloadable.error)
        assert exits == Died(3, at_work=0)
    assert sorted(chain(*them.reports)) == sorted(them.told)


@pytest.mark.slow
@posix
@pytest.mark.usefixtures("by_messages")
def test_a_task_that_takes_too_long_is_ended_and_no_other() -> None:
    """Another process takes its place."""
    with hired(act, 2, timeout=1.0) as them:
        them.start(late=("wait", "never"), a=1)
        assert "no result within 1 s" in them.until_told("late")[0].failure.message
        them.start(b=2, c=3)
        assert them.until_told("a", "b", "c") == [1, 2, 3]


@pytest.mark.slow
def test_one_thread_serves_all_processes_and_begins_each_when_it_is_needed() -> None:
    """No more of either than are needed."""
    with hired(act, 3) as them:
        assert them.processes._thread is None
        them.start(a="pid")
        them.until_told("a")
        them.start(b="pid")
        assert them.until_told("a") == them.until_told("b")
        them.start(**{str(n): ("wait", "go") for n in range(5)})
        until(lambda: len(them.processes._busy) == 3)
        Path("go").touch()
        them.until_told(*map(str, range(5)))
        assert len(them.processes._all) == 3
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("checkpoint-processes") == 1


@pytest.mark.slow
def test_what_finishes_meanwhile_is_reported_together() -> None:
    """So that it is settled under one write."""
    with hired(act, 3) as them:
        them.start(a=("wait", "first"), b=("wait", "rest"), c=("wait", "rest"))
        until(lambda: len(them.processes._busy) == 3)

        def while_it_is_reported() -> None:
            Path("rest").touch()
            pipes = [process.pipe.reader for process in them.processes._busy]
            until(lambda: len(wait(pipes, 0)) == len(pipes))

        them.before_report = while_it_is_reported
        Path("first").touch()
        them.until_told("a", "b", "c")
    assert [sorted(keys) for keys in them.reports] == [["a"], ["b", "c"]]


@pytest.mark.slow
@pytest.mark.promise("a worker process dies")
@posix
@pytest.mark.usefixtures("by_messages")
def test_the_death_of_an_idle_process_is_no_tasks_fault() -> None:
    """It is noticed before a task is given to it."""
    with hired(act, 1) as them:
        them.start(a="pid")
        (pid,) = them.until_told("a")
        os.kill(pid, signal.SIGKILL)
        until(lambda: not them.processes._all)
        them.start(b="pid")
        assert them.until_told("b") != [pid]


@pytest.mark.slow
@posix
def test_a_process_that_stops_while_it_sends_holds_nobody_up() -> None:
    """And what it sends is all there once it goes on."""
    with hired(act, 2) as them:
        them.start(a=("wait", "go"), b=("wait", "go"))
        until(lambda: len(them.processes._busy) == 2)
        Path("go").touch()
        them.until_told("a", "b")
        them.start(stopped=("stop while it sends", 50_000_000))
        until(lambda: them.processes._busy)
        (process,) = them.processes._busy
        until(lambda: process.pipe._has_size and process.pipe._missing < 50_000_000)
        them.start(**{str(n): n for n in range(20)})
        assert them.until_told(*map(str, range(20))) == [*range(20)]
        assert "stopped" not in them.told

        def is_told() -> bool:
            os.kill(process.process.pid, signal.SIGCONT)  # it may be only about to stop
            return "stopped" in them.told

        until(is_told)
        assert them.until_told("stopped") == [b"x" * 50_000_000]


@pytest.mark.slow
@posix
def test_a_process_that_stops_before_it_has_been_given_all_holds_nobody_up() -> None:
    """And it is given the rest once it goes on."""
    with hired(act, 2) as them:
        them.start(a=("wait", "go"), b=("wait", "go"))
        until(lambda: len(them.processes._busy) == 2)
        Path("go").touch()
        them.until_told("a", "b")
        stopped = next(iter(them.processes._all))
        os.kill(stopped.process.pid, signal.SIGSTOP)
        them.start(big=b"x" * 5_000_000, huge=b"x" * 6_000_000)
        until(lambda: them.told and len(them.processes._busy) == 1)
        them.start(**{str(n): n for n in range(20)})
        assert them.until_told(*map(str, range(20))) == [*range(20)]
        assert len(them.told.keys() & {"big", "huge"}) == 1
        os.kill(stopped.process.pid, signal.SIGCONT)
        assert them.until_told("big", "huge") == [5_000_000, 6_000_000]


@pytest.mark.slow
@posix
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_what_is_not_all_there_in_time_is_no_answer(number: int) -> None:
    """Whether its process stands still or is dead, others go on."""
    with hired(act, 1, timeout=None if number == signal.SIGKILL else 1.0) as them:
        them.start(stopped=("stop while it sends", 50_000_000), a=1)
        until(lambda: them.processes._busy)
        (process,) = them.processes._all
        until(lambda: process.pipe._has_size and process.pipe._missing < 50_000_000)
        os.kill(process.process.pid, number)
        (told,) = them.until_told("stopped")
        if number == signal.SIGKILL:
            assert told == Died(-signal.SIGKILL, at_work=0)
        else:
            assert "no result within 1 s" in told.failure.message
        assert them.until_told("a") == [1]


@pytest.mark.slow
@posix
def test_what_a_process_says_before_it_ends_counts() -> None:
    """Even where its end is noticed first."""
    with hired(act, 2) as them:
        them.start(a=("wait", "go"), dies=("answer and die", "die"))
        until(lambda: len(them.processes._busy) == 2)

        def its_end_first() -> None:
            them.before_report = lambda: None
            Path("die").touch()
            (dies,) = them.processes._busy
            until(lambda: wait([dies.process.sentinel], 0))
            dies.on_exit(pipes_module.READ)

        them.before_report = its_end_first
        Path("go").touch()
        assert them.until_told("a", "dies") == ["go", "die"]


@pytest.mark.slow
@posix
def test_a_process_that_says_what_nobody_asked_is_not_listened_to() -> None:
    """It would be taken for the answer to another task."""
    with hired(act, 1) as them:
        them.start(a=("say more", "say"))
        them.until_told("a")
        Path("say").touch()
        until(lambda: not them.processes._all)
        them.start(b=2)
        assert them.until_told("b") == [2]
    assert sorted(them.told) == ["a", "b"]


@pytest.mark.slow
@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_an_idle_process_ends_though_a_forked_child_holds_our_end_of_its_pipe() -> None:
    """It is told to."""
    child = 0
    try:
        with hired(act, 1) as them:
            them.start(a="pid")
            (pid,) = them.until_told("a")
            child = os.fork()
            if not child:
                with suppress(BaseException):
                    time.sleep(DEADLINE)
                os._exit(0)
        until(lambda: is_gone(pid))
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


@pytest.mark.slow
@posix
def test_workers_are_spawned_where_nothing_can_be_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows: they answer, are killed when they are late, and leave nothing behind."""
    monkeypatch.setattr(processes_module, "_FORKS", False)
    with hired(act, 2, timeout=1.0) as them:
        them.start(late=("wait", "never"), a="pid", dies=("die", signal.SIGKILL))
        pid, late, dies = them.until_told("a", "late", "dies")
        assert "no result within 1 s" in late.failure.message
        assert dies == Died(-signal.SIGKILL, at_work=0)
    until(lambda: is_gone(pid))


@pytest.mark.slow
@posix
def test_the_death_of_what_workers_are_forked_from_ends_them_too() -> None:
    """Nobody tells of theirs any more: what they were at is told to have died, and no other can begin."""
    with hired(act, 2) as them:
        them.start(a="pid")
        (pid,) = them.until_told("a")
        them.start(b=("wait", "never"))
        until(lambda: them.processes._busy)
        assert them.processes._server is not None
        os.kill(them.processes._server._pid, signal.SIGKILL)
        (told,) = them.until_told("b")
        assert isinstance(told, Died)
        assert told.exitcode is None
        until(lambda: is_gone(pid))
        them.start(c=1)
        (told,) = them.until_told("c")
        assert "could not be started" in str(told.error)


@pytest.mark.slow
@pytest.mark.promise("fork")
@posix
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_leaves_its_parents_workers_alone() -> None:
    """Whatever it closes on its way out."""
    with hired(act, 1) as them:
        them.start(a=("wait", "go"))
        until(lambda: them.processes._busy)
        child = os.fork()
        if not child:
            with suppress(BaseException):
                processes_module._close_open()
                them.processes.close()
            os._exit(0)
        assert os.waitpid(child, 0) == (child, 0)
        Path("go").touch()
        assert them.until_told("a") == ["go"]


@pytest.mark.slow
@posix
def test_a_child_that_comes_back_from_the_function_too_answers_nobody() -> None:
    """Its answer would be taken for that to the next task."""
    f = checkpointed("forks", key=str)(act)
    items = [("fork", n) for n in range(20)]
    assert f.map(items, **PROCESSES) == [*range(20)]


def is_on(error: Exception) -> bool:
    """A hook that exits."""
    sys.exit("enough")


@pytest.mark.slow
def test_a_hook_that_exits_when_a_call_took_too_long_ends_the_pass() -> None:
    """It is asked in the thread that all processes wait for."""
    f = checkpointed("late", key=str, timeout=0.5, retry=Retry(on=is_on))(act)
    with pytest.raises(SystemExit, match="enough"):
        f.map([("wait", "never"), ("wait", "never again")], executor="processes", workers=2, progress=False)


class Leaves:
    """An item that exits when it is pickled."""

    def __getstate__(self) -> Any:
        sys.exit("enough")


@pytest.mark.slow
def test_an_item_that_exits_when_it_is_pickled_ends_the_pass() -> None:
    """As it would if it did so where it is called."""
    with pytest.raises(SystemExit, match="enough"):
        checkpointed("leaves", key=id)(act).map([Leaves(), Leaves()], **PROCESSES)


@pytest.mark.slow
def test_processes_that_are_closed_twice_or_never_asked_are_closed() -> None:
    """Nothing is begun for nothing."""
    with hired(act, 2) as never_asked:
        never_asked.processes.close()
    with hired(act, 2) as them:
        them.start(a=1)
        them.until_told("a")
        them.processes.close()
        them.processes.close()


@pytest.mark.slow
@posix
def test_no_process_and_no_descriptor_is_left_open() -> None:
    """Whether they were idle, at work, or killed for being late."""
    with hired(act, 2) as warm:  # the resource tracker of multiprocessing stays
        warm.start(a=1)
        warm.until_told("a")
    del warm
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for timeout in (None, 0.5):
        with hired(act, 2, timeout) as them:
            them.start(a="pid", late=("wait", "never"))
            (pid,) = them.until_told("a")
            if timeout is not None:
                them.until_told("late")
        until(lambda: is_gone(pid))  # noqa: B023
        del them
    if before:
        until(lambda: len(os.listdir("/proc/self/fd")) <= before)


def is_gone(pid: int) -> bool:
    """Whether there is no such process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# --- messages --------------------------------------------------------------------------------------------------------

SIZES = [
    (0, "nothing but its size"),
    (1, "hardly more"),
    (pipes_module._PIECE - 9, "just read at once"),
    (pipes_module._PIECE - 8, "read at once, to the byte"),
    (pipes_module._PIECE, "one byte too many to be sent with its size"),
    (3 * pipes_module._PIECE + 1, "several parts"),
]


@posix
@pytest.mark.parametrize("part", [1, 7, 8, 9, pipes_module._PIECE])
@pytest.mark.parametrize(("size", "reason"), SIZES, ids=[reason for _, reason in SIZES])
def test_a_message_is_whole_whatever_parts_it_comes_in(size: int, reason: str, part: int) -> None:
    """Nothing is given before all of it is there, and nothing of the next one is lost."""
    (ours, theirs), (_, unused) = Pipe(duplex=False), Pipe(duplex=False)
    with ours, theirs:
        pipe = pipes_module._Pipe(ours, unused, waits=False)
        message = bytes(n % 251 for n in range(size))
        if part < 7:
            message = message[:300]
        sent = pipes_module._SIZE.pack(len(message)) + message
        for again in range(2):
            for begin in range(0, len(sent), part):
                assert pipe.receive() is None, again
                os.write(theirs.fileno(), sent[begin : begin + part])
            assert pipe.receive() == message
        theirs.close()
        with pytest.raises(EOFError):
            pipe.receive()


@posix
def test_what_a_pipe_does_not_take_at_once_goes_when_it_does() -> None:
    """In its order, and without waiting."""
    (ours, back), (theirs, there) = Pipe(duplex=False), Pipe(duplex=False)
    with ours, theirs, back, there:
        pipe, other = pipes_module._Pipe(ours, there, waits=False), pipes_module._Pipe(theirs, back, waits=True)
        for size in (5_000_000, 3):
            message = os.urandom(size)
            got: list[bytes | None] = []
            assert pipe.send(message) is (size == 3)
            assert pipe.flush() is (size == 3)
            reader = threading.Thread(target=lambda: got.append(other.receive()))  # noqa: B023
            reader.start()
            until(pipe.flush)
            reader.join(DEADLINE)
            assert got == [message]


# --- threads ---------------------------------------------------------------------------------------------------------


class Crew:
    """Threads whose calls last until they are told to end, and say which of them makes each."""

    def __init__(self, count: int) -> None:
        self.begun: SimpleQueue[str] = SimpleQueue()
        self.may_end: SimpleQueue[None] = SimpleQueue()
        self.on_report: Callable[[], object] = lambda: None
        self.threads = Threads(Call(self.work), count, self.report)

    def work(self, _: Any) -> None:
        self.begun.put(threading.current_thread().name)
        self.may_end.get(timeout=60)

    def report(self, _: Any) -> None:
        self.on_report()

    def start(self) -> None:
        self.threads.start([Attempt([Unit(1, 1, 0)])])

    def begin(self) -> str:
        """Which thread begins the next call."""
        self.start()
        return self.begun.get(timeout=60)


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Three threads, which end with the test."""
    made = Crew(3)
    yield made
    made.on_report = lambda: None
    for _ in range(9):
        made.may_end.put(None)
    made.threads.close()


def test_a_thread_that_starts_what_follows_makes_that_call_itself(crew: Crew) -> None:
    """To begin 64 threads takes longer than many a call."""
    crew.on_report = crew.start
    assert crew.begin() == "checkpoint-worker-0"
    for _ in range(5):
        crew.may_end.put(None)
        assert crew.begun.get(timeout=60) == "checkpoint-worker-0"


def test_a_thread_is_begun_when_all_others_are_at_work(crew: Crew) -> None:
    """A call never waits for another while there may be one more thread."""
    assert [crew.begin() for _ in range(3)] == [f"checkpoint-worker-{n}" for n in range(3)]


def test_no_call_waits_for_a_thread_that_still_reports(crew: Crew) -> None:
    """It may settle what it reports, and the disk may be slow."""
    reporting, may_return = threading.Event(), threading.Event()

    def on_report() -> None:
        reporting.set()
        may_return.wait(60)

    crew.on_report = on_report
    try:
        assert crew.begin() == "checkpoint-worker-0"
        crew.may_end.put(None)
        assert reporting.wait(60)
        assert crew.begin() == "checkpoint-worker-1"
    finally:
        may_return.set()


def test_what_more_than_all_threads_are_given_waits(crew: Crew) -> None:
    """And is begun as soon as one of them is free."""
    begun = [crew.begin() for _ in range(3)]
    crew.start()
    assert crew.begun.empty()
    crew.may_end.put(None)
    assert crew.begun.get(timeout=60) in begun


# --- what the system does not give -----------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [0, 1])
@pytest.mark.parametrize("options", [{"workers": 8}, PROCESSES], ids=["threads", "processes"])
def test_a_thread_that_cannot_be_had_is_told_as_that(
    options: dict[str, Any], allowed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not as what comes of it; whichever thread it is, the next map runs."""
    f = checkpointed("threads")(number)
    f.map([100], progress=False)  # the store has its own
    start, left = threading.Thread.start, [allowed]

    def starts(thread: threading.Thread) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starts)
    with pytest.raises(BrokenWorkers, match=r"no thread more.*ulimit -u"):
        f.map(range(9), **{**options, "progress": False})
    monkeypatch.undo()
    assert dict(f.errors) == {}
    assert f.map(range(9), progress=False) == list(range(9))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="its pipes have no paths")
def test_a_directory_for_temporary_files_may_have_a_long_path(tmp_path: Path) -> None:
    """A scheduler makes some that are too long for sockets."""
    long = tmp_path / ("t" * 120)
    long.mkdir()
    (tmp_path / "job.py").write_text(
        "from checkpoint import checkpointed\n@checkpointed('p')\ndef f(n): return n\n"
        "if __name__ == '__main__': print(f.map(range(4), executor='processes', workers=2, progress=False)[:])\n"
    )
    ran = subprocess.run(
        [sys.executable, "job.py"],
        cwd=tmp_path, env={**os.environ, "TMPDIR": str(long)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ran.stdout == "[0, 1, 2, 3]\n", ran.stderr


# --- CPUs, and threads of arithmetic ---------------------------------------------------------------------------------

GROUPS: list[tuple[dict[str, str], int, str]] = [
    ({}, 64, "another system"),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2, "a container, rounded up"),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64, "no quota"),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1, "less than one"),
    ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000",
      "sys/fs/cgroup/a/b/cpu.max": "max 100000"}, 3, "a group around it"),
    ({"proc/self/cgroup": "0::/../..\n", "sys/fs/cgroup/cpu.max": "200000 100000"}, 2, "a group that is not seen"),
    ({"proc/self/cgroup": "4:memory:/m\n3:cpu,cpuacct:/j\n", "sys/fs/cgroup/cpu/j/cpu.cfs_quota_us": "400000\n",
      "sys/fs/cgroup/cpu/j/cpu.cfs_period_us": "100000\n", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
      "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}, 4, "version 1"),
    ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, 64, "what cannot be read"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "count", "reason"), GROUPS, ids=[reason for *_, reason in GROUPS])
def test_the_number_of_cpus_heeds_quotas_of_control_groups(
    files: dict[str, str], count: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this process's group and those around it; a scheduler or a container sets them, and affinity shows none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_count(tmp_path) == count


def threads_there(n: int) -> str | None:
    """What a library would read."""
    return os.environ.get("OPENBLAS_NUM_THREADS")


@pytest.mark.slow
def test_workers_bound_the_threads_of_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where together they would begin more than two a CPU; what the environment says is left, and so is ours."""
    for name in [name for name in os.environ if name.endswith("_NUM_THREADS")]:
        monkeypatch.delenv(name)
    f = checkpointed("threads_there", key=repr)(threads_there)
    many: Any = {**PROCESSES, "workers": 5}
    before = dict(os.environ)
    assert f.map([1], **many) == [thread_variables(5, {}, cpu_count())["OPENBLAS_NUM_THREADS"]]
    assert f.map([2], **PROCESSES) == [None]
    assert dict(os.environ) == before
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert f.map([3], **many) == [None]


@pytest.mark.slow
def test_libraries_that_were_loaded_earlier_are_bound_too() -> None:
    """As in a worker that imports the main module before it is told its environment."""
    pytest.importorskip("threadpoolctl")
    program = (
        "import os, numpy, threadpoolctl\n"
        "from checkpoint.execution.cpus import bound_loaded, thread_variables\n"
        "os.environ.update(thread_variables(99, {}, 2))\n"
        "bound_loaded()\n"
        "print({library['num_threads'] for library in threadpoolctl.threadpool_info()} <= {1})\n"
        "os.environ['MKL_NUM_THREADS'] = '7'\n"
        "threadpoolctl.threadpool_limits(2)\n"
        "bound_loaded()\n"
        "print(1 in {library['num_threads'] for library in threadpoolctl.threadpool_info()})\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "True\nFalse\n", ran.stderr
