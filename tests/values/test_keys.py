"""Laws of keys: what names an item, and what tells two of them apart."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import fractions
import json
import math
import tempfile
import uuid
from collections import namedtuple
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attrs
import msgspec
import numpy as np
import pandas as pd  # type: ignore[import-untyped,unused-ignore]
import pydantic
import pytest
from conftest import shown
from hypothesis import example, given
from hypothesis import strategies as st

from checkpoint import CheckpointedRunner, InvalidKey, InvalidOption
from checkpoint.values.codec import Codec
from checkpoint.values.keys import (
    identity,
    is_digest_of,
    item_digest,
    item_digests,
    key_from_json,
    key_function,
    key_json,
    keys_json,
    plain_key,
    version_digest,
)

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec=None))
    | st.sampled_from([0, 0.0, -0.0, 1, 1.0, True, False, "1", "", 2**63, float(2**63), -(2**63) - 1, math.inf])
)
KEYS = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=6)


# --- equality --------------------------------------------------------------------------------------------------------


@given(KEYS, KEYS)
@example(1, True)
@example(0, -0.0)
@example(2**53 + 1, float(2**53))
@example(10**300, 1e300)
@example(("a", "b"), ("a,b",))
@example((), ((),))
@example("1", 1)
@example("\ud800", "?")
def test_identities_are_equal_as_keys_are_in_a_dict(a: Any, b: Any) -> None:
    """`identity(a) == identity(b)` if and only if `a == b`."""
    assert (identity(a) == identity(b)) is (a == b)


@pytest.mark.slow
@given(st.lists(KEYS, max_size=8))
def test_identities_count_as_a_dict_does(keys: list[Any]) -> None:
    """As many different ones as a dict has keys."""
    assert len({identity(key) for key in keys}) == len(dict.fromkeys(keys))


@given(KEYS)
@example(-0.0)
@example((1, ("x", None), 2.5, True))
@example(2**64)
@example("\udc00\U0001f600 ")
@example("$tuple")
def test_a_key_reads_back_as_it_was_written(key: Any) -> None:
    """Same value, same type at every depth, same sign of zero; as strict JSON on one line."""
    raw = key_json(key)
    assert raw == Codec().encode(key), "and as the same value is spelled in a result"
    back = key_from_json(msgspec.json.decode(raw))
    assert repr(back) == repr(key)
    assert b"\n" not in raw
    json.loads(raw, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@given(st.lists(KEYS, max_size=5))
def test_keys_are_spelled_together_as_each_is(keys: list[Any]) -> None:
    """An index compares them so."""
    assert keys_json(keys) == b"[%b]" % b",".join(map(key_json, keys))


@pytest.mark.slow
@given(st.lists(KEYS, max_size=5))
def test_keys_survive_a_restart(keys: list[Any]) -> None:
    """What is done is done under any equal key, after the files are read anew."""
    with tempfile.TemporaryDirectory() as directory:
        with CheckpointedRunner("k", directory) as runner:
            for key in keys:
                runner.save_result(key, repr(key))
            want = runner.get_all_results()
        with CheckpointedRunner("k", directory) as runner:
            assert runner.get_all_results() == want == {key: repr(key) for key in keys}


# --- what a key may be -----------------------------------------------------------------------------------------------


class Text(str):
    """A str of another class."""


class Colour(enum.StrEnum):
    """Strings with names."""

    RED = "red"


class Level(enum.IntEnum):
    """Ints with names."""

    LOW = 1


class Temperature(float):
    """A float of another class."""


Pair = namedtuple("Pair", "a b")

HELD = [
    (Text("a"), "a", "a subclass of str"),
    (Colour.RED, "red", "a StrEnum"),
    (Level.LOW, 1, "an IntEnum"),
    (Temperature(0.5), 0.5, "a subclass of float"),
    (Pair(1, Text("b")), (1, "b"), "a namedtuple, and what it holds"),
    (np.int64(3), 3, "a numpy int"),
    (np.uint8(3), 3, "a small numpy int"),
    (np.float64(0.5), 0.5, "a numpy float that is a float"),
    (np.float32(0.5), 0.5, "a numpy float that is none"),
    (np.bool_(True), True, "a numpy bool"),
    (np.str_("a"), "a", "a numpy str"),
    ((np.int64(1), (np.str_("b"),)), (1, ("b",)), "numpy scalars inside a tuple"),
]


@pytest.mark.parametrize(("given_key", "want", "reason"), HELD, ids=[reason for *_, reason in HELD])
def test_subclasses_and_numpy_scalars_are_what_they_hold(given_key: Any, want: Any, reason: str) -> None:
    """As exact builtins, at every depth."""
    got = plain_key(given_key)
    assert (got, type(got)) == (want, type(want))
    assert repr(got) == repr(want)


INVALID = [
    (uuid.UUID(int=1), "str({})", "a UUID"),
    (datetime.datetime(2026, 1, 1), "str({})", "a datetime"),
    (datetime.date(2026, 1, 1), "str({})", "a date"),
    (b"a", "hashlib.sha256({}).hexdigest()", "bytes: which text they are is unknown"),
    ([1], "tuple({})", "a list"),
    ([{"a": 1}], "json.dumps({}, sort_keys=True)", "a list of dicts"),
    ({1}, "tuple(sorted({}))", "a set"),
    (frozenset({1}), "tuple(sorted({}))", "a frozenset"),
    (frozenset({None, 1}), "tuple(sorted({}, key=repr))", "a set that has no order"),
    ({"a": 1}, "json.dumps({}, sort_keys=True)", "a dict"),
    (object(), "something that tells the items apart", "an object, whose text is an address"),
    (math.nan, "drop such items", "NaN equals nothing, itself included; its text is one for all"),
    (np.float64("nan"), "drop such items", "a numpy NaN too"),
    ((1, math.nan), "drop such items", "NaN inside a tuple"),
    (pd.NA, "drop such items", "a missing value of pandas"),
    (pd.NaT, "drop such items", "a missing date of pandas"),
    (1j, "something that tells the items apart", "a complex"),
    (decimal.Decimal(1), "str({})", "a Decimal"),
    (Path("a"), "str({})", "a path: all of it, since many directories have a file of one name"),
    ((1, [2]), "something that tells the items apart", "a list inside a tuple"),
    (np.datetime64("2026-01-01"), "str({})", "a numpy date"),
    (np.datetime64("2026-01-01T00:00:00", "ns"), "str({})", "a numpy moment, whose number alone has no unit"),
    (np.timedelta64(3, "M"), "str({})", "three months are not three years"),
    (np.array([1]), "tobytes()", "an array, whose text is cut"),
    (pd.Series([1]), "something that tells the items apart", "a Series, whose text is cut"),
    (10**5000, "hex({})", "an int that Python itself refuses to print"),
    (..., "something that tells the items apart", "an Ellipsis"),
]


@pytest.mark.parametrize(("key", "advice", "reason"), INVALID, ids=[reason for *_, reason in INVALID])
def test_anything_else_is_no_key(key: Any, advice: str, reason: str) -> None:
    """`InvalidKey`, with the key itself, and a conversion to write that two items do not share."""
    with pytest.raises(InvalidKey) as caught:
        plain_key(key)
    assert len(str(caught.value)) < 500
    for option, item, access in (
        (lambda _: key, None, "the key"),
        ("id", {"id": key}, "x['id']"),
        ("id", Thing(key), "x.id"),
    ):
        with pytest.raises(InvalidKey) as caught:
            key_function(option)(item)
        assert advice.format(access) in str(caught.value)


@dataclass
class Thing:
    """An item with an attribute."""

    id: Any


# --- from item to key ------------------------------------------------------------------------------------------------


@given(st.text(max_size=300) | st.integers())
def test_a_short_item_is_its_own_key_and_a_long_one_is_hashed(item: Any) -> None:
    """At most 200 bytes: itself; else `h1:` and 128 bits in hex."""
    key = key_function(None)(item)
    if len(identity(item)) <= 200:
        assert key == item
    else:
        assert key.startswith("h1:")
        assert len(key) == 3 + 32


OWN = [
    ("x" * 199, None, "199 bytes and a tag: its own key"),
    ("x" * 200, "h1:", "longer"),
    ({"a": 1}, "h1:", "a dict has no key of its own"),
    ([1, 2], "h1:", "nor has a list"),
    ((1, "a"), None, "a tuple of keys is a key"),
    ((1, [2]), "h1:", "a tuple with a list inside is JSON-like"),
    (None, None, "None is a key"),
]


@pytest.mark.parametrize(("item", "prefix", "reason"), OWN, ids=[reason for *_, reason in OWN])
def test_an_item_without_a_key_is_named_by_itself_or_by_its_content(item: Any, prefix: str | None, reason: str) -> None:
    """The same on every run."""
    key = key_function(None)(item)
    assert key == item if prefix is None else (key.startswith(prefix) and len(key) == 35)


def test_the_hash_of_an_item_is_the_same_in_every_release() -> None:
    """A changed spelling would compute everything anew."""
    assert key_function(None)({"text": "é", "n": [1, 2.5, None]}) == "h1:bebd86101e5ddce0daa7abab9004b7dc"
    assert item_digest({"text": "é"}) == 0x1FA48472D9036146D7075A5214767709
    assert item_digest({"text": "é"}) >> 64 == 0x1FA48472D9036146  # all of it, in earlier versions


@given(st.lists(st.text(max_size=5)) | st.lists(st.integers() | st.text(max_size=3) | st.floats()))
def test_several_items_have_the_digests_that_each_has_by_itself(items: list[Any]) -> None:
    """They are made together only because that takes half the time."""
    assert list(item_digests(items)) == [item_digest(item) for item in items]


@given(st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=3), min_size=2))
def test_dicts_are_named_by_content_whatever_the_order_of_their_keys(item: dict[str, Any]) -> None:
    """The order in which a dict was built is no content."""
    turned = dict(reversed(item.items()))
    assert key_function(None)(turned) == key_function(None)(item)
    assert item_digest(turned) == item_digest(item) != 0


@pytest.mark.parametrize(
    ("item", "suggestion"),
    [
        (object(), "such as an id"),
        (Thing(1), "key='id'"),
        ({"when": datetime.date(2026, 1, 1)}, "key=lambda x: str(x[…])"),
        (uuid.UUID(int=1), "key=str"),
    ],
    ids=["an object", "a dataclass", "a dict", "a UUID"],
)
def test_an_item_that_is_not_json_like_needs_a_key(item: Any, suggestion: str) -> None:
    """The message says which to write."""
    with pytest.raises(InvalidKey) as caught:
        key_function(None)(item)
    assert suggestion in str(caught.value)


def test_a_nan_item_needs_a_key() -> None:
    """Its text could be hashed, but it equals nothing."""
    with pytest.raises(InvalidKey, match="NaN"):
        key_function(None)(math.nan)


class Record(Mapping[str, int]):
    """A mapping with an attribute of its own."""

    key = "attribute"

    def __getitem__(self, name: str) -> int:
        return {"id": 7}[name]

    def __iter__(self) -> Any:
        return iter(["id"])

    def __len__(self) -> int:
        return 1


def test_a_field_is_looked_up_in_a_mapping_and_then_as_an_attribute() -> None:
    """A mapping's own item wins over an attribute of that name."""
    assert key_function("id")({"id": 1}) == 1
    assert key_function("id")(Record()) == 7
    assert key_function("key")(Record()) == "attribute"
    assert key_function("id")(Thing("x")) == "x"


