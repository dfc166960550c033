"""A checkpoint seen from outside: how far its job is, how fast, why items fail, and who is writing.

The promise: it only reads, beside whoever writes: no lock is taken and no file is made. It costs by keys and by a
bounded number of records, never by the size of the journals; what is a part of the whole, or an estimate, says so.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, Self

from checkpoint import clock
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.decisions import Undecided, decided_of, undecided_of
from checkpoint.catalog.locate import (
    aside_name,
    locate,
    names_in,
    parts_of,
    paths_of,
    size_of,
    writer_of,
)
from checkpoint.catalog.paths import command_line, resolve_directory
from checkpoint.catalog.shards import ALL, Shard
from checkpoint.catalog.value_reading import item_error
from checkpoint.catalog.view import LATEST, VersionCount, VersionView
from checkpoint.errors import CheckpointError, DamagedRecord, ItemError, plural, printable, quote
from checkpoint.outcomes import Uploaded
from checkpoint.reporting.causes import Cause, causes_of
from checkpoint.reporting.sampling import (
    LOOKS,
    MINUTE,
    Around,
    Durations,
    Looks,
    Recent,
    Tails,
    durations_of,
    moment_of,
)
from checkpoint.storage.files import index_path, read_object
from checkpoint.storage.keyed_log import key_of
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record
from checkpoint.storage.source import RecordSource
from checkpoint.storage.spending import Costs, cost_text, sum_of
from checkpoint.values.keys import Key, plain_json
from checkpoint.words import ago, ago_if_known, lasted, rate_in_words, size_in_words, span

__all__ = ["Failed", "Observer", "Summary", "Survey", "cause_json", "causes", "failures", "list_checkpoints", "survey"]


_READ = 1000  # failures that are read for their causes
_COUNTED = 20_000  # failures that are read to be counted, where their keys are not known
_SHOWN = 5


# --- what is told ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Failed:
    """A recorded failure whose key has no result."""

    key: Key
    type: str | None
    message: str
    traceback: str | None
    attempts: int | None
    elapsed: float | None
    timestamp: str
    given_up: bool = False

    @property
    def error(self) -> ItemError:
        """The `ItemError` that stands in the failed item's place."""
        names = ("key", "type", "message", "traceback", "attempts", "elapsed", "given_up")
        parts = {part: getattr(self, part) for part in names}
        return ItemError(f"item {quote(self.key)} failed", **parts)

    def to_json(self, *, traceback: bool = False) -> dict[str, Any]:
        """`key`, `type`, `message`, `attempts`, `elapsed`, `timestamp`, `given_up`, and `traceback` if asked for."""
        told = {
            "key": plain_json(self.key),
            "type": self.type,
            "message": self.message,
            "attempts": self.attempts,
            "elapsed": self.elapsed,
            "timestamp": self.timestamp,
            "given_up": self.given_up,
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
        undecided, accepted, cost: as in `Survey`.
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
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        """These names stay.

        `name`, `done`, `failed`, `failed_is_exact`, `total`, `bytes`, `last_activity`, `writer`, `shards` and `writers`
        (how many), `undecided` (how many results, or null), `accepted` (a list of texts), `error`, `cost` (or
        null).
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
            "cost": self.cost,
        }


@dataclass(frozen=True, slots=True)
class Survey:
    """The state of a checkpoint at one moment. `str()` is for people, `to_json` for programs.

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
        cost: what all versions have cost, those records included that count no more; None where nothing was noted.
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
    cost: float | None = None

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
        texts), and `cost` (null where none was noted; of each version, where one was). Of a URL also `url` and
        `not_uploaded` (`bytes`, `seconds`).
        """
        open_ = self.undecided
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
            "cost": self.cost,
            **self._mirror_json(),
        }

    def _mirror_json(self) -> dict[str, Any]:
        """Return the additional fields for a directory that mirrors a URL."""
        if (behind := self.uploaded) is None:
            return {}
        return {"url": self.url, "not_uploaded": {"bytes": behind.bytes, "seconds": behind.seconds}}

    def __str__(self) -> str:
        rows = [f"checkpoint {self.name!r} in {self.directory}"]
        for label, lines in self.rows():
            rows += [f"  {label if not place else '':<10}{line}" for place, line in enumerate(lines)]
        return "\n".join(map(printable, rows))

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (label, lines) rows for people."""
        yield "done", [self.counts()]
        yield "writing", [self.writing()]
        if self.shards:
            yield "shards", list(self.shard_lines())
        if self.rate is not None:
            yield "rate", [self.pace()]
        if self.durations is not None:
            took = f"{lasted(self.durations.median)} median, {lasted(self.durations.most)} at the 95th percentile"
            yield "calls", [f"{took} ({plural(self.durations.count, 'result')} looked at)"]
        if self.cost is not None:
            yield "cost", [cost_text(self.cost)]
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
        """Say who is writing, and when the last record was saved."""
        last = f"last record {ago_if_known(self.idle)}"
        if self.last is None:
            last = "no time is recorded" if self.done or self.failed else "nothing saved yet"
        if self.writer is None:
            return f"nobody; {last}"
        if not self.writer:
            return f"whether anybody is cannot be told here; {last}"
        since = moment_of(self.writer.get("since"))
        told = "" if since is None else f", for {span(self.asked_at - since)}"
        told += f", {self.paused}, since the server refuses calls" if self.paused else ""
        return f"process {self.writer.get('pid')} on {self.writer.get('host')}{told}; {last}"

    def shard_lines(self) -> Iterator[str]:
        """Yield lines about the shards and their writers."""
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

    @property
    def paused(self) -> str:
        """ "paused 42 s", while who writes holds calls; else ""."""
        since = moment_of((self.writer or {}).get("paused"))
        return "" if since is None else f"paused {span(self.asked_at - since)}"

    def pace(self) -> str:
        """ "8.1 items/s · about 23 s left", or "paused 42 s"."""
        if self.rate is None or self.paused:
            return self.paused
        rate = f"{rate_in_words(self.rate)}{'' if self.writer else ' when it was last written'}"
        if self.seconds_left is None:
            return rate
        return f"{rate} · " + (
            "less than 1 s left" if self.seconds_left < 1 else f"about {span(self.seconds_left)} left"
        )

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
        if held.cost is not None:
            told += f", cost {cost_text(held.cost)}"
        return f"{name}: {told}{' (current)' if held.version == self.version else ''}"


