"""Names of files, which a power cut may take though their bytes are on the medium: they are synced by themselves.

The promise: when records count, the names of their directory and of their journals are on the medium, whoever made
them and was killed before.
"""

from __future__ import annotations

import weakref
from pathlib import Path

from checkpoint.storage.files import fsync_directory, store_error
from checkpoint.storage.reader import Reader

__all__ = ["Names"]


class Names:
    """The names of one directory and of the journals of one store in it.

    Args:
        directory: absolute.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._settled: list[weakref.ref[Reader] | None] = []  # the files whose names are on the medium

    def make_directory(self, *, is_new: bool) -> None:
        """The directory is there, and its name survives a power cut.

        Args:
            is_new: whether it holds nothing yet: who made it may have been killed just now.

        Raises:
            OSError: it cannot be made.
        """
        path = self._directory
        missing = [new for new in (path, *path.parents) if not new.exists()]
        if is_new or missing:
            there = missing[-1].parent if missing else path
            try:
                fsync_directory(there.parent)  # each is synced before the next is made: only the deepest is in doubt
            except PermissionError:
                pass  # the user's own, where we cannot look
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            fsync_directory(new.parent)

    def settle(self, readers: list[Reader | None]) -> None:
        """Sync the names of the journals that are open, where that was not done here before.

        Raises:
            StoreError: they cannot be synced.
        """
        if readers == [each and each() for each in self._settled]:
            return
        try:
            fsync_directory(self._directory)
            self._settled = [None if reader is None else weakref.ref(reader) for reader in readers]
        except PermissionError:
            pass  # it may be written in, and not be opened
        except OSError as error:
            raise store_error(error, "cannot sync", self._directory) from error
