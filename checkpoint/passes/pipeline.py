"""The meeting of what is on disk and what is run: admit → engine → settle, told once.

A pass is one run over items. `admit` decides which of them are run; `settle` saves what finished. Both are plain and
synchronous, and nothing else of a pass touches disk or bar. They may be called from two threads: what is counted and
remembered is changed under a lock, which nobody holds while it writes. What finished is on disk before anyone sees it.

A pass asks five objects: `Input` draws and keys the items, `Earlier` knows which of them are done, `InFlight` which of
them run, `Tally` counts how they end, and `PassSettings` says what the user wants.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from checkpoint import locks
from checkpoint.catalog.shards import ALL
from checkpoint.catalog.view import VersionView
from checkpoint.errors import (
    DamagedRecord,
    InvalidOption,
    StoreError,
    UnbuildableValue,
    UnencodableValue,
    plural,
    quote,
)
from checkpoint.outcomes import Done, Encoded, Failure, Outcome, Success, Unit
from checkpoint.passes.earlier import Earlier
from checkpoint.passes.failures import let_go_of_frames
from checkpoint.passes.in_flight import InFlight
from checkpoint.passes.input import Input
from checkpoint.passes.settings import PassSettings
from checkpoint.passes.tally import Tally
from checkpoint.storage.index import Place
from checkpoint.storage.store import Entry
from checkpoint.values.inputs import refuse_groups
from checkpoint.values.keys import (
    Key,
    item_digest,
    item_digests,
)

if TYPE_CHECKING:
    from checkpoint.provenance.drift import Lineage

__all__ = ["Pass"]


log = logging.getLogger("checkpoint")


class Pass:
    """One run over items: which are run (`admit`), and what becomes of what finished (`settle`).

    Args:
        records: what it reads and writes.
        items: all of them, in order.
        settings: how it treats the items.
        lineage: what to do where the function is not what computed earlier results.

    Attributes:
        input: the items, and the keys of those that were drawn.
        items: the items that are still to be drawn.
        earlier: the records of earlier passes, as they bear on the items.
        in_flight: the keys whose calls run, and the items that wait for them.
        tally: what is counted, and the outcomes that nobody has taken.
    """

    def __init__(
        self,
        records: VersionView,
        items: Iterable[Any],
        settings: PassSettings,
        lineage: Lineage | None = None,
    ) -> None:
        self.records = records
        self._settings = settings
        self._lineage = lineage
        self.name = records.name
        self._checkpoint, self._store = records.checkpoint, records.store
        self._shard = records.shard
        self._lock = locks.lock("pass")
        self._version = records.version
        self.input = Input(items, settings, records.shard)
        self.items: Iterable[Any] = ()
        self.earlier = Earlier(records, self.input, settings, lineage)
        # An object that stands in memory twice has one key.
        self.in_flight = InFlight(watches_objects=settings.overlapping and not self.input.in_memory)
        self.tally = Tally(records, settings, self.earlier.failed)
        self._digest_of = settings.digest_of
        self._strays: list[Key] = []  # saved by hand, and not handed out
        self._retry_failed = settings.retry_failed
        self._collect = settings.collect
        self._owed: list[_End] = []  # what finished and is not on disk yet

    # before anything is paid for

    def prepare(self) -> None:
        """Key what can be read twice: counts, duplicates and changes are known before anything runs.

        Raises:
            InvalidKey, DuplicateKey, InputChanged, KeyChanged: naming the items.
            FunctionChanged: the function is not what computed earlier results.
            ResultsUnfit: results on disk do not fit the class that the annotation names.
            UnencodableValue: the annotation names a secret.
        """
        self.records.refuse_secrets()
        self.earlier.check_function()
        self.earlier.compare()
        self.tally.completed = self.earlier.done
        self.earlier.refuse()
        self._store.meta.total = self.input.total
        self.records.open()  # keying may have taken a while
        self._recount()
        self.earlier.tell_resumed(self.tally.completed)
        if self.earlier.is_any_run():
            self._begin_writing()  # before the bar: what it has to say of the files stands on a line of its own
        else:
            if self.records.power:
                self._checkpoint.confirm()
            if self._shard != ALL:
                with suppress(StoreError):
                    self._begin_writing()  # its meta says how many items it has, or the sum of all is not known
        self.earlier.note_failed()
        if self.input.in_memory and not self._collect:
            self.input.leave_out_all_but(self.earlier.in_order())
        elif self.earlier.failed and not self.input.is_one_shot:
            self.input.postpone(self.earlier.failed)
        self.items = self.input.items
        beside = self._store.replica.beside if self._store.replica.is_remote else None
        self.tally.show_bar(self.input.total, beside)

    # admit

    def admit(self, item: Any) -> Unit | None:
        """The unit to run for the next item, or None: it is done, it stands as failed, or its equal is running.

        Raises:
            InvalidKey, DuplicateKey, InputChanged: for input that could not be keyed first.
            CheckpointLocked, StoreError: it could not be saved, so it is not run.
        """
        with self._lock:
            source = self.input
            if source.drawn < len(source.keys):
                key = source.expect(item)
            else:
                key = source.draw(item)
                self.earlier.look_at_first(key, item, is_fresh=key in self.tally.made)
            if self.in_flight.watches_objects:
                self._refuse_shared(item, key)
            return self._admit(item, key)

    def _refuse_shared(self, item: Any, key: Key) -> None:
        """Refuse an object that comes again while a call works on it: it was changed under that call.

        Raises:
            InvalidOption: the item is one, or holds one; the result of that call is not kept.
        """
        refuse_groups(item)
        shared = self.in_flight.find_shared(item, key)
        if shared is None:
            return
        part, spoilt = shared
        if made := [other for other in spoilt if other in self.tally.made and other not in self.tally.failed]:
            self.records.forget(made)
        place = self.input.in_whole(self.input.drawn - 1)
        raise InvalidOption(
            f"item {place}, of key {quote(key)}, {'is' if part is item else 'holds'} one object with "
            f"the item of key {quote(spoilt[0])}, a {type(part).__name__}, which was filled again before the call of "
            "that item was done: it would compute from what the object holds next. Give "
            "each item an object of its own: (copy.deepcopy(item) for item in items)"
        )

    def admit_next(self, most: int) -> list[Unit] | None:
        """Draw at most so many of items that are `in_memory` where nobody `is_watched`, and admit them.

        Returns the units to run; None once there are no more items.

        Raises:
            CheckpointLocked, StoreError: as `admit`.
        """
        items, keys = self.input.next(most)
        if not items:
            return None
        with self._lock:
            units = self._admit_new(items, keys)
            if units is None:
                units = [unit for unit in map(self._admit, items, keys) if unit is not None]
        return units

    def _admit_new(self, items: list[Any], keys: list[Key]) -> list[Unit] | None:
        """Admit several items at once, where all are to be run and nothing is known of any; else return None."""
        checkpoint, running = self._checkpoint, self.in_flight.digests.keys()
        if self.earlier.redo or not (
            checkpoint.store.writer.writing and self._retry_failed and checkpoint.unsaved.is_empty
        ):
            return None
        if len(set(keys)) < len(keys) or not (self.tally.failed.isdisjoint(keys) and running.isdisjoint(keys)):
            return None
        if not self.earlier.failed.keys().isdisjoint(keys):
            return None
        if max(checkpoint.results.find_all(self._version, keys)[0]) >= 0:
            return None  # somebody saved one of them just now
        whole = self._digest_of is item_digest
        digests = item_digests(items) if whole else list(map(self._digest_of, items))
        self.in_flight.start_all(keys, digests)
        return list(map(Unit, items, keys, digests))

    def _admit(self, item: Any, key: Key) -> Unit | None:
        """The unit to run for an item, or None, as `admit`; the caller holds the lock."""
        if key in self.tally.failed:
            self.tally.stand(item, key)
            return None
        if key in self.in_flight.digests:
            self.in_flight.wait(item, key)
            return None
        found = self._checkpoint.results.find(self._version, key)
        if found is None or key in self.earlier.redo:
            return self._to_run(item, key)
        return self._resumed(item, key, found)

    def _resumed(self, item: Any, key: Key, found: Place) -> Unit | None:
        """Count an item that has a result as done; the unit to run where it has to be computed again after all."""
        made, late = key in self.tally.made, self.input.drawn > self.input.keyed
        if late and not made and self.earlier.is_redone(key, item, found):
            return self._to_run(item, key)
        if late or made:
            self.tally.skip(1)
        if self._collect:
            try:
                outcome = Outcome(item, key, self.records.load(key), None, "fresh" if made else "resumed")
            except (DamagedRecord, KeyError) as error:
                log.warning("%s", error)
                self.tally.skip(-1)
                return self._to_run(item, key)
            except UnbuildableValue as error:
                outcome = Outcome(item, key, None, error, "resumed")
            self.tally.keep(outcome)
        return None

    def _to_run(self, item: Any, key: Key) -> Unit | None:
        """The unit to run for an item without a result, or None where an earlier failure stands."""
        checkpoint, redo = self._checkpoint, key in self.earlier.redo
        digest = self._digest_of(item)
        if not (self._retry_failed and checkpoint.unsaved.is_empty) and self._failed_before(key, digest):
            self.tally.stand(item, key)
            return None
        if not checkpoint.store.writer.writing:
            self._begin_writing()
            found = checkpoint.results.find(self._version, key)
            if found is not None and not redo:
                return self._resumed(item, key, found)  # another process finished it just now
            if self._failed_before(key, digest):
                self.tally.stand(item, key)
                return None
        if self.earlier.had_errors:
            self.earlier.note_type(key)
        unit = Unit(item, key, digest)
        self.in_flight.start(unit)
        return unit

    def _failed_before(self, key: Key, digest: int) -> bool:
        """Whether the item failed earlier and is not run again: that was not wanted, or its value is kept aside."""
        if self.earlier.failure_stands(key, digest):
            return True
        aside = self.earlier.find_aside(key, digest)
        if aside is None:
            return False
        if (
            self._checkpoint.errors.find(self._version, key) is None
        ):  # somebody deleted the errors: it is one all the same
            self.records.save_failure(key, Failure("its value could not be stored: see .unsaved"), aside.digest)
        self.tally.kept_aside.append(key)
        return True

    def _begin_writing(self) -> None:
        """Take the lock; from here on nobody else saves anything."""
        self._store.writer.begin()
        if self.records.power:
            self._checkpoint.confirm()
        self._recount()
        if self._lineage is not None:
            self._lineage.note(self.records)
        self.records.note_schema()

    def _recount(self) -> None:
        """Count what another process saved since the items were keyed as done."""
        if self.earlier.find_again() and self.input.keyed:
            self.tally.skip(self.earlier.done - self.tally.completed)

    # settle

    def settle(self, finished: list[Done]) -> None:
        """Save what finished, all under one write and one sync, then count it.

        Raises:
            StoreError: it could not be saved; `.unsaved` holds the values. The next call tries these again.
        """
        if self.in_flight.spoilt:
            finished = [_spoil(done) if done.unit.key in self.in_flight.spoilt else done for done in finished]
        if len(finished) == 1 and not self._owed and self._settle_one(finished[0]):
            return
        ran = self.tally.errors.run
        made, others = self._encoded(finished)
        if self._owed:
            ends, self._owed = [*self._owed, *made, *others], []
            made, others = [end for end in ends if end.raw is not None], [end for end in ends if end.raw is None]
        groups = [made, *_apart(others)] if others else [made]
        for done, group in enumerate(groups):
            try:
                self._save(group)
            except StoreError as error:
                self._owed = [end for group in groups[done:] for end in group]
                error.unsaved = {
                    end.unit.key: self._value_of(end) for end in self._owed if type(end.outcome) is Success
                }
                raise
        if others:
            self.tally.note_row(finished, ran)

    def _settle_one(self, done: Done) -> bool:
        """Settle one result, on the per-item path; False where it is a failure, or a value that cannot be encoded."""
        unit, outcome = done.unit, done.outcome
        if type(outcome) is not Success:
            return False
        records, key, digest, value = self.records, unit.key, unit.digest, outcome.value
        try:
            raw = value.raw if type(value) is Encoded else records.encode(value)
        except UnencodableValue:
            return False
        if type(raw) is not bytes:
            return False
        line = records.result_line(key, raw, digest, outcome.elapsed, outcome.attempts)
        try:
            self._store.append_one(self._store.own.results, self._version, key, digest, line, durable=records.power)
        except StoreError as error:
            self._owed = [_End(self._version, key, digest, line, unit, outcome, raw)]
            error.unsaved = {key: self._value_of(self._owed[0])}
            raise
        with self._lock:
            self._count(unit, outcome, records.decode(raw) if self._collect else None)
            self.tally.advance(1)
        return True

    def _save(self, ends: list[_End]) -> None:
        """Save ends of one kind: results, failures, or one value that was refused."""
        if not ends:
            return
        if ends[0].refused is not None:
            self._settled(ends, self._kept_aside(ends[0]))
            return
        shelf = self._store.own.errors if ends[0].raw is None else self._store.own.results
        self._store.append(shelf, ends, durable=self.records.power)
        self._settled(ends)

    def _encoded(self, finished: list[Done]) -> tuple[list[_End], list[_End]]:
        """The results among them, and the failures and values that were refused."""
        records, version, now = self.records, self._version, self.records.stamp()
        made: list[_End] = []
        others: list[_End] = []
        raws = iter(self._raws([done.outcome.value for done in finished if type(done.outcome) is Success]))
        for done in finished:
            unit, outcome = done.unit, done.outcome
            key, digest = unit.key, unit.digest
            if type(outcome) is not Success:
                assert isinstance(outcome, Failure)
                line = records.error_line(key, outcome, digest)
                others.append(_End(version, key, digest, line, unit, outcome))
            elif isinstance(raw := next(raws), bytes):
                line = records.result_line(key, raw, digest, outcome.elapsed, outcome.attempts, now)
                made.append(_End(version, key, digest, line, unit, outcome, raw))
            else:
                let_go_of_frames(raw, self.tally.handled)  # they lead back here, and hold the user's data
                others.append(_End(version, key, digest, b"", unit, outcome, None, raw))
        return made, others

    def _raws(self, values: list[Any]) -> list[bytes | UnencodableValue]:
        """The encoding of each, or why it has none; those that have it already are not encoded again."""
        encoded = {place: value.raw for place, value in enumerate(values) if type(value) is Encoded}
        if not encoded:
            return self.records.encode_all(values)
        others = iter(self.records.encode_all([value for value in values if type(value) is not Encoded]))
        return [encoded[place] if place in encoded else next(others) for place in range(len(values))]

    def _value_of(self, end: _End) -> Any:
        """The value that a function returned, as it was then."""
        value = end.outcome.value if type(end.outcome) is Success else None
        if type(value) is not Encoded:
            return value
        return self.records.decode(value.raw) if type(value.raw) is bytes else value.value

    def _kept_aside(self, end: _End) -> Failure:
        """Put a value aside that cannot be encoded; returns the failure that its item ends with."""
        unit, outcome = end.unit, end.outcome
        assert end.refused is not None
        assert isinstance(outcome, Success)
        refused = self.records.keep_aside(unit.key, self._value_of(end), unit.digest, end.refused)
        return Failure(str(refused), "UnencodableValue", None, outcome.elapsed, outcome.attempts, refused)

    def _settled(self, ends: list[_End], failure: Failure | None = None) -> None:
        """Count ends that are on disk, as they ended or as that failure, and items that waited for them."""
        collect, decode = self._collect, self.records.decode
        with self._lock:
            if ends[0].raw is not None and not (collect or self.in_flight.waiting or self.earlier.redo):
                keys = [end.key for end in ends]
                self.in_flight.end_all(keys)
                self.tally.count_results(keys)
            else:
                for end in ends:
                    value = decode(end.raw) if collect and end.raw is not None else None
                    self._count(end.unit, failure or end.outcome, value)
            self.tally.advance(len(ends))

    def _count(self, unit: Unit, outcome: Success | Failure, value: Any) -> None:
        """Count how a unit ended, and the equal items that waited for it."""
        key = unit.key
        self.in_flight.end(key)
        if self.earlier.redo:
            self.earlier.redo.discard(key)
        error = self.tally.count(unit, outcome, value)
        if self.in_flight.waiting:
            for item in self.in_flight.release(key):
                self.tally.count_equal(item, key, value, error)

    def take(self) -> Iterator[Outcome[Any]]:
        """The outcomes that nobody has taken yet, for `stream`."""
        return self.tally.take()

    # by hand

    def digest_for(self, key: Key) -> int:
        """The digest of the item that was handed out under the key."""
        return self.in_flight.digests.get(key, 0)

    def saved_by_hand(self, key: Key, *, failed: bool) -> None:
        """Count a key that the user saved by `save_result` or `save_error`."""
        with self._lock:
            handed_out, equals = self.in_flight.end_by_hand(key)
            if not handed_out and (failed or key not in self.tally.failed):
                if key not in self.input.first_places:
                    self._strays.append(key)
                return
            self.earlier.redo.discard(key)
            self.tally.count_by_hand(key, equals, failed=failed)

    def moved_on(self) -> None:
        """Move on to the next item, or batch: the user is done with what was handed out."""
        self.in_flight.return_objects()
        self.tally.advance(1)

    # after

    def check_drawn(self) -> None:
        """Check that every item was drawn that was there when they were keyed, as `Input` does."""
        self.input.check_drawn()

    @property
    def in_memory(self) -> bool:
        """Whether the items are all there already."""
        return self.input.in_memory

    @property
    def is_watched(self) -> bool:
        """Whether who draws must look each time something was settled: for outcomes, or for equal items."""
        return self._collect or self.input.is_one_shot

    @property
    def is_crowded(self) -> bool:
        """Whether so many items of one-shot input wait for their equals that no more are to be drawn."""
        return self.input.is_one_shot and self.in_flight.is_crowded

    @property
    def waits_for_medium(self) -> bool:
        """Whether `settle` returns only once what it saved is on the medium."""
        return self.records.power

    @property
    def verdict(self) -> str | None:
        """Why the pass must end now, or None."""
        errors = self.tally.errors
        return errors.verdict() if errors.failed else None

    def places(self) -> array[int]:
        """Where each item's record is: an offset among the results, ~offset among the errors, or `NOT_RUN`."""
        return self.earlier.places(self.tally.made, self.tally.failed)

    async def uploaded(self) -> None:
        """Wait for uploads here, where an event loop goes on meanwhile, and not at the end of the pass."""
        if self._store.replica.is_remote:
            import asyncio

            while not self._store.replica.has_drained():
                await asyncio.sleep(0.05)

    def tell_interrupted(self, error: BaseException) -> None:
        """Say what a user who pressed Ctrl-C wants to know, and by which item the pass was ended, if by any."""
        self.tally.tell_interrupted(error, self.input.total)

    def close(self) -> None:
        """Put the bar away, say how it went, and let go of the items."""
        if self._lineage is not None:
            self._lineage.end(self.records)
        self.tally.close_bar()
        self.earlier.changes.tell()
        self._tell_strays()
        self.earlier.changes.tell_incomparable()
        self.input.tell_equals(self.name)
        self.tally.tell(self.input.total)
        self.items, self.tally.handled = (), None
        self.input.close()

    def _tell_strays(self) -> None:
        """Warn of results that the user saved under keys of no item, where others were handed out and never saved."""
        running = self.in_flight.digests
        if self._strays and running:
            log.warning(
                "checkpoint %r: %s saved under keys that are of no item (such as %s), and %s handed out under others "
                "(such as %s) and never saved: save each under the key that key_fn gives, or it is handed out again",
                self.name, _were(len(self._strays)), quote(self._strays[0], 60), _were(len(running), "item"),
                quote(next(iter(running)), 60),
            )  # fmt: skip


class _End(Entry, frozen=True, gc=True):
    """How a unit ended, and its record on the way to disk; with its encoded value, or why it has none."""

    unit: Unit
    outcome: Success | Failure
    raw: bytes | None = None
    refused: UnencodableValue | None = None


def _apart(ends: list[_End]) -> list[list[_End]]:
    """The failures among them, and each that was refused by itself."""
    failed = [end for end in ends if end.refused is None]
    return [failed, *([end] for end in ends if end.refused is not None)]


def _spoil(done: Done) -> Done:
    """What is settled of a call whose item was changed before it was done: whatever it returned is of no item."""
    message = "its item was changed while its call ran, since a later item is the same object"
    return Done(done.unit, Failure(message, "ItemChanged"))


def _were(count: int, noun: str = "result") -> str:
    return f"{plural(count, noun)} {'was' if count == 1 else 'were'}"
