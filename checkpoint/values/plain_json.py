"""Plain JSON, at C speed: which values are exactly JSON, and how deep they may be."""

from __future__ import annotations

import json
import marshal
import re
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from checkpoint.errors import UnbuildableValue, quote_error
from checkpoint.values.limits import int_of_digits

__all__ = [
    "FREEZE",
    "MAX_DEPTH",
    "SCALARS",
    "SHORT",
    "decode_foreign",
    "freeze",
    "guarded",
    "is_shallow",
    "looks_tagged",
    "parse_json",
    "plain_bytes",
    "read_json",
    "read_json_lines",
    "with_stack",
    "write_json",
    "write_json_lines",
    "write_sorted_json",
    "write_sorted_lines",
]


MAX_DEPTH = 200
"""How many containers may stand inside one another: what any reader can walk under Python's default stack limit."""
write_json = msgspec.json.Encoder().encode
write_sorted_json = msgspec.json.Encoder(order="sorted").encode
write_sorted_lines = msgspec.json.Encoder(order="sorted").encode_lines
read_json = msgspec.json.Decoder().decode
write_json_lines = msgspec.json.Encoder().encode_lines
read_json_lines = msgspec.json.Decoder().decode_lines
freeze = marshal.dumps
FREEZE = 2  # marshal's last version without references: its bytes depend on the value alone, never on sharing
SCALARS = frozenset({str, int, float, bool, type(None)})
SHORT = 2 * MAX_DEPTH  # bytes, of which so many pairs of brackets may be made at most
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(byte for byte in range(256) if byte not in b"[]{}")
_MANY_DIGITS = re.compile(rb"[0-9]{640}")  # the lowest limit that sys.set_int_max_str_digits takes


def decode_foreign(raw: bytes) -> Any:
    """A value that another program wrote, as the standard json module reads it; no envelope is interpreted.

    Args:
        raw: UTF-8 JSON. NaN, Infinity and escaped lone surrogates are accepted, as ``json.dumps`` writes them.

    Raises:
        ValueError: the bytes are no JSON.

    Example:
        >>> decode_foreign(b'{"$tuple": [NaN]}')
        {'$tuple': [nan]}
    """
    return guarded(lambda: json.loads(raw.decode(), parse_int=int_of_digits))


def plain_bytes(value: Any) -> bytes | None:
    """The JSON of a value that is exactly JSON, else None; the caller looks for what looks like an envelope."""
    try:
        raw = write_json(value)
        # marshal refuses all but exact builtins, and takes buffers (np.str_ is one) for bytes: no decoded value is that
        if freeze(value, FREEZE) == freeze(read_json(raw), FREEZE) and (len(raw) <= SHORT or is_shallow(raw)):
            return raw
    except Exception:  # the tagged path looks at the value part by part, and tells
        pass
    return None


def looks_tagged(raw: bytes) -> bool:
    """Whether some object's first key starts with "$": exact for compact JSON, where quotes in strings are escaped."""
    return b"$" in raw and b'{"$' in raw  # one byte is found by memchr, ten times faster


def is_shallow(raw: bytes) -> bool:
    """Whether at most MAX_DEPTH brackets stand open at once; those within strings count too, so False is not sure."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return True
    brackets = raw.translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(MAX_DEPTH):
        inner = brackets.replace(b"[]", b"")
        if len(inner) == len(brackets):
            break
        brackets = inner
    return not brackets


def parse_json(raw: bytes) -> Any:
    """Parse JSON with integers of any size."""
    try:
        return read_json(raw)
    except ValueError:
        if not _MANY_DIGITS.search(raw):
            raise
    return json.loads(raw.decode(), parse_int=int_of_digits, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def with_stack(work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns; on a fresh stack where the caller's is too short, so that the caller's depth never decides.

    Raises:
        RecursionError: the caller's stack is too short even to start a thread.
        ValueError: the data are too deep for any stack.
    """
    try:
        return work(*args)
    except RecursionError:
        pass
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(*args), None))
        except RecursionError:
            outcome.append((None, ValueError("it is nested too deep")))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, name="checkpoint-codec", daemon=True)
    thread.start()
    thread.join()
    value, error = outcome[0]
    if error is not None:
        raise error
    return value


def guarded(work: Callable[[], Any]) -> Any:
    """Do the work with a deep stack; whatever malformed data raises becomes a ValueError."""
    try:
        return with_stack(work)
    except (UnbuildableValue, MemoryError, RecursionError):
        raise
    except Exception as error:
        if type(error) is ValueError:
            raise
        raise ValueError(f"this is no value that checkpoint wrote: {quote_error(error)}") from error
