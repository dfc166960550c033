"""One call of the user's function, wherever it is made: what comes back is an answer, and never an exception.

A `Call` is what workers are given. Where it arrives in another process (`shipped`), it answers in bytes (`transport`).
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import replace
from importlib.util import find_spec
from math import inf
from types import CoroutineType, TracebackType, coroutine
from typing import Any, Protocol

from checkpoint import clock
from checkpoint.errors import (
    FunctionChanged,
    GiveUp,
    InvalidFunction,
    UnencodableValue,
    plural,
    quote,
)
from checkpoint.execution.answers import Answer, Failed, Fatal, Returned, out_of_time, with_paid
from checkpoint.execution.caller import SOLE, Frame, enter_call, enter_pass
from checkpoint.execution.chunk import Chunk, enter_chunk
from checkpoint.execution.clients import denial_of
from checkpoint.execution.notes import gathered, with_notes
from checkpoint.execution.policies import Batch, Retry, batch_of, doubt_of, judge_value
from checkpoint.execution.surroundings import Settings, settings_here, unshared
from checkpoint.execution.transport import FIXED, cloudpickle, pack, set_apart
from checkpoint.outcomes import Encoded, Success, Unit, describe_exception

__all__ = ["Arrived", "Call", "arrived", "ending"]


class Agrees(Protocol):
    """Sees that a function is in this process what it is in the driver."""

    def check(self, function: Any, *, takes_over: bool, travelled: bool) -> None:
        """Raise `FunctionChanged` where it is not."""

    def without_values(self) -> Agrees:
        """The same for a process in which no values are set: they need not travel."""


_Run = Callable[..., Any]  # of a context
_REFUSALS = 3  # in a row; then the driver, which knows of the other workers, says what is called next


class Call:
    """How the function is called: each time in a copy of the context in which this was made.

    Args:
        function: it takes an item, or a list of items.
        name: what it is called in messages.
        batch_size: how many items it takes at most, in a list, or a `Batch`; None: one, and no list.
        validate: False or an exception makes a value a failure.
        retry: which exceptions say that the call may be made again.
        timeout: seconds that a coroutine may take.
        travels: what is pickled in the function's place, and arrives as it.
        encode: a value is encoded by it before the next call begins, unless nothing can change it; in this process.
        settings: of arithmetic, those of the process that it comes from; None: those that hold here.
        agreement: sees in another process that the function is what it is here, before a call is made.
        keys: knows the keys of the pass; code that a call runs finds it as its `caller`.
        tells_items: whether such code finds the item too, and notes fields of it: not needed where one call is made at
            a time.
        span: seconds after which `many` begins no further call; None: it makes all of them.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        name: str = "the function",
        *,
        batch_size: int | Batch | None = None,
        validate: Callable[[Any], Any] | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
        travels: Any = None,
        encode: Callable[[Any], bytes] | None = None,
        settings: Settings | None = None,
        agreement: Agrees | None = None,
        keys: Any = None,
        tells_items: bool = True,
        span: float | None = None,
    ) -> None:
        self.function = function
        self.keys = keys
        self.is_elsewhere = False
        self._context = copy_context()
        self._tells_items = tells_items
        self._frame: Frame = self._context.run(enter_pass, self if keys is None else keys)
        if settings is not None:
            self._context.run(settings.apply)
        self._unshare = self._context.run(unshared, self._context.copy())
        self._settings = settings
        self._agreement = agreement
        self._travels = function if travels is None else travels
        self._encode = encode
        self.name = name
        self.span = span
        self.gathers = batch_of(batch_size)
        self.batch_size = None if self.gathers is None else self.gathers.items
        self.batch = batch_size is not None
        self.timeout = timeout
        self._validate = validate
        self._retry = retry
        self._plain = batch_size is None and validate is None
        self._shipped: dict[bool, bytes] = {}

    def one(self, given: Any, context: Context | None = None) -> Answer:
        """The answer for one item, or one batch; made in a copy of the context, by default of the caller's."""
        run = (self._context if context is None else context).copy().run
        frame = [given] if self._tells_items else self._frame
        started = clock.perf_counter()
        try:
            if self._unshare is not None:
                run(self._unshare)
            if self._tells_items:
                run(enter_call, frame)
            value = run(self.function, given)
            if type(value) is CoroutineType:
                return Fatal(self._not_awaited(value))
            if not self._plain:
                return self._noted(run(self._checked, value, given, started), frame, context)
        except Exception as error:
            return self._noted(self.failed(error, clock.perf_counter() - started), frame, context)
        except BaseException as error:
            if _is_fault(error):
                return self._noted(self.failed(error, clock.perf_counter() - started), frame, context)
            return Fatal(error)
        answer = (value, clock.perf_counter() - started)
        return answer if len(frame) == 1 else self._noted(answer, frame, context)

    def _noted(self, answer: Answer, frame: Frame, context: Context | None = None) -> Answer:
        """The answer with what the call noted. What runs on after it was shared with the next call notes nothing."""
        if len(frame) == 1:
            return answer
        if frame is self._frame:
            self._frame = [SOLE]
            for each in (self._context, context):
                if each is not None:
                    each.run(enter_call, self._frame)
        return with_notes(answer, gathered(frame[1:]))

    def _not_awaited(self, value: CoroutineType[Any, Any, Any]) -> InvalidFunction:
        """The error for a coroutine that a plain function returned: nobody awaits it."""
        value.close()
        return InvalidFunction(
            f"{self.name} is a plain function and returned the coroutine {value.__qualname__}, which nobody awaits. "
            "Where a decorator wraps a coroutine function in a plain one, put @checkpointed beneath it, on the `async "
            "def`, or let the decorator return a coroutine function: async def wrapper(item): return await "
            "function(item)"
        )

    def many(
        self,
        given: list[Any],
        keep: Callable[[Answer], Answer] | None = None,
        began: float | None = None,
        at_work: memoryview | None = None,
        chunk: Chunk | None = None,
    ) -> list[Answer]:
        """The answers for several, one after the other.

        They are fewer where one of them asks for a pause; and where there is a span, when it is over or a call fails.

        Args:
            given: what each is given.
            keep: makes of an answer one that later calls do not change; default: its value is encoded.
            began: when the span began, by `clock.perf_counter`; default: now.
            at_work: its item 0 becomes the place of the call that runs.
            chunk: where one of them takes a step, it is split, and the answer is that of this call alone.
        """
        answers: list[Answer] = [] if chunk is None else chunk.answers
        context = None
        if chunk is not None:
            context = self._context.copy()  # of this chunk alone: other threads make calls of others
            context.run(enter_chunk, chunk)
        end = inf if self.span is None else (clock.perf_counter() if began is None else began) + self.span
        row = 0  # of refusals
        keep = self._kept if keep is None else keep
        for place, one in enumerate(given):
            if answers and (clock.perf_counter() >= end or (self.span is not None and type(answers[-1]) is Failed)):
                break
            if at_work is not None:
                at_work[0] = place
            try:
                answer = keep(self.one(one, context))
            except BaseException as error:  # of a hook of the user's, while a failure was described
                answer = Fatal(error)
            answers.append(answer)
            row = row + 1 if type(answer) is Failed and answer.again is not None and answer.again.trouble else 0
            if type(answer) is Fatal or row == _REFUSALS:
                break
            if chunk is not None and chunk.is_split:
                break
        return answers if chunk is None else answers[chunk.first :]

    def _kept(self, answer: Answer) -> Answer:
        """The answer with its value encoded, if it is one that can change."""
        if self._encode is None:
            return answer
        if type(answer) is list:
            return [self._kept(one) for one in answer]
        if type(answer) is Failed:
            return with_paid(answer, self._kept)
        if type(answer) is Returned:
            value, elapsed = self._kept((answer.value, answer.elapsed))
            return Returned(value, elapsed, answer.notes)
        if type(answer) is not tuple or type(answer[0]) in FIXED:
            return answer
        value, elapsed = answer
        try:
            raw: bytes | UnencodableValue = self._encode(value)
        except UnencodableValue as error:
            raw = error
        return (Encoded(value, raw), elapsed)

    async def awaited(self, given: Any) -> Answer:
        """The answer of a coroutine function for one item, or one batch."""
        run = self._context.copy().run
        frame = [given] if self._tells_items else self._frame
        started = clock.perf_counter()
        try:
            if self._unshare is not None:
                run(self._unshare)
            if self._tells_items:
                run(enter_call, frame)
            awaitable = run(self.function, given)
            if self.timeout is None:
                value = await _within(run, awaitable)
            else:
                value = await self._in_time(run, awaitable)
            if not self._plain:
                return self._kept(self._noted(run(self._checked, value, given, started), frame))
        except Exception as error:
            return self._noted(self.failed(error, clock.perf_counter() - started), frame)
        except BaseException as error:
            if _is_cancelled(error):
                del frame[1:]
                raise
            if _is_fault(error):
                return self._noted(self.failed(error, clock.perf_counter() - started), frame)
            return Fatal(error)
        return self._kept(self._noted((value, clock.perf_counter() - started), frame))

    async def _in_time(self, run: _Run, awaitable: Awaitable[Any]) -> Any:
        import asyncio

        limit = asyncio.timeout(self.timeout)
        try:
            async with limit:
                return await _within(run, awaitable)
        except TimeoutError:
            if limit.expired():
                raise out_of_time(self.timeout) from None
            raise

    def failed(self, error: BaseException, elapsed: float | None = None) -> Failed:
        """The answer of a call that raised."""
        again = doubt_of(error)
        if again is None and self._retry and isinstance(error, Exception) and not isinstance(error, GiveUp):
            try:
                again = self._retry.judge(error)
            except Exception as broken:  # the user's `on`
                error = broken
        failure = describe_exception(error, elapsed=elapsed, skip=_frames_of_ours(error.__traceback__))
        if again is None and (denied := denial_of(error)):
            failure = replace(failure, denied=denied)
        return Failed(failure, again)

    def _checked(self, value: Any, given: Any, started: float) -> Answer:
        elapsed = clock.perf_counter() - started
        if not self.batch:
            return self._validated(value, elapsed)
        values = self._split(value, len(given))
        return [self._of_batch(one, elapsed / len(given)) for one in values]

    def _of_batch(self, value: Any, elapsed: float) -> Answer:
        """The answer for one item of a batch; an exception in its place is its failure."""
        if isinstance(value, Exception) or (isinstance(value, BaseException) and _is_fault(value)):
            return self.failed(value, elapsed)
        return self._validated(value, elapsed)

    def _validated(self, value: Any, elapsed: float) -> Answer:
        try:
            judge_value(self._validate, value)
        except Exception as error:
            failure, again = self.failed(error, elapsed)
            return Failed(replace(failure, paid=Success(value, elapsed)), again)
        return (value, elapsed)

    def _split(self, value: Any, count: int) -> list[Any]:
        """The values of a batch, one for each item.

        Raises:
            InvalidFunction: there are more or fewer, or it is no list.
        """
        given = f"{self.name} was given a list of {plural(count, 'item')} and returned"
        is_list = hasattr(value, "__len__") and hasattr(value, "__getitem__")
        is_table = hasattr(value, "columns")  # of pandas, polars or Arrow: it counts rows and gives columns
        if not is_list or is_table or isinstance(value, (str, bytes, bytearray, Mapping)):
            raise InvalidFunction(
                f"{given} {quote(value)}, a {type(value).__name__}; "
                "with batch_size it returns a list with one value for each item"
            )
        values = list(value)
        if len(values) != count:
            raise InvalidFunction(
                f"{given} a list of {len(values)}; with batch_size it returns one value for each item, in their order"
            )
        return values

    # travelling

    def shipped(self, *, sets: bool = False) -> bytes:
        """Its pickle; by cloudpickle where the standard one cannot.

        Args:
            sets: whether values that differ there may be set, and so travel along. Executors of others get this
                pickle with every task: what they cannot use must not make it large.

        Raises:
            BrokenWorkers, ExtraNeeded: neither can.
        """
        if sets not in self._shipped:
            nowhere = getattr(self.function, "__module__", None) == "__main__" and not _has_file()
            if nowhere and find_spec("cloudpickle") is not None:
                self._shipped[sets] = self.shipped_whole(sets=sets)
            else:
                try:
                    self._shipped[sets] = pickle.dumps(self._parts(sets=sets), pickle.HIGHEST_PROTOCOL)
                except Exception as error:  # pickling runs the user's own code
                    self._shipped[sets] = cloudpickle(self._parts(sets=sets, travelled=True), self.name, error)
        return self._shipped[sets]

    def shipped_whole(self, *, sets: bool = False) -> bytes:
        """Its pickle with the code of __main__ taken along, for a worker that has not got it."""
        return cloudpickle(self._parts(sets=sets, travelled=True), self.name)

    def _parts(self, *, sets: bool, travelled: bool = False) -> tuple[Any, ...]:
        context = self._context.copy()
        if self._unshare is not None:
            context.run(self._unshare)
        settings = self._settings or context.run(settings_here)
        agreement = self._agreement
        if agreement is not None and not sets:
            agreement = agreement.without_values()
        return (self._travels, self.name, self.batch_size, self._validate, self._retry, settings, agreement,
                travelled, self.span)  # fmt: skip


