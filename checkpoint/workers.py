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
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager, suppress
from contextvars import copy_context
from functools import cache
from importlib.util import find_spec
from math import inf
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint import clock
from checkpoint.calls import Answer, Arrived, Call, Fatal, Shipped, arrived, failed, out_of_time
from checkpoint.errors import BrokenWorkers, UnguardedMain, quote, quote_error
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

Task = list[Attempt]
Report = Callable[[Task, Any], None]


class Died(NamedTuple):
    """In place of answers: the worker process died of the task."""

    exitcode: int | None


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


# --- threads ---------------------------------------------------------------------------------------------------------


class Threads:
    """So many threads, each begun when it is needed. They never keep the process alive.

    Args:
        call: what they make.
        count: how many at most.
        report: is told each task with its answers.
    """

    settles = False

    def __init__(self, call: Call, count: int, report: Report) -> None:
        self._call = call
        self._count = count
        self._report = report
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, task: Task, running: int) -> None:
        """Have a worker make the task's calls; so many tasks are under way with it."""
        if running > len(self._threads) < self._count:
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
        self._tasks.put(task)

    def _work(self) -> None:
        many, report, get, batch = self._call.many, self._report, self._tasks.get, self._call.batch
        while (task := get()) is not None:
            report(task, many(inputs_of(task, batch=batch)))
            task = None  # what is settled is let go of

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
        report: is told each task with its answers.
    """

    report: Report
    settles = True

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: deque[Task] = deque()
        self._idle: list[Any] = []  # a future for each loop task that has nothing to do
        self._tasks: list[Any] = []
        self._kind = _task_kind()
        self._context = copy_context()  # the loop may look on behalf of another thread

    def start(self, task: Task, running: int) -> None:
        """To be started when the loop looks; from any thread."""
        self._waiting.append(task)

    def look(self, leave: int = 0) -> None:
        """Start what waits, but so many of it; in the loop."""
        import asyncio

        for _ in range(len(self._waiting) - leave):
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
            self.report(task, [answer])
            task = answer = None  # type: ignore[assignment]  # what is settled is let go of
            if self._waiting:
                task = self._waiting.popleft()
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


class Processes(Threads):
    """So many processes, each with a thread here that serves it and puts another in its place when it has died.

    Args:
        call, count, report: as for threads.
        timeout: seconds that a task of one call may take before its process is killed.
    """

    settles = True

    def __init__(self, call: Call, count: int, report: Report, timeout: float | None = None) -> None:
        super().__init__(call, count, report)
        call.shipped()  # what cannot travel is told before anything is started
        self._timeout = timeout
        self._served: set[_Process] = set()
        self._over = threading.Event()
        _open.add(self)

    def _work(self) -> None:
        process: _Process | None = None
        while (task := self._tasks.get()) is not None and not self._over.is_set():
            try:
                if process is None:
                    process = _Process(self._call)
                    self._served.add(process)
                process.busy = True
                if self._over.is_set():  # who closes either finds it busy, or was here before
                    process.kill()
                answers = process.ask(task, self._timeout)
                process.busy = False
            except _Gone as gone:
                answers = gone.answers
                process = self._without(process)
            except BrokenWorkers as error:
                process = self._without(process)
                if self._over.is_set():  # it was killed before it was ready, and nobody waits for it
                    return
                answers = Broken(error)
            except Exception as error:
                answers = Unsent(error) if process is not None else Broken(_no_start(error))
            self._report(task, answers)
        if process is not None:
            process.end()
            self._served.discard(process)

    def _without(self, process: _Process | None) -> _Process | None:
        if process is not None:
            process.kill()
            self._served.discard(process)
        return None

    def close(self) -> None:
        """End the processes; those that are still at work are killed."""
        self._over.set()
        super().close()
        for process in list(self._served):
            if process.busy:
                process.kill()
        _open.discard(self)


_open: set[Processes] = set()  # those that a process's end must not wait for
_births = threading.Lock()  # starting a process reaps others, and who reaps takes the exit status away


def _close_open() -> None:
    for processes in list(_open):
        processes.close()


class _Gone(Exception):
    """The process is no more: `.answers` says why."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers


