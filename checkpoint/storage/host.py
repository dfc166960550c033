"""The interface through which a store reaches its owner, normally a `Checkpoint`: shards, upkeep, the replica.

The promise: a store asks its `Host` for whatever is not in its own journals, and knows nothing else of it.
"""

from __future__ import annotations

import errno
from typing import Protocol

from checkpoint.errors import JournalLost
from checkpoint.storage.journals import Journals
from checkpoint.storage.meta import Meta, Summary
from checkpoint.storage.replica import NoReplica, Replica
from checkpoint.storage.source import count_failed, latest_of

__all__ = ["Host", "Unattended"]


class Host(Protocol):
    """What a store is part of: it reads other journals beside the store's own, and looks after it."""

    def replicate(self, journals: Journals) -> Replica:
        """The replica of the store's journals."""

    def make_room(self) -> None:
        """Have idle stores let go of their locks, where there are very many: this one is about to be written."""

    def maintain(self) -> None:
        """Call `tend` from time to time until nothing is owed: the store is being written."""

    def begun(self) -> None:
        """Bring what is read beside it up to date: the lock is held from here on.

        Raises:
            JournalLost: as `refuse`.
        """

    def start_anew(self) -> None:
        """Open what is read beside it anew: what was known of files may hold no longer."""

    def refuse(self) -> None:
        """Raise where a journal of the store, or one that is read beside it, is none, or has lost something.

        Raises:
            JournalLost: with what to do.
        """

    def summary(self) -> Summary:
        """What meta is to say of the journals."""


class Unattended:
    """The host of a store that stands alone: nothing is read beside it, and nobody looks after it."""

    def __init__(self, journals: Journals, meta: Meta) -> None:
        self._journals = journals
        self._meta = meta

    def replicate(self, journals: Journals) -> Replica:
        """As `Host.replicate`: there is none."""
        return NoReplica()

    def make_room(self) -> None:
        """As `Host.make_room`."""

    def maintain(self) -> None:
        """As `Host.maintain`."""

    def begun(self) -> None:
        """As `Host.begun`."""

    def start_anew(self) -> None:
        """As `Host.start_anew`."""

    def refuse(self) -> None:
        """As `Host.refuse`."""
        if self._journals.fault is not None:
            path, fault = self._journals.fault
            raise JournalLost(f"{path} {fault.what}", errno=errno.ESTALE, filename=str(path))

    def summary(self) -> Summary:
        """As `Host.summary`."""
        results, errors, meta = self._journals.results, self._journals.errors, self._meta
        version = latest_of(results, errors)
        return Summary(
            results.count(version),
            count_failed(results, errors, version),
            meta.versions(results, errors),
            meta.codes(results, errors),
        )
