"""Workers that are processes of ours: started, given tasks, watched, and ended.

A worker process that dies, whatever of, takes nothing with it but its own task: each has a pipe of its own. The
conversation with a worker goes through these states::

    STARTING ──── it has loaded the call ────► IDLE ─── it is given a task ───► BUSY ──┐
       │                                        ▲ ▲                             │  ▲   │ it cannot load an input:
       │ it cannot: it is sent                  │ └──────── it answers ─────────┘  └───┘ it is sent them by cloudpickle
       ▼ the call by cloudpickle                │
    LOADING ──── it has loaded the call ────────┘

    GONE, from each of them: its process has ended, its time is over, or it says what nobody asked
"""

from __future__ import annotations

import atexit
import logging
import os
import pickle
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from functools import partial
from importlib.util import find_spec
from math import inf
from typing import Any

from checkpoint import clock
from checkpoint.errors import BrokenWorkers, FunctionChanged, UnsendableItem, quote_error
from checkpoint.execution.answers import Fatal, out_of_time
from checkpoint.execution.at_work import AtWork
from checkpoint.execution.call import Call
from checkpoint.execution.cpus import cpu_count, thread_variables
from checkpoint.execution.fork_server import Forked, ForkServer
from checkpoint.execution.interfaces import Broken, Died, Early, Report, Task, Unsent, exit_in_words, inputs_of
from checkpoint.execution.pipes import DIFFERS, END, READ, REFUSED, STEP, WRITE, make_pipe, make_selector
from checkpoint.execution.step_service import StepService
from checkpoint.execution.threads import begin_thread
from checkpoint.execution.transport import pickled_inputs, unloadable
from checkpoint.execution.worker_process import serve, spawned

__all__ = ["Processes"]


log = logging.getLogger("checkpoint")


# --- processes -------------------------------------------------------------------------------------------------------


