"""What a pass may spend, and what calls are expected to cost.

The promise: a call begins only where all that was spent, by whichever run, and what is in flight leaves room for it. So
the limit is exceeded by the calls in flight at most. What is spent is asked of the journals, and of nothing else.
"""

from __future__ import annotations

from math import inf
from random import Random
from statistics import fmean

from checkpoint import clock
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, StoreError, plural
from checkpoint.outcomes import Unit
from checkpoint.passes.in_flight import InFlight
from checkpoint.storage.source import RecordSource
from checkpoint.storage.spending import Cost, cost_in, cost_text, sum_of

__all__ = ["Budget", "SpentText", "costs_on_record", "range_text", "spread"]

_KNOWN = 10  # costs from which on their mean counts
_TOLERANCE = 1e-9  # of the limit: fractions that add up to it do not quite
_LOOKS = 0.5  # seconds from look to look, for the bar
_SAMPLE = 500  # recorded costs that are looked at
_DRAWS = 200


class Budget:
    """What one pass may spend.

    Args:
        records: of the version that it works on.
        limit: what the checkpoint may have cost in all.
        in_flight: the pass's.

    Attributes:
        limit: as it was given.
        is_reached: whether a call was not begun, with nothing in flight: the pass ends.
    """

    def __init__(self, records: VersionView, limit: float, in_flight: InFlight) -> None:
        self._checkpoint, self._version = records.checkpoint, records.version
        self._in_flight = in_flight
        self.limit = limit
        self.is_reached = False

    def affords(self, units: list[Unit]) -> bool:
        """Whether a call on the units may begin. Where it may not, and nothing is in flight, the pass is to end."""
        costs = self._checkpoint.spent()
        spent, each = sum_of(costs), _reckoned(costs.get(self._version))
        begun = self._in_flight.begun
        others = len(begun) - sum(unit.key in begun for unit in units)
        if spent < self.limit and spent + (others + len(units)) * each <= self.limit * (1 + _TOLERANCE):
            return True
        self.is_reached = self.is_reached or others == 0
        return False

    @property
    def knows_none(self) -> bool:
        """Whether nothing is known of what a call costs."""
        cost = self._checkpoint.spent().get(self._version)
        return cost is None or cost.count == 0

    @property
    def spent(self) -> float:
        """What was spent until now, by whichever run."""
        return sum_of(self._checkpoint.spent())

    @property
    def verdict(self) -> str | None:
        """Why the pass must end now, or None."""
        return f"max_cost={self.limit:g} leaves no room for another call" if self.is_reached else None


class SpentText:
    """What was spent by whichever run, for the bar: "cost 1.24"; looked up twice a second at most.

    Args:
        checkpoint: what cost that.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._text, self._looks_at = "", -inf

    def refresh(self) -> None:
        """Look it up anew the next time."""
        self._looks_at = -inf

    def __call__(self) -> str:
        now = clock.monotonic()
        if now >= self._looks_at:
            self._looks_at = now + _LOOKS
            self._text = f"cost {cost_text(sum_of(self._checkpoint.spent()))}"
        return self._text


def _reckoned(cost: Cost | None) -> float:
    """What one item in flight is reckoned to cost: the mean, and the most while fewer than ten are known."""
    if cost is None or cost.count == 0:
        return 0.0
    mean = cost.total / cost.count
    return mean if cost.count >= _KNOWN else max(mean, cost.most)


# --- what is expected ------------------------------------------------------------------------------------------------


def costs_on_record(records: VersionView) -> list[float]:
    """What items cost: a sample of the results of the version, or of its failures, where these say what they cost."""
    for source in (records.checkpoint.results, records.checkpoint.errors):
        if found := _costs_on(source, records.version):
            return found
    return []


def _costs_on(source: RecordSource, version: str) -> list[float]:
    reader, offsets = source.sample(version, _SAMPLE)
    found = []
    for offset in offsets:
        try:
            cost = None if reader is None else cost_in(reader.read(offset))
        except (DamagedRecord, StoreError):
            continue
        if cost is not None:
            found.append(cost)
    return found


def spread(sample: list[float], calls: int) -> tuple[float, float] | None:
    """The range in which 8 of 10 draws of what so many calls cost are; None where nothing is known.

    Each draw takes as many recorded costs at random as there are calls, or as there are on record, and scales them up.
    """
    if not sample:
        return None
    random, size = Random(calls), min(calls, len(sample))
    totals = sorted([sum(random.choices(sample, k=size)) * calls / max(size, 1) for _ in range(_DRAWS)])
    mean = fmean(sample) * calls
    return min(totals[_DRAWS // 10], mean), max(totals[-_DRAWS // 10], mean)


def range_text(span: tuple[float, float], items: int) -> str:
    """ "about 12.3 to 13.1 for 240 items"."""
    low, high = map(cost_text, span)
    told = low if low == high else f"{low} to {high}"
    return f"about {told} for {plural(items, 'item')}"
