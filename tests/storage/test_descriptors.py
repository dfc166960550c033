"""The law of descriptors: what nobody uses keeps none; what is kept keeps its bytes; too many are told with the fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint import CheckpointedRunner, JournalLost, checkpointed
from checkpoint.maintenance.compact import compact
from checkpoint.storage import reader as reader_module

pytestmark = pytest.mark.skipif(os.name == "nt", reason="resource limits are of POSIX")

SWEEP = """
import os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
from checkpoint import CheckpointedRunner, checkpointed

@checkpointed("p")
def f(n):
    return n

kept = []
"""
OPTIONS = """
for number in range({count}):
    kept.append(f.options(name=f"n{{number}}"))
    assert kept[-1].map([1], progress=False) == [1]
assert [function.map([1, 2], progress=False)[1] for function in kept[:: {step}]] == [2] * {left}
assert all(dict(function.results)[1] == 1 for function in kept)
"""
DECORATED = """
for number in range({count}):
    function = checkpointed(f"n{{number}}")(lambda n: n)
    assert function.map([1], progress=False) == [1]
"""
RUNNERS = """
for number in range({count}):
    runner = CheckpointedRunner(f"n{{number}}")
    runner.save_result(1, 1)
    runner.save_error(2, "failed")
    kept.append(runner)
assert all(runner.get_result(1) == 1 for runner in kept)
for runner in kept[::{step}]:
    runner.save_result(2, 2)
