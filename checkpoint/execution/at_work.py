"""Which call of its task a worker process is at: a number that both sides see, and that outlives the worker.

The promise: where a worker dies of a chunk of calls, only the one that ran is blamed. Where the file cannot be made
nothing is known, and nothing else changes.
"""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import suppress
from mmap import mmap

__all__ = ["AtWork", "opened_at"]

_SIZE = 8


class AtWork:
    """The driver's side.

    Attributes:
        path: what the worker opens; None where there is no file.
    """

    def __init__(self) -> None:
        self.path: str | None = None
        self._shared: mmap | None = None
        try:
            fd, self.path = tempfile.mkstemp(prefix="checkpoint-at-work-")
        except OSError:
            return
        try:
            os.write(fd, bytes(_SIZE))
            self._shared = mmap(fd, _SIZE)
        except OSError:
            self.close()
        finally:
            os.close(fd)

    @property
    def number(self) -> int | None:
        """The place in its task of the call that the worker began last; None where that is not known."""
        return None if self._shared is None else int.from_bytes(self._shared[:_SIZE], sys.byteorder)

    def close(self) -> None:
        """Let go of it."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        if self.path is not None:
            with suppress(OSError):  # the worker removes it when it has opened it, where the system allows that
                os.unlink(self.path)


def opened_at(path: str | None) -> memoryview | None:
    """The worker's side: its item 0 is the number. None where it cannot be had."""
    if path is None:
        return None
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return memoryview(mmap(fd, _SIZE)).cast("Q")
    except OSError:
        return None
    finally:
        os.close(fd)
        with suppress(OSError):
            os.unlink(path)
