"""Rows from records: what columns hold is what was saved, in pandas, polars, Parquet, CSV and JSON lines alike."""

from __future__ import annotations

import base64
import csv
import json
import math
import os
import signal
import subprocess
import sys
import uuid
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pydantic
import pytest
from conftest import Opener
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint import LATEST, CheckpointedRunner, DamagedRecord, ExtraNeeded, InvalidName, InvalidOption, StoreError
from checkpoint.reporting.tables import Table, export
from checkpoint.storage.record import seal

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa  # type: ignore[import-untyped,unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
else:
    pl, pq = pytest.importorskip("polars"), pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")

NAN = float("nan")
Columns = dict[str, list[Any]]


def same(left: Any, right: Any) -> bool:
    """Equal, of one type at every depth, and NaN is NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[name], right[name]) for name in left)
    return bool(left == right or (left != left and right != right))


def from_pandas(frame: Any) -> Columns:
    """The columns of a DataFrame as Python values; a missing float is NaN there, and stands as it stands there."""

    def plain(value: Any) -> Any:
        if value is pd.NA or value is pd.NaT or value is None:
            return None
        if isinstance(value, pd.Timestamp):
            moment = value.to_pydatetime()
            return moment if moment.tzinfo is None else moment.astimezone(UTC)
        if isinstance(value, pd.Timedelta):
            return value.to_pytimedelta()
        return value.item() if isinstance(value, np.generic) else value

    return {name: [plain(value) for value in frame[name].tolist()] for name in frame.columns}


def lenient(columns: Columns) -> Columns:
    """NaN as None: pandas has one word for both."""
    return {name: [None if value != value else value for value in part] for name, part in columns.items()}


def from_polars(frame: pl.DataFrame) -> Columns:
    """The columns of a DataFrame as Python values."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC)
        return value

    return {name: [plain(value) for value in frame[name].to_list()] for name in frame.columns}


