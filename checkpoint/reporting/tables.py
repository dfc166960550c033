"""Rows from records: the results of a checkpoint as columns, for pandas, polars, Parquet, CSV and JSON lines.

The promise: a column holds what was saved, or text that says all of it; never a value that only looks like it. A file
is the whole table, or is not there. All kinds of tables have the same columns, whatever classes the reader knows: no
class is built, and no code of the user runs but `parse`.

    columns      key; the fields of the results; error and type, where asked for; notes; timestamp, elapsed, attempts;
                 version (its value as text) and session, where any row has one
    notes        what calls noted: "note.NAME", and cost, which is that of all attempts
    fields       of dicts and objects, nested ones by dotted names; of anything else, one column "result"
    a clash      a field called as a column of the record's, or "result", is "result.NAME"; else the later is "NAME_2"
    nothing      None and NaT, a field that is not there, and an object without fields are null; NaN is a number
    types        one a column; int and float make float, if exact; int and Decimal make Decimal; else JSON text
    text         what Arrow has no type for: ints over 64 bits, UUIDs, paths, fractions, complex numbers, ranges
    vectors      arrays of numbers, all of one shape and dtype: a list of fixed size of it; arrays in pandas
    lists        tuples, sets (sorted) and other arrays too; a list column, if its elements agree; else JSON text
    JSON text    plain JSON: no envelopes; bytes in base64; NaN, Infinity and ints over 64 bits as strings
    too much     an object of more than 1,000 field names, or what is nested deeper than 10, is JSON text
    moments      in UTC where they know their zone, to the microsecond
"""

from __future__ import annotations

import csv
import errno
import importlib
import io
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import closing, contextmanager, suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from checkpoint.catalog.locate import locate
from checkpoint.catalog.view import LATEST, VersionCount, VersionView
from checkpoint.errors import (
    DamagedRecord,
    ExtraNeeded,
    InvalidOption,
    ItemError,
    StoreError,
    UnencodableValue,
    plural,
    quote,
    shorten,
)
from checkpoint.outcomes import NOT_RUN
from checkpoint.reporting.columns import (
    JSON_TYPE,
    TEXT_TYPE,
    ColumnType,
    SchemaInference,
    arrow_type,
    itself,
    json_text,
    jsonable,
    maker_of,
    tidy,
    tidy_datetime,
    tidy_result,
    tidy_text,
)
from checkpoint.reporting.vectors import VectorType, arrow_array, numpy_arrays
from checkpoint.storage.files import fsync, open_safely, store_error
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record, parse
from checkpoint.storage.source import RecordSource, record_at
from checkpoint.storage.spending import cost_in, notes_of
from checkpoint.values.codec import Codec
from checkpoint.values.keys import Key, key_from_json, plain_key
from checkpoint.values.marks import mark_of
from checkpoint.values.plain_json import with_stack

__all__ = ["Table", "export", "of_version", "replacing", "versions_of"]


_BATCH = 4096  # rows that are Python objects at once, or
_BATCH_BYTES = 4 << 20  # so many bytes of JSON
_GROUP = 65536  # rows of a Parquet row group, or
_GROUP_BYTES = 32 << 20  # so many bytes of Arrow columns
_SHOWN_COLUMNS = 16
_SHOWN_CHARACTERS = 200


# --- rows -----------------------------------------------------------------------------------------------------------


_OWN = {
    "key": TEXT_TYPE,
    "error": TEXT_TYPE,
    "type": TEXT_TYPE,
    "timestamp": ColumnType("moment"),
    "elapsed": ColumnType("float"),
    "attempts": ColumnType("int"),
    "cost": ColumnType("float"),
    "version": TEXT_TYPE,
    "session": TEXT_TYPE,
}
"""The record's own columns, and their forms where no row has any."""

_WHERE_KNOWN = ("cost", "version", "session")  # columns that are there only where a row has something
_RESERVED = frozenset({*(_OWN.keys() - {*_WHERE_KNOWN}), "result", ""})  # polars has no column without a name


