"""The meeting of what is on disk and what is run: admit → engine → settle, told once.

A pass is one run over items. `admit` decides which of them are run; `settle` saves what finished. Both are plain and
synchronous, and nothing else of a pass touches disk or bar. What finished is on disk before anyone sees it.
"""

from __future__ import annotations

import logging
import weakref
from array import array
from collections.abc import Iterable, Sequence, Sized
from itertools import islice
from typing import Any, Final

from checkpoint.errors import (
    DamagedRecord,
    DuplicateKey,
    InputChanged,
    InvalidKey,
    InvalidOption,
    StoreError,
    UnencodableValue,
    quote,
)
from checkpoint.index import Place
from checkpoint.keys import Key, KeyFunction, item_digest
from checkpoint.outcomes import Done, Failure, Outcome, Success, Unit
from checkpoint.policies import ErrorCount, ErrorLimit, OnChange
from checkpoint.progress import Bar
from checkpoint.records import Records
from checkpoint.store import Entry, Shelf

__all__ = ["NOT_RUN", "Pass"]

log = logging.getLogger("checkpoint")
_FIRST = 100  # keys that tell whether the key function is still the same; failures that an error shows


class Pass:
    """One run over items: which are run (`admit`), and what becomes of what finished (`settle`).

    Args:
        records: what it reads and writes.
        items: all of them, in order.
        key_of: what names an item.
        on_change: what to do where a known key's item has changed: "keep" the result, "recompute" it, or "error".
        retry_failed: whether items that failed earlier are run again.
        limit: when failures end the pass.
        collect: whether outcomes are wanted by `take`.
        progress: whether a bar is.
        desc: what stands before it.

    Attributes:
        total: how many items there are, or None.
        drawn: how many have been drawn.
        errors: what has failed, counted.
        failures: the first 100 of this pass, as they were raised.
        kept_aside: keys whose values could not be encoded earlier; they stand as failed.
    """

    def __init__(
        self,
        records: Records,
        items: Iterable[Any],
        key_of: KeyFunction,
        *,
        on_change: OnChange = "keep",
        retry_failed: bool = True,
        limit: ErrorLimit | None = None,
        collect: bool = False,
        progress: bool = False,
        desc: str | None = None,
    ) -> None:
        self.records = records
        self._store = records.store
        self._version = records.version
        self._items = items
        self._key_of = key_of
        self._on_change = on_change
        self._retry_failed = retry_failed
        self._collect = collect
        self._desc, self._show = desc, progress
        self._bar: Bar | None = None
        self.total: int | None = len(items) if isinstance(items, Sized) else None
        self.drawn = 0
        self.completed = 0
        self.errors = ErrorCount(limit or ErrorLimit())
        self.failures: list[Exception] = []
        self.keys: list[Key] = []
        self._one_shot = _is_one_shot(items)
        self._seen: dict[Key, Any] = {}  # by key: its first place, or what tells whether another item equals its own
        self._redo: set[Key] = set()  # done, but computed from another item
        self._changed = 0
        self._changed_keys: list[Key] = []
        self._failed: set[Key] = set()  # in this pass, or earlier and not run again
        self.kept_aside: list[Key] = []
        self._made: set[Key] = set()  # in this pass, where outcomes are collected
        self._running: dict[Key, int] = {}  # admitted and not settled, with the digests of their items
        self._outcomes: list[Outcome[Any]] = []

    # before anything is paid for

    def prepare(self) -> None:
        """Key what can be read twice: counts, duplicates and changes are known before anything runs.

        Raises:
            InvalidKey, DuplicateKey, InputChanged: naming the items.
        """
        done_before = 0
        if not self._one_shot:
            for place, item in enumerate(self._items):
                self._key_first(place, item)
                if place == _FIRST - 1:
                    self._tell_if_unknown()
            self.total = len(self.keys)
            if self.total < _FIRST:
                self._tell_if_unknown()
            done_before = self.completed
        self._store.total = self.total
        self._tell_resumed()
        self._bar = Bar(self.total, done_before, self._desc, show=self._show)

    def _key_first(self, place: int, item: Any) -> None:
        key = self._key(place, item)
        first = self._seen.setdefault(key, place)
        self.keys.append(key)
        if first != place:
            self._refuse_unequal(key, (first, place), self._item_at(first), item)
            self.completed += key not in self._redo and self.records.is_done(key)
            return
        found = self._store.results.find(self._version, key)
        if found is not None:
            self._note_change(key, item, found)
            self.completed += key not in self._redo

    def _key(self, place: int, item: Any) -> Key:
        try:
            return self._key_of(item)  # type: ignore[no-any-return]
        except InvalidKey as error:
            raise InvalidKey(f"item {place}: {error}", key=error.key) from None
        except Exception as error:
            error.add_note(f"while the key of item {place} was asked for: {quote(item)}")
            raise

    def _item_at(self, place: int) -> Any:
        return self._items[place] if isinstance(self._items, Sequence) else next(islice(self._items, place, None))

    def _refuse_unequal(self, key: Key, places: tuple[int, int], first: Any, second: Any) -> None:
        """Equal items share one result; unequal ones would get each other's."""
        if first is second or ((digest := item_digest(first)) and digest == item_digest(second)):
            return
        raise DuplicateKey(
            f"items {places[0]} and {places[1]} have one key, {quote(key)}, and are not known to be equal: "
            f"{quote(first)} and {quote(second)}; use a key that tells them apart, or drop one",
            key=key,
            places=places,
        )

    def _note_change(self, key: Key, item: Any, found: Place) -> None:
        """A known key whose item is another one than its result was computed from."""
        if not found.digest or item_digest(item) in (0, found.digest):
            return
        self._changed += 1
        if len(self._changed_keys) < _FIRST:
            self._changed_keys.append(key)
        if self._on_change == "recompute":
            self._redo.add(key)
        if self._on_change == "error":
            raise InputChanged(
                f"the item of key {quote(key)} is not the one its result was computed from: now {quote(item)}; clear "
                'the key, or choose on_change="keep" or "recompute"',
                keys=self._changed_keys,
            )

    def _tell_if_unknown(self) -> None:
        shelves = (self._store.results, self._store.errors)
        if any(shelf.find(self._version, key) is not None for key in self.keys[:_FIRST] for shelf in shelves):
            return
        known = self._store.results.count(self._version)
        if known and self.keys:
            log.warning(
                "checkpoint %r has %d results, and none of the first %d keys is among them (such as %s): if the key "
                "function has changed, stop now, since everything is computed anew",
                self.records.name, known, len(self.keys[:_FIRST]), quote(self.keys[0]),
            )  # fmt: skip

    def _tell_resumed(self) -> None:
        done, failed = self.records.count()
        if not (done or failed):
            return
        if not self._one_shot:
            done = self.completed
            failed = sum(self.records.has_error(key) for key in set(self.keys))
        total = "unknown" if self.total is None else f"{self.total:,}"
        log.info("resuming %r: %s done, %s failed, %s in total", self.records.name, f"{done:,}", f"{failed:,}", total)

    # admit

    def admit(self, item: Any) -> Unit | None:
        """The unit to run for the next item, or None: it is done, it stands as failed, or its equal is running.

        Raises:
            InvalidKey, DuplicateKey, InputChanged: for input that could not be keyed first.
            CheckpointLocked, StoreError: it could not be saved, so it is not run.
        """
        place = self.drawn
        self.drawn += 1
        key = self._draw(place, item) if place >= len(self.keys) else self._expected(place, item)
        if key in self._failed:
            self._stands(item, key)
            return None
        if key in self._running:
            return None
        found = self._store.results.find(self._version, key)
        if found is None or key in self._redo:
            return self._to_run(item, key)
        return self._resumed(item, key, found)

    def _draw(self, place: int, item: Any) -> Key:
        """The key of an item that could not be keyed first: unequal items with one key are found at the second one."""
        key = self._key(place, item)
        self.keys.append(key)
        first = self._seen.get(key)
        if first is None:
            self._seen[key] = (place, _comparable(item))
        elif not _equals(first[1], item):
            self._refuse_unequal(key, (first[0], place), _Gone(), item)
        if place == _FIRST - 1:
            self._tell_if_unknown()
        return key

    def _expected(self, place: int, item: Any) -> Key:
        key = self.keys[place]
        if isinstance(self._items, Sequence):
            return key
        if (again := self._key(place, item)) != key:
            raise DuplicateKey(
                f"item {place} had key {quote(key)} when the items were first read, and {quote(again)} now: they come "
                "in another order each time they are read, or the key function is not stable; pass list(items)",
                key=again,
                places=(place, place),
            )
        return key

    def _resumed(self, item: Any, key: Key, found: Place) -> Unit | None:
        made = key in self._made
        if self._one_shot and not made:
            self._note_change(key, item, found)
            if key in self._redo:
                return self._to_run(item, key)
        if self._one_shot or made:
            self.completed += 1
            if self._bar is not None:
                self._bar.skip(1)
        if self._collect:
            try:
                value = self.records.load(key)
            except (DamagedRecord, KeyError) as error:
                log.warning("%s", error)
                return self._to_run(item, key)
            self._outcomes.append(Outcome(item, key, value, None, "fresh" if made else "resumed"))
        return None

    def _to_run(self, item: Any, key: Key) -> Unit | None:
        store = self._store
        if not store.writing:
            store.begin_writing()
            if key not in self._redo and self.records.is_done(key):
                return None  # another process finished it while this one waited for nothing
        if not self._retry_failed and store.errors.find(self._version, key) is not None:
            self._stands(item, key)
            return None
        if store.unsaved.find(self._version, key) is not None:
            self.kept_aside.append(key)
            self._stands(item, key)
            return None
        digest = self._running[key] = item_digest(item)
        return Unit(item, key, digest)

    def _stands(self, item: Any, key: Key) -> None:
        """The item has failed, in this pass or earlier, and is not run again by itself."""
        fresh = key in self._made
        self._failed.add(key)
        if self._bar is not None:
            self._bar.skip(1)
        if self._collect:
            error = self.records.load_error(key)
            self._outcomes.append(Outcome(item, key, None, error, "fresh" if fresh else "resumed"))

    # settle

    def settle(self, finished: list[Done]) -> None:
        """Save what finished, all under one write and one sync, then count it.

        Raises:
            StoreError: it could not be saved, at a second try either; `.unsaved` holds the values.
        """
        settled = [self._encoded(done) for done in finished]
        records, store = self.records, self._store
        results = [entry for _, entry, raw in settled if entry is not None and raw is not None]
        errors = [entry for _, entry, raw in settled if raw is None and entry is not None]
        if results:
            self._append(store.results, results, finished)
        if errors:
            self._append(store.errors, errors, finished)
        for done, _, raw in settled:
            value = records.decode(raw) if self._collect and raw is not None else None
            self._count(done, value, raw is not None)

    def _encoded(self, done: Done) -> tuple[Done, Entry | None, bytes | None]:
        """(the unit's end, its record, its encoded value or None for a failure)."""
        unit, outcome, records = done.unit, done.outcome, self.records
        if isinstance(outcome, Success):
            try:
                raw = records.encode(outcome.value)
            except UnencodableValue as error:
                refused = records.keep_aside(unit.key, outcome.value, error)
                failure = Failure(str(refused), "UnencodableValue", None, outcome.elapsed, outcome.attempts, refused)
                return Done(unit, failure), None, None
            return done, records.result_entry(unit.key, raw, unit.digest, outcome.elapsed, outcome.attempts), raw
        return done, records.error_entry(unit.key, outcome, unit.digest), None

    def _append(self, shelf: Shelf, entries: list[Entry], finished: list[Done]) -> None:
        power = self.records.power
        try:
            self._store.append(shelf, entries, durable=power)
        except StoreError:
            try:
                self._store.append(shelf, entries, durable=power)
            except StoreError as error:
                error.unsaved = {
                    done.unit.key: done.outcome.value for done in finished if isinstance(done.outcome, Success)
                }
                raise

    def _count(self, done: Done, value: Any, succeeded: bool) -> None:
        unit, outcome = done.unit, done.outcome
        key = unit.key
        self._running.pop(key, None)
        self._redo.discard(key)
        self._made.add(key)
        error: Exception | None = None
        if succeeded:
            self.completed += 1
            self.errors.succeeded()
        else:
            assert isinstance(outcome, Failure)
            error = self._failure(key, outcome)
        if self._bar is not None:
            self._bar.update(1, self.errors.failed)
        if self._collect:
            self._outcomes.append(Outcome(unit.item, key, value, error, "fresh"))

    def _failure(self, key: Key, failure: Failure) -> Exception:
        """Count it; the first ones are kept as they were raised, without the frames that hold the user's data."""
        self._failed.add(key)
        exception = failure.exception
        unencodable = isinstance(exception, UnencodableValue) and failure.type == "UnencodableValue"
        self.errors.fail(failure.type or "error", unencodable=unencodable)
        if not isinstance(exception, Exception):
            exception = self.records.load_error(key)
        exception.__traceback__ = None
        if len(self.failures) < _FIRST:
            if failure.traceback and all(exception is not other for other in self.failures):
                exception.add_note(f"item {quote(key)}; {failure.traceback.rstrip()}")
            self.failures.append(exception)
        return exception

    def take(self) -> list[Outcome[Any]]:
        """The outcomes since the last time, for `stream`."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # by hand

    def digest_for(self, key: Key) -> int:
        """The digest of the item that was handed out under the key."""
        return self._running.get(key, 0)

    def saved_by_hand(self, key: Key, *, failed: bool) -> None:
        """`save_result` or `save_error` was called for the key."""
        if self._running.pop(key, None) is None:
            return
        self._redo.discard(key)
        self._made.add(key)
        if failed:
            self._failed.add(key)
            self.errors.fail("error")
        else:
            self.completed += 1
            self.errors.succeeded()

    def moved_on(self) -> None:
        """The next item is asked for."""
        if self._bar is not None:
            self._bar.update(1, self.errors.failed)

    # after

    @property
    def verdict(self) -> str | None:
        """Why the pass must end now, or None."""
        return self.errors.verdict() if self.errors.failed else None

    def places(self) -> array[int]:
        """Where each item's record is: an offset among the results, ~offset among the errors, or `NOT_RUN`."""
        version, results, errors = self._version, self._store.results, self._store.errors
        failed = self._failed
        places = array("q")
        for key in self.keys:
            found = None if key in failed else results.find(version, key)
            if found is not None:
                places.append(found.offset)
            else:
                found = errors.find(version, key) if key in failed else None
                places.append(NOT_RUN if found is None else ~found.offset)
        return places

    def close(self) -> None:
        """Put the bar away, say how it went, and let go of the items."""
        if self._bar is not None:
            self._bar.close()
        name = self.records.name
        if self._changed and self._on_change != "error":
            kept = "kept; on_change='recompute' or clear(keys) computes them anew"
            fate = kept if self._on_change == "keep" else "computed anew"
            log.warning(
                "checkpoint %r: %d items differ from those that their results were computed from (keys such as %s): "
                "the results are %s",
                name, self._changed, quote(self._changed_keys[:3]), fate,
            )  # fmt: skip
        if self.errors.run:
            log.info("checkpoint %r: %d run, %d of them failed; %s done", name, self.errors.run, self.errors.failed,
                     f"{self.completed:,}" + (f" of {self.total:,}" if self.total is not None else ""))  # fmt: skip
        self._items, self._seen, self.keys = (), {}, []


NOT_RUN: Final = -(1 << 63)
"""The place of an item that was not run, since the pass was ended early."""


def _is_one_shot(items: Any) -> bool:
    try:
        return iter(items) is items
    except TypeError:
        hint = "; an async iterator must be collected first" if hasattr(items, "__aiter__") else ""
        raise InvalidOption(f"items is {quote(items)}, which cannot be iterated over{hint}") from None


class _Gone:
    """Stands for an item of one-shot input that is no longer here."""

    def __repr__(self) -> str:
        return "one that was drawn earlier"


def _comparable(item: Any) -> Any:
    """What is kept of an item to compare a later one with: its digest, else a weak reference, else nothing."""
    digest = item_digest(item)
    if digest:
        return digest
    try:
        return weakref.ref(item)
    except TypeError:
        return None


def _equals(kept: Any, item: Any) -> bool:
    if isinstance(kept, int):
        return kept == item_digest(item)
    return kept is not None and kept() is item
