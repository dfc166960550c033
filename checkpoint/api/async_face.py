"""The methods of a decorated coroutine function: `one`, `map` and `stream`, awaited."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Iterable,
)
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from checkpoint import clock
from checkpoint.api.dispatch import Dispatch
from checkpoint.api.faces import Face, Items
from checkpoint.api.frames import USERS_FRAMES
from checkpoint.api.one import singles_of
from checkpoint.api.one_in_worker import driver_to_ask
from checkpoint.api.options import PassOptions
from checkpoint.api.results import Results, finish, raise_verdict
from checkpoint.errors import CheckpointLocked, ItemError
from checkpoint.execution.caller import caller
from checkpoint.execution.leaving import Suspended
from checkpoint.outcomes import Outcome
from checkpoint.passes.step import asks
from checkpoint.storage.writer import LOCK_LOOK

__all__ = ["AsyncFace"]

R = TypeVar("R")
T = TypeVar("T")

if TYPE_CHECKING:
    from checkpoint.execution.asynchronous import AwaitedItems


def _drawn(items: Any) -> tuple[Iterable[Any], AwaitedItems | None]:
    """Return the items to draw from, and the asynchronous source if they are awaited."""
    if hasattr(items, "__iter__") or not hasattr(items, "__aiter__"):
        return items, None
    from checkpoint.execution.asynchronous import AwaitedItems

    source = AwaitedItems(items)
    return source, source


class _AsyncStream(Suspended, AsyncIterator[T]):
    """An async stream that closes what it has open as soon as its consumer drops it.

    Dropped alone, it would be closed by its event loop, some time later: until then the checkpoint would be locked.
    """

    __slots__ = ("_outcomes",)

    def __init__(self, name: str, outcomes: AsyncGenerator[T, None], opened: ExitStack) -> None:
        super().__init__(name, opened)
        self._outcomes: Any = outcomes

    async def __anext__(self) -> T:
        self.hold()
        try:
            return await anext(self._outcomes)
        except BaseException:
            if self._outcomes.ag_frame is None:
                self.let_go()
            raise

    async def aclose(self) -> None:
        """Close the generator."""
        await self._outcomes.aclose()
        self.let_go()


class AsyncFace(Face[R]):
    """`.one`, `.map` and `.stream` of a coroutine function: the same, awaited."""

    async def one(self, item: Any, /) -> R:
        """The `one` of a plain function, awaited: ``await f.one(item)``.

        Where it is cancelled, so is the call; who waits for the item's key makes it then.
        """
        if (driver := driver_to_ask(self._self_options.name)) is not None:
            return await self._asking(is_async=True).one_async(self, item, driver)  # type: ignore[no-any-return]
        return await singles_of(self, asks(caller())).one_async(self, item)  # type: ignore[no-any-return]

    @overload
    async def map(
        self,
        items: Items,
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[PassOptions],
    ) -> Results[R]: ...
    @overload
    async def map(
        self, items: Items, *, return_exceptions: bool, **options: Unpack[PassOptions]
    ) -> Results[R | ItemError]: ...
    async def map(
        self,
        items: Items,
        *,
        return_exceptions: bool = False,
        **options: Unpack[PassOptions],
    ) -> Results[Any]:
        """The `map` of a plain function, awaited: ``await f.map(items)``.

        Where it is cancelled, it cancels the calls that run, begins no others, and ends when they have: what finished
        is saved, what a call returns in spite of it too.

        Args:
            items: as there, or an asynchronous iterable, which is drawn item by item; a generator is closed where the
                map ends before it does.
            return_exceptions, options: as there.

        Raises:
            Exception: as there.
        """
        opened, (drawn, source) = ExitStack(), _drawn(items)
        with USERS_FRAMES, Suspended(self._self_options.name, opened):
            work = await self._begun(opened, drawn, options)
            async for _ in work.run_async(opened, source):
                pass
            await work.running.uploaded()
            return finish(work.running, return_exceptions=return_exceptions)

    def stream(self, items: Items, **options: Unpack[PassOptions]) -> AsyncIterator[Outcome[R]]:
        """The `stream` of a plain function: ``async for outcome in f.stream(items)``; of items as in `map`.

        To leave it early cancels the calls that run; ``await stream.aclose()`` waits for their end.
        """
        opened = ExitStack()
        return _AsyncStream(self._self_options.name, self._outcomes(opened, items, options), opened)

    async def _begun(
        self, opened: ExitStack, items: Iterable[Any], options: PassOptions, *, collect: bool = False
    ) -> Dispatch:
        """Begin a pass, which `opened` ends. The event loop goes on while another process writes."""
        import asyncio  # only here: who has no coroutines need not wait for it

        end = clock.monotonic() + self._self_options.lock_timeout
        while True:
            try:
                return opened.enter_context(self._pass(items, options, collect=collect, is_async=True))
            except CheckpointLocked:
                if (left := end - clock.monotonic()) <= 0:
                    raise
                await asyncio.sleep(min(LOCK_LOOK, left))

    async def _outcomes(
        self, opened: ExitStack, items: Items, options: PassOptions
    ) -> AsyncGenerator[Outcome[R], None]:
        with opened:
            # What is open is kept alive: a collection finalizes this generator, and not the one inside of it as well.
            kept: list[Any] = []
            opened.callback(kept.clear)
            drawn, source = _drawn(items)
            work = await self._begun(opened, drawn, options, collect=True)
            running = work.running
            kept.append(work.run_async(opened, source))
            async with aclosing(kept[0]) as steps:
                async for _ in steps:
                    for outcome in running.take():
                        yield outcome
            for outcome in running.take():
                yield outcome
            await running.uploaded()
            raise_verdict(running)
            running.input.check_drawn()
