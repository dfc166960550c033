"""The same context everywhere: whatever makes the calls, each sees the caller's, and changes it for nobody."""

from __future__ import annotations

import asyncio
import decimal
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoint import ItemError, checkpointed
from checkpoint.execution.surroundings import Settings, settings_here

WORD: ContextVar[str] = ContextVar("WORD", default="unset")


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    with np.errstate(), decimal.localcontext():
        yield


def third(n: int) -> str:
    """One third, as precise as decimal is set."""
    return str(decimal.Decimal(1) / 3)


def divided(n: int) -> float:
    """A division by zero."""
    return float(np.float64(1) / np.float64(0))


def spoiling(n: int) -> list[Any]:
    """What a call sees, which it changes."""
    seen = [WORD.get(), decimal.getcontext().prec, np.geterr()["divide"], decimal.getcontext().flags[decimal.Inexact]]
    WORD.set(f"of {n}")
    decimal.getcontext().prec = 3
    decimal.Decimal(1) / 3
    np.seterr(divide="ignore")
    return seen


async def spoiling_later(n: int) -> list[Any]:
    """The same, where others run in between."""
    first = spoiling(n)
    await asyncio.sleep(0)
    second = [WORD.get(), decimal.getcontext().prec, np.geterr()["divide"]]
    assert second == [f"of {n}", 3, "ignore"]
    return first


def of_function(function: Callable[[int], Any], items: list[int], **options: Any) -> list[Any]:
    """The results of a map."""
    return list(checkpointed("f")(function).map(items, progress=False, return_exceptions=True, **options))


ENGINES = [({}, "in the caller's thread"), ({"workers": 2}, "threads"), ({"executor": "processes"}, "processes")]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "reason"), ENGINES, ids=[reason for _, reason in ENGINES])
def test_settings_of_arithmetic_hold_on_every_engine(options: dict[str, Any], reason: str) -> None:
    """Precision, rounding, and what becomes of a division by zero."""
    decimal.getcontext().prec = 40
    assert of_function(third, [1], **options) == ["0." + "3" * 40], reason
    np.seterr(divide="raise")
    (error,) = checkpointed("g")(divided).map([1], progress=False, return_exceptions=True, **options)
    assert isinstance(error, ItemError)
    assert error.type == "FloatingPointError", reason


def check_untouched(numbers: decimal.Context) -> None:
    """What the caller had set is as it was, and the object is the same."""
    assert WORD.get() == "mine"
    assert decimal.getcontext() is numbers
    assert numbers.prec == 40
    assert not numbers.flags[decimal.Inexact]
    assert np.geterr()["divide"] == "raise"


WAYS = [
    ({}, "in the caller's thread"),
    ({"workers": 3}, "threads"),
    ({"workers": 3, "chunksize": 4}, "threads, in chunks"),
    ({"executor": "a pool"}, "a pool of threads that was given"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("options", "reason"), WAYS, ids=[reason for _, reason in WAYS])
def test_no_call_leaves_anything_for_the_next_or_the_caller(options: dict[str, Any], reason: str) -> None:
    """Variables, precision, flags, and the handling of errors."""
    WORD.set("mine")
    numbers = decimal.getcontext()
    numbers.prec = 40
    numbers.clear_flags()
    np.seterr(divide="raise")
    with ThreadPoolExecutor(2) as pool:
        given = {**options, "executor": pool} if "executor" in options else options
        assert of_function(spoiling, [*range(20)], **given) == [["mine", 40, "raise", False]] * 20, reason
    check_untouched(numbers)


@pytest.mark.skipif(int(np.__version__.partition(".")[0]) < 2, reason="numpy 1 has one handling of errors for a thread")
def test_no_coroutine_leaves_anything_for_the_next_or_the_caller() -> None:
    """Nor for those that run meanwhile."""
    WORD.set("mine")
    numbers = decimal.getcontext()
    numbers.prec = 40
    numbers.clear_flags()
    np.seterr(divide="raise")
    f = checkpointed("f")(spoiling_later)

    async def run() -> list[Any]:
        return list(await f.map(range(20), progress=False, workers=3))

    assert asyncio.run(run()) == [["mine", 40, "raise", False]] * 20
    check_untouched(numbers)


def test_a_caller_that_has_set_nothing_sends_nothing() -> None:
    """So that a worker need not import numpy, and calls cost what they did."""
    with (
        decimal.localcontext(decimal.Context()),
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
    ):
        assert settings_here() == Settings(None, None)


@pytest.mark.slow
def test_warnings_that_numpy_is_set_to_give_are_given() -> None:
    """The handling is the caller's, be it the default."""
    np.seterr(divide="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert of_function(divided, [1], workers=2) == [np.inf]
    assert any("divide by zero" in str(one.message) for one in caught)
