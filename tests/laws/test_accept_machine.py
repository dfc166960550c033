"""The law of deciding: whatever is accepted, in whatever order with all else, a checkpoint answers as dicts would.

The model knows of each version which result counts for a key, by what code it was computed, and what was accepted for
what. Shards, compaction, lost meta and index files, and lines of old checkpoints change nothing of it.
"""

from __future__ import annotations

import itertools
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from checkpoint import FunctionChanged, checkpointed
from checkpoint.catalog.view import VersionView
from checkpoint.clock import Stamper
from checkpoint.maintenance.compact import compact

pytestmark = pytest.mark.slow

VERSIONS = ["", "one", "two"]
PROMPTS = ["a", "b", "c"]
KEYS = [0, 1, "x", (2, "y")]
ANSWERS = itertools.count()
versions, prompts = st.sampled_from(VERSIONS), st.sampled_from(PROMPTS)


class Held(NamedTuple):
    """A result: its value, the prompt that it was computed from ("" where nobody knows), and whether it is sealed."""

    value: str
    prompt: str
    sealed: bool = True


class Deciding(RuleBasedStateMachine):
    """Three versions of a function that reads one of three prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="checkpoint-deciding-"))
        self.held: dict[str, dict[Any, Held]] = {version: {} for version in VERSIONS}
        self.begun: set[str] = set()  # versions that have had a record
        self.has_shards = False
        self.accepted: set[tuple[str, str]] = set()  # (prompt, prompt that it was accepted for)
        self.latest: str | None = None
        self.number = 0
        self.functions: dict[tuple[str, str], Any] = {}
        logging.getLogger("checkpoint").setLevel(logging.CRITICAL)

    @initialize(url=st.booleans())
    def begin(self, url: bool) -> None:
        self.place = f"memory://{self.root.name}" if url else str(self.root / "local")

    def teardown(self) -> None:
        logging.getLogger("checkpoint").setLevel(logging.NOTSET)
        self.close()
        shutil.rmtree(self.root)

    def function(self, prompt: str, version: str) -> Any:
        """One that reads a prompt, under a version that is a mere label."""

        def ask(item: Any) -> str:
            return f"{prompt} {next(ANSWERS)} {item}"

        if (prompt, version) not in self.functions:
            decorate = checkpointed("j", checkpoint_dir=self.place, version=version or None)
            self.functions[prompt, version] = decorate(ask)
        return self.functions[prompt, version]

    @rule()
    def close(self) -> None:
        for function in self.functions.values():
            for runner in function._self_runners.values():
                runner.close()

    def open_codes(self, version: str, prompt: str) -> set[str]:
        """The prompts of results that differ from this one and that nobody has accepted for it."""
        known = {held.prompt for held in self.held[version].values()} - {"", prompt}
        return {old for old in known if (old, prompt) not in self.accepted}

    # what a user does

    @rule(version=versions, prompt=prompts, keys=st.lists(st.sampled_from(KEYS), max_size=3, unique=True))
    def map(self, version: str, prompt: str, keys: list[Any]) -> None:
        function, held, open_ = self.function(prompt, version), self.held[version], self.open_codes(version, prompt)
        if open_ and not version:
            with pytest.raises(FunctionChanged) as caught:
                function.map(keys, progress=False)
            assert caught.value.count == sum(each.prompt in open_ for each in held.values())
            return
        got = function.map(keys, progress=False)
        for key, value in zip(keys, got, strict=True):
            found = self.find(version, key)
            if found is None:
                held[key] = Held(value, prompt)
                self.begun.add(version)
                self.latest = version
            assert value == (held[key] if found is None else found).value

    @rule(version=versions, prompt=prompts, shard=st.integers(0, 1))
    def map_a_shard(self, version: str, prompt: str, shard: int) -> None:
        if self.place.startswith("memory:") or (not version and self.open_codes(version, prompt)):
            return  # who reads a URL asks for shards every few seconds
        if any(not each.sealed for each in self.held[""].values()):
            return  # which of an old line and an accepted record of a shard counts is not promised
        self.has_shards = True
        function, held = self.function(prompt, version), self.held[version]
        function.map(KEYS, progress=False, shard=(shard, 2))
        now = dict(self.function(prompt, version).results)
        for key in KEYS:
            if self.find(version, key) is None and key in now:
                held[key] = Held(now[key], prompt)
                self.begun.add(version)
                self.latest = version

    @rule(version=versions, prompt=prompts)
    def accept_code(self, version: str, prompt: str) -> None:
        open_ = self.open_codes(version, prompt)
        count = sum(each.prompt in open_ for each in self.held[version].values())
        assert self.function(prompt, version).accept() == count
        self.accepted |= {(old, prompt) for old in open_}

    @rule(old=versions, new=versions, prompt=prompts)
    def accept_version(self, old: str, new: str, prompt: str) -> None:
        if old == new or not self.held[old]:
            return
        taken = self.to_take(old, new)
        assert self.function(prompt, new).accept(version=old or None) == len(taken)
        self.held[new].update(taken)
        if taken:
            self.begun.add(new)
        self.accepted |= {(old, prompt) for old in self.open_codes(new, prompt)}

    @rule(old=versions, new=versions, prompt=prompts)
    def convert(self, old: str, new: str, prompt: str) -> None:
        if old == new or not self.held[old]:
            return
        taken = self.to_take(old, new)
        done = self.function(prompt, new).accept(version=old or None, convert=lambda value: f"<{value}>")
        assert done == len(taken)
        for key, each in taken.items():
            self.held[new][key] = Held(f"<{each.value}>", prompt if each.sealed else "", each.sealed)
        if taken:
            self.begun.add(new)
            self.latest = new

    @rule(version=versions, key=st.sampled_from(KEYS))
    def forget(self, version: str, key: Any) -> None:
        self.function("a", version).clear([key])
        found = self.find(version, key)
        if found is not None:
            self.held[version].pop(key if found.sealed else str(key))

    @rule()
    def clear(self) -> None:
        self.function("a", "").clear()
        self.held = {version: {} for version in VERSIONS}
        self.begun, self.accepted, self.latest = set(), set(), None

    # what happens to it

    @rule(key=st.sampled_from([0, 1, "x"]))
    def append_an_old_line(self, key: Any) -> None:
        """A record of the first schema, without checksum: it stands for a key of equal str() that has no other."""
        if self.place.startswith("memory:") or self.has_shards or self.find("", key) is not None:
            return
        self.close()
        self.number += 1
        journal = Path(self.place, "j_results.jsonl")
        journal.parent.mkdir(exist_ok=True)
        with journal.open("a") as file:
            stamp = Stamper()().decode()
            file.write(json.dumps({"key": str(key), "result": f"old {self.number}", "timestamp": stamp}) + "\n")
        self.held[""][str(key)] = Held(f"old {self.number}", "", sealed=False)
        self.begun.add("")
        self.latest = ""

    @rule()
    def compact(self) -> None:
        if self.latest is not None:
            compact("j", self.place)

    @rule()
    def write_the_index(self) -> None:
        for shelf in self.settled().store.own:
            shelf.write_index()

    @rule(what=st.sampled_from([".*.index", "*_meta.json"]))
    def lose(self, what: str) -> None:
        directory = self.settled().store.directory
        for path in directory.glob(what) if directory.exists() else ():
            path.unlink()

    def settled(self) -> VersionView:
        """The records of no version, opened anew."""
        records: VersionView = self.function("a", "").runner.records
        return records

    def to_take(self, old: str, new: str) -> dict[Any, Held]:
        """What a version has and another one has not."""
        texts = {str(key) for key in self.held[new]}
        return {
            key: each
            for key, each in self.held[old].items()
            if (self.find(new, key) is None if each.sealed else key not in texts)
        }

    def find(self, version: str, key: Any) -> Held | None:
        """What counts for the key: its own line, or one without checksum that stands for it."""
        held = self.held[version]
        exact, loose = held.get(key), held.get(str(key))
        if exact is not None and (exact.sealed or type(key) is str):
            return exact
        return loose if loose is not None and not loose.sealed else None

    # what must hold

    @invariant()
    def it_answers_as_the_model_does(self) -> None:
        if not hasattr(self, "place"):
            return
        for version in VERSIONS:
            function = self.function("a", version)
            assert dict(function.results) == {key: each.value for key, each in self.held[version].items()}, version
            open_ = self.open_codes(version, "a")
            plan = function.plan(KEYS)
            assert plan.stale == sum(
                (found := self.find(version, key)) is not None and found.prompt in open_ for key in KEYS
            )
        store = self.settled().checkpoint
        if self.latest is not None and not store.shards:  # of several journals, timestamps decide
            assert store.versions.get(store.latest, "") == self.latest


TestDeciding = Deciding.TestCase
TestDeciding.settings = settings(
    max_examples=30,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
