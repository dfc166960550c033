"""Calls of coroutine functions: tasks of the event loop that the consumer iterates in.

The promise: a pass that is cancelled begins nothing more, whatever its calls answer. It cancels them once for each time
that it is cancelled itself, ends in the turn of the loop in which the last of them has ended, and has saved by then
what finished. Only the second interrupt, or the end of the grace, leaves calls that do not end.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
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
from checkpoint.outcomes import NOT_YET

__all__ = ["AwaitedItems", "LoopDriver"]

log = logging.getLogger("checkpoint")
_PATIENCE = 1.0  # seconds for which a loop that is busy is waited for, and calls that the second interrupt cancels


class AwaitedItems:
    """The items of an asynchronous iterable, for who draws without waiting: `NOT_YET` stands for one that is awaited.

    One task of the loop draws them, each when it is asked for, and closes a generator that is left early.

    Args:
        given: the iterable.

    Attributes:
        wake: called in the loop when one is there that was not yet, or there are no more.
        task: that draws; None before the first is asked for.
    """

    def __init__(self, given: AsyncIterable[Any]) -> None:
        self._given = given
        self._ready: deque[Any] = deque()
        self._asked: Any = None  # an event
        self._error: BaseException | None = None
        self._is_over = False
        self.wake: Callable[[], object] = lambda: None
        self.task: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        import asyncio

        if self._ready:
            return self._ready.popleft()
        if self._is_over:
            raise StopIteration if self._error is None else self._error
        if self.task is None:
            self._asked = asyncio.Event()
            self.task = asyncio.get_running_loop().create_task(self._draw())
        self._asked.set()
        return NOT_YET

    async def _draw(self) -> None:
        source: Any = None
        try:
            source = aiter(self._given)
            async for item in source:
                self._asked.clear()
                self._ready.append(item)
                self.wake()
                await self._asked.wait()
                if self._is_over:
                    break
        except GeneratorExit:  # its loop is gone
            raise
        except BaseException as error:  # raised where the items are drawn
            self._error = error
        try:
            if (close := getattr(source, "aclose", None)) is not None:
                await close()
        except BaseException as error:
            self._error = error if self._error is None else self._error
        self._is_over = True
        self.wake()

    def close(self) -> None:
        """Draw no more; in the loop, or when it is closed."""
        self._is_over = True
        if self.task is not None:
            with suppress(RuntimeError):
                self.task.cancel()


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
        source: the items, where they are awaited.
    """

    __slots__ = (
        "_cancels",
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
        "_source",
        "_tasks",
        "_woken",
    )

    def __init__(
        self,
        desk: PassPort,
        call: Call,
        schedule: Schedule,
        spread: Parallelism,
        opened: ExitStack,
        source: AwaitedItems | None = None,
    ) -> None:
        import asyncio

        self._desk, self._grace, self._opened, self._source = desk, spread.grace, opened, source
        self._loop = asyncio.get_running_loop()
        self._look_who_consumes()
        self._woken = asyncio.Event()
        self._finished: list[tuple[Task, Any]] = []  # and not handed over yet
        self._grouping = Grouping(spread.slots)
        self._tasks = Tasks(call, self._is_ending)
        self._tasks.report = self.report
        self._coordinator = Coordinator(desk, call, schedule, spread, self.wake, partial(look_after, opened))
        self._interrupts = Interrupts(desk.name, spread.grace, self.interrupt, self.end_at_once)

    def _look_who_consumes(self) -> None:
        """The task that runs has come for the next step: it is the one to be cancelled."""
        import asyncio

        consumer = asyncio.current_task()
        assert consumer is not None
        self._is_here = True  # and the consumer does not await something else
        self._consumer = weakref.ref(consumer)  # its result may hold what holds us
        self._cancels = consumer.cancelling()  # how often it had been cancelled, and went on

    def _is_ending(self) -> bool:
        """Whether the consumer waits here and was cancelled: it will know when its turn comes."""
        consumer = self._consumer() if self._is_here else None
        return consumer is not None and consumer.cancelling() > self._cancels

    async def run(self) -> AsyncGenerator[None, None]:
        """Make the calls; each time that this yields there may be outcomes. A consumer that leaves cancels what runs.

        Raises:
            StoreError: results could not be saved.
            KeyboardInterrupt, SystemExit: a signal asked for the end.
        """
        import asyncio

        self._begin()
        try:
            for waits in draw_items(self._desk, self._coordinator, self._interrupts):
                self._tasks.look()
                if waits:
                    await self.wait()
                elif waits is None:
                    await asyncio.sleep(0)
                self._is_here = False
                yield
                self._look_who_consumes()
        except BaseException as error:
            if self._is_here and isinstance(error, GeneratorExit):
                raise  # it is dropped where it waits, and can wait for nothing: what is `opened` ends the tasks
            await self._end(error)
        else:
            await self._end(None)

    async def _end(self, error: BaseException | None) -> None:
        """End the pass, by the error if by any, and raise why: that, a later cancellation, or what the store lacks."""
        import asyncio

        self._look_who_consumes()
        coordinator, interrupts = self._coordinator, self._interrupts
        coordinator.stop()
        if not isinstance(error, asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit | None):
            try:  # the items raised
                await self._let_finish()
            except asyncio.CancelledError as cancelled:
                error = cancelled
        error = await self._cancel_and_wait() or error
        self.hand_over()
        coordinator.close()
        interrupts.let_go()
        if isinstance(error, asyncio.CancelledError) and interrupts.over:
            if (consumer := self._consumer()) is not None:
                consumer.uncancel()
            error = interrupts.as_exception()
        raise_unsaved(coordinator, error)
        if error is not None:
            raise error
        raise_why(coordinator, interrupts)

    async def _cancel_and_wait(self) -> BaseException | None:
        """Cancel what runs, and wait for its end; returns the cancellation that came meanwhile, if one did."""
        import asyncio

        cancelled = None
        self._cancel()
        while running := self._running():
            at_once = self._interrupts.over
            try:
                await asyncio.wait(running, timeout=_PATIENCE if at_once else None)
            except asyncio.CancelledError as error:
                cancelled = error
                self._cancel()
            else:
                if at_once:
                    break
        return cancelled

    def _running(self) -> list[Any]:
        drawing = [] if self._source is None or self._source.task is None else [self._source.task]
        return [task for task in [*self._tasks.all, *drawing] if not task.done()]

    def _begin(self) -> None:
        """Watch signals, and start the coordinator; leave with `opened` how each ends, the tasks first."""
        self._opened.enter_context(self._interrupts)
        self._opened.callback(self._coordinator.close)
        self._opened.callback(self._end_tasks)
        if self._source is not None:
            self._source.wake = self._woken.set
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
        if self._loop.is_closed():
            log.warning(
                "checkpoint %r: the event loop was closed while a map of it ran; what finished is saved; run the same "
                "line again for the rest",
                self._desk.name,
            )
        reports, self._finished = self._finished, []
        for task, answers in reports:
            self._coordinator.report(task, answers)

    def _cancel(self) -> None:
        self._tasks.close()
        if self._source is not None:
            self._source.close()
        self.hand_over()

    async def _let_finish(self) -> None:
        """Wait at most the grace for what runs."""
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
                async with asyncio.timeout(timeout):  # `wait_for` of Python 3.11 may lose a cancellation
                    await self._woken.wait()
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
