"""The meeting of what is on disk and what is run: admit → engine → settle, told once.

A pass is one run over items. `admit` decides which of them are run; `settle` saves what finished. Both are plain and
synchronous, and nothing else of a pass touches disk or bar. They may be called from two threads: what is counted and
remembered is changed under a lock, which nobody holds while it writes. What finished is on disk before anyone sees it.
"""

from __future__ import annotations

import logging
import sys
import threading
from array import array
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from operator import eq
from typing import TYPE_CHECKING, Any, Literal

from checkpoint.catalog.shards import ALL
from checkpoint.catalog.view import VersionView, item_error
from checkpoint.errors import (
    DamagedRecord,
    FunctionChanged,
    InputChanged,
    InvalidOption,
    ItemError,
    KeyChanged,
    StoreError,
    UnbuildableValue,
    UnencodableValue,
    plural,
    quote,
)
from checkpoint.execution.policies import ErrorCount
from checkpoint.outcomes import NOT_RUN, Done, Failure, Outcome, Success, Unit
from checkpoint.passes.failures import add_note, let_go_of_frames, places_of
from checkpoint.passes.input import Input
from checkpoint.passes.progress import Bar
from checkpoint.passes.settings import PassSettings
from checkpoint.storage.index import Place
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.store import Entry
from checkpoint.values.digests import Digests, are_alike
from checkpoint.values.inputs import Loans, refuse_groups
from checkpoint.values.keys import (
    PART,
    Key,
    changed_field,
    is_digest_of,
    item_digest,
    item_digests,
)

if TYPE_CHECKING:
    from checkpoint.catalog.unfit import Unfit
    from checkpoint.provenance.drift import Lineage

__all__ = ["Fate", "Pass"]


