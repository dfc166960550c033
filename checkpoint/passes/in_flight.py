"""The keys of one pass whose calls run, the items that wait for their equals, and the objects that calls work on.

The promise: a key runs once at a time, here and in all passes over the checkpoint, and an item that is equal to one
that runs shares its end. Nothing here is locked: a pass asks under its own lock, and `Claims` locks what passes share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from threading import get_ident
from typing import Any

from checkpoint.catalog.shards import ALL, Shard
from checkpoint.errors import plural, quote
from checkpoint.execution.caller import SOLE, caller, current_task
from checkpoint.outcomes import Failure, Success, Unit
from checkpoint.passes.claims import Again, Claims, PassKeys
from checkpoint.passes.step import TakenStep, asks
from checkpoint.values.inputs import Loans
from checkpoint.values.keys import PART, Key

__all__ = ["InFlight"]

log = logging.getLogger("checkpoint")
_CROWD = 1000  # items that wait; more are not drawn
_SAVED = Success(None)  # the value is on disk


class InFlight:
    """The units that were admitted and are not settled, which of them are being called, and who waits for them.

    Args:
        name: of the checkpoint.
        version: that the pass works on.
        claims: of all passes over the checkpoint.
        watches_objects: whether an object that comes again while a call works on it is to be found.
        shard: whose journals are written.

    Attributes:
        units: what was admitted, by key.
        begun: those of them whose calls have begun, marked by the pass; the same dict where calls begin when they are
            admitted. Where passes share the checkpoint each needs a `claim`, too.
        parked: those whose key runs in another pass.
        ends: how keys ended that another pass ran: its unit, and the outcome.
        parent: whose call makes this pass, and the keys that it may be of; None where no call does.
        has_company: whether other passes work on the checkpoint, or did.
        thread: where the user's own loop is at the units that have begun; None where calls are made.
        task: the id of the event loop's task in which the pass was made; 0 outside of any.
        waiting: the items that wait for their equal, by key.
        spoilt: keys whose items were changed before their calls were done.
        strays: keys that the user saved, and that were not handed out.
        steps: those that calls have taken, by the key of the call.
        name, version, claims, watches_objects, shard: as they were given.
    """

    def __init__(self, name: str, version: str, claims: Claims, *, watches_objects: bool, shard: Shard = ALL) -> None:
        self.name, self.version, self.claims, self.shard = name, version, claims, shard
        self.units: dict[Key, Unit] = {}
        self.begun: dict[Key, Unit] = {}
        self.parked: dict[Key, Unit] = {}
        self.ends: dict[Key, tuple[Unit, Success | Failure]] = {}
        self.waiting: dict[Key, list[Any]] = {}
        self.spoilt: set[Key] = set()
        self.strays: list[Key] = []
        self.steps: dict[Key, dict[TakenStep, None]] = {}
        self.watches_objects = watches_objects
        self.has_company = False
        self.thread: int | None = None
        self.task = current_task()
        self._elsewhere: set[Key] = set()  # what other passes have begun, until it is begun here
        self._count = 0  # how many items wait
        self._loans = Loans()
        call = asks(caller())
        self.parent: tuple[PassKeys, frozenset[Key]] | None = None
        if call is not None:
            self.parent = call[0], frozenset(call[0].keys_of(call[1]))

    def join(self) -> None:
        """The pass begins beside others; who calls this sees that it leaves them."""
        self.claims.join(self)

    def keys_of(self, given: Any) -> list[Key]:
        """The keys of the call that was given this item, or list of items."""
        if given is SOLE:
            return list(self.begun)
        if type(given) is not list:
            return [unit.key for unit in list(self.begun.values()) if unit.item is given]
        items = [given, *given]
        return [unit.key for unit in list(self.begun.values()) if any(unit.item is item for item in items)]

    @property
    def is_crowded(self) -> bool:
        """Whether so many items wait for their equals that no more are to be drawn."""
        return self._count >= _CROWD

    def start(self, unit: Unit) -> None:
        """The unit is admitted."""
        self.units[unit.key] = unit
        if self.watches_objects:
            self._loans.lend(unit.item, unit.key, 0 if unit.digest & PART else unit.digest)

    def start_all(self, units: Iterable[Unit]) -> None:
        """The units are admitted; nobody watches their objects."""
        self.units.update([(unit.key, unit) for unit in units])

    def begin_when_admitted(self) -> None:
        """Each call begins as its unit is admitted."""
        self.begun = self.units

    def begin_when_called(self) -> None:
        """Calls begin by themselves from now on; those that were admitted have begun."""
        self.begun = dict(self.units)

    def claim(self, unit: Unit, again: Again) -> bool:
        """Whether a unit that was marked may be called, as `Claims.claim`."""
        self._elsewhere.add(unit.key)  # at once: who saves the key meanwhile has it from the other pass
        if not self.claims.claim(self, unit, again):
            return False
        self._elsewhere.discard(unit.key)
        return True

    def owns(self, key: Key) -> bool:
        """Whether it is this pass that has begun the key."""
        return self.claims.is_owner(self, key)

    def awaits(self, key: Key) -> bool:
        """Whether the key was admitted and is not settled, and no other pass has begun it."""
        return key in self.units and key not in self._elsewhere

    def put_off(self, units: Iterable[Unit]) -> None:
        """The calls of the units did not end them: others may run them until they begin anew."""
        put_off = [unit for unit in units if self.begun.pop(unit.key, None) is not None]
        if self.has_company:
            self.claims.release(self, put_off, None)

    def wait(self, item: Any, key: Key) -> None:
        """Have the item wait for its equal, which runs."""
        self.waiting.setdefault(key, []).append(item)
        self._count += 1

    def end(self, key: Key, outcome: Success | Failure | None = None) -> None:
        """The key has ended so; items may still wait for it. None: in another pass."""
        unit = self.units.pop(key, None)
        begun = self.begun.pop(key, None)
        if self.watches_objects and self._loans:
            self._loans.ended(key)
        if self.steps:
            self.steps.pop(key, None)
        unit = begun if unit is None else unit
        if unit is not None and self.has_company:
            self._elsewhere.discard(key)
            self.claims.release(self, [unit], outcome)

    def end_all(self, keys: list[Key]) -> None:
        """The keys have results, which are on disk."""
        units = [unit for key in keys if (unit := self.units.pop(key, None)) is not None]
        for key in keys:
            self.begun.pop(key, None)
        for key in keys if self.steps else ():
            self.steps.pop(key, None)
        if self.watches_objects and self._loans:
            for key in keys:
                self._loans.ended(key)
        if self.has_company:
            self.claims.release(self, units, _SAVED)

    def release(self, key: Key) -> list[Any]:
        """The items that waited for the key; they wait no longer."""
        items = self.waiting.pop(key, [])
        self._count -= len(items)
        return items

    def end_by_hand(self, key: Key, *, failed: bool) -> tuple[bool, int]:
        """The user saved the key; returns whether it ran, and how many items waited for it.

        Its objects stay watched until the user is done with all that was handed out.
        """
        if key in self._elsewhere:
            return False, 0  # the pass that has begun it counts it
        unit = self.units.pop(key, None)
        self.begun.pop(key, None)
        if unit is not None and self.has_company:
            self.claims.release(self, [unit], None if failed else _SAVED)
        return unit is not None, len(self.release(key)) if self.waiting else 0

    def hand_out(self, units: list[Unit]) -> None:
        """The user's loop in this thread is given the units, as calls that begin."""
        self.thread = get_ident()
        self.begun = {unit.key: unit for unit in units}

    def hand_out_one(self, unit: Unit) -> None:
        """The same of one unit."""
        self.thread = get_ident()
        self.begun = {unit.key: unit}

    def take_back(self) -> None:
        """The user is done with all that was handed out."""
        if self.begun:
            self.put_off(list(self.begun.values()))
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

    def tell_strays(self) -> None:
        """Warn of results that the user saved under keys of no item, where others were handed out and never saved."""
        if self.strays and self.units:
            log.warning(
                "checkpoint %r: %s saved under keys that are of no item (such as %s), and %s handed out under others "
                "(such as %s) and never saved: save each under the key that key_fn gives, or it is handed out again",
                self.name, _were(len(self.strays)), quote(self.strays[0], 60), _were(len(self.units), "item"),
                quote(next(iter(self.units)), 60),
            )  # fmt: skip


def _were(count: int, noun: str = "result") -> str:
    return f"{plural(count, noun)} {'was' if count == 1 else 'were'}"
