"""The laws of the codec: what is read is what was written, or it was refused when it was written."""

from __future__ import annotations

import base64
import collections
import dataclasses
import decimal
import enum
import functools
import itertools
import json
import math
import pathlib
import re
import struct
import subprocess
import sys
import threading
import typing
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, Required, TypedDict, TypeVar
from zoneinfo import ZoneInfo

import attrs
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint.errors import UnbuildableValue, UnencodableValue
from checkpoint.values import canonical as canonical_module
from checkpoint.values import codec as codec_module
from checkpoint.values import envelopes, plain_json
from checkpoint.values.arrays import counted_bytes
from checkpoint.values.canonical import canonical
from checkpoint.values.codec import Codec
from checkpoint.values.limits import FIELDS
from checkpoint.values.plain_json import MAX_DEPTH, decode_foreign
from checkpoint.values.revivers import REVIVERS

settings.register_profile("codecs", deadline=None)
settings.load_profile("codecs")


def same(a: Any, b: Any) -> bool:
    """Whether two values are the same: type by type, NaN as NaN, and the sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, enum.Enum):
        return a is b
    if isinstance(a, float) and not isinstance(a, np.generic):
        return (math.isnan(a) and math.isnan(b)) or struct.pack("d", a) == struct.pack("d", b)
    if isinstance(a, complex) and not isinstance(a, np.generic):
        return same(a.real, b.real) and same(a.imag, b.imag)
    if isinstance(a, (np.ndarray, np.generic)):
        return bool(a.dtype == b.dtype and a.shape == b.shape and repr(a.tolist()) == repr(b.tolist()))
    if isinstance(a, Decimal):
        return bool(a.as_tuple() == b.as_tuple())
    if isinstance(a, (datetime, time)):
        zones = (a.tzinfo, b.tzinfo)
        return (
            a.isoformat() == b.isoformat()
            and a.fold == b.fold
            and type(zones[0]) is type(zones[1])
            and repr(zones[0]) == repr(zones[1])
        )
    if isinstance(a, (set, frozenset)):
        return same_sets(list(a), list(b))
    if isinstance(a, dict):
        return same(list(a.items()), list(b.items())) and same(*(getattr(d, "default_factory", "") for d in (a, b)))
    if isinstance(a, (list, tuple, collections.deque)):
        return (
            len(a) == len(b)
            and all(map(same, a, b))
            and getattr(a, "maxlen", 0) == getattr(b, "maxlen", 0)
            and same(getattr(a, "__dict__", None), getattr(b, "__dict__", None))
        )
    if isinstance(a, pathlib.PurePath):
        return bool(a == b)
    if isinstance(a, slice):
        return same([a.start, a.stop, a.step], [b.start, b.stop, b.step])
    if is_object(a):
        return same(state(a), state(b))
    return bool(a == b)


def same_sets(a: list[Any], b: list[Any]) -> bool:
    """Whether two sets' members pair off."""
    left = list(b)
    for part in a:
        place = next((i for i, other in enumerate(left) if same(part, other)), None)
        if place is None:
            return False
        del left[place]
    return not left


def is_object(a: Any) -> bool:
    """Whether fields make up this value."""
    return hasattr(a, "__dict__") or hasattr(a, "__slots__") or isinstance(a, msgspec.Struct)


def state(a: Any) -> dict[str, Any]:
    """All that an object holds, by any name."""
    if isinstance(a, pydantic.BaseModel):
        names = ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
        return {name: getattr(a, name) for name in names}
    names = (*getattr(a, "__struct_fields__", ()), *getattr(type(a), "__slots__", ()))
    held = {name: getattr(a, name, "absent") for name in names if name not in ("__weakref__", "__dict__")}
    return {**held, **dict(sorted(getattr(a, "__dict__", {}).items()))}


def strict(raw: bytes) -> Any:
    """The JSON of one line, as a strict foreign reader takes it."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    assert b"\n" not in raw
    assert b"\r" not in raw
    return json.loads(raw.decode("utf-8"), parse_constant=refuse, parse_int=str)


def trip(value: Any, result_type: Any = None) -> Any:
    """What comes back, after the checks that hold for every value."""
    codec = Codec(result_type)
    raw = codec.encode(value)
    strict(raw)
    back = codec.decode(raw)
    assert codec.encode(back) == raw or not codec._names or result_type is None
    return back


# --- values that need no class ---

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**60).map(lambda n: n**9),
    st.floats(),
    st.text(st.characters(exclude_categories=())),
    st.binary(),
    st.complex_numbers(),
    st.datetimes(timezones=st.none() | st.timezones() | st.just(UTC)),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.fractions(),
    st.ranges() if hasattr(st, "ranges") else st.builds(range, st.integers(-9, 9)),
    st.sampled_from([np.float64(1.5), np.float32("nan"), np.int8(-3), np.str_("é"), np.datetime64("2020-01-01", "s")]),
)
keys = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.dates())
tags = [*sorted(REVIVERS), "$attrs", "$absent", "$extra", "$private", "$chosen", "$other", "$"]
names = st.sampled_from([*tags, "value", "name", "dtype", "shape", "zone", "factory", "x", ""]) | st.text()


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Containers of every kind, of values that `inner` draws."""
    pairs = st.dictionaries(st.recursive(keys, lambda k: st.tuples(k, k), max_leaves=3), inner, max_size=4)
    return st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(names, inner, max_size=4),
        pairs,
        st.dictionaries(names, inner, max_size=4).map(collections.OrderedDict),
        pairs.map(lambda d: collections.defaultdict(list, d)),
        st.lists(inner, max_size=4).map(lambda parts: collections.deque(parts, maxlen=9)),
        st.sets(keys, max_size=4),
        st.frozensets(keys, max_size=4),
    )


values = st.recursive(leaves, containers, max_leaves=12)


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(values)
def test_any_value_reads_back_the_same(value: Any) -> None:
    """decode(encode(v)) is the same as v; the bytes are one line of strict JSON, and encode again as themselves."""
    codec = Codec()
    raw = codec.encode(value)
    strict(raw)
    back = codec.decode(raw)
    assert same(back, value)
    assert codec.encode(back) == raw
    assert same(codec.revive(json.loads(raw)) if b"$int" not in raw else value, value)


jsonish = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


@pytest.mark.slow
@given(jsonish)
def test_plain_json_is_written_as_it_is(value: Any) -> None:
    """The fast path and the careful one write the same bytes, and other programs read the value."""
    raw = Codec().encode(value)
    assert raw == msgspec.json.encode(envelopes.Tagger(Codec()).tag(value))
    if b'{"$' not in raw:
        assert same(json.loads(raw), value)


@pytest.mark.slow
@given(st.dictionaries(names, names | st.lists(names), min_size=1))
def test_what_looks_like_an_envelope_is_escaped(value: dict[str, Any]) -> None:
    """A user's dict is never taken for an envelope, whatever its keys."""
    assert same(trip(value), value)
    assert same(trip([{"a": (value,)}]), [{"a": (value,)}])


