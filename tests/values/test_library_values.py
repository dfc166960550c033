"""Values of libraries come back as they were: pydantic's own types, zones, SDK answers, and subclasses of builtins."""

from __future__ import annotations

import collections
import dataclasses
import enum
import importlib
import ipaddress
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as time_of_day
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, networks
from typing_extensions import TypedDict

from checkpoint import checkpointed
from checkpoint.errors import UnbuildableValue, UnencodableValue
from checkpoint.values.codec import Codec

T = TypeVar("T")


class Color(enum.StrEnum):
    RED = "red"


class Pair(NamedTuple):
    a: int
    b: str = "x"


class Movie(TypedDict):
    title: str


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Strange(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    name: str = Field(validation_alias="n", serialization_alias="N")
    _seen: list[int] = pydantic.PrivateAttr(default_factory=list)

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def size(self) -> int:
        return len(self.name)


@pydantic.dataclasses.dataclass
class Slot:
    at: time_of_day


URLS = {
    "AnyUrl": "foo://x?a=1", "AnyHttpUrl": "http://a.b/c?d#e", "HttpUrl": "https://münchen.de", "FileUrl": "file:///a",
    "FtpUrl": "ftp://a.b/c", "WebsocketUrl": "ws://a.b", "AnyWebsocketUrl": "wss://a.b/c", "RedisDsn": "redis://h/1",
    "PostgresDsn": "postgres://u:p@h1:1,h2/db", "CockroachDsn": "cockroachdb://u@h/d", "AmqpDsn": "amqp://u:p@h/v",
    "MongoDsn": "mongodb://h1,h2/d", "KafkaDsn": "kafka://h:1", "NatsDsn": "nats://h:1", "MySQLDsn": "mysql://u@h/d",
    "MariaDBDsn": "mariadb://u@h/d", "ClickHouseDsn": "clickhouse+http://h", "SnowflakeDsn": "snowflake://u:p@a/d",
}  # fmt: skip
FIELDS: list[tuple[str, Any, Any]] = [
    *((name, getattr(networks, name), text) for name, text in URLS.items()),
    ("IPv4Address", ipaddress.IPv4Address, "1.1.1.1"),
    ("IPv6Address", ipaddress.IPv6Address, "fe80::1%eth0"),
    ("IPv4Network", ipaddress.IPv4Network, "1.1.0.0/16"),
    ("IPv6Network", ipaddress.IPv6Network, "::/8"),
    ("IPv4Interface", ipaddress.IPv4Interface, "1.1.1.1/16"),
    ("IPv6Interface", ipaddress.IPv6Interface, "::1/8"),
    ("IPvAnyAddress", pydantic.IPvAnyAddress, "::1"),
    ("IPvAnyNetwork", pydantic.IPvAnyNetwork, "1.1.1.0/24"),
    ("IPvAnyInterface", pydantic.IPvAnyInterface, "::1/64"),
    ("datetime, UTC", datetime, "2026-03-01T12:00:00Z"),
    ("datetime, an offset", datetime, "2026-03-01T12:00:00.000001+05:30"),
    ("AwareDatetime", pydantic.AwareDatetime, "2026-03-01T12:00:00-08:00"),
    ("NaiveDatetime", pydantic.NaiveDatetime, "2026-03-01T12:00:00"),
    ("PastDatetime", pydantic.PastDatetime, "2020-03-01T12:00:00Z"),
    ("FutureDate", pydantic.FutureDate, "2999-01-01"),
    ("date", date, "2020-01-01"),
    ("time", time_of_day, "12:00:00Z"),
    ("timedelta", timedelta, "P1DT3S"),
    ("ZoneInfo", ZoneInfo, "Europe/Paris"),
    ("bool", bool, True),
    ("int", int, 3),
    ("float", float, 0.5),
    ("FiniteFloat", pydantic.FiniteFloat, 0.5),
    ("complex", complex, 1 + 2j),
    ("Decimal", Decimal, "1.50"),
    ("Fraction", Fraction, "1/3"),
    ("conint", pydantic.conint(gt=0), 1),
    ("StrictStr", pydantic.StrictStr, "a"),
    ("constr", pydantic.constr(min_length=1), "a"),
    ("bytes", bytes, b"\xff"),
    ("bytearray", bytearray, bytearray(b"a")),
    ("ByteSize", pydantic.ByteSize, "1kb"),
    ("Base64Bytes", pydantic.Base64Bytes, b"YQ=="),
    ("Base64Str", pydantic.Base64Str, "YQ=="),
    ("UUID", uuid.UUID, str(uuid.UUID(int=5))),
    ("UUID4", pydantic.UUID4, "6b3b1bb4-6a51-4ec0-ae0e-8c2b1c5d6f01"),
    ("Json", pydantic.Json, '{"a": [1]}'),
    ("Json of a type", pydantic.Json[list[int]], "[1]"),
    ("JsonValue", pydantic.JsonValue, {"a": [None]}),
    ("Path", Path, "/a/b"),
    ("NewPath", pydantic.NewPath, "nowhere/near"[:7]),
    ("DirectoryPath", pydantic.DirectoryPath, "."),
    ("Pattern", re.Pattern, "a+b"),
    ("Pattern of bytes", re.Pattern[bytes], b"a+b"),
    ("list", list[int], [1]),
    ("conlist", pydantic.conlist(int, min_length=1), [1]),
    ("tuple", tuple[int, ...], (1,)),
    ("set", set[int], {1}),
    ("frozenset", frozenset[str], {"a"}),
    ("deque", collections.deque[int], [1]),
    ("deque with a bound", Annotated[collections.deque[int], Field(max_length=3)], [1]),
    ("dict", dict[int, str], {1: "a"}),
    ("OrderedDict", collections.OrderedDict[str, int], {"a": 1}),
    ("defaultdict", collections.defaultdict[str, list[int]], {"a": [1]}),
    ("Counter", collections.Counter[str], {"a": 1}),
    ("Sequence", Sequence[int], (1,)),
    ("Mapping", Mapping[str, int], {"a": 1}),
    ("NamedTuple", Pair, (1, "b")),
    ("TypedDict", Movie, {"title": "a"}),
    ("StrEnum", Color, "red"),
    ("Literal", Literal["a", 1], 1),
    ("Union", int | str, "a"),
    ("discriminated", Annotated[Cat | Dog, Field(discriminator="kind")], {"kind": "dog"}),
    ("generic", Page[Cat], {"items": [{"kind": "cat"}]}),
    ("RootModel", pydantic.RootModel[list[int]], [1]),
    ("aliases, extra, private, frozen, computed", Strange, {"n": "a", "b": (1,)}),
    ("pydantic's dataclass", Slot, {"at": "12:00:00Z"}),
    ("InstanceOf", pydantic.InstanceOf[Cat], Cat(kind="cat")),
    ("SkipValidation", pydantic.SkipValidation[int], "no int"),
    ("ImportString of data", pydantic.ImportString, "math.pi"),
    ("None", None, None),
]


def holder(kind: Any) -> Any:
    """A model with one field of the type."""
    config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    return pydantic.create_model("Holder", __config__=config, v=(kind, ...))


@pytest.mark.parametrize(("name", "kind", "given"), FIELDS, ids=[name for name, *_ in FIELDS])
def test_what_a_model_holds_comes_back_equal(name: str, kind: Any, given: Any) -> None:
    """Of pydantic's list of types: the same model, with a value of the same type, alone and in a list."""
    cls = holder(kind)
    value, told = cls(v=given), list[str]()
    codec = Codec(cls, on_unnamed=told.append)
    raw = codec.encode([value])
    json.loads(raw)
    (back,) = Codec(cls).decode(raw)
    assert back == value
    assert (type(back), type(back.v)) == (cls, type(value.v))
    assert repr(back) == repr(value)
    assert not told
    assert not codec.secret


NOT_HELD: list[tuple[str, Any, Any, str]] = [
    ("Iterable", Iterable[int], [1], "a generator is read once: when the result is saved"),
    ("Callable", Callable[[int], int], len, "code is no data: when the result is saved"),
    ("type", type[int], bool, "a class is no data: when the result is saved"),
    ("ImportString of code", pydantic.ImportString, "collections.OrderedDict", "so is what it leads to"),
    ("Any", Any, object(), "an object of a class without fields: when the result is saved"),
    ("SecretStr", pydantic.SecretStr, "a", "before anything is called: see test_unfit"),
    ("SecretBytes", pydantic.SecretBytes, b"a", "before anything is called: see test_unfit"),
    ("Secret", pydantic.Secret[int], 1, "before anything is called: see test_unfit"),
]


@pytest.mark.parametrize(("name", "kind", "given", "when"), NOT_HELD, ids=[name for name, *_ in NOT_HELD])
def test_what_a_model_holds_that_is_refused(name: str, kind: Any, given: Any, when: str) -> None:
    """The rest of that list: refused by its path, and secrets from the annotation."""
    cls = holder(kind)
    codec = Codec(cls)
    with pytest.raises(UnencodableValue, match=r"result\.v"):
        codec.encode(cls(v=given))
    assert bool(codec.secret) == ("before" in when)


# --- time zones ---


def zones() -> list[Any]:
    """One of each kind that is installed."""
    made: list[Any] = [UTC, timezone(timedelta(hours=1)), timezone(timedelta(hours=1), "X"), ZoneInfo("Asia/Tokyo")]
    try:
        from pydantic_core import TzInfo

        made += [TzInfo(0), TzInfo(-19800)]
    except ImportError:
        pass
    try:
        from dateutil import tz  # type: ignore[import-untyped]

        made += [tz.tzutc(), tz.tzoffset("A", 3600), tz.tzoffset(None, -1800), tz.tzlocal(), tz.gettz("Europe/Paris")]
    except ImportError:
        pass
    try:
        import pytz  # type: ignore[import-untyped]

        made += [pytz.utc, pytz.FixedOffset(90), pytz.timezone("Etc/GMT+3")]
    except ImportError:
        pass
    return made


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2030, 1, 1)), st.sampled_from(zones()))
def test_aware_moments_come_back_the_same(moment: datetime, zone: Any) -> None:
    """A datetime, its time of day and the zone itself: the same type of zone, equal, and the same offset."""
    value = moment.replace(tzinfo=zone)
    codec = Codec()
    for one in (value, value.replace(fold=1), value.timetz()):
        back = codec.decode(codec.encode([one]))[0]
        assert back == one
        assert type(back.tzinfo) is type(zone)
        assert back.tzinfo == zone
        assert (back.utcoffset(), back.tzname(), back.fold) == (one.utcoffset(), one.tzname(), one.fold)
    assert codec.decode(codec.encode({"zone": zone})) == {"zone": zone}