def from_arrow(table: Any) -> Columns:
    """The columns of a pyarrow Table as Python values."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC)
        return value

    return {name: [plain(value) for value in table[name].to_pylist()] for name in table.column_names}


def taken(runner: CheckpointedRunner, *, errors: bool = False) -> Columns:
    """The columns, which are the same in a Parquet file read by pyarrow, by polars and by pandas, and in DataFrames."""
    table = Table.saved(runner.records, errors=errors)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "taken.parquet"
        table.write_parquet(path)
        assert os.listdir(directory) == ["taken.parquet"]
        columns = from_arrow(pq.read_table(path))
        assert same(columns, from_polars(pl.read_parquet(path)))
        assert len(pd.read_parquet(path)) == len(table)
    assert same(columns, from_polars(table.to_polars()))
    assert same(lenient(columns), lenient(from_pandas(table.to_pandas())))
    assert all(len(part) == len(table) for part in columns.values())
    return columns


def fields_of(runner: CheckpointedRunner) -> Columns:
    """The columns of the results alone."""
    columns = taken(runner)
    own = ("key", "timestamp", "elapsed", "attempts", "session")
    return {name: part for name, part in columns.items() if name not in own}


@dataclass
class Usage:
    tokens: int
    cost: float | None


@dataclass
class Answer:
    text: str
    usage: Usage


class Point(NamedTuple):
    x: int
    y: float


class Colour(Enum):
    RED = "red"


# --- what columns hold ----------------------------------------------------------------------------------------------

MOMENT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
COLUMNS: list[tuple[str, list[Any], Columns]] = [
    ("a scalar has no name", [1, 2], {"result": [1, 2]}),
    ("None is null", [1, None], {"result": [1, None]}),
    ("nothing but None is a column all the same", [None, None], {"result": [None, None]}),
    ("NaN is a number, and not null", [NAN, None, -0.0], {"result": [NAN, None, -0.0]}),
    ("a dict has columns by field", [{"a": 1, "b": "x"}], {"a": [1], "b": ["x"]}),
    ("fields stand in the order in which they are met", [{"b": 1}, {"a": 1, "b": 2}], {"b": [1, 2], "a": [None, 1]}),
    ("a dataclass has, too", [Answer("x", Usage(3, None))], {"text": ["x"], "usage.tokens": [3], "usage.cost": [None]}),
    ("a NamedTuple has, though it is a tuple", [Point(1, 2.0)], {"x": [1], "y": [2.0]}),
    ("an Enum counts as its value", [{"c": Colour.RED}], {"c": ["red"]}),
    ("nested fields have dotted names", [{"a": {"b": {"c": 1}}}], {"a.b.c": [1]}),
    ("None in an object's place is no column of its own", [{"a": {"b": 1}}, {"a": None}], {"a.b": [1, None]}),
    ("nor is an object without fields", [{"a": {"b": 1}}, {"a": {}}, {}], {"a.b": [1, None, None]}),
    ("a scalar in an object's place is", [{"a": {"b": 1}}, {"a": 2}, 3],
     {"result": [None, None, 3], "a": [None, 2, None], "a.b": [1, None, None]}),
    ("int and float make float", [1, 2.5], {"result": [1.0, 2.5]}),
    ("but not where that would round", [2**53 + 1, 2.5], {"result": ["9007199254740993", "2.5"]}),
    ("bool is no int", [True, 1], {"result": ["true", "1"]}),
    ("text is told from what it spells", ["1", 1, None], {"result": ['"1"', "1", None]}),
    ("64 bits", [2**63 - 1, -(2**63)], {"result": [2**63 - 1, -(2**63)]}),
    ("64 bits without a sign", [2**64 - 1, 0], {"result": [2**64 - 1, 0]}),
    ("which has no room for a sign", [2**64 - 1, -1], {"result": ["18446744073709551615", "-1"]}),
    ("larger ints are text", [2**64, 1], {"result": ["18446744073709551616", "1"]}),
    ("however large", [10**5000], {"result": ["1" + "0" * 5000]}),
    ("Decimals are Decimals", [Decimal("1.50"), Decimal("-20")], {"result": [Decimal("1.50"), Decimal("-20.00")]}),
    ("ints among them too", [Decimal("0.001"), 7], {"result": [Decimal("0.001"), Decimal("7.000")]}),
    ("with an exponent", [Decimal("1E+3"), Decimal("1E-3")], {"result": [Decimal("1000.000"), Decimal("0.001")]}),
    ("those of more than 38 digits are text", [Decimal("1E+30"), Decimal("1E-30")], {"result": ["1E+30", "1E-30"]}),
    ("and those that are no number", [Decimal("NaN"), Decimal("1.5")], {"result": ["NaN", "1.5"]}),
    ("float and Decimal do not mix", [Decimal("1.5"), 1.5], {"result": ['"1.5"', "1.5"]}),
    ("bytes are bytes", [b"\xff\0", bytearray(b"a")], {"result": [b"\xff\0", b"a"]}),
    ("moments are in UTC", [MOMENT.astimezone(timezone(timedelta(hours=2))), MOMENT], {"result": [MOMENT, MOMENT]}),
    ("without a zone they stay so", [datetime(1, 1, 1), datetime(9999, 12, 31)],
     {"result": [datetime(1, 1, 1), datetime(9999, 12, 31)]}),
    ("what has no place in UTC is text", [datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1)))],
     {"result": ["0001-01-01T00:00:00+01:00"]}),
    ("with and without a zone do not mix", [datetime(2026, 3, 1), MOMENT],
     {"result": ['"2026-03-01T00:00:00"', '"2026-03-01T12:00:00.123456Z"']}),
    ("dates", [date(2026, 3, 1), date.min], {"result": [date(2026, 3, 1), date.min]}),
    ("a date is no moment", [date(2026, 3, 1), MOMENT], {"result": ['"2026-03-01"', '"2026-03-01T12:00:00.123456Z"']}),
    ("times", [time(12, 0, 0, 1)], {"result": [time(12, 0, 0, 1)]}),
    ("times of a zone are text", [time(12, tzinfo=UTC)], {"result": ["12:00:00+00:00"]}),
    ("spans", [timedelta(days=-1, microseconds=1)], {"result": [timedelta(days=-1, microseconds=1)]}),
    ("a span over 64 bits is text", [timedelta.max], {"result": ["P999999999DT86399.999999S"]}),
    ("text for what Arrow has no type for", [{"u": uuid.UUID(int=5), "p": PurePosixPath("/a"), "f": Fraction(1, 3)}],
     {"u": [str(uuid.UUID(int=5))], "p": ["/a"], "f": ["1/3"]}),
    ("complex numbers and ranges", [{"c": 1 + 2j, "r": range(3)}], {"c": ["(1+2j)"], "r": ["range(0, 3)"]}),
    ("lists are lists", [[1, None], [], None], {"result": [[1, None], [], None]}),
    ("tuples and deques too", [(1, 2), deque([3])], {"result": [[1, 2], [3]]}),
    ("lists of lists", [[[1], []], []], {"result": [[[1], []], []]}),
    ("a list of nothing", [[]], {"result": [[]]}),
    ("sets are sorted", [{3, 1, 2.5}, {10, 9}], {"result": [[1.0, 2.5, 3.0], [9.0, 10.0]]}),
    ("whatever is in them", [{"b", "a"}, frozenset({(2, 1), (1, 2)})], {"result": ['["a","b"]', "[[1,2],[2,1]]"]}),
    ("elements that differ make JSON text of the whole list", [[1, "a"], [2]], {"result": ['[1,"a"]', "[2]"]}),
    ("from row to row also", [[1], ["a"]], {"result": ["[1]", '["a"]']}),
    ("a list and a scalar", [[1], 1], {"result": ["[1]", "1"]}),
    ("objects in lists keep their fields", [[{"a": 1}, {"b": "x"}]],
     {"result": [[{"a": 1, "b": None}, {"a": None, "b": "x"}]]}),
    ("unless these differ", [[{"a": 1}], [{"a": "x"}]], {"result": ['[{"a":1}]', '[{"a":"x"}]']}),
    ("objects without fields in lists", [[{}]], {"result": ["[{}]"]}),
    ("dicts of other kinds", [OrderedDict(a=1), Counter("aab")], {"a": [1, 2], "b": [None, 1]}),
    ("keys that are no text are named by their JSON", [{1: "a", (2, None): "b"}], {"1": ["a"], "[2,null]": ["b"]}),
    ("two keys of one name make pairs", [{1: "a", "1": "b"}], {"result": ['[[1,"a"],["1","b"]]']}),
    ("objects in a set", [{Point(3, 4.0), Point(1, 2.0)}], {"result": [[{"x": 1, "y": 2.0}, {"x": 3, "y": 4.0}]]}),
    ("objects as keys", [{Point(1, 2.0): "a"}], {'{"x":1,"y":2.0}': ["a"]}),
    ("a dict that looks like an envelope", [{"$tuple": 1, "$x": {"$class": "C"}}],
     {"$tuple": [1], "$x.$class": ["C"]}),
    ("lone surrogates are spelled out", [{"\ud800": "\udfffü"}], {"\\ud800": ["\\udfffü"]}),
    ("JSON text is strict", [[NAN, "a", math.inf, 2**64, b"a"]],
     {"result": ['["NaN","a","Infinity","18446744073709551616","YQ=="]']}),
    ("numpy arrays are lists", [np.array([1, 2]), np.array([3])], {"result": [[1, 2], [3]]}),
    ("of any shape", [np.array([[1.5], [NAN]]), np.zeros((0, 2))], {"result": [[[1.5], [NAN]], []]}),
    ("numpy scalars count as what they hold", [{"a": np.float32(0.5), "b": np.int8(3), "c": np.bool_(True)}],
     {"a": [0.5], "b": [3], "c": [True]}),
    ("numpy's moments", [np.datetime64("2026-03-01T12:00:00.5"), np.datetime64("NaT", "ms")],
     {"result": [datetime(2026, 3, 1, 12, 0, 0, 500000), None]}),
    ("in days", [np.datetime64("2026-03-01")], {"result": [date(2026, 3, 1)]}),
    ("in nanoseconds that are whole microseconds", [np.datetime64("2026-03-01T00:00:00.000001000")],
     {"result": [datetime(2026, 3, 1, 0, 0, 0, 1)]}),
    ("and those that are not", [np.datetime64("2026-03-01T00:00:00.000000001")],
     {"result": ["2026-03-01T00:00:00.000000001"]}),
    ("numpy's spans", [np.timedelta64(1500, "ms")], {"result": [timedelta(seconds=1.5)]}),
    ("moments of pandas", [pd.Timestamp("2026-03-01T12:00"), pd.NaT],
     {"result": [datetime(2026, 3, 1, 12), None]}),
    ("with a time zone", [pd.Timestamp("2026-03-01T12:00", tz="UTC")],
     {"result": [datetime(2026, 3, 1, 12, tzinfo=UTC)]}),
    ("with nanoseconds", [pd.Timestamp("2026-03-01T00:00:00.000000001")],
     {"result": ["2026-03-01 00:00:00.000000001"]}),
    ("spans of pandas", [pd.Timedelta(1500, "ms")], {"result": [timedelta(seconds=1.5)]}),
    ("records of numpy", [np.array([(1, 2.5)], [("a", "i4"), ("b", "f8")])], {"result": [[{"a": 1, "b": 2.5}]]}),
    ("a field called as a column of the record's", [{"key": 1, "type": "x", "result": 2}],
     {"result.key": [1], "result.type": ["x"], "result.result": [2]}),
    ("also where it has fields", [{"key": {"a": 1}}], {"result.key.a": [1]}),
    ("a field without a name", [{"": 1, "a": {"": 2}}], {"result.": [1], "a.": [2]}),
    ("two of one name", [{"a": {"b": 1}, "a.b": 2, "a.b_2": 3}], {"a.b": [1], "a.b_2": [2], "a.b_2_2": [3]}),
]  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), [row[1:] for row in COLUMNS], ids=[row[0] for row in COLUMNS])
def test_columns_are_what_the_rules_say(make: Opener, values: list[Any], expected: Columns) -> None:
    """In DataFrames, and in files, of pandas, polars and pyarrow: the same names, order, types and values."""
    runner = make(result_type=Answer | Point | Colour)
    for key, value in enumerate(values):
        runner.save_result(key, value)
    assert same(fields_of(runner), expected)


KEYS: list[tuple[str, list[Any], list[Any]]] = [
    ("text", ["a", "b"], ["a", "b"]),
    ("numbers", [1, 2.5], [1.0, 2.5]),
    ("None is a key, and null", ["a", None], ["a", None]),
    ("tuples are JSON text", [("a", 1), ("b", 2)], ['["a",1]', '["b",2]']),
    ("also of one type, where a list could hold them", [(1, 2)], ["[1,2]"]),
    ("of differing types too", ["1", 1], ['"1"', "1"]),
]


@pytest.mark.parametrize(("keys", "expected"), [row[1:] for row in KEYS], ids=[row[0] for row in KEYS])
def test_keys_are_one_scalar_column(make: Opener, keys: list[Any], expected: list[Any]) -> None:
    """What tables are joined and grouped by is hashable, and tells keys apart."""
    runner = make()
    for key in keys:
        runner.save_result(key, 0)
    assert same(taken(runner)["key"], expected)


def test_an_empty_checkpoint_is_an_empty_table(make: Opener) -> None:
    """The record's own columns are there, of their types."""
    runner = make()
    assert taken(runner) == {"key": [], "timestamp": [], "elapsed": [], "attempts": []}
    frame = Table.saved(runner.records, errors=True).to_polars()
    assert frame.schema == {
        "key": pl.String, "error": pl.String, "type": pl.String, "timestamp": pl.Datetime("us", "UTC"),
        "elapsed": pl.Float64, "attempts": pl.Int64,
    }  # fmt: skip