NAN = float("nan")
UTC = UTC
PARIS = ZoneInfo("Europe/Paris")
EDGES: list[tuple[Any, str]] = [
    (NAN, "fast libraries write null"),
    ([math.inf, -math.inf, NAN], "and so they do for infinities"),
    (-0.0, "its sign is lost where floats are compared by =="),
    ({"a": -0.0, "b": [0.0]}, "within containers too"),
    (1e22, "might be written as an integer"),
    (1.0, "must not become 1"),
    ([True, 1, 1.0], "three values that are equal"),
    (5e-324, "the least float"),
    (1.7976931348623157e308, "the greatest float"),
    ((1, 2), "a tuple becomes a list"),
    ([(), ((),)], "empty tuples"),
    ({1: "a", "1": "b"}, "int keys become str, and collide"),
    ({None: 1, True: 2, 1.5: 3, (1, 2): 4}, "keys of every kind"),
    ({NAN: 1}, "a NaN key"),
    ({b"k": 1}, "bytes as a key"),
    (b"abc", "bytes become base64 text"),
    (bytearray(b"abc"), "a bytearray is no bytes"),
    ("\ud800", "a lone surrogate is no UTF-8"),
    ({"\udfff": "\ud800x"}, "nor as a key"),
    ('\U0010ffff\x00\x1f\x7f\u2028\u2029\r\n"\\', "control characters, and line ends of other alphabets"),
    ("$tuple", "a string that is a tag"),
    ('{"$tuple":[]}', "a string that is an envelope"),
    ({"$tuple": [1]}, "a dict that is an envelope"),
    ({"$dict": {"$dict": 1}}, "the escape itself"),
    ({"a": 1, "$tuple": 2}, "only the first key counts"),
    ({"$": 1, "a": (1,)}, "a bare sign"),
    ({"": {}}, "an empty key"),
    (2**63, "past a signed word"),
    (2**64, "past any word"),
    (-(2**64), "below any word"),
    (10**30, "a long integer"),
    (10**4299, "the longest that Python prints"),
    (10**5000, "longer than Python prints"),
    ([-(10**5000), (10**5000,)], "within containers"),
    ({10**5000: 1}, "as a key"),
    (collections.OrderedDict(b=1, a=2), "a dict that is no dict"),
    (collections.Counter("hello"), "a Counter"),
    (collections.Counter({(1,): 2.5, "$x": -1}), "a Counter of anything"),
    (collections.defaultdict(list, {"a": [1]}), "a factory that is known"),
    (collections.defaultdict(None, {1: 2}), "no factory"),
    (collections.deque([1, (2,)], maxlen=3), "a deque and its bound"),
    (collections.deque(), "an empty deque"),
    ({1, "1", (1,), None, 2.5}, "a set of anything"),
    (frozenset({frozenset({1}), frozenset()}), "nested frozensets"),
    (set(), "no elements"),
    (complex(-0.0, NAN), "both parts of a complex"),
    (range(3, -9, -2), "a range"),
    (slice(None, (1,), 2), "a slice"),
    (datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=PARIS), "the second 2:30 of that night"),
    (datetime(2024, 10, 27, 2, 30, tzinfo=PARIS), "the first one"),
    (datetime(2024, 10, 27, 2, 30, fold=1), "fold without a zone"),
    (datetime(2024, 1, 1, tzinfo=UTC), "UTC"),
    (datetime(2024, 1, 1, tzinfo=ZoneInfo("UTC")), "UTC that is a ZoneInfo"),
    (datetime(2024, 1, 1, 1, 1, 1, 7, timezone(timedelta(hours=-5, microseconds=3))), "an offset of microseconds"),
    (datetime(2024, 1, 1, tzinfo=timezone(timedelta(0), "UTC")), "a zone named UTC that is not UTC's own"),
    (datetime(2024, 1, 1, tzinfo=timezone(timedelta(hours=9), "J\ud800")), "a named offset"),
    (datetime.min, "the first moment"),
    (datetime.max.replace(tzinfo=PARIS), "the last one"),
    (date(1, 1, 1), "a date is no datetime"),
    (time(1, 2, 3, 4, fold=1, tzinfo=UTC), "a time with a zone"),
    (time(1, tzinfo=PARIS), "a time with a place"),
    (time(1, tzinfo=timezone(timedelta(hours=1), "X")), "a time with a name"),
    (timedelta(days=-1, microseconds=1), "negative"),
    (timedelta.max, "the longest"),
    (uuid.UUID(int=5), "a UUID"),
    (uuid.UUID(int=5, is_safe=uuid.SafeUUID.unsafe), "and what uuid1 says of it"),
    (Decimal("1.50"), "trailing zeros"),
    (Decimal("-0E-99"), "signed zero with an exponent"),
    (Decimal("sNaN123"), "a signalling NaN with a payload"),
    (Decimal("-Infinity"), "an infinity"),
    (Fraction(-1, 3), "a Fraction"),
    (Fraction(1, 10**5000), "a very small one"),
    (pathlib.Path("a/../b c"), "a path of this system"),
    (pathlib.PurePosixPath("/a"), "a path without a system"),
    (pathlib.PureWindowsPath("C:\\a\\b"), "a path of another system"),
    (pathlib.PurePosixPath("\udce4"), "a name that is no UTF-8"),
    (msgspec.UNSET, "a field that was not sent"),
    (np.float64(1.5), "marshal takes it for bytes"),
    ([np.float64(NAN), np.float16(0.1), np.float32(-0.0)], "floats of each size"),
    ([np.bool_(True), np.int8(-1), np.uint64(2**64 - 1), np.longlong(3), np.intc(2)], "C's integers"),
    ([np.complex64(1 - 2j), np.str_("a\0b"), np.bytes_(b"a\0b"), np.str_(""), np.str_("\ud800")], "and the rest"),
    ([np.datetime64("NaT", "s"), np.datetime64("2020-01-01T00", ("s", 25)), np.timedelta64(5, "D")], "moments"),
    ({np.int64(1): np.float64(2)}, "as a key"),
    (np.array([], "f4"), "an empty array"),
    (np.array(3.5), "an array of no dimension"),
    (np.arange(6, dtype=">i4").reshape(2, 3).T, "big-endian, and not contiguous"),
    (np.array([["a", "bc"]]), "an array of text"),
    (np.array(["2020-01-01", "NaT"], "M8[ns]"), "an array of moments"),
    (np.zeros((2, 0, 3), bool), "a side of no length"),
    (np.array([(1, [2.5, NAN])], [("a", "i1"), ("b", "<f8", (2,))]), "a structured array"),
    (np.array([(1, 2)], np.dtype([("a", "i1"), ("b", "f8")], align=True)), "with padding"),
    (np.array([(1, 2)], [("a", "i1"), ("b", "f8")])[0], "a structured scalar"),
    ((np.ones(3), {"$a": np.ones(1)}), "deep within"),
]


@pytest.mark.parametrize(("value", "reason"), EDGES, ids=[reason for _, reason in EDGES])
def test_edges_read_back_the_same(value: Any, reason: str) -> None:
    """What a fast JSON library changes silently, alone and within containers."""
    assert same(trip(value), value), reason
    assert same(trip([value, {"k": value}]), [value, {"k": value}])
    assert same(trip((value,)), (value,))


def test_the_tests_own_comparison_tells_values_apart() -> None:
    """No two edges are the same, and each is the same as itself."""
    for (a, first), (b, second) in itertools.combinations(EDGES, 2):
        assert not same(a, b), (first, second)
    assert all(same(value, value) for value, _ in EDGES)


def test_distinct_values_are_written_differently() -> None:
    """Encoding is injective: two edges never share their bytes."""
    written = [Codec().encode(value) for value, _ in EDGES]
    assert len(set(written)) == len(written)


def test_equal_sets_are_written_alike() -> None:
    """The order in which a set was filled leaves no trace."""
    assert Codec().encode({8, 0, 16}) == Codec().encode({16, 8, 0})
    assert Codec().encode(frozenset("cab")) == b'{"$frozenset":["a","b","c"]}'


