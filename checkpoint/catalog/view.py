"""One version of one checkpoint: values go in as records, and come out as the values that went in.

The promise: what is loaded is the same as what was saved, or an error that names the line; what cannot be encoded is
kept aside, and its key is told to have failed. How lines are written says `RecordLines`, how values are read
`ValueReading`.
"""

from __future__ import annotations

import base64
import logging
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from checkpoint import clock
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.record_lines import RecordLines
from checkpoint.catalog.registry import open_checkpoint
from checkpoint.catalog.schemas import schema_of
from checkpoint.catalog.shards import ALL, Shard
from checkpoint.catalog.value_reading import ValueReading
from checkpoint.errors import (
    DamagedRecord,
    ItemError,
    StoreClosed,
    StoreError,
    UnbuildableValue,
    UnencodableValue,
    quote,
)
from checkpoint.outcomes import Failure
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record, saved_on, with_fields
from checkpoint.storage.source import RecordSource, record_at
from checkpoint.storage.store import Entry, Store
from checkpoint.storage.writer import in_time
from checkpoint.values.codec import Codec
from checkpoint.values.keys import Key, plain_key, version_digest
from checkpoint.values.marks import mark_of
from checkpoint.values.plain_json import read_json

__all__ = [
    "LATEST",
    "Latest",
    "Unsaved",
    "VersionCount",
    "VersionView",
    "tell_left_out",
    "tell_unnamed",
    "view_at",
]


log = logging.getLogger("checkpoint")


class Latest:
    """The type of `LATEST`."""

    def __repr__(self) -> str:
        return "LATEST"

    def __reduce__(self) -> str:
        return "LATEST"


LATEST: Final = Latest()
"""The version of the last record: what a runner made by hand reads unless told otherwise."""
T = TypeVar("T")


