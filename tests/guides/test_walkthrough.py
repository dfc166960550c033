"""What a guide shows of a job from its beginning to its end is what the commands print.

Each line that is shown must be printed, in the words that stand there; numbers, paths and bars are of the day.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_readme import ENVIRONMENT, ROOT, Block, read_blocks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="it sends SIGINT to a process group"),
]

BLOCKS = read_blocks((ROOT / ".github" / "docs" / "a-job.md").read_text(encoding="utf-8"))
STEPS = [block for block in BLOCKS if block.language == "console"]
(JOB,) = [block for block in BLOCKS if block.text.startswith("# job.py\n")]
DEADLINE = 60.0


def run(command: str, directory: Path) -> subprocess.Popen[str]:
    """Start it as typed there: `python` and `checkpoint` are those of the tests."""
    words = shlex.split(command)
    words[:1] = [sys.executable] if words[0] == "python" else [sys.executable, "-m", "checkpoint"]
    return subprocess.Popen(
        words, cwd=directory, env=ENVIRONMENT | {"COLUMNS": "200"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", start_new_session=True,
    )  # fmt: skip


def masked(line: str) -> str:
    """The line without what differs from run to run."""
    line = re.sub(r"\|[^|]*\|", "|bar|", line) if "%|" in line else line
    line = re.sub(r"(?<= in )/\S+|(?<=in )\S+_report.html", "PATH", line)
    line = re.sub(r"\b(?:[0-9a-f]{16}){1,2}\b", "DIGEST", line)
    line = re.sub(r"\d[\d,.:]*", "#", line)
    line = re.sub(r"# (ms|s)\b", "# s", line)
    line = re.sub(r"(just now|# s ago)", "AGO", line)
    return " ".join(line.split())


def expect(shown: list[str], printed: str) -> None:
    """Every line that is shown is printed."""
    lines = {masked(line) for line in re.split(r"[\r\n]", printed)}
    missing = [line for line in shown if line.strip() and masked(line) not in lines]
    assert missing == [], printed


def commands_of(block: Block) -> list[tuple[str, list[str]]]:
    """(command, lines shown) of what was typed in one terminal."""
    typed: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            typed.append((line[2:], []))
        else:
            typed[-1][1].append(line)
    return typed


def test_a_job_from_beginning_to_end(tmp_path: Path) -> None:
    """Run, watch, interrupt, see why items failed, change the prompt, plan, run, and take the results away."""
    (tmp_path / "job.py").write_text(JOB.text, encoding="utf-8")
    (first, interrupted), (watch, followed) = (commands_of(block)[0] for block in STEPS[:2])
    job = run(first, tmp_path)
    end = time.monotonic() + DEADLINE
    while not (tmp_path / "checkpoints" / "summaries_errors.jsonl").exists():
        assert time.monotonic() < end
        assert job.poll() is None
        time.sleep(0.05)
    watching = run(watch, tmp_path)
    seen = [watching.stdout.readline() for _ in range(3)] if watching.stdout else []
    os.killpg(job.pid, signal.SIGINT)
    printed = job.communicate(timeout=DEADLINE)[0]
    assert "KeyboardInterrupt" in printed
    expect([line for line in interrupted if line != "^C"], printed)
    expect(
        [line for line in followed if not line.startswith(" ")],
        "".join(seen) + watching.communicate(timeout=DEADLINE)[0],
    )
    for block in STEPS[2:]:
        for command, shown in commands_of(block):
            step = run(command, tmp_path)
            printed = step.communicate(timeout=DEADLINE)[0]
            assert step.returncode == 0, printed
            expect(shown, printed)
    report = (tmp_path / "summaries_report.html").read_text(encoding="utf-8")
    assert "doc-000" in report
    assert (tmp_path / "summaries.csv").read_text(encoding="utf-8").count("\n") == 229


def test_the_steps_are_those_of_a_first_day() -> None:
    """Every command of the walk through a job is one that the tests run."""
    typed = [command.split()[:2] for block in STEPS for command, _ in commands_of(block)]
    assert ["python", "job.py"] in typed
    for verb in ("watch", "errors", "show", "export", "report", "clear"):
        assert ["checkpoint", verb] in typed
