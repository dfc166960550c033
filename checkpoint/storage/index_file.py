"""The file of an index: places of records by key, for any number of keys, and no more of it is read than is asked for.

The promise: what is read is what was written, or `IndexDamaged`: every page and run carries a checksum; and a file that
is not of the journal beside it, or of another state of it, is not opened.

34-byte *entries*, sorted by a 128-bit hash of (version, key), stand in pages of about 16, behind a table of where each
page starts: a key is found by two reads. Behind them stand the keys themselves, in *runs*, in the order in which they
came: who asks for many reads these in turn, and hashes none.
"""

from __future__ import annotations

import os
import struct
import sys
import zlib
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from hashlib import blake2b
from itertools import chain, compress, repeat
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from checkpoint.storage.blocks import BlockSums, Doubt, State
from checkpoint.storage.files import open_safely, replacing
from checkpoint.storage.reader import Reader
from checkpoint.values.digests import Digests, are_apart
from checkpoint.values.keys import Key, identity, key_from_json, keys_json

__all__ = ["Delta", "IndexDamaged", "IndexFile", "file_state", "hash_of", "hashes_of", "loose_hash"]

_FORMAT = 6
_HEADER = 4096  # bytes; the header takes as many of these as it needs
_LONGEST_HEADER = 4 << 20
_ENTRY = struct.Struct("<16sqQQH")  # hash, offset, input digest, version number (and _LOOSE)
_PAGE = struct.Struct("<QI")  # first entry, checksum of the page
_RUN = struct.Struct("<IIH")  # of a run: how many keys, bytes of their JSON, version number; and its checksum:
_CHECK = struct.Struct("<I")
_SEAL = struct.Struct("<QQI")  # a state of the journal, and the checksum of that
_RUN_KEYS = 4096
_LOOSE = 0x8000  # so many versions there may be
_PROBE = 64


class IndexDamaged(Exception):
    """The index file is not what was written; internal: the store rebuilds it."""


class _Header(msgspec.Struct):
    format: int
    byteorder: str
    covered: int  # bytes of the journal that the entries stand for
    head: str  # the journal's first bytes, in hex, and
    tail: str  # the last covered ones: another journal has others
    blocks: int  # how many checksums of whole blocks of the journal stand behind the seal; and that of the rest:
    last_block: int
    entries: int
    pages: int
    runs: int
    versions: list[str]
    counts: dict[str, int]  # live records by version
    loose: int
    latest: str
    damaged: list[tuple[int, str]]
    notes: list[int]  # where the lines stand that say what digests stand for, and those that accept
    codes: dict[str, list[str]]  # by version, the fingerprints that its records name, the last one last


def hash_of(version: str, key: Key) -> bytes:
    """What stands for a key of a version, in the index of any journal."""
    return blake2b(identity(key), digest_size=16, key=_salted(version)).digest()


def hashes_of(version: str, keys: Iterable[Key]) -> Iterator[bytes]:
    """`hash_of` of each, in half the time."""
    copy = blake2b(digest_size=16, key=_salted(version)).copy
    for key in keys:
        made = copy()
        made.update(identity(key))
        yield made.digest()


def loose_hash(version: str, text: str) -> bytes:
    """What stands for any key of equal str(), which a line without checksum is of."""
    return blake2b(b"L" + text.encode("utf-8", "surrogatepass"), digest_size=16, key=_salted(version)).digest()


def _salted(version: str) -> bytes:
    """What makes hashes those of a version: its text, where it is one of ours."""
    text = version.encode("utf-8", "surrogatepass")
    return text if len(text) <= blake2b.MAX_KEY_SIZE else blake2b(text).digest()


class _Run(NamedTuple):
    """Some keys of one version, in the order in which they came, and where their records are."""

    version: int
    size: int  # how many
    text: bytes  # the keys, as a JSON array
    places: bytes  # all offsets, then all digests

    def keys(self) -> list[Key]:
        try:
            return [key if type(key) in _SCALARS else key_from_json(key) for key in _decode(self.text)]
        except (ValueError, RecursionError):
            raise IndexDamaged from None

    def offsets(self) -> array[int]:
        return array("q", self.places[: 8 * self.size])

    def digests(self) -> Digests:
        return Digests.of(self.places[8 * self.size :])


def _run_of(version: int, keys: list[Key], offsets: array[int], digests: Digests) -> _Run:
    return _Run(version, len(keys), keys_json(keys), offsets.tobytes() + digests.tobytes())


_decode = msgspec.json.Decoder().decode
_SCALARS = frozenset({str, int, float, bool, type(None)})


