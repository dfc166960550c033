"""Time is asked for here and nowhere else, so that tests can tick it.

`time.time` names moments (UTC, seconds since the epoch), `time.monotonic` and `time.perf_counter` measure spans.
Order between records is their order in the file, never a timestamp: clocks jump.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Clock", "Stamper", "monotonic", "now", "perf_counter"]

Clock = Callable[[], float]

now: Clock = time.time
monotonic: Clock = time.monotonic
perf_counter: Clock = time.perf_counter


class Stamper:
    """UTC ISO 8601 timestamps with microseconds, such as b"2026-03-01T12:00:00.000123Z".

    The part down to the second is formatted once a second: `datetime.isoformat` costs more than writing the record.

    Args:
        clock: seconds since the epoch.
    """

    __slots__ = ("_clock", "_second")

    def __init__(self, clock: Clock = now) -> None:
        self._clock = clock
        # One tuple, replaced whole: threads share a stamper without a lock.
        self._second: tuple[int, bytes] = (-1, b"")

    def __call__(self) -> bytes:
        moment = self._clock()
        whole = int(moment)
        second, prefix = self._second
        if whole != second:
            prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)).encode()
            self._second = (whole, prefix)
        return b"%b.%06dZ" % (prefix, int((moment - whole) * 1e6))
