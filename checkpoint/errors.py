"""Every error that is ours: what happened, where, and what to do next.

    CheckpointError
    ├── InvalidName          ValueError       a checkpoint's name that is no safe file name
    ├── InvalidKey           ValueError       a key of another type than a key may have
    ├── InvalidOption        ValueError       an option's value, told when it is given
    ├── InvalidFunction      TypeError        a function that cannot be mapped
    ├── VersionNeeded        TypeError        what a method's result depends on cannot be told
    ├── DuplicateKey         ValueError       two unequal items, one key
    ├── InputChanged         ValueError       a known key, another item
    ├── KeyChanged           ValueError       known items, other keys
    ├── FunctionChanged      ValueError       a value that the function reads, or its code (on_change="error")
    ├── UnencodableValue     TypeError        a value that cannot be written; it was kept aside
    ├── UnbuildableValue     TypeError        a stored object that its class can no longer be built from
    │   └── ResultsUnfit     TypeError        results on disk that do not fit their class any more, before a pass
    ├── DamagedRecord        ValueError       a record whose bytes are not those that were written
    ├── StoreClosed          ValueError       used after close()
    ├── StoreForked          RuntimeError     a forked child used its parent's open checkpoint
    ├── RefusedValue         ValueError       `validate` refused what the function returned
    ├── GiveUp               RuntimeError     raised by a call: its item is left alone by later runs
    ├── UnsendableItem       TypeError        an item that cannot go to a worker; the function was not called with it
    ├── WorkerDied           RuntimeError     an item killed the worker process that ran it, time and again
    ├── BrokenWorkers        RuntimeError     worker processes could not start, or a given executor broke
    ├── UnguardedMain        RuntimeError     a worker that imports the main module came upon a map
    ├── CircularCall         RecursionError   an item's call would wait for its own end
    ├── MaxCostReached       RuntimeError     another call would cost more than `max_cost` allows; what is done is saved
    ├── StepRefused          RuntimeError     `one` in a process that can neither write nor ask who does
    ├── ExtraNeeded          ImportError      an optional package is not installed
    ├── StoreError           OSError          the store could not do it: errno, filename, .unsaved
    │   ├── CheckpointLocked BlockingIOError  another writer, or another pass, is at work
    │   ├── NotUploaded      OSError          all is saved here, and the store behind the URL has not all of it
    │   └── JournalLost      OSError          a journal was cut, deleted or replaced, or another file is in its place
    ├── ItemError            RuntimeError     one item's failure, as read from disk
    └── ItemsFailed          ExceptionGroup   some items failed; every other one is saved
        └── TooManyErrors    ExceptionGroup   the pass was ended early

Each subclasses the builtin that a caller would expect, carries its parts as attributes, and pickles.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self

__all__ = [
    "BrokenWorkers",
    "CheckpointError",
    "CheckpointLocked",
    "CircularCall",
    "DamagedRecord",
    "DuplicateKey",
    "ExtraNeeded",
    "FunctionChanged",
    "GiveUp",
    "InputChanged",
    "InvalidFunction",
    "InvalidKey",
    "InvalidName",
    "InvalidOption",
    "ItemError",
    "ItemsFailed",
    "JournalLost",
    "KeyChanged",
    "MaxCostReached",
    "NotUploaded",
    "RefusedValue",
    "ResultsUnfit",
    "StepRefused",
    "StoreClosed",
    "StoreError",
    "StoreForked",
    "TooManyErrors",
    "UnbuildableValue",
    "UnencodableValue",
    "UnguardedMain",
    "UnsendableItem",
    "VersionNeeded",
    "WorkerDied",
    "plural",
    "printable",
    "quote",
    "quote_error",
    "shorten",
    "visible",
]


def quote(data: object, limit: int = 200) -> str:
    """Data as a message may quote it: its repr, at most `limit` characters of it."""
    try:
        text = repr(data if not isinstance(data, (str, bytes)) else data[: limit + 1])
    except Exception as error:  # a user's __repr__ may do anything; a message must still be made
        text = f"<{type(data).__name__} whose repr raises {type(error).__name__}>"
    return shorten(text, limit)


def quote_error(error: BaseException) -> str:
    """Another error's type and message, as a message may quote them; one of ours speaks for itself."""
    if isinstance(error, CheckpointError):
        return str(error)
    return f"{type(error).__name__}: {printable(shorten(str(error)))}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: "1 item", "1,200 items"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def shorten(text: str, limit: int = 200) -> str:
    """At most `limit` characters of a text."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def printable(text: str) -> str:
    """The text as one line that no terminal takes for orders: escape what is not to be seen."""
    if text.isprintable():
        return text
    return "".join([part if part.isprintable() else _ESCAPED.get(part) or ascii(part)[1:-1] for part in text])


_ESCAPED = {"\xa0": " ", "\u202f": " ", "\u3000": "  "}  # what is only a space of its own width


def visible(text: str) -> str:
    """The text, each of its lines `printable`."""
    return text if text.isprintable() else "\n".join(map(printable, text.split("\n")))


_PLAINER = str.maketrans({"×": "x", "·": "|", "…": "...", "–": "-", "−": "-", "→": "->"})


def sayable(text: str, stream: Any = None) -> str:
    """The text, with the characters that the stream's encoding lacks (by default stdout's) in plainer ones."""
    encoding = getattr(sys.stdout if stream is None else stream, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAINER).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:
        pass  # a stream of somebody's own
    return text


def _rebuild(cls: type[CheckpointError], message: str, parts: dict[str, Any]) -> CheckpointError:
    return cls(message, **parts)


class CheckpointError(Exception):
    """The base of every error of this library.

    Args:
        message: what, where, and what to do next.
        parts: the error's own attributes, by name.
    """

    def __init__(self, message: str, /, **parts: Any) -> None:
        super().__init__(visible(message))  # it may repeat what a file says
        self._parts = tuple(parts)
        for name, value in parts.items():
            setattr(self, name, value)

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        later = [name for name in self.__dict__ if not name.startswith("_")]  # such as `.unsaved`
        parts = {name: getattr(self, name) for name in (*self._parts, *later)}
        notes = getattr(self, "__notes__", None)
        return (_rebuild, (type(self), self.args[0], parts), {"__notes__": notes} if notes else None)


class InvalidName(CheckpointError, ValueError):
    """A checkpoint's name must be one safe file-name component. `.name` is what was given."""

    name: object