class Column(NamedTuple):
    """One column: its name, what it may hold, and what makes a value of that."""

    name: str
    form: ColumnType
    make: Callable[[Any], Any] | None


class _Row(NamedTuple):
    """One record, tidy; and how many bytes of JSON it had."""

    own: tuple[Any, ...]  # in the order of _OWN
    value: Any
    size: int
    notes: dict[str, Any] | None = None  # but for the cost


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
        marks: those of the keys of the rows, where a record is only right if it is of that key.
    """

    def __init__(
        self,
        records: VersionView,
        places: array[int],
        results: Reader | None,
        errors: Reader | None,
        keys: list[Any] | None = None,
        *,
        failures: bool = False,
        index: Any = None,
        marks: Sequence[int] | None = None,
    ) -> None:
        self._records = records
        self._marks = marks
        self._places = places
        self._readers = results, errors
        self._keys = keys
        self._failures = failures
        self._index = index
        self._shapes = {name: SchemaInference() for name in _OWN}
        self._value = SchemaInference()
        self._notes = SchemaInference()
        self._columns: list[Column] | None = None
        self._labels: dict[str, str | None] = {"": None}

    @classmethod
    def saved(
        cls, records: VersionView, *, results: bool = True, errors: bool = False, at_most: int | None = None
    ) -> Table:
        """What a checkpoint holds, in the order of its files: results, then failures; or `at_most` so many of each."""
        checkpoint, version = records.open(), records.version
        failed: dict[Any, int] = {}
        places = array("q")
        error_reader = result_reader = None
        for reader, offset, key, record in (
            _noting(checkpoint.errors.records(version), records.load_error) if errors else ()
        ):
            if len(failed) == at_most:
                break
            if not checkpoint.is_retired(version, key, record):
                failed[key], error_reader = ~offset, reader
        parses = errors and records.parse is not None
        for reader, offset, key, _ in (
            _noting(checkpoint.results.records(version), records.load) if results or parses else ()
        ):
            if len(places) == at_most:
                break
            if not results and not _is_unparsed(records, reader, offset):
                continue
            places.append(offset)
            failed.pop(key, None)  # it was computed meanwhile
            result_reader = reader
        places.extend(failed.values())
        return cls(records, places, result_reader, error_reader, failures=errors)

    def __len__(self) -> int:
        return len(self._places)

    # reading

    def _rows(self) -> Iterator[_Row]:
        reader = self._readers[0]
        results = (place for place in self._places if place >= 0)
        lines = iter(()) if reader is None else reader.lines_at(results)
        for number, place in enumerate(self._places):
            row = self._row(place, number, next(lines) if place >= 0 else b"")
            yield row if self._keys is None else row._replace(own=(tidy(self._keys[number]), *row.own[1:]))

    def _row(self, place: int, number: int, line: bytes) -> _Row:
        if place == NOT_RUN:
            ended = (None, "it was not run, since the pass was ended early", "NotRun")
            return _Row((*ended, *[None] * (len(_OWN) - len(ended))), None, 0)
        checkpoint = self._records.checkpoint
        if place < 0:
            _, key, record = self._read(checkpoint.errors, self._readers[1], ~place, number)
            told = tidy_text(record.error or ""), record.type and tidy_text(record.type)
            return _Row(self._own(key, record, *told), None, 0, _notes(record))
        reader = self._readers[0]
        place, key, record = self._on(line, place, number) or self._read(checkpoint.results, reader, place, number)
        raw, sealed = bytes(record.result), bool(record.crc or record.session)
        try:
            value = tidy_result(raw, sealed=sealed)
            if not sealed:
                json_text(value)
        except ValueError:
            assert reader is not None
            self._records.load_at(reader, place)  # which tells what is wrong, and where
            value = tidy_text(raw.decode("utf-8", "replace"))  # another program's, nested deeper than can be followed
        if self._records.parse is not None:
            return self._parsed_row(key, record, place)
        return _Row(self._own(key, record, None, None), value, len(raw), _notes(record))

    def _own(self, key: Key, record: Record, error: str | None, kind: str | None) -> tuple[Any, ...]:
        saved = _moment(record.timestamp), record.elapsed, record.attempts
        return (tidy(key), error, kind, *saved, cost_in(record), self._label(record.version), record.session or None)

    def _label(self, version: str) -> str | None:
        """The version as text: its value where that is known, and else its digest."""
        if version not in self._labels:
            known = self._records.checkpoint.versions
            label = known.get(version, version)
            self._labels[version] = (tidy_text(label) if type(label) is str else json_text(tidy(label))) or None
        return self._labels[version]

    def _parsed_row(self, key: Key, record: Record, place: int) -> _Row:
        """The row of a result as `parse` reads it, or of what that raised."""
        reader = self._readers[0]
        assert reader is not None
        size = len(bytes(record.result))
        try:
            value = self._records.load_at(reader, place)[1]
        except ItemError as error:
            told = tidy_text(error.message), error.type and tidy_text(error.type)
            return _Row(self._own(key, record, *told), None, size, _notes(record))
        try:
            made = tidy_result(_codec.encode(value), sealed=True)
        except UnencodableValue:  # nobody asked that it can be written
            made = tidy_text(quote(value))
        return _Row(self._own(key, record, None, None), made, size, _notes(record))

    def _on(self, line: bytes, offset: int, number: int) -> tuple[int, Key, Record] | None:
        """`_read` of a result whose line is at hand; None where it takes more to read."""
        try:
            record = parse(line)
            key = key_from_json(record.key)
        except ValueError:
            return None
        if not record.crc or record.forgotten or (self._marks is not None and mark_of(key) != self._marks[number]):
            return None
        return offset, key, record

    def _read(self, shelf: RecordSource, reader: Reader | None, offset: int, number: int) -> tuple[int, Key, Record]:
        """(offset, key, record) of an item; the offset is another one where an edit moved the line."""
        assert reader is not None
        records = self._records
        mark = None if self._marks is None else self._marks[number]
        text = "" if self._keys is None else str(self._keys[number])
        with records.noting_damage(shelf, reader):
            return record_at(shelf, reader, records.version, offset, mark, text)

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
                self._notes.learn(row.notes)
            self._columns = list(self._lay_out())
        return self._columns

    def _lay_out(self) -> Iterator[Column]:
        """The columns; each shape is told its place."""
        named = [*self._own_columns("key")]
        known = [name for name in _WHERE_KNOWN if not self._shapes[name].is_new]
        reserved = _RESERVED.union(known)
        taken = set(reserved) - {"result"}
        leaves = list(_leaves(self._value))
        if not leaves and max(self._places, default=-1) >= 0:
            leaves = [((), self._value)]  # results that are all None
        for path, shape in leaves:
            named.append((_unique(_column_name(path, reserved), taken), shape, shape.form()))
        failure = ("error", "type") if self._failures else ()
        named += self._own_columns(*failure)
        for path, shape in _leaves(self._notes):
            named.append((_unique(".".join(("note", *path)), taken), shape, shape.form()))
        whence = [name for name in known if name != "cost"]
        cost = ["cost"] if "cost" in known else []
        named += self._own_columns(*cost, "timestamp", "elapsed", "attempts", *whence)
        for place, (name, shape, form) in enumerate(named):
            shape.place = place
            yield Column(name, form, maker_of(form))

    def _vectors(self) -> list[VectorType | None]:
        """Of each column, what its vectors are, if they are such."""
        return [column.form.vector for column in self.columns]

    def _own_columns(self, *names: str) -> Iterator[tuple[str, SchemaInference, ColumnType]]:
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
            _spread(self._notes, row.notes, cells)
            yield cells, row.size

    # to other tools

    def batches(self, pa: Any) -> Iterator[Any]:
        """Arrow record batches, of `schema`, each of a few thousand rows at most."""
        schema, makers = self.schema(pa), [column.make for column in self.columns]
        kinds = self._vectors()
        for rows in self._chunks():
            values = list(zip(*rows, strict=True))
            for place, make in enumerate(makers):
                if make is not None:
                    values[place] = tuple([None if part is None else make(part) for part in values[place]])
            arrays = [
                pa.array(part, type=field.type) if kind is None else arrow_array(pa, kind, part)
                for part, field, kind in zip(values, schema, kinds, strict=True)
            ]
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
        return pa.schema([(column.name, arrow_type(pa, column.form)) for column in self.columns])

    def to_pandas(self) -> Any:
        """A pandas DataFrame, with the index it was given; ints and bools are nullable where some are missing."""
        pandas = _package("pandas", "pandas", "to_pandas()")
        pa = _package("pyarrow", "pandas", "to_pandas()")
        numpy = _package("numpy", "pandas", "to_pandas()")
        table = pa.Table.from_batches(self.batches(pa), schema=self.schema(pa))
        nullable = {
            pa.int64(): pandas.Int64Dtype(),
            pa.uint64(): pandas.UInt64Dtype(),
            pa.bool_(): pandas.BooleanDtype(),
        }
        series = {}
        for name, column, kind in zip(table.column_names, table.columns, self._vectors(), strict=True):
            if kind is not None:
                series[name] = pandas.Series(numpy_arrays(numpy, kind, column), dtype=object)
            elif pa.types.is_nested(column.type):
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
        with replacing(path) as file, self._parquet(parquet, pa, file) as writer:
            for group in _groups(self.batches(pa)):
                writer.write_table(pa.Table.from_batches(group), row_group_size=_GROUP)

    def _parquet(self, parquet: Any, pa: Any, file: BinaryIO) -> Any:
        """What writes a Parquet file; numbers of vectors differ, and a dictionary of them is looked for in vain."""
        if not any(self._vectors()):
            return parquet.ParquetWriter(file, self.schema(pa))
        others = [column.name for column in self.columns if column.form.vector is None]
        return parquet.ParquetWriter(file, self.schema(pa), use_dictionary=others)

    def write_csv(self, path: str | os.PathLike[str], *, raw: bool = False) -> None:
        """A CSV file (UTF-8, with a header) takes the place of what is at `path`; nothing and empty text look alike.

        Args:
            path: the file.
            raw: whether text stands as it is where a spreadsheet would take it for a formula; else it begins with '.
        """
        as_text = itself if raw else _unlike_formula
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
            columns = [(name, None if form is JSON_TYPE else make) for name, form, make in self.columns]
            for cells, _ in self.cells():
                made = {
                    name: with_stack(jsonable, value if make is None or value is None else make(value))
                    for (name, make), value in zip(columns, cells, strict=True)
                }
                file.write(msgspec.json.encode(made) + b"\n")

    def to_html(self, count: int, caption: str) -> str:
        """These rows, the first of `count`, as an HTML table that has the colours of the page it stands in."""
        columns = [
            (place, column)
            for place, column in enumerate(self.columns)
            if column.name not in ("timestamp", "elapsed", "attempts", "version", "session")
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
            '<caption style="caption-side:top;text-align:left;color:inherit;white-space:nowrap">'
            f"{escape(caption + rest + more)}</caption>"
            f"{rows}</table></div>"
        )


def _is_unparsed(records: VersionView, reader: Reader, offset: int) -> bool:
    """Whether `parse` cannot read the result."""
    try:
        records.load_at(reader, offset)
    except ItemError:
        return True
    return False


_codec = Codec()
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
    plain = with_stack(jsonable, value if make is None else make(value))
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


_NO_TEXT = frozenset({type(None), bool, int, float, Decimal, date, datetime, time, timedelta})
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_BEGINNINGS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def _unlike_formula(text: str) -> str:
    """The text so that no spreadsheet runs it: https://owasp.org/www-community/attacks/CSV_Injection."""
    return f"'{text}" if text.startswith(_BEGINNINGS) and not _NUMBER.fullmatch(text) else text


