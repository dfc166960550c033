"""The race: contestants do the same work in turn, round by round, and ratios are taken within a round.

To add a peer, write a context manager that sets it up in a directory and yields a function of keys which does the work
for each of them, and add a line to the table of contestants of that kind of work.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

Keys = Sequence[str]
Run = Callable[[Keys], object]
Times = dict[str, list[float]]  # seconds per item by contestant, one figure for each round

RESULT = {
    "id": "doc-000123",
    "summary": "A short answer such as a language model gives, of about the length of one sentence or two.",
    "score": 0.123456,
    "tags": ["short", "english"],
    "tokens": 117,
    "ok": True,
}
CALLS = [0]


def answer(key: str) -> dict[str, object]:
    """The trivial function that everything maps; its calls are counted."""
    CALLS[0] += 1
    return RESULT


class Seconds(float):
    """What a run returns where it measured itself, since not all of it counts."""


@dataclass(frozen=True)
class Contestant:
    """One way to do the work.

    Attributes:
        name: as it stands in the tables.
        start: sets it up in a directory of its own, yields what does the work for keys, and puts everything away.
        needs: the module of a peer, which may not be installed.
        share: of the items: slow ones get fewer, since figures are per item.
    """

    name: str
    start: Callable[[Path], AbstractContextManager[Run]]
    needs: str = ""
    share: float = 1.0


class Ratio(NamedTuple):
    """The median of the rounds, and its range."""

    median: float
    low: float
    high: float


class Target(NamedTuple):
    """What is asked of a figure."""

    sign: str
    limit: float

    def is_met(self, figure: float) -> bool:
        return figure <= self.limit if self.sign == "≤" else figure >= self.limit


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: the work, and what a ratio is to.
        ours: our figure; in the unit, or a ratio.
        target: what issue and README ask of it.
        peers: (name, figure), best first.
        unit: what stands behind a figure.
        work: the kind of work that it is of: `--only` it makes the row.
    """

    what: str
    ours: Ratio
    target: Target | None
    peers: list[tuple[str, Ratio]]
    unit: str = "×"
    work: str = ""


@dataclass(frozen=True)
class Sizes:
    """How much work is done.

    Attributes:
        rounds: of the short kinds of work; `few` is those of the long ones.
        saved: items saved in a round; `synced` is the same, one sync each.
        resumed: items that are done when a run is resumed; `read` is those read back.
        opened: keys in checkpoints that are opened; `large` is how many results of 100 KB.
        waiting: calls that wait 10 ms, and 1 ms; `trivial` is those of processes.
        small: maps of one item; `keyed` is how many results there are where they are read by key.
        mapped: items of one map, fewest first; `vectors` is how many of those there are.
    """

    rounds: int
    few: int
    saved: int
    synced: int
    resumed: int
    read: int
    opened: tuple[int, ...]
    large: int
    waiting: tuple[int, int]
    trivial: int
    small: int
    keyed: int
    mapped: tuple[int, ...]
    vectors: int


TINY = Sizes(1, 1, 100, 3, 30, 20, (50,), 3, (8, 8), 20, 3, 20, (10, 30), 5)
QUICK = Sizes(
    3, 1, 5_000, 50, 20_000, 2_000, (10_000, 150_000), 400, (1_280, 3_200), 60_000, 50, 20_000, (10_000, 200_000), 1_000
)
DEFAULT = Sizes(
    9, 5, 20_000, 500, 150_000, 10_000, (10_000, 100_000, 1_000_000), 2_000, (6_400, 12_800), 200_000,
    200, 100_000, (10_000, 200_000, 1_000_000), 5_000,
)  # fmt: skip
FULL = replace(
    DEFAULT, rounds=15, few=7, saved=50_000, synced=1_000, resumed=300_000, opened=(*DEFAULT.opened, 10_000_000),
    mapped=(*DEFAULT.mapped, 10_000_000),
)  # fmt: skip


