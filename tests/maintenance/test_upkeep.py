"""The laws of upkeep: `check` only reads; `repair` and `compact` change nothing that counts, wherever they are cut."""

from __future__ import annotations

import base64
import contextlib
import errno
import json
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from checkpoint import CheckpointedRunner, CheckpointLocked, DamagedRecord, InvalidName, StoreError, checkpointed
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact
from checkpoint.maintenance.repair import repair
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.record import Record, parse, seal, with_fields
from checkpoint.storage.source import latest_of
from checkpoint.storage.store import Store
from checkpoint.values.keys import Key, version_digest
from checkpoint.values.plain_json import decode_foreign

Opener = Callable[..., CheckpointedRunner]
TEMPORARY = r"\.j_results\.[0-9]+\.[0-9a-f]{16}\.tmp"


def journal_of(directory: Path, kind: str = "results") -> Path:
    """One of the journals of checkpoint "j"."""
    return directory / (".j_unsaved.jsonl" if kind == "unsaved" else f"j_{kind}.jsonl")


def lines_of(directory: Path, kind: str = "results") -> list[bytes]:
    """A journal's lines, each with its newline."""
    return journal_of(directory, kind).read_bytes().splitlines(keepends=True)


def fill(directory: Path, *saves: tuple[Any, Any], version: Any = None) -> None:
    """Save results and close."""
    with CheckpointedRunner("j", directory, version=version) as runner:
        for key, value in saves:
            runner.save_result(key, value)


