"""The benchmarks run: tiny sizes through the real code, no peers, and nothing asked of any figure."""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
Room = Callable[[str], Any]
pytestmark = pytest.mark.skipif(not (ROOT / "benchmarks").is_dir(), reason="tests that travel without the benchmarks")


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Imports a module of the benchmarks, which do not wait for what the whole machine has to write."""
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setattr(os, "sync", lambda: None, raising=False)
    log = logging.getLogger("checkpoint")
    level = log.level
    yield lambda name: importlib.import_module(f"benchmarks.{name}")
    log.setLevel(level)  # the command quietens it, for its own process


@pytest.mark.slow
def test_every_kind_of_work_is_measured_and_told(
    room: Room, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run does all the work, and writes a table, a plot and the figures; its files are gone afterwards."""
    command = room("__main__")
    made, out = tmp_path / "made", tmp_path / "figures" / "of today"
    made.mkdir()
    arguments = ["--no-peers", "--dir", str(made), "--out", str(out), "--json", str(out / "raw.json")]
    assert command.main(arguments, room("racing").TINY) == 0
    text = (out / "results.md").read_text("utf-8")
    assert text in capsys.readouterr().out
    raw = json.loads((out / "raw.json").read_text("utf-8"))
    for name in command.WORK:
        assert any(title.startswith(name) for title in raw), f"{name} measured nothing"
    for title, times in raw.items():
        assert times, title
        assert all(figure > 0 for figures in times.values() for figure in figures), title
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 25
    assert all(line.count(" | ") == rows[0].count(" | ") for line in rows)
    ElementTree.fromstring((out / "results.svg").read_text("utf-8"))
    assert list(made.iterdir()) == []


@pytest.mark.slow
def test_a_peer_that_is_missing_or_fails_is_left_out_and_told(room: Room, tmp_path: Path) -> None:
    """The others are measured, and the line under the table says who is not."""
    racing = room("racing")

    @contextmanager
    def works(place: Path) -> Iterator[Any]:
        yield lambda keys: None

    @contextmanager
    def fails(place: Path) -> Iterator[Any]:
        yield racing.each(lambda key: 1 / 0)

    contestants = [
        racing.Contestant("one", works),
        racing.Contestant("missing", works, "no_such_module_here"),
        racing.Contestant("failing", fails, "json"),
    ]
    bench = racing.Bench(tmp_path, racing.TINY, lambda text: None)
    assert list(bench.race("work", contestants, 3, 2)) == ["one"]
    assert bench.left_out["no_such_module_here"] == "not installed"
    assert "ZeroDivisionError" in bench.left_out["failing"]
    with pytest.raises(ZeroDivisionError):
        bench.race("work", [racing.Contestant("ours", fails)], 3, 1)


@pytest.mark.parametrize(
    ("figure", "shown", "reason"),
    [
        (0.00021, "0.00021", "two digits that say something"),
        (0.95, "0.95", "a speed close to one"),
        (5.934, "5.9", "two digits"),
        (64.4, "64", "more would be noise"),
        (1348.2, "1,348", "thousands are read in groups"),
        (9.99, "10", "rounded up over a power of ten"),
        (0, "0", "no logarithm"),
        (-0.5, "-0.50", "memory may shrink"),
    ],
)
def test_figures_are_shown_as_people_write_them(room: Room, figure: float, shown: str, reason: str) -> None:
    """Two digits or so, whatever the size."""
    assert room("tables").figure(figure) == shown, reason


def test_targets_and_medians(room: Room) -> None:
    """A ratio is taken within a round, and its median is held against the target."""
    racing = room("racing")
    times = {"ours": [2.0, 30.0, 4.0], "bare": [1.0, 10.0, 1.0]}
    assert racing.ratio(times, "ours", "bare") == (3.0, 2.0, 4.0)
    assert racing.ratio(times, "ours", "bare", speed=True) == (1 / 3, 0.25, 0.5)
    assert racing.Target("≤", 3).is_met(3.0)
    assert not racing.Target("≥", 12).is_met(11.9)


def test_work_that_nobody_knows_is_refused(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    """The names that exist are shown."""
    assert room("__main__").main(["--only", "no such work"]) == 2
    assert "resume" in capsys.readouterr().err
    assert "benchmarks" in sys.modules
