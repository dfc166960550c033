"""An envelope costs no more than its bytes: one table says what each field may hold, and is held before building.

A file may come from a stranger. Without limits a line of a hundred bytes takes a gigabyte (a numpy scalar of a huge
type) or an hour (the fraction of ``1e999999999``). What the codec writes is always within the limits, since `encode`
reads each value back.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

from checkpoint.errors import quote

__all__ = [
    "FIELDS",
    "LONGEST_PATTERN",
    "Field",
    "checked_dtype",
    "checked_shape",
    "hold",
    "hold_patterns",
    "int_of_digits",
    "refuse_crowd",
]

_FRACTION_BITS = 200_000  # what is longer takes seconds to reduce
_MOST_DIGITS = 1_000_000  # of a decimal integer: a second
LONGEST_PATTERN = 10_000  # characters
_MOST_CLASSES = 200  # of characters in a pattern: some milliseconds each
_MOST_ALIKE = 256  # comparisons, on average, to enter a key or a member
_EMPTY_ARRAY = 1 << 20  # what an array without bytes may seem to hold
_DTYPE = re.compile(r"[<>|=]?[A-Za-z?][0-9]{0,9}(?:\[[0-9]{0,9}[a-zA-Z]{1,8}\])?", re.ASCII)


class Field(NamedTuple):
    """What may stand in one field of an envelope.

    Attributes:
        holds: whether a parsed JSON value is that.
        what: the same in words.
        needed: whether every such envelope has the field.
    """

    holds: Callable[[Any], bool]
    what: str
    needed: bool = True


def hold(env: dict[str, Any], fields: dict[str, Field]) -> None:
    """See that the fields of an envelope hold what they may.

    Raises:
        ValueError: one does not, or is missing; the message names it.
    """
    for name, field in fields.items():
        part = env.get(name, _MISSING)
        if part is _MISSING:
            if field.needed:
                raise ValueError(f"{name} is missing beside {quote(next(iter(env)))}")
        elif not field.holds(part):
            raise ValueError(f"{name} holds {field.what}, and not {quote(part, 60)}")


def refuse_crowd(parts: list[Any]) -> None:
    """See that a set or dict of these is made in a time that their number accounts for.

    Raises:
        ValueError: too many of them have one hash, so that each would be compared with all others.
    """
    if len(parts) <= _MOST_ALIKE:
        return
    hashes = list(map(hash, parts))
    if len(set(hashes)) == len(parts):
        return
    if sum(many * many for many in Counter(hashes).values()) > 2 * _MOST_ALIKE * len(parts):
        raise ValueError(f"too many of its {len(parts):,} keys or members have one hash, which makes it slow to build")


def hold_patterns(plain: Any) -> None:
    """See that all patterns of a value together have no more classes of characters than one may have.

    Args:
        plain: parsed JSON.

    Raises:
        ValueError: they have; each class takes some milliseconds to compile.
    """
    classes, todo = 0, [plain]
    while todo:
        part = todo.pop()
        if type(part) is list:
            todo += part
        elif type(part) is dict:
            if "$pattern" in part:
                classes += _text_of_pattern(part["$pattern"]).count("[")
            todo += part.values()
    if classes > _MOST_CLASSES:
        raise ValueError(f"its patterns have {classes:,} classes of characters; at most {_MOST_CLASSES} are compiled")


def _text_of_pattern(part: Any) -> str:
    """The pattern's text; "" of one of bytes, whose classes are small."""
    if type(part) is dict:
        text = part.get("$str", '""')
        part = json.loads(text) if type(text) is str else ""
        if type(part) is list and all(type(piece) is str for piece in part):
            part = "".join(part)
    return part if type(part) is str else ""


def int_of_digits(digits: str) -> int:
    """The integer that decimal digits spell, under any ``sys.set_int_max_str_digits``.

    Raises:
        ValueError: there are more than a million.
    """
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"an integer has {len(digits):,} digits; at most {_MOST_DIGITS:,} are read")
    return -_int_of(digits[1:]) if digits[:1] == "-" else _int_of(digits)


def _int_of(digits: str) -> int:
    if len(digits) < 640:  # the lowest limit that can be set
        return int(digits)
    half = len(digits) // 2
    high, low, scale = _int_of(digits[:-half]), _int_of(digits[-half:]), int(10**half)
    return high * scale + low


# --- numpy ---


def checked_dtype(descr: Any) -> Any:
    """What numpy may make a dtype of: a short word, or fields of such.

    Raises:
        ValueError: a word is none that numpy writes for a dtype.
    """
    if type(descr) is str and _DTYPE.fullmatch(descr) is None:
        raise ValueError(f"{quote(descr)} is no dtype")
    if type(descr) in (list, tuple):
        for part in descr:
            if type(part) in (list, tuple) and len(part) in (2, 3):
                checked_dtype(part[1])
    return descr


def checked_shape(dtype: Any, shape: list[Any], size: int) -> tuple[int, ...]:
    """The shape of an array of so many bytes.

    Raises:
        ValueError: they do not fit its shape and dtype, or it has far more items, sides or fields than bytes.
    """
    if not all(type(side) is int and side >= 0 for side in shape) or math.prod(shape) * dtype.itemsize != size:
        raise ValueError("an array's bytes do not fit its shape and dtype")
    if _weight(dtype) * math.prod(side or 1 for side in shape) > 2 * size + _EMPTY_ARRAY:
        raise ValueError("an array's shape and dtype promise more than its bytes hold")
    return tuple(shape)


