"""What a pass is told to do about failures: frozen policies, checked when built; what counts is another object."""

from __future__ import annotations

import inspect
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from checkpoint.errors import InvalidOption, quote
from checkpoint.execution.clients import first, is_lost_connection, retry_after_of, status_of, stays, with_causes

__all__ = [
    "Again",
    "Durability",
    "ErrorCount",
    "ErrorLimit",
    "OnChange",
    "Rate",
    "Retry",
    "check_choice",
    "check_count",
    "check_seconds",
    "check_validate",
    "give_up",
    "rates_of",
    "retry_of",
]

Durability = Literal["process", "power"]
OnChange = Literal["keep", "recompute", "error"]

_ENOUGH_FOR_A_FRACTION = 100


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise `InvalidOption` unless the value is one of a Literal's."""
    allowed = get_args(choices)
    if value not in allowed:
        raise InvalidOption(f"{name} is {quote(value)}; it is one of {', '.join(map(repr, allowed))}")


def check_count(name: str, value: object) -> None:
    """Raise `InvalidOption` unless the value is None or an int of 1 or more."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InvalidOption(f"{name} is {quote(value)}; give an int of 1 or more")


def check_seconds(name: str, value: object, *, positive: bool = False) -> None:
    """Raise `InvalidOption` unless the value is a number of seconds: 0 or more, or more than 0."""
    if not _is_number(value) or not (value > 0 if positive else value >= 0):  # type: ignore[operator]
        raise InvalidOption(f"{name} is {quote(value)}; give a number of seconds{' above 0' if positive else ''}")


def _check_finite(name: str, value: object, *, positive: bool = False) -> None:
    """`check_seconds`, and a span that ends."""
    check_seconds(name, value, positive=positive)
    if value == math.inf:
        raise InvalidOption(f"{name} is inf; give a number of seconds that end")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_validate(validate: object) -> None:
    """Raise `InvalidOption` unless it is None or a plain function."""
    if validate is None:
        return
    if not callable(validate) or inspect.iscoroutinefunction(validate):
        raise InvalidOption(
            f"validate is {quote(validate)}; give a plain function of the value, which returns False or raises where "
            "the value is no result"
        )


# --- retries ---------------------------------------------------------------------------------------------------------

_RETRIED = frozenset([408, 409, 429, *range(500, 600)])
_PAUSING = frozenset([429, 503])


class Again(NamedTuple):
    """An exception says that the call may be made once more.

    Attributes:
        after: in so many seconds, by its Retry-After; None where it has none.
        pause: whether nothing else is to be called until then.
    """

    after: float | None = None
    pause: bool = False


@dataclass(frozen=True, slots=True)
class Retry:
    """Which failures are tried again, how often, and after how long. It never makes a worker wait.

    The wait before attempt n + 1 is exponential with full jitter: a random part of ``wait * 2 ** (n - 1)`` seconds, at
    most of `max_wait` (Brooker, "Exponential Backoff And Jitter", AWS 2015). An exception that carries a Retry-After,
    as ``.retry_after``, ``.response.headers`` or ``.headers``, is tried again after that time, and this costs no
    attempt; when its HTTP status is 429 or 503 nothing else is called until then. After ten such waits without a
    success in between, ten of one item, or 15 minutes of them, it counts as any other failure. What an exception was
    raised from (``raise … from``) speaks for it where it says nothing itself: clients are wrapped.

    Args:
        attempts: how many calls there are at most, the first included.
        on: exception types that are tried again besides HTTP 408, 409, 429 and 5xx; or a function of the exception that
            decides alone. Default: OSError, TimeoutError, and the exceptions of clients for a lost connection
            (requests, httpx, aiohttp, urllib3, botocore, gRPC, google.api_core, and the SDKs on them), unless an HTTP
            status tells otherwise; never a TypeError, nor a failed authentication.
        wait: seconds; or a function of the number of attempts made so far that returns the exact wait.
        max_wait: seconds.

    Raises:
        InvalidOption: an argument is wrong.

    Example:
        >>> Retry(attempts=5, on=(ConnectionError, TimeoutError), wait=0.5, max_wait=30).attempts
        5
    """

    attempts: int = 3
    on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], object] | None = None
    wait: float | Callable[[int], float] = 1.0
    max_wait: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts is None:
            raise InvalidOption("attempts is None; give an int of 1 or more")
        check_count("attempts", self.attempts)
        check_seconds("max_wait", self.max_wait)
        if not callable(self.wait):
            _check_finite("wait", self.wait)
        if self.on is None or _are_types(self.on):
            return
        decides = callable(self.on) and not inspect.iscoroutinefunction(self.on)
        if isinstance(self.on, (type, tuple, list)) or not decides:
            raise InvalidOption(
                f"Retry's on is {quote(self.on)}; give exception types, such as on=(ConnectionError, TimeoutError), or "
                "a plain function of the exception"
            )

    def judge(self, exception: Exception) -> Again | None:
        """Whether the exception is one to try again after, and what it says of when."""
        chain = with_causes(exception)
        if any(_GIVEN_UP in getattr(one, "__dict__", ()) for one in chain):
            return None
        status = first(status_of(one, is_cause=one is not exception) for one in chain)
        after = first(map(retry_after_of, chain))
        if not self._is_chosen(exception, chain, status, after):
            return None
        return Again(after, after is not None and status in _PAUSING)

    def _is_chosen(
        self, exception: Exception, chain: list[BaseException], status: int | None, after: float | None
    ) -> bool:
        on: Any = self.on
        if on is not None and not _are_types(on):
            return bool(on(exception))
        if after is not None or status in _RETRIED:
            return True
        if on is not None:
            return any(isinstance(one, on) for one in chain)
        return status is None and not stays(exception, chain) and any(map(is_lost_connection, chain))

    def delay(self, made: int) -> float:
        """Seconds to wait after so many attempts were made.

        Raises:
            Exception: what the function for `wait` raises, or `InvalidOption` where it returns no span that ends.
        """
        if not callable(self.wait):
            return random.uniform(0.0, min(self.max_wait, self.wait * 2.0 ** min(made - 1, 64)))
        seconds = max(float(self.wait(made)), 0.0)
        _check_finite(f"what Retry's wait({made}) returned", seconds)
        return seconds


_GIVEN_UP = "__checkpoint_given_up__"


def give_up(exception: BaseException) -> None:
    """The retries of a step gave the exception up: no `Retry` of a call that raises it, or from it, tries again."""
    with suppress(AttributeError, TypeError):  # a frozen class, or one with slots alone
        setattr(exception, _GIVEN_UP, True)


def retry_of(given: int | Retry | None) -> Retry | None:
    """The policy that the `retry` option names.

    Raises:
        InvalidOption: it names none.
    """
    if given is None or isinstance(given, Retry):
        return given
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InvalidOption(f"retry is {quote(given)}; give the number of attempts (retry=3), or Retry(attempts=3, …)")
    return Retry(given)


def _are_types(on: object) -> bool:
    kinds = on if isinstance(on, tuple) else (on,)
    return bool(kinds) and all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds)


# --- rates -----------------------------------------------------------------------------------------------------------

_UNITS = {
    1.0: "s sec secs second seconds",
    60.0: "m min mins minute minutes",
    3600.0: "h hr hrs hour hours",
    86400.0: "d day days",
}
_SECONDS = {unit: seconds for seconds, units in _UNITS.items() for unit in units.split()}
_RATE = re.compile(r"\s*((?:\d{1,3}(?:,\d{3})+|\d+(?:_\d+)*)(?:\.\d+)?)\s*(?:/|per\b)\s*([a-z]+)\s*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Rate:
    """In no span of `per` seconds of a pass are calls handed to workers that cost more than `limit`; retries count.

    Args:
        limit: calls, or whatever `cost` counts (tokens …).
        per: seconds.
        cost: what one item costs, as a function of it; default 1 a call. A batch costs the sum of its items.

    Raises:
        InvalidOption: an argument is wrong.

    Example:
        >>> rate = [Rate(500, per=60), Rate(200_000, per=60, cost=lambda doc: len(doc["text"]) / 4)]
        >>> rate[0] == Rate(500)
        True
    """

    limit: float
    per: float = 60.0
    cost: Callable[[Any], float] | None = None

    def __post_init__(self) -> None:
        number = _is_number(self.limit)
        if not number or not 0 < self.limit < math.inf or (self.cost is None and self.limit < 1):
            hint = "; for less than one call, make `per` longer" if number and 0 < self.limit < 1 else ""
            raise InvalidOption(f"a rate's limit is {quote(self.limit)}; give a number of 1 or more{hint}")
        _check_finite("a rate's per", self.per, positive=True)
        if self.cost is not None and (not callable(self.cost) or inspect.iscoroutinefunction(self.cost)):
            raise InvalidOption(f"a rate's cost is {quote(self.cost)}; give a plain function of the item")


def rates_of(given: str | Rate | Iterable[str | Rate] | None) -> tuple[Rate, ...]:
    """The policies that the `rate` option names: "500/min", a `Rate`, or several of these.

    Raises:
        InvalidOption: it names none.
    """
    if given is None:
        return ()
    if isinstance(given, (str, Rate)):
        given = (given,)
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, (str, Rate)) for one in given):
        raise InvalidOption(f'rate is {quote(given)}; give "500/min", Rate(500, per=60), or a list of several')
    return tuple([one if isinstance(one, Rate) else _parsed(one) for one in given])


def _parsed(text: str) -> Rate:
    found = _RATE.fullmatch(text)
    per = _SECONDS.get(found[2].lower()) if found else None
    if found is None or per is None:
        raise InvalidOption(f'rate is {quote(text)}; write "500/min", with s, min, h or day, or Rate(500, per=60)')
    limit = float(found[1].replace(",", "").replace("_", ""))
    return Rate(int(limit) if limit.is_integer() else limit, per)


# --- failures --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """When failures end a pass.

    An item that failed in an earlier pass, and fails again with the same exception type, counts for none of the limits
    but `unencodable`: it tells nothing that the earlier pass did not, and must not keep a finished job from being read.

    Args:
        max_errors: more failures than this end it: a count (0: the first one does), or a fraction between 0 and 1 of
            what has run, once a hundred have. None: `in_a_row` counts instead.
        in_a_row: so many failures of one type in a row, anywhere in the pass, end it: the key or the quota is dead.
        unencodable: so many values that cannot be written end it: the code is at fault.
    """

    max_errors: int | float | None = None
    in_a_row: int = 100
    unencodable: int = 3

    def __post_init__(self) -> None:
        limit = self.max_errors
        if limit is None:
            return
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0:
            raise InvalidOption(f"max_errors is {quote(limit)}; give a count (0 or more) or a fraction between 0 and 1")
        if isinstance(limit, float) and not limit < 1:
            raise InvalidOption(f"max_errors is {limit}; a float is a fraction below 1, a count is an int")


class ErrorCount:
    """The successes and failures of one pass.

    Attributes:
        by_type: how many failures of each exception type.
        failed: how many in all.
        run: how many items were run.
    """

    def __init__(self, limit: ErrorLimit) -> None:
        self._limit = limit
        self.by_type: Counter[str] = Counter()
        self.failed = 0
        self.run = 0
        self._again = 0  # of those that failed, as they had before
        self._unencodable = 0
        self._row, self._row_kind, self._row_end = 0, "", 0  # failures in a row, and when the last of them ran

    def fail(self, kind: str, *, again: bool = False, unencodable: bool = False) -> None:
        """One more item failed, with an exception of this type; `again` where it had failed with it before."""
        self.run += 1
        self.failed += 1
        self._again += again
        self._unencodable += unencodable
        self.by_type[kind] += 1

    def in_a_row(self, kind: str, ran: int, *, again: bool = False) -> None:
        """The failure of this type was the `ran`-th of all that ran: the next one of a row where nothing came between.

        Successes need not be told of: this is the per-item path.
        """
        goes_on = ran == self._row_end + 1 and (again or kind == self._row_kind)
        self._row_end = ran
        if not goes_on:
            self._row, self._row_kind = 0, "" if again else kind
        self._row += not again

    def retire(self, kind: str) -> None:
        """One of the failures of this type has its result after all."""
        self.failed -= 1
        self.by_type[kind] -= 1
        self.by_type += Counter()  # drops what is down to zero

    def verdict(self) -> str | None:
        """Why the pass must end now, or None."""
        limit, most = self._limit, self._limit.max_errors
        run, failed = self.run - self._again, self.failed - self._again
        if self._unencodable >= limit.unencodable:
            return f"{self._unencodable} results could not be written: the function returns what cannot be stored"
        if most is None:
            row = f"{self._row} items in a row failed with {self._row_kind} (max_errors= sets another limit)"
            return row if self._row >= limit.in_a_row else None
        if isinstance(most, float):
            over = run >= _ENOUGH_FOR_A_FRACTION and failed > most * run
            return f"more than {most:.0%} of {run} items failed" if over else None
        return f"more than max_errors={most} items failed" if failed > most else None
