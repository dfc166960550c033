"""The demo is a proof, so it is checked by its files, and not by what it says of itself."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import checkpoint
from checkpoint.cli import demo

pytestmark = pytest.mark.slow

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
COMMAND = [sys.executable, "-m", "checkpoint", "demo"]
FAILING = {7, 47, 87, 127, 167}


def run_demo(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The demo in a process of its own; standard error goes where standard output does, as in a log."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=240,
    )  # fmt: skip


def sessions(directory: Path) -> dict[int, str]:
    """Which process saved each result, read without the library."""
    lines = (directory / "answers_results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return {record["key"]: record["session"] for record in records if "result" in record}


def calls(directory: Path) -> Counter[int]:
    """How often each question was asked, by the log that the job writes."""
    return Counter(map(int, (directory / "calls.log").read_text().split()))


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(its directory, all output) of one real run, at which everything below looks."""
    cwd = tmp_path_factory.mktemp("demo")
    ended = run_demo(cwd)
    assert ended.returncode == 0, ended.stdout
    return cwd / demo.DIRECTORY, ended.stdout


def test_a_killed_job_resumes_loses_nothing_and_retries_what_failed(first: tuple[Path, str]) -> None:
    """Three processes saved every answer; only failures and what was in flight at the kill were called again."""
    saved, ran = sessions(first[0]), calls(first[0])
    assert saved.keys() == set(range(demo.ITEMS)) == ran.keys()
    by_session = Counter(saved.values())
    assert len(by_session) == 3
    assert by_session[saved[min(FAILING)]] == len(FAILING)
    again = {question for question, count in ran.items() if count > 1}
    assert again >= FAILING
    assert len(again - FAILING) <= demo.WORKERS
    assert max(ran.values()) <= 3


def test_the_kill_comes_part_way(first: tuple[Path, str]) -> None:
    """The first process saved a good part, and left a good part."""
    (of_first,) = re.findall(r"killed: (\d+) results on disk", first[1])
    assert 0.4 <= int(of_first) / demo.ITEMS < 0.9
    assert max(Counter(sessions(first[0]).values()).values()) < demo.ITEMS


def test_what_it_prints_is_what_its_files_hold(first: tuple[Path, str]) -> None:
    """The figures of the proof are those counted here; each step shows what a user would type and read."""
    directory, told = first
    figures = {name.strip(): int(count) for name, count in re.findall(r"(?m)^  (.+?) {2,}([\d,]+)$", told)}
    assert figures["results on disk"] == demo.ITEMS
    assert figures["calls, in all"] == calls(directory).total()
    assert figures["saved before the kill, and called again"] == 0
    assert figures["failed, and called again"] == len(FAILING)
    assert "Nothing was lost. Nothing that was saved was called again." in told
    for shown in ("$ python job.py plan", "$ checkpoint errors answers", "5 × ValueError", "5 of 200 items failed"):
        assert shown in told
    assert re.search(r"(?m)^\d+ done · \d+ failed · \d+ new$", told)


def test_without_a_terminal_the_output_is_plain_lines(first: tuple[Path, str]) -> None:
    """No carriage return, no escape sequence, no traceback, no bar that is drawn again and again."""
    told = first[1]
    assert not {"\r", "\x1b"} & set(told)
    assert "Traceback" not in told
    assert sum("item/s" in line for line in told.splitlines()) < 10


def test_a_second_demo_calls_nothing(first: tuple[Path, str]) -> None:
    """In the same directory everything is done; it says so, and how to start over."""
    before = calls(first[0])
    ended = run_demo(first[0].parent)
    assert ended.returncode == 0, ended.stdout
    assert calls(first[0]) == before
    assert "nothing is called again" in ended.stdout
    assert "to start over" in ended.stdout


def test_the_commands_that_it_names_work(first: tuple[Path, str], tmp_path: Path) -> None:
    """As they stand there."""
    for line in re.findall(r"(?m)^  checkpoint (.+)$", first[1]):
        words = [sys.executable, "-m", "checkpoint", *line.split()]
        subprocess.run(words, cwd=first[0].parent, env=ENVIRONMENT, capture_output=True, timeout=60, check=True)


def test_a_wrong_result_is_a_failed_proof(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails where what is saved is not what was computed: the proof is made of what is on disk."""
    monkeypatch.setattr(demo, "JOB", demo.JOB.replace('return f"the answer to', 'return f"an answer to'))
    assert demo.run(tmp_path / "wrong") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="it sends SIGINT")
def test_an_interrupted_demo_goes_on(tmp_path: Path) -> None:
    """Ctrl-C in the middle: exit status 130; the same command ends it."""
    process = subprocess.Popen(
        COMMAND, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    log = tmp_path / demo.DIRECTORY / "calls.log"
    end = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 50:
        assert time.monotonic() < end
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    ended = run_demo(tmp_path)
    assert ended.returncode == 0, ended.stdout
    assert sessions(tmp_path / demo.DIRECTORY).keys() == set(range(demo.ITEMS))
