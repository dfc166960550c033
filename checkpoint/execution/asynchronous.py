"""Calls of coroutine functions: tasks of the event loop that the consumer iterates in."""

from __future__ import annotations

import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from checkpoint import clock
from checkpoint.execution.call import Call
from checkpoint.execution.concurrent import draw_items, raise_unsaved, raise_why
from checkpoint.execution.coordinator import Coordinator
from checkpoint.execution.interfaces import Grouping, Parallelism, PassPort, Task
from checkpoint.execution.leaving import look_after, watch
from checkpoint.execution.scheduler import Schedule
from checkpoint.execution.signals import Interrupts
from checkpoint.execution.tasks import Tasks

__all__ = ["LoopDriver"]

_PATIENCE = 1.0  # seconds for which a loop that is busy is waited for


class LoopDriver:
    """Draws items in the event loop that runs when it is made, and has them called on tasks of it.

    The tasks call `report`; the coordinator's thread calls `wake`; signal handlers call `interrupt` and `end_at_once`.
    Everything else happens in the loop.

    Args:
        desk: the pass.
        call: what is called.
        schedule: when each call may start.
        spread: how many calls run at once, and how long they may go on once the pass is to end.
        opened: closes what is left open: a consumer that leaves is not always awaited.
    """

    __slots__ = (
        "_consumer",
        "_coordinator",
        "_desk",
        "_finished",
        "_grace",
        "_grouping",
        "_interrupts",
        "_is_here",
        "_loop",
        "_opened",
        "_tasks",
        "_woken",
    )

    def __init__(self, desk: PassPort, call: Call, schedule: Schedule, spread: Parallelism, opened: ExitStack) -> None:
        import asyncio

        self._desk, self._grace, self._opened = desk, spread.grace, opened
        consumer = asyncio.current_task()
        assert consumer is not None
        self._loop, self._consumer = (
            asyncio.get_running_loop(),
            weakref.ref(consumer),
        )  # its result may hold what holds us
        self._is_here = True  # and the consumer does not await something else
        self._woken = asyncio.Event()
        self._finished: list[tuple[Task, Any]] = []  # and not handed over yet
        self._grouping = Grouping(spread.slots)
        self._tasks = Tasks(call)
        self._tasks.report = self.report
        self._coordinator = Coordinator(desk, call, schedule, spread, self.wake, partial(look_after, opened))
        self._interrupts = Interrupts(desk.name, spread.grace, self.interrupt, self.end_at_once)

    async def run(self) -> AsyncIterator[None]:
        """Make the calls; each time that this yields there may be outcomes. A consumer that leaves cancels what runs.

        Raises:
            StoreError: results could not be saved.
            KeyboardInterrupt, SystemExit: a signal asked for the end.
        """
        import asyncio

        self._begin()
        tasks, interrupts = self._tasks, self._interrupts
        try:
            for waits in draw_items(self._desk, self._coordinator, interrupts):
                tasks.look()
                if waits:
                    await self.wait()
                elif waits is None:
                    await asyncio.sleep(0)
                self._is_here = False
                yield
                self._is_here = True
        except asyncio.CancelledError:
            if not interrupts.over:
                raise
            if (consumer := self._consumer()) is not None:
                consumer.uncancel()
            raise interrupts.as_exception() from None
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # the items raised
            self._is_here = True
            await self._let_finish()
            raise
        finally:
            tasks.close()
            await tasks.closed()
            self.hand_over()
            self._coordinator.close()
            raise_unsaved(self._coordinator)
        raise_why(self._coordinator, interrupts)

    def _begin(self) -> None:
        """Watch signals, and start the coordinator; leave with `opened` how each ends, the tasks first."""
        self._opened.enter_context(self._interrupts)
        self._opened.callback(self._coordinator.close)
        self._opened.callback(self._end_tasks)
        watch(self._opened, self._loop.is_closed)
        self._coordinator.begin(self._tasks)

    def _end_tasks(self) -> None:
        """Cancel the tasks, and hand over what finished: in the loop, where it runs."""
        import asyncio

        self._coordinator.stop()
        if asyncio._get_running_loop() is self._loop:
            self._cancel()
            return
        done = threading.Event()
        try:
            if self._loop.is_running():
                self._loop.call_soon_threadsafe(self._cancel)
                self._loop.call_soon_threadsafe(done.set)
                done.wait(_PATIENCE)
        except RuntimeError:  # it is closed
            pass
        reports, self._finished = self._finished, []
        for task, answers in reports:
            self._coordinator.report(task, answers)

    def _cancel(self) -> None:
        self._tasks.close()
        self.hand_over()

    async def _let_finish(self) -> None:
        """Start nothing more, and wait at most the grace for what runs."""
        self._coordinator.stop()
        end = clock.monotonic() + self._grace
        while not self._coordinator.is_quiet and (left := end - clock.monotonic()) > 0:
            await self.wait(left)

    # in the loop

    def look(self) -> None:
        """Start the tasks that wait; have the consumer draw where there is something to do for it."""
        self._tasks.look()
        if self._coordinator.wants_drawer:
            self._woken.set()

    async def wait(self, timeout: float | None = None) -> None:
        """Wait until `look` finds something to do for the consumer, or this many seconds are over."""
        import asyncio

        if timeout is None:
            await self._woken.wait()
        else:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), timeout)
        self._woken.clear()

    def report(self, task: Task, answers: Any) -> None:
        """Take the answers to a task; hand them over alone, or with others that end in the same turn of the loop."""
        finished = self._finished
        finished.append((task, answers))
        if len(finished) >= self._grouping.size:
            self.hand_over()
        elif len(finished) == 1:
            self._loop.call_soon(self.hand_over)

    def hand_over(self) -> None:
        """Have the coordinator settle all that finished: here where that is quick, else in its thread."""
        reports = self._finished[:]
        self._finished.clear()
        if not reports:
            return
        self._grouping.dealt(len(reports))
        if self._coordinator.deal_at_once(reports):
            self.look()
        else:
            for task, answers in reports:
                self._coordinator.report(task, answers)

    # from other threads and from signal handlers

    def wake(self) -> None:
        """Have the loop look."""
        with suppress(RuntimeError):  # the loop is closed, and nobody looks any more
            self._loop.call_soon_threadsafe(self.look)

    def interrupt(self) -> None:
        """The first signal: start nothing more."""
        self._coordinator.stopped = True  # not `stop`: a handler must not wait for a lock
        self.wake()

    def end_at_once(self) -> bool:
        """The second signal: cancel the consumer where it waits for this pass, else end the loop's run."""
        # Not from the handler itself: it may have interrupted a call, which would take the exception for its own.
        consumer = self._consumer() if self._is_here else None
        self._loop.call_soon_threadsafe(self._leave if consumer is None else consumer.cancel)
        return True

    def _leave(self) -> None:
        raise self._interrupts.as_exception()
