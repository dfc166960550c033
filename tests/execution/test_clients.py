"""Which exceptions of clients and SDKs are tried again: each public one of those that are installed is in a table."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from checkpoint import Retry
from checkpoint.execution.policies import Again


def exceptions_of(module: ModuleType) -> dict[str, type[BaseException]]:
    """The public exception classes of a module, without warnings."""
    return {
        name: kind
        for name, kind in list(vars(module).items())
        if isinstance(kind, type)
        and issubclass(kind, Exception)
        and not issubclass(kind, Warning)
        and not name.startswith("_")
        and str(kind.__module__).partition(".")[0] == module.__name__.partition(".")[0]
    }


def bare(kind: type[BaseException]) -> Any:
    """An exception of the class, with the attributes that its class has, and a message."""
    error: Any = kind.__new__(kind)
    error.args = ("made by a test",)
    if kind.__name__ == "InternalServerError" and not kind.__module__.startswith("google"):
        error.status_code = 500  # whatever its response has from there on
    return error


def is_tried_again(error: BaseException) -> bool:
    """By default."""
    return Retry().judge(error) is not None  # type: ignore[arg-type]


# Of each module the exceptions that are tried again; all others are not. Some classes have a status, which decides.
TRIED_AGAIN: dict[str, set[str]] = {
    "openai": {
        "APIConnectionError", "APITimeoutError", "ConflictError", "InternalServerError", "RateLimitError",
        "WebSocketConnectionClosedError",
    },
    "anthropic": {
        "APIConnectionError", "APITimeoutError", "ConflictError", "InternalServerError", "RateLimitError",
        "OverloadedError", "ServiceUnavailableError", "DeadlineExceededError", "GatewayTimeoutError",
        "RequestTimeoutError", "HTTPNotImplementedError", "CMEKContextUnavailableError", "CMEKKeyUnreachableError",
        "ContractSpendLimitReachedError", "EnforcedSpendLimitReachedError", "RampLimitExceededError",
    },
    "google.genai.errors": set(),  # a code is given to each: see below
    "google.api_core.exceptions": {
        "Aborted", "Conflict", "TooManyRequests", "ResourceExhausted", "InternalServerError",
        "Unknown", "DataLoss", "BadGateway", "ServiceUnavailable", "GatewayTimeout",
        "DeadlineExceeded", "RetryError",
    },
    "botocore.exceptions": {
        "HTTPClientError", "ConnectionError", "EndpointConnectionError", "SSLError", "ConnectionClosedError",
        "ReadTimeoutError", "ConnectTimeoutError", "ProxyConnectionError", "ResponseStreamingError",
        "IncompleteReadError",
    },
    "boto3.exceptions": set(),
    "grpc": {"FutureTimeoutError"},
    "httpx": {
        "CloseError", "ConnectError", "ConnectTimeout", "NetworkError", "PoolTimeout", "ProxyError", "ReadError",
        "ReadTimeout", "RemoteProtocolError", "TimeoutException", "WriteError", "WriteTimeout",
    },
    "httpcore": {
        "ConnectError", "ConnectTimeout", "NetworkError", "PoolTimeout", "ProxyError", "ReadError", "ReadTimeout",
        "RemoteProtocolError", "TimeoutException", "WriteError", "WriteTimeout",
    },
    "aiohttp": {
        "ClientConnectionError", "ClientConnectionResetError", "ClientConnectorCertificateError",
        "ClientConnectorDNSError", "ClientConnectorError", "ClientConnectorSSLError", "ClientOSError",
        "ClientPayloadError", "ClientProxyConnectionError", "ClientSSLError", "ConnectionTimeoutError",
        "ServerConnectionError", "ServerDisconnectedError", "ServerTimeoutError", "SocketTimeoutError",
    },
    "urllib3.exceptions": {
        "ConnectTimeoutError", "ConnectionError", "IncompleteRead", "InvalidChunkLength", "MaxRetryError",
        "NameResolutionError", "NewConnectionError", "ProtocolError", "ProxyError", "ReadTimeoutError",
        "ResponseNotChunked", "SSLError", "TimeoutError",
    },
    "requests.exceptions": {
        "ChunkedEncodingError", "ConnectTimeout", "ConnectionError", "ContentDecodingError", "HTTPError",
        "InvalidJSONError", "JSONDecodeError", "ProxyError", "ReadTimeout", "RequestException", "RetryError",
        "SSLError", "Timeout",
    },
}  # fmt: skip
TRIED_AGAIN["httpx2"], TRIED_AGAIN["httpcore2"] = TRIED_AGAIN["httpx"], TRIED_AGAIN["httpcore"]


@pytest.mark.parametrize("name", TRIED_AGAIN)
def test_each_public_exception_is_tried_again_or_not_as_the_table_says(name: str) -> None:
    """None is missing: a class that a later version adds and that is tried again must be put into the table."""
    module = pytest.importorskip(name)
    found = exceptions_of(module)
    tried = {kind_name for kind_name, kind in found.items() if is_tried_again(bare(kind))}
    assert tried == TRIED_AGAIN[name] & found.keys()


@pytest.mark.parametrize("name", TRIED_AGAIN)
def test_no_client_is_imported_to_know_its_exceptions(name: str) -> None:
    """They are known by the root of their modules and by name, subclasses too."""
    root = name.partition(".")[0]
    for kind_name in TRIED_AGAIN[name]:
        if name in ("openai", "anthropic", "google.api_core.exceptions") and not kind_name.endswith("ConnectionError"):
            continue  # known by the status, which the class has
        if name in ("requests.exceptions", "aiohttp", "urllib3.exceptions"):
            continue  # some derive from OSError, or from others of the table
        base = {
            "CloseError": "NetworkError", "ConnectError": "NetworkError", "ReadError": "NetworkError",
            "WriteError": "NetworkError", "ConnectTimeout": "TimeoutException", "PoolTimeout": "TimeoutException",
            "ReadTimeout": "TimeoutException", "WriteTimeout": "TimeoutException",
        }.get(kind_name, kind_name)  # fmt: skip
        base = "ConnectionError" if root == "botocore" and base != "IncompleteReadError" else base
        made = type(base, (Exception,), {"__module__": f"{root}.somewhere"})
        own = type("Own", (made,), {"__module__": "mine"})
        assert is_tried_again(own("x")), kind_name


def test_the_exceptions_of_authentication_are_never_tried_again() -> None:
    """Whatever they were raised from."""
    botocore = pytest.importorskip("botocore.exceptions")
    anthropic = pytest.importorskip("anthropic")
    auth = pytest.importorskip("google.auth.exceptions")
    kinds = [
        *(getattr(botocore, name) for name in ("NoCredentialsError", "CredentialRetrievalError", "NoAuthTokenError")),
        *(getattr(botocore, name) for name in ("TokenRetrievalError", "SSOTokenLoadError")),
        botocore.UnauthorizedSSOTokenError,
        *(getattr(anthropic, name) for name in ("CredentialsError", "AuthenticationError") if hasattr(anthropic, name)),
        auth.DefaultCredentialsError, auth.RefreshError,
    ]  # fmt: skip
    for kind in kinds:
        error = bare(kind)
        error.__cause__ = OSError("the file is not there")
        assert not is_tried_again(error), kind
        outer = RuntimeError("no answer")
        outer.__cause__ = error
        assert not is_tried_again(outer), kind


def test_a_type_error_is_never_tried_again() -> None:
    """Whatever else it is, and whatever it was raised from."""
    error = TypeError("x")
    error.__cause__ = OSError("y")
    assert not is_tried_again(error)
    assert not is_tried_again(type("Both", (OSError, TypeError), {})("x"))


# --- statuses, where they are not the class's -------------------------------------------------------------------------


def boto(code: str, status: int | None, headers: Any = None) -> Exception:
    """As boto3's clients raise it; within an event stream without a status."""
    botocore = pytest.importorskip("botocore.exceptions")
    response: dict[str, Any] = {"Error": {"Code": code, "Message": "x"}}
    if status is not None:
        response["ResponseMetadata"] = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    error: Exception = (botocore.ClientError if status else botocore.EventStreamError)(response, "InvokeModel")
    return error


