"""Laws of calls: whatever the function does, there is an answer; and what comes out of another process can be read."""

from __future__ import annotations

import asyncio
import collections
import contextvars
import copyreg
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import Ticker, shown
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import Retry, clock
from checkpoint.errors import BrokenWorkers, CheckpointError, ExtraNeeded, InvalidFunction, RefusedValue
from checkpoint.execution.answers import Failed, Fatal, failed
from checkpoint.execution.call import Arrived, Call, arrived, ending
from checkpoint.execution.policies import Again
from checkpoint.execution.transport import Unreadable, pack, unpack
from checkpoint.outcomes import Failure, Unit, describe_exception


def square(n: int) -> int:
    """A function of one item."""
    return n * n


def squares(ns: list[int]) -> list[int]:
    """A function of a batch."""
    return [n * n for n in ns]


def raising(error: BaseException) -> Callable[[Any], Any]:
    """A function that raises."""

    def raises(item: Any) -> Any:
        raise error

    return raises


def returning(value: Any) -> Callable[[Any], Any]:
    """A function that returns."""
    return lambda item: value


def awaiting(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same as a coroutine function."""

    async def awaits(item: Any) -> Any:
        await asyncio.sleep(0)
        return function(item)

    return awaits


Answerer = Callable[..., Any]


@pytest.fixture(params=["one", "many", "awaited"])
def answer(request: pytest.FixtureRequest) -> Answerer:
    """The answer to one call, by each of the ways in which it can be asked for."""

    def ask(function: Callable[[Any], Any], item: Any = 3, **options: Any) -> Any:
        if request.param == "one":
            return Call(function, **options).one(item)
        if request.param == "many":
            (only,) = Call(function, **options).many([item])
            return only
        return asyncio.run(Call(awaiting(function), **options).awaited(item))

    return ask


def error_of(answer: Any) -> BaseException:
    """The exception of a call that failed."""
    assert type(answer) is Failed, answer
    assert answer.failure.exception is not None
    return answer.failure.exception


# --- what comes back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [9, None, False, "", [], (1, 2), Failure("x"), Fatal(ValueError())], ids=shown)
def test_what_returns_is_a_value_and_its_time(answer: Answerer, value: Any) -> None:
    """Whatever it is: nothing that a function returns is taken for an answer of another kind."""
    told = answer(returning(value))
    assert type(told) is tuple
    assert told[0] is value
    assert told[1] >= 0


def test_the_time_is_that_of_the_call(answer: Answerer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In seconds, of what returns and of what raises; of a batch each item has its share."""
    ticker = Ticker()
    monkeypatch.setattr(clock, "perf_counter", ticker)

    def slow(item: Any) -> Any:
        ticker.tick(6.0)
        if item == "bad":
            raise ValueError
        return item

    assert answer(slow) == (3, 6.0)
    assert answer(slow, validate=lambda value: ticker.tick(1.0)) == (3, 6.0), "what validates takes its own time"
    assert answer(slow, "bad").failure.elapsed == 6.0
    assert answer(slow, [1, 2, 3], batch_size=3) == [(1, 2.0), (2, 2.0), (3, 2.0)]


@pytest.mark.parametrize(
    "error", [ValueError("x"), OSError(2, "gone"), StopIteration(3), RecursionError(), MemoryError()]
)
def test_what_raises_is_a_failure(error: Exception) -> None:
    """With type, message, a traceback that begins in the function, and the exception itself."""
    told = Call(raising(error)).one(3)
    assert type(told) is Failed
    assert told.failure.exception is error
    assert (told.failure.type, told.failure.message) == (type(error).__name__, str(error))
    assert told.failure.traceback is not None
    assert told.failure.traceback.splitlines()[1].endswith("in raises")
    assert told.again is None


def test_a_coroutine_that_raises_is_a_failure() -> None:
    """Its traceback begins in the function too."""
    told = asyncio.run(Call(awaiting(raising(ValueError("x")))).awaited(3))
    assert str(error_of(told)) == "x"
    assert "in awaits" in str(told.failure.traceback).splitlines()[1]


def test_what_it_was_raised_from_is_told(answer: Answerer) -> None:
    """Causes and contexts are in the text."""

    def chained(item: Any) -> Any:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ValueError("outer") from inner

    text = answer(chained).failure.traceback
    assert text.index("KeyError: 'inner'") < text.index("direct cause") < text.index("ValueError: outer")


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), BaseException("x")], ids=shown)
def test_what_is_no_exception_is_fatal(error: BaseException) -> None:
    """It ends the pass, and the item has not failed."""
    assert Call(raising(error)).one(3) == Fatal(error)
    assert Call(raising(error), batch_size=2).one([3, 4]) == Fatal(error)
    assert Call(square, validate=raising(error)).one(3) == Fatal(error)


