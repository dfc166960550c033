"""The driver's part in steps that calls in its worker processes take: it looks up, says who calls, and records.

The promise: a worker calls only what nobody else is calling, and has its answer when the record is on disk; a worker
that dies leaves what it was at to others. Whoever waits is told from the pool's thread, which waits for nobody.

What a worker says: ``ask`` (a key), ``returned``, ``unencodable`` and ``failed`` (what its call came to), ``gone`` (the
step is given up). The answer is a result, an error, or the order to call, also once more: retries, rates and pauses are
the driver's, so that those of all workers are one.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Generator
from typing import Any, Protocol

from checkpoint import clock
from checkpoint.errors import quote_error
from checkpoint.execution.answers import Answer, Returned, failed
from checkpoint.execution.caller import SOLE
from checkpoint.execution.conversation import reply_of
from checkpoint.execution.policies import doubt_of
from checkpoint.execution.steps import CALL, Asked, StepPort, Turns, step
from checkpoint.execution.transport import Unreadable, pack, unpack
from checkpoint.outcomes import Encoded, Unit

__all__ = ["StepService"]


class Served(StepPort, Protocol):
    """A step of a worker's, as the driver takes it.

    Attributes:
        keys: what others see of it.
    """

    keys: Any


class Serves(Protocol):
    """What looks up and saves items of a decorated function, for workers."""

    turns: Turns

    def port(self, face: Any, unit: Unit, call: Any) -> Served: ...

    def encoded(self, value: Any) -> bytes: ...


class StepService:
    """The steps of one worker process.

    Args:
        send: sends a message to it; in the pool's thread.
        post: has something done in the pool's thread; from any thread.
        begin_thread: begins a thread of this name for what would keep the pool waiting.
    """

    def __init__(
        self,
        send: Callable[[bytes], None],
        post: Callable[[Callable[[], None]], None],
        begin_thread: Callable[..., Any],
    ) -> None:
        self._send, self._post, self._begin_thread = send, post, begin_thread
        self._open: dict[int, tuple[Served, Serves, Generator[Asked, Any, Any]]] = {}
        self._faces: dict[bytes, Any] = {}
        self._at_call: set[int] = set()  # the worker makes their calls
        self._is_over = False

    def hear(self, number: int, what: str, parts: list[Any], call: Any) -> None:
        """Answer to what the worker says of a step, now or when that can be told.

        Args:
            number: of the step.
            what: it says: see above.
            parts: of that.
            call: (keys, item) of the call that it makes; None for none.
        """
        try:
            getattr(self, f"_{what}")(number, *parts, *([call] if what == "ask" else []))
        except Exception as error:
            if (found := self._open.pop(number, None)) is not None:
                found[2].close()
            self._refuse(number, error)

    def close(self) -> None:
        """The worker is gone: what it was at is left to others."""
        self._is_over = True
        opened, self._open = list(self._open.values()), {}
        for _, _, steps in reversed(opened):
            steps.close()
        self._faces.clear()
        self._send = self._post = _ignore  # they know the pool, which knows us

    def _ask(
        self, number: int, reference: bytes, key: Any, digest: int, item: bytes | None, parent: int | None, call: Any
    ) -> None:
        face = self._faces.get(reference)
        if face is None:
            face = self._faces[reference] = pickle.loads(reference)
        if parent is not None:
            call = (self._open[parent][0].keys, SOLE) if parent in self._open else None
        serves: Serves = face._serves(call)
        unit = Unit(None if item is None else pickle.loads(item), key, digest)
        port = serves.port(face, unit, call)
        steps = _looked_up(port, serves.turns, lambda _: self._post(lambda: self._wake(number)))
        self._open[number] = port, serves, steps
        self._go_on(number)

    def _wake(self, number: int) -> None:
        """What the step waits for may have come; one whose call is made, or that is over, waits for nothing."""
        if number in self._open and number not in self._at_call:
            self._go_on(number)

    def _go_on(self, number: int, answer: Answer = None) -> None:
        """Take the step further, until it waits."""
        _, serves, steps = self._open[number]
        self._at_call.discard(number)
        try:
            asked = steps.send(answer)
        except StopIteration as stop:
            del self._open[number]
            self._reply(number, "done", serves.encoded(stop.value))
        except BaseException as error:
            self._open.pop(number, None)
            self._refuse(number, error)
        else:
            if asked is CALL:
                self._at_call.add(number)
                self._reply(number, "call")
            elif isinstance(asked, float):
                self._begin_thread(self._wait, "checkpoint-turn", number, asked)

    def _wait(self, number: int, seconds: float) -> None:
        clock.sleep(seconds)
        self._post(lambda: self._wake(number))

    def _returned(self, number: int, raw: bytes, elapsed: float, notes: dict[str, Any] | None) -> None:
        self._called(number, Encoded(None, raw), elapsed, notes)

    def _unencodable(
        self, number: int, value: bytes, shown: str, error: bytes, elapsed: float, notes: dict[str, Any] | None
    ) -> None:
        try:
            held = pickle.loads(value)
        except Exception as why:  # unpickling runs the value's own code
            held = Unreadable(f"{shown} (it cannot be unpickled here: {quote_error(why)})", value)
        self._called(number, Encoded(held, pickle.loads(error)), elapsed, notes)

    def _called(self, number: int, value: Encoded, elapsed: float, notes: dict[str, Any] | None) -> None:
        self._go_on(number, (value, elapsed) if notes is None else Returned(value, elapsed, notes))

    def _failed(self, number: int, packed: bytes) -> None:
        (answer,) = unpack(packed)
        self._go_on(number, answer)

    def _gone(self, number: int) -> None:
        if (found := self._open.pop(number, None)) is not None:
            found[2].close()
        self._reply(number, "closed")

    def _refuse(self, number: int, error: BaseException) -> None:
        self._reply(number, "refused", pack([failed(error)]), doubt_of(error))

    def _reply(self, number: int, *reply: Any) -> None:
        if not self._is_over:
            self._send(reply_of(number, *reply))


def _ignore(_: object) -> None: ...


def _looked_up(port: StepPort, turns: Turns, ring: Callable[[object], None]) -> Generator[Asked, Answer, Any]:
    """`step`, after a look whether the result is there."""
    if (found := port.find()) is not None:
        return found[0]
    return (yield from step(port, turns, ring))
