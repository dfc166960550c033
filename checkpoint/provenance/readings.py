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
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from functools import cached_property, lru_cache, partial, partialmethod
from hashlib import blake2b
from itertools import islice
from operator import attrgetter, itemgetter
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple

import wrapt

from checkpoint.provenance.bodies import Bodies, BodyReader
from checkpoint.provenance.clocks import SURROUNDINGS, is_clock_attribute, omitted_of, rest_of
from checkpoint.provenance.fields import Field, classes_within, docstring_of, fields_of
from checkpoint.provenance.literals import is_text
from checkpoint.provenance.spelling import Value, array_value, is_array, is_plain, value_of
from checkpoint.provenance.statics import (
    ABSENT,
    dict_of,
    element_of,
    entry_of,
    holds_data,
    is_mapping,
    is_own_class,
    is_own_module,
    is_sequence,
    items_of,
    label_of,
    module_of,
    mro_of,
    of_class,
    root_of,
    static_attributes,
)
from checkpoint.provenance.syntax import is_own_file
from checkpoint.provenance.uses import Const, Ref, Step, Use, Uses, uses_of

__all__ = ["Found", "read"]

_BUILDERS = frozenset({"__init__", "__new__", "__post_init__", "__setstate__", "__set_name__", "__init_subclass__"})
_MOST_FUNCTIONS = 1000
_MOST_ELEMENTS = 200
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
_DOCUMENTS = frozenset(
    {"__doc__", "getdoc", "model_json_schema", "schema", "schema_json", "json_schema", "schema_components"}
)
_READERS = frozenset({"read_text", "read_bytes", "open", "read", "readlines", "load", "safe_load"})
_WRITERS = frozenset(
    {"write_text", "write_bytes", "write", "writelines", "touch", "unlink", "dump", "mkdir", "savefig"}
)
# Broader than `values.secrets`: what the environment gives, too, and may be a secret, is another on each machine.
_SECRET_NAME = re.compile(r"key|token|passw|pwd|secret|auth|cred|cookie|bearer|private|salt|dsn|signature", re.I)
_SECRET_TEXT = re.compile(r"://[^/\s]*@|(?=[A-Za-z]*\d)[A-Za-z0-9]{20}|^(?:sk|pk|ghp|xox\w)[-_]")
_WRITING = re.compile(r"[rwaxbt]*[wax+][bt+]*")


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


class _At(NamedTuple):
    """A value that a function comes to.

    Attributes:
        place: what holds it, and under which name.
        name: as messages name it.
        owner: the function that reads it.
        value: itself.
        holder: the object that has it as an attribute or entry, if any.
        trail: the places and objects on the way to it.
        omitted: entries that are times, ids, hosts or directories.
        attributes: of the objects on the way.
    """

    place: tuple[Any, ...]
    name: str
    owner: str
    value: Any
    holder: Any = None
    trail: tuple[Any, ...] = ()
    omitted: frozenset[str] = frozenset()
    attributes: tuple[str, ...] = ()

    def part(self, place: tuple[Any, ...], name: str, value: Any, holder: Any = None) -> _At:
        """A part of the value."""
        attributes = self.attributes if holder is None else (*self.attributes, place[-1])
        trail = (*self.trail, self.place, id(self.value))
        return _At(place, name, self.owner, value, holder, trail, attributes=attributes)


def read(function: Any, *, bound: bool = False, extra: tuple[Any, ...] = ()) -> Found:
    """Read a function.

    Args:
        function: any callable.
        bound: whether the attributes of the instance that it is bound to are told by a version.
        extra: functions that count besides those that it calls.
    """
    return _Reading(function, bound).read(extra)


