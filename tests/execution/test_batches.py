"""Laws of batches: by count and by size, halved where they fail, and that is said."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import logging
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import Batch, InvalidOption, Rate, Retry, checkpointed
from checkpoint.execution.call import Call
from checkpoint.execution.judge import Batches
from checkpoint.outcomes import Unit


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


async def later(item: Any) -> int:
    """What cannot tell at once."""
    return 1


def same(batch: list[Any]) -> list[Any]:
    """The values of a batch are its items."""
    return list(batch)


REFUSED = [
    # arguments, what the message says, reason
    ({"items": 0}, "a batch's items is 0; give an int of 1 or more", "none"),
    ({"items": None}, "a batch's items is None", "nothing"),
    ({"items": True}, "a batch's items is True", "a switch"),
    ({"items": 2.5}, "a batch's items is 2.5", "a float"),
    ({"items": 2, "limit": 5}, "limit= and no size=; give both", "nothing says what is counted"),
    ({"items": 2, "size": len}, "size= and no limit=; give both", "nothing says how much"),
    ({"items": 2, "limit": 0, "size": len}, "limit is 0; give a number above 0", "no room"),
    ({"items": 2, "limit": math.inf, "size": len}, "limit is inf", "no limit"),
    ({"items": 2, "limit": "9", "size": len}, "limit is '9'", "text"),
    ({"items": 2, "limit": 5, "size": 3}, "size is 3; give a plain function", "no function"),
    ({"items": 2, "limit": 5, "size": later}, "give a plain function", "a coroutine function"),
]


@pytest.mark.parametrize(("arguments", "message", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_a_wrong_argument_of_batch_is_refused_when_built(arguments: Any, message: str, reason: str) -> None:
    """The message names the argument, shows what was given, and says what to give."""
    with pytest.raises(InvalidOption) as refused:
        Batch(**arguments)
    assert message in str(refused.value), reason


@pytest.mark.parametrize("given_", [0, -1, True, 2.0, "16", [16]])
def test_a_batch_size_of_another_kind_is_refused(given_: Any) -> None:
    """With what to write in its place."""
    with pytest.raises(InvalidOption, match=r"batch_size is .*Batch\(2048"):
        checkpointed("x", batch_size=given_)


def test_a_batch_is_frozen() -> None:
    """What is gathered during a pass is another object."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Batch(3).items = 4  # type: ignore[misc]


def gathered(batch: Batch, items: list[int]) -> list[list[int]]:
    """The items of each call."""
    batches = Batches(Call(list, batch_size=batch))
    attempts = [attempt for item in items for attempt in batches.add(Unit(item, item))]
    attempts += batches.add(None, flush=True)
    return [[unit.item for unit in attempt.units] for attempt in attempts]


@given(st.integers(1, 6), st.integers(1, 30), st.lists(st.integers(0, 40), max_size=40))
def test_batches_keep_the_order_both_limits_and_are_as_large_as_they_may(
    items: int, limit: int, sizes: list[int]
) -> None:
    """One that is larger than the limit goes alone."""
    calls = gathered(Batch(items, limit=limit, size=lambda size: size), sizes)
    assert [size for call in calls for size in call] == sizes
    assert all(len(call) <= items and (sum(call) <= limit or len(call) == 1) for call in calls)
    for call, following in itertools.pairwise(calls):
        assert len(call) == items or sum(call) + following[0] > limit


ENGINES = ["one", "threads", "tasks"]


def embed_all(engine: str, function: Any, items: list[Any], **options: Any) -> Any:
    """Map a function of batches."""
    how: Any = {"progress": False, "return_exceptions": True, "workers": 1 if engine == "one" else 3}
    if engine != "tasks":
        return checkpointed("emb", **options)(function).map(items, **how)

    async def afunction(batch: list[Any]) -> Any:
        return function(batch)

    f: Any = checkpointed("emb", **options)(afunction)

    async def run() -> Any:
        return await f.map(items, **how)

    return asyncio.run(run())


