"""Laws of quotas: calls start evenly, one `Rate` is one quota, and what a server refuses holds all who share it."""

from __future__ import annotations

import asyncio
import copy
import gc
import io
import json
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import Ticker
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import CheckpointError, Rate, Retry, TooManyErrors, checkpointed
from checkpoint.execution import quota
from checkpoint.execution.policies import Again
from checkpoint.execution.quota import Permits, quota_of
from checkpoint.execution.scheduler import Attempt, Schedule
from checkpoint.outcomes import Unit
from checkpoint.passes.progress import Bar
from checkpoint.passes.tally import Tally
from checkpoint.reporting.status import Observer, Survey


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


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


def test_retries_take_quota_of_a_shared_rate() -> None:
    """A call is a call to the server, whoever makes it."""
    rate = Rate(1, per=10)
    ticker, (one, other) = schedules(rate, rate, retry=Retry(3, wait=0))
    called = one.take()
    assert called is not None
    assert one.again(called, Again())
    ticker.tick(10)
    assert one.take() is called
    assert (other.take(), other.wait()) == (None, 10.0)


@pytest.mark.slow
def test_the_state_of_a_quota_lives_as_long_as_its_rate() -> None:
    """No longer, or rates that are made in a loop would pile up."""
    rate = Rate(1)
    place, known = id(rate), quota_of(rate)
    assert quota_of(rate) is known
    del rate
    gc.collect()
    assert place not in quota._known


def test_two_rates_are_taken_both_or_none() -> None:
    """What the second one refuses, between the look and the taking, is given back to the first."""
    first, second = Rate(1, per=10), Rate(1, per=10)
    ticker = Ticker()
    both = Schedule(None, [first, second], now=ticker)
    both.add(Attempt([Unit(1, 1)]))
    permits, real = quota_of(second).permits, Permits.wait

    def quicker(self: Permits, cost: float, now: float) -> float:
        told = real(self, cost, now)
        if self is permits and told == 0.0:
            self.take(1.0, now)
        return told

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Permits, "wait", quicker)
        assert both.take() is None
    assert quota_of(first).permits.wait(1.0, ticker()) == 0.0


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
    assert set(taken) == {id(quota_of(rate).permits)}
    taken.clear()
    other.map([1], progress=False)
    other.options(retry=2).map([2], progress=False)
    assert len(set(taken)) == 1, "what was written is one quota for all passes of the function"
    assert set(taken) != {id(quota_of(rate).permits)}


# --- held ------------------------------------------------------------------------------------------------------------

BUSY, LATER = Again(None, "HTTP 503"), Again(30.0, "HTTP 429")


class Server:
    """Workers that call a server: time is a clock that they tick, answers are those of a function of time and item."""

    def __init__(self, answer: Any, retry: Retry, *rates: Rate, workers: int = 4, latency: float = 0.25) -> None:
        self.clock = Ticker()
        self.clock.time = 0.0
        self.answer, self.workers, self.latency = answer, workers, latency
        self.schedule = Schedule(retry, rates, now=self.clock)
        self.calls: list[tuple[float, int]] = []
        self.done: dict[int, float] = {}
        self.failed: dict[int, float] = {}

    def run(self, items: int, until: float = 1e6) -> None:
        """Call all items, as a pass does: drawn as there is room, so many at once."""
        drawn, under_way = iter(range(items)), list[Any]()
        while self.clock() < until:
            while self.schedule.room(self.workers) > 0 and (drawn_now := next(drawn, None)) is not None:
                self.schedule.add(Attempt([Unit(drawn_now, drawn_now)]))
            while self.schedule.wants_fresh and (drawn_now := next(drawn, None)) is not None:
                self.schedule.add(Attempt([Unit(drawn_now, drawn_now)]))
            while len(under_way) < self.workers and (attempt := self.schedule.take()) is not None:
                now, item = self.clock(), attempt.units[0].key
                self.calls.append((now, item))
                under_way.append((now + self.latency, len(self.calls), attempt, self.answer(now, item)))
            moments = [end for end, *_ in under_way]
            wait = self.schedule.wait() if len(under_way) < self.workers else None
            if wait is not None:
                moments.append(self.clock() + max(wait, 1e-6))
            if not moments:
                return
            self.clock.time = min(moments)
            for one in sorted(under_way, key=lambda one: one[:2]):
                if one[0] <= self.clock():
                    under_way.remove(one)
                    self._end(one[2], one[3])

    def _end(self, attempt: Attempt, told: Again | bool) -> None:
        item = attempt.units[0].key
        if isinstance(told, bool):
            self.schedule.answered(attempt)
            self.done[item] = self.clock()
        elif not self.schedule.again(attempt, told):
            self.failed[item] = self.clock()


