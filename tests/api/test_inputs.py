"""Laws of items: what can be mapped, what its items are, and how results go back to the table that was mapped."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import ChainMap, UserDict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pytest

from checkpoint import (
    BatchCheckpointedRunner,
    InvalidKey,
    InvalidOption,
    ItemsFailed,
    Results,
    TooManyErrors,
    checkpointed,
)

ROWS = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 3, "text": "c"}]


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))


def twice(row: dict[str, Any]) -> int:
    """A function of a row."""
    return int(row["id"]) * 2


# --- every way in ----------------------------------------------------------------------------------------------------


def by_map(items: Any) -> list[Any]:
    """The items that a map calls its function with."""
    seen: list[Any] = []
    checkpointed("seen", key="id")(lambda item: seen.append(item)).map(items, progress=False)
    return seen


def by_stream(items: Any) -> list[Any]:
    """Those of outcomes."""
    return [outcome.item for outcome in checkpointed("seen", key="id")(lambda item: 1).stream(items, progress=False)]


def by_tasks(items: Any) -> list[Any]:
    """Those of a coroutine function."""
    seen: list[Any] = []

    @checkpointed("seen", key="id")
    async def see(item: Any) -> None:
        seen.append(item)

    asyncio.run(see.map(items, progress=False))
    return seen


def by_hand(items: Any) -> list[Any]:
    """Those that a loop gets."""
    return list(BatchCheckpointedRunner("seen").iterate(items, key_fn="id"))


def by_batches(items: Any) -> list[Any]:
    """Those that a loop over batches gets."""
    runner = BatchCheckpointedRunner("seen")
    return [item for batch in runner.iterate_batches(items, key_fn="id", batch_size=2) for item in batch]


def by_shards(items: Any) -> list[Any]:
    """Those of two shards together."""
    seen: list[Any] = []
    f = checkpointed("seen", key="id")(lambda item: seen.append(item))
    for number in range(2):
        f.map(items, progress=False, shard=(number, 2))
    return sorted(seen, key=lambda item: int(item["id"]))


def by_plan(items: Any) -> list[Any]:
    """Those that a plan counts: it has no items to show, so it must find all of these done."""
    f = checkpointed("seen", key="id")(twice)
    f.map(ROWS, progress=False)
    return ROWS if f.plan(items).done == len(ROWS) else []


WAYS = [by_map, by_stream, by_tasks, by_hand, by_batches, by_shards, by_plan]


class MapStyle:
    """A dataset as torch and keras have them: a length, and items by place, past the end too."""

    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return ROWS[place % len(ROWS)]


class Listed(list[Any]):
    """A list of another class."""


def polars() -> Any:
    """The package, or the test is skipped."""
    return pytest.importorskip("polars")


def arrow() -> Any:
    """The package, or the test is skipped."""
    return pytest.importorskip("pyarrow")


TABLES: list[tuple[Callable[[], Any], str]] = [
    (lambda: pd.DataFrame(ROWS), "pandas"),
    (lambda: pd.DataFrame(ROWS, index=[7, 7, 9]), "pandas with a duplicate index"),
    (lambda: pd.DataFrame(ROWS).convert_dtypes(), "pandas with nullable types"),
    (lambda: type("Special", (pd.DataFrame,), {})(ROWS), "a subclass of a pandas DataFrame"),
    (lambda: polars().DataFrame(ROWS), "polars"),
    (lambda: arrow().Table.from_pylist(ROWS), "an Arrow table"),
    (lambda: arrow().RecordBatch.from_pylist(ROWS), "an Arrow record batch"),
    (MapStyle, "a dataset that never raises IndexError"),
    (lambda: Listed(ROWS), "a subclass of list"),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("table", "reason"), TABLES, ids=[reason for _, reason in TABLES])
def test_a_table_gives_its_rows_as_dicts(table: Callable[[], Any], reason: str, way: Callable[[Any], Any]) -> None:
    """Of Python's own types, in order, whichever way they are asked for."""
    got = way(table())
    assert got == ROWS
    assert {(type(row["id"]), type(row["text"])) for row in got} == {(int, str)}


def test_a_row_of_pandas_is_what_to_dict_gives() -> None:
    """So that mapping the DataFrame and mapping its records name the same items: nothing is computed twice."""
    frame = pd.DataFrame({"i": [1, 2], "f": [0.5, None], "s": ["a", None], "n": pd.array([1, None], "Int64")})
    f = checkpointed("f")(lambda row: str(sorted(row)))
    f.map(frame, progress=False)
    plan = f.plan(frame.to_dict("records"))
    assert (plan.done, plan.new) == (2, 0)


