"""SIGINT and SIGTERM during a pass: the first lets what runs finish, the second stops at once.

Only in the main thread, and only over Python's default handlers (asyncio's own counts as one): who has set a handler
keeps it. The handlers are put back in any case.
"""

from __future__ import annotations

import _thread
import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]

log = logging.getLogger("checkpoint")
_WATCHED = ("SIGINT", "SIGTERM")


class Interrupts:
    """A context in which signals are caught.

    Args:
        name: of the checkpoint.
        grace: seconds between the first signal and what the second one would do.
        wake: called when the first has come, from the handler: it must be as careful as one.
        at_once: called at the second one, from the handler: whether it sees to the end. Else that is raised where the
            main thread is.

    Attributes:
        asked: whether the first one has come.
        over: whether the second has, or the time is up.
    """

    def __init__(
        self, name: str, grace: float, wake: Callable[[], None], at_once: Callable[[], bool] = lambda: False
    ) -> None:
        self._name = name
        self._grace = grace
        self._wake = wake
        self._at_once = at_once
        self._before: dict[int, Any] = {}
        self._signal = 0
        self._ended = _thread.allocate_lock()
        self._last_word = _thread.allocate_lock()  # held while the time's end is signalled, and when it ends in time
        self.asked = False
        self.over = False

    def __enter__(self) -> Self:
        self._ended.acquire()
        if threading.current_thread() is threading.main_thread():
            for name in _WATCHED:
                number = getattr(signal, name, None)
                before = signal.getsignal(number) if number is not None else None
                if number is not None and _is_default(name, before):
                    self._before[number] = before
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        with self._last_word:
            self._ended.release()
        if threading.current_thread() is threading.main_thread():
            self._put_back()

    def _put_back(self) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._ended.locked():  # another thread has ended it, which cannot put handlers back
            self._as_before(number, frame)
            return
        self._signal = number
        if self.asked:
            over, self.over = self.over, True
            if not over and self._at_once():
                return
            self._put_back()  # what is raised here may come out anywhere, the way out included
            raise self.as_exception()
        self.asked = True
        # Not `threading.Thread`: it takes locks that the interrupted code may hold.
        _thread.start_new_thread(self._count_down, (number,))
        self._wake()

    def _as_before(self, number: int, frame: FrameType | None) -> None:
        self._put_back()
        before = self._before[number]
        if callable(before):
            before(number, frame)
        else:
            signal.signal(number, before)
            signal.raise_signal(number)

    def as_exception(self) -> BaseException:
        """What a pass that was interrupted raises."""
        if self._signal == getattr(signal, "SIGTERM", None):
            return SystemExit(128 + self._signal)
        return KeyboardInterrupt()

    def _count_down(self, number: int) -> None:
        again = "Ctrl-C again" if number == signal.SIGINT else f"a second {signal.Signals(number).name}"
        with self._last_word:
            if not self._ended.locked():
                return  # it has ended already: nothing is left to be stopped
            log.warning(
                "checkpoint %r: stopping: what runs may finish within %g s, and is saved; %s stops at once",
                self._name, self._grace, again,
            )  # fmt: skip
        if self._ended.acquire(timeout=min(self._grace, threading.TIMEOUT_MAX)):
            self._ended.release()
            return
        with self._last_word:
            if self._ended.locked():
                _signal_main_thread(number)


def _signal_main_thread(number: int) -> None:
    if hasattr(signal, "pthread_kill"):
        ident = threading.main_thread().ident
        assert ident is not None
        signal.pthread_kill(ident, number)
    else:
        _thread.interrupt_main(signal.Signals(number))


def _is_default(name: str, handler: Any) -> bool:
    if handler is (signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL):
        return True
    method = getattr(handler, "func", None)  # asyncio.run sets a partial of its runner's method
    return getattr(method, "__name__", "") == "_on_sigint" and getattr(method, "__module__", "") == "asyncio.runners"
