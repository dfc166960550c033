"""The command `checkpoint`: what it says of itself, and exit statuses that mean something."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import checkpoint
from checkpoint import CheckpointedRunner, GiveUp, UnencodableValue, checkpointed, clock
from checkpoint.cli import demo, main
from checkpoint.errors import CheckpointLocked
from checkpoint.reporting import status as status_module

NAMED = (
    "show",
    "watch --wait 0",
    "errors",
    "report",
    "export",
    "clear --yes",
    "clear --key k --yes",
    "check",
    "compact",
)
"""Every command that takes a name."""

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
ENVIRONMENT.pop("CHECKPOINT_DIR", None)


def run_module(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python -m checkpoint` with these arguments."""
    command = [sys.executable, "-m", "checkpoint", *arguments]
    return subprocess.run(command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_help_names_every_command_and_shows_examples(tmp_path: Path) -> None:
    """`--help` succeeds, and is enough to go on with."""
    ended = run_module("--help", cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "usage: checkpoint [-h] [--version] COMMAND" in ended.stdout
    commands = re.findall(r"^    (\w+) +\w", ended.stdout, re.M)
    assert commands == [
        "ls", "show", "watch", "errors", "report", "export", "accept", "clear", "check", "compact", "demo",
    ]  # fmt: skip
    for command in set(commands) - {"report"}:
        assert f"  checkpoint {command}" in ended.stdout
    assert 'eval "$(register-python-argcomplete checkpoint)"' in ended.stdout


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    assert list(told["repaired"]) == ["moved_lines", "moved_bytes", "torn_bytes", "forgotten", "taken"]


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


@pytest.mark.parametrize("command", NAMED)
@pytest.mark.parametrize(
    ("name", "directory", "told"),
    [
        ("nojob", "here", "there is no checkpoint 'nojob' in "),
        ("nojob", "here", "there are: job, other\n"),
        ("othr", "here", "did you mean 'other'? there are: job, other\n"),
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
    assert main([*command.split(), "--dir", directory, name, *(["out.csv"] if command == "export" else [])]) == 1
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


@pytest.mark.slow
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


# --- looking ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal of so many columns, or of any encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    def isatty(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding


class Output:
    """Standard output: a pipe, or a terminal of some kind; of a terminal that is narrow, spaces do not count."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.is_live = kind in ("rich", "narrow")
        encoding = "ascii" if kind == "ascii" else "utf-8"
        self.stream = io.StringIO() if kind == "plain" else Terminal(encoding)

    def run(self, *arguments: str) -> int:
        """One command."""
        with contextlib.redirect_stdout(self.stream):
            return main(arguments)

    def text(self) -> str:
        """What was written, without colours; there are none but where rich draws."""
        text = self.stream.getvalue()
        assert self.is_live or "\x1b" not in text
        if self.kind == "ascii":
            assert text.isascii()
            text = text.replace(" | ", " · ").replace(" x ", " × ")
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        return re.sub(r"[\s│]", "", text) if self.kind == "narrow" else text

    def has(self, *told: str) -> bool:
        """Whether all of it was written."""
        text = self.text()
        missing = [part for part in told if ("".join(part.split()) if self.kind == "narrow" else part) not in text]
        assert not missing, text
        return True


@pytest.fixture(params=["plain", "rich", "no rich", "ascii", "narrow"])
def out(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Output:
    """Each kind of it."""
    monkeypatch.setenv("COLUMNS", "24" if request.param == "narrow" else "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if request.param == "no rich":
        for module in [name for name in sys.modules if name.partition(".")[0] == "rich"]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setitem(sys.modules, "rich", None)
    return Output(request.param)


def make_failing(directory: Path, name: str = "job") -> None:
    """Three results, three failures of two types, one of them with nasty text; of ten items."""
    (directory / f"{name}_meta.json").parent.mkdir(exist_ok=True)
    (directory / f"{name}_meta.json").write_text('{"total_items": 10}')
    with CheckpointedRunner(name, directory) as runner:
        for key in (1, 2, ("t", 1)):
            runner.save_result(key, {"n": str(key), "text": "résumé"})
        for text in ("x", "y\x1b[2J"):
            try:
                raise ValueError("no text\n\x1b[31m here")
            except ValueError as error:
                runner.save_error(text, error)
        runner.save_error("z", KeyError("title"))


def make_empty(directory: Path, name: str = "job") -> None:
    """A job has begun, and nothing is saved."""
    directory.mkdir(exist_ok=True)
    (directory / f"{name}_meta.json").write_text('{"total_items": 10}')


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command that succeeds prints as JSON."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_ls_lists_what_there_is(tmp_path: Path, out: Output) -> None:
    """A line each: counts, size, the last record; an empty one too, and one that cannot be read."""
    make_failing(tmp_path)
    make_empty(tmp_path, "empty")
    (tmp_path / "odd_results.jsonl").mkdir()
    assert out.run("ls", str(tmp_path)) == 0
    assert out.has("last record", "job", "empty", "just now", "cannot be read")
    if out.kind in ("plain", "no rich"):
        head, empty, job, odd = out.text().splitlines()
        assert head.split() == ["name", "done", "failed", "total", "size", "last", "record"]
        assert empty.split()[:4] == ["empty", "0", "0", "10"]
        assert job.split()[:4] == ["job", "3", "3", "10"]
        assert job.index("10") + 2 == head.index("total") + len("total")
        assert odd.startswith("odd")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["{}/here"], 0, "there are no checkpoints in {}/here\nname another directory: checkpoint ls DIR\n"),
        (["{}"], 0, "there are no checkpoints in {}\nthere are in {}/checkpoints: checkpoint ls {}/checkpoints\n"),
        (["{}/nowhere"], 1, "checkpoint: cannot list {}/nowhere: No such file or directory (errno 2)\n"),
        (["{}/file"], 1, "checkpoint: cannot list {}/file: Not a directory (errno 20)\n"),
        ([], 0, "there are no checkpoints in {}/default, which is not there\n"),
    ],
)
def test_ls_tells_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, told: str,
) -> None:  # fmt: skip
    """A directory without checkpoints is no error; one that was named and is not there is."""
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    make_empty(tmp_path / "checkpoints")
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "default"))
    assert main(["ls", *(part.format(tmp_path) for part in arguments)]) == status
    captured = capsys.readouterr()
    assert (captured.err if status else captured.out).startswith(told.replace("{}", str(tmp_path)))
    assert not (captured.out if status else captured.err)


def test_ls_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object; $CHECKPOINT_DIR is not needed where the directory is named."""
    make_failing(tmp_path)
    told = run_json(capsys, "ls", str(tmp_path))
    assert told["directory"] == str(tmp_path)
    (job,) = told["checkpoints"]
    assert (job["name"], job["done"], job["failed"], job["total"], job["writer"]) == ("job", 3, 3, 10, None)
    assert run_json(capsys, "ls", str(tmp_path / "..")) == {"directory": str(tmp_path.parent), "checkpoints": []}


def test_show_tells_how_far_a_job_is(tmp_path: Path, out: Output) -> None:
    """Counts, causes, files, and what to type next."""
    make_failing(tmp_path)
    assert out.run("show", "job", "--dir", str(tmp_path)) == 0
    assert out.has("3 of 10 (30 %) · 3 failed", "nobody; last record", "2 × ValueError", "1 × KeyError", "sessions")
    assert out.has("why each failed: checkpoint errors job --dir")


def test_show_of_an_empty_checkpoint(tmp_path: Path, out: Output) -> None:
    """Nothing is no error."""
    make_empty(tmp_path)
    assert out.run("show", "job", "--dir", str(tmp_path)) == 0
    assert out.has("0 of 10 (0 %)", "nobody; nothing saved yet")


def test_show_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `Survey.to_json` says."""
    make_failing(tmp_path)
    told = run_json(capsys, "show", "job", "--dir", str(tmp_path))
    assert (told["done"], told["failed"], told["total"], told["left"]) == (3, 3, 10, 4)
    assert [(cause["type"], cause["count"]) for cause in told["causes"]] == [("ValueError", 2), ("KeyError", 1)]
    make_empty(tmp_path, "empty")
    assert run_json(capsys, "show", "empty", "--dir", str(tmp_path))["versions"] == []


def test_errors_are_told_by_cause(tmp_path: Path, out: Output) -> None:
    """The most frequent first, with a place, a message and keys; nothing that a terminal would obey."""
    make_failing(tmp_path)
    assert out.run("errors", "job", "--dir", str(tmp_path)) == 0
    assert out.has("3 failures of 'job', 2 causes", "2 × ValueError at test_cli.py:", " in make_failing")
    assert out.has("no text\\n\\x1b[31m here", "'x', 'y\\x1b[2J'", "1 × KeyError")
    assert "Traceback" not in out.text()


def test_errors_with_their_tracebacks(tmp_path: Path, out: Output) -> None:
    """One of each cause, whole; of one type where that is asked for."""
    make_failing(tmp_path)
    assert out.run("errors", "job", "--dir", str(tmp_path), "--traceback", "--type", "ValueError") == 0
    assert out.has("2 failures of 'job', 1 cause", "Traceback (most recent call last):", "raise ValueError(")
    assert "KeyError" not in out.text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["job", "--type", "TypeError"], "no errors of type 'TypeError' in 'job'; there are: KeyError, ValueError"),
        (["empty"], "no errors: nothing of 'empty' has failed and has no result"),
        (["empty", "--type", "TypeError"], "no errors of type 'TypeError' in 'empty'"),
    ],
)
def test_no_errors_are_no_failure(tmp_path: Path, out: Output, arguments: list[str], told: str) -> None:
    """Exit status 0, and it says so."""
    make_failing(tmp_path)
    make_empty(tmp_path, "empty")
    assert out.run("errors", *arguments, "--dir", str(tmp_path)) == 0
    assert out.has(told)


def test_errors_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each of them, in the order of the file; tracebacks where they are asked for."""
    make_failing(tmp_path)
    told = run_json(capsys, "errors", "job", "--dir", str(tmp_path))
    assert (told["name"], told["count"], len(told["causes"])) == ("job", 3, 2)
    assert [error["key"] for error in told["errors"]] == ["x", "y\x1b[2J", "z"]
    assert set(told["errors"][0]) == {"key", "type", "message", "attempts", "elapsed", "timestamp", "given_up"}
    told = run_json(capsys, "errors", "job", "--dir", str(tmp_path), "--traceback", "--type", "KeyError")
    assert [error["key"] for error in told["errors"]] == ["z"]
    assert "KeyError: 'title'" in told["errors"][0]["traceback"]
    make_empty(tmp_path, "empty")
    assert run_json(capsys, "errors", "empty", "--dir", str(tmp_path))["errors"] == []


def test_causes_beyond_a_screenful_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where every message is another one, the first fifty are told."""
    with CheckpointedRunner("job", tmp_path) as runner:
        for n in range(60):
            runner.save_error(n, f"trouble {n}")
    assert main(["errors", "job", "--dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith("\n… and 10 more causes, which --json lists\n")


# --- taking away -----------------------------------------------------------------------------------------------------


def test_export_writes_a_table(tmp_path: Path, out: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of results, and of failures if asked; it says how many rows, and where."""
    make_failing(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert out.run("export", "job", "out.csv", "--dir", str(tmp_path)) == 0
    assert out.has(f"3 rows of 'job' in {tmp_path / 'out.csv'} (")
    assert (tmp_path / "out.csv").read_text("utf-8").splitlines()[0] == "key,n,text,timestamp,elapsed,attempts,session"
    assert out.run("export", "job", "out.jsonl", "--dir", str(tmp_path), "--errors") == 0
    assert out.has(f"6 rows of 'job' in {tmp_path / 'out.jsonl'} (")


def test_export_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """How many rows are where."""
    make_failing(tmp_path)
    told = run_json(capsys, "export", "job", str(tmp_path / "out.jsonl"), "--dir", str(tmp_path))
    path = tmp_path / "out.jsonl"
    assert told == {
        "name": "job", "directory": str(tmp_path), "path": str(path), "rows": 3, "bytes": path.stat().st_size,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("version", "rows", "reason"),
    [
        (None, 4, "that of the last record"),
        ('{"model": "m"}', 1, "JSON"),
        ("prompt-1", 2, "text that is no JSON"),
        ('"prompt-1"', 2, "the same as JSON"),
        ("null", 3, "no version"),
        ("7", 4, "a number"),
        ("c4d5f2a", None, "there is none such"),
        ("8", None, "both 8 and '8' are there"),
        (" 8", 5, "the number"),
        ('"8"', 6, "the text"),
    ],
)
def test_export_of_a_version(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], version: str | None, rows: int | None, reason: str
) -> None:
    """A JSON value, the text itself, or the digest that `show` prints."""
    for count, value in enumerate([{"model": "m"}, "prompt-1", None, 7, 8, "8"], 1):
        with CheckpointedRunner("job", tmp_path, version=value) as runner:
            for key in range(count):
                runner.save_result(key, key)
    with CheckpointedRunner("job", tmp_path, version=7) as runner:
        runner.save_result(0, 0)
    for held in run_json(capsys, "show", "job", "--dir", str(tmp_path))["versions"]:
        if held["version"]:
            arguments = [
                "export",
                "job",
                str(tmp_path / "out.csv"),
                "--dir",
                str(tmp_path),
                "--version",
                held["version"],
            ]
            assert run_json(capsys, *arguments)["rows"] == held["results"]
    arguments = ["export", "job", str(tmp_path / "out.csv"), "--dir", str(tmp_path)]
    arguments += [] if version is None else ["--version", version]
    assert main(arguments) == (0 if rows else 1), reason
    captured = capsys.readouterr()
    if rows:
        assert f"{rows} rows of" in captured.out or rows == 1
    elif version == "8":
        assert "write ' 8' (with a space) for 8, and '\"8\"' for the text" in captured.err
    else:
        assert "holds nothing of version 'c4d5f2a'; it holds " in captured.err


def test_what_cannot_be_exported_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 1 and nothing is written: another ending, nothing to write, a package that is not there."""
    make_failing(tmp_path)
    make_empty(tmp_path, "empty")
    for name, path, told in (
        ("job", "out.xlsx", "does not end in .csv, .jsonl, .parquet"),
        ("empty", "out.csv", "holds nothing yet; nothing was written"),
    ):
        assert main(["export", name, str(tmp_path / path), "--dir", str(tmp_path)]) == 1
        assert told in capsys.readouterr().err
        assert not (tmp_path / path).exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert main(["export", "job", str(tmp_path / "out.parquet"), "--dir", str(tmp_path)]) == 1
    assert "pip install 'checkpoint-map[parquet]'" in capsys.readouterr().err


def test_report_says_where_the_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Output) -> None:
    """The room of reports writes it; it is imported for that only."""
    make_failing(tmp_path)
    asked: list[Any] = []

    def write_report(name: str, path: Any = None, checkpoint_dir: Any = None) -> Path:
        asked.append((name, path, checkpoint_dir))
        return tmp_path / "job_report.html"

    room = ModuleType("checkpoint.reporting.report")
    room.write_report = write_report  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "checkpoint.reporting.report", room)
    assert out.run("report", "job", "--dir", str(tmp_path), "--out", "there.html") == 0
    assert out.run("report", "job", "--dir", str(tmp_path)) == 0
    assert asked == [("job", "there.html", tmp_path), ("job", None, tmp_path)]
    assert out.has(f"the report of 'job' is in {tmp_path / 'job_report.html'}")


# --- clear -----------------------------------------------------------------------------------------------------------


def make_keys(directory: Path, *keys: Any) -> None:
    """A result of another version, and one for each key."""
    with CheckpointedRunner("job", directory, version="old") as runner:
        runner.save_result("elsewhere", 0)
    with CheckpointedRunner("job", directory, version="new") as runner:
        for key in keys:
            runner.save_result(key, "value")
        runner.save_error("failed", "bad")


def keys_left(directory: Path) -> list[Any]:
    """The keys that have a result."""
    with CheckpointedRunner("job", directory) as runner:
        return list(runner.get_all_results())


@pytest.mark.parametrize(
    ("there", "written", "forgotten", "reason"),
    [
        ([12, 13], "12", 12, "a number"),
        (["12", 13], "12", "12", "only the text is there"),
        (["12", 13], '"12"', "12", "the text, as JSON"),
        ([12, "12"], "12", None, "both are there"),
        ([12, "12"], " 12", 12, "the number, by a space"),
        ([12, "12"], '"12"', "12", "the text"),
        ([12, '"12"'], '"12"', '"12"', "a text with quotes, where the text without is not there"),
        ([12], "12.0", 12, "12 and 12.0 are one key"),
        ([1.5], "1.5", 1.5, "a float"),
        ([True, 2], "true", True, "a bool"),
        ([True, 2], "1", True, "1 and True are one key"),
        (["true", 2], "true", "true", "the text"),
        ([None, "null"], "null", None, "both are there"),
        (["doc-7", 7], "doc-7", "doc-7", "no JSON"),
        ([("a", 1), 7], '["a", 1]', ("a", 1), "a list stands for a tuple"),
        ([("a", ("b", None)), 7], '["a", ["b", null]]', ("a", ("b", None)), "at any depth"),
        ([("a", 1), 7], '{"$tuple": ["a", 1]}', ("a", 1), "as it stands in a journal"),
        (['{"a": 1}', 7], '{"a": 1}', '{"a": 1}', "no JSON of a key"),
        (["NaN", 7], "NaN", "NaN", "NaN is no key"),
        (["[" * 5000, 7], "[" * 5000, "[" * 5000, "JSON that is too deep"),
        (["a\x1b b", 7], "a\x1b b", "a\x1b b", "control characters"),
        (["failed?"], "failed", "failed", "a failure"),
        ([7], "8", None, "it is not there"),
        ([7], "elsewhere", None, "it is there under another version"),
    ],
)  # fmt: skip
def test_keys_are_read_as_json_or_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: list[Any], written: str, forgotten: Any, reason: str
) -> None:
    """The one that is there is meant; where both are, it says how each is written, and forgets nothing."""
    make_keys(tmp_path, *there)
    is_meant = forgotten is not None
    assert main(["clear", "job", "--dir", str(tmp_path), "--yes", "--key", written]) == (0 if is_meant else 1), reason
    captured = capsys.readouterr()
    assert keys_left(tmp_path) == [key for key in there if not (is_meant and key == forgotten)], reason
    if is_meant:
        assert "forgot 1 " in captured.out
        assert "the old lines stay in the files until: checkpoint compact job" in captured.out
    elif len(there) > 1:
        assert f"write ' {written}' (with a space) for {there[0]}, and '\"{written}\"' for the text" in captured.err
    else:
        assert "is not in checkpoint 'job'" in captured.err
        assert ("it is there under 'old'" in captured.err) == (written == "elsewhere")


def test_of_schema_1_a_key_is_text(tmp_path: Path) -> None:
    """A line without checksum stands for 12 and "12": that is no doubt."""
    (tmp_path / "job_results.jsonl").write_text('{"key": "12", "result": 1}\n{"key": "13", "result": 1}\n')
    assert main(["clear", "job", "--dir", str(tmp_path), "--yes", "--key", "12"]) == 0
    assert keys_left(tmp_path) == ["13"]


def test_one_key_that_is_not_there_and_nothing_is_forgotten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All or nothing; not a byte changes."""
    make_keys(tmp_path, 1, 2, 3)
    before = (tmp_path / "job_results.jsonl").read_bytes()
    keys = ["--key", "1", "--key", "missing", "--key", "2"]
    assert main(["clear", "job", "--dir", str(tmp_path), "--yes", *keys]) == 1
    assert "key 'missing' is not in" in capsys.readouterr().err
    assert (tmp_path / "job_results.jsonl").read_bytes() == before


def test_clear_of_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was forgotten, each key once; and of all, which files were deleted."""
    make_keys(tmp_path, 1, 2, ("t", 1))
    keys = ["--key", "1", "--key", "1.0", "--key", "failed", "--key", '["t",1]', "--yes"]
    told = run_json(capsys, "clear", "job", "--dir", str(tmp_path), *keys)
    assert told == {
        "name": "job", "directory": str(tmp_path), "keys": [1, "failed", {"$tuple": ["t", 1]}], "results": 2,
        "errors": 1, "aside": 0, "deleted": [],
    }  # fmt: skip
    told = run_json(capsys, "clear", "job", "--dir", str(tmp_path), "--yes")
    assert (told["keys"], told["results"], told["errors"]) == (None, 2, 0)
    assert told["deleted"] == ["job_results.jsonl", "job_errors.jsonl", "job_meta.json"]
    assert [file.name for file in tmp_path.iterdir()] == [".job.lock"]


def test_clear_of_all_says_what_it_deleted_and_kept(tmp_path: Path, out: Output) -> None:
    """All versions, files included; the lock, and what repairs set aside, stay."""
    make_keys(tmp_path, 1)
    with CheckpointedRunner("job", tmp_path) as runner, pytest.raises(UnencodableValue):
        runner.save_result("odd", object())
    (tmp_path / ".job_results.aside").write_text("{}\n")
    assert out.run("clear", "job", "--dir", str(tmp_path), "--yes") == 0
    assert out.has("forgot all of 'job', 2 results, 2 errors and 1 value kept aside; deleted 4 files in")
    assert out.has("kept: .job_results.aside, .job.lock")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".job.lock", ".job_results.aside"]


class Answer(io.StringIO):
    """A person at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("YES\n", 0), ("n\n", 1), ("\n", 1), ("", 1)])
@pytest.mark.parametrize("keys", [["--key", "1", "--key", "2"], []], ids=["keys", "all"])
def test_clear_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    keys: list[str], answer: str, status: int,
) -> None:  # fmt: skip
    """On a terminal, on standard error; only yes is yes."""
    make_keys(tmp_path, 1, 2, 3)
    monkeypatch.setattr(sys, "stdin", Answer(answer))
    assert main(["clear", "job", "--dir", str(tmp_path), *keys]) == status
    captured = capsys.readouterr()
    question = (
        "forget 2 results of 'job'? [y/N] " if keys else "forget all of 'job', 4 results and 1 error, and delete "
    )
    assert captured.err.startswith(question)
    assert keys_left(tmp_path) == ([1, 2, 3] if status else [3] if keys else [])
    assert ("nothing was forgotten" in captured.err) == bool(status)


@pytest.mark.slow
def test_without_a_terminal_clear_wants_yes(tmp_path: Path) -> None:
    """Exit status 2, and nothing is forgotten."""
    make_keys(tmp_path, 1)
    before = (tmp_path / "job_results.jsonl").read_bytes()
    command = [sys.executable, "-m", "checkpoint", "clear", "job", "--dir", str(tmp_path), "--key", "1"]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, input="y\n", timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "there is no terminal to ask on; say --yes" in ended.stderr
    assert (tmp_path / "job_results.jsonl").read_bytes() == before


@pytest.mark.slow
def test_clear_refuses_what_changed_while_it_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody cleared the key meanwhile: nothing else is forgotten."""
    make_keys(tmp_path, 1, 2)

    class Slow(Answer):
        def readline(self, *_: Any) -> str:  # type: ignore[override]
            assert (
                run_module("clear", "job", "--key", "1", "--yes", "--dir", str(tmp_path), cwd=tmp_path).returncode == 0
            )
            return "y\n"

    monkeypatch.setattr(sys, "stdin", Slow())
    assert main(["clear", "job", "--dir", str(tmp_path), "--key", "1", "--key", "2"]) == 1
    assert "was written meanwhile; nothing was forgotten" in capsys.readouterr().err
    assert keys_left(tmp_path) == [2]


# --- beside a job that is running ------------------------------------------------------------------------------------

JOB = """
import sys
from checkpoint import CheckpointedRunner
with CheckpointedRunner("job", sys.argv[1]) as runner:
    for n in runner.iterate(range(5), key_fn=lambda n: n):
        if n == 3:
            runner.save_error(n, ValueError("three"))
        else:
            runner.save_result(n, {"n": n})
        print(n, flush=True)
        if sys.stdin.readline() == "":
            break
"""


class Job:
    """Another process that saves an item each time it is told to."""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", JOB, str(directory)]
        self.process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._saved()

    def _saved(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.readline()

    def step(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self._saved()

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """It has saved one item of five."""
    job = Job(tmp_path)
    yield job
    job.end()


has_writers = pytest.mark.skipif(not Path("/proc/locks").exists(), reason="who writes can be told on Linux only")


@pytest.mark.slow
@has_writers
def test_a_running_job_is_looked_at_and_left_alone(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    """What only reads works; what would write is refused, with the writer's name; the job goes on."""
    pid, where = job.process.pid, ["--dir", str(tmp_path)]
    assert run_json(capsys, "ls", str(tmp_path))["checkpoints"][0]["writer"]["pid"] == pid
    assert main(["ls", str(tmp_path)]) == 0
    assert f"process {pid} is writing" in capsys.readouterr().out
    for _ in range(3):
        job.step()
    told = run_json(capsys, "show", "job", *where)
    assert (told["done"], told["failed"], told["total"], told["left"]) == (3, 1, 5, 1)
    assert told["writer"]["pid"] == pid
    assert main(["show", "job", *where]) == 0
    assert f"process {pid} on " in capsys.readouterr().out
    assert run_json(capsys, "errors", "job", *where)["count"] == 1
    assert run_json(capsys, "export", "job", str(tmp_path / "out.csv"), *where)["rows"] == 3
    for arguments in (["clear", "job", "--key", "1"], ["clear", "job", "--yes"], ["compact", "job"]):
        assert main([*arguments, *where]) == 1
        assert f"is being written by process {pid}" in capsys.readouterr().err
    job.step()
    job.end()
    assert run_json(capsys, "show", "job", *where)["done"] == 4


@pytest.mark.slow
@has_writers
def test_watch_follows_a_job_to_its_end(tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch, out: Output) -> None:
    """It draws each step, and ends a little after the job has ended; nothing is slept for."""
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) < 5:
            job.step()
        elif len(waited) == 5:
            job.end()

    monkeypatch.setattr(clock, "sleep", wait)
    assert out.run("watch", "job", "--dir", str(tmp_path)) == 3, "complete with failures"
    assert waited == ([1.0] * 7 if out.is_live else [10.0] * 5 + [1.0] * 2)
    assert out.has("2 of 5 (40 %)", "3 of 5 (60 %) · 1 failed", "1 × ValueError: 'three'", "4 of 5 (80 %) · 1 failed")
    assert out.has("nobody is writing 'job' any more: 4 of 5 (80 %) · 1 failed", "checkpoint errors job --dir")
    if out.is_live:
        assert out.has("latest", '{"n":4}')


