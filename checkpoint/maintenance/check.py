"""What a checkpoint's files are worth, and which of a journal's lines count.

The promise: it only reads, beside whoever writes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from checkpoint.catalog.locate import aside_name, locate, parts_of, paths_of, size_of, writer_of
from checkpoint.catalog.merged_log import allow_files
from checkpoint.catalog.paths import command_line, is_mirror, lost_journal
from checkpoint.catalog.view import VersionCount
from checkpoint.errors import plural, printable, quote
from checkpoint.maintenance.audit import Audit, Damage, lines_at
from checkpoint.storage.condition import SYNCED, fault_of, held_records, is_most, loss_of, synced_bytes
from checkpoint.storage.files import index_path, read_object
from checkpoint.storage.index_file import file_state
from checkpoint.storage.journal import Journal
from checkpoint.storage.meta import meta_in
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import parse, with_fields
from checkpoint.storage.spending import Cost, spent_line
from checkpoint.values.keys import Key, plain_json
from checkpoint.words import size_in_words

__all__ = ["JournalState", "Soundness", "check", "explained_lines", "kept_lines", "leftovers_of"]


_KINDS = ("results", "errors", "unsaved")
_SHOWN = 10


# --- what is told ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class JournalState:
    """What one journal holds.

    Attributes:
        path: the file.
        missing: whether there is none.
        size: in bytes.
        lines: all of them.
        superseded: (lines, bytes) that `compact` would leave out.
        without_checksum: lines that cannot be verified: written by hand, or by schema 1.0.0.
        unreadable: intact values that cannot be decoded here, such as for want of a package: no damage.
        example: the first of these, in words.
        torn: (offset, bytes) of what follows the last newline, where it is no whole record.
        damage: lines that are damaged.
        lost: (version, key) of each record that counted and is damaged.
        outdated: (version, key) of each damaged line in whose place an older record of the key counts.
        fault: why the file is not the journal that it should be, "" where it is; then nothing else is said of it.
        index: what the index file is worth; it is rebuilt.
        aside: bytes of the file that keeps what repairs set aside.
    """

    path: str
    missing: bool
    size: int
    lines: int
    superseded: tuple[int, int]
    without_checksum: int
    unreadable: int
    example: str
    torn: tuple[int, int] | None
    damage: tuple[Damage, ...]
    lost: tuple[tuple[str, Key], ...]
    outdated: tuple[tuple[str, Key], ...]
    index: Literal["sound", "stale", "missing", "damaged"]
    aside: int
    fault: str = ""

    @property
    def unnamed(self) -> int:
        """How many damaged lines hold no key that can be read."""
        return sum(not damage.keys for damage in self.damage)

    def to_json(self) -> dict[str, Any]:
        """As `Soundness.to_json` has it."""
        return {
            "path": self.path,
            "missing": self.missing,
            "bytes": self.size,
            "lines": self.lines,
            "superseded_lines": self.superseded[0],
            "superseded_bytes": self.superseded[1],
            "without_checksum": self.without_checksum,
            "unreadable": self.unreadable,
            "torn": self.torn and {"offset": self.torn[0], "bytes": self.torn[1]},
            "damage": [damage.to_json() for damage in self.damage],
            "unnamed": self.unnamed,
            "lost": [{"version": version, "key": plain_json(key)} for version, key in self.lost],
            "outdated": [{"version": version, "key": plain_json(key)} for version, key in self.outdated],
            "index": self.index,
            "aside_bytes": self.aside,
            "fault": self.fault or None,
        }


@dataclass(frozen=True, slots=True)
class Soundness:
    """What `check` found. Its `str` is for people, `to_json` for programs.

    Attributes:
        name: the checkpoint's.
        directory: where it is.
        results, errors, unsaved: its journals.
        versions: what counts, by version, in the order of their names.
        meta: what the file of counts is worth; it is rebuilt.
        writer: who is writing (pid, host, since, where they are known), {} where that cannot be told here, or None.
        leftovers: (path, bytes) of temporary files that a killed process left.
        shards: of each shard the same, its versions and labels left out.
    """

    name: str
    directory: str
    results: JournalState
    errors: JournalState
    unsaved: JournalState
    versions: tuple[VersionCount, ...]
    meta: Literal["sound", "missing", "garbage"]
    writer: dict[str, Any] | None
    leftovers: tuple[tuple[str, int], ...]
    shards: tuple[Soundness, ...] = ()

    @property
    def journals(self) -> tuple[JournalState, JournalState, JournalState]:
        """All three; those of shards are theirs."""
        return self.results, self.errors, self.unsaved

    @property
    def is_sound(self) -> bool:
        """Whether no line is damaged and no journal lost; a torn tail is normal, meta and index files are rebuilt."""
        return not any(journal.damage or journal.fault for part in (self, *self.shards) for journal in part.journals)

    @property
    def _faults(self) -> list[str]:
        return [journal.fault for part in (self, *self.shards) for journal in part.journals if journal.fault]

    @property
    def lost(self) -> tuple[Key, ...]:
        """The keys of damaged results, which are run again unless another shard has them. Each once."""
        return tuple(dict.fromkeys(key for part in (self, *self.shards) for _, key in part.results.lost))

    def to_json(self) -> dict[str, Any]:
        """A JSON object; these names stay.

        `name`, `directory`, `sound`; `journals`: of `results`, `errors` and `unsaved` each an object with `path`,
        `missing`, `bytes`, `lines`, `superseded_lines`, `superseded_bytes`, `without_checksum`, `unreadable`, `torn`
        (null, or `offset` and `bytes`), `damage` (a list of `line`, `offset`, `bytes`, `why`, `keys`), `unnamed`,
        `lost` and `outdated` (lists of `version`, `key`), `index`, `aside_bytes` and `fault`; `versions` (a list of
        `version`, `label`, `results`, `errors`); `meta`; `writer`; `leftovers` (a list of `path`, `bytes`); `shards`, a
        list of such objects. Keys stand as in a journal.
        """
        return {
            "name": self.name,
            "directory": self.directory,
            "sound": self.is_sound,
            "journals": {kind: state.to_json() for kind, state in zip(_KINDS, self.journals, strict=True)},
            "versions": [version.to_json() for version in self.versions],
            "meta": self.meta,
            "writer": self.writer,
            "leftovers": [{"path": path, "bytes": size} for path, size in self.leftovers],
            "shards": [part.to_json() for part in self.shards],
        }

    def __str__(self) -> str:
        parts = (self, *self.shards)
        normal = [line for part in parts for line in part._normal()]
        damage = [line for part in parts for line in part._damage()]
        return "\n".join([*self._summary(), *normal, *damage, *self._advice()])

    def _summary(self) -> Iterator[str]:
        results, errors = (sum(getattr(v, kind) for v in self.versions) for kind in ("results", "errors"))
        count = sum(len(journal.damage) for part in (self, *self.shards) for journal in part.journals)
        of = f" and {plural(len(self.shards), 'shard')}" if self.shards else ""
        verdict = f"{plural(count, 'damaged line')}" if count else "sound"
        if self._faults:
            verdict = "not what was written"
        told = f"{plural(results, 'result')} and {plural(errors, 'error')}"
        yield f"checkpoint {self.name!r}{of} in {self.directory}: {verdict}; {told}, every line read"
        if len(self.versions) > 1:
            for version in self.versions:
                shown = quote(version.label, 60) if version.label is not None else printable(version.version) or "None"
                yield f"  version {shown}: {plural(version.results, 'result')}, {plural(version.errors, 'error')}"
        yield from self._faults

    def _normal(self) -> Iterator[str]:
        """What is no damage."""
        for journal in self.journals:
            if journal.torn:
                yield f"{journal.path}: {_of_torn(journal.torn[1], self.writer)}"
            if journal.without_checksum:
                lines = plural(journal.without_checksum, "line")
                yield f"{journal.path}: {lines} without checksum, written by hand or by schema 1.0.0: not verified"
            if journal.unreadable:
                what = f"{plural(journal.unreadable, 'intact value')} cannot be decoded here"
                yield f"{journal.path}: {what}: {journal.example}"
            if journal.index in ("stale", "damaged"):
                yield f"{journal.path}: its index file is {journal.index}; it is rebuilt, and nothing is lost by it"
            if journal.aside:
                kept = f"{size_in_words(journal.aside)} in {aside_name(journal.path)}"
                yield f"{journal.path}: repairs have set bytes aside ({kept})"
        if not self.unsaved.missing and self.unsaved.lines:
            yield f"{self.unsaved.path} holds values that could not be encoded: see .unsaved"
        if self.meta != "sound":
            yield f"meta is {self.meta}; the next writer writes it anew"

    def _damage(self) -> Iterator[str]:
        for what, journal in zip(("results", "errors", "kept values"), self.journals, strict=True):
            if not journal.damage or journal.fault:
                continue
            yield from map(str, journal.damage[:_SHOWN])
            if len(journal.damage) > _SHOWN:
                yield f"… and {len(journal.damage) - _SHOWN:,} more, which --json lists"
            if journal.lost:
                again = ", to be run again" if journal is self.results else ""
                yield f"{what} that are lost{again}: {_named(journal.lost)}"
            if journal.outdated:
                yield f"{what} in whose place older ones count, unless you clear these keys: {_named(journal.outdated)}"
            if journal.unnamed:
                again = "; those that were lost with them are run again" if journal is self.results else ""
                yield f"damaged lines whose key cannot be read: {journal.unnamed:,}{again}"

    def _advice(self) -> Iterator[str]:
        if not self.is_sound and not self._faults:
            yield f"to set damaged lines aside: {self._command('check')} --repair; to compute what is lost, run the job"
        parts = (self, *self.shards)
        lines, size = (sum(journal.superseded[n] for part in parts for journal in part.journals) for n in (0, 1))
        if lines or any(part.leftovers for part in parts):
            size += sum(size for part in parts for _, size in part.leftovers)
            what = f"{plural(lines, 'superseded line')}" if lines else "temporary files"
            yield f"to free {size_in_words(size)} ({what}): {self._command('compact')}"

    def _command(self, verb: str) -> str:
        return command_line(verb, self.name, self.directory)


def _named(found: Sequence[tuple[str, Key]]) -> str:
    keys = [quote(key, 60) for _, key in found[:_SHOWN]]
    return f"{len(found):,} ({', '.join(keys)}{', …' if len(found) > _SHOWN else ''})"


def _of_torn(size: int, writer: dict[str, Any] | None) -> str:
    cut = f"the last write was cut ({plural(size, 'byte')}); the next writer sets it aside"
    if writer is None:
        return cut
    who = f"process {writer['pid']}" if "pid" in writer else "another process"
    return f"its last line is being written by {who}" if writer else f"{cut}, unless it is being written just now"


# --- check -----------------------------------------------------------------------------------------------------------


def check(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Soundness:
    """Read every line of a checkpoint and tell what is sound, what is damaged, and what is lost by that.

    It takes no lock and changes nothing; others may write meanwhile. Memory grows with keys, not values.

    Args:
        name: the checkpoint's.
        checkpoint_dir: the directory; default ``$CHECKPOINT_DIR``, else ``./checkpoints``.

    Raises:
        InvalidName: as for a runner.
        StoreError: there is no such checkpoint, or it cannot be read.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_result(3, 9)
        >>> found = check("squares")
        >>> found.is_sound, found.results.lines, found.lost
        (True, 1, ())
    """
    directory = locate(name, checkpoint_dir)
    prefixes = parts_of(name, directory).values()
    allow_files(256 + 3 * len(prefixes))
    is_whole = len(prefixes) == 1
    own, *shards = [_check_one(name, prefix, directory, is_whole=is_whole) for prefix in prefixes]
    parts = (own, *shards)
    labels = {digest: label for part in reversed(parts) for digest, label in part.labels.items()}
    results, errors = ([ledger for part in parts if (ledger := part.ledgers[kind]) is not None] for kind in (0, 1))
    versions = tuple(_count_versions(results, errors, labels))
    return replace(own.found, versions=versions, shards=tuple(part.found for part in shards))


@dataclass(frozen=True, slots=True)
class _Checked:
    """What `check` found of the journals of one shard."""

    found: Soundness
    ledgers: tuple[Audit | None, Audit | None]  # of results and errors
    labels: dict[str, Any]


def _check_one(name: str, prefix: str, directory: Path, *, is_whole: bool) -> _Checked:
    paths, meta_path = paths_of(prefix, directory), directory / f"{prefix}_meta.json"
    before = meta_in(meta_path)
    readers = [Reader.open(path) for path in paths]
    ledgers = [_ledger(reader, decode=path is paths[0]) for path, reader in zip(paths, readers, strict=True)]
    states = [_state_of(path, reader, ledger) for path, reader, ledger in zip(paths, readers, ledgers, strict=True)]
    if meta_in(meta_path) != before or is_mirror(directory):
        before = {}  # it was written meanwhile, or the rest is elsewhere: it says nothing of what was read
    elif SYNCED not in before and not is_whole:
        before = {}  # it counts the results of shards too
    for kind, (path, reader) in enumerate(zip(paths, readers, strict=True)):
        synced = synced_bytes(before, _KINDS[kind])
        fault = None if reader is None else fault_of(reader, held_records=held_records(before, _KINDS[kind]))
        if fault is None and kind != 1:
            fault = loss_of(reader, synced, before.get("completed_items"))
        if fault is not None:
            states[kind] = replace(states[kind], fault=str(lost_journal(path, fault, name, directory)))
    meta, labels = _read_meta(meta_path)
    found = Soundness(
        name=prefix,
        directory=str(directory),
        results=states[0],
        errors=states[1],
        unsaved=states[2],
        versions=(),
        meta=meta,
        writer=writer_of(directory, prefix),
        leftovers=tuple(leftovers_of(prefix, directory)),
    )
    return _Checked(found, (ledgers[0], ledgers[1]), labels)


def _ledger(reader: Reader | None, *, decode: bool) -> Audit | None:
    return None if reader is None else Audit(reader, decode=decode)


def _state_of(path: Path, reader: Reader | None, ledger: Audit | None) -> JournalState:
    superseded = (0, 0)
    if ledger is not None and reader is not None:
        kept = kept_lines(ledger)
        if kept is not None:
            left = sum(map(len, left_lines(ledger, reader, kept)))
            superseded = (ledger.lines - len(kept), ledger.end - left)
    aside = Journal(path).aside
    return JournalState(
        path=str(path),
        missing=reader is None,
        size=0 if reader is None else reader.size(),
        lines=ledger.lines if ledger else 0,
        superseded=superseded,
        without_checksum=ledger.without_checksum if ledger else 0,
        unreadable=ledger.unreadable if ledger else 0,
        example=ledger.example if ledger else "",
        torn=ledger.torn if ledger else None,
        damage=tuple(ledger.damage) if ledger else (),
        lost=tuple(ledger.lost()) if ledger else (),
        outdated=tuple(ledger.outdated()) if ledger else (),
        index=file_state(index_path(path), reader),
        aside=size_of(aside),
    )


def _count_versions(
    results: Sequence[Audit], errors: Sequence[Audit], labels: dict[str, Any]
) -> Iterator[VersionCount]:
    for version in sorted({version for ledger in (*results, *errors) for version in (*ledger.exact, *ledger.loose)}):
        done = len(_live(results, version))
        failed = _count_failed(version, results, errors)
        if done or failed:
            yield VersionCount(version, labels.get(version), done, failed)


def _live(ledgers: Sequence[Audit], version: str) -> set[tuple[Key, bool]]:
    """(key, whether its line has a checksum) of each key that any of them has; one with a checksum wins."""
    live = {held for ledger in ledgers for held in ledger.live(version)}
    if len(ledgers) > 1 and any(ledger.has_loose for ledger in ledgers):
        texts = {str(key) for key, sealed in live if sealed}
        live = {(key, sealed) for key, sealed in live if sealed or key not in texts}
    return live


def _count_failed(version: str, results: Sequence[Audit], errors: Sequence[Audit]) -> int:
    """How many keys have an error and no result; an error without checksum stands for any key of equal str()."""
    loose = any(ledger.has_loose for ledger in errors)
    texts = {str(key) for ledger in results for key, _ in ledger.live(version)} if loose else set()
    return sum(
        not (any(ledger.has(version, key) for ledger in results) or (not sealed and key in texts))
        for key, sealed in _live(errors, version)
    )


def _read_meta(path: Path) -> tuple[Literal["sound", "missing", "garbage"], dict[str, Any]]:
    """What meta is worth, and what it says that the digests of versions stand for."""
    try:
        meta = read_object(path)
    except FileNotFoundError:
        return "missing", {}
    except (OSError, ValueError):
        return "garbage", {}
    labels = meta.get("versions")
    return "sound", labels if isinstance(labels, dict) else {}


def leftovers_of(name: str, directory: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of temporary files of this checkpoint. This process's own may be in use by another thread."""
    pattern = re.compile(
        rf"\.{re.escape(name)}_(?:(?:results|errors|unsaved)\.(?:pull\.)?tmp"  # as they were named before
        rf"|(?:meta|(?:results|errors|unsaved)(?:\.index|\.damaged|(?:\.first)?\.pull)?)"
        rf"\.(?!{os.getpid()}\.)[0-9]+(?:\.[0-9a-f]+)?\.tmp)"
        rf"|\.{re.escape(name)}\.remote\.(?!{os.getpid()}\.)[0-9]+\.[0-9a-f]+\.tmp"
    )
    for file in sorted(os.listdir(directory)):
        if pattern.fullmatch(file):
            yield str(directory / file), size_of(directory / file)