@pytest.mark.parametrize(
    ("value", "raw"),
    [
        ({"a": (1, NAN)}, b'{"a":{"$tuple":[1,{"$float":"nan"}]}}'),
        ({1: "a"}, b'{"$map":[[1,"a"]]}'),
        ({"$a": (1,)}, b'{"$dict":{"$a":{"$tuple":[1]}}}'),
        (b"\xff", b'{"$bytes":"/w=="}'),
        (datetime(2024, 7, 1, tzinfo=PARIS), b'{"$datetime":"2024-07-01T00:00:00","zone":"Europe/Paris"}'),
        (datetime(2024, 7, 1, tzinfo=UTC), b'{"$datetime":"2024-07-01T00:00:00+00:00"}'),
        (Decimal("1.50"), b'{"$decimal":"1.50"}'),
        (np.float32(0.5), b'{"$npscalar":0.5,"dtype":"<f4"}'),
        (np.array([1], "<i2"), b'{"$ndarray":"AQA=","dtype":"<i2","shape":[1]}'),
        ("\ud800", rb'{"$str":"\"\\ud800\""}'),
        (16**5000, b'{"$int":"0x1' + b"0" * 5000 + b'"}'),
    ],
    ids=lambda part: type(part).__name__,
)
def test_the_form_on_disk_is_kept(value: Any, raw: bytes) -> None:
    """Files outlive the library: these bytes are read and written for ever."""
    assert Codec().encode(value) == raw
    assert same(Codec().decode(raw), value)


def test_decoded_arrays_are_ones_own() -> None:
    """A decoded array is writable and owns its memory."""
    back = trip([np.arange(3), np.array([(1, 2)], "i4,f4")])
    assert all(array.flags.writeable and array.flags.owndata for array in back)


@pytest.mark.parametrize(
    "dtype",
    [
        np.dtype([("a", "i1"), ("b", "f8")], align=True),
        np.dtype([("a", [("b", "i1"), ("c", ">i8")], (2,)), ("d", "i1")], align=True),
        np.dtype("g"),
        np.dtype("G"),
        np.dtype(">g"),
        np.dtype([("a", "i1"), ("b", "g")]),
    ],
    ids=str,
)
def test_padding_is_no_part_of_a_value(dtype: np.dtype[Any]) -> None:
    """What memory holds between the fields of a structure, or past a long double, is not written."""
    value = np.zeros(3, dtype)
    noisy = np.frombuffer(bytes(3 * dtype.itemsize), dtype).copy()
    noisy.view("u1").reshape(3, -1)[:, padding(dtype)] = 7
    back = trip(noisy)
    assert back.dtype == dtype
    assert (back == value).all()
    assert Codec().encode(noisy) == Codec().encode(value)


def padding(dtype: np.dtype[Any]) -> list[int]:
    """The places of the bytes of an item that are no part of its value."""
    return [place for place, counts in enumerate(counted_bytes(np, dtype)) if not counts]


@pytest.mark.slow
def test_numpy_is_imported_for_an_array_alone() -> None:
    """Neither import nor encode brings numpy, pydantic or attrs; an array does, where it is read."""
    program = (
        "import sys, checkpoint.values.codec as c; k = c.Codec()\n"
        "k.decode(k.encode({1: (2,)}))\n"
        "assert not {'numpy', 'pydantic', 'attr'} & set(sys.modules)\n"
        'k.decode(b\'{"$npscalar":1.5,"dtype":"<f8"}\')\n'
        "assert 'numpy' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=pathlib.Path(checkpoint.__file__).parents[1])


def test_a_missing_numpy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numpy an array cannot be read, and the message says what to install."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(ValueError, match="pip install numpy"):
        Codec().decode(b'{"$npscalar":1.5,"dtype":"<f8"}')


def test_long_integers_are_read_under_any_limit() -> None:
    """An integer written where Python's limit on digits was lifted is read where it was not."""
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(0)
        raw = Codec().encode([10**6000, (10**6000,)])
        sys.set_int_max_str_digits(640)
        assert Codec().decode(raw) == [10**6000, (10**6000,)]
        assert decode_foreign(b"1" + b"0" * 6000) == 10**6000
        assert canonical(10**700) == b"1" + b"0" * 700
    finally:
        sys.set_int_max_str_digits(limit)


# --- depth ---


def nested(depth: int, kind: Callable[[list[Any]], Any] = list) -> Any:
    """Containers of one kind, so many levels deep."""
    value: Any = kind([])
    for _ in range(depth - 1):
        value = kind([value])
    return value


def wide_map(parts: list[Any]) -> dict[Any, Any]:
    """A dict that is written as pairs."""
    return dict.fromkeys([1][: len(parts)], *parts)


KINDS: list[Callable[[list[Any]], Any]] = [
    list,
    tuple,
    lambda parts: dict(zip("a", parts, strict=False)),
    lambda parts: dict(zip(["$a"], parts, strict=False)),
    wide_map,
    lambda parts: collections.OrderedDict(wide_map(parts)),
    lambda parts: Box(parts[0] if parts else None),
    lambda parts: Pair(1, parts),
    lambda parts: Loose(**{"$ä": {1: parts}}),  # type: ignore[arg-type]
]


def at_depth(depth: int, work: Callable[[], Any]) -> Any:
    """What `work` returns on a stack with so many more frames."""
    return work() if depth == 0 else at_depth(depth - 1, work)


@pytest.mark.parametrize("kind", KINDS)
def test_the_greatest_depth_is_written_and_read(kind: Callable[[list[Any]], Any]) -> None:
    """MAX_DEPTH levels of any kind are stored, whatever stack is left to writer and reader."""
    codec = Codec(Box | Pair | Loose)
    levels = {Pair: 2, Loose: 4}.get(type(kind([])), 1)  # how many containers one of a kind holds within itself
    value = nested(MAX_DEPTH // levels, kind)
    raw = codec.encode(value)
    left = sys.getrecursionlimit() - len(list(iterate_frames())) - 60
    assert at_depth(left, lambda: codec.encode(value)) == raw
    assert at_depth(left, lambda: codec.encode(codec.decode(raw))) == raw


def iterate_frames() -> Iterator[Any]:
    """The frames of this stack."""
    frame: Any = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, MAX_DEPTH + 2, 500, 900, 1000, 2000, 5000])
@pytest.mark.parametrize("kind", KINDS[:7])
def test_a_value_that_is_too_deep_is_refused(kind: Callable[[list[Any]], Any], depth: int) -> None:
    """One definite depth, for all kinds, and never a RecursionError."""
    with pytest.raises(UnencodableValue, match="levels deep") as caught:
        Codec(Box).encode(nested(depth, kind))
    assert len(str(caught.value)) < 700
    assert canonical(nested(depth, list)) is None


@pytest.mark.parametrize("depth", [100, MAX_DEPTH])
def test_depth_counts_containers_alone(depth: int) -> None:
    """A scalar within the innermost container is no level; brackets in strings are none either."""
    value = nested(depth)
    functools.reduce(lambda inner, _: inner[0], range(depth - 1), value).append("[" * 999 + "\\")
    assert same(trip(value), value)
    assert canonical(value) is not None
    assert same(trip(["[{" * 500] * 3), ["[{" * 500] * 3)


