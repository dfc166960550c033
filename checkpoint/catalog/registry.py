"""The checkpoints that this process has open: one for each path, shared by everyone who names it, and looked after.

The promise: two users of one path have one checkpoint, which is closed when its last user is detached or collected; a
thread maintains the stores that are written, at exit all are closed, and a forked child begins with none.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from checkpoint import locks
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.shards import ALL, Shard
from checkpoint.errors import StoreClosed, StoreError
from checkpoint.storage.reader import most_idle
from checkpoint.storage.writer import Writer

__all__ = ["REGISTRY", "Registry", "open_checkpoint"]

log = logging.getLogger("checkpoint")

_EVERY = 0.5  # seconds between two rounds of the thread
_FILES_OF_A_WRITER = 12  # it has half as many open, and others stay open beside it


class Attachment:
    """What one user holds of a checkpoint.

    Args:
        finalizer: detaches the user when it is collected.
        let_go: detaches it here.

    Attributes:
        is_held: whether nobody has detached the user.
    """

    def __init__(self, finalizer: weakref.finalize[..., object], let_go: Callable[[], None]) -> None:
        self._finalizer, self._let_go = finalizer, let_go
        self.is_held = True

    def __call__(self) -> None:
        """Let go of the checkpoint, once."""
        self.is_held = False
        if self._finalizer.detach() is not None:
            self._let_go()


class Registry:
    """The checkpoints of a process: the open ones, the thread that maintains them, and what is to be done at exit."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, str], Checkpoint] = {}
        self._told: dict[tuple[str, str], set[tuple[str, str]]] = {}  # by path: stores come and go
        self._lock = locks.rlock("registry")
        self._tended: set[Writer] = set()
        self._thread: threading.Thread | None = None
        self._tend_lock = locks.lock("tending")
        self._wake = threading.Event()
        self._is_ending = False
        self._ends_early = False

    def __contains__(self, path: tuple[str, str]) -> bool:
        """Whether there is an open checkpoint of that directory, resolved, and that name."""
        return path in self._opened

    # one checkpoint for each path

    def open(self, name: str, directory: Path, user: object, shard: Shard = ALL) -> Attachment:
        """Attach `user` to the checkpoint of that path and shard, as its `checkpoint`; returns what detaches it.

        It is closed when its last user is detached or collected.
        """
        path = (os.path.realpath(directory), shard.prefix(name))
        with self._lock:
            opened = self._opened.get(path)
            if opened is None:
                opened = Checkpoint(name, directory, shard, self, self._told.setdefault(path, set()))
            opened.users += 1
            self._opened[path] = opened
        user.checkpoint = opened  # type: ignore[attr-defined]
        finalizer = weakref.finalize(user, self._detach, path, opened)
        return Attachment(finalizer, partial(self._let_go, path, opened))

    def _detach(self, path: tuple[str, str], opened: Checkpoint) -> None:
        """Let go of a checkpoint that one user less has; a collection may come upon that user anywhere."""
        if locks.may_be_held(sys._getframe()):
            locks.elsewhere(partial(_logged, self._let_go, path, opened), "checkpoint-close")
        else:
            _logged(self._let_go, path, opened)

    def _let_go(self, path: tuple[str, str], opened: Checkpoint) -> None:
        with self._lock:
            opened.users -= 1
            if opened.users:
                return
        if opened.store.replica.is_remote and _is_uploading_thread():  # closing waits for just this thread
            locks.elsewhere(partial(_logged, self._close_unused, path, opened), "checkpoint-close")
        else:
            self._close_unused(path, opened)

    def _close_unused(self, path: tuple[str, str], opened: Checkpoint) -> None:
        try:
            # Before it is forgotten, or another one would meet its lock; who attaches meanwhile opens it again.
            opened.close()
        finally:
            with self._lock:
                if not opened.users and self._opened.get(path) is opened:
                    del self._opened[path]

    # the thread that maintains them

    def make_room(self) -> None:
        """Let go of idle writers, where there are very many: each keeps files for a second, and many a lock."""
        most = max(1, most_idle() // _FILES_OF_A_WRITER)
        with self._tend_lock:
            tended = list(self._tended) if len(self._tended) >= most else []
        with_files = [writer for writer in tended if writer.writing or writer.owes]
        if len(with_files) >= most:
            with_files.sort(key=attrgetter("wrote_at"))
            for writer in with_files[: 1 + len(with_files) - most]:
                writer.stop_if_idle()

    def maintain(self, writer: Writer) -> None:
        """See that the store is looked after. The thread is a daemon and ends when nothing is owed."""
        if writer.replica.is_remote:
            self._close_early()
        with self._tend_lock:
            self._tended.add(writer)
            if self._thread is None and not self._is_ending:
                self._thread = threading.Thread(target=self._tend_all, name="checkpoint-tend", daemon=True)
                self._thread.start()

    def _tend_all(self) -> None:
        try:
            self._tend_each()
        except BaseException:
            with self._tend_lock:
                self._thread = None  # the next write begins another
            raise

    def _tend_each(self) -> None:
        while True:
            if self._wake.wait(_EVERY):
                return
            for writer in list(self._tended):
                if not writer.tend():
                    with self._tend_lock:
                        if not (writer.writing or writer.owes):
                            self._tended.discard(writer)
            with self._tend_lock:
                if not self._tended:
                    self._thread = None
                    return

    # the end of the process

    def close_all(self) -> None:
        """Close every checkpoint, and end the thread."""
        for opened in list(self._opened.values()):
            _close(opened)
        self._end_tending()

    def _close_early(self) -> None:
        """See that uploads end before executors do: a name is resolved in one, and at exit it takes no more work.

        `threading` has a list for that, which concurrent.futures is on; it has no public name.
        """
        if not self._ends_early:
            self._ends_early = True
            import concurrent.futures.thread  # noqa: F401  # the list is called backwards: it comes after us

            try:
                threading._register_atexit(self._close_mirrored)  # type: ignore[attr-defined]
            except (AttributeError, RuntimeError):
                pass  # another Python, or one that ends already: what cannot be uploaded at exit is told

    def _close_mirrored(self) -> None:
        for opened in list(self._opened.values()):
            if opened.store.replica.is_remote and not opened.store.writer.in_pass:
                _close(opened)

    def _end_tending(self) -> None:
        """A thread that the interpreter stops while it holds a store's lock would keep who ends a pass after that."""
        with self._tend_lock:
            self._is_ending, thread = True, self._thread
        self._wake.set()
        if thread is not None:
            thread.join()

    def after_fork(self) -> None:
        """In a forked child: drop what the parent has open."""
        self._lock, self._tend_lock, self._thread = locks.rlock("registry"), locks.lock("tending"), None
        for opened in self._opened.values():
            opened.after_fork()
        self._opened.clear()
        self._tended.clear()


def _close(opened: Checkpoint) -> None:
    _logged(opened.close)


def _logged(close: Callable[..., None], *arguments: Any) -> None:
    """Close where nobody could be told by an exception."""
    try:
        close(*arguments)
    except (StoreError, StoreClosed) as error:
        log.error("%s", error)


def _is_uploading_thread() -> bool:
    """Whether this thread is one that uploads: ours, or that of fsspec's event loop."""
    asyn = sys.modules.get("fsspec.asyn")
    loop_thread = asyn.iothread[0] if asyn is not None else None
    current = threading.current_thread()
    return current is loop_thread or current.name == "checkpoint-upload"


REGISTRY = Registry()
"""That of this process: what else is one for each process hangs on it."""
open_checkpoint = REGISTRY.open

atexit.register(REGISTRY.close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=REGISTRY.after_fork)