def outage(begin: float, end: float, told: Again = BUSY) -> Any:
    """The server is away from then to then."""
    return lambda now, item: told if begin <= now < end else True


def taken_by(schedule: Schedule, count: int) -> list[Attempt]:
    """So many calls, which may start."""
    taken = [schedule.take() for _ in range(count)]
    assert None not in taken
    return [attempt for attempt in taken if attempt is not None]


@pytest.mark.parametrize("told", [BUSY, LATER, Again(None, "ConnectionRefusedError")])
@pytest.mark.parametrize("workers", [1, 4, 16])
@pytest.mark.parametrize("limits", [[], [600]], ids=["pass", "rate"])
def test_an_outage_uses_up_no_item(told: Again, workers: int, limits: list[int]) -> None:
    """Of five minutes, with two attempts an item: a probe now and then, and all are done soon after it."""
    server = Server(outage(10, 310, told), Retry(2), *map(Rate, limits), workers=workers)
    server.run(1500)
    assert (len(server.done), server.failed) == (1500, {})
    within = [when for when, _ in server.calls if 10 <= when < 310]
    assert len(within) <= workers + 3 + 300 / 10 + 5
    assert min(end for end in server.done.values() if end > 310.5) < 350


def test_one_refusal_holds_its_item_alone() -> None:
    """Others go on meanwhile."""
    server = Server(lambda now, item: LATER if item == 5 and now < 20 else True, Retry(1), workers=4)
    server.run(100)
    assert server.done.pop(5) > 30
    assert max(server.done.values()) < 10


def test_two_items_in_a_row_hold_nobody_and_three_do() -> None:
    """Three refusals of one item do not: it is the item."""
    ticker, (one,) = schedules(Rate(1000, per=1), retry=Retry(9, wait=0))
    ticker.tick(100)
    calls = taken_by(one, 1)
    ticker.tick(1)
    calls += taken_by(one, 4)
    for call in [calls[0], calls[0], calls[0], calls[1]]:
        assert one.again(call, BUSY)
    assert one.held_since is None
    assert one.again(calls[2], BUSY)
    assert one.held_since == ticker()


@pytest.mark.parametrize(("between", "is_held"), [(3, True), (4, False)])
def test_a_quarter_of_the_last_twenty_answers_holds_all(between: int, is_held: bool) -> None:
    """Though there are answers between them; a fifth does not."""
    schedule, most = Schedule(Retry(9, wait=0), now=Ticker()), 0
    for number in range(30):
        attempt = Attempt([Unit(number, number)], began=2000.0)
        if number % (between + 1) == 0:
            schedule.again(attempt, BUSY)
        else:
            schedule.answered(attempt)
        most += schedule.held_since is not None
    assert (most > 0) == is_held


def test_one_call_at_a_time_asks_and_an_item_that_was_not_refused_yet_first() -> None:
    """So that items which are refused for ever do not keep the gate shut."""
    server = Server(lambda now, item: BUSY if item < 3 else True, Retry(2, wait=1), workers=4, latency=1.0)
    server.run(50, until=100)
    assert set(server.done) == set(range(3, 50))


def test_after_the_patience_what_waits_fails() -> None:
    """Each is called once more, and attempts no longer help; and not before."""
    server = Server(outage(10, 1e9), Retry(5, patience=120), workers=4)
    server.run(200, until=2000)
    assert min(server.failed.values()) == pytest.approx(130, abs=12)
    assert max(server.failed.values()) < 160
    assert len(server.done) + len(server.failed) == 200


