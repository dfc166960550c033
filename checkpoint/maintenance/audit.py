"""What a journal's lines say on each key, and which of them are damaged: every line is read and verified.

The promise: what it says of intact lines is what a reader of the journal finds; it never fails for what a line holds.

A line is *superseded* when a later intact line has the last word on its key: a record, or one that forgets it. What a
line accepts for another version is not superseded there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from checkpoint.errors import plural, printable, quote, shorten
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import LONGEST_LOOSE, Acceptance, NoRecord, Record, is_hopeless, is_whole, parse, spelled
from checkpoint.storage.spending import cost_of
from checkpoint.values.codec import Codec
from checkpoint.values.digests import digest_from
from checkpoint.values.keys import Crowd, Key, key_from_json, plain_json
from checkpoint.values.plain_json import decode_foreign, with_stack

__all__ = ["Audit", "Damage", "DamagedClaim", "lines_at"]


_SHOWN = 10
_LONGEST_SPELLED = 4096  # bytes of a damaged line in which its key is looked for
_GLUED = b'{"key":'


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that is not what was written, or is no record.

    Attributes:
        path: of the journal.
        line: 1-based number.
        offset: where it begins.
        size: in bytes, the newline included.
        why: what is wrong with it.
        keys: those that it seems to hold; none where none can be read, two where records are glued.
    """

    path: str
    line: int
    offset: int
    size: int
    why: str
    keys: tuple[Key, ...]

    def __str__(self) -> str:
        keys = f"; key {', '.join(quote(key, 60) for key in self.keys)}" if self.keys else ""
        return f"{self.path}:{self.line}: {self.why} ({plural(self.size, 'byte')} at {self.offset:,}{keys})"

    def to_json(self) -> dict[str, Any]:
        """As `Soundness.to_json` has it."""
        return {
            "line": self.line,
            "offset": self.offset,
            "bytes": self.size,
            "why": self.why,
            "keys": [plain_json(key) for key in self.keys],
        }


@dataclass(frozen=True, slots=True)
class DamagedClaim:
    """A key that a damaged line seems to hold; without checksum, the str() of the keys that it stands for."""

    version: str
    key: Key
    forgets: bool
    sealed: bool
    counts: bool  # a scan takes the line for the key's record until it is read
    at: int = 0


