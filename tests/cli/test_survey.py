"""The laws of a survey: it only reads, its counts are those of a runner, and it costs no read of every record."""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from checkpoint import BatchCheckpointedRunner, CheckpointedRunner, InvalidName, StoreError, UnencodableValue
from checkpoint.catalog.locate import locate
from checkpoint.errors import printable
from checkpoint.maintenance.compact import compact
from checkpoint.reporting import status
from checkpoint.reporting.status import Observer, Summary, Survey, failures, list_checkpoints
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import seal
from checkpoint.values.keys import version_digest
from checkpoint.words import ago, span

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp()


def stamp(seconds: float) -> str:
    """A timestamp of so many seconds after noon."""
    return datetime.fromtimestamp(NOON + seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def line(
    key: Any, result: Any = 1, *, at: float = 0.0, session: str = "aa", elapsed: float | None = None, version: str = ""
) -> bytes:
    """The line of a result."""
    head = f'{{"key":{json.dumps(key)},"result":{json.dumps(result)},"timestamp":"{stamp(at)}"'
    head += f',"version":"{version}"' if version else ""
    head += f',"elapsed":{elapsed},"attempts":1' if elapsed is not None else ""
    return seal(f'{head},"session":"{session}"'.encode())


def error_line(key: Any, *, at: float = 0.0, session: str = "aa", type: str = "ValueError") -> bytes:
    """The line of a failure."""
    head = f'{{"key":{json.dumps(key)},"error":"bad","timestamp":"{stamp(at)}","type":"{type}"'
    return seal(f'{head},"session":"{session}"'.encode())


def write(directory: Path, *lines: bytes, kind: str = "results") -> Path:
    """A journal of checkpoint "j"."""
    path = directory / f"j_{kind}.jsonl"
    path.write_bytes(b"".join(lines))
    return path


def at(directory: Path, now: float = 0.0) -> Survey:
    """A survey of "j", so many seconds after noon."""
    with Observer("j", directory, now=lambda: NOON + now) as observer:
        return observer.look()


def files_of(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file: its bytes, its inode, and when it was changed."""
    return {file.name: (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) for file in directory.iterdir()}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets of the records that are read."""
    seen: list[int] = []
    read = Reader.read

    def counting(self: Reader, offset: int, key: Any = None) -> Any:
        seen.append(offset)
        return read(self, offset, key)

    monkeypatch.setattr(Reader, "read", counting)
    return seen


# --- counts ----------------------------------------------------------------------------------------------------------


def fill(directory: Path) -> None:
    """Two versions; a failure that a result retires, one that does not, a value kept aside, a cleared key."""
    with CheckpointedRunner("j", directory, version="old") as runner:
        runner.save_result("a", 1)
        runner.save_error("b", "old trouble")
    with CheckpointedRunner("j", directory, version="new") as runner:
        for key in ("a", "b", "c", "gone"):
            runner.save_error(key, ValueError(key))
        for key in ("a", "c", "gone"):
            runner.save_result(key, key)
        with pytest.raises(UnencodableValue):
            runner.save_result("odd", object())
        runner.clear(["gone"])


def test_counts_are_those_of_a_runner(tmp_path: Path) -> None:
    """Done, failed, kept aside, of the version of the last record; the others beside it."""
    fill(tmp_path)
    seen = status.survey("j", tmp_path)
    with CheckpointedRunner("j", tmp_path) as runner:
        assert (seen.done, seen.failed, seen.is_exact) == (*runner.records.count(), True)
        assert seen.aside == len(runner.unsaved) == 1
    assert (seen.done, seen.failed) == (2, 2)
    assert seen.version == version_digest("new", "version")
    assert [(held.label, held.results, held.errors) for held in seen.versions] == [("new", 2, 2), ("old", 1, 1)]
    assert [(cause.type, cause.keys) for cause in seen.causes] == [("ValueError", ["b"]), ("UnencodableValue", ["odd"])]
    assert (seen.causes_read, seen.sessions, seen.writer) == (2, 2, None)


def test_a_total_is_that_of_the_last_pass(tmp_path: Path) -> None:
    """Where the writer has noted it; what is left is what this pass has not dealt with."""
    with BatchCheckpointedRunner("j", tmp_path) as runner:
        for n in runner.iterate(range(10), key_fn=lambda n: n):
            if n == 3:
                break
            runner.save_result(n, n)
    seen = status.survey("j", tmp_path)
    assert (seen.done, seen.total, seen.left, seen.seconds_left) == (3, 10, 7, None)
    assert "3 of 10 (30 %)" in str(seen)


def test_meta_that_is_garbage_costs_the_total_only(tmp_path: Path) -> None:
    """It is rebuildable, and never stops anybody."""
    fill(tmp_path)
    for text in (b"", b"[1]", b'{"total_items": "ten", "versions": 7}', b'{"total_items": -1}'):
        (tmp_path / "j_meta.json").write_bytes(text)
        seen = status.survey("j", tmp_path)
        assert (seen.done, seen.total, seen.left) == (2, None, None)


def test_of_schema_1_it_tells_what_there_is(tmp_path: Path) -> None:
    """Lines without checksum: keys are text, and times are of this machine."""
    write(tmp_path, b'{"key": "1", "result": 1, "timestamp": "2026-03-01T12:00:00"}\n', b'{"key": "2", "result": 2}\n')
    write(
        tmp_path,
        b'{"key": "2", "error": "bad", "timestamp": "2026-03-01T11:00:00"}\n',
        b'{"key": "3", "error": "bad", "timestamp": "2026-03-01T11:30:00"}\n',
        kind="errors",
    )
    seen = status.survey("j", tmp_path)
    assert (seen.done, seen.failed, seen.is_exact, seen.sessions) == (2, 1, True, 0)
    assert [cause.keys for cause in seen.causes] == [["3"]]
    assert seen.last == "2026-03-01T12:00:00"
    assert [failed.key for failed in failures("j", tmp_path)] == ["3"]


def test_an_empty_checkpoint_is_one(tmp_path: Path) -> None:
    """A job has begun, and nothing is saved yet."""
    (tmp_path / "j_meta.json").write_text('{"total_items": 7}')
    seen = status.survey("j", tmp_path)
    assert (seen.done, seen.failed, seen.total, seen.last, seen.rate, seen.versions) == (0, 0, 7, None, None, ())
    assert "nothing saved yet" in str(seen)
    assert list(failures("j", tmp_path)) == []


# --- it only reads ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spoilt", ["sound", "torn", "damaged", "no meta", "no errors"])
def test_nothing_is_written(tmp_path: Path, spoilt: str) -> None:
    """No lock is taken, no file made, and damage is not noted: not a byte changes, whatever is there."""
    fill(tmp_path)
    journal, errors = tmp_path / "j_results.jsonl", tmp_path / "j_errors.jsonl"
    if spoilt == "torn":
        journal.write_bytes(journal.read_bytes() + b'{"key":"t')
    elif spoilt == "damaged":
        journal.write_bytes(journal.read_bytes().replace(b'"result":"c"', b'"result":"x"'))
        errors.write_bytes(errors.read_bytes().replace(b'"error":"b"', b'"error":"x"'))
    elif spoilt != "sound":
        (tmp_path / ("j_meta.json" if spoilt == "no meta" else "j_errors.jsonl")).unlink()
    (tmp_path / ".j.lock").unlink()
    before = files_of(tmp_path)
    str(status.survey("j", tmp_path))
    list_checkpoints(tmp_path)
    list(failures("j", tmp_path))
    assert files_of(tmp_path) == before


def test_beside_a_writer_it_sees_what_is_saved(tmp_path: Path) -> None:
    """Each look sees more; the writer is named; when it has gone, it is nobody."""
    with Observer("j", _started(tmp_path)) as observer:
        with CheckpointedRunner("j", tmp_path) as runner:
            for done, n in enumerate(runner.iterate(range(3), key_fn=lambda n: n)):
                seen = observer.look()
                assert seen.done == done
                if Path("/proc/locks").exists():
                    assert (seen.writer or {}).get("pid") == os.getpid()
                runner.save_result(n, n)
        assert observer.look().done == 3
        assert observer.look().writer is None or not Path("/proc/locks").exists()
        compact("j", tmp_path)
        assert observer.look().done == 3
        with CheckpointedRunner("j", tmp_path) as runner:
            runner.clear()
        assert (observer.look().done, observer.look().last) == (0, None)


def _started(directory: Path) -> Path:
    (directory / "j_meta.json").write_text("{}")
    return directory


# --- what it costs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("indexed", [False, True])
def test_it_reads_a_bounded_number_of_records(
    tmp_path: Path, reads: list[int], monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    """Of 20,000 results none, and of 3,000 failures the last 1,000, once; with and without index files."""
    write(tmp_path, *(line(n, at=n / 100, elapsed=0.5) for n in range(20_000)))
    write(tmp_path, *(error_line(n, at=n / 100) for n in range(19_000, 23_000)), kind="errors")
    if indexed:
        with CheckpointedRunner("j", tmp_path) as runner:
            for shelf in (runner.records.store.own.results, runner.records.store.own.errors):
                shelf.write_index()
    reads.clear()
    with Observer("j", tmp_path) as observer:
        seen = observer.look()
        assert (seen.done, seen.failed, seen.is_exact) == (20_000, 3_000, True)
        assert seen.causes_read == 1_000
        assert [(cause.count, cause.keys[0]) for cause in seen.causes] == [(1_000, 22_000)]
        counted = 4_000 if indexed else 0  # the file of the index has no keys: so many may be read to be counted
        assert len(reads) == 1_000 + counted
        observer.look()
        assert len(reads) == 1_000 + 2 * counted
    assert "of the last 1,000 of 3,000 failures" in str(seen)


def test_where_failures_are_too_many_to_be_counted_it_says_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are estimated from a part that is drawn, since every n-th may be alike; and it says so."""
    monkeypatch.setattr(status, "_COUNTED", 100)
    write(tmp_path, *(line(n) for n in range(0, 1000, 2)))
    errors = [b'{"key": "%d", "error": "bad"}\n' % n for n in range(1000)]
    write(tmp_path, *errors, kind="errors")
    seen = at(tmp_path)
    assert not seen.is_exact
    assert 300 <= seen.failed <= 700
    assert f"about {seen.failed:,} failed" in str(seen)
    assert seen.to_json()["failed_is_exact"] is False
    assert not list_checkpoints(tmp_path)[0].is_exact


def test_of_a_giant_record_only_the_end_is_read(tmp_path: Path) -> None:
    """It is larger than what is looked at; its time and session are known all the same."""
    write(tmp_path, line("small", at=1), line("giant", "x" * 1_000_000, at=7, session="bb", elapsed=3.0))
    seen = at(tmp_path, 10)
    assert (seen.done, seen.last, seen.idle, seen.sessions) == (2, stamp(7), 3.0, 2)
    assert [recent.key for recent in seen.recent] == []


# --- rate, time left, sessions, durations ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "rate", "reason"),
    [
        ([], None, "nothing is saved"),
        ([line(1)], None, "one record is no span"),
        ([line(1), line(2)], None, "both at one moment"),
        ([line(n, at=n / 4) for n in range(9)], 4.0, "a steady run"),
        ([line(n, at=n * 300) for n in range(5)], 1 / 300, "a slow run: not only the last minute"),
        ([*(line(n, at=n) for n in range(100)), *(line(n, at=n / 10) for n in range(1000, 1700))], 10.0, "a minute"),
        ([*(line(n, at=n / 9) for n in range(9)), *(line(n, at=100 + n, session="bb") for n in range(9))], 1.0,
         "of two sessions the last"),
        ([line(n, at=-n) for n in range(9)], None, "the clock runs backwards"),
        ([line(n, at=n / 4) for n in range(9)] + [line("no time").replace(stamp(0).encode(), b"?")], 4.0,
         "a record whose time is none"),
    ],
)  # fmt: skip
def test_the_rate_is_that_of_the_session_that_wrote_last(
    tmp_path: Path, lines: list[bytes], rate: float | None, reason: str
) -> None:
    """Records a second: of its last minute, or its last twenty records."""
    write(tmp_path, *lines)
    assert at(tmp_path, 2000).rate == (None if rate is None else pytest.approx(rate)), reason


def test_failures_count_for_the_rate(tmp_path: Path) -> None:
    """They are items dealt with: results and errors alternate, two a second."""
    write(tmp_path, *(line(n, at=n) for n in range(10)))
    write(tmp_path, *(error_line(f"e{n}", at=n + 0.5) for n in range(10)), kind="errors")
    assert at(tmp_path, 10).rate == pytest.approx(2.0)


def test_time_left_needs_a_total_something_left_and_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And of failures, those of this session are dealt with; earlier ones are tried again."""
    write(tmp_path, *(line(n, at=n) for n in range(20)))
    write(tmp_path, error_line("y", at=-900, session="00"), error_line("x", at=18.5), kind="errors")
    monkeypatch.setattr(status, "writer_of", lambda *_: {"pid": 7, "host": "h", "since": stamp(-60)})
    assert at(tmp_path, 20).seconds_left is None  # the total is not known
    (tmp_path / "j_meta.json").write_text('{"total_items": 40}')
    seen = at(tmp_path, 20)
    assert (seen.total, seen.left) == (40, 40 - 20 - 1)
    assert seen.seconds_left == pytest.approx(19 / (seen.rate or 0))
    assert "items/s · about 18 s left" in str(seen)
    assert "process 7 on h, for 1 min 20 s; last record just now" in str(seen)
    (tmp_path / "j_meta.json").write_text('{"total_items": 21}')
    assert (at(tmp_path, 20).left, at(tmp_path, 20).seconds_left) == (0, None)
    (tmp_path / "j_meta.json").write_text('{"total_items": 40}')
    monkeypatch.setattr(status, "writer_of", lambda *_: None)
    assert (at(tmp_path, 20).left, at(tmp_path, 20).seconds_left) == (19, None)


def test_a_rate_falls_while_nothing_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that stalls is not told to be fast: as long as somebody writes it."""
    write(tmp_path, *(line(n, at=n / 10) for n in range(100)))
    monkeypatch.setattr(status, "writer_of", lambda *_: {"pid": 1, "host": "h", "since": stamp(0)})
    assert at(tmp_path, 10).rate == pytest.approx(10.0)
    assert at(tmp_path, 99).rate == pytest.approx(1.0)
    monkeypatch.setattr(status, "writer_of", lambda *_: None)
    assert at(tmp_path, 99).rate == pytest.approx(10.0)
    monkeypatch.setattr(status, "writer_of", lambda *_: {})
    assert at(tmp_path, 30).rate == pytest.approx(99 / 30)
    assert at(tmp_path, 99).rate == pytest.approx(10.0)
    assert "cannot be told here" in str(at(tmp_path, 99))


def test_every_session_that_wrote_in_turn_is_counted(tmp_path: Path) -> None:
    """However few of its records there are between those of others; and who only cleared is none."""
    sizes = [5000, 1, 1, 3000, 2, 4000, 1]
    lines = [line(f"{n}-{k}", session=f"{n:02x}") for n, size in enumerate(sizes) for k in range(size)]
    forgotten = seal(b'{"key":"0-0","forgotten":true,"timestamp":"2026-03-01T12:00:00.000Z","session":"ff"')
    write(tmp_path, *lines[:6000], forgotten, *lines[6000:])
    write(tmp_path, error_line("e", session="ee"), kind="errors")
    assert at(tmp_path).sessions == len(sizes) + 1


def test_durations_are_of_results_spread_over_the_file(tmp_path: Path) -> None:
    """Median and 95th percentile, of the current version; a value that looks like a record's end is none."""
    old = [line(n, elapsed=99.0, version="00") for n in range(500)]
    decoy = {"n": 1, "elapsed": 50.0}
    new = [line(n, decoy, elapsed=1.0 if n % 10 else 4.0, version="11") for n in range(1000)]
    write(tmp_path, *old, *new)
    durations = at(tmp_path).durations
    assert durations is not None
    assert (durations.median, durations.most) == (1.0, 4.0)
    assert 100 <= durations.count <= 301
    write(tmp_path, *(line(n) for n in range(9)))
    assert at(tmp_path).durations is None


def test_few_results_are_looked_at_once_each(tmp_path: Path) -> None:
    """The sample is never larger than what there is."""
    write(tmp_path, *(line(n, "x" * 500, elapsed=n + 1.0) for n in range(5)))
    durations = at(tmp_path).durations
    assert durations is not None
    assert (durations.count, durations.median, durations.most) == (5, 3.0, 5.0)


def test_the_last_records_are_told_in_short(tmp_path: Path) -> None:
    """Results and failures in the order of their time, at most five; text of any length is cut."""
    write(tmp_path, *(line(n, "y" * 300, at=n) for n in range(9)))
    write(tmp_path, error_line("e", at=7.5), kind="errors")
    recent = at(tmp_path).recent
    assert [last.key for last in recent] == [5, 6, 7, "e", 8]
    assert [last.failed for last in recent] == [False, False, False, True, False]
    assert recent[3].text == "ValueError: bad"
    assert max(len(last.text) for last in recent) == 100


# --- which there are -------------------------------------------------------------------------------------------------


def test_a_directory_lists_its_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name; other files are none; one that cannot be read says why, and the others are listed all the same."""
    for name in ("b", "a"):
        with CheckpointedRunner(name, tmp_path) as runner:
            runner.save_result(1, 1)
            runner.save_error(2, "bad")
    for other in ("notes.txt", "é_results.jsonl", "_results.jsonl", ".hidden_results.jsonl"):
        (tmp_path / other).write_text("")
    (tmp_path / "c_results.jsonl").mkdir()
    a, b, c = list_checkpoints(tmp_path)
    assert [a.name, b.name, c.name] == ["a", "b", "c"]
    assert (a.done, a.failed, a.total, a.writer, a.why) == (1, 1, None, None, "")
    assert a.size == sum(file.stat().st_size for file in tmp_path.glob("a_*"))
    assert c.why
    assert set(a.to_json()) == set(re.findall(r"`(\w+)`", Summary.to_json.__doc__ or ""))
    assert list_checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("name", "told", "reason"),
    [
        ("summarise", "did you mean 'summaries'? there are: other, summaries", "a letter is another"),
        ("summaries_results.jsonl", "did you mean 'summaries'?", "a file's name"),
        ("zzz", "in {}; there are: other, summaries", "nothing like it"),
    ],
)
def test_what_is_not_there_may_be_meant_otherwise(tmp_path: Path, name: str, told: str, reason: str) -> None:
    """The error lists what there is."""
    for there in ("summaries", "other"):
        (tmp_path / f"{there}_meta.json").write_text("{}")
    with pytest.raises(StoreError) as raised:
        locate(name, tmp_path)
    assert told.format(tmp_path) in str(raised.value), reason
    assert raised.value.filename == str(tmp_path)
    with pytest.raises(InvalidName):
        locate("a/b", tmp_path)
    assert locate("other", tmp_path) == tmp_path


def test_failures_are_listed_one_at_a_time(tmp_path: Path) -> None:
    """In the order of the file, of one type where that is asked for; with what is on record of each."""
    write(
        tmp_path, error_line("a"), error_line("b", type="httpx.ReadTimeout"), error_line("c"), error_line("a", at=9),
        kind="errors",
    )  # fmt: skip
    write(tmp_path, line("c"))
    assert [failed.key for failed in failures("j", tmp_path)] == ["b", "a"]
    for asked, keys in (("ValueError", ["a"]), ("ReadTimeout", ["b"]), ("httpx.ReadTimeout", ["b"]), ("Read", [])):
        assert [failed.key for failed in failures("j", tmp_path, type=asked)] == keys
    failed = next(iter(failures("j", tmp_path, type="ValueError")))
    assert failed.to_json() == {
        "key": "a", "type": "ValueError", "message": "bad", "attempts": None, "elapsed": None, "timestamp": stamp(9),
        "given_up": False,
    }  # fmt: skip
    assert failed.to_json(traceback=True)["traceback"] is None
    with pytest.raises(StoreError):
        next(iter(failures("nojob", tmp_path)))


# --- what people and programs are told -------------------------------------------------------------------------------


def test_the_names_of_the_json_are_the_documented_ones(tmp_path: Path) -> None:
    """They stay; keys stand as in a journal; all of it is JSON."""
    write(tmp_path, line("a", elapsed=1.0))
    seen = at(tmp_path)
    told = json.loads(json.dumps(seen.to_json()))
    documented = set(re.findall(r"`(\w+)`", Survey.to_json.__doc__ or ""))
    assert set(told) <= documented
    for held in (told["versions"][0], told["durations"], told["recent"][0]):
        assert set(held) <= documented
    assert told["versions"][0]["current"] is True


def test_a_survey_is_one_line_a_fact_whatever_is_in_it(tmp_path: Path) -> None:
    """A message, a type, or a key with line ends and control characters is escaped."""
    nasty = "a\\n\\u001b[2J\\u202e\\ud800"
    head = f'{{"key":"{nasty}","error":"{nasty}","timestamp":"{nasty}","type":"{nasty}"'
    write(tmp_path, f"{head}}}\n".encode(), kind="errors")
    told = str(status.survey("j", tmp_path))
    assert all(row.isprintable() for row in told.split("\n"))
    assert "1 failed" in told
    assert all(row.startswith(("checkpoint", "  ")) for row in told.split("\n"))


@pytest.mark.parametrize(
    ("text", "shown", "reason"),
    [
        ("résumé 日本", "résumé 日本", "letters are letters"),
        ("a\x1b[31mb", "a\\x1b[31mb", "colours"),
        ("a\nb\tc\r", "a\\nb\\tc\\r", "line ends"),
        ("\x9b2J", "\\x9b2J", "the other half of control characters"),
        ("a\u202eb", "a\\u202eb", "text that runs backwards"),
        ("\ud800", "\\ud800", "half a character"),
        ("1\xa0000", "1 000", "a space that does not break"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str, reason: str) -> None:
    """Whatever it is, it is one line of what can be seen."""
    assert printable(text) == shown, reason
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"), (0.4, "0 s"), (23, "23 s"), (60, "1 min"), (200, "3 min 20 s"), (3600, "1 h"), (7500, "2 h 5 min"),
        (100_000, "27 h 46 min"), (273_600, "3 days 4 h"), (1e9, "11,574 days"),
    ],
)  # fmt: skip
def test_spans_are_told_in_two_units(seconds: float, told: str) -> None:
    """Of a size that people take in at once."""
    assert span(seconds) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "just now"), (1, "just now"), (2, "2 s ago"), (59, "59 s ago"), (60, "1 min ago"), (3599, "59 min ago"),
        (3600, "1 h ago"), (100_000, "27 h ago"), (200_000, "2 days ago"), (1e9, "11,574 days ago"),
    ],
)  # fmt: skip
def test_the_past_is_told_in_one_unit(seconds: float, told: str) -> None:
    """Rounded down."""
    assert ago(seconds) == told
