"""`@checkpointed`: a thin skin of `.map` and its like on a function, which stays what it was.

A wrapt proxy, and its twin for bound methods, carry the extra attributes; everything they do is a pass of a runner.
"""

from __future__ import annotations

import atexit
import inspect
import logging
import os
import sys
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from functools import partial
from hashlib import blake2b
from operator import attrgetter
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from checkpoint.api.options import Arguments, Options, PassOptions, check_spread, cpu_count, may_overlap
from checkpoint.api.results import KeyedErrors, KeyedResults, Results, finish, raise_verdict
from checkpoint.api.runner import CheckpointedRunner, ShardRunner
from checkpoint.api.signatures import (
    check_function,
    element_of,
    innermost,
    is_async,
    least_arguments,
    most_arguments,
    named,
    return_annotation,
)
from checkpoint.catalog.paths import Directory
from checkpoint.catalog.shards import ALL, Shard, ShardOption, shard_of
from checkpoint.errors import CheckpointError, InvalidFunction, InvalidOption, ItemError, plural, quote
from checkpoint.execution.asynchronous import asynchronous
from checkpoint.execution.call import Call, is_in_call
from checkpoint.execution.concurrent import concurrent
from checkpoint.execution.executors import ExecutorWorkers
from checkpoint.execution.interfaces import Parallelism, Report, Workers
from checkpoint.execution.policies import Durability, ErrorLimit, OnChange, Rate, Retry, check_count, rates_of, retry_of
from checkpoint.execution.processes import Processes, refuse_while_importing_main
from checkpoint.execution.scheduler import Schedule
from checkpoint.execution.serial import serial
from checkpoint.execution.threads import Threads
from checkpoint.outcomes import Outcome
from checkpoint.passes.pipeline import Pass
from checkpoint.passes.plan import Plan, html_table, make_plan
from checkpoint.provenance.syntax import keep_sources
from checkpoint.provenance.version import moved_attributes, version_of
from checkpoint.values.inputs import items_of
from checkpoint.values.keys import KeyFunction, digest_function, identity, key_function, plain_key, version_digest
from checkpoint.values.secrets import quoted

__all__ = ["AsyncCheckpointedFunction", "CheckpointedFunction", "checkpointed"]


P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
T = TypeVar("T")
log = logging.getLogger("checkpoint")
_CURRENT: Any = object()  # the version of the function itself

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar

    from checkpoint.provenance.agreement import Agreement
    from checkpoint.provenance.drift import Lineage
    from checkpoint.provenance.fingerprint import Fingerprint

    V = _TypeVar("V", default=R)  # what a call returns: of a function of batches, more than one result

    class _Function(Generic[P, R]):
        __wrapped__: Callable[P, R]

        def __init__(self, wrapped: Any, wrapper: Any) -> None: ...

    class _Bound(Generic[P, R]):
        __wrapped__: Callable[P, R]

    class _Parts:
        __wrapped__: Any
        _self_options: Options
        _self_directory: Directory
        _self_base: Any
        _self_runners: dict[Any, CheckpointedRunner]
        _self_annotation: Any
        _self_checked: Any
        _self_checked_bound: Any
        _self_parent: Any
        _self_instance: Any
        _self_binding: str
else:
    import wrapt

    V = TypeVar("V")

    class _Function(wrapt.FunctionWrapper):
        def __class_getitem__(cls, _):
            return cls

    class _Bound(wrapt.BoundFunctionWrapper):
        def __class_getitem__(cls, _):
            return cls

    # An annotation in the body of a proxy's class, even one that is never run, would hide those of the function.
    _Parts = object


# --- what a decorated function can do --------------------------------------------------------------------------------


