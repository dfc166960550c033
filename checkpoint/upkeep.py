"""What a checkpoint's files are worth (`check`), damage set aside (`repair`), superseded lines left out (`compact`).

The promise: `check` only reads, beside whoever writes. The other two change nothing that a reader can find: each
journal is replaced at once, by a copy of its lines, and not a byte that could not be read is destroyed. They may be cut
off at any point and run again.

What counts stays, in its order, byte for byte; and so does what tells how damaged lines are read, as long as there are
any.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import msgspec

from checkpoint.condition import SYNCED, fault_of, held_records, is_most, loss_of, synced_bytes
from checkpoint.errors import StoreError, plural, printable, quote
from checkpoint.files import read_object
from checkpoint.joined import allow_files
from checkpoint.journal import Journal, Reader, is_whole, parse, store_error, unsealed, with_fields
from checkpoint.keys import Key
from checkpoint.ledger import Damage, Ledger, lines_at, plain_json
from checkpoint.places import (
    aside_name,
    command_line,
    locate,
    parts_of,
    paths_of,
    size_in_words,
    size_of,
    writer_of,
)
from checkpoint.remote import url_at
from checkpoint.segment import file_state
from checkpoint.shards import Shard
from checkpoint.shelf import Shelf, index_path
from checkpoint.store import Store, forgetting, lost_journal, meta_in, open_store

__all__ = [
    "Compaction",
    "Damage",
    "JournalState",
    "Repair",
    "Soundness",
    "VersionCount",
    "check",
    "compact",
    "repair",
]

_KINDS = ("results", "errors", "unsaved")
_SHOWN = 10
_BLOCK = 1 << 19


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
class VersionCount:
    """What counts under one version: its digest ("" for none), what that stands for (None: not known), how many."""

    version: str
    label: Any
    results: int
    errors: int

    def to_json(self) -> dict[str, Any]:
        """As `Soundness.to_json` has it."""
        return {"version": self.version, "label": self.label, "results": self.results, "errors": self.errors}


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


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair` did.

    Attributes:
        name, directory: the checkpoint's.
        moved: the damaged lines that were set aside.
        torn: bytes of torn tails that were.
        forgotten: how many lines were written in the place of damaged ones, so that no older record of their keys
            counts again.
        taken: how many lines were written in their places as they are, without the checksums that they failed.
    """

    name: str
    directory: str
    moved: tuple[Damage, ...]
    torn: int
    forgotten: int
    taken: int = 0

    def to_json(self) -> dict[str, Any]:
        """`moved_lines`, `moved_bytes`, `torn_bytes`, `forgotten`, `taken`."""
        return {
            "moved_lines": len(self.moved),
            "moved_bytes": sum(damage.size for damage in self.moved),
            "torn_bytes": self.torn,
            "forgotten": self.forgotten,
            "taken": self.taken,
        }

    def __str__(self) -> str:
        done = []
        paths = dict.fromkeys(damage.path for damage in self.moved)
        for path in paths:
            count = sum(damage.path == path for damage in self.moved)
            done.append(f"{path}: {plural(count, 'damaged line')} set aside in {aside_name(path)}")
        if self.torn:
            done.append(f"a torn tail of {plural(self.torn, 'byte')} was set aside")
        if self.taken:
            done.append(f"{plural(self.taken, 'line')} of them stay as they are, without checksum: not verified")
        return "\n".join(done) or f"checkpoint {self.name!r} in {self.directory}: nothing to repair"


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `compact` did.

    Attributes:
        name, directory: the checkpoint's.
        lines, size: how many superseded lines, and bytes, of the journals were left out.
        left: bytes of the journals as they are.
        damaged: how many damaged lines stay in them.
        leftovers: (path, bytes) of the temporary files that were deleted.
    """

    name: str
    directory: str
    lines: int
    size: int
    left: int
    damaged: int
    leftovers: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """`name`, `directory`, `freed_lines`, `freed_bytes`, `bytes` (left), `damaged_lines`, `leftovers`."""
        return {
            "name": self.name,
            "directory": self.directory,
            "freed_lines": self.lines,
            "freed_bytes": self.size,
            "bytes": self.left,
            "damaged_lines": self.damaged,
            "leftovers": [{"path": path, "bytes": size} for path, size in self.leftovers],
        }

    def __str__(self) -> str:
        what = f"freed {size_in_words(self.size)}, {plural(self.lines, 'line')}; {size_in_words(self.left)} are left"
        if not self.lines:
            what = f"nothing to compact: each of its lines counts ({size_in_words(self.left)})"
        told = [f"checkpoint {self.name!r} in {self.directory}: {what}"]
        if self.leftovers:
            size = sum(size for _, size in self.leftovers)
            told.append(
                f"deleted {plural(len(self.leftovers), 'temporary file')} of a killed process ({size_in_words(size)})"
            )
        if self.damaged:
            command = command_line("check", self.name, self.directory)
            told.append(f"{plural(self.damaged, 'damaged line')} left in place: {command} --repair sets damage aside")
        return "\n".join(told)


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
    ledgers: tuple[Ledger | None, Ledger | None]  # of results and errors
    labels: dict[str, Any]


def _check_one(name: str, prefix: str, directory: Path, *, is_whole: bool) -> _Checked:
    paths, meta_path = paths_of(prefix, directory), directory / f"{prefix}_meta.json"
    before = meta_in(meta_path)
    readers = [Reader.open(path) for path in paths]
    ledgers = [_ledger(reader, decode=path is paths[0]) for path, reader in zip(paths, readers, strict=True)]
    states = [_state_of(path, reader, ledger) for path, reader, ledger in zip(paths, readers, ledgers, strict=True)]
    if meta_in(meta_path) != before or url_at(directory) is not None:
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
        leftovers=tuple(_leftovers(prefix, directory)),
    )
    return _Checked(found, (ledgers[0], ledgers[1]), labels)


def _ledger(reader: Reader | None, *, decode: bool) -> Ledger | None:
    return None if reader is None else Ledger(reader, decode=decode)


def _state_of(path: Path, reader: Reader | None, ledger: Ledger | None) -> JournalState:
    superseded = (0, 0)
    if ledger is not None and reader is not None:
        kept = _kept(ledger)
        if kept is not None:
            left = sum(map(len, _explained(lines_at(reader, kept, ledger.end), ledger, reader, kept)))
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
    results: Sequence[Ledger], errors: Sequence[Ledger], labels: dict[str, Any]
) -> Iterator[VersionCount]:
    for version in sorted({version for ledger in (*results, *errors) for version in (*ledger.exact, *ledger.loose)}):
        done = len(_live(results, version))
        failed = _count_failed(version, results, errors)
        if done or failed:
            yield VersionCount(version, labels.get(version), done, failed)


def _live(ledgers: Sequence[Ledger], version: str) -> set[tuple[Key, bool]]:
    """(key, whether its line has a checksum) of each key that any of them has; one with a checksum wins."""
    live = {held for ledger in ledgers for held in ledger.live(version)}
    if len(ledgers) > 1 and any(ledger.has_loose for ledger in ledgers):
        texts = {str(key) for key, sealed in live if sealed}
        live = {(key, sealed) for key, sealed in live if sealed or key not in texts}
    return live


def _count_failed(version: str, results: Sequence[Ledger], errors: Sequence[Ledger]) -> int:
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


def _leftovers(name: str, directory: Path) -> Iterator[tuple[str, int]]:
    """(path, bytes) of temporary files of this checkpoint. This process's own may be in use by another thread."""
    pattern = re.compile(
        rf"\.{re.escape(name)}_(?:(?:results|errors|unsaved)\.(?:pull\.)?tmp"  # as they were named before
        rf"|(?:meta|(?:results|errors|unsaved)(?:\.index|(?:\.first)?\.pull)?)"
        rf"\.(?!{os.getpid()}\.)[0-9]+(?:\.[0-9a-f]+)?\.tmp)"
        rf"|\.{re.escape(name)}\.remote\.(?!{os.getpid()}\.)[0-9]+\.[0-9a-f]+\.tmp"
    )
    for file in sorted(os.listdir(directory)):
        if pattern.fullmatch(file):
            yield str(directory / file), size_of(directory / file)


