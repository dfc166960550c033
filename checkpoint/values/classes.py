"""Take objects apart into their state, and build them from it: dataclasses, NamedTuples, attrs, msgspec, pydantic.

Subclasses of builtin containers and scalars are taken apart too: their content, and the attributes beside it. Building
runs neither `__init__` nor validators, since an object was whole when it was stored. attrs and pydantic are recognised
by what their classes look like, and are never imported here.
"""

from __future__ import annotations

import collections
import copyreg
import dataclasses
import enum
import functools
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec

from checkpoint.errors import UnbuildableValue, quote, quote_error

__all__ = [
    "NAMEDTUPLE",
    "NO_CONTENT",
    "PLAIN_FORMS",
    "PYDANTIC_PARTS",
    "Names",
    "ObjectState",
    "attributes_of",
    "base_of",
    "build",
    "field_types",
    "is_generic",
    "is_secret",
    "is_validated",
    "kind_of",
    "name_table",
    "named_parts",
    "neighbour",
    "present_fields",
    "record_of",
    "stand_in",
    "unbuildable",
]

NO_CONTENT: Any = ...

_default_factory: Any = vars(collections.defaultdict)["default_factory"]
_maxlen: Any = vars(collections.deque)["maxlen"]
PLAIN_FORMS: dict[type, Callable[[Any], Any]] = {
    str: str.__str__,
    int: int.__int__,
    float: float.__float__,
    complex: complex.__pos__,
    bytes: lambda value: b"".join([bytes.__getitem__(value, slice(None))]),
    bytearray: lambda value: bytearray(memoryview(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)),
    list: lambda value: list(list.__iter__(value)),
    set: lambda value: set(set.__iter__(value)),
    frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    collections.OrderedDict: lambda value: collections.OrderedDict(collections.OrderedDict.items(value)),
    collections.defaultdict: lambda value: collections.defaultdict(_default_factory.__get__(value), dict.items(value)),
    dict: lambda value: dict(dict.items(value)),
    collections.deque: lambda value: collections.deque(collections.deque.__iter__(value), _maxlen.__get__(value)),
}
"""What an object of a subclass holds as the builtin that it is, whatever the subclass's own methods say."""


class ObjectState(NamedTuple):
    """The state of one object: what any kind of class holds, three things of pydantic, and a builtin's content."""

    fields: dict[str, Any]
    attrs: dict[str, Any]
    absent: list[str]
    extra: dict[str, Any] | None = None
    private: dict[str, Any] | None = None
    chosen: list[str] | None = None
    content: Any = NO_CONTENT

    def plain(self) -> dict[str, Any]:
        return {**self.fields, **(self.extra or {}), **self.attrs}


def record_of(value: Any) -> ObjectState:
    """The state of an object of one of the kinds, or of a subclass of a builtin."""
    cls: Any = type(value)
    names = _fields_of(cls)
    is_named = kind_of(cls) is NAMEDTUPLE
    fields = dict(zip(names, tuple.__iter__(value), strict=True)) if is_named else {}
    for name in names if not fields else ():
        try:
            fields[name] = object.__getattribute__(value, name)
        except AttributeError:
            continue
    absent = [name for name in names if name not in fields]
    attrs = {name: part for name, part in attributes_of(value) if name not in names}
    if kind_of(cls) is not _PYDANTIC:
        base = None if is_named else base_of(cls)
        return ObjectState(fields, attrs, absent, content=NO_CONTENT if base is None else PLAIN_FORMS[base](value))
    extra, private = value.__pydantic_extra__, value.__pydantic_private__
    usual = {*fields, *(extra or ())}
    chosen = None if value.__pydantic_fields_set__ == usual else sorted(value.__pydantic_fields_set__)
    return ObjectState(fields, attrs, absent, None if extra == _no_extra(cls) else extra, private, chosen)


def base_of(cls: Any) -> type | None:
    """The builtin whose content an object of the class holds, None where it is no subclass of one."""
    return _base_of(cls)


@functools.lru_cache(maxsize=1024)
def _base_of(cls: Any) -> type | None:
    return next((base for base in PLAIN_FORMS if issubclass(cls, base)), None)


def attributes_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what an object's __dict__ and slots hold, caches left out: those are computed again."""
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
    """How to recognise the classes of one kind, read their fields with defaults, build one, and read its aliases."""

    owns: Callable[[Any], bool]
    fields: Callable[[Any], dict[str, _Default]]
    build: Callable[[Any, dict[str, Any], ObjectState], Any]
    aliases: Callable[[Any], dict[str, str]] = lambda cls: {}


