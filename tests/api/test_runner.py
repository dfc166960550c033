"""Laws of the two runners: what is documented, by hand."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from checkpoint import (
    LATEST,
    BatchCheckpointedRunner,
    CheckpointedRunner,
    CircularCall,
    DuplicateKey,
    InvalidKey,
    InvalidName,
    InvalidOption,
    StoreClosed,
    UnencodableValue,
    checkpointed,
    clock,
)
from checkpoint.values.keys import key_spelled

RUNNERS = [CheckpointedRunner, BatchCheckpointedRunner]


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


@pytest.fixture(params=RUNNERS, ids=lambda cls: cls.__name__)
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a runner of either class."""

    def of(name: str = "r", *args: Any, **options: Any) -> Any:
        return request.param(name, *args, **options)

    return of


def lines(kind: str, name: str = "r") -> list[dict[str, Any]]:
    """The records of a journal."""
    return [json.loads(line) for line in Path(f"checkpoints/{name}_{kind}.jsonl").read_bytes().splitlines()]


# --- the two usages of the design ------------------------------------------------------------------------------------


def process(item: dict[str, Any]) -> int:
    """The user's function."""
    if item["n"] < 0:
        raise ValueError(f"negative: {item['n']}")
    return int(item["n"]) * 10


def test_the_loop_by_hand_works_verbatim() -> None:
    """The usage of DESIGN §1, twice: the second time it yields only what failed."""
    items = [{"id": "a", "n": 1}, {"id": "b", "n": -1}, {"id": "c", "n": 3}]
    seen = []
    for _ in range(2):
        runner = CheckpointedRunner("my_experiment")
        for item in runner.iterate(items, key_fn=lambda x: x["id"]):
            seen.append(item["id"])
            try:
                runner.save_result(item["id"], process(item))
            except Exception as e:
                runner.save_error(item["id"], str(e))
        assert runner.get_all_results() == {"a": 10, "c": 30}
        assert runner.get_all_errors() == {"b": "negative: -1"}
    assert seen == ["a", "b", "c", "b"]


def test_the_loop_under_a_bar_works_verbatim(capsys: pytest.CaptureFixture[str]) -> None:
    """The second usage of DESIGN §1: places, total, a bar that ends at all of them."""
    items = [{"id": n} for n in range(3)]
    seen = []
    runner = BatchCheckpointedRunner("experiment")
    for idx, total, item in runner.iterate_with_progress(items, key_fn=lambda x: x["id"], desc="Processing"):
        seen.append((idx, total, item["id"]))
        runner.save_result(item["id"], idx)
    assert seen == [(1, 3, 0), (2, 3, 1), (3, 3, 2)]
    assert "Processing: 100%" in capsys.readouterr().err


# --- what is saved, and read -----------------------------------------------------------------------------------------


def test_an_unknown_key_has_no_result(make: Callable[..., Any]) -> None:
    """`get_result` gives None, nothing is completed, nothing is there, and reading makes no file."""
    runner = make()
    assert runner.get_result("x") is None
    assert not runner.is_completed("x")
    assert (runner.get_all_results(), runner.get_all_errors(), runner.progress()) == ({}, {}, (0, None))
    assert not Path("checkpoints").exists()


def test_an_error_never_makes_a_key_done_and_a_success_retires_it(make: Callable[..., Any]) -> None:
    """The message is the string that was saved."""
    runner = make()
    runner.save_error("k", "first")
    runner.save_error("k", "second")
    assert (runner.is_completed("k"), runner.get_all_errors()) == (False, {"k": "second"})
    runner.save_result("k", None)
    assert (runner.is_completed("k"), runner.get_all_errors()) == (True, {})
    runner.save_error("k", "late")
    assert (runner.is_completed("k"), runner.get_result("k"), runner.get_all_errors()) == (True, None, {})