def files_of(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file: its bytes, its inode, and when it was changed."""
    return {file.name: (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in directory.iterdir()}


def pieces_aside(directory: Path, kind: str = "results") -> list[tuple[int, bytes]]:
    """(offset, bytes) of what was set aside and can be read."""
    path = directory / f".j_{kind}.aside"
    pieces = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # an entry that a kill cut off
        pieces.append((entry["offset"], base64.b64decode(entry["bytes"])))
    return pieces


def record(key: Any, result: Any, version: str = "") -> bytes:
    """A sealed line, without its newline."""
    named = b',"version":"%b"' % version.encode() if version else b""
    head = b'{"key":%b,"result":%b,"timestamp":"t"%b' % (json.dumps(key).encode(), json.dumps(result).encode(), named)
    return seal(head).rstrip(b"\n")


class Other:
    """Another process with a runner of checkpoint "j"; each expression is answered with its repr."""

    CODE = """
import sys
from checkpoint import CheckpointedRunner
runner = CheckpointedRunner("j", sys.argv[1])
held = {}
for command in sys.stdin:
    try:
        print(repr(eval(command)), flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", self.CODE, str(directory)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, expression: str) -> str:
        into, out = self._pipes()
        into.write(expression + "\n")
        into.flush()
        return out.readline().rstrip("\n")

    def hold_the_lock(self) -> None:
        assert self.ask("held.setdefault('pass', runner.iterate(['held'])) and next(held['pass'])") == "'held'"

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in self._pipes():
            pipe.close()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Other]:
    """Another process."""
    other = Other(tmp_path)
    yield other
    other.kill()


# --- check reads, and only reads ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_check_changes_nothing_and_takes_no_lock(tmp_path: Path, other: Other) -> None:
    """Not a byte, an inode or a time differs afterwards, whatever is damaged, and with a writer at work."""
    fill(tmp_path, (1, "a"), (2, "b"), (2, "c"))
    data = bytearray(journal_of(tmp_path).read_bytes())
    data[20] ^= 1
    journal_of(tmp_path).write_bytes(data + b'{"key": 3')
    (tmp_path / ".j_results.index").write_bytes(b"garbage")
    (tmp_path / "j_meta.json").unlink()
    before = files_of(tmp_path)
    assert not check("j", tmp_path).is_sound
    assert files_of(tmp_path) == before
    other.hold_the_lock()
    before = files_of(tmp_path)
    found = check("j", tmp_path)
    assert found.writer is not None
    assert files_of(tmp_path) == before


def test_check_of_a_sound_checkpoint_counts_what_is_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Results and errors by version, what compact would free, and values kept aside; nothing is logged."""
    fill(tmp_path, *[(key, key) for key in range(5)], version="one")
    with CheckpointedRunner("j", tmp_path, version={"two": 2}) as runner:
        runner.save_result("a", 1)
        runner.save_result("a", 2)
        runner.save_error("a", "retired by the result")
        runner.save_error("b", "boom")
        with pytest.raises(TypeError):
            runner.save_result("c", object())
        runner.clear(["a"])
        runner.save_result("d", 1)
    caplog.clear()
    found = check("j", tmp_path)
    assert found.is_sound
    assert caplog.records == []
    assert {
        (each.label if isinstance(each.label, str) else "two", each.results, each.errors) for each in found.versions
    } == {
        ("one", 5, 0),
        ("two", 1, 2),
    }
    assert (found.meta, found.writer, found.lost, found.results.missing) == ("sound", None, (), False)
    assert (found.results.lines, found.errors.lines, found.unsaved.lines) == (9, 4, 1)
    dead = [line for line in lines_of(tmp_path) if b'"key":"a"' in line]
    moved = len(b',"value":{"two":2}')  # the version is said by another line then
    assert found.results.superseded == (3, sum(map(len, dead)) - moved)
    assert found.errors.superseded[0] == 2
    told = str(found)
    assert "sound; 6 results and 2 errors" in told
    assert "checkpoint compact j --dir" in told
    assert "see .unsaved" in told


@pytest.mark.slow
@pytest.mark.promise("damaged line in the middle")
@pytest.mark.parametrize("version", [None, "v"], ids=["no version", "a version"])
def test_every_flipped_byte_is_found_and_can_be_repaired(tmp_path: Path, free_sync: None, version: Any) -> None:
    """The line is named; what a reader finds damaged is told as lost; after a repair every other value is there, and
    the original can be put together again from what was set aside.
    """
    saves = [("a", "first"), ("b", [1, 2]), ("c", {"x": (1,)}), ("d", "last")]
    fill(tmp_path, *saves, version=version)
    journal = journal_of(tmp_path)
    original = journal.read_bytes()
    start, stop = original.index(b'{"key":"b"'), original.index(b'{"key":"c"')
    for at in range(start, stop):
        journal.write_bytes(original[:at] + bytes([original[at] ^ 1]) + original[at + 1 :])
        flipped = journal.read_bytes()
        found = check("j", tmp_path)
        assert not found.is_sound, at
        (damage,) = found.results.damage
        assert (damage.path, damage.line, damage.offset) == (str(journal), 2, start), at
        with CheckpointedRunner("j", tmp_path, version=version) as runner:
            for key in ("a", "b", "c", "d", *damage.keys):
                try:
                    runner.records.store.own.results.read(runner.records.version, key)
                except DamagedRecord:
                    assert key in found.lost, at
        if at > start + len(b'{"key":"b",') and at < stop - 1:
            assert found.lost == ("b",), at
        assert f"{journal}:2: " in str(found)
        done = repair("j", tmp_path)
        assert done.moved == (damage,)
        assert check("j", tmp_path).is_sound, at
        with CheckpointedRunner("j", tmp_path, version=version) as runner:
            expected = {key: value for key, value in saves if key in ("a", "d") or (key == "c" and at < stop - 1)}
            assert runner.get_all_results() == expected, at
        ((offset, piece),) = pieces_aside(tmp_path)
        rest = journal.read_bytes()
        assert rest[:offset] + piece + rest[offset:] == flipped, at
        (tmp_path / ".j_results.aside").unlink()


@pytest.mark.slow
@pytest.mark.promise("torn tail")
def test_a_tail_cut_at_any_byte_is_told_and_is_no_damage(tmp_path: Path) -> None:
    """It says how much was cut; a record that only lacks its newline counts."""
    fill(tmp_path, ("a", 1), ("b", 2))
    journal = journal_of(tmp_path)
    whole = journal.read_bytes()
    start = whole.index(b'{"key":"b"')
    for size in range(start, len(whole)):
        os.truncate(journal, size)
        found = check("j", tmp_path)
        assert found.is_sound
        lacks_newline = size == len(whole) - 1
        assert found.results.lines == (2 if lacks_newline else 1)
        assert found.results.torn == (None if lacks_newline or size == start else (start, size - start))
        assert ("the next writer sets it aside" in str(found)) == (found.results.torn is not None)
        journal.write_bytes(whole)


@pytest.mark.slow
def test_a_tail_under_a_writer_is_being_written(tmp_path: Path, other: Other) -> None:
    """Who writes is named; once it is dead, the write was cut."""
    fill(tmp_path, ("a", 1))
    other.hold_the_lock()
    with journal_of(tmp_path).open("ab") as file:
        file.write(b'{"key":"b","resu')
    found = check("j", tmp_path)
    if sys.platform == "linux":
        assert found.writer is not None
        assert (found.writer["pid"], found.writer["host"]) == (other.process.pid, socket.gethostname())
        assert f"its last line is being written by process {other.process.pid}" in str(found)
    assert found.is_sound
    other.kill()
    found = check("j", tmp_path)
    if sys.platform == "linux":
        assert found.writer is None
    assert "the last write was cut (16 bytes)" in str(found)


@pytest.mark.promise("damaged line in the middle")
@pytest.mark.parametrize(
    ("line", "keys", "lost", "why", "reason"),
    [
        (bytes(300), (), (), "not valid JSON", "NULs: a power cut"),
        (b"\xff\xfe\xfd", (), (), "not valid JSON", "no UTF-8"),
        (b"[1, 2]", (), (), "not an object with a key", "no record"),
        (b'{"result": 1}', (), (), "not an object with a key", "no key"),
        (b'{"key": [1], "result": 1}', (), (), "its key is a list", "a key of another type"),
        (b'{"key":' + b"[" * 100_000 + b"]" * 100_000 + b"}", (), (), "nested too deep", "deeper than any stack"),
        (b'{"key":"x","result":"' + b"y" * 3_000_000, ("x",), ("x",), "not valid JSON", "a giant line that was cut"),
        (record("x", 1)[:30], ("x",), ("x",), "not valid JSON", "a record that was cut"),
        (record("x", 1)[:5], (), (), "not valid JSON", "cut before its key"),
        (record("x" * 5000, 1)[:4000], (), (), "not valid JSON", "cut within its key"),
        (record("x", 1)[:30] + record("y", {"key": 1}), ("x", "y"), ("x", "y"), "not valid JSON", "two, glued"),
        (record("a", 9)[:30] + record("y", 2), ("a", "y"), ("y",), "not valid JSON", "glued; a has an older one"),
        (record("x", 1).replace(b'"crc"', b'"cRc"'), ("x",), ("x",), "checksum", "the checksum's name is flipped"),
        (record("x", 1).replace(b'"result":1', b'"result":2'), ("x",), ("x",), "checksum", "another value"),
        (record("x", 1).replace(b'"crc":"', b'"crc":"0'), ("x",), ("x",), "checksum", "another checksum"),
        (b'{"key": "x", "result": "\xff"}', ("x",), ("x",), "cannot be decoded", "by hand, and no UTF-8"),
        (b'{"key": "x"}', ("x",), ("x",), "cannot be decoded", "by hand, and without result"),
        (record("x", 1).replace(b'"result":1', b'"forgotten":true'), ("x",), (), "checksum", "it only forgets"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)  # fmt: skip
def test_damage_of_every_kind_is_named(
    tmp_path: Path, line: bytes, keys: tuple[Key, ...], lost: tuple[Key, ...], why: str, reason: str
) -> None:
    """Where, why, whose; never more than a little of the data; and a repair leaves a sound checkpoint."""
    fill(tmp_path, ("a", 1), ("b", 2))
    first, second = lines_of(tmp_path)
    journal_of(tmp_path).write_bytes(first + line + b"\n" + second)
    found = check("j", tmp_path)
    (damage,) = found.results.damage
    assert (damage.line, damage.offset, damage.size) == (2, len(first), len(line) + 1)
    assert damage.keys == keys
    assert found.lost == lost
    assert found.results.unnamed == (not keys)
    assert why in damage.why
    assert len(damage.why) <= 200
    assert len(str(found)) < 2000
    assert json.loads(json.dumps(found.to_json()))["journals"]["results"]["unnamed"] == (not keys)
    before = dict(read(tmp_path, "", ("a", "b")))
    assert repair("j", tmp_path).moved == (damage,)
    assert check("j", tmp_path).is_sound
    assert dict(read(tmp_path, "", ("a", "b"))) == before == {"a": 1, "b": 2}
    assert (len(first), line + b"\n") in pieces_aside(tmp_path)


def read(directory: Path, version: str, keys: tuple[Key, ...]) -> Iterator[tuple[Key, Any]]:
    """(key, parsed result) of those that are there."""
    store = Store("j", directory)
    for key in keys:
        found = store.own.results.read(version, key)
        if found is not None:
            yield key, json.loads(bytes(found[2].result))
    store.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data.replace(b"\n", b"\r\n"), "CRLF: an editor"),
        (lambda data: b"\xef\xbb\xbf" + data, "BOM: an editor"),
        (lambda data: data.replace(b"\n", b"\n\n \t\n"), "empty lines"),
        (lambda data: data[:-1], "no newline at the end"),
        (lambda data: b'{"key": "z", "result": NaN}\n' + data, "a line of the standard json module"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_readers_read_through_is_no_damage(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    """Sound, and compacting it changes nothing that is read."""
    fill(tmp_path, ("a", 1), ("b", 2), ("a", 3))
    journal_of(tmp_path).write_bytes(change(journal_of(tmp_path).read_bytes()))
    assert check("j", tmp_path).is_sound
    before = dict(read(tmp_path, "", ("a", "b")))
    compact("j", tmp_path)
    assert dict(read(tmp_path, "", ("a", "b"))) == before


def test_lines_without_checksum_are_counted_and_intact_values_that_cannot_be_decoded_are_no_damage(
    tmp_path: Path,
) -> None:
    """The one cannot be verified; of the other the bytes are those that were written."""
    later = record("x", {"$later": 1})
    journal_of(tmp_path).write_bytes(b'{"key": "a", "result": 1}\n' + later + b"\n")
    found = check("j", tmp_path)
    assert found.is_sound
    assert (found.results.without_checksum, found.results.unreadable) == (1, 1)
    assert "1 line without checksum" in str(found)
    assert "1 intact value cannot be decoded here: '$later' is no envelope" in str(found)


def test_the_damage_of_errors_and_of_kept_values_is_found_too(tmp_path: Path) -> None:
    """Each journal by itself."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_error("a", "boom")
        with pytest.raises(TypeError):
            runner.save_result("b", object())
    for kind in ("errors", "unsaved"):
        data = bytearray(journal_of(tmp_path, kind).read_bytes())
        data[30] ^= 1
        journal_of(tmp_path, kind).write_bytes(data)
    found = check("j", tmp_path)
    assert [len(journal.damage) for journal in found.journals] == [0, 1, 1]
    assert "errors that are lost: 1 ('a')" in str(found)
    assert "kept values that are lost: 1 ('b')" in str(found)
    assert len(repair("j", tmp_path).moved) == 2
    assert check("j", tmp_path).is_sound
    assert pieces_aside(tmp_path, "unsaved")


def test_many_damaged_lines_are_counted_and_json_lists_them_all(tmp_path: Path) -> None:
    """Ten are shown."""
    fill(tmp_path, *[(key, "x" * 20) for key in range(50)], *[(key, "z") for key in range(50, 100)])
    journal_of(tmp_path).write_bytes(journal_of(tmp_path).read_bytes().replace(b"xxx", b"yyy"))
    found = check("j", tmp_path)
    assert found.lost == tuple(range(50))
    assert str(found).count("its checksum does not match") == 10
    assert "… and 40 more" in str(found)
    assert "results that are lost, to be run again: 50 (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, …)" in str(found)
    told = found.to_json()["journals"]["results"]
    assert len(told["damage"]) == len(told["lost"]) == 50


def test_an_older_record_that_counts_in_the_place_of_a_damaged_one_is_told(tmp_path: Path) -> None:
    """A line that is no JSON hides nothing from readers, though its key can be read."""
    fill(tmp_path, ("a", "old"), ("a", "new"))
    first, second = lines_of(tmp_path)
    journal_of(tmp_path).write_bytes(first + second.replace(b'"result"', b'"result'))
    found = check("j", tmp_path)
    assert (found.lost, found.results.outdated) == ((), (("", "a"),))
    assert "in whose place older ones count, unless you clear these keys: 1 ('a')" in str(found)
    assert dict(read(tmp_path, "", ("a",))) == {"a": "old"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "state", "reason"),
    [
        (None, "missing", "deleted"),
        (b"", "garbage", "empty: a power cut"),
        (bytes(100), "garbage", "zeros: a power cut"),
        (b"[" * 100_000, "garbage", "deeper than Python reads"),
        (b"[]", "garbage", "no object"),
        (b'{"versions": 3}', "sound", "wrong types do no harm"),
    ],
)
def test_meta_is_judged_and_is_never_damage(tmp_path: Path, content: bytes | None, state: str, reason: str) -> None:
    """It is rebuilt."""
    fill(tmp_path, ("a", 1), version="v")
    meta = tmp_path / "j_meta.json"
    meta.unlink() if content is None else meta.write_bytes(content)
    found = check("j", tmp_path)
    assert found.is_sound
    assert found.meta == state
    assert [(each.version, each.label) for each in found.versions] == [(version_digest("v", ""), None)]


