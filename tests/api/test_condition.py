"""The law of what stands in a journal's place: never "0 done", never paid for again without a word, and a way out.

A file of another kind, one that was written anew by another program, one that is gone or cut while meta knows better:
each is an error before anything is paid. What a crash may leave, and small damage, is none.
"""

from __future__ import annotations

import bz2
import gzip
import json
import logging
import lzma
import re
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint import CheckpointedRunner, DamagedRecord, JournalLost, StoreError, checkpointed
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact
from checkpoint.maintenance.repair import repair
from checkpoint.reporting.status import list_checkpoints, survey
from checkpoint.storage.condition import fault_of
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import parse, seal

N = 40


def job(directory: Path, calls: list[Any]) -> Any:
    """A job whose calls are counted."""

    @checkpointed("j", checkpoint_dir=directory, version=1)
    def work(n: int) -> dict[str, Any]:
        calls.append(n)
        return {"text": f"é {n}", "more": [n, 1.5, None]}

    return work


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The journal of a job that is done."""
    job(tmp_path, []).map(range(N), progress=False)
    return tmp_path / "j_results.jsonl"


def _as_sqlite(data: bytes) -> bytes:
    with closing(sqlite3.connect(":memory:")) as base:
        base.execute("create table results (key, result)")
        return base.serialize()


def _as_zip(data: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("j_results.jsonl", data)
    return file.getvalue()


def each_line(change: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """Each line is read as JSON, and written as this makes of it."""
    return lambda data: b"".join(
        (text if isinstance(text, str) else json.dumps(text)).encode() + b"\n"
        for text in (change(json.loads(line)) for line in data.split(b"\n")[:-1])
    )


KINDS = [
    (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 9\n", "Git LFS", "git lfs pull"),
    (lambda data: b"/annex/objects/MD5E-s9--0a.jsonl\n", "git-annex", "git annex get"),
    (lambda data: data.decode().encode("utf-16"), "UTF-16", "UTF-8 again"),
    (lambda data: data.decode().encode("utf-16-le"), "UTF-16", "UTF-8 again"),
    (lambda data: data.decode().encode("utf-16-be"), "UTF-16", "UTF-8 again"),
    (lambda data: data.decode().encode("utf-32"), "UTF-32", "UTF-8 again"),
    (gzip.compress, "gzip", "gunzip"),
    (bz2.compress, "bzip2", "bunzip2"),
    (lzma.compress, "xz", "unxz"),
    (lambda data: b"\x28\xb5\x2f\xfd" + data[:99], "zstd", "unzstd"),
    (_as_zip, "ZIP", "unzip"),
    (_as_sqlite, "SQLite", "as it was"),
    (lambda data: b"PAR1" + bytes(200) + b"PAR1", "Parquet", "as it was"),
    (lambda data: b"\n<!DOCTYPE html>\n<html>Sign in</html>\n", "HTML", "as it was"),
    (lambda data: b"key,result\n" + b"".join(b"%d,x\n" % n for n in range(2000)), "no journal", "as it was"),
    (lambda data: b"one line of text", "no journal", "as it was"),
    (lambda data: b"\x00\x01binary\xff" * 900, "gone or empty|no journal|bytes", "file"),
    (lambda data: b"[" + data.strip().replace(b"\n", b",\n") + b"]", "JSON array", "jq"),
    (each_line(lambda record: json.dumps(record, indent=2)), "over several lines", "jq -c"),
    (lambda data: data.replace(b"\n", b"\r"), "carriage returns", "in newlines again"),
    (lambda data: data[:200].ljust(len(data), b"\0"), "0 bytes of whole lines", "check j"),
    (lambda data: data[: len(data) // 2].ljust(len(data), b"\0"), "bytes of whole lines", "check j"),
    (lambda data: b"", "gone or empty", "put the file back"),
    (None, "gone or empty", "put the file back"),
    (lambda data: data[: len(data) // 2], "cut", "check j"),
    (lambda data: b"\n".join(data.split(b"\n")[: N // 4]) + b"\n", "cut", "check j"),
    (lambda data: data[: len(data) * 4 // 5], "cut", "check j"),
    (lambda data: data.replace(b"\xc3\xa9", b"\xe9"), "not UTF-8", "latin-1"),
    (lambda data: data.replace(b"\xc3\xa9", b"\xc3\x83\xc2\xa9"), "checksums", "--repair"),
    (each_line(lambda record: json.dumps(record, sort_keys=True)), "checksums", "--repair"),
    (each_line(lambda record: record | {"reviewed": True}), "checksums", "--repair"),
]


@pytest.mark.promise("a journal that is none")
@pytest.mark.parametrize(("change", "told", "fix"), KINDS)
def test_a_journal_that_is_none(
    tmp_path: Path, journal: Path, change: Callable[[bytes], bytes] | None, told: str, fix: str
) -> None:
    """Every door says what is wrong, where, and what to do; nothing is run; the file put back is all as it was."""
    whole = journal.read_bytes()
    journal.unlink() if change is None else journal.write_bytes(change(whole))
    there = journal.read_bytes() if journal.exists() else None
    calls: list[int] = []
    function = job(tmp_path, calls)
    runner = CheckpointedRunner("j", tmp_path)
    doors: list[Callable[[], Any]] = [
        lambda: function.map(range(N), progress=False),
        lambda: list(function.stream(range(N))),
        lambda: function.plan(range(N)),
        lambda: dict(function.results),
        lambda: dict(function.errors),
        lambda: list(runner.iterate(range(N))),
        lambda: runner.save_result(1, 1),
        lambda: runner.get_all_results(),
        lambda: runner.is_completed(1),
        lambda: runner.clear([1]),
        lambda: survey("j", tmp_path),
        lambda: compact("j", tmp_path),
    ]
    for door in doors:
        with pytest.raises(JournalLost, match=told) as caught:
            door()
        for part in (str(journal), fix, "checkpoint clear j --dir"):
            assert part.lower() in str(caught.value).lower()
    (held,) = list_checkpoints(tmp_path)
    assert str(journal) in held.why
    found = check("j", tmp_path)
    assert not found.is_sound
    assert str(journal) in str(found)
    assert (calls, journal.read_bytes() if journal.exists() else None) == ([], there)
    journal.write_bytes(whole)
    assert function.map(range(N), progress=False)[1]["text"] == "é 1"
    assert (calls, check("j", tmp_path).is_sound) == ([], True)


@pytest.mark.slow
@pytest.mark.parametrize("change", [change for change, _, _ in KINDS])
def test_clear_is_a_way_out_of_each(tmp_path: Path, journal: Path, change: Callable[[bytes], bytes] | None) -> None:
    """By function and by command; what is computed then is there the next time."""
    calls: list[int] = []
    for by_command in (False, True):
        journal.unlink() if change is None else journal.write_bytes(change(journal.read_bytes()))
        function = job(tmp_path, calls)
        if by_command:
            command = [sys.executable, "-m", "checkpoint", "clear", "j", "--yes", "--dir", str(tmp_path)]
            assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode == 0
        else:
            function.clear()
        function.map(range(N), progress=False)
        function.map(range(N), progress=False)
        assert sorted(calls) == list(range(N))
        calls.clear()


def test_a_directory_in_a_journals_place_is_told(tmp_path: Path, journal: Path) -> None:
    """With what to do about it."""
    journal.unlink()
    journal.mkdir()
    calls: list[int] = []
    with pytest.raises(StoreError, match="directory is in the file's place: move it away"):
        job(tmp_path, calls).map(range(N), progress=False)
    assert calls == []


# --- written anew by another program --------------------------------------------------------------------------------


REFORMATTED = [
    (each_line(lambda record: json.dumps(record)), "json.dumps: spaces, and text in ASCII"),
    (each_line(lambda record: json.dumps(record, ensure_ascii=False)), "spaces"),
    (each_line(lambda record: json.dumps(record, separators=(",", ":"))), "text in ASCII"),
    (lambda data: data.replace(b"\n", b" \n"), "blanks at the ends of lines"),
    (lambda data: data.replace(b"\n", b"\r\n"), "line ends of Windows"),
    (lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"), "and a byte order mark"),
    (lambda data: re.sub(rb'("(?:[^"\\]|\\.)*")|[][{}:,]', rb" \g<0>\t", data), "blanks around all there is"),
    (lambda data: data.replace(b"/", b"\\/"), "slashes that are escaped"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "reason"), REFORMATTED)
def test_a_line_that_was_only_spaced_out_is_read_as_it_was_written(
    tmp_path: Path, journal: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """Its checksum fits what it was: nothing is lost, nothing run, and what is appended joins it."""
    before = job(tmp_path, []).map(range(N), progress=False)[:]
    journal.write_bytes(change(journal.read_bytes()))
    calls: list[int] = []
    function = job(tmp_path, calls)
    assert function.map(range(N + 1), progress=False)[:N] == before
    assert calls == [N]
    assert check("j", tmp_path).is_sound
    compact("j", tmp_path)
    assert function.map(range(N + 1), progress=False)[:N] == before


@pytest.mark.slow
@pytest.mark.parametrize(("change", "reason"), REFORMATTED)
def test_a_compaction_of_lines_that_were_spaced_out_damages_none(
    tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """Also where one of them takes over what a line that is left out says of the code."""
    function = checkpointed("j", checkpoint_dir=tmp_path)(lambda n: {"text": f"é/ {n}"})
    function.map(range(9), progress=False)
    function.clear([0, 1])
    before = dict(function.results)
    function.runner.close()
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(change(path.read_bytes()))
    assert compact("j", tmp_path).lines >= 2
    assert check("j", tmp_path).is_sound
    assert dict(function.results) == before
    assert function.plan(range(9)).done == 7


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e6, 1e6).map(lambda x: round(x, 3))
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(value=JSON, ascii_only=st.booleans(), separators=st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")]))
def test_any_record_is_known_again_however_it_is_spaced(value: Any, ascii_only: bool, separators: Any) -> None:
    """And the value on it is the one that was written; a changed one is damage all the same."""
    from checkpoint.values.codec import Codec

    head = b'{"key":"k","result":%b,"timestamp":"2026-01-01T00:00:00Z"' % Codec().encode(value)
    line = json.dumps(json.loads(seal(head)), ensure_ascii=ascii_only, separators=separators).encode()
    assert Codec().decode(bytes(parse(line).result)) == value
    with pytest.raises(ValueError, match="checksum"):
        parse(line.replace(b"2026", b"2027"))


def test_repair_takes_the_lines_of_a_program_that_wrote_them_anew(tmp_path: Path, journal: Path) -> None:
    """One command: values as they stand count, unverified; the lines as they were found are kept aside."""
    altered = each_line(lambda record: json.dumps(record | {"reviewed": True}, sort_keys=True))(journal.read_bytes())
    journal.write_bytes(altered)
    done = repair("j", tmp_path)
    assert (len(done.moved), done.taken, done.forgotten) == (N, N, 0)
    assert "without checksum: not verified" in str(done)
    calls: list[int] = []
    assert job(tmp_path, calls).map(range(N), progress=False)[3] == {"text": "é 3", "more": [3, 1.5, None]}
    assert (calls, check("j", tmp_path).results.without_checksum) == ([], N)
    assert (tmp_path / ".j_results.aside").stat().st_size > len(altered)


def test_repair_goes_on_with_what_is_left_of_a_journal(tmp_path: Path, journal: Path) -> None:
    """Lines that were deleted by hand on purpose: one command says so, and only they are computed."""
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(lines[: N // 2]) + b"\n")
    calls: list[int] = []
    with pytest.raises(JournalLost, match="--repair"):
        job(tmp_path, calls).map(range(N), progress=False)
    repair("j", tmp_path)
    job(tmp_path, calls).map(range(N), progress=False)
    assert calls == list(range(N // 2, N))


@pytest.mark.parametrize("change", [None, gzip.compress, lambda data: b"<html>\n"])
def test_repair_touches_no_other_kind_of_file(
    tmp_path: Path, journal: Path, change: Callable[[bytes], bytes] | None
) -> None:
    """It says what `map` says, and the bytes stay."""
    journal.unlink() if change is None else journal.write_bytes(change(journal.read_bytes()))
    there = sorted((path.name, path.read_bytes()) for path in tmp_path.glob("*.jsonl"))
    with pytest.raises(JournalLost):
        repair("j", tmp_path)
    assert sorted((path.name, path.read_bytes()) for path in tmp_path.glob("*.jsonl")) == there


# --- what is no loss ------------------------------------------------------------------------------------------------


SMALL = [
    (lambda data: data[:-30], 1, "a torn tail"),
    (lambda data: data[:-30] + bytes(30), 1, "a tail of NULs"),
    (lambda data: data[: data.rindex(b"\n", 0, -1) + 1], 1, "the last line is gone"),
    (lambda data: data.replace(b"\xc3\xa9 7", b"e 7"), 1, "a damaged line"),
    (lambda data: b"<<<<<<< HEAD\n" + data + b"=======\n>>>>>>> theirs\n", 0, "marks of a merge"),
    (lambda data: b"\x1f\x8b\n" + data, 0, "a line that begins as gzip does"),
    (each_line(lambda record: {name: part for name, part in record.items() if name != "crc"}), 0, "checksums deleted"),
    (lambda data: b"".join(data.splitlines(keepends=True)[::-1]), 0, "sorted otherwise"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "again", "reason"), SMALL)
def test_small_damage_stays_what_it_is(
    tmp_path: Path, journal: Path, change: Callable[[bytes], bytes], again: int, reason: str
) -> None:
    """Told, set aside, and only those items are computed again."""
    journal.write_bytes(change(journal.read_bytes()))
    calls: list[int] = []
    for _ in range(3):
        with suppress(DamagedRecord):
            job(tmp_path, calls).map(range(N), progress=False)[:]
    assert len(calls) == again


def test_some_lines_that_are_gone_are_told(tmp_path: Path, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Too few for an error; they are computed again, and not without a word."""
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(lines[:5] + lines[7:]))
    calls: list[int] = []
    with caplog.at_level(logging.WARNING, "checkpoint"):
        job(tmp_path, calls).map(range(N), progress=False)
    assert calls == [5, 6]
    assert "lines were deleted" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, "checkpoint"):
        job(tmp_path, calls).map(range(N), progress=False)
    assert caplog.text == ""