def test_many_flat_records_are_not_deep() -> None:
    """Depth is how far brackets nest, not how many there are."""
    value = [{"a": [1, {"b": "]["}]}] * 500
    assert Codec().encode(value) == json.dumps(value, separators=(",", ":")).encode()


def circular_list() -> Any:
    """A list that contains itself."""
    value: list[Any] = []
    value.append(value)
    return value


def circular_dict() -> Any:
    """A dict that contains itself, by way of a tuple."""
    value: dict[str, Any] = {"a": 1}
    value["b"] = (value,)
    return value


def circular_object() -> Any:
    """An object that contains itself."""
    value = Node("a", None)
    value.child = value
    return value


@pytest.mark.parametrize("make", [circular_list, circular_dict, circular_object])
def test_a_value_that_contains_itself_is_refused(make: Callable[[], Any]) -> None:
    """Refused, saying so; canonical says None."""
    with pytest.raises(UnencodableValue, match="contains itself"):
        Codec(Node).encode(make())
    assert canonical(make()) is None


# --- classes ---


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


@dataclasses.dataclass
class Node:
    name: str
    child: Node | None
    points: list[Point] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()


@dataclasses.dataclass(kw_only=True)
class Child(Point):
    z: int
    total: float = dataclasses.field(init=False)
    never: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.total = self.x + self.y

    @functools.cached_property
    def heavy(self) -> Any:
        return object()


@attrs.define
class Attrs:
    a: int
    _b: list[Point] = attrs.Factory(list)


@attrs.frozen(slots=False, cache_hash=True)
class AttrsFrozen:
    a: str = "x"


class Struct(msgspec.Struct):
    a: int
    b: Point | None = None


class StructFrozen(msgspec.Struct, frozen=True, kw_only=True, dict=True, tag="s", rename="camel"):
    some_name: int
    other: list[int] = []
    maybe: int | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.some_name < 0:
            msgspec.structs.force_setattr(self, "some_name", 0)


class StructHashed(msgspec.Struct, frozen=True, cache_hash=True):
    a: str


class Inner(pydantic.BaseModel):
    v: float


class Model(pydantic.BaseModel):
    name: str
    inner: list[Inner] = []
    at: datetime | None = None
    _seen: int = pydantic.PrivateAttr(default=3)


class Loose(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    a: int = 1


class Root(pydantic.RootModel[list[Inner]]):
    pass


T = TypeVar("T")


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Pair(NamedTuple):
    x: int
    y: Any = None


class PairWithMore(Pair):
    pass


class Color(enum.Enum):
    RED = 1
    CRIMSON = 1  # noqa: PIE796  # an alias
    BLUE = (2, 3)
    ODD = object()


class Perm(enum.Flag):
    R = 1
    W = 2


class Level(enum.IntEnum):
    LOW = 1


class Mode(enum.StrEnum):
    FAST = "fast"


class Movie(TypedDict, total=False):
    title: Required[str]
    cast: NotRequired[list[Point]]


@dataclasses.dataclass
class Box(Generic[T]):
    content: T


@dataclasses.dataclass
class PointBox(Box[Point]):
    pass


PointId = NewType("PointId", Point)
Bound = TypeVar("Bound", bound=Point)
Either = TypeVar("Either", Point, Frozen)


def with_attribute(value: Any, name: str, part: Any) -> Any:
    """The value, with one attribute more."""
    object.__setattr__(value, name, part)
    return value


def with_struct_attribute(value: Any) -> Any:
    """The struct, with an attribute that is no field."""
    vars(value)["note"] = (1,)
    return value


def touched(value: Any, *names: str) -> Any:
    """The value, after these attributes were read."""
    for name in names:
        getattr(value, name)
    return value


OBJECTS: list[tuple[Any, Any, str]] = [
    (Point(1.0, -0.0), Point, "a dataclass"),
    (Point(1, "y"), Point, "values that do not fit the fields"),  # type: ignore[arg-type]
    (with_attribute(Point(1.0), "note", (1,)), Point, "an attribute that is no field"),
    (with_attribute(Point(1.0), "$note", 1), Point, "under any name"),
    (Node("a", Node("b", None, [Point(1.0)])), Node, "recursive and nested, by string annotations"),
    (Frozen(1, (2,)), Frozen, "frozen and slotted"),
    ({Frozen(1): {Frozen(2)}}, dict[Frozen, set[Frozen]], "as keys and in sets"),
    (Child(x=1.0, z=2), Child, "inherited, keyword-only, a field never set"),
    (touched(Child(x=1.0, z=2), "total"), Child | int, "a union"),
    (Attrs(1, [Point(2.0)]), Attrs, "attrs, with a private name"),
    (Struct(1, Point(2.0)), typing.Union[Struct, None], "msgspec"),  # noqa: UP007  # as older code spells it
    (StructFrozen(some_name=-1, other=[1]), StructFrozen, "msgspec, frozen, tagged, renamed, post_init, UNSET"),
    (with_struct_attribute(StructFrozen(some_name=2)), StructFrozen, "msgspec with a dict"),
    (Model(name="a", inner=[Inner(v=NAN)], at=datetime(2024, 1, 1)), Model, "pydantic, nested"),
    (Model(name="a"), Model, "pydantic, where not all fields were set"),
    (Model.model_construct(inner=[1]), Model, "pydantic, not validated, and a field absent"),
    (Loose.model_validate({"b": (1,), "$tuple": 2, "$class": 3}), Loose, "pydantic's extras, under any name"),
    (Loose(), Loose, "pydantic that allows extras and has none"),
    (Root([Inner(v=1)]), Root, "pydantic's root model"),
    (Page[Inner](items=[Inner(v=1)]), Page[Inner], "pydantic's generics"),
    (Pair(1, Pair(2)), Pair, "a NamedTuple"),
    (with_attribute(PairWithMore(1, 2), "note", [1]), PairWithMore, "a NamedTuple with attributes beside its items"),
    ([Color.RED, Color.CRIMSON, Color.BLUE, Color.ODD], list[Color], "an Enum, with an alias, and with any value"),
    ([Perm.R, Perm.R | Perm.W, Perm(0)], list[Perm], "a Flag, and combinations"),
    ({Level.LOW: Mode.FAST, 1.5: Level.LOW}, dict[Level, Mode], "Enums that are int and str"),
    ({"title": "a", "cast": [Point(1.0)]}, Movie, "a TypedDict, and what it holds"),
    (Box(Point(1.0)), Box[Point], "a generic dataclass"),
    (PointBox(Point(1.0)), PointBox, "a base's argument"),
    (Point(1.0), PointId, "a NewType"),
    ([Point(1.0)], list[Bound], "a TypeVar's bound"),  # type: ignore[valid-type]
    ([Point(1.0), Frozen(2)], list[Either], "its constraints"),  # type: ignore[valid-type]
    ((Point(1.0),), tuple[Annotated[Point, "unit"], ...], "Annotated"),
    ([Point(1.0), "a"], list[Point | Literal["a"]], "a Literal is ignored"),
    ([Point(1.0)], SimpleNamespace(__value__=list[Point]), "a type alias"),
    ({"x": 1}, Point, "a dict where an object was announced"),
    (None, Point, "nothing at all"),
    ([[Point(1.0)]], Point, "deeper than announced"),
    (Point(Frozen(1)), Node | Frozen, "elsewhere than announced"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("value", "named", "reason"), OBJECTS, ids=[reason for *_, reason in OBJECTS])
def test_named_classes_are_built_again(value: Any, named: Any, reason: str) -> None:
    """What the annotation names comes back as itself; the value decides, the annotation only names."""
    told: list[str] = []
    codec = Codec(named, on_unnamed=told.append)
    raw = codec.encode(value)
    strict(raw)
    assert same(codec.decode(raw), value), reason
    assert not told
    assert same(Codec(named).decode(raw), value)
    assert same(trip([value], named), [value])


@pytest.mark.parametrize(("value", "named", "reason"), OBJECTS, ids=[reason for *_, reason in OBJECTS])
def test_unnamed_classes_come_back_plain_on_every_run(value: Any, named: Any, reason: str) -> None:
    """Without names the saving run gets what later runs get, and is told once a class; a later name rebuilds them."""
    told: list[str] = []
    codec = Codec(on_unnamed=told.append)
    if "as keys" in reason:  # a plain dict can be neither key nor element
        with pytest.raises(UnencodableValue, match="name 'Frozen' in the return annotation"):
            codec.encode(value)
        return
    if "beside its items" in reason:
        with pytest.raises(UnencodableValue, match="without its"):
            codec.encode(value)
        return
    raw = codec.encode(value)
    assert Codec(on_unnamed=told.append).encode(value) == raw
    back = codec.decode(raw)
    only_builtins(back)
    assert same(back, Codec().decode(raw))
    assert same(Codec().decode(Codec().encode(back)), back)
    assert len(told) == 2 * len(set(told))
    codec.encode(value)
    assert len(told) == 2 * len(set(told))
    assert same(Codec(named).decode(raw), value)


def only_builtins(value: Any) -> None:
    """No class of a user's is left in the value."""
    assert type(value).__module__ in ("builtins", "datetime", "msgspec"), value
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set)):
        for part in value:
            only_builtins(part)


