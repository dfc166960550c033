"""The law of crashes: whatever a kill or a power cut leaves, it opens, holds what was promised, and resumes to the end.

A workload is recorded once for each way of working (see `crash_states`); at every point between two operations, and in
the middle of writes, states that a crash may leave are drawn, made real, and judged against what had been promised:

    result        A key whose last save is promised has that value, or one whose save had begun since. It is computed
                  again only where a later save or clear of it had begun. Other keys may be missing, never wrong.
    error         Likewise, for as long as the key has no result.
    clear(keys)   Where it is promised, old values do not come back. Before, they may.
    clear()       Promised as soon as it returns, whatever the durability.
    promised      After a kill: all that was acknowledged. After a power cut: the same with durability="power"; else
                  what was acknowledged before the last sync (one a second) or the last close.

A state is drawn by its name and the seed. To run one only: CHECKPOINT_TEST_SEED=… CHECKPOINT_TEST_STATE=… pytest ….
What threads do is recorded in another order each time: for them the message itself tells all there is to know.
"""

from __future__ import annotations

import base64
import json
import logging
import mmap
import os
import random
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import seed_of_tests
from crash_states import Disk, Event, Note, Recorder, Tree, Write, materialize, torn_sizes

from checkpoint import CheckpointedRunner, CheckpointError, DamagedRecord, UnencodableValue, checkpointed, clock
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.maintenance.compact import compact
from checkpoint.maintenance.repair import repair
from checkpoint.storage import files, index_file, journal, meta, names, store
from checkpoint.storage.journal import Journal
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.record import is_whole, seal
from checkpoint.values.keys import version_digest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="what Windows leaves after a crash is not modelled"),
]

SEED = seed_of_tests()
THIS = "tests/laws/test_crash_states.py"
ONLY = os.environ.get("CHECKPOINT_TEST_STATE", "")
FIRST = ["a", 1, "long", ("t", 2), "b", "c", "longer", "d"]
KEYS = [*FIRST, "e", "f", "g", "torn", "halved"]
SIZES = {"long": 5000, "longer": 9500}  # they span pages
VERSIONS = ("one", "two")
ASIDE = "kept aside"


# --- what is promised -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """Something that was asked of the checkpoint."""

    number: int
    kind: str  # result, error, forget, clear
    version: str = ""
    key: Any = None
    value: Any = None

    def __str__(self) -> str:
        of = f" {self.version}/{self.key!r}" if self.version else ""
        return f"#{self.number} {self.kind}{of}" + (f" = {str(self.value)[:30]!r}" if self.value else "")


@dataclass(frozen=True)
class Said:
    """What the workload noted: that an operation began or was acknowledged, or that all so far was synced."""

    what: str  # begun, acknowledged, synced
    op: Op | None = None

    def __str__(self) -> str:
        return f"{self.what} {self.op or ''}"


@dataclass(frozen=True)
class Claim:
    """An operation that had begun, and whether it is promised."""

    op: Op
    promised: bool


def claims_of(events: list[Event], before: tuple[Claim, ...], *, power: bool, killed: bool) -> tuple[Claim, ...]:
    """What may be there, and what must, after a crash at the end of the events."""
    begun: list[Op] = []
    acknowledged: set[Op] = set()
    synced: set[Op] = set()
    for event in events:
        if isinstance(event, Note):
            said = event.what
            if said.what == "begun":
                begun.append(said.op)
            elif said.what == "acknowledged":
                acknowledged.add(said.op)
            else:
                synced |= acknowledged
    promised = acknowledged if killed or power else synced | {op for op in acknowledged if op.kind == "clear"}
    return (*before, *(Claim(op, op in promised) for op in begun))


def possible(claims: tuple[Claim, ...], kind: str, version: str, key: Any) -> tuple[list[Any], bool]:
    """(values that may be there, whether there may be none)."""
    ops = [
        claim
        for claim in claims
        if claim.op.kind == "clear"
        or ((claim.op.version, claim.op.key) == (version, key) and claim.op.kind in (kind, "forget"))
    ]
    last = max((place for place, claim in enumerate(ops) if claim.promised), default=None)
    ops = ops if last is None else ops[last:]
    values = [claim.op.value for claim in ops if claim.op.kind == kind]
    return values, last is None or len(ops) > 1 or ops[0].op.kind != kind


# --- working on a checkpoint ----------------------------------------------------------------------------------------


