"""What a law is tried on: an engine of ours, or somebody's executor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Engine", "Law", "for_executor"]


@dataclass(frozen=True, slots=True)
class Engine:
    """What runs the function, as the laws see it.

    Args:
        name: what it is called in messages.
        options: gives a context with the options that make `map` use it; it is entered once for each law.
        is_async: whether it runs coroutine functions.
        is_local: whether calls are made in this process.
        survives: whether a worker that was killed is replaced, and costs nothing but its own item.
        fresh: makes another executor, where one is given to `map`: some laws break theirs.

    Example:
        >>> from contextlib import nullcontext
        >>> Engine("4 threads", lambda: nullcontext({"workers": 4})).is_local
        True
    """

    name: str
    options: Callable[[], AbstractContextManager[Mapping[str, Any]]]
    is_async: bool = False
    is_local: bool = True
    survives: bool = False
    fresh: Callable[[], Executor] | None = None


Law = Callable[[Engine, Path], None]
"""Raises AssertionError where it does not hold of the engine; its files are made in the directory, which is empty."""


def for_executor(make: Callable[[], Executor], *, workers: int = 2) -> Engine:
    """The engine that an executor is, when it is given to `map` as ``executor=``.

    One is made at once, to see where it makes calls; then one for each law, and more for those that break it. All are
    shut down here, by their own ``with``.

    Args:
        make: makes a fresh executor.
        workers: how many calls it makes at the same time, or more; some laws ask more of 2 than of 1.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> for_executor(lambda: ThreadPoolExecutor(2)).is_local
        True
    """

    @contextmanager
    def options() -> Iterator[Mapping[str, Any]]:
        with make() as executor:
            yield {"executor": executor, "workers": workers}

    with make() as executor:
        is_local = executor.submit(os.getpid).result() == os.getpid()
        name = type(executor).__qualname__
    return Engine(name, options, is_local=is_local, fresh=make)