def test_moments_of_pytz_keep_their_variant() -> None:
    """A zone of pytz is one of several objects, for summer and winter."""
    pytz = pytest.importorskip("pytz")
    for month in (1, 7):
        value = pytz.timezone("Europe/Paris").localize(datetime(2026, month, 1))
        back = Codec().decode(Codec().encode([value]))[0]
        assert back == value
        assert back.tzinfo is value.tzinfo


def test_a_local_zone_is_another_one_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What dateutil's local zone said where it was saved stays true where the local zone is another."""
    tz = pytest.importorskip("dateutil.tz")
    value = datetime(2026, 7, 1, tzinfo=tz.tzlocal())
    raw = Codec().encode([value])
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert Codec().decode(raw)[0].utcoffset() == value.utcoffset() != timedelta(hours=9)
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    "zone", ['"zone":"No/Where"', '"tz":["zoneinfo","No/Where"]', '"tz":["dateutil.named","No/W"]']
)
def test_an_unknown_zone_is_named(zone: str) -> None:
    """A machine without the zone says which it lacks, and what to install."""
    with pytest.raises(ValueError, match=r"time zone 'No/W.*tzdata"):
        Codec().decode(b'{"$datetime":"2024-01-01T00:00:00",%b}' % zone.encode())


MALFORMED = [
    b'{"$tz":[]}', b'{"$tz":["os"]}', b'{"$tz":["pydantic","x"]}', b'{"$tz":["pydantic",999999]}', b'{"$tz":"UTC"}',
    b'{"$tz":["zoneinfo","../../etc/passwd"]}', b'{"$tz":["dateutil.named","/etc/localtime"]}',
    b'{"$tz":["dateutil.named","../x"]}', b'{"$tz":["dateutil.named",""]}', b'{"$tz":["timezone","1"]}',
    b'{"$structseq":"os.system","items":[],"fields":{}}', b'{"$structseq":"os.stat_result","items":[1],"fields":{}}',
    b'{"$structseq":"time.struct_time","items":[[],1,1,1,1,1,1,1,1],"fields":{}}',
    b'{"$ip":"1.1.1.1","type":"ip_address"}', b'{"$ip":1,"type":"IPv4Address"}', b'{"$ip":"x","type":"IPv4Address"}',
    b'{"$url":"https://a.b","type":"_BaseUrl"}', b'{"$url":"https://a.b","type":"NameEmail"}', b'{"$url":"https://a.b"}',
    b'{"$url":"no url","type":"Url"}', b'{"$url":3,"type":"Url"}', b'{"$nameemail":["a"]}', b'{"$nameemail":[1,2]}',
    b'{"$pattern":"(","flags":32}', b'{"$pattern":"a","flags":128}', b'{"$pattern":"a","flags":"x"}',
    b'{"$pattern":"%b","flags":32}' % (b"a" * 10_001), b'{"$pattern":[1],"flags":32}',
    b'{"$pandas":"DataFrame","value":1,"unit":"ns"}', b'{"$pandas":"Timestamp","value":"x","unit":"ns"}',
    b'{"$pandas":"Timestamp","value":1,"unit":"Y"}', b'{"$class":"Hits","$content":{"$tuple":[1]}}',
]  # fmt: skip


