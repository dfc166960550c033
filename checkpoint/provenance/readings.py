"""Read a function: the user's own functions that it leads to, and the values that they read.

The promise: nothing of the user's is run; a value counts as far as it is read, so of `cfg["model"]` that entry does and
its neighbours do not, and of an object that is handed on all of it does; what the functions themselves set or change is
state, and no value.

The user's own is what is neither Python's nor installed. Calls are followed by name, through globals, closures, default
values, partials, decorators, tables of single dispatch, modules and classes. What an object of an unknown class does,
and what is imported within a function, cannot be told.
"""

from __future__ import annotations

import os
import sys
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from types import FunctionType, ModuleType
from typing import Any, NamedTuple
from weakref import ref

from checkpoint.provenance.bodies import Bodies, BodyReader
from checkpoint.provenance.clocks import is_clock_attribute, omitted_of
from checkpoint.provenance.fields import Field, classes_within, docstring_of, fields_of
from checkpoint.provenance.noted import SCALARS, At, NamedFiles, Noted, Place, is_path, writes
from checkpoint.provenance.reach import MOST_ELEMENTS, Reach, is_own_code
from checkpoint.provenance.resolver import DOCUMENTS, Resolver, cells_of, elements_of
from checkpoint.provenance.spelling import Value, is_array, is_plain
from checkpoint.provenance.statics import (
    ABSENT,
    dict_of,
    holds_data,
    is_own_class,
    is_own_module,
    label_of,
    of_class,
    static_attributes,
)
from checkpoint.provenance.syntax import is_own_file
from checkpoint.provenance.uses import Const, Ref, Step, Use, uses_of

__all__ = ["Found", "read"]

_BUILDERS = frozenset({"__init__", "__new__", "__post_init__", "__setstate__", "__set_name__", "__init_subclass__"})
_DEEPEST = 6
# They change their first argument in place.
_MUTATORS = frozenset({
    "shuffle", "heappush", "heappop", "heapify", "heappushpop", "heapreplace", "insort", "insort_left", "insort_right",
    "setitem", "delitem", "iadd", "setattr", "delattr", "next", "__setattr__", "put", "swap", "fill", "copyto",
})  # fmt: skip
# They look at whether, not at what; or they only report.
_SHALLOW = frozenset({
    "isinstance", "issubclass", "type", "id", "hasattr", "callable", "debug", "info", "warning", "error", "exception",
    "critical", "log", "print", "len", "bool", "super",
})  # fmt: skip
_ANY = Step("*")


class Found(NamedTuple):
    """All that a function leads to.

    Attributes:
        bodies: the code, by function.
        values: by name.
        looked: values whose differences are told, and never refused: arrays, files, and variables of the environment.
        held: by name of a value, the container or object that holds it.
        unread: names of values that cannot be compared, with their classes.
        texts: the values that are texts, by name.
    """

    bodies: Bodies
    values: dict[str, Value]
    looked: dict[str, Value]
    held: dict[str, Any]
    unread: dict[str, str]
    texts: dict[str, str]


def read(function: Any, *, bound: bool = False, extra: tuple[Any, ...] = ()) -> Found:
    """Read a function.

    Args:
        function: any callable.
        bound: whether the attributes of the instance that it is bound to are told by a version.
        extra: functions that count besides those that it calls.
    """
    return _Reading(function, bound).read(extra)