# --- repair and compact ----------------------------------------------------------------------------------------------


class _User:
    """Who uses the store meanwhile."""

    store: Store


@contextmanager
def _alone(name: str, directory: Path, shard: Shard, *, repairs: bool = False) -> Iterator[Store]:
    """The store that this process has of it, under the writer's lock."""
    user = _User()
    detach = open_store(name, directory, user, shard)
    try:
        with user.store.all_as_they_are() if repairs else user.store.alone():
            yield user.store
    finally:
        detach()


def _shelves(store: Store) -> Iterator[tuple[Shelf, Reader]]:
    """Each of its own journals that is there, its end repaired."""
    for shelf in store.own:
        if shelf.journal.open() is not None:
            shelf.open_to_write()
            assert shelf.journal.reader is not None
            yield shelf, shelf.journal.reader


def repair(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Repair:
    """Move damaged lines and a torn tail into the files of bytes set aside; the rest stays byte for byte, in order.

    They are kept there, synced, before a journal loses them. Where a damaged line hides an older record of its key, a
    line that forgets the key takes its place: what is lost is computed again, and no value of old comes back.

    Where most lines hold records and only fail their checksums, another program wrote the file anew: these lines stay,
    without their checksums. Where a journal is shorter than meta knows, what is there counts from then on.

    Args:
        name: the checkpoint's.
        checkpoint_dir: as for `check`.

    Raises:
        CheckpointLocked: another process writes it, or one of its shards, or a pass of this one is running.
        JournalLost: another kind of file is in a journal's place, or it is gone.
        StoreError: it could not be done; the journals are as they were, or those before this one are done.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_result(3, 9)
        >>> print(repair("squares").moved)
        ()
    """
    directory = locate(name, checkpoint_dir)
    done = [_repair_one(name, directory, shard) for shard in parts_of(name, directory)]
    moved = tuple(damage for part in done for damage in part.moved)
    torn, forgotten, taken = (sum(getattr(part, count) for part in done) for count in ("torn", "forgotten", "taken"))
    return Repair(name, str(directory), moved, torn, forgotten, taken)


def _repair_one(name: str, directory: Path, shard: Shard) -> Repair:
    prefix = shard.prefix(name)
    before = sum(size_of(Journal(path).aside) for path in paths_of(prefix, directory))
    torn = sum(map(_torn_bytes, paths_of(prefix, directory)))
    moved: list[Damage] = []
    forgotten = taken = 0
    with _alone(name, directory, shard, repairs=True) as store:
        _discard_leftovers(prefix, directory)
        for shelf, reader in _shelves(store):
            fault = fault_of(reader)
            ledger = Ledger(reader, decode=shelf is store.own[0])
            if not ledger.damage:
                continue
            bare = _unsealed(ledger, reader) if fault is not None and fault.is_altered else {}
            instead = {**_forgettings(ledger), **bare}
            try:
                shelf.journal.set_aside((d.offset, reader.pread(d.size, d.offset)) for d in ledger.damage)
            except StoreError:
                raise
            except OSError as error:
                raise store_error(error, "cannot set damaged lines aside in", shelf.journal.aside) from error
            store.replace(shelf, _without(reader, ledger.damage, instead, ledger.end))
            moved += ledger.damage
            forgotten += len(instead) - len(bare)
            taken += len(bare)
        after = sum(size_of(shelf.journal.aside) for shelf in store.own)
    return Repair(name, str(directory), tuple(moved), torn if after > before else 0, forgotten, taken)


def _torn_bytes(path: Path) -> int:
    reader = Reader.open(path)
    tail = b"" if reader is None else reader.tail()[1]
    return 0 if is_whole(tail) else len(tail)


def _forgettings(ledger: Ledger) -> dict[int, bytes]:
    """By offset of a damaged line, the line that takes its place so that nothing older counts again."""
    session = os.urandom(4).hex().encode()
    return {claim.at: forgetting(claim.version, claim.key, session).line for claim in ledger.uncovered()}


def _unsealed(ledger: Ledger, reader: Reader) -> dict[int, bytes]:
    """By offset of a line that only fails its checksum, the line without it."""
    bare = {damage.offset: unsealed(reader.pread(damage.size, damage.offset)) for damage in ledger.damage}
    return {offset: line + b"\n" for offset, line in bare.items() if line is not None}


def _without(reader: Reader, damage: Sequence[Damage], instead: dict[int, bytes], end: int) -> Iterator[bytes]:
    """The journal's bytes up to `end` but for the damaged lines."""
    at = 0
    for line in damage:
        yield from _bytes_between(reader, at, line.offset)
        yield instead.get(line.offset, b"")
        at = line.offset + line.size
    yield from _bytes_between(reader, at, end)


def _bytes_between(reader: Reader, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        data = reader.pread(min(_BLOCK, stop - start), start)
        if not data:
            raise reader.damaged(start, "the file was cut while it was read")
        yield data
        start += len(data)


def compact(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Compaction:
    """Rewrite each journal without its superseded lines; nothing that can be read from it changes.

    What counts stays, of every version, in its order, byte for byte; so do damaged lines, and all of a journal in which
    they would be most of what is left: `repair` it first. Each journal is replaced at
    once, when its copy is on the medium: it takes room for that copy. Who reads an old one, such as a `Results`, goes
    on reading it. Where every line counts, nothing is written.

    Args:
        name: the checkpoint's.
        checkpoint_dir: as for `check`.

    Raises:
        CheckpointLocked: another process writes it, or one of its shards, or a pass of this one is running.
        StoreError: it could not be done (disk full …); the journals are as they were, or those before this one are
            compacted.

    Example:
        >>> with CheckpointedRunner("cubes") as runner:
        ...     runner.save_result(3, 9)
        ...     runner.save_result(3, 27)
        >>> compact("cubes").lines
        1
    """
    directory = locate(name, checkpoint_dir)
    done = [_compact_one(name, directory, shard) for shard in parts_of(name, directory)]
    lines, size, left, damaged = (
        sum(getattr(part, count) for part in done) for count in ("lines", "size", "left", "damaged")
    )
    leftovers = tuple(leftover for part in done for leftover in part.leftovers)
    return Compaction(name, str(directory), lines, size, left, damaged, leftovers)


def _compact_one(name: str, directory: Path, shard: Shard) -> Compaction:
    prefix = shard.prefix(name)
    lines = size = left = damaged = 0
    with _alone(name, directory, shard) as store:
        leftovers = _discard_leftovers(prefix, directory)
        for shelf, reader in _shelves(store):
            before, ledger = reader.size(), Ledger(reader, decode=shelf is store.own[0])
            kept = _kept(ledger)
            if kept is not None:
                store.replace(shelf, _explained(lines_at(reader, kept, ledger.end), ledger, reader, kept))
                assert shelf.journal.reader is not None
                lines += ledger.lines - len(kept)
                size += before - shelf.journal.reader.size()
            left += shelf.journal.reader.size() if shelf.journal.reader is not None else 0
            damaged += len(ledger.damage)
    return Compaction(name, str(directory), lines, size, left, damaged, leftovers)


class _Named(msgspec.Struct, gc=False):
    """What a line names by digest."""

    code: Any = ""
    version: Any = ""


_decode_named = msgspec.json.Decoder(_Named).decode


def _explained(chunks: Iterator[bytes], ledger: Ledger, reader: Reader, kept: list[int]) -> Iterator[bytes]:
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


def _kept(ledger: Ledger) -> list[int] | None:
    """Where the lines begin that a compaction leaves; None where it leaves all.

    A journal is left alone in which damaged lines would be most of what is left: it would be taken for none.
    """
    kept = ledger.kept()
    return None if len(kept) == ledger.lines or is_most(len(ledger.damage), len(kept)) else kept


def _discard_leftovers(name: str, directory: Path) -> tuple[tuple[str, int], ...]:
    """Delete what killed processes left half-written; call it under the lock."""
    found = tuple(_leftovers(name, directory))
    for path, _ in found:
        try:
            os.unlink(path)
        except OSError as error:
            raise store_error(error, "cannot delete", Path(path)) from error
    return found
