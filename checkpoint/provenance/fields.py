"""The fields of classes of data: names, types, defaults, descriptions; of dataclasses, attrs, msgspec and pydantic.

The promise: no class is imported, and none is asked: what its maker left in it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FunctionType, GenericAlias, UnionType
from typing import Any, NamedTuple, get_args, get_origin

from checkpoint.provenance.spelling import name_of, spelled
from checkpoint.provenance.statics import ABSENT, dict_of, is_own_class, label_of, mro_of, of_class, root_of

__all__ = ["Field", "classes_within", "docstring_of", "fields_of", "schema_of"]


class Field(NamedTuple):
    """A field of a class of data; what it does not have is ABSENT."""

    name: str
    type: Any
    default: Any = ABSENT
    factory: Any = None
    description: Any = ABSENT


def fields_of(cls: type) -> list[Field]:
    """The fields of a class; none of a class that is no class of data."""
    if label_of(type(cls)) == "StructMeta":
        return _safely(_of_msgspec, cls, None)
    for name, read in _KINDS.items():
        found = of_class(cls, name)
        if found is not None:
            return _safely(read, cls, found)
    return []


def _safely(read: Callable[[type, Any], Iterator[Field]], cls: type, found: Any) -> list[Field]:
    """The fields, or none: what an installed package keeps in its classes may have another form one day."""
    try:
        return list(read(cls, found))
    except (AttributeError, TypeError, ValueError, KeyError):
        return []


def _of_dataclass(cls: type, found: Any) -> Iterator[Field]:
    for name, field in dict(found).items():
        factory = field.default_factory
        has_factory = type(factory).__name__ != "_MISSING_TYPE"
        default = ABSENT if type(field.default).__name__ == "_MISSING_TYPE" else field.default
        yield Field(name, field.type, default, factory if has_factory else None)


def _of_attrs(cls: type, found: Any) -> Iterator[Field]:
    for field in tuple(found):
        default, factory = field.default, None
        if type(default).__name__ == "Factory":
            default, factory = ABSENT, default.factory
        if label_of(type(default)) == "_Nothing" or label_of(type(default)) == "NothingType":
            default = ABSENT
        yield Field(field.name, field.type, default, factory)


def _of_pydantic(cls: type, found: Any) -> Iterator[Field]:
    for name, field in dict(found).items():
        default = ABSENT if label_of(type(field.default)) == "PydanticUndefinedType" else field.default
        description = ABSENT if field.description is None else field.description
        yield Field(name, field.annotation, default, field.default_factory, description)


def _of_msgspec(cls: type, found: Any) -> Iterator[Field]:
    names, defaults = tuple(cls.__struct_fields__), tuple(cls.__struct_defaults__)  # type: ignore[attr-defined]
    annotations = {key: kind for base in reversed(mro_of(cls)) for key, kind in _annotations(base).items()}
    for name, default in zip(names, (ABSENT,) * (len(names) - len(defaults)) + defaults, strict=True):
        factory = getattr(default, "factory", None) if label_of(type(default)) == "Factory" else None
        is_none = factory is not None or label_of(type(default)) == "NoDefaultType"
        yield Field(name, annotations.get(name), ABSENT if is_none else default, factory)


def _of_named_tuple(cls: type, found: Any) -> Iterator[Field]:
    annotations, defaults = _annotations(cls), of_class(cls, "_field_defaults") or {}
    for name in tuple(found):
        yield Field(name, annotations.get(name), defaults.get(name, ABSENT))


def _annotations(cls: type) -> dict[str, Any]:
    found = dict_of(cls).get("__annotations__")
    return found if type(found) is dict else {}


_KINDS = {
    "__pydantic_fields__": _of_pydantic,
    "model_fields": _of_pydantic,
    "__dataclass_fields__": _of_dataclass,
    "__attrs_attrs__": _of_attrs,
    "_fields": _of_named_tuple,
}


def classes_within(kind: Any) -> Iterator[type]:
    """The classes of the user's own that a type is made of."""
    if get_origin(kind) is not None:
        for one in get_args(kind):
            yield from classes_within(one)
    elif issubclass(type(kind), type) and is_own_class(kind):
        yield kind


def docstring_of(value: Any) -> str | None:
    """The docstring of a function or class, as it is written; None where it has none."""
    if type(value) is FunctionType:
        return value.__doc__ if type(value.__doc__) is str else None
    found = dict_of(value).get("__doc__")
    return found if type(found) is str else None


def schema_of(cls: type, depth: int = 0) -> dict[str, Any]:
    """A class as JSON: its docstring, and of each field its type, default and description; classes within it too."""
    fields = {}
    for field in fields_of(cls):
        told: dict[str, Any] = {"type": _type_of(field.type, depth)}
        if field.default is not ABSENT:
            told["default"] = spelled(field.default) or label_of(type(field.default))
        if field.description is not ABSENT:
            told["description"] = str(field.description)
        fields[field.name] = told
    if not fields:
        fields = {name: {"type": _type_of(kind, depth)} for name, kind in _annotations(cls).items()}
    members = dict_of(cls).get("_member_map_")
    if type(members) is dict:
        fields = {name: {"value": spelled(member)} for name, member in members.items()}
    return {"doc": docstring_of(cls), "fields": fields}


def _type_of(kind: Any, depth: int) -> Any:
    """A type as text that is the same on all Pythons; a class of the user's own as its schema."""
    if isinstance(kind, str):
        return kind
    origin, inner = get_origin(kind), get_args(kind)
    if origin is not None:
        union = origin is UnionType or str(origin) == "typing.Union"
        return ["|" if union else _type_of(origin, depth), *(_type_of(one, depth) for one in inner)]
    if issubclass(type(kind), type) and not isinstance(kind, GenericAlias):
        if is_own_class(kind) and depth < 5:
            return {label_of(kind): schema_of(kind, depth + 1)}
        return f"{root_of(kind)}.{label_of(kind)}"
    return spelled(kind) or name_of(kind) or str(kind)