def test_an_answer_ends_the_impatience() -> None:
    """The server is back after all: retries are what they were."""
    server = Server(outage(10, 140), Retry(5, patience=120), workers=1, latency=1.0)
    server.run(300)
    assert len(server.done) + len(server.failed) == 300
    assert max(server.failed.values()) < 142
    assert len(server.failed) <= 12


def test_what_a_call_tells_of_an_outage_that_is_over_closes_nothing() -> None:
    """A connection that took a minute to fail."""
    ticker = Ticker()
    schedule = Schedule(Retry(3, wait=1), now=ticker)
    for number in range(10):
        schedule.add(Attempt([Unit(number, number)]))
    slow, quick = taken_by(schedule, 3), taken_by(schedule, 3)
    for call in quick:
        schedule.again(call, BUSY)
    ticker.tick(schedule.wait() or 0)
    (probe,) = taken_by(schedule, 1)
    ticker.tick(1)
    schedule.answered(probe)
    for call in slow:
        assert schedule.again(call, BUSY)
    assert (schedule.held_since, slow[0].made) == (None, 0)


def test_those_who_share_a_quota_are_held_together() -> None:
    """Three refusals of one pass hold the other; its probe opens the gate for both; a third pass goes on."""
    rate = Rate(1000, per=1)
    ticker, (one, other, stranger) = schedules(rate, rate, Rate(1000, per=1), retry=Retry(9, wait=1))
    taken_by(other, 1)
    ticker.tick(10)
    for call in taken_by(one, 3):
        one.again(call, BUSY)
    assert other.take() is None
    taken_by(stranger, 1)
    ticker.tick(other.wait() or 0)
    (probe,) = taken_by(other, 1)
    assert (one.take(), other.take()) == (None, None), "one call asks"
    assert 0 < (one.wait() or 0) < 1, "who is not told looks again"
    other.answered(probe)
    taken_by(one, 1)


@pytest.mark.parametrize("way", ["lost", "close", "keep"])
def test_a_probe_that_has_no_answer_keeps_nobody_waiting(way: str) -> None:
    """Its worker died, its pass ended, or another pass makes the call."""
    rate = Rate(1000, per=1)
    ticker, (one, other) = schedules(rate, rate, retry=Retry(9, wait=1))
    taken_by(other, 1)
    ticker.tick(10)
    for call in taken_by(one, 3):
        one.again(call, BUSY)
    ticker.tick(10)
    (probe,) = taken_by(one, 1)
    assert other.take() is None
    ways: dict[str, Any] = {"lost": lambda: one.lost(probe), "close": one.close, "keep": lambda: one.keep(probe, [])}
    ways[way]()
    taken_by(other, 1)


def test_a_pass_that_begins_when_nobody_shares_the_quota_begins_anew() -> None:
    """An interrupted run, and the same line again tomorrow: the patience is not over."""
    rate = Rate(1000, per=1)
    ticker, (one,) = schedules(rate, retry=Retry(9, wait=1))
    for number in range(3):
        one.again(Attempt([Unit(number, number)], began=ticker()), BUSY)
    assert one.held_since is not None
    one.close()
    assert Schedule(Retry(), [rate], now=ticker).held_since is None


def test_a_pause_is_told_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    """Or a bar that stands still would be a riddle."""
    with caplog.at_level("INFO", "checkpoint"):
        Server(lambda now, item: BUSY if 10 <= now < 20 or 50 <= now < 60 else True, Retry(2), workers=4).run(900)
    said = [(record.levelname, record.getMessage().partition(":")[0]) for record in caplog.records]
    assert said == [
        ("WARNING", "calls are paused"), ("INFO", "calls go on"), ("INFO", "calls are paused"), ("INFO", "calls go on"),
    ]  # fmt: skip
    assert "HTTP 503" in caplog.text


