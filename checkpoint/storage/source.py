"""What reads records by key: one journal with its index, or several that are read as one.

The promise: whoever only reads asks a `RecordSource`, and need not know how many journals it is.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Set
from typing import Protocol

from checkpoint.errors import DamagedRecord
from checkpoint.storage.index import Place
from checkpoint.storage.indexed_journal import key_of
from checkpoint.storage.notes import Notes
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record
from checkpoint.values.digests import Digests
from checkpoint.values.keys import Key, key_from_json, key_spelled
from checkpoint.values.marks import mark_of

__all__ = ["RecordSource", "count_failed", "is_retired", "latest_of", "record_at"]


class RecordSource(Protocol):
    """Records by version and key. An offset is valid for the `reader` that was current when it was given."""

    # what it is at

    @property
    def reader(self) -> Reader | None:
        """What reads the records at the offsets that are found here; None where there is no file yet."""

    @property
    def readers(self) -> list[Reader]:
        """The journal files, open."""

    @property
    def versions(self) -> set[str]:
        """The versions that have had a record."""

    @property
    def latest(self) -> str:
        """The version of the last record; "" is none."""

    @property
    def codes(self) -> dict[str, list[str]]:
        """By version, the fingerprints that its records have named, the last one last."""

    @property
    def has_loose(self) -> bool:
        """Whether there are lines without checksum, which stand for any key of equal str()."""

    @property
    def damaged(self) -> int:
        """How many lines scans could not read."""

    @property
    def state(self) -> tuple[object, int]:
        """(what offsets are valid for, how much is known): both are equal as long as nothing is learned."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing in it."""

    def notes(self) -> Notes:
        """What the journals say that digests stand for, and what was accepted."""

    def holds(self, reader: Reader, offset: int) -> bool:
        """Whether the reader still reads, at this offset, the file that is found at the path."""

    def recent_keys(self, version: str) -> list[Key] | None:
        """The keys of all records of a version, where they are at hand."""

    def moment_after(self, version: str, key: Key) -> bytes:
        """The earliest timestamp at which a new record of the key counts; b"" where any does."""

    def last_schema(self, version: str) -> str | None:
        """The schema that the last record names, "" for none; None where that is of another version."""

    def last_moment(self) -> str:
        """The timestamp of the last record; "" where there is none."""

    # looking up

    def find(self, version: str, key: Key) -> Place | None:
        """Where the record is that counts for the key."""

    def find_all(self, version: str, keys: list[Key]) -> tuple[array[int], Digests]:
        """What `find` gives for each key: offsets (-1: none), and digests."""

    def read(self, version: str, key: Key) -> tuple[Reader, Place, Record] | None:
        """The record that counts for the key, with where it is.

        Raises:
            DamagedRecord: its bytes are not those that were written.
        """

    def read_at(self, reader: Reader, version: str, offset: int) -> Record:
        """The record at an offset that was given here.

        Raises:
            DamagedRecord: with the key.
        """

    def place_of(self, reader: Reader, version: str, mark: int, near: int) -> int | None:
        """Where the record of a mark's key is in an open file that was edited, the one that has the place `near`."""

    def note_damage(self, version: str, key: Key) -> None:
        """The key's record proved damaged: it is not found any more, and who opens the journal next looks again."""

    def keys_of_inputs(self, version: str, digests: Set[int]) -> dict[int, Key]:
        """By digest, a key whose last record was computed from that input; for those digests that have one."""

    # all of them

    def count(self, version: str) -> int:
        """How many keys have a record."""

    def offsets(self, version: str) -> tuple[Reader | None, list[int]]:
        """The reader, and where each record of the version begins that counts."""

    def last_offsets(self, version: str, most: int) -> tuple[Reader | None, list[int]]:
        """The reader, and where the last records of the version begin: at most so many."""

    def sample(self, version: str, most: int) -> tuple[Reader | None, list[int]]:
        """The reader, and where records of the version begin: at most so many, spread evenly."""

    def places_by_code(self, version: str) -> dict[str, list[int]]:
        """Where the live records of a version begin, by the code that they name."""

    def records(self, version: str) -> Iterator[tuple[Reader, int, Key, Record]]:
        """(reader, offset, key, record) of every key, in the order in which they were saved.

        Raises:
            DamagedRecord: at the first record whose bytes are not those that were written.
        """

    def sound(self, version: str) -> Iterator[tuple[Key, Record]]:
        """(key, record) of every key whose record is sound, in that order."""

    def sound_places(self, version: str, on_damage: Callable[[], None]) -> Iterator[tuple[Reader, int, Key, Record]]:
        """Like `records`, but skips damaged records and calls `on_damage` for each."""


def latest_of(results: RecordSource, errors: RecordSource) -> str:
    """The version of the last record, be it a result or an error, as their timestamps say; "" is none.

    Results come first where the moments are one, or where a line by hand says none.
    """
    if results.is_empty or errors.is_empty or results.latest == errors.latest:
        return (errors if results.is_empty else results).latest
    saved, failed = results.last_moment(), errors.last_moment()
    return (errors if saved and failed > saved else results).latest


def is_retired(results: RecordSource, version: str, key: Key, error: Record) -> bool:
    """Whether a result retires the key's error; one without checksum stands for any key of equal str()."""
    if results.find(version, key) is not None:
        return True
    return not error.crc and results.find(version, key_spelled(str(key))) is not None


def count_failed(results: RecordSource, errors: RecordSource, version: str) -> int:
    """How many keys have an error and no result."""
    return sum(not is_retired(results, version, key, error) for key, error in errors.sound(version))


def record_at(
    source: RecordSource, reader: Reader, version: str, offset: int, mark: int | None, text: str
) -> tuple[int, Key, Record]:
    """(offset, key, record) at a place that a pass found; where an edit moved the line, from where it is now.

    Args:
        source: where it was found.
        reader: the file, open since.
        version: of which it was found.
        offset: the place.
        mark: that of the key whose record it was; None believes the record.
        text: the str() of the key, where a line without checksum may stand for it.

    Raises:
        DamagedRecord: its bytes are not those that were written.
        JournalLost: the file was edited, and the key has no record in it any more.
    """
    damage: DamagedRecord | None = None
    other: tuple[int, Key, Record] | None = None
    try:
        record = source.read_at(reader, version, offset)
        key = key_of(reader, record, offset)
        if mark is None or _is_of(record, key, mark, text):
            if mark is None or record.version == version or record.version in source.notes().counting_for(version):
                return offset, key, record
            other = offset, key, record  # of another version, unless what accepted it was cleared since
    except DamagedRecord as error:
        if mark is None:
            raise
        damage = error
    found = source.place_of(reader, version, mark, offset)
    if damage is not None and found in (None, offset):
        raise damage
    if other is not None and found in (None, offset):
        return other
    if found is None:
        raise reader.moved(offset)
    record = reader.read(found)
    return found, key_of(reader, record, found), record


def _is_of(record: Record, key: Key, mark: int, text: str) -> bool:
    """Whether a record is of the key of a mark; or of that text, where it has no checksum."""
    if record.forgotten:
        return False
    return mark_of(key if record.crc else key_from_json(record.key)) == mark or (not record.crc and key == text)