def test_an_object_of_more_than_a_thousand_fields_is_json(make: Opener) -> None:
    """A dict that is a look-up table would make a column of each word."""
    runner = make()
    words = [{f"w{n}": n for n in range(start, start + 600)} for start in (0, 600)]
    for key, counts in enumerate(words):
        runner.save_result(key, {"id": key, "counts": counts})
    columns = fields_of(runner)
    assert list(columns) == ["id", "counts"]
    assert [json.loads(text) for text in columns["counts"]] == words
    runner.save_result(3, words[0] | words[1])
    assert list(fields_of(runner)) == ["result"]


@pytest.mark.parametrize("wrap", [lambda value: [value], lambda value: {"a": value}], ids=["lists", "objects"])
def test_what_is_nested_deep_is_json(make: Opener, wrap: Any) -> None:
    """As deep as a value may be; the few levels of common data are kept."""
    runner = make()
    deep = value = 1
    for level in range(199):
        value = wrap(value)
        deep = value if level == 5 else deep
    runner.save_result(0, value)
    ((name, (text,)),) = fields_of(runner).items()
    for _ in range(name.count("a")):
        value = value["a"]  # type: ignore[index]
    assert json.loads(text) == value
    runner.clear()
    runner.save_result(0, deep)
    ((name, (kept,)),) = fields_of(runner).items()
    assert kept == (1 if name != "result" else deep)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [100, 600])
