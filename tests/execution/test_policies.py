"""Laws of policies: checked when built, frozen, and apart from what counts during a pass."""

from __future__ import annotations

import dataclasses
import errno
import http.client
import io
import math
import pickle
import urllib.error
from collections.abc import Callable, Iterator
from datetime import timedelta
from email.message import Message
from http import HTTPStatus
from typing import Any

import httpx
import numpy as np
import pytest
from conftest import shown
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import InvalidOption, Rate, Retry, clock
from checkpoint.execution.clients import denial_of
from checkpoint.execution.policies import (
    Again,
    Durability,
    ErrorCount,
    ErrorLimit,
    OnChange,
    check_choice,
    check_validate,
    rates_of,
    retry_of,
)

NO_LIMIT = ErrorLimit(None, in_a_row=10**9, unencodable=10**9)


@pytest.mark.parametrize("limit", [-1, -0.5, 1.0, 2.5, math.nan, math.inf, True, "3", [1]], ids=shown)
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
    """A count after these ends: `.` success, a letter a failure of that type (a capital: as it failed before)."""
    counted = ErrorCount(limit)
    for ran, end in enumerate(ends, 1):
        if end == ".":
            counted.run += 1
        else:
            counted.fail(end.lower(), again=end.isupper(), unencodable=end == "!")
            counted.in_a_row(end.lower(), ran, again=end.isupper())
    return counted


