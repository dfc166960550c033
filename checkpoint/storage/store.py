"""What is done, and with what: three journals under one lock, shared by everyone in the process who names them.

The promise: what `append` has returned for is there at the next opening, and is found by its key; who only reads never
waits; whoever writes holds the lock. Opening reads the index files and the journals' tails.

    NAME_results.jsonl   what succeeded          .NAME_*.index    rebuildable
    NAME_errors.jsonl    what failed             .NAME.lock       who writes
    NAME_meta.json       counts, for people      .NAME_unsaved.jsonl, .NAME_*.aside   kept: values, bytes

Each shard of a checkpoint is a store of its own, whose files begin with NAME@3-of-100. A store reads its own journals
joined with those of the shards that can hold its keys, and writes its own only.
Where the journals are kept elsewhere too, a `Replica` brings them from there and back.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from copy import copy
from math import inf
from pathlib import Path
from typing import Any, Protocol

import msgspec

from checkpoint import clock
from checkpoint.catalog.merged_log import MergedLog, allow_files
from checkpoint.catalog.paths import lost_journal
from checkpoint.catalog.shards import ALL, Shard, hash_of, shards_in, split_prefix
from checkpoint.errors import CheckpointLocked, JournalLost, StoreError, StoreForked, quote
from checkpoint.remote.objects import names_under
from checkpoint.storage.condition import SYNCED, Fault, fault_of, held_records, loss_of, synced_bytes
from checkpoint.storage.files import fsync_directory, store_error
from checkpoint.storage.index import Index
from checkpoint.storage.index_file import IndexDamaged
from checkpoint.storage.journal import KINDS, Journal
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.lock import Lock
from checkpoint.storage.meta import Meta, Summary, count_or_none, meta_in
from checkpoint.storage.notes import accepting, detail_field, value_field
from checkpoint.storage.record import Record, seal, with_fields
from checkpoint.storage.replica import NoReplica, Replica
from checkpoint.values.keys import Key, earlier_digests, is_same_version, key_json, version_digest

__all__ = ["Entry", "Host", "Store", "Tombstone", "forgetting"]


log = logging.getLogger("checkpoint")
_NAMED: dict[str, Key] = {"True": True, "False": False, "None": None}
_SECOND = 1.0
_ASK_EVERY = 5.0
_IDLE = 30.0  # seconds after which who writes to a store lets go: taking hold of it again costs some requests
_META_EVERY = 30.0
_TICK = 0.1  # seconds; two changes of a directory that are nearer may have one modification time


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to append: what the index needs, and its line."""

    version: str
    key: Key
    digest: int
    line: bytes


class Tombstone(Entry, frozen=True, gc=False):
    """A record that the key has none any more."""


class _User:
    """Who uses another store meanwhile."""

    store: Store


class _Running:
    """A pass, for as long as its frame holds this."""

    __slots__ = ("__weakref__",)


class Host(Protocol):
    """What has the stores of a process: it opens them, and looks after those that are written."""

    def open(self, name: str, directory: Path, user: object, shard: Shard) -> Callable[[], None]:
        """Attach the user to another store, as its `store`; returns what detaches it."""

    def replicate(self, name: str, directory: Path, journals: Mapping[str, Journal]) -> Replica:
        """The replica of journals, by kind, whose files begin with the name."""

    def make_room(self) -> None:
        """Have idle stores let go of their locks, where there are very many: one more is about to be written."""

    def maintain(self, store: Store) -> None:
        """Call `tend` from time to time until nothing is owed: the store is being written."""


class Unattended:
    """The host of a store that stands alone: nobody looks after it."""

    def open(self, name: str, directory: Path, user: object, shard: Shard) -> Callable[[], None]:
        """As `Host.open`."""
        user.store = store = Store(name, directory, shard)  # type: ignore[attr-defined]
        return store.close

    def replicate(self, name: str, directory: Path, journals: Mapping[str, Journal]) -> Replica:
        """As `Host.replicate`: there is none."""
        return NoReplica()

    def make_room(self) -> None:
        """As `Host.make_room`."""

    def maintain(self, store: Store) -> None:
        """As `Host.maintain`."""