AWS = [
    ("ThrottlingException", 429, True, "Bedrock"),
    ("ThrottlingException", 400, True, "many services throttle with status 400"),
    ("ProvisionedThroughputExceededException", 400, True, "DynamoDB"),
    ("SlowDown", 503, True, "S3"),
    ("ServiceUnavailableException", 503, True, "the service is down"),
    ("InternalServerException", 500, True, "its fault"),
    ("ModelTimeoutException", 408, True, "the model took too long"),
    ("throttlingException", None, True, "an event of a stream"),
    ("modelStreamErrorException", None, True, "another"),
    ("internalServerException", None, True, "a third"),
    ("validationException", None, False, "an event for what stays"),
    ("ValidationException", 400, False, "the input is at fault"),
    ("AccessDeniedException", 403, False, "not allowed"),
    ("UnrecognizedClientException", 403, False, "a wrong key"),
    ("ExpiredTokenException", 403, False, "an old one"),
    ("ResourceNotFoundException", 404, False, "no such model"),
]


@pytest.mark.parametrize(("code", "status", "again", "reason"), AWS, ids=[f"{a} {b}" for a, b, *_ in AWS])
def test_errors_of_aws(code: str, status: int | None, again: bool, reason: str) -> None:
    """By their code, else by their status."""
    assert is_tried_again(boto(code, status)) == again, reason


