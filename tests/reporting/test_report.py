"""The report: a page that says what the records say, stands by itself, and runs nothing that they hold."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from conftest import Opener, shown
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import InvalidName, InvalidOption, Retry, StoreError, checkpointed
from checkpoint.reporting import charts as charts_module
from checkpoint.reporting import report
from checkpoint.reporting.history import RunHistory, Timeline
from checkpoint.reporting.report import write_report
from checkpoint.reporting.tables import export
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import seal

MONDAY = datetime(2026, 3, 9, 8, 0, tzinfo=UTC)
VOID = {"meta", "input", "path", "rect", "line", "br"}
_OURS = (
    "html head meta title style body main header div h1 h2 h3 p span section b i dl dt dd small svg rect line text "
    "tspan path defs pattern g table thead tbody tr th td details summary pre code strong input output footer script"
)
OURS = set(_OURS.split())
EVIL = (
    '</script></style></title></pre></details><script>document.title="pwned"</script>'
    "<img src='http://report.invalid/x' onerror='document.documentElement.dataset.pwned=1'>"
    '<svg onload="document.documentElement.dataset.pwned=1"><iframe srcdoc="<b>"></iframe>'
    '" onmouseover="alert(1)" x=\'<!-- --> ]]> & &lt; &#x3c; \x00\x1b[31m\x7f\x85 \u202elrow \u2066 \ufeff \ud800'
)


@dataclass
class Page(HTMLParser):
    """A report as it is read: its figures, rows and text; an element that is not closed in its turn is an error."""

    source: str
    figures: dict[str, str] = field(default_factory=dict)
    rows: list[list[str]] = field(default_factory=list)
    hidden: int = 0
    tags: set[str] = field(default_factory=set)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    text: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self.open: list[tuple[str, str]] = []
        self._label = ""
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        assert len(known) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.add(tag)
        self.attributes += [(tag, name, value) for name, value in known.items()]
        if tag in VOID:
            return
        self.open.append((tag, known.get("id", "")))
        if self.in_results and tag == "tr":
            self.hidden += "hidden" in known
            self.rows.append([])
        elif self.in_results and tag == "td":
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open[-1][0] == tag, f"</{tag}> closes <{self.open[-1][0]}>"
            self.open.pop()

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self.open]
        last = inside[-1] if inside else ""
        if last in ("style", "script"):
            return
        self.text += f"{data} "
        if inside == ["html", "head", "title"]:
            self.title += data
        if last == "dt":
            self._label = data
        elif "dd" in inside:
            self.figures[self._label] = self.figures.get(self._label, "") + data
        elif self.in_results and "td" in inside:
            self.rows[-1][-1] += data

    @property
    def in_results(self) -> bool:
        """Whether this is in the body of the table of results."""
        return ("section", "results") in self.open and "tbody" in [tag for tag, _ in self.open]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Page]:
    """Writes the report of a checkpoint in `tmp_path` outside of it, and reads it."""

    def of(name: str = "j") -> Page:
        path = write_report(name, tmp_path / f"{name}.html", tmp_path)
        return Page(path.read_text("utf-8"))

    return of


def stamp(seconds: float) -> str:
    """A record's timestamp, so long after Monday morning."""
    return (MONDAY + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def sealed(fields: dict[str, Any]) -> bytes:
    """A line with its checksum."""
    return seal(json.dumps(fields).encode()[:-1])


def result(number: int, at: float, **fields: Any) -> dict[str, Any]:
    """The fields of a result that was saved so long after Monday morning."""
    return {"key": f"k{number}", "result": {"n": number}, "timestamp": stamp(at), **fields}


def write_journals(
    directory: Path, results: list[dict[str, Any]], errors: list[dict[str, Any]] | None = None, total: int | None = None
) -> None:
    """Checkpoint "j", with the clock put back."""
    (directory / "j_results.jsonl").write_bytes(b"".join(map(sealed, results)))
    (directory / "j_errors.jsonl").write_bytes(b"".join(map(sealed, errors or [])))
    if total is not None:
        (directory / "j_meta.json").write_text(json.dumps({"total_items": total}))


def write_realistic(directory: Path) -> None:
    """300 items in three sessions, some of them failed or retried, with hours and days between."""
    results, errors, at = [], [], 0.0
    for number in range(300):
        at += 0.5 + (36_000 if number == 120 else 200_000 if number == 220 else 0)
        session = "aaaaaaaa" if number < 120 else "bbbbbbbb" if number < 220 else "cccccccc"
        known = {"elapsed": 0.05 * 1.025**number, "attempts": 1 + (number % 11 == 0), "session": session}
        if number % 20 == 7:
            cause = ("ValueError", "TimeoutError", "KeyError")[number // 20 % 3]
            error = {"key": f"k{number}", "error": f"{cause} it is", "timestamp": stamp(at), "type": cause}
            text = (
                f'Traceback (most recent call last):\n  File "jobs.py", line 3, in work\n    {cause}()\n{cause}: no\n'
            )
            errors.append({**error, "traceback": text, **known})
        else:
            results.append({**result(number, at, **known), "result": {"n": number, "text": "word " * (number % 60)}})
    write_journals(directory, results, errors, total=320)


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_checkpoint(
    tmp_path: Path, read: Callable[..., Page], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a real job with failures and retries; an item that was computed after all is no failure."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))
    calls: list[int] = []

    @checkpointed("j", retry=Retry(3, wait=0))
    def work(number: int) -> dict[str, int]:
        calls.append(number)
        if number == 7 or (number == 5 and calls.count(5) < 3):
            raise OSError(f"no {number}")
        if number % 10 == 9:
            raise ValueError("nines")
        return {"square": number * number}

    work.map(range(40), return_exceptions=True, progress=False)
    page = read()
    assert (page.figures["Done"], page.figures["Failed"], page.figures["Sessions"]) == ("35", "5", "1")
    assert "2 items of 40 (5.0 %) took more than one attempt · 1 of them failed all the same" in page.text
    causes = work.errors.causes()
    assert [(cause.type, cause.count) for cause in causes] == [("ValueError", 4), ("OSError", 1)]
    assert "5 items failed · 2 causes" in page.text
    assert all(cause.message in page.text and "raise " in page.text for cause in causes)
    values = {row[0]: row[1] for row in page.rows if not row[0].startswith("failed")}
    assert {key: json.loads(text) for key, text in values.items()} == {
        str(key): value for key, value in work.results.items()
    }
    assert {row[0].removeprefix("failed") for row in page.rows} - values.keys() == {"7", "9", "19", "29", "39"}

    work.options(retry=None).runner.save_result(7, {"square": 49})
    assert read().figures["Failed"] == "4"


def test_durations_are_exact(tmp_path: Path, read: Callable[..., Page]) -> None:
    """Median and percentiles are those of the recorded durations, and call time their sum, failures included."""
    took = [round(0.1 * (number * 37 % 101 + 1), 3) for number in range(101)]
    errors = [{"key": "bad", "error": "x", "timestamp": stamp(0), "elapsed": 100.0}]
    write_journals(tmp_path, [result(number, number, elapsed=part) for number, part in enumerate(took)], errors)
    figures = read().figures
    assert figures["Median duration"] == f"{median(took):.3g} s"
    assert figures["95th percentile"] == f"{sorted(took)[95]:.3g} s"
    assert sum(took) + 100 == pytest.approx(615.1)
    assert figures["Call time"] == "10 min 15 s"


def test_the_rate_is_that_of_the_work_without_its_pauses(tmp_path: Path, read: Callable[..., Page]) -> None:
    """100 items, a second each, in two sessions with a day between, and an hour in one of them: 1 item/s."""
    results = []
    for number in range(100):
        at = number + 1 + (86_400 if number >= 50 else 0) + (3600 if number >= 80 else 0)
        results.append(result(number, at, elapsed=1.0, session="a" if number < 50 else "b"))
    write_journals(tmp_path, results, total=120)
    page = read()
    assert page.figures["Throughput"] == "1 items/s"
    assert page.figures["Sessions"] == "2"
    assert page.figures["Time span"] == "1 d 1 h"
    for told in ("of 120", "in 1 min 40 s of work", "longest pause 1 d", "paused between sessions for 1 d, from"):
        assert told in page.text
    assert "nothing ran for 1 h, from" in page.text
    assert re.search(r"1 9 Mar 2026, 08:00 9 Mar 2026, 08:00 50 s 50 0 1 items/s 2 10 Mar 2026, 08:00", page.text)


def test_a_known_total_is_not_less_than_what_is_there(tmp_path: Path, read: Callable[..., Page]) -> None:
    """Meta's total is of the last pass, which may have been over a few of the items."""
    write_journals(tmp_path, [result(number, number) for number in range(9)], total=3)
    assert "the last pass had 3 items" in read().text


def test_slowest_items(tmp_path: Path, read: Callable[..., Page]) -> None:
    """The 20 longest, the longest first, failures among them."""
    errors = [{"key": "slow one", "error": "x", "timestamp": stamp(0), "elapsed": 40.0, "attempts": 3}]
    write_journals(tmp_path, [result(number, 0, elapsed=number / 2) for number in range(60)], errors)
    told = read().text.partition("Slowest items")[2].partition("Results")[0]
    assert told.split()[8:14] == ["failed", "slow", "one", "40", "s", "3"]
    assert re.findall(r"\bk(\d+)", told) == [str(number) for number in range(59, 40, -1)]


def test_versions(make: Opener, read: Callable[..., Page]) -> None:
    """The report is of the current version; the others are listed."""
    for model in ("small", "large"):
        runner = make(version={"model": model})
        runner.save_result("a", model)
        runner.close()
    page = read()
    assert page.figures["Done"] == "1"
    assert [row[1] for row in page.rows] == ['"large"']
    assert '{"model":"small"} 1 0 {"model":"large"} · current 1 0' in page.text


def test_the_first_thousand_of_each_are_shown(tmp_path: Path, read: Callable[..., Page]) -> None:
    """And where the rest is."""
    write_journals(tmp_path, [result(number, number) for number in range(1205)])
    page = read()
    assert [row[0] for row in page.rows] == [f"k{number}" for number in range(1000)]
    assert "The first 1,000 of 1,205 results; export the rest: checkpoint export j OUT.csv" in page.text


def test_long_results_are_shown_in_full(make: Opener, read: Callable[..., Page]) -> None:
    """Text as text, other things as JSON, envelopes opened; what is longer than any page can bear says so."""
    text = "first line\n  second line " + "more " * 400
    with make() as runner:
        runner.save_result("text", text)
        runner.save_result("set", {"of": {3, 1, 2}, "pair": (1, b"raw"), "nan": math.nan})
        runner.save_result("big", "x" * 200_000)
    page = read()
    rows = {row[0]: row[1] for row in page.rows}
    assert text in rows["text"]
    assert rows["set"] == '{"of":[1,2,3],"pair":[1,"cmF3"],"nan":"NaN"}'
    assert "… 100,000 more characters" in rows["big"]


# --- odd checkpoints -------------------------------------------------------------------------------------------------


def test_nothing(make: Opener, read: Callable[..., Page]) -> None:
    """A checkpoint of which everything was forgotten is one with nothing in it."""
    with make() as runner:
        runner.save_result("a", 1)
        runner.clear(["a"])
    page = read()
    assert "Nothing here yet" in page.text
    assert not page.figures
    assert not page.rows


def test_one_result(make: Opener, read: Callable[..., Page]) -> None:
    """It has no rate, and what a runner by hand does not know is not recorded."""
    with make() as runner:
        runner.save_result("a", 1)
    page = read()
    assert page.figures["Done"] == "1"
    assert page.figures["Throughput"] == page.figures["Median duration"] == "not recorded"
    assert [row[:2] for row in page.rows] == [["a", "1"]]


def test_errors_only(make: Opener, read: Callable[..., Page]) -> None:
    """Failures without results."""
    with make() as runner:
        for number in range(5):
            runner.save_error(number, "no luck" if number % 2 else ValueError("bad"))
    page = read()
    assert (page.figures["Done"], page.figures["Failed"]) == ("0", "5")
    assert "100 % of what was tried" in page.text
    assert sorted(row[:2] for row in page.rows)[:2] == [["failed0", "ValueError: bad"], ["failed1", "no luck"]]


def test_schema_1_0_0(tmp_path: Path, read: Callable[..., Page]) -> None:
    """No checksum, no session, no duration, local times without a zone, NaN: what is not known is left out."""
    lines = [
        {"key": f"{number}", "result": {"x": math.nan}, "timestamp": f"2023-01-02T10:00:{number:02}.123456"}
        for number in range(40)
    ]
    lines[3]["timestamp"] = "yesterday"
    (tmp_path / "j_results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "j_errors.jsonl").write_text('{"key": "3", "error": "retired"}\n{"key": "99", "error": "boom"}\n')
    page = read()
    assert (page.figures["Done"], page.figures["Failed"]) == ("40", "1")
    unknown = {label for label, value in page.figures.items() if value == "not recorded"}
    assert unknown == {"Sessions", "Median duration", "95th percentile", "Call time"}
    assert "2 items without a time are left out" in page.text
    assert page.rows[0][1] == '{"x":"NaN"}'
    assert page.rows[3] == ["3", '{"x":"NaN"}', "–", "–", "–"]


def test_an_exact_key_wins_over_one_of_equal_text(tmp_path: Path, read: Callable[..., Page]) -> None:
    """As when it is read: a line without checksum stands for any key of equal str()."""
    (tmp_path / "j_results.jsonl").write_bytes(
        b'{"key": "5", "result": 1}\n{"key": "6", "result": 2}\n' + sealed({"key": 5, "result": 3, "timestamp": ""})
    )
    page = read()
    assert page.figures["Done"] == "2"
    assert [row[:2] for row in page.rows] == [["6", "2"], ["5", "3"]]


def test_damage_is_counted_and_told(tmp_path: Path, read: Callable[..., Page]) -> None:
    """A line that is no JSON, and one whose bytes are not those that were written; every other record is shown."""
    write_journals(tmp_path, [result(number, number) for number in range(6)])
    path = tmp_path / "j_results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'{"n": 2}', b'{"n": 7}')
    lines[4] = b"garbage\n"
    path.write_bytes(b"".join(lines))
    before = path.read_bytes()
    page = read()
    assert page.figures["Done"] == "4"
    assert "2 damaged records : not counted here. Run checkpoint check j to see where." in page.text
    assert [row[0] for row in page.rows] == ["k0", "k1", "k3", "k5"]
    assert path.read_bytes() == before


ODD = [
    ({"elapsed": -1.0, "attempts": -5}, "negative"),
    ({"elapsed": 1e300}, "longer than the world is old"),
    ({"timestamp": "0001-01-01T00:00:00+00:00", "elapsed": 1e6}, "it began before the calendar does"),
    ({"timestamp": "9999-12-31T23:59:59.999Z"}, "the end of the calendar"),
    ({"timestamp": "9999-12-31T23:59:59-12:00"}, "past the end of the calendar in UTC"),
    ({"timestamp": "2026-03-09"}, "a day without a time"),
    ({"timestamp": EVIL[:50], "session": EVIL[:-1]}, "no time at all"),
    ({"attempts": 10**18, "elapsed": 0.0}, "more attempts than anybody has"),
    ({"result": json.loads("[" * 900 + "]" * 900)}, "deeper than Python recurses by itself"),
]


@pytest.mark.parametrize(("fields", "reason"), ODD, ids=[reason for _, reason in ODD])
def test_any_line_that_can_be_read_can_be_shown(
    fields: dict[str, Any], reason: str, tmp_path: Path, read: Callable[..., Page]
) -> None:
    """Whoever wrote it, and whatever stands in it."""
    write_journals(tmp_path, [result(0, 0), {**result(1, 1), **fields}, result(2, 2, session="x")])
    assert read().figures["Done"] == "3", reason


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_is_missing_is_told_as_by_export(tmp_path: Path) -> None:
    """The same errors, and no file."""
    with pytest.raises(StoreError, match="there is no checkpoint 'nope'") as missing:
        write_report("nope", tmp_path / "r.html", tmp_path)
    with pytest.raises(StoreError) as exported:
        export("nope", tmp_path / "r.csv", tmp_path)
    assert str(missing.value) == str(exported.value)
    assert missing.value.errno == exported.value.errno
    with pytest.raises(InvalidName):
        write_report("../x", tmp_path / "r.html", tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_stands_in_the_current_directory(tmp_path: Path, make: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default; what was there is replaced, whole."""
    with make("my job.v2") as runner:
        runner.save_result("a", 1)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("my job.v2_report.html").write_text("x" * 10_000_000)
    assert write_report("my job.v2", checkpoint_dir=tmp_path) == Path("my job.v2_report.html")
    assert [path.name for path in Path().iterdir()] == ["my job.v2_report.html"]
    page = Page(Path("my job.v2_report.html").read_text("utf-8"))
    assert page.title.startswith("my job.v2")


def test_a_file_that_cannot_be_written_is_left_as_it_was(
    tmp_path: Path, make: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory, a missing one, and an error in the middle; nothing is left over."""
    with make() as runner:
        runner.save_result("a", 1)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InvalidOption):
        write_report("j", out, tmp_path)
    with pytest.raises(StoreError):
        write_report("j", out / "no" / "r.html", tmp_path)
    (out / "r.html").write_text("before")

    def fail(*_: object) -> Iterator[str]:
        yield "<section>"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "_results", fail)
    with pytest.raises(StoreError, match="No space left"):
        write_report("j", out / "r.html", tmp_path)
    assert {path.name: path.read_text() for path in out.iterdir()} == {"r.html": "before"}


def test_it_changes_nothing(tmp_path: Path, read: Callable[..., Page]) -> None:
    """No lock, no index, no meta: the directory holds what it held."""
    write_realistic(tmp_path)

    def held() -> dict[str, tuple[bytes, int]]:
        return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}

    before = held()
    read()
    (tmp_path / "j.html").unlink()
    assert held() == before


WRITER = """
import sys
from checkpoint import CheckpointedRunner
runner = CheckpointedRunner("j", sys.argv[1])
for number in range(10**9):
    runner.save_result(number, number)
    if number == 50 or number > 50 and number % 500 == 0:
        print(number, flush=True)
"""


@pytest.mark.slow
def test_a_job_goes_on_meanwhile(tmp_path: Path, read: Callable[..., Page]) -> None:
    """Its lock is not asked for, and what it saves while the report is written does no harm."""
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as job:
        try:
            assert job.stdout is not None
            assert job.stdout.readline() == "50\n"
            done = [int(read().figures["Done"].replace(",", "")) for _ in range(3)]
            assert done[0] > 50
            assert done == sorted(done)
            assert int(job.stdout.readline()) > 50
        finally:
            job.kill()


@pytest.mark.slow
def test_memory_is_bounded_by_records_not_values(tmp_path: Path, free_sync: None) -> None:
    """50,000 results of 1 KB, and as many different failures of 1 KB more, take a fraction of their size."""
    filler = "x" * 1000
    with (tmp_path / "j_results.jsonl").open("wb") as results, (tmp_path / "j_errors.jsonl").open("wb") as errors:
        for number in range(50_000):
            results.write(sealed({**result(number, number / 10, elapsed=number % 977 / 100), "result": filler}))
            if number % 5 == 0:
                error = {"key": f"e{number}", "error": "no", "timestamp": stamp(number / 10), "type": "ValueError"}
                text = f'Traceback (most recent call last):\n  File "a.py", line 1, in f\n    f()\n{filler}{number}\n'
                errors.write(sealed({**error, "traceback": text}))
    tracemalloc.start()
    try:
        path = write_report("j", tmp_path / "r.html", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 32 << 20
    page = Page(path.read_text("utf-8"))
    assert (page.figures["Done"], page.figures["Failed"], len(page.rows)) == ("50,000", "10,000", 2000)
    assert path.stat().st_size < 8 << 20


@pytest.mark.slow
def test_records_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the thousand that are shown a second time."""
    write_journals(tmp_path, [result(number, number) for number in range(3000)])
    reads: list[int] = []
    original = Reader.read

    def counting(self: Reader, offset: int, key: Any = None) -> Any:
        reads.append(offset)
        return original(self, offset, key)

    monkeypatch.setattr(Reader, "read", counting)
    write_report("j", tmp_path / "r.html", tmp_path)
    assert len(reads) == 4000


# --- time ------------------------------------------------------------------------------------------------------------


def timeline(events: list[tuple[float, float, int]]) -> Timeline:
    """Of (moment, seconds before it that the call began, session)."""
    story = RunHistory()
    for moment, elapsed, session in events:
        story.moments.append(moment)
        story.begins.append(moment - elapsed)
        story.owners.append(session)
        story.successes.append(True)
    return Timeline(story)


@pytest.mark.parametrize(
    ("events", "pauses", "active", "reason"),
    [
        ([(5, 5, 1)], [], 5, "one call"),
        ([(n, 1, 1) for n in range(1, 9)], [], 8, "one after the other"),
        ([(1, 1, 1), (101, 1, 2)], [(1, 100)], 2, "a session ended and another began"),
        ([(1, 1, 1), (1.5, 0.1, 2)], [(1, 1.4)], 1.1, "a short pause between sessions is one too"),
        ([*[(n, 1, 1) for n in range(1, 9)], (1000, 1, 1)], [(8, 999)], 9, "one session that was idle for long"),
        ([*[(n, 1, 1) for n in range(1, 9)], (50, 1, 1)], [], 50, "too short to be a pause within a session"),
        ([*[(n, 1, 1) for n in range(1, 9)], (1000, 995, 1)], [], 1000, "a long call is work"),
        ([(1, 1, 1), (2, 1, 1), (3, 1, 1), (1000, 1, 1), (1500, 1497, 1)], [], 1500, "a call ran beside"),
        ([(n, 0, 0) for n in range(0, 6000, 600)], [], 5400, "slow and steady, durations not recorded"),
        ([(9, 1, 1), (5, 1, 1), (7, 1, 1)], [], 5, "moments need not be in order"),
        ([(1, 1, 1), (20, 1, 2), (21, 1, 1), (22, 1, 2)], [(1, 19)], 4, "a session begins once"),
    ],
    ids=shown,
)
def test_pauses(
    events: list[tuple[float, float, int]], pauses: list[tuple[float, float]], active: float, reason: str
) -> None:
    """Between sessions, and where nothing ran for long: not where a call ran."""
    found = timeline(events)
    assert [edge for pause in found.pauses for edge in pause[:2]] == pytest.approx(
        [edge for pause in pauses for edge in pause]
    ), reason
    assert found.active == pytest.approx(active), reason


def test_long_pauses_are_folded_and_work_keeps_its_scale() -> None:
    """Two minutes' work on either side of a week: each has half of what the pause leaves; places follow the clock."""
    week = 7 * 86_400
    events = [(float(n), 1.0, 1) for n in range(1, 121)] + [(week + float(n), 1.0, 2) for n in range(1, 121)]
    found = timeline(events)
    assert [(part.left, part.right) for part in found.stretches] == [
        pytest.approx((0, 47.75)),
        pytest.approx((52.25, 100)),
    ]
    places = [found.x(moment) for moment, _, _ in events]
    assert places == sorted(places)
    assert (found.x(-1e9), found.x(1e12)) == (0, 100)
    bins = list(found.bins(20))
    assert all(part.left < part.right and part.start < part.end for part in bins)
    assert found.count(bins[-1].end) == (240, 0)


@pytest.mark.slow
@given(
    st.lists(
        st.tuples(st.floats(-1e11, 1e11) | st.floats(0, 100), st.floats(0, 1e9) | st.floats(0, 1), st.integers(0, 5)),
        min_size=1,
        max_size=60,
    )
)
def test_any_timeline_can_be_drawn(events: list[tuple[float, float, int]]) -> None:
    """Whatever the clocks said: stretches are in order, fill the width, and every moment is in it."""
    found = timeline(events)
    assert found.active >= -1e-3
    edges = [edge for part in found.stretches for edge in (part.left, part.right)]
    assert edges == sorted(edges)
    assert edges[0] == 0
    assert edges[-1] == pytest.approx(100)
    for moment, _, _ in events:
        assert -1e-6 <= found.x(moment) <= 100 + 1e-6
    list(charts_module._time_ticks(found))


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=50))
def test_any_durations_can_be_drawn(durations: list[float]) -> None:
    """Every one is in a bar, and the scale has a few ticks within it."""
    if max(durations) == min(durations):
        return
    least, high = min([value for value in durations if value > 0]), max(durations)
    scale = charts_module.Scale(least, high, log=high / least > 100)
    assert all(0 <= scale.x(value) <= 100 for value in durations)
    assert 100 * scale.x(high) >= 100 * scale.x(least)
    drawn = "".join(charts_module.histogram_of(array("d", durations), scale, {"median": durations[0]}))
    counts = [int(count.replace(",", "")) for count in re.findall(r": ([\d,]+)</title>", drawn)]
    assert sum(counts) == len(durations)
    assert 1 <= len(list(scale.ticks())) <= 40


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"), (3e-9, "< 1 µs"), (2.5e-6, "2.5 µs"), (0.0123, "12.3 ms"), (0.9999, "1 s"), (1, "1 s"),
        (9.876, "9.88 s"),
        (59.96, "1 min"), (60, "1 min"), (119.7, "2 min"), (3599.9, "1 h"), (3661, "1 h 1 min"), (86399, "1 d"),
        (90_000, "1 d 1 h"), (1e9, "11,574 d 2 h"),
    ],
)  # fmt: skip
def test_spans_of_time(seconds: float, text: str) -> None:
    """At most two units, none of which is 60."""
    assert charts_module.span_text(seconds) == text


