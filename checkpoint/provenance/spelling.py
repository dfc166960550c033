"""Spell values as text that is the same in every process, and show them in messages without their secrets.

The promise: equal values have one spelling under any hash seed, on any host and Python; no code of the user's is run;
what has no spelling is None.
"""

from __future__ import annotations

import array
import collections
import operator
import re
import string
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from hashlib import blake2b
from itertools import islice
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from checkpoint.provenance.statics import (
    dict_of,
    element_of,
    holds_data,
    is_mapping,
    is_own_class,
    is_sequence,
    items_of,
    label_of,
    module_of,
    of_class,
    root_of,
    static_attributes,
)
from checkpoint.provenance.syntax import hashed
from checkpoint.values.canonical import canonical
from checkpoint.values.secrets import SECRET, is_opaque, is_secret

__all__ = [
    "Value",
    "array_value",
    "is_array",
    "is_plain",
    "name_of",
    "shown",
    "spelled",
    "value_of",
]

_MOST_PARTS = 2_000_000  # of a value that is compared whole
_SAMPLED = 10_000  # parts, of a larger one
_WHOLE_ARRAY = 1 << 20
_DEEPEST = 20
_MOST_SHOWN = 60
_COUNTING = frozenset({complex, range, Decimal, Fraction, date, datetime, time, timedelta, timezone, slice})
_SCALARS = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = frozenset({list, tuple, dict})
_PLAIN = _SCALARS | _CONTAINERS


class Value(NamedTuple):
    """A value that a function reads: its digest, and how a message shows it, which is `SECRET` for what is one."""

    digest: str
    shown: str


def is_plain(value: Any) -> bool:
    """Whether it is made of exact builtins, and not so large that looking at it takes seconds."""
    kind = type(value)
    if kind in _SCALARS:
        return kind is not int or value.bit_length() < 10_000
    left, todo = _MOST_PARTS, [value]
    while todo:
        one = todo.pop()
        kind = type(one)
        if kind is not list and kind is not tuple and kind is not dict:
            return False
        left -= len(one) + 1
        if left < 0:
            return False
        for parts in (one,) if kind is not dict else (one.keys(), one.values()):
            kinds = set(map(type, parts))
            if not kinds <= _PLAIN:
                return False
            if not kinds.isdisjoint(_CONTAINERS):
                todo += [part for part in parts if type(part) in _CONTAINERS]
    return True


def value_of(name: str, value: Any, *, deep: bool = True) -> Value | None:
    """A value's digest, where it is a constant, or a function or class, which counts by its name; else None.

    Args:
        name: how messages name it, which tells whether it may be a secret.
        value: any.
        deep: whether what the objects within it hold counts too.
    """
    if is_plain(value) and (data := canonical(value)) is not None:
        return _told(name, blake2b(data, digest_size=16).hexdigest(), lambda: shown(name, value))
    told = None if type(value) in (FunctionType, BuiltinFunctionType) else spelled(value, deep=deep)
    if told is not None:
        return _told(name, hashed(f"spelled {told}"), lambda: _shown_spelled(name, value, told))
    called = name_of(value)
    if called is None or called.rpartition(".")[2] == name.rpartition(".")[2]:
        return None
    return Value(hashed(f"named {called}"), called)


_shown: dict[tuple[str, str], str] = {}
_MOST_REMEMBERED = 10_000


def _told(name: str, digest: str, show: Callable[[], str]) -> Value:
    """The value of a digest; how it is shown is worked out once, since the parts of a value are many."""
    if (told := _shown.get((name, digest))) is None:
        if len(_shown) >= _MOST_REMEMBERED:
            _shown.clear()
        told = _shown[name, digest] = show()
    return Value(digest, told)


def _shown_spelled(name: str, value: Any, told: str) -> str:
    kind = type(value)
    if is_secret("" if kind in _COUNTING or module_of(kind) == "numpy" else name, told) or is_secret(name, value):
        return SECRET
    return told if len(told) <= _MOST_SHOWN and kind is not bytes and not is_opaque(told) else _kind_shown(value)


