"""What a call returned was paid for: it is kept where `validate` refuses it, and is never paid for twice unasked."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from checkpoint import GiveUp, ItemError, RefusedValue, Retry, checkpointed
from checkpoint.cli.main import main
from checkpoint.maintenance.compact import compact

ITEMS = [1, 2, 3]


class Counted:
    """A function of the item that counts its calls, and what it returns: the item tenfold, as text in a dict."""

    def __init__(self) -> None:
        self.called: list[Any] = []

    def ask(self, directory: Path, **options: Any) -> Any:
        """The function, checkpointed anew as by another run."""

        def ask(n: int) -> dict[str, Any]:
            self.called.append(n)
            return {"text": f"{n}0", "tail": "PAID " * 200}

        return checkpointed("answers", checkpoint_dir=directory, **options)(ask)

    async def answer(self, n: int) -> dict[str, Any]:
        """The same, as a coroutine function."""
        self.called.append(n)
        return {"text": f"{n}0"}


@pytest.fixture
def counted() -> Counted:
    """One for the test."""
    return Counted()


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    """The records of a journal."""
    path = directory / f"answers_{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def refuses_two(value: Any) -> bool:
    """What `validate` is given, at the top level for other processes."""
    return bool(value["text"] != "20")


def tenfold(n: int) -> dict[str, Any]:
    """What other processes call."""
    return {"text": f"{n}0"}


def tenfolds(numbers: list[int]) -> list[dict[str, Any]]:
    """The same for batches."""
    return [tenfold(n) for n in numbers]


# --- validate keeps what it refuses ---------------------------------------------------------------------------------


def test_a_refused_value_is_kept_in_its_error(counted: Counted, tmp_path: Path) -> None:
    """Whole, on disk, as it was: `f.errors[key].value`, and `.value` of what stands in its place."""
    ask = counted.ask(tmp_path, validate=refuses_two)
    got = ask.map(ITEMS, return_exceptions=True, progress=False)
    want = {"text": "20", "tail": "PAID " * 200}
    assert got[1].value == ask.errors[2].value == got.errors[2].value == want
    assert [error.value for error in ask.errors.values()] == [want]
    assert lines(tmp_path, "errors")[0]["paid"] == want


def test_values_that_json_cannot_hold_are_kept_too(tmp_path: Path) -> None:
    """By the codec; what that cannot write is kept as its repr, and its item is called again as ever."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path, validate=lambda value: False)(
        lambda n: (n, float("inf")) if n == 1 else (lambda: n)
    )
    ask.map([1, 2], return_exceptions=True, progress=False)
    assert ask.errors[1].value == (1, float("inf"))
    assert str(ask.errors[2].value).startswith("<function")
    assert ask.errors[2].type == "checkpoint.errors.RefusedValue"
    assert not ask.unsaved


