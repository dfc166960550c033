"""Laws of policies: checked when built, frozen, and apart from what counts during a pass."""

from __future__ import annotations

import dataclasses
import math
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import InvalidOption
from checkpoint.policies import Durability, ErrorCount, ErrorLimit, OnChange, check_choice

NO_LIMIT = ErrorLimit(None, in_a_row=10**9, unencodable=10**9)


@pytest.mark.parametrize("limit", [-1, -0.5, 1.0, 2.5, math.nan, math.inf, True, "3", [1]], ids=repr)
def test_a_limit_of_another_kind_is_refused_when_built(limit: Any) -> None:
    """A count of 0 or more, or a fraction below 1."""
    with pytest.raises(InvalidOption, match="max_errors"):
        ErrorLimit(limit)


def test_a_policy_is_frozen_and_pickles() -> None:
    """It travels; what changes during a pass is another object."""
    limit = ErrorLimit(3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limit.max_errors = 4  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(limit)) == limit


def count(limit: ErrorLimit, ends: str) -> ErrorCount:
    """A count after these ends: `.` success, a letter a failure of that type, `!` an unencodable value."""
    counted = ErrorCount(limit)
    for end in ends:
        if end == ".":
            counted.succeeded()
        else:
            counted.fail(end, unencodable=end == "!")
    return counted


VERDICTS = [
    (ErrorLimit(0), ".", None, "no failure"),
    (ErrorLimit(0), ".a", "max_errors=0", "the first failure"),
    (ErrorLimit(2), "aa", None, "as many as are allowed"),
    (ErrorLimit(2), "a.b.c", "max_errors=2", "one more"),
    (ErrorLimit(), "a" * 99, None, "not a hundred yet"),
    (ErrorLimit(), "a" * 100, "first 100 items all failed with a", "a hundred in a row"),
    (ErrorLimit(), "." + "a" * 500, None, "one success before"),
    (ErrorLimit(), "b" + "a" * 500, None, "of another type"),
    (ErrorLimit(), "!.!", None, "two values that cannot be written"),
    (ErrorLimit(), "!.!.!", "3 results could not be written", "the third one"),
    (ErrorLimit(0.5), "a" * 99, None, "a fraction of less than a hundred"),
    (ErrorLimit(0.5), "." * 50 + "a" * 50, None, "just the fraction"),
    (ErrorLimit(0.5), "." * 50 + "a" * 51, "more than 50% of 101", "over the fraction"),
    (ErrorLimit(0.0), "." * 100 + "a", "more than 0%", "a fraction of nothing"),
]


@pytest.mark.parametrize(("limit", "ends", "want", "reason"), VERDICTS, ids=[reason for *_, reason in VERDICTS])
def test_a_verdict_says_why_the_pass_must_end(limit: ErrorLimit, ends: str, want: str | None, reason: str) -> None:
    """Or there is none."""
    verdict = count(limit, ends).verdict()
    assert verdict is None if want is None else (verdict is not None and want in verdict)


@given(st.text("ab.", max_size=50))
def test_what_is_counted_adds_up(ends: str) -> None:
    """Failures by type are all failures; all that was run is successes and failures."""
    counted = count(NO_LIMIT, ends)
    assert counted.failed == sum(counted.by_type.values()) == len(ends) - ends.count(".")
    assert counted.run == len(ends)
    assert counted.verdict() is None


@given(st.text("ab.", max_size=50))
def test_a_retired_failure_is_none(ends: str) -> None:
    """Its item was run once, and has its result after all."""
    counted = count(NO_LIMIT, ends + "a")
    counted.retire("a")
    assert (counted.failed, counted.by_type) == (count(NO_LIMIT, ends).failed, count(NO_LIMIT, ends).by_type)
    assert counted.run == len(ends) + 1


@pytest.mark.parametrize(
    ("choices", "good", "bad"),
    [(Durability, ["process", "power"], [None, True, "", "Power"]), (OnChange, ["keep", "recompute", "error"], ["no"])],
)
def test_a_choice_is_one_of_a_few(choices: object, good: list[object], bad: list[object]) -> None:
    """Anything else is refused, and the choices are listed."""
    for value in good:
        check_choice("option", value, choices)
    for value in bad:
        with pytest.raises(InvalidOption, match=f"it is one of '{good[0]}'"):
            check_choice("option", value, choices)


def test_a_choice_that_cannot_be_compared_is_refused_all_the_same() -> None:
    """A list, say, which has no hash."""
    with pytest.raises(InvalidOption):
        check_choice("option", ["keep"], OnChange)
