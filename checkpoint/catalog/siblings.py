"""The journals of other shards of a checkpoint, which are read beside its own.

The promise: each shard that can hold keys of this one is found within seconds of its first record, here or in the store
behind a URL, and is read from then on.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from math import inf

from checkpoint import clock
from checkpoint.catalog.merged_log import MergedLog, allow_files
from checkpoint.catalog.shards import ALL, Shard, hash_of, locks_in, shards_in, split_prefix
from checkpoint.errors import CheckpointLocked, StoreError
from checkpoint.remote.objects import names_under
from checkpoint.storage.journals import Journals
from checkpoint.storage.lock import Lock
from checkpoint.storage.meta import count_or_none, meta_in
from checkpoint.storage.replica import Replica
from checkpoint.storage.source import RecordSource
from checkpoint.storage.store import Store
from checkpoint.values.keys import Key

__all__ = ["Siblings"]

log = logging.getLogger("checkpoint")

_ASK_EVERY = 5.0
_KEPT = 64  # files that stay open between passes: who looks again and again need not open these anew
_TICK = 0.1  # seconds; two changes of a directory that are nearer may have one modification time


class Siblings:
    """The shards that are read besides a store's own.

    Args:
        name: the checkpoint's.
        shard: the store's.
        store: what is written.
        replicate: makes the replica of a shard's journals.

    Attributes:
        members: the journals of each.
        sources: results, errors and values kept aside: the store's logs, merged with theirs, if there are any.
        has_meta: whether the meta file of any was sound.
        is_faulty: whether a file in the place of one of their journals is none, as of the last look.
    """

    def __init__(self, name: str, shard: Shard, store: Store, replicate: Callable[[Journals], Replica]) -> None:
        self.members: dict[Shard, Journals] = {}
        self.sources: tuple[RecordSource, RecordSource, RecordSource] = (
            store.own.results,
            store.own.errors,
            store.own.unsaved,
        )
        self.has_meta = False
        self.is_faulty = False
        self._name = name
        self._shard = shard
        self._store = store
        self._replicate = replicate
        self._looked = 0  # when the directory was modified last, as of the last look for shards
        self._asked_at = -inf  # monotonic; when the store behind a URL was asked for shards

    def all(self) -> list[Journals]:
        """The journals of each shard that is read, the store's own first."""
        return [self._store.own, *self.members.values()]

    def look(self) -> None:
        """Join the journals of shards that came into the directory: it is listed once it was modified."""
        found = self._shards_elsewhere()
        try:
            modified = os.stat(self._store.directory).st_mtime_ns
            if modified == self._looked and not found:
                return
            found |= shards_in(self._store.directory, self._name)
            self._looked = modified if clock.now() - modified / 1e9 > _TICK else 0
        except OSError:
            pass  # no directory yet; or one that cannot be read, which opening a file in it tells
        if self._shard != ALL:
            found = found - {self._shard} | {ALL}
        # Shards of one count share no key: a task need not open the journals of its thousand siblings.
        others = {shard for shard in found if self._shard == ALL or shard.of != self._shard.of}
        if missing := sorted(shard for shard in others - self.members.keys() if shard.meets(self._shard)):
            self._join(missing)

    def _shards_elsewhere(self) -> set[Shard]:
        """Those that the store has which the directory mirrors; it is asked every few seconds."""
        now = clock.monotonic()
        if not self._store.replica.is_remote or now - self._asked_at < _ASK_EVERY:
            return set()
        self._asked_at = now
        try:
            prefixes = names_under(self._store.directory)
        except StoreError as error:
            log.debug("%s", error)
            return set()
        return {shard for name, shard in map(split_prefix, prefixes) if name == self._name} - {self._shard}

    def _join(self, shards: list[Shard]) -> None:
        own = self._store.own
        allow_files(6 * len(shards))
        for shard in shards:
            journals = Journals(shard.prefix(self._name), self._store.directory, self._store.lock)
            if self._store.replica.is_remote:
                journals.replica = self._replicate(journals)
                journals.replica.look()
            journals.reopen()
            self.members[shard] = journals
        for journals in self.all():
            journals.is_counted_alone = False
        of = {self._shard: own, **self.members}
        self.sources = (
            MergedLog({shard: journals.results for shard, journals in of.items()}),
            MergedLog({shard: journals.errors for shard, journals in of.items()}),
            MergedLog({shard: journals.unsaved for shard, journals in of.items()}),
        )
        for shard in shards:
            meta = meta_in(self.members[shard].meta_path)
            self.has_meta = self.has_meta or bool(meta)
            self._store.meta.note(meta)

    def refresh(self, *keys: Key) -> None:
        """See what other processes wrote to them; of some keys, to those that can hold one of these.

        Looking at the journals of a thousand shards takes a while.
        """
        with self._store.lock:
            self.look()
            if not self.members:
                return
            if self._store.replica.is_remote:
                for journals in self.members.values():
                    journals.replica.look()
            hashes = [hash_of(key) for key in keys]
            for shard, journals in self.members.items():
                can_hold = not keys or any(hashed % shard.of == shard.number for hashed in hashes)
                if can_hold or any(each.has_loose for each in journals.all):
                    journals.refresh()
                    self._examine(journals)

    def examine(self) -> None:
        """Look whether their files are journals, as `Journals.examine` does."""
        for journals in self.members.values():
            self._examine(journals)

    def _examine(self, journals: Journals) -> None:
        journals.examine()
        self.is_faulty = self.is_faulty or journals.fault is not None

    def forget_faults(self) -> None:
        """Look at the files anew the next time, the store's own too, where any of them is none."""
        if self.is_faulty or self._store.own.fault is not None:
            self.is_faulty = False
            for journals in self.all():
                journals.forget_fault()

    def refuse_other_counts(self) -> None:
        """Raise where tasks of another count run: both would run each item. Call it with the store's own lock held.

        Of two that find each other, the one that took its lock first goes on. Where a URL is mirrored, this is known of
        tasks of one machine only.

        Raises:
            CheckpointLocked: naming the count that runs.
        """
        if self._shard == ALL:
            return
        directory = self._store.directory
        own = Lock(directory / f".{self._store.name}.lock", self._store.name).owner()
        mine = (str(own.get("since", "")), self._shard.of)
        for shard in locks_in(directory, self._name):
            if shard.of == self._shard.of:
                continue
            lock = Lock(directory / f".{shard.prefix(self._name)}.lock", self._name)
            if not lock.is_taken():
                continue
            owner = lock.owner()
            pid, host, since = owner.get("pid"), owner.get("host"), owner.get("since")
            is_ours = (pid, host) == (os.getpid(), own.get("host"))  # to forget a key, or all
            if is_ours or (since is not None and (since, shard.of) > mine):
                continue
            raise CheckpointLocked(
                f"checkpoint {self._name!r} in {directory} is being run as {shard.of} shards (shard {shard}, by process"
                f" {pid} on {host} since {since}), and this is shard {self._shard}: each item would be run, and paid "
                "for, by a task of either count. Wait for those tasks or stop them, or start this one as one of "
                f"{shard.of}; tasks of another count that have ended are no obstacle",
                errno=errno.EWOULDBLOCK,
                strerror="locked",
                filename=str(lock.path),
                pid=pid,
                host=host,
                since=since,
            )

    def total(self) -> int | None:
        """How many items the last pass had: of shards, the sum of those of its count, where each of them has said it.

        The last pass is the one that began last, as the meta files say.
        """
        if self._store.writer.writing or not self.members:
            return self._store.meta.total
        totals: dict[int, list[int]] = {}
        moments: dict[int, str] = {}
        for shard, journals in zip((self._shard, *self.members), self.all(), strict=True):
            meta = meta_in(journals.meta_path)
            total = count_or_none(meta.get("total_items"))
            if total is not None:
                totals.setdefault(shard.of, []).append(total)
                moment = str(meta.get("last_pass") or meta.get("last_updated", ""))
                moments[shard.of] = max(moments.get(shard.of, ""), moment)
        if not totals:
            return None
        last = max(moments, key=lambda of: (moments[of], of))
        return sum(totals[last]) if len(totals[last]) == last else None

    def let_go(self) -> None:
        """Close the descriptors of all that nobody holds, where there are many: they are opened again when read."""
        readers = [reader for journals in self.members.values() for each in journals for reader in each.readers]
        for reader in readers if len(readers) > _KEPT else ():
            reader.let_go()

    def close(self) -> None:
        """Let go of their files."""
        for journals in self.members.values():
            journals.close()

    def after_fork(self) -> None:
        """In a forked child: the store's new lock, and nothing of what the parent was at."""
        for journals in self.members.values():
            journals.after_fork(self._store.lock)
        for source in self.sources:
            if isinstance(source, MergedLog):
                source.lock = self._store.lock
