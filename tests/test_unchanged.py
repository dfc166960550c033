"""A function is not read again where all that was read of it is what it was; any change to that is seen at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from checkpoint import checkpointed
from checkpoint.errors import FunctionChanged
from checkpoint.provenance.fingerprint import fingerprint
from checkpoint.provenance.unchanged import Unchanged

FACTOR = 2
NAMES = ["a", "b"]


def helper(n: int) -> int:
    return n * FACTOR


def other(n: int) -> int:
    return n + FACTOR


def plain(n: int, by: int = 3) -> int:
    return helper(n) + by


def closing(by: int) -> Any:
    def inner(n: int) -> int:
        return helper(n) + by

    return inner


def reads_a_list(n: int) -> str:
    return NAMES[n]


def reads_the_environment(n: int) -> str:
    return os.environ["HOME"] * n


def calls_a_method(n: int) -> str:
    return Path(str(n)).name


def _set(holder: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(holder, name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(sys.modules[__name__], "FACTOR", 5), "a variable that a helper reads"),
        (_set(sys.modules[__name__], "helper", other), "the helper itself"),
        (_set(helper, "__code__", other.__code__), "the helper's code"),
        (_set(plain, "__defaults__", (4,)), "a default value"),
        (_set(plain, "__kwdefaults__", {"by": 4}), "a default that came"),
        (lambda patch: patch.setitem(plain.__dict__, "__wrapped__", other), "an attribute that leads on"),
    ],
)
def test_a_change_of_what_was_read_is_seen(
    change: Callable[[pytest.MonkeyPatch], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read holds until it is changed, and holds again once it is put back."""
    seen = Unchanged(plain)
    assert seen.is_known
    assert seen.holds()
    with monkeypatch.context() as patch:
        change(patch)
        assert not seen.holds(), reason
    assert seen.holds()


def test_a_variable_that_a_function_closes_over_is_seen() -> None:
    """By its cell: another value, or another function in it."""
    function = closing(2)
    seen = Unchanged(function)
    assert seen.holds()
    function.__closure__[0].cell_contents = 7
    assert not seen.holds()


@pytest.mark.parametrize("function", [reads_a_list, reads_the_environment, Path("x").joinpath, len])
def test_what_may_change_inside_is_read_each_time(function: Any) -> None:
    """A list, the environment, an object: nothing says of them that they are as they were."""
    seen = Unchanged(function)
    assert not seen.is_known
    assert not seen.holds()


def test_constants_installed_classes_and_modules_are_known() -> None:
    """They are what they are, as long as the names stand for them."""
    assert Unchanged(calls_a_method).holds()
    assert type(calls_a_method) is FunctionType


def test_a_map_sees_a_changed_value_though_the_function_was_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second map reads nothing anew, and the third refuses the other value."""
    function = checkpointed("known", checkpoint_dir=tmp_path)(plain)
    assert function.map([1, 2], progress=False) == [5, 7]
    assert function.map([1, 2], progress=False) == [5, 7]
    assert function._fingerprint() is function._fingerprint()
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3)
    with pytest.raises(FunctionChanged, match="FACTOR"):
        function.map([1, 2], progress=False)
    assert function._fingerprint().digest == fingerprint(plain, salt="known").digest


def changes_what_it_reads(n: int) -> int:
    if n == 9:
        setattr(sys.modules[__name__], "FACTOR", n)  # noqa: B010  # as a call elsewhere may
    return helper(n)


def test_a_value_that_changes_while_it_runs_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the function was known before the pass, and not read for it."""
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2)
    function = checkpointed("grows", checkpoint_dir=tmp_path)(changes_what_it_reads)
    assert function.map([1], progress=False) == [2]
    assert Unchanged(changes_what_it_reads).is_known
    assert "changed while it ran" not in caplog.text
    assert function.map([9], progress=False) == [81]
    assert "what changes_what_it_reads reads changed while it ran" in caplog.text
    assert "FACTOR: 2 → 9" in caplog.text
