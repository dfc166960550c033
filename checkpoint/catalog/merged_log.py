"""Several journals read as one: a checkpoint's own, which may be written, and those of its shards.

The promise: what is found is what one journal with all records would give, where of several records of one key the one
with the latest timestamp counts, and of two with the same, that of the later file name; a line with a checksum wins
over one without. Nothing is written through it.

An offset is `number << 40 | offset` of the journal with that number; the own one is number 0, so that its offsets are
what they were before there were others, and a number is never given twice. A key is looked for where it can be: in one
journal for each count of shards. Journals of one count share no key. Journals of different counts may; only if both
have records of one version are they compared, in time proportional to the number of keys.
"""

from __future__ import annotations

import heapq
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from itertools import groupby
from typing import Any, NamedTuple

from checkpoint import clock
from checkpoint.catalog.shards import ALL, Shard, hash_of
from checkpoint.errors import DamagedRecord, JournalLost
from checkpoint.storage.index import Place
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.notes import Notes
from checkpoint.storage.reader import Reader, most_idle
from checkpoint.storage.record import Record
from checkpoint.values.digests import Digests
from checkpoint.values.keys import Key, identity

__all__ = ["JoinedReader", "MergedLog", "allow_files"]

_SHIFT = 40  # a journal may be of one terabyte; 2**23 of them fit
_LOCAL = (1 << _SHIFT) - 1


_files = 256  # that this process may have open: so many besides, and the journals


def allow_files(count: int) -> None:
    """So many more may be opened, since each journal that is read is: the limit is raised, where it may be."""
    global _files
    _files += count
    if sys.platform == "win32":
        return
    import resource

    count = _files
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = count if hard == unlimited else min(count, hard)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError):
            pass  # who then opens too many is told so


class JoinedReader(Reader):
    """Open journals, read as one.

    Args:
        readers: by number; one that has no file yet is left out.
    """

    def __init__(self, readers: Mapping[int, Reader]) -> None:
        self._readers = dict(readers)
        are_too_many = len(readers) > most_idle() // 4  # there are three kinds of journals
        for number, reader in readers.items():
            reader.can_be_held = number == 0 or not are_too_many

    def hold(self) -> object:
        """As `Reader.hold`, of each."""
        return [reader.hold() for reader in self._readers.values()]

    def part(self, offset: int) -> Reader:
        """The reader of the journal that the offset is in."""
        return self._readers[offset >> _SHIFT]

    def is_of(self, readers: Mapping[int, Reader]) -> bool:
        """Whether these are its journals, as they are."""
        mine = self._readers
        return mine.keys() == readers.keys() and all(mine[number] is reader for number, reader in readers.items())

    def read(self, offset: int, key: Any = None) -> Record:
        """As `Reader.read`."""
        try:
            return self.part(offset).read(offset & _LOCAL, key)
        except DamagedRecord as error:
            raise _located(error, offset) from None

    def line_at(self, offset: int) -> bytes:
        """As `Reader.line_at`."""
        return self.part(offset).line_at(offset & _LOCAL)

    def lines_at(self, offsets: Iterable[int]) -> Iterator[bytes]:
        """As `Reader.lines_at`, of one journal after the other."""
        for of, places in groupby(offsets, lambda offset: offset >> _SHIFT):
            yield from self.part(of << _SHIFT).lines_at(offset & _LOCAL for offset in places)

    def damaged(self, offset: int, why: str, line: bytes = b"", key: object = None) -> DamagedRecord:
        """As `Reader.damaged`."""
        return _located(self.part(offset).damaged(offset & _LOCAL, why, line, key), offset)

    def moved(self, offset: int) -> JournalLost:
        """As `Reader.moved`."""
        return self.part(offset).moved(offset & _LOCAL)

    def where(self, offset: int) -> str:
        """As `Reader.where`."""
        return self.part(offset).where(offset & _LOCAL)


def _located(error: DamagedRecord, offset: int) -> DamagedRecord:
    """The error of one journal, told as that of the whole."""
    error.offset = offset & ~_LOCAL | error.offset & _LOCAL
    return error


