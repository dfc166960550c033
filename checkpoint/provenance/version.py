"""What a result depends on besides its item: the version that the user named, or a method's instance.

A bound method's result depends on its instance and its class. By default its version is made of the instance's
attributes that are JSON-like, of what it holds as a dict, list, tuple, str or the like where the method reads that, of
the class attributes that the method reads, and of which class overrides a method that it calls. Where it reads others,
nobody can tell whether they are the same, so the user is asked to name the version.
"""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable
from datetime import date, datetime, timedelta
from datetime import time as time_of_day
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import PurePath
from types import CodeType, FunctionType, MemberDescriptorType
from typing import Any, Final

from checkpoint.errors import InvalidOption, VersionNeeded
from checkpoint.values.canonical import canonical
from checkpoint.values.keys import plain_version, wide_digest_of
from checkpoint.values.secrets import mark

__all__ = ["moved_attributes", "version_of"]


def version_of(given: Any, function: Any, instance: Any) -> Any:
    """The version of a decorated function's results, as a JSON value; None for none.

    Args:
        given: the decorator's `version=`: a JSON value, or a function of the bound instance that returns one.
        function: the function, bound or not.
        instance: what it is bound to, or None; for a class method, its class.

    Raises:
        VersionNeeded: the method reads attributes that are not JSON-like.
        InvalidOption: `version=` is a function, and there is no instance to give it.
    """
    if callable(given):
        if instance is None:
            raise InvalidOption(
                "version= is a function of the bound instance, and there is none; give the value itself"
            )
        return plain_version(given(instance))
    if given is not None or instance is None:
        return given
    return _of_bound(getattr(function, "__func__", function), instance)


def moved_attributes(before: Any, given: Any, function: Any, instance: Any) -> list[str]:
    """The attributes by which the default version of a bound method differs from what it was before a pass."""
    if given is not None or instance is None:
        return []
    try:
        after = version_of(given, function, instance)
    except VersionNeeded:
        return []  # something that cannot be told, such as a client, came while it ran; the next map says so
    old, new = ((version or {"instance": {}})["instance"] for version in (before, after))
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _of_bound(function: Any, instance: Any) -> Any:
    """Digests of what it depends on: digests, since an attribute may be a secret."""
    cls = instance if isinstance(instance, type) else type(instance)
    read = _names_read(function, cls)
    from checkpoint.provenance.statics import static_attributes  # it is large

    own = {} if instance is cls else dict(static_attributes(instance))
    for base in cls.__mro__ if isinstance(instance, PurePath) else ():
        if base.__module__.partition(".")[0] == "pathlib":
            for name in vars(base).get("__slots__", ()):
                own.pop(name, None)  # what a path remembers of its text
    attributes = {**_read_of_class(cls, read), **own}
    passed = any(map(_passes_self, _methods_read(function, cls, read)))  # whoever it is given to may read any of them
    if instance is not cls:
        attributes.update(_private_of_model(instance, None if passed else read))
        if passed or _reads_content(cls, read):
            attributes.update(_content_of(instance))
    encoded = {name: canonical(value) for name, value in attributes.items()}
    if needed := sorted(
        name for name, data in encoded.items() if data is None and (passed or name in read or name == CONTENT)
    ):
        name, kind = needed[0], type(attributes[needed[0]]).__name__
        what = f"what self holds as a {kind}" if name == CONTENT else f"self.{name}, a {kind}"
        raise VersionNeeded(
            f"{cls.__name__}.{function.__name__} reads {what}: whether it is the same next time cannot "
            "be told; name what the results depend on: "
            f"@checkpointed(…, version=lambda self: {_suggestion(encoded)})"
        )
    told = {name: f"{wide_digest_of(data):032x}" for name, data in encoded.items() if data is not None}
    for name, digest in told.items():
        mark(name, attributes[name], digest)
    told.update({name: f"of {owner}" for name, owner in _overridden(function, cls, read)})
    return {"instance": told} if told else None


CONTENT: Final = "*"
"""The name of what an instance holds besides attributes: of a subclass of dict what dict itself holds, and so on."""


def _content_of(instance: Any) -> dict[str, Any]:
    """What the instance holds as a dict, tuple, str or the like, JSON-like where it can be; {} for nothing."""
    if isinstance(instance, Enum):
        return {}  # its value is an attribute
    for base, plain in _PLAIN.items():
        if isinstance(instance, base):
            return {CONTENT: plain(instance)}
    held = next(filter(_holds_by_itself, type(instance).__mro__), None)
    return {} if held is None else {CONTENT: _opaque(held)}


def _opaque(base: type) -> Any:
    """Stands in messages for what an instance holds as one of a class that is written in C."""
    return object.__new__(type(base.__name__, (), {}))


def _holds_by_itself(base: type) -> bool:
    """Whether objects of a class hold more than attributes, such as those of array, which is written in C.

    They are larger than those of its base by more than slots take.
    """
    if base is object or base.__base__ is None:
        return False
    slots = sum(type(member) is MemberDescriptorType for member in vars(base).values())
    slots += sum(name in vars(base) for name in ("__dict__", "__weakref__"))
    pointer = tuple.__itemsize__
    return base.__basicsize__ > base.__base__.__basicsize__ + pointer * slots


