"""The laws of a store: what is acknowledged is there, whatever interrupts it, and whoever touches its files."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint import (
    CheckpointedRunner,
    CheckpointError,
    DamagedRecord,
    InvalidName,
    JournalLost,
    StoreClosed,
    StoreError,
    checkpointed,
)
from checkpoint.storage.index import Index
from checkpoint.storage.record import parse

Opener = Callable[..., CheckpointedRunner]


def journal_of(directory: Path) -> Path:
    """The journal of the results."""
    return directory / "j_results.jsonl"


# --- meta -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "missing"),
        (b"", "empty: a power cut"),
        (bytes(300), "zeros: a power cut"),
        (b"{", "torn"),
        (b"\xff\xfe", "no UTF-8"),
        (b"[" * 100_000, "deeper than Python reads"),
        (b"9" * 5000, "an int that Python refuses"),
        (b"null", "no object"),
        (b"[1, 2]", "a list"),
        (b'{"total_items": "many", "versions": [1], "started_at": {}}', "wrong types"),
        (b'{"total_items": -1, "versions": {"x": NaN}, "completed_items": 1e999}', "wrong values"),
        (b'{"total_items": true, "schema_version": 7, "experiment_name": null}', "a bool that is an int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_meta_is_rebuilt_and_never_believed(make: Opener, tmp_path: Path, text: bytes | None, reason: str) -> None:
    """No content of meta stops a resume or changes a result; the next writer writes it anew."""
    for key in (runner := make(version="v")).iterate(range(5)):
        runner.save_result(key, key)
    runner.close()
    meta = tmp_path / "j_meta.json"
    meta.unlink() if text is None else meta.write_bytes(text)
    runner = make()
    assert runner.get_all_results() == {key: key for key in range(5)}
    assert runner.progress()[0] == 5
    for key in runner.iterate(range(7)):
        runner.save_result(key, key)
    runner.close()
    told = json.loads(meta.read_bytes())
    assert (told["experiment_name"], told["completed_items"], told["failed_items"]) == ("j", 7, 0)
    assert (told["total_items"], told["schema_version"]) == (7, "2.0.0")
    assert told["last_updated"] >= told["started_at"] if isinstance(told["started_at"], str) else True


def test_meta_tells_people_how_far_it_is(make: Opener, tmp_path: Path, ticker: Any) -> None:
    """It is written when a pass begins and ends, and every 30 seconds in between, replaced whole each time."""
    runner = make(version={"model": "m"})
    meta = tmp_path / "j_meta.json"
    running = runner.iterate(range(10))
    next(running)
    assert json.loads(meta.read_bytes())["total_items"] == 10
    before = meta.stat().st_ino
    runner.save_result(0, 0)
    runner.save_error(1, "failed")
    ticker.tick(31)
    runner.records.store.writer.tend()
    told = json.loads(meta.read_bytes())
    assert (told["completed_items"], told["failed_items"]) == (1, 1)
    assert list(told["versions"].values()) == [{"model": "m"}]
    assert meta.stat().st_ino != before, "replaced, never written into"
    assert not list(tmp_path.glob(".*.tmp"))


def test_meta_tells_the_total_of_the_pass_that_runs(make: Opener, tmp_path: Path) -> None:
    """And not that of the one before: who looks on in another terminal would take the job for done."""
    for total in (3, 9, 5):
        with make() as runner:
            for item in runner.iterate(range(total)):
                runner.save_result(item, item)
            runner.clear([0])  # so that there is something to do
        runner = make()
        running = runner.iterate(range(total + 1))
        runner.save_result(next(running), 0)
        assert json.loads((tmp_path / "j_meta.json").read_bytes())["total_items"] == total + 1
        runner.close()


@pytest.mark.slow
def test_a_reader_of_meta_never_sees_half_of_it(make: Opener, tmp_path: Path) -> None:
    """Two threads that write it at once leave it whole at every moment."""
    runner = make()
    runner.save_result(1, "x")
    store = runner.records.store
    done = threading.Event()

    def write() -> None:
        for _ in range(60):
            store.writer.write_meta()

    threads = [threading.Thread(target=write) for _ in range(3)]

    def read() -> None:
        while not done.is_set():
            json.loads((tmp_path / "j_meta.json").read_bytes())

    reader = threading.Thread(target=read)
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    assert json.loads((tmp_path / "j_meta.json").read_bytes())["completed_items"] == 1


@pytest.mark.promise("symlinks, permissions")
def test_meta_never_follows_a_link(make: Opener, tmp_path: Path) -> None:
    """Its temporary file is ours; a link planted there has nothing overwritten, and saving goes on."""
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / f".j_meta.{os.getpid()}.tmp").symlink_to(target)
    runner = make()
    runner.save_result(1, 1)
    runner.close()
    assert target.read_text() == "precious"
    assert make().get_result(1) == 1


@pytest.mark.promise("damaged line in the middle")
def test_damaged_errors_stop_nothing(make: Opener, tmp_path: Path) -> None:
    """A damaged line in the errors journal: passes begin, results are saved, meta is written, the others are listed."""
    runner = make()
    for key in range(4):
        runner.save_error(key, f"failed {key}")
    runner.save_result(9, 9)
    runner.close()
    errors = tmp_path / "j_errors.jsonl"
    errors.write_bytes(errors.read_bytes().replace(b"failed 2", b"failed !"))
    runner = make()
    for key in runner.iterate(range(4)):
        if key != 2:
            runner.save_result(key, key)
    assert runner.records.store.writer.tend() in (True, False)
    runner.close()
    assert json.loads((tmp_path / "j_meta.json").read_bytes())["completed_items"] == 4
    assert make().get_all_results() == {9: 9, 0: 0, 1: 1, 3: 3}


def test_a_damaged_error_is_told_once_and_the_others_are_listed(make: Opener, tmp_path: Path) -> None:
    """It raises as a damaged result does, and is not an error any more from then on."""
    runner = make()
    for key in range(3):
        runner.save_error(key, f"failed {key}")
    runner.close()
    errors = tmp_path / "j_errors.jsonl"
    errors.write_bytes(errors.read_bytes().replace(b"failed 1", b"failed !"))
    runner = make()
    with pytest.raises(DamagedRecord) as damaged:
        runner.get_all_errors()
    assert (damaged.value.path, damaged.value.line, damaged.value.key) == (str(errors), 2, 1)
    for _ in range(2):
        assert runner.get_all_errors() == {0: "failed 0", 2: "failed 2"}
        runner.close()
        runner = make()


# --- files that others touch ----------------------------------------------------------------------------------------


@pytest.mark.promise("journal deleted, replaced or truncated while open")
def test_a_journal_that_is_cut_while_open_is_noticed_at_the_next_save(
    make: Opener, tmp_path: Path, ticker: Any
) -> None:
    """At any length: the keys at risk are listed, and the file is left as it was found."""
    for size in (0, 1, 100, 250, -2, -150):
        directory = tmp_path / str(size)
        runner = make(directory=directory)
        for key in "abcd":
            runner.save_result(key, key * 30)
        data = journal_of(directory).read_bytes()
        os.truncate(journal_of(directory), size % len(data))
        cut = journal_of(directory).read_bytes()
        gone = list("abcd")[cut.count(b"\n") :]
        with pytest.raises(JournalLost) as lost:
            runner.save_result("e", "e")
        assert lost.value.keys == gone
        assert (lost.value.filename, lost.value.unsaved) == (str(journal_of(directory)), {"e": "e"})
        assert journal_of(directory).read_bytes() == cut, "nothing of ours is left in it"
        with pytest.raises(JournalLost):
            runner.save_result("f", "f")
        assert list(runner.iterate(list("abcde"))) == [*gone, "e"], "the next pass starts anew"
        for key in runner.iterate(list("abcde")):
            runner.save_result(key, key * 30)
        assert runner.get_all_results() == {key: key * 30 for key in "abcde"}


def test_the_keys_at_risk_include_a_record_of_megabytes(make: Opener, tmp_path: Path, ticker: Any) -> None:
    """A cut in the middle of a long record loses that record."""
    runner = make()
    runner.save_result("small", 1)
    runner.save_result("giant", "x" * (5 << 20))
    os.truncate(journal_of(tmp_path), 4 << 20)
    with pytest.raises(JournalLost) as lost:
        runner.save_result("next", 1)
    assert lost.value.keys == ["giant"]


@pytest.mark.promise("journal deleted, replaced or truncated while open")
def test_the_keys_at_risk_include_those_that_only_the_index_file_holds(
    make: Opener, tmp_path: Path, ticker: Any
) -> None:
    """What was saved before this process began, less what it has saved anew and lies before the cut."""
    runner = make()
    for key in range(100):
        runner.save_result(key, key)
    runner.records.store.own.results.write_index()
    runner.close()
    runner = make()
    runner.save_result("x", 1)
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    os.truncate(journal_of(tmp_path), len(b"".join(lines[:60])))
    with pytest.raises(JournalLost) as lost:
        runner.save_result("y", 1)
    assert lost.value.keys == ["x", *range(60, 100)]


def _delete(path: Path) -> None:
    path.unlink()


def _delete_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def _replace_by_copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    os.replace(path.with_name("copy"), path)


def _replace_by_nothing(path: Path) -> None:
    path.with_name("empty").touch()
    os.replace(path.with_name("empty"), path)


def _rename(path: Path) -> None:
    path.rename(path.with_name("moved"))


@pytest.mark.promise("journal deleted, replaced or truncated while open")
@pytest.mark.parametrize(
    ("change", "word", "reason"),
    [
        (_delete, "deleted", "rm"),
        (_delete_directory, "deleted", "rm -r"),
        (_rename, "deleted", "mv"),
        (_replace_by_copy, "replaced", "sed -i, an editor, rsync: the same lines in another file"),
        (_replace_by_nothing, "replaced", "an empty file of that name"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_journal_that_is_deleted_or_replaced_is_noticed_within_a_second(
    make: Opener, tmp_path: Path, ticker: Any, change: Callable[[Path], None], word: str, reason: str
) -> None:
    """The error lists every key in the lost file; nothing more is written to a file that nobody will find."""
    directory = tmp_path / "checkpoints"
    runner = make(directory=directory)
    runner.save_result("a", 1)
    reader = runner.records.store.own.results.journal.reader
    assert reader is not None
    change(journal_of(directory))
    size = reader.size()
    ticker.tick(1.0)
    with pytest.raises(JournalLost) as lost:
        runner.save_result("b", 2)
    assert lost.value.keys == ["a"]
    assert word in str(lost.value)
    assert "'a'" in str(lost.value)
    with pytest.raises(JournalLost):
        runner.save_error("b", "failed")
    assert reader.size() == size
    for key in runner.iterate(list("ab")):
        runner.save_result(key, 3)
    runner.close()
    with CheckpointedRunner("j", directory) as again:
        assert again.get_all_results().keys() == {"a", "b"}


@pytest.mark.promise("journal deleted, replaced or truncated while open")
def test_what_was_saved_within_the_second_is_among_the_keys_at_risk(make: Opener, tmp_path: Path, ticker: Any) -> None:
    """Up to a second of records may go into the lost file: every one of them is listed."""
    runner = make()
    runner.save_result("before", 1)
    journal_of(tmp_path).unlink()
    ticker.tick(0.99)
    runner.save_result("after", 2)
    ticker.tick(0.02)
    with pytest.raises(JournalLost) as lost:
        runner.save_result("later", 3)
    assert lost.value.keys == ["before", "after"]


def test_lines_that_another_program_appends_do_no_harm(make: Opener, tmp_path: Path) -> None:
    """`echo >> results.jsonl` while a pass runs: its lines count, and so do ours around them."""
    runner = make()
    for turn in range(3):
        runner.save_result(turn, "ours")
        with open(journal_of(tmp_path), "a") as other:
            other.write(json.dumps({"key": f"theirs {turn}", "result": turn}) + "\n")
    runner.save_result(3, "ours")
    expected: dict[Any, Any] = dict.fromkeys(range(4), "ours")
    expected.update({f"theirs {turn}": turn for turn in range(3)})
    assert runner.get_all_results() == expected
    runner.close()
    assert make().get_all_results() == expected


@pytest.mark.promise("torn tail")
def test_a_torn_line_of_another_program_takes_none_of_ours_with_it(make: Opener, tmp_path: Path, ticker: Any) -> None:
    """Gluing our record to it would damage both: the save fails, and the next pass sets the torn line aside."""
    runner = make()
    runner.save_result("a", 1)
    with open(journal_of(tmp_path), "a") as other:
        other.write('{"key": "torn')
    with pytest.raises(JournalLost):
        runner.save_result("b", 2)
    assert journal_of(tmp_path).read_bytes().endswith(b'{"key": "torn')
    for key in runner.iterate(list("ab")):
        runner.save_result(key, 2)
    assert runner.get_all_results() == {"a": 1, "b": 2}


def test_clearing_works_after_the_files_are_gone(make: Opener, tmp_path: Path, ticker: Any) -> None:
    """Whoever deletes the files and then clears has what he asked for, at the second call at the latest."""
    runner = make()
    runner.save_result("a", 1)
    journal_of(tmp_path).unlink()
    ticker.tick(2)
    with pytest.raises(JournalLost):
        runner.clear()
    runner.clear()
    assert runner.get_all_results() == {}
    runner.save_result("b", 2)
    assert runner.get_all_results() == {"b": 2}


# --- names and permissions ------------------------------------------------------------------------------------------


@pytest.mark.promise("hostile names")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "nothing"),
        (".", "the directory itself"),
        ("..", "the one above"),
        (".hidden", "our own files begin with a dot"),
        ("../up", "out of the directory"),
        ("a/b", "into another one"),
        ("/etc/passwd", "absolute"),
        ("a\\b", "a separator on Windows"),
        ("C:a", "a drive on Windows"),
        ("a:b", "a stream on Windows"),
        ("a\0b", "ends early in C"),
        ("a\n", "a newline at the end, which a regular expression's $ lets through"),
        ("a\nb", "a newline"),
        (" a", "a space in front, which shells and people lose"),
        ("a*", "a glob"),
        ("a?", "a glob"),
        ("~", "a home directory to a shell"),
        ("$HOME", "a variable to a shell"),
        ("é", "two spellings in Unicode, of which file systems choose one"),
        ("\u202ecod", "right-to-left: looks like another name"),
        ("a" * 201, "longer than file systems take with what is appended"),
        ("\ud800", "no text"),
        (b"bytes", "bytes"),
        (None, "None"),
        (7, "an int"),
        (Path("a"), "a path"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value and len(value) > 3 else "",
)
def test_a_hostile_name_is_refused_before_any_file_is_made(tmp_path: Path, name: Any, reason: str) -> None:
    """InvalidName is a ValueError, names what was given, and leaves nothing behind."""
    directory = tmp_path / "checkpoints"
    with pytest.raises(InvalidName) as refused:
        CheckpointedRunner(name, directory)
    assert isinstance(refused.value, ValueError)
    assert refused.value.name == name
    assert not directory.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "A-b_c.d e", "0", "-", "a" * 200, "a..b", "a.", "con"])
def test_an_ordinary_name_names_the_files(make: Opener, tmp_path: Path, name: str) -> None:
    """Every file of a checkpoint lies in its directory and begins with its name, after a dot or not."""
    runner = make(name)
    runner.save_result(1, 1)
    runner.save_error(2, "failed")
    runner.records.store.own.results.write_index()
    runner.close()
    assert {file.name.lstrip(".")[: len(name)] for file in tmp_path.iterdir()} == {name}
    assert make(name).get_result(1) == 1


def test_nothing_is_made_before_the_first_save(make: Opener, tmp_path: Path) -> None:
    """Who only looks leaves no trace, not even the directory."""
    runner = make(directory=tmp_path / "none")
    assert runner.get_all_results() == {}
    assert not runner.is_completed(1)
    assert runner.get_result(1) is None
    assert runner.get_all_errors() == {}
    assert list(runner.iterate([])) == []
    assert runner.progress() == (0, 0)
    runner.close()
    assert list(tmp_path.iterdir()) == []


def test_after_close_everything_but_closing_is_refused(make: Opener) -> None:
    """StoreClosed says so; closing twice is no error."""
    runner = make()
    runner.save_result(1, 1)
    runner.close()
    runner.close()
    for use in (
        lambda: runner.save_result(1, 1),
        lambda: runner.save_error(1, "failed"),
        lambda: runner.get_all_results(),
        lambda: runner.get_result(1),
        lambda: runner.is_completed(1),
        lambda: runner.clear(),
        lambda: list(runner.iterate([1])),
    ):
        with pytest.raises(StoreClosed):
            use()


@pytest.mark.slow
@pytest.mark.promise("symlinks, permissions")
@pytest.mark.skipif(os.name == "nt", reason="there is no umask")
def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    """What the user's umask says about files holds for each of ours."""
    code = """
import os, sys
from checkpoint import CheckpointedRunner
os.umask(int(sys.argv[2], 8))
with CheckpointedRunner("j", sys.argv[1]) as runner:
    runner.save_result(1, 1)
    runner.save_error(2, "failed")
    try:
        runner.save_result(3, object())
    except TypeError:
        pass
    runner.records.store.own.results.write_index()
with open(os.path.join(sys.argv[1], "j_results.jsonl"), "ab") as file:
    file.write(b"torn")
with CheckpointedRunner("j", sys.argv[1]) as runner:
    runner.save_result(4, 1)
"""
    for umask in (0o077, 0o027, 0o002):
        directory = tmp_path / f"{umask:o}"
        subprocess.run([sys.executable, "-c", code, str(directory), f"{umask:o}"], check=True, timeout=60)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
        modes[".j.lock"] |= (0o666 & ~umask) & 0o044  # who may only read may not open it
        assert {name: oct(mode) for name, mode in modes.items()} == dict.fromkeys(modes, oct(0o666 & ~umask))
        assert len(modes) >= 7
        assert stat.S_IMODE(directory.stat().st_mode) == 0o777 & ~umask


