"""The operating system's files: opened safely, written whole, synced; and what an error of theirs means to a user.

The promise: a file is written only where it lies in the directory itself, under one name, and, where anybody may put
files, is this user's own; a temporary file has a name that nobody can guess; nothing but a regular file is opened; and
what was synced is on the medium, or an error says why not.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from checkpoint.errors import StoreError

__all__ = [
    "MOST_JSON",
    "exchange",
    "fsync",
    "fsync_directory",
    "index_path",
    "liken",
    "open_file",
    "open_making_room",
    "open_safely",
    "open_temporary",
    "read_object",
    "replacing",
    "store_error",
    "when_too_many",
    "write_all",
    "write_some",
]


log = logging.getLogger("checkpoint")
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
def replacing(path: Path, stem: str, mode: int = 0o666, *, at_leisure: bool = False) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of `path` when the block ends well; else it leaves nothing.

    It is not synced.

    Args:
        path: of the file.
        stem: what the name of the temporary one has.
        mode: its permissions, less the umask.
        at_leisure: whether it may be long until its bytes are on the medium, though its name is.
    """
    fd, temporary = open_temporary(path, stem, mode)
    try:
        with _file_of(fd) as file:
            yield file
        if not (at_leisure and exchange(temporary, path)):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def exchange(new: Path, old: Path, *, unlink: Callable[[Path], None] = os.unlink) -> bool:
    """The new file has the name of the old one, which is gone; False where the system cannot do so.

    Where a file is replaced, ext4 and its like write the new one out at once, which waits for whoever syncs. Two that
    change names are left alone.
    """
    swap = _swap()
    if swap is None or swap(_HERE, os.fsencode(new), _HERE, os.fsencode(old), _EXCHANGE) != 0:
        return False
    unlink(new)
    return True


_HERE, _EXCHANGE = -100, 2  # AT_FDCWD, RENAME_EXCHANGE


@cache
def _swap() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    try:
        import ctypes

        return ctypes.CDLL(None).renameat2
    except (ImportError, OSError, AttributeError):  # no ctypes, or a C library without it
        return None


def _file_of(fd: int) -> BinaryIO:
    try:
        return os.fdopen(fd, "wb")
    except ImportError:  # the interpreter ends
        return io.BufferedWriter(io.FileIO(fd, "wb"))


# --- small files ------------------------------------------------------------------------------------------------------


def _read_up_to(fd: int, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.read(fd, min(size - len(data), 1 << 16))):  # it takes that much memory
        data += more
    return data


def read_object(path: Path, most: int = MOST_JSON) -> dict[str, Any]:
    """The JSON object that a small file holds.

    Raises:
        OSError: it cannot be read; FileNotFoundError where it is not there.
        ValueError: it holds anything else, or more than `most` bytes.
    """
    fd = open_file(path, os.O_RDONLY)  # as the interpreter ends, neither open nor os.fdopen works
    try:
        data = b"" if os.fstat(fd).st_size > most else _read_up_to(fd, most + 1)
    finally:
        os.close(fd)
    if not data or len(data) > most:
        raise ValueError("it is empty, or too large")
    try:
        held = json.loads(data)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(held, dict):
        raise ValueError("it is no JSON object")
    return held


_NOT_SYNCED_HERE = (errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)  # vboxsf, virtiofs, some FUSE
_told: set[int] = set()  # devices


def fsync(fd: int) -> None:
    """Data and size are on the medium when this returns, as far as the system can tell.

    A file system that has no sync is told once, with what holds there all the same.
    """
    try:
        _fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_SYNCED_HERE or (os.name == "nt" and error.errno == errno.EBADF):
            raise  # the latter: a descriptor that only reads
        _tell_unsynced(fd, error)  # which raises where the descriptor is at fault


