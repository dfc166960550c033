"""The meeting of what is on disk and what is run: admit → engine → settle, told once.

`CheckpointedRunner` is one checkpoint as its user sees it; a `Pass` is one run over items. `admit` decides what is run,
`settle` saves what finished: plain, synchronous, and the only ones that touch disk or bar.
"""

from __future__ import annotations

import base64
import logging
import os
import pickle
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final, Self, TypeVar

import msgspec

from checkpoint import clock
from checkpoint.codecs import Codec, decode_foreign
from checkpoint.errors import (
    DamagedRecord,
    DuplicateKey,
    InputChanged,
    InvalidKey,
    InvalidOption,
    ItemError,
    StoreClosed,
    StoreError,
    UnbuildableValue,
    UnencodableValue,
    quote,
)
from checkpoint.index import Place
from checkpoint.journal import Reader, Record, seal
from checkpoint.keys import Key, KeyFunction, item_digest, key_function, key_json, plain_key, short_digest
from checkpoint.outcomes import Done, Failure, Outcome, Success, Unit, describe_exception
from checkpoint.policies import Durability, ErrorCount, ErrorLimit, OnChange, check_choice
from checkpoint.progress import Bar
from checkpoint.store import Entry, Shelf, Store, check_name, key_of, open_store, resolve_directory

__all__ = ["LATEST", "NOT_RUN", "BatchCheckpointedRunner", "CheckpointedRunner", "Latest", "Pass", "item_error"]

T = TypeVar("T")
log = logging.getLogger("checkpoint")


class Latest:
    """The type of `LATEST`."""

    def __repr__(self) -> str:
        return "LATEST"

    def __reduce__(self) -> str:
        return "LATEST"


LATEST: Final = Latest()
"""The version of the last record: what a runner made by hand reads unless told otherwise."""

_encode_json = msgspec.json.Encoder().encode
_FIRST = 100  # keys that tell whether the key function is still the same; failures that an error shows


