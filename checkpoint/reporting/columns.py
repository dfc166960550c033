"""Turn records into values that columns can hold, and infer the one type of each column.

The promise: a column holds what was saved, or text that says all of it; never a value that only looks like it. No class
is built, and no code of the user runs.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import takewhile
from typing import Any, NamedTuple

import msgspec

from checkpoint.errors import shorten
from checkpoint.reporting.vectors import Vector, VectorType, arrow_vector_type, vector_in
from checkpoint.values.codec import Codec
from checkpoint.values.plain_json import decode_foreign, with_stack

__all__ = [
    "JSON_TYPE",
    "TEXT_TYPE",
    "ColumnType",
    "SchemaInference",
    "arrow_type",
    "itself",
    "json_text",
    "jsonable",
    "maker_of",
    "tidy",
    "tidy_datetime",
    "tidy_result",
    "tidy_text",
]


_MOST_FIELDS = 1000
_DEEPEST = 10

#
# A *tidy* value is None, bool, int, float, str without lone surrogates, bytes, a datetime (naive, or in UTC), a date, a
# naive time, a timedelta that fits 64 bits, a Decimal, or a list or dict (of str keys) of such: of exactly these types.
# Envelopes are opened here, and not by the codec: no class need be known, and sets and keys of objects are no trouble.

_codec = Codec(compiles=False)

_WORD = 1 << 63
_EXACT = 1 << 53
_SHOWN_PATTERN = 200
_MOST_EMPTY = 64  # items or lists of an array that has no bytes
_MOST_BITS = 65_536  # of an int whose decimal digits are written; a longer one is written in hexadecimal


def tidy_result(raw: bytes, *, sealed: bool) -> Any:
    """The tidy value of a record's result; `sealed` tells whether it is ours, with envelopes, or another program's.

    Raises:
        ValueError: it is nothing that this can read.
    """
    if not sealed:
        return with_stack(tidy, decode_foreign(raw))
    if b'{"$' not in raw:
        return _codec.decode(raw)  # plain JSON is tidy
    try:
        return with_stack(_opened, _parsed(raw))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"an envelope is malformed: {error}") from error


def _parsed(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return decode_foreign(raw)  # which takes ints of any size, and a stack of its own


def _opened(plain: Any) -> Any:
    """The tidy value that parsed JSON with envelopes stands for."""
    if type(plain) is list:
        return [_in_list(_opened(part)) for part in plain]
    if type(plain) is not dict:
        return plain
    first = next(iter(plain), "")
    if not first.startswith("$"):
        return {name: _opened(part) for name, part in plain.items()}
    opener = _OPENERS.get(first)
    return tidy(_codec.revive(plain)) if opener is None else opener(plain)


def _in_list(value: Any) -> Any:
    """A tidy value as it stands in a list: vectors are lists there."""
    if type(value) is Vector:
        return value.tolist()
    if type(value) is dict:
        return {name: _in_list(part) for name, part in value.items()}
    return value


def _open_array(env: dict[str, Any]) -> Any:
    vector = vector_in(env)
    return tidy(_codec.revive(env)) if vector is None else vector


def _open_object(env: dict[str, Any]) -> dict[str, Any]:
    (_, *parts) = env.items()
    more = [_opened(env[name]) for name in ("$extra", "$attrs") if name in env]
    fields = {name: _opened(part) for name, part in parts if not name.startswith("$")}
    return {name: part for held in (fields, *more) for name, part in (held or {}).items()}


def _open_enum(env: dict[str, Any]) -> Any:
    return _opened(env["value"] if "value" in env else env["name"])


def _open_pairs(pairs: list[Any]) -> Any:
    return _object([[_opened(key), _opened(part)] for key, part in pairs])


def _object(pairs: list[Any]) -> Any:
    """An object of tidy pairs; the list of them where two keys make one name."""
    named = {key if type(key) is str else json_text(key): part for key, part in pairs}
    return named if len(named) == len(pairs) else [[_in_list(key), _in_list(part)] for key, part in pairs]


def _open_set(parts: list[Any]) -> list[Any]:
    opened = [_in_list(_opened(part)) for part in parts]
    kinds = set(map(type, opened))
    return sorted(opened) if kinds <= {int, float} or kinds == {str} else sorted(opened, key=json_text)


def _open_pattern(env: dict[str, Any]) -> str:
    """Return a pattern as Python shows it, without compiling it."""
    return f"re.compile({shorten(repr(_codec.revive(env)), _SHOWN_PATTERN)})"


_OPENERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$class": _open_object,
    "$namedtuple": _open_object,
    "$enum": _open_enum,
    "$dict": lambda env: {name: _opened(part) for name, part in env["$dict"].items()},
    "$tuple": lambda env: _opened(env["$tuple"]),
    "$deque": lambda env: _opened(env["$deque"]),
    "$set": lambda env: _open_set(env["$set"]),
    "$frozenset": lambda env: _open_set(env["$frozenset"]),
    "$map": lambda env: _open_pairs(env["$map"]),
    "$OrderedDict": lambda env: _open_pairs(env["$OrderedDict"]),
    "$Counter": lambda env: _open_pairs(env["$Counter"]),
    "$defaultdict": lambda env: _open_pairs(env["$defaultdict"]),
    "$pattern": _open_pattern,
    "$ndarray": _open_array,
}


def tidy(value: Any) -> Any:
    """A decoded scalar or array, a key, or the JSON of another program, tidy."""
    known = _TIDY.get(type(value))
    if known is not None:
        return known(value)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic)):
        return _tidy_numpy(numpy, value)
    if type(value).__module__.partition(".")[0] == "pandas":
        return _tidy_pandas(value)
    return None if value is msgspec.UNSET else tidy_text(str(value))


def itself(value: Any) -> Any:
    """The value itself."""
    return value


def _tidy_parts(parts: Iterable[Any]) -> list[Any]:
    return [tidy(part) for part in parts]


def tidy_text(text: str) -> str:
    """The text, with lone surrogates spelled out."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def tidy_datetime(value: datetime) -> Any:
    """A moment as columns hold it."""
    if value.tzinfo is None:
        return value.replace(fold=0)
    try:
        return value.astimezone(UTC)
    except OverflowError:  # in UTC it is in year 0 or 10000
        return value.isoformat()


