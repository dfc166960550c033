"""Reading a journal: by place, by blocks of whole lines, and from its end.

The promise: a reader reads one file, whatever is put in its place; and however many there are, no more descriptors stay
open than a process can spare.

Journals are read with `pread`, never mapped: mapping a file that another process cuts kills Python.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint import locks
from checkpoint.errors import DamagedRecord, JournalLost, printable, quote, shorten
from checkpoint.storage.files import (
    fsync,
    open_file,
    store_error,
    when_too_many,
)
from checkpoint.storage.record import CRC_SIZE, Record, is_hopeless, parse
from checkpoint.storage.unsynced import leave_mark

if sys.platform != "win32":
    import resource

__all__ = ["BLOCK", "LONG_LINE", "PROBE", "Reader", "most_idle", "pread"]

log = logging.getLogger("checkpoint")
BLOCK = 112 << 10  # of 128 KiB and more, malloc asks the system for new memory each time
PROBE = 64
_TAIL = 4096
_FIRST = 4096  # bytes of a line that are read first
LONG_LINE = 16 << 20
"""Bytes of a line from which on it is not read whole where that is not needed."""
_CANNOT_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # Windows, by a descriptor that only reads


_counter = count()


class _Descriptor:
    """A file descriptor, closed when the last one who holds it lets go."""

    __slots__ = ("__weakref__", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class _Left(NamedTuple):
    """What tells a file from others, so that it is known again by its path.

    Nothing that is appended changes it, nor does the repair of a torn end.
    """

    device: int
    inode: int
    end: int  # of its whole lines
    probe: bytes  # the last bytes before that

    @classmethod
    def of(cls, fd: int) -> _Left:
        state = os.fstat(fd)
        start = max(0, state.st_size - _TAIL)
        data = pread(fd, _TAIL, start)
        cut = data.rfind(b"\n") + 1
        return cls(state.st_dev, state.st_ino, start + cut if cut else 0, data[max(0, cut - PROBE) : cut])

    def fits(self, fd: int) -> bool:
        state = os.fstat(fd)
        if (state.st_dev, state.st_ino) != (self.device, self.inode) or state.st_size < self.end:
            return False
        return pread(fd, len(self.probe), self.end - len(self.probe)) == self.probe


class Reader:
    """A journal file, for anyone to read.

    Whoever holds it (`hold`) keeps the bytes: what replaces or unlinks the file does not touch them. Of readers that
    nobody holds the descriptor may be let go (`let_go_when_idle`), and is opened again when they read.

    Attributes:
        can_be_held: whether `hold` keeps the file open.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._held: _Descriptor | None = _Descriptor(fd)
        self._last: weakref.ref[_Descriptor] = weakref.ref(self._held)
        self._left: _Left | None = None
        self._is_shared = False
        self.can_be_held = True

    @classmethod
    def open(cls, path: Path) -> Reader | None:
        """The file at `path`, or None where there is none yet."""
        try:
            return cls(path, open_file(path, os.O_RDONLY))
        except FileNotFoundError:
            return None
        except OSError as error:
            unreadable = "it is not readable for this user; change its permissions"
            advice = unreadable if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise store_error(error, "cannot open", path, advice) from error

    def hold(self) -> object:
        """What keeps the file open: as long as somebody has it, this reader reads the bytes that are there now.

        Where it cannot be held, since it is one of too many, a file that was replaced is told when it is read.

        Raises:
            StoreError: it had been let go, and cannot be opened again.
        """
        return (self._held or self._open_again()) if self.can_be_held else None

    def let_go_when_idle(self) -> None:
        """Close the descriptor once many others were opened later, unless somebody holds it."""
        if not self._is_shared:
            self._is_shared = True
            _idle.append(weakref.ref(self))
            _let_go_of_idle(most_idle())

    def let_go(self) -> None:
        """Close the descriptor, unless somebody holds it, until something is read."""
        held = self._held
        if held is None:
            return
        try:
            self._left = _Left.of(held.fd)
        except OSError:
            self._is_shared = False
            return  # who reads it is told
        self._held, self._is_shared = None, False

    def _open_again(self) -> _Descriptor:
        left, held = self._left, self._last()
        if held is None:
            assert left is not None
            try:
                held = _Descriptor(open_file(self.path, os.O_RDONLY))
                is_same = left.fits(held.fd)
            except FileNotFoundError:
                is_same = False
            except OSError as error:
                raise store_error(error, "cannot open", self.path) from error
            if held is None or not is_same:
                raise JournalLost(
                    f"{self.path} was replaced or deleted while nobody read it; run the same line again to read what "
                    "is there",
                    errno=errno.ESTALE,
                    strerror="stale file handle",
                    filename=str(self.path),
                )
            self._last = weakref.ref(held)
        self._held = held
        self.let_go_when_idle()
        return held

    def state(self) -> tuple[int, int]:
        """(size, when it was modified, in nanoseconds): both are equal as long as nobody writes the file.

        Raises:
            StoreError: the system reported an error.
        """
        state = self._stat()
        return state.st_size, state.st_mtime_ns

    def glance(self) -> tuple[int, int, int]:
        """(size, when it was modified, under how many names it is found): less than `is_current` asks, in less time.

        A file that was replaced or deleted has no name any more. Of one that is not open, nothing is equal to anything.
        """
        held = self._held
        if held is None:
            return -1, next(_counter), 0
        try:
            state = os.fstat(held.fd)
        except OSError:  # who reads it is told
            return -1, next(_counter), 0
        return state.st_size, state.st_mtime_ns, state.st_nlink

    def size(self) -> int:
        """Bytes in the file.

        Raises:
            StoreError: the system reported an error.
        """
        return self._stat().st_size

    def is_current(self) -> bool:
        """Whether this is still the file at the path.

        Raises:
            StoreError: the system reported an error: then nobody knows.
        """
        try:
            there = os.stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise store_error(error, "cannot look for", self.path) from error
        left = self._left if self._held is None else None
        if left is not None and (there.st_ino, there.st_dev) != (left.inode, left.device):
            return False
        try:
            mine = self._stat()
        except JournalLost:
            return False
        return (there.st_ino, there.st_dev) == (mine.st_ino, mine.st_dev)

    def _stat(self) -> os.stat_result:
        held = self._held or self._open_again()
        try:
            return os.fstat(held.fd)
        except OSError as error:
            raise store_error(error, "cannot look at", self.path) from error

    def sync(self) -> None:
        """What is in the file, whoever wrote it, is on the medium when this returns, where the system can sync it.

        Raises:
            StoreError: the system reported an error.
        """
        held = self._held or self._open_again()
        try:
            fsync(held.fd)
        except OSError as error:
            if error.errno not in _CANNOT_SYNC:
                leave_mark(self.path, 0, error)
                raise store_error(error, "cannot sync", self.path) from error

    def pread(self, size: int, offset: int) -> bytes:
        """The `size` bytes at `offset`, fewer only where the file ends.

        Raises:
            StoreError: the system reported an error: never an empty or shorter answer instead.
        """
        held = self._held or self._open_again()
        try:
            data = pread(held.fd, size, offset)
            # A read that meets a bad sector, or is very large, is short; the next one tells what follows, or the error.
            while data and len(data) < size and (more := pread(held.fd, size - len(data), offset + len(data))):
                data += more
            return data
        except OSError as error:
            raise store_error(error, "cannot read", self.path) from error

    def line_at(self, offset: int) -> bytes:
        """The line that starts at `offset`, without its newline; of a very long one that is none, its beginning."""
        size = _FIRST
        data = self.pread(size, offset)
        while (stop := data.find(b"\n")) < 0 and len(data) == size and not (size > LONG_LINE and is_hopeless(data)):
            size *= 16
            data = self.pread(size, offset)
        return data if stop < 0 else data[:stop]

    def lines_at(self, offsets: Iterable[int]) -> Iterator[bytes]:
        """`line_at` of each: where one follows the other, many are read at once.

        Raises:
            StoreError: as `line_at`, when its turn has come.
        """
        start, data, size, behind = 0, b"", _FIRST, -1
        for offset in offsets:
            at = offset - start
            stop = data.find(b"\n", at) if 0 <= at < len(data) else -1
            if stop < 0:
                size = min(size * 4, BLOCK) if offset == behind else _FIRST
                start, at, data = offset, 0, self.pread(size, offset)
                stop = data.find(b"\n")
            behind = start + stop + 1
            yield data[at:stop] if stop >= 0 else self.line_at(offset)

    def read(self, offset: int, key: Any = None) -> Record:
        """The record at `offset`; `key` is for the message.

        Raises:
            DamagedRecord: naming the line.
        """
        held = self._held
        if held is not None:
            try:  # what `line_at` does, in less time: most lines are short, and there
                data = pread(held.fd, _FIRST, offset)
                if (stop := data.find(b"\n")) >= 0:
                    return parse(data[:stop])
            except (OSError, ValueError):
                pass  # which is told below
        line = self.line_at(offset)
        try:
            return parse(line)
        except ValueError as error:
            raise self.damaged(offset, str(error), line, key) from None

    def damaged(self, offset: int, why: str, line: bytes = b"", key: object = None) -> DamagedRecord:
        """The error for the record at `offset`."""
        number, why = self.line_number(offset), printable(shorten(why))
        what = f"{self.path}:{number}: damaged record" + (f" of key {quote(key)}" if key is not None else "")
        shown = f" (it begins {quote(line[:60])})" if line else ""
        return DamagedRecord(
            f"{what}: {why}{shown}. Every other record is intact; run the same line again to compute this one anew",
            path=str(self.path),
            line=number,
            key=key,
            why=why,
            offset=offset,
        )

    def moved(self, offset: int) -> JournalLost:
        """The error for a place where another line stands than the one that was looked for."""
        return JournalLost(
            f"{self.path} was edited while this process read it: another line stands at byte {offset:,}; nothing was "
            "read from it. Run the same line again to read what is there",
            errno=errno.ESTALE,
            strerror="stale file handle",
            filename=str(self.path),
        )

    def line_number(self, offset: int) -> int:
        """The 1-based number of the line at `offset`; reads the file up to there."""
        count, at = 1, 0
        while at < offset and (data := self.pread(min(BLOCK, offset - at), at)):
            count += data.count(b"\n")
            at += len(data)
        return count

    def where(self, offset: int) -> str:
        """`path:line` of the record at `offset`, for messages."""
        return f"{self.path}:{self.line_number(offset)}"

    def blocks(self, start: int, on_long: Callable[[int, int], None] | None = None) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of runs of whole lines from `start` on; what follows the last newline is left out.

        Args:
            start: where a line begins.
            on_long: called with (offset, size) of a line of many megabytes instead of reading it whole, if given.
        """
        at, size = start, BLOCK
        while data := self.pread(size, at):
            cut = data.rfind(b"\n") + 1
            if cut:
                yield at, data[:cut]
                at, size = at + cut, BLOCK
            elif len(data) < size:
                return
            elif on_long is not None and size > LONG_LINE:
                stop = self._newline_after(at + size)
                if stop < 0:
                    return
                on_long(at, stop - at)
                at, size = stop + 1, BLOCK
            else:
                size *= 4

    def _newline_after(self, at: int) -> int:
        """Where the next newline is, or -1; of a file with holes, which hold none, only the data is read."""
        while (at := self._data_after(at)) >= 0 and (data := self.pread(BLOCK, at)):
            if (found := data.find(b"\n")) >= 0:
                return at + found
            at += len(data)
        return -1

    def _data_after(self, at: int) -> int:
        """The first place from `at` on that is not in a hole; -1 where there is none."""
        if not hasattr(os, "SEEK_DATA"):
            return at
        held = self._held or self._open_again()
        try:
            return os.lseek(held.fd, at, os.SEEK_DATA)
        except OSError as error:
            return -1 if error.errno == errno.ENXIO else at  # the latter: a file system that cannot tell

    def is_sealed(self, offset: int, size: int) -> bool:
        """Whether the line there ends in its checksum; however long it is, little of it is in memory at once."""
        end = offset + size - CRC_SIZE
        tail, crc, at = self.pread(CRC_SIZE, max(offset, end)), 0, offset
        if not (tail[:8] == b',"crc":"' and tail[16:] == b'"}'):
            return False
        while at < end:
            data = self.pread(min(BLOCK, end - at), at)
            if not data or b"\0" in data:  # no JSON has a NUL; a hole has nothing else
                return False
            crc, at = zlib.crc32(data, crc), at + len(data)
        return tail[8:16] == b"%08x" % crc

    def tail(self) -> tuple[int, bytes]:
        """(offset, bytes) of what follows the last newline: empty unless the last write was torn.

        NULs at its end, such as a hole that a crash has left, are left out where they are many megabytes.
        """
        at, parts, nuls = self.size(), [b""], 0
        offset = 0
        while at > 0:
            far = max(0, at - LONG_LINE)
            if len(parts) == 1 and at - far > BLOCK and not far <= self._data_after(far) < at:  # a hole
                nuls, at = nuls + at - far, far
                continue
            step = min(BLOCK, at)
            data = self.pread(step, at - step)
            at -= step
            cut = data.rfind(b"\n") + 1
            if len(parts) == 1 and not data.strip(b"\0"):
                nuls += step
            else:
                parts.append(data[cut:])
            if cut:
                offset = at + cut
                break
        end = bytes(nuls) if nuls <= LONG_LINE else b""
        return offset, b"".join(reversed(parts)) + end


_idle: deque[weakref.ref[Reader]] = deque()  # whose descriptors may be let go, the one that was opened first first


def _let_go_of_idle(most: int) -> None:
    """Let go of descriptors until at most so many are left; a thread that reads meanwhile keeps its own."""
    while len(_idle) > most:
        try:
            reader = _idle.popleft()()
        except IndexError:
            return  # another thread does the same
        if reader is not None:
            reader.let_go()


def _let_go_of_all() -> bool:
    """Let go of all that are idle; False where there is none."""
    there = bool(_idle)
    _let_go_of_idle(0)
    return there


when_too_many.append(_let_go_of_all)


def most_idle() -> int:
    """How many descriptors are kept although nobody holds them: half of those that this process may have."""
    if sys.platform == "win32":
        return 256
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 14 if soft == resource.RLIM_INFINITY else soft // 2


if hasattr(os, "pread"):
    pread = os.pread
else:  # Windows: positions are per descriptor, so readers of one descriptor take turns
    _turn = locks.lock("reading")

    def pread(fd: int, size: int, offset: int) -> bytes:
        """Read at a place."""
        with _turn:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)
