"""The laws of a journal: what was written is read, or is known to be damaged; what cannot be read is not destroyed."""

from __future__ import annotations

import base64
import errno
import json
import logging
import os
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner, CheckpointError, DamagedRecord, JournalLost, StoreError
from checkpoint.storage import files
from checkpoint.storage.journal import Journal
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import CRC_SIZE, parse, seal

# Every kind of key, the characters that other readers split lines at, and a record longer than the others.
VALUES: dict[Any, Any] = {
    "plain": {"text": "ordinary", "n": 1},
    ("tuple", 2, None): [1.5, True, None],
    "line\u2028separator\u0085next": "a\u2028b\u2029c\u0085d\x1c\n\r\n",
    7: "x" * 240,
    -2.5: {"nested": {"key": "plain", "crc": "00000000"}},
    "snow ☃": ("tuple", float("inf"), b"bytes"),
}
KEYS = list(VALUES)
Opener = Callable[..., CheckpointedRunner]


def written(directory: Path, **options: Any) -> bytes:
    """The journal of a checkpoint that holds VALUES; the directory is empty again."""
    with CheckpointedRunner("j", directory, **options) as runner:
        for key, value in VALUES.items():
            runner.save_result(key, value)
    data = (directory / "j_results.jsonl").read_bytes()
    empty(directory)
    return data


def empty(directory: Path) -> None:
    """Delete every file in it."""
    for file in directory.iterdir():
        file.unlink()


