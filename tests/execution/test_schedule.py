"""Laws of the schedule: what may be called when. Nothing here waits; time is a clock that tests tick."""

from __future__ import annotations

import heapq
import logging
import math
import threading
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from conftest import Ticker
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import InvalidOption, Rate, Retry
from checkpoint.execution.policies import Again
from checkpoint.execution.scheduler import MOST_LATER, MOST_WAITS, Attempt, BadCost, Schedule
from checkpoint.outcomes import Unit

FAILED = Again()
"""An exception that may be tried again, and does not say when."""


def attempt(*items: Any, alone: bool = False, began: float = 0.0) -> Attempt:
    """A call on one item, or a batch of them."""
    made = Attempt([Unit(item, item) for item in items], alone=alone)
    made.began = began
    return made


def items_of(taken: Attempt | None) -> Any:
    """What the call works on: an item, or a batch's items."""
    if taken is None:
        return None
    items = [unit.item for unit in taken.units]
    return items[0] if len(items) == 1 else items


class Pass:
    """A driver: it takes what may be taken, and ticks the clock by `wait` where nothing may."""

    def __init__(self, retry: Retry | None = None, *rates: Rate, start: float = 1000.0) -> None:
        self.clock = Ticker()
        self.clock.time = start
        self.schedule = Schedule(retry, rates, now=self.clock)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return self.clock.time - 1000.0

    def add(self, *items: Any) -> None:
        for item in items:
            self.schedule.add(attempt(item))

    def begin(self) -> Attempt:
        """The next call, which must be there."""
        taken = self.schedule.take()
        assert taken is not None
        return taken

    def take(self) -> Any:
        """The item of the next call, or None."""
        return items_of(self.schedule.take())

    def taken(self) -> list[Any]:
        """All that may be called now."""
        return list(iter(self.take, None))

    def tick(self) -> None:
        """Wait as long as the schedule says."""
        wait = self.schedule.wait()
        assert wait is not None
        self.clock.tick(wait)

    def run(self, call: Callable[[Any], Again | bool], most: int = 10_000) -> list[tuple[float, Any]]:
        """Call all, one after the other: when, and what. True is a success, False a failure for good."""
        calls: list[tuple[float, Any]] = []
        for _ in range(most):
            wait = self.schedule.wait()
            if wait is None:
                return calls
            taken = self.schedule.take()
            if taken is None:
                self.tick()
                continue
            calls.append((self.now, items_of(taken)))
            answer = call(items_of(taken))
            if answer is True:
                self.schedule.answered(taken)
            else:
                self.schedule.again(taken, answer or None)
        raise AssertionError("it does not end")


LIMITED = "HTTP 429"


def always(retry_after: float) -> Callable[[Any], Again]:
    """A server that never has time."""
    return lambda item: Again(retry_after, LIMITED)


def by_tens(made: int) -> float:
    """A wait without jitter."""
    return 10.0 * made


# --- order -----------------------------------------------------------------------------------------------------------


def test_calls_are_made_in_the_order_in_which_they_were_added() -> None:
    """Without retries and rates all may start at once."""
    run = Pass()
    run.add(1, 2, 3)
    assert (run.schedule.ready, run.schedule.wait()) == (3, 0.0)
    assert run.taken() == [1, 2, 3]
    assert (run.schedule.ready, run.schedule.wait()) == (0, None)


def test_what_was_called_before_goes_before_what_was_not() -> None:
    """The items of a batch that failed, and what a dead worker was at."""
    run = Pass()
    run.add(1, 2)
    for item in ("b", "a"):
        run.schedule.at_once(attempt(item, alone=True))
    assert run.taken() == ["a", "b", 1, 2]


def test_one_that_travels_alone_is_first_in_its_task_or_not_in_it() -> None:
    """It is taken for the next one; and nothing overtakes it."""
    run = Pass()
    run.schedule.add(attempt("alone", alone=True))
    run.add("next")
    assert run.schedule.take(first=False) is None
    assert run.schedule.wait() == 0.0, "it waits for nothing but its own task"
    assert items_of(run.schedule.take(first=True)) == "alone"
    assert items_of(run.schedule.take(first=False)) == "next"


