"""Workers that are tasks of an event loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from types import coroutine
from typing import Any

from checkpoint.execution.answers import Fatal, failed
from checkpoint.execution.call import Call
from checkpoint.execution.interfaces import Task

__all__ = ["Tasks"]


class Tasks:
    """Tasks of the event loop that runs, each begun when it is needed, each making one call after the other.

    Args:
        call: what they make; its function gives awaitables.

    Attributes:
        report: is told a task with its answers.
    """

    report: Callable[[Task, Any], None]
    settles = True
    shares_blame = False

    def __init__(self, call: Call) -> None:
        self._call = call
        self._waiting: deque[Task] = deque()
        self._coming = 0  # loop tasks that have reported, and look for more by themselves
        self._idle: list[Any] = []  # a future for each that has nothing to do
        self._tasks: list[Any] = []
        self._kind = _task_kind()
        self._context = copy_context()  # the loop may look on behalf of another thread; each call has a copy of its own

    def start(self, task: Task) -> None:
        """To be started when the loop looks; from any thread."""
        self._waiting.append(task)

    def look(self) -> None:
        """Start what waits, and nobody comes for; in the loop."""
        if len(self._waiting) <= self._coming:
            return
        import asyncio  # only here: who has no coroutines need not wait for it

        for _ in range(len(self._waiting) - self._coming):
            if self._idle:
                future = self._idle.pop()
                if not future.done():  # else it was cancelled
                    future.set_result(self._waiting.popleft())
            else:
                work = self._work(self._waiting.popleft())
                task = self._kind(work, loop=asyncio.get_running_loop(), context=self._context.copy())
                self._tasks.append(task)

    async def _work(self, task: Task) -> None:
        import asyncio

        loop, batch, awaited = asyncio.get_running_loop(), self._call.batch, self._call.awaited
        waiting = self._waiting
        while True:
            units = task[0].units
            try:
                answer = await awaited([unit.item for unit in units] if batch else units[0].item)
            except asyncio.CancelledError as error:
                if not self._is_own(asyncio.current_task()):
                    self.report(task, [Fatal(error)])
                    raise
                answer = failed(error)
            except BaseException as error:  # of a hook of the user's, while a failure was described
                answer = Fatal(error)
            self._coming += 1
            self.report(task, [answer])
            task = answer = None  # type: ignore[assignment]  # what is settled is let go of
            try:
                if not waiting:
                    await _a_turn()  # until then others have finished, and are dealt with together
            finally:
                self._coming -= 1
            if waiting:
                task = waiting.popleft()
                continue
            idle = loop.create_future()
            self._idle.append(idle)
            task = await idle

    def close(self) -> None:
        """Cancel all; in the loop, or when it is closed."""
        for task in self._tasks:
            with suppress(RuntimeError):
                task.cancel()

    def _is_own(self, task: Any) -> bool:
        """Whether the function cancelled the task that it runs in, and nobody else did."""
        own: bool = task.own > 0 and task.cancelling() == task.own
        while own and task.uncancel():
            pass
        task.own = 0
        return own

    async def closed(self) -> None:
        """Wait for what they do when they are cancelled."""
        import asyncio

        await asyncio.gather(*self._tasks, return_exceptions=True)


@coroutine
def _a_turn() -> Generator[None, None, None]:
    """Let the event loop go round once."""
    yield


@cache
def _task_kind() -> Any:
    """A kind of task that knows how often it cancelled itself."""
    import asyncio

    class Worker(asyncio.Task[None]):
        own = 0

        def cancel(self, msg: Any = None) -> bool:
            self.own += asyncio.current_task(self.get_loop()) is self
            return super().cancel(msg)

    return Worker