assert all(runner.get_all_results() == {{1: 1, 2: 2}} for runner in kept[::{step}])
"""
SHARDS = """
for number in range({count} // 8):
    kept.append(f.options(name=f"n{{number}}"))
    for shard in range(8):
        kept[-1].map(range(40), progress=False, shard=(shard, 8))
assert all(function.map(range(40), progress=False) == list(range(40)) for function in kept)
"""


def run(code: str, directory: Path) -> subprocess.CompletedProcess[str]:
    """A program of its own, since the limit is the process's."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=directory, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("count", [300, pytest.param(5000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (OPTIONS, "copies under other names, all alive"),
        (DECORATED, "a function each, dropped"),
        (RUNNERS, "by hand, none of them closed"),
        (SHARDS, "each in eight parts"),
    ],
    ids=["options", "decorated", "runners", "shards"],
)
def test_a_sweep_over_many_names_runs_with_few_descriptors(tmp_path: Path, body: str, reason: str, count: int) -> None:
    """256 are enough for any number of checkpoints, and each is read and written again later."""
    step = count // 30
    done = run(SWEEP + body.format(count=count, step=step, left=len(range(0, count, step))), tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.promise("too many open files")
def test_too_many_open_files(tmp_path: Path) -> None:
    """Results that are kept keep their files: the error says what to do, and they are all readable afterwards."""
    code = (
        SWEEP
        + """
results = []
try:
    for number in range(400):
        results.append(f.options(name=f"n{number}").map([number], progress=False))
except OSError as error:
    print(type(error).__name__, error)
assert [kept[0] for kept in results] == list(range(len(results)))
print(len(results) > 80)
results.clear()
assert f.options(name="after").map([1], progress=False) == [1]
"""
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    told, many = done.stdout.splitlines()
    assert told.startswith("StoreError")
    for part in ("drop Results", "runner.close()", "ulimit -n"):
        assert part in told
    assert many == "True"


MANY_SHARDS = """
import os, resource
from checkpoint import CheckpointedRunner, checkpointed
from checkpoint.catalog.shards import hash_of
from checkpoint.storage.record import seal
resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))
os.mkdir("checkpoints")
lines = [[] for _ in range({count})]
for n in range(2 * {count}):
    line = seal(b'{{"key":%d,"result":%d,"timestamp":"2026-01-01T00:00:00.000Z"' % (n, n))
    lines[hash_of(n) % {count}].append(line)
for number, held in enumerate(lines):
    with open(f"checkpoints/s@{{number}}-of-{count}_results.jsonl", "wb") as file:
        file.write(b"".join(held))

def opened():
    return sum("-of-{count}_" in os.path.realpath(f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd"))

runner = CheckpointedRunner("s", version=None)
found = runner.get_all_results()
assert found == {{n: n for n in range(2 * {count})}}
assert list(runner.iterate(range(2 * {count}))) == []
print(opened())
results = checkpointed("s", version=None)(lambda n: 1 / 0).map(range(2 * {count}), progress=False)
assert results == list(range(2 * {count}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counted by /proc")
@pytest.mark.parametrize(
    ("count", "limit"), [(150, 256), (150, 4000), pytest.param(2000, 256, marks=pytest.mark.soak)], ids=str
)
def test_shards_keep_no_descriptor_after_a_pass_over_all(tmp_path: Path, count: int, limit: int) -> None:
    """However many there are, and however few may be open at once."""
    done = run(MANY_SHARDS.format(count=count, limit=limit), tmp_path)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr[-2000:]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is kept that nobody holds."""
    reader_module._let_go_of_idle(0)
    monkeypatch.setattr(reader_module, "most_idle", lambda: 0)


def descriptors(path: Path) -> int:
    """How many this process has of a file."""
    links = (f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.lexists(link) and os.path.realpath(link) == str(path.resolve()) for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counted by /proc")
@pytest.mark.usefixtures("few")
def test_an_idle_checkpoint_has_no_descriptor_and_its_results_have_one(tmp_path: Path) -> None:
    """It is let go when the pass ends; who keeps Results keeps the file; who drops them lets it go."""
    function = checkpointed("idle", checkpoint_dir=tmp_path)(lambda n: n)
    path = tmp_path / "idle_results.jsonl"
    function.map([1], progress=False)
    function.runner.records.store.writer.tend()  # as its thread does within a second
    reader_module._let_go_of_idle(0)
    assert descriptors(path) == 0
    results = function.map([1], progress=False)
    reader_module._let_go_of_idle(0)
    assert (descriptors(path), results[0]) == (1, 1)
    assert descriptors(tmp_path / "idle_errors.jsonl") == 0, "none of its items failed"
    del results
    reader_module._let_go_of_idle(0)
    assert descriptors(path) == 0


def by_clear(directory: Path) -> None:
    """Everything is forgotten, and one key is saved anew."""
    with CheckpointedRunner("j", directory) as runner:
        runner.clear()
        runner.save_result(9, "new")


def by_compaction(directory: Path) -> None:
    """Superseded lines are left out."""
    with CheckpointedRunner("j", directory) as runner:
        runner.save_result(1, "new")
    compact("j", directory)


def by_hand(directory: Path) -> None:
    """Another file takes the place, longer than the one before."""
    path = directory / "j_results.jsonl"
    lines = b"".join(b'{"key":%d,"result":"by hand"}\n' % number for number in range(100))
    path.with_name("other").write_bytes(lines)
    path.with_name("other").replace(path)


def in_place(directory: Path) -> None:
    """The same file is written anew, longer."""
    by = b"".join(b'{"key":%d,"result":"in place"}\n' % number for number in range(100))
    with (directory / "j_results.jsonl").open("r+b") as file:
        file.write(by)


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("change", [by_clear, by_compaction, by_hand, in_place])
def test_a_journal_that_changes_while_it_is_let_go_is_read_anew(tmp_path: Path, change: object) -> None:
    """As if it had been open: what is there now is found, and nothing of what was."""
    function = checkpointed("j", checkpoint_dir=tmp_path, version=None, key=lambda n: n)(lambda n: f"old {n}")
    function.runner.save_result("warm", 1)
    function.map(range(5), progress=False)
    reader_module._let_go_of_idle(0)
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"import pathlib, test_descriptors as t; t.{change.__name__}(pathlib.Path({str(tmp_path)!r}))"  # type: ignore[attr-defined]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with CheckpointedRunner("j", tmp_path) as other:
        assert dict(function.results) == other.get_all_results()
    assert dict(function.results)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("change", [by_clear, by_compaction, by_hand])
def test_results_keep_their_bytes_whatever_is_let_go(tmp_path: Path, change: object) -> None:
    """Compacted, cleared or replaced by another process: they were made with these values."""
    function = checkpointed("j", checkpoint_dir=tmp_path)(lambda n: f"old {n}")
    results = function.map(range(5), progress=False)
    reader_module._let_go_of_idle(0)
    change(tmp_path)  # type: ignore[operator]
    reader_module._let_go_of_idle(0)
    assert results == [f"old {n}" for n in range(5)]


@pytest.mark.usefixtures("few")
def test_a_reader_never_reads_another_file_than_its_own(tmp_path: Path) -> None:
    """Not at the same path, not of the same inode number: it says that its file is gone."""
    path = tmp_path / "file"
    path.write_bytes(b"one\n" * 100)
    reader = reader_module.Reader.open(path)
    assert reader is not None
    reader.let_go_when_idle()
    assert reader.pread(4, 0) == b"one\n"
    reader.let_go()
    with path.open("ab") as file:
        file.write(b"two\n")
    assert reader.pread(8, 396) == b"one\ntwo\n"
    reader.let_go()
    path.write_bytes(b"two\n" * 200)
    for read in (lambda: reader.pread(4, 0), reader.size, reader.hold):
        with pytest.raises(JournalLost, match="replaced"):
            read()
    assert not reader.is_current()