@pytest.mark.parametrize(
    ("value", "plain", "raw"),
    [
        (Point(1.0), {"x": 1.0, "y": 0.0}, b'{"$class":"Point","x":1.0,"y":0.0}'),
        (Pair(1), (1, None), b'{"$namedtuple":"Pair","x":1,"y":null}'),
        (Color.BLUE, (2, 3), b'{"$enum":"Color","name":"BLUE","value":{"$tuple":[2,3]}}'),
        (Color.ODD, "ODD", b'{"$enum":"Color","name":"ODD"}'),
        (Perm.R | Perm.W, 3, b'{"$enum":"Perm","value":3}'),
        (Mode.FAST, "fast", b'{"$enum":"Mode","name":"FAST","value":"fast"}'),
        (
            Loose.model_validate({"b": 2}),
            {"a": 1, "b": 2},
            b'{"$class":"Loose","a":1,"$extra":{"b":2},"$chosen":["b"]}',
        ),
        ({Mode.FAST: 1}, {"fast": 1}, b'{"$map":[[{"$enum":"Mode","name":"FAST","value":"fast"},1]]}'),
    ],
)
def test_what_unnamed_objects_come_back_as(value: Any, plain: Any, raw: bytes) -> None:
    """A dict of the fields, a tuple, an Enum's value or else its name; on disk the class is still told."""
    assert Codec().encode(value) == raw
    assert same(Codec().decode(raw), plain)


class MyInt(int):
    pass


class MyFloat(float):
    pass


class MyStr(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "a lie"


class MyBytes(bytes):
    pass


class MyBytearray(bytearray):
    pass


class MyList(list):  # type: ignore[type-arg]
    def __iter__(self) -> Iterator[Any]:
        return iter("lies")


class MyDict(dict):  # type: ignore[type-arg]
    def __getattr__(self, name: str) -> Any:
        return self[name]


class MyTuple(tuple):  # type: ignore[type-arg]
    pass


class MySet(set):  # type: ignore[type-arg]
    pass


class MyComplex(complex):
    pass


SUBCLASSES: list[tuple[Any, Any]] = [
    (MyInt(3), 3),
    (MyFloat(-0.0), -0.0),
    (MyStr("a"), "a"),
    (MyBytes(b"a"), b"a"),
    (MyBytearray(b"a"), bytearray(b"a")),
    (MyList([1, (2,)]), [1, (2,)]),
    (MyDict(a=1), {"a": 1}),
    (MyDict({1: MyList([2])}), {1: [2]}),
    (MyTuple((1,)), (1,)),
    (MySet({1}), {1}),
    (MyComplex(1j), 1j),
    ({MyStr("a"): MyStr("b")}, {"a": "b"}),
    (collections.defaultdict(lambda: 1, a=2), {"a": 2}),
]


@pytest.mark.parametrize(("value", "plain"), SUBCLASSES, ids=[type(value).__name__ for value, _ in SUBCLASSES])
def test_subclasses_of_builtins_come_back_as_the_builtin(value: Any, plain: Any) -> None:
    """With what the builtin itself holds, whatever the subclass says; and it is told."""
    told: list[str] = []
    codec = Codec(on_unnamed=told.append)
    assert same(codec.decode(codec.encode(value)), plain)
    assert told


def make_class(name: str, module: str, **fields: Any) -> Any:
    """A dataclass of this name, as if defined at the top of that module."""
    cls = dataclasses.make_dataclass(name, fields.items(), namespace={"__module__": module})
    cls.__module__ = module
    return cls


def test_two_classes_of_one_name_are_told_apart() -> None:
    """Where the table has two of one name, the module is written too, and a bare name comes back plain."""
    one, two = make_class("Config", "one", a=int), make_class("Config", "two", a=int)
    codec = Codec(one | two)
    raw = codec.encode([one(1), two(2)])
    assert b'{"$class":"one.Config","a":1}' in raw
    assert same(codec.decode(raw), [one(1), two(2)])
    assert codec.decode(b'{"$class":"Config","a":1}') == {"a": 1}
    assert same(Codec(two).decode(raw), [{"a": 1}, two(2)])


def test_a_class_never_comes_back_as_its_namesake() -> None:
    """An unnamed class with the name of a named one, even of the same module, comes back plain."""
    named, other, again = (make_class("Config", module, a=int) for module in ("one", "two", "one"))
    told: list[str] = []
    codec = Codec(named, on_unnamed=told.append)
    raw = codec.encode([named(1), other(2), again(3)])
    assert same(codec.decode(raw), [named(1), {"a": 2}, {"a": 3}])
    assert sorted(told) == ["another one.Config", "two.Config"]
    both = Codec(named | again)
    assert same(both.decode(both.encode(named(1))), {"a": 1})


def test_an_annotation_that_cannot_be_resolved_hides_nothing_else() -> None:
    """A field whose annotation names nothing known leaves the other fields' classes named."""

    @dataclasses.dataclass
    class Local:
        lost: Nowhere  # type: ignore[name-defined]  # noqa: F821
        self_: Local | None
        point: Point

    value = Local(1, Local(2, None, Point(1.0)), Point(2.0))
    assert same(trip(value, Local), value)


def test_an_odd_annotation_is_ignored() -> None:
    """Whatever stands for the result type, the codec is made, and plain data pass."""
    for odd in (3, "Point", [Point], typing.Any, Callable[[int], Point], typing.Self, object(), {"a": 1}, {}, None):
        assert Codec(odd).decode(Codec(odd).encode({"a": (1,)})) == {"a": (1,)}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="type statements came with Python 3.12")
def test_a_type_alias_is_seen_through() -> None:
    """``type X = …`` names what it stands for, recursive or not."""
    scope: dict[str, Any] = {"Point": Point}
    exec("type Tree = Point | list[Tree]\ntype Lost = Nowhere", scope)
    assert same(trip([[Point(1.0)]], scope["Tree"]), [[Point(1.0)]])
    assert trip(1, scope["Lost"]) == 1


