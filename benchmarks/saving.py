"""Saving results one by one, and resuming: who persists a result for each key, and skips it next time."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.racing import RESULT, Bench, Contestant, Keys, Run, Target, answer, each, resumed, warmed
from checkpoint import CheckpointedRunner, checkpointed
from checkpoint.execution.policies import Durability

sync = getattr(os, "fdatasync", os.fsync)  # macOS and Windows have no fdatasync

# --- the bare limit --------------------------------------------------------------------------------------------------


def sample_line(place: Path) -> bytes:
    """The line that `save_result` writes for one result."""
    with CheckpointedRunner("sample", place) as runner:
        runner.save_result("round-00-item-0000000", RESULT)
    return (place / "sample_results.jsonl").read_bytes()


@contextmanager
def appended(place: Path, *, power: bool = False) -> Iterator[Run]:
    """The line, encoded once, is written for each key, and synced where `power`."""
    line = sample_line(place)
    fd = os.open(place / "bare.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(keys: Keys) -> None:
        for _ in keys:
            os.write(fd, line)
            if power:
                sync(fd)

    yield write
    os.close(fd)


@contextmanager
def encoded(place: Path) -> Iterator[Run]:
    """msgspec encodes a dict of key and result, and it is written: no check, no checksum, no timestamp, no index."""
    fd = os.open(place / "encoded.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    encode = msgspec.json.Encoder().encode
    yield each(lambda key: os.write(fd, encode({"key": key, "result": RESULT}) + b"\n"))
    os.close(fd)


@contextmanager
def in_a_set(place: Path) -> Iterator[Run]:
    """The bare loop of a resume: whether the item's key is in a set."""
    done: set[str] = set()

    def key_of(item: str) -> str:
        return item

    def skip(keys: Keys) -> None:
        if not done:
            done.update(keys)
        for item in keys:
            if key_of(item) in done:
                continue

    yield skip


@contextmanager
def in_a_set_by_id(place: Path) -> Iterator[Run]:
    """The same with dict items."""
    items: list[dict[str, Any]] = []
    done: set[str] = set()

    def key_of(item: dict[str, Any]) -> str:
        key: str = item["id"]
        return key

    def skip(keys: Keys) -> None:
        if not items:
            items.extend(documents(keys))
            done.update(keys)
        for item in items:
            if key_of(item) in done:
                continue

    yield skip


def documents(keys: Keys) -> list[dict[str, Any]]:
    """An item such as people have, for each key."""
    return [{"id": key, "title": "A document", "text": "x" * 150, "year": 2024} for key in keys]


# --- this library ----------------------------------------------------------------------------------------------------


@contextmanager
def saved(place: Path, durability: Durability = "process") -> Iterator[Run]:
    """`save_result`, by hand."""
    with CheckpointedRunner("saved", place, durability=durability) as runner:
        yield each(lambda key: runner.save_result(key, RESULT))


@contextmanager
def mapped(place: Path, durability: Durability = "process", **options: Any) -> Iterator[Run]:
    """`f.map` over strings that are their own keys."""
    f = checkpointed("mapped", checkpoint_dir=place, durability=durability)(answer)
    yield lambda keys: f.map(keys, progress=False, **options)
    f.runner.close()


@contextmanager
def mapped_and_read(place: Path) -> Iterator[Run]:
    """The same, and every value is read back, as most peers do when they skip."""
    with mapped(place) as run:
        yield lambda keys: list(run(keys))  # type: ignore[call-overload]


@contextmanager
def mapped_by_id(place: Path) -> Iterator[Run]:
    """`f.map` over dicts keyed by a field, so that each item's content is digested and compared."""
    f = checkpointed("mapped", key="id", checkpoint_dir=place)(lambda item: answer(item["id"]))
    items: list[dict[str, Any]] = []

    def run(keys: Keys) -> None:
        if not items:
            items.extend(documents(keys))
        f.map(items, progress=False)

    yield run
    f.runner.close()