class InvalidKey(CheckpointError, ValueError):
    """Keys are str, int, float (not NaN), bool, None, and tuples of those. `.key` is what was given."""

    key: object


class InvalidOption(CheckpointError, ValueError):
    """An option has a value it cannot have."""


class InvalidFunction(CheckpointError, TypeError):
    """Only a callable that takes one item can be mapped."""


class VersionNeeded(CheckpointError, TypeError):
    """A bound method reads attributes that cannot be told apart by value; name the version yourself."""


class DuplicateKey(CheckpointError, ValueError):
    """Two unequal items have one key. `.key`, and `.places`: the 0-based places of both."""

    key: object
    places: tuple[int, int]


class InputChanged(CheckpointError, ValueError):
    """Items differ from those that the results of their keys were computed from.

    `.keys` lists such keys, at most 100; `.count` is how many there are.
    """

    keys: Sequence[object]
    count: int = 0


class KeyChanged(CheckpointError, ValueError):
    """The results of these items are on disk under other keys. `.keys` and `.before` list both, at most 100."""

    keys: Sequence[object]
    before: Sequence[object]


class FunctionChanged(CheckpointError, ValueError):
    """A function is not what results were computed by: it reads another value, or its code differs.

    `.changes` says what; `.count` is how many results precede it.
    """

    changes: Sequence[str] = ()
    count: int = 0