class _Work:
    """What an engine needs for one pass.

    Attributes:
        running: the pass.
    """

    def __init__(self, face: Any, function: Callable[[Any], Any], running: Pass, given: PassOptions) -> None:
        options = face._self_options
        self.running = running
        self._given = given
        self._timeout = options.timeout
        self._call = Call(
            function,
            named(function),
            batch_size=options.batch_size,
            validate=options.validate,
            retry=retry_of(options.retry),
            timeout=options.timeout,
            travels=_Inner(face),
            agreement=None if given.get("executor") is None else face._agreement(),
        )
        self._schedule = Schedule(retry_of(options.retry), rates_of(options.rate))

    def _spread(self, workers: int) -> Parallelism:
        return Parallelism(workers, self._given.get("chunksize") or 1, self._given.get("grace", 10.0))

    def run(self) -> Iterator[None]:
        """Make the calls: here, on threads, on processes, or on an executor."""
        executor, workers = self._given.get("executor"), self._given.get("workers")
        if executor is None and workers in (None, 1):
            return serial(self.running, self._call, self._schedule, self._spread(1))
        hire: Callable[[Report], Workers] = partial(Threads, self._call, workers or 1)
        if executor == "processes":
            workers = workers or cpu_count()
            hire = partial(Processes, self._call, workers, timeout=self._timeout)
        elif executor is not None:
            from checkpoint.execution.clusters import executor_of

            executor = executor_of(executor)
            workers = workers or getattr(executor, "_max_workers", None) or cpu_count()
            hire = partial(ExecutorWorkers, self._call, executor)
        return concurrent(self.running, self._call, self._schedule, self._spread(workers or 1), hire)

    def run_async(self, opened: ExitStack) -> AsyncIterator[None]:
        """Make the calls on tasks of the event loop that runs."""
        spread = self._spread(self._given.get("workers") or 1)
        return asynchronous(self.running, self._call, self._schedule, spread, opened)


def _meant_shard(option: ShardOption | None) -> Shard:
    """$CHECKPOINT_SHARD splits the work of the program; what one item needs of another map is needed whole."""
    return ALL if option is None and is_in_call() else shard_of(option)


def _told_shard(name: str, option: ShardOption | None) -> Shard:
    """The shard that is meant, which is told: what a map returns depends on it."""
    shard = _meant_shard(option)
    if shard != ALL:
        whence = "" if option is not None else " (of $CHECKPOINT_SHARD)"
        log.info("checkpoint %r: running shard %s%s: the items that are of it, and no others", name, shard, whence)
    return shard


class _Inner:
    """The inner function, on its way to a worker: its own name would lead to what is decorated."""

    def __init__(self, face: Any) -> None:
        self._face = face

    def __reduce__(self) -> Any:
        face = self._face
        if isinstance(face, _OnInstance):
            return (attrgetter("__wrapped__"), (face,))
        reduced = _reduced(face)
        if isinstance(reduced, str):
            return (attrgetter("__wrapped__"), (face,))
        if reduced[0] is _copied:
            return (attrgetter("__wrapped__"), (reduced[1][0],))
        return (_itself, (face.__wrapped__,))


def _itself(function: Any) -> Any:
    return function


def _tell_unread(name: str, code: Fingerprint) -> None:
    """Say once a process which values cannot be compared, and which names of `ignore=` no value has."""
    if code.unread and ("unread", name, code.name) not in _said:
        _said.add(("unread", name, code.name))
        listed = ", ".join(f"{one} (a {kind})" for one, kind in list(code.unread.items())[:5])
        log.info(
            "checkpoint %r: %s reads %s, which cannot be compared with what earlier runs read: where results depend on "
            "it, name what matters: @checkpointed(…, depends=[…])",
            name, code.name, listed + (", …" if len(code.unread) > 5 else ""),
        )  # fmt: skip
    if code.unused and ("unused", name, *code.unused) not in _said:
        _said.add(("unused", name, *code.unused))
        known = ", ".join(list(code.values)[:8]) or "no values"
        log.warning(
            "checkpoint %r: ignore= names %s, which %s does not read; it reads %s",
            name, ", ".join(map(quote, code.unused)), code.name, known,
        )  # fmt: skip


_said: set[tuple[str, ...]] = set()  # in this process


