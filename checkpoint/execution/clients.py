"""What the exceptions of clients say: an HTTP status, when to come again, and whether a connection was lost.

Nothing is imported for it. A client is known by attributes, or by the root of its modules and the names of its classes:
an exception counts by whichever class along its MRO is named here, so that subclasses of other packages count too.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, timedelta
from typing import Any, Final, TypeVar

from checkpoint import clock

__all__ = [
    "denial_of",
    "first",
    "is_lost_connection",
    "is_out_of_credit",
    "retry_after_of",
    "status_of",
    "stays",
    "trouble_of",
    "with_causes",
]

T = TypeVar("T")

_LOST: Final[dict[str, frozenset[str]]] = {
    "httpx": frozenset({"NetworkError", "TimeoutException", "RemoteProtocolError", "ProxyError"}),
    "aiohttp": frozenset({"ClientConnectionError", "ClientPayloadError"}),
    "urllib3": frozenset({
        "ProtocolError", "TimeoutError", "ConnectionError", "MaxRetryError", "ProxyError", "SSLError",
    }),
    "http": frozenset({"IncompleteRead"}),
    "asyncio": frozenset({"IncompleteReadError"}),
    "botocore": frozenset({"ConnectionError", "HTTPClientError", "IncompleteReadError"}),
    "grpc": frozenset({"FutureTimeoutError"}),
    "google": frozenset({"RetryError", "TransportError"}),
    "openai": frozenset({"APIConnectionError", "WebSocketConnectionClosedError"}),
    "anthropic": frozenset({"APIConnectionError"}),
}  # fmt: skip
"""Classes for a connection that was lost, by the root of their modules; OSError and TimeoutError are such anyway."""

_STAYS: Final[dict[str, frozenset[str]]] = {
    "aiohttp": frozenset({"InvalidURL", "ServerFingerprintMismatch"}),
    "requests": frozenset({
        "InvalidURL", "InvalidSchema", "InvalidHeader", "MissingSchema", "URLRequired", "TooManyRedirects",
        "UnrewindableBodyError", "StreamConsumedError",
    }),
    "botocore": frozenset({"InvalidProxiesConfigError"}),
}  # fmt: skip
"""Classes for what stays as it is, though they derive from OSError or from a lost connection."""

_CUT: Final[dict[str, frozenset[str]]] = {
    **_LOST,
    "httpx": frozenset({"NetworkError", "ConnectTimeout", "RemoteProtocolError", "ProxyError"}),
    "urllib3": frozenset({
        "ProtocolError", "ConnectTimeoutError", "ConnectionError", "MaxRetryError", "ProxyError", "NewConnectionError",
        "NameResolutionError",
    }),
    "requests": frozenset({"ConnectionError", "ChunkedEncodingError"}),
    "botocore": frozenset({"ConnectionError", "IncompleteReadError"}),
    "grpc": frozenset(),
    "google": frozenset({"TransportError"}),
    "socket": frozenset({"gaierror"}),
}  # fmt: skip
"""Those of them that say that the server, or the way to it, is gone; besides ConnectionError and the like."""

_SLOW = frozenset({"APITimeoutError", "SocketTimeoutError", "ReadTimeout", "ReadTimeoutError"})
"""Classes for an answer that took too long, which may be the item's own; they derive from lost connections."""

_GONE = frozenset({
    errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTUNREACH, errno.ETIMEDOUT,
    getattr(errno, "EHOSTDOWN", errno.EHOSTUNREACH),
})  # fmt: skip

_NO_CREDIT = frozenset({
    "insufficient_quota", "billing_error", "billing_not_active", "billing_hard_limit_reached", "insufficient_credits",
})  # fmt: skip
"""Types and codes of errors that say that nothing is left to pay with: waiting does not help."""

_DENIED = frozenset({401, 402, 403})

_AUTHENTICATION = re.compile(
    "Authenticat|Authoriz|Credential|Unauth|NoAuth|OAuth|PermissionDenied|Forbidden|IdentityToken|WorkloadIdentity"
    "|TokenLoad|TokenRetrieval|RefreshError"
)

# https://github.com/googleapis/googleapis/blob/master/google/rpc/code.proto
_GRPC: Final[dict[str, int]] = {
    "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404,
    "ALREADY_EXISTS": 400, "PERMISSION_DENIED": 403, "UNAUTHENTICATED": 401, "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400, "ABORTED": 409, "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 400, "INTERNAL": 500,
    "UNAVAILABLE": 503, "DATA_LOSS": 500,
}  # fmt: skip
"""HTTP statuses of gRPC's codes; but those of what stays as it is are 400."""

# botocore.retries.standard, and the errors of Bedrock's streams
_AWS: Final[dict[str, int]] = {
    **dict.fromkeys([
        "throttling", "throttlingexception", "throttledexception", "requestthrottledexception", "requestthrottled",
        "toomanyrequestsexception", "provisionedthroughputexceededexception", "requestlimitexceeded",
        "bandwidthlimitexceeded", "limitexceededexception", "slowdown", "ec2throttledexception",
        "transactioninprogressexception", "priorrequestnotcomplete",
    ], 429),
    **dict.fromkeys([
        "requesttimeout", "requesttimeoutexception", "internalerror", "internalservererror", "internalserverexception",
        "serviceunavailable", "serviceunavailableexception", "modelnotreadyexception", "modeltimeoutexception",
        "modelstreamerrorexception",
    ], 503),
}  # fmt: skip
"""HTTP statuses of AWS's error codes, whose own status may be 400, or, within a stream, none at all."""

