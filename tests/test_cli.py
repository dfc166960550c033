"""The command `checkpoint`: what it says of itself, and exit statuses that mean something."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from checkpoint import CheckpointedRunner, demo
from checkpoint.cli import main
from checkpoint.errors import CheckpointLocked

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
ENVIRONMENT.pop("CHECKPOINT_DIR", None)


def run_module(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m checkpoint` with these arguments."""
    command = [sys.executable, "-m", "checkpoint", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


def test_help_names_every_command_and_shows_examples(tmp_path: Path) -> None:
    """`--help` succeeds, and is enough to go on with."""
    ended = run_module("--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage: checkpoint [-h] [--version] COMMAND" in ended.stdout
    for command in ("demo", "check", "compact"):
        assert f"\n    {command} " in ended.stdout
        assert f"  checkpoint {command}" in ended.stdout


def test_help_of_demo_says_where_files_go_and_what_statuses_mean(capsys: pytest.CaptureFixture[str]) -> None:
    """`demo --help` names the default directory and every exit status."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["demo", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "where its files go (default: ./checkpoint-demo)" in told
    assert "exit status: 0 proved, 1 failed, 130 interrupted" in told


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` names distribution and version, and succeeds."""
    try:
        version = metadata.version("checkpoint-map")
    except metadata.PackageNotFoundError:
        version = "(not installed)"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["--version"])
    assert capsys.readouterr().out == f"checkpoint-map {version}\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        pytest.param([], "the following arguments are required: COMMAND", id="no command"),
        pytest.param(["dmeo"], "invalid choice: 'dmeo'", id="a command that does not exist"),
        pytest.param(["demo", "--fast"], "unrecognized arguments: --fast", id="an option that does not exist"),
        pytest.param(["check"], "the following arguments are required: NAME", id="check without a name"),
        pytest.param(["compact"], "the following arguments are required: NAME", id="compact without a name"),
        pytest.param(["compact", "a", "b"], "unrecognized arguments: b", id="two names"),
    ],
)
def test_a_wrong_command_line_exits_2(tmp_path: Path, arguments: list[str], told: str) -> None:
    """What is wrong is said on standard error, with the usage, and nothing is made."""
    ended = run_module(*arguments, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert told in ended.stderr
    assert ended.stderr.startswith("usage: checkpoint ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        pytest.param(KeyboardInterrupt(), 130, "checkpoint: interrupted\n", id="Ctrl-C"),
        pytest.param(CheckpointLocked("pid 7 writes it"), 1, "checkpoint: pid 7 writes it\n", id="an own error"),
        pytest.param(PermissionError(13, "Permission denied", "x"), 1, "Permission denied: 'x'\n", id="a system error"),
    ],
)
def test_a_command_that_fails_says_why_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, told: str
) -> None:
    """Interrupted is 130, failed is 1; the reason is one line on standard error."""

    def fail(directory: Path) -> int:
        raise error

    monkeypatch.setattr(demo, "run", fail)
    assert main(["demo"]) == status
    captured = capsys.readouterr()
    assert captured.err.endswith(told)
    assert captured.out == ""
    assert "Traceback" not in captured.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no directory that is a file's child in this sense")
def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """`--dir` below a file: exit status 1, and the path is in the message."""
    (tmp_path / "file").touch()
    ended = run_module("demo", "--dir", "file/demo", cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "file/demo" in ended.stderr
    assert "Traceback" not in ended.stderr


# --- check and compact ----------------------------------------------------------------------------------------------


def make(directory: Path, name: str = "job") -> Path:
    """A checkpoint with a superseded line, an error, and a tuple key; returns the journal of its results."""
    with CheckpointedRunner(name, directory) as runner:
        for key in ("b", "a", "a", ("t", 1)):
            runner.save_result(key, f"value of {key}")
        runner.save_error("e", "boom")
    return directory / f"{name}_results.jsonl"


def spoil(journal: Path) -> None:
    """Change the value of the first line, and append a line that is none."""
    journal.write_bytes(journal.read_bytes().replace(b"value of b", b"value of c") + b"no record\n")


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (
            "check",
            "exit status: 0 sound, or repaired; 3 damaged; 1 it cannot be read, is not there, or is being written",
        ),
        ("compact", "exit status: 0 done, or nothing to do; 1 it is being written, is not there"),
    ],
)
def test_help_says_what_statuses_mean(capsys: pytest.CaptureFixture[str], command: str, told: str) -> None:
    """With examples and the default directory."""
    with pytest.raises(SystemExit, match=r"^0$"):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert told in shown
    assert f"examples: checkpoint {command} NAME" in shown
    assert "where its files are (default: $CHECKPOINT_DIR, else ./checkpoints)" in shown