VERDICTS = [
    (ErrorLimit(0), ".", None, "no failure"),
    (ErrorLimit(0), ".a", "max_errors=0", "the first failure"),
    (ErrorLimit(2), "aa", None, "as many as are allowed"),
    (ErrorLimit(2), "a.b.c", "max_errors=2", "one more"),
    (ErrorLimit(), "a" * 99, None, "not a hundred yet"),
    (ErrorLimit(), "a" * 100, "100 items in a row failed with a", "a hundred in a row"),
    (ErrorLimit(), "...b" + "a" * 100, "100 items in a row failed with a", "anywhere in the pass"),
    (ErrorLimit(), ("a" * 99 + ".") * 5, None, "a success after each 99"),
    (ErrorLimit(), "a" * 100 + ".b.", "100 items in a row failed with a", "whatever calls under way come to then"),
    (ErrorLimit(), "ab" * 500, None, "of two types by turns"),
    (ErrorLimit(500), "a" * 400, None, "max_errors is the limit in place of a hundred in a row"),
    (ErrorLimit(0.5), "." * 200 + "a" * 150, None, "so is a fraction"),
    (ErrorLimit(), "A" * 500, None, "all failed so before"),
    (ErrorLimit(), ".." + "A" * 500, None, "new ones succeeded, and the old fail as before"),
    (ErrorLimit(), "a" * 99 + "A" * 9 + "a", "100 items in a row failed with a", "old failures end no row"),
    (ErrorLimit(), "A" * 99 + "a" * 99, None, "and are no part of it"),
    (ErrorLimit(0), "AAA", None, "old failures are none of the count"),
    (ErrorLimit(0), "AAAb", "max_errors=0", "a new one is"),
    (ErrorLimit(0.2), ".." + "A" * 500, None, "nor of a fraction"),
    (ErrorLimit(0.2), "A" * 500 + "." * 79 + "a" * 21, "more than 20% of 100", "which counts what is news"),
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


# --- Retry: what it is given -----------------------------------------------------------------------------------------


class Vague:
    """A function of the exception, as an object."""

    def __call__(self, exception: Exception) -> bool:
        return True


async def later(*_: Any) -> bool:
    """What cannot decide at once."""
    return True


REFUSED = [
    # arguments, what the message says, reason
    ({"attempts": 0}, "attempts is 0; give an int of 1 or more", "no call at all"),
    ({"attempts": -1}, "attempts is -1", "negative"),
    ({"attempts": None}, "attempts is None; give an int", "nothing"),
    ({"attempts": True}, "attempts is True", "True is an int, and is not meant as one"),
    ({"attempts": 2.0}, "attempts is 2.0", "a float"),
    ({"attempts": "3"}, "attempts is '3'", "text"),
    ({"wait": -1}, "wait is -1; give a number of seconds", "negative"),
    ({"wait": math.nan}, "wait is nan", "NaN"),
    ({"wait": math.inf}, "wait is inf; give a number of seconds that end", "forever"),
    ({"wait": "1"}, "wait is '1'", "text"),
    ({"wait": True}, "wait is True", "a switch"),
    ({"wait": None}, "wait is None", "nothing"),
    ({"max_wait": -0.1}, "max_wait is -0.1", "negative"),
    ({"max_wait": math.nan}, "max_wait is nan", "NaN"),
    ({"max_wait": None}, "max_wait is None", "nothing"),
    ({"patience": -1}, "patience is -1; give a number of seconds", "negative"),
    ({"patience": None}, "patience is None", "nothing"),
    ({"on": ()}, "on is (); give exception types", "no type"),
    ({"on": [OSError]}, "give exception types", "a list, which isinstance does not take"),
    ({"on": (OSError, "x")}, "give exception types", "one that is no type"),
    ({"on": int}, "give exception types", "a type of no exception"),
    ({"on": OSError("x")}, "give exception types", "an exception, and not its type"),
    ({"on": 429}, "on is 429", "a status"),
    ({"on": later}, "a plain function", "a coroutine function: what it returns is always true"),
]


@pytest.mark.parametrize(("arguments", "message", "reason"), REFUSED, ids=[f"{shown(a)} {r}" for a, _, r in REFUSED])
def test_a_wrong_argument_of_retry_is_refused_when_built(arguments: Any, message: str, reason: str) -> None:
    """The message names the argument, shows what was given, and says what to give."""
    with pytest.raises(InvalidOption) as refused:
        Retry(**arguments)
    assert message in str(refused.value), reason


@pytest.mark.parametrize(
    "arguments",
    [
        {"attempts": 1},
        {"wait": 0},
        {"wait": 0.5, "max_wait": 0},
        {"max_wait": math.inf},
        {"wait": lambda made: made},
        {"on": OSError},
        {"on": (OSError, KeyError)},
        {"on": lambda error: True},
        {"on": Vague()},
    ],
    ids=shown,
)
def test_what_retry_can_be_given(arguments: Any) -> None:
    """And it holds what it was given."""
    retry = Retry(**arguments)
    assert {name: getattr(retry, name) for name in arguments} == arguments
    with pytest.raises(dataclasses.FrozenInstanceError):
        retry.attempts = 9  # type: ignore[misc]


def test_a_retry_travels_to_workers() -> None:
    """Exceptions are judged where they are raised."""
    retry = Retry(5, on=(ConnectionError, KeyError), wait=0.5, max_wait=3)
    assert pickle.loads(pickle.dumps(retry)) == retry
    assert pickle.loads(pickle.dumps(Again(1.5, "HTTP 429"))) == Again(1.5, "HTTP 429")


def test_the_retry_option_names_a_policy() -> None:
    """None, a number of attempts, or a `Retry`."""
    policy = Retry(7)
    assert (retry_of(None), retry_of(3), retry_of(policy)) == (None, Retry(3), policy)


@pytest.mark.parametrize("given_", [0, -1, True, False, 3.0, "3", OSError, [3]], ids=shown)
def test_a_retry_option_of_another_kind_is_refused(given_: Any) -> None:
    """With what to write in its place."""
    with pytest.raises(InvalidOption, match=r"retry is .*retry=3"):
        retry_of(given_)


@pytest.mark.parametrize("validate", [None, bool, len, Vague(), lambda value: True], ids=shown)
def test_what_validates_is_a_plain_function(validate: Any) -> None:
    """Or nothing is."""
    check_validate(validate)


@pytest.mark.parametrize("validate", [later, True, "len", 3], ids=shown)
def test_what_cannot_validate_is_refused(validate: Any) -> None:
    """A coroutine function too: what it returns is always true."""
    with pytest.raises(InvalidOption, match="give a plain function of the value"):
        check_validate(validate)


# --- Retry: which exceptions -----------------------------------------------------------------------------------------

AGAIN = Again()


def when(judged: Again | None) -> Again | None:
    """A judgement without the trouble it tells of."""
    return judged if judged is None else Again(judged.after)


def raised_from(error: Exception, *causes: BaseException) -> Exception:
    """`error`, raised from the first cause, which was raised from the next …"""
    last: BaseException = error
    for cause in causes:
        last.__cause__ = cause
        last = cause
    return error


def raised_during(error: Exception, context: Exception) -> Exception:
    """`error`, raised while another was handled."""
    error.__context__ = context
    return error


def hiding(error: Exception, context: Exception) -> Exception:
    """`error`, raised `from None` while another was handled."""
    error.__context__, error.__cause__ = context, None  # which suppresses the context
    return error


class Insensitive(dict[str, Any]):
    """Headers as requests and aiohttp have them: names are looked up in any case."""

    def __init__(self, headers: Any = ()) -> None:
        super().__init__(headers)
        self._lower = {name.lower(): value for name, value in self.items()}

    def __getitem__(self, name: str) -> Any:
        return self._lower[name.lower()]

    def __contains__(self, name: object) -> bool:
        return str(name).lower() in self._lower


class Thing:
    """Attributes; false, as requests' Response is for 4xx and 5xx."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __bool__(self) -> bool:
        return False


class RequestsError(IOError):
    """As `requests.HTTPError`: an OSError, its response falsy."""

    def __init__(self, status: int, headers: Any = None) -> None:
        super().__init__(f"{status} for url")
        self.response = Thing(status_code=status, headers=Insensitive(headers or {}))
        self.request = None


class AiohttpError(Exception):
    """As `aiohttp.ClientResponseError`: `.status`, `.headers`, and no response."""

    def __init__(self, status: int, headers: Any = None) -> None:
        super().__init__(status)
        self.status, self.headers = status, headers and Insensitive(headers)


class OpenaiError(Exception):
    """As `openai.APIStatusError` and `anthropic.APIStatusError`: `.status_code`, and httpx's response."""

    def __init__(self, status: int, headers: Any = None) -> None:
        super().__init__(f"Error code: {status}")
        self.response = httpx.Response(status, headers=headers)
        self.status_code, self.code = status, "rate_limit_exceeded"


class GoogleError(Exception):
    """As `google.api_core.exceptions.GoogleAPICallError`: `.code` is an HTTPStatus, `.response` None."""

    def __init__(self, status: int, headers: Any = None) -> None:
        super().__init__(status)
        self.code = HTTPStatus(status) if status in list(HTTPStatus) else status
        self.response, self.headers = None, headers


def httpx_error(status: int, headers: Any = None) -> Exception:
    """What `response.raise_for_status()` raises."""
    response = httpx.Response(status, headers=headers, request=httpx.Request("GET", "http://localhost"))
    try:
        response.raise_for_status()
    except httpx.HTTPStatusError as error:
        return error
    raise AssertionError(f"{status} is no error to httpx")


def urllib_error(status: int, headers: Any = None) -> Exception:
    """What urllib.request.urlopen raises: an OSError, whatever the status."""
    message = Message()
    for name, value in (headers or {}).items():
        message[name] = value
    return urllib.error.HTTPError("http://localhost", status, "no", message, io.BytesIO())


def bodiless_urllib_error(status: int, headers: Any = None) -> Exception:
    """One that was made by hand: asking it for an attribute it has not got raises KeyError."""
    hdrs: Any = headers
    return urllib.error.HTTPError("http://localhost", status, "no", hdrs, None)


CLIENTS: dict[str, Callable[..., Exception]] = {
    "requests": RequestsError,
    "httpx": httpx_error,
    "aiohttp": AiohttpError,
    "urllib": urllib_error,
    "urllib, no body": bodiless_urllib_error,
    "openai and anthropic": OpenaiError,
    "google": GoogleError,
    "wrapped": lambda *given: raised_from(RuntimeError("no answer"), httpx_error(*given)),
    "wrapped twice": lambda *given: raised_from(ValueError(), RuntimeError(), RequestsError(*given)),
}


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Exception]]:
    """Makes the exception that a client raises for a status and headers."""
    made: list[Exception] = []

    def make(*given: Any) -> Exception:
        made.append(CLIENTS[request.param](*given))
        return made[-1]

    yield make
    for error in made:
        if isinstance(error, urllib.error.HTTPError) and error.fp is not None:
            error.close()


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529, 599])
def test_a_status_that_may_pass_is_tried_again(client: Callable[..., Exception], status: int) -> None:
    """Whichever client tells it; too many requests, and what is the server's fault, others would meet too."""
    trouble = f"HTTP {status}" if status not in (408, 409) else ""
    assert Retry().judge(client(status)) == Again(None, trouble)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 422, 451])
