"""What is done, and with what: three journals under one lock.

The promise: what `append` has returned for is there at the next opening, and is found by its key; who only reads never
waits; whoever writes holds the lock. Opening reads the index files and the journals' tails.

    NAME_results.jsonl   what succeeded          .NAME_*.index    rebuildable
    NAME_errors.jsonl    what failed             .NAME.lock       who writes
    NAME_meta.json       counts, for people      .NAME_*.damaged  where readers met damage; may be deleted
                                                 .NAME_unsaved.jsonl, .NAME_*.aside   kept: values, bytes

A store knows its own journals only. What else is read beside them, and who looks after it, its `Host` knows; where the
journals are kept elsewhere too, a `Replica` brings them from there and back.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from checkpoint import clock, locks
from checkpoint.errors import JournalLost, StoreError
from checkpoint.storage.annotator import Annotator
from checkpoint.storage.condition import synced_bytes
from checkpoint.storage.files import fsync_directory, store_error
from checkpoint.storage.host import Host, Unattended
from checkpoint.storage.index_file import IndexDamaged
from checkpoint.storage.journal import Reader
from checkpoint.storage.journals import Journals, at_risk, size_of
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.lock import INSTEAD
from checkpoint.storage.meta import Meta
from checkpoint.storage.notes import accepting
from checkpoint.storage.record import seal
from checkpoint.storage.spending import COST, Cost, spent_line
from checkpoint.storage.writer import Writer
from checkpoint.values.keys import Key, key_json

__all__ = ["Entry", "Store", "Tombstone", "forgetting"]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to append: what the index needs, and its line."""

    version: str
    key: Key
    digest: int
    line: bytes


class Tombstone(Entry, frozen=True, gc=False):
    """A record that the key has none any more."""