class _Known(NamedTuple):
    """What was found out of a version, when the journals were in this state."""

    state: tuple[object, int]
    hidden: frozenset[int]  # records whose key has one that counts in another journal
    keys: int


class MergedLog:
    """Several journals read as one: a `RecordSource`.

    Args:
        shelves: by shard, the own one first; their order is that of their numbers.
    """

    def __init__(self, shelves: Mapping[Shard, KeyedLog]) -> None:
        self._shelves = list(shelves.values())
        self._shards = list(shelves)
        self.lock = self._shelves[0].lock
        self._numbers: dict[int, dict[int, int]] = {}  # by how many there are, and its own number
        for number, shard in enumerate(shelves):
            self._numbers.setdefault(shard.of, {})[shard.number] = number
        # What the items of a shard needed of another checkpoint by `one` is in that shard's journal, whatever its key.
        self._strays = [] if self._shards[0] == ALL else [0]
        self._reader = JoinedReader({})
        self._known: dict[str, _Known] = {}
        self._all_notes: tuple[tuple[object, int] | None, Notes] = (None, Notes())

    # what it is at

    @property
    def codes(self) -> dict[str, list[str]]:
        """As `KeyedLog.codes`: the last one is that of the journal whose last record has the latest timestamp."""
        found: dict[str, dict[str, None]] = {}
        for shelf in sorted(self._shelves, key=_lateness):
            for version, codes in shelf.codes.items():
                known = found.setdefault(version, {})
                for code in codes:
                    known.pop(code, None)
                    known[code] = None
        return {version: list(codes) for version, codes in found.items()}

    def notes(self) -> Notes:
        """As `KeyedLog.notes`, of all journals."""
        state, notes = self._all_notes
        if state != self.state:
            state, notes = self.state, Notes()
            for shelf in self._shelves:
                notes.add(shelf.notes())
            self._all_notes = (state, notes)
        return notes

    @property
    def reader(self) -> JoinedReader | None:
        """One object as long as the files are the same."""
        held = enumerate([shelf.journal.reader for shelf in self._shelves])
        readers = {number: reader for number, reader in held if reader is not None}
        if not self._reader.is_of(readers):
            self._reader = JoinedReader(readers)
        return self._reader if readers else None

    @property
    def readers(self) -> list[Reader]:
        """The journal files, open."""
        return [reader for shelf in self._shelves for reader in shelf.readers]

    @property
    def versions(self) -> set[str]:
        """The versions that have had a record."""
        return set().union(*[shelf.versions for shelf in self._shelves])

    @property
    def latest(self) -> str:
        """The version of the last record: that of the journal whose last record has the latest timestamp."""
        held = [shelf for shelf in self._shelves if not shelf.is_empty]
        if len({shelf.latest for shelf in held}) > 1:
            return max(held, key=_lateness).latest
        return held[0].latest if held else ""

    @property
    def has_loose(self) -> bool:
        """Whether any has lines without checksum."""
        return any(shelf.has_loose for shelf in self._shelves)

    @property
    def damaged(self) -> int:
        """How many lines scans could not read."""
        return sum(shelf.damaged for shelf in self._shelves)

    @property
    def state(self) -> tuple[object, int]:
        """As `KeyedLog.state`: the sum of what is known only grows as long as the indexes are the same."""
        indexes = tuple([shelf.index for shelf in self._shelves])
        return indexes, sum([index.end for index in indexes])

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in any."""
        return all(shelf.is_empty for shelf in self._shelves)

    def holds(self, reader: Reader, offset: int) -> bool:
        """Whether the reader still reads, at this offset, the file that is found at the path."""
        part = reader.part(offset) if isinstance(reader, JoinedReader) else reader
        return part is self._at(offset).journal.reader

    def recent_keys(self, version: str) -> list[Key] | None:
        """The keys of all records of a version, where the indexes have them at hand."""
        keys: dict[Key, None] = {}
        for shelf in self._shelves:
            held = shelf.recent_keys(version)
            if held is None:
                return None
            keys.update(dict.fromkeys(held))
        return list(keys)

    def _at(self, offset: int) -> KeyedLog:
        return self._shelves[offset >> _SHIFT]

    def note_damage(self, version: str, key: Key) -> None:
        """As `KeyedLog.note_damage`, in the journal whose record counts."""
        with self.lock:
            if (place := self.find(version, key)) is not None:
                self._at(place.offset).note_damage(version, key)
                self._known.clear()

    # looking up

    def _homes(self, key: Key) -> list[int]:
        """The journals that can have a record of the key."""
        hashed = hash_of(key)
        homes = [numbers.get(hashed % of, -1) for of, numbers in self._numbers.items()]
        loose = [number for number, shelf in enumerate(self._shelves) if shelf.has_loose]
        return [home for home in dict.fromkeys([*homes, *self._strays, *loose]) if home >= 0]

    def find(self, version: str, key: Key) -> Place | None:
        """Where the record is that counts for the key."""
        found: list[Place] = []
        for number in self._homes(key):
            place = self._shelves[number].find(version, key)
            if place is not None:
                found.append(Place(number << _SHIFT | place.offset, place.digest))
        if len(found) > 1:
            return max(found, key=lambda place: self._weight(version, place))
        return found[0] if found else None

    def _find_stray(self, version: str, key: Key) -> Place | None:
        """Where a task's journal has a record of a key that is not of its shard: a step of one of its items."""
        places = [(number, shelf.find(version, key)) for number, shelf in enumerate(self._shelves)]
        found = [Place(number << _SHIFT | place.offset, place.digest) for number, place in places if place is not None]
        return max(found, key=lambda place: self._weight(version, place), default=None)

    def _weight(self, version: str, place: Place) -> tuple[bool, bool, bool, str, str]:
        """What decides which of several records of a key counts; one that cannot be read does not.

        A record of the version itself wins over one of another version that was accepted for it.
        """
        shelf, offset = self._at(place.offset), place.offset & _LOCAL
        reader = shelf.journal.reader
        try:
            assert reader is not None
            record = reader.read(offset)
        except DamagedRecord:
            return False, False, False, "", ""
        return True, bool(record.crc), record.version == version, record.timestamp, shelf.journal.path.name

    def moment_after(self, version: str, key: Key) -> bytes:
        """As `KeyedLog.moment_after`: clocks differ and jump, and what is saved last is to count."""
        place = self.find(version, key)
        if place is None:
            return b""
        return clock.next_stamp(self._weight(version, place)[3])

    def find_all(self, version: str, keys: list[Key]) -> tuple[array[int], Digests]:
        """What `find` gives for each key: offsets (-1: none), and digests."""
        offsets, digests = array("q", [-1]) * len(keys), Digests.none(len(keys))
        if self.has_loose:  # a line without checksum stands for keys of other shards too
            for place, key in enumerate(keys):
                offsets[place], digests[place] = self.find(version, key) or (-1, 0)
            return offsets, digests
        hashes = array("q", map(hash_of, keys))
        several: set[int] = set()
        for of, numbers in self._numbers.items():
            for index, places in _dealt(hashes, of).items():
                if index in numbers:
                    number = numbers[index]
                    found = self._shelves[number].find_all(version, [keys[place] for place in places])
                    for place, offset, digest in zip(places, *found, strict=True):
                        if offset >= 0:
                            if offsets[place] >= 0:
                                several.add(place)
                            offsets[place], digests[place] = number << _SHIFT | offset, digest
        for number in self._strays:
            left = [place for place, offset in enumerate(offsets) if offset < 0]
            found = self._shelves[number].find_all(version, [keys[place] for place in left])
            for place, offset, digest in zip(left, *found, strict=True):
                if offset >= 0:
                    offsets[place], digests[place] = number << _SHIFT | offset, digest
        for place in several:
            offsets[place], digests[place] = self.find(version, keys[place]) or (-1, 0)
        return offsets, digests

    def read(self, version: str, key: Key) -> tuple[Reader, Place, Record] | None:
        """The record that counts for the key, with where it is."""
        with self.lock:
            place, reader = self.find(version, key) or self._find_stray(version, key), self.reader
        if place is None or reader is None:
            return None
        shelf, base = self._at(place.offset), place.offset & ~_LOCAL
        try:
            found = shelf.read(version, key)
        except DamagedRecord as error:
            raise _located(error, base) from None
        if found is None:
            return None
        _, (offset, digest), record = found
        return reader, Place(base | offset, digest), record

    def read_at(self, reader: Reader, version: str, offset: int) -> Record:
        """As `KeyedLog.read_at`; the reader may be one of the time before there were shards."""
        part = reader.part(offset) if isinstance(reader, JoinedReader) else reader
        try:
            return self._at(offset).read_at(part, version, offset & _LOCAL)
        except DamagedRecord as error:
            raise _located(error, offset) from None

    def place_of(self, reader: Reader, version: str, mark: int, near: int) -> int | None:
        """As `KeyedLog.place_of`."""
        part = reader.part(near) if isinstance(reader, JoinedReader) else reader
        found = self._at(near).place_of(part, version, mark, near & _LOCAL)
        return None if found is None else near & ~_LOCAL | found

    # all of them

    def _look(self, version: str) -> _Known:
        """Which records are of keys that have one that counts in another journal, and how many keys there are."""
        state = self.state
        known = self._known.get(version)
        if known is None or known.state != state:
            counts = [shelf.count(version) for shelf in self._shelves]
            groups: dict[int, list[int]] = {}
            for number, held in enumerate(counts):
                if held:
                    groups.setdefault(self._shards[number].of, []).append(number)
            hidden = self._hidden(version, groups) if len(groups) > 1 else frozenset()
            known = self._known[version] = _Known(state, hidden, sum(counts) - len(hidden))
        return known

    def _hidden(self, version: str, groups: Mapping[int, list[int]]) -> frozenset[int]:
        """The largest group is looked up in the others, so that memory grows with those."""
        if self.has_loose:
            return self._hidden_by_text(version, groups)
        by_size = sorted(groups.values(), key=lambda numbers: sum(self._shelves[n].count(version) for n in numbers))
        first: dict[bytes, int] = {}
        several: dict[bytes, list[int]] = {}
        for numbers in by_size:
            for number in numbers:
                for key, offset in self._shelves[number].hashes(version):
                    place = number << _SHIFT | offset
                    if key in first:
                        several.setdefault(key, [first[key]]).append(place)
                    elif numbers is not by_size[-1]:
                        first[key] = place
        return self._outweighed(version, several.values())

    def _hidden_by_text(self, version: str, groups: Mapping[int, list[int]]) -> frozenset[int]:
        """Where lines without checksum stand for keys of equal str(), the records themselves are looked at."""
        exact: dict[bytes, list[int]] = {}
        loose: dict[str, list[int]] = {}
        texts: set[str] = set()
        for number in [number for numbers in groups.values() for number in numbers]:
            for offset, key, record in self._sound_in(number, version):
                if record.crc:
                    texts.add(str(key))
                    exact.setdefault(identity(key), []).append(offset)
                else:
                    loose.setdefault(str(key), []).append(offset)
        surpassed = [place for text, places in loose.items() if text in texts for place in places]
        return self._outweighed(version, [*exact.values(), *loose.values()]).union(surpassed)

    def _outweighed(self, version: str, several: Any) -> frozenset[int]:
        hidden: set[int] = set()
        for places in several:
            if len(places) > 1:
                best = max(places, key=lambda place: self._weight(version, Place(place, 0)))
                hidden.update(place for place in places if place != best)
        return frozenset(hidden)

    def _sound_in(
        self, number: int, version: str, on_damage: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, Key, Record]]:
        for _, offset, key, record in self._shelves[number].sound_places(version, on_damage):
            yield number << _SHIFT | offset, key, record

    def count(self, version: str) -> int:
        """How many keys have a record."""
        with self.lock:
            return self._look(version).keys

    def _parts(self, version: str) -> Iterator[tuple[int, list[int]]]:
        """(number, offsets there) of each journal that has records that count."""
        hidden = self._look(version).hidden
        for number, shelf in enumerate(self._shelves):
            _, offsets = shelf.offsets(version)
            if hidden:
                offsets = [offset for offset in offsets if number << _SHIFT | offset not in hidden]
            if offsets:
                yield number, offsets

    def offsets(self, version: str) -> tuple[Reader | None, list[int]]:
        """The reader, and where each record begins that counts, journal after journal."""
        with self.lock:
            parts = list(self._parts(version))
            return self.reader, [number << _SHIFT | offset for number, offsets in parts for offset in offsets]

    def sample(self, version: str, most: int) -> tuple[Reader | None, list[int]]:
        """The reader, and where records of the version begin: at most so many, spread evenly over all journals."""
        reader, offsets = self.offsets(version)
        return reader, offsets[:: -(-len(offsets) // most) or 1]

    def last_offsets(self, version: str, most: int) -> tuple[Reader | None, list[int]]:
        """The reader, and where the last records of each journal begin: of all together at most so many."""
        with self.lock:
            parts = list(self._parts(version))
            share = -(-most // len(parts)) if parts else 0
            lasts = [number << _SHIFT | offset for number, offsets in parts for offset in offsets[-share:]]
            return self.reader, lasts[-most:]

    def keys_of_inputs(self, version: str, digests: Set[int]) -> dict[int, Key]:
        """As `KeyedLog.keys_of_inputs`, in any of the journals."""
        found: dict[int, Key] = {}
        for shelf in self._shelves:
            found.update(shelf.keys_of_inputs(version, digests - found.keys()))
        return found

    def records(self, version: str) -> Iterator[tuple[Reader, int, Key, Record]]:
        """(reader, offset, key, record) of every key, in the order in which they were saved, as their timestamps say.

        Raises:
            DamagedRecord: at a record whose bytes are not those that were written.
        """
        with self.lock:
            parts, reader = list(self._parts(version)), self.reader
        if reader is None:
            return
        found = [self._records_of(reader, version, number, offsets) for number, offsets in parts]
        yield from heapq.merge(*found, key=lambda part: part[3].timestamp)

    def _records_of(
        self, reader: JoinedReader, version: str, number: int, offsets: list[int]
    ) -> Iterator[tuple[Reader, int, Key, Record]]:
        base = number << _SHIFT
        try:
            for _, offset, key, record in self._shelves[number].records_at(reader.part(base), version, offsets):
                yield reader, base | offset, key, record
        except DamagedRecord as error:
            raise _located(error, base) from None

    def sound(self, version: str) -> Iterator[tuple[Key, Record]]:
        """(key, record) of every key whose record is sound, in the order in which they were saved."""
        return ((key, record) for _, _, key, record in self.sound_places(version, lambda: None))

    def sound_places(self, version: str, on_damage: Callable[[], None]) -> Iterator[tuple[Reader, int, Key, Record]]:
        """As `KeyedLog.sound_places`."""
        with self.lock:
            hidden, reader = self._look(version).hidden, self.reader
        if reader is None:
            return
        found = [self._sound_in(number, version, on_damage) for number in range(len(self._shelves))]
        for place, key, record in heapq.merge(*found, key=lambda part: part[2].timestamp):
            if place not in hidden:
                yield reader, place, key, record

    def places_by_code(self, version: str) -> dict[str, list[int]]:
        """As `KeyedLog.places_by_code`."""
        with self.lock:
            hidden = self._look(version).hidden
        found: dict[str, list[int]] = {}
        for number, shelf in enumerate(self._shelves):
            for code, offsets in shelf.places_by_code(version).items():
                places = [number << _SHIFT | offset for offset in offsets]
                found.setdefault(code, []).extend([place for place in places if place not in hidden])
        return {code: places for code, places in found.items() if places}

    def last_schema(self, version: str) -> str | None:
        """As `KeyedLog.last_schema`."""
        return max(self._shelves, key=_lateness).last_schema(version)

    def last_moment(self) -> str:
        """The timestamp of the last record."""
        return max(shelf.last_moment() for shelf in self._shelves)


def _lateness(shelf: KeyedLog) -> tuple[str, str]:
    return shelf.last_moment(), shelf.journal.path.name


def _dealt(hashes: array[int], of: int) -> dict[int, list[int]]:
    """The places of the keys that belong to each of so many shards."""
    dealt: dict[int, list[int]] = {}
    for place, hashed in enumerate(hashes):
        dealt.setdefault(hashed % of, []).append(place)
    return dealt