@pytest.mark.promise("untrusted checkpoints")
@pytest.mark.parametrize("raw", MALFORMED, ids=[str(raw[:50]) for raw in MALFORMED])
def test_malformed_envelopes_are_refused(raw: bytes) -> None:
    """Nothing but a value of a known kind is built, and no name in a file is looked up beyond a closed list."""
    with pytest.raises((ValueError, UnbuildableValue)):
        Codec(Hits).decode(raw)


# --- other values ---

VALUES: list[tuple[Any, str]] = [
    (os.stat("/"), "nanoseconds and named fields of os.stat"),
    (time.gmtime(0), "a time zone beside nine items"),
    (time.localtime(10**9), "and of local time"),
    (os.terminal_size((80, 24)), "named items"),
    (re.compile(r"a(?P<n>\d)", re.I | re.M), "flags of a pattern"),
    (networks.NameEmail("a", "a@b.c"), "a name beside an address"),
    (ipaddress.ip_network("10.0.0.0/8"), "a network without a model"),
]


@pytest.mark.parametrize(("value", "reason"), VALUES, ids=[reason for _, reason in VALUES])
def test_values_without_a_class_come_back_the_same(value: Any, reason: str) -> None:
    """With what stands beside their items."""
    back = Codec().decode(Codec().encode({"deep": [value]}))["deep"][0]
    assert type(back) is type(value)
    assert back == value
    for name in dir(value):
        if name.startswith(("st_", "tm_")):
            assert getattr(back, name) == getattr(value, name)


