"""A number for each key, by which it is known again: eight bytes where the key itself would take a hundred.

The promise: equal keys have one mark, in one process. Others have another one, but for one in 2**64 of texts.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from checkpoint.values.keys import Key, identity

__all__ = ["mark_of", "marks_of"]

_LEAST, _MOST = -(1 << 63), (1 << 63) - 1


def mark_of(key: Key) -> int:
    """The mark of a key: an int is its own."""
    if type(key) is str:
        return hash(key)
    if isinstance(key, (int, float)) and _LEAST <= key <= _MOST and key == int(key):
        return int(key)
    return hash(identity(key))


def marks_of(keys: Sequence[Key]) -> array[int]:
    """The mark of each key."""
    kinds = set(map(type, keys))
    if kinds == {str}:
        return array("q", map(hash, keys))
    if kinds == {int}:
        try:
            return array("q", keys)  # type: ignore[arg-type]
        except OverflowError:
            pass
    return array("q", map(mark_of, keys))
