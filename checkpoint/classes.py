"""What objects are made of: the fields of dataclasses, NamedTuples, attrs, msgspec and pydantic classes, and back.

An object is taken apart into a `Record` of its state, and built from one without running `__init__` or validators: what
is stored was whole when it was stored. attrs and pydantic are never imported: their classes tell what they are.
"""

from __future__ import annotations

import copyreg
import dataclasses
import enum
import functools
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec

from checkpoint.errors import UnbuildableValue, quote, quote_error

__all__ = ["NAMEDTUPLE", "PYDANTIC_PARTS", "Record", "build", "kind_of", "name_table", "record_of", "unbuildable"]


class Record(NamedTuple):
    """The state of one object: what any kind of class holds, and three things that only pydantic has."""

    fields: dict[str, Any]
    attrs: dict[str, Any]
    absent: list[str]
    extra: dict[str, Any] | None = None
    private: dict[str, Any] | None = None
    chosen: list[str] | None = None

    def plain(self) -> dict[str, Any]:
        return {**self.fields, **(self.extra or {}), **self.attrs}


def record_of(value: Any) -> Record:
    """The state of an object of one of the kinds."""
    cls: Any = type(value)
    names = _fields_of(cls)
    fields = dict(zip(names, tuple.__iter__(value), strict=True)) if issubclass(cls, tuple) else {}
    for name in names if not fields else ():
        try:
            fields[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    absent = [name for name in names if name not in fields]
    attrs = {name: part for name, part in _held(value) if name not in names}
    if kind_of(cls) is not _PYDANTIC:
        return Record(fields, attrs, absent)
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    usual = {*fields, *(extra or ())}
    chosen = None if value.__pydantic_fields_set__ == usual else sorted(value.__pydantic_fields_set__)
    return Record(fields, attrs, absent, None if extra == _no_extra(cls) else extra, private, chosen)


def _held(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object's __dict__ and slots hold, without what is only remembered: caches are made anew."""
    cls = type(value)
    held = dict(getattr(value, "__dict__", {}))
    for name in copyreg._slotnames(cls):  # type: ignore[attr-defined]  # what pickle uses, mangled names included
        if not name.startswith(("__pydantic_", "__msgspec_")) and hasattr(value, name):
            held[name] = getattr(value, name)
    for name, part in held.items():
        if name == "_attrs_cached_hash":
            yield name, None  # a hash of strings differs from run to run; None tells attrs to compute it
        elif not isinstance(_static(cls, name), functools.cached_property):
            yield name, part


def _static(cls: type, name: str) -> Any:
    return next((vars(base)[name] for base in cls.__mro__ if name in vars(base)), None)


# --- kinds of classes ---

_Default = Callable[[], Any] | None


class _Kind(NamedTuple):
    """How the classes of one kind are told, what fields they have with which defaults, and how one is built."""

    owns: Callable[[Any], bool]
    fields: Callable[[Any], dict[str, _Default]]
    build: Callable[[Any, dict[str, Any], Record], Any]


def _default(value: Any, factory: Any, missing: Any) -> _Default:
    if factory is not missing:
        return typing.cast(_Default, factory)
    return None if value is missing else lambda: value


def _fill(made: Any, state: dict[str, Any]) -> Any:
    for name, part in state.items():
        object.__setattr__(made, name, part)  # past frozen classes and the user's hooks
    return made


def _build_object(cls: Any, state: dict[str, Any], record: Record) -> Any:
    return _fill(object.__new__(cls), state)


def _build_namedtuple(cls: Any, state: dict[str, Any], record: Record) -> Any:
    made = tuple.__new__(cls, [state.pop(name) for name in cls._fields])
    return _fill(made, state)


def _build_struct(cls: Any, state: dict[str, Any], record: Record) -> Any:
    # a Struct has no other constructor than its own; what __post_init__ changes is set back
    made = cls(**{name: part for name, part in state.items() if name in cls.__struct_fields__})
    for name, part in state.items():
        msgspec.structs.force_setattr(made, name, part)
    return made


def _build_pydantic(cls: Any, state: dict[str, Any], record: Record) -> Any:
    extra = _no_extra(cls) if record.extra is None else record.extra
    chosen = [*record.fields, *(extra or ())] if record.chosen is None else record.chosen
    private = {**_fresh_private(cls), **(record.private or {})} if cls.__private_attributes__ else record.private
    _fill(made := object.__new__(cls), {"__dict__": state, "__pydantic_fields_set__": set(chosen)})
    for name, part in (("__pydantic_extra__", extra), ("__pydantic_private__", private)):
        if getattr(made, name, ...) is not part:  # a root model has them on the class, where an object needs none
            object.__setattr__(made, name, part)
    return made


def _no_extra(cls: Any) -> dict[str, Any] | None:
    return {} if cls.model_config.get("extra") == "allow" else None


def _fresh_private(cls: Any) -> dict[str, Any]:
    """What a new object's private attributes hold; some have no default."""
    fresh = {
        name: attribute.default_factory() if attribute.default_factory else attribute.get_default()
        for name, attribute in cls.__private_attributes__.items()
    }
    return {name: part for name, part in fresh.items() if type(part).__name__ != "PydanticUndefinedType"}


def _dataclass_fields(cls: Any) -> dict[str, _Default]:
    missing = dataclasses.MISSING
    return {field.name: _default(field.default, field.default_factory, missing) for field in dataclasses.fields(cls)}


def _attrs_fields(cls: Any) -> dict[str, _Default]:
    missing = sys.modules["attr"].NOTHING
    return {
        field.name: None
        if getattr(field.default, "takes_self", False)
        else _default(field.default, getattr(field.default, "factory", missing), missing)
        for field in cls.__attrs_attrs__
    }


def _struct_fields(cls: Any) -> dict[str, _Default]:
    names, defaults, missing = cls.__struct_fields__, cls.__struct_defaults__, msgspec.NODEFAULT
    filled = (missing,) * (len(names) - len(defaults)) + defaults
    return {
        name: _default(value, value.factory if type(value).__name__ == "Factory" else missing, missing)
        for name, value in zip(names, filled, strict=True)
    }


def _pydantic_fields(cls: Any) -> dict[str, _Default]:
    return {
        name: None if field.is_required() else functools.partial(field.get_default, call_default_factory=True)
        for name, field in cls.model_fields.items()
    }


def _namedtuple_fields(cls: Any) -> dict[str, _Default]:
    defaults = cls._field_defaults
    return {name: _default(defaults.get(name, ...), ..., ...) for name in cls._fields}


def _has(name: str, kind: type) -> Callable[[Any], bool]:
    return lambda cls: isinstance(getattr(cls, name, None), kind)


NAMEDTUPLE = _Kind(
    lambda cls: issubclass(cls, tuple) and hasattr(cls, "_field_defaults"), _namedtuple_fields, _build_namedtuple
)
_PYDANTIC = _Kind(
    lambda cls: hasattr(cls, "__pydantic_fields_set__") and hasattr(cls, "model_fields"),
    _pydantic_fields,
    _build_pydantic,
)
_KINDS = (
    NAMEDTUPLE,
    _PYDANTIC,
    _Kind(lambda cls: issubclass(cls, msgspec.Struct), _struct_fields, _build_struct),
    _Kind(_has("__dataclass_fields__", dict), _dataclass_fields, _build_object),
    _Kind(_has("__attrs_attrs__", tuple), _attrs_fields, _build_object),
)
PYDANTIC_PARTS = ("extra", "private", "chosen")


@functools.lru_cache(maxsize=1024)
def kind_of(cls: Any) -> _Kind | None:
    """The kind of a class, None for one that is of none."""
    if isinstance(cls, enum.EnumMeta):
        return None
    return next((kind for kind in _KINDS if kind.owns(cls)), None)


@functools.lru_cache(maxsize=1024)
def _fields_of(cls: Any) -> dict[str, _Default]:
    kind = kind_of(cls)
    return kind.fields(cls) if kind else {}


def build(cls: Any, record: Record) -> Any:
    """The object of the class that the record was taken from.

    Raises:
        UnbuildableValue: the class has changed since.
    """
    kind = kind_of(cls)
    if kind is None:
        raise unbuildable(cls, "was a class with fields when this was stored")
    known, state, defaults = _fields_of(cls), dict(record.attrs), dict[str, Callable[[], Any]]()
    for name in record.fields:
        if name not in known:
            raise unbuildable(cls, f"has no field {quote(name)}, which the stored object has; give it back")
    for name, default in known.items():
        if name in record.fields:
            state[name] = record.fields[name]
        elif name not in record.absent:
            if default is None:
                raise unbuildable(cls, f"has a field {quote(name)} that the stored object lacks; give it a default")
            defaults[name] = default
    try:
        state.update({name: default() for name, default in defaults.items()})
        return kind.build(cls, state, record)
    except Exception as error:
        raise unbuildable(cls, f"cannot be built from what is stored: {quote_error(error)}") from error


def unbuildable(cls: type, what: str) -> UnbuildableValue:
    """The error for a class that is not what it was."""
    return UnbuildableValue(f"{cls.__qualname__} {what}, or set version= to compute these results anew", cls=cls)


# --- what an annotation names ---


def name_table(annotation: Any) -> tuple[dict[str, type | None], dict[type, str]]:
    """(name → class, None where two share it; class → the name it is written under)."""
    classes: dict[str, type | None] = {}
    found = dict.fromkeys(_named_classes(annotation))
    for cls in found:
        for name in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}"):
            classes[name] = cls if classes.get(name, cls) is cls else None
    names = {cls: name for name, cls in reversed(classes.items()) if cls is not None}
    return classes, names


def _named_classes(annotation: Any) -> Iterator[type]:
    seen: dict[int, Any] = {}  # by identity, and kept: an annotation may be unhashable, or made on the fly
    pending = [annotation]
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        pending.extend(_inner(part))
        if isinstance(part, enum.EnumMeta) or (isinstance(part, type) and kind_of(part)):
            yield part


def _inner(part: Any) -> Iterable[Any]:
    origin = typing.get_origin(part)
    if origin in (typing.Literal, typing.ClassVar):
        return ()
    if origin is typing.Annotated:
        return typing.get_args(part)[:1]
    if origin is not None:
        return (origin, *typing.get_args(part))
    if isinstance(part, typing.TypeVar):
        return (part.__bound__, *part.__constraints__)
    if isinstance(part, dataclasses.InitVar):
        return (part.type,)
    if not isinstance(part, type):
        return [value for name in ("__supertype__", "__value__") if (value := _quietly(part, name)) is not None]
    bases = getattr(part, "__orig_bases__", ())
    kind = kind_of(part)
    if kind is _PYDANTIC:
        return (*bases, *(field.annotation for field in part.model_fields.values()))  # type: ignore[attr-defined]
    if kind is not None or (issubclass(part, dict) and hasattr(part, "__total__")):
        return (*bases, *_hints(part))
    return bases


def _quietly(part: Any, name: str) -> Any:
    try:
        return getattr(part, name, None)
    except Exception:  # the value of a lazy alias may be any expression of the user's
        return None


def _hints(cls: type) -> list[Any]:
    """The types of a class's fields; one that cannot be resolved does not hide the others."""
    typed = [field.type for field in getattr(cls, "__attrs_attrs__", ()) if not isinstance(field.type, str)]
    try:
        return [*typed, *typing.get_type_hints(cls).values()]
    except Exception:
        pass
    for base in cls.__mro__:
        scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        names = {**vars(base), base.__name__: base, cls.__name__: cls}
        for name, hint in (_quietly(base, "__annotations__") or {}).items():
            try:
                typed += typing.get_type_hints(SimpleNamespace(__annotations__={name: hint}), scope, names).values()
            except Exception:
                continue
    return typed
