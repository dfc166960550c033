"""`@checkpointed` adds `.map` and the other methods to a function, which stays as it was."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, Unpack, overload

from checkpoint.api.options import Arguments, Options
from checkpoint.api.proxies import AsyncCheckpointedFunction, CheckpointedFunction
from checkpoint.api.signatures import check_function, innermost, is_async, return_annotation
from checkpoint.execution.policies import Batch, Durability, OnChange, Rate, Retry
from checkpoint.provenance.syntax import keep_sources
from checkpoint.values.keys import KeyFunction

__all__ = ["checkpointed"]


P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class _Decorator:
    """The decorator that ``checkpointed(...)`` returns."""

    __slots__ = ("_options",)

    def __init__(self, options: Options) -> None:
        self._options = options

    @overload
    def __call__(  # type: ignore[overload-overlap]  # a coroutine function is a function too: the first that fits wins
        self, function: Callable[P, Coroutine[Any, Any, R]], /
    ) -> AsyncCheckpointedFunction[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> CheckpointedFunction[P, R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Any:
        check_function(function)
        keep_sources(function)
        kind = AsyncCheckpointedFunction if is_async(innermost(function)) else CheckpointedFunction
        # Classes that are local to the decorating function have no other place where their names could be looked up.
        annotation = return_annotation(function, sys._getframe(1).f_locals)
        return kind(function, self._options, annotation)


if TYPE_CHECKING:

    class _BatchDecorator:
        """The decorator with `batch_size`: the function takes a list and returns one result for each item of it."""

        @overload
        def __call__(
            self, function: Callable[P, Coroutine[Any, Any, Sequence[R]]], /
        ) -> AsyncCheckpointedFunction[P, R, Sequence[R]]: ...
        @overload
        def __call__(self, function: Callable[P, Sequence[R]], /) -> CheckpointedFunction[P, R, Sequence[R]]: ...
        def __call__(self, function: Any, /) -> Any: ...

    class _ParsingDecorator(Generic[T]):
        """The decorator with `parse`: a result is what the parser returns, a plain call what the function returns."""

        @overload
        def __call__(  # type: ignore[overload-overlap]  # as above
            self, function: Callable[P, Coroutine[Any, Any, R]], /
        ) -> AsyncCheckpointedFunction[P, T, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> CheckpointedFunction[P, T, R]: ...
        def __call__(self, function: Any, /) -> Any: ...


@overload
def checkpointed(
    name: str, *, batch_size: None = None, parse: None = None, **options: Unpack[Arguments]
) -> _Decorator: ...


@overload
def checkpointed(
    name: str, *, batch_size: int | Batch, parse: None = None, **options: Unpack[Arguments]
) -> _BatchDecorator: ...


@overload
def checkpointed(
    name: str, *, parse: Callable[[Any], T], batch_size: int | Batch | None = None, **options: Unpack[Arguments]
) -> _ParsingDecorator[T]: ...


def checkpointed(
    name: str,
    *,
    key: str | KeyFunction | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
    version: Any | Callable[[Any], Any] = None,
    depends: Any = (),
    ignore: str | Sequence[str] = (),
    input: str | Sequence[str] | Callable[[Any], Any] | None = None,
    on_change: OnChange | None = None,
    batch_size: int | Batch | None = None,
    retry: int | Retry | None = None,
    rate: str | Rate | Sequence[str | Rate] | None = None,
    timeout: float | None = None,
    validate: Callable[[Any], Any] | None = None,
    parse: Callable[[Any], Any] | None = None,
    durability: Durability = "process",
    result_type: Any = None,
    lock_timeout: float = 0.0,
) -> Any:
    """Make a per-item function a resumable mapper: the function stays as it is, and gets `.map`.

    Args:
        name: letters, digits, space, ``.``, ``_``, ``-``, at most 200 bytes: it names the files.
        key: what names an item: a function of it, a field's name (``"id"``), or None: then the item is its own key, or
            its content is, by hash.
        checkpoint_dir: the directory; default ``$CHECKPOINT_DIR``, else ``./checkpoints``.
        version: any JSON value that names what results depend on besides the item (prompt, model, parameters), or a
            function of the bound instance that returns one. A method's default is its instance's JSON-like attributes.
        depends: what results depend on besides, and no code shows: values, files by their content (`pathlib.Path`),
            templates, classes by their schema; one of these, or a tuple of them. Default: nothing.
        ignore: names of variables, as messages give them, that results do not depend on. Default: none.
        input: what of an item its result depends on, where that is not all of it (a time of download does not count):
            the name of a field, a list of names, or a function of the item. Default: all of it.
        on_change: what to do where the item of a known key has changed, or the function has: "keep" the results (it is
            said), "recompute" them, or "error". Default: an item that changed, and a value that the function reads and
            that changed, are errors before anything is run; other changes of its code are said.
        batch_size: the function takes a list of at most so many items, and returns a list with one value for each; or
            a `Batch`, which limits the sum of their sizes too. Each item is a result, or has failed, by itself; a batch
            that fails is tried again in halves, down to single items. Default: one item, and no list.
        retry: how many attempts a call gets, the first included, or a `Retry`. Default: one. With it, refusals of
            several items in a row, and outages, hold all calls until the server answers again.
        rate: how many calls may start in a span of time, spread evenly: "500/min", a `Rate`, or several of these.
            Functions that are given the same `Rate` object share it. Default: any.
        timeout: seconds that a call may take: coroutines are cancelled, processes killed. On threads, where nothing can
            be stopped, `map` refuses it. Default: any.
        validate: a function of the value that returns False or raises where the value is no result (empty, refused, cut
            short): the item has failed then, and its error keeps the value (``f.errors[key].value``). The next run
            validates that again, and calls the function only where it is still refused; results are not judged again.
        parse: a function of what the function returned, which gives what `map`, `stream`, `results` and tables return.
            It is free: what is on disk is what was paid for, and is parsed at each reading, by whatever parser there is
            then. Where it raises, the item has failed, and keeps its value (``f.errors[key].value``). `validate` judges
            first. Default: what the function returned.
        durability: "process" survives the death of the process, and a power cut but for the last second; "power" syncs
            every record.
        result_type: an annotation that names classes to rebuild; default the function's return annotation, of a
            function of batches that of its list's elements.
        lock_timeout: seconds that a write waits while another process writes the checkpoint; what that saves counts
            here then. Default 0: `CheckpointLocked` at once.

    Raises:
        InvalidName, InvalidOption: an argument is wrong.
        InvalidFunction: what is decorated is no function of one item.

    Example:
        >>> @checkpointed("squares")
        ... def square(n: int) -> int:
        ...     return n * n
        >>> square.map([3, 3, 5])
        Results([9, 9, 25])
        >>> square(4)
        16
    """
    return _Decorator(
        Options(
            name, key, checkpoint_dir, version, depends, ignore, input, on_change, batch_size, retry, rate, timeout,
            validate, parse, durability, result_type, lock_timeout,
        )
    )  # fmt: skip
