"""Rows from records: the results of a checkpoint as columns, for pandas, polars, Parquet, CSV and JSON lines.

The promise: a column holds what was saved, or text that says all of it; never a value that only looks like it. A file
is the whole table, or is not there. All kinds of tables have the same columns, whatever classes the reader knows: no
class is built, and no code of the user runs.

    columns      key; the fields of the results; error and type, where asked for; timestamp, elapsed, attempts
    fields       of dicts and objects, nested ones by dotted names; of anything else, one column "result"
    a clash      a field called as a column of the record's, or "result", is "result.NAME"; else the later is "NAME_2"
    nothing      None and NaT, a field that is not there, and an object without fields are null; NaN is a number
    types        one a column; int and float make float, if exact; int and Decimal make Decimal; else JSON text
    text         what Arrow has no type for: ints over 64 bits, UUIDs, paths, fractions, complex numbers, ranges
    lists        tuples, sets (sorted) and arrays too; a list column, if its elements agree; else JSON text
    JSON text    plain JSON: no envelopes; bytes in base64; NaN, Infinity and ints over 64 bits as strings
    too much     an object of more than 1,000 field names, or what is nested deeper than 10, is JSON text
    moments      in UTC where they know their zone, to the microsecond
"""

from __future__ import annotations

import csv
import errno
import importlib
import io
import math
import os
import re
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from checkpoint.codecs import Codec, decode_foreign, with_stack
from checkpoint.errors import DamagedRecord, ExtraNeeded, InvalidOption, StoreError, plural, quote, shorten
from checkpoint.files import open_safely
from checkpoint.journal import Reader, Record, fsync, store_error
from checkpoint.keys import Key, plain_key
from checkpoint.passes import NOT_RUN
from checkpoint.places import locate
from checkpoint.records import LATEST, Records
from checkpoint.shelf import Shelf, key_of
from checkpoint.upkeep import VersionCount

__all__ = ["Table", "export", "json_text", "of_version", "replacing", "tidy", "tidy_result", "versions_of"]

_MOST_FIELDS = 1000
_DEEPEST = 10
_BATCH = 4096  # rows that are Python objects at once, or
_BATCH_BYTES = 4 << 20  # so many bytes of JSON
_GROUP = 65536  # rows of a Parquet row group, or
_GROUP_BYTES = 32 << 20  # so many bytes of Arrow columns
_SHOWN_COLUMNS = 16
_SHOWN_CHARACTERS = 200


# --- from a record to what columns can hold --------------------------------------------------------------------------
#
# A *tidy* value is None, bool, int, float, str without lone surrogates, bytes, a datetime (naive, or in UTC), a date, a
# naive time, a timedelta that fits 64 bits, a Decimal, or a list or dict (of str keys) of such: of exactly these types.
# Envelopes are opened here, and not by the codec: no class need be known, and sets and keys of objects are no trouble.

_codec = Codec()
_WORD = 1 << 63
_EXACT = 1 << 53
_MOST_BITS = 65_536  # of an int whose decimal digits are written; a longer one is written in hexadecimal


def tidy_result(raw: bytes, *, sealed: bool) -> Any:
    """The tidy value of a record's result; `sealed` tells whether it is ours, with envelopes, or another program's.

    Raises:
        ValueError: it is nothing that this can read.
    """
    if not sealed:
        return with_stack(tidy, decode_foreign(raw))
    if b'{"$' not in raw:
        return _codec.decode(raw)  # plain JSON is tidy
    try:
        return with_stack(_opened, _parsed(raw))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"an envelope is malformed: {error}") from error


