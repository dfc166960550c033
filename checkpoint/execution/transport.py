"""Answers and calls as bytes that can always be read where they go.

The promise: what cannot travel is replaced by what says so, and takes nothing else with it.
"""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, NamedTuple

from checkpoint.errors import BrokenWorkers, ExtraNeeded, UnsendableItem, quote, quote_error
from checkpoint.execution.answers import Answer, Failed, Fatal, Returned, with_paid

__all__ = [
    "FIXED",
    "Unreadable",
    "cloudpickle",
    "pack",
    "pickled_inputs",
    "portable_bytes",
    "set_apart",
    "unloadable",
    "unpack",
]


class Unreadable:
    """Stands for a value that could not travel from its worker.

    Attributes:
        text: the value's repr, where the worker could not pickle it.
        pickled: the pickle that came, where it could not be read here.
    """

    __module__ = "checkpoint.calls"  # as it is named in files on disk

    def __init__(self, text: str, pickled: bytes | None = None) -> None:
        self.text, self.pickled = text, pickled

    def __repr__(self) -> str:
        return self.text


def portable_bytes(value: Any, name: str) -> bytes:
    """A pickle; by cloudpickle where the standard one cannot."""
    try:
        return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickling runs the value's own code
        return cloudpickle(value, name, error)


def cloudpickle(value: Any, name: str, why: Exception | None = None) -> bytes:
    """A pickle by cloudpickle; where it is not installed, an error that says what it is for."""
    try:
        import cloudpickle
    except ImportError:
        told = f": {quote_error(why)}" if why else ""
        raise ExtraNeeded(
            f"{name} cannot be sent to worker processes by the standard pickle{told}; install "
            "checkpoint-map[processes], "
            "which brings cloudpickle, or move it to the top level of an importable module",
            name="cloudpickle",
        ) from why
    try:
        return cloudpickle.dumps(value)  # type: ignore[no-any-return]
    except Exception as error:
        raise BrokenWorkers(
            f"{name} cannot be sent to worker processes: {quote_error(error)}; make what it refers to inside of it, or "
            "use threads: leave executor= out"
        ) from error