def test_a_status_that_stays_is_not(client: Callable[..., Exception], status: int) -> None:
    """Though the exceptions of some clients are OSErrors."""
    assert Retry().judge(client(status)) is None


class Odd(Exception):
    """An exception with attributes of any kind."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Hostile(OSError):
    """Each of its properties raises."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is not there yet")


JUDGED = [
    # exception, whether it is tried again, reason
    (OSError("x"), True, "OSError"),
    (ConnectionResetError("x"), True, "a part of it"),
    (BrokenPipeError("x"), True, "another"),
    (TimeoutError("x"), True, "TimeoutError"),
    (FileNotFoundError("x"), True, "an OSError too: files on a network come and go"),
    (http.client.RemoteDisconnected("x"), True, "the standard library's, which is a ConnectionResetError"),
    (urllib.error.URLError(OSError("x")), True, "urllib's, where there was no answer"),
    (Hostile("x"), True, "an OSError whose properties raise"),
    (raised_from(RuntimeError("x"), OSError("y")), True, "raised from one, as clients do"),
    (raised_from(RuntimeError(), KeyError(), OSError()), True, "raised from what was raised from one"),
    (raised_during(RuntimeError("x"), OSError("y")), False, "raised while one was handled says nothing"),
    (raised_from(RuntimeError("x"), ValueError("y")), False, "raised from another"),
    (raised_from(RuntimeError("x"), hiding(RuntimeError("y"), OSError("z"))), True, "as httpcore does it below httpx"),
    (hiding(ValueError("x"), OSError("y")), False, "who hides an error of his own means it"),
    (raised_from(RuntimeError("x"), raised_during(KeyError("y"), OSError("z"))), False, "nor does a cause's context"),
    (raised_from(OSError("x"), httpx_error(404)), False, "a status tells otherwise"),
    (raised_from(httpx_error(500), ValueError("x")), True, "its own status, and not its cause's"),
    (TypeError("x"), False, "the code is at fault"),
    (ValueError("x"), False, "so it is"),
    (KeyError("x"), False, "so it is"),
    (AttributeError("x"), False, "so it is"),
    (AssertionError("x"), False, "so it is"),
    (ZeroDivisionError("x"), False, "so it is"),
    (MemoryError(), False, "once more would not help"),
    (RuntimeError("x"), False, "nothing is known of it"),
    (ExceptionGroup("x", [OSError("y")]), False, "nothing is known of a group"),
    (Odd(status_code=503), True, "a status"),
    (Odd(status=503), True, "by another name"),
    (Odd(code=503), True, "by a third"),
    (Odd(response=Thing(status=503)), True, "of a response"),
    (Odd(code=True), False, "no status"),
    (Odd(code="503"), False, "no status"),
    (Odd(status=1006), False, "a websocket's code"),
    (Odd(code=lambda: 503), False, "a method, as gRPC's"),
    (Odd(status_code=None, status=500), True, "the first one that there is"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("exception", "again", "reason"), JUDGED, ids=[f"{type(e).__name__}: {r}" for e, _, r in JUDGED]
)
def test_what_is_tried_again_by_default(exception: Exception, again: bool, reason: str) -> None:
    """OSError and TimeoutError, also as the explicit cause, unless a status tells otherwise."""
    assert when(Retry().judge(exception)) == (AGAIN if again else None), reason


def test_causes_that_go_round_in_circles_come_to_an_end() -> None:
    """Somebody did it."""
    error, cause = ValueError("x"), KeyError("y")
    error.__cause__, cause.__cause__ = cause, error
    assert Retry().judge(error) is None


CHOSEN = [
    # on, exception, whether it is tried again, reason
    (KeyError, KeyError("x"), True, "the type"),
    ((KeyError, ValueError), UnicodeError("x"), True, "a part of one of several"),
    (KeyError, OSError("x"), False, "the default types are not added"),
    (ConnectionError, ConnectionResetError("x"), True, "a part of it"),
    (ConnectionError, FileNotFoundError("x"), False, "another OSError"),
    (ConnectionError, raised_from(RuntimeError(), ConnectionResetError()), True, "as the explicit cause"),
    (KeyError, httpx_error(503), True, "types are added to the statuses"),
    (KeyError, httpx_error(404), False, "another status"),
    (httpx.HTTPStatusError, httpx_error(404), True, "who names the type means it, whatever the status"),
    (lambda error: True, ValueError("x"), True, "a function decides"),
    (lambda error: False, httpx_error(503), False, "it decides alone"),
    (lambda error: False, OSError("x"), False, "alone"),
    (lambda error: "yes", ValueError("x"), True, "by what is true"),
    (lambda error: None, OSError("x"), False, "or is not"),
    (lambda error: isinstance(error, KeyError), KeyError("x"), True, "it is given the exception"),
    (Vague(), ValueError("x"), True, "an object that is called"),
]  # fmt: skip


@pytest.mark.parametrize(("on", "exception", "again", "reason"), CHOSEN, ids=[r for *_, r in CHOSEN])
def test_what_is_tried_again_may_be_said(on: Any, exception: Exception, again: bool, reason: str) -> None:
    """Types besides the statuses; or a function that decides alone."""
    assert when(Retry(on=on).judge(exception)) == (AGAIN if again else None), reason


def test_a_function_that_raises_is_heard() -> None:
    """Its error goes to who asks: the call's failure tells of it."""
    with pytest.raises(ZeroDivisionError):
        Retry(on=lambda error: 1 / 0).judge(OSError("x"))


# --- Retry: Retry-After ----------------------------------------------------------------------------------------------

NOW = 784111777.0
"""Sun, 06 Nov 1994 08:49:37 GMT: the example of RFC 9110."""

TOLD = [
    # Retry-After, seconds, reason
    ("5", 5.0, "seconds"),
    ("0", 0.0, "at once"),
    (" 7 ", 7.0, "with spaces"),
    ("1.5", 1.5, "a part of one, though HTTP has whole ones"),
    ("-3", 0.0, "negative: at once"),
    ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0, "a date"),
    ("Sunday, 06-Nov-94 08:50:07 GMT", 30.0, "in the form of RFC 850"),
    ("Sun Nov  6 08:50:07 1994", 30.0, "in the form of asctime, which is UTC"),
    ("Sun, 06 Nov 1994 09:50:07 +0100", 30.0, "in another zone"),
    ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0, "gone by: at once"),
    ("", None, "empty"),
    ("soon", None, "garbage"),
    ("nan", None, "no number"),
    ("inf", None, "never"),
    ("1e999", None, "never"),
    ("5 s", None, "no form that there is"),
    ("Sun, 99 Nov 1994 99:99:99 GMT", None, "no date"),
]