VALUES: list[tuple[Callable[[], Any], list[Any], str]] = [
    (lambda: pd.Series([1, 2], index=[5, 6]), [1, 2], "a pandas Series"),
    (lambda: polars().Series([1, 2]), [1, 2], "a polars Series"),
    (lambda: arrow().array([1, 2]), [1, 2], "an Arrow array"),
    (lambda: arrow().chunked_array([[1], [2]]), [1, 2], "an Arrow column"),
    (lambda: np.array([1, 2]), [1, 2], "a numpy array"),
]


@pytest.mark.parametrize(("column", "want", "reason"), VALUES, ids=[reason for *_, reason in VALUES])
def test_a_column_gives_its_values(column: Callable[[], Any], want: list[Any], reason: str) -> None:
    """Each a valid key of its own."""
    f = checkpointed("f")(lambda n: int(n) * 10)
    assert f.map(column(), progress=False) == [value * 10 for value in want]


REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: "docs.jsonl", "splitlines", "a file's name would be mapped by its letters"),
    (lambda: b"ab", "for one item", "bytes"),
    (lambda: bytearray(b"ab"), "for one item", "a bytearray"),
    (lambda: memoryview(b"ab"), "for one item", "a memoryview"),
    (lambda: {"train": [1]}, r"items\.values\(\)", "a dict would be mapped by its keys"),
    (lambda: MappingProxyType({"a": 1}), r"items\.values\(\)", "a proxy of one"),
    (lambda: UserDict({"a": 1}), r"items\.values\(\)", "another mapping"),
    (lambda: ChainMap({"a": 1}), r"items\.values\(\)", "several mappings"),
    (lambda: polars().LazyFrame(ROWS), "collect", "a table that was not computed"),
    (
        lambda: pd.DataFrame([[1, 2]], columns=["a", "a"]),
        "two columns",
        "a dict would lose one of two columns",
    ),
    (lambda: arrow().table([[1], [2]], names=["a", "a"]), "two columns", "so with Arrow"),
]


@pytest.mark.parametrize("way", [by_map, by_hand, by_plan])
@pytest.mark.parametrize(("items", "fix", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_would_run_over_parts_is_refused_with_the_fix(
    items: Callable[[], Any], fix: str, reason: str, way: Callable[[Any], Any]
) -> None:
    """Before anything is called."""
    refused = items()
    with pytest.raises(InvalidOption, match=fix):
        way(refused)


@pytest.mark.slow
def test_a_table_is_not_copied_whole() -> None:
    """Rows are Python objects a block at a time."""
    frame = pd.DataFrame({f"c{column}": np.arange(20_000) * 1.5 + column for column in range(40)})
    list(checkpointed("imports", key="c0")(lambda row: 1).stream(frame[:1], progress=False))
    tracemalloc.start()
    try:
        f = checkpointed("f", key="c0")(lambda row: 1)
        assert sum(1 for _ in f.stream(frame, progress=False)) == len(frame)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    records = 20_000 * 40 * 24  # bytes of the floats alone, as records would hold them
    assert peak < records / 2


def test_a_dataset_that_fails_at_a_place_says_that_it_was_read_by_place() -> None:
    """Such as a store whose keys are names."""

    class Named:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, name: str) -> str:
            return {"a": "x", "b": "y"}[name]

    with pytest.raises(KeyError) as caught:
        by_map(Named())
    assert "by its place" in caught.value.__notes__[0]


# --- and back --------------------------------------------------------------------------------------------------------

INDEXES: list[tuple[Any, str]] = [
    ([0, 2, 3], "filtered"),
    ([9, 4, 1], "sorted by something else"),
    ([5, 5, 5], "duplicate"),
    (["x", "y", "x"], "texts"),
    (pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)]), "of several levels"),
    (pd.date_range("2026-01-01", periods=3), "dates"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("index", "reason"), INDEXES, ids=[reason for _, reason in INDEXES])