class Store:
    """One checkpoint on disk. Get it by `registry.open_store`: there is one for each path in a process.

    Args:
        name: a safe file-name component.
        directory: absolute.
        shard: whose journals are written.
        host: what looks after it.
        told: (version, code) of changes that this process has told.

    Attributes:
        results, errors, unsaved: the journals with their indexes; joined with those of shards, where there are any.
        name: what the files begin with.
        shards: those that are read besides its own journals.
        wrote_at: when it was written last; monotonic.
        meta: what the meta file of its own journals says.
        replica: what keeps its own journals elsewhere too.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        shard: Shard = ALL,
        host: Host | None = None,
        told: set[tuple[str, str]] | None = None,
    ) -> None:
        self._host: Host = Unattended() if host is None else host
        self._base = name
        self._shard = shard
        self.name = name = shard.prefix(name)
        self.directory = directory
        self.lock = threading.RLock()
        self.shards: list[Shard] = []  # those that are read besides its own journals
        self._shelves = self._make_shelves(name)
        self.results, self.errors, self.unsaved = self._shelves
        self._members: dict[Shard, tuple[KeyedLog, KeyedLog, KeyedLog]] = {}
        self._replicas: dict[Shard, Replica] = {}  # of these, where there are any
        self._asked_at = -inf  # monotonic; when names elsewhere were looked for
        self._has_their_meta = False
        self._looked = 0  # when the directory was modified last, as of the last look for shards
        self.meta = Meta(directory / f"{name}_meta.json", set() if told is None else told)
        self.users = 0
        self._writer = Lock(directory / f".{name}.lock", name)
        self._running: weakref.ref[_Running] | None = None
        self._writing = False
        self._forked = False
        self._failure: StoreError | None = None
        self._check_at = 0.0  # monotonic; until then a save need not look whether its file is still there
        self.wrote_at = 0.0
        self._faults: dict[Shard, Fault] = {}  # of journals that are none, and
        self._faulty: dict[Shard, Path] = {}  # which these are
        self._goes_on = False  # whether it is cleared or repaired all the same
        self._synced: dict[str, int] = {}  # bytes of its own journals that are on the medium
        self._computing: dict[str, tuple[str, bytes]] = {}  # by version: a pass's code, and the field of its detail
        self.replica = self._replicated(name, self._shelves)
        self.replica.look()
        try:
            for shelf in self._shelves:
                shelf.reopen()
            self._look_for_shards()
            for shard in (self._shard, *self._members):
                self._examine(shard)
        except BaseException:
            for shelf in (*self._shelves, *self._theirs()):
                shelf.close()  # nobody will, and who is told that too many are open must not keep them
            raise

    def _make_shelves(self, prefix: str) -> tuple[KeyedLog, KeyedLog, KeyedLog]:
        paths = (f"{prefix}_results.jsonl", f"{prefix}_errors.jsonl", f".{prefix}_unsaved.jsonl")
        results, errors, unsaved = (KeyedLog(self.directory / path, self.lock) for path in paths)
        return results, errors, unsaved

    def _replicated(self, prefix: str, shelves: Iterable[KeyedLog]) -> Replica:
        journals = {kind: shelf.journal for kind, shelf in _by_kind(shelves)}
        return self._host.replicate(prefix, self.directory, journals)

    def replica_of(self, shard: Shard) -> Replica | None:
        """What keeps a shard's journals elsewhere too, if anything does."""
        return self.replica if shard == self._shard else self._replicas.get(shard)

    # reading

    def refresh(self, *keys: Key) -> None:
        """See what other processes wrote since the last look. The writer need not look: nobody else writes.

        But for those who write shards; of these a pass that writes knows what it found when it began, and so does who
        writes to a URL: what looks there may wait for it.

        Raises:
            JournalLost: what is in a journal's place is none, or it has lost what was on the medium.
        """
        if self._writing and (self.in_pass or self.replica.is_remote):
            return
        with self.lock:
            if self._faults:
                self._forget_faults()
            if not self._writing:
                self.replica.look()
                for shelf in self._shelves:
                    shelf.refresh()
            self._refresh_theirs(*keys)
            if not self._writing:
                self._examine(self._shard)
            self._refuse_faults()

    # whether the journals are what they should be

    def _examine(self, shard: Shard) -> None:
        """Look whether the files of a shard are its journals, where they were opened anew since the last look.

        Another process may clear or compact meanwhile. It takes what meta says back first: what the same meta says
        before and after the journals are looked at holds of them.
        """
        shelves = self._shelves if shard is self._shard else self._members[shard]
        one, two, three = shelves
        if one.index is one.examined and two.index is two.examined and three.index is three.examined:
            return
        path = self.directory / f"{shard.prefix(self._base)}_meta.json"
        said: dict[str, Any] | None = None
        while (found := self._first_fault(shelves, meta := meta_in(path))) is not None and meta != said:
            said = meta
            for shelf in shelves:
                shelf.refresh()
        self._faults.pop(shard, None)
        if found is not None:
            self._faulty[shard], self._faults[shard] = found
        elif shard == self._shard:
            self._synced = {kind: min(synced_bytes(meta, kind), _size(shelf)) for kind, shelf in _by_kind(shelves)}
        for shelf in shelves:
            shelf.examined = shelf.index

    def _first_fault(self, shelves: Iterable[KeyedLog], meta: dict[str, Any]) -> tuple[Path, Fault] | None:
        """The first journal that is none, or has lost what was on the medium; errors that are lost are only told."""
        is_old = SYNCED not in meta and bool(self._members)  # then it counts those of shards too
        for kind, shelf in _by_kind(shelves):
            path, reader = shelf.journal.path, shelf.journal.reader
            says = {} if is_old or self.replica.is_remote else meta
            synced = synced_bytes(says, kind)
            fault = None if reader is None else fault_of(reader, held_records=held_records(says, kind))
            if fault is None and synced:
                size = _size(shelf)
                fault = loss_of(reader, synced, meta.get("completed_items"))
                is_short = fault is not None or size + 1 < synced  # without its last newline a file is whole
                if is_short and (fault is None or kind == "errors"):
                    log.warning(
                        "%s has %d bytes, and %d were on disk when meta was written: lines were deleted, or the file "
                        "is an older copy; what they held is not known any more", path, size, synced,
                    )  # fmt: skip
                    fault = None
            if fault is not None:
                return path, fault
        return None

    def _forget_faults(self) -> None:
        """Look again the next time."""
        self._faults.clear()
        for shelf in (*self._shelves, *self._theirs()):
            shelf.examined = None

    def _refuse_faults(self) -> None:
        if self._faults and not self._goes_on:
            shard = next(iter(self._faults))
            raise lost_journal(self._faulty[shard], self._faults[shard], self._base, self.directory)

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """Clear or repair what else would be refused."""
        before, self._goes_on = self._goes_on, True
        try:
            yield
        finally:
            self._goes_on = before

    @contextmanager
    def all_as_they_are(self) -> Iterator[None]:
        """`alone`, whatever is in the journals' places; a journal that still holds records is repaired.

        What is there at the end is what meta says.

        Raises:
            JournalLost: another kind of file is in a journal's place, or it is gone.
            CheckpointLocked, StoreError: as `alone`.
        """
        with self.lock, self._going_on(), self.alone():
            fault = self._faults.get(self._shard)
            if fault is not None and not (fault.is_altered or fault.has_rest):
                raise lost_journal(self._faulty[self._shard], fault, self._base, self.directory)
            yield
            if fault is not None:
                self._forget_faults()
                self._synced, self.meta.owed = {}, True
            for kind, shelf in _by_kind(self._shelves):  # one whose torn end was its only line is shorter now
                if self._synced.get(kind, 0) > _size(shelf):
                    self._synced[kind], self.meta.owed = _size(shelf), True

    @property
    def own(self) -> tuple[KeyedLog, KeyedLog, KeyedLog]:
        """Its own journals of results, errors and values kept aside: those that it writes."""
        return self._shelves

    @property
    def parts(self) -> list[tuple[KeyedLog, KeyedLog]]:
        """(results, errors) of each shard that is read, its own first."""
        return [shelves[:2] for shelves in (self._shelves, *self._members.values())]

    def _look_for_shards(self) -> None:
        """Join the journals of shards that came into the directory: it is listed once it was modified."""
        found = self._shards_in_store()
        try:
            modified = os.stat(self.directory).st_mtime_ns
            if modified == self._looked and not found:
                return
            found |= shards_in(self.directory, self._base)
            self._looked = modified if clock.now() - modified / 1e9 > _TICK else 0
        except OSError:
            pass  # no directory yet; or one that cannot be read, which opening a file in it tells
        if self._shard != ALL:
            found = found - {self._shard} | {ALL}
        # Shards of one count share no key: a task need not open the journals of its thousand siblings.
        others = {shard for shard in found if self._shard == ALL or shard.of != self._shard.of}
        if missing := sorted(shard for shard in others - self._members.keys() if shard.meets(self._shard)):
            self._join(missing)

    def _shards_in_store(self) -> set[Shard]:
        """Those that the store has which the directory mirrors; it is asked every few seconds."""
        now = clock.monotonic()
        if not self.replica.is_remote or now - self._asked_at < _ASK_EVERY:
            return set()
        self._asked_at = now
        try:
            prefixes = names_under(self.directory)
        except StoreError as error:
            log.debug("%s", error)
            return set()
        return {shard for name, shard in map(split_prefix, prefixes) if name == self._base} - {self._shard}

    def _join(self, shards: list[Shard]) -> None:
        allow_files(6 * len(shards))
        for shard in shards:
            prefix = shard.prefix(self._base)
            shelves = self._make_shelves(prefix)
            if self.replica.is_remote:
                self._replicas[shard] = self._replicated(prefix, shelves)
                self._replicas[shard].look()
            for shelf in shelves:
                shelf.reopen()
            self._members[shard] = shelves
        self.shards = list(self._members)
        kinds = [
            MergedLog({self._shard: own, **{shard: shelves[kind] for shard, shelves in self._members.items()}})
            for kind, own in enumerate(self._shelves)
        ]
        self.results, self.errors, self.unsaved = kinds
        for shard in shards:
            meta = meta_in(self.directory / f"{shard.prefix(self._base)}_meta.json")
            self._has_their_meta = self._has_their_meta or bool(meta)
            self.meta.note(meta)

    def whole_total(self) -> int | None:
        """How many items the last pass had: of shards, the sum of those of its count, where each of them has said it.

        The last pass is the one that began last, as the meta files say.
        """
        if self._writing or not self._members:
            return self.meta.total
        totals: dict[int, list[int]] = {}
        moments: dict[int, str] = {}
        for shard in (self._shard, *self._members):
            meta = meta_in(self.directory / f"{shard.prefix(self._base)}_meta.json")
            total = count_or_none(meta.get("total_items"))
            if total is not None:
                totals.setdefault(shard.of, []).append(total)
                moment = str(meta.get("last_pass") or meta.get("last_updated", ""))
                moments[shard.of] = max(moments.get(shard.of, ""), moment)
        if not totals:
            return None
        last = max(moments, key=lambda of: (moments[of], of))
        return sum(totals[last]) if len(totals[last]) == last else None

    @property
    def latest(self) -> str:
        """The version of the last record, results before errors; "" is none."""
        return (self.errors if self.results.is_empty else self.results).latest

    # writing

    @property
    def writing(self) -> bool:
        """Whether this process holds the lock."""
        return self._writing

    def begin_writing(self) -> None:
        """Hold the lock, be up to date, and be able to append: at once where that is so already.

        Raises:
            CheckpointLocked: another process writes.
            StoreError: naming what is not writable, or why this store refuses.
        """
        if self._writing and clock.monotonic() < self._check_at:
            return
        with self.lock:
            self._refuse_if_unfit()
            if not self._writing:
                self._take_lock()
            self._check_places()

    def _refuse_if_unfit(self) -> None:
        if self._forked:
            raise StoreForked(
                f"checkpoint {self.name!r} was opened by the parent of this forked process and cannot be written here; "
                "make a new runner in the child, under another name, or send the results to the parent"
            )
        if self._failure is not None:
            failure = copy(self._failure)
            failure.unsaved = {}  # each carries its own
            raise failure

    def _take_lock(self) -> None:
        self._host.make_room()
        try:
            _make_directory(self.directory, is_new=self.results.is_empty and self.errors.is_empty)
        except OSError as error:
            raise store_error(error, "cannot make the directory", self.directory) from error
        self.replica.take_turn()
        try:
            self._open_to_write()
        finally:
            self.replica.end_turn()
        try:
            self._refresh_theirs()
            self._refuse_faults()
        except BaseException:
            self._let_go()
            raise
        if not self.in_pass:  # what the last pass said, wherever it ran
            self.meta.reread()
        self._writing = True
        self._check_at = clock.monotonic() + _SECOND
        self.wrote_at = self.meta.written_at = clock.monotonic()
        self._host.maintain(self)
        if self.meta.read().get("total_items", -1) != self.meta.total:  # who looks on sees how much this pass has to do
            self._write_meta()

    def _theirs(self) -> list[KeyedLog]:
        """The journals of other shards."""
        return [shelf for shelves in self._members.values() for shelf in shelves]

    def _refresh_theirs(self, *keys: Key) -> None:
        """Of one key, the journals that can hold it are enough: looking at those of a thousand shards takes a while."""
        with self.lock:
            self._look_for_shards()
            for replica in self._replicas.values():
                replica.look()
            hashes = [hash_of(key) for key in keys]
            for shard, shelves in self._members.items():
                can_hold = not keys or any(hashed % shard.of == shard.number for hashed in hashes)
                if can_hold or any(shelf.has_loose for shelf in shelves):
                    for shelf in shelves:
                        shelf.refresh()
                    self._examine(shard)

    def _open_to_write(self) -> None:
        self._writer.acquire()
        try:
            self.replica.begin()
            for shelf in self._shelves:
                shelf.refresh()
            self._examine(self._shard)
            self._refuse_faults()  # before the end of one is repaired
            for shelf in self._shelves[:2] if not self._faults else ():
                shelf.open_to_write()
            self._settle_names()
            self._shelves[2].refresh()
            self.replica.start()
        except BaseException:
            self._let_go()
            raise

    def _settle_names(self) -> None:
        """Who made or replaced a journal may have been killed before its name was on the medium."""
        try:
            fsync_directory(self.directory)
        except PermissionError:
            pass  # it may be written in, and not be opened
        except OSError as error:
            raise store_error(error, "cannot sync", self.directory) from error

    def _check_places(self, *, at_once: bool = False) -> None:
        """Notice a journal that was cut, deleted or replaced, and a lock: once a second, and before writing ends."""
        if clock.monotonic() < self._check_at and not at_once:
            return
        try:
            self.replica.check()
        except CheckpointLocked as error:
            raise self._fail(error) from None
        for shelf in self._shelves:
            try:
                shelf.journal.check_place()
            except JournalLost as error:
                raise self._fail(self._first_lost() or self._at_risk(shelf, error)) from None
        try:
            self._writer.check()
        except StoreError as error:
            raise self._fail(error) from error.__cause__
        self._check_at = clock.monotonic() + _SECOND

    def _first_lost(self) -> JournalLost | None:
        """Files that go together do not go at one moment: results are told before errors."""
        for shelf in self._shelves:
            try:
                shelf.journal.check_place()
            except JournalLost as error:
                return self._at_risk(shelf, error)
        return None

    def _at_risk(self, shelf: KeyedLog, error: JournalLost) -> JournalLost:
        reader = shelf.journal.reader
        assert reader is not None
        if reader.is_current():
            keys = shelf.index.keys_from(min(error.intact, reader.tail()[0]))
        else:
            lost = Index()
            lost.scan(reader)  # the open descriptor still reads the file that has no name any more
            keys = lost.keys_from(0)
        shown = ", ".join([quote(key, 60) for key in keys[:10]]) + (", …" if len(keys) > 10 else "")
        return JournalLost(
            f"{error}; {len(keys):,} keys are at risk: {shown or 'none'}. Nothing more is written to it: put the file "
            "back and run the same line again, which tells what else can be done",
            errno=error.errno,
            strerror=error.strerror,
            filename=error.filename,
            intact=error.intact,
            keys=keys,
        )

    def _fail(self, error: StoreError) -> StoreError:
        """Refuse every later write: what is known of the files no longer holds. The next pass opens them anew."""
        self._failure = error
        self._check_at = -inf  # the next write looks, and finds it
        return error

    def append(self, shelf: KeyedLog, entries: Sequence[Entry], *, durable: bool = False) -> None:
        """Append records of one version, all of them to be found or to be forgotten: one write; a sync where `durable`.

        Raises:
            StoreError: none of them is on disk.
        """
        with self.lock:
            now = self.wrote_at = clock.monotonic()
            if not self._writing or now >= self._check_at:
                self.begin_writing()
            journal, index = shelf.journal, shelf.index
            if not journal.writable:
                shelf.open_to_write()
                index = shelf.index
            lines = [entry.line for entry in entries]
            keys, version = [entry.key for entry in entries], entries[0].version
            forgets = type(entries[0]) is Tombstone
            owed = version not in shelf.settled and not forgets
            noted = self._explain(shelf, version, lines) if owed else -1
            offset = self._write(shelf, lines[0] if len(lines) == 1 else b"".join(lines))
            if forgets:
                for key in keys:
                    index.forget(version, key)
            else:
                sizes = list(map(len, lines))
                index.add_all(version, keys, offset, sizes, [entry.digest for entry in entries])
                if owed:
                    self._settle(shelf, version, lines, offset + sum(sizes[:noted]) if noted >= 0 else -1)
            index.end = journal.end
            if durable:
                self._sync(journal)

    def append_one(
        self, shelf: KeyedLog, version: str, key: Key, digest: int, line: bytes, *, durable: bool = False
    ) -> None:
        """`append` for one record that forgets nothing: the per-item path, told flat because it is hot."""
        with self.lock:
            now = self.wrote_at = clock.monotonic()
            if not self._writing or now >= self._check_at:
                self.begin_writing()
            if version not in shelf.settled:
                entry = Entry(version, key, digest, line)
                self.append(shelf, [entry], durable=durable)
                return
            offset = self._write(shelf, line)
            index = shelf.index
            index.add(version, key, offset, digest)
            index.end = shelf.journal.end
            if durable:
                self._sync(shelf.journal)

    def append_loose(self, lines: list[bytes]) -> None:
        """Append results without checksum, which stand for any key of equal str()."""
        with self.lock:
            self.begin_writing()
            shelf = self._shelves[0]
            if not shelf.journal.writable:
                shelf.open_to_write()
            self._write(shelf, b"".join(lines))
            self._learn_foreign(shelf)

    def _explain(self, shelf: KeyedLog, version: str, lines: list[bytes]) -> int:
        """Add to one of the lines what the journal does not say yet of its version and code; which one, or -1."""
        own = next(own for own in self._shelves if own.journal is shelf.journal)
        if own is self._shelves[2]:
            return -1
        notes = own.notes()
        code, detail = self._computing.get(version, ("", b""))
        place = next((place for place, line in enumerate(lines) if _names(line, code)), -1) if code else -1
        fields = b"" if place < 0 or code in notes.details else detail
        if version and version not in notes.labels and version in self.meta.labels:
            fields += value_field(self.meta.labels[version])
        if not fields:
            return -1
        place = max(place, 0)
        lines[place] = with_fields(lines[place], fields)
        return place

    def _settle(self, shelf: KeyedLog, version: str, lines: list[bytes], noted: int) -> None:
        """Lines of the version are written; the one at the offset `noted` (-1: none) says what digests stand for."""
        if noted >= 0:
            shelf.index.notes.append(noted)
        code, _ = self._computing.get(version, ("", b""))
        is_named = any(_names(line, code) for line in lines) if code else True
        if code and is_named:
            shelf.index.note_codes(version, [code])
        if is_named:
            shelf.settled.add(version)

    def _write(self, shelf: KeyedLog, lines: bytes) -> int:
        journal = shelf.journal
        try:
            if journal.in_doubt or journal.end != shelf.index.end:
                shelf.settle_doubt()
            known = journal.end
            offset = journal.append(lines)
        except StoreError as error:
            raise self._unwritten(shelf, error) from error.__cause__
        if offset != known:
            self._learn_foreign(shelf)
        self.meta.owed = True
        return offset

    def _unwritten(self, shelf: KeyedLog, error: StoreError) -> StoreError:
        """A full disk passes; a file that was cut, or an I/O error, means that nobody knows what is on the medium."""
        if isinstance(error, JournalLost):
            return self._fail(self._at_risk(shelf, error))
        return self._fail(error) if error.errno == errno.EIO else error

    def _learn_foreign(self, shelf: KeyedLog) -> None:
        """Another program appended lines before ours: they count too."""
        if shelf.journal.reader is not None:
            shelf.index.scan(shelf.journal.reader)

    def _sync(self, journal: Journal) -> None:
        try:
            journal.sync()
        except StoreError as error:
            raise self._fail(error) from error.__cause__

    def confirm(self) -> None:
        """What was found is on the medium when this returns: its writer may have been killed before it synced it."""
        if any(shelf.journal.is_doubtful for shelf in self._shelves):
            self.begin_writing()  # which writes it again
        for reader in (*self.results.readers, *self.errors.readers):
            try:
                reader.sync()
            except StoreError as error:
                raise self._fail(error) from error.__cause__

    def forget(self, version: str, keys: Iterable[Key], session: bytes, *, durable: bool = False) -> int:
        """Append what forgets the keys' records under the version, where they are; returns how many keys had one.

        Raises:
            CheckpointLocked: another process writes one of the journals that know them; nothing was forgotten.
        """
        keys = list(keys)
        self._refresh_theirs()
        with self._others(self._that_know(version, keys)) as others:
            stores = [self, *others] if not others or _knows(self._shelves, version, keys) else others
            with self._all_or_none(stores):
                for store in stores:
                    store.begin_writing()
            forgotten = [store._forget_here(version, keys, session, durable=durable) for store in stores]
        self._refresh_theirs()
        return len(set().union(*forgotten))

    def _that_know(self, version: str, keys: list[Key]) -> list[Shard]:
        with self.lock:
            return [shard for shard, shelves in self._members.items() if _knows(shelves, version, keys)]

    @contextmanager
    def _others(self, shards: Iterable[Shard]) -> Iterator[list[Store]]:
        """The stores of other shards, to be written. Two of them may want each other's: hold no store's lock here."""
        with ExitStack() as opened:
            users = [_User() for _ in shards]
            for user, shard in zip(users, shards, strict=True):
                opened.callback(self._host.open(self._base, self.directory, user, shard))
            yield [user.store for user in users]

    @contextmanager
    def _all_or_none(self, stores: Iterable[Store]) -> Iterator[None]:
        """Where one of the locks cannot be had, those that were taken for it are let go at once."""
        idle = [store for store in stores if not store.writing]
        try:
            yield
        except BaseException:
            for store in idle:
                with store.lock, suppress(StoreError):
                    if not store.in_pass:
                        store._stop_writing()
            raise

    def _forget_here(self, version: str, keys: list[Key], session: bytes, *, durable: bool) -> set[int]:
        """The places of those keys that had a record in the own journals."""
        forgotten: set[int] = set()
        with self.lock:
            for shelf in self._shelves:
                known = [(place, key) for place, key in enumerate(keys) if shelf.find(version, key) is not None]
                forgotten.update(place for place, _ in known)
                if known:
                    self.append(shelf, [forgetting(version, key, session) for _, key in known], durable=durable)
        return forgotten

    def discard(self, shelf: KeyedLog, version: str, key: Key, offset: int, session: bytes) -> None:
        """The key's record proved damaged: it is not done from now on, and on disk too where that can be said.

        A later record of the key, or a file that is no longer the current one, is another matter.
        """
        with self.lock:
            place = shelf.find(version, key)
            if place is None or place.offset != offset:
                return
            shard, own, local = shelf.shard_at(offset) if isinstance(shelf, MergedLog) else (self._shard, shelf, offset)
            if shard == self._shard:
                try:
                    self.append(own, [forgetting(version, key, session)])
                except (StoreError, StoreForked) as error:
                    log.debug("the damage of key %s was not noted on disk: %s", quote(key), error)
                    own.index.forget(version, key)
                return
            assert isinstance(shelf, MergedLog)
            shelf.forget_at(offset, version, key)
        try:
            with self._others([shard]) as (other,):
                other.discard_at(own.journal.path, version, key, local, session)
        except (StoreError, StoreForked) as error:
            log.debug("the damage of key %s was not noted on disk: %s", quote(key), error)

    def discard_at(self, path: Path, version: str, key: Key, offset: int, session: bytes) -> None:
        """`discard` of a record at an offset in that one of the own journals."""
        (shelf,) = (shelf for shelf in self._shelves if shelf.journal.path == path)
        with self.lock:
            place = shelf.find(version, key)
            if place is not None and place.offset == offset:
                self.append(shelf, [forgetting(version, key, session)])

    def clear(self) -> None:
        """Forget everything: unlink the journals, indexes and meta. Lock files and bytes set aside stay.

        Raises:
            CheckpointLocked: another process writes one of the journals; nothing was forgotten.
        """
        self._refresh_theirs()
        with self._others(list(self._members)) as others:
            with self._all_or_none((self, *others)):
                for store in (self, *others):
                    store._begin_anew()
            for store in (self, *others):
                store._clear_here()
        self._refresh_theirs()
        self._faults.clear()

    def _begin_anew(self) -> None:
        with self.lock:
            if self._failure is not None:
                self._start_anew()
            with self._going_on():
                self.begin_writing()
            self.replica.suspend()

    def _clear_here(self) -> None:
        with self.lock, self._going_on():
            self.begin_writing()
            self.replica.clear()
            try:
                self.meta.path.unlink(missing_ok=True)
                fsync_directory(self.directory)  # it says what is in the journals: it is gone before they are
                for shelf in self._shelves:
                    shelf.unlink()
                fsync_directory(self.directory)
            except OSError as error:
                self._let_go()  # what is left is opened anew
                raise store_error(error, "cannot delete", self.directory) from error
            self.meta.clear()
            self._synced = {}
            self._faults.clear()
            self._stop_writing()

    def replace(self, shelf: KeyedLog, chunks: Iterable[bytes]) -> None:
        """A journal of these lines takes the place of the shelf's; call it inside of `alone`.

        Raises:
            StoreError: as `KeyedLog.replace`.
        """
        self.replica.suspend()
        kind = next(kind for kind, own in _by_kind(self._shelves) if own is shelf)
        self._take_back(kind, shelf)
        self.meta.owed = True
        shelf.replace(chunks)
        self._synced[kind] = _size(shelf)

    def _take_back(self, kind: str, shelf: KeyedLog) -> None:
        """Meta says nothing of the size of the journal, for good: it is about to become shorter."""
        shelf.journal.stop_writing()  # what this opening has synced counts no more
        self._synced.pop(kind, None)
        if not synced_bytes(self.meta.read(), kind):
            return
        try:
            self._replace_meta(durable=True)
        except OSError as error:
            raise store_error(error, "cannot replace", self.meta.path) from error

    # passes

    @contextmanager
    def a_pass(self) -> Iterator[None]:
        """One pass at a time on one checkpoint; the lock is let go when it ends.

        Raises:
            CheckpointLocked: another pass of this process is running.
        """
        with self.lock:
            if self.in_pass:
                raise self._pass_running()
            if self._failure is not None:
                self._start_anew()
            self.meta.pass_since = clock.Stamper()().decode()
            running = _Running()
            self._running = weakref.ref(running)
        values_on_error = False
        try:
            self.refresh()
            if self._writing:  # what was saved by hand just now: then `refresh` leaves it at that
                self._refresh_theirs()
            yield
        except StoreError:
            values_on_error = True
            raise
        finally:
            try:
                self.replica.drain()  # here, and not under the lock that others wait for to save
            finally:
                self._end_pass(values_on_error=values_on_error)

    def _end_pass(self, *, values_on_error: bool) -> None:
        if self.lock._is_owned():  # type: ignore[attr-defined]
            # A garbage collection, in the middle of an append of this thread, dropped a stream: who tends lets go.
            self._running = None
            return
        with self.lock:
            self._running = None
            try:
                self._stop_writing()
            except StoreError as error:
                if not values_on_error:
                    raise
                log.error("%s", error)  # the one that is raised holds values that are nowhere else

    @property
    def in_pass(self) -> bool:
        """Whether a pass runs, which is over when its frame is: Ctrl-C between any two lines leaves none behind."""
        return self._running is not None and self._running() is not None

    def _pass_running(self) -> CheckpointLocked:
        return CheckpointLocked(
            f"a pass over checkpoint {self.name!r} in {self.directory} is running in this process (since "
            f"{self.meta.pass_since}); finish or close it first, or use another name",
            errno=errno.EWOULDBLOCK,
            strerror="locked",
            filename=str(self.results.journal.path),
            pid=os.getpid(),
            since=self.meta.pass_since,
        )

    def _start_anew(self) -> None:
        self._failure = None
        self._let_go()
        for shelf in (*self._shelves, *self._theirs()):
            shelf.reopen()

    @contextmanager
    def all_alone(self, *, to_clear: bool = False) -> Iterator[None]:
        """`alone`, with every shard; to clear them, whatever is in the journals' places.

        Raises:
            CheckpointLocked, StoreError: as `alone`.
        """
        with self._others(list(self._members)) as others, ExitStack() as held:
            for store in (self, *others):
                if to_clear:
                    held.enter_context(store._going_on())
                held.enter_context(store.alone())
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock while no pass runs and no thread of this process writes; it is let go at the end.

        Raises:
            CheckpointLocked: a pass of this process is running, or another process writes.
            StoreError: as `begin_writing`.
        """
        with self.lock:
            if self.in_pass:
                raise self._pass_running()
            if self._failure is not None:
                self._start_anew()
            self.begin_writing()
            try:
                self._check_places(at_once=True)
                yield
            finally:
                self._stop_writing()

    # letting go

    def _stop_writing(self) -> None:
        """Everything on the medium, meta and index up to date, the lock let go."""
        if not self._writing:
            return
        try:
            if self._failure is None:
                self._check_places(at_once=True)
                for shelf in self._shelves:
                    self._sync(shelf.journal)
                    # Who opens the checkpoint opens all shards: together they leave as much to be read anew as one.
                    of = self._shard.of
                    shelf.write_index_if_worth(growth=0.5, rows=100_000 // of, size=(32 << 20) // of)
                if self.meta.owed:
                    self._write_meta()
        finally:
            try:
                self.replica.finish()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self._writing = False
        self.replica.let_go()
        for shelf in self._shelves:
            shelf.journal.stop_writing()
        self._writer.release()

    def close(self) -> None:
        """Let go of the lock and every descriptor."""
        with self.lock:
            try:
                self._stop_writing()
            finally:
                for shelf in (*self._shelves, *self._theirs()):
                    shelf.close()

    # housekeeping, by a thread that lives while something is owed

    def tend(self) -> bool:
        """Sync what was written, keep meta and index from falling far behind; False once nothing is owed."""
        try:
            self._sync_aside()
            with self.lock:
                if self._writing and self._failure is None:
                    self._check_places()
        except StoreError as error:
            log.error("%s", error)
        with self.lock:
            if not self._writing:
                return False
            if not self.in_pass and self._is_idle():
                try:
                    self._stop_writing()
                except StoreError as error:
                    log.error("%s", error)
                return False
            owed = self.meta.owed and clock.monotonic() - self.meta.written_at >= _META_EVERY
        if owed:
            self._write_meta()
        for shelf in self._shelves:
            # It is for whoever opens what a kill leaves behind: so much is read in the time that writing it would take.
            shelf.write_index_if_worth(growth=0.5, rows=500_000, size=256 << 20)
        return True

    def _is_idle(self) -> bool:
        """Whether nothing was written for a while; where a replica lags behind, letting go would wait for it."""
        idle = clock.monotonic() - self.wrote_at
        return idle >= (_IDLE if self.replica.is_remote else _SECOND) and self.replica.is_settled

    def stop_if_idle(self) -> None:
        """Stop writing at once, where no pass runs and no thread is at it."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if not self.in_pass and not self.replica.is_remote:
                self._stop_writing()
        except StoreError as error:
            log.error("%s", error)
        finally:
            self.lock.release()

    def _sync_aside(self) -> None:
        for shelf in self._shelves:
            try:
                with self.lock:
                    sync = shelf.journal.lend() if self._writing else None
                if sync is not None:
                    sync()
            except StoreError as error:
                with self.lock:
                    raise self._fail(error) from error.__cause__

    # meta

    def _write_meta(self) -> None:
        """Replace the file atomically. It tells people and is rebuildable: failing to write it is not an error."""
        with self.lock:
            self.meta.owed = False
            self.meta.written_at = clock.monotonic()
            try:
                self._replace_meta()
            except OSError as error:
                log.debug("%s was not written: %s", self.meta.path, error)

    def _replace_meta(self, *, durable: bool = False) -> None:
        text = self.meta.compose(self._base, self._summary(), self._note_synced())
        self.meta.replace(text, f"{self.name}_meta", durable=durable)

    def _summary(self) -> Summary:
        """What one shard holds is told of its own journals; the whole, of all that are joined."""
        version = self.latest
        results, errors, _ = (self.results, self.errors, None) if self._shard == ALL else self._shelves
        return Summary(results.count(version), self._count_failed(errors, version), self.versions, self.details)

    def _note_synced(self) -> dict[str, int]:
        """Bytes of each journal that are on the medium, which is what is there at least after any crash."""
        for kind, shelf in _by_kind(self._shelves):
            synced = max(self._synced.get(kind, 0), shelf.journal.synced)
            if synced:
                self._synced[kind] = synced
        return dict(self._synced)

    # what computed results, and what digests stand for

    @property
    def versions(self) -> dict[str, Any]:
        """By digest, the values of versions, as far as they are known."""
        known = dict(self.meta.labels)  # other threads open versions meanwhile
        for shelf in (self.errors, self.results):
            known.update(shelf.notes().labels)
        return known

    @property
    def details(self) -> dict[str, Any]:
        """By fingerprint, what it stands for, as far as that is known."""
        noted = {**self.errors.notes().details, **self.results.notes().details}
        return {**{code: told for code, told in self.meta.details.items() if code not in noted}, **noted}

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

    @property
    def has_meta(self) -> bool:
        """Whether meta was sound, or has been written since; of shards, that of any."""
        return bool(self.meta.said) or self._has_their_meta

    def learn_meta(self) -> None:
        """Learn what other processes noted."""
        self.meta.note(self.meta.read())
        for shard in self._members:
            self.meta.note(meta_in(self.directory / f"{shard.prefix(self._base)}_meta.json"))

    def digest_of_version(self, version: Any, what: str = "version") -> str:
        """What records call a version: what they called it before, where they have a shorter digest of it; "" for None.

        Where the value is on disk it is compared, too.

        Raises:
            InvalidOption: the version is not JSON-like.
        """
        if version is None:
            return ""
        digest = version_digest(version, what, self._base)
        shelves = (self.results, self.errors, self.unsaved)
        if not any(digest in shelf.versions for shelf in shelves):
            labels = self.versions
            for before in earlier_digests(version):
                is_there = any(before in shelf.versions for shelf in shelves)
                if is_there and (before not in labels or is_same_version(labels[before], version)):
                    return before
        return digest

    def begin_computing(self, version: str, code: str, detail: Any) -> None:
        """Records of the version are computed by this code from here on: the first one in each journal says so."""
        with self.lock:
            self._computing[version] = code, detail_field(detail)
            for shelf in self._shelves:
                shelf.settled.discard(version)

    def end_computing(self, version: str) -> None:
        """What is saved from here on is not known to be computed by any code."""
        self._computing.pop(version, None)

    def accept_codes(self, codes: Iterable[str], code: str) -> None:
        """Results of these fingerprints count for another one from now on, here and wherever the journal is read.

        Raises:
            CheckpointLocked, StoreError: as `alone`.
        """
        with self.lock:
            self.begin_writing()
            for old in codes:
                if (old, code) not in self.accepted:
                    self._accept(old, code)

    def accept_version(self, old: str, new: str) -> None:
        """The results that a version has at this moment count for another one, where that has none of the key.

        Each journal that has results of it says so for its own.

        Raises:
            CheckpointLocked: another process writes one of the journals; nothing was accepted.
            StoreError: as `alone`.
        """
        self._refresh_theirs()
        with self.lock:
            shards = [shard for shard, (results, *_) in self._members.items() if results.count(old)]
            is_own = bool(self._shelves[0].count(old))
        with self._others(shards) as others:
            stores = [self, *others] if is_own else others
            with self._all_or_none(stores):
                for store in stores:
                    store.begin_writing()
            for store in stores:
                store.accept_here(old, new)
        self._refresh_theirs()

    def accept_here(self, old: str, new: str) -> None:
        """`accept_version` for the own journals alone."""
        with self.lock:
            self.begin_writing()
            self._accept(old, new)
            self._sync(self._shelves[0].journal)

    def _accept(self, old: str, new: str) -> None:
        shelf = self._shelves[0]
        if not shelf.journal.writable:
            shelf.open_to_write()
        offset = self._write(shelf, accepting(old, new))
        index, reader = shelf.index, shelf.journal.reader
        index.notes.append(offset)
        index.end = shelf.journal.end
        assert reader is not None
        if "-" not in old:
            try:
                index.accept(old, new, reader)
            except (IndexDamaged, OSError):
                shelf.learn_anew()

    def schemas_of(self, version: str) -> dict[str, Any]:
        """The schemas that results of the version may have been saved under, by digest; "" for none."""
        accepted = [
            line.accepts for line in self.results.notes().accepted if line.of == version and not line.is_of_code
        ]
        return self.meta.schemas_of(version, accepted)

    def note_schema(self, version: str, digest: str, classes: dict[str, Any]) -> None:
        """Results of the version may be saved under this schema from here on; meta says so when this returns."""
        with self.lock:
            if self.meta.knows_schema(version, digest):
                return
            self.learn_meta()
            self.meta.enter_schema(version, digest, {"classes": classes})
            self._write_meta()

    def note_fit(self, version: str, digests: Iterable[str], schema: str) -> None:
        """All results of the version that were saved under these schemas fit another one; meta says so."""
        self.begin_writing()
        with self.lock:
            self.learn_meta()
            for digest in digests:
                self.meta.enter_fit(version, digest, schema)
            self._write_meta()

    def failed_count(self, version: str) -> int:
        """How many keys have an error and no result."""
        return self._count_failed(self.errors, version)

    def _count_failed(self, errors: KeyedLog, version: str) -> int:
        return sum(not self.is_retired(version, key, error) for key, error in errors.sound(version))

    def is_retired(self, version: str, key: Key, error: Record) -> bool:
        """Whether a result retires the key's error; one without checksum stands for any key of equal str()."""
        if self.results.find(version, key) is not None:
            return True
        return not error.crc and self.results.find(version, _key_spelled(str(key))) is not None

    # forks

    def after_fork(self) -> None:
        """In a forked child: drop the parent's lock, never write."""
        self.lock = threading.RLock()
        for shelf in (*self._shelves, *self._theirs()):
            shelf.lock = self.lock
            shelf.index.after_fork()
        for joined in (self.results, self.errors, self.unsaved):
            joined.lock = self.lock
        self._forked = True
        self._writing = False
        self._running = None
        for shelf in self._shelves:
            shelf.journal.stop_writing()
        self._writer.drop()
        for replica in (self.replica, *self._replicas.values()):
            replica.after_fork()


