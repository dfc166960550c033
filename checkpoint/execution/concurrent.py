"""Calls made by workers under a coordinator, while the consumer's thread draws and admits items.

An engine stands between `admit` and `settle`, which it is given. Items are drawn and admitted where the consumer is, so
that workers and event loops need not wait for the disk. (A loop, the thread that serves processes, and a worker thread
where calls end seldom, settle by themselves while that takes less than two milliseconds: handing over and back takes
longer.)

Bounds: at most N = ``workers x chunksize`` calls (or one batch a worker) are begun and not on disk. Fewer than N
further items are drawn ahead: none with one worker, and 64 more of a list, a tuple or a range, whose items are in
memory anyway. Drawing stops when N + 32 calls wait for a retry. Engines know nothing of keys, disks or bars.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any

from checkpoint import clock
from checkpoint.errors import StoreError, quote
from checkpoint.execution.call import Call
from checkpoint.execution.coordinator import Coordinator
from checkpoint.execution.interfaces import Parallelism, PassPort, Report, Task, Workers
from checkpoint.execution.scheduler import Schedule
from checkpoint.execution.signals import Interrupts
from checkpoint.outcomes import NOT_YET, Unit

__all__ = ["PoolDriver", "draw_items", "raise_unsaved", "raise_why"]


log = logging.getLogger("checkpoint")
_UNSEEN = 64  # items that are drawn before others have a turn
_LOOK_UP = 0.5  # seconds: a signal that comes just as the main thread goes to sleep does not wake it


def draw_items(desk: PassPort, coordinator: Coordinator, interrupts: Interrupts) -> Iterator[bool | None]:
    """Draw, admit and hand over until all is settled or it must end, and what runs has finished.

    Yields whether to wait until woken; whoever consumes may look for outcomes each time. None: others may have a turn.
    """

    def goes_on() -> bool:
        return not (coordinator.stopped or interrupts.asked)

    units_of = _several if desk.in_memory and not desk.is_watched else _one_by_one
    for units, others in units_of(desk, coordinator):
        if units:
            coordinator.add(units)
        if others is not False or desk.is_watched:
            yield others
        while (desk.is_crowded or coordinator.room <= 0) and goes_on():
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


def _one_by_one(desk: PassPort, _: Coordinator) -> Iterator[tuple[list[Unit], bool | None]]:
    """What was drawn and admitted, and whether others may have a turn (None) or not (False), or it waits (True)."""
    for drawn, item in enumerate(desk.items, 1):
        if item is NOT_YET:
            yield [], True
            continue
        unit = desk.admit(item)
        yield [] if unit is None else [unit], False if drawn % _UNSEEN else None


def _several(desk: PassPort, coordinator: Coordinator) -> Iterator[tuple[list[Unit], None]]:
    """The same for items in memory: as many at a time as there is room for."""
    while (units := desk.admit_next(min(max(coordinator.room, 1), _UNSEEN))) is not None:
        yield units, None


def raise_why(coordinator: Coordinator, interrupts: Interrupts) -> None:
    """Raise what ended the pass, if anything did."""
    if coordinator.failure is not None:
        raise coordinator.failure
    if interrupts.asked:
        raise interrupts.as_exception()


def raise_unsaved(coordinator: Coordinator, leaving: BaseException | None) -> None:
    """The way out goes on by the exception, unless it would lose what the store could not save."""
    failure = coordinator.failure
    if isinstance(failure, StoreError) and leaving is not None and leaving is not failure:
        if isinstance(leaving, (KeyboardInterrupt, SystemExit, GeneratorExit)):
            keys = quote(list(failure.unsaved)[:10])
            log.error("%s; %d results are not on disk, those of keys %s", failure, len(failure.unsaved), keys)
        else:
            raise failure from leaving


def _at_exit() -> bool:
    """Whether the process ends, which nothing that runs here may delay."""
    return not threading.main_thread().is_alive()


class PoolDriver:
    """Draws items in the thread that runs it, and has them called by workers.

    The workers call `report`; the coordinator's thread and signal handlers call `wake` and `interrupt`.

    Args:
        desk: the pass.
        call: what is called.
        schedule: when each call may start.
        spread: how many calls run at once, and how long they may go on once the pass is to end.
        make_workers: is given `report`, and returns the workers.
    """

    __slots__ = ("_coordinator", "_desk", "_grace", "_wakes", "_workers")

    def __init__(
        self,
        desk: PassPort,
        call: Call,
        schedule: Schedule,
        spread: Parallelism,
        make_workers: Callable[[Report], Workers],
    ) -> None:
        self._desk, self._grace = desk, spread.grace
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._coordinator = Coordinator(desk, call, schedule, spread, self.wake)
        self._workers = make_workers(self.report)

    def run(self) -> Iterator[None]:
        """Make the calls; each time that this yields there may be outcomes.

        A consumer that leaves waits at most the grace for what runs.

        Raises:
            StoreError: results could not be saved.
            KeyboardInterrupt, SystemExit: a signal asked for the end.
        """
        coordinator = self._coordinator
        with Interrupts(self._desk.name, self._grace, self.interrupt) as interrupts:
            try:
                coordinator.begin(self._workers)
                for waits in draw_items(self._desk, coordinator, interrupts):
                    if waits:
                        self.wait(_LOOK_UP)
                    yield
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:  # who consumes has left, or the items raised
                self._let_finish(interrupts)
                raise
            finally:
                try:
                    coordinator.close()
                finally:
                    self._workers.close()
                raise_unsaved(coordinator, sys.exception())
            raise_why(coordinator, interrupts)

    def wait(self, timeout: float) -> None:
        """Wait until `wake` is called, or this many seconds are over."""
        with suppress(Empty):
            self._wakes.get(timeout=timeout)

    def wake(self) -> None:
        """Have the consumer's thread look, where there is something to do for it."""
        if self._wakes.empty() and self._coordinator.wants_drawer:
            self._wakes.put(None)

    def interrupt(self) -> None:
        """The first signal: start nothing more."""
        self._coordinator.stopped = True  # not `stop`: a handler must not wait for a lock
        self.wake()

    def report(self, finished: list[tuple[Task, Any]]) -> None:
        """Take the answers to these tasks, and have them settled: here where that is quick."""
        if self._workers.settles and self._coordinator.deal_at_once(finished):
            self.wake()
        else:
            for task, answers in finished:
                self._coordinator.report(task, answers)

    def _let_finish(self, interrupts: Interrupts) -> None:
        """Start nothing more, and wait at most the grace for what runs."""
        coordinator = self._coordinator
        coordinator.stop()
        if threading.get_ident() != threading.main_thread().ident:
            interrupts.let_go()  # the main thread goes on, and is interrupted as ever
        end = clock.monotonic() + self._grace
        while not (coordinator.is_quiet or interrupts.over or _at_exit()):
            if (left := end - clock.monotonic()) <= 0:
                break
            self.wait(min(left, _LOOK_UP))
