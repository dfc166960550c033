"""Which keys run, over all passes of this process that work on one checkpoint at once.

The promise: a key whose call has begun in one pass is not called in another one, which waits for its end; what a pass
only drew, queued or put off is free for others. No call waits for itself, directly or through others.

A pass that is alone only marks what it begins, without a lock. It first marks a key, then checks for other passes. A
new pass first announces itself, then checks for marks. So at least one of the two notices the other; from then on both
ask here, under a lock.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary, WeakSet

from checkpoint import locks
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.errors import CircularCall, quote
from checkpoint.outcomes import Failure, Success, Unit
from checkpoint.values.keys import Key

__all__ = ["Again", "Claims", "PassKeys", "claims_of"]

Again = Callable[[Unit], None]
"""Is told, from any thread, that the end has come of a key that ran in another pass."""

_lock = locks.rlock("claims")
_running: WeakSet[PassKeys] = WeakSet()
_steps: dict[PassKeys, set[StepLike]] = {}  # that calls of this pass, or step, take
_by_checkpoint: WeakKeyDictionary[Checkpoint, Claims] = WeakKeyDictionary()


class PassKeys(Protocol):
    """The keys of one pass, as others see them.

    Attributes:
        name: of the checkpoint.
        version: that the pass works on.
        claims: of all passes over the checkpoint.
        begun: the units whose calls have begun, by key.
        parked: those whose key runs in another pass.
        ends: how keys ended that another pass ran: its unit, and the outcome.
        has_company: whether other passes work on the checkpoint, or did: what they ended is looked for.
        parent: whose call makes this pass, and the keys that it may be of; None where no call does.
        thread: where the user's own loop is at the units that have begun; None where calls are made.
        task: the id of the event loop's task in which the pass was made; 0 outside of any.
    """

    has_company: bool
    thread: int | None
    task: int
    name: str
    version: str
    claims: Claims
    begun: dict[Key, Unit]
    parked: dict[Key, Unit]
    ends: dict[Key, tuple[Unit, Success | Failure]]
    parent: tuple[PassKeys, frozenset[Key]] | None


class StepLike(PassKeys, Protocol):
    """The key of a step, which is a pass over one unit.

    Attributes:
        made_by: whose call takes it; None where no call does.
    """

    @property
    def made_by(self) -> PassKeys | None: ...


def _after_fork() -> None:
    """In a forked child: no pass runs here, and whoever held the lock is not here."""
    global _lock
    _lock = locks.rlock("claims")
    _running.clear()
    _steps.clear()
    _by_checkpoint.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def claims_of(checkpoint: Checkpoint) -> Claims:
    """The claims of all passes over a checkpoint."""
    with _lock:
        return _by_checkpoint.setdefault(checkpoint, Claims())


class _Waiter(NamedTuple):
    """A unit of one pass whose key runs in another."""

    keys: PassKeys
    unit: Unit
    again: Again


class Claims:
    """The keys that the passes over one checkpoint have begun."""

    def __init__(self) -> None:
        self._passes: list[PassKeys] = []
        self._owners: dict[tuple[str, Key], PassKeys] = {}  # what was claimed while there was more than one
        self._waiting: dict[tuple[str, Key], list[_Waiter]] = {}

    def join(self, keys: PassKeys) -> None:
        """A pass begins; where a loop by hand makes it, it is a part of what that does with its items."""
        with _lock:
            if (loop := _loop_around(keys)) is not None:
                keys.parent = loop, frozenset(loop.begun)
            self._passes.append(keys)
            for one in self._passes if len(self._passes) > 1 or self._owners else ():
                one.has_company = True
            _running.add(keys)

    def leave(self, keys: PassKeys) -> None:
        """A pass is over: whatever it had begun is free."""
        with _lock:
            _running.discard(keys)
            if keys not in self._passes:
                return
            self._passes.remove(keys)
            for name in [name for name, owner in self._owners.items() if owner is keys]:
                del self._owners[name]
            begun, keys.begun = list(keys.begun.values()), {}
            for name, waiters in list(self._waiting.items()):
                waiters[:] = [waiter for waiter in waiters if waiter.keys is not keys]
                if not waiters:
                    del self._waiting[name]
            for unit in begun:
                self._tell(keys, unit, None)

    def claim(self, keys: PassKeys, unit: Unit, again: Again) -> bool:
        """Whether the pass may call the unit, which it has marked as begun. Else it waits, and `again` is told.

        Raises:
            CircularCall: who runs the key waits for this call.
        """
        name = (keys.version, unit.key)
        with _lock:
            owner = self._owner(keys, name)
            if owner is None:
                self._owners[name] = keys
                return True
            del keys.begun[unit.key]
            _refuse_circle(keys, owner, unit.key)
            keys.parked[unit.key] = unit
            self._waiting.setdefault(name, []).append(_Waiter(keys, unit, again))
            return False

    def claim_step(self, step: StepLike, unit: Unit, again: Again) -> bool:
        """`claim` for a step, of which nobody knows before; `end_step` ends it in any case.

        Raises:
            CircularCall: as `claim`.
        """
        name = (step.version, unit.key)
        with _lock:
            if (loop := _loop_around(step)) is not None:
                step.parent = loop, frozenset(loop.begun)
            for one in self._passes:
                one.has_company = True
            owner = self._owner(step, name)
            if owner is None:
                self._owners[name] = step
                step.begun[unit.key] = unit
            else:
                _refuse_circle(step, owner, unit.key)
                step.parked[unit.key] = unit
                self._waiting.setdefault(name, []).append(_Waiter(step, unit, again))
            if step.made_by is not None:
                _steps.setdefault(step.made_by, set()).add(step)
            return owner is None

    def end_step(self, step: StepLike, outcome: Success | Failure | None) -> None:
        """The step is over: it ended so, or is left to others (None)."""
        with _lock:
            if step.made_by is not None and (siblings := _steps.get(step.made_by)) is not None:
                siblings.discard(step)
                if not siblings:
                    del _steps[step.made_by]
            for unit in step.parked.values():
                if waiters := self._waiting.get((step.version, unit.key)):
                    waiters[:] = [waiter for waiter in waiters if waiter.keys is not step]
            begun, step.begun = list(step.begun.values()), {}
            for unit in begun:
                if self._owners.get((step.version, unit.key)) is step:
                    del self._owners[step.version, unit.key]
                    self._tell(step, unit, outcome)

    def _owner(self, keys: PassKeys, name: tuple[str, Key]) -> PassKeys | None:
        """Who else has begun the key."""
        owner = self._owners.get(name)
        if owner is not None:
            return None if owner is keys else owner
        version, key = name
        marked = (one for one in self._passes if one is not keys and one.version == version and key in one.begun)
        return next(marked, None)

    def release(self, keys: PassKeys, units: Iterable[Unit], outcome: Success | Failure | None) -> None:
        """The pass is done with the units: they ended so, or were put off (None)."""
        with _lock:
            for unit in units:
                owner = self._owners.get((keys.version, unit.key))
                if owner is keys:
                    del self._owners[keys.version, unit.key]
                if owner is None or owner is keys:  # else who waits does so for another pass
                    self._tell(keys, unit, outcome)

    def _tell(self, keys: PassKeys, unit: Unit, outcome: Success | Failure | None) -> None:
        for waiter in self._waiting.pop((keys.version, unit.key), ()):
            waiter.keys.parked.pop(unit.key, None)
            if outcome is not None:
                waiter.keys.ends[unit.key] = (unit, outcome)
            waiter.again(waiter.unit)

    def is_owner(self, keys: PassKeys, key: Key) -> bool:
        """Whether it is this pass that has begun the key."""
        with _lock:
            return self.owner(keys.version, key) is keys

    def owner(self, version: str, key: Key) -> PassKeys | None:
        """Who has begun a key; the caller holds the lock."""
        return self._owners.get((version, key)) or next(
            (one for one in self._passes if one.version == version and key in one.begun), None
        )


_Call = tuple["PassKeys", Key]


def _loop_around(keys: PassKeys) -> PassKeys | None:
    """The innermost loop by hand in whose body a pass is made; None where no loop is within the call that makes it."""
    here = threading.get_ident()
    loops = [one for one in _running if one.thread == here and one.task == keys.task and one.begun]
    inner = max(loops, key=_depth, default=None)
    return inner if inner is not None and _depth(inner) >= _depth(keys) else None


def _depth(keys: PassKeys) -> int:
    """How many calls, and loops by hand, are around a pass."""
    depth = 0
    while keys.parent is not None:
        keys, depth = keys.parent[0], depth + 1
    return depth


def _refuse_circle(keys: PassKeys, owner: PassKeys, key: Key) -> None:
    """Raise where the end of the owner's call would wait for this pass."""
    if owner.thread is not None and (owner.thread == threading.get_ident() or _is_within(keys, owner)):
        raise CircularCall(
            f"checkpoint {owner.name!r}: a loop in this thread was given the item of key {quote(key)} and is not done "
            "with it, so that to wait for it here would never end; save it first, or leave that loop"
        )
    if (circle := _circle(keys, owner, key)) is not None:
        raise CircularCall(
            f"a call would wait for its own end: {' → '.join(circle)}; call the function itself in place of its map or "
            "one, or see that the inner call has another key"
        )