@pytest.mark.slow
@has_writers
def test_watch_of_programs(
    tmp_path: Path, job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line of JSON each time, at the interval that was given."""
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        job.step() if len(waited) == 1 else job.end()

    monkeypatch.setattr(clock, "sleep", wait)
    assert main(["watch", "job", "--dir", str(tmp_path), "--json", "--interval", "0.5"]) == 4, "it ended early"
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [seen["done"] for seen in told] == [1, 2, 2, 2, 2]
    assert [seen["writer"] is None for seen in told] == [False, False, True, True, True]
    assert set(waited) == {0.5}


def test_ctrl_c_ends_watching_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Output) -> None:
    """Exit status 130: whoever waits for the job is not told that it is complete."""
    make_empty(tmp_path)

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clock, "sleep", interrupt)
    assert out.run("watch", "job", "--dir", str(tmp_path)) == 130
    assert out.has("0 of 10")
    assert out.run("watch", "job", "--dir", str(tmp_path), "--json") == 130


def test_where_no_writer_can_be_told_watch_goes_on_while_something_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends when nothing is; a job that is slow is not taken for one that has ended."""
    make_empty(tmp_path)
    monkeypatch.setattr(status_module, "writer_of", lambda *_: {})
    waited = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 20:
            (tmp_path / "job_meta.json").write_text('{"total_items": 0}')

    monkeypatch.setattr(clock, "sleep", wait)
    assert main(["watch", "job", "--dir", str(tmp_path)]) == 0
    assert len(waited) == 22
    assert "0 of 0" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", ""])
def test_an_interval_is_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    """Exit status 2."""
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["watch", "job", f"--interval={seconds}"])
    assert "is no number of seconds; give one from 0.05 to 86400" in capsys.readouterr().err


