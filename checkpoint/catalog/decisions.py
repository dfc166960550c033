"""What is decided about old results: that they count for other code, for another version, or for other inputs.

The promise: a decision is in the journal when it returns, and holds on every machine; no result is lost by it, and none
is computed. Old records stay as they are: results that are accepted for other inputs, or converted, become records of
their own, which say what they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import msgspec

from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.schemas import fits, spell
from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, InvalidOption, plural, quote
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record, seal, with_fields
from checkpoint.storage.store import Entry
from checkpoint.values.codec import Codec
from checkpoint.values.digests import are_alike, digest_from
from checkpoint.values.keys import Key, KeyFunction, item_digest
from checkpoint.values.plain_json import decode_foreign
from checkpoint.values.secrets import quoted

__all__ = [
    "Undecided",
    "accept_code",
    "accept_items",
    "accept_version",
    "accepted_in",
    "check_version",
    "convert_version",
    "decided_of",
    "meant_by",
    "question_of",
    "undecided_of",
]

_TOGETHER = 100  # records that are written at once

# --- for other code --------------------------------------------------------------------------------------------------


def question_of(checkpoint: Checkpoint, version: str, code: str) -> str:
    """The digest that stands for accepting, for this code, what any other code has computed of the version.

    It is that of the code, with a checksum of the fingerprints that the journal names: one that is mistyped is found
    out, and so is one that was printed before other code computed results.
    """
    others = sorted({*checkpoint.results.codes.get(version, ())} - {code})
    told = "\n".join([version, code, *others]).encode("utf-8", "surrogatepass")
    return f"{code}-{blake2b(told, digest_size=4).hexdigest()}"


def meant_by(checkpoint: Checkpoint, question: str) -> list[tuple[str, str]]:
    """(version, code) that a digest which `question_of` gave stands for; none where it is another checkpoint's."""
    code = question.rpartition("-")[0]
    return [
        (version, code) for version in checkpoint.results.codes if question_of(checkpoint, version, code) == question
    ]


def accept_code(records: VersionView, code: str) -> dict[str, int]:
    """Results that other code has computed of this version count for this code from now on; how many, by fingerprint.

    Raises:
        CheckpointLocked: another process writes, or a pass of this one is running.
        StoreError: it could not be written.
    """
    checkpoint = records.open()
    decided = checkpoint.accepted
    others = {
        old for old in checkpoint.results.codes.get(records.version, ()) if old != code and (old, code) not in decided
    }
    places = checkpoint.results.places_by_code(records.version) if others else {}
    counts = {old: len(found) for old, found in places.items() if old in others}
    if counts:
        with checkpoint.store.writer.alone():
            checkpoint.accept_codes(counts, code)
    return counts


def accept_version(records: VersionView, old: str) -> int:
    """Results of another version count for this one from now on, where it has none of the key; how many did.

    Raises:
        CheckpointLocked, StoreError: as `accept_code`.
    """
    checkpoint, version = records.open(), records.version
    before = checkpoint.results.count(version)
    with checkpoint.store.writer.alone():
        pass  # no pass is running, and nobody else writes; shards' locks are never taken under this one
    checkpoint.accept_version(old, version)
    checkpoint.store.writer.give_up()
    return checkpoint.results.count(version) - before


def accepted_in(records: VersionView, code: str | None) -> frozenset[int]:
    """Where the results begin that count for a decision: of other code, or of another version. It reads the journal.

    Args:
        records: their store is up to date.
        code: the fingerprint for which other ones may have been accepted.
    """
    checkpoint, version = records.checkpoint, records.version
    old = {accepted for accepted, new in checkpoint.accepted if new == code}
    found: set[int] = set()
    if old.intersection(checkpoint.results.codes.get(version, ())):
        found.update(
            at for name, places in checkpoint.results.places_by_code(version).items() if name in old for at in places
        )
    for line in checkpoint.results.notes().accepted:
        if not line.is_of_code and line.of == version:
            theirs = set(checkpoint.results.offsets(line.accepts)[1])
            found.update(theirs.intersection(checkpoint.results.offsets(version)[1]))
    return frozenset(found)