def pickled_inputs(inputs: list[Any], *, whole: bool) -> bytes:
    """A task's items as bytes: by the standard pickle, or by cloudpickle where that cannot.

    Args:
        inputs: the items, or batches of them.
        whole: whether what is defined in ``__main__`` is taken along, for a worker that has not got it.

    Raises:
        UnsendableItem: neither can, or cloudpickle is not installed.
    """
    has_cloudpickle = find_spec("cloudpickle") is not None
    try:
        if not (whole and has_cloudpickle):
            return pickle.dumps(inputs, pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # pickling runs the items' own code
        if not has_cloudpickle:
            raise _unsendable(error) from error
    import cloudpickle

    try:
        return cloudpickle.dumps(inputs)  # type: ignore[no-any-return]
    except Exception as error:
        raise _unsendable(error) from error


def _unsendable(error: Exception) -> UnsendableItem:
    return UnsendableItem(
        f"the item cannot be sent to a worker process, and the function was not called with it: {quote_error(error)}. "
        "Give what names it (a path, a URL, an id) and open it within the function, or use threads: leave executor= "
        "out (workers=8)"
    )


def unloadable(why: str) -> UnsendableItem:
    """The error for an item that a worker cannot load."""
    return UnsendableItem(f"a worker process cannot load the item: {why}. The function was not called with it")


def pack(answers: list[Answer]) -> bytes:
    """Answers as bytes that can be read where they go: one that cannot does not keep others from it."""
    whole = [_portable(answer) for answer in answers]
    try:
        if all(type(answer) is tuple and type(answer[0]) in _PLAIN for answer in whole):
            return pickle.dumps(whole, pickle.HIGHEST_PROTOCOL)
    except Exception:  # something deep inside
        pass
    return pickle.dumps([_packed(answer) for answer in whole], pickle.HIGHEST_PROTOCOL)


_PLAIN = frozenset({dict, list, tuple, str, bytes, int, float, bool, type(None)})


FIXED = frozenset({str, bytes, int, float, bool, type(None)})
"""Types of values that nothing can change."""


def set_apart(answer: Answer) -> Answer:
    """The answer with its value as it is at this moment: the next call of its function may change it."""
    if type(answer) is list:
        return [set_apart(one) for one in answer]
    if type(answer) is Failed:
        return with_paid(answer, _packed_value)
    if type(answer) in (tuple, Returned) and type(answer[0]) not in FIXED:
        return _packed(answer)
    return answer


class _Apart(NamedTuple):
    """An answer whose value is pickled by itself."""

    pickled: bytes
    elapsed: float
    notes: dict[str, Any] | None = None


class _FailedApart(NamedTuple):
    """A `Failed` whose exception is pickled by itself: a class with arguments of its own often cannot be unpickled."""

    failed: Failed
    pickled: bytes


def _portable(answer: Answer) -> Answer:
    if type(answer) is Failed:
        failure, again = answer
        told = with_paid(Failed(failure.without_exception(), again), _packed_value)
        try:
            answer = _FailedApart(told, portable_bytes(failure.exception, "its exception"))
        except Exception:  # pickling runs the exception's own code
            answer = told
    elif type(answer) is Fatal and not _travels(answer.exception):
        answer = answer._replace(exception=SystemExit(f"the function raised {quote(answer.exception)}"))
    elif type(answer) is list:
        answer = [_portable(one) for one in answer]
    return answer


def _travels(exception: BaseException) -> bool:
    """Whether it can be read where it goes."""
    try:
        return type(pickle.loads(pickle.dumps(exception))) is type(exception)
    except Exception:
        return False


def _packed_value(answer: Answer) -> Answer:
    """(what stands for the value, elapsed) of a call that returned; once, however often it is asked for."""
    value, elapsed = answer
    if type(value) is _Apart or type(value) in FIXED:
        return answer
    packed = _packed(answer)
    return (packed if type(packed) is _Apart else packed[0], elapsed)


def _unpacked_value(answer: Answer) -> Answer:
    return _unpacked(answer[0]) if type(answer[0]) is _Apart else answer


def _packed(answer: Answer) -> Answer:
    if type(answer) is list:
        return [_packed(one) for one in answer]
    if type(answer) not in (tuple, Returned):
        return answer
    value, elapsed, *noted = answer
    try:
        return _Apart(portable_bytes(value, "its result"), elapsed, *noted)
    except Exception as error:
        shown = f"<{quote(value)}, which its worker could not send: {quote_error(error.__cause__ or error)}>"
        return _returned(Unreadable(shown), elapsed, *noted)


def _returned(value: Any, elapsed: float, notes: dict[str, Any] | None = None) -> Answer:
    return (value, elapsed) if notes is None else Returned(value, elapsed, notes)


def unpack(packed: bytes | list[Answer]) -> list[Answer]:
    """The answers that a worker gave, in bytes or as they are.

    Raises:
        Exception: whatever unpickling raises.
    """
    if isinstance(packed, list):
        return packed
    return [_unpacked(answer) for answer in pickle.loads(packed)]


def _unpacked(answer: Answer) -> Answer:
    if type(answer) is list:
        return [_unpacked(one) for one in answer]
    if type(answer) is _FailedApart:
        return with_paid(_with_exception(*answer), _unpacked_value)
    if type(answer) is Failed:
        return with_paid(answer, _unpacked_value)
    if type(answer) is not _Apart:
        return answer
    try:
        return _returned(pickle.loads(answer.pickled), answer.elapsed, answer.notes)
    except Exception as error:
        shown = f"<a result that cannot be unpickled here: {quote_error(error)}>"
        return _returned(Unreadable(shown, answer.pickled), answer.elapsed, answer.notes)


def _with_exception(told: Failed, pickled: bytes) -> Failed:
    """The same with its exception, where that has come through as it was."""
    failure = told.failure
    try:
        exception = pickle.loads(pickled)
        if str(exception) == failure.message and type(exception).__name__ == str(failure.type).rpartition(".")[2]:
            return told._replace(failure=replace(failure, exception=exception))
    except Exception:  # unpickling runs the exception's own code
        pass
    return told