class VersionView(RecordLines, ValueReading):
    """The records of one checkpoint under one version, through one codec.

    Args:
        name: the checkpoint's, checked.
        directory: absolute.
        version: a JSON value, None for none, or `LATEST`.
        power: whether each record is synced before it counts as saved.
        result_type: an annotation that names classes to rebuild.
        shard: whose journals are written.
        lock_timeout: seconds that a write waits while another process writes.

    Attributes:
        checkpoint: what is read; shared with everyone in the process who names the same files.
        store: what is written.
        version: the version's short digest, "" for none.
        encode, encode_all, decode: the codec's: a value's JSON and back.
        result_type: as given.
        schema: of the classes that `result_type` names, or None.
        parse: what is made of each value that is read; None: it is read as it is.
        only_reads: whether nothing is to be written, not even a note that a record is damaged.
    """

    checkpoint: Checkpoint
    store: Store
    only_reads = False

    def __init__(
        self, name: str, directory: Path, *, version: Any, power: bool, result_type: Any, shard: Shard = ALL,
        lock_timeout: float = 0.0,
    ) -> None:  # fmt: skip
        self.name = name
        self.shard = shard
        self.power = power
        self.lock_timeout = lock_timeout
        codec = Codec(result_type, on_unnamed=partial(tell_unnamed, name), on_left_out=partial(tell_left_out, name))
        self.encode, self.encode_all, self.decode = codec.encode, codec.encode_all, codec.decode
        self._latest = self._follows = version is LATEST
        self._pins = 0  # passes
        self._session = os.urandom(4).hex().encode()
        self._stamp = clock.Stamper()
        self._code = b""
        self._secret = codec.secret
        self.result_type = result_type
        self.schema = schema_of(result_type)
        self._schema = b',"schema":"%b"' % self.schema.digest.encode() if self.schema is not None else b""
        if not self._follows:
            version_digest(version, "version", name)  # it is refused before any file is opened
        self._whole: VersionView | None = None
        self._attachment = open_checkpoint(name, directory, self, shard)
        self.store = self.checkpoint.store
        digest = "" if self._follows else self.checkpoint.digest_of_version(version)
        if digest:
            self.store.meta.name_version(digest, version)
        self._set_version(digest)
        self._follow()

    def _set_version(self, digest: str) -> None:
        self.version = digest
        field = b',"version":"%b"' % digest.encode() if digest else b""
        self._fields = (field + self._code + self._schema, b',"session":"%b"' % self._session)
        self._plain_fields = b"".join(self._fields)

    def set_code(self, digest: str) -> None:
        """What is saved from here on is computed by code of this fingerprint; "" for none that is known."""
        self._code = b',"code":"%b"' % digest.encode() if digest else b""
        self._set_version(self.version)

    def refuse_secrets(self) -> None:
        """Raise before anything is run where results would hold a secret.

        Raises:
            UnencodableValue: the annotation names one of pydantic's secrets; `.where` is the field.
        """
        if self._secret:
            raise UnencodableValue(
                f"checkpoint {self.name!r}: {self._secret} is a secret, which would be written to disk in clear; "
                "nothing was run. Leave it out of what the function returns, or return .get_secret_value() of it, "
                "annotated as str, where it may be read by all who can read the checkpoint",
                where=self._secret,
            )

    def tell_unannotated(self) -> None:
        """Say, once a process, that results were objects of classes that the annotation named, and are plain JSON."""
        digest = self.checkpoint.results.last_schema(self.version)
        if not digest or ("unannotated", digest) in self.store.meta.told:
            return
        self.store.meta.told.add(("unannotated", digest))
        noted = self.checkpoint.schemas_of(self.version).get(digest, {}).get("classes") or {}
        names = [name for name in noted if name]
        if names:
            log.warning(
                "checkpoint %r: results were saved as objects of %s, which the annotation named, and no annotation "
                "names a class now: they come back as plain JSON. Annotate the function's return again (-> %s), or "
                "pass result_type=", self.name, ", ".join(names), names[-1],
            )  # fmt: skip

    def note_schema(self) -> None:
        """Results may follow: meta says what their schema stands for before one is there."""
        if self.schema is not None:
            self.checkpoint.note_schema(self.version, self.schema.digest, self.schema.classes)

    def pin(self) -> None:
        """A pass begins: stay with the version of the last record as it is now, until `unpin`."""
        if self._follows and not self._pins:
            self._follow()
        self._pins += 1

    def unpin(self) -> None:
        """The pass is over."""
        self._pins -= 1

    def of_pass(self, parse: Callable[[Any], Any] | None = None) -> VersionView:
        """The same records, for one pass: several may save what different code computed, and read it otherwise."""
        view = copy(self)
        view._whole = self  # when that is collected its files are closed
        view.parse = parse
        return view

    def parsing(self, parse: Callable[[Any], Any] | None) -> VersionView:
        """The same records, each value read through the function."""
        return self if parse is self.parse else self.of_pass(parse)

    def address(self) -> tuple[Any, ...]:
        """The arguments by which `view_at` reads the same records, in any process."""
        version = LATEST if self._follows else self.version
        return (self.name, self.checkpoint.directory, version, self.result_type, self.parse)

    def _follow(self) -> None:
        """Where no version was named: go over to that of the last record, and say so; until something is saved."""
        latest = self.checkpoint.latest
        if not self._follows or latest == self.version:
            return
        self._set_version(latest)
        known = self.checkpoint.versions
        shown = quote(known[latest]) if latest in known else latest or "None"
        log.info("checkpoint %r: reading version %s, that of the last record", self.name, shown)

    def open(self, *keys: Key) -> Checkpoint:
        """The checkpoint, up to date with what others wrote.

        Raises:
            StoreClosed: `close` was called.
        """
        self.refuse_if_closed()
        self.checkpoint.refresh(*(() if self._follows else keys))
        if self._follows and not self._pins:
            self._follow()
        return self.checkpoint

    def results_for(self, *keys: Key) -> RecordSource:
        """The results, where some keys are looked up: `open`, but for who does so again within a few milliseconds."""
        if not (self._attachment.is_held and self.checkpoint.is_fresh()):
            self.open(*keys)
        elif self._follows and not self._pins:
            self._follow()
        return self.checkpoint.results

    def refuse_if_closed(self) -> None:
        """Raise `StoreClosed` if `close` was called."""
        if self.closed:
            raise StoreClosed(f"the runner of checkpoint {self.name!r} was closed; make a new one")

    def close(self) -> None:
        """Let go of the store."""
        self._attachment()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._attachment.is_held

    # saving

    def begin_writing(self, timeout: float | None = None) -> None:
        """Hold the lock; while another process holds it, wait so many seconds, by default `lock_timeout`.

        Raises:
            CheckpointLocked: it holds it still.
        """
        self._in_time(self.store.writer.begin, timeout)

    def _in_time(self, act: Callable[[], T], timeout: float | None = None) -> T:
        timeout = self.lock_timeout if timeout is None else timeout
        return in_time(act, timeout, every=self.store.writer.looks_every)

    def save(self, key: Key, value: Any, digest: int) -> None:
        """The value is on disk for the key when this returns.

        Raises:
            UnencodableValue: it was kept aside instead.
            StoreError: it is not on disk; `.unsaved` holds it.
        """
        try:
            if self._follows or not self._attachment.is_held:
                self.open()
            if self.lock_timeout and not self.store.writer.writing:
                self.begin_writing()
            try:
                raw = self.encode(value)
            except UnencodableValue as error:
                raise self.keep_aside(key, value, digest, error) from None
            line = self.result_line(key, raw, digest)
            self.store.append_one(self.store.own.results, self.version, key, digest, line, durable=self.power)
            self._follows = False
        except StoreError as error:
            error.unsaved = {key: value}
            raise

    def save_failure(self, key: Key, failure: Failure, digest: int) -> None:
        """The failure is on disk for the key when this returns."""
        self.open()
        if self.lock_timeout and not self.store.writer.writing:
            self.begin_writing()
        entry = Entry(self.version, key, digest, self.error_line(key, failure, digest))
        self.store.append(self.store.own.errors, [entry], durable=self.power)
        self._follows = False

    def save_paid(self, key: Key, failed: Record, digest: int) -> None:
        """The value that a failure kept is the result for the key, on disk when this returns."""
        view = copy(self)  # what computed it, not what accepts it
        view.set_code(failed.code)
        line = view.result_line(key, bytes(failed.paid), digest, failed.elapsed, failed.attempts)
        line = with_fields(line, b',"from":"refused"')
        self.store.append_one(self.store.own.results, self.version, key, digest, line, durable=self.power)

    def keep_aside(
        self,
        key: Key,
        value: Any,
        digest: int,
        error: UnencodableValue,
        notes: dict[str, Any] | None = None,
        earlier: float = 0.0,
    ) -> UnencodableValue:
        """Put a paid-for value where `unsaved` finds it, and make its item a failure that says why."""
        kept = self._aside_line(key, value, digest, str(error))
        located = UnencodableValue(
            f"the result for key {quote(key)} was not saved: {error}. The value was kept: see .unsaved, and "
            "save_result it in a form that can be stored; or clear([key]) to run the item again",
            where=error.where,
            key=key,
        )
        failure = Failure(str(located), "UnencodableValue", notes=notes)
        entries = [Entry(self.version, key, digest, self.error_line(key, failure, digest, earlier))]
        try:
            self.open()
            self.store.append(self.store.own.unsaved, [Entry(self.version, key, digest, kept)], durable=self.power)
            self.store.append(self.store.own.errors, entries, durable=self.power)
            self._follows = False
        except StoreError as failed:
            failed.unsaved = {key: value}
            raise
        return located

    # loading

    def load(self, key: Key) -> Any:
        """The decoded result for the key.

        Raises:
            KeyError: there is none.
            DamagedRecord: its bytes are not those that were written; the key is not done from now on.
            UnbuildableValue: its class has changed since.
            ItemError: `parse` raised; the value is its `.value`.
        """
        shelf = self.results_for(key)
        try:
            found = shelf.read(self.version, key)
            if found is None:
                raise KeyError(key)
            reader, place, record = found
            raw = bytes(record.result)
            if b"$" not in raw and record.crc and self.parse is None:  # what `_value` does, in less time
                try:
                    return read_json(raw)
                except (ValueError, RecursionError):
                    pass
            return self._value(reader, place.offset, record, key)
        except DamagedRecord as error:
            self._note_damage(shelf, None, error)
            raise

    def load_at(self, reader: Reader, offset: int, mark: int | None = None, text: str = "") -> tuple[Key, Any]:
        """(key, decoded result) at a place that a pass found; `mark` and `text` as of `record_at`."""
        shelf = self.checkpoint.results
        with self.noting_damage(shelf, reader):
            offset, key, record = record_at(shelf, reader, self.version, offset, mark, text)
            return key, self._value(reader, offset, record, key)

    def load_run(self, reader: Reader, offsets: Iterable[int], marks: Iterable[int]) -> Iterator[Any]:
        """Decoded results at places that a pass found, as `load_at`; it ends before one that takes more to read."""
        if self.parse is not None:
            return
        decode = self.decode
        for line, mark in zip(reader.lines_at(offsets), marks, strict=False):
            found = saved_on(line)
            if found is None or mark_of(found[0]) != mark or found[2] != self.version:
                return
            try:
                yield decode(found[1])
            except (ValueError, UnbuildableValue):
                return

    def load_error_at(
        self, reader: Reader, offset: int, mark: int | None = None, text: str = ""
    ) -> tuple[Key, ItemError]:
        """(key, failure) at a place that a pass found; `mark` and `text` as of `record_at`."""
        shelf = self.checkpoint.errors
        with self.noting_damage(shelf, reader):
            _, key, record = record_at(shelf, reader, self.version, offset, mark, text)
            return key, self.error_of(key, record)

    def load_error(self, key: Key) -> ItemError:
        """The failure recorded for the key, where it has no result.

        Raises:
            KeyError: there is none.
            DamagedRecord: its bytes are not those that were written.
        """
        checkpoint = self.open()
        with self.noting_damage(checkpoint.errors):
            found = checkpoint.errors.read(self.version, key)
        if found is None or checkpoint.is_retired(self.version, key, found[2]):
            raise KeyError(key)
        return self.error_of(key, found[2])

    @contextmanager
    def noting_damage(self, shelf: RecordSource, reader: Reader | None = None) -> Iterator[None]:
        """A record that proves damaged is not done from then on; one in a file that was replaced is past that."""
        try:
            yield
        except DamagedRecord as error:
            self._note_damage(shelf, reader, error)
            raise

    def _note_damage(self, shelf: RecordSource, reader: Reader | None, error: DamagedRecord) -> None:
        if not self.only_reads and (reader is None or shelf.holds(reader, error.offset)):
            self.checkpoint.note_damage(shelf, self.version, plain_key(error.key), error.offset)

    def iter_results(self) -> Iterator[tuple[Any, Any]]:
        """(key, decoded result) of every key of this version, in the order in which they were saved, one at a time."""
        shelf = self.open().results
        with self.noting_damage(shelf):
            for reader, offset, key, record in shelf.records(self.version):
                yield key, self._value(reader, offset, record, key)

    def iter_unparsed(self) -> Iterator[ItemError]:
        """The error of every result of this version that `parse` cannot read; it reads them all."""
        if self.parse is None:
            return
        shelf = self.open().results
        with self.noting_damage(shelf):
            for reader, offset, key, record in shelf.records(self.version):
                try:
                    self._value(reader, offset, record, key)
                except ItemError as error:
                    yield error

    def iter_keys(self) -> Iterator[Any]:
        """The keys of this version that have a result, in the order in which they were saved."""
        shelf = self.open().results
        with self.noting_damage(shelf):
            for _, _, key, _ in shelf.records(self.version):
                yield key

    def iter_errors(self) -> Iterator[ItemError]:
        """The failure of every key of this version that has no result."""
        checkpoint = self.open()
        with self.noting_damage(checkpoint.errors):
            for _, _, key, record in checkpoint.errors.records(self.version):
                if not checkpoint.is_retired(self.version, key, record):
                    yield self.error_of(key, record)

    def is_done(self, key: Key) -> bool:
        """Whether the key has a result; the store as it was last seen."""
        return self.checkpoint.results.find(self.version, key) is not None

    def count(self) -> tuple[int, int]:
        """(done, failed): how many keys have a result, and how many an error and no result."""
        checkpoint = self.open()
        return checkpoint.results.count(self.version), checkpoint.failed_count(self.version)

    def clear(self) -> None:
        """Forget everything, all versions and files included; also where a journal is none."""
        self.refuse_if_closed()
        self._in_time(self.checkpoint.clear)
        if self._latest:
            self._follows = True
            self._set_version("")

    def forget(self, keys: Iterable[Key]) -> int:
        """Forget these keys under this version; returns how many were known."""
        keys, checkpoint = list(keys), self.open()
        forget = partial(checkpoint.forget, self.version, keys, self._session, durable=self.power)
        return self._in_time(forget)