def test_a_line_by_hand_may_be_nested_deeper_than_can_be_followed(make: Opener, tmp_path: Path, depth: int) -> None:
    """It is text in every kind of file; what stands beside it is not touched."""
    with make() as runner:
        runner.save_result("a", 1)
    deep = "[" * depth + "]" * depth
    with open(tmp_path / "j_results.jsonl", "a") as journal:
        journal.write(f'{{"key":"deep","result":{deep},"timestamp":"2026-03-01T12:00:00Z"}}\n')
    for kind in ("csv", "jsonl", "parquet"):
        assert export("j", tmp_path / f"out.{kind}", tmp_path) == 2
    assert deep in (tmp_path / "out.csv").read_text("utf-8").replace(" ", "")


def test_pandas_has_types_to_compute_with(make: Opener) -> None:
    """Plain numpy types where nothing is missing, nullable ones where ints or bools are: no int becomes a float."""
    runner = make()
    for key in range(2):
        runner.save_result(
            key, {"whole": key, "yes": True, "share": 0.5, **({"big": 2**62 + 1, "no": False} if key else {})}
        )
    frame = Table.saved(runner.records).to_pandas()
    types = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert types.pop("timestamp") == "datetime64[us, UTC]"
    assert types.pop("session") in ("str", "object")  # of pandas 3, and before
    assert types == {
        "key": "int64", "whole": "int64", "yes": "bool", "share": "float64", "big": "Int64", "no": "boolean",
        "elapsed": "float64", "attempts": "Int64",
    }  # fmt: skip
    assert frame["big"][1] == 2**62 + 1


# --- any values -----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "é", "key", "error", "elapsed"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**66), 2**66),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.datetimes(),
    st.datetimes(timezones=st.just(UTC)),
    st.dates(),
    st.decimals(-100, 100, places=2),
)
LISTS = st.lists(SCALARS, max_size=3) | st.lists(st.integers(0, 9), max_size=3) | st.lists(st.floats(), max_size=3)
VALUES = st.recursive(SCALARS | LISTS, lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=5)