class _Reading:
    """One reading of a function and of what it leads to."""

    def __init__(self, function: Any, bound: bool) -> None:
        self._root = function
        self._bound = bound
        self._todo: deque[FunctionType] = deque()
        self._alive: list[Any] = []  # what places are named by the ids of
        self._seen: set[int] = set()
        self._bodies = BodyReader()
        self._reads: dict[tuple[Any, ...], tuple[_At, bool]] = {}
        self._names: set[str] = set()  # attributes that are read anywhere
        self._stored: set[str] = set()
        self._set: set[Any] = set()  # places that the code sets, and ids of what it changes in place
        self._entered: set[int] = set()  # ids of objects of which it sets a part
        self._classes: dict[int, Any] = {}
        self._members: set[tuple[int, str]] = set()
        self._instances: list[_At] = []
        self._built: set[int] = set()  # classes whose defaults are read
        self._documented: set[int] = set()  # and those whose docstrings are
        self._whole: set[int] = set()  # classes whose methods hand their objects on
        self._bindings: set[tuple[Any, ...]] = set()
        self._texts: list[tuple[str, tuple[str, ...]]] = []  # that may name files, with the path of the code
        self._reads_files = False
        self._paths: dict[tuple[Any, ...], str] = {}  # of files, which lie elsewhere on each machine
        self._written: set[tuple[Any, ...]] = set()  # places of paths that the code writes to
        self._written_names: set[str] = set()  # and attributes of code that writes files

    def read(self, extra: tuple[Any, ...]) -> Found:
        self._follow(_At((), "", "", self._root))
        for one in extra:
            self._follow(_At((), "", "", one))
        while self._todo and len(self._seen) < _MOST_FUNCTIONS:
            self._read(self._todo.popleft())
            if not self._todo:
                self._read_members()
                self._follow_attributes()
        for at in self._instances:
            self._read_instance(at)
        values, held, unread, texts = self._values()
        return Found(self._bodies.bodies(), values, self._looked(), held, unread, texts)

    # functions

    def _follow(self, at: _At, *, depth: int = 0) -> None:
        """Whatever code of the user's own stands behind a value is to be read."""
        value = at.value
        kind = type(value)
        if kind in _SCALARS:
            return
        if kind is FunctionType:
            self._add(value)
        elif kind is MethodType:
            self._add(value.__func__)
            self._follow_instance(at._replace(value=value.__self__, name=at.name or "self"), told=self._is_told(value))
        elif kind is partial:
            self._follow_partial(value)
        elif kind is staticmethod or kind is classmethod:
            self._follow(at._replace(value=value.__func__))
        elif kind is property:
            for part in (value.fget, value.fset):
                self._follow(at._replace(value=part))
        elif kind is cached_property or kind is partialmethod:
            self._follow(at._replace(value=value.func))
        elif issubclass(kind, type):
            self._add_class(value)
        elif kind in (list, tuple, dict, set, frozenset, MappingProxyType) and depth < 2:
            self._follow_parts(at, depth)
        elif issubclass(kind, wrapt.FunctionWrapper) or issubclass(kind, wrapt.BoundFunctionWrapper):
            self._follow(at._replace(value=object.__getattribute__(value, "__wrapped__")))
        elif kind is not ModuleType and not is_plain(value):
            self._follow_object(at)

    def _is_told(self, method: MethodType) -> bool:
        return self._bound and method is self._root

    def _follow_parts(self, at: _At, depth: int) -> None:
        if is_plain(at.value):
            return
        parts = at.value if type(at.value) is not dict else at.value.values()
        if type(at.value) is MappingProxyType:
            parts = [part for _, part in items_of(at.value) or ()]
        for one in islice(parts, _MOST_ELEMENTS):
            if not is_plain(one):
                self._follow(at.part((id(at.value), id(one)), f"{at.name}[…]", one), depth=depth + 1)

    def _follow_object(self, at: _At) -> None:
        """An object leads to the function that it wraps, and to the methods of its class."""
        value, held = at.value, dict_of(at.value)
        for name in ("__wrapped__", "dispatcher"):
            if held.get(name) is not None:
                self._follow(at._replace(value=held[name]))
        self._follow_instance(at._replace(name=at.name or "self"), called=value is self._root)
        if "__wrapped__" not in held and not is_own_class(type(value)):
            for one in islice(held.values(), _MOST_ELEMENTS):  # such as the function that a compiler has compiled
                if type(one) is FunctionType and is_own_file(one.__code__.co_filename):
                    self._add(one)

    def _add(self, function: Any) -> None:
        if type(function) is not FunctionType:
            self._follow(_At((), "", "", function))
        elif id(function) not in self._seen:
            self._seen.add(id(function))
            self._alive.append(function)
            self._todo.append(function)

    def _follow_partial(self, given: Any) -> None:
        self._alive.append(given)
        function, shift = _own_function(given.func)
        for place, value in [*enumerate(given.args), *given.keywords.items()]:
            names = () if function is None else uses_of(function.__code__).arguments[shift:]
            position = f"argument {place + 1}" if type(place) is int and place >= len(names) else ""
            name = position or (names[place] if type(place) is int else place)
            self._hand_over(_At((id(given), name), name, "", value), function, place, shift)
        self._follow(_At((), "", "", given.func))

    def _read(self, function: FunctionType) -> None:
        code = function.__code__
        if not is_own_file(code.co_filename) and (self._follow_beneath(function) or self._bodies):
            return
        uses = uses_of(code)
        name = str(function.__qualname__).replace("<locals>.", "")
        label = f"{name}() in {_file_of(code.co_filename)}"
        self._bodies.add(label, code, function.__globals__)
        self._names |= uses.names
        if function.__name__ not in _BUILDERS:
            self._stored |= uses.stored
        writes = self._read_files(code, uses)
        self._read_defaults(function, name)
        beneath = dict_of(function)
        for attribute in ("__wrapped__", "registry"):
            if beneath.get(attribute) is not None:
                self._follow(_At((), "", name, beneath[attribute]))
        for use in uses.outer:
            at = self._variable(function, use.ref, name)
            if writes or (at is None and self._is_written_by(use, function)):
                self._written.add(self._place_of(function, use.ref))
            if use.how in ("set", "changed"):
                self._mark(at, function, use)
            elif at is not None:
                self._use(at, use, function)

    def _follow_beneath(self, function: FunctionType) -> bool:
        """What an installed function wraps: as it says itself, or in the variables that it closes over."""
        count, held = len(self._seen), dict_of(function)
        todo = [held[name] for name in ("__wrapped__", "registry") if held.get(name) is not None]
        todo = todo or [cell.cell_contents for cell in function.__closure__ or () if not _is_empty(cell)]
        for one in todo:
            if type(one) in (FunctionType, MethodType, partial, MappingProxyType) or dict_of(one).get("__wrapped__"):
                self._follow(_At((), "", "", one))
        return len(self._seen) > count

    def _read_defaults(self, function: FunctionType, owner: str) -> None:
        code, given = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(given) : code.co_argcount]
        for name, value in {**dict(zip(names, given, strict=True)), **(function.__kwdefaults__ or {})}.items():
            omitted = omitted_of(code.co_filename, owner, name, sys.modules)
            if omitted is not None:
                at = _At((id(function), name), name, owner, value, omitted=omitted)
                self._hand_over(at, function, name, 0)

    # variables, and the steps to their parts

    def _variable(self, function: FunctionType, ref: Ref, owner: str) -> _At | None:
        """A variable of the outer scopes; None where it is not set, or is no matter."""
        name = ref.name
        scopes: Iterable[str] = ("",)
        if ref.root == "global":
            scope = function.__globals__
            if name not in scope or (name.startswith("__") and name != "__doc__"):
                return None
            place, value = (id(scope), name), scope[name]
        elif ref.root == "free":
            cell = _cells(function).get(name)
            if cell is None or _is_empty(cell):
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
                    self._note_path(place, value)
                    return None
                omitted |= found
        return _At(place, name, owner, value, omitted=omitted)

    def _read_rest(self, path: str, scope: str, place: tuple[Any, ...], name: str, function: FunctionType) -> None:
        """Note what else a variable that holds a time, id or host is made of, such as the rest of a prompt."""
        rest = rest_of(path, scope, name)
        for number, text in enumerate(rest.texts):
            self._note(_At((*place, number), name, scope, text))
        for one in rest.names if not scope else ():
            value = function.__globals__.get(one)
            if is_plain(value) and (rest.texts or (type(value) is str and is_text(value))):
                self._note(_At((id(function.__globals__), one), one, "", value))

    def _note_path(self, place: tuple[Any, ...], value: Any) -> None:
        """A path of this machine may name a file that is read."""
        if _is_path(value):
            self._paths[place] = str(value)

    def _walk(self, at: _At, path: tuple[Step, ...]) -> Iterator[tuple[_At, tuple[Step, ...]]]:
        """The parts that steps lead to, each with the steps that lead no further."""
        for number, step in enumerate(path):
            if step.kind == "*":
                for one in _elements(at.value):
                    if not is_plain(one):
                        yield from self._walk(
                            at.part((id(at.value), id(one)), f"{at.name}[…]", one), path[number + 1 :]
                        )
                return
            found = self._part(at, step)
            if found is None:
                yield at, path[number:]
                return
            if found.name == "":
                return
            at = found
        yield at, ()

    def _part(self, at: _At, step: Step) -> _At | None:
        """One part of a value; None where it has none that can be told, and an empty name where that is no matter."""
        value, key, kind = at.value, step.key, type(at.value)
        if step.kind == "." and type(key) is str and key.startswith("__"):
            return None
        if kind is ModuleType:
            return self._module_part(at, key)
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
        if is_mapping(value) and not _is_own_code(of_class(kind, "__getitem__")):
            found = entry_of(value, key)
            if found is ABSENT and step.kind == "[" and not issubclass(kind, dict):
                return None
            return at.part((id(value), key), f"{at.name}[{_quoted(key)}]", None if found is ABSENT else found, value)
        if step.kind == "get":
            return self._attribute(at, "get")
        return None

    def _module_part(self, at: _At, name: str) -> _At | None:
        found = dict_of(at.value)
        module = found.get("__name__")
        if name not in found or not (is_own_module(module) or (module == "os" and name == "environ")):
            return None
        omitted = omitted_of(str(found.get("__file__")), "", name, sys.modules)
        part = at.part((id(found), name), f"{at.name}.{name}", found[name])
        return part._replace(name="") if omitted is None else part._replace(omitted=omitted)

    def _attribute(self, at: _At, name: str) -> _At | None:
        value, kind = at.value, type(at.value)
        if name in at.omitted:
            return at._replace(name="")
        place, label = (id(value), name), f"{at.name}.{name}"
        if issubclass(kind, type):
            if name in _DOCUMENTS and holds_data(value):
                return None
            members = dict_of(value).get("_member_map_") if issubclass(value, Enum) else None
            member = members[name] if type(members) is dict and name in members else of_class(value, name)
            if member is None:
                return None
            self._add_class(value)
            part = at.part(place, label, member, value)
            return part._replace(name="") if self._is_clock(value, name) else part
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
            return part._replace(name="") if self._is_clock(kind, name) else part
        if member is None and is_mapping(value) and (entry := entry_of(value, name)) is not ABSENT:
            return at.part(place, label, entry, value)
        return None

    def _is_clock(self, cls: type, name: str) -> bool:
        module = sys.modules.get(module_of(cls))
        path = None if module is None else dict_of(module).get("__file__")
        return type(path) is str and is_clock_attribute(path, name)

    # what is done with a value

    def _use(self, at: _At, use: Use, function: FunctionType) -> None:
        if use.how in ("set", "changed"):
            self._mark(at, function, use)
            return
        for part, rest in self._walk(at, use.ref.path) if use.ref.path else ((at, ()),):
            if rest:
                self._use_further(part, rest, use, function)
            elif use.how == "argument":
                self._hand_on(part, use, function)
            elif use.how == "read":
                self._read_whole(part)
            elif part.value is os.getenv and use.how == "called":
                self._use_variable(at, use, function)
            else:
                self._note(part, deep=False)
                self._follow(part)
                if issubclass(type(part.value), type) and use.how != "tested":
                    self._read_class(part)
                elif issubclass(type(part.holder), type) and use.how == "called":  # it makes objects, maybe
                    self._read_class(part._replace(value=part.holder, name=part.name.rpartition(".")[0]))

    def _use_further(self, at: _At, rest: tuple[Step, ...], use: Use, function: FunctionType) -> None:
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
        if name in _DOCUMENTS and (issubclass(kind, type) or kind is FunctionType):
            self._read_documents(at)
        elif issubclass(kind, type):
            self._note(at, deep=False)
            self._follow(at)
            self._read_class(at)
        elif (is_own_class(kind) or holds_data(kind)) and not issubclass(kind, Enum):
            member = of_class(kind, str(name))
            self._note(at)
            self._follow(at)
            if not _is_own_code(member) and (member is not None or name == "__dict__"):
                self._read_whole(at)
        else:
            self._note(at)
            self._follow(at)

    def _use_variable(self, at: _At, use: Use, function: FunctionType) -> None:
        """`os.getenv("X")` reads a variable of the environment."""
        if use.given and type(use.given[0]) is Const:
            environ = at._replace(place=(id(os), "environ"), name="os.environ", value=os.environ)
            self._use(environ, Use(Ref("", "", (Step("get", use.given[0].value),)), "read"), function)

    def _hand_on(self, at: _At, use: Use, function: FunctionType) -> None:
        """A value is an argument of a call."""
        callee, shift, name = self._callee(use.callee, function)
        if use.place == "out" or (name in _MUTATORS and use.place == 0):
            self._change(at)
        if callee is not None:
            self._hand_over(at, callee, use.place, shift)
        elif name in _SHALLOW:
            self._note(at, deep=False)
            self._follow(at)
        elif name in _DOCUMENTS and (issubclass(type(at.value), type) or type(at.value) is FunctionType):
            self._read_documents(at)
        elif issubclass(type(at.value), type) and self._is_foreign_callee(use.callee, function):
            self._follow(at)
            self._read_class(at, documents=True)
        else:
            parts = self._parts_that_are_got(use.callee, function)
            for step in parts or ():
                self._use(at, Use(Ref("", "", (step,)), "read"), function)
            if not parts:
                self._read_whole(at)

    def _hand_over(self, at: _At, function: FunctionType | None, place: Any, shift: int) -> None:
        """A value is an argument of a function of the user's own: it counts as far as that reads it."""
        if function is None:
            self._read_whole(at)
            return
        uses, name = uses_of(function.__code__), place
        if _is_path(at.value) and _writes(uses):
            self._written.add(at.place)
        if type(place) is int:
            name = uses.arguments[place + shift] if place + shift < len(uses.arguments) else None
        if name not in uses.followed or type(at.value) in _SCALARS:
            self._read_whole(at)
            for use in uses.inner:
                if use.ref.name == name and use.how in ("set", "changed"):
                    self._mark(at, function, use)
            return
        binding = (id(at.value), id(function), name, at.place)
        if binding in self._bindings:
            return
        self._bindings.add(binding)
        self._alive.append(at.value)
        self._add(function)
        used = False
        for use in uses.inner:
            if use.ref.name == name:
                used = True
                self._use(at, use, function)
        if not used and at.place[:1] == (id(function),):
            self._read_whole(at)  # a default that the code reads in no way that is seen

    def _callee(self, ref: Ref | None, function: FunctionType) -> tuple[FunctionType | None, int, str]:
        """The user's own function that is called, how many of its arguments are bound, and its name."""
        if ref is None:
            return None, 0, ""
        name = str(ref.path[-1].key if ref.path else ref.name)
        at = self._variable(function, ref, "")
        if at is None:
            return None, 0, name
        for part, rest in self._walk(at, ref.path):
            if not rest:
                return (*_own_function(part.value), name)
            if len(rest) == 1 and not issubclass(type(part.value), type):
                member = of_class(type(part.value), str(rest[0].key))
                if type(member) is staticmethod:
                    return (*_own_function(member.__func__), name)
                found, shift = _own_function(member.__func__ if type(member) is classmethod else member)
                return found, shift + 1, name
        return None, 0, name

    def _called_value(self, ref: Ref | None, function: FunctionType) -> Any:
        at = None if ref is None else self._variable(function, ref, "")
        found = [part.value for part, rest in self._walk(at, ref.path) if not rest] if at and ref else []
        return found[0] if len(found) == 1 else None

    def _is_foreign_callee(self, ref: Ref | None, function: FunctionType) -> bool:
        """Whether it is neither a builtin nor one of the standard library's, which make nothing of a docstring."""
        if ref is None:
            return False
        at = self._variable(function, ref, "")
        if at is None:
            return False
        for part, _ in self._walk(at, ref.path):
            cls = part.value if issubclass(type(part.value), type) else type(part.value)
            if type(part.value) is ModuleType:
                root = str(dict_of(part.value).get("__name__")).partition(".")[0]
            elif type(part.value) is FunctionType:
                root = str(part.value.__module__).partition(".")[0]
            else:
                root = root_of(cls)
            return root not in sys.stdlib_module_names and root != "builtins"
        return False

    def _parts_that_are_got(self, ref: Ref | None, function: FunctionType) -> list[Step]:
        """The parts that `itemgetter("a")` or `attrgetter("a")` gets of its argument."""
        getter = self._called_value(ref, function)
        if type(getter) not in (itemgetter, attrgetter):
            return []
        kind: Any = "[" if type(getter) is itemgetter else "."
        given = getter.__reduce__()[1]
        return [Step(kind, key) for key in given] if all("." not in str(key) for key in given) else []

    def _read_whole(self, at: _At, depth: int = 0) -> None:
        """All that a value holds counts."""
        kind = type(at.value)
        self._note(at)
        if kind in _SCALARS:
            return
        self._follow(at)
        if kind is ModuleType:
            self._read_module(at)
        for one in _elements(at.value):
            if is_array(one):
                self._note(at.part((id(at.value), id(one)), f"{at.name}[…]", one))
        if issubclass(kind, type):
            self._read_class(at)
        elif depth < _DEEPEST and not issubclass(kind, Enum) and (is_own_class(kind) or holds_data(kind)):
            self._alive.append(at.value)
            for name, value in list(static_attributes(at.value)):
                if not (name.startswith("__") or name in at.omitted or self._is_clock(kind, name)):
                    part = at.part((id(at.value), name), f"{at.name}.{name}", value, at.value)
                    self._read_whole(part, depth + 1)

    def _read_module(self, at: _At) -> None:
        """A module of the user's own that is handed on, as by `getattr(prompts, name)`: its constants and functions."""
        held = dict_of(at.value)
        if not is_own_module(held.get("__name__")):
            return
        for name, value in list(held.items())[:_MOST_ELEMENTS]:
            part = None if name.startswith("_") else self._module_part(at, name)
            if part is None or not part.name:
                continue
            if is_plain(value):
                self._note(part)
            elif type(value) is FunctionType and value.__globals__ is held:
                self._follow(part)

    def _read_class(self, at: _At, *, documents: bool = False) -> None:
        """The defaults of a class of data, whose objects the code makes; of an Enum, its members."""
        cls = at.value
        if not is_own_class(cls):
            return
        self._built.add(id(cls))
        members = dict_of(cls).get("_member_map_") if issubclass(cls, Enum) else None
        if type(members) is dict:
            for name, member in members.items():
                self._note(at.part((id(cls), name), f"{at.name}.{name}", member, cls))
            return
        for field in fields_of(cls):
            if field.factory is not None:
                self._follow(at._replace(value=field.factory))
            self._note_field(at, field, is_clock=self._is_clock(cls, field.name))
            for inner in classes_within(field.type):
                if id(inner) not in self._built:
                    self._read_class(at._replace(name=label_of(inner), value=inner), documents=documents)
        if documents and holds_data(cls):
            self._read_documents(at)

    def _note_field(self, at: _At, field: Field, *, is_clock: bool = False) -> None:
        for suffix, value in (("", field.default), (" description", field.description)):
            if value is not ABSENT and not (is_clock and not suffix):
                place = (id(at.value), field.name + suffix)
                self._note(at.part(place, f"{at.name}.{field.name}{suffix}", value, at.value))

    def _read_documents(self, at: _At) -> None:
        """The docstring of a function or class is read, with those of the classes in its fields."""
        self._follow(at)
        text = docstring_of(at.value)
        if text is not None:
            self._note(at.part((id(at.value), "__doc__"), f"{at.name}.__doc__", text, at.value))
        if issubclass(type(at.value), type) and id(at.value) not in self._documented:
            self._documented.add(id(at.value))
            for field in fields_of(at.value):
                self._note_field(at, field)
                for inner in classes_within(field.type):
                    self._read_documents(at._replace(name=label_of(inner), value=inner))

    # what is set or changed

    def _mark(self, at: _At | None, function: FunctionType, use: Use) -> None:
        """The code sets a variable or a part of a value, or changes a value in place: that is its state."""
        ref = use.ref
        if use.how == "set" and not ref.path:
            scope: Any = function.__globals__ if ref.root == "global" else _cells(function).get(ref.name)
            if at is not None and ref.root == "local":
                self._set.add(at.place)
            elif scope is not None:
                self._set.add((id(scope), ref.name if ref.root == "global" else ""))
            return
        if at is None:
            return
        path, last = (ref.path[:-1], ref.path[-1]) if use.how == "set" else (ref.path, None)
        if _ANY in path:  # of which one, nobody can tell
            path, last = path[: path.index(_ANY)], None
        for part, rest in self._walk(at, path):
            if last is None or rest:
                if path == ref.path and not rest and _is_own_code(of_class(type(part.value), str(use.place))):
                    continue  # a method of the user's own, which is read
                self._change(part)
            elif type(part.value) is ModuleType:
                self._set.add((id(dict_of(part.value)), last.key))
            else:
                self._set.add((id(part.value), last.key))
                if is_plain(part.value) and type(part.value) not in (list, dict):
                    self._set.add(part.place)
                self._entered.add(id(part.value))
                self._alive.append(part.value)

    def _change(self, at: _At) -> None:
        self._set.add(at.place)
        if not (type(at.value) in _SCALARS or issubclass(type(at.value), type)):
            self._set.add(id(at.value))
            self._alive.append(at.value)

    # classes and objects

    def _add_class(self, cls: Any) -> None:
        for base in mro_of(cls):
            if id(base) not in self._classes and is_own_class(base):
                self._classes[id(base)] = base

    def _read_members(self) -> None:
        """Of each class of the user's own: the functions whose names are read anywhere, and the special ones."""
        for number, cls in list(self._classes.items()):
            for name, member in dict_of(cls).items():
                special = name.startswith("__") and name.endswith("__")
                if (number, name) in self._members or not (special or name in self._names):
                    continue
                self._members.add((number, name))
                if special and type(member) is not FunctionType:
                    continue
                function = _own_function(member)[0] if type(member) is FunctionType else None
                if function is not None and _is_generated(function):
                    continue
                self._read_member(number, cls, name, member)

    def _read_member(self, number: int, cls: Any, name: str, member: Any) -> None:
        if type(member) is FunctionType and _hands_itself_on(uses_of(member.__code__)):
            self._whole.add(number)
        label = f"{label_of(cls).rpartition('.')[2]}.{name}"
        at = _At((number, name), label, label_of(cls), member, cls, attributes=(name,))
        if is_plain(member):
            if not (self._bound and self._is_of_root(cls)) and not self._is_clock(cls, name):
                self._note(at)
        else:
            self._follow(at, depth=1)

    def _is_of_root(self, cls: Any) -> bool:
        held = getattr(self._root, "__self__", None) if type(self._root) is MethodType else None
        return any(base is cls for base in mro_of(held if issubclass(type(held), type) else type(held)))

    def _follow_instance(self, at: _At, *, told: bool = False, called: bool = False) -> None:
        value = at.value
        cls = value if issubclass(type(value), type) else type(value)
        before = len(self._classes)
        self._add_class(cls)
        if called and len(self._classes) == before:
            return
        if called:
            call = of_class(cls, "__call__")
            if call is not None:
                self._add(call)
        if cls is not value and not told and (holds_data(cls) or id(cls) in self._classes):
            self._alive.append(value)
            self._instances.append(at)

    def _follow_attributes(self) -> None:
        """Functions and objects that an object of the user's own class holds are code that it calls."""
        for at in list(self._instances):
            for name, value in list(static_attributes(at.value)):
                if name in self._names and (id(at.value), name) not in self._members:
                    self._members.add((id(at.value), name))
                    self._follow(at.part((id(at.value), name), f"{at.name}.{name}", value, at.value))

    def _read_instance(self, at: _At) -> None:
        """What the methods of the user's own class read of an object."""
        cls = type(at.value)
        whole = any(id(base) in self._whole for base in mro_of(cls))
        for name, value in list(static_attributes(at.value)):
            if (name in self._names or whole) and not (name in at.omitted or self._is_clock(cls, name)):
                self._note(at.part((id(at.value), name), f"{at.name}.{name}", value, at.value))

    # files

    def _place_of(self, function: FunctionType, ref: Ref) -> tuple[Any, ...]:
        if ref.root == "global":
            return (id(function.__globals__), ref.name)
        return (id(_cells(function).get(ref.name)), "")

    def _is_written_by(self, use: Use, function: FunctionType) -> bool:
        """Whether a path is given to a function that writes files."""
        callee = self._callee(use.callee, function)[0] if use.how == "argument" else None
        return callee is not None and _writes(uses_of(callee.__code__))

    def _read_files(self, code: CodeType, uses: Uses) -> bool:
        """Note the texts that may name files which the code reads; whether it writes some instead."""
        if _writes(uses):
            self._written_names |= uses.names
            return True
        opened = any(use.ref == _OPEN and use.how == "called" for use in uses.outer)
        self._reads_files |= opened or not uses.names.isdisjoint(_READERS)
        if uses.texts:
            self._texts.append((code.co_filename, uses.texts))
        return False

    def _looked(self) -> dict[str, Value]:
        """Arrays, variables of the environment, and files that the code names and reads.

        Machines differ in their environment, and a program may set it for one map and not for the next.
        """
        found = {}
        for at, _ in self._reads.values():
            is_variable = at.holder is os.environ
            value = value_of(at.name, at.value) if is_variable else array_value(at.value)
            if value is not None and not self._is_state(at):
                name = f"the {'variable' if is_variable else 'array'} {at.name}"
                while name in found:
                    name += "'"
                found[name] = value
        if not self._reads_files:
            return found
        named = {text: os.path.dirname(path) for path, texts in self._texts for text in texts}
        for place, path in [*((at.place, at.value) for at, _ in self._reads.values()), *self._paths.items()]:
            is_attribute = place[-1:] and place[-1] in self._written_names
            if _is_path(path) and place not in self._written and not is_attribute:
                named.setdefault(str(path), "")
        for text, directory in named.items():
            for path in (text, os.path.join(directory, text)) if directory else (text,):
                if (value := _file_value(path)) is not None:
                    found[f"the file {PurePath(text).name}"] = value
                    break
        return found

    # values

    def _note(self, at: _At, *, deep: bool = True) -> None:
        if at.place and at.name and (at.place not in self._reads or (deep and not self._reads[at.place][1])):
            self._reads[at.place] = (at, deep)

    def _is_state(self, at: _At) -> bool:
        if at.holder is not None and not self._stored.isdisjoint((at.place[-1], *at.attributes)):
            return True
        if not self._set:
            return False
        here = (at.place, id(at.value))
        return not self._set.isdisjoint((*here, *at.trail)) or (
            id(at.value) in self._entered and not is_own_class(type(at.value))
        )

    def _is_secret(self, at: _At) -> bool:
        """Whether a value is an API key or the like that the environment gives: another one changes no result."""
        value = at.value
        if type(value) is not str or not 8 <= len(value) < 1000:
            return False
        if not (_SECRET_NAME.search(at.name) or _SECRET_TEXT.search(value)):
            return False
        return not self._secrets.isdisjoint((value, value.rpartition(" ")[2]))

    @cached_property
    def _secrets(self) -> frozenset[str]:
        return frozenset(
            value for name, value in os.environ.items() if len(value) >= 8 and SURROUNDINGS.fullmatch(name)
        )

    def _values(self) -> tuple[dict[str, Value], dict[str, Any], dict[str, str], dict[str, str]]:
        values: dict[str, Value] = {}
        held: dict[str, Any] = {}
        unread: dict[str, str] = {}
        texts: dict[str, str] = {}
        for at, deep in self._reads.values():
            if at.holder is os.environ or self._is_state(at) or self._is_secret(at):
                continue
            value = value_of(at.name, _without(at.value, at.omitted), deep=deep)
            if value is None:
                if _is_opaque(at.value) and not is_array(at.value):
                    unread[at.name] = f"{root_of(type(at.value))}.{label_of(type(at.value))}"
                continue
            name = at.name
            if name in values:
                name = f"{name} of {at.owner}()" if at.owner else f"{name}#2"
            while name in values:
                name += "'"
            values[name] = value
            held[name] = at.value if type(at.value) in _HOLDERS else at.holder
            if type(at.value) is str:
                texts[name] = at.value
        return values, held, unread, texts