def _weight(dtype: Any) -> int:
    """Bytes of an item, where a field that takes none counts as one."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return _weight(base) * int(math.prod(side or 1 for side in shape))
    if dtype.names is not None:
        return max(int(dtype.itemsize), sum(_weight(dtype.fields[name][0]) for name in dtype.names), 1)
    return int(dtype.itemsize) or 1


# --- the table ---


def _text(most: int | None = None) -> Field:
    if most is None:
        return Field(lambda part: type(part) is str, "a string")
    return Field(lambda part: type(part) is str and len(part) <= most, f"a string of at most {most:,} characters")


def _list(least: int = 0, most: int | None = None) -> Field:
    if most is None:
        return Field(lambda part: type(part) is list, "a list")
    many = f"{most}" if least == most else f"{least} to {most}"
    return Field(lambda part: type(part) is list and least <= len(part) <= most, f"a list of {many} parts")


def _ints(many: int, bits: int) -> Field:
    return Field(
        lambda part: type(part) is list and len(part) == many and all(_is_int(one, bits) for one in part),
        f"a list of {many} integers of at most {bits:,} bits",
    )


def _is_int(part: Any, bits: int) -> bool:
    if type(part) is dict:
        text = part.get("$int")
        return len(part) == 1 and type(text) is str and len(text) <= bits // 4
    return type(part) is int and part.bit_length() <= bits


def _is_number(part: Any) -> bool:
    return type(part) in (int, float) or (type(part) is dict and list(part) == ["$float"])


def _may_be_pattern(part: Any) -> bool:
    if type(part) is dict:
        part = next(iter(part.values()), None)  # $bytes or $str, which are longer than what they hold
    return type(part) is str and len(part) <= 2 * LONGEST_PATTERN


def _optional(field: Field) -> Field:
    return field._replace(needed=False)


_MISSING: Any = object()
_ANY = Field(lambda part: True, "any value")  # which is held to its own limits
_OBJECT = Field(lambda part: type(part) is dict, "an object")
_NUMBERS = Field(lambda part: type(part) is list and len(part) == 2 and all(map(_is_number, part)), "two numbers")
_NUMBER_OR_NULL = Field(lambda part: part is None or type(part) is int, "an integer or null")
_WORD_OR_NULL = Field(lambda part: part is None or type(part) is str, "a string or null")
_INT = Field(lambda part: _is_int(part, 64), "an integer of at most 64 bits")
_PATTERN = Field(_may_be_pattern, f"a pattern of at most {LONGEST_PATTERN:,} characters")
_ZONE = {
    "zone": _optional(_ANY), "tzname": _optional(_ANY), "fold": _optional(_INT), "tz": _optional(_list(1, 5)),
}  # fmt: skip

FIELDS: dict[str, dict[str, Field]] = {
    "$tuple": {"$tuple": _list()},
    "$set": {"$set": _list()},
    "$frozenset": {"$frozenset": _list()},
    "$deque": {"$deque": _list(), "maxlen": _NUMBER_OR_NULL},
    "$dict": {"$dict": _OBJECT},
    "$map": {"$map": _list()},
    "$OrderedDict": {"$OrderedDict": _list()},
    "$Counter": {"$Counter": _list()},
    "$defaultdict": {"$defaultdict": _list(), "factory": _WORD_OR_NULL},
    "$str": {"$str": _text()},
    "$bytes": {"$bytes": _text()},
    "$bytearray": {"$bytearray": _text()},
    "$int": {"$int": _text()},
    "$float": {"$float": _text(8)},
    "$complex": {"$complex": _NUMBERS},
    "$range": {"$range": _ints(3, _FRACTION_BITS)},
    "$slice": {"$slice": _list(3, 3)},
    "$fraction": {"$fraction": _ints(2, _FRACTION_BITS)},
    "$decimal": {"$decimal": _text()},
    "$timedelta": {"$timedelta": _ints(3, 64)},
    "$date": {"$date": _text(16)},
    "$datetime": {"$datetime": _text(64), **_ZONE},
    "$time": {"$time": _text(64), **_ZONE},
    "$tz": {"$tz": _list(1, 5)},
    "$uuid": {"$uuid": _text(64), "safe": _optional(_NUMBER_OR_NULL)},
    "$path": {"$path": _ANY, "type": _text(32)},
    "$ip": {"$ip": _text(128), "type": _text(32)},
    "$url": {"$url": _text(1 << 16), "type": _text(128)},
    "$nameemail": {"$nameemail": _list(2, 2)},
    "$pattern": {"$pattern": _PATTERN, "flags": _INT},
    "$ndarray": {"$ndarray": _text(), "dtype": _ANY, "shape": _list(0, 64)},
    "$npscalar": {"$npscalar": _ANY, "dtype": _ANY},
    "$pandas": {
        "$pandas": _text(16),
        "value": _optional(_INT),
        "unit": _optional(_text(2)),
        "tz": _optional(_list(1, 5)),
    },
    "$structseq": {"$structseq": _text(64), "items": _list(0, 64), "fields": _OBJECT},
    "$enum": {"$enum": _text(), "name": _optional(_text())},
    "$class": {"$class": _text()},
    "$namedtuple": {"$namedtuple": _text()},
    "$unset": {},
}
"""For each envelope its fields; any other field of an object of a class holds any value."""