class _Face(Generic[R], _Parts):
    """What every decorated function has, bound or not, of either kind."""

    def _target(self) -> tuple[Callable[[Any], Any], Any]:
        """(what is called with an item, the instance it is bound to or None)."""
        raise NotImplementedError

    def _annotation(self) -> Any:
        """What the function says that it returns, or None."""
        raise NotImplementedError

    @property
    def runner(self) -> CheckpointedRunner:
        """The runner behind it, for this version and directory."""
        return self._runner_of(ALL)

    def _runner_of(self, shard: Shard) -> CheckpointedRunner:
        options = self._self_options
        function, instance = self._target()
        version = version_of(options.version, function, instance)
        directory = self._self_directory.find()
        place = (
            directory,
            "" if version is None else version_digest(version, "version", options.name),
            shard,
            os.getpid(),
        )
        runner = self._self_runners.get(place)
        if runner is None or runner.closed:
            result_type = options.result_type if options.result_type is not None else self._returned(options)
            kind = CheckpointedRunner if shard == ALL else partial(ShardRunner, shard)
            runner = self._self_runners[place] = kind(
                options.name, directory, version=version, durability=options.durability, result_type=result_type
            )
        return runner

    def _returned(self, options: Options) -> Any:
        """The annotation of one result."""
        annotation = self._annotation()
        return annotation if options.batch_size is None else element_of(annotation)

    @property
    def results(self) -> KeyedResults[R]:
        """The results of this version by key, read from disk on demand."""
        return KeyedResults(self.runner.records)

    @property
    def errors(self) -> KeyedErrors:
        """The failures of items that have no result, by key, read from disk on demand.

        `.causes()` groups them by type and place, and ``print(f.errors)`` shows that.
        """
        return KeyedErrors(self.runner.records)

    @property
    def unsaved(self) -> Mapping[Any, Any]:
        """Values that could not be encoded, by key; opening one unpickles it."""
        return self.runner.unsaved

    def clear(self, keys: Iterable[Any] | None = None) -> None:
        """Forget these keys under this version; or, without `keys`, everything, all versions and files included."""
        self.runner.clear(keys)

    def seed(self, key: Any) -> int:
        """A 64-bit seed for the key: the same in any order, on any worker, after any resume.

        Example:
            >>> simulate = checkpointed("simulations")(lambda run: run)
            >>> simulate.seed(7) == simulate.seed(7.0) != simulate.seed(8)
            True
        """
        name = self._self_options.name.encode()
        return int.from_bytes(blake2b(name + b"/" + identity(plain_key(key)), digest_size=8).digest(), "big")

    def _repr_html_(self) -> str:
        return html_table(f"checkpointed {named(self.__wrapped__)}", self._told())

    def _told(self) -> Iterator[tuple[str, str]]:
        """(what, text) of the function's checkpoint; it reads, and makes nothing."""
        options = self._self_options
        yield "checkpoint", f"{options.name} in {self._self_directory.find()}"
        try:
            done, failed = self.runner.records.count()
            yield "holds", f"{plural(done, 'result')}, {plural(failed, 'error')}"
        except CheckpointError as error:  # whoever only looks is told, and not stopped
            yield "holds", str(error)
        for field in fields(options):
            value = getattr(options, field.name)
            if field.name not in ("name", "checkpoint_dir") and value != field.default:
                yield field.name, quoted(value, 200)

    @contextmanager
    def _pass(
        self, items: Iterable[Any], given: PassOptions, *, collect: bool = False, is_async: bool = False
    ) -> Iterator[_Work]:
        """A pass over the items, and what it takes to run it."""
        if unknown := sorted(given.keys() - PassOptions.__annotations__.keys()):
            known = ", ".join(PassOptions.__annotations__)
            raise InvalidOption(f"there is no option {quote(unknown[0])} here; the options are {known}")
        options = self._self_options
        refuse_while_importing_main(options.name)
        check_spread(options, given, is_async=is_async)
        shard = _told_shard(options.name, given.get("shard"))
        desc = given.get("desc")
        function, instance = self._target()
        before = version_of(options.version, function, instance)
        code = self._fingerprint()
        lineage = self._lineage(code)
        try:
            with self._runner_of(shard).start_pass(
                items,
                key_function(options.key),
                digest_of=digest_function(options.input),
                on_change=options.on_change,
                overlapping=may_overlap(options, given),
                retry_failed=given.get("retry_failed", True),
                limit=ErrorLimit(given.get("max_errors")),
                collect=collect,
                progress=given.get("progress", True),
                desc=(options.name if shard == ALL else f"{options.name} {shard}") if desc is None else desc,
                lineage=lineage,
            ) as running:
                yield _Work(self, function, running, given)
        finally:
            changed = code.moved() if code else []
        if moved := moved_attributes(before, options.version, function, instance):
            log.warning(
                "checkpoint %r: %s changes self.%s while it runs, which its results are taken to depend on: the next "
                "map computes them anew; name what they depend on: @checkpointed(…, version=lambda self: …)",
                options.name, named(function), ", self.".join(moved),
            )  # fmt: skip
        if changed and options.version is None:
            log.warning(
                "checkpoint %r: what %s reads changed while it ran, and its results are taken to depend on it (%s): "
                "the next map refuses the other value; name what they depend on: @checkpointed(…, version=…)",
                options.name, named(function), "; ".join(changed),
            )  # fmt: skip

    def _agreement(self) -> Agreement | None:
        """What another process must agree on before it makes calls."""
        from checkpoint.provenance.agreement import agreement_of
        from checkpoint.provenance.fingerprint import fingerprint

        function, instance = self._target()
        options = self._self_options
        read = partial(fingerprint, bound=instance is not None, ignore=options.ignore, salt=options.name)
        return agreement_of(read, function)

    def _fingerprint(self) -> Fingerprint | None:
        """What tells whether the function has changed; None where it has no code that can be read."""
        from checkpoint.provenance.fingerprint import fingerprint  # it is large

        function, instance = self._target()
        options = self._self_options
        found = fingerprint(
            function, bound=instance is not None, depends=options.depends, ignore=options.ignore, salt=options.name
        )
        if found is not None:
            _tell_unread(options.name, found)
        return found

    def _lineage(self, code: Fingerprint | None) -> Lineage | None:
        """What a pass does where the function has changed."""
        if code is None:
            return None
        from checkpoint.provenance.drift import Lineage

        options = self._self_options
        label = None if options.version is None else version_of(options.version, *self._target())
        return Lineage(code, options.on_change, label, self._self_base)

    def accept(
        self,
        items: Iterable[Any] | None = None,
        *,
        version: Any = _CURRENT,
        convert: Callable[[Any], Any] | None = None,
    ) -> int:
        """Old results count as this function's from now on, in every process and on every machine; returns how many.

        Without arguments: those that earlier code, or code that read other values, computed of this version. Nothing is
        computed, and old records stay as they are. Call it where no map of the function runs.

        Args:
            items: the results of these items' keys stand for the items as they are, though they were computed from
                others. Default: nothing is said of items.
            version: the results of this version, None for those of no version, count where this one has none of the
                key. Default: the version stays what it is.
            convert: a function of an old result, objects of classes as plain JSON, that returns the new one, an object
                where the annotation names a class; it is written as a record of this version. Without it old results
                count as they are. What was converted once is not converted again, so that it may be killed and run
                again.

        Raises:
            InvalidOption: there is nothing of that version; the message says what there is.
            CheckpointLocked: another process writes this checkpoint, or a map of this one is running.

        Example:
            >>> ask = checkpointed("answers")(lambda n: n * 10)
            >>> _ = ask.map([1, 2], progress=False)
            >>> named = ask.options(version="tenfold")
            >>> named.accept(version=None)
            2
            >>> named.plan([1, 2]).done
            2
        """
        from checkpoint.catalog.decisions import (
            accept_code,
            accept_items,
            accept_version,
            check_version,
            convert_version,
        )

        records, code = self.runner.records, self._fingerprint()
        if version is _CURRENT:
            if convert is not None:
                raise InvalidOption("convert= goes with version=: accept(version=None, convert=…)")
            if items is not None:
                options = self._self_options
                digest_of = digest_function(options.input)
                return accept_items(records, items_of(items), key_function(options.key), digest_of)
            return 0 if code is None else sum(accept_code(records, code.digest).values())
        if items is not None:
            raise InvalidOption("accept takes items or version=, and not both: each decides something else")
        old = records.open().digest_of_version(version)
        check_version(records, old, version)
        if convert is None:
            count = accept_version(records, old)
            if code is not None:
                accept_code(records, code.digest)
            return count
        if not callable(convert) or inspect.iscoroutinefunction(convert):
            raise InvalidOption(f"convert is {quote(convert)}; give a plain function of the old result")
        lineage = self._lineage(code)
        try:
            if lineage is not None and code is not None:
                records.set_code(code.digest)
                lineage.note(records)
            return convert_version(records, old, convert)
        finally:
            if lineage is not None:
                lineage.end(records)

    def plan(self, items: Iterable[Any], *, workers: int | None = None, shard: ShardOption | None = None) -> Plan:
        """What a `map` of the items would do: counts, what has changed, how long it takes. Nothing is run or written.

        Args:
            items: as in `map`, but what can be read twice.
            workers: as for `map`; it divides the time that is expected.
            shard: as for `map`.

        Raises:
            InvalidKey, DuplicateKey: as `map` would.
            InvalidOption: the items can be read once only; the message has the fix.

        Example:
            >>> square = checkpointed("squares")(lambda n: n * n)
            >>> _ = square.map([1, 2], progress=False)
            >>> plan = square.plan([1, 2, 3, 3])
            >>> plan.done, plan.new, plan.duplicates
            (2, 1, 1)
        """
        options = self._self_options
        check_count("workers", workers)
        return make_plan(
            self._runner_of(_meant_shard(shard)).records,
            items,
            key_function(options.key),
            digest_of=digest_function(options.input),
            lineage=self._lineage(self._fingerprint()),
            on_change=options.on_change,
            workers=workers,
            rates=rates_of(options.rate),
        )


