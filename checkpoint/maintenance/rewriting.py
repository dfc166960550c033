"""What `repair` and `compact` share: nobody else writes meanwhile, and a new file takes an old one's place at once.

The promise: nothing that a reader can find changes; each journal is replaced at once, by a copy of its lines. They may
be cut off at any point and run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.registry import open_checkpoint
from checkpoint.catalog.shards import Shard
from checkpoint.maintenance.check import leftovers_of
from checkpoint.storage.files import store_error
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.reader import Reader
from checkpoint.storage.store import Store

__all__ = ["alone_with", "discard_leftovers", "own_logs"]


class _User:
    """Who uses the checkpoint meanwhile."""

    checkpoint: Checkpoint


@contextmanager
def alone_with(name: str, directory: Path, shard: Shard, *, repairs: bool = False) -> Iterator[Store]:
    """The store that this process has of it, under the writer's lock."""
    user = _User()
    detach = open_checkpoint(name, directory, user, shard)
    try:
        store = user.checkpoint.store
        with store.all_as_they_are() if repairs else store.writer.alone():
            yield store
    finally:
        detach()


def own_logs(store: Store) -> Iterator[tuple[KeyedLog, Reader]]:
    """Each of its own journals that is there, its end repaired."""
    for shelf in store.own:
        if shelf.journal.open() is not None:
            shelf.open_to_write()
            assert shelf.journal.reader is not None
            yield shelf, shelf.journal.reader


def discard_leftovers(name: str, directory: Path) -> tuple[tuple[str, int], ...]:
    """Delete what killed processes left half-written; call it under the lock."""
    found = tuple(leftovers_of(name, directory))
    for path, _ in found:
        try:
            os.unlink(path)
        except OSError as error:
            raise store_error(error, "cannot delete", Path(path)) from error
    return found