def _tidy_timedelta(value: timedelta) -> Any:
    return value if abs(value) < timedelta(microseconds=_WORD - 1) else msgspec.to_builtins(value)


def _tidy_numpy(numpy: Any, value: Any) -> Any:
    dtype = value.dtype
    if isinstance(value, numpy.ndarray) and not value.nbytes and math.prod(takewhile(bool, value.shape)) > _MOST_EMPTY:
        return f"an array of shape {value.shape}"
    if dtype.kind in "biu" or (dtype.kind == "f" and dtype.itemsize <= 8):
        return value.tolist()
    if isinstance(value, numpy.ndarray):
        return [_tidy_numpy(numpy, part) for part in value] if value.ndim else _tidy_numpy(numpy, value[()])
    if dtype.names is not None:
        return {tidy_text(name): tidy(value[name]) for name in dtype.names}
    if dtype.kind in "mM":
        return _tidy_np_moment(numpy, value)
    if dtype.kind == "f":  # a long double
        return float(value) if float(value) == value or value != value else str(value)
    held = value.item()
    return str(value) if isinstance(held, numpy.generic) else tidy(held)


def _tidy_np_moment(numpy: Any, value: Any) -> Any:
    if numpy.isnat(value):
        return None
    if numpy.datetime_data(value.dtype)[0] != "generic":
        rounded = value.astype(f"{value.dtype.kind}8[us]")
        held = rounded.item() if numpy.datetime_data(value.dtype)[0] not in "YMWD" else value.item()
        if isinstance(held, (date, timedelta)) and (rounded == value or not isinstance(held, (datetime, timedelta))):
            return tidy(held)
    return str(value)


def _tidy_pandas(value: Any) -> Any:
    """A moment or a span of pandas: as Python has it, or as text where it has nanoseconds, which Python has not."""
    if value != value:  # NaT
        return None
    if isinstance(value, datetime) and not value.nanosecond:  # type: ignore[attr-defined]
        return tidy(value.to_pydatetime())  # type: ignore[attr-defined]
    if isinstance(value, timedelta) and not value.nanoseconds:  # type: ignore[attr-defined]
        return tidy(value.to_pytimedelta())  # type: ignore[attr-defined]
    return str(value)


_TIDY: dict[type, Callable[[Any], Any]] = {
    **dict.fromkeys((type(None), bool, int, float, bytes, date, Decimal), itself),
    str: tidy_text,
    bytearray: bytes,
    list: _tidy_parts,
    tuple: _tidy_parts,
    dict: lambda value: _object([[tidy_text(name), tidy(part)] for name, part in value.items()]),
    datetime: tidy_datetime,
    time: lambda value: value.replace(fold=0) if value.tzinfo is None else value.isoformat(),
    timedelta: _tidy_timedelta,
}