def cause_json(cause: Cause, *, traceback: bool = False) -> dict[str, Any]:
    """`type`, `where`, `count`, `message`, `keys` (of the first 100), `given_up`, and `traceback` if asked for."""
    told = {
        "type": cause.type,
        "where": cause.where,
        "count": cause.count,
        "message": cause.message,
        "keys": [plain_json(key) for key in cause.keys],
        "given_up": cause.given_up,
    }
    return {**told, "traceback": cause.traceback} if traceback else told


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
    """Return how far a checkpoint is, how fast, why items fail, and who is writing.

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
        self._records = VersionView(name, self.directory, version=LATEST, power=False, result_type=None)
        self._failures = _Failures()
        self._known: Around | None = None

    def close(self) -> None:
        """Release the files."""
        self._records.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def summary(self) -> Summary:
        """The checkpoint in one line."""
        checkpoint = self._records.open()
        version = self._records.version
        tails = Tails(checkpoint)
        writers = self._writers(checkpoint)
        failed, is_exact = _unresolved(checkpoint, checkpoint.errors, version)
        size = sum(_sizes(self.name, self.directory).values())
        return Summary(
            self.name,
            str(self.directory),
            checkpoint.results.count(version),
            failed,
            is_exact,
            _total_of(checkpoint, _meta_of(checkpoint)),
            size,
            tails.last,
            _first_writer(writers),
            shards=len(writers) - 1,
            writers=sum(map(bool, writers.values())),
            undecided=undecided_of(checkpoint, version, LOOKS),
            accepted=tuple(decided_of(checkpoint, version)),
            cost=_total_cost(checkpoint.spent_if_known()),
        )

    def look(self) -> Survey:
        """The checkpoint at this moment."""
        checkpoint = self._records.open()
        version, now, tails, meta = self._records.version, self._now(), Tails(checkpoint), _meta_of(checkpoint)
        writers = self._writers(checkpoint)
        writer = _first_writer(writers)
        done = checkpoint.results.count(version)
        failed, is_exact = _unresolved(checkpoint, checkpoint.errors, version)
        causes, read, afresh = self._failures.look(checkpoint, version, tails.current)
        total = _total_of(checkpoint, meta)
        # Items that failed in an earlier session are tried again; of this one's, those that were read tell.
        pace = _pace_of(tails, now, writer, total, done + (failed if afresh == read else afresh))
        around = self._look_around(checkpoint, version)
        costs = checkpoint.spent_if_known()
        uploader = checkpoint.uploader
        return Survey(
            name=self.name,
            directory=str(self.directory),
            version=version,
            versions=tuple(_versions(checkpoint, version, (done, failed), meta, costs or {})),
            done=done,
            failed=failed,
            is_exact=is_exact,
            total=total,
            aside=_unresolved(checkpoint, checkpoint.unsaved, version)[0],
            causes=tuple(causes),
            causes_read=read,
            last=tails.last,
            writer=writer,
            shards=tuple((str(shard), writer) for shard, writer in writers.items() if shard != ALL),
            sessions=len(around.sessions | tails.sessions),
            durations=around.durations,
            sizes=_sizes(self.name, self.directory),
            recent=tuple(tails.recent()),
            asked_at=now,
            url=None if uploader is None else uploader.mirror.url,
            uploaded=None if uploader is None else uploader.uploaded(),
            undecided=undecided_of(checkpoint, version, LOOKS),
            accepted=tuple(decided_of(checkpoint, version)),
            cost=_total_cost(costs),
            **pace._asdict(),
        )

    def _writers(self, checkpoint: Checkpoint) -> dict[Shard, dict[str, Any] | None]:
        """Return who is writing each shard's journals, here or on another machine."""
        found = {}
        for shard, prefix in parts_of(self.name, self.directory).items():
            found[shard] = writer_of(self.directory, prefix)
            if found[shard] is None:
                found[shard] = checkpoint.writer_elsewhere(shard)
        return found

    def _look_around(self, checkpoint: Checkpoint, version: str) -> Around:
        """Return sampled durations and sessions; they are sampled again once the file has grown by a tenth."""
        results, errors = checkpoint.results.readers, checkpoint.errors.readers
        size = sum(part.size() for part in (*results, *errors))
        known = self._known
        if known is None or known.of != (results, errors, version) or not known.size <= size <= 1.1 * known.size:
            share = len(checkpoint.parts)
            looks = [Looks(part, share) for part in (*results, *errors)]
            took = [seconds for look in looks[: len(results)] for seconds in look.took(version)]
            sessions = set().union(*[look.sessions() for look in looks])
            known = self._known = Around((results, errors, version), size, durations_of(took), sessions)
        return known


