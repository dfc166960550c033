"""The recorder of one pass: it makes records of calls that ended, and appends them.

The promise: what `save` returns from is on disk, or put aside in `.unsaved`; where it raises, nothing was counted, and
the same ends may be saved again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from checkpoint.catalog.record_lines import with_notes
from checkpoint.catalog.view import VersionView
from checkpoint.errors import StoreError, UnencodableValue
from checkpoint.outcomes import Done, Encoded, Failure, Success, Unit
from checkpoint.passes.failures import let_go_of_frames
from checkpoint.passes.step import TakenStep
from checkpoint.storage.record import with_steps
from checkpoint.storage.store import Entry
from checkpoint.values.keys import Key

__all__ = ["End", "Recorder", "has_cost", "spoil"]

log = logging.getLogger("checkpoint")


class End(Entry, frozen=True, gc=True):
    """How a unit ended, and its record on the way to disk; with its encoded value, or why it has none."""

    unit: Unit
    outcome: Success | Failure
    raw: bytes | None = None
    refused: UnencodableValue | None = None


class Recorder:
    """Makes records of how calls ended, and appends them to the journals of one version.

    Args:
        records: of the version.
        handled: the exception that the caller of the pass was handling.
        steps: those that calls have taken, by the key of the call.

    Attributes:
        handled: as it was given: the frames of a refused value's error are let go of up to it.
        attempts: by key, what lines of failed attempts say that they cost, whose call is not over.
    """

    def __init__(
        self, records: VersionView, handled: BaseException | None, steps: Mapping[Key, dict[TakenStep, None]]
    ) -> None:
        self._records, self._steps = records, steps
        self.handled = handled
        self.attempts: dict[Key, float] = {}

    def attempted(self, units: list[Unit], cost: float) -> None:
        """A call on the units failed and is made again: what it cost is on disk at once, or in the record of the units.

        So a kill while a retry waits loses nothing of the sum.
        """
        try:
            self._records.store.note_spent(self._records.version, cost)
        except StoreError as error:
            log.debug("what a failed attempt cost was not noted: %s", error)
            return
        for unit in units:
            self.attempts[unit.key] = self.attempts.get(unit.key, 0.0) + cost / len(units)

    def noted(self, raw: bytes, unit: Unit, notes: dict[str, Any]) -> bytes:
        """An encoded result with what its calls noted."""
        return with_notes(raw, notes, self.attempts.pop(unit.key, 0.0))

    def groups(self, finished: list[Done], owed: list[End]) -> list[list[End]]:
        """The ends to save together, each group by one write: results, failures, and each refused value by itself.

        Args:
            finished: calls that ended.
            owed: ends that could not be saved before; they come first.
        """
        ends = [*owed, *self._ends(finished)]
        made = [end for end in ends if end.raw is not None]
        if len(made) == len(ends):
            return [made] if made else []
        failed = [end for end in ends if end.raw is None and end.refused is None]
        refused = [[end] for end in ends if end.refused is not None]
        return [group for group in (made, failed, *refused) if group]

    def _ends(self, finished: list[Done]) -> list[End]:
        records, version, now = self._records, self._records.version, self._records.stamp()
        ends: list[End] = []
        raws = iter(self._raws([done.outcome.value for done in finished if type(done.outcome) is Success]))
        for done in finished:
            unit, outcome = done.unit, done.outcome
            key, digest = unit.key, unit.digest
            if type(outcome) is not Success:
                assert isinstance(outcome, Failure)
                line = records.error_line(key, outcome, digest, self.attempts.pop(key, 0.0))
                line = with_steps(line, self._steps.get(key))
                ends.append(End(version, key, digest, line, unit, outcome))
            elif isinstance(raw := next(raws), bytes):
                said = raw if outcome.notes is None else self.noted(raw, unit, outcome.notes)
                line = records.result_line(key, said, digest, outcome.elapsed, outcome.attempts, now)
                line = with_steps(line, self._steps.get(key)) if self._steps else line
                ends.append(End(version, key, digest, line, unit, outcome, raw))
            else:
                let_go_of_frames(raw, self.handled)  # they lead back here, and hold the user's data
                ends.append(End(version, key, digest, b"", unit, outcome, None, raw))
        return ends

    def _raws(self, values: list[Any]) -> list[bytes | UnencodableValue]:
        """The encoding of each, or why it has none; those that have it already are not encoded again."""
        encoded = {place: value.raw for place, value in enumerate(values) if type(value) is Encoded}
        if not encoded:
            return self._records.encode_all(values)
        others = iter(self._records.encode_all([value for value in values if type(value) is not Encoded]))
        return [encoded[place] if place in encoded else next(others) for place in range(len(values))]

    def values_of(self, ends: list[End]) -> dict[Any, Any]:
        """The values that calls returned, as they were then, by key."""
        return {end.unit.key: self._value_of(end) for end in ends if type(end.outcome) is Success}

    def _value_of(self, end: End) -> Any:
        value = end.outcome.value if type(end.outcome) is Success else None
        if type(value) is not Encoded:
            return value
        return self._records.decode(value.raw) if type(value.raw) is bytes else value.value

    def save(self, ends: list[End]) -> Failure | None:
        """Save one of the `groups`; returns the failure that a refused value ends with.

        Raises:
            StoreError: it could not be saved.
        """
        if ends[0].refused is not None:
            return self._keep_aside(ends[0], ends[0].refused)
        store = self._records.store
        journal = store.own.errors if ends[0].raw is None else store.own.results
        store.append(journal, ends, durable=self._records.power)
        if any(has_cost(end.outcome) for end in ends):
            store.first_cost()
        return None

    def _keep_aside(self, end: End, refused: UnencodableValue) -> Failure:
        unit, outcome = end.unit, end.outcome
        assert isinstance(outcome, Success)
        error = self._records.keep_aside(unit.key, self._value_of(end), unit.digest, refused, outcome.notes,
                                         self.attempts.pop(unit.key, 0.0))  # fmt: skip
        if has_cost(outcome):
            self._records.store.first_cost()
        return Failure(
            str(error), "UnencodableValue", None, outcome.elapsed, outcome.attempts, error, notes=outcome.notes
        )


def has_cost(outcome: Success | Failure) -> bool:
    """Whether its calls noted a cost."""
    return outcome.notes is not None and "cost" in outcome.notes


def spoil(done: Done) -> Done:
    """The end of a call whose item was changed before it was done: whatever it returned is of no item."""
    message = "its item was changed while its call ran, since a later item is the same object"
    return Done(done.unit, Failure(message, "ItemChanged", notes=done.outcome.notes))