class CheckpointedRunner:
    """One checkpoint: saves results and errors by key, knows what is done, and never runs it again.

    What `save_result` has returned for survives a kill at any moment.

    Args:
        name: letters, digits, space, ``.``, ``_``, ``-``, at most 200 bytes: it names the files.
        checkpoint_dir: the directory; default ``$CHECKPOINT_DIR``, else ``./checkpoints``. Made at the first save.
        version: any JSON value that names what results depend on besides the item (prompt, model, parameters);
            results of other versions stay, and count again when you go back. None: no version. Default: that of the
            last record.
        durability: "process" survives the death of the process, and a power cut but for the last second; "power" syncs
            every record.
        result_type: an annotation that names classes to rebuild (dataclasses, pydantic models, enums …).

    Raises:
        InvalidName, InvalidOption: before any file is made.

    Example:
        >>> with CheckpointedRunner("my_experiment") as runner:
        ...     for item in runner.iterate([{"id": "a", "n": 2}], key_fn=lambda x: x["id"]):
        ...         runner.save_result(item["id"], item["n"] ** 2)
        ...     runner.get_all_results()
        {'a': 4}
    """

    store: Store

    def __init__(
        self,
        name: str,
        checkpoint_dir: str | os.PathLike[str] | None = None,
        *,
        version: Any = LATEST,
        durability: Durability = "process",
        result_type: Any = None,
    ) -> None:
        self.name = check_name(name)
        check_choice("durability", durability, Durability)
        self.power = durability == "power"
        self._codec = Codec(result_type, on_unnamed=self._on_unnamed)
        self.encode_value = self._codec.encode
        self.decode_value = self._codec.decode
        self._follows = version is LATEST
        digest = "" if version is None or self._follows else short_digest(version, "version")
        self._session = os.urandom(4).hex().encode()
        self._stamp = clock.Stamper()
        self._pass: Pass | None = None
        self._last: tuple[int, int | None] | None = None
        self._detach: Callable[[], None] | None = open_store(self.name, resolve_directory(checkpoint_dir), self)
        if digest:
            self.store.versions.setdefault(digest, version)
        self._set_version(digest)
        if self._follows:
            self._follow()

    def _set_version(self, digest: str) -> None:
        self.version_digest = digest
        field = b',"version":"%b"' % digest.encode() if digest else b""
        self._fields = (field, b',"session":"%b"' % self._session)

    def _follow(self) -> None:
        """Read what the last record's version is."""
        latest = self.store.latest
        if latest == self.version_digest:
            return
        self._set_version(latest)
        shown = quote(self.store.versions[latest]) if latest in self.store.versions else latest or "None"
        log.info("checkpoint %r: reading version %s, that of the last record", self.name, shown)

    def _on_unnamed(self, cls: type) -> None:
        log.warning(
            "checkpoint %r: results hold objects of class %s, which come back as plain JSON; to get the class back, "
            "annotate the function's return (-> %s) or pass result_type=%s",
            self.name, cls.__qualname__, cls.__name__, cls.__name__,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {str(self.store.directory)!r})"

    # saving

    def save_result(self, key: Any, result: Any) -> None:
        """The result is saved for the key when this returns.

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
        try:
            raw = self.encode_value(result)
        except UnencodableValue as error:
            raise self.keep_aside(key, result, error) from None
        running = self._pass
        digest = running.digest_for(key) if running is not None else 0
        line = self._result_line(key, raw, digest)
        try:
            if self.power:
                entry = Entry(self.version_digest, key, digest, line)
                self._open_store.append(self.store.results, [entry], durable=True)
            else:
                self._open_store.append_one(self.store.results, self.version_digest, key, digest, line)
        except StoreError as error:
            error.unsaved = {key: result}
            raise
        if running is not None:
            running.saved_by_hand(key, failed=False)

    def save_error(self, key: Any, error: str | BaseException) -> None:
        """The error is recorded for the key; the key is not done by it, and a later success retires it.

        Args:
            key: as in `save_result`.
            error: a message, or an exception, of which type and plain traceback are kept too.
        """
        key = plain_key(key)
        failure = describe_exception(error) if isinstance(error, BaseException) else Failure(str(error))
        running = self._pass
        digest = running.digest_for(key) if running is not None else 0
        line = self._error_line(key, failure, digest)
        self._open_store.append(self.store.errors, [Entry(self.version_digest, key, digest, line)], durable=self.power)
        if running is not None:
            running.saved_by_hand(key, failed=True)

    @property
    def _open_store(self) -> Store:
        if self._detach is None:
            raise StoreClosed(f"the runner of checkpoint {self.name!r} was closed; make a new one")
        return self.store

    def _result_line(
        self, key: Key, raw: bytes, digest: int, elapsed: float | None = None, attempts: int | None = None
    ) -> bytes:
        version, session = self._fields
        known = b',"input":"%016x"' % digest if digest else b""
        if elapsed is not None:
            known += b',"elapsed":%.6g' % elapsed
        if attempts is not None:
            known += b',"attempts":%d' % attempts
        return seal(
            b'{"key":%b,"result":%b,"timestamp":"%b"%b%b%b'
            % (key_json(key), raw, self._stamp(), version, known, session)
        )

    def result_entry(self, unit: Unit, raw: bytes, outcome: Success) -> Entry:
        """The record of a unit that succeeded."""
        line = self._result_line(unit.key, raw, unit.digest, outcome.elapsed, outcome.attempts)
        return Entry(self.version_digest, unit.key, unit.digest, line)

    def error_entry(self, unit: Unit, failure: Failure) -> Entry:
        """The record of a unit that failed."""
        line = self._error_line(unit.key, failure, unit.digest)
        return Entry(self.version_digest, unit.key, unit.digest, line)

    def _error_line(self, key: Key, failure: Failure, digest: int) -> bytes:
        version, session = self._fields
        parts = [b'{"key":%b,"error":%b,"timestamp":"%b"' % (key_json(key), _text(failure.message), self._stamp())]
        if failure.type is not None:
            parts.append(b',"type":%b' % _text(failure.type))
        if failure.traceback is not None:
            parts.append(b',"traceback":%b' % _text(failure.traceback))
        if failure.attempts is not None:
            parts.append(b',"attempts":%d' % failure.attempts)
        if failure.elapsed is not None:
            parts.append(b',"elapsed":%.6g' % failure.elapsed)
        parts.append(version)
        if digest:
            parts.append(b',"input":"%016x"' % digest)
        parts.append(session)
        return seal(b"".join(parts))

    def keep_aside(self, key: Key, value: Any, error: UnencodableValue) -> UnencodableValue:
        """Put a paid-for value where `unsaved` finds it, and make its item a failure that says why."""
        kept = self._aside_line(key, value, str(error))
        located = UnencodableValue(
            f"the result for key {quote(key)} was not saved: {error}. The value was kept: see .unsaved, and "
            "save_result it in a form that can be stored; or clear([key]) to run the item again",
            where=error.where,
            key=key,
        )
        failure = Failure(str(located), "UnencodableValue")
        entries = [Entry(self.version_digest, key, 0, self._error_line(key, failure, 0))]
        try:
            self._open_store.append(self.store.unsaved, [Entry(self.version_digest, key, 0, kept)], durable=self.power)
            self.store.append(self.store.errors, entries, durable=self.power)
        except StoreError as failed:
            failed.unsaved = {key: value}
            raise
        return located

    def _aside_line(self, key: Key, value: Any, why: str) -> bytes:
        version, session = self._fields
        try:
            held = b'"pickle":%b' % _encode_json(base64.b64encode(pickle.dumps(value)).decode())
        except Exception:  # pickling runs the value's own code, which may raise anything
            held = b'"repr":%b' % _text(_safe_repr(value))
        return seal(
            b'{"key":%b,%b,"error":%b,"timestamp":"%b"%b%b'
            % (key_json(key), held, _text(why), self._stamp(), version, session)
        )

    # reading

    def is_completed(self, key: Any) -> bool:
        """Whether an intact result is saved for the key under this version. An error never makes it so."""
        self._open_store.refresh()
        return self.store.results.find(self.version_digest, plain_key(key)) is not None

    def get_result(self, key: Any) -> Any:
        """The decoded result for the key, or None where there is none.

        Raises:
            DamagedRecord: its bytes are not those that were written; the key is not done from now on.
        """
        try:
            return self.load_result(key)
        except KeyError:
            return None

    def load_result(self, key: Any) -> Any:
        """The decoded result for the key.

        Raises:
            KeyError: there is none.
            DamagedRecord: as in `get_result`.
        """
        self._open_store.refresh()
        shelf = self.store.results
        with self._noting_damage(shelf):
            found = shelf.read(self.version_digest, plain_key(key))
            if found is None:
                raise KeyError(key)
            reader, place, record = found
            return self._decode(reader, place.offset, record, key)

    def load_at(self, reader: Reader, offset: int) -> tuple[Key, Any]:
        """(key, decoded result) at a place that a pass found."""
        shelf = self.store.results
        with self._noting_damage(shelf):
            record = shelf.read_at(reader, self.version_digest, offset)
            key = key_of(reader, record, offset)
            return key, self._decode(reader, offset, record, key)

    def load_error(self, key: Any) -> ItemError:
        """The failure recorded for the key, where it has no result.

        Raises:
            KeyError: there is none.
        """
        self._open_store.refresh()
        key = plain_key(key)
        found = self.store.errors.read(self.version_digest, key)
        if found is None or self.store.results.find(self.version_digest, key) is not None:
            raise KeyError(key)
        return item_error(key, found[2])

    @contextmanager
    def _noting_damage(self, shelf: Shelf) -> Iterator[None]:
        """A record that proves damaged is not done from then on."""
        try:
            yield
        except DamagedRecord as error:
            if error.key is not None:
                self.store.discard(shelf, self.version_digest, error.key, self._session)  # type: ignore[arg-type]
            raise

    def _decode(self, reader: Reader, offset: int, record: Record, key: Key) -> Any:
        raw = bytes(record.result)
        try:
            return self._codec.decode(raw) if record.crc or record.session else decode_foreign(raw)
        except UnbuildableValue as error:
            number = reader.line_number(offset)
            raise UnbuildableValue(f"{reader.path}:{number}, key {quote(key)}: {error}", cls=error.cls) from None
        except ValueError as error:
            raise reader.damaged(offset, f"its result cannot be decoded: {error}", key=key) from None

    def iter_results(self) -> Iterator[tuple[Any, Any]]:
        """(key, decoded result) of every key of this version, in the order in which they were saved, one at a time."""
        self._open_store.refresh()
        shelf = self.store.results
        with self._noting_damage(shelf):
            for reader, offset, key, record in shelf.records(self.version_digest):
                yield key, self._decode(reader, offset, record, key)

    def iter_errors(self) -> Iterator[ItemError]:
        """The failure of every key of this version that has no result."""
        self._open_store.refresh()
        for _, _, key, record in self.store.errors.records(self.version_digest):
            if self.store.results.find(self.version_digest, key) is None:
                yield item_error(key, record)

    def get_all_results(self) -> dict[Any, Any]:
        """Every result of this version, decoded, by key, in the order in which they were saved."""
        return dict(self.iter_results())

    def get_all_errors(self) -> dict[Any, str]:
        """The message of each key that failed and has no result, by key."""
        return {error.key: error.message for error in self.iter_errors()}

    @property
    def unsaved(self) -> Mapping[Any, Any]:
        """The values that could not be encoded, by key, until a result is saved for it or it is cleared.

        Opening a value unpickles it, which runs code: open those of checkpoints that you made.
        """
        return Unsaved(self)

    def progress(self) -> tuple[int, int | None]:
        """(completed, total): of the last pass; before one, all results, and the total that meta knows."""
        if self._pass is not None:
            return self._pass.completed, self._pass.total
        if self._last is not None:
            return self._last
        self._open_store.refresh()
        return self.store.results.count(self.version_digest), self.store.total

    def count(self) -> tuple[int, int]:
        """(done, failed): how many keys of this version have a result, and how many an error and no result."""
        self._open_store.refresh()
        return self.store.results.count(self.version_digest), self.store.failed_count(self.version_digest)

    # forgetting

    def clear(self, keys: Iterable[Any] | None = None) -> int:
        """Forget these keys under this version, or everything, all versions and files included.

        Old values of single keys stay in the file until it is compacted. Returns how many keys were forgotten.

        Args:
            keys: an iterable of keys (not one str, which would be its letters).
        """
        if isinstance(keys, (str, bytes)):
            raise InvalidOption(f"clear({quote(keys)}) takes a list of keys; write clear([{quote(keys)}])")
        store = self._open_store
        if keys is not None:
            return store.forget(self.version_digest, [plain_key(key) for key in keys], self._session)
        forgotten = store.results.count(self.version_digest)
        store.clear()
        self._last = None
        if self._follows:
            self._set_version("")
        return forgotten

    # passes

    def iterate(self, items: Iterable[T], key_fn: str | KeyFunction | None = None) -> Iterator[T]:
        """Yield the items that have no result, each key once; save each by `save_result` or `save_error`.

        Args:
            items: any iterable. What can be read twice is keyed first; what cannot is drawn one by one.
            key_fn: what names an item: a function, a field's name, or None for the item itself.

        Raises:
            InvalidKey, DuplicateKey: naming the item, before it is yielded.
            CheckpointLocked: another process, or another pass of this one, is at work on it.
        """
        for _, item in self._admitted(items, key_fn):
            yield item

    def _admitted(
        self, items: Iterable[T], key_fn: str | KeyFunction | None, desc: str | None = None, *, show: bool = False
    ) -> Iterator[tuple[Pass, T]]:
        """(pass, item) for each item to run; `save_result` and `save_error` settle it."""
        with self.start_pass(items, key_function(key_fn), progress=show, desc=desc) as running:
            for item in items:
                if running.admit(item) is not None:
                    yield running, item
                    running.moved_on()

    @contextmanager
    def start_pass(self, items: Iterable[Any], key_of: KeyFunction, **options: Any) -> Iterator[Pass]:
        """One pass over items, from keying them to letting go of the lock; the options are those of `Pass`."""
        store = self._open_store
        with store.a_pass():
            if self._follows:
                self._follow()
            running = self._pass = Pass(self, items, key_of, **options)
            try:
                running.prepare()
                yield running
            finally:
                self._pass, self._last = None, (running.completed, running.total)
                running.close()

    # closing

    def close(self) -> None:
        """Let go of the files and the lock. Using the runner afterwards raises `StoreClosed`."""
        detach, self._detach = self._detach, None
        if detach is not None:
            detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
        for running, item in self._admitted(items, key_fn, desc, show=True):
            yield running.drawn, running.total, item

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
        batch: list[T] = []
        for _, item in self._admitted(items, key_fn):
            batch.append(item)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


class Unsaved(Mapping[Any, Any]):
    """Values that could not be encoded, opened one by one: a pickle is loaded, else the value's repr is given."""

    def __init__(self, runner: CheckpointedRunner) -> None:
        self._runner = runner

    def _records(self) -> Iterator[tuple[Key, Record]]:
        runner, store = self._runner, self._runner.store
        store.refresh()
        for _, _, key, record in store.unsaved.records(runner.version_digest):
            if store.results.find(runner.version_digest, key) is None:
                yield key, record

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._records())

    def __len__(self) -> int:
        return sum(1 for _ in self._records())

    def __getitem__(self, key: Any) -> Any:
        for held, record in self._records():
            if held == key:
                return record.repr if record.pickle is None else pickle.loads(base64.b64decode(record.pickle))
        raise KeyError(key)

    def __repr__(self) -> str:
        return f"<{len(self)} values that could not be encoded: {quote(list(islice(self, 5)))}>"