def test_what_is_no_exception_is_fatal_in_a_coroutine_too() -> None:
    """An event loop would be ended by SystemExit, before anything is saved."""
    error = SystemExit(3)
    assert asyncio.run(Call(awaiting(raising(error))).awaited(3)) == Fatal(error)


def test_after_what_is_fatal_nothing_is_called() -> None:
    """The answers end with it."""
    called = []

    def ends(n: int) -> int:
        called.append(n)
        if n == 2:
            sys.exit(n)
        return n

    answers = Call(ends).many([0, 1, 2, 3, 4])
    assert [type(one) for one in answers] == [tuple, tuple, Fatal]
    assert called == [0, 1, 2]


def test_many_are_called_in_their_order_and_fail_each_for_itself() -> None:
    """One answer for each."""
    answers = Call(lambda n: 6 // n).many([1, 0, 3])
    assert [one if type(one) is Failed else one[0] for one in answers] == [6, answers[1], 2]
    assert type(error_of(answers[1])) is ZeroDivisionError


def test_an_exception_that_cannot_be_told_is_told_all_the_same(answer: Answerer) -> None:
    """Its str() and repr() may raise."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    assert "whose str() raises RuntimeError" in answer(raising(Mute())).failure.message


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retry", "error", "again"),
    [
        (None, OSError(), None),
        (Retry(), OSError(), Again()),
        (Retry(), ValueError(), None),
        (Retry(on=ValueError), ValueError(), Again()),
        (Retry(on=RefusedValue), OSError(), None),
    ],
)
def test_the_policy_judges_where_the_exception_is(
    answer: Answerer, retry: Retry | None, error: Exception, again: Again | None
) -> None:
    """In the worker: the exception itself may not come through."""
    assert answer(raising(error), retry=retry).again == again


def test_a_policy_that_raises_is_the_failure(answer: Answerer) -> None:
    """The text tells of both errors, and the call is not made again."""
    told = answer(raising(OSError("of the call")), retry=Retry(on=lambda error: 1 / 0))
    assert type(error_of(told)) is ZeroDivisionError
    assert "OSError: of the call" in told.failure.traceback
    assert told.again is None


def test_a_value_that_is_refused_may_be_tried_again(answer: Answerer) -> None:
    """By who asks for it."""
    refuse: Any = {"validate": lambda value: False}
    assert answer(square, retry=Retry(), **refuse).again is None
    assert answer(square, retry=Retry(on=RefusedValue), **refuse).again == Again()
    (one,) = answer(squares, [3], retry=Retry(on=RefusedValue), batch_size=2, **refuse)
    assert one.again == Again()


# --- validate --------------------------------------------------------------------------------------------------------

VERDICTS: list[tuple[Any, bool, str]] = [
    # what validate returns, whether the value is a result, reason
    (True, True, "yes"),
    (None, True, "a function that only raises"),
    ("ok", True, "true"),
    (1, True, "true"),
    (np.bool_(True), True, "numpy's"),
    (False, False, "no"),
    ("", False, "validate=str.strip of an empty answer"),
    (0, False, "validate=len"),
    ([], False, "nothing found"),
    (np.bool_(False), False, "numpy's"),
]


@pytest.mark.parametrize(("verdict", "good", "reason"), VERDICTS, ids=[f"{v!r}: {r}" for v, _, r in VERDICTS])
def test_what_validate_returns_says_whether_the_value_is_a_result(
    answer: Answerer, verdict: Any, good: bool, reason: str
) -> None:
    """What is false says no; None says nothing."""
    told = answer(square, validate=returning(verdict))
    assert (type(told) is tuple) == good, reason
    if not good:
        assert type(error_of(told)) is RefusedValue
        assert told.failure.message == f"validate returned {verdict!r} for 9"


def test_what_validate_raises_is_the_failure(answer: Answerer) -> None:
    """Also where its verdict cannot be told."""
    error = ValueError("empty")
    assert error_of(answer(square, validate=raising(error))) is error
    assert type(error_of(answer(square, validate=returning(np.zeros(2))))) is ValueError


def test_a_value_is_validated_once_and_only_if_there_is_one(answer: Answerer) -> None:
    """It is given the value; what raised is not asked about."""
    asked: list[Any] = []
    answer(square, validate=asked.append)
    answer(raising(ValueError()), validate=asked.append)
    answer(squares, [1, 2], validate=asked.append, batch_size=2)
    assert asked == [9, 1, 4]


def test_a_refusal_quotes_no_more_than_200_characters(answer: Answerer) -> None:
    """Of a value of any size."""
    told = answer(returning("x" * 10**6), validate=returning(False))
    assert len(told.failure.message) < 300


# --- batches ---------------------------------------------------------------------------------------------------------


class Rows:
    """A sequence by its methods alone."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: int) -> int:
        return [1, 4, 9][place]


class Table(Rows):
    """As a data frame: its length counts rows, and going through it gives columns."""

    columns = ("a", "b", "c")

    def __iter__(self) -> Any:
        return iter(self.columns)


class Liar(Rows):
    """Gives fewer than it says."""

    def __iter__(self) -> Any:
        return iter([1, 4])


@pytest.mark.parametrize(
    "values", [[1, 4, 9], (1, 4, 9), np.array([1, 4, 9]), collections.deque([1, 4, 9]), Rows(), range(1, 4)], ids=shown
)
def test_a_batch_may_return_a_sequence_of_any_kind(answer: Answerer, values: Any) -> None:
    """Each value is an answer by itself, in the items' order."""
    assert [value for value, _ in answer(returning(values), [1, 2, 3], batch_size=3)] == [values[n] for n in range(3)]


@pytest.mark.parametrize("error", [TimeoutError("two"), asyncio.CancelledError("two")], ids=shown)
def test_an_exception_in_a_place_of_a_batch_is_that_items_failure(answer: Answerer, error: BaseException) -> None:
    """As if a call for it had raised; the others have their values, and retries hold."""
    told = answer(returning([1, error, 9]), [1, 2, 3], batch_size=3, retry=Retry(on=TimeoutError))
    assert [value for value, _ in (told[0], told[2])] == [1, 9]
    assert type(told[1]) is Failed
    assert (told[1].failure.exception, told[1].again is None) == (error, type(error) is not TimeoutError)


def test_rows_of_an_array_are_values(answer: Answerer) -> None:
    """Embeddings, say."""
    told = answer(returning(np.eye(3)), [1, 2, 3], batch_size=3)
    assert [value.tolist() for value, _ in told] == np.eye(3).tolist()


@pytest.mark.parametrize(
    "value",
    [
        None,
        "abc",
        b"abc",
        bytearray(b"abc"),
        {1: 1, 2: 4, 3: 9},
        {1, 4, 9},
        iter([1, 4, 9]),
        (n for n in range(3)),
        7,
        Table(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_list_is_refused(answer: Answerer, value: Any) -> None:
    """Though it may have as many elements: they are characters, keys, columns, or in no order."""
    error = error_of(answer(returning(value), [1, 2, 3], name="embed", batch_size=3))
    assert type(error) is InvalidFunction
    text = str(error)
    assert text.startswith("embed was given a list of 3 items and returned ")
    assert f", a {type(value).__name__}; with batch_size it returns a list with one value for each item" in text


@pytest.mark.parametrize("values", [[], [1], [1, 4], [1, 4, 9, 16], (1,), np.array([1, 2]), Liar()], ids=shown)
def test_a_list_of_another_length_is_refused_with_both_lengths(answer: Answerer, values: Any) -> None:
    """Nobody knows whose the values are."""
    error = error_of(answer(returning(values), [1, 2, 3], name="embed", batch_size=3))
    assert type(error) is InvalidFunction
    assert f"a list of 3 items and returned a list of {len(list(values))};" in str(error)


def test_each_item_of_a_batch_is_validated_by_itself(answer: Answerer) -> None:
    """One that is refused takes nothing from the others."""
    told = answer(squares, [1, 2, 3], batch_size=3, validate=lambda value: value != 4)
    assert [type(one) for one in told] == [tuple, Failed, tuple]
    assert str(error_of(told[1])) == "validate returned False for 4"


def test_a_batch_that_raises_is_one_failure(answer: Answerer) -> None:
    """What becomes of its items is not said here."""
    assert type(error_of(answer(raising(KeyError("x")), [1, 2, 3], batch_size=3))) is KeyError


# --- coroutines ------------------------------------------------------------------------------------------------------


async def never(item: Any) -> Any:
    """Waits for what does not come."""
    await asyncio.Event().wait()


def test_a_coroutine_that_takes_too_long_is_cancelled() -> None:
    """It may clean up; the failure says how long it had."""
    cleaned = []

    async def cleans(item: Any) -> Any:
        try:
            await never(item)
        finally:
            cleaned.append(item)

    told = asyncio.run(Call(cleans, timeout=0.01, retry=Retry()).awaited(3))
    assert type(error_of(told)) is TimeoutError
    assert told.failure.message == "no result within 0.01 s, and the call was ended (timeout=0.01)"
    assert (told.again, cleaned) == (Again(), [3])


def test_what_comes_in_time_is_not_ended() -> None:
    """Nor is a TimeoutError of the function's own told as ours; nor a value lost that comes in spite of it."""

    async def stubborn(item: Any) -> Any:
        try:
            await never(item)
        except asyncio.CancelledError:
            return "saved"

    async def run() -> None:
        assert (await Call(awaiting(square), timeout=60.0).awaited(3))[0] == 9
        told = await Call(awaiting(raising(TimeoutError("its own"))), timeout=60.0).awaited(3)
        assert told.failure.message == "its own"
        assert (await Call(stubborn, timeout=0.01).awaited(3))[0] == "saved"
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    asyncio.run(run())


def test_who_is_cancelled_from_outside_gives_no_answer() -> None:
    """The pass ends; the item has not failed."""

    async def run() -> None:
        for timeout in (None, 60.0):
            task = asyncio.create_task(Call(never, timeout=timeout).awaited(3))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()

    asyncio.run(run())


def test_a_coroutine_that_cancels_itself_has_failed() -> None:
    """Nobody asked the task to end: what it waited for was cancelled, or it raised."""

    async def waits_for_a_cancelled_one(item: Any) -> Any:
        inner = asyncio.ensure_future(never(item))
        asyncio.get_running_loop().call_soon(inner.cancel)
        await inner

    async def run(function: Any) -> Any:
        return await Call(function, retry=Retry()).awaited(3)

    for function in (waits_for_a_cancelled_one, awaiting(raising(asyncio.CancelledError("by itself")))):
        told = asyncio.run(run(function))
        assert type(error_of(told)) is asyncio.CancelledError
        assert (told.failure.type, told.again) == ("asyncio.exceptions.CancelledError", None)


class Suspended:
    """Waits without a loop."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def test_a_coroutine_that_is_thrown_away_says_nothing() -> None:
    """Outside of a loop, where nobody can be asked who cancelled it."""

    async def suspended(item: Any) -> None:
        await Suspended()

    call: Any = Call(suspended).awaited(3)
    call.send(None)
    call.close()
    assert call.cr_frame is None


def test_each_call_runs_in_a_copy_of_the_context_in_which_it_was_made() -> None:
    """The function sees what is set there; what it sets, not even the next call sees."""
    seen: contextvars.ContextVar[int] = contextvars.ContextVar("seen", default=0)

    def adds(item: int) -> int:
        seen.set(seen.get() + item)
        return seen.get()

    async def adds_later(item: int) -> int:
        seen.set(seen.get() + item)
        await asyncio.sleep(0)
        seen.set(seen.get() + item)
        return seen.get()

    def plain() -> None:
        seen.set(1)
        call = Call(adds)
        seen.set(9)
        assert [call.one(2)[0], call.one(3)[0], seen.get()] == [3, 4, 9]

    async def awaited() -> None:
        seen.set(1)
        for timeout in (None, 60.0):
            for function, want in ((awaiting(adds), [3, 4]), (adds_later, [5, 7])):
                call = Call(function, timeout=timeout)
                assert [(await call.awaited(2))[0], (await call.awaited(3))[0], seen.get()] == [*want, 1]

    contextvars.copy_context().run(plain)
    asyncio.run(awaited())
    assert seen.get() == 0


def test_whatever_can_be_awaited_is() -> None:
    """A future, too, and what only has `__await__`."""

    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return 7

    async def run() -> list[Any]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(8)
        return [(await Call(lambda item: item).awaited(one))[0] for one in (Later(), future)]

    assert asyncio.run(run()) == [7, 8]


PASSES_ON = [
    (SystemExit(2), [3], 2, "another status stays"),
    (SystemExit("over"), [3], "over", "so does a text"),
    (SystemExit(0), [3], "sys.exit(0) was called for item 3,", "success while items are left is none"),
    (SystemExit(), [3], "sys.exit() was called for item 3,", "none is 0"),
    (SystemExit(False), [3], "sys.exit(False) was called for item 3,", "so is False"),
    (SystemExit(512), [3], "sys.exit(512) was called for item 3,", "the system keeps one byte of a status"),
    (SystemExit(0), [3, "x"], "one of the items 3, 'x',", "a batch"),
    (SystemExit(0), [*range(9)], "one of the items 0, 1, 2, 3, 4, …,", "many"),
    (KeyboardInterrupt(), [3], None, "no exit"),
]


@pytest.mark.parametrize(("error", "keys", "status", "reason"), PASSES_ON, ids=[reason for *_, reason in PASSES_ON])
def test_what_ends_a_pass_names_the_item_and_is_no_success(
    error: BaseException, keys: list[Any], status: Any, reason: str
) -> None:
    """It stays the same object: a timeout knows its own."""
    units = [Unit(None, key) for key in keys]
    assert ending(error, "c", units) is ending(error, "c", units) is error
    (note,) = error.__notes__
    assert note.startswith(f"{type(error).__name__} was raised for ")
    assert repr(keys[0]) in note
    if isinstance(status, str):
        assert status in str(getattr(error, "code", "")), reason
    else:
        assert getattr(error, "code", None) == status, reason


@pytest.mark.slow
@pytest.mark.parametrize("how", ["", "workers=3", "executor='processes', workers=1", "workers=2, chunksize=4"])
def test_a_process_never_ends_well_while_items_are_left(tmp_path: Path, how: str) -> None:
    """Whoever started it sees a status that is not 0, and a message that names the item."""
    (tmp_path / "job.py").write_text(
        "import sys\nfrom checkpoint import checkpointed\n"
        "@checkpointed('x')\ndef f(n):\n    return sys.exit() if n == 3 else n\n"
        f"if __name__ == '__main__':\n    f.map(range(10), progress=False, {how})\n    print('the end')\n"
    )
    run = [sys.executable, "job.py"]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "sys.exit() was called for item 3," in done.stderr


# --- to a worker -----------------------------------------------------------------------------------------------------


def shipped(call: Call) -> Arrived:
    """The call as it is in another process."""
    return arrived(call.shipped())


def test_a_call_arrives_as_one_that_answers_in_bytes() -> None:
    """With all that it needs."""
    retry = Retry(on=(RefusedValue, InvalidFunction))
    arrived = shipped(Call(squares, "embed", batch_size=2, validate=bool, retry=retry))
    answers = unpack(arrived.many([[0, 3], [4, 5]]))
    assert (answers[0][0].failure.type, answers[0][0].again) == ("checkpoint.errors.RefusedValue", Again())
    assert [value for value, _ in (answers[0][1], *answers[1])] == [9, 16, 25]
    told = unpack(shipped(Call(returning(7), "embed", batch_size=2, retry=retry)).many([[1]]))[0]
    assert told.failure.message.startswith("embed was given a list of 1 item and returned 7")


def test_what_travels_in_the_functions_place_arrives_as_it() -> None:
    """A decorated function is pickled by its name, and calls its inner one."""
    call = Call(lambda n: n, travels=square)
    assert unpack(shipped(call).many([3]))[0][0] == 9


def test_a_closure_travels_by_cloudpickle() -> None:
    """Lambdas and local functions have no name by which to find them."""
    factor = 7
    assert unpack(shipped(Call(lambda n: factor * n)).many([3]))[0][0] == 21
    assert pickle.loads(Call(square).shipped_whole())[0](3) == 9


def test_without_cloudpickle_a_closure_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra to install, the other way out, and why."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    assert pickle.loads(Call(square).shipped())[0] is square, "a function of a module needs none"
    with pytest.raises(
        ExtraNeeded, match=r"^scale cannot be sent.*install checkpoint-map\[processes\].*importable"
    ) as told:
        Call(lambda n: n, "scale").shipped()
    assert told.value.name == "cloudpickle"
    assert isinstance(told.value.__cause__, (pickle.PicklingError, AttributeError))
    with pytest.raises(ExtraNeeded):
        Call(square).shipped_whole()


def test_what_refers_to_what_cannot_travel_is_refused() -> None:
    """With its error, and the way out."""
    lock = threading.Lock()
    with pytest.raises(
        BrokenWorkers, match=r"^locked cannot be sent to worker processes: TypeError: cannot pickle"
    ) as told:
        Call(lambda n: lock, "locked").shipped()
    assert "inside of it" in str(told.value)


# --- from a worker ---------------------------------------------------------------------------------------------------


def through(*answers: Any) -> list[Any]:
    """What arrives of answers."""
    return unpack(pack(list(answers)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda some: st.lists(some) | st.tuples(some, some) | st.dictionaries(st.text(), some),
    max_leaves=10,
)


@pytest.mark.slow
@given(st.lists(st.tuples(JSON, st.floats(0, 1e6)) | st.lists(st.tuples(JSON, st.floats(0, 1e6)), min_size=1)))
def test_answers_come_through(answers: list[Any]) -> None:
    """Of items and of batches, with their times."""
    assert through(*answers) == answers


def test_answers_in_hand_are_left_as_they_are() -> None:
    """Threads give them as they are."""
    answers = [(object(), 1.0), Failed(Failure("x"))]
    assert unpack(answers) is answers


class Plain(Exception):
    """Pickles as exceptions do."""


class Custom(Exception):
    """Pickles, and does not unpickle: its arguments are not those it was made with."""

    def __init__(self, code: int, *, why: str) -> None:
        super().__init__(f"{code}: {why}")


class Doubling(Exception):
    """Unpickles as another: its message is made of its message."""

    def __init__(self, text: str) -> None:
        super().__init__(f"could not {text}")


class Holding(Exception):
    """Holds what cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Changing(Exception):
    """Unpickles as what it is not."""

    def __reduce__(self) -> Any:
        return (str, ("x",))


class Exploding(Exception):
    """Its pickling raises."""

    def __reduce__(self) -> Any:
        raise RuntimeError("boom")


class Parting(CheckpointError):
    """One with parts, as ours."""


COME_THROUGH = [
    ValueError("x"), KeyError("x"), OSError(2, "gone", "f"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "y"),
    Plain("x", 2), Parting("x", key=3), ExceptionGroup("x", [Plain("y"), ValueError("z")]),
]  # fmt: skip
TEXT_ONLY = [
    Custom(3, why="y"), Doubling("open"), Holding("x"), Changing("x"), Exploding("x"),
    ExceptionGroup("x", [Plain("y"), Custom(3, why="y")]),
]  # fmt: skip


def local_error() -> Exception:
    """One whose class has no name by which to find it; cloudpickle takes it along."""

    class Local(Exception):
        pass

    return Local("x")


@pytest.mark.parametrize("error", [*COME_THROUGH, local_error()], ids=shown)
def test_an_exception_comes_through_where_it_can(error: Exception) -> None:
    """With its type, arguments and attributes; the text in any case."""
    told = Failed(describe_exception(error, elapsed=2.0), Again(3.0, "HTTP 429"))
    (came,) = through(told)
    assert type(came) is Failed
    assert came == told, "all but the exception, which is not compared"
    assert type(came.failure.exception) is type(error)
    assert repr(came.failure.exception) == repr(error)
    assert getattr(came.failure.exception, "key", None) == getattr(error, "key", None)


@pytest.mark.parametrize("error", TEXT_ONLY, ids=lambda error: type(error).__name__)
def test_an_exception_that_would_be_another_comes_through_as_text(error: Exception) -> None:
    """Type, message, traceback, and what it said of trying again; never in another's place."""
    told = Failed(describe_exception(error, elapsed=2.0), Again(3.0, "HTTP 429"))
    before, came, after = through((1, 0.5), told, [(2, 0.5), told])
    assert (before, after[0], after[1]) == ((1, 0.5), (2, 0.5), told)
    assert came == told
    assert came.failure.exception is None


def test_an_exception_whose_class_is_not_found_here_takes_nothing_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may have modules that this process has not."""
    module = ModuleType("only_there")
    exec("class There(Exception): pass", module.__dict__)
    with monkeypatch.context() as there:
        there.setitem(sys.modules, "only_there", module)
        told = Failed(describe_exception(module.There("x")))
        packed = pack([(1, 0.5), told])
    came = unpack(packed)
    assert came == [(1, 0.5), told]
    assert came[1].failure.exception is None


def test_a_class_of_the_script_has_one_name_wherever_it_is_raised() -> None:
    """A worker process imports the script as __mp_main__: its failures are of one cause with those made here."""
    kinds = [type("Bad", (Exception,), {"__module__": module}) for module in ("__main__", "__mp_main__")]
    assert [describe_exception(kind("x")).type for kind in kinds] == ["Bad", "Bad"]


def test_notes_come_through() -> None:
    """They are part of what is shown."""
    error = ValueError("x")
    error.add_note("of item 3")
    (came,) = through(failed(error))
    assert came.failure.exception.__notes__ == ["of item 3"]


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=shown)
def test_what_is_fatal_comes_through(error: BaseException) -> None:
    """The pass ends with it."""
    (came,) = through(Fatal(error))
    assert type(came) is Fatal
    assert repr(came.exception) == repr(error)


def test_what_is_fatal_and_cannot_travel_ends_the_pass_all_the_same() -> None:
    """By SystemExit, which says what it was."""

    class Stop(BaseException):
        pass

    (came,) = through(Fatal(Stop("x")))
    assert type(came) is Fatal
    assert type(came.exception) is SystemExit
    assert came.exception.args == ("the function raised Stop('x')",)


class Bad:
    """Pickles, and does not unpickle."""

    def __reduce__(self) -> Any:
        return (int, ("not a number",))


def local_value() -> Any:
    """A value whose class has no name by which to find it: cloudpickle takes the class along."""

    class Local:
        answer = 42

    return Local()


def test_values_that_only_cloudpickle_knows_come_through() -> None:
    """Beside others; in batches too."""
    first, second, batch = through((local_value(), 0.5), (2, 0.5), [(local_value(), 0.25), (3, 0.25)])
    assert (first[0].answer, first[1], second) == (42, 0.5, (2, 0.5))
    assert (batch[0][0].answer, batch[1]) == (42, (3, 0.25))


def test_a_value_that_cannot_be_sent_takes_nothing_with_it() -> None:
    """What it was is told in words, and why."""
    value, other, batch = through((threading.Lock(), 0.5), (2, 0.5), [(threading.Lock(), 0.25), (3, 0.25)])
    for told, elapsed in (value, batch[0]):
        assert type(told) is Unreadable
        assert told.pickled is None
        assert repr(told).startswith("<<unlocked _thread.lock object")
        assert "which its worker could not send: TypeError: cannot pickle" in repr(told)
        assert elapsed in (0.5, 0.25)
    assert (other, batch[1]) == ((2, 0.5), (3, 0.25))


def test_without_cloudpickle_a_value_that_needs_it_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call has been paid for: it is no error of the worker."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    value, other = through((local_value(), 0.5), (2, 0.5))
    assert type(value[0]) is Unreadable
    assert "Local" in repr(value[0])
    assert other == (2, 0.5)


def test_a_value_that_cannot_be_read_here_is_kept_in_bytes() -> None:
    """Where each value travels by itself, the others come through."""
    value, _, other = through((Bad(), 0.5), (threading.Lock(), 0.5), (2, 0.5))
    assert type(value[0]) is Unreadable
    assert "cannot be unpickled here: ValueError" in repr(value[0])
    assert value[0].pickled == pickle.dumps(Bad(), pickle.HIGHEST_PROTOCOL)
    assert (value[1], other) == (0.5, (2, 0.5))


def test_one_value_that_cannot_be_read_here_does_not_take_the_others_along() -> None:
    """An object travels by itself."""
    value, other = through((Bad(), 0.5), (2, 0.5))
    assert type(value[0]) is Unreadable
    assert other == (2, 0.5)


def test_bytes_that_cannot_be_read_raise_what_unpickling_raises() -> None:
    """Who asked knows what to do: each call is made again, apart."""
    with pytest.raises(ValueError, match="not a number"):
        through(({"deep": Bad()}, 0.5))
    with pytest.raises(pickle.UnpicklingError):
        unpack(b"garbage")


def test_a_value_too_deep_to_pickle_is_told_in_words() -> None:
    """RecursionError is an error as any other."""
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    value, other = through((deep, 0.5), (2, 0.5))
    assert type(value[0]) is Unreadable
    assert other == (2, 0.5)
    while deep:  # taken apart by hand: freeing it in one go goes as deep
        deep = deep.pop()


def test_a_value_with_a_reducer_of_its_own_comes_through() -> None:
    """As the standard pickle does it."""

    class Point:
        def __init__(self, x: int) -> None:
            self.x = x

    copyreg.pickle(Point, lambda point: (complex, (point.x, 0)))  # type: ignore[arg-type, return-value]
    try:
        assert through((Point(3), 0.5)) == [(3 + 0j, 0.5)]
    finally:
        del copyreg.dispatch_table[Point]
