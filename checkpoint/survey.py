"""A checkpoint seen from outside: how far its job is, how fast, why items fail, and who is writing.

The promise: it only reads, beside whoever writes: no lock is taken and no file is made. It costs by keys and by a
bounded number of records, never by the size of the journals; what is a part of the whole, or an estimate, says so.
"""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter, itemgetter
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Self

from checkpoint import clock
from checkpoint.causes import Cause, causes_of
from checkpoint.decisions import Undecided, decided_of, undecided_of
from checkpoint.errors import CheckpointError, DamagedRecord, ItemError, plural, printable, quote, shorten
from checkpoint.files import read_object
from checkpoint.journal import Reader, Record, parse
from checkpoint.keys import Key, key_from_json
from checkpoint.ledger import plain_json
from checkpoint.places import (
    aside_name,
    command_line,
    locate,
    names_in,
    parts_of,
    paths_of,
    size_in_words,
    size_of,
    writer_of,
)
from checkpoint.records import LATEST, Records, item_error
from checkpoint.shards import ALL, Shard
from checkpoint.shelf import Shelf, index_path, key_of
from checkpoint.store import Store, resolve_directory
from checkpoint.upkeep import VersionCount
from checkpoint.uploads import Uploaded, writer_there

__all__ = [
    "Durations",
    "Failed",
    "Observer",
    "Recent",
    "Summary",
    "Survey",
    "ago",
    "cause_json",
    "causes",
    "failures",
    "list_checkpoints",
    "moment_of",
    "span",
    "survey",
]

_TAIL = 256 << 10  # bytes of a journal's end that are read
_READ = 1000  # failures that are read for their causes
_COUNTED = 20_000  # failures that are read to be counted, where their keys are not known
_LOOKS = 300  # places of a journal that are looked at for durations and sessions
_MORE_LOOKS = 3000  # and to find where sessions begin
_RECENT = 5
_SHOWN = 5
_MINUTE = 60.0
_LEAST = 20  # records that a rate is taken from, however long ago they were saved
_STALLED = 5.0  # seconds without a record, at least, that make a rate fall


# --- what is told ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Durations:
    """How long calls took, in seconds: of `count` results that are spread evenly over the file."""

    median: float
    most: float  # the 95th percentile
    count: int

    def to_json(self) -> dict[str, Any]:
        """`median`, `p95`, `sample`."""
        return {"median": self.median, "p95": self.most, "sample": self.count}


@dataclass(frozen=True, slots=True)
class Recent:
    """One of the last records: its key, what it holds in short, whether that is a failure, and when it was saved."""

    key: Key
    text: str
    failed: bool
    timestamp: str

    def to_json(self) -> dict[str, Any]:
        """`key`, `text`, `failed`, `timestamp`."""
        return {
            "key": plain_json(self.key),
            "text": self.text,
            "failed": self.failed,
            "timestamp": self.timestamp,
        }


@dataclass(frozen=True, slots=True)
class Failed:
    """A failure as it is on record; its key has no result."""

    key: Key
    type: str | None
    message: str
    traceback: str | None
    attempts: int | None
    elapsed: float | None
    timestamp: str

    @property
    def error(self) -> ItemError:
        """What stands in a failed item's place."""
        parts = {part: getattr(self, part) for part in ("key", "type", "message", "traceback", "attempts", "elapsed")}
        return ItemError(f"item {quote(self.key)} failed", **parts)

    def to_json(self, *, traceback: bool = False) -> dict[str, Any]:
        """`key`, `type`, `message`, `attempts`, `elapsed`, `timestamp`, and `traceback` if asked for."""
        told = {
            "key": plain_json(self.key),
            "type": self.type,
            "message": self.message,
            "attempts": self.attempts,
            "elapsed": self.elapsed,
            "timestamp": self.timestamp,
        }
        return {**told, "traceback": self.traceback} if traceback else told


