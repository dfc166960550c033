"""What is on disk of single items of one version, and what is saved of them: `admit` and `settle` without a pass.

The promise: what has a result is not run again, unless the user asked for it where its item, its function or its class
has changed; what `save` returned for is on disk. Nothing here waits, but for another process that writes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from checkpoint.catalog.record_lines import with_notes
from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, StoreError, UnencodableValue
from checkpoint.outcomes import Encoded, Failure, Success, Unit
from checkpoint.passes.changes import Changes
from checkpoint.passes.claims import claims_of
from checkpoint.passes.failures import failure_of
from checkpoint.passes.paid import PaidValues
from checkpoint.passes.recorder import has_cost
from checkpoint.passes.settings import PassSettings
from checkpoint.passes.step import StepKeys, TakenStep, asks
from checkpoint.storage.index import Place
from checkpoint.storage.record import with_steps
from checkpoint.storage.store import Entry
from checkpoint.values.digests import are_alike
from checkpoint.values.keys import Key

if TYPE_CHECKING:
    from checkpoint.provenance.drift import Lineage

__all__ = ["DeskStep", "StepDesk"]

_WORDS = frozenset({str, int})
log = logging.getLogger("checkpoint")


class StepDesk:
    """Looks up single items, and saves them.

    Args:
        records: of the version, for steps alone.
        settings: how items are treated.

    Attributes:
        records: as given.
        claims: of all passes and steps over the checkpoint.
    """

    def __init__(self, records: VersionView, settings: PassSettings) -> None:
        self.records = records
        self.claims = claims_of(records.checkpoint)
        self._settings = settings
        self._lineage: Lineage | None = None
        self._unfit: frozenset[Key] = frozenset()  # done, but of a class that has changed
        self._is_noted = False  # whether what computes is noted beside the records

    def check(self, lineage: Lineage | None) -> None:
        """Decide what becomes of results of a function, or of a class, that has changed.

        Raises:
            FunctionChanged: the function is not what computed earlier results.
            ResultsUnfit: results on disk do not fit the class that the annotation names.
            UnencodableValue: the annotation names a secret.
        """
        records, before = self.records, self._lineage
        records.refuse_secrets()
        records.open()
        if before is not None and (lineage is None or before.code.digest != lineage.code.digest):
            before.end(records)
            self._lineage, self._is_noted = None, False
        if self._lineage is None:
            self._lineage = lineage
        if self._lineage is not None:
            self._lineage.begin(records)
        if records.schema is None:
            if self._lineage is not None:
                records.tell_unannotated()
            return
        from checkpoint.catalog.unfit import find_unfit  # few functions need it

        unfit = find_unfit(records)
        if unfit is not None and self._settings.on_change != "recompute":
            raise unfit.error
        self._unfit = frozenset() if unfit is None else unfit.keys

    # looking up

    def find(self, item: Any, key: Key, digest: int = 0) -> tuple[Any] | None:
        """The decoded result that counts for the item, in a tuple; None: it is to be computed.

        Args:
            item, key: the item.
            digest: of the item, where it is known.

        Raises:
            InputChanged: the item differs from the one that the result was computed from.
            UnbuildableValue: its class has changed since.
        """
        if key in self._unfit:
            return None
        records, shelf = self.records, self.records.results_for(key)
        try:
            with records.noting_damage(shelf):
                found = shelf.read(records.version, key)
                if found is None or not self._counts(found[1], item, key, digest):
                    return None
                reader, place, record = found
                return (records.value_of(reader, place.offset, record, key),)
        except DamagedRecord:
            return None  # it is not done from now on

    def _counts(self, place: Place, item: Any, key: Key, digest: int) -> bool:
        """Whether the result at the place counts for the item.

        Raises:
            InputChanged: as `find`.
        """
        if self._lineage is not None and place.offset in self._lineage.stale:
            return False
        if not place.digest or (type(item) in _WORDS and type(item) is type(key) and item == key):
            return True
        settings = self._settings
        if are_alike(place.digest, digest or settings.digest_of(item)):
            return True
        changes = Changes(self.records.name, settings)
        is_changed = changes.differs(place.digest, item)
        if is_changed:
            changes.add(key, item, place.digest)
            changes.refuse()
        changes.tell()
        changes.tell_incomparable()
        return not (is_changed and settings.on_change == "recompute")

    def unit(self, item: Any, key: Key) -> Unit:
        """What a call for the item works on."""
        return Unit(item, key, self._settings.digest_of(item))

    def shared(self, step: StepKeys, unit: Unit) -> Failure | None:
        """The failure that a call elsewhere in the process ended with, which the step waited for; None for none."""
        ran, outcome = step.ends.pop(unit.key, (unit, None))
        if not isinstance(outcome, Failure):
            return None
        return None if unit.digest and ran.digest and not are_alike(ran.digest, unit.digest) else outcome

    # saving

    def begin(self, step: StepKeys) -> None:
        """What the step is about to compute can be saved: the lock is held from here on.

        Raises:
            CheckpointLocked: another process writes, also after `lock_timeout`.
            StoreError: as `Writer.begin`.
        """
        records, writer = self.records, self.records.store.writer
        writer.steps.add(step)
        if not (records.lock_timeout and not writer.writing):
            writer.begin()
        else:
            records.begin_writing()
        if self._is_noted:
            return
        with records.store.lock:
            if not self._is_noted:
                if self._lineage is not None:
                    self._lineage.note(records)
                records.note_schema()
                self._is_noted = True
        if records.power:
            records.checkpoint.confirm()

    def end(self, step: StepKeys) -> None:
        """What the step computed is saved, or it is given up."""
        self.records.store.writer.steps.discard(step)

    def refused(self, key: Key) -> Exception | None:
        """The failure of an item whose value could not be encoded and is kept aside; None where there is none."""
        records, aside = self.records, self.records.checkpoint.unsaved
        if aside.is_empty or aside.find(records.version, key) is None:
            return None
        return failure_of(records, key)

    def judge_again(self, unit: Unit) -> tuple[Any] | None:
        """The result, decoded, where the value that an earlier failure kept is one after all.

        Raises:
            ItemError: the item was given up earlier.
            GiveUp: its value is given up now.
        """
        records, key, errors = self.records, unit.key, self.records.checkpoint.errors
        if errors.is_empty or (place := errors.find(records.version, key)) is None:
            return None
        try:
            found = errors.read(records.version, key)
        except DamagedRecord:
            return None
        is_other = place.digest and unit.digest and not are_alike(place.digest, unit.digest)
        if found is not None and found[2].given_up and not is_other:
            raise records.error_of(key, found[2])
        verdict = PaidValues(records, self._settings.judge, self._lineage).judge_again(key, unit.digest)
        if verdict is None:
            return None
        if isinstance(verdict, Failure):
            records.save_failure(key, verdict, unit.digest)
            raise failure_of(records, key) if verdict.exception is None else verdict.exception
        records.save_paid(key, verdict, unit.digest)
        return self.find(unit.item, key, unit.digest)

    def attempted(self, cost: float) -> bool:
        """Note what a call cost that failed and is made again; returns whether that is on disk."""
        try:
            self.records.store.note_spent(self.records.version, cost)
        except StoreError as error:
            log.debug("what a failed attempt cost was not noted: %s", error)
            return False
        return True

    def save(self, unit: Unit, outcome: Success, steps: dict[TakenStep, None], earlier: float) -> Any:
        """The value is on disk when this returns it, decoded; lines of attempts tell so much of its cost already.

        Raises:
            UnencodableValue: it was kept aside, and the item has failed.
            StoreError: it is not on disk; `.unsaved` holds it.
        """
        records, key, value = self.records, unit.key, outcome.value
        raw = value.raw if type(value) is Encoded else None
        value = value.value if type(value) is Encoded else value
        try:
            raw = records.encode(value) if raw is None else raw
            if not isinstance(raw, bytes):
                raise raw
        except UnencodableValue as error:
            raise records.keep_aside(key, value, unit.digest, error, outcome.notes, earlier) from None
        said = raw if outcome.notes is None else with_notes(raw, outcome.notes, earlier)
        line = records.result_line(key, said, unit.digest, outcome.elapsed, outcome.attempts)
        line, store = with_steps(line, steps), records.store
        try:
            store.append_one(store.own.results, records.version, key, unit.digest, line, durable=records.power)
        except StoreError as error:
            error.unsaved = {key: value}
            raise
        if outcome.notes is not None and has_cost(outcome):
            store.first_cost()
        if key in self._unfit:
            self._unfit -= {key}
        return records.decode(raw)

    def save_failure(self, unit: Unit, failure: Failure, steps: dict[TakenStep, None], earlier: float) -> None:
        """The failure is on disk when this returns.

        Raises:
            StoreError: it is not.
        """
        records, store = self.records, self.records.store
        line = with_steps(records.error_line(unit.key, failure, unit.digest, earlier), steps)
        entry = Entry(records.version, unit.key, unit.digest, line)
        store.append(store.own.errors, [entry], durable=records.power)
        if has_cost(failure):
            store.first_cost()


class DeskStep:
    """One step, as who takes it sees it: `execution.steps.StepPort`.

    Args:
        desk: of its checkpoint and version.
        unit: what is asked for.
        call: the call that takes the step, as `caller` gives it; None outside of any.

    Attributes:
        unit: as given.
        keys: what others see of it.
    """

    __slots__ = ("_desk", "_spent", "keys", "unit")

    def __init__(self, desk: StepDesk, unit: Unit, call: tuple[Any, Any] | None) -> None:
        self._desk, self.unit, self._spent = desk, unit, 0.0
        self.keys = StepKeys(desk.records.name, desk.records.version, desk.claims, asks(call))

    def find(self) -> tuple[Any] | None:
        """As `StepPort.find`."""
        return self._desk.find(self.unit.item, self.unit.key, self.unit.digest)

    def claim(self, ring: Callable[[object], None]) -> bool:
        """As `StepPort.claim`.

        Raises:
            CircularCall: who runs the key waits for this step.
        """
        return self.keys.claim(self.unit, ring)

    def shared(self) -> Failure | None:
        """As `StepPort.shared`."""
        return self._desk.shared(self.keys, self.unit)

    def begin(self) -> tuple[Any] | None:
        """As `StepPort.begin`; another process may have saved it before this one had the lock.

        Raises:
            CheckpointLocked, StoreError: as `StepDesk.begin`.
            ItemError: the item's value was computed, could not be encoded, and is kept aside; or it was given up.
        """
        self._desk.begin(self.keys)
        records = self._desk.records
        if records.is_done(self.unit.key) and (found := self.find()) is not None:
            return found
        if (error := self._desk.refused(self.unit.key)) is not None:
            raise error
        return self._desk.judge_again(self.unit)

    def attempted(self, cost: float) -> None:
        """As `StepPort.attempted`."""
        if self._desk.attempted(cost):
            self._spent += cost

    def save(self, outcome: Success) -> Any:
        """As `StepPort.save`.

        Raises:
            UnencodableValue, StoreError: as `StepDesk.save`.
        """
        return self._desk.save(self.unit, outcome, self._steps(), self._spent)

    def fail(self, failure: Failure) -> None:
        """As `StepPort.fail`."""
        self._desk.save_failure(self.unit, failure, self._steps(), self._spent)

    def _steps(self) -> dict[TakenStep, None]:
        return self.keys.steps.get(self.unit.key, {})

    def end(self, outcome: Success | Failure | None) -> None:
        """As `StepPort.end`."""
        self._desk.end(self.keys)
        self.keys.leave(outcome)