def paths_of(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The value at each path that is not an object."""
    if not isinstance(value, dict):
        return {path: value}
    return {place: part for name, inner in value.items() for place, part in paths_of(inner, (*path, name)).items()}


def in_json(value: Any) -> Any:
    """What JSON text says of a value."""
    if isinstance(value, list):
        return [in_json(part) for part in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, (date, Decimal)):
        return str(value).replace(" ", "T").replace("+00:00", "Z")
    return str(value) if type(value) is int and not -(2**63) <= value < 2**64 else value


def agrees(cell: Any, value: Any) -> bool:
    """Whether a cell tells the value: is it, or equals it in another type of number, or is text that says it."""
    if value is None:
        return cell is None
    if isinstance(value, str) and type(cell) is str:
        return cell in (value, json.dumps(value, ensure_ascii=False)) or json.loads(cell) == value
    if isinstance(value, list) and isinstance(cell, list):
        return len(cell) == len(value) and all(map(agrees, cell, value))
    if type(cell) is str:
        told = in_json(value)
        return cell == told or bool(same(json.loads(cell), told))
    if isinstance(value, bool) or isinstance(cell, bool):
        return value is cell
    return bool(cell == value or (cell != cell and value != value))


@pytest.mark.slow
@given(values=st.lists(VALUES, min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_no_cell_tells_anything_but_the_value(values: list[Any]) -> None:
    """Of any mixture: each cell tells its value, each column is of one type, and types that differ are told apart."""
    with TemporaryDirectory() as directory, CheckpointedRunner("any", directory) as runner:
        for key, value in enumerate(values):
            runner.save_result(key, value)
        columns = fields_of(runner)
    rows = [paths_of(value) for value in values]
    seen = set()
    for path in dict.fromkeys(path for row in rows for path in row):
        cells = [row.get(path) for row in rows]
        name = ".".join(("result", *path) if not path or path[0] in ("key", "error", "elapsed") else path)
        kinds = {type(cell) for cell in cells} - {type(None)}
        if not kinds and name not in columns:
            continue  # None where others have fields
        seen.add(name)
        assert all(map(agrees, columns[name], cells)), (name, columns[name], cells)
        if len(kinds) > 1 and not kinds <= {int, float, Decimal}:
            # quoted where it is text: nobody takes "1" for 1, or the date for its spelling
            assert all(
                cell is None or same(json.loads(cell), in_json(value))
                for cell, value in zip(columns[name], cells, strict=True)
            )
    # what else there is are objects without fields
    assert all(part == [None] * len(values) for name, part in columns.items() if name not in seen)


# --- rows -----------------------------------------------------------------------------------------------------------


def test_failed_items_are_rows_if_asked_for(make: Opener) -> None:
    """Behind the results, in the order of their file; a result that came later leaves none."""
    runner = make()
    runner.save_error("x", ValueError("kaputt ü"))
    runner.save_error("b", "only a message")
    runner.save_error("a", "failed at first")
    runner.save_result("a", {"n": 1})
    columns = taken(runner, errors=True)
    assert list(columns) == ["key", "n", "error", "type", "timestamp", "elapsed", "attempts", "session"]
    assert columns["key"] == ["a", "x", "b"]
    assert columns["n"] == [1, None, None]
    assert columns["error"] == [None, "kaputt ü", "only a message"]
    assert columns["type"] == [None, "ValueError", None]
    assert None not in columns["timestamp"]
    assert taken(runner)["key"] == ["a"]


@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_a_checkpoint_of_another_program_is_a_table(make: Opener, tmp_path: Path) -> None:
    """Lines of schema 1.0.0: keys are text, a timestamp knows no zone, and nothing is taken for an envelope."""
    lines = [
        {"key": 1, "result": {"$set": [1]}, "timestamp": "2025-03-01T12:00:00"},
        {"key": "b", "result": {"x": NAN, "y": "\ud800"}, "timestamp": "yesterday"},
    ]
    (tmp_path / "j_results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    columns = taken(make())
    assert columns["key"] == ["1", "b"]
    assert same(columns["$set"], [[1], None])
    assert same(columns["x"], [None, NAN])
    assert columns["y"] == [None, "\\ud800"]
    assert columns["timestamp"] == ['"2025-03-01T12:00:00"', '"yesterday"']


def test_rows_are_those_that_were_there_when_the_table_was_made(make: Opener) -> None:
    """Whatever is saved, cleared or replaced later."""
    runner = make()
    runner.save_result("a", 1)
    runner.save_result("b", 2)
    table = Table.saved(runner.records)
    runner.save_result("a", 10)
    runner.clear(["b"])
    runner.save_result("c", "text")
    assert table.to_pandas()["result"].tolist() == [1, 2]
    runner.clear()
    assert table.to_polars()["result"].to_list() == [1, 2]


def test_no_class_is_built(make: Opener, tmp_path: Path) -> None:
    """A table is the same for whoever names the classes, names others, or names none."""
    runner = make(result_type=Answer | Point)
    for key, value in enumerate([Answer("x", Usage(1, 0.5)), Point(1, 2.0), [Point(3, 4.0)], {"$namedtuple": "P"}]):
        runner.save_result(key, value)
    known = taken(runner)
    runner.close()
    for others in (None, Colour):
        assert same(taken(make(result_type=others)), known)
    assert known["result"] == [None, None, [{"x": 3, "y": 4.0}], None]
    assert known["$namedtuple"] == [None, None, None, "P"]


def test_models_have_their_fields_and_extras(make: Opener) -> None:
    """What is private stays so."""

    class Model(pydantic.BaseModel, extra="allow"):
        name: str
        tags: list[str] = []
        _secret: int = 5

    runner = make(result_type=Model)
    runner.save_result("a", Model(name="x", more={"n": 1}))  # type: ignore[call-arg]
    assert fields_of(runner) == {"name": ["x"], "tags": [[]], "more.n": [1]}


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mixed(make: Opener, tmp_path: Path) -> Path:
    """A directory with checkpoint "j" of two results and a failure, closed."""
    runner = make()
    runner.save_result("a", {"text": 'x,"y"\nz', "n": 1, "list": [1, 2], "at": MOMENT, "mix": "1", "ok": True})
    runner.save_result(2, {"text": "", "n": 2.5, "list": [], "raw": b"\xff", "mix": 1, "nan": NAN, "big": 2**64})
    runner.save_error("x", ValueError("boo"))
    runner.close()
    return tmp_path


def test_csv_holds_the_columns_as_text(mixed: Path) -> None:
    """As the standard csv module reads them: JSON for lists, base64 for bytes, ISO 8601 for moments."""
    assert export("j", mixed / "out.csv", mixed, errors=True) == 3
    with open(mixed / "out.csv", newline="", encoding="utf-8") as file:
        first, second, failed = csv.DictReader(file)
    for row in (first, second, failed):
        assert row.pop("timestamp").endswith("Z")
        assert len(row.pop("session")) == 8
    nothing = dict.fromkeys(first, "")
    assert first == nothing | {
        "key": '"a"', "text": 'x,"y"\nz', "n": "1.0", "list": "[1,2]", "mix": '"1"', "ok": "true",
        "at": "2026-03-01T12:00:00.123456Z",
    }  # fmt: skip
    assert second == nothing | {
        "key": "2", "n": "2.5", "list": "[]", "raw": "/w==", "mix": "1", "nan": "NaN", "big": "18446744073709551616",
    }  # fmt: skip
    assert failed == nothing | {"key": '"x"', "error": "boo", "type": "ValueError"}


def test_json_lines_hold_the_columns_as_json(mixed: Path) -> None:
    """Strict JSON, an object a line, all columns in each; what is JSON text elsewhere is JSON here."""

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert export("j", mixed / "out.jsonl", mixed, errors=True) == 3
    lines = (mixed / "out.jsonl").read_text("utf-8").splitlines()
    first, second, failed = [json.loads(line, parse_constant=refuse) for line in lines]
    for row in (first, second, failed):
        assert row.pop("timestamp").endswith("Z")
        assert len(row.pop("session")) == 8
    nothing: dict[str, Any] = dict.fromkeys(first)
    assert first == nothing | {
        "key": "a", "text": 'x,"y"\nz', "n": 1.0, "list": [1, 2], "mix": "1", "ok": True,
        "at": "2026-03-01T12:00:00.123456Z",
    }  # fmt: skip
    assert second == nothing | {
        "key": 2, "text": "", "n": 2.5, "list": [], "raw": "/w==", "mix": 1, "nan": "NaN",
        "big": "18446744073709551616",
    }  # fmt: skip
    assert failed == nothing | {"key": "x", "error": "boo", "type": "ValueError"}
    assert list(pd.read_json(mixed / "out.jsonl", lines=True).columns) == list(
        pl.read_ndjson(mixed / "out.jsonl").columns
    )


def test_export_reads_beside_a_writer(mixed: Path, make: Opener) -> None:
    """It takes no lock, and its rows are what was there."""
    writer = make()
    writer.save_result("later", {"n": 3})
    before = sorted(os.listdir(mixed))
    assert export("j", mixed / "out.parquet", mixed) == 3
    assert sorted(os.listdir(mixed)) == sorted([*before, "out.parquet"])
    writer.save_result("still", {"n": 4})


def test_export_takes_the_version_that_was_last_or_one_that_is_named(make: Opener, tmp_path: Path) -> None:
    """By its value; of one that is not there it says what is."""
    for value in ("old", "new"):
        with make(version=value) as runner:
            runner.save_result("a", value)
    for version, expected in ((LATEST, "new"), ("old", "old")):
        assert export("j", tmp_path / "out.csv", tmp_path, version=version) == 1
        assert (tmp_path / "out.csv").read_text().splitlines()[1].startswith(f"a,{expected},")
    with pytest.raises(InvalidOption, match=r"nothing of version 'none'; it holds .*'old'.*'new'"):
        export("j", tmp_path / "none.csv", tmp_path, version="none")
    assert not (tmp_path / "none.csv").exists()


REFUSED: list[tuple[str, dict[str, Any], type[Exception], str]] = [
    (
        "a format that is not known",
        {"path": "out.xlsx"},
        InvalidOption,
        r"'.*out\.xlsx' does not end in \.csv, \.jsonl",
    ),
    ("no checkpoint", {"name": "k"}, StoreError, r"there is no checkpoint 'k' in "),
    ("a name that is none", {"name": "../j"}, InvalidName, "a checkpoint's name"),
    ("a directory", {"path": "there.csv"}, InvalidOption, r"there\.csv is no file"),
    ("a directory that is not there", {"path": "no/out.csv"}, StoreError, r"cannot write .*out\.csv: No such file"),
]


@pytest.mark.parametrize(("given", "error", "told"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_exported_is_told(mixed: Path, given: dict[str, Any], error: type[Exception], told: str) -> None:
    """Before anything is made."""
    (mixed / "there.csv").mkdir()
    before = sorted(os.listdir(mixed))
    with pytest.raises(error, match=told):
        export(given.get("name", "j"), mixed / given.get("path", "out.csv"), mixed)
    assert sorted(os.listdir(mixed)) == before


WRITERS = {"csv": Table.write_csv, "jsonl": Table.write_jsonl, "parquet": Table.write_parquet}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("found", ["as rows are listed", "as columns are learned", "as rows are written"])
def test_an_error_in_the_middle_leaves_what_was_there(make: Opener, tmp_path: Path, suffix: str, found: str) -> None:
    """A record that proves damaged is named, and is not done from then on; the file is as it was before."""
    runner = make()
    for key in range(30):
        runner.save_result(key, {"n": key})
    runner.close()
    journal, path = tmp_path / "j_results.jsonl", tmp_path / f"out.{suffix}"
    path.write_text("as it was")
    runner = make()
    table = Table.saved(runner.records)
    if found == "as rows are written":
        assert len(table.columns) == 6
    journal.write_bytes(journal.read_bytes().replace(b'{"n":20}', b'{"n":99}'))
    before = {*os.listdir(tmp_path), ".j.lock"}
    with pytest.raises(DamagedRecord, match=r"j_results\.jsonl:21.*key 20"):
        WRITERS[suffix](Table.saved(runner.records) if found == "as rows are listed" else table, path)
    assert path.read_text() == "as it was"
    assert {*os.listdir(tmp_path), ".j.lock"} - {".j_results.damaged"} == before
    assert not runner.is_completed(20)
    table = Table.saved(runner.records)
    WRITERS[suffix](table, path)
    assert len(table) == 29
    assert path.read_bytes() != b"as it was"


def test_a_damaged_failure_is_told_too(make: Opener, tmp_path: Path) -> None:
    """And is none from then on."""
    runner = make()
    runner.save_error("x", "kaputt")
    runner.save_error("y", "boo")
    runner.close()
    runner = make()
    table = Table.saved(runner.records, errors=True)
    journal = tmp_path / "j_errors.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"kaputt", b"KAPUTT"))
    with pytest.raises(DamagedRecord, match=r"j_errors\.jsonl:1.*key 'x'"):
        table.write_csv(tmp_path / "out.csv")
    assert taken(runner, errors=True)["key"] == ["y"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", WRITERS)
def test_a_full_disk_leaves_what_was_there(make: Opener, tmp_path: Path, suffix: str) -> None:
    """The error is our own, has the errno, and names the file; nothing is left beside it."""
    runner = make()
    for key in range(3000):
        runner.save_result(key, os.urandom(40).hex())
    runner.close()
    path = tmp_path / f"out.{suffix}"
    path.write_text("as it was")
    before = sorted(os.listdir(tmp_path))
    script = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))\n"
        "from checkpoint.errors import StoreError\n"
        "from checkpoint.reporting.tables import export\n"
        "try:\n    export('j', sys.argv[1], sys.argv[2])\n"
        "except StoreError as error:\n    print(error.errno, error)\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(f"27 cannot write {path}: File too large")
    assert path.read_text() == "as it was"
    assert sorted(os.listdir(tmp_path)) == before


def test_an_export_changes_nothing_though_it_finds_damage(make: Opener, tmp_path: Path) -> None:
    """It says what is damaged each time; that is put right by whoever runs the job, or repairs."""
    with make() as runner:
        for key in range(3):
            runner.save_result(key, f"value {key}")
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(path.read_bytes().replace(b"value 1", b"value X") + b'{"key":"torn')
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for _ in range(2):
        with pytest.raises(DamagedRecord):
            export("j", tmp_path.parent / "out.csv", tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupt_leaves_what_was_there(make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two rows."""
    runner = make()
    for key in range(10):
        runner.save_result(key, key)
    table = Table.saved(runner.records)
    assert len(table.columns) == 6
    rows = table._rows()

    def interrupted() -> Any:
        yield next(rows)
        os.kill(os.getpid(), signal.SIGINT)
        yield from rows

    monkeypatch.setattr(table, "_rows", interrupted)
    path = tmp_path / "out" / "out.parquet"
    path.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        table.write_parquet(path)
    assert os.listdir(path.parent) == []


def test_a_link_stays_a_link(make: Opener, tmp_path: Path) -> None:
    """What it leads to is replaced; its permissions follow the umask."""
    runner = make()
    runner.save_result("a", 1)
    target, link = tmp_path / "far" / "target.csv", tmp_path / "link.csv"
    target.parent.mkdir()
    link.symlink_to(target)
    Table.saved(runner.records).write_csv(link)
    assert link.is_symlink()
    assert target.read_text().startswith("key,result,")
    umask = os.umask(0)
    os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_device_is_not_replaced(make: Opener) -> None:
    """Even root cannot lose /dev/null to a rename."""
    runner = make()
    with pytest.raises(InvalidOption, match="/dev/null is no file"):
        Table.saved(runner.records).write_csv("/dev/null")


# --- memory ---------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
import pyarrow.parquet
from checkpoint import CheckpointedRunner
from checkpoint.reporting.tables import Table

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform != "darwin" else 1024)

