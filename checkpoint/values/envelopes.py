"""From values to envelopes: how each kind of value that JSON cannot hold is written.

An envelope is an object whose first key starts with "$", such as ``{"$tuple":[1,2]}``; `revivers` reads each of them
back. The promise: what a value does not survive is refused when it is written, with where it stands and why.
"""

from __future__ import annotations

import base64
import collections
import enum
import functools
import json
import math
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any, Protocol
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import msgspec

from checkpoint.errors import UnencodableValue, quote, shorten
from checkpoint.values.arrays import descr_of, dtype_of, packed
from checkpoint.values.classes import (
    NAMEDTUPLE,
    NO_CONTENT,
    PLAIN_FORMS,
    PYDANTIC_PARTS,
    ObjectState,
    attributes_of,
    base_of,
    is_generic,
    is_secret,
    kind_of,
    record_of,
)
from checkpoint.values.plain_json import MAX_DEPTH, SCALARS, plain_bytes, read_json, write_json
from checkpoint.values.zones import zone_parts

__all__ = [
    "FACTORIES", "IPS", "STRUCTSEQS", "TAGGERS", "Owner", "Tagger", "has_surrogate", "refusal", "tag_str",
    "told_left_out",
]  # fmt: skip


class Owner(Protocol):
    """What envelopes ask of the codec that writes and reads them: the names of classes, and the parts within."""

    on_built: Callable[[type, Any], None] | None
    compiles: bool
    _names: dict[type, str]

    def class_to_write(self, cls: type) -> type: ...
    def class_named(self, name: Any) -> Any: ...
    def _name_of(self, cls: type) -> str: ...
    def _revive(self, plain: Any) -> Any: ...
    def _report_read(self, name: str) -> None: ...


_Where = tuple[Any, str, Any] | None  # (the parent's _Where, the kind of step, its key): rendered only for a message


class Tagger:
    """One walk from a value to strict JSON; with `plain`, objects of unnamed classes become what they come back as."""

    __slots__ = ("codec", "depth", "left_out", "plain", "unnamed")

    def __init__(self, codec: Owner, *, plain: bool = False) -> None:
        self.codec = codec
        self.plain = plain
        self.depth = 0
        self.unnamed: set[type] = set()
        self.left_out: dict[type, list[str]] = {}

    def tag(self, value: Any, where: _Where = None) -> Any:
        cls: Any = type(value)
        if self.depth >= MAX_DEPTH and cls not in SCALARS:
            raise refusal(value, where, f"it stands more than {MAX_DEPTH} levels deep, or contains itself")
        self.depth += 1
        tagged = (TAGGERS.get(cls) or _tagger_of(cls))(self, value, where)
        self.depth -= 1
        return tagged

    def names(self, cls: type) -> bool:
        """Whether decode will build this class; it is noted where not."""
        if cls in self.codec._names:
            return True
        self.unnamed.add(cls)
        return False


def _path(where: _Where) -> str:
    steps = []
    while where is not None:
        where, kind, key = where
        steps.append({"[": f"[{quote(key, 60)}]", ".": f".{key}", "{": "{…}"}[kind])
    return shorten("result" + "".join(reversed(steps)))


def refusal(value: Any, where: _Where, reason: str = "") -> UnencodableValue:
    """The error that a value cannot be stored, which says where it stands and why."""
    path, name = _path(where), type(value).__name__
    article = "an" if name[:1] in "AEIOUaeiou" else "a"
    return UnencodableValue(
        f"{path} is {article} {name}, which cannot be stored so that it reads back the same"
        f"{': ' if reason else ''}{reason}; return plain data, or a dataclass, NamedTuple, Enum, attrs, msgspec or "
        "pydantic object that holds plain data",
        where=path,
    )


def _tag_refused(t: Tagger, value: Any, where: _Where) -> Any:
    if is_secret(type(value)):
        reason = "it is a secret, which would be written in clear; leave it out, or return .get_secret_value() of it"
        raise refusal(value, where, reason)
    raise refusal(value, where)


def _tag_itself(t: Tagger, value: Any, where: _Where) -> Any:
    return value


_BETWEEN_SURROGATES = re.compile("(?<=[\ud800-\udbff])(?=[\udc00-\udfff])")