def _notes(record: Record) -> dict[str, Any] | None:
    """What was noted besides the cost, tidy."""
    return {name: _tidy_note(value) for name, value in notes_of(record).items() if name != "cost"} or None


def _tidy_note(value: Any) -> Any:
    try:
        return with_stack(tidy, value)
    except ValueError:  # another program's, nested deeper than can be followed
        return None


def _moment(text: str) -> Any:
    """A record's timestamp; that of another program's line may be any text."""
    try:
        return tidy_datetime(datetime.fromisoformat(text))
    except ValueError:
        return tidy_text(text) or None


def _leaves(shape: SchemaInference, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], SchemaInference]]:
    """(path, shape) of each place that has a column: not of one where nothing stands besides fields."""
    nested = shape.fields if not shape.whole else None
    if shape.whole or shape.kinds or shape.part is not None or (path and not nested):
        yield path, shape
    for name, field in (nested or {}).items():
        yield from _leaves(field, (*path, name))


def _column_name(path: tuple[str, ...], reserved: Set[str]) -> str:
    clashes = not path or path[0] in reserved
    return ".".join(("result", *path) if clashes else path)


def _unique(name: str, taken: set[str]) -> str:
    free, number = name, 2
    while free in taken:
        free, number = f"{name}_{number}", number + 1
    taken.add(free)
    return free


