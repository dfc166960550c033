"""What holds when things go wrong, the faults really caused: for each row of promises.py a test by its name.

Kills, full disks, other users and forks are real ones. What a system does that cannot be had here (a medium that fails,
a quota, a file system without locks) is what the kernel answers to our calls: it is told to, by seccomp.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from crash_states import Recorder, materialize
from test_engines import is_gone
from test_journal import KEYS, VALUES, ask, lines_of, resume_from, set_aside, written
from test_lock import Child, bytes_of, needs_fork, run_forking

from checkpoint import (
    BatchCheckpointedRunner,
    CheckpointedRunner,
    CheckpointLocked,
    InvalidName,
    ItemsFailed,
    JournalLost,
    StoreError,
    checkpointed,
    clock,
)
from checkpoint.maintenance.check import check
from checkpoint.storage.record import parse

Opener = Callable[..., CheckpointedRunner]
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX")
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux")
NOT_ALLOWED = 77  # what a script exits with that is not allowed to cause its fault here


def run(
    code: str, *arguments: object, check: bool = True, prefix: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own; it must end well and quietly."""
    command = [*prefix, sys.executable, "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if ran.returncode == NOT_ALLOWED or "unshare" in ran.stderr.partition(":")[0]:
        pytest.skip("the system does not allow it here")
    if check:
        assert (ran.returncode, ran.stderr) == (0, "")
    return ran


def wait_until(holds: Callable[[], Any], what: str) -> None:
    """Poll, up to a deadline."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.005)


SECCOMP = """
import ctypes, errno, os, platform, struct, sys

NUMBERS = {
    "x86_64": {"write": 1, "pread": 17, "flock": 73, "fsync": 74, "fdatasync": 75, "ftruncate": 77},
    "aarch64": {"write": 64, "pread": 67, "flock": 32, "fsync": 82, "fdatasync": 83, "ftruncate": 46},
}
KILL = 0x80000000

def refuse(call, answer, argument=0, least=0, most=0xFFFFFFFF):
    '''From here on the kernel answers calls whose argument is between the two by an errno, or kills the process.'''
    numbers = NUMBERS.get(platform.machine())
    if numbers is None:
        sys.exit(77)
    steps = [  # load the call's number, and go on if it is ours; likewise with the argument; answer; or allow
        (0x20, 0, 0, 0), (0x15, 0, 4, numbers[call]), (0x20, 0, 0, 16 + 8 * argument),
        (0x35, 0, 2, least), (0x25, 1, 0, most),
        (0x06, 0, 0, answer if answer == KILL else 0x00050000 | answer), (0x06, 0, 0, 0x7FFF0000),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]
    libc = ctypes.CDLL(None)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Program(len(steps), code)), 0, 0):
        sys.exit(77)

