"""One journal with its index: records by key.

The promise: a record is found by its key, whatever became of the index file, or is told to be damaged and is then not
found any more. A shelf learns what others append; it writes nothing but the index file and the repair of a torn end.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from checkpoint.errors import DamagedRecord, quote
from checkpoint.storage.blocks import State
from checkpoint.storage.index import Index, Place
from checkpoint.storage.indexed_journal import IndexedJournal, key_of
from checkpoint.storage.notes import Notes
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record, codes_in, last_in, parse
from checkpoint.values.keys import Key
from checkpoint.values.marks import mark_of

__all__ = ["KeyedLog", "key_of"]


log = logging.getLogger("checkpoint")
_TAIL = 4096
_LONGEST_TAIL = 1 << 20


class KeyedLog(IndexedJournal):
    """One journal with its index: records by key.

    Args:
        path: the journal's.
        lock: the store's: whoever opens files anew holds it.
    """

    def __init__(self, path: Path, lock: threading.RLock) -> None:
        super().__init__(path, lock)
        self.examined: Index | None = None  # what was known when the file was last looked at as a whole
        self._edited: tuple[weakref.ref[Reader], State, str, dict[int, int]] | None = None  # where keys are by mark
        self._ended: tuple[object, tuple[str, str, str]] = (None, ("", "", ""))  # in which state, how the journal ends
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

    def forget_unsound(self) -> None:
        """The keys of lines that a failed sync has damaged are not done."""
        unsound, self.journal.unsound = self.journal.unsound, []
        if unsound:
            self.learn_anew()  # the file of the index knows hashes only
        for offset in unsound:
            for version in self.versions:
                if (found := self.index.key_at(version, offset)) is not None:
                    self.index.forget(version, found[0])

    def recent_keys(self, version: str) -> list[Key] | None:
        """The keys of all records of a version, where the index has them at hand."""
        index = self.index
        return None if index.reads_file or index.has_loose else index.recent_of(version)

    # reading

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
            if record.forgotten or (
                record.version != version and record.version not in self.notes().counting_for(version)
            ):
                raise reader.damaged(place.offset, "it is of another version, or forgets the key", key=key)
        except DamagedRecord:
            if reader is self.journal.reader and not self._is_moved(reader, place.offset):
                raise
            return self.read(version, key)
        return reader, place, record

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
        counting = self.notes().counting_for(version)
        exact = set(self._exact_texts(reader, version, offsets)) if loose else set()
        for offset, line in zip(offsets, reader.lines_at(offsets), strict=True):
            try:
                record = parse(line)
            except ValueError:
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
        moment, last, schema = self._last()
        return schema if moment and last == version else None

    def last_moment(self) -> str:
        """The timestamp of the journal's last record, not of what forgets or accepts; "" where it has none."""
        return self._last()[0]

    def _last(self) -> tuple[str, str, str]:
        """As `_last_of`; the end of the file is read when it was written since."""
        reader = self.journal.reader
        if reader is None:
            return "", "", ""
        known, state = self._ended, (reader, *reader.glance())
        if known[0] != state:
            known = self._ended = (state, _last_of(reader))
        return known[1]

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


def _pass_over(offset: int, size: int) -> None:
    """A line of many megabytes is no sign of what computed it."""


def _last_of(reader: Reader) -> tuple[str, str, str]:
    """(timestamp, version, schema) of a journal's last record; each "" where there is none, or none is found."""
    size, tail = reader.size(), _TAIL
    found = last_in(reader.pread(tail, max(0, size - tail)))
    while found is None and tail < min(size, _LONGEST_TAIL):
        tail *= 16
        found = last_in(reader.pread(tail, max(0, size - tail)))
    return found or ("", "", "")
