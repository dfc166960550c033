"""Laws of what changed: versions keep results apart, other values are refused, other code is told, nothing is lost."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener

import checkpoint
from checkpoint import CheckpointedRunner, FunctionChanged, ItemsFailed, checkpointed
from checkpoint.storage.writer import Writer

SOURCE = Path(checkpoint.__file__).parent.parent
RESULTS = Path("checkpoints/n_results.jsonl")
META = Path("checkpoints/n_meta.json")


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    CALLS.clear()


def run_script(script: str) -> str:
    """What a Python program prints and logs, run in the current directory."""
    Path("script.py").write_text(textwrap.dedent(script))
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return (done.stdout + done.stderr).strip()


CALLS: list[Any] = []


def called() -> list[Any]:
    """The calls since the last time."""
    taken = CALLS[:]
    CALLS.clear()
    return taken


def by_value(model: str, **options: Any) -> Any:
    """A function that reads `model`."""

    def ask(n: int) -> str:
        CALLS.append((model, n))
        return f"{model}{n}"

    return checkpointed("n", **options)(ask)


def first(n: int) -> str:
    """What `by_code` makes of one."""
    CALLS.append(("first", n))
    return f"first{n}"


def second(n: int) -> str:
    """What it makes of two."""
    CALLS.append(("second", n))
    return f"second{n}"


def by_code(code: str, **options: Any) -> Any:
    """A function whose code is one or another."""
    return checkpointed("n", **options)({"first": first, "second": second}[code])


def lines() -> list[dict[str, Any]]:
    """The records of results."""
    return [json.loads(line) for line in RESULTS.read_bytes().splitlines()]


# --- other values ----------------------------------------------------------------------------------------------------


def test_a_loop_over_models_around_a_closure_never_returns_the_others_results() -> None:
    """It is an error before anything is called, which shows old → new and the version to name."""
    assert by_value("small").map([1, 2], progress=False) == ["small1", "small2"]
    called()
    with pytest.raises(FunctionChanged, match=r"(?s)model: 'small' → 'large'.*version=model") as caught:
        by_value("large").map([1, 3], progress=False)
    assert (called(), len(lines())) == ([], 2)
    assert caught.value.count == 2
    assert caught.value.changes == ("model: 'small' → 'large'",)
    assert isinstance(caught.value, ValueError)
    assert by_value("small").map([1, 2, 3], progress=False) == ["small1", "small2", "small3"]
    assert called() == [("small", 3)]


def test_with_the_version_that_was_named_each_has_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is said of the function: each version was computed by what it is."""
    got = [by_value(model, version=model).map([1], progress=False)[0] for model in ("a", "b", "a")]
    assert got == ["a1", "b1", "a1"]
    assert called() == [("a", 1), ("b", 1)]
    assert caplog.text == ""


@pytest.mark.slow
def test_a_loop_variable_of_a_module_is_told_too() -> None:
    """Where it is global, and the function is made once: it reads what the variable is by then."""
    told = run_script(
        """
        from checkpoint import FunctionChanged, checkpointed
        model = None
        @checkpointed("n")
        def ask(n):
            return f"{model}{n}"
        for model in ("a", "b"):
            try:
                print(ask.map([1], progress=False))
            except FunctionChanged as error:
                print(error.changes)
        """
    )
    assert told.splitlines() == ["Results(['a1'])", "(\"model: 'a' → 'b'\",)"]


def test_coroutine_functions_and_streams_are_held_to_the_same_law() -> None:
    """One-shot input too: before the first item is drawn."""

    def make(model: str) -> Any:
        @checkpointed("n")
        async def ask(n: int) -> str:
            return f"{model}{n}"

        return ask

    assert asyncio.run(make("a").map([1], progress=False)) == ["a1"]
    with pytest.raises(FunctionChanged):
        asyncio.run(make("b").map([1], progress=False))
    by_value("a", checkpoint_dir="other").map([1], progress=False)
    drawn = iter([1, 2])
    with pytest.raises(FunctionChanged):
        next(by_value("b", checkpoint_dir="other").stream(drawn, progress=False))
    assert list(drawn) == [1, 2]


