"""`one`: the saved result of one item, computed and saved now if there is none.

The promise: it makes no pass and shows no bar; a result that is there costs about what reading it by its key does. What
a pass looks at before it begins is looked at once for each pass around it, and outside of any once a second at most.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from checkpoint import clock, locks
from checkpoint.api.dispatch import refuse_while_importing_main
from checkpoint.api.options import Options
from checkpoint.api.runner import CheckpointedRunner
from checkpoint.api.signatures import named
from checkpoint.api.single import SingleCalls
from checkpoint.catalog.shards import Shard, shard_of
from checkpoint.errors import InvalidOption
from checkpoint.execution.caller import caller
from checkpoint.execution.chunk import chunk_here
from checkpoint.execution.policies import judge_value, rates_of
from checkpoint.execution.steps import Steps, Turns, step
from checkpoint.outcomes import Unit
from checkpoint.passes.settings import PassSettings
from checkpoint.passes.step import Takes, note_step
from checkpoint.passes.step_desk import DeskStep, StepDesk
from checkpoint.provenance.version import version_of
from checkpoint.values.keys import Key, digest_function, key_function, version_digest

if TYPE_CHECKING:
    from checkpoint.catalog.paths import Directory
    from checkpoint.provenance.drift import Lineage
    from checkpoint.provenance.fingerprint import Fingerprint

__all__ = ["Singles", "refuse_timeout", "singles_of"]

_EVERY = 1.0  # seconds from one look at the function to the next
_Caller = tuple[Any, Any] | None


class Asked(Protocol):
    """What `one` asks of a decorated function."""

    _self_options: Options
    _self_directory: Directory
    _self_singles: dict[Any, Any]

    def _target(self) -> tuple[Any, Any]: ...

    def _runner_of(self, shard: Shard) -> CheckpointedRunner: ...

    def _fingerprint(self) -> Fingerprint | None: ...

    def _lineage(self, code: Fingerprint | None) -> Lineage | None: ...


def refuse_timeout(options: Options, *, is_async: bool) -> None:
    """Raise `InvalidOption` where nothing can keep the `timeout=` of a function that is asked for single items."""
    if options.timeout is not None and not is_async:
        raise InvalidOption(
            f"timeout={options.timeout:g} cannot be kept where one item is asked for: nothing can stop the thread that "
            "computes it. Use a coroutine function, or the timeout of the client that is called"
        )


def singles_of(face: Asked, call: tuple[Takes, Any] | None) -> Singles:
    """What asks for single items of the function, of its version, and of the shard that is worked at.

    Args:
        face: the function.
        call: the call that takes the step; None outside of any.
    """
    options = face._self_options
    shard = shard_of(None) if call is None else call[0].shard
    function, instance = face._target()
    place: Any = (face._self_directory.find(), shard, os.getpid())
    if instance is not None or callable(options.version):
        version = version_of(options.version, function, instance)
        place = (*place, None if version is None else version_digest(version, "version", options.name))
    singles = face._self_singles.get(place)
    if singles is None or singles.runner.closed:
        refuse_while_importing_main(options.name)
        if singles is not None:
            face._self_singles.pop(place, None)
        made = Singles(face._runner_of(shard), options, named(function))
        singles = face._self_singles.setdefault(place, made)  # all threads wait for the same permits
    return singles  # type: ignore[no-any-return]


class Singles(SingleCalls):
    """Asks for single items of one function and version.

    Args:
        runner: of the version and shard.
        options: of the decorator.
        name: what the function is called in messages.

    Attributes:
        runner: as given.
        turns: when calls may start.
    """

    def __init__(self, runner: CheckpointedRunner, options: Options, name: str) -> None:
        super().__init__(options, name)
        self.runner = runner
        self._key_of = key_function(options.key)
        judge = partial(judge_value, options.validate)
        settings = PassSettings(self._key_of, digest_function(options.input), options.on_change, judge=judge)
        self._desk = StepDesk(runner.records.of_pass(), settings)
        self.turns = Turns(self._retry, rates_of(options.rate))
        self._looking = locks.lock("pass")
        self._checked_at = -inf
        self._checked_for: weakref.ref[Any] | None = None  # the pass for which the function was looked at last

    def one(self, face: Asked, item: Any) -> Any:
        """The decoded result of the item, by a plain function."""
        key, found = self._look(face, item)
        value = found[0] if isinstance(found, tuple) else self._driven(face, found)
        return self._parsed(key, value)

    async def one_async(self, face: Asked, item: Any) -> Any:
        """The decoded result of the item, by a coroutine function."""
        key, found = self._look(face, item)
        value = found[0] if isinstance(found, tuple) else await self._awaited(face, found)
        return self._parsed(key, value)

    def _steps(self, port: Any, ring: Callable[[object], None]) -> Steps:
        return step(port, self.turns, ring)

    def port(self, face: Asked, unit: Unit, call: _Caller) -> DeskStep:
        """A step that a call in a worker process takes.

        Raises:
            FunctionChanged, ResultsUnfit: as a map of the function.
        """
        self._check(face, call)
        note_step((self.runner.name, unit.key, self._desk.records.version), call)
        return DeskStep(self._desk, unit, call)

    def encoded(self, value: Any) -> bytes:
        """The JSON of a value that was saved."""
        return self._desk.records.encode(value)

    def _look(self, face: Asked, item: Any) -> tuple[Key, tuple[Any] | DeskStep]:
        """(key, the result on disk, or else the step): the call around it is noted to have taken the step."""
        call = caller()
        if (chunk := chunk_here()) is not None:
            chunk.split()
        self._check(face, call)
        key = self._key_of(item)
        if call is not None:
            note_step((self.runner.name, key, self._desk.records.version), call)
        found = self._desk.find(item, key)
        return key, DeskStep(self._desk, self._desk.unit(item, key), call) if found is None else found

    def _check(self, face: Asked, call: _Caller) -> None:
        """Look whether the function has changed, where that is due.

        Raises:
            FunctionChanged, ResultsUnfit: as `StepDesk.check`.
        """
        root = None if call is None else getattr(call[0], "root", call[0])
        known = None if self._checked_for is None else self._checked_for()
        if root is not None and root is known:
            return
        if clock.monotonic() < self._checked_at + _EVERY:
            return
        with self._looking:
            now = clock.monotonic()
            if now >= self._checked_at + _EVERY:
                self._desk.check(face._lineage(face._fingerprint()))
                self._checked_at = now
                self._checked_for = None if root is None else weakref.ref(root)
