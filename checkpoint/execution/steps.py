"""How one item is asked for by itself: looked up, waited for where it runs already, and called else.

The promise: a key is called by one at a time; a retry, a rate's permit and the end of a pause are waited for here, by
who asks: it is the one place where a worker waits. What is to be done next is told once (`step`), for threads and for
tasks: these only wait and call in their own ways.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from checkpoint import locks
from checkpoint.errors import ItemError, printable, quote
from checkpoint.execution.answers import Answer, Failed, Fatal, Returned, failed
from checkpoint.execution.notes import added
from checkpoint.execution.policies import Again, Rate, Retry, give_up
from checkpoint.execution.scheduler import Attempt, BadCost, Schedule
from checkpoint.execution.threads import begin_thread
from checkpoint.outcomes import Failure, Success, Unit

__all__ = ["CALL", "Bell", "LoopBell", "StepPort", "Turns", "as_exception", "awaited", "driven", "in_a_thread", "step"]

CALL: Final = object()
"""What `step` yields where the call is to be made; it is sent the answer."""
_LOOK_UP = 0.5  # seconds: a signal that comes just as the main thread goes to sleep does not wake it
_LONGEST = 1.0  # seconds after which who waits for its turn looks again in any case
_SAVED: Final = Success(None)

Asked = float | object | None
"""Seconds to wait at most until rung, None for as long as it takes, or `CALL`."""
Steps = Generator[Asked, Answer, Any]


class StepPort(Protocol):
    """What a step is to who takes it.

    Attributes:
        unit: what is asked for.
    """

    unit: Unit

    def find(self) -> tuple[Any] | None:
        """The decoded result, in a tuple; None where there is none that counts."""

    def claim(self, ring: Callable[[object], None]) -> bool:
        """Whether the call may be made here; else `ring` is called, from any thread, when that is over elsewhere."""

    def shared(self) -> Failure | None:
        """The failure that ended the call elsewhere; None where none did."""

    def begin(self) -> tuple[Any] | None:
        """See that what the call returns can be saved; the result, decoded, where it was saved meanwhile."""

    def save(self, outcome: Success) -> Any:
        """The value, decoded, once it is on disk."""

    def attempted(self, cost: float) -> None:
        """A call failed and is made again: see that what it cost is not lost by a kill meanwhile."""

    def fail(self, failure: Failure) -> None:
        """Record the failure."""

    def end(self, outcome: Success | Failure | None) -> None:
        """The step is over: it ended so, or others may make the call (None)."""


class Turns:
    """When calls for single items may start: those of all who ask in this process, by one schedule.

    Args:
        retry: which failures are tried again.
        rates: all of them must permit a call.
    """

    def __init__(self, retry: Retry | None = None, rates: tuple[Rate, ...] = ()) -> None:
        self._schedule = Schedule(retry, rates)
        self._lock = locks.lock("coordinator")
        self._waiting: dict[Attempt, Callable[[object], None]] = {}
        self._unpayable: dict[Attempt, Exception] = {}  # what it costs cannot be told, or is too much

    def outcome(
        self, unit: Unit, ring: Callable[[object], None], attempted: Callable[[float], None]
    ) -> Generator[Asked, Answer, Success | Failure]:
        """How the call of the unit ends, with its retries; `attempted` is told what each cost that is made again.

        Raises:
            BaseException: the call raised what is no Exception, and no fault of it.
        """
        attempt, is_plain = Attempt([unit]), self._schedule.is_plain
        if not is_plain:
            self._add(attempt, ring)
        try:
            while True:
                while attempt in self._waiting and (wait := self._wait(attempt)) > 0:
                    yield wait
                error = self._unpayable.pop(attempt, None)
                answer = (yield CALL) if error is None else failed(error)
                if type(answer) is list:
                    (answer,) = answer
                if type(answer) is tuple or type(answer) is Returned:
                    if not is_plain:
                        self._answered(attempt)
                    notes = answer.notes if type(answer) is Returned else None
                    return Success(answer[0], answer[1], attempt.made + 1, added(attempt.notes, notes))
                if type(answer) is Fatal:
                    raise answer.exception
                assert type(answer) is Failed
                attempt.notes = added(attempt.notes, answer.failure.notes)
                if is_plain or not self._again(attempt, answer.again, ring):
                    attempt.made += is_plain
                    failure = answer.failure.counted(attempt.made, attempt.notes)
                    if is_plain or answer.again is None:
                        return failure
                    return self._given_up(failure, attempt, answer.again)
                if cost := (answer.failure.notes or {}).get("cost"):
                    attempted(cost)
        finally:
            if not is_plain:
                self._forget(attempt)

    def _add(self, attempt: Attempt, ring: Callable[[object], None]) -> None:
        with self._lock:
            self._schedule.add(attempt)
            self._waiting[attempt] = ring

    def _wait(self, attempt: Attempt) -> float:
        """Seconds until it makes sense to ask again; 0: it is the attempt's turn. Whose turn it is too, is rung."""
        with self._lock:
            while True:
                try:
                    taken = self._schedule.take()
                except BadCost as bad:
                    taken, self._unpayable[bad.attempt] = bad.attempt, bad.error
                if taken is None:
                    break
                if (ring := self._waiting.pop(taken, None)) is None:
                    self._schedule.keep(taken, [])  # who asked is gone
                    self._unpayable.pop(taken, None)
                elif taken is not attempt:
                    ring(None)
            if attempt not in self._waiting:
                return 0.0
            wait = self._schedule.wait()
            return _LONGEST if wait is None else min(max(wait, 1e-6), _LONGEST)

    def _answered(self, attempt: Attempt) -> None:
        with self._lock:
            self._schedule.answered(attempt)

    def _again(self, attempt: Attempt, why: Again | None, ring: Callable[[object], None]) -> bool:
        """Whether the call is made once more."""
        with self._lock:
            is_again = self._schedule.again(attempt, why)
            if is_again:
                self._waiting[attempt] = ring
        return is_again

    def _given_up(self, failure: Failure, attempt: Attempt, why: Again) -> Failure:
        """The failure of a call that is not made again: no retry of a call around it makes it again, but in doubt."""
        error = as_exception(failure, attempt.units[0])
        with self._lock:
            is_doubted = why.trouble and not (attempt.decided or self._schedule.has_given_up)
        give_up(error, why if is_doubted else None)
        return replace(failure, exception=error)

    def _forget(self, attempt: Attempt) -> None:
        with self._lock:
            self._waiting.pop(attempt, None)
            self._unpayable.pop(attempt, None)
            self._schedule.lost(attempt)


