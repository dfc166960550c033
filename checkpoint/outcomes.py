"""The nouns that travel: what a pass works on, and what comes of it. Frozen, slotted, picklable.

Those that are made for every item are structs of msgspec, which are made four times as fast as dataclasses; those that
cannot be part of a reference cycle are not tracked by the garbage collector (``gc=False``).

An *item* is the user's; its *key* identifies it; a *unit* is what one call works on; an *outcome* is how that went.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeVar

import msgspec

from checkpoint.errors import GiveUp

if TYPE_CHECKING:
    from checkpoint.errors import UnencodableValue

__all__ = [
    "NOT_RUN",
    "NOT_YET",
    "Done",
    "Encoded",
    "Failure",
    "Outcome",
    "Success",
    "Unit",
    "Uploaded",
    "describe_exception",
    "shortened",
]


R = TypeVar("R")
_MOST_OF_MESSAGE = 10_000  # characters of an exception's message that are kept
_MOST_OF_LINE, _MOST_OF_TRACEBACK = 1_000, 100_000  # of a traceback, in which the message stands again


class Unit(msgspec.Struct, frozen=True, gc=False):
    """One call's worth of work: an item with its key, and the digest of its content (0 where there is none)."""

    item: Any
    key: Any
    digest: int = 0


class Encoded(NamedTuple):
    """A value that was encoded where it was made: its function may change it in its next call.

    Attributes:
        value: as it is; what it was is in `raw`.
        raw: its encoding, or why it has none.
    """

    value: Any
    raw: bytes | UnencodableValue


class Success(msgspec.Struct, frozen=True, gc=False):
    """The function returned `value` after `elapsed` seconds (its share of a batch's), at the `attempts`-th attempt.

    The value may be `Encoded`; `notes` are the fields that all attempts noted.
    """

    value: Any
    elapsed: float | None = None
    attempts: int | None = None
    notes: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """The function raised. Plain text travels to disk; `exception` stays in this process, where there is one.

    Attributes:
        message: `str(exception)`.
        type: the exception's type name, qualified unless it is a builtin.
        traceback: plain text: file, line and code; never locals or arguments.
        elapsed: seconds that the last call took; of a batch, an item's share.
        attempts: how many calls were made; those that only told to come again later (Retry-After) do not count.
        given_up: whether later runs are to leave the item alone.
        paid: what the call returned, where its value was refused; None where it returned nothing.
        notes: the fields that the calls noted.
        denied: why the server refuses everybody with this key ("HTTP 401"); empty where it does not.
    """

    message: str
    type: str | None = None
    traceback: str | None = None
    elapsed: float | None = None
    attempts: int | None = None
    exception: BaseException | None = field(default=None, compare=False)
    paid: Success | None = field(default=None, compare=False)
    given_up: bool = False
    notes: dict[str, Any] | None = None
    denied: str = ""

    def counted(self, attempts: int, notes: dict[str, Any] | None = None) -> Failure:
        """The same, after so many attempts, which noted these fields."""
        return replace(self, attempts=attempts, notes=notes)

    def without_exception(self) -> Failure:
        """The same, in plain text only."""
        return replace(self, exception=None)


class Done(msgspec.Struct, frozen=True):
    """A unit and how it ended: what an engine hands to `settle`."""

    unit: Unit
    outcome: Success | Failure


@dataclass(frozen=True, slots=True)
class Outcome(Generic[R]):
    """What `stream` yields for an item, once it is on disk.

    Attributes:
        item: the item, as it was given.
        key: its key.
        value: the decoded result, or None where it failed.
        error: the exception (an `ItemError` for a failure read from disk), or None.
        source: "resumed" when it was there before this pass, "fresh" when this pass made it.

    Example:
        >>> Outcome(item=3, key=3, value=9, error=None, source="fresh").ok
        True
    """

    item: Any
    key: Any
    value: R | None
    error: Exception | None
    source: Literal["resumed", "fresh"]

    @property
    def ok(self) -> bool:
        """Whether there is a result."""
        return self.error is None


def describe_exception(
    exception: BaseException, *, elapsed: float | None = None, attempts: int | None = None, skip: int = 0
) -> Failure:
    """A `Failure` with the exception's type, message and plain traceback, less its first `skip` frames (ours)."""
    kind = type(exception)
    where = kind.__module__
    name = kind.__qualname__ if where in ("builtins", "__main__", "__mp_main__") else f"{where}.{kind.__qualname__}"
    try:
        message = shortened(str(exception), _MOST_OF_MESSAGE)
    except Exception as broken:  # a user's __str__ may raise; the failure must still be recorded
        message = f"<{name} whose str() raises {type(broken).__name__}>"
    frames = exception.__traceback__
    for _ in range(skip):
        if frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
    try:
        text = _bounded("".join(traceback.format_exception(kind, exception, frames)))
    except Exception as broken:
        text = f"{name}: {message} (its traceback could not be formatted: {type(broken).__name__})"
    given_up = isinstance(exception, GiveUp)
    return Failure(message, name, text, elapsed, attempts, exception, given_up=given_up)


def shortened(text: str, most: int = _MOST_OF_MESSAGE) -> str:
    """The text, of which at most so many characters go to disk, and how many there were."""
    return text if len(text) <= most else f"{text[:most]}… (cut; it had {len(text):,} characters)"


def _bounded(text: str) -> str:
    """A traceback of bounded length: whole lines from its beginning and its end, none of them long."""
    if len(text) <= _MOST_OF_LINE:
        return text
    lines = [line if len(line) <= _MOST_OF_LINE else f"{line[:_MOST_OF_LINE]}…" for line in text.split("\n")]
    if sum(map(len, lines)) <= _MOST_OF_TRACEBACK:
        return "\n".join(lines)
    half = _MOST_OF_TRACEBACK // _MOST_OF_LINE // 2
    return "\n".join([*lines[:half], f"  … ({len(lines) - 2 * half:,} lines left out)", *lines[-half:]])


NOT_RUN: Final = -(1 << 63)
"""The place of an item that was not run, since the pass was ended early."""

NOT_YET: Final = object()
"""Stands for the next item, where that is awaited."""


class Uploaded(NamedTuple):
    """How far the store is behind.

    Attributes:
        bytes: how many are in the local journals only.
        seconds: how long the first of them has been waiting; 0 where none does.
        failing: why the last upload failed, or "".
    """

    bytes: int
    seconds: float
    failing: str
