"""A pass beside others of the process: what they are at is not called, and how it ends counts here too.

The promise: a unit whose key another pass has begun waits for its end; a result counts where it is of the same item, a
failure is shared, and what was put off or let go of is called here.
"""

from __future__ import annotations

import threading
from typing import Any

from checkpoint.catalog.view import VersionView
from checkpoint.errors import ItemError
from checkpoint.outcomes import Failure, Success, Unit
from checkpoint.passes.claims import Again
from checkpoint.passes.earlier import Earlier
from checkpoint.passes.in_flight import InFlight
from checkpoint.passes.tally import Tally
from checkpoint.values.digests import are_alike

__all__ = ["Company"]


class Company:
    """Begins the calls of one pass, beside those of others.

    Args:
        records: of the version that the pass works on.
        in_flight, earlier, tally: the pass's.
        lock: under which it counts.
        collect: whether outcomes are kept.
    """

    def __init__(
        self,
        records: VersionView,
        in_flight: InFlight,
        earlier: Earlier,
        tally: Tally,
        lock: threading.Lock,
        *,
        collect: bool,
    ) -> None:
        self._records = records
        self._in_flight, self._earlier, self._tally = in_flight, earlier, tally
        self._lock = lock
        self._collect = collect

    def count(self, unit: Unit, outcome: Success | Failure, value: Any, unparsed: ItemError | None = None) -> None:
        """Count how a unit ended, and the equal items that waited for it; the caller holds the lock.

        Args:
            unit, outcome: that ended so.
            value: of a result, as it is read.
            unparsed: why it cannot be read.
        """
        key = unit.key
        self._in_flight.end(key, outcome)
        if self._earlier.redo:
            self._earlier.redo.pop(key, None)
        error = self._tally.count(unit, outcome, value, unparsed)
        if self._in_flight.waiting:
            for item in self._in_flight.release(key):
                self._tally.count_equal(item, key, value, error)

    def begin(self, units: list[Unit], again: Again) -> tuple[list[Unit], int]:
        """Begin the calls of units, as `Pass.begin`, where there are other passes, or were."""
        left = [unit for unit in units if not self._share_failure(unit)]
        mine = [unit for unit in left if self._in_flight.claim(unit, again)]
        called = [unit for unit in mine if not self._share_result(unit)]
        return called, len(units) - len(left) + len(mine) - len(called)

    def _share_failure(self, unit: Unit) -> bool:
        """Count a unit as failed that another pass ran and that failed there; False where it did not."""
        ran, outcome = self._in_flight.ends.get(unit.key, (unit, None))
        if not isinstance(outcome, Failure):
            return False
        del self._in_flight.ends[unit.key]
        if unit.digest and ran.digest and not are_alike(ran.digest, unit.digest):
            return False  # another item has that key there
        with self._lock:
            self.count(unit, outcome, None)
            self._tally.advance(1)
        return True

    def _share_result(self, unit: Unit) -> bool:
        """Count a unit as done that another pass saved meanwhile; False where there is no such result.

        Raises:
            InputChanged: it is of another item.
        """
        item, key = unit.item, unit.key
        is_told = self._in_flight.ends.pop(key, None) is not None
        found = self._records.checkpoint.results.find(self._records.version, key)
        if found is None:
            return False
        if key in self._earlier.redo and not (is_told or self._earlier.is_renewed(key, found)):
            return False
        with self._lock:
            self._earlier.renew(key)
            if self._earlier.is_redone(key, item, found):
                return False
            outcome = self._tally.outcome_of(item, key) if self._collect else None
            if self._collect and outcome is None:
                return False
            self._in_flight.end(key)
            self._tally.skip(1)
            if outcome is not None:
                self._tally.keep(outcome)
            value, error = (None, None) if outcome is None else (outcome.value, outcome.error)
            for equal in self._in_flight.release(key):
                self._tally.count_equal(equal, key, value, error)
        return True
