"""Laws of notes: what a call notes is in its record, on every engine; costs add up, and nothing is spent unseen."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Ticker
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint import (
    CheckpointedRunner,
    InvalidOption,
    ItemsFailed,
    MaxCostReached,
    Retry,
    UnencodableValue,
    checkpointed,
    clock,
    note,
)
from checkpoint.cli.main import main
from checkpoint.execution import notes
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact
from checkpoint.reporting.report import write_report
from checkpoint.reporting.tables import export
from checkpoint.storage.spending import Spending


def lines(path: Path, name: str, kind: str = "results") -> list[dict[str, Any]]:
    """The records of a journal."""
    file = path / f"{name}_{kind}.jsonl"
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []


def notes_of(path: Path, name: str, kind: str = "results") -> dict[Any, Any]:
    """By key, what the records of a journal have as notes; the last one counts."""
    return {line["key"]: line.get("notes") for line in lines(path, name, kind) if "key" in line}


def noting(n: int) -> int:
    """It notes its item; odd ones raise after that."""
    note(cost=n / 8, model="small")
    note(cost=0.5, n=n)
    if n % 2:
        raise ValueError(n)
    return n * n


async def noting_awaited(n: int) -> int:
    """The same on the event loop, where a part of it runs on a task of its own."""

    async def part() -> None:
        await asyncio.sleep(0)
        note(cost=n / 8, model="small")

    await asyncio.gather(part(), asyncio.to_thread(note, n=n))
    note(cost=0.5)
    if n % 2:
        raise ValueError(n)
    return n * n


ENGINES: dict[str, dict[str, Any]] = {
    "serial": {},
    "threads": {"workers": 3},
    "chunks on threads": {"workers": 2, "chunksize": 4},
    "processes": {"workers": 2, "executor": "processes"},
    "chunks on processes": {"workers": 2, "executor": "processes", "chunksize": 4},
}


def expected(keys: range) -> dict[Any, Any]:
    """What `noting` notes of each."""
    return {n: {"cost": n / 8 + 0.5, "model": "small", "n": n} for n in keys}


@pytest.mark.slow
@pytest.mark.parametrize("engine", [*ENGINES, "given executor", "tasks", "one task"])
def test_what_a_call_notes_is_in_its_record(tmp_path: Path, engine: str) -> None:
    """On every engine, of calls that return and of those that raise; costs of one call add up."""
    if "task" in engine:
        awaited = checkpointed("noted", checkpoint_dir=tmp_path)(noting_awaited)
        workers = 3 if engine == "tasks" else 1
        asyncio.run(awaited.map(range(9), workers=workers, progress=False, return_exceptions=True))
    else:
        function = checkpointed("noted", checkpoint_dir=tmp_path)(noting)
        with ThreadPoolExecutor(2) as executor:
            spread = ENGINES.get(engine, {"executor": executor})
            function.map(range(9), progress=False, return_exceptions=True, **spread)
    assert notes_of(tmp_path, "noted") == {n: fields for n, fields in expected(range(9)).items() if n % 2 == 0}
    assert notes_of(tmp_path, "noted", "errors") == {n: fields for n, fields in expected(range(9)).items() if n % 2}


def test_calls_at_once_in_a_worker_of_others_note_apart() -> None:
    """A worker process of a given executor may call on several threads at once."""
    from checkpoint.execution.call import Call, arrived
    from checkpoint.execution.transport import unpack

    here = arrived(Call(_meeting).shipped())
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda n: unpack(here.many([n]))[0], [1, 2]))
    assert [answer.notes for answer in found] == [{"n": 1}, {"n": 2}]


_barrier = threading.Barrier(2, timeout=20)


def _meeting(n: int) -> int:
    _barrier.wait()
    note(n=n)
    _barrier.wait()
    return n


def test_calls_without_notes_have_none(tmp_path: Path) -> None:
    """A field that is not used is not on disk; and what one call notes does not count for the next."""

    @checkpointed("mixed", checkpoint_dir=tmp_path)
    def function(n: int) -> int:
        if n == 1:
            note(cost=1)
        return n

    function.map(range(3), progress=False)
    assert ["notes" in line for line in lines(tmp_path, "mixed")] == [False, True, False]


def test_costs_of_attempts_add_up(tmp_path: Path) -> None:
    """Of other fields the last attempt's counts, and those that it does not note stay."""
    tried: dict[int, int] = {}

    @checkpointed("retried", checkpoint_dir=tmp_path, retry=Retry(3, on=(ValueError,), wait=0))
    def function(n: int) -> int:
        tried[n] = attempt = tried.get(n, 0) + 1
        note(cost=0.25, attempt=attempt)
        if attempt == 1:
            note(first=True)
        if n == 2 or attempt < 3:
            raise ValueError
        return n

    function.map([1, 2], progress=False, return_exceptions=True)
    wanted = {"cost": 0.75, "attempt": 3, "first": True}
    assert notes_of(tmp_path, "retried") == {1: wanted}
    assert notes_of(tmp_path, "retried", "errors") == {2: wanted}


