"""How the function is run: short drivers between `admit` and `settle`, which they are given.

Items are drawn and admitted where the consumer is; calls are made by workers; and a coordinator, a thread between the
workers and the disk, takes all that has finished, has it settled in one go, and starts what may start next. So what
finishes is on disk at once, whether or not anyone consumes it, and neither workers nor an event loop wait for the disk.

Bounds: no more than ``workers x chunksize`` calls (or one batch a worker) are begun and not on disk. Fewer than as many
again are drawn ahead, none for a single worker; and so many, and 32, wait for a retry before nothing is drawn. Engines
know nothing of keys, disks or bars.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from math import inf
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, Protocol

from checkpoint import clock
from checkpoint.calls import Answer, Call, Failed, Fatal, Unreadable, failed, unpack
from checkpoint.errors import StoreError, WorkerDied, quote, quote_error
from checkpoint.interrupts import Interrupts
from checkpoint.outcomes import Done, Success, Unit
from checkpoint.schedule import Attempt, BadCost, Schedule
from checkpoint.workers import Broken, Died, Report, Task, Tasks, Unsent, exit_in_words, inputs_of

__all__ = ["Desk", "Spread", "Workers", "asynchronous", "concurrent", "serial"]

log = logging.getLogger("checkpoint")

_END: Final = object()
_UNSEEN = 64  # items that are drawn before an event loop has its turn
_MOST_DEATHS = 3
_LOOK_UP = 0.5  # seconds: a signal that comes just as the main thread goes to sleep does not wake it
_SWIFT = 0.002  # seconds
_TOGETHER = 4  # reports that an event loop deals with at a time: more would keep calls waiting that could start
_LOOK: Final[tuple[Task, Any]] = ([], [])  # a report of nothing: look at the schedule again


class Desk(Protocol):
    """What a pass is to an engine.

    Attributes:
        name: the checkpoint's.
        items: what is drawn from.
        is_crowded: whether so many items wait for their equals that no more are to be drawn.
        waits_for_medium: whether `settle` returns only once what it saved is on the medium.
        verdict: why the pass must end now, or None.
    """

    name: str
    items: Iterable[Any]

    @property
    def is_crowded(self) -> bool: ...

    @property
    def waits_for_medium(self) -> bool: ...

    @property
    def verdict(self) -> str | None: ...

    def admit(self, item: Any) -> Unit | None: ...

    def settle(self, finished: list[Done]) -> None: ...


class Workers(Protocol):
    """Where calls are made: told to start tasks, they report each with its answers."""

    def start(self, task: Task, running: int) -> None: ...

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


# --- in the caller's thread ------------------------------------------------------------------------------------------


def serial(desk: Desk, call: Call, schedule: Schedule, spread: Spread) -> Iterator[None]:
    """One call after the other, in this thread; while a retry waits, others go on."""
    items, judge, batches = iter(desk.items), _Judge(schedule), _Batches(call)
    more = True
    with Interrupts(desk.name, spread.grace, lambda: None) as interrupts:
        while desk.verdict is None and not interrupts.asked:
            attempt, answers = _take(schedule)
            if attempt is None and more and schedule.has_room(1):
                item = next(items, _END)
                more = item is not _END
                unit = desk.admit(item) if more else None
                for new in batches.add(unit, flush=not more):
                    schedule.add(new)
                if unit is None:
                    yield
                continue
            if attempt is None:
                wait = schedule.wait()
                if wait is None:
                    break
                clock.sleep(min(wait, 1.0))  # who is asked to end looks up
                continue
            if not answers:
                answers = call.many(inputs_of([attempt], batch=call.batch))
                if type(answers[0]) is Fatal:
                    raise answers[0].exception
            finished = judge.dones([attempt], answers)
            if finished:
                _settle(desk, finished)
                yield
        if interrupts.asked:
            raise interrupts.as_exception()


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


class _Batches:
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


class _Judge:
    """Answers become what is settled, or go back to the schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

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
            elif kind is list:
                finished += self._batch(attempt, answer)
            else:
                finished += self._failed(attempt, answer)
        return finished

    def _success(self, attempt: Attempt, answer: tuple[Any, float]) -> Success:
        return Success(answer[0], answer[1], attempt.made + attempt.deaths + 1)

    def _batch(self, attempt: Attempt, answers: list[Answer]) -> list[Done]:
        """Each item of a batch that returned is done, or has failed, by itself."""
        finished = []
        for unit, answer in zip(attempt.units, answers, strict=True):
            if type(answer) is tuple:
                self._schedule.succeeded()
                finished.append(Done(unit, self._success(attempt, answer)))
            else:
                finished += self._failed(self._alone(attempt, unit), answer)
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

    def died(self, task: Task, exitcode: int | None) -> list[Done]:
        """What a worker's death makes of what it was at: whatever did not kill it must not suffer."""
        finished = []
        for attempt in reversed(task):
            attempt.deaths += 1
            attempt.alone = True
            if len(attempt.units) > 1:
                self._split(attempt)
            elif attempt.deaths < _MOST_DEATHS:
                self._schedule.at_once(attempt)
            else:
                error = WorkerDied(
                    f"its worker process died {attempt.deaths} times of it, at last of {exit_in_words(exitcode)}; "
                    "SIGKILL is often the system's answer to too much memory, SIGSEGV a fault in compiled code",
                    exitcode=exitcode,
                )
                failure = failed(error).failure.counted(attempt.made + attempt.deaths)
                finished.append(Done(attempt.units[0], failure))
        return finished

    def unsent(self, task: Task, error: Exception) -> list[Done]:
        """A task that could not travel: of several calls each is sent again by itself, and one has failed."""
        if len(task) == 1:
            return self.dones(task, [failed(error)])
        for attempt in reversed(task):
            attempt.alone = True
            self._schedule.at_once(attempt)
        return []

    def apart(self, task: Task, error: Exception, pickled: bytes) -> list[Done]:
        """Answers that cannot be read here: of several calls each is made again, of one the value is kept as it is."""
        if len(task) > 1:
            for attempt in reversed(task):
                attempt.alone = True
                self._schedule.at_once(attempt)
            return []
        value = Unreadable(f"<a result that cannot be unpickled here: {quote_error(error)}>", pickled)
        return [Done(unit, Success(value, None, task[0].made + 1)) for unit in task[0].units]