# --- what it holds, and what it does not -----------------------------------------------------------------------------


@given(st.text(st.characters()))
def test_any_text_is_shown_and_never_read_as_html(text: str) -> None:
    """What comes back is the text, with what cannot be seen spelled out; the page is UTF-8."""
    made = charts_module.shown(text)
    made.encode()
    assert not set("<>\"'") & set(made)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", made)
    parser = HTMLParser(convert_charrefs=True)
    heard: list[str] = []
    parser.handle_data = heard.append  # type: ignore[method-assign, assignment]
    parser.feed(f"<pre>{made}</pre>")
    parser.close()
    if text.isascii() and text.isprintable():
        assert "".join(heard) == text


def write_hostile(make: Opener) -> None:
    """Checkpoint "j", with payloads wherever a user's text may stand."""
    with make(version={EVIL: EVIL}) as runner:
        runner.save_result(EVIL[:190], EVIL)
        runner.save_result(("t", EVIL[:90]), {EVIL: [EVIL]})
        runner.save_error("k", EVIL)
        try:
            raise type(EVIL[:40], (ValueError,), {})(EVIL)
        except ValueError as error:
            runner.save_error(EVIL[100:290], error)
    with make(version="other") as runner:
        runner.save_result(1, 1)
    with make(version={EVIL: EVIL}) as runner:
        runner.save_result("last", 1)