@pytest.fixture
def _now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now", lambda: NOW)


@pytest.mark.usefixtures("_now")
@pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER", "retry-AFTER"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_retry_after_is_heard_of_any_client(client: Callable[..., Exception], name: str, status: int) -> None:
    """In any case."""
    assert Retry().judge(client(status, {"Content-Type": "text/plain", name: "5"})) == Again(5.0, f"HTTP {status}")


@pytest.mark.usefixtures("_now")
@pytest.mark.parametrize(("told", "seconds", "reason"), TOLD, ids=[reason for *_, reason in TOLD])
def test_what_a_retry_after_says(told: str, seconds: float | None, reason: str) -> None:
    """Seconds, or one of the three forms of a date; what cannot be read says nothing, and the status is left."""
    want = Again(seconds, "HTTP 429")
    assert Retry().judge(httpx_error(429, {"Retry-After": told})) == want, reason
    assert Retry().judge(Odd(status=429, retry_after=told)) == want, reason


ATTRIBUTES = [
    # .retry_after, seconds, reason
    (3, 3.0, "an int"),
    (0.25, 0.25, "a float"),
    (0, 0.0, "at once"),
    (-1, 0.0, "negative: at once"),
    (np.float64(2.5), 2.5, "numpy's float is one"),
    ("12", 12.0, "text"),
    (timedelta(minutes=2), 120.0, "a span"),
    (timedelta(seconds=-5), 0.0, "a negative one"),
    (None, None, "nothing"),
    (True, None, "a switch"),
    (math.nan, None, "no number"),
    (math.inf, None, "never"),
    (10**400, None, "never, as good as"),
    ([3], None, "garbage"),
    (lambda: 3, None, "a method"),
]


