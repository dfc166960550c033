"""Between the workers and the disk: what becomes of answers, and what is called next.

The coordinator is a thread that takes all that has finished, has it settled in one go, and starts what may start by the
schedule; where that takes no time worth mentioning, whoever reports does it instead. What finishes is on disk at once,
whether or not anyone consumes it; and a worker's place is free again when its result is there.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

from checkpoint import clock
from checkpoint.calls import Answer, Call, Failed, Fatal, Unreadable, ending, failed, unpack
from checkpoint.errors import StoreError, WorkerDied, quote_error
from checkpoint.outcomes import Done, Success, Unit
from checkpoint.schedule import Attempt, BadCost, Schedule
from checkpoint.workers import Broken, Died, Task, Unsent, exit_in_words

__all__ = ["Batches", "Coordinator", "Desk", "Judge", "Spread", "Workers"]

_AHEAD = 64  # items in memory that are drawn ahead: who draws and who calls take turns less often
_MOST_DEATHS = 3
_SWIFT = 0.002  # seconds
_LOOK: Final[tuple[Task, Any]] = ([], [])  # a report of nothing: look at the schedule again


class Desk(Protocol):
    """What a pass is to an engine.

    Attributes:
        name: the checkpoint's.
        items: what is drawn from.
        in_memory: whether the items are all there already, so that drawing ahead keeps nothing more alive; where it
            `is_watched` not, `admit_next` draws and admits several.
        is_watched: whether who draws must look each time something was settled: for outcomes, or for equal items.
        is_crowded: whether so many items wait for their equals that no more are to be drawn.
        waits_for_medium: whether `settle` returns only once what it saved is on the medium.
        verdict: why the pass must end now, or None.
    """

    name: str
    items: Iterable[Any]

    @property
    def in_memory(self) -> bool: ...

    @property
    def is_watched(self) -> bool: ...

    @property
    def is_crowded(self) -> bool: ...

    @property
    def waits_for_medium(self) -> bool: ...

    @property
    def verdict(self) -> str | None: ...

    def admit(self, item: Any) -> Unit | None: ...

    def admit_next(self, most: int) -> list[Unit] | None: ...

    def settle(self, finished: list[Done]) -> None: ...


class Workers(Protocol):
    """Where calls are made: told to start tasks, they report each with its answers.

    Attributes:
        settles: whether who reports may settle: it makes no calls itself, or they come seldom enough.
        shares_blame: whether a death may be told of a call that only waited beside the one that caused it.
    """

    shares_blame: bool

    @property
    def settles(self) -> bool: ...

    def start(self, task: Task) -> None: ...

    def close(self) -> None: ...


class Spread(NamedTuple):
    """How work is spread.

    Attributes:
        slots: how many tasks run at once.
        chunksize: how many calls make a task.
        grace: seconds that what runs may go on once the pass is to end.
    """

    slots: int = 1
    chunksize: int = 1
    grace: float = 10.0


class Batches:
    """Units become attempts: one each, or so many together."""

    def __init__(self, call: Call) -> None:
        self.size = call.batch_size or 1
        self._units: list[Unit] = []

    def add(self, unit: Unit | None, *, flush: bool = False) -> list[Attempt]:
        """The attempt that is complete with this unit; or all that is left."""
        if unit is not None:
            self._units.append(unit)
        if not self._units or (len(self._units) < self.size and not flush):
            return []
        units, self._units = self._units, []
        return [Attempt(units)]


# --- what becomes of answers -----------------------------------------------------------------------------------------


class Judge:
    """Answers become what is settled, or go back to the schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.doubts_deaths = False  # whether what is told to have died of a call may have died of another

    def dones(self, task: Task, answers: list[Answer]) -> list[Done]:
        """What is to be settled of a task's answers."""
        finished: list[Done] = []
        if len(answers) < len(task):
            for attempt in reversed(task[len(answers) :]):
                self._schedule.at_once(attempt)  # not called, since one before it said so
        for attempt, answer in zip(task, answers, strict=False):
            kind = type(answer)
            if kind is tuple:
                self._schedule.succeeded()
                made = attempt.made + attempt.deaths + 1
                finished.append(Done(attempt.units[0], Success(answer[0], answer[1], made)))
            elif kind is list:  # each item of a batch that returned is done, or has failed, by itself
                finished += self.dones([self._alone(attempt, unit) for unit in attempt.units], answer)
            else:
                finished += self._failed(attempt, answer)
        return finished

    def _failed(self, attempt: Attempt, answer: Failed) -> list[Done]:
        failure, again = answer
        several = len(attempt.units) > 1
        if several and (again is None or again.after is None):
            self._split(attempt)
            return []
        if self._schedule.again(attempt, again):
            return []
        if several:
            self._split(attempt)
            return []
        return [Done(attempt.units[0], failure.counted(attempt.made + attempt.deaths))]

    def _alone(self, attempt: Attempt, unit: Unit) -> Attempt:
        alone = Attempt([unit], alone=True)
        alone.made, alone.deaths, alone.waits, alone.began = attempt.made, attempt.deaths, attempt.waits, attempt.began
        return alone

    def _split(self, attempt: Attempt) -> None:
        """A batch that failed is tried again item by item, before anything that was not tried yet."""
        for unit in reversed(attempt.units):
            self._schedule.at_once(self._alone(attempt, unit))

    def died(self, task: Task, death: Died) -> list[Done]:
        """What a worker's death makes of what it was at: whatever did not kill it must not suffer."""
        finished = []
        for attempt in reversed(task):
            attempt.deaths += 1
            attempt.alone = True
            if len(attempt.units) > 1:
                self._split(attempt)
            elif attempt.deaths < _MOST_DEATHS:
                attempt.quiet = self.doubts_deaths and attempt.deaths == _MOST_DEATHS - 1
                self._schedule.at_once(attempt)
            else:
                last = death.why if death.exitcode is None and death.why else exit_in_words(death.exitcode)
                error = WorkerDied(
                    f"its worker process died {attempt.deaths} times of it, at last of {last}; "
                    "SIGKILL is often the system's answer to too much memory, SIGSEGV a fault in compiled code",
                    exitcode=death.exitcode,
                )
                failure = failed(error).failure.counted(attempt.made + attempt.deaths)
                finished.append(Done(attempt.units[0], failure))
        return finished

    def _each_alone(self, task: Task) -> list[Done]:
        """Nothing is to be settled: each call is made again by itself."""
        for attempt in reversed(task):
            attempt.alone = True
            self._schedule.at_once(attempt)
        return []

    def unsent(self, task: Task, error: Exception) -> list[Done]:
        """A task that could not travel: of several calls each is sent again by itself, and one has failed."""
        if len(task) == 1:
            return self.dones(task, [failed(error)])
        return self._each_alone(task)

    def apart(self, task: Task, error: Exception, pickled: bytes) -> list[Done]:
        """Answers that cannot be read here: of several calls each is made again, of one the value is kept as it is."""
        if len(task) > 1:
            return self._each_alone(task)
        value = Unreadable(f"<a result that cannot be unpickled here: {quote_error(error)}>", pickled)
        return [Done(unit, Success(value, None, task[0].made + 1)) for unit in task[0].units]


