"""The methods that decorating adds to a function: `map`, `stream`, `results`, `plan` and the rest.

A face is mixed into a proxy, which says what function it stands for; everything that a face does is a pass of a runner.
"""

from __future__ import annotations

import inspect
import logging
import marshal
import os
from collections.abc import (
    AsyncIterable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import contextmanager
from dataclasses import fields
from functools import lru_cache, partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, Unpack, overload
from weakref import ref

from checkpoint.api.dispatch import Dispatch, refuse_while_importing_main
from checkpoint.api.frames import USERS_FRAMES
from checkpoint.api.one import Singles, refuse_timeout, singles_of
from checkpoint.api.one_in_worker import AskingSingles, driver_to_ask
from checkpoint.api.options import Options, PassOptions, check_spread, may_overlap
from checkpoint.api.results import KeyedErrors, KeyedResults, Results, finish, raise_verdict
from checkpoint.api.runner import EVERYTHING, CheckpointedRunner, ShardRunner
from checkpoint.api.signatures import element_of, named
from checkpoint.catalog.paths import Directory
from checkpoint.catalog.shards import ALL, Shard, ShardOption, shard_of
from checkpoint.errors import CheckpointError, InvalidOption, ItemError, plural, quote
from checkpoint.execution.caller import caller
from checkpoint.execution.chunk import chunk_here
from checkpoint.execution.leaving import Stream
from checkpoint.execution.policies import ErrorLimit, check_count, judge_value, rates_of
from checkpoint.outcomes import Outcome
from checkpoint.passes.plan import Plan, html_table, make_plan
from checkpoint.passes.settings import PassSettings
from checkpoint.passes.step import asks
from checkpoint.provenance.version import moved_attributes, version_of
from checkpoint.values.inputs import items_of
from checkpoint.values.keys import digest_function, identity, key_function, plain_key, version_digest
from checkpoint.values.plain_json import FREEZE
from checkpoint.values.secrets import quoted

__all__ = ["Face", "Items", "SyncFace"]


R = TypeVar("R")
T = TypeVar("T")
log = logging.getLogger("checkpoint")
Items: TypeAlias = Iterable[Any] | AsyncIterable[Any]
_CURRENT: Any = object()  # the version of the function itself
_CONSTANT = frozenset({type(None), str, int, float, bool})

if TYPE_CHECKING:
    from checkpoint.catalog.view import VersionView
    from checkpoint.provenance.agreement import Agreement
    from checkpoint.provenance.drift import Lineage
    from checkpoint.provenance.fingerprint import Fingerprint
    from checkpoint.provenance.unchanged import Unchanged

    class _Parts:
        __wrapped__: Any
        _self_options: Options
        _self_directory: Directory
        _self_base: Any
        _self_runners: dict[Any, CheckpointedRunner]
        _self_singles: dict[Any, Any]
        _self_read: tuple[Unchanged | None, Fingerprint | None]
else:
    # An annotation in the body of a proxy's class, even one that is never run, would hide those of the function.
    _Parts = object


def _meant_shard(option: ShardOption | None) -> Shard:
    """Return the shard of a map: $CHECKPOINT_SHARD applies to top-level maps only, never to a map inside a call."""
    return ALL if option is None and caller() is not None else shard_of(option)


def _told_shard(name: str, option: ShardOption | None) -> Shard:
    """Return the shard of a map and log it, since the returned results depend on it."""
    shard = _meant_shard(option)
    if shard != ALL:
        whence = "" if option is not None else " (of $CHECKPOINT_SHARD)"
        log.info("checkpoint %r: running shard %s%s: the items that are of it, and no others", name, shard, whence)
    return shard


def _named_version(version: Any, name: str) -> str:
    """Return the digest of a version. Equal ones are digested once, because every access to `.results` asks for it."""
    try:
        return _digest_of_version(marshal.dumps(version, FREEZE), name)
    except ValueError:  # it holds more than exact builtins
        return version_digest(version, "version", name)


@lru_cache(maxsize=256)
def _digest_of_version(frozen: bytes, name: str) -> str:
    return version_digest(marshal.loads(frozen), "version", name)


class _Inner:
    """Pickle the inner function: its own name would lead to the decorated function."""

    def __init__(self, face: Any) -> None:
        self._face = face

    def __reduce__(self) -> Any:
        return self._face._reduced_inner()


def _tell_unread(name: str, code: Fingerprint) -> None:
    """Log once per process the values that cannot be compared, and the names in `ignore=` that match no value."""
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


class Face(Generic[R], _Parts):
    """The methods that every decorated function has: plain or coroutine, bound or not."""

    if not TYPE_CHECKING:  # as above
        _self_read = None, None  # what its fingerprint was read of, and the fingerprint

    def _target(self) -> tuple[Callable[[Any], Any], Any]:
        """Return (the function to call with an item, the instance that it is bound to or None)."""
        raise NotImplementedError

    def _annotation(self) -> Any:
        """Return the function's return annotation, or None."""
        raise NotImplementedError

    def _reduced_inner(self) -> Any:
        """Return how to pickle the inner function, in the form of `__reduce__`."""
        raise NotImplementedError

    @property
    def runner(self) -> CheckpointedRunner:
        """The runner behind it, for this version and directory.

        What is saved by it counts as computed by the function: under its version, its code and its classes. It reads
        what is on disk, without `parse`.
        """
        return self._runner_of(ALL)

    def _runner_of(self, shard: Shard) -> CheckpointedRunner:
        options = self._self_options
        function, instance = self._target()
        version, directory = options.version, self._self_directory.find()
        place: Any = (directory, shard, os.getpid())
        if instance is not None or type(version) not in _CONSTANT:
            version = version_of(version, function, instance)
            place = (*place, "" if version is None else _named_version(version, options.name))
        runner = self._self_runners.get(place)
        if runner is None or runner.closed:
            result_type = options.result_type if options.result_type is not None else self._returned(options)
            kind = CheckpointedRunner if shard == ALL else partial(ShardRunner, shard)
            runner = self._self_runners[place] = kind(
                options.name, directory, version=version, durability=options.durability, result_type=result_type,
                lock_timeout=options.lock_timeout,
            )  # fmt: skip
            runner.behind = (lambda: self) if instance is not None else ref(self)
        return runner

    def _name_code(self, records: VersionView) -> None:
        """Have the records of results that are saved by hand name the function's code."""
        code = self._fingerprint()
        lineage = self._lineage(code)
        if code is not None and lineage is not None:
            records.set_code(code.digest)
            lineage.note(records)

    def _returned(self, options: Options) -> Any:
        """The annotation of one result."""
        annotation = self._annotation()
        return annotation if options.batch_size is None else element_of(annotation)

    @property
    def results(self) -> KeyedResults[R]:
        """The results of this version by key, read from disk on demand."""
        return KeyedResults(self.runner.records.parsing(self._self_options.parse))

    @property
    def errors(self) -> KeyedErrors:
        """The failures of items that have no result, by key, read from disk on demand; with `parse`, of results, too.

        The `.value` of each is what its call returned, where `validate` refused that or `parse` could not read it.
        `.causes()` groups them by type and place, and ``print(f.errors)`` shows that.
        """
        return KeyedErrors(self.runner.records.parsing(self._self_options.parse))

    @property
    def unsaved(self) -> Mapping[Any, Any]:
        """Values that could not be encoded, by key; opening one unpickles it."""
        return self.runner.unsaved

    def clear(self, keys: Iterable[Any] = EVERYTHING, *, steps: bool = False) -> None:
        """Forget these keys under this version; or, without `keys`, everything, all versions and files included.

        Args:
            keys: an iterable of keys; None is refused, since a variable may be None by mistake.
            steps: whether to forget the steps too that the calls of these keys have taken, and theirs: results that
                `one` saved in other checkpoints of the directory, also where other items share them.
        """
        if not steps:
            self.runner.clear(keys)
            return
        if keys is EVERYTHING or keys is None or isinstance(keys, (str, bytes)):
            raise InvalidOption(
                "steps=True forgets what the calls of some keys have taken; write clear([key], steps=True)"
            )
        from checkpoint.catalog.taken import forget_with_steps

        forget_with_steps(self.runner.records, [plain_key(key) for key in keys])

    def _serves(self, call: Any) -> Singles:
        """Return the object that looks up and saves single items for a call in a worker process."""
        return singles_of(self, call)

    def _asking(self, *, is_async: bool) -> AskingSingles:
        """Return the object that asks the driver for single items, inside a worker process."""
        options, place = self._self_options, ("asking", os.getpid())
        refuse_timeout(options, is_async=is_async)
        asking: Any = self._self_singles.get(place)
        if asking is None:
            annotation = options.result_type if options.result_type is not None else self._returned(options)
            asking = self._self_singles[place] = AskingSingles(options, annotation, named(self._target()[0]))
        return asking  # type: ignore[no-any-return]

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
        """Yield (label, text) rows about the function's checkpoint. This reads, and creates nothing."""
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
    ) -> Iterator[Dispatch]:
        """Begin a pass over the items, and yield the object that makes its calls.

        Raises:
            CheckpointLocked: another process writes, also after `lock_timeout`; in an event loop, at once.
        """
        options = self._self_options
        if (chunk := chunk_here()) is not None:
            chunk.split()  # a pass within a call may need what stands behind it in its chunk
        self._check_given(given, is_async=is_async)
        shard = _told_shard(options.name, given.get("shard"))
        function, instance = self._target()
        before = version_of(options.version, function, instance)
        code = self._fingerprint()
        lineage, ran = self._lineage(code), True
        try:
            with self._runner_of(shard).start_pass(
                items, self._settings(given, shard, collect=collect, is_async=is_async), lineage
            ) as running:
                agreement = None if given.get("executor") is None else self._agreement()
                yield Dispatch(function, running, options, given, travels=_Inner(self), agreement=agreement)
                ran = running.input.any_drawn  # where nothing is run, nothing changes while it runs
        finally:
            changed = code.moved() if code is not None and ran and self._as_before() is not code else []
        self._tell_moved(moved_attributes(before, options.version, function, instance), changed)

    def _check_given(self, given: PassOptions, *, is_async: bool) -> None:
        """Refuse the options of a pass that are unknown, or that do not go together."""
        if unknown := sorted(given.keys() - PassOptions.__annotations__.keys()):
            known = ", ".join(PassOptions.__annotations__)
            raise InvalidOption(f"there is no option {quote(unknown[0])} here; the options are {known}")
        refuse_while_importing_main(self._self_options.name)
        check_spread(self._self_options, given, is_async=is_async)

    def _tell_moved(self, moved: list[str], changed: list[str]) -> None:
        """Warn that attributes, or values that the function reads, changed while the pass ran."""
        options, name = self._self_options, named(self.__wrapped__)
        if moved:
            log.warning(
                "checkpoint %r: %s changes self.%s while it runs, which its results are taken to depend on: the next "
                "map computes them anew; name what they depend on: @checkpointed(…, version=lambda self: …)",
                options.name, name, ", self.".join(moved),
            )  # fmt: skip
        if changed and options.version is None:
            log.warning(
                "checkpoint %r: what %s reads changed while it ran, and its results are taken to depend on it (%s): "
                "the next map refuses the other value; name what they depend on: @checkpointed(…, version=…)",
                options.name, name, "; ".join(changed),
            )  # fmt: skip

    def _settings(self, given: PassOptions, shard: Shard, *, collect: bool, is_async: bool) -> PassSettings:
        """The settings of a pass, from the decorator's options and those of the call."""
        options, desc = self._self_options, given.get("desc")
        return PassSettings(
            key_function(options.key),
            digest_of=digest_function(options.input),
            on_change=options.on_change,
            overlapping=may_overlap(options, given),
            retry_failed=given.get("retry_failed", True),
            limit=ErrorLimit(given.get("max_errors")),
            max_cost=given.get("max_cost"),
            collect=collect,
            lock_timeout=0.0 if is_async else options.lock_timeout,
            locks_first=is_async and options.lock_timeout > 0,
            progress=given.get("progress", True),
            judge=partial(judge_value, options.validate),
            parse=options.parse,
            desc=(options.name if shard == ALL else f"{options.name} {shard}") if desc is None else str(desc),
        )

    def _agreement(self) -> Agreement | None:
        """Return the values and code that another process must have in common before it makes calls."""
        from checkpoint.provenance.agreement import agreement_of
        from checkpoint.provenance.fingerprint import fingerprint

        function, instance = self._target()
        options = self._self_options
        read = partial(fingerprint, bound=instance is not None, ignore=options.ignore, salt=options.name)
        return agreement_of(read, function)

    def _fingerprint(self) -> Fingerprint | None:
        """Return the fingerprint that shows whether the function has changed, or None if its code cannot be read."""
        from checkpoint.provenance.fingerprint import fingerprint  # it is large

        if (before := self._as_before()) is not None:
            return before
        function, instance = self._target()
        options = self._self_options
        found = fingerprint(
            function, bound=instance is not None, depends=options.depends, ignore=options.ignore, salt=options.name
        )
        if found is not None:
            _tell_unread(options.name, found)
            if instance is None and options.depends == () and not found.looked:
                from checkpoint.provenance.unchanged import Unchanged

                if (seen := Unchanged(function)).is_known:
                    self._self_read = (seen, found)
        return found

    def _as_before(self) -> Fingerprint | None:
        """Return the known fingerprint if everything that it was computed from is unchanged, else None."""
        seen, found = self._self_read
        return found if seen is not None and seen.holds() else None

    def _lineage(self, code: Fingerprint | None) -> Lineage | None:
        """Return the rules by which a pass treats results of a function that has changed."""
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
        """Count old results as this function's from now on, in every process and on every machine; return how many.

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
        from checkpoint.catalog.decisions import accept_code, accept_items

        records, code = self.runner.records, self._fingerprint()
        if version is not _CURRENT:
            if items is not None:
                raise InvalidOption("accept takes items or version=, and not both: each decides something else")
            return self._accept_version(records, code, version, convert)
        if convert is not None:
            raise InvalidOption("convert= goes with version=: accept(version=None, convert=…)")
        if items is not None:
            options = self._self_options
            digest_of = digest_function(options.input)
            return accept_items(records, items_of(items), key_function(options.key), digest_of)
        return 0 if code is None else sum(accept_code(records, code.digest).values())

    def _accept_version(
        self, records: VersionView, code: Fingerprint | None, version: Any, convert: Callable[[Any], Any] | None
    ) -> int:
        """Count the results of another version for the current one, as they are or converted; return how many."""
        from checkpoint.catalog.decisions import accept_code, accept_version, check_version, convert_version

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
        """Say what a `map` of the items would do: counts, changes, expected time and cost. Nothing is run or written.

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
        with USERS_FRAMES:
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
                judge=partial(judge_value, options.validate),
            )


