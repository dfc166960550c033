"""Results whose class has changed are found before anything is paid, and only those that it can no longer build."""

from __future__ import annotations

import dataclasses
import enum
import json
from collections.abc import Callable
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import attrs
import msgspec
import pydantic
import pytest
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from checkpoint import CheckpointedRunner, InvalidOption, ResultsUnfit, UnencodableValue, checkpointed
from checkpoint.catalog import unfit
from checkpoint.catalog.schemas import schema_of


def model(name: str = "Label", /, config: Any = None, **fields: Any) -> Any:
    """A pydantic model of these fields: a type, or (type, default)."""
    given: Any = {field: one if isinstance(one, tuple) else (one, ...) for field, one in fields.items()}
    return pydantic.create_model(name, __config__=config, **given)


def of_dataclass(**fields: Any) -> Any:
    """A dataclass named Label."""
    return dataclasses.make_dataclass("Label", fields.items())


def of_attrs(**fields: Any) -> Any:
    """A class of attrs named Label."""
    return attrs.make_class("Label", {name: attrs.field(type=one) for name, one in fields.items()})


def of_msgspec(**fields: Any) -> Any:
    """A Struct named Label."""
    return msgspec.defstruct("Label", list(fields.items()))


class Job:
    """One function whose class is edited between the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls = 0

    def as_of(self, cls: Any, make: Callable[[Any], Any] | None = None, **options: Any) -> Any:
        """The function as it is when its class is this one."""

        def ask(item: Any) -> Any:
            self.calls += 1
            return make(item) if make is not None else None

        return checkpointed("labels", checkpoint_dir=self.folder, result_type=cls, **{"on_change": "keep", **options})(
            ask
        )

    def run(self, cls: Any, make: Callable[[Any], Any], count: int = 3, **options: Any) -> Any:
        """Map so many items; returns the results."""
        return self.as_of(cls, make, **options).map(range(count), progress=False)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """In a directory of its own."""
    return Job(tmp_path)


class Kind(enum.Enum):
    A = "a"
    B = "b"


class Fewer(enum.Enum):
    A = "a"


Fewer.__name__ = Fewer.__qualname__ = "Kind"


class Movie(TypedDict):
    score: int


class Retyped(TypedDict):
    score: str


Retyped.__name__ = Retyped.__qualname__ = "Movie"

INT = {"score": 1}
MOVED: list[tuple[Any, dict[str, Any], Any, str, str]] = [
    (model(topic=str), {"topic": "t"}, model(subject=str), "topic", "a renamed field"),
    (model(score=int), INT, model(score=int, more=str), "more", "a new required field"),
    (model(score=int), INT, model(score=str), "score", "another type"),
    (model(score=int), INT, model(score=Literal["low"]), "score", "a Literal of another type"),
    (model(score=Optional[int]), {"score": None}, model(score=int), "score", "None is no longer one"),  # noqa: UP045
    (model(score=list[int]), {"score": [1]}, model(score=list[str]), "score", "within a list"),
    (model(score=list[int]), {"score": [1]}, model(score=tuple[int, ...]), "score", "a list that is to be a tuple"),
    (model(score=dict[str, int]), {"score": {"a": 1}}, model(score=dict[str, str]), "score", "within a dict"),
    (model(score=str), {"score": "https://a.b"}, model(score=pydantic.HttpUrl), "score", "a str that is to be a URL"),
    (
        model(score=datetime),
        {"score": datetime(2026, 1, 1)},
        model(score=date),
        "score",
        "a moment, then a day",
    ),
    (model(score=str), {"score": "a"}, model(score=Kind), "score", "a str that is to be an Enum"),
    (model(score=Kind), {"score": Kind.B}, model(score=Fewer), "B", "a member that is gone"),
    (model(score=int), INT, model("Tag", score=int), "renamed", "a renamed class"),
    (of_dataclass(score=int), INT, of_dataclass(score=str), "score", "a dataclass"),
    (of_dataclass(score=int), INT, of_dataclass(points=int), "score", "a dataclass's renamed field"),
    (of_attrs(score=int), INT, of_attrs(score=str), "score", "attrs"),
    (of_msgspec(score=int), INT, of_msgspec(score=str), "score", "msgspec"),
    (
        model(inner=model("Inner", a=int)),
        {"inner": {"a": 1}},
        model(inner=model("Inner", b=int)),
        "a",
        "a nested model",
    ),
    (model(score=Movie), {"score": {"score": 1}}, model(score=Retyped), "score", "a TypedDict within"),
    (model(config=ConfigDict(extra="allow"), score=int), {"score": 1, "b": 2}, model(score=int), "b", "extras kept"),
]


@pytest.mark.parametrize(("before", "fields", "after", "names", "reason"), MOVED, ids=[reason for *_, reason in MOVED])
def test_what_no_longer_fits_is_an_error_before_anything_is_paid(
    job: Job, before: Any, fields: dict[str, Any], after: Any, names: str, reason: str
) -> None:
    """plan says it, map raises it on every run, nothing is called, and it names class, field, count and ways out."""
    job.run(before, lambda item: before(**fields))
    f = job.as_of(after)
    for _ in range(2):
        with pytest.raises(ResultsUnfit, match=names) as caught:
            f.map(range(5), progress=False)
        assert caught.value.count == 3
    assert job.calls == 3
    assert isinstance(f.plan(range(5)).refusal, ResultsUnfit)
    for way in ('on_change="recompute"', "version=", "f.accept(version=None, convert="):
        assert way in str(caught.value)
    assert type(job.run(before, lambda item: before(**fields))[0]) is before  # the old class is still there


DAY = date(2020, 1, 1)
ALIAS = Field(validation_alias=pydantic.AliasChoices("subject", "topic"))
STILL: list[tuple[Any, dict[str, Any], Any, dict[str, Any], str]] = [
    (model(score=int), INT, model(score=Optional[int]), INT, "wider"),  # noqa: UP045
    (model(score=int), INT, model(score=int | str), INT, "a union"),
    (model(score=int), INT, model(score=float), INT, "an int where a float may be"),
    (model(score=int), INT, model(score=int, more=(str, "x")), {"score": 1, "more": "x"}, "a new field with a default"),
    (model(a=int, b=int), {"a": 1, "b": 2}, model(b=int, a=int), {"a": 1, "b": 2}, "another order"),
    (model(score=int), INT, model(score=Annotated[int, Field(gt=5)]), INT, "a validator"),
    (model(on=date), {"on": DAY}, model(on=pydantic.PastDate), {"on": DAY}, "a type of pydantic that only checks"),
    (model(topic=str), {"topic": "t"}, model(subject=(str, Field(alias="topic"))), {"subject": "t"}, "an alias"),
    (model(topic=str), {"topic": "t"}, model(subject=(str, ALIAS)), {"subject": "t"}, "a choice of aliases"),
    (
        of_msgspec(topic=str),
        {"topic": "t"},
        msgspec.defstruct("Label", [("subject", str, msgspec.field(name="topic"))]),
        {"subject": "t"},
        "a name of msgspec",
    ),
    (model(a=int, b=int), {"a": 1, "b": 2}, model(config=ConfigDict(extra="ignore"), a=int), {"a": 1}, "extra=ignore"),
    (
        model(a=int, b=int),
        {"a": 1, "b": 2},
        model(config=ConfigDict(extra="allow"), a=int),
        {"a": 1, "b": 2},
        "extra=allow",
    ),
    (model(a=int, config=ConfigDict(extra="allow")), {"a": 1, "b": 2}, model(a=int, b=int), {"a": 1, "b": 2}, "extras"),
    (model(score=Fewer), {"score": Fewer.A}, model(score=Kind), {"score": Kind.A}, "a new member"),
]


@pytest.mark.parametrize(("before", "fields", "after", "now", "reason"), STILL, ids=[reason for *_, reason in STILL])
def test_what_still_fits_is_no_alarm(
    job: Job, before: Any, fields: dict[str, Any], after: Any, now: dict[str, Any], reason: str
) -> None:
    """Old and new results come back as the class that is there, and nothing old is paid for again."""
    make = before.model_validate if hasattr(before, "model_validate") else lambda given: before(**given)
    job.run(before, lambda item: make(fields))
    results = job.as_of(after).map(range(3), progress=False)
    assert job.calls == 3
    assert [type(one) for one in results] == [after] * 3
    for name, value in now.items():
        assert getattr(results[0], name) == value
        assert type(getattr(results[0], name)) is type(value)
    if hasattr(after, "model_fields") and "b" in now and "b" in after.model_fields:
        assert not results[0].model_extra


def test_building_runs_no_validator_and_no_hook(job: Job) -> None:
    """Whatever a class checks or computes when it is made is left alone when a result is read."""
    ran: list[str] = []

    class Label(pydantic.BaseModel):
        score: int

        @pydantic.field_validator("score")
        @classmethod
        def check(cls, value: int) -> int:
            ran.append("validator")
            return value

        def model_post_init(self, context: Any) -> None:
            ran.append("post init")

    job.run(Label, lambda item: Label(score=item))
    ran.clear()
    assert job.as_of(Label).map(range(3), progress=False)[2].score == 2
    assert not ran


def test_recompute_computes_only_what_does_not_fit(job: Job) -> None:
    """on_change="recompute" replaces results of the old class, those of these items, and no others."""
    old, new = model(score=int), model(score=str)
    job.run(old, lambda item: old(score=item), 5)
    make = lambda item: new(score=str(item))  # noqa: E731
    assert job.as_of(new, make, on_change="recompute").plan(range(3)).redone == 3
    assert [one.score for one in job.run(new, make, 3, on_change="recompute")] == ["0", "1", "2"]
    assert job.calls == 8
    with pytest.raises(ResultsUnfit, match="2 results of 5"):  # of items that were not among these
        job.as_of(new, make).map(range(3), progress=False)
    one_shot = job.as_of(new, make, on_change="recompute").map(iter(range(5)), progress=False)
    assert [one.score for one in one_shot] == list("01234")
    assert job.calls == 10
    job.as_of(new, make).map(range(5), progress=False)
    assert job.calls == 10


def test_another_version_is_no_alarm(job: Job) -> None:
    """Results of another version are of another class, and nobody reads them here."""
    old, new = model(topic=str), model(subject=str)
    job.run(old, lambda item: old(topic="t"))
    assert job.run(new, lambda item: new(subject="s"), version=2)[0].subject == "s"


def test_an_annotation_that_is_taken_away_is_told(job: Job, caplog: pytest.LogCaptureFixture) -> None:
    """Objects come back as plain JSON, on a run that computes nothing too; where no class was named, it is silent."""
    cls = model(score=int)
    job.run(cls, lambda item: cls(score=item))
    assert job.run(None, lambda item: cls(score=item)) == [{"score": item} for item in range(3)]
    assert "results were saved as objects of Label" in caplog.text
    caplog.clear()
    job.run(cls, lambda item: cls(score=item))
    job.run(None, lambda item: {"score": item}, version="plain")
    job.run(None, lambda item: {"score": item}, version="plain")
    assert "saved as objects" not in caplog.text


def test_results_are_read_once_and_then_remembered(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a change that fits, the next run asks meta alone; where meta is lost, it reads them again."""
    old, new = model(score=int), model(score=float)
    job.run(old, lambda item: old(score=item))
    read: list[Any] = []
    really = unfit._Search.look

    def look(*given: Any) -> None:
        read.append(given)
        really(*given)

    monkeypatch.setattr(unfit._Search, "look", look)
    for expected in (3, 0, 0):
        read.clear()
        job.as_of(new).map(range(3), progress=False)
        assert len(read) == expected
    (job.folder / "labels_meta.json").unlink()
    job.as_of(new).map(range(3), progress=False)
    assert len(read) == 3
    with pytest.raises(ResultsUnfit):
        job.as_of(model(score=str)).map(range(3), progress=False)


