"""The options of `checkpointed` and of `map`, which are checked when they are given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from checkpoint.catalog.paths import check_name
from checkpoint.catalog.shards import ShardOption
from checkpoint.errors import InvalidFunction, InvalidName, InvalidOption, quote
from checkpoint.execution.policies import (
    Batch,
    Durability,
    OnChange,
    Rate,
    Retry,
    batch_of,
    check_choice,
    check_count,
    check_parse,
    check_seconds,
    check_validate,
    rates_of,
    retry_of,
)
from checkpoint.values.keys import KeyFunction, digest_function, key_function, plain_version, version_digest

if TYPE_CHECKING:
    from checkpoint.execution.clusters import Submits

__all__ = ["Arguments", "Options", "PassOptions", "check_spread", "may_overlap"]


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of `checkpointed`, checked when they are given."""

    name: str
    key: str | KeyFunction | None = None
    checkpoint_dir: str | os.PathLike[str] | None = None
    version: Any = None
    depends: Any = ()
    ignore: str | Sequence[str] = ()
    input: str | Sequence[str] | Callable[[Any], Any] | None = None
    on_change: OnChange | None = None
    batch_size: int | Batch | None = None
    retry: int | Retry | None = None
    rate: str | Rate | Sequence[str | Rate] | None = None
    timeout: float | None = None
    validate: Callable[[Any], Any] | None = None
    parse: Callable[[Any], Any] | None = None
    durability: Durability = "process"
    result_type: Any = None
    lock_timeout: float = 0.0

    def __post_init__(self) -> None:
        if callable(self.name):
            raise InvalidName('@checkpointed takes a name; write @checkpointed("summaries")', name=self.name)
        check_name(self.name)
        key_function(self.key)
        digest_function(self.input)
        check_choice("durability", self.durability, Durability)
        if self.on_change is not None:
            check_choice("on_change", self.on_change, OnChange)
        batch_of(self.batch_size)
        retry_of(self.retry)
        object.__setattr__(self, "rate", rates_of(self.rate) or None)  # one object, and so one quota, for all passes
        if self.timeout is not None:
            check_seconds("timeout", self.timeout, positive=True)
        check_validate(self.validate)
        check_parse(self.parse)
        check_seconds("lock_timeout", self.lock_timeout)
        if not (self.version is None or callable(self.version)):
            object.__setattr__(self, "version", plain_version(self.version))
            version_digest(self.version, "version", self.name)
        if self.depends.__class__ is not tuple or self.depends or self.ignore:
            from checkpoint.provenance.dependencies import check_depends, ignored_names

            check_depends(self.depends)
            ignored_names(self.ignore)

    def changed(self, changes: Mapping[str, Any]) -> Options:
        """A copy with some of them changed."""
        known = [field.name for field in fields(self)]
        if unknown := [name for name in changes if name not in known]:
            raise InvalidOption(f"there is no option {quote(unknown[0])}; the options are {', '.join(known)}")
        return replace(self, **changes)


class PassOptions(TypedDict, total=False):
    """The options of `map` and `stream`.

    Attributes:
        workers: how many calls are made at once: threads for a plain function, tasks of the event loop for a coroutine
            function. Default 1: in the caller's own thread; for processes, the number of CPUs.
        executor: "processes" for worker processes, "ray", any `concurrent.futures.Executor`, a Dask client, or an
            executor of submitit; not for coroutine functions.
        chunksize: how many calls a worker is handed at a time. Default, on processes and given executors: as many as
            take about 20 ms, so that calls of microseconds travel together and long ones alone; with `batch_size`,
            `rate`, `timeout` or retries that wait, one. On threads one. Failures, retries and records stay per item.
        progress: whether a bar is shown; default True.
        desc: what stands before it; default the checkpoint's name.
        max_errors: more failures than this end the pass: a count, or a fraction (below 1) once a hundred have run.
            Default: a hundred in a row with one exception type. Items that fail as they did in an earlier pass do not
            count.
        max_cost: what the checkpoint may have cost in all, by whichever run, in the unit of ``note(cost=…)``: the pass
            ends with `MaxCostReached` before that is exceeded, what is in flight reckoned at the mean of what is known
            (while fewer than ten costs are known, at the largest). Default, or inf: no limit.
        retry_failed: whether items that failed earlier are run again (default), or stand in their places. Those that
            were given up (`GiveUp`) stand in any case.
        grace: seconds that what runs may go on after Ctrl-C or SIGTERM; default 10.
        shard: run and return only the items of one shard: (i, n), 0 ≤ i < n, or "slurm" for the place of this task in
            its Slurm array; (0, 1) is all. Default: what ``$CHECKPOINT_SHARD`` says (``3/100`` or ``slurm``), else all.
    """

    workers: int | None
    executor: Literal["processes", "ray"] | Submits | None
    chunksize: int | None
    progress: bool
    desc: str | None
    max_errors: int | float | None
    max_cost: float | None
    retry_failed: bool
    grace: float
    shard: ShardOption | None


