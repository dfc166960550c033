"""Faults around a whole pass, really caused: disks that fill up under it, directories that go, crowds, forks, clocks.

What befalls a single call is in test_failing_calls.py; kills, locks, damaged lines and index files have their own.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner, ItemsFailed, JournalLost, StoreError, checkpointed, clock
from checkpoint.errors import UnencodableValue
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact
from checkpoint.maintenance.repair import repair
from checkpoint.storage import journal, reader
from checkpoint.storage.record import parse

Opener = Callable[..., CheckpointedRunner]
DEADLINE = 60.0
linux = pytest.mark.skipif(sys.platform != "linux", reason="mounts of Linux")
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")


def wait_for(condition: Callable[[], Any], what: str) -> None:
    """Until it holds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.002)


def run(code: str, *arguments: object, prefix: tuple[str, ...] = ()) -> str:
    """Run a script in a process of its own; it must end well and quietly. 77: what it needs is not allowed here."""
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if ran.returncode == 77 or ran.stderr.startswith("unshare"):
        pytest.skip("mounting is not allowed here")
    assert ran.stderr == ""
    assert ran.returncode == 0
    return ran.stdout


def keys_in(path: Path) -> list[Any]:
    """The key of each line, all of them whole."""
    lines = path.read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and parse(line).crc for line in lines)
    return [json.loads(line)["key"] for line in lines]


# --- disks -----------------------------------------------------------------------------------------------------------

MOUNTED = """
import asyncio, errno, json, logging, os, subprocess, sys, threading
from checkpoint import CheckpointedRunner, StoreError, checkpointed
logging.disable(logging.CRITICAL)

def mount(directory, *options):
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", directory], capture_output=True).returncode:
        sys.exit(77)
"""

FILLS_UP = (
    MOUNTED
    + """
directory, engine = sys.argv[1:]
mount(directory, "-o", "size=512k")
filler, path = os.path.join(directory, "filler"), os.path.join(directory, "full_results.jsonl")
computed, gate = [], threading.Lock()
workers = 1 if engine == "serial" else 8

def note(key):
    with gate:
        if len(computed) == 24:  # room for some more, and then none
            room = os.statvfs(directory)
            with open(filler, "wb") as file:
                file.write(bytes((room.f_bavail - 3) * room.f_bsize))
        computed.append(key)
    return f"{key}:" + "x" * 3000

async def slowly(key):
    await asyncio.sleep(0)
    return note(key)

f = checkpointed("full", checkpoint_dir=directory, version=1)(slowly if engine == "tasks" else note)

def run(keys):
    made = f.map(keys, workers=workers, progress=False)
    return asyncio.run(made) if engine == "tasks" else made

try:
    run(range(200))
except StoreError as error:
    assert isinstance(error, OSError) and (error.errno, error.filename) == (errno.ENOSPC, path), error
    unsaved = error.unsaved
else:
    raise AssertionError("there was room")
with open(path, "rb") as file:
    lines = file.read().splitlines(keepends=True)
assert all(line.endswith(b"}\\n") for line in lines), "cut back to whole records"
there = [json.loads(line)["key"] for line in lines]
assert 10 <= len(there) < 60, len(there)
assert sorted([*there, *unsaved]) == sorted(computed), (there, list(unsaved), computed)
assert len(unsaved) <= workers + 1, "nothing more was admitted"
assert unsaved == {key: f"{key}:" + "x" * 3000 for key in unsaved}
os.unlink(filler)
f.runner.save_result(next(iter(unsaved)), next(iter(unsaved.values())))  # the same process goes on
before = set(computed)
assert list(run(range(80))) == [f"{key}:" + "x" * 3000 for key in range(80)]
again = computed[len(before):]
assert sorted(again) == sorted(set(range(80)) - set(there) - {next(iter(unsaved))}), "only what is not there"
"""
)


@pytest.mark.slow
@pytest.mark.promise("disk full, quota, file-size limit")
@linux
@pytest.mark.parametrize("engine", ["serial", "threads", "tasks"])
def test_a_disk_that_fills_up_in_the_middle_of_a_map(tmp_path: Path, engine: str) -> None:
    """Nothing more is admitted, what runs is waited for, and `.unsaved` is every value that is not on the disk, which
    ends in a whole record; once there is room the same process computes the rest.
    """
    run(FILLS_UP, tmp_path, engine, prefix=("unshare", "-rm"))


@pytest.mark.promise("disk full, quota, file-size limit")
def test_nothing_is_begun_while_the_store_is_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Items that are drawn during the second try are not run: their values would be on no error's `.unsaved`."""
    begun: list[int] = []
    trying, drawn = threading.Event(), threading.Event()
    failures = 0
    write = os.write

    def full(fd: int, data: Any) -> int:
        nonlocal failures
        if not bytes(data).startswith(b'{"key":'):
            return write(fd, data)
        failures += 1
        if failures > 1:
            trying.set()
            assert drawn.wait(DEADLINE)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def items() -> Any:
        yield 0
        assert trying.wait(DEADLINE)
        yield 1
        drawn.set()
        yield 2

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def function(n: int) -> int:
        begun.append(n)
        return n

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError) as failed:
        function.map(items(), workers=2, progress=False)
    monkeypatch.undo()
    assert (failed.value.errno, begun, failed.value.unsaved) == (errno.ENOSPC, [0], {0: 0})
    assert function.map(range(3), workers=2, progress=False) == [0, 1, 2]
    assert begun == [0, *range(3)]
    function.runner.close()


