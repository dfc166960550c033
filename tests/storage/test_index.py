"""The laws of an index: it answers as a dict does, and whatever becomes of its file changes nothing but time."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoint import CheckpointedRunner, DamagedRecord
from checkpoint.storage.index import Index
from checkpoint.storage.index_file import IndexFile, file_state
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import seal
from checkpoint.values.digests import LOW
from checkpoint.values.keys import key_json

Opener = Callable[..., CheckpointedRunner]
KEYS: list[Any] = [*range(40), *"abcdefgh", ("t", 1), None, -1.5]
VALUES = {key: [str(key)] * 3 for key in KEYS}


def index_of(directory: Path) -> Path:
    """The index of the results."""
    return directory / ".j_results.index"


def journal_of(directory: Path) -> Path:
    """The journal of the results."""
    return directory / "j_results.jsonl"


def fill(directory: Path, values: dict[Any, Any] = VALUES, **options: Any) -> None:
    """A checkpoint that holds the values, with its index written."""
    with CheckpointedRunner("j", directory, **options) as runner:
        for key, value in values.items():
            runner.save_result(key, value)
        runner.records.store.own.results.write_index()
    assert index_of(directory).exists()


def read_all(directory: Path, **options: Any) -> dict[Any, Any]:
    """Every value, asked for in each way that there is: one by one, all at once, and by what is left to run."""
    with CheckpointedRunner("j", directory, **options) as runner:
        assert runner.progress()[0] == len(VALUES)
        assert [key for key in KEYS if not runner.is_completed(key)] == []
        assert not runner.is_completed("absent")
        assert list(runner.iterate([*KEYS, "absent"])) == ["absent"]
        one_by_one = {key: runner.get_result(key) for key in KEYS}
        assert runner.get_all_results() == one_by_one
        return one_by_one


# --- the file is only a cache ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("meta or index missing, empty, garbage, stale")
def test_no_flipped_byte_of_an_index_changes_a_result(tmp_path: Path, free_sync: None) -> None:
    """Every byte of its header and its page table, and every third of its entries, by two masks."""
    fill(tmp_path)
    index, good = index_of(tmp_path), index_of(tmp_path).read_bytes()
    header = len(good[:4096].rstrip(b" \n")) + 2
    for place in [*range(header), 4000, 4095, *range(4096, 4200), *range(4200, len(good), 3)]:
        for mask in (0x01, 0xFF):
            flipped = bytearray(good)
            flipped[place] ^= mask
            index.write_bytes(flipped)
            with CheckpointedRunner("j", tmp_path) as runner:
                assert runner.progress()[0] == len(VALUES)
                assert [key for key in KEYS if not runner.is_completed(key)] == []
                assert not runner.is_completed("absent")
    index.write_bytes(bytes(flipped))
    assert read_all(tmp_path) == VALUES


@pytest.mark.slow
@pytest.mark.promise("meta or index missing, empty, garbage, stale")
def test_an_index_cut_at_any_byte_changes_no_result(tmp_path: Path, free_sync: None) -> None:
    """Every truncation length of the entries and of the header's end."""
    fill(tmp_path)
    index, good = index_of(tmp_path), index_of(tmp_path).read_bytes()
    for size in [0, 1, 100, 4095, *range(4096, len(good), 5)]:
        index.write_bytes(good[:size])
        assert read_all(tmp_path) == VALUES


def _zero(start: int) -> Callable[[Path], None]:
    def change(index: Path) -> None:
        data = index.read_bytes()
        index.write_bytes(data[:start] + bytes(len(data) - start))

    return change


def _replace_by_directory(index: Path) -> None:
    index.unlink()
    index.mkdir()


