"""Passes that are suspended, and how one ends that its consumer has left.

The promise: closing a pass, or dropping it in your own code, blocks until it has ended. Where the garbage collector
drops it, in any line of any thread, to wait could deadlock: then nothing waits or takes a lock, and a thread that
begins for it ends the pass.

What a pass has open is kept alive here while it is suspended: a collection would else close its parts in no order, in
the thread that it comes upon. (So a stream that its own items lead back to is never collected: close it.)
"""

from __future__ import annotations

import _thread
import atexit
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Any, Self, TypeVar

from checkpoint import locks

__all__ = ["Stream", "Suspended", "hand_over", "look_after", "wait_for_left", "watch"]

T = TypeVar("T")

_ident = threading.get_ident
_LONGEST = 5.0  # seconds that the end of the process waits for what is ending


class Suspended:
    """What a consumer holds of a pass; when it is gone, so is the pass.

    Args:
        name: of the checkpoint.
        opened: what the pass has open; it has a method `close`, which ends it.
    """

    __slots__ = ("__weakref__", "_consumer", "_name", "_opened")

    def __init__(self, name: str, opened: Any) -> None:
        self._name, self._opened = name, opened
        self._consumer: int | None = None  # the thread that consumes, once it does

    def hold(self) -> None:
        """The thread that asks consumes: what is open stays so."""
        if self._consumer is None:
            _end_all_at_exit()
            _held[self._opened] = self._name
        self._consumer = threading.get_ident()

    def end(self) -> None:
        """End it here, and wait for what that takes."""
        try:
            self._opened.close()
        finally:
            _held.pop(self._opened, None)

    def let_go(self) -> None:
        """It has ended."""
        _held.pop(self._opened, None)

    def __enter__(self) -> Self:
        self.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not GeneratorExit:  # of a coroutine that is let go of: so is this
            try:
                self._opened.__exit__(kind, error, traceback)
            finally:
                _held.pop(self._opened, None)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if is_finalizing() or self._opened not in _held:  # later, nothing that this module names is there any more
            return
        dropped = sys.getrefcount(self) == _Probe.count
        if dropped and self._consumer == threading.get_ident() and not locks.may_be_held(sys._getframe()):
            self.end()
        else:
            hand_over(self._opened)


class Stream(Suspended, Iterator[T]):
    """What a generator yields that runs a pass.

    Args:
        name: of the checkpoint.
        steps: the generator.
    """

    __slots__ = ("_steps",)

    def __init__(self, name: str, steps: Generator[T, None, None]) -> None:
        super().__init__(name, steps)
        self._steps: Any = steps

    def __next__(self) -> T:
        if self._consumer != _ident():
            self.hold()
        try:
            return next(self._steps)  # type: ignore[no-any-return]
        except BaseException:
            if self._steps.gi_frame is None:  # else another thread is at it
                self.let_go()
            raise

    def throw(self, error: Any) -> T:
        """Raise an exception where the pass is suspended, as generators do."""
        self.hold()
        try:
            return self._steps.throw(error)  # type: ignore[no-any-return]
        finally:
            if self._steps.gi_frame is None:
                self.let_go()

    def close(self) -> None:
        """End the pass, as leaving a loop does."""
        self.end()


class _Probe:
    """Finds how many references there are to what is finalized because the last one is gone, and by no collection."""

    count = 0

    def __del__(self) -> None:
        _Probe.count = sys.getrefcount(self)


_Probe()
_held: dict[Any, str] = {}  # what suspended passes have open, with the names of their checkpoints
_watched: weakref.WeakKeyDictionary[Any, Callable[[], bool]] = weakref.WeakKeyDictionary()


# --- the end, elsewhere ----------------------------------------------------------------------------------------------


class _Left:
    """A pass that was left, and is being ended.

    Attributes:
        name: of the checkpoint.
        thread: that ends it, once it does.
        ended: is free when it has ended.
    """

    def __init__(self, name: str, end: Callable[[], object]) -> None:
        self.name, self._end = name, end
        self.thread: int | None = None
        self.ended = _thread.allocate_lock()
        self.ended.acquire()

    def run(self) -> None:
        """End it."""
        self.thread = threading.get_ident()
        try:
            self._end()
        finally:
            _left.remove(self)
            self.ended.release()


_left: list[_Left] = []


def hand_over(opened: Any) -> None:
    """Have another thread end a pass; from anywhere: this takes no lock, and waits for nothing.

    Args:
        opened: what the pass has open.
    """
    name = _held.pop(opened, None)
    if name is None:  # somebody else has
        return
    left = _Left(name, opened.close)
    _left.append(left)
    locks.elsewhere(left.run, "checkpoint-end")


def watch(opened: Any, is_gone: Callable[[], bool]) -> None:
    """Note what tells that nobody consumes a pass any more, which is not dropped all the same."""
    _watched[opened] = is_gone


def look_after(opened: Any) -> None:
    """Have the pass ended if nobody consumes it any more."""
    if _watched[opened]():
        hand_over(opened)


def wait_for_left(name: str) -> None:
    """Wait until the passes of that checkpoint that were left have ended: another one may begin then.

    It takes at most the time that these passes give to what runs.
    """
    for opened, its_name in list(_held.items()):
        if its_name == name and opened in _watched:
            look_after(opened)
    for left in _left[:]:
        if left.name == name and left.thread != threading.get_ident():
            left.ended.acquire()
            left.ended.release()


def _end_all() -> None:
    """At exit, while threads still run: later, who lets go of a pass would wait for them for ever."""
    for opened in list(_held):
        with suppress(ValueError):  # another thread is at it
            opened.close()
    for left in _left[:]:
        if left.ended.acquire(timeout=_LONGEST):
            left.ended.release()


@cache
def _end_all_at_exit() -> None:
    atexit.register(_end_all)  # later than what closes stores, and so called earlier
