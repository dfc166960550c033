"""How the function is run: short drivers between `admit` and `settle`, which they are given.

An engine draws an item, has it admitted (None: there is nothing to run), calls the function, and hands what finished to
settle at once, so that it is on disk before anyone sees it, and whether or not anyone does. Then it yields, once an
item. It knows nothing of keys, disks or bars.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from typing import Any

from checkpoint import clock
from checkpoint.outcomes import Done, Success, Unit, describe_exception

__all__ = ["Admit", "Settle", "serial", "serial_async"]

Admit = Callable[[Any], Unit | None]
Settle = Callable[[list[Done]], None]


def serial(function: Callable[[Any], Any], items: Iterable[Any], admit: Admit, settle: Settle) -> Iterator[None]:
    """One item after the other, in this thread."""
    for item in items:
        unit = admit(item)
        if unit is not None:
            settle([_call(function, unit)])
        yield


def _call(function: Callable[[Any], Any], unit: Unit) -> Done:
    started = clock.perf_counter()
    try:
        value = function(unit.item)
    except Exception as error:
        return Done(unit, describe_exception(error, elapsed=clock.perf_counter() - started, attempts=1, skip=1))
    return Done(unit, Success(value, clock.perf_counter() - started, 1))


async def serial_async(
    function: Callable[[Any], Awaitable[Any]], items: Iterable[Any], admit: Admit, settle: Settle
) -> AsyncIterator[None]:
    """One item after the other, in this event loop."""
    for item in items:
        unit = admit(item)
        if unit is not None:
            settle([await _await(function, unit)])
        yield


async def _await(function: Callable[[Any], Awaitable[Any]], unit: Unit) -> Done:
    started = clock.perf_counter()
    try:
        value = await function(unit.item)
    except Exception as error:
        return Done(unit, describe_exception(error, elapsed=clock.perf_counter() - started, attempts=1, skip=1))
    return Done(unit, Success(value, clock.perf_counter() - started, 1))
