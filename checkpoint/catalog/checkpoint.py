"""One checkpoint: a store that is written, and the journals of its other shards, which are read with it.

The promise: what is read is what all shards hold, each as its own process wrote it; only the store's own journals are
written, and to forget a key in another shard is left to that shard's store.

Each shard of a checkpoint is a store of its own, whose files begin with NAME@3-of-100. A checkpoint reads
those that can hold keys of its own shard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from checkpoint import clock
from checkpoint.catalog.paths import lost_journal
from checkpoint.catalog.shards import ALL, Shard
from checkpoint.catalog.siblings import Siblings
from checkpoint.catalog.spent import OtherShards
from checkpoint.errors import StoreError
from checkpoint.remote.replication import replica_of
from checkpoint.storage.journals import Journals
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.lock import INSTEAD
from checkpoint.storage.meta import Summary, meta_in
from checkpoint.storage.record import Record
from checkpoint.storage.replica import Replica
from checkpoint.storage.source import RecordSource, count_failed, is_retired, latest_of
from checkpoint.storage.spending import Costs, Spending, added_up
from checkpoint.storage.store import Store
from checkpoint.storage.writer import Writer
from checkpoint.values.keys import Key, earlier_digests, is_same_version, version_digest

if TYPE_CHECKING:
    from checkpoint.remote.uploader import Uploader

__all__ = ["Checkpoint", "Owner"]

log = logging.getLogger("checkpoint")
_FRESH = 0.01  # seconds for which what was looked at is up to date; others' records are to be seen within 50 ms


class Owner(Protocol):
    """What has the checkpoints of a process."""

    def open(self, name: str, directory: Path, user: Any, shard: Shard) -> Callable[[], None]:
        """Attach the user to a checkpoint, as its `checkpoint`; returns what detaches it."""

    def make_room(self) -> None:
        """Have idle stores let go of their locks, where there are very many."""

    def maintain(self, writer: Writer) -> None:
        """Look after a store that is being written."""


class _User:
    """Who uses another shard's checkpoint meanwhile."""

    checkpoint: Checkpoint