def test_the_cost_of_a_batch_is_divided(tmp_path: Path) -> None:
    """Evenly; other fields are those of each. A batch that failed costs its items what it cost, beside their own."""

    @checkpointed("batches", checkpoint_dir=tmp_path, batch_size=4)
    def function(ns: list[int]) -> list[int]:
        note(cost=1, size=len(ns))
        if 5 in ns and len(ns) > 1:
            raise ValueError
        return ns

    function.map(range(8), progress=False)
    found = notes_of(tmp_path, "batches")
    assert [found[n] for n in range(4)] == [{"cost": 0.25, "size": 4}] * 4
    assert sum(found[n]["cost"] for n in range(4, 8)) >= 2
    assert found[5]["size"] == 1


def test_a_value_that_cannot_be_written_keeps_its_notes(tmp_path: Path) -> None:
    """Its item is a failure, whose record says what it cost."""

    @checkpointed("unencodable", checkpoint_dir=tmp_path)
    def function(n: int) -> Any:
        note(cost=n)
        return object() if n == 1 else n

    function.map([1, 2], progress=False, return_exceptions=True)
    assert notes_of(tmp_path, "unencodable", "errors") == {1: {"cost": 1.0}}


def test_a_refused_value_keeps_its_notes(tmp_path: Path) -> None:
    """So does one that `validate` refuses."""
    function = checkpointed("refused", checkpoint_dir=tmp_path, validate=bool)(_free)
    with pytest.raises(ItemsFailed):
        function.map([0], progress=False)
    assert notes_of(tmp_path, "refused", "errors") == {0: {"cost": 0.0}}


def _free(n: int) -> int:
    note(cost=0)
    return n


def test_values_that_cannot_travel_keep_their_notes(tmp_path: Path) -> None:
    """A worker process replaces a result that it cannot send, and sends the notes."""
    function = checkpointed("stuck", checkpoint_dir=tmp_path)(_stuck)
    function.map([1], progress=False, return_exceptions=True, executor="processes", workers=1)
    assert notes_of(tmp_path, "stuck", "errors") == {1: {"cost": 0.5}}


def _stuck(n: int) -> Any:
    note(cost=0.5)
    return threading.Lock()


def test_a_call_outside_of_a_map_notes_nothing(tmp_path: Path) -> None:
    """The plain call does what it always does; but a wrong value is an error there too."""
    function = checkpointed("plain", checkpoint_dir=tmp_path)(noting)
    assert function(2) == 4
    note(cost=1)
    with pytest.raises(InvalidOption):
        note(cost="1")
    assert not list(tmp_path.iterdir())


def test_an_inner_map_notes_for_itself(tmp_path: Path) -> None:
    """What a call of an inner map notes is of that call, and not of the one around it."""
    inner = checkpointed("inner", checkpoint_dir=tmp_path)(noting)

    @checkpointed("outer", checkpoint_dir=tmp_path)
    def outer(n: int) -> int:
        note(before=n)
        inner.map([n], progress=False)
        note(after=n)
        return n

    outer.map([2, 4], progress=False)
    assert notes_of(tmp_path, "outer") == {n: {"before": n, "after": n} for n in (2, 4)}
    assert notes_of(tmp_path, "inner") == {n: expected(range(5))[n] for n in (2, 4)}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [{"text": object()}]}, "prompt[0]['text']"),
    ({"score": float("nan")}, "score"),
    ({"scores": {"a": [1, float("inf")]}}, "scores['a'][1]"),
    ({"by_id": {1: "x"}}, "by_id"),
    ({"text": "\ud800"}, "text"),
    ({"seen": {1, 2}}, "seen"),
]


@pytest.mark.parametrize(("fields", "where"), WRONG)
def test_what_json_cannot_hold_is_refused_at_the_call(fields: dict[str, Any], where: str) -> None:
    """The error says which part; nothing is put in its place."""
    with pytest.raises(UnencodableValue) as refused:
        note(**fields)
    assert refused.value.where == where
    assert where in str(refused.value)


@pytest.mark.parametrize("cost", [-1, float("nan"), float("inf"), "0.1", True, None, [1]])
def test_a_cost_is_a_finite_number(cost: Any) -> None:
    """Anything else could not be summed."""
    with pytest.raises(InvalidOption, match="cost"):
        note(cost=cost)