Fate = Literal["done", "aside", "redone", "failed", "new"]
log = logging.getLogger("checkpoint")
_CROWD = 1000
_MOST_FIELDS = 8  # that a message names
_FEW = 10  # results that may well be of equal items under other keys
_FIRST = 100  # keys that tell whether the key function is still the same; failures that an error shows


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
        errors: what has failed, counted.
        failures: the first 100 of this pass, as they were raised.
        changed: how many items were found to differ from what their results were computed from.
        kept_aside: keys whose values could not be encoded earlier; they stand as failed.
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
        self._store = records.store
        self._shard = records.shard
        self._lock = threading.Lock()
        self._version = records.version
        self.input = Input(items, settings, records.shard)
        self.items: Iterable[Any] = ()
        self._digest_of = settings.digest_of
        # An object that stands in memory twice has one key.
        self._loans: Loans | None = Loans() if settings.overlapping and not self.input.in_memory else None
        self._spoilt: set[Key] = set()  # whose items were changed before their calls were done
        self._strays: list[Key] = []  # saved by hand, and not handed out
        self._on_change = settings.on_change
        self._retry_failed = settings.retry_failed
        self._collect = settings.collect
        self._bar: Bar | None = None
        self.completed = 0
        self.errors = ErrorCount(settings.limit)
        self.failures: list[Exception] = []
        self._handled = sys.exception()
        self._known = 0  # how many results there were
        self._counted: tuple[object, int] = (None, 0)  # the index, and its end, when `_found` was
        self._found = array("q")  # where the results of the items that were keyed first are, or -1
        self._redo: set[Key] = set()  # done, but computed from another item
        self._outdated: set[Key] = set()  # done, but by a function that has changed
        self._unfit: frozenset[Key] = frozenset()  # done, but of a class that has changed
        self.changed = 0
        self._changed_keys: list[Key] = []
        self._changed_how = ""  # of the first of them, where that can be told
        self._others: list[Any] = []  # its fields that did not change
        self._incomparable = 0  # done, and computed from what another `input=` names
        self._firsts: list[int] | None = []  # digests of one-shot items, as long as no key of theirs is known
        self._failed: set[Key] = set()  # in this pass, or earlier and not run again
        self._earlier: dict[Key, str | None] = {}  # that failed earlier and are run again, with the types of how
        self._had_errors = False  # whether there were failures when the pass began
        self.kept_aside: list[Key] = []
        self._made: set[Key] = set()  # settled in this pass, well or not
        self._running: dict[Key, int] = {}  # admitted and not settled, with the digests of their items
        self._waiting: dict[Key, list[Any]] = {}  # items that wait for their equal, which runs
        self._crowd = 0  # how many these are
        self._owed: list[_End] = []  # what finished and is not on disk yet
        self._outcomes: deque[Outcome[Any]] = deque()

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
        try:
            if self._lineage is not None:
                self._lineage.begin(self.records)
        except FunctionChanged:
            if (unfit := self.find_unfit()) is not None:
                raise unfit.error from None  # whoever accepted the change would meet this error next
            raise
        if (unfit := self.find_unfit()) is not None:
            raise unfit.error
        self.look()
        self._store.total = self.input.total
        self.records.open()  # keying may have taken a while
        self._recount()
        self._tell_resumed()
        if any(self._would_run(self.input.keys[place]) for place in self._undone()):
            self._begin_writing()  # before the bar: what it has to say of the files stands on a line of its own
        else:
            if self.records.power:
                self._store.confirm()
            if self._shard != ALL:
                with suppress(StoreError):
                    self._begin_writing()  # its meta says how many items it has, or the sum of all is not known
        self._note_earlier()
        if self.input.in_memory and not self._collect:
            self.input.leave_out_all_but(self._failed_last(self._undone()))
        elif self._earlier and not self.input.is_one_shot:
            self.input.postpone(self._earlier)
        self.items = self.input.items
        beside = None if self._store.uploads is None else self._store.uploads.beside
        self._bar = Bar(
            self.input.total, self.completed, self._settings.desc, show=self._settings.progress, beside=beside
        )

    def _note_earlier(self) -> None:
        """Which of the items that were keyed first failed earlier, and are run again."""
        errors = self._store.errors
        self._had_errors = self._retry_failed and not errors.is_empty
        if self._had_errors:
            keys = [self.input.keys[place] for place in self._undone()]
            places, _ = errors.find_all(self._version, keys)
            self._earlier = {key: None for key, place in zip(keys, places, strict=True) if place >= 0}

    def _failed_last(self, places: list[int]) -> list[int]:
        """The places, those of items that failed earlier behind all that never ran."""
        earlier, keys = self._earlier, self.input.keys
        if not earlier:
            return places
        return sorted(places, key=lambda place: keys[place] in earlier)

    def find_unfit(self, *, only_look: bool = False) -> Unfit | None:
        """Results that do not fit their class any more; None where there are none, or where they are computed anew."""
        if self.records.schema is None:
            if self._lineage is not None and not only_look:
                self.records.tell_unannotated()
            return None
        from checkpoint.catalog.unfit import find_unfit  # few passes need it

        unfit = find_unfit(self.records, only_look=only_look)
        if unfit is None or self._on_change != "recompute":
            return unfit
        self._unfit = unfit.keys
        return None

    def look(self) -> None:
        """The part of `prepare` that reads.

        Raises:
            InvalidKey, DuplicateKey, InputChanged, KeyChanged: naming the items.
        """
        self._known = self._store.results.count(self._version)
        if not self.input.is_one_shot:
            self.input.key_all()
            digests = self._find_keyed()
            if self._known:
                self._note_changes(digests)
            self.completed = len(self._found) - len(self._undone())
            if self.changed and self._settings.refuses_changes:
                raise self._input_changed()
            if self._known and self.input.keys and not self._knows(self.input.keys[:_FIRST]):
                first = map(self._digest_of, islice(self.input.items, _FIRST))
                self._refuse_other_keys(list(first))

    def foresee(self) -> Iterator[tuple[Key, Fate]]:
        """(key, what becomes of it) for each key of items that were keyed, as `admit` decides it; nothing is done."""
        store, version = self._store, self._version
        for place, item in enumerate(self.input.items):
            key = self.input.keys[place]
            if self.input.first_places[key] != place:
                continue
            redo = key in self._redo
            if not redo and self._found[place] >= 0:
                yield key, "done"
            elif self._is_aside(key, self._digest_of(item) if redo else 0, redo) is not None:
                yield key, "aside"
            elif redo:
                yield key, "redone"
            else:
                yield key, "new" if store.errors.find(version, key) is None else "failed"

    def _would_run(self, key: Key) -> bool:
        """Whether an item that was keyed first will be run, as far as can be told without its content."""
        if key not in self._redo and self.records.is_done(key):
            return False
        stands = not self._retry_failed and self._store.errors.find(self._version, key) is not None
        return not stands and self._store.unsaved.find(self._version, key) is None

    def _find_keyed(self) -> Digests:
        """Where their results are; returns the digests of what these were computed from."""
        self._counted = self._index_now()
        self._found, digests = self._store.results.find_all(self._version, self.input.keys[: self.input.keyed])
        return digests

    def _note_changes(self, digests: Digests) -> None:
        """Which of the items that were keyed first differ from what their results were computed from."""
        stale = bool(self._unfit) or (self._lineage is not None and bool(self._lineage.stale))
        if not stale and self.input.in_memory and self._are_keys(self.input.items):
            return
        for place, (item, offset, digest) in enumerate(zip(self.input.items, self._found, digests, strict=False)):
            key = self.input.keys[place]
            is_key = type(item) in _WORDS and type(item) is type(key) and item == key  # then it cannot have changed
            if offset >= 0 and (stale or (digest and not is_key)) and self.input.first_places[key] == place:
                self._note_change(key, item, Place(offset, digest))

    def _are_keys(self, items: Any) -> bool:
        """Whether each item is its own key: then it cannot have changed."""
        types = {*map(type, items), *map(type, self.input.keys)}
        return types <= _WORDS and all(map(eq, items, self.input.keys))

    def _undone(self) -> list[int]:
        """The places of those items that were keyed first and have no result, or are computed anew."""
        keys, redo = self.input.keys, self._redo
        if not redo and -1 not in self._found:
            return []
        if redo:
            return [place for place, offset in enumerate(self._found) if offset < 0 or keys[place] in redo]
        return [place for place, offset in enumerate(self._found) if offset < 0]

    def _note_change(self, key: Key, item: Any, found: Place) -> None:
        """A known key whose item is another one than its result was computed from."""
        if self._lineage is not None and found.offset in self._lineage.stale:
            self._redo.add(key)
            self._outdated.add(key)
        if key in self._unfit and key not in self._made:
            self._redo.add(key)
        if not (found.digest and self._differs(found.digest, item)):
            return
        self.changed += 1
        if not self._changed_keys and self._settings.refuses_changes and not found.digest & PART:
            field, self._changed_how = changed_field(item, found.digest)
            self._others = [name for name in item if name != field] if field else []
        if len(self._changed_keys) < _FIRST:
            self._changed_keys.append(key)
        if self._on_change == "recompute":
            self._redo.add(key)

    def _differs(self, digest: int, item: Any) -> bool:
        """Whether the item is another one than that with this digest; False where that cannot be told."""
        now = self._digest_of(item)
        if not now or are_alike(digest, now):
            return False
        if not (now ^ digest) & PART:
            return bool(now & PART) or not is_digest_of(digest, item, now)
        if digest & PART or not are_alike(digest, item_digest(item)):
            self._incomparable += 1
        return False

    def _input_changed(self) -> InputChanged:
        verb = (
            "differs from the one that its result was"
            if self.changed == 1
            else "differ from those that their results were"
        )
        such = f"{'' if self.changed == 1 else 'such as '}{quote(self._changed_keys[0])}"
        such += f": {self._changed_how}" if self._changed_how else ""
        of = self._others if len(self._others) <= _MOST_FIELDS else []
        fields = repr(of[0] if len(of) == 1 else tuple(of)) if of and all(type(one) is str for one in of) else "…"
        depend = "results depend on these fields alone" if of else "name the fields that results depend on"
        return InputChanged(
            f"checkpoint {self.name!r}: {plural(self.changed, 'item')} {verb} computed from (key {such}). Nothing was "
            "run; decide:\n"
            "    f.accept(items)        # the results are right for these items too\n"
            '    on_change="recompute"  # in the decorator: they are computed anew; or f.clear(keys) for some of them\n'
            '    on_change="keep"       # in the decorator: results stay, whatever becomes of their items\n'
            f"    input={fields}  # in the decorator: {depend}, and then f.accept(items)",
            keys=self._changed_keys,
            count=self.changed,
        )

    def _knows(self, keys: list[Key]) -> bool:
        """Whether one of the keys has a record that was there before this pass."""
        shelves = (self._store.results, self._store.errors)
        before = [key for key in keys if key not in self._made]
        return any(shelf.find(self._version, key) is not None for key in before for shelf in shelves)

    def _refuse_other_keys(self, digests: list[int]) -> None:
        """The first items have no result; that is an error where their inputs are on disk under other keys.

        Raises:
            KeyChanged: most of them are, or most of the results on disk are of them.
        """
        places = {digest: place for place, digest in reversed(list(enumerate(digests))) if digest}
        found = self._store.results.keys_of_inputs(self._version, set(places))
        known = {places[digest]: key for digest, key in found.items() if key not in self.input.first_places}
        parts = any(digest & PART for digest in places)  # a part of an item may well be that of another
        enough = min(len(places), max(self._known, _FEW))
        if len(known) * 2 < enough or len(known) < (3 if parts else 1):
            return
        shown = sorted(known)
        now, before = [self.input.keys[place] for place in shown], [known[place] for place in shown]
        message = (
            f"checkpoint {self.name!r}: no key of the first {plural(len(digests), 'item')} has a result, and "
            f"{len(known)} of them are on disk under other keys (item {self.input.in_whole(shown[0])}: key "
            f"{quote(now[0], 60)} now, {quote(before[0], 60)} before), so key= has changed"
        )
        if self._on_change == "recompute":
            log.warning("%s; they are computed anew", message)
            return
        raise KeyChanged(
            f"{message}, and all would be computed again. To go on, put the key back; or, if these results are to be "
            'computed anew, clear() the checkpoint first, take another name, or choose on_change="recompute"',
            keys=now,
            before=before,
        )

    def _tell_resumed(self) -> None:
        if self.input.is_one_shot:
            done, failed = self.records.count()
        else:
            keys = set() if self._store.errors.is_empty else {self.input.keys[place] for place in self._undone()}
            done, failed = self.completed, sum(self.records.has_error(key) for key in keys)
        if not (self._known or done or failed):
            return
        total = "unknown" if self.input.total is None else f"{self.input.total:,}"
        log.info("resuming %r: %s done, %s failed, %s in total", self.records.name, f"{done:,}", f"{failed:,}", total)

    # admit

    def admit(self, item: Any) -> Unit | None:
        """The unit to run for the next item, or None: it is done, it stands as failed, or its equal is running.

        Raises:
            InvalidKey, DuplicateKey, InputChanged: for input that could not be keyed first.
            CheckpointLocked, StoreError: it could not be saved, so it is not run.
        """
        with self._lock:
            if self.input.is_keyed:
                key = self.input.expect(item)
            else:
                key = self.input.draw(item)
                if self._firsts is not None:
                    self._look_at_first(key, item)
            if self._loans is not None:
                self._refuse_taken(self._loans, item, key)
            return self._admit(item, key)

    def _refuse_taken(self, loans: Loans, item: Any, key: Key) -> None:
        """An object that comes again while a call works on it was changed under that call: its result is not kept.

        Raises:
            InvalidOption: it is one.
        """
        refuse_groups(item)
        taken = loans.taken(item, key)
        if taken is None:
            return
        part, spoilt = taken
        self._spoilt.update(spoilt)
        if made := [other for other in spoilt if other in self._made and other not in self._failed]:
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
        """What `_admit` comes to for items that are all to be run, and of which nothing is known; else None."""
        store, running = self._store, self._running
        if self._redo or not (store.writing and self._retry_failed and store.unsaved.is_empty):
            return None
        if len(set(keys)) < len(keys) or not (self._failed.isdisjoint(keys) and running.keys().isdisjoint(keys)):
            return None
        if not self._earlier.keys().isdisjoint(keys):
            return None
        if max(store.results.find_all(self._version, keys)[0]) >= 0:
            return None  # somebody saved one of them just now
        whole = self._digest_of is item_digest
        digests = item_digests(items) if whole else list(map(self._digest_of, items))
        running.update(zip(keys, digests, strict=True))
        return list(map(Unit, items, keys, digests))

    def _admit(self, item: Any, key: Key) -> Unit | None:
        if key in self._failed:
            self._stands(item, key)
            return None
        if key in self._running:
            self._waiting.setdefault(key, []).append(item)
            self._crowd += 1
            return None
        found = self._store.results.find(self._version, key)
        if found is None or key in self._redo:
            return self._to_run(item, key)
        return self._resumed(item, key, found)

    def _look_at_first(self, key: Key, item: Any) -> None:
        """What `look` finds out of the keys of all items, of one-shot ones as they come."""
        assert self._firsts is not None
        if not self._known or len(self._firsts) == _FIRST or self._knows([key]):
            self._firsts = None
            return
        self._firsts.append(self._digest_of(item))
        if len(self._firsts) in (1, 10, _FIRST):
            self._refuse_other_keys(self._firsts)

    def _resumed(self, item: Any, key: Key, found: Place) -> Unit | None:
        made, late = key in self._made, self.input.drawn > self.input.keyed
        if late and not made:
            self._note_change(key, item, found)
            if self._settings.refuses_changes and self.changed:
                raise self._input_changed()
            if key in self._redo:
                return self._to_run(item, key)
        if late or made:
            self._skipped(1)
        if self._collect:
            try:
                outcome = Outcome(item, key, self.records.load(key), None, "fresh" if made else "resumed")
            except (DamagedRecord, KeyError) as error:
                log.warning("%s", error)
                self._skipped(-1)
                return self._to_run(item, key)
            except UnbuildableValue as error:
                outcome = Outcome(item, key, None, error, "resumed")
            self._outcomes.append(outcome)
        return None

    def _skipped(self, count: int) -> None:
        """So many more items prove to be done already."""
        self.completed += count
        if self._bar is not None:
            self._bar.skip(count)

    def _to_run(self, item: Any, key: Key) -> Unit | None:
        store, redo = self._store, key in self._redo
        digest = self._digest_of(item)
        if not (self._retry_failed and store.unsaved.is_empty) and self._failed_before(key, digest, redo):
            self._stands(item, key)
            return None
        if not store.writing:
            self._begin_writing()
            found = store.results.find(self._version, key)
            if found is not None and not redo:
                return self._resumed(item, key, found)  # another process finished it just now
            if self._failed_before(key, digest, redo):
                self._stands(item, key)
                return None
        if self._had_errors:
            self._note_type(key)
        self._running[key] = digest
        if self._loans is not None:
            self._loans.lend(item, key, 0 if digest & PART else digest)
        return Unit(item, key, digest)

    def _note_type(self, key: Key) -> None:
        """How an item failed earlier that is run again: the record is hidden by that of the next failure."""
        if self._store.errors.find(self._version, key) is not None:
            self._earlier[key] = self.error_of(key).type

    def _failed_before(self, key: Key, digest: int, redo: bool) -> bool:
        """Whether the item failed earlier and is not run again: that was not wanted, or its value is kept aside."""
        store = self._store
        failed = None if self._retry_failed else store.errors.find(self._version, key)
        if failed is not None and (not redo or are_alike(failed.digest, digest)) and self._counts(store.errors, key):
            return True
        aside = self._is_aside(key, digest, redo)
        if aside is None:
            return False
        if store.errors.find(self._version, key) is None:  # somebody deleted the errors: it is one all the same
            self.records.save_failure(key, Failure("its value could not be stored: see .unsaved"), aside.digest)
        self.kept_aside.append(key)
        return True

    def _is_aside(self, key: Key, digest: int, redo: bool) -> Place | None:
        """Where the item's value is kept aside, which is not paid for again by itself."""
        aside = self._store.unsaved
        found = None if aside.is_empty else aside.find(self._version, key)
        if found is None or (redo and not are_alike(found.digest, digest)) or not self._counts(aside, key):
            return None
        return found

    def _counts(self, shelf: KeyedLog, key: Key) -> bool:
        """Whether a failure still tells something: that of a function that has changed since does not."""
        if self._lineage is None or key not in self._outdated:
            return True
        try:
            found = shelf.read(self._version, key)
        except DamagedRecord:
            return False
        return found is not None and found[2].code in (self._lineage.code.digest, self._lineage.code.unsealed)

    def _begin_writing(self) -> None:
        """Take the lock; from here on nobody else saves anything."""
        self._store.begin_writing()
        if self.records.power:
            self._store.confirm()
        self._recount()
        if self._lineage is not None:
            self._lineage.note(self.records)
        self.records.note_schema()

    def _index_now(self) -> tuple[object, int]:
        return self._store.results.state

    def _recount(self) -> None:
        """What another process saved since the items were keyed is done."""
        if self._index_now() == self._counted:
            return
        self._counted = self._index_now()
        if self._lineage is not None:
            self._lineage.begin(self.records)
        if self.input.keyed:
            self._find_keyed()
            self._skipped(len(self._found) - len(self._undone()) - self.completed)

    def _stands(self, item: Any, key: Key) -> None:
        """The item has failed, in this pass or earlier, and is not run again by itself."""
        fresh = key in self._made
        self._failed.add(key)
        if self._bar is not None:
            self._bar.skip(1)
        if self._collect:
            self._outcomes.append(Outcome(item, key, None, self.error_of(key), "fresh" if fresh else "resumed"))

    def error_of(self, key: Key) -> ItemError:
        """The failure that is recorded for the key, as far as it can be read."""
        try:
            found = self._store.errors.read(self._version, key)
        except DamagedRecord as error:
            log.warning("%s", error)
            found = None
        if found is not None:
            return item_error(key, found[2])
        message = "it failed earlier, and how is no longer on disk"
        return ItemError(f"item {quote(key)} failed: {message}", key=key, message=message)

    # settle

    def settle(self, finished: list[Done]) -> None:
        """Save what finished, all under one write and one sync, then count it.

        Raises:
            StoreError: it could not be saved; `.unsaved` holds the values. The next call tries these again.
        """
        if self._spoilt:
            finished = [_spoil(done) if done.unit.key in self._spoilt else done for done in finished]
        if len(finished) == 1 and not self._owed and self._settle_one(finished[0]):
            return
        ran = self.errors.run
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
                error.unsaved = {end.unit.key: end.outcome.value for end in self._owed if type(end.outcome) is Success}
                raise
        if others:
            self._note_row(finished, ran)

    def _note_row(self, finished: list[Done], ran: int) -> None:
        """Have failures in a row counted, in the order in which their calls ended; so many had run before them."""
        for place, done in enumerate(finished, ran + 1):
            outcome = done.outcome
            if type(outcome) is not Success:
                assert isinstance(outcome, Failure)
                kind = outcome.type or "error"
                self.errors.in_a_row(kind, place, again=self._failed_so_before(done.unit.key, kind))

    def _failed_so_before(self, key: Key, kind: str) -> bool:
        """Whether the item failed with an exception of this type in an earlier pass."""
        return self._earlier.get(key) == kind

    def _settle_one(self, done: Done) -> bool:
        """What `settle` comes to for one result: this is the per-item path."""
        unit, outcome = done.unit, done.outcome
        if type(outcome) is not Success:
            return False
        records, key, digest, value = self.records, unit.key, unit.digest, outcome.value
        try:
            raw = records.encode(value)
        except UnencodableValue:
            return False
        line = records.result_line(key, raw, digest, outcome.elapsed, outcome.attempts)
        try:
            self._store.append_one(self._store.results, self._version, key, digest, line, durable=records.power)
        except StoreError as error:
            self._owed = [_End(self._version, key, digest, line, unit, outcome, raw)]
            error.unsaved = {key: value}
            raise
        with self._lock:
            self._count(unit, outcome, records.decode(raw) if self._collect else None)
            if self._bar is not None:
                self._bar.update(1, self.errors.failed)
        return True

    def _save(self, ends: list[_End]) -> None:
        """Save ends of one kind: results, failures, or one value that was refused."""
        if not ends:
            return
        if ends[0].refused is not None:
            self._settled(ends, self._kept_aside(ends[0]))
            return
        shelf = self._store.errors if ends[0].raw is None else self._store.results
        self._store.append(shelf, ends, durable=self.records.power)
        self._settled(ends)

    def _encoded(self, finished: list[Done]) -> tuple[list[_End], list[_End]]:
        """The results among them, and the failures and values that were refused."""
        records, version, now = self.records, self._version, self.records.stamp()
        made: list[_End] = []
        others: list[_End] = []
        raws = iter(records.encode_all([done.outcome.value for done in finished if type(done.outcome) is Success]))
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
                let_go_of_frames(raw, self._handled)  # they lead back here, and hold the user's data
                others.append(_End(version, key, digest, b"", unit, outcome, None, raw))
        return made, others

    def _kept_aside(self, end: _End) -> Failure:
        """Its value cannot be encoded: it is put aside, and the item is a failure."""
        unit, outcome = end.unit, end.outcome
        assert end.refused is not None
        assert isinstance(outcome, Success)
        refused = self.records.keep_aside(unit.key, outcome.value, unit.digest, end.refused)
        return Failure(str(refused), "UnencodableValue", None, outcome.elapsed, outcome.attempts, refused)

    def _settled(self, ends: list[_End], failure: Failure | None = None) -> None:
        """They are on disk, as they ended or as that failure: count them, and let those see them who wait."""
        collect, decode = self._collect, self.records.decode
        with self._lock:
            if ends[0].raw is not None and not (collect or self._waiting or self._redo):
                self._count_results(ends)
            else:
                for end in ends:
                    value = decode(end.raw) if collect and end.raw is not None else None
                    self._count(end.unit, failure or end.outcome, value)
            if self._bar is not None:
                self._bar.update(len(ends), self.errors.failed)

    def _count_results(self, ends: list[_End]) -> None:
        """What `_count` does where nobody waits for them."""
        keys = [end.key for end in ends]
        if self._loans:
            for end in ends:
                self._loans.ended(end.key)
        for key in keys:
            self._running.pop(key, None)
        self._made.update(keys)
        self.completed += len(keys)
        self.errors.run += len(keys)

    def _count(self, unit: Unit, outcome: Success | Failure, value: Any) -> None:
        key = unit.key
        self._running.pop(key, None)
        self._made.add(key)
        if self._loans:
            self._loans.ended(key)
        if self._redo:
            self._redo.discard(key)
        error: Exception | None = None
        if type(outcome) is Success:
            self.completed += 1
            self.errors.run += 1
        else:
            assert isinstance(outcome, Failure)
            error = self._failure(key, outcome)
        if self._collect:
            self._outcomes.append(Outcome(unit.item, key, value, error, "fresh"))
        if self._waiting and key in self._waiting:
            self._count_equals(key, value, error)

    def _count_equals(self, key: Key, value: Any, error: Exception | None) -> None:
        """What waited for its equal shares its end."""
        items = self._waiting.pop(key)
        self._crowd -= len(items)
        for item in items:
            if error is None:
                self._skipped(1)
            elif self._bar is not None:
                self._bar.skip(1)
            if self._collect:
                self._outcomes.append(Outcome(item, key, value, error, "fresh"))

    def _failure(self, key: Key, failure: Failure) -> Exception:
        """Count it; the first ones are kept as they were raised, without the frames that hold the user's data."""
        self._failed.add(key)
        exception = failure.exception
        unencodable = isinstance(exception, UnencodableValue) and failure.type == "UnencodableValue"
        kind = failure.type or "error"
        self.errors.fail(kind, again=self._failed_so_before(key, kind), unencodable=unencodable)
        if not isinstance(exception, Exception):
            exception = self.error_of(key)
        let_go_of_frames(exception, self._handled)
        if len(self.failures) < _FIRST:
            if failure.traceback and all(exception is not other for other in self.failures):
                add_note(exception, f"item {quote(key)}\n{places_of(failure.traceback)}".rstrip())
            self.failures.append(exception)
        return exception

    def take(self) -> Iterator[Outcome[Any]]:
        """The outcomes that nobody has taken yet, for `stream`."""
        outcomes = self._outcomes
        while outcomes:
            yield outcomes.popleft()

    # by hand

    def digest_for(self, key: Key) -> int:
        """The digest of the item that was handed out under the key."""
        return self._running.get(key, 0)

    def saved_by_hand(self, key: Key, *, failed: bool) -> None:
        """`save_result` or `save_error` was called for the key."""
        with self._lock:
            handed_out = self._running.pop(key, None) is not None
            equals = len(self._waiting.pop(key, ()))
            self._crowd -= equals
            if not handed_out and (failed or key not in self._failed):
                if key not in self.input.first_places:
                    self._strays.append(key)
                return
            self._redo.discard(key)
            self._made.add(key)
            if failed:
                self._failed.add(key)
                self.errors.fail("error")
                return
            self.completed += 1 + equals
            if key in self._failed:
                self._failed.discard(key)
                self.errors.retire("error")
            else:
                self.errors.succeeded()

    def moved_on(self) -> None:
        """The next item, or batch, is asked for: the caller is done with what was handed out."""
        if self._loans:
            self._loans.end_all()
        if self._bar is not None:
            self._bar.update(1, self.errors.failed)

    # after

    def check_drawn(self) -> None:
        """Check that every item was drawn that was there when they were keyed.

        Raises:
            InvalidOption: there were fewer.
        """
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
        return self.input.is_one_shot and self._crowd >= _CROWD

    @property
    def waits_for_medium(self) -> bool:
        """Whether `settle` returns only once what it saved is on the medium."""
        return self.records.power

    @property
    def verdict(self) -> str | None:
        """Why the pass must end now, or None."""
        return self.errors.verdict() if self.errors.failed else None

    def places(self) -> array[int]:
        """Where each item's record is: an offset among the results, ~offset among the errors, or `NOT_RUN`."""
        version, results, errors = self._version, self._store.results, self._store.errors
        keys, made, failed = self.input.keys, self._made, self._failed
        if self._index_now()[0] == self._counted[0] and len(self._found) == len(keys):
            places, todo = self._found[:], []
            if made or -1 in places:
                todo = [place for place, offset in enumerate(places) if offset < 0 or keys[place] in made]
        else:  # one-shot input; or the journal was opened anew
            places, todo = array("q", [-1]) * len(keys), list(range(len(keys)))
        offsets, _ = results.find_all(version, [keys[place] for place in todo])
        for place, offset in zip(todo, offsets, strict=True):
            places[place] = offset if offset >= 0 else NOT_RUN
        if failed or self._earlier:  # those that the pass did not come to stand as they failed earlier
            for place in range(len(keys)):
                if keys[place] in failed or (places[place] == NOT_RUN and keys[place] in self._earlier):
                    found = errors.find(version, keys[place])
                    places[place] = NOT_RUN if found is None else ~found.offset
        return places

    async def uploaded(self) -> None:
        """Wait for uploads here, where an event loop goes on meanwhile, and not at the end of the pass."""
        if self._store.uploads is not None:
            import asyncio

            while not self._store.uploads.has_drained():
                await asyncio.sleep(0.05)

    def tell_interrupted(self, error: BaseException) -> None:
        """Say what a user who pressed Ctrl-C wants to know, and by which item the pass was ended, if by any."""
        if self._bar is not None:
            self._bar.close()  # its last line stays readable
        total = "" if self.input.total is None else f" of {self.input.total:,}"
        notes = getattr(error, "__notes__", [])[-1:]
        log.warning(
            "checkpoint %r: interrupted%s with %s%s done, all of them saved; run the same line again for the rest",
            self.records.name, "".join([f" ({note})" for note in notes]), f"{self.completed:,}", total,
        )  # fmt: skip

    def close(self) -> None:
        """Put the bar away, say how it went, and let go of the items."""
        if self._lineage is not None:
            self._lineage.end(self.records)
        if self._bar is not None:
            self._bar.close()
        name = self.records.name
        if self.changed and not self._settings.refuses_changes:
            kept = "kept; on_change='recompute' or clear(keys) computes them anew"
            fate = kept if self._on_change == "keep" else "computed anew"
            log.warning(
                "checkpoint %r: %s changed since their results were computed (keys such as %s): the results are %s",
                name, plural(self.changed, "item"), quote(self._changed_keys[:3]), fate,
            )  # fmt: skip
        if self._strays and self._running:
            log.warning(
                "checkpoint %r: %s saved under keys that are of no item (such as %s), and %s handed out under others "
                "(such as %s) and never saved: save each under the key that key_fn gives, or it is handed out again",
                name, _were(len(self._strays)), quote(self._strays[0], 60), _were(len(self._running), "item"),
                quote(next(iter(self._running)), 60),
            )  # fmt: skip
        if self._incomparable:
            log.warning(
                "checkpoint %r: %s computed from an item that differs in what input= names, or beside it: input= was "
                "another one then, so that this cannot be told, and the results are kept; f.accept(items) decides it",
                name, _were(self._incomparable),
            )  # fmt: skip
        self.input.tell_equals(name)
        if self.errors.run:
            of = "" if self.input.total is None else f" of {self.input.total:,}"
            log.info("checkpoint %r: %d run, %d of them failed; %s done%s", name, self.errors.run, self.errors.failed,
                     f"{self.completed:,}", of)  # fmt: skip
        self.items, self._handled = (), None
        self.input.close()


_WORDS = frozenset({int, str})


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
