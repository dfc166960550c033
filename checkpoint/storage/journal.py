"""An append-only file of records, one a line: it is appended to, read, synced, repaired and replaced.

The promise: a record is written whole by one `os.write`, newline included, or cut back; bytes that cannot be read are
set aside, never destroyed. What a line is, `record` says.

Journals are read with `pread`, never mapped: mapping a file that another process cuts kills Python.
"""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import sys
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint import locks
from checkpoint.clock import Stamper
from checkpoint.errors import DamagedRecord, JournalLost, StoreError, printable, quote, shorten
from checkpoint.storage.files import (
    fsync,
    fsync_directory,
    liken,
    open_file,
    open_safely,
    open_temporary,
    store_error,
    when_too_many,
    write_all,
    write_some,
)
from checkpoint.storage.record import CRC_SIZE, Record, is_hopeless, is_whole, parse

if sys.platform != "win32":
    import resource

__all__ = ["LONG_LINE", "Journal", "Reader", "most_idle"]


KINDS = ("results", "errors", "unsaved")
"""The journals of a checkpoint."""
log = logging.getLogger("checkpoint")
_BLOCK = 112 << 10  # of 128 KiB and more, malloc asks the system for new memory each time
_PROBE = 64
_TAIL = 4096
LONG_LINE = 16 << 20
"""Bytes of a line from which on it is not read whole where that is not needed."""
_CANNOT_SYNC = (errno.EBADF, errno.EINVAL, errno.ENOTSUP, errno.EROFS)  # Windows, by a descriptor that only reads


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
        data = _pread(fd, _TAIL, start)
        cut = data.rfind(b"\n") + 1
        return cls(state.st_dev, state.st_ino, start + cut if cut else 0, data[max(0, cut - _PROBE) : cut])

    def fits(self, fd: int) -> bool:
        state = os.fstat(fd)
        if (state.st_dev, state.st_ino) != (self.device, self.inode) or state.st_size < self.end:
            return False
        return _pread(fd, len(self.probe), self.end - len(self.probe)) == self.probe


class Reader:
    """A journal file, for anyone to read.

    Whoever holds it (`hold`) keeps the bytes: what replaces or unlinks the file does not touch them. Of readers that
    nobody holds the descriptor may be let go (`let_go_when_idle`), and is opened again when they read.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._held: _Descriptor | None = _Descriptor(fd)
        self._last: weakref.ref[_Descriptor] = weakref.ref(self._held)
        self._left: _Left | None = None
        self._is_shared = False

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

        Raises:
            StoreError: it had been let go, and cannot be opened again.
        """
        return self._held or self._open_again()

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

    def modified_at(self, end: int) -> int:
        """When the file was modified last, in nanoseconds; 0 where it does not end there."""
        state = self._stat()
        return state.st_mtime_ns if state.st_size == end else 0

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
                raise store_error(error, "cannot sync", self.path) from error

    def pread(self, size: int, offset: int) -> bytes:
        """The `size` bytes at `offset`, fewer only where the file ends.

        Raises:
            StoreError: the system reported an error: never an empty or shorter answer instead.
        """
        held = self._held or self._open_again()
        try:
            data = _pread(held.fd, size, offset)
            # A read that meets a bad sector, or is very large, is short; the next one tells what follows, or the error.
            while data and len(data) < size and (more := _pread(held.fd, size - len(data), offset + len(data))):
                data += more
            return data
        except OSError as error:
            raise store_error(error, "cannot read", self.path) from error

    def line_at(self, offset: int) -> bytes:
        """The line that starts at `offset`, without its newline; of a very long one that is none, its beginning."""
        size = 4096
        data = self.pread(size, offset)
        while (stop := data.find(b"\n")) < 0 and len(data) == size and not (size > LONG_LINE and is_hopeless(data)):
            size *= 16
            data = self.pread(size, offset)
        return data if stop < 0 else data[:stop]

    def read(self, offset: int, key: Any = None) -> Record:
        """The record at `offset`; `key` is for the message.

        Raises:
            DamagedRecord: naming the line.
        """
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

    def line_number(self, offset: int) -> int:
        """The 1-based number of the line at `offset`; reads the file up to there."""
        count, at = 1, 0
        while at < offset and (data := self.pread(min(_BLOCK, offset - at), at)):
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
        at, size = start, _BLOCK
        while data := self.pread(size, at):
            cut = data.rfind(b"\n") + 1
            if cut:
                yield at, data[:cut]
                at, size = at + cut, _BLOCK
            elif len(data) < size:
                return
            elif on_long is not None and size > LONG_LINE:
                stop = self._newline_after(at + size)
                if stop < 0:
                    return
                on_long(at, stop - at)
                at, size = stop + 1, _BLOCK
            else:
                size *= 4

    def _newline_after(self, at: int) -> int:
        """Where the next newline is, or -1; of a file with holes, which hold none, only the data is read."""
        while (at := self._data_after(at)) >= 0 and (data := self.pread(_BLOCK, at)):
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
            data = self.pread(min(_BLOCK, end - at), at)
            if not data or b"\0" in data:  # no JSON has a NUL; a hole has nothing else
                return False
            crc, at = zlib.crc32(data, crc), at + len(data)
        return tail[8:16] == b"%08x" % crc

    def tail(self) -> tuple[int, bytes]:
        """(offset, bytes) of what follows the last newline: empty unless the last write was torn."""
        at, parts = self.size(), [b""]
        while at > 0:
            step = min(_BLOCK, at)
            data = self.pread(step, at - step)
            at -= step
            cut = data.rfind(b"\n") + 1
            parts.append(data[cut:])
            if cut:
                return at + cut, b"".join(reversed(parts))
        return 0, b"".join(reversed(parts))


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


