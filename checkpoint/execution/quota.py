"""The permits of a rate: how much may start when, over all who share it.

The promise: calls start evenly. A rate of 600 a minute starts one in a tenth of a second, and never more than its limit
in any span of `per` seconds, but by one call that costs more than a second's worth. One `Rate` object is one quota in
this process, whoever was given it: functions, passes, threads and event loops. Nothing here waits.
"""

from __future__ import annotations

import numbers
import weakref
from collections import deque
from typing import Any, NamedTuple

from checkpoint import locks
from checkpoint.errors import InvalidOption, quote
from checkpoint.execution.gate import Gate
from checkpoint.execution.policies import Rate
from checkpoint.outcomes import Unit

__all__ = ["Permit", "Permits", "Quota", "cost_of", "quota_of"]

_TOLERANCE = 1e-9  # of a limit: fractions that add up to it do not quite
_SHORTEST = 1e-6  # seconds: who waits gets on, however small the rest is

Permit = tuple[float, float]
"""When a call started, and what it cost."""


def cost_of(rate: Rate, units: list[Unit]) -> float:
    """The cost of a call on the units.

    Raises:
        InvalidOption: more than the limit, or no number: the call would never start.
    """
    if rate.cost is None:
        return 1.0
    total = 0.0
    for unit in units:
        cost: Any = rate.cost(unit.item)
        if not isinstance(cost, numbers.Real) or not float(cost) >= 0:
            raise InvalidOption(
                f"the cost that a rate's function gave for the item is {quote(cost)}; give a number of 0 or more"
            )
        total += float(cost)
    if total > rate.limit:
        raise InvalidOption(
            f"the cost of the call is {total:,.6g}, over the rate's limit of {rate.limit:,} in {rate.per:g} s: "
            "it could never start"
        )
    return total


class Permits:
    """A bucket of one second's worth, or of one call, that fills steadily; and what the last `per` seconds took of it.

    A call that costs more than the bucket holds starts when it is full, and leaves a debt. The bucket begins with as
    much as the first call needs: else the first second would have twice its share.

    Args:
        rate: how much may start in which span.
    """

    def __init__(self, rate: Rate) -> None:
        limit, per = float(rate.limit), rate.per
        self._limit, self._per = limit, per
        self._speed = limit / per
        self._most = min(limit, max(self._speed, 1.0 if rate.cost is None else 0.0))
        self._level: float | None = None  # as of `_seen`; None before the first call
        self._seen = 0.0
        self._lock = locks.lock("quota")
        self._taken: deque[Permit] = deque()
        self._sum = 0.0

    def wait(self, cost: float, now: float) -> float:
        """Seconds until a call of that cost may start; 0 for at once."""
        with self._lock:
            return self._wait(cost, now)

    def _wait(self, cost: float, now: float) -> float:
        if cost <= 0:
            return 0.0
        need = min(cost, self._most)
        level = need if self._level is None else self._filled(now)
        short = need - level
        until_full = short / self._speed if short > need * _TOLERANCE else 0.0
        wait = max(until_full, self._until_window(cost, now))
        return max(wait, _SHORTEST) if wait > 0 else 0.0

    def _filled(self, now: float) -> float:
        level = self._level or 0.0
        return min(self._most, level + max(now - self._seen, 0.0) * self._speed)

    def _until_window(self, cost: float, now: float) -> float:
        """Seconds until what started in the last `per` seconds leaves room."""
        taken, per = self._taken, self._per
        while taken and taken[0][0] + per <= now:
            self._sum -= taken.popleft()[1]
        if not taken:
            self._sum = 0.0  # what floats add up to drifts
        if cost > self._most:  # dear: it may go over the limit, alone
            over = self._sum - self._limit * (1 - _TOLERANCE)
        else:
            over = self._sum + cost - self._limit * (1 + _TOLERANCE)
        due = now
        for when, gone in taken:
            if over <= 0:
                break
            over, due = over - gone, when + per
        return due - now

    def take(self, cost: float, now: float) -> Permit | None:
        """Take the permit for a call that starts now; None where it may not, as others were quicker."""
        with self._lock:
            if self._wait(cost, now) > 0:
                return None
            level = min(cost, self._most) if self._level is None else self._filled(now)
            self._level, self._seen = level - cost, max(now, self._seen)
            permit = (now, cost)
            self._taken.append(permit)
            self._sum += cost
            return permit

    def give_back(self, permit: Permit) -> None:
        """The call did not start."""
        with self._lock:
            if permit in self._taken:
                self._taken.remove(permit)
                self._sum -= permit[1]
            self._level = min(self._most, (self._level or 0.0) + permit[1])


class Quota(NamedTuple):
    """What all share that have one `Rate`.

    Attributes:
        permits: how much may start when.
        gate: whether anything may, as long as the server refuses.
    """

    permits: Permits
    gate: Gate


_known: dict[int, tuple[weakref.ref[Rate], Quota]] = {}  # by identity: equal rates are two quotas
_knowing = locks.lock("quotas")


def quota_of(rate: Rate) -> Quota:
    """The quota of this very object; it lives as long as that does."""
    with _knowing:
        known = _known.get(id(rate))
        if known is None or known[0]() is not rate:
            place = id(rate)
            # A collection may call the function, under any lock: it takes none.
            reference = weakref.ref(rate, lambda _: _known.pop(place, None))
            known = _known[place] = reference, Quota(Permits(rate), Gate())
    return known[1]