@dataclass
class Bench:
    """One run of the command: what was measured so far.

    Attributes:
        directory: for all files.
        sizes: how much work.
        say: tells people how far it is.
        peers: whether peers take part.
        work: the kind that is at it.
        rows, raw, left_out: the table, all figures by title, and (peer, why it is not in the table).
    """

    directory: Path
    sizes: Sizes
    say: Callable[[str], None]
    peers: bool = True
    work: str = ""
    rows: list[Row] = field(default_factory=list)
    raw: dict[str, Times] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def race(
        self, title: str, contestants: Sequence[Contestant], items: int, rounds: int, *, fresh: bool = True
    ) -> Times:
        """Seconds per item of each contestant in each round, all rounds in turn.

        Args:
            title: of the work.
            contestants: who take part; a peer that is missing or fails is left out.
            items: how many keys a round has; `fresh` keys in each, or the same ones.
            rounds: how many.
        """
        times: Times = self.raw.setdefault(title, {})
        with ExitStack() as stack:
            runs = [(one, run) for one in contestants if (run := self._started(one, title, stack)) is not None]
            for number in range(rounds):
                self.say(f"{title}: round {number + 1} of {rounds}")
                at = number % len(runs)  # nobody always comes after the same neighbour's writes
                for one, run in runs[at:] + runs[:at]:
                    share = keys_of(number if fresh else 0, max(1, int(items * one.share)))
                    if (seconds := self._ran(one, run, share)) is not None:
                        times.setdefault(one.name, []).append(seconds / len(share))
        for name in [name for name, figures in times.items() if len(figures) < rounds]:
            del times[name]  # it failed in one of the rounds
        return times

    def _started(self, one: Contestant, title: str, stack: ExitStack) -> Run | None:
        if one.needs and not self._has(one.needs):
            return None
        place = self.directory / f"{title} {one.name}".replace("/", "-").replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        try:
            return stack.enter_context(one.start(place))
        except Exception as error:
            self._left_out(one, error)
            return None

    def _ran(self, one: Contestant, run: Run, keys: Keys) -> float | None:
        gc.collect()
        _write_back()
        began = time.perf_counter()
        try:
            own = run(keys)
        except Exception as error:
            self._left_out(one, error)
            return None
        took = time.perf_counter() - began
        return own if isinstance(own, Seconds) else took

    def _has(self, module: str) -> bool:
        if self.peers and find_spec(module) is None:
            self.left_out[module] = "not installed"
        return self.peers and find_spec(module) is not None

    def _left_out(self, one: Contestant, error: Exception) -> None:
        """A peer that fails is told of, and the others go on; our own failure is one."""
        if not one.needs:
            raise error
        self.left_out[one.name] = f"failed: {type(error).__name__}: {error}"[:200]

    def row(
        self, what: str, times: Times, ours: str, against: str, target: Target | None = None,
        *, speed: bool = False, peers: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Add a line: our cost as a ratio to another's, or our speed, and that of each peer in the same way.

        Args:
            peers: whose figures stand beside ours; default: everyone else's.
        """
        if against not in times:  # a peer that is not installed
            return
        figures = {name: ratio(times, name, against, speed=speed) for name in times}
        names = [name for name in times if name not in (ours, against)] if peers is None else peers
        best_first = sorted(((n, figures[n]) for n in names), key=lambda peer: peer[1].median, reverse=speed)
        self.rows.append(Row(what, figures[ours], target, best_first, work=self.work))

    def figure(self, what: str, figures: Sequence[float], unit: str, target: Target | None = None) -> None:
        """Add a line that is no ratio."""
        self.rows.append(Row(what, middle(figures), target, [], unit, self.work))


def _write_back() -> None:
    """What others wrote is on disk: nobody's sync pays for it."""
    if hasattr(os, "sync"):
        os.sync()


def keys_of(number: int, count: int) -> list[str]:
    """The keys of a round."""
    return [f"round-{number:02d}-item-{index:07d}" for index in range(count)]


def middle(figures: Sequence[float]) -> Ratio:
    """The median and the range."""
    return Ratio(statistics.median(figures), min(figures), max(figures))


def ratio(times: Times, name: str, against: str, *, speed: bool = False) -> Ratio:
    """What one costs in units of another in the same round; or how fast it is."""
    pairs = zip(times[name], times[against], strict=True)
    return middle([there / here if speed else here / there for here, there in pairs])


def each(work: Callable[[str], object]) -> Run:
    """The run of a contestant that works item by item."""

    def run(keys: Keys) -> None:
        for key in keys:
            work(key)

    return run


def warmed(one: Contestant, items: int) -> Contestant:
    """The same contestant, which has done the work for all keys once: the second time is what is timed."""
    keys = keys_of(0, max(1, int(items * one.share)))

    @contextmanager
    def start(place: Path) -> Iterator[Run]:
        with one.start(place) as run:
            run(keys)
            yield run

    return replace(one, start=start)


def resumed(one: Contestant, items: int) -> Contestant:
    """The same contestant, started again where all keys are done: opening and skipping is what is timed."""
    keys = keys_of(0, max(1, int(items * one.share)))

    @contextmanager
    def start(place: Path) -> Iterator[Run]:
        with one.start(place) as run:
            run(keys)

        def again(keys: Keys) -> None:
            before = CALLS[0]
            with one.start(place) as run:
                run(keys)
            assert CALLS[0] == before, f"{one.name} called the function again"

        yield again

    return replace(one, start=start)