def _parsed(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return decode_foreign(raw)  # which takes ints of any size, and a stack of its own


def _opened(plain: Any) -> Any:
    """The tidy value that parsed JSON with envelopes stands for."""
    if type(plain) is list:
        return [_opened(part) for part in plain]
    if type(plain) is not dict:
        return plain
    first = next(iter(plain), "")
    if not first.startswith("$"):
        return {name: _opened(part) for name, part in plain.items()}
    opener = _OPENERS.get(first)
    return tidy(_codec.revive(plain)) if opener is None else opener(plain)


def _open_object(env: dict[str, Any]) -> dict[str, Any]:
    (_, *parts) = env.items()
    more = [_opened(env[name]) for name in ("$extra", "$attrs") if name in env]
    fields = {name: _opened(part) for name, part in parts if not name.startswith("$")}
    return {name: part for held in (fields, *more) for name, part in (held or {}).items()}


def _open_enum(env: dict[str, Any]) -> Any:
    return _opened(env["value"] if "value" in env else env["name"])


def _open_pairs(pairs: list[Any]) -> Any:
    return _object([[_opened(key), _opened(part)] for key, part in pairs])


def _object(pairs: list[Any]) -> Any:
    """An object of tidy pairs; the list of them where two keys make one name."""
    named = {key if type(key) is str else json_text(key): part for key, part in pairs}
    return named if len(named) == len(pairs) else pairs


def _open_set(parts: list[Any]) -> list[Any]:
    opened = [_opened(part) for part in parts]
    kinds = set(map(type, opened))
    return sorted(opened) if kinds <= {int, float} or kinds == {str} else sorted(opened, key=json_text)


_OPENERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$class": _open_object,
    "$namedtuple": _open_object,
    "$enum": _open_enum,
    "$dict": lambda env: {name: _opened(part) for name, part in env["$dict"].items()},
    "$tuple": lambda env: _opened(env["$tuple"]),
    "$deque": lambda env: _opened(env["$deque"]),
    "$set": lambda env: _open_set(env["$set"]),
    "$frozenset": lambda env: _open_set(env["$frozenset"]),
    "$map": lambda env: _open_pairs(env["$map"]),
    "$OrderedDict": lambda env: _open_pairs(env["$OrderedDict"]),
    "$Counter": lambda env: _open_pairs(env["$Counter"]),
    "$defaultdict": lambda env: _open_pairs(env["$defaultdict"]),
}


def tidy(value: Any) -> Any:
    """A decoded scalar or array, a key, or the JSON of another program, tidy."""
    known = _TIDY.get(type(value))
    if known is not None:
        return known(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _tidy_numpy(numpy, value)
    return None if value is msgspec.UNSET else _tidy_text(str(value))


def _itself(value: Any) -> Any:
    return value


def _tidy_parts(parts: Iterable[Any]) -> list[Any]:
    return [tidy(part) for part in parts]


def _tidy_text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _tidy_datetime(value: datetime) -> Any:
    if value.tzinfo is None:
        return value.replace(fold=0)
    try:
        return value.astimezone(UTC)
    except OverflowError:  # in UTC it is in year 0 or 10000
        return value.isoformat()


def _tidy_timedelta(value: timedelta) -> Any:
    return value if abs(value) < timedelta(microseconds=_WORD - 1) else msgspec.to_builtins(value)


def _tidy_numpy(numpy: Any, value: Any) -> Any:
    dtype = value.dtype
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return value.tolist()
    if isinstance(value, numpy.ndarray):
        return [_tidy_numpy(numpy, part) for part in value] if value.ndim else _tidy_numpy(numpy, value[()])
    if dtype.names is not None:
        return {_tidy_text(name): tidy(value[name]) for name in dtype.names}
    if dtype.kind in "mM":
        return _tidy_np_moment(numpy, value)
    if dtype.kind == "f":  # a long double
        return float(value) if float(value) == value or value != value else str(value)
    held = value.item()
    return str(value) if isinstance(held, numpy.generic) else tidy(held)


def _tidy_np_moment(numpy: Any, value: Any) -> Any:
    if numpy.isnat(value):
        return None
    if numpy.datetime_data(value.dtype)[0] != "generic":
        rounded = value.astype(f"{value.dtype.kind}8[us]")
        held = rounded.item() if numpy.datetime_data(value.dtype)[0] not in "YMWD" else value.item()
        if isinstance(held, (date, timedelta)) and (rounded == value or not isinstance(held, (datetime, timedelta))):
            return tidy(held)
    return str(value)


_TIDY: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((type(None), bool, int, float, bytes, date, Decimal), _itself),
    str: _tidy_text,
    bytearray: bytes,
    list: _tidy_parts,
    tuple: _tidy_parts,
    dict: lambda value: _object([[_tidy_text(name), tidy(part)] for name, part in value.items()]),
    datetime: _tidy_datetime,
    time: lambda value: value.replace(fold=0) if value.tzinfo is None else value.isoformat(),
    timedelta: _tidy_timedelta,
}


