"""The items of one pass: they are keyed and drawn in order, and unequal items under one key are refused.

The promise: equal items share one key, unequal ones never do; what can be read twice is keyed before anything runs, and
gives the same keys the second time; what can be read only once is keyed as it is drawn, and not kept.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Container, Iterable, Iterator
from itertools import islice
from typing import Any, NoReturn

from checkpoint.catalog.shards import ALL, Shard, Share
from checkpoint.errors import DuplicateKey, InvalidKey, InvalidOption, ItemError, plural, quote
from checkpoint.passes.settings import PassSettings
from checkpoint.values.inputs import index_of, is_one_shot, items_of, length_of, refuse_groups
from checkpoint.values.keys import Key, add_keys

__all__ = ["Input"]

log = logging.getLogger("checkpoint")


class Input:
    """The items of one pass, the key of each that was drawn so far, and the place of the next one.

    Args:
        given: all items, in order, as the user gave them.
        settings: how the pass treats them.
        shard: the part of the items that the pass works on, by their keys.

    Attributes:
        items: the items to draw from, in the order in which they are to be drawn.
        keys: the key of each item that was keyed, by place.
        first_places: the first place of each key.
        keyed: how many items were keyed before anything ran.
        drawn: the place of the next item; how many have been drawn where none is left out.
        total: how many items there are, or None.
        is_one_shot: whether the items can be read only once.
        in_memory: whether the items are all there already, the same object at the same place each time.
        any_drawn: whether there are any to be drawn, as far as that is known.
    """

    def __init__(self, given: Any, settings: PassSettings, shard: Shard) -> None:
        self._index = index_of(given)
        given = items_of(given)
        # A list may be changed by the function that is mapped over it: what it holds now is what is mapped.
        self.items: Iterable[Any] = list(given) if type(given) is list else given
        self._key_of, self._digest_of = settings.key_of, settings.digest_of
        self._on_change = settings.on_change
        self.keys: list[Key] = []
        self.first_places: dict[Key, int] = {}
        self.keyed = 0
        self.drawn = 0
        self.any_drawn = True
        self.total: int | None = length_of(given) if shard == ALL else None
        self.is_one_shot = is_one_shot(given)
        self.in_memory = type(given) in (list, tuple, range)
        if self.in_memory:
            for item in self.items[:1]:
                refuse_groups(item)
        self._share: Share | None = None
        if shard != ALL:
            self.items = self._share = Share(self.items, self._key_in_whole, shard)
        self._kept: dict[Key, Any] = {}  # what tells whether a later item equals it, where the item is not at hand
        self._all: Any = ()  # those in memory, and
        self._left: Iterator[int] = iter(())  # the places of those that are still to be drawn

    def in_whole(self, place: int) -> int:
        """Where an item is in the input that was given; of a shard, `place` counts its own items only."""
        return place if self._share is None else self._share.places[place]

    @property
    def index(self) -> Any:
        """The index of the pandas DataFrame or Series whose rows the items are; of other items None."""
        if self._index is None or self._share is None:
            return self._index
        return self._index.take(self._share.places)

    # keying

    def key_all(self) -> None:
        """Key every item of input that can be read twice.

        Raises:
            InvalidKey, DuplicateKey, InvalidOption: naming the items.
        """
        if self.in_memory and self._share is not None:
            self.items = list(self._share)
        if self.in_memory and self._on_change in (None, "keep"):
            self._key_at_once()
        else:
            for place, item in enumerate(self.items):
                self._add(self._key(place, item), place, item)
        self.total = self.keyed = len(self.keys)

    def _key_at_once(self) -> None:
        """Key items in memory as the loop of `key_all` does, at C speed: there may be many."""
        items: Any = self.items
        keys = self.keys = []
        try:
            add_keys(keys, self._key_of, items)
            if len(keys) < len(items):
                raise StopIteration  # which ends a loop, and is not seen
        except Exception as error:
            place = len(keys)
            _raise_of_key(error, self.in_whole(place), items[place])
        self.first_places = dict(zip(keys, range(len(keys)), strict=True))
        if len(self.first_places) < len(keys):
            self.first_places = {}
            for place, key in enumerate(keys):
                if self.first_places.setdefault(key, place) != place:
                    self._refuse_unequal(key, place, items[place])

    def _key(self, place: int, item: Any) -> Key:
        return self._key_in_whole(self.in_whole(place), item)

    def _key_in_whole(self, place: int, item: Any) -> Key:
        try:
            return self._key_of(item)  # type: ignore[no-any-return]
        except Exception as error:
            _raise_of_key(error, place, item)

    def _add(self, key: Key, place: int, item: Any) -> None:
        """Add the key of the item at the place; an equal item may have it too."""
        if self._on_change in ("recompute", "error") and not self._digest_of(item):
            raise InvalidOption(
                f"on_change={self._on_change!r} needs items whose changes can be told, and item "
                f"{self.in_whole(place)} is {quote(item)}, a {type(item).__name__}, whose content is not known; "
                "name what counts of it, input=lambda x: …, or leave on_change out"
            )
        if self.first_places.setdefault(key, place) != place:
            self._refuse_unequal(key, place, item)
        elif not self.in_memory:
            self._kept[key] = self._comparable(item)
        self.keys.append(key)

    def _refuse_unequal(self, key: Key, place: int, item: Any) -> None:
        """Refuse two items that share a key and are not equal: they would get each other's result."""
        first = self.first_places[key]
        if self.in_memory and self.items[first] is item:  # type: ignore[index]  # a list, a tuple or a range
            return
        kept = self._comparable(self._item_at(first)) if self.in_memory else self._kept[key]
        if kept == self._digest_of(item) if isinstance(kept, int) else kept is not None and kept() is item:
            return
        shown = self.in_whole(first), self.in_whole(place)
        raise DuplicateKey(
            f"items {shown[0]} and {shown[1]} have one key, {quote(key)}, and are not known to be equal: "
            f"{quote(self._item_at(first))} and {quote(item)}; use a key that tells them apart, or drop one",
            key=key,
            places=shown,
        )

    def _comparable(self, item: Any) -> Any:
        """What is kept of an item to compare a later one with: its digest, else a weak reference, else nothing."""
        try:
            return self._digest_of(item) or weakref.ref(item)
        except TypeError:
            return None

    def _item_at(self, place: int) -> Any:
        return _Gone() if self.is_one_shot else next(islice(self.items, place, None), _Gone())

    # the order of drawing

    def leave_out_all_but(self, places: list[int]) -> None:
        """Draw only the items at these places, in this order, of items that are in memory."""
        self._all = self.items
        if not places:
            self.items, self.drawn, self.any_drawn = (), self.keyed, False
            return
        self._left = iter(places)
        self.items = self._items_left()

    def _items_left(self) -> Iterator[Any]:
        for place in self._left:
            self.drawn = place
            yield self._all[place]
        self.drawn = self.keyed

    def postpone(self, keys: Container[Key]) -> None:
        """Draw the items of these keys behind all others; the input is read twice for it, and not kept."""
        self.items = self._items_postponed(self.items, keys)

    def _items_postponed(self, items: Iterable[Any], keys: Container[Key]) -> Iterator[Any]:
        count = 0
        for place, item in enumerate(items):
            count = place + 1
            if place >= self.keyed or self.keys[place] not in keys:
                self.drawn = place
                yield item
        for place, item in enumerate(items):
            if place < self.keyed and self.keys[place] in keys:
                self.drawn = place
                yield item
        self.drawn = count

    # drawing

    def expect(self, item: Any) -> Key:
        """The key of the next item, which was keyed already; the cursor moves on.

        Raises:
            InvalidKey: its key cannot be made.
            DuplicateKey: it has another key than when it was keyed.
        """
        place = self.drawn
        self.drawn = place + 1
        key = self.keys[place]
        if self.in_memory or (again := self._key(place, item)) == key:
            return key
        shown = self.in_whole(place)
        raise DuplicateKey(
            f"item {shown} had key {quote(key)} when the items were first read, and {quote(again)} now: they come "
            "in another order each time they are read, or the key function is not stable; pass list(items)",
            key=again,
            places=(shown, shown),
        )

    def draw(self, item: Any) -> Key:
        """The key of the next item, which could not be keyed before; the cursor moves on.

        Raises:
            InvalidKey, DuplicateKey, InvalidOption: naming the item; of unequal items with one key, the second.
        """
        place = self.drawn
        self.drawn = place + 1
        key = self._key(place, item)
        self._add(key, place, item)
        if self.total is not None and place >= self.total:
            self.total = place + 1  # the length lied
        return key

    def next(self, most: int) -> tuple[list[Any], list[Key]]:
        """Draw at most so many of the items that are left in memory; returns them and their keys."""
        places = list(islice(self._left, most))
        self.drawn = places[-1] + 1 if places else self.keyed
        return [self._all[place] for place in places], [self.keys[place] for place in places]

    # after

    def check_drawn(self) -> None:
        """Check that every item was drawn that was there when they were keyed.

        Raises:
            InvalidOption: there were fewer.
        """
        if self.drawn < self.keyed:
            raise InvalidOption(
                f"items gave {self.keyed:,} items when they were first read, and {self.drawn:,} the second time; "
                "pass list(items)"
            )

    def tell_equals(self, name: str) -> None:
        """Log how many items were equal to an earlier one, where all were drawn."""
        if self.first_places and self.drawn == len(self.keys) and (equal := self.drawn - len(self.first_places)) > 0:
            log.info(
                "checkpoint %r: %s of %s equal to an earlier one and shared its result; for several samples of one "
                "item make an item of each: [(item, n) for item in items for n in range(5)]",
                name, f"{equal:,}", f"{plural(self.drawn, 'item')} {'was' if self.drawn == 1 else 'were'}",
            )  # fmt: skip

    def close(self) -> None:
        """Let go of the items and their keys."""
        self.items = self._all = ()
        self.first_places, self._kept, self.keys = {}, {}, []


def _raise_of_key(error: Exception, place: int, item: Any) -> NoReturn:
    """Raise what the key function raised for the item at the place, which it names."""
    if isinstance(item, ItemError):
        raise InvalidKey(
            f"item {place} stands for one that failed in another map ({quote(item)}); leave those out: "
            "[x for x in results if not isinstance(x, ItemError)]",
            key=None,
        ) from None
    if isinstance(error, InvalidKey):
        raise InvalidKey(f"item {place}: {error}", key=error.key) from None
    if isinstance(error, StopIteration):
        raise InvalidKey(f"the key function raised StopIteration for item {place}, {quote(item)}", key=None) from None
    error.add_note(f"while the key of item {place} was asked for: {quote(item)}")
    raise error


class _Gone:
    """Stands for an item of one-shot input that is no longer here."""

    def __repr__(self) -> str:
        return "one that was drawn earlier"
