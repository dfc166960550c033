"""Which call of a checkpointed function the code runs in that asks.

The promise: code that a call runs, in its thread, its task or a copy of its context, finds the call; other code none.

A call is a *frame*, a list: first what it was given, then the fields that its code noted, one dict for each `note`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Final

__all__ = [
    "SOLE", "Frame", "caller", "current_task", "enter_call", "enter_pass", "frame_here", "is_in_loop_by_hand",
    "loop_by_hand",
]  # fmt: skip

SOLE: Final = object()
"""Stands for the item of a pass that makes one call at a time."""

_pass: ContextVar[Any] = ContextVar("checkpoint_pass", default=None)
Frame = list[Any]
_frame: ContextVar[Frame] = ContextVar("checkpoint_frame", default=[SOLE])  # noqa: B039  # nobody notes where no pass is


def enter_pass(keys: Any) -> Frame:
    """What runs in this context is called by a pass; `keys` knows its calls. Returns the frame of its sole call."""
    _pass.set(keys)
    frame: Frame = [SOLE]
    _frame.set(frame)
    return frame


enter_call = _frame.set
"""What runs in this context is the call of this frame."""


def frame_here() -> Frame | None:
    """The frame of the call that this code runs in; None outside of any call."""
    return None if _pass.get() is None else _frame.get()


def caller() -> tuple[Any, Any] | None:
    """(keys, item) of the call that this code runs in, as they were entered; None outside of any call."""
    keys = _pass.get()
    return None if keys is None else (keys, _frame.get()[0])


_by_hand: list[int] = []  # the threads of loops by hand


@contextmanager
def loop_by_hand() -> Iterator[None]:
    """The user's own loop in this thread is given items: nothing notes what it does with them."""
    here = get_ident()
    _by_hand.append(here)
    try:
        yield
    finally:
        _by_hand.remove(here)


def is_in_loop_by_hand() -> bool:
    """Whether the thread is in a loop by hand."""
    return get_ident() in _by_hand


def current_task() -> int:
    """The id of the task of the event loop that runs in this thread; 0 where there is none."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return 0
    return id(asyncio.current_task())
