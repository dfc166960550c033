"""Laws of cancelled maps of coroutine functions: nothing more is begun, what runs is awaited, what finished is kept.

Nothing here waits for the time to pass: turns of the event loop are counted, and calls wait for events.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from checkpoint import ItemsFailed, checkpointed

ITEMS = range(20)
FREE = 2  # items before this one return at once
WORKERS = 4
TURNS = 12  # of the loop, from the end of the last call to the end of what awaits the map


class ReadError(Exception):
    """As a client raises it for whatever goes wrong."""


class Calls:
    """A function whose calls wait, and what becomes of them.

    Args:
        behaviour: how a call answers its cancellation.
        directory: of the checkpoint.
    """

    def __init__(self, behaviour: str, directory: Path) -> None:
        self.behaviour, self.waits = behaviour, True
        self.begun: list[int] = []
        self.cancelled: list[int] = []
        self.returned: list[int] = []
        self.late = asyncio.Event()  # until which calls go on that do not end when they are cancelled
        self.tasks = asyncio.all_tasks()

        async def f(n: int) -> int:
            self.begun.append(n)
            if n >= FREE and self.waits:
                await self._wait(n)
            self.returned.append(n)
            return n * 10

        self.f: Any = checkpointed("cancelled", checkpoint_dir=directory, version=1)(f)

    async def _wait(self, n: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            self.cancelled.append(n)
            if self.behaviour == "raises":
                raise
            if self.behaviour == "raises its own":
                raise ReadError from error
            if self.behaviour == "raises its own, quietly":
                raise ReadError from None
        if self.behaviour == "awaits more":
            await self.late.wait()
        while self.behaviour == "swallows all" and not self.late.is_set():
            try:
                await self.late.wait()
            except asyncio.CancelledError:
                self.cancelled.append(n)

    async def map(self) -> Any:
        return await self.f.map(ITEMS, workers=WORKERS, progress=False)

    async def until_full(self) -> None:
        """Wait until as many calls wait as there are workers, and what has finished is saved."""
        async with asyncio.timeout(30):
            while len(self.begun) < FREE + WORKERS or len(self.f.results) < FREE:
                await asyncio.sleep(0)

    def check_ended(self) -> None:
        """All is as it should be after the end."""
        assert self.begun == list(range(FREE + WORKERS)), "nothing was begun after the first cancellation"
        assert set(self.cancelled) == set(range(FREE, FREE + WORKERS))
        assert dict(self.f.results) == {n: n * 10 for n in self.returned}, "what finished is kept"
        assert len(self.returned) == (FREE if self.behaviour.startswith("raises") else FREE + WORKERS)
        assert dict(self.f.errors) == {}, "who was cancelled has not failed"
        assert not self.f.runner.records.store.writer.writing, "the lock is let go of"
        assert asyncio.all_tasks() == self.tasks, "no task is left"

    async def check_resumes(self) -> None:
        """The rest is run, and nothing else."""
        done, self.waits, self.begun = set(self.f.results), False, []
        assert list(await self.map()) == [n * 10 for n in ITEMS]
        assert sorted(self.begun) == [n for n in ITEMS if n not in done]


BEHAVIOURS = ["raises", "raises its own", "raises its own, quietly", "returns", "awaits more", "swallows all"]


# --- who cancels -----------------------------------------------------------------------------------------------------


async def by_cancel(calls: Calls, end: asyncio.Event) -> None:
    """`task.cancel()`."""
    task = asyncio.ensure_future(calls.map())
    await end.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_timeout(calls: Calls, end: asyncio.Event) -> None:
    """`asyncio.timeout`."""

    async def timed() -> None:
        async with asyncio.timeout(None) as limit:
            asyncio.ensure_future(end.wait()).add_done_callback(lambda _: limit.reschedule(0))
            await calls.map()

    with pytest.raises(TimeoutError):
        await timed()


async def by_wait_for(calls: Calls, end: asyncio.Event) -> None:
    """Whoever waits for the map by `asyncio.wait_for`."""
    task = asyncio.ensure_future(asyncio.wait_for(calls.map(), 3600))
    await end.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_task_group(calls: Calls, end: asyncio.Event) -> None:
    """Another task of its group fails."""

    async def fails() -> None:
        await end.wait()
        raise ReadError

    async def group() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(calls.map())
            group.create_task(fails())

    with pytest.raises(ExceptionGroup) as caught:
        await group()
    assert [type(error) for error in caught.value.exceptions] == [ReadError]


async def by_cancel_of_all(calls: Calls, end: asyncio.Event) -> None:
    """Every task of the loop, those that make calls too, as `asyncio.run` does at its end."""
    mine = asyncio.all_tasks()
    task = asyncio.ensure_future(calls.map())
    await end.wait()
    for one in asyncio.all_tasks() - mine:
        one.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def by_aclose(calls: Calls, end: asyncio.Event) -> None:
    """The consumer of a stream closes it."""
    stream: Any = calls.f.stream(ITEMS, workers=WORKERS, progress=False)
    for _ in range(FREE):
        await anext(stream)
    await end.wait()
    await stream.aclose()


async def by_cancel_of_a_stream(calls: Calls, end: asyncio.Event) -> None:
    """The consumer of a stream is cancelled while it waits for the next outcome."""

    async def consume() -> None:
        async for _ in calls.f.stream(ITEMS, workers=WORKERS, progress=False):
            pass

    task = asyncio.ensure_future(consume())
    await end.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


WAYS = [by_cancel, by_timeout, by_wait_for, by_task_group, by_cancel_of_all, by_aclose, by_cancel_of_a_stream]


# Where all tasks are cancelled, a call is twice, once by the map: what goes on after the first ends by the second.
PAIRS = [(way, one) for way in WAYS for one in BEHAVIOURS if (way, one) != (by_cancel_of_all, "awaits more")]


@pytest.mark.parametrize(("way", "behaviour"), PAIRS, ids=lambda one: getattr(one, "__name__", one))
def test_cancelled_means_ended(way: Any, behaviour: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is begun from then on, and it ends with the last call; that is told, and the next map runs the rest."""

    async def main() -> None:
        calls, end = Calls(behaviour, tmp_path), asyncio.Event()
        ending = asyncio.ensure_future(way(calls, end))
        await calls.until_full()
        end.set()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        while len(calls.cancelled) < WORKERS:
            await asyncio.sleep(0)  # a time-out takes a turn of the clock
        if behaviour in ("awaits more", "swallows all"):
            assert not ending.done(), "a call runs that it waits for"
            calls.late.set()
        for _ in range(TURNS):
            await asyncio.sleep(0)
        assert ending.done()
        await ending
        calls.tasks |= {ending} & asyncio.all_tasks()
        calls.check_ended()
        await calls.check_resumes()

    asyncio.run(main())
    saved = FREE if behaviour.startswith("raises") else FREE + WORKERS
    told = [text for record in caplog.records if "done, all" in (text := record.getMessage())]
    want = f"checkpoint 'cancelled': cancelled with {saved} of 20 done, all of them saved; run the same line again"
    assert [line[: len(want)] for line in told] == ([] if way is by_aclose else [want])


