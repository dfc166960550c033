"""Every lock of this package, in one order: who holds one takes only such as stand below it.

The promise: no two threads ever wait for each other's locks. Where the environment says so when this is imported, each
acquisition that might wait is checked, and one out of order raises; else these are the plain locks of `threading`.

A garbage collection keeps no order: it may come upon anything while its thread holds any lock. What it comes upon asks
`may_be_held`, and is done `elsewhere` then.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

__all__ = ["ORDER", "VARIABLE", "LockOrder", "alone", "elsewhere", "holding", "lock", "may_be_held", "rlock"]


VARIABLE = "CHECKPOINT_LOCK_ORDER"
ORDER = (
    "speaking",  # what came to this worker from its driver
    "sending",  # what goes to it
    "loading",  # the calls that came to this process; loading one runs the user's code
    "dealing",  # one thread deals with what was reported
    "coordinator",  # what runs, and what may start
    "shipping",  # what travels of a call, and with which task
    "pass",  # what is counted and remembered of one
    "claims",  # which keys run, over all passes
    "filing",  # the index file is written; nobody waits for it
    "store",  # the journals of one, and who writes them
    "registry",  # the checkpoints that are open
    "spending",  # what was read of what records cost
    "uploading",  # objects are written
    "hashing",  # keys of the index
    "tending",  # the stores that are looked after
    "syncing",
    "counting",  # the state of an upload
    "cluster",  # the tasks that are under way
    "quotas",  # which rates there are
    "gate",  # what a server answered last
    "quota",  # what one of them has let go
    "reading",  # the position of a descriptor
    "parsing",  # the filters of warnings
)
"""The outermost first."""


class LockOrder(AssertionError):
    """A lock was taken by a thread that holds one which stands below it."""


class _Held(threading.local):
    """The locks that this thread holds, in the order in which it took them."""

    def __init__(self) -> None:
        self.locks: list[_Checked] = []
        self.is_alone = False


_held = _Held()
if hasattr(os, "register_at_fork"):  # a pool may fork its workers while it is given work, under locks of ours
    os.register_at_fork(after_in_child=lambda: _held.locks.clear())


def holding() -> list[str]:
    """The names of the locks that this thread holds, where that is checked."""
    return [each.name for each in _held.locks]


class _Checked:
    """A lock that sees that it is taken in its turn."""

    def __init__(self, name: str, really: Any) -> None:
        self.name, self._really, self._rank = name, really, ORDER.index(name)
        self._born_under = set(_held.locks)  # nobody else knows of it before these are released
        self._born_here: list[_Checked] = []
        for each in self._born_under:
            each._born_here.append(self)

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As of `threading.Lock`.

        Raises:
            LockOrder: it would wait, and the thread holds one that stands below it.
        """
        held = _held.locks
        below = [each for each in held if each._rank >= self._rank and each not in self._born_under]
        if blocking and below and self not in held and not _held.is_alone:
            raise LockOrder(f"{self.name} was taken while {', '.join(holding())} were held: see checkpoint.locks.ORDER")
        taken: bool = self._really.acquire(blocking, timeout)
        if taken:
            held.append(self)
        return taken

    def release(self) -> None:
        """As of `threading.Lock`."""
        self._really.release()
        held = _held.locks
        for place in reversed(range(len(held))):
            if held[place] is self:
                del held[place]
                break
        if self not in held:
            while self._born_here:
                self._born_here.pop()._born_under.discard(self)

    def locked(self) -> bool:
        """As of `threading.Lock`."""
        return bool(self._really.locked())

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.release()


@contextmanager
def alone() -> Iterator[None]:
    """Take locks in any order meanwhile: no other thread of the process takes any, since it runs one command."""
    before, _held.is_alone = _held.is_alone, True
    try:
        yield
    finally:
        _held.is_alone = before


def lock(name: str) -> threading.Lock:
    """A lock of that place in the order."""
    made: Any = threading.Lock()
    return _Checked(name, made) if _IS_CHECKED else made  # type: ignore[return-value]


def rlock(name: str) -> threading.RLock:
    """One that a thread may take again."""
    made: Any = threading.RLock()
    return _Checked(name, made) if _IS_CHECKED else made  # type: ignore[return-value]


_IS_CHECKED = VARIABLE in os.environ


# --- what a collection comes upon ------------------------------------------------------------------------------------

_CALLS = "checkpoint.execution.call"  # what it calls is the user's: no lock of ours is held meanwhile
_FOLDERS = "api execution passes storage catalog provenance values remote maintenance reporting"
_ROOMS = tuple(f"checkpoint.{folder}." for folder in _FOLDERS.split())


def may_be_held(frame: FrameType | None) -> bool:
    """Whether this thread may hold a lock of this package: something of it is under way, but for the user's calls.

    Args:
        frame: of who asks; those that have called it are looked at.
    """
    frame = frame and frame.f_back
    while frame is not None:
        name = frame.f_globals.get("__name__") or ""
        if name == _CALLS:
            return False
        if name.startswith(_ROOMS):
            return True
        frame = frame.f_back
    return False


def elsewhere(act: Callable[[], object], name: str) -> None:
    """Have a thread of that name do it; from anywhere: this takes no lock, and waits for nothing."""

    def begin() -> None:
        try:
            threading.Thread(target=act, name=name, daemon=True).start()
        except RuntimeError:  # the system has no more threads
            act()

    # Not `threading.Thread` at once: it takes locks that this thread may hold.
    with suppress(RuntimeError):  # the process ends
        _thread.start_new_thread(begin, ())
