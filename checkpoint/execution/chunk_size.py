"""How many calls travel to a worker together.

The promise: calls that take microseconds travel together, as many as take about `SPAN`; calls that take longer than
that travel one by one. A worker that finds that its chunk takes longer hands back what it has not begun.

The size doubles while whole chunks take less than half of the span. From the first one that takes longer on, it grows
by an eighth, and shrinks to what the span has room for.
"""

from __future__ import annotations

from checkpoint.execution.answers import Answer, Returned

__all__ = ["MOST", "SPAN", "ChunkSize"]

SPAN = 0.02
"""Seconds that a chunk takes; a kill loses no more than that of the finished calls of each worker."""

MOST = 512
"""So many calls travel together at most: more would save nothing that is worth its memory."""


class ChunkSize:
    """The size of the chunks of one pass.

    Args:
        size: how many calls make a task; None: that adapts to how long they take, and begins with one.

    Attributes:
        size: how many travel together now.
        adapts: whether that changes.
    """

    def __init__(self, size: int | None) -> None:
        self.adapts = size is None
        self.size = 1 if size is None else size
        self._doubles = True

    def returned(self, asked: int, answers: list[Answer]) -> None:
        """A worker was given so many calls and has answered to these; the rest it has handed back."""
        if answers and type(answers[-1]) not in (tuple, Returned):
            return  # it ends where a call fails, so that no more fail than the pass allows
        spent = sum([answer[1] or 0.0 for answer in answers if type(answer) in (tuple, Returned)])
        if len(answers) < asked:
            self._shrink(max(1, len(answers) * 3 // 4))
        elif spent > SPAN:
            self._shrink(max(1, int(asked * SPAN / spent)))
        elif asked >= self.size and spent < SPAN / 2:
            self.size = min(MOST, self.size * 2 if self._doubles else self.size + max(1, self.size // 8))

    def _shrink(self, size: int) -> None:
        self._doubles = False
        self.size = min(self.size, size)
