"""Shards: many tasks without a driver, each with journals of its own, and one checkpoint for whoever reads."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint import (
    CheckpointedRunner,
    CheckpointLocked,
    DamagedRecord,
    DuplicateKey,
    ItemsFailed,
    checkpointed,
    clock,
)
from checkpoint.catalog import siblings
from checkpoint.catalog.shards import ALL, Shard, hash_of, shard_of, shards_in, split_prefix
from checkpoint.cli import main
from checkpoint.errors import FunctionChanged, InvalidKey, InvalidName, InvalidOption, StoreError
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact
from checkpoint.reporting.history import gather
from checkpoint.reporting.status import list_checkpoints, survey
from checkpoint.storage.index import Index
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import seal
from checkpoint.storage.store import Entry, Store
from checkpoint.values.keys import Key, key_json

DEADLINE = 60.0
KEYS: tuple[Key, ...] = (1, "1", 2.5, None, ("a", 1), "b", 7)


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Until it holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)


@pytest.fixture(autouse=True)
def no_shard_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests that run as a task of an array are no task of it."""
    for name in [name for name in os.environ if name.startswith(("SLURM_ARRAY", "CHECKPOINT_SHARD"))]:
        monkeypatch.delenv(name)


class Squares:
    """A checkpointed function in a directory, and the items that it was called with."""

    def __init__(self, directory: Path) -> None:
        self.calls: list[int] = []
        self.fails: set[int] = set()
        self.map = checkpointed("sq", checkpoint_dir=directory, version=1)(self._square).map
        self.face = self.map.__self__  # type: ignore[attr-defined]

    def _square(self, n: int) -> int:
        self.calls.append(n)
        if n in self.fails:
            raise ValueError("odd")
        return n * n

    def array(self, items: Any, n: int) -> None:
        """Each of n tasks, one after the other."""
        for i in range(n):
            self.map(items, shard=(i, n), progress=False)


@pytest.fixture
def squares(tmp_path: Path) -> Squares:
    """Squares in an empty directory."""
    return Squares(tmp_path)


# --- the split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "of_4", "of_7", "of_1000", "reason"),
    [
        ("a", 1, 5, 689, "text"),
        ("doc-17", 3, 0, 439, "longer text"),
        ("é\ud800", 1, 4, 513, "text that no encoding holds"),
        (0, 1, 5, 33, "zero"),
        (1, 1, 3, 733, "an int"),
        (1.0, 1, 3, 733, "the same key, a float"),
        (True, 1, 3, 733, "the same key, a bool"),
        (-5, 2, 0, 578, "a negative int"),
        (2**70, 3, 1, 55, "a large int"),
        (2.5, 0, 4, 888, "a float"),
        (None, 2, 1, 634, "None"),
        (("a", 1), 3, 3, 931, "a tuple"),
        (("a", 1.0), 3, 3, 931, "an equal tuple"),
        (("a", ("b",)), 3, 0, 759, "a nested tuple"),
    ],
)
def test_the_split_never_changes(key: Key, of_4: int, of_7: int, of_1000: int, reason: str) -> None:
    """Another split would run every task's items again: these numbers are part of the format."""
    assert (hash_of(key) % 4, hash_of(key) % 7, hash_of(key) % 1000) == (of_4, of_7, of_1000)
    assert Shard(of_4, 4).has(key)


@pytest.mark.parametrize("n", [2, 3, 16, 100])
def test_each_key_is_of_one_shard_and_shards_are_alike(n: int) -> None:
    """Disjoint, complete, and none is more than half as large again as the mean of a thousand keys."""
    keys = range(1000 * n)
    held = Counter(i for key in keys for i in [hash_of(key) % n])
    assert sum(held.values()) == len(keys)
    assert all(sum(Shard(i, n).has(key) for i in range(n)) == 1 for key in range(50))
    assert set(held) == set(range(n))
    assert max(held.values()) < 1500
    assert min(held.values()) > 500


@pytest.mark.parametrize(
    ("one", "other", "meet", "reason"),
    [
        ((0, 1), (3, 100), True, "all holds every key"),
        ((1, 4), (2, 4), False, "of one count, no key is in two"),
        ((1, 4), (5, 6), True, "alike modulo 2"),
        ((1, 4), (4, 6), False, "not alike modulo 2"),
        ((3, 4), (2, 5), True, "counts without a common factor"),
    ],
)
def test_shards_meet_where_a_key_can_be_of_both(
    one: tuple[int, int], other: tuple[int, int], meet: bool, reason: str
) -> None:
    """As keys themselves show."""
    shown = any(hash_of(key) % one[1] == one[0] and hash_of(key) % other[1] == other[0] for key in range(2000))
    assert Shard(*one).meets(Shard(*other)) is Shard(*other).meets(Shard(*one)) is meet is shown


def test_files_say_whose_they_are_and_no_name_does(tmp_path: Path) -> None:
    """`@` is not legal in a name, and what only looks like a shard's file is none."""
    assert Shard(3, 100).prefix("my job") == "my job@3-of-100"
    assert split_prefix("my job@3-of-100") == ("my job", Shard(3, 100))
    for text in ("job", "job@3", "job@100-of-100", "job@03-of-100", "job@0-of-1", "job@1-of-100001"):
        assert split_prefix(text) == (text, ALL)
    with pytest.raises(InvalidName):
        CheckpointedRunner("job@3-of-100", tmp_path)
    for file in ("job@3-of-100_results.jsonl", ".job@4-of-100_unsaved.jsonl", "job@9-of-8_results.jsonl", "job@x"):
        (tmp_path / file).touch()
    (tmp_path / "other@1-of-2_results.jsonl").touch()
    assert shards_in(tmp_path, "job") == {Shard(3, 100), Shard(4, 100)}