def _replace_by_link(index: Path) -> None:
    target = index.with_name("elsewhere")
    index.rename(target)
    index.symlink_to(target)


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda index: index.unlink(), "deleted: it costs nothing but time"),
        (lambda index: index.write_bytes(b""), "emptied"),
        (lambda index: index.write_bytes(os.urandom(9000)), "noise"),
        (lambda index: index.write_bytes(b"{}" + b" " * 4094), "a header that says nothing"),
        (_zero(0), "zeros, as a power cut leaves them"),
        (_zero(4096), "a header alone, as a power cut leaves it: the rest had not been written"),
        (_zero(5000), "zeros from a page on"),
        (lambda index: index.chmod(0), "unreadable (not for root)"),
        (_replace_by_directory, "a directory of that name"),
        (_replace_by_link, "a link, which is not followed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_whatever_becomes_of_an_index_changes_no_result(
    tmp_path: Path, change: Callable[[Path], None], reason: str
) -> None:
    """The results are the same, and the same line again writes the index anew where it can."""
    fill(tmp_path)
    change(index_of(tmp_path))
    assert read_all(tmp_path) == VALUES
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result("more", 1)
        runner.records.store.own.results.write_index()
        assert runner.is_completed("more")
        runner.clear(["more"])
    assert read_all(tmp_path) == VALUES


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
def test_an_index_that_is_damaged_while_open_changes_no_result(make: Opener, tmp_path: Path) -> None:
    """A page is read when it is needed: if it fails its checksum the journal is read instead, in a writer too."""
    fill(tmp_path)
    runner = make()
    runner.save_result("more", 1)
    with open(index_of(tmp_path), "r+b") as file:
        file.seek(4096)
        file.write(bytes(2000))
    assert [key for key in KEYS if not runner.is_completed(key)] == []
    assert runner.is_completed("more")
    runner.save_result("last", 2)
    assert runner.get_all_results() == {**VALUES, "more": 1, "last": 2}


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
def test_the_index_of_another_journal_is_left_alone(tmp_path: Path) -> None:
    """A copied directory, a renamed checkpoint, a restored backup: an index is believed only of its own journal."""
    fill(tmp_path / "one")
    fill(tmp_path / "two", dict.fromkeys(range(40, 100), "other"))
    shutil.copy(index_of(tmp_path / "two"), index_of(tmp_path / "one"))
    with CheckpointedRunner("j", tmp_path / "one") as runner:
        assert not runner.is_completed(99), "only the other one knows it"
    assert read_all(tmp_path / "one") == VALUES


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
def test_an_older_copy_of_the_index_lacks_nothing(tmp_path: Path) -> None:
    """What the journal holds beyond it is read from the journal; what was overwritten since is what counts."""
    fill(tmp_path, dict.fromkeys(KEYS[:30], "old"))
    older = index_of(tmp_path).read_bytes()
    fill(tmp_path)
    index_of(tmp_path).write_bytes(older)
    assert read_all(tmp_path) == VALUES


def test_an_index_of_a_journal_that_has_shrunk_is_not_believed(tmp_path: Path) -> None:
    """After a power cut the index may know more than the journal holds, as meta never does: here it is gone."""
    fill(tmp_path)
    (tmp_path / "j_meta.json").unlink()
    data = journal_of(tmp_path).read_bytes()
    lines = data.splitlines(keepends=True)
    for gone in (1, 5, len(lines)):
        journal_of(tmp_path).write_bytes(b"".join(lines[: len(lines) - gone]))
        with CheckpointedRunner("j", tmp_path) as runner:
            assert [key for key in KEYS if runner.is_completed(key)] == KEYS[: len(KEYS) - gone]


def test_a_journal_of_the_same_length_is_another_one(tmp_path: Path) -> None:
    """Neither length nor date tells whether an index is of a journal: its bytes do."""
    fill(tmp_path)
    index, size = index_of(tmp_path).read_bytes(), journal_of(tmp_path).stat().st_size
    other = {key: [str(key)[::-1].upper()] * 3 for key in reversed(KEYS)}
    fill(tmp_path / "other", other)
    shutil.copy(journal_of(tmp_path / "other"), journal_of(tmp_path))
    assert journal_of(tmp_path).stat().st_size == size
    index_of(tmp_path).write_bytes(index)
    assert read_all(tmp_path) == other


