"""The proxies that `checkpointed` makes of functions, bound to an instance or not, and how they are pickled.

They are wrapt's: called, inspected and bound as the functions they stand for, with a face besides.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine
from operator import attrgetter
from types import FrameType, FunctionType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload
from weakref import WeakValueDictionary

from checkpoint.api.async_face import AsyncFace
from checkpoint.api.faces import Face, SyncFace
from checkpoint.api.options import Options
from checkpoint.api.runner import CheckpointedRunner
from checkpoint.api.signatures import innermost, least_arguments, most_arguments, named, return_annotation
from checkpoint.catalog.paths import Directory
from checkpoint.errors import InvalidFunction

__all__ = [
    "AsyncCheckpointedFunction",
    "BoundAsyncCheckpointedFunction",
    "BoundCheckpointedFunction",
    "CheckpointedFunction",
]


P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")

if TYPE_CHECKING:
    from typing_extensions import TypeVar as _TypeVar

    V = _TypeVar("V", default=R)  # what a call returns: of a function of batches, more than one result

    class _Function(Generic[P, R]):
        __wrapped__: Callable[P, R]

        def __init__(self, wrapped: Any, wrapper: Any) -> None: ...

    class _Bound(Generic[P, R]):
        __wrapped__: Callable[P, R]

    class _UnboundParts:
        _self_annotation: Any
        _self_token: bytes | None
        _self_checked: Any
        _self_checked_bound: Any

    class _BoundParts:
        _self_parent: Any
        _self_instance: Any
        _self_binding: str
else:
    import wrapt

    V = TypeVar("V")

    class _Function(wrapt.FunctionWrapper):
        def __class_getitem__(cls, _):
            return cls

    class _Bound(wrapt.BoundFunctionWrapper):
        def __class_getitem__(cls, _):
            return cls

    # An annotation in the body of a proxy's class, even one that is never run, would hide those of the function.
    _UnboundParts = _BoundParts = object


def _plain(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
    return wrapped(*args, **kwargs)


class _Docstring(str):
    """The function's own docstring, to which `help` adds the methods: it asks for the text by `expandtabs`."""

    def expandtabs(self, tabsize: int = 8) -> str:  # type: ignore[override]
        return f"{str.expandtabs(self, tabsize).rstrip()}\n\n{_METHODS}".lstrip()

    def __reduce__(self) -> tuple[Any, ...]:
        return (str, (str(self),))


_METHODS = """It is checkpointed, and has besides:
    .map(items), .stream(items)   call it on each item that has no result, and save each result
    .one(item)                    the saved result of one item, computed and saved now if there is none
    .plan(items)                  what a map would do
    .results, .errors, .unsaved   what is saved, by key
    .clear(keys), .accept(...)    forget results, or let old ones count
    .options(...), .seed(key), .runner
See help(type(f)), or help(f.map) for one of them."""


class _Unbound(Face[R], _UnboundParts):
    """The methods of the decorated function itself, as opposed to its bound methods."""

    def _set_up(self, options: Options, annotation: Any, directory: Directory | None) -> None:
        self._self_options, self._self_annotation = options, annotation
        self._self_runners, self._self_singles = {}, {}
        self._self_directory = Directory(options.checkpoint_dir) if directory is None else directory
        self._self_token = None  # by which it is known in the process that it was pickled in
        self._self_base = None  # the version of what it is a copy of
        self._self_checked = self._self_checked_bound = None  # the function that was found to take an item
        self.__dict__["__doc__"] = _Docstring(self.__wrapped__.__doc__ or "")

    def _target(self) -> tuple[Callable[[Any], Any], Any]:
        function = self.__wrapped__
        if function is self._self_checked:  # reading a signature takes as long as reading a result
            return function, None
        if least_arguments(function) > 1:
            raise InvalidFunction(
                f"{named(function)} takes more than the item: a method's map and accept are called on an instance "
                "(Scorer(...).score.map(items)), and @checkpointed stands above @classmethod or @staticmethod"
            )
        self._self_checked = function
        return function, None

    def options(self, **changes: Any) -> Self:
        """A copy with any of the decorator's arguments changed, `name` included."""
        options = self._self_options.changed(changes)
        moved = options.checkpoint_dir != self._self_options.checkpoint_dir
        made = _copied(self, options, None if moved else self._self_directory)
        made._self_base = self._self_base if self._self_options.version is None else self._self_options.version
        return made  # type: ignore[no-any-return]

    def _annotation(self) -> Any:
        if self._self_annotation is None:
            self._self_annotation = return_annotation(self.__wrapped__, {})
        return self._self_annotation

    def _reduced_inner(self) -> Any:
        reduced = _reduced(self)
        if isinstance(reduced, str):
            return (attrgetter("__wrapped__"), (self,))
        if reduced[0] is _copied:
            return (attrgetter("__wrapped__"), (reduced[1][0],))
        return (_itself, (self.__wrapped__,))

    # isinstance(f, FunctionType) is False on purpose: cloudpickle would take the proxy apart as a plain function. But
    # pydantic takes whatever stands in the body of a model and is no function for a field that lacks its annotation.
    @property  # type: ignore[misc]
    def __class__(self) -> type:
        asks = sys._getframe(1).f_globals.get("__name__", "")
        return FunctionType if asks.startswith("pydantic.") else type(self)

    def __dir__(self) -> list[str]:
        return _listed(self)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _reduced(self)

    def __repr__(self) -> str:
        return f"<checkpointed {self._self_options.name!r} {named(self.__wrapped__)}>"

    __str__ = __repr__


