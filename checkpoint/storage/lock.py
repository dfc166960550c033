"""One writer: an OS lock on a file of its own, which dies with its owner and is never unlinked.

`flock` on Unix: POSIX record locks would fall whenever anything in this process closes that file (a backup that copies
the directory). A fork inherits a flock, so the child closes its copy at once (`drop`, called by the store's fork hook).
On Windows a byte far beyond the text is locked, so that the text stays readable.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
from pathlib import Path
from typing import Any

from checkpoint import clock
from checkpoint.clock import Stamper
from checkpoint.errors import CheckpointLocked, StoreError, printable, shorten
from checkpoint.storage.files import open_safely, store_error

__all__ = ["INSTEAD", "Lock"]

_LOOKS = 100
_MOMENT = 5  # milliseconds
_BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)

if os.name == "nt":  # pragma: no cover - cannot be tried on the systems this was written on
    import msvcrt

    _FAR = 0x7FFFFFF0

    def _lock(fd: int) -> None:
        os.lseek(fd, _FAR, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
else:
    import fcntl

    def _lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _keep_from_readers(fd: int) -> None:
    """Let those read the file who may write it, and nobody else; as far as this user may say so."""
    if hasattr(os, "fchmod"):
        mode = stat.S_IMODE(os.fstat(fd).st_mode)
        wanted = mode & ~0o044 | (mode & 0o022) << 1
        if wanted != mode:
            try:
                os.fchmod(fd, wanted)
            except OSError:
                pass  # the file of another user who shares the directory; or a file system without permissions


def _plausible(said: dict[str, Any]) -> dict[str, Any]:
    """What may be true of it: anybody may have written the file, and messages repeat it."""
    kinds = {"pid": int, "host": str, "since": str, "paused": str}
    held = {part: said[part] for part, kind in kinds.items() if type(said.get(part)) is kind}
    return {part: printable(shorten(value)) if type(value) is str else value for part, value in held.items()}


_NO_LOCKS = (
    "its file system may have no locks (Lustre: have it mounted with -o flock; NFS: the server's lock service may not "
    "run), and without one two processes could write at once: choose a checkpoint_dir on another file system, such as "
    "a local disk, or a URL of an object store. Reading needs no lock"
)
INSTEAD = "use another name or checkpoint_dir; lock_timeout= waits by itself"
"""What whoever finds a checkpoint locked can do."""


def _lock_soon(fd: int) -> None:
    """Lock the file; of who has it for a moment only, to note what is on the medium, the end is awaited.

    Raises:
        OSError: another process holds it still.
    """
    for _ in range(_MOMENT):
        try:
            _lock(fd)
            return
        except OSError as error:
            if error.errno not in _BUSY:
                raise
        clock.sleep(0.001)
    _lock(fd)


class Lock:
    """The right to write a checkpoint.

    Args:
        path: the lock file. It says who holds it, and since when; a dead owner's needs no cleaning up.
        name: the checkpoint's name, for messages.
    """

    def __init__(self, path: Path, name: str, instead: str = INSTEAD) -> None:
        self.path = path
        self._name = name
        self._instead = instead
        self._fd: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._fd is not None

    def acquire(self) -> None:
        """Take it, or raise at once.

        Raises:
            CheckpointLocked: naming pid, host and since when.
            StoreError: the file cannot be made or locked.
        """
        if self._fd is not None:
            return
        try:
            fd = self._open()
        except OSError as error:
            raise store_error(error, "cannot open the lock", self.path) from error
        self._fd = fd
        try:
            _lock_soon(fd)
        except BaseException as error:
            self.release()
            if not isinstance(error, OSError):
                raise  # an interrupt: an open descriptor that nobody knows would keep the lock
            if error.errno in _BUSY:
                raise self._locked() from None
            raise store_error(error, "cannot lock", self.path, _NO_LOCKS) from error
        self._sign(fd)

    def _open(self) -> int:
        """The file, which only those may open who may write it: whoever opens it can hold the lock.

        It is made so, and not changed later: no moment is left at which somebody else could open it.
        """
        for _ in range(_LOOKS):
            try:
                fd = open_safely(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o622)
            except FileExistsError:
                try:
                    fd = open_safely(self.path, os.O_RDWR)
                except FileNotFoundError:
                    continue  # it was deleted in between
            try:
                _keep_from_readers(fd)
            except OSError:
                os.close(fd)
                raise
            return fd
        raise OSError(errno.EAGAIN, "it is made and deleted all the time")

    def is_taken(self) -> bool:
        """Whether somebody holds it at this moment; False where that cannot be told."""
        try:
            fd = open_safely(self.path, os.O_RDWR)
        except OSError:
            return False
        try:
            _lock(fd)
        except OSError as error:
            return error.errno in _BUSY
        finally:
            os.close(fd)
        return False

    def check(self) -> None:
        """See that the file that is held is the one that others find; where it was deleted, hold another in its place.

        Where that cannot be told or done just now, all stays as it is: somebody looks again in a second.

        Raises:
            CheckpointLocked: another process was there first.
        """
        held = self._fd
        if held is None or not self._is_lost(held):
            return
        self._fd = None
        try:
            self.acquire()
        except BaseException as error:
            self._fd = held
            if isinstance(error, CheckpointLocked) or not isinstance(error, StoreError):
                raise
        else:
            os.close(held)

    def _is_lost(self, held: int) -> bool:
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(held))
        except OSError as error:
            return error.errno == errno.ENOENT

    def sign(self, *, is_paused: bool) -> None:
        """Say whether calls are held from now on, as the server refuses them."""
        if self._fd is not None:
            self._sign(self._fd, {**self.owner(), "paused": Stamper()().decode() if is_paused else None})

    def _sign(self, fd: int, said: dict[str, Any] | None = None) -> None:
        """Say who holds it. On a full disk it goes unsaid: the lock holds all the same."""
        own = {"pid": os.getpid(), "host": socket.gethostname(), "since": Stamper()().decode()}
        text = json.dumps(own if said is None else said)
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            size = os.write(fd, text.encode() + b"\n")  # over what is there: to cut it first makes the system write
            if os.fstat(fd).st_size != size:
                os.ftruncate(fd, size)
        except OSError:
            pass

    def owner(self) -> dict[str, Any]:
        """What the file says of its last owner: pid, host, since, paused (since when); empty where it says nothing."""
        try:
            fd = open_safely(self.path, os.O_RDONLY)
        except OSError:
            return {}
        try:
            said = json.loads(os.read(fd, 4096))
        except (OSError, ValueError, RecursionError):
            return {}
        finally:
            os.close(fd)
        return _plausible(said) if isinstance(said, dict) else {}

    def _locked(self) -> CheckpointLocked:
        owner = self.owner()
        for _ in range(_LOOKS):
            if owner:
                break
            clock.sleep(0.001)  # who has just taken it signs it in a moment
            owner = self.owner()
        pid, host, since = owner.get("pid"), owner.get("host"), owner.get("since")
        who = f"process {pid} on {host} since {since}" if pid is not None else "another process"
        return CheckpointLocked(
            f"checkpoint {self._name!r} in {self.path.parent} is being written by {who}; wait for it or stop it, "
            f"or {self._instead}. Reading needs no lock",
            errno=errno.EWOULDBLOCK,
            strerror="locked",
            filename=str(self.path),
            pid=pid,
            host=host,
            since=since,
        )

    def release(self) -> None:
        """Let it go; the file stays, so that no two processes ever lock two different files."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    drop = release