class Unsaved(Mapping[Any, Any]):
    """Values that could not be encoded, opened one by one: a pickle is loaded, else the value's repr is given.

    Opening a pickle runs what its author wrote, so that only who takes a value by its key does so: ``unsaved[key]``, or
    by `get`, `values` and `items`.
    """

    def __init__(self, records: VersionView) -> None:
        self._owner = records

    def _records(self) -> Iterator[tuple[Key, Record]]:
        owner = self._owner
        shelf = owner.open().unsaved
        with owner.noting_damage(shelf):
            for _, _, key, record in shelf.records(owner.version):
                if not owner.is_done(key):
                    yield key, record

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._records())

    def __len__(self) -> int:
        return sum(1 for _ in self._records())

    def __contains__(self, key: object) -> bool:
        return any(held == key for held, _ in self._records())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return self is other or len(self) == len(other) == 0  # to compare values would open them

    __hash__ = None  # type: ignore[assignment]  # like any mapping

    def __getitem__(self, key: Any) -> Any:
        for held, record in self._records():
            if held == key:
                return record.repr if record.pickle is None else pickle.loads(base64.b64decode(record.pickle))
        raise KeyError(key)

    def __repr__(self) -> str:
        return f"<{len(self)} values that could not be encoded: {quote(list(islice(self, 5)))}>"


