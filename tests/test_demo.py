"""The demo is a proof, so it is checked by its files, and not by what it says of itself."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import checkpoint
from checkpoint import CheckpointedRunner
from checkpoint.cli import demo
from checkpoint.cli.demo import Function, Module

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "checkpoint", "demo"]
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="the commands shown there are for cmd.exe; no signals")


def run_demo(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The demo in a process of its own; standard error goes where standard output does, as in a log."""
    command = [*COMMAND, *arguments]
    merged = subprocess.STDOUT
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=merged, text=True, timeout=240
    )


def saved_keys(directory: Path) -> list[str]:
    """The keys in the journal, read without the library."""
    lines = (directory / "stdlib_results.jsonl").read_text().splitlines()
    return [json.loads(line)["key"] for line in lines]


def calls(directory: Path) -> Counter[str]:
    """How often each module was measured, by the list that the measuring function itself writes."""
    return Counter(line.split("\t")[2] for line in (directory / "executions.log").read_text().splitlines())


def processes(directory: Path) -> list[str]:
    """Who measured, in order."""
    return list(dict.fromkeys(line.split("\t")[1] for line in (directory / "executions.log").read_text().splitlines()))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(working directory, all output) of one real run over the standard library, which everything below looks at."""
    cwd = tmp_path_factory.mktemp("demo")
    ended = run_demo(cwd)
    assert ended.returncode == 0, ended.stdout
    return cwd, ended.stdout


def test_a_killed_job_resumes_and_loses_nothing(first: tuple[Path, str]) -> None:
    """Two processes measured every module; only what was in flight at the kill was measured twice."""
    directory = first[0] / demo.DIRECTORY
    keys, ran = saved_keys(directory), calls(directory)
    assert len(keys) == len(set(keys)) > 300
    assert set(keys) == set(ran)
    assert len(processes(directory)) == 2
    twice = [name for name, count in ran.items() if count > 1]
    assert len(twice) <= 1
    assert ran.total() == len(keys) + len(twice)


def test_the_kill_comes_part_way(first: tuple[Path, str]) -> None:
    """The first process saved a good part, and left a good part."""
    lines = (first[0] / demo.DIRECTORY / "stdlib_results.jsonl").read_text().splitlines()
    sessions = [json.loads(line)["session"] for line in lines]
    assert 0.3 < sessions.count(sessions[0]) / len(sessions) < 0.9


def test_what_it_prints_is_what_its_files_hold(first: tuple[Path, str]) -> None:
    """The figures of the proof are those counted here."""
    directory, told = first[0] / demo.DIRECTORY, first[1]
    figures = {
        name.strip(): int(count.replace(",", "")) for name, count in re.findall(r"(?m)^  (.+?) +([\d,]+)$", told)
    }
    assert figures["modules"] == figures["with a result"] == len(saved_keys(directory))
    assert figures["run by the killed process"] + figures["run by the next one"] == calls(directory).total()
    assert figures["lost"] == figures["run again though saved"] == 0
    assert figures["run again, in flight when killed"] <= 1
    assert "Nothing was lost. Nothing that was saved was run again." in told
    assert re.search(r"(?m)^resuming 'stdlib': \d+ done, 0 failed, \d+ in total$", told)


def test_the_most_complex_modules_stand_in_an_aligned_table(first: tuple[Path, str]) -> None:
    """Ten rows, the most branches first, every column in line."""
    table = first[1].partition("most complex modules")[2].partition("\n\n")[0].splitlines()[1:]
    assert len(table) == 11
    edge = table[0].index("branches") + len("branches")
    counts = [int(row[:edge].split()[1].replace(",", "")) for row in table[1:]]
    assert counts == sorted(counts, reverse=True)
    assert all(row[edge] == " " for row in table)


def test_without_a_terminal_the_output_is_plain_lines(first: tuple[Path, str]) -> None:
    """No carriage return, no escape sequence, no traceback, no line too wide to read, no bar drawn again and again."""
    told = first[1]
    assert "\r" not in told
    assert "\x1b" not in told
    assert "Traceback" not in told
    assert told.isascii()
    assert sum("item/s]" in line for line in told.splitlines()) < 20
    shown = told.partition("Try next")[0]
    assert max(map(len, shown.splitlines())) <= 120


def test_a_second_demo_runs_nothing(first: tuple[Path, str]) -> None:
    """In the same directory everything is done; it says so, and how to start over."""
    directory = first[0] / demo.DIRECTORY
    before = calls(directory), saved_keys(directory)
    ended = run_demo(first[0])
    assert ended.returncode == 0, ended.stdout
    assert (calls(directory), saved_keys(directory)) == before
    assert "measured all" in ended.stdout
    assert "to start over" in ended.stdout


@posix_only
def test_the_commands_it_shows_work_as_they_stand(first: tuple[Path, str]) -> None:
    """Each line below "Try next" is a shell command that succeeds; the last one starts over."""
    cwd, told = first
    shown = [line.strip() for line in told.partition("Try next")[2].splitlines()[1:] if line.strip()]
    commands = [line for line in shown if not line.startswith("#")]
    assert len(commands) == 5
    for line in commands[:-1]:
        ended = subprocess.run(line, shell=True, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout
    assert shlex.split(commands[-1]) == ["rm", "-r", demo.DIRECTORY]


@posix_only
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        pytest.param(signal.SIGINT, 130, id="SIGINT: Ctrl-C goes to the whole process group"),
        pytest.param(signal.SIGTERM, 143, id="SIGTERM: a service manager ends it"),
    ],
)
def test_an_interrupted_demo_ends_its_child_and_goes_on_later(
    tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    """It ends within seconds, by its own exit status and without a traceback; what was saved stays."""
    with subprocess.Popen(
        COMMAND, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        results = CheckpointedRunner("stdlib", tmp_path / demo.DIRECTORY, version=demo.PYTHON)
        until = time.monotonic() + 60
        while not results.get_all_results() and time.monotonic() < until:
            pass
        if sent is signal.SIGINT:
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        told, _ = process.communicate(timeout=30)  # the output ends when the child has ended too
    assert process.returncode == status, told
    assert "Traceback" not in told
    assert results.get_all_results()
    if sent is signal.SIGINT:
        assert told.splitlines()[-1].startswith("Interrupted. ")
    results.close()


def make_source(directory: Path, count: int) -> Path:
    """A directory of Python files, one of them no Python."""
    directory.mkdir()
    for number in range(count):
        (directory / f"fine_{number}.py").write_text("def f(x):\n    return 1 if x else 2\n")
    (directory / "broken.py").write_text("def f(:\n")
    return directory


def test_a_file_that_is_no_python_is_told_and_does_not_stop_the_rest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is a failure with its reason; every other file has its result; the next run tries it again."""
    source, directory = make_source(tmp_path / "source", 5), tmp_path / "files"
    assert demo.run(directory, source) == 0
    told = capfd.readouterr().out
    assert re.search(r"(?m)^ +failed +1$", told)
    assert "  broken: SyntaxError: " in told
    assert len(saved_keys(directory)) == 5
    assert demo.run(directory, source) == 0
    assert calls(directory) == Counter({f"fine_{number}": 1 for number in range(5)}) + Counter(broken=2)


