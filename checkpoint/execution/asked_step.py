"""A step that a call in a worker process takes: its driver looks it up, says who calls it, and records it.

The promise: the call is made here, and its record is on disk when the driver says so.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from checkpoint.errors import BrokenWorkers, StoreError, UnencodableValue, quote
from checkpoint.execution.answers import Failed
from checkpoint.execution.conversation import Conversation
from checkpoint.execution.steps import CALL, Asked, Turns, as_exception
from checkpoint.execution.transport import pack, portable_bytes, unpack
from checkpoint.outcomes import Failure, Success, Unit

__all__ = ["AskedStep", "Permitted"]


class AskedStep:
    """One step of a worker's: `execution.steps.StepPort`.

    Args:
        driver: whom to ask.
        reference: the pickle of the decorated function, or method.
        unit: what is asked for.
        parent: the number of the step whose call takes this one; None where the item's own call does.
        encode, decode: a value's JSON and back.

    Attributes:
        unit: as given.
        number: by which the driver knows it.
    """

    def __init__(
        self,
        driver: Conversation,
        reference: bytes,
        unit: Unit,
        parent: int | None,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
    ) -> None:
        self.unit, self.number = unit, driver.number()
        self._driver, self._reference, self._parent = driver, reference, parent
        self._encode, self._decode = encode, decode
        self._found: tuple[Any] | None = None
        self._is_open = False

    @property
    def keys(self) -> AskedStep:
        """What others see of it: calls within it take their steps as its own."""
        return self

    def _ask(self, *request: Any) -> tuple[Any, ...]:
        """The driver's answer.

        Raises:
            BaseException: what the driver raised.
        """
        try:
            what, *parts = self._driver.ask(self.number, *request)
        except (EOFError, OSError) as error:
            raise BrokenWorkers("the driver of this worker process is gone") from error
        if what == "refused":
            (answer,) = unpack(parts[0])
            raise as_exception(answer.failure, self.unit)
        return (what, *parts)

    def find(self) -> tuple[Any] | None:
        """The driver looks, when it is asked who calls."""
        return None

    def claim(self, ring: Callable[[object], None]) -> bool:
        """As `StepPort.claim`: the driver answers when it is known, so that nobody rings here.

        Raises:
            BaseException: what the call raised where it was made, or why it is not made.
        """
        unit, item = self.unit, None
        with suppress(Exception):  # pickling runs the item's own code; its digest tells whether it has changed
            item = portable_bytes(unit.item, "the item")
        what, *parts = self._ask("ask", self._reference, unit.key, unit.digest, item, self._parent)
        if what == "done":
            self._found = (self._decode(parts[0]),)
        else:
            self._is_open = True
        return True

    def shared(self) -> Failure | None:
        """It is raised by `claim`."""
        return None

    def begin(self) -> tuple[Any] | None:
        """As `StepPort.begin`: the driver has seen to it."""
        return self._found

    def permit(self) -> None:
        """Wait for the permits of the function's rates."""
        self._ask("permit")

    def save(self, outcome: Success) -> Any:
        """As `StepPort.save`.

        Raises:
            UnencodableValue, StoreError: as of the driver's.
        """
        value, how = outcome.value, (outcome.elapsed, outcome.attempts, outcome.notes)
        self._is_open = False
        try:
            raw = self._encode(value)
        except UnencodableValue as error:
            shown = quote(value)
            try:
                held = portable_bytes(value, "its result")
            except Exception:  # pickling runs the value's own code
                held = b""
            self._ask("unencodable", held, shown, pickle.dumps(error), *how)
            raise
        self._ask("saved", raw, *how)
        return self._decode(raw)

    def attempted(self, cost: float) -> None:
        """What an attempt cost is told with the last one."""

    def fail(self, failure: Failure) -> None:
        """As `StepPort.fail`.

        Raises:
            StoreError: it is not on disk.
        """
        self._is_open = False
        try:
            self._ask("failed", pack([Failed(failure)]), failure.attempts or 0)
        except StoreError:
            raise
        except BaseException:
            if failure.exception is None:
                raise

    def end(self, outcome: Success | Failure | None) -> None:
        """As `StepPort.end`."""
        if self._is_open:
            self._is_open = False
            self._ask("gone")


class Permitted:
    """The turns of a step whose rates the driver keeps: it permits each call."""

    def __init__(self, turns: Turns, port: AskedStep) -> None:
        self._turns, self._port = turns, port

    def outcome(
        self, unit: Unit, ring: Callable[[object], None], attempted: Callable[[float], None]
    ) -> Generator[Asked, Any, Success | Failure]:
        """As `Turns.outcome`."""
        steps, answer = self._turns.outcome(unit, ring, attempted), None
        try:
            while True:
                asked = steps.send(answer)
                if asked is CALL:
                    self._port.permit()
                answer = yield asked
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            steps.close()