class UnencodableValue(CheckpointError, TypeError):
    """A value that cannot be written so that it reads back the same.

    `.where` is the path to the culprit, such as ``result['deep'][0]``; `.key` the item's key, where known.
    """

    where: str
    key: object = None


class UnbuildableValue(CheckpointError, TypeError):
    """A stored object whose class has changed since, so that it cannot be built from what is stored.

    `.cls` is the class, `.field` the name of the field where one is at fault, both None where unknown.
    """

    cls: type | None = None
    field: str | None = None


class ResultsUnfit(UnbuildableValue):
    """Results on disk do not fit the class that the annotation names; nothing was run. `.count` is how many."""

    count: int = 0


class DamagedRecord(CheckpointError, ValueError):
    """A record's bytes are not those that were written: `.path`, `.line` (1-based), `.offset`, `.key`, `.why`."""

    path: str
    line: int
    offset: int
    key: object = None
    why: str = ""


class StoreClosed(CheckpointError, ValueError):
    """The runner was closed."""


class StoreForked(CheckpointError, RuntimeError):
    """A forked child cannot write through what its parent opened."""


class RefusedValue(CheckpointError, ValueError):
    """`validate` returned False for what the function returned: it is a failure, and not a result."""


class GiveUp(CheckpointError, RuntimeError):
    """Raise it in a function, in `validate` or in `parse`: the item has failed for good.

    It is not tried again, by no retry and by no later run, until it is cleared (``f.clear([key])``), its item changes,
    or the version does. The run in which it is raised raises it with the other failures; in later ones it stands in
    its place and raises nothing.

    Args:
        reason: what is recorded of it.

    Example:
        >>> @checkpointed("refusals")
        ... def ask(prompt):
        ...     if "bomb" in prompt:
        ...         raise GiveUp("refused")
        ...     return prompt.upper()
        >>> _ = ask.map(["a pun", "a bomb"], return_exceptions=True, progress=False)
        >>> print(ask.map(["a pun", "a bomb"], progress=False)[1])
        item 'a bomb' was given up: checkpoint.errors.GiveUp: refused
    """

    def __init__(self, reason: object, /, **parts: Any) -> None:
        super().__init__(str(reason), **parts)


class UnsendableItem(CheckpointError, TypeError):
    """An item cannot go to a worker process, which needs its pickle; the function was not called with it."""


class WorkerDied(CheckpointError, RuntimeError):
    """An item's worker process died each time the item was run. `.exitcode` is the last one: −9 for SIGKILL."""

    exitcode: int | None = None


class BrokenWorkers(CheckpointError, RuntimeError):
    """Workers are gone or could not start; what they were at is not marked as failed, and runs again next time."""


class UnguardedMain(CheckpointError, RuntimeError):
    """A worker process imports the main module, and that runs a map: put it under ``if __name__ == "__main__":``."""


class CircularCall(CheckpointError, RecursionError):
    """An item's call maps, directly or through others, over the item that it is the call of: it would never end."""


class MaxCostReached(CheckpointError, RuntimeError):
    """The pass ended before it would have cost more than `max_cost`; what ran is saved, and so is what it cost.

    `.max_cost`; `.spent`, by whichever run; `.left`, how many items are left to do, None where that is not known;
    `.expected`, the range of what these will cost, None where that is not known. `.results` is what
    ``return_exceptions=True`` would have returned, with `ItemError` in the places of what was not run.
    """

    max_cost: float
    spent: float
    left: int | None = None
    expected: tuple[float, float] | None = None
    results: Sequence[Any] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (kind, message, parts), state = super().__reduce__()
        if parts.get("results") is not None:
            parts["results"] = list(parts["results"])
        return rebuild, (kind, message, parts), state


class StepRefused(CheckpointError, RuntimeError):
    """`one` was called in a process that is neither the one that maps nor a worker process of ours."""


class ExtraNeeded(CheckpointError, ImportError):
    """What was asked for needs a package that is not installed; the message names the extra that brings it."""