@dataclass
class Work:
    """One process's work on the checkpoint, and what it says about it.

    Args:
        directory: the checkpoint's.
        face: what passes are run by.
        durability: the runner's.
        note: where it says what it does.
        numbers: for the operations.
    """

    directory: Path
    face: str
    durability: Any
    note: Callable[[Said], None] = lambda said: None
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    runs: list[Any] = field(default_factory=list)
    begun: dict[Any, Op] = field(default_factory=dict)  # the last operation of each key, in this pass

    def begin(self, kind: str, version: str = "", key: Any = None, value: Any = None) -> Op:
        op = Op(next(self.numbers), kind, version, key, value)
        self.note(Said("begun", op))
        return op

    def acknowledge(self, op: Op) -> None:
        self.note(Said("acknowledged", op))

    def saw(self, version: str, key: Any, value: Any) -> None:
        """A pass gave a value that was there: that is an acknowledgement too."""
        self.acknowledge(self.begin("result", version, key, value))

    def open(self, version: str) -> CheckpointedRunner:
        return CheckpointedRunner("j", self.directory, version=version, durability=self.durability)

    def sync(self, runner: CheckpointedRunner) -> None:
        """What the store's own thread does within a second."""
        runner.records.store.writer.tend()
        self.note(Said("synced"))

    # passes

    def run(self, version: str, keys: list[Any], compute: Callable[[Any], Any]) -> dict[Any, Any]:
        """A pass; what it gave for each key: a value, an ItemError, or None where there is nothing."""
        by = {"hand": self._by_hand, "map": self._by_map, "stream": self._by_stream, "threads": self._by_stream}
        began = len(self.runs)
        found = by[self.face.split()[0]](version, keys, compute)
        if len(self.runs) > began:  # a pass that writes nothing syncs nothing
            self.note(Said("synced"))
        return found

    def _by_hand(self, version: str, keys: list[Any], compute: Callable[[Any], Any]) -> dict[Any, Any]:
        with self.open(version) as runner:
            for place, key in enumerate(runner.iterate(keys)):
                self.runs.append(key)
                try:
                    value = compute(key)
                except ValueError as error:
                    op = self.begin("error", version, key, str(error))
                    runner.save_error(key, error)
                else:
                    op = self.begin("result", version, key, value)
                    runner.save_result(key, value)
                self.acknowledge(op)
                if place % 4 == 3:
                    self.sync(runner)
            return {key: runner.get_result(key) for key in keys}

    def _function(self, version: str, compute: Callable[[Any], Any]) -> Any:
        """What is mapped; it sees this object by a weak reference, for what it used would be read in each pass."""
        this = weakref.ref(self)

        def work(key: Any) -> Any:
            here: Any = this()
            here.runs.append(key)
            try:
                value = compute(key)
            except ValueError as error:
                here.begun[key] = here.begin("error", version, key, str(error))
                raise
            here.begun[key] = here.begin("result", version, key, value)
            return value

        self.begun = {}
        function = checkpointed("j", checkpoint_dir=self.directory, version=version, durability=self.durability)
        return function(work)

    def _by_map(self, version: str, keys: list[Any], compute: Callable[[Any], Any]) -> dict[Any, Any]:
        function = self._function(version, compute)
        try:
            results = function.map(keys, progress=False, return_exceptions=True)
            for op in self.begun.values():
                self.acknowledge(op)
            found = dict(zip(keys, results, strict=True))
            for key in found.keys() - self.begun.keys():
                self.saw(version, key, found[key])
            return found
        finally:
            function.runner.close()

    def _by_stream(self, version: str, keys: list[Any], compute: Callable[[Any], Any]) -> dict[Any, Any]:
        function = self._function(version, compute)
        found = {}
        try:
            workers = 4 if self.face.startswith("threads") else None
            for outcome in function.stream(keys, progress=False, workers=workers):
                found[outcome.key] = outcome.value if outcome.error is None else outcome.error
                if outcome.key in self.begun:
                    self.acknowledge(self.begun[outcome.key])
                else:
                    self.saw(version, outcome.key, outcome.value)
                if len(found) % 4 == 3:
                    self.sync(function.runner)
            return found
        finally:
            function.runner.close()

    # and the rest

    def forget(self, version: str, keys: list[Any]) -> None:
        with self.open(version) as runner:
            ops = [self.begin("forget", version, key) for key in keys]
            runner.clear(keys)
            for op in ops:
                self.acknowledge(op)
            self.save(runner, version, keys[0], "saved after it was forgotten")
        self.note(Said("synced"))

    def save(self, runner: CheckpointedRunner, version: str, key: Any, value: str) -> None:
        op = self.begin("result", version, key, value)
        runner.save_result(key, value)
        self.acknowledge(op)

    def save_over(self, version: str, keys: list[Any]) -> None:
        """Results of keys that have some."""
        with self.open(version) as runner:
            for key in keys:
                self.save(runner, version, key, f"{key} saved again " + "y" * SIZES.get(key, 30))
        self.note(Said("synced"))

    def keep_aside(self, version: str) -> None:
        with self.open(version) as runner:
            op = self.begin("aside", version, ASIDE)
            with pytest.raises(UnencodableValue):
                runner.save_result(ASIDE, object())
            self.acknowledge(op)
        self.note(Said("synced"))

    def clear(self, version: str) -> None:
        with self.open(version) as runner:
            op = self.begin("clear")
            runner.clear()
            self.acknowledge(op)
            self.save(runner, version, "a", "saved after all was cleared")
        self.note(Said("synced"))

    def tear(self, version: str, *, whole: bool) -> None:
        """Another writer was killed in the middle of its record, or just before its newline."""
        key = "halved" if whole else "torn"
        value = f"{key} by another " + "z" * 300
        field = version_digest(version, "version").encode()
        line = seal(b'{"key":"%b","result":"%b","version":"%b"' % (key.encode(), value.encode(), field))
        self.begin("result", version, key, value)
        self._append(line[:-1] if whole else line[:200])

    def scribble(self) -> None:
        """Another program leaves a line that is no record."""
        self._append(b"this is no record\n")

    def _append(self, data: bytes) -> None:
        fd = os.open(self.directory / "j_results.jsonl", os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)

    def upkeep(self, do: Callable[[str, Path], object]) -> None:
        """`compact` or `repair`, which change nothing that can be read."""
        do("j", self.directory)
        self.note(Said("synced"))