def _default(value: Any, factory: Any, missing: Any) -> _Default:
    if factory is not missing:
        return typing.cast(_Default, factory)
    return None if value is missing else lambda: value


def _fill(made: Any, state: dict[str, Any]) -> Any:
    """Set attributes past frozen classes and the user's hooks."""
    for name, part in state.items():
        try:
            object.__setattr__(made, name, part)
        except AttributeError:  # a property that reads the object's __dict__, which its class writes directly
            vars(made)[name] = part
    return made


def _build_object(cls: Any, state: dict[str, Any], record: ObjectState) -> Any:
    base = base_of(cls)
    return _fill(object.__new__(cls) if base is None else _build_content(cls, base, record.content), state)


def _build_content(cls: Any, base: Any, content: Any) -> Any:
    """An object of a subclass of a builtin, made by the builtin's own methods."""
    if type(content) is not base:
        raise TypeError(f"it is a {base.__name__}, and a {type(content).__name__} is stored")
    new: Callable[..., Any] = base.__new__
    if base in _IMMUTABLE:
        return new(cls, content)
    made = new(cls)
    if base is collections.OrderedDict:
        for key, part in content.items():
            base.__setitem__(made, key, part)
    elif base is collections.defaultdict:
        base.__init__(made, content.default_factory, content)
    elif base is collections.deque:
        base.__init__(made, content, content.maxlen)
    else:
        base.__init__(made, content)
    return made


_IMMUTABLE = (str, int, float, complex, bytes, tuple, frozenset)


def _build_namedtuple(cls: Any, state: dict[str, Any], record: ObjectState) -> Any:
    made = tuple.__new__(cls, [state.pop(name) for name in cls._fields])
    return _fill(made, state)


def _build_struct(cls: Any, state: dict[str, Any], record: ObjectState) -> Any:
    # a Struct has no other constructor than its own; what __post_init__ changes is set back
    made = cls(**{name: part for name, part in state.items() if name in cls.__struct_fields__})
    for name, part in state.items():
        msgspec.structs.force_setattr(made, name, part)
    return made


def _build_pydantic(cls: Any, state: dict[str, Any], record: ObjectState) -> Any:
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


def _pydantic_aliases(cls: Any) -> dict[str, str]:
    """(alias → field) of the names under which a pydantic model takes its fields."""
    found: dict[str, str] = {}
    for name, field in cls.model_fields.items():
        choices = getattr(field.validation_alias, "choices", None) or [field.validation_alias, field.alias]
        found.update({alias: name for alias in choices if isinstance(alias, str) and alias not in cls.model_fields})
    return found


