"""A checkpoint that was written when all modules lay in one folder opens as it did, to the last pickled value."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from checkpoint import BatchCheckpointedRunner, CheckpointedRunner, errors
from checkpoint.cli import main
from checkpoint.execution.transport import Unreadable
from checkpoint.maintenance.check import check

SOURCE = Path(checkpoint.__file__).parent.parent
OLD = Path(__file__).parents[1] / "data" / "written_in_one_folder"


@pytest.fixture(autouse=True)
def _beside_the_old_journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


def opened(name: str, **options: Any) -> CheckpointedRunner:
    """One of the checkpoints."""
    return CheckpointedRunner(name, checkpoint_dir="journals", **options)


@pytest.mark.slow
def test_the_job_calls_nothing_again_and_returns_the_same() -> None:
    """But what had failed, which the next run tries again."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    script = "import jobs; jobs.run()"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60, cwd=Path.cwd()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[\"Reading(name='a', values=(1.0, 2.5))\", \"Reading(name='b', values=())\", 'ItemError']",
        "['0', 'ItemError', 'ItemError']",
        "['[3, 9]', '[5, 25]']",
        "['[0, 0]', '[1, 1]', '[2, 4]', '[4, 16]']",
    ]
    assert done.stderr.count("called") == 1  # the reading; a value that is kept is not computed again


def test_a_value_that_could_not_travel_is_opened() -> None:
    """Its class is named in the file by the module in which it was then, and is so in what is written from now on."""
    with opened("kept") as runner:
        assert list(runner.unsaved) == [1, 2]
        lock, shy = runner.unsaved[1], runner.unsaved[2]
    assert type(lock) is type(shy) is Unreadable
    assert b"checkpoint.calls" in pickle.dumps(Unreadable("a value"), protocol=0).replace(b"\n", b".")
    assert "_thread.lock object" in lock.text
    assert lock.pickled is None
    assert "cannot be unpickled here: ValueError" in shy.text
    assert b"no number" in (shy.pickled or b"")


def test_results_and_errors_are_those_that_were_saved() -> None:
    """So do lines without a checksum; an error of ours is named by its place in `checkpoint.errors`."""
    with opened("by_hand") as runner:
        assert runner.get_all_results() == {"with": {"n": 1}, "without": {"n": 2}, "7": [1]}
        assert runner.get_all_errors() == {"failed": "it was empty"}
    with opened("kept") as runner:
        assert runner.get_all_results() == {0: 0}
        assert list(runner.get_all_errors()) == [1, 2]
    assert '"type":"UnencodableValue"' in Path("journals/kept_errors.jsonl").read_text("utf-8")
    assert errors.UnencodableValue.__module__ == "checkpoint.errors"


def test_shards_are_read_as_one() -> None:
    """Under the version that they were written with."""
    with opened("parts", version={"prompt": "Summarize", "size": 2}) as runner:
        assert runner.get_all_results() == {n: [n, n * n] for n in range(6)}


@pytest.mark.parametrize("name", ["readings", "kept", "parts", "by_hand"])
def test_files_are_found_sound(name: str) -> None:
    """By the function and by the command."""
    assert check(name, Path("journals")).is_sound
    assert main(["check", name, "--dir", "journals"]) == 0


def test_who_writes_in_batches_opens_it_too() -> None:
    """The third of its faces."""
    runner = BatchCheckpointedRunner("by_hand", checkpoint_dir="journals")
    with runner:
        assert runner.is_completed("without")