def test_moments_of_pandas_come_back_the_same() -> None:
    """Nanoseconds, unit and zone."""
    pandas = pytest.importorskip("pandas")
    stamp = pandas.Timestamp("2024-10-27T02:30:00.123456789")
    values = [
        stamp, stamp.as_unit("s"), stamp.tz_localize("UTC"), stamp.tz_localize("Europe/Paris", ambiguous=False),
        stamp.tz_localize("Europe/Paris", ambiguous=True), pandas.Timedelta("3 days 1ns"), pandas.NaT,
    ]  # fmt: skip
    back = Codec().decode(Codec().encode(values))
    assert [repr(one) for one in back] == [repr(one) for one in values]
    assert [(type(one), getattr(one, "unit", "")) for one in back] == [
        (type(o), getattr(o, "unit", "")) for o in values
    ]
    assert back[:-1] == values[:-1]


# --- subclasses of builtins ---


class Hits(list):  # type: ignore[type-arg]
    total: int = 0

    def __init__(self, *parts: Any) -> None:
        raise AssertionError("was run")


class Text(str):
    pass


class Number(float):
    __slots__ = ("unit",)


class Recent(collections.deque):  # type: ignore[type-arg]
    pass


class Ordered(collections.OrderedDict):  # type: ignore[type-arg]
    def __setitem__(self, key: Any, value: Any) -> None:
        raise AssertionError("was run")


class Shape(tuple):  # type: ignore[type-arg]
    pass


@dataclasses.dataclass
class Rich(dict):  # type: ignore[type-arg]
    a: int = 0


def made(cls: Any, content: Any, **attributes: Any) -> Any:
    """An object of the class, past its own methods."""
    base = next(base for base in cls.__mro__ if base.__module__ in ("builtins", "collections"))
    value = base.__new__(cls, content) if base in (str, float, tuple) else base.__new__(cls)
    if base is collections.deque:
        base.__init__(value, content, 5)
    elif base in (list, dict):
        base.__init__(value, content)
    for name, part in attributes.items():
        object.__setattr__(value, name, part)
    return value