def test_who_is_cancelled_twice_cancels_its_calls_twice(tmp_path: Path) -> None:
    """Calls that have swallowed the first cancellation are given the second, and are waited for again."""

    async def main() -> None:
        calls = Calls("awaits more", tmp_path)
        task = asyncio.ensure_future(calls.map())
        await calls.until_full()
        for _ in range(2):
            assert task.cancel()
            for _ in range(TURNS):
                await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert calls.begun == list(range(FREE + WORKERS))
        assert calls.returned == list(range(FREE))
        assert asyncio.all_tasks() == calls.tasks
        await calls.check_resumes()

    asyncio.run(main())


# --- when ------------------------------------------------------------------------------------------------------------

STEPS = 40  # more turns of the loop than the map takes


def in_turns(behaviour: str, begun: list[int], ended: list[int]) -> Any:
    """A function whose calls take some turns of the loop, and answer a cancellation so."""

    async def call(n: int) -> int:
        begun.append(n)
        left = n % 4
        while left >= 0:
            try:
                await asyncio.sleep(0)
                left -= 1
            except asyncio.CancelledError as error:
                if behaviour == "raising":
                    raise ReadError from error
                if behaviour == "well-behaved":
                    raise
                left = 7 if behaviour == "slow" else left
        ended.append(n)
        return n

    return call