class Audit:
    """What a journal's intact lines say, and which lines are damaged: one pass over the file, memory by keys.

    The last word on a key is the offset of its record, or ~offset of what forgets it. `loose` has the last word on what
    lines without checksum stand for, by version and str() of the key: theirs, or ~offset of a line that ends it.

    Args:
        reader: the journal.
        decode: whether values are decoded too.
    """

    def __init__(self, reader: Reader, *, decode: bool) -> None:
        self.exact: dict[str, dict[Key, int]] = {}
        self.loose: dict[str, dict[str, int]] = {}
        self.has_loose = False
        self.damage: list[Damage] = []
        self.lines = 0
        self.without_checksum = 0
        self.unreadable = 0
        self.example = ""
        self.torn: tuple[int, int] | None = None
        self._claims: list[DamagedClaim] = []
        self._crowd = Crowd()
        self.end = 0
        self._reader = reader
        self._codec = Codec(compiles=False) if decode else None
        self.notes: dict[tuple[str, str], int] = {}  # ("code" or "version", digest): the line that says what it is
        self._accepting: list[int] = []  # lines that accept, and of other kinds
        self.costs: dict[int, tuple[str, float]] = {}  # by offset, the version of a record that cost something
        self._involved: set[str] = set()  # versions that were accepted, or for which others were
        self._pinned: set[int] = set()
        self._latest: tuple[int, str, Key, bool] | None = (
            None  # the last record, which names the version that is LATEST
        )
        self._counting: dict[
            tuple[str, Key, bool], DamagedClaim
        ] = {}  # damaged, and a key's last word until they are read
        self._ended: dict[tuple[str, str], int] = {}  # where a damaged line ended what ones without checksum stood for
        self._read()

    # reading on

    def _read(self) -> None:
        """What follows the last newline may be a record all the same; what is written meanwhile is left out."""
        size = self._reader.size()
        for offset, line, length in self._whole_lines():
            if offset >= size:
                break
            self.lines += 1
            self._enter(offset, line, length)
            self.end = offset + length
        rest = size - self.end
        if rest > LONGEST_LOOSE:
            self.torn = self.end, rest
            return
        tail = self._reader.pread(rest, self.end) if rest > 0 else b""
        if tail and is_whole(tail):
            self.lines += 1
            self._enter(self.end, tail, len(tail))
            self.end += len(tail)
        elif tail:
            self.torn = self.end, len(tail)

    def _whole_lines(self) -> Iterator[tuple[int, bytes, int]]:
        """(offset, line, its size with the newline); of one that can be no record, only the beginning of the line."""
        long: list[tuple[int, int]] = []
        for offset, block in self._reader.blocks(0, lambda offset, size: long.append((offset, size))):
            yield from self._long_lines(long)
            for line in block.split(b"\n")[:-1]:
                yield offset, line, len(line) + 1
                offset += len(line) + 1
        yield from self._long_lines(long)

    def _long_lines(self, found: list[tuple[int, int]]) -> Iterator[tuple[int, bytes, int]]:
        for offset, size in found:
            beginning = self._reader.pread(_LONGEST_SPELLED, offset)
            may_be = size <= LONGEST_LOOSE or self._reader.is_sealed(offset, size)
            is_read = may_be and not is_hopeless(beginning)
            yield offset, self._reader.pread(size, offset) if is_read else beginning, size + 1
        found.clear()

    def _enter(self, offset: int, line: bytes, size: int) -> None:
        if not line.strip(b"\r\t "):
            return
        try:
            record = parse(line)
            key = key_from_json(record.key)
            digest_from(record.input or "0")
            self._crowd.check(key)
            if self._codec is not None and not record.forgotten:
                self._decode(record, key)
        except NoRecord as found:
            self._accepting.append(offset)
            if found.acceptance is not None and not found.acceptance.is_of_code:
                self._accept(found.acceptance)
        except ValueError as error:
            self._note_damage(offset, line, size, str(error))
        else:
            self.without_checksum += not record.crc
            if (cost := cost_of(record)) is not None:
                self.costs[offset] = record.version, cost
            self._note_word(offset, record, key)
            if record.crc and record.detail:
                self.notes.setdefault(("code", record.code), offset)
            if record.crc and record.value:
                self.notes.setdefault(("version", record.version), offset)

    def _decode(self, record: Record, key: Key) -> None:
        assert self._codec is not None
        raw = bytes(record.result)
        try:
            if record.crc or record.session:
                self._codec.decode(raw)
            else:
                decode_foreign(raw)
        except ValueError as error:
            if not record.crc:
                raise ValueError(f"its result cannot be decoded: {error}") from None
            self.unreadable += 1  # the bytes are those that were written
            self.example = self.example or f"{shorten(str(error))} (key {quote(key, 60)})"

    def _note_word(self, offset: int, record: Record, key: Key) -> None:
        version = record.version
        if record.forgotten or record.crc:
            words = self.exact.setdefault(version, {})
            if type(key) is not str:
                words.pop(key, None)  # a dict keeps the first of equal keys, and the last one's str() is what counts
            words[key] = ~offset if record.forgotten else offset
            if self.has_loose:
                self.loose.setdefault(version, {})[str(key)] = ~offset
        else:
            self.has_loose = True
            self.loose.setdefault(version, {})[str(key)] = offset
        if self._counting:
            if record.forgotten or record.crc:
                self._counting.pop((version, key, True), None)
            self._counting.pop((version, str(key), False), None)
        if not record.forgotten:
            self._latest = offset, version, key, bool(record.crc)

    def _accept(self, found: Acceptance) -> None:
        """The last words on the keys of a version are those on the keys of another one that has none."""
        old, new = found.accepts, found.of
        self._involved |= {old, new}
        exact, loose = self.exact.setdefault(new, {}), self.loose.setdefault(new, {})
        texts = {str(key) for key, word in exact.items() if word >= 0} if self.has_loose else set()
        for key, word in self.exact.get(old, {}).items():
            if word >= 0 and exact.get(key, -1) < 0 and loose.get(str(key), -1) < 0:
                exact[key] = word
        for text, word in self.loose.get(old, {}).items():
            if word >= 0 and text not in texts and loose.get(text, -1) < 0:
                loose[text] = word

    # damage

    def _note_damage(self, offset: int, line: bytes, size: int, why: str) -> None:
        # A scan tells by the version of the record before it whether to look at a line's checksum.
        if self._latest is not None:
            self._pinned.add(self._latest[0])
        latest = "" if self._latest is None else self._latest[1]
        claims = [replace(claim, at=offset) for claim in _claims_of(line, latest) if self._is_alone(claim)]
        keys = tuple(claim.key for claim in claims)
        self.damage.append(Damage(str(self._reader.path), self.lines, offset, size, printable(shorten(why)), keys))
        self._claims += claims
        for claim in claims:
            if claim.counts:
                self._note_counting(claim)

    def _is_alone(self, claim: DamagedClaim) -> bool:
        try:
            self._crowd.check(claim.key)
        except ValueError:
            return False
        return True

    def _note_counting(self, claim: DamagedClaim) -> None:
        """A scan takes the line for a record: it ends what lines without checksum stood for, or it is such a line."""
        text = str(claim.key)
        self._counting.pop((claim.version, text, False), None)
        self._counting[claim.version, claim.key, claim.sealed] = claim
        self._ended[claim.version, text] = claim.at
        if not claim.sealed and not claim.forgets:
            self._latest = claim.at, claim.version, claim.key, False

    def words(self, version: str, key: Key) -> tuple[int | None, int | None]:
        """The last words on a key, and on lines without checksum that stand for it."""
        return self.exact.get(version, {}).get(key), self.loose.get(version, {}).get(str(key))

    def lost(self) -> Iterator[tuple[str, Key]]:
        """The (version, key) of each damaged line that was the key's record and has no other in its place."""
        return self._with_fate("lost")

    def outdated(self) -> Iterator[tuple[str, Key]]:
        """The (version, key) of each damaged line in whose place an older record of the key counts."""
        return self._with_fate("outdated")

    def _with_fate(self, fate: str) -> Iterator[tuple[str, Key]]:
        return iter(dict.fromkeys((claim.version, claim.key) for claim in self._claims if self._fate(claim) == fate))

    def _fate(self, claim: DamagedClaim) -> str:
        """What the damage of a line does to its key."""
        if claim.counts:
            ends = self._counting.get((claim.version, claim.key, claim.sealed)) is claim and not claim.forgets
            return "lost" if ends else "none"
        words = [word for word in self.words(claim.version, claim.key) if word is not None]
        if any(max(word, ~word) > claim.at for word in words):
            return "none"  # a later line says more
        if any(word >= 0 for word in words):
            return "outdated"
        return "none" if claim.forgets else "lost"

    def uncovered(self) -> Iterator[DamagedClaim]:
        """The damaged lines without which an older record of their key would count again."""
        for claim in self._counting.values():
            exact, loose = (word is not None and word >= 0 for word in self.words(claim.version, claim.key))
            if (exact or loose) if claim.sealed else (loose and not exact):
                yield claim

    # what counts

    def live(self, version: str) -> Iterator[tuple[Key, bool]]:
        """(key, whether its line has a checksum) of each key that has an intact record."""
        exact = self.exact.get(version, {})
        for key, word in exact.items():
            if word >= 0 and (version, key, True) not in self._counting:
                yield key, True
        loose = self.loose.get(version, {})
        texts = {str(key) for key, word in exact.items() if word >= 0} if loose else set()
        for text, word in loose.items():
            if text not in texts and self._stands(version, text, word):
                yield text, False

    def has(self, version: str, key: Key) -> bool:
        """Whether the key has an intact record."""
        exact, loose = self.words(version, key)
        if exact is not None and exact >= 0:
            return (version, key, True) not in self._counting
        return loose is not None and self._stands(version, str(key), loose)

    def _stands(self, version: str, text: str, word: int) -> bool:
        """Whether a line without checksum is the last word on the keys of that str()."""
        return word >= 0 and word > self._ended.get((version, text), -1)

    def kept(self) -> list[int]:
        """Where the lines begin that are not superseded, in order.

        What forgets a key, or ends what a line without checksum stood for, is of no use once the lines before it are
        gone. But damaged lines stay, and may be taken for a key's record: then every last word stays with them.
        """
        tables: list[Mapping[Any, int]] = [*self.exact.values(), *self.loose.values()]
        kept = {word for words in tables for word in words.values() if word >= 0}
        kept.update(self._accepting)
        for version in self._involved:  # what one of them forgets must not come back by way of the other
            for words in (self.exact.get(version, {}), self.loose.get(version, {})):
                kept.update(~word for word in words.values() if word < 0)
        if self.damage:
            kept.update(~word for words in tables for word in words.values() if word < 0)
            kept.update(damage.offset for damage in self.damage)
        if self._latest is not None:
            offset, version, key, sealed = self._latest
            exact, loose = self.words(version, key)
            last = exact if sealed else loose
            kept.update((offset, offset if last is None else max(last, ~last)))
        return sorted(kept | self._pinned)


