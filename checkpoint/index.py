"""Where the last record of each key lies, so that resuming costs by keys and never by the size of values.

The promise: it is rebuildable. Deleting, cutting or corrupting the file changes nothing but the time of the next
opening: each page of it carries a checksum, and a page that fails it raises `IndexDamaged`, upon which the store reads
the journal anew.

Two parts. *Recent* keys, in dicts, came from this process or from the journal's tail. The *segment* is a file, read by
`pread` page by page, so that opening it takes the same time for ten keys and for ten million: 34-byte entries sorted by
a 128-bit hash of (version, key), in pages of about 16, behind a table of where each page starts.
"""

from __future__ import annotations

import heapq
import os
import struct
import sys
import threading
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from checkpoint.journal import CRC_SIZE, Reader, is_whole, open_safely, parse
from checkpoint.keys import Key, identity, key_from_json

__all__ = ["Index", "IndexDamaged", "Place", "Segment", "file_state", "spelled"]

_FORMAT = 2
_HEADER = 4096
_ENTRY = struct.Struct("<16sqqH")  # hash, offset, input digest, version number (and _LOOSE)
_PAGE = struct.Struct("<QI")  # first entry, checksum of the page
_LOOSE = 0x8000
_PROBE = 64
_MAX_NOTED = 100
_LONG = 2048  # bytes; of longer lines only the beginning and the end are read
_MOST_VERSIONS = 80  # that the header has room for


class IndexDamaged(Exception):
    """The index file is not what was written; internal: the store rebuilds it."""


class Place(NamedTuple):
    """Where a record starts in its journal, and the digest of the item it was computed from (0: not known)."""

    offset: int
    digest: int


class _Header(msgspec.Struct):
    format: int
    byteorder: str
    covered: int  # bytes of the journal that the entries stand for
    head: str  # the journal's first bytes, in hex, and
    tail: str  # the last covered ones: another journal has others
    modified: int  # when the journal was, in nanoseconds, where it ended there: what is edited in place may look alike
    entries: int
    pages: int
    versions: list[str]
    counts: dict[str, int]  # live records by version
    loose: int
    latest: str
    damaged: list[tuple[int, str]]


def _hash(version: str, key: Key) -> bytes:
    return blake2b(identity(key), digest_size=16, key=version.encode()).digest()


def _loose_hash(version: str, text: str) -> bytes:
    return blake2b(b"L" + text.encode("utf-8", "surrogatepass"), digest_size=16, key=version.encode()).digest()