@pytest.mark.parametrize(("told", "seconds", "reason"), ATTRIBUTES, ids=[reason for *_, reason in ATTRIBUTES])
def test_a_retry_after_may_be_an_attribute(told: Any, seconds: float | None, reason: str) -> None:
    """Of an exception that would not be tried again otherwise, and has no status: nothing else waits for it."""
    assert Retry().judge(Odd(retry_after=told)) == (None if seconds is None else Again(seconds)), reason


SOURCES = [
    # exception, judgement, reason
    (Odd(retry_after=None, headers={"Retry-After": "4"}), Again(4.0), "where the attribute says nothing"),
    (Odd(retry_after="soon", headers={"Retry-After": "4"}), Again(4.0), "or garbage"),
    (Odd(retry_after=2, headers={"Retry-After": "4"}), Again(2.0), "the attribute first"),
    (Odd(response=Thing(headers={"Retry-After": "4"}), headers={"Retry-After": "9"}), Again(4.0), "a response's next"),
    (Odd(response=Thing(headers={}), headers={"Retry-After": "9"}), Again(9.0), "the exception's last"),
    (Odd(headers=[("Retry-After", "4")]), Again(4.0), "pairs, as http.client has them"),
    (Odd(headers={"Retry-After": 4}), Again(4.0), "a number in a header"),
    (Odd(headers=None), None, "no headers"),
    (Odd(headers="Retry-After: 4"), None, "no mapping"),
    (Odd(headers={3: 4}), None, "no names"),
    (Hostile("x"), AGAIN, "properties that raise"),
    (Odd(response=Hostile("x"), status=429), Again(None, "HTTP 429"), "those of a response"),
    (raised_from(ValueError(), Odd(retry_after=4, status=503)), Again(4.0, "HTTP 503"), "the explicit cause's"),
    (raised_from(Odd(retry_after=1), Odd(retry_after=4)), Again(1.0), "the exception's before its cause's"),
    (raised_during(ValueError(), Odd(retry_after=4)), None, "not that of what was handled"),
    (httpx_error(400, {"Retry-After": "4"}), Again(4.0), "with a status that is not tried again by itself"),
]  # fmt: skip


