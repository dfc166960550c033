"""`one`: the saved result of one item, from anywhere, computed once; and the steps of an item's call."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
from conftest import Ticker

from checkpoint import (
    CheckpointedRunner,
    CircularCall,
    FunctionChanged,
    InputChanged,
    InvalidKey,
    InvalidOption,
    ItemError,
    ItemsFailed,
    Rate,
    RefusedValue,
    Retry,
    UnencodableValue,
    checkpointed,
    clock,
)
from checkpoint.cli.main import main

FOREVER = 30.0


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    monkeypatch.delenv("CHECKPOINT_SHARD", raising=False)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads for what runs at once."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


class Gate:
    """A function that counts its calls, and ends each when it is let go on."""

    def __init__(self) -> None:
        self.calls: Counter[Any] = Counter()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, item: Any) -> Any:
        self.calls[item] += 1
        self.begun.set()
        assert self.go_on.wait(FOREVER)
        return [item]


def gated(name: str, gate: Gate, **options: Any) -> Any:
    """A checkpointed function that passes the gate."""
    return checkpointed(name, **options)(lambda item: gate(item))


def until_waited_for(f: Any, many: int = 1) -> None:
    """Wait until so many wait for keys that run elsewhere."""
    from checkpoint.passes.claims import claims_of

    waiting = claims_of(f.runner.records.checkpoint)._waiting
    end = time.monotonic() + 10
    while sum(map(len, list(waiting.values()))) < many:
        assert time.monotonic() < end
        time.sleep(0.001)


# --- one item ---------------------------------------------------------------------------------------------------------


def test_the_saved_result_or_a_new_one() -> None:
    """As a map has it: decoded, on disk when it returns, and not computed again by whoever asks next."""
    calls: list[Any] = []

    @checkpointed("n")
    def f(item: Any) -> tuple[Any, ...]:
        calls.append(item)
        return (item, 1.0)

    assert f.one("a") == ("a", 1.0)
    assert CheckpointedRunner("n", version=None).get_result("a") == ("a", 1.0)
    assert f.map(["b"], progress=False) == [("b", 1.0)]
    assert (f.one("a"), f.one("b")) == (("a", 1.0), ("b", 1.0))
    assert f.map(["a", "b"], progress=False) == [("a", 1.0), ("b", 1.0)]
    assert calls == ["a", "b"]


def test_a_coroutine_function_is_awaited() -> None:
    """Tasks that ask for one item at once share one call."""
    calls: list[int] = []

    @checkpointed("n")
    async def f(item: int) -> int:
        calls.append(item)
        await asyncio.sleep(0)
        return -item

    async def main() -> list[int]:
        return await asyncio.gather(*(f.one(item) for item in (1, 2, 1, 1, 2)))

    assert asyncio.run(main()) == [-1, -2, -1, -1, -2]
    assert sorted(calls) == [1, 2]


def test_methods_have_the_version_of_their_instance() -> None:
    """Two instances that differ have two results; static and class methods work, too."""

    class Scorer:
        def __init__(self, weight: int) -> None:
            self.weight = weight

        @checkpointed("n")
        def score(self, item: int) -> int:
            return self.weight * item

        @checkpointed("c")
        @classmethod
        def name(cls, item: int) -> str:
            return f"{cls.__name__} {item}"

    assert [Scorer(2).score.one(3), Scorer(5).score.one(3), Scorer(2).score.one(3)] == [6, 15, 6]
    assert dict(Scorer(5).score.results) == {3: 15}
    assert Scorer.name.one(1) == "Scorer 1"


def test_a_function_of_batches_is_given_a_batch_of_one() -> None:
    """The result is that of the item."""
    f: Any = checkpointed("n", batch_size=8)(lambda items: [-item for item in items])
    assert f.one(3) == -3
    assert f.map([3, 4], progress=False) == [-3, -4]


def test_it_makes_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """No bar; what `progress` and meta say of the last pass stays."""
    f = checkpointed("n")(lambda item: item)
    f.map(range(3), progress=False)
    f.one(10)
    assert f.runner.progress() == (3, 3)
    assert f.runner.records.store.meta.total == 3
    assert capsys.readouterr() == ("", "")


def test_what_the_function_raised_is_raised() -> None:
    """The original; it is recorded, the next call tries again, and a result retires it."""
    error = KeyError("no")
    state: list[BaseException | None] = [error, None]

    @checkpointed("n")
    def f(item: int) -> int:
        if (raised := state.pop(0)) is not None:
            raise raised
        return item

    with pytest.raises(KeyError) as caught:
        f.one(1)
    assert caught.value is error
    assert f.errors[1].type == "KeyError"
    assert f.one(1) == 1
    assert not f.errors


def test_what_stands_for_an_interrupt_is_no_failure() -> None:
    """It is raised, and nothing is recorded."""

    @checkpointed("n")
    def f(item: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        f.one(1)
    assert not f.errors


def test_validate_refuses() -> None:
    """As in a map."""
    f = checkpointed("n", validate=lambda value: value > 0)(lambda item: item)
    with pytest.raises(RefusedValue):
        f.one(-1)
    assert f.one(1) == 1
    assert list(f.errors) == [-1]


def test_retries_wait_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempts are those of the policy; the record says how many there were."""
    calls: list[int] = []

    @checkpointed("n", retry=Retry(3, wait=0.001))
    def f(item: int) -> int:
        calls.append(item)
        if len(calls) < item:
            raise ConnectionError("no")
        return item

    assert f.one(2) == 2
    assert len(calls) == 2
    calls.clear()
    with pytest.raises(ConnectionError):
        f.one(9)
    assert len(calls) == 3
    assert f.errors[9].attempts == 3


