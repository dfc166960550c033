"""Workers that are threads of this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from checkpoint.errors import BrokenWorkers
from checkpoint.execution.call import Call
from checkpoint.execution.chunk import Chunk
from checkpoint.execution.interfaces import Early, Grouping, Report, Task, inputs_of

__all__ = ["Threads", "begin_thread", "chunk_of"]


log = logging.getLogger("checkpoint")


def begin_thread(target: Callable[..., Any], name: str, *given: Any) -> threading.Thread:
    """Begin a thread that does not keep the process alive.

    Raises:
        BrokenWorkers: the system gives none.
    """
    thread = threading.Thread(target=target, name=name, args=given, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise BrokenWorkers(
            f"the system gives this process no thread more ({error}): the limit of processes and threads of the user "
            "(`ulimit -u`), or of the job or container (pids.max), is reached. Raise it, or use fewer workers"
        ) from error
    return thread


def chunk_of(task: Task, report: Report) -> Chunk:
    """The calls of a task of several, which gives back the others where one of them takes a step."""
    return Chunk(lambda place, answers: report([(task[:place] + task[place + 1 :], Early(answers))]))


class Threads:
    """So many threads, each begun when all others are at work. They never keep the process alive.

    Args:
        call: what they make.
        count: how many at most.
        report: is told tasks with their answers.
    """

    shares_blame = False

    def __init__(self, call: Call, count: int, report: Report) -> None:
        self._call = call
        self._count = count
        self._grouping = Grouping(count)
        self._report = report
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0  # threads that are at a task, or have one coming
        self._ended: list[None] = []  # one for each task that no thread is at any more, and `_busy` still counts
        self._reporting: set[int] = set()  # threads that come back for another task when it has been dealt with

    def start(self, task: Task) -> None:
        """Have a worker make the task's calls; from any thread, one at a time."""
        while self._ended:
            self._ended.pop()
            self._busy -= 1
        me = threading.get_ident()
        if me in self._reporting:  # it deals itself; no other may count on it, since that may take a while
            self._reporting.discard(me)
            self._busy -= 1
        if self._busy == len(self._threads) < self._count:
            try:
                self._threads.append(begin_thread(self._work, f"checkpoint-worker-{len(self._threads)}"))
            except BrokenWorkers as error:  # those that there are do the work
                if not self._threads:
                    raise
                log.warning("no more than %d of %d threads: %s", len(self._threads), self._count, error)
                self._count = len(self._threads)
        self._busy += 1
        self._tasks.put(task)

    @property
    def settles(self) -> bool:
        """Whether a thread that reports has the time; where calls end fast, the coordinator takes many together."""
        return self._grouping.size == 1

    def _work(self) -> None:
        many, report, get, batch = self._call.many, self._report, self._tasks.get, self._call.batch
        me, reporting = threading.get_ident(), self._reporting
        while (task := get()) is not None:
            chunk = chunk_of(task, report) if len(task) > 1 else None
            answers = many(inputs_of(task, batch=batch), chunk=chunk)
            if chunk is not None and chunk.is_split:
                task = task[chunk.first : chunk.first + 1]
            reporting.add(me)
            self._grouping.dealt(1)
            report([(task, answers)])
            if me in reporting:
                reporting.discard(me)
                self._ended.append(None)
            task = answers = chunk = None  # type: ignore[assignment]  # what is settled is let go of

    def close(self) -> None:
        """Let the threads end once they are done; nobody waits for them."""
        for _ in self._threads:
            self._tasks.put(None)