class _Pace(NamedTuple):
    """The rate of a pass and the time left, as a `Survey` shows them."""

    left: int | None
    rate: float | None
    seconds_left: float | None
    idle: float | None


def _pace_of(tails: Tails, now: float, writer: dict[str, Any] | None, total: int | None, dealt_with: int) -> _Pace:
    """The pace of the session that wrote last, where the pass has `dealt_with` so many of its items."""
    left = None if total is None else max(0, total - dealt_with)
    idle = None if tails.moment is None else max(0.0, now - tails.moment)
    is_written = bool(writer) or (writer == {} and idle is not None and idle < MINUTE)
    rate = tails.rate(now if is_written else None)
    seconds_left = left / rate if left and rate and is_written else None
    if seconds_left is not None and idle is not None and idle > max(1.0, seconds_left):
        seconds_left = None  # the calls that are left take longer than those before them
    return _Pace(left, rate, seconds_left, idle)


def _first_writer(writers: dict[Shard, dict[str, Any] | None]) -> dict[str, Any] | None:
    """Return the first known writer, or {} if that cannot be determined."""
    return next((writer for writer in writers.values() if writer), {} if {} in writers.values() else None)


def _meta_of(checkpoint: Checkpoint) -> dict[str, Any]:
    try:
        return read_object(checkpoint.store.meta.path)
    except (OSError, ValueError):
        return {}


def _total_of(checkpoint: Checkpoint, meta: dict[str, Any]) -> int | None:
    """Return how many items the last pass had: this process's own, or as the writer last noted it."""
    total = (
        checkpoint.store.meta.total
        if checkpoint.store.writer.writing
        else checkpoint.whole_total()
        if checkpoint.shards
        else meta.get("total_items")
    )
    return total if type(total) is int and total >= 0 else None