@pytest.mark.parametrize("item", [{"a": 1}, Thing(1), 5, "text", None], ids=shown)
def test_a_missing_field_is_named_with_the_item(item: Any) -> None:
    """And not filed under one key for all."""
    with pytest.raises(InvalidKey, match="no field 'missing'"):
        key_function("missing")(item)


@pytest.mark.parametrize("key", [5, ["id"], b"id", object()], ids=shown)
def test_a_key_option_of_another_kind_is_refused(key: Any) -> None:
    """A function, a field's name, or None."""
    with pytest.raises(InvalidOption, match="give a function"):
        key_function(key)


# --- digests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "same"),
    [(np.int64(3), 3), (np.float32(0.5), 0.5), (np.str_("a"), "a"), (np.bool_(True), True)],
    ids=["int", "float", "str", "bool"],
)
def test_a_numpy_scalar_has_the_digest_of_what_it_holds(item: Any, same: Any) -> None:
    """Each read of an array makes other objects: they are equal items all the same."""
    assert item_digest(item) == item_digest(same) != 0


class Point(msgspec.Struct):
    """A struct."""

    x: Any
    y: Any = 0


@attrs.define
class Attrs:
    """A class of attrs."""

    x: Any
    _private: Any = 0


class Model(pydantic.BaseModel, extra="allow", arbitrary_types_allowed=True):
    """A model of pydantic."""

    x: Any
    _private: Any = pydantic.PrivateAttr(default_factory=object)


