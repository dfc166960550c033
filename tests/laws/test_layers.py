"""The house, read from its imports: twelve folders, each of which may import what its row says, and no circle."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import checkpoint
from checkpoint import locks

WORDS = {"errors", "outcomes", "clock", "locks", "version", "words"}  # whoever likes may import them
BELOW_API = {
    "values", "storage", "remote", "catalog", "provenance", "execution", "passes", "maintenance", "reporting",
}  # fmt: skip
MAY_IMPORT: dict[str, set[str]] = {
    "values": set(),
    "execution": set(),
    "storage": {"values"},
    "remote": {"storage"},
    "catalog": {"values", "storage", "remote"},
    "provenance": {"values", "storage", "catalog"},
    "maintenance": {"values", "storage", "catalog"},
    "reporting": {"values", "storage", "catalog", "maintenance"},
    "passes": {"values", "storage", "catalog", "provenance", "execution.policies", "execution.caller"},
    "api": BELOW_API,
    "cli": {*BELOW_API, "api"},
    "testing": {*BELOW_API, "api"},
}
DOORS = {"__init__", "__main__", "cli.__init__", "testing.__init__"}
SHIMS = {"calls", "clusters"}  # names that are in files on disk, or that users import
PACKAGE = Path(checkpoint.__file__).parent


def room_of(path: Path) -> str:
    """A file's module, without the package: "storage.journal"."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


ROOMS = {room_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}
INSIDE = sorted(ROOMS.keys() - {room for room in ROOMS if room.rpartition(".")[2] == "__init__"})


def syntax(room: str) -> ast.Module:
    """The syntax tree of a room."""
    return ast.parse(ROOMS[room].read_text("utf-8"))


def imported(room: str) -> Iterator[str]:
    """Every module that a room imports, inside functions and type checking too, with its package."""
    for node in ast.walk(syntax(room)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relatively: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            rooms = [name for name in names if name.partition(".")[2] in ROOMS]
            yield from rooms
            if len(rooms) < len(names):
                yield node.module or ""


def neighbours(room: str) -> set[str]:
    """The rooms of ours that a room imports; a folder is its door."""
    found = {name.partition(".")[2] for name in imported(room) if name.startswith("checkpoint.")}
    return (found | {f"{name}.__init__" for name in found}) & ROOMS.keys()


def folder_of(room: str) -> str:
    """The folder of a room; "" at the top."""
    return room.rpartition(".")[0]


def test_every_folder_has_its_row() -> None:
    """A new folder is placed in the picture before it is imported, and the picture has no more than there are."""
    assert {folder_of(room) for room in ROOMS} - {""} == MAY_IMPORT.keys()


@pytest.mark.parametrize("room", [room for room in INSIDE if folder_of(room)])
def test_rooms_import_what_their_folder_may(room: str) -> None:
    """The words at the top, their own folder, and what its row names."""
    may = MAY_IMPORT[folder_of(room)] | {folder_of(room), ""}
    strays = {
        (room, other)
        for other in neighbours(room)
        if other not in may and (folder_of(other) not in may or (not folder_of(other) and other not in WORDS))
    }
    if folder_of(room) == "cli":  # what shows usage to people may go by the door
        strays -= {(room, other) for other in ("__init__",)}
    assert not strays


def test_the_words_import_words_only() -> None:
    """What anybody may import needs nobody."""
    for room in (*WORDS, "safe_path"):
        assert neighbours(room) <= WORDS, room


@pytest.mark.parametrize("room", INSIDE)
def test_no_room_goes_out_by_the_door(room: str) -> None:
    """`from checkpoint import X` inside the package would make a circle; what shows usage to people may."""
    by_the_door = {
        alias.name
        for node in ast.walk(syntax(room))
        if isinstance(node, ast.ImportFrom) and node.module == "checkpoint"
        for alias in node.names
    } - ROOMS.keys()
    assert not by_the_door or folder_of(room) == "cli"


@pytest.mark.slow
def test_imports_make_no_circle() -> None:
    """Rooms run in a straight line, inside a folder too; and so do folders."""
    graph = {room: neighbours(room) - {"__init__"} for room in ROOMS}
    assert list(TopologicalSorter(graph).static_order())
    folders: dict[str, set[str]] = {}
    for room in INSIDE:
        folders.setdefault(folder_of(room), set()).update(map(folder_of, neighbours(room)))
    folders = {folder: others - {folder, ""} for folder, others in folders.items() if folder}
    assert list(TopologicalSorter(folders).static_order())


def test_each_folder_says_what_it_promises() -> None:
    """Its door is a docstring of at most twelve lines: its promise, its interface, whom it may import; and no code."""
    for folder in MAY_IMPORT:
        tree = syntax(f"{folder}.__init__")
        docstring = inspect.cleandoc(ast.get_docstring(tree) or "")
        assert len(docstring.splitlines()) <= 12, folder
        for part in ("promise:", "Interface:", "May import:"):
            assert part in docstring, folder
        assert len(tree.body) == 1 or f"{folder}.__init__" in DOORS, folder


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT.keys() - {"api", "cli", "testing"}))
def test_what_a_door_says_of_imports_is_the_table(folder: str) -> None:
    """Each folder whom it may import stands in its docstring, and no other."""
    (said,) = re.findall(r"May import: (.*)\.$", ast.get_docstring(syntax(f"{folder}.__init__")) or "", re.M)
    assert set(said.split(", ")) - WORDS == MAY_IMPORT[folder]


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


@pytest.mark.parametrize("room", INSIDE)
def test_time_is_asked_for_in_the_clock_only(room: str) -> None:
    """So that tests can tick it."""
    calls = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(syntax(room))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and (node.value.id == "time" or (node.value.id, node.attr) in {("datetime", "now"), ("datetime", "utcnow")})
    ]
    # in values, `time` is a class, from datetime
    allowed = room in ("clock", "values.codec", "values.envelopes", "values.revivers")
    assert allowed or not calls
    assert room == "clock" or "time" not in set(imported(room))


@pytest.mark.parametrize("room", INSIDE)
def test_rooms_have_plain_names(room: str) -> None:
    """A name that says what is in it."""
    assert not {"utils", "util", "helpers", "core", "base", "common", "misc", "types"} & set(room.split("."))


@pytest.mark.parametrize("room", [room for room in INSIDE if room != "__main__"])
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


@pytest.mark.slow
@pytest.mark.parametrize("room", [room for room in INSIDE if room != "__main__"])
def test_examples_in_docstrings_run(room: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed, in an empty directory; those of tables need what makes them."""
    for package in ("pyarrow", "polars") if room == "api.results" else ():
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)
    module = importlib.import_module(f"checkpoint.{room}")
    names = {name: getattr(checkpoint, name) for name in checkpoint.__all__}
    assert doctest.testmod(module, extraglobs=names).failed == 0


def test_every_lock_stands_in_the_one_order() -> None:
    """Whoever makes one of `threading` itself makes one that no order holds."""
    makers = {room for room in INSIDE if re.search(r"threading\.R?Lock\(", ROOMS[room].read_text("utf-8"))}
    assert makers <= {"locks", "testing.laws", "testing.trial"}


def test_a_collection_in_any_room_that_takes_locks_takes_none() -> None:
    """What is let go of while code of such a folder runs is closed by a thread: its lock may be held here."""
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {room.split(".")[1] for room in locks._ROOMS} == folders - {"cli", "testing"}
