"""What laws are told in: functions that do what their items say, a log of their calls, and a checkpoint to map into."""

from __future__ import annotations

import asyncio
import decimal
import gc
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from checkpoint import clock
from checkpoint.api.decorator import checkpointed
from checkpoint.errors import ItemError, quote
from checkpoint.execution.notes import note
from checkpoint.outcomes import Outcome
from checkpoint.storage.spending import sum_of
from checkpoint.testing.engine import Engine

__all__ = [
    "LONG",
    "VALUES",
    "VARIABLE",
    "Cycle",
    "Deed",
    "Elapsed",
    "Item",
    "Make",
    "Scale",
    "Trial",
    "acall",
    "acall_batch",
    "acall_inner",
    "acall_unmoved",
    "call",
    "call_batch",
    "call_inner",
    "driven",
    "equal",
    "holds",
    "is_not_thirty",
    "long_wait",
    "no_wait",
    "program",
    "raised",
    "short_wait",
    "waiting",
]


Item = dict[str, Any]
Deed = list[Any]  # what a call does: a verb and its arguments
E = TypeVar("E", bound=BaseException)
_PATIENCE = 30.0  # seconds after which what must happen counts as not happening
_POLL = 0.005
LONG = 30.0  # seconds that nobody who keeps the law waits


# --- what is mapped: it does what its item says, and notes it ---------------------------------------------------------


class _Strange(Exception):
    """An exception that pickles and does not unpickle, as many clients' do."""

    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"{detail} ({code})")


class _TooManyRequests(Exception):
    """What a server answers that wants to be asked again in a moment."""

    status_code = 429
    retry_after = 0.01


class PanicException(BaseException):
    """As pyo3 raises it for a panic in Rust."""


class Elapsed(BaseException):
    """As gevent and test runners raise it when a time is up."""


VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "not a number": lambda: [math.nan, -0.0, math.inf],
    "tuple": lambda: {"deep": [(1, (2,))]},
    "set": lambda: {(1, "1")},
    "bytes": lambda: b"\x00\xff",
    "keys": lambda: {1: "a", (2, 3): "b"},
    "text": lambda: "\u2028 \ud800",
    "megabyte": lambda: "x" * 1_000_000,
    "a function": lambda: {"deep": [call]},
    "a lock": threading.Lock,
}

_RAISED: dict[str, Callable[[str], BaseException]] = {
    "ValueError": ValueError,
    "KeyError": KeyError,
    "RuntimeError": RuntimeError,
    "ConnectionError": ConnectionError,
    "SystemExit": SystemExit,
    "SystemExit(0)": lambda message: SystemExit(0),
    "SystemExit()": lambda message: SystemExit(),
    "SystemExit(256)": lambda message: SystemExit(256),
    "PanicException": PanicException,
    "CancelledError": asyncio.CancelledError,
    "CancelledError of a future": futures.CancelledError,
    "group": lambda message: BaseExceptionGroup(message, [ValueError(message), asyncio.CancelledError(message)]),
    "Elapsed": Elapsed,
    "Strange": lambda message: _Strange(7, detail=message),
    "TooManyRequests": _TooManyRequests,
}

VARIABLE: ContextVar[str] = ContextVar("_VARIABLE", default="not set")


def _raise(kind: str, message: str = "on purpose") -> None:
    raise _RAISED[kind](message)


def _kill() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _spin() -> None:
    """Hold the interpreter's lock for longer than anyone waits."""
    re.match(r"(a|aa)+$", "a" * 100 + "b")


def _look_and_leave() -> list[Any]:
    """What a call sees of its context; it changes all of that."""
    seen = [VARIABLE.get(), decimal.getcontext().prec]
    VARIABLE.set("left by a call")
    decimal.getcontext().prec = 5
    return seen


class _Buffer(threading.local):
    """What a function fills again in each of its calls, one for each thread."""

    def __init__(self) -> None:
        self.values = [0] * 4


_buffer = _Buffer()


def _fill(number: int) -> list[int]:
    _buffer.values[:] = [number] * 4
    return _buffer.values


def _pay(cost: float, kind: str = "") -> float:
    """Note a cost, and raise after that if told to."""
    note(cost=cost, paid=True)
    if kind:
        _raise(kind)
    return cost


_DEEDS: dict[str, Callable[..., Any]] = {
    "pay": _pay,
    "fill": _fill,
    "return": lambda value: value,
    "raise": _raise,
    "make": lambda name: VALUES[name](),
    "kill": _kill,
    "exit": os._exit,
    "spin": _spin,
    "look and leave": _look_and_leave,
}