class Box(dict[str, Any]):
    """A dict of another class, with an attribute."""


def boxed(beside: int) -> Box:
    """With something beside it."""
    box = Box(a=1)
    box.beside = beside  # type: ignore[attr-defined]
    return box


def polars() -> Any:
    """The package, or the test is skipped."""
    return pytest.importorskip("polars")


CONTENTS: list[tuple[Callable[[], Any], Callable[[], Any], str]] = [
    (lambda: b"a", lambda: b"b", "bytes"),
    (lambda: bytearray(b"a"), lambda: bytearray(b"b"), "a bytearray"),
    (lambda: datetime.date(2026, 1, 1), lambda: datetime.date(2026, 1, 2), "dates"),
    (lambda: datetime.datetime(2026, 1, 1), lambda: datetime.datetime(2026, 1, 1, 1), "datetimes"),
    (lambda: datetime.time(1), lambda: datetime.time(2), "times"),
    (lambda: datetime.timedelta(1), lambda: datetime.timedelta(2), "spans"),
    (lambda: pd.Timestamp("2026"), lambda: pd.Timestamp("2026-01-01T00:00:00.000000001"), "Timestamps, to the ns"),
    (lambda: pd.Timedelta(1), lambda: pd.Timedelta(2), "Timedeltas, to the ns"),
    (lambda: pd.NA, lambda: 0, "missing values of pandas"),
    (lambda: decimal.Decimal(1), lambda: decimal.Decimal(2), "Decimals"),
    (lambda: fractions.Fraction(1, 3), lambda: fractions.Fraction(2, 3), "fractions"),
    (lambda: uuid.UUID(int=1), lambda: uuid.UUID(int=2), "UUIDs"),
    (lambda: Path("a/x"), lambda: Path("b/x"), "paths"),
    (lambda: (1,), lambda: (2,), "tuples"),
    (lambda: {"b", "a", "c"}, lambda: {"b", "a", "d"}, "sets"),
    (lambda: {1: "a"}, lambda: {1: "b"}, "dicts with other keys than texts"),
    (lambda: {(1, "b"): "a"}, lambda: {(2, "b"): "a"}, "dicts with tuples for keys"),
    (lambda: collections.OrderedDict(a=1), lambda: collections.OrderedDict(a=2), "ordered dicts"),
    (lambda: collections.deque([1]), lambda: collections.deque([2]), "deques"),
    (lambda: boxed(1), lambda: boxed(2), "what stands beside a dict of another class"),
    (lambda: 1j, lambda: 2j, "complex numbers"),
    (lambda: range(3), lambda: range(4), "ranges"),
    (lambda: Level.LOW, lambda: Colour.RED, "members of Enums"),
    (lambda: np.arange(3), lambda: np.arange(3.0), "arrays"),
    (lambda: np.array([[1, 2]]), lambda: np.array([[1], [2]]), "arrays of other shapes"),
    (lambda: np.array(["a", None], object), lambda: np.array(["b", None], object), "arrays of objects"),
    (lambda: np.array([(1, 2.0)], "i4,f8"), lambda: np.array([(1, 3.0)], "i4,f8"), "structured arrays"),
    (lambda: np.datetime64(3, "M"), lambda: np.datetime64(3, "Y"), "moments of numpy, with their unit"),
    (lambda: np.bytes_(b"a"), lambda: np.bytes_(b"b"), "bytes of numpy"),
    (lambda: np.longdouble(1), lambda: np.longdouble(2), "long doubles"),
    (lambda: Thing(b"a"), lambda: Thing(b"b"), "dataclasses"),
    (lambda: Pair(1, {2}), lambda: Pair(1, {3}), "namedtuples"),
    (lambda: Point(1), lambda: Point(2), "structs"),
    (lambda: Attrs(1), lambda: Attrs(2), "classes of attrs"),
    (lambda: Model(x=1), lambda: Model(x=2), "models"),
    (
        lambda: Model.model_validate({"x": 1, "more": 1}),
        lambda: Model.model_validate({"x": 1, "more": 2}),
        "what models have besides",
    ),
    (lambda: pd.Series([1, 2]), lambda: pd.Series([1, 3]), "a Series, as iterrows gives"),
    (lambda: pd.DataFrame({"a": [1]}), lambda: pd.DataFrame({"a": [2]}), "a DataFrame, as groupby gives"),
    (lambda: polars().DataFrame({"a": [1]}), lambda: polars().DataFrame({"a": [2]}), "a DataFrame of polars"),
]


