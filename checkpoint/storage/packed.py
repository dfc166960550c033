"""Many lines of a journal at once: their keys and places, decoded together and kept packed.

The promise: what a block of lines gives is what reading them one by one gives; where it might not, it gives nothing.
"""

from __future__ import annotations

from array import array
from io import BytesIO
from itertools import accumulate
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

import msgspec

from checkpoint.storage.record import CRC_SIZE, decode_even_heads
from checkpoint.values.digests import halves_of
from checkpoint.values.keys import Key, is_crowded

__all__ = ["Packed", "Place", "place_in"]

_encode, _decode_keys = msgspec.json.Encoder().encode, msgspec.json.Decoder(list[Any]).decode
_code_of = attrgetter("code")
_first, _last, _before_crc = itemgetter(0), itemgetter(-2), itemgetter(slice(-1 - CRC_SIZE, 7 - CRC_SIZE))  # of a line


class Place(NamedTuple):
    """Where a record starts in its journal, and the digest of the item it was computed from (0: not known)."""

    offset: int
    digest: int


class Packed(NamedTuple):
    """What is known of some lines that follow each other in the journal, all of one version.

    It takes a sixth of the memory that the same keys take in dicts.
    """

    version: str
    size: int  # how many
    text: bytes  # their keys, as a JSON array
    start: int  # where the first of them begins
    lengths: array[int]  # of each, its newline included
    inputs: bytes  # the digest of each one's item: sixteen bytes; b"" where none is known
    codes: list[str]  # that they name

    @classmethod
    def of(cls, offset: int, block: bytes) -> Packed | None:
        """A block of sound lines of one version and nothing else, at C speed; None for any other.

        Where each line begins with a brace and ends with one no value goes on in the next, so that two damaged lines
        never read as one record. Whether a checksum is right is asked when the value is read.
        """
        lines = BytesIO(block).readlines()  # faster by far than block.split
        try:
            heads = decode_even_heads(block)
            inputs = [head.input for head in heads]
            digests = bytes.fromhex("".join([text.ljust(32, "0") for text in inputs]))
            versions = {head.version for head in heads}
            if not (
                len(heads) == len(lines) == len(digests) / 16
                and {16, 32}.issuperset(map(len, inputs))
                and len(versions) == 1
                and set(map(_first, lines)) == {ord("{")}
                and set(map(_last, lines)) == {ord("}")}
                and set(map(_before_crc, lines)) == {b',"crc":"'}
            ):
                return None
            keys = [head.key for head in heads]
            if is_crowded(keys):
                return None
            text = _encode(keys)
        except (ValueError, RecursionError, IndexError, OverflowError):
            return None
        known = digests if digests.count(0) < len(digests) else b""
        codes = list(dict.fromkeys(map(_code_of, heads)))
        return cls(versions.pop(), len(lines), text, offset, array("I", list(map(len, lines))), known, codes)

    def keys(self) -> list[Key]:
        """In the order of the lines."""
        return _decode_keys(self.text)

    def places(self) -> array[int]:
        """The offset of each, and the halves of its digest."""
        places = array("Q", bytes(24 * self.size))
        offsets = array("Q", accumulate(self.lengths, initial=self.start))
        places[::3] = offsets[: self.size]  # the sum runs on past the last line
        if self.inputs:
            places[1::3], places[2::3] = halves_of(self.inputs)
        return places

    def find(self, key: Key, spelled: bytes) -> Place | None:
        """Where the last record of a key is, which `spelled` is the JSON of."""
        if spelled not in self.text or key not in (keys := self.keys()):
            return None
        row, places = self.size - 1 - keys[::-1].index(key), self.places()
        return place_in(places, row)


def place_in(places: array[int], row: int) -> Place:
    """The place in a row of offsets and halves of digests, three numbers each."""
    return Place(places[3 * row], places[3 * row + 1] << 64 | places[3 * row + 2])
