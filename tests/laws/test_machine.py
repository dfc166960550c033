"""The law of the whole: whatever is done in whatever order, a checkpoint answers as two dicts would."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

from checkpoint import CheckpointedRunner

pytestmark = pytest.mark.slow

VERSIONS = ("one", {"two": 2})
keys = st.one_of(
    st.sampled_from([1, 1.0, True, "1", 0, False, -0.0, "", None, 2.5, float("-inf"), 2**64, "\ud800", "a\u2028b"]),
    st.tuples(st.sampled_from([1, True, "1", None]), st.sampled_from([1.0, "x", ("deep", 0)])),
    st.text(max_size=3),
    st.integers(0, 5),
)
values = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=5),
    st.tuples(st.booleans(), st.floats(allow_nan=False)),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    st.sampled_from(["x" * 3000, b"bytes", {1, 2}]),
)


class Checkpoint(RuleBasedStateMachine):
    """Two versions of one checkpoint beside a dict of results and one of errors for each."""

    used = Bundle("used")

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="checkpoint-machine-"))
        self.copies = 0
        self.results: list[dict[Any, Any]] = [{}, {}]
        self.errors: list[dict[Any, str]] = [{}, {}]
        self.undo: tuple[int, list[dict[Any, Any]]] | None = None  # size and results before the last record

    @initialize()
    def begin(self) -> None:
        self.directory = self.root / "0"
        self.open()

    def open(self) -> None:
        self.runners = [CheckpointedRunner("j", self.directory, version=version) for version in VERSIONS]

    def close(self) -> None:
        for runner in self.runners:
            runner.close()

    def teardown(self) -> None:
        self.close()
        shutil.rmtree(self.root)

    @property
    def journal(self) -> Path:
        return self.directory / "j_results.jsonl"

    # what a user does

    @rule(target=used, which=st.integers(0, 1), key=keys, value=values)
    def save(self, which: int, key: Any, value: Any) -> Any:
        size = self.journal.stat().st_size if self.journal.exists() else 0
        self.undo = (size, [dict(held) for held in self.results])
        self.runners[which].save_result(key, value)
        self.results[which][key] = value
        return key

    @rule(target=used, which=st.integers(0, 1), key=keys, message=st.text(max_size=5))
    def save_error(self, which: int, key: Any, message: str) -> Any:
        self.runners[which].save_error(key, message)
        self.errors[which][key] = message.encode("utf-8", "replace").decode()
        return key

    @rule(which=st.integers(0, 1), key=used)
    def clear_key(self, which: int, key: Any) -> None:
        self.runners[which].clear([key])
        self.results[which].pop(key, None)
        self.errors[which].pop(key, None)
        self.undo = None

    @rule()
    def clear(self) -> None:
        self.runners[0].clear()
        self.results, self.errors, self.undo = [{}, {}], [{}, {}], None

    @rule(which=st.integers(0, 1), items=st.lists(used, max_size=4))
    def resume(self, which: int, items: list[Any]) -> None:
        unique = list(dict.fromkeys(items))
        pending = [key for key in unique if key not in self.results[which]]
        found = []
        for key in self.runners[which].iterate(unique, key_fn=lambda item: item):
            found.append(key)
            self.runners[which].save_result(key, "resumed")
            self.results[which][key] = "resumed"
        assert sorted(found, key=pending.index) == pending  # those that failed before come last
        if found:
            self.undo = None

    # what happens to it

    @rule()
    def reopen(self) -> None:
        self.close()
        self.open()
        self.undo = None

    @rule()
    def write_index(self) -> None:
        store = self.runners[0].records.store
        for shelf in (store.own.results, store.own.errors):
            shelf.write_index()

    @rule()
    def lose_index(self) -> None:
        for index in self.directory.glob(".*.index"):
            index.unlink()

    @rule()
    def crash(self) -> None:
        self._crash(None)

    @precondition(lambda self: self.undo is not None)
    @rule(kept=st.floats(0, 0.999))
    def crash_and_tear_the_last_record(self, kept: float) -> None:
        self._crash(kept)

    def _crash(self, kept: float | None) -> None:
        """Nothing is closed, synced or let go: what the files hold at this moment is all there is."""
        self.copies += 1
        copy = self.root / f"{self.copies}"
        if self.directory.exists():
            shutil.copytree(self.directory, copy)
        self.close()
        self.directory = copy
        if kept is not None and self.undo is not None:
            size, self.results = self.undo
            record = self.journal.stat().st_size - size
            os.truncate(self.journal, size + min(int(record * kept), record - 2))
            for meta in self.directory.glob("*_meta.json"):  # it is written once what it counts is on the medium
                meta.unlink()
        self.undo = None
        self.open()

    # what must hold

    @invariant()
    def it_answers_as_the_dicts_do(self) -> None:
        if not hasattr(self, "runners"):
            return
        for which, runner in enumerate(self.runners):
            results, errors = self.results[which], self.errors[which]
            assert runner.get_all_results() == results
            assert runner.get_all_errors() == {key: text for key, text in errors.items() if key not in results}
            assert runner.records.count() == (len(results), len(errors.keys() - results.keys()))

    @rule(which=st.integers(0, 1), key=used)
    def look_up(self, which: int, key: Any) -> None:
        assert self.runners[which].is_completed(key) == (key in self.results[which])
        assert self.runners[which].get_result(key) == self.results[which].get(key)

    @rule(which=st.integers(0, 1))
    def look_at_all(self, which: int) -> None:
        for key, value in self.results[which].items():
            found = self.runners[which].get_result(key)
            assert (found, type(found)) == (value, type(value))


TestCheckpoint = Checkpoint.TestCase
TestCheckpoint.settings = settings(
    max_examples=250,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
