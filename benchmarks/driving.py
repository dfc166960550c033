"""How far one driver goes: what it settles in a second on each engine, and where more workers no longer help.

Each engine is measured in a process of its own: ``python -m benchmarks.driving ENGINE DIRECTORY ITEMS ROUNDS``.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import secrets
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.racing import RESULT, Bench, Ratio, Row, answer, keys_of, middle
from checkpoint import checkpointed

WORKERS = 2
CHUNKS = (1, 64, 1024)
WAYS = (64, 512, 4096)
WAIT = 0.1  # seconds, as a call to an API takes
Options = dict[str, Any]


# --- engines ---------------------------------------------------------------------------------------------------------


@contextmanager
def here() -> Iterator[Options]:
    """In the driver itself."""
    yield {}


@contextmanager
def processes() -> Iterator[Options]:
    """Those of ours."""
    yield {"executor": "processes", "workers": WORKERS}


@contextmanager
def dask() -> Iterator[Options]:
    """A cluster of this machine, a process for each worker."""
    distributed = importlib.import_module("distributed")
    local = {"n_workers": WORKERS, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**local) as cluster, distributed.Client(cluster) as client:
        yield {"executor": client}


@contextmanager
def on_ray() -> Iterator[Options]:
    """A cluster of this machine."""
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # else Ray writes one into the home directory
    ray = importlib.import_module("ray")
    ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield {"executor": "ray"}
    ray.shutdown()


@contextmanager
def executorlib() -> Iterator[Options]:
    """Processes of this machine, which stay."""
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        kind = importlib.import_module("executorlib").SingleNodeExecutor
    with kind(max_workers=WORKERS, block_allocation=True) as executor:
        yield {"executor": executor, "workers": WORKERS}


@contextmanager
def submitit() -> Iterator[Options]:
    """A process for each task, as a Slurm job is."""
    executor = importlib.import_module("submitit").LocalExecutor("jobs")
    yield {"executor": executor, "workers": WORKERS}


@contextmanager
def mpi() -> Iterator[Options]:
    """Processes that MPI spawns."""
    with importlib.import_module("mpi4py.futures").MPIPoolExecutor(WORKERS) as executor:
        yield {"executor": executor, "workers": WORKERS}


class Engine(NamedTuple):
    """What runs the function: how it is started, the package that it needs, the chunks, and its share of the items."""

    start: Callable[[], Any]
    needs: str = ""
    chunks: Sequence[int] = CHUNKS
    share: float = 1.0


ENGINES = {
    "this process": Engine(here, chunks=(1,)),
    "processes": Engine(processes),
    "Dask": Engine(dask, "distributed", share=0.2),
    "Ray": Engine(on_ray, "ray", share=0.2),
    "executorlib": Engine(executorlib, "executorlib", share=0.2),
    "submitit": Engine(submitit, "submitit", CHUNKS[2:], share=0.05),
    "MPI": Engine(mpi, "mpi4py"),
}


def rates(name: str, directory: Path, items: int, rounds: int) -> dict[str, list[float]]:
    """Results settled in a second, by chunk size, one figure for each round; what starting takes is left out."""
    engine, found = ENGINES[name], dict[str, list[float]]()
    with engine.start() as options:
        for chunk in engine.chunks:
            f = checkpointed(f"chunk {chunk}", checkpoint_dir=directory)(answer)
            part = min(1.0, chunk / 32) if len(engine.chunks) > 1 else 1.0  # single calls are slow
            count = max(WORKERS, int(items * engine.share * part))

            def seconds(keys: Sequence[str], chunk: int = chunk, f: Any = f) -> float:
                more = {"chunksize": chunk} if chunk > 1 else {}
                began = time.perf_counter()
                f.map(keys, progress=False, **more, **options)
                return time.perf_counter() - began

            for number in range(rounds):
                start = seconds([f"start {number}", f"start {number} too"])
                took = seconds(keys_of(number, count)) - (0.0 if engine.needs else start)  # ours start within `map`
                found.setdefault(str(chunk), []).append(count / max(took, 1e-9))
            f.runner.close()
    return found


def trivial(bench: Bench) -> None:
    """What one driver settles of a function that does nothing."""
    for name, engine in ENGINES.items():
        if engine.needs and (not bench.peers or find_spec(engine.needs) is None):
            continue
        bench.say(f"driver: {name}")
        place = bench.directory / f"driver {name}"
        place.mkdir()
        try:
            found = _in_child(name, place, bench.sizes.trivial, min(3, bench.sizes.few))
        except Exception as error:
            if not engine.needs:
                raise
            bench.left_out[name] = f"failed: {error}"[:200]
            continue
        bench.raw[f"driver {name}"] = {chunk: [1 / rate for rate in figures] for chunk, figures in found.items()}
        of_each = {chunk: middle(figures) for chunk, figures in found.items()}
        _row(bench, name, of_each)


def _row(bench: Bench, name: str, of_each: dict[str, Ratio]) -> None:
    best = max(of_each.values(), key=lambda found: found.median)
    others = [(f"chunksize {int(chunk):,}", found) for chunk, found in of_each.items()] if len(of_each) > 1 else []
    what = f"one driver, {name}, {WORKERS} workers" if name != "this process" else "one driver, in its own process"
    bench.rows.append(Row(f"{what}: trivial calls settled a second, at the best chunk size", best, None, others, "/s"))


def _in_child(name: str, place: Path, items: int, rounds: int) -> dict[str, list[float]]:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])  # where mpiexec is
    root = str(Path(__file__).resolve().parent.parent)
    surroundings = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join([root, *filter(None, sys.path)])}
    command = [sys.executable, "-m", "benchmarks.driving", name, str(place), str(items), str(rounds)]
    ended = subprocess.run(command, cwd=place, env=surroundings, capture_output=True, text=True, start_new_session=True)
    if ended.returncode:
        raise RuntimeError(ended.stderr[-300:])
    found: dict[str, list[float]] = json.loads(ended.stdout.splitlines()[-1])
    return found


# --- calls that wait -------------------------------------------------------------------------------------------------


def waiting(bench: Bench) -> None:
    """How much of what so many workers could do one driver lets them do, where each call waits as an API does."""

    def wait(key: str) -> dict[str, object]:
        time.sleep(WAIT)
        return RESULT

    async def await_it(key: str) -> dict[str, object]:
        await asyncio.sleep(WAIT)
        return RESULT

    for kind, call in (("threads", wait), ("tasks", await_it)):
        found = dict[str, list[float]]()
        f: Any = checkpointed(f"waiting {kind}", checkpoint_dir=bench.directory)(call)
        for ways in WAYS[: 2 if kind == "threads" else 3]:
            for number in range(bench.sizes.few):
                bench.say(f"driver: {ways} {kind}, round {number + 1} of {bench.sizes.few}")
                keys = keys_of(number, max(1, int(bench.sizes.waiting[0] * ways / WAYS[-1] * 4)))
                keys = [f"{ways} {key}" for key in keys]
                began = time.perf_counter()
                made = f.map(keys, progress=False, workers=ways)
                if kind == "tasks":
                    asyncio.run(made)
                took = time.perf_counter() - began
                found.setdefault(str(ways), []).append(-(-len(keys) // ways) * WAIT / took)
        f.runner.close()
        bench.raw[f"driver {kind}"] = {ways: [1 / share for share in shares] for ways, shares in found.items()}
        last = list(found)[-1]
        what = f"one driver, {int(last):,} {kind}, calls of {WAIT * 1000:g} ms: of the speed that they could reach"
        others = [(f"{int(ways):,} {kind}", middle(shares)) for ways, shares in found.items()]
        bench.rows.append(Row(what, middle(found[last]), None, others))


def drive(bench: Bench) -> None:
    """How far one driver goes."""
    trivial(bench)
    waiting(bench)


if __name__ == "__main__":
    logging.getLogger("checkpoint").setLevel(logging.ERROR)
    json.dump(rates(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])), sys.stdout)
    print()