def waits_by_hand(refusals: dict[int, list[bool]], workers: int, latency: float) -> float:
    """How long it takes where each thread waits for itself: a second for each refusal."""
    free = [0.0] * workers
    for told in refusals.values():
        thread = min(range(workers), key=free.__getitem__)
        free[thread] += sum(latency + (1.0 if refused else 0.0) for refused in told)
    return max(free)


def test_five_in_a_hundred_that_are_told_to_wait_cost_little_more_than_their_own_waits() -> None:
    """Sixteen threads, Retry-After: 1; measured against each that waits for itself, over many runs."""
    ratios = []
    for seed in range(12):
        rnd = random.Random(seed)
        refusals: dict[int, list[bool]] = {n: [] for n in range(600)}

        def answer(now: float, item: int, rnd: Any = rnd, refusals: Any = refusals) -> Again | bool:
            refusals[item].append(rnd.random() < 0.05)
            return Again(1.0, "HTTP 429") if refusals[item][-1] else True

        server = Server(answer, Retry(5), workers=16, latency=0.2)
        server.run(600)
        assert len(server.done) == 600
        ratios.append(max(server.done.values()) / waits_by_hand(refusals, 16, 0.2))
    assert sorted(ratios)[6] <= 1.3, ratios
    assert max(ratios) <= 1.6, ratios


@pytest.mark.parametrize("limited", [True, False], ids=["rate=", "no rate="])
def test_a_quota_of_the_server_is_used_up_and_seldom_exceeded(limited: bool) -> None:
    """A token bucket of 600 a minute: with `rate=` set to it 2 % of calls at most are refused, and no time is lost.

    Without it the pass takes turns with the server, and no item fails all the same.
    """
    tokens, seen, refused = 10.0, 0.0, 0

    def answer(now: float, item: int) -> Again | bool:
        nonlocal tokens, seen, refused
        tokens, seen = min(10.0, tokens + (now - seen) * 10.0), now
        if tokens < 1 - 1e-9:
            refused += 1
            return Again(1.0, "HTTP 429")
        tokens -= 1
        return True

    server = Server(answer, Retry(5), *([Rate(600)] if limited else []), workers=16, latency=0.25)
    server.run(3000)
    assert (len(server.done), server.failed) == (3000, {})
    if limited:
        assert refused <= 0.02 * len(server.calls)
        assert max(server.done.values()) <= 1.1 * 300
    else:
        assert max(server.done.values()) <= 2 * 300


# --- in passes -------------------------------------------------------------------------------------------------------


class Refused(Exception):
    """As clients of an API raise it."""

    def __init__(self, status: int, **body: Any) -> None:
        super().__init__(f"{status}: no")
        self.status_code, self.body = status, body


def mapped(call: Any, kind: str, items: Any, *, workers: int, options: dict[str, Any]) -> Any:
    """Map a plain function, on threads or in this one, or the same as a coroutine function."""
    how: Any = {"workers": workers, "progress": False, "return_exceptions": True}
    if kind == "tasks":

        async def acall(n: int) -> int:
            return call(n)  # type: ignore[no-any-return]

        f: Any = checkpointed("calls", **options)(acall)

        async def run() -> Any:
            return await f.map(items, **how)

        return asyncio.run(run())
    return checkpointed("calls", **options)(call).map(items, **how)


KINDS = [("threads", 1), ("threads", 8), ("tasks", 1), ("tasks", 8)]


@pytest.mark.slow
@pytest.mark.promise("an outage of the provider")
@pytest.mark.parametrize(("kind", "workers"), KINDS)
@pytest.mark.parametrize("error", [Refused(503), ConnectionRefusedError("no")], ids=["503", "refused"])
def test_an_outage_of_the_provider(kind: str, workers: int, error: Exception) -> None:
    """Some calls are refused, by a server that counts them; each item has three attempts, and none fails."""
    calls = 0

    def call(n: int) -> int:
        nonlocal calls
        calls += 1
        if 50 < calls <= 50 + workers + 4:
            raise error
        return n

    got = mapped(call, kind, range(200), workers=workers, options={"retry": Retry(3, wait=0.02)})
    assert (got, dict(got.errors)) == (list(range(200)), {})


