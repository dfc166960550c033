"""Look into objects without running any code of the user's: no property, no `__getattr__`, no metaclass.

The promise: of classes of the user's own, only what their objects hold is read, past every hook. Mappings of installed
classes are asked for entries in their own way, since that is code that the user trusts.
"""

from __future__ import annotations

import collections
import gc
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import (
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    SimpleNamespace,
)
from typing import Any

from checkpoint.provenance.syntax import is_own_file

__all__ = [
    "ABSENT", "dict_of", "element_of", "entry_of", "holds_data", "is_mapping", "is_own_class", "is_own_module",
    "is_sequence", "items_of", "label_of", "module_of", "mro_of", "of_class", "root_of", "static_attributes",
]  # fmt: skip

ABSENT: Any = type("Absent", (), {"__repr__": lambda self: "nothing"})()
_MOST_ENTRIES = 100_000
# Their entries are data at large, or come from elsewhere, or go with the garbage.
_NO_MAPPINGS = frozenset({
    "pandas", "polars", "numpy", "torch", "jax", "tensorflow", "h5py", "zarr", "xarray", "dask", "pyarrow", "shelve",
    "dbm", "weakref", "sqlite3", "sys", "mailbox", "diskcache", "cachetools", "redis", "lmdb",
})  # fmt: skip
_MARKS = (
    "__dataclass_fields__",
    "__attrs_attrs__",
    "__pydantic_fields__",
    "__pydantic_core_schema__",
    "__struct_fields__",
)


def dict_of(value: Any) -> Mapping[str, Any]:
    """The attributes that an object, module or class holds itself."""
    if issubclass(type(value), type):
        return type.__dict__["__dict__"].__get__(value)  # type: ignore[no-any-return]
    descriptor = of_class(type(value), "__dict__")
    if type(descriptor) not in (GetSetDescriptorType, MemberDescriptorType):
        return {}  # it has none, or a property of the user's in its place
    held = descriptor.__get__(value)
    return held if type(held) is dict else {}


def mro_of(cls: Any) -> tuple[type, ...]:
    """A class and its bases."""
    return type.__dict__["__mro__"].__get__(cls)  # type: ignore[no-any-return]


def of_class(cls: Any, name: str) -> Any:
    """A member of a class or of its bases, as it stands there; None where there is none."""
    for base in mro_of(cls):
        held = type.__dict__["__dict__"].__get__(base)
        if name in held:
            return held[name]
    return None


def static_attributes(instance: Any) -> Iterator[tuple[str, Any]]:
    """What the instance's own dict and slots hold, past the user's hooks."""
    for name, value in dict_of(instance).items():
        if type(of_class(type(instance), name)) is not cached_property:  # which is made anew when it is asked for
            yield name, value
    for cls in mro_of(type(instance)):
        for name, member in dict_of(cls).items():
            if type(member) is MemberDescriptorType and not name.endswith("__"):
                try:
                    yield name, member.__get__(instance)
                except AttributeError:
                    continue


def is_own_module(name: Any) -> bool:
    """Whether a module of this name is the user's own."""
    if type(name) is not str or name == "__main__":
        return type(name) is str  # whatever runs the main module, such as a profiler, may have left its own file there
    module = sys.modules.get(name)
    path = None if module is None else dict_of(module).get("__file__")
    return type(path) is str and is_own_file(path)


def is_own_class(cls: Any) -> bool:
    """Whether a class is the user's own."""
    return is_own_module(dict_of(cls).get("__module__"))


def module_of(cls: Any) -> str:
    """The name of the module that a class is of."""
    found = type.__dict__["__module__"].__get__(cls)
    return found if type(found) is str else ""


def label_of(cls: Any) -> str:
    """The name of a class within its module."""
    return str(type.__dict__["__qualname__"].__get__(cls)).replace("<locals>.", "")


def root_of(cls: Any) -> str:
    """The name of the package that a class is of."""
    return module_of(cls).partition(".")[0]


def holds_data(cls: type) -> bool:
    """Whether objects of a class are data: dataclasses, attrs, msgspec and pydantic classes, and namespaces."""
    if module_of(cls) == "builtins":
        return False
    if cls is SimpleNamespace or (root_of(cls), label_of(cls)) == ("argparse", "Namespace"):
        return True
    return any(of_class(cls, mark) is not None for mark in _MARKS)


def is_mapping(value: Any) -> bool:
    """Whether a value has entries that can be read without running code of the user's."""
    cls = type(value)
    if issubclass(cls, (dict, MappingProxyType, collections.UserDict, collections.ChainMap)):
        return True
    if value is os.environ:
        return True
    root = root_of(cls)
    if root in _NO_MAPPINGS or root == "builtins":
        return False
    names = ("keys", "__getitem__", "__iter__", "__len__")
    return all(of_class(cls, name) is not None for name in names) and not any(map(is_own_class, mro_of(cls)))


def is_sequence(value: Any) -> bool:
    """Whether a value is a sequence of an installed class, which is no list or tuple."""
    cls = type(value)
    bases = mro_of(cls)
    return Sequence in bases and root_of(cls) not in _NO_MAPPINGS and not any(map(is_own_class, bases))


def element_of(value: Any, place: int) -> Any:
    """An element of a sequence; ABSENT where there is none, or it cannot be read."""
    try:
        return value[place] if -len(value) <= place < len(value) else ABSENT
    except Exception:  # as of a mapping
        return ABSENT


def _plain_mapping(value: Any) -> Any:
    """The dict behind a mapping of Python's own; None for those of other classes."""
    cls = type(value)
    if issubclass(cls, dict):
        return value
    if cls is MappingProxyType:
        found = [one for one in gc.get_referents(value) if not issubclass(type(one), type)]
        return _plain_mapping(found[0]) if len(found) == 1 else None
    if issubclass(cls, collections.UserDict):
        held = dict_of(value).get("data")
        return held if issubclass(type(held), dict) else None
    if issubclass(cls, collections.ChainMap):
        merged: dict[Any, Any] = {}
        for one in reversed(dict_of(value).get("maps") or []):
            held = _plain_mapping(one)
            merged.update(dict.items(held) if held is not None else ())
        return merged
    return None


def entry_of(value: Any, key: Any) -> Any:
    """The entry of a mapping; ABSENT where there is none, or it cannot be read."""
    held = _plain_mapping(value)
    if held is not None:
        return dict.get(held, key, ABSENT)
    try:
        return value[key] if key in value else ABSENT  # noqa: SIM401 (a `get` may be of another kind)
    except Exception:  # a mapping that cannot tell, such as a configuration with a reference to nothing, has no entry
        return ABSENT


def items_of(value: Any) -> list[tuple[Any, Any]] | None:
    """The entries of a mapping; None where they are too many, or cannot be read."""
    held = _plain_mapping(value)
    if held is not None:
        return list(dict.items(held))
    try:
        if len(value) > _MOST_ENTRIES:
            return None
        return [(key, entry_of(value, key)) for key in list(value)]
    except Exception:  # as above
        return None
