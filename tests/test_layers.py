"""The house, read from its imports: nouns in strata, nothing imports upward, and a door with no logic."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import checkpoint

ROOMS = {
    "errors": "0", "outcomes": "0", "clock": "0", "safe_path": "0", "surroundings": "0",
    "classes": "1a", "codecs": "1a", "contents": "1a", "keys": "1a", "limits": "1a", "zones": "1a",
    "schemas": "1a", "unfit": "1a",
    "journal": "1a", "segment": "1a", "index": "1a", "lock": "1a", "shelf": "1a", "store": "1a", "records": "1a",
    "files": "1a", "shards": "1a", "joined": "1a", "condition": "1a", "notes": "1a",
    "remote": "1a", "mirror": "1a", "uploads": "1a",
    "ledger": "1a", "places": "1a", "upkeep": "1a", "syntax": "1a", "literals": "1a", "bodies": "1a",
    "fingerprints": "1a", "lineage": "1a", "clocks": "1a", "dependencies": "1a", "readings": "1a", "fields": "1a",
    "digests": "1a", "secrets": "1a", "spelling": "1a", "statics": "1a", "uses": "1a", "agreement": "1a",
    "decisions": "1a",
    "clients": "1b", "policies": "1b", "schedule": "1b", "calls": "1b", "workers": "1b", "interrupts": "1b",
    "coordinator": "1b", "engines": "1b", "clusters": "1b",
    "inputs": "2", "progress": "2", "passes": "2", "runner": "2",
    "versions": "3", "plan": "3", "decorator": "3", "results": "3", "tables": "3", "causes": "3", "survey": "3",
    "testing": "3", "cli": "3", "demo": "3", "report": "3", "history": "3", "__main__": "3",
}  # fmt: skip
MAY_IMPORT = {
    "0": set(),
    "1a": {"0", "1a"},
    "1b": {"0", "1b"},
    "2": {"0", "1a", "1b", "2"},
    "3": {"0", "1a", "1b", "2", "3"},
}
PACKAGE = Path(checkpoint.__file__).parent
FILES = sorted(PACKAGE.glob("*.py"))


def syntax(room: str) -> ast.Module:
    """The syntax tree of a room."""
    return ast.parse((PACKAGE / f"{room}.py").read_text("utf-8"))


def imported(room: str) -> Iterator[str]:
    """Every module that a room imports, inside functions and type checking too, with its package."""
    for node in ast.walk(syntax(room)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relatively: imports are absolute"
            yield node.module or ""
            if node.module == "checkpoint":
                yield from (f"checkpoint.{alias.name}" for alias in node.names)


def neighbours(room: str) -> set[str]:
    """The rooms of ours that a room imports."""
    return {name.split(".")[1] for name in imported(room) if name.startswith("checkpoint.")} & ROOMS.keys()


def rooms() -> list[str]:
    """Every module of the package but the door."""
    return [path.stem for path in FILES if path.stem != "__init__"]


def test_every_room_has_its_stratum() -> None:
    """A new module is placed in the picture before it is imported."""
    assert set(rooms()) <= ROOMS.keys()


@pytest.mark.parametrize("room", rooms())
def test_nothing_imports_upward(room: str) -> None:
    """0: words. 1a: what is on disk. 1b: what is run. 2: the meeting. 3: faces. 1a and 1b do not know each other."""
    strays = {name for name in neighbours(room) if ROOMS[name] not in MAY_IMPORT[ROOMS[room]]}
    assert not strays


@pytest.mark.parametrize("room", rooms())
def test_no_room_goes_out_by_the_door(room: str) -> None:
    """`from checkpoint import X` inside the package would make a circle; what shows usage to people may."""
    by_the_door = {
        alias.name
        for node in ast.walk(syntax(room))
        if isinstance(node, ast.ImportFrom) and node.module == "checkpoint"
        for alias in node.names
    } - ROOMS.keys()
    assert not by_the_door or room in ("demo", "cli")


def test_imports_make_no_circle() -> None:
    """They run in a straight line."""
    assert list(TopologicalSorter({room: neighbours(room) for room in rooms()}).static_order())


def test_the_door_only_imports_and_lists() -> None:
    """A docstring, imports, and `__all__`, which names all of them."""
    tree = syntax("__init__")
    docstring, *rest = tree.body
    assert isinstance(docstring, ast.Expr)
    names = []
    for node in rest:
        assert isinstance(node, (ast.Import, ast.ImportFrom, ast.Assign)), ast.dump(node)
        if isinstance(node, ast.Assign):
            assert isinstance(node.targets[0], ast.Name)
            assert node.targets[0].id == "__all__"
        elif not (isinstance(node, ast.ImportFrom) and node.module == "checkpoint"):  # a room that is for its effect
            names += [alias.asname or alias.name for alias in node.names]
    assert sorted(names) == sorted(checkpoint.__all__)


@pytest.mark.parametrize("room", rooms())
def test_time_is_asked_for_in_the_clock_only(room: str) -> None:
    """So that tests can tick it."""
    calls = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(syntax(room))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id == "time" or (node.value.id, node.attr) in {("datetime", "now"), ("datetime", "utcnow")})
    ]
    allowed = room == "clock" or room == "codecs"  # where `time` is a class of values, from datetime
    assert allowed or not calls
    assert room == "clock" or "time" not in set(imported(room))


@pytest.mark.parametrize("room", rooms())
def test_rooms_have_plain_names(room: str) -> None:
    """A name that says what is in it."""
    assert room not in {"utils", "util", "helpers", "core", "base", "common", "misc", "types"}


@pytest.mark.parametrize("room", rooms())
def test_every_room_lists_what_it_offers(room: str) -> None:
    """What `__all__` names is there; private names of other rooms are not imported."""
    module = importlib.import_module(f"checkpoint.{room}")
    for name in getattr(module, "__all__", ()):
        assert hasattr(module, name)
    for node in ast.walk(syntax(room)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("checkpoint"):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]


def test_importing_the_package_imports_nothing_heavy() -> None:
    """What a user's process does not have already is not imported for it."""
    script = "import sys, checkpoint; print(*sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    heavy = {"numpy", "pydantic", "attr", "attrs", "tqdm", "pandas", "polars", "multiprocessing"}
    assert not heavy & set(done.stdout.split())


def test_every_public_name_is_documented() -> None:
    """Each has a docstring of its own, and so has each of its public methods."""
    for name in checkpoint.__all__:
        value = getattr(checkpoint, name)
        assert inspect.getdoc(value), name
        if inspect.isclass(value):
            for member, function in vars(value).items():
                if inspect.isfunction(function) and not member.startswith("_"):
                    assert inspect.getdoc(function), f"{name}.{member}"


@pytest.mark.parametrize("module", sorted(info.name for info in pkgutil.iter_modules(checkpoint.__path__)))
def test_examples_in_docstrings_run(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    if module == "__main__":
        return
    room = importlib.import_module(f"checkpoint.{module}")
    names = {name: getattr(checkpoint, name) for name in checkpoint.__all__}
    assert doctest.testmod(room, extraglobs=names).failed == 0