@pytest.mark.parametrize(("exception", "want", "reason"), SOURCES, ids=[reason for *_, reason in SOURCES])
def test_where_a_retry_after_is_looked_for(exception: Exception, want: Again | None, reason: str) -> None:
    """The attribute, the response's headers, the exception's; then in what it was raised from."""
    assert Retry().judge(exception) == want, reason


@pytest.mark.parametrize("on", [KeyError, (KeyError, OSError)])
def test_a_retry_after_counts_whatever_the_types(on: Any) -> None:
    """Who says when to come again means it."""
    assert Retry(on=on).judge(Odd(retry_after=4)) == Again(4.0)


def test_a_function_decides_over_a_retry_after_too() -> None:
    """It says whether, and the exception when."""
    error = httpx_error(429, {"Retry-After": "4"})
    assert Retry(on=lambda _: False).judge(error) is None
    assert Retry(on=lambda _: True).judge(error) == Again(4.0, "HTTP 429")


@given(st.text())
def test_no_retry_after_breaks_the_judge(told: str) -> None:
    """Servers send anything."""
    judged = Retry().judge(Odd(status=503, headers={"Retry-After": told}))
    assert judged is not None
    assert judged.after is None or 0 <= judged.after < math.inf


# --- Retry: how long -------------------------------------------------------------------------------------------------


@given(
    st.floats(0, 1e6),
    st.floats(0, 1e6) | st.just(math.inf),
    st.integers(1, 10_000),
)
def test_a_wait_is_within_its_bounds(wait: float, max_wait: float, made: int) -> None:
    """From 0 to `wait * 2 ** (made - 1)`, and to `max_wait`; it always ends."""
    delay = Retry(wait=wait, max_wait=max_wait).delay(made)
    assert 0 <= delay <= max_wait
    assert delay <= wait * 2.0 ** min(made - 1, 64)
    assert delay < math.inf


def test_waits_grow_by_full_jitter() -> None:
    """Spread evenly over all of a span that doubles with each attempt, until `max_wait`."""
    retry = Retry(wait=1.0, max_wait=10.0)
    for made, most in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 10.0), (9, 10.0)]:
        delays = [retry.delay(made) / most for _ in range(2000)]
        assert max(delays) <= 1
        quarters = [sum(quarter / 4 <= delay <= (quarter + 1) / 4 for delay in delays) for quarter in range(4)]
        assert min(quarters) > 350, f"of 500 expected: {quarters}"  # 7 standard deviations


def test_the_wait_may_be_a_function_of_the_attempts() -> None:
    """It is exact: no jitter, and `max_wait` is not asked."""
    retry = Retry(wait=lambda made: 100 * made, max_wait=1)
    assert [retry.delay(made) for made in (1, 2, 3)] == [100.0, 200.0, 300.0]
    assert Retry(wait=lambda made: np.int64(3)).delay(1) == 3.0  # type: ignore[arg-type, return-value]
    assert Retry(wait=lambda made: -1).delay(1) == 0.0, "the moment has gone by"


@pytest.mark.parametrize("told", [math.nan, math.inf, None, "soon", [1]], ids=shown)
def test_a_function_that_returns_no_span_is_heard(told: Any) -> None:
    """Its retry would never be due."""
    with pytest.raises((InvalidOption, TypeError, ValueError)):
        Retry(wait=lambda made: told).delay(1)


# --- Rate ------------------------------------------------------------------------------------------------------------