@coroutine
def _within(run: _Run, awaitable: Awaitable[Any]) -> Generator[Any, Any, Any]:
    """Await it in a context, and not in that of the task that awaits, which makes one call after the other."""
    steps: Any = awaitable if type(awaitable) is CoroutineType else _waiting(awaitable)
    act, given = steps.send, None
    while True:
        try:
            asked = run(act, given)
        except StopIteration as stop:
            return stop.value
        try:
            given, act = (yield asked), steps.send
        except GeneratorExit:
            run(steps.close)
            raise
        except BaseException as error:
            given, act = error, steps.throw


async def _waiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


_OURS = frozenset({__file__, judge_value.__code__.co_filename})


def _frames_of_ours(traceback: TracebackType | None) -> int:
    """How many frames there are before those of the user's."""
    count = 0
    while traceback is not None and traceback.tb_frame.f_code.co_filename in _OURS:
        traceback, count = traceback.tb_next, count + 1
    return count


_FAULTS = frozenset({"PanicException", "CancelledError", "Cancelled"})  # of pyo3; asyncio and anyio; trio


def _is_fault(error: BaseException) -> bool:
    """Whether what is no Exception is a fault of the call: a Rust panic, or that what it waited for was cancelled."""
    if isinstance(error, BaseExceptionGroup):
        return all(isinstance(one, Exception) or _is_fault(one) for one in error.exceptions)
    return not _FAULTS.isdisjoint([kind.__name__ for kind in type(error).__mro__])


