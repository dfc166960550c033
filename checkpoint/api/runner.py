"""Runners: the classes for users who keep their own loop."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from checkpoint.catalog.paths import check_name, resolve_directory
from checkpoint.catalog.shards import ALL, Shard
from checkpoint.catalog.view import LATEST, Unsaved, VersionView
from checkpoint.errors import InvalidOption, NotUploaded, quote
from checkpoint.execution.caller import caller, loop_by_hand
from checkpoint.execution.leaving import Stream, wait_for_left
from checkpoint.execution.policies import Durability, check_choice, check_seconds
from checkpoint.execution.serial import Parked
from checkpoint.outcomes import Failure, Unit, describe_exception, shortened
from checkpoint.passes.pipeline import Pass
from checkpoint.passes.settings import PassSettings
from checkpoint.values.keys import Key, KeyFunction, key_function, plain_key, plain_version

if TYPE_CHECKING:
    from checkpoint.outcomes import Uploaded
    from checkpoint.provenance.drift import Lineage

__all__ = ["BatchCheckpointedRunner", "CheckpointedRunner", "ShardRunner"]

T = TypeVar("T")
_AHEAD = 64  # items that are admitted before they are handed out
log = logging.getLogger("checkpoint")


class _Everything:
    """The type of the default of `clear`, which no variable holds by mistake."""

    def __repr__(self) -> str:
        return "EVERYTHING"


EVERYTHING: Any = _Everything()


class CheckpointedRunner:
    """One checkpoint: saves results and errors by key, knows what is done, and never runs it again.

    What `save_result` has returned for survives a kill at any moment.

    Args:
        name: letters, digits, space, ``.``, ``_``, ``-``, at most 200 bytes: it names the files.
        checkpoint_dir: the directory; default ``$CHECKPOINT_DIR``, else ``./checkpoints``. Made at the first save. Or
            a URL such as ``s3://bucket/prefix``: a local directory mirrors it, and is uploaded in the background.
        version: any JSON value that names what results depend on besides the item (prompt, model, parameters);
            results of other versions stay, and count again when you go back. None: no version. Default: that of the
            last record.
        durability: "process" survives the death of the process, and a power cut but for the last second; "power" syncs
            every record.
        result_type: an annotation that names classes to rebuild (dataclasses, pydantic models, enums …).
        lock_timeout: seconds that a write waits while another process writes the checkpoint; what that saves counts
            here then. Default 0: `CheckpointLocked` at once.

    Raises:
        InvalidName, InvalidOption: before any file is made.

    Example:
        >>> with CheckpointedRunner("my_experiment") as runner:
        ...     for item in runner.iterate([{"id": "a", "n": 2}], key_fn=lambda x: x["id"]):
        ...         runner.save_result(item["id"], item["n"] ** 2)
        ...     runner.get_all_results()
        {'a': 4}
    """

    def __init__(
        self,
        name: str,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        *,
        version: Any = LATEST,
        durability: Durability = "process",
        result_type: Any = None,
        lock_timeout: float = 0.0,
    ) -> None:
        self.name = check_name(name)
        check_choice("durability", durability, Durability)
        check_seconds("lock_timeout", lock_timeout)
        self._passes: list[Pass] = []  # that run
        self._latest: Pass | None = None  # the one that began last, as long as it runs
        self._last: tuple[int, int | None] | None = None
        version = plain_version(version)
        self._given = (version, durability, result_type, lock_timeout)
        self.behind: Callable[[], Any] | None = None  # the decorated function, as long as it is there
        self._names_code = False  # whether records of this runner name its code
        self.records = VersionView(
            self.name,
            resolve_directory(checkpoint_dir),
            version=version,
            power=durability == "power",
            result_type=result_type,
            shard=self._shard,
            lock_timeout=lock_timeout,
        )

    _shard = ALL

    def __reduce__(self) -> tuple[Any, ...]:
        if self.behind is not None and (function := self.behind()) is not None:
            return (attrgetter("runner"), (function,))
        names = ("version", "durability", "result_type", "lock_timeout")
        options = dict(zip(names, self._given, strict=True))
        return (_opened, (type(self), self._shard, self.name, self.records.checkpoint.directory, options))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {str(self.records.checkpoint.directory)!r})"

    # saving

    def save_result(self, key: Any, result: Any) -> None:
        """Save a result for the key. It is saved when this returns.

        Args:
            key: str, int, float, bool, None or a tuple of those; `1`, `1.0` and `True` are one key.
            result: what JSON can hold, or tuples, sets, bytes, datetimes, numpy arrays, dataclasses, models … (README).

        Raises:
            InvalidKey: the key is of another type.
            UnencodableValue: the value cannot be written so that it reads back the same; it was kept aside.
            CheckpointLocked: another process writes this checkpoint.
            StoreError: it is not on disk (disk full …); `.unsaved` holds it.
        """
        if type(key) is not str:
            key = plain_key(key)
        self._name_code()
        running = self._pass_of(key) if self._passes else None
        if running is None:
            self.records.save(key, result, 0)
        else:
            self.records.save(key, result, running.digest_for(key))
            running.saved_by_hand(key, failed=False)

    def save_error(self, key: Any, error: str | BaseException) -> None:
        """Record an error for the key. The key stays undone, and a later success retires the error.

        Args:
            key: as in `save_result`.
            error: a message, or an exception, of which type and plain traceback are kept too.
        """
        key = plain_key(key)
        self._name_code()
        failure = describe_exception(error) if isinstance(error, BaseException) else Failure(shortened(str(error)))
        running = self._pass_of(key) if self._passes else None
        self.records.save_failure(key, failure, 0 if running is None else running.digest_for(key))
        if running is not None:
            running.saved_by_hand(key, failed=True)

    def _name_code(self) -> None:
        """Note the decorated function's code, so that results saved by hand count as its own."""
        if not self._names_code and self.behind is not None:
            self._names_code = True
            if (function := self.behind()) is not None:
                function._name_code(self.records)

    def _pass_of(self, key: Key) -> Pass | None:
        """Return the pass that handed the key out, else the running pass that began last, else None."""
        passes = self._passes[:]  # another thread may end one
        if len(passes) < 2:
            return passes[0] if passes else None
        flights = [(one, one.in_flight) for one in passes]
        for one, flight in flights:
            if flight.owns(key):
                return one
        return next((one for one, flight in flights if flight.awaits(key)), passes[-1])

    # reading

    def is_completed(self, key: Any) -> bool:
        """Return whether an intact result is saved for the key under this version. An error does not count."""
        key = plain_key(key)
        self.records.results_for(key)
        return self.records.is_done(key)

    def get_result(self, key: Any) -> Any:
        """Return the decoded result for the key, or None if there is none.

        Raises:
            DamagedRecord: its bytes are not those that were written; the key is not done from now on.
        """
        try:
            return self.records.load(plain_key(key))
        except KeyError:
            return None

    def get_all_results(self) -> dict[Any, Any]:
        """Return every result of this version by key, in the order in which they were saved."""
        return dict(self.records.iter_results())

    def get_all_errors(self) -> dict[Any, str]:
        """Return the message of each key that failed and has no result."""
        return {error.key: error.message for error in self.records.iter_errors()}

    @property
    def unsaved(self) -> Mapping[Any, Any]:
        """The values that could not be encoded, by key, until a result is saved for it or it is cleared.

        Opening a value unpickles it, which runs code: open those of checkpoints that you made.
        """
        return Unsaved(self.records)

    def progress(self) -> tuple[int, int | None]:
        """Return (completed, total) of the pass that began last; before any pass, of the checkpoint."""
        if self._latest is not None:
            return self._latest.tally.completed, self._latest.input.total
        if self._last is not None:
            return self._last
        checkpoint = self.records.open()
        return checkpoint.results.count(self.records.version), checkpoint.whole_total()

    @property
    def uploaded(self) -> Uploaded | None:
        """How far the store behind a URL lags: (bytes, seconds, failing). None if `checkpoint_dir` is not a URL.

        Example:
            >>> print(CheckpointedRunner("my_experiment").uploaded)
            None
        """
        uploader = self.records.open().uploader
        return None if uploader is None else uploader.uploaded()

    # forgetting

    def clear(self, keys: Iterable[Any] = EVERYTHING) -> None:
        """Forget these keys under this version; or, without `keys`, everything, all versions and files included.

        Old values of single keys stay in the file until it is compacted.

        Args:
            keys: an iterable of keys; None is refused, since a variable may be None by mistake.
        """
        if isinstance(keys, (str, bytes)):
            raise InvalidOption(f"clear({quote(keys)}) takes a list of keys; write clear([{quote(keys)}])")
        if keys is None:
            raise InvalidOption("clear(None) names no keys; write clear() to forget everything, or clear([None])")
        if keys is not EVERYTHING:
            self.records.forget([plain_key(key) for key in keys])
            return
        self.records.clear()
        self._last = None

    # passes

    def iterate(self, items: Iterable[T], key_fn: str | KeyFunction | None = None) -> Iterator[T]:
        """Yield the items that have no result, each key once; save each by `save_result` or `save_error`.

        Args:
            items: any iterable. What can be read twice is keyed first; what cannot is drawn one by one.
            key_fn: what names an item: a function, a field's name, or None for the item itself.

        Raises:
            InvalidKey, DuplicateKey: naming the item, before it is yielded.
            CheckpointLocked: another process is at work on it.
        """
        return Stream(self.records.name, self._one_by_one(items, self._settings(key_fn)))

    def _one_by_one(self, items: Iterable[T], settings: PassSettings) -> Generator[T, None, None]:
        """Yield the items to run, as `_handed_out` does; it is written flat because it is the hot loop."""
        with loop_by_hand(), self.start_pass(items, settings) as running:
            parked, flight = Parked(running), running.in_flight
            for unit in chain(_units(running), (unit for (unit,) in parked.back())):
                flight.hand_out_one(unit)
                if not flight.has_company or parked.begin([unit]):
                    yield unit.item
                    running.moved_on()
            running.input.check_drawn()

    def _handed_out(
        self, items: Iterable[T], settings: PassSettings, size: int = 1
    ) -> Generator[tuple[Pass, list[Unit]], None, None]:
        """Yield (pass, units to run) for each batch; `save_result` and `save_error` settle them.

        What another pass of this process is at comes when that is over, if it has no result then.
        """
        with loop_by_hand(), self.start_pass(items, settings) as running:
            parked, keys = Parked(running), running.in_flight
            for batch in chain(_batches(running, size), parked.back()):
                keys.hand_out(batch)
                if keys.has_company:
                    batch = parked.begin(batch)
                if batch:
                    yield running, batch
                    running.moved_on()
            running.input.check_drawn()

    def _settings(self, key_fn: str | KeyFunction | None, **settings: Any) -> PassSettings:
        return PassSettings(key_function(key_fn), lock_timeout=self.records.lock_timeout, **settings)

    @contextmanager
    def start_pass(
        self, items: Iterable[Any], settings: PassSettings, lineage: Lineage | None = None
    ) -> Iterator[Pass]:
        """Run one pass over items, from keying them to releasing the lock; the arguments are those of `Pass`."""
        self.records.refuse_if_closed()
        if caller() is None:  # a call of the pass that ends is waited for by its end
            wait_for_left(self.records.name)
        with self.records.checkpoint.a_pass():  # which brings it up to date
            self.records.pin()
            try:
                running = Pass(self.records.of_pass(settings.parse), items, settings, lineage)
            except BaseException:  # what is given for items runs code of the user's
                self.records.unpin()
                raise
            self._passes.append(running)
            self._latest = running
            try:
                running.prepare()
                yield running
            except BaseException as error:
                if isinstance(error, (KeyboardInterrupt, SystemExit)) or running.is_cancelled_by(error):
                    running.tell_interrupted(error)
                raise
            finally:
                if running is self._latest:
                    self._latest, self._last = None, (running.tally.completed, running.input.total)
                self._passes.remove(running)
                self.records.unpin()
                running.close()

    # closing

    def close(self) -> None:
        """Release the files and the lock. Using the runner afterwards raises `StoreClosed`.

        Raises:
            NotUploaded: the wait for the store behind a URL was given up.
        """
        wait_for_left(self.records.name)
        self.records.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self.records.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, _: object) -> None:
        try:
            self.close()
        except NotUploaded as lacking:
            if error is None:
                raise
            log.error("%s", lacking)  # what the block raised goes on


