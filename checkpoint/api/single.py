"""One item that is asked for by itself, wherever that is: its call is made, and what is on disk of it is read.

The promise: a thread and a task, the process that writes and its workers make the same call and read the same value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from checkpoint.api.options import Options
from checkpoint.catalog.value_reading import parsed_by
from checkpoint.execution.answers import Answer
from checkpoint.execution.call import Call
from checkpoint.execution.policies import retry_of
from checkpoint.execution.steps import Bell, LoopBell, Steps, awaited, driven
from checkpoint.outcomes import Unit
from checkpoint.values.keys import Key

__all__ = ["SingleCalls"]


class Port(Protocol):
    """A step, as who takes it sees it.

    Attributes:
        unit: what is asked for.
        keys: what others see of it.
    """

    unit: Unit

    @property
    def keys(self) -> Any: ...


class SingleCalls:
    """Makes the calls of single items of one function.

    Args:
        options: of the decorator.
        name: what the function is called in messages.
    """

    _advance: Callable[[Steps, Answer], Awaitable[tuple[bool, Any]]] | None = None
    """Takes the steps of a task further where that waits for another process."""

    def __init__(self, options: Options, name: str) -> None:
        self._options, self._name = options, name
        self._retry, self._parse = retry_of(options.retry), options.parse

    def _driven(self, face: Any, port: Port) -> Any:
        """The decoded result of the step's item, by a plain function."""
        call, given, bell = self._call(face, port), self._given(port), Bell()
        return driven(self._steps(port, bell.ring), bell, lambda: call.one(given))

    async def _awaited(self, face: Any, port: Port) -> Any:
        """The decoded result of the step's item, by a coroutine function."""
        call, given, bell = self._call(face, port), self._given(port), LoopBell()
        return await awaited(self._steps(port, bell.ring), bell, lambda: call.awaited(given), self._advance)

    def _steps(self, port: Any, ring: Callable[[object], None]) -> Steps:
        """What is done for the item of the step; whoever waits in it may be woken by `ring`."""
        raise NotImplementedError

    def _parsed(self, key: Key, value: Any) -> Any:
        """What is read of a result that is on disk."""
        return value if self._parse is None else parsed_by(self._parse, key, value)

    def _call(self, face: Any, port: Port) -> Call:
        options = self._options
        return Call(
            face._target()[0],
            self._name,
            batch_size=options.batch_size,
            validate=options.validate,
            retry=self._retry,
            timeout=options.timeout,
            keys=port.keys,
            tells_items=False,
        )

    def _given(self, port: Port) -> Any:
        """What the function is called with."""
        item = port.unit.item
        return item if self._options.batch_size is None else [item]
