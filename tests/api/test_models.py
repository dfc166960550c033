"""A loop over models: whatever a function is told its model by, no map returns the results of another one's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from checkpoint import FunctionChanged, VersionNeeded, checkpointed


class Model(Enum):
    SMALL = "small"
    LARGE = "large"


class Named(NamedTuple):
    model: Any


@dataclass(frozen=True)
class Config:
    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Answer:
    text: str = ""
    model: str = ""


class Client:
    """Asks a model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, text: str) -> str:
        return f"{self.model}: {text}"

    def noting(self, text: str) -> str:
        answer = Answer()
        answer.model = self.model
        return f"{answer.model}: {text}"


class Slotted:
    __slots__ = ("model",)

    def __init__(self, model: str) -> None:
        self.model = model

    def ask(self, text: str) -> str:
        return f"{self.model}: {text}"


class Small:
    model = "small"

    def ask(self, text: str) -> str:
        return f"{self.model}: {text}"


class Large(Small):
    model = "large"


class Passing:
    """What it is made of is read by others, to which it gives itself."""

    def __init__(self, model: Any) -> None:
        self.held = model

    def by_helper(self, text: str) -> str:
        return f"{read_held(self)}: {text}"


def read_held(of: Any) -> Any:
    """Of any object."""
    return of.held


def ask(config: Any, text: str) -> str:
    """With the model first, to be bound."""
    return f"{config.model}: {text}"


def closure(model: Any) -> Callable[[str], str]:
    """A function that reads it."""
    return lambda text: f"{model}: {text}"


def default(model: Any) -> Callable[[str], str]:
    """The same, as a default."""

    def f(text: str, *, chosen: Any = model) -> str:
        return f"{chosen}: {text}"

    return f


def noting(config: Any) -> Callable[[str], str]:
    """It writes an attribute of that name, of another object."""

    def f(text: str) -> str:
        answer = Answer()
        answer.model = config.model
        return f"{answer.model}: {text}"

    return f


LOOPS = [
    (closure, "small", "large", "a text"),
    (closure, Model.SMALL, Model.LARGE, "an Enum"),
    (closure, "small", Model.LARGE, "a value of another kind"),
    (closure, Named("small"), Named("large"), "a NamedTuple"),
    (closure, Path("small"), Path("large"), "a path"),
    (closure, Decimal("0.1"), Decimal("0.2"), "a Decimal"),
    (closure, b"small", b"large", "bytes"),
    (closure, frozenset({"a", "b"}), frozenset({"a", "c"}), "a frozenset"),
    (closure, re.compile("a"), re.compile("b"), "a compiled pattern"),
    (closure, {"model": Model.SMALL}, {"model": Model.LARGE}, "a dict of an Enum"),
    (closure, [Named(Model.SMALL)], [Named(Model.LARGE)], "deep within"),
    (default, Model.SMALL, Model.LARGE, "a default"),
    (partial(partial, ask), Config("small"), Config("large"), "an object that is bound by partial"),
    (partial(partial, ask), Client("small"), Client("large"), "a client that is bound by partial"),
    (partial(partial, ask), SimpleNamespace(model="small"), SimpleNamespace(model="large"), "a namespace"),
    (noting, Config("small"), Config("large"), "an attribute that is also written, of what the function makes"),
    (lambda client: lambda text: client.noting(text), Client("small"), Client("large"), "the same in a method"),
    (lambda client: lambda text: client.ask(text), Client(Model.SMALL), Client(Model.LARGE), "an Enum of a client"),
    (lambda client: lambda text: client.ask(text), Slotted("small"), Slotted("large"), "slots"),
    (lambda one: lambda text: one.ask(text), Small(), Large(), "an attribute of the object's class"),
    (lambda cls: cls().ask, Small, Large, "of the class of a bound method's object"),
    (lambda model: Client(model).ask, Model.SMALL, Model.LARGE, "what a bound method's object is made of"),
    (lambda model: Passing(model).by_helper, Model.SMALL, Model.LARGE, "an instance that is given to a helper"),
]


@pytest.mark.parametrize(("make", "small", "large", "reason"), LOOPS, ids=[reason for *_, reason in LOOPS])
def test_a_loop_over_models_never_returns_the_results_of_another(
    tmp_path: Path, make: Callable[[Any], Callable[[str], str]], small: Any, large: Any, reason: str
) -> None:
    """It has results of its own, or is refused before anything is called; going back is as before."""

    def mapped(model: Any) -> str | None:
        f = make(model)
        try:
            (result,) = checkpointed("loop", checkpoint_dir=tmp_path)(f).map(["why?"], progress=False)
        except (FunctionChanged, VersionNeeded):
            return None
        assert result == f("why?")
        return result

    first = mapped(small)
    mapped(large)
    assert mapped(small) == first


class Loop:
    """As they are written: decorated methods of objects."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @checkpointed("methods")
    def ask(self, text: str) -> str:
        return f"{self.model}: {text}"

    @checkpointed("methods by a helper")
    def by_helper(self, text: str) -> str:
        return f"{ask(self, text)}"

    @checkpointed("methods by a computed name")
    def by_name(self, text: str) -> str:
        return f"{getattr(self, 'mod' + 'el')}: {text}"

    @checkpointed("methods that only name")
    def steady(self, text: str) -> str:
        return super().__repr__()[:5] + text


def test_methods_of_other_objects_have_results_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or name what is missing; a method that reads none of what cannot be told goes on."""
    monkeypatch.chdir(tmp_path)
    five: Any = Loop("five")
    three: Any = Loop("three")
    assert (five.ask.map(["a"], progress=False), three.ask.map(["a"], progress=False)) == (["five: a"], ["three: a"])
    assert five.by_helper.map(["a"], progress=False) == ["five: a"]
    assert three.by_helper.map(["a"], progress=False) == ["three: a"]
    odd: Any = Loop(object())
    for method in (odd.by_helper, odd.by_name):
        with pytest.raises(VersionNeeded, match=r"version=lambda self"):
            method.map(["a"], progress=False)
    assert odd.steady.map(["a"], progress=False) == [odd.steady("a")]
