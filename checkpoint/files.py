"""Files of a checkpoint's directory, opened so that nothing that somebody planted there leads anywhere else.

The promise: a file is written only where it lies in the directory itself, under one name, and, where anybody may put
files, is this user's own; a temporary file has a name that nobody can guess; and nothing but a regular file is opened.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

__all__ = [
    "MOST_JSON",
    "open_file",
    "open_making_room",
    "open_safely",
    "open_temporary",
    "read_object",
    "replacing",
    "when_too_many",
]

MOST_JSON = 16 << 20
"""Bytes of a small file that are read: parsing takes up to 22 times as much memory."""

_CLOEXEC = getattr(os, "O_CLOEXEC", 0)
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it
_NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
_WRITES = os.O_WRONLY | os.O_RDWR
_ANYBODY = stat.S_IWGRP | stat.S_IWOTH


def open_safely(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a file of ours: never through a symbolic link; to write, only one that has no other name or owner.

    It is closed in children, and has permissions by the umask.

    Raises:
        OSError: with ELOOP for a symbolic link, EMLINK for a file of several names, EPERM for one of another user.
    """
    if not _NOFOLLOW and os.path.islink(path):  # Windows: as near as it comes
        raise _link(path)
    try:
        fd = open_file(path, (flags & ~os.O_TRUNC) | _NOFOLLOW, mode)
    except OSError as error:
        raise (_link(path) if error.errno != errno.ENOENT and os.path.islink(path) else error) from None
    try:
        if flags & _WRITES:
            _check_own(fd, path)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)  # only now: the file of somebody else keeps its bytes
    except OSError:
        os.close(fd)
        raise
    return fd


def _link(path: Path) -> OSError:
    return OSError(errno.ELOOP, "it is a symbolic link", str(path))


def _check_own(fd: int, path: Path) -> None:
    """Refuse a file that is written elsewhere too, and in a directory for anybody the file of another user.

    The second is the rule of Linux's fs.protected_regular, which not every system has or turns on.
    """
    state = os.fstat(fd)
    if state.st_nlink > 1:
        raise OSError(errno.EMLINK, f"it is one file under {state.st_nlink} names (hard links)", str(path))
    if not hasattr(os, "geteuid") or state.st_uid == os.geteuid():
        return
    directory = os.stat(path.parent)
    if directory.st_mode & stat.S_ISVTX and directory.st_mode & _ANYBODY and state.st_uid != directory.st_uid:
        raise OSError(errno.EPERM, "it belongs to another user, in a directory where others may put files", str(path))


def open_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """A descriptor above those of stdin, stdout and stderr: where these are closed, what others print goes there."""
    # Opening a pipe must not wait for whoever is at its other end; and nothing but a file is one of ours.
    fd = open_making_room(path, flags | _CLOEXEC | _BINARY | _NONBLOCK, mode)
    try:
        kind = os.fstat(fd).st_mode
        if not stat.S_ISREG(kind):
            number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
            raise OSError(number, os.strerror(number) if stat.S_ISDIR(kind) else "It is no file", str(path))
    except OSError:
        os.close(fd)
        raise
    if fd > 2 or os.name == "nt":
        return fd
    import fcntl

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def open_making_room(path: Path, flags: int, mode: int = 0o666) -> int:
    """`os.open`; where too many files are open, those that may be let go are, and it is tried once more."""
    try:
        return os.open(path, flags, mode)
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE) or not sum([let_go() for let_go in when_too_many]):
            raise
    return os.open(path, flags, mode)


when_too_many: list[Callable[[], bool]] = []
"""What lets go of descriptors that it can open again, and tells whether there were any."""


# --- files that are replaced whole ------------------------------------------------------------------------------------


def open_temporary(beside: Path, stem: str, mode: int = 0o666) -> tuple[int, Path]:
    """(descriptor, path) of a new file `.STEM.PID.RANDOM.tmp` in the directory of `beside`."""
    path = beside.with_name(f".{stem}.{os.getpid()}.{os.urandom(8).hex()}.tmp")
    return open_safely(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), path


@contextmanager
def replacing(path: Path, stem: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path` when the block ends well; else it leaves nothing.

    It is not synced.
    """
    fd, temporary = open_temporary(path, stem, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            yield file
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


# --- small files ------------------------------------------------------------------------------------------------------


def read_object(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object that a small file holds.

    Raises:
        OSError: it cannot be read; FileNotFoundError where it is not there.
        ValueError: it holds anything else, or more than `most` bytes.
    """
    with os.fdopen(open_file(path, os.O_RDONLY), "rb") as file:
        data = b"" if os.fstat(file.fileno()).st_size > most else file.read(most + 1)
    if not data or len(data) > most:
        raise ValueError("it is empty, or too large")
    try:
        held = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(held, dict):
        raise ValueError("it is no JSON object")
    return held
