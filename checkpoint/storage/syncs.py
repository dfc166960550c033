"""How what was appended to a journal comes to the medium: at once, aside, or by a thread once writing has stopped.

The promise: what a sync has returned for is on the medium; one that failed is never tried again as if it could succeed:
a mark tells whoever writes next.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import copy
from pathlib import Path

from checkpoint.errors import StoreError
from checkpoint.storage.files import store_error
from checkpoint.storage.reader import Reader
from checkpoint.storage.unsynced import leave_mark

__all__ = ["JournalSyncs"]


class JournalSyncs:
    """The syncs of one journal, whose descriptor and end are those of who writes it."""

    path: Path
    reader: Reader | None
    end: int
    dirty: bool
    _writer: int | None
    _held: object
    _sync: Callable[[int], None]
    _syncing: threading.RLock
    _is_lent: bool
    _owed: list[tuple[int, int, Reader | None]]
    _unsynced: StoreError | None
    _synced: int
    _doubtful: int | None

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

    def owe(self) -> bool:
        """Leave the sync of what was appended to `pay`, which may come after writing has stopped; whether any is owed.

        Raises:
            StoreError: it had to be synced at once, and could not be.
        """
        if self._writer is None or not (self.dirty or self._unsynced or self._is_lent):
            return bool(self._owed)
        if self._unsynced is not None or self._is_lent:
            self.sync()  # which tells of it, or waits
            return False
        try:
            owed = os.dup(self._writer), self.end, self.reader
        except OSError:  # too many open files: here and now, then
            self.sync()
            return False
        self.forget_owed()
        self._owed.append(owed)
        self.dirty = False
        return True

    @property
    def is_owed(self) -> bool:
        """Whether a sync was left to `pay`."""
        return bool(self._owed)

    def pay(self) -> tuple[int, Reader | None]:
        """Sync what `owe` has left. From any thread; who appends meanwhile is not kept waiting.

        Returns:
            How many bytes are on the medium by this, and of which file.

        Raises:
            StoreError: it is not on the medium; a mark tells whoever writes next.
        """
        with self._syncing:
            try:
                fd, end, reader = self._owed.pop()
            except IndexError:
                return 0, None
            try:
                self._sync_descriptor(fd, end, None)
            finally:
                os.close(fd)
            return end, reader

    def forget_owed(self) -> None:
        """Nobody needs to pay: it is owed otherwise, or by another process."""
        with suppress(IndexError):  # another thread takes it
            os.close(self._owed.pop()[0])

    def _sync_descriptor(self, fd: int, end: int, of: object) -> None:
        try:
            self._sync(fd)
        except OSError as error:
            self._unsynced = store_error(error, "cannot sync", self.path)
            self._doubtful = self._synced if self._doubtful is None else min(self._doubtful, self._synced)
            leave_mark(self.path, self._doubtful, error)
            raise self._unsynced from error
        if of is not None and of is self._held:  # else the journal was replaced meanwhile
            self._synced = end
