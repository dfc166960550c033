"""Laws of deciding: what changed is told with each way out, and what was accepted counts, everywhere and for good."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from checkpoint import (
    CheckpointedRunner,
    FunctionChanged,
    InvalidFunction,
    InvalidOption,
    UnencodableValue,
    checkpointed,
)
from checkpoint.cli import main
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact
from checkpoint.provenance.fingerprint import fingerprint

SOURCE = Path(checkpoint.__file__).parent.parent
OLD = Path(__file__).parents[1] / "data" / "written_by_algorithm_1"
RESULTS = Path("checkpoints/n_results.jsonl")


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    CALLS.clear()


CALLS: list[Any] = []


def called() -> list[Any]:
    """The calls since the last time."""
    taken = CALLS[:]
    CALLS.clear()
    return taken


def asks(prompt: str, **options: Any) -> Any:
    """A function that reads a prompt."""

    def ask(n: int) -> str:
        CALLS.append((prompt, n))
        return f"{prompt}{n}"

    return checkpointed("n", **options)(ask)


def mapped(function: Any, most: int = 2) -> list[Any]:
    """The results of the first items."""
    return list(function.map(range(most), progress=False))


def lines(path: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of a journal."""
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def command_in(text: str) -> list[str]:
    """The arguments of the command that a message tells to copy."""
    (command,) = re.findall(r"^ +checkpoint (accept .*?)  #", text, re.M)
    return shlex.split(command)


def run_job(directory: Path, script: str = "job.py", *arguments: str) -> tuple[str, str]:
    """What a program of its own prints, and what it says on standard error."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, script, *arguments], cwd=directory, capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


# --- what a message says ---------------------------------------------------------------------------------------------


def test_a_changed_value_is_an_error_with_three_lines_to_copy() -> None:
    """The old results are right; they are to be replaced; or both are kept: and `ignore=` is named."""
    mapped(asks("a"))
    with pytest.raises(FunctionChanged, match="prompt: 'a' → 'b'") as caught:
        mapped(asks("b"))
    text = str(caught.value)
    to_copy = [line.strip().split("  #")[0].strip() for line in text.splitlines() if "  # " in line]
    assert to_copy[1:] == ['on_change="recompute"', "version=prompt", "ignore='prompt'"]
    assert to_copy[0].startswith("checkpoint accept n ")
    assert "ignore='prompt'" in text
    assert text.index("checkpoint accept") < text.index("version=")
    assert called() == [("a", 0), ("a", 1)]


def create(n: int, temperature: float) -> str:
    """A call that takes a keyword argument."""
    return f"{n} {temperature}"


def inline(first: int, **options: Any) -> Any:
    """A function whose literals differ: a text of a variable, a text of none, and a keyword argument."""
    if first:

        def ask(n: int) -> str:
            prompt = "Summarize this document in one sentence."
            return prompt + "Answer in the language of the text." + create(n, temperature=0.2)

    else:

        def ask(n: int) -> str:
            prompt = "Summarize this document in ten words."
            return prompt + "Answer in English, whatever the text is." + create(n, temperature=0.7)

    return checkpointed("n", **options)(ask)


def test_each_name_that_a_message_offers_for_ignore_is_one_that_ignore_takes() -> None:
    """Literals that stand in the code are named with their function; with these names the old results count."""
    before = mapped(inline(1))
    with pytest.raises(FunctionChanged) as caught:
        mapped(inline(0))
    offered = re.search(r"^ +ignore=(.*?)  #", str(caught.value), re.M)
    assert offered is not None
    names = literal_eval(offered[1])
    assert len(names) == len(caught.value.changes) == 3
    assert mapped(inline(0, ignore=names)) == before
    assert inline(0, ignore=names).plan(range(2)).changes == ()


GLOBAL_PROMPT = "a"


def test_a_version_that_a_message_offers_can_be_written_beside_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads there to the value, else a text; never three dots, nor the name of another function's value."""

    def ask(n: int) -> str:
        return GLOBAL_PROMPT + helper(n)

    def helper(n: int, tone: str = "kind") -> str:
        return tone + str(n)

    f = checkpointed("n")(ask)
    mapped(f)
    monkeypatch.setitem(globals(), "GLOBAL_PROMPT", "b")
    helper.__defaults__ = ("stern",)
    with pytest.raises(FunctionChanged) as caught:
        mapped(checkpointed("n")(ask))
    offered = re.search(r"^ +version=(.*?)  +#", str(caught.value), re.M)
    assert offered is not None
    assert sorted(offered[1].strip("[]").split(", ")) == ['"2"', "GLOBAL_PROMPT"]