class Scorer:
    """A class with a mapped method."""

    def __init__(self, bonus: int) -> None:
        self.bonus = bonus

    @checkpointed("n")
    def score(self, n: int) -> int:
        """Adds it."""
        CALLS.append((self.bonus, n))
        return n + self.bonus


def test_methods_of_two_instances_never_share_results() -> None:
    """By version where the method is decorated; where a bound method is given, the other one's results are refused."""
    assert [Scorer(bonus).score.map([1], progress=False)[0] for bonus in (5, 3, 5)] == [6, 4, 6]
    assert called() == [(5, 1), (3, 1)]

    class Plain:
        def __init__(self, bonus: int) -> None:
            self.bonus = bonus

        def score(self, n: int) -> int:
            return n + self.bonus

    assert checkpointed("plain")(Plain(5).score).map([1], progress=False) == [6]
    with pytest.raises(FunctionChanged, match=r"self\.bonus: 5 → 3"):
        checkpointed("plain")(Plain(3).score).map([1], progress=False)


def test_a_container_that_is_changed_between_passes_is_another_value() -> None:
    """In place or not."""
    config = {"model": "a"}
    f = checkpointed("n")(lambda n: f"{config['model']}{n}")
    assert f.map([1], progress=False) == ["a1"]
    config["model"] = "b"
    with pytest.raises(FunctionChanged, match=r'config\["model"\]: \'a\' → \'b\''):
        f.map([1], progress=False)


def test_what_a_function_changes_as_it_runs_is_no_value() -> None:
    """In ways that the code shows, and in ways that only a pass shows."""
    seen: list[int] = []
    counts = {"n": 0}

    def count(where: dict[str, int]) -> None:
        where["n"] += 1

    def f(n: int) -> int:
        seen.append(n)
        count(counts)
        return n

    mapped = checkpointed("n")(f)
    for most in (2, 4, 6):
        assert len(mapped.map(range(most), progress=False)) == most
    with pytest.raises(ItemsFailed):
        mapped.options(name="fails", validate=lambda n: False).map([7], progress=False)
    assert mapped.map(range(7), progress=False)[6] == 6
    assert mapped.options(name="fails").map([7, 8], progress=False) == [7, 8]  # what was refused is kept
    assert counts["n"] == 9


def test_a_variable_that_changes_during_a_pass_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """The results are taken to depend on it, and nobody can say which does on what."""
    model = "a"

    def switch() -> None:
        nonlocal model
        model = "b"

    hidden = iter([switch])

    def f(n: int) -> str:
        next(hidden)()
        return f"{model}{n}"

    mapped = checkpointed("n")(f)
    mapped.map([1], progress=False)
    assert "model: 'a' → 'b'" in caplog.text
    with pytest.raises(FunctionChanged):
        mapped.map([1], progress=False)


# --- other code ------------------------------------------------------------------------------------------------------


def test_changed_code_is_told_once_in_a_process_and_its_results_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    """With what changed and how many results precede it, before anything is called; the way back is a change too."""
    by_code("first").map([1, 2], progress=False)
    called()
    caplog.set_level(logging.WARNING)
    assert by_code("second").map([1, 2, 3], progress=False) == ["first1", "first2", "second3"]
    assert called() == [("second", 3)]
    (told,) = [record.getMessage() for record in caplog.records]
    assert "2 results precede it" in told
    assert "second() in test_versions.py" in told
    caplog.clear()
    for _ in range(2):
        by_code("second").map([1, 2, 3, 4], progress=False)
    assert caplog.text == ""
    by_code("first").map([1, 5], progress=False)
    assert "2 results precede it" in caplog.text


