"""Calls made in the caller's thread, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any, Final

from checkpoint import clock
from checkpoint.errors import StoreError
from checkpoint.execution.answers import Answer, Fatal, failed
from checkpoint.execution.call import Call, ending
from checkpoint.execution.interfaces import Parallelism, PassPort, inputs_of
from checkpoint.execution.judge import AnswerHandler, Batches, unfinished
from checkpoint.execution.scheduler import Attempt, BadCost, Schedule
from checkpoint.execution.signals import Interrupts
from checkpoint.execution.surroundings import of_thread
from checkpoint.outcomes import Done, Success, Unit

__all__ = ["Parked", "serial"]


_END: Final = object()
_LOOK_UP = 0.5  # seconds: who waits for another pass sees a signal


def serial(desk: PassPort, call: Call, schedule: Schedule, spread: Parallelism) -> Iterator[None]:
    """One call after the other, in this thread; while a retry waits, others go on."""
    with Interrupts(desk.name, spread.grace, lambda: None) as interrupts:
        one_by_one = _straight if schedule.is_plain and not call.batch else _scheduled
        restore = of_thread()
        try:
            yield from one_by_one(desk, call, schedule, interrupts)
        finally:
            schedule.close()
            if restore is not None:
                restore()
        if interrupts.asked:
            raise interrupts.as_exception()


def _straight(desk: PassPort, call: Call, schedule: Schedule, interrupts: Interrupts) -> Iterator[None]:
    """What `_scheduled` comes to where nothing waits and each call is of one item: this is the per-item path."""
    judge = AnswerHandler(schedule, desk)
    desk.begin_when_admitted()
    parked, limits_cost = Parked(desk), desk.limits_cost
    items = iter(desk.items)
    for item in items:
        if interrupts.asked:
            return
        unit = desk.admit(item)
        if unit is not None and (not desk.is_shared or parked.is_ours(unit, interrupts)):
            if limits_cost and not desk.affords([unit]):
                return
            answer = call.one(item)
            if type(answer) is tuple:
                _settle(desk, [Done(unit, Success(answer[0], answer[1], 1))])
            elif type(answer) is Fatal:
                raise ending(answer.exception, desk.name, [unit])
            else:
                _settle(desk, judge.dones([Attempt([unit])], [answer]))
                if schedule.waits_for_retry:  # a step of the call was given up in doubt
                    desk.begin_when_called()
                    desk.put_off([unit])
                    yield from _by_schedule(desk, call, schedule, interrupts, judge, items)
                    return
        yield
        if interrupts.asked or desk.verdict is not None:
            return


class Parked:
    """The units of a pass whose keys other passes run; each comes back when that is over."""

    def __init__(self, desk: PassPort) -> None:
        self._desk = desk
        self._back: SimpleQueue[Unit] = SimpleQueue()
        self.count = 0

    def begin(self, units: list[Unit]) -> list[Unit]:
        """Those of the units that are to be called here; others need no call, or are parked."""
        called, ended = self._desk.begin(units, self._back.put)
        self.count += len(units) - len(called) - ended
        return called

    def back(self, timeout: float | None = None) -> Iterator[list[Unit]]:
        """Each that comes back, by itself; wait at most so many seconds for the next, or as long as it takes."""
        while self.count:
            try:
                unit = self._back.get(timeout=timeout) if timeout != 0 else self._back.get_nowait()
            except Empty:
                return
            self.count -= 1
            yield [unit]

    def is_ours(self, unit: Unit, interrupts: Interrupts) -> bool:
        """Whether the unit is to be called here: where another pass runs its key, that is over when this returns."""
        called = self.begin([unit])
        while self.count and not interrupts.asked:
            for units in self.back(_LOOK_UP):
                called = self.begin(units)
        return bool(called)


def _scheduled(desk: PassPort, call: Call, schedule: Schedule, interrupts: Interrupts) -> Iterator[None]:
    judge = AnswerHandler(schedule, desk)
    try:
        yield from _by_schedule(desk, call, schedule, interrupts, judge, iter(desk.items))
    finally:
        judge.tell_halved(desk.name)


def _by_schedule(
    desk: PassPort,
    call: Call,
    schedule: Schedule,
    interrupts: Interrupts,
    judge: AnswerHandler,
    items: Iterator[Any],
) -> Iterator[None]:
    def goes_on() -> bool:
        return desk.verdict is None and not interrupts.asked

    batches = Batches(call)
    parked, more = Parked(desk), True
    while goes_on():
        for units in parked.back(0):
            schedule.come_back(units[0])
        draws = more and schedule.wants_fresh and schedule.room(1) > 0
        attempt, answers = (None, []) if draws else _take(schedule)
        if attempt is None and more and schedule.room(1) > 0:
            item = next(items, _END)
            more = item is not _END
            unit = desk.admit(item) if more else None
            for new in batches.add(unit, flush=not more):
                schedule.add(new)
            if unit is None:
                yield
                continue
            attempt, answers = _take(schedule)
        if attempt is None:
            paused = schedule.paused
            if paused is not None:
                desk.tell_paused(paused)
            if not (_wait(parked, schedule) or more):
                break
            continue
        if not goes_on():  # it was asked to end while it drew
            break
        if not answers:
            schedule.keep(attempt, parked.begin(attempt.units))
            if not attempt.units:
                yield
                continue
            if desk.limits_cost and not desk.affords(attempt.units):
                return
            answers = call.many(inputs_of([attempt], batch=call.batch))
            if type(answers[0]) is Fatal:
                raise ending(answers[0].exception, desk.name, attempt.units)
        was_paused = schedule.held_since is not None
        finished = judge.dones([attempt], answers)
        if was_paused:
            desk.tell_paused(schedule.paused)
        desk.put_off(unfinished([attempt], finished))
        if finished:
            _settle(desk, finished)
            yield


def _wait(parked: Parked, schedule: Schedule) -> bool:
    """Wait a moment for what was parked or put off; False where there is nothing to wait for."""
    wait = schedule.wait()
    if parked.count:
        for units in parked.back(min(_LOOK_UP, _LOOK_UP if wait is None else wait)):
            schedule.come_back(units[0])
        return True
    if wait is None:
        return False
    clock.sleep(min(wait, _LOOK_UP))  # who is asked to end looks up
    return True


def _settle(desk: PassPort, finished: list[Done]) -> None:
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