def test_numbers_of_others_are_numbers(tmp_path: Path) -> None:
    """Of numpy and decimal: they are noted as what they hold, at the moment at which they are noted."""
    messages = [{"role": "user"}]

    @checkpointed("numbers", checkpoint_dir=tmp_path)
    def function(n: int) -> int:
        note(cost=Decimal("0.5"), tokens=np.int64(3), score=np.float32(0.5), messages=messages, both=(1, 2))
        messages[0]["role"] = "changed"
        return n

    function.map([1], progress=False)
    wanted = {"cost": 0.5, "tokens": 3, "score": 0.5, "messages": [{"role": "user"}], "both": [1, 2]}
    assert notes_of(tmp_path, "numbers") == {1: wanted}


def test_a_long_note_costs_no_look_at_the_result(tmp_path: Path) -> None:
    """Notes stand before the timestamp: whoever looks at the end of a line, or leaves its value out, finds the rest."""

    @checkpointed("long", checkpoint_dir=tmp_path)
    def function(n: int) -> str:
        note(prompt="x" * 5000, inner={"timestamp": "2020", "notes": {"cost": 5}})
        return "y" * 5000

    function.map([1, 2], progress=False)
    again = checkpointed("long", checkpoint_dir=tmp_path)(_never)
    assert again.options(on_change="keep").map([1, 2], progress=False) == ["y" * 5000] * 2


_never: Callable[[int], str] = lambda n: pytest.fail("it has a result")  # noqa: E731


# --- what was spent --------------------------------------------------------------------------------------------------


def spent(path: Path, name: str = "spent") -> float:
    """What a checkpoint has cost, read from its journals alone, by who knows nothing else of it."""
    alone = path / "copy"
    shutil.rmtree(alone, ignore_errors=True)
    alone.mkdir()
    for file in path.glob(f"{name}*_*s.jsonl"):
        shutil.copy(file, alone)
    with CheckpointedRunner(name, alone, version=None) as bare, CheckpointedRunner(name, path, version=None) as runner:
        told, read = (sum(cost.total for cost in one.records.open().spent().values()) for one in (runner, bare))
    assert told == pytest.approx(read), "what is kept beside the journals says the same"
    return read


def costly(path: Path, each: float = 0.5, name: str = "spent", **options: Any) -> Any:
    """A function that costs so much each time, and counts its calls."""

    def function(n: int) -> int:
        note(cost=each)
        if n < 0:
            raise ValueError
        return n

    return checkpointed(name, checkpoint_dir=path, on_change="keep", **options)(function)


@pytest.mark.promise("a kill while money is spent")
def test_what_was_spent_stays_spent(tmp_path: Path) -> None:
    """Forgetting, computing anew, compaction and `clear` change nothing of what was paid."""
    function = costly(tmp_path)
    function.map([1, 2, -3], progress=False, return_exceptions=True)
    assert spent(tmp_path) == 1.5
    function.clear([1])
    function.map([1, -3], progress=False, return_exceptions=True)
    assert spent(tmp_path) == 2.5
    assert compact("spent", tmp_path).lines
    assert spent(tmp_path) == 2.5
    assert not compact("spent", tmp_path).lines
    function.clear()
    assert (spent(tmp_path), len(function.results), len(function.errors)) == (2.5, 0, 0)
    function.map([1], progress=False)
    assert spent(tmp_path) == 3.0
    function.clear()
    function.clear()
    assert spent(tmp_path) == 3.0
    assert check("spent", tmp_path).is_sound


def test_what_was_spent_is_told_by_version(tmp_path: Path) -> None:
    """Each version has its own sum, after a compaction too."""
    for each, version in ((0.5, None), (2.0, "large")):
        function = costly(tmp_path, each, version=version)
        function.map([1, 2], progress=False)
        function.clear([1])
        function.map([1], progress=False)
    compact("spent", tmp_path)
    costs = function.runner.records.open().spent()
    assert {version: cost.total for version, cost in costs.items()} == {"": 1.5, function.runner.records.version: 6.0}


def test_shards_are_summed(tmp_path: Path) -> None:
    """What all of them cost is what the checkpoint cost."""
    for number in range(2):
        costly(tmp_path).map(range(10), progress=False, shard=(number, 2))
    assert spent(tmp_path) == 5.0


@pytest.mark.slow
@pytest.mark.promise("a kill while money is spent")
def test_attempts_that_wait_are_spent(tmp_path: Path) -> None:
    """What failed attempts cost is on disk when the next one begins, and is counted once in the end."""
    seen = []

    @checkpointed("spent", checkpoint_dir=tmp_path, retry=Retry(3, on=(ValueError,), wait=0))
    def function(n: int) -> int:
        seen.append(spent(tmp_path))
        note(cost=0.5)
        if len(seen) < 3:
            raise ValueError
        return n

    function.map([1], progress=False)
    assert seen == [0.0, 0.5, 1.0]
    assert spent(tmp_path) == 1.5
    assert notes_of(tmp_path, "spent") == {1: {"cost": 1.5}}