def test_results_go_on_the_rows_that_they_are_of(index: Any, reason: str) -> None:
    """By column assignment, by `assign` and by `join`, whatever the index is."""
    frame = pd.DataFrame(ROWS, index=index)
    results = checkpointed("f", key="id")(lambda row: {"twice": twice(row)}).map(frame, progress=False)
    table = results.to_pandas()
    assert table.index.equals(frame.index)
    frame["by column"] = table["twice"] if frame.index.is_unique else table["twice"].to_numpy()
    frame["raw"] = results
    assert frame["by column"].tolist() == [2, 4, 6]
    assert [value["twice"] for value in frame["raw"]] == [2, 4, 6]
    assert frame.assign(y=results)["y"].tolist() == list(results)
    if frame.index.is_unique:
        assert frame.join(table[["twice"]])["twice"].tolist() == [2, 4, 6]


def test_results_are_a_sequence_to_every_library() -> None:
    """And no mapping: that would be aligned by key."""
    results = checkpointed("f")(lambda n: n * 10).map([1, 2], progress=False)
    assert not hasattr(results, "keys")
    assert results.item_keys == [1, 2]
    assert pd.Series(results, index=["a", "b"]).tolist() == [10, 20]
    assert polars().Series(results).to_list() == [10, 20]
    assert polars().DataFrame({"y": results})["y"].to_list() == [10, 20]
    assert np.array(results).tolist() == [10, 20]
    with pytest.raises(TypeError, match="dictionary update sequence"):
        dict(results)


