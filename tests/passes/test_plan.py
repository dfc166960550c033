"""Laws of a plan: it says what `map` then does, runs nothing, and writes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint import (
    CheckpointedRunner,
    DuplicateKey,
    FunctionChanged,
    InputChanged,
    InvalidFunction,
    InvalidKey,
    InvalidOption,
    VersionNeeded,
    checkpointed,
)
from checkpoint.passes.plan import Plan
from checkpoint.storage.record import seal

CALLS: list[Any] = []


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    CALLS.clear()


def body(item: dict[str, Any]) -> Any:
    """What every function of these tests does: fails, gives what cannot be stored, or a value."""
    CALLS.append(item["id"])
    if item["does"] == "fail":
        raise ValueError(item["id"])
    return object() if item["does"] == "refuse" else item["x"]


def old(item: dict[str, Any]) -> Any:
    """A function."""
    return body(item)


def new(item: dict[str, Any]) -> Any:
    """The same one, after an edit."""
    return (body(item),)[0]


async def later(item: dict[str, Any]) -> Any:
    """A coroutine function."""
    return body(item)


class Holder:
    """A class with a mapped method."""

    def __init__(self, model: str) -> None:
        self.model = model

    @checkpointed("n", key="id")
    def method(self, item: dict[str, Any]) -> Any:
        """A method."""
        return body(item)


def run(f: Any, items: list[Any]) -> list[Any]:
    """The calls that a map of a function of any kind makes."""
    CALLS.clear()
    mapping = f.map(items, progress=False, return_exceptions=True)
    if asyncio.iscoroutine(mapping):
        asyncio.run(mapping)
    return sorted(CALLS)


def item(key: int, x: int = 1, does: str = "work") -> dict[str, Any]:
    """An item."""
    return {"id": key, "x": x, "does": does}


def everything() -> dict[str, tuple[Any, ...]]:
    """All that is in the directory: names, contents, times of change."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size, path.read_bytes() if path.is_file() else b"")
        for path in sorted(Path().rglob("*"))
    }


# --- it says what map does -------------------------------------------------------------------------------------------


def test_a_plan_tells_the_parts_of_a_map() -> None:
    """Each item is one of them."""
    f = checkpointed("n", key="id", on_change="keep")(old)
    run(f, [item(1), item(2, does="fail"), item(3), item(4, does="refuse"), item(5, does="fail")])
    plan = f.plan([item(1), item(2), item(3, x=9), item(4), item(5), item(6), item(6), item(7)])
    assert (plan.total, plan.done, plan.failed, plan.aside, plan.new, plan.duplicates) == (8, 2, 2, 1, 2, 1)
    assert (plan.changed, plan.redone, plan.stale, plan.calls, plan.refusal) == (1, 0, 0, 4, None)
    assert plan.causes == {"ValueError": 2}
    assert (plan.changes, plan.versions) == ((), {})


ITEMS = st.lists(
    st.builds(item, st.integers(2, 7), st.integers(0, 2), st.sampled_from(["work", "work", "fail"]))
    | st.builds(item, st.integers(0, 1), st.integers(0, 2), st.sampled_from(["work", "fail", "refuse"])),
    max_size=9,
    unique_by=lambda one: one["id"],  # so that two at most cannot be stored: the third one ends a pass
)
KINDS = {"function": (old, new), "coroutine function": (later, later)}


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    st.lists(ITEMS, max_size=2), ITEMS, st.sampled_from([None, "keep", "recompute"]), st.booleans(),
    st.sampled_from(["function", "coroutine function", "method"]), st.integers(0, 2),
)  # fmt: skip
def test_map_makes_the_calls_that_were_planned(
    before: list[list[Any]], items: list[Any], on_change: Any, edited: bool, kind: str, again: int
) -> None:
    """Whatever failed, changed, was refused or edited before; and what is done then is done."""
    with tempfile.TemporaryDirectory() as directory:
        options = {"checkpoint_dir": directory, "on_change": on_change}
        if kind == "method":
            f = first = Holder("a").method.options(**options)
        else:
            first, f = (checkpointed("n", key="id", **options)(part) for part in KINDS[kind])
            f = f if edited else first
        for earlier in before:
            with suppress(InputChanged):
                run(first, earlier)
        items = items + items[:again]
        plan = f.plan(items)
        if plan.refusal is not None:
            assert (on_change, type(plan.refusal)) == (None, InputChanged)
            with pytest.raises(InputChanged, match=f"{plan.changed} item"):
                run(f, items)
            assert CALLS == []
            return
        calls = run(f, items)
        assert len(calls) == plan.calls == plan.failed + plan.new + plan.redone
        assert plan.total == len(items) == plan.calls + plan.done + plan.aside + plan.duplicates
        after = f.plan(items)
        assert after.redone <= plan.redone
        assert after.done == plan.total - plan.duplicates - after.failed - after.aside - after.redone
        assert plan.seconds is None or plan.at_least <= plan.seconds <= plan.at_most
        f.runner.close()
        first.runner.close()


