"""A step that a call in a worker process takes: its driver looks it up, says who calls it, and records it.

The promise: the call is made here, and its record is on disk when the driver says so. The driver decides on retries,
permits and pauses, as it does for all workers.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any

from checkpoint.errors import BrokenWorkers, StoreError, UnencodableValue, quote
from checkpoint.execution.answers import Answer, Failed, Fatal, Returned
from checkpoint.execution.conversation import Conversation
from checkpoint.execution.policies import doubt_of, give_up
from checkpoint.execution.steps import CALL, Asked, as_exception
from checkpoint.execution.transport import pack, portable_bytes, unpack
from checkpoint.outcomes import Unit

__all__ = ["AskedStep"]


class AskedStep:
    """One step of a worker's.

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
        self._is_open = False  # the driver waits for what the call comes to

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
            (answer,), doubt = unpack(parts[0]), parts[1]
            refusal = as_exception(answer.failure, self.unit)
            if doubt is not None:
                give_up(refusal, doubt)
            raise refusal
        return (what, *parts)

    def steps(self) -> Generator[Asked, Answer, Any]:
        """What is done here for the item; returns its decoded result. The driver decides what is called, and when.

        Yields:
            `CALL`, each time that the call is to be made.

        Raises:
            BaseException: what the call raised, here or where it was made.
        """
        try:
            found = self._claim()
            while found is None:
                answer = yield CALL
                found = self._tell(answer[0] if type(answer) is list else answer)
            return found[0]
        finally:
            if self._is_open:
                self._is_open = False
                self._ask("gone")

    def _claim(self) -> tuple[Any] | None:
        """The decoded result, in a tuple, when it is there; None: the call is to be made here."""
        unit, item = self.unit, None
        with suppress(Exception):  # pickling runs the item's own code; its digest tells whether it has changed
            item = portable_bytes(unit.item, "the item")
        return self._answered("ask", self._reference, unit.key, unit.digest, item, self._parent)

    def _tell(self, answer: Answer) -> tuple[Any] | None:
        """Say what the call came to; the decoded result once it is on disk, None: the call is to be made again.

        Raises:
            UnencodableValue, StoreError: as of the driver's.
            BaseException: what the call raised, once its failure is on disk.
        """
        if type(answer) is Fatal:
            raise answer.exception
        if type(answer) is Failed:
            return self._tell_failed(answer)
        value, elapsed, notes = answer if type(answer) is Returned else (*answer, None)
        try:
            raw = self._encode(value)
        except UnencodableValue as error:
            shown = quote(value)
            try:
                held = portable_bytes(value, "its result")
            except Exception:  # pickling runs the value's own code
                held = b""
            self._answered("unencodable", held, shown, pickle.dumps(error), elapsed, notes)
            raise
        return self._answered("returned", raw, elapsed, notes)

    def _tell_failed(self, answer: Failed) -> tuple[Any] | None:
        raised = answer.failure.exception
        try:
            return self._answered("failed", pack([answer]))
        except StoreError:
            raise
        except BaseException as error:
            if raised is None:
                raise
            if answer.again is not None:
                give_up(raised, doubt_of(error))
        raise raised

    def _answered(self, *request: Any) -> tuple[Any] | None:
        self._is_open = False
        what, *parts = self._ask(*request)
        self._is_open = what == "call"
        return None if self._is_open else (self._decode(parts[0]),)