def test_a_locked_directory_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Another writer at work: exit status 1, and who it is."""
    source, directory = make_source(tmp_path / "source", 5), tmp_path / "files"
    with CheckpointedRunner("stdlib", directory) as other:
        other.save_result("held", 1)
        for item in other.iterate(["item"], key_fn=None):
            assert demo.run(directory, source) == 1
            other.save_result(item, 1)
    captured = capfd.readouterr()
    assert str(os.getpid()) in captured.err
    assert "Traceback" not in captured.err
    assert "ended with status 1" in captured.out


SOURCE = '''\
"""A module."""

# a comment


class Shape:
    def area(self, sides):
        if not sides or sides is None:
            return 0

        def helper(side):
            return [s for s in side if s]

        return sum(1 if side else 2 for side in sides)
'''


def test_measure_counts_by_the_syntax_tree(tmp_path: Path) -> None:
    """The measures are the documented ones; the branches of a nested function are its own."""
    path = tmp_path / "shape.py"
    path.write_text(SOURCE)
    measured = demo.measure({"module": "shape", "path": str(path)})
    assert measured == Module(
        lines=14, code=8, functions=2, classes=1, branches=6, hardest=Function("Shape.area", complexity=5)
    )


def test_modules_are_named_as_they_are_imported(tmp_path: Path) -> None:
    """Packages by their directory; tests and installed packages are left out."""
    for name in ("a.py", "b/__init__.py", "b/c.py", "test/d.py", "b/tests/e.py", "site-packages/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [item["module"] for item in demo.modules(tmp_path)] == ["a", "b", "b.c"]