class _Process:
    """One worker process, and our end of its pipe.

    Attributes:
        busy: whether it is at work, or makes ready for it.

    Raises:
        BrokenWorkers: it does not start.
    """

    def __init__(self, call: Call) -> None:
        self._call = call
        self._batch = call.batch
        self._whole = False  # whether items travel by cloudpickle: a worker has not got their classes
        self._loaded = False
        self.busy = True
        context = _context()
        self._pipe, theirs = context.Pipe()
        try:
            with _births, _signals_held_back(), _importable_main():
                self._process = context.Process(target=serve, args=(theirs,), name="checkpoint-worker")  # type: ignore[attr-defined]
                self._process.start()
        except (OSError, EOFError) as error:
            raise _no_start(error) from error
        finally:
            theirs.close()
        self._ready = _Waiter(self._pipe, self._process.sentinel)

    def _load(self) -> None:
        told = self._try(self._call.shipped())
        if told:
            try:
                whole = self._call.shipped_whole()
            except Exception as error:
                raise BrokenWorkers(
                    f"worker processes cannot load {self._call.name}: {told}; {quote_error(error)}"
                ) from error
            if again := self._try(whole):
                raise BrokenWorkers(f"worker processes cannot load {self._call.name}: {again}")
            self._whole = True
        self._loaded = True

    def _try(self, shipped: bytes) -> str:
        """Have it load the call; "" where it did, else why not."""
        try:
            self._pipe.send_bytes(shipped)
            self._ready.wait(None)
            return self._pipe.recv_bytes().decode()
        except (EOFError, OSError) as error:
            raise _no_start(f"it ended with {exit_in_words(self._exitcode())} before it was ready") from error

    def ask(self, task: Task, timeout: float | None) -> Any:
        """The answers to a task, packed.

        Raises:
            BrokenWorkers: it cannot load the function.
            _Gone: it died meanwhile, or was killed since it took too long.
        """
        if not self._loaded:
            self._load()
        try:
            asked = self._pickled(inputs_of(task, batch=self._batch))
        except Exception as error:  # pickling runs the items' own code
            return Unsent(error)
        try:
            self._pipe.send_bytes(asked)
            if not self._ready.wait(timeout):
                self.kill()
                assert timeout is not None
                raise _Gone([self._call.failed(out_of_time(timeout), timeout, skip=0)])
            answers = self._pipe.recv_bytes()
            told = "" if answers else self._pipe.recv_bytes().decode()
        except _Gone:
            raise
        except (EOFError, OSError) as error:
            self.kill()  # its pipe is gone, and it may not be
            raise _Gone(Died(self._exitcode())) from error
        except Exception as error:  # its answer may still come, and must not be taken for another's
            self.kill()
            raise _Gone(Unsent(error)) from error
        if answers:
            return answers
        if self._whole or find_spec("cloudpickle") is None:
            return Unsent(pickle.UnpicklingError(f"a worker process cannot load the item: {told}"))
        self._whole = True
        return self.ask(task, timeout)

    def _pickled(self, inputs: list[Any]) -> bytes:
        """Their pickle; by cloudpickle where the standard one cannot, or the worker has not got their classes."""
        if not self._whole:
            try:
                return pickle.dumps(inputs, pickle.HIGHEST_PROTOCOL)
            except Exception as error:
                if find_spec("cloudpickle") is None:
                    raise error from None
        import cloudpickle

        return cloudpickle.dumps(inputs)  # type: ignore[no-any-return]

    def _exitcode(self) -> int | None:
        with _births:
            self._process.join(5.0)
            return self._process.exitcode  # type: ignore[no-any-return]

    def kill(self) -> None:
        """At once."""
        with _births:
            if self._process.exitcode is None:
                self._process.kill()

    def end(self) -> None:
        """It is told to; a process that was forked here may hold our end of the pipe open."""
        with suppress(OSError):
            self._pipe.send_bytes(_END)
        self._pipe.close()