class ShardRunner(CheckpointedRunner):
    """The runner of one shard: its passes run and write the shard's own items, and know what other counts have done.

    Args:
        shard: not all.
        name, directory, options: as for `CheckpointedRunner`.
    """

    def __init__(self, shard: Shard, name: str, directory: Path, **options: Any) -> None:
        self._shard = shard
        super().__init__(name, directory, **options)


class BatchCheckpointedRunner(CheckpointedRunner):
    """A `CheckpointedRunner` with a progress bar, and batches.

    Example:
        >>> runner = BatchCheckpointedRunner("squares")
        >>> for idx, total, n in runner.iterate_with_progress([1, 2, 3], key_fn=lambda n: n, desc="Squaring"):
        ...     runner.save_result(n, n * n)
        >>> runner.progress()
        (3, 3)
    """

    def iterate_with_progress(
        self, items: Iterable[T], key_fn: str | KeyFunction | None = None, desc: str | None = None
    ) -> Iterator[tuple[int, int | None, T]]:
        """Yield (idx, total, item) for each item that has no result, under a progress bar.

        Args:
            items: any iterable; `total` is its length, or None where it has none.
            key_fn: as in `iterate`.
            desc: what stands before the bar.

        Yields:
            idx: the item's 1-based place among all items, done ones included; total; the item.
        """
        handed_out = self._handed_out(
            items, self._settings(key_fn, progress=True, desc=None if desc is None else str(desc))
        )
        steps = ((running.input.drawn, running.input.total, unit.item) for running, (unit,) in handed_out)
        return Stream(self.records.name, steps)

    def iterate_batches(
        self, items: Iterable[T], key_fn: str | KeyFunction | None = None, batch_size: int = 32
    ) -> Iterator[list[T]]:
        """Yield lists of at most `batch_size` items that have no result; save each item by itself.

        Args:
            items: any iterable.
            key_fn: as in `iterate`.
            batch_size: 1 or more.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InvalidOption(f"batch_size is {quote(batch_size)}; give an int of 1 or more")
        settings = self._settings(key_fn, overlapping=True)
        batches = self._handed_out(items, settings, batch_size)
        return Stream(self.records.name, ([unit.item for unit in batch] for _, batch in batches))


def _opened(
    kind: type[CheckpointedRunner], shard: Shard, name: str, directory: Path, options: dict[str, Any]
) -> CheckpointedRunner:
    """A runner that was pickled, in another process or after this one was closed."""
    return kind(name, directory, **options) if shard == ALL else ShardRunner(shard, name, directory, **options)


def _units(running: Pass) -> Iterator[Unit]:
    """Yield the units to run. Items in memory are admitted several at once, and those saved since are left out."""
    if not running.in_memory or running.is_watched:
        for item in running.items:
            if (unit := running.admit(item)) is not None:
                yield unit
        return
    admitted = running.in_flight.units
    while (units := running.admit_next(_AHEAD)) is not None:
        ahead = iter(units)
        try:
            for unit in ahead:
                if admitted.get(unit.key) is unit:
                    yield unit
        finally:
            for unit in ahead:  # the user has left the loop
                admitted.pop(unit.key, None)


def _batches(running: Pass, size: int) -> Iterator[list[Unit]]:
    """Yield lists of at most `size` units to run."""
    units = (unit for item in running.items if (unit := running.admit(item)) is not None)
    return ([unit] for unit in units) if size == 1 else iter(lambda: list(islice(units, size)), [])