@pytest.mark.parametrize("engine", ENGINES)
def test_a_provider_s_limit_is_kept(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    """Items and tokens a request: none is refused, and nothing is said."""
    asked: list[int] = []

    def embed(texts: list[str]) -> list[int]:
        assert len(texts) <= 16
        if sum(map(len, texts)) > 2000:
            raise ValueError("400: at most 2000 tokens a request")
        asked.append(len(texts))
        return [len(text) for text in texts]

    texts = [f"{n:04}" + "x" * (n * 37 % 700) for n in range(120)]
    with caplog.at_level(logging.WARNING, "checkpoint"):
        got = embed_all(engine, embed, texts, batch_size=Batch(16, limit=2000, size=len))
    assert got == [len(text) for text in texts]
    assert len(asked) < 60
    assert caplog.messages == []


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_that_are_refused_are_halved_and_that_is_said_once(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With how many of them, how many calls it took, and what to give instead."""
    calls: list[int] = []

    def embed(texts: list[str]) -> list[int]:
        calls.append(len(texts))
        if len(texts) > 4:
            raise ValueError("400: too many tokens")
        return [len(text) for text in texts]

    with caplog.at_level(logging.WARNING, "checkpoint"):
        got = embed_all(engine, embed, [f"{n}" for n in range(64)], batch_size=16)
    assert not got.errors
    assert sorted(set(calls)) == [4, 8, 16], "halves, and not one by one"
    (said,) = caplog.messages
    assert "4 of 4 batches failed and were halved" in said
    assert f"{len(calls) - 4} more calls" in said
    assert "ValueError: 400: too many tokens" in said
    assert "Batch(items, limit=…, size=…)" in said


@pytest.mark.parametrize("engine", ENGINES)
def test_one_bad_item_costs_a_few_calls_and_fails_alone(engine: str) -> None:
    """Two for each halving."""
    calls: list[int] = []

    def embed(texts: list[int]) -> list[int]:
        calls.append(len(texts))
        if 77 in texts:
            raise ValueError("no")
        return texts

    got = embed_all(engine, embed, list(range(128)), batch_size=64)
    assert list(got.errors) == [77]
    assert len(calls) == 2 + 2 * 6


def test_a_batch_that_is_refused_for_a_while_is_held_whole() -> None:
    """A 503, or a connection that is lost, says nothing of its items."""
    calls: list[int] = []

    def embed(texts: list[int]) -> list[int]:
        calls.append(len(texts))
        if len(calls) < 3:
            raise ConnectionResetError("no")
        return texts

    got = embed_all("one", embed, list(range(8)), batch_size=8, retry=Retry(3, wait=0.01))
    assert (got, calls) == (list(range(8)), [8, 8, 8])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("size", "says"), [(lambda n: 1 / 0, "division"), (lambda n: "9", "give a number of 0 or")])
def test_an_item_whose_size_cannot_be_told_fails_alone(engine: str, size: Any, says: str) -> None:
    """The user's function is at fault; the others go on."""
    batch = Batch(4, limit=10, size=lambda n: size(n) if n == 5 else 1)
    got = embed_all(engine, same, list(range(12)), batch_size=batch)
    assert list(got.errors) == [5]
    assert says in str(got.errors[5])


@pytest.mark.slow
def test_batches_by_size_travel_to_processes() -> None:
    """The function of the size stays in the driver: it need not pickle."""
    f: Any = checkpointed("emb", batch_size=Batch(4, limit=6, size=lambda n: n))(same)
    got = f.map([1, 2, 3, 4, 5, 6], executor="processes", workers=1, progress=False)
    assert got == [1, 2, 3, 4, 5, 6]


def test_a_batch_takes_permits_for_what_it_costs() -> None:
    """Halves too, each for itself."""
    calls: list[int] = []

    def embed(texts: list[int]) -> list[int]:
        calls.append(len(texts))
        return texts

    rate = Rate(1000, per=1, cost=lambda n: 1)
    got = embed_all("one", embed, list(range(10)), batch_size=Batch(5, limit=3, size=lambda n: 1), rate=rate)
    assert (got, calls) == (list(range(10)), [3, 3, 3, 1])