_EVENTS: Final[dict[str, int]] = {
    "overloaded_error": 529, "rate_limit_error": 429, "rate_limit_exceeded": 429, "api_error": 500,
    "timeout_error": 504, "server_error": 500, "internal_server_error": 500,
}  # fmt: skip
"""HTTP statuses of the error events of openai and anthropic, which come within a stream whose status was 200."""


def with_causes(exception: BaseException) -> list[BaseException]:
    """The exception and what it was raised from: clients wrap the operating system's errors in their own.

    What was handled meanwhile does not count: ``except FileNotFoundError: compute()`` says nothing of what compute
    raises. But httpcore, below httpx, raises its wrapped errors once more ``from None``, and leaves no other trace.
    """
    chain = [exception]
    while True:
        last = chain[-1]
        hidden = last.__context__ if last.__suppress_context__ and len(chain) > 1 else None
        inner = hidden if last.__cause__ is None else last.__cause__
        if inner is None or any(inner is one for one in chain):
            return chain
        chain.append(inner)


def first(told: Iterable[T | None]) -> T | None:
    """The first that is not None, if any."""
    return next((one for one in told if one is not None), None)


def is_lost_connection(exception: BaseException) -> bool:
    """Whether it says that there was no connection, that it was cut, or that it took too long."""
    return isinstance(exception, OSError) or _is_named(exception, _LOST)


def trouble_of(chain: list[BaseException], status: int | None) -> str:
    """The server's trouble that other items would meet too: a refusal, an error of its own, or that it is gone.

    Args:
        chain: an exception, and what it was raised from.
        status: that it tells, if any.

    Returns:
        In words; empty where the failure may be the item's own.
    """
    if status is not None:
        return f"HTTP {status}" if status == 429 or (status >= 500 and status != 501) else ""
    return next((type(one).__name__ for one in chain if _is_cut(one)), "")


def _is_cut(exception: BaseException) -> bool:
    if not _SLOW.isdisjoint([name for _, name in _classes_of(exception)]):
        return False
    reason = _asked(exception, "reason")  # of urllib's URLError
    if isinstance(reason, OSError) and reason is not exception and _is_cut(reason):
        return True
    is_gone = isinstance(exception, OSError) and exception.errno in _GONE
    return is_gone or isinstance(exception, ConnectionError) or _is_named(exception, _CUT)


def is_out_of_credit(chain: list[BaseException]) -> bool:
    """Whether one of them says, by a type or code of its own or of its body, that there is nothing to pay with."""
    return any(not _NO_CREDIT.isdisjoint(_events_of(one)) for one in chain)


def denial_of(exception: BaseException) -> str:
    """The reason for which the server refuses everybody with this key, in words; empty where it is another failure."""
    chain = with_causes(exception)
    if is_out_of_credit(chain):
        return "insufficient quota"
    status = first(status_of(one, is_cause=one is not exception) for one in chain)
    if status is None:
        return "authentication failed" if any(map(_is_refusal, chain)) else ""
    return f"HTTP {status}" if status in _DENIED else ""


def stays(exception: BaseException, chain: list[BaseException]) -> bool:
    """Whether it would come again: a fault of the code, or an authentication that failed.

    Args:
        exception: what was raised.
        chain: it, and what it was raised from.
    """
    if isinstance(exception, TypeError):
        return True
    return any(_is_named(one, _STAYS) or _is_refusal(one) for one in chain)


def _is_refusal(exception: BaseException) -> bool:
    if _asked(exception, "retryable") is True:  # google.auth says so of what a server answered while it was down
        return False
    return any(_AUTHENTICATION.search(name) for _, name in _classes_of(exception))


def _classes_of(exception: BaseException) -> Iterator[tuple[str, str]]:
    """(root of the module, name) of each class along its MRO; httpx2, httpcore and httpcore2 count as httpx."""
    for kind in type(exception).__mro__:
        root = str(kind.__module__).partition(".")[0]
        yield ("httpx" if re.fullmatch(r"http(x|core)\d*", root) else root), kind.__name__


def _is_named(exception: BaseException, names: Mapping[str, frozenset[str]]) -> bool:
    return any(name in names.get(root, ()) for root, name in _classes_of(exception))


def _asked(thing: object, name: str) -> Any:
    """An attribute, or None; a property of somebody's exception may raise anything."""
    try:
        return getattr(thing, name, None)
    except Exception:
        return None


def _entry(thing: object, *names: str) -> Any:
    """What is found in mappings within mappings, or None."""
    for name in names:
        if not isinstance(thing, Mapping):
            return None
        thing = thing.get(name)
    return thing


