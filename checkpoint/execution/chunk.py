"""The calls that a worker makes one after the other, as far as a call that takes steps must know of them.

The promise: a call that takes a step keeps no other call waiting: what was made before it is handed over, and what was
to be made after it is given back, for any worker to make. Else two calls could wait for each other, each behind the
other in a row.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Final

__all__ = ["Chunk", "chunk_here", "enter_chunk"]

_chunk: Final[ContextVar[Chunk | None]] = ContextVar("checkpoint_chunk", default=None)
enter_chunk = _chunk.set
"""What runs in this context is one of the calls of a chunk."""
chunk_here = _chunk.get
"""The chunk that the call is of that this code runs in; None where it is made alone."""


class Chunk:
    """Several calls, made one after the other.

    Args:
        give_back: is told the place of the call that is made, and the answers of those before.

    Attributes:
        answers: of the calls that were made.
        first: the place of the call from which on they are still answered together; more than 0 once it was split.
        is_split: whether the others were given back.
    """

    __slots__ = ("_give_back", "answers", "first", "is_split")

    def __init__(self, give_back: Callable[[int, list[Any]], None]) -> None:
        self._give_back = give_back
        self.answers: list[Any] = []
        self.first = 0
        self.is_split = False

    def split(self) -> None:
        """Hand over what was made, and give back what was not: the call that is being made goes on alone."""
        if self.is_split:
            return
        self.is_split = True
        self.first = len(self.answers)
        self._give_back(self.first, self.answers[:])