@pytest.mark.parametrize(
    ("change", "state", "reason"),
    [
        (lambda path, data: path.unlink(), "missing", "deleted"),
        (lambda path, data: None, "sound", "as it was written"),
        (lambda path, data: path.write_bytes(b""), "damaged", "empty"),
        (lambda path, data: path.write_bytes(b"!" + data[1:]), "damaged", "its header is flipped"),
        (lambda path, data: path.write_bytes(data[:-1] + bytes([data[-1] ^ 1])), "damaged", "its last page is flipped"),
        (lambda path, data: path.write_bytes(data[:-10]), "damaged", "cut"),
        (lambda path, data: (path.parent / "j_results.jsonl").write_bytes(b""), "stale", "of another journal"),
        (lambda path, data: (path.parent / "j_results.jsonl").unlink(), "stale", "without journal"),
        (lambda path, data: (path.unlink(), path.symlink_to("j_meta.json")), "damaged", "a link is not followed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_index_file_is_judged_and_is_never_damage(
    make: Opener, tmp_path: Path, change: Callable[[Path, bytes], Any], state: str, reason: str
) -> None:
    """It is rebuilt."""
    runner = make()
    for key in range(100):
        runner.save_result(key, key)
    runner.records.store.own.results.write_index()
    runner.close()
    path = tmp_path / ".j_results.index"
    change(path, path.read_bytes())
    found = check("j", tmp_path)
    assert found.is_sound == (state != "stale"), "only that the journal is lost is an error"
    assert found.results.index == state


def test_the_names_in_json_are_those_that_are_documented(tmp_path: Path) -> None:
    """A script may rely on them."""
    fill(tmp_path, ("a", 1))
    (tmp_path / ".j_results.tmp").write_bytes(b"left over")
    with journal_of(tmp_path).open("ab") as file:
        file.write(b"x\nyy")
    told = json.loads(json.dumps(check("j", tmp_path).to_json()))
    names = ["name", "directory", "sound", "journals", "versions", "meta", "writer", "leftovers", "shards"]
    assert list(told) == names
    assert list(told["journals"]) == ["results", "errors", "unsaved"]
    for journal in told["journals"].values():
        assert list(journal) == [
            "path", "missing", "bytes", "lines", "superseded_lines", "superseded_bytes", "without_checksum",
            "unreadable", "torn", "damage", "unnamed", "lost", "outdated", "index", "aside_bytes", "fault",
        ]  # fmt: skip
    results = told["journals"]["results"]
    assert list(results["damage"][0]) == ["line", "offset", "bytes", "why", "keys"]
    assert results["torn"] == {"offset": results["bytes"] - 2, "bytes": 2}
    assert told["versions"] == [{"version": "", "label": None, "results": 1, "errors": 0}]
    assert told["leftovers"] == [{"path": str(tmp_path / ".j_results.tmp"), "bytes": 9}]


def test_keys_stand_in_json_as_in_a_journal(tmp_path: Path) -> None:
    """So that tuples, and text that no encoding holds, can be told apart."""
    keys: list[Any] = [("a", 1), "\ud800", 2**70, None, 1.5]
    fill(tmp_path, *[(key, "xxx") for key in keys])
    journal_of(tmp_path).write_bytes(journal_of(tmp_path).read_bytes().replace(b"xxx", b"yyy"))
    found = check("j", tmp_path)
    assert found.lost == tuple(keys)
    told = [each["key"] for each in json.loads(json.dumps(found.to_json()))["journals"]["results"]["lost"]]
    assert told[0] == {"$tuple": ["a", 1]}
    assert told[3:] == [None, 1.5]


@pytest.mark.slow
@pytest.mark.parametrize("work", [check, repair, compact])
def test_a_checkpoint_that_is_not_there_is_an_own_error(tmp_path: Path, work: Callable[..., Any]) -> None:
    """It says where it looked and what there is; nothing is made."""
    with pytest.raises(StoreError, match=r"no checkpoint 'j' in .*; nor is there any other") as missing:
        work("j", tmp_path / "nowhere")
    assert (missing.value.errno, missing.value.filename) == (errno.ENOENT, str(tmp_path / "nowhere"))
    for number in range(12):
        with CheckpointedRunner(f"job {number:02}", tmp_path) as runner:
            runner.save_result(1, 1)
    before = files_of(tmp_path)
    with pytest.raises(StoreError, match=r"there are: job 00, job 01, .*, job 09, …$"):
        work("j", tmp_path)
    with pytest.raises(InvalidName):
        work("../j", tmp_path)
    assert files_of(tmp_path) == before


# --- repair ---------------------------------------------------------------------------------------------------------


def test_a_repair_never_brings_an_older_value_back(tmp_path: Path) -> None:
    """A reader finds the last record damaged, and finds none after the repair; it is computed again."""
    fill(tmp_path, ("a", "old"), ("b", 1), ("a", "new"), ("c", 2))
    journal_of(tmp_path).write_bytes(journal_of(tmp_path).read_bytes().replace(b'"new"', b'"nEw"'))
    with CheckpointedRunner("j", tmp_path) as runner, pytest.raises(DamagedRecord):
        runner.records.store.own.results.read("", "a")
    assert check("j", tmp_path).lost == ("a",)
    intact = lines_of(tmp_path)
    done = repair("j", tmp_path)
    assert (done.forgotten, len(done.moved)) == (1, 1)
    after = lines_of(tmp_path)
    assert [after[0], after[1], after[3]] == [intact[0], intact[1], intact[3]]
    assert parse(after[2]).forgotten
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.get_all_results() == {"b": 1, "c": 2}
        assert list(runner.iterate(["a", "b", "c"])) == ["a"]
    assert compact("j", tmp_path).lines == 2, "what is forgotten, and what forgets it"


def test_a_repair_sets_a_torn_tail_aside_too(tmp_path: Path) -> None:
    """And says so; with nothing to do it says that, and rewrites nothing."""
    fill(tmp_path, ("a", 1))
    whole = journal_of(tmp_path).read_bytes()
    with journal_of(tmp_path).open("ab") as file:
        file.write(b"torn")
    done = repair("j", tmp_path)
    assert (done.torn, done.moved) == (4, ())
    assert "a torn tail of 4 bytes was set aside" in str(done)
    assert pieces_aside(tmp_path) == [(len(whole), b"torn")]
    inode = journal_of(tmp_path).stat().st_ino
    assert "nothing to repair" in str(repair("j", tmp_path))
    assert (journal_of(tmp_path).read_bytes(), journal_of(tmp_path).stat().st_ino) == (whole, inode)


def test_what_is_set_aside_is_never_glued_to_an_entry_that_was_cut(tmp_path: Path) -> None:
    """Whatever a killed repair left of an entry, the next one can be read."""
    fill(tmp_path, ("a", 1), ("b", 2))
    first, second = lines_of(tmp_path)
    journal_of(tmp_path).write_bytes(first + b"damaged\n" + second)
    (tmp_path / ".j_results.aside").write_bytes(b'{"offset": 3, "bytes": "AA')
    repair("j", tmp_path)
    assert pieces_aside(tmp_path) == [(len(first), b"damaged\n")]
    assert (tmp_path / ".j_results.aside").read_bytes().startswith(b'{"offset": 3, "bytes": "AA\n')


@pytest.mark.slow
@pytest.mark.parametrize("work", [repair, compact])
def test_what_is_being_written_is_left_alone(tmp_path: Path, other: Other, work: Callable[..., Any]) -> None:
    """CheckpointLocked names the writer, and not one byte differs."""
    fill(tmp_path, ("a", 1), ("a", 2))
    with journal_of(tmp_path).open("ab") as file:
        file.write(b"damaged\n")
    other.hold_the_lock()
    before = files_of(tmp_path)
    with pytest.raises(CheckpointLocked) as locked:
        work("j", tmp_path)
    assert locked.value.pid == other.process.pid
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("work", [repair, compact])
def test_a_pass_of_this_process_is_left_alone(make: Opener, tmp_path: Path, work: Callable[..., Any]) -> None:
    """It is refused until the pass is over."""
    runner = make()
    running = runner.iterate([1, 2])
    assert next(running) == 1
    runner.save_result(1, "one")
    runner.save_result(1, "uno")
    with pytest.raises(CheckpointLocked, match="is running in this process"):
        work("j", tmp_path)
    assert list(running) == [2]
    work("j", tmp_path)
    assert runner.get_all_results() == {1: "uno"}


# --- compact --------------------------------------------------------------------------------------------------------


def test_compacting_leaves_out_what_no_longer_counts(tmp_path: Path) -> None:
    """Superseded and forgotten lines of each journal; what counts stays byte for byte, in order.

    But for the value of a version, whose first record says it: the first one that is left says it then.
    """
    fill(tmp_path, ("a", 1), ("b", 2), ("c", 3), version="one")
    with CheckpointedRunner("j", tmp_path, version="two") as runner:
        runner.save_result("a", "other")
        runner.save_error("e", "boom")
        runner.save_error("e", "boom again")
        for _ in range(2):
            with pytest.raises(TypeError):
                runner.save_result("u", object())
    with CheckpointedRunner("j", tmp_path, version="one") as runner:
        runner.clear(["b"])
        runner.save_result("a", 10)
    before = {kind: lines_of(tmp_path, kind) for kind in ("results", "errors", "unsaved")}
    told = check("j", tmp_path)
    done = compact("j", tmp_path)
    results = before["results"]
    moved = with_fields(results[2], b',"value":"one"')
    assert [b'"value"' in line for line in results] == [True, False, False, True, False, False]
    assert lines_of(tmp_path) == [moved, results[3], results[5]]
    said = with_fields(before["errors"][1], b',"value":"two"')
    assert lines_of(tmp_path, "errors") == [said, before["errors"][3]]
    assert lines_of(tmp_path, "unsaved") == before["unsaved"][1:]
    assert (done.lines, done.size) == (3 + 2 + 1, sum(journal.superseded[1] for journal in told.journals))
    assert done.lines == sum(journal.superseded[0] for journal in told.journals)
    assert done.left == sum(journal_of(tmp_path, kind).stat().st_size for kind in before)
    with CheckpointedRunner("j", tmp_path, version="one") as runner:
        assert runner.get_all_results() == {"c": 3, "a": 10}
    with CheckpointedRunner("j", tmp_path, version="two") as runner:
        assert runner.get_all_results() == {"a": "other"}
        assert runner.get_all_errors().keys() == {"e", "u"}
        assert list(runner.unsaved) == ["u"]


def test_with_nothing_to_do_no_file_is_touched(tmp_path: Path) -> None:
    """And it says so."""
    fill(tmp_path, *[(key, key) for key in range(10)])
    before = files_of(tmp_path)
    done = compact("j", tmp_path)
    after = files_of(tmp_path)
    assert {name: after[name] for name in after if name != ".j.lock"} == {
        name: before[name] for name in before if name != ".j.lock"
    }
    assert (done.lines, done.size) == (0, 0)
    assert "nothing to compact" in str(done)


def test_the_version_of_the_last_record_stays_the_latest(tmp_path: Path) -> None:
    """Though that record was cleared: who names no version goes on reading the same one."""
    fill(tmp_path, ("a", 1), version="one")
    fill(tmp_path, ("b", 2), version="two")
    with CheckpointedRunner("j", tmp_path, version="two") as runner:
        runner.clear(["b"])
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.get_all_results() == {}
    compact("j", tmp_path)
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.get_all_results() == {}
        assert runner.records.version == version_digest("two", "")
    with CheckpointedRunner("j", tmp_path, version="one") as runner:
        assert runner.get_all_results() == {"a": 1}


def test_damaged_lines_stay_where_they_are_and_are_read_as_before(tmp_path: Path) -> None:
    """Also those whose version tells a reader whether to believe their key."""
    fill(tmp_path, ("a", "one"), ("k", "old"), version="one")
    fill(tmp_path, ("b", "two"), version="two")
    fill(tmp_path, ("a", "again"), version="one")
    one, two = version_digest("one", ""), version_digest("two", "")
    a, k, b, again = lines_of(tmp_path)
    spoilt = record("k", "new", one).replace(b"new", b"nEw") + b"\n"
    newer = record("b", "newer", two) + b"\n"
    for lines in ([a, k, b, spoilt, newer, again], [a, k, b, again, spoilt, newer], [k, a, spoilt, b, again, newer]):
        journal_of(tmp_path).write_bytes(b"".join(lines))
        before = seen(tmp_path)
        done = compact("j", tmp_path)
        assert done.damaged == 1
        assert spoilt in lines_of(tmp_path)
        assert seen(tmp_path) == before
        assert "1 damaged line left in place: checkpoint check j" in str(done)


def test_what_forgets_a_damaged_line_stays_with_it(tmp_path: Path) -> None:
    """Or a reader would take the damaged line for the key's record again."""
    fill(tmp_path, ("a", 1), ("k", "new"), ("b", 2))
    journal_of(tmp_path).write_bytes(journal_of(tmp_path).read_bytes().replace(b"new", b"nEw"))
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.clear(["k", "b"])
        assert not runner.is_completed("k")
    before = seen(tmp_path)
    compact("j", tmp_path)
    assert seen(tmp_path) == before
    with CheckpointedRunner("j", tmp_path) as runner:
        assert not runner.is_completed("k")
    assert check("j", tmp_path).lost == ()
    repair("j", tmp_path)
    compact("j", tmp_path)
    assert [parse(line).key for line in lines_of(tmp_path)] == ["a", "b", "b"], "the last record, and what forgets it"


BY_HAND = b'{"key": "1", "result": "by hand"}'
FORGETS = b'{"key":1,"forgotten":true}'
SPOILT = record(1, "new").replace(b"new", b"nEw")


@pytest.mark.parametrize(
    ("lines", "kept", "reason"),
    [
        ([BY_HAND, record(1, "saved")], [1], "a record ends what a line by hand stood for"),
        ([record(1, "saved"), BY_HAND], [0, 1], "the one stands for 1, the other for '1'"),
        ([BY_HAND, record(1, "saved"), BY_HAND], [1, 2], "by hand again"),
        ([BY_HAND, BY_HAND], [1], "the last one counts"),
        ([BY_HAND, FORGETS, record(2, 2)], [2], "forgotten, and gone"),
        ([BY_HAND, FORGETS], [0, 1], "forgotten; but it is the last record"),
        ([BY_HAND, record("1", "saved"), FORGETS], [1], "what forgets another key is gone with it"),
        ([record(True, "saved"), record(1, "again")], [1], "equal keys"),
        ([BY_HAND, record(True, "x"), record(2, 2)], [0, 1, 2], "equal keys, another text"),
        ([BY_HAND, SPOILT, record(2, 2)], [0, 1, 2], "only a damaged line ends it"),
        ([BY_HAND, FORGETS, SPOILT, record(2, 2)], [0, 1, 2, 3], "what forgets stays with damage"),
        ([SPOILT, record(True, "x"), record(1, "y"), BY_HAND], [0, 2, 3], "damage before it all"),
        ([BY_HAND, b'{"key": "1", "sesult": 1}', record(2, 2)], [0, 1, 2], "a line by hand that has no result"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lines_by_hand_and_records_are_told_apart(
    tmp_path: Path, lines: list[bytes], kept: list[int], reason: str
) -> None:
    """A line without checksum stands for any key of equal str(); one with it matches exactly, and wins."""
    journal_of(tmp_path).write_bytes(b"\n".join(lines) + b"\n")
    before, told = seen(tmp_path), check("j", tmp_path)
    done = compact("j", tmp_path)
    assert lines_of(tmp_path) == [lines[place] + b"\n" for place in kept]
    assert seen(tmp_path) == before
    assert done.lines == told.results.superseded[0] == len(lines) - len(kept)
    repair("j", tmp_path)
    assert check("j", tmp_path).versions == told.versions
    results = before["results "]
    assert seen(tmp_path)["results "] == (results[0], [None if each == "damaged" else each for each in results[1]])


def test_a_record_that_only_a_damaged_line_supersedes_stays(tmp_path: Path) -> None:
    """Nothing intact is given up for what nobody can read."""
    fill(tmp_path, ("a", "old"), ("a", "new"), ("b", 1), ("b", 2))
    journal_of(tmp_path).write_bytes(journal_of(tmp_path).read_bytes().replace(b'"new"', b'"nEw"'))
    lines = lines_of(tmp_path)
    compact("j", tmp_path)
    assert lines_of(tmp_path) == [lines[0], lines[1], lines[3]]


@pytest.mark.slow
def test_everyone_who_has_it_open_sees_the_same_afterwards(make: Opener, tmp_path: Path, other: Other) -> None:
    """Runners of this process and of others, and results that were made before; and all go on."""
    square = checkpointed("j", checkpoint_dir=tmp_path)(lambda n: n * n)
    results = square.map(range(50), progress=False)
    square.clear(range(10))
    again = square.map(range(10), progress=False)
    runner = make(version=None)
    expected = runner.get_all_results()
    assert other.ask("sorted(runner.get_all_results()) == list(range(50))") == "True"
    half_read = iter(square.results.items())
    begun = [next(half_read) for _ in range(5)]
    assert compact("j", tmp_path).lines == 20
    assert results == [n * n for n in range(50)]
    assert again == [n * n for n in range(10)]
    assert results[-1] == 49 * 49
    assert dict(begun + list(half_read)) == expected
    assert runner.get_all_results() == expected
    assert [*square.map(range(52), progress=False)] == [n * n for n in range(52)]
    assert other.ask("sorted(runner.get_all_results()) == list(range(52))") == "True"
    assert other.ask("runner.save_result(52, 'theirs')") == "None"
    assert runner.get_result(52) == "theirs"


@pytest.mark.slow
def test_who_reads_meanwhile_never_finds_a_wrong_value_or_none(tmp_path: Path) -> None:
    """Threads that look up while journals are replaced under them, in this process, by this and by another one."""
    code = "import sys; from checkpoint.maintenance.compact import compact; compact('j', sys.argv[1])"
    with CheckpointedRunner("j", tmp_path) as runner:
        stop, wrong = threading.Event(), []

        def look() -> None:
            while not stop.is_set():
                for key in range(0, 300, 7):
                    done, value = runner.is_completed(key), runner.get_result(key)
                    if not done or value not in (f"{key} old", f"{key} new"):
                        wrong.append((key, done, value))

        for key in range(300):
            runner.save_result(key, f"{key} old")
        readers = [threading.Thread(target=look) for _ in range(3)]
        for reader in readers:
            reader.start()
        try:
            for number in range(8):
                for key in range(number, 300, 8):
                    runner.save_result(key, f"{key} new")
                if number % 4 == 3:
                    list(runner.iterate([]))  # a pass that ends lets go of the lock
                    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
                else:
                    assert compact("j", tmp_path).lines > 0
        finally:
            stop.set()
            for reader in readers:
                reader.join()
        assert wrong == []


def test_an_index_file_that_was_being_written_meanwhile_is_not_left_behind(
    make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the journal that was replaced, and its places are those of other lines."""
    runner = make()
    for key in range(100):
        runner.save_result(key % 50, key)
    ready, go = threading.Event(), threading.Event()
    replace = os.replace

    def slow(source: Any, target: Any) -> None:
        if str(target).endswith(".index"):
            ready.set()
            assert go.wait(30)
        replace(source, target)

    monkeypatch.setattr(os, "replace", slow)
    writing = threading.Thread(target=runner.records.store.own.results.write_index)
    writing.start()
    assert ready.wait(30)
    compact("j", tmp_path)
    go.set()
    writing.join()
    assert not (tmp_path / ".j_results.index").exists()
    assert runner.get_all_results() == {key: key + 50 for key in range(50)}


def test_an_index_file_is_gone_before_its_journal_is(
    make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its name is gone from the directory for good: no crash leaves the index of another journal."""
    runner = make()
    for key in (1, 2, 1):
        runner.save_result(key, key)
    runner.records.store.own.results.write_index()
    runner.close()
    calls: list[str] = []
    kept = {name: getattr(os, name) for name in ("replace", "unlink", "fsync")}

    def noted(name: str) -> Callable[..., Any]:
        def call(target: Any, *rest: Any) -> Any:
            calls.append(name if isinstance(target, int) else f"{name} {Path(target).name}")
            return kept[name](target, *rest)

        return call

    for name in kept:
        monkeypatch.setattr(os, name, noted(name))
    compact("j", tmp_path)
    (moved,) = [place for place, call in enumerate(calls) if re.fullmatch(rf"replace {TEMPORARY}", call)]
    assert "unlink .j_results.index" in calls[:moved]
    assert "fsync" in calls[calls.index("unlink .j_results.index") : moved]
    assert "fsync" in calls[moved:]


@pytest.mark.promise("symlinks, permissions")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
def test_permissions_and_owner_are_kept(tmp_path: Path, mode: int) -> None:
    """Those of the journal, whatever the umask; and nobody else may read the copy while it is made."""
    fill(tmp_path, ("a", 1), ("a", 2))
    journal_of(tmp_path).chmod(mode)
    if os.geteuid() == 0:
        os.chown(journal_of(tmp_path), 12345, 54321)
    before = journal_of(tmp_path).stat()
    old = os.umask(0o027)
    try:
        assert compact("j", tmp_path).lines == 1
    finally:
        os.umask(old)
    after = journal_of(tmp_path).stat()
    assert after.st_ino != before.st_ino
    assert (stat.S_IMODE(after.st_mode), after.st_uid, after.st_gid) == (mode, before.st_uid, before.st_gid)


@pytest.mark.promise("symlinks, permissions")
def test_nobody_can_guess_the_name_of_a_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is another one each time, and made only where there is none."""
    fill(tmp_path, ("a", 1), ("a", 2))
    opened: list[tuple[str, int]] = []
    kept = os.open

    def noted(path: Any, flags: int, *rest: Any) -> int:
        opened.append((str(path), flags))
        return kept(path, flags, *rest)

    monkeypatch.setattr(os, "open", noted)
    compact("j", tmp_path)
    fill(tmp_path, ("a", 3))
    compact("j", tmp_path)
    made = [(Path(path).name, flags) for path, flags in opened if re.fullmatch(TEMPORARY, Path(path).name)]
    assert len({name for name, _ in made}) == len(made) == 2
    assert all(flags & os.O_EXCL and flags & os.O_CREAT for _, flags in made)


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs rights there")
def test_a_journal_that_is_a_link_is_refused(tmp_path: Path, make: Opener) -> None:
    """Replacing it would leave the file it leads to behind."""
    fill(tmp_path, ("a", 1), ("a", 2))
    (tmp_path / "elsewhere").mkdir()
    journal_of(tmp_path).rename(tmp_path / "elsewhere" / "results")
    journal_of(tmp_path).symlink_to(tmp_path / "elsewhere" / "results")
    with pytest.raises(StoreError, match="put the file that it leads to in its place") as refused:
        compact("j", tmp_path)
    assert (refused.value.errno, refused.value.filename) == (errno.ELOOP, str(journal_of(tmp_path)))
    assert journal_of(tmp_path).is_symlink()
    assert make().get_all_results() == {"a": 2}


def test_what_killed_processes_left_is_deleted(tmp_path: Path) -> None:
    """Temporaries of this checkpoint, and of no other; also where there is nothing else to do."""
    fill(tmp_path, ("a", 1))
    ours = {
        ".j_results.tmp", ".j_unsaved.4194999.0a1b.tmp", ".j_meta.4194999.tmp", ".j_results.index.4194999.tmp",
        ".j_errors.pull.tmp", ".j_errors.pull.4194999.0a1b.tmp", ".j_results.first.pull.4194999.0a1b.tmp",
    }  # fmt: skip
    kept = {
        ".jj_results.tmp",
        ".j_results.tmp2",
        ".j_meta.x.tmp",
        f".j_results.index.{os.getpid()}.tmp",
        f".j_results.{os.getpid()}.0a1b.tmp",
        "j_results.tmp",
    }
    for name in ours | kept:
        (tmp_path / name).write_bytes(b"12345")
    assert {Path(path).name for path, _ in check("j", tmp_path).leftovers} == ours
    assert "to free 35 bytes (temporary files): checkpoint compact j" in str(check("j", tmp_path))
    done = compact("j", tmp_path)
    assert "deleted 7 temporary files of a killed process (35 bytes)" in str(done)
    there = {path.name for path in tmp_path.iterdir()}
    assert not there & ours
    assert there >= kept


FULL = """
import errno, resource, sys
from pathlib import Path
from checkpoint import CheckpointedRunner, StoreError
from checkpoint.maintenance.{work} import {work} as work
directory = Path(sys.argv[1])
with CheckpointedRunner("j", directory) as runner:
    expected = runner.get_all_results()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    before = {{file.name: file.read_bytes() for file in directory.glob("*.jsonl")}}
    try:
        work("j", directory)
        raise SystemExit("it should have failed")
    except StoreError as error:
        assert isinstance(error, OSError)
        assert (error.errno, error.filename) == (errno.EFBIG, str(directory / {filename!r})), error.filename
        assert {told!r} in str(error), error
    assert not list(directory.glob(".*.tmp"))
    assert {{file.name: file.read_bytes() for file in directory.glob("*.jsonl")}} == before
    assert runner.get_all_results() == expected
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    work("j", directory)
    assert runner.get_all_results() == expected
    runner.save_result("more", 1)
"""


@pytest.mark.slow
@pytest.mark.promise("disk full, quota, file-size limit")
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files there")
@pytest.mark.parametrize(
    ("work", "damage", "filename", "told"),
    [
        ("compact", 0, "j_results.jsonl", "the journal is as it was"),
        ("repair", 100, "j_results.jsonl", "the journal is as it was"),
        ("repair", 60_000, ".j_results.aside", "cannot set damaged lines aside"),
    ],
    ids=["compact", "repair", "repair, the bytes aside"],
)
def test_a_full_disk_leaves_the_journals_as_they_were(
    tmp_path: Path, work: str, damage: int, filename: str, told: str
) -> None:
    """An own error that is the OSError; no temporary is left; with room again the same process goes on."""
    fill(tmp_path, *[(key, "x" * 1000) for key in range(100)], *[(key, "y" * 1000) for key in range(10)])
    if damage:
        with journal_of(tmp_path).open("ab") as file:
            file.write(b"!" * damage + b"\n")
    code = FULL.format(work=work, filename=filename, told=told)
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert check("j", tmp_path).is_sound
    if damage > 1000:
        assert [piece for _, piece in pieces_aside(tmp_path)] == [b"!" * damage + b"\n"]
        assert (tmp_path / ".j_results.aside").read_bytes().count(b"\n") == 1, "what did not fit was cut off again"


DEADLY = """
import itertools, os, shutil, signal, sys
from pathlib import Path
from checkpoint.maintenance import compact, repair

def deadly(function, n, half):
    def call(*args, **options):
        if next(calls) == n:  # one thread at a time: another one tends the store
            try:
                if half and function is write:
                    write(args[0], bytes(args[1])[: len(args[1]) // 2])
                elif half:
                    function(*args, **options)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **options)
    return call

root, work = Path(sys.argv[1]), vars({"compact": compact, "repair": repair}[sys.argv[2]])[sys.argv[2]]
half = sys.argv[3] == "half"
write = os.write
names = ("open", "write", "fdatasync", "fsync", "replace", "unlink", "ftruncate", "fchmod", "fchown", "close")
n = 0
while True:
    n += 1
    copy = root / f"{n}"
    shutil.copytree(root / "original", copy)
    child = os.fork()
    if child == 0:
        calls = itertools.count(1)
        for name in names:
            setattr(os, name, deadly(getattr(os, name), n, half))
        work("j", copy)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
print(n)
"""


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C", "a crash during recovery")
@pytest.mark.skipif(sys.platform == "win32", reason="no fork and no SIGKILL there")
@pytest.mark.parametrize("half", ["before", "half"], ids=["before the call", "half-way through it, or after it"])
@pytest.mark.parametrize("work", [compact, repair])
def test_a_kill_at_any_step_loses_nothing_and_it_can_be_run_again(
    tmp_path: Path, work: Callable[..., Any], half: str, free_sync: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Real SIGKILLs at each call to the system: the checkpoint opens with everything, the next run ends the work, and
    damaged bytes are in the journal or set aside.
    """
    original = tmp_path / "original"
    fill(original, ("a", 1), ("b", 2), ("a", 3), version="one")
    with CheckpointedRunner("j", original, version="two") as runner:
        runner.save_result("a", "x" * 3000)
        runner.save_error("e", "boom")
        runner.save_error("e", "boom again")
        runner.clear(["a"])
        runner.records.store.own.results.write_index()
    with journal_of(original).open("ab") as file:
        file.write(b"damaged\n" + record("b", 9, version_digest("one", "")).replace(b"9", b"8") + b"\ntorn")
    with journal_of(original, "errors").open("ab") as file:
        file.write(b"damaged too\n")
    caplog.set_level(logging.CRITICAL)
    before = seen(original)
    finished = tmp_path / "finished"
    shutil.copytree(original, finished)
    work("j", finished)
    after = seen(finished)
    command = [sys.executable, "-c", DEADLY, str(tmp_path), work.__name__, half]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    steps = int(ran.stdout)
    assert steps > 30
    for n in range(1, steps + 1):
        copy = tmp_path / f"{n}"
        assert seen(copy) in (before, after, *half_way(before, after)), n
        for piece in (b"damaged\n", b'"result":8', b"torn"):
            held = journal_of(copy).read_bytes(), *[piece for _, piece in pieces_aside(copy)]
            assert any(piece in part for part in held), n
        work("j", copy)
        assert seen(copy) == after, n
        compact("j", copy)
        assert not list(copy.glob(".*.tmp")), n
        if work is repair:
            assert check("j", copy).is_sound, n
    assert seen(tmp_path / f"{steps}") == after


def half_way(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """What is seen when the results are done and the errors are not."""
    return [{**before, **{name: value for name, value in after.items() if name.startswith("results")}}]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage there")
def test_memory_grows_with_keys_and_not_with_lines_or_values(tmp_path: Path) -> None:
    """100,000 lines of 1 KB, of 1,000 keys: all are read, verified and compacted within 30 MB."""
    value = "x" * 1000
    with journal_of(tmp_path).open("wb") as file:
        for number in range(100_000):
            file.write(record(number % 1000, f"{number}{value}") + b"\n")
    code = """
import resource, sys
from checkpoint.maintenance.check import check; from checkpoint.maintenance.compact import compact
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
start = peak()
found = check("j", sys.argv[1])
assert found.is_sound and found.results.superseded[0] == 99_000
assert compact("j", sys.argv[1]).lines == 99_000
assert check("j", sys.argv[1]).results.lines == 1000
assert peak() - start < 30 << 20, peak() - start
"""
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stderr) == (0, "")
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.get_result(7) == f"99007{value}"


# --- whatever happened before ---------------------------------------------------------------------------------------

KEYS: tuple[Key, ...] = (1, "1", 1.5, ("a", 1), None, "k")
VERSIONS = (None, "one", {"two": 2})


def seen_in(store: Store) -> dict[str, Any]:
    """All that a reader can find, by journal and version: the sound records in order, and what a look-up gives."""
    found: dict[str, Any] = {"latest": latest_of(store.own.results, store.own.errors)}
    shelves: dict[str, KeyedLog] = {
        "results": store.own.results,
        "errors": store.own.errors,
        "unsaved": store.own.unsaved,
    }
    for kind, shelf in shelves.items():
        found[f"{kind} latest"] = shelf.index.latest
        for version in ("", *[version_digest(version, "") for version in VERSIONS if version is not None]):
            spoilt = is_spoilt if kind == "results" else lambda _: False
            sound = [(key, *parts_of(each)) for key, each in shelf.sound(version) if not spoilt(each)]
            found[f"{kind} {version}"] = sound, [look_up(shelf, version, key, spoilt) for key in KEYS]
    return found


def seen(directory: Path) -> dict[str, Any]:
    """The same, by somebody who opens it now."""
    store = Store("j", directory)
    try:
        return seen_in(store)
    finally:
        store.close()


def look_up(shelf: KeyedLog, version: str, key: Key, spoilt: Callable[[Record], bool]) -> Any:
    """What a reader finds for a key."""
    try:
        found = shelf.read(version, key)
    except DamagedRecord:
        return "damaged"
    if found is None:
        return None
    return "damaged" if spoilt(found[2]) else parts_of(found[2])


def parts_of(record: Record) -> tuple[bytes, str | None, str | None]:
    """What a record holds."""
    return bytes(record.result), record.error, record.pickle


def is_spoilt(record: Record) -> bool:
    """Whether it has no checksum and no result that can be decoded."""
    try:
        return not record.crc and decode_foreign(bytes(record.result)) is ...
    except ValueError:
        return True


class Upkeep(RuleBasedStateMachine):
    """Saves, errors, clears, versions, lines written by hand, and damage; then upkeep, which nobody notices."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="checkpoint-upkeep-"))

    @initialize()
    def open(self) -> None:
        self.runners = [CheckpointedRunner("j", self.directory, version=version) for version in VERSIONS]

    def close(self) -> None:
        for runner in self.runners:
            runner.close()

    def teardown(self) -> None:
        self.close()
        shutil.rmtree(self.directory)

    @rule(which=st.integers(0, 2), key=st.sampled_from(KEYS), value=st.integers(0, 3))
    def save(self, which: int, key: Key, value: int) -> None:
        self.runners[which].save_result(key, {"value": value, "key": 1})

    @rule(which=st.integers(0, 2), key=st.sampled_from(KEYS))
    def save_error(self, which: int, key: Key) -> None:
        self.runners[which].save_error(key, "boom")

    @rule(which=st.integers(0, 2), key=st.sampled_from(KEYS))
    def keep_aside(self, which: int, key: Key) -> None:
        with pytest.raises(TypeError):
            self.runners[which].save_result(key, object())

    @rule(which=st.integers(0, 2), keys=st.lists(st.sampled_from(KEYS), max_size=3))
    def clear(self, which: int, keys: list[Key]) -> None:
        self.runners[which].clear(keys)

    @rule(kind=st.sampled_from(["results", "errors"]), key=st.sampled_from(["1", "1.5", "k", "None"]))
    def write_by_hand(self, kind: str, key: str) -> None:
        self.close()
        with journal_of(self.directory, kind).open("ab") as file:
            file.write(json.dumps({"key": key, "result" if kind == "results" else "error": "by hand"}).encode() + b"\n")
        self.open()

    @rule(kind=st.sampled_from(["results", "errors", "unsaved"]), place=st.floats(0, 0.999), bit=st.integers(0, 7))
    def flip(self, kind: str, place: float, bit: int) -> None:
        self.close()
        path = journal_of(self.directory, kind)
        if path.exists() and (data := bytearray(path.read_bytes())):
            data[int(place * len(data))] ^= 1 << bit
            before = path.read_bytes()
            path.write_bytes(data)
            if any(journal.fault for journal in check("j", self.directory).journals):
                path.write_bytes(before)  # with so much damage it is no journal
            self._unlink_indexes()
        self.open()

    def _unlink_indexes(self) -> None:
        for index in self.directory.glob(".*.index"):
            index.unlink()

    @rule()
    def write_index(self) -> None:
        self.runners[0].records.open()
        store = self.runners[0].records.store
        for shelf in (store.own.results, store.own.errors):
            shelf.write_index()

    @rule()
    def compact(self) -> None:
        if not any(self.directory.iterdir()):
            return
        store = self.runners[0].records.store
        told = check("j", self.directory)
        store.writer.begin()  # what ends in a torn line is repaired here, and not by what is tested
        before, here = seen(self.directory), seen_in(store)
        assert here == before
        done = compact("j", self.directory)
        self.runners[0].records.checkpoint.refresh()
        assert seen(self.directory) == before
        assert seen_in(store) == before
        assert done.lines == sum(journal.superseded[0] for journal in told.journals)
        files = {path.name: path.read_bytes() for path in self.directory.glob("*.jsonl")}
        assert compact("j", self.directory).lines == 0
        assert {path.name: path.read_bytes() for path in self.directory.glob("*.jsonl")} == files
        after = check("j", self.directory)
        assert [journal.superseded for journal in after.journals] == [(0, 0)] * 3
        assert [len(journal.damage) for journal in after.journals] == [len(journal.damage) for journal in told.journals]
        assert after.versions == told.versions

    @rule()
    def repair(self) -> None:
        if not any(self.directory.iterdir()):
            return
        store = self.runners[0].records.store
        store.writer.begin()
        told, before = check("j", self.directory), seen(self.directory)
        repair("j", self.directory)
        after = seen(self.directory)
        assert check("j", self.directory).is_sound
        for name, value in before.items():
            if name.endswith("latest"):
                continue  # of lines by hand, one that proves unreadable may have been the last
            (sound, found), (sound_after, found_after) = value, after[name]
            assert sound_after == sound
            for key, old, new in zip(KEYS, found, found_after, strict=True):
                by_hand = new is not None and (str(key), *new) in sound  # a later line stands for the key, too
                assert new == old or (old == "damaged" and (new is None or by_hand))
        assert check("j", self.directory).versions == told.versions


@pytest.mark.parametrize("kind", ["results", "errors", "unsaved"])
def test_repair_knows_that_a_torn_end_was_all_there_was(tmp_path: Path, kind: str) -> None:
    """The newline of the only line flips: what repair has set aside is not missed by meta."""
    with CheckpointedRunner("j", tmp_path) as runner:
        if kind == "results":
            runner.save_result("a", 1)
        else:
            with contextlib.suppress(TypeError):
                runner.save_error("a", "failed") if kind == "errors" else runner.save_result("a", object())
    path = journal_of(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")
    repair("j", tmp_path)
    assert check("j", tmp_path).is_sound
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result("a", 2)
    assert check("j", tmp_path).is_sound


@pytest.fixture
def quiet() -> Iterator[None]:
    """Damage is not logged: thousands of damaged lines are made on purpose."""
    log = logging.getLogger("checkpoint")
    log.setLevel(logging.CRITICAL)
    yield
    log.setLevel(logging.NOTSET)


TestUpkeep = pytest.mark.slow(pytest.mark.usefixtures("free_sync", "quiet")(Upkeep.TestCase))
TestUpkeep.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
