"""From envelopes to values: what each kind of envelope is read as.

The promise: loading runs no code that a file names. There is no pickle here, no import by a name found in a file, and
no eval.
"""

from __future__ import annotations

import base64
import collections
import enum
import json
import pathlib
import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID, SafeUUID

import msgspec

from checkpoint.errors import quote, quote_error
from checkpoint.values.arrays import array_of, dtype_of, numpy_library
from checkpoint.values.classes import (
    NO_CONTENT,
    ObjectState,
    build,
    unbuildable,
)
from checkpoint.values.envelopes import FACTORIES, IPS, STRUCTSEQS, Owner
from checkpoint.values.limits import LONGEST_PATTERN, refuse_crowd
from checkpoint.values.plain_json import SCALARS
from checkpoint.values.zones import library, named_zone, zone_of

__all__ = ["REVIVERS", "revive_values"]


def revive_values(codec: Owner, plain: dict[str, Any]) -> dict[str, Any]:
    """The dict with each of its values revived."""
    return {key: part if type(part) in SCALARS else codec._revive(part) for key, part in plain.items()}


def _list_of(codec: Owner, env: dict[str, Any], name: str) -> list[Any]:
    return [codec._revive(part) for part in env[name]]


def _made_of_list(name: str, make: Callable[[list[Any]], Any]) -> Callable[[Owner, dict[str, Any]], Any]:
    return lambda codec, env: make(_list_of(codec, env, name))


def _made_of_members(name: str, make: Callable[[list[Any]], Any]) -> Callable[[Owner, dict[str, Any]], Any]:
    def revive(codec: Owner, env: dict[str, Any]) -> Any:
        members = _list_of(codec, env, name)
        refuse_crowd(members)
        return make(members)

    return revive


def _made_of_parts(name: str, make: Callable[..., Any]) -> Callable[[Owner, dict[str, Any]], Any]:
    return lambda codec, env: make(*_list_of(codec, env, name))


def _made_of_text(name: str, make: Callable[[str], Any]) -> Callable[[Owner, dict[str, Any]], Any]:
    return lambda codec, env: make(env[name])


def _made_of_pairs(name: str, make: Callable[[dict[str, Any]], Any]) -> Callable[[Owner, dict[str, Any]], Any]:
    def revive(codec: Owner, env: dict[str, Any]) -> Any:
        made = make(env)
        keys = [codec._revive(key) for key, _ in env[name]]
        refuse_crowd(keys)
        for key, (_, part) in zip(keys, env[name], strict=True):
            made[key] = codec._revive(part)
        return made

    return revive


