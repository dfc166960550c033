"""What saving and reopening cost, as ratios to the bare limit, measured interleaved in one run.

    python benchmarks/core.py                  # about two minutes
    python benchmarks/core.py --records 100000 # a quick look

Figures are medians of rounds. Only the ratios mean something: machines are noisy, and differ.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

import checkpoint
from checkpoint import CheckpointedRunner, checkpointed

RESULT = {
    "id": "doc-000123",
    "summary": "A short answer such as a language model gives, of about the length of one sentence or two.",
    "score": 0.123456,
    "tags": ["short", "english"],
    "tokens": 117,
    "ok": True,
}
ROUNDS = 9


def timed(work: Callable[[], object]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def saving(directory: Path, count: int) -> None:
    """`save_result` and `f.map`, against one `os.write` of the same line."""
    runner = CheckpointedRunner("save", directory)
    runner.save_result("warm", RESULT)
    line = (directory / "save_results.jsonl").read_bytes().splitlines(keepends=True)[0]
    bare = os.open(directory / "bare.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    answer = checkpointed("map", checkpoint_dir=directory)(lambda key: RESULT)
    encode = msgspec.json.Encoder().encode
    ratios: dict[str, list[float]] = {"save_result": [], "f.map, per item": [], "msgspec + os.write": []}
    floor = []
    for number in range(ROUNDS):
        keys = [f"round-{number}-item-{index:06d}" for index in range(count)]

        def write() -> None:
            for _ in range(count):
                os.write(bare, line)

        def encode_and_write() -> None:
            for _ in range(count):
                os.write(bare, encode(RESULT) + b"\n")

        def save(keys: list[str] = keys) -> None:
            for key in keys:
                runner.save_result(key, RESULT)

        unit = timed(write)
        floor.append(unit / count)
        ratios["msgspec + os.write"].append(timed(encode_and_write) / unit)
        ratios["save_result"].append(timed(save) / unit)
        ratios["f.map, per item"].append(timed(lambda keys=keys: answer.map(keys, progress=False)) / unit)  # type: ignore[misc]
    runner.close()
    os.close(bare)
    size = len(msgspec.json.encode(RESULT))
    print(f"\nSaving a {size}-byte result (a line of {len(line)} bytes; one os.write of it: "
          f"{statistics.median(floor) * 1e6:.2f} µs)")  # fmt: skip
    for name, values in ratios.items():
        print(f"  {name:<22} {statistics.median(values):6.1f} × os.write   ({min(values):.1f} to {max(values):.1f})")


def saving_durably(directory: Path, count: int) -> None:
    """`save_result` at durability "power", against `os.write` and `os.fdatasync` of the same line."""
    runner = CheckpointedRunner("power", directory, durability="power")
    runner.save_result("warm", RESULT)
    line = (directory / "power_results.jsonl").read_bytes()
    bare = os.open(directory / "bare-power.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sync = getattr(os, "fdatasync", os.fsync)
    ratios, floor = [], []
    for number in range(ROUNDS):

        def write() -> None:
            for _ in range(count):
                os.write(bare, line)
                sync(bare)

        def save(number: int = number) -> None:
            for index in range(count):
                runner.save_result((number, index), RESULT)

        unit = timed(write)
        floor.append(unit / count)
        ratios.append(timed(save) / unit)
    runner.close()
    os.close(bare)
    print(f"\nThe same at durability power (os.write and fdatasync: {statistics.median(floor) * 1e6:.0f} µs)")
    print(
        f"  save_result            {statistics.median(ratios):6.2f} × that   ({min(ratios):.2f} to {max(ratios):.2f})"
    )


def fill(directory: Path, name: str, keys: list[str], result: object) -> Path:
    with CheckpointedRunner(name, directory) as runner:
        for key in keys:
            runner.save_result(key, result)
    return directory / f"{name}_results.jsonl"


def opening(directory: Path, name: str, count: int, result: object) -> None:
    """Reopening and one look-up, with and without the index file, against `json.loads` per line."""
    keys = [f"item-{index:08d}" for index in range(count)]
    path = fill(directory, name, keys, result)
    index = directory / f".{name}_results.index"
    parked = index.with_suffix(".parked")
    found = []

    def reopened() -> tuple[float, float]:
        """Seconds until it is open, and until one key was looked up."""
        gc.collect()
        started = time.perf_counter()
        runner = CheckpointedRunner(name, directory)
        opened = time.perf_counter() - started
        found.append(runner.is_completed(keys[count // 2]))
        asked = time.perf_counter() - started
        runner.close()
        return opened, asked

    def parse() -> None:
        with path.open("rb") as file:
            for line in file:
                json.loads(line)

    labels = ("without the index file", "  and one look-up", "with it", "  and one look-up ")
    ratios: dict[str, list[float]] = {label: [] for label in labels}
    for _ in range(3):
        unit = timed(parse)
        os.replace(index, parked)
        bare = reopened()
        os.replace(parked, index)
        for label, took in zip(labels, (*bare, *reopened()), strict=True):
            ratios[label].append(took / unit)
    assert all(found), "a saved key was not found"
    size = path.stat().st_size
    print(f"\nReopening {count:,} results ({size / 1e6:,.0f} MB; json.loads per line: {unit:.2f} s)")
    for label, values in ratios.items():
        middle = statistics.median(values)
        print(f"  {label:<22} {middle:7.4f} × json.loads per line   ({min(values):.4f} to {max(values):.4f})")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="how many results are reopened")
    parser.add_argument("--items", type=int, default=5_000, help="how many are saved in a round")
    parser.add_argument("--dir", help="where (default: a temporary directory)")
    arguments = parser.parse_args()
    logging.getLogger("checkpoint").setLevel(logging.ERROR)  # new keys in each round, as intended
    print(f"Python {platform.python_version()}, msgspec {msgspec.__version__}, {platform.system()} "
          f"{platform.machine()}, {os.cpu_count()} cores; {checkpoint.__file__}")  # fmt: skip
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        saving(Path(directory), arguments.items)
        saving_durably(Path(directory), max(1, arguments.items // 25))
        opening(Path(directory), "short", arguments.records, RESULT)
        opening(Path(directory), "long", max(1, arguments.records // 500), {"text": "x" * 100_000})
    return 0


if __name__ == "__main__":
    sys.exit(main())
