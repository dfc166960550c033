"""What becomes of answers: which are results, which failures, which calls are made again, alone or later."""

from __future__ import annotations

import logging

from checkpoint.errors import WorkerDied, quote_error
from checkpoint.execution.answers import Answer, Failed, Returned, failed
from checkpoint.execution.call import Call
from checkpoint.execution.interfaces import Died, PassPort, Task, exit_in_words
from checkpoint.execution.notes import added, shared
from checkpoint.execution.policies import Batch
from checkpoint.execution.scheduler import Attempt, Schedule
from checkpoint.execution.transport import Unreadable
from checkpoint.outcomes import Done, Success, Unit

__all__ = ["AnswerHandler", "Batches", "unfinished"]


log = logging.getLogger("checkpoint")
_MOST_DEATHS = 3
_SHOWN = 200  # characters of an error's message


def unfinished(task: Task, finished: list[Done]) -> list[Unit]:
    """The units of a task that are not among what finished: their calls are made again."""
    keys = {done.unit.key for done in finished}
    return [unit for attempt in task for unit in attempt.units if unit.key not in keys]


class Batches:
    """Units become attempts: one each, or so many together, up to so much."""

    def __init__(self, call: Call) -> None:
        self._batch = call.gathers or Batch(1)
        self.size = self._batch.items
        self._units: list[Unit] = []
        self._sum = 0.0  # of their sizes

    def add(self, unit: Unit | None, *, flush: bool = False) -> list[Attempt]:
        """The attempts that are complete with this unit; or all that is left."""
        complete: list[Attempt] = []
        if unit is not None:
            if self._batch.limit is not None:
                try:
                    size = self._batch.size_of(unit.item)
                except Exception as error:  # the user's function: the item fails, and no other
                    return [Attempt([unit], bad=error)]
                if self._units and self._sum + size > self._batch.limit:
                    complete += self._all()
                self._sum += size
            self._units.append(unit)
        if self._units and (len(self._units) >= self.size or flush):
            complete += self._all()
        return complete

    def _all(self) -> list[Attempt]:
        units, self._units, self._sum = self._units, [], 0.0
        return [Attempt(units)]


class AnswerHandler:
    """Answers become what is settled, or go back to the schedule.

    Args:
        schedule: of the calls.
        desk: is told at once what a call cost that failed and is made again.
    """

    def __init__(self, schedule: Schedule, desk: PassPort) -> None:
        self._schedule, self._desk = schedule, desk
        self._batches = self._halved = self._extra = 0  # as they were gathered; of those that failed; calls for these
        self._last = ""  # why the last one failed
        self.doubts_deaths = False  # whether what is told to have died of a call may have died of another

    def dones(self, task: Task, answers: list[Answer]) -> list[Done]:
        """What is to be settled of a task's answers."""
        finished: list[Done] = []
        if len(answers) < len(task):
            for attempt in reversed(task[len(answers) :]):
                self._schedule.lost(attempt)
                self._schedule.at_once(attempt)  # not called: the span was over, or one before it asks for a pause
        for attempt, answer in zip(task, answers, strict=False):
            kind = type(answer)
            if kind is tuple or kind is Returned:
                self._schedule.answered(attempt)
                made = attempt.made + attempt.deaths + 1
                notes = added(attempt.notes, answer.notes) if kind is Returned else attempt.notes
                finished.append(Done(attempt.units[0], Success(answer[0], answer[1], made, notes)))
            elif kind is list:  # each item of a batch that returned is done, or has failed, by itself
                self._schedule.answered(attempt)
                self._count(attempt)
                finished += self.dones([self._alone(attempt, unit) for unit in attempt.units], answer)
            else:
                finished += self._failed(attempt, answer)
        return finished

    def _failed(self, attempt: Attempt, answer: Failed) -> list[Done]:
        failure, again = answer
        attempt.notes = added(attempt.notes, failure.notes)
        several = len(attempt.units) > 1
        if several and (again is None or (again.after is None and not again.trouble)):
            self._schedule.answered(attempt)
            self._halve(attempt, answer)
        elif self._schedule.again(attempt, again):
            pass
        elif several:
            self._halve(attempt, answer)
        else:
            return [Done(attempt.units[0], failure.counted(attempt.made + attempt.deaths, attempt.notes))]
        if failure.notes is not None and failure.notes.get("cost"):
            self._desk.attempted(attempt.units, failure.notes["cost"])
        return []

    def _alone(self, attempt: Attempt, unit: Unit) -> Attempt:
        alone = Attempt([unit], alone=True)
        alone.made, alone.deaths, alone.waits, alone.began = attempt.made, attempt.deaths, attempt.waits, attempt.began
        alone.notes = shared(attempt.notes, len(attempt.units))
        return alone

    def _count(self, attempt: Attempt) -> None:
        self._batches += not attempt.alone and len(attempt.units) > 1

    def _halve(self, attempt: Attempt, answer: Failed) -> None:
        """A batch that failed is tried again in halves, before anything that was not tried yet."""
        self._count(attempt)
        self._halved += not attempt.alone
        self._extra += 2
        failure = answer.failure
        self._last = f"{failure.type}: {failure.message[:_SHOWN]}"
        middle = (len(attempt.units) + 1) // 2
        for units in (attempt.units[middle:], attempt.units[:middle]):
            half = Attempt(units, alone=True)
            half.made, half.deaths, half.waits = attempt.made, attempt.deaths, attempt.waits
            half.notes = shared(attempt.notes, len(attempt.units) / len(units))
            self._schedule.at_once(half)

    def tell_halved(self, name: str) -> None:
        """Say, once the pass is over, how many batches failed and were halved."""
        if self._halved:
            log.warning(
                "checkpoint %r: %d of %d batches failed and were halved, down to single items where that failed too, "
                "which took %d more calls. The last one failed with %s. If the function takes less at a time, give a "
                "smaller batch_size=, or Batch(items, limit=…, size=…)",
                name, self._halved, self._batches, self._extra, self._last,
            )  # fmt: skip
            self._halved = 0

    def _split(self, attempt: Attempt) -> None:
        """A batch whose worker died is tried again item by item, before anything that was not tried yet."""
        for unit in reversed(attempt.units):
            self._schedule.at_once(self._alone(attempt, unit))

    def died(self, task: Task, death: Died) -> list[Done]:
        """What a worker's death makes of what it was at: whatever did not kill it must not suffer."""
        place = death.at_work
        if len(task) > 1 and place is not None and place < len(task):  # only the call that ran is blamed
            for attempt in reversed([*task[:place], *task[place + 1 :]]):
                self._schedule.lost(attempt)
                self._schedule.at_once(attempt)
            return self.died([task[place]], death)
        finished = []
        for attempt in reversed(task):
            self._schedule.lost(attempt)
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
                failure = failed(error).failure.counted(attempt.made + attempt.deaths, attempt.notes)
                finished.append(Done(attempt.units[0], failure))
        return finished

    def _each_alone(self, task: Task) -> list[Done]:
        """Nothing is to be settled: each call is made again by itself."""
        for attempt in reversed(task):
            self._schedule.lost(attempt)
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
        return [Done(unit, Success(value, None, task[0].made + 1, task[0].notes)) for unit in task[0].units]