def _sorted_parts(parts: Any) -> Any:
    """The parts of a set in an order that is the same in each process; the set itself where they have none."""
    encoded = [canonical(part) for part in parts]
    return parts if None in encoded else sorted(part.decode("utf-8", "surrogatepass") for part in encoded if part)


_PLAIN: dict[type, Callable[[Any], Any]] = {
    dict: lambda held: dict(dict.items(held)),
    list: lambda held: list(list.__iter__(held)),
    tuple: lambda held: tuple(tuple.__iter__(held)),
    str: str.__str__,
    int: int.__pos__,
    float: float.__pos__,
    bytes: bytes.__repr__,
    bytearray: bytearray.__repr__,
    complex: complex.__repr__,
    Decimal: Decimal.__str__,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time_of_day: time_of_day.isoformat,
    timedelta: timedelta.__str__,
    PurePath: PurePath.__str__,
    deque: lambda held: list(deque.__iter__(held)),
    set: lambda held: _sorted_parts(set(set.__iter__(held))),
    frozenset: lambda held: _sorted_parts(set(frozenset.__iter__(held))),
    BaseException: lambda held: BaseException.__dict__["args"].__get__(held),
}


def _reads_content(cls: type, read: set[str]) -> bool:
    """Whether a name that is read leads to a member of a class that holds something, or to a field of a named tuple."""
    if issubclass(cls, tuple) and not read.isdisjoint(getattr(cls, "_fields", ())):
        return True
    found = [next((base for base in cls.__mro__ if name in vars(base)), None) for name in read]
    return any(base in _PLAIN or (base is not None and _holds_by_itself(base)) for base in found)


def _private_of_model(instance: Any, read: set[str] | None) -> dict[str, Any]:
    """What a pydantic model holds besides its fields: private attributes, and fields that its class does not name."""
    found: dict[str, Any] = {}
    for name in ("__pydantic_private__", "__pydantic_extra__"):
        try:
            held = object.__getattribute__(instance, name)
        except AttributeError:
            continue
        if type(held) is dict:
            found.update({name: value for name, value in held.items() if read is None or name in read})
    return found


_NAMING = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR")


def _passes_self(function: Any) -> bool:
    """Whether the method uses its instance for more than attributes that it names: helper(self), getattr(self, x)."""
    code = function.__code__
    if not code.co_argcount:
        return False
    name, steps = code.co_varnames[0], [step for step in dis.get_instructions(code) if step.opname != "CACHE"]
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF")):
            continue
        loaded = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        attribute = after is not None and after.opname in _NAMING
        if name in loaded[:-1] or (loaded[-1] == name and not attribute):
            return True
    return False


def _read_of_class(cls: type, read: set[str]) -> dict[str, Any]:
    """The class's own data that the method reads; what is no plain data there is code, which is read for names."""
    found = {name: _static(cls, name) for name in read if not name.startswith("__")}
    return {name: value for name, value in found.items() if canonical(value) is not None and value is not None}


def _overridden(function: Any, cls: type, read: set[str]) -> list[tuple[str, str]]:
    """(method, class) for each method that the function names and that a subclass of its own class overrides."""
    home = next((base for base in cls.__mro__ if function.__name__ in vars(base)), cls)
    below = cls.__mro__[: cls.__mro__.index(home)]
    owners = [(name, next((base for base in below if name in vars(base)), None)) for name in sorted(read)]
    return [
        (name, owner.__qualname__)
        for name, owner in owners
        if owner is not None and canonical(vars(owner)[name]) is None
    ]


def _static(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


def _suggestion(encoded: dict[str, bytes | None]) -> str:
    known = [f"self.{name}" for name, data in encoded.items() if data is not None and name != CONTENT]
    return f"[{', '.join(known)}]" if len(known) > 1 else known[0] if known else "self.model"


def _methods_read(function: Any, cls: type, read: set[str]) -> list[Any]:
    """The function, and the methods and properties of the user's own that the names it reads may lead to."""
    from checkpoint.provenance.syntax import is_own_file

    methods = [function]
    for base in cls.__mro__:
        for name in read & vars(base).keys():
            member = vars(base)[name]
            method = member.fget if isinstance(member, property) else getattr(member, "func", member)
            if type(method) is FunctionType and is_own_file(method.__code__.co_filename):
                methods.append(method)
    return methods


def _names_read(function: Any, cls: type) -> set[str]:
    """The attributes that the method's code reads, and the code of the class's methods that it names, at any depth."""
    names: set[str] = set()
    todo = _codes(function)
    while todo:
        found, inner = _read_by(todo.pop())
        todo += inner
        for name in found - names:
            for base in cls.__mro__:  # not the first one alone: it may call the others by super()
                todo += _codes(vars(base).get(name))
        names |= found
    return names


@lru_cache(maxsize=1024)
def _read_by(code: CodeType) -> tuple[frozenset[str], tuple[CodeType, ...]]:
    """(the attributes that the code reads, the code within it)."""
    reads = ("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")
    names = frozenset(str(step.argval) for step in dis.get_instructions(code) if step.opname in reads)
    return names, tuple(constant for constant in code.co_consts if isinstance(constant, CodeType))


def _codes(member: Any) -> list[CodeType]:
    """The code behind a function, a method, a property, a cached property or a partial method."""
    part = member.fget if isinstance(member, property) else getattr(member, "func", member)
    code = getattr(getattr(part, "__func__", part), "__code__", None)
    return [code] if isinstance(code, CodeType) else []