@pytest.mark.parametrize("by", ["message", "plan", "function"])
def test_what_was_accepted_is_neither_refused_nor_told(by: str, caplog: pytest.LogCaptureFixture) -> None:
    """By the command that the message or the plan prints, or in Python; new items are computed by what is there."""
    mapped(asks("a"))
    changed = asks("b")
    if by == "function":
        assert changed.accept() == 2
        assert changed.accept() == 0
    else:
        with pytest.raises(FunctionChanged) as caught:
            mapped(changed)
        assert main(command_in(str(caught.value) if by == "message" else str(changed.plan([1])))) == 0
    called()
    assert mapped(asks("b"), 3) == ["a0", "a1", "b2"]
    assert called() == [("b", 2)]
    assert caplog.text == ""
    assert (changed.plan(range(3)).accepted, changed.plan(range(3)).choices) == (2, "")


def test_what_was_accepted_counts_wherever_the_journal_is_read(tmp_path: Path) -> None:
    """Without meta and index, in another directory and another process."""
    mapped(asks("a"))
    asks("b").accept()
    (tmp_path / "there").mkdir()
    shutil.copy(RESULTS, tmp_path / "there")
    assert mapped(asks("b", checkpoint_dir=tmp_path / "there"), 3) == ["a0", "a1", "b2"]


