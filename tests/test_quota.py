"""Laws of quotas: calls start evenly, one `Rate` is one quota, and what a server refuses holds all who share it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import Rate
from checkpoint.execution.quota import Permits


def starts(rate: Rate, costs: list[float], *, until: float = 1e9, begin: float = 1000.0) -> list[tuple[float, float]]:
    """When calls of these costs start, one after the other, each as soon as it may; in seconds since the first."""
    permits, now, made = Permits(rate), begin, []
    for cost in costs:
        while (wait := permits.wait(cost, now)) > 0:
            now += wait
        if now - begin >= until:
            break
        permits.take(cost, now)
        made.append((now - begin, cost))
    return made


def most_in_a_span(made: list[tuple[float, float]], per: float) -> float:
    """The most that started in any span of `per` seconds, give or take what floats do to it."""
    per *= 1 - 1e-9
    return max(sum(cost for when, cost in made if begin <= when < begin + per) for begin, _ in made)


# --- even ------------------------------------------------------------------------------------------------------------


def test_600_a_minute_are_ten_in_every_second() -> None:
    """Ten, give or take one, in each second of a minute, the first included; and no more than 600 in any minute."""
    made = starts(Rate(600, per=60), [1.0] * 2000, until=70)
    seconds = Counter(int(when) for when, _ in made)
    assert {second: seconds[second] for second in range(70) if abs(seconds[second] - 10) > 1} == {}
    assert most_in_a_span(made, 60) <= 600


def test_30_a_minute_are_one_in_two_seconds() -> None:
    """A bucket of one second's worth would hold half a call: it holds one."""
    made = [when for when, _ in starts(Rate(30, per=60), [1.0] * 31)]
    assert made == pytest.approx([2.0 * number for number in range(31)])


def test_a_call_dearer_than_a_second_s_worth_starts_and_is_paid_for_afterwards() -> None:
    """100 a minute are 1.67 a second; calls of 40 start every 24 seconds, which is 100 a minute."""
    made = [when for when, _ in starts(Rate(100, per=60, cost=abs), [40.0] * 5)]
    assert made == pytest.approx([0.0, 24.0, 48.0, 72.0, 96.0])


def test_after_a_dear_call_a_cheap_one_waits_for_the_debt_and_a_free_one_does_not() -> None:
    """Or those after it would have what it was lent."""
    permits = Permits(Rate(60, per=60, cost=abs))
    permits.take(30.0, 0.0)
    assert permits.wait(1.0, 0.0) == pytest.approx(30.0)
    assert permits.wait(0.0, 0.0) == 0.0


def test_what_was_not_used_is_kept_for_a_second() -> None:
    """After a silence of any length: ten at once, then one in a tenth of a second."""
    permits = Permits(Rate(600, per=60))
    permits.take(1.0, 0.0)
    now = 1000.0
    for _ in range(10):
        assert permits.wait(1.0, now) == 0.0
        permits.take(1.0, now)
    assert permits.wait(1.0, now) == pytest.approx(0.1)


def test_a_bucket_holds_no_more_than_the_limit() -> None:
    """Of five in a quarter of a second, a second's worth is twenty."""
    permits = Permits(Rate(5, per=0.25))
    permits.take(1.0, 0.0)
    for _ in range(5):
        assert permits.wait(1.0, 9.0) == 0.0
        permits.take(1.0, 9.0)
    assert permits.wait(1.0, 9.0) > 0.0


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=60),
    st.integers(12, 60),
    st.integers(1, 240),
)
def test_no_span_holds_more_than_the_limit_but_by_one_dear_call(
    steps: list[tuple[int, int]], limit: int, quarters: int
) -> None:
    """Whenever calls come, and whatever they cost; and who waits as long as told gets on."""
    rate = Rate(limit, per=quarters / 4, cost=abs)
    permits, now, made = Permits(rate), 0.0, []
    for silence, cost in steps:
        now += silence / 4
        looks = 0
        while (wait := permits.wait(cost, now)) > 0:
            now, looks = now + wait, looks + 1
            assert looks < 10
        permits.take(cost, now)
        made.append((now, float(cost)))
    per = rate.per * (1 - 1e-9)
    for begin, _ in made:
        span = [cost for when, cost in made if begin <= when < begin + per]
        dear = max([cost for cost in span if cost > limit / rate.per], default=0.0)
        assert sum(span) - dear <= limit


@given(st.integers(1, 5000), st.floats(0.01, 1e5))
def test_a_steady_demand_gets_the_whole_rate(limit: int, per: float) -> None:
    """No permit is lost: each call starts when the one before it is paid for."""
    made = [when for when, _ in starts(Rate(limit, per=per), [1.0] * 50, begin=0.0)]
    assert all(
        after - before <= per / limit * 1.001 + 1e-5 or after - made[0] >= per for before, after in pairwise(made)
    )


def test_a_permit_that_is_given_back_was_never_taken() -> None:
    """Where another pass makes the call."""
    permits = Permits(Rate(1, per=60))
    permit = permits.take(1.0, 0.0)
    assert permits.wait(1.0, 0.0) == 60.0
    permits.give_back(permit)
    assert permits.wait(1.0, 0.0) == 0.0