# --- the coordinator -------------------------------------------------------------------------------------------------


class Coordinator:
    """A thread that takes what finished, has it settled, and starts what may start.

    Args:
        desk: whose `settle` it calls.
        call: what is called.
        schedule: what is to be called when.
        spread: how the work is spread.
        wake: called from its thread when who draws should look.

    Attributes:
        failure: what ended it.
        stopped: whether nothing more is started.
        waits: whether the store failed, and is tried once more when nothing runs.
    """

    def __init__(self, desk: Desk, call: Call, schedule: Schedule, spread: Spread, wake: Callable[[], None]) -> None:
        self._desk = desk
        self._schedule = schedule
        self._judge = Judge(schedule)
        self._batches = Batches(call)
        self._slots, self._chunksize, _ = spread
        self._ahead = _AHEAD if desk.in_memory and self._slots > 1 else 0
        self._wake = wake
        self._inbox: SimpleQueue[tuple[Task, Any] | None] = SimpleQueue()
        self._lock = threading.RLock()  # a garbage collection under it may call `stop`
        self._workers: Workers
        self._thread: threading.Thread | None = None
        self._running = 0  # tasks
        self._is_quiet_kept = False  # one runs that nothing else may run beside
        self._under_way = 0  # units that were drawn and are not settled
        self._late: list[Done] = []  # finished after the store failed
        self._with_desk = 0  # how many the desk has and could not save
        self._all_drawn = False
        self._dealing = threading.Lock()
        self._dealer: int | None = None  # the thread that deals in place of ours
        self._is_over = False  # whether nobody deals with what is reported from now on
        self._is_swift = False  # whether settling took no time worth mentioning when it was last done
        self._looks_at = inf  # when the thread looks at the schedule by itself
        self.failure: BaseException | None = None
        self.stopped = False
        self.waits = False

    def begin(self, workers: Workers) -> None:
        """Start, with these workers."""
        self._workers = workers
        self._judge.doubts_deaths = workers.shares_blame
        self._thread = threading.Thread(target=self._run, name="checkpoint-coordinator", daemon=True)
        self._thread.start()

    # by who draws

    @property
    def room(self) -> int:
        """How many more may be drawn, if any."""
        return self._room(self._ahead)

    def _room(self, ahead: int) -> int:
        most = self._slots * self._chunksize
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
        return self._running == 0 and not self.waits

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
        if self.stopped or self.waits or self._running >= self._slots or self._waits_for_quiet:
            return None
        wait = self._schedule.wait(1 if self._all_drawn else self._chunksize)
        return None if wait is None else clock.monotonic() + wait

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
        if not self._is_swift or not self._dealing.acquire(blocking=False):
            return False
        try:
            if self._is_over:
                return False
            self._dealer = threading.get_ident()
            self._deal(reports, last=False)
        finally:
            self._dealer = None
            self._dealing.release()
        if self._running < self._slots:
            with self._lock:
                self._have_looked()
        return True

    @property
    def is_dealing_here(self) -> bool:
        """Whether this is asked within a deal: a garbage collection may end the pass of a stream anywhere."""
        return threading.get_ident() in (self._dealer, self._thread and self._thread.ident)

    def stop(self) -> None:
        """Start nothing more."""
        with self._lock:
            self.stopped = True

    def close(self) -> None:
        """Settle what has been reported, and end. What is reported later is lost.

        It does not wait where this thread is dealing: the other one waits for that.
        """
        self.stop()
        if self._thread is not None and not sys.is_finalizing():  # then no other thread runs any more
            self._inbox.put(None)
            if not self.is_dealing_here:
                self._thread.join()

    # in its thread

    def _run(self) -> None:
        more = True
        while more:
            reports, more = self._next()
            with self._dealing:
                self._deal(reports, last=not more)
                self._is_over = not more
            reports = []  # what is settled is let go of
            self._wake()

    def _next(self) -> tuple[list[tuple[Task, Any]], bool]:
        """All reports that are there, at least one unless something else is due; and whether there will be more."""
        with self._lock:
            due = self._due()
            self._looks_at = inf if due is None else due
        wait = None if due is None else max(0.0, due - clock.monotonic())
        reports: list[tuple[Task, Any]] = []
        try:
            report = self._inbox.get(timeout=wait)
            while report is not None:
                if report is not _LOOK:
                    reports.append(report)
                report = self._inbox.get_nowait()
        except Empty:
            return reports, True
        return reports, False

    def _deal(self, reports: list[tuple[Task, Any]], *, last: bool) -> None:
        """Have settled what finished, and start what may start."""
        settled = 0
        try:
            with self._lock:
                finished = self._all_judged(reports)
            if self.waits:
                self._late += finished
            elif finished:
                settled = self._settle(finished)
        except BaseException as error:  # told to who draws, who raises it
            self._fail(error)
        try:
            with self._lock:
                self._running -= len(reports)
                self._under_way -= settled
                again = self.waits and (last or self._running == 0)
                if not again:
                    self._go_on()
            if again:
                self._settle_again()
                with self._lock:
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
            if type(answers) is list and len(task) == 1 == len(answers) and type(answers[0]) is tuple:
                attempt, (value, elapsed) = task[0], answers[0]
                self._schedule.succeeded()
                finished.append(Done(attempt.units[0], Success(value, elapsed, attempt.made + attempt.deaths + 1)))
            else:
                finished += self._judged(task, answers)
        return finished

    def _judged(self, task: Task, answers: Any) -> list[Done]:
        try:
            if type(answers) is list and type(answers[-1]) is tuple:
                return self._judge.dones(task, answers)
            return self._dones(task, answers)
        except Exception as error:  # of a policy of the user's: what else finished is settled all the same
            self._fail(error)
            return []

    def _dones(self, task: Task, answers: Any) -> list[Done]:
        judge = self._judge
        if type(answers) is bytes:
            try:
                answers = unpack(answers)
            except Exception as error:  # unpickling runs the values' own code
                return judge.apart(task, error, answers)
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

    def _settle(self, finished: list[Done]) -> int:
        """Returns how many are settled: all, or none where the store failed."""
        began = clock.perf_counter()
        try:
            self._desk.settle(finished)
        except StoreError:
            self.waits, self._with_desk, self._is_swift = True, len(finished), False
            return 0
        self._is_swift = clock.perf_counter() - began < _SWIFT and not self._desk.waits_for_medium
        return len(finished)

    def _settle_again(self) -> None:
        """The second try: what the desk has, and what has finished since."""
        late, self._late = self._late, []
        try:
            self._desk.settle(late)
        except BaseException:
            self.stopped = True  # before `waits` ends, or more would be begun that nobody saves
            raise
        finally:
            self.waits = False
        with self._lock:
            self._under_way -= self._with_desk + len(late)

    def _fail(self, error: BaseException) -> None:
        self.stopped = True
        if self.failure is None or (isinstance(error, StoreError) and not isinstance(self.failure, StoreError)):
            self.failure = error  # one of the store's holds values that nobody else does

    def _start(self) -> None:
        """Start what may start; under the lock."""
        while self._running < self._slots and not self.stopped and not self.waits:
            if self._judge.doubts_deaths and self._waits_for_quiet:
                return
            task = self._next_task()
            if not task:
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
        schedule = self._schedule
        task: Task = []
        if self._chunksize > 1 and not self._all_drawn and schedule.ready < self._chunksize:
            return task
        while len(task) < self._chunksize:
            try:
                attempt = schedule.take(first=not task, only=self._running == 0)
            except BadCost as bad:
                self._running += 1
                self._inbox.put(([bad.attempt], [failed(bad.error)]))
                continue
            if attempt is None:
                break
            task.append(attempt)
            if attempt.alone:
                break
        return task