_END = b""  # in place of a task


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
    """Where the main module's file is none (``python < script``), multiprocessing must not have workers run it."""
    from multiprocessing import process

    main = sys.modules.get("__main__")
    path = getattr(main, "__file__", None)
    if path is None or os.path.exists(os.path.join(process.ORIGINAL_DIR or "", path)):  # type: ignore[attr-defined]
        yield
        return
    del main.__file__  # type: ignore[union-attr]
    try:
        yield
    finally:
        main.__file__ = path  # type: ignore[union-attr]


def _no_start(why: object) -> BrokenWorkers:
    told = quote_error(why) if isinstance(why, BaseException) else why
    return BrokenWorkers(
        f"a worker process could not be started: {told}; what it printed stands above. A script that maps with "
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


_LONGEST = 3600.0  # seconds: the system's calls refuse much longer ones


class _Waiter:
    """Waits until the pipe can be read or the process has ended, whichever comes first.

    A pipe alone does not tell of every death: a child of the worker's own may hold its other end.
    """

    def __init__(self, pipe: Any, sentinel: int) -> None:
        self._both = [pipe, sentinel]
        self._selector: Any = None
        if os.name != "nt":
            import selectors

            self._selector = selectors.DefaultSelector()
            for one in self._both:
                self._selector.register(one, selectors.EVENT_READ)

    def wait(self, timeout: float | None) -> bool:
        """Whether it is so within the seconds given; where the pipe has nothing, reading it ends at once.

        Raises:
            EOFError: the process has ended, and left no answer.
        """
        end = inf if timeout is None else clock.monotonic() + timeout
        while not (ready := self._look(min(end - clock.monotonic(), _LONGEST))):
            if clock.monotonic() >= end:
                return False
        if self._both[0] not in ready and not self._both[0].poll():
            raise EOFError
        return True

    def _look(self, seconds: float) -> list[Any]:
        if self._selector is not None:
            return [key.fileobj for key, _ in self._selector.select(seconds)]
        from multiprocessing.connection import wait

        return wait(self._both, seconds)

    def __del__(self) -> None:
        if self._selector is not None:
            self._selector.close()


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


def serve(pipe: Connection) -> None:
    """What a worker process does: load the call, then make it until nobody asks any more."""
    _die_with_parent()
    _leave_signals_to_parent()
    try:
        call = _loaded(pipe)
        while (asked := pipe.recv_bytes()) != _END:
            try:
                given = pickle.loads(asked)
            except Exception as error:  # unpickling runs the items' own code
                pipe.send_bytes(b"")
                pipe.send_bytes(quote_error(error).encode("utf-8", "replace"))
            else:
                pipe.send_bytes(call.many(given))
    except (EOFError, OSError):
        return


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


def _loaded(pipe: Connection) -> Arrived:
    while True:
        shipped = pipe.recv_bytes()
        if shipped == _END:
            raise EOFError
        try:
            call = arrived(shipped)
        except Exception as error:
            pipe.send_bytes((quote_error(error) or "unknown").encode("utf-8", "replace"))
        else:
            pipe.send_bytes(b"")
            return call


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

    def __init__(self, call: Call, executor: Executor, report: Report) -> None:
        self._call = call
        self._executor = executor
        self._report = report
        self._futures: set[Future[Any]] = set()

    def start(self, task: Task, running: int) -> None:
        """Submit the task's calls."""
        try:
            future = self._executor.submit(_many, self._call, inputs_of(task, batch=self._call.batch))
        except Exception as error:
            self._report(task, Broken(_broke(self._executor, error)))
            return
        self._futures.add(future)
        future.add_done_callback(lambda future: self._done(task, future))

    def _done(self, task: Task, future: Future[Any]) -> None:
        self._futures.discard(future)
        try:
            answers: Any = future.result()
        except (BrokenExecutor, CancelledError, BrokenWorkers) as error:
            answers = Broken(_broke(self._executor, error))
        except Exception as error:  # what it was given, or gave, could not travel
            answers = Unsent(error)
        except BaseException as error:
            answers = [Fatal(error)]
        if not isinstance(answers, (list, bytes, Broken, Unsent)) or answers == []:
            answers = Broken(_broke(self._executor, TypeError(f"it gave {quote(answers)} for a call")))
        self._report(task, answers)

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
