"""`lock_timeout=`: a write waits while another process writes, and sees what that saved."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner, CheckpointLocked, InputChanged, InvalidOption, checkpointed

FOREVER = 30.0
HOLD = """
import sys
from checkpoint import checkpointed
def body(n):
    print("begun", flush=True)
    sys.stdin.readline()
    return n * n
checkpointed("n")(body).map([1], progress=False)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@contextmanager
def writer() -> Iterator[subprocess.Popen[str]]:
    """Another process that is in the middle of item 1; a line of input ends it."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        try:
            yield process
        finally:
            process.kill()


def let_go(process: subprocess.Popen[str]) -> None:
    """Have the other process finish."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_a_map_waits_and_calls_nothing_that_the_other_one_did() -> None:
    """It has the lock once the other process has let go, and finds its results."""
    calls: list[int] = []

    def call(n: int) -> int:
        calls.append(n)
        return n * n

    f = checkpointed("n", lock_timeout=FOREVER)(call)
    with writer() as other:
        timer = threading.Timer(0.2, let_go, [other])
        timer.start()
        assert f.map([1, 2], progress=False) == [1, 4]
        assert other.wait(FOREVER) == 0
    assert calls == [2]


@pytest.mark.slow
@pytest.mark.parametrize("on_change", [None, "recompute"])
def test_what_the_other_one_saved_is_compared(on_change: str | None) -> None:
    """It is refused, or computed again, where it is of another item than ours."""
    calls: list[int] = []

    def call(n: int) -> int:
        calls.append(n)
        return n * n

    options: Any = {"lock_timeout": FOREVER, "on_change": on_change}
    other_item = checkpointed("n", key=lambda n: n % 10, **options)(call)
    with writer() as other:
        timer = threading.Timer(0.2, let_go, [other])
        timer.start()
        if on_change is None:
            with pytest.raises(InputChanged):
                other_item.map([11], progress=False)
        else:
            assert other_item.map([11], progress=False) == [121]
        assert other.wait(FOREVER) == 0
    assert calls == ([] if on_change is None else [11])


@pytest.mark.slow
@pytest.mark.parametrize("one_shot", [False, True])
def test_an_event_loop_goes_on_meanwhile(one_shot: bool) -> None:
    """`await f.map` waits by awaiting; of input that can be read once nothing is drawn before."""
    calls = []

    @checkpointed("n", lock_timeout=FOREVER)
    async def f(n: int) -> int:
        calls.append(n)
        return n * n

    async def main(other: subprocess.Popen[str]) -> list[int]:
        mapped = asyncio.ensure_future(f.map(iter([1, 2]) if one_shot else [1, 2], progress=False))
        for _ in range(20):  # these turns are had, or the other process is never told to go on
            await asyncio.sleep(0.01)
        assert not mapped.done()
        let_go(other)
        return list(await mapped)

    with writer() as other:
        assert asyncio.run(main(other)) == [1, 4]
    assert calls == [2]


@pytest.mark.slow
def test_the_error_comes_when_the_time_is_over() -> None:
    """As without it: naming the process."""
    f = checkpointed("n", lock_timeout=0.1)(lambda n: n)
    with writer() as other:
        with pytest.raises(CheckpointLocked, match="is being written by process") as caught:
            f.map([2], progress=False)
        assert caught.value.pid == other.pid
        with pytest.raises(CheckpointLocked):
            CheckpointedRunner("n", lock_timeout=0.1).save_result(2, 2)


@pytest.mark.slow
def test_who_only_reads_never_waits() -> None:
    """A map whose items are all done takes no lock."""
    with writer() as other:
        let_go(other)
        assert other.wait(FOREVER) == 0
    script = HOLD.replace("[1]", "[3]")
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as third:
        assert third.stdout is not None
        third.stdout.readline()
        f = checkpointed("n", lock_timeout=3600.0)(lambda n: n)
        assert f.map([1], progress=False) == [1]
        third.kill()


@pytest.mark.slow
@pytest.mark.parametrize("act", ["save_result(5, 5)", "save_error(5, 'no')", "clear([1])", "clear()"])
def test_runners_wait_too(act: str) -> None:
    """Whatever they write."""
    runner = CheckpointedRunner("n", version=None, lock_timeout=FOREVER)
    with writer() as other:
        timer = threading.Timer(0.1, let_go, [other])
        timer.start()
        eval(f"runner.{act}", {"runner": runner})
        assert other.wait(FOREVER) == 0
    assert set(runner.get_all_results()) == {"save_result(5, 5)": {1, 5}, "save_error(5, 'no')": {1}}.get(act, set())


@pytest.mark.slow
def test_four_processes_with_ten_small_maps_each_end_right() -> None:
    """On one name, at once: every map returns all of its results, and each item is called once."""
    script = """
import sys
from checkpoint import checkpointed
f = checkpointed("n", lock_timeout=60)(lambda n: (open(f"calls-{n}", "x").close(), n * n)[1])
for start in range(10):
    items = [start, start + 1, int(sys.argv[1]) * 100 + start]
    assert f.map(items, progress=False) == [n * n for n in items]
"""
    several = [subprocess.Popen([sys.executable, "-c", script, str(number + 1)]) for number in range(4)]
    assert [process.wait(120) for process in several] == [0] * 4
    assert len(list(Path().glob("calls-*"))) == 11 + 40


@pytest.mark.parametrize("value", [-1, "5", True, None])
def test_what_is_no_time_is_refused(value: Any) -> None:
    """Before any file is made."""
    with pytest.raises(InvalidOption, match="lock_timeout"):
        checkpointed("n", lock_timeout=value)
    with pytest.raises(InvalidOption, match="lock_timeout"):
        CheckpointedRunner("n", lock_timeout=value)
    assert os.listdir() == []
