"""What a result depends on besides its item: the version that the user named, or a method's instance.

A bound method's result depends on its instance: by default on the attributes that are JSON-like. Where it reads others,
nobody can tell whether they are the same, so the user is asked to name the version.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType
from typing import Any

from checkpoint.codecs import canonical
from checkpoint.errors import InvalidOption, VersionNeeded
from checkpoint.keys import digest_of

__all__ = ["version_of"]


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
        return given(instance)
    if given is not None or instance is None or isinstance(instance, type):
        return given
    return _of_instance(function, instance)


def _of_instance(function: Any, instance: Any) -> Any:
    """The digests of the instance's JSON-like attributes: digests, since an attribute may be a secret."""
    attributes = dict(_attributes(instance))
    encoded = {name: canonical(value) for name, value in attributes.items()}
    unknown = [name for name, data in encoded.items() if data is None]
    if unknown:
        read = _names_read(function, type(instance))
        if needed := sorted(read.intersection(unknown)):
            owner, name = type(instance).__name__, needed[0]
            kind = type(attributes[name]).__name__
            raise VersionNeeded(
                f"{owner}.{function.__name__} reads self.{name}, a {kind}: whether it is the same next time cannot be "
                "told; name what the results depend on: "
                f"@checkpointed(…, version=lambda self: {_suggestion(encoded)})"
            )
    told = {name: f"{digest_of(data):016x}" for name, data in encoded.items() if data is not None}
    return {"instance": told} if told else None


def _suggestion(encoded: dict[str, bytes | None]) -> str:
    known = [f"self.{name}" for name, data in encoded.items() if data is not None]
    return f"[{', '.join(known)}]" if len(known) > 1 else known[0] if known else "self.model"


def _attributes(instance: Any) -> Iterator[tuple[str, Any]]:
    yield from getattr(instance, "__dict__", {}).items()
    for cls in type(instance).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(instance, name):
                yield name, getattr(instance, name)


def _names_read(function: Any, cls: type) -> set[str]:
    """The names that the method's code mentions, and the code of the class's other methods that it names."""
    names: set[str] = set()
    todo = [function.__code__]
    while todo:
        code = todo.pop()
        found = set(code.co_names) - names
        names |= found
        todo += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        for name in found:
            todo += _codes(getattr(cls, name, None))
    return names


def _codes(member: Any) -> list[CodeType]:
    part = member.fget if isinstance(member, property) else member
    code = getattr(getattr(part, "__func__", part), "__code__", None)
    return [code] if isinstance(code, CodeType) else []
