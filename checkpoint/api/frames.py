"""Tracebacks of this library's errors end at the line where the user called it."""

from __future__ import annotations

import contextlib
import os
from types import TracebackType

from checkpoint.errors import CheckpointError

__all__ = ["USERS_FRAMES"]

_OURS = (os.path.dirname(os.path.dirname(__file__)) + os.sep, contextlib.__file__)


class _UsersFrames:
    """Leave the user's frames only in the traceback of a `CheckpointError` or a Ctrl-C: ``with USERS_FRAMES:``.

    Python adds no entry for a frame that only passes an exception on from a `with`, so none of ours comes back. What
    an error was raised from keeps its own traceback, and so does every other exception.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, (CheckpointError, KeyboardInterrupt)):
            error.__traceback__ = _less_ours(traceback)


def _less_ours(traceback: TracebackType | None) -> TracebackType | None:
    """The same entries, less those of this library and of the standard `contextlib` that it uses."""
    entries = []
    while traceback is not None:
        if not traceback.tb_frame.f_code.co_filename.startswith(_OURS):
            entries.append(traceback)
        traceback = traceback.tb_next
    kept = None
    for entry in reversed(entries):
        kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return kept


USERS_FRAMES = _UsersFrames()