def test_changed_code_and_what_it_makes_stale_are_told() -> None:
    """Of the items that are asked for; kept, or computed anew."""
    run(checkpointed("n", key="id")(old), [item(key) for key in range(5)])
    f = checkpointed("n", key="id")(new)
    plan = f.plan([item(key) for key in (0, 1, 2, 9)])
    assert (plan.done, plan.stale, plan.redone, plan.new, plan.calls) == (3, 3, 0, 1, 1)
    assert plan.changes[0] == "new() in test_plan.py, in place of old() in test_plan.py"
    assert str(plan).splitlines()[0] == "3 done · 0 failed · 1 new · code changed since 3 results"
    plan = f.options(on_change="recompute").plan([item(key) for key in (0, 1, 2, 9)])
    assert (plan.done, plan.stale, plan.redone, plan.new, plan.calls) == (0, 3, 3, 1, 4)


def test_what_other_versions_have_is_told() -> None:
    """By version; going back costs nothing, and the plan says so."""
    f = checkpointed("n", key="id", version={"prompt": "a"})(old)
    run(f, [item(1), item(2)])
    run(f.options(version="b"), [item(1)])
    plan = f.options(version="c").plan([item(1), item(2), item(3)])
    assert (plan.done, plan.new, plan.versions) == (0, 3, {"{'prompt': 'a'}": 2, "'b'": 1})
    assert "2 under {'prompt': 'a'}, 1 under 'b'" in str(plan)
    assert f.plan([item(1), item(2)]).done == 2
    assert Holder("b").method.plan([item(1)]).versions == {"{'prompt': 'a'}": 1, "'b'": 1}


def test_what_map_would_refuse_is_told_and_not_raised() -> None:
    """Another value, changed items: the error is the one that `map` raises."""

    def make(model: str, **options: Any) -> Any:
        return checkpointed("n", key="id", **options)(lambda item: (model, body(item)))

    run(make("a"), [item(1)])
    f = make("b")
    plan = f.plan([item(1), item(2)])
    with pytest.raises(FunctionChanged) as caught:
        f.map([item(1), item(2)], progress=False)
    assert str(plan.refusal) == str(caught.value)
    assert "model: 'a' → 'b'" in str(plan)
    assert (plan.stale, plan.done, plan.new) == (1, 1, 1)
    strict = make("a", on_change="error")
    plan = strict.plan([item(1, x=5), item(2)])
    with pytest.raises(InputChanged) as changed:
        strict.map([item(1, x=5), item(2)], progress=False)
    assert (str(plan.refusal), plan.changed) == (str(changed.value), 1)


# --- it refuses what map refuses -------------------------------------------------------------------------------------


def lazily() -> Iterator[Any]:
    """One-shot input."""
    yield item(1)


@pytest.mark.parametrize("items", [lazily(), iter([item(1)]), map(item, [1])], ids=["generator", "iterator", "map"])
def test_input_that_can_be_read_once_is_refused_and_not_touched(items: Iterator[Any]) -> None:
    """With the fix: the same list for plan and map."""
    with pytest.raises(InvalidOption, match=r"items = list\(items\)"):
        checkpointed("n", key="id")(old).plan(items)
    assert len(list(items)) == 1


REFUSED: list[tuple[Any, Any, Any, str]] = [
    (lambda: checkpointed("n", key="id")(old), [item(1), item(1, x=2)], DuplicateKey, "two items, one key"),
    (lambda: checkpointed("n", key="x")(old), [{"id": 1}], InvalidKey, "no such field"),
    (lambda: checkpointed("n")(old), [object()], InvalidKey, "no key at all"),
    (lambda: checkpointed("n")(old), 5, InvalidOption, "no items"),
    (lambda: checkpointed("n", on_change="error")(old), [object()], InvalidKey, "an item without content"),
    (lambda: checkpointed("n", key=id, on_change="error")(old), [object()], InvalidOption, "whose change is unknown"),
    (lambda: Holder.method, [item(1)], InvalidFunction, "a method on its class"),
]


