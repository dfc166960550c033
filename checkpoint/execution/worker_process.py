"""What runs in a worker process: it serves calls until its pipe closes, and dies with its parent."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from checkpoint.errors import FunctionChanged, quote_error
from checkpoint.execution.call import Arrived, arrived
from checkpoint.execution.cpus import bound_loaded
from checkpoint.execution.pipes import DIFFERS, LOADED, REFUSED, make_pipe

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = ["LEFT_TO_PARENT", "serve"]


def serve(reader: Connection, writer: Connection) -> None:
    """What a worker process does: load the call, then make it until nobody asks any more."""
    _die_with_parent()
    _leave_signals_to_parent()
    bound_loaded()
    pipe, own = make_pipe(reader, writer, waits=True), os.getpid()
    call: Arrived | None = None
    with suppress(EOFError, OSError):
        while asked := pipe.receive():
            try:
                given: Any = arrived(asked) if call is None else pickle.loads(asked)
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
            answers = call.many(given)
            if os.getpid() != own:  # the function forked, and its child came back from it too
                os._exit(1)
            pipe.send(answers)


LEFT_TO_PARENT = (signal.SIGINT, signal.SIGTERM)


def _leave_signals_to_parent() -> None:
    """Ctrl-C goes to all of a terminal's processes, a scheduler's SIGTERM often to all of a job's: the parent decides.

    SIGTERM is not ignored but handled: what is ignored is handed down to what the function starts, which could not be
    terminated then.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    if hasattr(signal, "pthread_sigmask"):
        signal.siginterrupt(signal.SIGTERM, False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)


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