def jsonable(value: Any) -> Any:
    """Return the part of a tidy value that strict JSON, and any reader of it, can hold."""
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return value
    if kind is float:
        if math.isfinite(value):
            return value
        return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"
    if kind is int:
        return value if -_WORD <= value < 2 * _WORD else _digits(value)
    if kind is list:
        return [jsonable(part) for part in value]
    if kind is dict:
        return {name: jsonable(part) for name, part in value.items()}
    if kind is Vector:
        return jsonable(value.tolist())
    return msgspec.to_builtins(value)


def json_text(value: Any) -> str:
    """A tidy value as plain JSON."""
    return msgspec.json.encode(with_stack(jsonable, value)).decode()


def _digits(value: Any) -> str:
    if type(value) is not int:
        return str(value)
    # str(int) refuses more than 4,300 digits, and beyond some more each decimal digit costs more than the one before.
    return str(Decimal(value)) if value.bit_length() <= _MOST_BITS else hex(value)


class ColumnType(NamedTuple):
    """The type of a column, or of what stands in a list: a word for Arrow's, or "vector", "list", "struct", "json"."""

    kind: str
    part: ColumnType | None = None
    fields: dict[str, ColumnType] | None = None
    digits: tuple[int, int] = (0, 0)
    vector: VectorType | None = None


JSON_TYPE, _NULL, TEXT_TYPE = ColumnType("json"), ColumnType("null"), ColumnType("text")

_KINDS: dict[type, str] = {
    bool: "bool",
    float: "float",
    str: "text",
    bytes: "bytes",
    date: "date",
    time: "time",
    timedelta: "span",
}  # fmt: skip


class SchemaInference:
    """The kinds of values seen in one place of all rows: scalars, elements of lists, and fields."""

    __slots__ = ("before", "behind", "depth", "fields", "high", "kinds", "low", "part", "place", "vector", "whole")

    def __init__(self, depth: int = 0) -> None:
        self.depth = depth
        self.kinds: set[str] = set()
        self.low, self.high = 0, 0  # of ints
        self.before, self.behind = 0, 0  # digits of Decimals
        self.part: SchemaInference | None = None
        self.fields: dict[str, SchemaInference] | None = None
        self.vector: VectorType | None = None  # what all are that were seen
        self.whole = False  # too much for columns: JSON text
        self.place = -1

    @property
    def is_new(self) -> bool:
        """Whether nothing was seen but None."""
        return not (self.kinds or self.part or self.vector or self.fields is not None)

    def learn(self, value: Any) -> None:
        """See one tidy value."""
        kind = type(value)
        if kind is dict:
            self._learn_fields(value)
        elif kind is list:
            self._learn_list(value)
        elif kind is int:
            self._learn_ints(value, value)
        elif kind is Vector:
            self._learn_vector(value.kind)
        elif kind is datetime:
            self.kinds.add("datetime" if value.tzinfo is None else "moment")
        elif kind is Decimal:
            self._learn_decimal(value)
        elif value is not None:
            self.kinds.add(_KINDS[kind])

    def _learn_fields(self, value: dict[str, Any]) -> None:
        fields = self.fields
        if fields is None:
            fields = self.fields = {}
        if self.depth >= _DEEPEST:
            self.whole = True
        if self.whole:
            return
        for name, part in value.items():
            shape = fields.get(name)
            if shape is None:
                shape = fields[name] = SchemaInference(self.depth + 1)
            shape.learn(part)
        if len(fields) > _MOST_FIELDS:
            self.whole = True
            fields.clear()

    def _learn_list(self, value: list[Any]) -> None:
        if self.part is None:
            self.part = SchemaInference(self.depth + 1)
        if self.depth >= _DEEPEST:
            self.whole = True
        if self.whole or self.part.whole:
            return
        kinds = set(map(type, value))
        if kinds <= {float, bool, str, type(None)}:
            self.part.kinds.update(_KINDS[kind] for kind in kinds - {type(None)})
        elif kinds == {int}:
            self.part._learn_ints(min(value), max(value))
        else:
            for part in value:
                self.part.learn(part)

    def _learn_vector(self, kind: VectorType) -> None:
        if self.vector is None and self.part is None:
            self.vector = kind
        elif self.vector != kind:
            self._learn_lists(kind)

    def _learn_lists(self, kind: VectorType) -> None:
        """Vectors of this kind were seen, and are to be lists, since there were others."""
        shape = self
        for depth in range(len(kind.shape)):
            if shape.part is None:
                shape.part = SchemaInference(self.depth + depth + 1)
            shape = shape.part
        if kind.item is int:
            shape._learn_ints(*kind.range)
        else:
            shape.kinds.add("float")

    def _settle_vector(self) -> None:
        """All were vectors of one kind; or what was seen of these is a list, too."""
        if self.vector is not None and (self.part is not None or self.kinds or self.fields is not None):
            self._learn_lists(self.vector)
            self.vector = None

    def _learn_ints(self, low: int, high: int) -> None:
        self.kinds.add("int")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def _learn_decimal(self, value: Decimal) -> None:
        self.kinds.add("decimal")
        _, digits, exponent = value.as_tuple()
        if isinstance(exponent, int):
            self.before = max(self.before, len(digits) + exponent)
            self.behind = max(self.behind, -exponent)
        else:
            self.before = 99  # NaN and Infinity: no Arrow type holds them

    def form(self) -> ColumnType:
        """The form of what stands here; fields have columns of their own."""
        self._settle_vector()
        if self.vector is not None and not self.whole:
            return ColumnType("vector", vector=self.vector)
        if self.whole:
            return _NULL if self.is_new else JSON_TYPE
        if self.part is not None:
            part = self.part._inner_form()
            return JSON_TYPE if self.kinds or part is JSON_TYPE else ColumnType("list", part)
        return self._scalar_form()

    def _inner_form(self) -> ColumnType:
        if self.fields is None or self.whole:
            return self.form()
        if self.kinds or self.part is not None or not self.fields:
            return JSON_TYPE
        fields = {name: shape._inner_form() for name, shape in self.fields.items()}
        return JSON_TYPE if JSON_TYPE in fields.values() else ColumnType("struct", fields=fields)

    def _scalar_form(self) -> ColumnType:
        kinds, reach = self.kinds, max(-self.low, self.high)
        if not kinds:
            return _NULL
        if kinds == {"int"}:
            if self.low >= -_WORD and self.high < _WORD:
                return ColumnType("int")
            return ColumnType("uint") if self.low >= 0 and self.high < 2 * _WORD else TEXT_TYPE
        if kinds == {"int", "float"}:
            return ColumnType("number") if reach <= _EXACT else JSON_TYPE
        if kinds <= {"int", "decimal"}:
            before = max(self.before, len(_digits(reach)) if "int" in kinds else 0)
            if before + self.behind <= 38:
                return ColumnType("decimal", digits=(max(before + self.behind, 1), self.behind))
            return TEXT_TYPE if len(kinds) == 1 else JSON_TYPE
        return ColumnType(next(iter(kinds))) if len(kinds) == 1 else JSON_TYPE


