r"""Arbitrary bytes as the files of a checkpoint: nothing but own errors, and no wrong value for an intact line.

An input is the files' content, in one:

    ~R ~E ~U ~M ~I   what follows is of the results, errors, unsaved values, meta, or the index of the results
    ~0 … ~9          in a journal: a planted line, whose key and value are known
    ~!               in a journal: the line so far gets its right checksum, whatever it says

An index file is bytes like any other; or, where its first byte is "w", the true one of the journal up to as many lines
as the second byte says, with the byte at each place that the following triples name changed. "s" is the same with its
checksums made right again, as no accident does: then values are not judged.

    python tests/fuzzing.py FILE …                       replay inputs
    python tests/fuzzing.py --seed 7 --count 2000 FILE … and mutations of them
    python tests/fuzzing.py --atheris [LIBFUZZER'S OPTIONS] [CORPUS]

Whatever breaks the law is written to crash-… in the current directory, or below the one of --keep.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

if "--atheris" in sys.argv:
    import atheris

    with atheris.instrument_imports(include=["checkpoint"]):
        from checkpoint import CheckpointedRunner, CheckpointError, DamagedRecord, JournalLost, checkpointed
        from checkpoint.maintenance import check as check_module
        from checkpoint.maintenance import compact, repair
        from checkpoint.storage import index
else:
    from checkpoint import CheckpointedRunner, CheckpointError, DamagedRecord, JournalLost, checkpointed
    from checkpoint.maintenance import check as check_module
    from checkpoint.maintenance import compact, repair
    from checkpoint.storage import index

from checkpoint.catalog.registry import REGISTRY
from checkpoint.storage.files import index_path
from checkpoint.storage.reader import Reader

__all__ = ["DICTIONARY", "RESULTS", "Wrong", "check_input", "mutate", "place", "split"]

NAME = "j"
VERSION = "v"
SECONDS = 20  # for one input: none takes a tenth of it
MEMORY = 200 << 20  # more than the least that an input takes
MOST = 2000  # records that cannot be read
MESSAGE = 2000  # characters; what a message quotes is shortened


class Wrong(AssertionError):
    """The law was broken."""


# --- planted lines ---------------------------------------------------------------------------------------------------


class Planted(NamedTuple):
    """A line whose key and value are known: `value` is what is read, FORGOTTEN where it forgets the key."""

    version: str
    key: Any
    value: Any
    line: bytes


FORGOTTEN = object()
_DIGEST = "04ed36082cf1cab10efb8b64d26ba519"  # of the version "v"; made sure of below
_REST = b',"timestamp":"2026-01-01T00:00:00.000000+00:00"%b,"input":"00000000000000%02x","session":"5e551014"'


def sealed(head: bytes) -> bytes:
    """A line with the right checksum; what the format says, told again."""
    return head + b',"crc":"%08x"}' % zlib.crc32(head)


def _line(key: bytes, field: bytes, version: str = "", number: int = 0) -> bytes:
    named = b',"version":"%b"' % version.encode() if version else b""
    return sealed(b'{"key":%b,%b%b' % (key, field, _REST % (named, number)))


_TUPLE = b'{"$tuple":["planted 1",1]}'
NEW = "saved anew"
_LONG = "x" * 5000
_TEXT = b'"result":{"text":"a\xe2\x80\xa8b","n":[1,null]}'
RESULTS = (
    Planted("", "planted 0", {"text": "a\u2028b", "n": [1, None]}, _line(b'"planted 0"', _TEXT)),
    Planted("", ("planted 1", 1), (1, -0.0), _line(_TUPLE, b'"result":{"$tuple":[1,-0.0]}', "", 1)),
    Planted("", "planted 2", None, _line(b'"planted 2"', b'"result":null', "", 2)),
    Planted("", "planted 0", "another", _line(b'"planted 0"', b'"result":"another"', "", 3)),
    Planted("", "planted 0", FORGOTTEN, _line(b'"planted 0"', b'"forgotten":true', "", 4)),
    Planted(_DIGEST, "planted 5", [5], _line(b'"planted 5"', b'"result":[5]', _DIGEST, 5)),
    Planted(_DIGEST, "planted 0", "versioned", _line(b'"planted 0"', b'"result":"versioned"', _DIGEST, 6)),
    Planted("", "planted 7", _LONG, _line(b'"planted 7"', b'"result":"%b"' % _LONG.encode(), "", 7)),
    Planted("", "planted 2", {"again": b"2"}, _line(b'"planted 2"', b'"result":{"again":{"$bytes":"Mg=="}}', "", 8)),
    Planted("", ("planted 1", 1), FORGOTTEN, _line(_TUPLE, b'"forgotten":true', "", 9)),
)  # fmt: skip
ERRORS = (
    Planted("", "failed 0", "boom", _line(b'"failed 0"', b'"error":"boom"')),
    Planted("", "failed 1", "", _line(b'"failed 1"', b'"error":""', "", 1)),
    Planted(_DIGEST, "failed 0", "under v", _line(b'"failed 0"', b'"error":"under v"', _DIGEST, 2)),
    Planted("", "failed 0", FORGOTTEN, _line(b'"failed 0"', b'"forgotten":true', "", 3)),
)
UNSAVED = (
    Planted("", "kept 0", None, _line(b'"kept 0"', b'"repr":"<object>","error":"why"')),
    Planted(_DIGEST, "kept 1", None, _line(b'"kept 1"', b'"pickle":"gASVBQAAAAAAAABLAS4=","error":"why"', _DIGEST, 1)),
)
JOURNALS = {"R": RESULTS, "E": ERRORS, "U": UNSAVED}


def mention(key: Any) -> bytes:
    """What stands in each line that may be of the key."""
    return str(key[0] if isinstance(key, tuple) else key).encode()


class Words(NamedTuple):
    """The last words on the planted keys, by (version, key), and what is known of other lines that may be theirs.

    Attributes:
        certain: the value, where no later line than the planted one may be of the key.
        open: mentions that some line makes which is no planted one, but may be a record.
    """

    certain: dict[tuple[str, Any], Any]
    open: set[bytes]


UNJUDGED = Words({}, {mention(entry.key) for entry in RESULTS})
KEYS = list(dict.fromkeys(planted.key for planted in RESULTS))


# --- an input ---------------------------------------------------------------------------------------------------------


class Files(NamedTuple):
    """The files of an input; None where there is none."""

    journals: dict[str, bytes | None]
    meta: bytes | None
    segment: bytes | None


def split(data: bytes) -> Files:
    """The files that an input stands for."""
    parts = re.split(rb"~([REUMI])", b"~R" + data if data[:1] != b"~" or data[1:2] not in b"REUMI" else data)
    found: dict[str, bytes] = {}
    for name, content in zip(parts[1::2], parts[2::2], strict=True):
        found[name.decode()] = found.get(name.decode(), b"") + content
    journals = {kind: spelled_out(found[kind], lines) if kind in found else None for kind, lines in JOURNALS.items()}
    return Files(journals, found.get("M"), found.get("I"))


def spelled_out(content: bytes, planted: tuple[Planted, ...]) -> bytes:
    """A journal's bytes, with its planted lines and right checksums."""

    def plant(match: re.Match[bytes]) -> bytes:
        number = match[1][0] - ord("0")
        return planted[number % len(planted)].line

    lines = []
    for line in re.sub(rb"~([0-9])", plant, content).split(b"\n"):
        head, seals, rest = line.partition(b"~!")
        lines.append(sealed(head) + rest if seals else line)
    return b"\n".join(lines)


