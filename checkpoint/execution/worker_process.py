"""What runs in a worker process: it serves calls until its pipe closes, and dies with its parent."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from checkpoint import clock
from checkpoint.errors import FunctionChanged, quote_error
from checkpoint.execution.at_work import opened_at
from checkpoint.execution.call import Arrived, arrived
from checkpoint.execution.conversation import Conversation, take_up
from checkpoint.execution.cpus import bound_loaded
from checkpoint.execution.pipes import DIFFERS, LOADED, REFUSED, STEP, make_pipe
from checkpoint.execution.transport import pack

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from types import FrameType

__all__ = ["FORWARDED", "live", "serve", "spawned"]


def live(given: int, theirs: int, life: int, *, mask: Iterable[int]) -> int:
    """Be a worker process that was just forked, from its first moment to its last; returns its exit code.

    Args:
        given, theirs: the ends of pipes by which tasks come, and answers go.
        life: the end of one by which it is told what it is, and which closes when its driver dies.
        mask: the signals that it has blocked.
    """
    from multiprocessing import Process, process, spawn
    from multiprocessing.connection import Connection

    _leave_signals_to_parent()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    end = Connection(life, writable=False)
    told = end.recv_bytes()
    _die_with_parent(life)
    importing: Any = process.current_process()
    importing._inheriting = True  # what the main module starts meanwhile is refused
    try:
        preparation, target, parent, number = pickle.loads(told)
        spawn.prepare(preparation)
        target = pickle.loads(target)
    finally:
        del importing._inheriting
    ends = Connection(given, writable=False), Connection(theirs, readable=False)
    worker: Any = Process(target=target, args=ends, name="checkpoint-worker")
    worker._identity, worker._parent_pid, worker._parent_name = (number,), parent, "MainProcess"
    exitcode: int = worker._bootstrap(life)
    atexit._run_exitfuncs()
    return exitcode


def spawned(target: Callable[..., None], environment: dict[str, str], reader: Connection, writer: Connection) -> None:
    """Be a worker process that multiprocessing started, where nothing can be forked."""
    import multiprocessing

    os.environ.update(environment)
    bound_loaded()  # the main module is imported already
    parent = multiprocessing.parent_process()
    _leave_signals_to_parent()
    if parent is not None:
        _die_with_parent(parent.sentinel)
    target(reader, writer)


def serve(reader: Connection, writer: Connection, path: str | None = None) -> None:
    """What a worker process does: load the call, then make it until nobody asks any more.

    Args:
        reader, writer: the ends of pipes by which tasks come, and answers go.
        path: of `AtWork`.
    """
    own, at_work = os.getpid(), opened_at(path)
    pipe = Conversation(make_pipe(reader, writer, waits=True), own)
    take_up(pipe)
    call: Arrived | None = None
    with suppress(EOFError, OSError):
        while asked := pipe.next_task():
            began = clock.perf_counter()  # to load large items takes time, too
            try:
                given: Any = arrived(asked, alone=True) if call is None else pickle.loads(asked)
            except Exception as error:  # unpickling runs the items' own code
                pipe.send(REFUSED + quote_error(error).encode("utf-8", "replace"))
                continue
            if call is None:
                try:
                    given.agree(takes_over=True)
                except FunctionChanged as error:
                    pipe.send(DIFFERS + str(error).encode("utf-8", "replace"))
                    continue
                call = given
                pipe.send(LOADED)
                continue
            answers = call.many(given, began, at_work, partial(_give_back, pipe))
            if os.getpid() != own:  # the function forked, and its child came back from it too
                os._exit(1)
            pipe.send(answers)


def _give_back(pipe: Conversation, place: int, answers: list[Any]) -> None:
    """Of a task of several calls that at this place goes on alone."""
    pipe.send(STEP + pickle.dumps((0, "alone", place, pack(answers)), pickle.HIGHEST_PROTOCOL))


# --- signals, and the end --------------------------------------------------------------------------------------------

FORWARDED = {
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP", "SIGCONT") if hasattr(signal, name)
}
"""What a terminal, or a scheduler, sends to all processes of a job."""
_LEFT = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_before: dict[int, Any] = {}  # what stood for those that are left to the parent


def _leave_signals_to_parent() -> None:
    """Do nothing about what asks a job to end: the parent decides, which gets it too.

    The signals are not ignored but handled: what is ignored is handed down to what the function starts, which could not
    be ended by it then. What the function forks without starting a program gets back what stood before.
    """
    for number in _LEFT:
        before = signal.getsignal(number)
        if before != signal.SIG_IGN:
            _before[number] = signal.signal(number, _leave)
            if hasattr(signal, "siginterrupt"):
                signal.siginterrupt(number, False)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_as_before)


def _leave(number: int, frame: FrameType | None) -> None: ...


def _as_before() -> None:
    for number, handler in _before.items():
        if signal.getsignal(number) is _leave:
            signal.signal(number, handler)


def _die_with_parent(sentinel: int) -> None:
    """Be killed when the parent dies, whatever of, and whatever runs here; and with it what was started here.

    Linux: the kernel sends SIGKILL to the group when the pipe closes whose other end the parent holds. We do not use
    PDEATHSIG: it tells of the death of the fork server, or of the thread that started us. Elsewhere: a thread waits.

    Args:
        sentinel: an end of that pipe; nothing comes through it any more.
    """
    from multiprocessing.connection import wait

    try:
        import fcntl

        fcntl.fcntl(sentinel, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(sentinel, fcntl.F_SETOWN, -os.getpid() if _leads_group() else os.getpid())
        fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
        if not wait([sentinel], 0):  # or it died before we asked
            return
    except (ImportError, AttributeError, OSError):
        pass

    def watch() -> None:
        wait([sentinel])
        if _leads_group():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="checkpoint-parent", daemon=True).start()


def _leads_group() -> bool:
    return hasattr(os, "getpgrp") and os.getpgrp() == os.getpid()


_F_SETSIG = 10 if sys.platform == "linux" else -1  # of <fcntl.h>; Python does not name it
