"""The digests of items' content, by which a result counts for an item: 127 bits each, and a bit for what they are of.

The promise: two items of one key that differ are told apart, whoever made them. Earlier versions of this library wrote
63 bits, which are the beginning of the same digest: they stay readable, and are compared as far as they go.

A digest is an int of 128 bits, 0 for none; on disk it is 32 hex digits. A digest of an earlier version fills the upper
half only: its lower half is 0, which that of a full digest never is.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Iterator, Set
from typing import Final

__all__ = ["LOW", "Digests", "are_alike", "are_apart", "digest_from", "halves_of"]

LOW: Final = (1 << 64) - 1
"""The lower half of a digest."""
_FEW = 8  # halves that are searched for one by one


def are_alike(known: int, digest: int) -> bool:
    """Whether a digest that stands in a record is that of the same content; where it is short, as far as it goes."""
    return known == digest or (not known & LOW and known >> 64 == digest >> 64)


def are_apart(wanted: Set[int], halves: array[int]) -> bool:
    """Whether no half of a digest that is wanted stands in the array; fast where few are wanted."""
    if len(wanted) > _FEW:
        return wanted.isdisjoint(halves)
    data = halves.tobytes()  # to search bytes takes a tenth of what it takes to make a number of each half
    return not any(_stands_in(data, array("Q", [half]).tobytes()) for half in wanted)


def _stands_in(data: bytes, half: bytes) -> bool:
    place = data.find(half)
    while place % 8 and place >= 0:  # the end of one half and the beginning of the next look like it
        place = data.find(half, place + 1)
    return place >= 0


def digest_from(text: str) -> int:
    """The digest in a record, of 32 hex digits, or 16.

    Raises:
        ValueError: it is no number.
    """
    number = int(text, 16)
    return number & (LOW << 64 | LOW) if len(text) > 16 else (number & LOW) << 64


class Digests:
    """Many digests, in 16 bytes each.

    Args:
        high: the upper half of each.
        low: the lower half of each.
    """

    __slots__ = ("high", "low")

    def __init__(self, high: Iterable[int] = (), low: Iterable[int] = ()) -> None:
        self.high, self.low = array("Q", high), array("Q", low)

    @classmethod
    def none(cls, count: int) -> Digests:
        """So many, none of which is known."""
        return cls.of(bytes(16 * count))

    @classmethod
    def of(cls, data: bytes) -> Digests:
        """What `tobytes` gave, in this machine's order of bytes."""
        made = cls()
        made.high.frombytes(data[: len(data) // 2])
        made.low.frombytes(data[len(data) // 2 :])
        return made

    def tobytes(self) -> bytes:
        """All upper halves, then all lower ones."""
        return self.high.tobytes() + self.low.tobytes()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digests) and self.high == other.high and self.low == other.low

    __hash__ = None  # type: ignore[assignment]  # it may be changed

    def __len__(self) -> int:
        return len(self.high)

    def __iter__(self) -> Iterator[int]:
        for high, low in zip(self.high, self.low, strict=True):
            yield high << 64 | low

    def __getitem__(self, place: int) -> int:
        return self.high[place] << 64 | self.low[place]

    def __setitem__(self, place: int, digest: int) -> None:
        self.high[place], self.low[place] = digest >> 64, digest & LOW

    def __add__(self, other: Digests) -> Digests:
        return Digests(self.high + other.high, self.low + other.low)

    def part(self, places: slice) -> Digests:
        """Those at some places."""
        return Digests(self.high[places], self.low[places])

    def put(self, places: slice, digests: Digests) -> None:
        """Replace those at some places."""
        self.high[places], self.low[places] = digests.high, digests.low


def halves_of(data: bytes) -> tuple[array[int], array[int]]:
    """The upper and the lower halves of digests that follow each other, with the highest byte first."""
    halves = array("Q", data)
    if sys.byteorder == "little":
        halves.byteswap()
    return halves[::2], halves[1::2]
