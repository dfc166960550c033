"""What a line of a journal is: a record, what accepts results, or neither; and how one is sealed and read.

The promise: a record read is the one that was written, or it is told to be damaged.

A line is ``{"key": …, …, "crc": "xxxxxxxx"}\n`` in compact JSON, the crc being that of every byte before its own comma.
Lines end in ``\n`` and nothing else splits them. A line without crc is *foreign*: written by hand or by schema 1.0.0.
A sealed line without a key is no record: it accepts results (`Acceptance`), or is of a kind that this reader skips.
Three readers of lines stand here: of the whole record, of what the index takes of it, and of what a pass takes.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from checkpoint.values.keys import Key, key_from_json, key_json
from checkpoint.values.plain_json import with_stack

__all__ = [
    "CRC_SIZE",
    "LONGEST_LOOSE",
    "LONG_KEY",
    "Acceptance",
    "LineHead",
    "NoRecord",
    "Record",
    "abridged",
    "codes_in",
    "decode_even_heads",
    "decode_heads",
    "forgets_damage",
    "head_of",
    "is_hopeless",
    "is_intact",
    "is_whole",
    "last_in",
    "parse",
    "saved_on",
    "seal",
    "seal_parts",
    "spelled",
    "steps_in",
    "unsealed",
    "with_fields",
    "with_steps",
]


CRC_SIZE = len(b',"crc":"00000000"}')
LONGEST_LOOSE = 64 << 20
"""Bytes of a line without checksum, which has to be read whole to know whether it is a record."""
_BOM = b"\xef\xbb\xbf"


class Record(msgspec.Struct, gc=False):
    """A record's fields, parsed; `result`, `notes`, `paid` and `pickle` stay as they are in the file.

    `paid` is what the call of a failure returned; `value` that of the version, or of the code.
    """

    key: Any
    result: msgspec.Raw = msgspec.Raw()
    timestamp: str = ""
    version: str = ""
    code: str = ""
    schema: str = ""
    input: str = ""
    forgotten: bool = False
    error: str | None = None
    type: str | None = None
    traceback: str | None = None
    attempts: int | None = None
    elapsed: float | None = None
    session: str = ""
    pickle: str | None = None
    repr: str | None = None
    origin: Any = msgspec.field(name="from", default=None)
    steps: msgspec.Raw = msgspec.Raw()
    detail: msgspec.Raw = msgspec.Raw()
    value: msgspec.Raw = msgspec.Raw()
    paid: msgspec.Raw = msgspec.Raw()
    given_up: bool = False
    notes: msgspec.Raw = msgspec.Raw()
    earlier: Any = None
    crc: str = ""


class _Lenient(Record, gc=False):
    """A record on a line of another program, which may have anything for its code and schema: then it names none."""

    code: Any = ""
    schema: Any = ""

    def __post_init__(self) -> None:
        if type(self.code) is not str:
            self.code = ""
        if type(self.schema) is not str:
            self.schema = ""


class _Saved(msgspec.Struct, gc=False):
    """What those take of a record who read many results."""

    key: Any
    result: msgspec.Raw
    version: str = ""
    crc: str = ""
    forgotten: bool = False


class Acceptance(msgspec.Struct, frozen=True):
    """A line that accepts: results of some code, or of a version, count for other code, or another version, too.

    Attributes:
        accepts: the fingerprint, or the digest of the version ("" for none), whose results are accepted.
        of: for which fingerprint, or for which version.
        timestamp: when that was decided.
    """

    accepts: str
    of: str = msgspec.field(name="for")
    timestamp: str = ""

    @property
    def is_of_code(self) -> bool:
        """Whether it accepts a fingerprint; a version's digest has no hyphen."""
        return "-" in self.accepts


class _Spent(msgspec.Struct, frozen=True):
    """A line that says what was spent: by version the sum, and how many records it is of."""

    spent: dict[str, tuple[float, int]]


class NoRecord(ValueError):
    """A sealed line that is no record, and no damage.

    Attributes:
        acceptance: what it accepts; None for a line of another kind.
        spent: by version, the sum that was spent, and of how many records; None for a line of another kind.
    """

    def __init__(self, acceptance: Acceptance | None, spent: dict[str, tuple[float, int]] | None = None) -> None:
        super().__init__("it is no record")
        self.acceptance, self.spent = acceptance, spent