def put(files: Files, directory: Path) -> None:
    """These files, and no others, are in the directory."""
    for entry in os.scandir(directory):
        os.unlink(entry.path)
    names = {"R": f"{NAME}_results.jsonl", "E": f"{NAME}_errors.jsonl", "U": f".{NAME}_unsaved.jsonl"}
    for kind, content in files.journals.items():
        if content is not None:
            (directory / names[kind]).write_bytes(content)
    if files.meta is not None:
        (directory / f"{NAME}_meta.json").write_bytes(files.meta)
    if files.segment is not None:
        put_index(files.segment, directory / names["R"], files.journals["R"] or b"")


def put_index(content: bytes, journal: Path, data: bytes) -> None:
    """The index file beside a journal."""
    path = index_path(journal)
    mode, after = content[:1], content[2:]
    if mode not in (b"w", b"s") or not data:
        path.write_bytes(content)
        return
    lines = data.splitlines(keepends=True)
    earlier = journal.with_name(".earlier.jsonl")
    earlier.write_bytes(b"".join(lines[: content[1]] if len(content) > 1 else lines))
    known, reader = index.Index(), Reader.open(earlier)
    assert reader is not None
    known.scan(reader)
    earlier.unlink()
    known.snapshot().write(path, reader)
    changed = bytearray(path.read_bytes())
    for place, byte in struct.iter_unpack("<HB", after[: len(after) // 3 * 3]):
        changed[place % len(changed)] = byte
    path.write_bytes(resealed(bytes(changed)) if mode == b"s" else changed)


def resealed(data: bytes) -> bytes:
    """An index file with the right checksums in its header, of its pages and of its runs."""
    size = (data.find(b"\n") // 4096 + 1) * 4096 or 4096  # of the header
    text, _, _ = data[:size].rstrip(b" \n").rpartition(b" ")
    header = (text + b" %08x" % zlib.crc32(text)).ljust(size - 1)[: size - 1] + b"\n"
    rest = bytearray(data[size:])

    def check(number: int, data: bytes) -> int:
        return zlib.crc32(data, (salt ^ number) + 1 & 0xFFFFFFFF)

    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, struct.error, RecursionError):
        about = json.loads(text)
        salt = zlib.crc32(repr(tuple(about[name] for name in ("covered", "tail", "modified", "entries"))).encode())
        pages = about["pages"]
        at = start = 12 * (pages + 1)
        for page in range(min(pages, 1000)):
            (first, _), (last, _) = (struct.unpack_from("<QI", rest, 12 * number) for number in (page, page + 1))
            at = start + 34 * last
            struct.pack_into("<I", rest, 12 * page + 8, check(page, bytes(rest[start + 34 * first : at])))
        for number in range(min(about["runs"], 1000)):
            head = bytes(rest[at : at + 10])
            keys, size, _ = struct.unpack("<IIH", head)
            end = at + 14 + size + 16 * keys
            struct.pack_into("<I", rest, at + 10, check(number, head + bytes(rest[at + 14 : end])))
            at = end
    return header + bytes(rest)


# --- what must be there ----------------------------------------------------------------------------------------------


def words_of(content: bytes | None, planted: tuple[Planted, ...]) -> Words:
    """Read without the library."""
    known = {entry.line: entry for entry in planted}
    mentions = {mention(entry.key) for entry in planted}
    words = Words({}, set())
    for line in (content or b"").split(b"\n"):
        entry = known.get(line.rstrip(b"\r").removeprefix(b"\xef\xbb\xbf"))
        if entry is not None:
            words.certain[entry.version, entry.key] = entry.value
            continue
        for text in mentions & set(_mentioned(line, mentions)):
            for place in [place for place in words.certain if mention(place[1]) == text]:
                del words.certain[place]
            if may_be_record(line):
                words.open.add(text)
    return words


def _mentioned(line: bytes, mentions: set[bytes]) -> Iterator[bytes]:
    plain = re.sub(rb"\\u00([0-7][0-9a-fA-F])", lambda match: bytes([int(match[1], 16)]), line)
    return (text for text in mentions if text in plain)


def may_be_record(line: bytes) -> bool:
    """Whether its checksum is right, or it may be one without."""
    line = line.rstrip(b"\r").removeprefix(b"\xef\xbb\xbf")
    if sealed(line[:-18]) == line:
        return True
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and not fields.get("crc")


def same(one: Any, other: Any) -> bool:
    """Types at every depth, NaN and -0.0 told apart."""
    return type(one) is type(other) and repr(one) == repr(other)


# --- the law ----------------------------------------------------------------------------------------------------------


def check_input(data: bytes, directory: Path, *, thorough: bool = True) -> None:
    """Open what the input stands for, read all of it, write, repair, compact, and open it again.

    Args:
        data: the input.
        directory: is emptied.
        thorough: whether it is repaired and compacted too.

    Raises:
        Wrong: a value is wrong, or an intact line is not read.
        Exception: any that is no own error.
    """
    files = split(data)
    put(files, directory)
    judged = files.segment is None or files.segment[:1] != b"s"
    results = words_of(files.journals["R"], RESULTS) if judged else UNJUDGED
    errors = words_of(files.journals["E"], ERRORS)
    unsaved = words_of(files.journals["U"], UNSAVED)
    if any(content is not None for content in (files.meta, *files.journals.values())):
        found = check_module.check(NAME, directory)
        examine(found)
        if any(journal.fault for journal in found.journals):
            check_refused(directory)
            return
    with runners(directory) as (none, versioned, latest):
        for runner, version in ((none, ""), (versioned, _DIGEST)):
            read_all(runner, judged=judged)
            check_words(runner, version, results, errors)
            check_unsaved(runner, version, unsaved)
        read_all(latest, judged=judged)
        expected = write(none, results)
    with CheckpointedRunner(NAME, directory, version=None) as none:
        check_words(none, "", expected, errors)
    if files.meta is not None:
        map_it(directory)
    if not thorough:
        return
    examine(compact.compact(NAME, directory))
    examine(repair.repair(NAME, directory))
    found = check_module.check(NAME, directory)
    examine(found)
    require(found.is_sound, "a repair leaves no damage")
    with runners(directory) as (none, versioned, latest):
        if judged:
            check_counts(none, found)
        read_all(latest, judged=judged)
        check_words(none, "", expected, errors)
        check_words(versioned, _DIGEST, expected, errors)


def check_refused(directory: Path) -> None:
    """A journal that is none is an error at every door, changes nothing, and can be cleared."""
    before = {path.name: path.read_bytes() for path in directory.glob("*.jsonl")}
    with runners(directory) as each:
        for runner in each:
            for door in (
                CheckpointedRunner.progress,
                CheckpointedRunner.get_all_results,
                CheckpointedRunner.get_all_errors,
                lambda runner: next(runner.iterate([1])),
                lambda runner: runner.save_result(1, 1),
                lambda runner: runner.clear([1]),
            ):
                check_refusal(door, runner)
        there = {path.name: path.read_bytes() for path in directory.glob("*.jsonl")}
        require(there == before, "a journal that is none is changed")
        each[0].clear()
        each[0].save_result("cleared", 1)
        require(each[0].get_all_results() == {"cleared": 1}, "what is cleared is there")


def check_refusal(door: Callable[[CheckpointedRunner], object], runner: CheckpointedRunner) -> None:
    """It raises what a journal that is none raises."""
    try:
        door(runner)
    except JournalLost as error:
        require(len(str(error)) < MESSAGE, "a message is long")
    else:
        raise Wrong("a journal that is none is read or written")


@contextlib.contextmanager
def runners(directory: Path) -> Iterator[tuple[CheckpointedRunner, CheckpointedRunner, CheckpointedRunner]]:
    """One under no version, one under "v", one that follows the last record."""
    with (
        CheckpointedRunner(NAME, directory, version=None) as none,
        CheckpointedRunner(NAME, directory, version=VERSION) as versioned,
        CheckpointedRunner(NAME, directory) as latest,
    ):
        # The short one is that of earlier versions of the library: it goes on where no line has the long one.
        require(versioned.records.version in (_DIGEST, _DIGEST[:16]), "the digest of a version is another now")
        yield none, versioned, latest


def check_counts(runner: CheckpointedRunner, found: check_module.Soundness) -> None:
    """What `check` counts is what the store does."""
    store, whole = runner.records.store, runner.records.checkpoint
    if store.own.results.index.has_loose or store.own.errors.index.has_loose:
        return
    for told in found.versions:
        there = whole.results.count(told.version), whole.failed_count(told.version)
        require(there == (told.results, told.errors), f"`check` counts {told}, the store {there}")


def require(holds: bool, what: str) -> None:
    """Raises `Wrong` where it does not."""
    if not holds:
        raise Wrong(what)


def examine(found: Any) -> None:
    """What upkeep tells can be told, and is JSON."""
    if found is not None:
        str(found)
        json.dumps(found.to_json())


def read_all(runner: CheckpointedRunner, *, judged: bool = True) -> None:
    """Everything, in each way; each damaged record is told once."""
    before = runner.progress()[0]
    for read in (runner.get_all_results, runner.get_all_errors, lambda: list(runner.unsaved)):
        exhaust(runner, read, judged=judged)
    if not judged:
        return
    require(len(runner.unsaved) == len(list(runner.unsaved)), "the number of values kept aside")
    results, done = runner.get_all_results(), runner.progress()[0]
    require(len(results) <= done <= before, f"{len(results)} results, {done} counted, {before} before")
    if not runner.records.store.own.results.index.has_loose:  # one is counted beside the record that wins over it
        require(len(results) == done, f"{len(results)} results, {done} counted")
    for key, value in list(results.items())[:4]:
        require(runner.is_completed(key), f"{key!r} is read, and not done")
        require(same(runner.get_result(key), value), f"{key!r} is read in two ways")


def exhaust(runner: CheckpointedRunner, read: Callable[[], object], *, judged: bool) -> None:
    """Read until all of it is: damage is told once, and what cannot be built by its key too, until it is cleared."""
    seen = set()
    for _ in range(MOST):
        try:
            read()
            return
        except DamagedRecord as error:
            require(len(str(error)) < MESSAGE, "a message is long")
            require(error.offset not in seen or not judged, f"told twice: {error}")
            seen.add(error.offset)
        except CheckpointError as error:
            require(len(str(error)) < MESSAGE, "a message is long")
            if not judged:
                return
            runner.clear([unbuildable_key(runner)])
    require(not judged, "there is no end to what cannot be read")


def unbuildable_key(runner: CheckpointedRunner) -> Any:
    """A key whose intact value cannot be built."""
    for key in runner.records.iter_keys():
        try:
            runner.get_result(key)
        except DamagedRecord:
            raise Wrong("a damaged record was told as another error") from None
        except CheckpointError:
            return key
    raise Wrong("nothing that is read by its key fails as all of them do")


def ask(runner: CheckpointedRunner, key: Any) -> Any:
    """The key's value; None where there is none that can be read."""
    try:
        return runner.get_result(key)
    except CheckpointError:
        return None


def check_words(runner: CheckpointedRunner, version: str, results: Words, errors: Words) -> None:
    """Each certain word is read, and no value comes from nowhere."""
    for key in dict.fromkeys([*KEYS, *(key for _, key in results.certain)]):
        word = results.certain.get((version, key), results)
        if word is results:
            found = ask(runner, key)
            origins = [entry.value for entry in RESULTS if (entry.version, entry.key) == (version, key)]
            known = found is None or mention(key) in results.open or any(same(found, value) for value in origins)
            require(known, f"{key!r} has a value that no intact line gives it: {found!r:.200}")
        elif word is FORGOTTEN:
            require(not runner.is_completed(key), f"{key!r} is done, and was forgotten")
            require(ask(runner, key) is None, f"{key!r} has a value, and was forgotten")
        else:
            require(runner.is_completed(key), f"{key!r} is not done")
            found = runner.get_result(key)
            require(same(found, word), f"{key!r} is {found!r:.200}")
    told = runner.get_all_errors()
    for (of, key), word in errors.certain.items():
        if of == version and not runner.is_completed(key):
            require(told.get(key) == (None if word is FORGOTTEN else word), f"the error of {key!r}: {told.get(key)!r}")


def check_unsaved(runner: CheckpointedRunner, version: str, unsaved: Words) -> None:
    """Each value that was kept aside is listed, for as long as its key has no result."""
    listed = list(runner.unsaved)
    for (of, key), _ in unsaved.certain.items():
        if of == version and not runner.is_completed(key):
            require(key in listed, f"{key!r} is not listed as kept aside")


def write(runner: CheckpointedRunner, results: Words) -> Words:
    """Go on with the checkpoint: what is acknowledged is what is expected from then on."""
    certain = dict(results.certain)
    runner.save_result("fresh", [1])
    certain["", "fresh"] = [1]
    runner.save_result("planted 7", NEW)
    certain["", "planted 7"] = NEW
    runner.save_error("fresh error", "why")
    runner.clear(["planted 2", "unknown"])
    if results is not UNJUDGED:  # an index that lies may hide what there is to forget
        certain["", "planted 2"] = FORGOTTEN
    return Words(certain, results.open)


def map_it(directory: Path) -> None:
    """A decorated function goes by what meta says of code and versions; whatever that is."""
    function = checkpointed(NAME, checkpoint_dir=directory)(_double)
    try:
        function.plan(["fresh", "mapped"])
        require(function.map(["mapped", "more"], progress=False) == ["mappedmapped", "moremore"], "mapped otherwise")
        require(function.results["more"] == "moremore", "not there after it was mapped")
        function.clear(["mapped", "more"])
    finally:
        function.runner.close()


def _double(item: str) -> str:
    return item * 2


# --- mutations, without anything that guides them ---------------------------------------------------------------------

DICTIONARY = (
    *(b"~" + bytes([byte]) for byte in b"REUMI0123456789!"),
    b"\n", b"\r\n", b"\0" * 20, b"\xef\xbb\xbf", b"\xff", b"\xe2\x80\xa8", b"~!\n", b"}\n", b'"}', b'{"key":',
    b'{"key":"planted 0","result":', b'{"key":"failed 0","error":', b',"crc":"00000000"}', b',"result":', b'"error":',
    b',"forgotten":true', b',"timestamp":"', b',"version":"', b',"version":"04ed36082cf1cab1"', b',"code":"',
    b',"input":"', b'"input":"zz"', b'"input":"ffffffffffffffff"', b',"session":"', b'"pickle":"!"', b'"attempts":-1',
    b'{"$tuple":[', b'{"$class":"X",', b'{"$set":[[1]]}', b'{"$float":"nan"}', b'{"$int":"zz"}', b'{"$map":[[[],1]]}',
    b'{"$ndarray":"', b'{"$datetime":"', b'{"$uuid":1}', b'{"$', b"[" * 300, b'{"a":' * 300, b"9" * 700, b"1e999",
    b"NaN", b"-0.0", b"\\ud800", b"null", b"true", b"1.0", b"[]", b"{}", b'""', b'"codes":{"', b'"versions":["',
    b'"total_items":', b'"completed_items":', b'"pages":', b'"entries":', b'"covered":', b'"damaged":[[0,"x"]]',
)  # fmt: skip


def mutate(chance: random.Random, inputs: list[bytes]) -> bytes:
    """An input that is one of these with some changes."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.choice((1, 1, 2, 3, 5, 8))):
        at, end = chance.randrange(len(data) + 1), chance.randrange(len(data) + 1)
        start, stop = min(at, end), min(max(at, end), min(at, end) + chance.choice((1, 4, 40, 400)))
        how = chance.randrange(8)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        elif how == 1:
            del data[start:stop]
        elif how == 2:
            data[at:at] = data[start:stop]
        elif how == 3:
            data[start:stop] = chance.choice(DICTIONARY)
        elif how == 4:
            data[at:at] = chance.choice(DICTIONARY)
        elif how == 5:
            other = chance.choice(inputs)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        elif how == 6:
            lines = bytes(data).split(b"\n")
            chance.shuffle(lines)
            data = bytearray(b"\n".join(lines))
        elif data:
            data[at % len(data)] = chance.randrange(256)
    return bytes(data[:20_000])


# --- the command ------------------------------------------------------------------------------------------------------


class _Heard(logging.Handler):
    """Each message is made, as someone who listens would have it."""

    def emit(self, record: logging.LogRecord) -> None:
        require(len(record.getMessage()) < MESSAGE, "a message is long")


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """A directory in memory, or below $TMPDIR; syncing costs nothing, no thread tends the store, messages are made."""
    heard = logging.getLogger("checkpoint")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) and "TMPDIR" not in os.environ else None
    directory = Path(tempfile.mkdtemp(prefix="checkpoint-fuzzing-", dir=memory))
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        for of, names in ((os, ("fsync", "fdatasync")), (REGISTRY, ("maintain",))):
            for name in filter(partial(hasattr, of), names):
                undo.enter_context(mock.patch.object(of, name, _nothing))
        # Nobody else writes, and /proc/locks is slow.
        undo.enter_context(mock.patch.object(check_module, "writer_of", _nothing))
        undo.enter_context(mock.patch.multiple(heard, handlers=[_Heard(logging.INFO)], propagate=False))
        undo.callback(heard.setLevel, heard.level)
        heard.setLevel(logging.INFO)
        yield directory


def _nothing(*_: object) -> None:
    pass


def _late(number: int, frame: FrameType | None) -> None:
    raise Wrong(f"it takes more than {SECONDS} seconds")


def _peak() -> int:
    """Bytes that this process has taken at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


def run(inputs: Iterable[bytes], directory: Path, keep: Path, every: int = 1) -> int:
    """Check each, and `every` so many thoroughly; how many break the law. Those are kept, and told with tracebacks."""
    wrong, least = 0, 0
    signal.signal(signal.SIGALRM, _late)
    for number, data in enumerate(inputs):
        signal.alarm(SECONDS)
        try:
            check_input(data, directory, thorough=number % every == 0)
            least = least or _peak()
            require(_peak() < least + MEMORY, f"memory: {_peak() - least:,} bytes more than the first one took")
        except Exception as error:
            wrong += 1
            path = keep / f"crash-{hashlib.sha1(data).hexdigest()}"
            path.write_bytes(data)
            logging.getLogger("fuzzing").error("%s: %r", path, error, exc_info=True)
        finally:
            signal.alarm(0)
    return wrong


def main() -> None:
    """The command."""
    logging.basicConfig(format="%(message)s")
    parser = argparse.ArgumentParser(description="Arbitrary bytes as the files of a checkpoint.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=0, help="how many mutations")
    parser.add_argument("--keep", type=Path, default=Path(), help="where what breaks the law is written")
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    if not options.files:
        parser.error("give at least one input, such as those of tests/corpus")
    given = [path.read_bytes() for path in options.files]
    chance = random.Random(options.seed)
    with place() as directory:
        wrong = run(given, directory, options.keep)
        wrong += run((mutate(chance, given) for _ in range(options.count)), directory, options.keep, every=3)
    print(f"seed {options.seed}: {len(given)} inputs and {options.count} mutations, {wrong} break the law")
    sys.exit(1 if wrong else 0)


def fuzz() -> None:
    """The command, guided by coverage: it runs until something breaks the law, or the time is over."""
    options = [option for option in sys.argv if option != "--atheris"]
    entries = ['"' + "".join(f"\\x{byte:02X}" for byte in entry[:64]) + '"' for entry in DICTIONARY]
    with place() as directory, tempfile.NamedTemporaryFile("w", suffix=".dict") as words:
        words.write("\n".join(entries))
        words.flush()
        limits = [f"-timeout={SECONDS}", "-rss_limit_mb=1000", "-max_len=8192", f"-dict={words.name}"]
        atheris.Setup([options[0], *limits, *options[1:]], lambda data: check_input(data, directory))
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz() if "--atheris" in sys.argv else main()
