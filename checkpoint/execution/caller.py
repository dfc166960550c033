"""Which call of a checkpointed function the code runs in that asks.

The promise: code that a call runs, in its thread, its task or a copy of its context, finds the call; other code none.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["SOLE", "caller", "current_task", "enter_call", "enter_pass"]

SOLE: Final = object()
"""Stands for the item of a pass that makes one call at a time."""

_pass: ContextVar[Any] = ContextVar("checkpoint_pass", default=None)
_given: ContextVar[Any] = ContextVar("checkpoint_given", default=SOLE)


def enter_pass(keys: Any) -> None:
    """What runs in this context is called by a pass; `keys` knows its calls."""
    _pass.set(keys)
    _given.set(SOLE)


enter_call = _given.set
"""What runs in this context is called with this item, or list of items."""


def caller() -> tuple[Any, Any] | None:
    """(keys, item) of the call that this code runs in, as they were entered; None outside of any call."""
    keys = _pass.get()
    return None if keys is None else (keys, _given.get())


def current_task() -> int:
    """The id of the task of the event loop that runs in this thread; 0 where there is none."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None or asyncio._get_running_loop() is None:
        return 0
    return id(asyncio.current_task())