def ending(error: BaseException, name: str, units: Sequence[Unit]) -> BaseException:
    """The exception, which ends the pass of that checkpoint, with a note of the item that raised it.

    An exit with status 0 becomes one with status 1: while items are left, no caller must take the work for done.

    Args:
        error: what was raised.
        name: the checkpoint's.
        units: for which of them it was raised, or for one of them.
    """
    keys = ", ".join([quote(unit.key, 80) for unit in units[:_MOST_NAMED]]) + (
        ", …" if len(units) > _MOST_NAMED else ""
    )
    where = f"item {keys}" if len(units) == 1 else f"one of the items {keys}"
    note = f"{type(error).__name__} was raised for {where} of checkpoint {name!r}"
    if note not in getattr(error, "__notes__", ()):
        with suppress(AttributeError, TypeError):  # a class that has its own __notes__
            error.add_note(note)
    if isinstance(error, SystemExit) and _is_success(error.code):
        given = "" if error.code is None else error.code
        error.code = (
            f"checkpoint {name!r}: sys.exit({given}) was called for {where}, and ends the pass while items are left. "
            "Raise an exception to have the item fail and the others run; return to have it done"
        )
    return error


_MOST_NAMED = 5


def _is_success(status: object) -> bool:
    """Whether who started the process takes the status for success: of an int, the system keeps one byte."""
    return status is None or (isinstance(status, int) and not status & 0xFF)