def _play(item: Item) -> Generator[float, None, Any]:
    """One call: yields the seconds to sleep, and returns the value. An item's n-th call does its n-th deed."""
    log = Path(item["log"])
    _note(log, "begin", item["id"])
    verb, *given = _deed(item, log)
    if verb == "sleep":
        yield given[0]
    elif verb == "await":
        gate, *then = given
        yield from waiting(lambda: os.path.exists(gate), f"somebody makes {gate}")
        verb, *given = then or ["go on"]
    elif verb == "after":
        yield from waiting(lambda: given[0] in _Log(log).ended, f"the call for item {given[0]} ends")
    elif verb == "recorded":
        key, journal = given
        yield from waiting(lambda: key in _records_in(Path(journal)), f"the result for item {key} is on disk")
    value = _DEEDS[verb](*given) if verb in _DEEDS else item["id"] * 10
    _note(log, "end", item["id"])
    return value


def _deed(item: Item, log: Path) -> Deed:
    deeds: list[Deed] = item["deeds"]
    if not deeds:
        return ["go on"]
    return deeds[0] if len(deeds) == 1 else deeds[min(_Log(log).begun.count(item["id"]), len(deeds)) - 1]


def waiting(until: Callable[[], bool], what: str) -> Generator[float, None, None]:
    """Yield the seconds to sleep until it is so."""
    end = clock.monotonic() + _PATIENCE
    while not until():
        if clock.monotonic() > end:
            raise AssertionError(f"for {_PATIENCE:g} s it was waited in vain that {what}")
        yield _POLL


def driven(script: Generator[float, None, Any]) -> Any:
    """What a script returns, slept through in this thread."""
    try:
        while True:
            clock.sleep(next(script))
    except StopIteration as stop:
        return stop.value


async def _awaited(script: Generator[float, None, Any]) -> Any:
    """What a script returns, slept through in this task."""
    try:
        while True:
            await asyncio.sleep(next(script))
    except StopIteration as stop:
        return stop.value


def call(item: Item) -> Any:
    """What is mapped: a plain function."""
    return driven(_play(item))


async def acall(item: Item) -> Any:
    """What is mapped: a coroutine function."""
    return await _awaited(_play(item))


async def acall_unmoved(item: Item) -> Any:
    """What is mapped: a coroutine function that returns its value though it is cancelled."""
    call = asyncio.ensure_future(acall(item))
    while not call.done():
        with suppress(asyncio.CancelledError):
            await asyncio.shield(call)
    return call.result()


def call_batch(items: list[Item]) -> list[Any]:
    """What is mapped in batches: a plain function."""
    _note(Path(items[0]["log"]), "batch", len(items))
    values = [call(item) for item in items]
    return values[:-1] if items[-1].get("short") else values


async def acall_batch(items: list[Item]) -> list[Any]:
    """What is mapped in batches: a coroutine function."""
    _note(Path(items[0]["log"]), "batch", len(items))
    values = [await acall(item) for item in items]
    return values[:-1] if items[-1].get("short") else values


def call_inner(item: Item) -> list[Any]:
    """What is mapped, and maps itself: a plain function."""
    inner = checkpointed(f"inner {item['id']}", key="id", checkpoint_dir=item["directory"])(call)
    return list(inner.map(item["inner"], progress=False))


async def acall_inner(item: Item) -> list[Any]:
    """What is mapped, and maps itself: a coroutine function."""
    inner = checkpointed(f"inner {item['id']}", key="id", checkpoint_dir=item["directory"])(acall)
    return list(await inner.map(item["inner"], progress=False, workers=2))


