"""What code notes of the call that it runs in, for the record of that call.

The promise: what is noted is plain JSON from the moment on at which it is noted, and survives an exception of the call.
Costs of several notes, and of several attempts, add up; of other fields the last one counts.
"""

from __future__ import annotations

import logging
import math
import numbers
from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

from checkpoint.errors import InvalidOption, UnencodableValue, quote
from checkpoint.execution.answers import Answer, Failed, Returned
from checkpoint.execution.caller import frame_here, is_in_loop_by_hand

__all__ = ["added", "gathered", "note", "shared", "with_notes"]

_DEEPEST = 100
log = logging.getLogger("checkpoint")


def note(**fields: Any) -> None:
    """Add fields to the record of the call that this code runs in, whether it returns or raises.

    On every engine: threads, tasks, worker processes, clusters. A field that is noted again replaces the one before,
    in a later attempt too; but costs add up, so that a record's cost is what all of its attempts cost. In a batch
    the notes are those of each of its items, and the cost is divided evenly among them. Outside of a map, as in the
    plain call `f(item)`, nothing is noted; nor in a loop by hand, where a warning says so. A thread that the function
    starts by itself notes where it runs in a copy of its context, as that of `asyncio.to_thread` does.

    Args:
        fields: JSON-like values, which go to disk as they are. `cost` is a number of 0 or more, in whatever unit: it is
            summed in the bar, `plan`, `checkpoint show` and tables, and `max_cost=` limits the sum.

    Raises:
        UnencodableValue: a field is not JSON-like; `.where` is the part that is not.
        InvalidOption: the cost is no finite number of 0 or more.

    Example:
        >>> @checkpointed("answers with notes")
        ... def ask(question: str) -> str:
        ...     note(cost=0.25, model="large")
        ...     return question.upper()
        >>> list(ask.map(["why", "how"], progress=False))
        ['WHY', 'HOW']
    """
    plain = {name: _cost(value) if name == "cost" else _plain(value, name, 0) for name, value in fields.items()}
    frame = frame_here()
    if frame is not None and plain:
        frame.append(plain)
    elif plain and is_in_loop_by_hand():
        _tell_unnoted()


_is_told = False


def _tell_unnoted() -> None:
    """Say once in a process that a note goes nowhere, and where it could go."""
    global _is_told
    if not _is_told:
        _is_told = True
        log.warning(
            "note() in a loop by hand is not saved: no call of ours runs there. Have the loop save what it notes in "
            "the result (save_result(key, {…})), or decorate what it calls with @checkpointed and map that"
        )


def _cost(value: Any) -> float:
    is_number = isinstance(value, (numbers.Real, Decimal)) and not isinstance(value, bool)
    if not is_number or not 0 <= value < math.inf:
        raise InvalidOption(f"note was given the cost {quote(value)}; give a finite number of 0 or more")
    return float(value)


def _plain(value: Any, where: str, depth: int) -> Any:
    """The value as plain JSON has it, which nothing changes later.

    Raises:
        UnencodableValue: naming the part that is not JSON-like.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isfinite(number):
            return number
    elif depth > _DEEPEST:
        raise UnencodableValue(f"note was given what is nested too deeply, at {where}", where=where)
    elif isinstance(value, (list, tuple)):
        return [_plain(part, f"{where}[{place}]", depth + 1) for place, part in enumerate(value)]
    elif isinstance(value, dict):
        return {
            _key(name, where): _plain(part, f"{where}[{quote(name, 40)}]", depth + 1) for name, part in value.items()
        }
    raise _refused(value, where)


def _key(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise UnencodableValue(
            f"note was given {where} with the key {quote(name)}, and JSON has keys of text only", where=where
        )
    return _text(name, where)


def _text(value: str, where: str) -> str:
    text = str.__str__(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _refused(value, where) from None
    return text


def _refused(value: Any, where: str) -> UnencodableValue:
    return UnencodableValue(
        f"note was given {quote(value)}, a {type(value).__name__}, at {where}, which JSON cannot hold; note text, "
        "finite numbers, None, and lists and dicts of these: such as model_dump() of a model, or str() of an object",
        where=where,
    )


# --- what becomes of notes -------------------------------------------------------------------------------------------


def gathered(noted: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What several notes of one call come to."""
    notes: dict[str, Any] | None = None
    for fields in noted:
        notes = added(notes, fields)
    return notes or {}


def added(before: dict[str, Any] | None, notes: dict[str, Any] | None) -> dict[str, Any] | None:
    """What earlier notes and later ones come to: costs add up, of other fields the last one counts."""
    if before is None or notes is None:
        return before if notes is None else notes
    merged = {**before, **notes}
    if "cost" in before and "cost" in notes:
        merged["cost"] = before["cost"] + notes["cost"]
    return merged


def shared(notes: dict[str, Any] | None, count: float) -> dict[str, Any] | None:
    """The notes of a call, for one of so many equal parts of its items: its share of the cost, and all other fields."""
    if notes is None or count == 1 or "cost" not in notes:
        return notes
    return {**notes, "cost": notes["cost"] / count}


def with_notes(answer: Answer, notes: dict[str, Any]) -> Answer:
    """The answer of a call that noted these fields; that of a batch has them at each of its items."""
    kind = type(answer)
    if kind is tuple:
        return Returned(answer[0], answer[1], notes)
    if kind is Failed:
        return answer._replace(failure=replace(answer.failure, notes=notes))
    if kind is list:
        each = shared(notes, len(answer)) or {}
        return [with_notes(one, each) for one in answer]
    return answer