@dataclass(frozen=True, slots=True)
class Summary:
    """A checkpoint in one line.

    Attributes:
        name, directory: the checkpoint's.
        done, failed, is_exact: as in `Survey`.
        total: how many items the last pass had, where it is known.
        size: bytes of all its files.
        last: when the last record was saved (ISO 8601), or None.
        writer: as in `Survey`.
        shards: how many shards have files.
        writers: how many of these, and of its own journals, are being written.
        undecided, accepted: as in `Survey`.
        why: what stands in the way of reading it, else "".
    """

    name: str
    directory: str
    done: int
    failed: int
    is_exact: bool
    total: int | None
    size: int
    last: str | None
    writer: dict[str, Any] | None
    shards: int = 0
    writers: int = 0
    undecided: Undecided | None = None
    accepted: tuple[str, ...] = ()
    why: str = ""

    def to_json(self) -> dict[str, Any]:
        """These names stay.

        `name`, `done`, `failed`, `failed_is_exact`, `total`, `bytes`, `last_activity`, `writer`, `shards` and `writers`
        (how many), `undecided` (how many results, or null), `accepted` (a list of texts), `error`.
        """
        return {
            "name": self.name,
            "done": self.done,
            "failed": self.failed,
            "failed_is_exact": self.is_exact,
            "total": self.total,
            "bytes": self.size,
            "last_activity": self.last,
            "writer": self.writer,
            "shards": self.shards,
            "writers": self.writers,
            "undecided": self.undecided and self.undecided.count,
            "accepted": list(self.accepted),
            "error": self.why or None,
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """A checkpoint at a moment. Its `str` is for people, `to_json` for programs.

    Attributes:
        name, directory: the checkpoint's.
        version: the digest of the version that is current, that of the last record; "" for none.
        versions: what there is of each version, the current one first, then those with most results.
        done: keys that have a result; of the current version, as what follows.
        failed: keys that have an error and no result.
        is_exact: whether `failed` was counted; where errors are very many it is estimated from 20,000 of them.
        total: how many items the last pass had, where it is known.
        left: how many items the pass has still to deal with, where the total is known.
        aside: keys whose value could not be encoded and was kept.
        causes: why items failed, of the last `causes_read` failures, the most frequent first.
        causes_read: how many failures these were taken from, 1,000 at most.
        rate: items dealt with a second, failures included, by the session that wrote last; None where unknown.
        seconds_left: what is left at that rate; None where nobody writes, or it cannot be told.
        last: when the last record was saved (ISO 8601), or None.
        idle: seconds since then, or None.
        writer: who is writing (pid, host, since, where they are known), {} where that cannot be told here, or None; of
            several the first one who is known.
        shards: (shard, who is writing it) of each shard that has files; of its own journals alone, nothing.
        sessions: how many sessions have written, as far as a look at parts of the files tells.
        durations: how long calls took, or None.
        sizes: bytes by file name.
        recent: the last few records, the latest last.
        asked_at: seconds since the epoch.
        url: what the directory mirrors, or None.
        uploaded: how far that is behind, or None.
        undecided: what other code computed than the last one, and nobody has decided about; or None.
        accepted: what was accepted for the current version and its last code, in words.
    """

    name: str
    directory: str
    version: str
    versions: tuple[VersionCount, ...]
    done: int
    failed: int
    is_exact: bool
    total: int | None
    left: int | None
    aside: int
    causes: tuple[Cause, ...]
    causes_read: int
    rate: float | None
    seconds_left: float | None
    last: str | None
    idle: float | None
    writer: dict[str, Any] | None
    shards: tuple[tuple[str, dict[str, Any] | None], ...]
    sessions: int
    durations: Durations | None
    sizes: dict[str, int]
    recent: tuple[Recent, ...]
    asked_at: float
    url: str | None = None
    uploaded: Uploaded | None = None
    undecided: Undecided | None = None
    accepted: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    def to_json(self) -> dict[str, Any]:
        """A JSON object; these names stay.

        `name`, `directory`, `version`, `versions` (a list of `version`, `label`, `results`, `errors`, `current`),
        `done`, `failed`, `failed_is_exact`, `total`, `left`, `aside`, `causes` (a list of `type`, `where`, `count`,
        `message`, `keys`), `causes_read`, `rate`, `seconds_left`, `last_activity`, `idle_seconds`, `writer`, `shards`
        (a list of `shard`, such as "3/100", and `writer`), `sessions`, `durations` (null, or `median`, `p95`,
        `sample`), `files` (bytes by name), `bytes`, `recent` (a list of `key`, `text`, `failed`, `timestamp`). Keys
        stand as in a journal. Also `undecided` (null, or `results`, `is_exact`, `digest`) and `accepted` (a list of
        texts). Of a URL also `url` and `not_uploaded` (`bytes`, `seconds`).
        """
        open_ = self.undecided
        behind = self.uploaded
        mirrors = behind and {"url": self.url, "not_uploaded": {"bytes": behind.bytes, "seconds": behind.seconds}}
        return {
            "name": self.name,
            "directory": self.directory,
            "version": self.version,
            "versions": [{**held.to_json(), "current": held.version == self.version} for held in self.versions],
            "done": self.done,
            "failed": self.failed,
            "failed_is_exact": self.is_exact,
            "total": self.total,
            "left": self.left,
            "aside": self.aside,
            "causes": [cause_json(cause) for cause in self.causes],
            "causes_read": self.causes_read,
            "rate": self.rate,
            "seconds_left": self.seconds_left,
            "last_activity": self.last,
            "idle_seconds": self.idle,
            "writer": self.writer,
            "shards": [{"shard": shard, "writer": writer} for shard, writer in self.shards],
            "sessions": self.sessions,
            "durations": self.durations and self.durations.to_json(),
            "files": self.sizes,
            "bytes": self.size,
            "recent": [recent.to_json() for recent in self.recent],
            "undecided": open_ and {"results": open_.count, "is_exact": open_.is_exact, "digest": open_.question},
            "accepted": list(self.accepted),
            **(mirrors or {}),
        }

    def __str__(self) -> str:
        rows = [f"checkpoint {self.name!r} in {self.directory}"]
        for label, lines in self.rows():
            rows += [f"  {label if not place else '':<10}{line}" for place, line in enumerate(lines)]
        return "\n".join(map(printable, rows))

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """(label, lines) of what is known, for people."""
        yield "done", [self.counts()]
        yield "writing", [self.writing()]
        if self.shards:
            yield "shards", list(self.shard_lines())
        if self.rate is not None:
            yield "rate", [self.pace()]
        if self.durations is not None:
            took = f"{_took(self.durations.median)} median, {_took(self.durations.most)} at the 95th percentile"
            yield "calls", [f"{took} ({plural(self.durations.count, 'result')} looked at)"]
        if self.causes:
            yield "errors", list(self.cause_lines())
        if len(self.versions) > 1 or (self.version and self.versions):
            yield "versions", [self._version_line(held) for held in self.versions]
        if self.undecided is not None:
            command = f"{command_line('accept', self.name, self.directory)} {self.undecided.question}"
            yield "changed", [f"{self.undecided}. Where they are still right:", command]
        if self.accepted:
            yield "accepted", list(self.accepted)
        if self.sessions:
            yield "sessions", [f"{self.sessions:,}"]
        if self.uploaded is not None:
            yield "mirrors", [self._mirrors(self.uploaded)]
        yield (
            "files",
            [f"{size_in_words(self.size)}: " + ", ".join(f"{k} {size_in_words(n)}" for k, n in self.sizes.items())],
        )

    def counts(self) -> str:
        """ "412 of 600 (69 %) · 12 failed"."""
        done = f"{self.done:,}"
        if self.total is not None and self.done <= self.total:
            done += f" of {self.total:,}" + (f" ({100 * self.done // self.total} %)" if self.total else "")
        elif self.total is not None and self.writer is None:
            done += f" (the last pass had {plural(self.total, 'item')})"
        parts = [done]
        if self.failed:
            parts.append(f"{'' if self.is_exact else 'about '}{self.failed:,} failed")
        if self.aside:
            of = "of them " if self.failed else ""
            parts.append(f"{self.aside:,} {of}kept aside, since their values could not be stored")
        return " · ".join(parts)

    def writing(self) -> str:
        """Who is writing, and when the last record was saved."""
        last = f"last record {_ago(self.idle)}"
        if self.last is None:
            last = "no time is recorded" if self.done or self.failed else "nothing saved yet"
        if self.writer is None:
            return f"nobody; {last}"
        if not self.writer:
            return f"whether anybody is cannot be told here; {last}"
        since = moment_of(self.writer.get("since"))
        told = "" if since is None else f", for {span(self.asked_at - since)}"
        return f"process {self.writer.get('pid')} on {self.writer.get('host')}{told}; {last}"

    def shard_lines(self) -> Iterator[str]:
        """How many shards there are, and who is writing which."""
        counts = Counter(shard.rpartition("/")[2] for shard, _ in self.shards)
        told = ", ".join(f"{count:,} of {of}" for of, count in counts.items())
        written = [(shard, writer) for shard, writer in self.shards if writer]
        yield f"{told} have files" + (f"; {len(written):,} being written" if written else "")
        for shard, writer in written[:_SHOWN]:
            yield f"{shard} by process {writer.get('pid')} on {writer.get('host')}"
        if len(written) > _SHOWN:
            yield f"… and {len(written) - _SHOWN:,} more"

    def _mirrors(self, behind: Uploaded) -> str:
        if not behind.bytes:
            return f"{self.url}; all of it is there"
        last = f" since the last upload, {ago(behind.seconds)}" if behind.seconds else ""
        return f"{self.url}; {size_in_words(behind.bytes)} are not there yet{last}"

    def pace(self) -> str:
        """ "8.1 items/s · about 23 s left"."""
        if self.rate is None:
            return ""
        rate = f"{_rate(self.rate)}{'' if self.writer else ' when it was last written'}"
        return rate if self.seconds_left is None else f"{rate} · about {span(self.seconds_left)} left"

    def cause_lines(self) -> Iterator[str]:
        """A line for each cause."""
        yield from map(str, self.causes[:_SHOWN])
        if len(self.causes) > _SHOWN:
            yield f"… {plural(len(self.causes) - _SHOWN, 'more cause')}"
        if self.causes_read < self.failed:
            yield f"(of the last {self.causes_read:,} of {self.failed:,} failures)"

    def _version_line(self, held: VersionCount) -> str:
        label = "no version" if not held.version else quote(held.label, 60) if held.label is not None else "?"
        name = f"{held.version}  {label}" if held.version else label
        told = f"{plural(held.results, 'result')}, {plural(held.errors, 'error')}"
        return f"{name}: {told}{' (current)' if held.version == self.version else ''}"


def cause_json(cause: Cause, *, traceback: bool = False) -> dict[str, Any]:
    """`type`, `where`, `count`, `message`, `keys` (of the first 100), and `traceback` if asked for."""
    told = {
        "type": cause.type,
        "where": cause.where,
        "count": cause.count,
        "message": cause.message,
        "keys": [plain_json(key) for key in cause.keys],
    }
    return {**told, "traceback": cause.traceback} if traceback else told


def span(seconds: float) -> str:
    """A time in words, of at most two units: "23 s", "3 min 20 s", "2 h 5 min", "3 days 4 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _pair(whole, 60, "min", 1, "s")
    if whole < 2 * 86_400:
        return _pair(whole, 3600, "h", 60, "min")
    return _pair(whole, 86_400, "days", 3600, "h") if whole < 1000 * 86_400 else f"{whole // 86_400:,} days"


def _pair(whole: int, size: int, unit: str, part: int, smaller: str) -> str:
    rest = whole % size // part
    return f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")


def ago(seconds: float) -> str:
    """How long ago, in one unit: "just now", "40 s ago", "3 min ago", "2 h ago", "5 days ago"."""
    if seconds < 2:
        return "just now"
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (size != 86_400 and seconds >= size):
            return f"{int(seconds // size):,} {unit} ago"
    return f"{int(seconds)} s ago"


def _ago(idle: float | None) -> str:
    return "at an unknown time" if idle is None else ago(idle)


def _took(seconds: float) -> str:
    if seconds >= 60:
        return span(seconds)
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def _rate(rate: float) -> str:
    if rate >= 10:
        return f"{rate:,.0f} items/s"
    if rate >= 0.1:
        return f"{rate:.1f} items/s"
    return f"{rate * 60:.1f} items/min" if rate * 60 >= 0.1 else f"{rate * 3600:.1f} items/h"


# --- which there are -------------------------------------------------------------------------------------------------


def list_checkpoints(checkpoint_dir: str | os.PathLike[str] | None = None) -> list[Summary]:
    """The checkpoints of a directory, in the order of their names; one that cannot be read says why.

    Args:
        checkpoint_dir: default ``$CHECKPOINT_DIR``, else ``./checkpoints``.

    Raises:
        StoreError: the directory cannot be read. One that is not there holds none.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_result(3, 9)
        >>> [(held.name, held.done, held.failed) for held in list_checkpoints()]
        [('squares', 1, 0)]
    """
    directory = resolve_directory(checkpoint_dir)
    return [_summary(name, directory) for name in names_in(directory)]


def _summary(name: str, directory: Path) -> Summary:
    try:
        with Observer(name, directory) as observer:
            return observer.summary()
    except (CheckpointError, OSError) as error:
        size = sum(_sizes(name, directory).values())
        return Summary(name, str(directory), 0, 0, True, None, size, None, None, why=str(error))


# --- what one is at --------------------------------------------------------------------------------------------------


def survey(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Survey:
    """How far a checkpoint is, how fast, why items fail, and who is writing.

    Args:
        name: the checkpoint's.
        checkpoint_dir: the directory; default ``$CHECKPOINT_DIR``, else ``./checkpoints``.

    Raises:
        InvalidName: as for a runner.
        StoreError: there is no such checkpoint, or it cannot be read.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_result(3, 9)
        >>> found = survey("squares")
        >>> found.done, found.failed, found.writer
        (1, 0, None)
    """
    with Observer(name, checkpoint_dir) as observer:
        return observer.look()


class Observer:
    """One checkpoint, kept open: each look costs by what was written since, and by a bounded number of records.

    Args:
        name: the checkpoint's.
        checkpoint_dir: as for `survey`.
        now: seconds since the epoch.

    Raises:
        InvalidName, StoreError: as `survey`.
    """

    def __init__(
        self,
        name: str,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        *,
        now: Callable[[], float] | None = None,
    ) -> None:
        self.name = name
        self.directory = locate(name, checkpoint_dir)
        self._now = now or clock.now
        self._records = Records(name, self.directory, version=LATEST, power=False, result_type=None)
        self._failures = _Failures()
        self._known: _Around | None = None

    def close(self) -> None:
        """Let go of the files."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self) -> Summary:
        """The checkpoint in one line."""
        store = self._records.open()
        version = self._records.version
        tails = _Tails(store)
        writers = self._writers(store)
        failed, is_exact = _unresolved(store, store.errors, version)
        size = sum(_sizes(self.name, self.directory).values())
        return Summary(
            self.name,
            str(self.directory),
            store.results.count(version),
            failed,
            is_exact,
            _total_of(store, _meta_of(store)),
            size,
            tails.last,
            _first_writer(writers),
            shards=len(writers) - 1,
            writers=sum(map(bool, writers.values())),
            undecided=undecided_of(store, version, _LOOKS),
            accepted=tuple(decided_of(store, version)),
        )

    def look(self) -> Survey:
        """The checkpoint at this moment."""
        store = self._records.open()
        version, now, tails, meta = self._records.version, self._now(), _Tails(store), _meta_of(store)
        writers = self._writers(store)
        writer = _first_writer(writers)
        done, (failed, is_exact) = store.results.count(version), _unresolved(store, store.errors, version)
        causes, read, afresh = self._failures.look(store, version, tails.current)
        total = _total_of(store, meta)
        # Items that failed in an earlier session are tried again; of this one's, those that were read tell.
        left = None if total is None else max(0, total - done - (failed if afresh == read else afresh))
        idle = None if tails.moment is None else max(0.0, now - tails.moment)
        is_written = bool(writer) or (writer == {} and idle is not None and idle < _MINUTE)
        rate = tails.rate(now if is_written else None)
        around = self._look_around(store, version)
        return Survey(
            name=self.name,
            directory=str(self.directory),
            version=version,
            versions=tuple(_versions(store, version, (done, failed), meta)),
            done=done,
            failed=failed,
            is_exact=is_exact,
            total=total,
            left=left,
            aside=_unresolved(store, store.unsaved, version)[0],
            causes=tuple(causes),
            causes_read=read,
            rate=rate,
            seconds_left=left / rate if left and rate and is_written else None,
            last=tails.last,
            idle=idle,
            writer=writer,
            shards=tuple((str(shard), writer) for shard, writer in writers.items() if shard != ALL),
            sessions=len(around.sessions | tails.sessions),
            durations=around.durations,
            sizes=_sizes(self.name, self.directory),
            recent=tuple(tails.recent()),
            asked_at=now,
            url=None if store.uploads is None else store.uploads.mirror.url,
            uploaded=None if store.uploads is None else store.uploads.uploaded(),
            undecided=undecided_of(store, version, _LOOKS),
            accepted=tuple(decided_of(store, version)),
        )

    def _writers(self, store: Store) -> dict[Shard, dict[str, Any] | None]:
        """Who is writing its own journals, and those of each shard, here or from another machine."""
        found = {}
        for shard, prefix in parts_of(self.name, self.directory).items():
            found[shard] = writer_of(self.directory, prefix)
            if found[shard] is None and (mirror := store.mirror_of(shard)) is not None:
                found[shard] = writer_there(mirror)
        return found

    def _look_around(self, store: Store, version: str) -> _Around:
        """How long calls took, and which sessions wrote; looked for again once the file has grown by a tenth."""
        results, errors = store.results.readers, store.errors.readers
        size = sum(part.size() for part in (*results, *errors))
        known = self._known
        if known is None or known.of != (results, errors, version) or not known.size <= size <= 1.1 * known.size:
            share = len(store.parts)
            looks = [_Looks(part, share) for part in (*results, *errors)]
            took = [seconds for look in looks[: len(results)] for seconds in look.took(version)]
            sessions = set().union(*[look.sessions() for look in looks])
            known = self._known = _Around((results, errors, version), size, _durations_of(took), sessions)
        return known


def _first_writer(writers: dict[Shard, dict[str, Any] | None]) -> dict[str, Any] | None:
    """The first who is known; {} where it cannot be told whether there is one."""
    return next((writer for writer in writers.values() if writer), {} if {} in writers.values() else None)


def _meta_of(store: Store) -> dict[str, Any]:
    try:
        return read_object(store.meta_path)
    except (OSError, ValueError):
        return {}


def _total_of(store: Store, meta: dict[str, Any]) -> int | None:
    """How many items the last pass had: this process's own, or as the writer last noted it."""
    total = store.total if store.writing else store.whole_total() if store.shards else meta.get("total_items")
    return total if type(total) is int and total >= 0 else None


def _versions(store: Store, current: str, counts: tuple[int, int], meta: dict[str, Any]) -> Iterator[VersionCount]:
    noted = meta.get("versions")
    labels = {**store.versions, **(noted if isinstance(noted, dict) else {})}
    if any(counts):
        yield VersionCount(current, labels.get(current), *counts)
    others = (store.results.versions | store.errors.versions) - {current}
    found = [
        (store.results.count(version), _unresolved(store, store.errors, version)[0], version) for version in others
    ]
    for done, failed, version in sorted(found, key=lambda part: (-part[0], -part[1], part[2])):
        if done or failed:
            yield VersionCount(version, labels.get(version), done, failed)


def _sizes(name: str, directory: Path) -> dict[str, int]:
    """Bytes of the files that are there, those of shards included, by what they are."""
    sizes: Counter[str] = Counter()
    for prefix in parts_of(name, directory).values():
        results, errors, unsaved = paths_of(prefix, directory)
        files = {"results": results, "errors": errors, "kept aside": unsaved, "meta": directory / f"{prefix}_meta.json"}
        for what, path in files.items():
            sizes[what] += size_of(path)
        sizes["indexes"] += sum(size_of(index_path(path)) for path in (results, errors, unsaved))
        asides = [path.with_name(aside_name(path)) for path in (results, errors, unsaved)]
        sizes["set aside by repairs"] += sum(map(size_of, asides))
    return {what: size for what, size in sizes.items() if size}


# --- failures --------------------------------------------------------------------------------------------------------


def _unresolved(store: Store, shelf: Shelf, version: str) -> tuple[int, bool]:
    """(how many keys have a record there and no result, whether that was counted): by keys, where they are known."""
    count = shelf.count(version)
    if not count:
        return 0, True
    with store.lock:
        keys = shelf.recent_keys(version)
    if keys is not None:
        held, done = shelf.find_all(version, keys)[0], store.results.find_all(version, keys)[0]
        return sum(place >= 0 and at < 0 for place, at in zip(held, done, strict=True)), True
    reader, offsets = shelf.offsets(version)
    if len(offsets) > _COUNTED:  # drawn, since every n-th of them may be alike
        offsets = Random(0).sample(offsets, _COUNTED)
    open_ones = sum(1 for _ in _open_failures(store, shelf, version, reader, offsets))
    is_all = len(offsets) >= count
    return open_ones if is_all else round(open_ones * count / len(offsets)), is_all


def _open_failures(
    store: Store, shelf: Shelf, version: str, reader: Reader | None, offsets: Sequence[int]
) -> Iterator[tuple[int, Key, Record]]:
    """(offset, key, record) of those that are sound and that no result retires."""
    for offset in offsets if reader is not None else ():
        try:
            assert reader is not None
            record = reader.read(offset)
            key = key_of(reader, record, offset)
        except DamagedRecord:
            continue  # `check` tells of it
        if not store.is_retired(version, key, record):
            yield offset, key, record


class _Failures:
    """The causes of the last failures: a record is read once, however often they are looked at."""

    def __init__(self) -> None:
        self._reader: Reader | None = None
        self._known: dict[int, tuple[Key, Record] | None] = {}
        self._shown: list[int] = []
        self._causes: list[Cause] = []

    def look(self, store: Store, version: str, current: set[str]) -> tuple[list[Cause], int, int]:
        """(causes, how many failures they are of, how many of these were recorded by the sessions that go on)."""
        reader, offsets = store.errors.last_offsets(version, _READ)
        if reader is not self._reader:
            self._reader, self._known, self._shown, self._causes = reader, {}, [], []
        known = {offset: self._known[offset] if offset in self._known else _read(reader, offset) for offset in offsets}
        self._known = known
        held = [(offset, *found) for offset, found in known.items() if found is not None]
        done, _ = store.results.find_all(version, [key for _, key, _ in held])
        left = [
            (offset, key, record)
            for place, (offset, key, record) in zip(done, held, strict=True)
            if place < 0 and (record.crc or not store.is_retired(version, key, record))
        ]
        shown = [offset for offset, _, _ in left]
        if shown != self._shown:
            self._shown, self._causes = shown, causes_of(item_error(key, record) for _, key, record in left)
        return self._causes, len(left), sum(record.session in current for _, _, record in left)


def _read(reader: Reader | None, offset: int) -> tuple[Key, Record] | None:
    try:
        assert reader is not None
        record = reader.read(offset)
        return key_of(reader, record, offset), record
    except DamagedRecord:
        return None


def failures(
    name: str, checkpoint_dir: str | os.PathLike[str] | None = None, *, type: str | None = None
) -> Iterator[Failed]:
    """Every failure of the current version whose key has no result, in the order of the file, one at a time.

    Args:
        name: the checkpoint's.
        checkpoint_dir: as for `survey`.
        type: only those of this exception type: its name, in full or without its module.

    Raises:
        InvalidName, StoreError: as `survey`.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_error(3, ValueError("odd"))
        >>> [(failed.key, failed.type, failed.message) for failed in failures("squares")]
        [(3, 'ValueError', 'odd')]
    """
    directory = locate(name, checkpoint_dir)
    records = Records(name, directory, version=LATEST, power=False, result_type=None)
    try:
        store = records.open()
        reader, offsets = store.errors.offsets(records.version)
        for _, key, record in _open_failures(store, store.errors, records.version, reader, offsets):
            if type is None or _is_of(record.type, type):
                yield _failed(key, record)
    finally:
        records.close()


def causes(failed: Iterable[Failed]) -> list[Cause]:
    """Why they failed, the most frequent cause first."""
    return causes_of(failure.error for failure in failed)


def _is_of(held: str | None, asked: str) -> bool:
    return asked in (held or "error", (held or "error").rpartition(".")[2])


def _failed(key: Key, record: Record) -> Failed:
    return Failed(
        key,
        record.type,
        record.error or "",
        record.traceback,
        record.attempts,
        record.elapsed,
        record.timestamp,
    )


# --- the ends of the journals ----------------------------------------------------------------------------------------


def moment_of(timestamp: Any) -> float | None:
    """Seconds since the epoch; None for what is no ISO 8601. One without a zone is of this machine's."""
    try:
        return datetime.fromisoformat(timestamp).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return None


class _Last(NamedTuple):
    """A record near the end of a journal."""

    moment: float
    failed: bool
    record: Record


class _Tails:
    """What the last bytes of all journals tell; no more of them is read.

    Attributes:
        last, moment: when the last record was saved, in words and in seconds.
        current: the sessions that wrote within a minute of it: of each journal the last one.
        sessions: all that are seen.
    """

    def __init__(self, store: Store) -> None:
        most = max(_TAIL // len(store.parts), _NEAR)
        self._tails = [_Tail(*part, most) for part in store.parts]
        held = sorted([(tail.moment, tail.last) for tail in self._tails if tail.moment is not None], key=itemgetter(0))
        self.moment: float | None = held[-1][0] if held else None
        self.last: str | None = held[-1][1] if held else None
        self._current = [tail for tail in self._tails if self._is_current(tail)]
        self.current = {tail.session for tail in self._current}
        self.sessions = set().union(*[tail.sessions for tail in self._tails])

    def _is_current(self, tail: _Tail) -> bool:
        return self.moment is None or (tail.moment is not None and tail.moment >= self.moment - _MINUTE)

    def rate(self, now: float | None) -> float | None:
        """Records a second, of all that go on."""
        rates = [rate for tail in self._current if (rate := tail.rate(now)) is not None]
        return sum(rates) if rates else None

    def recent(self) -> list[Recent]:
        """The last few records."""
        found = [(moment, recent) for tail in self._tails for moment, recent in tail.recent()]
        return [recent for _, recent in sorted(found, key=itemgetter(0))[-_RECENT:]]


class _Tail:
    """What the last bytes of results and errors of one shard tell."""

    def __init__(self, results: Shelf, errors: Shelf, most: int) -> None:
        self._most = most
        self._from = float("-inf")  # what was saved earlier may be out of sight
        done, failures = (
            [] if shelf.journal.reader is None else self._read(shelf.journal.reader, failed)
            for shelf, failed in ((results, False), (errors, True))
        )
        # Within a file its order counts, whatever the clock did.
        self._found = list(heapq.merge(done, failures, key=attrgetter("moment")))
        last = self._found[-1] if self._found else None
        self.last = None if last is None else last.record.timestamp
        self.moment = None if last is None else last.moment
        self.session = "" if last is None else last.record.session
        self.sessions = {last.record.session for last in self._found} - {""}

    def _read(self, reader: Reader, failed: bool) -> list[_Last]:
        size = reader.size()
        start = max(0, size - self._most)
        data = reader.pread(size - start, start)
        cut = data.find(b"\n") + 1 if start else 0
        found = list(_records_in(data[cut:])) if cut or not start else []
        if not found and (trailer := _TRAILER.search(data.rstrip(b"\r\n"))):
            told = {part: (held or b"").decode() for part, held in trailer.groupdict().items()}
            found = [Record(None, timestamp=told["at"], version=told["version"], session=told["session"])]
        lasts = [
            _Last(moment, failed, record) for record in found if (moment := moment_of(record.timestamp)) is not None
        ]
        if start and lasts:
            self._from = max(self._from, lasts[0].moment)
        return lasts

    def rate(self, now: float | None) -> float | None:
        """Records a second of the last minute, or of the last twenty, of the session that wrote last."""
        moments = [last.moment for last in self._found if last.record.session == self.session]
        moments = [moment for moment in moments if moment >= self._from]
        since = moments[-1] - _MINUTE if moments else 0.0
        moments = moments[-max(_LEAST, sum(moment >= since for moment in moments)) :]
        steps = len(moments) - 1
        passed = moments[-1] - moments[0] if moments else 0.0
        if steps < 1 or passed <= 0:
            return None
        if now is not None and now - moments[-1] > _STALLED + 3 * passed / steps:
            passed = now - moments[0]  # nothing comes any more: the rate falls until something does
        return steps / passed

    def recent(self) -> Iterator[tuple[float, Recent]]:
        """The last few records, and when they were saved."""
        for moment, failed, record in self._found[-_RECENT:]:
            try:
                key = key_from_json(record.key)
            except ValueError:
                continue
            text = bytes(record.result)[:400].decode("utf-8", "replace")
            if failed:
                text = f"{record.type or 'error'}: {record.error or ''}"
            if text:  # else it is so large that only its end was read
                yield moment, Recent(key, shorten(text, 100), failed, record.timestamp)


def _records_in(data: bytes) -> Iterator[Record]:
    """The record of each sound line: not of what forgets one, or is being written."""
    for line in filter(None, data.split(b"\n")):
        try:
            record = parse(line)
        except ValueError:
            continue
        if not record.forgotten:
            yield record


# --- looks into the journals -----------------------------------------------------------------------------------------

_NEAR = 4096
_FAR = 1 << 16
_TRAILER = re.compile(
    rb'(?P<forgotten>"forgotten":true,)?(?:"timestamp":"(?P<at>[^"\\]*)")?'
    rb'(?:,"version":"(?P<version>[0-9a-f]*)"|,"(?:code|schema|input|from)":"[^"\\]*"|,"elapsed":(?P<elapsed>[-+.0-9e]+)'
    rb'|,"attempts":[0-9]+|,"session":"(?P<session>[0-9a-f]*)")+,"crc":"[0-9a-f]{8}"\}$'
)
_LONGEST_TRAILER = 600
_SHORTEST_LINE = 80


class _Around(NamedTuple):
    """What looks around the journals found, when they had this size."""

    of: tuple[list[Reader], list[Reader], str]
    size: int
    durations: Durations | None
    sessions: set[str]


class _Seen(NamedTuple):
    """What the end of a line says, and where it is."""

    stop: int
    version: str
    session: str
    elapsed: float | None


class _Looks:
    """Places of a journal that are spread evenly by bytes, and what the ends of the lines there say.

    A line's end is enough, since a result stands before it, however large.
    """

    def __init__(self, reader: Reader, share: int) -> None:
        self._reader, size = reader, reader.size()
        count = min(-(-_LOOKS // share), size // _SHORTEST_LINE + 1)
        places = sorted({size * part // count for part in range(count)} | ({size - 2} if size > 1 else set()))
        looks = (self._look(place) for place in places)
        self._seen = list({seen.stop: seen for seen in looks if seen is not None}.values())
        self._left = -(-_MORE_LOOKS // share)

    def _look(self, place: int) -> _Seen | None:
        """What the end of the line says that holds the byte at this place."""
        start = max(0, place - _LONGEST_TRAILER)
        for size in (_NEAR, _FAR):
            data = self._reader.pread(place - start + size, start)
            stop = data.find(b"\n", place - start)
            if stop >= 0 or len(data) < place - start + size:
                break
        if stop < 0:
            return None
        line = data[max(data.rfind(b"\n", 0, stop) + 1, stop - _LONGEST_TRAILER) : stop].rstrip(b"\r")
        found = _TRAILER.search(line)
        if found is None:
            return None
        version, session, elapsed = (found[part] or b"" for part in ("version", "session", "elapsed"))
        if found["forgotten"]:
            session = b""  # of a `clear`, which is no run of the job
        return _Seen(start + stop, version.decode(), session.decode(), _float(elapsed))

    def took(self, version: str) -> list[float]:
        """How long the calls took that were seen."""
        took = [seen.elapsed for seen in self._seen if seen.version == version and seen.elapsed is not None]
        return [seconds for seconds in took if 0 <= seconds < float("inf")]

    def sessions(self) -> set[str]:
        """The sessions that wrote: between two places of one session is no other, as far as this looks.

        Sessions follow each other, since one process writes at a time: where two places differ, the one between them
        is looked at, until the border is found.
        """
        found = {seen.session for seen in self._seen}
        pairs = list(zip(self._seen, self._seen[1:], strict=False))
        while pairs and self._left:
            before, after = pairs.pop()
            if before.session == after.session or after.stop - before.stop < _SHORTEST_LINE:
                continue
            self._left -= 1
            seen = self._look((before.stop + after.stop) // 2)
            if seen is not None and seen.stop < after.stop:
                found.add(seen.session)
                pairs += [(before, seen), (seen, after)]
            elif seen is not None:  # the line that ends there began in the first half
                seen = self._look(before.stop + 1)
                if seen is not None and seen.stop < after.stop:
                    found.add(seen.session)
                    pairs.append((seen, after))
        return found - {""}


def _durations_of(took: list[float]) -> Durations | None:
    took = sorted(took)
    if not took:
        return None
    return Durations(took[len(took) // 2], took[min(len(took) - 1, len(took) * 95 // 100)], len(took))


def _float(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