def maker_of(form: ColumnType) -> Callable[[Any], Any] | None:
    """What makes a tidy value, not None, into one of the form; None where it is one."""
    if form.kind == "list" and form.part is not None:
        make = maker_of(form.part)
        if make is None:
            return lambda value: value.tolist() if type(value) is Vector else value
        return lambda value: [
            None if part is None else make(part) for part in (value.tolist() if type(value) is Vector else value)
        ]
    if form.kind == "struct" and form.fields is not None:
        makers = {name: maker_of(part) or itself for name, part in form.fields.items()}
        return lambda value: {
            name: None if (part := value.get(name)) is None else make(part) for name, make in makers.items()
        }
    makers_of_kinds: dict[str, Callable[[Any], Any]] = {
        "json": json_text,
        "text": _digits,
        "number": float,
        "decimal": Decimal,
    }
    return makers_of_kinds.get(form.kind)


def arrow_type(pa: Any, form: ColumnType) -> Any:
    """The type of Arrow for a column's type."""
    if form.vector is not None:
        return arrow_vector_type(pa, form.vector)
    if form.kind == "list" and form.part is not None:
        return pa.list_(arrow_type(pa, form.part))
    if form.kind == "struct" and form.fields is not None:
        return pa.struct([(name, arrow_type(pa, part)) for name, part in form.fields.items()])
    if form.kind == "decimal":
        return pa.decimal128(*form.digits)
    return {
        "null": pa.null(),
        "bool": pa.bool_(),
        "int": pa.int64(),
        "uint": pa.uint64(),
        "float": pa.float64(),
        "number": pa.float64(),
        "text": pa.string(),
        "json": pa.string(),
        "bytes": pa.binary(),
        "moment": pa.timestamp("us", tz="UTC"),
        "datetime": pa.timestamp("us"),
        "date": pa.date32(),
        "time": pa.time64("us"),
        "span": pa.duration("us"),
    }[form.kind]
