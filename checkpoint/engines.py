"""How the function is run: short drivers between `admit` and `settle`, which they are given.

Items are drawn and admitted where the consumer is; calls are made here, or by workers under a coordinator, so that
workers and event loops need not wait for the disk. (A loop, the thread that serves processes, and a worker thread where
calls end seldom, settle by themselves while that takes less than two milliseconds: handing over and back takes longer.)

Bounds: no more than ``workers x chunksize`` calls (or one batch a worker) are begun and not on disk. Fewer than as many
again are drawn ahead, none for a single worker (and 64 more of a list, a tuple or a range, whose items are in memory
anyway); and so many, and 32, wait for a retry before nothing is drawn. Engines know nothing of keys, disks or bars.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

from checkpoint import clock
from checkpoint.calls import Answer, Call, Fatal, ending, failed
from checkpoint.coordinator import Batches, Coordinator, Desk, Judge, Spread, Workers
from checkpoint.errors import StoreError, quote
from checkpoint.interrupts import Interrupts
from checkpoint.outcomes import Done, Success, Unit
from checkpoint.schedule import Attempt, BadCost, Schedule
from checkpoint.surroundings import of_thread
from checkpoint.workers import Grouping, Report, Task, Tasks, inputs_of

__all__ = ["asynchronous", "concurrent", "serial"]

log = logging.getLogger("checkpoint")

_END: Final = object()
_UNSEEN = 64  # items that are drawn before others have a turn
_LOOK_UP = 0.5  # seconds: a signal that comes just as the main thread goes to sleep does not wake it


# --- in the caller's thread ------------------------------------------------------------------------------------------


def serial(desk: Desk, call: Call, schedule: Schedule, spread: Spread) -> Iterator[None]:
    """One call after the other, in this thread; while a retry waits, others go on."""
    with Interrupts(desk.name, spread.grace, lambda: None) as interrupts:
        one_by_one = _straight if schedule.is_plain and not call.batch else _scheduled
        restore = of_thread()
        try:
            yield from one_by_one(desk, call, schedule, interrupts)
        finally:
            if restore is not None:
                restore()
        if interrupts.asked:
            raise interrupts.as_exception()


def _straight(desk: Desk, call: Call, schedule: Schedule, interrupts: Interrupts) -> Iterator[None]:
    """What `_scheduled` comes to where nothing waits and each call is of one item: this is the per-item path."""
    judge = Judge(schedule)
    for item in desk.items:
        unit = desk.admit(item)
        if unit is not None:
            answer = call.one(item)
            if type(answer) is tuple:
                _settle(desk, [Done(unit, Success(answer[0], answer[1], 1))])
            elif type(answer) is Fatal:
                raise ending(answer.exception, desk.name, [unit])
            else:
                _settle(desk, judge.dones([Attempt([unit])], [answer]))
        yield
        if interrupts.asked or desk.verdict is not None:
            return


def _scheduled(desk: Desk, call: Call, schedule: Schedule, interrupts: Interrupts) -> Iterator[None]:
    items, judge, batches = iter(desk.items), Judge(schedule), Batches(call)
    more = True
    while desk.verdict is None and not interrupts.asked:
        attempt, answers = _take(schedule)
        if attempt is None and more and schedule.room(1) > 0:
            item = next(items, _END)
            more = item is not _END
            unit = desk.admit(item) if more else None
            for new in batches.add(unit, flush=not more):
                schedule.add(new)
            if unit is None:
                yield
                continue
            attempt, answers = _take(schedule)
        if attempt is None:
            wait = schedule.wait()
            if wait is not None:
                clock.sleep(min(wait, 1.0))  # who is asked to end looks up
            elif not more:
                break
            continue
        if not answers:
            answers = call.many(inputs_of([attempt], batch=call.batch))
            if type(answers[0]) is Fatal:
                raise ending(answers[0].exception, desk.name, attempt.units)
        finished = judge.dones([attempt], answers)
        if finished:
            _settle(desk, finished)
            yield


def _settle(desk: Desk, finished: list[Done]) -> None:
    try:
        desk.settle(finished)
    except StoreError:
        desk.settle([])  # once more; nothing else runs


def _take(schedule: Schedule) -> tuple[Attempt | None, list[Answer]]:
    """A call that may start now; with its answer already where it never can."""
    try:
        return schedule.take(), []
    except BadCost as bad:
        return bad.attempt, [failed(bad.error)]


# --- with workers ----------------------------------------------------------------------------------------------------


def _draw(desk: Desk, coordinator: Coordinator, interrupts: Interrupts) -> Iterator[bool | None]:
    """Draw, admit and hand over until all is settled or it must end, and what runs has finished.

    Yields whether to wait until woken; whoever consumes may look for outcomes each time. None: others may have a turn.
    """

    def goes_on() -> bool:
        return not (coordinator.stopped or interrupts.asked)

    units_of = _several if desk.in_memory and not desk.is_watched else _one_by_one
    for units, others in units_of(desk, coordinator):
        if units:
            coordinator.add(units)
        if others is not False or desk.is_watched:
            yield others
        while (desk.is_crowded or coordinator.room <= 0) and goes_on():
            yield True
        if not goes_on():
            break
    else:
        coordinator.all_drawn()
    while not coordinator.is_done and goes_on():
        yield True
    coordinator.stop()
    while not coordinator.is_quiet:
        yield True


def _one_by_one(desk: Desk, _: Coordinator) -> Iterator[tuple[list[Unit], bool | None]]:
    """What was drawn and admitted, and whether others may have a turn (None) or not (False)."""
    for drawn, item in enumerate(desk.items, 1):
        unit = desk.admit(item)
        yield [] if unit is None else [unit], False if drawn % _UNSEEN else None


def _several(desk: Desk, coordinator: Coordinator) -> Iterator[tuple[list[Unit], None]]:
    """The same for items in memory: as many at a time as there is room for."""
    while (units := desk.admit_next(min(max(coordinator.room, 1), _UNSEEN))) is not None:
        yield units, None


def _raise_why(coordinator: Coordinator, interrupts: Interrupts) -> None:
    if coordinator.failure is not None:
        raise coordinator.failure
    if interrupts.asked:
        raise interrupts.as_exception()


def _raise_unsaved(coordinator: Coordinator) -> None:
    """The way out goes on, unless it would lose what the store could not save."""
    failure, leaving = coordinator.failure, sys.exception()
    if isinstance(failure, StoreError) and leaving is not None and leaving is not failure:
        if isinstance(leaving, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            keys = quote(list(failure.unsaved)[:10])
            log.error("%s; %d results are not on disk, those of keys %s", failure, len(failure.unsaved), keys)
        else:
            raise failure from leaving


def _at_exit() -> bool:
    """Whether the process ends, which nothing that runs here may delay."""
    return not threading.main_thread().is_alive()


def concurrent(
    desk: Desk, call: Call, schedule: Schedule, spread: Spread, hire: Callable[[Report], Workers]
) -> Iterator[None]:
    """Draw in this thread, call on workers. A consumer that leaves waits `grace` seconds for what runs."""
    wakes: SimpleQueue[None] = SimpleQueue()

    def wake() -> None:
        if wakes.empty() and coordinator.wants_drawer:
            wakes.put(None)

    def interrupt() -> None:
        coordinator.stopped = True  # not `stop`: a handler must not wait for a lock
        wake()

    def report(finished: list[tuple[Task, Any]]) -> None:
        if workers.settles and coordinator.deal_at_once(finished):
            wake()
        else:
            for task, answers in finished:
                coordinator.report(task, answers)

    coordinator = Coordinator(desk, call, schedule, spread, wake)
    workers = hire(report)
    with Interrupts(desk.name, spread.grace, interrupt) as interrupts:
        try:
            coordinator.begin(workers)
            for waits in _draw(desk, coordinator, interrupts):
                if waits:
                    with suppress(Empty):
                        wakes.get(timeout=_LOOK_UP)
                yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # who consumes has left, or the items raised
            coordinator.stop()
            end = clock.monotonic() + spread.grace
            while not (coordinator.is_quiet or coordinator.is_dealing_here or interrupts.over or _at_exit()):
                if (left := end - clock.monotonic()) <= 0:
                    break
                with suppress(Empty):
                    wakes.get(timeout=min(left, _LOOK_UP))
            raise
        finally:
            try:
                coordinator.close()
            finally:
                workers.close()
            _raise_unsaved(coordinator)
        _raise_why(coordinator, interrupts)


async def asynchronous(
    desk: Desk, call: Call, schedule: Schedule, spread: Spread, opened: ExitStack
) -> AsyncIterator[None]:
    """Draw in this event loop, call on tasks of it. Where a consumer leaves, what runs is cancelled.

    What must be let go of is left with `opened`: a consumer that leaves is not always awaited.
    """
    import asyncio

    loop, consumer = asyncio.get_running_loop(), asyncio.current_task()
    assert consumer is not None
    woken, tasks = asyncio.Event(), Tasks(call)

    def look() -> None:
        tasks.look()
        if coordinator.wants_drawer:
            woken.set()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop is closed, and nobody looks any more
            loop.call_soon_threadsafe(look)

    async def wait(timeout: float | None = None) -> None:
        if timeout is None:
            await woken.wait()
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(woken.wait(), timeout)
        woken.clear()

    def interrupt() -> None:
        coordinator.stopped = True  # not `stop`: a handler must not wait for a lock
        wake()

    def leave() -> None:
        raise interrupts.as_exception()

    def at_once() -> bool:
        # Not from the handler itself: it may have interrupted a call, which would take the exception for its own.
        loop.call_soon_threadsafe(consumer.cancel if is_here else leave)
        return True

    is_here = True  # and the consumer does not await something else
    coordinator = Coordinator(desk, call, schedule, spread, wake)
    interrupts = opened.enter_context(Interrupts(desk.name, spread.grace, interrupt, at_once))

    finished: list[tuple[Task, Any]] = []
    grouping = Grouping(spread.slots)

    def hand_over() -> None:
        reports = finished[:]
        finished.clear()
        if not reports:
            return
        grouping.dealt(len(reports))
        if coordinator.deal_at_once(reports):
            look()
        else:
            for task, answers in reports:
                coordinator.report(task, answers)

    def report(task: Task, answers: Any) -> None:
        finished.append((task, answers))
        if len(finished) >= grouping.size:
            hand_over()
        elif len(finished) == 1:
            loop.call_soon(hand_over)

    tasks.report = report
    opened.callback(coordinator.close)
    opened.callback(hand_over)
    opened.callback(tasks.close)
    coordinator.begin(tasks)
    try:
        for waits in _draw(desk, coordinator, interrupts):
            tasks.look()
            if waits:
                await wait()
            elif waits is None:
                await asyncio.sleep(0)
            is_here = False
            yield
            is_here = True
    except asyncio.CancelledError:
        if not interrupts.over:
            raise
        consumer.uncancel()
        raise interrupts.as_exception() from None
    except (GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # the items raised
        is_here = True
        coordinator.stop()
        end = clock.monotonic() + spread.grace
        while not coordinator.is_quiet and (left := end - clock.monotonic()) > 0:
            await wait(left)
        raise
    finally:
        tasks.close()
        await tasks.closed()
        hand_over()
        coordinator.close()
        _raise_unsaved(coordinator)
    _raise_why(coordinator, interrupts)