def computing(tag: str, failing: tuple[Any, ...] = ()) -> Callable[[Any], str]:
    """The function that is mapped: what it gives tells which pass it was."""

    def compute(key: Any) -> str:
        if key in failing:
            raise ValueError(f"{tag} failed {key}")
        return f"{tag} {key} " + "x" * SIZES.get(key, 30)

    return compute


def workload(work: Work) -> None:
    """All that writes to a checkpoint."""
    work.run("one", FIRST, computing("first", failing=("b", "c")))
    work.tear("one", whole=False)
    work.run("one", [*FIRST, "e"], computing("second", failing=("c",)))
    work.tear("one", whole=True)
    work.save_over("one", ["a", "long", "e"])
    work.forget("one", ["e", "c", "long", "g"])
    work.run("two", ["a", "long", "b", "f"], computing("third", failing=("b",)))
    work.keep_aside("one")
    work.scribble()
    work.upkeep(repair)
    work.upkeep(compact)
    work.run("one", [*FIRST, "f"], computing("fourth"))
    work.clear("one")
    work.run("one", ["a", "b", "c", "f"], computing("fifth", failing=("f",)))


def beginning(work: Work) -> None:
    """The first save of all, and the repair of a torn end."""
    with work.open("one") as runner:
        work.save(runner, "one", "a", "the first")
    work.note(Said("synced"))
    work.tear("one", whole=False)
    work.run("one", ["a", "b"], computing("second"))


def tearing(work: Work) -> None:
    """What has a torn end."""
    work.run("one", ["a"], computing("first"))
    work.tear("one", whole=False)


def compacting(work: Work) -> None:
    """A result that is saved twice, and its first record left out."""
    work.run("one", ["a"], computing("first"))
    work.save_over("one", ["a"])
    work.upkeep(compact)


def mapping_on(work: Work) -> None:
    """Small maps of one function, which nobody closes: the second after a map is the tending thread's."""
    function = work._function("one", computing("first"))
    for place, key in enumerate(FIRST):
        assert function.map([key], progress=False) == [computing("first")(key)]
        work.acknowledge(work.begun[key])
        if place % 3 == 2:
            work.sync(function.runner)
    function.runner.close()
    work.note(Said("synced"))


def counting(work: Work) -> None:
    """Meta is written while much is not synced, and work goes on."""
    with work.open("one") as runner:
        for place in range(3):
            work.sync(runner)
            for key in FIRST:
                work.save(runner, "one", key, f"{key} {place} " + "y" * 3000)
            runner.records.store.writer.write_meta()
            runner.records.store.writer.names.settle([])
    work.note(Said("synced"))


def clearing(work: Work) -> None:
    """All is forgotten, twice."""
    for _ in range(2):
        work.run("one", FIRST[:4], computing("first"))
        work.clear("one")


def shrinking(work: Work) -> None:
    """Most of what the journal holds is superseded, and left out; then all of it is forgotten, in two shards too."""
    work.run("one", FIRST, computing("first"))
    for _ in range(4):
        work.save_over("one", FIRST)
    work.upkeep(compact)
    work.forget("one", FIRST)
    work.upkeep(compact)


def completing(work: Work) -> None:
    """A result for each key: who comes next has nothing to run."""
    work.run("one", KEYS, computing("first"))


# --- the judge ------------------------------------------------------------------------------------------------------


def look(work: Work, claims: tuple[Claim, ...], version: str) -> None:
    """Reading alone gives what was saved, and all that was promised."""
    with work.open(version) as runner:
        seen = {}
        for key in KEYS:
            values, absent = possible(claims, "result", version, key)
            try:
                value = runner.get_result(key)
            except DamagedRecord:
                value = None
                assert not runner.is_completed(key), f"{key!r} is damaged, and done all the same"
            assert value is not None or absent, f"the result of {key!r} is lost: {values}"
            assert value is None or value in values, f"the result of {key!r} is wrong: {value!r}, not of {values}"
            if value is not None:
                seen[key] = value
        assert runner.get_all_results() == seen
        listed = listed_errors(runner)
        for key in KEYS:
            values, absent = possible(claims, "error", version, key)
            if key in listed:
                assert key not in seen, f"{key!r} has a result and an error"
                assert listed[key] in values, f"the error of {key!r} is wrong: {listed[key]!r}, not of {values}"
            else:
                assert absent or key in seen, f"the error of {key!r} is lost: {values}"
        _, absent = possible(claims, "aside", version, ASIDE)
        assert absent or (ASIDE in listed and type(runner.unsaved[ASIDE]) is object), "what was kept aside is lost"