# --- pipes and shells ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no such pipe")
@pytest.mark.parametrize("arguments", [["ls", "."], ["show", "job", "--dir", "."], ["errors", "job", "--dir", "."]])
def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path, arguments: list[str]) -> None:
    """Exit status 141, as of any command in a pipeline."""
    make_failing(tmp_path)
    into = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.readline(); import os; os.close(0)"], stdin=subprocess.PIPE
    )
    assert into.stdin is not None
    into.stdin.write(b"go\n")
    into.stdin.flush()
    into.wait(60)
    ended = subprocess.run(
        [sys.executable, "-m", "checkpoint", *arguments],
        cwd=tmp_path, env=ENVIRONMENT, stdout=into.stdin, stderr=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    try:
        into.stdin.close()
    except BrokenPipeError:
        pass
    assert ended.returncode in (141, -signal.SIGPIPE)
    assert ended.stderr == b""


def complete(line: str, cwd: Path) -> list[str]:
    """What argcomplete answers a shell for this command line, by its protocol: on descriptor 8."""
    answer = cwd / "answer"
    script = "import os, sys; os.dup2(os.open(sys.argv.pop(1), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 8); "
    script += "os.dup2(2, 9); from checkpoint.cli import main; main()"
    environment = ENVIRONMENT | {
        "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\013", "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "COMP_LINE": line,
        "COMP_POINT": str(len(line)), "COMP_TYPE": "9",
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", script, str(answer)], cwd=cwd, env=environment, timeout=60, check=False)
    return [word.strip() for word in answer.read_text().split("\013")] if answer.exists() else []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="argcomplete is of Unix shells")
def test_the_shell_completes_names_and_options(tmp_path: Path) -> None:
    """Commands, options, and the names of the checkpoints in the directory that was given, or the default."""
    pytest.importorskip("argcomplete")
    for name in ("summaries", "sums", "other"):
        make_empty(tmp_path / "checkpoints", name)
    make_empty(tmp_path / "mine", "summits")
    assert complete("checkpoint sh", tmp_path) == ["show"]
    assert complete("checkpoint show sum", tmp_path) == ["summaries", "sums"]
    assert complete("checkpoint clear --dir mine sum", tmp_path) == ["summits"]
    assert complete("checkpoint errors sums --tr", tmp_path) == ["--traceback"]
    assert complete("checkpoint show --dir nowhere ", tmp_path)[:1] != ["summaries"]


def test_global_completion_finds_its_mark() -> None:
    """argcomplete looks for it in the first 1,024 bytes of the console entry's module."""
    assert Path(sys.modules["checkpoint.cli"].__file__ or "").read_bytes()[:1024].count(b"PYTHON_ARGCOMPLETE_OK") == 1


@pytest.mark.slow
def test_without_argcomplete_a_shell_gets_no_answer(tmp_path: Path) -> None:
    """And no output that it would take for one."""
    script = "import sys; sys.modules['argcomplete'] = None; from checkpoint.cli import main; main()"
    environment = ENVIRONMENT | {"_ARGCOMPLETE": "1", "COMP_LINE": "checkpoint ", "COMP_POINT": "11"}
    ended = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=tmp_path, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, b"", b"")


