"""How exceptions are kept and shown: what is recorded of one, where it was raised, and which frames are let go of.

The promise: an exception that is kept holds no frame, and so none of the user's data.
"""

from __future__ import annotations

import logging

from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, ItemError, quote
from checkpoint.values.keys import Key

__all__ = ["add_note", "failure_of", "let_go_of_frames", "places_of"]

log = logging.getLogger("checkpoint")


def places_of(traceback: str) -> str:
    """The frames of a plain traceback, less the message around them, where it is of one exception alone."""
    first, _, rest = traceback.partition("\n")
    frames = [line for line in rest.splitlines() if line.startswith("  ")]
    alone = first.startswith("Traceback") and traceback.count("Traceback (most recent") == 1 and " | " not in traceback
    return "\n".join(frames) if alone else traceback


def let_go_of_frames(exception: BaseException, handled: BaseException | None) -> None:
    """Drop the frames of the exception and of all that it leads to: they hold the user's data.

    We do not touch the exception that the caller is handling, which is the context of whatever is raised meanwhile.
    """
    seen = {id(handled)}
    todo: list[BaseException | None] = [exception]
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.with_traceback(None)
        todo += [one.__cause__, one.__context__]
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions


def add_note(exception: Exception, note: str) -> None:
    """Add the note to the exception, unless it has it, where its class allows that."""
    try:
        if note not in getattr(exception, "__notes__", ()):  # the exception is that of several passes
            exception.add_note(note)
    except (AttributeError, TypeError):
        pass  # a frozen dataclass, or __notes__ that are no list


def failure_of(records: VersionView, key: Key) -> ItemError:
    """The failure that is recorded for the key, as far as it can be read."""
    try:
        found = records.checkpoint.errors.read(records.version, key)
    except DamagedRecord as error:
        log.warning("%s", error)
        found = None
    if found is not None:
        return records.error_of(key, found[2])
    message = "it failed earlier, and how is no longer on disk"
    return ItemError(f"item {quote(key)} failed: {message}", key=key, message=message)