_OPEN, _ANY = Ref("global", "open"), Step("*")
_SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_HOLDERS = frozenset({list, dict, set, deque, bytearray})


def _without(value: Any, omitted: frozenset[str]) -> Any:
    """A mapping less some of its entries."""
    if not omitted or not is_mapping(value):
        return value
    return {key: part for key, part in items_of(value) or () if key not in omitted}


def _is_opaque(value: Any) -> bool:
    """Whether a value is an object of an installed class that may hold what a result depends on."""
    kind = type(value)
    if kind in (FunctionType, BuiltinFunctionType, MethodType, ModuleType) or issubclass(kind, type):
        return False
    root = root_of(kind)
    return root not in sys.stdlib_module_names and root not in ("builtins", "checkpoint", "") and not is_own_class(kind)


def _elements(value: Any) -> Iterator[Any]:
    """Some of the parts of a container, as iterating or indexing gives them."""
    kind = type(value)
    if issubclass(kind, (list, tuple, set, frozenset)) and not is_plain(value):
        base = next(base for base in (list, tuple, set, frozenset) if issubclass(kind, base))
        yield from islice(base.__iter__(value), _MOST_ELEMENTS)
    elif issubclass(kind, dict) and not is_plain(value):
        yield from islice(dict.values(value), _MOST_ELEMENTS)


