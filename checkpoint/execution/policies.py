"""What a pass is told to do about failures: frozen policies, checked when built; what counts is another object."""

from __future__ import annotations

import inspect
import math
import numbers
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, NamedTuple, SupportsIndex, get_args

from checkpoint.errors import InvalidOption, RefusedValue, quote
from checkpoint.execution.clients import (
    first,
    is_lost_connection,
    is_out_of_credit,
    retry_after_of,
    status_of,
    stays,
    trouble_of,
    with_causes,
)

__all__ = [
    "Again",
    "Batch",
    "Durability",
    "ErrorCount",
    "ErrorLimit",
    "OnChange",
    "Rate",
    "Retry",
    "batch_of",
    "check_choice",
    "check_count",
    "check_seconds",
    "check_validate",
    "doubt_of",
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
    """Raise `InvalidOption` unless the value is None or an integer of 1 or more, one of numpy included."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, SupportsIndex) or index(value) < 1):
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


def check_parse(parse: object) -> None:
    """Raise `InvalidOption` unless it is None or a plain function."""
    if parse is None:
        return
    if not callable(parse) or inspect.iscoroutinefunction(parse):
        raise InvalidOption(
            f"parse is {quote(parse)}; give a plain function of what the decorated function returned: it is free, and "
            "runs at each reading"
        )


def judge_value(validate: Callable[[Any], Any] | None, value: Any) -> None:
    """Raise where `validate` refuses the value; None refuses nothing.

    Raises:
        RefusedValue: it returned False, or another false value but None.
        InvalidOption: it returned something to be awaited.
        Exception: whatever it raises.
    """
    if validate is None:
        return
    verdict = validate(value)
    if hasattr(verdict, "__await__"):
        raise InvalidOption(f"validate returned {quote(verdict)}; it must be a plain function of the value")
    if verdict is not None and not verdict:
        raise RefusedValue(f"validate returned {quote(verdict)} for {quote(value)}")


# --- retries ---------------------------------------------------------------------------------------------------------

_SHORTEST_PROBE = 0.05  # seconds
_RETRIED = frozenset([408, 409, 429, *range(500, 600)])


class Again(NamedTuple):
    """An exception says that the call may be made once more.

    Attributes:
        after: in so many seconds, by its Retry-After; None where it has none.
        trouble: the server's, which other items would meet too: "HTTP 503", "ConnectionRefusedError"; else empty.
        of_step: whether the retries of a step of the call met it, and the server answered nobody meanwhile.
    """

    after: float | None = None
    trouble: str = ""
    of_step: bool = False


_PATIENCE = 900.0


@dataclass(frozen=True, slots=True)
class Retry:
    """Which failures are tried again, how often, and after how long. It never makes a worker wait.

    The wait before attempt n + 1 is exponential with full jitter: a random part of ``wait * 2 ** (n - 1)`` seconds, at
    most of `max_wait` (Brooker, "Exponential Backoff And Jitter", AWS 2015). An exception that carries a Retry-After,
    as ``.retry_after``, ``.response.headers`` or ``.headers``, is tried again after that time, and this costs no
    attempt, ten times for an item while others are answered, or for as long as the `patience` that is given. What an
    exception was raised from (``raise … from``) speaks for it where it says nothing itself: clients are wrapped.

    Three different items in a row that are refused (HTTP 429, 5xx) or lose their connection, or five among the last
    twenty answers, hold all calls that share the quota: those of functions with the same `Rate` object, or else of the
    pass. One call at a time asks whether the server is back, after `wait` seconds, then twice as many, until ten times
    as many; while calls are held nothing costs an attempt. Calls of one item by `f.one` share these of the function in
    all threads, tasks and worker processes. Where a step's attempts are used up while the server answers nobody, the
    item whose call takes the step is put off, and others tell whether it is the server: up to three times.

    Args:
        attempts: how many calls there are at most, the first included.
        on: exception types that are tried again besides HTTP 408, 409, 429 and 5xx; or a function of the exception that
            decides alone. Default: OSError, TimeoutError, and the exceptions of clients for a lost connection
            (requests, httpx, aiohttp, urllib3, botocore, gRPC, google.api_core, and the SDKs on them), unless an HTTP
            status tells otherwise; never a TypeError, nor a failed authentication.
        wait: seconds; or a function of the number of attempts made so far that returns the exact wait.
        max_wait: seconds; the longest wait before an attempt, and before a call that asks whether the server is back.
        patience: seconds without an answer after which what waits fails, and the longest Retry-After that is waited
            for. Where it is given, an item waits so long for its Retry-After again and again, as for a batch that a
            provider runs meanwhile ("not yet"). Default: a quarter of an hour.

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
    patience: float = _PATIENCE

    def __post_init__(self) -> None:
        if self.attempts is None:
            raise InvalidOption("attempts is None; give an int of 1 or more")
        check_count("attempts", self.attempts)
        check_seconds("max_wait", self.max_wait)
        check_seconds("patience", self.patience)
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

    @property
    def is_patience_given(self) -> bool:
        """Whether the user has said how long to wait."""
        return self.patience != _PATIENCE

    def judge(self, exception: Exception) -> Again | None:
        """Whether the exception is one to try again after, and what it says of when."""
        chain = with_causes(exception)
        if any(_GIVEN_UP in getattr(one, "__dict__", ()) for one in chain):
            return None
        status = first(status_of(one, is_cause=one is not exception) for one in chain)
        after = first(map(retry_after_of, chain))
        if not self._is_chosen(exception, chain, status, after):
            return None
        return Again(after, trouble_of(chain, status))

    def _is_chosen(
        self, exception: Exception, chain: list[BaseException], status: int | None, after: float | None
    ) -> bool:
        on: Any = self.on
        if on is not None and not _are_types(on):
            return bool(on(exception))
        if is_out_of_credit(chain):
            return False
        if after is not None or status in _RETRIED:
            return True
        if on is not None:
            return any(isinstance(one, on) for one in chain)
        return status is None and not stays(exception, chain) and any(map(is_lost_connection, chain))

    def probes(self) -> list[float]:
        """Seconds to wait before a call asks whether the server is back: the first, the second … and each after those.

        They double until ten times the first, so that a server that is back is not waited for much longer.
        """
        try:
            first = float(self.wait(1)) if callable(self.wait) else self.wait
        except Exception:  # the user's; it is told of where it is asked for an attempt
            first = 1.0
        first = min(max(first, _SHORTEST_PROBE) if first < math.inf else 1.0, self.max_wait)
        return [min(first * factor, self.max_wait) for factor in (1, 2, 4, 8, 10)]

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


def give_up(exception: BaseException, doubt: Again | None = None) -> None:
    """The retries of a step gave the exception up: no `Retry` of a call that raises it, or from it, tries again.

    Args:
        exception: what the step's call raised.
        doubt: why the item of the call may not be at fault; the call is put off then, while other items tell.
    """
    with suppress(AttributeError, TypeError):  # a frozen class, or one with slots alone
        setattr(exception, _GIVEN_UP, True if doubt is None else doubt._replace(after=None, of_step=True))


def doubt_of(exception: BaseException) -> Again | None:
    """The doubt in which a step gave up what the exception is, or was raised from; None where there is none."""
    marks = [getattr(one, "__dict__", {}).get(_GIVEN_UP) for one in with_causes(exception)]
    return next((mark for mark in marks if isinstance(mark, Again)), None)


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


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Rate:
    """Calls start evenly, and in no span of `per` seconds more of them than `limit`; retries count.

    ``Rate(600, per=60)`` lets a call start every tenth of a second. What was not used is kept for a second: after a
    silence as many may start at once as belong to one second, or one. A call that costs more than a second's worth
    starts all the same, and the next ones wait until it is paid for; it alone may exceed the limit of a span.

    One object is one quota of this process: functions that are given the same one share it, in all their passes, on
    threads and event loops. Another object that is equal to it is another quota.

    Args:
        limit: calls, or whatever `cost` counts (tokens …); 1 or more, with `cost` above 0.
        per: seconds; default a minute.
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


# --- batches ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """How many items a call is given: at most `items`, and as many as `limit` allows of what `size` counts.

    Items are taken in their order; an item that is larger than the limit goes alone. A batch that fails is halved, down
    to single items, so that one bad item costs a few calls and not the batch; a warning says so at the end of the pass.

    Args:
        items: 1 or more.
        limit: the most that the sizes of a call's items may add up to, in the unit of `size` (tokens, bytes …), above
            0. Default: any.
        size: the size of an item, as a function of it that returns a number of 0 or more. It goes with `limit`.

    Raises:
        InvalidOption: an argument is wrong.

    Example:
        >>> batch = Batch(2048, limit=300_000, size=len)
        >>> batch.items, batch.limit
        (2048, 300000)
    """

    items: int
    limit: float | None = None
    size: Callable[[Any], float] | None = None

    def __post_init__(self) -> None:
        if self.items is None:
            raise InvalidOption("a batch's items is None; give an int of 1 or more")
        check_count("a batch's items", self.items)
        if (self.limit is None) != (self.size is None):
            given, missing = ("size", "limit") if self.limit is None else ("limit", "size")
            raise InvalidOption(
                f"a batch has {given}= and no {missing}=; give both: Batch(2048, limit=300_000, size=tokens)"
            )
        if self.limit is not None and not (_is_number(self.limit) and 0 < self.limit < math.inf):
            raise InvalidOption(f"a batch's limit is {quote(self.limit)}; give a number above 0")
        if self.size is not None and (not callable(self.size) or inspect.iscoroutinefunction(self.size)):
            raise InvalidOption(f"a batch's size is {quote(self.size)}; give a plain function of the item")

    def size_of(self, item: Any) -> float:
        """The size of an item; 0 where none is counted.

        Raises:
            Exception: what the function raises, or `InvalidOption` where it returns no number of 0 or more.
        """
        if self.size is None:
            return 0.0
        size: Any = self.size(item)
        if not isinstance(size, numbers.Real) or not float(size) >= 0:
            raise InvalidOption(
                f"the size that a batch's function gave for the item is {quote(size)}; give a number of 0 or more"
            )
        return float(size)


def batch_of(given: int | Batch | None) -> Batch | None:
    """The policy that the `batch_size` option names.

    Raises:
        InvalidOption: it names none.
    """
    if given is None or isinstance(given, Batch):
        return given
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InvalidOption(
            f"batch_size is {quote(given)}; give an int of 1 or more, or Batch(2048, limit=300_000, size=tokens)"
        )
    return Batch(given)


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
        denied: so many items in a row that the server refuses to anybody with this key (HTTP 401, 402, 403, no credit)
            end it, as `in_a_row` does.
        unencodable: so many values that cannot be written end it: the code is at fault.
    """

    max_errors: int | float | None = None
    in_a_row: int = 100
    denied: int = 10
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
        self._denied, self._denied_end, self._denied_why = 0, 0, ""  # the same of items that the server denies
        self._row_verdict: str | None = None  # it stays, whatever calls that were under way come to

    def fail(self, kind: str, *, again: bool = False, unencodable: bool = False) -> None:
        """One more item failed, with an exception of this type; `again` where it had failed with it before."""
        self.run += 1
        self.failed += 1
        self._again += again
        self._unencodable += unencodable
        self.by_type[kind] += 1

    def recall(self, kind: str) -> None:
        """An item that is not run stands as failed, with an exception of this type, and is raised."""
        self.failed += 1
        self.by_type[kind] += 1

    def in_a_row(self, kind: str, ran: int, *, again: bool = False, denied: str = "") -> None:
        """The failure of this type was the `ran`-th of all that ran: the next one of a row where nothing came between.

        Successes need not be told of: this is the per-item path.
        """
        goes_on = ran == self._row_end + 1 and (again or kind == self._row_kind)
        if denied:
            self._denied = (self._denied if self._denied_end == ran - 1 else 0) + (not again)
            self._denied_end, self._denied_why = ran, denied
        self._row_end = ran
        if not goes_on:
            self._row, self._row_kind = 0, "" if again else kind
        self._row += not again
        if self._denied >= self._limit.denied and self._denied_end == ran:
            self._row_verdict = (
                f"{self._denied} items in a row were denied ({self._denied_why}): see to the key or the account, and "
                "run the same line again (max_errors= sets another limit)"
            )
        elif self._row >= self._limit.in_a_row:
            self._row_verdict = (
                f"{self._row} items in a row failed with {self._row_kind} (max_errors= sets another limit)"
            )

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
            return self._row_verdict
        if isinstance(most, float):
            over = run >= _ENOUGH_FOR_A_FRACTION and failed > most * run
            return f"more than {most:.0%} of {run} items failed" if over else None
        return f"more than max_errors={most} items failed" if failed > most else None