BESIDE: list[tuple[Any, str]] = [
    (made(Hits, [1, (2,)], total=1000), "total"),
    (made(Text, "a", source=["b"]), "source"),
    (made(Number, 0.5, unit="m"), "unit"),
    (made(Recent, [1, 2], note=1), "note"),
    (made(Shape, (1, 2), area=3.5), "area"),
    (made(Rich, {"x": 1}, a=3), "a"),
    (made(Ordered, (), note=(1,)), "note"),
]


@pytest.mark.parametrize(("value", "name"), BESIDE, ids=[type(value).__name__ for value, _ in BESIDE])
def test_what_stands_beside_comes_back_or_is_refused(value: Any, name: str) -> None:
    """With its class named all comes back, and its own methods do not run; unnamed it is refused, naming the loss."""
    cls = type(value)
    back = Codec(cls).decode(Codec(cls).encode([value]))[0]
    assert type(back) is cls
    assert back == value
    assert vars(back) == vars(value) if hasattr(value, "__dict__") else True
    assert getattr(back, name) == getattr(value, name)
    assert getattr(back, "maxlen", 0) == getattr(value, "maxlen", 0)
    with pytest.raises(UnencodableValue, match=rf"without its {name}; name its class"):
        Codec().encode({"a": value})


def test_nothing_is_lost_where_nothing_stands_beside() -> None:
    """Private attributes and empty ones go with the class, which is told; a reader without names keeps the rest."""
    told: list[str] = []
    value = made(Hits, [1], _cache={"a": 1}, note=None, errors=[])
    codec = Codec(on_unnamed=told.append)
    assert codec.decode(codec.encode(value)) == [1]
    assert told == ["Hits"]
    raw = Codec(Hits).encode(made(Hits, [1], total=7))
    assert Codec().decode(raw) == {"content": [1], "total": 7}
    assert Codec().decode(Codec(Hits).encode(made(Hits, [1]))) == [1]


def test_results_of_scipy_come_back_whole() -> None:
    """The attribute that linregress puts beside its five items."""
    stats = pytest.importorskip("scipy.stats")
    value = stats.linregress([1, 2, 3, 4], [2, 3, 5, 6])
    back = Codec(type(value)).decode(Codec(type(value)).encode(value))
    assert (back, back.intercept_stderr) == (value, value.intercept_stderr)
    with pytest.raises(UnencodableValue, match="intercept_stderr"):
        Codec().encode(value)


@pytest.mark.parametrize(
    "value",
    [
        np.ma.masked_array([1], [True]),
        np.array([(1,)], [("a", "i4")]).view(np.recarray),
        np.ones((1, 1)).view(np.matrix),
    ],
    ids=["masked", "recarray", "matrix"],
)
def test_more_than_an_array_is_refused_with_the_fix(value: Any) -> None:
    """A mask or named access would be lost."""
    with pytest.raises(UnencodableValue, match=r"return (numpy\.array\(value\)|value\.filled)"):
        Codec().encode([value])


# --- classes that libraries make ---


class Invoice(pydantic.BaseModel):
    title: str
    amount: int


def derived(name: str = "Invoice", **fields: Any) -> Any:
    """A class that a library makes at run time of the user's."""
    return pydantic.create_model(name, __base__=Invoice, **fields)


def beside(value: Any, **attributes: Any) -> Any:
    """The object, with attributes that a library puts there."""
    value.__dict__.update(attributes)
    return value