def _bytes_of(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _str_of(text: str) -> str:
    value = json.loads(text)
    parts = value if type(value) is list else [value]
    if not all(type(part) is str for part in parts):
        raise ValueError("$str needs the JSON of a string, or of its parts")
    return "".join(parts)


def _revive_dict(codec: Owner, env: dict[str, Any]) -> dict[str, Any]:
    return revive_values(codec, env["$dict"])


def _revive_moment(name: str, cls: Any) -> Callable[[Owner, dict[str, Any]], Any]:
    def revive(codec: Owner, env: dict[str, Any]) -> Any:
        value = cls.fromisoformat(env[name])
        if "zone" in env:
            value = value.replace(tzinfo=named_zone(codec._revive(env["zone"])))
        if "tzname" in env:
            value = value.replace(tzinfo=timezone(value.utcoffset(), codec._revive(env["tzname"])))
        value = value.replace(fold=env["fold"]) if "fold" in env else value
        return value.replace(tzinfo=zone_of(_list_of(codec, env, "tz"), value)) if "tz" in env else value

    return revive


def _revive_zone(codec: Owner, env: dict[str, Any]) -> tzinfo:
    return zone_of(_list_of(codec, env, "$tz"))


def _revive_structseq(codec: Owner, env: dict[str, Any]) -> Any:
    cls: Any = STRUCTSEQS[env["$structseq"]]
    items, beside = _list_of(codec, env, "items"), codec._revive(env["fields"])
    if len(items) != cls.n_sequence_fields:
        raise ValueError(f"it is no {cls.__name__}")
    if not {type(part) for part in (*items, *beside.values())} <= SCALARS:
        raise ValueError(f"the fields of {cls.__name__} are plain")
    return cls(items, beside)


def _revive_ip(codec: Owner, env: dict[str, Any]) -> Any:
    import ipaddress

    if env["type"] not in IPS:
        raise ValueError(f"{quote(env['type'])} is no class of ipaddress")
    return getattr(ipaddress, env["type"])(env["$ip"])


def _revive_url(codec: Owner, env: dict[str, Any]) -> Any:
    pydantic_core, text, name = library("pydantic_core", "pydantic"), env["$url"], env["type"]
    if name in ("Url", "MultiHostUrl"):
        return _parsed_url(getattr(pydantic_core, name), text)
    networks = library("pydantic.networks", "pydantic")
    cls: Any = vars(networks).get(name)
    single, multiple = networks._BaseUrl, networks._BaseMultiHostUrl
    if not isinstance(cls, type) or not issubclass(cls, (single, multiple)) or cls in (single, multiple):
        raise ValueError(f"{quote(name)} is no class of URLs of this pydantic")
    made: Any = object.__new__(cls)
    parsed = _parsed_url(pydantic_core.Url if issubclass(cls, single) else pydantic_core.MultiHostUrl, text)
    object.__setattr__(made, "_url", parsed)
    return made


def _parsed_url(cls: Any, text: str) -> Any:
    made = cls(text)
    return made if str(made) == text else cls(text, preserve_empty_path=True)


def _revive_name_email(codec: Owner, env: dict[str, Any]) -> Any:
    name, email = _list_of(codec, env, "$nameemail")
    if type(name) is not str or type(email) is not str:
        raise ValueError("$nameemail needs two strings")
    return library("pydantic.networks", "pydantic").NameEmail(name=name, email=email)


def _revive_pattern(codec: Owner, env: dict[str, Any]) -> Any:
    pattern, flags = codec._revive(env["$pattern"]), env["flags"]
    if type(pattern) not in (str, bytes) or len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"$pattern needs a text of at most {LONGEST_PATTERN:,} characters")
    if flags & ~int(re.A | re.I | re.L | re.M | re.S | re.U | re.X):
        raise ValueError("$pattern has flags that no pattern has")
    return re.compile(pattern, flags) if codec.compiles else pattern


def _revive_pandas(codec: Owner, env: dict[str, Any]) -> Any:
    pandas, numpy, name = library("pandas", "pandas"), numpy_library(), env["$pandas"]
    if name == "NaT":
        return pandas.NaT
    if name not in ("Timestamp", "Timedelta") or env["unit"] not in ("s", "ms", "us", "ns"):
        raise ValueError("it is no moment of pandas")
    kind = numpy.datetime64 if name == "Timestamp" else numpy.timedelta64
    made = getattr(pandas, name)(kind(env["value"], env["unit"]))
    if "tz" not in env:
        return made
    parts, made = _list_of(codec, env, "tz"), made.tz_localize("UTC")
    wall = made.tz_convert(zone_of(parts)).to_pydatetime(warn=False).replace(tzinfo=None)
    return made.tz_convert(zone_of(parts, wall))


def _revive_uuid(codec: Owner, env: dict[str, Any]) -> UUID:
    return UUID(env["$uuid"], is_safe=SafeUUID(env.get("safe")))


def _revive_path(codec: Owner, env: dict[str, Any]) -> pathlib.PurePath:
    text, pure = codec._revive(env["$path"]), _PATHS[env["type"]]
    own = type(pathlib.Path())
    return own(text) if env["type"] == own.__name__ else pure(text)  # another system's path is only words here


def _revive_enum(codec: Owner, env: dict[str, Any]) -> Any:
    cls: Any = codec.class_named(env["$enum"])
    if cls is None:
        codec._report_read(str(env["$enum"]))
        return codec._revive(env["value"]) if "value" in env else env["name"]
    if not isinstance(cls, enum.EnumMeta):
        raise unbuildable(cls, "was an Enum when this was stored")
    if "name" not in env:
        try:
            return cls(codec._revive(env["value"]))
        except Exception as error:  # an Enum may have a _missing_ of its own
            raise unbuildable(cls, f"has no member of the stored value: {quote_error(error)}") from error
    if env["name"] not in cls._member_map_:
        raise unbuildable(cls, f"has no member {quote(env['name'])}, which the stored value is; give it back")
    return cls._member_map_[env["name"]]


