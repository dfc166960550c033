"""One spelling for equal values, in every process: what digests are made of."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import msgspec

from checkpoint.values.codec import Codec
from checkpoint.values.envelopes import TAGGERS, Tagger, has_surrogate, tag_str
from checkpoint.values.plain_json import (
    FREEZE,
    MAX_DEPTH,
    SCALARS,
    SHORT,
    freeze,
    is_shallow,
    looks_tagged,
    plain_bytes,
    read_json_lines,
    with_stack,
    write_json,
    write_json_lines,
    write_sorted_json,
    write_sorted_lines,
)

__all__ = ["canonical", "canonical_all"]


def canonical(item: Any) -> bytes | None:
    """One spelling for each JSON-like value, on every run and Python; None for anything else. It never raises.

    JSON-like are dicts with str keys, lists, tuples, str, int, float, bool and None, of exactly these types, at most
    MAX_DEPTH deep. Dicts that differ in order are one value; ``1``, ``1.0`` and ``True`` are three.

    Args:
        item: anything.

    Example:
        >>> canonical({"b": 1, "a": (2,)})
        b'{"a":{"$tuple":[2]},"b":1}'
        >>> canonical({1, 2}) is None
        True
    """
    try:
        if plain_bytes(item) is not None:
            raw = write_sorted_json(item)
            if not looks_tagged(raw):
                return raw
        return bytes(with_stack(lambda: write_json(_canonical(item, 0))))
    except Exception:
        return None


def canonical_all(items: list[Any]) -> list[bytes] | None:
    """`canonical` of each, in half the time; None where some are not exactly JSON: ask one by one."""
    try:
        lines = write_json_lines(items)
        if b"$" in lines or freeze(items, FREEZE) != freeze(read_json_lines(lines), FREEZE):
            return None
        raws = write_sorted_lines(items).split(b"\n")
        raws.pop()
        return raws if max(map(len, raws), default=0) <= SHORT or all(map(is_shallow, raws)) else None
    except Exception:  # as in `canonical`
        return None


def _canonical(item: Any, depth: int) -> Any:
    cls = type(item)
    if cls is int:
        return item if item.bit_length() <= 64 else msgspec.Raw(str(Decimal(item)).encode())
    if cls in SCALARS:
        return TAGGERS[cls](_NO_TAGGER, item, None)
    if depth == MAX_DEPTH or cls not in (dict, list, tuple):
        raise ValueError
    if cls is not dict:
        parts = [_canonical(part, depth + 1) for part in item]
        return parts if cls is list else {"$tuple": parts}
    if not all(type(key) is str for key in item):
        raise ValueError
    ordered = {key: _canonical(item[key], depth + 1) for key in sorted(item)}
    if any(map(has_surrogate, ordered)):
        return {"$map": [[tag_str(_NO_TAGGER, key, None), part] for key, part in ordered.items()]}
    return {"$dict": ordered} if next(iter(ordered), "").startswith("$") else ordered


_NO_TAGGER = Tagger(Codec())