def _spread(shape: SchemaInference, value: Any, cells: list[Any]) -> None:
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
    with closing(VersionView(name, directory, version=LATEST, power=False, result_type=None)) as records:
        _refuse_empty(records, directory)
        with closing(records if version is LATEST else of_version(records, version)) as chosen:
            chosen.only_reads = True
            table = Table.saved(chosen, errors=errors)
            if raw and write is Table.write_csv:
                table.write_csv(path, raw=True)
            else:
                write(table, path)
            return len(table)


def _refuse_empty(records: VersionView, directory: Path) -> None:
    """An export of nothing is an error: the name may be mistyped."""
    if records.checkpoint.results.is_empty and records.checkpoint.errors.is_empty:
        raise StoreError(
            f"checkpoint {records.name!r} in {directory} holds nothing yet; nothing was written",
            errno=errno.ENODATA,
            strerror="nothing to export",
            filename=str(directory),
        )


# --- versions -------------------------------------------------------------------------------------------------------


def versions_of(records: VersionView) -> list[VersionCount]:
    """What is there of each version, in the order in which the first of it that counts was saved."""
    checkpoint = records.open()
    found = []
    for version in checkpoint.results.versions | checkpoint.errors.versions:
        done = checkpoint.results.count(version)
        failed = sum(
            not checkpoint.is_retired(version, key, record) for key, record in checkpoint.errors.sound(version)
        )
        if done or failed:
            first = min((_first(shelf, version) for shelf in (checkpoint.results, checkpoint.errors)), default="")
            found.append((first, VersionCount(version, checkpoint.versions.get(version), done, failed)))
    return [count for _, count in sorted(found, key=lambda pair: (pair[0], pair[1].version))]