@pytest.mark.parametrize("end", [b"", b"\r\n"])
def test_another_end_of_the_last_line_is_no_loss(
    tmp_path: Path, journal: Path, end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Some editors take the last newline away; nothing was deleted, and nothing is said of it."""
    journal.write_bytes(journal.read_bytes()[:-1] + end)
    calls: list[int] = []
    with caplog.at_level(logging.WARNING, "checkpoint"):
        job(tmp_path, calls).map(range(N), progress=False)
    assert (calls, caplog.text) == ([], "")


def test_what_a_message_says_to_type_brings_the_journal_back(tmp_path: Path, journal: Path) -> None:
    """With the file's path for FILE, and as it stands."""
    whole = journal.read_bytes()
    for change in (gzip.compress, lambda data: data.replace(b"\n", b"\r"), lambda data: data.decode().encode("utf-16")):
        journal.write_bytes(change(whole))
        with pytest.raises(JournalLost) as caught:
            job(tmp_path, []).map(range(N), progress=False)
        found = re.search(r"\(((?:gunzip|python) .*?FILE)\);", str(caught.value))
        assert found is not None, str(caught.value)
        typed = found[1].replace("UNPACKED", str(tmp_path / "unpacked")).replace("FILE", str(journal))
        subprocess.run(re.sub("^python", sys.executable, typed), shell=True, check=True)
        assert journal.read_bytes() == whole


def test_errors_that_are_gone_are_told_and_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Deleting them is how some forget failures; no result is lost by it."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result(1, 1)
        runner.save_error(2, "failed")
    (tmp_path / "j_errors.jsonl").unlink()
    with caplog.at_level(logging.WARNING, "checkpoint"), CheckpointedRunner("j", tmp_path) as runner:
        assert list(runner.iterate([1, 2])) == [2]
    assert "j_errors.jsonl has 0 bytes" in caplog.text
    assert check("j", tmp_path).is_sound


@pytest.mark.parametrize(
    "data", [bytes(9000), b'{"key":"a","resu', bytes(500) + b'lt":1}\n', b"\n \n", b"\xef\xbb\xbf"]
)
def test_what_a_crash_leaves_of_a_first_second_is_a_journal(tmp_path: Path, data: bytes) -> None:
    """Where meta knows of nothing."""
    (tmp_path / "j_results.jsonl").write_bytes(data)
    calls: list[int] = []
    job(tmp_path, calls).map(range(3), progress=False)
    job(tmp_path, calls).map(range(3), progress=False)
    assert calls == [0, 1, 2]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(1, 40))