def test_who_looks_on_sees_that_calls_are_paused() -> None:
    """`watch` and `show` say so, as the bar does; and that they go on."""
    is_back, seen = threading.Event(), []

    @checkpointed("calls", retry=Retry(3, wait=0.05))
    def call(n: int) -> int:
        if not is_back.is_set():
            raise ConnectionRefusedError("no")
        if n == 19:
            seen.append(look())
        return n

    def look() -> Survey:
        with Observer("calls") as observer:
            return observer.look()

    with ThreadPoolExecutor(1) as pool:
        done, found = pool.submit(call.map, range(20), workers=2, progress=False), None
        while not (found and found.paused) and not done.done():
            with suppress(CheckpointError):  # it is not there yet
                found = look()
        is_back.set()
        assert done.result() == list(range(20))
    assert found is not None
    assert found.pace() == found.paused
    assert re.search(r"for .*, paused \d.* s, since the server refuses calls", found.writing())
    assert found.to_json()["writer"]["paused"]
    assert (seen[0].paused, list(seen[0].writer or {})) == ("", ["pid", "host", "since"])


STEPS_JOB = """
import asyncio, json, os, sys, threading, urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from checkpoint import Retry, checkpointed

RETRY = Retry(3, wait=0.02)

def asked(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{os.environ['PORT']}/{path}") as answer:
        return answer.read().decode()

@checkpointed("drafts", retry=RETRY)
def draft(n):
    return asked(f"draft-{n}")

@checkpointed("judged", retry=RETRY)
def judge(text):
    return asked(f"judge-{text}")

@checkpointed("polished", retry=RETRY)
async def polish(text):
    return await asyncio.to_thread(asked, f"polish-{text}")

@checkpointed("texts")
def write(n):
    return judge.one(draft.one(n))

@checkpointed("texts")
async def awrite(n):
    return await polish.one(await polish.one(n))

if __name__ == "__main__":
    how, begin, end, poison = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
    answered, refused, lock = Counter(), Counter(), threading.Lock()

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.lstrip("/")
            with lock:
                is_out = begin < answered.total() + refused.total() <= end or path == poison
                (refused if is_out else answered)[path] += 1
            self.send_response(503 if is_out else 200)
            self.end_headers()
            self.wfile.write(path.encode())

        def log_message(self, *_): ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ["PORT"] = str(server.server_port)
    given = {"return_exceptions": True, "progress": False}
    if how == "tasks":
        got = asyncio.run(awrite.map(range(60), workers=8, **given))
    else:
        ways = {"serial": {}, "threads": {"workers": 8}, "processes": {"workers": 2, "executor": "processes"}}
        got = write.map(range(60), **ways[how], **given)
    print(json.dumps([list(got.errors), refused.total(), max(answered.values()), refused[poison]]))
"""
WAYS = ["serial", "threads", "tasks", "processes"]