def test_halves_of_a_batch_are_spent_once(tmp_path: Path) -> None:
    """A batch that failed is on disk, and its items' records do not count it again."""
    paid = []

    @checkpointed("spent", checkpoint_dir=tmp_path, batch_size=4)
    def function(ns: list[int]) -> list[int]:
        note(cost=1)
        paid.append(1)
        if 2 in ns:
            raise ValueError
        return ns

    function.map(range(4), progress=False, return_exceptions=True)
    assert spent(tmp_path) == pytest.approx(len(paid))


def test_copies_cost_nothing(tmp_path: Path) -> None:
    """A result that is accepted for another input was paid for once."""

    def of(item: dict[str, Any]) -> int:
        note(cost=0.5)
        return 1

    function = checkpointed("spent", checkpoint_dir=tmp_path, key="id")(of)
    function.map([{"id": 1, "text": "a"}], progress=False)
    assert function.accept([{"id": 1, "text": "b"}]) == 1
    assert spent(tmp_path) == 0.5
    compact("spent", tmp_path)
    assert spent(tmp_path) == 0.5


@pytest.mark.promise("a kill while money is spent")
def test_a_kill_while_money_is_spent(tmp_path: Path) -> None:
    """The server's own count, less one call for each kill at most, is what the journals say."""
    script = tmp_path / "job.py"
    script.write_text(
        "import os, sys\nfrom checkpoint import checkpointed, note\n"
        "@checkpointed('spent', checkpoint_dir=sys.argv[1])\n"
        "def f(n):\n"
        "    with open(sys.argv[2], 'ab', 0) as file: file.write(b'x')\n"
        "    note(cost=0.5)\n"
        "    if n == int(sys.argv[3]): os.kill(os.getpid(), 9)\n"
        "    return n\n"
        "f.map(range(12), progress=False)\n"
    )
    for last in (3, 7, 99):
        subprocess.run([sys.executable, script, tmp_path, tmp_path / "server", str(last)], check=False)
    calls = len((tmp_path / "server").read_bytes())
    assert calls == 14
    assert spent(tmp_path) == (calls - 2) * 0.5


def test_meta_keeps_the_sum_and_where_it_reaches(tmp_path: Path) -> None:
    """The next process reads what follows, and no more; of a journal that is another one, all of it."""
    costly(tmp_path).map(range(5), progress=False)
    path = tmp_path / "spent_meta.json"
    meta = json.loads(path.read_text())
    assert meta["cost"]["results"]["by"][""]["total"] == 2.5
    meta["cost"]["results"]["by"][""]["total"] = 100.0
    path.write_text(json.dumps(meta))
    with CheckpointedRunner("spent", tmp_path, version=None) as runner:
        assert Spending(runner.records.store.own).costs()[""].total == 100.0, "it was not read again"
    meta["cost"]["results"]["probe"] += 1
    path.write_text(json.dumps(meta))
    with CheckpointedRunner("spent", tmp_path, version=None) as runner:
        assert Spending(runner.records.store.own).costs()[""].total == 2.5


def test_who_notes_no_cost_keeps_what_meta_says(tmp_path: Path) -> None:
    """A later pass that costs nothing does not lose the sum."""
    costly(tmp_path).map(range(5), progress=False)
    checkpointed("spent", checkpoint_dir=tmp_path, on_change="keep")(_never_asked).map([7, 8], progress=False)
    assert "cost" in json.loads((tmp_path / "spent_meta.json").read_text())
    assert spent(tmp_path) == 2.5


def _never_asked(n: int) -> int:
    return n


def test_what_costs_nothing_says_nothing(tmp_path: Path) -> None:
    """Neither meta nor a journal names what is not used; `clear` leaves no file behind it."""
    function = checkpointed("free", checkpoint_dir=tmp_path)(_never_asked)
    function.map([1, 2], progress=False)
    assert "cost" not in json.loads((tmp_path / "free_meta.json").read_text())
    function.clear()
    assert not list(tmp_path.glob("free*"))