def _kind_shown(value: Any) -> str:
    kind = type(value)
    sized = issubclass(kind, (list, tuple, dict, set, frozenset, str, bytes)) and not is_own_class(kind)
    return f"a {label_of(kind)} of {len(value):,}" if sized else f"a {label_of(kind)}"


def is_array(value: Any) -> bool:
    """Whether a value is an array of numpy."""
    return module_of(type(value)) == "numpy" and label_of(type(value)) == "ndarray"


def array_value(value: Any) -> Value | None:
    """The digest of a numpy array: of all of it up to 1 MB, above that of its shape, type and a sample."""
    if not is_array(value) or value.dtype.hasobject:
        return None
    shape, dtype = value.shape, value.dtype.str
    if value.nbytes <= _WHOLE_ARRAY:
        data = value.tobytes()
    else:
        step = max(1, value.size // _SAMPLED)
        data = value.flat[::step].tobytes() + value.flat[-1:].tobytes()
    digest = blake2b(f"{shape} {dtype}".encode() + data, digest_size=16).hexdigest()
    return Value(digest, f"an array of {' × '.join(map(str, shape)) or '1'} {value.dtype.name}")


# --- spelling --------------------------------------------------------------------------------------------------------

_CONSTANTS = frozenset({bytes, complex, range, Decimal, date, timedelta, timezone, UUID, Fraction, type(...), slice})
_GETTERS = frozenset({operator.itemgetter, operator.attrgetter, operator.methodcaller})


def spelled(value: Any, *, deep: bool = True) -> str | None:
    """A constant as text; None for what is none.

    Args:
        value: any.
        deep: whether objects within containers are spelled by what they hold, or by their class.
    """
    return _Speller(deep).spell(value, 0)


class _Speller:
    """Spells one value, up to a number of parts."""

    def __init__(self, deep: bool) -> None:
        self._deep = deep
        self._left = _MOST_PARTS

    def spell(self, value: Any, depth: int) -> str | None:
        kind = type(value)
        if is_plain(value) and (data := canonical(value)) is not None:
            return data.decode("utf-8", "surrogatepass")
        if kind in _CONSTANTS:
            return repr(value)
        if kind is datetime or kind is time:
            return repr(value) if type(value.tzinfo) in (type(None), timezone, ZoneInfo) else None
        if kind is ZoneInfo:
            return f"ZoneInfo({value.key!r})"
        if kind is re.Pattern:
            return f"re.compile({value.pattern!r}, {value.flags})"
        if issubclass(kind, PurePath) and root_of(kind) == "pathlib":
            return f"Path({PurePath.as_posix(value)!r})"
        if issubclass(kind, Enum):
            return self._spell_member(value, kind, depth)
        if (scalar := _spelled_scalar(value, kind)) is not None:
            return scalar
        return None if depth > _DEEPEST else self._spell_parts(value, kind, depth + 1)

    def _spell_member(self, value: Any, kind: type, depth: int) -> str | None:
        """An Enum member, by its name and value."""
        held = dict_of(value)
        name, inner = held.get("_name_"), held.get("_value_")
        if depth > _DEEPEST or not (type(name) is str or name is None):
            return None
        return f"{label_of(kind)}.{name} = {self.part(inner, depth + 1)}"

    def part(self, value: Any, depth: int) -> str:
        """A part of a value: what is no constant is named by its class."""
        self._left -= 1
        if self._left < 0:
            return "…"
        return self.spell(value, depth) or name_of(value) or f"a {label_of(type(value))}"

    def _spell_parts(self, value: Any, kind: type, depth: int) -> str | None:
        if kind in _GETTERS:
            _, given, *_ = value.__reduce__()
            return f"{kind.__name__}({self._listed(given, depth)})"
        if issubclass(kind, (set, frozenset)):
            base = set if issubclass(kind, set) else frozenset
            return f"{label_of(kind)}({', '.join(sorted(self.part(one, depth) for one in base.__iter__(value)))})"
        if issubclass(kind, (list, tuple, collections.deque)):
            return f"{label_of(kind)}({self._listed(value, depth)})"
        if issubclass(kind, (bytearray, array.array)):
            return f"{label_of(kind)}({bytes(value)!r})"
        if is_mapping(value):
            entries = items_of(value)
            if entries is None:
                return None
            told = sorted(f"{self.part(name, depth)}: {self.part(part, depth)}" for name, part in entries)
            return f"{'' if kind is dict else label_of(kind)}{{{', '.join(told)}}}"
        if issubclass(kind, string.Template):
            template = dict_of(value).get("template")
            return f"Template({template!r})" if type(template) is str else None
        if issubclass(kind, (collections.UserList, collections.UserString)):
            return f"{label_of(kind)}({self.part(dict_of(value).get('data'), depth)})"
        if is_sequence(value) and kind is not range:
            parts = [element_of(value, place) for place in range(min(len(value), self._left))]
            return f"{label_of(kind)}({', '.join(self.part(one, depth) for one in parts)})"
        if (root_of(kind), label_of(kind)) == ("jinja2", "Template"):
            return _spelled_jinja(value)
        if self._deep and depth > 1 and holds_data(kind):
            told = [f"{name}={self.part(part, depth)}" for name, part in static_attributes(value)]
            return f"{label_of(kind)}({', '.join(sorted(told))})"
        return None

    def _listed(self, value: Any, depth: int) -> str:
        base = next(base for base in (list, tuple, collections.deque) if issubclass(type(value), base))
        if len(parts := base(base.__iter__(value))) > self._left:  # too many: as many as stand at even distances
            step = max(1, len(parts) // _SAMPLED)
            sample = islice(parts, 0, None, step)
            return f"{len(parts)} parts, {', '.join(self.part(one, depth) for one in sample)}"
        return ", ".join(self.part(one, depth) for one in parts)


def _spelled_scalar(value: Any, kind: type) -> str | None:
    """A scalar of numpy, or an object of a subclass of str, bytes or a number."""
    if module_of(kind) == "numpy" and of_class(kind, "dtype") is not None and label_of(kind) != "ndarray":
        return None if value.dtype.hasobject else f"{value.dtype.str} {value.tobytes().hex()}"
    for base, spell in (
        (str, str.__str__), (int, int.__repr__), (float, float.__repr__), (bytes, bytes.__repr__),
        (complex, complex.__repr__), (Decimal, Decimal.__repr__),
    ):  # fmt: skip
        if issubclass(kind, base):
            return f"{label_of(kind)}({spell(value)!r})"
    return None


def _spelled_jinja(template: Any) -> str | None:
    """A template of jinja2, which keeps no source: the texts and names of what it was compiled to."""
    held = dict_of(template)
    blocks = held.get("blocks") if type(held.get("blocks")) is dict else {}
    functions = [held.get("root_render_func"), *(blocks or {}).values()]
    told = [part for one in functions if type(one) is FunctionType for part in _texts_of(one.__code__)]
    return f"Template({', '.join(told)})" if told else None


def _texts_of(code: CodeType) -> Iterable[str]:
    for constant in code.co_consts:
        if type(constant) in (str, int, float):
            yield repr(constant)
        elif type(constant) is CodeType:
            yield from _texts_of(constant)
    yield from sorted(code.co_names)


# --- what messages show ----------------------------------------------------------------------------------------------


def shown(name: str, value: Any) -> str:
    """A value as meta and messages may show it: short, and `SECRET` for what is one."""
    kind = type(value)
    if is_secret(name, value):
        return SECRET
    if kind is int and value.bit_length() > 100:
        return "a large int"
    if kind in (int, float, bool, type(None)):
        return repr(value)
    if kind is not str:
        told = (canonical(value) or b"").decode("utf-8", "replace") if len(value) <= _MOST_SHOWN else ""
        return told if 0 < len(told) <= _MOST_SHOWN and not is_opaque(told) else f"a {kind.__name__} of {len(value):,}"
    return repr(value) if len(value) <= _MOST_SHOWN and not is_opaque(value) else f"a str of {len(value):,} characters"


def name_of(value: Any) -> str | None:
    """The name of a function or class."""
    kind = type(value)
    if kind is FunctionType or kind is BuiltinFunctionType:
        return str(value.__qualname__).replace("<locals>.", "")
    return label_of(value) if issubclass(kind, type) else None
