"""One journal with its index: records by key.

The promise: a record is found by its key, whatever became of the index file, or is told to be damaged and is then not
found any more. A shelf learns what others append; it writes nothing but the index file and the repair of a torn end.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Set
from pathlib import Path
from typing import TypeVar

from checkpoint import locks
from checkpoint.errors import DamagedRecord, quote
from checkpoint.storage.blocks import State, Trust
from checkpoint.storage.damage import DamageNotes, SkippedLines
from checkpoint.storage.files import fsync_directory, index_path
from checkpoint.storage.index import Index, Place
from checkpoint.storage.index_file import IndexDamaged
from checkpoint.storage.journal import Journal
from checkpoint.storage.notes import Notes
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record, codes_in, last_in
from checkpoint.values.digests import Digests
from checkpoint.values.keys import Key, key_from_json
from checkpoint.values.marks import mark_of

__all__ = ["KeyedLog", "key_of"]


log = logging.getLogger("checkpoint")
_TAIL = 4096
_LONGEST_TAIL = 1 << 20
_T = TypeVar("_T")


class KeyedLog:
    """One journal with its index: records by key.

    Args:
        path: the journal's.
        lock: the store's: whoever opens files anew holds it.

    Attributes:
        settled: the versions whose next record need not say what a digest stands for.
    """

    def __init__(self, path: Path, lock: threading.RLock) -> None:
        self.journal = Journal(path)
        self._skipped = SkippedLines(path)
        self.index = Index(self._skipped.note)
        self._trust = Trust()
        self._notes_of_damage = DamageNotes(path)
        self._known_damage: dict[tuple[str, Key], Place] = {}  # what this process takes for missing, though it is there
        self.lock = lock
        self.examined: Index | None = None  # what was known when the file was last looked at as a whole
        self._index_path = index_path(path)
        self._filing = locks.lock("filing")
        self.settled: set[str] = set()
        self._edited: tuple[weakref.ref[Reader], State, str, dict[int, int]] | None = None  # where keys are by mark
        self._noted: tuple[Index, int, Notes] = (self.index, 0, Notes())  # of which index, how many, what they say

    # what it is at; a joined shelf answers for all of its journals

    @property
    def reader(self) -> Reader | None:
        """What reads the records at the offsets that are found here; None where there is no file yet."""
        return self.journal.reader

    @property
    def readers(self) -> list[Reader]:
        """The journal files, open."""
        return [] if self.journal.reader is None else [self.journal.reader]

    @property
    def versions(self) -> set[str]:
        """The versions that have had a record."""
        return self.index.versions

    @property
    def latest(self) -> str:
        """The version of the last record; "" is none."""
        return self.index.latest

    @property
    def codes(self) -> dict[str, list[str]]:
        """By version, the fingerprints that its records have named, the last one last; some may have none left."""
        with self.lock:
            return {version: list(codes) for version, codes in self.index.codes.items()}

    def notes(self) -> Notes:
        """What the journal says that digests stand for, and what was accepted."""
        with self.lock:
            index, reader = self.index, self.journal.reader
            known, count, notes = self._noted
            if known is not index:
                count, notes = 0, Notes()
            if reader is not None and count < len(index.notes):
                notes.read(reader, index.notes[count:])
                self._noted = (index, len(index.notes), notes)
            return notes

    @property
    def has_loose(self) -> bool:
        """Whether there are lines without checksum, which stand for any key of equal str()."""
        return self.index.has_loose

    @property
    def damaged(self) -> int:
        """How many lines a scan could not read; of very many, the first hundred of a journal are counted."""
        return len(self.index.damaged)

    @property
    def state(self) -> tuple[object, int]:
        """(what offsets are valid for, how much is known): both are equal as long as nothing is learned."""
        return self.index, self.index.end

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        return self.index.end == 0

    def moment_after(self, version: str, key: Key) -> bytes:
        """The earliest timestamp at which a new record of the key counts; order in the file is all that counts here."""
        return b""

    def holds(self, reader: Reader, offset: int) -> bool:
        """Whether the reader still reads, at this offset, the file that is found at the path."""
        return reader is self.journal.reader

    def recent_keys(self, version: str) -> list[Key] | None:
        """The keys of all records of a version, where the index has them at hand."""
        index = self.index
        return None if index.reads_file or index.has_loose else index.recent_of(version)

    # learning

    def refresh(self) -> None:
        """Learn what others wrote since; start anew where the file is another one, shorter, or written anew."""
        reader = self.journal.reader
        if reader is None or not reader.is_current():
            self.reopen()
            return
        state, end = reader.state(), self.index.end
        if state[0] < end or not self.journal.is_as_known():
            self.reopen()
            return
        if state[0] > end:
            self._learn()
        if self._trust.has_news(state) and not self._fits_still(reader, end, state):
            self.reopen()

    def _fits_still(self, reader: Reader, end: int, state: State) -> bool:
        """Whether what was known up to `end` is to be asked still, although the journal was written."""
        try:
            return self._trust.look(reader, self.index.sums, end, state)
        except (IndexDamaged, OSError):
            return False

    def reopen(self) -> None:
        """Read the index file and the journal's tail. Who looks up meanwhile finds what was known before."""
        reader = Reader.open(self.journal.path)
        self.settled = set()
        if reader is None and self.journal.reader is None and self.is_empty:
            return  # there is no file yet: what is known of it, which is nothing, stays valid
        trust = Trust()
        index = Index(self._skipped.note) if reader is None else self._opened(reader, trust)
        self.journal.close()
        self.journal.reader, self.index, self._trust = reader, index, trust
        self.journal.learned(index.end)
        if reader is not None:
            reader.let_go_when_idle()
        self._skipped.tell(reader)
        self._heed_notes()

    def _opened(self, reader: Reader, trust: Trust) -> Index:
        """What the file of the index and the journal's tail say; where they do not fit, what the whole journal says."""
        index, state = Index(self._skipped.note), reader.state()
        try:
            is_loaded = index.load(self._index_path, reader)
            filed = index.end
            index.scan(reader)
            trust.assure(state)
            if not is_loaded or index.is_sealed(state) or trust.suspect(reader, index.sums, filed, state):
                return index
        except (IndexDamaged, OSError):
            pass
        return self._scanned(reader, trust)

    def _scanned(self, reader: Reader, trust: Trust) -> Index:
        """What the whole journal says."""
        self._skipped.clear()
        index, state = Index(self._skipped.note), reader.state()
        index.scan(reader)
        trust.assure(state)
        return index

    def replace(self, chunks: Iterable[bytes]) -> None:
        """A journal of these lines takes the place of this one, and is opened. Call it under the lock.

        Raises:
            StoreError: as `Journal.replace`.
        """
        try:
            self.journal.replace(chunks, first=self._unlink_index)
            self._unlink_index()  # one that a thread wrote meanwhile
        finally:
            self.reopen()

    def _unlink_index(self) -> None:
        """It is gone for good before the journal that it is of: no index file is ever taken for another journal's."""
        if os.path.lexists(self._index_path):
            self._index_path.unlink(missing_ok=True)
            fsync_directory(self._index_path.parent)

    def open_to_write(self) -> None:
        """Repair the end of the journal and learn what is there; call it under the lock."""
        self.refresh()
        self.journal.open_to_write()
        if self.journal.reader is not None:
            self.journal.reader.let_go_when_idle()
        self._learn()
        self._look_at_notes()

    def settle_doubt(self) -> None:
        """After an exception in the middle of an append, or between it and the index: look what came of it."""
        self.journal.repair()
        self._learn()

    def _learn(self) -> None:
        """Read on: what was appended, or repaired, is in the file but not yet in the index."""
        if self.journal.reader is not None:
            try:
                self.index.scan(self.journal.reader)
            except IndexDamaged:
                self._rebuilt()
            self.journal.learned(self.index.end)
            self._skipped.tell(self.journal.reader)

    # looking up

    def find(self, version: str, key: Key) -> Place | None:
        """Where the key's last record is."""
        if self._trust.doubt is not None:
            return self._find_in_doubt(version, key)
        try:  # what `_ask` does, in less time
            return self.index.find(version, key)
        except (IndexDamaged, OSError):
            return self._rebuilt().find(version, key)

    def _find_in_doubt(self, version: str, key: Key) -> Place | None:
        """What is found stands in a block that fits; where nothing is found, all blocks do."""
        with self.lock:
            reader = self.journal.reader
            try:
                place = self.index.find(version, key)
                if reader is None or self._trust.fits(reader, None if place is None else place.offset):
                    return place
            except (IndexDamaged, OSError):
                pass
            return self._rebuilt().find(version, key)

    def find_all(self, version: str, keys: list[Key]) -> tuple[array[int], Digests]:
        """Where the last record of each key is, as `Index.find_all` tells it."""
        return self._ask(lambda index: index.find_all(version, keys))

    def keys_of_inputs(self, version: str, digests: Set[int]) -> dict[int, Key]:
        """By digest, a key whose last record was computed from that input; for those digests that have one."""
        found: dict[int, Key] = {}
        with self.lock:
            places = self._ask(lambda index: list(index.of_inputs(version, digests)))
            reader = self.journal.reader
        for digest, offset in places:
            if reader is None or digest in found:
                continue
            try:
                key = key_of(reader, reader.read(offset), offset)
            except DamagedRecord:
                continue
            if (last := self.find(version, key)) is not None and last.offset == offset:
                found[digest] = key
        return found

    def count(self, version: str) -> int:
        """How many keys have a record."""
        with self.lock:
            return self._ask(lambda index: index.count(version))

    def hashes(self, version: str) -> list[tuple[bytes, int]]:
        """As `Index.hashes` tells it."""
        return self._ask(lambda index: list(index.hashes(version)))

    def _ask(self, question: Callable[[Index], _T]) -> _T:
        """What the index answers of many keys: if it proves wrong, what one answers that is read from the journal."""
        try:
            if self._trust.doubt is not None:
                self._settle_trust()
            return question(self.index)
        except (IndexDamaged, OSError):
            return question(self._rebuilt())

    def _settle_trust(self) -> None:
        with self.lock:
            reader = self.journal.reader
            if reader is not None and not self._trust.fits(reader):
                self._rebuilt()

    def learn_anew(self) -> None:
        """What is known is not to be trusted: read the journal instead."""
        self._rebuilt()

    def _rebuilt(self) -> Index:
        """The index is of other bytes: the journal is read instead; who was writing goes on writing."""
        with self.lock:
            log.info("%s does not fit %s, which is read anew", self._index_path, self.journal.path)
            try:
                self._index_path.unlink(missing_ok=True)
            except OSError:
                pass  # a read-only directory: it is found out again next time
            reader = self.journal.reader
            self.index = Index(self._skipped.note) if reader is None else self._scanned(reader, self._trust)
            if not self.journal.writable:
                self.journal.learned(self.index.end)
            self._skipped.tell(reader)
            self._heed_notes()
            return self.index

    def read(self, version: str, key: Key) -> tuple[Reader, Place, Record] | None:
        """The key's last record, with where it is; None where there is none.

        Raises:
            DamagedRecord: its bytes are not those that were written.
        """
        with self.lock:
            place, reader = self.find(version, key), self.journal.reader
        if place is None or reader is None:
            return None
        try:
            record = reader.read(place.offset, key)
            held = key_of(reader, record, place.offset)
            if held != (key if record.crc else str(key)):
                raise reader.damaged(place.offset, f"it holds key {quote(held)}", key=key)
            if record.forgotten or (record.version != version and record.version not in self._counting_for(version)):
                raise reader.damaged(place.offset, "it is of another version, or forgets the key", key=key)
        except DamagedRecord:
            if reader is self.journal.reader and not self._is_moved(reader, place.offset):
                raise
            return self.read(version, key)
        return reader, place, record

    def _is_moved(self, reader: Reader, offset: int) -> bool:
        """Whether the index is of other bytes than those that are there: then it is learned anew."""
        with self.lock:
            try:
                if self.index.sums.fits_at(reader, offset):
                    return False
            except IndexDamaged:
                pass
            self._rebuilt()
            return True

    def _counting_for(self, version: str) -> list[str]:
        """The versions whose records may count for a version: its own, and those that were accepted for it."""
        known, found = self.notes().accepted, [version]
        for each in found:  # which grows
            found += [line.accepts for line in known if line.of == each and line.accepts not in found]
        return found

    def place_of(self, reader: Reader, version: str, mark: int, near: int) -> int | None:
        """Where the last record of the key of a mark is in an open file that was edited, as that is now."""
        with self.lock:
            state = reader.state()
            known = self._edited
            if known is None or known[0]() is not reader or known[1:3] != (state, version):
                index = Index()
                index.scan(reader)
                held = index.recent_of(version)
                places = {
                    mark_of(key): offset for key, offset in zip(held, index.find_all(version, held)[0], strict=True)
                }
                known = self._edited = (weakref.ref(reader), state, version, places)
            return known[3].get(mark)

    # damage

    def note_damage(self, version: str, key: Key) -> None:
        """The key's record proved damaged: it is not found any more, and who opens the journal next looks again."""
        with self.lock:
            self._take_for_missing(version, key)
        self._notes_of_damage.add((version, key))

    def _take_for_missing(self, version: str, key: Key) -> None:
        if (place := self.find(version, key)) is not None:
            self._known_damage[version, key] = place
            self.index.forget(version, key)

    def _heed_notes(self) -> None:
        """Look again at what readers found damaged, in the journal as it is now."""
        self._known_damage = {}
        reader = self.journal.reader
        for version, key in self._notes_of_damage.read() if reader is not None else ():
            if (place := self.find(version, key)) is not None and not self._is_sound(version, key, place):
                self._take_for_missing(version, key)

    def _is_sound(self, version: str, key: Key, place: Place) -> bool:
        reader = self.journal.reader
        assert reader is not None
        try:
            record = reader.read(place.offset)
            return key_of(reader, record, place.offset) == (key if record.crc else str(key))
        except DamagedRecord:
            return False

    def _look_at_notes(self) -> None:
        """Under the lock: what is sound after all counts again, and only what is damaged still stays noted."""
        noted = self._notes_of_damage.read()
        known = dict.fromkeys([*noted, *self._known_damage])
        if not known:
            return
        for (version, key), place in list(self._known_damage.items()):
            if self.find(version, key) is None and self._is_sound(version, key, place):
                latest = self.index.latest
                self.index.add(version, key, place.offset, place.digest)
                self.index.latest = latest
                del self._known_damage[version, key]
        for version, key in noted:
            if (found := self.find(version, key)) is not None and not self._is_sound(version, key, found):
                self._take_for_missing(version, key)
        left = [each for each in known if each in self._known_damage and self.find(*each) is None]
        if left != noted:
            self._notes_of_damage.keep(left)

    def records(self, version: str) -> Iterator[tuple[Reader, int, Key, Record]]:
        """(reader, offset, key, record) of every key, in the order of the file; the reader keeps them readable.

        Raises:
            DamagedRecord: at the first record whose bytes are not those that were written.
        """
        reader, offsets = self.offsets(version)
        if reader is not None:
            yield from self.records_at(reader, version, offsets)

    def records_at(self, reader: Reader, version: str, offsets: list[int]) -> Iterator[tuple[Reader, int, Key, Record]]:
        """`records` of those at these offsets, which this index gave; a line with a checksum wins over one without."""
        _held = reader.hold()
        loose = self.index.has_loose
        counting = self._counting_for(version)
        exact = set(self._exact_texts(reader, version, offsets)) if loose else set()
        for offset in offsets:
            record = self.read_at(reader, version, offset)
            key = key_of(reader, record, offset)
            if record.forgotten or record.version not in counting:
                raise reader.moved(offset)
            if record.crc or key not in exact:
                yield reader, offset, key, record

    def sound(self, version: str) -> Iterator[tuple[Key, Record]]:
        """(key, record) of every key whose record is sound, in the order of the file: to count without raising."""
        return ((key, record) for _, _, key, record in self.sound_places(version, lambda: None))

    def sound_places(self, version: str, on_damage: Callable[[], None]) -> Iterator[tuple[Reader, int, Key, Record]]:
        """What `records` gives, less what is damaged, of which it is called; lines without checksum are all there."""
        reader, offsets = self.offsets(version)
        if reader is None:
            return
        _held = reader.hold()
        for offset in offsets:
            try:
                record = reader.read(offset)
                key = key_of(reader, record, offset)
            except DamagedRecord as error:
                log.debug("%s", error)
                on_damage()
                continue
            yield reader, offset, key, record

    def sample(self, version: str, most: int) -> tuple[Reader | None, list[int]]:
        """The reader, and where records of the version begin: at most so many, spread evenly over the file."""
        reader, offsets = self.offsets(version)
        return reader, offsets[:: -(-len(offsets) // most) or 1]

    def offsets(self, version: str) -> tuple[Reader | None, list[int]]:
        """The reader, and where each record of the version begins, in the order of the file."""
        with self.lock:
            return self.journal.reader, self._ask(lambda index: index.offsets(version))

    def places_by_code(self, version: str) -> dict[str, list[int]]:
        """Where the live records of a version begin, in the order of the file, by the code that they name."""
        reader, offsets = self.offsets(version)
        live = set(offsets)
        found: dict[str, list[int]] = {}
        for offset, block in reader.blocks(0, _pass_over) if reader is not None and live else ():
            for line, code in codes_in(block):
                if code and offset in live:
                    found.setdefault(code, []).append(offset)
                offset += len(line) + 1
        return found

    def last_schema(self, version: str) -> str | None:
        """The schema that the journal's last record names, "" for none; None where that is of another version."""
        moment, last, schema = _last_of(self.journal.reader)
        return schema if moment and last == version else None

    def last_moment(self) -> str:
        """The timestamp of the journal's last record, not of what forgets or accepts; "" where it has none."""
        return _last_of(self.journal.reader)[0]

    def last_offsets(self, version: str, most: int) -> tuple[Reader | None, list[int]]:
        """The reader, and where the last records of the version begin: at most so many."""
        reader, offsets = self.offsets(version)
        return reader, offsets[-most:]

    def _exact_texts(self, reader: Reader, version: str, offsets: list[int]) -> Iterator[str]:
        """The str() of keys on lines with a checksum, which win over lines without."""
        for offset in offsets:
            record = self.read_at(reader, version, offset)
            if record.crc:
                yield str(key_of(reader, record, offset))

    def read_at(self, reader: Reader, version: str, offset: int) -> Record:
        """The record at an offset that this index gave; where an edit has moved it, from where it is now.

        Raises:
            DamagedRecord: with the key, which is not done from now on.
        """
        try:
            return reader.read(offset)
        except DamagedRecord as error:
            with self.lock:
                if reader is not self.journal.reader:
                    raise  # the offset is one of a file that was replaced
                found = self.index.key_at(version, offset)
                if found is None:
                    raise
                if self._is_moved(reader, offset):
                    place = self.find(version, found[0])
                    if place is not None and place.offset != offset:
                        return reader.read(place.offset, found[0])
            raise reader.damaged(offset, error.why, key=found[0]) from None

    def write_index_if_worth(self, growth: float, rows: int, size: int) -> None:
        """Write the index file, once what it lacks is large in itself and by comparison."""
        filed, covered = self.index.filed
        lacks, lacking = self.index.recent, self.index.end - covered
        if (lacks > rows or lacking > size) and (lacks > growth * filed or lacking > growth * covered):
            self.write_index()
        with self.lock:
            self._vouch()

    def _vouch(self) -> None:
        """Whoever writes lets go of the journal: the index, and its file, are right of it as it is now."""
        reader, trust = self.journal.reader, self._trust
        if reader is None or not self.journal.writable:
            return
        state = reader.state()
        if state[0] != self.index.end or self.journal.in_doubt:
            return
        if trust.doubt is not None:
            trust.seen = state  # what was in doubt is so still
            return
        trust.assure(state)
        try:
            self.index.seal(self._index_path, state)
        except OSError as error:
            log.debug("the index %s was not sealed: %s", self._index_path, error)

    def write_index(self) -> None:
        """Write the index file. It is only a cache: failing to write it is not an error."""
        if not self._filing.acquire(blocking=False):
            return  # another thread is at it; we do not wait for it, since who ends a pass holds a lock that it needs
        try:
            with self.lock:
                index, reader = self.index, self.journal.reader
                snapshot = index.snapshot()
            try:
                if reader is not None:
                    segment = snapshot.write(self._index_path, reader)
                    if segment is not None:
                        index.wrote(snapshot, segment)
                    if not reader.is_current():  # the journal was replaced meanwhile
                        self._index_path.unlink(missing_ok=True)
            except IndexDamaged:  # the file before, which this one was to be made from
                if index.reads_file:
                    self._rebuilt()
                else:
                    index.drop_base()
            except (OSError, ValueError) as error:  # the latter for versions that only a line by hand can have
                log.debug("the index %s was not written: %s", self._index_path, error)
        finally:
            self._filing.release()

    def close(self) -> None:
        """Let go of both files; `refresh` opens them again."""
        self.journal.close()
        self.index, self._trust, self._edited = Index(self._skipped.note), Trust(), None

    def unlink(self) -> None:
        """Delete journal and index; whoever has them open reads on."""
        self.close()
        self.journal.path.unlink(missing_ok=True)
        self._index_path.unlink(missing_ok=True)
        self._notes_of_damage.unlink()


def _pass_over(offset: int, size: int) -> None:
    """A line of many megabytes is no sign of what computed it."""


def _last_of(reader: Reader | None) -> tuple[str, str, str]:
    """(timestamp, version, schema) of a journal's last record; each "" where there is none, or none is found."""
    if reader is None:
        return "", "", ""
    size, tail = reader.size(), _TAIL
    found = last_in(reader.pread(tail, max(0, size - tail)))
    while found is None and tail < min(size, _LONGEST_TAIL):
        tail *= 16
        found = last_in(reader.pread(tail, max(0, size - tail)))
    return found or ("", "", "")


def key_of(reader: Reader, record: Record, offset: int) -> Key:
    """The key on a record: as text where the line stands for any key of equal str()."""
    try:
        key = key_from_json(record.key)
    except ValueError as error:
        raise reader.damaged(offset, str(error)) from None
    return key if record.crc else str(key)
