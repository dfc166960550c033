"""Between the workers and the disk: what becomes of answers, and what is called next.

The coordinator is a thread that takes all that has finished, has it settled in one go, and starts what may start by the
schedule; where that takes no time worth mentioning, whoever reports does it instead. What finishes is on disk at once,
whether or not anyone consumes it; and a worker's place is free again when its result is there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from enum import Enum, auto
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final

from checkpoint import clock, locks
from checkpoint.errors import StoreError
from checkpoint.execution.answers import Fatal, failed
from checkpoint.execution.call import Call, ending
from checkpoint.execution.chunk_size import ChunkSize
from checkpoint.execution.interfaces import Broken, Died, Early, Parallelism, PassPort, Task, Unsent, Workers
from checkpoint.execution.judge import AnswerHandler, Batches, unfinished
from checkpoint.execution.scheduler import Attempt, BadCost, Schedule
from checkpoint.execution.threads import begin_thread
from checkpoint.execution.transport import unpack
from checkpoint.outcomes import Done, Success, Unit

__all__ = ["Coordinator"]


_AHEAD = 64  # items in memory that are drawn ahead: who draws and who calls take turns less often
_SWIFT = 0.002  # seconds
_LOOKS = 0.5  # seconds from look to look
_TOLD = 1.0  # seconds: the bar says how long calls have been held
_LOOK: Final[tuple[Task, Any]] = ([], [])  # a report of nothing: look at the schedule again
_BACK: Final = object()  # in place of answers: the task's key ran in another pass


class Saving(Enum):
    """Whether what finished can be saved."""

    WORKS = auto()
    WAITS = auto()
    FAILED = auto()


class Saver:
    """Has a pass settle what finished, and gives a store that failed a second try::

        WORKS ─── the store fails ───► WAITS: nothing starts, and what still finishes is kept with what failed
          ▲                              │
          │                              │ nothing runs any more, or the pass ends: the second try
          └────────── it saves ──────────┤
                                         └─ it fails ─► FAILED: the error holds the values that are not on disk

    Args:
        desk: whose `settle` it calls.

    Attributes:
        state: where it is.
        is_swift: whether settling took no time worth mentioning when it was last done.
    """

    def __init__(self, desk: PassPort) -> None:
        self._desk = desk
        self.state = Saving.WORKS
        self.is_swift = False
        self._failed = 0  # how many the desk has and could not save
        self._late: list[Done] = []  # finished since

    def settle(self, finished: list[Done]) -> int:
        """Settle what finished; returns how many are settled: all, or none where the store fails or has failed."""
        if self.state is not Saving.WORKS:
            self._late += finished
            return 0
        if not finished:
            return 0
        began = clock.perf_counter()
        try:
            self._desk.settle(finished)
        except StoreError:
            self.state, self.is_swift, self._failed = Saving.WAITS, False, len(finished)
            return 0
        self.is_swift = clock.perf_counter() - began < _SWIFT and not self._desk.waits_for_medium
        return len(finished)

    def try_again(self) -> int:
        """The second try, of what the desk has and what has finished since; returns how many are settled.

        Raises:
            StoreError: the store failed again.
        """
        late, self._late = self._late, []
        try:
            self._desk.settle(late)
        except BaseException:
            self.state = Saving.FAILED
            raise
        self.state = Saving.WORKS
        return self._failed + len(late)


class Coordinator:
    """A thread that takes what finished, has it settled, and starts what may start.

    Args:
        desk: whose `settle` it calls.
        call: what is called.
        schedule: what is to be called when.
        spread: how the work is spread.
        wake: called from its thread when who draws should look.
        look: called from its thread twice a second, if given.

    Attributes:
        failure: what ended it.
        stopped: whether nothing more is started.
    """

    def __init__(
        self,
        desk: PassPort,
        call: Call,
        schedule: Schedule,
        spread: Parallelism,
        wake: Callable[[], None],
        look: Callable[[], None] | None = None,
    ) -> None:
        self._desk = desk
        self._schedule = schedule
        self._judge = AnswerHandler(schedule, desk)
        self._batches = Batches(call)
        self._slots = spread.slots
        self._chunk_size = ChunkSize(spread.chunksize)
        self._ahead = _AHEAD if desk.in_memory and self._slots > 1 else 0
        self._wake, self._look = wake, look
        self._inbox: SimpleQueue[tuple[Task, Any] | None] = SimpleQueue()
        self._lock = locks.rlock("coordinator")
        self._workers: Workers
        self._thread: threading.Thread | None = None
        self._running = 0  # tasks
        self._is_quiet_kept = False  # one runs that nothing else may run beside
        self._under_way = 0  # units that were drawn and are not settled
        self._saver = Saver(desk)
        self._all_drawn = False
        self._is_held = False  # what is next waits until what is in flight has shown what it costs
        self._dealing = locks.lock("dealing")
        self._is_over = False  # whether nobody deals with what is reported from now on
        self._is_paused = False  # as the bar says
        self._looks_at = inf  # when the thread looks at the schedule by itself
        self.failure: BaseException | None = None
        self.stopped = False

    def begin(self, workers: Workers) -> None:
        """Start, with these workers.

        Raises:
            BrokenWorkers: there is no thread to be had.
        """
        self._workers = workers
        self._judge.doubts_deaths = workers.shares_blame
        self._thread = begin_thread(self._run, "checkpoint-coordinator")

    # by who draws

    @property
    def room(self) -> int:
        """How many more may be drawn, if any."""
        return self._room(self._ahead)

    def _room(self, ahead: int) -> int:
        most = self._slots * self._chunk_size.size
        return self._schedule.room(most if self._running < self._slots else most - 1, ahead)

    @property
    def wants_drawer(self) -> bool:
        """Whether there is something to do for who draws, when something was settled."""
        if self._desk.is_watched or self.stopped or self._under_way == 0:
            return True
        return not self._all_drawn and self._room(self._ahead // 2) > 0

    @property
    def is_done(self) -> bool:
        """Whether all that was drawn is settled."""
        return self._under_way == 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing runs, and nothing waits for the store."""
        return self._running == 0 and self._saver.state is not Saving.WAITS

    def add(self, units: list[Unit]) -> None:
        """These are to be called, too."""
        with self._lock:
            self._under_way += len(units)
            for unit in units:
                for attempt in [Attempt([unit])] if self._batches.size == 1 else self._batches.add(unit):
                    self._schedule.add(attempt)
            if self._running < self._slots:
                self._start()
                self._have_looked()

    def all_drawn(self) -> None:
        """No more will come: what waits for others to fill a batch or a chunk goes as it is."""
        with self._lock:
            self._all_drawn = True
            for attempt in self._batches.add(None, flush=True):
                self._schedule.add(attempt)
            self._start()
            self._have_looked()

    def _due(self) -> float | None:
        """When something may start that could not just now, on the monotonic clock; under the lock."""
        if not self._may_start or self._waits_for_quiet or self._is_held:
            return None
        wait = self._schedule.wait(1 if self._all_drawn or self._chunk_size.adapts else self._chunk_size.size)
        return None if wait is None else clock.monotonic() + wait

    @property
    def _may_start(self) -> bool:
        return self._running < self._slots and not self.stopped and self._saver.state is Saving.WORKS

    @property
    def _waits_for_quiet(self) -> bool:
        """Whether nothing may start before what runs has ended."""
        if not self._judge.doubts_deaths or self._running == 0:
            return False
        return self._is_quiet_kept or self._schedule.wants_quiet

    def _have_looked(self) -> None:
        """See that the thread looks at the schedule in time; under the lock, by others than it."""
        due = self._due()
        if due is not None and due < self._looks_at:
            self._looks_at = due
            self._inbox.put(_LOOK)

    def report(self, task: Task, answers: Any) -> None:
        """The answers to a task, from any thread."""
        self._inbox.put((task, answers))

    def deal_at_once(self, reports: list[tuple[Task, Any]]) -> bool:
        """Deal with the reports in the caller's thread, if that takes no time worth mentioning.

        An event loop, the thread that serves processes, or a worker thread settles by itself while the last time took
        less than two milliseconds, and nothing waits for the medium: handing over and back would take longer. It never
        waits for another that deals.
        """
        if not self._saver.is_swift or not self._dealing.acquire(blocking=False):
            return False
        try:
            if self._is_over:
                return False
            self._deal(reports, last=False)
        finally:
            self._dealing.release()
        if self._running < self._slots:
            with self._lock:
                self._have_looked()
        return True

    def stop(self) -> None:
        """Start nothing more."""
        with self._lock:
            self.stopped = True

    def close(self) -> None:
        """Settle what has been reported, and end. What is reported later is lost."""
        self.stop()
        if self._thread is not None and not sys.is_finalizing():  # then no other thread runs any more
            self._inbox.put(None)
            self._thread.join()
        self._schedule.close()
        self._judge.tell_halved(self._desk.name)

    # in its thread

    def _run(self) -> None:
        more = True
        while more:
            reports, more = self._next()
            with self._dealing:
                self._deal(reports, last=not more)
                self._is_over = not more
            reports = []  # what is settled is let go of
            self._tell_paused()
            self._wake()
            if self._look is not None:
                self._look()

    def _next(self) -> tuple[list[tuple[Task, Any]], bool]:
        """All reports that are there, at least one unless something else is due; and whether there will be more."""
        with self._lock:
            due = self._due()
            self._looks_at = inf if due is None else due
        wait = None if due is None else max(0.0, due - clock.monotonic())
        if self._look is not None:
            wait = _LOOKS if wait is None else min(wait, _LOOKS)
        if self._is_paused or self._schedule.held_since is not None:
            wait = _TOLD if wait is None else min(wait, _TOLD)
        reports: list[tuple[Task, Any]] = []
        try:
            report = self._inbox.get(timeout=wait)
            while report is not None:
                if report[1] is _BACK:
                    self._take_back(report[0])
                elif report is not _LOOK:
                    reports.append(report)
                report = self._inbox.get_nowait()
        except Empty:
            return reports, True
        return reports, False

    def _tell_paused(self) -> None:
        """Have the bar say that calls are held, or that they go on."""
        paused = self._schedule.paused
        if paused is not None or self._is_paused:
            self._is_paused = paused is not None
            self._desk.tell_paused(paused)

    def _take_back(self, task: Task) -> None:
        with self._lock:
            for attempt in task:
                self._schedule.come_back(attempt.units[0])

    def _deal(self, reports: list[tuple[Task, Any]], *, last: bool) -> None:
        """Have settled what finished, and start what may start."""
        settled = 0
        try:
            with self._lock:
                finished = self._all_judged(reports)
            settled = self._saver.settle(finished)
        except BaseException as error:  # told to who draws, who raises it
            self._fail(error)
        try:
            with self._lock:
                self._running -= sum(type(answers) is not Early for _, answers in reports)
                self._under_way -= settled
                again = self._saver.state is Saving.WAITS and (last or self._running == 0)
                if not again:
                    self._go_on()
            if again:
                settled = self._saver.try_again()
                with self._lock:
                    self._under_way -= settled
                    self._go_on()
        except BaseException as error:
            self._fail(error)

    def _go_on(self) -> None:
        """Start what may start, unless it is enough; under the lock."""
        if self._desk.verdict is not None:
            self.stopped = True
        self._start()

    def _all_judged(self, reports: list[tuple[Task, Any]]) -> list[Done]:
        """What is to be settled; a single call that returned is told flat, since this is the per-item path."""
        finished: list[Done] = []
        for task, answers in reports:
            if self._chunk_size.adapts and type(answers) is list:
                self._chunk_size.returned(len(task), answers)
            if type(answers) is list and len(task) == 1 == len(answers) and type(answers[0]) is tuple:
                attempt, (value, elapsed) = task[0], answers[0]
                self._schedule.answered(attempt)
                finished.append(
                    Done(attempt.units[0], Success(value, elapsed, attempt.made + attempt.deaths + 1, attempt.notes))
                )
            else:
                finished += self._judged(task, answers)
        return finished

    def _judged(self, task: Task, answers: Any) -> list[Done]:
        if type(answers) is Early:
            answers, self._chunk_size = answers.answers, ChunkSize(1)  # calls that take steps travel one by one
        try:
            if type(answers) is list and answers and type(answers[-1]) is tuple:
                finished = self._judge.dones(task, answers)
            else:
                finished = self._dones(task, answers)
        except Exception as error:  # of a policy of the user's: what else finished is settled all the same
            self._fail(error)
            finished = []
        if again := unfinished(task, finished):
            self._desk.put_off(again)
        return finished

    def _dones(self, task: Task, answers: Any) -> list[Done]:
        judge = self._judge
        if type(answers) is bytes:
            try:
                answers = unpack(answers)
            except Exception as error:  # unpickling runs the values' own code
                return judge.apart(task, error, answers)
            if self._chunk_size.adapts:
                self._chunk_size.returned(len(task), answers)
        if type(answers) is Died:
            return [] if self.stopped else judge.died(task, answers)
        if type(answers) is Unsent:
            return judge.unsent(task, answers.error)
        if type(answers) is Broken:
            if not self.stopped:  # a signal to all of a terminal's processes ends executors too
                self._fail(answers.error)
            return []
        if answers and type(answers[-1]) is Fatal:
            fatal = answers.pop()
            at_work = task[len(answers) :][:1] if fatal.is_of_call else task
            self._fail(
                ending(fatal.exception, self._desk.name, [unit for attempt in at_work for unit in attempt.units])
            )
        return judge.dones(task, answers)

    def _fail(self, error: BaseException) -> None:
        self.stopped = True
        if self.failure is None or (isinstance(error, StoreError) and not isinstance(self.failure, StoreError)):
            self.failure = error  # one of the store's holds values that nobody else does

    def _start(self) -> None:
        """Start what may start; under the lock."""
        self._is_held = False
        while self._may_start:
            if self._judge.doubts_deaths and self._waits_for_quiet:
                return
            task = self._next_task()
            if not task:
                self.stopped = self.stopped or (self._is_held and self._desk.verdict is not None)
                return
            self._is_quiet_kept = task[0].quiet
            self._running += 1
            try:
                self._workers.start(task)
            except BaseException:
                self._running -= 1
                raise

    def _next_task(self) -> Task:
        """The calls that make the next task; none where one that is not full may wait for more."""
        schedule, size = self._schedule, self._chunk_size.size
        task: Task = []
        if size > 1 and self._desk.has_unknown_costs:
            size = 1  # as many calls as there are workers, until it is known what one costs
        if self._chunk_size.adapts:
            size = min(size, max(1, -(-schedule.ready // (self._slots - self._running))))
        elif size > 1 and not self._all_drawn and schedule.ready < size:
            return task
        while len(task) < size:
            try:
                attempt = schedule.take(first=not task, only=self._running == 0)
            except BadCost as bad:
                self._running += 1
                self._inbox.put(([bad.attempt], [failed(bad.error)]))
                continue
            if attempt is None:
                break
            if self._desk.limits_cost and not self._desk.affords(attempt.units):
                schedule.put_back(attempt)
                self._is_held = True
                break
            called, ended = self._desk.begin(attempt.units, self._return)
            self._under_way -= ended
            if len(called) < len(attempt.units):
                schedule.keep(attempt, called)
            if not called:  # other passes make, or have made, all of them
                continue
            task.append(attempt)
            if attempt.alone:
                break
        return task

    def _return(self, unit: Unit) -> None:
        self._inbox.put(([Attempt([unit])], _BACK))