class Processes:
    """So many processes, each begun when it is needed, and one thread that serves them all.

    It waits for none of them, but while one starts: what goes and comes in parts does so while others are served.

    Args:
        call, count: as for threads.
        report: is told, in that thread, all that finished meanwhile.
        timeout: seconds that a task of one call may take before its process is killed.

    Attributes:
        call, timeout: as given; without a timeout it is infinite.
        environment: the variables of each process's environment.
        selector: waits for the pipes and the ends of the processes; `data` is called with the events.
    """

    settles = True
    shares_blame = False

    def __init__(self, call: Call, count: int, report: Report, timeout: float | None = None) -> None:
        call.shipped(sets=True)  # what cannot travel is told before anything is started
        self._count, self._report = count, report
        self.call, self.timeout = call, inf if timeout is None else timeout
        self._tasks: deque[Task] = deque()  # that no process has
        self._finished: list[tuple[Task, Any]] = []  # and not reported yet
        self._all: set[_Worker] = set()
        self._idle: set[_Worker] = set()
        self._busy: dict[_Worker, float] = {}  # and when each is killed, the first one first
        self._thread: threading.Thread | None = None
        self._is_rung = False
        self._posted: deque[Callable[[], None]] = deque()
        self._is_over = False
        self._owner = os.getpid()
        self.environment = {**os.environ, **thread_variables(count, os.environ, cpu_count())}
        self._server: ForkServer | None = None
        _open.add(self)

    def start(self, task: Task) -> None:
        """Have a process make the task's calls; from any thread, one at a time.

        Raises:
            UnsendableItem: the first item of all cannot travel; nothing was called.
        """
        if self._thread is None:
            pickled_inputs([task[0].units[0].item], whole=False)
        self._tasks.append(task)
        if self._thread is None:
            from multiprocessing.connection import Pipe

            _close_at_exit()
            self._bell, self._rope = Pipe(duplex=False)
            self.selector = make_selector()
            self.selector.register(self._bell, READ, self._hear_bell)
            self._thread = begin_thread(self._serve, "checkpoint-processes")
        elif threading.get_ident() != self._thread.ident:
            self._ring()

    def close(self) -> None:
        """End the processes; those that are still at work are killed."""
        if os.getpid() != self._owner:  # they are those of who forked this process
            return
        self._is_over = True
        for worker in self._all.difference(self._idle):
            worker.kill()
        if self._thread is not None:
            self._ring()
        _open.discard(self)

    def after_fork(self) -> None:
        """In a forked child: hold nothing open whose end the workers wait for."""
        if self._thread is not None:
            self._bell.close()
            self._rope.close()
            self.selector.close()
        if self._server is not None:
            self._server.after_fork()

    def _ring(self) -> None:
        """Have the thread look. Its end does not close the bell: somebody may be about to ring."""
        if not self._is_rung:
            self._is_rung = True
            self._rope.send_bytes(b"")

    def _hear_bell(self, _: int) -> None:
        self._bell.recv_bytes()
        self._is_rung = False  # before anything is looked at: who comes later rings again

    # in the thread

    def _serve(self) -> None:
        try:
            while not self._is_over:
                self._turn()
        except BaseException as error:  # SystemExit of an item's, or of a hook of the user's: nobody waits for ever
            at_work = [*self._tasks, *(worker.task for worker in self._all if worker.task)]
            self._report([*self._finished, *((task, [Fatal(error, is_of_call=False)]) for task in at_work)])
        finally:
            for worker in self._all:
                if worker not in self._idle:
                    worker.kill()
                worker.close()
            self.selector.close()
            del self._report  # it knows who knows us
            if self._server is not None:
                self._server.close()

    def _turn(self) -> None:
        """Hand out, wait until something comes, take all that is there, and report it together."""
        self._hand_out()
        for key, events in self.selector.select(self._patience()):
            if self._is_over:  # who was killed for it did not die of its task
                return
            key.data(events)
        while self._posted:
            self._posted.popleft()()
        self._end_late()
        if self._finished:
            finished, self._finished = self._finished, []
            self._report(finished)

    def _hand_out(self) -> None:
        """Give out tasks; where some are left begin a worker: one, and others are served before the next."""
        while self._tasks and self._idle:
            self._idle.pop().give(self._tasks.popleft())
        if self._lacks_one:
            try:
                worker = _Worker(self)
            except Exception as error:
                self.report_broken(_no_start(error))
            else:
                self._all.add(worker)
                worker.load()

    @property
    def _lacks_one(self) -> bool:
        """Whether more tasks wait than processes make ready, and there may be another."""
        if not self._tasks or len(self._all) == self._count:
            return False
        return len(self._tasks) > len(self._all) - len(self._idle) - len(self._busy)

    def _patience(self) -> float | None:
        """Seconds for which nothing is to be done unless something comes."""
        if self._finished or self._posted or self._lacks_one:
            return 0.0
        if self.timeout == inf or not self._busy:
            return None
        return min(max(0.0, next(iter(self._busy.values())) - clock.monotonic()), _LONGEST)

    def _end_late(self) -> None:
        while self.timeout < inf and self._busy:
            worker, due = next(iter(self._busy.items()))
            if clock.monotonic() < due:
                return
            worker.on_timeout()

    # by the workers, in the thread

    def post(self, act: Callable[[], None]) -> None:
        """Have something done in the thread; from any thread."""
        self._posted.append(act)
        if self._thread is not None and threading.get_ident() != self._thread.ident and not self._is_over:
            self._ring()

    def begin_process(self, at_work: AtWork) -> Forked | _Spawned:
        """A worker process, which serves calls, and says there which one it is at.

        Raises:
            Exception: it does not start.
        """
        if not _FORKS:
            return _Spawned(self.environment, at_work.path)
        if self._server is None:
            self._server = ForkServer(self.environment)
        return self._server.fork(partial(serve, path=at_work.path))

    def grant_time(self, worker: _Worker) -> None:
        """The worker's time begins now."""
        self._busy.pop(worker, None)
        self._busy[worker] = clock.monotonic() + self.timeout

    def finish(self, task: Task, answers: Any) -> None:
        """Report the task with these answers, when all that is there was taken."""
        self._finished.append((task, answers))

    def note_idle(self, worker: _Worker) -> None:
        """The worker can be given a task."""
        self._busy.pop(worker, None)
        self._idle.add(worker)

    def note_gone(self, worker: _Worker) -> None:
        """The worker can be given nothing any more."""
        self._all.discard(worker)
        self._idle.discard(worker)
        self._busy.pop(worker, None)

    def report_broken(self, error: BrokenWorkers | FunctionChanged) -> None:
        """A worker could not be had; report a task that waited for one, unless another has taken it meanwhile."""
        if self._tasks:
            self._finished.append((self._tasks.popleft(), Broken(error)))


class _State(Enum):
    """How far the conversation with a worker has come; the module's docstring draws it."""

    STARTING = 1  # it begins, and loads the call that it was sent
    LOADING = 2  # it could not, and loads the call by cloudpickle
    IDLE = 3  # it has loaded the call, and waits for a task
    BUSY = 4  # it is at a task
    GONE = 5  # its process has ended, or nobody waits for it


