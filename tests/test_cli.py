"""The command `checkpoint`: what it says of itself, and exit statuses that mean something."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import checkpoint
from checkpoint import demo
from checkpoint.cli import main
from checkpoint.errors import CheckpointLocked

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}


def run_module(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m checkpoint` with these arguments."""
    command = [sys.executable, "-m", "checkpoint", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


def test_help_names_every_command_and_shows_examples(tmp_path: Path) -> None:
    """`--help` succeeds, and is enough to go on with."""
    ended = run_module("--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage: checkpoint [-h] [--version] COMMAND" in ended.stdout
    assert "demo" in ended.stdout
    assert "  checkpoint demo\n" in ended.stdout


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
