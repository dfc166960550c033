"""Find the functions, classes and objects of the user's own that a function leads to.

The promise: calls are followed by name, through globals, closures, default values, partials, decorators, tables of
single dispatch, modules and classes, and nothing of the user's is run. Of a class we read
the methods whose names occur as an attribute anywhere in the code that was reached, and all ``__special__`` ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import cached_property, partial, partialmethod
from itertools import islice
from types import (
    CellType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, Protocol
from weakref import ref

import wrapt

from checkpoint.provenance.clocks import is_clock_attribute
from checkpoint.provenance.noted import SCALARS, At, Noted
from checkpoint.provenance.spelling import is_plain
from checkpoint.provenance.statics import (
    dict_of,
    holds_data,
    is_own_class,
    items_of,
    label_of,
    mro_of,
    of_class,
    static_attributes,
)
from checkpoint.provenance.syntax import is_own_file
from checkpoint.provenance.uses import Step, Uses, uses_of

__all__ = ["MOST_ELEMENTS", "Reach", "is_empty", "is_own_code", "own_function"]

_MOST_FUNCTIONS = 1000
_PROXIES = "checkpoint.api.proxies"  # of which decorated functions are
MOST_ELEMENTS = 200
_BOUND: tuple[Callable[..., Any], ...] = (staticmethod, classmethod)


class ArgumentReader(Protocol):
    """Reads values as the arguments of functions."""

    def hand_over(self, at: At, function: FunctionType | None, place: Any, shift: int) -> None:
        """Read a value as far as a function of the user's own reads its argument; all of it, where there is none.

        Args:
            at: the value.
            function: to which it is handed.
            place: of the argument: a number or a name.
            shift: how many arguments are bound already.
        """


class Reach:
    """The functions that are to be read, and the classes and objects whose members are.

    Args:
        root: the function that is read.
        bound: whether the attributes of the instance that it is bound to are told by a version.
        noted: where values of classes and objects are noted.
        reader: reads the arguments that partials bind. Weak: else the collector alone would free what was read.
    """

    def __init__(self, root: Any, bound: bool, noted: Noted, reader: ref[ArgumentReader]) -> None:
        self._root = root
        self._bound = bound
        self._noted = noted
        self._reader = reader
        self._todo: deque[FunctionType] = deque()
        self._seen: set[int] = set()
        self._names: set[str] = set()  # attributes that are read anywhere
        self._classes: dict[int, Any] = {}
        self._members: set[tuple[int, str]] = set()
        self._instances: list[At] = []
        self._whole: set[int] = set()  # classes whose methods hand their objects on

    def functions(self) -> Iterator[FunctionType]:
        """Yield each function that is to be read once, those too that are reached while others are read."""
        while self._todo and len(self._seen) < _MOST_FUNCTIONS:
            yield self._todo.popleft()
            if not self._todo:
                self._read_members()
                self._follow_attributes()

    def read_names(self, names: frozenset[str]) -> None:
        """Reach the members of these names, of every class and object that is reached."""
        self._names |= names

    def read_instances(self) -> None:
        """Note what the methods of the user's own classes read of their objects."""
        for at in self._instances:
            self._read_instance(at)

    def follow(self, at: At, *, depth: int = 0) -> None:
        """Reach whatever code of the user's own stands behind a value."""
        value = at.value
        kind = type(value)
        if kind in SCALARS:
            return
        if kind is FunctionType:
            self.add(value)
        elif kind is MethodType:
            self.add(value.__func__)
            self._follow_instance(at._replace(value=value.__self__, name=at.name or "self"), told=self._is_told(value))
        elif kind is partial:
            self._follow_partial(value)
        elif kind is staticmethod or kind is classmethod:
            self.follow(at._replace(value=value.__func__))
        elif kind is property:
            for part in (value.fget, value.fset):
                self.follow(at._replace(value=part))
        elif kind is cached_property or kind is partialmethod:
            self.follow(at._replace(value=value.func))
        elif issubclass(kind, type):
            self.add_class(value)
        elif kind in (list, tuple, dict, set, frozenset, MappingProxyType) and depth < 2:
            self._follow_parts(at, depth)
        elif issubclass(kind, wrapt.FunctionWrapper) or issubclass(kind, wrapt.BoundFunctionWrapper):
            self._note_version(value, at)
            self.follow(at._replace(value=object.__getattribute__(value, "__wrapped__")))
        elif kind is not ModuleType and not is_plain(value):
            self._follow_object(at)

    def _note_version(self, function: Any, at: At) -> None:
        """The version of a checkpointed function that is called, as of a step, is a value that is read."""
        if function is self._root or type(function).__module__ != _PROXIES:
            return
        options = function._self_options
        if options.version is not None and not callable(options.version):
            place, name = (id(function), "version"), f"the version of {options.name!r}"
            self._noted.note(at._replace(place=place, name=name, value=options.version))

    def _is_told(self, method: MethodType) -> bool:
        return self._bound and method is self._root

    def _follow_parts(self, at: At, depth: int) -> None:
        if is_plain(at.value):
            return
        parts = at.value if type(at.value) is not dict else at.value.values()
        if type(at.value) is MappingProxyType:
            parts = [part for _, part in items_of(at.value) or ()]
        for one in islice(parts, MOST_ELEMENTS):
            if not is_plain(one):
                self.follow(at.part((id(at.value), id(one)), f"{at.name}[…]", one), depth=depth + 1)

    def _follow_object(self, at: At) -> None:
        """An object leads to the function that it wraps, and to the methods of its class."""
        value, held = at.value, dict_of(at.value)
        for name in ("__wrapped__", "dispatcher"):
            if held.get(name) is not None:
                self.follow(at._replace(value=held[name]))
        self._follow_instance(at._replace(name=at.name or "self"), called=value is self._root)
        if "__wrapped__" not in held and not is_own_class(type(value)):
            for one in islice(held.values(), MOST_ELEMENTS):  # such as the function that a compiler has compiled
                if type(one) is FunctionType and is_own_file(one.__code__.co_filename):
                    self.add(one)

    def add(self, function: Any) -> None:
        """Have a function read, unless it is read already."""
        if type(function) is not FunctionType:
            self.follow(At((), "", "", function))
        elif id(function) not in self._seen:
            self._seen.add(id(function))
            self._noted.alive.append(function)
            self._todo.append(function)

    def _follow_partial(self, given: Any) -> None:
        self._noted.alive.append(given)
        function, shift = own_function(given.func)
        for place, value in [*enumerate(given.args), *given.keywords.items()]:
            names = () if function is None else uses_of(function.__code__).arguments[shift:]
            position = f"argument {place + 1}" if type(place) is int and place >= len(names) else ""
            name = position or (names[place] if type(place) is int else place)
            if (reader := self._reader()) is not None:
                reader.hand_over(At((id(given), name), name, "", value), function, place, shift)
        self.follow(At((), "", "", given.func))

    def follow_beneath(self, function: FunctionType) -> bool:
        """Reach what an installed function wraps: as it says itself, or in the variables that it closes over."""
        count, held = len(self._seen), dict_of(function)
        todo = [held[name] for name in ("__wrapped__", "registry") if held.get(name) is not None]
        todo = todo or [cell.cell_contents for cell in function.__closure__ or () if not is_empty(cell)]
        for one in todo:
            if type(one) in (FunctionType, MethodType, partial, MappingProxyType) or dict_of(one).get("__wrapped__"):
                self.follow(At((), "", "", one))
        return len(self._seen) > count

    def add_class(self, cls: Any) -> None:
        """Have a class of the user's own read, and its bases that are."""
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
                function = own_function(member)[0] if type(member) is FunctionType else None
                if function is not None and _is_generated(function):
                    continue
                self._read_member(number, cls, name, member)

    def _read_member(self, number: int, cls: Any, name: str, member: Any) -> None:
        if type(member) is FunctionType and _hands_itself_on(uses_of(member.__code__)):
            self._whole.add(number)
        label = f"{label_of(cls).rpartition('.')[2]}.{name}"
        at = At((number, name), label, label_of(cls), member, cls, attributes=(name,))
        if is_plain(member):
            if not (self._bound and self._is_of_root(cls)) and not is_clock_attribute(cls, name):
                self._noted.note(at)
        else:
            self.follow(at, depth=1)

    def _is_of_root(self, cls: Any) -> bool:
        held = getattr(self._root, "__self__", None) if type(self._root) is MethodType else None
        return any(base is cls for base in mro_of(held if issubclass(type(held), type) else type(held)))

    def _follow_instance(self, at: At, *, told: bool = False, called: bool = False) -> None:
        value = at.value
        cls = value if issubclass(type(value), type) else type(value)
        before = len(self._classes)
        self.add_class(cls)
        if called and len(self._classes) == before:
            return
        if called:
            call = of_class(cls, "__call__")
            if call is not None:
                self.add(call)
        if cls is not value and not told and (holds_data(cls) or id(cls) in self._classes):
            self._noted.alive.append(value)
            self._instances.append(at)

    def _follow_attributes(self) -> None:
        """Functions and objects that an object of the user's own class holds are code that it calls."""
        for at in list(self._instances):
            for name, value in list(static_attributes(at.value)):
                if name in self._names and (id(at.value), name) not in self._members:
                    self._members.add((id(at.value), name))
                    self.follow(at.part((id(at.value), name), f"{at.name}.{name}", value, at.value))

    def _read_instance(self, at: At) -> None:
        """What the methods of the user's own class read of an object."""
        cls = type(at.value)
        whole = any(id(base) in self._whole for base in mro_of(cls))
        for name, value in list(static_attributes(at.value)):
            if (name in self._names or whole) and not (name in at.omitted or is_clock_attribute(cls, name)):
                self._noted.note(at.part((id(at.value), name), f"{at.name}.{name}", value, at.value))


def is_empty(cell: CellType) -> bool:
    """Whether the variable is not set yet."""
    try:
        _ = cell.cell_contents
    except ValueError:
        return True
    return False


def own_function(value: Any) -> tuple[FunctionType | None, int]:
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


def is_own_code(member: Any) -> bool:
    """Whether a member of a class is the user's own function, or is made of one."""
    if type(member) is property:
        member = member.fget
    elif type(member) is cached_property:
        member = member.func
    function, _ = own_function(getattr(member, "__func__", member) if type(member) in _BOUND else member)
    return function is not None and not _is_generated(function)


def _is_generated(function: FunctionType) -> bool:
    """Whether dataclass or NamedTuple made it; cloudpickle gives such code, once it was sent, another file name."""
    code = function.__code__
    is_of_tuple = function.__name__ == "__new__" and code.co_name == "<lambda>"
    return code.co_filename == "<string>" or is_of_tuple or code.co_qualname.startswith("__create_fn__.")


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