def _by_kind(shelves: Iterable[KeyedLog]) -> Iterator[tuple[str, KeyedLog]]:
    return zip(KINDS, shelves, strict=True)


def _size(shelf: KeyedLog) -> int:
    return 0 if shelf.journal.reader is None else shelf.journal.reader.size()


def _names(line: bytes, code: str) -> bool:
    """Whether a record names this code."""
    return b',"code":"%b"' % code.encode() in line


def _knows(shelves: Iterable[KeyedLog], version: str, keys: list[Key]) -> bool:
    return any(max(shelf.find_all(version, keys)[0], default=-1) >= 0 for shelf in shelves)


def _make_directory(path: Path, *, is_new: bool) -> None:
    """The directory is there, and its name survives a power cut: of a new one also where its maker was just killed."""
    missing = [new for new in (path, *path.parents) if not new.exists()]
    if is_new or missing:
        there = missing[-1].parent if missing else path
        try:
            fsync_directory(there.parent)  # each is synced before the next is made: only the deepest may be in doubt
        except PermissionError:
            pass  # the user's own, where we cannot look
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        fsync_directory(new.parent)


def forgetting(version: str, key: Key, session: bytes) -> Tombstone:
    """The record that forgets a key's."""
    head = b'{"key":%b,"forgotten":true,"timestamp":"%b"' % (key_json(key), clock.Stamper()())
    if version:
        head += b',"version":"%b"' % version.encode()
    return Tombstone(version, key, 0, seal(head + b',"session":"%b"' % session))


def _key_spelled(text: str) -> Key:
    """The number, bool or None whose str() this is, or else the text."""
    for read in (int, float, _NAMED.__getitem__):
        try:
            key: Key = read(text)
        except (ValueError, KeyError):
            continue
        if str(key) == text:
            return key
    return text