def listed_errors(runner: CheckpointedRunner) -> dict[Any, str]:
    """All errors; each that proves damaged is told once."""
    for _ in range(len(KEYS)):
        try:
            return runner.get_all_errors()
        except DamagedRecord:
            pass
    return runner.get_all_errors()


def resume(work: Work, claims: tuple[Claim, ...], version: str) -> None:
    """A pass runs to its end and gives what was saved or is computed now; one more has nothing to do."""
    again = computing("again")
    found = {}
    work.runs.clear()
    for _ in KEYS:
        damaged: list[Any] = []
        try:
            found = work.run(version, KEYS, again)
            break
        except DamagedRecord as error:  # its value was not looked at before; the next pass computes it
            damaged.append(error.key)
        for key in damaged:
            assert possible(claims, "result", version, key)[1], f"the result of {key!r} is damaged"
    assert set(found) == set(KEYS)  # a stream gives them as they end, those that failed earlier last
    for key in KEYS:
        values, absent = possible(claims, "result", version, key)
        if key in work.runs:
            assert absent, f"{key!r} is run again, though its result was promised: {values}"
            assert work.runs.count(key) == 1, f"{key!r} is run twice"
            values = [again(key)]
        assert found.get(key) in values, f"the pass gave {found.get(key)!r} for {key!r}, not of {values}"
    work.runs.clear()
    assert work.run(version, KEYS, again) == found, "a second opening gives other values"
    assert work.runs == [], "a second opening has something to do"
    with work.open(version) as runner:
        assert runner.get_all_results() == found
        assert listed_errors(runner).keys() <= {ASIDE}


def judge(work: Work, claims: tuple[Claim, ...], torn: list[bytes], chance: random.Random) -> None:
    """All that must hold of a crash's state: it is read, or not, and then resumed under one version or both."""
    for version in VERSIONS:
        if chance.random() < 0.6:
            look(work, claims, version)
    for version in chance.choice((VERSIONS, VERSIONS[:1])):
        resume(work, claims, version)
    held = b"".join(path.read_bytes() for path in work.directory.glob("*.jsonl"))
    aside = list(entries(work.directory / ".j_results.aside"))
    for tail in torn:
        assert tail in held or tail in aside, f"bytes that could not be read are destroyed: {tail[:60]!r}"


def torn_end(tree: Tree) -> bytes:
    """What follows the last newline of the results, where it is no record."""
    tail = (tree.get("deep/er/j_results.jsonl") or b"").rpartition(b"\n")[2]
    return b"" if is_whole(tail) else tail


def entries(path: Path) -> Iterator[bytes]:
    """The bytes in a file of those set aside; a repair that was cut off may have left half an entry, or NULs."""
    for line in path.read_bytes().split(b"\n") if path.exists() else ():
        try:
            yield base64.b64decode(json.loads(line)["bytes"])
        except ValueError:
            pass


# --- the states -----------------------------------------------------------------------------------------------------


@dataclass
class Recording:
    """What was done, from which disk on, and what had been claimed of that."""

    name: str
    face: str
    durability: str
    base: Disk
    events: list[Event]
    before: tuple[Claim, ...] = ()
    torn: tuple[bytes, ...] = ()  # bytes that were on the medium, and are not to be destroyed
    share: float = 1  # of its points that are looked at

    @property
    def power(self) -> bool:
        return self.durability == "power"