def test_hostile_text_makes_no_elements(make: Opener, read: Callable[..., Page]) -> None:
    """In keys, results, messages, types, tracebacks, versions: there are only our own tags, and nothing is loaded."""
    write_hostile(make)
    page = read()
    assert page.tags <= OURS
    assert "</script></style></title>" in page.text
    assert [row[0] for row in page.rows][-1].startswith("failed")
    loading = {"src", "href", "srcset", "data", "action", "xlink:href", "poster", "background"}
    assert not [name for _, name, _ in page.attributes if name in loading or name.startswith("on")]
    assert {value for _, _, value in page.attributes if "url(" in value} <= {"url(#hatch)"}


def test_the_policy_allows_the_one_script_by_its_hash(make: Opener, read: Callable[..., Page], tmp_path: Path) -> None:
    """And no other, nor any address."""
    write_hostile(make)
    page = read()
    (policy,) = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value]
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")
    assert policy.count("unsafe-inline") == 1
    assert "http" not in policy
    assert page.source.count("<script") == 1


# --- in a browser ----------------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here: apt-get install chromium")


class Browser:
    """A headless Chromium, started anew for each page."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def _run(self, url: str, *options: str) -> subprocess.CompletedProcess[str]:
        assert CHROMIUM is not None
        fixed = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        quiet = ["--no-first-run", "--disable-background-networking", "--disable-extensions", "--disable-sync"]
        command = [
            CHROMIUM,
            *fixed,
            *quiet,
            f"--user-data-dir={self.home}",
            "--virtual-time-budget=3000",
            *options,
            url,
        ]
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=120)
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    def dom(self, path: Path, hash: str = "", *options: str) -> tuple[str, list[str]]:
        """The document as it is once its script has run, and what was told on the console."""
        done = self._run(path.as_uri() + hash, "--dump-dom", "--enable-logging=stderr", *options)
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def addresses(self, path: Path) -> str:
        """Every address that was asked for, and what else the network's log tells."""
        log = self.home / "net.json"
        self._run(path.as_uri(), "--dump-dom", f"--log-net-log={log}")
        return log.read_text("utf-8")

    def picture(self, path: Path, *options: str) -> list[bytes]:
        """The rows of pixels, 3 bytes each, of a window of 1000 × 700."""
        file = self.home / "shot.png"
        self._run(path.as_uri(), f"--screenshot={file}", "--window-size=1000,700", *options)
        return pixels(file.read_bytes())


