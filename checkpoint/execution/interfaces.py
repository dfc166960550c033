"""What engines, the coordinator and the workers are to each other: who asks, who calls, and what is told of a call.

Workers are given tasks (lists of attempts), never more at once than there are workers, and report each with its
answers, from whichever thread. Nothing here, and no worker, decides what becomes of an answer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from checkpoint import clock
from checkpoint.execution.scheduler import Attempt
from checkpoint.outcomes import Done, Unit

__all__ = [
    "Broken",
    "Died",
    "Early",
    "Grouping",
    "Parallelism",
    "PassPort",
    "Report",
    "Task",
    "Unsent",
    "Workers",
    "exit_in_words",
    "inputs_of",
]


_TOGETHER = 4  # reports that a busy event loop deals with at a time: more would keep calls waiting that could start
_BUSY = 0.0001  # seconds from report to report, of which dealing with one takes a third
Task = list[Attempt]
Report = Callable[[list[tuple[Task, Any]]], None]


class Died(NamedTuple):
    """In place of answers: the worker process died of the task.

    Attributes:
        exitcode: how it ended.
        why: what is known where that is no exit code.
        at_work: the place in the task of the call that ran; None where that is not known.
    """

    exitcode: int | None
    why: str = ""
    at_work: int | None = None


class Unsent(NamedTuple):
    """In place of answers: an item of the task could not travel, or an answer not come back."""

    error: Exception


class Broken(NamedTuple):
    """In place of answers: there are no workers any more; what they were at did not fail by itself."""

    error: Exception


class Early(NamedTuple):
    """In place of answers: those of some calls of a task that goes on without them, or has not made them (the rest).

    The answers of the calls that were made come first, as a list or packed.
    """

    answers: Any


def inputs_of(task: Task, *, batch: bool) -> list[Any]:
    """What the task's calls are given."""
    if batch:
        return [[unit.item for unit in attempt.units] for attempt in task]
    return [attempt.units[0].item for attempt in task]


class Grouping:
    """How many reports are dealt with at a time.

    To handle several together costs less for each, but the calls that follow start later, in bursts. So reports are
    grouped only while they come faster than they can be handled one by one; that is measured once for every round of
    as many reports as there are workers. Threads share one without a lock: a miscount does no harm.

    Attributes:
        size: so many; 1 where time is left.
    """

    def __init__(self, workers: int) -> None:
        self.size = 1
        self._workers = workers
        self._count = 0
        self._since = clock.monotonic()

    def dealt(self, count: int) -> None:
        """So many reports more."""
        self._count += count
        if self._count >= self._workers:
            now = clock.monotonic()
            self.size = min(_TOGETHER, self._workers) if now - self._since < self._count * _BUSY else 1
            self._count, self._since = 0, now


def exit_in_words(exitcode: int | None) -> str:
    """An exit code in words: "SIGKILL (exit code -9)"."""
    if exitcode is not None and exitcode < 0:
        try:
            return f"{signal.Signals(-exitcode).name} (exit code {exitcode})"
        except ValueError:
            pass
    return f"exit code {exitcode}"


class PassPort(Protocol):
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
        is_shared: whether other passes work on the same keys, so that each call must `begin`.
        limits_cost: whether each call is to be asked for before it begins: whether the pass `affords` it.
        has_unknown_costs: whether that is so, and nothing is known yet of what a call costs.
    """

    name: str
    items: Iterable[Any]

    @property
    def limits_cost(self) -> bool: ...

    @property
    def has_unknown_costs(self) -> bool: ...

    @property
    def is_shared(self) -> bool: ...

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

    def begin_when_admitted(self) -> None: ...

    def begin_when_called(self) -> None: ...

    def begin(self, units: list[Unit], again: Callable[[Unit], None]) -> tuple[list[Unit], int]: ...

    def put_off(self, units: list[Unit]) -> None: ...

    def affords(self, units: list[Unit]) -> bool: ...

    def attempted(self, units: list[Unit], cost: float) -> None: ...

    def settle(self, finished: list[Done]) -> None: ...

    def tell_paused(self, seconds: float | None) -> None: ...


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


class Parallelism(NamedTuple):
    """How work is spread.

    Attributes:
        slots: how many tasks run at once.
        chunksize: how many calls make a task; None: as many as take about `chunks.SPAN`.
        grace: seconds that what runs may go on once the pass is to end.
    """

    slots: int = 1
    chunksize: int | None = 1
    grace: float = 10.0