# --- what is there, seen without the function ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Undecided:
    """Results that other code computed than the last one, about which nobody has decided.

    Attributes:
        count: how many these are.
        is_exact: whether they were counted; else that is an estimate from a sample.
        question: the digest for `checkpoint accept`.
    """

    count: int
    is_exact: bool
    question: str

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        one = "s" if self.count == 1 else ""
        return f"{about}{plural(self.count, 'result')} precede{one} a change of the function, and nobody has decided"


def undecided_of(checkpoint: Checkpoint, version: str, most: int) -> Undecided | None:
    """What nobody has decided of a version; None where there is nothing.

    Args:
        store: up to date.
        version: its digest.
        most: how many records are looked at.
    """
    *earlier, last = checkpoint.results.codes.get(version, ()) or [""]
    decided = checkpoint.accepted if earlier else set()
    others = {code for code in earlier if (code, last) not in decided}
    if not others:
        return None
    reader, offsets = checkpoint.results.sample(version, most)
    found = 0
    for offset in offsets if reader is not None else ():
        try:
            found += reader.read(offset).code in others if reader is not None else 0
        except DamagedRecord:
            continue  # `check` tells of it
    if not found:
        return None
    count = checkpoint.results.count(version)
    is_exact = len(offsets) >= count
    return Undecided(
        found if is_exact else round(found * count / len(offsets)), is_exact, question_of(checkpoint, version, last)
    )


def decided_of(checkpoint: Checkpoint, version: str) -> list[str]:
    """What was accepted for a version, and of the code that computed it, in words."""
    codes, labels, told = checkpoint.results.codes.get(version, ()), checkpoint.versions, {}
    for line in checkpoint.results.notes().accepted:
        day = line.timestamp[:10]
        if line.is_of_code and line.accepts in codes:
            told[line.accepts] = f"results of code {line.accepts} for {line.of}, on {day}"
        elif not line.is_of_code and line.of == version:
            of = f"version {quote(labels.get(line.accepts, line.accepts), 60)}" if line.accepts else "no version"
            told[line.accepts] = f"results of {of}, on {day}"
    return list(told.values())


# --- for another version ---------------------------------------------------------------------------------------------


def check_version(records: VersionView, version: str, label: Any) -> None:
    """Refuse to accept a version of which there is nothing, or the one that is current.

    Raises:
        InvalidOption: saying what there is.
    """
    checkpoint = records.checkpoint
    if version == records.version:
        raise InvalidOption(
            f"checkpoint {records.name!r}: version {quoted(label, 60)} is the one that is current: its results count. "
            "Name another one, or give the function a version= of its own first"
        )
    if not checkpoint.results.count(version):
        labels = checkpoint.versions
        there = [quote(labels.get(held, held) if held else None, 60) for held in sorted(checkpoint.results.versions)]
        raise InvalidOption(
            f"checkpoint {records.name!r} has no results of version {quoted(label, 60)}; it has some of: "
            f"{', '.join(there) or 'none'}"
        )


def convert_version(records: VersionView, old: str, convert: Callable[[Any], Any]) -> int:
    """Write a record of this version for each result of another one that has none here; how many were written.

    What is written is what the function makes of the old value. It may be killed and run again.

    Args:
        records: of the version that is current.
        old: the other version.
        convert: gets each value; objects of classes as plain JSON.

    Raises:
        CheckpointLocked, StoreError: as `accept_code`.
        UnencodableValue: the function returned what cannot be stored; those before it are written.
        InvalidOption: the function returned plain JSON where the annotation names a class.
    """
    checkpoint, version = records.open(), records.version
    loose: list[bytes] = []  # lines without checksum, which stand for any key of equal str(), as the old ones do

    def lines() -> Iterator[Entry]:
        for reader, offset, key, record in list(checkpoint.results.sound_places(old, lambda: None)):
            if _is_there(checkpoint, version, key, record):
                continue
            made = _converted(convert, _plain_value(reader, offset, record), key, old)
            _refuse_plain(records, key, made)
            digest = digest_from(record.input or "0")
            line = with_fields(records.result_line(key, records.encode(made), digest), b',"from":"%b"' % old.encode())
            if record.crc:
                yield Entry(version, key, digest, line)
            else:
                loose.append(_unsealed(line))

    with checkpoint.store.writer.alone():
        count = _append_all(checkpoint, lines())
        if loose:
            checkpoint.store.append_loose(loose)
        return count + len(loose)