# --- which shard is meant --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "told", "reason"),
    [
        ((4, 4), "0 to 3", "numbers begin at 0"),
        ((-1, 4), "0 to 3", "negative"),
        ((0, 0), "ints 0 <= i < n", "no shards"),
        ((0, 100_001), "more than 100,000", "too many"),
        ((0.0, 4), "ints", "no ints"),
        ((True, 4), "ints", "a bool"),
        ((1, 2, 3), "shard=(3, 100)", "three"),
        ("3/100", "shard=(3, 100)", "text"),
        (3, "shard=(3, 100)", "a number alone"),
    ],
)
def test_a_wrong_shard_is_refused_with_what_to_write(
    squares: Squares, tmp_path: Path, option: Any, told: str, reason: str
) -> None:
    """Before anything is run or made; by map, stream and plan."""
    for use in (
        lambda: squares.map([1], shard=option),
        lambda: list(squares.face.stream([1], shard=option)),
        lambda: squares.face.plan([1], shard=option),
    ):
        with pytest.raises(InvalidOption) as raised:
            use()
        assert told in str(raised.value)
    assert not squares.calls
    assert not list(tmp_path.iterdir())


def slurm(**parts: object) -> dict[str, str]:
    """The environment of a task."""
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in parts.items()}


@pytest.mark.parametrize(
    ("environ", "expected", "reason"),
    [
        (slurm(ID=3, COUNT=100, MIN=0, MAX=99, STEP=1), (3, 100), "--array=0-99"),
        (slurm(ID=3, COUNT=100, MIN=0, MAX=99), (3, 100), "a Slurm that does not tell the step"),
        (slurm(ID=10, COUNT=10, MIN=1, MAX=10, STEP=1), (9, 10), "--array=1-10"),
        (slurm(ID=8, COUNT=4, MIN=0, MAX=12, STEP=4), (2, 4), "--array=0-12:4"),
        (slurm(ID=5, COUNT=1, MIN=5, MAX=5, STEP=1), (0, 1), "--array=5: one task, which does all that is left"),
        ({}, "SLURM_ARRAY_TASK_ID is not set", "no array"),
        (slurm(ID=3), "SLURM_ARRAY_TASK_COUNT is not set", "half an environment"),
        (slurm(ID=3, COUNT=2, MIN=3, MAX=7, STEP=1), "has gaps", "--array=3,7"),
        (slurm(ID=4, COUNT=3, MIN=0, MAX=4, STEP=1), "has gaps", "--array=0,1,4"),
        (slurm(ID="x", COUNT=3, MIN=0, MAX=2, STEP=1), "has gaps", "no number"),
        (slurm(ID=0, COUNT=3, MIN=0, MAX=2, STEP=0), "has gaps", "a step of none"),
        (slurm(ID=0, COUNT=100_001, MIN=0, MAX=100_000, STEP=1), "more than 100,000", "too many"),
    ],
)
def test_a_slurm_array_tells_its_shard_or_what_to_write(environ: dict[str, str], expected: Any, reason: str) -> None:
    """From the variables of the task; an array with gaps would leave items undone that no task has."""
    for option, variables in (("slurm", environ), (None, {**environ, "CHECKPOINT_SHARD": "slurm"})):
        if isinstance(expected, tuple):
            assert shard_of(option, variables) == expected  # type: ignore[arg-type]
            continue
        with pytest.raises(InvalidOption) as raised:
            shard_of(option, variables)  # type: ignore[arg-type]
        assert expected in str(raised.value)
        assert "shard=(i, n)" in str(raised.value) or "more items" in str(raised.value)


@pytest.mark.parametrize("told", ["3", "4/4", "x/4", "3 of 4", "-1/4", "0/0"])
def test_a_wrong_shard_in_the_environment_is_refused(told: str) -> None:
    """Rather than taken for all."""
    with pytest.raises(InvalidOption, match="CHECKPOINT_SHARD"):
        shard_of(None, {"CHECKPOINT_SHARD": told})