class Lab:
    """Makes states real, and judges them.

    Args:
        root: an empty directory, in memory where that can be had.
        seed: of every choice.

    Attributes:
        share: the part of a recovery's points that are looked at.
        kills: the part of the operations after which a kill is.
        judged: how many states were.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.seed = seed
        self.share, self.kills = 0.08, 0.5
        self.judged = 0
        self._numbers = count()
        self._seen: set[int] = set()

    def chance(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def record(self, name: str, face: str, durability: str, do: Callable[[Work], None]) -> Recording:
        """Some work, from an empty disk on."""
        root = self._fresh({})
        with Recorder(root) as recorder:
            do(Work(root / "deep" / "er", face, durability, recorder.note))
        return Recording(name, face, durability, recorder.base, recorder.events)

    def _fresh(self, tree: Tree) -> Path:
        root = self.root / str(next(self._numbers))
        root.mkdir()
        materialize(tree, root)
        return root

    def examine(self, recording: Recording, cuts: int, kills: int, deeper: float, since: float = 0) -> None:
        """States of every point of a recording: so many power cuts and kills each.

        Args:
            recording: what was done.
            cuts: how many at each point.
            kills: whether there are any; and how many in the middle of each write, of either kind.
            deeper: the part of these states whose recovery is recorded and cut too.
            since: the part of its points that is passed over.
        """
        disk = recording.base.copy()
        first = int(since * len(recording.events))
        for cut in range(len(recording.events) + 1):
            if cut:
                event = recording.events[cut - 1]
                if kills and cut >= first and not isinstance(event, Note):
                    self._kill(recording, disk, cut, kills, deeper)
                disk.apply(event)
            last = recording.events[cut - 1] if cut else None
            if cut < first or (isinstance(last, Note) and last.what.what == "begun"):
                continue  # nothing has changed but what may be there
            for number in range(cuts):
                name = f"{recording.name}/{cut}/cut {number}"
                if not wanted(name) or self._left_out(name, recording):
                    continue
                state = disk.after_power_cut(self.chance(name))
                self._judge(recording, name, cut, Disk.holding(state.tree), state.choices, deeper, killed=False)

    def _left_out(self, name: str, recording: Recording) -> bool:
        return self.chance(name + " left out").random() >= recording.share

    def _kill(self, recording: Recording, disk: Disk, cut: int, kills: int, deeper: float) -> None:
        """A kill just after an operation, or in the middle of a write: the cache stays."""
        event = recording.events[cut - 1]
        chance = self.chance(f"{recording.name}/{cut}/sizes")
        done = [None] if chance.random() < self.kills else []
        sizes = [*done, *torn_sizes(event, chance, kills)]
        for number, size in enumerate(sizes):
            name = f"{recording.name}/{cut}/kill {number}"
            if not wanted(name) or self._left_out(name, recording):
                continue
            left = disk.copy()
            left.apply(event.torn(size) if size is not None and isinstance(event, Write) else event)
            told = (
                ("the last operation was done",) if size is None else (f"the last write ended at byte {size} of its",)
            )
            self._judge(recording, name, cut, left, told, deeper, killed=True)

    def _judge(
        self,
        recording: Recording,
        name: str,
        cut: int,
        disk: Disk,
        choices: tuple[str, ...],
        deeper: float,
        *,
        killed: bool,
    ) -> None:
        done = recording.events[:cut]
        claims = claims_of(done, recording.before, power=recording.power, killed=killed)
        tree = disk.cached()
        chance = self.chance(name + " judged")
        deep = chance.random() < deeper or (ONLY.startswith(name + "/"))
        sight = hash((tuple(tree.items()), claims))
        if sight in self._seen and not deep:
            return
        self._seen.add(sight)
        self.judged += 1
        root = self._fresh(tree)
        recorder = Recorder(root, disk)
        work = Work(root / "deep" / "er", recording.face, recording.durability)
        torn = [tail for tail in (torn_end(tree), *recording.torn) if tail]
        try:
            if deep:
                work.note, work.numbers = recorder.note, count(1000)
                with recorder:
                    judge(work, claims, torn, chance)
            else:
                judge(work, claims, torn, chance)
        except Exception as error:
            raise AssertionError(self._told(recording, name, done, choices, killed)) from error
        finally:
            shutil.rmtree(root, ignore_errors=True)
        if deep:
            # What a killed process had promised is weaker once the machine goes down too.
            weaker = claims_of(done, recording.before, power=recording.power, killed=False)
            kept = () if killed else tuple(torn)
            again = Recording(
                name, recording.face, recording.durability, disk, recorder.events, weaker, kept, self.share
            )
            self.examine(again, cuts=1, kills=0 if killed else 1, deeper=0)

    def _told(self, recording: Recording, name: str, done: list[Event], choices: tuple[str, ...], killed: bool) -> str:
        crash = "a kill" if killed else "a power cut"
        lines = [
            f"after {crash} the checkpoint breaks its promises (what is wrong stands above)",
            f"seed {self.seed}, state {name!r}, durability {recording.durability!r}, passes by {recording.face}",
            "what was done:",
            *(f"  {place:4} {event}" for place, event in enumerate(done, 1)),
            "what the crash made of it:",
            *(f"       {choice}" for choice in choices or ["everything is on the medium"]),
            f"run only it: CHECKPOINT_TEST_SEED={self.seed} CHECKPOINT_TEST_STATE='{name}' python -m pytest {THIS}",
        ]
        return "\n".join(lines)


def wanted(name: str) -> bool:
    """Whether this state, or one that is reached by way of it, is to be run."""
    return not ONLY or name == ONLY or ONLY.startswith(name + "/") or name.startswith(ONLY + "/")


@pytest.fixture
def lab(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ticker: Any, caplog: pytest.LogCaptureFixture
) -> Iterator[Lab]:
    """A place in memory; time stands still; an index is worth writing for a few records."""
    print(f"CHECKPOINT_TEST_SEED={SEED}")
    caplog.set_level(logging.CRITICAL, "checkpoint")
    monkeypatch.setattr(clock, "perf_counter", ticker)
    really = KeyedLog.write_index_if_worth
    monkeypatch.setattr(KeyedLog, "write_index_if_worth", lambda self, growth, rows, size: really(self, growth, 2, 200))
    memory = Path("/dev/shm")
    parent = memory if memory.is_dir() and os.access(memory, os.W_OK) else tmp_path
    root = Path(tempfile.mkdtemp(prefix="checkpoint-crash-", dir=parent))
    yield Lab(root, SEED)
    shutil.rmtree(root)


FACES = ("hand", "map", "stream", "threads (4)")
MANY = [pytest.param(2, 1, 0.005, id="some"), pytest.param(20, 4, 0.1, id="many", marks=pytest.mark.soak)]


@pytest.mark.promise("power loss, kernel crash", "SIGKILL, OOM kill, SIGTERM, Ctrl-C", "torn tail")
@pytest.mark.parametrize(("cuts", "kills", "deeper"), MANY)
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("face", FACES)
def test_every_crash_state_opens_keeps_what_was_promised_and_resumes(
    lab: Lab, face: str, durability: str, cuts: int, kills: int, deeper: float
) -> None:
    """Power cuts and kills at every point of work that saves, fails, forgets, compacts, clears; and of its recovery."""
    name = f"{face.split()[0]}-{durability}"
    if not wanted(name) and not ONLY.startswith(name + "/"):
        pytest.skip("CHECKPOINT_TEST_STATE names a state of another way of working")
    recording = lab.record(name, face, durability, workload)
    lab.kills = min(1.0, kills / 3)
    lab.examine(recording, cuts, kills, deeper)
    print(f"{lab.judged} states of {len(recording.events)} operations")


@pytest.mark.promise("a journal that is none", "power loss, kernel crash", "SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("do", [counting, clearing, shrinking, mapping_on])
def test_meta_never_knows_of_more_than_any_crash_leaves(lab: Lab, do: Callable[[Work], None], durability: str) -> None:
    """While it is written in the middle of work, while all is cleared, and while a journal becomes much shorter."""
    name = f"{do.__name__}-{durability}"
    if not wanted(name) and not ONLY.startswith(name + "/"):
        pytest.skip("CHECKPOINT_TEST_STATE names a state of another way of working")
    lab.examine(lab.record(name, "hand", durability, do), cuts=3, kills=1, deeper=0.01)
    print(f"{lab.judged} states")


@pytest.mark.promise("a crash during recovery", "power loss, kernel crash")
@pytest.mark.parametrize("cuts", [pytest.param(1, id="some"), pytest.param(20, id="many", marks=pytest.mark.soak)])
@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_recovery_that_is_cut_off_anywhere_can_be_run_again(lab: Lab, durability: str, cuts: int) -> None:
    """Each state that a crash leaves of a small checkpoint is recovered under the recorder, and that is cut in turn."""
    name = f"beginning-{durability}"
    if not wanted(name) and not ONLY.startswith(name + "/"):
        pytest.skip("CHECKPOINT_TEST_STATE names a state of another way of working")
    lab.kills = 1
    lab.examine(lab.record(name, "hand", durability, beginning), cuts, 1, deeper=1)
    print(f"{lab.judged} states")


# --- whoever breaks a promise is caught ----------------------------------------------------------------------------

LATE = {"since": 0.4}  # where what is broken comes into play
KILLS = {"since": 0.5, "cuts": 0, "deeper": 1}
CUTS = {"since": 0.99, "cuts": 6, "kills": 0, "deeper": 1}


def no_sync(patch: pytest.MonkeyPatch) -> None:
    """Nothing is ever synced."""
    patch.setattr(Journal, "_sync_descriptor", lambda *_: None)


def no_directory_sync(patch: pytest.MonkeyPatch) -> None:
    """No directory is ever synced."""
    for room in (store, names, meta, journal):
        patch.setattr(room, "fsync_directory", lambda path: None)


def no_directory_sync_after_a_kill(patch: pytest.MonkeyPatch) -> None:
    """A name that is there counts as durable."""
    patch.setattr(names.Names, "settle", lambda self, readers: None)


def no_sync_of_what_was_found(patch: pytest.MonkeyPatch) -> None:
    """A record that is there counts as durable."""
    patch.setattr(Checkpoint, "confirm", lambda self: None)


def no_sync_of_what_forgets(patch: pytest.MonkeyPatch) -> None:
    """Records that forget are not synced."""
    really = store.Store.forget
    patch.setattr(store.Store, "forget", lambda self, *arguments, durable: really(self, *arguments))


def no_repair(patch: pytest.MonkeyPatch) -> None:
    """What follows a torn end is glued to it."""
    patch.setattr(Journal, "repair", lambda self: setattr(self, "in_doubt", False))


def no_bytes_set_aside(patch: pytest.MonkeyPatch) -> None:
    """A torn end is cut off, and that is all."""
    patch.setattr(Journal, "set_aside", lambda self, pieces: None)


def set_aside_without_a_sync(patch: pytest.MonkeyPatch) -> None:
    """What is cut off may be nowhere."""
    without_sync(patch, "set_aside")


def replaced_without_a_sync(patch: pytest.MonkeyPatch) -> None:
    """A copy takes the journal's place before its data is on the medium."""
    without_sync(patch, "replace")