def tag_str(t: Tagger, value: str, where: _Where) -> Any:
    """A text as it is, or in an envelope where it holds a lone surrogate.

    Two lone surrogates that would be one character in JSON are written in two parts: they are not that character.
    """
    if not has_surrogate(value):
        return value
    parts = _BETWEEN_SURROGATES.split(value)
    return {"$str": json.dumps(value if len(parts) == 1 else parts)}


def has_surrogate(text: str) -> bool:
    """Whether the text holds a lone surrogate, which UTF-8 cannot hold."""
    try:
        return not text.isascii() and not text.encode()
    except UnicodeEncodeError:
        return True


def _tag_int(t: Tagger, value: int, where: _Where) -> Any:
    if value.bit_length() <= 64:
        return value
    try:
        return value if read_json(write_json(value)) == value else {"$int": hex(value)}
    except ValueError:  # more digits than this Python converts; hexadecimal has no such limit
        return {"$int": hex(value)}


def _tag_float(t: Tagger, value: float, where: _Where) -> Any:
    return value if math.isfinite(value) else {"$float": repr(value)}


def _tag_list(t: Tagger, value: Iterable[Any], where: _Where) -> list[Any]:
    if type(value) is list and len(value) > 16 and set(map(type, value)) <= SCALARS and plain_bytes(value) is not None:
        return value
    return [t.tag(part, (where, "[", place)) for place, part in enumerate(value)]


def _tag_tuple(t: Tagger, value: tuple[Any, ...], where: _Where) -> Any:
    return {"$tuple": _tag_list(t, value, where)}


def _tag_set(t: Tagger, value: Any, where: _Where) -> Any:
    # one order on every run: equal sets iterate differently
    return {f"${type(value).__name__}": sorted((t.tag(part, (where, "{", None)) for part in value), key=write_json)}


def _tag_dict(t: Tagger, value: dict[Any, Any], where: _Where) -> Any:
    keys = [key if type(key) is str and key.isascii() else t.tag(key, (where, "{", None)) for key in value]
    parts = [t.tag(part, (where, "[", key)) for key, part in value.items()]
    if not all(type(key) is str for key in keys) or len(set(keys)) < len(keys):
        return {"$map": [[key, part] for key, part in zip(keys, parts, strict=True)]}
    tagged = dict(zip(keys, parts, strict=True))
    return {"$dict": tagged} if keys and keys[0].startswith("$") else tagged


def _tag_pairs(t: Tagger, value: Any, where: _Where) -> Any:
    _refuse_loss(value, getattr(value, "__dict__", {}), where)
    pairs = [[t.tag(key, (where, "{", None)), t.tag(part, (where, "[", key))] for key, part in value.items()]
    return {f"${type(value).__name__}": pairs}


def _tag_defaultdict(t: Tagger, value: Any, where: _Where) -> Any:
    factory = value.default_factory
    name = None if factory is None else next((n for n, known in FACTORIES.items() if known is factory), "")
    if name == "":
        t.names(type(value))
        return _tag_dict(t, dict(value), where)
    return {**_tag_pairs(t, value, where), "factory": name}


def _tag_deque(t: Tagger, value: Any, where: _Where) -> Any:
    return {"$deque": _tag_list(t, value, where), "maxlen": value.maxlen}


def _tag_moment(t: Tagger, value: Any, where: _Where) -> Any:
    zone, name, more = value.tzinfo, f"${type(value).__name__}", {}
    if type(zone) is ZoneInfo and zone.key is not None:
        value, more["zone"] = value.replace(tzinfo=None), t.tag(zone.key)
    elif type(zone) is timezone:
        named = zone.__getinitargs__()[1:]  # type: ignore[attr-defined]  # (offset,) or (offset, name)
        more.update(zip(["tzname"], map(t.tag, named), strict=False))
    elif zone is not None:
        more["tz"] = _zone_of_moment(t, zone, value, where)
        value = value.replace(tzinfo=None)
    if value.fold:
        more["fold"] = 1
    return {name: value.isoformat(), **more}


def _zone_of_moment(t: Tagger, zone: tzinfo, value: Any, where: _Where) -> list[Any]:
    parts = zone_parts(zone, value)
    if parts is None:
        raise refusal(value, where, f"its tzinfo is a {type(zone).__name__}; use timezone.utc or a ZoneInfo")
    return [t.tag(part, where) for part in parts]


