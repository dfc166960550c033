"""Choose the engine of a pass: the caller's thread, threads, processes, an executor, or tasks of an event loop.

An engine is imported when it is chosen.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import ExitStack
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from checkpoint.api.options import Options, PassOptions
from checkpoint.api.signatures import named
from checkpoint.errors import UnguardedMain
from checkpoint.execution.call import Call
from checkpoint.execution.chunk_size import SPAN
from checkpoint.execution.interfaces import Parallelism, Report, Workers
from checkpoint.execution.policies import rates_of, retry_of
from checkpoint.execution.scheduler import Schedule
from checkpoint.execution.serial import serial
from checkpoint.passes.pipeline import Pass

if TYPE_CHECKING:
    from checkpoint.execution.asynchronous import AwaitedItems
    from checkpoint.provenance.agreement import Agreement

__all__ = ["Dispatch", "refuse_while_importing_main"]


class Dispatch:
    """The calls of one pass, on the engine that its options name.

    Args:
        function: is called with an item, or a batch.
        running: the pass, which admits items and settles answers.
        options: of the decorator.
        given: the options of the pass.
        travels: is pickled in place of the function.
        agreement: other processes must confirm it before they make calls; None where they need not.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        running: Pass,
        options: Options,
        given: PassOptions,
        *,
        travels: Any,
        agreement: Agreement | None,
    ) -> None:
        self.running = running
        self._function, self._travels, self._agreement = function, travels, agreement
        self._given, self._options = given, options
        self._timeout = options.timeout

    @cached_property
    def _call(self) -> Call:
        """The function to call, prepared when the first call is needed: many passes find everything done."""
        options, running = self._options, self.running
        return Call(
            self._function,
            named(self._function),
            batch_size=options.batch_size,
            validate=options.validate,
            retry=retry_of(options.retry),
            timeout=options.timeout,
            travels=self._travels,
            encode=running.records.encode,
            agreement=self._agreement,
            keys=running.in_flight,
            tells_items=not self._is_serial,
            span=SPAN if self._chunksize is None else None,
        )

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule(retry_of(self._options.retry), rates_of(self._options.rate))

    def run(self) -> Iterator[None]:
        """Make the calls: here, on threads, on processes, or on an executor."""
        if not self.running.input.any_drawn:
            return iter(())
        if self._is_serial:
            return serial(self.running, self._call, self._schedule, self._parallelism(1))
        from checkpoint.execution.concurrent import PoolDriver

        workers, make_workers = self._workers()
        parallelism = self._parallelism(workers)
        return PoolDriver(self.running, self._call, self._schedule, parallelism, make_workers).run()

    def _workers(self) -> tuple[int, Callable[[Report], Workers]]:
        """Return how many workers there are and the function that makes them."""
        from checkpoint.execution.cpus import cpu_count

        executor, workers = self._given.get("executor"), self._given.get("workers")
        if executor is None:
            from checkpoint.execution.threads import Threads

            return workers or 1, partial(Threads, self._call, workers or 1)
        if executor == "processes":
            from checkpoint.execution.processes import Processes

            workers = workers or cpu_count()
            return workers, partial(Processes, self._call, workers, timeout=self._timeout)
        from checkpoint.execution.clusters import executor_of
        from checkpoint.execution.executors import ExecutorWorkers

        executor = executor_of(executor)
        workers = workers or getattr(executor, "_max_workers", None) or cpu_count()
        return workers, partial(ExecutorWorkers, self._call, executor, workers)

    @property
    def _is_serial(self) -> bool:
        """Whether one call is made at a time."""
        return self._given.get("executor") is None and self._given.get("workers") in (None, 1)

    def run_async(self, opened: ExitStack, source: AwaitedItems | None) -> AsyncGenerator[None, None]:
        """Make the calls on tasks of the running event loop."""
        from checkpoint.execution.asynchronous import LoopDriver

        parallelism = self._parallelism(self._given.get("workers") or 1)
        return LoopDriver(self.running, self._call, self._schedule, parallelism, opened, source).run()

    def _parallelism(self, workers: int) -> Parallelism:
        return Parallelism(workers, self._chunksize, self._given.get("grace", 10.0))

    @property
    def _chunksize(self) -> int | None:
        """How many calls travel together; None: that adapts, where nothing counts single calls as they start."""
        chunksize, options = self._given.get("chunksize"), self._options
        if chunksize is not None:
            return chunksize
        retry = retry_of(options.retry)
        waits = retry is not None and retry.attempts > 1 and retry.wait != 0
        is_counted = options.batch_size is not None or options.rate is not None or options.timeout is not None
        return 1 if self._given.get("executor") is None or is_counted or waits else None


def refuse_while_importing_main(name: str) -> None:
    """Refuse to map while a worker process imports the main module: an unguarded script would map in every worker.

    Raises:
        UnguardedMain: this is what it is doing.
    """
    multiprocessing = sys.modules.get("multiprocessing.process")
    if multiprocessing is not None and getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UnguardedMain(
            f"a worker process imports the main module, and comes upon the map of {name!r} in it. Put what the script "
            'does under a guard:\n\n    if __name__ == "__main__":\n        f.map(items, executor="processes")'
        )