class StoreError(CheckpointError, OSError):
    """The store could not read or write.

    `.errno` and `.filename` as in OSError. `.unsaved` maps keys to the values that are not on disk.
    """

    unsaved: Mapping[Any, Any] = {}


class CheckpointLocked(StoreError, BlockingIOError):
    """Another writer holds the checkpoint. `.pid`, `.host`, `.since` (UTC ISO 8601), each None where unknown."""

    pid: int | None = None
    host: str | None = None
    since: str | None = None


class JournalLost(StoreError):
    """A journal was cut, deleted or replaced, or another kind of file is in its place.

    `.keys` are the keys at risk, where it was open meanwhile.

    `.intact`: how many bytes from its start are still what was written.
    """

    keys: Sequence[object] = ()
    intact: int = 0


class NotUploaded(StoreError):
    """The wait for uploads was given up: everything is saved here, and the store behind the URL has not all of it.

    `.filename` is the URL, `.directory` where the results are. The next opening there uploads them.
    """

    directory: str = ""


class ItemError(CheckpointError, RuntimeError):
    """One item's failure, as it was recorded: what stands in a failed item's place.

    `.key`; `.type`, the exception's type name; `.message`; `.traceback`, plain text or None; `.attempts` or None;
    `.elapsed`, seconds that the last call took, or None. `.value` is what the call returned, where that was paid for
    and is no result, since `validate` refused it or `parse` raised; else None. It is read from disk; where it could
    not be encoded it is its repr. `.given_up` says whether later runs leave the item alone (`GiveUp`).
    """

    key: object = None
    type: str | None = None
    message: str = ""
    traceback: str | None = None
    attempts: int | None = None
    elapsed: float | None = None
    value: Any = None
    given_up: bool = False

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ItemError):
            return NotImplemented
        return (self.key, self.type, self.message) == (other.key, other.type, other.message)

    def __hash__(self) -> int:
        return hash((self.key, self.type, self.message))


def _portable(exception: Exception) -> Exception:
    """The exception where it survives pickling, else an `ItemError` that says the same.

    A class with arguments of its own often pickles and does not unpickle, and would take the whole group with it.
    """
    try:
        pickle.loads(pickle.dumps(exception))
    except Exception:  # both run the class's own code
        told = ItemError(quote(exception), type=type(exception).__qualname__, message=_text(exception))
        for note in getattr(exception, "__notes__", ()):
            told.add_note(str(note))
        return told
    return exception


def _text(exception: Exception) -> str:
    try:
        return str(exception)
    except Exception:
        return quote(exception)


def _regroup(
    cls: type[ItemsFailed], message: str, members: Sequence[Exception], results: Sequence[Any] | None
) -> ItemsFailed:
    group = cls(message, members)
    group.results = results
    return group


class ItemsFailed(CheckpointError, ExceptionGroup[Exception]):
    """Some items failed, after every other one was run and saved.

    `.exceptions` are the first 100 failures: the originals where this process has them, else `ItemError`.
    `.results` is what ``return_exceptions=True`` would have returned.
    """

    results: Sequence[Any] | None = None

    def __new__(cls, message: str, members: Sequence[Exception]) -> Self:
        return super().__new__(cls, visible(message), members)

    def __init__(self, message: str, members: Sequence[Exception]) -> None:
        ExceptionGroup.__init__(self, visible(message), members)

    def derive(self, excs: Sequence[Exception], /) -> ItemsFailed:  # type: ignore[override]  # split() keeps the type
        """A part of it, as `split` and ``except*`` make; its `.results` are those of the whole."""
        part = type(self)(self.message, excs)
        part.results = self.results
        return part

    def __reduce__(self) -> tuple[Any, ...]:
        results = None if self.results is None else list(self.results)
        members = [_portable(exception) for exception in self.exceptions]
        notes = getattr(self, "__notes__", None)
        return (_regroup, (type(self), self.message, members, results), {"__notes__": notes} if notes else None)


class TooManyErrors(ItemsFailed):
    """The pass was ended early: `max_errors` was reached, or everything failed in one way."""
