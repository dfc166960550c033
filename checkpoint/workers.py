"""Where calls are made: threads of ours, processes of ours, or somebody's executor.

Each is given tasks (lists of attempts), never more at once than it has workers, and reports each with its answers, from
whichever thread. Nothing here decides what becomes of an answer. A worker process that dies, whatever of, takes nothing
with it but its own task: each has a pipe of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import selectors
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import cache
from importlib.util import find_spec
from math import inf
from queue import SimpleQueue
from types import coroutine
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from checkpoint import clock
from checkpoint.calls import Answer, Arrived, Call, Fatal, Shipped, arrived, failed, out_of_time
from checkpoint.errors import BrokenWorkers, FunctionChanged, UnguardedMain, WorkerDied, quote, quote_error
from checkpoint.schedule import Attempt

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import BaseContext

__all__ = [
    "Broken",
    "Died",
    "Given",
    "Processes",
    "Report",
    "Task",
    "Tasks",
    "Threads",
    "Unsent",
    "exit_in_words",
    "inputs_of",
    "refuse_while_importing_main",
]

log = logging.getLogger("checkpoint")

_TOGETHER = 4  # reports that a busy event loop deals with at a time: more would keep calls waiting that could start
_BUSY = 0.0001  # seconds from report to report, of which dealing with one takes a third

Task = list[Attempt]
Report = Callable[[list[tuple[Task, Any]]], None]


class Died(NamedTuple):
    """In place of answers: the worker process died of the task; `why` is what is known where that is no exit code."""

    exitcode: int | None
    why: str = ""


class Unsent(NamedTuple):
    """In place of answers: an item of the task could not travel, or an answer not come back."""

    error: Exception


class Broken(NamedTuple):
    """In place of answers: there are no workers any more; what they were at did not fail by itself."""

    error: Exception


def inputs_of(task: Task, *, batch: bool) -> list[Any]:
    """What the task's calls are given."""
    if batch:
        return [[unit.item for unit in attempt.units] for attempt in task]
    return [attempt.units[0].item for attempt in task]


class Grouping:
    """How many reports are dealt with at a time.

    Several are less work each; but the calls that follow start later, all at once, and so end all at once. Where time
    is left each is dealt with when it comes. Whether it is is seen once every worker may have reported. Threads share
    one without a lock: what they miscount does not matter.

    Attributes:
        size: so many; 1 where time is left.
    """

    def __init__(self, workers: int) -> None:
        self.size = 1
        self._workers = workers
        self._count = 0
        self._since = clock.monotonic()

    def dealt(self, count: int) -> None:
        """So many reports more."""
        self._count += count
        if self._count >= self._workers:
            now = clock.monotonic()
            self.size = min(_TOGETHER, self._workers) if now - self._since < self._count * _BUSY else 1
            self._count, self._since = 0, now


# --- threads ---------------------------------------------------------------------------------------------------------