@contextmanager
def awaited(place: Path, durability: Durability = "process", **options: Any) -> Iterator[Run]:
    """`await f.map` over a coroutine function."""

    async def answered(key: str) -> dict[str, object]:
        return answer(key)

    f = checkpointed("awaited", checkpoint_dir=place, durability=durability)(answered)
    yield lambda keys: asyncio.run(f.map(keys, progress=False, **options))
    f.runner.close()


# --- what people write -----------------------------------------------------------------------------------------------


@contextmanager
def by_hand(place: Path, *, meta: bool = False, power: bool = False) -> Iterator[Run]:
    """A JSONL file, opened for each item, and keys read from it at the start; `meta` is rewritten for each item too."""
    path, about = place / "results.jsonl", place / "meta.json"
    done = {}
    if path.exists():
        with path.open(encoding="utf-8") as lines:
            done = {record["key"]: record["result"] for record in map(json.loads, lines)}

    def work(key: str) -> None:
        if key in done:
            return
        done[key] = answer(key)
        with path.open("a", encoding="utf-8") as file:
            record = {"key": key, "result": done[key], "timestamp": datetime.now(UTC).isoformat()}
            file.write(json.dumps(record) + "\n")
            if power:
                file.flush()
                os.fsync(file.fileno())
        if meta:
            counts = {"completed": len(done), "last_updated": datetime.now(UTC).isoformat()}
            about.write_text(json.dumps(counts, indent=2), encoding="utf-8")

    yield each(work)