# --- interrupts -----------------------------------------------------------------------------------------------------


def interrupted(real: Callable[..., Any], nth: int, *, after: bool) -> Callable[..., Any]:
    """The function, but for its nth call, which raises KeyboardInterrupt before or after it does its work.

    Only the main thread's calls count: Python raises it nowhere else.
    """
    calls = 0

    def function(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if threading.current_thread() is not threading.main_thread():
            return real(*arguments, **named)
        calls += 1
        if calls == nth and not after:
            raise KeyboardInterrupt
        result = real(*arguments, **named)
        if calls == nth:
            raise KeyboardInterrupt
        return result

    return function


POINTS = [
    pytest.param(os, "write", id="the write"),
    pytest.param(os, "lseek", id="the look at where it went"),
    pytest.param(os, "open", id="an opening"),
    pytest.param(os, "fdatasync", id="a sync"),
    pytest.param(os, "fsync", id="a directory's sync"),
    pytest.param(os, "ftruncate", id="a cut"),
    pytest.param(Index, "add", id="the index learning"),
    pytest.param(Index, "forget", id="the index forgetting"),
    pytest.param(Index, "scan", id="the index scanning"),
]


@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), POINTS)
@pytest.mark.parametrize("durability", ["process", "power"])
def test_an_interrupt_at_any_point_of_a_save_loses_and_spoils_nothing(
    make: Opener, tmp_path: Path, owner: Any, name: str, after: bool, durability: str
) -> None:
    """Ctrl-C anywhere inside: the same runner goes on, all that was acknowledged is there, all lines are whole."""
    for nth in range(1, 9):
        directory = tmp_path / f"{nth}"
        runner = make(directory=directory, durability=durability)
        acknowledged: dict[Any, Any] = {}
        uncertain: dict[Any, Any] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, interrupted(getattr(owner, name), nth, after=after))
            for key in range(6):
                try:
                    if key == 4:
                        runner.clear([1])
                        acknowledged.pop(1, None)
                    runner.save_result(key, [key] * 20)
                    acknowledged[key] = [key] * 20
                except KeyboardInterrupt:
                    uncertain[key] = [key] * 20
                    uncertain[1] = [1] * 20
        runner.save_result("after", 1)
        acknowledged["after"] = 1
        for look in (runner, None):
            if look is None:
                runner.close()
                look = make(directory=directory)
            found = look.get_all_results()
            assert all(found[key] == value for key, value in acknowledged.items() if key not in uncertain)
            assert all(value == (acknowledged | uncertain)[key] for key, value in found.items())
        lines = journal_of(directory).read_bytes().splitlines(keepends=True)
        assert all(parse(line).crc and line.endswith(b"\n") for line in lines)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", ["write", "lseek"])