def plain() -> Iterator[int]:
    """Items that are drawn one by one."""
    yield from range(12)


def broken() -> Iterator[int]:
    """Items that raise."""
    yield from range(9)
    raise ConnectionError


async def awaited() -> AsyncIterator[int]:
    """Items that are awaited."""
    for n in range(12):
        await asyncio.sleep(0)
        yield n


async def awaited_in_vain() -> AsyncIterator[int]:
    """Items that are awaited, the last one for ever."""
    for n in range(9):
        yield n
    await asyncio.Event().wait()


SOURCES: list[Callable[[], Any]] = [lambda: range(12), plain, broken, awaited, awaited_in_vain]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=["list", "plain", "broken", "awaited", "awaited in vain"])
@pytest.mark.parametrize("behaviour", ["well-behaved", "swallowing", "raising", "slow"])
def test_it_may_be_cancelled_at_every_await(behaviour: str, source: Callable[[], Any], tmp_path: Path) -> None:
    """In whichever turn of the loop: no call begins after it, each that returned is saved, and the lock is free."""

    async def main(turns: int) -> bool:
        begun: list[int] = []
        ended: list[int] = []
        f: Any = checkpointed(f"turn {turns}", checkpoint_dir=tmp_path, version=1)(in_turns(behaviour, begun, ended))
        tasks = asyncio.all_tasks()
        task = asyncio.ensure_future(f.map(source(), workers=3, progress=False, grace=3600))
        for _ in range(turns):
            await asyncio.sleep(0)
        was_done = not task.cancel()
        count = len(begun)
        try:
            await asyncio.wait_for(asyncio.shield(task), 30)
        except (asyncio.CancelledError, ConnectionError):
            pass
        assert len(begun) == count
        assert set(f.results) == set(ended)
        assert not was_done or len(ended) == 12 or source is broken
        assert dict(f.errors) == {}
        assert not f.runner.records.store.writer.writing
        assert asyncio.all_tasks() == tasks
        f.runner.close()
        return was_done

    done = [asyncio.run(main(turns)) for turns in range(STEPS)]
    assert not done[0]


def test_a_call_that_failed_by_itself_has_failed(tmp_path: Path) -> None:
    """Though the map is cancelled before it could tell: only what answers the cancellation is no failure."""

    async def main() -> None:
        calls = Calls("raises", tmp_path)

        @checkpointed("failing", checkpoint_dir=tmp_path)
        async def f(n: int) -> None:
            if n:
                await asyncio.Event().wait()
            task.cancel()
            raise ReadError

        task = asyncio.ensure_future(f.map(range(2), workers=2, progress=False))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(f.errors) == [0]
        assert asyncio.all_tasks() == calls.tasks

    asyncio.run(main())


def test_a_call_that_was_cancelled_by_its_client_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    """Older time-outs mark the task as cancelled for good; an inner cancellation later is its own item's failure."""

    async def f(n: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        if n == 0:
            asyncio.get_running_loop().call_soon(task.cancel)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                return 0
        raise asyncio.CancelledError

    mapped = checkpointed("clients", checkpoint_dir=tmp_path)(f)
    with pytest.raises(ItemsFailed):
        asyncio.run(mapped.map(range(3), progress=False))
    assert (list(mapped.results), sorted(mapped.errors)) == ([0], [1, 2])


# --- a loop that is closed -------------------------------------------------------------------------------------------


def test_a_loop_that_is_closed_keeps_what_finished_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next map of this process goes on with it."""
    held: list[Any] = []

    async def begin() -> None:
        calls = Calls("raises", tmp_path)
        held.extend((calls, asyncio.ensure_future(calls.map())))
        await calls.until_full()

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda loop, context: None)
    loop.run_until_complete(begin())
    loop.close()
    calls, task = held
    asyncio.run(calls.check_resumes())
    assert sum("loop was closed" in record.getMessage() for record in caplog.records) == 1
    task._log_destroy_pending = False
    task.get_coro().close()
    held.clear()
    del task, calls
    gc.collect()