def test_a_journal_edited_in_the_middle_is_read_anew(tmp_path: Path) -> None:
    """Lines swapped by hand leave length, beginning and end as they were: no key gets another's value, none is lost."""
    fill(tmp_path)
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    short = next(place for place, line in enumerate(lines) if len(line) < len(lines[20]))
    lines[15], lines[20], lines[short + 3] = lines[20], lines[short + 3], lines[15]
    journal_of(tmp_path).write_bytes(b"".join(lines))
    with CheckpointedRunner("j", tmp_path) as runner:
        assert {key: runner.get_result(key) for key in KEYS} == VALUES
        assert runner.get_all_results() == VALUES


@pytest.mark.promise("symlinks, permissions")
def test_the_index_is_replaced_whole_and_never_through_a_link(make: Opener, tmp_path: Path) -> None:
    """A link planted where the temporary file goes is not followed: the index stays unwritten, the results safe."""
    target = tmp_path / "precious"
    target.write_text("precious")
    runner = make()
    runner.save_result("a", 1)
    link = tmp_path / f".j_results.index.{os.getpid()}.tmp"
    link.symlink_to(target)
    runner.records.store.own.results.write_index()
    assert target.read_text() == "precious"
    link.unlink(missing_ok=True)
    runner.records.store.own.results.write_index()
    assert index_of(tmp_path).exists()
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.slow
def test_an_index_that_cannot_be_written_is_no_error(make: Opener, tmp_path: Path) -> None:
    """It is only a cache, with 200 versions too."""
    for version in range(200):
        with CheckpointedRunner("j", tmp_path, version=version) as runner:
            runner.save_result("a", version)
    runner = make(version=7)
    runner.records.store.own.results.write_index()
    assert runner.get_all_results() == {"a": 7}
    runner.close()
    assert make(version=199).get_all_results() == {"a": 199}


def test_a_damaged_record_known_only_to_the_index_file_names_its_key(make: Opener, tmp_path: Path) -> None:
    """The file knows hashes: the key is found by reading the journal."""
    fill(tmp_path)
    data = journal_of(tmp_path).read_bytes()
    place = data.index(b'["17","17","17"]')
    journal_of(tmp_path).write_bytes(data[: place + 2] + b"x" + data[place + 3 :])
    runner = make()
    with pytest.raises(DamagedRecord) as damaged:
        runner.get_all_results()
    assert (damaged.value.key, damaged.value.line) == (17, 18)
    assert runner.get_all_results() == {key: value for key, value in VALUES.items() if key != 17}
    assert list(runner.iterate(KEYS)) == [17]


def test_threads_that_write_an_index_at_once_leave_a_sound_one(make: Opener, tmp_path: Path) -> None:
    """A pass that ends and the housekeeping may write it together."""
    runner = make()
    for key, value in VALUES.items():
        runner.save_result(key, value)
    shelf = runner.records.store.own.results

    def write() -> None:
        for _ in range(10):
            shelf.write_index()

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    runner.close()
    reader = Reader.open(journal_of(tmp_path))
    assert reader is not None
    index = Index()
    assert index.load(index_of(tmp_path), reader)
    assert all(index.find("", key) is not None for key in KEYS)


# --- it answers as a dict does --------------------------------------------------------------------------------------