def _first(shelf: RecordSource, version: str) -> str:
    return next((record.timestamp for _, record in shelf.sound(version)), "9999")


def of_version(records: VersionView, version: Any) -> VersionView:
    """The records of another version of the same checkpoint, to be read.

    Args:
        records: those of any version.
        version: a value as given to `version=`, None for none, or one of `versions_of`.

    Raises:
        InvalidOption: there is nothing of it; it says what there is.
    """
    checkpoint = records.open()
    known = versions_of(records)
    if isinstance(version, VersionCount):
        digest, label = version.version, version.label
    else:
        digest, label = checkpoint.digest_of_version(version), version
        if type(version) is str and digest not in (listed := [count.version for count in known]) and version in listed:
            digest = version  # as `versions_of` tells it where nothing else is known
    if digest != records.version and digest not in [count.version for count in known]:
        there = ", ".join(
            [quote(count.label if count.label is not None else count.version, 60) for count in known[:10]]
        )
        raise InvalidOption(
            f"checkpoint {records.name!r} holds nothing of version {quote(label)}; it holds {there or 'nothing'}"
        )
    other = VersionView(records.name, checkpoint.directory, version=None, power=records.power, result_type=None)
    other.decode, other.version, other.parse = records.decode, digest, records.parse
    other.result_type = records.result_type
    return other
