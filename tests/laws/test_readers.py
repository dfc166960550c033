"""The law of a reader beside edits: whatever becomes of a journal, no value is read under another key.

Other programs sort a journal, join it with another, format it anew, put an older copy back, cut it or write it in
place, and put back index files of any age, while readers and `Results` are open. What stands on sound lines of the
journal as it is now is found, by a fresh reader and by an open one; else an error says what happened. Reading changes
no byte of a journal.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from checkpoint import CheckpointedRunner, CheckpointError, DamagedRecord, JournalLost, Results, checkpointed
from checkpoint.catalog import view
from checkpoint.catalog.registry import Registry
from checkpoint.maintenance.compact import compact
from checkpoint.storage import blocks
from checkpoint.storage.record import parse

KEYS: list[Any] = [1, 2, 3, 4, "a", "b", "1", (5, "c")]
keys = st.sampled_from(KEYS)
choices = st.integers(0, 1000)
Lines = list[bytes]


def spaced(line: bytes) -> bytes:
    """The line as many JSON tools write it: the checksum fits what it was."""
    return json.dumps(json.loads(line)).encode() + b"\n"


def reordered(line: bytes) -> bytes:
    """The line with its fields in another order: no checksum fits it any more."""
    return json.dumps(dict(sorted(json.loads(line).items())), separators=(",", ":")).encode() + b"\n"


def is_sound(line: bytes) -> bool:
    """Whether a line is a record that fits its checksum."""
    try:
        return bool(parse(line).crc)
    except ValueError:
        return False


class Journal:
    """What a journal says, read line by line by somebody who knows no index.

    Attributes:
        values: by key, what stands on its last line.
        sound: by key, all values that stand on sound lines.
        spoilt: keys that a damaged line may be of.
        is_damaged: whether a line is damaged.
    """

    def __init__(self, data: bytes) -> None:
        self.values: dict[Any, Any] = {}
        self.sound: dict[Any, list[Any]] = {}
        self.spoilt: set[Any] = set()
        self.is_damaged = False
        for line in data.split(b"\n"):
            if not line.strip():
                continue
            if not is_sound(line):
                self.is_damaged = True
                packed = line.replace(b" ", b"")  # another program may have formatted it
                self.spoilt.update(key for key in KEYS if json.dumps(encoded(key)).replace(" ", "").encode() in packed)
                self._read_loose(line)
                continue
            fields = json.loads(line)
            (key,) = (key for key in KEYS if encoded(key) == fields["key"] and type(key) is not bool)
            if fields.get("forgotten"):
                self.values.pop(key, None)
            else:
                self.values[key] = fields["result"]
                self.sound.setdefault(key, []).append(fields["result"])

    def _read_loose(self, line: bytes) -> None:
        """Two halves may make a line without checksum, which cannot tell."""
        try:
            record = parse(line)
        except ValueError:
            return
        for key in [*[key for key in KEYS if str(key) == str(record.key)], str(record.key)]:
            self.spoilt.add(key)
            self.sound.setdefault(key, []).append(json.loads(bytes(record.result) or b"null"))


def encoded(key: Any) -> Any:
    """The key as JSON has it."""
    return {"$tuple": list(key)} if type(key) is tuple else key


class Edits(RuleBasedStateMachine):
    """One journal, its writers, its readers, and other programs."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="checkpoint-readers-"))
        self.path, self.file = self.root / "j_results.jsonl", self.root / ".j_results.index"
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(blocks, "LOOK_AGAIN", 0.0)  # each look is the first for a while
        self.patch.setattr(view, "open_checkpoint", lambda *given: Registry().open(*given))  # as if each were a process
        self.readers: list[CheckpointedRunner] = []
        self.results: list[tuple[list[Any], Any, Any]] = []
        self.copies: list[bytes] = []
        self.files: list[bytes] = []
        self.moment = time.time_ns()
        self.count = 0
        self.longest = 0
        logging.getLogger("checkpoint").setLevel(logging.CRITICAL)

    @initialize(size=st.sampled_from([128, 512, 65536]), at_once=st.sampled_from([0, 1 << 20]))
    def begin(self, size: int, at_once: int) -> None:
        self.patch.setattr(blocks, "BLOCK_SIZE", size)
        self.patch.setattr(blocks, "AT_ONCE", at_once)
        self.is_strict = at_once > 0  # else a value is right as long as its own block is as it was
        for key in KEYS:
            self.save(key)
        self.keep()

    def teardown(self) -> None:
        for reader in [*self.readers, *[runner for _, _, runner in self.results]]:
            reader.close()
        self.patch.undo()
        logging.getLogger("checkpoint").setLevel(logging.NOTSET)
        shutil.rmtree(self.root)

    def open(self) -> CheckpointedRunner:
        return CheckpointedRunner("j", self.root, version=1)

    def value_of(self, key: Any) -> str:
        self.count += 1
        return f"{key!r} {self.count:06}"

    # what a user does

    @rule(key=keys)
    def save(self, key: Any) -> None:
        with self.open() as writer:
            self.allow_refusal(lambda: writer.save_result(key, self.value_of(key)))
        self.longest = max(self.longest, len(self.data()))

    @rule(key=keys)
    def clear(self, key: Any) -> None:
        with self.open() as writer:
            self.allow_refusal(lambda: writer.clear([key]))

    @rule()
    def write_the_index(self) -> None:
        def write(writer: CheckpointedRunner) -> None:
            writer.records.store.writer.begin()
            for shelf in writer.records.store.own:
                shelf.write_index()

        try:
            writer = self.open()
        except CheckpointError as error:
            self.excuse(error)
            return
        with writer:
            self.allow_refusal(lambda: write(writer))

    @rule(drop=choices)
    def open_a_reader(self, drop: int) -> None:
        if len(self.readers) == 3:
            self.readers.pop(drop % 3).close()
        self.readers.append(self.open())

    @rule(some=st.lists(keys, min_size=1, max_size=8))
    def keep_results(self, some: list[Any]) -> None:
        """A map over what is done computes nothing."""
        there = Journal(self.data())
        wanted = [key for key in some if key in there.values and key not in there.spoilt]

        def never(key: Any) -> str:
            raise AssertionError(f"{key!r} is on a sound line, and was computed anew")

        mapped = checkpointed("j", checkpoint_dir=self.root, version=1, key=lambda key: key)(never)
        try:
            results = mapped.map(wanted, progress=False)
        except CheckpointError as error:
            mapped.runner.close()
            self.excuse(error)
            return
        self.results.append((wanted, results, mapped.runner))
        if len(self.results) > 3:
            self.results.pop(0)[2].close()
        self.check_results(wanted, results)

    # what other programs do

    def data(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def put(self, data: bytes, in_place: bool) -> None:
        """Write the journal, as any program does: later than the tick of the clock in which it was written before."""
        if in_place:
            with self.path.open("r+b") as file:
                file.write(data)
                file.truncate()
        else:
            self.path.with_name("new").write_bytes(data)
            self.path.with_name("new").replace(self.path)
        self.moment += 100_000_000
        os.utime(self.path, ns=(self.moment, self.moment))

    @rule()
    def keep(self) -> None:
        self.copies.append(self.data())

    @rule()
    def keep_the_index(self) -> None:
        if self.file.exists():
            self.files.append(self.file.read_bytes())

    @rule(number=choices)
    def put_an_index_back(self, number: int) -> None:
        if self.files:
            self.file.write_bytes(self.files[number % len(self.files)])

    @rule(how=st.sampled_from(["sort", "reverse", "swap", "keep the last"]), at=choices, in_place=st.booleans())
    def move_lines(self, how: str, at: int, in_place: bool) -> None:
        lines = self.data().splitlines(keepends=True)
        if how == "sort":
            lines.sort()
        elif how == "reverse":
            lines.reverse()
        elif how == "keep the last":
            lines[1:-1] = lines[-2:0:-1]
        elif len(lines) > 1:
            one = at % len(lines)
            same = [other for other, line in enumerate(lines) if len(line) == len(lines[one])]
            two = same[at // 7 % len(same)]
            lines[one], lines[two] = lines[two], lines[one]
        self.put(b"".join(lines), in_place)

    @rule(number=choices, at=choices, in_place=st.booleans())
    def put_a_line_over_another(self, number: int, at: int, in_place: bool) -> None:
        """Of the same size: what stood there is gone, and what is put there counts there."""
        lines = self.data().splitlines(keepends=True)
        there = self.copies[number % len(self.copies)].splitlines(keepends=True)
        pairs = [(place, line) for place, held in enumerate(lines) for line in there if len(line) == len(held)]
        if pairs:
            place, line = pairs[at % len(pairs)]
            lines[place] = line
            self.put(b"".join(lines), in_place)

    @rule(number=choices, in_place=st.booleans(), first=st.booleans())
    def join(self, number: int, in_place: bool, first: bool) -> None:
        """`cat a b > c`."""
        copy, data = self.copies[number % len(self.copies)], self.data()
        if data.endswith(b"\n") and copy.endswith(b"\n") and len(data) < 20_000:
            self.put(copy + data if first else data + copy, in_place)

    @rule(number=choices)
    def append(self, number: int) -> None:
        """A line of another copy, by another program."""
        lines = b"".join(self.copies).splitlines(keepends=True)
        if self.data().endswith(b"\n") and lines and lines[number % len(lines)].endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(lines[number % len(lines)])

    @rule(how=st.sampled_from([spaced, reordered]), some=choices, in_place=st.booleans())
    def format(self, how: Callable[[bytes], bytes], some: int, in_place: bool) -> None:
        """All lines, or one in so many."""
        lines = self.data().splitlines(keepends=True)
        each = 1 + some % 4
        self.put(
            b"".join([how(line) if place % each == 0 and is_sound(line) else line for place, line in enumerate(lines)]),
            in_place,
        )

    @rule(number=choices, part=st.sampled_from([0.3, 0.9, 1.0]), in_place=st.booleans())
    def restore(self, number: int, part: float, in_place: bool) -> None:
        copy = self.copies[number % len(self.copies)]
        self.put(copy[: int(len(copy) * part)], in_place)

    @rule(number=choices)
    def restore_half_way(self, number: int) -> None:
        """The beginning is that of an older copy."""
        copy, data = self.copies[number % len(self.copies)], self.data()
        self.put(copy[: len(data) // 2] + data[len(copy[: len(data) // 2]) :], True)

    @rule(size=choices)
    def cut(self, size: int) -> None:
        data = self.data()
        self.put(data[: len(data) - size % (len(data) // 4 + 1)], True)

    @rule(what=st.sampled_from(["j_meta.json", ".j_results.index", ".j_results.damaged"]))
    def lose(self, what: str) -> None:
        self.root.joinpath(what).unlink(missing_ok=True)
        self.longest = 0 if what == "j_meta.json" else self.longest

    # what must hold

    def is_excused(self) -> bool:
        """Whether there is something to refuse: lines that are damaged, or fewer than meta knows of."""
        data, meta = self.data(), self.root / "j_meta.json"
        synced = json.loads(meta.read_bytes()).get("synced_bytes", {}).get("results", 0) if meta.exists() else 0
        return Journal(data).is_damaged or len(data) < max(self.longest, synced)

    def excuse(self, error: CheckpointError, *, is_spoilt: bool = False) -> None:
        """An error is right where something is to be refused."""
        if not (is_spoilt or self.is_excused()):
            raise error

    def allow_refusal(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except CheckpointError as error:
            self.excuse(error)

    @invariant()
    def readers_read_what_is_there(self) -> None:
        if not self.copies:
            return
        before = self.data()
        there = Journal(before)
        fresh = None
        try:
            fresh = self.open()
            for reader in (*self.readers, fresh):
                self.check_reader(reader, there)
        except CheckpointError as error:
            if fresh is not None:
                raise
            self.excuse(error)
        finally:
            if fresh is not None:
                fresh.close()
        for wanted, results, _ in self.results:
            self.check_results(wanted, results)
        assert self.data() == before, "reading changed the journal"

    def check_reader(self, reader: CheckpointedRunner, there: Journal) -> None:
        for key in KEYS:
            possible = [there.values.get(key)] if self.is_strict else [*there.sound.get(key, ()), there.values.get(key)]
            is_spoilt = key in there.spoilt
            if is_spoilt:
                possible += [None, *there.sound.get(key, ())]
            try:
                is_done = reader.is_completed(key)
                assert is_spoilt or is_done == (key in there.values), (key, is_done)
                assert reader.get_result(key) in possible, key
            except CheckpointError as error:
                self.excuse(error, is_spoilt=is_spoilt)
        try:
            found = reader.get_all_results()
        except CheckpointError as error:
            self.excuse(error)
            return
        for key, value in found.items():
            assert value in there.sound[key], key
            assert key in there.spoilt or not self.is_strict or value == there.values[key]
        assert there.values.keys() - found.keys() <= there.spoilt

    def check_results(self, wanted: list[Any], results: Any) -> None:
        """Each place has a value of its own key, or an error says what happened."""
        for place, key in enumerate(wanted):
            try:
                value = results[place]
            except CheckpointError:
                continue
            assert value.rpartition(" ")[0] == repr(key), (key, value)
        try:
            assert all(value.rpartition(" ")[0] == repr(key) for key, value in results.to_dict().items())
            assert results.item_keys == wanted
        except CheckpointError:
            pass


SETTINGS: dict[str, Any] = {
    "report_multiple_bugs": False,
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
}


@pytest.mark.slow
@pytest.mark.promise("a journal edited beside readers")
@pytest.mark.usefixtures("free_sync")
def test_a_journal_edited_beside_readers() -> None:
    """Some histories, each of some edits."""
    run_state_machine_as_test(Edits, settings=settings(max_examples=25, stateful_step_count=15, **SETTINGS))


@pytest.mark.soak
@pytest.mark.usefixtures("free_sync")
def test_a_journal_edited_beside_readers_at_length() -> None:
    """Many, and longer ones."""
    run_state_machine_as_test(Edits, settings=settings(max_examples=2000, stateful_step_count=30, **SETTINGS))


# --- by example -----------------------------------------------------------------------------------------------------


Opener = Callable[..., CheckpointedRunner]


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each runner has the files open for itself, as if it were a process of its own."""
    monkeypatch.setattr(view, "open_checkpoint", lambda *given: Registry().open(*given))


def journal_of(directory: Path) -> Path:
    """The journal of the results."""
    return directory / "j_results.jsonl"


def fill(make: Opener, wanted: list[Any], *, files: bool = False) -> None:
    """A closed checkpoint that holds a value for each key, its index in a file where that is wanted."""
    with make(version=1) as runner:
        for key in wanted:
            runner.save_result(key, f"value of {key}")
        if files:
            runner.records.store.own.results.write_index()


def edit(path: Path, change: Callable[[Lines], Lines]) -> None:
    """Another program writes the lines anew, in place, a moment later."""
    data = b"".join(change(path.read_bytes().splitlines(keepends=True)))
    with path.open("r+b") as file:
        file.write(data)
        file.truncate()
    later = path.stat().st_mtime_ns + 100_000_000
    os.utime(path, ns=(later, later))


def neighbours_swapped(lines: Lines) -> Lines:
    """Line 10 and 11 change places, and so on; both ends stay."""
    for place in range(10, len(lines) - 10, 2):
        lines[place : place + 2] = lines[place : place + 2][::-1]
    return lines


@pytest.mark.promise("a journal edited beside readers")
@pytest.mark.parametrize("at_once", [0, 1 << 20], ids=["a long journal", "a short one"])
@pytest.mark.parametrize("grown_by", ["a line by hand", "a session that was killed"])
def test_an_index_file_of_another_order_leads_to_no_other_value(
    make: Opener, tmp_path: Path, apart: None, monkeypatch: pytest.MonkeyPatch, at_once: int, grown_by: str
) -> None:
    """Lines changed places, and the journal has grown since: both its ends are as the index file knows them."""
    monkeypatch.setattr(blocks, "AT_ONCE", at_once)
    fill(make, list(range(100, 400)), files=True)
    edit(journal_of(tmp_path), neighbours_swapped)
    line = b'{"key": 5, "result": 50, "timestamp": ""}\n'
    if grown_by != "a line by hand":
        line = journal_of(tmp_path).read_bytes().splitlines(keepends=True)[0]
    with journal_of(tmp_path).open("ab") as journal:
        journal.write(line)
    one = make(version=1)
    assert [one.get_result(key) for key in (115, 399, 116)] == ["value of 115", "value of 399", "value of 116"]

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def again(number: int) -> str:
        raise AssertionError("it is done")

    mapped = again.map(range(100, 400), progress=False)
    assert mapped == [f"value of {number}" for number in range(100, 400)]


@pytest.mark.promise("a journal edited beside readers")
def test_an_order_that_changed_under_a_reader_forgets_nothing(make: Opener, tmp_path: Path, apart: None) -> None:
    """`sort -o` keeps the file, its size and its last line; each value is read, and the journal stays as it is."""
    wanted = [f"k{number:03}" for number in range(100)]
    fill(make, [wanted[0], *wanted[98:0:-1], wanted[-1]])
    reader = make(version=1)
    assert reader.get_result("k005") == "value of k005"
    edit(journal_of(tmp_path), sorted)
    before = journal_of(tmp_path).read_bytes()
    assert {key: reader.get_result(key) for key in wanted} == {key: f"value of {key}" for key in wanted}
    assert journal_of(tmp_path).read_bytes() == before
    assert len(make(version=1).get_all_results()) == 100


@pytest.mark.promise("a journal edited beside readers")
def test_a_line_that_moved_is_no_damage_though_nothing_tells_of_the_edit(
    make: Opener, tmp_path: Path, apart: None
) -> None:
    """The file has the size and the time that the reader knows: the record itself is of another key."""
    fill(make, list(range(30)))
    reader = make(version=1)
    assert reader.get_result(15) == "value of 15"
    state = journal_of(tmp_path).stat()
    edit(journal_of(tmp_path), neighbours_swapped)
    os.utime(journal_of(tmp_path), ns=(state.st_atime_ns, state.st_mtime_ns))
    assert [reader.get_result(key) for key in range(30)] == [f"value of {key}" for key in range(30)]
    assert not (tmp_path / ".j_results.damaged").exists()


@pytest.mark.promise("a journal that is none")
@pytest.mark.parametrize("looks", ["plan", "map"])
def test_a_formatter_whose_lines_fit_no_checksum_is_one_error_and_nothing_is_paid(tmp_path: Path, looks: str) -> None:
    """Each line is sound JSON with the right value: nobody recomputes them all; what was only spaced out counts."""

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def f(number: int) -> dict[str, int]:
        calls.append(number)
        return {"n": number}

    calls: list[int] = []
    f.map(range(50), progress=False)
    f.runner.close()
    good = journal_of(tmp_path).read_bytes()
    edit(journal_of(tmp_path), lambda lines: [spaced(line) for line in lines])
    assert f.options().map(range(50), progress=False) == [{"n": number} for number in range(50)]
    f.runner.close()
    journal_of(tmp_path).write_bytes(good)
    edit(journal_of(tmp_path), lambda lines: [reordered(line) for line in lines])
    with pytest.raises(JournalLost, match="sound JSON and do not fit their checksums"):
        f.options().plan(range(50)) if looks == "plan" else f.options().map(range(50), progress=False)
    assert len(calls) == 50


@pytest.mark.slow
@pytest.mark.promise("a journal edited beside readers")
def test_results_see_that_a_record_is_of_their_item(tmp_path: Path, apart: None) -> None:
    """Where an edit in place moved a line they find it by its key; where it is gone an error says what happened."""

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def f(number: int) -> str:
        return f"value of {number}"

    wanted = [f"value of {number}" for number in range(30)]
    results = f.map(range(30), progress=False)
    edit(journal_of(tmp_path), neighbours_swapped)
    assert results == wanted
    assert results.item_keys == list(range(30))
    assert list(results.to_dict().items()) == list(enumerate(wanted))
    assert results.to_pandas()["result"].to_list() == wanted
    edit(journal_of(tmp_path), lambda lines: [*lines[:12], lines[13], *lines[13:]])
    gone = json.loads(wanted_line := journal_of(tmp_path).read_bytes().splitlines()[12])["key"]
    assert wanted_line
    missing = next(number for number in (12, 13) if number != gone)
    with pytest.raises(JournalLost, match="was edited while this process read it"):
        results[missing]
    assert results[gone] == wanted[gone]


@pytest.mark.promise("damaged line in the middle")
@pytest.mark.parametrize("put_back", [True, False], ids=["put back", "damaged still"])
@pytest.mark.parametrize("by", ["the process that saw it", "another one", "another one, without the note"])
def test_damage_that_a_reader_met_is_looked_at_again_by_the_next_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str, put_back: bool
) -> None:
    """The reader appends nothing, and does not count the key; the next pass computes what is damaged still."""
    calls: list[int] = []

    def f(number: int) -> str:
        calls.append(number)
        return f"value of {number}"

    def face() -> Any:
        return checkpointed("j", checkpoint_dir=tmp_path, version=1)(f)

    monkeypatch.setattr(view, "open_checkpoint", lambda *given: Registry().open(*given))
    face().map(range(30), progress=False)
    good = journal_of(tmp_path).read_bytes()
    edit(journal_of(tmp_path), lambda lines: [line.replace(b'"value of 17"', b'"value of 71"') for line in lines])
    bad = journal_of(tmp_path).read_bytes()
    seen = face()
    with pytest.raises(DamagedRecord, match="key 17"):
        seen.results[17]
    assert journal_of(tmp_path).read_bytes() == bad
    assert (17 in seen.results, len(seen.results), seen.plan(range(30)).done) == (False, 29, 29)
    note = tmp_path / ".j_results.damaged"
    assert note.exists()
    if by != "another one, without the note":
        assert face().plan(range(30)).done == 29
    else:
        note.unlink()
    if put_back:
        journal_of(tmp_path).write_bytes(good)
    calls.clear()
    mapped = seen if by == "the process that saw it" else face()
    results = mapped.map(range(31), progress=False)
    if by == "another one, without the note" and not put_back:
        with pytest.raises(DamagedRecord):
            list(results)
        results = mapped.map(range(31), progress=False)
    assert sorted(calls) == ([30] if put_back else [17, 30])
    assert list(results) == [f"value of {number}" for number in range(31)]
    mapped.runner.save_result(99, "one more")
    mapped.runner.close()
    face().runner.save_result(100, "and one")
    assert not note.exists()


def test_what_is_noted_of_damage_is_believed_of_no_sound_line(make: Opener, tmp_path: Path, apart: None) -> None:
    """Anybody may write the file, or delete it: it only says where to look again."""
    fill(make, [1, 2])
    version = json.loads(journal_of(tmp_path).read_bytes().splitlines()[0])["version"].encode()
    noted = b'{"key":1,"version":"%b"}\nnoise\n{"key":[1]}\n{"key":7,"version":"x"}\n\xff' % version
    (tmp_path / ".j_results.damaged").write_bytes(noted)
    assert make(version=1).get_all_results() == {1: "value of 1", 2: "value of 2"}
    fill(make, [3])
    assert not (tmp_path / ".j_results.damaged").exists()


@pytest.mark.parametrize("act", ["compact", "clear"])
@pytest.mark.parametrize("shards", [0, 2])
def test_results_keep_what_they_had_whatever_takes_the_journals_place(
    tmp_path: Path, apart: None, act: str, shards: int
) -> None:
    """They have a descriptor of their own; so has an iteration that has begun, which goes on to its end."""

    def f(number: int) -> str:
        return f"value of {number}"

    def face() -> Any:
        return checkpointed("j", checkpoint_dir=tmp_path, version=1)(f)

    for shard in range(shards):
        face().map(range(40), progress=False, shard=(shard, shards))
    one = face()
    results = one.map(range(40), progress=False)
    for number in range(5):
        one.runner.save_result(number, f"value of {number}")
    one.runner.close()
    reading = face()
    results = reading.map(range(40), progress=False)
    begun = [iter(results), iter(reading.results), iter(reading.results.items()), iter(reading.results.values())]
    first = [next(each) for each in begun]
    if act == "compact":
        compact("j", tmp_path)
    else:
        face().clear()
    assert list(results) == [f"value of {number}" for number in range(40)]
    assert [len([head, *rest]) for head, rest in zip(first, begun, strict=True)] == [40] * 4
    assert len(reading.results) == (40 if act == "compact" else 0)


def test_what_is_iterated_while_keys_are_cleared_raises_no_key_error(tmp_path: Path) -> None:
    """Items and values are read in one go, of failures too; they are not looked up key by key."""

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def f(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number

    f.map(range(20), progress=False, return_exceptions=True)
    for each, most in ((f.results.items(), 10), (f.results.values(), 10), (f.errors.items(), 10)):
        begun = iter(each)
        got = [next(begun)]
        f.clear(list(range(10, 20)))
        assert len([*got, *begun]) in (most, most // 2)
        f.map(range(20), progress=False, return_exceptions=True)
    assert 4 in f.results.values()
    assert (4, 4) in f.results.items()


def test_opening_reads_a_header_where_the_index_file_is_of_the_journal_as_it_is(
    make: Opener, tmp_path: Path, apart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the journal is; where nothing vouches for it, what is read is the block of the key that is asked."""
    with make(version=1) as runner:
        for key in range(2000):
            runner.save_result(key, "x" * 2500)
        runner.records.store.own.results.write_index()
    read: list[int] = []
    pread = os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    monkeypatch.setattr("checkpoint.storage.reader.pread", counted)
    sealed = make(version=1)
    assert not sealed.is_completed("absent")
    assert sum(read) < 500_000
    os.utime(journal_of(tmp_path))
    read.clear()
    unsealed = make(version=1)
    assert unsealed.is_completed(50)
    assert sum(read) < 500_000 + 2 * blocks.BLOCK_SIZE
    assert not unsealed.is_completed("absent")
    assert sum(read) > 5_000_000


@pytest.mark.promise("a journal edited beside readers")
@pytest.mark.parametrize("at_once", [0, 1 << 20], ids=["a long journal", "a short one"])
def test_the_last_line_of_a_key_counts_whatever_the_index_file_says(
    make: Opener, tmp_path: Path, apart: None, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """An earlier line of a key was put over a later one of another: only the checksum of their block tells."""
    monkeypatch.setattr(blocks, "AT_ONCE", at_once)
    numbers = count(100)
    with make(version=1) as runner:
        for key in [*range(10, 30), 17, *range(30, 50)]:
            runner.save_result(key, f"value {next(numbers):06}")
        runner.records.store.own.results.write_index()
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    assert len(lines[7]) == len(lines[30])
    edit(journal_of(tmp_path), lambda lines: [*lines[:30], lines[7], *lines[31:]])
    with journal_of(tmp_path).open("ab") as journal:
        journal.write(lines[25])
    assert make(version=1).get_result(17) == json.loads(lines[7])["result"]


@pytest.mark.parametrize("failing", [False, True])
def test_results_of_two_versions_are_never_mixed(tmp_path: Path, *, failing: bool) -> None:
    """Their lines change places in the file that both have open: each is found by its key and its version."""

    def made(version: str) -> Results[Any]:
        def named(n: int) -> str:
            if failing:
                raise ValueError(f"{version} {n}")
            return f"{version} {n}"

        function = checkpointed("j", checkpoint_dir=tmp_path, version=version)(named)
        return function.map([1, 2, 3], progress=False, return_exceptions=True)

    one, two = made("one"), made("two")
    path = tmp_path / ("j_errors.jsonl" if failing else "j_results.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    with path.open("r+b") as journal:
        journal.writelines([*lines[3:], *lines[:3]])
    for version, results in (("one", one), ("two", two)):
        expected = [f"{version} {n}" for n in (1, 2, 3)]
        assert [results[n].message if failing else results[n] for n in range(3)] == expected
        assert [each.message if failing else each for each in results] == expected
