"""What is done, and with what: three journals under one lock.

The promise: what `append` has returned for is there at the next opening, and is found by its key; who only reads never
waits; whoever writes holds the lock. Opening reads the index files and the journals' tails.

    NAME_results.jsonl   what succeeded          .NAME_*.index    rebuildable
    NAME_errors.jsonl    what failed             .NAME.lock       who writes
    NAME_meta.json       counts, for people      .NAME_unsaved.jsonl, .NAME_*.aside   kept: values, bytes

A store knows its own journals only. What else is read beside them, and who looks after it, its `Host` knows; where the
journals are kept elsewhere too, a `Replica` brings them from there and back.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from math import inf
from pathlib import Path
from typing import Any, Protocol

import msgspec

from checkpoint import clock
from checkpoint.errors import CheckpointLocked, JournalLost, StoreError, StoreForked
from checkpoint.storage.annotator import Annotator
from checkpoint.storage.condition import synced_bytes
from checkpoint.storage.files import fsync_directory, store_error
from checkpoint.storage.index_file import IndexDamaged
from checkpoint.storage.journal import Journal, Reader
from checkpoint.storage.journals import Journals, at_risk, size_of
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.lock import INSTEAD, Lock
from checkpoint.storage.meta import Meta, Summary
from checkpoint.storage.notes import accepting
from checkpoint.storage.record import seal
from checkpoint.storage.replica import NoReplica, Replica
from checkpoint.storage.source import count_failed, latest_of
from checkpoint.values.keys import Key, key_json

__all__ = ["Entry", "Host", "Store", "Tombstone", "forgetting"]


log = logging.getLogger("checkpoint")
_SECOND = 1.0
_IDLE = 30.0  # seconds after which who writes to a store lets go: taking hold of it again costs some requests
_META_EVERY = 30.0


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to append: what the index needs, and its line."""

    version: str
    key: Key
    digest: int
    line: bytes


class Tombstone(Entry, frozen=True, gc=False):
    """A record that the key has none any more."""


class _Running:
    """A pass, for as long as its frame holds this."""

    __slots__ = ("__weakref__",)


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

    def __init__(self, store: Store) -> None:
        self._store = store

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
        if self._store.own.fault is not None:
            path, fault = self._store.own.fault
            raise JournalLost(f"{path} {fault.what}", errno=errno.ESTALE, filename=str(path))

    def summary(self) -> Summary:
        """As `Host.summary`."""
        results, errors, meta = self._store.results, self._store.errors, self._store.meta
        version = latest_of(results, errors)
        return Summary(
            results.count(version),
            count_failed(results, errors, version),
            meta.versions(results, errors),
            meta.codes(results, errors),
        )


