"""Many calls at once, every result recorded, beside engines that record nothing."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from tqdm.contrib.concurrent import thread_map

from benchmarks.racing import RESULT, Bench, Contestant, Keys, Run, Seconds, Target, Times, answer, ratio
from benchmarks.saving import saved
from checkpoint import checkpointed

WAYS = 64
CHUNK = 64
PROCESSES = 2
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def waits(key: str, seconds: float) -> dict[str, object]:
    """A call that waits for its answer."""
    time.sleep(seconds)
    return RESULT


async def awaits(key: str, seconds: float) -> dict[str, object]:
    """The same, awaited."""
    await asyncio.sleep(seconds)
    return RESULT


# --- threads ---------------------------------------------------------------------------------------------------------


@contextmanager
def thread_pool(_: Path, seconds: float) -> Iterator[Run]:
    def run(keys: Keys) -> None:
        with ThreadPoolExecutor(WAYS) as pool:
            list(pool.map(partial(waits, seconds=seconds), keys))

    yield run


@contextmanager
def mapped(place: Path, seconds: float) -> Iterator[Run]:
    f = checkpointed("threads", checkpoint_dir=place)(partial(waits, seconds=seconds))
    yield lambda keys: f.map(keys, progress=False, workers=WAYS)
    f.runner.close()


@contextmanager
def by_thread_map(_: Path, seconds: float) -> Iterator[Run]:
    yield lambda keys: thread_map(partial(waits, seconds=seconds), keys, max_workers=WAYS, disable=True)


@contextmanager
def by_joblib(_: Path, seconds: float) -> Iterator[Run]:
    joblib = import_module("joblib")
    call = joblib.delayed(partial(waits, seconds=seconds))
    yield lambda keys: joblib.Parallel(n_jobs=WAYS, backend="threading")(call(key) for key in keys)


@contextmanager
def by_mpire(_: Path, seconds: float) -> Iterator[Run]:
    kind = import_module("mpire").WorkerPool

    def run(keys: Keys) -> None:
        with kind(WAYS, start_method="threading") as pool:
            pool.map(partial(waits, seconds=seconds), keys, chunk_size=1)

    yield run


# --- tasks -----------------------------------------------------------------------------------------------------------


@contextmanager
def bare_tasks(_: Path, seconds: float) -> Iterator[Run]:
    """As many tasks over one iterator."""

    async def main(keys: Keys) -> None:
        source, results = iter(keys), []

        async def work() -> None:
            for key in source:
                results.append(await awaits(key, seconds))

        await asyncio.gather(*[work() for _ in range(WAYS)])

    yield lambda keys: asyncio.run(main(keys))


@contextmanager
def awaited(place: Path, seconds: float) -> Iterator[Run]:
    async def waiting(key: str) -> dict[str, object]:
        return await awaits(key, seconds)

    f = checkpointed("tasks", checkpoint_dir=place)(waiting)
    yield lambda keys: asyncio.run(f.map(keys, progress=False, workers=WAYS))
    f.runner.close()


@contextmanager
def by_async_batch_llm(place: Path, seconds: float) -> Iterator[Run]:
    """It records too: its JSONL store."""
    abl = import_module("async_batch_llm")

    async def invoke(prompt: str, *, attempt: int, timeout: float, state: object) -> Any:
        return abl.CallOutcome(await awaits(prompt, seconds))

    async def run(keys: Keys) -> None:
        strategy = abl.CallableStrategy(invoke, identity=abl.ArtifactIdentity(model="benchmark"))
        store = abl.JsonlArtifactStore(place / "artifact.jsonl")
        await abl.process_prompts(strategy, [(key, key) for key in keys], concurrency=WAYS, artifact_store=store)
        await store.close()

    yield lambda keys: asyncio.run(run(keys))


# --- processes: all are started before the clock is ------------------------------------------------------------------


@contextmanager
def process_pool(_: Path, chunksize: int) -> Iterator[Run]:
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context(START)) as pool:
        list(pool.map(answer, ["a", "b"]))
        yield lambda keys: list(pool.map(answer, keys, chunksize=chunksize))


@contextmanager
def pool_imap(_: Path, chunksize: int) -> Iterator[Run]:
    with multiprocessing.get_context(START).Pool(PROCESSES) as pool:
        pool.map(answer, ["a", "b"])
        yield lambda keys: list(pool.imap(answer, keys, chunksize))


@contextmanager
def joblib_processes(_: Path) -> Iterator[Run]:
    """Its own choice of batches, its default."""
    joblib = import_module("joblib")
    pool = joblib.Parallel(n_jobs=PROCESSES)
    pool(joblib.delayed(answer)(key) for key in "ab")
    yield lambda keys: pool(joblib.delayed(answer)(key) for key in keys)


@contextmanager
def mpire_processes(_: Path) -> Iterator[Run]:
    """Its own choice of chunks, its default."""
    kind = import_module("mpire").WorkerPool
    with kind(PROCESSES, start_method=START, keep_alive=True) as pool:
        pool.map(answer, ["a", "b"])
        yield lambda keys: pool.map(answer, keys)


@contextmanager
def mapped_on_processes(place: Path, chunksize: int | None) -> Iterator[Run]:
    """A map of ours starts its processes: what a map of two items takes is taken off."""
    f = checkpointed("processes", checkpoint_dir=place)(answer)

    def timed(keys: Keys) -> float:
        began = time.perf_counter()
        f.map(keys, progress=False, executor="processes", workers=PROCESSES, chunksize=chunksize)
        return time.perf_counter() - began

    def run(keys: Keys) -> Seconds:
        start = timed([f"start {keys[0]}", f"start {keys[0]} too"])
        return Seconds(max(timed(keys) - start, 1e-9))

    yield run
    f.runner.close()


# --- who takes part --------------------------------------------------------------------------------------------------

POOL, TASKS, PROCESS = "ThreadPoolExecutor.map", "64 bare tasks", "ProcessPoolExecutor, chunksize 1"
THREADS_OURS, TASKS_OURS = "f.map, 64 threads", "f.map, 64 tasks"
SINGLE, CHUNKED = "f.map, chunksize 1", f"f.map, chunksize {CHUNK}"
ADAPTED, SAVED = "f.map, chunks that adapt", "save_result in a loop"
ON_PROCESSES = [
    Contestant(PROCESS, partial(process_pool, chunksize=1), share=0.02),
    Contestant(SINGLE, partial(mapped_on_processes, chunksize=1), share=0.05),
    Contestant(CHUNKED, partial(mapped_on_processes, chunksize=CHUNK)),
    Contestant(ADAPTED, partial(mapped_on_processes, chunksize=None)),
    Contestant(SAVED, saved, share=0.2),
    Contestant(f"ProcessPoolExecutor, {CHUNK}", partial(process_pool, chunksize=CHUNK)),
    Contestant("Pool.imap, 1", partial(pool_imap, chunksize=1), share=0.05),
    Contestant(f"Pool.imap, {CHUNK}", partial(pool_imap, chunksize=CHUNK)),
    Contestant("joblib", joblib_processes, "joblib"),
    Contestant("mpire", mpire_processes, "mpire"),
]
WAITS = ((10, 0.97, 0.85), (1, 0.9, 0.85))  # milliseconds; what is asked of threads, and of tasks


def on_threads(seconds: float) -> list[Contestant]:
    """Who makes calls on threads."""
    return [
        Contestant(POOL, partial(thread_pool, seconds=seconds)),
        Contestant(THREADS_OURS, partial(mapped, seconds=seconds)),
        Contestant("thread_map", partial(by_thread_map, seconds=seconds)),
        Contestant("joblib", partial(by_joblib, seconds=seconds), "joblib"),
        Contestant("mpire", partial(by_mpire, seconds=seconds), "mpire"),
    ]


def on_tasks(seconds: float) -> list[Contestant]:
    """Who makes calls on asyncio tasks."""
    return [
        Contestant(TASKS, partial(bare_tasks, seconds=seconds)),
        Contestant(TASKS_OURS, partial(awaited, seconds=seconds)),
        Contestant("async-batch-llm", partial(by_async_batch_llm, seconds=seconds), "async_batch_llm", share=0.2),
    ]


def threads(bench: Bench) -> None:
    """64 threads, calls that wait."""
    for (wait, asked, _), count in zip(WAITS, bench.sizes.waiting, strict=True):
        times = bench.race(f"threads {wait} ms", on_threads(wait / 1000), count, bench.sizes.few)
        what = f"64 threads, calls of {wait} ms: speed, to a bare {POOL}"
        bench.row(what, times, THREADS_OURS, POOL, Target("≥", asked), speed=True)
        _row_fastest(bench, times)


def _row_fastest(bench: Bench, times: Times) -> None:
    """Ours beside the fastest peer, which records nothing."""
    peers = [name for name in times if name not in (POOL, THREADS_OURS)]
    fastest = max(peers, key=lambda name: ratio(times, name, POOL, speed=True).median)
    bench.row(f"— to the fastest of {', '.join(peers)}", times, THREADS_OURS, fastest, Target("≥", 1),
              speed=True, peers=[])  # fmt: skip


def tasks(bench: Bench) -> None:
    """64 asyncio tasks, calls that wait."""
    for (wait, _, asked), count in zip(WAITS, bench.sizes.waiting, strict=True):
        times = bench.race(f"tasks {wait} ms", on_tasks(wait / 1000), count, bench.sizes.few)
        what = f"64 tasks, calls of {wait} ms: speed, to {TASKS}"
        bench.row(what, times, TASKS_OURS, TASKS, Target("≥", asked), speed=True)


def processes(bench: Bench) -> None:
    """2 processes, a function that does nothing."""
    times = bench.race("processes", ON_PROCESSES, bench.sizes.trivial, bench.sizes.few)
    peers = [name for name in times if name not in (PROCESS, SINGLE, CHUNKED, ADAPTED, SAVED)]
    what = f"trivial function on 2 processes, {{}}: speed, to {PROCESS}"
    chunks = what.format(f"chunksize {CHUNK}")
    bench.row(chunks, times, CHUNKED, PROCESS, speed=True, peers=peers)
    adapted = "trivial function on 2 processes, chunks that adapt: speed, to `save_result` in a loop"
    bench.row(adapted, times, ADAPTED, SAVED, Target("≥", 1.5), speed=True, peers=[])
    bench.row(what.format("chunksize 1"), times, SINGLE, PROCESS, speed=True, peers=[])
