"""How many calls travel together: chunks that adapt to how long the calls take, and what a death or a kill costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import in_time

from checkpoint import ItemsFailed, Rate, Retry, TooManyErrors, checkpointed
from checkpoint.execution import chunk_size
from checkpoint.execution.answers import Answer, failed
from checkpoint.execution.at_work import opened_at
from checkpoint.execution.chunk_size import MOST, SPAN, ChunkSize

posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of its own, and a time within which the test ends."""
    monkeypatch.chdir(tmp_path)
    with in_time(120):
        yield


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[Answer]]]:
    """(how many calls a worker was given, its answers) of each chunk whose size adapted."""
    told: list[tuple[int, list[Answer]]] = []
    really = ChunkSize.returned

    def spy(self: ChunkSize, asked: int, answers: list[Answer]) -> None:
        told.append((asked, list(answers)))
        really(self, asked, answers)

    monkeypatch.setattr(chunk_size.ChunkSize, "returned", spy)
    return told


# --- the size --------------------------------------------------------------------------------------------------------


def answers(count: int, each: float) -> list[Answer]:
    """So many calls that took so long."""
    return [(None, each)] * count


def test_the_size_doubles_while_chunks_take_no_time() -> None:
    """From one call to the most."""
    sizes = ChunkSize(None)
    seen = []
    while sizes.size < MOST:
        seen.append(sizes.size)
        sizes.returned(sizes.size, answers(sizes.size, 1e-6))
    assert seen == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    sizes.returned(MOST, answers(MOST, 1e-6))
    assert sizes.size == MOST


def test_calls_that_take_long_travel_one_by_one() -> None:
    """Whatever the size was before."""
    sizes = ChunkSize(None)
    for _ in range(5):
        sizes.returned(1, answers(1, SPAN * 1.01))
        assert sizes.size == 1
    grown = ChunkSize(None)
    for size in (1, 2, 4, 8):
        grown.returned(size, answers(size, 1e-6))
    grown.returned(16, [*answers(3, 1e-6), *answers(1, 1.0)])  # it hands back twelve
    grown.returned(3, answers(1, 1.0))
    assert grown.size == 1


def test_what_is_handed_back_makes_chunks_smaller_and_then_they_grow_slowly() -> None:
    """No size is tried again and again that is too large."""
    sizes = ChunkSize(None)
    for size in (1, 2, 4, 8, 16, 32):
        sizes.returned(size, answers(size, 1e-6))
    sizes.returned(64, answers(40, 0.0001))
    assert sizes.size == 30
    sizes.returned(30, answers(30, 0.0001))
    assert sizes.size == 33


def test_a_part_of_a_chunk_or_a_failure_says_nothing_of_the_size() -> None:
    """The last items, and calls that raised."""
    sizes = ChunkSize(None)
    sizes.returned(1, answers(1, 1e-6))
    sizes.returned(1, answers(1, 1e-6))
    assert sizes.size == 2
    sizes.returned(2, [failed(ValueError())])
    assert sizes.size == 2


def test_a_size_that_was_given_stays() -> None:
    """It is the user's."""
    assert (ChunkSize(7).size, ChunkSize(7).adapts, ChunkSize(None).adapts) == (7, False, True)


# --- on workers ------------------------------------------------------------------------------------------------------


def double(n: int) -> int:
    """It takes microseconds."""
    return 2 * n


@pytest.mark.slow
def test_calls_of_microseconds_travel_together(returned: list[tuple[int, list[Answer]]]) -> None:
    """Nothing is to be given for it, and the results are those of one call after the other."""
    f = checkpointed("f", version=1)(double)
    assert f.map(range(3000), workers=2, executor="processes", progress=False) == [2 * n for n in range(3000)]
    assert returned[0][0] == 1
    assert sum(len(each) for _, each in returned) == 3000
    assert len(returned) < 1500


def test_on_an_executor_that_was_given_too(returned: list[tuple[int, list[Answer]]]) -> None:
    """A pool of threads."""
    f = checkpointed("f", version=1)(double)
    with ThreadPoolExecutor(2) as pool:
        assert f.map(range(2000), executor=pool, progress=False) == [2 * n for n in range(2000)]
    assert len(returned) < 1000


def slow_last(n: int) -> int:
    """The last twelve take long."""
    if n >= 400:
        time.sleep(0.05)
    return n