@pytest.mark.slow
def test_what_draws_and_completes_is_imported_when_it_is_needed(tmp_path: Path) -> None:
    """A command in a pipe imports neither."""
    make_failing(tmp_path)
    script = "import sys; from checkpoint.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", script, "show", "job", "--dir", str(tmp_path)]
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=True)
    assert not {"rich", "argcomplete", "pandas", "pyarrow"} & set(ended.stdout.split())


def test_messages_are_escaped_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A directory's name may hold what a terminal would obey."""
    assert main(["show", "job", "--dir", str(tmp_path / "a\x1b[2Jb")]) == 1
    assert "a\\x1b[2Jb" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
def test_a_closed_output_is_no_fault_of_the_commands(tmp_path: Path) -> None:
    """`checkpoint ls >&-`, as some schedulers start what they run."""
    command = f"exec {sys.executable} -m checkpoint ls {tmp_path} >&-"
    ended = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- what a newcomer types -------------------------------------------------------------------------------------------


def test_ls_takes_its_directory_as_the_other_commands_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By --dir; but not both ways at once."""
    make(tmp_path)
    assert main(["ls", "--dir", str(tmp_path)]) == 0
    by_option = capsys.readouterr().out
    assert main(["ls", str(tmp_path)]) == 0
    assert capsys.readouterr().out == by_option
    assert main(["ls", str(tmp_path), "--dir", str(tmp_path)]) == 1


def test_no_version_is_a_version_that_can_be_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `show` calls it, beside others."""
    for version in (None, "small"):
        with CheckpointedRunner("job", tmp_path, version=version) as runner:
            runner.save_result("a", {"version": version})
    assert main(["show", "job", "--dir", str(tmp_path)]) == 0
    assert "no version: 1 result" in capsys.readouterr().out
    out = tmp_path / "out.csv"
    assert main(["export", "job", str(out), "--dir", str(tmp_path), "--version", "no version"]) == 0
    assert out.read_text(encoding="utf-8").splitlines()[1].startswith("a,,")


