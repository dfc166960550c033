"""Laws of quotas: calls start evenly, one `Rate` is one quota, and what a server refuses holds all who share it."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from conftest import Ticker
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import Rate, Retry, checkpointed
from checkpoint.execution import quota
from checkpoint.execution.policies import Again
from checkpoint.execution.quota import Permits, permits_of
from checkpoint.execution.scheduler import Attempt, Schedule
from checkpoint.outcomes import Unit


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
    made = starts(Rate(600, per=60), [1.0] * 700)
    seconds = Counter(int(when) for when, _ in made)
    assert {second: seconds[second] for second in range(69) if abs(seconds[second] - 10) > 1} == {}
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
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), max_size=25),
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
    made = [when for when, _ in starts(Rate(limit, per=per), [1.0] * 20, begin=0.0)]
    assert all(
        after - before <= per / limit * 1.001 + 1e-5 or after - made[0] >= per for before, after in pairwise(made)
    )


def test_a_permit_that_is_given_back_was_never_taken() -> None:
    """Where another pass makes the call."""
    permits = Permits(Rate(1, per=60))
    permit = permits.take(1.0, 0.0)
    assert permit is not None
    assert permits.wait(1.0, 0.0) == 60.0
    permits.give_back(permit)
    assert permits.wait(1.0, 0.0) == 0.0


# --- shared ----------------------------------------------------------------------------------------------------------


def schedules(*rates: Rate, retry: Retry | None = None) -> tuple[Ticker, list[Schedule]]:
    """A schedule of five calls for each of the rates, on one clock."""
    ticker = Ticker()
    made = [Schedule(retry, [rate], now=ticker) for rate in rates]
    for place, schedule in enumerate(made):
        for number in range(5):
            schedule.add(Attempt([Unit(number, (place, number))]))
    return ticker, made


def test_one_rate_object_is_one_quota() -> None:
    """Whichever pass takes the permit, the other one waits."""
    rate = Rate(1, per=10)
    ticker, (one, other) = schedules(rate, rate)
    assert one.take() is not None
    assert (other.take(), other.wait()) == (None, 10.0)
    ticker.tick(10)
    assert other.take() is not None
    assert (one.take(), one.wait()) == (None, 10.0)


@pytest.mark.parametrize(
    "twin", [lambda rate: Rate(1, per=10), copy.copy, lambda rate: pickle.loads(pickle.dumps(rate))]
)
def test_equal_rates_are_two_quotas(twin: Any) -> None:
    """Two providers may have the same limit. A copy, and what was pickled, is another object."""
    rate = Rate(1, per=10)
    same = twin(rate)
    assert same == rate
    _, (one, other) = schedules(rate, same)
    assert one.take() is not None
    assert other.take() is not None


def test_retries_take_permits_of_a_shared_rate() -> None:
    """A call is a call to the server, whoever makes it."""
    rate = Rate(1, per=10)
    ticker, (one, other) = schedules(rate, rate, retry=Retry(3, wait=0))
    called = one.take()
    assert called is not None
    assert one.again(called, Again())
    ticker.tick(10)
    assert one.take() is called
    assert (other.take(), other.wait()) == (None, 10.0)


def test_the_state_of_a_quota_lives_as_long_as_its_rate() -> None:
    """No longer, or rates that are made in a loop would pile up."""
    rate = Rate(1)
    place, known = id(rate), permits_of(rate)
    assert permits_of(rate) is known
    del rate
    gc.collect()
    assert place not in quota._known


def test_two_rates_are_taken_both_or_none() -> None:
    """What the second one refuses, between the look and the taking, is given back to the first."""
    first, second = Rate(1, per=10), Rate(1, per=10)
    ticker = Ticker()
    both = Schedule(None, [first, second], now=ticker)
    both.add(Attempt([Unit(1, 1)]))
    permits, real = permits_of(second), Permits.wait

    def quicker(self: Permits, cost: float, now: float) -> float:
        told = real(self, cost, now)
        if self is permits and told == 0.0:
            self.take(1.0, now)
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Permits, "wait", quicker)
        assert both.take() is None
    assert permits_of(first).wait(1.0, ticker()) == 0.0


def test_threads_that_share_a_quota_take_no_permit_twice() -> None:
    """Eight threads, one clock that stands still: the limit is let go, once."""
    permits = Permits(Rate(500, per=1))
    permits.take(1.0, 0.0)
    gate = threading.Barrier(8)

    def take_all() -> int:
        gate.wait()
        return sum(permits.take(1.0, 10.0) is not None for _ in range(500))

    with ThreadPoolExecutor(8) as pool:
        assert sum(future.result() for future in [pool.submit(take_all) for _ in range(8)]) == 500


def test_functions_passes_and_copies_share_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions, one of them twice, as a copy with other options too; plain ones and coroutine functions."""
    taken: list[int] = []
    real = Permits.take

    def note(self: Permits, cost: float, now: float) -> Any:
        taken.append(id(self))
        return real(self, cost, now)

    monkeypatch.setattr(Permits, "take", note)
    rate = Rate(1000, per=1)

    @checkpointed("small", rate=rate)
    def small(n: int) -> int:
        return n

    @checkpointed("large", rate=[rate])
    async def large(n: int) -> int:
        return n

    @checkpointed("other", rate="1000/s")
    def other(n: int) -> int:
        return n

    for mapped in (small, small.options(name="again", retry=3)):
        mapped.map([1], progress=False)
        mapped.map([2], progress=False, workers=2)
    asyncio.run(large.map([1], progress=False))
    assert set(taken) == {id(permits_of(rate))}
    taken.clear()
    other.map([1], progress=False)
    other.options(retry=2).map([2], progress=False)
    assert len(set(taken)) == 1, "what was written is one quota for all passes of the function"
    assert set(taken) != {id(permits_of(rate))}