def test_an_exception_is_saved_with_its_type_and_traceback(make: Callable[..., Any]) -> None:
    """A string is saved as it is, an exception by its `str()`, and plain text about where it was raised."""
    runner = make()
    try:
        process({"n": -1})
    except ValueError as error:
        runner.save_error("k", error)
    assert runner.get_all_errors() == {"k": "negative: -1"}
    (record,) = lines("errors")
    assert record["type"] == "ValueError"
    assert "in process" in record["traceback"]


def test_the_last_result_of_a_key_wins(make: Callable[..., Any]) -> None:
    """In the same runner and after a restart."""
    runner = make()
    runner.save_result("k", 1)
    runner.save_result("k", 2)
    assert runner.get_all_results() == {"k": 2}
    runner.close()
    assert make().get_result("k") == 2


def test_equal_keys_are_one_key(make: Callable[..., Any]) -> None:
    """As in a dict: `1`, `1.0` and `True`; `"1"` is another."""
    runner = make()
    runner.save_result(1, "one")
    runner.save_result("1", "text")
    for key, want in ((1, "one"), (1.0, "one"), (True, "one"), ("1", "text")):
        assert runner.get_result(key) == want
    assert len(runner.get_all_results()) == 2


def test_a_damaged_result_does_not_hide_the_others(make: Callable[..., Any]) -> None:
    """Reading every error and counting go on; the damaged value is told when it is read."""
    runner = make()
    runner.save_result("a", "value a")
    runner.save_result("b", "value b")
    runner.close()
    path = Path("checkpoints/r_results.jsonl")
    path.write_bytes(path.read_bytes().replace(b"value a", b"value z"))
    runner = make()
    with pytest.raises(ValueError, match=r"r_results\.jsonl:1"):
        runner.get_result("a")
    assert runner.get_result("b") == "value b"
    assert not runner.is_completed("a")
    assert runner.get_result("a") is None


def test_a_value_that_cannot_be_written_is_kept_aside(make: Callable[..., Any]) -> None:
    """`save_result` raises, the key is told to have failed, and the value is there."""
    runner = make()
    with pytest.raises(UnencodableValue, match=r"see \.unsaved"):
        runner.save_result("k", [complex])
    assert dict(runner.unsaved) == {"k": [complex]}
    assert list(runner.get_all_errors()) == ["k"]
    assert not runner.is_completed("k")


def test_typed_results_are_rebuilt(make: Callable[..., Any]) -> None:
    """`result_type` names their classes."""
    make(result_type=Point).save_result("p", [Point(1)])
    assert make(result_type=Point).get_result("p") == [Point(1)]


@dataclass
class Point:
    """A class of values."""

    x: int


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_has_its_fields_in_the_documented_order(make: Callable[..., Any]) -> None:
    """By hand without a version: key, result, timestamp, session, crc; the digest of the item where it is known."""
    runner = make()
    runner.save_result("k", {"a": [1]})
    for _ in runner.iterate(["item"]):
        runner.save_result("item", 1)
    by_hand, in_pass = lines("results")
    assert list(by_hand) == ["key", "result", "timestamp", "session", "crc"]
    assert list(in_pass) == ["key", "result", "timestamp", "input", "session", "crc"]
    assert (by_hand["key"], by_hand["result"]) == ("k", {"a": [1]})
    assert re.fullmatch(r"[0-9a-f]{32}", in_pass["input"])


def test_a_map_writes_every_field_that_it_knows() -> None:
    """Results: version, code, input, elapsed and attempts too, and the first one says what version and code stand for.

    Errors: type, traceback and attempts.
    """

    @checkpointed("r", version="v1")
    def f(n: int) -> int:
        return 1 // n

    f.map([0, 1], return_exceptions=True, progress=False)
    (result,), (error,) = lines("results"), lines("errors")
    assert list(result) == [
        "key", "result", "timestamp", "version", "code", "input", "elapsed", "attempts", "session", "detail", "value",
        "crc",
    ]  # fmt: skip
    assert list(error)[:6] == ["key", "error", "timestamp", "type", "traceback", "attempts"]
    assert list(error)[-1] == "crc"
    assert (error["error"], error["type"]) == ("integer division or modulo by zero", "ZeroDivisionError")
    assert result["session"] == error["session"]