def _tag_zone(t: Tagger, value: tzinfo, where: _Where) -> Any:
    parts = zone_parts(value)
    if parts is None:
        raise refusal(value, where, "it is no time zone that can be found by its name")
    return {"$tz": [t.tag(part, where) for part in parts]}


def _tag_uuid(t: Tagger, value: UUID, where: _Where) -> Any:
    safe = {} if value.is_safe is SafeUUID.unknown else {"safe": value.is_safe.value}
    return {"$uuid": str(value), **safe}


def _parts_tagger(name: str, parts: Callable[[Any], Iterable[Any]]) -> Callable[[Tagger, Any, _Where], Any]:
    return lambda t, value, where: {name: [t.tag(part, where) for part in parts(value)]}


def _text_tagger(name: str, text: Callable[[Any], str]) -> Callable[[Tagger, Any, _Where], Any]:
    return lambda t, value, where: {name: text(value)}


def _tag_path(t: Tagger, value: pathlib.PurePath, where: _Where) -> Any:
    return {"$path": t.tag(str(value)), "type": type(value).__name__}


def _tag_structseq(t: Tagger, value: Any, where: _Where) -> Any:
    cls = type(value)
    items, beside = value.__reduce__()[1]  # what pickle uses: the items, and the fields that are none
    name = next(name for name, known in STRUCTSEQS.items() if known is cls)
    return {"$structseq": name, "items": _tag_list(t, items, where), "fields": _tag_dict(t, beside, where)}


def _tag_typed_text(tag: str) -> Callable[[Tagger, Any, _Where], Any]:
    return lambda t, value, where: {tag: str(value), "type": type(value).__name__}


def _tag_pattern(t: Tagger, value: Any, where: _Where) -> Any:
    return {"$pattern": t.tag(value.pattern, where), "flags": value.flags}


def _tag_name_email(t: Tagger, value: Any, where: _Where) -> Any:
    return {"$nameemail": [t.tag(value.name, where), t.tag(value.email, where)]}


def _tag_pandas(t: Tagger, value: Any, where: _Where) -> Any:
    name = type(value).__name__
    if name == "NaTType":
        return {"$pandas": "NaT"}
    tagged: dict[str, Any] = {"$pandas": name, "value": int(value.asm8.view("i8")), "unit": value.unit}
    if name == "Timestamp" and value.tzinfo is not None:
        tagged["tz"] = _zone_of_moment(t, value.tzinfo, value, where)
    return tagged


def _other_tagger(cls: Any) -> Callable[[Tagger, Any, _Where], Any] | None:
    """How to write values of libraries, which are recognised by module and name."""
    if issubclass(cls, tzinfo):
        return _tag_zone
    known = _OF_LIBRARIES.get((cls.__module__.partition(".")[0], cls.__name__))
    if known is None and cls.__module__ == "pydantic.networks":
        bases = {base.__name__ for base in cls.__mro__}
        return _tag_typed_text("$url") if bases & {"_BaseUrl", "_BaseMultiHostUrl"} else None
    return known


def _tag_subclass(t: Tagger, value: Any, where: _Where) -> Any:
    """An object of a subclass of a builtin: as itself where its class is named, else as the builtin alone."""
    if t.codec.class_to_write(type(value)) in t.codec._names:
        return _tag_object(t, value, where)
    t.names(type(value))
    if type(value).__flags__ & _HEAP_TYPE:
        _refuse_loss(value, dict(attributes_of(value)), where)
    else:
        _refuse_hidden(value, where)
    base = base_of(type(value))
    assert base is not None
    return TAGGERS[base](t, PLAIN_FORMS[base](value), where)


_HEAP_TYPE = 1 << 9


def _refuse_loss(value: Any, attributes: dict[str, Any], where: _Where) -> None:
    """Refuse a value that would come back without attributes; private ones, and those that hold nothing, may go."""
    lost = [name for name, part in attributes.items() if name[:1] != "_" and not _is_nothing(part)]
    if lost:
        base, shown = base_of(type(value)), ", ".join(lost[:4]) + (", …" if len(lost) > 4 else "")
        assert base is not None
        raise refusal(
            value,
            where,
            f"it would come back as a {base.__name__}, without its {shown}; name its class in the return annotation "
            f"or in result_type to get both back, or return {base.__name__}(value) to leave them out, or a dict",
        )