def test_a_class_made_of_the_annotated_one_comes_back_as_that(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On the fresh and on the resumed run, with one message that says what it comes back without."""
    cls = derived()

    def extract(item: int) -> Invoice:
        one: Invoice = beside(cls(title="T", amount=item), _raw_response=object())
        return one

    caplog.set_level(logging.WARNING, "checkpoint")
    for _ in range(2):
        f = checkpointed("invoices", checkpoint_dir=tmp_path)(extract)
        assert f.map(range(12), progress=False) == [Invoice(title="T", amount=item) for item in range(12)]
    assert [record.message for record in caplog.records if "without _raw_response" in record.message]
    assert len(caplog.records) == 1


class Other(Invoice):
    pass


def test_what_is_no_stand_in_is_not_taken_for_one() -> None:
    """A subclass of the user's own, and one with other fields, are classes that nothing names."""

    class Local(Invoice):
        pass

    for cls in (Other, Local, derived(more=(int, 1))):
        told: list[str] = []
        codec = Codec(Invoice, on_unnamed=told.append)
        assert type(codec.decode(codec.encode(cls(title="T", amount=1)))) is dict
        assert len(told) == 1
    assert Codec(Other).decode(Codec(Other).encode(Other(title="a", amount=1))) == Other(title="a", amount=1)


def test_generics_with_open_parameters_come_back_as_the_annotation_has_them() -> None:
    """openai's parse helpers return ParsedChatCompletion[~T], whatever was asked for."""
    value = Page[T].model_construct(items=[Cat(kind="cat")])  # type: ignore[valid-type]
    back = Codec(Page[Cat]).decode(Codec(Page[Cat]).encode(value))
    assert type(back) is Page[Cat]
    assert back == value
    bare: Any = Page | Cat
    assert type(Codec(bare).decode(Codec(bare).encode(Page[Cat](items=[])))) is Page


def transport_library() -> Any:
    """httpx, or the successor that newer SDKs are made with."""
    try:
        return importlib.import_module("httpx2")
    except ImportError:
        return pytest.importorskip("httpx")


def server(request: Any) -> Any:
    """What a server answers."""
    httpx = transport_library()
    tools = json.loads(request.content).get("tools")
    text = '{"title": "T", "amount": 3}'
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if tools:
        call = {"id": "c", "type": "function", "function": {"name": tools[0]["function"]["name"], "arguments": text}}
        message = {"role": "assistant", "content": None, "tool_calls": [call]}
    usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "new_of_the_vendor": {"a": 1}}
    choices = [{"index": 0, "finish_reason": "tool_calls" if tools else "stop", "message": message}]
    answer = {"id": "x", "object": "chat.completion", "created": 1, "model": "m", "usage": usage, "choices": choices}
    return httpx.Response(200, json=answer, headers={"x-request-id": "r1"})


@pytest.fixture
def openai_client() -> Any:
    """A client of openai's SDK whose transport is `server`."""
    openai, httpx = pytest.importorskip("openai"), transport_library()
    transport = httpx.Client(transport=httpx.MockTransport(server))
    return openai.OpenAI(api_key="x", base_url="http://x/v1", http_client=transport)


ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


@pytest.mark.slow
def test_answers_of_openai_come_back_as_they_were(openai_client: Any) -> None:
    """ChatCompletion and the parsed one, with their request id and with what the vendor added."""
    from openai.types.chat import ChatCompletion, ParsedChatCompletion

    answers: list[tuple[Any, Any]] = [
        (openai_client.chat.completions.create(**ASKED), ChatCompletion),
        (openai_client.chat.completions.parse(response_format=Invoice, **ASKED), ParsedChatCompletion[Invoice]),
    ]
    for value, named in answers:
        told: list[str] = []
        codec = Codec(named, on_unnamed=told.append, on_left_out=told.append)
        back: Any = codec.decode(codec.encode(value))
        assert isinstance(back, named)
        assert back == value
        assert back._request_id == "r1"
        assert back.usage.new_of_the_vendor == {"a": 1}
        assert not told
    assert back.choices[0].message.parsed == Invoice(title="T", amount=3)


def test_answers_of_instructor_come_back_as_the_users_class(openai_client: Any) -> None:
    """One model, several, and one beside the whole answer."""
    instructor = pytest.importorskip("instructor")
    from openai.types.chat import ChatCompletion

    client, told = instructor.from_openai(openai_client), list[str]()
    value = client.chat.completions.create(response_model=Invoice, **ASKED)
    codec = Codec(Invoice, on_unnamed=told.append, on_left_out=told.append)
    assert codec.decode(codec.encode(value)) == Invoice(title="T", amount=3)
    assert len(told) == 1
    both = client.chat.completions.create_with_completion(response_model=Invoice, **ASKED)
    codec = Codec(tuple[Invoice, ChatCompletion])
    assert codec.decode(codec.encode(both))[0] == Invoice(title="T", amount=3)


def test_answers_of_litellm_come_back_as_they_were() -> None:
    """With the usage, which is no field of the response, and with its private parameters."""
    litellm = pytest.importorskip("litellm")
    value = litellm.completion(model="gpt-4o", messages=ASKED["messages"], mock_response="hi", api_key="x")
    told: list[str] = []
    codec = Codec(litellm.ModelResponse, on_unnamed=told.append, on_left_out=told.append)
    raw = codec.encode(value)
    back = Codec(litellm.ModelResponse).decode(raw)
    assert back == value
    assert type(back.usage) is type(value.usage)
    assert back._hidden_params == value._hidden_params
    assert not told