class Delta(NamedTuple):
    """What became of a version since the file was written.

    Attributes:
        keys: those that have a new record.
        offsets, digests: where each begins, and the digest of its item.
        forgotten: keys that have none any more.
        texts: the str() of keys on lines without checksum, and where these begin.
        replaced: those of which such a line counts no more.
    """

    keys: list[Key]
    offsets: array[int]
    digests: Digests
    forgotten: list[Key]
    texts: dict[str, int]
    replaced: list[str]


class IndexFile:
    """The index file, open.

    Behind its header stands the *seal*: the state that the journal was in when a writer that knew it to fit let go.
    Behind that stand the checksums of the journal's blocks, which vouch for the entries in any other state.
    """

    def __init__(self, fd: int, header: _Header, size: int) -> None:
        self._fd = fd
        self.header = header
        self._seal_at = size
        self._pages_at = size + _SEAL.size + _CHECK.size * (header.blocks + 1)
        self._entries_at = self._pages_at + (header.pages + 1) * _PAGE.size
        self._shift = 128 - (header.pages.bit_length() - 1)
        self._salt = _salt(header)

    @classmethod
    def open(cls, path: Path, journal: Reader) -> IndexFile | None:
        """The segment at `path` if it is sound and is of this journal; else None."""
        try:
            fd = open_safely(path, os.O_RDONLY)
        except OSError:
            return None
        try:
            found = _read_header(fd)
            if found is not None and _is_of(found[0], journal):
                return cls(fd, *found)
        except OSError:
            pass
        os.close(fd)
        return None

    @classmethod
    def write(
        cls, path: Path, journal: Reader, base: IndexFile | None, news: dict[str, Delta],
        covered: int, latest: str, damaged: list[tuple[int, str]], notes: list[int], codes: dict[str, list[str]],
        sums: tuple[bytes, int],
    ) -> IndexFile | None:  # fmt: skip
        """Replace the file at `path` by what `base` holds and the news; readers of the old one go on reading it.

        Args:
            path: the file.
            journal: what it is of; the first so many bytes (`covered`) of it.
            base: the one before.
            news: by version.
            covered: as said.
            latest: the version of the last record.
            damaged: (offset, why) of lines that could not be read.
            notes, codes: as in an `Index`.
            sums: as `BlockSums.state` gives them.

        Returns the new one; None where it is not found to be sound.

        Raises:
            OSError: it could not be written; nothing changed.
            IndexDamaged: the base is; nothing changed.
        """
        versions = sorted({*news, *(base.header.versions if base is not None else ())})
        if len(versions) > _LOOSE:
            raise OSError("too many versions for an index")
        entries, runs, counts, loose = cls._merged(base, news, versions)
        head, tail = _probes(journal, covered)
        header = _Header(
            _FORMAT, sys.byteorder, covered, head, tail, len(sums[0]) // _CHECK.size, sums[1], len(entries),
            _page_count(len(entries)), len(runs), versions, counts, loose, latest, damaged, notes, codes,
        )  # fmt: skip
        _write_file(path, header, sums[0], entries, runs)
        written = cls.open(path, journal)
        return written if written is not None and written.header.covered == covered else None

    @property
    def sealed(self) -> State:
        """The state of the journal in which everything in the file is right; (0, 0) where none is known."""
        data = os.pread(self._fd, _SEAL.size, self._seal_at)
        if len(data) != _SEAL.size:
            return 0, 0
        size, modified, check = _SEAL.unpack(data)
        return (size, modified) if check == _seal_check(self._salt, size, modified) else (0, 0)

    def seal(self, path: Path, state: State) -> None:
        """Everything in the file, which is at `path`, is right of the journal in this state.

        Raises:
            OSError: it could not be noted; a seal that was cut off fails its checksum.
        """
        if state == self.sealed:
            return
        fd = open_safely(path, os.O_RDWR)
        try:
            if os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
                os.lseek(fd, self._seal_at, os.SEEK_SET)
                os.write(fd, _SEAL.pack(*state, _seal_check(self._salt, *state)))
        finally:
            os.close(fd)

    def block_sums(self) -> array[int]:
        """The checksums of the journal's whole blocks.

        Raises:
            IndexDamaged: they are not those that were written.
        """
        size = _CHECK.size * self.header.blocks
        data = os.pread(self._fd, size + _CHECK.size, self._seal_at + _SEAL.size)
        if len(data) != size + _CHECK.size or _CHECK.unpack(data[size:])[0] != _checksum(self._salt, data[:size]):
            raise IndexDamaged
        return array("I", data[:size])

    @staticmethod
    def _merged(
        base: IndexFile | None, news: dict[str, Delta], versions: list[str]
    ) -> tuple[list[bytes], list[_Run], dict[str, int], int]:
        """(entries, runs, records by version, lines without checksum) of what the base holds and the news."""
        numbers = {version: number for number, version in enumerate(versions)}
        fresh = sorted(entry for version, new in news.items() for entry in _entries_of(numbers[version], version, new))
        runs = [run for version, new in news.items() for run in _runs_of(numbers[version], new)]
        counts = {version: len(new.keys) + len(new.texts) for version, new in news.items()}
        loose = sum(len(new.texts) for new in news.values())
        if base is None:
            return fresh, runs, counts, loose
        kept = base._kept(numbers, {entry[:16] for entry in fresh}.union(_gone(news)))
        is_all = len(kept) == base.header.entries
        runs = list(_joined(chain(base._kept_runs(numbers, {} if is_all else news), runs)))
        entries = sorted(kept + fresh)  # two runs that are sorted: merging these takes no search
        before, more = (base.header.counts, base.header.loose) if is_all else _counted(kept, versions)
        counts = {version: counts.get(version, 0) + before.get(version, 0) for version in versions}
        return entries, runs, counts, loose + more

    def _kept(self, numbers: dict[str, int], hidden: set[bytes]) -> list[bytes]:
        """The entries that still count, under other version numbers."""
        renumber = [numbers[version] for version in self.header.versions]
        kept = [entry for entry in self._raw_entries() if entry[:16] not in hidden]
        return kept if renumber == list(range(len(renumber))) else [_renumbered(entry, renumber) for entry in kept]

    def _kept_runs(self, numbers: dict[str, int], news: dict[str, Delta]) -> Iterator[_Run]:
        """What still counts of the runs."""
        gone = {version: {*new.keys, *new.forgotten} for version, new in news.items()}
        for run in self._runs():
            version = self.header.versions[run.version]
            if gone.get(version) and not gone[version].isdisjoint(keys := run.keys()):
                stays = [key not in gone[version] for key in keys]
                offsets = array("q", compress(run.offsets(), stays))
                halves = run.digests()
                digests = Digests(compress(halves.high, stays), compress(halves.low, stays))
                run = _run_of(run.version, list(compress(keys, stays)), offsets, digests)
            yield run._replace(version=numbers[version])

    def is_whole(self) -> bool:
        """Whether everything in it can be read."""
        exact = self.header.entries - self.header.loose
        try:
            entries = sum(1 for _ in self._raw_entries())
            return (entries, sum(len(run.keys()) for run in self._runs())) == (self.header.entries, exact)
        except (IndexDamaged, OSError):
            return False

    def entries(self, version: str) -> Iterator[tuple[bytes, int, bool]]:
        """(hash, offset, whether its line has no checksum) of each record of a version, in the order of hashes."""
        number = self.header.versions.index(version)
        for entry in self._raw_entries():
            digest, offset, _, _, flags = _ENTRY.unpack(entry)
            if not 0 <= offset < self.header.covered:
                raise IndexDamaged
            if flags & ~_LOOSE == number:
                yield digest, offset, bool(flags & _LOOSE)

    def of_inputs(self, version: str, highs: Set[int]) -> Iterator[tuple[int, int]]:
        """(offset, input digest) of each record of a version the upper half of whose digest is one of these."""
        for run in self._runs(self.header.versions.index(version)):
            if not are_apart(highs, (found := run.digests()).high):
                yield from [place for place in zip(run.offsets(), found, strict=True) if place[1] >> 64 in highs]

    def records(self) -> Iterator[tuple[str, Key, int]]:
        """(version, key, offset) of each record that has a checksum, in the order in which they came."""
        for run in self._runs():
            for key, offset in zip(run.keys(), run.offsets(), strict=True):
                yield self.header.versions[run.version], key, offset

    def places(self, version: str) -> Iterator[tuple[Key, int, int]]:
        """(key, offset, input digest) of each record of a version that has a checksum."""
        for run in self._runs(self.header.versions.index(version)) if version in self.header.versions else ():
            yield from zip(run.keys(), run.offsets(), run.digests(), strict=True)

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """(offset, input digest) of an entry."""
        return self._found_in(self._page(self._page_of(digest)), digest)

    def _found_in(self, page: bytes, digest: bytes) -> tuple[int, int] | None:
        at = page.find(digest)
        while at % _ENTRY.size and at >= 0:
            at = page.find(digest, at + 1)
        if at < 0:
            return None
        _, offset, high, low, _ = _ENTRY.unpack_from(page, at)
        if not 0 <= offset < self.header.covered:
            raise IndexDamaged
        return offset, high << 64 | low

    def _page_of(self, digest: bytes) -> int:
        return int.from_bytes(digest, "big") >> self._shift

    def _page(self, page: int) -> bytes:
        where = os.pread(self._fd, 2 * _PAGE.size, self._pages_at + page * _PAGE.size) if _HAS_PREAD else b""
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
            if (wanted := self._page_of(digest)) != page:
                page, data = wanted, self._page(wanted)
            if (place := self._found_in(data, digest)) is not None:
                found[digest] = place
        return found

    def _raw_entries(self) -> Iterator[bytes]:
        """Every entry, in the order of hashes."""
        for page in range(self.header.pages):
            data = self._page(page)
            for at in range(0, len(data), _ENTRY.size):
                yield data[at : at + _ENTRY.size]

    def _runs(self, version: int | None = None) -> Iterator[_Run]:
        """The keys and where they are; of one version, or of all."""
        at, size = self._entries_at + self.header.entries * _ENTRY.size, os.fstat(self._fd).st_size
        for number in range(self.header.runs):
            head = os.pread(self._fd, _RUN.size + _CHECK.size, at)
            if len(head) != _RUN.size + _CHECK.size:
                raise IndexDamaged
            (keys, length, of), (check,) = _RUN.unpack_from(head), _CHECK.unpack_from(head, _RUN.size)
            at += len(head)
            if at + length + 24 * keys > size or of >= len(self.header.versions):
                raise IndexDamaged
            if version is None or of == version:
                data = os.pread(self._fd, length + 24 * keys, at)
                if _checksum(self._salt ^ number, head[: _RUN.size] + data) != check:
                    raise IndexDamaged
                run = _Run(of, keys, data[:length], data[length:])
                if keys and not 0 <= min(offsets := run.offsets()) <= max(offsets) < self.header.covered:
                    raise IndexDamaged  # it is sealed, and leads out of the journal: it was made so
                yield run
            at += length + 24 * keys

    def place_all(self, version: str, keys: list[Key], others: list[int], found: tuple[array[int], Digests]) -> None:
        """Fill in where those of the keys are that stand at the places `others`: (offsets, digests) of all of them."""
        offsets, digests = found
        first: dict[Key, int] = {}
        in_turn = len(others) == len(keys)
        at = count = 0
        for run in self._runs(self.header.versions.index(version)):
            count += run.size
            if in_turn and _is_next(keys, at, run):
                part = slice(at, at + run.size)
                offsets[part] = run.offsets()
                digests.put(part, run.digests())
                at += run.size
                continue
            first = first or {keys[place]: place for place in reversed(others)}
            for place, offset, digest in zip(map(first.get, run.keys()), run.offsets(), run.digests(), strict=True):
                if place is not None:
                    offsets[place], digests[place] = offset, digest
        if count != self.header.counts[version]:
            raise IndexDamaged  # a run's version number is not what it was
        if at < len(keys):
            first = first or {keys[place]: place for place in reversed(others)}
            for place in others if len(first) < len(others) else ():  # equal keys: the first of them was found
                offsets[place], digests[place] = offsets[first[keys[place]]], digests[first[keys[place]]]

    def __del__(self) -> None:
        os.close(self._fd)  # who looks up and who writes may share a segment: the last one closes it


