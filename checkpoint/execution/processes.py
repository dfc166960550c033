"""Workers that are processes of ours: started, given tasks, watched, and ended.

A worker process that dies, whatever of, takes nothing with it but its own task: each has a pipe of its own.
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from math import inf
from typing import TYPE_CHECKING, Any, Self

from checkpoint import clock
from checkpoint.errors import BrokenWorkers, FunctionChanged, UnguardedMain, quote_error
from checkpoint.execution.answers import Fatal, out_of_time
from checkpoint.execution.call import Call
from checkpoint.execution.interfaces import Broken, Died, Report, Task, Unsent, exit_in_words, inputs_of
from checkpoint.execution.pipes import DIFFERS, END, READ, REFUSED, WRITE, make_pipe, make_selector
from checkpoint.execution.worker_process import LEFT_TO_PARENT, serve

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

__all__ = ["Processes", "refuse_while_importing_main"]


log = logging.getLogger("checkpoint")


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
            self._selector = make_selector()
            self._selector.register(self._bell, READ, (self._hear_bell, None))
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
                self._selector.register(process.pipe.reader, READ, (self._hear, process))
                self._selector.register(process.sentinel, READ, (self._hear_end, process))
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
                    if answers[:1] == REFUSED and (is_whole or find_spec("cloudpickle") is None):
                        told = f"a worker process cannot load the item: {_told(answers)}"
                        answers = Unsent(pickle.UnpicklingError(told))
                    elif answers[:1] == REFUSED:
                        is_whole, answers = True, None
            self._finished.append((task, answers))

    def _go_on(self, process: _Process, given: Any) -> None:
        """Tell it what comes after what it has answered, or is given."""
        try:
            message = process.talk.send(given)
            if message is not None:
                self._grant_time(process)
                if not process.pipe.send(message):
                    self._selector.register(process.pipe.writer, WRITE, (self._hear, process))
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
            if events & WRITE and process.pipe.flush():
                self._selector.unregister(process.pipe.writer)
            if events & READ:
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
        self.pipe = make_pipe(reader, writer, waits=False)
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
            self.pipe.send(END)
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
    if answer[:1] == DIFFERS:
        raise FunctionChanged(_told(answer))
    return answer


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
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
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


# --- while the main module is imported -------------------------------------------------------------------------------


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
