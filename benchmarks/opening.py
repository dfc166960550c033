"""Opening what was saved, with and without the index file: time, and memory, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.racing import DEFAULT, Bench, Contestant, Keys, Run, Seconds, Target, Times, keys_of
from benchmarks.saving import in_diskcache, in_sqlitedict

ROOT = Path(__file__).resolve().parent.parent
PARSE, SCAN, WITH, WITHOUT = "json.loads per line", "sequential read", "with the index", "without the index"
MEGABYTE = 1 << 20
PEERS_UP_TO = 20_000  # keys; they take minutes to save more


def child(*arguments: object) -> dict[str, Any]:
    """What a process of its own measured."""
    command = [sys.executable, "-m", "benchmarks.child", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def open_all(bench: Bench) -> None:
    """Opening short results, and long ones."""
    sizes = bench.sizes
    for count in sizes.opened:
        open_one(bench, count, 0)
    open_one(bench, sizes.large, 100_000)


def open_one(bench: Bench, count: int, size: int) -> None:
    """One checkpoint of so many results, of `size` bytes or the usual ones; deleted afterwards."""
    what = f"{count:,} results" + (f" of {size // 1000} KB" if size else "")
    bench.say(f"open: saving {what}")
    directory = bench.directory / f"opened-{count}-{size}"
    child("fill", directory, "opened", count, size)
    journal, index = directory / "opened_results.jsonl", directory / ".opened_results.index"
    is_indexed = index.exists()  # for few results none is written: reading the journal takes no longer
    told: dict[str, list[dict[str, Any]]] = {}
    note = partial(_note, told)
    contestants = [
        Contestant(PARSE, _asks(lambda: note(PARSE, child("parse", journal)))),
        Contestant(SCAN, partial(_scanned, journal=journal)),
        Contestant(WITHOUT, _asks(lambda: note(WITHOUT, _parked(index, directory, count)))),
    ]
    if is_indexed:
        contestants.append(Contestant(WITH, _asks(lambda: note(WITH, child("open", directory, "opened", count)))))
    if not size and count <= PEERS_UP_TO:
        contestants += [
            Contestant("diskcache", _reopened(in_diskcache, count), "diskcache"),
            Contestant("sqlitedict", _reopened(in_sqlitedict, count), "sqlitedict"),
        ]
    times = bench.race(f"open {what}", contestants, 1, min(3, bench.sizes.few))
    others = [name for name in times if name not in (PARSE, WITH, WITHOUT)]
    is_large = count >= 1_000_000 or (size > 0 and count >= DEFAULT.large)  # what the targets are about
    scanned = Target("≤", 0.2) if is_large and not size else None
    indexed = Target("≤", 0.01) if is_large else None
    bench.row(f"opening {what}, no index file: to json.loads per line", times, WITHOUT, PARSE, scanned,
              peers=others)  # fmt: skip
    _row_asked(bench, times, told, WITHOUT, scanned)
    if is_indexed:
        bench.row(f"opening {what}, with the index file: to json.loads per line", times, WITH, PARSE, indexed, peers=[])
        _row_asked(bench, times, told, WITH, indexed)
    if not size:
        _rows_memory(bench, what, count, told, is_large=is_large)
    for path in directory.iterdir():
        path.unlink()


@contextmanager
def _scanned(_: Path, journal: Path) -> Iterator[Run]:
    """A sequential read, in blocks."""

    def run(_: Keys) -> None:
        with journal.open("rb", buffering=0) as file:
            while file.read(MEGABYTE):
                pass

    yield run


def _asks(ask: Callable[[], float]) -> Any:
    @contextmanager
    def start(place: Path) -> Iterator[Run]:
        yield lambda _: Seconds(ask())

    return start


def _note(told: dict[str, list[dict[str, Any]]], name: str, found: dict[str, Any]) -> float:
    told.setdefault(name, []).append(found)
    return float(found["opened"])


def _parked(index: Path, directory: Path, count: int) -> dict[str, Any]:
    """Opened while the index file is elsewhere."""
    aside = index.with_suffix(".parked")
    with suppress(FileNotFoundError):
        os.replace(index, aside)
    try:
        return child("open", directory, "opened", count)
    finally:
        with suppress(FileNotFoundError):
            os.replace(aside, index)


def _reopened(saver: Any, count: int) -> Any:
    """A peer, filled; opening it and one look-up is what is timed."""
    keys = keys_of(0, count)

    @contextmanager
    def start(place: Path) -> Iterator[Run]:
        with saver(place) as run:
            run(keys)

        def reopen(_: Keys) -> None:
            with saver(place) as run:
                run(keys[count // 2 : count // 2 + 1])

        yield reopen

    return start


def _row_asked(bench: Bench, times: Times, told: dict[str, list[dict[str, Any]]], name: str, target: Any) -> None:
    asked = f"{name}, and one look-up"
    times[asked] = [found["asked"] for found in told[name]]
    bench.row("— and one look-up", times, asked, PARSE, target, peers=[])


def _rows_memory(bench: Bench, what: str, count: int, told: dict[str, list[dict[str, Any]]], *, is_large: bool) -> None:
    alone = child("nothing")["peak"]
    for name in (WITH, WITHOUT):
        held = [found["held"] / count for found in told.get(name, []) if found["held"] is not None]
        peaks = [found["peak"] - alone for found in told.get(name, []) if found["peak"] is not None]
        most = [max(0.0, beyond / MEGABYTE) for beyond in peaks]  # below 0 is noise
        if held and peaks:
            bench.figure(f"memory held per key, {what} opened {name}", held, "B", Target("≤", 24) if is_large else None)
            bench.figure(f"peak memory while opening {what} {name}, beyond importing", most, "MB",
                         Target("≤", 100) if is_large else None)  # fmt: skip