def _is_next(keys: list[Key], at: int, run: _Run) -> bool:
    """Whether the keys from `at` on are those of the run: a pass is often over what the one before was over."""
    return at < len(keys) and keys_json(keys[at : at + run.size]) == run.text


_HAS_PREAD = hasattr(os, "pread")  # where it is missing (Windows) the journal is read anew each time


def _checksum(page: int, data: bytes) -> int:
    return zlib.crc32(data, page + 1 & 0xFFFFFFFF)  # hardly 0 for an empty page: zeros are what a power cut leaves


def _salt(header: _Header) -> int:
    """What pages of this file have, and those of the one before, which a power cut may leave in it, have not."""
    made_of = (header.covered, header.tail, header.last_block, header.entries)
    return zlib.crc32(repr(made_of).encode())


def _read_header(fd: int) -> tuple[_Header, int] | None:
    """The header, and how many bytes it takes."""
    data = b""
    while not data.endswith(b"\n"):
        part = os.read(fd, _HEADER)
        data += part
        if len(part) != _HEADER or len(data) > _LONGEST_HEADER:
            return None
    text, _, check = data.rstrip(b" \n").rpartition(b" ")
    if check != b"%08x" % zlib.crc32(text) or not _HAS_PREAD:
        return None
    try:
        header = msgspec.json.decode(text, type=_Header)
    except (ValueError, RecursionError):
        return None
    return (header, len(data)) if (header.format, header.byteorder) == (_FORMAT, sys.byteorder) else None


