"""What holds when things go wrong, the faults really caused: kills, full disks, other users, checkpoints of old."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint import BatchCheckpointedRunner, CheckpointedRunner
from checkpoint.journal import parse

Opener = Callable[..., CheckpointedRunner]


def run(code: str, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own; it must end well and quietly."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if check:
        assert (ran.returncode, ran.stderr) == (0, "")
    return ran


# --- kills ----------------------------------------------------------------------------------------------------------

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


@pytest.mark.parametrize(
    ("size", "total", "kills"),
    [
        (300, 3000, 14),
        (4096, 2000, 14),
        (100_000, 400, 12),
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


@pytest.mark.parametrize("engine", ["threads", "tasks"])
@pytest.mark.parametrize(
    ("total", "kills"), [(2000, 10), pytest.param(40_000, 200, marks=pytest.mark.soak)], ids=["10 kills", "200 kills"]
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


# --- full disks -----------------------------------------------------------------------------------------------------

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


@pytest.mark.skipif(sys.platform == "win32", reason="there is no file-size limit")
def test_a_file_size_limit_is_a_full_disk(tmp_path: Path, make: Opener) -> None:
    """An own error with EFBIG, the file cut back to whole records, the value on the error; and on with it later."""
    run(LIMITED, tmp_path)
    assert make().get_all_results() == dict.fromkeys(range(100), "x" * 1000)


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


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount, and not everywhere")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """The same on a file system without room: save, close, open and read go on; only the new values are missing."""
    ran = subprocess.run(
        ["unshare", "-m", sys.executable, "-c", SMALL, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if ran.returncode == 77 or "unshare" in ran.stderr.partition(":")[0]:
        pytest.skip("mounting is not allowed here")
    assert (ran.returncode, ran.stderr) == (0, "")


# --- other users ----------------------------------------------------------------------------------------------------

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


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are other ones")
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
def test_who_may_not_write_may_read(tmp_path: Path, prepare: Callable[[Path], None], named: str, reason: str) -> None:
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
        runner.records.store.results.write_index()
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


# --- checkpoints of schema 1.0.0 ------------------------------------------------------------------------------------

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


def test_an_old_checkpoint_resumes_for_the_keys_it_was_given(make: Opener, old: Path) -> None:
    """It wrote every key as text: a line stands for any key of that text, an int or a tuple as well."""
    items: list[Any] = [1, 2, 3, "a", "b", (1, 2), 1.5, None, "d", "\ud800"]
    runner = make()
    assert list(runner.iterate(items, key_fn=lambda item: item)) == [3, "d"]
    assert runner.get_result(1) == runner.get_result("1") == OLD_RESULTS["1"]
    assert runner.get_result(None) is None
    assert runner.is_completed(None)
    assert not runner.is_completed(1.0), "its text is another"


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
        runner.records.store.results.write_index()
        runner.close()
        runner = make()
    before = (old / "j_results.jsonl").read_bytes()
    assert before.startswith(b'{"key": "1", "result": {"answer": 42'), "old bytes stay"


def test_a_key_of_an_old_checkpoint_can_be_forgotten(make: Opener, old: Path) -> None:
    """By any key of its text, and for good."""
    runner = make()
    runner.clear([2, "b"])
    for _ in range(2):
        assert list(runner.iterate([1, 2, "a", "b"], key_fn=lambda item: item)) == [2, "b"]
        assert runner.get_all_results().keys() == OLD_RESULTS.keys() - {"2", "b"}
        runner.close()
        runner = make()


def test_an_old_checkpoint_is_done_under_no_version_only(make: Opener, old: Path) -> None:
    """It knows no versions: under a named one everything is computed anew, and without one it counts again."""
    assert make(version="v").get_all_results() == {}
    assert len(make(version=None).get_all_results()) == 9


def test_an_old_checkpoint_completes(make: Opener, old: Path) -> None:
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


# --- untrusted checkpoints ------------------------------------------------------------------------------------------


def test_opening_and_reading_runs_no_code(make: Opener, tmp_path: Path) -> None:
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


# --- progress -------------------------------------------------------------------------------------------------------


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