def test_old_results_are_found_behind_new_ones(job: Job) -> None:
    """The last record being of the present schema says nothing of the first."""
    old, new = model(score=int), model(score=int | str)
    job.run(old, lambda item: old(score=item))
    job.run(new, lambda item: new(score=str(item)), 5)
    with pytest.raises(ResultsUnfit, match="3 results of 5"):
        job.as_of(model(score=str)).map(range(5), progress=False)
    with pytest.raises(ResultsUnfit, match="2 results of 5"):
        job.as_of(model(score=int)).map(range(5), progress=False)


def strip_schemas(folder: Path) -> None:
    """Make it a checkpoint that was written before records had schemas."""
    import zlib

    journal, meta = folder / "labels_results.jsonl", folder / "labels_meta.json"
    lines = []
    for line in journal.read_bytes().splitlines():
        head, _, tail = line.partition(b',"schema":"')
        body = head + tail.partition(b'"')[2][: -len(b',"crc":"00000000"}')]
        lines.append(body + b',"crc":"%08x"}\n' % zlib.crc32(body))
    journal.write_bytes(b"".join(lines))
    meta.write_text(json.dumps({name: one for name, one in json.loads(meta.read_text()).items() if name != "schemas"}))
    for index in folder.glob(".*.index"):
        index.unlink()


