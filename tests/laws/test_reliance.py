"""What a store relies on: on bytes that are on the medium by then, and on the journals alone.

`test_crash_states` judges by what a crash leaves; these laws name the calls and their order, and tell at once which one
is missing.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from crash_states import Event, Recorder, Rename, Sync, SyncDirectory, Truncate, Write

from checkpoint import CheckpointedRunner
from checkpoint.maintenance.compact import compact
from checkpoint.maintenance.repair import repair
from checkpoint.storage.record import parse

pytestmark = pytest.mark.skipif(os.name == "nt", reason="other calls are made there")

JOURNAL = "j_results.jsonl"
ASIDE = ".j_results.aside"
TEMPORARY = r"\.j_results\.[0-9]+\.[0-9a-f]{16}\.tmp"


def fill(directory: Path, *pairs: tuple[Any, Any]) -> None:
    """A checkpoint that holds these results."""
    with CheckpointedRunner("j", directory) as runner:
        for key, value in pairs:
            runner.save_result(key, value)


def places(events: list[Event], kind: type[Event], path: str) -> list[int]:
    """Where the events of this kind are on a path, or on one that matches it."""
    return [
        place
        for place, event in enumerate(events)
        if type(event) is kind and (event.path == path or (path == TEMPORARY and re.fullmatch(path, event.path)))
    ]


def check_kept_before_cut(events: list[Event], cut: int) -> None:
    """Before the place at which the journal loses bytes they are set aside, and their file and its name are synced."""
    written = max(place for place in places(events, Write, ASIDE) if place < cut)
    (synced,) = [place for place in places(events, Sync, ASIDE) if written < place < cut]
    assert any(synced < place < cut for place in places(events, SyncDirectory, ""))


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_record_is_one_write_of_its_whole_line(tmp_path: Path, durability: Any) -> None:
    """Results, errors, values kept aside and what forgets: no moment at which a part of one is in the file."""
    with (
        Recorder(tmp_path) as recorder,
        CheckpointedRunner("j", tmp_path, version=None, durability=durability) as runner,
    ):
        for number in range(5):
            runner.save_result(number, "x" * 10**number)
        runner.save_error("failed", ValueError("why"))
        with pytest.raises(TypeError):
            runner.save_result("kept aside", object())
        runner.clear([3])
    lines = [event.data for event in recorder.events if type(event) is Write and event.path.endswith(".jsonl")]
    assert len(lines) == 5 + 1 + 2 + 1
    assert all(line.count(b"\n") == 1 and parse(line).crc for line in lines)


def test_a_torn_tail_is_kept_before_it_is_cut_off(tmp_path: Path) -> None:
    """Written, synced, and its name synced; only then does the journal lose it."""
    fill(tmp_path, ("a", 1))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"key":"torn')
    with Recorder(tmp_path) as recorder:
        fill(tmp_path, ("b", 2))
    (cut,) = places(recorder.events, Truncate, JOURNAL)
    check_kept_before_cut(recorder.events, cut)
    assert places(recorder.events, Write, JOURNAL)[0] > cut, "nothing is appended to it before"


def test_a_repair_keeps_damaged_lines_before_the_journal_loses_them(tmp_path: Path) -> None:
    """The same where the journal is replaced by one without them."""
    fill(tmp_path, ("a", 1))
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b"damaged\n")
    with Recorder(tmp_path) as recorder:
        repair("j", tmp_path)
    (replaced,) = places(recorder.events, Rename, TEMPORARY)
    check_kept_before_cut(recorder.events, replaced)


def test_a_journal_is_replaced_when_its_copy_is_on_the_medium(tmp_path: Path) -> None:
    """All of the copy is written, then synced, then renamed; then the name is synced, before anything else is said."""
    fill(tmp_path, ("a", 1), ("a", 2), ("b", 3))
    with Recorder(tmp_path) as recorder:
        compact("j", tmp_path)
        recorder.note("compacted")
    events = recorder.events
    (renamed,) = places(events, Rename, TEMPORARY)
    (synced,) = [place for place in places(events, Sync, TEMPORARY) if place < renamed]
    assert max(places(events, Write, TEMPORARY)) < synced
    assert any(place > renamed for place in places(events, SyncDirectory, ""))


@pytest.mark.parametrize(
    ("said", "reason"),
    [(3, "one of before"), (9, "of another checkpoint"), (0, "of the beginning"), (10**30, "no machine counts so far")],
)
def test_a_count_is_of_the_journals_whatever_meta_says(tmp_path: Path, said: int, reason: str) -> None:
    """A plausible count is as little believed as garbage: at opening, in a pass, and in what is written anew."""
    fill(tmp_path, *[(key, key) for key in range(5)])
    meta = tmp_path / "j_meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_bytes()) | {"completed_items": said, "failed_items": said}))
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.progress() == (5, None)
        assert runner.records.count() == (5, 0)
        assert [runner.progress() for _ in runner.iterate([*range(5), "new"])] == [(5, 6)]
        runner.save_error("new", "failed")
    told = json.loads(meta.read_bytes())
    assert (told["completed_items"], told["failed_items"]) == (5, 1)