def test_a_record_that_an_interrupt_left_whole_is_found(make: Opener, tmp_path: Path, name: str, after: bool) -> None:
    """What came to stand in the file counts, as it will after a restart: memory and file never disagree for long."""
    runner = make()
    runner.save_result("first", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, name, interrupted(getattr(os, name), 1, after=after))
        with pytest.raises(KeyboardInterrupt):
            runner.save_result("second", 2)
    runner.save_result("third", 3)
    here = runner.get_all_results()
    runner.close()
    assert make().get_all_results() == here
    assert ("second" in here) == (name == "lseek" or after)


@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
def test_an_interrupt_while_forgetting_never_leaves_a_key_half_forgotten(make: Opener) -> None:
    """Between the record that forgets and the index there is no moment at which the key is done without a value."""
    runner = make()
    runner.save_result("a", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Index, "forget", interrupted(Index.forget, 1, after=False))
        with pytest.raises(KeyboardInterrupt):
            runner.clear(["a"])
    assert runner.get_result("a") in (1, None)
    runner.save_result("b", 2)
    assert runner.get_all_results() == {"b": 2}


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("threads")
def test_threads_share_a_runner(make: Opener, tmp_path: Path) -> None:
    """16 threads × 200 saves, with readers among them: every acknowledged record is whole, and there at once."""
    runner = make()
    failures: list[BaseException] = []
    done = threading.Event()

    def guarded(work: Callable[[], None]) -> threading.Thread:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=run)

    def save(thread: int) -> Callable[[], None]:
        def work() -> None:
            for n in range(200):
                runner.save_result((thread, n), "x" * (n % 50))
                if n % 20 == 0:
                    assert runner.get_result((thread, n)) == "x" * (n % 50)
                    runner.save_error((thread, n, "failed"), "message")

        return work

    def read() -> None:
        while not done.is_set():
            for (_, n), value in runner.get_all_results().items():
                assert value == "x" * (n % 50)
            runner.progress()
            runner.get_all_errors()

    def count() -> None:
        while not done.is_set():
            runner.progress()
            runner.is_completed((1, 1))

    readers = [guarded(read), guarded(count)]
    writers = [guarded(save(thread)) for thread in range(16)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert failures == []
    expected = {(thread, n): "x" * (n % 50) for thread in range(16) for n in range(200)}
    assert runner.get_all_results() == expected
    runner.close()
    lines = journal_of(tmp_path).read_bytes().splitlines(keepends=True)
    assert len(lines) == 3200
    assert all(parse(line).crc for line in lines)
    again = make()
    assert again.get_all_results() == expected
    assert len(again.get_all_errors()) == 160


# --- versions -------------------------------------------------------------------------------------------------------


def test_another_version_is_computed_anew_and_the_old_one_counts_again(make: Opener) -> None:
    """Nothing is deleted because something changed: going back finds what was there."""
    for version in ("a", "b", {"model": 1}, None):
        runner = make(version=version)
        assert list(runner.iterate([1, 2])) == [1, 2]
        runner.save_result(1, f"of {version}")
    for version in ("b", None, "a", {"model": 1}):
        runner = make(version=version)
        assert list(runner.iterate([1, 2])) == [2]
        assert runner.get_all_results() == {1: f"of {version}"}


def test_a_runner_that_names_no_version_reads_the_last_records(make: Opener) -> None:
    """LATEST is told by order in the file, not by timestamps."""
    for version in ("a", "b", "a"):
        with CheckpointedRunner("j", make().records.store.directory, version=version) as runner:
            runner.save_result(version, 1)
        assert make().records.version == runner.records.version
    assert make().get_all_results() == {"a": 1}


def test_clearing_keys_forgets_them_under_this_version_only(make: Opener, tmp_path: Path) -> None:
    """And the bytes stay in the file until it is compacted."""
    for version in ("a", "b"):
        runner = make(version=version)
        for key in (1, 2):
            runner.save_result(key, version)
            runner.save_error((key, "failed"), version)
    size = journal_of(tmp_path).stat().st_size
    make(version="a").clear([1, (2, "failed"), "absent"])
    assert journal_of(tmp_path).stat().st_size > size
    for _ in range(2):
        assert make(version="a").get_all_results() == {2: "a"}
        assert make(version="a").get_all_errors() == {(1, "failed"): "a"}
        assert make(version="b").get_all_results() == {1: "b", 2: "b"}
        assert len(make(version="b").get_all_errors()) == 2


def test_clearing_everything_leaves_a_fresh_checkpoint(make: Opener, tmp_path: Path) -> None:
    """All versions, errors and meta; the lock file and bytes set aside stay; who had a reader reads on."""
    runner = make(version="a")
    runner.save_result(1, "a")
    runner.save_error(2, "failed")
    make(version="b").save_result(1, "b")
    runner.clear()
    for version in ("a", "b", None):
        assert make(version=version).get_all_results() == {}
    assert make().progress() == (0, None)
    assert {file.name for file in tmp_path.iterdir()} <= {".j.lock"}
    runner.save_result(1, "again")
    runner.close()
    assert make().get_all_results() == {1: "again"}


@pytest.mark.slow
@pytest.mark.promise("clock jumps")
def test_one_key_may_be_saved_again_and_the_last_record_counts(make: Opener, tmp_path: Path) -> None:
    """Order in the file decides, though the clock jumps back."""
    runner = make()
    stamps = iter([b"2030-01-01T00:00:00Z", b"2001-01-01T00:00:00Z", b"1970-01-01T00:00:00Z"])
    runner.records._stamp = lambda: next(stamps)
    for value in ("first", "second", "third"):
        runner.save_result(1, value)
    assert runner.get_all_results() == {1: "third"}
    runner.close()
    assert make().get_all_results() == {1: "third"}


# --- durability -----------------------------------------------------------------------------------------------------


class Syncs:
    """Which files have been synced up to which size."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.sizes: dict[int, int] = {}
        self.calls = 0
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._wrap(getattr(os, name)))

    def _wrap(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            status = os.fstat(fd)
            real(fd)
            self.calls += 1
            self.sizes[status.st_ino] = status.st_size

        return sync

    def covers(self, path: Path) -> bool:
        status = path.stat()
        return self.sizes.get(status.st_ino) == status.st_size

    def knows(self, directory: Path) -> bool:
        return directory.stat().st_ino in self.sizes


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Syncs:
    """Counts what reaches the medium."""
    return Syncs(monkeypatch)


@pytest.mark.promise("power loss, kernel crash")
def test_with_durability_power_every_record_is_synced_before_it_is_acknowledged(
    make: Opener, tmp_path: Path, ticker: Any, syncs: Syncs
) -> None:
    """Results, errors and values kept aside; and the names of files and directories, when they are made."""
    directory = tmp_path / "new" / "checkpoints"
    runner = make(directory=directory, durability="power")
    for key in range(5):
        runner.save_result(key, key)
        assert syncs.covers(journal_of(directory))
        runner.save_error((key, "failed"), "message")
        assert syncs.covers(directory / "j_errors.jsonl")
    with pytest.raises(TypeError):
        runner.save_result("bad", object())
    assert syncs.covers(directory / ".j_unsaved.jsonl")
    for made in (directory, directory.parent, tmp_path):
        assert syncs.knows(made)


@pytest.mark.promise("power loss, kernel crash")
def test_with_durability_process_everything_is_synced_once_a_second_and_on_close(
    make: Opener, tmp_path: Path, ticker: Any, syncs: Syncs
) -> None:
    """A save waits for no disk; the housekeeping syncs what is dirty, and nothing where nothing is."""
    runner = make()
    running = runner.iterate(range(10))
    next(running)
    for key in range(5):
        calls = syncs.calls
        runner.save_result(key, key)
        assert syncs.calls == calls
        assert not syncs.covers(journal_of(tmp_path))
        ticker.tick(0.5)
        runner.records.store.writer.tend()
        assert syncs.covers(journal_of(tmp_path))
        calls = syncs.calls
        runner.records.store.writer.tend()
        assert syncs.calls == calls
    runner.save_result(5, 5)
    running.close()  # type: ignore[attr-defined]
    assert syncs.covers(journal_of(tmp_path))
    runner.save_result(6, 6)
    runner.close()
    assert syncs.covers(journal_of(tmp_path))


@pytest.mark.slow
@pytest.mark.promise("power loss, kernel crash")
def test_what_a_killed_writer_left_unsynced_is_synced_by_the_next_one(
    make: Opener, tmp_path: Path, ticker: Any, syncs: Syncs
) -> None:
    """It counts as done from the next start on, so it must survive a power cut from then on."""
    code = """
import os, sys
from checkpoint import CheckpointedRunner
CheckpointedRunner("j", sys.argv[1]).save_result(1, 1)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=60)
    runner = make()
    assert list(runner.iterate([1, 2])) == [2]
    runner.records.store.writer.tend()  # as the thread does within a second
    assert syncs.covers(journal_of(tmp_path))