RATES = [
    # text, limit, per, reason
    ("500/min", 500, 60.0, "as in the README"),
    ("8/s", 8, 1.0, "seconds"),
    ("1,000 / hour", 1000, 3600.0, "thousands, spaces"),
    ("1_000/h", 1000, 3600.0, "thousands as in code"),
    ("1,000,000/day", 1_000_000, 86400.0, "days"),
    ("10 per second", 10, 1.0, "in words"),
    ("10 per minutes", 10, 60.0, "plural"),
    ("10 PER Sec", 10, 1.0, "in any case"),
    ("  60/m  ", 60, 60.0, "spaces around"),
    ("2.5/secs", 2.5, 1.0, "a part of a call"),
    ("3/hrs", 3, 3600.0, "short and plural"),
    ("100/d", 100, 86400.0, "one letter"),
]


@pytest.mark.parametrize(("text", "limit", "per", "reason"), RATES, ids=[text for text, *_ in RATES])
def test_a_rate_may_be_written(text: str, limit: float, per: float, reason: str) -> None:
    """A number, `/` or "per", and a unit."""
    assert rates_of(text) == (Rate(limit, per),), reason


GARBAGE = [
    "", "500", "/min", "500/", "min/500", "500 min", "500/fortnight", "5/ms", "5/ss", "5/mon", "five/min", "nan/s",
    "-5/min", "1,5/min", "1,0000/s", "1__0/s", ",5/s", "5./s", "1e3/s", "500/min/s", "500 per", "500 per min ute",
]  # fmt: skip


@pytest.mark.parametrize("text", GARBAGE, ids=shown)
def test_a_rate_that_cannot_be_read_is_refused(text: str) -> None:
    """It is never guessed: a comma is no decimal point, and ms are no minutes."""
    with pytest.raises(InvalidOption, match=r'write "500/min"'):
        rates_of(text)


@given(st.text() | st.from_regex(r"[\d,._]{1,9} ?(/|per) ?[a-z]{1,6}"))
def test_any_text_is_a_rate_or_is_refused(text: str) -> None:
    """Nothing else comes of it."""
    try:
        (rate,) = rates_of(text)
    except InvalidOption:
        return
    assert rate.limit >= 1
    assert rate.per in (1, 60, 3600, 86400)


def test_several_rates_at_once() -> None:
    """Written or built; none is none."""
    tokens = Rate(200_000, per=60, cost=len)
    assert rates_of(["500/min", tokens]) == rates_of(("500/min", tokens)) == (Rate(500), tokens)
    assert (rates_of(None), rates_of([]), rates_of(tokens)) == ((), (), (tokens,))


@pytest.mark.parametrize("given_", [500, 8.0, {"limit": 5}, [500], ["5/s", None], True, iter(["5/s"])], ids=shown)
def test_a_rate_option_of_another_kind_is_refused(given_: Any) -> None:
    """With what to write in its place."""
    with pytest.raises(InvalidOption, match=r'rate is .*"500/min"'):
        rates_of(given_)


REFUSED_RATES = [
    # arguments, what the message says, reason
    ({"limit": 0}, "limit is 0", "nothing could start"),
    ({"limit": -5}, "limit is -5", "negative"),
    ({"limit": 0.5}, "make `per` longer", "less than a call: Rate(1, per=2) says it"),
    ({"limit": math.nan}, "limit is nan", "NaN"),
    ({"limit": math.inf}, "limit is inf", "no rate"),
    ({"limit": True}, "limit is True", "a switch"),
    ({"limit": "500/min"}, "limit is '500/min'", "text is for rate="),
    ({"limit": 5, "per": 0}, "per is 0; give a number of seconds above 0", "no span"),
    ({"limit": 5, "per": -1}, "per is -1", "negative"),
    ({"limit": 5, "per": math.nan}, "per is nan", "NaN"),
    ({"limit": 5, "per": math.inf}, "per is inf", "the sixth call would never start"),
    ({"limit": 5, "per": "min"}, "per is 'min'", "text"),
    ({"limit": 5, "cost": 3}, "cost is 3; give a plain function", "no function"),
    ({"limit": 5, "cost": later}, "give a plain function", "a coroutine function"),
]


@pytest.mark.parametrize(("arguments", "message", "reason"), REFUSED_RATES, ids=[r for *_, r in REFUSED_RATES])
def test_a_wrong_argument_of_rate_is_refused_when_built(arguments: Any, message: str, reason: str) -> None:
    """The message names the argument, shows what was given, and says what to give."""
    with pytest.raises(InvalidOption) as refused:
        Rate(**arguments)
    assert message in str(refused.value), reason