def _writes(uses: Uses) -> bool:
    """Whether the code writes files."""
    opened = [use for use in uses.outer if use.ref == _OPEN and use.how == "called"]
    modes = [given.value for use in opened for given in use.given[1:2] if type(given) is Const]
    writes = any(type(mode) is str and _WRITING.fullmatch(mode) for mode in modes)
    return writes or not uses.names.isdisjoint(_WRITERS)


def _is_path(value: Any) -> bool:
    """Whether a value may be the name of a file."""
    return (type(value) is str and 0 < len(value) < 200) or issubclass(type(value), PurePath)


def _quoted(key: Any) -> str:
    return f'"{key}"' if type(key) is str else repr(key)


def _file_value(path: str) -> Value | None:
    """The digest of a file's content; None where there is none."""
    try:
        if not os.path.isfile(path) or path.endswith((".py", ".pyc")):
            return None
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = blake2b(str(size).encode() + file.read(1 << 20), digest_size=16)
            if size > 2 << 20:
                file.seek(-(1 << 20), os.SEEK_END)
            digest.update(file.read(1 << 20))
    except (OSError, ValueError):
        return None
    return Value(digest.hexdigest(), f"a file of {size:,} bytes")


# --- names, files, functions -----------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _file_of(path: str) -> str:
    """A file as messages name it; each run of a notebook's cell has another one."""
    return "a cell" if path.startswith("<") or "ipykernel" in path else PurePath(path).name


