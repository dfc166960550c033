"""Calls of coroutine functions: tasks of the event loop that the consumer iterates in."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

from checkpoint import clock
from checkpoint.execution.call import Call
from checkpoint.execution.concurrent import draw_items, raise_unsaved, raise_why
from checkpoint.execution.coordinator import Coordinator
from checkpoint.execution.interfaces import Grouping, Parallelism, PassPort, Task
from checkpoint.execution.scheduler import Schedule
from checkpoint.execution.signals import Interrupts
from checkpoint.execution.tasks import Tasks

__all__ = ["asynchronous"]


async def asynchronous(
    desk: PassPort, call: Call, schedule: Schedule, spread: Parallelism, opened: ExitStack
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
        for waits in draw_items(desk, coordinator, interrupts):
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
        raise_unsaved(coordinator)
    raise_why(coordinator, interrupts)