def _revive_object(codec: Owner, env: dict[str, Any]) -> Any:
    (tag, name), *parts = env.items()
    cls = codec.class_named(name)
    more = {key[1:]: codec._revive(part) for key, part in parts if key[:1] == "$"}
    fields = {key: part if type(part) in SCALARS else codec._revive(part) for key, part in parts if key[:1] != "$"}
    record = ObjectState(**{"attrs": {}, "absent": [], **more, "fields": fields})
    if cls is not None:
        made = build(cls, record)
        if codec.on_built is not None:
            codec.on_built(cls, made)
        return made
    codec._report_read(str(name))
    if record.content is not NO_CONTENT:
        beside = record.plain()
        return {"content": record.content, **beside} if beside else record.content
    return tuple(fields.values()) if tag == "$namedtuple" else record.plain()


def _revive_ndarray(codec: Owner, env: dict[str, Any]) -> Any:
    numpy = numpy_library()
    dtype = dtype_of(numpy, codec._revive(env["dtype"]))
    return array_of(numpy, dtype, env["shape"], base64.b64decode(env["$ndarray"], validate=True))


def _revive_npscalar(codec: Owner, env: dict[str, Any]) -> Any:
    numpy = numpy_library()
    dtype, content = dtype_of(numpy, codec._revive(env["dtype"])), codec._revive(env["$npscalar"])
    if dtype.kind in "US":
        if type(content) is not (str if dtype.kind == "U" else bytes):
            raise ValueError("a numpy string is made of a string only")
        return dtype.type(content)
    if type(content) is bytes:
        return array_of(numpy, dtype, [], content)[()]
    if dtype.kind not in "biuf" or type(content) not in (int, float, bool):
        raise ValueError("a numpy scalar is made of a number or its bytes")
    return dtype.type(content)


_NOT_FINITE = {word: float(word) for word in ("nan", "inf", "-inf")}
_PATHS: dict[str, Callable[[str], pathlib.PurePath]] = {
    "PosixPath": pathlib.PurePosixPath,
    "PurePosixPath": pathlib.PurePosixPath,
    "WindowsPath": pathlib.PureWindowsPath,
    "PureWindowsPath": pathlib.PureWindowsPath,
}

REVIVERS: dict[str, Callable[[Owner, dict[str, Any]], Any]] = {
    "$tuple": _made_of_list("$tuple", tuple),
    "$set": _made_of_members("$set", set),
    "$frozenset": _made_of_members("$frozenset", frozenset),
    "$float": _made_of_text("$float", _NOT_FINITE.__getitem__),
    "$int": _made_of_text("$int", lambda text: int(text, 16)),
    "$str": _made_of_text("$str", _str_of),
    "$bytes": _made_of_text("$bytes", _bytes_of),
    "$bytearray": _made_of_text("$bytearray", lambda text: bytearray(_bytes_of(text))),
    "$complex": _made_of_parts("$complex", complex),
    "$range": _made_of_parts("$range", range),
    "$slice": _made_of_parts("$slice", slice),
    "$fraction": _made_of_parts("$fraction", Fraction),
    "$timedelta": _made_of_parts("$timedelta", timedelta),
    "$decimal": _made_of_text("$decimal", Decimal),
    "$date": _made_of_text("$date", date.fromisoformat),
    "$datetime": _revive_moment("$datetime", datetime),
    "$time": _revive_moment("$time", time),
    "$uuid": _revive_uuid,
    "$path": _revive_path,
    "$dict": _revive_dict,
    "$map": _made_of_pairs("$map", lambda env: {}),
    "$OrderedDict": _made_of_pairs("$OrderedDict", lambda env: collections.OrderedDict()),
    "$Counter": _made_of_pairs("$Counter", lambda env: collections.Counter()),
    "$defaultdict": _made_of_pairs(
        "$defaultdict",
        lambda env: collections.defaultdict(None if env["factory"] is None else FACTORIES[env["factory"]]),
    ),
    "$deque": lambda codec, env: collections.deque(_list_of(codec, env, "$deque"), env["maxlen"]),
    "$ndarray": _revive_ndarray,
    "$npscalar": _revive_npscalar,
    "$enum": _revive_enum,
    "$class": _revive_object,
    "$namedtuple": _revive_object,
    "$unset": lambda codec, env: msgspec.UNSET,
    "$tz": _revive_zone,
    "$structseq": _revive_structseq,
    "$ip": _revive_ip,
    "$url": _revive_url,
    "$nameemail": _revive_name_email,
    "$pattern": _revive_pattern,
    "$pandas": _revive_pandas,
}