def without_sync(patch: pytest.MonkeyPatch, name: str) -> None:
    """A method of the journal in which nothing is synced."""
    really = getattr(Journal, name)

    def method(self: Journal, *arguments: Any, **options: Any) -> Any:
        sync, self._sync = self._sync, lambda fd: None
        try:
            return really(self, *arguments, **options)
        finally:
            self._sync = sync

    patch.setattr(Journal, name, method)


def index_without_checksums(patch: pytest.MonkeyPatch) -> None:
    """Every page of an index that holds NULs is sound."""
    patch.setattr(index_file, "_checksum", lambda page, data: 0)


def clears_meta_last(patch: pytest.MonkeyPatch) -> None:
    """Meta says what was in the journals when they are gone already."""

    def unlink(self: KeyedLog) -> None:
        self.close()
        self.journal.path.unlink(missing_ok=True)
        files.fsync_directory(self.journal.path.parent)

    really = store.Store.clear

    def clear_here(self: store.Store) -> None:
        with self.lock, self.writer.going_on():
            self.writer.begin()
            for shelf in self.own:
                unlink(shelf)
        really(self)

    patch.setattr(store.Store, "clear", clear_here)


def forgets_what_it_owes(patch: pytest.MonkeyPatch) -> None:
    """What a map has left to be synced is not."""
    patch.setattr(Journal, "pay", lambda self: (0, None))