def _cells(function: FunctionType) -> dict[str, CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _is_empty(cell: CellType) -> bool:
    """Whether the variable is not set yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def _outer_scopes(owner: str) -> list[str]:
    """The functions around a function, by their names within the module."""
    scopes = []
    while owner:
        owner = owner.rpartition(".")[0]
        if owner:
            scopes.append(owner)
    return scopes


def _own_function(value: Any) -> tuple[FunctionType | None, int]:
    """The user's own function beneath a value that is called, and how many arguments are bound already."""
    shift = 0
    for _ in range(20):
        kind = type(value)
        if kind is MethodType:
            value, shift = value.__func__, shift + 1
        elif kind is partial and not value.args:
            value = value.func
        elif issubclass(kind, (wrapt.FunctionWrapper, wrapt.BoundFunctionWrapper)):
            value = object.__getattribute__(value, "__wrapped__")
        elif issubclass(kind, type):
            if not is_own_class(value):
                return None, 0
            value, shift = of_class(value, "__init__"), 1
            if type(value) is not FunctionType or _is_generated(value):
                return None, 0
        elif (wrapped := dict_of(value).get("__wrapped__")) is not None:
            value = wrapped
        else:
            break
    is_own = type(value) is FunctionType and is_own_file(value.__code__.co_filename)
    return (value, shift) if is_own else (None, 0)


def _is_own_code(member: Any) -> bool:
    """Whether a member of a class is the user's own function, or is made of one."""
    if type(member) is property:
        member = member.fget
    elif type(member) is cached_property:
        member = member.func
    function, _ = _own_function(getattr(member, "__func__", member) if type(member) in _BOUND else member)
    return function is not None and not _is_generated(function)


def _is_generated(function: FunctionType) -> bool:
    """Whether dataclass or NamedTuple made it; cloudpickle gives such code, once it was sent, another file name."""
    code = function.__code__
    is_of_tuple = function.__name__ == "__new__" and code.co_name == "<lambda>"
    return code.co_filename == "<string>" or is_of_tuple or code.co_qualname.startswith("__create_fn__.")


_BOUND: tuple[Callable[..., Any], ...] = (staticmethod, classmethod)


def _hands_itself_on(uses: Uses) -> bool:
    """Whether a method uses its object for more than attributes."""
    own = uses.arguments[:1]
    return any(
        use.ref.name == own[0]
        and use.ref.path[:1] in ((), (Step(".", "__dict__"),))
        and use.how in ("read", "argument")
        for use in uses.inner
        if own
    )


def _is_data_descriptor(member: Any) -> bool:
    return (
        member is not None
        and type(member) is not MemberDescriptorType
        and of_class(type(member), "__set__") is not None
    )
