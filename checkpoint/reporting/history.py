"""The history of a checkpoint's runs, read from its records: when, how long, how often, and the pauses between.

The promise: it only reads, each record once, and keeps a few numbers of each, not its value. What was not recorded is
not guessed.
"""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any, NamedTuple

from checkpoint.catalog.value_reading import item_error
from checkpoint.catalog.view import VersionCount, VersionView
from checkpoint.errors import ItemError
from checkpoint.reporting.causes import Cause, causes_of
from checkpoint.reporting.tables import versions_of
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record
from checkpoint.storage.source import RecordSource
from checkpoint.storage.spending import cost_in, sum_of

__all__ = [
    "EPOCH",
    "EXAMINED",
    "FIRST",
    "LAST",
    "ROWS",
    "Pause",
    "RunHistory",
    "Session",
    "Slow",
    "Stretch",
    "Timeline",
    "gather",
    "known",
    "moment_of",
]

ROWS = 1000
"""Results, and as many failures, whose places are kept to be shown."""

EXAMINED = 100_000
"""Failures that are grouped by cause: one by one their messages would fill the memory."""

_SLOWEST = 20

# --- what the records tell ------------------------------------------------------------------------------------------


class Slow(NamedTuple):
    """One of the calls that took longest."""

    elapsed: float
    order: int
    key: Any
    record: tuple[float, int | None, bool]  # moment, attempts, failed


@dataclass(slots=True)
class Session:
    """The records that one session wrote, and when."""

    number: int
    began: float
    ended: float
    done: int = 0
    failed: int = 0


@dataclass(slots=True)
class RunHistory:
    """The result of reading all records once. Moments are in seconds since the epoch, NaN if not recorded."""

    done: int = 0
    failed: int = 0
    damaged: int = 0
    total: int | None = None
    versions: list[VersionCount] = field(default_factory=list)
    moments: array[float] = field(default_factory=lambda: array("d"))  # of records that have one, and alike:
    begins: array[float] = field(default_factory=lambda: array("d"))
    owners: array[int] = field(default_factory=lambda: array("q"))  # numbers of sessions, from 1; 0 where not recorded
    successes: bytearray = field(default_factory=bytearray)
    costs: array[float] = field(default_factory=lambda: array("d"))  # 0 where none was noted
    spent: float | None = None  # by all versions, records that count no more included; None where nothing was noted
    durations: array[float] = field(default_factory=lambda: array("d"))  # of results
    call_time: float = 0.0
    timed: int = 0
    attempts: Counter[int] = field(default_factory=Counter)
    failed_after: Counter[int] = field(default_factory=Counter)
    sessions: dict[str, Session] = field(default_factory=dict)
    slowest: list[Slow] = field(default_factory=list)
    causes: list[Cause] = field(default_factory=list)
    unexamined: int = 0
    shown: list[tuple[Reader, int]] = field(default_factory=list)  # where the records of the table are
    shown_failed: list[tuple[Reader, int]] = field(default_factory=list)

    @property
    def known(self) -> int:
        """How many items have a record."""
        return self.done + self.failed

    def note(self, key: Any, record: Record, *, failed: bool) -> None:
        """Count one record."""
        moment, elapsed = moment_of(record.timestamp), known(record.elapsed)
        if failed:
            self.failed += 1
        else:
            self.done += 1
        if elapsed is not None:
            self.timed += 1
            self.call_time += elapsed
            if not failed:
                self.durations.append(elapsed)
            self._note_slow(elapsed, key, record, moment, failed)
        if record.attempts is not None:
            self.attempts[record.attempts] += 1
            if failed:
                self.failed_after[record.attempts] += 1
        if moment == moment:
            self._note_moment(moment, moment - (elapsed or 0.0), record.session, failed)
            self.costs.append(cost_in(record) or 0.0)

    def _note_slow(self, elapsed: float, key: Any, record: Record, moment: float, failed: bool) -> None:
        if len(self.slowest) == _SLOWEST and elapsed <= self.slowest[0].elapsed:
            return
        heapq.heappush(self.slowest, Slow(elapsed, -self.timed, key, (moment, record.attempts, failed)))
        if len(self.slowest) > _SLOWEST:
            heapq.heappop(self.slowest)

    def _note_moment(self, moment: float, began: float, name: str, failed: bool) -> None:
        number = 0
        if name:
            session = self.sessions.get(name)
            if session is None:
                session = self.sessions[name] = Session(len(self.sessions) + 1, began, moment)
            session.began, session.ended = min(session.began, began), max(session.ended, moment)
            session.done += not failed
            session.failed += failed
            number = session.number
        self.moments.append(moment)
        self.begins.append(began)
        self.owners.append(number)
        self.successes.append(not failed)