def test_check_repair_compact_from_beginning_to_end(tmp_path: Path) -> None:
    """Damage is 3 until it is set aside; each output names the next command, which does what it says."""
    journal = make(tmp_path / "checkpoints")
    ended = run_module("check", "job", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"checkpoint 'job' in {tmp_path / 'checkpoints'}: sound; 3 results and 1 error")
    assert "(1 superseded line): checkpoint compact job\n" in ended.stdout
    spoil(journal)
    before = journal.read_bytes()
    ended = run_module("check", "job", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (3, "")
    assert f"{journal}:1: its checksum does not match" in ended.stdout
    assert f"{journal}:5: it is not valid JSON" in ended.stdout
    assert "results that are lost, to be run again: 1 ('b')\n" in ended.stdout
    assert "damaged lines whose key cannot be read: 1;" in ended.stdout
    assert "checkpoint check job --repair;" in ended.stdout
    assert journal.read_bytes() == before
    ended = run_module("check", "job", "--repair", cwd=tmp_path)
    assert ended.returncode == 0
    assert f"{journal}: 2 damaged lines set aside in .job_results.aside\n" in ended.stdout
    assert "sound; 2 results and 1 error" in ended.stdout
    ended = run_module("compact", "job", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "bytes, 1 line; " in ended.stdout
    ended = run_module("compact", "job", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "nothing to compact: each of its lines counts" in ended.stdout
    with CheckpointedRunner("job", tmp_path / "checkpoints") as runner:
        assert runner.get_all_results() == {"a": "value of a", ("t", 1): "value of ('t', 1)"}


def test_json_is_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as words, for programs."""
    journal = make(tmp_path)
    spoil(journal)

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        status = main([*arguments, "job", "--dir", str(tmp_path), "--json"])
        return status, json.loads(capsys.readouterr().out)

    status, told = run("check")
    assert (status, told["sound"], told["repaired"]) == (3, False, None)
    assert told["journals"]["results"]["lost"] == [{"version": "", "key": "b"}]
    status, told = run("compact")
    assert (status, told["freed_lines"], told["damaged_lines"]) == (0, 1, 2)
    assert told["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.jsonl"))
    status, told = run("check", "--repair")
    assert (status, told["sound"], told["repaired"]["moved_lines"]) == (0, True, 2)
    assert list(told["repaired"]) == ["moved_lines", "moved_bytes", "torn_bytes", "forgotten"]


def test_what_is_torn_missing_or_stale_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A torn tail, no meta, an index file that is garbage: exit status 0."""
    journal = make(tmp_path)
    with journal.open("ab") as file:
        file.write(b'{"key":')
    (tmp_path / "job_meta.json").unlink()
    (tmp_path / ".job_results.index").write_bytes(b"garbage")
    assert main(["check", "job", "--dir", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "the last write was cut (7 bytes)" in told
    assert "its index file is damaged; it is rebuilt" in told
    assert "meta is missing; the next writer writes it anew" in told


@pytest.mark.parametrize("command", ["check", "compact"])
@pytest.mark.parametrize(
    ("name", "directory", "told"),
    [
        ("nojob", "here", "there is no checkpoint 'nojob' in "),
        ("nojob", "here", "there are: job, other\n"),
        ("job", "nowhere", "nor is there any other; name the directory by --dir"),
        ("here/job_results.jsonl", "here", "a checkpoint's name is 'here/job_results.jsonl'"),
        ("job", "", "checkpoint_dir is ''; give a directory's path"),
        ("job", "here/job_meta.json", "there is no checkpoint 'job'"),
    ],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str, name: str, directory: str, told: str,
) -> None:  # fmt: skip
    """Exit status 1, one line on standard error, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "here")
    make(tmp_path / "here", "other")
    before = sorted(tmp_path.rglob("*"))
    assert main([command, name, "--dir", directory]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("checkpoint: ")
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_directory_comes_from_the_environment_as_in_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a hint repeats --dir only where it is needed, quoted for a shell."""
    make(tmp_path / "my files", "my job")
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "my files"))
    assert main(["check", "my job"]) == 0
    assert "checkpoint compact 'my job'\n" in capsys.readouterr().out
    monkeypatch.delenv("CHECKPOINT_DIR")
    assert main(["check", "my job", "--dir", str(tmp_path / "my files")]) == 0
    assert f"checkpoint compact 'my job' --dir '{tmp_path / 'my files'}'\n" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["check", "job", "--repair"], ["compact", "job"]], ids=" ".join)
def test_what_is_being_written_is_not_rewritten(tmp_path: Path, arguments: list[str]) -> None:
    """Exit status 1, and the writer is named."""
    with CheckpointedRunner("job", tmp_path) as runner:
        next(running := runner.iterate([1, 2]))
        ended = run_module(*arguments, "--dir", str(tmp_path), cwd=tmp_path)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert f"is being written by process {os.getpid()}" in ended.stderr
        del running
    assert run_module("check", "job", "--dir", str(tmp_path), cwd=tmp_path).returncode == 0


def test_what_the_terminal_cannot_show_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory's name may be no text in its encoding."""
    make(tmp_path / "ação")
    terminal = io.TextIOWrapper(written := io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["check", "job", "--dir", str(tmp_path / "ação")]) == 0
    terminal.flush()
    assert b"a\\xe7\\xe3o: sound" in written.getvalue()