class _Worker:
    """One worker process, and the conversation with it, of which each `on_` method is the next step.

    Args:
        pool: whose it is, and in whose thread everything happens.

    Attributes:
        state: how far the conversation has come.
        task: the task that it is at.
        pipe: our ends of its pipes.
        process: its process.

    Raises:
        Exception: it does not start.
    """

    __slots__ = ("_at_work", "_by_cloudpickle", "_pool", "_steps", "pipe", "process", "state", "task")

    def __init__(self, pool: Processes) -> None:
        self._pool = pool
        self._by_cloudpickle = False  # whether all travels by it: the process has not got the classes
        self.state = _State.STARTING
        self.task: Task | None = None
        self._steps = StepService(self._send_reply, pool.post, begin_thread)
        self._at_work = AtWork()
        try:
            self.process = pool.begin_process(self._at_work)
        except BaseException:
            self._at_work.close()
            raise
        self.pipe = self.process.pipe
        pool.selector.register(self.pipe.reader, READ, self.on_event)
        pool.selector.register(self.process.sentinel, READ, self.on_exit)

    # what it is told

    def load(self) -> None:
        """Have it load the call."""
        self._send(self._pool.call.shipped(sets=True))

    def give(self, task: Task) -> None:
        """Have it make the task's calls."""
        self.task, self.state = task, _State.BUSY
        self._send_inputs(task)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def close(self) -> None:
        """Let go of it; an idle one ends."""
        self.state = _State.GONE
        self._steps.close()
        self.process.close()
        self._at_work.close()
        del self._pool, self._steps  # they know us

    def _send_inputs(self, task: Task) -> None:
        try:
            message = pickled_inputs(inputs_of(task, batch=self._pool.call.batch), whole=self._by_cloudpickle)
        except UnsendableItem as error:
            self._finish(task, Unsent(error))
        else:
            self._send(message)

    def _send(self, message: bytes) -> None:
        """Send it, or as much as goes: `on_event` sends the rest."""
        try:
            self._grant_time()
            self._send_reply(message)
        except OSError:
            self._cut_off()

    def _send_reply(self, message: bytes) -> None:
        """The same where nothing begins; while a part of an earlier message is to be sent, that goes on first.

        Raises:
            OSError: its pipe is gone; it is about to be known.
        """
        is_sent, selector = self.pipe.send(message), self._pool.selector
        if not is_sent and self.pipe.writer not in selector.get_map():
            selector.register(self.pipe.writer, WRITE, self.on_event)

    def _grant_time(self) -> None:
        """The call may take so long, not what it is given or gives: its time begins with each part of these."""
        if self.task is not None:
            self._pool.grant_time(self)

    # what comes from it

    def on_event(self, events: int) -> None:
        """Its pipe has something, or takes more."""
        if self.state is _State.IDLE:  # it has ended, or says what nobody asked
            self._lose(None)
        if self.state is _State.GONE:
            return
        message = None
        try:
            if events & WRITE and self.pipe.flush():
                self._pool.selector.unregister(self.pipe.writer)
            if events & READ:
                message = self.pipe.receive()
        except (EOFError, OSError):
            self._cut_off()
        except Exception as error:  # its answer may still come, and must not be taken for another's
            self._lose(Unsent(error))
        else:
            if message is None:
                self._grant_time()
            else:
                self.on_message(message)
                self._go_on_reading()

    def _go_on_reading(self) -> None:
        """Nobody tells of what came with the last message."""
        if self.state is not _State.GONE and self.pipe.has_more:
            self.on_event(READ)

    def on_message(self, message: bytes) -> None:
        """It says whether it has loaded the call, answers to its task, or a call of that takes a step."""
        if message[:1] == STEP:
            self._hear_of_step(message[1:])
            return
        if self.task is not None:
            self._take_answers(self.task, message)
            return
        pool = self._pool
        try:
            self._take_loaded(message)
        except (BrokenWorkers, FunctionChanged) as error:
            self._lose(None)
            pool.report_broken(error)

    def _hear_of_step(self, message: bytes) -> None:
        pool, task, call = self._pool, self.task, None
        number, what, *parts = pickle.loads(message)
        if what == "alone":
            place, answers = parts
            if task is not None:
                self.task = [task[place]]
                pool.finish(task[:place] + task[place + 1 :], Early(answers))
            return
        if task is not None and pool.call.keys is not None:
            call = pool.call.keys, inputs_of(task, batch=pool.call.batch)[0]
        with suppress(OSError):  # its end is told by itself
            self._steps.hear(number, what, parts, call)

    def on_exit(self, _: int) -> None:
        """Its process has ended. Its pipe may not tell, since a child may hold the other end; what is in it counts."""
        if self.state not in (_State.IDLE, _State.GONE):
            with suppress(Exception):
                if (message := self.pipe.receive()) is not None:
                    self.on_message(message)
        if self.state is _State.GONE:
            return
        pool, was_ready = self._pool, self.state in (_State.IDLE, _State.BUSY)
        exitcode = self.process.exitcode()
        why = "an unknown cause, since what forks them has ended, too" if exitcode is None else ""
        self._lose(Died(exitcode, why, self._at_work.number))
        if not was_ready:
            pool.report_broken(_no_start(f"it ended with {exit_in_words(exitcode)} before it was ready"))

    def on_timeout(self) -> None:
        """Its call has taken longer than it may."""
        timeout = self._pool.timeout
        self._lose([self._pool.call.failed(out_of_time(timeout), timeout)])

    def _take_loaded(self, refusal: bytes) -> None:
        """It has loaded the call; or it cannot, and is sent the call by cloudpickle, once.

        Raises:
            BrokenWorkers: it cannot load the call.
            FunctionChanged: the function is another one there.
        """
        call = self._pool.call
        if refusal[:1] == DIFFERS:
            raise FunctionChanged(_told(refusal))
        if not refusal:
            self._rest()
            return
        why = f"worker processes cannot load {call.name}: "
        if self.state is _State.LOADING:
            raise BrokenWorkers(why + _told(refusal))
        try:
            whole = call.shipped_whole(sets=True)
        except Exception as error:
            raise BrokenWorkers(f"{why}{_told(refusal)}; {quote_error(error)}") from error
        self.state, self._by_cloudpickle = _State.LOADING, True
        self._send(whole)

    def _take_answers(self, task: Task, answers: bytes) -> None:
        """It has made the calls; or it cannot load the inputs, and is sent them by cloudpickle, once."""
        if answers[:1] != REFUSED:
            self._finish(task, answers)
        elif self._by_cloudpickle or find_spec("cloudpickle") is None:
            self._finish(task, Unsent(unloadable(_told(answers))))
        else:
            self._by_cloudpickle = True
            self._send_inputs(task)

    def _finish(self, task: Task, answers: Any) -> None:
        self._pool.finish(task, answers)
        self._rest()

    def _rest(self) -> None:
        self.task, self.state = None, _State.IDLE
        self._pool.note_idle(self)

    # its end

    def _cut_off(self) -> None:
        """Its pipe is gone, and it may not be; what becomes of its task is known when it has ended."""
        for end in (self.pipe.reader, self.pipe.writer):
            with suppress(KeyError):
                self._pool.selector.unregister(end)
        self.kill()

    def _lose(self, answers: Any) -> None:
        """It has ended, or is not waited for; these are the answers to its task."""
        self._cut_off()
        self._pool.selector.unregister(self.process.sentinel)
        self._pool.note_gone(self)
        if self.task is not None:
            self._pool.finish(self.task, answers)
        self.close()


