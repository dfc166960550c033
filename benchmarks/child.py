"""What is measured in a process of its own, since memory and imports are the process's: ``python -m benchmarks.child``.

Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.racing import RESULT
from checkpoint import CheckpointedRunner, checkpointed

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def key_at(number: int) -> str:
    """The keys of a checkpoint that is opened."""
    return f"item-{number:08d}"


def resident() -> int | None:
    """Bytes of memory that this process has; None where that cannot be asked."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    except OSError:
        return None


def peak() -> int | None:
    """The most that it ever had.

    `ru_maxrss` begins with what the parent had, where the child was made by vfork: Linux tells the truth elsewhere.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def nothing() -> dict[str, Any]:
    """What importing alone takes."""
    return {"peak": peak()}


def fill(directory: str, name: str, count: str, size: str) -> dict[str, Any]:
    """Save results: the usual one, or of so many bytes."""
    result: Any = {"text": "x" * int(size)} if int(size) else RESULT
    with CheckpointedRunner(name, directory) as runner:
        for number in range(int(count)):
            runner.save_result(key_at(number), result)
    return {}


def parse(path: str) -> dict[str, Any]:
    """json.loads per line, as is commonly done to know what is there."""
    began = time.perf_counter()
    with open(path, "rb") as lines:
        for line in lines:
            json.loads(line)
    return {"opened": time.perf_counter() - began}


def opened(directory: str, name: str, count: str) -> dict[str, Any]:
    """Seconds until it is open, and until one key was looked up; bytes then held, and at most."""
    gc.collect()
    before, began = resident(), time.perf_counter()
    runner = CheckpointedRunner(name, directory)
    is_open = time.perf_counter() - began
    assert runner.is_completed(key_at(int(count) // 2)), "a saved key was not found"
    asked = time.perf_counter() - began
    assert not runner.is_completed(key_at(int(count))), "a key that was not saved was found"
    gc.collect()
    after = resident()
    held = None if before is None or after is None else after - before
    return {"opened": is_open, "asked": asked, "held": held, "peak": peak()}


def mapped(directory: str, count: str) -> dict[str, Any]:
    """Seconds that a map of so many new ints takes; its checkpoint is deleted."""
    f = checkpointed("mapped", checkpoint_dir=directory)(_same)
    f.map(range(10), progress=False)
    began = time.perf_counter()
    f.map(range(10, 10 + int(count)), progress=False)
    seconds = time.perf_counter() - began
    f.runner.close()
    shutil.rmtree(directory)
    return {"seconds": seconds}


def held_by_pass(directory: str, count: str, kind: str) -> dict[str, Any]:
    """The most that a map of so many new items takes, beyond the items and what importing takes."""
    f = checkpointed("held", key="id" if kind == "dicts" else None, checkpoint_dir=directory)(_same)
    f.map(_items(10, kind), progress=False)
    items = _items(int(count), kind)
    gc.collect()
    before = resident()
    f.map(items, progress=False)
    most = peak()
    f.runner.close()
    shutil.rmtree(directory)
    return {"beyond": None if before is None or most is None else most - before, "peak": most}


def commanded(directory: str, count: str) -> dict[str, Any]:
    """Seconds of `show`, `ls`, and plans, of checkpoints that are done; each by a process of its own, as typed."""
    for kind in ("ints", "dicts"):
        f = checkpointed(kind, key="id" if kind == "dicts" else None, checkpoint_dir=directory)(_same)
        f.map(_items(int(count), kind), progress=False)
        f.runner.close()
    found = {}
    for what, words in (("checkpoint show", ["show", "ints"]), ("checkpoint ls", ["ls"])):
        command = [sys.executable, "-m", "checkpoint", *words, "--dir", directory]
        began = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        found[what] = time.perf_counter() - began
    for kind in ("ints", "dicts"):
        f = checkpointed(kind, key="id" if kind == "dicts" else None, checkpoint_dir=directory)(_same)
        items = _items(int(count), kind)
        began = time.perf_counter()
        assert f.plan(items).done == int(count)
        found[f"f.plan of {kind}"] = time.perf_counter() - began
    shutil.rmtree(directory)
    return found


def _same(item: Any) -> Any:
    return item


def _items(count: int, kind: str) -> list[Any]:
    if kind == "ints":
        return list(range(count))
    return [{"id": key_at(number), "title": "A document", "text": "x" * 150, "year": 2024} for number in range(count)]


WORK = {
    "nothing": nothing,
    "fill": fill,
    "parse": parse,
    "open": opened,
    "map": mapped,
    "pass": held_by_pass,
    "commands": commanded,
}

if __name__ == "__main__":
    logging.getLogger("checkpoint").setLevel(logging.ERROR)
    work: Any = WORK[sys.argv[1]]
    json.dump(work(*sys.argv[2:]), sys.stdout)