class _SyncFace(_Face[R]):
    """`.map` and `.stream` of a plain function."""

    @overload
    def map(
        self, items: Iterable[Any], *, return_exceptions: Literal[False] = False, **options: Unpack[PassOptions]
    ) -> Results[R]: ...
    @overload
    def map(
        self, items: Iterable[Any], *, return_exceptions: bool, **options: Unpack[PassOptions]
    ) -> Results[R | ItemError]: ...
    def map(
        self, items: Iterable[Any], *, return_exceptions: bool = False, **options: Unpack[PassOptions]
    ) -> Results[Any]:
        """Run the function on each item that has no result yet; return all results in the order of the items.

        Run the same line again after a kill, and only the rest is computed.

        Args:
            items: any iterable. What can be read twice is keyed first: keys, duplicates and counts are checked before
                anything runs. A one-shot iterator is drawn item by item.
            return_exceptions: whether failures stand in their places, as `ItemError`, instead of being raised.
            options: those of `PassOptions`: progress, desc, max_errors, retry_failed.

        Raises:
            ItemsFailed: some items failed, after every other one was run and saved. `.results` holds all places.
            TooManyErrors: `max_errors` was exceeded, or without it 100 items in a row failed in one way.
            InvalidKey, DuplicateKey, InputChanged: naming the items; nothing was run.
            CheckpointLocked: another process writes this checkpoint, or another pass is running.
            StoreError: results could not be written; `.unsaved` holds those that are not on disk.
        """
        with self._pass(items, options) as work:
            for _ in work.run():
                pass
            return finish(work.running, return_exceptions=return_exceptions)

    def stream(self, items: Iterable[Any], **options: Unpack[PassOptions]) -> Iterator[Outcome[R]]:
        """Yield an `Outcome` for each item as it completes, resumed ones included; `items` may be endless.

        What is yielded is on disk. An item's failure is its outcome's `.error`, and is not raised.

        Args:
            items: as in `map`.
            options: those of `PassOptions`: progress, desc, max_errors, retry_failed.

        Raises:
            TooManyErrors: as in `map`.
        """
        outcomes = self._outcomes(items, options)
        _streams.add(outcomes)
        return outcomes

    def _outcomes(self, items: Iterable[Any], options: PassOptions) -> Generator[Outcome[R], None, None]:
        with self._pass(items, options, collect=True) as work:
            running = work.running
            for _ in work.run():
                yield from running.take()
            yield from running.take()
            raise_verdict(running)
            running.check_drawn()