@pytest.mark.parametrize(
    ("before", "fields", "after", "reason"),
    [(*row[:3], row[4]) for row in MOVED if "TypedDict" not in row[4] and row[4].split("a ")[-1] != "dataclass"
     and row[4] not in ("attrs", "msgspec", "None is no longer one")],
)  # fmt: skip
def test_an_old_checkpoint_is_looked_through(
    job: Job, before: Any, fields: dict[str, Any], after: Any, reason: str
) -> None:
    """Records without a schema are read, once; the same class is no alarm, and one that moved is the error."""
    job.run(before, lambda item: before(**fields))
    strip_schemas(job.folder)
    assert type(job.as_of(before).map(range(3), progress=False)[0]) is before
    with pytest.raises(ResultsUnfit):
        job.as_of(after).map(range(3), progress=False)
    assert job.calls == 3


def test_sloppy_values_of_an_old_checkpoint_are_no_alarm(job: Job) -> None:
    """Values that never were of the annotated type, and classes that were never named, are as they were."""
    loose = dataclasses.make_dataclass("Loose", [("score", int, None), ("names", list[str], dataclasses.field())][::-1])
    stranger = model("Stranger", a=int)
    values = [loose(names=(1,)), loose(names=["a"], score="x"), stranger(a=1), {"a": 1}, None]
    job.run(loose, lambda item: values[item], 5)
    strip_schemas(job.folder)
    job.as_of(loose).map(range(5), progress=False)
    assert job.calls == 5


