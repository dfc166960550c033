"""The content of an item as plain data: equal for items of one content, on every run and every machine.

What JSON holds is itself. What JSON cannot hold becomes an object with one key, which begins with a NUL: of bytes and
arrays a digest, of dates their text, of objects of classes the name of the class and the fields. Nothing here is stored
or read back, so what does not tell items apart is left out: the module of a class, its private attributes, the order of
a dict. Packages are recognised by the names of their classes, and never imported.
"""

from __future__ import annotations

import enum
import functools
import sys
from collections import deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from pathlib import PurePath
from typing import Any
from uuid import UUID

import msgspec

from checkpoint.values.canonical import canonical
from checkpoint.values.classes import NAMEDTUPLE, kind_of, record_of
from checkpoint.values.plain_json import MAX_DEPTH, with_stack

__all__ = ["is_kin", "json_like", "spell", "stranger_in"]

_SCALARS = frozenset({str, int, float, bool, type(None)})


class _NoContent(Exception):
    """A part whose content is not known; `args` is that part and the steps that lead to it."""


_Read = Callable[["_Reader", Any], Any]


class _Reader:
    """One walk through an item; without `wide`, anything that JSON does not hold ends it."""

    __slots__ = ("depth", "path", "wide")

    def __init__(self, *, wide: bool) -> None:
        self.wide = wide
        self.depth = 0
        self.path: list[Any] = []

    def read(self, value: Any) -> Any:
        kind: Any = type(value)
        if kind in _SCALARS:
            return value
        if self.depth >= MAX_DEPTH:
            raise _NoContent(value)
        self.depth += 1
        content = (_READ.get(kind) or _read_of(kind, self.wide))(self, value)
        self.depth -= 1
        return content

    def all(self, parts: Iterable[Any]) -> list[Any]:
        return [part if type(part) in _SCALARS else self.read(part) for part in parts]


def spell(item: Any) -> bytes | None:
    """One spelling for each content; None where a part's content is not known. It never raises.

    Of a JSON-like item it is `canonical` of it. A numpy scalar counts as what it holds, a missing value of pandas as
    None, and an object of a subclass of a builtin as that builtin.

    Args:
        item: anything.

    Example:
        >>> spell({"day": date(2026, 1, 1)}) == spell({"day": date(2026, 1, 2)})
        False
        >>> spell({"client": object()}) is None
        True
    """
    data = canonical(item)
    return _spell(item, wide=True) if data is None else data


def json_like(item: Any) -> bytes | None:
    """`canonical` of the item, in which a numpy scalar counts as what it holds, and a missing value as None."""
    data = canonical(item)
    return _spell(item, wide=False) if data is None else data


def _spell(item: Any, *, wide: bool) -> bytes | None:
    try:
        return canonical(with_stack(_Reader(wide=wide).read, item))
    except Exception:  # properties and the like are the user's code, and may raise anything
        return None


def stranger_in(item: Any) -> tuple[str, Any] | None:
    """(where, the part) of the first part that JSON does not hold, as an access to `x`; None where there is none."""
    reader = _Reader(wide=False)
    try:
        with_stack(reader.read, item)
    except _NoContent as found:
        return "x" + "".join([f"[{step!r}]" for step in reader.path]), found.args[0]
    except Exception:
        pass
    return None


def is_kin(value: Any, root: str, name: str) -> bool:
    """Whether the value's class, or one that it is made from, has this name and comes from this package."""
    return any(cls.__name__ == name and cls.__module__.partition(".")[0] == root for cls in type(value).__mro__)


# --- containers ---


def _read_list(reader: _Reader, value: Any) -> list[Any]:
    parts = []
    for place, part in enumerate(value):
        if type(part) not in _SCALARS:
            reader.path.append(place)
            part = reader.read(part)
            reader.path.pop()
        parts.append(part)
    return parts


def _read_tuple(reader: _Reader, value: Any) -> tuple[Any, ...]:
    return tuple(_read_list(reader, value))


def _read_dict(reader: _Reader, value: Any) -> Any:
    pairs = []
    for key, part in dict.items(value):
        name = key if type(key) is str else reader.read(key)
        if type(part) not in _SCALARS:
            reader.path.append(key)
            part = reader.read(part)
            reader.path.pop()
        pairs.append((name, part))
    if all(type(name) is str for name, _ in pairs):
        named = dict(pairs)
        if len(named) == len(pairs):
            return named
    if not reader.wide:
        raise _NoContent(value)
    return {"\0map": sorted(pairs, key=canonical)}  # type: ignore[arg-type]  # a spelling, since these are plain


def _read_set(reader: _Reader, value: Any) -> Any:
    return {"\0set": sorted(reader.all(value), key=canonical)}  # type: ignore[arg-type]


def _read_object(reader: _Reader, value: Any) -> Any:
    record = record_of(value)
    content = {name: reader.read(part) for name, part in {**record.fields, **(record.extra or {})}.items()}
    return {"\0object": [type(value).__name__, content, _attributes(reader, record.attrs)]}