@pytest.mark.parametrize("around", [lambda x: x, lambda x: {"id": 1, "v": x}, lambda x: [x], lambda x: ("t", [x])])
@pytest.mark.parametrize(("one", "other", "reason"), CONTENTS, ids=[reason for *_, reason in CONTENTS])
def test_the_digest_of_an_item_is_that_of_its_content(
    one: Callable[[], Any], other: Callable[[], Any], reason: str, around: Callable[[Any], Any]
) -> None:
    """The same for objects that are made alike, another for another content; as deep as it may stand."""
    assert item_digest(around(one())) == item_digest(around(one())) != 0
    assert item_digest(around(one())) != item_digest(around(other())) != 0


SAME: list[tuple[Any, Any, str]] = [
    ({"C": np.float64(2.0)}, {"C": 2.0}, "a numpy float"),
    ({"n": [np.int64(3)]}, {"n": [3]}, "a numpy int in a list"),
    ((np.str_("a"), np.bool_(True)), ("a", True), "scalars in a tuple"),
    ({np.str_("a"): 1}, {"a": 1}, "a key"),
    ({"x": pd.NA, "y": pd.NaT}, {"x": None, "y": None}, "missing values"),
]


@pytest.mark.parametrize(("item", "same", "reason"), SAME, ids=[reason for *_, reason in SAME])
def test_scalars_inside_items_count_as_what_they_hold(item: Any, same: Any, reason: str) -> None:
    """In digests, and in keys that are made of the content."""
    assert item_digest(item) == item_digest(same) != 0
    assert key_function(None)(item) == key_function(None)(same)