def test_it_counts_for_the_code_that_it_was_accepted_for_and_no_other() -> None:
    """The next change is a change of all that is there; and the way back is one of what came after."""
    mapped(asks("a"))
    asks("b").accept()
    mapped(asks("b"), 3)
    with pytest.raises(FunctionChanged) as caught:
        mapped(asks("c"))
    assert caught.value.count == 3
    with pytest.raises(FunctionChanged) as caught:
        mapped(asks("a"))
    assert (caught.value.count, caught.value.changes) == (1, ("prompt: 'b' → 'a'",))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda digest: digest[:-1] + ("0" if digest[-1] != "0" else "1"), "mistyped at its end"),
        (lambda digest: "2" + digest[1:-20] + digest[-19:], "mistyped in the middle"),
        (lambda digest: digest.rpartition("-")[0], "cut off"),
        (lambda digest: "prompt", "no digest at all"),
        (lambda digest: "2-" + "0" * 32 + "-" + "0" * 32, "a fingerprint that nobody printed"),
    ],
)
def test_a_digest_that_no_message_printed_is_an_error(
    spoil: Callable[[str], str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing is accepted by it."""
    mapped(asks("a"))
    with pytest.raises(FunctionChanged) as caught:
        mapped(asks("b"))
    verb, name, digest = command_in(str(caught.value))
    before = RESULTS.read_bytes()
    assert main([verb, name, spoil(digest)]) == 1, reason
    assert "copy the line that `map` or `plan` prints" in capsys.readouterr().err
    assert RESULTS.read_bytes() == before
    assert main([verb, name, digest]) == 0
    assert main([verb, name, digest, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["accepted"] == []


def test_a_method_is_accepted_for_on_an_instance() -> None:
    """On the class it is refused with the fix, as its map is."""

    class Scorer:
        def __init__(self, bonus: int) -> None:
            self.bonus = bonus

        @checkpointed("n")
        def score(self, n: int) -> int:
            return n + self.bonus

    Scorer(1).score.map([1], progress=False)
    assert Scorer(1).score.accept() == 0
    with pytest.raises(InvalidFunction, match=r"accept on one: Scorer\(\.\.\.\)"):
        Scorer.score.accept()
    with pytest.raises(InvalidOption, match="no results of version 'other'"):
        Scorer(1).score.accept(version="other")


# --- within a version ------------------------------------------------------------------------------------------------


def test_within_a_version_what_differs_is_told_and_never_refused(caplog: pytest.LogCaptureFixture) -> None:
    """Once in a process, by `plan` each time, and not after it was accepted."""
    mapped(asks("a", version="v1"))
    changed = asks("b", version="v1", on_change="error")
    assert mapped(changed, 3) == ["a0", "a1", "b2"]
    assert "changed within version 'v1' (prompt: 'a' → 'b'); 2 results precede it" in caplog.text
    caplog.clear()
    mapped(changed, 4)
    assert caplog.text == ""
    plan = changed.plan(range(4))
    assert (plan.stale, plan.changes, plan.refusal) == (2, ("prompt: 'a' → 'b'",), None)
    assert main(command_in(str(plan))) == 0
    assert changed.plan(range(4)).stale == 0


FIRST = [
    ("a", "a", 0, "count for version", "what it names is what the function reads, and read"),
    ({"prompt": "a", "n": [3]}, "a", 0, "count for version", "so is each part of it"),
    ({"prompt": "a", "model": "small"}, "a", 2, ".accept(version=None)", "one part is a mere label"),
    ("v1", "a", 2, ".accept(version=None)", "a mere label"),
    ("b", "b", 2, ".accept(version=None)", "the function reads another value than it did"),
]


@pytest.mark.parametrize(("version", "prompt", "calls", "says", "reason"), FIRST, ids=[row[-1] for row in FIRST])
def test_the_first_version_takes_over_what_it_names(
    version: Any, prompt: str, calls: int, says: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a warning says how many results are left aside, and how to take them; `plan` says both before."""

    def make(prompt: str, **options: Any) -> Any:
        most = 3

        def ask(n: int) -> str:
            CALLS.append(n)
            return f"{prompt}{n}" if n < most else ""

        return checkpointed("n", **options)(ask)

    caplog.set_level(logging.INFO)
    mapped(make("a"))
    called()
    caplog.clear()
    named = make(prompt, version=version)
    plan = named.plan(range(2))
    assert (plan.calls, says in str(plan)) == (calls, True), reason
    assert mapped(named) == [f"{'a' if not calls else prompt}{n}" for n in range(2)]
    assert len(called()) == calls
    assert "2 results of no version" in caplog.text
    assert says in caplog.text
    level = logging.WARNING if calls else logging.INFO
    assert level in {record.levelno for record in caplog.records if says in record.getMessage()}
    caplog.clear()
    mapped(make(prompt, version=[version, 2]))
    assert "of no version" not in caplog.text  # from one version to another


def test_what_is_forgotten_is_not_taken_over_again() -> None:
    """The version has begun by then: its keys are computed anew."""
    mapped(asks("a"))
    named = asks("a", version="a")
    assert mapped(named) == ["a0", "a1"]
    called()
    named.clear([0, 1])
    mapped(named)
    assert called() == [("a", 0), ("a", 1)]


def test_a_version_that_says_another_value_than_the_function_reads_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Of a copy before anything is paid for, of what was mapped before in any process; a label is none."""
    first = asks("long a", version={"prompt": "long a"})
    other = first.options(version={"prompt": "long b"})
    assert "the version says prompt 'long b', and prompt is 'long a'" in str(other.plan([1]))
    assert called() == []
    mapped(first)
    mapped(other)
    assert caplog.text.count("the version says prompt 'long b', and prompt is 'long a'") == 1
    assert "the version says" in str(asks("long a", version={"prompt": "long c"}).plan([1]))
    for right in ({"prompt": "long a", "run": 2}, {"model": "x"}, "long a"):
        assert "the version says" not in str(asks("long a", version=right).plan([1]))
    assert "the version says" not in str(asks("long b", version={"prompt": "long b"}).plan([1]))


# --- other versions --------------------------------------------------------------------------------------------------


def test_results_of_a_version_count_for_another_where_it_has_none(caplog: pytest.LogCaptureFixture) -> None:
    """And into a function without version; what is computed later under the old one is its own."""
    old, new, none = (asks("a", version=version) for version in ("old", "new", None))
    mapped(old, 3)
    new.map([2], progress=False)
    called()
    assert new.accept(version="old") == 2
    assert none.accept(version="new") == 3
    old.clear([0])
    mapped(old, 5)
    assert called() == [("a", 0), ("a", 3), ("a", 4)]
    assert [dict(each.results) for each in (new, none)] == [{0: "a0", 1: "a1", 2: "a2"}] * 2
    assert caplog.text == ""
    plan = none.plan(range(5))
    assert (plan.done, plan.new, plan.accepted) == (3, 2, 3)


def test_a_forgotten_key_stays_forgotten_through_compaction() -> None:
    """What is accepted is hidden by what forgets it later, and comes back by no compaction."""
    mapped(asks("a", version="old"))
    new = asks("a", version="new")
    new.accept(version="old")
    new.clear([0])
    asks("a", version="old").clear([1])
    for _ in range(2):
        new.runner.close()
        compact("n")
        new = asks("a", version="new")
        assert dict(new.results) == {1: "a1"}
        assert dict(asks("a", version="old").results) == {0: "a0"}
    assert check("n").is_sound
    new.clear()
    assert dict(new.results) == {}


def test_accepting_names_no_latest_version() -> None:
    """Who reads the version of the last record goes on reading that one."""
    mapped(asks("a", version="old"))
    mapped(asks("a", version="last"))
    asks("a", version="new").accept(version="old")
    assert CheckpointedRunner("n").records.version == asks("a", version="last").runner.records.version


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"version": "there"}, "is the one that is current", "its own"),
    ({"version": "nowhere"}, "no results of version 'nowhere'; it has some of: None, 'there'", "one that is not there"),
    ({"convert": str}, "goes with version=", "convert alone"),
    ({"version": None, "convert": "str"}, "give a plain function", "what cannot be called"),
    ({"version": None, "items": [1]}, "not both", "two decisions"),
    ({"version": object()}, "no JSON value", "no version at all"),
]


@pytest.mark.parametrize(("given", "says", "reason"), REFUSED, ids=[row[-1] for row in REFUSED])
def test_what_cannot_be_accepted_is_an_error_that_says_why(given: dict[str, Any], says: str, reason: str) -> None:
    """And nothing is written."""
    mapped(asks("a"))
    there = asks("a", version="there")
    there.map([1], progress=False)
    before = RESULTS.read_bytes()
    with pytest.raises(InvalidOption, match=re.escape(says)):
        there.accept(**given)
    assert RESULTS.read_bytes() == before


def test_converting_writes_each_result_once_and_may_be_cut_off() -> None:
    """As a record of this version, which says where it comes from, and costs nothing."""

    def make(**options: Any) -> Any:
        return checkpointed("n", **options)(lambda n: {"text": str(n), "pair": (n, n)})

    mapped(make(), 5)
    seen: list[Any] = []

    def convert(value: Any) -> Any:
        seen.append(value["pair"])
        if len(seen) == 3:
            raise KeyError("killed here")
        return {"title": value["text"]}

    named = make(version="new")
    with pytest.raises(KeyError) as caught:
        named.accept(version=None, convert=convert)
    assert "while the result of key 2 of version None was converted" in caught.value.__notes__[0]
    assert named.accept(version=None, convert=convert) == 5
    assert dict(named.results) == {n: {"title": str(n)} for n in range(5)}
    assert named.accept(version=None, convert=convert) == 0
    assert seen[0] == (0, 0)
    written = [line for line in lines() if line.get("from") == ""]
    assert sorted(line["key"] for line in written) == list(range(5))
    assert not {"elapsed", "cost", "attempts"} & {field for line in written for field in line}
    assert named.plan(range(5)).done == 5
    with pytest.raises(UnencodableValue):
        make(version="third").accept(version=None, convert=lambda value: object())


# --- other inputs ----------------------------------------------------------------------------------------------------


def test_accepted_items_are_no_longer_changed() -> None:
    """Their results are copied to the digests that they have; others stay as they are, and nothing is called."""
    options: dict[str, Any] = {"key": "id", "on_change": "error"}

    def make() -> Any:
        def read(item: dict[str, Any]) -> Any:
            CALLS.append(item)
            return item["text"]

        return checkpointed("n", **options)(read)

    make().map([{"id": n, "text": "old"} for n in range(3)], progress=False)
    called()
    items = [{"id": n, "text": "new" if n else "old"} for n in range(4)]
    assert make().plan(items).changed == 2
    assert make().accept(items) == 2
    assert make().accept(items) == 0
    assert make().map(items[:3], progress=False) == ["old"] * 3
    assert called() == []
    assert make().plan(items).changed == 0
    copied = [line for line in lines() if "from" in line]
    assert [line["key"] for line in copied] == [1, 2]
    assert [line["from"] for line in copied] == [line["input"] for line in lines()[1:3]]


# --- journals say it themselves --------------------------------------------------------------------------------------


def test_journals_alone_say_what_their_digests_stand_for() -> None:
    """The values of versions, also where nothing but failures is there; and the detail of code."""
    versions: list[Any] = ["v", {"model": "small", "pair": (1, 2)}, [1, None, "\ud800"], 2.5]
    for version in versions:
        mapped(asks("a", version=version))
    failing = checkpointed("n", version="failing")(lambda n: 1 // 0)
    failing.map([1], progress=False, return_exceptions=True)
    failing.runner.close()
    for _ in range(2):
        Path("checkpoints/n_meta.json").unlink(missing_ok=True)
        labels = [count.label for count in asks("a").results.versions]
        assert labels == [*versions, "failing"]
        compact("n")


def test_the_first_record_that_is_left_says_it_after_compaction() -> None:
    """Of a version and of code, though the first record was superseded."""
    mapped(asks("a", version="v"), 3)
    asks("a", version="v").clear([0])
    asks("a", version="v").runner.close()
    assert [("value" in line, "detail" in line) for line in lines()[:3]] == [
        (True, True),
        (False, False),
        (False, False),
    ]
    compact("n")
    assert [(line["key"], "value" in line, "detail" in line) for line in lines()] == [
        (1, True, True),
        (2, False, False),
    ]
    Path("checkpoints/n_meta.json").unlink()
    assert asks("b", version="v").plan([1]).changes == ("prompt: 'a' → 'b'",)


# --- seen from outside -----------------------------------------------------------------------------------------------


def test_show_ls_and_the_report_tell_what_is_to_decide_and_what_was(capsys: pytest.CaptureFixture[str]) -> None:
    """With the command to copy, which needs no function; it is not there any more once somebody has decided."""

    def seen() -> str:
        assert [main(["show", "n"]), main(["ls"]), main(["report", "n", "--out", "report.html"])] == [0, 0, 0]
        return capsys.readouterr().out + unescape(Path("report.html").read_text())

    mapped(asks("a", version="v"))
    assert not re.search("nobody has decided|accepted|changed", seen())
    mapped(asks("b", version="v"), 3)
    told = seen()
    assert told.count("2 results precede a change of the function, and nobody has decided") == 2
    assert "changed, see show" in told
    (command,) = set(re.findall(r"checkpoint (accept n [-0-9a-f]+)", told))
    assert main(shlex.split(command)) == 0
    assert "accepted 2 results of 'n': from now on they count" in capsys.readouterr().out
    told = seen()
    assert "nobody has decided" not in told
    assert told.count("results of code") == 2
    assert "accepted old results" in told
    asks("b").accept(version="v")
    mapped(asks("b"), 4)
    assert seen().count("results of version 'v'") == 2


# --- checkpoints that were written before ----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("has_meta", [True, False], ids=["with meta", "without meta"])
def test_a_checkpoint_of_another_algorithm_opens_neither_refused_nor_silent(tmp_path: Path, has_meta: bool) -> None:
    """Each process says so, until it is accepted; no result is computed anew."""
    shutil.copy(OLD / "job.py", tmp_path)
    shutil.copytree(OLD / "journals", tmp_path / "checkpoints")
    for meta in [] if has_meta else (tmp_path / "checkpoints").glob("*_meta.json"):
        meta.unlink()
    results = "['Summarize: text 0', 'Summarize: text 1', 'Summarize: text 2']\n[6, 7]\n['Summarize: {text}1']"
    digest = (fingerprint(shlex.split) or pytest.fail("no fingerprint")).digest
    is_other = not digest.startswith("1-")
    for _ in range(2):
        printed, said = run_job(tmp_path)
        assert printed == results
        assert "called" not in said
        assert said.count("whether") == (2 if is_other else 0)
    for command in re.findall(r"^ +checkpoint (accept .*?)  #", said, re.M):
        assert main([*shlex.split(command), "--dir", str(tmp_path / "checkpoints")]) == 0
    assert run_job(tmp_path) == (results, "")


def test_the_way_out_of_code_that_cannot_be_compared_works(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """No option computes such results anew, so the message has a line that forgets them."""
    shutil.copy(OLD / "job.py", tmp_path)
    shutil.copytree(OLD / "journals", tmp_path / "checkpoints")
    job = runpy.run_path("job.py")
    for on_change in (None, "recompute"):
        job["summarize"].options(on_change=on_change).map(job["DOCS"], progress=False)
    assert "called" not in capsys.readouterr().err
    assert 'on_change="recompute"' not in caplog.text
    (forget,) = {*re.findall(r"^ +(\S+\.clear\(.*?)  #", caplog.text, re.M)}
    eval(forget, job)
    caplog.clear()
    job["summarize"].map(job["DOCS"], progress=False)
    assert capsys.readouterr().err.count("called") == 3
    assert caplog.text == ""


def test_a_line_of_another_kind_is_skipped_and_is_no_damage(caplog: pytest.LogCaptureFixture) -> None:
    """A reader of today reads what a later one may write; what is not sealed is damage as ever."""
    from checkpoint.storage.record import seal

    mapped(asks("a"))
    with RESULTS.open("ab") as file:
        file.write(seal(b'{"promises":"something","timestamp":"2030-01-01T00:00:00.000Z"'))
    assert mapped(asks("a"), 3) == ["a0", "a1", "a2"]
    asks("a").clear([0])
    compact("n")
    assert check("n").is_sound
    assert [line["promises"] for line in lines() if "key" not in line] == ["something"]
    assert caplog.text == ""
    with RESULTS.open("ab") as file:
        file.write(b'{"promises":"something"}\n')
    assert not check("n").is_sound


# --- going back ------------------------------------------------------------------------------------------------------


def test_results_of_no_version_count_again_when_the_function_goes_back_to_what_it_read() -> None:
    """Also where another version was computed meanwhile, as the message about an edited prompt advises."""

    def asks_named(prompt: str) -> Any:
        return asks(prompt, version=prompt)

    before = mapped(asks("a"))
    mapped(asks_named("b"))
    called()
    assert asks_named("a").plan(range(2)).done == 2
    assert mapped(asks_named("a")) == before
    assert called() == []


def test_another_mere_label_says_nothing_of_results_without_a_version(caplog: pytest.LogCaptureFixture) -> None:
    """From one version to another nothing is taken over that the version does not name."""
    mapped(asks("a"))
    mapped(asks("a", version="one"))
    caplog.clear()
    mapped(asks("a", version="two"))
    assert "left aside" not in caplog.text
    assert len(called()) == 6
