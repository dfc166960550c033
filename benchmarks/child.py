"""What is measured in a process of its own, since memory and imports are the process's: ``python -m benchmarks.child``.

Prints one JSON object.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.racing import RESULT
from checkpoint import CheckpointedRunner

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


if __name__ == "__main__":
    work = {"nothing": nothing, "fill": fill, "parse": parse, "open": opened}[sys.argv[1]]
    json.dump(work(*sys.argv[2:]), sys.stdout)  # type: ignore[operator]
