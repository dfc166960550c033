"""The schema of the classes that an annotation names: their fields' names and types, and which are required.

Order, comments, docstrings, validators and the values of defaults are no part of it. Two schemas are compared without
an object, and a value with an annotation without a validator.
"""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import json
import types
import typing
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from hashlib import blake2b
from typing import Any

from checkpoint.errors import quote
from checkpoint.values.classes import field_types, kind_of, name_table, named_parts, present_fields

__all__ = ["ROOT", "Moved", "Schema", "fits", "schema_of", "spell"]

ROOT = ""  # the annotation itself, where it holds a TypedDict, which no record names


@dataclasses.dataclass(frozen=True, slots=True)
class Schema:
    """What the classes of an annotation look like.

    Attributes:
        annotation: as it is.
        classes: name → "fields" (name → [type, whether it is required, aliases]), "members" of an Enum, and "extra",
            what a pydantic model does with unknown fields. It is JSON.
        digest: 32 hex digits of that.
    """

    annotation: Any
    classes: dict[str, dict[str, Any]]
    digest: str

    def moved_since(self, before: Mapping[str, Any]) -> Moved:
        """What may keep an object of these earlier classes from being built as it was."""
        gone, broken, retyped = set[str](), set[str](), set[tuple[str, str]]()
        for name, old in before.items():
            new = self.classes.get(name)
            if new is None:
                gone.add(name)
                continue
            fields, known = new.get("fields", {}), old.get("fields", {})
            taken = {alias for _, _, aliases in fields.values() for alias in aliases}
            if any(field not in fields and field not in taken for field in known) and not new.get("extra"):
                broken.add(name)
            if old.get("extra") == "allow" and not new.get("extra"):
                broken.add(name)
            if any(
                required and field not in known and known.keys().isdisjoint(aliases)
                for field, (_, required, aliases) in fields.items()
            ):
                broken.add(name)
            if set(old.get("members", ())) - set(new.get("members", ())) or ("members" in old) != ("members" in new):
                broken.add(name)
            retyped |= {
                (name, field)
                for field, (text, _, aliases) in fields.items()
                if any(known[one][0] != text for one in (field, *aliases) if one in known)
            }
        return Moved(frozenset(gone), frozenset(broken), frozenset(retyped))


@dataclasses.dataclass(frozen=True, slots=True)
class Moved:
    """How classes moved: those that are gone, those that may lack a field or have one too many, retyped fields."""

    gone: frozenset[str]
    broken: frozenset[str]
    retyped: frozenset[tuple[str, str]]

    def __bool__(self) -> bool:
        return bool(self.gone or self.broken or self.retyped)


def schema_of(annotation: Any) -> Schema | None:
    """The schema of the classes that an annotation names, at any depth; None where it names none."""
    classes: dict[str, dict[str, Any]] = {}
    for cls, name in name_table(annotation).names.items():
        if isinstance(cls, enum.EnumMeta):
            classes[name] = {"members": sorted(cls._member_map_)}
        elif kind_of(cls) is not None:
            hints = dict(field_types(cls))
            fields, extra = present_fields(cls)
            classes[name] = {
                "fields": {
                    field: [spell(hints.get(field, Any)), required, aliases]
                    for field, (required, aliases) in sorted(fields.items())
                },
                **({"extra": extra} if extra in ("allow", "ignore") else {}),
            }
    if any(_is_typed_dict(part) for part, _ in named_parts(annotation)):
        classes[ROOT] = {"fields": {ROOT: [spell(annotation), False, []]}}
    if not classes:
        return None
    text = json.dumps(classes, sort_keys=True, separators=(",", ":"))
    return Schema(annotation, classes, blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest())


# --- annotations ---


def _is_typed_dict(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, dict) and hasattr(part, "__total__")


