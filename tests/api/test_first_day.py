"""The law of the first day: what a newcomer looks at, types and misreads says what to do, and shows nothing of ours."""

from __future__ import annotations

import inspect
import logging
import pickle
import pydoc
import traceback
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import checkpoint
from checkpoint import (
    CheckpointedRunner,
    CheckpointError,
    FunctionChanged,
    InvalidOption,
    ItemsFailed,
    RefusedValue,
    checkpointed,
)
from checkpoint.api.options import PassOptions
from checkpoint.reporting.causes import causes_of

METHODS = (
    "map",
    "stream",
    "one",
    "plan",
    "results",
    "errors",
    "unsaved",
    "clear",
    "accept",
    "options",
    "seed",
    "runner",
)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory of its own."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))


@checkpointed("by_name", key="id")
def by_name(doc: dict[str, int]) -> float:
    """Divide by it."""
    return 1 / doc["id"]


def job(prompt: str) -> Any:
    """A function that reads a prompt."""

    @checkpointed("prompted")
    def ask(question: str) -> str:
        return prompt + question

    return ask


def fails() -> Any:
    """Items that fail."""
    return checkpointed("fails")(lambda n: 1 / n).map([0, 1], progress=False)


def fails_on_threads() -> Any:
    """Items that fail where workers call."""
    return checkpointed("fails")(lambda n: 1 / n).map([0, 1], workers=2, progress=False)


def changed() -> Any:
    """A prompt that was edited."""
    job("Shortly, in a few words: ").map(["why?"], progress=False)
    return job("At length, in many words: ").map(["why?"], progress=False)


def two_of_a_key() -> Any:
    """A plan of items that are told apart by nothing."""
    return checkpointed("keys", key="id")(lambda doc: 1).plan([{"id": 1, "n": 1}, {"id": 1, "n": 2}])


@pytest.mark.parametrize("way", [fails, fails_on_threads, changed, two_of_a_key])
def test_a_traceback_shows_the_users_frames_only(way: Any) -> None:
    """The line that called us is the last one; nothing of this library, nor of what it uses, stands below."""
    with pytest.raises(CheckpointError) as caught:
        way()
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert {frame.filename for frame in frames} == {__file__}
    assert frames[-1].name == way.__name__


def test_what_an_error_was_raised_from_keeps_its_own_frames() -> None:
    """A fault of ours, or of the user's code, can still be found."""
    with pytest.raises(ZeroDivisionError) as caught:
        checkpointed("keyed", key=lambda n: 1 / n)(lambda n: n).map([0], progress=False)
    assert any("checkpoint" in frame.filename for frame in traceback.extract_tb(caught.value.__traceback__))


def test_help_and_dir_name_the_methods() -> None:
    """Those of a function with a docstring, which stays what it was, and of one without; bound ones too."""

    class Scorer:
        @checkpointed("scores", version=1)
        def score(self, n: int) -> int:
            return n

    for function in (by_name, job("x"), Scorer().score):
        assert set(METHODS) <= set(dir(function))
    for function in (by_name, job("x")):
        assert ".map(items)" in pydoc.plain(pydoc.render_doc(function))
    assert by_name.__doc__ == by_name.__wrapped__.__doc__ == "Divide by it."
    assert type(pickle.loads(pickle.dumps(by_name.__doc__))) is str
    assert "Divide by it." in pydoc.plain(pydoc.render_doc(by_name))


def test_help_of_map_names_every_option() -> None:
    """Each with what it does."""
    said = inspect.getdoc(by_name.map) or ""
    assert [name for name in PassOptions.__annotations__ if name not in said] == []


def test_a_function_is_mocked_with_its_methods() -> None:
    """An autospec has what the function has, and nothing else."""
    double = mock.create_autospec(by_name)
    double.map([1], progress=False)
    with pytest.raises(AttributeError):
        double.mapp([1])


def test_the_signature_and_the_version_are_told() -> None:
    """Of the decorator its arguments; of the package its version, which is that of its metadata."""
    assert list(inspect.signature(checkpointed).parameters)[:3] == ["name", "key", "checkpoint_dir"]
    assert checkpoint.__version__[0].isdigit()


@pytest.mark.parametrize("clear", [by_name.clear, lambda keys: CheckpointedRunner("by_name").clear(keys)])
def test_a_variable_that_is_none_clears_nothing(clear: Any) -> None:
    """`clear()` forgets everything, and whoever means that writes it."""
    by_name.map([{"id": 1}], progress=False)
    with pytest.raises(InvalidOption, match=r"clear\(\) to forget everything"):
        clear(None)
    assert len(by_name.results) == 1
    by_name.clear()
    assert len(by_name.results) == 0


def test_results_errors_and_runners_pickle() -> None:
    """They read the same records in another process, by version too; a runner of a function is that function's."""
    by_name.map([{"id": 0}, {"id": 2}], progress=False, return_exceptions=True)
    for held in (by_name.results, by_name.errors):
        back = pickle.loads(pickle.dumps(held))
        assert type(back) is type(held)
        assert dict(back) == dict(held) != {}
    assert pickle.loads(pickle.dumps(by_name.runner)) is by_name.runner
    with CheckpointedRunner("by hand", version={"model": "small"}) as runner:
        runner.save_result("a", (1, 2))
        with pickle.loads(pickle.dumps(runner)) as again:
            assert again.get_all_results() == {"a": (1, 2)}
            assert again.records.version == runner.records.version
    named = by_name.options(version="new")
    assert dict(pickle.loads(pickle.dumps(named.results.of(None)))) == {2: 0.5}