def test_a_runner_by_hand_is_told_too(tmp_path: Path) -> None:
    """`iterate` raises before it yields the first item."""
    old, new = model(topic=str), model(subject=str)
    with CheckpointedRunner("labels", tmp_path, result_type=old) as runner:
        runner.save_result(1, old(topic="t"))
    with CheckpointedRunner("labels", tmp_path, result_type=new) as runner, pytest.raises(ResultsUnfit):
        next(iter(runner.iterate([1, 2], key_fn=int)))


def test_schemas_do_not_depend_on_what_does_not_count() -> None:
    """Order, docstrings, defaults' values and validators change no digest; names, types and aliases do."""

    def digest(cls: Any) -> str:
        schema = schema_of(cls)
        assert schema is not None
        return schema.digest

    same = [model(a=(int, 1), b=str), model(b=str, a=(int, 2)), model(a=(Annotated[int, Field(gt=0)], 1), b=str)]
    assert len({digest(cls) for cls in same}) == 1
    others = [model(a=int, b=str), model(a=(str, "1"), b=str), model(b=str), model(a=(int, Field(1, alias="c")), b=str)]
    assert len({digest(cls) for cls in [same[0], *others]}) == 5
    assert len(digest(same[0])) == 32
    assert schema_of(int) is None
    assert schema_of(dict[str, int]) is None


@dataclasses.dataclass
class Holder:
    names: list[str]
    account: dict[str, Account] | None = None


class Account(pydantic.BaseModel):
    user: str
    password: pydantic.SecretStr | None = None


class Hidden(pydantic.BaseModel):
    _token: pydantic.SecretBytes = pydantic.PrivateAttr(default=pydantic.SecretBytes(b""))


SECRETS: list[tuple[Any, str]] = [
    (pydantic.SecretStr, "SecretStr"),
    (list[pydantic.SecretBytes], "SecretBytes"),
    (Account, "Account.password"),
    (dict[str, list[Account]], "Account.password"),
    (Holder, "Account.password"),
    (Hidden, "Hidden._token"),
    (model("Paid", key=pydantic.Secret[int]), "Paid.key"),
    (pydantic.RootModel[list[Account]], "Account.password"),
]


@pytest.mark.parametrize(("annotation", "where"), SECRETS, ids=[str(annotation) for annotation, _ in SECRETS])
def test_a_secret_is_refused_from_the_annotation(job: Job, annotation: Any, where: str) -> None:
    """Before anything is called, since it would be written in clear; plan says it too."""
    f = job.as_of(annotation, lambda item: None)
    with pytest.raises(UnencodableValue, match="in clear") as caught:
        f.map([1], progress=False)
    assert caught.value.where == where
    assert "get_secret_value()" in str(caught.value)
    assert isinstance(f.plan([1]).refusal, UnencodableValue)
    assert not job.calls


def test_a_class_that_has_changed_is_told_before_the_values_that_changed_with_it(job: Job) -> None:
    """A renamed field takes its description along; whoever accepted that would meet the other error next."""
    before = model(score=(int, Field(description="how good the answer is")))
    job.run(before, lambda item: before(score=1))
    f = job.as_of(model(points=(int, Field(description="how good the answer is"))))
    with pytest.raises(ResultsUnfit, match="put the class back"):
        f.map(range(5), progress=False)
    plan = f.plan(range(5))
    assert isinstance(plan.refusal, ResultsUnfit)
    assert "convert=lambda old" in str(plan)
    assert "checkpoint accept" not in str(plan)


def test_what_convert_returns_is_of_the_class_or_refused(job: Job) -> None:
    """Plain JSON would come back as plain JSON on every run, and no message would say so."""
    before, after = model(score=int), model(score=int, more=str)
    job.run(before, lambda item: before(score=item))
    f = job.as_of(after).options(version="with more")
    with pytest.raises(InvalidOption, match="is to return the object: convert=lambda old: "):
        f.accept(version=None, convert=lambda old: {**old, "more": "x"})
    assert f.accept(version=None, convert=lambda old: after(**old, more="x")) == 3
    assert f.results[0] == after(score=0, more="x")
