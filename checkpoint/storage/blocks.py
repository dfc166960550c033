"""Checksums of a journal's blocks: they vouch for what an index says of bytes that it has not read just now.

The promise: an offset that was learned from other bytes than those that stand in its block now is found out before it
is used, and so is, before a key counts as missing, a block in which it may stand.

The sums are those of the bytes from which the index was learned, as they were scanned or appended; never of what is
read later. Lines of many megabytes are not summed: their own checksums vouch for them.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from math import inf

from checkpoint import clock
from checkpoint.storage.reader import Reader

__all__ = ["AT_ONCE", "BLOCK_SIZE", "LOOK_AGAIN", "BlockSums", "Doubt", "State", "Trust"]

BLOCK_SIZE = 64 << 10
"""Bytes that one checksum is of: reading and summing so many takes as long as reading some records."""
AT_ONCE = 1 << 20
"""Bytes of a journal that are read as soon as they are in doubt: it takes a millisecond."""
LOOK_AGAIN = 0.05
"""Seconds from one look to the next at what is known of a journal that grows, where it is short."""
_SECONDS_A_BYTE = 1e-7  # the same for a long one: about a hundred times as long as it takes to read it
_UNKNOWN = 0  # the sum of a block that was not summed; where a block really has it, nothing but that check is lost


class BlockSums:
    """The checksums of a journal's first `end` bytes, block by block; the last block grows.

    Args:
        end: bytes that are summed already.
        last: the sum of the last block, as far as it goes.
        load: gives the sums of the whole blocks before it; called once they are needed.
    """

    def __init__(self, end: int = 0, last: int = _UNKNOWN, load: Callable[[], array[int]] | None = None) -> None:
        self._size = BLOCK_SIZE
        self._whole = array("I")
        self._load = load
        self._last = last
        self._is_known = end % self._size == 0 or last != _UNKNOWN  # whether the last block is summed from its start
        self._end = end
        self._pending: list[bytes] = []
        self._waiting = 0

    @property
    def end(self) -> int:
        """How many bytes are summed."""
        return self._end + self._waiting

    def add(self, data: bytes) -> None:
        """These bytes follow. Small pieces are kept until there are enough to be summed at once."""
        if len(data) >= self._size:
            self._settle()  # by itself: what is long is not copied
        self._pending.append(data)
        self._waiting += len(data)
        if self._waiting >= self._size:
            self._settle()

    def skip(self, size: int) -> None:
        """So many bytes follow that nobody sums: what stands in their blocks is believed."""
        self._settle()
        before = self._end
        self._end += size
        if crossed := self._end // self._size - before // self._size:
            whole = self._sums()
            whole.extend([_UNKNOWN] * crossed)
        self._last, self._is_known = _UNKNOWN, self._end % self._size == 0

    def align(self, end: int) -> None:
        """What follows comes from `end` on, wherever the sums have got to: an exception may have come between."""
        if self.end == end:
            return
        if self.end < end:
            self.skip(end - self.end)
            return
        self._settle()
        whole = self._sums()
        del whole[end // self._size :]
        self._end, self._last, self._is_known = end, _UNKNOWN, end % self._size == 0

    def state(self) -> tuple[bytes, int]:
        """(the sums of whole blocks, that of the last one): what a file of the index keeps."""
        self._settle()
        return self._sums().tobytes(), self._last if self._is_known else _UNKNOWN

    def fits(self, reader: Reader, block: int) -> bool:
        """Whether a block of the journal holds the bytes that were summed, as far as these go.

        Raises:
            StoreError: the journal cannot be read.
        """
        self._settle()
        whole, start = self._sums(), block * self._size
        if block < len(whole):
            size, expected = self._size, whole[block]
        else:
            size, expected = self._end - start, self._last if self._is_known else _UNKNOWN
        if size <= 0 or expected == _UNKNOWN:
            return True
        data = reader.pread(size, start)
        return len(data) == size and zlib.crc32(data) == expected

    def fits_at(self, reader: Reader, offset: int) -> bool:
        """`fits` of the block that a place is in."""
        return self.fits(reader, offset // self._size)

    def count(self, end: int) -> int:
        """How many blocks so many bytes stand in."""
        return -(-end // self._size)

    def number(self, offset: int) -> int:
        """The block that a place is in."""
        return offset // self._size

    def _sums(self) -> array[int]:
        if self._load is not None:
            loaded = self._load()
            self._whole, self._load = loaded, None
        return self._whole

    def _settle(self) -> None:
        pending, self._pending, self._waiting = self._pending, [], 0
        data = memoryview(b"".join(pending)) if len(pending) != 1 else memoryview(pending[0])
        while data:
            part = data[: self._size - self._end % self._size]
            self._last = zlib.crc32(part, self._last) if self._is_known else _UNKNOWN
            self._end += len(part)
            data = data[len(part) :]
            if self._end % self._size == 0:
                self._sums().append(self._last)
                self._last, self._is_known = 0, True


class Doubt:
    """Blocks for which nothing vouches until they are read: each fits its checksum, or the index is of other bytes.

    Args:
        sums: what they should be.
        end: how many bytes of the journal are in doubt.
    """

    def __init__(self, sums: BlockSums, end: int) -> None:
        self._sums = sums
        self._open = bytearray(b"\1") * sums.count(end)
        self._left = len(self._open)

    @property
    def is_over(self) -> bool:
        """Whether every block was read."""
        return self._left == 0

    def fits(self, reader: Reader, offset: int) -> bool:
        """Whether the block at a place holds what the index was learned from; it is read the first time only."""
        block = self._sums.number(offset)
        return block >= len(self._open) or not self._open[block] or self._read(reader, block)

    def fits_all(self, reader: Reader) -> bool:
        """Whether all blocks do."""
        block = -1
        while (block := self._open.find(1, block + 1)) >= 0:
            if not self._read(reader, block):
                return False
        return True

    def _read(self, reader: Reader, block: int) -> bool:
        if not self._sums.fits(reader, block):
            return False
        self._open[block] = 0
        self._left -= 1
        return True


State = tuple[int, int]
"""A journal's size, and when it was modified, in nanoseconds: equal as long as nobody writes it."""


