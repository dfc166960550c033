"""What becomes of answers: which are results, which failures, which calls are made again, alone or later."""

from __future__ import annotations

from checkpoint.errors import WorkerDied, quote_error
from checkpoint.execution.answers import Answer, Failed, failed
from checkpoint.execution.call import Call
from checkpoint.execution.interfaces import Died, Task, exit_in_words
from checkpoint.execution.scheduler import Attempt, Schedule
from checkpoint.execution.transport import Unreadable
from checkpoint.outcomes import Done, Success, Unit

__all__ = ["AnswerHandler", "Batches", "unfinished"]


_MOST_DEATHS = 3


def unfinished(task: Task, finished: list[Done]) -> list[Unit]:
    """The units of a task that are not among what finished: their calls are made again."""
    keys = {done.unit.key for done in finished}
    return [unit for attempt in task for unit in attempt.units if unit.key not in keys]


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


class AnswerHandler:
    """Answers become what is settled, or go back to the schedule."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.doubts_deaths = False  # whether what is told to have died of a call may have died of another

    def dones(self, task: Task, answers: list[Answer]) -> list[Done]:
        """What is to be settled of a task's answers."""
        finished: list[Done] = []
        if len(answers) < len(task):
            for attempt in reversed(task[len(answers) :]):
                self._schedule.lost(attempt)
                self._schedule.at_once(attempt)  # not called, since one before it said so
        for attempt, answer in zip(task, answers, strict=False):
            kind = type(answer)
            if kind is tuple:
                self._schedule.answered(attempt)
                made = attempt.made + attempt.deaths + 1
                finished.append(Done(attempt.units[0], Success(answer[0], answer[1], made)))
            elif kind is list:  # each item of a batch that returned is done, or has failed, by itself
                self._schedule.answered(attempt)
                finished += self.dones([self._alone(attempt, unit) for unit in attempt.units], answer)
            else:
                finished += self._failed(attempt, answer)
        return finished

    def _failed(self, attempt: Attempt, answer: Failed) -> list[Done]:
        failure, again = answer
        several = len(attempt.units) > 1
        if several and (again is None or (again.after is None and not again.trouble)):
            self._schedule.answered(attempt)
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
                failure = failed(error).failure.counted(attempt.made + attempt.deaths)
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
        return [Done(unit, Success(value, None, task[0].made + 1)) for unit in task[0].units]