@pytest.mark.promise("untrusted checkpoints")
def test_building_runs_no_constructor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither __init__ nor __post_init__ nor a validator is run when a value is read."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("was run")

    values = [Point(1.0), Child(x=1.0, z=2), Attrs(1), Model(name="a"), Pair(1)]
    named = Point | Child | Attrs | Model | Pair
    raw = Codec(named).encode(values)
    for cls in (Point, Child, Attrs, Model):
        monkeypatch.setattr(cls, "__init__", refuse)
    monkeypatch.setattr(Child, "__post_init__", refuse)
    assert same(Codec(named).decode(raw), values)


def test_an_equality_of_the_users_is_not_believed() -> None:
    """Equality that always holds, or raises, decides nothing."""

    @dataclasses.dataclass(eq=False)
    class Vain:
        a: Any

        def __eq__(self, other: object) -> bool:
            raise AssertionError("was asked")

        __hash__ = object.__hash__

    assert trip(Vain((1,)), Vain).a == (1,)
    assert trip([Vain(1)]) == [{"a": 1}]


def test_a_hash_is_not_kept() -> None:
    """What attrs and msgspec remember of a hash is not stored: hashes of strings differ from run to run."""
    for value in (AttrsFrozen("a"), StructHashed("a")):
        hash(value)
        codec = Codec(type(value))
        raw = codec.encode(value)
        assert str(hash(value)).encode() not in raw
        assert codec.decode(raw) == value
        assert hash(codec.decode(raw)) == hash(value)


def test_cached_properties_are_not_kept() -> None:
    """What a class computes from its fields is computed anew, and does not stand in the way."""
    value = touched(Child(x=1.0, z=2), "heavy")
    assert "heavy" not in vars(trip(value, Child))


# --- classes that change ---


def test_a_new_field_takes_its_default() -> None:
    """For each kind of class: a default, a default's factory, or an error that says what to do."""
    changes: list[tuple[type, type, type]] = [
        (
            dataclasses.make_dataclass("C", ["a"]),
            dataclasses.make_dataclass("C", ["a", ("b", list, dataclasses.field(default_factory=list))]),
            dataclasses.make_dataclass("C", ["a", "b"]),
        ),
        (
            attrs.make_class("C", ["a"]),
            attrs.make_class("C", {"a": attrs.field(), "b": attrs.field(factory=list)}),
            attrs.make_class("C", ["a", "b"]),
        ),
        (
            msgspec.defstruct("C", ["a"]),
            msgspec.defstruct("C", ["a", ("b", list, msgspec.field(default_factory=list))]),
            msgspec.defstruct("C", ["a", "b"]),
        ),
        (
            pydantic.create_model("C", a=(int, ...)),
            pydantic.create_model("C", a=(int, ...), b=(list, pydantic.Field(default_factory=list))),
            pydantic.create_model("C", a=(int, ...), b=(int, ...)),
        ),
        (
            collections.namedtuple("C", ["a"]),
            collections.namedtuple("C", ["a", "b"], defaults=[[]]),
            collections.namedtuple("C", ["a", "b"]),
        ),
    ]
    for before, default, required in changes:
        raw = Codec(before).encode(before(a=1))
        back = Codec(default).decode(raw)
        assert type(back) is default
        assert (back.a, back.b) == (1, [])  # type: ignore[attr-defined]
        with pytest.raises(UnbuildableValue, match=r"C has a field 'b' that the stored object lacks.*version="):
            Codec(required).decode(raw)
        with pytest.raises(UnbuildableValue, match=r"C has no field 'b'.*version=") as caught:
            Codec(before).decode(Codec(required).encode(required(a=1, b=2)))
        assert caught.value.cls is before


def test_a_new_private_attribute_takes_its_default() -> None:
    """A pydantic model that has gained private attributes since gets their defaults."""
    before = pydantic.create_model("C", a=(int, ...))

    class C(pydantic.BaseModel):
        a: int
        _seen: list[int] = pydantic.PrivateAttr(default_factory=list)
        _bare: int

    made = C.model_validate({"a": 1})
    assert same(Codec(C).decode(Codec(before).encode(before(a=1))), made)
    assert same(trip(made, C), made)


def test_a_lost_member_is_told() -> None:
    """An Enum that has lost the stored member, or is no Enum any more, cannot be built."""
    with pytest.raises(UnbuildableValue, match="no member 'GREEN'"):
        Codec(Color).decode(b'{"$enum":"Color","name":"GREEN","value":1}')
    with pytest.raises(UnbuildableValue, match="no member of the stored value"):
        Codec(Color).decode(b'{"$enum":"Color","value":77}')
    with pytest.raises(UnbuildableValue, match="was an Enum"):
        Codec(Point).decode(b'{"$enum":"Point","value":77}')
    with pytest.raises(UnbuildableValue, match="was a class with fields"):
        Codec(Color).decode(b'{"$class":"Color","a":77}')


def test_a_class_may_change_its_kind() -> None:
    """A dataclass that became a pydantic model, with the same fields, is read as that."""
    raw = Codec(Point).encode(Point(1.0))
    model = pydantic.create_model("Point", x=(float, ...), y=(float, ...))
    assert same(Codec(model).decode(raw), model(x=1.0, y=0.0))


# --- what is refused ---


class Opaque:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Raising:
    __slots__ = ()


@dataclasses.dataclass
class Angry:
    a: int

    @property
    def b(self) -> int:
        raise RuntimeError("do not look")


@dataclasses.dataclass
class RichDict(dict):  # type: ignore[type-arg]
    a: int = 0


@attrs.define
class OwnError(Exception):
    a: int


class MyTz(ZoneInfo):
    pass


OPAQUE = Opaque()
RECORDS: Any = np.array([(1, 2)], "i4,i4").view(np.recarray)
REFUSED: list[tuple[Any, str]] = [
    (OPAQUE, "result"),
    ({"deep": [OPAQUE]}, "result['deep'][0]"),
    ([1, {"a": (2, OPAQUE)}], "result[1]['a'][1]"),
    (Node("a", Node("b", OPAQUE)), "result.child.child"),  # type: ignore[arg-type]
    (Pair(1, {2: OPAQUE}), "result.y[2]"),
    (collections.OrderedDict(a=OPAQUE), "result['a']"),
    ({OPAQUE: 1}, "result{…}"),
    ([{OPAQUE}], "result[0]{…}"),
    ([Raising()], "result[0]"),
    (len, "result"),
    (int, "result"),
    (..., "result"),
    (NotImplemented, "result"),
    (sys, "result"),
    (iter(()), "result"),
    (memoryview(b"a"), "result"),
    (ValueError("a"), "result"),
    (OwnError(1), "result"),
    ([RichDict(1)], "result[0]"),
    (SimpleNamespace(a=1), "result"),
    (threading.Lock(), "result"),
    (np.array([OPAQUE]), "result"),
    ([np.array([(1, "a")], "i4,O")], "result[0]"),
    (np.ma.masked_array([1], [True]), "result"),
    (RECORDS, "result"),
    (RECORDS[0], "result"),
    (np.dtype("f4"), "result"),
    ([datetime(2024, 1, 1, tzinfo=MyTz("UTC"))], "result[0]"),
    (with_attribute(Point(1.0), "lock", threading.Lock()), "result['lock']"),
]