def test_retries_come_when_they_are_due_in_that_order_and_before_what_is_new() -> None:
    """However they were put; those that are due at once in the order in which they failed."""
    waits = {"a": 30.0, "b": 10.0, "c": 20.0, "d": 10.0}
    run = Pass(Retry(wait=lambda made: waits[item]))
    run.add(*waits)
    failed = [run.begin() for _ in waits]
    run.add("new", "newer")
    for one in failed:
        item = items_of(one)
        assert run.schedule.again(one, FAILED)
    assert run.take() == "new"
    run.clock.tick(9.999)
    assert run.schedule.wait() == 0.0, "another new one"
    run.clock.tick(0.001)
    assert run.taken() == ["b", "d", "newer"]
    for want in ("c", "a"):
        assert run.schedule.wait() == 10.0
        run.tick()
        assert run.taken() == [want]
    assert run.schedule.wait() is None


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 20)), max_size=30))
def test_a_heap_of_retries_is_a_heap(steps: list[tuple[int, int]]) -> None:
    """Against a model: retries of any waits, ticks of any length."""
    waits: list[int] = []
    run = Pass(Retry(2, wait=lambda made: waits[-1]))
    model: list[tuple[float, int]] = []
    for number, (wait, ticks) in enumerate(steps):
        waits.append(wait)
        assert run.schedule.again(attempt(number), FAILED)
        heapq.heappush(model, (run.now + wait, number))
        run.clock.tick(ticks)
        due = []
        while model and model[0][0] <= run.now:
            due.append(heapq.heappop(model)[1])
        assert run.taken() == due
        assert run.schedule.wait() == (model[0][0] - run.now if model else None)


def test_there_is_room_while_little_is_ready_and_little_waits() -> None:
    """What is drawn ahead is bounded, whatever fails."""
    run = Pass(Retry(wait=lambda made: 60.0))
    assert run.schedule.room(1) > 0
    run.add(1)
    assert (run.schedule.room(1), run.schedule.room(2) > 0) == (0, True)
    assert run.take() == 1
    for number in range(MOST_LATER + 1):
        assert run.schedule.room(1) > 0
        run.schedule.again(attempt(number), FAILED)
    assert (run.schedule.room(1), run.schedule.room(2) > 0) == (0, True)


def test_what_is_due_is_ready() -> None:
    """Who waits until a whole chunk is ready waits for retries too."""
    run = Pass(Retry(wait=by_tens))
    for item in "abc":
        run.schedule.again(attempt(item), FAILED)
    assert (run.schedule.ready, run.schedule.wait(3)) == (0, 10.0)
    run.clock.tick(10)
    assert (run.schedule.ready, run.schedule.wait(3)) == (3, 0.0)


def test_who_takes_no_fewer_than_so_many_is_not_sent_round_in_circles() -> None:
    """Until enough are ready there is nothing to look for but retries that become due."""
    run = Pass(Retry(wait=by_tens))
    run.add(1, 2)
    assert (run.schedule.wait(1), run.schedule.wait(2), run.schedule.wait(3)) == (0.0, 0.0, None)
    run.schedule.again(attempt(3), FAILED)
    assert (run.schedule.wait(2), run.schedule.wait(3)) == (0.0, 10.0)
    run.tick()
    assert run.schedule.wait(3) == 10.0, "a driver asks with what it takes"
    run.clock.tick(10)
    assert run.schedule.wait(3) == 0.0


# --- attempts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2, 3, 7])
def test_so_many_attempts_are_made_and_no_more(attempts: int) -> None:
    """The first included; each after its own wait."""
    run = Pass(Retry(attempts, wait=by_tens))
    run.add("x")
    want = [sum(10.0 * made for made in range(1, number + 1)) for number in range(attempts)]
    assert run.run(lambda item: FAILED) == [(when, "x") for when in want]


@pytest.mark.parametrize(
    ("retry", "why", "reason"),
    [(None, FAILED, "no policy"), (None, Again(1.0, LIMITED), "no policy"), (Retry(5), None, "the policy says no")],
)
def test_what_is_not_tried_again_has_had_its_attempt(retry: Retry | None, why: Again | None, reason: str) -> None:
    """It is counted, and scheduled no more."""
    run = Pass(retry)
    run.add("x")
    one = run.begin()
    assert not run.schedule.again(one, why), reason
    assert (one.made, run.schedule.wait()) == (1, None)