@contextmanager
def in_sqlite(place: Path, synchronous: str = "NORMAL") -> Iterator[Run]:
    """The standard sqlite3, write-ahead log, one commit for each item."""
    connection = sqlite3.connect(place / "results.sqlite")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE IF NOT EXISTS results (key TEXT PRIMARY KEY, result TEXT) WITHOUT ROWID")

    def work(key: str) -> Any:
        row = connection.execute("SELECT result FROM results WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return json.loads(row[0])
        with connection:
            return connection.execute("INSERT INTO results VALUES (?, ?)", (key, json.dumps(answer(key))))

    yield each(work)
    connection.close()


# --- peers: each is imported by name, since it may be missing and has no types ---------------------------------------


@contextmanager
def in_diskcache(place: Path, synchronous: int = 1) -> Iterator[Run]:
    """Its default settings (write-ahead log, synchronous=NORMAL), without eviction, which results must not suffer."""
    cache = import_module("diskcache").Cache(place, eviction_policy="none", sqlite_synchronous=synchronous)

    def work(key: str) -> Any:
        found = cache.get(key)
        if found is None:
            cache[key] = found = answer(key)
        return found

    yield each(work)
    cache.close()


@contextmanager
def in_sqlitedict(place: Path) -> Iterator[Run]:
    """JSON, write-ahead log, and a commit that is waited for: with `autocommit` nobody knows when it is written."""
    kind = import_module("sqlitedict").SqliteDict
    found = kind(str(place / "results.sqlite"), journal_mode="WAL", encode=json.dumps, decode=json.loads)

    def work(key: str) -> Any:
        try:
            return found[key]
        except KeyError:
            found[key] = answer(key)
            found.commit()

    yield each(work)
    found.close()


@contextmanager
def in_joblib(place: Path) -> Iterator[Run]:
    """A cached function, not talking; values that are no arrays are pickled either way."""
    yield each(import_module("joblib").Memory(place, verbose=0).cache(answer))


@contextmanager
def in_cachier(place: Path) -> Iterator[Run]:
    """A file for each call: the default rewrites one file with all results at each call."""
    yield each(import_module("cachier").cachier(cache_dir=place, separate_files=True)(answer))


@contextmanager
def in_checkpointer(place: Path) -> Iterator[Run]:
    """Pickle files, its default, not talking."""
    yield each(import_module("checkpointer").checkpoint(directory=place, verbosity=0)(answer))


@contextmanager
def in_batchledger(place: Path) -> Iterator[Run]:
    """Its map with keys that need no hash. It always syncs (synchronous=FULL): there is no other setting."""
    ledger = import_module("batchledger").Ledger(place / "ledger.sqlite", namespace="benchmark", version="1")
    with ledger:
        yield lambda keys: list(ledger.map(answer, keys, key=str))


@contextmanager
def in_async_batch_llm(place: Path, *, power: bool = False, workers: int = 1) -> Iterator[Run]:
    """A callable in its pipeline with its JSONL store, the faster of its two stores where items are short."""
    abl = import_module("async_batch_llm")

    async def invoke(prompt: str, *, attempt: int, timeout: float, state: object) -> Any:
        return abl.CallOutcome(answer(prompt))

    async def run(keys: Keys) -> None:
        strategy = abl.CallableStrategy(invoke, identity=abl.ArtifactIdentity(model="benchmark"))
        store = abl.JsonlArtifactStore(place / "artifact.jsonl", fsync=power)
        items = [(key, key) for key in keys]
        resume = abl.ResumePolicy.REUSE_SUCCESSES
        await abl.process_prompts(strategy, items, concurrency=workers, artifact_store=store, resume=resume)
        await store.close()

    yield lambda keys: asyncio.run(run(keys))


# --- who takes part --------------------------------------------------------------------------------------------------

WRITE, WRITE_SYNC = "os.write", "os.write and fdatasync"
SAVE, MAP, ENCODED, SQLITE = "save_result", "f.map", "msgspec and os.write", "sqlite3"

SAVERS = [
    Contestant(WRITE, appended),
    Contestant(ENCODED, encoded),
    Contestant(SAVE, saved),
    Contestant(MAP, mapped),
    Contestant("JSONL by hand", by_hand, share=0.1),
    Contestant("JSONL by hand, with metadata", partial(by_hand, meta=True), share=0.02),
    Contestant("sqlite3", in_sqlite, share=0.05),
    Contestant("diskcache", in_diskcache, "diskcache", share=0.05),
    Contestant("sqlitedict", in_sqlitedict, "sqlitedict", share=0.01),
    Contestant("checkpointer", in_checkpointer, "checkpointer", share=0.01),
    Contestant("batchledger (syncs)", in_batchledger, "batchledger", share=0.01),
    Contestant("joblib.Memory", in_joblib, "joblib", share=0.01),
    Contestant("async-batch-llm", in_async_batch_llm, "async_batch_llm", share=0.01),
    Contestant("cachier", in_cachier, "cachier", share=0.01),
]
SYNCERS = [
    Contestant(WRITE_SYNC, partial(appended, power=True)),
    Contestant(SAVE, partial(saved, durability="power")),
    Contestant(MAP, partial(mapped, durability="power")),
    Contestant("JSONL by hand, with fsync", partial(by_hand, power=True)),
    Contestant("sqlite3", partial(in_sqlite, synchronous="FULL")),
    Contestant("diskcache", partial(in_diskcache, synchronous=2), "diskcache"),
    Contestant("batchledger", in_batchledger, "batchledger"),
    Contestant("async-batch-llm", partial(in_async_batch_llm, power=True), "async_batch_llm", share=0.5),
]
AT_ONCE = [
    Contestant(WRITE_SYNC, partial(appended, power=True), share=0.1),
    Contestant("64 threads", partial(mapped, durability="power", workers=64)),
    Contestant("64 tasks", partial(awaited, durability="power", workers=64)),
    Contestant(
        "async-batch-llm, 64 tasks", partial(in_async_batch_llm, power=True, workers=64), "async_batch_llm", share=0.1
    ),
]
IN_SET, IN_SET_BY_ID = "key(item) in set", "key(item) in set, dict items"
MAP_TWICE, MAP_BY_ID, MAP_AND_READ = "f.map, second pass", "f.map, dict items", "f.map, values read"
RESUMERS = [
    Contestant(MAP, mapped),
    Contestant(MAP_BY_ID, mapped_by_id),
    Contestant(MAP_AND_READ, mapped_and_read),
    Contestant("JSONL by hand", by_hand, share=0.2),
    Contestant("sqlite3", in_sqlite, share=0.05),
    Contestant("diskcache", in_diskcache, "diskcache", share=0.02),
    Contestant("batchledger", in_batchledger, "batchledger", share=0.01),
    Contestant("checkpointer", in_checkpointer, "checkpointer", share=0.01),
    Contestant("sqlitedict", in_sqlitedict, "sqlitedict", share=0.01),
    Contestant("joblib.Memory", in_joblib, "joblib", share=0.01),
    Contestant("cachier", in_cachier, "cachier", share=0.01),
    Contestant("async-batch-llm", in_async_batch_llm, "async_batch_llm", share=0.01),
]


def process(bench: Bench) -> None:
    """Per item, at durability "process"."""
    times = bench.race("save", SAVERS, bench.sizes.saved, bench.sizes.rounds)
    size = len(msgspec.json.encode(RESULT))
    what = f'{size}-byte result, durability "process": to one os.write of its line'
    bench.row(f"`save_result`, {what}", times, SAVE, WRITE, peers=_all_but(times, WRITE, SAVE, MAP))
    bench.row("— to msgspec and os.write", times, SAVE, ENCODED, Target("≤", 5.5), peers=[])
    bench.row("— to an insert of sqlite3 (write-ahead log, NORMAL)", times, SAVE, SQLITE, Target("≤", 0.5), peers=[])
    bench.row("`f.map` over a trivial function, serial: to `save_result`", times, MAP, SAVE, Target("≤", 2), peers=[])


def power(bench: Bench) -> None:
    """Per item, at durability "power"."""
    times = bench.race("save power", SYNCERS, bench.sizes.synced, bench.sizes.rounds)
    what = '`save_result`, durability "power", one thread: to os.write and fdatasync'
    bench.row(what, times, SAVE, WRITE_SYNC, Target("≤", 1.15), peers=_all_but(times, WRITE_SYNC, SAVE, MAP))
    bench.row('`f.map`, durability "power", serial: to `save_result`', times, MAP, SAVE, Target("≤", 2), peers=[])


def power_at_once(bench: Bench) -> None:
    """Many at once, at durability "power"."""
    times = bench.race("save power 64", AT_ONCE, bench.sizes.synced * 20, bench.sizes.rounds)
    for ours in ("64 threads", "64 tasks"):
        what = f'`f.map`, durability "power", {ours}: speed, to one fdatasync per item'
        others = _all_but(times, WRITE_SYNC, "64 threads", "64 tasks") if ours == "64 tasks" else []
        bench.row(what, times, ours, WRITE_SYNC, Target("≥", 6), speed=True, peers=others)


def resume(bench: Bench) -> None:
    """Opening what is done, and skipping all of it."""
    items, rounds = bench.sizes.resumed, bench.sizes.few
    bare = [Contestant(IN_SET, in_a_set), Contestant(IN_SET_BY_ID, in_a_set_by_id), Contestant(MAP_TWICE, mapped)]
    contestants = [warmed(one, items) for one in bare] + [resumed(one, items) for one in RESUMERS]
    times = bench.race("resume", contestants, items, rounds, fresh=False)
    what = f"skipping {items:,} done items on resume, opening included: to `key(item) in set`"
    ours = (IN_SET, IN_SET_BY_ID, MAP, MAP_TWICE, MAP_BY_ID, MAP_AND_READ)
    bench.row(what, times, MAP, IN_SET, Target("≤", 6), peers=_all_but(times, *ours))
    again = "skipping in a second pass of one process: to `key(item) in set`"
    bench.row(again, times, MAP_TWICE, IN_SET, Target("≤", 6), peers=[])
    digested = "skipping dict items on resume, whose content is digested and compared: to `key(item) in set`"
    bench.row(digested, times, MAP_BY_ID, IN_SET_BY_ID, Target("≤", 12), peers=[])
    read_too = "skipping on resume, and reading every value: to `key(item) in set`"
    bench.row(read_too, times, MAP_AND_READ, IN_SET, peers=[])


def _all_but(times: dict[str, list[float]], *names: str) -> list[str]:
    return [name for name in times if name not in names]