def _jsonable(value: Any) -> Any:
    """What strict JSON, and any reader of it, can hold of a tidy value."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is float:
        if math.isfinite(value):
            return value
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if kind is int:
        return value if -_WORD <= value < 2 * _WORD else _digits(value)
    if kind is list:
        return [_jsonable(part) for part in value]
    if kind is dict:
        return {name: _jsonable(part) for name, part in value.items()}
    return msgspec.to_builtins(value)


def json_text(value: Any) -> str:
    """A tidy value as plain JSON."""
    return msgspec.json.encode(with_stack(_jsonable, value)).decode()


def _digits(value: Any) -> str:
    if type(value) is not int:
        return str(value)
    # str(int) refuses more than 4,300 digits, and beyond some more each decimal digit costs more than the one before.
    return str(Decimal(value)) if value.bit_length() <= _MOST_BITS else hex(value)


# --- what a column may hold -----------------------------------------------------------------------------------------


class Form(NamedTuple):
    """The type of a column, or of what stands in a list: a word for Arrow's, or "list", "struct" or "json"."""

    kind: str
    part: Form | None = None
    fields: dict[str, Form] | None = None
    digits: tuple[int, int] = (0, 0)


_JSON, _NULL, _TEXT = Form("json"), Form("null"), Form("text")
_KINDS: dict[type, str] = {
    bool: "bool",
    float: "float",
    str: "text",
    bytes: "bytes",
    date: "date",
    time: "time",
    timedelta: "span",
}  # fmt: skip


class Shape:
    """What was seen in one place of all rows: kinds of scalars, what stands in lists, and fields."""

    __slots__ = ("before", "behind", "depth", "fields", "high", "kinds", "low", "part", "place", "whole")

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.kinds: set[str] = set()
        self.low, self.high = 0, 0  # of ints
        self.before, self.behind = 0, 0  # digits of Decimals
        self.part: Shape | None = None
        self.fields: dict[str, Shape] | None = None
        self.whole = False  # too much for columns: JSON text
        self.place = -1

    @property
    def is_new(self) -> bool:
        """Whether nothing was seen but None."""
        return not (self.kinds or self.part or self.fields is not None)

    def learn(self, value: Any) -> None:
        """See one tidy value."""
        kind = type(value)
        if kind is dict:
            self._learn_fields(value)
        elif kind is list:
            self._learn_list(value)
        elif kind is int:
            self._learn_ints(value, value)
        elif kind is datetime:
            self.kinds.add("datetime" if value.tzinfo is None else "moment")
        elif kind is Decimal:
            self._learn_decimal(value)
        elif value is not None:
            self.kinds.add(_KINDS[kind])

    def _learn_fields(self, value: dict[str, Any]) -> None:
        fields = self.fields
        if fields is None:
            fields = self.fields = {}
        if self.depth >= _DEEPEST:
            self.whole = True
        if self.whole:
            return
        for name, part in value.items():
            shape = fields.get(name)
            if shape is None:
                shape = fields[name] = Shape(self.depth + 1)
            shape.learn(part)
        if len(fields) > _MOST_FIELDS:
            self.whole = True
            fields.clear()

    def _learn_list(self, value: list[Any]) -> None:
        if self.part is None:
            self.part = Shape(self.depth + 1)
        if self.depth >= _DEEPEST:
            self.whole = True
        if self.whole or self.part.whole:
            return
        kinds = set(map(type, value))
        if kinds <= {float, bool, str, type(None)}:
            self.part.kinds.update(_KINDS[kind] for kind in kinds - {type(None)})
        elif kinds == {int}:
            self.part._learn_ints(min(value), max(value))
        else:
            for part in value:
                self.part.learn(part)

    def _learn_ints(self, low: int, high: int) -> None:
        self.kinds.add("int")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _learn_decimal(self, value: Decimal) -> None:
        self.kinds.add("decimal")
        _, digits, exponent = value.as_tuple()
        if isinstance(exponent, int):
            self.before = max(self.before, len(digits) + exponent)
            self.behind = max(self.behind, -exponent)
        else:
            self.before = 99  # NaN and Infinity: no Arrow type holds them

    def form(self) -> Form:
        """The form of what stands here; fields have columns of their own."""
        if self.whole:
            return _NULL if self.is_new else _JSON
        if self.part is not None:
            part = self.part._inner_form()
            return _JSON if self.kinds or part is _JSON else Form("list", part)
        return self._scalar_form()

    def _inner_form(self) -> Form:
        if self.fields is None or self.whole:
            return self.form()
        if self.kinds or self.part is not None or not self.fields:
            return _JSON
        fields = {name: shape._inner_form() for name, shape in self.fields.items()}
        return _JSON if _JSON in fields.values() else Form("struct", fields=fields)

    def _scalar_form(self) -> Form:
        kinds, reach = self.kinds, max(-self.low, self.high)
        if not kinds:
            return _NULL
        if kinds == {"int"}:
            if self.low >= -_WORD and self.high < _WORD:
                return Form("int")
            return Form("uint") if self.low >= 0 and self.high < 2 * _WORD else _TEXT
        if kinds == {"int", "float"}:
            return Form("number") if reach <= _EXACT else _JSON
        if kinds <= {"int", "decimal"}:
            before = max(self.before, len(_digits(reach)) if "int" in kinds else 0)
            if before + self.behind <= 38:
                return Form("decimal", digits=(max(before + self.behind, 1), self.behind))
            return _TEXT if len(kinds) == 1 else _JSON
        return Form(next(iter(kinds))) if len(kinds) == 1 else _JSON