class Threads:
    """So many threads, each begun when all others are at work. They never keep the process alive.

    Args:
        call: what they make.
        count: how many at most.
        report: is told tasks with their answers.
    """

    shares_blame = False

    def __init__(self, call: Call, count: int, report: Report) -> None:
        self._call = call
        self._count = count
        self._grouping = Grouping(count)
        self._report = report
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0  # threads that are at a task, or have one coming
        self._ended: list[None] = []  # one for each task that no thread is at any more, and `_busy` still counts
        self._reporting: set[int] = set()  # threads that come back for another task when it has been dealt with

    def start(self, task: Task) -> None:
        """Have a worker make the task's calls; from any thread, one at a time."""
        while self._ended:
            self._ended.pop()
            self._busy -= 1
        me = threading.get_ident()
        if me in self._reporting:  # it deals itself; no other may count on it, since that may take a while
            self._reporting.discard(me)
            self._busy -= 1
        if self._busy == len(self._threads) < self._count:
            thread = threading.Thread(target=self._work, name=f"checkpoint-worker-{len(self._threads)}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system has no more threads; those that there are do the work
                if not self._threads:
                    raise
                log.warning("no more than %d of %d threads: %s", len(self._threads), self._count, error)
                self._count = len(self._threads)
            else:
                self._threads.append(thread)
        self._busy += 1
        self._tasks.put(task)

    @property
    def settles(self) -> bool:
        """Whether a thread that reports has the time; where calls end fast, the coordinator takes many together."""
        return self._grouping.size == 1

    def _work(self) -> None:
        many, report, get, batch = self._call.many, self._report, self._tasks.get, self._call.batch
        me, reporting = threading.get_ident(), self._reporting
        while (task := get()) is not None:
            answers = many(inputs_of(task, batch=batch))
            reporting.add(me)
            self._grouping.dealt(1)
            report([(task, answers)])
            if me in reporting:
                reporting.discard(me)
                self._ended.append(None)
            task = answers = None  # type: ignore[assignment]  # what is settled is let go of

    def close(self) -> None:
        """Let the threads end once they are done; nobody waits for them."""
        for _ in self._threads:
            self._tasks.put(None)


# --- tasks of an event loop ------------------------------------------------------------------------------------------


class Tasks:
    """Tasks of the event loop that runs, each begun when it is needed, each making one call after the other.

    Args:
        call: what they make; its function gives awaitables.

    Attributes:
        report: is told a task with its answers.
    """

    report: Callable[[Task, Any], None]
    settles = True
    shares_blame = False

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: deque[Task] = deque()
        self._coming = 0  # loop tasks that have reported, and look for more by themselves
        self._idle: list[Any] = []  # a future for each that has nothing to do
        self._tasks: list[Any] = []
        self._kind = _task_kind()
        self._context = copy_context()  # the loop may look on behalf of another thread; each call has a copy of its own

    def start(self, task: Task) -> None:
        """To be started when the loop looks; from any thread."""
        self._waiting.append(task)

    def look(self) -> None:
        """Start what waits, and nobody comes for; in the loop."""
        if len(self._waiting) <= self._coming:
            return
        import asyncio  # only here: who has no coroutines need not wait for it

        for _ in range(len(self._waiting) - self._coming):
            if self._idle:
                future = self._idle.pop()
                if not future.done():  # else it was cancelled
                    future.set_result(self._waiting.popleft())
            else:
                work = self._work(self._waiting.popleft())
                task = self._kind(work, loop=asyncio.get_running_loop(), context=self._context.copy())
                self._tasks.append(task)

    async def _work(self, task: Task) -> None:
        import asyncio

        loop, batch, awaited = asyncio.get_running_loop(), self._call.batch, self._call.awaited
        waiting = self._waiting
        while True:
            units = task[0].units
            try:
                answer = await awaited([unit.item for unit in units] if batch else units[0].item)
            except asyncio.CancelledError as error:
                if not self._is_own(asyncio.current_task()):
                    self.report(task, [Fatal(error)])
                    raise
                answer = failed(error)
            except BaseException as error:  # of a hook of the user's, while a failure was described
                answer = Fatal(error)
            self._coming += 1
            self.report(task, [answer])
            task = answer = None  # type: ignore[assignment]  # what is settled is let go of
            try:
                if not waiting:
                    await _a_turn()  # until then others have finished, and are dealt with together
            finally:
                self._coming -= 1
            if waiting:
                task = waiting.popleft()
                continue
            idle = loop.create_future()
            self._idle.append(idle)
            task = await idle

    def close(self) -> None:
        """Cancel all; in the loop, or when it is closed."""
        for task in self._tasks:
            with suppress(RuntimeError):
                task.cancel()

    def _is_own(self, task: Any) -> bool:
        """Whether the function cancelled the task that it runs in, and nobody else did."""
        own: bool = task.own > 0 and task.cancelling() == task.own
        while own and task.uncancel():
            pass
        task.own = 0
        return own

    async def closed(self) -> None:
        """Wait for what they do when they are cancelled."""
        import asyncio

        await asyncio.gather(*self._tasks, return_exceptions=True)


@coroutine
def _a_turn() -> Generator[None, None, None]:
    """Let the event loop go round once."""
    yield


@cache
def _task_kind() -> Any:
    """A kind of task that knows how often it cancelled itself."""
    import asyncio

    class Worker(asyncio.Task[None]):
        own = 0

        def cancel(self, msg: Any = None) -> bool:
            self.own += asyncio.current_task(self.get_loop()) is self
            return super().cancel(msg)

    return Worker


# --- processes -------------------------------------------------------------------------------------------------------


class Processes:
    """So many processes, each begun when it is needed, and one thread that serves them all.

    It waits for none of them, but while one starts: what goes and comes in parts does so while others are served.

    Args:
        call, count: as for threads.
        report: is told, in that thread, all that finished meanwhile.
        timeout: seconds that a task of one call may take before its process is killed.
    """

    settles = True
    shares_blame = False

    def __init__(self, call: Call, count: int, report: Report, timeout: float | None = None) -> None:
        call.shipped(sets=True)  # what cannot travel is told before anything is started
        self._call, self._count, self._report = call, count, report
        self._timeout = inf if timeout is None else timeout
        self._tasks: deque[Task] = deque()  # that no process has
        self._finished: list[tuple[Task, Any]] = []  # and not reported yet
        self._all: set[_Process] = set()
        self._idle: set[_Process] = set()
        self._busy: dict[_Process, float] = {}  # and when each is killed, the first one first
        self._thread: threading.Thread | None = None
        self._is_rung = False
        self._over = threading.Event()
        self._owner = os.getpid()
        self._environment = dict(os.environ)
        _open.add(self)

    def start(self, task: Task) -> None:
        """Have a process make the task's calls; from any thread, one at a time."""
        self._tasks.append(task)
        if self._thread is None:
            self._bell, self._rope = _context().Pipe(duplex=False)
            self._selector = _selector()
            self._selector.register(self._bell, _READ, (self._hear_bell, None))
            thread = threading.Thread(target=self._serve, name="checkpoint-processes", daemon=True)
            thread.start()
            self._thread = thread
        elif threading.get_ident() != self._thread.ident:
            self._ring()

    def close(self) -> None:
        """End the processes; those that are still at work are killed."""
        if os.getpid() != self._owner:  # they are those of who forked this process
            return
        self._over.set()
        for process in self._all.difference(self._idle):
            process.kill()
        if self._thread is not None:
            self._ring()
        _open.discard(self)

    def _ring(self) -> None:
        """Have the thread look. Its end does not close the bell: somebody may be about to ring."""
        if not self._is_rung:
            self._is_rung = True
            self._rope.send_bytes(b"")

    def _hear_bell(self, _: None, events: int) -> None:
        self._bell.recv_bytes()
        self._is_rung = False  # before anything is looked at: who comes later rings again

    # in the thread

    def _serve(self) -> None:
        try:
            while not self._over.is_set():
                self._turn()
        except BaseException as error:  # SystemExit of an item's, or of a hook of the user's: nobody waits for ever
            at_work = [*self._tasks, *(process.task for process in self._all if process.task)]
            self._report([*self._finished, *((task, [Fatal(error, is_of_call=False)]) for task in at_work)])
        finally:
            for process in self._all:
                if process not in self._idle:
                    process.kill()
                process.close()
            self._selector.close()
            del self._report  # it knows who knows us

    def _turn(self) -> None:
        """Hand out, wait until something comes, take all that is there, and report it together."""
        self._hand_out()
        for key, events in self._selector.select(self._patience()):
            if self._over.is_set():  # who was killed for it did not die of its task
                return
            hear, process = key.data
            hear(process, events)
        self._kill_late()
        if self._finished:
            finished, self._finished = self._finished, []
            self._report(finished)

    def _hand_out(self) -> None:
        """Give out tasks; where some are left begin a process: one, and others are served before the next."""
        while self._tasks and self._idle:
            self._go_on(self._idle.pop(), self._tasks.popleft())
        if self._lacks_one:
            try:
                process = _Process(self._environment)
                self._selector.register(process.pipe.reader, _READ, (self._hear, process))
                self._selector.register(process.sentinel, _READ, (self._hear_end, process))
            except Exception as error:
                self._break(_no_start(error))
            else:
                self._all.add(process)
                process.talk = self._talk(process)
                self._go_on(process, None)

    @property
    def _lacks_one(self) -> bool:
        """Whether more tasks wait than processes make ready, and there may be another."""
        if not self._tasks or len(self._all) == self._count:
            return False
        return len(self._tasks) > len(self._all) - len(self._idle) - len(self._busy)

    def _patience(self) -> float | None:
        """Seconds for which nothing is to be done unless something comes."""
        if self._finished or self._lacks_one:
            return 0.0
        if self._timeout == inf or not self._busy:
            return None
        return min(max(0.0, next(iter(self._busy.values())) - clock.monotonic()), _LONGEST)

    def _talk(self, process: _Process) -> Generator[bytes | None, Any, None]:
        """What it is told, and sent in what it answers; or nothing, and sent in its next task.

        Raises:
            BrokenWorkers: it cannot load the call.
            FunctionChanged: the function is another one there.
        """
        refusal = _agreed((yield self._call.shipped(sets=True)))
        is_whole = bool(refusal)  # whether all travels by cloudpickle: a worker has not got the classes
        if refusal:
            why = f"worker processes cannot load {self._call.name}: "
            try:
                whole = self._call.shipped_whole(sets=True)
            except Exception as error:
                raise BrokenWorkers(f"{why}{_told(refusal)}; {quote_error(error)}") from error
            if refusal := _agreed((yield whole)):
                raise BrokenWorkers(why + _told(refusal))
        while True:
            answers = task = process.task = None  # what is settled is let go of
            self._busy.pop(process, None)
            self._idle.add(process)
            task = process.task = yield None
            while answers is None:
                try:
                    answers = yield _pickled(inputs_of(task, batch=self._call.batch), whole=is_whole)
                except Exception as error:  # pickling runs the items' own code
                    answers = Unsent(error)
                else:
                    if answers[:1] == _REFUSED and (is_whole or find_spec("cloudpickle") is None):
                        told = f"a worker process cannot load the item: {_told(answers)}"
                        answers = Unsent(pickle.UnpicklingError(told))
                    elif answers[:1] == _REFUSED:
                        is_whole, answers = True, None
            self._finished.append((task, answers))

    def _go_on(self, process: _Process, given: Any) -> None:
        """Tell it what comes after what it has answered, or is given."""
        try:
            message = process.talk.send(given)
            if message is not None:
                self._grant_time(process)
                if not process.pipe.send(message):
                    self._selector.register(process.pipe.writer, _WRITE, (self._hear, process))
        except (BrokenWorkers, FunctionChanged) as error:
            self._lose(process, None)
            self._break(error)
        except OSError:
            self._cut_off(process)

    def _grant_time(self, process: _Process) -> None:
        """The call may take so long, not what it is given or gives: its time begins with each part of these."""
        if process.task is not None:
            self._busy.pop(process, None)
            self._busy[process] = clock.monotonic() + self._timeout

    def _hear(self, process: _Process, events: int) -> None:
        """Its pipe has something, or takes more."""
        if process in self._idle:  # it has ended, or says what nobody asked
            self._lose(process, None)
        if process not in self._all:
            return
        message = None
        try:
            if events & _WRITE and process.pipe.flush():
                self._selector.unregister(process.pipe.writer)
            if events & _READ:
                message = process.pipe.receive()
        except (EOFError, OSError):
            self._cut_off(process)
        except Exception as error:  # its answer may still come, and must not be taken for another's
            self._lose(process, Unsent(error))
        else:
            if message is None:
                self._grant_time(process)
            else:
                self._go_on(process, message)

    def _hear_end(self, process: _Process, events: int) -> None:
        """It is no more. The pipe does not always tell, since a child of its own may hold it; what it has, counts."""
        if process not in self._all:
            return
        if process not in self._idle:
            with suppress(Exception):
                if (message := process.pipe.receive()) is not None:
                    self._go_on(process, message)
        was_ready = process in self._idle or process.task is not None
        exitcode = process.exitcode()
        self._lose(process, Died(exitcode))
        if not was_ready:
            self._break(_no_start(f"it ended with {exit_in_words(exitcode)} before it was ready"))

    def _kill_late(self) -> None:
        while self._timeout < inf and self._busy:
            process, due = next(iter(self._busy.items()))
            if clock.monotonic() < due:
                return
            self._lose(process, [self._call.failed(out_of_time(self._timeout), self._timeout)])

    def _cut_off(self, process: _Process) -> None:
        """Its pipe is gone, and it may not be; what becomes of its task is known when it has ended."""
        for end in (process.pipe.reader, process.pipe.writer):
            with suppress(KeyError):
                self._selector.unregister(end)
        process.kill()

    def _lose(self, process: _Process, answers: Any) -> None:
        """It has ended, or is not waited for; this becomes of its task."""
        self._cut_off(process)
        self._selector.unregister(process.sentinel)
        self._all.discard(process)
        self._idle.discard(process)
        self._busy.pop(process, None)
        if process.task is not None:
            self._finished.append((process.task, answers))
        process.close()

    def _break(self, error: BrokenWorkers | FunctionChanged) -> None:
        """A process could not be had; who waited for one is told, unless another has taken the task meanwhile."""
        if self._tasks:
            self._finished.append((self._tasks.popleft(), Broken(error)))


_open: set[Processes] = set()  # those that a process's end must not wait for
_births = threading.RLock()  # starting a process reaps others, and who reaps takes the exit status away
_LONGEST = 3600.0  # seconds: the system's calls refuse much longer ones


def _close_open() -> None:
    for processes in list(_open):
        processes.close()


class _Process:
    """One worker process, and our ends of its pipes.

    Args:
        environment: the variables of its environment, before any module of the program is imported there.

    Attributes:
        talk: what it is told.
        task: what it is at.

    Raises:
        Exception: it does not start.
    """

    talk: Generator[bytes | None, Any, None]
    task: Task | None = None

    def __init__(self, environment: dict[str, str]) -> None:
        context = _context()
        # Not a pipe for both ways: that is a socket, and reading from it wakes who waits for something else there.
        reader, theirs = context.Pipe(duplex=False)
        given, writer = context.Pipe(duplex=False)
        try:
            with _births, _signals_held_back(), _importable_main():
                self._process = context.Process(  # type: ignore[attr-defined]
                    target=serve, args=(given, theirs), name=_Named("checkpoint-worker", environment)
                )
                self._process.start()
        finally:
            given.close()
            theirs.close()
        self.pipe = _pipe(reader, writer, waits=False)
        self.sentinel: int = self._process.sentinel

    def exitcode(self) -> int | None:
        """How it ended."""
        with _births:
            self._process.join(5.0)
            return self._process.exitcode  # type: ignore[no-any-return]

    def kill(self) -> None:
        """At once."""
        with _births:
            if self._process.exitcode is None:
                self._process.kill()

    def close(self) -> None:
        """Let go of it; if it is idle it ends, and is told to: what was forked here may hold our end of the pipe."""
        with suppress(OSError):
            self.pipe.send(_END)
        self.pipe.close()
        self.talk.close()


class _Named(str):
    """A process's name that brings an environment along: the fork server keeps the one in which it was started.

    The name is the only thing of ours that multiprocessing unpickles before it imports the main module, which may read
    variables, as may whatever is imported with it. Nothing but builtins is asked for, since the path for imports is not
    set yet either.
    """

    environment: dict[str, str] | None

    def __new__(cls, name: str, environment: dict[str, str]) -> Self:
        self = super().__new__(cls, name)
        self.environment = environment
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        environment, self.environment = self.environment, None  # the name is sent once more, after that import
        if environment is None:
            return (str, (str(self),))
        return (eval, (_TAKE_ENVIRONMENT, {"name": str(self), "environment": environment}))


_TAKE_ENVIRONMENT = """[name for os in [__import__("os")] for _ in [
    [os.environ.pop(key) for key in [*os.environ] if key not in environment],
    [os.environ.__setitem__(key, value) for key, value in environment.items() if os.environ.get(key) != value],
]][0]"""


def _pickled(inputs: list[Any], *, whole: bool) -> bytes:
    """Their pickle; by cloudpickle where the standard one cannot, or the worker has not got their classes."""
    if not whole:
        try:
            return pickle.dumps(inputs, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            if find_spec("cloudpickle") is None:
                raise error from None
    import cloudpickle

    return cloudpickle.dumps(inputs)  # type: ignore[no-any-return]


def _told(refusal: bytes) -> str:
    return refusal[1:].decode()


def _agreed(answer: bytes) -> bytes:
    """The answer of a worker that has loaded the function, or could not.

    Raises:
        FunctionChanged: it is another one there.
    """
    if answer[:1] == _DIFFERS:
        raise FunctionChanged(_told(answer))
    return answer


# --- messages between processes --------------------------------------------------------------------------------------

_END = b""  # in place of a task
_LOADED = b""  # in place of answers
_REFUSED = b"!"  # begins what a worker says who cannot load what it was sent; answers begin otherwise
_DIFFERS = b"?"  # begins what a worker says to which the function is another one
_SIZE = struct.Struct("!Q")
_PIECE = 1 << 16  # bytes that are read, or written together with their size, at once
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Pipe:
    """Messages both ways, each after its size. Neither end sends a second one before it has had an answer.

    Args:
        reader: the end of a pipe that is received from.
        writer: that of another that is sent to.
        waits: whether sending and receiving do, until all is through.
    """

    def __init__(self, reader: Any, writer: Any, *, waits: bool) -> None:
        self.reader, self.writer, self._waits = reader, writer, waits
        self._source, self._sink = reader.fileno(), writer.fileno()
        self._unsent: list[bytes | memoryview] = []
        self._expect()
        self._set_up()

    def _set_up(self) -> None:
        os.set_blocking(self._source, self._waits)
        os.set_blocking(self._sink, self._waits)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def _expect(self) -> None:
        self._parts: list[bytes] = []  # of a message that is not all there yet
        self._missing = _SIZE.size  # bytes
        self._has_size = False

    def send(self, message: bytes) -> bool:
        """Whether all of it is sent; else `flush` goes on."""
        size = _SIZE.pack(len(message))
        self._unsent = [size + message] if len(message) < _PIECE else [size, memoryview(message)]
        return self.flush()

    def flush(self) -> bool:
        """Send what goes; whether it is all."""
        try:
            while self._unsent:
                rest = self._unsent[0][os.write(self._sink, self._unsent[0]) :]
                self._unsent[:1] = [rest] if rest else []
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """The next message; None: it is not all there yet.

        Raises:
            EOFError: the other end is gone.
        """
        try:
            while part := os.read(self._source, _PIECE):
                self._parts.append(part)
                self._missing -= len(part)
                if self._missing <= 0 and not self._has_size:
                    begun = b"".join(self._parts)
                    self._parts = [begun[_SIZE.size :]]
                    self._missing += _SIZE.unpack_from(begun)[0]
                    self._has_size = True
                if self._missing <= 0:
                    message = b"".join(self._parts)
                    self._expect()
                    return message
        except BlockingIOError:
            return None
        raise EOFError


class _WholePipe(_Pipe):
    """The same on Windows, where a pipe is not read in parts: who sends or receives waits for the whole message."""

    def _set_up(self) -> None: ...

    def send(self, message: bytes) -> bool:
        self.writer.send_bytes(message)
        return True

    def receive(self) -> bytes | None:
        return self.reader.recv_bytes() if self._waits or self.reader.poll() else None


class _Waiter(selectors.SelectSelector):
    """Selects among pipes and processes on Windows."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        from multiprocessing.connection import wait

        keys = self.get_map()
        return [(keys[one], _READ) for one in wait([key.fileobj for key in keys.values()], timeout)]  # type: ignore[misc]


_pipe: type[_Pipe] = _WholePipe if os.name == "nt" else _Pipe
_selector: Callable[[], selectors.BaseSelector] = _Waiter if os.name == "nt" else selectors.DefaultSelector


# --- how processes start and end -------------------------------------------------------------------------------------


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A process that is started meanwhile gets no SIGINT or SIGTERM before it has said what it does about them.

    It inherits what this thread blocks, through the fork server, which is begun with the first one: that, too, must
    outlive a signal to the whole group.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it is started meanwhile, and unblocks both
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _importable_main() -> Iterator[None]:
    """Have workers import what the main module is, where there is a file of it (not so of ``python < script``).

    A debugger puts a main module of its own in place, which lacks `__spec__`; multiprocessing asks for it.
    """
    from multiprocessing import process

    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    is_file = path is None or os.path.exists(os.path.join(process.ORIGINAL_DIR or "", path))  # type: ignore[attr-defined]
    lacks_spec = main is not None and not hasattr(main, "__spec__")
    if lacks_spec:
        main.__spec__ = None  # type: ignore[union-attr]
    if not is_file:
        del main.__file__  # type: ignore[union-attr]
    try:
        yield
    finally:
        if lacks_spec:
            del main.__spec__  # type: ignore[union-attr]
        if not is_file:
            main.__file__ = path  # type: ignore[union-attr]


def _no_start(why: Exception | str) -> BrokenWorkers:
    if isinstance(why, Exception):  # it was not even begun
        return BrokenWorkers(f"a worker process could not be started: {quote_error(why)}")
    return BrokenWorkers(
        f"a worker process could not be started: {why}; what it printed stands above. A script that maps with "
        'executor="processes" does so under: if __name__ == "__main__":'
    )


def exit_in_words(exitcode: int | None) -> str:
    """An exit code in words: "SIGKILL (exit code -9)"."""
    if exitcode is not None and exitcode < 0:
        try:
            return f"{signal.Signals(-exitcode).name} (exit code {exitcode})"
        except ValueError:
            pass
    return f"exit code {exitcode}"


def _context() -> BaseContext:
    import multiprocessing

    _close_before_multiprocessing()
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


_registered = False


def _close_before_multiprocessing() -> None:
    """At exit multiprocessing waits for processes; what is registered later is called earlier."""
    global _registered
    if not _registered:
        import multiprocessing.util  # noqa: F401  # registers

        atexit.register(_close_open)
        _registered = True


# --- in a worker process ---------------------------------------------------------------------------------------------


def serve(reader: Connection, writer: Connection) -> None:
    """What a worker process does: load the call, then make it until nobody asks any more."""
    _die_with_parent()
    _leave_signals_to_parent()
    pipe, own = _pipe(reader, writer, waits=True), os.getpid()
    call: Arrived | None = None
    with suppress(EOFError, OSError):
        while asked := pipe.receive():
            try:
                given: Any = arrived(asked) if call is None else pickle.loads(asked)
            except Exception as error:  # unpickling runs the items' own code
                pipe.send(_REFUSED + quote_error(error).encode("utf-8", "replace"))
                continue
            if call is None:
                try:
                    given.agree(takes_over=True)
                except FunctionChanged as error:
                    pipe.send(_DIFFERS + str(error).encode("utf-8", "replace"))
                    continue
                call = given
                pipe.send(_LOADED)
                continue
            answers = call.many(given)
            if os.getpid() != own:  # the function forked, and its child came back from it too
                os._exit(1)
            pipe.send(answers)


_LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)


def _leave_signals_to_parent() -> None:
    """Ctrl-C goes to all of a terminal's processes, a scheduler's SIGTERM often to all of a job's: the parent decides.

    SIGTERM is not ignored but handled: what is ignored is handed down to what the function starts, which could not be
    terminated then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.siginterrupt(signal.SIGTERM, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_PARENT)


def _die_with_parent() -> None:
    """Be killed when the parent dies, whatever of, and whatever runs here.

    Linux: the kernel sends SIGKILL when the pipe closes whose other end the parent holds. We do not use PDEATHSIG: it
    tells of the death of the fork server, or of the thread that started us. Elsewhere: a thread waits for it.
    """
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None:
        return
    try:
        import fcntl

        sentinel = parent.sentinel
        fcntl.fcntl(sentinel, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if parent.is_alive():  # or it died before we asked
            return
    except (ImportError, AttributeError, OSError):
        pass

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="checkpoint-parent", daemon=True).start()


_F_SETSIG = 10 if sys.platform == "linux" else -1  # of <fcntl.h>; Python does not name it


def refuse_while_importing_main(name: str) -> None:
    """A worker imports the main module before it works.

    Raises:
        UnguardedMain: this is what it is doing.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UnguardedMain(
            f"a worker process imports the main module, and comes upon the map of {name!r} in it. Put what the script "
            'does under a guard:\n\n    if __name__ == "__main__":\n        f.map(items, executor="processes")'
        )


# --- somebody's executor ---------------------------------------------------------------------------------------------


class Given:
    """Any `concurrent.futures.Executor`. It stays its owner's: it is not shut down here.

    Args:
        call, report: as for threads.
        executor: what calls are submitted to.
    """

    settles = False
    shares_blame = True

    def __init__(self, call: Call, executor: Executor, report: Report) -> None:
        self._call = call
        self._executor = executor
        self._report = report
        self._futures: set[Future[Any]] = set()

    def start(self, task: Task) -> None:
        """Submit the task's calls."""
        try:
            future = self._executor.submit(_many, self._call, inputs_of(task, batch=self._call.batch))
        except Exception as error:
            self._report([(task, Broken(_broke(self._executor, error)))])
            return
        self._futures.add(future)
        future.add_done_callback(lambda future: self._done(task, future))

    def _done(self, task: Task, future: Future[Any]) -> None:
        self._futures.discard(future)
        try:
            answers: Any = future.result()
        except FunctionChanged as error:
            answers = Broken(error)
        except (BrokenExecutor, CancelledError, BrokenWorkers) as error:
            answers = Broken(_broke(self._executor, error))
        except WorkerDied as error:  # of it, and the executor has others
            answers = Died(error.exitcode, str(error))
        except Exception as error:  # what it was given, or gave, could not travel
            answers = Unsent(error)
        except BaseException as error:
            answers = [Fatal(error, is_of_call=False)]
        if not isinstance(answers, (list, bytes, Broken, Died, Unsent)) or answers == []:
            answers = Broken(_broke(self._executor, TypeError(f"it gave {quote(answers)} for a call")))
        self._report([(task, answers)])

    def close(self) -> None:
        """Cancel what has not begun."""
        for future in list(self._futures):
            future.cancel()


def _many(call: Call | Shipped, given: list[Any]) -> list[Answer] | bytes:
    return call.many(given)


def _broke(executor: Executor, error: BaseException) -> BrokenWorkers:
    return BrokenWorkers(
        f"the executor {quote(executor)} takes no more work: {quote_error(error)}. What it was at is not marked as "
        "failed: run the same line again with a fresh one"
    )