def _fsync(fd: int) -> None:
    if sys.platform == "darwin":
        import fcntl  # fsync on macOS leaves the data in the drive's cache

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
        except OSError as error:
            if error.errno not in (*_NOT_SYNCED_HERE, errno.ENOTTY):
                raise
            os.fsync(fd)  # network drives have no other
    elif hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def fsync_directory(path: Path) -> None:
    """Names created or renamed in the directory survive a power cut; a no-op where directories cannot be opened.

    A file system that cannot sync directories is told once.
    """
    if os.name == "nt":
        return
    fd = open_making_room(path, os.O_RDONLY | _CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NOT_SYNCED_HERE:
            raise
        _tell_unsynced(fd, error, path)
    finally:
        os.close(fd)


def _tell_unsynced(fd: int, error: OSError, directory: Path | None = None) -> None:
    """Say once of each file system what holds where it cannot sync.

    Raises:
        OSError: the descriptor is none.
    """
    device = os.fstat(fd).st_dev
    if device in _told:
        return
    _told.add(device)
    try:
        where = str(directory or os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        where = "a checkpoint's file"
    log.warning(
        "the file system of %s cannot sync %s (%s, errno %s): what is saved survives a kill of this process, and may "
        'be lost when the power or the kernel fails, also with durability="power". Where that matters, choose a '
        "checkpoint_dir on a local disk, or a URL of an object store",
        where, "files" if directory is None else "directories", error.strerror, error.errno,
    )  # fmt: skip


def store_error(error: OSError, doing: str, path: Path, advice: str = "", **parts: Any) -> StoreError:
    """The `StoreError` for a failed system call, with its errno and file name."""
    if error.errno is None:
        raise error  # no system call's: a TimeoutError that the user's signal handler raised, for one
    reason, number = error.strerror or str(error), error.errno
    hint = advice or _ADVICE.get(number, "")
    message = f"{doing} {path}: {reason} (errno {number})" + (f"; {hint}" if hint else "")
    return StoreError(message, errno=number, strerror=reason, filename=str(path), **parts)


_FEWER = (
    "each Results that is kept, and each pass that runs, has files open: drop Results that you need no more "
    "(list(results) keeps the values), call runner.close(), or raise the limit (ulimit -n)"
)

_ADVICE = {
    errno.EISDIR: "a directory is in the file's place: move it away and put the file back, or run the same line again",
    errno.EMFILE: _FEWER,
    errno.ENFILE: _FEWER,
    errno.ENOSPC: "make room on the disk and run the same line again: what is saved stays saved",
    errno.EDQUOT: "make room in your quota and run the same line again: what is saved stays saved",
    errno.EFBIG: "the file-size limit (ulimit -f) is reached; raise it and run the same line again",
    errno.EACCES: "it is not writable for this user; change its permissions or choose another checkpoint_dir",
    errno.EPERM: "it is not writable for this user; change its permissions or choose another checkpoint_dir",
    errno.EROFS: "the file system is read-only; choose another checkpoint_dir",
    errno.ELOOP: "nothing is written through a link, which may lead anywhere: put the file that it leads to in its "
    "place, or link the whole directory",
    errno.EMLINK: "what is written to it would change the file under its other names too: put a copy of it in its "
    "place (cp FILE COPY && mv COPY FILE)",
    errno.EIO: "the disk reports an error: copy the checkpoint to another disk before you go on",
}


def liken(fd: int, model: os.stat_result) -> None:
    """Give a file the owner, where this user may, and the permissions of another."""
    if hasattr(os, "fchown"):
        for owner, group in ((model.st_uid, -1), (-1, model.st_gid)):
            try:
                os.fchown(fd, owner, group)
            except PermissionError:
                pass
    if hasattr(os, "fchmod"):
        os.fchmod(fd, stat.S_IMODE(model.st_mode))


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of it, however often the system takes only a part."""
    view = memoryview(data)
    while view:
        view = view[write_some(fd, view) :]


def write_some(fd: int, data: memoryview) -> int:
    """`os.write`; one that takes nothing and reports nothing is a full disk, or writing on would never end."""
    written = os.write(fd, data)
    if not written:
        raise OSError(errno.ENOSPC, "No space left on device: the system took none of it")
    return written


def index_path(journal: Path) -> Path:
    """Where the index file of a journal is."""
    return journal.with_name(f".{journal.stem.lstrip('.')}.index")