@pytest.mark.promise("power loss, kernel crash")
def test_the_second_after_a_map_is_the_tending_threads(tmp_path: Path, ticker: Any, syncs: Syncs) -> None:
    """A map waits for no disk and lets go of the lock; the thread syncs after it, and so does whoever closes."""
    function = checkpointed("j", checkpoint_dir=tmp_path)(lambda n: n)
    function.map([0], progress=False)
    writer = function.runner.records.store.writer
    for key in range(1, 4):
        writer.tend()
        calls = syncs.calls
        assert function.map([key], progress=False) == [key]
        assert syncs.calls == calls
        assert not writer.writing
        assert not syncs.covers(journal_of(tmp_path))
        assert not writer.tend(), "nothing is owed any more"
        assert syncs.covers(journal_of(tmp_path))
        assert syncs.calls > calls
    function.map([9], progress=False)
    function.runner.close()
    assert syncs.covers(journal_of(tmp_path))


def test_a_sync_that_fails_after_a_map_marks_the_journal(
    tmp_path: Path, ticker: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The map has returned by then: it is said, and the next pass writes again what may not be on the medium."""
    function = checkpointed("j", checkpoint_dir=tmp_path)(lambda n: n)
    function.map([0], progress=False)
    writer = function.runner.records.store.writer
    with monkeypatch.context() as patch:
        patch.setattr(writer.own.results.journal, "_sync", _fails)
        writer.tend()
    assert "cannot sync" in caplog.text
    assert (tmp_path / ".j_results.unsynced").exists()
    assert function.map([0, 1], progress=False) == [0, 1]
    assert not (tmp_path / ".j_results.unsynced").exists()
    assert "were written again and synced" in caplog.text


def _fails(fd: int) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


# --- errors ---------------------------------------------------------------------------------------------------------


def test_a_directory_that_cannot_be_made_is_an_own_error(make: Opener, tmp_path: Path) -> None:
    """It carries the errno, and is told before anything is paid for."""
    (tmp_path / "file").touch()
    with pytest.raises(StoreError) as failed:
        make(directory=tmp_path / "file" / "checkpoints")
    assert failed.value.errno == errno.ENOTDIR
    assert isinstance(failed.value, CheckpointError)
    assert isinstance(failed.value, OSError)


@pytest.mark.promise("damaged line in the middle")
def test_damage_is_not_done_from_then_on(make: Opener, tmp_path: Path) -> None:
    """In this process, in another one, and until it is computed anew; a later record of the key is another matter."""
    runner = make()
    for key in "abc":
        runner.save_result(key, key * 10)
    with open(journal_of(tmp_path), "r+b") as file:
        file.seek(journal_of(tmp_path).read_bytes().index(b"bbbb"))
        file.write(b"X")
    assert runner.is_completed("b"), "framing is checked when a file is scanned, the checksum when a value is read"
    with pytest.raises(DamagedRecord) as damaged:
        runner.get_result("b")
    assert (damaged.value.path, damaged.value.line) == (str(journal_of(tmp_path)), 2)
    assert not runner.is_completed("b")
    assert runner.get_result("b") is None
    assert runner.get_all_results() == {"a": "a" * 10, "c": "c" * 10}
    runner.close()
    runner = make()
    assert not runner.is_completed("b")
    assert list(runner.iterate(list("abc"))) == ["b"]
    runner.save_result("b", "anew")
    runner.close()
    assert make().get_all_results() == {"a": "a" * 10, "c": "c" * 10, "b": "anew"}