def tell_unnamed(checkpoint: str, name: str) -> None:
    """Say that objects of a class come back as plain JSON."""
    log.warning(
        "checkpoint %r: results hold objects of class %s, which come back as plain JSON, since no annotation names "
        "it; to get them back as objects, annotate the function's return (-> %s) or pass result_type=%s. That holds "
        "for dataclasses, NamedTuples, Enums, attrs, msgspec, pydantic; a subclass of dict or str comes back as that",
        checkpoint, name, name, name,
    )  # fmt: skip


def tell_left_out(checkpoint: str, text: str) -> None:
    """Say what of objects is not saved."""
    log.warning("checkpoint %r: %s", checkpoint, text)


@dataclass(frozen=True, slots=True)
class VersionCount:
    """What counts under one version: its digest ("" for none), what that stands for (None: not known), how many.

    `cost` is what its records have cost, those included that count no more; None where nothing was noted.
    """

    version: str
    label: Any
    results: int
    errors: int
    cost: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As `Soundness.to_json` has it; and `cost`, where anything was noted."""
        told = {"version": self.version, "label": self.label, "results": self.results, "errors": self.errors}
        return told if self.cost is None else {**told, "cost": self.cost}


def view_at(
    name: str, directory: Path, version: Any, result_type: Any, parse: Callable[[Any], Any] | None
) -> VersionView:
    """A view to read from, where the version is `LATEST` or a digest."""
    latest = LATEST if version is LATEST else None
    view = VersionView(name, directory, version=latest, power=False, result_type=result_type)
    if latest is None:
        view.version = version
    view.parse = parse
    return view