@pytest.mark.slow
def test_a_failed_item_has_a_row_of_nulls_in_its_place() -> None:
    """So that no row moves up."""
    polars(), arrow()
    frame = pd.DataFrame({"id": ["a", "b", "c"], "n": [1, 0, 2]}, index=[4, 8, 6])
    f = checkpointed("f", key="id")(lambda row: {"inverse": 2 // row["n"]})
    with pytest.raises(ItemsFailed) as caught:
        f.map(frame, progress=False)
    results = caught.value.results
    assert isinstance(results, Results)
    frame["inverse"] = results.to_pandas()["inverse"]
    assert frame["inverse"].tolist() == [2, pd.NA, 1]
    assert results.to_polars()["inverse"].to_list() == [2, None, 1]
    errors = results.to_pandas(errors=True)["error"]
    assert errors.isna().tolist() == [True, False, True]


def test_a_shard_has_the_index_of_its_own_rows() -> None:
    """And a Series gives its index too."""
    arrow()
    frame = pd.DataFrame({"id": range(20)}, index=[f"row {number}" for number in range(20)])
    f = checkpointed("f", key="id")(twice)
    for number in range(3):
        table = f.map(frame, progress=False, shard=(number, 3)).to_pandas()
        assert table.index.tolist() == [f"row {key}" for key in table["key"]]
    series = frame["id"]
    assert checkpointed("g")(lambda n: n).map(series, progress=False).to_pandas().index.equals(series.index)


# --- advice ----------------------------------------------------------------------------------------------------------


def rows_of(frame: pd.DataFrame) -> Iterator[Any]:
    """The rows as Series, without their labels."""
    return (row for _, row in frame.iterrows())


@pytest.mark.parametrize("key", [None, "nowhere"])
@pytest.mark.parametrize("shape", [pd.DataFrame.iterrows, rows_of])
def test_rows_of_iterrows_are_answered_with_the_table_itself(shape: Callable[[Any], Any], key: str | None) -> None:
    """A Series names nothing: its text is cut."""
    with pytest.raises(InvalidKey, match="map the DataFrame itself") as caught:
        checkpointed("f", key=key)(len).map(shape(pd.DataFrame(ROWS)), progress=False)
    assert "str(" not in str(caught.value)
    assert "key=str" not in str(caught.value)


def test_a_missing_key_of_a_row_is_answered_with_the_index() -> None:
    """`str(nan)` would be one key for all rows that have none."""
    frame = pd.DataFrame({"id": [1.0, None], "text": ["a", "b"]})
    with pytest.raises(InvalidKey, match="reset_index") as caught:
        checkpointed("f", key="id")(len).map(frame, progress=False)
    assert "str(" not in str(caught.value)
    named = frame.rename_axis("id of another kind")
    for shape in (frame, named):
        rows = shape.rename_axis("row").reset_index()  # as the message says
        assert checkpointed("f", key="row")(lambda row: row["text"]).map(rows, progress=False) == ["a", "b"]
    with pytest.raises(InvalidKey, match="dropna"):
        checkpointed("g")(lambda x: x).map(frame["id"], progress=False)


# --- items that are awaited ------------------------------------------------------------------------------------------


class Source:
    """An asynchronous generator of items, and what becomes of it.

    Args:
        count: how many items there are; then it raises the error, if one is given, or ends.
    """

    def __init__(self, count: float = 5, error: Exception | None = None) -> None:
        self._count, self._error = count, error
        self.drawn: list[int] = []
        self.tasks: set[Any] = set()
        self.is_closed = False

    async def items(self) -> AsyncIterator[int]:
        """Each after a turn of the loop."""
        try:
            while len(self.drawn) < self._count:
                await asyncio.sleep(0)
                self.tasks.add(asyncio.current_task())
                self.drawn.append(len(self.drawn))
                yield self.drawn[-1]
            if self._error is not None:
                raise self._error
        finally:
            self.tasks.add(asyncio.current_task())
            self.is_closed = True


@checkpointed("awaited")
async def negative(n: int) -> int:
    """A function of an item that is awaited."""
    await asyncio.sleep(0)
    if n == 13:
        raise ValueError(n)
    return -n


@pytest.mark.parametrize("workers", [1, 3])
def test_a_map_takes_items_that_are_awaited(workers: int) -> None:
    """In order; the second map calls nothing. One task draws, as an `async for` does, and not the consumer's."""

    async def run() -> None:
        for _ in range(2):
            source = Source()
            got = await negative.map(source.items(), workers=workers, progress=False)
            assert list(got) == [0, -1, -2, -3, -4]
            assert source.is_closed
            assert len(source.tasks) == 1
            assert asyncio.current_task() not in source.tasks

    asyncio.run(run())


def test_what_is_done_is_yielded_while_the_next_item_is_awaited() -> None:
    """A stream of awaited items waits for none of them with what it has; streams feed each other so."""

    async def run() -> None:
        gates = [asyncio.Event() for _ in range(4)]

        async def items() -> AsyncIterator[int]:
            for n, gate in enumerate(gates):
                await gate.wait()
                yield n

        second = negative.options(name="second")
        first = negative.stream(items(), workers=2, progress=False)
        values = (outcome.value async for outcome in first if outcome.value is not None)
        both = second.stream(values, workers=2, progress=False)
        for n, gate in enumerate(gates):
            gate.set()
            assert (await anext(both)).value == n
        assert [outcome async for outcome in both] == []

    asyncio.run(run())


def test_awaited_items_are_keyed_shared_batched_and_sharded_as_others_are() -> None:
    """Equal ones share a call, batches are filled, each shard takes its own, and places are those of the whole."""

    async def run() -> None:
        async def items() -> AsyncIterator[int]:
            for n in (1, 2, 1, 3, 2):
                yield n

        assert list(await negative.map(items(), workers=2, progress=False)) == [-1, -2, -1, -3, -2]

        @checkpointed("batched", batch_size=2)
        async def many(ns: list[int]) -> list[int]:
            return [-n for n in ns]

        assert list(await many.map(Source().items(), workers=2, progress=False)) == [0, -1, -2, -3, -4]
        sharded = negative.options(name="sharded")
        parts = [await sharded.map(Source(12).items(), shard=(n, 2), progress=False) for n in (0, 1)]
        assert sorted(value for part in parts for value in part) == [*range(-11, 1)]

    asyncio.run(run())


def test_no_more_awaited_items_are_drawn_than_others() -> None:
    """An endless source that is left early is closed, in the task that draws."""

    async def run() -> None:
        source = Source(float("inf"))
        stream = negative.stream(source.items(), workers=2, max_errors=0, progress=False)

        async def consume() -> None:
            seen = 0
            async for _ in stream:  # in the order in which they are saved
                seen += 1
                assert len(source.drawn) <= seen + 8

        with pytest.raises(TooManyErrors):
            await consume()
        assert source.is_closed
        assert len(source.tasks) == 1

    asyncio.run(run())


def test_an_error_of_awaited_items_is_raised_by_the_map() -> None:
    """What was drawn before is done and saved."""

    async def run() -> None:
        with pytest.raises(ConnectionError):
            await negative.map(Source(5, ConnectionError()).items(), workers=2, progress=False)
        assert sorted(negative.results) == [0, 1, 2, 3, 4]
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_awaited_items_of_a_plain_function_are_refused_with_the_fix() -> None:
    """Nobody awaits them there."""
    f: Any = checkpointed("plain")(abs)
    with pytest.raises(InvalidOption, match="coroutine function takes asynchronous iterators, else collect it first"):
        f.map(Source().items())