def gather(records: VersionView) -> RunHistory:
    """Read the records of the current version once, and return their history."""
    records.pin()  # what is saved meanwhile must not lead to another version halfway
    checkpoint, story = records.open(), RunHistory()
    if len(checkpoint.results.versions | checkpoint.errors.versions) > 1:
        story.versions = versions_of(records)
    story.total = checkpoint.whole_total()
    costs = checkpoint.spent_if_known()
    story.spent = None if costs is None else sum_of(costs)
    story.damaged = checkpoint.results.damaged + checkpoint.errors.damaged
    story.causes = causes_of(_failures(records, story))
    for reader, offset, key, record in _sound(checkpoint.results, records.version, story):
        story.note(key, record, failed=False)
        if len(story.shown) < ROWS:
            story.shown.append((reader, offset))
    return story


def _failures(records: VersionView, story: RunHistory) -> Iterator[ItemError]:
    """Yield the failures to group by cause, and count all of them on the way."""
    checkpoint = records.checkpoint
    for reader, offset, key, record in _sound(checkpoint.errors, records.version, story):
        if checkpoint.is_retired(records.version, key, record):
            continue
        story.note(key, record, failed=True)
        if len(story.shown_failed) < ROWS:
            story.shown_failed.append((reader, offset))
        if story.failed <= EXAMINED:
            yield item_error(key, record)
        else:
            story.unexamined += 1


def _sound(shelf: RecordSource, version: str, story: RunHistory) -> Iterator[tuple[Reader, int, Any, Record]]:
    """(reader, offset, key, record) of every key whose record is sound, in the order of the file."""

    def damaged() -> None:
        story.damaged += 1

    exact = {str(key) for key, record in shelf.sound(version) if record.crc} if shelf.has_loose else set()
    for reader, offset, key, record in shelf.sound_places(version, damaged):
        if record.crc or key not in exact:  # a line with a checksum wins over one without
            yield reader, offset, key, record


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST, LAST = -62_135_596_800.0, 253_402_300_799.0  # of years 1 and 9999