def spell(hint: Any, within: tuple[Any, ...] = ()) -> str:
    """An annotation in one spelling, whatever its order, comments and Python version."""
    hint = _bare(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is None or hint is type(None):
        return "None"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(sorted({spell(part, within) for part in arguments}, key=lambda text: (text == "None", text)))
    if origin is typing.Literal:
        return f"Literal[{', '.join(sorted(quote(part, 60) for part in arguments))}]"
    if origin is not None:
        inner = ["…" if part is ... else spell(part, within) for part in arguments]
        return f"{spell(origin)}[{', '.join(inner)}]"
    if _is_typed_dict(hint) and hint not in within:
        required = getattr(hint, "__required_keys__", ())
        keys = [f"{key}{'' if key in required else '?'}: {spell(one, (*within, hint))}" for key, one in _keys(hint)]
        return f"{hint.__name__}({', '.join(sorted(keys))})"
    if isinstance(hint, (list, tuple)):
        return f"[{', '.join(spell(part, within) for part in hint)}]"
    if isinstance(hint, str):
        return hint
    name = getattr(hint, "__name__", None) or getattr(hint, "__forward_arg__", None)
    return name if isinstance(name, str) else type(hint).__name__


def _bare(hint: Any) -> Any:
    """An annotation without what says nothing of the value's type."""
    while True:
        origin = typing.get_origin(hint)
        if origin in (typing.Annotated, typing.ClassVar, typing.Final, typing.Required, typing.NotRequired):
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint


def _keys(typed: Any) -> Iterator[tuple[str, Any]]:
    return ((name, _bare(hint)) for name, hint in field_types(typed))


def fits(value: Any, hint: Any, *, raw_enums: bool = False) -> bool:
    """Whether a value is of the type that an annotation says, as far as can be told; an int fits where a float may."""
    hint = _bare(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part, raw_enums=raw_enums) for part in arguments)
    if origin is typing.Literal:
        return raw_enums or any(type(value) is type(part) and value == part for part in arguments)
    if hint is None or hint is type(None):
        return value is None
    if origin is not None:
        return _fits_generic(value, origin, arguments, raw_enums)
    if not isinstance(hint, type) or hint is object:
        return True
    if _is_typed_dict(hint):
        required = getattr(hint, "__required_keys__", ())
        return isinstance(value, dict) and all(
            fits(value[key], one, raw_enums=raw_enums) if key in value else key not in required
            for key, one in _keys(hint)
        )
    if isinstance(hint, enum.EnumMeta):
        return raw_enums or isinstance(value, hint)
    if hint in (float, complex):
        return isinstance(value, (int, float) if hint is float else (int, float, complex)) and value is not True
    if hint is date:
        return isinstance(value, date) and not isinstance(value, datetime)
    if not kind_of(hint) and not _is_url(hint) and _is_only_checked(hint):
        return True
    try:
        return isinstance(value, hint)
    except TypeError:
        return True


def _is_url(cls: type) -> bool:
    return any(base.__name__ in ("_BaseUrl", "_BaseMultiHostUrl") for base in cls.__mro__)


def _is_only_checked(cls: type) -> bool:
    """Whether a class stands for a check of pydantic's, such as EmailStr, whose values are of another class."""
    return cls.__module__.partition(".")[0] == "pydantic" or hasattr(cls, "__get_pydantic_core_schema__")


def _fits_generic(value: Any, origin: Any, arguments: tuple[Any, ...], raw_enums: bool) -> bool:
    if not isinstance(origin, type) or origin in (type, collections.abc.Callable):
        return True
    try:
        if not isinstance(value, origin):
            return False
    except TypeError:
        return True
    if isinstance(value, Mapping) and len(arguments) == 2:
        return all(
            fits(key, arguments[0], raw_enums=raw_enums) and fits(part, arguments[1], raw_enums=raw_enums)
            for key, part in value.items()
        )
    if isinstance(value, tuple) and issubclass(origin, tuple):
        if len(arguments) == 2 and arguments[1] is ...:
            arguments = arguments[:1] * len(value)
        return len(value) == len(arguments) and all(
            fits(part, one, raw_enums=raw_enums) for part, one in zip(value, arguments, strict=True)
        )
    if isinstance(value, (list, set, frozenset, collections.deque)) and len(arguments) == 1:
        return all(fits(part, arguments[0], raw_enums=raw_enums) for part in value)
    return True