with CheckpointedRunner("j", sys.argv[1]) as runner:
    table = Table.saved(runner.records)
    before = peak()
    table.write_csv(sys.argv[1] + "/out.csv")
    between = peak()
    table.write_parquet(sys.argv[1] + "/out.parquet")
    print(len(table), between - before, peak() - before)
"""


@pytest.mark.slow
def test_a_file_takes_the_memory_of_a_batch(tmp_path: Path) -> None:
    """Twice as many rows take no more of it, where 100,000 rows hold 40 MB; CSV takes next to nothing."""
    grown = {}
    for count in (100_000, 200_000):
        with open(tmp_path / "j_results.jsonl", "wb") as journal:
            for key in range(count):
                text = os.urandom(200).hex().encode()
                result = b'{"n":%d,"text":"%b","usage":{"tokens":%d}}' % (key, text, key % 7)
                journal.write(seal(b'{"key":%d,"result":%b,"timestamp":"2026-03-01T12:00:00.123Z"' % (key, result)))
        # A process that was started by a large one has had its size, as ru_maxrss sees it; the shell is small.
        command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", MEASURE, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        rows, by_csv, by_parquet = map(int, done.stdout.split())
        assert rows == count
        grown[count] = by_csv, by_parquet
        with pq.ParquetFile(tmp_path / "out.parquet") as file:
            assert file.metadata.num_rows == count
            assert file.metadata.num_row_groups >= 2
    assert grown[100_000][1] > 10_000, grown  # else the measurement is none
    assert grown[200_000][1] < grown[100_000][1] + 20_000, grown
    assert grown[200_000][0] < 10_000, grown


# --- packages -------------------------------------------------------------------------------------------------------

MISSING = [
    ("pandas", "pandas", Table.to_pandas),
    ("pyarrow", "pandas", Table.to_pandas),
    ("polars", "polars", Table.to_polars),
    ("pyarrow", "polars", Table.to_polars),
    ("pyarrow", "parquet", lambda table: table.write_parquet("out.parquet")),
]


@pytest.mark.parametrize(("package", "extra", "take"), MISSING)
def test_a_package_that_is_missing_is_named_with_its_extra(
    make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, extra: str, take: Any
) -> None:
    """ExtraNeeded is an ImportError, says what to type, and comes before a file is made."""
    runner = make()
    runner.save_result("a", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraNeeded, match=rf"needs {package}.*pip install 'checkpoint-map\[{extra}\]'") as caught:
        take(Table.saved(runner.records))
    assert caught.value.name == package
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.slow
def test_csv_and_json_lines_need_no_package(mixed: Path) -> None:
    """And importing the room imports none."""
    script = (
        "import sys\nfor name in ('pandas', 'polars', 'pyarrow', 'numpy'): sys.modules[name] = None\n"
        "from checkpoint.reporting.tables import export\n"
        "print(export('j', sys.argv[1] + '/o.csv', sys.argv[1]), export('j', sys.argv[1] + '/o.jsonl', sys.argv[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(mixed)], capture_output=True, text=True, check=True)
    assert done.stdout == "2 2\n"


# --- what a notebook shows ------------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """The tags, and the text of each cell, of well-formed HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.cells: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.open.append(tag)
        if tag in ("td", "th", "caption"):
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.cells[-1] += data


