"""Laws of what travels to workers and of what comes back, beyond those that every engine keeps."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pytest

from checkpoint import InvalidOption, Retry, StoreError, checkpointed

PROCESSES: dict[str, Any] = {"executor": "processes", "workers": 1, "progress": False}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory."""
    monkeypatch.chdir(tmp_path)


class Parent:
    """Its method is overridden, and called by `super`."""

    @checkpointed("parent", version=1)
    def score(self, n: int) -> str:
        return f"parent {n}"


class Child(Parent):
    """Overrides, replaces, mangles, and has methods of every kind."""

    @checkpointed("child", version=1)
    def score(self, n: int) -> str:
        return f"child {n}"

    def inherited(self, **options: Any) -> list[str]:
        return list(super().score.map([1], **options))

    first = score

    @checkpointed("replaced", version=1)  # type: ignore[no-redef]
    def score(self, n: int) -> str:
        return f"replaced {n}"

    @checkpointed("private", version=1)
    def __private(self, n: int) -> str:
        return f"private {n}"

    def mangled(self, **options: Any) -> list[str]:
        return list(self.__private.map([1], **options))

    @checkpointed("static")
    @staticmethod
    def static(n: int) -> str:
        return f"static {n}"

    @checkpointed("class", version=1)
    @classmethod
    def of_class(cls, n: int) -> str:
        return f"{cls.__name__} {n}"


class Grandchild(Child):
    """Inherits."""


METHODS = [
    (lambda **options: Child().inherited(**options), "parent 1", "super() calls the parent's"),
    (lambda **options: Child().first.map([1], **options), "child 1", "another name of what was replaced"),
    (lambda **options: Child().score.map([1], **options), "replaced 1", "what replaced it"),
    (lambda **options: Child().mangled(**options), "private 1", "a private name"),
    (lambda **options: Child.static.map([1], **options), "static 1", "a static method of the class"),
    (lambda **options: Child().static.map([1], **options), "static 1", "a static method of an instance"),
    (lambda **options: Grandchild.of_class.map([1], **options), "Grandchild 1", "a class method of a subclass"),
    (lambda **options: Child.of_class.options(name="x").map([1], **options), "Child 1", "a copy with another name"),
]


@pytest.mark.parametrize(("run", "want", "reason"), METHODS, ids=[reason for *_, reason in METHODS])
@pytest.mark.parametrize("options", [{"progress": False}, PROCESSES], ids=["here", "processes"])
def test_the_method_that_is_mapped_is_the_one_that_runs(run: Any, want: str, reason: str, options: Any) -> None:
    """Never one that only has its name."""
    assert list(run(**options)) == [want]


@pytest.mark.parametrize("workers", [1, 4])
def test_a_hook_that_exits_ends_the_pass(workers: int) -> None:
    """Rather than leave it waiting for an answer that nobody gives."""

    def leaves(error: Exception) -> bool:
        sys.exit("enough")

    def fails(n: int) -> int:
        raise ValueError(n)

    async def afails(n: int) -> int:
        raise ValueError(n)

    with pytest.raises(SystemExit, match="enough"):
        checkpointed("s", retry=Retry(on=leaves))(fails).map(range(8), workers=workers, progress=False)
    with pytest.raises(SystemExit, match="enough"):
        asyncio.run(checkpointed("a", retry=Retry(on=leaves))(afails).map(range(8), workers=workers, progress=False))


class Unloadable:
    """An item that pickles, and does not unpickle."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __reduce__(self) -> Any:
        return (Unloadable, ())


def number(item: Any) -> int:
    """What an item holds."""
    return item if isinstance(item, int) else item.n


def test_an_item_that_a_worker_cannot_load_fails_by_itself_and_says_why() -> None:
    """The worker lives on; nobody is told of memory."""
    f = checkpointed("u", key=number)(number)
    results: Any = f.map([1, Unloadable(2), 3], return_exceptions=True, **PROCESSES)
    assert (results[0], results[2]) == (1, 3)
    assert "cannot load the item: TypeError" in results[1].message
    assert results[1].attempts == 1


@pytest.mark.parametrize("timeout", [3e6, float("inf")])
def test_a_timeout_may_be_longer_than_the_system_can_wait(timeout: float) -> None:
    """Weeks, or for ever."""
    f = checkpointed("t", timeout=timeout)(number)
    assert f.map([1, 2], **PROCESSES) == [1, 2]


def test_equal_items_of_an_endless_input_are_not_drawn_without_end(tmp_path: Path) -> None:
    """While the first of them runs."""
    drawn = 0

    def items() -> Any:
        nonlocal drawn
        for item in repeat(1):
            drawn += 1
            yield item

    def waits(n: int) -> int:
        while drawn < 1000:
            pass
        return n

    stream = checkpointed("e")(waits).stream(items(), workers=2, progress=False)
    assert [outcome.value for outcome in islice(stream, 5)] == [1] * 5
    stream.close()  # type: ignore[attr-defined]
    assert drawn < 1100


def test_validate_must_be_a_plain_function() -> None:
    """What it returns is looked at, and an awaitable would always be true."""

    async def judge(value: int) -> bool:
        return False

    with pytest.raises(InvalidOption, match="plain function"):
        checkpointed("v", validate=judge)
    lazy = checkpointed("w", validate=lambda value: Later())(number)
    assert "plain function" in lazy.map([1], return_exceptions=True, progress=False)[0].message  # type: ignore[union-attr]


class Later:
    """Something to await."""

    def __await__(self) -> Any:
        yield


FULL = """
import resource, sys
from checkpoint import StoreError, checkpointed
resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
computed = []
f = checkpointed("full")(lambda n: computed.append(n) or "x" * 1000)
def items():
    yield from range(12)
    raise LookupError("the items broke")
try:
    f.map(items(), workers=4, progress=False)
except StoreError as error:
    left = error.unsaved
assert sorted([*left, *f.results]) == sorted(computed), (sorted(left), sorted(f.results), computed)
"""


@pytest.mark.skipif(os.name == "nt", reason="file-size limits are POSIX")
def test_values_that_the_store_refused_are_not_lost_when_the_items_fail_too() -> None:
    """The store's error holds them; what ended the pass is its cause."""
    ended = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert issubclass(StoreError, OSError)