def _is_nothing(part: Any) -> bool:
    return part is None or (type(part) in (list, tuple, dict, set, frozenset, str, bytes) and not part)


def _refuse_hidden(value: Any, where: _Where) -> None:
    """Refuse a named sequence of C that has more fields than items."""
    if getattr(type(value), "n_fields", 0) > getattr(type(value), "n_sequence_fields", 0):
        raise refusal(value, where, "it has fields that stand beside its items, which would be lost")


def _tag_enum(t: Tagger, value: Any, where: _Where) -> Any:
    cls, name = type(value), value._name_
    named, noted, depth = t.names(cls), set(t.unnamed), t.depth
    tagged = {"$enum": t.codec._name_of(cls)}
    if cls._member_map_.get(name) is value:
        tagged["name"] = name
    try:
        tagged["value"] = t.tag(value._value_, (where, ".", "value"))
    except UnencodableValue:
        t.depth = depth
        if "name" not in tagged:
            raise
    if named:
        t.unnamed = noted  # the value of a named member is there to be read by people: it is never decoded
    if named or not t.plain:
        return tagged
    return tagged.get("value", name)


def _tag_object(t: Tagger, value: Any, where: _Where) -> Any:
    made: Any = type(value)
    cls, is_tuple = t.codec.class_to_write(made), kind_of(made) is NAMEDTUPLE
    record = record_of(value)
    named = t.names(cls)
    if cls is not made and not is_generic(made):
        record = _without_private(t, made, record)
    if is_tuple and not named:
        _refuse_loss(value, record.attrs, where)
    if not named and t.plain:
        return _tag_tuple(t, tuple(record.fields.values()), where) if is_tuple else _tag_dict(t, record.plain(), where)
    if any(name.startswith("$") for name in record.fields):
        raise refusal(value, where, "the name of a field starts with $")
    tagged = {"$namedtuple" if is_tuple else "$class": t.codec._name_of(cls)}
    for name, part in record.fields.items():
        tagged[name] = t.tag(part, (where, ".", name))
    for name, part in record._asdict().items():
        if name not in ("fields", "content") and (part or (name in PYDANTIC_PARTS and part is not None)):
            tagged[f"${name}"] = t.tag(part, where)
    if record.content is not NO_CONTENT:
        tagged["$content"] = t.tag(record.content, where)
    return tagged


def _without_private(t: Tagger, cls: type, record: ObjectState) -> ObjectState:
    """What the class that this one stands for can hold; what a library put beside it is its own business."""
    own = set(getattr(t.codec.class_to_write(cls), "__private_attributes__", ()))
    private = {name: part for name, part in (record.private or {}).items() if name in own}
    attrs = {name: part for name, part in record.attrs.items() if name[:1] != "_" or name in own}
    left = sorted({*record.attrs, *(record.private or {})} - {*attrs, *private})
    if left:
        t.left_out[cls] = left
    return record._replace(attrs=attrs, private=private if own else None)


def told_left_out(cls: type, written: type, names: list[str]) -> str:
    """A sentence that says which private attributes are left out, and of which class."""
    shown = ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
    base = next((one.__module__ for one in cls.__mro__ if one.__module__ != written.__module__), "a library")
    maker = base.partition(".")[0]
    return (
        f"results hold objects of a class that {maker} made of {written.__qualname__}: they come back as "
        f"{written.__qualname__}, without {shown}"
    )


@functools.lru_cache(maxsize=1024)
def _tagger_of(cls: Any) -> Callable[[Tagger, Any, _Where], Any]:
    numpy: Any = sys.modules.get("numpy")
    kind = kind_of(cls)
    if isinstance(cls, enum.EnumMeta):
        return _tag_enum
    if numpy and cls is numpy.ndarray:
        return _tag_ndarray
    if numpy and issubclass(cls, numpy.generic):
        return _tag_npscalar
    if kind is NAMEDTUPLE:
        return _tag_object
    if cls in STRUCTSEQS.values():
        return _tag_structseq
    if numpy and issubclass(cls, numpy.ndarray):
        return _tag_subarray
    if (known := _other_tagger(cls)) is not None:
        return known
    if base_of(cls) is not None:
        return _tag_subclass
    return _tag_object if kind and not issubclass(cls, BaseException) else _tag_refused