LONG = [
    (lambda: ValueError("x" * 20_000_000), "a message of 20 MB"),
    (lambda: _chained("a" * 3_000_000, "b" * 3_000_000), "messages of causes"),
    (lambda: ValueError("\n".join(map(str, range(2_000_000)))), "a message of many lines"),
]


def _chained(first: str, second: str) -> Exception:
    try:
        raise ValueError(first)
    except ValueError as cause:
        try:
            raise KeyError(second) from cause
        except KeyError as error:
            return error


@pytest.mark.slow
@pytest.mark.parametrize(("make", "reason"), LONG, ids=[reason for _, reason in LONG])
def test_what_a_failure_leaves_on_disk_has_a_bound(make: Any, reason: str, tmp_path: Path) -> None:
    """A message is cut, and says how long it was; it stands there once, and a line of it in the traceback."""

    @checkpointed("long")
    def fail(n: int) -> int:
        raise make()

    fail.map([1], progress=False, return_exceptions=True)
    assert (tmp_path / "long_errors.jsonl").stat().st_size < 200_000
    error = fail.errors[1]
    assert "(cut; it had " in error.message
    assert error.traceback is not None
    assert "in fail" in error.traceback


def test_a_long_message_by_hand_is_cut_too(tmp_path: Path) -> None:
    """As it is where the function raises."""
    with CheckpointedRunner("hand", tmp_path) as runner:
        runner.save_error(1, "x" * 1_000_000)
    assert (tmp_path / "hand_errors.jsonl").stat().st_size < 20_000


def test_numbers_of_numpy_and_labels_of_any_kind_are_taken() -> None:
    """A configuration often holds numpy's scalars; they are the numbers that they hold."""
    plain = checkpointed("numbers", version={"k": 3, "rates": [0.5]})(lambda n: n)
    plain.map([1, 2], workers=np.int64(2), desc=5, chunksize=np.int32(1))
    same = checkpointed("numbers", version={"k": np.int64(3), "rates": [np.float64(0.5)]})(lambda n: n)
    assert same.plan([1, 2]).done == 2
    assert [version.label for version in same.results.versions] == [{"k": 3, "rates": [0.5]}]
    assert CheckpointedRunner("numbers", version={"k": np.int64(3), "rates": [0.5]}).is_completed(1)


def test_the_repr_of_a_plan_is_its_table() -> None:
    """So that a notebook's last line, a debugger and a log show it."""
    plan = checkpointed("planned")(lambda n: n).plan([1, 2])
    assert repr(plan) == str(plan)


def test_the_place_of_a_refused_value_is_in_the_users_validate() -> None:
    """Where it raises; where it only says no, its name is all that there is."""

    def check(value: int) -> bool:
        raise ValueError("too small")

    refused = checkpointed("refused", validate=check)(lambda n: n)
    refused.map([1], progress=False, return_exceptions=True)
    (cause,) = refused.errors.causes()
    assert cause.where.startswith("test_first_day.py:")
    assert cause.where.endswith("in check")
    with pytest.raises(ItemsFailed) as caught:
        checkpointed("denied", validate=lambda value: False)(lambda n: n).map([1], progress=False)
    assert isinstance(caught.value.exceptions[0], RefusedValue)


def test_a_place_in_a_notebook_is_a_line_of_a_cell() -> None:
    """Its file has a number for its name, which is another one after each edit."""

    def cause_at(path: str) -> str:
        source = compile("def f():\n    return 1 / 0\nf()", path, "exec")
        failing = checkpointed("cells")(lambda n: exec(source))
        failing.clear()
        failing.map([1], progress=False, return_exceptions=True)
        return causes_of(failing.errors.values())[0].where

    assert cause_at("/tmp/ipykernel_123/4567890.py") == "line 2 of a cell in f"
    assert cause_at("<ipython-input-3-abcdef>") == "line 2 of a cell in f"
    assert cause_at("/home/me/job.py") == "job.py:2 in f"


def test_a_changed_function_says_each_way_on() -> None:
    """And that nothing was run."""
    with pytest.raises(FunctionChanged, match="Nothing was run") as caught:
        changed()
    for way in ("checkpoint accept prompted", 'on_change="recompute"', "version=", "ignore="):
        assert way in str(caught.value)


def test_results_saved_under_another_key_are_told_in_the_first_run(caplog: pytest.LogCaptureFixture) -> None:
    """Else they would be computed, and saved, in every run."""
    caplog.set_level(logging.WARNING, logger="checkpoint")
    with CheckpointedRunner("other keys") as runner:
        for item in runner.iterate([{"id": 1}], key_fn="id"):
            runner.save_result(f"doc-{item['id']}", 1)
    assert "saved under keys that are of no item" in caplog.text


def test_an_answer_of_an_untyped_model_gives_one_piece_of_advice(caplog: pytest.LogCaptureFixture) -> None:
    """To annotate the class of the whole names the classes of its parts, too."""
    pydantic = pytest.importorskip("pydantic")
    choice = pydantic.create_model("Choice", text=(str, ...))
    completion = pydantic.create_model("Completion", choices=(list[choice], ...))  # type: ignore[valid-type]
    caplog.set_level(logging.WARNING, logger="checkpoint")
    checkpointed("untyped")(lambda n: completion(choices=[choice(text="hi")])).map([1], progress=False)
    (advice,) = [record.getMessage() for record in caplog.records]
    assert "-> Completion" in advice
    assert "Choice" not in advice


def test_a_ctrl_c_shows_the_users_frames_only() -> None:
    """As any error that ends a map."""

    @checkpointed("interrupted")
    def interrupt(n: int) -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interrupt.map([1], progress=False)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert {frame.filename for frame in frames} == {__file__}
