"""Forty functions whose digests are written down beside: one of each kind of thing that a function may read."""

from __future__ import annotations

import asyncio
import collections
import datetime
import enum
import functools
import itertools
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["FUNCTIONS", "INSTANCES"]

PROMPT = "Summarize the following text in three words: {text}"
LIMIT = 7
RATIO = 0.25
TABLE = {"model": "small", "temperature": 0.5, "stop": ["\n", "END"]}
NESTED = {"outer": {"inner": {"value": 3}, "other": [1, 2]}}
NAMES = ("a", "b", "c")
WORDS = frozenset({"the", "a", "an"})
PATTERN = re.compile(r"\d+(?:\.\d+)?")
STARTED = time.time()
TODAY = f"Today is {datetime.date.today()}. Answer briefly."
DAY = datetime.date(2026, 1, 31)
BLOB = b"\x00\x01\xff"
SEEN: list[Any] = []
API_KEY = os.environ.get("SOME_API_KEY", "none")


class Color(enum.Enum):
    """Members are values."""

    RED = 1
    BLUE = "blue"


class Point(NamedTuple):
    """A tuple with names."""

    x: float
    y: float = 0.0


@dataclass(frozen=True)
class Settings:
    """A class of data."""

    model: str = "small"
    tags: tuple[str, ...] = ("x", "y")
    more: dict[str, int] = field(default_factory=dict)


class Base:
    """Methods and attributes of classes."""

    factor = 2

    def scaled(self, n: int) -> int:
        """Reads a class attribute."""
        return n * self.factor


class Scorer(Base):
    """Overrides one of them."""

    factor = 3

    def __init__(self, bonus: int = 5, names: tuple[str, ...] = NAMES) -> None:
        self.bonus = bonus
        self.names = names

    def score(self, n: int) -> int:
        """Reads an attribute and calls a method."""
        return self.scaled(n) + self.bonus

    def label(self, n: int) -> str:
        """Reads another attribute."""
        return self.names[n % len(self.names)]

    @classmethod
    def of_class(cls, n: int) -> int:
        """Bound to the class."""
        return cls.factor * n

    @staticmethod
    def static(n: int) -> int:
        """Bound to nothing."""
        return n + LIMIT


SETTINGS = Settings(model="large", more={"n": 1})
POINT = Point(1.5)
SCORER = Scorer(6)


def helper(n: int) -> int:
    """Is called by others."""
    return n + LIMIT


def deeper(n: int) -> int:
    """Calls what calls."""
    return helper(helper(n)) * 2


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps another."""

    @functools.wraps(function)
    def inner(*arguments: Any) -> Any:
        return function(*arguments)

    return inner


def plain(n: int) -> int:
    """Comments do not count."""
    return n + 1  # nor does this


def reads_text(text: str) -> str:
    return PROMPT.format(text=text)


def reads_numbers(n: float) -> float:
    return n * LIMIT + RATIO


def reads_entry(n: int) -> tuple[Any, ...]:
    return n, TABLE["model"]


def reads_entries(n: int) -> tuple[Any, ...]:
    return n, TABLE["model"], TABLE["stop"], NESTED["outer"]["inner"]


def reads_table(n: int) -> str:
    return json.dumps([n, TABLE])


def reads_attribute(n: int) -> str:
    return SETTINGS.model * n


def reads_object(n: int) -> str:
    return str((n, SETTINGS))


def reads_tuple(n: int) -> str:
    return NAMES[n % 3]


def reads_set(text: str) -> bool:
    return text in WORDS


def reads_pattern(text: str) -> list[str]:
    return PATTERN.findall(text)


def reads_clock(n: float) -> float:
    return n - STARTED


def reads_today(text: str) -> str:
    return TODAY + text


def reads_date(n: int) -> Any:
    return DAY + datetime.timedelta(days=n)


def reads_bytes(data: bytes) -> bytes:
    return BLOB + data


def reads_enum(n: int) -> Any:
    return (Color.RED, Color.BLUE)[n % 2]


def reads_point(n: float) -> float:
    return POINT.x + n


def reads_environment(text: str) -> str:
    return API_KEY + text


def writes_state(n: int) -> int:
    SEEN.append(n)
    return len(SEEN)


def calls_helper(n: int) -> int:
    return helper(n)


def calls_deeper(n: int) -> int:
    return deeper(n) + helper(n)


def calls_itself(n: int) -> int:
    return 1 if n < 2 else n * calls_itself(n - 1)


def calls_library(n: int) -> Any:
    return math.sqrt(n), list(itertools.accumulate(range(n)))


def makes_object(n: float) -> Point:
    return Point(n, y=n)


def calls_method(n: int) -> int:
    return SCORER.score(n)


def calls_class(n: int) -> int:
    return Scorer.of_class(n) + Scorer.static(n)


def with_defaults(n: int, factor: int = 3, *, names: tuple[str, ...] = ("p", "q")) -> Any:
    return n * factor, names


def with_inner(n: int) -> int:
    def inner(m: int) -> int:
        return m + LIMIT

    return inner(n) + (lambda m: m * 2)(n)


def with_comprehensions(n: int) -> Any:
    return [i for i in range(n) if i % 2], {i: i + LIMIT for i in range(n)}, {name * 2 for name in NAMES}


def with_match(item: Any) -> Any:
    match item:
        case {"kind": "a", "n": int(n)}:
            return n
        case [first, *_]:
            return first
        case _:
            return RATIO


def with_errors(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise RuntimeError(f"no number: {text}") from error
    finally:
        collections.Counter(text)


def with_text(text: str) -> str:
    return f"You are a careful assistant who answers in one line. {text}"


def with_keyword(text: str) -> Any:
    return json.dumps(text, indent=2, separators=(":", "in one more line"))


def with_path(name: str) -> str:
    return (Path("somewhere") / name).name


def generates(n: int) -> Iterator[int]:
    yield from range(n)
    yield LIMIT


async def awaits(n: int) -> int:
    await asyncio.sleep(0)
    return helper(n)


def make(model: str, size: int) -> Callable[[str], Any]:
    """Closures."""

    def closure(text: str) -> Any:
        return model, size, text

    return closure


@decorated
def wrapped(n: int) -> int:
    """Is wrapped by a function."""
    return n * LIMIT


FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        plain, reads_text, reads_numbers, reads_entry, reads_entries, reads_table, reads_attribute, reads_object,
        reads_tuple, reads_set, reads_pattern, reads_clock, reads_today, reads_date, reads_bytes, reads_enum,
        reads_point, reads_environment, writes_state, calls_helper, calls_deeper, calls_itself, calls_library,
        makes_object, calls_method, calls_class, with_defaults, with_inner, with_comprehensions, with_match,
        with_errors, with_text, with_keyword, with_path, generates, awaits, wrapped, deeper,
    )
} | {
    "closure": make("small", 3),
    "another closure": make("large", 3),
    "partial": functools.partial(with_defaults, factor=4),
    "method": SCORER.score,
}  # fmt: skip
INSTANCES: dict[str, tuple[Any, Any]] = {
    "score": (Scorer.score, SCORER),
    "score of another": (Scorer.score, Scorer(7)),
    "label": (Scorer.label, SCORER),
    "label of another": (Scorer.label, Scorer(6, ("u",))),
    "scaled": (Base.scaled, SCORER),
    "scaled of the base": (Base.scaled, Base()),
    "of_class": (Scorer.of_class, Scorer),
}