_streams: weakref.WeakSet[Any] = weakref.WeakSet()  # that may be suspended


def _end_streams() -> None:
    """At exit, while threads still run: later, who lets go of a stream would wait for them for ever."""
    for stream in list(_streams):
        try:
            stream.close()
        except ValueError:  # another thread is at it
            pass


atexit.register(_end_streams)


class _Dropping(AsyncIterator[T]):
    """An async generator whose resources are let go as soon as its consumer drops it.

    Dropped alone, it would be closed by its event loop, some time later: until then the checkpoint would be locked.
    """

    def __init__(self, outcomes: AsyncGenerator[T, None], opened: ExitStack) -> None:
        self._outcomes = outcomes
        self._opened = opened
        _streams.add(self)

    async def __anext__(self) -> T:
        return await anext(self._outcomes)

    async def aclose(self) -> None:
        """Close the generator."""
        await self._outcomes.aclose()

    def close(self) -> None:
        """Let go of all that it holds."""
        self._opened.close()

    __del__ = close


class _AsyncFace(_Face[R]):
    """`.map` and `.stream` of a coroutine function: the same, awaited."""

    @overload
    async def map(
        self, items: Iterable[Any], *, return_exceptions: Literal[False] = False, **options: Unpack[PassOptions]
    ) -> Results[R]: ...
    @overload
    async def map(
        self, items: Iterable[Any], *, return_exceptions: bool, **options: Unpack[PassOptions]
    ) -> Results[R | ItemError]: ...
    async def map(
        self, items: Iterable[Any], *, return_exceptions: bool = False, **options: Unpack[PassOptions]
    ) -> Results[Any]:
        """The `map` of a plain function, awaited: ``await f.map(items)``."""
        with self._pass(items, options, is_async=True) as work, ExitStack() as opened:
            async for _ in work.run_async(opened):
                pass
            await work.running.uploaded()
            return finish(work.running, return_exceptions=return_exceptions)

    def stream(self, items: Iterable[Any], **options: Unpack[PassOptions]) -> AsyncIterator[Outcome[R]]:
        """The `stream` of a plain function: ``async for outcome in f.stream(items)``."""
        opened = ExitStack()
        return _Dropping(self._outcomes(opened, items, options), opened)

    async def _outcomes(
        self, opened: ExitStack, items: Iterable[Any], options: PassOptions
    ) -> AsyncGenerator[Outcome[R], None]:
        with opened:
            work = opened.enter_context(self._pass(items, options, collect=True, is_async=True))
            running = work.running
            async for _ in work.run_async(opened):
                for outcome in running.take():
                    yield outcome
            for outcome in running.take():
                yield outcome
            await running.uploaded()
            raise_verdict(running)
            running.check_drawn()


