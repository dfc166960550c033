"""Several passes of one process over one checkpoint, at once: each key is called once, and no call waits for itself."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from checkpoint import (
    BatchCheckpointedRunner,
    CheckpointedRunner,
    CircularCall,
    InputChanged,
    ItemsFailed,
    Rate,
    Retry,
    checkpointed,
)
from checkpoint.outcomes import Failure, Success, Unit
from checkpoint.passes.claims import Claims
from checkpoint.passes.settings import PassSettings
from checkpoint.values.keys import Key

FOREVER = 30.0
OPTIONS = [
    pytest.param({}, id="serial"),
    pytest.param({"workers": 3}, id="threads"),
    pytest.param({"workers": 2, "chunksize": 4}, id="chunks"),
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """Threads of the test."""
    with ThreadPoolExecutor(16) as pool:
        yield pool


class Counted:
    """A function of one item that counts its calls; `hold` makes those of an item wait for `go_on`."""

    def __init__(self, *hold: Any) -> None:
        self.calls: Counter[Any] = Counter()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self._hold = hold

    def __call__(self, item: Any) -> Any:
        self.calls[item] += 1
        if item in self._hold and self.calls[item] == 1:
            self.begun.set()
            assert self.go_on.wait(FOREVER)
        return [item]


def wait_until_parked(f: Any) -> None:
    """A pass of the function waits for what another one has begun."""
    end = time.monotonic() + FOREVER
    while not any(one.in_flight.parked for one in list(f.runner._passes)):
        assert time.monotonic() < end
        time.sleep(0.001)


def counted(name: str, function: Counted, **options: Any) -> Any:
    """It as a checkpointed function."""
    return checkpointed(name, **options)(lambda item: function(item))


# --- each key is called once -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_overlapping_maps_call_each_key_once(options: dict[str, Any], threads: ThreadPoolExecutor) -> None:
    """Whatever their order; each returns all of its own results."""
    function = Counted()
    f = counted("n", function)
    orders = [random.Random(seed).sample(range(60), 40) for seed in range(10)]
    maps = [threads.submit(f.map, order, progress=False, **options) for order in orders]
    for order, mapped in zip(orders, maps, strict=True):
        assert mapped.result(FOREVER) == [[item] for item in order]
    assert set(function.calls.values()) == {1}
    assert len((Path("checkpoints") / "n_results.jsonl").read_text().splitlines()) == len(function.calls)


def test_overlapping_maps_of_coroutines_call_each_key_once() -> None:
    """In one event loop, as the requests of a web server are."""
    calls: Counter[int] = Counter()

    @checkpointed("n")
    async def f(item: int) -> int:
        calls[item] += 1
        await asyncio.sleep(0)
        return item

    async def ten() -> list[Any]:
        return await asyncio.gather(
            *[f.map(range(start, start + 20), workers=4, progress=False) for start in range(0, 30, 3)]
        )

    assert asyncio.run(ten()) == [list(range(start, start + 20)) for start in range(0, 30, 3)]
    assert set(calls.values()) == {1}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_call_that_has_begun_is_waited_for(options: dict[str, Any], threads: ThreadPoolExecutor) -> None:
    """The second map has its result; other items it runs meanwhile, where it has workers."""
    function = Counted(1)
    f = counted("n", function)
    first = threads.submit(f.map, [1], progress=False)
    assert function.begun.wait(FOREVER)
    second = threads.submit(f.map, [1, 2], progress=False, **options)
    if options.get("workers") and not options.get("chunksize"):
        while 2 not in f.results:
            assert not second.done()
    function.go_on.set()
    assert (first.result(FOREVER), second.result(FOREVER)) == ([[1]], [[1], [2]])
    assert function.calls == {1: 1, 2: 1}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_failure_is_shared(options: dict[str, Any], threads: ThreadPoolExecutor) -> None:
    """Who waited for the call fails with it, and does not make it again; the next map does."""
    begun, go_on, calls = threading.Event(), threading.Event(), []

    def call(item: int) -> int:
        calls.append(item)
        if len(calls) == 1:
            begun.set()
            assert go_on.wait(FOREVER)
            raise ValueError("no")
        return item

    f: Any = checkpointed("n")(call)
    first = threads.submit(f.map, [1], progress=False)
    assert begun.wait(FOREVER)
    second = threads.submit(f.map, [1], progress=False, **options)
    wait_until_parked(f)
    go_on.set()
    with pytest.raises(ItemsFailed, match="1 of 1"):
        first.result(FOREVER)
    with pytest.raises(ItemsFailed, match="1 of 1") as caught:
        second.result(FOREVER)
    assert len(caught.value.exceptions[0].__notes__) == 1
    assert calls == [1]
    assert f.map([1], progress=False) == [1]


def test_what_was_only_drawn_is_taken_over(threads: ThreadPoolExecutor) -> None:
    """A pass that has an item in its queue does not keep others from it."""
    function = Counted(0)
    f = counted("n", function)
    first = threads.submit(f.map, range(10), workers=1, chunksize=1, progress=False, executor=ThreadPoolExecutor(1))
    assert function.begun.wait(FOREVER)
    assert f.map(range(1, 10), progress=False) == [[item] for item in range(1, 10)]
    function.go_on.set()
    assert first.result(FOREVER) == [[item] for item in range(10)]
    assert set(function.calls.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS[:2])
def test_what_was_put_off_is_taken_over(options: dict[str, Any], threads: ThreadPoolExecutor) -> None:
    """A retry that waits keeps nobody from the item, and is not made when another pass has a result by then."""
    failed, calls = threading.Event(), []

    def call(item: int) -> int:
        calls.append(item)
        if len(calls) == 1:
            raise OSError("later")
        return item

    def wait(_: int) -> float:
        failed.set()
        return 1.0

    slow = checkpointed("n", retry=Retry(3, wait=wait))(call)
    first: Any = threads.submit(lambda: slow.map([1], progress=False, **options))
    assert failed.wait(FOREVER)
    assert checkpointed("n")(call).map([1], progress=False) == [1]
    assert first.result(FOREVER) == [1]
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS[:2])
def test_an_item_that_comes_back_has_been_tried_before(options: dict[str, Any], threads: ThreadPoolExecutor) -> None:
    """A loop by hand had it while its retry waited: there are no more attempts for that."""
    failed, calls = threading.Event(), []

    def call(item: int) -> int:
        calls.append(item)
        raise OSError("no")

    def wait(_: int) -> float:
        failed.set()
        return 0.5

    f: Any = checkpointed("n", retry=Retry(2, wait=wait))(call)
    mapped = threads.submit(f.map, [1], progress=False, return_exceptions=True, **options)
    assert failed.wait(FOREVER)
    for _ in CheckpointedRunner("n", version=None).iterate([1]):
        while not mapped.done() and not f.runner._passes[0].in_flight.parked:
            pass
    assert mapped.result(FOREVER).errors[1].type == "OSError"
    assert calls == [1, 1]


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_what_another_pass_calls_uses_no_permit(options: dict[str, Any], threads: ThreadPoolExecutor) -> None:
    """A rate counts calls that are made."""
    function, called = Counted(1), threading.Event()
    first = threads.submit(counted("n", function).map, [1], progress=False)
    assert function.begun.wait(FOREVER)

    @checkpointed("n", rate=Rate(2, per=0.1))
    def f(item: int) -> Any:
        called.set()
        return function(item)

    second = threads.submit(lambda: f.map([1, 2], progress=False, **options))
    assert called.wait(FOREVER)
    function.go_on.set()
    assert (first.result(FOREVER), second.result(FOREVER)) == ([[1]], [[1], [2]])
    assert function.calls == {1: 1, 2: 1}


def test_who_waits_takes_over_from_who_is_cancelled() -> None:
    """The call that was cancelled is made again, by the pass that waited for it."""
    calls: list[str] = []

    @checkpointed("n")
    async def f(item: str) -> str:
        calls.append(item)
        if len(calls) == 1:
            await asyncio.sleep(3600)
        return item

    async def both() -> Any:
        first = asyncio.ensure_future(f.map(["a"], progress=False))
        while not calls:
            await asyncio.sleep(0)
        second = asyncio.ensure_future(f.map(["a"], progress=False))
        for _ in range(20):
            await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        return await asyncio.wait_for(second, FOREVER)

    assert asyncio.run(both()) == ["a"]
    assert calls == ["a", "a"]


def test_a_stream_that_is_dropped_lets_go_of_its_keys(threads: ThreadPoolExecutor) -> None:
    """Who waits for one of them calls it."""
    function = Counted()
    f = counted("n", function)
    stream = f.stream([1, 2, 3], progress=False)
    next(stream)
    assert threads.submit(f.map, [1, 2], progress=False).result(FOREVER) == [[1], [2]]
    stream.close()
    assert f.map([1, 2, 3], progress=False) == [[1], [2], [3]]
    assert set(function.calls.values()) == {1}


def test_one_key_of_two_items_is_refused(threads: ThreadPoolExecutor) -> None:
    """The second map would be given the result of another item."""
    begun, go_on = threading.Event(), threading.Event()

    @checkpointed("n", key="id")
    def f(item: dict[str, Any]) -> Any:
        begun.set()
        assert go_on.wait(FOREVER)
        return item["text"]

    first = threads.submit(f.map, [{"id": 1, "text": "a"}], progress=False)
    assert begun.wait(FOREVER)
    second = threads.submit(f.map, [{"id": 1, "text": "b"}], progress=False)
    wait_until_parked(f)
    go_on.set()
    assert first.result(FOREVER) == ["a"]
    with pytest.raises(InputChanged):
        second.result(FOREVER)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loops_by_hand_share_their_work(batch_size: int, threads: ThreadPoolExecutor) -> None:
    """Each item is given to one loop; what another one is at comes when it was not saved there."""
    given: Counter[int] = Counter()
    gate = threading.Barrier(4)

    def loop(seed: int) -> None:
        runner, items = BatchCheckpointedRunner("n"), random.Random(seed).sample(range(50), 50)
        gate.wait(FOREVER)
        for batch in runner.iterate_batches(items, batch_size=batch_size):
            for item in batch:
                given[item] += 1
                if item != 7 or given[7] == 4:
                    runner.save_result(item, item)

    for done in [threads.submit(loop, seed) for seed in range(4)]:
        done.result(FOREVER)
    assert given.pop(7) == 4
    assert set(given.values()) == {1}


class Keys:
    """The keys of a pass that does nothing."""

    def __init__(self, claims: Claims) -> None:
        self.name, self.version, self.claims = "n", "", claims
        self.begun: dict[Key, Unit] = {}
        self.parked: dict[Key, Unit] = {}
        self.ends: dict[Key, Any] = {}
        self.parent: Any = None
        self.thread: int | None = None
        self.task, self.has_company = 0, False
        claims.join(self)


def test_the_end_that_counts_is_that_of_the_pass_which_has_the_key() -> None:
    """A third one that is done with it, since it shared an earlier failure, tells nobody who waits."""
    claims, unit = Claims(), Unit(1, 1)
    owner, other, waiting = Keys(claims), Keys(claims), Keys(claims)
    told: list[Unit] = []
    for keys in (owner, waiting):
        keys.begun[1] = unit
        assert claims.claim(keys, unit, told.append) == (keys is owner)
    claims.release(other, [unit], Failure("no"))
    assert (told, waiting.ends) == ([], {})
    claims.release(owner, [unit], Success(None))
    assert (told, waiting.ends) == ([unit], {1: (unit, Success(None))})
    for keys in (owner, other, waiting):
        claims.leave(keys)


def test_a_pass_that_never_begins_is_nobodys_company(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while it is made leaves nothing behind."""
    f = checkpointed("n")(lambda item: item)
    with monkeypatch.context() as patch:
        patch.setattr("checkpoint.passes.pipeline.Tally", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            f.map([1], progress=False)
    with f.runner.start_pass([1], PassSettings(lambda item: item)) as alone:
        assert not alone.is_shared


def test_each_pass_has_its_own_counts_and_limits(threads: ThreadPoolExecutor) -> None:
    """`progress` counts the pass that began last, also when it is over."""
    function = Counted(0)
    f = counted("n", function)
    first = threads.submit(f.map, range(3), progress=False)
    assert function.begun.wait(FOREVER)
    assert f.runner.progress() == (0, 3)
    assert f.map(range(10, 15), progress=False) == [[item] for item in range(10, 15)]
    assert f.runner.progress() == (5, 5)
    function.go_on.set()
    first.result(FOREVER)
    assert f.runner.progress() == (5, 5)


def test_each_pass_counts_what_others_saved_meanwhile() -> None:
    """Also where its items were keyed before, so that its bar comes to its end."""
    f = checkpointed("n")(lambda item: item)
    first = f.stream([1, 2], progress=False)
    next(first)
    second = f.stream([0, 2, 1, 2], progress=False)
    next(second)
    list(first)
    assert [outcome.value for outcome in second] == [2, 1, 2]
    assert f.runner.progress() == (4, 4)


def test_loops_of_one_runner_count_what_each_was_given(threads: ThreadPoolExecutor) -> None:
    """A result is counted by the loop that has the item, and not by one that waits for it."""
    runner, waits = CheckpointedRunner("n"), threading.Event()

    def two_one() -> list[int]:
        given = []
        for item in runner.iterate([2, 1]):
            given.append(item)
            runner.save_result(item, item)
            assert waits.wait(FOREVER)
        return given

    waiting = threads.submit(two_one)
    while not runner.is_completed(2):
        assert not waiting.done()
    for item in runner.iterate([1]):
        waits.set()
        while not runner._passes[0].in_flight.parked:
            assert not waiting.done()
        runner.save_result(item, item)
        runner.save_result(item, item)
    assert waiting.result(FOREVER) == [2]
    assert runner.progress() == (1, 1)


# --- what has changed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS)
def test_what_another_pass_computed_again_is_not_computed_a_third_time(options: dict[str, Any]) -> None:
    """Both have the later result."""
    calls: list[int] = []

    @checkpointed("n", key="id", on_change="recompute")
    def f(item: dict[str, int]) -> int:
        calls.append(item["id"])
        return item["n"]

    f.map([{"id": key, "n": 1} for key in range(3)], progress=False)
    calls.clear()
    items = [{"id": key, "n": 2} for key in [0, 1, 2, 0]]
    first = f.stream(items, progress=False)
    next(first)
    second = f.stream(items, progress=False)
    next(second)
    assert f.map(items, progress=False, **options) == [2, 2, 2, 2]
    assert [outcome.value for outcome in first] == [outcome.value for outcome in second] == [2, 2, 2]
    assert sorted(calls) == [0, 1, 2]
    assert f.runner.progress() == (4, 4)


def test_a_result_of_another_item_is_refused_when_it_comes_late() -> None:
    """The items were keyed before it was there."""
    f = checkpointed("n", key="id")(lambda item: item["text"])
    stream = f.stream([{"id": 0, "text": "a"}, {"id": 1, "text": "b"}], progress=False)
    next(stream)
    assert f.map([{"id": 1, "text": "a"}], progress=False) == ["a"]
    with pytest.raises(InputChanged):
        next(stream)


# --- circles ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_a_call_that_maps_its_own_item_is_refused(options: dict[str, Any]) -> None:
    """The error shows the circle; it is the item's failure, and the others are computed."""
    f: Any = checkpointed("n")(lambda n: n if n else f.map([0], progress=False, **options))
    result = f.map([1, 0, 2], progress=False, return_exceptions=True, **options)
    assert result[::2] == [1, 2]
    assert result.errors[0].type.endswith("CircularCall")
    assert "n(0) → n(0)" in result.errors[0].message


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_a_circle_of_two_functions_is_refused(options: dict[str, Any]) -> None:
    """Also where two top-level maps close it from two sides, on threads."""
    f: Any = checkpointed("f")(lambda n: g.map([n], progress=False, **options)[0])
    g: Any = checkpointed("g")(lambda n: f.map([n], progress=False, **options)[0])
    with pytest.raises(ItemsFailed):
        f.map([1], progress=False, **options)
    (error,) = g.errors.values()
    assert "f(1) → g(1) → f(1)" in str(error.message)


def test_a_circle_that_two_passes_close_is_refused(threads: ThreadPoolExecutor) -> None:
    """Each call waits for the other: one of the two fails, and neither hangs."""
    gate = threading.Barrier(2)

    def call(name: str, other: Callable[[], Any]) -> Any:
        if calls[name] == 0:
            calls[name] += 1
            gate.wait(FOREVER)
        return other().map([1], progress=False)[0]

    calls: Counter[str] = Counter()
    f: Any = checkpointed("f")(lambda n: call("f", lambda: g))
    g: Any = checkpointed("g")(lambda n: call("g", lambda: f))
    maps = [threads.submit(each.map, [1], progress=False) for each in (f, g)]
    for mapped in maps:
        with pytest.raises(ItemsFailed):
            mapped.result(FOREVER)
    assert any("→" in str(error.message) for each in (f, g) for error in each.errors.values())


def test_a_circle_of_coroutines_is_refused() -> None:
    """As on threads."""

    @checkpointed("n")
    async def f(n: int) -> Any:
        return await f.map([n], progress=False)

    with pytest.raises(ItemsFailed):
        asyncio.run(f.map([1, 2], workers=2, progress=False))
    assert all("CircularCall" in str(error.type) for error in f.errors.values())


@pytest.mark.parametrize("options", OPTIONS)
def test_a_loop_by_hand_that_maps_its_own_item_is_refused(options: dict[str, Any]) -> None:
    """Whichever thread begins the call, and whatever maps are between."""
    f = checkpointed("n")(lambda item: item)
    g = checkpointed("g")(lambda item: list(f.map([*range(20), item], progress=False, **options)))
    runner = CheckpointedRunner("n", version=None)
    for item in runner.iterate([100]):
        with pytest.raises(CircularCall, match="a loop in this thread was given"):
            f.map([*range(20), 100], progress=False, **options)
        with pytest.raises(ItemsFailed, match="CircularCall"):
            g.map([item], progress=False, **options)
        runner.save_result(item, item)
        assert g.map([item], progress=False, **options) == [[*range(20), 100]]


def test_a_circle_that_two_loops_by_hand_close_is_refused(threads: ThreadPoolExecutor) -> None:
    """Each is within a map of what the other was given."""
    gate, functions = threading.Barrier(2), {name: checkpointed(name)(lambda item: item) for name in "fg"}

    def loop(mine: str, other: str) -> bool:
        for _ in CheckpointedRunner(mine, version=None).iterate([1]):
            gate.wait(FOREVER)
            try:
                functions[other].map([1], progress=False)
            except CircularCall:
                return True
        return False

    loops = [threads.submit(loop, *names) for names in ("fg", "gf")]
    assert sorted(each.result(FOREVER) for each in loops) == [False, True]


def test_fibonacci_by_maps_of_itself() -> None:
    """Serial, on threads, and as coroutines: each number is computed once."""
    calls: Counter[int] = Counter()

    def step(n: int) -> int:
        calls[n] += 1
        return n if n < 2 else sum(fib.map([n - 1, n - 2], progress=False, workers=2))

    fib: Any = checkpointed("fib")(step)
    assert fib.map([18, 17], progress=False, workers=2) == [2584, 1597]
    assert set(calls.values()) == {1}


# --- at random -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_passes_at_random(seed: int, threads: ThreadPoolExecutor) -> None:
    """Maps, streams that are left early and loops by hand over the same items: none is called twice, none is lost."""
    chance, calls = random.Random(seed), Counter[int]()
    lock = threading.Lock()

    def call(item: int) -> int:
        with lock:
            calls[item] += 1
        return -item

    f = checkpointed("n")(call)

    def work(kind: int, items: list[int]) -> None:
        if kind == 0:
            stream = f.stream(iter(items), progress=False)
            for _ in zip(range(5), stream, strict=False):
                pass
            stream.close()  # type: ignore[attr-defined]
        else:
            assert f.map(items, progress=False, workers=kind) == [-item for item in items]

    jobs = [(chance.randrange(4), chance.sample(range(40), 25)) for _ in range(16)]
    for done in [threads.submit(work, *job) for job in jobs]:
        done.result(FOREVER)
    assert set(calls.values()) == {1}
    assert f.map(range(40), progress=False) == [-item for item in range(40)]


def test_a_circle_is_an_error_of_ours() -> None:
    """And one of Python's that says the same."""
    assert issubclass(CircularCall, RecursionError)
