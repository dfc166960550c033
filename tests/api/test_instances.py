"""The law of instances: no method of one returns the results of another, wherever the class keeps its data."""

from __future__ import annotations

import array
import collections
import datetime
import enum
import typing
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

import attrs
import pydantic
import pytest

from checkpoint import VersionNeeded, checkpointed


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


class Opaque:
    """What nobody can compare."""

    def __init__(self, text: str) -> None:
        self.text = text


class Named(typing.NamedTuple):
    model: Any

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(getattr(self.model, "text", self.model))


class Pair(collections.namedtuple("Pair", "model other")):  # as users write it
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self.model)


class Entries(dict[str, Any]):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self.get("model"))


class Ordered(collections.OrderedDict[str, Any]):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return model_of(self)


class Parts(list[Any]):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self[0])


class Text(str):
    __slots__ = ()

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self.upper()


class Number(int):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self + n)


class Amount(Decimal):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self.quantize(Decimal(1)))


class Day(datetime.date):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self.isoformat()


class Place(PurePosixPath):
    __slots__ = ()

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self.name


class Members(set[str]):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return sorted(self)[0]


class Row(array.array):  # type: ignore[type-arg]
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self[0])


class Wrapped(collections.UserDict[str, Any]):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(getattr(self["model"], "text", self["model"]))


class Helped(dict[str, Any]):
    def helper(self) -> str:
        return model_of(self)

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self.helper()


class Slotted:
    __slots__ = ("__model",)

    def __init__(self, model: str) -> None:
        self.__model = model

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self.__model


@attrs.define
class Defined:
    model: str

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self.model


class Fault(Exception):
    @checkpointed("j")
    def ask(self, n: int) -> str:
        return str(self.args[0])


class Private(pydantic.BaseModel):
    model_config = {"extra": "allow", "ignored_types": (type(checkpointed("j")(len)),)}
    _model: str = pydantic.PrivateAttr(default="")

    @checkpointed("j")
    def ask(self, n: int) -> str:
        return self._model


def private(model: str) -> Private:
    """One that holds it where no field is."""
    made = Private()
    made._model = model
    return made


def model_of(entries: typing.Mapping[str, Any]) -> str:
    """What another function reads of an instance that is handed on."""
    return str(entries["model"])


KINDS: list[tuple[Callable[[str], Any], bool, str]] = [
    (Named, True, "fields of a named tuple"),
    (lambda text: Pair(text, 1), True, "of a subclass of one"),
    (lambda text: Entries(model=text), True, "entries, by a method of dict"),
    (lambda text: Ordered(model=text), True, "entries that another function reads"),
    (lambda text: Parts([text]), True, "parts of a list"),
    (Text, True, "characters"),
    (lambda text: Number(ord(text)), True, "a number"),
    (lambda text: Amount(ord(text)), True, "a decimal number"),
    (lambda text: Day(1900 + ord(text), 1, 1), True, "a date"),
    (Place, True, "a path, whatever it remembers of its text"),
    (lambda text: Members({text, "z"}), True, "members of a set, in any order"),
    (lambda text: Row("i", [ord(text)]), False, "what a class of C holds"),
    (lambda text: Wrapped(model=text), True, "a dict in an attribute"),
    (lambda text: Helped(model=text), True, "entries that a method hands on"),
    (Slotted, True, "slots of mangled names"),
    (Defined, True, "slots of attrs"),
    (Fault, True, "arguments of an exception"),
    (private, True, "private attributes of pydantic"),
    (lambda text: Named(Opaque(text)), False, "fields that nobody can compare"),
    (lambda text: Wrapped(model=Opaque(text)), False, "entries that nobody can compare"),
]


@pytest.mark.parametrize(("make", "is_comparable", "reason"), KINDS, ids=[row[-1] for row in KINDS])
def test_each_instance_has_its_own_results(
    make: Callable[[str], Any], is_comparable: bool, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An equal one has the same; or the user is asked for a version, with one to write."""
    if not is_comparable:
        with pytest.raises(VersionNeeded, match=r"version=lambda self: self\.\w+"):
            make("a").ask.map([1], progress=False)
        return
    wanted = [[make(text).ask(1)] for text in "ab"]
    assert wanted[0] != wanted[1]
    for _ in range(2):
        assert [list(make(text).ask.map([1], progress=False)) for text in "ab"] == wanted
    assert [make(text).ask.plan([1]).done for text in "abc"] == [1, 1, 0]
    assert caplog.text == ""


def test_what_an_enum_and_an_attribute_hold_counts_as_before() -> None:
    """Members of an Enum that are texts too, and a subclass of dict of which only an attribute is read."""

    class Model(enum.StrEnum):
        SMALL = "small"
        LARGE = "large"

        @checkpointed("k")
        def ask(self, n: int) -> str:
            return str(self.value)

    class Cache(dict[int, Any]):
        def __init__(self, model: str) -> None:
            self.model = model

        @checkpointed("l")
        def ask(self, n: int) -> str:
            return self.model

    assert [model.ask.map([1], progress=False) for model in Model] == [["small"], ["large"]]
    cache = Cache("a")
    assert cache.ask.map([1], progress=False) == ["a"]
    cache[5] = object()
    assert cache.ask.plan([1]).done == 1


def test_results_from_before_an_instance_had_a_version_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """They may be of any instance, so that they are computed anew; that is said, with how to take them."""

    class Choices(dict[str, Any]):
        @checkpointed("j")
        def ask(self, n: int) -> str:
            return str(self.get("model"))

    checkpointed("j")(lambda n: "a").map(range(3), progress=False)
    ask = Choices(model="a").ask
    assert "3 results of no version are left aside" in str(ask.plan(range(3)))
    caplog.clear()
    ask.map(range(3), progress=False)
    assert "3 results of no version are left aside" in caplog.text
    assert "ask.accept(version=None)" in caplog.text
    caplog.clear()
    Choices(model="b").ask.map(range(3), progress=False)
    assert "left aside" not in caplog.text