def test_timestamps_are_utc_iso_8601(make: Callable[..., Any]) -> None:
    """With microseconds, and in the order of time."""
    runner = make()
    for n in range(3):
        runner.save_result(n, n)
    stamps = [record["timestamp"] for record in lines("results")]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", stamp) for stamp in stamps)
    assert [datetime.fromisoformat(stamp) for stamp in stamps] == sorted(map(datetime.fromisoformat, stamps))


def test_the_meta_file_says_how_it_stands(make: Callable[..., Any]) -> None:
    """One JSON object with the documented fields, up to date when a pass has ended."""
    runner = make()
    for item in runner.iterate(["a", "b", "c"]):
        if item == "b":
            runner.save_error(item, "no")
        else:
            runner.save_result(item, 1)
    meta = json.loads(Path("checkpoints/r_meta.json").read_text())
    assert (meta["experiment_name"], meta["total_items"], meta["completed_items"], meta["failed_items"]) == (
        "r", 3, 2, 1,
    )  # fmt: skip
    assert meta["schema_version"] == "2.0.0"
    assert meta["started_at"] <= meta["last_updated"]


# --- passes ----------------------------------------------------------------------------------------------------------


def test_idx_is_the_place_among_all_items_on_a_resumed_run_too() -> None:
    """So the last is total/total, whatever is done already."""
    runner = BatchCheckpointedRunner("r")
    runner.save_result("b", 0)
    got = [(idx, total) for idx, total, _ in runner.iterate_with_progress(["a", "b", "c"])]
    assert got == [(1, 3), (3, 3)]


def test_an_input_without_a_length_has_no_total() -> None:
    """None, and the places count all the same."""
    runner = BatchCheckpointedRunner("r")
    runner.save_result("b", 0)
    assert list(runner.iterate_with_progress(iter(["a", "b", "c"]))) == [(1, None, "a"), (3, None, "c")]


def test_each_key_is_handed_out_once(make: Callable[..., Any]) -> None:
    """Equal items share one result, whether it was saved meanwhile or not."""
    runner = make()
    assert list(runner.iterate(["a", "a", "b"])) == ["a", "b"]
    with pytest.raises(DuplicateKey):
        list(runner.iterate([{"id": 1, "x": 1}, {"id": 1}], "id"))


@pytest.mark.parametrize("key_fn", ["id", lambda x: x["id"]], ids=["a field", "a function"])
def test_a_key_is_a_field_or_a_function(make: Callable[..., Any], key_fn: Any) -> None:
    """As with the decorator."""
    runner = make()
    runner.save_result("a", 1)
    assert list(runner.iterate([{"id": "a"}, {"id": "b"}], key_fn)) == [{"id": "b"}]


def test_progress_is_of_the_last_pass_and_before_one_of_all_results(make: Callable[..., Any]) -> None:
    """(completed, total); total is what meta knows, before a pass."""
    runner = make()
    runner.save_result("x", 0)
    assert runner.progress() == (1, None)
    seen = []
    for item in runner.iterate(["a", "b", "c"]):
        seen.append(runner.progress())
        if item != "b":
            runner.save_result(item, 0)
    assert seen == [(0, 3), (1, 3), (1, 3)]
    assert runner.progress() == (2, 3)
    runner.close()
    assert make().progress() == (3, 3)


def test_a_key_that_fails_and_then_succeeds_in_one_pass_is_completed(make: Callable[..., Any]) -> None:
    """The later success retires the error in the counts too; saving twice counts once."""
    runner = make()
    for item in runner.iterate(["a", "b"]):
        runner.save_error(item, "first try")
        runner.save_result(item, 1)
        runner.save_result(item, 2)
        runner.save_error(item, "too late")
    assert runner.progress() == (2, 2)
    assert runner.get_all_errors() == {}