def meta_counts_what_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    """What was appended counts as synced."""
    patch.setattr(Journal, "synced", property(lambda self: self.end))


def compacts_before_meta_says_less(patch: pytest.MonkeyPatch) -> None:
    """Meta still says how long the journal was."""
    patch.setattr(store.Store, "_take_back", lambda self, kind, shelf: None)


def in_place(patch: pytest.MonkeyPatch) -> None:
    """Compaction that writes over the journal."""

    def replace(self: Journal, chunks: Any, *, first: Any = None) -> None:
        data = b"".join(chunks)
        self.stop_writing()
        first()
        fd = os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, data)
        os.fsync(fd)
        os.close(fd)

    patch.setattr(Journal, "replace", replace)


@pytest.mark.parametrize(
    ("broken", "face", "durability", "do", "where"),
    [
        pytest.param(no_sync, "hand", "process", workload, {}, id="never syncs"),
        pytest.param(no_sync, "map", "power", workload, {}, id="never syncs, and promises to"),
        pytest.param(no_directory_sync, "hand", "power", workload, {}, id="never syncs the directory"),
        pytest.param(
            no_directory_sync_after_a_kill,
            "hand",
            "power",
            compacting,
            {**KILLS, "since": 0.85},
            id="trusts names it finds",
        ),
        pytest.param(no_sync_of_what_was_found, "map", "power", completing, KILLS, id="trusts records it finds"),
        pytest.param(no_sync_of_what_forgets, "hand", "power", workload, {}, id="forgets, but not for good"),
        pytest.param(no_repair, "hand", "process", workload, {}, id="appends to a torn end"),
        pytest.param(no_bytes_set_aside, "hand", "process", workload, {}, id="destroys a torn end"),
        pytest.param(set_aside_without_a_sync, "hand", "power", tearing, CUTS, id="cuts before what it cuts is kept"),
        pytest.param(replaced_without_a_sync, "hand", "power", workload, LATE, id="renames before the data"),
        pytest.param(clears_meta_last, "hand", "power", clearing, {}, id="clears what meta still counts"),
        pytest.param(
            meta_counts_what_is_not_synced, "hand", "process", counting, {"cuts": 12}, id="counts what is not synced"
        ),
        pytest.param(forgets_what_it_owes, "map", "process", mapping_on, {"cuts": 12}, id="forgets what a map owes"),
        pytest.param(
            compacts_before_meta_says_less, "hand", "power", shrinking, {}, id="compacts what meta still counts"
        ),
        pytest.param(in_place, "hand", "power", workload, LATE, id="compacts in place"),
        pytest.param(index_without_checksums, "hand", "process", workload, {}, id="believes a page of NULs"),
    ],
)
def test_a_store_that_breaks_a_promise_is_caught(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[pytest.MonkeyPatch], None],
    face: str,
    durability: str,
    do: Callable[[Work], None],
    where: dict[str, Any],
) -> None:
    """The judge is worth something: each of these fails in some state; the seed is always the same."""
    if ONLY:
        pytest.skip("CHECKPOINT_TEST_STATE names a state of the store as it is")
    lab.seed, lab.kills, lab.share = 1, 1, 0.5
    with monkeypatch.context() as patch:
        broken(patch)
        with pytest.raises((AssertionError, CheckpointError)):
            lab.examine(lab.record("broken", face, durability, do), **{"cuts": 3, "kills": 1, "deeper": 0, **where})


