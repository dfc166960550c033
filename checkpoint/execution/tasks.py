"""Workers that are tasks of an event loop.

The promise: once they are closed, or who consumes is being cancelled, no call is begun, whatever those that run answer.
A value that comes all the same is kept. An exception that answers the cancellation is no failure of the item.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import suppress
from contextvars import copy_context
from functools import cache
from types import coroutine
from typing import Any

from checkpoint.execution.answers import Failed, Fatal, failed
from checkpoint.execution.call import Call
from checkpoint.execution.interfaces import Task

__all__ = ["Tasks"]


class Tasks:
    """Tasks of the event loop that runs, each begun when it is needed, each making one call after the other.

    Args:
        call: what they make; its function gives awaitables.
        is_ending: says whether a cancellation is on its way to who consumes: the loop may run these first.

    Attributes:
        report: is told a task with its answers.
        all: the loop tasks that were begun.
    """

    report: Callable[[Task, Any], None]
    settles = True
    shares_blame = False

    def __init__(self, call: Call, is_ending: Callable[[], bool]) -> None:
        self._call, self._is_ending = call, is_ending
        self._is_closed = False
        self._waiting: deque[Task] = deque()
        self._coming = 0  # loop tasks that have reported, and look for more by themselves
        self._idle: list[Any] = []  # a future for each that has nothing to do
        self.all: list[Any] = []
        self._kind = _task_kind()
        self._context = copy_context()  # the loop may look on behalf of another thread; each call has a copy of its own

    def start(self, task: Task) -> None:
        """To be started when the loop looks; from any thread."""
        self._waiting.append(task)

    def look(self) -> None:
        """Start what waits, and nobody comes for; in the loop."""
        if len(self._waiting) <= self._coming or self._is_over():
            return
        import asyncio  # only here: who has no coroutines need not wait for it

        while len(self._waiting) > self._coming:
            if self._idle:
                future = self._idle.pop()
                if not future.done():  # else it was cancelled
                    future.set_result(self._waiting.popleft())
            else:
                work = self._work(self._waiting.popleft())
                task = self._kind(work, loop=asyncio.get_running_loop(), context=self._context.copy())
                self.all.append(task)

    def _is_over(self) -> bool:
        return self._is_closed or self._is_ending()

    async def _work(self, task: Task) -> None:
        import asyncio

        loop, waiting = asyncio.get_running_loop(), self._waiting
        while not self._is_over():
            answer = await self._answer(task)
            if self._is_over() and _answers_cancellation(answer):
                return
            self._coming += 1
            self.report(task, [answer])
            task = answer = None  # type: ignore[assignment]  # what is settled is let go of
            try:
                if not (waiting or self._is_closed):
                    await _a_turn()  # until then others have finished, and are dealt with together
            finally:
                self._coming -= 1
            if waiting:
                task = waiting.popleft()
                continue
            if self._is_over():
                return
            idle = loop.create_future()
            self._idle.append(idle)
            task = await idle

    async def _answer(self, task: Task) -> Any:
        import asyncio

        units, worker = task[0].units, asyncio.current_task()
        try:
            answer = await self._call.awaited([unit.item for unit in units] if self._call.batch else units[0].item)
        except asyncio.CancelledError as error:
            if not self._forget_cancels(worker):
                if not self._is_closed:
                    self.report(task, [Fatal(error)])
                raise
            return failed(error)
        except BaseException as error:  # of a hook of the user's, while a failure was described
            return Fatal(error)
        if worker.cancelling():  # type: ignore[union-attr]  # it runs
            self._forget_cancels(worker)
        return answer

    def close(self) -> None:
        """Begin nothing more, and cancel what runs; in the loop, or when it is closed."""
        self._is_closed = True
        self._waiting.clear()
        for task in self.all:
            with suppress(RuntimeError):
                task.cancel()

    def _forget_cancels(self, task: Any) -> bool:
        """Make the task fit for the next call; returns whether the function cancelled it, and nobody else did.

        A client's time-out may leave it marked as cancelled, which an inner task's cancellation would be taken for.
        """
        own: bool = task.own > 0 and task.cancelling() == task.own
        while task.uncancel():
            pass
        task.own = 0
        return own


def _answers_cancellation(answer: Any) -> bool:
    """Whether a call failed because it was cancelled, with an exception of its own."""
    import asyncio

    todo: list[Any] = [answer.failure.exception] if type(answer) is Failed else []
    seen: list[Any] = []
    while todo:
        error = todo.pop()
        if isinstance(error, asyncio.CancelledError):
            return True
        if error is not None and not any(error is other for other in seen):
            seen.append(error)
            inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
            todo += (error.__cause__, error.__context__, *inner)
    return False


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
