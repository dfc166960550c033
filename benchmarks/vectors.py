"""Vectors of one shape and dtype as tables, beside numpy's own file, and beside a bare loop of the same steps."""

from __future__ import annotations

import binascii
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.racing import Bench, Contestant, Keys, Run, Target
from checkpoint import checkpointed

WIDTH = 384
NPY, STEPS = "numpy's .npy, written and read", "reading each line, its checksum and its base64"
PANDAS, PARQUET = "to_pandas", "to_parquet"


def _made(place: Path, count: int) -> tuple[Any, Any]:
    """(the array, results of a map that has a row of it each)."""
    numpy = import_module("numpy")
    rows = numpy.random.default_rng(1).standard_normal((count, WIDTH)).astype("f4")
    f = checkpointed("vectors", checkpoint_dir=place)(rows.__getitem__)
    return rows, f.map(range(count), progress=False)


@contextmanager
def in_npy(place: Path, count: int) -> Iterator[Run]:
    numpy = import_module("numpy")
    rows, _ = _made(place, count)

    def run(_: Keys) -> None:
        numpy.save(place / "rows.npy", rows)
        numpy.load(place / "rows.npy")

    yield run


@contextmanager
def by_steps(place: Path, count: int) -> Iterator[Run]:
    """What reading the journal cannot do without."""
    _made(place, count)
    decode = msgspec.json.Decoder().decode

    def run(_: Keys) -> None:
        with (place / "vectors_results.jsonl").open("rb") as lines:
            for line in lines:
                zlib.crc32(memoryview(line)[:-19])
                binascii.a2b_base64(decode(line)["result"]["$ndarray"])

    yield run


@contextmanager
def as_table(place: Path, count: int, make: Callable[[Any, Path], object]) -> Iterator[Run]:
    _, results = _made(place, count)
    make(results, place)  # which imports what it takes
    yield lambda _: make(results, place)


def vectors(bench: Bench) -> None:
    """Time, and bytes."""
    if not all(map(find_spec, ("numpy", "pandas", "pyarrow"))):
        bench.left_out["vectors"] = "numpy, pandas or pyarrow is not installed"
        return
    count = bench.sizes.vectors
    contestants = [
        Contestant(NPY, partial(in_npy, count=count)),
        Contestant(STEPS, partial(by_steps, count=count)),
        Contestant(PANDAS, partial(as_table, count=count, make=lambda results, _: results.to_pandas())),
        Contestant(
            PARQUET,
            partial(as_table, count=count, make=lambda results, place: results.to_parquet(place / "rows.parquet")),
        ),
    ]
    times = bench.race("vectors", contestants, 1, bench.sizes.few)
    what = f"{count:,} vectors of {WIDTH} float32"
    for ours in (PANDAS, PARQUET):
        bench.row(f"{what}, `{ours}`: to {NPY}", times, ours, NPY, Target("≤", 3), peers=[STEPS])
    sizes = [
        (bench.directory / f"vectors {name}".replace(" ", "-").replace("/", "-") / file).stat().st_size
        for name, file in ((PARQUET, "rows.parquet"), (NPY, "rows.npy"))
    ]
    bench.figure(f"{what}, bytes of Parquet: to those of .npy", [sizes[0] / sizes[1]], "×", Target("≤", 1.1))