_decode_record = msgspec.json.Decoder(Record).decode
_decode_leniently = msgspec.json.Decoder(_Lenient).decode
_decode_saved = msgspec.json.Decoder(_Saved).decode
_decode_acceptance = msgspec.json.Decoder(Acceptance).decode
_decode_spent = msgspec.json.Decoder(_Spent).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_UNREAD = {"result", "steps", "detail", "value", "paid", "notes", "crc"}
_FOREIGN_FIELDS = frozenset(Record.__struct_encode_fields__) - _UNREAD
_NO_KEY = ("Object missing required field `key`", "Expected `object`")  # as msgspec says it of sound JSON
_scalar_key = (str, int, float, bool, type(None))


def seal(head: bytes) -> bytes:
    """The line for a record's fields (compact JSON without its closing brace): its checksum and the newline added."""
    return head + b',"crc":"%08x"}\n' % zlib.crc32(head)


def seal_parts(head: bytes, long: bytes, tail: bytes) -> bytes:
    """`seal` of these bytes one behind the other: the long ones are copied once."""
    crc = zlib.crc32(tail, zlib.crc32(long, zlib.crc32(head)))
    return b"".join((head, long, tail, b',"crc":"%08x"}\n' % crc))


def _crc_holds(line: bytes) -> bool:
    return line[-CRC_SIZE:] == b',"crc":"%08x"}' % zlib.crc32(memoryview(line)[:-CRC_SIZE])


def _has_checksum(line: bytes) -> bool:
    """Whether a line without crc ends in its own checksum all the same: the field's name is what was damaged."""
    return line[-CRC_SIZE:][8:16] == b"%08x" % zlib.crc32(memoryview(line)[:-CRC_SIZE])


def parse(line: bytes) -> Record:
    """The record on a line (its newline and a carriage return or BOM around it are read through).

    Raises:
        NoRecord: it is sound, and holds no key.
        ValueError: it is damaged; the message says how.
    """
    try:  # what `_parse` finds first, in less time: most lines are ours, and sound
        record = _decode_record(line)
        if record.crc and _crc_holds(line):
            return record
    except (ValueError, RecursionError):
        pass
    return with_stack(_parse, line.rstrip(b"\r\n").removeprefix(_BOM))  # type: ignore[no-any-return]


def saved_on(line: bytes) -> tuple[Key, bytes, str] | None:
    """(key, encoded result, version) of a sound record, less its newline; None where only `parse` can tell."""
    try:
        found = _decode_saved(line)
        if found.crc and not found.forgotten and _crc_holds(line):
            return key_from_json(found.key), bytes(found.result), found.version
    except (ValueError, RecursionError):
        pass
    return None


def _parse(line: bytes) -> Record:
    try:
        record: Record = _decode_leniently(line)
    except ValueError as error:
        return _parse_foreign(line, error)
    if not record.crc and not _has_checksum(line):
        return _foreign(record)
    if not _crc_holds(line):
        written = _as_written(line)
        if not _crc_holds(written):
            raise ValueError("its checksum does not match (delete the crc field of a line that you edit by hand)")
        return _decode_leniently(written)
    return record


_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[ \t\r\n]+', re.DOTALL)


def _as_written(line: bytes) -> bytes:
    """The line as it was before another program spaced it out or escaped its text: then its checksum fits again."""
    return _TOKEN.sub(_compact, line)


def _compact(token: re.Match[bytes]) -> bytes:
    text = token[0]
    if not text.startswith(b'"'):
        return b""
    if b"\\u" not in text and b"\\/" not in text:
        return text
    try:
        return _encode(_decode(text))
    except ValueError:  # a lone surrogate, which we never write
        return text


_encode, _decode = msgspec.json.Encoder().encode, msgspec.json.Decoder().decode


def unsealed(line: bytes) -> bytes | None:
    """The line less its checksum, where it is a sound record but for that; else None."""
    try:
        fields = _decode_fields(line.rstrip(b"\r\n").removeprefix(_BOM))
        if "key" not in fields or fields.pop("crc", None) is None:
            return None
        bare = _encode(fields)
        bare.decode()  # which nobody has looked at yet
        parse(bare)
    except ValueError:
        return None
    return bare


def _foreign(record: Record) -> Record:
    if not isinstance(record.key, _scalar_key) and not (isinstance(record.key, dict) and "$tuple" in record.key):
        raise ValueError(f"its key is a {type(record.key).__name__}")
    return record