def test_the_environment_is_obeyed_where_no_shard_is_given(
    squares: Squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`shard=(0, 1)` is all, whatever it says: an ordinary pass on the checkpoint's own journals."""
    monkeypatch.setenv("CHECKPOINT_SHARD", "1/4")
    with caplog.at_level(logging.INFO, "checkpoint"):
        own = squares.map(range(40), progress=False)
    assert [message for message in caplog.messages if "running shard 1/4 (of $CHECKPOINT_SHARD)" in message]
    assert own.item_keys == [n for n in range(40) if hash_of(n) % 4 == 1]
    assert squares.face.plan(range(40)).total == len(own)
    assert squares.map(range(40), progress=False, shard=(0, 1)) == [n * n for n in range(40)]
    assert sorted(squares.calls) == list(range(40))
    assert (tmp_path / "sq_results.jsonl").exists()
    monkeypatch.setenv("CHECKPOINT_SHARD", "")
    assert len(squares.map(range(40), progress=False)) == 40


# --- which items are run ---------------------------------------------------------------------------------------------


class Twice:
    """Input that can be read again, and is no list."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@pytest.mark.parametrize("kind", [list, tuple, Twice, iter], ids=["list", "tuple", "read twice", "one-shot"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_shard_runs_and_returns_its_own_items_in_order(squares: Squares, kind: Any, workers: int) -> None:
    """Of whatever input, duplicates included; and all shards together run each item once."""
    items = [*range(50), 7, 3]
    for i in range(3):
        results = squares.map(kind(items), shard=(i, 3), workers=workers, progress=False)
        own = [n for n in items if hash_of(n) % 3 == i]
        assert results.item_keys == own
        assert list(results) == [n * n for n in own]
        assert squares.map(kind(items), shard=(i, 3), progress=False) == [n * n for n in own], "resumed"
    assert sorted(squares.calls) == list(range(50))


def test_one_shot_input_stays_lazy(squares: Squares) -> None:
    """An endless stream yields the first of its own as soon as it is there."""
    drawn: list[int] = []

    def endless() -> Iterator[int]:
        n = 0
        while True:
            drawn.append(n)
            yield n
            n += 1

    stream = squares.face.stream(endless(), shard=(1, 5), progress=False)
    outcomes = [next(stream) for _ in range(3)]
    stream.close()
    assert [outcome.key for outcome in outcomes] == [n for n in range(100) if hash_of(n) % 5 == 1][:3]
    assert len(drawn) <= outcomes[-1].key + 20


@pytest.mark.parametrize("kind", [list, Twice, iter], ids=["list", "read twice", "one-shot"])
def test_errors_name_the_place_in_the_whole_input(tmp_path: Path, kind: Any) -> None:
    """Not that among the shard's own items."""
    face = checkpointed("x", key="id", checkpoint_dir=tmp_path, version=1)(lambda item: item["id"])
    (own,) = [i for i in range(4) if Shard(i, 4).has("twin")]
    items: list[dict[str, Any]] = [{"id": f"n{n}"} for n in range(30)]
    items[11] = {"id": "twin", "n": 1}
    items[23] = {"id": "twin", "n": 2}
    with pytest.raises(DuplicateKey) as duplicate:
        face.map(kind(items), shard=(own, 4), progress=False)
    assert duplicate.value.places == (11, 23)
    assert "items 11 and 23" in str(duplicate.value)
    items[17] = {"id": 1j}
    with pytest.raises(InvalidKey, match="item 17"):
        face.map(kind([*items[:11], {"id": "single"}, *items[12:20]]), shard=(own, 4), progress=False)


async def _doubled(n: int) -> int:
    return 2 * n


def test_coroutine_functions_and_methods_take_shards(tmp_path: Path) -> None:
    """The same option, the same split."""
    import asyncio

    class Scale:
        def __init__(self) -> None:
            self.by = 3

        @checkpointed("scale", checkpoint_dir=tmp_path)
        def run(self, n: int) -> int:
            return n * self.by

    own = [n for n in range(20) if hash_of(n) % 2 == 1]
    doubled = checkpointed("doubled", checkpoint_dir=tmp_path, version=1)(_doubled)
    assert asyncio.run(doubled.map(range(20), shard=(1, 2), workers=4, progress=False)) == [2 * n for n in own]
    assert Scale().run.map(range(20), shard=(1, 2), progress=False) == [3 * n for n in own]


# --- one checkpoint --------------------------------------------------------------------------------------------------


def test_readers_see_one_checkpoint(squares: Squares, tmp_path: Path) -> None:
    """Results, errors, plan, runner, and a pass over all, which runs what is missing into its own journals."""
    squares.fails = {4, 9}
    for i in range(4):
        squares.map(range(30), shard=(i, 4), progress=False, return_exceptions=True)
    assert not (tmp_path / "sq_results.jsonl").exists()
    results, errors = squares.face.results, squares.face.errors
    assert dict(results) == {n: n * n for n in range(30) if n not in (4, 9)}
    assert len(results) == 28
    assert results[7] == 49
    assert 4 not in results
    assert sorted(errors) == [4, 9]
    assert errors[9].message == "odd"
    plan = squares.face.plan(range(35))
    assert (plan.done, plan.failed, plan.new) == (28, 2, 5)
    with CheckpointedRunner("sq", tmp_path) as runner:
        assert runner.progress() == (28, 30)
        assert runner.get_all_errors() == {4: "odd", 9: "odd"}
    squares.fails, squares.calls[:] = set(), []
    assert squares.map(range(35), progress=False) == [n * n for n in range(35)]
    assert sorted(squares.calls) == [4, 9, 30, 31, 32, 33, 34]
    assert not squares.face.errors, "a success in any journal retires an error in any"
    assert squares.face.runner.progress() == (35, 35)


def test_another_count_goes_on_where_the_last_one_was(squares: Squares) -> None:
    """Whatever the counts have in common; nothing is run twice, and a collected pass is known to shards too."""
    squares.array(range(30), 4)
    squares.array(range(40), 6)
    squares.map(range(50), progress=False)
    squares.array(range(60), 7)
    squares.array(range(60), 4)
    assert sorted(squares.calls) == list(range(60))
    assert squares.map(range(60), progress=False) == [n * n for n in range(60)]


@pytest.mark.slow
@pytest.mark.promise("shards killed, and resubmitted with another count")
def test_a_task_of_another_count_is_refused_while_tasks_run(squares: Squares, tmp_path: Path) -> None:
    """Both counts would run each item. Who runs is named; counts that have ended, and shards of one's own, are none."""
    squares.array(range(10), 2)
    squares.array(range(20), 4)
    done = len(squares.calls)
    with holding(tmp_path / ".sq@1-of-3.lock"):
        for refused in ((0, 2), (1, 4)):
            with pytest.raises(
                CheckpointLocked, match=r"run as 3 shards \(shard 1/3, by process \d+ on .* of 3;"
            ) as told:
                squares.map(range(99), shard=refused, progress=False)
            assert str(told.value.filename).endswith(".sq@1-of-3.lock")
        assert len(squares.calls) == done
        squares.map(range(30), shard=(0, 3), progress=False)
        squares.map(range(40), progress=False)
    squares.array(range(50), 2)
    assert sorted(squares.calls) == list(range(50))


@pytest.mark.slow
def test_of_two_counts_at_once_the_first_goes_on(
    squares: Squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of two counts that begin together do not refuse each other."""
    with holding(tmp_path / ".sq@1-of-3.lock"):
        monkeypatch.setattr(clock.Stamper, "__call__", lambda _: b"2026-01-01T00:00:00.000Z")
        squares.map(range(30), shard=(0, 2), progress=False)
    assert len(squares.calls) > 5


def test_a_task_opens_no_journal_of_its_siblings(
    squares: Squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand tasks must not open a thousand files each."""
    squares.array(range(40), 8)
    opened: list[str] = []
    real = Reader.open.__func__  # type: ignore[attr-defined]

    def noted(cls: type[Reader], path: Path) -> Any:
        opened.append(path.name)
        return real(cls, path)

    monkeypatch.setattr(Reader, "open", classmethod(noted))
    fresh = Squares(tmp_path)
    fresh.map(range(40), shard=(3, 8), progress=False)
    assert {name.split("_")[0].lstrip(".") for name in opened} <= {"sq", "sq@3-of-8"}
    opened.clear()
    fresh.map(range(40), shard=(3, 6), progress=False)
    assert {name.partition("_")[0].lstrip(".") for name in opened} == {
        "sq", "sq@3-of-6", "sq@1-of-8", "sq@3-of-8", "sq@5-of-8", "sq@7-of-8",
    }  # fmt: skip


def test_shards_that_come_later_are_noticed(squares: Squares, tmp_path: Path) -> None:
    """By a reader that was open before there were any; and by one that knew some."""
    with CheckpointedRunner("sq", tmp_path, version=1) as runner:
        assert runner.progress() == (0, None)
        for i in range(3):
            squares.map(range(30), shard=(i, 3), progress=False)
            assert runner.progress()[0] == sum(hash_of(n) % 3 <= i for n in range(30))


def test_what_is_known_stays_so_until_something_is_learned(squares: Squares) -> None:
    """Looking again at journals that did not change, or are not there, makes no reader count or find anew."""
    squares.array(range(30), 3)
    store = squares.face.runner.records.open()
    before, reader = store.results.state, store.results.reader
    store.refresh()
    assert store.results.state == before
    assert store.results.reader is reader
    squares.array(range(31), 3)
    store.refresh()
    assert store.results.state != before
    assert store.results.reader is reader


def test_a_pass_keeps_its_results_whatever_shards_do_later(squares: Squares, tmp_path: Path) -> None:
    """They were found in several files, of which each is kept open; a shard that joins later moves none of them."""
    squares.map(range(10), progress=False)
    before = squares.map(range(10), progress=False)
    squares.array(range(30), 3)
    both = squares.map(range(30), progress=False)
    squares.array(range(60), 4)
    squares.face.clear()
    assert before == [n * n for n in range(10)]
    assert both == [n * n for n in range(30)]
    assert both.item_keys == list(range(30))


def test_the_total_is_that_of_the_last_pass(squares: Squares, tmp_path: Path) -> None:
    """The sum over the shards of its count, once all have said it; shards without items say so too."""
    for i in range(3):
        assert survey_total(tmp_path) is None
        squares.map(range(2), shard=(i, 3), progress=False)
    assert survey_total(tmp_path) == 2
    squares.map(range(5), progress=False)
    assert survey_total(tmp_path) == 5


def survey_total(directory: Path) -> int | None:
    """The total that `show` tells; None where there is no checkpoint yet."""
    return survey("sq", directory).total if any(directory.iterdir()) else None


@pytest.mark.slow
def test_clear_forgets_in_every_journal_that_knows_the_key(squares: Squares, tmp_path: Path) -> None:
    """Keys, wherever they are, more than once even; and everything, with all files."""
    squares.array(range(20), 3)
    squares.map(range(30), progress=False)
    squares.face.clear([2, 3, 25, "unknown"])
    assert len(squares.face.results) == 27
    squares.calls.clear()
    squares.array(range(30), 2)
    assert sorted(squares.calls) == [2, 3, 25]
    squares.face.clear()
    assert len(squares.face.results) == 0
    assert not list(tmp_path.glob("*_*"))


@pytest.mark.slow
def test_a_locked_shard_is_refused_before_anything_is_forgotten(squares: Squares, tmp_path: Path) -> None:
    """Of keys, only those journals need be free that know one; of all, each."""
    squares.array(range(20), 3)
    there = [next(n for n in range(20) if hash_of(n) % 3 == i) for i in range(3)]
    with holding(tmp_path / ".sq@1-of-3.lock"):
        with pytest.raises(CheckpointLocked, match="sq@1-of-3"):
            squares.face.clear([there[0], there[1]])
        for change in (squares.face.clear, lambda: compact("sq", tmp_path)):
            with pytest.raises(CheckpointLocked, match="sq@1-of-3"):
                change()
        with pytest.raises(CheckpointLocked, match="sq@1-of-3"):
            squares.map(range(20, 40), shard=(1, 3), progress=False)
        assert len(squares.face.results) == 20
        squares.face.clear([there[0], there[2]])
    assert len(squares.face.results) == 18


class holding:
    """Another process holds this lock."""

    def __init__(self, path: Path) -> None:
        self._code = (
            "import sys; from pathlib import Path; from checkpoint.storage.lock import Lock; "
            "lock = Lock(Path(sys.argv[1]), 'x'); lock.acquire(); print('held', flush=True); sys.stdin.read()"
        )
        self._path = path

    def __enter__(self) -> None:
        command = [sys.executable, "-c", self._code, str(self._path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"held\n"

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=DEADLINE)


def damage(path: Path, key: int) -> None:
    """Flip a digit of the key's result."""
    lines = path.read_bytes().splitlines(keepends=True)
    place = next(place for place, line in enumerate(lines) if json.loads(line)["key"] == key)
    lines[place] = lines[place].replace(b'"result":%d' % key**2, b'"result":%d' % (key**2 + 1))
    path.write_bytes(b"".join(lines))


def test_a_record_found_damaged_in_a_shard_is_not_done_from_then_on(squares: Squares, tmp_path: Path) -> None:
    """In this process, and in others, which look at what was noted beside its journal; no journal is written."""
    squares.array(range(20), 3)
    key = [n for n in range(20) if hash_of(n) % 3 == 1][2]
    journal = tmp_path / "sq@1-of-3_results.jsonl"
    damage(journal, key)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    with pytest.raises(DamagedRecord, match="sq@1-of-3_results") as raised:
        squares.face.results[key]
    assert raised.value.key == key
    assert {path: path.read_bytes() for path in tmp_path.glob("*.jsonl")} == before
    assert (tmp_path / ".sq@1-of-3_results.damaged").exists()
    squares.calls.clear()
    assert key not in squares.face.results
    assert squares.map(range(20), progress=False)[key] == key**2
    assert squares.calls == [key]
    assert not check("sq", tmp_path).is_sound


def test_damage_in_a_shard_that_is_being_written_is_known_here_alone(squares: Squares, tmp_path: Path) -> None:
    """Its writer is not disturbed."""
    squares.array(range(20), 3)
    key = [n for n in range(20) if hash_of(n) % 3 == 1][2]
    journal = tmp_path / "sq@1-of-3_results.jsonl"
    damage(journal, key)
    before = journal.read_bytes()
    with holding(tmp_path / ".sq@1-of-3.lock"):
        with pytest.raises(DamagedRecord):
            squares.face.results[key]
        assert key not in squares.face.results
    assert journal.read_bytes() == before


def test_a_sound_record_counts_where_another_of_its_key_is_damaged(squares: Squares, tmp_path: Path) -> None:
    """Two journals hold the key: the one that can be read is as good as the other."""
    squares.array(range(20), 3)
    for shard in tmp_path.glob("sq@*_results.jsonl"):
        shard.with_name(shard.name.replace("of-3", "of-30000")).write_bytes(shard.read_bytes())  # none finds its keys
    (tmp_path / "sq_results.jsonl").write_bytes((tmp_path / "sq@1-of-3_results.jsonl").read_bytes())
    key = [n for n in range(20) if hash_of(n) % 3 == 1][2]
    damage(tmp_path / "sq@1-of-3_results.jsonl", key)
    assert squares.face.results[key] == key**2
    damage(tmp_path / "sq_results.jsonl", key)
    with pytest.raises(DamagedRecord):
        squares.face.results[key]


def test_shards_run_beside_each_other_and_beside_a_pass_over_all(squares: Squares, tmp_path: Path) -> None:
    """In one process too: each has its own lock."""
    other = Squares(tmp_path)
    streams = [squares.face.stream(range(20), shard=(i, 2), progress=False) for i in range(2)]
    firsts = [next(stream) for stream in streams]
    assert other.map(range(20), progress=False) == [n * n for n in range(20)]
    rest = [outcome.key for stream in streams for outcome in stream]
    assert sorted([*rest, *(outcome.key for outcome in firsts)]) == list(range(20))
    assert len(squares.face.results) == 20, "a key that two have is one"


def test_values_kept_aside_by_a_shard_are_found_and_not_paid_for_again(tmp_path: Path) -> None:
    """By whoever reads the whole, and by a task of another count."""
    calls: list[int] = []

    def make(n: int) -> Any:
        calls.append(n)
        return object() if n == 5 else n

    face = checkpointed("odd", checkpoint_dir=tmp_path, version=1)(make)
    for i in range(3):
        face.map(range(10), shard=(i, 3), progress=False, return_exceptions=True)
    assert list(face.unsaved) == [5]
    assert list(face.errors) == [5]
    for shard in ((0, 1), (hash_of(5) % 4, 4)):
        with pytest.raises(ItemsFailed):
            face.map(range(10), shard=shard, progress=False)
    assert sorted(calls) == list(range(10))
    face.clear([5])
    assert not face.unsaved


@pytest.mark.parametrize("shard", [(0, 1), (1, 3)], ids=["all", "another count"])
def test_a_function_that_changed_is_known_by_what_shards_noted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, shard: tuple[int, int]
) -> None:
    """A changed value is refused, and told with what it was; "recompute" computes anew what any shard holds."""

    def scaled(by: int, on_change: Any = None) -> Any:
        return checkpointed("scaled", checkpoint_dir=tmp_path, on_change=on_change)(lambda n: n * by)

    for i in range(2):
        scaled(2).map(range(20), shard=(i, 2), progress=False)
    with pytest.raises(FunctionChanged, match="2 → 3"):
        scaled(3).map(range(20), shard=shard, progress=False)
    own = [n for n in range(20) if Shard(*shard).has(n)]
    for _ in range(2):
        assert scaled(3, "recompute").map(range(20), shard=shard, progress=False) == [3 * n for n in own]
    results = scaled(3).results
    assert {n: results[n] for n in range(20)} == {n: n * (3 if n in own else 2) for n in range(20)}
    assert len(results) == 20


def test_what_is_saved_by_hand_hides_no_shard_from_the_next_pass(squares: Squares, tmp_path: Path) -> None:
    """The lock is kept for a moment after a save; shards that were written since are looked for all the same."""
    runner = squares.face.runner
    runner.save_result(0, 0)
    squares.array(range(20), 3)
    squares.calls.clear()
    assert squares.map(range(20), progress=False) == [n * n for n in range(20)]
    assert not squares.calls


# --- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("free_sync")
def test_a_million_results_in_a_hundred_shards_open_without_their_values_being_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard leaves an index file, since its share of what opening may read anew is a hundredth."""
    count, n = (1_000_000, 100) if os.environ.get("CHECKPOINT_SOAK") else (30_000, 100)
    keys: list[list[int]] = [[] for _ in range(n)]
    for key in range(count):
        keys[hash_of(key) % n].append(key)
    share = 100_000 // n
    for i in range(n):
        face = checkpointed("m", checkpoint_dir=tmp_path, version=1)(_text)
        store = face._runner_of(Shard(i, n)).records.store
        own = keys[i] if len(keys[i]) > share else range(share + 1)  # as many as make an index file worth it
        store.writer.begin()
        lines = [(key, seal(b'{"key":%d,"result":"%b"' % (key, b"x" * 40))) for key in own]
        store.append(store.own.results, [Entry("", key, 0, line) for key, line in lines])
        store.close()
    scanned: list[int] = []
    real = Index.scan

    def scan(self: Index, journal: Reader) -> None:
        scanned.append(journal.size() - self.end)
        real(self, journal)

    monkeypatch.setattr(Index, "scan", scan)
    with CheckpointedRunner("m", tmp_path, version=None) as runner:
        assert len(runner.records.checkpoint.shards) == n
        assert runner.is_completed(keys[5][0])
        assert runner.get_result(keys[99][0]) == "x" * 40
    assert sum(scanned) == 0


def _text(n: int) -> str:
    return "x" * 40


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="limits of POSIX")
def test_more_shards_than_the_limit_of_open_files_are_read(squares: Squares, tmp_path: Path) -> None:
    """The soft limit is raised as far as it takes."""
    squares.array(range(100), 50)
    code = (
        "import resource, sys; from checkpoint import CheckpointedRunner; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])); "
        "print(CheckpointedRunner('sq', sys.argv[1], version=1).progress())"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("(100, 100)\n", "")


def test_an_unsharded_checkpoint_is_looked_at_once_more_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has no shards pays for none: a look at the directory, which is listed only once it was modified."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result(1, 1)
    os.utime(tmp_path, (1, 1))
    listed: list[Path] = []

    def found(directory: Path, name: str) -> set[Shard]:
        listed.append(directory)
        return set()

    monkeypatch.setattr(siblings, "shards_in", found)
    with CheckpointedRunner("j", tmp_path) as runner:
        for _ in range(5):
            assert runner.is_completed(1)
        assert len(listed) == 1
        assert type(runner.records.checkpoint.results).__name__ == "KeyedLog"


# --- what one journal would say --------------------------------------------------------------------------------------

VERSIONS = ("", "00000000000000aa")
EVENT = st.tuples(
    st.sampled_from(KEYS), st.sampled_from(["result", "error", "forget"]), st.sampled_from(VERSIONS), st.integers(1, 4)
)


def record(number: int, key: Key, kind: str, version: str) -> bytes:
    """A line; its timestamp tells the place in time."""
    parts = {"result": b'"result":%d' % number, "error": b'"error":"e%d"' % number, "forget": b'"forgotten":true'}
    head = b'{"key":%b,%b,"timestamp":"2026-01-01T00:00:%02d.000Z"' % (key_json(key), parts[kind], number)
    return seal(head + (b',"version":"%b"' % version.encode() if version else b""))


def write_down(directory: Path, events: list[Any]) -> None:
    """Each in the journals of its shard; what forgets a key, in all that know it."""
    known: dict[Any, set[Path]] = {}
    for number, (key, kind, version, of) in enumerate(events):
        path = directory / f"{Shard(hash_of(key) % of, of).prefix('j')}_{kind}s.jsonl"
        paths = known.get((key, version), set()) if kind == "forget" else {path}
        known.setdefault((key, version), set()).update(paths)
        for path in paths:
            with path.open("ab") as file:
                file.write(record(number, key, kind, version))


def told_by(directory: Path) -> dict[str, Any]:
    """All that readers say."""
    told: dict[str, Any] = {}
    for version in (checkpoint.LATEST, None):
        with CheckpointedRunner("j", directory, version=version) as runner:
            records, whole = runner.records, runner.records.checkpoint
            told[f"{version}"] = [
                records.version,
                list(runner.get_all_results().items()),
                list(runner.get_all_errors().items()),
                records.count(),
                [(runner.get_result(key), runner.is_completed(key)) for key in KEYS],
                [offset >= 0 for offset in whole.results.find_all(records.version, list(KEYS))[0]],
                whole.results.count("00000000000000aa"),
            ]
            story = gather(records)
            told[f"story {version}"] = (story.done, story.failed, story.damaged)
    seen = survey("j", directory)
    told["survey"] = (seen.done, seen.failed, seen.version, [held.to_json() for held in seen.versions])
    told["check"] = [held.to_json() for held in check("j", directory).versions]
    return told


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(EVENT, min_size=1, max_size=25), index=st.booleans())
@pytest.mark.usefixtures("free_sync")
def test_joined_journals_say_what_one_with_all_records_would(
    tmp_path_factory: pytest.TempPathFactory, events: list[Any], index: bool
) -> None:
    """Whatever was saved, failed, was cleared or computed again, under which version, by which count of shards."""
    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    write_down(one, [(key, kind, version, 1) for key, kind, version, _ in events])
    write_down(many, events)
    if not any(many.iterdir()):
        return  # nothing but keys forgotten that never were
    if index:
        for shard in (ALL, *shards_in(many, "j")):
            store = Store(shard.prefix("j"), many)
            for shelf in store.own:
                shelf.write_index()
            store.close()
    assert told_by(many) == told_by(one)
    before = told_by(many)
    compact("j", many)
    assert told_by(many) == before


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_knows_one_checkpoint(squares: Squares, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Listed once with the sum, shown with its shards; exported, checked, compacted, reported, cleared as a whole."""
    squares.fails = {4}
    for i in range(3):
        squares.map(range(20), shard=(i, 3), progress=False, return_exceptions=True)
    squares.fails = set()
    squares.array(range(20), 4)
    squares.face.clear([7])
    squares.array(range(20), 3)

    def run(*words: str) -> str:
        assert main([*words, "--dir", str(tmp_path)] if words[0] != "ls" else [*words, str(tmp_path)]) == 0
        return capsys.readouterr().out

    (held,) = list_checkpoints(tmp_path)
    assert (held.name, held.done, held.failed, held.total, held.shards, held.writers) == ("sq", 20, 0, 20, 7, 0)
    assert "7 shards" in run("ls")
    shown = json.loads(run("show", "sq", "--json"))
    assert (shown["done"], shown["total"], len(shown["shards"])) == (20, 20, 7)
    assert "3 of 3, 4 of 4 have files" in run("show", "sq")
    assert "20 of 20" in run("watch", "sq", "--interval", "0.05")
    out = tmp_path / "out.csv"
    run("export", "sq", str(out))
    assert len(out.read_text().splitlines()) == 21
    assert "no errors" in run("errors", "sq")
    sound = json.loads(run("check", "sq", "--json"))
    assert sound["sound"]
    assert [part["name"] for part in sound["shards"]][:2] == ["sq@0-of-3", "sq@1-of-3"]
    assert [version["results"] for version in sound["versions"]] == [20]
    assert "freed" in run("compact", "sq")
    run("report", "sq", "--out", str(tmp_path / "report.html"))
    assert "20" in (tmp_path / "report.html").read_text()
    assert json.loads(run("clear", "sq", "--key", "3", "--yes", "--json"))["results"] == 1
    assert len(squares.face.results) == 19
    assert json.loads(run("clear", "sq", "--yes", "--json"))["results"] >= 19
    assert not list(tmp_path.glob("sq*_results*"))


def test_errors_of_shards_are_told_by_cause(
    squares: Squares, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that no journal has a result for."""
    squares.fails = {4, 9, 11, 12}
    for i in range(3):
        squares.map(range(20), shard=(i, 3), progress=False, return_exceptions=True)
    squares.fails = {9}
    squares.map(range(20), progress=False, return_exceptions=True)
    assert main(["errors", "sq", "--dir", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [failure["key"] for failure in told["errors"]] == [9]


def test_check_finds_damage_in_every_shard(
    squares: Squares, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And `--repair` sets it aside, each under its own lock."""
    squares.array(range(20), 3)
    keys = [[n for n in range(20) if hash_of(n) % 3 == i][2] for i in (0, 2)]
    for i, key in zip((0, 2), keys, strict=True):
        damage(tmp_path / f"sq@{i}-of-3_results.jsonl", key)
    assert main(["check", "sq", "--dir", str(tmp_path)]) == 3
    told = capsys.readouterr().out
    assert "2 damaged lines" in told
    assert all(f"sq@{i}-of-3_results.jsonl" in told for i in (0, 2))
    assert main(["check", "sq", "--dir", str(tmp_path), "--repair"]) == 0
    squares.calls.clear()
    squares.map(range(20), progress=False)
    assert sorted(squares.calls) == sorted(keys)


# --- real processes --------------------------------------------------------------------------------------------------

TASK = """
import os, sys, time
from checkpoint import checkpointed

directory, count, shard = sys.argv[1], int(sys.argv[2]), tuple(map(int, sys.argv[3].split("/")))
calls = os.open(os.path.join(directory, "calls"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

@checkpointed("job", checkpoint_dir=directory, version=1)
def work(n):
    os.write(calls, b"%d\\n" % n)
    time.sleep(0.001)  # what it costs
    return {"n": n, "square": n * n}

own = work.map(range(count), shard=shard, progress=False)
assert all(value == {"n": key, "square": key * key} for key, value in zip(own.item_keys, own))
"""


def task(directory: Path, count: int, i: int, n: int) -> subprocess.Popen[bytes]:
    """One task of an array."""
    command = [sys.executable, "-c", TASK, str(directory), str(count), f"{i}/{n}"]
    return subprocess.Popen(command, stderr=subprocess.PIPE)


def calls_in(directory: Path) -> list[int]:
    """Each call that was made."""
    path = directory / "calls"
    return [int(line) for line in path.read_bytes().splitlines()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.promise("shards killed, and resubmitted with another count")
def test_shards_killed_and_resubmitted_with_another_count(tmp_path: Path) -> None:
    """But for the one that each was at when it was killed. Readers see one checkpoint grow meanwhile."""
    count, random = 400, Random(7)
    killed, seen = 0, 0
    with CheckpointedRunner("job", tmp_path, version=1) as reader:
        for n in (4, 3, 4, 6):
            tasks = [task(tmp_path, count, i, n) for i in range(n)]
            target = len(calls_in(tmp_path)) + random.randrange(20, 60)

            def is_far(target: int = target, tasks: list[Any] = tasks) -> bool:
                nonlocal seen
                done = reader.progress()[0]
                assert done >= seen
                seen = done
                return len(calls_in(tmp_path)) >= target or all(one.poll() is not None for one in tasks)

            wait_for(is_far, "some calls")
            for one in random.sample(tasks, n):
                one.kill()
            for one in tasks:
                _, told = one.communicate(timeout=DEADLINE)
                killed += one.returncode != 0
                assert one.returncode in (0, -9), told
        assert 0 < reader.progress()[0] <= len(set(calls_in(tmp_path)))
    tasks = [task(tmp_path, count, i, 5) for i in range(5)]
    for one in tasks:
        _, told = one.communicate(timeout=DEADLINE)
        assert one.returncode == 0, told
    last = task(tmp_path, count, 0, 1)
    assert last.wait(DEADLINE) == 0
    last.communicate()
    calls = Counter(calls_in(tmp_path))
    assert sorted(calls) == list(range(count))
    assert sum(calls.values()) - count <= killed, "each kill costs the call that was in flight"
    assert max(calls.values()) <= killed + 1
    with CheckpointedRunner("job", tmp_path, version=1) as reader:
        assert {key: value["square"] for key, value in reader.get_all_results().items()} == {
            n: n * n for n in range(count)
        }
        assert reader.records.count() == (count, 0)
    assert not (tmp_path / "job_results.jsonl").exists() or not (tmp_path / "job_results.jsonl").read_bytes()
    assert check("job", tmp_path).is_sound


@pytest.mark.slow
def test_show_tells_who_writes_which_shard(tmp_path: Path) -> None:
    """While they do; and `ls` how many."""
    squares = Squares(tmp_path)
    squares.array(range(10), 3)
    with holding(tmp_path / ".sq@2-of-3.lock"):
        seen, (held,) = survey("sq", tmp_path), list_checkpoints(tmp_path)
    if sys.platform != "linux":
        return
    assert [shard for shard, writer in seen.shards if writer] == ["2/3"]
    assert (held.shards, held.writers) == (3, 1)
    assert "1 being written" in str(seen)
    assert "2/3 by process" in str(seen)


def test_the_first_shard_knows_what_was_done_before_there_were_any(tmp_path: Path) -> None:
    """Results in the checkpoint's own journal count from the first look on."""
    calls: list[int] = []

    def work(n: int) -> int:
        calls.append(n)
        return n

    f = checkpointed("later", checkpoint_dir=tmp_path)(work)
    f.map(range(50), progress=False)
    calls.clear()
    plan = f.plan(range(60), shard=(1, 2))
    assert plan.done == len(f.map(range(50), shard=(1, 2), progress=False))
    assert calls == []
    f.map(range(60), shard=(1, 2), progress=False)
    assert set(calls) <= set(range(50, 60))


# --- what a fresh reader found ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"workers": 2}])
def test_what_an_item_needs_of_another_map_is_not_split(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """$CHECKPOINT_SHARD splits the work of the program, and not what one of its calls asks for."""
    monkeypatch.setenv("CHECKPOINT_SHARD", "0/2")

    @checkpointed("page", checkpoint_dir=tmp_path, version=1)
    def page(place: tuple[int, int]) -> int:
        return place[1] * 10

    @checkpointed("book", checkpoint_dir=tmp_path, version=1)
    def book(n: int) -> int:
        if n % 2:
            assert page.plan([(n, i) for i in range(4)]).total == 4
        return sum(page.options(name=f"page {n}").map([(n, i) for i in range(4)], progress=False))

    made = book.map(range(8), progress=False, **options).to_dict()
    assert 0 < len(made) < 8
    assert set(made.values()) == {60}


def test_what_is_saved_last_counts_whatever_the_clocks_say(
    squares: Squares, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine whose clock is behind writes another journal."""
    squares.array(range(4), 2)
    squares.face.runner.close()
    monkeypatch.setattr(clock.Stamper.__init__, "__defaults__", (lambda: time.time() - 3600,))
    with CheckpointedRunner("sq", tmp_path, version=1) as runner:
        runner.save_result(3, "new")
        assert runner.get_result(3) == "new"
    with CheckpointedRunner("sq", tmp_path, version=1) as runner:
        assert runner.get_all_results() == {0: 0, 1: 1, 2: 4, 3: "new"}


def test_who_writes_by_hand_sees_shards_that_begin_later(squares: Squares, tmp_path: Path) -> None:
    """Also while it goes on writing."""
    with CheckpointedRunner("sq", tmp_path, version=1) as runner:
        runner.save_result("a", 1)
        squares.array(range(6), 2)
        runner.save_result("b", 2)
        assert runner.is_completed(3)
        assert len(runner.get_all_results()) == 8


def test_a_line_that_was_edited_stands_for_its_key_in_every_shard(squares: Squares, tmp_path: Path) -> None:
    """Without checksum it is of any key of equal `str()`, and the text's own shard is another."""
    squares.array(range(6), 2)
    squares.face.runner.close()
    for journal in tmp_path.glob("sq@*_results.jsonl"):
        lines = journal.read_text().splitlines()
        for place, record in enumerate(map(json.loads, lines)):
            if record["key"] == 3:
                del record["crc"]
                lines[place] = json.dumps(record | {"result": "edited"})
        journal.write_text("".join(f"{line}\n" for line in lines))
    squares.calls.clear()
    assert squares.map(range(6), progress=False) == [0, 1, 4, "edited", 16, 25]
    assert dict(squares.face.results) == {0: 0, 1: 1, 2: 4, "3": "edited", 4: 16, 5: 25}
    assert "3" in squares.face.results
    assert squares.calls == []


def test_a_finished_shard_confirms_what_it_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At durability "power" that it cannot be synced is an error, whoever holds the lock."""
    f = checkpointed("power", checkpoint_dir=tmp_path, version=1, durability="power")(lambda n: n)
    f.map(range(6), shard=(0, 2), progress=False)

    def refuse(self: Reader) -> None:
        raise StoreError("cannot sync: EIO", errno=errno.EIO)

    monkeypatch.setattr(Reader, "sync", refuse)
    with pytest.raises(StoreError, match="EIO"):
        f.map(range(6), shard=(0, 2), progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("keys", [(), ([0, 1, 2, 3, 4, 5],)], ids=["all", "keys"])
def test_a_refused_clear_lets_go_of_what_it_took(keys: tuple[list[int], ...], squares: Squares, tmp_path: Path) -> None:
    """A task that begins just then is not refused for it; and nothing was forgotten."""
    squares.array(range(6), 3)
    squares.face.runner.close()
    with holding(tmp_path / ".sq@2-of-3.lock"):
        with pytest.raises(CheckpointLocked):
            squares.face.clear(*keys)
        for prefix in ("sq", "sq@0-of-3", "sq@1-of-3"):
            with holding(tmp_path / f".{prefix}.lock"):
                pass
    assert len(squares.face.results) == 6


def test_who_forgets_in_a_shard_leaves_the_total(squares: Squares, tmp_path: Path) -> None:
    """Whoever forgets something writes meta, too, and is no pass."""
    squares.array(range(6), 3)
    squares.map(range(8), progress=False)
    squares.face.clear([5])
    squares.face.runner.close()
    assert list_checkpoints(tmp_path)[0].total == 8


@pytest.mark.slow
def test_a_stale_process_that_clears_leaves_the_total(squares: Squares, tmp_path: Path) -> None:
    """It is that of the last pass, wherever that ran."""
    squares.map(range(4), progress=False)
    squares.face.runner.close()
    with CheckpointedRunner("sq", tmp_path, version=1) as stale:
        child = (
            "import sys\nfrom checkpoint import checkpointed\n"
            "checkpointed('sq', checkpoint_dir=sys.argv[1], version=1)(abs).map(range(9), progress=False)"
        )
        subprocess.run([sys.executable, "-c", child, str(tmp_path)], check=True, timeout=DEADLINE)
        stale.clear([1])
    assert json.loads((tmp_path / "sq_meta.json").read_text())["total_items"] == 9


@pytest.mark.slow
def test_open_files_are_allowed_for_all_checkpoints_together(tmp_path: Path) -> None:
    """And who fails to open one keeps none of its files."""
    pytest.importorskip("resource")
    script = (
        "import resource, sys\nfrom checkpoint import checkpointed\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (400, hard))\n"
        "kept = []\n"
        "for number in range(3):\n"
        "    f = checkpointed(f'many {number}', checkpoint_dir=sys.argv[1], version=1)(abs)\n"
        "    for i in range(60):\n"
        "        f.map(range(60), shard=(i, 60), progress=False)\n"
        "    kept.append(f)\n"
        "    assert len(f.results) == 60\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_shard_that_is_taken_says_what_is_likely(squares: Squares, tmp_path: Path) -> None:
    """Another name would split the checkpoint."""
    squares.array(range(6), 2)
    squares.face.runner.close()
    other = Squares(tmp_path)
    with holding(tmp_path / ".sq@1-of-2.lock"), pytest.raises(CheckpointLocked, match="each task a shard of its own"):
        other.map(range(60), shard=(1, 2), progress=False)
