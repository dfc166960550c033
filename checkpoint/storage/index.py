"""Where the last record of each key lies, so that resuming costs by keys and never by the size of values.

The promise: it is rebuildable. Deleting, cutting or corrupting its file changes nothing but the time of the next
opening: what is damaged raises `IndexDamaged`, upon which the store reads the journal anew.

Two parts. *Recent* keys came from this process or from the journal's tail. The *segment* is a file, of which no more is
read than is asked for, so that opening it takes the same time for ten keys and for ten million. Recent keys are in
dicts; those that were read are *packed* until somebody asks for many, in a sixth of the memory. `IndexScan` reads the
journal's lines into an index, and an `IndexSnapshot` of it is what becomes its file.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from operator import countOf
from pathlib import Path
from typing import Any

from checkpoint import locks
from checkpoint.storage.blocks import BlockSums, State
from checkpoint.storage.index_file import Delta, IndexDamaged, IndexFile, hash_of, hashes_of, loose_hash
from checkpoint.storage.packed import Packed, Place, place_in
from checkpoint.storage.reader import LONG_LINE, Reader
from checkpoint.storage.record import (
    LONG_KEY,
    LONGEST_LOOSE,
    Acceptance,
    LineHead,
    NoRecord,
    abridged,
    decode_heads,
    head_of,
    is_hopeless,
    is_whole,
    parse,
)
from checkpoint.values.digests import LOW, Digests, are_alike, are_apart, digest_from
from checkpoint.values.keys import Crowd, Key, key_from_json, key_json, key_spelled

__all__ = ["Index", "IndexScan", "IndexSnapshot", "Place"]


_MANY = 8  # looking a key up by its hash takes as long as reading so many in a run
_MAX_NOTED = 100
_SEARCHES = 8  # so many keys are searched for among the packed ones, before these are hashed
_NEWLINES = re.compile(rb"\n+")


@dataclass(frozen=True, slots=True)
class IndexSnapshot:
    """What an index knew at one moment: it is written to a file while the index learns on.

    Attributes:
        rows: by version, the row of each recent key; -1 for what was forgotten.
        loose: the same for lines without checksum, by str() of the key.
        places: of the rows: rows are only ever added.
        known: how many rows there were.
        base: the file that the next one is made from.
        based: how many of the rows it holds.
        end: how many bytes of the journal were covered.
        latest: the version of the last record.
        damaged: (offset, why) of lines that could not be read.
        notes: where the lines are that accept, and the records that say what a digest stands for.
        codes: by version, the fingerprints that its records have named, the last one last.
        sums: the checksums of the blocks that were covered.
    """

    rows: dict[str, dict[Key, int]]
    loose: dict[str, dict[str, int]]
    places: array[int]
    known: int
    base: IndexFile | None
    based: int
    end: int
    latest: str
    damaged: list[tuple[int, str]]
    notes: list[int]
    codes: dict[str, list[str]]
    sums: tuple[bytes, int]

    def write(self, path: Path, journal: Reader) -> IndexFile | None:
        """Replace the file at `path` by one that covers all that was known; readers of the old one go on reading it.

        Returns the new one; None where it is not found to be sound.

        Raises:
            OSError: it could not be written; nothing changed.
            IndexDamaged: the one before is, which it is made from; nothing changed.
        """
        news = {version: self._news(version) for version in set(self.rows) | set(self.loose)}
        return IndexFile.write(
            path, journal, self.base, news, self.end, self.latest, self.damaged, self.notes, self.codes, self.sums
        )

    def _news(self, version: str) -> Delta:
        """What the file lacks of a version."""
        places, first = self.places, self.based
        rows, texts = self.rows.get(version, {}), self.loose.get(version, {})
        keys = [key for key, row in rows.items() if row >= first]
        fresh = [row for row in rows.values() if row >= first]
        return Delta(
            keys,
            array("q", [places[3 * row] for row in fresh]),
            Digests(*[[places[3 * row + half] for row in fresh] for half in (1, 2)]),
            [key for key, row in rows.items() if row < 0] if -1 in rows.values() else [],
            {text: places[3 * row] for text, row in texts.items() if row >= first},
            [text for text, row in texts.items() if row < 0],
        )


class Index:
    """The places of the last records of one journal.

    Attributes:
        end: how many bytes of the journal it covers.
        latest: the version of the last record.
        damaged: (offset, why) of lines that could not be read, the first 100.
        has_loose: whether there are lines without checksum, which stand for any key of equal str().
        notes: where the lines are that accept, and the records that say what a digest stands for.
        codes: by version, the fingerprints that its records have named, the last one last.
        rest: where a last line without newline begins that counts already, and its length.
        crowd: watches the keys that are read.
        sums: the checksums of the bytes that it was learned from.
    """

    def __init__(self, on_damage: Callable[[int, str], None] = lambda offset, why: None) -> None:
        self._on_damage = on_damage
        self._segment: IndexFile | None = None  # where keys are looked up that are not recent
        self._base: IndexFile | None = None  # the file as it was read or written last, which the next one is made from
        self._based = 0  # how many of the rows it holds
        # A key's row number leads to its place: its offset, and the item's digest in halves. One array: an interrupt
        # never leaves half a place. Rows are added by who holds the store's lock, and found nothing packed; or hashes
        # what is.
        self._hashed: dict[str, dict[Key, int]] = {}
        self._packed: list[Packed] = []  # later than what is hashed
        self._searches = 0  # how often these were searched
        self._hashing = locks.lock("hashing")
        self._loose: dict[str, dict[str, int]] = {}
        self._has_forgotten = False  # whether any row was -1
        self._counted: dict[str, tuple[int, int, int]] = {}  # by version: how many keys and texts, and are in the file
        self._places = array("Q")
        self.rest = (0, 0)
        self.crowd = Crowd()
        self.sums = BlockSums()
        self.end = 0
        self.latest = ""
        self.has_loose = False
        self.damaged: list[tuple[int, str]] = []
        self.notes: list[int] = []
        self.codes: dict[str, dict[str, None]] = {}

    @property
    def _rows(self) -> dict[str, dict[Key, int]]:
        """By version, the row of each recent key. Opening packs keys; hashing them waits for who asks for many."""
        if self._packed:
            self._hash()
        return self._hashed

    def _hash(self) -> None:
        with self._hashing:
            packed = self._packed[:]
            for block in packed:
                first = len(self._places) // 3
                self._places.extend(block.places())
                rows = self._hashed.setdefault(block.version, {})
                rows.update(zip(block.keys(), range(first, first + block.size), strict=True))
            del self._packed[: len(packed)]  # only now, since others wait for all of them; more may have come

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._hashing = locks.lock("hashing")

    # looking up

    def find(self, version: str, key: Key) -> Place | None:
        """Where the last record of the key under the version is; a line without checksum stands for equal str()."""
        searched = self._to_search(key) if self._packed else []
        spelled = key_json(key) if searched else b""
        for block in searched:
            if block.version == version and (place := block.find(key, spelled)) is not None:
                return place
        rows = (self._hashed if searched else self._rows).get(version)
        row = -2 if rows is None else rows.get(key, -2)
        if row >= 0:
            return self._place(row)
        segment = self._segment if row == -2 else None
        if segment is not None and (entry := segment.find(hash_of(version, key))) is not None:
            return Place(*entry)
        return self._find_loose(version, key) if self.has_loose else None

    def _to_search(self, key: Key) -> list[Packed]:
        """What is packed, the last first, as long as searching it takes less than hashing it."""
        if type(key) is not str or self._searches >= _SEARCHES:
            return []
        self._searches += 1
        return self._packed[::-1]

    def find_all(self, version: str, keys: list[Key]) -> tuple[array[int], Digests]:
        """What `find` gives for each key, much faster than one by one: offsets (-1: none), and digests."""
        offsets, digests, others = self._find_recent(version, keys)
        segment = self._segment
        if self.has_loose:
            for place in others:
                found = self.find(version, keys[place])
                offsets[place], digests[place] = (-1, 0) if found is None else found
        elif others and segment is not None and (stored := segment.header.counts.get(version, 0)):
            if len(others) * _MANY >= stored:
                segment.place_all(version, keys, others, (offsets, digests))
                return offsets, digests
            hashes = list(hashes_of(version, [keys[place] for place in others]))
            filed = segment.find_all(hashes)
            for place, digest in zip(others, hashes, strict=True):
                offsets[place], digests[place] = filed.get(digest, (-1, 0))
        return offsets, digests

    def _find_recent(self, version: str, keys: list[Key]) -> tuple[array[int], Digests, list[int]]:
        """The same of what the file does not hold, and the places of keys that are to be looked for elsewhere."""
        rows, places = self._rows.get(version), self._places
        if not rows or not keys:
            return array("q", [-1]) * len(keys), Digests.none(len(keys)), list(range(len(keys)))
        known = list(map(rows.get, keys))
        first = known[0]
        if first is not None and first >= 0 and known == list(range(first, first + len(known))):
            part = places[3 * first : 3 * (first + len(known))]  # in the order in which they were saved, as most are
            return array("q", part[::3].tobytes()), Digests(part[1::3], part[2::3]), []
        offsets = array("q", [-1 if row is None or row < 0 else places[3 * row] for row in known])
        high, low = ([0 if row is None or row < 0 else places[3 * row + half] for row in known] for half in (1, 2))
        others = [place for place, row in enumerate(known) if row is None or (row < 0 and self.has_loose)]
        return offsets, Digests(high, low), others

    def _place(self, row: int) -> Place | None:
        return None if row < 0 else place_in(self._places, row)

    def _find_loose(self, version: str, key: Key) -> Place | None:
        text = str(key)
        row = self._loose.get(version, {}).get(text, -2)
        if row != -2:
            return self._place(row)
        if self._segment is None:
            return None
        entry = self._segment.find(loose_hash(version, text))
        return None if entry is None else Place(*entry)

    def offsets(self, version: str) -> list[int]:
        """The offsets of the live records of a version, in the order of the file."""
        found: set[int] = set()
        for table in (self._rows, self._loose):
            found.update([self._places[3 * row] for row in table.get(version, {}).values() if row >= 0])
        segment = self._segment
        if segment is not None and version in segment.header.versions:
            hidden = self._hidden()
            found.update([offset for digest, offset, _ in segment.entries(version) if digest not in hidden])
        return sorted(found)

    def of_inputs(self, version: str, digests: Set[int]) -> Iterator[tuple[int, int]]:
        """(digest, offset) of each record of a version that was computed from one of these inputs.

        It need not be the last one of its key.
        """
        wanted = {digest >> 64: digest for digest in digests}
        found: list[tuple[int, int]] = []
        for block in self._packed[:]:
            places = block.places() if block.version == version and block.inputs else array("Q")
            if not are_apart(wanted.keys(), places[1::3]):
                found += map(partial(place_in, places), range(block.size))
        if not are_apart(wanted.keys(), self._places[1::3]):
            found += [place_in(self._places, row) for row in self._hashed.get(version, {}).values() if row >= 0]
        is_filed = self._segment is not None and version in self._segment.header.versions
        filed = self._segment.of_inputs(version, wanted.keys()) if self._segment is not None and is_filed else ()
        for offset, known in chain(found, filed):
            digest = wanted.get(known >> 64)
            if digest is not None and are_alike(known, digest):
                yield digest, offset

    def hashes(self, version: str) -> Iterator[tuple[bytes, int]]:
        """(hash, offset) of each live record of a version that has a checksum: a key's hash is one in every journal."""
        for key, row in self._rows.get(version, {}).items():
            if row >= 0:
                yield hash_of(version, key), self._places[3 * row]
        segment = self._segment
        if segment is not None and version in segment.header.versions:
            hidden = self._hidden()
            for digest, offset, is_loose in segment.entries(version):
                if not is_loose and digest not in hidden:
                    yield digest, offset

    def _hidden(self) -> set[bytes]:
        """Hashes of segment entries that recent records replace."""
        hidden = {digest for version, rows in self._rows.items() for digest in hashes_of(version, rows)}
        hidden.update(loose_hash(version, text) for version, rows in self._loose.items() for text in rows)
        return hidden

    def count(self, version: str) -> int:
        """How many live records the version has."""
        rows, texts = self._rows.get(version, {}), self._loose.get(version, {})
        count = len(rows) - (countOf(rows.values(), -1) if self._has_forgotten else 0)
        count += len(texts) - countOf(texts.values(), -1) if texts else 0
        segment = self._segment
        if segment is not None and (before := segment.header.counts.get(version, 0)):
            count += before - self._replaced(segment, version, rows, texts)
        return count

    def _replaced(self, segment: IndexFile, version: str, rows: dict[Key, int], texts: dict[str, int]) -> int:
        """How many entries of the file recent ones take the place of; those that were looked for are not again."""
        keys, loose, count = self._counted.get(version, (0, 0, 0))
        if len(rows) > keys or len(texts) > loose:
            fresh = list(hashes_of(version, islice(rows, keys, None)))
            fresh += [loose_hash(version, text) for text in islice(texts, loose, None)]
            count += len(segment.find_all(fresh))
            self._counted[version] = (len(rows), len(texts), count)
        return count

    @property
    def versions(self) -> set[str]:
        """The versions that have had a record."""
        known = {block.version for block in self._packed[:]}.union(self._hashed, self._loose)
        return known | set(self._segment.header.versions) if self._segment else known

    @property
    def recent(self) -> int:
        """How many records the file does not hold, as it was loaded or written last."""
        return len(self._places) // 3 + sum([block.size for block in self._packed[:]]) - self._based

    @property
    def filed(self) -> tuple[int, int]:
        """(records, bytes of the journal) that this file stands for."""
        header = self._base.header if self._base else None
        return (header.entries, header.covered) if header else (0, 0)

    @property
    def reads_file(self) -> bool:
        """Whether keys are looked up in a file: else all of them are at hand."""
        return self._segment is not None

    def keys_from(self, offset: int) -> list[Key]:
        """The keys whose records start at `offset` or behind it; of those in the file, as far as it can be read."""
        tables: list[dict[Any, int]] = [*self._rows.values(), *self._loose.values()]
        places = self._places
        keys = [key for rows in tables for key, row in rows.items() if row >= 0 and places[3 * row] >= offset]
        try:
            for version, key, at in self._segment.records() if self._segment is not None else ():
                if at >= offset and key not in self._rows.get(version, ()):
                    keys.append(key)
        except (IndexDamaged, OSError):
            pass  # who asks has lost more than the index
        return keys

    def recent_of(self, version: str) -> list[Key]:
        """The recent keys of a version that have a record."""
        return [key for key, row in self._rows.get(version, {}).items() if row >= 0]

    def key_at(self, version: str, offset: int) -> tuple[Key] | None:
        """The key whose record starts at `offset`, in a tuple; of those in the file, as far as it can be read."""
        for table in (self._rows, self._loose):
            for key, row in table.get(version, {}).items():
                if row >= 0 and self._places[3 * row] == offset:
                    return (key,)
        try:
            filed = self._segment.places(version) if self._segment is not None else ()
            return next(((key,) for key, at, _ in filed if at == offset), None)
        except (IndexDamaged, OSError):
            return None

    def snapshot(self) -> IndexSnapshot:
        """What is known at this moment, to be written by another thread while this one learns on."""
        return IndexSnapshot(
            rows={version: rows.copy() for version, rows in self._rows.items()},
            loose={version: rows.copy() for version, rows in self._loose.items()},
            places=self._places,
            known=len(self._places) // 3,
            base=self._base,
            based=self._based,
            end=self.end,
            latest=self.latest,
            damaged=self.damaged[:],
            notes=self.notes[:],
            codes={version: list(codes) for version, codes in self.codes.items()},
            sums=self._sums_of_file(),
        )

    def _sums_of_file(self) -> tuple[bytes, int]:
        self.sums.align(self.end)
        return self.sums.state()

    # learning

    def add(self, version: str, key: Key, offset: int, digest: int) -> None:
        """A record was appended."""
        hashed = self._rows if self._packed else self._hashed
        row = len(self._places) // 3
        # The place first, the key last: another thread, or a forked child, never finds a key without its place.
        self._places.extend((offset, digest >> 64, digest & LOW))
        rows = hashed.get(version)
        if rows is None:
            rows = hashed[version] = {}
        rows[key] = row
        self.latest = version
        if self.has_loose:
            self._loose.setdefault(version, {})[str(key)] = -1

    def add_all(self, version: str, keys: list[Key], offset: int, sizes: list[int], digests: list[int]) -> None:
        """Records were appended, one behind the other from `offset` on."""
        if self.has_loose:
            for key, size, digest in zip(keys, sizes, digests, strict=True):
                self.add(version, key, offset, digest)
                offset += size
            return
        rows, places = self._rows.setdefault(version, {}), self._places
        row = len(places) // 3
        for key, size, digest in zip(keys, sizes, digests, strict=True):  # what `add` does
            places.extend((offset, digest >> 64, digest & LOW))
            rows[key] = row
            row += 1
            offset += size
        self.latest = version

    def forget(self, version: str, key: Key) -> None:
        """The key has no record under the version from now on."""
        self._has_forgotten = True
        self._rows.setdefault(version, {})[key] = -1
        if self.has_loose:
            self._loose.setdefault(version, {})[str(key)] = -1

    def note_codes(self, version: str, codes: Iterable[str]) -> None:
        """Records of the version name these fingerprints."""
        known = self.codes.setdefault(version, {})
        for code in codes:
            if code and next(reversed(known), "") != code:
                known.pop(code, None)
                known[code] = None

    def accept(self, old: str, new: str, journal: Reader) -> None:
        """Each live record of a version counts for another version too, where that has none of the key.

        What comes later in the journal changes one of the two: the record that was accepted goes on to count.

        Raises:
            IndexDamaged: the file of the index cannot be read.
        """
        if self.has_loose:
            self._accept_loose(old, new, journal)
        places = self._exact_places(old)
        keys = list(places)
        for key, known in zip(keys, self.find_all(new, keys)[0], strict=True):
            if known < 0:
                row, (offset, digest) = len(self._places) // 3, places[key]
                self._places.extend((offset, digest >> 64, digest & LOW))
                self._rows.setdefault(new, {})[key] = row
        self.note_codes(new, self.codes.get(old, ()))

    def _exact_places(self, version: str) -> dict[Key, tuple[int, int]]:
        """(offset, digest) of each live record of a version that has a checksum."""
        rows, places = self._rows.get(version, {}), self._places
        filed = self._segment.places(version) if self._segment is not None else ()
        found = {key: (offset, digest) for key, offset, digest in filed if key not in rows}
        found.update({key: place_in(places, row) for key, row in rows.items() if row >= 0})
        return found

    def _accept_loose(self, old: str, new: str, journal: Reader) -> None:
        """`accept` for lines without checksum."""
        texts = {text: self._places[3 * row] for text, row in self._loose.get(old, {}).items() if row >= 0}
        if self._segment is not None and old in self._segment.header.versions:
            for _, offset, is_loose in self._segment.entries(old):
                if is_loose and (text := str(key_from_json(journal.read(offset).key))) not in self._loose.get(old, {}):
                    texts[text] = offset
        taken = {str(key) for key in self._exact_places(new)}
        for text, offset in texts.items():
            if text not in taken and self._find_loose(new, text) is None:
                latest = self.latest
                self.add_loose(new, text, offset)
                self.latest = latest

    def add_loose(self, version: str, text: str, offset: int) -> None:
        """A line without checksum was read: it counts where no key of that str() has a line with one."""
        self._hash()
        self.has_loose = True
        self.latest = version
        if self._has_exact(version, text):
            return
        row = len(self._places) // 3
        self._places.extend((offset, 0, 0))
        self._loose.setdefault(version, {})[text] = row

    def _has_exact(self, version: str, text: str) -> bool:
        rows, segment = self._rows.get(version, {}), self._segment
        for key in {text, key_spelled(text)} if rows or segment is not None else ():
            row = rows.get(key, -2)
            if row >= 0 or (row == -2 and segment is not None and segment.find(hash_of(version, key)) is not None):
                return True
        return False

    def add_packed(self, packed: Packed) -> None:
        """Records were read, one behind the other, of one version."""
        self._packed.append(packed)
        self.latest = packed.version
        self.note_codes(packed.version, packed.codes)

    def scan(self, journal: Reader) -> None:
        """Learn what the journal holds beyond `end`, a last line without newline included if it is whole."""
        IndexScan(self, journal).run()

    def note_damage(self, offset: int, why: str) -> None:
        """A line that could not be read is told of, and kept in mind if it is one of the first."""
        if len(self.damaged) < _MAX_NOTED:  # `check` lists them all
            self.damaged.append((offset, why))
            self._on_damage(offset, why)

    # the file

    def load(self, path: Path, journal: Reader) -> bool:
        """Start from the file at `path`, if it is sound and of this journal."""
        segment = IndexFile.open(path, journal)
        if segment is None:
            return False
        self._segment = self._base = segment
        self.sums = BlockSums(segment.header.covered, segment.header.last_block, segment.block_sums)
        self.end, self.latest = segment.header.covered, segment.header.latest
        self.has_loose = segment.header.loose > 0
        known = [(offset, why) for offset, why in segment.header.damaged if 0 <= offset < self.end]
        self.damaged = known[:_MAX_NOTED]
        self.notes = [offset for offset in segment.header.notes if 0 <= offset < self.end]
        self.codes = {version: dict.fromkeys(codes) for version, codes in segment.header.codes.items()}
        for offset, why in self.damaged:
            self._on_damage(offset, why)
        return True

    def is_sealed(self, state: State) -> bool:
        """Whether the file says that it is right of the journal in this state."""
        return self._base is None or self._base.sealed == state

    def seal(self, path: Path, state: State) -> None:
        """The file at `path`, if there is one, is right of the journal in this state; not to note it loses only time.

        Raises:
            OSError: it could not be noted.
        """
        if self._base is not None:
            self._base.seal(path, state)

    def drop_base(self) -> None:
        """The file is not to be built upon: the next one is made from what is known here, which must be everything."""
        self._base, self._based = None, 0

    def wrote(self, snapshot: IndexSnapshot, segment: IndexFile) -> None:
        """The file holds now what the snapshot knew."""
        self._base, self._based = segment, snapshot.known