def test_items_that_were_not_saved_come_again(make: Callable[..., Any]) -> None:
    """Handing out makes nothing done."""
    runner = make()
    assert list(runner.iterate(list("ab"))) == list(runner.iterate(list("ab"))) == ["a", "b"]


@pytest.mark.parametrize("how", ["break", "raise"])
def test_an_abandoned_pass_lets_go_of_the_lock(make: Callable[..., Any], how: str) -> None:
    """A break or an exception in the loop: another pass may start at once, and by another process."""
    runner = make()

    def loop() -> None:
        for item in runner.iterate(list("abc")):
            runner.save_result(item, 1)
            if how == "break":
                return
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) if how == "raise" else _nothing():
        loop()
    assert not runner.records.store.writer.writing
    assert list(runner.iterate(list("abc"))) == ["b", "c"]


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_a_loop_inside_a_loop_is_given_other_items(make: Callable[..., Any]) -> None:
    """Over the same checkpoint too; the item that the outer one is at would be waited for for ever, and is refused."""
    outer, inner = make("outer"), make("inner")
    for item in outer.iterate([1, 2]):
        with pytest.raises(CircularCall, match="a loop in this thread was given the item of key"):
            next(make("outer").iterate([item]))
        assert list(make("outer").iterate([(item, 3)])) == [(item, 3)]
        for part in inner.iterate([(item, 1), (item, 2)]):
            inner.save_result(part, 0)
        outer.save_result(item, 0)
    assert (outer.progress(), len(inner.get_all_results())) == ((2, 2), 4)


def test_batches_hold_what_is_not_done_and_each_item_is_saved_by_itself() -> None:
    """At most `batch_size` items a batch, over done ones; the last one may be shorter."""
    runner = BatchCheckpointedRunner("r")
    runner.save_result(2, 0)
    got = []
    for batch in runner.iterate_batches(range(7), batch_size=3):
        got.append(batch)
        for item in batch[:2]:
            runner.save_result(item, item)
    assert got == [[0, 1, 3], [4, 5, 6]]
    assert list(runner.iterate_batches(range(7), batch_size=3)) == [[3, 6]]
    assert list(BatchCheckpointedRunner("empty").iterate_batches([])) == []


@pytest.mark.parametrize("one_shot", [False, True])
def test_the_last_batch_is_part_of_the_pass(one_shot: bool) -> None:
    """Where it is shorter than the others, too: it counts, and nobody else is given its items before it is saved."""
    runner = BatchCheckpointedRunner("r")
    for batch in runner.iterate_batches(iter(range(5)) if one_shot else range(5), batch_size=2):
        with pytest.raises(CircularCall):
            next(CheckpointedRunner("r").iterate(batch[-1:]))
        for item in batch:
            runner.save_result(item, item)
    assert runner.progress() == (5, None if one_shot else 5)


def test_iterate_leaves_signals_alone(make: Callable[..., Any]) -> None:
    """And so it works in any thread."""
    runner, got = make(), []
    thread = threading.Thread(target=lambda: got.extend(runner.iterate(list("ab"))))
    thread.start()
    thread.join()
    assert got == ["a", "b"]