GRPC = {
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "INTERNAL", "UNKNOWN", "DATA_LOSS",
}  # fmt: skip


def test_each_code_of_grpc_is_tried_again_or_not() -> None:
    """Plain and asynchronous calls tell it by a method."""
    grpc = pytest.importorskip("grpc")

    class Call(grpc.RpcError):  # type: ignore[misc,name-defined,unused-ignore]
        def __init__(self, code: Any) -> None:
            self._code = code

        def code(self) -> Any:
            return self._code

    for code in grpc.StatusCode:
        wanted = code.name in GRPC
        assert is_tried_again(Call(code)) == wanted, code
        empty = grpc.aio.Metadata()
        assert is_tried_again(grpc.aio.AioRpcError(code, empty, empty)) == wanted, code
    assert not is_tried_again(Call(None))


@pytest.mark.parametrize(("code", "again"), [(400, False), (401, False), (403, False), (404, False), (429, True),
                                             (500, True), (503, True), (504, True)])  # fmt: skip
def test_errors_of_google_genai(code: int, again: bool) -> None:
    """By their code, as they are and as causes."""
    errors = pytest.importorskip("google.genai.errors")
    kind = errors.ClientError if code < 500 else errors.ServerError
    error = kind(code, {"error": {"code": code, "message": "x", "status": "X"}})
    assert is_tried_again(error) == again
    outer = RuntimeError("x")
    outer.__cause__ = error
    assert is_tried_again(outer) == again


EVENTS = [
    ({"type": "error", "error": {"type": "overloaded_error"}}, True, "anthropic"),
    ({"type": "error", "error": {"type": "rate_limit_error"}}, True, "too many requests"),
    ({"type": "error", "error": {"type": "api_error"}}, True, "its fault"),
    ({"type": "error", "error": {"type": "invalid_request_error"}}, False, "ours"),
    ({"type": "error", "error": {"type": "authentication_error"}}, False, "a wrong key"),
    ({"type": "server_error", "message": "x"}, True, "openai"),
    ({"code": "rate_limit_exceeded"}, True, "by its code"),
    ({"type": "invalid_request_error", "code": "context_length_exceeded"}, False, "the input is at fault"),
    (None, False, "nothing is said"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "again", "reason"), EVENTS, ids=[reason for *_, reason in EVENTS])