def _listed(proxy: Any) -> list[str]:
    """What `dir` shows: the attributes of the function, and the methods that decorating adds."""
    return sorted({*dir(proxy.__wrapped__), *(name for name in dir(type(proxy)) if not name.startswith("_"))})


class _OnInstance(Face[R], _BoundParts):
    """The methods of a decorated function that is bound to an instance."""

    @property
    def _self_options(self) -> Options:  # type: ignore[override]
        return self._self_parent._self_options  # type: ignore[no-any-return]

    @property
    def _self_directory(self) -> Directory:  # type: ignore[override]
        return self._self_parent._self_directory  # type: ignore[no-any-return]

    @property
    def _self_base(self) -> Any:
        return self._self_parent._self_base

    @property
    def _self_runners(self) -> dict[Any, CheckpointedRunner]:  # type: ignore[override]
        return self._self_parent._self_runners  # type: ignore[no-any-return]

    @property
    def _self_singles(self) -> dict[Any, Any]:  # type: ignore[override]
        return self._self_parent._self_singles  # type: ignore[no-any-return]

    def _target(self) -> tuple[Callable[[Any], Any], Any]:
        function = self.__wrapped__
        name = named(function)
        if self._self_instance is None and self._self_binding == "function":
            raise InvalidFunction(
                f"{name} is a method: it works on the item and on its instance; call .map, .plan and .accept on one: "
                f"{name.rpartition('.')[0].rpartition('.')[2] or 'Scorer'}(...).{name.rpartition('.')[2]}.map(items)"
            )
        parent, inner = self._self_parent, innermost(function)
        if inner is not parent._self_checked_bound:
            if most_arguments(function) < 1:
                raise InvalidFunction(f"{name} takes no item; a mapped method takes one besides its instance")
            if inner is innermost(parent.__wrapped__):  # what another descriptor makes may hold the instance
                parent._self_checked_bound = inner
        return function, None if self._self_binding == "staticmethod" else getattr(function, "__self__", None)

    def options(self, **changes: Any) -> Self:
        """A copy, bound to the same instance, with any of the decorator's arguments changed, `name` included."""
        held = getattr(self.__wrapped__, "__self__", None)
        owner = held if isinstance(held, type) else type(self._self_instance)
        return self._self_parent.options(**changes).__get__(self._self_instance, owner)  # type: ignore[no-any-return]

    def __dir__(self) -> list[str]:
        return _listed(self)

    def _annotation(self) -> Any:
        return self._self_parent._annotation()

    def _reduced_inner(self) -> Any:
        return (attrgetter("__wrapped__"), (self,))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Not by the function's name: an attribute of that name may be another, overridden, replaced or mangled.
        parent, instance = self._self_parent, self._self_instance
        held = getattr(self.__wrapped__, "__self__", None)
        owner = held if isinstance(held, type) else getattr(self, "_self_owner", None) or type(instance)
        for kind in owner.__mro__:
            for name, value in vars(kind).items():
                if isinstance(value, _Unbound) and value.__wrapped__ is parent.__wrapped__:
                    found = (kind, name, self._self_options, self._self_directory)
                    return (_found_bound, (*found, instance, owner))
        return (_bound, (parent, instance, owner))