class Scale:
    """A class with methods to map."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @checkpointed("law", key="id")
    def scale(self, item: Item) -> int:
        """A plain method."""
        return int(call(item)) * self.factor

    @checkpointed("law", key="id")
    async def ascale(self, item: Item) -> int:
        """A coroutine method."""
        return int(await acall(item)) * self.factor


def is_not_thirty(value: Any) -> bool:
    """What `validate=` is given."""
    return bool(value != 30)


def no_wait(made: int) -> float:
    """No wait between attempts."""
    return 0.0


def long_wait(made: int) -> float:
    """A wait that no law sits out."""
    return LONG


def short_wait(made: int) -> float:
    """A short wait between attempts."""
    return 0.02


# --- the log of calls ------------------------------------------------------------------------------------------------


class _Line(NamedTuple):
    what: str
    item: int
    pid: int
    time: float  # on the monotonic clock, which all processes share


def _note(log: Path, what: str, item: int) -> None:
    line = f"{what} {item} {os.getpid()} {clock.monotonic()!r}\n".encode()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


class _Log:
    """What has been noted so far, in its order."""

    def __init__(self, path: Path) -> None:
        text = path.read_text("ascii") if path.exists() else ""
        fields = [line.split() for line in text.splitlines()]
        self.lines = [_Line(what, int(item), int(pid), float(time)) for what, item, pid, time in fields]

    @property
    def begun(self) -> list[int]:
        """The ids of all calls that began, one for each."""
        return [line.item for line in self.lines if line.what == "begin"]

    @property
    def ended(self) -> list[int]:
        """The ids of all calls that returned."""
        return [line.item for line in self.lines if line.what == "end"]

    @property
    def batches(self) -> list[int]:
        """How many items each batch had."""
        return [line.item for line in self.lines if line.what == "batch"]


def _records_in(journal: Path) -> dict[int, dict[str, Any]]:
    """The last record of each key."""
    whole = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
    records = [json.loads(line) for line in whole]
    return {record["key"]: record for record in records if "key" in record and not record.get("forgotten")}


# --- what a pass must not change -------------------------------------------------------------------------------------


class Cycle:
    """Holds something that only a garbage collection lets go of."""

    def __init__(self, held: Any) -> None:
        self.held, self.itself = held, self


def program(*, is_ours: bool) -> dict[str, Any]:
    """What a program has that a pass leaves as it was; threads are those of ours.

    Args:
        is_ours: whether the engine is; else what is open, and what `multiprocessing` knows, is an executor's affair.
    """
    numbers = sorted(signal.valid_signals()) if hasattr(signal, "valid_signals") else []
    found: dict[str, Any] = {
        "handlers": {int(number): signal.getsignal(number) for number in numbers},
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()) if hasattr(signal, "pthread_sigmask") else None,
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "hooks": (sys.excepthook, sys.unraisablehook, threading.excepthook, list(gc.callbacks)),
        "threads": [thread for thread in threading.enumerate() if thread.name.startswith("checkpoint-")],
    }
    if is_ours:
        found["descriptors"] = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
        found["processes"] = (
            multiprocessing.get_start_method(allow_none=True),
            repr(multiprocessing.process._process_counter),  # type: ignore[attr-defined]
            multiprocessing.active_children(),
            multiprocessing.current_process().name,
            vars(sys.modules["multiprocessing.forkserver"]._forkserver).copy()
            if "multiprocessing.forkserver" in sys.modules
            else None,
        )
    return found


# --- what laws are told in -------------------------------------------------------------------------------------------


def equal(got: object, want: object, what: str) -> None:
    """Assert that two things are equal."""
    if got != want:
        raise AssertionError(f"{what}: {quote(got, 1000)}, and should be {quote(want, 1000)}")


def holds(condition: object, what: str) -> None:
    """Assert that something holds."""
    if not condition:
        raise AssertionError(f"it does not hold that {what}")


def raised(kind: type[E], act: Callable[[], object]) -> E:
    """The exception that it raises."""
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


class Trial:
    """A function under `checkpointed`, on an engine.

    Args:
        engine: what runs it.
        given: the options that make `map` use the engine.
        directory: for all files.
        plain, coroutine: the function, of either kind.
        name: of the checkpoint, and the log.
        decorate: options of the decorator.
    """

    def __init__(
        self,
        engine: Engine,
        given: Mapping[str, Any],
        directory: Path,
        plain: Callable[..., Any] = call,
        coroutine: Callable[..., Any] = acall,
        *,
        name: str = "law",
        **decorate: Any,
    ) -> None:
        self.engine = engine
        self.given = {"progress": False, **given}
        self.directory = directory
        self.name = name
        self._log = directory / f"{name}.log"
        function = coroutine if engine.is_async else plain
        decorate = {"key": "id", "checkpoint_dir": directory, **decorate}
        if isinstance(getattr(function, "__self__", None), Scale):
            self.f: Any = function.options(name=name, **decorate)  # type: ignore[attr-defined]
        else:
            self.f = checkpointed(name, **decorate)(function)

    @property
    def workers(self) -> int:
        """How many calls are made at the same time."""
        return int(self.given.get("workers") or 1)

    @property
    def log(self) -> _Log:
        """The calls so far."""
        return _Log(self._log)

    @property
    def begun(self) -> list[int]:
        """The ids of the calls so far, in the order of the items."""
        return sorted(self.log.begun)

    def item(self, number: int, *deeds: Deed, **more: Any) -> Item:
        """An item; its n-th call does the n-th deed, and those that come later the last one."""
        return {"id": number, "log": str(self._log), "deeds": list(deeds), **more}

    def items(self, count: int, deeds: Mapping[int, Sequence[Deed]] | None = None) -> list[Item]:
        """So many items; those that have no deeds return ten times their number."""
        return [self.item(number, *(deeds or {}).get(number, ())) for number in range(count)]

    def map(self, items: Iterable[Item], **options: Any) -> Any:
        """All results."""
        if self.engine.is_async:
            return asyncio.run(self._map(items, {**self.given, **options}))
        return self.f.map(items, **{**self.given, **options})

    async def _map(self, items: Iterable[Item], options: Mapping[str, Any]) -> Any:
        return await self.f.map(items, **options)

    def maps(self, several: Sequence[Sequence[Item]]) -> list[Any]:
        """All results of several maps at once, in threads or in tasks of one event loop."""
        if self.engine.is_async:
            return asyncio.run(self._maps(several))
        with futures.ThreadPoolExecutor(len(several)) as threads:
            return list(threads.map(self.map, several))

    async def _maps(self, several: Sequence[Sequence[Item]]) -> list[Any]:
        return await asyncio.gather(*[self._map(items, self.given) for items in several])

    def cancel_map(self, items: Iterable[Item], until: Callable[[], bool], then: Callable[[], None]) -> None:
        """Cancel the map of a coroutine function once something is so, do what follows, and see it end by that."""
        asyncio.run(self._cancel_map(items, until, then))

    async def _cancel_map(self, items: Iterable[Item], until: Callable[[], bool], then: Callable[[], None]) -> None:
        task = asyncio.ensure_future(self._map(items, self.given))
        await _awaited(waiting(until, "the time has come to cancel the map"))
        task.cancel()
        then()
        with suppress(asyncio.CancelledError):
            await task
        holds(task.cancelled(), "a map that is cancelled ends by that")

    def stream(
        self,
        items: Iterable[Item],
        leave: Callable[[Outcome[Any]], bool] = lambda outcome: False,
        sleep_until: Callable[[], bool] = lambda: True,
        **options: Any,
    ) -> list[Outcome[Any]]:
        """What a consumer has seen that leaves at some outcome, and sleeps after each until something is so."""
        options = {**self.given, **options}
        seen: list[Outcome[Any]] = []
        if self.engine.is_async:
            asyncio.run(self._stream(items, leave, sleep_until, options, seen))
            return seen
        for outcome in self.f.stream(items, **options):
            seen.append(outcome)
            if leave(outcome):
                break
            driven(waiting(sleep_until, "what the sleeping consumer waits for is so"))
        return seen

    async def _stream(
        self,
        items: Iterable[Item],
        leave: Callable[[Outcome[Any]], bool],
        sleep_until: Callable[[], bool],
        options: Mapping[str, Any],
        seen: list[Outcome[Any]],
    ) -> None:
        async for outcome in self.f.stream(items, **options):
            seen.append(outcome)
            if leave(outcome):
                break
            await _awaited(waiting(sleep_until, "what the sleeping consumer waits for is so"))

    def collected_elsewhere(self, items: Iterable[Item]) -> None:
        """Consume one outcome; a collection in another thread lets go of the rest."""
        if self.engine.is_async:
            asyncio.run(self._collected_elsewhere(items))
            return
        kept = Cycle(self.f.stream(items, **self.given))
        next(kept.held)
        del kept
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()

    async def _collected_elsewhere(self, items: Iterable[Item]) -> None:
        kept = Cycle(self.f.stream(items, **self.given))
        await anext(kept.held)
        del kept
        await asyncio.to_thread(gc.collect)

    def cancelled(self, items: Sequence[Item]) -> None:
        """Cancel the map of coroutine functions, once a call has begun."""

        async def cancel() -> None:
            task = asyncio.ensure_future(self._map(items, self.given))
            await _awaited(waiting(lambda: bool(self.log.begun), "a call begins"))
            task.cancel()
            await task

        raised(asyncio.CancelledError, lambda: asyncio.run(cancel()))

    # what is on disk, as somebody else reads it

    def on_disk(self, which: str = "results") -> dict[int, dict[str, Any]]:
        """The last record of each key."""
        return _records_in(self.directory / f"{self.name}_{which}.jsonl")

    @property
    def spent(self) -> float:
        """What the checkpoint has cost."""
        return sum_of(self.f.runner.records.open().spent())

    @property
    def failed(self) -> dict[int, ItemError]:
        """The items that have failed and have no result."""
        return dict(self.f.errors)


class Make:
    """Makes trials of one engine, and closes them."""

    def __init__(self, engine: Engine, given: Mapping[str, Any], directory: Path, stack: ExitStack) -> None:
        self.engine = engine
        self._given, self._directory, self._stack = given, directory, stack

    def __call__(self, *functions: Callable[..., Any], **options: Any) -> Trial:
        trial = Trial(self.engine, self._given, self._directory, *functions, **options)
        self._stack.callback(lambda: trial.f.runner.close())
        return trial

    def each_way(self, name: str = "") -> Iterator[tuple[Trial, dict[str, Any]]]:
        """A trial call by call, and one in chunks, where the engine has them; with options for its map."""
        yield self(name=f"{name}alone"), {}
        if not self.engine.is_async:
            yield self(name=f"{name}chunks"), {"chunksize": 4}