def _parse_foreign(line: bytes, error: Exception) -> Record:
    """A line of the standard json module: NaN and lone surrogates, which a line of ours never holds."""
    if b'"crc":"' in line[-CRC_SIZE:]:
        if _crc_holds(line) and not line.startswith(b'{"key":'):
            raise _no_record(line)
        raise ValueError(f"it is not valid JSON: {error}")
    if isinstance(error, msgspec.ValidationError) and str(error).startswith(_NO_KEY):
        raise ValueError("it is not an object with a key")
    try:
        fields = json.loads(line)
    except ValueError as also:
        raise ValueError(f"it is not valid JSON: {also}") from None
    except MemoryError:
        raise ValueError("parsing it takes more memory than there is") from None
    if not isinstance(fields, dict) or "key" not in fields:
        raise ValueError("it is not an object with a key")
    known = {name: value for name, value in fields.items() if name in _FOREIGN_FIELDS}
    try:
        raw = json.dumps(fields.get("result")).encode()
        record = msgspec.convert(known, _Lenient, strict=False)
    except (ValueError, TypeError) as also:
        raise ValueError(f"its fields are of the wrong types: {also}") from None
    record.result = msgspec.Raw(raw)
    return _foreign(record)


def _no_record(line: bytes) -> ValueError:
    """What a sealed line is that the fields of a record do not fit."""
    try:
        if "key" in _decode_fields(line):
            return ValueError("its fields are of the wrong types")
    except ValueError as error:
        return ValueError(f"it is not valid JSON: {error}")
    try:
        if line.startswith(b'{"spent":'):
            return NoRecord(None, _decode_spent(line).spent)
        return NoRecord(_decode_acceptance(line))
    except ValueError:
        return NoRecord(None)


def is_hopeless(beginning: bytes) -> bool:
    """Whether what begins so can be no record, so that the rest of it need not be read."""
    return not beginning.removeprefix(_BOM).lstrip(b" \t\r").startswith(b"{") or b"\0" in beginning


def is_whole(line: bytes) -> bool:
    """Whether a line without its newline is sound."""
    try:
        parse(line)
    except NoRecord:
        return True
    except ValueError:
        return False
    return True


def is_intact(line: bytes) -> bool:
    """Whether a line is as it was written, as far as can be told; where it has its checksum, it is not parsed."""
    bare = line.rstrip(b"\r\n")
    return _crc_holds(bare) or is_whole(bare)


def forgets_damage(line: bytes) -> bool:
    """Whether a line forgets a key only because the record was damaged on this disk."""
    if b',"damaged":true' not in line:
        return False
    try:
        fields = _decode_fields(line)
    except ValueError:
        return False
    return all(bytes(fields.get(name, b"")) == b"true" for name in ("forgotten", "damaged"))


def with_fields(line: bytes, fields: bytes) -> bytes:
    """A sealed line with more fields (`,"name":value`) before its checksum."""
    bare = line.rstrip(b"\r\n").removeprefix(_BOM)
    return seal((bare if _crc_holds(bare) else _as_written(bare))[:-CRC_SIZE] + fields)


def _steps_field(steps: Iterable[tuple[str, Key, str]]) -> bytes:
    """The field that lists the steps of an item's call: (checkpoint, key, digest of the version) of each."""
    listed = b",".join(
        [b"[%b,%b,%b]" % (_encode(name), key_json(key), _encode(version)) for name, key, version in steps]
    )
    return b',"steps":[%b]' % listed


def with_steps(line: bytes, steps: Iterable[tuple[str, Key, str]] | None) -> bytes:
    """A sealed line with the steps of its item's call, if there are any."""
    return with_fields(line, _steps_field(steps)) if steps else line


def steps_in(record: Record) -> list[tuple[str, Key, str]]:
    """The steps that a record lists; what cannot be read as one is left out."""
    found: list[tuple[str, Key, str]] = []
    try:
        listed = _decode(record.steps) if record.steps else []
        for name, key, version in listed:
            if type(name) is str and type(version) is str:
                found.append((name, key_from_json(key), version))
    except (ValueError, TypeError):  # a line of another program may have anything there
        pass
    return found


LONG_KEY = 2048  # bytes; of longer lines only the beginning and the end are read