def check_spread(options: Options, given: PassOptions, *, is_async: bool) -> None:
    """Refuse options that the engine cannot keep, before anything is read.

    Raises:
        InvalidOption: saying what can.
        InvalidFunction: a coroutine function, and no event loop of asyncio.
    """
    executor, timeout = given.get("executor"), options.timeout
    check_count("workers", given.get("workers"))
    check_count("chunksize", given.get("chunksize"))
    check_seconds("grace", given.get("grace", 10.0))
    _check_cost(given.get("max_cost"))
    several = (given.get("chunksize") or 1) > 1
    if is_async:
        _need_loop()
    if is_async and (executor is not None or several):
        what = "executor" if executor is not None else "chunksize"
        raise InvalidOption(
            f"{what}= is for plain functions; a coroutine function runs on its event loop: use workers="
        )
    if not (executor is None or (isinstance(executor, str) and executor in ("processes", "ray"))):
        from checkpoint.execution.clusters import refuse_lookalike

        refuse_lookalike(executor)
    if several and options.batch_size is not None:
        raise InvalidOption("chunksize= goes with functions of one item; with batch_size= a batch is handed over whole")
    if several and options.rate is not None:
        raise InvalidOption("rate= counts calls as they start, and a chunk is handed over whole: leave chunksize= out")
    if timeout is None or is_async:
        return
    if executor != "processes":
        raise InvalidOption(
            f"timeout={timeout:g} cannot be kept here: nothing can stop a thread, nor what runs on an executor that "
            'was given. Use executor="processes", a coroutine function, or the timeout of the client that is called'
        )
    if several:
        raise InvalidOption("timeout= is for one call, and a chunk is handed over whole: leave chunksize= out")


def _check_cost(limit: float | None) -> None:
    is_number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
    if limit is not None and not (is_number and limit >= 0):
        raise InvalidOption(f"max_cost is {quote(limit)}; give a number of 0 or more, in the unit of note(cost=…)")


def _need_loop() -> None:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise InvalidFunction(
            "the map of a coroutine function is awaited in an event loop of asyncio, and none runs here. Write "
            "asyncio.run(f.map(items)); under trio do so in a thread, await trio.to_thread.run_sync(lambda: "
            "asyncio.run(f.map(items))), or where the function itself needs trio map a plain one on threads: "
            "lambda item: trio.run(function, item)"
        ) from None


def may_overlap(options: Options, given: PassOptions) -> bool:
    """Return whether an item may be drawn while an earlier one is not done."""
    several = given.get("workers") not in (None, 1) or given.get("executor") is not None
    batch = batch_of(options.batch_size)
    return several or (batch is not None and batch.items > 1) or options.retry is not None


class Arguments(TypedDict, total=False):
    """The arguments of `checkpointed` other than the name, `batch_size` and `parse`."""

    key: str | KeyFunction | None
    checkpoint_dir: str | os.PathLike[str] | None
    version: Any | Callable[[Any], Any]
    depends: Any
    ignore: str | Sequence[str]
    input: str | Sequence[str] | Callable[[Any], Any] | None
    on_change: OnChange | None
    retry: int | Retry | None
    rate: str | Rate | Sequence[str | Rate] | None
    timeout: float | None
    validate: Callable[[Any], Any] | None
    durability: Durability
    result_type: Any
    lock_timeout: float