# --- the proxies -----------------------------------------------------------------------------------------------------


def _plain(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


class _Unbound(_Face[R]):
    """What only the decorated function itself has."""

    def _target(self) -> tuple[Callable[[Any], Any], Any]:
        function = self.__wrapped__
        if function is self._self_checked:  # reading a signature takes as long as reading a result
            return function, None
        if least_arguments(function) > 1:
            raise InvalidFunction(
                f"{named(function)} takes more than the item: a method's map and accept are called on an instance "
                "(Scorer(...).score.map(items)), and @checkpointed stands above @classmethod or @staticmethod"
            )
        self._self_checked = function
        return function, None

    def options(self, **changes: Any) -> Self:
        """A copy with any of the decorator's arguments changed, `name` included."""
        options = self._self_options.changed(changes)
        moved = options.checkpoint_dir != self._self_options.checkpoint_dir
        made = _copied(self, options, None if moved else self._self_directory)
        made._self_base = self._self_base if self._self_options.version is None else self._self_options.version
        return made  # type: ignore[no-any-return]

    def _annotation(self) -> Any:
        if self._self_annotation is None:
            self._self_annotation = return_annotation(self.__wrapped__, {})
        return self._self_annotation

    # isinstance(f, FunctionType) is False on purpose: cloudpickle would take the proxy apart as a plain function. But
    # pydantic takes whatever stands in the body of a model and is no function for a field that lacks its annotation.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return FunctionType if asks.startswith("pydantic.") else type(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduced(self)

    def __repr__(self) -> str:
        return f"<checkpointed {self._self_options.name!r} {named(self.__wrapped__)}>"

    __str__ = __repr__


class _OnInstance(_Face[R]):
    """What only its bound twin has."""

    @property
    def _self_options(self) -> Options:  # type: ignore[override]
        return self._self_parent._self_options  # type: ignore[no-any-return]

    @property
    def _self_directory(self) -> Directory:  # type: ignore[override]
        return self._self_parent._self_directory  # type: ignore[no-any-return]

    @property
    def _self_base(self) -> Any:
        return self._self_parent._self_base

    @property
    def _self_runners(self) -> dict[Any, CheckpointedRunner]:  # type: ignore[override]
        return self._self_parent._self_runners  # type: ignore[no-any-return]

    def _target(self) -> tuple[Callable[[Any], Any], Any]:
        function = self.__wrapped__
        name = named(function)
        if self._self_instance is None and self._self_binding == "function":
            raise InvalidFunction(
                f"{name} is a method: it works on the item and on its instance; call .map, .plan and .accept on one: "
                f"{name.rpartition('.')[0].rpartition('.')[2] or 'Scorer'}(...).{name.rpartition('.')[2]}.map(items)"
            )
        parent, inner = self._self_parent, innermost(function)
        if inner is not parent._self_checked_bound:
            if most_arguments(function) < 1:
                raise InvalidFunction(f"{name} takes no item; a mapped method takes one besides its instance")
            if inner is innermost(parent.__wrapped__):  # what another descriptor makes may hold the instance
                parent._self_checked_bound = inner
        return function, None if self._self_binding == "staticmethod" else getattr(function, "__self__", None)

    def options(self, **changes: Any) -> Self:
        """A copy, bound to the same instance, with any of the decorator's arguments changed, `name` included."""
        held = getattr(self.__wrapped__, "__self__", None)
        owner = held if isinstance(held, type) else type(self._self_instance)
        return self._self_parent.options(**changes).__get__(self._self_instance, owner)  # type: ignore[no-any-return]

    def _annotation(self) -> Any:
        return self._self_parent._annotation()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Not by the function's name: an attribute of that name may be another, overridden, replaced or mangled.
        parent, instance = self._self_parent, self._self_instance
        held = getattr(self.__wrapped__, "__self__", None)
        owner = held if isinstance(held, type) else getattr(self, "_self_owner", None) or type(instance)
        for kind in owner.__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, _Unbound) and value.__wrapped__ is parent.__wrapped__:
                    found = (kind, name, self._self_options, self._self_directory)
                    return (_found_bound, (*found, instance, owner))
        return (_bound, (parent, instance, owner))