@pytest.mark.slow
def test_a_slow_call_ends_its_chunk(returned: list[tuple[int, list[Answer]]]) -> None:
    """What stood behind it is handed back, and called elsewhere meanwhile."""
    f = checkpointed("f", version=1)(slow_last)
    items = list(range(412))
    assert f.map(items, workers=2, executor="processes", progress=False) == items
    for _, each in returned:
        assert all(answer[1] < SPAN for answer in each[:-1] if type(answer) is tuple)
    assert sorted(f.results) == items


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"rate": Rate(1e6, per=1.0)},
        {"timeout": 60.0},
        {"retry": Retry(2, wait=0.01)},
        {"batch_size": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_counts_single_calls_has_them_travel_alone(
    options: dict[str, Any], returned: list[tuple[int, list[Answer]]]
) -> None:
    """A rate lets calls go as they start, a timeout is of one call, and a retry waits for one."""
    f = checkpointed("f", version=1, **options)(batch if "batch_size" in options else double)
    assert f.map(range(50), workers=2, executor="processes", progress=False) == [2 * n for n in range(50)]
    assert returned == []


def batch(items: list[int]) -> list[int]:
    """One call for several items."""
    return [2 * n for n in items]


def raises(n: int) -> int:
    """It always fails."""
    raise ValueError(n)


@pytest.mark.slow
def test_no_more_calls_fail_than_the_pass_allows(returned: list[tuple[int, list[Answer]]]) -> None:
    """A chunk ends with the first call that fails."""
    f = checkpointed("f", version=1)(raises_from_1000)
    with pytest.raises(TooManyErrors):
        f.map(range(3000), workers=2, executor="processes", progress=False, max_errors=5)
    assert 6 <= len(f.errors) <= 6 + 2
    assert any(asked > 1 for asked, _ in returned)


def raises_from_1000(n: int) -> int:
    """It fails once chunks are large."""
    return n if n < 1000 else raises(n)


@pytest.mark.slow
@posix
def test_only_the_call_that_ran_is_blamed_for_a_death() -> None:
    """What was done before it in its chunk is called again; nothing else has another attempt to its name."""
    f = checkpointed("f", version=1)(dies_once)
    assert f.map(range(800), workers=2, executor="processes", progress=False) == list(range(800))
    attempts = {key: f.runner.records.checkpoint.results.read(f.runner.records.version, key) for key in range(800)}
    told = {key: found[2].attempts for key, found in attempts.items() if found is not None}
    assert len(told) == 800
    assert {key for key, count in told.items() if count != 1} == {700}


def dies_once(n: int) -> int:
    """One item kills its worker, the first time."""
    if n == 700 and not os.path.exists("died"):
        Path("died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n


@pytest.mark.slow
@posix
def test_who_kills_each_worker_fails_after_three_deaths_of_its_own() -> None:
    """The others of its chunk are done."""
    f = checkpointed("f", version=1)(dies_at_700)
    with pytest.raises(ItemsFailed) as caught:
        f.map(range(800), workers=2, executor="processes", progress=False)
    assert list(f.errors) == [700]
    assert "3 times" in str(caught.value.exceptions[0])
    assert len(f.results) == 799


def dies_at_700(n: int) -> int:
    """One item kills each worker."""
    if n == 700:
        os.kill(os.getpid(), signal.SIGKILL)
    return n


def test_a_number_that_cannot_be_shared_is_not_known(tmp_path: Path) -> None:
    """Without a place for temporary files all else goes on."""
    assert opened_at(None) is None
    assert opened_at(str(tmp_path / "missing")) is None


# --- a kill ----------------------------------------------------------------------------------------------------------

JOB = """
import os, sys, time
from checkpoint import checkpointed

def call(n):
    time.sleep(0.001)
    log = os.open("calls", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b"%d\\n" % n)
    os.close(log)
    return n

if __name__ == "__main__":
    checkpointed("job", version=1)(call).map(range(1200), workers=2, executor="processes", progress=False)
"""


@pytest.mark.slow
@posix
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("after", [100, 300, 700])
def test_a_kill_loses_20_ms_of_finished_calls_a_worker(after: int, tmp_path: Path) -> None:
    """SIGKILL of the driver: each call takes at least a millisecond, so that a chunk has at most twenty-one."""
    (tmp_path / "job.py").write_text(JOB)
    command = [sys.executable, "job.py"]
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    surroundings.pop("CHECKPOINT_DIR", None)
    driver = subprocess.Popen(command, cwd=tmp_path, env=surroundings, start_new_session=True)
    wait_until(lambda: len(calls(tmp_path)) >= after or driver.poll() is not None)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    wait_until(lambda: not is_growing(tmp_path))
    assert subprocess.run(command, cwd=tmp_path, env=surroundings).returncode == 0
    made = Counter(calls(tmp_path))
    assert set(made) == set(range(1200))
    assert max(made.values()) <= 2
    assert sum(made.values()) - 1200 <= 2 * 21


def calls(directory: Path) -> list[int]:
    """The calls that have ended."""
    log = directory / "calls"
    return [int(line) for line in log.read_bytes().split(b"\n")[:-1]] if log.exists() else []


def is_growing(directory: Path) -> bool:
    """Whether a worker still works."""
    before = len(calls(directory))
    time.sleep(0.1)
    return len(calls(directory)) > before


def wait_until(holds: Callable[[], bool]) -> None:
    """Poll; the time limit of each test is the deadline."""
    while not holds():
        time.sleep(0.01)