keys = st.one_of(
    st.integers(-3, 3),
    st.booleans(),
    st.none(),
    st.sampled_from([0.0, -0.0, 1.0, 1.5, 2**70, float("inf")]),
    st.sampled_from(["", "1", "a", "\u2028", "\ud800", "x" * 300]),
    st.tuples(st.integers(0, 2), st.sampled_from(["1", 1.0, None])),
)
records = st.tuples(
    st.sampled_from(["", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"]),
    keys,
    st.sampled_from(["result", "forgotten"]),
    st.integers(0, 2**63 - 1).map(lambda short: short << 64) | st.integers(0, 2**127 - 1),
)


def line_of(version: str, key: Any, kind: str, digest: int, padding: int) -> bytes:
    """The line of a record."""
    head = b'{"key":%b' % key_json(key)
    head += b',"forgotten":true' if kind == "forgotten" else b',"result":"%b"' % (b"x" * padding)
    head += b',"timestamp":"2026-01-01T00:00:00Z"'
    if version:
        head += b',"version":"%b"' % version.encode()
    text = b"%032x" % digest if digest & LOW else b"%016x" % (digest >> 64)  # as earlier versions wrote it
    return seal(head + (b',"input":"%b"' % text if digest else b""))


@pytest.mark.slow
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(records, max_size=30),
    paddings=st.lists(st.sampled_from([0, 100, 1900, 5000]), min_size=1),
    filed=st.integers(0, 30),
)
def test_an_index_answers_as_a_dict_does(
    tmp_path: Path, rows: list[tuple[str, Any, str, int]], paddings: list[int], filed: int
) -> None:
    """Learned one by one, scanned from a journal, or loaded from a file and read on from there: the same answers."""
    path, file = tmp_path / "journal", tmp_path / "index"
    lines = [line_of(*row, paddings[place % len(paddings)]) for place, row in enumerate(rows)]
    model: dict[tuple[str, Any], tuple[int, int]] = {}
    learned, offset = Index(), 0
    for (version, key, kind, digest), line in zip(rows, lines, strict=True):
        if kind == "forgotten":
            model.pop((version, key), None)
            learned.forget(version, key)
        else:
            model[version, key] = (offset, digest)
            learned.add(version, key, offset, digest)
        offset += len(line)
    path.write_bytes(b"".join(lines[:filed]))
    reader = Reader.open(path)
    assert reader is not None
    partly = Index()
    partly.scan(reader)
    file_away(partly, file, reader)
    with path.open("ab") as journal:
        journal.write(b"".join(lines[filed:]))
    scanned, loaded = Index(), Index()
    scanned.scan(reader)
    loaded.load(file, reader)
    for index, name in ((loaded, "loaded"), (partly, "onward")):
        index.scan(reader)
        file_away(index, tmp_path / name, reader)
    again, onward = Index(), Index()
    assert again.load(tmp_path / "loaded", reader) == bool(rows)
    assert onward.load(tmp_path / "onward", reader) == bool(rows)
    for index in (learned, scanned, loaded, partly, again, onward):
        for version, key, _, _ in rows:
            assert index.find(version, key) == model.get((version, key))
        assert index.find("", "absent") is None
        for version in ("", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb", "absent"):
            places = sorted(place for (held, _), (place, _) in model.items() if held == version)
            assert index.offsets(version) == places
            assert index.count(version) == len(places)
            held = [key for (of, key) in model if of == version]
            for asked in (held, held[:2], [*held, *held], ["absent", *reversed(held), 1, True], [*held, "absent"]):
                found = zip(*index.find_all(version, asked), strict=True)
                assert list(found) == [model.get((version, key), (-1, 0)) for key in asked]
    assert {index.latest for index in (scanned, loaded, partly, again, onward)} == {learned.latest}


@pytest.mark.slow
def test_keys_that_were_read_are_searched_for_a_few_times_and_then_hashed(tmp_path: Path) -> None:
    """Opening and a look-up hash nothing; what is found is the same before and after, the last of equal keys."""
    path, some = tmp_path / "journal", [*range(5), "a", 'a","b', "b", "\u2028", "1", 1.5, None, True, 2**63]
    rows = [
        ("", key, "result", 7 * (number % 3)) for number, key in enumerate([*some, *some[::2], *range(9000), *some])
    ]
    lines = [line_of(*row, 30) for row in rows]
    path.write_bytes(b"".join(lines))
    reader = Reader.open(path)
    assert reader is not None
    model, offset = {}, 0
    for (_, key, _, digest), line in zip(rows, lines, strict=True):
        model[key] = (offset, digest)
        offset += len(line)
    for asked in ("a", 'a","b', "1", 1, 1.0, None, 1.5, 2**63, "absent", 'b"', "8999", 8999, -1, "\ud800", "b"):
        searched = Index()
        searched.scan(reader)
        assert len(searched._packed) > 5
        assert searched.recent == len(rows)
        assert searched.versions == {""}
        for _ in range(12):
            assert searched.find("", asked) == model.get(asked)
            assert searched.find("other", asked) is None
        assert not searched._packed
        assert searched.recent == len(rows)
        assert searched.count("") == len(model)
    packed = Index()
    packed.scan(reader)
    assert packed.find("", "b") == model["b"]
    assert packed._packed  # one look-up is no reason to hash all
    assert not packed._hashed


@pytest.mark.parametrize(
    "broken",
    [
        b'{"key":"x","result":[\n{"key":"y","result":1}],"timestamp":"","crc":"%08x"}\n',
        b'{"key":"x"}\n,"result":1,"timestamp":"","crc":"%08x"}\n',
        b'{"key":"x","result":{"y":1}\n,"timestamp":"","crc":"%08x"}\n',
        b'{"key":"x","result":1,"crc":"12345678"} {"key":"y","result":1,"crc":"%08x"}\n',
        b'{"key":"x","result":1,"crc":"12345678"}{"key":"y",\n"result":1,"crc":"%08x"}\n',
        b'{"key":"x","result":1}\n{"key":"y","crc":"%08x","result":1}\n',
        b'["key"]\n{"key":"x","crc":"%08x"}\r\n',
        b'\n{"key":"x","result":1,"crc":"%08x"} {"key":"y","result":1,"crc":"12345678"}\n',
        b'{"key":"x","result":1,"input":"12345678 1234567","crc":"%08x"}\n',
        b'{"key":"x","result":1,"input":"12345678","crc":"%08x"}\n',
    ],
)
def test_lines_that_are_not_a_record_each_are_read_one_by_one(tmp_path: Path, broken: bytes) -> None:
    """Whatever stands between sound lines, these are found, and where each begins."""
    sound = [line_of("", key, "result", 0, 30) for key in ("a", "b", "c")]
    path = tmp_path / "journal"
    path.write_bytes(sound[0] + broken % 0 + sound[1] + sound[2])
    reader = Reader.open(path)
    assert reader is not None
    index = Index()
    index.scan(reader)
    assert not index._packed
    first = len(sound[0] + broken % 0)
    found = [index.find("", key) for key in ("a", "b", "c")]
    assert found == [(0, 0), (first, 0), (first + len(sound[1]), 0)]


def file_away(index: Index, file: Path, reader: Reader) -> None:
    """Write the file of an index as a shelf does."""
    snapshot = index.snapshot()
    segment = snapshot.write(file, reader)
    if segment is not None:
        index.wrote(snapshot, segment)


def test_the_index_of_a_long_run_is_not_written_again_and_again(make: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written once it lacks half of what it holds: the work that goes into it is in proportion to the run's."""
    runner = make()
    shelf = runner.records.store.own.results
    written: list[int] = []
    write = shelf.write_index

    def counted() -> None:
        written.append(shelf.index.end)
        write()

    monkeypatch.setattr(shelf, "write_index", counted)
    for key in range(500):
        runner.save_result(key, key)
        shelf.write_index_if_worth(growth=0.5, rows=20, size=1 << 30)
    assert 5 <= len(written) <= 10, written
    assert shelf.index.filed[0] == pytest.approx(500, rel=0.34)
    size = shelf.index.end
    runner.close()
    runner = make()
    shelf = runner.records.store.own.results
    assert shelf.index.filed[1] == written[-1] <= size
    assert [runner.get_result(key) for key in range(500)] == list(range(500))


def test_who_ends_a_pass_does_not_wait_for_another_that_writes_the_index(make: Opener, tmp_path: Path) -> None:
    """It holds the store's lock, which the other one needs before it is through."""
    runner = make()
    runner.save_result(1, 1)
    shelf = runner.records.store.own.results
    with shelf._filing:
        shelf.write_index()
        assert not (tmp_path / ".j_results.index").exists()
    shelf.write_index()
    assert (tmp_path / ".j_results.index").exists()


def test_a_hand_written_line_behind_a_forgotten_key_counts(make: Opener, tmp_path: Path) -> None:
    """Order in the file decides: who clears a key and then writes its line by hand has a result."""
    runner = make()
    runner.save_result(1, "old")
    runner.clear([1])
    runner.close()
    with open(journal_of(tmp_path), "a") as file:
        file.write('{"key": "1", "result": "by hand"}\n')
    runner = make()
    assert runner.get_result(1) == "by hand"
    runner.records.store.own.results.write_index()
    runner.close()
    assert make().get_result(1) == "by hand"


def test_a_file_that_was_damaged_is_not_built_upon(make: Opener, tmp_path: Path) -> None:
    """The next one is made from what is known, and is sound."""
    runner = make()
    shelf = runner.records.store.own.results
    for key in range(50):
        runner.save_result(key, key)
    shelf.write_index()
    with index_of(tmp_path).open("r+b") as file:  # the very file that is open
        file.seek(-200, os.SEEK_END)
        file.write(b"\0" * 100)
    for key in range(50, 100):
        runner.save_result(key, key)
    shelf.write_index()
    shelf.write_index()
    assert file_state(index_of(tmp_path), shelf.reader) == "sound"
    runner.close()
    with CheckpointedRunner("j", tmp_path) as runner:
        assert -1 not in runner.records.store.own.results.find_all("", list(range(100)))[0]
        assert runner.records.store.own.results.index.filed[0] == 100


def test_runs_that_shrink_or_are_short_become_one(make: Opener, tmp_path: Path) -> None:
    """However often the file is written, reading it takes as long as it has keys."""
    runner = make()
    shelf = runner.records.store.own.results
    for value in range(30):
        for key in range(10):
            runner.save_result(key, value)
        shelf.write_index()
    assert shelf.reader is not None
    segment = IndexFile.open(index_of(tmp_path), shelf.reader)
    assert segment is not None
    assert (segment.header.entries, segment.header.runs) == (10, 1)


def test_a_version_of_any_text_has_an_index(tmp_path: Path) -> None:
    """Only a line by hand can have one that is no digest."""
    version = "v" * 100
    journal_of(tmp_path).write_bytes(b"".join(line_of(version, key, "result", 7, 10) for key in range(20)))
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.records.store.own.results.write_index()
    assert index_of(tmp_path).exists()
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.records.store.own.results.index.reads_file
        assert -1 not in runner.records.store.own.results.find_all(version, list(range(20)))[0]
        assert runner.records.store.own.results.find(version, 3) is not None


def test_any_number_of_versions_has_an_index(tmp_path: Path) -> None:
    """A sweep over settings has hundreds in one checkpoint: what names them takes as many pages as it needs."""
    journal_of(tmp_path).write_bytes(
        b"".join(line_of(f"{number:016x}", key, "result", number, 10) for number in range(400) for key in range(3))
    )
    with CheckpointedRunner("j", tmp_path) as runner:
        shelf = runner.records.store.own.results
        shelf.write_index()
        assert file_state(index_of(tmp_path), shelf.reader) == "sound"
    data = bytearray(index_of(tmp_path).read_bytes())
    assert data.index(b"\n") > 4 * 4096
    with CheckpointedRunner("j", tmp_path) as runner:
        shelf = runner.records.store.own.results
        assert shelf.index.reads_file
        for number in (0, 1, 199, 399):
            version = f"{number:016x}"
            assert shelf.index.count(version) == 3
            offsets, digests = shelf.find_all(version, [0, 1, 2])
            assert [shelf.find(version, key) for key in range(3)] == list(zip(offsets, digests, strict=True))
            assert list(digests) == [number] * 3
    data[3 * 4096 + 5] ^= 1
    index_of(tmp_path).write_bytes(data)
    with CheckpointedRunner("j", tmp_path) as runner:
        shelf = runner.records.store.own.results
        assert not shelf.index.reads_file
        assert file_state(index_of(tmp_path), shelf.reader) == "damaged"


def test_a_run_that_is_hidden_by_a_flipped_bit_is_missed(tmp_path: Path) -> None:
    """The number of its version is read before its checksum is: what is left out is noticed all the same."""
    with CheckpointedRunner("j", tmp_path, version="other") as runner:
        runner.save_result("x", 1)
    fill(tmp_path, version="this")
    data = index_of(tmp_path).read_bytes()
    keys = data.index(b"[0,1,2,")
    changed = bytearray(data)
    changed[keys - 6] ^= 1
    index_of(tmp_path).write_bytes(changed)
    with CheckpointedRunner("j", tmp_path, version="this") as runner:
        shelf = runner.records.store.own.results
        assert shelf.index.reads_file
        assert -1 not in shelf.find_all(runner.records.version, KEYS)[0]
        assert not shelf.index.reads_file, "it was read anew"


@pytest.mark.parametrize("written_by_hand", [False, True])
def test_finding_many_at_once_is_finding_each(tmp_path: Path, written_by_hand: bool) -> None:
    """What is in the file of the index, what came since, what was forgotten, replaced, or is not there at all; and
    lines without checksum, which stand for any key of equal str().
    """
    fill(tmp_path)
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.clear([0, "a", ("t", 1)])
        for key in (1, "b", 100, "new"):
            runner.save_result(key, "later")
        runner.clear([100])
    if written_by_hand:
        with journal_of(tmp_path).open("ab") as journal:
            journal.write(b'{"key": "2", "result": 1}\n{"key": "0", "result": 1}\n{"key": "77", "result": 1}\n')
    with CheckpointedRunner("j", tmp_path) as runner:
        shelf = runner.records.store.own.results
        asked: list[Any] = [*KEYS, 100, "new", "0", "2", 77, "77", 2.0, True, "absent", 1, "a"]
        offsets, digests = shelf.find_all("", asked)
        found = [shelf.find("", key) for key in asked]
        assert list(zip(offsets, digests, strict=True)) == [(-1, 0) if place is None else place for place in found]
        assert shelf.index.filed[0] == len(KEYS), "the file of the index was used"
        assert shelf.find_all("other", [1, "a"])[0].tolist() == [-1, -1]


def test_a_damaged_page_is_noticed_when_many_are_found_at_once(tmp_path: Path) -> None:
    """The index is rebuilt from the journal, and the answer is right."""
    fill(tmp_path)
    data = bytearray(index_of(tmp_path).read_bytes())
    data[-20] ^= 0xFF
    index_of(tmp_path).write_bytes(data)
    with CheckpointedRunner("j", tmp_path) as runner:
        offsets, _ = runner.records.store.own.results.find_all("", [*KEYS, "absent"])
        assert [offset >= 0 for offset in offsets] == [True] * len(KEYS) + [False]
        assert not index_of(tmp_path).exists()


@pytest.mark.promise("meta or index missing, empty, garbage, stale", "power loss, kernel crash")
def test_pages_of_the_index_before_are_not_believed(make: Opener, tmp_path: Path) -> None:
    """A power cut may leave them behind the beginning of the new one: each is whole, and lacks what came since."""
    path = tmp_path / ".j_results.index"
    held = []
    for keys in (range(3), range(3, 5)):
        runner = make()
        for key in keys:
            runner.save_result(key, key)
        runner.records.store.own.results.write_index()
        held.append(path.read_bytes())
        runner.close()
    old, new = held
    assert len(old) < len(new)
    path.write_bytes((new[:4096] + old[4096:]).ljust(len(new), b"\0"))
    runner = make()
    assert [runner.is_completed(key) for key in range(6)] == [True] * 5 + [False]