# --- the coordinator -------------------------------------------------------------------------------------------------


class _Coordinator:
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
        self._judge = _Judge(schedule)
        self._batches = _Batches(call)
        self._slots, self._chunksize, _ = spread
        self._wake = wake
        self._inbox: SimpleQueue[tuple[Task, Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._workers: Workers
        self._thread: threading.Thread | None = None
        self._running = 0  # tasks
        self._under_way = 0  # units that were drawn and are not settled
        self._late: list[Done] = []  # finished after the store failed
        self._with_desk = 0  # how many the desk has and could not save
        self._all_drawn = False
        self._dealing = threading.Lock()
        self._is_swift = False  # whether settling took no time worth mentioning when it was last done
        self._looks_at = inf  # when the thread looks at the schedule by itself
        self.failure: BaseException | None = None
        self.stopped = False
        self.waits = False

    def begin(self, workers: Workers) -> None:
        """Start, with these workers."""
        self._workers = workers
        self._thread = threading.Thread(target=self._run, name="checkpoint-coordinator", daemon=True)
        self._thread.start()

    # by who draws

    @property
    def has_room(self) -> bool:
        """Whether more may be drawn."""
        most = self._slots * self._chunksize
        return self._schedule.has_room(most if self._running < self._slots else most - 1)

    @property
    def is_done(self) -> bool:
        """Whether all that was drawn is settled."""
        return self._under_way == 0

    @property
    def is_quiet(self) -> bool:
        """Whether nothing runs, and nothing waits for the store."""
        return self._running == 0 and not self.waits

    def add(self, unit: Unit) -> None:
        """One more unit is to be called."""
        with self._lock:
            self._under_way += 1
            for attempt in self._batches.add(unit):
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
        if self.stopped or self.waits or self._running >= self._slots:
            return None
        wait = self._schedule.wait(1 if self._all_drawn else self._chunksize)
        return None if wait is None else clock.monotonic() + wait

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

        An event loop settles by itself while the last time took less than two milliseconds, and nothing waits for the
        medium: handing over to a thread and back would take longer. It never waits for the coordinator.
        """
        if not self._is_swift or not self._dealing.acquire(blocking=False):
            return False
        try:
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

    # in its thread

    def _run(self) -> None:
        more = True
        while more:
            reports, more = self._next()
            with self._dealing:
                self._deal(reports, last=not more)
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
        try:
            with self._lock:
                finished = [done for task, answers in reports for done in self._judged(task, answers)]
            if self.waits:
                self._late += finished
            elif finished:
                self._settle(finished)
        except BaseException as error:  # told to who draws, who raises it
            self._fail(error)
        try:
            with self._lock:
                self._running -= len(reports)
                again = self.waits and (last or self._running == 0)
            if again:
                self._settle_again()
            with self._lock:
                if self._desk.verdict is not None:
                    self.stopped = True
                self._start()
        except BaseException as error:
            self._fail(error)

    def _judged(self, task: Task, answers: Any) -> list[Done]:
        try:
            return self._dones(task, answers)
        except Exception as error:  # of a policy of the user's: what else finished is settled all the same
            self._fail(error)
            return []

    def _dones(self, task: Task, answers: Any) -> list[Done]:
        judge = self._judge
        if type(answers) is list and type(answers[-1]) is tuple:
            return judge.dones(task, answers)
        if type(answers) is bytes:
            try:
                answers = unpack(answers)
            except Exception as error:  # unpickling runs the values' own code
                return judge.apart(task, error, answers)
        if type(answers) is Died:
            return [] if self.stopped else judge.died(task, answers.exitcode)
        if type(answers) is Unsent:
            return judge.unsent(task, answers.error)
        if type(answers) is Broken:
            if not self.stopped:  # a signal to all of a terminal's processes ends executors too
                self._fail(answers.error)
            return []
        if answers and type(answers[-1]) is Fatal:
            self._fail(answers.pop().exception)
        return judge.dones(task, answers)

    def _settle(self, finished: list[Done]) -> None:
        began = clock.perf_counter()
        try:
            self._desk.settle(finished)
        except StoreError:
            self.waits, self._with_desk, self._is_swift = True, len(finished), False
        else:
            self._is_swift = clock.perf_counter() - began < _SWIFT and not self._desk.waits_for_medium
            self._settled(len(finished))

    def _settle_again(self) -> None:
        """The second try: what the desk has, and what has finished since."""
        late, self._late, self.waits = self._late, [], False
        self._desk.settle(late)
        self._settled(self._with_desk + len(late))

    def _settled(self, count: int) -> None:
        with self._lock:
            self._under_way -= count

    def _fail(self, error: BaseException) -> None:
        self.stopped = True
        if self.failure is None or (isinstance(error, StoreError) and not isinstance(self.failure, StoreError)):
            self.failure = error  # one of the store's holds values that nobody else does

    def _start(self) -> None:
        """Start what may start; under the lock."""
        while self._running < self._slots and not self.stopped and not self.waits:
            task = self._next_task()
            if not task:
                return
            self._running += 1
            try:
                self._workers.start(task, self._running)
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
                attempt = schedule.take(first=not task)
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


# --- with workers ----------------------------------------------------------------------------------------------------


def _draw(desk: Desk, coordinator: _Coordinator, interrupts: Interrupts) -> Iterator[bool]:
    """Draw, admit and hand over until all is settled or it must end, and what runs has finished.

    Yields whether to wait until woken; whoever consumes may look for outcomes each time.
    """

    def goes_on() -> bool:
        return not (coordinator.stopped or interrupts.asked)

    for item in desk.items:
        unit = desk.admit(item)
        if unit is not None:
            coordinator.add(unit)
        yield False
        while (desk.is_crowded or not coordinator.has_room) and goes_on():
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


def _raise_why(coordinator: _Coordinator, interrupts: Interrupts) -> None:
    if coordinator.failure is not None:
        raise coordinator.failure
    if interrupts.asked:
        raise interrupts.as_exception()


def _raise_unsaved(coordinator: _Coordinator) -> None:
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
        if wakes.empty():
            wakes.put(None)

    def interrupt() -> None:
        coordinator.stopped = True  # not `stop`: a handler must not wait for a lock
        wake()

    coordinator = _Coordinator(desk, call, schedule, spread, wake)
    workers = hire(coordinator.report)
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
            while not (coordinator.is_quiet or interrupts.over or _at_exit()) and (left := end - clock.monotonic()) > 0:
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

    def cancel() -> bool:
        if is_here:
            loop.call_soon_threadsafe(consumer.cancel)
        return is_here

    is_here = True  # and the consumer does not await something else
    coordinator = _Coordinator(desk, call, schedule, spread, wake)
    interrupts = opened.enter_context(Interrupts(desk.name, spread.grace, interrupt, cancel))

    finished: list[tuple[Task, Any]] = []

    def hand_over(leave: int = 0) -> None:
        reports = finished[:]
        finished.clear()
        if not reports:
            return
        if coordinator.deal_at_once(reports):
            tasks.look(leave)
            woken.set()
        else:
            for report in reports:
                coordinator.report(*report)

    def report(task: Task, answers: Any) -> None:
        finished.append((task, answers))
        if len(finished) == _TOGETHER:
            hand_over(leave=1)  # for the loop task that reports
        elif len(finished) == 1:
            loop.call_soon(hand_over)

    tasks.report = report
    opened.callback(coordinator.close)
    opened.callback(hand_over)
    opened.callback(tasks.close)
    coordinator.begin(tasks)
    try:
        unseen = 0
        for waits in _draw(desk, coordinator, interrupts):
            tasks.look()
            unseen = 0 if waits else unseen + 1
            if waits:
                await wait()
            elif unseen % _UNSEEN == 0:
                await asyncio.sleep(0)  # others want the loop too
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
