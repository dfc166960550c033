"""Laws of errors: what, where, what to do next; they subclass what a caller expects, and they travel."""

from __future__ import annotations

import builtins
import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from checkpoint import (
    CheckpointedRunner,
    CheckpointError,
    ItemError,
    ItemsFailed,
    StoreError,
    TooManyErrors,
    checkpointed,
    errors,
)
from checkpoint.errors import quote

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, CheckpointError) and value is not CheckpointError
]
PARTS: dict[str, Any] = {
    "key": ("a", 1), "places": (0, 3), "keys": [1, 2], "where": "result[0]", "cls": int, "path": "x_results.jsonl",
    "line": 3, "offset": 120, "why": "checksum", "errno": 28, "strerror": "full", "filename": "x", "pid": 7,
    "host": "h", "since": "2026", "intact": 5, "type": "ValueError", "message": "odd", "traceback": "…", "attempts": 2,
    "name": "../x", "exitcode": -9, "elapsed": 0.5,
}  # fmt: skip
PLAIN = [cls for cls in CLASSES if not issubclass(cls, ItemsFailed)]


def parts_of(cls: type[CheckpointError]) -> dict[str, Any]:
    """Parts for the attributes that the class declares."""
    names = {name for base in cls.__mro__ for name in getattr(base, "__annotations__", {})} - {"unsaved"}
    if issubclass(cls, StoreError):
        names |= {"errno", "strerror", "filename"}
    return {name: PARTS[name] for name in PARTS if name in names}


def drawn() -> list[tuple[str, str, str]]:
    """(class, builtin, parent) for each line of the tree at the top of errors.py."""
    found, parents = [], ["CheckpointError"]
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ((?:│   |    )*)[├└]── (\w+)\s+(\w+)  ", line)
        if match:
            depth = len(match[1]) // 4 + 1
            parents[depth:] = [match[2]]
            found.append((match[2], match[3], parents[depth - 1]))
    return found


def test_the_tree_draws_every_error() -> None:
    """And each of them is public."""
    assert sorted(name for name, _, _ in drawn()) == sorted(cls.__name__ for cls in CLASSES)
    assert {cls.__name__ for cls in CLASSES} <= set(checkpoint.__all__)


@pytest.mark.parametrize(("name", "builtin", "parent"), drawn(), ids=[name for name, _, _ in drawn()])
def test_the_tree_is_as_drawn(name: str, builtin: str, parent: str) -> None:
    """Each error subclasses its parent, and the builtin that a caller would expect."""
    cls = getattr(errors, name)
    assert issubclass(cls, getattr(errors, parent))
    assert issubclass(cls, getattr(builtins, builtin))


@pytest.mark.parametrize("cls", PLAIN, ids=lambda cls: cls.__name__)
def test_every_error_pickles_with_its_parts_and_notes(cls: type[CheckpointError]) -> None:
    """And copies, too."""
    parts = parts_of(cls)
    error = cls("what, where, what to do next", **parts)
    error.add_note("a note")
    for back in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(back) is cls
        assert str(back) == "what, where, what to do next"
        assert back.__notes__ == ["a note"]
        assert {name: getattr(back, name) for name in parts} == parts


def test_what_was_not_saved_travels_with_the_error() -> None:
    """It was paid for, and the error may be the only place where it is."""
    error = StoreError("full", errno=28)
    error.unsaved = {"k": [1, 2]}
    assert pickle.loads(pickle.dumps(error)).unsaved == {"k": [1, 2]}
    assert copy.copy(error).unsaved == {"k": [1, 2]}
    assert StoreError("full").unsaved == {}