class _Reading:
    """One reading: how each function uses the values that it comes to, and how far each counts therefore.

    `Reach` finds the functions, `Resolver` the values; `Noted` and `NamedFiles` keep what counts.
    """

    def __init__(self, function: Any, bound: bool) -> None:
        self._root = function
        self._noted = Noted()
        self._files = NamedFiles()
        self._reach = Reach(function, bound, self._noted, ref(self))
        self._resolver = Resolver(self._noted, self._files, self._reach)
        self._bodies = BodyReader()
        self._built: set[int] = set()  # classes whose defaults are read
        self._documented: set[int] = set()  # and those whose docstrings are
        self._bindings: set[tuple[Any, ...]] = set()  # of values to arguments

    def read(self, extra: tuple[Any, ...]) -> Found:
        """Read the function, and those that count besides."""
        for one in (self._root, *extra):
            self._reach.follow(At((), "", "", one))
        for function in self._reach.functions():
            self._read(function)
        self._reach.read_instances()
        values, held, unread, texts = self._noted.values()
        looked = self._noted.looked()
        if self._files.is_any_read:
            looked |= self._files.values(self._noted.reads())
        return Found(self._bodies.bodies(), values, looked, held, unread, texts)

    def _read(self, function: FunctionType) -> None:
        """Read the code of one function, its defaults, and the variables of the outer scopes that it uses."""
        code = function.__code__
        if not is_own_file(code.co_filename) and (self._reach.follow_beneath(function) or self._bodies):
            return
        uses = uses_of(code)
        name = str(function.__qualname__).replace("<locals>.", "")
        label = f"{name}() in {_file_of(code.co_filename)}"
        self._bodies.add(label, code, function.__globals__)
        self._reach.read_names(uses.names)
        if function.__name__ not in _BUILDERS:
            self._noted.set_attributes(uses.stored)
        is_writing = self._files.read_code(code, uses)
        self._read_defaults(function, name)
        for attribute in ("__wrapped__", "registry"):
            if (beneath := function.__dict__.get(attribute)) is not None:
                self._reach.follow(At((), "", name, beneath))
        for use in uses.outer:
            at = self._resolver.variable(function, use.ref, name)
            if is_writing or (at is None and self._is_written_by(use, function)):
                self._files.note_written(_place_of(function, use.ref))
            if use.how in ("set", "changed"):
                self._mark(at, function, use)
            elif at is not None:
                self._use(at, use, function)

    def _read_defaults(self, function: FunctionType, owner: str) -> None:
        code, given = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(given) : code.co_argcount]
        for name, value in {**dict(zip(names, given, strict=True)), **(function.__kwdefaults__ or {})}.items():
            omitted = omitted_of(code.co_filename, owner, name, sys.modules)
            if omitted is not None:
                at = At((id(function), name), name, owner, value, omitted=omitted)
                self.hand_over(at, function, name, 0)

    def _use(self, at: At, use: Use, function: FunctionType) -> None:
        """Read of a value what one use in a function's code needs."""
        if use.how in ("set", "changed"):
            self._mark(at, function, use)
            return
        for part, rest in self._resolver.walk(at, use.ref.path) if use.ref.path else ((at, ()),):
            if rest:
                self._use_further(part, rest, use, function)
            elif use.how == "argument":
                self._hand_on(part, use, function)
            elif use.how == "read":
                self._read_whole(part)
            elif part.value is os.getenv and use.how == "called":
                self._use_variable(at, use, function)
            else:
                self._noted.note(part, deep=False)
                self._reach.follow(part)
                if issubclass(type(part.value), type) and use.how != "tested":
                    self._read_class(part)
                elif issubclass(type(part.holder), type) and use.how == "called":  # it makes objects, maybe
                    self._read_class(part._replace(value=part.holder, name=part.name.rpartition(".")[0]))

    def _use_further(self, at: At, rest: tuple[Step, ...], use: Use, function: FunctionType) -> None:
        """A method of a value, or another part that is no data, is used."""
        value, kind, name = at.value, type(at.value), rest[0].key
        if kind is ModuleType:
            if (
                dict_of(value).get("__name__") == "os"
                and name == "getenv"
                and use.given
                and type(use.given[0]) is Const
            ):
                environ = at.part((id(value), "environ"), "os.environ", os.environ)
                self._use(environ, Use(Ref("global", "", (Step("get", use.given[0].value),)), "read"), function)
            return
        if name in DOCUMENTS and (issubclass(kind, type) or kind is FunctionType):
            self._read_documents(at)
        elif issubclass(kind, type):
            self._noted.note(at, deep=False)
            self._reach.follow(at)
            self._read_class(at)
        elif (is_own_class(kind) or holds_data(kind)) and not issubclass(kind, Enum):
            member = of_class(kind, str(name))
            self._noted.note(at)
            self._reach.follow(at)
            if not is_own_code(member) and (member is not None or name == "__dict__"):
                self._read_whole(at)
        else:
            self._noted.note(at)
            self._reach.follow(at)

    def _use_variable(self, at: At, use: Use, function: FunctionType) -> None:
        """`os.getenv("X")` reads a variable of the environment."""
        if use.given and type(use.given[0]) is Const:
            environ = at._replace(place=(id(os), "environ"), name="os.environ", value=os.environ)
            self._use(environ, Use(Ref("", "", (Step("get", use.given[0].value),)), "read"), function)

    def _hand_on(self, at: At, use: Use, function: FunctionType) -> None:
        """A value is an argument of a call."""
        callee, shift, name = self._resolver.callee(use.callee, function)
        if use.place == "out" or (name in _MUTATORS and use.place == 0):
            self._noted.change(at)
        if callee is not None:
            self.hand_over(at, callee, use.place, shift)
        elif name in _SHALLOW:
            self._noted.note(at, deep=False)
            self._reach.follow(at)
        elif name in DOCUMENTS and (issubclass(type(at.value), type) or type(at.value) is FunctionType):
            self._read_documents(at)
        elif issubclass(type(at.value), type) and self._resolver.is_foreign_callee(use.callee, function):
            self._reach.follow(at)
            self._read_class(at, documents=True)
        else:
            parts = self._resolver.parts_that_are_got(use.callee, function)
            for step in parts or ():
                self._use(at, Use(Ref("", "", (step,)), "read"), function)
            if not parts:
                self._read_whole(at)

    def hand_over(self, at: At, function: FunctionType | None, place: Any, shift: int) -> None:
        """A value is an argument of a function of the user's own: it counts as far as that reads it."""
        if function is None:
            self._read_whole(at)
            return
        uses, name = uses_of(function.__code__), place
        if is_path(at.value) and writes(uses):
            self._files.note_written(at.place)
        if type(place) is int:
            name = uses.arguments[place + shift] if place + shift < len(uses.arguments) else None
        if name not in uses.followed or type(at.value) in SCALARS:
            self._read_whole(at)
            for use in uses.inner:
                if use.ref.name == name and use.how in ("set", "changed"):
                    self._mark(at, function, use)
            return
        binding = (id(at.value), id(function), name, at.place)
        if binding in self._bindings:
            return
        self._bindings.add(binding)
        self._noted.alive.append(at.value)
        self._reach.add(function)
        used = False
        for use in uses.inner:
            if use.ref.name == name:
                used = True
                self._use(at, use, function)
        if not used and at.place[:1] == (id(function),):
            self._read_whole(at)  # a default that the code reads in no way that is seen

    def _read_whole(self, at: At, depth: int = 0) -> None:
        """All that a value holds counts."""
        kind = type(at.value)
        self._noted.note(at)
        if kind in SCALARS:
            return
        self._reach.follow(at)
        if kind is ModuleType:
            self._read_module(at)
        for one in elements_of(at.value):
            if is_array(one):
                self._noted.note(at.part((id(at.value), id(one)), f"{at.name}[…]", one))
        if issubclass(kind, type):
            self._read_class(at)
        elif depth < _DEEPEST and not issubclass(kind, Enum) and (is_own_class(kind) or holds_data(kind)):
            self._noted.alive.append(at.value)
            for name, value in list(static_attributes(at.value)):
                if not (name.startswith("__") or name in at.omitted or is_clock_attribute(kind, name)):
                    part = at.part((id(at.value), name), f"{at.name}.{name}", value, at.value)
                    self._read_whole(part, depth + 1)

    def _read_module(self, at: At) -> None:
        """A module of the user's own that is handed on, as by `getattr(prompts, name)`: its constants and functions."""
        held = dict_of(at.value)
        if not is_own_module(held.get("__name__")):
            return
        for name, value in list(held.items())[:MOST_ELEMENTS]:
            part = None if name.startswith("_") else self._resolver.module_part(at, name)
            if part is None or not part.name:
                continue
            if is_plain(value):
                self._noted.note(part)
            elif type(value) is FunctionType and value.__globals__ is held:
                self._reach.follow(part)

    def _read_class(self, at: At, *, documents: bool = False) -> None:
        """The defaults of a class of data, whose objects the code makes; of an Enum, its members."""
        cls = at.value
        if not is_own_class(cls):
            return
        self._built.add(id(cls))
        members = dict_of(cls).get("_member_map_") if issubclass(cls, Enum) else None
        if type(members) is dict:
            for name, member in members.items():
                self._noted.note(at.part((id(cls), name), f"{at.name}.{name}", member, cls))
            return
        for field in fields_of(cls):
            if field.factory is not None:
                self._reach.follow(at._replace(value=field.factory))
            self._note_field(at, field, is_clock=is_clock_attribute(cls, field.name))
            for inner in classes_within(field.type):
                if id(inner) not in self._built:
                    self._read_class(at._replace(name=label_of(inner), value=inner), documents=documents)
        if documents and holds_data(cls):
            self._read_documents(at)

    def _note_field(self, at: At, field: Field, *, is_clock: bool = False) -> None:
        for suffix, value in (("", field.default), (" description", field.description)):
            if value is not ABSENT and not (is_clock and not suffix):
                place = (id(at.value), field.name + suffix)
                self._noted.note(at.part(place, f"{at.name}.{field.name}{suffix}", value, at.value))

    def _read_documents(self, at: At) -> None:
        """The docstring of a function or class is read, with those of the classes in its fields."""
        self._reach.follow(at)
        text = docstring_of(at.value)
        if text is not None:
            self._noted.note(at.part((id(at.value), "__doc__"), f"{at.name}.__doc__", text, at.value))
        if issubclass(type(at.value), type) and id(at.value) not in self._documented:
            self._documented.add(id(at.value))
            for field in fields_of(at.value):
                self._note_field(at, field)
                for inner in classes_within(field.type):
                    self._read_documents(at._replace(name=label_of(inner), value=inner))

    def _mark(self, at: At | None, function: FunctionType, use: Use) -> None:
        """The code sets a variable or a part of a value, or changes a value in place: that is its state."""
        ref = use.ref
        if use.how == "set" and not ref.path:
            if at is not None and ref.root == "local":
                self._noted.set_variable(at.place)
            elif ref.root == "global" or ref.name in cells_of(function):
                self._noted.set_variable(_place_of(function, ref))
            return
        if at is None:
            return
        path, last = (ref.path[:-1], ref.path[-1]) if use.how == "set" else (ref.path, None)
        if _ANY in path:  # of which one, nobody can tell
            path, last = path[: path.index(_ANY)], None
        for part, rest in self._resolver.walk(at, path):
            if last is None or rest:
                if path == ref.path and not rest and is_own_code(of_class(type(part.value), str(use.place))):
                    continue  # a method of the user's own, which is read
                self._noted.change(part)
            else:
                self._noted.set_part(part, last.key)

    def _is_written_by(self, use: Use, function: FunctionType) -> bool:
        """Whether a path is given to a function that writes files."""
        callee = self._resolver.callee(use.callee, function)[0] if use.how == "argument" else None
        return callee is not None and writes(uses_of(callee.__code__))


def _place_of(function: FunctionType, ref: Ref) -> Place:
    """The place of a variable of the outer scopes."""
    if ref.root == "global":
        return (id(function.__globals__), ref.name)
    return (id(cells_of(function).get(ref.name)), "")


@lru_cache(maxsize=1024)
def _file_of(path: str) -> str:
    """A file as messages name it; each run of a notebook's cell has another one."""
    return "a cell" if path.startswith("<") or "ipykernel" in path else PurePath(path).name