class SyncFace(Face[R]):
    """`.one`, `.map` and `.stream` of a plain function."""

    def one(self, item: Any, /) -> R:
        """Return the saved result of one item; if there is none, compute and save it now.

        Call it from any thread, also inside another item's call: what finished is on disk when it returns, and is not
        computed again when a later part of that call fails, is killed or is tried again. A key that runs already in
        this process is waited for. It makes no pass: no bar, and `progress` stays as it is.

        Args:
            item: as one of those that `map` takes.

        Raises:
            Exception: what the function raised, as a plain call does; the failure is recorded, too. Retries are waited
                for here.
            CircularCall: who computes the item waits for the call that asks.
            InvalidKey, InputChanged, FunctionChanged, CheckpointLocked, StoreError: as `map`.
            InvalidOption: it has a `timeout=`, which nothing can keep here.

        Example:
            >>> square = checkpointed("squares")(lambda n: n * n)
            >>> square.one(12), square.results[12]
            (144, 144)
        """
        if (driver := driver_to_ask(self._self_options.name)) is not None:
            return self._asking(is_async=False).one(self, item, driver)  # type: ignore[no-any-return]
        refuse_timeout(self._self_options, is_async=False)
        return singles_of(self, asks(caller())).one(self, item)  # type: ignore[no-any-return]

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
            workers: how many calls are made at once: threads for a plain function. Default 1: in the caller's thread;
                for worker processes, the number of CPUs.
            executor: "processes", "ray", any `concurrent.futures.Executor`, a Dask client, an executor of submitit.
            chunksize: how many calls a worker is handed at a time; default as many as take about 20 ms.
            progress, desc: whether a bar is shown, and the label before it.
            max_errors: more failures than this end the pass: a count, or a fraction below 1.
            max_cost: what the checkpoint may have cost in all, in the unit of ``note(cost=…)``.
            retry_failed: whether items that failed earlier are called again; default True.
            grace: seconds that running calls may take after Ctrl-C or SIGTERM; default 10.
            shard: run and return the items of one shard only, (i, n) or "slurm"; default all.

        Raises:
            ItemsFailed: some items failed, after every other one was run and saved. `.results` holds all places.
            TooManyErrors: `max_errors` was exceeded, or without it 100 items in a row failed in one way.
            MaxCostReached: another call would exceed `max_cost`. `.results` holds all places.
            InvalidKey, DuplicateKey, InputChanged: naming the items; nothing was run.
            CheckpointLocked: another process writes this checkpoint, or another pass is running.
            StoreError: results could not be written; `.unsaved` holds those that are not on disk.
            NotUploaded: all are saved here, and the store behind a URL has not all of them. Run again to upload them.
        """
        with USERS_FRAMES, self._pass(items, options) as work:
            for _ in work.run():
                pass
            return finish(work.running, return_exceptions=return_exceptions)

    def stream(self, items: Iterable[Any], **options: Unpack[PassOptions]) -> Iterator[Outcome[R]]:
        """Yield an `Outcome` for each item as it completes, resumed ones included; `items` may be endless.

        What is yielded is on disk. An item's failure is its outcome's `.error`, and is not raised.

        Args:
            items: as in `map`.
            options: those of `PassOptions`: workers, executor, progress, max_errors …

        Raises:
            TooManyErrors, MaxCostReached: as in `map`.
        """
        return Stream(self._self_options.name, self._outcomes(items, options))

    def _outcomes(self, items: Iterable[Any], options: PassOptions) -> Generator[Outcome[R], None, None]:
        with self._pass(items, options, collect=True) as work:
            running = work.running
            for _ in work.run():
                yield from running.take()
            yield from running.take()
            raise_verdict(running)
            running.input.check_drawn()