class IndexScan:
    """One reading of a journal's lines into its index, from where that ends.

    A line counts by its framing and key: whether its checksum is right is asked when the value is read.
    """

    def __init__(self, index: Index, journal: Reader) -> None:
        self._index = index
        self._journal = journal

    def run(self) -> None:
        """Learn all of it, a last line without newline included if it is whole."""
        index = self._index
        index.sums.align(index.end)
        for offset, block in self._journal.blocks(index.end, self._read_long):
            index.sums.add(block)
            if block.find(b"\n") > LONG_KEY or index.has_loose or not self._pack(offset, block):
                self._read_lines(offset, block)
            index.end = offset + len(block)
        if self._journal.pread(1, index.end):
            self._read_rest()

    def _read_rest(self) -> None:
        """A last line without newline: torn or being written, and of no account; unless it is whole."""
        index, size = self._index, self._journal.size()
        if size - index.end > LONG_LINE and self._journal.pread(2, size - 2).rstrip(b"\r")[-1:] != b"}":
            return
        if size - index.end > LONGEST_LOOSE:
            return  # a writer's next append completes it, or sets it aside
        line = self._journal.line_at(index.end)
        if line.rstrip(b"\r").endswith(b"}") and index.rest != (index.end, len(line)) and is_whole(line):
            self._read_line(index.end, line, 0, len(line))
            index.rest = (index.end, len(line))

    def _read_long(self, offset: int, size: int) -> None:
        """A line of many megabytes: its beginning and its end are enough where its checksum holds."""
        self._index.sums.skip(size + 1)
        is_sealed = self._journal.is_sealed(offset, size)
        if is_sealed:
            ends = self._journal.pread(LONG_KEY, offset) + self._journal.pread(LONG_KEY, offset + size - LONG_KEY)
            try:
                (head,) = decode_heads(abridged(ends, 0, len(ends)))
                self._enter(offset, head)
                self._index.end = offset + size + 1
                return
            except (ValueError, RecursionError):
                pass  # what is wrong with it, the whole line tells
        if is_hopeless(self._journal.pread(LONG_KEY, offset)):
            self._index.note_damage(offset, "it is not valid JSON")
        elif size > LONGEST_LOOSE and not is_sealed:
            self._index.note_damage(offset, f"it has {size:,} bytes, and no checksum that holds")
        else:
            self._read_line(offset, self._journal.pread(size, offset), 0, size)
        self._index.end = offset + size + 1

    def _read_lines(self, offset: int, block: bytes) -> None:
        start = 0
        while (stop := block.find(b"\n", start)) >= 0:
            if start == stop:  # of millions of empty lines, all at once
                start = _NEWLINES.match(block, start).end()  # type: ignore[union-attr]
                continue
            self._read_line(offset + start, block, start, stop)
            start = stop + 1

    def _read_line(self, offset: int, block: bytes, start: int, stop: int) -> None:
        """The line at `offset`, block[start:stop]: framing and key; the checksum waits until the value is read."""
        if stop - start < LONG_KEY and not block[start:stop].strip(b"\r\t "):
            return
        try:
            head = head_of(block, start, stop)
            if head.forgotten or head.version != self._index.latest:
                parse(block[start:stop])  # a flipped bit must not lead to a version that never was, nor forget a key
            self._enter(offset, head)
        except NoRecord as found:
            self._take(offset, found.acceptance)
        except ValueError as error:
            self._index.note_damage(offset, str(error))

    def _enter(self, offset: int, head: LineHead) -> None:
        """Learn of a record.

        Raises:
            ValueError: it is none.
        """
        key = key_from_json(head.key)
        digest = digest_from(head.input)
        self._index.crowd.check(key)
        if head.forgotten:
            self._index.forget(head.version, key)
        elif head.crc:
            self._index.add(head.version, key, offset, digest)
            if type(head.code) is str:
                self._index.note_codes(head.version, (head.code,))
            if head.detail or head.value:
                self._index.notes.append(offset)
        else:
            self._index.add_loose(head.version, str(key), offset)

    def _take(self, offset: int, found: Acceptance | None) -> None:
        """A line that is no record: one that accepts, or of a kind that is not known here."""
        if found is not None:
            self._index.notes.append(offset)
            if not found.is_of_code:
                self._index.accept(found.accepts, found.of, self._journal)

    def _pack(self, offset: int, block: bytes) -> bool:
        """Learn of a block of lines at once; False where it has to be read line by line."""
        packed = Packed.of(offset, block)
        if packed is None or (packed.version != self._index.latest and not is_whole(block[: block.find(b"\n")])):
            return False
        self._index.add_packed(packed)
        return True
