"""The meeting of what is on disk and what is run: admit → engine → settle, told once.

A pass is one run over items. `admit` decides which of them are run; `begin` which of these run in another pass just
now; `settle` saves what finished. They are plain and synchronous, and nothing else of a pass touches disk or bar. They
may be called from two threads: what is counted and remembered is changed under a lock, which nobody holds while it
writes. What finished is on disk before anyone sees it.

A pass asks seven objects: `Input` draws and keys the items, `Earlier` knows which of them are done, `InFlight` which of
them run, `Company` how those end that other passes run, `Settler` saves how they end, `Tally` counts it, and
`PassSettings` says what the user wants.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from checkpoint import locks
from checkpoint.catalog.shards import ALL
from checkpoint.catalog.view import VersionView
from checkpoint.errors import (
    InvalidOption,
    StoreError,
    quote,
)
from checkpoint.outcomes import Done, Failure, Outcome, Unit
from checkpoint.passes.budget import Budget
from checkpoint.passes.claims import Again, claims_of
from checkpoint.passes.company import Company
from checkpoint.passes.earlier import Earlier
from checkpoint.passes.in_flight import InFlight
from checkpoint.passes.input import Input
from checkpoint.passes.settings import PassSettings
from checkpoint.passes.settler import Settler
from checkpoint.passes.tally import Tally
from checkpoint.storage.index import Place
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
        budget: what it may spend; None where nothing limits it.
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
        watches_objects = settings.overlapping and not self.input.in_memory
        claims = claims_of(self._checkpoint)
        self.in_flight = InFlight(
            self.name, self._version, claims, watches_objects=watches_objects, shard=records.shard
        )
        limit = inf if settings.max_cost is None else settings.max_cost
        self.budget = None if limit == inf else Budget(records, limit, self.in_flight)
        self.tally = Tally(records, settings, self.earlier.failed)
        self._company = Company(records, self.in_flight, self.earlier, self.tally, self._lock, collect=settings.collect)
        self._settler = Settler(records, settings, self.in_flight, self.earlier, self.tally, self._company, self._lock)
        self._digest_of = settings.digest_of
        self._retry_failed = settings.retry_failed
        self._collect = settings.collect
        self._is_prepared = self._has_begun_writing = self._is_paused = False

    # before anything is paid for

    def prepare(self) -> None:
        """Key what can be read twice: counts, duplicates and changes are known before anything runs.

        Raises:
            InvalidKey, DuplicateKey, InputChanged, KeyChanged: naming the items.
            FunctionChanged: the function is not what computed earlier results.
            ResultsUnfit: results on disk do not fit the class that the annotation names.
            UnencodableValue: the annotation names a secret.
        """
        self.in_flight.join()
        self.records.refuse_secrets()
        self.earlier.check_function()
        self.earlier.compare()
        self.tally.completed = self.earlier.done
        self.earlier.refuse()
        self._store.meta.total = self.input.total
        self.records.results_for()  # keying may have taken a while
        self._recount()
        if self.earlier.is_any_run() or (self._settings.locks_first and self.input.is_one_shot):
            self._begin_writing()  # before the bar: what it has to say of the files stands on a line of its own
        else:
            if self.records.power:
                self._checkpoint.confirm()
            if self._shard != ALL:
                with suppress(StoreError):
                    self._begin_writing()  # its meta says how many items it has, or the sum of all is not known
        self.earlier.tell_resumed(self.tally.completed)
        self.earlier.note_failed()
        if self.input.in_memory and not self._collect:
            self.input.leave_out_all_but(self.earlier.in_order())
        elif self.earlier.failed and not self.input.is_one_shot:
            self.input.postpone(self.earlier.failed)
        self.items = self.input.items
        beside = self._store.replica.beside if self._store.replica.is_remote else None
        self.tally.show_bar(self.input.total, beside)
        if self._checkpoint.spent_if_known():
            self._settler.tell_cost()
        self._is_prepared = True

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
        checkpoint, running = self._checkpoint, self.in_flight.units.keys()
        if self.earlier.redo or not (self._is_writing and self._retry_failed and checkpoint.unsaved.is_empty):
            return None
        if len(set(keys)) < len(keys) or not (self.tally.failed.isdisjoint(keys) and running.isdisjoint(keys)):
            return None
        if not self.earlier.failed.keys().isdisjoint(keys):
            return None
        if max(checkpoint.results.find_all(self._version, keys)[0]) >= 0:
            return None  # somebody saved one of them just now
        whole = self._digest_of is item_digest
        digests = list(item_digests(items)) if whole else list(map(self._digest_of, items))
        units = list(map(Unit, items, keys, digests))
        self.in_flight.start_all(units)
        return units

    def _admit(self, item: Any, key: Key) -> Unit | None:
        """The unit to run for an item, or None, as `admit`; the caller holds the lock."""
        if key in self.tally.failed:
            self.tally.stand(item, key)
            return None
        if key in self.in_flight.units:
            self.in_flight.wait(item, key)
            return None
        found = self._checkpoint.results.find(self._version, key)
        if found is None or key in self.earlier.redo:
            return self._to_run(item, key)
        return self._resumed(item, key, found)

    def _resumed(self, item: Any, key: Key, found: Place) -> Unit | None:
        """Count an item that has a result as done; the unit to run where it has to be computed again after all."""
        made, was_known = key in self.tally.made, self.earlier.is_counted(key)
        if not (made or was_known) and self.earlier.is_redone(key, item, found):
            return self._to_run(item, key)
        if made or not was_known:
            self.tally.skip(1)
        if self._collect:
            outcome = self.tally.outcome_of(item, key)
            if outcome is None:
                self.tally.skip(-1)
                return self._to_run(item, key)
            self.tally.keep(outcome)
        return None

    def _to_run(self, item: Any, key: Key) -> Unit | None:
        """The unit to run for an item without a result, or None where an earlier failure stands."""
        checkpoint, redo = self._checkpoint, key in self.earlier.redo
        digest = self._digest_of(item)
        may_stand = not (self._retry_failed and checkpoint.unsaved.is_empty) or self.earlier.had_errors
        if may_stand and self._failed_before(key, digest):
            self.tally.stand(item, key)
            return None
        if not self._is_writing:
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
        if self.earlier.had_errors and not redo:
            verdict = self.earlier.paid.judge_again(key, digest)
            if verdict is not None:
                found = self._settler.settle_kept(unit, verdict)
                return None if found is None else self._resumed(item, key, found)
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

    @property
    def _is_writing(self) -> bool:
        return self._has_begun_writing and self._store.writer.writing

    def _begin_writing(self) -> None:
        """Take the lock; from here on no other process saves anything."""
        self.records.begin_writing(self._settings.lock_timeout)
        self._has_begun_writing = True
        if self.records.power:
            self._checkpoint.confirm()
        self._recount()
        if self._lineage is not None:
            self._lineage.note(self.records)
        self.records.note_schema()

    def _recount(self) -> None:
        """Count what another process saved since the items were keyed as done."""
        if self.earlier.find_again(compares=not self._is_prepared) and self.input.keyed:
            self.tally.skip(self.earlier.done - self.tally.completed)

    # calls that begin, beside other passes

    @property
    def is_shared(self) -> bool:
        """Whether other passes of this process work on the checkpoint, or did: what is called must `begin` then."""
        return self.in_flight.has_company

    def begin_when_admitted(self) -> None:
        """Have each call count as begun as soon as its unit is admitted, for who calls it at once."""
        self.in_flight.begin_when_admitted()

    def begin_when_called(self) -> None:
        """End that: a call counts as begun where `begin` says so, as units may be put off from now on."""
        self.in_flight.begin_when_called()

    def begin(self, units: list[Unit], again: Again) -> tuple[list[Unit], int]:
        """Begin the calls of units; returns those to call, and how many need none, since another pass ended them.

        The rest runs in another pass: `again` is told each, from any thread, when that is over; begin it anew then.

        Raises:
            CircularCall: who runs the key waits for this pass.
            InputChanged: another pass ran the key with another item.
        """
        keys = self.in_flight
        for unit in units:
            keys.begun[unit.key] = unit
        if not keys.has_company:
            return units, 0
        return self._company.begin(units, again)

    def put_off(self, units: list[Unit]) -> None:
        """The calls of the units have not ended them, and are made again later: other passes may run them meanwhile."""
        self.in_flight.put_off(units)

    @property
    def limits_cost(self) -> bool:
        """Whether calls must be afforded."""
        return self.budget is not None

    @property
    def has_unknown_costs(self) -> bool:
        """Whether calls must be afforded, and nothing is known of what one costs."""
        return self.budget is not None and self.budget.knows_none

    def affords(self, units: list[Unit]) -> bool:
        """Whether a call on the units may begin now; else when what is in flight has ended, or the pass must end."""
        return self.budget is None or self.budget.affords(units)

    def attempted(self, units: list[Unit], cost: float) -> None:
        """A call on the units failed, has cost so much, and is made again, by itself or in parts."""
        self._settler.attempted(units, cost)

    # settle

    def settle(self, finished: list[Done]) -> None:
        """Save what finished, all under one write and one sync, then count it; see `Settler.settle`."""
        self._settler.settle(finished)

    def tell_paused(self, seconds: float | None) -> None:
        """Say that no calls have been made for so many seconds, since the server refuses them; None: they go on."""
        with self._lock:
            self.tally.tell_paused(seconds)
        if (seconds is not None) is not self._is_paused:
            self._is_paused = seconds is not None
            self._store.writer.tell_paused(is_paused=self._is_paused)

    def take(self) -> Iterator[Outcome[Any]]:
        """The outcomes that nobody has taken yet, for `stream`."""
        return self.tally.take()

    # by hand

    def digest_for(self, key: Key) -> int:
        """The digest of the item that was handed out under the key."""
        unit = self.in_flight.units.get(key)
        return 0 if unit is None else unit.digest

    def saved_by_hand(self, key: Key, *, failed: bool) -> None:
        """Count a key that the user saved by `save_result` or `save_error`."""
        flight, tally = self.in_flight, self.tally
        with self._lock:
            if not (failed or flight.waiting or flight.has_company or self.earlier.redo or key in tally.failed) and (
                flight.units.pop(key, None) is not None
            ):  # as most are: what the rest comes to then, in less time
                flight.begun.pop(key, None)
                tally.made.add(key)
                tally.completed += 1
                tally.errors.run += 1
                return
            handed_out, equals = flight.end_by_hand(key, failed=failed)
            if not handed_out and (failed or key not in self.tally.failed):
                if key not in self.input.first_places:
                    self.in_flight.strays.append(key)
                return
            if self.earlier.redo:
                self.earlier.redo.pop(key, None)
            self.tally.count_by_hand(key, equals, failed=failed)

    def moved_on(self) -> None:
        """Move on to the next item, or batch: the user is done with what was handed out."""
        if self.in_flight.begun or self.in_flight.watches_objects:
            self.in_flight.take_back()
        self.tally.advance(1)

    # after

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
        why = errors.verdict() if errors.failed else None
        return why if why is not None or self.budget is None else self.budget.verdict

    def places(self) -> array[int]:
        """Where each item's record is: an offset among the results, ~offset among the errors, or `NOT_RUN`."""
        return self.earlier.places(self.tally.made, self.tally.failed)

    def is_cancelled_by(self, error: BaseException) -> bool:
        """Whether the error is a cancellation of this pass; one that a call makes is cancelled with that."""
        # By its name: who has no coroutines need not wait for asyncio.
        return type(error).__name__ == "CancelledError" and self.in_flight.parent is None

    async def uploaded(self) -> None:
        """Wait for uploads here, where an event loop goes on meanwhile, and not at the end of the pass."""
        if self._store.replica.is_remote:
            import asyncio

            while not self._store.replica.has_drained():
                await asyncio.sleep(0.05)

    def tell_interrupted(self, error: BaseException) -> None:
        """Say what is done, and what it has cost by now, to a user who ended the pass."""
        self._settler.tell_last_cost()
        self.tally.tell_interrupted(error, self.input.total)

    def close(self) -> None:
        """Put the bar away, say how it went, and let go of the items."""
        self.in_flight.claims.leave(self.in_flight)
        if self._lineage is not None:
            self._lineage.end(self.records)
        self._settler.close()
        self.tally.close_bar()
        if self._is_prepared:
            self.earlier.changes.tell()
            self.in_flight.tell_strays()
            self.earlier.changes.tell_incomparable()
            self.input.tell_equals(self.name)
            self.tally.tell(self.input.total)
        self.items, self.tally.handled = (), None
        self.input.close()