class BoundCheckpointedFunction(_OnInstance[R], _SyncFace[R], _Bound[P, V], Generic[P, R, V]):
    """A plain decorated function, bound to an instance."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V: ...


class BoundAsyncCheckpointedFunction(_OnInstance[R], _AsyncFace[R], _Bound[P, V], Generic[P, R, V]):
    """A decorated coroutine function, bound to an instance."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, V]: ...


class CheckpointedFunction(_Unbound[R], _SyncFace[R], _Function[P, V], Generic[P, R, V]):
    """What `checkpointed` makes of a function: it is called as ever, and has `.map` and its like."""

    __bound_function_wrapper__ = BoundCheckpointedFunction

    def __init__(
        self, wrapped: Callable[P, V], options: Options, annotation: Any = None, directory: Directory | None = None
    ) -> None:
        super().__init__(wrapped, _plain)
        self._self_options, self._self_annotation, self._self_runners = options, annotation, {}
        self._self_directory = Directory(options.checkpoint_dir) if directory is None else directory
        self._self_base = None  # the version of what it is a copy of
        self._self_checked = self._self_checked_bound = None  # the function that was found to take an item

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V: ...

        @overload
        def __get__(self, instance: None, owner: Any) -> Self: ...
        @overload
        def __get__(
            self: CheckpointedFunction[Concatenate[Any, Q], R, V], instance: object, owner: Any
        ) -> BoundCheckpointedFunction[Q, R, V]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...


class AsyncCheckpointedFunction(_Unbound[R], _AsyncFace[R], _Function[P, V], Generic[P, R, V]):
    """What `checkpointed` makes of a coroutine function: `.map` is awaited."""

    __bound_function_wrapper__ = BoundAsyncCheckpointedFunction

    def __init__(
        self, wrapped: Callable[P, Any], options: Options, annotation: Any = None, directory: Directory | None = None
    ) -> None:
        super().__init__(wrapped, _plain)
        self._self_options, self._self_annotation, self._self_runners = options, annotation, {}
        self._self_directory = Directory(options.checkpoint_dir) if directory is None else directory
        self._self_base = None  # the version of what it is a copy of
        self._self_checked = self._self_checked_bound = None  # the function that was found to take an item

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, V]: ...

        @overload
        def __get__(self, instance: None, owner: Any) -> Self: ...
        @overload
        def __get__(
            self: AsyncCheckpointedFunction[Concatenate[Any, Q], R, V], instance: object, owner: Any
        ) -> BoundAsyncCheckpointedFunction[Q, R, V]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...


def _reduced(function: Any) -> Any:
    """By reference where its name leads back to it; as a copy of its kin where it leads to that; else by parts."""
    wrapped, options, directory = function.__wrapped__, function._self_options, function._self_directory
    module, name = getattr(wrapped, "__module__", None), getattr(wrapped, "__qualname__", "<locals>")
    taken_along = module == "__main__" and _is_cloudpickling()
    found: Any = sys.modules.get(module) if module and not taken_along else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is function:
        return name
    if isinstance(found, _Unbound) and found.__wrapped__ is wrapped:
        return (_copied, (found, options, directory))
    return (type(function), (wrapped, options, None, directory))


def _bound(function: Any, instance: Any, owner: type) -> Any:
    return function.__get__(instance, owner)


def _found_bound(kind: type, name: str, options: Options, directory: Directory, instance: Any, owner: type) -> Any:
    found = vars(kind)[name]
    return _bound(found if found._self_options == options else _copied(found, options, directory), instance, owner)