def test_objects_of_two_classes_are_two_contents() -> None:
    """Though their fields are the same; what is private tells nothing."""
    assert item_digest(Point(1, 0)) != item_digest(Pair(1, 0)) != item_digest((1, 0))
    assert item_digest(Attrs(1, 2)) != item_digest(Attrs(1, 3)), "a field of attrs is one, whatever its name"
    assert item_digest(Model(x=1)) == item_digest(Model(x=1)), "each has its own private object"


def test_an_old_digest_of_a_moment_of_numpy_is_no_other_content() -> None:
    """It was that of its number; a number of another unit has another digest since."""
    three, years = np.timedelta64(3, "M"), np.timedelta64(3, "Y")
    assert is_digest_of(item_digest(3), three, item_digest(three))
    assert not is_digest_of(item_digest(three), years, item_digest(years))


@pytest.mark.parametrize("item", [object(), {"client": object()}, Thing(object()), lambda: 1, iter([])], ids=shown)
def test_what_has_no_content_that_is_known_has_no_digest(item: Any) -> None:
    """0: nothing is known of it, and nothing is claimed."""
    assert item_digest(item) == 0


def test_unlike_items_have_unlike_digests() -> None:
    """Where `str` of them differs, results may."""
    items = [1, 1.0, True, "1", None, [1], (1,), {"a": 1}, {"a": 1.0}, -0.0, 0.0, 0, ""]
    assert len({item_digest(item) for item in items}) == len(items)


@pytest.mark.parametrize("version", [object(), {1, 2}, b"x", [object()], datetime.date(2026, 1, 1)], ids=shown)
def test_a_version_is_a_json_value(version: Any) -> None:
    """Anything else is refused, and quoted."""
    with pytest.raises(InvalidOption, match="version is"):
        version_digest(version, "version")


PAIR, CHARACTER = "\ud83d\ude00", "\U0001f600"


@pytest.mark.parametrize("wrap", [lambda text: text, lambda text: (text, 1), lambda text: f"a{text}b{text}"])
def test_a_pair_of_lone_surrogates_is_not_the_character_that_json_makes_of_it(
    tmp_path: Path, wrap: Callable[[str], Any]
) -> None:
    """Two keys, two results, after a restart too; and so it is with values."""
    with CheckpointedRunner("s", tmp_path) as runner:
        for text in (PAIR, CHARACTER):
            runner.save_result(wrap(text), [text, {text: text}])
    again = CheckpointedRunner("s", tmp_path)
    assert again.get_all_results() == {wrap(text): [text, {text: text}] for text in (PAIR, CHARACTER)}
    assert again.get_result(wrap(PAIR)) != again.get_result(wrap(CHARACTER))
    assert again.progress()[0] == 2