def step(port: StepPort, turns: Turns, ring: Callable[[object], None]) -> Steps:
    """What is to be done for one item, from its claim to its record; returns its decoded result.

    Yields:
        What is waited for, or `CALL`.

    Raises:
        CircularCall: who runs the key waits for this step.
        BaseException: what the call raised, here or where it was made.
    """
    ended: Success | Failure | None = None
    try:
        while not port.claim(ring):
            yield None
            if (failure := port.shared()) is not None:
                raise as_exception(failure, port.unit)
            if (found := port.find()) is not None:
                return found[0]
        if (found := port.begin()) is not None:
            ended = _SAVED
            return found[0]
        outcome = yield from turns.outcome(port.unit, ring, port.attempted)
        if isinstance(outcome, Failure):
            port.fail(outcome)
            ended = outcome
            raise as_exception(outcome, port.unit)
        value = port.save(outcome)
        ended = _SAVED
        return value
    finally:
        port.end(ended)


def as_exception(failure: Failure, unit: Unit) -> BaseException:
    """The exception that the call raised, where this process has it."""
    if failure.exception is not None:
        return failure.exception
    shown = f"{failure.type}: {failure.message}" if failure.type else failure.message
    return ItemError(
        f"item {quote(unit.key)} failed: {printable(shown)}",
        key=unit.key,
        type=failure.type,
        message=failure.message,
        traceback=failure.traceback,
        attempts=failure.attempts,
        elapsed=failure.elapsed,
    )


# --- in a thread -----------------------------------------------------------------------------------------------------


class Bell:
    """Wakes a thread that waits."""

    __slots__ = ("_rung",)

    def __init__(self) -> None:
        self._rung: SimpleQueue[object] = SimpleQueue()

    @property
    def ring(self) -> Callable[[object], None]:
        """Wakes it; from any thread."""
        return self._rung.put

    def wait(self, timeout: float | None) -> None:
        """Wait until it is rung, or at most so many seconds."""
        if timeout is not None:
            with suppress(Empty):
                self._rung.get(timeout=timeout)
            return
        while True:
            with suppress(Empty):
                self._rung.get(timeout=_LOOK_UP)
                return


def driven(steps: Steps, bell: Bell, make: Callable[[], Answer]) -> Any:
    """What the steps return, which are taken in this thread."""
    answer: Answer = None
    try:
        while True:
            asked = steps.send(answer)
            answer = make() if asked is CALL else bell.wait(asked)  # type: ignore[arg-type,func-returns-value]
    except StopIteration as stop:
        return stop.value
    finally:
        steps.close()


# --- in a task -------------------------------------------------------------------------------------------------------


class LoopBell:
    """Wakes a task that waits; made in it."""

    __slots__ = ("_event", "_loop")

    def __init__(self) -> None:
        import asyncio  # only here: who has no coroutines need not wait for it

        self._loop, self._event = asyncio.get_running_loop(), asyncio.Event()

    def ring(self, _: object) -> None:
        """Wake it; from any thread."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._event.set)

    async def wait(self, timeout: float | None) -> None:
        """Wait until it is rung, or at most so many seconds."""
        import asyncio

        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._event.wait()
        self._event.clear()


async def awaited(
    steps: Steps,
    bell: LoopBell,
    make: Callable[[], Awaitable[Answer]],
    advance: Callable[[Steps, Answer], Awaitable[tuple[bool, Any]]] | None = None,
) -> Any:
    """What the steps return, which are taken in this task.

    Args:
        steps: those of `step`.
        bell: wakes the task.
        make: makes the call.
        advance: takes the steps further where that waits for another process, as `in_a_thread`.
    """
    answer: Answer = None
    try:
        while True:
            if advance is None:
                asked = steps.send(answer)
            else:
                is_over, asked = await advance(steps, answer)
                if is_over:
                    return asked
            answer = await (make() if asked is CALL else bell.wait(asked))  # type: ignore[arg-type]
    except StopIteration as stop:
        return stop.value
    finally:
        with suppress(ValueError):  # a thread is at it, which closes it
            steps.close()


async def in_a_thread(steps: Steps, answer: Answer) -> tuple[bool, Any]:
    """(whether they are over, what they ask or return): the steps are taken further while the loop goes on."""
    import asyncio

    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def tell(result: tuple[bool, Any] | None, error: BaseException | None) -> None:
        if future.cancelled():
            begin_thread(steps.close, "checkpoint-step")
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def advance() -> None:
        result, error = None, None
        try:
            result = False, steps.send(answer)
        except StopIteration as stop:
            result = True, stop.value
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed, and nobody waits
            loop.call_soon_threadsafe(tell, result, error)

    begin_thread(advance, "checkpoint-step")
    return await future  # type: ignore[no-any-return]