def _maker(form: Form) -> Callable[[Any], Any] | None:
    """What makes a tidy value, not None, into one of the form; None where it is one."""
    if form.kind == "list" and form.part is not None:
        make = _maker(form.part)
        return None if make is None else lambda value: [None if part is None else make(part) for part in value]
    if form.kind == "struct" and form.fields is not None:
        makers = {name: _maker(part) or _itself for name, part in form.fields.items()}
        return lambda value: {
            name: None if (part := value.get(name)) is None else make(part) for name, make in makers.items()
        }
    makers_of_kinds: dict[str, Callable[[Any], Any]] = {
        "json": json_text,
        "text": _digits,
        "number": float,
        "decimal": Decimal,
    }
    return makers_of_kinds.get(form.kind)


def _arrow_type(pa: Any, form: Form) -> Any:
    if form.kind == "list" and form.part is not None:
        return pa.list_(_arrow_type(pa, form.part))
    if form.kind == "struct" and form.fields is not None:
        return pa.struct([(name, _arrow_type(pa, part)) for name, part in form.fields.items()])
    if form.kind == "decimal":
        return pa.decimal128(*form.digits)
    return {
        "null": pa.null(),
        "bool": pa.bool_(),
        "int": pa.int64(),
        "uint": pa.uint64(),
        "float": pa.float64(),
        "number": pa.float64(),
        "text": pa.string(),
        "json": pa.string(),
        "bytes": pa.binary(),
        "moment": pa.timestamp("us", tz="UTC"),
        "datetime": pa.timestamp("us"),
        "date": pa.date32(),
        "time": pa.time64("us"),
        "span": pa.duration("us"),
    }[form.kind]


# --- rows -----------------------------------------------------------------------------------------------------------

_OWN = {
    "key": _TEXT,
    "error": _TEXT,
    "type": _TEXT,
    "timestamp": Form("moment"),
    "elapsed": Form("float"),
    "attempts": Form("int"),
}
"""The record's own columns, and their forms where no row has any."""
_RESERVED = frozenset({*_OWN, "result", ""})  # polars has no column without a name


class Column(NamedTuple):
    """One column: its name, what it may hold, and what makes a value of that."""

    name: str
    form: Form
    make: Callable[[Any], Any] | None


class _Row(NamedTuple):
    """One record, tidy; and how many bytes of JSON it had."""

    own: tuple[Any, ...]  # in the order of _OWN
    value: Any
    size: int