def _is_cancelled(error: BaseException) -> bool:
    """Whether the task that runs was asked to end, and this is how it ends."""
    import asyncio  # only here: who has no coroutines need not wait for it

    if not isinstance(error, asyncio.CancelledError):
        return False
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Arrived:
    """A call in another process: it answers in bytes."""

    def __init__(self, call: Call, agreement: Agrees | None = None, *, travelled: bool = False) -> None:
        self.call = call
        self._agreement, self._travelled = agreement, travelled
        self._refusal: FunctionChanged | None = None

    def agree(self, *, takes_over: bool) -> None:
        """See, once, that the function does here what it does where it comes from.

        Args:
            takes_over: whether values that differ may be set here.

        Raises:
            FunctionChanged: it does not.
        """
        if self._agreement is not None:
            agreement, self._agreement = self._agreement, None
            try:
                agreement.check(self.call.function, takes_over=takes_over, travelled=self._travelled)
            except FunctionChanged as refusal:
                self._refusal = refusal
        if self._refusal is not None:
            raise self._refusal

    def many(
        self,
        given: list[Any],
        began: float | None = None,
        at_work: memoryview | None = None,
        give_back: Callable[[int, list[Answer]], None] | None = None,
    ) -> bytes:
        """The answers, packed; of several calls, one that takes a step gives back the others."""
        is_one = len(given) == 1
        chunk = None if is_one or give_back is None else Chunk(give_back)
        return pack(self.call.many(given, None if is_one else set_apart, began, at_work, chunk))


def _has_file() -> bool:
    """Whether the main module is a script that can be imported elsewhere, and no notebook or prompt."""
    return getattr(sys.modules.get("__main__"), "__file__", None) is not None


def arrived(shipped: bytes, *, alone: bool = False) -> Arrived:
    """What a shipped call becomes.

    Args:
        shipped: it.
        alone: whether this process makes one call at a time.

    Raises:
        Exception: whatever unpickling raises.
    """
    function, name, batch_size, validate, retry, settings, agreement, travelled, span = pickle.loads(shipped)
    call = Call(function, name, batch_size=batch_size, validate=validate, retry=retry, settings=settings,
                span=span, tells_items=not alone)  # fmt: skip
    call.is_elsewhere = True
    return Arrived(call, agreement, travelled=travelled)