def test_attempts_are_counted_for_each_call() -> None:
    """One that fails takes nothing from another."""
    run = Pass(Retry(3, wait=0))
    run.add(*range(5))
    calls = [item for _, item in run.run(lambda item: FAILED if item % 2 else True)]
    assert {item: calls.count(item) for item in range(5)} == {0: 1, 1: 3, 2: 1, 3: 3, 4: 1}


@pytest.mark.parametrize(
    "wait", [lambda made: 1 / 0, lambda made: math.nan, lambda made: [1][made]], ids=["raises", "NaN", "list"]
)
def test_a_wait_that_cannot_be_told_ends_the_call_and_not_the_pass(
    wait: Callable[[int], float], caplog: pytest.LogCaptureFixture
) -> None:
    """The user's function is at fault, and what was paid for is not: the call has failed, and a message says why."""
    run = Pass(Retry(3, wait=wait))
    one = attempt("x")
    with caplog.at_level(logging.WARNING, "checkpoint"):
        assert not run.schedule.again(one, FAILED)
    assert "Retry's wait failed" in caplog.text
    assert (one.made, run.schedule.wait()) == (1, None)


# --- rates -----------------------------------------------------------------------------------------------------------


def test_calls_start_evenly_and_no_more_than_a_rate_permits() -> None:
    """Each as its share of the span is over, and not before."""
    run = Pass(None, Rate(2, per=10))
    run.add(*range(6))
    assert run.taken() == [0]
    run.clock.tick(4.75)
    assert (run.take(), run.schedule.wait()) == (None, 0.25)
    run.tick()
    assert run.taken() == [1]
    run.tick()
    assert (run.now, run.taken()) == (10.0, [2])


def test_retries_take_permits_too() -> None:
    """A call is a call to the server."""
    run = Pass(Retry(3, wait=0), Rate(1, per=60))
    run.add("x")
    assert [when for when, _ in run.run(lambda item: FAILED)] == [0.0, 60.0, 120.0]


def test_all_of_several_rates_must_permit() -> None:
    """Calls a second, and tokens a minute; what one refuses takes nothing of the other."""
    run = Pass(None, Rate(2, per=1), Rate(120, per=60, cost=lambda item: item))
    run.add(40, 1, 1, 1)
    assert run.taken() == [40]
    run.clock.tick(1)
    assert (run.take(), run.schedule.wait()) == (None, 18.5)
    run.tick()
    assert (run.now, run.taken()) == (19.5, [1])
    run.clock.tick(0.5)
    assert run.taken() == [1], "two a second, though the tokens refused it before"


def test_a_batch_costs_the_sum_of_its_items_and_is_one_call() -> None:
    """Where no cost is given it counts as one."""
    run = Pass(None, Rate(60, per=60), Rate(60, per=60, cost=len))
    for words in (["aaa", "bbb"], ["cccc"], ["d"]):
        run.schedule.add(attempt(*words))
    assert run.taken() == [["aaa", "bbb"]]
    assert run.schedule.wait() == 6.0, "one a second"
    run.tick()
    assert run.taken() == ["cccc"]


def test_a_cost_is_asked_for_once() -> None:
    """However often the call is tried: counting tokens takes time."""
    asked = []

    def cost(item: Any) -> float:
        asked.append(item)
        return 1.0

    run = Pass(Retry(3, wait=0), Rate(1, per=1, cost=cost))
    run.add("x", "y")
    assert len(run.run(lambda item: FAILED)) == 6
    assert asked == ["x", "y"]


def test_a_permit_is_taken_when_the_cost_is_known() -> None:
    """A function that counts tokens takes time, and the call starts after it."""
    run = Pass(None, Rate(1, per=10, cost=lambda item: run.clock.tick(4) or 1.0))  # type: ignore[func-returns-value]
    run.add("x", "y")
    assert (run.take(), run.now) == ("x", 4.0)
    assert (run.take(), run.now, run.schedule.wait()) == (None, 8.0, 6.0)


@pytest.mark.parametrize(
    "cost",
    [0, 1, 0.5, True, np.int64(2), np.float32(0.25), np.float64(2), Fraction(1, 3), 5, -0.0],
    ids=repr,
)
def test_a_cost_is_any_real_number(cost: Any) -> None:
    """Of 0 or more: numbers of numpy too."""
    run = Pass(None, Rate(5, per=1, cost=lambda item: cost))
    run.add("x")
    assert run.taken() == ["x"]