def _is_within(keys: PassKeys, outer: PassKeys) -> bool:
    """Whether the pass is made by a call or the body of another, directly or through others."""
    while keys.parent is not None:
        keys = keys.parent[0]
        if keys is outer:
            return True
    return False


def _circle(keys: PassKeys, owner: PassKeys, key: Key) -> list[str] | None:
    """The calls from the one that wants to wait back to itself, in words; None where it may wait."""
    callers = list(_callers(keys))
    path = _path((owner, key), {call for level in callers for call in level}, set()) if callers else None
    if path is None:
        return None  # nobody waits for a pass that no call makes
    depth = next(depth for depth, level in enumerate(callers) if path[-1] in level)
    between = [level[0] for level in callers[:depth]]
    return [f"{one.name}({quote(each, 40)})" for one, each in [path[-1], *reversed(between), *path]]


def _callers(keys: PassKeys) -> Iterator[list[_Call]]:
    """The calls that wait for this pass: the one that makes it, the one that makes that one's pass …

    Each is a list, since the calls of a pass that were given one object cannot be told apart.
    """
    while keys.parent is not None:
        keys, several = keys.parent
        if several:
            yield [(keys, key) for key in several]


def _path(call: _Call, wanted: set[_Call], seen: set[_Call]) -> list[_Call] | None:
    """The calls from this one to one that is wanted, each of which waits for the next."""
    if call in wanted:
        return [call]
    if call in seen:
        return None
    seen.add(call)
    for inner in [*_running, *_steps.get(call[0], ())]:
        if inner.parent is None or inner.parent[0] is not call[0] or call[1] not in inner.parent[1]:
            continue
        owners = [(inner.claims.owner(inner.version, key), key) for key in list(inner.parked)]
        awaited = [(owner, key) for owner, key in owners if owner is not None]
        for next_call in [*awaited, *((inner, key) for key in list(inner.begun))]:
            if (rest := _path(next_call, wanted, seen)) is not None:
                return [call, *rest]
    return None