def lines_of(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of each line, its newline included."""
    ends = [place + 1 for place, byte in enumerate(data) if byte == 10]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def set_aside(path: Path) -> bytes:
    """All the bytes that repairs of a journal cut off, joined."""
    aside = path.with_name(f".{path.stem}.aside")
    if not aside.exists():
        return b""
    return b"".join(base64.b64decode(json.loads(line)["bytes"]) for line in aside.read_bytes().splitlines())


# --- torn tails -----------------------------------------------------------------------------------------------------


def resume_from(directory: Path, data: bytes, whole: list[Any], torn: bytes) -> None:
    """Open what a crash left, and check every promise about it.

    Args:
        directory: empty.
        data: the journal.
        whole: the keys whose records are whole in it.
        torn: what must be set aside.
    """
    path = directory / "j_results.jsonl"
    path.write_bytes(data)
    kept = data.removesuffix(torn) if torn else data
    kept += b"" if kept.endswith(b"\n") or not kept else b"\n"
    with CheckpointedRunner("j", directory) as runner:
        assert runner.get_all_results() == {key: VALUES[key] for key in whole}
        assert path.read_bytes() == data, "reading changes nothing"
        pending = []
        for key in runner.iterate(KEYS):
            pending.append(key)
            runner.save_result(key, VALUES[key])
            now = path.read_bytes()
            assert now.startswith(kept), "what was whole stays, byte for byte"
            assert set_aside(path) == torn, "what was torn is kept elsewhere, once"
            assert all(parse(line).crc for line in now[len(kept) :].splitlines(keepends=True)), "nothing is glued"
        assert pending == [key for key in KEYS if key not in whole]
    with CheckpointedRunner("j", directory) as again:
        assert again.get_all_results() == VALUES
        assert list(again.iterate(KEYS)) == []


@pytest.mark.slow
@pytest.mark.promise("torn tail")
def test_a_journal_cut_at_any_byte_resumes_with_every_whole_record(tmp_path: Path, free_sync: None) -> None:
    """Every truncation length: whole records stay, the torn one is set aside and its item runs again."""
    data = written(tmp_path)
    lines = lines_of(data)
    for size in range(len(data) + 1):
        whole = sum(size >= end - 1 for _, end in lines)  # a record that only lacks its newline is whole
        begun = max((end for _, end in lines if end <= size), default=0)
        torn = b"" if any(size == end - 1 for _, end in lines) else data[begun:size]
        resume_from(tmp_path, data[:size], KEYS[:whole], torn)
        empty(tmp_path)


@pytest.mark.promise("torn tail")
@pytest.mark.parametrize("zeros", [*range(1, 34), 511, 512, 4096, 5000])
@pytest.mark.parametrize(
    ("record", "part"),
    [
        pytest.param(3, 0, id="behind a whole line: the file had grown, its data had not been written"),
        pytest.param(3, 40, id="behind a part of a line: one page had been written, the next had not"),
        pytest.param(0, 0, id="nothing but NULs"),
    ],
)
def test_a_tail_of_nuls_is_set_aside(tmp_path: Path, free_sync: None, record: int, part: int, zeros: int) -> None:
    """What a power cut leaves on most file systems is a torn tail like any other."""
    data = written(tmp_path)
    start = lines_of(data)[record][0]
    torn = data[start : start + part] + bytes(zeros)
    resume_from(tmp_path, data[:start] + torn, KEYS[:record], torn)


@pytest.mark.promise("a crash during recovery")
def test_a_repair_cut_off_at_any_step_can_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash during recovery: the torn bytes are in the file, or set aside, or both; never neither."""
    data = written(tmp_path)
    path = tmp_path / "j_results.jsonl"
    torn = b'{"key":"torn","res'
    for step in ("write", "fdatasync", "fsync", "ftruncate"):
        path.write_bytes(data + torn)
        with monkeypatch.context() as patch:

            def crash(*_: Any) -> Any:
                raise KeyboardInterrupt

            patch.setattr(os, step, crash)
            journal = Journal(path)
            with pytest.raises(KeyboardInterrupt):
                journal.open_to_write()
            journal.close()
        assert path.read_bytes() == data + torn
        journal = Journal(path)
        journal.open_to_write()
        journal.close()
        assert path.read_bytes() == data
        assert set_aside(path).endswith(torn)
        empty(tmp_path)


# --- flipped bytes --------------------------------------------------------------------------------------------------


def touched(data: bytes, place: int) -> set[Any]:
    """The keys whose lines a byte belongs to; a newline holds two lines apart."""
    return {
        key
        for key, (start, end) in zip(KEYS, lines_of(data), strict=True)
        if start <= place < end or (place == start - 1)
    }


def ask(runner: CheckpointedRunner, key: Any) -> tuple[Any, DamagedRecord | None]:
    """(the key's value, None), or (None, the damage)."""
    try:
        return runner.get_result(key), None
    except DamagedRecord as error:
        return None, error


def check_flipped(directory: Path, data: bytes, place: int, mask: int, **options: Any) -> None:
    """Flip one byte and read everything: the right value, or an own error that names the line, or nothing at all."""
    path = directory / "j_results.jsonl"
    flipped = bytearray(data)
    flipped[place] ^= mask
    path.write_bytes(flipped)
    line = data.count(b"\n", 0, place) + 1
    lost = set()
    with CheckpointedRunner("j", directory, **options) as runner:
        for key, value in VALUES.items():
            found, damage = ask(runner, key)
            if damage is not None:
                assert (damage.path, damage.line, damage.key) == (str(path), line, key)
                assert f"{path}:{line}" in str(damage)
                assert not runner.is_completed(key)
            if found is None:
                lost.add(key)
            else:
                assert found == value
        assert lost <= touched(data, place), "every other record is intact"
        assert list(runner.iterate(KEYS)) == [key for key in KEYS if key in lost]
    with CheckpointedRunner("j", directory, **options) as again:
        assert [key for key in KEYS if not again.is_completed(key)] == [key for key in KEYS if key in lost]
        for key in again.iterate(KEYS):
            again.save_result(key, VALUES[key])
        assert {key: again.get_result(key) for key in KEYS} == VALUES


def every_flip(data: bytes, masks: tuple[int, ...]) -> list[tuple[int, int]]:
    """(place, mask): every byte by each mask, and every bit of one line and its neighbours' ends."""
    flips = [(place, mask) for place in range(len(data)) for mask in masks]
    start, end = lines_of(data)[1]
    return flips + [(place, 1 << bit) for place in range(start - 1, end + 1) for bit in (0, 1, 2, 3, 4, 6, 7)]


@pytest.mark.slow
@pytest.mark.promise("damaged line in the middle")
@pytest.mark.parametrize(
    ("version", "masks", "step"),
    [
        pytest.param({}, (0x20,), 1, id="no version"),
        pytest.param({}, (0x20, 0xFF), 1, id="no version, by two masks", marks=pytest.mark.soak),
        pytest.param({"version": "v1"}, (0x20, 0xFF), 7, id="a version that is named"),
    ],
)
def test_no_flipped_byte_ever_yields_a_wrong_value(
    tmp_path: Path, free_sync: None, version: dict[str, Any], masks: tuple[int, ...], step: int
) -> None:
    """Every byte flipped: no wrong value, no foreign error, every other record intact; the next pass heals it."""
    data = written(tmp_path, **version)
    for place, mask in every_flip(data, masks)[::step]:
        check_flipped(tmp_path, data, place, mask, **version)
        empty(tmp_path)


@pytest.mark.slow
@pytest.mark.promise("damaged line in the middle")
def test_no_flipped_bit_in_the_last_line_hides_the_version(tmp_path: Path, free_sync: None) -> None:
    """A runner that follows the last record's version follows the last intact one's."""
    data = written(tmp_path, version="v1")
    start, end = lines_of(data)[-1]
    for place in range(start, end):
        for bit in (0, 2, 5):
            check_flipped(tmp_path, data, place, 1 << bit)
            empty(tmp_path)


@pytest.mark.slow
@pytest.mark.promise("damaged line in the middle")
def test_all_results_of_a_flipped_journal_are_the_intact_ones(tmp_path: Path, free_sync: None) -> None:
    """Reading all of them tells of the damaged one once, and then goes on without it."""
    data = written(tmp_path)
    path = tmp_path / "j_results.jsonl"
    for place in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[place] ^= 0x01
        path.write_bytes(flipped)
        with CheckpointedRunner("j", tmp_path) as runner:
            lines = []
            try:
                found = runner.get_all_results()
            except DamagedRecord as error:
                lines.append(error.line)
                found = runner.get_all_results()
            assert lines in ([], [data.count(b"\n", 0, place) + 1])
            assert found == {key: VALUES[key] for key in found}
            assert VALUES.keys() - found.keys() <= touched(data, place)
        empty(tmp_path)


def test_a_damaged_line_counts_against_the_key_it_spells(make: Opener, tmp_path: Path) -> None:
    """A flipped key may spell another item's: that one is not done either, rather than done with an old value."""
    runner = make()
    for key in ("a", "b", "c"):
        runner.save_result(key, key * 3)
    runner.close()
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"key":"c"', b'{"key":"a"'))
    runner = make()
    with pytest.raises(DamagedRecord) as damaged:
        runner.get_result("a")
    assert (damaged.value.key, damaged.value.line) == ("a", 3)
    assert list(runner.iterate(["a", "b", "c"])) == ["a", "c"]
    assert runner.get_result("b") == "bbb"


@pytest.mark.promise("damaged line in the middle", "bytes that are no UTF-8, NULs, BOM, CRLF", "giant or deep records")
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (b"garbage\n", "no JSON"),
        (b"\n", "an empty line is none at all"),
        (b"  \t \r\n", "a line of blanks is none at all"),
        (b"\0\0\0\0\n", "NULs"),
        (b"\xff\xfe{}\xc3\x28\n", "no UTF-8"),
        (b"\xef\xbb\xbf\n", "a byte-order mark and nothing"),
        (b'{"key":"other","result":1,"crc":"00000000"}\n', "a checksum of something else"),
        (b'{"key":{"$set":[1]},"result":1}\n', "its key is no key"),
        (b'{"key":[1],"result":1}\n', "its key is a list"),
        (b'{"result":1}\n', "no key"),
        (b"[1,2]\n", "no object"),
        (b'{"key":"deep","result":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "100,000 deep"),
        (b'{"key":"deep","result":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001 + b"\n", "objects, as deep"),
        (b'{"key":"digits","result":' + b"9" * 5000 + b"}\n", "an int that Python refuses to read"),
        (b'{"key":' + b"9" * 5000 + b',"result":1}\n', "a key that Python refuses to read"),
        (b'{"key":1e999,"result":1}\n', "a key that is infinite"),
        (b'{"key":NaN,"result":1}\n', "a key that equals nothing"),
        (b'{"key":"g' + b"x" * 3_000_000 + b"\n", "3 MB without an end"),
        (b'{"key":"one","result":1}{"key":"two","result":2}\n', "two records glued"),
        (b'{"key":"one","result":[1,\n{"key":"two"}]}\n', "two half lines that would be one JSON value"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("where", ["front", "middle", "end"])
def test_a_damaged_line_damages_no_other(
    make: Opener, tmp_path: Path, free_sync: None, what: bytes, reason: str, where: str
) -> None:
    """Whatever stands between the records, they are all there, its bytes stay, and one can go on."""
    data = written(tmp_path)
    place = {"front": 0, "middle": lines_of(data)[2][0], "end": len(data)}[where]
    damaged = data[:place] + what + data[place:]
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(damaged)
    runner = make()
    for key, value in VALUES.items():
        assert runner.get_result(key) == value
    runner.save_result("more", 1)
    kept = damaged if damaged.endswith(b"\n") else data
    assert path.read_bytes().startswith(kept)
    runner.close()
    runner = make()
    assert runner.get_result("more") == 1
    assert list(runner.iterate([*KEYS, "more"])) == []


def test_two_half_lines_never_read_as_one_record(make: Opener, tmp_path: Path) -> None:
    """A newline ends a record even where the JSON would go on behind it, and offsets stay right beside glued lines."""
    good = [seal(b'{"key":"%c","result":%d' % (65 + n, n)) for n in range(6)]
    half = [b'{"key":"X","result":[1,\n', b'{"key":"Y","result":1}],"crc":"00000000"}\n']
    glued = good[4].rstrip(b"\n") + good[5]
    (tmp_path / "j_results.jsonl").write_bytes(b"".join([*good[:2], *half, good[2], glued, good[3]]))
    assert make().get_all_results() == {"A": 0, "B": 1, "C": 2, "D": 3}


@pytest.mark.promise("damaged line in the middle")
def test_damage_is_told_with_file_and_line(make: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One warning for a file, with the numbers of the first ten lines; it quotes no more than 200 characters."""
    data = written(tmp_path)
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(data + (b"garbage " * 1000 + b"\n") * 150 + data)
    with caplog.at_level(logging.WARNING, logger="checkpoint"):
        make()
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{path}:7: damaged line skipped: ")
    assert "so are lines 8, 9, 10, 11, 12, 13, 14, 15, 16, …" in told
    assert len(told) < len(str(path)) + 400


# --- foreign bytes that are read through ----------------------------------------------------------------------------


@pytest.mark.promise("bytes that are no UTF-8, NULs, BOM, CRLF")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"\xef\xbb\xbf" + data, "a byte-order mark, by an editor"),
        (lambda data: data.replace(b"\n", b"\r\n"), "CRLF, by an editor or a transfer"),
        (lambda data: b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n"), "both"),
        (lambda data: b"\n\n" + data.replace(b"\n", b"\n\n"), "blank lines"),
        (lambda data: data[:-1], "no newline at the end, by an editor"),
        (lambda data: data.replace(b"\n", b"\r\n")[:-2], "CRLF, and none at the end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_editors_do_to_line_ends_is_read_through(
    make: Opener, tmp_path: Path, change: Callable[[bytes], bytes], reason: str
) -> None:
    """No record is lost, and the next one is not glued to the last."""
    path = tmp_path / "j_results.jsonl"
    changed = change(written(tmp_path))
    path.write_bytes(changed)
    runner = make()
    assert runner.get_all_results() == VALUES
    runner.save_result("more", 1)
    assert path.read_bytes().startswith(changed)
    runner.close()
    assert make().get_all_results() == {**VALUES, "more": 1}


def test_a_line_whose_checksum_was_deleted_by_hand_counts_as_written_by_hand(make: Opener, tmp_path: Path) -> None:
    """Whoever edits a value deletes the crc field, and has changed the result."""
    runner = make()
    runner.save_result("a", "old")
    runner.close()
    path = tmp_path / "j_results.jsonl"
    line = path.read_bytes()[: -CRC_SIZE - 1] + b"}\n"
    path.write_bytes(line.replace(b"old", b"new"))
    assert make().get_all_results() == {"a": "new"}


@pytest.mark.slow
@pytest.mark.promise("giant or deep records")
def test_a_50_mb_value_round_trips(make: Opener, tmp_path: Path) -> None:
    """Giant records cost memory and nothing else, the ones around them included."""
    runner = make()
    giant = "0123456789abcdef" * (50 << 16)
    runner.save_result("before", 1)
    runner.save_result("giant", giant)
    runner.save_result("after", 2)
    runner.close()
    runner = make()
    assert runner.get_result("giant") == giant
    assert (runner.get_result("before"), runner.get_result("after")) == (1, 2)


@pytest.mark.promise("giant or deep records")
def test_a_long_text_is_saved_with_two_copies_of_it(make: Opener) -> None:
    """What is written, and what it is checked with: not more of a value that fills the memory already."""
    size = 8 << 20
    value, runner = "0123456789abcdef" * (size // 16), make()
    runner.save_result("first", 1)  # which names the version
    tracemalloc.start()
    try:
        runner.save_result("long", value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.6 * size
    assert runner.get_result("long") == value


@pytest.mark.slow
@pytest.mark.promise("giant or deep records")
@pytest.mark.parametrize("end", [b"", b"\n"], ids=["at the end", "before a line"])
@pytest.mark.skipif(not hasattr(os, "SEEK_DATA"), reason="files have no holes that can be skipped")
def test_a_hole_of_gigabytes_takes_bounded_memory(
    make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    """A crash of some file systems leaves one; who reads, and who writes next, never has it in memory."""
    with make() as runner:
        runner.save_result(1, "one")
    path = tmp_path / "j_results.jsonl"
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.write(b'{"key":2,"res')
        file.truncate(size + (4400 << 20))
        file.seek(0, os.SEEK_END)
        file.write(end)
    with make() as runner:
        tracemalloc.start()
        try:
            runner.save_result(3, "three")
            assert runner.get_all_results() == {1: "one", 3: "three"}
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 256 << 20
    if not end:
        assert path.stat().st_size < 1000
        assert set_aside(path).startswith(b'{"key":2,"res')
    path.unlink()


# --- a system that fails --------------------------------------------------------------------------------------------


class Disk:
    """Makes system calls on one file fail, and counts them.

    Args:
        path: the file; other files are left alone.
    """

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.room: int | None = None  # bytes that can still be written
        self.errors: dict[str, int] = {}  # by call: the errno to raise
        self.calls: list[str] = []
        for call in ("write", "ftruncate", "fdatasync", "fsync", "pread"):
            patch.setattr(os, call, self._wrap(call, getattr(os, call)))
        for room in ("reader", "journal"):
            patch.setattr(f"checkpoint.storage.{room}.pread", os.pread)

    def _wrap(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(fd: int, *arguments: Any) -> Any:
            if not (self.path.exists() and os.path.samestat(os.fstat(fd), os.stat(self.path))):
                return real(fd, *arguments)
            self.calls.append(call)
            if call in self.errors:
                raise OSError(self.errors[call], os.strerror(self.errors[call]))
            if call == "write" and self.room is not None:
                (data,) = arguments
                if not self.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                data = bytes(data)[: self.room]
                self.room -= len(data)
                return real(fd, data)
            return real(fd, *arguments)

        return wrapped


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk under the results journal."""
    return Disk(tmp_path / "j_results.jsonl", monkeypatch)


@pytest.mark.promise("disk full, quota, file-size limit")
def test_a_disk_that_fills_up_at_any_byte_leaves_whole_records(make: Opener, tmp_path: Path, disk: Disk) -> None:
    """Cut back to the last whole record; an own error that is an OSError; and on with it once there is room."""
    runner = make()
    runner.save_result("first", 1)
    whole = disk.path.read_bytes()
    for room in range(0, 200, 7):
        disk.room = room
        with pytest.raises(StoreError) as failed:
            runner.save_result("big", "x" * 200)
        assert isinstance(failed.value, OSError)
        assert (failed.value.errno, failed.value.filename) == (errno.ENOSPC, str(disk.path))
        assert failed.value.unsaved == {"big": "x" * 200}
        assert disk.path.read_bytes() == whole
        assert not runner.is_completed("big")
    disk.room = None
    runner.save_result("big", 2)
    runner.close()
    assert make().get_all_results() == {"first": 1, "big": 2}


def test_a_short_write_is_gone_on_with(make: Opener, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write may take fewer bytes than it was given: the record is whole all the same."""
    runner = make()
    runner.save_result("first", 1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:10]))
    runner.save_result("second", "y" * 300)
    monkeypatch.setattr(os, "write", real)
    runner.close()
    assert make().get_all_results() == {"first": 1, "second": "y" * 300}


@pytest.mark.promise("disk full, quota, file-size limit")
def test_what_cannot_be_cut_back_is_set_aside_before_the_next_append(make: Opener, disk: Disk) -> None:
    """Where even the cutting fails, the next save repairs first, so that nothing is glued."""
    runner = make()
    runner.save_result("first", 1)
    disk.room, disk.errors["ftruncate"] = 30, errno.EPERM
    with pytest.raises(StoreError):
        runner.save_result("torn", "x" * 100)
    disk.room = None
    with pytest.raises(StoreError):
        runner.save_result("refused", 2)
    del disk.errors["ftruncate"]
    runner.save_result("third", 3)
    runner.close()
    assert make().get_all_results() == {"first": 1, "third": 3}
    assert set_aside(disk.path).startswith(b'{"key":"torn"')


def test_cutting_back_takes_nothing_but_its_own_bytes(make: Opener, disk: Disk) -> None:
    """Lines that another program appended meanwhile stay, and count, when our own write fails half-way."""
    runner = make()
    runner.save_result("first", 1)
    with open(disk.path, "ab") as other:
        other.write(b'{"key": "by hand", "result": 5}\n')
    disk.room = 20
    with pytest.raises(StoreError):
        runner.save_result("second", "x" * 100)
    disk.room = None
    runner.save_result("third", 3)
    assert runner.get_all_results() == {"first": 1, "by hand": 5, "third": 3}


def test_a_failing_write_never_lengthens_a_file_that_was_cut(make: Opener, disk: Disk) -> None:
    """Cutting back to where the end used to be would fill the gap with NULs."""
    runner = make()
    runner.save_result("first", 1)
    size = disk.path.stat().st_size
    runner.save_result("second", 2)
    os.truncate(disk.path, size)
    disk.room = 0
    with pytest.raises(StoreError):
        runner.save_result("third", 3)
    assert disk.path.stat().st_size == size
    disk.room = None
    with pytest.raises(JournalLost) as lost:
        runner.save_result("third", 3)
    assert lost.value.keys == ["second"]


@pytest.mark.promise("EIO on write or fsync")
@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_after_eio_the_store_refuses_until_it_is_opened_anew(make: Opener, disk: Disk, call: str) -> None:
    """Nobody knows what is on the medium: the save fails, and so does each later one, with its own value."""
    runner = make(durability="power")
    runner.save_result("first", 1)
    disk.errors[call] = errno.EIO
    with pytest.raises(StoreError) as first:
        runner.save_result("second", 2)
    assert (first.value.errno, first.value.filename) == (errno.EIO, str(disk.path))
    disk.errors.clear()
    disk.calls.clear()
    with pytest.raises(StoreError) as second:
        runner.save_result("third", 3)
    assert disk.calls == [], "neither written nor synced as if it could succeed"
    assert (first.value.unsaved, second.value.unsaved) == ({"second": 2}, {"third": 3})
    runner.close()
    assert "fdatasync" not in disk.calls
    runner = make()
    runner.save_result("third", 3)
    assert runner.get_result("first") == 1
    assert runner.get_result("third") == 3


SAVES = """
import sys
from checkpoint import CheckpointedRunner
with CheckpointedRunner("j", sys.argv[1], durability="power") as runner:
    print(sorted(runner.get_all_results()))
    for key in sys.argv[2:]:
        runner.save_result(key, key)
"""


def in_another_process(directory: Path, *keys: str) -> tuple[str, str]:
    """(stdout, stderr) of a process that prints the keys that it finds, and saves these."""
    command = [sys.executable, "-c", SAVES, str(directory), *keys]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return ran.stdout.strip(), ran.stderr


@pytest.mark.slow
@pytest.mark.promise("EIO on write or fsync")
def test_another_process_writes_again_what_a_failed_sync_may_have_lost(
    make: Opener, tmp_path: Path, disk: Disk
) -> None:
    """The system tells of it once; a mark beside the journal tells whoever writes next, and goes when all is synced."""
    runner = make(durability="power")
    runner.save_result("first", 1)
    disk.errors["fdatasync"] = errno.EIO
    with pytest.raises(StoreError):
        runner.save_result("second", 2)
    disk.errors.clear()
    runner.close()
    mark = tmp_path / ".j_results.unsynced"
    first = disk.path.read_bytes().index(b"\n") + 1
    said = json.loads(mark.read_text())
    assert (said["from"], said["error"]) == (first, os.strerror(errno.EIO))
    whole = disk.path.read_bytes()
    found, told = in_another_process(tmp_path, "third")
    assert found == "['first', 'second']"
    assert f"an earlier sync of {disk.path} failed: its {len(whole) - first} bytes from byte {first} on" in told
    assert disk.path.read_bytes().startswith(whole)
    assert not mark.exists()
    assert in_another_process(tmp_path, "fourth") == ("['first', 'second', 'third']", "")


@pytest.mark.promise("EIO on write or fsync")
def test_what_a_failed_sync_has_damaged_is_not_done(
    make: Opener, tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The system may have dropped the pages that it could not write: each line is verified before it counts."""
    runner = make(durability="power")
    for key in range(5):
        runner.save_result(key, "value")
    disk.errors["fdatasync"] = errno.EIO
    with pytest.raises(StoreError):
        runner.save_result(5, "value")
    disk.errors.clear()
    runner.close()
    (tmp_path / ".j_results.unsynced").write_text("")  # it says nothing: all of it is looked at
    damaged = disk.path.read_bytes().replace(b'{"key":3,"result":"value"', b'{"key":3,"result":"older"')
    disk.path.write_bytes(damaged)
    second, ran = make(), []
    for key in second.iterate(range(6)):
        ran.append(key)
        second.save_result(key, "anew")
    assert ran == [3]
    assert disk.path.read_bytes().startswith(damaged)
    assert "1 line of these are damaged" in caplog.text
    assert second.get_all_results() == {**dict.fromkeys(range(6), "value"), 3: "anew"}


@pytest.mark.promise("EIO on write or fsync")
def test_a_mark_outlives_no_journal(make: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is left of one that was deleted says nothing of the next one."""
    (tmp_path / ".j_results.unsynced").write_text('{"from": 0}')
    make().save_result(1, 1)
    assert not (tmp_path / ".j_results.unsynced").exists()
    assert not caplog.records


@pytest.mark.promise("EIO on write or fsync")
def test_after_eio_the_next_pass_opens_anew(make: Opener, disk: Disk) -> None:
    """The same line again is the way on, in the same process too."""
    runner = make()
    runner.save_result("first", 1)
    disk.errors["write"] = errno.EIO
    with pytest.raises(StoreError):
        runner.save_result("second", 2)
    disk.errors.clear()
    for key in runner.iterate(["first", "second"]):
        runner.save_result(key, 2)
    assert runner.get_all_results() == {"first": 1, "second": 2}


@pytest.mark.promise("EIO on write or fsync")
def test_a_failed_background_sync_is_told_at_the_next_save(make: Opener, disk: Disk, ticker: Any) -> None:
    """Housekeeping finds the error; the next save reports it, and fsync is not called again."""
    runner = make()
    runner.save_result("first", 1)
    disk.errors["fdatasync"] = errno.EIO
    runner.records.store.writer.tend()
    disk.calls.clear()
    with pytest.raises(StoreError) as failed:
        runner.save_result("second", 2)
    assert failed.value.errno == errno.EIO
    runner.close()
    assert disk.calls == []


@pytest.mark.promise("EIO on write or fsync")
def test_eio_on_read_is_an_error_and_never_an_empty_checkpoint(make: Opener, disk: Disk) -> None:
    """Opening fails, and so does each read, as often as it is tried; what was written is there when it works again."""
    runner = make()
    runner.save_result("first", 1)
    runner.records.store.own.results.write_index()
    disk.errors["pread"] = errno.EIO
    for _ in range(3):
        with pytest.raises(StoreError) as failed:
            runner.get_result("first")
        assert failed.value.errno == errno.EIO
        with pytest.raises(StoreError):
            runner.get_all_results()
    runner.close()
    for _ in range(3):
        with pytest.raises(StoreError):
            make()
    disk.errors.clear()
    assert make().get_all_results() == {"first": 1}


@pytest.mark.promise("EIO on write or fsync")
def test_eio_while_an_index_is_rebuilt_never_empties_a_writer(make: Opener, disk: Disk, tmp_path: Path) -> None:
    """A writer whose index file proves damaged reads its journal; where that fails, it knows what it knew."""
    runner = make()
    for key in range(40):
        runner.save_result(key, key)
    runner.records.store.own.results.write_index()
    runner.close()
    index = tmp_path / ".j_results.index"
    runner = make()
    runner.save_result("more", 1)
    with open(index, "r+b") as file:
        file.seek(4096)
        file.write(bytes(index.stat().st_size - 4096))
    disk.errors["pread"] = errno.EIO
    for _ in range(2):
        with pytest.raises(StoreError):
            runner.is_completed(5)
    disk.errors.clear()
    assert runner.is_completed(5)
    assert runner.is_completed("more")
    runner.save_result("last", 2)
    runner.close()
    assert len(make().get_all_results()) == 42


@pytest.mark.promise("NFS, network drives")
@pytest.mark.parametrize("code", [errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", ["files", "directories"])
def test_a_file_system_that_cannot_sync_is_told_once_and_written(
    make: Opener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str, code: int
) -> None:
    """What holds there is said, with the way out; nothing fails."""

    def fail(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == (kind == "directories"):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files, "_told", set())
    monkeypatch.setattr(os, "fsync", fail)
    monkeypatch.setattr(os, "fdatasync", fail, raising=False)
    for number in range(3):
        with make(durability="power") as runner:
            runner.save_result(number, number)
    assert len(make().get_all_results()) == 3
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"cannot sync {kind} ({os.strerror(code)}, errno {code})" in told
    assert "may be lost when the power" in told
    assert "choose a checkpoint_dir on a local disk" in told


def test_a_descriptor_that_is_closed_is_no_file_system_that_cannot_sync(tmp_path: Path) -> None:
    """The fault is ours, and nothing is acknowledged."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.fsync(fd)


def test_a_directory_that_cannot_be_synced_is_an_own_error(make: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system call that fails becomes an own error that is an OSError with its errno."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError) as failed:
        make().save_result("a", 1)
    assert failed.value.errno == errno.EIO


def test_who_syncs_waits_for_another_that_is_at_it_and_is_told_what_that_is(tmp_path: Path) -> None:
    """The system reports an error once: who lets go of the journal meanwhile must not take silence for success."""
    syncing, fail = threading.Event(), threading.Event()

    def sync(fd: int) -> None:
        if threading.current_thread().name == "lend":
            syncing.set()
            fail.wait(60)
            raise OSError(errno.EIO, "Input/output error")

    journal = Journal(tmp_path / "j_results.jsonl", sync=sync)
    journal.open_to_write()
    journal.sync()
    journal.append(seal(b'{"key":1,"result":1'))
    told: list[BaseException] = []

    def call(what: Callable[[], None]) -> None:
        try:
            what()
        except StoreError as error:
            told.append(error)

    def lend() -> None:
        lent = journal.lend()
        assert lent is not None
        lent()

    threads = [threading.Thread(target=call, args=(what,), name=what.__name__) for what in (lend, journal.sync)]
    threads[0].start()
    assert syncing.wait(60)
    threads[1].start()
    fail.set()
    for thread in threads:
        thread.join()
    assert [str(error) for error in told] == [str(told[0])] * 2
    journal.stop_writing()
    journal.open_to_write()
    journal.sync()


def test_a_file_that_cannot_be_read_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not as one that cannot be written."""

    def refuse(*_: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreError, match="not readable for this user"):
        Reader.open(tmp_path / "j_results.jsonl")


# --- who reads ------------------------------------------------------------------------------------------------------


def test_whoever_keeps_a_reader_keeps_the_bytes(tmp_path: Path) -> None:
    """What replaces or unlinks the file does not touch them."""
    data = written(tmp_path)
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(data)
    reader = Reader.open(path)
    assert reader is not None
    path.unlink()
    path.write_bytes(b"another")
    assert not reader.is_current()
    assert b"".join(block for _, block in reader.blocks(0)) == data


@pytest.mark.parametrize("size", [1, 100, 4095, 4096, 4097, (1 << 19) - 1, 1 << 19, (1 << 19) + 1, 1 << 20])
def test_lines_of_any_length_are_read_whole(tmp_path: Path, size: int) -> None:
    """Neither blocks nor pages cut a line, wherever their borders fall."""
    path = tmp_path / "lines"
    lines = [b"a" * size, b"b" * 5, b"c" * size]
    path.write_bytes(b"\n".join(lines) + b"\ntail")
    reader = Reader.open(path)
    assert reader is not None
    assert b"".join(block for _, block in reader.blocks(0)).split(b"\n") == [*lines, b""]
    assert reader.line_at(size + 1) == lines[1]
    assert reader.line_at(size + 7) == lines[2]
    assert reader.line_number(size + 7) == 3
    assert reader.tail() == (2 * size + 8, b"tail")


def test_every_error_of_these_rooms_is_an_own_one() -> None:
    """One `except CheckpointError` catches them all."""
    assert issubclass(DamagedRecord, CheckpointError)
    assert issubclass(StoreError, CheckpointError)
    assert issubclass(JournalLost, StoreError)