# --- which lines count -----------------------------------------------------------------------------------------------


class _Named(msgspec.Struct, gc=False):
    """What a line names by digest."""

    code: Any = ""
    version: Any = ""


_decode_named = msgspec.json.Decoder(_Named).decode


def left_lines(ledger: Audit, reader: Reader, kept: list[int]) -> Iterator[bytes]:
    """A compacted journal: what those lines cost that are left out, and the lines that are kept, explained."""
    stays = set(kept)
    left_out: dict[str, Cost] = {}
    for offset, (version, cost) in ledger.costs.items():
        if offset not in stays:
            left_out.setdefault(version, Cost()).add(Cost(cost, 1))
    if left_out:
        yield spent_line(left_out)
    yield from explained_lines(lines_at(reader, kept, ledger.end), ledger, reader, kept)


def explained_lines(chunks: Iterator[bytes], ledger: Audit, reader: Reader, kept: list[int]) -> Iterator[bytes]:
    """The lines that are kept; if one that is left out says what a digest stands for, the next one of it says so.

    Args:
        chunks: the lines that are kept.
        ledger: of all lines.
        reader: of the journal.
        kept: where the lines are that are kept.
    """
    stays = set(kept)
    owed = {note: offset for note, offset in ledger.notes.items() if offset not in stays}
    for chunk in chunks:
        yield b"\n".join([_explain(line, owed, reader) for line in chunk.split(b"\n")]) if owed else chunk


def _explain(line: bytes, owed: dict[tuple[str, str], int], reader: Reader) -> bytes:
    try:
        named = _decode_named(line)
        notes = [note for note in (("code", named.code), ("version", named.version)) if note in owed]
        record = parse(line) if notes else None
    except (ValueError, RecursionError, TypeError):
        return line  # damaged, or empty
    if record is None or not record.crc or record.forgotten:
        return line
    for note in notes:
        says = parse(reader.line_at(owed.pop(note)))
        name, raw = (b"detail", says.detail) if note[0] == "code" else (b"value", says.value)
        line = with_fields(line, b',"%b":%b' % (name, bytes(raw))).rstrip(b"\n")
    return line


def kept_lines(ledger: Audit) -> list[int] | None:
    """Where the lines begin that a compaction leaves; None where it leaves all.

    A journal is left alone in which damaged lines would be most of what is left: it would be taken for none.
    """
    kept = ledger.kept()
    return None if len(kept) == ledger.lines or is_most(len(ledger.damage), len(kept)) else kept
