"""Failures grouped by what caused them: the exception's type, and the places that it came through.

Of a traceback the file names, the functions and the lines of code count, and not the line numbers: a cause stays one
while the file around it is edited.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from checkpoint.errors import ItemError, plural, printable, quote, sayable, shorten

__all__ = ["Cause", "causes_of", "summarize"]

_FRAME = re.compile(
    r'^[ |+-]*File "(?P<path>.*)", line (?P<line>\d+), in (?P<function>.*)\n(?P<code>[ |]* {4}.*)?', re.M
)
_NOTEBOOK = re.compile(r"ipykernel_\d+[/\\]\d+\.py$|^<ipython-input-")
_CELL = "a cell"
_SHOWN = 10


@dataclass(slots=True)
class Cause:
    """Failures that are alike.

    Attributes:
        type: the exception's type name, or None where only a message was recorded.
        where: the innermost place in the user's own code, such as "jobs.py:12 in summarize"; "" where unknown.
        count: how many items failed of it.
        message: that of the first.
        traceback: that of the first, plain text, or None.
        given_up: whether later runs leave these items alone.
        keys: of the first 100.

    Example:
        >>> parse = checkpointed("numbers")(lambda text: float(text))
        >>> _ = parse.map(["1", "two", "three"], return_exceptions=True, progress=False)
        >>> [(cause.type, cause.count, cause.keys) for cause in parse.errors.causes()]
        [('ValueError', 2, ['two', 'three'])]
    """

    type: str | None
    where: str
    count: int
    message: str
    traceback: str | None
    keys: list[Any] = field(default_factory=list)
    given_up: bool = False

    def __str__(self) -> str:
        place = (f" at {self.where}" if self.where else "") + (", given up" if self.given_up else "")
        shown = ", ".join([quote(key, 80) for key in self.keys[:3]]) + (", …" if self.count > 3 else "")
        told = f"{self.type or 'error'}{place}: {shorten(self.message, 120)!r} (keys {shown})"
        return f"{self.count:,} × {printable(told)}"


def causes_of(errors: Iterable[ItemError]) -> list[Cause]:
    """The causes of failures, the most frequent first."""
    causes: dict[Any, Cause] = {}
    for error in errors:
        frames = _frames(error.traceback)
        # Where there are no frames, such as after save_error("message"), the message is all that tells.
        signature = (error.type, frames or error.message, error.given_up)
        cause = causes.get(signature)
        if cause is None:
            where = _where(error.traceback)
            cause = causes[signature] = Cause(
                error.type, where, 0, error.message, error.traceback, given_up=error.given_up
            )
        cause.count += 1
        if len(cause.keys) < 100:
            cause.keys.append(error.key)
    return sorted(causes.values(), key=lambda cause: -cause.count)


def summarize(causes: list[Cause]) -> str:
    """ "3 causes, 812 items", and a line for each."""
    lines = [f"{plural(len(causes), 'cause')}, {plural(sum(cause.count for cause in causes), 'item')}"]
    lines += [f"  {cause}" for cause in causes[:_SHOWN]]
    if len(causes) > _SHOWN:
        lines.append(f"  … {len(causes) - _SHOWN} more")
    return sayable("\n".join(lines))


def _last(traceback: str | None) -> str:
    """Return the part of a traceback about the exception itself, without its causes."""
    return (traceback or "").rpartition("Traceback (most recent call last):")[2]


def _frames(traceback: str | None) -> tuple[tuple[str, str, str], ...]:
    """Return (file, function, line of code) of each frame."""
    return tuple(
        (_file_of(found["path"]), found["function"], (found["code"] or "").strip(" |"))
        for found in _FRAME.finditer(_last(traceback))
    )


def _where(traceback: str | None) -> str:
    found = list(_FRAME.finditer(_last(traceback)))
    own = [one for one in found if not re.search(r"site-packages|[/\\]lib[/\\]python|<frozen", one["path"])]
    for one in (own or found)[-1:]:
        function = "" if one["function"] == "<module>" else f" in {one['function']}"
        if (file := _file_of(one["path"])) == _CELL:
            return f"line {one['line']} of {_CELL}{function}"
        return f"{file}:{one['line']} in {one['function']}"
    return ""


def _file_of(path: str) -> str:
    """The name of a file, or "a cell": the file's name of a notebook's cell is a number that changes with each edit."""
    return _CELL if _NOTEBOOK.search(path) else PurePath(path).name