def moment_of(text: str) -> float:
    """Seconds since the epoch; NaN where a line of another program has something else there."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return math.nan


def known(elapsed: float | None) -> float | None:
    """A duration; None for one that nobody can have measured."""
    return elapsed if elapsed is not None and 0 <= elapsed < 1e9 else None


# --- time, with the pauses taken out ---------------------------------------------------------------------------------

_BAND = 4.5  # % of the width that a pause has, however long it was
_BANDS = 36.0  # % that all of them have at most
_MOST_PAUSES = 40
_IDLE = 60.0  # seconds; within a session, what is shorter is no pause


class Pause(NamedTuple):
    """A span in which nothing ran."""

    start: float
    end: float
    restarts: bool  # another session went on


class Stretch(NamedTuple):
    """A span of time that a chart draws to scale."""

    start: float
    end: float
    left: float  # % of the width
    right: float


class Timeline:
    """The moments of all records in order, the pauses between them, and where each moment is on a chart."""

    def __init__(self, story: RunHistory) -> None:
        order = sorted(range(len(story.moments)), key=story.moments.__getitem__)
        moments = array("d", [story.moments[place] for place in order])
        self.done = array("d", [story.moments[place] for place in order if story.successes[place]])
        self.failed = array("d", [story.moments[place] for place in order if not story.successes[place]])
        self._moments = moments
        self._paid = array("d", accumulate([story.costs[place] for place in order if story.costs], initial=0.0))
        begins = array("d", [story.begins[place] for place in order])
        for place in range(len(begins) - 2, -1, -1):  # a call that began before this one ended left no pause
            begins[place] = min(begins[place], begins[place + 1])
        self.start, self.end = begins[0], moments[-1]
        pauses = list(_pauses(moments, begins, [story.owners[place] for place in order]))
        self.active = self.end - self.start - sum(pause.end - pause.start for pause in pauses)
        self.pauses = sorted(heapq.nlargest(_MOST_PAUSES, pauses, key=lambda pause: pause.end - pause.start))
        self.stretches = self._lay_out(self._folded())

    def _folded(self) -> list[Pause]:
        """Return the pauses that would take more than their share of the chart if they were drawn to scale."""
        rest, folded = self.end - self.start, []
        for pause in sorted(self.pauses, key=lambda pause: pause.start - pause.end):
            length = pause.end - pause.start
            if 0.04 * (rest - length) < length < rest - 1e-3:
                folded.append(pause)
                rest -= length
        return sorted(folded)

    def _lay_out(self, folded: list[Pause]) -> list[Stretch]:
        starts = [self.start, *[pause.end for pause in folded]]
        ends = [*[pause.start for pause in folded], self.end]
        band = min(_BAND, _BANDS / len(folded)) if folded else 0.0
        worked = sum(ends) - sum(starts) or 1.0
        widths = [max((end - start) / worked, 0.012) for start, end in zip(starts, ends, strict=True)]
        scale = (100 - band * len(folded)) / sum(widths)
        stretches, left = [], 0.0
        for start, end, width in zip(starts, ends, widths, strict=True):
            stretches.append(Stretch(start, end, left, left + width * scale))
            left += width * scale + band
        return stretches

    def x(self, moment: float) -> float:
        """Where a moment is, in % of the width."""
        place = max(bisect_right(self.stretches, moment, key=lambda stretch: stretch.start) - 1, 0)
        start, end, left, right = self.stretches[place]
        return left + (right - left) * min(max((moment - start) / (end - start or 1.0), 0.0), 1.0)

    def count(self, moment: float) -> tuple[int, int]:
        """(done, failed) up to a moment."""
        return bisect_right(self.done, moment), bisect_right(self.failed, moment)

    def paid(self, moment: float) -> float:
        """Return the cost of the records up to a moment."""
        return self._paid[bisect_right(self._moments, moment)] if len(self._paid) > 1 else 0.0

    def bins(self, count: int) -> Iterator[Stretch]:
        """About `count` spans of time of like width; a pause is in none."""
        for start, end, left, right in self.stretches:
            parts = max(round(count * (right - left) / 100), 1)
            for part in range(parts):
                low, high = part / parts, (part + 1) / parts
                yield Stretch(
                    start + (end - start) * low,
                    end if part == parts - 1 else start + (end - start) * high,
                    left + (right - left) * low,
                    left + (right - left) * high,
                )


def _pauses(moments: array[float], begins: array[float], owners: list[int]) -> Iterator[Pause]:
    """Return the pauses: where a later session began, and where nothing ran for long."""
    steps = sorted([moments[place] - moments[place - 1] for place in range(1, len(moments))])
    least = max(_IDLE, 50 * steps[len(steps) // 2]) if steps else _IDLE
    seen = set(owners[:1])
    for place in range(1, len(moments)):
        start, end = moments[place - 1], begins[place]
        restarts = owners[place] not in seen
        seen.add(owners[place])
        if restarts or end - start >= least:
            yield Pause(start, max(start, end), restarts)
