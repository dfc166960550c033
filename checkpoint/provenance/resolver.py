"""Find the value that a name in the code stands for, and the parts that steps from there lead to.

The promise: nothing of the user's is run: no property, no `__getattr__`, no `__getitem__`. A variable that each process
sets to something else, such as a time or an id, stands for no value.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from enum import Enum
from itertools import islice
from operator import attrgetter, itemgetter
from types import (
    BuiltinFunctionType,
    CellType,
    FunctionType,
    MemberDescriptorType,
    ModuleType,
)
from typing import Any

from checkpoint.provenance.clocks import SURROUNDINGS, is_clock_attribute, omitted_of, rest_of
from checkpoint.provenance.literals import is_text
from checkpoint.provenance.noted import At, NamedFiles, Noted, Place
from checkpoint.provenance.reach import MOST_ELEMENTS, Reach, is_empty, is_own_code, own_function
from checkpoint.provenance.spelling import is_plain
from checkpoint.provenance.statics import (
    ABSENT,
    dict_of,
    element_of,
    entry_of,
    holds_data,
    is_mapping,
    is_own_module,
    is_sequence,
    label_of,
    of_class,
    root_of,
    static_attributes,
)
from checkpoint.provenance.uses import Ref, Step

__all__ = ["DOCUMENTS", "Resolver", "cells_of", "elements_of"]

# Attributes and functions that give a docstring or schema, which is read then.
DOCUMENTS = frozenset(
    {"__doc__", "getdoc", "model_json_schema", "schema", "schema_json", "json_schema", "schema_components"}
)


class Resolver:
    """Finds the value of a variable, its parts, and the function that a call calls.

    Args:
        noted: where the texts are noted that a variable with a time or id is made of besides.
        files: where the paths among such variables are noted.
        reach: is given the classes on the way.
    """

    def __init__(self, noted: Noted, files: NamedFiles, reach: Reach) -> None:
        self._noted = noted
        self._files = files
        self._reach = reach

    def variable(self, function: FunctionType, ref: Ref, owner: str) -> At | None:
        """A variable of the outer scopes; None where it is not set, or is no matter."""
        name = ref.name
        scopes: Iterable[str] = ("",)
        if ref.root == "global":
            scope = function.__globals__
            if name not in scope or (name.startswith("__") and name != "__doc__"):
                return None
            place, value = (id(scope), name), scope[name]
        elif ref.root == "free":
            cell = cells_of(function).get(name)
            if cell is None or is_empty(cell):
                return None
            place, value, scopes = (id(cell), ""), cell.cell_contents, _outer_scopes(owner)
        else:
            return None
        omitted: frozenset[str] = frozenset()
        is_code = type(value) in (FunctionType, ModuleType, BuiltinFunctionType) or issubclass(type(value), type)
        if not is_code:
            for scope_name in scopes:
                path = function.__code__.co_filename
                found = omitted_of(path, scope_name, name, sys.modules)
                if found is None or found:
                    self._read_rest(path, scope_name, place, name, function)
                if found is None:
                    self._files.note_path(place, value)
                    return None
                omitted |= found
        return At(place, name, owner, value, omitted=omitted)

    def _read_rest(self, path: str, scope: str, place: Place, name: str, function: FunctionType) -> None:
        """Note what else a variable that holds a time, id or host is made of, such as the rest of a prompt."""
        rest = rest_of(path, scope, name)
        for number, text in enumerate(rest.texts):
            self._noted.note(At((*place, number), name, scope, text))
        for one in rest.names if not scope else ():
            value = function.__globals__.get(one)
            if is_plain(value) and (rest.texts or (type(value) is str and is_text(value))):
                self._noted.note(At((id(function.__globals__), one), one, "", value))

    def walk(self, at: At, path: tuple[Step, ...]) -> Iterator[tuple[At, tuple[Step, ...]]]:
        """The parts that steps lead to, each with the steps that lead no further."""
        for number, step in enumerate(path):
            if step.kind == "*":
                for one in elements_of(at.value):
                    if not is_plain(one):
                        yield from self.walk(at.part((id(at.value), id(one)), f"{at.name}[…]", one), path[number + 1 :])
                return
            found = self._part(at, step)
            if found is None:
                yield at, path[number:]
                return
            if found.name == "":
                return
            at = found
        yield at, ()

    def _part(self, at: At, step: Step) -> At | None:
        """One part of a value; None where it has none that can be told, and an empty name where that is no matter."""
        value, key, kind = at.value, step.key, type(at.value)
        if step.kind == "." and type(key) is str and key.startswith("__"):
            return None
        if kind is ModuleType:
            return self.module_part(at, key)
        if step.kind == ".":
            return self._attribute(at, key)
        if value is os.environ and type(key) is str:
            if SURROUNDINGS.fullmatch(key):
                return at._replace(name="")
            return at.part((id(value), key), f'os.environ["{key}"]', os.environ.get(key), value)
        if key in at.omitted:
            return at._replace(name="")
        if issubclass(kind, (list, tuple)) and type(key) is int:
            found = (list if issubclass(kind, list) else tuple).__getitem__(value, slice(key, key + 1 or None))
            return at.part((id(value), key), f"{at.name}[{key}]", found[0], value) if found else None
        if is_sequence(value) and type(key) is int and (element := element_of(value, key)) is not ABSENT:
            return at.part((id(value), key), f"{at.name}[{key}]", element, value)
        if is_mapping(value) and not is_own_code(of_class(kind, "__getitem__")):
            found = entry_of(value, key)
            if found is ABSENT and step.kind == "[" and not issubclass(kind, dict):
                return None
            return at.part((id(value), key), f"{at.name}[{_quoted(key)}]", None if found is ABSENT else found, value)
        if step.kind == "get":
            return self._attribute(at, "get")
        return None

    def module_part(self, at: At, name: str) -> At | None:
        found = dict_of(at.value)
        module = found.get("__name__")
        if name not in found or not (is_own_module(module) or (module == "os" and name == "environ")):
            return None
        omitted = omitted_of(str(found.get("__file__")), "", name, sys.modules)
        part = at.part((id(found), name), f"{at.name}.{name}", found[name])
        return part._replace(name="") if omitted is None else part._replace(omitted=omitted)

    def _attribute(self, at: At, name: str) -> At | None:
        value, kind = at.value, type(at.value)
        if name in at.omitted:
            return at._replace(name="")
        place, label = (id(value), name), f"{at.name}.{name}"
        if issubclass(kind, type):
            if name in DOCUMENTS and holds_data(value):
                return None
            members = dict_of(value).get("_member_map_") if issubclass(value, Enum) else None
            member = members[name] if type(members) is dict and name in members else of_class(value, name)
            if member is None:
                return None
            self._reach.add_class(value)
            part = at.part(place, label, member, value)
            return part._replace(name="") if is_clock_attribute(value, name) else part
        if kind is FunctionType:
            found = dict_of(value)
            return at.part(place, label, found[name], value) if name in found else None
        if issubclass(kind, Enum):
            found = dict_of(value)
            inner = f"_{name}_"
            return at.part(place, label, found[inner], value) if name in ("value", "name") and inner in found else None
        member = of_class(kind, name)
        if issubclass(kind, tuple) and label_of(type(member)) == "_tuplegetter":
            index = member.__reduce__()[1][0]
            return at.part((id(value), index), label, tuple.__getitem__(value, index), value)
        found = dict(static_attributes(value))
        if name in found and not _is_data_descriptor(member):
            part = at.part(place, label, found[name], value)
            return part._replace(name="") if is_clock_attribute(kind, name) else part
        if member is None and is_mapping(value) and (entry := entry_of(value, name)) is not ABSENT:
            return at.part(place, label, entry, value)
        return None

    def callee(self, ref: Ref | None, function: FunctionType) -> tuple[FunctionType | None, int, str]:
        """The user's own function that is called, how many of its arguments are bound, and its name."""
        if ref is None:
            return None, 0, ""
        name = str(ref.path[-1].key if ref.path else ref.name)
        at = self.variable(function, ref, "")
        if at is None:
            return None, 0, name
        for part, rest in self.walk(at, ref.path):
            if not rest:
                return (*own_function(part.value), name)
            if len(rest) == 1 and not issubclass(type(part.value), type):
                member = of_class(type(part.value), str(rest[0].key))
                if type(member) is staticmethod:
                    return (*own_function(member.__func__), name)
                found, shift = own_function(member.__func__ if type(member) is classmethod else member)
                return found, shift + 1, name
        return None, 0, name

    def _called_value(self, ref: Ref | None, function: FunctionType) -> Any:
        at = None if ref is None else self.variable(function, ref, "")
        found = [part.value for part, rest in self.walk(at, ref.path) if not rest] if at and ref else []
        return found[0] if len(found) == 1 else None

    def is_foreign_callee(self, ref: Ref | None, function: FunctionType) -> bool:
        """Whether it is neither a builtin nor one of the standard library's, which make nothing of a docstring."""
        if ref is None:
            return False
        at = self.variable(function, ref, "")
        if at is None:
            return False
        for part, _ in self.walk(at, ref.path):
            cls = part.value if issubclass(type(part.value), type) else type(part.value)
            if type(part.value) is ModuleType:
                root = str(dict_of(part.value).get("__name__")).partition(".")[0]
            elif type(part.value) is FunctionType:
                root = str(part.value.__module__).partition(".")[0]
            else:
                root = root_of(cls)
            return root not in sys.stdlib_module_names and root != "builtins"
        return False

    def parts_that_are_got(self, ref: Ref | None, function: FunctionType) -> list[Step]:
        """The parts that `itemgetter("a")` or `attrgetter("a")` gets of its argument."""
        getter = self._called_value(ref, function)
        if type(getter) not in (itemgetter, attrgetter):
            return []
        kind: Any = "[" if type(getter) is itemgetter else "."
        given = getter.__reduce__()[1]
        return [Step(kind, key) for key in given] if all("." not in str(key) for key in given) else []


def cells_of(function: FunctionType) -> dict[str, CellType]:
    """The variables that a function closes over, by name."""
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def elements_of(value: Any) -> Iterator[Any]:
    """Some of the parts of a container, as iterating or indexing gives them."""
    kind = type(value)
    if issubclass(kind, (list, tuple, set, frozenset)) and not is_plain(value):
        base = next(base for base in (list, tuple, set, frozenset) if issubclass(kind, base))
        yield from islice(base.__iter__(value), MOST_ELEMENTS)
    elif issubclass(kind, dict) and not is_plain(value):
        yield from islice(dict.values(value), MOST_ELEMENTS)


def _outer_scopes(owner: str) -> list[str]:
    """The functions around a function, by their names within the module."""
    scopes = []
    while owner:
        owner = owner.rpartition(".")[0]
        if owner:
            scopes.append(owner)
    return scopes


def _quoted(key: Any) -> str:
    return f'"{key}"' if type(key) is str else repr(key)


def _is_data_descriptor(member: Any) -> bool:
    return (
        member is not None
        and type(member) is not MemberDescriptorType
        and of_class(type(member), "__set__") is not None
    )
