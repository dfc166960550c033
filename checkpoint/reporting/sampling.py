"""Sample journals: read their ends and a few places to estimate a job's rate and durations.

The promise: what is read is bounded, never the size of the journals; what is an estimate says so.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.errors import shorten
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record, parse
from checkpoint.values.keys import Key, key_from_json, plain_json

__all__ = ["LOOKS", "MINUTE", "Around", "Durations", "Looks", "Recent", "Tails", "durations_of", "moment_of"]


_TAIL = 256 << 10  # bytes of a journal's end that are read
LOOKS = 300  # places of a journal that are looked at for durations and sessions
_MORE_LOOKS = 3000  # and to find where sessions begin
_RECENT = 5
MINUTE = 60.0
_LEAST = 20  # records that a rate is taken from, however long ago they were saved
_STALLED = 5.0  # seconds without a record, at least, that make a rate fall


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


class Tails:
    """The last records of all journals, from their last bytes; nothing else is read.

    Attributes:
        last, moment: when the last record was saved, in words and in seconds.
        current: the sessions that wrote within a minute of it: of each journal the last one.
        sessions: all that are seen.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        most = max(_TAIL // len(checkpoint.parts), _NEAR)
        self._tails = [_Tail(*part, most) for part in checkpoint.parts]
        held = sorted([(tail.moment, tail.last) for tail in self._tails if tail.moment is not None], key=itemgetter(0))
        self.moment: float | None = held[-1][0] if held else None
        self.last: str | None = held[-1][1] if held else None
        self._current = [tail for tail in self._tails if self._is_current(tail)]
        self.current = {tail.session for tail in self._current}
        self.sessions = set().union(*[tail.sessions for tail in self._tails])

    def _is_current(self, tail: _Tail) -> bool:
        return self.moment is None or (tail.moment is not None and tail.moment >= self.moment - MINUTE)

    def rate(self, now: float | None) -> float | None:
        """Records a second, of all that go on."""
        rates = [rate for tail in self._current if (rate := tail.rate(now)) is not None]
        return sum(rates) if rates else None

    def recent(self) -> list[Recent]:
        """The last few records."""
        found = [(moment, recent) for tail in self._tails for moment, recent in tail.recent()]
        return [recent for _, recent in sorted(found, key=itemgetter(0))[-_RECENT:]]


class _Tail:
    """The last records of one shard's results and errors."""

    def __init__(self, results: KeyedLog, errors: KeyedLog, most: int) -> None:
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
        since = moments[-1] - MINUTE if moments else 0.0
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
    """Yield the record of each sound line, without tombstones and lines that are being written."""
    for line in filter(None, data.split(b"\n")):
        try:
            record = parse(line)
        except ValueError:
            continue
        if not record.forgotten:
            yield record


_NEAR = 4096
_FAR = 1 << 16

_TRAILER = re.compile(
    rb'(?P<forgotten>"forgotten":true,)?(?:"timestamp":"(?P<at>[^"\\]*)")?'
    rb'(?:,"version":"(?P<version>[0-9a-f]*)"|,"(?:code|schema|input|from)":"[^"\\]*"|,"elapsed":(?P<elapsed>[-+.0-9e]+)'
    rb'|,"attempts":[0-9]+|,"session":"(?P<session>[0-9a-f]*)")+,"crc":"[0-9a-f]{8}"\}$'
)

_LONGEST_TRAILER = 600
_SHORTEST_LINE = 80


class Around(NamedTuple):
    """The sampled durations and sessions of journals of a given size."""

    of: tuple[list[Reader], list[Reader], str]
    size: int
    durations: Durations | None
    sessions: set[str]


class _Seen(NamedTuple):
    """The fields at the end of a line, and its offset."""

    stop: int
    version: str
    session: str
    elapsed: float | None


class Looks:
    """Samples of a journal at evenly spaced offsets: the fields at the ends of the lines there.

    A line's end is enough, since a result stands before it, however large.
    """

    def __init__(self, reader: Reader, share: int) -> None:
        self._reader, size = reader, reader.size()
        count = min(-(-LOOKS // share), size // _SHORTEST_LINE + 1)
        places = sorted({size * part // count for part in range(count)} | ({size - 2} if size > 1 else set()))
        looks = (self._look(place) for place in places)
        self._seen = list({seen.stop: seen for seen in looks if seen is not None}.values())
        self._left = -(-_MORE_LOOKS // share)

    def _look(self, place: int) -> _Seen | None:
        """Return the fields at the end of the line that contains this offset."""
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
        """Return how long the sampled calls took."""
        took = [seen.elapsed for seen in self._seen if seen.version == version and seen.elapsed is not None]
        return [seconds for seconds in took if 0 <= seconds < float("inf")]

    def sessions(self) -> set[str]:
        """Return the sessions that wrote. Between two samples of one session no other is looked for.

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


def durations_of(took: list[float]) -> Durations | None:
    """The median and the 95th percentile of the calls that were seen."""
    took = sorted(took)
    if not took:
        return None
    return Durations(took[len(took) // 2], took[min(len(took) - 1, len(took) * 95 // 100)], len(took))


def _float(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