@pytest.mark.slow
def test_html_shows_the_first_rows_and_escapes_everything(make: Opener) -> None:
    """Names, values and the caption; nothing longer than 200 characters; no colour but the page's."""
    runner = make()
    for key in range(30):
        runner.save_result(f"<b>{key}", {"<script>alert(1)</script>": "<i>&" * 200, "n": key})
    html = Table.saved(runner.records, at_most=10).to_html(30, "30 <results>")
    shown = Reader(html)
    assert set(shown.tags) == {"div", "table", "caption", "tr", "th", "td"}
    assert shown.cells[:4] == ["30 <results>; the first 10", "key", "<script>alert(1)</script>", "n"]
    assert len(shown.cells) == 1 + 3 * 11
    assert shown.cells[4] == "<b>0"
    assert shown.cells[5] == ("<i>&" * 50)[:199] + "…"
    assert "background" not in html
    assert "color:inherit" in html


def test_html_shows_few_columns(make: Opener) -> None:
    """And says how many it leaves out."""
    runner = make()
    runner.save_result("a", {f"f{n}": n for n in range(40)})
    shown = Reader(Table.saved(runner.records).to_html(1, "1 result"))
    assert shown.cells[0] == "1 result; 25 more columns"
    assert len(shown.cells) == 1 + 2 * 16


