"""What very many items cost: each of a map, the memory of a pass, and the commands and plans over a million results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from benchmarks.opening import child
from benchmarks.racing import Bench, Contestant, Run, Seconds, Target


@contextmanager
def mapped_apart(place: Path, count: int) -> Iterator[Run]:
    """A map of so many ints, in a process of its own; seconds an item."""
    numbers = iter(range(1 << 30))
    yield lambda keys: Seconds(child("map", place / str(next(numbers)), count)["seconds"] / count * len(keys))


def flat(bench: Bench) -> None:
    """The cost of an item, by how many there are."""
    counts = bench.sizes.mapped
    names = [f"f.map of {count:,}" for count in counts]
    contestants = [
        Contestant(name, partial(mapped_apart, count=count)) for name, count in zip(names, counts, strict=True)
    ]
    times = bench.race("flat", contestants, 1, min(3, bench.sizes.few))
    for name in names[1:]:
        bench.row(f"an item of `{name}`: to one of {counts[0]:,}", times, name, names[0], Target("≤", 1.15), peers=[])


def memory(bench: Bench) -> None:
    """What a pass holds for each item, beyond the items themselves."""
    count = bench.sizes.mapped[-1]
    for kind in ("ints", "dicts"):
        bench.say(f"memory: {count:,} {kind}")
        found = child("pass", bench.directory / f"memory-{kind}", count, kind)
        if found["beyond"] is not None:
            bench.raw[f"memory {kind}"] = {"bytes at most": [found["peak"]]}
            bench.figure(f"memory of a pass an item, {count:,} {kind}, beyond the input",
                         [found["beyond"] / count], "B", Target("≤", 200))  # fmt: skip


def commands(bench: Bench) -> None:
    """`show`, `ls` and `f.plan`."""
    count = bench.sizes.mapped[-1]
    bench.say(f"commands: {count:,} results")
    times = child("commands", bench.directory / "commands", count)
    bench.raw["commands"] = {what: [seconds] for what, seconds in times.items()}
    for what, limit in (("checkpoint show", 1), ("checkpoint ls", 1), ("f.plan of ints", 1), ("f.plan of dicts", 4)):
        bench.figure(f"`{what}` at {count:,}", [times[what]], "s", Target("≤", limit))