def test_watch_waits_for_the_first_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It may be started before the job is; what it waits for is said once, and not for ever."""
    waited: list[float] = []

    def begin(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            make(tmp_path)

    monkeypatch.setattr(clock, "sleep", begin)
    assert main(["watch", "job", "--dir", str(tmp_path)]) in (0, 3)
    told = capsys.readouterr()
    assert told.err.count("waiting 30 s for its first record") == 1
    assert "nobody is writing 'job' any more" in told.out
    monkeypatch.undo()
    assert main(["watch", "other", "--dir", str(tmp_path), "--wait", "0.3"]) == 1
    assert capsys.readouterr().err.count("there is no checkpoint 'other'") == 2


def test_failures_are_cleared_all_or_by_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Given up ones too, which nothing else has called again; results stay."""

    @checkpointed("job", checkpoint_dir=tmp_path)
    def f(n: int) -> int:
        if n == 1:
            raise ValueError("one")
        if n == 2:
            raise GiveUp("two")
        return n

    f.map(range(4), progress=False, return_exceptions=True)
    place = ["--dir", str(tmp_path), "--yes"]
    assert main(["clear", "job", "--type", "KeyError", *place]) == 1
    assert "has no failures of type 'KeyError'; nothing was forgotten" in capsys.readouterr().err
    assert main(["clear", "job", "--type", "GiveUp", *place]) == 0
    assert "forgot 1 error of 'job'" in capsys.readouterr().out
    assert (f.plan(range(4)).failed, f.plan(range(4)).new, f.plan(range(4)).given_up) == (1, 1, 0)
    assert main(["clear", "job", "--failed", *place]) == 0
    assert (dict(f.results), dict(f.errors)) == ({0: 0, 3: 3}, {})
    assert main(["clear", "job", "--failed", *place]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "cp437", "cp932", "latin-1"])
def test_a_plan_and_errors_are_printed_on_any_console(encoding: str, tmp_path: Path) -> None:
    """A script whose output goes to a file on Windows, or to a terminal of another century."""
    script = (
        "from checkpoint import checkpointed\n"
        "f = checkpointed('job')(lambda n: 1 / n)\n"
        "f.map([0, 1], progress=False, return_exceptions=True)\n"
        "print(f.plan([0, 1, 2], workers=2))\nprint(repr(f.plan([3])))\nprint(f.errors)\n"
    )
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"1 done" in ended.stdout


def test_a_call_that_takes_longer_than_those_before_is_not_over_at_once(tmp_path: Path) -> None:
    """While nobody can tell when it ends, nothing is said of that; else never "about 0 s left"."""
    with CheckpointedRunner("job", tmp_path) as runner:
        for n in runner.iterate(range(11)):
            if n == 10:
                break
            runner.save_result(n, n)
        now = clock.now()
        with status_module.Observer("job", tmp_path, now=lambda: now + 40) as observer:
            seen = observer.look()
    assert (seen.left, seen.seconds_left) == (1, None)
    assert "left" not in seen.pace()
