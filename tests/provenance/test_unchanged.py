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


def _helper(n: int) -> int:
    return n * FACTOR


def _other(n: int) -> int:
    return n + FACTOR


def _plain(n: int, by: int = 3) -> int:
    return _helper(n) + by


def _closing(by: int) -> Any:
    def inner(n: int) -> int:
        return _helper(n) + by

    return inner


def _reads_a_list(n: int) -> str:
    return NAMES[n]


def _reads_the_environment(n: int) -> str:
    return os.environ["HOME"] * n


def _calls_a_method(n: int) -> str:
    return Path(str(n)).name


def _set(holder: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(holder, name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_set(sys.modules[__name__], "FACTOR", 5), "a variable that a _helper reads"),
        (_set(sys.modules[__name__], "_helper", _other), "the _helper itself"),
        (_set(_helper, "__code__", _other.__code__), "the _helper's code"),
        (_set(_plain, "__defaults__", (4,)), "a default value"),
        (_set(_plain, "__kwdefaults__", {"by": 4}), "a default that came"),
        (lambda patch: patch.setitem(_plain.__dict__, "__wrapped__", _other), "an attribute that leads on"),
    ],
)
def test_a_change_of_what_was_read_is_seen(
    change: Callable[[pytest.MonkeyPatch], None], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read holds until it is changed, and holds again once it is put back."""
    seen = Unchanged(_plain)
    assert seen.is_known
    assert seen.holds()
    with monkeypatch.context() as patch:
        change(patch)
        assert not seen.holds(), reason
    assert seen.holds()


def test_a_variable_that_a_function_closes_over_is_seen() -> None:
    """By its cell: another value, or another function in it."""
    function = _closing(2)
    seen = Unchanged(function)
    assert seen.holds()
    function.__closure__[0].cell_contents = 7
    assert not seen.holds()


@pytest.mark.parametrize("function", [_reads_a_list, _reads_the_environment, Path("x").joinpath, len])
def test_what_may_change_inside_is_read_each_time(function: Any) -> None:
    """A list, the environment, an object: nothing says of them that they are as they were."""
    seen = Unchanged(function)
    assert not seen.is_known
    assert not seen.holds()


def test_constants_installed_classes_and_modules_are_known() -> None:
    """They are what they are, as long as the names stand for them."""
    assert Unchanged(_calls_a_method).holds()
    assert type(_calls_a_method) is FunctionType


def test_a_map_sees_a_changed_value_though_the_function_was_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The second map reads nothing anew, and the third refuses the other value."""
    function = checkpointed("known", checkpoint_dir=tmp_path)(_plain)
    assert function.map([1, 2], progress=False) == [5, 7]
    assert function.map([1, 2], progress=False) == [5, 7]
    assert function._fingerprint() is function._fingerprint()
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 3)
    with pytest.raises(FunctionChanged, match="FACTOR"):
        function.map([1, 2], progress=False)
    found, again = function._fingerprint(), fingerprint(_plain, salt="known")
    assert found is not None
    assert again is not None
    assert found.digest == again.digest


def _changes_what_it_reads(n: int) -> int:
    if n == 9:
        setattr(sys.modules[__name__], "FACTOR", n)  # noqa: B010  # as a call elsewhere may
    return _helper(n)


def test_a_value_that_changes_while_it_runs_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the function was known before the pass, and not read for it."""
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 2)
    function = checkpointed("grows", checkpoint_dir=tmp_path)(_changes_what_it_reads)
    assert function.map([1], progress=False) == [2]
    assert Unchanged(_changes_what_it_reads).is_known
    assert "changed while it ran" not in caplog.text
    assert function.map([9], progress=False) == [81]
    assert "what _changes_what_it_reads reads changed while it ran" in caplog.text
    assert "FACTOR: 2 → 9" in caplog.text