def _attributes(reader: _Reader, held: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the fields; what is private, or has no content, is a means and no content."""
    content = {}
    for name, part in held.items():
        if not name.startswith("_"):
            depth = reader.depth
            try:
                content[name] = reader.read(part)
            except _NoContent:
                reader.depth = depth
    return content


def _read_enum(reader: _Reader, value: Any) -> Any:
    return {"\0enum": [type(value).__name__, value._name_, *_attributes(reader, {"value": value._value_}).values()]}


def _as(base: Any, read: _Read) -> _Read:
    """Objects of a subclass count as what they hold, with what stands beside it."""

    def read_subclass(reader: _Reader, value: Any) -> Any:
        content = read(reader, base(value))
        beside = _attributes(reader, dict(getattr(value, "__dict__", {})))
        return {"\0held": [content, beside]} if beside else content

    return read_subclass


# --- values ---


def _hash(data: Any) -> str:
    return blake2b(data, digest_size=16).hexdigest()


def _text(name: str, text: Callable[[Any], Any]) -> _Read:
    return lambda reader, value: {f"\0{name}": text(value)}


def _itself(reader: _Reader, value: Any) -> Any:
    return value


def _nothing(reader: _Reader, value: Any) -> None:
    return None


def _refuse(reader: _Reader, value: Any) -> Any:
    raise _NoContent(value)


def _span(value: timedelta) -> list[int]:
    return [value.days, value.seconds, value.microseconds, getattr(value, "nanoseconds", 0)]  # pandas has these


def _read_complex(reader: _Reader, value: complex) -> Any:
    return {"\0complex": [value.real, value.imag]}


def _read_npscalar(reader: _Reader, value: Any) -> Any:
    kind = value.dtype.kind
    if kind in "biuf" and value.dtype.itemsize <= 8:
        return value.item()
    if kind == "U":
        return str.__str__(value)
    if not reader.wide:
        raise _NoContent(value)
    if kind in "mM":  # its number alone would be the same for months and years
        return {"\0moment": [str(value.dtype), str(value)]}
    if kind == "S":
        return reader.read(bytes(value))
    if kind == "c" and value.dtype.itemsize <= 16:
        return reader.read(complex(value))
    if value.dtype.names is not None:
        return {"\0row": [[name, reader.read(value[name])] for name in value.dtype.names]}
    return {"\0number": repr(value)} if kind in "fc" else _refuse(reader, value)


def _read_array(reader: _Reader, value: Any) -> Any:
    dtype = value.dtype
    if dtype.kind in "biufcSUmM" and dtype.char not in "gG":
        content: Any = _hash(value.tobytes())
    else:  # what lies between fields, and in long doubles, is any old memory
        content = reader.all(value.ravel())
    return {"\0array": [str(dtype), list(value.shape), content]}


def _read_frame(reader: _Reader, value: Any) -> Any:
    return {"\0frame": reader.read(value.to_dict("split"))}


def _read_series(reader: _Reader, value: Any) -> Any:
    return {"\0series": reader.read([value.index.tolist(), value.tolist()])}


_READ: dict[type, _Read] = {dict: _read_dict, list: _read_list, tuple: _read_tuple}

_WIDE: dict[type, _Read] = {
    **dict.fromkeys((set, frozenset), _read_set),
    **dict.fromkeys((bytes, bytearray, memoryview), _text("bytes", _hash)),
    deque: lambda reader, value: {"\0deque": reader.all(value)},
    complex: _read_complex,
    datetime: _text("datetime", lambda value: value.isoformat()),
    date: _text("date", lambda value: value.isoformat()),
    time: _text("time", lambda value: value.isoformat()),
    timedelta: _text("timedelta", _span),
    Decimal: _text("decimal", str),
    Fraction: _text("fraction", str),
    UUID: _text("uuid", str),
    PurePath: _text("path", lambda value: value.as_posix()),
    range: _text("range", lambda value: [value.start, value.stop, value.step]),
    slice: lambda reader, value: {"\0slice": reader.all((value.start, value.stop, value.step))},
    type(msgspec.UNSET): _text("unset", lambda value: None),
}
"""Those of subclasses too, the first that fits."""

_BASES: tuple[tuple[type, Callable[[Any], Any], _Read], ...] = (
    (str, str.__str__, _itself),
    (int, int.__int__, _itself),
    (float, float.__float__, _itself),
    (dict, lambda value: dict(dict.items(value)), _read_dict),
    (list, lambda value: list(list.__iter__(value)), _read_list),
    (tuple, lambda value: tuple(tuple.__iter__(value)), _read_tuple),
)

_TABLES: dict[tuple[str, str], _Read] = {
    ("pandas", "DataFrame"): _read_frame,
    ("pandas", "Series"): _read_series,
    ("polars", "DataFrame"): lambda reader, value: {"\0frame": reader.read(value.to_dict(as_series=False))},
    ("polars", "Series"): lambda reader, value: {"\0series": reader.read(value.to_list())},
}


@functools.lru_cache(maxsize=1024)
def _read_of(cls: Any, wide: bool) -> _Read:
    """What reads objects of a class."""
    names = [(base.__module__.partition(".")[0], base.__name__) for base in cls.__mro__]
    if names[0] in (("pandas", "NAType"), ("pandas", "NaTType")):
        return _nothing
    numpy: Any = sys.modules.get("numpy")
    if numpy and issubclass(cls, numpy.generic):
        return _read_npscalar
    return _wide_of(cls, names, numpy) if wide else _refuse


def _wide_of(cls: Any, names: list[tuple[str, str]], numpy: Any) -> _Read:
    if isinstance(cls, enum.EnumMeta):
        return _read_enum
    if numpy and cls in (numpy.ndarray, numpy.memmap):
        return _read_array
    kind = kind_of(cls)
    if kind is NAMEDTUPLE or (kind and not issubclass(cls, BaseException)):
        return _read_object
    for base, held, read in _BASES:
        if issubclass(cls, base):
            return _as(held, read)
    known = next((_TABLES[name] for name in names if name in _TABLES), None)
    return known or next((read for base, read in _WIDE.items() if issubclass(cls, base)), _refuse)
