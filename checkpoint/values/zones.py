"""Write a time zone as JSON parts, and make the same zone of them: those of pydantic, dateutil, pytz and the standard.

The zones of a library are recognised by module and class name, and the library is imported only to read one. A file
names a zone, never a path: no name that leaves the system's database of zones is looked up.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from datetime import datetime, time, timedelta, timezone, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["library", "named_zone", "zone_of", "zone_parts"]

_NAME = re.compile(r"[A-Za-z0-9_+\-]{1,32}(?:/[A-Za-z0-9_+\-]{1,32}){0,3}")
_MICROSECOND = timedelta(microseconds=1)


def zone_parts(zone: tzinfo, moment: Any = None) -> list[Any] | None:
    """The parts that `zone_of` makes the zone of, or None for a zone of another kind.

    Args:
        zone: what a datetime or time has as its `tzinfo`.
        moment: that datetime or time, where there is one.
    """
    cls = type(zone)
    if cls is ZoneInfo:
        return None if zone.key is None else ["zoneinfo", zone.key]  # type: ignore[attr-defined]
    if cls is timezone:
        offset, *name = zone.__getinitargs__()  # type: ignore[attr-defined]  # (offset,) or (offset, name)
        return ["timezone", offset // _MICROSECOND, *name]
    read = _PARTS.get((cls.__module__.partition(".")[0], cls.__name__))
    if read is None and cls.__module__.startswith("pytz."):
        read = _pytz_parts  # each zone of pytz is of a class of its own
    return None if read is None else read(zone, moment)


def zone_of(parts: list[Any], moment: Any = None) -> tzinfo:
    """The zone that `zone_parts` wrote as these parts.

    Args:
        parts: as they were written.
        moment: the datetime or time without its zone: dateutil's local zone is made only where the reader's has the
            same offset then; else a fixed offset is.

    Raises:
        ValueError: the parts are none, or this machine lacks the zone or the library; the message names it.
    """
    kind, *arguments = parts
    made = _ZONES[kind](*arguments)
    if kind == "dateutil.local" and isinstance(moment, datetime) and _offset(made, moment) != arguments[0]:
        return _dateutil_offset(*arguments)
    return made


def named_zone(key: str) -> ZoneInfo:
    """The standard library's zone of a name.

    Raises:
        ValueError: this machine does not know it.
    """
    try:
        return ZoneInfo(key)
    except ZoneInfoNotFoundError as error:
        raise ValueError(
            f"the time zone {key[:60]!r} is not known on this machine; install the database: pip install tzdata"
        ) from error


def library(module: str, package: str) -> Any:
    """A module that the code here names, never one that data name.

    Raises:
        ValueError: it is not installed; the message says what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"the value is of a class of {package}; to read it, install that: pip install {package}"
        ) from error


def _offset(zone: tzinfo, moment: Any) -> int | None:
    offset = moment.replace(tzinfo=zone).utcoffset() if isinstance(moment, (datetime, time)) else None
    return None if offset is None else offset // _MICROSECOND


def _microseconds(offset: Any) -> timedelta:
    if type(offset) is not int:
        raise ValueError("an offset is a number of microseconds")
    return timedelta(microseconds=offset)


# --- of pydantic ---


def _pydantic_parts(zone: Any, moment: Any) -> list[Any]:
    return ["pydantic", zone.utcoffset(None) // timedelta(seconds=1)]


def _pydantic_zone(seconds: int) -> tzinfo:
    made: tzinfo = library("pydantic_core", "pydantic").TzInfo(seconds)
    return made


# --- of dateutil ---


def _dateutil() -> Any:
    return library("dateutil.tz", "python-dateutil")


def _dateutil_offset_parts(zone: Any, moment: Any) -> list[Any]:
    return ["dateutil.offset", zone.utcoffset(None) // _MICROSECOND, zone.tzname(None)]


def _dateutil_offset(offset: int, name: str | None) -> tzinfo:
    made: tzinfo = _dateutil().tzoffset(name, _microseconds(offset))
    return made


def _dateutil_local_parts(zone: Any, moment: Any) -> list[Any]:
    name = moment.tzname() if isinstance(moment, datetime) else None
    return ["dateutil.local", _offset(zone, moment), name]


def _dateutil_named_parts(zone: Any, moment: Any) -> list[Any] | None:
    tz, name = _dateutil(), str(zone._filename)
    for folder in tz.TZPATHS:
        name = name.removeprefix(f"{folder}/")
    if not _NAME.fullmatch(name):
        return None
    found = tz.gettz(name)
    return ["dateutil.named", name] if type(found) is type(zone) and found == zone else None


def _dateutil_named(name: str) -> tzinfo:
    if not _NAME.fullmatch(name):
        raise ValueError("it is no name of a time zone")
    found: tzinfo | None = _dateutil().gettz(name)
    if found is None:
        raise ValueError(f"the time zone {name!r} is not known on this machine; install the system's tzdata")
    return found


# --- of pytz ---


def _pytz() -> Any:
    return library("pytz", "pytz")


def _pytz_parts(zone: Any, moment: Any) -> list[Any]:
    return ["pytz", *zone.__reduce__()[1]]  # the zone's name, and for most its offset, DST and abbreviation


def _pytz_zone(name: str, *variant: Any) -> tzinfo:
    pytz = _pytz()
    if not _NAME.fullmatch(name) or [type(part) for part in variant] not in ([], [int, int, str]):
        raise ValueError("it is no time zone of pytz")
    try:
        made: tzinfo = pytz.tzinfo.unpickler(name, *variant)
    except KeyError as error:
        raise ValueError(
            f"the time zone {name!r} is not known to this pytz; upgrade it: pip install -U pytz"
        ) from error
    return made


_PARTS: dict[tuple[str, str], Callable[[Any, Any], list[Any] | None]] = {
    ("pydantic_core", "TzInfo"): _pydantic_parts,
    ("dateutil", "tzutc"): lambda zone, moment: ["dateutil.utc"],
    ("dateutil", "tzoffset"): _dateutil_offset_parts,
    ("dateutil", "tzlocal"): _dateutil_local_parts,
    ("dateutil", "tzfile"): _dateutil_named_parts,
    ("pytz", "UTC"): lambda zone, moment: ["pytz.utc"],
    ("pytz", "_FixedOffset"): lambda zone, moment: ["pytz.offset", zone._minutes],
}
_ZONES: dict[str, Callable[..., tzinfo]] = {
    "zoneinfo": named_zone,
    "timezone": lambda offset, *name: timezone(_microseconds(offset), *name),
    "pydantic": _pydantic_zone,
    "dateutil.utc": lambda: _dateutil().tzutc(),
    "dateutil.offset": _dateutil_offset,
    "dateutil.local": lambda offset, name: _dateutil().tzlocal(),
    "dateutil.named": _dateutil_named,
    "pytz": _pytz_zone,
    "pytz.utc": lambda: _pytz().utc,
    "pytz.offset": lambda minutes: _pytz().FixedOffset(int(minutes)),
}