def _is_cloudpickling() -> bool:
    """Whether cloudpickle asks, which takes the functions of __main__ along: where they arrive, they have no name.

    A reducer is not told who asks, so we look at who called.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if "cloudpickle" in frame.f_globals.get("__name__", ""):
            return True
        frame = frame.f_back
    return False


def _copied(function: Any, options: Options, directory: Directory | None) -> Any:
    return type(function)(function.__wrapped__, options, function._self_annotation, directory)


# --- the decorator ---------------------------------------------------------------------------------------------------


class _Decorator:
    """What ``checkpointed(...)`` returns: makes a function a checkpointed one."""

    __slots__ = ("_options",)

    def __init__(self, options: Options) -> None:
        self._options = options

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function too: the first that fits wins
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCheckpointedFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> CheckpointedFunction[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        check_function(function)
        keep_sources(function)
        kind = AsyncCheckpointedFunction if is_async(innermost(function)) else CheckpointedFunction
        # Classes that are local to the decorating function have no other place where their names could be looked up.
        annotation = return_annotation(function, sys._getframe(1).f_locals)
        return kind(function, self._options, annotation)


if TYPE_CHECKING:

    class _BatchDecorator:
        """The same with `batch_size`: the function takes a list, and a result is one of the list that it returns."""

        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, Sequence[R]]], /
        ) -> AsyncCheckpointedFunction[P, R, Sequence[R]]: ...
        @overload
        def __call__(self, function: Callable[P, Sequence[R]], /) -> CheckpointedFunction[P, R, Sequence[R]]: ...
        def __call__(self, function: Any, /) -> Any: ...


@overload
def checkpointed(name: str, *, batch_size: None = None, **options: Unpack[Arguments]) -> _Decorator: ...


@overload
def checkpointed(name: str, *, batch_size: int, **options: Unpack[Arguments]) -> _BatchDecorator: ...


def checkpointed(
    name: str,
    *,
    key: str | KeyFunction | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    version: Any = None,
    depends: Any = (),
    ignore: str | Sequence[str] = (),
    input: str | Sequence[str] | Callable[[Any], Any] | None = None,
    on_change: OnChange | None = None,
    batch_size: int | None = None,
    retry: int | Retry | None = None,
    rate: str | Rate | Sequence[str | Rate] | None = None,
    timeout: float | None = None,
    validate: Callable[[Any], Any] | None = None,
    durability: Durability = "process",
    result_type: Any = None,
) -> Any:
    """Make a per-item function a resumable mapper: the function stays as it is, and gets `.map`.

    Args:
        name: letters, digits, space, ``.``, ``_``, ``-``, at most 200 bytes: it names the files.
        key: what names an item: a function of it, a field's name (``"id"``), or None: then the item is its own key, or
            its content is, by hash.
        checkpoint_dir: the directory; default ``$CHECKPOINT_DIR``, else ``./checkpoints``.
        version: any JSON value that names what results depend on besides the item (prompt, model, parameters), or a
            function of the bound instance that returns one. A method's default is its instance's JSON-like attributes.
        depends: what results depend on besides, and no code shows: values, files by their content (`pathlib.Path`),
            templates, classes by their schema; one of these, or a tuple of them. Default: nothing.
        ignore: names of variables, as messages give them, that results do not depend on. Default: none.
        input: what of an item its result depends on, where that is not all of it (a time of download does not count):
            the name of a field, a list of names, or a function of the item. Default: all of it.
        on_change: what to do where the item of a known key has changed, or the function has: "keep" the results (it is
            said), "recompute" them, or "error". Default: an item that changed, and a value that the function reads and
            that changed, are errors before anything is run; other changes of its code are said.
        batch_size: the function takes a list of at most so many items, and returns a list with one value for each. Each
            is a result, or has failed, by itself; a batch that fails is tried again item by item. Default: one item.
        retry: how many attempts a call gets, the first included, or a `Retry`. Default: one.
        rate: how many calls may start in a span of time: "500/min", a `Rate`, or several of these. Default: any.
        timeout: seconds that a call may take: coroutines are cancelled, processes killed. On threads, where nothing can
            be stopped, `map` refuses it. Default: any.
        validate: a function of the value that returns False or raises where the value is no result (empty, refused, cut
            short): the item has failed then. Values that are saved already are not validated again.
        durability: "process" survives the death of the process, and a power cut but for the last second; "power" syncs
            every record.
        result_type: an annotation that names classes to rebuild; default the function's return annotation, of a
            function of batches that of its list's elements.

    Raises:
        InvalidName, InvalidOption: an argument is wrong.
        InvalidFunction: what is decorated is no function of one item.

    Example:
        >>> @checkpointed("squares")
        ... def square(n: int) -> int:
        ...     return n * n
        >>> square.map([3, 3, 5])
        Results([9, 9, 25])
        >>> square(4)
        16
    """
    return _Decorator(
        Options(
            name, key, checkpoint_dir, version, depends, ignore, input, on_change, batch_size, retry, rate, timeout,
            validate, durability, result_type,
        )
    )  # fmt: skip