class LineHead(msgspec.Struct, gc=False):
    """What the index takes of a line; the rest is only checked to be JSON."""

    key: Any
    version: str = ""
    code: Any = ""
    input: str = "0000000000000000"
    forgotten: bool = False
    detail: msgspec.Raw = msgspec.Raw()
    value: msgspec.Raw = msgspec.Raw()
    crc: str = ""


class _EvenHead(msgspec.Struct, gc=False):
    """A head in a block whose lines can be packed; any other cannot be decoded."""

    key: str | int | float | bool | None
    version: str = ""
    code: str = ""
    input: str = "0000000000000000"
    forgotten: None = None
    detail: None = None
    value: None = None


decode_heads = msgspec.json.Decoder(LineHead).decode_lines
decode_even_heads = msgspec.json.Decoder(_EvenHead).decode_lines


def spelled(line: bytes) -> tuple[str, Key, bool, bool]:
    """(version, key, whether it forgets it, whether there is a checksum): what a scan reads, which does not verify it.

    Raises:
        ValueError: a scan would not take it for a record.
    """
    head = head_of(line, 0, len(line))
    int(head.input, 16)
    return head.version, key_from_json(head.key), head.forgotten, bool(head.crc)


def head_of(block: bytes, start: int, stop: int) -> LineHead:
    """What the index takes of the line block[start:stop].

    Raises:
        ValueError: it is damaged.
    """
    line = abridged(block, start, stop) if stop - start > 2 * LONG_KEY else block[start:stop]
    if line.startswith(b'{"key":') and line[-CRC_SIZE:].startswith(b',"crc":"') and line.endswith(b'"}'):
        try:
            (head,) = decode_heads(line)
            return head
        except (ValueError, RecursionError):
            pass  # what is wrong with it, the whole line tells
    record = parse(block[start:stop])
    return LineHead(
        record.key, record.version, record.code, record.input or "0", record.forgotten, record.detail, record.value,
        record.crc,
    )  # fmt: skip


def abridged(block: bytes, start: int, stop: int) -> bytes:
    """A long line less its result, which the index need not look at; b"" where it has none.

    The names that it is cut at, quotes included, cannot stand within a JSON string.
    """
    result = block.find(b',"result":', start, start + LONG_KEY)
    after = block.rfind(b',"timestamp":"', stop - LONG_KEY, stop)
    return block[start:result] + block[after:stop] if result > 0 and after > 0 else b""


class _Code(msgspec.Struct, gc=False):
    code: Any = ""


_decode_codes = msgspec.json.Decoder(_Code).decode_lines

_LAST = re.compile(
    rb'(?<!"forgotten":true),"timestamp":"(?P<at>[^"]*)"(?:,"version":"(?P<version>[0-9a-f]*)")?'
    rb'(?:,"code":"[^"\\]*")?(?:,"schema":"(?P<schema>[0-9a-f]{32})")?'
)


_SHORTEST = len(b'{"key":1}')
_MOST_LAST = 10_000  # lines that forget keys, or are damaged, at the end of a journal


def last_in(tail: bytes) -> tuple[str, str, str] | None:
    """(timestamp, version, schema) of the last record in the last bytes of a journal; its first line may be cut off."""
    lines = [line for line in tail.split(b"\n") if len(line) >= _SHORTEST]
    for line in reversed(lines[-_MOST_LAST:]):
        try:
            record = parse(line)
        except NoRecord:
            continue
        except ValueError:  # cut off, or damaged
            if found := list(_LAST.finditer(line)):
                at, version, schema = ((part or b"").decode("utf-8", "replace") for part in found[-1].groups())
                return at, version, schema
            continue
        if not record.forgotten:
            return record.timestamp, record.version, record.schema
    return None


def codes_in(block: bytes) -> Iterator[tuple[bytes, str]]:
    """Each line of a block with the code that it names."""
    lines = block.split(b"\n")
    lines.pop()
    try:
        heads = _decode_codes(block)
        if len(heads) != len(lines):
            raise ValueError
    except (ValueError, RecursionError):  # some line is damaged, or empty: one by one
        heads = [_code_of(line) for line in lines]
    return ((line, head.code if type(head.code) is str else "") for line, head in zip(lines, heads, strict=True))


def _code_of(line: bytes) -> _Code:
    try:
        (head,) = _decode_codes(line)
        return head
    except (ValueError, RecursionError):
        return _Code()