def _struct_aliases(cls: Any) -> dict[str, str]:
    return dict(zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True))


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
    _pydantic_aliases,
)
_KINDS = (
    NAMEDTUPLE,
    _PYDANTIC,
    _Kind(lambda cls: issubclass(cls, msgspec.Struct), _struct_fields, _build_struct, _struct_aliases),
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


def build(cls: Any, record: ObjectState) -> Any:
    """The object of the class that the record was taken from.

    A field that was renamed is filled where its alias is the stored name. A field that is gone goes where the class
    puts unknown fields: pydantic's ``extra="allow"`` keeps it, ``extra="ignore"`` drops it.

    Raises:
        UnbuildableValue: the class has changed since.
    """
    kind = kind_of(cls)
    if kind is None and (base_of(cls) is None or record.content is NO_CONTENT):
        raise unbuildable(cls, "was a class with fields when this was stored")
    known, state, defaults = _fields_of(cls), dict(record.attrs), dict[str, Callable[[], Any]]()
    if kind is not None and (record.extra or not record.fields.keys() <= known.keys()):
        record = _refit(cls, kind, known, record)
    for name, default in known.items():
        if name in record.fields:
            state[name] = record.fields[name]
        elif name not in record.absent:
            if default is None:
                raise unbuildable(
                    cls, f"has a field {quote(name)} that the stored object lacks; give it a default", field=name
                )
            defaults[name] = default
    try:
        state.update({name: default() for name, default in defaults.items()})
        return kind.build(cls, state, record) if kind is not None else _build_object(cls, state, record)
    except Exception as error:
        raise unbuildable(cls, f"cannot be built from what is stored: {quote_error(error)}") from error


def _refit(cls: Any, kind: _Kind, known: Mapping[str, Any], record: ObjectState) -> ObjectState:
    """The record with each stored field under its present name, and unknown ones where the class puts them."""
    aliases, policy = kind.aliases(cls), _extra_policy(cls) if kind is _PYDANTIC else None
    fields, extra = dict[str, Any](), dict[str, Any]()
    renamed: dict[str, str] = {}
    for name, part in {**(record.extra or {}), **record.fields}.items():
        present = name if name in known else aliases.get(name)
        if present is not None and (present == name or present not in record.fields):
            fields[present], renamed[name] = part, present
        elif policy == "allow":
            extra[name] = part
        elif policy != "ignore":
            raise unbuildable(cls, f"has no field {quote(name)}, which the stored object has; give it back", field=name)
    chosen = record.chosen
    if chosen is not None:
        chosen = [renamed.get(name, name) for name in chosen if name in renamed or name in extra]
    return record._replace(fields=fields, extra=extra if policy == "allow" else None, chosen=chosen)


def _extra_policy(cls: Any) -> str | None:
    """The model's own choice of what becomes of unknown fields; None where it made none."""
    return typing.cast("str | None", cls.model_config.get("extra"))


def unbuildable(cls: type, what: str, field: str | None = None) -> UnbuildableValue:
    """The error for a class that is not what it was."""
    message = f"{cls.__qualname__} {what}, or set version= to compute these results anew"
    return UnbuildableValue(message, cls=cls, field=field)


# --- what an annotation names ---


class Names(NamedTuple):
    """What an annotation names.

    Attributes:
        classes: name → class, None where two share it.
        names: class → the name it is written under.
        secret: the field that holds one of pydantic's secrets, or the secret's class; "" where there is none.
    """

    classes: dict[str, type | None]
    names: dict[type, str]
    secret: str


def name_table(annotation: Any) -> Names:
    """The classes that an annotation names, at any depth."""
    classes: dict[str, type | None] = {}
    parts = list(named_parts(annotation))
    secret = next((where or part.__name__ for part, where in parts if is_secret(part)), "")
    for cls in dict.fromkeys(part for part, _ in parts if _is_rebuilt(part)):
        for name in (cls.__name__, f"{cls.__module__}.{cls.__qualname__}"):
            classes[name] = cls if classes.get(name, cls) is cls else None
    names = {cls: name for name, cls in reversed(classes.items()) if cls is not None}
    return Names(classes, names, secret)


def _is_rebuilt(part: Any) -> bool:
    if not isinstance(part, type) or _is_typed_dict(part):
        return False
    if isinstance(part, enum.EnumMeta) or kind_of(part):
        return True
    # a subclass of a builtin that a Python class statement made; those made in C are the codec's
    return bool(part.__flags__ & _HEAP_TYPE) and base_of(part) is not None and part.__module__ != "collections"


_HEAP_TYPE = 1 << 9


def _is_typed_dict(part: type) -> bool:
    return issubclass(part, dict) and hasattr(part, "__total__")


def named_parts(annotation: Any) -> Iterator[tuple[Any, str]]:
    """Yield each part of an annotation once, at any depth, with the field that names it: "Account.password"."""
    seen: dict[int, Any] = {}  # by identity, and kept: an annotation may be unhashable, or made on the fly
    pending = [(annotation, "")]
    while pending:
        part, where = pending.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield part, where
        pending.extend((inner, where) for inner in _inner(part))
        if isinstance(part, type):
            pending.extend((inner, f"{part.__name__}.{name}") for name, inner in field_types(part))


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
    return getattr(part, "__orig_bases__", ())


def field_types(cls: Any) -> list[tuple[str, Any]]:
    """(name, annotation) of the fields of a class, and of the private attributes of a pydantic model."""
    kind = kind_of(cls)
    if kind is _PYDANTIC:
        fields = [(name, field.annotation) for name, field in cls.model_fields.items()]
        private = getattr(cls, "__private_attributes__", None)  # a parametrised root model has none
        return [*fields, *((name, hint) for name, hint in _hints(cls) if name in private)] if private else fields
    return _hints(cls) if kind is not None or _is_typed_dict(cls) else []


def present_fields(cls: Any) -> tuple[dict[str, tuple[bool, list[str]]], str | None]:
    """(field → (whether it is required, its aliases), what becomes of unknown fields) of a class."""
    kind = kind_of(cls)
    aliases = [] if kind is None else list(kind.aliases(cls).items())
    fields = {
        name: (default is None, sorted(alias for alias, field in aliases if field == name and alias != name))
        for name, default in _fields_of(cls).items()
    }
    return fields, _extra_policy(cls) if kind is _PYDANTIC else None


def is_validated(cls: Any) -> bool:
    """Whether the fields of a class's objects are of the types that it says, unless somebody goes out of his way."""
    return kind_of(cls) is _PYDANTIC


def _quietly(part: Any, name: str) -> Any:
    try:
        return getattr(part, name, None)
    except Exception:  # the value of a lazy alias may be any expression of the user's
        return None


def _hints(cls: type) -> list[tuple[str, Any]]:
    """(name, annotation) of a class's fields; one that cannot be resolved does not hide the others."""
    typed = [
        (field.name, field.type) for field in getattr(cls, "__attrs_attrs__", ()) if not isinstance(field.type, str)
    ]
    try:
        return [*typed, *typing.get_type_hints(cls).items()]
    except Exception:
        pass
    for base in cls.__mro__:
        scope = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        names = {**vars(base), base.__name__: base, cls.__name__: cls}
        for name, hint in (_quietly(base, "__annotations__") or {}).items():
            try:
                found = typing.get_type_hints(SimpleNamespace(__annotations__={name: hint}), scope, names)
            except Exception:
                continue
            typed += found.items()
    return typed


def is_secret(part: Any) -> bool:
    """Whether a class is one of pydantic's secrets, which would be written in clear."""
    return isinstance(part, type) and any(
        base.__name__ in ("_SecretBase", "_SecretField", "SecretStr", "SecretBytes")
        and base.__module__.partition(".")[0] == "pydantic"
        for base in part.__mro__
    )


# --- classes that libraries make of those that are named ---


def is_generic(cls: Any) -> bool:
    """Whether a class is a generic pydantic model, with its parameters filled in or left open."""
    metadata = cls.__dict__.get("__pydantic_generic_metadata__") or {}
    return bool(metadata.get("origin") or metadata.get("parameters"))


def stand_in(cls: Any, named: Iterable[type]) -> type | None:
    """The named class that a library's class at run time stands for, or None.

    Such a class is found under no name in its module and has the fields of a named base (instructor makes one of each
    response model); or it is a generic pydantic model whose parameters were left open (openai's parse helpers return
    one), or are not named.
    """
    kind = kind_of(cls)
    metadata = cls.__dict__.get("__pydantic_generic_metadata__") or {}
    origin = metadata.get("origin") or (cls if metadata.get("parameters") else None)
    if kind is None or (origin is None and _is_importable(cls)):
        return None
    if origin is not None:
        is_open = all(isinstance(argument, typing.TypeVar) for argument in metadata["args"])
        found = [one for one in named if one is origin or (is_open and _origin_of(one) is origin)]
        return found[0] if len(found) == 1 else None
    if "<locals>" in cls.__qualname__:
        return None  # the user's own class statement
    known = {one for one in named if kind_of(one) is kind}
    base = next((base for base in cls.__mro__[1:] if base in known), None)
    return base if base is not None and _fields_of(base).keys() == _fields_of(cls).keys() else None


def _origin_of(cls: Any) -> Any:
    """The generic model that a class is a parametrisation of, else None."""
    return (cls.__dict__.get("__pydantic_generic_metadata__") or {}).get("origin")


def _is_importable(cls: type) -> bool:
    part: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        part = getattr(part, "__dict__", {}).get(name)
    return part is cls


def neighbour(name: str, named: Iterable[type]) -> type | None:
    """The pydantic model of this full name, where a named model that allows extra fields stands in the same module.

    Such a model holds objects that no annotation names (litellm's responses hold their usage so). Nothing is imported
    for a name: only modules that define a named class are looked in, and only for pydantic models of their own.
    """
    module, _, short = name.rpartition(".")
    if not any(_allows_extra(cls) and cls.__module__ == module for cls in named):
        return None
    cls = vars(sys.modules[module]).get(short) if module in sys.modules else None
    own = isinstance(cls, type) and kind_of(cls) is _PYDANTIC
    return cls if own and (cls.__module__, cls.__qualname__) == (module, short) else None  # type: ignore[union-attr]


def _allows_extra(cls: type) -> bool:
    return kind_of(cls) is _PYDANTIC and _no_extra(cls) is not None