class BoundCheckpointedFunction(_OnInstance[R], SyncFace[R], _Bound[P, V], Generic[P, R, V]):
    """A plain decorated function, bound to an instance."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V: ...


class BoundAsyncCheckpointedFunction(_OnInstance[R], AsyncFace[R], _Bound[P, V], Generic[P, R, V]):
    """A decorated coroutine function, bound to an instance."""

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, V]: ...


class CheckpointedFunction(_Unbound[R], SyncFace[R], _Function[P, V], Generic[P, R, V]):
    """A decorated function: it is called as before, and has `.map` and the other methods."""

    __bound_function_wrapper__ = BoundCheckpointedFunction

    def __init__(
        self, wrapped: Callable[P, V], options: Options, annotation: Any = None, directory: Directory | None = None
    ) -> None:
        super().__init__(wrapped, _plain)
        self._set_up(options, annotation, directory)

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> V: ...

        @overload
        def __get__(self, instance: None, owner: Any) -> Self: ...
        @overload
        def __get__(
            self: CheckpointedFunction[Concatenate[Any, Q], R, V], instance: object, owner: Any
        ) -> BoundCheckpointedFunction[Q, R, V]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...


class AsyncCheckpointedFunction(_Unbound[R], AsyncFace[R], _Function[P, V], Generic[P, R, V]):
    """A decorated coroutine function: `.map` is awaited."""

    __bound_function_wrapper__ = BoundAsyncCheckpointedFunction

    def __init__(
        self, wrapped: Callable[P, Any], options: Options, annotation: Any = None, directory: Directory | None = None
    ) -> None:
        super().__init__(wrapped, _plain)
        self._set_up(options, annotation, directory)

    if TYPE_CHECKING:

        def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, V]: ...

        @overload
        def __get__(self, instance: None, owner: Any) -> Self: ...
        @overload
        def __get__(
            self: AsyncCheckpointedFunction[Concatenate[Any, Q], R, V], instance: object, owner: Any
        ) -> BoundAsyncCheckpointedFunction[Q, R, V]: ...
        def __get__(self, instance: Any, owner: Any) -> Any: ...


def _reduced(function: Any) -> Any:
    """Pickle a decorated function by its name if that leads back to it or to a copy's original, else by its parts."""
    wrapped, options, directory = function.__wrapped__, function._self_options, function._self_directory
    module, name = getattr(wrapped, "__module__", None), getattr(wrapped, "__qualname__", "<locals>")
    taken_along = module == "__main__" and _is_cloudpickling()
    found: Any = sys.modules.get(module) if module and not taken_along else None
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is function:
        return name
    if isinstance(found, _Unbound) and found.__wrapped__ is wrapped:
        return (_copied, (found, options, directory))
    return (_rebuilt, (type(function), wrapped, options, directory, _token_of(function)))


_sent: WeakValueDictionary[bytes, Any] = WeakValueDictionary()
"""The functions without a name of this process that were pickled, by token: a worker that asks about one means it."""


def _token_of(function: Any) -> bytes:
    """Return the token by which its own process recognizes a pickled function that has no name."""
    token: bytes | None = function._self_token
    if token is None:
        token = function._self_token = os.urandom(16)
        _sent[token] = function
    return token


def _rebuilt(kind: Any, wrapped: Any, options: Options, directory: Directory, token: bytes) -> Any:
    """Return the function with this token if it comes from this process, else build it from its parts."""
    known = _sent.get(token)
    if known is not None:
        return known
    made = kind(wrapped, options, None, directory)
    made._self_token = token
    return made


def _itself(function: Any) -> Any:
    return function


def _bound(function: Any, instance: Any, owner: type) -> Any:
    return function.__get__(instance, owner)


def _found_bound(kind: type, name: str, options: Options, directory: Directory, instance: Any, owner: type) -> Any:
    found = vars(kind)[name]
    return _bound(found if found._self_options == options else _copied(found, options, directory), instance, owner)


def _is_cloudpickling() -> bool:
    """Whether cloudpickle asks, which takes the functions of __main__ along: where they arrive, they have no name.

    A reducer is not told who asks, so we look at who called.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if "cloudpickle" in frame.f_globals.get("__name__", ""):
            return True
        frame = frame.f_back
    return False


def _copied(function: Any, options: Options, directory: Directory | None) -> Any:
    return type(function)(function.__wrapped__, options, function._self_annotation, directory)
