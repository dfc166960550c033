"""What a store says to whoever keeps a copy of its journals elsewhere.

The promise: a store calls these methods in this order, and waits for nothing else: `look` before it reads; to write,
`take_turn`, `begin`, `start` and `end_turn`; `check` from time to time; `suspend` before a journal is replaced; and
`finish`, or `drain` before it, at the end. `let_go` may come at any time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = ["NoReplica", "Replica"]


class Replica(Protocol):
    """A copy of the journals elsewhere, from which they are brought up to date too."""

    @property
    def is_remote(self) -> bool:
        """Whether there is one at all: looking at it, and ending, may wait for a network."""

    @property
    def is_settled(self) -> bool:
        """Whether it has everything."""

    def look(self) -> None:
        """Bring what others wrote into the journals, unless it was done just now.

        Raises:
            StoreError: it cannot be reached, and nothing of it is known here.
        """

    def take_turn(self) -> None:
        """Wait until nobody else brings anything into the journals; call it before the lock is taken."""

    def end_turn(self) -> None:
        """Let others bring something."""

    def begin(self) -> None:
        """Begin to be written, and bring what others wrote; call it in turn and under the lock.

        Raises:
            CheckpointLocked: another machine writes.
            StoreError: it cannot be reached.
        """

    def start(self) -> None:
        """Copy what is appended from here on, in a thread."""

    def check(self) -> None:
        """Raise what has ended it, if anything has.

        Raises:
            CheckpointLocked: another machine has taken over.
        """

    def beside(self) -> str:
        """What stands beside a progress bar; "" while it keeps up."""

    def drain(self) -> bool:
        """Wait until it has everything; False where it fails for long."""

    def has_drained(self) -> bool:
        """`drain` for those who ask again and again, and wait themselves."""

    def suspend(self) -> None:
        """Wait until it has everything, and copy nothing until the end: a journal is about to be replaced.

        Raises:
            StoreError: it has not everything.
        """

    def lines_of(self, kind: str) -> Iterator[bytes]:
        """A journal as it is there, in runs of whole lines; call it when `suspend` has returned."""

    def clear(self) -> None:
        """Hold nothing any more when this returns.

        Raises:
            StoreError: it holds what it held.
        """

    def finish(self) -> None:
        """Wait as `drain` does, and end.

        Raises:
            NotUploaded: it has not everything.
        """

    def let_go(self) -> None:
        """End at once."""

    def after_fork(self) -> None:
        """In a forked child: hold nothing of the parent's."""


class NoReplica:
    """The journals are here only."""

    is_remote = False
    is_settled = True

    def look(self) -> None:
        """There is nothing to bring."""

    def take_turn(self) -> None:
        """Nobody brings anything."""

    def end_turn(self) -> None:
        """Nobody waits."""

    def begin(self) -> None:
        """There is nothing to begin."""

    def start(self) -> None:
        """There is nothing to start."""

    def check(self) -> None:
        """Nothing ends it."""

    def beside(self) -> str:
        """Nothing."""
        return ""

    def drain(self) -> bool:
        """There is nothing to wait for."""
        return True

    def has_drained(self) -> bool:
        """There is nothing to wait for."""
        return True

    def suspend(self) -> None:
        """Nothing is copied."""

    def lines_of(self, kind: str) -> Iterator[bytes]:
        """It holds nothing."""
        return iter(())

    def clear(self) -> None:
        """It holds nothing."""

    def finish(self) -> None:
        """There is nothing to end."""

    def let_go(self) -> None:
        """There is nothing to end."""

    def after_fork(self) -> None:
        """It holds nothing."""