def test_an_error_event_within_a_stream_counts_by_its_type(body: Any, again: bool, reason: str) -> None:
    """The status was 200, or none is told."""
    httpx = pytest.importorskip("httpx2")
    anthropic, openai = pytest.importorskip("anthropic"), pytest.importorskip("openai")
    request = httpx.Request("POST", "http://localhost")
    stated = anthropic.APIStatusError("x", response=httpx.Response(200, request=request), body=body)
    assert is_tried_again(stated) == again, reason
    assert is_tried_again(openai.APIError("x", request, body=body)) == again, reason


def test_the_code_of_a_cause_is_no_status() -> None:
    """A body that was cut off is told by aiohttp as raised from an error of its parser, whose code is 400."""
    aiohttp = pytest.importorskip("aiohttp")
    http_exceptions = pytest.importorskip("aiohttp.http_exceptions")
    error = aiohttp.ClientPayloadError("Response payload is not completed")
    error.__cause__ = http_exceptions.ContentLengthError("Not enough data to satisfy content length header")
    assert is_tried_again(error)


# --- when to come again ----------------------------------------------------------------------------------------------


def openai_error(headers: dict[str, str]) -> Exception:
    """A 429 with these headers."""
    httpx, openai = pytest.importorskip("httpx2"), pytest.importorskip("openai")
    request = httpx.Request("POST", "http://localhost")
    response = httpx.Response(429, request=request, headers=headers)
    error: Exception = openai.RateLimitError("x", response=response, body=None)
    return error


def genai_error(delay: str) -> Exception:
    """A 429 with Google's RetryInfo."""
    errors = pytest.importorskip("google.genai.errors")
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    told = {"error": {"code": 429, "message": "x", "status": "RESOURCE_EXHAUSTED", "details": [{"@type": "x"}, info]}}
    error: Exception = errors.ClientError(429, told)
    return error


def api_core_error() -> Exception:
    """The same as a message of protobuf."""
    api_core = pytest.importorskip("google.api_core.exceptions")
    details = pytest.importorskip("google.rpc.error_details_pb2")
    info = details.RetryInfo()
    info.retry_delay.FromMilliseconds(39_500)
    error: Exception = api_core.ResourceExhausted("x", details=[details.ErrorInfo(), info])
    return error


LATERS: list[tuple[str, Any, float]] = [
    ("seconds", lambda: openai_error({"retry-after": "7"}), 7.0),
    ("thousandths", lambda: openai_error({"retry-after-ms": "850"}), 0.85),
    ("as Azure spells it", lambda: openai_error({"x-ms-retry-after-ms": "850"}), 0.85),
    ("seconds go before thousandths", lambda: openai_error({"retry-after-ms": "850", "retry-after": "1"}), 1.0),
    ("a header of botocore", lambda: boto("ThrottlingException", 429, {"retry-after": "7"}), 7.0),
    ("as AWS spells it", lambda: boto("ThrottlingException", 429, {"x-amz-retry-after": "850"}), 0.85),
    ("RetryInfo as JSON", lambda: genai_error("39.5s"), 39.5),
    ("RetryInfo as a message", api_core_error, 39.5),
]


@pytest.mark.parametrize(("reason", "make", "seconds"), LATERS, ids=[reason for reason, *_ in LATERS])
def test_a_retry_after_is_read_of_each_sdk(reason: str, make: Any, seconds: float) -> None:
    """With the status beside it."""
    assert Retry().judge(make()) == Again(seconds, "HTTP 429")


def test_a_delay_that_cannot_be_read_is_none() -> None:
    """The status counts all the same."""
    assert Retry().judge(genai_error("soon")) == Again(None, "HTTP 429")
