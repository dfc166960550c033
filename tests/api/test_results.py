"""What a pass returns and what a checkpoint holds: taken away as tables, shown in notebooks, read by version."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import Opener

from checkpoint import CheckpointedRunner, InvalidOption, ItemsFailed, Results, TooManyErrors, checkpointed
from checkpoint.api.results import KeyedErrors, KeyedResults

if TYPE_CHECKING:
    import polars as pl
    import pyarrow.parquet as pq  # type: ignore[import-untyped,unused-ignore]
else:
    pl, pq = pytest.importorskip("polars"), pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def work(tmp_path: Path) -> Any:
    """A function that fails for 0, and has fields called as columns of the record's."""

    @checkpointed("work", checkpoint_dir=tmp_path)
    def invert(n: int) -> dict[str, Any]:
        return {"key": n, "inverse": {"value": 1 / n}}

    return invert


def columns_of(frame: pl.DataFrame) -> dict[str, list[Any]]:
    """By name, less those that differ from run to run."""
    return frame.drop("timestamp", "elapsed", "session", strict=False).to_dict(as_series=False)


# --- Results --------------------------------------------------------------------------------------------------------


def test_results_are_rows_in_the_order_of_the_items(work: Any, tmp_path: Path) -> None:
    """A row an item, repeated where it is; what was there already has the time and the effort that it took then."""
    work.map([4], progress=False)
    before = work.results.to_polars()
    results = work.map([2, 4, 2, 1], progress=False)
    frame = results.to_polars()
    assert columns_of(frame) == {
        "key": [2, 4, 2, 1],
        "result.key": [2, 4, 2, 1],
        "inverse.value": [0.5, 0.25, 0.5, 1.0],
        "attempts": [1, 1, 1, 1],
    }
    assert frame.columns == ["key", "result.key", "inverse.value", "timestamp", "elapsed", "attempts", "session"]
    assert frame.row(1) == before.row(0)
    assert frame["elapsed"].min() >= 0
    results.to_parquet(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet").to_pydict() == results.to_pandas().to_dict("list")


def test_failed_items_have_rows_in_their_places(work: Any) -> None:
    """Or the rows behind them would move up; how they failed is told if asked for."""
    results = work.map([1, 0, 2], progress=False, return_exceptions=True)
    assert columns_of(results.to_polars())["inverse.value"] == [1.0, None, 0.5]
    assert columns_of(results.to_polars(errors=True)) == {
        "key": [1, 0, 2],
        "result.key": [1, None, 2],
        "inverse.value": [1.0, None, 0.5],
        "error": [None, "division by zero", None],
        "type": [None, "ZeroDivisionError", None],
        "attempts": [1, 1, 1],
    }
    frame = results.to_pandas(errors=True)
    assert frame["error"].isna().tolist() == [True, False, True]


def test_what_an_exception_holds_can_be_taken_away(work: Any) -> None:
    """`.results` of what `map` raised; items that were not run are told from those that failed."""
    with pytest.raises(ItemsFailed) as caught:
        work.map([1, 0], progress=False)
    assert isinstance(caught.value.results, Results)
    assert caught.value.results.to_polars(errors=True)["type"].to_list() == [None, "ZeroDivisionError"]
    work.clear([0])  # else it fails again as it did before, which counts for no limit
    with pytest.raises(TooManyErrors) as ended:
        work.map([0, 1, 7, 8], progress=False, max_errors=0)
    assert isinstance(ended.value.results, Results)
    frame = ended.value.results.to_polars(errors=True)
    assert frame["key"].to_list() == [0, 1, 7, 8]
    assert frame["type"].to_list() == ["ZeroDivisionError", None, "NotRun", "NotRun"]
    assert frame["timestamp"].null_count() == 2


def test_results_keep_their_rows(work: Any) -> None:
    """Whatever is cleared or computed later."""
    results = work.map([1, 2], progress=False)
    work.clear()
    work.map([5], progress=False)
    assert results.to_polars()["key"].to_list() == [1, 2]


def test_no_results_are_a_table_without_rows(work: Any) -> None:
    """Of the record's own columns."""
    assert work.map([], progress=False).to_polars().columns == ["key", "timestamp", "elapsed", "attempts"]


def test_keys_of_old_lines_are_those_of_the_items(tmp_path: Path, work: Any) -> None:
    """A line without checksum stands for any key of equal str(); the pass knows which was asked for."""
    (tmp_path / "work_results.jsonl").write_text(
        '{"key": "3", "result": {"x": 1}, "timestamp": "2025-03-01T12:00:00Z"}\n'
    )
    frame = work.map([4, 3], progress=False).to_polars()
    assert frame["key"].to_list() == [4, 3]
    assert frame["x"].to_list() == [None, 1]


# --- f.results, f.errors --------------------------------------------------------------------------------------------


def test_a_checkpoint_is_rows_in_the_order_of_its_file(work: Any, tmp_path: Path) -> None:
    """Each key once; failures behind the results, and only if asked for."""
    work.map([0, 2, 1, 2], progress=False, return_exceptions=True)
    assert columns_of(work.results.to_polars())["key"] == [2, 1]
    frame = work.results.to_pandas(errors=True)
    assert frame["key"].tolist() == [2, 1, 0]
    assert frame["type"].tolist()[2] == "ZeroDivisionError"
    work.results.to_parquet(tmp_path / "out.parquet", errors=True)
    assert pq.read_table(tmp_path / "out.parquet")["key"].to_pylist() == [2, 1, 0]


def test_failures_are_a_table_of_their_own(work: Any, tmp_path: Path) -> None:
    """With the columns error and type, and none for results."""
    work.map([0, 2], progress=False, return_exceptions=True)
    assert columns_of(work.errors.to_polars()) == {
        "key": [0], "error": ["division by zero"], "type": ["ZeroDivisionError"], "attempts": [1],
    }  # fmt: skip
    assert work.errors.to_pandas()["error"].tolist() == ["division by zero"]
    work.errors.to_parquet(tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["key"].to_pylist() == [0]


# --- versions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def versioned(tmp_path: Path) -> Callable[[Any], Any]:
    """A function of a version: its results are (version, item), and 9 fails."""

    def of(version: Any) -> Any:
        @checkpointed("versioned", checkpoint_dir=tmp_path, version=version)
        def work(n: int) -> tuple[Any, int]:
            if n == 9:
                raise ValueError("nine")
            return version, n

        return work

    return of


def test_older_versions_are_listed_with_counts(versioned: Callable[[Any], Any]) -> None:
    """The oldest first; one of which nothing is left is none."""
    for version, items in (("b", [1, 2, 9]), ({"model": "a"}, [1]), (None, [3]), ("gone", [4])):
        versioned(version).map(items, progress=False, return_exceptions=True)
    versioned("gone").clear([4])
    told = versioned("b").results.versions
    assert [(version.label, version.results, version.errors) for version in told] == [
        ("b", 2, 1), ({"model": "a"}, 1, 0), (None, 1, 0),
    ]  # fmt: skip
    assert versioned("b").errors.versions == told


def test_older_versions_are_read_and_compared(versioned: Callable[[Any], Any]) -> None:
    """By their value, or as they are listed; values come back as ever, and tables too."""
    old, new = versioned({"model": "old"}), versioned({"model": "new"})
    old.map([1, 2, 9], progress=False, return_exceptions=True)
    new.map([2, 3], progress=False)
    assert dict(new.results) == {2: ({"model": "new"}, 2), 3: ({"model": "new"}, 3)}
    before = new.results.of({"model": "old"})
    assert dict(before) == dict(old.results) == {1: ({"model": "old"}, 1), 2: ({"model": "old"}, 2)}
    assert [dict(new.results.of(version)) for version in new.results.versions] == [dict(before), dict(new.results)]
    assert before.to_polars()["key"].to_list() == [1, 2]
    assert list(new.errors.of({"model": "old"})) == [9]
    assert list(new.errors) == []
    assert len(before.of({"model": "new"})) == 2
    assert 3 not in before


def test_an_older_version_names_the_same_classes(make: Opener) -> None:
    """What `result_type` names is built; and reading leaves no trace."""
    make(version="old", result_type=tuple).save_result("a", (1, 2))
    runner = make(version="new", result_type=tuple)
    before = KeyedResults[Any](runner.records).of("old")
    del runner
    assert before["a"] == (1, 2)
    assert KeyedErrors(make(version="new").records).versions == before.versions


def test_a_version_keeps_its_label_without_meta(versioned: Callable[[Any], Any], tmp_path: Path) -> None:
    """Meta is a cache: the journal says what its versions stand for."""
    versioned("a").map([1], progress=False)
    versioned("a").runner.close()
    (tmp_path / "versioned_meta.json").unlink()
    now = versioned("b")
    (version,) = now.results.versions
    assert version.label == "a"
    assert dict(now.results.of(version)) == {1: ("a", 1)}
    assert dict(now.results.of("a")) == {1: ("a", 1)}


def test_a_version_that_is_not_there_is_told(versioned: Callable[[Any], Any]) -> None:
    """With those that are; the current one may be empty."""
    work = versioned("a")
    assert dict(work.results.of("a")) == {}
    with pytest.raises(InvalidOption, match=r"holds nothing of version 'b'; it holds nothing$"):
        work.results.of("b")
    work.map([1], progress=False)
    with pytest.raises(InvalidOption, match=r"checkpoint 'versioned' holds nothing of version 'b'; it holds 'a'$"):
        work.results.of("b")
    with pytest.raises(InvalidOption, match="no JSON value"):
        work.results.of(object())


def test_a_version_is_found_by_the_digest_that_lists_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the command prints it, where nothing else is known of it."""
    monkeypatch.chdir(tmp_path)
    for by in (1, 2):
        checkpointed("by digest", version={"by": by})(lambda n, by=by: n * by).map([5], progress=False)
    results = checkpointed("by digest", version={"by": 2})(lambda n: n).results
    assert [dict(results.of(version.version)) for version in results.versions] == [{5: 5}, {5: 10}]


# --- notebooks ------------------------------------------------------------------------------------------------------


def test_a_notebook_shows_a_small_table(work: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Of the first ten rows, with counts; failures are seen where they are among them."""
    with caplog.at_level(logging.ERROR):
        results = work.map([*range(30)], progress=False, return_exceptions=True)
        shown = results._repr_html_()
        assert ">30 results, 1 of them failed; the first 10</caption>" in shown
        assert shown.count("<tr>") == 11
        assert "division by zero" in shown
        assert ">29 results of checkpoint &#x27;work&#x27;; the first 10</caption>" in work.results._repr_html_()
        assert "division" not in work.results._repr_html_()
        assert ">1 error of checkpoint &#x27;work&#x27;</caption>" in work.errors._repr_html_()
        assert ">ZeroDivisionError</td>" in work.errors._repr_html_()
        assert ">0 results</caption>" in work.map([], progress=False)._repr_html_()


class Scorer:
    """With one instance that has a version, and one that has none."""

    def __init__(self, by: object) -> None:
        self.by = by

    @checkpointed("scores", key="id", retry=3)
    def score(self, item: dict[str, int]) -> int:
        return item["id"] * int(str(self.by))


def test_a_notebook_shows_what_a_decorated_function_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checkpoint, how much is there, and what it was decorated with; looking makes no file, and raises nothing."""
    monkeypatch.chdir(tmp_path)
    scorer: Any = Scorer(2)
    shown = scorer.score._repr_html_()
    assert list(tmp_path.iterdir()) == []
    assert ">0 results, 0 errors</td>" in shown
    scorer.score.map([{"id": 1}], progress=False)
    shown = scorer.score._repr_html_()
    assert ">1 result, 0 errors</td>" in shown
    assert ">&#x27;id&#x27;</td>" in shown
    assert "durability" not in shown
    scorer = Scorer(object())
    assert "version=lambda self" in scorer.score._repr_html_()


def test_the_first_failures_are_found_behind_many_that_were_retired(make: Opener) -> None:
    """Ten rows of those that count."""
    runner = make()
    for key in range(15):
        runner.save_error(key, "at first")
        runner.save_result(key, key)
    runner.save_error("x", "<b>kaputt")
    shown = KeyedErrors(runner.records)._repr_html_()
    assert "1 error of" in shown
    assert "&lt;b&gt;kaputt" in shown


def test_damage_is_shown_and_does_not_stop_who_looks(make: Opener, tmp_path: Path) -> None:
    """The message stands in the table's place, escaped."""
    runner: CheckpointedRunner = make()
    runner.save_result("<a>", {"n": 1})
    runner.close()
    runner = make()
    results = KeyedResults[Any](runner.records)
    assert "<td" in results._repr_html_()
    journal = tmp_path / "j_results.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b'{"n":1}', b'{"n":2}'))
    shown = results._repr_html_()
    assert shown.startswith("<p>")
    assert "damaged record of key &#x27;&lt;a&gt;&#x27;" in shown
    assert "0 results" in results._repr_html_()