def descriptors(path):
    '''Those of this process that lead to the file.'''
    found = ((int(fd), f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    return [fd for fd, link in found if os.path.lexists(link) and os.readlink(link) == os.path.realpath(path)]
"""


# --- SIGKILL, OOM kill, SIGTERM, Ctrl-C -----------------------------------------------------------------------------

JOB = """
import os, sys
from checkpoint import CheckpointedRunner
directory, total, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
begun = os.open(os.path.join(directory, "begun"), flags)
acknowledged = os.open(os.path.join(directory, "acknowledged"), flags)
runner = CheckpointedRunner("j", os.path.join(directory, "checkpoints"))
for key in runner.iterate(range(total)):
    os.write(begun, b"%d\\n" % key)
    os.write(1, b".")
    runner.save_result(key, f"{key}:" + "x" * size)
    os.write(acknowledged, b"%d\\n" % key)
"""


def counted(path: Path) -> Counter[int]:
    """How often each key was logged."""
    return Counter(map(int, path.read_bytes().split())) if path.exists() else Counter()


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C", "torn tail")
@pytest.mark.parametrize(
    ("size", "total", "kills"),
    [
        (300, 2000, 8),
        (4096, 1500, 8),
        (100_000, 200, 6),
        pytest.param(300, 60_000, 200, marks=pytest.mark.soak),
        pytest.param(100_000, 4000, 200, marks=pytest.mark.soak),
    ],
)
def test_a_killed_job_loses_and_redoes_nothing_that_was_acknowledged(
    tmp_path: Path, size: int, total: int, kills: int
) -> None:
    """SIGKILL at random moments: what save_result returned for is there, and at most one item a kill runs again."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    command = [sys.executable, "-c", JOB, str(tmp_path), str(total), str(size)]
    killed = 0
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as job:
            assert job.stdout is not None
            job.stdout.read(moments.randrange(1, total // kills))  # so many items have begun
            try:
                job.wait(moments.random() * 0.003)  # and the kill comes anywhere in those after
            except subprocess.TimeoutExpired:
                job.kill()
            killed += job.wait() != 0
        with CheckpointedRunner("j", tmp_path / "checkpoints") as runner:
            acknowledged = counted(tmp_path / "acknowledged")
            assert [key for key in acknowledged if not runner.is_completed(key)] == []
            for key in moments.sample(sorted(acknowledged), min(20, len(acknowledged))):
                assert runner.get_result(key) == f"{key}:" + "x" * size
    assert killed > kills // 2
    last = run(JOB, tmp_path, total, size, check=False)
    assert last.returncode == 0, last.stderr
    assert all("set aside in" in line for line in last.stderr.splitlines()), "a torn tail is all there is to tell"
    begun = counted(tmp_path / "begun")
    assert begun.keys() == set(range(total))
    assert begun.total() - total <= killed, "at most one item runs again for each kill"
    assert set(counted(tmp_path / "acknowledged").values()) == {1}, "nothing acknowledged is run again"
    with CheckpointedRunner("j", tmp_path / "checkpoints") as runner:
        assert runner.get_all_results() == {key: f"{key}:" + "x" * size for key in range(total)}
    for line in (tmp_path / "checkpoints" / "j_results.jsonl").read_bytes().splitlines(keepends=True):
        assert parse(line).crc


CROWD = """
import asyncio, os, sys, time
from checkpoint import checkpointed
directory, engine, total = sys.argv[1], sys.argv[2], int(sys.argv[3])
begun = os.open(os.path.join(directory, "begun"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
streamed = os.open(os.path.join(directory, "acknowledged"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def work(n):
    os.write(begun, b"%d\\n" % n)
    os.write(1, b".")
    time.sleep(0.001)
    return f"{n}:" + "x" * 300

async def awork(n):
    os.write(begun, b"%d\\n" % n)
    os.write(1, b".")
    await asyncio.sleep(0.001)
    return f"{n}:" + "x" * 300

def acknowledge(outcome):
    if outcome.source == "fresh":
        os.write(streamed, b"%d\\n" % outcome.key)

async def main():
    async for outcome in checkpointed("j")(awork).stream(range(total), workers=16, progress=False):
        acknowledge(outcome)

if engine == "tasks":
    asyncio.run(main())
else:
    for outcome in checkpointed("j")(work).stream(range(total), workers=16, progress=False):
        acknowledge(outcome)
"""

# The kernel's killer comes when a thread has eaten what the group is allowed to.
GREEDY = """
import os, signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
group = os.environ.get("MEMORY")
if group:
    with open(os.path.join(group, "cgroup.procs"), "w") as file:
        file.write(str(os.getpid()))
    threading.Thread(target=lambda: (sys.stdin.read(1), b"x" * (1 << 30)), daemon=True).start()
"""


@contextmanager
def memory_of(megabytes: int | None) -> Iterator[dict[str, str] | None]:
    """The environment of processes that share so much memory, in a control group of their own; None is as ours."""
    if megabytes is None:
        yield None
        return
    version_1 = Path("/sys/fs/cgroup/memory")
    group = (version_1 if version_1.is_dir() else Path("/sys/fs/cgroup")) / f"checkpoint-{os.getpid()}"
    limits = {"memory.limit_in_bytes" if version_1.is_dir() else "memory.max": megabytes << 20}
    try:
        group.mkdir()
        try:
            for name, limit in limits.items():
                (group / name).write_text(str(limit))
            for name in ("memory.swap.max", "memory.swappiness"):  # or it would be slow, and not be killed
                if (group / name).exists():
                    (group / name).write_text("0")
        except OSError:
            group.rmdir()
            raise
    except OSError:
        pytest.skip("control groups cannot be made here")
    try:
        yield {**os.environ, "MEMORY": str(group)}
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "the group's processes to end")
        group.rmdir()


def oom_killed(job: subprocess.Popen[bytes]) -> None:
    """It is told to eat memory."""
    assert job.stdin is not None
    with suppress(BrokenPipeError):
        job.stdin.write(b"\n")
        job.stdin.flush()


@pytest.mark.slow
@posix
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize(
    ("end", "number", "redone"),
    [
        pytest.param(lambda job: job.kill(), signal.SIGKILL, 16, id="SIGKILL"),
        pytest.param(oom_killed, signal.SIGKILL, 16, id="OOM kill", marks=linux),
        pytest.param(lambda job: job.terminate(), signal.SIGTERM, 0, id="SIGTERM"),
        pytest.param(lambda job: job.send_signal(signal.SIGINT), signal.SIGINT, 0, id="Ctrl-C"),
    ],
)
def test_sigkill_oom_kill_sigterm_ctrl_c(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    end: Callable[[subprocess.Popen[bytes]], None],
    number: int,
    redone: int,
) -> None:
    """In the middle of a pass of 16 threads: what was yielded is there, and only what was in flight is run again; what
    asks to end lets even that finish.
    """
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", GREEDY + CROWD, str(tmp_path), "threads", "600"]
    with memory_of(200 if end is oom_killed else None) as environment:
        job = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        with job:
            assert job.stdout is not None
            job.stdout.read(200)
            end(job)
            while job.stdout.read(1 << 16):
                pass
            job.wait()
    assert job.returncode in (-number, 128 + number)
    with CheckpointedRunner("j", tmp_path / "checkpoints") as runner:
        done = runner.get_all_results()
    begun = counted(tmp_path / "begun")
    assert counted(tmp_path / "acknowledged").keys() <= done.keys() <= begun.keys() < set(range(600))
    assert done == {key: f"{key}:" + "x" * 300 for key in done}
    assert begun.total() - len(done) <= redone
    last = run(CROWD, tmp_path, "threads", 600, check=False)
    assert last.returncode == 0, last.stderr
    again = counted(tmp_path / "begun") - begun
    assert again.keys() == set(range(600)) - done.keys()


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("engine", ["threads", "tasks"])
@pytest.mark.parametrize(
    ("total", "kills"), [(1000, 5), pytest.param(40_000, 200, marks=pytest.mark.soak)], ids=["5 kills", "200 kills"]
)
def test_a_killed_crowd_redoes_at_most_what_was_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, total: int, kills: int
) -> None:
    """SIGKILL at random moments of sixteen calls at once: nothing yielded is lost, and at most 16 calls a kill are
    made again.
    """
    monkeypatch.chdir(tmp_path)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    command = [sys.executable, "-c", CROWD, str(tmp_path), engine, str(total)]
    killed = before = 0
    for _ in range(kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as job:
            assert job.stdout is not None
            job.stdout.read(moments.randrange(1, total // kills))
            try:
                job.wait(moments.random() * 0.01)
            except subprocess.TimeoutExpired:
                job.kill()
            killed += job.wait() != 0
        begun = counted(tmp_path / "begun")
        with CheckpointedRunner("j", tmp_path / "checkpoints") as runner:
            done = set(runner.get_all_results())
            assert counted(tmp_path / "acknowledged").keys() <= done
        lost = begun.total() - len(done)
        assert lost - before <= 16, f"{lost - before} calls of one run were for nothing"
        before = lost
    assert killed > kills // 2
    last = run(CROWD, tmp_path, engine, total, check=False)
    assert last.returncode == 0, last.stderr
    begun = counted(tmp_path / "begun")
    assert begun.keys() == set(range(total))
    assert begun.total() - total <= 16 * killed
    with CheckpointedRunner("j", tmp_path / "checkpoints") as runner:
        assert runner.get_all_results() == {key: f"{key}:" + "x" * 300 for key in range(total)}


# --- power loss, kernel crash ---------------------------------------------------------------------------------------


@pytest.mark.slow
@posix
@pytest.mark.promise("power loss, kernel crash")
@pytest.mark.parametrize("durability", ["process", "power"])
def test_power_loss_kernel_crash(
    tmp_path: Path, ticker: Any, caplog: pytest.LogCaptureFixture, durability: Any
) -> None:
    """States that a power cut may leave after each operation: what was promised by then is there, what is there is not
    wrong, and the rest is run again. (test_crash_states.py does it to all that writes.)
    """
    caplog.set_level(logging.CRITICAL, "checkpoint")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance, numbers = random.Random(seed), itertools.count()
    disk, values = tmp_path / "disk", {key: f"{key}" * 700 for key in range(8)}
    disk.mkdir()
    with Recorder(disk) as recorder:
        with CheckpointedRunner("j", disk / "checkpoints", durability=durability) as runner:
            for key, value in values.items():
                runner.save_result(key, value)
                recorder.note(key + 1)
                if key in (2, 5):
                    runner.records.store.writer.tend()  # as the store's thread does within a second
                    recorder.note("synced")
        recorder.note("synced")
    left = recorder.base.copy()
    acknowledged = promised = 0
    for event in recorder.events:
        left.apply(event)
        said = getattr(event, "what", None)
        if said is not None:
            acknowledged = acknowledged if said == "synced" else said
            promised = acknowledged if said == "synced" or durability == "power" else promised
        for _ in range(3):
            root = tmp_path / str(next(numbers))
            root.mkdir()
            materialize(left.after_power_cut(chance).tree, root)
            with CheckpointedRunner("j", root / "checkpoints") as runner:
                found = {key: ask(runner, key)[0] for key in values}
                assert all(found[key] == values[key] for key in range(promised))
                assert all(found[key] in (None, value) for key, value in values.items())
                again = list(runner.iterate(list(values)))
                assert again == [key for key in values if found[key] is None]
                for key in again:
                    runner.save_result(key, values[key])
                assert runner.get_all_results() == values
    assert promised == acknowledged == len(values)


# --- torn tail ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("torn tail")
@pytest.mark.parametrize(
    ("tear", "reason"),
    [
        (lambda line: line[:1], "one byte"),
        (lambda line: line[: len(line) // 2], "a half"),
        (lambda line: line[:-2], "all but the end"),
        (lambda line: line[:60] + bytes(440), "a page had been written, the next had not"),
        (lambda line: bytes(4096), "the file had grown, and its data had not been written"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_torn_tail(tmp_path: Path, tear: Callable[[bytes], bytes], reason: str) -> None:
    """Set aside, and cut off before the next append; its item alone runs again; nothing is glued to it."""
    data = written(tmp_path)
    start, end = lines_of(data)[-1]
    torn = tear(data[start:end])
    resume_from(tmp_path, data[:start] + torn, KEYS[:-1], torn)


# --- damaged line in the middle -------------------------------------------------------------------------------------


@pytest.mark.promise("damaged line in the middle")
def test_damaged_line_in_the_middle(make: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line is no JSON any more, in another one a byte of the value has changed: both are told, and run again."""
    path, data = tmp_path / "j_results.jsonl", bytearray(written(tmp_path))
    unframed, changed = 1, 3
    data[lines_of(bytes(data))[unframed][0]] = ord("?")
    data[data.index(b"x" * 100)] = ord("y")
    path.write_bytes(data)
    runner = make()
    assert [record.getMessage().partition(": ")[0] for record in caplog.records] == [f"{path}:{unframed + 1}"]
    assert runner.is_completed(KEYS[changed]), "the checksum is looked at when the value is read"
    _, damage = ask(runner, KEYS[changed])
    assert damage is not None
    assert (damage.path, damage.line, damage.key) == (str(path), changed + 1, KEYS[changed])
    assert not runner.is_completed(KEYS[changed])
    intact = [key for number, key in enumerate(KEYS) if number not in (unframed, changed)]
    assert runner.get_all_results() == {key: VALUES[key] for key in intact}
    found = check("j", tmp_path)
    assert sorted(line.line for line in found.results.damage) == [unframed + 1, changed + 1]
    again = []
    for key in runner.iterate(KEYS):
        again.append(key)
        runner.save_result(key, VALUES[key])
    assert again == [KEYS[unframed], KEYS[changed]]
    runner.close()
    assert make().get_all_results() == VALUES
    assert path.read_bytes().startswith(data), "the bytes stay"


# --- disk full, quota, file-size limit ------------------------------------------------------------------------------

LIMITED = """
import errno, json, os, resource, sys
from checkpoint import CheckpointedRunner, StoreError
directory = sys.argv[1]
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
runner = CheckpointedRunner("j", directory)
path = os.path.join(directory, "j_results.jsonl")
saved, refused = {}, {}
for key in range(100):
    try:
        runner.save_result(key, "x" * 1000)
        saved[key] = 1
    except StoreError as error:
        assert isinstance(error, OSError)
        assert (error.errno, error.filename) == (errno.EFBIG, path)
        refused.update(error.unsaved)
        assert open(path, "rb").read().endswith(b"}\\n")
assert 10 < len(saved) < 20 and len(saved) + len(refused) == 100
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
for key, value in refused.items():
    runner.save_result(key, value)
assert runner.get_all_results().keys() == set(range(100))
"""

SMALL = """
import errno, os, subprocess, sys
from checkpoint import CheckpointedRunner, StoreError
directory = sys.argv[1]
mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], capture_output=True)
if mounted.returncode:
    sys.exit(77)
filler = os.path.join(directory, "filler")
runner = CheckpointedRunner("j", directory)
path = os.path.join(directory, "j_results.jsonl")
runner.save_result("first", 1)
room = os.statvfs(directory)
with open(filler, "wb") as file:
    file.write(bytes((room.f_bavail - 2) * room.f_bsize))
unsaved = {}
for key in range(20):
    try:
        runner.save_result(key, "x" * 3000)
    except StoreError as error:
        assert error.errno == errno.ENOSPC, error
        unsaved.update(error.unsaved)
        assert open(path, "rb").read().endswith(b"}\\n")
assert 10 < len(unsaved) < 20
runner.close()
with CheckpointedRunner("j", directory) as reader:
    assert len(reader.get_all_results()) == 21 - len(unsaved)
    os.unlink(filler)
    for key, value in unsaved.items():
        reader.save_result(key, value)
    assert len(reader.get_all_results()) == 21
"""

QUOTA = (
    SECCOMP
    + """
from checkpoint import CheckpointedRunner, StoreError
path = os.path.join(sys.argv[1], "j_results.jsonl")
runner = CheckpointedRunner("j", sys.argv[1])
runner.save_result("small", "x" * 1000)
whole = open(path, "rb").read()
refuse("write", errno.EDQUOT, argument=2, least=3000)
try:
    runner.save_result("big", "x" * 3000)
except StoreError as error:
    assert isinstance(error, OSError)
    assert (error.errno, error.filename, error.unsaved) == (errno.EDQUOT, path, {"big": "x" * 3000})
else:
    raise AssertionError("saved")
assert open(path, "rb").read() == whole and not runner.is_completed("big")
runner.save_result("another", 1)
assert runner.get_all_results() == {"small": "x" * 1000, "another": 1}
"""
)


@pytest.mark.slow
@posix
@pytest.mark.promise("disk full, quota, file-size limit")
@pytest.mark.parametrize(
    ("code", "prefix"),
    [
        pytest.param(SMALL, ("unshare", "-rm"), id="a full disk", marks=linux),
        pytest.param(QUOTA, (), id="a quota", marks=linux),
        pytest.param(LIMITED, (), id="a file-size limit"),
    ],
)
def test_disk_full_quota_file_size_limit(tmp_path: Path, code: str, prefix: tuple[str, ...]) -> None:
    """An own error with errno, file and value; the file ends in a whole record; with room the same process goes on."""
    run(code, tmp_path, prefix=prefix)


# --- EIO on write or fsync ------------------------------------------------------------------------------------------

EIO = (
    SECCOMP
    + """
from checkpoint import CheckpointedRunner, StoreError
directory, call = sys.argv[1:]
path = os.path.join(directory, "j_results.jsonl")
runner = CheckpointedRunner("j", directory, durability="power")
runner.save_result("first", 1)

def fails(action):
    try:
        action()
    except StoreError as error:
        assert isinstance(error, OSError) and (error.errno, error.filename) == (errno.EIO, path), error
        return error.unsaved
    raise AssertionError(action)

if call == "pread":
    refuse(call, errno.EIO)
    for _ in range(2):
        fails(lambda: runner.get_result("first"))
        fails(runner.get_all_results)
    runner.close()
    for _ in range(2):
        fails(lambda: CheckpointedRunner("j", directory).get_all_results())
else:
    for fd in descriptors(path):
        refuse(call, errno.EIO, least=fd, most=fd)
    assert fails(lambda: runner.save_result("second", 2)) == {"second": 2}
    size = os.stat(path).st_size
    assert fails(lambda: runner.save_result("third", 3)) == {"third": 3}
    assert os.stat(path).st_size == size and not runner.is_completed("third")
    assert runner.get_result("first") == 1
"""
)


@pytest.mark.slow
@linux
@pytest.mark.promise("EIO on write or fsync")
@pytest.mark.parametrize("call", ["write", "fdatasync", "pread"])
def test_eio_on_write_or_fsync(tmp_path: Path, make: Opener, call: str) -> None:
    """The kernel answers EIO: not acknowledged, and refused until opened anew; an error when read, and not nothing."""
    run(EIO, tmp_path, call)
    runner = make()
    found = runner.get_all_results()
    assert found in ({"first": 1}, {"first": 1, "second": 2})
    assert list(runner.iterate(["first", "third"])) == ["third"]
    runner.save_result("third", 3)
    assert runner.get_all_results() == {**found, "third": 3}


# --- read-only directory or file ------------------------------------------------------------------------------------

READER = """
import os, sys
from checkpoint import CheckpointedRunner, StoreError
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
runner = CheckpointedRunner("j", sys.argv[1])
assert runner.get_all_results() == {key: "x" for key in range(30)}
assert runner.get_all_errors() == {"bad": "failed"}
assert runner.progress()[0] == 30
assert list(runner.iterate(range(30))) == []
try:
    runner.save_result("more", 1)
except StoreError as error:
    assert isinstance(error, OSError)
    assert error.unsaved == {"more": 1}
    print(error.errno, error.filename, error)
else:
    raise AssertionError("saved")
assert runner.get_result(3) == "x"
runner.close()
"""


@pytest.mark.slow
@posix
@pytest.mark.promise("read-only directory or file")
@pytest.mark.parametrize(
    ("prepare", "named", "reason"),
    [
        (lambda directory: directory.chmod(0o555), ".j.lock", "a read-only directory: the lock cannot be opened"),
        (
            lambda directory: (directory / ".j.lock").chmod(0o666),
            "j_results.jsonl",
            "a lock that anyone may take, and a read-only journal",
        ),
        (lambda directory: (directory / ".j.lock").unlink(), ".j.lock", "no lock file, and none can be made"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_read_only_directory_or_file(tmp_path: Path, prepare: Callable[[Path], None], named: str, reason: str) -> None:
    """Everything is readable; the first save says what is not writable, and no byte has changed."""
    root = tmp_path
    while root != root.parent and root.stat().st_uid == os.geteuid():
        root.chmod(root.stat().st_mode | stat.S_IXGRP | stat.S_IXOTH)  # pytest's directories are private
        root = root.parent
    directory = tmp_path / "checkpoints"
    with CheckpointedRunner("j", directory) as runner:
        for key in range(30):
            runner.save_result(key, "x")
        runner.save_error("bad", "failed")
        runner.records.store.own.results.write_index()
    for file in directory.iterdir():
        file.chmod(0o444)
    prepare(directory)
    directory.chmod(0o555)
    before = {file.name: file.read_bytes() for file in directory.iterdir() if file.name != ".j.lock"}
    ran = run(READER, directory)
    assert str(directory / named) in ran.stdout
    assert "writable" in ran.stdout or "read-only" in ran.stdout
    assert {file.name: file.read_bytes() for file in directory.iterdir() if file.name != ".j.lock"} == before
    directory.chmod(0o755)


# --- two writing processes ------------------------------------------------------------------------------------------


@pytest.mark.promise("two writing processes")
def test_two_writing_processes(make: Opener, tmp_path: Path) -> None:
    """The second is told at once by whom it is locked out, and changes nothing; when the first is killed it goes on."""
    child, runner = Child(tmp_path), make()
    try:
        child.ask("globals().setdefault('running', runner.iterate([1, 2])) and next(running)")
        assert child.ask("runner.save_result(1, 'theirs')") == "None"
        before = bytes_of(tmp_path)
        with pytest.raises(CheckpointLocked) as locked:
            runner.save_result(2, "ours")
        error = locked.value
        assert (error.pid, error.host, error.unsaved) == (child.process.pid, socket.gethostname(), {2: "ours"})
        assert error.since is not None
        assert bytes_of(tmp_path) == before
        assert runner.get_all_results() == {1: "theirs"}, "reading needs no lock"
    finally:
        child.kill()
    runner.save_result(2, "ours")
    assert runner.get_all_results() == {1: "theirs", 2: "ours"}


# --- fork -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@needs_fork
@pytest.mark.promise("fork")
def test_fork(tmp_path: Path, make: Opener) -> None:
    """In the middle of a pass: the child reads, and may not write; its end writes nothing; the parent goes on."""
    run_forking(
        tmp_path,
        """
def body():
    assert runner.get_all_results() == dict.fromkeys(range(key), "parent")
    refused(lambda: runner.save_result(key, "child"))
    refused(lambda: runner.save_error(key, "child"))
    refused(lambda: runner.clear())
    running.close()
    runner.close()
running = runner.iterate(range(4))
for key in running:
    wait(in_child(body))
    runner.save_result(key, "parent")
""",
    )
    assert make().get_all_results() == dict.fromkeys(range(4), "parent")
    assert (tmp_path / "j_results.jsonl").read_bytes().count(b"\n") == 4


# --- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("threads")
def test_threads(make: Opener, tmp_path: Path) -> None:
    """Eight save and read by one runner at once: each record is whole, and there as soon as it is acknowledged."""
    runner, wrong = make(), []
    expected = {(thread, n): f"{thread}:{n} " * n for thread in range(8) for n in range(60)}
    together = threading.Barrier(8)

    def work(mine: int) -> None:
        together.wait(60)
        for (thread, n), value in expected.items():
            if thread == mine:
                runner.save_result((thread, n), value)
                wrong.extend([(thread, n)] if runner.get_result((thread, n)) != value else [])

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    runner.close()
    assert make().get_all_results() == expected
    lines = (tmp_path / "j_results.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == len(expected)
    assert all(line.endswith(b"\n") and parse(line).crc for line in lines)


# --- clock jumps ----------------------------------------------------------------------------------------------------


@pytest.mark.promise("clock jumps")
def test_clock_jumps(make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back, forth and out of any calendar between two records of a key: the last one in the file counts."""
    jumps = itertools.cycle([2e9, 0.0, -5e9, 1e12, 1e9])
    monkeypatch.setattr(clock.Stamper.__init__, "__defaults__", (lambda: next(jumps),))
    runner = make()
    for turn in range(7):
        runner.save_result("result", turn)
        runner.save_error("error", f"{turn}")
        runner.save_result("forgotten", turn)
        runner.clear(["forgotten"])
    for _ in range(2):
        assert runner.get_all_results() == {"result": 6}
        assert runner.get_all_errors() == {"error": "6"}
        assert list(runner.iterate(["result", "forgotten"])) == ["forgotten"]
        runner.close()
        runner = make()
    lines = (tmp_path / "j_results.jsonl").read_bytes().splitlines()
    stamps = [json.loads(line)["timestamp"] for line in lines]
    assert stamps != sorted(stamps)


# --- journal deleted, replaced or truncated while open --------------------------------------------------------------


def _replace(path: Path) -> None:
    shutil.copy(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


@posix
@pytest.mark.promise("journal deleted, replaced or truncated while open")
@pytest.mark.parametrize(
    ("change", "later", "lost", "again"),
    [
        pytest.param(Path.unlink, 1.0, "ab", "abc", id="deleted"),
        pytest.param(_replace, 1.0, "ab", "c", id="replaced"),
        pytest.param(lambda path: os.truncate(path, path.stat().st_size - 5), 0, "b", "bc", id="truncated"),
    ],
)
def test_journal_deleted_replaced_or_truncated_while_open(
    make: Opener, tmp_path: Path, ticker: Any, change: Callable[[Path], None], later: float, lost: str, again: str
) -> None:
    """The next save lists the keys at risk, at once or a second later; nothing is written, and the next pass begins
    anew.
    """
    runner, path = make(), tmp_path / "j_results.jsonl"
    for key in "ab":
        runner.save_result(key, key)
    opened = runner.records.store.own.results.journal.reader
    assert opened is not None
    change(path)
    ticker.tick(later)
    size, there = opened.size(), path.read_bytes() if path.exists() else None
    for _ in range(2):
        with pytest.raises(JournalLost) as told:
            runner.save_result("c", "c")
        assert (told.value.filename, told.value.keys, told.value.unsaved) == (str(path), list(lost), {"c": "c"})
    assert opened.size() == size, "nothing goes into a file that nobody will find"
    assert (path.read_bytes() if path.exists() else None) == there
    assert list(runner.iterate(list("abc"))) == list(again)
    for key in again:
        runner.save_result(key, key)
    assert runner.get_all_results() == {"a": "a", "b": "b", "c": "c"}


# --- bytes that are no UTF-8, NULs, BOM, CRLF -----------------------------------------------------------------------


@pytest.mark.promise("bytes that are no UTF-8, NULs, BOM, CRLF")
def test_bytes_that_are_no_utf_8_nuls_bom_crlf(make: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All of them in one file: two lines are damaged, and no other; a save leaves every byte where it is."""
    path = tmp_path / "j_results.jsonl"
    lines = written(tmp_path).replace(b"\n", b"\r\n").splitlines(keepends=True)
    data = b"\xef\xbb\xbf" + b"".join(
        [*lines[:2], b"\xff\xfe\xc3\x28\r\n", *lines[2:4], bytes(500) + b"\n", *lines[4:]]
    )
    path.write_bytes(data)
    runner = make()
    assert runner.get_all_results() == VALUES
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"{path}:3: damaged line skipped: ")
    assert "so are lines 6;" in told
    assert list(runner.iterate([*KEYS, "more"])) == ["more"]
    runner.save_result("more", 1)
    assert path.read_bytes().startswith(data)
    runner.close()
    assert make().get_all_results() == {**VALUES, "more": 1}


# --- giant or deep records ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("giant or deep records")
def test_giant_or_deep_records(make: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """50 MB come back as they were; lines of rubbish as large, or 100,000 deep, damage themselves only, unquoted."""
    path, giant = tmp_path / "j_results.jsonl", "0123456789abcdef" * (50 << 16)
    runner = make()
    runner.save_result("giant", giant)
    runner.close()
    with open(path, "ab") as file:
        file.write(b'{"key":"deep","result":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
        file.write(b'{"key":"endless","result":"' + b"x" * (50 << 20) + b"\n")
        file.write(b'{"key":"%s","result":1,"crc":"00000000"}\n' % (b"k" * 100_000))
    runner = make()
    runner.save_result("after", 1)
    assert runner.get_result("giant") == giant
    assert list(runner.iterate(["giant", "after", "deep", "endless"])) == ["deep", "endless"]
    _, damage = ask(runner, "k" * 100_000)
    told = [record.getMessage() for record in caplog.records] + ([str(damage)] if damage else [])
    assert told
    assert max(map(len, told)) < len(str(path)) + 500


# --- a worker process dies ------------------------------------------------------------------------------------------

DYING = """
import ctypes, os, signal, sys

from checkpoint import checkpointed


@checkpointed("j", checkpoint_dir=os.path.dirname(__file__), version=1)
def work(item):
    with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as file:
        file.write(f"{item}\\n")
    if item == "segfault":
        ctypes.string_at(0)
    if item == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "memory":
        return len(b"x" * (1 << 30))
    return item * 2


if __name__ == "__main__":
    if "MEMORY" in os.environ:
        with open(os.path.join(os.environ["MEMORY"], "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    items = ["a", "b", sys.argv[1], "c", "d"]
    results = work.map(items, executor="processes", workers=2, progress=False, return_exceptions=True)
    assert [results[place] for place in (0, 1, 3, 4)] == ["aa", "bb", "cc", "dd"]
    print(results[2].key, results[2].type, results[2].message)
"""


@pytest.mark.slow
@posix
@pytest.mark.promise("a worker process dies")
@pytest.mark.parametrize(
    ("item", "name"),
    [("segfault", "SIGSEGV"), ("kill", "SIGKILL"), pytest.param("memory", "SIGKILL", marks=linux)],
)
def test_a_worker_process_dies(tmp_path: Path, item: str, name: str) -> None:
    """Three times, and its item is named with the signal; the others are run, each once or with it."""
    (tmp_path / "dying.py").write_text(DYING)
    with memory_of(300 if item == "memory" else None) as environment:
        ran = subprocess.run(
            [sys.executable, str(tmp_path / "dying.py"), item],
            capture_output=True, text=True, timeout=120, env=environment, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
    key, kind, message = ran.stdout.split(" ", 2)
    assert (key, kind) == (item, "checkpoint.errors.WorkerDied")
    assert name in message
    calls = Counter((tmp_path / "calls").read_text().split())
    assert calls == {**dict.fromkeys("abcd", 1), item: 3}


# --- hostile names --------------------------------------------------------------------------------------------------


@pytest.mark.promise("hostile names")
def test_hostile_names(tmp_path: Path) -> None:
    """Refused by every face, before any file is made."""
    directory = tmp_path / "checkpoints"
    faces: list[Any] = [CheckpointedRunner, BatchCheckpointedRunner, checkpointed]
    odd = ["é", "a" * 201, b"a", None, 7]
    for name in ["", ".", "..", ".j", "../j", "a/b", "/j", "a\\b", "C:j", "a\0b", "a\n", " a", *odd]:
        for make in faces:
            with pytest.raises(InvalidName) as refused:
                make(name, checkpoint_dir=directory)
            assert isinstance(refused.value, ValueError)
    assert list(tmp_path.iterdir()) == []


# --- untrusted checkpoints ------------------------------------------------------------------------------------------


@pytest.mark.promise("untrusted checkpoints")
def test_untrusted_checkpoints(make: Opener, tmp_path: Path) -> None:
    """Whatever tags a file holds: plain values or own errors, no import, no call, no file made."""
    mark = tmp_path / "ran"
    lines = [
        {"$object": "os.system", "args": [f"touch {mark}"]},
        {"$type": "subprocess:Popen", "value": ["touch", str(mark)]},
        {"$pickle": "gASVIAAAAAAAAACMBXBvc2l4lIwGc3lzdGVtlJOUjAR0cnVllIWUUpQu"},
        {"$class": "__main__.Evil", "state": {}},
        {"py/object": "os.system", "py/reduce": [f"touch {mark}"]},
    ]
    with open(tmp_path / "j_results.jsonl", "w") as file:
        for key, value in enumerate(lines):
            file.write(json.dumps({"key": key, "result": value}) + "\n")
            file.write(json.dumps({"key": f"s{key}", "result": value, "session": "00000000"}) + "\n")
    before = set(sys.modules)
    runner = make()
    for key in range(len(lines)):
        assert runner.get_result(key) == lines[key]
        try:
            runner.get_result(f"s{key}")
        except ValueError:
            pass
    assert not mark.exists()
    assert set(sys.modules) - before <= {"numpy"} | {name for name in sys.modules if name.startswith("encodings")}


# --- symlinks, permissions ------------------------------------------------------------------------------------------


@posix
@pytest.mark.promise("symlinks, permissions")
def test_symlinks_permissions(tmp_path: Path) -> None:
    """Links planted wherever a file of ours may come lead nowhere; what is made follows the umask."""
    precious, directory = tmp_path / '{"precious": 1}', tmp_path / "checkpoints"
    precious.write_text('{"precious": 1}')
    before = os.umask(0o027)
    try:
        with CheckpointedRunner("j", directory) as runner:
            runner.save_result(1, 1)
            runner.save_error("bad", "failed")
            runner.records.store.own.results.write_index()
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()}
        assert modes.pop(".j.lock") == 0o600
        assert set(modes.values()) == {0o640}
        assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    finally:
        os.umask(before)
    with open(directory / "j_results.jsonl", "ab") as file:
        file.write(b'{"key":"torn')
    planted = [
        ".j_results.index",
        f".j_results.index.{os.getpid()}.tmp",
        f".j_meta.{os.getpid()}.tmp",
        ".j_results.aside",
        ".j_unsaved.jsonl",
        "j_errors.jsonl",
    ]
    for name in (*planted, ".j.lock"):
        (directory / name).unlink(missing_ok=True)
        (directory / name).symlink_to(precious)
        with CheckpointedRunner("j", directory) as runner:
            with suppress(StoreError):  # the lock, and what is set aside, are not to be had
                runner.save_result(2, 2)
            runner.records.store.own.results.write_index()
            assert runner.get_result(1) == 1
        assert precious.read_text() == '{"precious": 1}'


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.promise("secrets")
def test_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What argument, locals and environment hold is in no file, though the item fails with all of it at hand."""
    secret = "hunter" + "2" * 9
    monkeypatch.setenv("API_TOKEN", secret)

    @checkpointed("j", key="id", checkpoint_dir=tmp_path)
    def function(item: dict[str, Any]) -> None:
        headers = {"Authorization": os.environ["API_TOKEN"] + item["password"]}
        raise LookupError(f"{len(headers)} header was refused")

    with pytest.raises(ItemsFailed):
        function.map([{"id": 1, "password": secret}], progress=False)
    told = function.errors[1]
    assert (told.type, told.message) == ("LookupError", "1 header was refused")
    assert told.traceback is not None
    assert "in function" in told.traceback
    function.runner.close()
    assert [file.name for file in tmp_path.iterdir() if secret.encode() in file.read_bytes()] == []


# --- meta or index missing, empty, garbage, stale -------------------------------------------------------------------


@pytest.mark.promise("meta or index missing, empty, garbage, stale")
@pytest.mark.parametrize("name", ["j_meta.json", ".j_results.index"])
@pytest.mark.parametrize("fate", ["missing", "empty", "garbage", "stale"])
def test_meta_or_index_missing_empty_garbage_stale(make: Opener, tmp_path: Path, name: str, fate: str) -> None:
    """The journals say what is there; the next writer writes it anew."""
    runner = make(version="v")
    for key in runner.iterate(range(20)):
        runner.save_result(key, "old")
    runner.records.store.own.results.write_index()
    runner.close()
    stale = (tmp_path / name).read_bytes()
    runner = make(version="v")
    for key in range(30):
        runner.save_result(key, f"{key}")
    runner.clear([29])
    runner.records.store.own.results.write_index()
    runner.close()
    change = {"empty": b"", "garbage": random.Random(7).randbytes(9000), "stale": stale}
    (tmp_path / name).unlink() if fate == "missing" else (tmp_path / name).write_bytes(change[fate])
    for _ in range(2):
        runner = make()
        assert list(runner.iterate(range(31))) == [29, 30]
        assert runner.get_all_results() == {key: f"{key}" for key in range(29)}
        assert {key: runner.get_result(key) for key in range(30)} == {**runner.get_all_results(), 29: None}
        assert runner.records.count()[0] == 29
        runner.save_result(0, "0")
        runner.records.store.own.results.write_index()
        runner.close()
    assert json.loads((tmp_path / "j_meta.json").read_bytes())["completed_items"] == 29
    assert check("j", tmp_path).results.index == "sound"


# --- a crash during recovery ----------------------------------------------------------------------------------------

RECOVERY = (
    SECCOMP
    + """
from checkpoint import CheckpointedRunner
import checkpoint.storage.journal  # all that is imported is, before calls are refused
call, argument, least = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
refuse(call, KILL, argument, least)
CheckpointedRunner("j", sys.argv[1]).save_result("next", 1)
"""
)


@pytest.mark.slow
@linux
@pytest.mark.promise("a crash during recovery", "torn tail")
def test_a_crash_during_recovery(tmp_path: Path, make: Opener) -> None:
    """It is killed at each of its calls in turn, on the same files: the torn bytes are never nowhere."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result("whole", 1)
    path, torn = tmp_path / "j_results.jsonl", b'{"key":"torn","result":"' + b"x" * 3000
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    for call, argument, least in (
        ("write", 2, 3000),  # of what is set aside
        ("fdatasync", 0, 0),  # of it
        ("fsync", 0, 0),  # of the directory
        ("ftruncate", 1, 1),  # which cuts them off; the lock's file is cut to nothing
    ):
        ran = run(RECOVERY, tmp_path, call, argument, least, check=False)
        assert ran.returncode == -signal.SIGSYS, (call, ran)
        assert path.read_bytes() == whole + torn
        assert make().get_all_results() == {"whole": 1}
    runner = make()
    assert list(runner.iterate(["whole", "torn"])) == ["torn"]
    runner.save_result("torn", 2)
    assert path.read_bytes().startswith(whole + b'{"key":"torn","result":2')
    assert set_aside(path).startswith(torn)
    assert runner.get_all_results() == {"whole": 1, "torn": 2}


# --- NFS, network drives --------------------------------------------------------------------------------------------

NO_LOCKS = (
    SECCOMP
    + """
from checkpoint import CheckpointedRunner, StoreError
runner = CheckpointedRunner("j", sys.argv[1])
refuse("flock", errno.ENOLCK)
assert runner.get_all_results() == {1: 1}
try:
    runner.save_result(2, 2)
except StoreError as error:
    assert isinstance(error, OSError) and error.errno == errno.ENOLCK and error.unsaved == {2: 2}
    assert "may have no locks" in str(error)
else:
    raise AssertionError("written without a lock")
assert runner.get_all_results() == {1: 1}
"""
)


@linux
@pytest.mark.promise("NFS, network drives")
def test_nfs_network_drives(tmp_path: Path) -> None:
    """The kernel answers to a lock as a mount without locks does: the first save says so; reading needs none."""
    with CheckpointedRunner("j", tmp_path) as runner:
        runner.save_result(1, 1)
    before = (tmp_path / "j_results.jsonl").read_bytes()
    run(NO_LOCKS, tmp_path)
    assert (tmp_path / "j_results.jsonl").read_bytes() == before


# --- a given executor breaks ----------------------------------------------------------------------------------------

BREAKING = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor

from checkpoint import BrokenWorkers, checkpointed

HERE = os.path.dirname(__file__)


@checkpointed("j", checkpoint_dir=HERE, version=1)
def work(n):
    if n == 3 and not os.path.exists(os.path.join(HERE, "mended")):
        os.kill(os.getpid(), signal.SIGKILL)
    return n * 2


def pool():
    return ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"))


if __name__ == "__main__":
    with pool() as executor:
        try:
            work.map(range(8), executor=executor, progress=False)
        except BrokenWorkers as error:
            assert "run the same line again with a fresh one" in str(error), error
        else:
            raise AssertionError("it did not break")
    assert dict(work.errors) == {}
    done = set(work.results)
    open(os.path.join(HERE, "mended"), "w").close()
    with pool() as executor:
        assert work.map(range(8), executor=executor, progress=False) == [n * 2 for n in range(8)]
    assert 3 not in done
"""


@pytest.mark.slow
@posix
@pytest.mark.promise("a given executor breaks")
def test_a_given_executor_breaks(tmp_path: Path) -> None:
    """One of its workers is killed: that is told, no item has failed, and a fresh one runs the rest."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    subprocess.run([sys.executable, str(tmp_path / "breaking.py")], timeout=120, check=True)
    lines = (tmp_path / "j_results.jsonl").read_bytes().splitlines()
    assert sorted(json.loads(line)["key"] for line in lines) == list(range(8))


# --- the parent of worker processes is killed -----------------------------------------------------------------------

ORPHANS = """
import os, sys, time

from checkpoint import checkpointed


@checkpointed("j", checkpoint_dir=os.path.dirname(__file__), version=1)
def work(n):
    sys.stdout.write(f"{os.getpid()}\\n")
    sys.stdout.flush()
    while True:  # busy, or asleep
        if n:
            time.sleep(3600)


if __name__ == "__main__":
    work.map(range(2), executor="processes", workers=2, progress=False)
"""


@pytest.mark.slow
@linux
@pytest.mark.promise("the parent of worker processes is killed")
def test_the_parent_of_worker_processes_is_killed(tmp_path: Path) -> None:
    """Whatever its workers are at, they end."""
    (tmp_path / "orphans.py").write_text(ORPHANS)
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "orphans.py")], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert len({parent.stdout.readline(), parent.stdout.readline()}) == 2, "both are at work"
        parent.kill()
        parent.wait()
        try:
            wait_until(lambda: is_gone(parent.pid), "the workers to end")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(parent.pid, signal.SIGKILL)


# --- a checkpoint of schema 1.0.0 -----------------------------------------------------------------------------------

OLD_RESULTS: dict[str, Any] = {
    "1": {"answer": 42, "note": "häh \u2028"},
    "2": [1, 2, {"nested": None}],
    "a": float("nan"),
    "b": {"$set": [1, 2]},
    "c": {"$tuple": [1, 2], "other": 1},
    "(1, 2)": "a tuple's text",
    "1.5": float("-inf"),
    "None": None,
    "\ud800": "\udfff",
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint of schema 1.0.0, written as its code wrote it: json.dumps and nothing else, all keys as text."""
    moment = "2025-03-01T12:00:00.123456"
    results = [json.dumps({"key": key, "result": value, "timestamp": moment}) for key, value in OLD_RESULTS.items()]
    errors = [
        json.dumps({"key": key, "error": text, "timestamp": moment})
        for key, text in {"3": "boom", "a": "retired later", "x": "kaputt: ü"}.items()
    ]
    meta = {
        "experiment_name": "j",
        "started_at": moment,
        "last_updated": moment,
        "total_items": 12,
        "completed_items": 9,
        "failed_items": 2,
        "schema_version": "1.0.0",
    }
    (tmp_path / "j_results.jsonl").write_text("\n".join(results) + "\n")
    (tmp_path / "j_errors.jsonl").write_text("\n".join(errors) + "\n")
    (tmp_path / "j_meta.json").write_text(json.dumps(meta, indent=2))
    return tmp_path


@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_an_old_checkpoint_opens(make: Opener, old: Path) -> None:
    """Its values are what json.loads makes of them: a dict that looks like our envelope is a dict."""
    runner = make()
    found = runner.get_all_results()
    assert list(found) == list(OLD_RESULTS)
    assert found.pop("a") != found.get("a"), "NaN"
    assert found == {key: value for key, value in OLD_RESULTS.items() if key != "a"}
    assert runner.get_all_errors() == {"3": "boom", "x": "kaputt: ü"}
    assert runner.progress() == (9, 12)
    assert runner.records.version == ""


@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_an_old_checkpoint_resumes_for_the_keys_it_was_given(make: Opener, old: Path) -> None:
    """It wrote every key as text: a line stands for any key of that text, an int or a tuple as well."""
    items: list[Any] = [1, 2, 3, "a", "b", (1, 2), 1.5, None, "d", "\ud800"]
    runner = make()
    assert list(runner.iterate(items, key_fn=lambda item: item)) == ["d", 3], "3 failed, and comes last"
    assert runner.get_result(1) == runner.get_result("1") == OLD_RESULTS["1"]
    assert runner.get_result(None) is None
    assert runner.is_completed(None)
    assert not runner.is_completed(1.0), "its text is another"


@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_a_record_with_its_exact_key_wins_over_an_old_line(make: Opener, old: Path) -> None:
    """Whichever is read: memory, the journal, or the index; and the old line is listed no more."""
    runner = make()
    runner.save_result(1, "new")
    runner.save_error("3", "new error")
    for _ in range(3):
        found = runner.get_all_results()
        assert found[1] == "new"
        assert "1" not in found
        assert len(found) == 9 == runner.progress()[0]
        assert runner.get_result(1) == "new"
        assert runner.get_all_errors() == {"3": "new error", "x": "kaputt: ü"}
        runner.records.store.own.results.write_index()
        runner.close()
        runner = make()
    before = (old / "j_results.jsonl").read_bytes()
    assert before.startswith(b'{"key": "1", "result": {"answer": 42'), "old bytes stay"


@pytest.mark.slow
@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_a_key_of_an_old_checkpoint_can_be_forgotten(make: Opener, old: Path) -> None:
    """By any key of its text, and for good."""
    runner = make()
    runner.clear([2, "b"])
    for _ in range(2):
        assert list(runner.iterate([1, 2, "a", "b"], key_fn=lambda item: item)) == [2, "b"]
        assert runner.get_all_results().keys() == OLD_RESULTS.keys() - {"2", "b"}
        runner.close()
        runner = make()


@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_an_old_checkpoint_is_done_under_no_version_only(make: Opener, old: Path) -> None:
    """It knows no versions: under a named one everything is computed anew, and without one it counts again."""
    assert make(version="v").get_all_results() == {}
    assert len(make(version=None).get_all_results()) == 9


@pytest.mark.promise("a checkpoint of schema 1.0.0")
def test_a_checkpoint_of_schema_1_0_0(make: Opener, old: Path) -> None:
    """Resumed, finished, opened again: the same results as if it had been one run."""
    runner = make()
    for key in runner.iterate([1, 2, 3, "d"], key_fn=lambda item: item):
        runner.save_result(key, f"new {key}")
    runner.close()
    runner = make()
    assert list(runner.iterate([1, 2, 3, "d"], key_fn=lambda item: item)) == []
    assert (runner.get_result(3), runner.get_result("d")) == ("new 3", "new d")
    assert runner.get_all_errors() == {"x": "kaputt: ü"}
    runner.close()
    meta = json.loads((old / "j_meta.json").read_bytes())
    assert (meta["started_at"], meta["schema_version"]) == ("2025-03-01T12:00:00.123456", "2.0.0")


@pytest.mark.promise("torn tail", "a checkpoint of schema 1.0.0")
def test_a_torn_line_of_an_old_checkpoint_runs_again(make: Opener, old: Path) -> None:
    """The original's own crashes are mended too."""
    path = old / "j_results.jsonl"
    data = path.read_bytes()
    for cut in range(2, len(data.splitlines(keepends=True)[-1])):
        path.write_bytes(data[:-cut])
        runner = make()
        assert not runner.is_completed("\ud800")
        assert runner.is_completed("None")
        runner.close()


# --- progress -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_progress_is_right_at_every_moment(tmp_path: Path) -> None:
    """In a pass, after it, and in another process."""
    with BatchCheckpointedRunner("j", tmp_path) as runner:
        for done, key in enumerate(runner.iterate(range(5))):
            assert runner.progress() == (done, 5)
            runner.save_result(key, key)
        assert runner.progress() == (5, 5)
    ran = run(
        "import sys; from checkpoint import CheckpointedRunner; print(CheckpointedRunner('j', sys.argv[1]).progress())",
        tmp_path,
    )
    assert ran.stdout == "(5, 5)\n"
