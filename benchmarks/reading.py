"""Reading every value back, in order and at random."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from itertools import accumulate
from pathlib import Path
from random import Random

from benchmarks.racing import RESULT, Bench, Contestant, Keys, Run, Target, each, keys_of, warmed
from benchmarks.saving import in_diskcache, in_joblib, in_sqlite, in_sqlitedict, mapped
from checkpoint import CheckpointedRunner


@contextmanager
def filled(place: Path, keys: Keys) -> Iterator[CheckpointedRunner]:
    """A runner that was opened anew with a result for each key."""
    with CheckpointedRunner("read", place) as runner:
        for key in keys:
            runner.save_result(key, RESULT)
    with CheckpointedRunner("read", place) as runner:
        yield runner


@contextmanager
def all_results(place: Path, keys: Keys) -> Iterator[Run]:
    with filled(place, keys) as runner:
        yield lambda _: runner.get_all_results()


@contextmanager
def one_by_one(place: Path, keys: Keys) -> Iterator[Run]:
    with filled(place, keys) as runner:
        yield each(runner.get_result)


@contextmanager
def list_of_results(place: Path, keys: Keys) -> Iterator[Run]:
    with mapped(place) as run:
        results = run(keys)
        yield lambda _: list(results)  # type: ignore[call-overload]


@contextmanager
def parsed(place: Path, keys: Keys) -> Iterator[Run]:
    """The bare limit of what people write: read on, json.loads each line."""
    with filled(place, keys):
        pass

    def run(_: Keys) -> None:
        with (place / "read_results.jsonl").open("rb") as lines:
            for line in lines:
                json.loads(line)["result"]

    yield run


@contextmanager
def parsed_at_offsets(place: Path, keys: Keys) -> Iterator[Run]:
    """The same at random, where each line's place is known."""
    with filled(place, keys):
        pass
    path = place / "read_results.jsonl"
    sizes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
    places = dict(zip(keys, zip(accumulate(sizes, initial=0), sizes, strict=False), strict=True))
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(key: str) -> object:
        offset, size = places[key]
        return json.loads(pread(fd, size, offset))["result"]

    yield each(read)
    os.close(fd)


@contextmanager
def diskcache_in_order(place: Path, keys: Keys) -> Iterator[Run]:
    with in_diskcache(place) as run:
        run(keys)
    cache = import_module("diskcache").Cache(place)
    yield lambda _: [cache[key] for key in cache]
    cache.close()


@contextmanager
def sqlitedict_in_order(place: Path, keys: Keys) -> Iterator[Run]:
    with in_sqlitedict(place) as run:
        run(keys)
    kind = import_module("sqlitedict").SqliteDict
    saved = kind(str(place / "results.sqlite"), journal_mode="WAL", encode=json.dumps, decode=json.loads)
    yield lambda _: list(saved.values())
    saved.close()


def seek_and_read(fd: int, size: int, offset: int) -> bytes:
    """What Windows has instead of pread."""
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


pread = getattr(os, "pread", seek_and_read)


def shuffled(one: Contestant, items: int) -> Contestant:
    """The same, asked in an order of its own."""
    order = keys_of(0, max(1, int(items * one.share)))
    Random(5).shuffle(order)

    @contextmanager
    def start(place: Path) -> Iterator[Run]:
        with one.start(place) as run:
            yield lambda _: run(order)

    return Contestant(one.name, start, one.needs, one.share)


PARSED, PARSED_AT = "json.loads per line", "pread and json.loads"
ALL, LIST, ONE = "get_all_results", "list(results)", "get_result"


def read(bench: Bench) -> None:
    """Reading all back, from a checkpoint that was opened anew."""
    count, rounds = bench.sizes.read, bench.sizes.few
    keys = keys_of(0, count)
    tenth = keys[: max(1, count // 10)]
    in_order = [
        Contestant(PARSED, partial(parsed, keys=keys)),
        Contestant(ALL, partial(all_results, keys=keys)),
        Contestant(LIST, partial(list_of_results, keys=keys)),
        Contestant("diskcache", partial(diskcache_in_order, keys=tenth), "diskcache", share=0.1),
        Contestant("sqlitedict", partial(sqlitedict_in_order, keys=tenth), "sqlitedict", share=0.1),
    ]
    times = bench.race("read in order", in_order, count, rounds, fresh=False)
    peers = [name for name in times if name not in (PARSED, ALL, LIST)]
    bench.row(f"reading {count:,} back in order, `get_all_results`: to {PARSED}", times, ALL, PARSED, peers=peers)
    bench.row("— by `list(results)`", times, LIST, PARSED, Target("≤", 1.2), peers=[])
    at_random = [
        Contestant(PARSED_AT, partial(parsed_at_offsets, keys=keys)),
        Contestant(ONE, partial(one_by_one, keys=keys)),
        warmed(Contestant("sqlite3", in_sqlite, share=0.5), count),
        warmed(Contestant("diskcache", in_diskcache, "diskcache", share=0.1), count),
        warmed(Contestant("sqlitedict", in_sqlitedict, "sqlitedict", share=0.1), count),
        warmed(Contestant("joblib.Memory", in_joblib, "joblib", share=0.1), count),
    ]
    times = bench.race("read at random", [shuffled(one, count) for one in at_random], count, rounds, fresh=False)
    what = f"reading {count:,} back at random, `get_result`: to {PARSED_AT} of a known place"
    bench.row(what, times, ONE, PARSED_AT, Target("≤", 2))
