"""Time is asked for here and nowhere else, so that tests can tick it.

`time.time` names moments (UTC, seconds since the epoch), `time.monotonic` and `time.perf_counter` measure spans.
Order between the records of one journal is their order in the file, never a timestamp: clocks jump.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

__all__ = ["Clock", "Stamper", "monotonic", "next_stamp", "now", "perf_counter", "sleep"]

Clock = Callable[[], float]

now: Clock = time.time
monotonic: Clock = time.monotonic
perf_counter: Clock = time.perf_counter
sleep: Callable[[float], None] = time.sleep


_LAST = 253402300799999  # the last millisecond of the year 9999; a clock may be set to anything


class Stamper:
    """UTC ISO 8601 timestamps with milliseconds, such as b"2026-03-01T12:00:00.123Z".

    Each is formatted once a millisecond: `datetime.isoformat` costs more than writing the record.

    Args:
        clock: seconds since the epoch.
    """

    __slots__ = ("_clock", "_last")

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        # One tuple, replaced whole: threads share a stamper without a lock.
        self._last: tuple[int | None, bytes] = (None, b"")

    def __call__(self) -> bytes:
        moment = int(self._clock() * 1000)
        last, stamp = self._last
        if moment != last:
            second, fraction = divmod(min(max(moment, 0), _LAST), 1000)
            stamp = time.strftime(f"%Y-%m-%dT%H:%M:%S.{fraction:03d}Z", time.gmtime(second)).encode()
            self._last = (moment, stamp)
        return stamp


def next_stamp(stamp: str) -> bytes:
    """The timestamp a millisecond after this one; b"" where it is none."""
    try:
        moment = datetime.fromisoformat(stamp)
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return b""
    return Stamper(lambda: seconds + 0.0015)()
