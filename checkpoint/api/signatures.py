"""Read a function's signature and annotations: its arguments and its return type."""

from __future__ import annotations

import functools
import inspect
import logging
import typing
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from checkpoint.errors import InvalidFunction, quote

__all__ = [
    "check_function",
    "element_of",
    "innermost",
    "is_async",
    "least_arguments",
    "most_arguments",
    "named",
    "return_annotation",
]


log = logging.getLogger("checkpoint")


def element_of(annotation: Any) -> Any:
    """The annotation of a list's elements."""
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Annotated:
        return element_of(arguments[0])
    return arguments[0] if arguments else None


def innermost(function: Any) -> Any:
    """The function inside staticmethod, classmethod and bound methods."""
    return getattr(function, "__func__", function)


def named(function: Any) -> str:
    """The function's name, for messages."""
    return getattr(innermost(function), "__qualname__", None) or repr(function)


def check_function(function: Any) -> None:
    """Refuse at decoration a function that cannot be mapped.

    Raises:
        InvalidFunction: saying why.
    """
    inner = innermost(function)
    if not callable(inner) or inspect.isclass(inner):
        raise InvalidFunction(f"@checkpointed decorates a function of one item, not {quote(function)}")
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise InvalidFunction(f"{named(inner)} is a generator function; return one value for each item, such as a list")
    most = 2 if _is_in_class(inner) and not isinstance(function, staticmethod) else 1
    required, possible = least_arguments(inner), most_arguments(inner)
    if required > most or possible < 1:
        many = "no argument" if possible < 1 else f"{required} required arguments"
        raise InvalidFunction(
            f"{named(inner)} takes {many}; a mapped function takes one item: put what belongs together into the item, "
            "and bind the rest by default values, functools.partial or a method's instance"
        )


def is_async(function: Any) -> bool:
    """Return whether a call gives a coroutine: of a coroutine function, or an object with `async __call__`."""
    return any(map(inspect.iscoroutinefunction, (function, type(function).__call__)))


def _is_in_class(function: Any) -> bool:
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    return bool(owner) and not owner.endswith("<locals>")


def _parameters(function: Any) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return [inspect.Parameter("item", inspect.Parameter.POSITIONAL_ONLY)]  # a builtin that does not tell


def least_arguments(function: Any) -> int:
    """How many arguments it must be called with."""
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(p.default is p.empty and p.kind not in variadic for p in _parameters(function))


def most_arguments(function: Any) -> int:
    """How many positional arguments it can be called with."""
    keyword = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    return sum(p.kind not in keyword for p in _parameters(function))


def return_annotation(function: Any, local: Mapping[str, Any]) -> Any:
    """The function's return annotation, its names looked up in its module and in `local`; None where that fails."""
    inner = inspect.unwrap(innermost(function))
    while isinstance(inner, functools.partial):
        inner = inspect.unwrap(inner.func)
    if not inspect.isroutine(inner):
        inner = inspect.unwrap(type(inner).__call__)
    annotation = getattr(inner, "__annotations__", {}).get("return")
    if not isinstance(annotation, str):
        return annotation
    alone = FunctionType((lambda: None).__code__, getattr(inner, "__globals__", {}))
    alone.__annotations__ = {"return": annotation}
    try:
        return typing.get_type_hints(alone, localns=dict(local), include_extras=True)["return"]
    except Exception as error:  # an annotation may be any expression
        log.debug("the return annotation %r of %s is not known (yet): %s", annotation, named(function), error)
        return None