@pytest.mark.parametrize(("make", "items", "error", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_map_refuses_is_refused(make: Any, items: Any, error: type[Exception], reason: str) -> None:
    """With the same words."""
    f = make()
    with pytest.raises(error) as planned:
        f.plan(items)
    with pytest.raises(error) as mapped:
        f.map(items, progress=False)
    assert str(planned.value) == str(mapped.value)
    assert not Path("checkpoints").exists()


def test_an_instance_that_cannot_be_told_needs_a_version() -> None:
    """As for `map`."""

    class Client:
        session = None

        def __init__(self) -> None:
            self.session = object()

        @checkpointed("n")
        def ask(self, n: int) -> Any:
            return self.session

    with pytest.raises(VersionNeeded):
        Client().ask.plan([1])
    with pytest.raises(InvalidOption, match="workers"):
        checkpointed("n")(old).plan([], workers=0)


# --- it writes nothing -----------------------------------------------------------------------------------------------


def test_nothing_is_run_and_nothing_is_written() -> None:
    """Not even a directory, a lock or meta; nor a bar, nor a repair of what is there."""
    f = checkpointed("n", key="id")(old)
    assert f.plan([item(1)]) == f.plan([item(1)])
    assert everything() == {}
    run(f, [item(1), item(2, does="fail"), item(4, does="refuse")])
    f.runner.close()
    with open("checkpoints/n_results.jsonl", "ab") as file:
        file.write(b'{"key":7,"resu')
    Path("checkpoints/n_meta.json").unlink()
    Path("checkpoints/.n_results.index").write_bytes(b"garbage")
    CALLS.clear()
    before = everything()
    for g in (f, checkpointed("n", key="id", on_change="recompute")(new)):
        assert g.plan([item(1), item(2), item(4), item(5)]).failed == 1
    assert CALLS == []
    assert everything() == before


def test_a_plan_can_be_made_while_others_write() -> None:
    """In this process, in the middle of a pass; by another runner; the lock is not asked for."""
    f = checkpointed("n", key="id")(old)
    outcomes = f.stream([item(1), item(2)], progress=False)
    next(outcomes)
    plan = f.plan([item(1), item(2), item(3)])
    assert (plan.done, plan.new) == (1, 2)
    assert len(list(outcomes)) == 1
    assert f.plan([item(1), item(2)]).done == 2


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_read_only_directory_can_be_planned_for() -> None:
    """Reading is all it takes."""
    f = checkpointed("n", key="id")(old)
    run(f, [item(1)])
    f.runner.close()
    os.chmod("checkpoints", stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert f.plan([item(1), item(2)]).done == 1
    finally:
        os.chmod("checkpoints", stat.S_IRWXU)


# --- time ------------------------------------------------------------------------------------------------------------


def record(key: int, elapsed: float, version: str = "") -> bytes:
    """A line of a result with a duration."""
    head = b'{"key":%d,"result":1,"timestamp":"2026-01-01T00:00:00.000Z"' % key
    head += b',"version":"%b"' % version.encode() if version else b""
    return seal(head + b',"input":"0000000000000001","elapsed":%g,"attempts":1,"session":"0"' % elapsed)


def with_durations(*durations: float) -> None:
    """A checkpoint whose results took so long."""
    Path("checkpoints").mkdir(exist_ok=True)
    lines = [record(-1 - place, elapsed) for place, elapsed in enumerate(durations)]
    Path("checkpoints/n_results.jsonl").write_bytes(b"".join(lines))


def test_the_time_is_that_of_recorded_calls_shared_by_workers() -> None:
    """Calls × their mean ÷ workers, and no less than one call; the range is wide where durations differ."""
    with_durations(*[2.0] * 50)
    f = checkpointed("n", key="id")(old)
    items = [item(key) for key in range(100)]
    for workers, seconds in ((None, 200.0), (1, 200.0), (8, 25.0), (100, 2.0), (1000, 2.0)):
        plan = f.plan(items, workers=workers)
        assert plan.at_least == plan.seconds == plan.at_most == seconds
        assert plan.workers == (workers or 1)
    f.runner.close()
    with_durations(*[1.0, 3.0] * 200)
    plan = f.plan(items, workers=4)
    assert plan.seconds == pytest.approx(50, rel=0.02)
    assert plan.at_least is not None
    assert plan.at_most is not None
    assert 44 < plan.at_least < 50 < plan.at_most < 56
    one = f.plan([item(1)])
    assert (one.at_least, one.at_most) == (1.0, 3.0)
    assert f.plan(items, workers=4) == plan


def test_without_durations_no_time_is_named() -> None:
    """Nor for nothing to do."""
    f = checkpointed("n", key="id")(old)
    plan = f.plan([item(1)])
    assert (plan.seconds, plan.at_least, plan.at_most) == (None, None, None)
    assert str(plan) == "0 done · 0 failed · 1 new\n  to run    1 of 1 item"
    run(f, [item(1)])
    assert f.plan([item(1)]).seconds == 0
    assert "in about" not in str(f.plan([item(1)]))


def test_failures_and_other_versions_give_durations_where_results_do_not() -> None:
    """Better than nothing to go by."""
    f = checkpointed("n", key="id")(old)
    run(f, [item(1, does="fail")])
    assert f.plan([item(1)]).seconds is not None
    f.options(name="m").map([item(1)], progress=False)
    assert f.options(name="m", version=2).plan([item(1)]).seconds is not None


def test_a_rate_makes_no_call_faster() -> None:
    """It is the least that the calls take; tokens are not counted."""
    with_durations(*[0.01] * 50)
    f = checkpointed("n", key="id", rate=["60/min", "1000/s"])(old)
    plan = f.plan([item(key) for key in range(180)], workers=64)
    assert plan.at_least == plan.seconds == 120


# --- how it looks ----------------------------------------------------------------------------------------------------


def test_it_prints_as_a_short_table(make: Opener) -> None:
    """Counts first, and a line for each thing to know."""
    plan = Plan(
        "docs", 10_000, done=9_412, failed=88, new=500, stale=3_100, causes={"TimeoutError": 80, "ValueError": 8},
        changes=("prompt() in jobs.py",), versions={"'v1'": 400}, workers=8, seconds=720.0, at_least=600.0,
        at_most=900.0,
    )  # fmt: skip
    assert str(plan).splitlines() == [
        "9,412 done · 88 failed · 500 new · code changed since 3,100 results",
        "  to run    588 of 10,000 items, in about 12 min (10 min to 15 min) with 8 workers",
        "  failed    80 TimeoutError, 8 ValueError",
        "  changed   prompt() in jobs.py",
        "  elsewhere 400 under 'v1'",
    ]


SPOKEN = [(0.02, "20 ms"), (1.0, "1.0 s"), (20, "20 s"), (100, "1 min 40 s"), (7_200, "2 h"),
          (400_000, "4 days 15 h")]  # fmt: skip


@pytest.mark.parametrize(("seconds", "spoken"), SPOKEN)
def test_times_are_spoken(seconds: float, spoken: str) -> None:
    """In the unit that one would say."""
    plan = Plan("n", 1, new=1, seconds=seconds, at_least=seconds, at_most=seconds)
    assert f"in about {spoken} (" in str(plan)


def test_what_takes_no_time_is_said_without_a_range() -> None:
    """Calls of microseconds, as in a first try."""
    plan = Plan("n", 1, new=1, seconds=0.0, at_least=0.0, at_most=0.0)
    assert str(plan).splitlines()[1].endswith("in less than 1 ms with 1 worker")
    assert "(less than 1 ms to 3.0 s)" in str(Plan("n", 1, new=1, seconds=2.0, at_least=0.0, at_most=3.0))


def test_a_plan_is_frozen_and_travels_and_escapes() -> None:
    """Attributes cannot be set; it pickles; in a notebook everything of the user's is escaped."""
    plan = Plan("n", 1, failed=1, causes={"<script>": 1}, changes=("<b>() in x",), refusal=FunctionChanged("<i>"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.total = 5  # type: ignore[misc]
    back = pickle.loads(pickle.dumps(plan))
    assert (str(back), back.causes) == (str(plan), plan.causes)
    html = plan._repr_html_()
    assert html.startswith("<table>")
    assert not any(tag in html for tag in ("<script>", "<b>", "<i>"))
    with CheckpointedRunner("any"):
        pass


def test_a_plan_shows_every_way_out_of_what_map_would_refuse() -> None:
    """The error of `map` stands in it whole, whichever it is."""
    f = checkpointed("refused", key="id")(lambda doc: doc["x"])
    f.map([{"id": 1, "x": 1}], progress=False)
    for items, field in (([{"id": 1, "x": 2}], "input=…"), ([{"id": 1, "x": 1, "y": 1}], "input=('id', 'x')")):
        with pytest.raises(InputChanged) as caught:
            f.map(items, progress=False)
        assert field in str(caught.value)
        shown = " ".join(str(f.plan(items)).split())
        assert " ".join(str(caught.value).split()) in shown


def test_a_map_that_is_refused_says_nothing_of_equal_items(caplog: pytest.LogCaptureFixture) -> None:
    """None were drawn, so that none were equal to another one."""
    caplog.set_level("INFO", "checkpoint")
    with pytest.raises(DuplicateKey):
        checkpointed("refused", key="id")(lambda doc: doc).map([{"id": 1, "x": 1}, {"id": 1, "x": 2}], progress=False)
    assert "equal to an earlier" not in caplog.text


def test_a_failure_of_an_earlier_stage_is_named_where_it_is_mapped() -> None:
    """The message says how to leave it out, whether the items are a list or drawn once."""
    first = checkpointed("first")(lambda n: {"id": n, "x": 6 // n})
    results = first.map([1, 0, 2], progress=False, return_exceptions=True)
    for items in (results, iter(results)):
        with pytest.raises(InvalidKey, match="item 1 stands for one that failed in another map"):
            checkpointed("second", key="id")(lambda doc: doc["x"]).map(items, progress=False)
