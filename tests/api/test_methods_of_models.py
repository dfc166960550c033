"""A method can be decorated in whatever kind of class: no library that builds classes takes it for a field."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import attrs
import pydantic
import pydantic.dataclasses
import pytest

from checkpoint import checkpointed

T = TypeVar("T")


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


class Scorer(pydantic.BaseModel):
    model: str
    shots: int = 0
    kind: ClassVar[str] = "scorer"

    @checkpointed("scores")
    def score(self, n: int) -> str:
        """A score."""
        return f"{self.model}{self.shots}: {n}"

    @checkpointed("private scores")
    def _score(self, n: int) -> str:
        return f"{self.model}: {n}"

    @checkpointed("awaited scores")
    async def ascore(self, n: int) -> str:
        return f"{self.model}: {n}"

    @checkpointed("scores of the class")
    @classmethod
    def of_class(cls, n: int) -> str:
        return f"{cls.kind}: {n}"

    @checkpointed("scores of nobody")
    @staticmethod
    def of_nobody(n: int) -> str:
        return f"nobody: {n}"


class Strict(Scorer, extra="forbid"):
    """A subclass with a method of its own, and one that it overrides."""

    @checkpointed("more scores")
    def more(self, n: int) -> str:
        return f"{self.model}: {n + 1}"

    @checkpointed("strict scores")
    def score(self, n: int) -> str:
        return f"strict {self.model}: {n}"


class Of(pydantic.BaseModel, Generic[T]):
    model: T

    @checkpointed("generic scores")
    def score(self, n: int) -> str:
        return f"{self.model}: {n}"


@pydantic.dataclasses.dataclass
class Validated:
    model: str

    @checkpointed("validated scores")
    def score(self, n: int) -> str:
        return f"{self.model}: {n}"


@dataclass(slots=True, frozen=True)
class Slotted:
    model: str

    @checkpointed("slotted scores")
    def score(self, n: int) -> str:
        return f"{self.model}: {n}"


@attrs.define
class Defined:
    model: str

    @checkpointed("defined scores")
    def score(self, n: int) -> str:
        return f"{self.model}: {n}"


KINDS: list[tuple[Callable[[str], Any], str, str]] = [
    (lambda m: Scorer(model=m).score, "{m}0: 1", "a model's method"),
    (lambda m: Scorer(model=m)._score, "{m}: 1", "one that is private by its name"),
    (lambda m: Strict(model=m).score, "strict {m}: 1", "one that a subclass overrides"),
    (lambda m: Strict(model=m)._score, "{m}: 1", "one that is inherited"),
    (lambda m: Strict(model=m).more, "{m}: 2", "one that a subclass adds"),
    (lambda m: Of[str](model=m).score, "{m}: 1", "one of a generic model"),
    (lambda m: Validated(m).score, "{m}: 1", "a pydantic dataclass"),
    (lambda m: Slotted(m).score, "{m}: 1", "a dataclass with slots"),
    (lambda m: Defined(m).score, "{m}: 1", "an attrs class"),
    (lambda m: Scorer(model=m).of_class, "scorer: 1", "a class method"),
    (lambda m: Scorer(model=m).of_nobody, "nobody: 1", "a static method"),
]


@pytest.mark.parametrize(("method", "want", "reason"), KINDS, ids=[reason for *_, reason in KINDS])
def test_a_method_of_a_model_is_mapped(method: Callable[[str], Any], want: str, reason: str) -> None:
    """Each instance has results of its own."""
    for model in ("A", "B"):
        assert list(method(model).map([1], progress=False)) == [want.format(m=model)], reason


def test_a_coroutine_method_of_a_model_is_mapped() -> None:
    """It is awaited."""

    async def run() -> list[list[str]]:
        return [list(await Scorer(model=model).ascore.map([1], progress=False)) for model in ("A", "B")]

    assert asyncio.run(run()) == [["A: 1"], ["B: 1"]]


def test_decorated_methods_are_no_part_of_what_a_model_holds() -> None:
    """Neither a field nor a private attribute; what the model gives as JSON and as a copy is what it was."""
    assert set(Scorer.model_fields) == {"model", "shots"}
    assert Scorer.__private_attributes__ == {}
    made = Scorer(model="A")
    assert made.model_dump() == {"model": "A", "shots": 0}
    assert pickle.loads(pickle.dumps(made)) == made.model_copy() == made


def test_what_a_decorated_method_was_it_is() -> None:
    """It is called as ever, and says what it does."""
    assert Scorer(model="A").score(3) == "A0: 3"
    assert Scorer.score.__doc__ == "A score."