@pytest.mark.parametrize(("value", "where"), REFUSED, ids=[f"{type(v).__name__}-{w}" for v, w in REFUSED])
def test_what_cannot_be_stored_is_refused_by_its_path(value: Any, where: str) -> None:
    """The message names the part, its class, and what to return instead; named classes change nothing."""
    for codec in (Codec(), Codec(Node | Pair | Point | OwnError)):
        with pytest.raises(UnencodableValue, match="return plain data, or a dataclass") as caught:
            codec.encode(value)
        assert caught.value.where == where
        assert str(caught.value).startswith(f"{where} is a")


def test_a_message_never_quotes_much() -> None:
    """Paths of long keys are cut."""
    with pytest.raises(UnencodableValue) as caught:
        Codec().encode({"k" * 9999: {"l" * 9999: {("m" * 9999,): [OPAQUE]}}})
    assert len(str(caught.value)) < 600
    with pytest.raises(ValueError, match="no envelope") as unknown:
        Codec().decode(json.dumps({"$" + "x" * 9999: 1}, separators=(",", ":")).encode())
    assert len(str(unknown.value)) < 400


def test_what_reads_back_otherwise_is_refused() -> None:
    """The law is checked on every encode, against whatever a class does."""

    @dataclasses.dataclass
    class Growing:
        a: int

        def __setattr__(self, name: str, value: Any) -> None:
            raise RuntimeError("frozen by hand")

    class Drifting(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            raise RuntimeError("not like this")

    value: Any = object.__new__(Growing)
    object.__setattr__(value, "a", 1)
    assert trip(value, Growing).a == 1  # the user's hook is not asked
    raw = b'{"$class":"Drifting","a":1}'
    with pytest.raises(UnbuildableValue, match="not like this"):
        Codec(Drifting).decode(raw)
    with pytest.raises(UnencodableValue, match="name 'Color'"):
        Codec().encode({Color.RED: 1, 1: 2})  # both keys would come back as 1
    trip(Angry(1), Angry)


@pytest.mark.parametrize("tells", [False, True])
def test_an_error_of_the_users_code_is_an_unencodable_value(tells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A property that raises while it is read is the value's fault, not the codec's; msgspec does not always tell."""

    class Slotted:
        __slots__ = ("a",)

    raising: Any = dataclasses.dataclass(Slotted)
    raising.__dataclass_fields__ = dict(vars(Point)["__dataclass_fields__"])
    raising.x = property(lambda self: 1 // 0)
    really = plain_json.write_json

    def write(value: Any) -> bytes:
        if tells:
            _ = [part.x for part in value if isinstance(part, raising)]
        return really(value)

    monkeypatch.setattr(canonical_module, "write_json", write)
    monkeypatch.setattr(codec_module, "write_json", write)
    monkeypatch.setattr(envelopes, "write_json", write)
    monkeypatch.setattr(plain_json, "write_json", write)
    monkeypatch.setattr(
        codec_module, "write_json_lines", lambda values: b"".join([write(value) + b"\n" for value in values])
    )
    with pytest.raises(UnencodableValue, match="ZeroDivisionError"):
        Codec().encode([raising()])
    refused = Codec().encode_all([[raising()], [raising()]])
    assert [type(one) for one in refused] == [UnencodableValue] * 2


@pytest.mark.promise("untrusted checkpoints")
def test_no_numpy_object_array_is_read() -> None:
    """An array of Python objects in a file is refused, for it could run code."""
    for dtype in ('"O"', '"|O"', '[{"$tuple":["a","O"]}]'):
        data = base64.b64encode(bytes(8)).decode()
        with pytest.raises(ValueError, match="could run code"):
            Codec().decode(f'{{"$ndarray":"{data}","dtype":{dtype},"shape":[1]}}'.encode())


# --- bytes that nobody wrote ---

MALFORMED = [
    b"",
    b"{",
    b"nan",
    b"NaN",
    b"[1,]",
    b"\xff",
    b'"\xff"',
    b'"\\ud800"',
    b"1 2",
    b"1e999",
    b"[" * 100_000,
    b'{"$tuple":' * 100_000,
    b'{"$tuple":[' * 3000 + b"]}" * 3000,
    b'{"$tuple":3}',
    b'{"$tuple":"ab"}',
    b'{"$unknown":3}',
    b'{"$float":1}',
    b'{"$float":"x"}',
    b'{"$int":"zz"}',
    b'{"$str":"3"}',
    b'{"$str":"["}',
    b'{"$bytes":"a"}',
    b'{"$bytes":"\xc3\xa9"}',
    b'{"$set":[[1]]}',
    b'{"$map":[[1]]}',
    b'{"$map":{"a":1}}',
    b'{"$map":[[[],1]]}',
    b'{"$dict":[]}',
    b'{"$complex":[1,2,3]}',
    b'{"$range":[1,2,0]}',
    b'{"$fraction":[1,0]}',
    b'{"$decimal":"x"}',
    b'{"$timedelta":[99999999999999,0,0]}',
    b'{"$datetime":"x"}',
    b'{"$datetime":"2024-01-01T00:00:00","zone":"No/Where"}',
    b'{"$datetime":"2024-01-01T00:00:00","zone":"../../etc/passwd"}',
    b'{"$datetime":"2024-01-01T00:00:00","tzname":"X"}',
    b'{"$uuid":"x"}',
    b'{"$path":3,"type":"PosixPath"}',
    b'{"$path":"a","type":"Popen"}',
    b'{"$defaultdict":[],"factory":"eval"}',
    b'{"$defaultdict":[]}',
    b'{"$deque":[1],"maxlen":-1}',
    b'{"$ndarray":"","dtype":"f8","shape":[9]}',
    b'{"$ndarray":"","dtype":"f8","shape":[0,99999999999999999999]}',
    b'{"$ndarray":"","dtype":"f8","shape":[-1]}',
    b'{"$ndarray":"","dtype":"no","shape":[0]}',
    b'{"$ndarray":"","dtype":[[[]]],"shape":[0]}',
    b'{"$npscalar":"x","dtype":"f8"}',
    b'{"$class":[]}',
    b'{"$class":"Point","$fields":1}',
    b'{"$class":"Point","$attrs":1,"x":2}',
    b'{"$class":"Point","x":1,"$nonsense":2}',
    b'{"$class":"Nobody","$attrs":[3]}',
    b'{"$enum":{}}',
    b'{"$enum":"Nobody"}',
]


@pytest.mark.parametrize("raw", MALFORMED, ids=[str(raw[:40]) for raw in MALFORMED])
def test_malformed_bytes_are_a_value_error(raw: bytes) -> None:
    """Nothing but ValueError, and its kin UnbuildableValue where the table has the class."""
    with pytest.raises((ValueError, UnbuildableValue)):
        Codec(Point).decode(raw)


structure = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names
    | st.sampled_from(["Point", "Model", "Pair", "Perm", "Struct", "<f8", "O", "list", "AAAAAAAAAAA=", "UTC", "0x1"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4)
    | st.builds(lambda tag, part, more: {tag: part, **more}, st.sampled_from(tags), inner,
                st.dictionaries(names | st.sampled_from(["x", "y", "a"]), inner, max_size=3)),
    max_leaves=15,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.promise("untrusted checkpoints")
@settings(max_examples=1500, deadline=None)
@pytest.mark.filterwarnings("ignore")  # numpy warns of old names of dtypes
@given(structure)
def test_any_json_is_a_value_or_a_value_error(plain: Any) -> None:
    """Fuzzed envelopes never raise anything else, and what is read from them can be looked at."""
    codec = Codec(Point | Model | Pair | Perm | Struct | Frozen | Attrs | Loose)
    for read in (codec.revive, lambda plain: codec.decode(json.dumps(plain, separators=(",", ":")).encode())):
        try:
            read(plain)
        except (ValueError, UnbuildableValue):
            pass


@pytest.mark.promise("untrusted checkpoints")
@settings(max_examples=300, deadline=None)
@given(st.binary())
def test_any_bytes_are_a_value_or_a_value_error(raw: bytes) -> None:
    """Neither reader raises anything else."""
    for read in (Codec().decode, decode_foreign):
        try:
            read(raw)
        except ValueError:
            pass


# --- lines of other programs ---


@pytest.mark.slow
@given(values)
def test_a_foreign_value_is_what_json_says(value: Any) -> None:
    """Whatever json.dumps wrote is read as json.loads reads it."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        return
    assert same(decode_foreign(text.encode()), json.loads(text))


def test_foreign_envelopes_are_plain_dicts() -> None:
    """No dict of another program is taken for an envelope; NaN and lone surrogates are accepted."""
    assert decode_foreign(b'{"$tuple": [1]}') == {"$tuple": [1]}
    assert same(decode_foreign(b'[NaN, -Infinity, "\\ud800"]'), [NAN, -math.inf, "\ud800"])
    for raw in (b"", b"{", b"[" * 100_000, b"\xff", b"nan", b"'a'"):
        with pytest.raises(ValueError):  # noqa: PT011  # any message will do
            decode_foreign(raw)


# --- canonical ---

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(names | st.text(st.characters(exclude_categories=())), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


def shuffled(value: Any) -> Any:
    """The same value, with every dict in another order."""
    if isinstance(value, dict):
        return {key: shuffled(part) for key, part in reversed(value.items())}
    return type(value)(map(shuffled, value)) if isinstance(value, (list, tuple)) else value


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(json_like)
def test_order_does_not_count(item: Any) -> None:
    """Dicts that differ in order have one canonical form, which is strict JSON."""
    raw = canonical(item)
    assert raw is not None
    assert canonical(shuffled(item)) == raw
    strict(raw)


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(json_like, json_like)
def test_distinct_items_are_distinct(a: Any, b: Any) -> None:
    """Two items share a canonical form only if they are the same but for the order of dicts."""
    assert (canonical(a) == canonical(b)) == same_items(a, b)


def same_items(a: Any, b: Any) -> bool:
    """Whether two items are the same but for the order of dicts."""
    if type(a) is dict and type(b) is dict:
        return a.keys() == b.keys() and all(same_items(a[key], b[key]) for key in a)
    if type(a) in (list, tuple) and type(a) is type(b):
        return len(a) == len(b) and all(map(same_items, a, b))
    return same(a, b)


DISTINCT: list[Any] = [
    *(1, 1.0, True, "1", None, "null", 0, -0.0, 0.0, False, "", NAN, "nan", math.inf, -math.inf, 2**64, float(2**64)),
    *([], (), {}, [[]], [()], ((),), [1], (1,), [1.0], [True], {"a": 1}, {"a": 1.0}, {"a": True}, {"a": (1,)}),
    *({"$tuple": [1]}, {"$dict": {}}, {"$dict": {"$dict": {}}}, {"$float": "nan"}, {"$": 1}, {"$str": '"\\ud800"'}),
    *("\ud800", "\\ud800", {"\ud800": 1}, {"$map": [["\ud800", 1]]}, {"$map": [[{"$str": '"\\ud800"'}, 1]]}),
    *({"!": 1, "$tuple": [1]}, {"a": 1, "$tuple": [1]}, 10**5000, -(10**5000), [10**5000], "a\nb", "a\u2028b"),
]


def test_no_two_of_these_share_a_form() -> None:
    """What is equal in Python, or looks like an envelope, is told apart."""
    forms = [canonical(item) for item in DISTINCT]
    assert None not in forms
    assert len(set(forms)) == len(forms)


def test_canonical_forms_are_kept() -> None:
    """Keys on disk are made of these: they never change."""
    assert canonical({"b": [1, 2.0, True, None], "a": "é\u2028"}) == '{"a":"é\u2028","b":[1,2.0,true,null]}'.encode()
    assert canonical((1, NAN)) == b'{"$tuple":[1,{"$float":"nan"}]}'
    assert canonical({"z": 1, "$a": 2}) == b'{"$dict":{"$a":2,"z":1}}'
    assert canonical({"\ud800": 1}) == rb'{"$map":[[{"$str":"\"\\ud800\""},1]]}'
    assert canonical([10**30, (10**30,)]) == b'[1%s,{"$tuple":[1%s]}]' % (b"0" * 30, b"0" * 30)


@pytest.mark.parametrize(
    "item",
    [
        *(b"a", bytearray(b"a"), {1}, frozenset(), 1j, date(2024, 1, 1), Decimal(1), Point(1.0), Pair(1), Mode.FAST),
        *(Level.LOW, MyStr("a"), MyInt(1), MyFloat(1), MyList([1]), MyDict(a=1), MyTuple((1,)), {1: 2}, {None: 1}),
        *(np.float64(1.5), np.int64(1), np.str_("a"), np.bool_(True), np.ones(1), uuid.UUID(int=1), OPAQUE, ..., int),
        *(collections.OrderedDict(a=1), collections.Counter("a"), {MyStr("a"): 1}, memoryview(b"a"), range(3)),
        *(Struct(1), Model(name="a"), Attrs(1), Exception(), {True: 1}, {"a": {1.5: 2}}, decimal.Decimal("nan")),
    ],
    ids=lambda item: type(item).__name__,
)
def test_what_is_not_json_like_has_no_form(item: Any) -> None:
    """None, alone and within, and never an exception."""
    assert canonical(item) is None
    assert canonical([item]) is None
    assert canonical({"a": (item,)}) is None


def test_forms_do_not_depend_on_the_stack() -> None:
    """A deep item has its form wherever it is asked for."""
    item = nested(MAX_DEPTH, tuple)
    left = sys.getrecursionlimit() - len(list(iterate_frames())) - 60
    assert canonical(item) == at_depth(left, lambda: canonical(item)) is not None


# --- threads ---


def test_a_class_is_told_once_across_threads() -> None:
    """However many threads meet an unnamed class at once, it is told once."""
    told: list[str] = []
    codec, ready = Codec(on_unnamed=told.append), threading.Barrier(8)

    def work() -> None:
        ready.wait()
        for _ in range(50):
            codec.encode([Point(1.0), Pair(1)])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == ["Pair", "Point"]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ([re.compile(f"[a-{letter}]x{n}") for n in range(9) for letter in "bcdefghijklmnopqrstuvwxyz"], "at most 200"),
        ({n * ((1 << 61) - 1) for n in range(1, 2000)}, "one hash"),
        (Fraction(1, 3**200_000), "at most 200,000 bits"),
    ],
    ids=["patterns", "one hash", "fraction"],
)
def test_what_could_not_be_read_is_not_written(value: Any, told: str) -> None:
    """The limits of what is read hold for what is written, and the error says which."""
    with pytest.raises(UnencodableValue, match=told):
        Codec().encode(value)


def test_each_envelope_has_its_limits() -> None:
    """One that is added has to say what its fields may hold."""
    assert set(FIELDS) == set(REVIVERS)