@pytest.mark.parametrize(
    "notes",
    [
        "5",
        "[1]",
        '{"cost":"x"}',
        '{"cost":-1}',
        '{"cost":1e400}',
        '{"cost":true}',
        "null",
        '{"a":' + "[" * 900 + "]" * 900 + "}",
    ],
)
def test_lines_of_others_may_have_anything_for_notes(tmp_path: Path, notes: str) -> None:
    """What is no cost costs nothing; the line counts, and what stands beside it is told."""
    costly(tmp_path).map([1], progress=False)
    with open(tmp_path / "spent_results.jsonl", "a") as journal:
        journal.write(f'{{"key":"by hand","result":2,"notes":{notes},"timestamp":"2026-03-01T12:00:00Z"}}\n')
    assert spent(tmp_path) == 0.5
    function = costly(tmp_path)
    assert dict(function.results) == {1: 1, "by hand": 2}
    assert export("spent", tmp_path / "out.csv", tmp_path) == 2
    assert main(["show", "spent", "--dir", str(tmp_path), "--key", "by hand"]) == 0
    assert check("spent", tmp_path).is_sound


def test_a_note_in_a_loop_by_hand_says_that_it_goes_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once in a process, and what to do instead; after the loop, and in a plain call, nothing is said."""
    monkeypatch.setattr(notes, "_is_told", False)
    note(cost=1)
    assert not caplog.messages
    with CheckpointedRunner("by hand", tmp_path) as runner:
        for item in runner.iterate([1, 2]):
            note(cost=item)
            runner.save_result(item, item)
    assert ["save_result(key, {…})" in message for message in caplog.messages if "note()" in message] == [True]
    monkeypatch.setattr(notes, "_is_told", False)
    caplog.clear()
    note(cost=1)
    assert not caplog.messages


# --- max_cost --------------------------------------------------------------------------------------------------------


def varied(n: int) -> float:
    """Costs that differ a hundredfold."""
    return (1.0, 0.01, 0.3, 0.02)[n % 4]


def paying(n: int) -> int:
    """It costs what its item says, and some of the dear ones fail after that."""
    note(cost=varied(n))
    if n % 16 == 4:
        raise ValueError(n)
    return n


async def paying_awaited(n: int) -> int:
    """The same on an event loop."""
    await asyncio.sleep(0)
    return paying(n)


BUDGETS: dict[str, dict[str, Any]] = {**ENGINES, "tasks": {"workers": 4}, "given executor": {}}


@pytest.mark.promise("a job that costs more than it may")
@pytest.mark.parametrize("engine", BUDGETS)
@pytest.mark.parametrize("limit", [0.0, 5.0])
def test_a_job_that_costs_more_than_it_may(tmp_path: Path, engine: str, limit: float) -> None:
    """It never costs more than the limit and the calls in flight, by however many runs; and it spends what it may."""
    path, options = tmp_path, BUDGETS[engine]
    in_flight = options.get("workers", 2) * options.get("chunksize", 1)

    def run() -> None:
        if engine == "tasks":
            awaited = checkpointed("spent", checkpoint_dir=path)(paying_awaited)
            asyncio.run(awaited.map(range(100), progress=False, max_cost=limit, **options))
            return
        function = checkpointed("spent", checkpoint_dir=path)(paying)
        with ThreadPoolExecutor(2) as executor:
            spread = {"executor": executor, "workers": 2} if engine == "given executor" else options
            function.map(range(100), progress=False, max_cost=limit, **spread)

    for _ in range(3):
        with pytest.raises(MaxCostReached) as reached:
            run()
        assert reached.value.spent == pytest.approx(spent(path))
        assert reached.value.spent <= limit + in_flight
    assert reached.value.spent >= limit - 1.0, "a dear call more would have been too much"
    done = len(lines(path, "spent"))
    assert reached.value.left is not None
    assert done <= 100 - reached.value.left
    assert [value for value in reached.value.results or [] if type(value) is int] == sorted(
        line["key"] for line in lines(path, "spent")
    )


@pytest.mark.parametrize("chunksize", [1, 50])
def test_the_first_calls_are_few_while_nobody_knows_what_one_costs(tmp_path: Path, chunksize: int) -> None:
    """As many as there are workers, however large the chunks are to be."""
    function = checkpointed("spent", checkpoint_dir=tmp_path)(costs_one)
    with pytest.raises(MaxCostReached) as reached:
        function.map(range(200), progress=False, max_cost=3, workers=2, chunksize=chunksize, executor="processes")
    assert reached.value.spent == 3


def costs_one(n: int) -> int:
    """Each call costs the same."""
    note(cost=1)
    return n


def test_equal_costs_are_spent_to_the_limit(tmp_path: Path) -> None:
    """Where each call costs the same, exactly as many are made as may be, with workers too."""
    for workers in (1, 4):
        path = tmp_path / str(workers)
        with pytest.raises(MaxCostReached) as reached:
            costly(path, 0.1).map(range(100), progress=False, max_cost=2.5, workers=workers)
        assert spent(path) == pytest.approx(2.5)
        assert (reached.value.left, reached.value.max_cost) == (75, 2.5)
        assert reached.value.expected == pytest.approx((7.5, 7.5))
        assert "75 are left, which will cost about 7.5 for 75 items" in str(reached.value)


def test_a_job_that_fits_ends_as_ever(tmp_path: Path) -> None:
    """A limit that is just enough is no error; nor is one that is spent, where nothing is left to do."""
    function = costly(tmp_path)
    assert function.map(range(10), progress=False, max_cost=5) == list(range(10))
    assert function.map(range(10), progress=False, max_cost=1) == list(range(10))
    with pytest.raises(MaxCostReached):
        function.map(range(11), progress=False, max_cost=5)


def test_a_limit_holds_for_streams_and_retries(tmp_path: Path) -> None:
    """What failed attempts cost counts at once."""
    calls = []

    @checkpointed("spent", checkpoint_dir=tmp_path, retry=Retry(100, on=(ValueError,), wait=0))
    def function(n: int) -> int:
        calls.append(n)
        note(cost=1)
        raise ValueError

    with pytest.raises(MaxCostReached):
        list(function.stream(range(3), progress=False, max_cost=7))
    assert len(calls) == spent(tmp_path) == 7


def test_a_batch_is_afforded_whole(tmp_path: Path) -> None:
    """A batch begins only where there is room for all of its items."""

    @checkpointed("spent", checkpoint_dir=tmp_path, batch_size=4)
    def function(ns: list[int]) -> list[int]:
        note(cost=len(ns) * 0.25)
        return ns

    with pytest.raises(MaxCostReached):
        function.map(range(100), progress=False, max_cost=5.5)
    assert spent(tmp_path) == 5.0


def test_the_error_pickles(tmp_path: Path) -> None:
    """With its parts, and what there is."""
    with pytest.raises(MaxCostReached) as reached:
        costly(tmp_path).map(range(4), progress=False, max_cost=1)
    again = pickle.loads(pickle.dumps(reached.value))
    assert (str(again), again.spent, again.left) == (str(reached.value), 1.0, 2)
    assert again.results[:2] == [0, 1]
    assert isinstance(again, RuntimeError)


@pytest.mark.parametrize("limit", [-1, float("nan"), float("-inf"), "5", True])
def test_a_limit_is_a_number(tmp_path: Path, limit: Any) -> None:
    """Said before anything is run."""
    with pytest.raises(InvalidOption, match="max_cost"):
        costly(tmp_path).map([1], progress=False, max_cost=limit)


def test_an_infinite_limit_is_none(tmp_path: Path) -> None:
    """Such as a setting that somebody leaves open."""
    assert len(costly(tmp_path).map(range(4), progress=False, max_cost=float("inf"))) == 4


CENTS = st.lists(st.one_of(st.just(1), st.just(100), st.integers(1, 100)), min_size=1, max_size=40)
SHARE = st.floats(0, 1.1)  # of what all cost


@pytest.mark.parametrize("engine", ["serial", "threads", "tasks", "given executor"])
@given(cents=CENTS, share=SHARE)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_budget_is_exceeded_by_the_calls_in_flight_at_most(engine: str, cents: list[int], share: float) -> None:
    """Whatever the prices, a hundredfold apart, and in however many runs; what was spent is what was paid."""
    limit, workers, paid = int(share * sum(cents)), 1 if engine == "serial" else 3, list[int]()

    def call(place: int) -> int:
        note(cost=cents[place])
        paid.append(cents[place])
        return place

    async def awaited(place: int) -> int:
        await asyncio.sleep(0)
        return call(place)

    def run(folder: str, executor: ThreadPoolExecutor) -> MaxCostReached | None:
        options: dict[str, Any] = {"progress": False, "max_cost": limit, "workers": workers}
        if engine == "given executor":
            options |= {"executor": executor, "chunksize": 1}
        function: Any = checkpointed("budget", checkpoint_dir=folder)(awaited if engine == "tasks" else call)
        try:
            mapped = function.map(range(len(cents)), **options)
            if engine == "tasks":
                asyncio.run(mapped)
        except MaxCostReached as reached:
            return reached
        finally:
            function.runner.close()
        return None

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(3) as executor:
        for _ in range(2):
            reached = run(folder, executor)
            assert sum(paid) <= limit + sum(sorted(cents)[-workers:])
            if reached is None:
                assert len(paid) == len(cents)
            else:
                assert reached.spent == sum(paid)
                assert limit - reached.spent < 100, "another call had been affordable"


def test_shards_share_a_limit(tmp_path: Path, ticker: Ticker) -> None:
    """What another shard spends counts here, while both run: within a second."""
    other = costly(tmp_path)
    calls = []

    @checkpointed("spent", checkpoint_dir=tmp_path, on_change="keep")
    def function(n: int) -> int:
        calls.append(n)
        note(cost=0.5)
        if len(calls) == 1:
            other.map(range(40), progress=False, shard=(1, 2))
            ticker.tick(1.0)
        return n

    with pytest.raises(MaxCostReached) as reached:
        function.map(range(40), progress=False, shard=(0, 2), max_cost=14)
    theirs = len(lines(tmp_path, "spent@1-of-2"))
    assert theirs > 10
    assert reached.value.spent == 14 == spent(tmp_path)
    assert len(calls) == 28 - theirs


# --- shown -----------------------------------------------------------------------------------------------------------


def test_notes_are_columns(tmp_path: Path) -> None:
    """So are the cost, the version and the session; a field of a result that is called as one of them steps back."""
    pytest.importorskip("polars")

    @checkpointed("columns", checkpoint_dir=tmp_path, version={"model": "large"})
    def function(n: int) -> dict[str, Any]:
        note(cost=n / 2, model="large", usage={"tokens": n})
        if n == 3:
            raise ValueError
        return {"cost": "high", "n": n}

    results = function.map([1, 2, 3], progress=False, return_exceptions=True)
    frame = results.to_polars(errors=True)
    assert frame.columns == [
        "key", "result.cost", "n", "error", "type", "note.model", "note.usage.tokens", "cost", "timestamp", "elapsed",
        "attempts", "version", "session",
    ]  # fmt: skip
    assert frame["cost"].to_list() == [0.5, 1.0, 1.5]
    assert frame["note.usage.tokens"].to_list() == [1, 2, 3]
    assert set(frame["version"]) == {'{"model":"large"}'}
    assert frame["session"].n_unique() == 1
    export("columns", tmp_path / "out.csv", tmp_path, errors=True)
    assert (tmp_path / "out.csv").read_text().startswith(",".join(frame.columns))


def test_columns_that_no_row_has_are_not_there(tmp_path: Path) -> None:
    """A result keeps its own field `cost` where nothing was noted."""
    pytest.importorskip("polars")
    function = checkpointed("unnoted", checkpoint_dir=tmp_path)(_priced)
    assert function.map([1], progress=False).to_polars().columns == [
        "key", "cost", "timestamp", "elapsed", "attempts", "session",
    ]  # fmt: skip


def _priced(n: int) -> dict[str, int]:
    return {"cost": n}


def test_a_plan_says_what_is_left_to_pay(tmp_path: Path) -> None:
    """What was spent, and the range of what the rest costs, from the costs on record."""
    function = checkpointed("spent", checkpoint_dir=tmp_path)(_varied)
    assert function.plan(range(40)).spent is None
    assert "cost" not in str(function.plan(range(40)))
    function.map(range(40), progress=False)
    plan = function.plan(range(280))
    assert plan.spent == pytest.approx(sum(map(varied, range(40))))
    assert plan.cost == pytest.approx(6 * sum(map(varied, range(40))))
    assert plan.cost is not None
    assert plan.cost_at_least is not None
    assert plan.cost_at_most is not None
    assert plan.cost_at_least < plan.cost < plan.cost_at_most
    low, high = f"{plan.cost_at_least:.3g}", f"{plan.cost_at_most:.3g}"
    assert f"about {low} to {high} for 240 items; 13.3 spent until now" in str(plan)
    assert "cost      13.3 spent until now" in str(function.plan(range(40)))


def _varied(n: int) -> int:
    note(cost=varied(n))
    return n


@pytest.mark.parametrize("workers", [None, 2])
def test_the_bar_says_what_was_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int | None) -> None:
    """In all, by whichever run; where nothing is noted, nothing."""
    costly(tmp_path, 0.31).map(range(4), workers=workers)
    assert "cost 1.24" in capsys.readouterr().err
    costly(tmp_path, 0.31).map([7], workers=workers)
    assert "cost 1.55" in capsys.readouterr().err
    checkpointed("free", checkpoint_dir=tmp_path)(_never_asked).map(range(4), workers=workers)
    assert "cost" not in capsys.readouterr().err


def test_the_bar_of_an_interrupted_pass_says_all_that_was_spent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It looks at the sum twice a second, and once more before it is put away."""

    def job(n: int) -> int:
        if n == 4:
            raise KeyboardInterrupt
        note(cost=0.31)
        return n

    with pytest.raises(KeyboardInterrupt):
        checkpointed("stopped", checkpoint_dir=tmp_path)(job).map(range(8))
    assert "cost 1.24" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_say_what_was_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`ls`, `show` by version, and their JSON; of what cleared records cost, too."""
    for version, each in ((None, 0.25), ("large", 2.0)):
        costly(tmp_path, each, version=version).map(range(4), progress=False)
    assert main(["ls", str(tmp_path)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:6] == ["name", "done", "failed", "total", "cost", "size"]
    assert row.split()[:5] == ["spent", "4", "0", "4", "9"]
    assert main(["show", "spent", "--dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "cost      9\n" in told
    assert "no version: 4 results, 0 errors, cost 1\n" in told
    assert "'large': 4 results, 0 errors, cost 8 (current)" in told
    assert main(["show", "spent", "--dir", str(tmp_path), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["cost"], [held["cost"] for held in seen["versions"]]) == (9.0, [8.0, 1.0])
    assert main(["watch", "spent", "--dir", str(tmp_path)]) == 0
    assert "4 of 4 (100 %) · cost 9" in capsys.readouterr().out


def test_commands_are_silent_of_costs_that_nobody_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is shown of what is not used."""
    checkpointed("free", checkpoint_dir=tmp_path)(_never_asked).map(range(4), progress=False)
    for command in (["ls", str(tmp_path)], ["show", "free", "--dir", str(tmp_path)]):
        assert main(command) == 0
    assert "cost" not in capsys.readouterr().out