READ_ONLY = (
    MOUNTED
    + """
directory = sys.argv[1]
mount(directory)
called = []
f = checkpointed("j", checkpoint_dir=directory, version=1)(lambda n: called.append(n) or n)
assert f.map(range(5), progress=False) == list(range(5))
f.runner.close()
if subprocess.run(["mount", "-o", "remount,ro", directory], capture_output=True).returncode:
    sys.exit(77)
called.clear()
f = checkpointed("j", checkpoint_dir=directory, version=1)(lambda n: called.append(n) or n)
assert f.map(range(5), progress=False) == list(range(5)), "what is done can be had"
for workers in (None, 4):
    try:
        f.map(range(9), workers=workers, progress=False)
    except StoreError as error:
        assert error.errno == errno.EROFS and "read-only" in str(error), error
    else:
        raise AssertionError("saved")
assert called == [], "nothing was paid for that could not be kept"
"""
)


@pytest.mark.promise("EIO on write or fsync")
@pytest.mark.parametrize("items", [["a", "b"], ["a", "b", "c"]], ids=["nothing else to do", "something else"])
def test_what_a_failed_sync_left_is_written_again_before_it_counts(
    items: list[str], make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second sync would succeed and do nothing: after the first one the system takes the pages for written."""
    real_write, real_sync = os.write, os.fdatasync
    told: list[str] = []

    def write(fd: int, data: Any) -> int:
        if b'"key":"b"' in bytes(data):
            told.append("written")
        return real_write(fd, data)

    def sync(fd: int) -> None:
        told.append("synced")
        real_sync(fd)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    runner = make(durability="power")
    runner.save_result("a", 1)
    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(StoreError):
        runner.save_result("b", 2)
    with pytest.raises(StoreError, match="not synced"):
        list(runner.iterate(items))
    assert told == ["written"] * 3, "the second time in vain, too"
    told.clear()
    monkeypatch.setattr(os, "fdatasync", sync)
    assert list(runner.iterate(items)) == items[2:]
    assert told[:2] == ["written", "synced"]
    assert runner.get_all_results() == {"a": 1, "b": 2}
    told.clear()
    assert list(runner.iterate(items)) == items[2:]
    assert "written" not in told, "once is enough"


@pytest.mark.slow
@pytest.mark.promise("read-only directory or file")
@linux
def test_a_read_only_file_system_is_told_before_anything_is_paid_for(tmp_path: Path) -> None:
    """What is done is read; a map that would have to write says so and calls nothing."""
    run(READ_ONLY, tmp_path, prefix=("unshare", "-rm"))


ANOTHER_USER = """
import errno, os, sys
from checkpoint import StoreError, checkpointed
called = []
# It imports what it needs, which another user may not be able to read.
checkpointed("w", checkpoint_dir=sys.argv[2])(lambda n: n).map(range(9), workers=4, progress=False)
def double(n):
    called.append(n)
    return 2 * n
f = checkpointed("j", checkpoint_dir=sys.argv[1], version=1)(double)
f.map(range(5), progress=False)
called.clear()
os.setgroups([]); os.setgid(65534); os.setuid(65534)
for name in ("j", "fresh"):
    f = checkpointed(name, checkpoint_dir=sys.argv[1], version=1)(double)
    if name == "j":
        assert f.map(range(5), progress=False) == [0, 2, 4, 6, 8]
    try:
        f.map(range(9), workers=4, progress=False)
    except StoreError as error:
        assert error.errno == errno.EACCES and "not writable for this user" in str(error), error
    else:
        raise AssertionError("saved")
assert called == []
"""


@pytest.mark.slow
@pytest.mark.promise("read-only directory or file")
@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() != 0, reason="only root may become another user")
def test_another_users_directory_is_told_before_anything_is_paid_for(tmp_path: Path) -> None:
    """What is done is read; a map that would have to write says what is not writable and calls nothing."""
    directory = tmp_path / "checkpoints"
    for parent in directory.parents:
        if parent.stat().st_uid == 0 and parent.is_relative_to(tmp_path.parents[2]):
            parent.chmod(parent.stat().st_mode | 0o011)
    run(ANOTHER_USER, directory, tmp_path / "other")


QUOTA = """
import errno, resource, sys, threading
from checkpoint import StoreError, checkpointed
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
computed = []
f = checkpointed("j", checkpoint_dir=sys.argv[1], version=1)(lambda n: computed.append(n) or "x" * 1000)
unsaved = {}
try:
    for outcome in f.stream(range(60), workers=4, progress=False):
        assert outcome.value == "x" * 1000
except StoreError as error:
    assert (error.errno, error.filename[-15:]) == (errno.EFBIG, "j_results.jsonl")
    unsaved = error.unsaved
assert unsaved and sorted([*f.results, *unsaved]) == sorted(computed)
assert len(unsaved) <= 8 and 10 < len(f.results) < 20
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
computed.clear()
there = set(f.results)
assert f.map(range(60), workers=4, progress=False) == ["x" * 1000] * 60
assert sorted(computed) == sorted(set(range(60)) - there)
"""


@pytest.mark.slow
@pytest.mark.promise("disk full, quota, file-size limit")
@posix
def test_a_file_size_limit_in_the_middle_of_a_stream(tmp_path: Path) -> None:
    """As a full disk: every value computed is on disk or in `.unsaved`, and the same process goes on."""
    run(QUOTA, tmp_path)


# --- directories that go ---------------------------------------------------------------------------------------------


def _remove(directory: Path) -> None:
    (directory / "j_results.jsonl").unlink()  # it, or another one, may go first
    shutil.rmtree(directory)


def _rename(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))


def _replace(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))
    shutil.copytree(directory.with_name("moved"), directory)


def _restore_a_backup(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))
    directory.mkdir()
    for name in ("j_results.jsonl", "j_errors.jsonl"):
        (directory / name).write_bytes(b"")


@pytest.mark.slow
@pytest.mark.promise("journal deleted, replaced or truncated while open")
@posix
@pytest.mark.parametrize("workers", [None, 3])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_remove, "rm -r"),
        (_rename, "mv"),
        (_replace, "mv, and a copy put in its place"),
        (_restore_a_backup, "an older state put in its place"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_directory_that_goes_under_a_running_map_is_noticed_within_a_second(
    tmp_path: Path, ticker: Any, change: Callable[[Path], None], reason: str, workers: int | None
) -> None:
    """The error lists every key in the lost file; no more is written to it; and the same line again computes anew."""
    directory = tmp_path / "checkpoints"
    computed: list[int] = []
    after: list[int] = []
    gate = threading.Lock()
    gone = False

    @checkpointed("j", checkpoint_dir=directory, version=1)
    def function(n: int) -> int:
        nonlocal gone
        with gate:
            ticker.tick(0.25)
            if n == 10 and not gone:
                # Some are on disk by then, whoever waits for whom.
                wait_for(lambda: len((directory / "j_results.jsonl").read_bytes().splitlines()) >= 5, "five records")
                change(directory)
                gone = True
            elif gone:
                after.append(n)
            computed.append(n)
        return n

    with pytest.raises(JournalLost) as lost:
        function.map(range(60), workers=workers, progress=False)
    error = lost.value
    moved = directory.with_name("moved") / "j_results.jsonl"
    assert (error.errno, error.filename) == (errno.ESTALE, str(directory / "j_results.jsonl"))
    assert set(error.keys) | set(error.unsaved) == set(computed), "each is at risk, or in hand"
    assert set(error.unsaved).isdisjoint(error.keys)
    assert len(after) <= 4 + 2 * (workers or 1), "a second, and what was running"
    if moved.exists():
        assert set(keys_in(moved)) == set(error.keys), "all of them stand in the file that was moved"
        size = moved.stat().st_size
    there = set(keys_in(directory / "j_results.jsonl")) if (directory / "j_results.jsonl").exists() else set()
    computed.clear()
    assert function.map(range(60), workers=workers, progress=False) == list(range(60))
    assert sorted(computed) == sorted(set(range(60)) - there)
    assert not moved.exists() or moved.stat().st_size == size
    function.runner.close()


# --- crowds ----------------------------------------------------------------------------------------------------------

CROWD = """
import os, sys, threading
from checkpoint import CheckpointedRunner, CheckpointLocked
directory, name, mark = sys.argv[1:]
runner = CheckpointedRunner(name, directory)
saved, locked = [], []

def save(thread):
    for n in range(40):
        try:
            runner.save_result((thread, n), [os.getpid(), thread, n, "x" * (37 * n)])
            saved.append((thread, n))
        except CheckpointLocked as error:
            locked.append(error.pid)

print("ready", flush=True)
sys.stdin.readline()
threads = [threading.Thread(target=save, args=(thread,)) for thread in range(16)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(saved), len(locked), *set(locked), flush=True)
sys.stdin.readline()  # the winner keeps the lock until all have tried
"""


def crowd(directory: Path, names: list[str]) -> list[tuple[int, int, int, set[int]]]:
    """(pid, saved, refused, by whom) of one process of sixteen threads for each name, all of them at once."""
    hold = "from checkpoint.storage import writer; writer._SECOND = 600.0\n"  # a slow machine lets nobody in later
    started = [
        subprocess.Popen(
            [sys.executable, "-c", hold + CROWD, str(directory), name, ""],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for name in names
    ]  # fmt: skip
    told = []
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in started:
            assert process.stdout is not None
            saved, refused, *pids = map(int, process.stdout.readline().split())
            told.append((process.pid, saved, refused, set(pids)))
        for process in started:
            process.communicate("\n", timeout=DEADLINE)
            assert process.returncode == 0
    finally:
        for process in started:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
    return told


@pytest.mark.slow
@pytest.mark.promise("two writing processes", "threads")
def test_of_eight_processes_of_sixteen_threads_one_writes(tmp_path: Path, make: Opener) -> None:
    """The others are told at once by whom they are locked out and change nothing; every record is there, and whole."""
    told = crowd(tmp_path, ["j"] * 8)
    ((winner, saved, _, _),) = [one for one in told if one[1]]
    assert saved == 640
    for pid, saved, refused, by in told:
        if pid != winner:
            assert (saved, refused, by) == (0, 640, {winner})
    assert len(keys_in(tmp_path / "j_results.jsonl")) == 640
    found = make().get_all_results()
    assert found == {(t, n): [winner, t, n, "x" * (37 * n)] for t in range(16) for n in range(40)}


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_eight_processes_write_eight_checkpoints_in_one_directory(tmp_path: Path, make: Opener) -> None:
    """Names that begin alike, or differ in case only by more than case, never meet."""
    names = ["j", "j_results", "j_errors", "j.x", "jj", "j-", "j results", "j_meta"]
    told = crowd(tmp_path, names)
    for name, (pid, saved, refused, _) in zip(names, told, strict=True):
        assert (saved, refused) == (640, 0)
        found = make(name).get_all_results()
        assert found == {(t, n): [pid, t, n, "x" * (37 * n)] for t in range(16) for n in range(40)}


FORK = """
import os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from checkpoint import CheckpointLocked, StoreForked, checkpointed
statuses, gate = [], threading.Lock()

def child():
    try:
        for attempt in (lambda: f.runner.save_result("child", 1), lambda: f.map(range(99), progress=False)):
            try:
                attempt()
            except (CheckpointLocked, StoreForked):
                continue
            raise AssertionError("written")
        assert all(value == key * 7 for key, value in f.results.items())
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

@checkpointed("j", checkpoint_dir=sys.argv[1], version=1)
def f(n):
    if n % 9 == 4:
        with gate:
            pid = os.fork()
            if not pid:
                child()
        statuses.append(os.waitpid(pid, 0)[1])
    return n * 7

assert f.map(range(60), workers=8, progress=False) == [n * 7 for n in range(60)]
assert statuses == [0] * 7, statuses
"""


@pytest.mark.slow
@pytest.mark.promise("fork", "threads")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forks_in_the_middle_of_a_map_with_threads(tmp_path: Path) -> None:
    """Each child is refused to write, by an own error, and reads; the parent's pass goes on: every record once."""
    run(FORK, tmp_path)
    assert sorted(keys_in(tmp_path / "j_results.jsonl")) == list(range(60))


# --- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("clock jumps")
def test_the_order_in_the_file_decides_whatever_the_clock_says(
    tmp_path: Path, make: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved again, failed, forgotten and of another version, under a clock that is set back and forth each time."""
    moments = itertools.cycle([2e9, 0.0, 1e9, -5.0, 4e9, 1e-3])
    monkeypatch.setattr(clock.Stamper.__init__, "__defaults__", (lambda: next(moments),))
    runner = make(version="one")
    for turn in range(4):
        for key in "abc":
            runner.save_result(key, turn)
        runner.save_error("bad", f"turn {turn}")
    runner.clear(["c"])
    runner.save_result("bad", "good at last")
    runner.save_error("late", "first")
    runner.save_error("late", "last")
    for indexed in (False, True):
        if indexed:
            runner.records.store.own.results.write_index()
            runner.records.store.own.errors.write_index()
        runner.close()
        runner = make()
        assert runner.get_all_results() == {"a": 3, "b": 3, "bad": "good at last"}
        assert runner.get_all_errors() == {"late": "last"}
        assert not runner.is_completed("c")
    other = make(version="two")
    other.save_result("a", "two")
    other.close()
    assert make().get_all_results() == {"a": "two"}, "that of the last record, though it is the oldest by its timestamp"
    stamps = [json.loads(line)["timestamp"] for line in (tmp_path / "j_results.jsonl").read_bytes().splitlines()]
    assert stamps != sorted(stamps)
    assert all(stamp.endswith("Z") for stamp in stamps)


# --- giants ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("giant or deep records")
def test_a_giant_line_of_rubbish_damages_itself_only(tmp_path: Path, make: Opener) -> None:
    """50 MB without an end, NULs or depth, between two records: both are there, and no message quotes it."""
    runner = make()
    runner.save_result("before", 1)
    runner.close()
    path = tmp_path / "j_results.jsonl"
    for rubbish in (b'{"key":"g","result":"' + b"x" * (50 << 20), bytes(50 << 20), b"[" * (50 << 20)):
        with open(path, "ab") as file:
            file.write(rubbish + b"\n")
        runner = make()
        runner.save_result("after", len(rubbish))
        runner.close()
        runner = make()
        assert runner.get_all_results() == {"before": 1, "after": len(rubbish)}
        runner.close()
        path.write_bytes(b"".join(line for line in path.read_bytes().splitlines(keepends=True) if len(line) < 1000))


# --- untrusted checkpoints -------------------------------------------------------------------------------------------


class Evil:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.promise("untrusted checkpoints")
def test_a_pickle_in_a_checkpoint_is_opened_by_unsaved_alone(tmp_path: Path, make: Opener) -> None:
    """Opening, listing, resuming, counting, forgetting and checking run nothing of it; asking for the value does."""
    mark = tmp_path / "ran"
    with CheckpointedRunner("j", tmp_path) as runner:
        with pytest.raises(UnencodableValue):
            runner.save_result("evil", Evil(mark))
        runner.save_result("good", 1)
    mark.unlink(missing_ok=True)
    runner = make()
    assert list(runner.unsaved) == ["evil"]
    assert (len(runner.unsaved), "evil" in dict.fromkeys(runner.unsaved)) == (1, True)
    assert runner.get_all_results() == {"good": 1}
    assert list(runner.get_all_errors()) == ["evil"]
    assert list(runner.iterate(["good", "evil"])) == []
    f = checkpointed("j", checkpoint_dir=tmp_path, version=None)(lambda key: key)
    with pytest.raises(ItemsFailed):
        f.map(["good", "evil", "more"], progress=False)
    runner.clear(["evil"])
    assert not mark.exists()
    with pytest.raises(UnencodableValue):
        runner.save_result("evil", Evil(mark))
    mark.unlink(missing_ok=True)
    assert runner.unsaved["evil"] is None
    assert mark.exists(), "it is the user who opened it"


HOSTILE_KEYS = ["../../outside", "/etc/passwd", "a/b", "..", "", "\0", "C:\\x", "$HOME", "%s%n", "\n", "-rf", "\u2028"]


@pytest.mark.promise("hostile names")
def test_keys_that_look_like_paths_are_only_keys(tmp_path: Path, make: Opener) -> None:
    """They name no file, and come back as they were."""
    outside = tmp_path / "outside"
    directory = tmp_path / "a" / "b"
    runner = make(directory=directory)
    for key in HOSTILE_KEYS:
        runner.save_result(key, {key: key})
        runner.save_error(("bad", key), key)
        with suppress(UnencodableValue):
            runner.save_result(("odd", key), object())
    runner.close()
    with open(directory / "j_results.jsonl", "ab") as file:
        file.write(b'{"key": "../../outside", "result": "by hand"}\n{"torn": "../../outside')
    runner = make(directory=directory)
    runner.save_result("../../outside/2", 1)
    found = runner.get_all_results()
    assert {key: found[key] for key in HOSTILE_KEYS} == {key: {key: key} for key in HOSTILE_KEYS}
    assert not outside.exists()
    assert sorted(tmp_path.iterdir()) == [tmp_path / "a"]
    assert all(file.name.startswith(("j_", ".j")) for file in directory.iterdir())


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "hunter" + "2" * 9


def fails_with_a_secret_at_hand(item: dict[str, str]) -> int:
    """Its argument, a local, a default and the environment hold the secret; its message does not."""
    token = os.environ.get("API_TOKEN", "") + item["password"]  # a worker may have begun before the test

    def inner(headers: dict[str, str] = {"Authorization": token}) -> int:  # noqa: B006
        try:
            return len(headers) // 0
        except ZeroDivisionError as error:
            raise LookupError("the service refused") from error

    return inner()


@pytest.mark.slow
@pytest.mark.promise("secrets")
@pytest.mark.parametrize("options", [{}, {"workers": 3}, {"executor": "processes", "workers": 1}], ids=str)
def test_no_secret_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Of a failure type, message and plain traceback are kept: no local, no argument, nothing of the environment."""
    monkeypatch.setenv("API_TOKEN", SECRET)
    f = checkpointed("j", key="id", checkpoint_dir=tmp_path, version=1)(fails_with_a_secret_at_hand)
    items = [{"id": f"{n}", "password": SECRET} for n in range(2)]
    with pytest.raises(ItemsFailed) as failed:
        f.map(items, progress=False, **options)
    for error in failed.value.exceptions:
        assert SECRET not in str(error) + "".join(getattr(error, "__notes__", []))
    for told in f.errors.values():
        assert told.type == "LookupError"
        assert told.traceback is not None
        assert "ZeroDivisionError" in told.traceback
    try:
        fails_with_a_secret_at_hand(items[0])
    except LookupError as error:
        f.runner.save_error("by hand", error)
    with pytest.raises(ItemsFailed):
        f.map([{"id": "changed", "password": SECRET}], progress=False, **options)
    f.runner.close()
    for file in tmp_path.iterdir():
        assert SECRET.encode() not in file.read_bytes(), file.name
    assert SECRET not in caplog.text


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("symlinks, permissions")
@posix
@pytest.mark.parametrize(
    "name",
    [
        ".j.lock",
        ".j_results.index",
        ".j_errors.index",
        ".j_unsaved.index",
        ".j_results.index.PID.tmp",
        ".j_errors.index.PID.tmp",
        ".j_meta.PID.tmp",
        ".j_results.aside",
        ".j_errors.aside",
    ],
)
@pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
def test_no_file_of_ours_is_written_through_a_link(tmp_path: Path, name: str, exists: bool) -> None:
    """A link planted in a shared directory leads nowhere: what it points to is neither changed nor made."""
    target, directory = tmp_path / "precious", tmp_path / "checkpoints"
    name = name.replace("PID", str(os.getpid()))
    if exists:
        target.write_text("precious")
    with CheckpointedRunner("j", directory) as runner:
        runner.save_result(1, 1)
        runner.save_error("bad", "failed")
    for kind in ("results", "errors"):
        with open(directory / f"j_{kind}.jsonl", "ab") as file:
            file.write(b'{"key":"torn')
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(target)
    with CheckpointedRunner("j", directory) as runner:
        with suppress(StoreError):
            runner.save_result(2, 2)
            runner.save_error("bad", "failed again")
            with suppress(UnencodableValue):
                runner.save_result("odd", object())
        for shelf in (
            runner.records.store.own.results,
            runner.records.store.own.errors,
            runner.records.store.own.unsaved,
        ):
            shelf.write_index()
        assert runner.get_result(1) == 1
    from checkpoint.maintenance.check import check
    from checkpoint.maintenance.compact import compact
    from checkpoint.maintenance.repair import repair

    for tend in (check, repair, compact):
        with suppress(StoreError):
            tend("j", directory)
    assert target.exists() == exists
    assert not exists or target.read_text() == "precious"
    with CheckpointedRunner("j", directory) as runner:
        assert runner.get_result(1) == 1


@pytest.mark.slow
@pytest.mark.promise("symlinks, permissions")
@posix
def test_every_kind_of_file_follows_the_umask(tmp_path: Path) -> None:
    """One that forbids nothing forbids nothing: no file is kept closer than its user wants, none is left wider."""
    code = """
import os, sys
from checkpoint import CheckpointedRunner
from checkpoint.maintenance.compact import compact
os.umask(int(sys.argv[2], 8))
for turn in range(2):
    with CheckpointedRunner("j", sys.argv[1]) as runner:
        runner.save_result(1, turn)
        runner.save_error(2, "failed")
        try:
            runner.save_result(3, object())
        except TypeError:
            pass
        for shelf in runner.records.store.own:
            shelf.write_index()
    with open(os.path.join(sys.argv[1], "j_results.jsonl"), "ab") as file:
        file.write(b"torn")
compact("j", sys.argv[1])
"""
    for umask in (0o000, 0o077, 0o027):
        directory = tmp_path / f"{umask:o}"
        subprocess.run(
            [sys.executable, "-c", code, str(directory), f"{umask:o}"], check=True, timeout=60, capture_output=True
        )
        modes = {file.name: oct(file.stat().st_mode & 0o777) for file in directory.iterdir()}
        lock = int(modes.pop(".j.lock"), 8)
        assert lock == {0o000: 0o666, 0o077: 0o600, 0o027: 0o600}[umask], "who may open it may hold it"
        assert modes == dict.fromkeys(modes, oct(0o666 & ~umask))
        assert {"j_meta.json", "j_results.jsonl", ".j_unsaved.jsonl", ".j_results.aside"} <= modes.keys()


# --- caches that are of something else -------------------------------------------------------------------------------


def _swap(directory: Path) -> None:
    """Those of two checkpoints, each for the other."""
    for name in ("{}_meta.json", ".{}_results.index", ".{}_errors.index"):
        one, two = directory / name.format("j"), directory / name.format("k")
        data = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(data)


def _cross(directory: Path) -> None:
    """The index of the errors for that of the results, and the other way round."""
    one, two = directory / ".j_results.index", directory / ".j_errors.index"
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def _make_old(directory: Path) -> None:
    """Those of an earlier state, of before everything was forgotten and computed anew."""
    kept = {name: (directory / name).read_bytes() for name in ("j_meta.json", ".j_results.index", ".j_errors.index")}
    with CheckpointedRunner("j", directory) as runner:
        values, errors = runner.get_all_results(), runner.get_all_errors()
        runner.clear()
        for key, value in reversed(values.items()):
            runner.save_result(key, value)
        for key, message in errors.items():
            runner.save_error(key, message)
    for name, data in kept.items():
        (directory / name).write_bytes(data)


def _make_old_and_forget(directory: Path) -> None:
    """Those of before some keys were forgotten and saved again."""
    kept = {name: (directory / name).read_bytes() for name in ("j_meta.json", ".j_results.index", ".j_errors.index")}
    with CheckpointedRunner("j", directory) as runner:
        values = runner.get_all_results()
        runner.clear(list(values)[:20])
        for key in list(values)[:20]:
            runner.save_result(key, "old")
            runner.save_result(key, values[key])
    for name, data in kept.items():
        (directory / name).write_bytes(data)


def _empty(directory: Path) -> None:
    """Emptied, all at once, as a power cut may leave them."""
    for name in ("j_meta.json", ".j_results.index", ".j_errors.index"):
        (directory / name).write_bytes(b"")


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
@pytest.mark.parametrize("change", [_swap, _cross, _make_old, _make_old_and_forget, _empty])
def test_caches_of_something_else_change_no_result(
    tmp_path: Path, make: Opener, change: Callable[[Path], None]
) -> None:
    """Meta and indexes together, stale, swapped or emptied: the journals say what is there."""
    values: dict[str, dict[Any, Any]] = {}
    for name in ("j", "k"):
        values[name] = {key: f"{name}{key}" for key in range(50)}
        with CheckpointedRunner(name, tmp_path) as runner:
            for key, value in values[name].items():
                runner.save_result(key, value)
            for key in range(100, 130):
                runner.save_error(key, f"{name} failed")
            for shelf in (runner.records.store.own.results, runner.records.store.own.errors):
                shelf.write_index()
    change(tmp_path)
    for _ in range(2):
        for name in ("j", "k"):
            runner = make(name)
            assert list(runner.iterate([*range(50), "new"])) == ["new"]
            assert {key: runner.get_result(key) for key in range(50)} == values[name]
            assert runner.get_all_results() == values[name]
            assert runner.get_all_errors() == dict.fromkeys(range(100, 130), f"{name} failed")
            assert runner.progress()[0] == 50
            runner.records.store.own.results.write_index()
            runner.close()


# --- worker processes ------------------------------------------------------------------------------------------------


def dies(item: str) -> str:
    """As its name says."""
    if item == "segfault":
        import ctypes

        ctypes.string_at(0)
    if item == "memory":
        raise MemoryError
    return item * 2


@pytest.mark.slow
@pytest.mark.promise("a worker process dies")
@posix
def test_an_item_whose_worker_segfaults_fails_alone_by_the_signals_name(tmp_path: Path) -> None:
    """A fault in compiled code takes its worker, three times; the others are run; MemoryError is a plain failure."""
    f = checkpointed("j", checkpoint_dir=tmp_path, version=1)(dies)
    items = ["a", "segfault", "b", "memory", "c", "d"]
    results: Any = f.map(items, executor="processes", workers=2, progress=False, return_exceptions=True)
    assert [results[place] for place in (0, 2, 4, 5)] == ["aa", "bb", "cc", "dd"]
    assert (results[1].type, results[3].type) == ("checkpoint.errors.WorkerDied", "MemoryError")
    assert "SIGSEGV" in results[1].message
    assert keys_in(tmp_path / "j_errors.jsonl").count("segfault") == 1


# --- media, programs and ends that nobody foresaw -------------------------------------------------------------------


@pytest.fixture
def bad_sector(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From now on the sector at an offset cannot be read, as the kernel has it: a read that meets it is short."""
    pread = reader.pread

    def begin(offset: int) -> None:
        def read(fd: int, size: int, at: int) -> bytes:
            if offset <= at < offset + 4096:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(fd, min(size, offset - at) if at < offset else size, at)

        for room in (reader, journal):
            monkeypatch.setattr(room, "pread", read)

    return begin


@pytest.mark.promise("EIO on write or fsync")
@pytest.mark.parametrize("where", ["in the middle", "near the end"])
@pytest.mark.parametrize(
    "work",
    [
        lambda directory: CheckpointedRunner("j", directory).get_all_results(),
        lambda directory: CheckpointedRunner("j", directory).save_result("one more", 1),
        lambda directory: check("j", directory),
        lambda directory: repair("j", directory),
        lambda directory: compact("j", directory),
    ],
    ids=["read", "save", "check", "repair", "compact"],
)
def test_a_bad_sector_is_an_error_and_costs_no_other_line(
    tmp_path: Path, bad_sector: Callable[[int], None], where: str, work: Callable[[Path], Any]
) -> None:
    """What lies behind it is neither taken for missing nor cut off, nor left out by compaction."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result(0, "old")
        for key in range(2000):
            runner.save_result(key, "x" * 600)
    path = tmp_path / "j_results.jsonl"
    (tmp_path / ".j_results.index").unlink(missing_ok=True)
    before = path.read_bytes()
    bad_sector((len(before) // 2 if where == "in the middle" else len(before) - 20_000) // 4096 * 4096)
    with pytest.raises(StoreError) as caught:
        work(tmp_path)
    assert caught.value.errno == errno.EIO
    assert path.read_bytes() == before


@pytest.mark.promise("damaged line in the middle")
def test_a_flipped_bit_in_what_forgets_one_key_forgets_no_other(
    tmp_path: Path, make: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    """The line is damaged, and told; the key that it seems to name keeps its result."""
    with make() as runner:
        for key in range(10):
            runner.save_result(key, key * key)
        runner.clear([5])
    path = tmp_path / "j_results.jsonl"
    path.write_bytes(path.read_bytes().replace(b'{"key":5,"forgotten"', b'{"key":4,"forgotten"'))
    (tmp_path / ".j_results.index").unlink(missing_ok=True)
    for _ in range(2):
        with make() as runner:
            assert runner.get_result(4) == 16
            assert "damaged line" in caplog.text
        repair("j", tmp_path)


@pytest.mark.promise("journal deleted, replaced or truncated while open")
def test_a_journal_that_is_edited_in_place_while_it_is_open_is_read_anew(tmp_path: Path, make: Opener) -> None:
    """As by an editor that writes the same file: longer, and every line behind the edit elsewhere than it was."""
    runner = make()
    for key in range(10):
        runner.save_result(key, f"v{key}")
    with runner.records.store.writer.alone():
        pass  # so that nobody writes
    path = tmp_path / "j_results.jsonl"
    first, *rest = path.read_bytes().splitlines(keepends=True)
    edited = b'{"key": "0", "result": "edited by hand, and rather longer than it was; %b"}\n' % (b"." * len(first))
    with open(path, "r+b") as file:
        file.write(edited + b"".join(rest))
    assert {key: runner.get_result(key) for key in range(1, 10)} == {key: f"v{key}" for key in range(1, 10)}
    assert runner.get_result(0).startswith("edited by hand")


@pytest.mark.promise("journal deleted, replaced or truncated while open")
def test_a_journal_that_is_copied_over_in_the_middle_of_a_map_is_noticed(
    tmp_path: Path, make: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is the same and longer, and nothing in it is what was written: the error names what is at risk."""
    with CheckpointedRunner("other", tmp_path) as other:
        for key in range(50):
            other.save_result(f"other {key}", "x" * 100)
    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now)

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def square(n: int) -> int:
        nonlocal now
        if n == 20:
            with open(tmp_path / "j_results.jsonl", "r+b") as file:
                file.write((tmp_path / "other_results.jsonl").read_bytes())
            now += 1.1
        return n * n

    with pytest.raises(JournalLost) as caught:
        square.map(range(40), progress=False)
    assert set(range(20)) <= set(caught.value.keys)


END = """
import os, sys, time
from checkpoint import CheckpointedRunner
sync = os.fdatasync
os.fdatasync = lambda fd: (time.sleep(0.7), sync(fd))
runner = CheckpointedRunner("j", sys.argv[1])
running = runner.iterate(range(1_000_000), key_fn=lambda item: item)
next(running)
runner.save_result(0, 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fdatasync"), reason="it is slowed down by that")
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
def test_a_process_with_a_pass_that_nobody_ended_ends_though_the_disk_is_slow(tmp_path: Path) -> None:
    """The thread that tends the store is not stopped by the interpreter's end while it holds the store's lock."""
    for part in range(3):
        run(END, tmp_path / str(part))
        assert keys_in(tmp_path / str(part) / "j_results.jsonl") == [0]


@pytest.mark.slow
@pytest.mark.promise("threads")
def test_versions_may_be_opened_while_meta_is_written(tmp_path: Path, make: Opener) -> None:
    """Whoever runs a pass does not notice."""
    runner = make(version=0)
    runner.save_result(0, 0)
    stop = threading.Event()

    def open_versions() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            CheckpointedRunner("j", tmp_path, version={"number": number}).close()

    opener = threading.Thread(target=open_versions)
    opener.start()
    try:
        for _ in range(100):
            runner.records.store.writer.write_meta()
    finally:
        stop.set()
        opener.join()


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
def test_an_index_of_a_journal_whose_lines_were_swapped_is_not_believed(tmp_path: Path) -> None:
    """Its size, its beginning and its end are what they were; no item gets the result of another."""

    @checkpointed("j", checkpoint_dir=tmp_path, version=1)
    def square(n: int) -> int:
        return n * n

    square.map(range(10, 20), progress=False)
    square.runner.records.store.own.results.write_index()
    square.runner.close()
    path = tmp_path / "j_results.jsonl"
    state, lines = path.stat(), path.read_bytes().splitlines(keepends=True)
    here, there = next(
        pair for pair in itertools.combinations(range(2, 9), 2) if len({len(lines[n]) for n in pair}) == 1
    )
    lines[here], lines[there] = lines[there], lines[here]
    path.write_bytes(b"".join(lines))
    assert path.stat().st_size == state.st_size
    assert square.map(range(10, 20), progress=False) == [n * n for n in range(10, 20)]


MAP = """
import sys
from checkpoint import CheckpointError, checkpointed
from checkpoint.cli import main
square = checkpointed("j", checkpoint_dir=sys.argv[1], version=1)(lambda n: n * n)
try:
    print(square.map(range(12), progress=False) == [n * n for n in range(12)])
except CheckpointError as error:
    print(type(error).__name__, "It is no file" in str(error))
sys.stderr = sys.stdout
print(main(["check", "j", "--dir", sys.argv[1]]) in (0, 1))
"""


@pytest.mark.slow
@pytest.mark.promise("symlinks, permissions")
@posix
@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("j_meta.json", "True"), (".j_results.index", "True"),
        ("j_results.jsonl", "StoreError True"), (".j.lock", "StoreError True"),
    ],
)  # fmt: skip
def test_a_pipe_in_the_place_of_a_file_is_waited_for_by_nobody(tmp_path: Path, name: str, ends: str) -> None:
    """A cache is rebuilt; where the file matters, the error says what is there."""
    with CheckpointedRunner("j", tmp_path, version=1) as runner:
        for key in range(10):
            runner.save_result(key, key * key)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    printed = run(MAP, tmp_path).splitlines()
    assert printed[0] == ends
    assert printed[-1] == "True"
