"""The keys whose calls run, the items that wait for their equals among them, and the objects that calls work on.

The promise: a key runs once at a time, and an item that is equal to one that runs shares its end. Nothing here is
locked: a pass asks under its own lock.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from checkpoint.outcomes import Unit
from checkpoint.values.inputs import Loans
from checkpoint.values.keys import PART, Key

__all__ = ["InFlight"]

_CROWD = 1000  # items that wait; more are not drawn


class InFlight:
    """The keys that were admitted and are not settled, and who waits for them.

    Args:
        watches_objects: whether an object that comes again while a call works on it is to be found.

    Attributes:
        digests: the keys whose calls run, with the digests of their items.
        waiting: the items that wait for their equal, by key.
        spoilt: keys whose items were changed before their calls were done.
        watches_objects: as it was given.
    """

    def __init__(self, *, watches_objects: bool) -> None:
        self.digests: dict[Key, int] = {}
        self.waiting: dict[Key, list[Any]] = {}
        self.spoilt: set[Key] = set()
        self.watches_objects = watches_objects
        self._count = 0  # how many items wait
        self._loans = Loans()

    @property
    def is_crowded(self) -> bool:
        """Whether so many items wait for their equals that no more are to be drawn."""
        return self._count >= _CROWD

    def start(self, unit: Unit) -> None:
        """The unit's call runs from here on."""
        key, digest = unit.key, unit.digest
        self.digests[key] = digest
        if self.watches_objects:
            self._loans.lend(unit.item, key, 0 if digest & PART else digest)

    def start_all(self, keys: Iterable[Key], digests: Iterable[int]) -> None:
        """The calls of these keys run from here on; nobody watches their objects."""
        self.digests.update(zip(keys, digests, strict=True))

    def wait(self, item: Any, key: Key) -> None:
        """Have the item wait for its equal, which runs."""
        self.waiting.setdefault(key, []).append(item)
        self._count += 1

    def end(self, key: Key) -> None:
        """The call of the key has ended; items may still wait for it."""
        self.digests.pop(key, None)
        if self.watches_objects and self._loans:
            self._loans.ended(key)

    def end_all(self, keys: list[Key]) -> None:
        """The calls of the keys have ended."""
        if self.watches_objects and self._loans:
            for key in keys:
                self._loans.ended(key)
        for key in keys:
            self.digests.pop(key, None)

    def release(self, key: Key) -> list[Any]:
        """The items that waited for the key; they wait no longer."""
        items = self.waiting.pop(key, [])
        self._count -= len(items)
        return items

    def end_by_hand(self, key: Key) -> tuple[bool, int]:
        """The user saved the key; returns whether it ran, and how many items waited for it.

        Its objects stay watched until the user is done with all that was handed out.
        """
        return self.digests.pop(key, None) is not None, len(self.release(key))

    def return_objects(self) -> None:
        """The user is done with all that was handed out."""
        if self.watches_objects and self._loans:
            self._loans.end_all()

    def find_shared(self, item: Any, key: Key) -> tuple[Any, list[Key]] | None:
        """An object of the item that calls of other keys work on and that was changed under them, and their keys.

        None where there is none. Whatever these calls return is of no item: their keys are spoilt.
        """
        shared = self._loans.taken(item, key)
        if shared is not None:
            self.spoilt.update(shared[1])
        return shared