BAD_COSTS = [
    # cost, the error, what it says, reason
    (lambda item: -1, InvalidOption, "is -1; give a number", "negative"),
    (lambda item: math.nan, InvalidOption, "is nan", "NaN"),
    (lambda item: None, InvalidOption, "is None", "nothing"),
    (lambda item: "12", InvalidOption, "is '12'", "text"),
    (lambda item: Decimal(1), InvalidOption, "is Decimal", "no real number to Python"),
    (lambda item: 1j, InvalidOption, "is 1j", "complex"),
    (lambda item: [1], InvalidOption, r"is \[1\]", "a list"),
    (lambda item: 5.01, InvalidOption, r"5\.01, over the rate's limit of 5 in 2 s: it could never start", "too much"),
    (lambda item: math.inf, InvalidOption, "could never start", "much too much"),
    (lambda item: 10**400, OverflowError, "", "more than a float holds"),
    (lambda item: item["tokens"], TypeError, "", "it raises"),
    (lambda item: 1 / 0, ZeroDivisionError, "division by zero", "it raises"),
]


@pytest.mark.parametrize(("cost", "kind", "text", "reason"), BAD_COSTS, ids=[reason for *_, reason in BAD_COSTS])
def test_a_call_whose_cost_cannot_be_told_is_named_and_scheduled_no_more(
    cost: Callable[[Any], Any], kind: type[Exception], text: str, reason: str
) -> None:
    """It would never start, or for nothing; the others go on, and it took no permit."""
    run = Pass(None, Rate(5, per=2, cost=lambda item: cost(item) if item == "bad" else 2.5))
    run.add("a", "bad", "b", "c")
    assert run.take() == "a"
    run.clock.tick(1)
    with pytest.raises(BadCost) as bad:
        run.schedule.take()
    assert items_of(bad.value.attempt) == "bad", reason
    assert type(bad.value.error) is kind
    assert bad.match(text)
    assert run.taken() == ["b"]
    assert run.schedule.wait() == 1.0


def test_a_batch_that_costs_too_much_is_named_with_the_sum() -> None:
    """Its items may be called one by one."""
    run = Pass(None, Rate(5, per=60, cost=lambda item: 3))
    run.schedule.add(attempt("a", "b"))
    with pytest.raises(BadCost, match="the cost of the call is 6, over"):
        run.schedule.take()


def test_what_costs_the_whole_limit_may_start() -> None:
    """And in fractions that add up to the limit, which floats do not quite."""
    run = Pass(None, Rate(0.3, per=1, cost=lambda item: item))
    run.add(0.3, 0.1, 0.1, 0.1)
    assert run.taken() == [0.3]
    run.clock.tick(9)
    assert run.taken() == [0.1, 0.1, 0.1]


QUARTERS = st.integers(0, 60).map(lambda n: n / 4)
STEPS = st.lists(st.tuples(QUARTERS, st.integers(1, 5), st.integers(0, 4)), max_size=40)


def most_in_a_window(starts: list[tuple[float, float]], per: float) -> float:
    """The most that started in any span of `per` seconds."""
    return max((sum(cost for when, cost in starts if begin <= when < begin + per) for begin, _ in starts), default=0)