def test_most_lines_decide(tmp_path_factory: pytest.TempPathFactory, junk: bytes, count: int) -> None:
    """Whatever is written between them, a file most of whose lines are records is a journal."""
    line = seal(b'{"key":"k","result":1,"timestamp":"2026-01-01T00:00:00Z"')
    path = tmp_path_factory.mktemp("any") / "j_results.jsonl"
    path.write_bytes(line * (junk.count(b"\n") + 1) + junk + b"\n" + line * count)
    reader = Reader.open(path)
    assert reader is not None
    assert fault_of(reader) is None


def test_a_long_journal_is_judged_by_lines_all_over_it(tmp_path: Path) -> None:
    """Its first lines may be sound, or damaged, and the others are what it is."""
    line = seal(b'{"key":"k","result":"%b","timestamp":"2026-01-01T00:00:00Z"' % (b"x" * 300))
    other = line.replace(b"xxx", b"yyy")
    for head, rest, is_one in ((line, other, False), (other, line, True)):
        path = tmp_path / "j_results.jsonl"
        path.write_bytes(head * 300 + rest * 3000)
        reader = Reader.open(path)
        assert reader is not None
        assert (fault_of(reader) is None) == is_one


# --- what meta knows ------------------------------------------------------------------------------------------------


def test_meta_of_an_earlier_release_knows_that_there_were_results(tmp_path: Path, journal: Path) -> None:
    """It counts them, and says nothing of bytes: a journal that is gone is missed, one that is shorter is not."""
    path = tmp_path / "j_meta.json"
    meta = json.loads(path.read_bytes())
    del meta["synced_bytes"]
    path.write_text(json.dumps(meta))
    whole = journal.read_bytes()
    journal.write_bytes(whole[: len(whole) // 4])
    assert job(tmp_path, []).plan(range(N)).new > N // 2
    path.write_text(json.dumps(meta))
    journal.unlink()
    with pytest.raises(JournalLost, match="40 results"):
        job(tmp_path, []).plan(range(N))


def test_a_deleted_meta_knows_nothing(tmp_path: Path, journal: Path) -> None:
    """The journals are the truth: what is there counts."""
    (tmp_path / "j_meta.json").unlink()
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join(lines[:10]) + b"\n")
    calls: list[int] = []
    job(tmp_path, calls).map(range(N), progress=False)
    assert len(calls) == N - 10


def test_forgetting_and_compacting_lower_what_meta_knows(tmp_path: Path, journal: Path) -> None:
    """By key, and the files shrink: no alarm, and what is left is guarded again."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.clear(range(30))
    compact("j", tmp_path)
    size = journal.stat().st_size
    assert json.loads((tmp_path / "j_meta.json").read_bytes())["synced_bytes"]["results"] == size
    calls: list[int] = []
    assert job(tmp_path, calls).plan(range(N)).done == 10
    journal.write_bytes(journal.read_bytes()[: size // 3])
    with pytest.raises(JournalLost):
        job(tmp_path, calls).plan(range(N))


@pytest.mark.slow
def test_a_journal_that_goes_under_a_reader_is_told_by_it(tmp_path: Path, journal: Path) -> None:
    """Of a process that goes on; another that clears is none: what it does is seen, and so is what it saves then."""
    function = job(tmp_path, [])
    assert len(function.results) == N
    aside = journal.rename(tmp_path / "aside")
    with pytest.raises(JournalLost):
        len(function.results)
    aside.rename(journal)
    assert len(function.results) == N
    code = f"""
from checkpoint import CheckpointedRunner
with CheckpointedRunner("j", {str(tmp_path)!r}, version=1) as runner:
    runner.clear()
    if {{again}}:
        runner.save_result(1, 1)
"""
    for again in (False, True):
        subprocess.run([sys.executable, "-c", code.replace("{again}", str(again))], check=True, timeout=60)
        assert len(function.results) == again


@pytest.mark.parametrize("number", [0, 2])
def test_the_journal_of_a_shard_is_missed_by_the_whole_and_by_the_shard(tmp_path: Path, number: int) -> None:
    """Its own meta knows; its sibling has nothing to do with it; clearing is the way out."""
    calls: list[int] = []
    function = job(tmp_path, calls)
    for shard in range(3):
        function.map(range(N), progress=False, shard=(shard, 3))
    for runner in function._self_runners.values():
        runner.close()  # else its thread syncs what was saved within a second
    calls.clear()
    journal = tmp_path / f"j@{number}-of-3_results.jsonl"
    journal.unlink()
    again = job(tmp_path, calls)
    for door in (again.map, again.plan):
        with pytest.raises(JournalLost, match=f"{number}-of-3"):
            door(range(N))
    with pytest.raises(JournalLost, match=f"{number}-of-3"):
        again.map(range(N), progress=False, shard=(number, 3))
    sibling = 1
    again.map(range(N), progress=False, shard=(sibling, 3))
    assert not check("j", tmp_path).is_sound
    assert calls == []
    again.clear()
    again.map(range(N), progress=False)
    assert len(calls) == N
