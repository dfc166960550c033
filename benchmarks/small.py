"""What people wait for in a session: a map of one item, a result by its key, the loop that is written by hand."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.racing import RESULT, Bench, Contestant, Keys, Run, Target, each, keys_of
from benchmarks.saving import saved
from checkpoint import CheckpointedRunner, checkpointed

ROOT = Path(__file__).resolve().parent.parent
HIT, CALL = "a hit of joblib.Memory", "a new call of joblib.Memory"
FEW, MANY, BARE = "10 results", "many results", "many results, no version"
NEW = "f.map, one new item"


def answered(key: str) -> dict[str, object]:
    """The helper of what is mapped."""
    return RESULT


def asked(key: str) -> dict[str, object]:
    """What is mapped: it has one helper."""
    return answered(key)


# --- maps of one item ------------------------------------------------------------------------------------------------


@contextmanager
def one_done(place: Path, count: int, version: int | None) -> Iterator[Run]:
    """A map of one item that is done, of so many that are."""
    f = checkpointed("one", checkpoint_dir=place, version=version)(asked)
    items = keys_of(0, count)
    f.map(items, progress=False)
    yield each(lambda key: f.map(items[:1], progress=False))
    f.runner.close()


@contextmanager
def one_new(place: Path) -> Iterator[Run]:
    """A map of one item that is not done."""
    f = checkpointed("one", checkpoint_dir=place, version=1)(asked)
    yield each(lambda key: f.map([key], progress=False))
    f.runner.close()


@contextmanager
def joblib_calls(place: Path, *, hits: bool) -> Iterator[Run]:
    """A cached function, of which each call is the same, or another one."""
    f: Callable[[str], Any] = import_module("joblib").Memory(place, verbose=0).cache(asked)
    f("once")
    yield each(lambda key: f("once") if hits else f(key))


def maps(bench: Bench) -> None:
    """One item, done or new."""
    many, rounds = bench.sizes.keyed, bench.sizes.rounds
    done = [
        Contestant(HIT, partial(joblib_calls, hits=True), "joblib"),
        Contestant(FEW, partial(one_done, count=min(10, many), version=1)),
        Contestant(MANY, partial(one_done, count=many, version=1)),
        Contestant(BARE, partial(one_done, count=many, version=None)),
    ]
    times = bench.race("small done", done, bench.sizes.small, rounds)
    what = f"`f.map` of one done item, of a function {{}}: to {HIT}"
    bench.row(what.format("with a version, at 10 results"), times, FEW, HIT, Target("≤", 1), peers=[])
    bench.row(what.format(f"with a version, at {many:,}"), times, MANY, HIT, Target("≤", 1), peers=[])
    bench.row(what.format(f"without, one helper, at {many:,}"), times, BARE, HIT, Target("≤", 1.5), peers=[])
    new = [Contestant(CALL, partial(joblib_calls, hits=False), "joblib"), Contestant(NEW, one_new)]
    times = bench.race("small new", new, bench.sizes.small, rounds)
    bench.row(f'`f.map` of one new item, durability "process": to {CALL}', times, NEW, CALL, Target("≤", 1), peers=[])


# --- by key ----------------------------------------------------------------------------------------------------------

INDEX, LOOKUP = "diskcache.Index", "a sqlite3 look-up"
KEYED, GOT, IS_DONE = "f.results[k]", "runner.get_result", "is_completed"
ELSEWHERE = "f.results[k], another process wrote"
FILL = "from benchmarks.small import fill; import sys; fill(sys.argv[1], int(sys.argv[2]))"


def fill(place: str, count: int) -> None:
    """Map so many keys, in a process of its own."""
    _filled(Path(place), count).runner.close()


def _filled(place: Path, count: int) -> Any:
    f = checkpointed("keyed", checkpoint_dir=place, version=1)(asked)
    f.map(keys_of(0, count), progress=False)
    return f


@contextmanager
def by_key(place: Path, count: int, ask: Callable[[Any], Callable[[str], Any]]) -> Iterator[Run]:
    """Reading in the process that wrote."""
    f = _filled(place, count)
    yield each(ask(f))
    f.runner.close()


@contextmanager
def by_key_elsewhere(place: Path, count: int) -> Iterator[Run]:
    """Reading what another process wrote."""
    subprocess.run([sys.executable, "-c", FILL, place, str(count)], cwd=ROOT, check=True)
    f = checkpointed("keyed", checkpoint_dir=place, version=1)(asked)
    f.results[keys_of(0, 1)[0]]
    yield each(lambda key: f.results[key])
    f.runner.close()


@contextmanager
def in_index(place: Path, count: int) -> Iterator[Run]:
    """A persistent mapping, filled in one transaction."""
    index = import_module("diskcache").Index(str(place))
    with index.transact():
        for key in keys_of(0, count):
            index[key] = RESULT
    yield each(index.__getitem__)
    index.cache.close()


@contextmanager
def is_in_sqlite(place: Path, count: int) -> Iterator[Run]:
    """Whether a key has a row."""
    connection = sqlite3.connect(place / "results.sqlite")
    connection.execute("CREATE TABLE results (key TEXT PRIMARY KEY, value TEXT)")
    rows = [(key, json.dumps(RESULT)) for key in keys_of(0, count)]
    connection.executemany("INSERT INTO results VALUES (?, ?)", rows)
    connection.commit()
    yield each(lambda key: connection.execute("SELECT 1 FROM results WHERE key = ?", (key,)).fetchone() is not None)
    connection.close()


def keyed(bench: Bench) -> None:
    """One result by its key, of very many."""
    count, rounds = bench.sizes.keyed, bench.sizes.rounds
    contestants = [
        Contestant(INDEX, partial(in_index, count=count), "diskcache"),
        Contestant(LOOKUP, partial(is_in_sqlite, count=count)),
        Contestant(KEYED, partial(by_key, count=count, ask=lambda f: lambda key: f.results[key])),
        Contestant(GOT, partial(by_key, count=count, ask=lambda f: f.runner.get_result)),
        Contestant(IS_DONE, partial(by_key, count=count, ask=lambda f: f.runner.is_completed)),
        Contestant(ELSEWHERE, partial(by_key_elsewhere, count=count)),
    ]
    times = bench.race("keyed", contestants, min(count, bench.sizes.small * 10), rounds, fresh=False)
    for ours in (KEYED, GOT, ELSEWHERE):
        bench.row(f"`{ours}`, {count:,} results: to {INDEX}".replace(", another process wrote`", "`, another process "
                  "wrote"), times, ours, INDEX, Target("≤", 1), peers=[])  # fmt: skip
    bench.row(f"`{IS_DONE}`, {count:,} results: to {LOOKUP}", times, IS_DONE, LOOKUP, Target("≤", 1.5), peers=[])


# --- the loop --------------------------------------------------------------------------------------------------------

SAVES, LOOP = "save_result alone", "iterate and save_result"


@contextmanager
def looped(place: Path) -> Iterator[Run]:
    """The loop of the documentation."""
    with CheckpointedRunner("loop", place) as runner:

        def run(keys: Keys) -> None:
            for key in runner.iterate(list(keys)):
                runner.save_result(key, RESULT)

        yield run


def loop(bench: Bench) -> None:
    """The documented loop, beside its saves."""
    contestants = [Contestant(SAVES, saved), Contestant(LOOP, looped)]
    times = bench.race("loop", contestants, bench.sizes.read, bench.sizes.rounds)
    bench.row(f"`runner.iterate` and `save_result`: to {SAVES}", times, LOOP, SAVES, Target("≤", 1.3), peers=[])