def item_error(key: Any, record: Record) -> ItemError:
    """What stands in a failed item's place."""
    message = record.error or ""
    shown = f"{record.type}: {message}" if record.type else message
    return ItemError(
        f"item {quote(key)} failed: {shown}",
        key=key,
        type=record.type,
        message=message,
        traceback=record.traceback,
        attempts=record.attempts,
    )


def _text(text: str) -> bytes:
    """A JSON string of any text; a lone surrogate becomes a replacement character, since a message is for people."""
    try:
        return _encode_json(text)
    except UnicodeEncodeError:
        return _encode_json(text.encode("utf-8", "replace").decode())


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # a value's own __repr__ may raise anything
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


# --- a pass ----------------------------------------------------------------------------------------------------------


class Pass:
    """One run over items: which are run (`admit`), and what becomes of what finished (`settle`).

    Args:
        runner: whose pass it is.
        items: all of them, in order.
        key_of: what names an item.
        on_change: what to do where a known key's item has changed: "keep" the result, "recompute" it, or "error".
        retry_failed: whether items that failed earlier are run again.
        limit: when failures end the pass.
        collect: whether outcomes are wanted by `take`.
        progress: whether a bar is.
        desc: what stands before it.

    Attributes:
        total: how many items there are, or None.
        drawn: how many have been drawn.
        errors: what has failed, counted.
        failures: the first 100 of this pass.
    """

    def __init__(
        self,
        runner: CheckpointedRunner,
        items: Iterable[Any],
        key_of: KeyFunction,
        *,
        on_change: OnChange = "keep",
        retry_failed: bool = True,
        limit: ErrorLimit | None = None,
        collect: bool = False,
        progress: bool = False,
        desc: str | None = None,
    ) -> None:
        self._runner = runner
        self._store = runner.store
        self._version = runner.version_digest
        self._items = items
        self._key_of = key_of
        self._on_change = on_change
        self._retry_failed = retry_failed
        self._collect = collect
        self._desc, self._show = desc, progress
        self._bar: Bar | None = None
        self.total: int | None = len(items) if isinstance(items, Sized) else None
        self.drawn = 0
        self.completed = 0
        self.errors = ErrorCount(limit or ErrorLimit())
        self.failures: list[Exception] = []
        self.keys: list[Key] = []
        self._one_shot = iter(items) is items
        self._seen: dict[Key, Any] = {}  # by key: its first place, or what tells whether another item equals its own
        self._redo: set[Key] = set()  # done, but computed from another item
        self._changed = 0
        self._changed_keys: list[Key] = []
        self._failed: set[Key] = set()  # in this pass, or earlier and not run again
        self._made: set[Key] = set()  # in this pass, where outcomes are collected
        self._running: dict[Key, int] = {}  # admitted and not settled, with the digests of their items
        self._outcomes: list[Outcome[Any]] = []

    # before anything is paid for

    def prepare(self) -> None:
        """Key what can be read twice: counts, duplicates and changes are known before anything runs.

        Raises:
            InvalidKey, DuplicateKey, InputChanged: naming the items.
        """
        done_before = 0
        if not self._one_shot:
            for place, item in enumerate(self._items):
                self._key_first(place, item)
                if place == _FIRST - 1:
                    self._tell_if_unknown()
            self.total = len(self.keys)
            if self.total < _FIRST:
                self._tell_if_unknown()
            done_before = self.completed
        self._store.total = self.total
        self._tell_resumed()
        self._bar = Bar(self.total, done_before, self._desc, show=self._show)

    def _key_first(self, place: int, item: Any) -> None:
        key = self._key(place, item)
        first = self._seen.setdefault(key, place)
        self.keys.append(key)
        if first != place:
            self._refuse_unequal(key, (first, place), self._item_at(first), item)
            self.completed += key not in self._redo and self._is_done(key)
            return
        found = self._store.results.find(self._version, key)
        if found is not None:
            self._note_change(key, item, found)
            self.completed += key not in self._redo

    def _key(self, place: int, item: Any) -> Key:
        try:
            return self._key_of(item)  # type: ignore[no-any-return]
        except InvalidKey as error:
            raise InvalidKey(f"item {place}: {error}", key=error.key) from None
        except Exception as error:
            error.add_note(f"while the key of item {place} was asked for: {quote(item)}")
            raise

    def _item_at(self, place: int) -> Any:
        return self._items[place] if isinstance(self._items, Sequence) else next(islice(self._items, place, None))

    def _refuse_unequal(self, key: Key, places: tuple[int, int], first: Any, second: Any) -> None:
        """Equal items share one result; unequal ones would get each other's."""
        if first is second or ((digest := item_digest(first)) and digest == item_digest(second)):
            return
        raise DuplicateKey(
            f"items {places[0]} and {places[1]} have one key, {quote(key)}, and are not known to be equal: "
            f"{quote(first)} and {quote(second)}; use a key that tells them apart, or drop one",
            key=key,
            places=places,
        )

    def _note_change(self, key: Key, item: Any, found: Place) -> None:
        """A known key whose item is another one than its result was computed from."""
        if not found.digest or item_digest(item) in (0, found.digest):
            return
        self._changed += 1
        if len(self._changed_keys) < _FIRST:
            self._changed_keys.append(key)
        if self._on_change == "recompute":
            self._redo.add(key)
        if self._on_change == "error":
            raise InputChanged(
                f"the item of key {quote(key)} is not the one its result was computed from: now {quote(item)}; clear "
                'the key, or choose on_change="keep" or "recompute"',
                keys=self._changed_keys,
            )

    def _is_done(self, key: Key) -> bool:
        return self._store.results.find(self._version, key) is not None

    def _tell_if_unknown(self) -> None:
        shelves = (self._store.results, self._store.errors)
        if any(shelf.find(self._version, key) is not None for key in self.keys[:_FIRST] for shelf in shelves):
            return
        known = self._store.results.count(self._version)
        if known and self.keys:
            log.warning(
                "checkpoint %r has %d results, and none of the first %d keys is among them (such as %s): if the key "
                "function has changed, stop now, since everything is computed anew",
                self._runner.name, known, len(self.keys[:_FIRST]), quote(self.keys[0]),
            )  # fmt: skip

    def _tell_resumed(self) -> None:
        done, failed = self._runner.count()
        if not (done or failed):
            return
        if not self._one_shot:
            done = self.completed
            failed = sum(self._has_error(key) for key in set(self.keys))
        total = "unknown" if self.total is None else f"{self.total:,}"
        log.info("resuming %r: %s done, %s failed, %s in total", self._runner.name, f"{done:,}", f"{failed:,}", total)

    def _has_error(self, key: Key) -> bool:
        return self._store.errors.find(self._version, key) is not None and not self._is_done(key)

    # admit

    def admit(self, item: Any) -> Unit | None:
        """The unit to run for the next item, or None: it is done, it stands as failed, or its equal is running.

        Raises:
            InvalidKey, DuplicateKey, InputChanged: for input that could not be keyed first.
            CheckpointLocked, StoreError: it could not be saved, so it is not run.
        """
        place = self.drawn
        self.drawn += 1
        key = self._draw(place, item) if place >= len(self.keys) else self._expected(place, item)
        if key in self._failed:
            self._stands(item, key)
            return None
        if key in self._running:
            return None
        found = self._store.results.find(self._version, key)
        if found is None or key in self._redo:
            return self._to_run(item, key)
        return self._resumed(item, key, found)

    def _draw(self, place: int, item: Any) -> Key:
        """The key of an item that could not be keyed first: unequal items with one key are found at the second one."""
        key = self._key(place, item)
        self.keys.append(key)
        first = self._seen.get(key)
        if first is None:
            self._seen[key] = (place, _comparable(item))
        elif not _equals(first[1], item):
            self._refuse_unequal(key, (first[0], place), _Gone(), item)
        if place == _FIRST - 1:
            self._tell_if_unknown()
        return key

    def _expected(self, place: int, item: Any) -> Key:
        key = self.keys[place]
        if isinstance(self._items, Sequence):
            return key
        if (again := self._key(place, item)) != key:
            raise DuplicateKey(
                f"item {place} had key {quote(key)} when the items were first read, and {quote(again)} now: they come "
                "in another order each time they are read, or the key function is not stable; pass list(items)",
                key=again,
                places=(place, place),
            )
        return key

    def _resumed(self, item: Any, key: Key, found: Place) -> Unit | None:
        made = key in self._made
        if self._one_shot and not made:
            self._note_change(key, item, found)
            if key in self._redo:
                return self._to_run(item, key)
        if self._one_shot or made:
            self.completed += 1
            if self._bar is not None:
                self._bar.skip(1)
        if self._collect:
            try:
                value = self._runner.load_result(key)
            except (DamagedRecord, KeyError) as error:
                log.warning("%s", error)
                return self._to_run(item, key)
            self._outcomes.append(Outcome(item, key, value, None, "fresh" if made else "resumed"))
        return None

    def _to_run(self, item: Any, key: Key) -> Unit | None:
        store = self._store
        if not store.writing:
            store.begin_writing()
            if key not in self._redo and self._is_done(key):
                return None  # another process finished it while this one waited for nothing
        failed_before = not self._retry_failed and store.errors.find(self._version, key) is not None
        if failed_before or store.unsaved.find(self._version, key) is not None:
            self._stands(item, key)
            return None
        digest = self._running[key] = item_digest(item)
        return Unit(item, key, digest)

    def _stands(self, item: Any, key: Key) -> None:
        """The item has failed, in this pass or earlier, and is not run again by itself."""
        fresh = key in self._failed and key in self._made
        if key not in self._failed:
            self._failed.add(key)
        if self._bar is not None:
            self._bar.skip(1)
        if self._collect:
            error = self._runner.load_error(key)
            self._outcomes.append(Outcome(item, key, None, error, "fresh" if fresh else "resumed"))

    # settle

    def settle(self, finished: list[Done]) -> None:
        """Save what finished, all under one write and one sync, then count it.

        Raises:
            StoreError: it could not be saved, at a second try either; `.unsaved` holds the values.
        """
        settled = [self._encoded(done) for done in finished]
        runner, store = self._runner, self._store
        results = [entry for _, entry, raw in settled if entry is not None and raw is not None]
        errors = [entry for _, entry, raw in settled if raw is None and entry is not None]
        if results:
            self._append(store.results, results, finished)
        if errors:
            self._append(store.errors, errors, finished)
        for done, _, raw in settled:
            value = runner.decode_value(raw) if self._collect and raw is not None else None
            self._count(done, value, raw is not None)

    def _encoded(self, done: Done) -> tuple[Done, Entry | None, bytes | None]:
        """(the unit's end, its record, its encoded value or None for a failure)."""
        unit, outcome, runner = done.unit, done.outcome, self._runner
        if isinstance(outcome, Success):
            try:
                raw = runner.encode_value(outcome.value)
            except UnencodableValue as error:
                refused = runner.keep_aside(unit.key, outcome.value, error)
                failure = Failure(str(refused), "UnencodableValue", None, outcome.elapsed, outcome.attempts, refused)
                return Done(unit, failure), None, None
            return done, runner.result_entry(unit, raw, outcome), raw
        return done, runner.error_entry(unit, outcome), None

    def _append(self, shelf: Shelf, entries: list[Entry], finished: list[Done]) -> None:
        power = self._runner.power
        try:
            self._store.append(shelf, entries, durable=power)
        except StoreError:
            try:
                self._store.append(shelf, entries, durable=power)
            except StoreError as error:
                error.unsaved = {
                    done.unit.key: done.outcome.value for done in finished if isinstance(done.outcome, Success)
                }
                raise

    def _count(self, done: Done, value: Any, succeeded: bool) -> None:
        unit, outcome = done.unit, done.outcome
        key = unit.key
        self._running.pop(key, None)
        self._redo.discard(key)
        self._made.add(key)
        error: Exception | None = None
        if succeeded:
            self.completed += 1
            self.errors.succeeded()
        else:
            assert isinstance(outcome, Failure)
            error = self._failure(key, outcome)
        if self._bar is not None:
            self._bar.update(1, self.errors.failed)
        if self._collect:
            self._outcomes.append(Outcome(unit.item, key, value, error, "fresh"))

    def _failure(self, key: Key, failure: Failure) -> Exception:
        """Count it; the first ones are kept as they were raised, without the frames that hold the user's data."""
        self._failed.add(key)
        exception = failure.exception
        unencodable = isinstance(exception, UnencodableValue) and failure.type == "UnencodableValue"
        self.errors.fail(failure.type or "error", unencodable=unencodable)
        if not isinstance(exception, Exception):
            exception = self._runner.load_error(key)
        exception.__traceback__ = None
        if len(self.failures) < _FIRST:
            if failure.traceback and all(exception is not other for other in self.failures):
                exception.add_note(f"item {quote(key)}; {failure.traceback.rstrip()}")
            self.failures.append(exception)
        return exception

    def take(self) -> list[Outcome[Any]]:
        """The outcomes since the last time, for `stream`."""
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    # by hand

    def digest_for(self, key: Key) -> int:
        """The digest of the item that was handed out under the key."""
        return self._running.get(key, 0)

    def saved_by_hand(self, key: Key, *, failed: bool) -> None:
        """`save_result` or `save_error` was called for the key."""
        if self._running.pop(key, None) is None:
            return
        self._redo.discard(key)
        self._made.add(key)
        if failed:
            self._failed.add(key)
            self.errors.fail("error")
        else:
            self.completed += 1
            self.errors.succeeded()

    def moved_on(self) -> None:
        """The next item is asked for."""
        if self._bar is not None:
            self._bar.update(1, self.errors.failed)

    # after

    @property
    def failed(self) -> int:
        """How many keys failed, or stand as failed."""
        return len(self._failed)

    @property
    def stood(self) -> list[Key]:
        """The keys that stand as failed from earlier."""
        return [key for key in self._failed if key not in self._made]

    def places(self) -> array[int]:
        """Where each item's record is: an offset among the results, ~offset among the errors, or `NOT_RUN`."""
        version, results, errors = self._version, self._store.results, self._store.errors
        failed = self._failed
        places = array("q")
        for key in self.keys:
            found = None if key in failed else results.find(version, key)
            if found is not None:
                places.append(found.offset)
            else:
                found = errors.find(version, key) if key in failed else None
                places.append(NOT_RUN if found is None else ~found.offset)
        return places

    def close(self) -> None:
        """Put the bar away, say how it went, and let go of the items."""
        if self._bar is not None:
            self._bar.close()
        name = self._runner.name
        if self._changed and self._on_change != "error":
            kept = "kept; on_change='recompute' or clear(keys) computes them anew"
            fate = kept if self._on_change == "keep" else "computed anew"
            log.warning(
                "checkpoint %r: %d items differ from those that their results were computed from (keys such as %s): "
                "the results are %s",
                name, self._changed, quote(self._changed_keys[:3]), fate,
            )  # fmt: skip
        if self.errors.run:
            log.info("checkpoint %r: %d run, %d of them failed; %s done", name, self.errors.run, self.errors.failed,
                     f"{self.completed:,}" + (f" of {self.total:,}" if self.total is not None else ""))  # fmt: skip
        self._items, self._seen, self.keys = (), {}, []


NOT_RUN: Final = -(1 << 63)
"""The place of an item that was not run, since the pass was ended early."""


class _Gone:
    """Stands for an item of one-shot input that is no longer here."""

    def __repr__(self) -> str:
        return "one that was drawn earlier"


def _comparable(item: Any) -> Any:
    """What is kept of an item to compare a later one with: its digest, else a weak reference, else nothing."""
    digest = item_digest(item)
    if digest:
        return digest
    try:
        return weakref.ref(item)
    except TypeError:
        return None


def _equals(kept: Any, item: Any) -> bool:
    if isinstance(kept, int):
        return kept == item_digest(item)
    return kept is not None and kept() is item