def pixels(png: bytes) -> list[bytes]:
    """The rows of an 8-bit PNG without interlacing, without their alpha."""
    parts, at = {b"IDAT": b"", b"IHDR": b""}, 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        parts[kind] = parts.get(kind, b"") + png[at + 8 : at + 8 + size]
        at += size + 12
    width, height, depth, colour = struct.unpack(">IIBB", parts[b"IHDR"][:10])
    assert (depth, colour) in ((8, 2), (8, 6))
    step = 3 if colour == 2 else 4
    data, length = zlib.decompress(parts[b"IDAT"]), width * step
    before, rows = bytearray(length), []
    for number in range(height):
        start = number * (length + 1)
        row = _unfiltered(data[start], bytearray(data[start + 1 : start + 1 + length]), before, step)
        before = row
        rows.append(bytes(row) if step == 3 else bytes(b for place, b in enumerate(row) if place % 4 < 3))
    return rows


def _unfiltered(kind: int, row: bytearray, above: bytearray, step: int) -> bytearray:
    for place in range(len(row) if kind else 0):
        left = row[place - step] if place >= step else 0
        up, corner = above[place], above[place - step] if place >= step else 0
        guess = left + up - corner
        paeth = min((left, up, corner), key=lambda one: abs(guess - one))
        row[place] = (row[place] + (0, left, up, (left + up) // 2, paeth)[kind]) & 255
    return row


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A Chromium with a profile of its own."""
    return Browser(tmp_path_factory.mktemp("chromium"))


@pytest.fixture
def realistic(tmp_path: Path) -> Path:
    """The report of `write_realistic`."""
    write_realistic(tmp_path)
    return write_report("j", tmp_path / "r.html", tmp_path)


@in_browser
def test_the_page_works_as_it_is_opened(realistic: Path, browser: Browser) -> None:
    """Nothing is told on the console, and the script has run: it counts the rows and offers the search."""
    dom, console = browser.dom(realistic)
    assert console == []
    page = Page(re.sub(r"<(br|input|meta)\b([^>]*)>", r"<\1\2>", dom))
    assert len(page.rows) == 300
    assert page.hidden == 0
    assert "300 rows" in page.text


@in_browser
def test_the_console_is_heard(realistic: Path, browser: Browser) -> None:
    """So that silence tells something: a script that the policy does not know is refused, and that is told."""
    realistic.write_text(realistic.read_text("utf-8").replace("<main>", "<main><script>1</script>"), "utf-8")
    _, console = browser.dom(realistic)
    assert any("Content Security Policy" in line for line in console)


@in_browser
@pytest.mark.parametrize(
    ("hash", "shown", "first"),
    [
        ("#q=k29", 11, "k29"),
        ("#q=FAILED", 15, "failedk7"),
        ("#q=timeouterror%20k27", 1, "failedk27"),
        ("#q=nowhere", 0, None),
        ("#q=%3Cb%3E", 0, None),
        ("#sort=-4", 300, "k299"),
        ("#q=k1&sort=-1", 111, "k199"),
        ("#sort=99&x", 300, "k0"),
        ("#sort=toString", 300, "k0"),
    ],
    ids=shown,
)
def test_the_address_keeps_search_and_order(
    hash: str, shown: int, first: str | None, realistic: Path, browser: Browser
) -> None:
    """A link shows what its sender saw."""
    dom, console = browser.dom(realistic, hash)
    page = Page(dom)
    assert console == []
    assert len(page.rows) - page.hidden == shown
    assert (f"{shown} of 300 rows" if "q=" in hash else "300 rows") in page.text
    visible = re.findall(r'<tr><td class="key">(.*?)</td>', dom.partition('id="results"')[2])
    assert [re.sub("<.*?>", "", key) for key in visible][:1] == ([first] if first else [])


@in_browser
def test_hostile_text_runs_nothing(make: Opener, tmp_path: Path, browser: Browser) -> None:
    """The document is as the report was written, and nobody was called."""
    write_hostile(make)
    path = write_report("j", tmp_path / "r.html", tmp_path)
    dom, console = browser.dom(path)
    assert console == []
    assert "<title>j · checkpoint report</title>" in dom
    assert "data-pwned" not in dom
    assert not Page(dom).tags & {"img", "iframe", "a", "link"}
    assert "report.invalid" not in browser.addresses(path)


@in_browser
def test_even_a_mistake_would_run_nothing(realistic: Path, browser: Browser) -> None:
    """Were text not escaped, the policy would stop it; without the policy it is not stopped, so that this tells."""
    hole = realistic.read_text("utf-8").replace("<main>", f"<main><p>{EVIL.encode('utf-8', 'replace').decode()}")
    hole = hole.replace("</script></style></title></pre></details>", "")
    realistic.write_text(hole, "utf-8")
    dom, _ = browser.dom(realistic)
    assert "data-pwned" not in dom
    assert "<title>pwned" not in dom
    assert "report.invalid" not in json.dumps(
        [event.get("params", {}).get("host") for event in json.loads(browser.addresses(realistic))["events"]]
    )
    realistic.write_text(re.sub(r'<meta http-equiv="Content.*?">', "", hole, flags=re.S), "utf-8")
    dom, _ = browser.dom(realistic)
    assert "data-pwned" in dom or "<title>pwned" in dom


@in_browser
def test_light_and_dark(realistic: Path, browser: Browser) -> None:
    """Two pictures of one page, neither of them blank: one is bright, and the other is not."""
    light = browser.picture(realistic, "--blink-settings=preferredColorScheme=1")
    dark = browser.picture(realistic, "--blink-settings=preferredColorScheme=0")
    for rows in (light, dark):
        assert len({bytes(row[place : place + 3]) for row in rows for place in range(0, len(row), 3)}) > 100
    brightness = [sum(map(sum, rows)) / sum(map(len, rows)) for rows in (light, dark)]
    assert brightness[0] > 200
    assert brightness[1] < 60


@in_browser
@pytest.mark.parametrize("width", [320, 360, 400, 768, 1440])
@pytest.mark.parametrize("hostile", [False, True])
def test_the_page_is_as_wide_as_the_window(
    width: int, hostile: bool, make: Opener, tmp_path: Path, browser: Browser
) -> None:
    """A phone does not scroll sideways, whatever a key is like: what is wide scrolls within its own box."""
    if hostile:
        write_hostile(make)
        with make(version={EVIL: EVIL}) as runner:
            runner.save_result("x" * 2000, "y" * 500)
            runner.save_result("wide", {"z" * 3000: ["w" * 3000]})
            runner.save_error("v" * 900, "u" * 900)
    else:
        write_realistic(tmp_path)
    path = write_report("j", tmp_path / "r.html", tmp_path)
    tell = "parent.postMessage([document.documentElement.scrollWidth, innerWidth].join(), '*')"
    text = re.sub(r'<meta http-equiv="Content.*?">', "", path.read_text("utf-8"), flags=re.S)
    text = text.replace("<details>", "<details open>")
    path.write_text(text.replace("</body>", f"<script>onload = () => {tell}</script></body>"), "utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        "<script>onmessage = (event) => { document.title = event.data }</script>"
        f'<iframe src="r.html" style="width:{width}px;height:800px;border:0"></iframe>'
    )
    dom, _ = browser.dom(frame)
    assert f"<title>{width},{width}</title>" in dom


def test_it_is_written_for_print_and_for_readers_that_do_not_see(realistic: Path) -> None:
    """Charts have a description, the search a label; on paper nothing scrolls."""
    page = Page(realistic.read_text("utf-8"))
    assert "@media print" in page.source
    charts = [name for tag, name, _ in page.attributes if tag == "svg" and name == "role"]
    labels = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert len(charts) == len(labels) == 3
    assert labels[0] == "Progress over time: 285 done, 15 failed, 20 left"
    assert ("input", "aria-label", "Search the table of results") in page.attributes
    assert os.path.getsize(realistic) < 300_000
