"""What importing costs, in fresh interpreters."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.opening import ROOT
from benchmarks.racing import Bench, Contestant, Keys, Run, Seconds, Target

DEPENDENCIES = "wrapt, tqdm, msgspec"
TIMED = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


@contextmanager
def imported(place: Path, modules: str) -> Iterator[Run]:
    """Seconds that the import takes, the interpreter's start apart; what is imported has been compiled."""
    command = [sys.executable, "-c", TIMED.format(modules)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(place)
    subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)

    def run(keys: Keys) -> Seconds:
        ended = [subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True) for _ in keys]
        return Seconds(sum(float(one.stdout) for one in ended))

    yield run


def imports(bench: Bench) -> None:
    """`import checkpoint`, beside its core dependencies and its peers."""
    peers = ["joblib", "diskcache", "cachier", "checkpointer", "batchledger", "async_batch_llm", "sqlitedict"]
    contestants = [
        Contestant(DEPENDENCIES, partial(imported, modules=DEPENDENCIES)),
        Contestant("checkpoint", partial(imported, modules="checkpoint")),
        *[Contestant(name, partial(imported, modules=name), name) for name in peers],
    ]
    times = bench.race("import", contestants, 1, bench.sizes.rounds)
    bench.row("`import checkpoint`, to importing its core dependencies", times, "checkpoint", DEPENDENCIES,
              Target("≤", 1.2))  # fmt: skip
