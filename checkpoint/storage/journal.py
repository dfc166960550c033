"""An append-only file of records, one a line: it is appended to, synced, repaired and replaced.

The promise: a record is written whole by one `os.write`, newline included, or cut back; bytes that cannot be read are
set aside, never destroyed. What a line is, `record` says; how it is read, `reader`.
"""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from checkpoint import clock, locks
from checkpoint.clock import Stamper
from checkpoint.errors import CheckpointLocked, JournalLost, StoreError, plural
from checkpoint.storage.files import (
    fsync,
    fsync_directory,
    liken,
    open_safely,
    open_temporary,
    store_error,
    write_all,
    write_some,
)
from checkpoint.storage.reader import BLOCK, PROBE, Reader, pread
from checkpoint.storage.record import is_whole
from checkpoint.storage.syncs import JournalSyncs
from checkpoint.storage.unsynced import marked_from, remove_mark

__all__ = ["KINDS", "Journal", "Reader"]


KINDS = ("results", "errors", "unsaved")
"""The journals of a checkpoint."""
log = logging.getLogger("checkpoint")
_LOOKS = 5
_LOOK = 0.02  # seconds: what writes a long line adds to it within so many, unless its disk stands still


class Journal(JournalSyncs):
    """One journal file, read by anyone and appended to by the one who holds the lock.

    Args:
        path: the file; it need not exist until the first append.
        sync: what makes a descriptor's data durable.

    Attributes:
        reader: the open file, or None where there is none yet.
        end: bytes of whole lines that are known to be there; where the next record goes.
        dirty: whether something was written since the last `sync`.
        in_doubt: whether an append was left half-way; `repair` tells.
        unsound: where lines begin that proved damaged when what was not synced was written again.
    """

    def __init__(self, path: Path, *, sync: Callable[[int], None] = fsync) -> None:
        self.path = path
        self.reader: Reader | None = None
        self.end = 0
        self.dirty = False
        self.in_doubt = False
        self.unsound: list[int] = []
        self._probe = b""
        self._sync = sync
        self._syncing = locks.rlock("syncing")
        self._is_lent = False
        self._owed: list[tuple[int, int, Reader | None]] = []  # at most one: what is to be synced, its end, its file
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
                remove_mark(self.path)  # of a journal that was deleted
                self._enter_in_directory()
                self.open()
            self.repair()
            doubts = [start for start in (self._doubtful, marked_from(self.path)) if start is not None]
            if doubts:
                self._write_again(min(doubts))
            self._synced = 0  # who was killed before may have synced nothing
            self.forget_owed()  # `repair` owes all of it again
            self._held = None if self.reader is None else self.reader.hold()
        except BaseException:
            self.stop_writing()
            raise

    @property
    def is_doubtful(self) -> bool:
        """Whether a sync has failed, here or in an earlier process: to sync once more would succeed and do nothing."""
        return self._doubtful is not None or marked_from(self.path) is not None

    def _write_again(self, start: int) -> None:
        """Write what is there from `start` on once more, so that it is synced, and look whether it is what was written.

        The system may have dropped the pages that it could not write: then older bytes are there, or NULs.
        """
        assert self.reader is not None
        assert self._writer is not None
        at = start = start if start == 0 or self.reader.pread(1, start - 1) == b"\n" else 0
        try:
            fd = open_safely(self.path, os.O_RDWR)
            try:
                if not os.path.samestat(os.fstat(fd), os.fstat(self._writer)):
                    raise OSError(errno.ESTALE, "it was replaced meanwhile")
                while data := self.reader.pread(BLOCK, at):
                    os.lseek(fd, at, os.SEEK_SET)
                    write_all(fd, data)
                    at += len(data)
                self._sync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise store_error(error, "cannot write again what was not synced to", self.path) from error
        remove_mark(self.path)
        self._doubtful = None
        self.unsound = self._unsound_from(start)
        if at > start:
            log.warning(
                "an earlier sync of %s failed: its %s from byte %s on were written again and synced; %s",
                self.path, plural(at - start, "byte"), f"{start:,}",
                f"{plural(len(self.unsound), 'line')} of these are damaged, and their items run again"
                if self.unsound else "every line of these is sound",
            )  # fmt: skip

    def _unsound_from(self, start: int) -> list[int]:
        """Where the lines begin that are not what was written."""
        assert self.reader is not None
        reader, found = self.reader, []

        def look(offset: int, size: int) -> None:
            if not reader.is_sealed(offset, size):
                found.append(offset)

        for offset, block in reader.blocks(start, look):
            for line in block.split(b"\n")[:-1]:
                if line.strip() and not is_whole(line):
                    found.append(offset)
                offset += len(line) + 1
        return found

    def _enter_in_directory(self) -> None:
        try:
            fsync_directory(self.path.parent)
        except OSError as error:
            raise store_error(error, "cannot sync the directory of", self.path) from error

    def repair(self) -> bytes:
        """Make the file end in a whole line: complete a record that only lacks its newline, set aside a torn one.

        It may be cut off at any point and run again. Returns the bytes that were set aside.

        Raises:
            CheckpointLocked: another process is writing this very line; the bytes are still in the file.
            StoreError: it could not be done; the bytes are still in the file.
        """
        assert self._writer is not None
        assert self.reader is not None
        end = self.reader.size()
        offset, torn = self.reader.tail()
        is_torn = end > offset  # by bytes, or by NULs that are too many to be read
        for _ in range(_LOOKS if is_torn and not self.in_doubt else 0):  # in doubt is an end of our own
            clock.sleep(_LOOK)
            self._refuse_if_grown(end)
        try:
            if torn and offset + len(torn) == end and is_whole(torn):
                write_all(self._writer, b"\n")
                is_torn, torn = False, b""
            elif is_torn:
                self.set_aside([(offset, torn)])
                self._refuse_if_grown(end)
                os.ftruncate(self._writer, offset)
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, "cannot repair", self.path) from error
        self.in_doubt = False
        self.dirty = True  # what a killed writer left unsynced counts as saved from here on
        if is_torn:
            log.warning(
                "%s ended in a torn record of %d bytes: set aside in %s; its item runs again",
                self.path, end - offset, self.aside,
            )  # fmt: skip
        return torn

    def _refuse_if_grown(self, end: int) -> None:
        """A torn end that grows is no torn end: somebody writes it, whose lock was deleted.

        Between this look and the cut a line can still be lost: a file cannot be cut on condition of its size.
        """
        assert self.reader is not None
        if (size := self.reader.size()) == end:
            return
        raise CheckpointLocked(
            f"{self.path} is being written by another process, although this one holds the lock: its last line went "
            f"from {end:,} to {size:,} bytes of the file in a moment. The lock's file was deleted under its owner, or "
            "the file system does not lock. Nothing was cut or written; wait for that process or stop it, and leave "
            "the lock's file where it is: that of a dead owner needs no cleaning up",
            errno=errno.EWOULDBLOCK,
            strerror="locked",
            filename=str(self.path),
        )

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
                if before and pread(fd, 1, before - 1) != b"\n":
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
        self.end, self._probe = place, lines[-PROBE:]
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
        self._probe = b"" if self.reader is None else self.reader.pread(min(end, PROBE), max(0, end - PROBE))

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