# --- statuses --------------------------------------------------------------------------------------------------------


def status_of(exception: BaseException, *, is_cause: bool = False) -> int | None:
    """The HTTP status that the exception tells, or that its code of gRPC, AWS or a stream's error event stands for.

    Args:
        exception: any.
        is_cause: whether another was raised from it: then its `.code` need not be a status (of aiohttp's parser it is
            not), unless its client is known for that.
    """
    roots = {root for root, _ in _classes_of(exception)}
    response = _asked(exception, "response")
    told: int | None
    if "botocore" in roots:
        told = _AWS.get(str(_entry(response, "Error", "Code")).lower())
        return told or _as_status(_entry(response, "ResponseMetadata", "HTTPStatusCode"))
    if "grpc" in roots:
        return _GRPC.get(_grpc_code(_asked(exception, "code")))
    if "google" in roots and (told := _GRPC.get(_grpc_code(_asked(exception, "grpc_status_code")))):
        return told
    places = [(exception, "status_code"), (response, "status_code"), (exception, "status"), (response, "status")]
    if not is_cause or roots & {"google", "urllib"}:
        places.append((exception, "code"))
    status = first(_as_status(_asked(thing, name)) for thing, name in places)
    if status in (None, 200):
        events = _events_of(exception, own=bool(roots & {"openai", "anthropic"}))
        return first(_EVENTS.get(event) for event in events) or status
    return status


def _as_status(told: Any) -> int | None:
    is_status = isinstance(told, int) and not isinstance(told, bool) and 100 <= told < 600
    return int(told) if is_status else None


def _grpc_code(code: Any) -> str:
    """The name of a code of gRPC, or of the one that a method returns."""
    try:
        return str(_asked(code() if callable(code) else code, "name"))
    except Exception:  # a call that has not ended has none
        return ""


def _events_of(exception: BaseException, *, own: bool = True) -> list[str]:
    """The words for what went wrong, in an error event of openai or anthropic: of its body, and its own."""
    body = _asked(exception, "body")
    told = [_asked(exception, "type"), _asked(exception, "code")] if own else []
    for place in (body, _entry(body, "error")):
        told += [_entry(place, "type"), _entry(place, "code")]
    return [event for event in told if isinstance(event, str)]


# --- when to come again ----------------------------------------------------------------------------------------------

_THOUSANDTHS = ("retry-after-ms", "x-ms-retry-after-ms", "x-amz-retry-after")  # as openai, Azure and AWS spell it


def retry_after_of(exception: BaseException) -> float | None:
    """The seconds of its Retry-After, a number or an HTTP date (RFC 9110, section 10.2.3), or of Google's RetryInfo."""
    places = (_asked(exception, "response"), exception)
    told = [_asked(exception, "retry_after"), *(_header_of(thing, "retry-after") for thing in places)]
    seconds = first(map(_seconds_of, told))
    if seconds is None:
        thousandths = first(_seconds_of(_header_of(thing, name)) for name in _THOUSANDTHS for thing in places)
        seconds = None if thousandths is None else thousandths / 1000
    return _retry_info_of(exception) if seconds is None else seconds


def _header_of(thing: object, name: str) -> Any:
    try:
        given = _entry(thing, "ResponseMetadata", "HTTPHeaders")  # of botocore
        headers = dict(thing.headers if given is None else given)  # type: ignore[attr-defined]
        return next((value for key, value in headers.items() if key.lower() == name), None)
    except Exception:  # headers of any kind, or none
        return None


def _retry_info_of(exception: BaseException) -> float | None:
    """The delay that Google names in the details of an error: as JSON, or as a message of protobuf."""
    details = _asked(exception, "details")
    told = _entry(details, "error", "details") if isinstance(details, Mapping) else details
    for detail in told if isinstance(told, (list, tuple)) else ():
        if str(_entry(detail, "@type")).endswith("google.rpc.RetryInfo"):
            delay = str(_entry(detail, "retryDelay"))  # "39s"
            return _seconds_of(delay[:-1]) if delay.endswith("s") else None
        if type(detail).__name__ == "RetryInfo":
            delay = _asked(detail, "retry_delay")
            parts = [_asked(delay, "seconds"), _asked(delay, "nanos")]
            if all(isinstance(part, int) for part in parts):
                return _seconds_of(parts[0] + parts[1] / 1e9)
    return None


def _seconds_of(told: Any) -> float | None:
    if isinstance(told, timedelta):
        told = told.total_seconds()
    is_number = isinstance(told, (int, float)) and not isinstance(told, bool)
    if not isinstance(told, str) and not is_number:
        return None
    try:
        seconds = float(told)
    except (ValueError, OverflowError):
        seconds = _seconds_until(str(told))
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _seconds_until(date: str) -> float:
    """Seconds until an HTTP date; NaN where it is none."""
    import email.utils  # only here: it takes longer to import than all of this package

    try:
        moment = email.utils.parsedate_to_datetime(date)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)  # asctime's form names no zone
        return moment.timestamp() - clock.now()
    except Exception:  # the parser meets anything, and is not always ready for it
        return math.nan