def test_a_resumed_pass_says_so_once(make: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """One INFO line with done, failed and total; none on the first run; nothing printed."""
    runner = make()
    with caplog.at_level(logging.INFO, "checkpoint"):
        for item in runner.iterate(list("abc")):
            if item == "a":
                runner.save_result(item, 1)
            else:
                runner.save_error(item, "no")
        assert not [line for line in caplog.messages if "resuming" in line]
        list(runner.iterate(list("abcd")))
        list(runner.iterate(iter("abcd")))
    assert [line for line in caplog.messages if "resuming" in line] == [
        "resuming 'r': 1 done, 2 failed, 4 in total",
        "resuming 'r': 1 done, 2 failed, unknown in total",
    ]


# --- forgetting, closing ---------------------------------------------------------------------------------------------


def test_clear_forgets_everything(make: Callable[..., Any]) -> None:
    """Results, errors, values kept aside and counts; and again is fine."""
    runner = make()
    runner.save_result("a", 1)
    runner.save_error("b", "no")
    with pytest.raises(UnencodableValue):
        runner.save_result("c", complex)
    list(runner.iterate(list("abc")))
    for _ in range(2):
        runner.clear()
        assert (runner.get_all_results(), runner.get_all_errors(), dict(runner.unsaved)) == ({}, {}, {})
        assert runner.progress() == (0, None)
    assert list(runner.iterate(list("ab"))) == ["a", "b"]


def test_clear_of_keys_forgets_these(make: Callable[..., Any]) -> None:
    """In all journals, and after a restart; unknown ones are no error."""
    runner = make()
    for key in "abc":
        runner.save_result(key, key)
    runner.save_error("e", "no")
    runner.clear(["a", "e", "unknown"])
    runner.clear(key for key in "b")
    for one in (runner, make()):
        assert (one.get_all_results(), one.get_all_errors()) == ({"c": "c"}, {})
        one.close()


def test_clear_of_a_string_is_refused(make: Callable[..., Any]) -> None:
    """It would forget each letter."""
    runner = make()
    runner.save_result("a", 1)
    with pytest.raises(InvalidOption, match=r"clear\(\['ab'\]\)"):
        runner.clear("ab")
    assert runner.is_completed("a")


def test_a_closed_runner_refuses_everything(make: Callable[..., Any]) -> None:
    """`StoreClosed`, by every method; closing again is fine."""
    with make() as runner:
        runner.save_result("a", 1)
    runner.close()
    assert runner.closed
    for use in (
        lambda: runner.save_result("a", 1), lambda: runner.save_error("a", ""), lambda: runner.get_result("a"),
        lambda: runner.is_completed("a"), runner.get_all_results, runner.get_all_errors, runner.progress,
        runner.clear, lambda: runner.clear(["a"]), lambda: next(runner.iterate(["a"])), lambda: dict(runner.unsaved),
    ):  # fmt: skip
        with pytest.raises(StoreClosed, match="make a new one"):
            use()
    assert make().get_result("a") == 1


def test_closing_one_of_two_runners_leaves_the_other(make: Callable[..., Any]) -> None:
    """They share one store, and see each other's results at once."""
    one, other = make(), make()
    one.save_result("a", 1)
    assert other.get_result("a") == 1
    one.close()
    other.save_result("b", 2)
    assert other.get_all_results() == {"a": 1, "b": 2}


# --- where it is -----------------------------------------------------------------------------------------------------


def test_the_directory_is_the_argument_else_the_environment_else_checkpoints(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A str or a path, `~` included; made at the first save, parents too."""
    make().save_result("k", 1)
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "env"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make().save_result("k", 1)
    for argument in (tmp_path / "path" / "deep", str(tmp_path / "text"), "~/there"):
        make("r", argument).save_result("k", 1)
    for place in ("checkpoints", "env", "path/deep", "text", "home/there"):
        assert (tmp_path / place / "r_results.jsonl").exists()
    monkeypatch.setenv("CHECKPOINT_DIR", "")
    assert make().get_result("k") == 1


@pytest.mark.slow
def test_a_runner_stays_where_it_was_made(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever chdir or the environment do later."""
    runner = make()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("CHECKPOINT_DIR", "other")
    runner.save_result("k", 1)
    assert (tmp_path / "checkpoints" / "r_results.jsonl").exists()
    assert os.listdir() == []


# --- versions --------------------------------------------------------------------------------------------------------


def test_versions_are_apart_and_count_again_when_one_goes_back(make: Callable[..., Any]) -> None:
    """Any JSON value is a version; dicts by content; None is none."""
    for version in (None, "v1", {"model": "m", "t": 0.5}, ["a"], 0):
        runner = make(version=version)
        assert runner.get_all_results() == {}
        runner.save_result("k", repr(version))
        runner.close()
    assert make(version={"t": 0.5, "model": "m"}).get_result("k") == repr({"model": "m", "t": 0.5})
    assert make(version=None).get_result("k") == "None"


def test_a_runner_by_hand_reads_the_version_of_the_last_record(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """`LATEST`, and it says so at INFO with the version itself."""
    make(version="v1").save_result("k", 1)
    make(version="v2").save_result("k", 2)
    with caplog.at_level(logging.INFO, "checkpoint"):
        runner = make()
    assert "reading version 'v2'" in caplog.text
    assert runner.get_result("k") == 2
    runner.save_result("l", 3)
    assert make(version="v2").get_all_results() == {"k": 2, "l": 3}
    assert make(version=LATEST).get_all_results() == {"k": 2, "l": 3}


def test_the_last_record_names_the_latest_version_where_it_is_an_error_too(
    make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pass of the new version that failed for all is the last one: old results do not pass for its."""
    moments = itertools.count()
    monkeypatch.setattr(clock.Stamper, "__call__", lambda _: b"2026-01-01T00:00:00.%03dZ" % next(moments))
    make(version="old").save_result("k", "old")
    make(version="new").save_error("k", "quota")
    assert (make().get_all_results(), make().get_all_errors()) == ({}, {"k": "quota"})
    make(version="old").save_result("l", "old")
    assert (make().get_all_results(), make().get_all_errors()) == ({"k": "old", "l": "old"}, {})


BY_HAND = [
    (("a", 1), ["('a', 1)", {"$tuple": ["a", 1]}]),
    (("it's", ("\\", None, True), -1.5e-9), ["""("it's", ('\\\\', None, True), -1.5e-09)"""]),
    (7, ["7", 7]),
    (None, ["None", None]),
]


@pytest.mark.parametrize(("key", "spellings"), BY_HAND, ids=lambda value: str(value) if type(value) is list else "")
def test_lines_by_hand_stand_for_keys_of_that_str(make: Callable[..., Any], key: Any, spellings: list[Any]) -> None:
    """A result retires an error by hand of its key, and a result by hand beside it is no second one."""
    runner = make()
    runner.save_result(key, 5)
    runner.save_result("other", 6)
    for close in (True, False):  # appended to what is known, and to what an index file knows
        for spelling in spellings:
            with Path("checkpoints/r_errors.jsonl").open("a") as errors:
                errors.write(json.dumps({"key": spelling, "error": "x", "timestamp": ""}) + "\n")
            with Path("checkpoints/r_results.jsonl").open("a") as results:
                results.write(json.dumps({"key": spelling, "result": 2, "timestamp": ""}) + "\n")
        assert runner.get_all_errors() == {}
        assert runner.progress()[0] == 2
        assert runner.get_all_results() == {key: 5, "other": 6}
        if close:
            runner.records.store.own.results.write_index()
            runner.close()
            runner = make()


@pytest.mark.parametrize(
    "text", ["(1", "('\\d',)", "(1if 2else 3)", "(" * 5000, "(1,)" * 3, "('a' 'b')", "(nan,)", "(0x1,)"]
)
def test_a_text_that_is_no_str_of_a_key_stands_for_itself(text: str) -> None:
    """Nothing is evaluated, and Python warns of nothing."""
    assert key_spelled(text) == text


def test_results_without_a_version_are_read_whatever_version_an_error_has(make: Callable[..., Any]) -> None:
    """No version is one, too: what is done under it is not computed again for an old error of another."""
    make(version="x").save_error("e", "boom")
    assert make().get_all_errors() == {"e": "boom"}
    make(version=None).save_result("a", 1)
    runner = make()
    assert runner.get_all_results() == {"a": 1}
    assert list(runner.iterate(["a", "b"])) == ["b"]


def test_a_pass_follows_the_version_of_the_last_record(make: Callable[..., Any]) -> None:
    """A runner made before another wrote a version goes over to it at its next pass, not in the midst of one."""
    early = make()
    make(version="v1").save_result("a", 1)
    assert list(early.iterate(list("ab"))) == ["b"]


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED = [
    (InvalidName, {"name": "../x"}, "a name is one file-name component"),
    (InvalidName, {"name": ""}, "and not empty"),
    (InvalidName, {"name": 5}, "and a str"),
    (InvalidOption, {"durability": "paranoid"}, "one of two"),
    (InvalidOption, {"durability": True}, "and no flag"),
    (InvalidOption, {"version": object()}, "a version is a JSON value"),
    (InvalidOption, {"version": float}, "and no class"),
    (InvalidOption, {"checkpoint_dir": 5}, "a directory is a path"),
    (InvalidOption, {"checkpoint_dir": ""}, "and not empty"),
]


@pytest.mark.parametrize(("error", "options", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_wrong_options_are_told_when_they_are_given(
    make: Callable[..., Any], error: type[Exception], options: dict[str, Any], reason: str
) -> None:
    """Before any file is made."""
    with pytest.raises(error):
        make(**{"name": "r", **options})
    assert os.listdir() == []


@pytest.mark.parametrize("size", [0, -1, 1.5, True, None, "3"], ids=repr)
def test_a_batch_size_is_an_int_of_at_least_one(size: Any) -> None:
    """Anything else is refused before an item is drawn."""
    with pytest.raises(InvalidOption, match="batch_size"):
        next(BatchCheckpointedRunner("r").iterate_batches([1], batch_size=size))


def test_a_key_function_of_another_kind_is_refused(make: Callable[..., Any]) -> None:
    """A function, a field's name, or None."""
    with pytest.raises(InvalidOption, match="key is 5"):
        next(make().iterate([1], key_fn=5))


@pytest.mark.parametrize("method", ["save_result", "save_error", "get_result", "is_completed"])
def test_invalid_keys_are_refused_by_every_method(make: Callable[..., Any], method: str) -> None:
    """A UUID is no key; nothing is written."""
    runner = make()
    arguments = (uuid4(), "x") if method.startswith("save") else (uuid4(),)
    with pytest.raises(InvalidKey):
        getattr(runner, method)(*arguments)
    assert os.listdir() == []


@pytest.mark.parametrize("durability", ["process", "power"])
def test_either_durability_saves(make: Callable[..., Any], durability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """ "power" syncs each record before it counts as saved."""
    synced: list[int] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, synced.append, raising=False)
    runner = make(durability=durability)
    runner.save_result("warm", 0)
    for n in range(5):
        before = len(synced)
        runner.save_result(n, n)
        assert (len(synced) > before) or durability == "process"
    assert runner.get_result(4) == 4


def test_a_runner_says_what_it_is(make: Callable[..., Any]) -> None:
    """Class, name and directory."""
    assert re.fullmatch(r"\w+Runner\('r', '.*checkpoints'\)", repr(make()))


def test_the_items_may_be_a_generator_that_fails(make: Callable[..., Any]) -> None:
    """Its own exception; what was saved stays; the lock is let go."""
    runner = make()

    def items() -> Iterator[str]:
        yield "a"
        raise ConnectionError

    def loop() -> None:
        for item in runner.iterate(items()):
            runner.save_result(item, 1)

    with pytest.raises(ConnectionError):
        loop()
    assert list(runner.iterate(list("ab"))) == ["b"]


def test_items_that_are_none_leave_the_runner_as_it_was(make: Callable[..., Any]) -> None:
    """It goes on following the version of the last record."""
    runner, other = make(), make(version="new")
    with pytest.raises(InvalidOption):
        list(runner.iterate(5))
    other.save_result("a", 1)
    assert runner.get_all_results() == {"a": 1}