def test_a_rate_with_costs_may_have_a_limit_below_one() -> None:
    """Dollars, say. It is frozen, and travels."""
    rate = Rate(0.5, per=3600, cost=abs)
    assert pickle.loads(pickle.dumps(rate)) == rate
    with pytest.raises(dataclasses.FrozenInstanceError):
        rate.limit = 1  # type: ignore[misc]


# --- the server's trouble, and the account's --------------------------------------------------------------------------

TROUBLES = [
    # exception, trouble, reason
    (Odd(status_code=429), "HTTP 429", "too many requests"),
    (Odd(status_code=529), "HTTP 529", "overloaded"),
    (Odd(status_code=502), "HTTP 502", "its gateway"),
    (Odd(status_code=409), "", "a conflict is the item's"),
    (Odd(body={"error": {"type": "overloaded_error"}}, status_code=200), "HTTP 529", "within a stream"),
    (Odd(body={"error": {"type": "server_error"}}), "HTTP 500", "within a stream, without a status"),
    (ConnectionRefusedError("x"), "ConnectionRefusedError", "nobody listens"),
    (OSError(errno.EHOSTUNREACH, "x"), "OSError", "no way to it"),
    (urllib.error.URLError(ConnectionResetError("x")), "URLError", "urllib's, for its reason"),
    (raised_from(RuntimeError("x"), ConnectionResetError("x")), "ConnectionResetError", "as a cause"),
    (httpx.RemoteProtocolError("x"), "RemoteProtocolError", "a stream that was cut"),
    (httpx.ConnectTimeout("x"), "ConnectTimeout", "nobody answers"),
    (httpx.ReadTimeout("x"), "", "an answer that takes long may be the item's"),
    (TimeoutError("x"), "", "so may a call that does"),
    (FileNotFoundError(2, "x"), "", "a file is the item's"),
]  # fmt: skip


@pytest.mark.parametrize(("exception", "trouble", "reason"), TROUBLES, ids=[reason for *_, reason in TROUBLES])
def test_what_other_items_would_meet_too(exception: Exception, trouble: str, reason: str) -> None:
    """A refusal, an error of the server, a connection that is lost; and not what may be the item's own."""
    judged = Retry().judge(exception)
    assert judged is not None
    assert judged.trouble == trouble, reason


DENIALS = [
    # exception, denial, reason
    (Odd(status_code=401), "HTTP 401", "a wrong key"),
    (Odd(status_code=402), "HTTP 402", "nothing is paid"),
    (raised_from(RuntimeError("x"), Odd(status=403)), "HTTP 403", "as a cause"),
    (Odd(status_code=429, code="insufficient_quota"), "insufficient quota", "openai: no credit"),
    (Odd(status_code=400, body={"error": {"type": "billing_error"}}), "insufficient quota", "anthropic's"),
    (Odd(status_code=429), "", "come again later"),
    (Odd(status_code=404), "", "the item's"),
    (PermissionError("x"), "", "a file's"),
    (ValueError("x"), "", "the code's"),
]


@pytest.mark.parametrize(("exception", "denial", "reason"), DENIALS, ids=[reason for *_, reason in DENIALS])
def test_what_is_denied_to_everybody_with_this_key(exception: Exception, denial: str, reason: str) -> None:
    """It is known, and is not tried again: waiting does not pay."""
    assert denial_of(exception) == denial, reason
    assert not denial or Retry().judge(exception) is None


DENIED_ROWS = [
    ("d" * 9, False),
    ("d" * 10, True),
    ("d" * 9 + "." + "d" * 9, False),
    ("D" * 20, False),
    ("ad" * 20, False),
]


@pytest.mark.parametrize(("ends", "is_over"), DENIED_ROWS)
def test_ten_denials_in_a_row_end_the_pass(ends: str, is_over: bool) -> None:
    """Of items that had not failed so before (a capital), one after the other."""
    counted = ErrorCount(ErrorLimit())
    for ran, end in enumerate(ends, 1):
        if end != ".":
            counted.fail(end, again=end.isupper())
            counted.in_a_row(end, ran, again=end.isupper(), denied="" if end == "a" else "HTTP 401: no")
    assert ("HTTP 401" in (counted.verdict() or "")) == is_over


def test_probes_come_more_seldom_until_ten_times_the_first() -> None:
    """Within max_wait, never without a pause, and by the user's function where that is one."""
    assert Retry().probes() == [1, 2, 4, 8, 10]
    assert Retry(wait=0).probes()[0] > 0
    assert Retry(wait=30).probes() == [30, 60, 60, 60, 60]
    assert Retry(wait=lambda made: 3).probes()[0] == 3
    assert Retry(wait=lambda made: 1 / 0).probes()[0] == 1