def _tag_ndarray(t: Tagger, value: Any, where: _Where) -> Any:
    numpy = sys.modules["numpy"]
    descr = descr_of(numpy, value.dtype)
    if descr is None:
        raise refusal(value, where, f"its dtype is {quote(value.dtype, 60)}")
    data = base64.b64encode(packed(numpy, value)).decode()
    return {"$ndarray": data, "dtype": t.tag(descr, where), "shape": list(value.shape)}


def _tag_subarray(t: Tagger, value: Any, where: _Where) -> Any:
    fix = "value.filled(…) and value.mask" if hasattr(value, "filled") else "numpy.array(value)"
    raise refusal(value, where, f"it is more than a plain numpy array; return {fix}")


def _tag_npscalar(t: Tagger, value: Any, where: _Where) -> Any:
    numpy: Any = sys.modules["numpy"]
    dtype, cls = value.dtype, type(value)
    descr = descr_of(numpy, dtype)
    # two C types may be of one size, and are two classes: their letter tells them apart
    descr = next((d for d in (descr, dtype.char) if d is not None and dtype_of(numpy, d).type is cls), None)
    if descr is None:
        raise refusal(value, where, f"its dtype is {quote(dtype, 60)}")
    if dtype.kind in "biuf" and dtype.itemsize <= 8:
        content = value.item()
    elif dtype.kind in "US":
        content = str.__str__(value) if dtype.kind == "U" else bytes(value)
    else:
        content = packed(numpy, numpy.asarray(value))
    return {"$npscalar": t.tag(content, where), "dtype": t.tag(descr, where)}


# --- the tables ---


IPS = tuple(f"IPv{version}{kind}" for version in (4, 6) for kind in ("Address", "Network", "Interface"))

STRUCTSEQS: dict[str, type] = {
    "time.struct_time": type(date.min.timetuple()),
    **{
        f"os.{name}": getattr(os, name)
        for name in ("stat_result", "statvfs_result", "terminal_size", "times_result", "uname_result")
        if hasattr(os, name)
    },
}

_OF_LIBRARIES: dict[tuple[str, str], Callable[[Tagger, Any, _Where], Any]] = {
    **{("ipaddress", name): _tag_typed_text("$ip") for name in IPS},
    **{("pydantic_core", name): _tag_typed_text("$url") for name in ("Url", "MultiHostUrl")},
    **{("pandas", name): _tag_pandas for name in ("Timestamp", "Timedelta", "NaTType")},
    ("pydantic", "NameEmail"): _tag_name_email,
}

FACTORIES = {cls.__name__: cls for cls in (list, dict, set, int, float, str, tuple, bool, bytes)}

TAGGERS: dict[Any, Callable[[Tagger, Any, _Where], Any]] = {
    type(None): _tag_itself,
    bool: _tag_itself,
    str: tag_str,
    int: _tag_int,
    float: _tag_float,
    list: _tag_list,
    tuple: _tag_tuple,
    dict: _tag_dict,
    set: _tag_set,
    frozenset: _tag_set,
    bytes: _text_tagger("$bytes", lambda value: base64.b64encode(value).decode()),
    bytearray: _text_tagger("$bytearray", lambda value: base64.b64encode(value).decode()),
    complex: _parts_tagger("$complex", lambda value: (value.real, value.imag)),
    range: _parts_tagger("$range", lambda value: (value.start, value.stop, value.step)),
    slice: _parts_tagger("$slice", lambda value: (value.start, value.stop, value.step)),
    Fraction: _parts_tagger("$fraction", lambda value: (value.numerator, value.denominator)),
    timedelta: _parts_tagger("$timedelta", lambda value: (value.days, value.seconds, value.microseconds)),
    Decimal: _text_tagger("$decimal", str),
    date: _text_tagger("$date", date.isoformat),
    datetime: _tag_moment,
    time: _tag_moment,
    UUID: _tag_uuid,
    **dict.fromkeys({pathlib.PurePosixPath, pathlib.PureWindowsPath, type(pathlib.Path())}, _tag_path),
    collections.OrderedDict: _tag_pairs,
    collections.Counter: _tag_pairs,
    collections.defaultdict: _tag_defaultdict,
    collections.deque: _tag_deque,
    re.Pattern: _tag_pattern,
    type(msgspec.UNSET): lambda t, value, where: {"$unset": None},
}