class Journal:
    """One journal file, read by anyone and appended to by the one who holds the lock.

    Args:
        path: the file; it need not exist until the first append.
        sync: what makes a descriptor's data durable.

    Attributes:
        reader: the open file, or None where there is none yet.
        end: bytes of whole lines that are known to be there; where the next record goes.
        dirty: whether something was written since the last `sync`.
        in_doubt: whether an append was left half-way; `repair` tells.
    """

    def __init__(self, path: Path, *, sync: Callable[[int], None] = fsync) -> None:
        self.path = path
        self.reader: Reader | None = None
        self.end = 0
        self.dirty = False
        self.in_doubt = False
        self._probe = b""
        self._sync = sync
        self._syncing = locks.rlock("syncing")
        self._is_lent = False
        self._unsynced: StoreError | None = None  # why what was appended may not be on the medium
        self._synced = 0  # bytes that are known to be
        self._doubtful: int | None = None  # from where on a sync has failed, in this or an earlier opening
        self._writer: int | None = None
        self._held: object = None  # what keeps the reader's file open while it is written

    def open(self) -> Reader | None:
        """Open for reading, if there is a file."""
        if self.reader is None:
            self.reader = Reader.open(self.path)
        return self.reader

    @property
    def writable(self) -> bool:
        """Whether it is open for appending."""
        return self._writer is not None

    def open_to_write(self) -> None:
        """Open for appending and repair the end: call it under the lock, since it cuts a torn tail off.

        Raises:
            StoreError: naming the file that is not writable.
        """
        if self._writer is not None:
            return
        existed = self.open() is not None
        self._unsynced = None
        try:
            self._writer = open_safely(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError as error:
            raise store_error(error, "cannot open for writing", self.path) from error
        try:
            if not existed:
                self._enter_in_directory()
                self.open()
            self.repair()
            if self._doubtful is not None:
                self._write_again(self._doubtful)
            self._synced = 0  # who was killed before may have synced nothing
            self._held = None if self.reader is None else self.reader.hold()
        except BaseException:
            self.stop_writing()
            raise

    @property
    def is_doubtful(self) -> bool:
        """Whether a sync has failed: to sync once more would succeed and do nothing, since the system has given up."""
        return self._doubtful is not None

    def _write_again(self, start: int) -> None:
        """Write what is there from `start` on once more, so that it is synced."""
        assert self.reader is not None
        assert self._writer is not None
        try:
            fd = open_safely(self.path, os.O_RDWR)
            try:
                if not os.path.samestat(os.fstat(fd), os.fstat(self._writer)):
                    raise OSError(errno.ESTALE, "it was replaced meanwhile")
                while data := self.reader.pread(_BLOCK, start):
                    os.lseek(fd, start, os.SEEK_SET)
                    write_all(fd, data)
                    start += len(data)
                self._sync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise store_error(error, "cannot write again what was not synced to", self.path) from error
        self._doubtful = None

    def _enter_in_directory(self) -> None:
        try:
            fsync_directory(self.path.parent)
        except OSError as error:
            raise store_error(error, "cannot sync the directory of", self.path) from error

    def repair(self) -> bytes:
        """Make the file end in a whole line: complete a record that only lacks its newline, set aside a torn one.

        It may be cut off at any point and run again. Returns the bytes that were set aside.

        Raises:
            StoreError: it could not be done; the bytes are still in the file.
        """
        assert self._writer is not None
        assert self.reader is not None
        offset, torn = self.reader.tail()
        try:
            if torn and is_whole(torn):
                write_all(self._writer, b"\n")
                torn = b""
            elif torn:
                self.set_aside([(offset, torn)])
                os.ftruncate(self._writer, offset)
        except OSError as error:
            raise store_error(error, "cannot repair", self.path) from error
        self.in_doubt = False
        self.dirty = True  # what a killed writer left unsynced counts as saved from here on
        if torn:
            log.warning(
                "%s ended in a torn record of %d bytes: set aside in %s; its item runs again",
                self.path, len(torn), self.aside,
            )  # fmt: skip
        return torn

    @property
    def aside(self) -> Path:
        """Where bytes are kept that a repair cut off: JSON lines with offset, timestamp and base64 bytes."""
        return self.path.with_name(f".{self.path.stem.lstrip('.')}.aside")

    def set_aside(self, pieces: Iterable[tuple[int, bytes]]) -> None:
        """Keep (offset, bytes), synced, before the journal loses them: a crash between the two only keeps them twice.

        Raises:
            OSError: nothing was added.
        """
        fd = open_safely(self.aside, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            before = os.lseek(fd, 0, os.SEEK_END)
            try:
                if before and _pread(fd, 1, before - 1) != b"\n":
                    write_all(fd, b"\n")  # an earlier repair was cut off in the middle of an entry
                for offset, piece in pieces:
                    entry = {"offset": offset, "timestamp": Stamper()().decode(), "bytes": _base64(piece)}
                    write_all(fd, json.dumps(entry).encode() + b"\n")
                self._sync(fd)
            except OSError:
                os.ftruncate(fd, before)
                raise
        finally:
            os.close(fd)
        fsync_directory(self.path.parent)

    def replace(self, chunks: Iterable[bytes], *, first: Callable[[], None] = lambda: None) -> None:
        """A file of these bytes takes the journal's place at once, with its owner and permissions; open it anew.

        Whoever has the old one open reads on. It may be cut off at any point: the journal is one or the other.

        Args:
            chunks: whole lines.
            first: called when the file is complete and synced, before it takes the place.

        Raises:
            StoreError: the journal is as it was; or it was replaced, and only the directory could not be synced.
        """
        self.stop_writing()
        if os.path.islink(self.path):  # which never raises
            raise store_error(OSError(errno.ELOOP, "it is a symbolic link"), "cannot replace", self.path)
        try:
            fd, temporary = open_temporary(self.path, self.path.stem.lstrip("."), 0o600)
        except OSError as error:
            raise store_error(error, "cannot make a file to replace", self.path) from error
        try:
            try:
                liken(fd, os.stat(self.path))
                for chunk in chunks:
                    write_all(fd, chunk)
                self._sync(fd)
            finally:
                os.close(fd)
            first()
            os.replace(temporary, self.path)
        except BaseException as error:
            _discard(temporary)
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                raise store_error(error, "the journal is as it was: cannot replace", self.path) from error
            raise
        self._enter_in_directory()

    def append(self, lines: bytes) -> int:
        """Append whole lines, all of them or none; returns the offset of the first.

        Raises:
            StoreError: nothing was appended. With errno ENOSPC and its like the same process can go on.
            JournalLost: the file was cut meanwhile; nothing of ours was left in it.
        """
        writer, start = self._writer, self.end
        assert writer is not None
        # An exception from a signal handler may leave any part of this undone: the next append looks first.
        self.in_doubt = self.dirty = True
        written = 0
        try:
            written = os.write(writer, lines)
            while written < len(lines):
                written += write_some(writer, memoryview(lines)[written:])
            place = os.lseek(writer, 0, os.SEEK_CUR)  # with O_APPEND: the end of the file that the write went to
        except OSError as error:
            if error.errno is not None:
                self.in_doubt = not self._cut_back(written)
            raise store_error(error, "cannot write to", self.path) from error
        if place != start + len(lines):
            start = self._moved(place, len(lines))
        self.end, self._probe = place, lines[-_PROBE:]
        self.in_doubt = False
        return start

    def _cut_back(self, written: int) -> bool:
        """Take our last bytes off again, and nobody else's; False where it fails: the next append repairs first."""
        assert self._writer is not None
        try:
            if written:
                os.ftruncate(self._writer, os.lseek(self._writer, 0, os.SEEK_CUR) - written)
        except OSError:
            return False
        return True

    def _moved(self, place: int, written: int) -> int:
        """Somebody appended lines between ours, which does no harm; or cut the file, which does."""
        assert self.reader is not None
        start = place - written
        known = self.is_as_known()
        if known and start > self.end and self.reader.pread(1, start - 1) == b"\n":
            return start
        self._cut_back(written)
        if not known and start > self.end:
            raise self._lost("was written anew by another program", 0)
        raise self._lost("was cut" if start < self.end else "got a torn line from another program", start)

    def _lost(self, how: str, intact: int) -> JournalLost:
        return JournalLost(
            f"{self.path} {how} while this process had it open",
            errno=errno.ESTALE,
            strerror="stale file handle",
            filename=str(self.path),
            intact=intact,
        )

    def learned(self, end: int) -> None:
        """What is there up to `end` is known."""
        self.end = end
        self._probe = b"" if self.reader is None else self.reader.pread(min(end, _PROBE), max(0, end - _PROBE))

    def is_as_known(self) -> bool:
        """Whether the last bytes that are known are still there: a program may write the same file anew, and longer."""
        size = len(self._probe)
        return self.reader is None or self.reader.pread(size, self.end - size) == self._probe

    def check_place(self) -> None:
        """Raise `JournalLost` where the file at the path is not, or no longer, the one that is written to."""
        if self._writer is None or self.reader is None:
            return
        if not self.reader.is_current():
            raise self._lost("was replaced" if os.path.lexists(self.path) else "was deleted", 0)
        if (size := self.reader.size()) < self.end:
            raise self._lost("was cut", size)
        if not (self.in_doubt or self._is_as_known_or_unreadable()):
            raise self._lost("was written anew by another program", 0)

    def _is_as_known_or_unreadable(self) -> bool:
        try:
            return self.is_as_known()
        except StoreError:
            return True  # who reads it is told

    def sync(self) -> None:
        """Everything appended so far is on the medium when this returns; what was lent is waited for.

        Raises:
            StoreError: it may not be. The system tells only one of those who sync, once: the others are told here.
        """
        if self._writer is None or not (self.dirty or self._unsynced or self._is_lent):
            return
        with self._syncing:
            if self._unsynced is not None:
                raise copy(self._unsynced)
            self.dirty = False  # before the call: what is appended during it waits for the next one
            self._sync_descriptor(self._writer, self.end, self._held)

    @property
    def synced(self) -> int:
        """Bytes that this opening for writing has brought to the medium."""
        return self._synced if self._writer is not None else 0

    def lend(self) -> Callable[[], None] | None:
        """What syncs everything appended so far, once, without keeping those who append waiting; None if all is.

        It is to be called by the thread that asks.

        Raises:
            StoreError: it had to be synced at once, and could not be.
        """
        if self._writer is None or not self.dirty:
            return None
        try:
            fd = os.dup(self._writer)  # the writer's own may be closed meanwhile
        except OSError:  # too many open files: here and now, then
            self.sync()
            return None
        self._syncing.acquire()
        self._is_lent, self.dirty, end, of = True, False, self.end, self._held

        def sync() -> None:
            try:
                self._sync_descriptor(fd, end, of)
            finally:
                os.close(fd)
                self._is_lent = False
                self._syncing.release()

        return sync

    def _sync_descriptor(self, fd: int, end: int, of: object) -> None:
        try:
            self._sync(fd)
        except OSError as error:
            self._unsynced = store_error(error, "cannot sync", self.path)
            self._doubtful = self._synced if self._doubtful is None else min(self._doubtful, self._synced)
            raise self._unsynced from error
        if of is self._held:  # else the journal was replaced meanwhile
            self._synced = end

    def stop_writing(self) -> None:
        """Close for appending; reading goes on."""
        writer, self._writer, self._held = self._writer, None, None
        if writer is not None:
            os.close(writer)

    def close(self) -> None:
        """Let go of the file; `open` starts anew."""
        self.stop_writing()
        self.reader = None
        self.end, self._probe = 0, b""
        self.dirty = False
        self.in_doubt = False


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _discard(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError as error:
        log.debug("%s was not removed: %s", temporary, error)


if hasattr(os, "pread"):
    _pread = os.pread
else:  # Windows: positions are per descriptor, so readers of one descriptor take turns
    _turn = locks.lock("reading")

    def _pread(fd: int, size: int, offset: int) -> bytes:
        with _turn:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.read(fd, size)