def _claims_of(line: bytes, latest: str) -> Iterator[DamagedClaim]:
    """The keys that a damaged line seems to hold; `latest` is the version of the record before it."""
    line = line.rstrip(b"\r")
    try:
        version, key, forgets, sealed = spelled(line)
        counts = not forgets and (not sealed or version == latest)
        yield DamagedClaim(version, key if sealed else str(key), forgets, sealed, counts)
    except ValueError:
        begun = _key_at_the_beginning(line)
        if begun is not None:
            known = re.findall(rb',"version":"([0-9a-f]{16})"', line[-_LONGEST_SPELLED:])
            version, forgets = known[-1].decode() if known else latest, b',"forgotten":true' in line[:_LONGEST_SPELLED]
            yield DamagedClaim(version, begun[0], forgets, sealed=True, counts=False)
    glued = line.find(_GLUED, 1)
    for _ in range(_SHOWN):
        if glued < 0:
            return
        try:
            record = parse(line[glued:])
            key = key_from_json(record.key)
        except ValueError:
            glued = line.find(_GLUED, glued + 1)
            continue
        if record.crc:
            yield DamagedClaim(record.version, key, record.forgotten, sealed=True, counts=False)
        return


_BEGINNING = re.compile(r'\s*\{\s*"key"\s*:\s*')


def _key_at_the_beginning(line: bytes) -> tuple[Key] | None:
    """The key that a line begins with, in a tuple, where it can be read whole."""
    text = line[:_LONGEST_SPELLED].decode("utf-8", "replace")
    begun = _BEGINNING.match(text)
    if begun is None:
        return None
    try:
        plain, end = with_stack(json.JSONDecoder().raw_decode, text, begun.end())
        key = key_from_json(plain)
    except ValueError:
        return None
    return None if "\ufffd" in text[:end] or not text[end:].lstrip().startswith(",") else (key,)


def lines_at(reader: Reader, offsets: Sequence[int], end: int) -> Iterator[bytes]:
    """The lines that begin at these offsets, joined in blocks; the last one may lack its newline."""
    place, count = 0, len(offsets)
    for offset, block in reader.blocks(0):
        lines = []
        while place < count and offsets[place] < offset + len(block):
            start = offsets[place] - offset
            lines.append(block[start : block.index(b"\n", start) + 1])
            place += 1
        yield b"".join(lines)
        if place == count:
            return
    if place < count:
        yield reader.pread(end - offsets[place], offsets[place])