# --- watch -----------------------------------------------------------------------------------------------------------

_JOB = (
    "import os, sys\nfrom checkpoint import checkpointed\n"
    "@checkpointed('job', checkpoint_dir=sys.argv[1])\n"
    "def f(n):\n"
    "    if n == int(sys.argv[2]): os.kill(os.getpid(), 9)\n"
    "    if n == int(sys.argv[3]): raise ValueError(n)\n"
    "    return n\n"
    "f.map(range(20), progress=False, return_exceptions=True)\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "fails", "status"), [(-1, -1, 0), (-1, 3, 3), (12, -1, 4), (12, 3, 4)])
def test_watch_says_how_the_job_ended(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    dies: int,
    fails: int,
    status: int,
) -> None:
    """0: complete; 3: complete with failures; 4: killed. So `watch NAME && …` is told of a complete job alone."""
    monkeypatch.setattr(clock, "sleep", lambda _: None)
    subprocess.run([sys.executable, "-c", _JOB, tmp_path, str(dies), str(fails)], check=False)
    assert main(["watch", "job", "--dir", str(tmp_path)]) == status
    assert ("it ended early, and 8 items are left" in capsys.readouterr().out) == (dies > 0)


# --- one key, and the report -----------------------------------------------------------------------------------------


def test_show_tells_the_history_of_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Attempts, errors, notes, durations and versions, forgotten ones too; and which of them count."""
    fails = [True]

    def ask(key: str) -> str:
        note(cost=0.25, model="large", prompt={"text": key})
        if fails.pop() if fails else False:
            raise ValueError("no answer")
        return key.upper()

    function = checkpointed("asked", checkpoint_dir=tmp_path, on_change="keep")(ask)
    function.map(["why", "how"], progress=False, return_exceptions=True)
    function.map(["why", "how"], progress=False)
    function.clear(["why"])
    function.map(["why"], progress=False)
    function.options(version={"model": "small"}).map(["why"], progress=False)
    assert main(["show", "asked", "--dir", str(tmp_path), "--key", "why"]) == 0
    told = capsys.readouterr().out
    assert "'how'" not in told
    assert "cost 1 in all" in told
    for part in ("ValueError: no answer", 'note model: "large"', 'note prompt: {"text":"why"}', "1 attempt", '"WHY"'):
        assert part in told
    assert main(["show", "asked", "--dir", str(tmp_path), "--key", "why", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)["records"]
    kinds = [(record["kind"], record["counts"]) for record in records]
    assert [kind for kind, _ in kinds if kind != "forgotten"] == ["error", "result", "result", "result"]
    assert [counts for kind, counts in kinds if kind == "result"] == [False, True, True]
    assert ("forgotten", False) in kinds
    assert records[-1]["label"] == {"model": "small"}
    assert (records[-1]["cost"], records[-1]["notes"]["model"], records[-1]["result"]) == (0.25, "large", "WHY")
    assert main(["show", "asked", "--dir", str(tmp_path), "--key", "who"]) == 1
    assert "nothing is known of key 'who'" in capsys.readouterr().err


def test_the_report_draws_what_was_spent(tmp_path: Path) -> None:
    """A figure and a curve, where anything was noted."""
    costly(tmp_path, 0.31).map(range(4), progress=False)
    told = write_report("spent", tmp_path / "out.html", checkpoint_dir=tmp_path).read_text("utf-8")
    assert "<dt>Cost</dt><dd>1.24</dd>" in told
    assert "Cost over time, 1.24 until now" in told
    checkpointed("free", checkpoint_dir=tmp_path)(_never_asked).map(range(4), progress=False)
    told = write_report("free", tmp_path / "free.html", checkpoint_dir=tmp_path).read_text("utf-8")
    assert "Cost" not in told