# --- vectors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("f4", (3,)),
        ("f8", (4,)),
        ("i1", (2,)),
        ("u2", (5,)),
        ("i4", (2, 3)),
        ("i8", (1,)),
        ("u8", (2,)),
        ("f4", (2, 2)),
    ],
)
def test_vectors_of_one_shape_keep_their_dtype_bit_by_bit(
    make: Opener, tmp_path: Path, dtype: str, shape: tuple[int, ...]
) -> None:
    """Fixed-size lists in Arrow, polars and Parquet, arrays that may be changed in pandas; some may be missing."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    arrays = [np.frombuffer(os.urandom(size), dtype).reshape(shape) for _ in range(5)]
    runner = make()
    for key, array in enumerate(arrays):
        runner.save_result(key, {"vector": array, "n": key})
    runner.save_result("none", {"n": 5})
    table = Table.saved(runner.records)
    expected = [array.tobytes() for array in arrays]
    frame = table.to_pandas()
    assert [array.tobytes() for array in frame["vector"][:5]] == expected
    assert {(array.dtype.str[1:], array.shape) for array in frame["vector"][:5]} == {(dtype, shape)}
    assert frame["vector"][5] is None
    frame["vector"][0][...] = 0
    table.write_parquet(tmp_path / "vectors.parquet")
    for made in (table.to_polars().to_arrow(), pq.read_table(tmp_path / "vectors.parquet")):
        column = made["vector"].combine_chunks()
        kind, flat = column.type, column
        for length in shape:
            assert kind.list_size == length
            kind, flat = kind.value_type, flat.flatten()
        assert kind == pa.from_numpy_dtype(np.dtype(dtype))
        assert np.asarray(flat).tobytes() == b"".join(expected)
        assert column.is_valid().to_pylist() == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("values", "expected", "reason"),
    [
        ([np.array([1, 2], "i4"), np.array([3], "i4")], [[1, 2], [3]], "another shape"),
        ([np.array([1, 2], "i4"), np.array([3, 4], "i8")], [[1, 2], [3, 4]], "another dtype"),
        ([np.array([1.5, 2], "f4"), [3.5]], [[1.5, 2.0], [3.5]], "a list"),
        ([[3.5], np.array([[1.5]], "f8")[0]], [[3.5], [1.5]], "a list first"),
        ([np.array([0.5], "f2")], [[0.5]], "a dtype that not every reader knows"),
        ([np.array([True, False])], [[True, False]], "bits"),
        ([[np.array([1, 2], "i4")]], [[[1, 2]]], "within a list"),
        ([[{"a": np.array([1.5])}]], [[{"a": [1.5]}]], "within an object in a list"),
        ([np.array([1], ">i4")], [[1]], "the other byte order"),
    ],
)
def test_other_arrays_are_lists(make: Opener, values: list[Any], expected: list[Any], reason: str) -> None:
    """A column of them has lists of any length, and no number is another one."""
    runner = make()
    for key, value in enumerate(values):
        runner.save_result(key, value)
    frame = Table.saved(runner.records).to_polars()
    assert frame["result"].to_list() == expected, reason


def test_vectors_are_lists_in_text(make: Opener, tmp_path: Path) -> None:
    """JSON lines, CSV, HTML, and beside what makes a column JSON text."""
    runner = make()
    runner.save_result(0, np.array([1.5, float("nan")], "f4"))
    runner.save_result(1, "text")
    table = Table.saved(runner.records)
    table.write_jsonl(tmp_path / "out.jsonl")
    assert [json.loads(line)["result"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        [1.5, "NaN"],
        "text",
    ]
    assert [json.loads(text) for text in table.to_polars()["result"]] == [[1.5, "NaN"], "text"]
    assert "[1.5," in table.to_html(2, "two")