class Table:
    """Rows of a checkpoint, in a given order, as columns. What they are is known when all of them were read once.

    It keeps 8 bytes a row, and reads what was there when it was made, whatever is saved, cleared or compacted later.

    Args:
        records: the version of the checkpoint that the rows are of.
        places: where they are: offsets in the results' file, ~offset in the errors', or `NOT_RUN`.
        results, errors: these files, open.
        keys: the keys of the rows, where the records do not tell.
        failures: whether there are columns for failures.
        index: that of the pandas DataFrame whose rows these are of, if any.
    """

    def __init__(
        self,
        records: Records,
        places: array[int],
        results: Reader | None,
        errors: Reader | None,
        keys: list[Any] | None = None,
        *,
        failures: bool = False,
        index: Any = None,
    ) -> None:
        self._records = records
        self._places = places
        self._readers = results, errors
        self._keys = keys
        self._failures = failures
        self._index = index
        self._shapes = {name: Shape() for name in _OWN}
        self._value = Shape()
        self._columns: list[Column] | None = None

    @classmethod
    def saved(
        cls, records: Records, *, results: bool = True, errors: bool = False, at_most: int | None = None
    ) -> Table:
        """What a checkpoint holds, in the order of its files: results, then failures; or `at_most` so many of each."""
        store, version = records.open(), records.version
        failed: dict[Any, int] = {}
        places = array("q")
        error_reader = result_reader = None
        for reader, offset, key, record in _noting(store.errors.records(version), records.load_error) if errors else ():
            if len(failed) == at_most:
                break
            if not store.is_retired(version, key, record):
                failed[key], error_reader = ~offset, reader
        for reader, offset, key, _ in _noting(store.results.records(version), records.load) if results else ():
            if len(places) == at_most:
                break
            places.append(offset)
            failed.pop(key, None)  # it was computed meanwhile
            result_reader = reader
        places.extend(failed.values())
        return cls(records, places, result_reader, error_reader, failures=errors)

    def __len__(self) -> int:
        return len(self._places)

    # reading

    def _rows(self) -> Iterator[_Row]:
        for number, place in enumerate(self._places):
            row = self._row(place)
            yield row if self._keys is None else row._replace(own=(tidy(self._keys[number]), *row.own[1:]))

    def _row(self, place: int) -> _Row:
        if place == NOT_RUN:
            return _Row((None, "it was not run, since the pass was ended early", "NotRun", None, None, None), None, 0)
        store = self._records.store
        if place < 0:
            key, record = self._read(store.errors, self._readers[1], ~place, self._records.load_error_at)
            told = _tidy_text(record.error or ""), record.type and _tidy_text(record.type)
            return _Row(_own(key, record, *told), None, 0)
        reader = self._readers[0]
        key, record = self._read(store.results, reader, place, self._records.load_at)
        raw, sealed = bytes(record.result), bool(record.crc or record.session)
        try:
            value = tidy_result(raw, sealed=sealed)
            if not sealed:
                json_text(value)
        except ValueError:
            assert reader is not None
            self._records.load_at(reader, place)  # which tells what is wrong, and where
            value = _tidy_text(raw.decode("utf-8", "replace"))  # another program's, nested deeper than can be followed
        return _Row(_own(key, record, None, None), value, len(raw))

    def _read(
        self, shelf: Shelf, reader: Reader | None, offset: int, load: Callable[[Reader, int], Any]
    ) -> tuple[Key, Record]:
        assert reader is not None
        try:
            record = shelf.read_at(reader, self._records.version, offset)
            return key_of(reader, record, offset), record
        except DamagedRecord:
            load(reader, offset)  # which raises the same, and notes that the key is not done
            raise

    # columns

    @property
    def columns(self) -> list[Column]:
        """All of them, in order; the first time this reads every row.

        Raises:
            DamagedRecord: a row's bytes are not those that were written; its key is not done from now on.
        """
        if self._columns is None:
            shapes = list(self._shapes.values())
            for row in self._rows():
                for shape, part in zip(shapes, row.own, strict=True):
                    shape.learn(part)
                self._value.learn(row.value)
            self._columns = list(self._lay_out())
        return self._columns

    def _lay_out(self) -> Iterator[Column]:
        """The columns; each shape is told its place."""
        named = [*self._own_columns("key")]
        taken = set(_OWN)
        leaves = list(_leaves(self._value))
        if not leaves and max(self._places, default=-1) >= 0:
            leaves = [((), self._value)]  # results that are all None
        for path, shape in leaves:
            named.append((_unique(_column_name(path), taken), shape, shape.form()))
        failure = ("error", "type") if self._failures else ()
        named += self._own_columns(*failure, "timestamp", "elapsed", "attempts")
        for place, (name, shape, form) in enumerate(named):
            shape.place = place
            yield Column(name, form, _maker(form))

    def _own_columns(self, *names: str) -> Iterator[tuple[str, Shape, Form]]:
        for name in names:
            shape = self._shapes[name]
            if name == "key" and shape.part is not None:
                shape.whole = True  # a tuple: what a table is joined and grouped by is one scalar
            yield name, shape, _OWN[name] if shape.is_new else shape.form()

    def cells(self) -> Iterator[tuple[list[Any], int]]:
        """(tidy values by column, bytes of JSON) of each row."""
        count = len(self.columns)
        places = [(shape.place, index) for index, shape in enumerate(self._shapes.values()) if shape.place >= 0]
        for row in self._rows():
            cells = [None] * count
            for place, index in places:
                cells[place] = row.own[index]
            _spread(self._value, row.value, cells)
            yield cells, row.size

    # to other tools

    def batches(self, pa: Any) -> Iterator[Any]:
        """Arrow record batches, of `schema`, each of a few thousand rows at most."""
        schema, makers = self.schema(pa), [column.make for column in self.columns]
        for rows in self._chunks():
            values = list(zip(*rows, strict=True))
            for place, make in enumerate(makers):
                if make is not None:
                    values[place] = tuple([None if part is None else make(part) for part in values[place]])
            arrays = [pa.array(part, type=field.type) for part, field in zip(values, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _chunks(self) -> Iterator[list[list[Any]]]:
        rows, size = [], 0
        for cells, length in self.cells():
            rows.append(cells)
            size += length
            if len(rows) == _BATCH or size > _BATCH_BYTES:
                yield rows
                rows, size = [], 0
        if rows:
            yield rows

    def schema(self, pa: Any) -> Any:
        """The columns, as an Arrow schema."""
        return pa.schema([(column.name, _arrow_type(pa, column.form)) for column in self.columns])

    def to_pandas(self) -> Any:
        """A pandas DataFrame, with the index it was given; ints and bools are nullable where some are missing."""
        pandas = _package("pandas", "pandas", "to_pandas()")
        pa = _package("pyarrow", "pandas", "to_pandas()")
        table = pa.Table.from_batches(self.batches(pa), schema=self.schema(pa))
        nullable = {
            pa.int64(): pandas.Int64Dtype(),
            pa.uint64(): pandas.UInt64Dtype(),
            pa.bool_(): pandas.BooleanDtype(),
        }
        series = {}
        for name, column in zip(table.column_names, table.columns, strict=True):
            if pa.types.is_nested(column.type):
                # Arrow makes numpy arrays of lists, which have floats where an int is missing.
                series[name] = pandas.Series(column.to_pylist(), dtype=object)
            else:
                series[name] = column.to_pandas(types_mapper=nullable.get if column.null_count else None)
        frame = pandas.DataFrame(series)
        if self._index is not None:
            frame.index = self._index
        return frame

    def to_polars(self) -> Any:
        """A polars DataFrame."""
        polars = _package("polars", "polars", "to_polars()")
        pa = _package("pyarrow", "polars", "to_polars()")
        return polars.from_arrow(pa.Table.from_batches(self.batches(pa), schema=self.schema(pa)))

    def write_parquet(self, path: str | os.PathLike[str]) -> None:
        """A Parquet file takes the place of what is at `path`, or nothing does."""
        pa = _package("pyarrow", "parquet", "to_parquet()")
        parquet = importlib.import_module("pyarrow.parquet")
        with replacing(path) as file, parquet.ParquetWriter(file, self.schema(pa)) as writer:
            for group in _groups(self.batches(pa)):
                writer.write_table(pa.Table.from_batches(group), row_group_size=_GROUP)

    def write_csv(self, path: str | os.PathLike[str], *, raw: bool = False) -> None:
        """A CSV file (UTF-8, with a header) takes the place of what is at `path`; nothing and empty text look alike.

        Args:
            path: the file.
            raw: whether text stands as it is where a spreadsheet would take it for a formula; else it begins with '.
        """
        as_text = _itself if raw else _unlike_formula
        with replacing(path) as file:
            text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
            try:
                # A writer quotes what has a character of its line terminator: a reader takes \r for the end of a row.
                writer = csv.writer(_Lines(text), lineterminator="\r\n")
                writer.writerow([as_text(column.name) for column in self.columns])
                for cells, _ in self.cells():
                    writer.writerow(
                        [_csv_cell(column, part, as_text) for column, part in zip(self.columns, cells, strict=True)]
                    )
            finally:
                text.detach()

    def write_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Lines of strict JSON, an object for each row, take the place of what is at `path`.

        What is JSON text in other tables is JSON: values of differing types stand as they are.
        """
        with replacing(path) as file:
            columns = [(name, None if form is _JSON else make) for name, form, make in self.columns]
            for cells, _ in self.cells():
                made = {
                    name: with_stack(_jsonable, value if make is None or value is None else make(value))
                    for (name, make), value in zip(columns, cells, strict=True)
                }
                file.write(msgspec.json.encode(made) + b"\n")

    def to_html(self, count: int, caption: str) -> str:
        """These rows, the first of `count`, as an HTML table that has the colours of the page it stands in."""
        columns = [
            (place, column)
            for place, column in enumerate(self.columns)
            if column.name not in ("timestamp", "elapsed", "attempts")
        ]
        more = f"; {plural(len(columns) - _SHOWN_COLUMNS, 'more column')}" if len(columns) > _SHOWN_COLUMNS else ""
        columns = columns[:_SHOWN_COLUMNS]
        rest = f"; the first {len(self)}" if count > len(self) else ""
        head = "".join([f'<th style="{_CELL}">{_shown(column.name)}</th>' for _, column in columns])
        body = [
            "".join(
                [f'<td style="{_CELL}">{_shown(_cell(column.make, cells[place]))}</td>' for place, column in columns]
            )
            for cells, _ in self.cells()
        ]
        rows = "".join([f"<tr>{row}</tr>" for row in (head, *body)])
        return (
            f'<div style="overflow-x:auto"><table style="border-collapse:collapse;color:inherit">'
            f'<caption style="caption-side:top;text-align:left;color:inherit">{escape(caption + rest + more)}</caption>'
            f"{rows}</table></div>"
        )


_Place = tuple[Reader, int, Key, Record]


def _noting(found: Iterator[_Place], load: Callable[[Key], Any]) -> Iterator[_Place]:
    """The same; of a damaged record it is noted that its key is not done."""
    try:
        yield from found
    except DamagedRecord as error:
        with suppress(KeyError):
            load(plain_key(error.key))  # which raises the same
        raise


_CELL = (
    "text-align:left;vertical-align:top;padding:0.2em 0.8em 0.2em 0;border-bottom:1px solid rgba(128,128,128,0.4);"
    "max-width:30em;overflow-wrap:anywhere;white-space:pre-wrap"
)


def _shown(text: str) -> str:
    return escape(shorten(text, _SHOWN_CHARACTERS))


def _cell(make: Callable[[Any], Any] | None, value: Any) -> str:
    """A tidy value as text."""
    if value is None:
        return ""
    plain = with_stack(_jsonable, value if make is None else make(value))
    return plain if type(plain) is str else msgspec.json.encode(plain).decode()


class _Lines:
    """A file to which rows are written by a csv writer that ends them in CRLF: they end in LF there."""

    def __init__(self, file: io.TextIOWrapper) -> None:
        self._file = file

    def write(self, row: str) -> int:
        return self._file.write(f"{row[:-2]}\n")


def _csv_cell(column: Column, value: Any, as_text: Callable[[str], str]) -> str:
    cell = _cell(column.make, value)
    return cell if type(value) in _NO_TEXT else as_text(cell)


_NO_TEXT = frozenset({type(None), bool, int, float, Decimal, date, datetime, time, timedelta, bytes})
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def _unlike_formula(text: str) -> str:
    """The text so that no spreadsheet runs it: https://owasp.org/www-community/attacks/CSV_Injection."""
    return f"'{text}" if text.startswith(_BEGINNINGS) and not _NUMBER.fullmatch(text) else text


def _own(key: Key, record: Record, error: str | None, kind: str | None) -> tuple[Any, ...]:
    return (tidy(key), error, kind, _moment(record.timestamp), record.elapsed, record.attempts)


def _moment(text: str) -> Any:
    """A record's timestamp; that of another program's line may be any text."""
    try:
        return _tidy_datetime(datetime.fromisoformat(text))
    except ValueError:
        return _tidy_text(text) or None


def _leaves(shape: Shape, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Shape]]:
    """(path, shape) of each place that has a column: not of one where nothing stands besides fields."""
    nested = shape.fields if not shape.whole else None
    if shape.whole or shape.kinds or shape.part is not None or (path and not nested):
        yield path, shape
    for name, field in (nested or {}).items():
        yield from _leaves(field, (*path, name))


def _column_name(path: tuple[str, ...]) -> str:
    clashes = not path or path[0] in _RESERVED
    return ".".join(("result", *path) if clashes else path)


def _unique(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    taken.add(free)
    return free


def _spread(shape: Shape, value: Any, cells: list[Any]) -> None:
    """Put a row's value where its columns are."""
    if type(value) is dict and not shape.whole:
        fields = shape.fields or {}
        for name, part in value.items():
            if part is not None:
                _spread(fields[name], part, cells)
    elif value is not None:
        cells[shape.place] = value


def _groups(batches: Iterable[Any]) -> Iterator[list[Any]]:
    """Batches that make a row group: small ones cost whoever reads the file, large ones cost memory here."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if sum(part.num_rows for part in group) >= _GROUP or sum(part.nbytes for part in group) > _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


# --- files and packages ---------------------------------------------------------------------------------------------


def _package(name: str, extra: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExtraNeeded(
            f"{what} needs {name}, which cannot be imported ({error}): pip install 'checkpoint-map[{extra}]'", name=name
        ) from error


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of what is at `path` when the block ends well; else it leaves nothing."""
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise InvalidOption(f"{target} is no file; give the path of a file to write")
    temporary = target.with_name(f".checkpoint-{os.urandom(6).hex()}.tmp")
    try:
        with os.fdopen(open_safely(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as file:
            yield file
            file.flush()
            fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise store_error(error, "cannot write", target, "make room, or give another path") from error
        raise


def export(
    name: str,
    path: str | os.PathLike[str],
    checkpoint_dir: str | os.PathLike[str] | None = None,
    *,
    errors: bool = False,
    version: Any = LATEST,
    raw: bool = False,
) -> int:
    """Write what a checkpoint holds to a .csv, .jsonl or .parquet file; returns the number of rows.

    Args:
        name: the checkpoint's.
        path: the file; what is there is replaced, whole.
        checkpoint_dir: default ``$CHECKPOINT_DIR``, else ``./checkpoints``.
        errors: whether items that failed and have no result have rows too.
        version: that of the last record, a value as given to `version=`, or a `VersionCount`.
        raw: whether text in a .csv stands as it is, where a spreadsheet would run it as a formula.

    Raises:
        InvalidOption: the path ends in something else, or there is nothing of that version.
        StoreError: there is no such checkpoint, or the file cannot be written.
        ExtraNeeded: a package is not installed.
        DamagedRecord: a row's bytes are not those that were written.
    """
    writers = {".csv": Table.write_csv, ".jsonl": Table.write_jsonl, ".parquet": Table.write_parquet}
    write = writers.get(Path(path).suffix.lower())
    if write is None:
        raise InvalidOption(f"{quote(os.fspath(path))} does not end in {', '.join(writers)}: that tells what to write")
    directory = locate(name, checkpoint_dir)
    with closing(Records(name, directory, version=LATEST, power=False, result_type=None)) as records:
        if records.store.results.is_empty and records.store.errors.is_empty:
            raise StoreError(
                f"checkpoint {name!r} in {directory} holds nothing yet; nothing was written",
                errno=errno.ENODATA,
                strerror="nothing to export",
                filename=str(directory),
            )
        with closing(records if version is LATEST else of_version(records, version)) as chosen:
            chosen.only_reads = True
            table = Table.saved(chosen, errors=errors)
            if raw and write is Table.write_csv:
                table.write_csv(path, raw=True)
            else:
                write(table, path)
            return len(table)


# --- versions -------------------------------------------------------------------------------------------------------


def versions_of(records: Records) -> list[VersionCount]:
    """What is there of each version, in the order in which the first of it that counts was saved."""
    store = records.open()
    found = []
    for version in store.results.versions | store.errors.versions:
        done = store.results.count(version)
        failed = sum(not store.is_retired(version, key, record) for key, record in store.errors.sound(version))
        if done or failed:
            first = min((_first(shelf, version) for shelf in (store.results, store.errors)), default="")
            found.append((first, VersionCount(version, store.versions.get(version), done, failed)))
    return [count for _, count in sorted(found, key=lambda pair: (pair[0], pair[1].version))]


def _first(shelf: Shelf, version: str) -> str:
    return next((record.timestamp for _, record in shelf.sound(version)), "9999")


def of_version(records: Records, version: Any) -> Records:
    """The records of another version of the same checkpoint, to be read.

    Args:
        records: those of any version.
        version: a value as given to `version=`, None for none, or one of `versions_of`.

    Raises:
        InvalidOption: there is nothing of it; it says what there is.
    """
    store = records.open()
    known = versions_of(records)
    if isinstance(version, VersionCount):
        digest, label = version.version, version.label
    else:
        digest, label = store.digest_of_version(version), version
        if type(version) is str and digest not in (listed := [count.version for count in known]) and version in listed:
            digest = version  # as `versions_of` tells it where nothing else is known
    if digest != records.version and digest not in [count.version for count in known]:
        there = ", ".join(
            [quote(count.label if count.label is not None else count.version, 60) for count in known[:10]]
        )
        raise InvalidOption(
            f"checkpoint {records.name!r} holds nothing of version {quote(label)}; it holds {there or 'nothing'}"
        )
    other = Records(records.name, store.directory, version=None, power=records.power, result_type=None)
    other.decode, other.version = records.decode, digest
    return other