def _versions(
    checkpoint: Checkpoint, current: str, counts: tuple[int, int], meta: dict[str, Any], costs: Costs
) -> Iterator[VersionCount]:
    cost = {version: held.total for version, held in costs.items()}
    noted = meta.get("versions")
    labels = {**checkpoint.versions, **(noted if isinstance(noted, dict) else {})}
    if any(counts):
        yield VersionCount(current, labels.get(current), *counts, cost.get(current))
    others = (checkpoint.results.versions | checkpoint.errors.versions) - {current}
    found = [
        (checkpoint.results.count(version), _unresolved(checkpoint, checkpoint.errors, version)[0], version)
        for version in others
    ]
    for done, failed, version in sorted(found, key=lambda part: (-part[0], -part[1], part[2])):
        if done or failed:
            yield VersionCount(version, labels.get(version), done, failed, cost.get(version))


def _total_cost(costs: Costs | None) -> float | None:
    return None if costs is None else sum_of(costs)


def _sizes(name: str, directory: Path) -> dict[str, int]:
    """Return the sizes of the existing files by kind, shards included."""
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


def _unresolved(checkpoint: Checkpoint, shelf: RecordSource, version: str) -> tuple[int, bool]:
    """Return (how many keys have a record there and no result, whether that is an exact count)."""
    count = shelf.count(version)
    if not count:
        return 0, True
    with checkpoint.store.lock:
        keys = shelf.recent_keys(version)
    if keys is not None:
        held, done = shelf.find_all(version, keys)[0], checkpoint.results.find_all(version, keys)[0]
        return sum(place >= 0 and at < 0 for place, at in zip(held, done, strict=True)), True
    reader, offsets = shelf.offsets(version)
    if len(offsets) > _COUNTED:  # drawn, since every n-th of them may be alike
        offsets = Random(0).sample(offsets, _COUNTED)
    open_ones = sum(1 for _ in _open_failures(checkpoint, shelf, version, reader, offsets))
    is_all = len(offsets) >= count
    return open_ones if is_all else round(open_ones * count / len(offsets)), is_all


def _open_failures(
    checkpoint: Checkpoint, shelf: RecordSource, version: str, reader: Reader | None, offsets: Sequence[int]
) -> Iterator[tuple[int, Key, Record]]:
    """Yield (offset, key, record) of the sound failures that no result retires."""
    for offset in offsets if reader is not None else ():
        try:
            assert reader is not None
            record = reader.read(offset)
            key = key_of(reader, record, offset)
        except DamagedRecord:
            continue  # `check` tells of it
        if not checkpoint.is_retired(version, key, record):
            yield offset, key, record


class _Failures:
    """The causes of the last failures: a record is read once, however often they are looked at."""

    def __init__(self) -> None:
        self._reader: Reader | None = None
        self._known: dict[int, tuple[Key, Record] | None] = {}
        self._shown: list[int] = []
        self._causes: list[Cause] = []

    def look(self, checkpoint: Checkpoint, version: str, current: set[str]) -> tuple[list[Cause], int, int]:
        """Return (causes, failures examined, how many of these the running sessions recorded)."""
        reader, offsets = checkpoint.errors.last_offsets(version, _READ)
        if reader is not self._reader:
            self._reader, self._known, self._shown, self._causes = reader, {}, [], []
        known = {offset: self._known[offset] if offset in self._known else _read(reader, offset) for offset in offsets}
        self._known = known
        held = [(offset, *found) for offset, found in known.items() if found is not None]
        done, _ = checkpoint.results.find_all(version, [key for _, key, _ in held])
        left = [
            (offset, key, record)
            for place, (offset, key, record) in zip(done, held, strict=True)
            if place < 0 and (record.crc or not checkpoint.is_retired(version, key, record))
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
    records = VersionView(name, directory, version=LATEST, power=False, result_type=None)
    try:
        checkpoint = records.open()
        reader, offsets = checkpoint.errors.offsets(records.version)
        for _, key, record in _open_failures(checkpoint, checkpoint.errors, records.version, reader, offsets):
            if type is None or _is_of(record.type, type):
                yield _failed(key, record)
    finally:
        records.close()


def causes(failed: Iterable[Failed]) -> list[Cause]:
    """Group failures by cause, the most frequent first."""
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
        record.given_up,
    )