@given(STEPS, st.integers(5, 12), st.integers(1, 40).map(lambda n: n / 4))
def test_no_span_holds_more_than_the_limit(steps: list[tuple[float, int, int]], limit: int, per: float) -> None:
    """Whatever is added when, whatever it costs, whenever one looks."""
    run = Pass(None, Rate(limit, per=per, cost=lambda item: item), Rate(3, per=per / 2))
    starts: list[tuple[float, float]] = []
    for ticks, cost, count in steps:
        run.clock.tick(ticks)
        run.add(*[cost] * count)
        starts += [(run.now, cost) for cost in run.taken()]
    starts += run.run(lambda item: True)
    assert len(starts) == sum(count for *_, count in steps)
    dear = max([cost for _, cost in starts if cost > limit / per], default=0)
    assert most_in_a_window(starts, per) <= limit + dear
    assert most_in_a_window([(when, 1) for when, _ in starts], per / 2) <= 3


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 1), st.integers(0, 4)), max_size=20),
    st.floats(0.001, 1000),
    st.floats(0.001, 100),
    st.floats(0, 1e7),
)
def test_a_rate_holds_and_nobody_waits_for_ever_with_any_floats(
    steps: list[tuple[float, float, int]], limit: float, per: float, start: float
) -> None:
    """Sums of fractions are not exact, and clocks count from anywhere: who waits as told gets on."""
    run = Pass(None, Rate(limit, per=per, cost=lambda item: item), start=start)
    starts: list[tuple[float, float]] = []
    for ticks, part, count in steps:
        run.clock.tick(ticks)
        run.add(*[part * limit] * count)
        while run.schedule.ready:
            starts += [(run.clock.time, cost) for cost in run.taken()]
            wait = run.schedule.wait()
            assert wait is None or wait > 0, "nothing may start, and there is nothing to wait for"
            run.clock.tick(wait or 0.0)
    assert len(starts) == sum(count for *_, count in steps)
    max_cost = max([cost for _, cost in starts if cost > limit / per], default=0.0)
    assert most_in_a_window(starts, per * (1 - 1e-6) - 1e-6) <= (limit + max_cost) * (1 + 1e-6)


# --- told to come again later (what holds others is in test_quota.py) -------------------------------------------------


@pytest.mark.parametrize("trouble", [LIMITED, ""])
def test_a_retry_after_holds_its_own_item_and_costs_no_attempt(trouble: str) -> None:
    """Whatever the status."""
    run = Pass(Retry(2))
    run.add("a", "b")
    one = run.begin()
    assert run.schedule.again(one, Again(30.0, trouble))
    assert (one.made, run.taken(), run.schedule.wait()) == (0, ["b"], 30.0)


def test_a_retry_after_and_permits_are_waited_for_together() -> None:
    """The longer of both."""
    for after in (10.0, 90.0):
        run = Pass(Retry(), Rate(1, per=60))
        run.add("a")
        run.schedule.again(run.begin(), Again(after, LIMITED))
        while run.schedule.ready == 0 or run.take() is None:
            run.tick()
        assert run.now == max(after, 60.0)


def test_one_item_alone_is_waited_for_until_the_patience_is_over() -> None:
    """Nobody else is answered: it may be the server. Then attempts count, and it fails."""
    run = Pass(Retry(2, wait=0, patience=100))
    run.add("x")
    calls = run.run(always(5.0))
    assert [when for when, _ in calls] == [5.0 * number for number in range(22)]


@pytest.mark.parametrize("trouble", [LIMITED, ""])
def test_not_yet_is_waited_for_as_long_as_the_patience_that_is_given(trouble: str) -> None:
    """A provider's batch that is ready after a day: no wait costs an attempt, and others are called meanwhile."""
    run = Pass(Retry(1, patience=86_400))
    run.add("x")
    for minute in range(1440):
        assert run.now == 60.0 * minute
        assert run.schedule.again(run.begin(), Again(60.0, trouble))
        run.schedule.answered(attempt("another"))
        run.add("y")
        assert run.take() == "y"
        run.tick()
    assert not run.schedule.again(run.begin(), Again(60.0, trouble))


@pytest.mark.parametrize(("after", "trouble"), [(0.5, LIMITED), (0.0, LIMITED), (5.0, "")])
def test_ten_brief_waits_or_such_for_no_trouble_of_the_server_are_enough(after: float, trouble: str) -> None:
    """Or an item that says so for ever would be called for a quarter of an hour without a pause."""
    run = Pass(Retry(1))
    run.add("x")
    calls = run.run(lambda item: Again(after, trouble))
    assert len(calls) == MOST_WAITS + 1


def test_an_item_that_is_always_refused_does_not_keep_the_others_waiting_for_ever() -> None:
    """They are answered between its waits: it is the item, such as a prompt over the limit of tokens."""
    run = Pass(Retry(1))
    run.add("x")
    waits = 0
    while run.schedule.again(run.begin(), Again(5.0, LIMITED)):
        waits += 1
        run.schedule.answered(attempt("another"))
        run.tick()
    assert waits == MOST_WAITS


