"""The records of earlier passes, as they bear on the items of this one: which items are done, and which run again.

The promise: what has a result is not run again, unless the user asked for it where its item, its function or its class
has changed; and a key function that has changed is found before the same items are paid for twice. This only reads.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Set
from itertools import islice
from operator import eq
from typing import TYPE_CHECKING, Any, Literal

from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, FunctionChanged, KeyChanged, plural, quote
from checkpoint.outcomes import NOT_RUN, Failure
from checkpoint.passes.changes import Changes
from checkpoint.passes.failures import failure_of
from checkpoint.passes.input import Input
from checkpoint.passes.paid import PaidValues
from checkpoint.passes.settings import PassSettings
from checkpoint.storage.index import Place
from checkpoint.storage.source import RecordSource
from checkpoint.values.digests import Digests, are_alike
from checkpoint.values.keys import PART, Key, item_digest, item_digests

if TYPE_CHECKING:
    from checkpoint.catalog.unfit import Unfit
    from checkpoint.provenance.drift import Lineage

__all__ = ["Earlier", "Fate"]

Fate = Literal["done", "aside", "redone", "given_up", "paid", "failed", "new"]
log = logging.getLogger("checkpoint")
_FEW = 10  # results that may well be of equal items under other keys
_FIRST = 100  # keys that tell whether the key function is still the same
_MANY = 512  # items that are compared at once
_WORDS = frozenset({int, str})


class Earlier:
    """The earlier records of one version, compared with the items of a pass.

    Args:
        records: the version's.
        items: those of the pass.
        settings: of the pass.
        lineage: decides what becomes of results where the function has changed.

    Attributes:
        changes: the items that differ from what their results were computed from.
        count: how many results there were.
        redo: keys that have a result, and are computed again; with where that result is, and in which index.
        failed: keys that failed earlier and are run again, with the type of the exception where it was read.
        had_errors: whether there were failures when the pass began.
        paid: the values that failures kept.
    """

    def __init__(self, records: VersionView, items: Input, settings: PassSettings, lineage: Lineage | None) -> None:
        self._records = records
        self._checkpoint = records.checkpoint
        self._version = records.version
        self._input = items
        self._settings = settings
        self._lineage = lineage
        self.changes = Changes(records.name, settings)
        self.count = 0
        self.redo: dict[Key, tuple[int, object]] = {}
        self.failed: dict[Key, str | None] = {}
        self.had_errors = False
        self.paid = PaidValues(records, settings.judge, lineage)
        self._state: tuple[object, int] = (None, 0)  # the results' index, and its end, when `_found` was filled
        self._found = array("q")  # where the results of the items that were keyed first are, or -1
        self._outdated: set[Key] = set()  # done, but by a function that has changed
        self._unfit: frozenset[Key] = frozenset()  # done, but of a class that has changed
        self._renewed: set[Key] = set()  # computed again, and by no call of this pass
        self._firsts: list[int] | None = []  # digests of one-shot items, as long as no key of theirs is known

    # comparing

    def check_function(self) -> None:
        """Decide what becomes of results of a function, or of a class, that has changed.

        Raises:
            FunctionChanged: the function is not what computed earlier results.
            ResultsUnfit: results on disk do not fit the class that the annotation names.
        """
        try:
            if self._lineage is not None:
                self._lineage.begin(self._records)
        except FunctionChanged:
            if (unfit := self.find_unfit()) is not None:
                raise unfit.error from None  # whoever accepted the change would meet this error next
            raise
        if (unfit := self.find_unfit()) is not None:
            raise unfit.error

    def find_unfit(self, *, only_look: bool = False) -> Unfit | None:
        """Results that do not fit their class any more; None where there are none, or where they are computed again."""
        if self._records.schema is None:
            if self._lineage is not None and not only_look:
                self._records.tell_unannotated()
            return None
        from checkpoint.catalog.unfit import find_unfit  # few passes need it

        unfit = find_unfit(self._records, only_look=only_look)
        if unfit is None or self._settings.on_change != "recompute":
            return unfit
        self._unfit = unfit.keys
        return None

    def compare(self) -> None:
        """Key the items that can be read twice, find their results, and note which items changed.

        Raises:
            InvalidKey, DuplicateKey, InvalidOption: naming the items.
        """
        self.count = self._checkpoint.results.count(self._version)
        if not self._input.is_one_shot:
            self._input.key_all()
            digests = self._find_keyed()
            if self.count:
                self._note_changes(digests)

    def refuse(self) -> None:
        """Refuse items that changed, where the settings say so, and a key function that changed.

        Raises:
            InputChanged, KeyChanged: naming the items.
        """
        self.changes.refuse()
        keys = self._input.keys[:_FIRST]
        if self.count and keys and not self._input.is_one_shot and not self._knows(keys):
            self._refuse_other_keys(list(map(self._settings.digest_of, islice(self._input.items, _FIRST))))

    def find_again(self, *, compares: bool) -> bool:
        """Find the results of the keyed items again, where results were saved since; returns whether any were.

        Args:
            compares: whether to compare them, too; nothing is drawn yet.

        Raises:
            InputChanged: one of these is of another item.
        """
        before, found, state = self._state, self._found, self._checkpoint.results.state
        if state == before:
            return False
        self._state = state
        if self._lineage is not None:
            self._lineage.begin(self._records)
        if self._input.keyed:
            digests = self._find_keyed()
            if compares and state[0] == before[0] and found != self._found:
                self._note_later(found, digests)
        return True

    def _note_later(self, before: array[int], digests: Digests) -> None:
        """Compare the items whose results are not those that were found before."""
        changed = [place for place, was in enumerate(before) if self._found[place] not in (was, -1)]
        later = {self._input.keys[place]: place for place in reversed(changed)}
        self._unfit -= later.keys()
        for key in later:
            self.redo.pop(key, None)
        for place, item in enumerate(self._input.items):
            if later.get(self._input.keys[place]) == place:
                self._note_change(self._input.keys[place], item, Place(self._found[place], digests[place]))
        self.changes.refuse()

    def _find_keyed(self) -> Digests:
        """Find the results of the items that were keyed; returns the digests of what these were computed from."""
        self._state = self._checkpoint.results.state
        self._found, digests = self._checkpoint.results.find_all(self._version, self._input.keys[: self._input.keyed])
        return digests

    def _note_changes(self, digests: Digests) -> None:
        """Note which of the keyed items differ from what their results were computed from."""
        stale = bool(self._unfit) or (self._lineage is not None and bool(self._lineage.stale))
        if not stale and self._input.in_memory and self._are_keys(self._input.items):
            return
        many: Any = self._input.items
        if stale or not self._input.in_memory or self._settings.digest_of is not item_digest:
            self._note_some_changes(0, many, digests)
            return
        for first in range(0, len(self._found), _MANY):
            some, part = slice(first, first + _MANY), digests.part(slice(first, first + _MANY))
            if max(self._found[some]) >= 0 and item_digests(list(many[some])) != part:
                self._note_some_changes(first, many[some], part)

    def _note_some_changes(self, first: int, items: Iterable[Any], digests: Digests) -> None:
        """The same of items from a place on."""
        stale = bool(self._unfit) or (self._lineage is not None and bool(self._lineage.stale))
        found = islice(self._found, first, None)
        for place, (item, offset, digest) in enumerate(zip(items, found, digests, strict=False), first):
            key = self._input.keys[place]
            is_key = type(item) in _WORDS and type(item) is type(key) and item == key  # then it cannot have changed
            if offset >= 0 and (stale or (digest and not is_key)) and self._input.first_places[key] == place:
                self._note_change(key, item, Place(offset, digest))

    def _are_keys(self, items: Any) -> bool:
        """Whether each item is its own key: then it cannot have changed."""
        types = {*map(type, items), *map(type, self._input.keys)}
        return types <= _WORDS and all(map(eq, items, self._input.keys))

    def is_redone(self, key: Key, item: Any, found: Place) -> bool:
        """Whether an item that could not be keyed first is computed again, though it has a result.

        Raises:
            InputChanged: it differs from what that was computed from.
        """
        self._note_change(key, item, found)
        self.changes.refuse()
        return key in self.redo

    def _note_change(self, key: Key, item: Any, found: Place) -> None:
        """Note whether the result at the place is to be computed again, and whether its item changed."""
        again = key in self._unfit and key not in self._renewed
        if self._lineage is not None and found.offset in self._lineage.stale:
            again = True
            self._outdated.add(key)
        if found.digest and self.changes.differs(found.digest, item):
            self.changes.add(key, item, found.digest)
            again = again or self._settings.on_change == "recompute"
        if again:
            self.redo[key] = found.offset, self._checkpoint.results.state[0]

    def is_renewed(self, key: Key, found: Place) -> bool:
        """Whether the result is a later one than that for which the key was to be computed again."""
        offset, index = self.redo[key]
        return offset != found.offset and self._checkpoint.results.state[0] == index

    def renew(self, key: Key) -> None:
        """The key has a later result, which no call of this pass computed."""
        self.redo.pop(key, None)
        self._renewed.add(key)

    # a key function that changed

    def look_at_first(self, key: Key, item: Any, *, is_fresh: bool) -> None:
        """Look whether the key function changed, as `refuse` does, where the first items are drawn one by one.

        Raises:
            KeyChanged: it did.
        """
        if self._firsts is None:
            return
        if not self.count or len(self._firsts) == _FIRST or (not is_fresh and self._knows([key])):
            self._firsts = None
            return
        self._firsts.append(self._settings.digest_of(item))
        if len(self._firsts) in (1, 10, _FIRST):
            self._refuse_other_keys(self._firsts)

    def _knows(self, keys: list[Key]) -> bool:
        """Whether one of the keys has a record."""
        logs = (self._checkpoint.results, self._checkpoint.errors)
        return any(records.find(self._version, key) is not None for key in keys for records in logs)

    def _refuse_other_keys(self, digests: list[int]) -> None:
        """Refuse a pass whose first items have no result, where their inputs are on disk under other keys.

        Raises:
            KeyChanged: most of them are, or most of the results on disk are of them.
        """
        places = {digest: place for place, digest in reversed(list(enumerate(digests))) if digest}
        found = self._checkpoint.results.keys_of_inputs(self._version, set(places))
        known = {places[digest]: key for digest, key in found.items() if key not in self._input.first_places}
        parts = any(digest & PART for digest in places)  # a part of an item may well be that of another
        enough = min(len(places), max(self.count, _FEW))
        if len(known) * 2 < enough or len(known) < (3 if parts else 1):
            return
        shown = sorted(known)
        now, before = [self._input.keys[place] for place in shown], [known[place] for place in shown]
        message = (
            f"checkpoint {self._records.name!r}: no key of the first {plural(len(digests), 'item')} has a result, and "
            f"{len(known)} of them are on disk under other keys (item {self._input.in_whole(shown[0])}: key "
            f"{quote(now[0], 60)} now, {quote(before[0], 60)} before), so key= has changed"
        )
        if self._settings.on_change == "recompute":
            log.warning("%s; they are computed anew", message)
            return
        raise KeyChanged(
            f"{message}, and all would be computed again. To go on, put the key back; or, if these results are to be "
            'computed anew, clear() the checkpoint first, take another name, or choose on_change="recompute"',
            keys=now,
            before=before,
        )

    # what becomes of the items

    @property
    def done(self) -> int:
        """How many of the keyed items are done."""
        return len(self._found) - len(self.undone())

    def is_counted(self, key: Key) -> bool:
        """Whether `done` counts the items of the key: they were keyed first, and had their result then."""
        place = self._input.first_places.get(key, -1)
        return (
            0 <= place < len(self._found)
            and self._found[place] >= 0
            and key not in self.redo
            and key not in self._renewed
        )

    def undone(self) -> list[int]:
        """The places of those items that were keyed first and have no result, or are computed again."""
        keys, redo = self._input.keys, self.redo
        if not redo and -1 not in self._found:
            return []
        if redo:
            return [place for place, offset in enumerate(self._found) if offset < 0 or keys[place] in redo]
        return [place for place, offset in enumerate(self._found) if offset < 0]

    def foresee(self) -> Iterator[tuple[Key, Fate]]:
        """(key, what becomes of it) for each key of items that were keyed, as `Pass.admit` decides it."""
        for place, item in enumerate(self._input.items):
            key = self._input.keys[place]
            if self._input.first_places[key] != place:
                continue
            redo = key in self.redo
            if not redo and self._found[place] >= 0:
                yield key, "done"
            elif self.find_aside(key, self._settings.digest_of(item) if redo else 0) is not None:
                yield key, "aside"
            elif redo:
                yield key, "redone"
            elif self._checkpoint.errors.find(self._version, key) is None:
                yield key, "new"
            else:
                yield key, self._foresee_failed(key, self._settings.digest_of(item))

    def _foresee_failed(self, key: Key, digest: int) -> Fate:
        """What becomes of an item that failed earlier."""
        if self.failure_stands(key, digest):
            return "given_up"
        verdict = self.paid.judge_again(key, digest)
        if verdict is None:
            return "failed"
        return "given_up" if isinstance(verdict, Failure) else "paid"

    def is_any_run(self) -> bool:
        """Whether one of the items that were keyed first will be run, as far as can be told without its content."""
        return any(self._will_run(self._input.keys[place]) for place in self.undone())

    def _will_run(self, key: Key) -> bool:
        if key not in self.redo and self._records.is_done(key):
            return False
        failed = self._checkpoint.errors.find(self._version, key) is not None
        stands = failed and (not self._settings.retry_failed or self._is_given_up(key))
        return not stands and self._checkpoint.unsaved.find(self._version, key) is None

    def note_failed(self) -> None:
        """Note which of the items that were keyed first failed earlier, and are run again."""
        errors = self._checkpoint.errors
        self.had_errors = self._settings.retry_failed and not errors.is_empty
        if self.had_errors:
            keys = [self._input.keys[place] for place in self.undone()]
            places, _ = errors.find_all(self._version, keys)
            self.failed.update((key, None) for key, place in zip(keys, places, strict=True) if place >= 0)

    def note_type(self, key: Key) -> None:
        """Note how an item failed earlier that is run again: the next failure's record hides the one that says so."""
        if self._checkpoint.errors.find(self._version, key) is not None:
            self.failed[key] = failure_of(self._records, key).type

    def in_order(self) -> list[int]:
        """The places of the undone items, those of items that failed earlier behind all that never ran."""
        places, failed, keys = self.undone(), self.failed, self._input.keys
        return sorted(places, key=lambda place: keys[place] in failed) if failed else places

    # failures that stand

    def failure_stands(self, key: Key, digest: int) -> bool:
        """Whether the item failed earlier and is not run again: the settings say so, or it was given up."""
        errors = self._checkpoint.errors
        failed = errors.find(self._version, key)
        if failed is None or (key in self.redo and not are_alike(failed.digest, digest)):
            return False
        if self._settings.retry_failed:
            is_other = failed.digest and digest and not are_alike(failed.digest, digest)
            if is_other or not self._is_given_up(key):
                return False
        return self._counts(errors, key)

    def _is_given_up(self, key: Key) -> bool:
        try:
            found = self._checkpoint.errors.read(self._version, key)
        except DamagedRecord:
            return False
        return found is not None and found[2].given_up

    def find_aside(self, key: Key, digest: int) -> Place | None:
        """Where the item's value is kept aside, which is not paid for again by itself; None where it is not."""
        aside = self._checkpoint.unsaved
        found = None if aside.is_empty else aside.find(self._version, key)
        if found is None or (key in self.redo and not are_alike(found.digest, digest)) or not self._counts(aside, key):
            return None
        return found

    def _counts(self, failures: RecordSource, key: Key) -> bool:
        """Whether a failure still tells something: that of a function that has changed since does not."""
        if self._lineage is None or key not in self._outdated:
            return True
        try:
            found = failures.read(self._version, key)
        except DamagedRecord:
            return False
        return found is not None and found[2].code in (self._lineage.code.digest, self._lineage.code.unsealed)

    # messages and places

    def tell_resumed(self, done: int) -> None:
        """Log how many items are done, how many failed, and how many there are, where there is a record."""
        if self._input.is_one_shot:
            done, failed = self._records.count()
        else:
            keys = set() if self._checkpoint.errors.is_empty else {self._input.keys[place] for place in self.undone()}
            errors, is_done = self._checkpoint.errors, self._records.is_done
            failed = sum(errors.find(self._version, key) is not None and not is_done(key) for key in keys)
        if not (self.count or done or failed):
            return
        total = "unknown" if self._input.total is None else f"{self._input.total:,}"
        log.info("resuming %r: %s done, %s failed, %s in total", self._records.name, f"{done:,}", f"{failed:,}", total)

    def places(self, made: Set[Key], failed: Set[Key]) -> array[int]:
        """Where each item's record is: an offset among the results, ~offset among the errors, or `NOT_RUN`.

        Args:
            made: keys that were settled in the pass.
            failed: keys that stand as failed.
        """
        results, keys = self._checkpoint.results, self._input.keys
        if results.state[0] == self._state[0] and len(self._found) == len(keys):
            places, todo = self._found[:], []
            made = made | self._renewed if self._renewed else made
            if made or -1 in places:
                todo = [place for place, offset in enumerate(places) if offset < 0 or keys[place] in made]
        else:  # one-shot input; or the journal was opened anew
            places, todo = array("q", [-1]) * len(keys), list(range(len(keys)))
        offsets, _ = results.find_all(self._version, [keys[place] for place in todo])
        for place, offset in zip(todo, offsets, strict=True):
            places[place] = offset if offset >= 0 else NOT_RUN
        if failed or self.failed:  # those that the pass did not come to stand as they failed earlier
            for place in range(len(keys)):
                if keys[place] in failed or (places[place] == NOT_RUN and keys[place] in self.failed):
                    found = self._checkpoint.errors.find(self._version, keys[place])
                    places[place] = NOT_RUN if found is None else ~found.offset
        return places