class Checkpoint:
    """One checkpoint on disk, as one shard of it is written: the `Host` of that shard's store.

    Args:
        name: a safe file-name component.
        directory: absolute.
        shard: whose journals are written.
        owner: what opens the checkpoints of other shards.
        told: (version, code) of changes that this process has told.

    Attributes:
        store: what is written.
        results, errors, unsaved: what is read: the store's logs, merged with those of other shards, if there are any.
        shards: those that are read besides the store's own journals.
        users: how many use it.
    """

    def __init__(
        self, name: str, directory: Path, shard: Shard, owner: Owner, told: set[tuple[str, str]] | None = None
    ) -> None:
        self.name = name
        self.directory = directory
        self.shard = shard
        self.users = 0
        self.shards: list[Shard] = []
        self._owner = owner
        self._fresh: tuple[()] | tuple[float, object] = ()  # when it was refreshed last, and what the results were then
        self.store = Store(
            shard.prefix(name),
            directory,
            experiment=name,
            host=self,
            told=told,
            instead=INSTEAD if shard == ALL else "give each task a shard of its own",
            share=shard.of,
        )
        self._siblings = Siblings(name, shard, self.store, self.replicate)
        self._other_shards = OtherShards(name, directory, shard)
        self.results, self.errors, self.unsaved = self._siblings.sources
        try:
            self._siblings.look()
            self._take_sources()
            self.store.own.examine()
            self._siblings.examine()
        except BaseException:
            for journals in self._siblings.all():
                journals.close()  # nobody will, and who is told that too many are open must not keep them
            raise

    # what the store asks of it

    def replicate(self, journals: Journals) -> Replica:
        """As `Host.replicate`."""
        return replica_of(journals.name, self.directory, journals.files)

    def make_room(self) -> None:
        """As `Host.make_room`."""
        self._owner.make_room()

    def maintain(self) -> None:
        """As `Host.maintain`."""
        self._owner.maintain(self.store.writer)

    def begun(self) -> None:
        """As `Host.begun`."""
        self._siblings.refuse_other_counts()
        self._refresh_theirs()
        self.store.writer.refuse()

    def start_anew(self) -> None:
        """As `Host.start_anew`."""
        for journals in self._siblings.members.values():
            journals.reopen()

    def refuse(self) -> None:
        """As `Host.refuse`."""
        is_sound = self.store.own.fault is None and not self._siblings.is_faulty
        for journals in self._siblings.all() if not is_sound else ():
            if journals.fault is not None:
                raise lost_journal(*journals.fault, self.name, self.directory)

    def summary(self) -> Summary:
        """What one shard holds is told of its own journals; the whole, of all that are merged."""
        version, counted = self.latest, self if self.shard == ALL else self.store.own
        failed = count_failed(self.results, counted.errors, version)
        return Summary(counted.results.count(version), failed, self.versions, self.details)

    # reading

    def refresh(self, *keys: Key) -> None:
        """See what other processes wrote since the last look. The writer need not look: nobody else writes.

        But for those who write shards; of these a pass that writes knows what it found when it began, and so does who
        writes to a URL: what looks there may wait for it.

        Raises:
            JournalLost: what is in a journal's place is none, or it has lost what was on the medium.
        """
        store = self.store
        if store.writer.writing and (store.writer.in_pass or store.replica.is_remote):
            return
        with store.lock:
            self._fresh = ()
            refreshed_at, seen = clock.monotonic(), self._glance()
            self._siblings.forget_faults()
            if not store.writer.writing:
                store.replica.look()
                store.own.refresh()
            self._refresh_theirs(*keys)
            if not store.writer.writing:
                store.own.examine()
            store.writer.refuse()
            if not (keys and self.shards) and not store.replica.is_remote and store.own.fault is None:
                self._fresh = refreshed_at, seen

    def is_fresh(self) -> bool:
        """Whether it was brought up to date a few milliseconds ago, and no result has come since.

        Nobody but its writer adds results, who knows of them. What came of errors, and of other shards, is seen later.
        """
        if not self._fresh:
            return False
        refreshed_at, seen = self._fresh
        if clock.monotonic() >= refreshed_at + _FRESH:
            return False
        return self.store.writer.writing or self._glance() == seen

    def _glance(self) -> object:
        """What tells that nobody has written to the results, nor put another file in their place."""
        reader = self.store.own.results.journal.reader
        return None if reader is None else reader.glance()

    def _refresh_theirs(self, *keys: Key) -> None:
        try:
            self._siblings.refresh(*keys)
        finally:
            if self.results is not self._siblings.sources[0]:
                self._take_sources()

    def _take_sources(self) -> None:
        with self.store.lock:
            self.shards = list(self._siblings.members)
            self.results, self.errors, self.unsaved = self._siblings.sources

    @property
    def parts(self) -> list[tuple[KeyedLog, KeyedLog]]:
        """(results, errors) of each shard that is read, its own first."""
        return [(journals.results, journals.errors) for journals in self._siblings.all()]

    # other shards

    @property
    def uploader(self) -> Uploader | None:
        """What brings the store's journals to the URL that the directory mirrors, if it mirrors one."""
        return _uploader(self.store.own)

    def writer_elsewhere(self, shard: Shard) -> dict[str, Any] | None:
        """Who writes a shard from another machine (pid, host, since), as far as can be told."""
        journals = self.store.own if shard == self.shard else self._siblings.members.get(shard)
        uploader = None if journals is None else _uploader(journals)
        return None if uploader is None else uploader.writer_there()

    def spent(self) -> Costs:
        """By version, what its records cost, those of all shards included.

        Raises:
            StoreError: a journal cannot be read.
        """
        return added_up([spending.costs() for spending in self._spending()])

    def spent_if_known(self) -> Costs | None:
        """The same, where it costs little to tell; None where nobody has noted a cost, as far as meta knows."""
        found = [spending.known() for spending in self._spending()]
        return None if not any(found) else added_up([costs for costs in found if costs])

    def _spending(self) -> list[Spending]:
        return [*[journals.spending for journals in self._siblings.all()], *self._other_shards.spending()]

    def whole_total(self) -> int | None:
        """As `Siblings.total`."""
        return self._siblings.total()

    # what is written to several stores

    @contextmanager
    def a_pass(self) -> Iterator[None]:
        """A pass runs, beside others of this process; the lock is let go when the last one ends."""
        is_first = not self.store.writer.in_pass
        with self.store.writer.a_pass():
            self.refresh()
            if is_first and self.store.writer.writing:  # saved by hand just now: then `refresh` leaves it at that
                self._refresh_theirs()
            if is_first:
                self._settle_doubts()
            yield
        if not self.store.writer.in_pass:
            self._siblings.let_go()

    def _settle_doubts(self) -> None:
        """What a failed sync has left in doubt is written again, by a pass that has nothing to save, too."""
        if any(each.journal.is_doubtful for each in self.store.own):
            try:
                self.store.writer.begin()
            except StoreError as error:
                log.warning("an earlier sync failed, and what it left in doubt cannot be written again now: %s", error)

    def confirm(self) -> None:
        """What was found is on the medium when this returns: its writer may have been killed before it synced it."""
        self.store.confirm([*self.results.readers, *self.errors.readers])

    def forget(self, version: str, keys: Iterable[Key], session: bytes, *, durable: bool = False) -> int:
        """Append what forgets the keys' records under the version, where they are; returns how many keys had one.

        Raises:
            CheckpointLocked: another process writes one of the journals that know them; nothing was forgotten.
        """
        keys = list(keys)
        self._refresh_theirs()
        with self._others(self._that_know(version, keys)) as others:
            stores = [self.store, *others] if not others or self.store.own.knows(version, keys) else others
            with _all_or_none(stores):
                for store in stores:
                    store.writer.begin()
            forgotten = [store.forget(version, keys, session, durable=durable) for store in stores]
        self._refresh_theirs()
        return len(set().union(*forgotten))

    def _that_know(self, version: str, keys: list[Key]) -> list[Shard]:
        with self.store.lock:
            return [shard for shard, journals in self._siblings.members.items() if journals.knows(version, keys)]

    @contextmanager
    def _others(self, shards: Iterable[Shard]) -> Iterator[list[Store]]:
        """The stores of other shards, to be written. Two of them may want each other's: hold no store's lock here."""
        with ExitStack() as opened:
            users = [_User() for _ in shards]
            for user, shard in zip(users, shards, strict=True):
                opened.callback(self._owner.open(self.name, self.directory, user, shard))
            yield [user.checkpoint.store for user in users]

    def note_damage(self, source: RecordSource, version: str, key: Key, offset: int) -> None:
        """The key's record proved damaged: it is not done from now on, and the next pass is told to look at it.

        A later record of the key, or a file that is no longer the current one, is another matter.
        """
        with self.store.lock:
            place = source.find(version, key)
            if place is not None and place.offset == offset:
                source.note_damage(version, key)

    def clear(self) -> None:
        """Forget everything: unlink the journals, indexes and meta. Lock files and bytes set aside stay.

        Raises:
            CheckpointLocked: another process writes one of the journals; nothing was forgotten.
        """
        self._refresh_theirs()
        with self._others(list(self._siblings.members)) as others:
            stores = [self.store, *others]
            with _all_or_none(stores):
                for store in stores:
                    store.writer.begin_anew()
            for store in stores:
                store.clear()
        self._refresh_theirs()
        self._siblings.is_faulty = False
        for journals in self._siblings.all():
            journals.fault = None

    @contextmanager
    def all_alone(self, *, to_clear: bool = False) -> Iterator[None]:
        """`Writer.alone`, with every shard; to clear them, whatever is in the journals' places.

        Raises:
            CheckpointLocked, StoreError: as `Writer.alone`.
        """
        with self._others(list(self._siblings.members)) as others, ExitStack() as held:
            for store in (self.store, *others):
                if to_clear:
                    held.enter_context(store.writer.going_on())
                held.enter_context(store.writer.alone())
            yield

    # versions, and what computed results

    @property
    def latest(self) -> str:
        """The version of the last record, results before errors; "" is none."""
        return latest_of(self.results, self.errors)

    @property
    def versions(self) -> dict[str, Any]:
        """By digest, the values of versions, as far as they are known."""
        return self.store.meta.versions(self.results, self.errors)

    @property
    def details(self) -> dict[str, Any]:
        """By fingerprint, what it stands for, as far as that is known."""
        return self.store.meta.codes(self.results, self.errors)

    def codes_of(self, version: str) -> dict[str, Any]:
        """The fingerprints that results of the version have named, the last one last, and what each stands for.

        Of some of them no result may be left.
        """
        details = self.details
        return {code: details.get(code, {}) for code in self.results.codes.get(version, ())}

    @property
    def accepted(self) -> set[tuple[str, str]]:
        """(fingerprint, other one) for each pair of which results of the first were accepted for the other."""
        return {(line.accepts, line.of) for line in self.results.notes().accepted if line.is_of_code}

    def digest_of_version(self, version: Any, what: str = "version") -> str:
        """What records call a version: what they called it before, where they have a shorter digest of it; "" for None.

        Where the value is on disk it is compared, too.

        Raises:
            InvalidOption: the version is not JSON-like.
        """
        if version is None:
            return ""
        digest = version_digest(version, what, self.name)
        sources = (self.results, self.errors, self.unsaved)
        if not any(digest in source.versions for source in sources):
            labels = self.versions
            for before in earlier_digests(version):
                is_there = any(before in source.versions for source in sources)
                if is_there and (before not in labels or is_same_version(labels[before], version)):
                    return before
        return digest

    def accept_codes(self, codes: Iterable[str], code: str) -> None:
        """Results of these fingerprints count for another one from now on, here and wherever the journal is read.

        Raises:
            CheckpointLocked, StoreError: as `Writer.alone`.
        """
        with self.store.lock:
            self.store.writer.begin()
            for old in codes:
                if (old, code) not in self.accepted:
                    self.store.accept(old, code)

    def accept_version(self, old: str, new: str) -> None:
        """The results that a version has at this moment count for another one, where that has none of the key.

        Each journal that has results of it says so for its own.

        Raises:
            CheckpointLocked: another process writes one of the journals; nothing was accepted.
            StoreError: as `Writer.begin`.
        """
        self._refresh_theirs()
        with self.store.lock:
            shards = [shard for shard, journals in self._siblings.members.items() if journals.results.count(old)]
            is_own = bool(self.store.own.results.count(old))
        with self._others(shards) as others:
            stores = [self.store, *others] if is_own else others
            with _all_or_none(stores):
                for store in stores:
                    store.writer.begin()
            for store in stores:
                store.accept_durably(old, new)
        self._refresh_theirs()

    def failed_count(self, version: str) -> int:
        """How many keys have an error and no result."""
        return count_failed(self.results, self.errors, version)

    def is_retired(self, version: str, key: Key, error: Record) -> bool:
        """Whether a result retires the key's error; one without checksum stands for any key of equal str()."""
        return is_retired(self.results, version, key, error)

    # meta

    @property
    def has_meta(self) -> bool:
        """Whether meta was sound, or has been written since; of shards, that of any."""
        return bool(self.store.meta.said) or self._siblings.has_meta

    def learn_meta(self) -> None:
        """Learn what other processes noted."""
        for journals in self._siblings.all():
            self.store.meta.note(meta_in(journals.meta_path))

    def schemas_of(self, version: str) -> dict[str, Any]:
        """The schemas that results of the version may have been saved under, by digest; "" for none."""
        accepted = [
            line.accepts for line in self.results.notes().accepted if line.of == version and not line.is_of_code
        ]
        return self.store.meta.schemas_of(version, accepted)

    def note_schema(self, version: str, digest: str, classes: dict[str, Any]) -> None:
        """Results of the version may be saved under this schema from here on; meta says so when this returns."""
        with self.store.lock:
            if self.store.meta.knows_schema(version, digest):
                return
            self.learn_meta()
            self.store.meta.enter_schema(version, digest, {"classes": classes})
            self.store.writer.write_meta()

    def note_fit(self, version: str, digests: Iterable[str], schema: str) -> None:
        """All results of the version that were saved under these schemas fit another one; meta says so."""
        self.store.writer.begin()
        with self.store.lock:
            self.learn_meta()
            for digest in digests:
                self.store.meta.enter_fit(version, digest, schema)
            self.store.writer.write_meta()

    # the end

    def close(self) -> None:
        """Let go of the lock and every descriptor."""
        with self.store.lock:
            try:
                self.store.close()
            finally:
                self._siblings.close()

    def after_fork(self) -> None:
        """In a forked child: drop the parent's lock, never write."""
        self.store.after_fork()
        self._siblings.after_fork()


def _uploader(journals: Journals) -> Uploader | None:
    if not journals.replica.is_remote:
        return None
    from checkpoint.remote.uploader import Uploader

    assert isinstance(journals.replica, Uploader)
    return journals.replica


@contextmanager
def _all_or_none(stores: Iterable[Store]) -> Iterator[None]:
    """Where one of the locks cannot be had, those that were taken for it are let go at once."""
    idle = [store for store in stores if not store.writer.writing]
    try:
        yield
    except BaseException:
        for store in idle:
            store.writer.give_up()
        raise