def test_a_wait_that_counts_pauses_nothing_else() -> None:
    """Its call has failed as any other; others are tried."""
    run = Pass(Retry(5))
    run.add("x")
    for _ in range(MOST_WAITS):
        assert run.schedule.again(run.begin(), Again(0.5, LIMITED))
        run.tick()
    call = run.begin()
    run.add("y")
    assert run.schedule.again(call, Again(5.0, LIMITED))
    assert run.take() == "y"


@pytest.mark.slow
@pytest.mark.parametrize(("after", "calls"), [(900.0, 2), (901.0, 1), (86400.0, 1), (1e300, 1)])
def test_a_retry_after_beyond_all_patience_fails_at_once(after: float, calls: int) -> None:
    """Whatever attempts are left: nobody waits until tomorrow."""
    run = Pass(Retry(2))
    run.add("x")
    answers: Iterator[Again | bool] = iter([Again(after, LIMITED), True])
    assert len(run.run(lambda item: next(answers))) == calls
    run.add("y")
    assert run.take() == "y", "and nothing is paused"


def test_a_wait_that_counts_is_not_shorter_than_what_was_told() -> None:
    """The longer of the Retry-After and the policy's own wait."""
    run = Pass(Retry(3, wait=lambda made: 20.0))
    run.add("x")
    for _ in range(MOST_WAITS):
        run.schedule.again(run.begin(), Again(0.0))
    assert run.now == 0.0
    call = run.begin()
    assert run.schedule.again(call, Again(50.0))
    assert (call.made, run.schedule.wait()) == (1, 50.0)
    run.tick()
    assert run.schedule.again(run.begin(), Again(5.0))
    assert (call.made, run.schedule.wait()) == (2, 20.0)


# --- waiting as told -------------------------------------------------------------------------------------------------

PAUSES = [Again(0.1, LIMITED), Again(61.0, LIMITED), Again(1e4, LIMITED), Again(None, "HTTP 503")]
ANSWERS = st.lists(st.sampled_from([True, False, FAILED, Again(0.0), Again(3.7), *PAUSES]), max_size=60)


@given(
    ANSWERS,
    st.integers(1, 8),
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(1, 5), st.floats(0.01, 100)), max_size=2),
    st.floats(0, 1e7),
)
def test_who_waits_as_told_gets_on(
    answers: list[Any], attempts: int, count: int, limits: list[tuple[int, float]], start: float
) -> None:
    """After a wait `take` gives something, or `wait` says another time that is not 0; and the pass comes to its end."""
    run = Pass(Retry(attempts), *[Rate(limit, per=per) for limit, per in limits], start=start)
    run.add(*range(count))
    told, made, idle = iter(answers), 0, 0
    while (wait := run.schedule.wait()) is not None:
        run.clock.tick(wait)
        taken = run.schedule.take()
        if taken is None:
            again = run.schedule.wait()
            assert again is not None, "what waits is forgotten"
            assert again > 0, "a driver would spin"
            idle += 1
            assert idle < 20, "a driver would wait for nothing"
            continue
        made, idle = made + 1, 0
        answer = next(told, True)
        if answer is True:
            run.schedule.answered(taken)
        else:
            run.schedule.again(taken, answer or None)
    assert count <= made <= len(answers) + count
    assert run.schedule.ready == 0


@pytest.mark.parametrize("wait", [1e5, 1e12, 1e300])
def test_no_wait_is_longer_than_locks_can_wait(wait: float) -> None:
    """Who waits for very long looks up now and then."""
    run = Pass(Retry(2, wait=lambda made: wait))
    run.schedule.again(attempt("x"), FAILED)
    assert 0 < (run.schedule.wait() or 0) <= min(3600.0, threading.TIMEOUT_MAX)
    run.tick()
    assert run.take() is None
    run = Pass(None, Rate(1, per=wait))
    run.add(1, 2)
    assert run.taken() == [1]
    assert run.schedule.wait() == 3600.0


def test_what_is_not_called_here_uses_no_permit() -> None:
    """Another pass makes the call: the next one may start at once."""
    run = Pass(None, Rate(1, per=60))
    run.add("elsewhere", "here", "later")
    run.schedule.keep(run.begin(), [])
    assert run.taken() == ["here"]
    assert run.schedule.wait() == 60.0
