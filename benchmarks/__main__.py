"""This library beside what a user would pick instead, on the same work, in one run.

python -m benchmarks                 # about ten minutes; writes results.md and results.svg beside this file
python -m benchmarks --quick         # a look, in a minute; writes nothing
python -m benchmarks --only save     # the kinds of work whose name holds this
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import driving, importing, opening, reading, saving, scale, small, spreading, tables, vectors
from benchmarks.racing import DEFAULT, FULL, QUICK, Bench, Sizes

HERE = Path(__file__).resolve().parent
WORK: dict[str, Callable[[Bench], None]] = {
    "small": small.maps,
    "keyed": small.keyed,
    "loop": small.loop,
    "save": saving.process,
    "save power": saving.power,
    "save power 64": saving.power_at_once,
    "resume": saving.resume,
    "open": opening.open_all,
    "read": reading.read,
    "threads": spreading.threads,
    "tasks": spreading.tasks,
    "processes": spreading.processes,
    "driver": driving.drive,
    "vectors": vectors.vectors,
    "flat": scale.flat,
    "memory": scale.memory,
    "commands": scale.commands,
    "import": importing.imports,
}


def main(argv: Sequence[str] | None = None, sizes: Sizes | None = None) -> int:
    """Measure, show, and write."""
    given = _arguments().parse_args(argv)
    work = {name: run for name, run in WORK.items() if given.only in name}
    if not work:
        print(f"no work is called {given.only!r}; there is: {', '.join(WORK)}", file=sys.stderr)
        return 2
    out = given.out or (None if given.only or given.quick or given.no_peers else HERE)
    for place in filter(None, (out, given.json and Path(given.json).parent)):
        Path(place).mkdir(parents=True, exist_ok=True)  # before the ten minutes whose figures go there
    sizes = sizes or (QUICK if given.quick else FULL if given.full else DEFAULT)
    logging.getLogger("checkpoint").setLevel(logging.ERROR)  # each round has its own keys, as intended
    with _directory(given.dir) as directory:
        bench = Bench(directory, sizes, lambda text: print(text, file=sys.stderr, flush=True), peers=not given.no_peers)
        for bench.work, run in work.items():
            run(bench)
        text = tables.document(bench)
    print(text)
    if out is not None:
        _write(Path(out), bench, text)
    if given.json:
        Path(given.json).write_text(json.dumps(bench.raw, indent=1) + "\n", encoding="utf-8")
    return 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="TEXT", help=f"of: {', '.join(WORK)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="less of everything")
    size.add_argument("--full", action="store_true", help="more rounds, and ten million keys")
    parser.add_argument("--no-peers", action="store_true", help="this library and the bare limits only")
    parser.add_argument("--dir", help="where files are made (default: a temporary directory on this disk)")
    parser.add_argument("--out", metavar="DIR", help="where results.md and results.svg are written")
    parser.add_argument("--json", metavar="FILE", help="write the seconds per item of every round, too")
    return parser


@contextmanager
def _directory(given: str | None) -> Iterator[Path]:
    """A fresh directory, removed afterwards; by default on the disk of the working directory, as checkpoints are."""
    place = given or tempfile.gettempdir()
    if given is None and os.stat(place).st_dev != os.stat(".").st_dev:
        place = "."
    with tempfile.TemporaryDirectory(prefix=".benchmarks-", dir=place, ignore_cleanup_errors=True) as directory:
        yield Path(directory).resolve()


def _write(out: Path, bench: Bench, text: str) -> None:
    (out / "results.md").write_text(text, encoding="utf-8")
    if "save" in bench.raw:
        bars = tables.plot(bench.raw["save"], saving.WRITE, (saving.SAVE, saving.MAP))
        (out / "results.svg").write_text(bars, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