@pytest.mark.slow
def test_each_process_tells_it_until_somebody_decides() -> None:
    """A comment is no change; and each edit is told with what was edited and how many results are of something else."""
    script = """
        from checkpoint import checkpointed
        def prompt(n):
            return {prompt}
        @checkpointed("n")
        def ask(n):
            return prompt(n) # {comment}
        {accepts}
        print(list(ask.map(range({most}), progress=False)))
        """
    runs = [
        ("n", "", 2, "[0, 1]", None, "first"),
        ("n", "told", 3, "[0, 1, 2]", None, "a comment"),
        ("n + 10", "", 4, "[0, 1, 2, 13]", "3 results precede it", "an edit"),
        ("n + 10", "more", 5, "[0, 1, 2, 13, 14]", "3 results precede it", "nobody has decided"),
        ("n + 20", "", 5, "[0, 1, 2, 13, 14]", "5 results precede it", "another edit, and nothing to run"),
        ("n + 20", "", 6, "[0, 1, 2, 13, 14, 25]", "5 results precede it", "nobody has decided"),
        ("n", "", 6, "[0, 1, 2, 13, 14, 25]", "3 results precede it", "back to what it was: three are of the edits"),
        ("n", "", 6, "accepted 3\n[0, 1, 2, 13, 14, 25]", None, "somebody decides"),
        ("n", "", 7, "[0, 1, 2, 13, 14, 25, 6]", None, "that was decided"),
        ("n + 20", "", 7, "[0, 1, 2, 13, 14, 25, 6]", "6 results precede it", "for other code it was not"),
    ]
    for prompt, comment, most, results, says, reason in runs:
        accepts = 'print("accepted", ask.accept())' if "accepted" in results else ""
        told = run_script(script.format(prompt=prompt, comment=comment, most=most, accepts=accepts))
        assert results in told, reason
        assert ("prompt() in script.py" in told) == (says is not None), reason
        assert (says or "") in told, reason
    codes = [line["code"] for line in lines() if "key" in line]
    assert [line["accepts"] for line in lines() if "accepts" in line] == list(dict.fromkeys(codes))[1:]


ON_CHANGE = [
    (None, "code", ["first1"], "they are kept", "told and kept"),
    ("keep", "code", ["first1"], "they are kept", "decided: said at INFO alone"),
    ("recompute", "code", ["second1"], "computed anew", "computed anew"),
    ("error", "code", FunctionChanged, r"(?s)changed since 1 result was computed.*accept n \S+", "refused"),
    (None, "value", FunctionChanged, "version=model", "other values are refused"),
    ("keep", "value", ["a1"], "they are kept", "unless they are said not to matter"),
    ("recompute", "value", ["b1"], "computed anew", "or that the new ones count"),
    ("error", "value", FunctionChanged, "version=model", "refused"),
]


