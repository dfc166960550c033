"""What a call comes to: a value and how long it took, a failure, or what ends the pass. Never an exception."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from checkpoint.execution.policies import Again
from checkpoint.outcomes import Failure, Success, describe_exception

__all__ = ["Answer", "Failed", "Fatal", "Returned", "failed", "out_of_time", "with_paid"]


class Returned(NamedTuple):
    """The call returned, and noted something.

    Attributes:
        value, elapsed: as in the plain tuple.
        notes: the fields that it noted.
    """

    value: Any
    elapsed: float
    notes: dict[str, Any]


class Failed(NamedTuple):
    """The call raised, or its value was refused.

    Attributes:
        failure: what is recorded of it.
        again: whether the exception says that it may be tried again, and when.
    """

    failure: Failure
    again: Again | None = None


class Fatal(NamedTuple):
    """What is no Exception, and no fault of a call (SystemExit …), was raised: it ends the pass.

    Attributes:
        exception: what was raised.
        is_of_call: whether the call in whose place this stands raised it; else it is not known which did.
    """

    exception: BaseException
    is_of_call: bool = True


Answer = Any
"""(value, elapsed) or `Returned` for a call that returned, a list of answers for a batch, or `Failed`, or `Fatal`."""


def with_paid(answer: Failed, make: Callable[[Answer], Answer]) -> Failed:
    """The same, its refused value made into what `make` makes of the value that a call returned."""
    paid = answer.failure.paid
    if paid is None:
        return answer
    value, elapsed = make((paid.value, paid.elapsed))
    return answer._replace(failure=replace(answer.failure, paid=Success(value, elapsed)))


def out_of_time(timeout: float | None) -> TimeoutError:
    """The error of a call that took too long."""
    return TimeoutError(f"no result within {timeout:g} s, and the call was ended (timeout={timeout:g})")


def failed(error: BaseException, again: Again | None = None) -> Failed:
    """The answer for a call that could not be made, or not be brought back."""
    return Failed(describe_exception(error), again)