class Store:
    """Three journals on disk, and the lock of whoever writes them.

    Args:
        name: what the files begin with.
        directory: absolute.
        experiment: what meta calls it; default `name`.
        host: makes what it is part of.
        told: (version, code) of changes that this process has told.
        instead: what else whoever finds it locked can do; default to use another name or directory.
        share: how many such stores are opened together: they leave as much to be read anew as one.

    Attributes:
        own: the journals.
        results, errors, unsaved: the logs of these.
        meta: what the meta file says.
        replica: what keeps the journals elsewhere too.
        writing: whether this process holds the lock.
        wrote_at: when it was written last; monotonic.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        experiment: str = "",
        host: Callable[[Store], Host] = Unattended,
        told: set[tuple[str, str]] | None = None,
        instead: str = INSTEAD,
        share: int = 1,
    ) -> None:
        self.name = name
        self.directory = directory
        self.lock = threading.RLock()
        self.own = Journals(name, directory, self.lock)
        self.results, self.errors, self.unsaved = self.own
        self.meta = Meta(self.own.meta_path, set() if told is None else told)
        self.writing = False
        self.wrote_at = 0.0
        self._experiment = experiment or name
        self._share = share
        self._annotator = Annotator(self.own, self.meta)
        self._writer = Lock(directory / f".{name}.lock", name, instead)
        self._running: weakref.ref[_Running] | None = None
        self._forked = False
        self._failure: StoreError | None = None
        self._check_at = 0.0  # monotonic; until then a save need not look whether its file is still there
        self._goes_on = False  # whether it is cleared or repaired whatever is in the journals' places
        self._host = host(self)
        self.replica = self.own.replica = self._host.replicate(self.own)
        self.replica.look()
        try:
            self.own.reopen()
        except BaseException:
            self.own.close()  # nobody will, and who is told that too many are open must not keep them
            raise

    # whether the journals are what they should be

    def refuse_faults(self) -> None:
        """Raise where a journal is none, or has lost something; unless it is cleared or repaired.

        Raises:
            JournalLost: with what to do.
        """
        if not self._goes_on:
            self._host.refuse()

    @contextmanager
    def going_on(self) -> Iterator[None]:
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
        with self.lock, self.going_on(), self.alone():
            fault = None if self.own.fault is None else self.own.fault[1]
            if fault is not None and not (fault.is_altered or fault.has_rest):
                self._host.refuse()
            yield
            if fault is not None:
                self.own.forget_fault()
                self.own.synced, self.meta.owed = {}, True
            self.meta.owed = self.own.note_shorter() or self.meta.owed

    # writing

    def begin_writing(self) -> None:
        """Hold the lock, be up to date, and be able to append: at once where that is so already.

        Raises:
            CheckpointLocked: another process writes.
            StoreError: naming what is not writable, or why this store refuses.
        """
        if self.writing and clock.monotonic() < self._check_at:
            return
        with self.lock:
            self._refuse_if_unfit()
            if not self.writing:
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
            self._host.begun()
        except BaseException:
            self._let_go()
            raise
        if not self.in_pass:
            self.meta.reread()
        self.writing = True
        self._check_at = clock.monotonic() + _SECOND
        self.wrote_at = self.meta.written_at = clock.monotonic()
        self._host.maintain()
        if self.meta.read().get("total_items", -1) != self.meta.total:  # who looks on sees how much this pass has to do
            self.write_meta()

    def _open_to_write(self) -> None:
        self._writer.acquire()
        try:
            self.replica.begin()
            self.own.refresh()
            self.own.examine()
            self.refuse_faults()  # before the end of one is repaired
            for each in (self.results, self.errors) if self.own.fault is None else ():
                each.open_to_write()
            self._settle_names()
            self.unsaved.refresh()
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
            self.own.check_places()
        except (CheckpointLocked, JournalLost) as error:
            raise self._fail(error) from None
        try:
            self._writer.check()
        except StoreError as error:
            raise self._fail(error) from error.__cause__
        self._check_at = clock.monotonic() + _SECOND

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
            if not self.writing or now >= self._check_at:
                self.begin_writing()
            journal, index = shelf.journal, shelf.index
            if not journal.writable:
                shelf.open_to_write()
                index = shelf.index
            lines = [entry.line for entry in entries]
            keys, version = [entry.key for entry in entries], entries[0].version
            forgets = type(entries[0]) is Tombstone
            owed = version not in shelf.settled and not forgets
            noted = self._annotator.annotate(shelf, version, lines) if owed else -1
            offset = self._write(shelf, lines[0] if len(lines) == 1 else b"".join(lines))
            if forgets:
                for key in keys:
                    index.forget(version, key)
            else:
                sizes = list(map(len, lines))
                index.add_all(version, keys, offset, sizes, [entry.digest for entry in entries])
                if owed:
                    self._annotator.wrote(shelf, version, lines, offset + sum(sizes[:noted]) if noted >= 0 else -1)
            index.end = journal.end
            if durable:
                self._sync(journal)

    def append_one(
        self, shelf: KeyedLog, version: str, key: Key, digest: int, line: bytes, *, durable: bool = False
    ) -> None:
        """`append` for one record that forgets nothing: the per-item path, told flat because it is hot."""
        with self.lock:
            now = self.wrote_at = clock.monotonic()
            if not self.writing or now >= self._check_at:
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
            if not self.results.journal.writable:
                self.results.open_to_write()
            self._write(self.results, b"".join(lines))
            self._learn_foreign(self.results)

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
            return self._fail(at_risk(shelf, error))
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

    def confirm(self, readers: Iterable[Reader]) -> None:
        """What was found is on the medium when this returns: its writer may have been killed before it synced it."""
        if any(each.journal.is_doubtful for each in self.own):
            self.begin_writing()  # which writes it again
        for reader in readers:
            try:
                reader.sync()
            except StoreError as error:
                raise self._fail(error) from error.__cause__

    def forget(self, version: str, keys: list[Key], session: bytes, *, durable: bool = False) -> set[int]:
        """Append what forgets the keys' records; returns the places of those keys that had one."""
        forgotten: set[int] = set()
        with self.lock:
            for each in self.own:
                known = [(place, key) for place, key in enumerate(keys) if each.find(version, key) is not None]
                forgotten.update(place for place, _ in known)
                if known:
                    self.append(each, [forgetting(version, key, session) for _, key in known], durable=durable)
        return forgotten

    def discard_at(self, path: Path, version: str, key: Key, offset: int, session: bytes) -> None:
        """Forget the key's record, if it is the one at this offset of that one of the journals."""
        (each,) = (each for each in self.own if each.journal.path == path)
        with self.lock:
            place = each.find(version, key)
            if place is not None and place.offset == offset:
                self.append(each, [forgetting(version, key, session)])

    def accept(self, old: str, new: str) -> None:
        """The results of one code or version count for another one from now on; call it while writing, under the lock.

        Raises:
            StoreError: that was not noted.
        """
        results = self.results
        if not results.journal.writable:
            results.open_to_write()
        offset = self._write(results, accepting(old, new))
        index, reader = results.index, results.journal.reader
        index.notes.append(offset)
        index.end = results.journal.end
        assert reader is not None
        if "-" not in old:
            try:
                index.accept(old, new, reader)
            except (IndexDamaged, OSError):
                results.learn_anew()

    def accept_durably(self, old: str, new: str) -> None:
        """`accept`, and it is on the medium when this returns."""
        with self.lock:
            self.begin_writing()
            self.accept(old, new)
            self._sync(self.results.journal)

    def begin_computing(self, version: str, code: str, detail: Any) -> None:
        """Records of the version are computed by this code from here on: the first one in each journal says so."""
        with self.lock:
            self._annotator.begin(version, code, detail)

    def end_computing(self, version: str) -> None:
        """What is saved from here on is not known to be computed by any code."""
        self._annotator.end(version)

    def begin_anew(self) -> None:
        """Begin writing whatever is in the journals' places: they are about to be cleared."""
        with self.lock:
            if self._failure is not None:
                self._start_anew()
            with self.going_on():
                self.begin_writing()
            self.replica.suspend()

    def clear(self) -> None:
        """Forget everything: unlink the journals, indexes and meta. Lock files and bytes set aside stay.

        Raises:
            StoreError: what is left is opened anew.
        """
        with self.lock, self.going_on():
            self.begin_writing()
            self.replica.clear()
            try:
                self.meta.path.unlink(missing_ok=True)
                fsync_directory(self.directory)  # it says what is in the journals: it is gone before they are
                for each in self.own:
                    each.unlink()
                fsync_directory(self.directory)
            except OSError as error:
                self._let_go()
                raise store_error(error, "cannot delete", self.directory) from error
            self.meta.clear()
            self.own.synced, self.own.fault = {}, None
            self._stop_writing()

    def replace(self, shelf: KeyedLog, chunks: Iterable[bytes]) -> None:
        """A journal of these lines takes the place of the log's; call it inside of `alone`.

        Raises:
            StoreError: as `KeyedLog.replace`.
        """
        self.replica.suspend()
        kind = next(kind for kind, own in self.own.by_kind() if own is shelf)
        self._take_back(kind, shelf)
        self.meta.owed = True
        shelf.replace(chunks)
        self.own.synced[kind] = size_of(shelf)

    def _take_back(self, kind: str, shelf: KeyedLog) -> None:
        """Meta says nothing of the size of the journal, for good: it is about to become shorter."""
        shelf.journal.stop_writing()  # what this opening has synced counts no more
        self.own.synced.pop(kind, None)
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
        self.own.reopen()
        self._host.start_anew()

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
        if not self.writing:
            return
        try:
            if self._failure is None:
                self._check_places(at_once=True)
                for each in self.own:
                    self._sync(each.journal)
                    each.write_index_if_worth(growth=0.5, rows=100_000 // self._share, size=(32 << 20) // self._share)
                if self.meta.owed:
                    self.write_meta()
        finally:
            try:
                self.replica.finish()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self.writing = False
        self.replica.let_go()
        for shelf in self.own:
            shelf.journal.stop_writing()
        self._writer.release()

    def close(self) -> None:
        """Let go of the lock and every descriptor."""
        with self.lock:
            try:
                self._stop_writing()
            finally:
                self.own.close()

    def give_up(self) -> None:
        """Let go of the lock, where no pass runs: it was taken for something that is not done."""
        with self.lock, suppress(StoreError):
            if not self.in_pass:
                self._stop_writing()

    # housekeeping, by a thread that lives while something is owed

    def tend(self) -> bool:
        """Sync what was written, keep meta and index from falling far behind; False once nothing is owed."""
        try:
            self._sync_aside()
            with self.lock:
                if self.writing and self._failure is None:
                    self._check_places()
        except StoreError as error:
            log.error("%s", error)
        with self.lock:
            if not self.writing:
                return False
            if not self.in_pass and self._is_idle():
                try:
                    self._stop_writing()
                except StoreError as error:
                    log.error("%s", error)
                return False
            owed = self.meta.owed and clock.monotonic() - self.meta.written_at >= _META_EVERY
        if owed:
            self.write_meta()
        for shelf in self.own:
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
        for shelf in self.own:
            try:
                with self.lock:
                    sync = shelf.journal.lend() if self.writing else None
                if sync is not None:
                    sync()
            except StoreError as error:
                with self.lock:
                    raise self._fail(error) from error.__cause__

    # meta

    def write_meta(self) -> None:
        """Replace the file atomically. It tells people and is rebuildable: failing to write it is not an error."""
        with self.lock:
            self.meta.owed = False
            self.meta.written_at = clock.monotonic()
            try:
                self._replace_meta()
            except OSError as error:
                log.debug("%s was not written: %s", self.meta.path, error)

    def _replace_meta(self, *, durable: bool = False) -> None:
        text = self.meta.compose(self._experiment, self._host.summary(), self.own.note_synced())
        self.meta.replace(text, f"{self.name}_meta", durable=durable)

    # forks

    def after_fork(self) -> None:
        """In a forked child: drop the parent's lock, never write."""
        self.lock = threading.RLock()
        self.own.after_fork(self.lock)
        self._forked = True
        self.writing = False
        self._running = None
        for each in self.own:
            each.journal.stop_writing()
        self._writer.drop()


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
