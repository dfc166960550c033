"""One item that is asked for by itself: what others see of it while it is looked up, waited for, or called.

The promise: the key of a step is claimed as that of a pass is, so that no key runs twice at a time and a circle is
found; but to claim one takes the same time however many steps are under way.
"""

from __future__ import annotations

from typing import Any, Protocol

from checkpoint.catalog.shards import ALL, Shard
from checkpoint.execution.caller import current_task
from checkpoint.outcomes import Failure, Success, Unit
from checkpoint.passes.claims import Again, Claims, PassKeys
from checkpoint.values.keys import Key

__all__ = ["StepKeys", "TakenStep", "asks", "note_step"]

TakenStep = tuple[str, Key, str]
"""A checkpoint's name, a key of it, and the digest of the version."""


class Takes(PassKeys, Protocol):
    """The keys of calls that may take steps.

    Attributes:
        steps: those that calls have taken, by the key of the call.
        shard: whose journals the calls' steps are written to.
    """

    steps: dict[Key, dict[TakenStep, None]]
    shard: Shard

    def keys_of(self, given: Any) -> list[Key]: ...


class StepKeys:
    """The one key of a step, as `PassKeys` has several.

    Args:
        name: of the checkpoint.
        version: that is asked for.
        claims: of all passes and steps over the checkpoint.
        call: the call that takes the step, as `caller` gives it; None outside of any.

    Attributes:
        root: the pass at the top of the calls that led here; None where there is none.
        shard: whose journals the calls of that pass write.
        steps: those that the step's own call has taken, by key.
        others: see `PassKeys`.
    """

    __slots__ = (
        "__weakref__", "_call", "_parent", "begun", "claims", "ends", "has_company", "name", "parked", "root",
        "shard", "steps", "task", "thread", "version",
    )  # fmt: skip

    def __init__(self, name: str, version: str, claims: Claims, call: tuple[Any, Any] | None) -> None:
        self.name, self.version, self.claims = name, version, claims
        self.begun: dict[Key, Unit] = {}
        self.parked: dict[Key, Unit] = {}
        self.ends: dict[Key, tuple[Unit, Success | Failure]] = {}
        self.steps: dict[Key, dict[TakenStep, None]] = {}
        self.has_company = True
        self.thread: int | None = None
        self.task = current_task()
        self._call = call
        self._parent: tuple[PassKeys, frozenset[Key]] | None = None
        self.root: Any = None if call is None else getattr(call[0], "root", call[0])
        self.shard: Shard = ALL if call is None else getattr(call[0], "shard", ALL)

    @property
    def parent(self) -> tuple[PassKeys, frozenset[Key]] | None:
        """Whose call takes the step, and the keys that it may be of; None where no call does."""
        if self._parent is None and self._call is not None:
            keys, given = self._call
            self._parent = keys, frozenset(keys.keys_of(given))
        return self._parent

    @parent.setter
    def parent(self, parent: tuple[PassKeys, frozenset[Key]] | None) -> None:
        self._parent = parent

    @property
    def made_by(self) -> Any:
        """Whose call takes the step; None where no call does."""
        return self._parent[0] if self._parent is not None else None if self._call is None else self._call[0]

    def keys_of(self, given: Any) -> list[Key]:
        """The key of its call, whatever that was given."""
        return list(self.begun)

    def claim(self, unit: Unit, again: Again) -> bool:
        """Whether the unit may be called here; else who runs it tells `again` of its end.

        Raises:
            CircularCall: who runs the key waits for this step.
        """
        return self.claims.claim_step(self, unit, again)

    def leave(self, outcome: Success | Failure | None) -> None:
        """The step is over: its call ended so, and what it returned is on disk; None: another may call it."""
        self.claims.end_step(self, outcome)


def asks(call: tuple[Any, Any] | None) -> tuple[Takes, Any] | None:
    """The call of a pass, or of a step, of this process that asks; None for any other."""
    return call if call is not None and hasattr(call[0], "keys_of") else None


def note_step(step: TakenStep, call: tuple[Any, Any] | None) -> None:
    """Note that the call has taken the step: its record lists it."""
    if (found := asks(call)) is None:
        return
    keys, given = found
    for key in keys.keys_of(given):
        keys.steps.setdefault(key, {})[step] = None