def chained(tmp_path: Path, how: str, begin: int, end: int, poison: str = "-") -> Any:
    """[keys that failed, refusals, how often one request was answered, how often the poison was refused]."""
    (tmp_path / "job.py").write_text(STEPS_JOB)
    job = [sys.executable, "job.py", how, str(begin), str(end), poison]
    ended = subprocess.run(job, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


@pytest.mark.promise("an outage of the provider")
@pytest.mark.parametrize("how", WAYS)
def test_an_outage_burns_no_item_that_pays_by_steps(how: str, tmp_path: Path) -> None:
    """A step can draw no other item, so that its pass does; each request is answered once, and no item fails."""
    failed, refused, most, _ = chained(tmp_path, how, 30, 55)
    assert (failed, refused, most) == ([], 25, 1)


@pytest.mark.parametrize("how", WAYS)
def test_a_step_that_the_server_refuses_by_itself_fails_its_item(how: str, tmp_path: Path) -> None:
    """Where others are answered it is the item's own: after its retries it is called three times more at most."""
    poison = "polish-7" if how == "tasks" else "draft-7"
    failed, _, most, calls = chained(tmp_path, how, 0, 0, poison)
    assert (failed, most) == ([7], 1)
    assert 3 <= calls <= 6


DENIED = [
    (Refused(401), "HTTP 401"),
    (Refused(402), "HTTP 402"),
    (Refused(403), "HTTP 403"),
    (Refused(429, code="insufficient_quota"), "insufficient quota"),
    (Refused(429, error={"type": "insufficient_quota"}), "insufficient quota"),
]


@pytest.mark.promise("a dead key")
@pytest.mark.parametrize(
    ("kind", "workers", "error", "why", "retry"),
    [(*kind, *DENIED[0], retry) for kind in KINDS for retry in (None, 3)]
    + [("threads", 4, *denied, 3) for denied in DENIED[1:]],
)
def test_a_dead_key(kind: str, workers: int, error: Exception, why: str, retry: int | None) -> None:
    """Ten items in a row end the pass; each is called once, and the error says why; with and without retries."""
    calls = 0

    def call(n: int) -> int:
        nonlocal calls
        calls += 1
        if calls > 100:
            raise error
        return n

    with pytest.raises(TooManyErrors, match=rf"\d\d items in a row were denied .{why}"):
        mapped(call, kind, range(1000), workers=workers, options={"retry": retry})
    assert calls <= 100 + 10 * workers


def test_denials_among_others_and_a_limit_of_the_user_s_end_nothing() -> None:
    """Pages that a few may not read; and `max_errors` is the limit in place of this one."""

    def call(n: int) -> int:
        if n % 10:
            raise Refused(403)
        return n

    got = mapped(call, "threads", range(60), workers=1, options={})
    assert len(got.errors) == 54
    got = checkpointed("all")(lambda n: call(1)).map(range(60), progress=False, return_exceptions=True, max_errors=60)
    assert len(got.errors) == 60


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_the_bar_says_that_calls_are_paused(
    kind: str, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And for how long; when they go on it says so no longer."""
    told: list[float | None] = []
    monkeypatch.setattr(Tally, "tell_paused", lambda self, seconds: told.append(seconds))
    calls = 0

    def call(n: int) -> int:
        nonlocal calls
        calls += 1
        if 20 < calls <= 20 + workers + 4:
            raise Refused(503)
        return n

    got = mapped(call, kind, range(100), workers=workers, options={"retry": Retry(3, wait=0.02)})
    assert not got.errors
    assert told[-1] is None
    assert [seconds for seconds in told if seconds is not None]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_paused_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind it stands how many failed, and for how long no call was made."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    bar = Bar(10, 0, "calls", show=True)
    bar.update(2, 1)
    bar.pause(3.2)
    assert "1 failed, paused 3 s" in terminal.getvalue().rpartition("\r")[2]
    bar.pause(None)
    assert "paused" not in terminal.getvalue().rpartition("\r")[2]
    bar.close()


@pytest.mark.parametrize("workers", [1, 4])
def test_an_interrupt_ends_a_pause(workers: int) -> None:
    """Nobody waits for the server first."""
    calls = 0

    def call(n: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 13:
            threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
        if calls > 10:
            raise Refused(503)
        return n

    began = time.monotonic()
    f = checkpointed("calls", retry=Retry(3, wait=300, max_wait=300))(call)
    with pytest.raises(KeyboardInterrupt):
        f.map(range(100), workers=workers, progress=False)
    assert time.monotonic() - began < 60, "the first probe would come after five minutes"
    assert len(f.results) == 10


@pytest.mark.parametrize("workers", [1, 4])
def test_many_that_wait_for_a_retry_after_get_their_turn(workers: int) -> None:
    """More than may wait, a refusal the last answer: nothing more is drawn, and those that are due are called."""
    refused: set[int] = set()

    def call(n: int) -> int:
        if n % 6 == 0 and n not in refused:
            refused.add(n)
            error = Refused(429)
            error.retry_after = 0.05  # type: ignore[attr-defined]
            raise error
        return n

    got = mapped(call, "threads", range(240), workers=workers, options={"retry": 2})
    assert got == list(range(240))