_open: set[Processes] = set()  # those that a process's end must not wait for
_LONGEST = 3600.0  # seconds: the system's calls refuse much longer ones
_FORKS = os.name != "nt"


def _close_open() -> None:
    for processes in list(_open):
        processes.close()


def _let_go_in_child() -> None:
    for processes in list(_open):
        processes.after_fork()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


class _Spawned:
    """One worker process where nothing can be forked, and our ends of its pipes: what `Forked` is elsewhere.

    Only the process itself is killed: what it has started runs on.

    Args:
        environment: variables that it is to have, besides its own.
        path: of `AtWork`.

    Raises:
        Exception: it does not start.
    """

    def __init__(self, environment: dict[str, str], path: str | None) -> None:
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        reader, theirs = context.Pipe(duplex=False)
        given, writer = context.Pipe(duplex=False)
        try:
            with _importable_main():
                self._process = context.Process(
                    target=spawned,
                    args=(partial(serve, path=path), environment, given, theirs),
                    name="checkpoint-worker",
                )
                self._process.start()
        finally:
            given.close()
            theirs.close()
        self.pipe = make_pipe(reader, writer, waits=False)
        self.sentinel: int = self._process.sentinel
        self.pid = self._process.pid or 0

    def exitcode(self) -> int | None:
        """How it ended."""
        self._process.join(5.0)
        return self._process.exitcode

    def kill(self) -> None:
        """At once."""
        if self._process.exitcode is None:
            self._process.kill()

    def close(self) -> None:
        """Let go of it; if it is idle it ends, and is told to: what was forked here may hold our end of the pipe."""
        with suppress(OSError):
            self.pipe.send(END)
        self.pipe.close()


def _told(refusal: bytes) -> str:
    return refusal[1:].decode()


# --- how processes start and end -------------------------------------------------------------------------------------


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


_registered = False


def _close_at_exit() -> None:
    """At exit multiprocessing waits for processes; what is registered later is called earlier."""
    global _registered
    if not _registered:
        import multiprocessing.util  # noqa: F401  # registers

        atexit.register(_close_open)
        _registered = True
