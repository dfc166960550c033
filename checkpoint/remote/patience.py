"""Who waits for a store that does not answer is told so.

The promise: a wait of more than a few seconds without an answer says once at WARNING what it waits for.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from checkpoint import clock

__all__ = ["SLOW", "Asked", "telling"]

log = logging.getLogger("checkpoint")

SLOW = 5.0
"""Seconds without an answer."""


class Asked(Protocol):
    """What is asked, as `Objects`.

    Attributes:
        url: where it is.
        waits_for: what has not been answered, in words, or "".
        answered_at: when something was answered last; monotonic.
    """

    url: str
    waits_for: str
    answered_at: float


@contextmanager
def telling(asked: Asked) -> Iterator[None]:
    """Watch a wait, and say once where nothing is answered for a while."""
    over = threading.Event()
    try:
        threading.Thread(target=_watch, args=(asked, over), name="checkpoint-watch", daemon=True).start()
    except RuntimeError:
        pass  # the process ends, or has no thread to spare: then nobody is told
    try:
        yield
    finally:
        over.set()


def _watch(asked: Asked, over: threading.Event) -> None:
    begun = clock.monotonic()
    while True:
        left = max(begun, asked.answered_at) + SLOW - clock.monotonic()
        if left <= 0:
            break
        if over.wait(left):
            return
    log.warning(
        "%s has not answered for %.0f s; waiting for it to %s. The wait ends by an error, or by Ctrl-C",
        asked.url, SLOW, asked.waits_for or "let another process of this machine read it",
    )  # fmt: skip