def test_a_value_may_look_like_a_record(tmp_path: Path) -> None:
    """Its fields are none of its line's, however long that is; nor are those of what is taken over."""
    value = {
        "key": 2, "result": [{"result": 1}], "paid": 0, "timestamp": "x", "given_up": True, "version": "b" * 5000,
        "forgotten": True, "crc": "00000000", "last": {"a": 1, "result": 2, "timestamp": "z", "error": None},
    }  # fmt: skip
    options: Any = {"checkpoint_dir": tmp_path, "version": "v"}
    checkpointed("answers", validate=lambda _: False, **options)(lambda n: value).map(
        [1], return_exceptions=True, progress=False
    )
    ask: Any = checkpointed("answers", parse=lambda _: 1 // 0, **options)(lambda n: None)
    ask.runner.close()
    for path in tmp_path.glob(".answers*index*"):
        path.unlink()
    assert (ask.errors[1].value, ask.errors[1].given_up, len(ask.errors)) == (value, False, 1)
    ask.map([1], return_exceptions=True, progress=False)
    assert (ask.errors[1].value, len(ask.results)) == (value, 1)


def test_an_error_without_a_value_has_none(tmp_path: Path) -> None:
    """A call that raised returned nothing."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path)(lambda n: 1 // 0)
    ask.map([1], return_exceptions=True, progress=False)
    assert ask.errors[1].value is None
    assert "paid" not in lines(tmp_path, "errors")[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "options", "given"),
    [
        (tenfold, {}, {}),
        (tenfold, {}, {"workers": 2}),
        (tenfold, {}, {"workers": 1, "executor": "processes", "chunksize": 3}),
        (tenfolds, {"batch_size": 2}, {}),
        (tenfolds, {"batch_size": 2}, {"workers": 1, "executor": "processes"}),
    ],
    ids=["serial", "threads", "processes", "batches", "batches on processes"],
)
def test_every_engine_keeps_it(function: Any, options: dict[str, Any], given: dict[str, Any], tmp_path: Path) -> None:
    """Of a batch for each item; back from other processes too."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path, validate=refuses_two, **options)(function)
    ask.map(ITEMS, return_exceptions=True, progress=False, **given)
    assert {key: error.value for key, error in ask.errors.items()} == {2: {"text": "20"}}


def test_coroutine_functions_keep_it(counted: Counted, tmp_path: Path) -> None:
    """On the tasks of a loop."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path, validate=refuses_two)(counted.answer)
    asyncio.run(ask.map(ITEMS, workers=3, return_exceptions=True, progress=False))
    assert ask.errors[2].value == {"text": "20"}


def test_a_value_that_a_later_call_changes_is_kept_as_it_was_refused(tmp_path: Path) -> None:
    """A function may fill one buffer time and again."""
    held: list[int] = []

    def fill(n: int) -> list[int]:
        held[:] = [n]
        return held

    ask = checkpointed("answers", checkpoint_dir=tmp_path, validate=lambda value: False)(fill)
    ask.map(ITEMS, return_exceptions=True, progress=False)
    assert [ask.errors[n].value for n in ITEMS] == [[1], [2], [3]]


# --- and takes it over once it is mended ----------------------------------------------------------------------------


def test_a_mended_validate_takes_over_what_was_paid_for(counted: Counted, tmp_path: Path) -> None:
    """Without a call; the record says so, and keeps attempts and time of the call that was paid for."""
    counted.ask(tmp_path, validate=refuses_two).map(ITEMS, return_exceptions=True, progress=False)
    mended = counted.ask(tmp_path, validate=lambda value: True)
    plan = mended.plan(ITEMS)
    assert (plan.done, plan.paid, plan.failed, plan.calls) == (2, 1, 0, 0)
    assert "1 paid for and accepted" in str(plan)
    assert [value["text"] for value in mended.map(ITEMS, progress=False)] == ["10", "20", "30"]
    assert counted.called == ITEMS
    assert not mended.errors
    line, failure = lines(tmp_path, "results")[-1], lines(tmp_path, "errors")[0]
    assert line["from"] == "refused"
    assert [line[name] for name in ("input", "code", "attempts", "elapsed")] == [
        failure[name] for name in ("input", "code", "attempts", "elapsed")
    ]


def test_without_validate_everything_is_accepted(counted: Counted, tmp_path: Path) -> None:
    """Who takes the check out has the answers; from one-shot input and in a stream, too."""
    counted.ask(tmp_path, validate=refuses_two).map(ITEMS, return_exceptions=True, progress=False)
    outcomes = list(counted.ask(tmp_path).stream(iter(ITEMS), progress=False))
    assert sorted(outcome.value["text"] for outcome in outcomes) == ["10", "20", "30"]
    assert counted.called == ITEMS


def test_what_is_still_refused_is_called_again(counted: Counted, tmp_path: Path) -> None:
    """A model answers otherwise the next time; the latest value is kept."""
    for _ in range(2):
        counted.ask(tmp_path, validate=refuses_two).map(ITEMS, return_exceptions=True, progress=False)
    assert counted.called == [1, 2, 3, 2]
    assert counted.ask(tmp_path, validate=refuses_two).plan(ITEMS).failed == 1


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"version": "other"}, "another version has nothing of it"),
        ({"depends": ["other"]}, "without a version, another code did not compute it"),
        ({"input": lambda n: n + 1}, "the item has changed"),
    ],
)
def test_a_value_counts_only_for_what_it_was_computed_from(
    changed: dict[str, Any], reason: str, counted: Counted, tmp_path: Path
) -> None:
    """The version, the code and the input are those of the call."""
    counted.ask(tmp_path, validate=lambda value: False).map([2], return_exceptions=True, progress=False)
    counted.ask(tmp_path, **changed).map([2], progress=False)
    assert counted.called == [2, 2], reason


def test_a_version_keeps_what_was_paid_for_while_code_changes(counted: Counted, tmp_path: Path) -> None:
    """It names what results depend on, so that the code need not be the same; the record names its own."""
    first = counted.ask(tmp_path, version="v", validate=lambda value: False)
    first.map([2], return_exceptions=True, progress=False)
    counted.ask(tmp_path, version="v", depends=["other"]).map([2], progress=False)
    assert counted.called == [2]
    assert lines(tmp_path, "results")[0]["code"] == lines(tmp_path, "errors")[0]["code"]


def test_failures_that_are_to_stand_stand(counted: Counted, tmp_path: Path) -> None:
    """`retry_failed=False` leaves all of them alone."""
    counted.ask(tmp_path, validate=refuses_two).map(ITEMS, return_exceptions=True, progress=False)
    got = counted.ask(tmp_path).map(ITEMS, return_exceptions=True, progress=False, retry_failed=False)
    assert isinstance(got[1], ItemError)
    assert counted.called == ITEMS


def test_a_loop_by_hand_gets_the_item(counted: Counted, tmp_path: Path) -> None:
    """It has no `validate`, and is the one that decides."""
    ask = counted.ask(tmp_path, validate=refuses_two)
    ask.map(ITEMS, return_exceptions=True, progress=False)
    assert list(ask.runner.iterate(ITEMS)) == [2]


@pytest.mark.slow
@pytest.mark.promise("an answer that is refused, or cannot be parsed")
def test_an_answer_that_is_refused_or_cannot_be_parsed(tmp_path: Path) -> None:
    """The process is killed once each failure was yielded; what it paid for outlives that, and compaction."""
    script = (
        "import os, signal\n"
        "from checkpoint import checkpointed, GiveUp\n"
        "def judge(value):\n"
        "    if value['n'] == 3:\n"
        "        raise GiveUp('for good')\n"
        "    return value['n'] == 2\n"
        "@checkpointed('answers', version='v', validate=judge, parse=lambda value: 1 // 0)\n"
        "def ask(n):\n"
        "    return {'n': n, 'text': 'x' * 10_000}\n"
        "left = 3\n"
        "for outcome in ask.stream([1, 2, 3, 4], progress=False):\n"
        "    left -= 1\n"
        "    left or os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {"CHECKPOINT_DIR": str(tmp_path), "PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert done.returncode == -9
    called: list[int] = []

    def answer(n: int) -> dict[str, Any]:
        called.append(n)
        return {"n": n}

    options: Any = {"checkpoint_dir": tmp_path, "version": "v"}
    for _ in range(2):
        ask: Any = checkpointed("answers", parse=lambda value: 1 // 0, **options)(answer)
        paid = {key: (error.type.rpartition(".")[2], len(error.value["text"])) for key, error in ask.errors.items()}
        assert paid == {
            1: ("RefusedValue", 10_000), 2: ("ZeroDivisionError", 10_000), 3: ("GiveUp", 10_000)
        }  # fmt: skip
        ask.runner.close()
        compact("answers", tmp_path)
    got = checkpointed("answers", parse=lambda value: value["n"], **options)(answer).map([1, 2, 3, 4], progress=False)
    assert (got[0], got[1], got[2].given_up, got[3]) == (1, 2, True, 4)
    assert called == [4]


def test_what_validate_raises_is_raised_with_the_value_in_the_error(counted: Counted, tmp_path: Path) -> None:
    """`ItemsFailed` holds the refusal; the value is read from `f.errors`."""
    ask = counted.ask(tmp_path, validate=refuses_two)
    with pytest.raises(checkpoint.ItemsFailed) as caught:
        ask.map(ITEMS, progress=False)
    assert [type(error) for error in caught.value.exceptions] == [RefusedValue]
    assert caught.value.results is not None
    assert caught.value.results[1].value["text"] == "20"


# --- parse reads what was paid for ----------------------------------------------------------------------------------


def number(value: dict[str, Any]) -> int:
    """What `parse` is given: reads the text."""
    return int(value["text"])


def number_but_two(value: dict[str, Any]) -> int:
    """The same; of the second item it raises."""
    if value["text"] == "20":
        raise LookupError("twenty")
    return int(value["text"])


def test_the_journal_holds_what_was_paid_for_and_parse_what_is_read(counted: Counted, tmp_path: Path) -> None:
    """On the first run and on a resumed one, by every way to read; the plain call is as ever."""
    for _ in range(2):
        ask = counted.ask(tmp_path, parse=number)
        assert ask.map(ITEMS, progress=False) == [10, 20, 30]
    assert counted.called == ITEMS
    assert [line["result"]["text"] for line in lines(tmp_path, "results")] == ["10", "20", "30"]
    assert [outcome.value for outcome in ask.stream(ITEMS, progress=False)] == [10, 20, 30]
    assert dict(ask.results) == {1: 10, 2: 20, 3: 30}
    assert ask.results[2] == 20
    assert dict(ask.results.of(None)) == dict(ask.results)
    assert ask.map(ITEMS, progress=False).to_dict() == {1: 10, 2: 20, 3: 30}
    assert ask.runner.get_result(1)["text"] == ask(1)["text"] == "10"


def test_an_edited_parser_costs_nothing(counted: Counted, tmp_path: Path) -> None:
    """It is no part of the fingerprint: nothing is refused or told, and nothing is called."""
    assert counted.ask(tmp_path, parse=number).map(ITEMS, progress=False) == [10, 20, 30]
    edited = counted.ask(tmp_path, parse=lambda value: value["text"] + "!", on_change="error")
    assert edited.plan(ITEMS).stale == edited.plan(ITEMS).calls == 0
    assert edited.map(ITEMS, progress=False) == ["10!", "20!", "30!"]
    assert counted.called == ITEMS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "options", "given"),
    [
        (tenfold, {}, {}),
        (tenfold, {}, {"workers": 2}),
        (tenfold, {}, {"workers": 1, "executor": "processes", "chunksize": 2}),
        (tenfolds, {"batch_size": 2}, {}),
    ],
    ids=["serial", "threads", "processes", "batches"],
)
def test_every_engine_parses(function: Any, options: dict[str, Any], given: dict[str, Any], tmp_path: Path) -> None:
    """In the driver, item by item; what travels to other processes knows nothing of it."""
    unpicklable = open(__file__)  # noqa: SIM115
    with unpicklable:
        parse = lambda value: (unpicklable.name, number(value))[1]  # noqa: E731
        ask = checkpointed("answers", checkpoint_dir=tmp_path, parse=parse, **options)(function)
        assert ask.map(ITEMS, progress=False, **given) == [10, 20, 30]
        assert sorted(outcome.value for outcome in ask.options(name="streamed").stream(ITEMS, **given)) == [10, 20, 30]


def test_coroutine_functions_and_methods_are_parsed(counted: Counted, tmp_path: Path) -> None:
    """A parser is a plain function of the value."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path, parse=number)(counted.answer)
    assert asyncio.run(ask.map(ITEMS, workers=2, progress=False)) == [10, 20, 30]

    class Model:
        times = 2

        @checkpointed("methods", checkpoint_dir=tmp_path, version=None, parse=lambda value: value + 1)
        def ask(self, n: int) -> int:
            return self.times * n

    assert Model().ask.map(ITEMS, progress=False) == [3, 5, 7]


def test_validate_judges_before_parse(counted: Counted, tmp_path: Path) -> None:
    """It sees what was paid for; what it refuses is never parsed."""
    parsed: list[Any] = []
    ask = counted.ask(tmp_path, validate=refuses_two, parse=lambda value: parsed.append(value["text"]))
    ask.map(ITEMS, return_exceptions=True, progress=False)
    assert set(parsed) == {"10", "30"}


@pytest.mark.parametrize("again", [False, True], ids=["fresh", "resumed"])
def test_what_cannot_be_parsed_is_a_failure_whose_value_is_kept(again: bool, counted: Counted, tmp_path: Path) -> None:
    """On the first run and on every later one, until the parser is mended; nothing is paid for meanwhile."""
    ask = counted.ask(tmp_path, parse=number_but_two)
    if again:
        ask.map(ITEMS, return_exceptions=True, progress=False)
    with pytest.raises(checkpoint.ItemsFailed, match=r"1 of 3 .* \(1 LookupError\); .* without a call$") as caught:
        ask.map(ITEMS, progress=False)
    (error,) = caught.value.exceptions
    assert type(error) is LookupError
    assert "item 2" in error.__notes__[0]
    assert "number_but_two" in error.__notes__[0]
    got = ask.map(ITEMS, return_exceptions=True, progress=False)
    assert [got[0], got[2]] == [10, 30]
    assert list(got.errors) == [2]
    for failure in (got[1], got.errors[2], ask.errors[2], dict(ask.errors)[2]):
        assert (failure.key, failure.type, failure.value["text"]) == (2, "LookupError", "20")
        assert failure.attempts == 1
        assert "number_but_two" in str(failure.traceback)
    assert [cause.type for cause in ask.errors.causes()] == ["LookupError"]
    assert len(ask.errors) == 1
    with pytest.raises(ItemError, match="item 2 failed: parse raised LookupError: twenty"):
        ask.results[2]
    assert ask.plan(ITEMS).calls == 0
    assert counted.ask(tmp_path, parse=number).map(ITEMS, progress=False) == [10, 20, 30]
    assert counted.called == ITEMS


@pytest.mark.parametrize("again", [False, True], ids=["fresh", "resumed"])
def test_a_stream_yields_what_parse_raised(again: bool, counted: Counted, tmp_path: Path) -> None:
    """As an outcome's error, of equal items too; and of one-shot input."""
    ask = counted.ask(tmp_path, parse=number_but_two)
    if again:
        ask.map(ITEMS, return_exceptions=True, progress=False)
    outcomes = list(ask.stream(iter([*ITEMS, 2]), progress=False, workers=2))
    failed = [outcome for outcome in outcomes if not outcome.ok]
    assert [outcome.key for outcome in failed] == [2, 2]
    assert len(outcomes) == 4
    assert all("twenty" in str(outcome.error) for outcome in failed)


def test_failures_of_parse_end_a_pass_like_others(counted: Counted, tmp_path: Path) -> None:
    """Who is answered nonsense need not pay for all of it."""
    ask = counted.ask(tmp_path, parse=lambda value: int("nonsense"))
    with pytest.raises(checkpoint.TooManyErrors):
        ask.map(range(300), progress=False)
    assert len(counted.called) == 100
    with pytest.raises(checkpoint.TooManyErrors):
        ask.map(range(300), progress=False, max_errors=5)
    assert len(counted.called) == 106


def test_a_value_that_parse_changes_is_on_disk_as_it_was(counted: Counted, tmp_path: Path) -> None:
    """Each reading decodes anew."""
    ask = counted.ask(tmp_path, parse=lambda value: value.pop("text"))
    assert ask.map(ITEMS, progress=False) == ask.map(ITEMS, progress=False) == ["10", "20", "30"]


def test_tables_are_of_what_parse_returns(counted: Counted, tmp_path: Path) -> None:
    """A row that it cannot read is one of a failure, in its place; what cannot be written is shown."""
    for package in ("pandas", "pyarrow", "polars"):
        pytest.importorskip(package)
    ask = counted.ask(tmp_path, parse=lambda value: {"n": number_but_two(value)})
    results = ask.map(ITEMS, return_exceptions=True, progress=False)
    frame = results.to_pandas(errors=True)
    assert frame["n"][0] == 10
    assert frame["n"].isna().tolist() == [False, True, False]
    assert frame["type"].fillna("").tolist() == ["", "LookupError", ""]
    assert ask.errors.to_pandas()[["key", "error"]].to_numpy().tolist() == [[2, "twenty"]]
    odd = counted.ask(tmp_path, parse=lambda value: object()).results.to_pandas()
    assert "object object" in odd["result"][0]


@pytest.mark.parametrize("parse", ["number", 3, Counted().answer], ids=["str", "int", "coroutine function"])
def test_what_cannot_parse_is_refused(parse: Any) -> None:
    """When it is given."""
    with pytest.raises(checkpoint.InvalidOption, match=r"parse is .*give a plain function"):
        checkpointed("answers", parse=parse)


# --- GiveUp ---------------------------------------------------------------------------------------------------------


def gives_up_two(n: int) -> int:
    """A call whose second item is refused for good."""
    if n == 2:
        raise GiveUp("refused")
    return n * 10


def gives_up_two_of(numbers: list[int]) -> list[Any]:
    """The same for batches: an exception stands in its item's place."""
    return [GiveUp("refused") if n == 2 else n * 10 for n in numbers]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "options", "given"),
    [
        (gives_up_two, {}, {}),
        (gives_up_two, {"retry": Retry(5, on=Exception, wait=0.0)}, {"workers": 2}),
        (gives_up_two, {}, {"workers": 1, "executor": "processes"}),
        (gives_up_two_of, {"batch_size": 3}, {}),
    ],
    ids=["serial", "threads and retries", "processes", "batches"],
)
def test_what_was_given_up_is_left_alone(
    function: Any, options: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    """The run that gives up raises; later ones do not call it, and do not raise: it stands in its place."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path, **options)(function)
    with pytest.raises(checkpoint.ItemsFailed) as caught:
        ask.map(ITEMS, progress=False, **given)
    assert [(type(error), str(error)) for error in caught.value.exceptions] == [(GiveUp, "refused")]
    assert ask.errors[2].given_up
    assert ask.errors[2].attempts == 1
    again = checkpointed("answers", checkpoint_dir=tmp_path, **options)(function)
    plan = again.plan([*ITEMS, 4])
    assert (plan.done, plan.given_up, plan.failed, plan.calls) == (2, 1, 0, 1)
    assert "1 given up" in str(plan)
    assert again.plan(ITEMS).calls == 0
    for items in (ITEMS, iter(ITEMS)):
        got = again.map(items, progress=False, **given)
        assert [got[0], got[2]] == [10, 30]
        assert str(got[1]) == "item 2 was given up: checkpoint.errors.GiveUp: refused"
    assert {outcome.key: outcome.ok for outcome in again.stream(ITEMS, progress=False)} == {1: True, 2: False, 3: True}


def counting(called: list[Any]) -> Any:
    """A function that notes its calls, and gives all of them up."""

    def ask(n: int) -> int:
        called.append(n)
        raise GiveUp(ValueError("no"))

    return ask


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({}, [2]),
        ({"version": "other"}, [2, 2]),
        ({"input": lambda n: n + 1}, [2, 2]),
    ],
    ids=["the same", "another version", "another input"],
)
def test_it_is_called_again_for_another_version_or_item(
    change: dict[str, Any], calls: list[int], tmp_path: Path
) -> None:
    """It is that item under that version which was given up."""
    called: list[Any] = []
    ask = checkpointed("answers", checkpoint_dir=tmp_path)(counting(called))
    ask.map([2], return_exceptions=True, progress=False)
    ask.options(**change).map([2], return_exceptions=True, progress=False)
    assert called == calls


def test_it_is_called_again_once_it_is_cleared(tmp_path: Path) -> None:
    """`f.clear([key])` forgets the failure."""
    called: list[Any] = []
    ask = checkpointed("answers", checkpoint_dir=tmp_path)(counting(called))
    ask.map([2, 3], return_exceptions=True, progress=False)
    ask.clear([2])
    ask.map([2, 3], return_exceptions=True, progress=False)
    assert called == [2, 3, 2]


def test_validate_gives_up_what_was_paid_for(counted: Counted, tmp_path: Path) -> None:
    """In the call, and in a later run of what was kept: without a call, and raised by that run."""

    def final(value: dict[str, Any]) -> None:
        if value["text"] == "20":
            raise GiveUp("for good")

    counted.ask(tmp_path, validate=refuses_two).map(ITEMS, return_exceptions=True, progress=False)
    ask = counted.ask(tmp_path, validate=final)
    assert ask.plan(ITEMS).given_up == 1
    with pytest.raises(checkpoint.ItemsFailed, match="1 of 3 items failed"):
        ask.map(ITEMS, progress=False)
    ask.map([*ITEMS, 4], progress=False)
    assert counted.called == [*ITEMS, 4]
    assert ask.errors[2].value["text"] == "20"
    fresh = counted.ask(tmp_path / "fresh", validate=final)
    fresh.map(ITEMS, return_exceptions=True, progress=False)
    assert (fresh.errors[2].given_up, fresh.errors[2].value["text"]) == (True, "20")


def test_parse_gives_up(counted: Counted, tmp_path: Path) -> None:
    """What it reads so stands as a failure; only the run that made the item raises it."""

    def final(value: dict[str, Any]) -> str:
        if value["text"] == "20":
            raise GiveUp("unreadable")
        return str(value["text"])

    ask = counted.ask(tmp_path, parse=final)
    with pytest.raises(checkpoint.ItemsFailed):
        ask.map(ITEMS, progress=False)
    got = ask.map(ITEMS, progress=False)
    assert [got[0], got[1].message, got[1].given_up] == ["10", "unreadable", True]
    assert ask.errors[2].given_up


def test_by_hand_it_is_saved_as_an_error(tmp_path: Path) -> None:
    """And is not handed out again."""
    with checkpoint.CheckpointedRunner("by hand", tmp_path) as runner:
        for item in runner.iterate(ITEMS):
            runner.save_error(item, GiveUp("no")) if item == 2 else runner.save_error(item, "later")
        assert list(runner.iterate(ITEMS)) == [1, 3]


def test_it_pickles() -> None:
    """With its reason."""
    error = pickle.loads(pickle.dumps(GiveUp("refused")))
    assert (type(error), str(error)) == (GiveUp, "refused")


def test_it_is_told_where_errors_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`errors` and `show` say that they were given up."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path)(gives_up_two)
    ask.map(ITEMS, return_exceptions=True, progress=False)
    assert "given up" in str(ask.errors)
    for command in ("errors", "show"):
        main([command, "answers", "--dir", str(tmp_path)])
        assert ", given up" in capsys.readouterr().out


# --- what comes from elsewhere --------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a result is built as."""

    text: str


def answers(n: int) -> Answer:
    """The function whose results come from elsewhere."""
    return Answer(f"{n}0")


@pytest.mark.parametrize("version", [None, "v"])
def test_what_is_saved_by_hand_is_as_if_computed(version: str | None, tmp_path: Path) -> None:
    """Under the function's version, its code and its class: the records say the same but for item and call."""
    ask = checkpointed("answers", checkpoint_dir=tmp_path, version=version)(answers)
    ask.runner.save_result(1, Answer("10"))
    ask.runner.save_error(2, "lost")
    assert ask.plan(ITEMS).calls == 2
    assert ask.map(ITEMS, progress=False) == [Answer("10"), Answer("20"), Answer("30")]
    ask.runner.save_result(4, Answer("40"))
    records = lines(tmp_path, "results")
    assert len({(line.get("version"), line["code"], line["schema"]) for line in records}) == 1
    assert "detail" in records[0]
    assert lines(tmp_path, "errors")[0]["code"] == records[0]["code"]
    edited = checkpointed("answers", checkpoint_dir=tmp_path, version=version)(lambda n: Answer(str(n * 10)))
    assert edited.plan([1, 4]).stale == 2