def _unsealed(line: bytes) -> bytes:
    """The record as one without checksum, of which nobody knows what code computed it."""
    fields = _decode_fields(line)
    for name in ("crc", "code"):
        fields.pop(name, None)
    return _encode(fields) + b"\n"


def _converted(convert: Callable[[Any], Any], value: Any, key: Key, version: str) -> Any:
    """The new value; an error of the user's function names the result that it was given."""
    try:
        return convert(value)
    except Exception as error:
        error.add_note(f"while the result of key {quote(key)} of version {quote(version or None)} was converted")
        raise


def _refuse_plain(records: VersionView, key: Key, made: Any) -> None:
    """Refuse plain JSON where the function's results are objects: it would come back as plain JSON for ever.

    Raises:
        InvalidOption: with the way to write it.
    """
    schema = records.schema
    if schema is None or not isinstance(made, (dict, list, tuple)) or fits(made, schema.annotation):
        return
    spelled = spell(schema.annotation)
    way = f"convert=lambda old: {spelled}(**old)" if type(made) is dict and spelled.isidentifier() else "of its class"
    raise InvalidOption(
        f"checkpoint {records.name!r}: convert returned {quote(made, 60)} for key {quote(key, 60)}, and results of the "
        f"function are {spelled}: it gets plain JSON, and is to return the object: {way}. What it converted before is "
        "written"
    )


def _is_there(checkpoint: Checkpoint, version: str, key: Key, record: Record) -> bool:
    """Whether a version has a result for the key of a record of another version."""
    if checkpoint.results.find(version, key) is not None:
        return True
    return not record.crc and any(str(held) == key for held, _ in checkpoint.results.sound(version))


def _plain_value(reader: Reader, offset: int, record: Record) -> Any:
    raw = bytes(record.result)
    try:
        return _codec.decode(raw) if record.crc or record.session else decode_foreign(raw)
    except ValueError as error:
        raise reader.damaged(offset, f"its result cannot be decoded: {error}") from None


_codec = Codec()


def _append_all(checkpoint: Checkpoint, entries: Iterator[Entry]) -> int:
    count = 0
    while together := list(islice(entries, _TOGETHER)):
        checkpoint.store.append(checkpoint.store.own.results, together)
        count += len(together)
    return count


# --- for other inputs ------------------------------------------------------------------------------------------------

_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def accept_items(
    records: VersionView, items: Iterable[Any], key_of: KeyFunction, digest_of: Callable[[Any], int] = item_digest
) -> int:
    """The result of each item's key counts for the item as it is, where it was computed from another; how many.

    A copy of the record with the digest of the item is written: it says which digest it comes from.

    Args:
        records: of the version that is current.
        items: of some keys.
        key_of: what names an item.
        digest_of: the digest of an item; 0 for none.

    Raises:
        InvalidKey: as a pass.
        CheckpointLocked, StoreError: as `accept_code`.
    """
    checkpoint, version = records.open(), records.version

    def lines() -> Iterator[Entry]:
        seen: set[Key] = set()
        for item in items:
            key, digest = key_of(item), digest_of(item)
            place = None if key in seen else checkpoint.results.find(version, key)
            seen.add(key)
            if place is None or not digest or not place.digest or are_alike(place.digest, digest):
                continue
            try:
                found = checkpoint.results.read(version, key)
            except DamagedRecord:
                continue  # it is computed anew
            if found is not None:
                reader, (offset, _), _ = found
                line = _copied(reader.line_at(offset), digest, records.stamp_for(key), version)
                yield Entry(version, key, digest, line)

    with checkpoint.store.writer.alone():
        return _append_all(checkpoint, lines())


def _copied(line: bytes, digest: int, stamp: bytes, version: str) -> bytes:
    """The record with another input digest, which says what it comes from."""
    fields = _decode_fields(line)
    for name in ("crc", "detail", "value", "from", *(() if version else ("version",))):
        fields.pop(name, None)
    before = bytes(fields["input"])
    fields["timestamp"], fields["input"] = _raw(b'"%b"' % stamp), _raw(b'"%032x"' % digest)
    if version:
        fields["version"] = _raw(b'"%b"' % version.encode())
    fields["from"] = _raw(before)
    return seal(_encode(fields)[:-1])


_raw = msgspec.Raw
