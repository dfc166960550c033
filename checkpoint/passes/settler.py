"""What becomes of calls that ended: they are saved, counted, read by `parse`, and their costs are told.

The promise: what is counted is on disk. What was paid for is kept where `parse` or `validate` refuses it, and a failed
attempt's cost is noted at once. Where saving fails nothing of it is counted, and the next call saves it first.
"""

from __future__ import annotations

import threading
from typing import Any

from checkpoint.catalog.view import VersionView
from checkpoint.errors import ItemError, StoreError, UnencodableValue
from checkpoint.outcomes import Done, Encoded, Failure, Success, Unit
from checkpoint.passes.budget import SpentText
from checkpoint.passes.company import Company
from checkpoint.passes.earlier import Earlier
from checkpoint.passes.in_flight import InFlight
from checkpoint.passes.recorder import End, Recorder, has_cost, spoil
from checkpoint.passes.settings import PassSettings
from checkpoint.passes.tally import Tally
from checkpoint.storage.index import Place
from checkpoint.storage.record import Record, with_steps
from checkpoint.values.keys import Key

__all__ = ["Settler"]


class Settler:
    """Saves and counts what finished in one pass.

    Args:
        records: of the version that the pass works on.
        settings: of the pass.
        in_flight, earlier, tally, company: the pass's.
        lock: under which it counts; nobody holds it while something is written.
    """

    def __init__(
        self,
        records: VersionView,
        settings: PassSettings,
        in_flight: InFlight,
        earlier: Earlier,
        tally: Tally,
        company: Company,
        lock: threading.Lock,
    ) -> None:
        self._records = records
        self._checkpoint, self._store, self._version = records.checkpoint, records.store, records.version
        self._in_flight, self._earlier, self._tally = in_flight, earlier, tally
        self._company, self._lock = company, lock
        self._collect, self._parses = settings.collect, settings.parse is not None
        self._recorder = Recorder(records, tally.handled, in_flight.steps)
        self._cost_text: SpentText | None = None
        self._owed: list[End] = []  # what finished and is not on disk yet

    # costs

    def tell_cost(self) -> None:
        """Have the bar say what was spent in all."""
        if self._cost_text is None:
            self._cost_text = SpentText(self._checkpoint)
            self._tally.say(self._cost_text)

    def attempted(self, units: list[Unit], cost: float) -> None:
        """A call on the units failed, has cost so much, and is made again, by itself or in parts."""
        self._recorder.attempted(units, cost)

    def tell_last_cost(self) -> None:
        """Have the bar say the sum as it is now, before it is put away."""
        if self._cost_text is not None:
            self._cost_text.refresh()
            self._tally.advance(0)

    def close(self) -> None:
        """Have the bar say the last sum, and let go of the exception that the caller was handling."""
        self.tell_last_cost()
        self._recorder.handled = None

    # how calls ended

    def settle_kept(self, unit: Unit, verdict: Record | Failure) -> Place | None:
        """Save what is thought today of the value that an earlier failure kept: its result, or that it is given up.

        Returns where the result is, which the caller counts; None where it is given up, which is counted.
        """
        key = unit.key
        if isinstance(verdict, Failure):
            self._records.save_failure(key, verdict, unit.digest)
            self._company.count(unit, verdict, None)
            self._tally.advance(1)
            return None
        self._records.save_paid(key, verdict, unit.digest)
        return self._checkpoint.results.find(self._version, key)

    def settle(self, finished: list[Done]) -> None:
        """Save what finished, all under one write and one sync, then count it.

        Raises:
            StoreError: it could not be saved; `.unsaved` holds the values. The next call tries these again.
        """
        if self._in_flight.spoilt:
            finished = [spoil(done) if done.unit.key in self._in_flight.spoilt else done for done in finished]
        if len(finished) == 1 and not self._owed and self._settle_one(finished[0]):
            return
        ran, unparsed = self._tally.errors.run, dict[Key, str]()
        groups, self._owed = self._recorder.groups(finished, self._owed), []
        for done, group in enumerate(groups):
            try:
                failure = self._recorder.save(group)
            except StoreError as error:
                self._owed = [end for group in groups[done:] for end in group]
                error.unsaved = self._recorder.values_of(self._owed)
                raise
            if any(has_cost(end.outcome) for end in group):
                self.tell_cost()
            if self._parses and failure is None and group[0].raw is not None:
                unparsed.update(self._settle_parsed(group))
            else:
                self._settled(group, failure)
        if unparsed or (groups and groups[-1][0].raw is None):
            self._tally.note_row(finished, ran, unparsed)

    def _settle_one(self, done: Done) -> bool:
        """Settle one result, on the per-item path; False where it is a failure, or a value that cannot be encoded."""
        unit, outcome = done.unit, done.outcome
        if type(outcome) is not Success or self._parses:
            return False
        records, key, digest, value = self._records, unit.key, unit.digest, outcome.value
        try:
            raw = value.raw if type(value) is Encoded else records.encode(value)
        except UnencodableValue:
            return False
        if type(raw) is not bytes:
            return False
        said = raw if outcome.notes is None else self._recorder.noted(raw, unit, outcome.notes)
        line = records.result_line(key, said, digest, outcome.elapsed, outcome.attempts)
        if self._in_flight.steps:
            line = with_steps(line, self._in_flight.steps.get(key))
        try:
            self._store.append_one(self._store.own.results, self._version, key, digest, line, durable=records.power)
        except StoreError as error:
            self._owed = [End(self._version, key, digest, line, unit, outcome, raw)]
            error.unsaved = self._recorder.values_of(self._owed)
            raise
        if outcome.notes is not None and has_cost(outcome):
            self._store.first_cost()
            self.tell_cost()
        with self._lock:
            if not (self._collect or self._in_flight.waiting or self._earlier.redo):
                self._in_flight.end(key, outcome)
                self._tally.count_result(key)
            else:
                self._company.count(unit, outcome, records.decode(raw) if self._collect else None)
                self._tally.advance(1)
        return True

    def _settled(self, ends: list[End], failure: Failure | None) -> None:
        """Count ends that are on disk, as they ended or as that failure, and items that waited for them."""
        collect, decode = self._collect, self._records.decode
        with self._lock:
            if ends[0].raw is not None and not (collect or self._in_flight.waiting or self._earlier.redo):
                keys = [end.key for end in ends]
                self._in_flight.end_all(keys)
                self._tally.count_results(keys)
                return
            for end in ends:
                value = decode(end.raw) if collect and end.raw is not None else None
                self._company.count(end.unit, failure or end.outcome, value)
            self._tally.advance(len(ends))

    def _settle_parsed(self, ends: list[End]) -> dict[Key, str]:
        """Count results that are on disk, as `parse` reads them; returns what it raised, by key."""
        records, read = self._records, list[tuple[End, Any, ItemError | None]]()
        for end in ends:  # under no lock: it is the user's code
            assert end.raw is not None
            assert type(end.outcome) is Success
            try:
                value = records.parsed(end.key, records.decode(end.raw), end.outcome.attempts, end.outcome.elapsed)
                read.append((end, value, None))
            except ItemError as raised:
                read.append((end, None, raised))
        with self._lock:
            for end, value, error in read:
                self._company.count(end.unit, end.outcome, value if self._collect else None, error)
            self._tally.advance(len(ends))
        return {end.key: error.type or "error" for end, _, error in read if error is not None}
