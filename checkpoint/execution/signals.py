"""SIGINT, SIGTERM and SIGHUP during a pass: the first lets what runs finish, the second stops at once.

Only of passes in the main thread, and only over Python's default handlers (asyncio's own counts as one): who has set a
handler keeps it. All passes share one handler, which the first of them sets. It is gone when the last has ended,
whichever thread ends it, and in what is forked meanwhile.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any, Self

__all__ = ["Interrupts"]

log = logging.getLogger("checkpoint")
_WATCHED = ("SIGINT", "SIGTERM", "SIGHUP")
_STATUS = 128 + signal.SIGTERM  # SIGHUP is taken as SIGTERM is


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
        self._signal = 0
        self._ended = _thread.allocate_lock()
        self._last_word = _thread.allocate_lock()  # held while the time's end is signalled, and when it ends in time
        self.asked = False
        self.over = False

    def __enter__(self) -> Self:
        self._ended.acquire()
        if _is_main_thread():
            _take(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()

    def let_go(self) -> None:
        """Catch no more; at once, where whoever ends the pass still waits for something."""
        with self._last_word:
            if self._ended.locked():
                self._ended.release()
        if self in _passes:
            _passes.remove(self)
            if not _passes:
                _put_back() if _is_main_thread() else _put_back_soon()

    def ask(self, number: int) -> bool:
        """Take the first signal, in the handler; returns whether there is a thread that counts down."""
        self._signal, self.asked = number, True
        try:
            # Not `threading.Thread`: it takes locks that the interrupted code may hold.
            _thread.start_new_thread(self._count_down, (number,))
        except RuntimeError:  # the process ends (Python 3.12), or the system has no more threads
            return False
        self._wake()
        return True

    def end(self, number: int) -> bool:
        """Take the second one, in the handler; returns whether somebody sees to the end."""
        over, self.over = self.over, True
        self._signal, self.asked = number, True
        return not over and self._at_once()

    def as_exception(self) -> BaseException:
        """What a pass that was interrupted raises."""
        return KeyboardInterrupt() if self._signal in (0, signal.SIGINT) else SystemExit(_STATUS)

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


# --- the handler, which all passes share -----------------------------------------------------------------------------

_passes: list[Interrupts] = []  # that catch signals
_before: dict[int, Any] = {}  # what stood for each signal where the handler does


def _take(interrupts: Interrupts) -> None:
    """Have the pass catch signals; in the main thread."""
    for name in _WATCHED:
        number = getattr(signal, name, None)
        if number is not None and _is_default(name, handler := signal.getsignal(number)):
            _before[number] = handler
            signal.signal(number, _on_signal)
    _passes.append(interrupts)


def _put_back() -> None:
    for number, before in _before.items():
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, _as_it_would_be(before))
    _before.clear()


def _as_it_would_be(before: Any) -> Any:
    """The handler that would stand there by now: `asyncio.run` puts its own away when its main task has ended."""
    if not _is_of_asyncio(before):
        return before
    main_task = before.keywords.get("main_task")
    return signal.default_int_handler if main_task is not None and main_task.done() else before


def _put_back_soon() -> None:
    """Put the handlers back when the main thread next runs Python code: no other thread may.

    Where it cannot be asked, the next signal does, or the end of the next pass: until then the handler does as before.
    """
    try:
        add, put_back = _pending_call()
    except ImportError:  # ctypes is missing
        return
    add(put_back, None)


@cache
def _pending_call() -> tuple[Any, Any]:
    import ctypes

    def put_back(_: object) -> int:
        if not _passes:
            _put_back()
        return 0

    return ctypes.pythonapi.Py_AddPendingCall, ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(put_back)


def _on_signal(number: int, frame: FrameType | None) -> None:
    passes = _passes[:]
    if not passes:
        _as_before(number, frame)
        return
    if not any(each.asked for each in passes) and all(each.ask(number) for each in passes):
        return
    seen_to = [each.end(number) for each in passes]
    if not all(seen_to):
        _passes.clear()  # what is raised here may come out anywhere, the way out included
        _put_back()
        raise passes[-1].as_exception()


def _as_before(number: int, frame: FrameType | None) -> None:
    """Do what stood there before: another thread has ended the last pass."""
    before = _as_it_would_be(_before.get(number, signal.SIG_DFL))
    _put_back()
    if callable(before):
        before(number, frame)
    elif before is not signal.SIG_IGN:
        signal.signal(number, before)
        signal.raise_signal(number)


def _forget_in_child() -> None:
    _passes.clear()
    _put_back()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def _is_main_thread() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def _is_default(name: str, handler: Any) -> bool:
    if handler is (signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL):
        return True
    return _is_of_asyncio(handler)


def _is_of_asyncio(handler: Any) -> bool:
    """Whether it is that of `asyncio.run`: a partial of its runner's method."""
    method = getattr(handler, "func", None)
    return getattr(method, "__name__", "") == "_on_sigint" and getattr(method, "__module__", "") == "asyncio.runners"