class Stubborn(Exception):
    """An exception that pickles and does not unpickle."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@pytest.mark.parametrize("cls", [ItemsFailed, TooManyErrors])
def test_a_group_pickles_whatever_its_members_are(cls: type[ItemsFailed]) -> None:
    """One that does not survive it is told by an `ItemError`; else a worker's failure would break its pool."""
    local = type("Local", (Exception,), {})
    stubborn = Stubborn(code=7)
    stubborn.add_note("item 'k'")
    group = cls("3 failed", [ValueError("v"), stubborn, local("l")])
    group.results = [1, ItemError("e", key=2)]
    group.add_note("a note")
    back = pickle.loads(pickle.dumps(group))
    assert type(back) is cls
    assert (back.message, back.results, back.__notes__) == ("3 failed", [1, ItemError("e", key=2)], ["a note"])
    assert [type(one) for one in back.exceptions] == [ValueError, ItemError, ItemError]
    told = back.exceptions[1]
    assert isinstance(told, ItemError)
    assert (told.type, told.message, told.__notes__) == ("Stubborn", "code 7", ["item 'k'"])


def test_a_group_splits_into_groups_of_its_kind() -> None:
    """`except*` works on it."""
    group = ItemsFailed("2 failed", [ValueError(), KeyError()])
    values, rest = group.split(ValueError)
    assert isinstance(values, ItemsFailed)
    assert isinstance(rest, ItemsFailed)
    caught: list[Exception] = []
    try:
        raise group
    except* ValueError as part:
        caught += part.exceptions
    except* KeyError as part:
        caught += part.exceptions
    assert len(caught) == 2


def test_item_errors_are_equal_by_what_they_say() -> None:
    """Key, type and message; so results that hold them can be compared."""
    one, same, other = (ItemError("x", key=1, message=text) for text in ("m", "m", "n"))
    assert one == same != other
    assert hash(one) == hash(same)
    assert one != "m"


class Noisy:
    """An object whose repr is as long as a user's data."""

    def __repr__(self) -> str:
        return "y" * 10_000


class Silent:
    """An object whose repr raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


QUOTED = [
    ("x" * 10_000, "a long str"),
    (b"x" * 10_000, "long bytes"),
    ([1] * 10_000, "a long list"),
    (Noisy(), "a long repr"),
    (Silent(), "a repr that raises"),
    ("é" * 150, "a short one"),
]


@pytest.mark.parametrize(("data", "reason"), QUOTED, ids=[reason for _, reason in QUOTED])
def test_a_quote_has_at_most_200_characters(data: Any, reason: str) -> None:
    """Whatever the data."""
    assert len(quote(data)) <= 200
    assert len(quote(data, 40)) <= 40


@pytest.mark.promise("giant or deep records")
def test_no_message_quotes_more_than_200_characters_of_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, items and values alike: a message is for people."""
    monkeypatch.chdir(tmp_path)
    big = "z" * 5000
    runner = CheckpointedRunner("r")
    f = checkpointed("f", key="id")(lambda item: item)
    g = checkpointed("g", key="id", on_change="error")(lambda item: item["x"])
    g.map([{"id": big, "x": 1}], progress=False)
    for use in (
        lambda: runner.save_result([big], 1),
        lambda: runner.save_result("k", {big: {big: complex}}),
        lambda: runner.clear(big),
        lambda: CheckpointedRunner(big),
        lambda: CheckpointedRunner("v", version={1: {big: Noisy()}}),
        lambda: f.map([{"id": "a", big: 1}, {"id": "a", big: 2}]),
        lambda: f.map([{"no": big}]),
        lambda: g.map([{"id": big, "x": 2}]),
        lambda: checkpointed(big),
        lambda: checkpointed("n", key=[big]),  # type: ignore[call-overload]
        lambda: f.map([{"id": Noisy()}]),
        lambda: f.map([1], bogus=big),
        lambda: f.map([1], max_errors=big),
    ):
        with pytest.raises((CheckpointError, TypeError)) as caught:
            use()
        for run in re.findall(r"z+|y+", str(caught.value)):
            assert len(run) <= 200, caught.value
        assert len(str(caught.value)) < 1500
