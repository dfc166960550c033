"""The laws of long runs: memory by keys, nothing that piles up, and reopening by what is not in the index file.

No time is measured: bytes of memory, bytes read, descriptors and threads are counted, in processes of their own. Of how
many items: CHECKPOINT_TEST_ITEMS=20000 python -m pytest -m soak tests/laws/test_soak.py -s; two million unless told.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from array import array
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner
from checkpoint.maintenance.check import check
from checkpoint.maintenance.compact import compact

pytestmark = [pytest.mark.soak, pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is counted")]

ITEMS = int(os.environ.get("CHECKPOINT_TEST_ITEMS") or 2_000_000)
KILLS = 30
DEADLINE = 1800.0

# What a pass may take for each of its items, whatever it is run by and however large its values are: the key and its
# place in a dict (of the index, and of what the pass has drawn), its place in the journal, its digest, its result's
# place. Python's dicts double as they grow, so that half of it may be empty.
BYTES_A_KEY = 700
SLACK = 16 << 20  # bytes, whatever the number of keys: what is read and written at a time, and what is free in between

MEASURE = """
import json, os, sys, threading
from checkpoint import CheckpointedRunner, checkpointed

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field + ":"))

def read():
    with open("/proc/self/io") as file:
        return int(file.readline().split()[1])

def peak(action):
    '''What the action gives, and how many bytes of memory it took at its height.'''
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = status("VmRSS")
    return action(), status("VmHWM") - before
"""

WORK = (
    MEASURE
    + """