class Store:
    """Three journals on disk, and what is appended to them.

    Args:
        name: what the files begin with.
        directory: absolute.
        experiment: what meta calls it; default `name`.
        host: what it is part of.
        told: (version, code) of changes that this process has told.
        instead: what else whoever finds it locked can do; default to use another name or directory.
        share: how many such stores are opened together: they leave as much to be read anew as one.

    Attributes:
        own: the journals: what is appended to, and what is read where only these count.
        meta: what the meta file says.
        replica: what keeps the journals elsewhere too.
        writer: who writes them in this process.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        experiment: str = "",
        host: Host | None = None,
        told: set[tuple[str, str]] | None = None,
        instead: str = INSTEAD,
        share: int = 1,
    ) -> None:
        self.name = name
        self.directory = directory
        self.lock = locks.rlock("store")
        self.own = Journals(name, directory, self.lock)
        self.meta = Meta(self.own.meta_path, set() if told is None else told)
        self._host = Unattended(self.own, self.meta) if host is None else host
        self.replica = self.own.replica = self._host.replicate(self.own)
        self.writer = Writer(
            name,
            directory,
            self.lock,
            self.own,
            self.meta,
            self._host,
            experiment=experiment or name,
            instead=instead,
            share=share,
        )
        self._annotator = Annotator(self.own, self.meta)
        self.replica.look()
        try:
            self.own.reopen()
        except BaseException:
            self.own.close()  # nobody will, and who is told that too many are open must not keep them
            raise

    # appending

    def append(self, shelf: KeyedLog, entries: Sequence[Entry], *, durable: bool = False) -> None:
        """Append records of one version, all of them to be found or to be forgotten: one write; a sync where `durable`.

        Raises:
            StoreError: none of them is on disk.
        """
        with self.lock:
            writer = self.writer
            now = writer.wrote_at = clock.monotonic()
            if not writer.writing or now >= writer.check_at:
                writer.begin()
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
                self.writer.sync(journal)

    def append_one(
        self, shelf: KeyedLog, version: str, key: Key, digest: int, line: bytes, *, durable: bool = False
    ) -> None:
        """`append` for one record that forgets nothing: the per-item path, told flat because it is hot."""
        with self.lock:
            writer = self.writer
            now = writer.wrote_at = clock.monotonic()
            if not writer.writing or now >= writer.check_at:
                writer.begin()
            if version not in shelf.settled:
                entry = Entry(version, key, digest, line)
                self.append(shelf, [entry], durable=durable)
                return
            offset = self._write(shelf, line)
            index = shelf.index
            index.add(version, key, offset, digest)
            index.end = shelf.journal.end
            if durable:
                self.writer.sync(shelf.journal)

    def append_loose(self, lines: list[bytes]) -> None:
        """Append results without checksum, which stand for any key of equal str()."""
        with self.lock:
            self.writer.begin()
            if not self.own.results.journal.writable:
                self.own.results.open_to_write()
            self._write(self.own.results, b"".join(lines))
            self._learn_foreign(self.own.results)

    def _write(self, shelf: KeyedLog, lines: bytes) -> int:
        journal = shelf.journal
        try:
            if journal.in_doubt or journal.end != shelf.index.end:
                shelf.settle_doubt()
            known = journal.end
            offset = journal.append(lines)
        except StoreError as error:
            raise self._unwritten(shelf, error) from error.__cause__
        if offset == known:
            shelf.index.sums.add(lines)
        else:
            self._learn_foreign(shelf)
        self.meta.owed = True
        return offset

    def _unwritten(self, shelf: KeyedLog, error: StoreError) -> StoreError:
        """A full disk passes; a file that was cut, or an I/O error, means that nobody knows what is on the medium."""
        if isinstance(error, JournalLost):
            return self.writer.fail(at_risk(shelf, error))
        return self.writer.fail(error) if error.errno == errno.EIO else error

    def _learn_foreign(self, shelf: KeyedLog) -> None:
        """Another program appended lines before ours: they count too."""
        if shelf.journal.reader is not None:
            shelf.index.scan(shelf.journal.reader)

    def confirm(self, readers: Iterable[Reader]) -> None:
        """What was found is on the medium when this returns: its writer may have been killed before it synced it."""
        if any(each.journal.is_doubtful for each in self.own):
            self.writer.begin()  # which writes it again
        for reader in readers:
            try:
                reader.sync()
            except StoreError as error:
                raise self.writer.fail(error) from error.__cause__

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

    def accept(self, old: str, new: str) -> None:
        """The results of one code or version count for another one from now on; call it while writing, under the lock.

        Raises:
            StoreError: that was not noted.
        """
        results = self.own.results
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

    def note_spent(self, version: str, cost: float) -> None:
        """So much was spent by an attempt whose call is not over: the errors say so, on a line of its own.

        Raises:
            StoreError: that was not noted.
        """
        with self.lock:
            self.writer.begin()
            errors = self.own.errors
            if not errors.journal.writable:
                errors.open_to_write()
            self._write(errors, spent_line({version: Cost(cost)}))
            errors.index.end = errors.journal.end
            self.first_cost()

    def first_cost(self) -> None:
        """Something has cost something: meta says so from the first time on, so that others need not look for it."""
        spending = self.own.spending
        if not spending.is_told:
            spending.is_told = True
            if COST not in self.meta.read():
                self.writer.write_meta()

    def accept_durably(self, old: str, new: str) -> None:
        """`accept`, and it is on the medium when this returns."""
        with self.lock:
            self.writer.begin()
            self.accept(old, new)
            self.writer.sync(self.own.results.journal)

    def begin_computing(self, version: str, code: str, detail: Any) -> None:
        """Records of the version are computed by this code from here on: the first one in each journal says so."""
        with self.lock:
            self._annotator.begin(version, code, detail)

    def end_computing(self, version: str, code: str) -> None:
        """A pass that computed records of the version by this code is over."""
        self._annotator.end(version, code)

    # replacing, and the end

    def clear(self) -> None:
        """Forget everything: unlink the journals, indexes and meta. Lock files and bytes set aside stay.

        What was spent stays: a journal whose records cost something becomes one line that says how much; not where it
        is kept elsewhere too.

        Raises:
            StoreError: what is left is opened anew.
        """
        with self.lock, self.writer.going_on():
            self.writer.begin()
            spent = {} if self.replica.is_remote else self.own.spending.by_kind()
            self.replica.clear()
            try:
                self.meta.path.unlink(missing_ok=True)
                fsync_directory(self.directory)  # it says what is in the journals: it is gone before they are
                for kind, each in self.own.by_kind():
                    if spent.get(kind):
                        each.replace([spent_line(spent[kind])])
                    else:
                        each.unlink()
                fsync_directory(self.directory)
            except OSError as error:
                self.writer.let_go()
                raise store_error(error, "cannot delete", self.directory) from error
            self.meta.clear()
            self.own.synced, self.own.fault = {}, None
            self.writer.stop()

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

    def mend(self, shelf: KeyedLog, damaged: Iterable[tuple[int, int]]) -> bool:
        """Where the journals are kept elsewhere too: set damaged lines (offset, size) aside, and take those of there.

        Call it inside of `alone`. A journal that is kept here only is left as it is.

        Returns:
            Whether the journal was replaced.

        Raises:
            StoreError: as `KeyedLog.replace`.
        """
        if not self.replica.is_remote:
            return False
        self.replica.suspend()
        reader, journal = shelf.journal.reader, shelf.journal
        assert reader is not None
        try:
            journal.set_aside((offset, reader.pread(size, offset)) for offset, size in damaged)
        except StoreError:
            raise
        except OSError as error:
            raise store_error(error, "cannot set damaged lines aside in", journal.aside) from error
        kind = next(kind for kind, own in self.own.by_kind() if own is shelf)
        self.replace(shelf, self.replica.lines_of(kind))
        shelf.open_to_write()
        return True

    def _take_back(self, kind: str, shelf: KeyedLog) -> None:
        """Meta says nothing of the size of the journal, for good: it is about to become shorter."""
        shelf.journal.stop_writing()  # what this opening has synced counts no more
        self.own.synced.pop(kind, None)
        if not synced_bytes(self.meta.read(), kind):
            return
        try:
            self.writer.replace_meta(durable=True)
        except OSError as error:
            raise store_error(error, "cannot replace", self.meta.path) from error

    @contextmanager
    def all_as_they_are(self) -> Iterator[None]:
        """`alone`, whatever is in the journals' places; a journal that still holds records is repaired.

        What is there at the end is what meta says.

        Raises:
            JournalLost: another kind of file is in a journal's place, or it is gone.
            CheckpointLocked, StoreError: as `alone`.
        """
        with self.lock, self.writer.going_on(), self.writer.alone():
            fault = None if self.own.fault is None else self.own.fault[1]
            if fault is not None and not (fault.is_altered or fault.has_rest):
                self._host.refuse()
            yield
            if fault is not None:
                self.own.forget_fault()
                self.own.synced, self.meta.owed = {}, True
            self.meta.owed = self.own.note_shorter() or self.meta.owed

    def close(self) -> None:
        """Let go of the lock and every descriptor."""
        with self.lock:
            try:
                self.writer.stop()
                self.writer.pay()
            finally:
                self.own.close()

    def after_fork(self) -> None:
        """In a forked child: drop the parent's lock, never write."""
        self.lock = locks.rlock("store")
        self.own.after_fork(self.lock)
        self.writer.after_fork(self.lock)


def forgetting(version: str, key: Key, session: bytes, *, damaged: bool = False) -> Tombstone:
    """The record that forgets a key's; where only that was damaged on this disk, it says so, and stays on this disk."""
    why = b',"damaged":true' if damaged else b""
    head = b'{"key":%b,"forgotten":true,"timestamp":"%b"' % (key_json(key), clock.Stamper()())
    if version:
        head += b',"version":"%b"' % version.encode()
    return Tombstone(version, key, 0, seal(head + b',"session":"%b"%b' % (session, why)))
