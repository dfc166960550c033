"""What it costs to spread calls and record every result, as ratios within one run.

    python benchmarks/engines.py [--rounds 5]

Each kind of work is done by this library and by what it is compared with in turn, round by round; medians are shown.
A ratio above 1 means that this library was faster. Nothing else records its results.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from checkpoint import checkpointed

WAYS = 64
TEXT = "x" * 150
names = count()


def answer(n: int) -> dict[str, Any]:
    """A result of about 190 bytes."""
    return {"id": n, "text": TEXT}


def waits_10_ms(n: int) -> dict[str, Any]:
    time.sleep(0.01)
    return answer(n)


def waits_1_ms(n: int) -> dict[str, Any]:
    time.sleep(0.001)
    return answer(n)


async def awaits_10_ms(n: int) -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return answer(n)


async def awaits_1_ms(n: int) -> dict[str, Any]:
    await asyncio.sleep(0.001)
    return answer(n)


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def mapped(function: Callable[[int], Any], items: int, **options: Any) -> float:
    """Seconds that a map of ours takes, from nothing to all results on disk."""
    f = checkpointed(f"c{next(names)}")(function)
    return timed(lambda: f.map(range(items), progress=False, **options))


def awaited(function: Callable[[int], Any], items: int) -> float:
    """The same of a coroutine function."""
    f: Any = checkpointed(f"c{next(names)}")(function)

    async def main() -> float:
        began = time.perf_counter()
        await f.map(range(items), progress=False, workers=WAYS)
        return time.perf_counter() - began

    return asyncio.run(main())


def thread_pool(function: Callable[[int], Any], items: int) -> float:
    """A bare ThreadPoolExecutor.map."""
    with ThreadPoolExecutor(WAYS) as pool:
        return timed(lambda: list(pool.map(function, range(items))))


def bare_workers(function: Callable[[int], Any], items: int) -> float:
    """As many asyncio tasks over one iterator."""

    async def main() -> float:
        source, results = iter(range(items)), []

        async def work() -> None:
            for n in source:
                results.append(await function(n))

        began = time.perf_counter()
        await asyncio.gather(*[work() for _ in range(WAYS)])
        return time.perf_counter() - began

    return asyncio.run(main())


def imap_and_record(items: int, chunksize: int) -> float:
    """multiprocessing.Pool.imap, and what recording costs: a map of the same function in one process."""
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        pool.map(answer, range(2))
        called = timed(lambda: list(pool.imap(answer, range(items), chunksize)))
    return called + mapped(answer, items)


def processes(items: int, chunksize: int) -> float:
    """The same by a map of ours, less the start of the processes, which a map of a few items tells."""
    options: dict[str, Any] = {"executor": "processes", "workers": 2, "chunksize": chunksize}
    return mapped(answer, items, **options) - mapped(answer, 2, **options)


WORK: list[tuple[str, float | None, Callable[[], float], Callable[[], float]]] = [
    ("64 threads, 10 ms, against ThreadPoolExecutor.map", 0.97,
     lambda: thread_pool(waits_10_ms, 20_000), lambda: mapped(waits_10_ms, 20_000, workers=WAYS)),
    ("64 threads, 1 ms, against ThreadPoolExecutor.map", 0.9,
     lambda: thread_pool(waits_1_ms, 20_000), lambda: mapped(waits_1_ms, 20_000, workers=WAYS)),
    ("64 tasks, 10 ms, against 64 bare tasks", 0.95,
     lambda: bare_workers(awaits_10_ms, 20_000), lambda: awaited(awaits_10_ms, 20_000)),
    ("64 tasks, 1 ms, against 64 bare tasks", 0.85,
     lambda: bare_workers(awaits_1_ms, 20_000), lambda: awaited(awaits_1_ms, 20_000)),
    ("2 processes, chunksize 1, against Pool.imap and a serial map", 1.0,
     lambda: imap_and_record(5_000, 1), lambda: processes(5_000, 1)),
    ("2 processes, chunksize 64, against Pool.imap and a serial map", 1.0,
     lambda: imap_and_record(50_000, 64), lambda: processes(50_000, 64)),
]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5, help="of each kind of work (default 5)")
    parser.add_argument("--only", default="", help="only the work whose name holds this")
    arguments = parser.parse_args()
    before, directory = os.getcwd(), tempfile.mkdtemp()
    os.chdir(directory)
    try:
        print(f"{os.cpu_count()} CPUs, medians of {arguments.rounds} rounds; above 1: faster than what it is against\n")
        print("| work | ratio | asked |\n| --- | --- | --- |")
        for name, asked, theirs, ours in WORK:
            if arguments.only not in name:
                continue
            ratios = []
            for _ in range(arguments.rounds):
                ratios.append(theirs() / ours())
                shutil.rmtree("checkpoints", ignore_errors=True)
            print(
                f"| {name} | {statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}) | {asked} |",
                flush=True,
            )
    finally:
        os.chdir(before)
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