@pytest.mark.parametrize(("on_change", "what", "want", "says", "reason"), ON_CHANGE, ids=[row[-1] for row in ON_CHANGE])
def test_on_change_decides(
    on_change: Any, what: str, want: Any, says: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """For one-shot input too."""
    make: Callable[..., Any] = by_code if what == "code" else by_value
    old, new = ("first", "second") if what == "code" else ("a", "b")
    caplog.set_level(logging.INFO if on_change == "keep" else logging.WARNING)
    for shape in (list, iter):
        options = {"checkpoint_dir": shape.__name__}
        make(old, **options).map([1], progress=False)
        called()
        caplog.clear()
        changed = make(new, on_change=on_change, **options)
        if want is FunctionChanged:
            with pytest.raises(FunctionChanged, match=says):
                changed.map(shape([1]), progress=False)
            assert called() == []
        else:
            assert changed.map(shape([1]), progress=False) == want
            assert says in caplog.text
            assert len(called()) == (on_change == "recompute")


def test_recompute_runs_what_is_stale_once_and_deletes_nothing() -> None:
    """What the code that is there has computed is done; old lines stay in the file."""
    by_code("first").map(range(3), progress=False)
    by_code("second").map(range(5), progress=False)
    called()
    again = by_code("second", on_change="recompute")
    assert again.map(range(5), progress=False) == [f"second{n}" for n in range(5)]
    assert sorted(called()) == [("second", n) for n in range(3)]
    assert again.map(range(5), progress=False) == [f"second{n}" for n in range(5)]
    assert list(again.stream(iter([0, 0]), progress=False))[1].value == "second0"
    assert called() == []
    assert [line["result"] for line in lines()[:3]] == ["first0", "first1", "first2"]
    assert by_code("second", on_change="error").map(range(5), progress=False)[0] == "second0"


def test_a_recomputation_that_fails_is_tried_again_and_never_taken_for_done() -> None:
    """What failed under the old code is no failure of the new one; a value kept aside is not paid for twice."""
    good, fails = {"n": True}, {"n": False}

    def old(n: int) -> Any:
        if fails["n"]:
            raise OSError("down")
        return n

    def new(n: int) -> Any:
        CALLS.append(n)
        return n if good["n"] else object()

    fails["n"] = True
    checkpointed("n", on_change="keep")(old).map([1], progress=False, return_exceptions=True)
    fails["n"] = False
    assert checkpointed("n", on_change="keep")(old).map([1], progress=False) == [1]
    mapped = checkpointed("n", on_change="recompute")(new)
    assert mapped.map([1], progress=False, retry_failed=False) == [1]
    assert called() == [1]
    good["n"] = False
    for _ in range(3):
        with pytest.raises(ItemsFailed):
            mapped.map([1], progress=False)
    assert called() == [1]


# --- what is on disk -------------------------------------------------------------------------------------------------


def test_every_record_of_a_pass_carries_one_digest_and_the_first_one_explains_it() -> None:
    """Results, failures, and values kept aside; in each journal, and meta repeats it; nothing secret is there."""
    secret, prompt = "abc", "Summarize the following document in one sentence, and do not invent anything."

    @checkpointed("n")
    def f(n: int) -> Any:
        assert secret + prompt
        return object() if n == 2 else 1 // n

    f.map([0, 1, 2], progress=False, return_exceptions=True)
    records = [*lines(), *map(json.loads, Path("checkpoints/n_errors.jsonl").read_bytes().splitlines())]
    records += map(json.loads, Path("checkpoints/.n_unsaved.jsonl").read_bytes().splitlines())
    assert len(records) == 4
    (digest,) = {record["code"] for record in records}
    assert list(lines()[0]).index("code") == list(lines()[0]).index("timestamp") + 1
    codes = json.loads(META.read_bytes())["codes"]
    assert list(codes) == [digest]
    assert [records[0].get("detail"), records[1].get("detail")] == [codes[digest]] * 2
    assert ["detail" in record for record in records] == [True, True, False, False]
    assert list(codes[digest]["parts"]) == [
        "test_every_record_of_a_pass_carries_one_digest_and_the_first_one_explains_it.f() in test_versions.py"
    ]
    assert set(codes[digest]["values"]) == {"secret", "prompt"}
    text = META.read_text() + RESULTS.read_text()
    assert "abc" not in text
    assert "Summarize" not in text


LOST = [
    ("missing", lambda: META.unlink()),
    ("empty", lambda: META.write_text("")),
    ("garbage", lambda: META.write_text('{"codes": [1, 2], "versions": 3}')),
    ("stale", lambda: META.write_text('{"started_at": "x", "codes": {}}')),
    ("damaged", lambda: META.write_text(META.read_text().replace('"model"', '"mode"').replace("() in ", "() in x"))),
]


@pytest.mark.parametrize(("state", "spoil"), LOST, ids=[state for state, _ in LOST])
def test_without_meta_it_is_still_told_that_something_changed(
    state: str, spoil: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Code is told and kept, another value is refused by its name, and what is unchanged goes on."""
    by_value("a").map([1, 2], progress=False)
    by_value("a").runner.close()
    spoil()
    assert by_value("a").map([1, 2], progress=False) == ["a1", "a2"]
    with pytest.raises(FunctionChanged, match="model: 'a' → 'b'"):
        by_value("b").map([1], progress=False)
    caplog.clear()
    assert by_code("second").map([1, 3], progress=False) == ["a1", "second3"]
    assert "2 results precede it" in caplog.text
    assert json.loads(META.read_bytes())["codes"]


def test_old_records_and_those_of_other_algorithms_are_unknown_and_never_changed(
    make: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without code, with a digest of another algorithm or Python, or with anything else in its place."""
    runner = make("n", Path("checkpoints"), version=None)
    runner.save_result(1, "old")
    runner.close()
    for number, code in enumerate(["2-abc", "1-000000000000-000000000000", 5, {"a": 1}]):
        with RESULTS.open("a") as file:
            file.write(json.dumps({"key": 10 + number, "result": "other", "code": code}) + "\n")
    f = by_value("a", on_change="error")
    assert f.map([1, 10, 11, 12, 13], progress=False) == ["old"] + ["other"] * 4
    assert by_value("a", on_change="recompute").map([1, 2], progress=False) == ["old", "a2"]
    assert caplog.text == ""


def test_a_runner_by_hand_has_no_fingerprint() -> None:
    """What is saved by that of a function counts as what the function computed."""
    with CheckpointedRunner("n") as runner:
        runner.save_result(1, 1)
    f = by_value("a")
    f.map([2], progress=False)
    f.runner.save_result(3, 3)
    assert ["code" in line for line in lines()] == [False, True, True]


def test_the_field_costs_nothing_per_item(monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta is written once for a fingerprint, however many items there are."""
    written: list[int] = []
    write = Writer.write_meta

    def counted(self: Writer) -> None:
        if self is f.runner.records.store.writer:  # and not one that another test has left
            written.append(1)
        write(self)

    f = by_value("a")
    monkeypatch.setattr(Writer, "write_meta", counted)
    monkeypatch.setattr("checkpoint.storage.writer._META_EVERY", math.inf)  # and not because time goes by
    f.map(range(50), progress=False)
    few = len(written)
    f.map(range(5_000), progress=False)
    assert len(written) - few <= few


@pytest.mark.slow
def test_what_another_process_computes_meanwhile_is_held_to_the_law_too() -> None:
    """It has finished under another value after the items were keyed: its results are not returned."""
    other = """
        import sys; sys.path[:0] = {tests!r}
        import test_versions
        test_versions.by_value("other").map([1, 2], progress=False)
        """
    ran: list[str] = []

    def key(n: int) -> int:
        if not ran:
            ran.append(run_script(other.format(tests=[str(part) for part in Path(__file__).parents[:2]])))
        return n

    with pytest.raises(FunctionChanged, match="'other' → 'mine'"):
        by_value("mine", key=key).map([1, 3], progress=False)
    assert called() == []


def test_codes_are_told_apart_by_version() -> None:
    """What one version's results were computed by says nothing of another's; clear() forgets it all."""
    for bonus in (1, 2):
        Scorer(bonus).score.options(checkpoint_dir="checkpoints").map([1], progress=False)
    assert len({line["code"] for line in lines()}) == 1
    assert ["detail" in line for line in lines()] == [True, False]
    by_value("a").map([1], progress=False)
    f = by_value("b")
    with pytest.raises(FunctionChanged):
        f.map([1], progress=False)
    f.clear([1])
    assert f.map([1], progress=False) == ["b1"]
    f.clear()
    assert by_value("c").map([1], progress=False) == ["c1"]


@pytest.mark.slow
def test_meta_explains_a_hundred_fingerprints_and_no_more() -> None:
    """The last ones."""
    for number in range(105):
        by_value(f"model {number}", on_change="recompute").map([1], progress=False)
    codes = json.loads(META.read_bytes())["codes"]
    assert len(codes) == 100
    assert "'model 104'" in json.dumps(codes)
    assert "'model 4'" not in json.dumps(codes)
    assert by_value("model 3", on_change="recompute").map([1], progress=False) == ["model 31"]
