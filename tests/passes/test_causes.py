"""Laws of causes: failures that are alike are one, by type and by the places they came through."""

from __future__ import annotations

from pathlib import Path

import pytest

from checkpoint import CheckpointedRunner, checkpointed
from checkpoint.errors import ItemError
from checkpoint.reporting.causes import causes_of


def deep(n: int) -> int:
    """Fails in one of three ways."""
    if n % 3 == 0:
        raise ValueError(f"odd {n}")
    if n % 3 == 1:
        raise ValueError(f"other {n}")
    raise KeyError(n)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory."""
    monkeypatch.chdir(tmp_path)


def test_failures_are_grouped_by_type_and_place() -> None:
    """Two lines of one function that raise the same type are two causes; messages do not tell them apart."""
    f = checkpointed("c")(deep)
    f.map(range(10), return_exceptions=True, progress=False)
    causes = f.errors.causes()
    assert [(cause.type, cause.count, cause.keys) for cause in causes] == [
        ("ValueError", 4, [0, 3, 6, 9]), ("ValueError", 3, [1, 4, 7]), ("KeyError", 3, [2, 5, 8]),
    ]  # fmt: skip
    assert causes[0].where.startswith("test_causes.py:")
    assert causes[0].where.endswith(" in deep")
    assert causes[0].message == "odd 0"
    assert "raise ValueError" in (causes[0].traceback or "")


def test_printed_they_are_a_summary() -> None:
    """What a person wants to know first."""
    f = checkpointed("c")(deep)
    f.map(range(10), return_exceptions=True, progress=False, workers=4)
    first, *rest = str(f.errors).splitlines()
    assert first == "3 causes, 10 items"
    assert len(rest) == 3
    assert "4 × ValueError at test_causes.py:" in rest[0]


def test_none_are_no_cause() -> None:
    """Nothing failed."""
    assert str(checkpointed("c")(deep).errors) == "0 causes, 0 items"


def test_line_numbers_do_not_count() -> None:
    """The file was edited between two sessions, above the place."""
    text = 'Traceback (most recent call last):\n  File "/a/jobs.py", line {}, in call\n    raise ValueError(n)\nE: 1'
    errors = [ItemError("x", key=n, type="ValueError", message="1", traceback=text.format(n)) for n in (12, 14)]
    (cause,) = causes_of(errors)
    assert (cause.count, cause.where) == (2, "jobs.py:12 in call")


def test_the_exception_itself_counts_and_not_what_led_to_it() -> None:
    """The last part of a chained traceback; the user's own frame is shown, not that of a library."""
    text = (
        'Traceback (most recent call last):\n  File "/a/other.py", line 1, in x\n    f()\nOSError: 1\n\n'
        "During handling of the above exception, another exception occurred:\n\nTraceback (most recent call last):\n"
        '  File "/a/jobs.py", line 3, in ask\n    client.get(url)\n    ~~~~~~^^^\n'
        '  File "/v/lib/python3.11/site-packages/httpx/_client.py", line 9, in get\n    raise E\nE: no'
    )
    (cause,) = causes_of([ItemError("x", key=1, type="E", message="no", traceback=text)])
    assert cause.where == "jobs.py:3 in ask"


def test_messages_tell_where_there_is_no_traceback() -> None:
    """As saved by hand."""
    runner = CheckpointedRunner("c")
    for key, message in enumerate(["full", "full", "empty"]):
        runner.save_error(key, message)
    errors = list(runner.records.iter_errors())
    assert [(cause.message, cause.count) for cause in causes_of(errors)] == [("full", 2), ("empty", 1)]


def test_an_error_keeps_how_long_its_call_took() -> None:
    """With type, message, traceback and attempts."""
    f = checkpointed("c", retry=2)(deep)
    f.map([2], return_exceptions=True, progress=False)
    error = f.errors[2]
    assert (error.type, error.message, error.attempts) == ("KeyError", "2", 1)
    assert error.elapsed is not None
    assert error.elapsed >= 0