class Trust:
    """Whether what an index knows of a journal still stands there: what is in doubt is read before it is used.

    A journal that only grew is looked at again from time to time: programs edit it while others append.

    Attributes:
        seen: the journal's state when it was last looked at.
        doubt: the blocks that are to be read before they are believed; None where there are none.
    """

    def __init__(self) -> None:
        self.seen: State = (0, 0)
        self.doubt: Doubt | None = None
        self._sure_at = -inf  # monotonic; when all of it was last known to fit
        self._owes_look = False

    def assure(self, state: State) -> None:
        """All that is known was read from, or written to, the journal in this state."""
        self.seen, self.doubt = state, None
        self._sure_at, self._owes_look = clock.monotonic(), False

    def suspect(self, reader: Reader, sums: BlockSums, end: int, state: State) -> bool:
        """Nothing vouches for the first `end` bytes: a short journal is read at once, of a long one what is used.

        Returns whether the index may be asked still.
        """
        self.assure(state)
        if end:
            self.doubt = Doubt(sums, end)
        return end > AT_ONCE or self.fits(reader)

    def has_news(self, state: State) -> bool:
        """Whether the journal is to be looked at again."""
        return state != self.seen or self._owes_look

    def look(self, reader: Reader, sums: BlockSums, end: int, state: State) -> bool:
        """The journal was written by somebody; returns whether what is known of it may be asked still."""
        has_grown = state[0] > end or state == self.seen
        if has_grown and clock.monotonic() < self._sure_at + max(LOOK_AGAIN, end * _SECONDS_A_BYTE):
            self.seen, self._owes_look = state, True
            return True
        return self.suspect(reader, sums, end, state)

    def fits(self, reader: Reader, offset: int | None = None) -> bool:
        """Whether the block at a place, or each, holds what the index was learned from, as far as that is in doubt."""
        doubt = self.doubt
        if doubt is None:
            return True
        fits = doubt.fits_all(reader) if offset is None else doubt.fits(reader, offset)
        if doubt.is_over:
            self.doubt = None
        return fits