def naive_append(root: Path, note: Callable[[int], None], *, sync: bool, enter: bool, whole: bool) -> None:
    """Three items appended to a log, each acknowledged when it is thought to be safe."""
    fd = os.open(root / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    if enter:
        files.fsync_directory(root)
    for number in range(3):
        os.write(fd, item(number) + (b"\n" if whole else b""))
        if sync:
            os.fsync(fd)
        note(number)
        if not whole:
            os.write(fd, b"\n")
    os.close(fd)


def naive_replace(root: Path, note: Callable[[int], None], *, sync: bool, enter: bool) -> None:
    """Three items, each with those before it in a file that takes the place of the last."""
    for number in range(3):
        with open(root / "tmp", "wb") as file:
            file.write(b"".join(item(before) + b"\n" for before in range(number + 1)))
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(root / "tmp", root / "log")
        if enter:
            files.fsync_directory(root)
        note(number)


def item(number: int) -> bytes:
    """A line's content."""
    return b"item %d " % number + b"x" * 700


@pytest.mark.parametrize(
    ("naive", "options", "breaks"),
    [
        pytest.param(naive_append, {"sync": True, "enter": True, "whole": True}, False, id="appends as it should"),
        pytest.param(naive_append, {"sync": False, "enter": True, "whole": True}, True, id="does not sync"),
        pytest.param(naive_append, {"sync": True, "enter": False, "whole": True}, True, id="syncs no name"),
        pytest.param(naive_append, {"sync": True, "enter": True, "whole": False}, True, id="its newline comes apart"),
        pytest.param(naive_replace, {"sync": True, "enter": True}, False, id="replaces as it should"),
        pytest.param(naive_replace, {"sync": False, "enter": True}, True, id="renames before it syncs"),
        pytest.param(naive_replace, {"sync": True, "enter": False}, True, id="renames and syncs no name"),
    ],
)
def test_the_model_tells_a_sound_store_from_naive_ones(
    tmp_path: Path, naive: Callable[..., None], options: dict[str, bool], breaks: bool
) -> None:
    """Of what a crash leaves, whole lines are read: all that were acknowledged, and only with the right store."""
    with Recorder(tmp_path) as recorder:
        naive(tmp_path, recorder.note, **options)
    disk, chance, acknowledged, lost = recorder.base.copy(), random.Random(1), 0, 0
    for event in recorder.events:
        disk.apply(event)
        acknowledged += isinstance(event, Note)
        for _ in range(30):
            log = disk.after_power_cut(chance).tree.get("log") or b""
            lost += not set(map(item, range(acknowledged))) <= set(log.split(b"\n")[:-1])
    assert bool(lost) == breaks


def test_a_drawn_state_is_one_that_the_rules_allow(tmp_path: Path) -> None:
    """What was synced is in every state; what was not is there, or not, or torn, or NULs; names go their own ways."""
    with Recorder(tmp_path) as recorder:
        fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
        os.write(fd, b"a" * 1000)
        os.fsync(fd)
        files.fsync_directory(tmp_path)
        os.write(fd, b"b" * 1000)
        os.close(fd)
        (tmp_path / "other").mkdir()
        os.rename(tmp_path / "file", tmp_path / "moved")
    disk = recorder.base.copy()
    for event in recorder.events:
        disk.apply(event)
    chance, seen = random.Random(1), set()
    for _ in range(500):
        tree = disk.after_power_cut(chance).tree
        assert tree.keys() <= {"file", "moved", "other"}
        contents = {tree[name] for name in ("file", "moved") if name in tree}
        assert len(contents) == 1, "one file, by at least one name"
        content = contents.pop() or b""
        assert content[:1000] == b"a" * 1000
        assert set(content[1000:]) <= {0, ord("b")}
        seen |= {("size", len(content) in (1000, 2000)), ("NULs", 0 in content), *tree}
        seen.add(("both", {"file", "moved"} <= tree.keys()))
    assert seen == {
        ("size", True), ("size", False), ("NULs", True), ("NULs", False), ("both", True), ("both", False),
        "file", "moved", "other",
    }  # fmt: skip


def test_what_is_not_recorded_is_noticed(tmp_path: Path) -> None:
    """The events, replayed, must give what is really there."""
    (tmp_path / "file").write_bytes(b"a")
    with pytest.raises(AssertionError, match="not recorded"), Recorder(tmp_path), mmap_of(tmp_path / "file") as mapped:
        mapped[0:1] = b"b"


def mmap_of(path: Path) -> mmap.mmap:
    """The file, mapped."""
    fd = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(fd, 1)
    finally:
        os.close(fd)