def test_a_rate_is_one_for_all_who_ask(
    threads: ThreadPoolExecutor, ticker: Ticker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six that ask at once one begins, and the others wait for permits, which come evenly."""
    monkeypatch.setattr("checkpoint.execution.steps._LONGEST", 0.001)
    begun: SimpleQueue[int] = SimpleQueue()
    f = checkpointed("n", rate=Rate(5, per=60))(begun.put)
    asked = [threads.submit(f.one, item) for item in range(6)]
    for _ in asked:
        begun.get(timeout=FOREVER)
        assert begun.empty()
        ticker.tick(12.1)
    for one in asked:
        one.result(FOREVER)


@pytest.mark.slow
def test_a_call_that_costs_too_much_fails_and_keeps_nobody_waiting(threads: ThreadPoolExecutor) -> None:
    """As in a map: it could never start."""
    f = checkpointed("n", rate=Rate(5, cost=lambda item: item))(lambda item: item)
    asked = [threads.submit(f.one, item) for item in (9, 2, 1)]
    assert isinstance(asked[0].exception(FOREVER), InvalidOption)
    assert [one.result(FOREVER) for one in asked[1:]] == [2, 1]
    assert "over the rate's limit" in f.errors[9].message


def test_who_is_cancelled_while_it_waits_for_its_turn_takes_no_permit(ticker: Ticker) -> None:
    """The next one does."""

    @checkpointed("n", rate=Rate(1, per=60))
    async def f(item: int) -> int:
        return item

    async def main() -> int:
        await f.one(0)
        waits = asyncio.ensure_future(f.one(1))
        for _ in range(5):
            await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        ticker.tick(61)
        return await f.one(2)

    assert asyncio.run(main()) == 2


def test_keys_versions_and_changes_are_those_of_a_map() -> None:
    """Another item under a known key is an error before anything is paid; so is a key of another type."""
    calls: list[Any] = []

    def count(item: Any) -> int:
        calls.append(item)
        return len(calls)

    f = checkpointed("n", key="id")(count)
    assert f.one({"id": 1, "text": "a"}) == 1
    with pytest.raises(InputChanged, match="1 item differs"):
        f.one({"id": 1, "text": "b"})
    assert f.options(on_change="keep").one({"id": 1, "text": "b"}) == 1
    assert f.options(on_change="recompute").one({"id": 1, "text": "c"}) == 2
    assert f.options(on_change="recompute").one({"id": 1, "text": "c"}) == 2
    assert f.options(version="two").one({"id": 1, "text": "a"}) == 3
    with pytest.raises(InvalidKey):
        f.one({"id": object()})


def made(prompt: str, **options: Any) -> Any:
    """A function that reads a value."""

    def f(item: int) -> str:
        return f"{prompt} {item}"

    return checkpointed("n", **options)(f)


def test_a_changed_value_is_an_error() -> None:
    """As for a map; with on_change="recompute" the old result is computed anew, once."""
    assert made("one").one(1) == "one 1"
    with pytest.raises(FunctionChanged):
        made("two").one(1)
    f = made("two", on_change="recompute")
    assert [f.one(1), f.one(1), f.one(2)] == ["two 1", "two 1", "two 2"]
    with pytest.raises(FunctionChanged):
        made("one").map([1], progress=False)
    assert made("two").map([1], progress=False) == ["two 1"]


def test_records_say_what_computed_them_after_a_clear() -> None:
    """The journal's first record holds what its fingerprint stands for."""
    f = made("one")
    for _ in range(2):
        f.one(1)
        assert f.runner.records.open().codes_of("")[f._fingerprint().digest]["values"]
        f.clear()


def test_the_function_is_looked_at_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the outermost map; and outside of any once a second."""
    looked: list[int] = []
    g = checkpointed("g")(lambda item: item)
    read = g._fingerprint
    monkeypatch.setattr(type(g), "_fingerprint", lambda self: looked.append(1) if self is g else read.__func__(self))
    for _ in range(5):
        g.one(1)
    assert len(looked) == 1
    now = clock.monotonic
    monkeypatch.setattr(clock, "monotonic", lambda: now() + 2)
    g.one(1)
    assert len(looked) == 2
    monkeypatch.setattr(clock, "monotonic", lambda: now() + 10)
    f = checkpointed("f", version=1)(
        lambda item: [g.one(item), monkeypatch.setattr(clock, "monotonic", lambda: now() + 20)][0]
    )
    assert f.map(range(5), progress=False) == [0, 1, 2, 3, 4]
    assert len(looked) == 3


def test_a_value_that_cannot_be_written_is_kept_and_not_paid_for_again() -> None:
    """As in a map."""
    calls: list[int] = []

    @checkpointed("n")
    def f(item: int) -> Any:
        calls.append(item)
        return [object()]

    with pytest.raises(UnencodableValue):
        f.one(1)
    with pytest.raises(ItemError):
        f.one(1)
    assert calls == [1]
    assert list(f.unsaved) == [1]


@pytest.mark.slow
def test_a_timeout_holds_for_coroutines_and_is_refused_elsewhere() -> None:
    """Nothing can stop the thread of who asks."""
    with pytest.raises(InvalidOption, match="timeout=1 cannot be kept"):
        checkpointed("n", timeout=1)(lambda item: item).one(1)

    @checkpointed("n", timeout=0.001)
    async def f(item: int) -> None:
        await asyncio.sleep(3600)

    with pytest.raises(TimeoutError, match="no result within"):
        asyncio.run(f.one(1))
    assert f.errors[1].type == "TimeoutError"


# --- from many places at once -----------------------------------------------------------------------------------------


def test_equal_keys_are_computed_once(threads: ThreadPoolExecutor) -> None:
    """Sixteen threads ask; one calls, and all have the value."""
    gate = Gate()
    f = gated("n", gate)
    asked = [threads.submit(f.one, 1) for _ in range(16)]
    until_waited_for(f, 15)
    gate.go_on.set()
    assert [one.result(FOREVER) for one in asked] == [[1]] * 16
    assert gate.calls == {1: 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_one_waits_for_a_map(workers: int, threads: ThreadPoolExecutor) -> None:
    """A key whose call has begun in a map is not called by `one`."""
    gate = Gate()
    f = gated("n", gate)
    mapped = threads.submit(f.map, [1, 2], progress=False, workers=workers)
    assert gate.begun.wait(FOREVER)
    asked = threads.submit(f.one, 1)
    until_waited_for(f)
    gate.go_on.set()
    assert (mapped.result(FOREVER), asked.result(FOREVER)) == ([[1], [2]], [1])
    assert gate.calls == {1: 1, 2: 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_map_waits_for_one(workers: int, threads: ThreadPoolExecutor) -> None:
    """Nor the other way round; `progress` counts the item, which the map did not call."""
    gate = Gate()
    f = gated("n", gate)
    asked = threads.submit(f.one, 1)
    assert gate.begun.wait(FOREVER)
    mapped = threads.submit(f.map, [1, 2], progress=False, workers=workers)
    until_waited_for(f)
    gate.go_on.set()
    assert (mapped.result(FOREVER), asked.result(FOREVER)) == ([[1], [2]], [1])
    assert gate.calls == {1: 1, 2: 1}
    assert f.runner.progress() == (2, 2)


def test_a_failure_is_shared(threads: ThreadPoolExecutor) -> None:
    """By who waits, map or `one`; it is recorded once, and the next call tries again."""
    gate, error = Gate(), OSError("no")

    @checkpointed("n")
    def f(item: int) -> Any:
        gate(item)
        raise error

    first = threads.submit(f.one, 1)
    assert gate.begun.wait(FOREVER)
    second = threads.submit(f.one, 1)
    mapped = threads.submit(f.map, [1], progress=False, return_exceptions=True)
    until_waited_for(f, 2)
    gate.go_on.set()
    assert first.exception(FOREVER) is second.exception(FOREVER) is error
    assert mapped.result(FOREVER).errors[1].type == "OSError"
    assert gate.calls == {1: 1}
    assert f.runner.records.open().errors.count("") == 1


@pytest.mark.promise("who runs a key is cancelled, or its worker dies")
def test_who_runs_a_key_is_cancelled_or_its_worker_dies() -> None:
    """The call that was cancelled is made again, once, by one of those who wait."""
    calls: list[int] = []

    @checkpointed("n")
    async def f(item: int) -> int:
        calls.append(item)
        if len(calls) == 1:
            await asyncio.sleep(3600)
        return item

    async def main() -> Any:
        first = asyncio.ensure_future(f.one(1))
        while not calls:
            await asyncio.sleep(0)
        others = [asyncio.ensure_future(f.one(1)) for _ in range(3)]
        for _ in range(5):
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await asyncio.wait_for(asyncio.gather(*others), FOREVER)

    assert asyncio.run(main()) == [1, 1, 1]
    assert calls == [1, 1]
    assert not f.errors


def test_who_waits_may_be_cancelled() -> None:
    """The call goes on, and nobody else is kept."""
    calls: list[int] = []

    async def main() -> None:
        go_on = asyncio.Event()

        @checkpointed("n")
        async def f(item: int) -> int:
            calls.append(item)
            await go_on.wait()
            return item

        first = asyncio.ensure_future(f.one(1))
        while not calls:
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(f.one(1), 0.001)
        go_on.set()
        assert await first == 1
        assert await f.one(1) == 1

    asyncio.run(main())
    assert calls == [1]


def test_another_process_that_writes_is_waited_for_or_told(threads: ThreadPoolExecutor) -> None:
    """Nothing is paid for what could not be saved. (A lock of another open file stands for another process's.)"""
    from checkpoint import CheckpointLocked
    from checkpoint.storage.lock import Lock

    calls: list[int] = []

    @checkpointed("n")
    def f(item: int) -> int:
        calls.append(item)
        return item

    Path("checkpoints").mkdir()
    lock = Lock(Path("checkpoints/.n.lock").absolute(), "n", "")
    lock.acquire()
    with pytest.raises(CheckpointLocked):
        f.one(1)
    assert not calls
    patient = threads.submit(f.options(lock_timeout=FOREVER).one, 1)
    lock.release()
    assert patient.result(FOREVER) == 1


def test_the_lock_is_kept_while_a_call_runs(ticker: Any, threads: ThreadPoolExecutor) -> None:
    """However long it takes: nobody else writes meanwhile. Then it is let go as after any write."""
    gate = Gate()
    f = gated("n", gate)
    asked = threads.submit(f.one, 1)
    assert gate.begun.wait(FOREVER)
    writer = f.runner.records.store.writer
    ticker.tick(60)
    assert writer.tend()
    assert writer.writing
    gate.go_on.set()
    f.options().map([2], progress=False)
    assert asked.result(FOREVER) == [1]
    ticker.tick(60)
    assert not writer.tend()
    assert not writer.writing


# --- inside of other calls --------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [{}, {"workers": 4}]


@pytest.mark.parametrize("options", OPTIONS)
def test_each_part_survives_the_failure_of_the_next(options: dict[str, Any]) -> None:
    """What finished is not computed again: by a retry, nor by the next run."""
    calls: Counter[str] = Counter()

    @checkpointed("g")
    def g(part: str) -> str:
        calls[part] += 1
        return part.upper()

    @checkpointed("f", retry=Retry(2, on=ValueError, wait=0))
    def f(item: int) -> str:
        made = [g.one(f"{item} {part}") for part in "ab"]
        calls[f"whole {item}"] += 1
        if calls[f"whole {item}"] < 3:
            raise ValueError("no")
        return " ".join(made)

    with pytest.raises(ItemsFailed):
        f.map(range(4), progress=False, **options)
    assert f.map(range(4), progress=False, **options)[3] == "3 A 3 B"
    assert {count for part, count in calls.items() if "whole" not in part} == {1}
    assert {count for part, count in calls.items() if "whole" in part} == {3}


@pytest.mark.parametrize("options", OPTIONS)
def test_what_the_steps_retries_gave_up_is_not_retried(options: dict[str, Any]) -> None:
    """Else attempts would multiply; a step without a policy is tried again by the item's."""
    calls: Counter[str] = Counter()

    def call(item: str) -> None:
        calls[item] += 1
        raise TimeoutError("no")

    retry = Retry(3, wait=0)
    patient, plain = checkpointed("patient", retry=retry)(call), checkpointed("plain")(call)

    @checkpointed("f", retry=retry)
    def f(item: str) -> None:
        try:
            {"patient": patient, "wrapped": patient, "plain": plain}[item].one(item)
        except TimeoutError as error:
            if item == "wrapped":
                raise OSError("wrapped") from error
            raise

    f.map(["patient", "wrapped", "plain"], progress=False, return_exceptions=True, **options)
    assert calls == {"patient": 3, "wrapped": 3, "plain": 3}
    assert f.errors["patient"].attempts == 1


def fib_of(calls: Counter[int]) -> Any:
    """Fibonacci's numbers, each of the two before."""

    @checkpointed("fib")
    def fib(n: int) -> int:
        calls[n] += 1
        return n if n < 2 else int(fib.one(n - 1) + fib.one(n - 2))

    return fib


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("order", [1, -1])
def test_fibonacci_by_one(options: dict[str, Any], order: int) -> None:
    """Each number is computed once, whoever comes first."""
    calls: Counter[int] = Counter()
    assert sorted(fib_of(calls).map(range(40)[::order], progress=False, **options))[-1] == 63245986
    assert calls == dict.fromkeys(range(40), 1)
    assert fib_of(calls).one(41) == 165580141


def test_fibonacci_on_tasks() -> None:
    """The same, where both are asked for at once."""
    calls: Counter[int] = Counter()

    @checkpointed("fib")
    async def fib(n: int) -> int:
        calls[n] += 1
        return n if n < 2 else sum(await asyncio.gather(fib.one(n - 1), fib.one(n - 2)))

    async def main() -> Any:
        return await fib.map(range(40, -1, -1), workers=8, progress=False)

    assert asyncio.run(main())[0] == 102334155
    assert calls == dict.fromkeys(range(41), 1)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_call_that_asks_for_its_own_item_is_refused(options: dict[str, Any]) -> None:
    """The error shows the circle; it is the item's failure, and others are computed."""
    f: Any = checkpointed("n")(lambda n: n if n else f.one(0))
    result = f.map([1, 0, 2], progress=False, return_exceptions=True, **options)
    assert result[::2] == [1, 2]
    assert "n(0) → n(0)" in result.errors[0].message
    with pytest.raises(CircularCall):
        f.one(0)


@pytest.mark.parametrize("options", OPTIONS)
def test_a_circle_of_two_functions_is_refused(options: dict[str, Any]) -> None:
    """By maps and by `one`, also where a map stands between."""
    f: Any = checkpointed("f")(lambda n: g.one(n))
    g: Any = checkpointed("g")(lambda n: f.one(n) if n < 10 else f.map([n], progress=False, **options)[0])
    for n in (1, 10):
        with pytest.raises(ItemsFailed):
            f.map([n], progress=False, **options)
        assert f"f({n}) → g({n}) → f({n})" in str(g.errors[n].message)
    with pytest.raises(CircularCall):
        f.one(2)


@pytest.mark.promise("calls that would wait for each other")
def test_calls_that_would_wait_for_each_other(threads: ThreadPoolExecutor) -> None:
    """Each call waits for the other: one of the two fails, and neither hangs."""
    gate = threading.Barrier(2)

    def call(name: str, other: Callable[[], Any]) -> Any:
        if not calls[name]:
            calls[name] += 1
            gate.wait(FOREVER)
        return other().one(1)

    calls: Counter[str] = Counter()
    f: Any = checkpointed("f")(lambda n: call("f", lambda: g))
    g: Any = checkpointed("g")(lambda n: call("g", lambda: f))
    for asked in [threads.submit(each.one, 1) for each in (f, g)]:
        assert isinstance(asked.exception(FOREVER), CircularCall)


def test_a_circle_of_coroutines_is_refused() -> None:
    """As on threads; also where both are asked for at once."""

    @checkpointed("f")
    async def f(n: int) -> Any:
        return await asyncio.gather(g.one(n), g.one(n + 1))

    @checkpointed("g")
    async def g(n: int) -> Any:
        return await f.one(n) if n < 3 else n

    with pytest.raises(ItemsFailed):
        asyncio.run(f.map([1, 2], workers=2, progress=False))
    assert all("CircularCall" in str(error.type) for error in f.errors.values())


def test_a_loop_by_hand_that_asks_for_its_own_item_is_refused() -> None:
    """It would wait for itself; another item is computed."""
    f = checkpointed("n")(lambda item: item)
    g = checkpointed("g")(lambda item: f.one(item))
    runner = CheckpointedRunner("n", version=None)
    for item in runner.iterate([1]):
        with pytest.raises(CircularCall, match="a loop in this thread was given"):
            f.one(item)
        with pytest.raises(CircularCall):
            g.one(item)
        assert f.one(2) == 2
        runner.save_result(item, item)
        assert f.one(item) == item


def test_what_a_map_has_only_drawn_is_taken_over(threads: ThreadPoolExecutor) -> None:
    """It does not wait for the calls before it."""
    gate = Gate()
    slow: Any = checkpointed("n")(lambda item: gate(item) if item == 0 else [item])
    mapped = threads.submit(slow.map, range(5), progress=False)
    assert gate.begun.wait(FOREVER)
    assert slow.one(4) == [4]
    gate.go_on.set()
    assert mapped.result(FOREVER) == [[item] for item in range(5)]


def test_random_steps_on_many_threads(threads: ThreadPoolExecutor) -> None:
    """A graph of calls without a circle: each is made once, by maps and by `one` at once."""
    calls: Counter[int] = Counter()
    lock = threading.Lock()

    @checkpointed("n")
    def f(n: int) -> int:
        with lock:
            calls[n] += 1
        return n + sum(f.one(n // part) for part in (2, 3, 5) if n // part < n)

    asked: list[Any] = [threads.submit(f.one, n) for n in range(30, 60)]
    mapped: list[Any] = [threads.submit(f.map, range(60)[::step], progress=False, workers=3) for step in (1, -1, 7)]
    for one in [*asked, *mapped]:
        one.result(FOREVER)
    assert calls == dict.fromkeys(range(60), 1)


def test_one_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is asked too often."""
    with caplog.at_level(logging.INFO, "checkpoint"):
        checkpointed("n", version=1)(lambda item: item).one(1)
    assert not caplog.messages


# --- what records list ------------------------------------------------------------------------------------------------


def lines_of(name: str) -> list[dict[str, Any]]:
    """The records of a journal of results."""
    return [json.loads(line) for line in Path(f"checkpoints/{name}_results.jsonl").read_text().splitlines()]


def chain() -> tuple[Any, Any, Any]:
    """A function whose items take two steps, of which one takes another."""
    h: Any = checkpointed("h", version="small")(lambda item: item)
    g: Any = checkpointed("g")(lambda item: h.one(len(item)) if item.startswith("a") else item)
    f: Any = checkpointed("f")(lambda item: [g.one(f"a{item}"), g.one("b"), g.one("b")])
    return f, g, h


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"workers": 2, "chunksize": 2}])
def test_a_record_lists_its_steps(options: dict[str, Any]) -> None:
    """In their order, each once; those that were there already, too; and none where none was taken."""
    f, _, h = chain()
    f.map([1, 20], progress=False, **options)
    small = h.runner.records.version
    assert {line["key"]: line["steps"] for line in lines_of("f")} == {
        1: [["g", "a1", ""], ["g", "b", ""]],
        20: [["g", "a20", ""], ["g", "b", ""]],
    }
    assert {line["key"]: line.get("steps") for line in lines_of("g")} == {
        "a1": [["h", 2, small]], "a20": [["h", 3, small]], "b": None
    }  # fmt: skip
    assert not any("steps" in line for line in lines_of("h"))
    assert f.map([1, 20], progress=False) == [[2, "b", "b"], [3, "b", "b"]]


def test_tasks_that_a_call_begins_take_its_steps() -> None:
    """What `gather` runs is of the call, and so is what failed."""

    @checkpointed("g")
    async def g(item: int) -> int:
        return 1 // item

    @checkpointed("f")
    async def f(item: int) -> Any:
        return await asyncio.gather(g.one(item), g.one(item + 1), return_exceptions=item > 0)

    asyncio.run(f.map([1, 0], workers=2, progress=False, return_exceptions=True))
    assert lines_of("f")[0]["steps"] == [["g", 1, ""], ["g", 2, ""]]
    (failed,) = [json.loads(line) for line in Path("checkpoints/f_errors.jsonl").read_text().splitlines()]
    assert failed["steps"] == [["g", 0, ""], ["g", 1, ""]]


def test_clear_with_steps_forgets_them_too() -> None:
    """Those of steps as well, and of an item that failed; those of other items stay."""
    f, g, h = chain()
    f.map([1, 20], progress=False)
    f.clear([1])
    assert (set(g.results), set(h.results)) == ({"a1", "a20", "b"}, {2, 3})
    f.map([1], progress=False)
    f.clear([1], steps=True)
    assert (set(f.results), set(g.results), set(h.results)) == ({20}, {"a20"}, {3})
    with pytest.raises(InvalidOption, match="clear"):
        f.clear(steps=True)
    with pytest.raises(InvalidOption, match="clear"):
        f.clear("a", steps=True)


def test_show_tells_an_item_with_its_steps(capsys: pytest.CaptureFixture[str]) -> None:
    """As a tree, or as JSON; of a key that is not there, that."""
    f, g, _ = chain()
    f.map([1], progress=False)
    g.clear(["b"])
    assert main(["show", "f", "--key", "1"]) == 0
    told = re.sub(r", in [\d.e-]+ s", "", capsys.readouterr().out)
    assert told.startswith("key 1 of checkpoint 'f'")
    assert (
        told[told.index("f 1:") :]
        == "f 1: done\n├── g 'a1': done\n│   └── h 2: done, version 'small'\n└── g 'b': not there\n"
    )
    assert main(["show", "f", "--key", "1", "--json"]) == 0
    assert [step["state"] for step in json.loads(capsys.readouterr().out)["steps"]] == ["done", "not there"]
    assert main(["show", "f", "--key", "2"]) == 1
    assert "nothing is known of key 2" in capsys.readouterr().err


def test_a_line_of_another_program_may_have_any_steps() -> None:
    """What cannot be read as a step is left out."""
    f, _, _ = chain()
    f.map([1], progress=False)
    with Path("checkpoints/f_results.jsonl").open("a") as journal:
        journal.write('{"key": 5, "result": 1, "steps": {"a": 1}}\n{"key": "6", "result": 1, "steps": [[1, 2, 3]]}\n')
    f.clear([5, 6, 1], steps=True)
    assert not f.results


def test_the_version_of_a_step_is_a_value_that_the_item_s_function_reads() -> None:
    """Else a label that changes would leave what was computed by the old step, and nobody would know."""

    def of_version(version: Any) -> Any:
        @checkpointed("labelled", version=version)
        def step(n: int) -> str:
            return f"{n} by {version}"

        @checkpointed("outer of a label")
        def f(n: int) -> str:
            return step.one(n)

        return f

    assert of_version({"model": "a"}).map([1], progress=False) == ["1 by {'model': 'a'}"]
    assert "changed" not in str(of_version({"model": "a"}).plan([1]))
    changed = of_version({"model": "b"})
    assert "the version of 'labelled'" in str(changed.plan([1]))
    with pytest.raises(FunctionChanged, match="the version of 'labelled'"):
        changed.map([1], progress=False)
    anew = changed.options(on_change="recompute").map([1], progress=False)
    assert anew == ["1 by {'model': 'b'}"]