class Segment:
    """The index file, open."""

    def __init__(self, fd: int, header: _Header) -> None:
        self._fd = fd
        self.header = header
        self._entries_at = _HEADER + (header.pages + 1) * _PAGE.size
        self._shift = 128 - (header.pages.bit_length() - 1)
        self._salt = _salt(header)

    @classmethod
    def open(cls, path: Path, journal: Reader) -> Segment | None:
        """The segment at `path` if it is sound and is of this journal; else None."""
        try:
            fd = open_safely(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            header = _read_header(fd)
            if header is not None and _is_of(header, journal):
                return cls(fd, header)
        except OSError:
            pass
        os.close(fd)
        return None

    def find(self, digest: bytes) -> tuple[int, int, int] | None:
        """(offset, input digest, version number) of an entry."""
        data = self._page(int.from_bytes(digest, "big") >> self._shift)
        at = data.find(digest)
        while at % _ENTRY.size and at >= 0:
            at = data.find(digest, at + 1)
        return None if at < 0 else _ENTRY.unpack_from(data, at)[1:]

    def _page(self, page: int) -> bytes:
        where = os.pread(self._fd, 2 * _PAGE.size, _HEADER + page * _PAGE.size) if _HAS_PREAD else b""
        if len(where) != 2 * _PAGE.size:
            raise IndexDamaged
        first, check = _PAGE.unpack_from(where)
        last, _ = _PAGE.unpack_from(where, _PAGE.size)
        size = (last - first) * _ENTRY.size
        if not 0 <= size <= self.header.entries * _ENTRY.size:
            raise IndexDamaged
        data = os.pread(self._fd, size, self._entries_at + first * _ENTRY.size)
        if _checksum(self._salt ^ page, data) != check:
            raise IndexDamaged
        return data

    def find_all(self, digests: list[bytes]) -> dict[bytes, tuple[int, int]]:
        """(offset, input digest) of those entries that there are: each page is read and checked once."""
        found: dict[bytes, tuple[int, int]] = {}
        page, data = -1, b""
        for digest in sorted(digests):
            wanted = int.from_bytes(digest, "big") >> self._shift
            if wanted != page:
                page, data = wanted, self._page(wanted)
            at = data.find(digest)
            while at % _ENTRY.size and at >= 0:
                at = data.find(digest, at + 1)
            if at >= 0:
                found[digest] = _ENTRY.unpack_from(data, at)[1:3]
        return found

    def raw_entries(self) -> Iterator[bytes]:
        """Every entry, in the order of hashes."""
        for page in range(self.header.pages):
            data = self._page(page)
            for at in range(0, len(data), _ENTRY.size):
                yield data[at : at + _ENTRY.size]

    def __del__(self) -> None:
        os.close(self._fd)  # snapshots share a segment: the last one closes it


_HAS_PREAD = hasattr(os, "pread")  # where it is missing (Windows) the journal is read anew each time


def _checksum(page: int, data: bytes) -> int:
    return zlib.crc32(data, page + 1 & 0xFFFFFFFF)  # hardly 0 for an empty page: zeros are what a power cut leaves


def _salt(header: _Header) -> int:
    """What pages of this file have, and those of the one before, which a power cut may leave in it, have not."""
    made_of = (header.covered, header.tail, header.modified, header.entries)
    return zlib.crc32(repr(made_of).encode())


def _read_header(fd: int) -> _Header | None:
    data = os.read(fd, _HEADER)
    text, _, check = data.rstrip(b" \n").rpartition(b" ")
    if len(data) != _HEADER or check != b"%08x" % zlib.crc32(text) or not _HAS_PREAD:
        return None
    try:
        header = msgspec.json.decode(text, type=_Header)
    except (ValueError, RecursionError):
        return None
    return header if (header.format, header.byteorder) == (_FORMAT, sys.byteorder) else None


def _probes(journal: Reader, covered: int) -> tuple[str, str]:
    tail = journal.pread(_PROBE, max(0, covered - _PROBE))[:covered]
    return journal.pread(min(_PROBE, covered), 0).hex(), tail.hex()


def _is_of(header: _Header, journal: Reader) -> bool:
    if not 0 < header.covered <= journal.size():
        return False
    if header.modified and journal.modified_at(header.covered) not in (0, header.modified):
        return False
    head = journal.pread(len(header.head) // 2, 0)
    size = len(header.tail) // 2
    return (head.hex(), journal.pread(size, header.covered - size).hex()) == (header.head, header.tail)


class _Head(msgspec.Struct, gc=False):
    """What the index takes of a line; the rest is only checked to be JSON."""

    key: Any
    version: str = ""
    input: str = "0000000000000000"
    forgotten: bool = False
    crc: str = ""


_forgets = attrgetter("forgotten")
_SCALARS = frozenset({str, int, float, bool, type(None)})
_decode_heads = msgspec.json.Decoder(_Head).decode_lines


class Index:
    """The places of the last records of one journal.

    Attributes:
        end: how many bytes of the journal it covers.
        latest: the version of the last record.
        damaged: (offset, why) of lines that could not be read, the first 100.
        has_loose: whether there are lines without checksum, which stand for any key of equal str().
    """

    def __init__(self, on_damage: Callable[[int, str], None] = lambda offset, why: None) -> None:
        self._on_damage = on_damage
        self._segment: Segment | None = None
        # A key's row number leads to its place: its offset less the row number (which lets a block's offsets be summed
        # up in C), and the item's digest. One array: an interrupt never leaves half a place.
        self._hashed: dict[str, dict[Key, int]] = {}
        self._unhashed: list[tuple[str, list[Key], int]] = []  # version, keys, and the row of the first
        self._hashing = threading.Lock()
        self._loose: dict[str, dict[str, int]] = {}
        self._places = array("q")
        self._rest = (0, 0)
        self.end = 0
        self.latest = ""
        self.has_loose = False
        self.damaged: list[tuple[int, str]] = []

    @property
    def _rows(self) -> dict[str, dict[Key, int]]:
        """By version, the row of each recent key. Opening reads keys; hashing them waits for the first question."""
        if self._unhashed:
            with self._hashing:
                for version, keys, first in self._unhashed:
                    rows = self._hashed.setdefault(version, {})
                    rows.update(zip(keys, range(first, first + len(keys)), strict=True))
                self._unhashed = []  # only now: other threads wait for all of them
        return self._hashed

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._hashing = threading.Lock()

    # looking up

    def find(self, version: str, key: Key) -> Place | None:
        """Where the last record of the key under the version is; a line without checksum stands for equal str()."""
        rows = self._rows.get(version)
        row = -2 if rows is None else rows.get(key, -2)
        if row >= 0:
            return self._place(row)
        segment = self._segment if row == -2 else None
        if segment is not None and (entry := segment.find(_hash(version, key))) is not None:
            return Place(entry[0], entry[1])
        return self._find_loose(version, key) if self.has_loose else None

    def find_all(self, version: str, keys: list[Key]) -> tuple[array[int], array[int]]:
        """What `find` gives for each key, much faster than one by one: offsets (-1: none), and digests."""
        rows, places = self._rows.get(version, {}), self._places
        known = list(map(rows.get, keys))
        offsets = array("q", [-1 if row is None or row < 0 else places[2 * row] + row for row in known])
        digests = array("q", [0 if row is None or row < 0 else places[2 * row + 1] for row in known])
        if self._segment is None and not self.has_loose:
            return offsets, digests
        others = [place for place, row in enumerate(known) if row is None or (row < 0 and self.has_loose)]
        if self.has_loose:
            for place in others:
                found = self.find(version, keys[place])
                offsets[place], digests[place] = (-1, 0) if found is None else found
        elif self._segment is not None:
            hashes = [_hash(version, keys[place]) for place in others]
            filed = self._segment.find_all(hashes)
            for place, digest in zip(others, hashes, strict=True):
                offsets[place], digests[place] = filed.get(digest, (-1, 0))
        return offsets, digests

    def _place(self, row: int) -> Place | None:
        return None if row < 0 else Place(self._places[2 * row] + row, self._places[2 * row + 1])

    def _find_loose(self, version: str, key: Key) -> Place | None:
        text = str(key)
        row = self._loose.get(version, {}).get(text, -2)
        if row != -2:
            return self._place(row)
        if self._segment is None:
            return None
        entry = self._segment.find(_loose_hash(version, text))
        return None if entry is None else Place(entry[0], entry[1])

    def offsets(self, version: str) -> list[int]:
        """The offsets of the live records of a version, in the order of the file."""
        found: set[int] = set()
        for table in (self._rows, self._loose):
            found.update([self._places[2 * row] + row for row in table.get(version, {}).values() if row >= 0])
        segment = self._segment
        if segment is not None and version in segment.header.versions:
            number = segment.header.versions.index(version)
            hidden = self._hidden()
            for entry in segment.raw_entries():
                digest, offset, _, flags = _ENTRY.unpack(entry)
                if flags & ~_LOOSE == number and digest not in hidden:
                    found.add(offset)
        return sorted(found)

    def hashes(self, version: str) -> Iterator[tuple[bytes, int]]:
        """(hash, offset) of each live record of a version that has a checksum: a key's hash is one in every journal."""
        for key, row in self._rows.get(version, {}).items():
            if row >= 0:
                yield _hash(version, key), self._places[2 * row] + row
        segment = self._segment
        if segment is not None and version in segment.header.versions:
            number, hidden = segment.header.versions.index(version), self._hidden()
            for entry in segment.raw_entries():
                digest, offset, _, flags = _ENTRY.unpack(entry)
                if flags == number and digest not in hidden:
                    yield digest, offset

    def _hidden(self) -> set[bytes]:
        """Hashes of segment entries that recent records replace."""
        hidden = {_hash(version, key) for version, rows in self._rows.items() for key in rows}
        hidden.update(_loose_hash(version, text) for version, rows in self._loose.items() for text in rows)
        return hidden

    def count(self, version: str) -> int:
        """How many live records the version has."""
        count = sum(row >= 0 for table in (self._rows, self._loose) for row in table.get(version, {}).values())
        segment = self._segment
        if segment is not None and (before := segment.header.counts.get(version, 0)):
            replaced = [_hash(version, key) for key in self._rows.get(version, ())]
            replaced += [_loose_hash(version, text) for text in self._loose.get(version, ())]
            count += before - len(segment.find_all(replaced))
        return count

    @property
    def versions(self) -> set[str]:
        """The versions that have had a record."""
        known = set(self._rows) | set(self._loose)
        return known | set(self._segment.header.versions) if self._segment else known

    @property
    def recent(self) -> int:
        """How many records the file that was loaded does not hold."""
        return len(self._places) // 2

    @property
    def filed(self) -> tuple[int, int]:
        """(records, bytes of the journal) that the file that was loaded stands for."""
        header = self._segment.header if self._segment else None
        return (header.entries, header.covered) if header else (0, 0)

    def keys_from(self, offset: int) -> list[Key]:
        """The recent keys whose records start at `offset` or behind it."""
        tables: list[dict[Any, int]] = [*self._rows.values(), *self._loose.values()]
        places = self._places
        return [key for rows in tables for key, row in rows.items() if row >= 0 and places[2 * row] + row >= offset]

    def key_at(self, version: str, offset: int) -> tuple[Key] | None:
        """The recent key whose record starts at `offset`, in a tuple."""
        for table in (self._rows, self._loose):
            for key, row in table.get(version, {}).items():
                if row >= 0 and self._places[2 * row] + row == offset:
                    return (key,)
        return None

    def snapshot(self) -> Index:
        """What is known at this moment, to be written by another thread while this one learns on."""
        copy = Index()
        copy._segment = self._segment
        copy._hashed = {version: rows.copy() for version, rows in self._rows.items()}
        copy._loose = {version: rows.copy() for version, rows in self._loose.items()}
        copy._places = self._places  # rows are only ever added
        copy.end, copy.latest, copy.damaged = self.end, self.latest, list(self.damaged)
        return copy

    # learning

    def add(self, version: str, key: Key, offset: int, digest: int) -> None:
        """A record was appended."""
        row = len(self._places) // 2
        # The place first, the key last: another thread, or a forked child, never finds a key without its place.
        self._places.extend((offset - row, digest))
        hashed = self._rows if self._unhashed else self._hashed
        rows = hashed.get(version)
        if rows is None:
            rows = hashed[version] = {}
        rows[key] = row
        self.latest = version
        if self.has_loose:
            self._loose.setdefault(version, {})[str(key)] = -1

    def forget(self, version: str, key: Key) -> None:
        """The key has no record under the version from now on."""
        self._rows.setdefault(version, {})[key] = -1
        if self.has_loose:
            self._loose.setdefault(version, {})[str(key)] = -1

    def _add_loose(self, version: str, text: str, offset: int) -> None:
        row = len(self._places) // 2
        self._places.extend((offset - row, 0))
        self.has_loose = True
        self._loose.setdefault(version, {})[text] = row
        self.latest = version

    def scan(self, journal: Reader) -> None:
        """Learn what the journal holds beyond `end`, a last line without newline included if it is whole."""
        for offset, block in journal.blocks(self.end):
            if block.find(b"\n") > _LONG or not self._scan_evenly(offset, block):
                self._scan_lines(offset, block)
            self.end = offset + len(block)
        rest = journal.pread(1, self.end)
        if rest:
            self._scan_rest(journal)

    def _scan_rest(self, journal: Reader) -> None:
        """A last line without newline: torn or being written, and of no account; unless it is whole."""
        line = journal.line_at(self.end)
        if line.rstrip(b"\r").endswith(b"}") and self._rest != (self.end, len(line)) and is_whole(line):
            self._scan_line(self.end, line, 0, len(line))
            self._rest = (self.end, len(line))

    def _scan_lines(self, offset: int, block: bytes) -> None:
        start = 0
        while (stop := block.find(b"\n", start)) >= 0:
            self._scan_line(offset + start, block, start, stop)
            start = stop + 1

    def _scan_evenly(self, offset: int, block: bytes) -> bool:
        """A block of sound lines of one version and nothing else, at C speed; False, and nothing done, for any other.

        Each record's checksum must be the one that its line ends with: else two damaged lines might read as one record.
        """
        lines = block.split(b"\n")
        lines.pop()
        count = len(lines)
        try:
            heads = _decode_heads(block)
            digests = bytes.fromhex("".join([head.input for head in heads]))
        except (ValueError, RecursionError):
            return False
        keys = [head.key for head in heads]
        versions = {head.version for head in heads}
        if not (
            len(heads) == count == len(digests) / 8
            and len(versions) == 1
            and not self.has_loose
            and not any(map(_forgets, heads))
            and _SCALARS.issuperset(map(type, keys))
            and b"".join([line[-10:-2] for line in lines]) == "".join([head.crc for head in heads]).encode()
        ):
            return False
        (version,) = versions
        if version != self.latest and not is_whole(lines[0]):
            return False
        first = len(self._places) // 2
        places = array("q", bytes(16 * count))
        offsets = array("q", accumulate(map(len, lines), initial=offset - first))
        places[::2] = offsets[:count]  # the sum runs on past the last line
        inputs = array("q", digests)
        if sys.byteorder == "little":
            inputs.byteswap()
        places[1::2] = inputs
        self._places.extend(places)
        self._unhashed.append((version, keys, first))
        self.latest = version
        return True

    def _scan_line(self, offset: int, block: bytes, start: int, stop: int) -> None:
        """The line at `offset`, block[start:stop]: framing and key; the checksum waits until the value is read."""
        if stop - start < _LONG and not block[start:stop].strip(b"\r\t "):
            return
        try:
            head = _head(block, start, stop)
            if head.forgotten or head.version != self.latest:
                parse(block[start:stop])  # a flipped bit must not lead to a version that never was, nor forget a key
            key = key_from_json(head.key)
            digest = int(head.input, 16) & 0x7FFFFFFFFFFFFFFF
        except ValueError as error:
            self._note_damage(offset, str(error))
            return
        if head.forgotten:
            self.forget(head.version, key)
        elif head.crc:
            self.add(head.version, key, offset, digest)
        else:
            self._add_loose(head.version, str(key), offset)

    def _note_damage(self, offset: int, why: str) -> None:
        if len(self.damaged) < _MAX_NOTED:  # `check` lists them all
            self.damaged.append((offset, why))
            self._on_damage(offset, why)

    # the file

    def load(self, path: Path, journal: Reader) -> bool:
        """Start from the file at `path`, if it is sound and of this journal."""
        segment = Segment.open(path, journal)
        if segment is None:
            return False
        self._segment = segment
        self.end, self.latest = segment.header.covered, segment.header.latest
        self.has_loose = segment.header.loose > 0
        self.damaged = list(segment.header.damaged)
        for offset, why in self.damaged:
            self._on_damage(offset, why)
        return True

    def write(self, path: Path, journal: Reader) -> None:
        """Replace the file at `path` by one that covers all that is known; readers of the old one go on reading it.

        Raises:
            OSError: it could not be written; nothing changed.
        """
        versions = sorted(self.versions)
        if len(versions) > _MOST_VERSIONS:
            raise OSError("too many versions for an index")
        numbers = {version: number for number, version in enumerate(versions)}
        entries = list(self._merged(numbers))
        modified = journal.modified_at(self.end)
        head, tail = _probes(journal, self.end)
        counts = dict.fromkeys(versions, 0)
        loose = 0
        for entry in entries:
            flags = entry[-2] | entry[-1] << 8
            counts[versions[flags & ~_LOOSE]] += 1
            loose += flags >= _LOOSE
        header = _Header(
            _FORMAT, sys.byteorder, self.end, head, tail, modified, len(entries), _page_count(len(entries)), versions,
            counts, loose, self.latest, self.damaged,
        )  # fmt: skip
        _write_segment(path, header, entries)

    def _merged(self, numbers: dict[str, int]) -> Iterator[bytes]:
        recent = sorted(self._recent_entries(numbers))
        segment = self._segment
        if segment is None:
            yield from recent
            return
        hidden = self._hidden()
        renumber = [numbers[version] for version in segment.header.versions]
        old = (_renumbered(entry, renumber) for entry in segment.raw_entries() if entry[:16] not in hidden)
        yield from heapq.merge(old, recent)

    def _recent_entries(self, numbers: dict[str, int]) -> Iterator[bytes]:
        pack, places = _ENTRY.pack, self._places
        tables: Iterable[tuple[dict[str, dict[Any, int]], Callable[[str, Any], bytes], int]] = (
            (self._rows, _hash, 0),
            (self._loose, _loose_hash, _LOOSE),
        )
        for table, hashed, flag in tables:
            for version, rows in table.items():
                number = numbers[version] | flag
                for key, row in rows.items():
                    if row >= 0:
                        yield pack(hashed(version, key), places[2 * row] + row, places[2 * row + 1], number)


def spelled(line: bytes) -> tuple[str, Key, bool, bool]:
    """(version, key, whether it forgets it, whether there is a checksum): what a scan reads, which does not verify it.

    Raises:
        ValueError: a scan would not take it for a record.
    """
    head = _head(line, 0, len(line))
    int(head.input, 16)
    return head.version, key_from_json(head.key), head.forgotten, bool(head.crc)


def file_state(path: Path, journal: Reader | None) -> Literal["sound", "stale", "missing", "damaged"]:
    """What an index file is worth: stale is one of another journal, or of another state of this one.

    Raises:
        StoreError: the journal cannot be read.
    """
    if not os.path.lexists(path):
        return "missing"
    try:
        fd = open_safely(path, os.O_RDONLY)
    except OSError:
        return "damaged"
    try:
        header = _read_header(fd)
    except OSError:
        header = None
    finally:
        os.close(fd)
    if header is None:
        return "damaged"
    segment = None if journal is None else Segment.open(path, journal)
    if segment is None:
        return "stale"
    try:
        whole = sum(1 for _ in segment.raw_entries()) == segment.header.entries
    except (IndexDamaged, OSError):
        whole = False
    return "sound" if whole else "damaged"


def _head(block: bytes, start: int, stop: int) -> _Head:
    """What the index takes of the line block[start:stop].

    Raises:
        ValueError: it is damaged.
    """
    line = _abridged(block, start, stop) if stop - start > 2 * _LONG else block[start:stop]
    if line.startswith(b'{"key":') and line[-CRC_SIZE:].startswith(b',"crc":"') and line.endswith(b'"}'):
        try:
            (head,) = _decode_heads(line)
            return head
        except (ValueError, RecursionError):
            pass  # what is wrong with it, the whole line tells
    record = parse(block[start:stop])
    return _Head(record.key, record.version, record.input or "0", record.forgotten, record.crc)


def _abridged(block: bytes, start: int, stop: int) -> bytes:
    """A long line less its result, which the index need not look at; b"" where it has none.

    The names that it is cut at, quotes included, cannot stand within a JSON string.
    """
    result = block.find(b',"result":', start, start + _LONG)
    after = block.rfind(b',"timestamp":"', stop - _LONG, stop)
    return block[start:result] + block[after:stop] if result > 0 and after > 0 else b""


def _renumbered(entry: bytes, numbers: list[int]) -> bytes:
    flags = entry[-2] | entry[-1] << 8
    return entry[:-2] + (numbers[flags & ~_LOOSE] | flags & _LOOSE).to_bytes(2, "little")


def _page_count(entries: int) -> int:
    return 1 << max(0, (entries // 16).bit_length())


def _write_segment(path: Path, header: _Header, entries: list[bytes]) -> None:
    text = msgspec.json.encode(header)
    if len(text) > _HEADER - 16 and header.damaged:
        header.damaged = []  # they are found again by `check`
        text = msgspec.json.encode(header)
    if len(text) > _HEADER - 16:
        raise OSError("too many versions for an index")
    text = (text + b" %08x" % zlib.crc32(text)).ljust(_HEADER - 1) + b"\n"
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    fd = open_safely(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.write(_page_table(entries, header.pages, _salt(header)))
            file.writelines(entries)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    # Not synced: after a power cut its checksums tell, and it is built anew.


def _page_table(entries: list[bytes], pages: int, salt: int) -> bytes:
    shift = 128 - (pages.bit_length() - 1)
    table, first = bytearray(), 0
    for page in range(pages):
        last = len(entries)
        if page + 1 < pages:
            last = bisect_left(entries, ((page + 1) << shift).to_bytes(16, "big"), lo=first)
        table += _PAGE.pack(first, _checksum(salt ^ page, b"".join(entries[first:last])))
        first = last
    return bytes(table + _PAGE.pack(len(entries), 0))