directory, engine, total, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
begun = os.open(os.path.join(directory, "begun"), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def work(n):
    os.write(begun, n.to_bytes(4, "little"))
    return {"n": n, "text": "x" * size}

def run(name, count):
    f = checkpointed(name, checkpoint_dir=directory, version=1)(work)
    results = f.map(range(count), workers=8 if engine == "threads" else None, progress=False)
    assert len(results) == count and results[count - 1] == {"n": count - 1, "text": "x" * size}
    return f, results  # they are there while it is measured

run("warm " + str(os.getpid()), 300)
os.ftruncate(begun, int(sys.argv[5]) if len(sys.argv) > 5 else os.fstat(begun).st_size)
_, taken = peak(lambda: run("j", total))
print(json.dumps({"bytes": taken}))
"""
)


def child(code: str, *arguments: object) -> dict[str, Any]:
    """What a script measured; it must end well."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ran.returncode == 0, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    return told


# --- many kills -----------------------------------------------------------------------------------------------------


def run_and_kill(command: list[str], begun: Path, until: int, delay: float) -> bool:
    """Start it, and kill it so many seconds after so many calls have been logged; whether it was killed by that."""
    end = time.monotonic() + DEADLINE
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as job:
        while job.poll() is None and begun.stat().st_size < 4 * until:
            assert time.monotonic() < end
            time.sleep(0.002)
        try:
            job.wait(delay)
        except subprocess.TimeoutExpired:
            job.kill()
        return job.wait() != 0


@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C", "torn tail")
@pytest.mark.parametrize(
    ("engine", "in_flight", "upkeep"),
    [
        pytest.param("serial", 1, False, id="serial"),
        pytest.param("threads", 8, False, id="threads"),
        pytest.param("threads", 8, True, id="threads, compacted between kills"),
    ],
)
def test_millions_of_items_over_many_kills(tmp_path: Path, engine: str, in_flight: int, upkeep: bool) -> None:
    """Each kill costs at most what was in flight; in the end each result is there, and memory went by keys."""
    seed = random.randrange(1 << 32)
    print(f"\nseed {seed}")
    chance, begun = random.Random(seed), tmp_path / "begun"
    begun.touch()
    command = [sys.executable, "-c", WORK, str(tmp_path), engine, str(ITEMS), "20"]
    killed = before = cleared = 0
    for turn in range(KILLS):
        share = ITEMS // KILLS
        calls = begun.stat().st_size // 4
        until = min(calls + chance.randrange(share // 2, share * 3 // 2), ITEMS)
        killed += run_and_kill([*command, str(4 * calls)], begun, until, chance.random() * 0.05)
        with CheckpointedRunner("j", tmp_path) as runner:
            done = runner.records.count()[0]
            lost = begun.stat().st_size // 4 - cleared - done
            assert lost - before <= in_flight, f"{lost - before} calls of one run were for nothing"
            before = lost
            if upkeep and turn % 5 == 4:
                forgotten = [key for key in chance.sample(range(ITEMS), 1000) if runner.is_completed(key)]
                runner.clear(forgotten)
                cleared += len(forgotten)
        if upkeep and turn % 5 == 4:
            compact("j", tmp_path)
    assert killed > KILLS // 2
    taken = child(WORK, tmp_path, engine, ITEMS, 20, begun.stat().st_size)["bytes"]
    print(f"{engine}: {killed} kills, {before} calls made again, {taken / ITEMS:.0f} bytes of memory a key")
    assert taken <= SLACK + BYTES_A_KEY * ITEMS
    calls_of = array("I", begun.read_bytes())
    assert len(calls_of) - cleared - ITEMS == before
    assert len(set(calls_of)) == ITEMS
    found = check("j", tmp_path)
    assert (found.results.damage, [version.results for version in found.versions]) == ((), [ITEMS])
    with CheckpointedRunner("j", tmp_path) as runner:
        for key in chance.sample(range(ITEMS), min(ITEMS, 5000)):
            assert runner.get_result(key) == {"n": key, "text": "x" * 20}


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_memory_goes_by_keys_and_not_by_values(tmp_path: Path, engine: str) -> None:
    """A first pass and a resumed one, of small values and of large ones."""
    for size, total in ((20, ITEMS // 4), (2000, ITEMS // 20)):
        for turn in ("first", "resumed"):
            directory = tmp_path / str(size)
            directory.mkdir(exist_ok=True)
            taken = child(WORK, directory, engine, total, size)["bytes"]
            print(f"{engine}, {turn}: {total} keys of {size} bytes take {taken / total:.0f} bytes each")
            assert taken <= SLACK + BYTES_A_KEY * total


# --- what piles up --------------------------------------------------------------------------------------------------

ROUNDS = (
    MEASURE
    + """
import asyncio, gc
from time import monotonic, sleep
directory, rounds = sys.argv[1], int(sys.argv[2])

def counted():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

def settled(most):
    '''Counts at rest: the thread that tends lives a moment longer than what it tends.'''
    end = monotonic() + 60
    while any(now > then for now, then in zip(counted(), most)) and monotonic() < end:
        sleep(0.01)
    return counted()

def work(n):
    if n % 50 == 7:
        raise ValueError(n)
    return [n] * 10

async def awork(n):
    return work(n)

def one(number):
    name, items = f"j{number % 7}", range(number % 3, 200)
    f = checkpointed(name, checkpoint_dir=directory, version=1)(work)
    f.clear([3, 4, 5])
    results = f.map(items, progress=False, return_exceptions=True)
    f.map(items, workers=4, progress=False, return_exceptions=True)
    stream = f.options(name=f"{name} streamed").stream(items, workers=4, progress=False)
    next(stream)
    stream.close()  # left early
    g = checkpointed(f"{name} async", checkpoint_dir=directory, version=1)(awork)
    asyncio.run(g.map(items, workers=4, progress=False, return_exceptions=True))
    for _ in range(5):
        with CheckpointedRunner(name, directory) as runner:
            runner.save_result("more", number)
            assert runner.get_result(10) == results[10 - number % 3]
    f.runner.close()
    g.runner.close()
    f.options(name=f"{name} streamed").runner.close()

for number in range(21):
    one(number)
most = settled((0, 0)) if not rounds else (len(os.listdir("/proc/self/fd")), 1)
most = settled((most[0], 1))
memory = status("VmRSS")
for number in range(rounds):
    one(number)
after = settled(most)
print(json.dumps({"before": most, "after": after, "memory": status("VmRSS") - memory}))
"""
)


def test_passes_and_reopenings_leave_nothing_behind(tmp_path: Path) -> None:
    """One process, passes of every kind and five times as many reopenings: no descriptor, no thread, no memory."""
    rounds = max(20, ITEMS // 4000)
    told = child(ROUNDS, tmp_path, rounds)
    print(f"\n{4 * rounds} passes, {5 * rounds} reopenings: {told}")
    assert told["after"] == told["before"]
    assert told["memory"] < 8 << 20


# --- reopening ------------------------------------------------------------------------------------------------------

FILL = """
import sys
from checkpoint import CheckpointedRunner
directory, total, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with CheckpointedRunner("j", directory, version=1) as runner:
    for key in runner.iterate(range(total)):
        runner.save_result(key, "x" * size)
    runner.records.store.own.results.write_index()
print("{}")
"""

PAGE = 2 << 10  # more bytes than a page of the index has

REOPEN = (
    MEASURE
    + """
import random
directory, total, more = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with CheckpointedRunner("warm", directory) as runner:
    runner.save_result(1, 1)
    runner.get_result(1)
told, began = {}, read()

def tell(what):
    global began
    now = read()
    told[what], began = now - began, read()

runner = CheckpointedRunner("j", directory, version=1)
assert runner.progress()[0] == total
tell("open")
asked = random.sample(range(total), 100)
assert all(map(runner.is_completed, asked))
tell("ask")
assert list(runner.iterate(range(total))) == []
tell("resume")
for key in range(total, total + more):
    runner.save_result(key, "y" * 100)
tell("save")
runner.close()
tell("close")
runner = CheckpointedRunner("j", directory, version=1)
assert runner.is_completed(total)
tell("open again")
assert runner.progress()[0] == total + more
tell("count")
print(json.dumps(told))
"""
)


def bytes_read(directory: Path, total: int, size: int, more: int) -> dict[str, int]:
    """By what is done to a checkpoint of so many results of that size: how many bytes it reads."""
    child(FILL, directory, total, size)
    told = child(REOPEN, directory, total, more)
    print(f"{total} results of {size} bytes: {told}")
    return told


def test_reopening_reads_the_tail_and_resuming_the_keys(tmp_path: Path) -> None:
    """With the index file: opening reads as much of ten keys as of millions, and a tail once; asking reads a page a
    key; a pass reads an index entry a key, however large the values are.
    """
    print()
    more = 500
    few = bytes_read(tmp_path / "few", 1000, 20, more)
    many = bytes_read(tmp_path / "many", ITEMS, 20, more)
    large = bytes_read(tmp_path / "large", max(1000, ITEMS // 20), 2000, more)
    for told, total in ((few, 1000), (many, ITEMS), (large, max(1000, ITEMS // 20))):
        assert told["open"] <= 16 << 10
        assert told["ask"] <= 100 * PAGE
        assert told["resume"] <= (16 << 10) + 100 * total
        assert told["save"] <= 768 << 10, "the end of the journal is looked at"
        assert told["close"] <= (16 << 10) + more * PAGE
        assert told["open again"] <= (16 << 10) + more * 300
        assert told["count"] <= (16 << 10) + more * PAGE, "whether the index file knows a key of the tail already"