def _probes(journal: Reader, covered: int) -> tuple[str, str]:
    tail = journal.pread(_PROBE, max(0, covered - _PROBE))[:covered]
    return journal.pread(min(_PROBE, covered), 0).hex(), tail.hex()


def _is_of(header: _Header, journal: Reader) -> bool:
    if not 0 < header.covered <= journal.size():
        return False
    head = journal.pread(len(header.head) // 2, 0)
    size = len(header.tail) // 2
    return (head.hex(), journal.pread(size, header.covered - size).hex()) == (header.head, header.tail)


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
    segment = None if journal is None else IndexFile.open(path, journal)
    if segment is None:
        return "stale"
    try:
        sums = BlockSums(segment.header.covered, segment.header.last_block, segment.block_sums)
        if journal is not None and not Doubt(sums, segment.header.covered).fits_all(journal):
            return "stale"
    except IndexDamaged:
        return "damaged"
    return "sound" if segment.is_whole() else "damaged"


def _entries_of(number: int, version: str, new: Delta) -> Iterator[bytes]:
    pack = _ENTRY.pack
    halves = new.digests.high, new.digests.low
    for place in zip(hashes_of(version, new.keys), new.offsets, *halves, repeat(number)):  # endless
        yield pack(*place)
    for text, offset in new.texts.items():
        yield pack(loose_hash(version, text), offset, 0, 0, number | _LOOSE)


def _joined(runs: Iterable[_Run]) -> Iterator[_Run]:
    """The runs, less empty ones; short ones that are neighbours become one."""
    last: _Run | None = None
    for run in runs:
        if last is None or not last.size:
            last = run
        elif run.version == last.version and last.size + run.size <= _RUN_KEYS:
            both = (last.offsets() + run.offsets(), last.digests() + run.digests())
            last = _run_of(run.version, last.keys() + run.keys(), *both)
        elif run.size:
            yield last
            last = run
    if last is not None and last.size:
        yield last


def _counted(entries: list[bytes], versions: list[str]) -> tuple[dict[str, int], int]:
    """How many there are of each version; and how many of lines without checksum."""
    counts, loose = dict.fromkeys(versions, 0), 0
    for flags, count in Counter([entry[-2:] for entry in entries]).items():
        number = int.from_bytes(flags, "little")
        counts[versions[number & ~_LOOSE]] += count
        loose += count if number & _LOOSE else 0
    return counts, loose


def _runs_of(number: int, new: Delta) -> Iterator[_Run]:
    for at in range(0, len(new.keys), _RUN_KEYS):
        part = slice(at, at + _RUN_KEYS)
        yield _run_of(number, new.keys[part], new.offsets[part], new.digests.part(part))


def _gone(news: dict[str, Delta]) -> Iterator[bytes]:
    for version, new in news.items():
        yield from hashes_of(version, new.forgotten)
        yield from (loose_hash(version, text) for text in new.replaced)


def _renumbered(entry: bytes, numbers: list[int]) -> bytes:
    flags = entry[-2] | entry[-1] << 8
    return entry[:-2] + (numbers[flags & ~_LOOSE] | flags & _LOOSE).to_bytes(2, "little")


def _page_count(entries: int) -> int:
    return 1 << max(0, (entries // 16).bit_length())


def _seal_check(salt: int, size: int, modified: int) -> int:
    return _checksum(salt, b"%d %d" % (size, modified))


def _write_file(path: Path, header: _Header, sums: bytes, entries: list[bytes], runs: list[_Run]) -> None:
    text = msgspec.json.encode(header)
    text += b" %08x" % zlib.crc32(text)
    size = (len(text) // _HEADER + 1) * _HEADER
    if size > _LONGEST_HEADER:
        raise OSError("too many versions for an index")
    text = text.ljust(size - 1) + b"\n"
    with replacing(path, path.name.removeprefix(".")) as file:
        file.write(text)
        file.write(bytes(_SEAL.size))
        file.write(sums + _CHECK.pack(_checksum(_salt(header), sums)))
        file.write(_page_table(entries, header.pages, _salt(header)))
        file.writelines(entries)
        for number, run in enumerate(runs):
            head = _RUN.pack(run.size, len(run.text), run.version)
            data = run.text + run.places
            file.write(head + _CHECK.pack(_checksum(_salt(header) ^ number, head + data)) + data)
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
