"""The laws that hold whatever runs the function: one suite for our own engines and for anybody's executor.

Whoever writes a `concurrent.futures.Executor` proves in three lines that `map` and `stream` keep their promises on it::

    from checkpoint.testing import check, for_executor

    check(for_executor(lambda: MyExecutor(max_workers=2)))

or has pytest name each law that does not hold::

    @pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
    def test_law(law, tmp_path):
        law(for_executor(lambda: MyExecutor(max_workers=2)), tmp_path)

Calls are counted by the function itself, in a file that all processes append to. No law asserts how long something
takes: what must happen is waited for, and what must not is counted. A law that says nothing of an engine of its kind
(such as of killed workers, where there are none) holds.
"""

from __future__ import annotations

import asyncio
import decimal
import importlib.util
import itertools
import json
import math
import os
import re
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Executor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from checkpoint import clock
from checkpoint.decorator import checkpointed
from checkpoint.errors import BrokenWorkers, ItemError, ItemsFailed, TooManyErrors, quote
from checkpoint.outcomes import Outcome
from checkpoint.policies import Rate, Retry

__all__ = ["LAWS", "Engine", "Law", "check", "for_executor"]

Item = dict[str, Any]
Deed = list[Any]  # what a call does: a verb and its arguments
E = TypeVar("E", bound=BaseException)

_PATIENCE = 30.0  # seconds after which what must happen counts as not happening
_POLL = 0.005
_LONG = 30.0  # seconds that nobody who keeps the law waits
_HAS_CLOUDPICKLE = importlib.util.find_spec("cloudpickle") is not None


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


def check(
    engine: Engine, directory: str | os.PathLike[str] | None = None, *, laws: Sequence[Law] | None = None
) -> None:
    """Have the engine prove all laws, each in a directory of its own.

    An executor that never ends a call makes this wait for ever: run it under a time limit.

    Args:
        engine: see `for_executor`.
        directory: where subdirectories are made, which are left for who wants to look; default a temporary one.
        laws: some of `LAWS`; default all.

    Raises:
        ExceptionGroup: some do not hold: its message names them, its members say how.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> check(for_executor(lambda: ThreadPoolExecutor(2)))
    """
    broken: list[tuple[str, Exception]] = []
    with ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        for law in LAWS if laws is None else laws:
            name = getattr(law, "__name__", repr(law))
            place = Path(directory, name)
            place.mkdir(parents=True)
            try:
                law(engine, place)
            except Exception as error:  # whatever it raises, the law does not hold
                error.add_note(f"law: {name}: {law.__doc__}")
                broken.append((name, error))
    if broken:
        names = ", ".join([name for name, _ in broken])
        raise ExceptionGroup(f"{engine.name} does not keep: {names}", [error for _, error in broken])


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


class _Elapsed(BaseException):
    """As gevent and test runners raise it when a time is up."""


_VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "not a number": lambda: [math.nan, -0.0, math.inf],
    "tuple": lambda: {"deep": [(1, (2,))]},
    "set": lambda: {(1, "1")},
    "bytes": lambda: b"\x00\xff",
    "keys": lambda: {1: "a", (2, 3): "b"},
    "text": lambda: "\u2028 \ud800",
    "megabyte": lambda: "x" * 1_000_000,
    "a function": lambda: {"deep": [_call]},
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
    "Elapsed": _Elapsed,
    "Strange": lambda message: _Strange(7, detail=message),
    "TooManyRequests": _TooManyRequests,
}
_VARIABLE: ContextVar[str] = ContextVar("_VARIABLE", default="not set")


def _raise(kind: str, message: str = "on purpose") -> None:
    raise _RAISED[kind](message)


def _kill() -> None:
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


def _spin() -> None:
    """Hold the interpreter's lock for longer than anyone waits."""
    re.match(r"(a|aa)+$", "a" * 100 + "b")


def _look_and_leave() -> list[Any]:
    """What a call sees of its context; it changes all of that."""
    seen = [_VARIABLE.get(), decimal.getcontext().prec]
    _VARIABLE.set("left by a call")
    decimal.getcontext().prec = 5
    return seen


_DEEDS: dict[str, Callable[..., Any]] = {
    "return": lambda value: value,
    "raise": _raise,
    "make": lambda name: _VALUES[name](),
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
        yield from _waiting(lambda: os.path.exists(gate), f"somebody makes {gate}")
        verb, *given = then or ["go on"]
    elif verb == "after":
        yield from _waiting(lambda: given[0] in _Log(log).ended, f"the call for item {given[0]} ends")
    elif verb == "recorded":
        key, journal = given
        yield from _waiting(lambda: key in _records_in(Path(journal)), f"the result for item {key} is on disk")
    value = _DEEDS[verb](*given) if verb in _DEEDS else item["id"] * 10
    _note(log, "end", item["id"])
    return value


def _deed(item: Item, log: Path) -> Deed:
    deeds: list[Deed] = item["deeds"]
    if not deeds:
        return ["go on"]
    return deeds[0] if len(deeds) == 1 else deeds[min(_Log(log).begun.count(item["id"]), len(deeds)) - 1]


def _waiting(until: Callable[[], bool], what: str) -> Generator[float, None, None]:
    """Yield the seconds to sleep until it is so."""
    end = clock.monotonic() + _PATIENCE
    while not until():
        if clock.monotonic() > end:
            raise AssertionError(f"for {_PATIENCE:g} s it was waited in vain that {what}")
        yield _POLL


def _driven(script: Generator[float, None, Any]) -> Any:
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


def _call(item: Item) -> Any:
    return _driven(_play(item))


async def _acall(item: Item) -> Any:
    return await _awaited(_play(item))


def _call_batch(items: list[Item]) -> list[Any]:
    _note(Path(items[0]["log"]), "batch", len(items))
    values = [_call(item) for item in items]
    return values[:-1] if items[-1].get("short") else values


async def _acall_batch(items: list[Item]) -> list[Any]:
    _note(Path(items[0]["log"]), "batch", len(items))
    values = [await _acall(item) for item in items]
    return values[:-1] if items[-1].get("short") else values


def _call_inner(item: Item) -> list[Any]:
    inner = checkpointed(f"inner {item['id']}", key="id", checkpoint_dir=item["directory"])(_call)
    return list(inner.map(item["inner"], progress=False))


async def _acall_inner(item: Item) -> list[Any]:
    inner = checkpointed(f"inner {item['id']}", key="id", checkpoint_dir=item["directory"])(_acall)
    return list(await inner.map(item["inner"], progress=False, workers=2))


class _Scale:
    """A class with methods to map."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @checkpointed("law", key="id")
    def scale(self, item: Item) -> int:
        """A plain method."""
        return int(_call(item)) * self.factor

    @checkpointed("law", key="id")
    async def ascale(self, item: Item) -> int:
        """A coroutine method."""
        return int(await _acall(item)) * self.factor


def _is_not_thirty(value: Any) -> bool:
    return bool(value != 30)


def _no_wait(made: int) -> float:
    return 0.0


def _long_wait(made: int) -> float:
    return _LONG


def _short_wait(made: int) -> float:
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
    return {record["key"]: record for record in records if not record.get("forgotten")}


# --- what laws are told in -------------------------------------------------------------------------------------------


def _equal(got: object, want: object, what: str) -> None:
    if got != want:
        raise AssertionError(f"{what}: {quote(got, 1000)}, and should be {quote(want, 1000)}")


def _holds(condition: object, what: str) -> None:
    if not condition:
        raise AssertionError(f"it does not hold that {what}")


def _raised(kind: type[E], act: Callable[[], object]) -> E:
    """The exception that it raises."""
    try:
        act()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


class _Trial:
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
        plain: Callable[..., Any] = _call,
        coroutine: Callable[..., Any] = _acall,
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
        if isinstance(getattr(function, "__self__", None), _Scale):
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
            _driven(_waiting(sleep_until, "what the sleeping consumer waits for is so"))
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
            await _awaited(_waiting(sleep_until, "what the sleeping consumer waits for is so"))

    # what is on disk, as somebody else reads it

    def on_disk(self, which: str = "results") -> dict[int, dict[str, Any]]:
        """The last record of each key."""
        return _records_in(self.directory / f"{self.name}_{which}.jsonl")

    @property
    def failed(self) -> dict[int, ItemError]:
        """The items that have failed and have no result."""
        return dict(self.f.errors)


class _Make:
    """Makes trials of one engine, and closes them."""

    def __init__(self, engine: Engine, given: Mapping[str, Any], directory: Path, stack: ExitStack) -> None:
        self.engine = engine
        self._given, self._directory, self._stack = given, directory, stack

    def __call__(self, *functions: Callable[..., Any], **options: Any) -> _Trial:
        trial = _Trial(self.engine, self._given, self._directory, *functions, **options)
        self._stack.callback(lambda: trial.f.runner.close())
        return trial

    def each_way(self, name: str = "") -> Iterator[tuple[_Trial, dict[str, Any]]]:
        """A trial call by call, and one in chunks, where the engine has them; with options for its map."""
        yield self(name=f"{name}alone"), {}
        if not self.engine.is_async:
            yield self(name=f"{name}chunks"), {"chunksize": 4}


_laws: list[Law] = []


def _law(body: Callable[[_Make], None]) -> Law:
    """Tell a law by trials of one engine."""

    def law(engine: Engine, directory: Path) -> None:
        with ExitStack() as stack:
            body(_Make(engine, stack.enter_context(engine.options()), directory, stack))

    law.__name__ = law.__qualname__ = body.__name__.lstrip("_")
    law.__doc__ = body.__doc__
    _laws.append(law)
    return law


# --- all of it, in order, once ---------------------------------------------------------------------------------------


@_law
def _results_stand_in_the_order_of_the_items(make: _Make) -> None:
    """Whatever finishes first."""
    trial = make()
    slow = {0: [["after", 1]]} if trial.workers > 1 else {}
    _equal(trial.map(trial.items(8, slow)), [n * 10 for n in range(8)], "the results")


@_law
def _each_item_is_called_once(make: _Make) -> None:
    """No item is left out, and none is called twice."""
    trial = make()
    trial.map(trial.items(50))
    _equal(trial.begun, list(range(50)), "the calls")


@_law
def _no_more_calls_are_made_at_once_than_there_are_workers(make: _Make) -> None:
    """At any moment, by the log's own order."""
    trial = make()
    trial.map(trial.items(30))
    at_once = most = 0
    for line in trial.log.lines:
        at_once += 1 if line.what == "begin" else -1
        most = max(most, at_once)
    _holds(most <= trial.workers, f"{most} calls at once are no more than {trial.workers} workers make")


@_law
def _two_thousand_tiny_items_are_all_done(make: _Make) -> None:
    """Each once; in chunks too, the last of which is not full."""
    trial = make()
    _equal(trial.map(trial.items(2000)), [n * 10 for n in range(2000)], "the results")
    _equal(trial.begun, list(range(2000)), "the calls")
    if not trial.engine.is_async:
        trial = make(name="chunks")
        _equal(trial.map(trial.items(2000), chunksize=70), [n * 10 for n in range(2000)], "the results of chunks")
        _equal(trial.begun, list(range(2000)), "the calls in chunks")


@_law
def _no_items_make_no_results(make: _Make) -> None:
    """An empty map is empty, and makes no calls."""
    trial = make()
    _equal(trial.map([]), [], "the results of a list")
    _equal(trial.map(iter([])), [], "the results of an iterator")
    _equal(trial.stream([]), [], "the outcomes")


@_law
def _values_come_back_as_they_were(make: _Make) -> None:
    """Their types at every depth, in the pass that made them, on a resumed one, and when read by key."""
    trial = make()
    names = [name for name in _VALUES if name not in ("a function", "a lock")]
    want = [repr(_VALUES[name]()) for name in names]
    items = [trial.item(n, ["make", name]) for n, name in enumerate(names)]
    _equal([repr(value) for value in trial.map(items)], want, "the values")
    _equal([repr(value) for value in trial.map(items)], want, "the resumed values")
    _equal([repr(trial.f.results[n]) for n in range(len(names))], want, "the values read by key")


@_law
def _large_results_are_saved_whole(make: _Make) -> None:
    """A megabyte each."""
    trial = make()
    items = [trial.item(n, ["make", "megabyte"]) for n in range(8)]
    _equal([len(value) for value in trial.map(items)], [1_000_000] * 8, "the lengths of the results")
    _equal(trial.failed, {}, "the failures")


# --- resume ----------------------------------------------------------------------------------------------------------


@_law
def _a_second_map_calls_nothing(make: _Make) -> None:
    """It returns the same, from disk."""
    trial = make()
    items = trial.items(10)
    first = trial.map(items)
    _equal(trial.map(items), list(first), "the second map's results")
    _equal(trial.map(iter(items)), list(first), "the results of a map of an iterator")
    _equal(trial.begun, list(range(10)), "the calls")
    outcomes = trial.stream(items)
    _equal({outcome.source for outcome in outcomes}, {"resumed"}, "where the outcomes come from")


@_law
def _what_is_cleared_is_called_again_and_nothing_else(make: _Make) -> None:
    """`clear(keys)` forgets these."""
    trial = make()
    trial.map(trial.items(6))
    trial.f.clear([2, 4])
    trial.map(trial.items(6))
    _equal(trial.begun, [0, 1, 2, 2, 3, 4, 4, 5], "the calls")


@_law
def _a_changed_item_does_as_on_change_says(make: _Make) -> None:
    """Its old result is kept, or it alone is computed anew."""
    for policy, calls in (("keep", [0, 1, 2]), ("recompute", [0, 1, 1, 2])):
        trial = make(name=policy, on_change=policy)
        trial.map([trial.item(n, ["return", "old"]) for n in range(3)])
        changed = [trial.item(n, ["return", "new" if n == 1 else "old"]) for n in range(3)]
        again = "new" if policy == "recompute" else "old"
        _equal(trial.map(changed), ["old", again, "old"], f"the results with on_change={policy!r}")
        _equal(trial.begun, calls, f"the calls with on_change={policy!r}")


@_law
def _methods_are_mapped_by_the_version_of_their_instance(make: _Make) -> None:
    """Another instance's results are others, and are there when it comes back."""

    def of(factor: int) -> _Trial:
        return make(_Scale(factor).scale, _Scale(factor).ascale)

    trial = of(2)
    _equal(trial.map(trial.items(3)), [0, 20, 40], "the results of the first instance")
    _equal(of(3).map(trial.items(3)), [0, 30, 60], "the results of another")
    _equal(of(2).map(trial.items(3)), [0, 20, 40], "the results of the first one again")
    _equal(trial.begun, [0, 0, 1, 1, 2, 2], "the calls")


@_law
def _closures_and_lambdas_are_mapped(make: _Make) -> None:
    """They travel by cloudpickle to other processes; where that is missing, nothing is said here."""
    add = 5

    async def closure(item: Item) -> int:
        return int(await _acall(item)) + add

    trial = make(lambda item: _call(item) + add, closure)
    if trial.engine.is_local or _HAS_CLOUDPICKLE:
        _equal(trial.map(trial.items(4)), [5, 15, 25, 35], "the results")


@_law
def _a_pass_inside_of_a_pass_runs(make: _Make) -> None:
    """A function may map another checkpoint, where calls are made in this process."""
    if not make.engine.is_local:
        return
    trial = make(_call_inner, _acall_inner)
    inner = trial.items(3)
    items = [{"id": n, "directory": str(trial.directory), "inner": inner} for n in range(3)]
    _equal(trial.map(items), [[0, 10, 20]] * 3, "the results")
    _equal(trial.map(items), [[0, 10, 20]] * 3, "the resumed results")
    _equal(trial.begun, [0, 0, 0, 1, 1, 1, 2, 2, 2], "the calls inside")


@_law
def _each_call_has_the_callers_context_and_leaves_nothing_in_it(make: _Make) -> None:
    """Context variables where calls are made in this process, and the settings of arithmetic on every engine."""
    variable = "set by the caller" if make.engine.is_local else "not set"
    token = _VARIABLE.set("set by the caller")
    try:
        with decimal.localcontext() as numbers:
            numbers.prec = 40
            for trial, options in make.each_way():
                got = trial.map([trial.item(n, ["look and leave"]) for n in range(12)], **options)
                _equal(got, [[variable, 40]] * 12, "the variable, and the precision of decimal, in each call")
            trial = make(_call_batch, _acall_batch, name="batches", batch_size=3)
            got = trial.map([trial.item(n, ["look and leave"]) for n in range(12)])
            _equal(got[::3], [[variable, 40]] * 4, "the same, in each batch")
            _equal((_VARIABLE.get(), decimal.getcontext().prec), ("set by the caller", 40), "the caller's own")
    finally:
        _VARIABLE.reset(token)


# --- equal items -----------------------------------------------------------------------------------------------------


@_law
def _equal_items_share_one_call(make: _Make) -> None:
    """One result stands in all their places, and `stream` yields an outcome for each."""
    trial = make()
    one, two = trial.item(1), trial.item(2)
    _equal(trial.map([one, two, dict(one), one]), [10, 20, 10, 10], "the results")
    trial = make(name="stream")
    one, two = trial.item(1), trial.item(2, ["raise", "ValueError"])
    outcomes = trial.stream(iter([one, two, dict(one), two, one]))
    _equal(sorted((outcome.key, outcome.ok) for outcome in outcomes), [(1, True)] * 3 + [(2, False)] * 2, "outcomes")
    _equal(trial.begun, [1, 2], "the calls")


@_law
def _an_item_whose_equal_runs_waits_for_it(make: _Make) -> None:
    """It is not called a second time meanwhile, and shares its end."""
    trial = make()
    if trial.workers < 2:
        return
    for number, then in enumerate(([], ["raise", "ValueError"], [], ["raise", "ValueError"])):
        gate = trial.directory / f"gate {number}"
        item = trial.item(number, ["await", str(gate), *then])

        def drawn(item: Item = item, gate: Path = gate) -> Iterator[Item]:
            yield item
            yield dict(item)
            gate.touch()
            yield item

        if number < 2:
            ends = [outcome.ok for outcome in trial.stream(drawn())]
        else:
            ends = [not isinstance(value, ItemError) for value in trial.map(drawn(), return_exceptions=True)]
        _equal(ends, [not then] * 3, "whether each of the equal items has a result")
        _equal(trial.begun.count(number), 1, "the calls of the equal items")


# --- failures --------------------------------------------------------------------------------------------------------

_BAD: Final[dict[int, list[Deed]]] = {
    1: [["raise", "ValueError"], ["return", 10]],
    4: [["raise", "KeyError"], ["return", 40]],
    5: [["raise", "ValueError"], ["return", 50]],
}


@_law
def _failures_do_not_stop_the_rest(make: _Make) -> None:
    """All others are run and saved; then `ItemsFailed` counts by type, and the same call runs only the failed again."""
    trial = make()
    items = trial.items(10, _BAD)
    error = _raised(ItemsFailed, lambda: trial.map(items))
    _equal(sorted(trial.on_disk()), [0, 2, 3, 6, 7, 8, 9], "what is on disk")
    _holds("2 ValueError" in str(error) and "1 KeyError" in str(error), f"the message counts by type: {error}")
    _equal(len(error.exceptions), 3, "how many exceptions it has")
    assert error.results is not None
    _equal([n for n, value in enumerate(error.results) if isinstance(value, ItemError)], [1, 4, 5], "the failed places")
    _equal(trial.map(items), [n * 10 for n in range(10)], "the results of the same call")
    _equal(trial.begun, [0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9], "the calls")
    _equal(trial.failed, {}, "the failures that are left")


@_law
def _failures_stand_in_their_places_where_asked_for(make: _Make) -> None:
    """With `return_exceptions`, as `ItemError`."""
    trial = make()
    got = trial.map(trial.items(7, _BAD), return_exceptions=True)
    told = [value.type if isinstance(value, ItemError) else value for value in got]
    _equal(told, [0, "ValueError", 20, 30, "KeyError", "ValueError", 60], "the results")


@_law
def _a_failure_is_recorded_with_what_explains_it(make: _Make) -> None:
    """Type, message, a traceback that names the user's function, attempts, and seconds."""
    trial = make()
    trial.map(trial.items(3, {1: [["raise", "ValueError", "the message"]]}), return_exceptions=True)
    error = trial.f.errors[1]
    _equal((error.key, error.type, error.message, error.attempts), (1, "ValueError", "the message", 1), "the failure")
    name = "_acall" if trial.engine.is_async else "_call"
    _holds(f"in {name}\n" in error.traceback, f"the traceback names {name}: {error.traceback}")
    elapsed = trial.on_disk("errors")[1].get("elapsed")
    _holds(isinstance(elapsed, (int, float)) and elapsed >= 0, f"elapsed is a number of seconds: {elapsed}")
    done = trial.on_disk()[0]
    _holds(isinstance(done.get("elapsed"), (int, float)), "a result is recorded with its seconds too")


@_law
def _old_failures_stand_where_they_are_not_retried(make: _Make) -> None:
    """With `retry_failed=False` they are not called, and do not raise by themselves."""
    trial = make()
    items = trial.items(10, _BAD)
    trial.map(items, return_exceptions=True)
    got = trial.map([*items, trial.item(10)], retry_failed=False)
    _equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [1, 4, 5], "the failed places")
    _equal(trial.begun, list(range(11)), "the calls")


@_law
def _max_errors_ends_the_pass(make: _Make) -> None:
    """Only what ran meanwhile is run beyond it; what is left is run by the next call."""
    trial = make()
    items = trial.items(40, {n: [["raise", "ValueError"], ["return", n * 10]] for n in range(0, 40, 2)})
    error = _raised(TooManyErrors, lambda: trial.map(items, max_errors=2))
    _holds("max_errors=2" in str(error), f"the message says why: {error}")
    bad = sum(n % 2 == 0 for n in trial.begun)
    _holds(3 <= bad <= 2 + trial.workers, f"{bad} failures with max_errors=2 and {trial.workers} workers are enough")
    _holds(set(trial.log.ended) == set(trial.on_disk()), "what finished is on disk")
    trial.map(items, return_exceptions=True)
    _equal(trial.map(items), [n * 10 for n in range(40)], "the results in the end")


@_law
def _a_hundred_failures_of_one_type_end_the_pass(make: _Make) -> None:
    """The key or the quota is dead: the rest is not tried."""
    trial = make()
    items = [trial.item(n, ["raise", "RuntimeError"]) for n in range(150)]
    _raised(TooManyErrors, lambda: trial.map(items))
    calls = len(trial.begun)
    _holds(
        100 <= calls <= 99 + trial.workers, f"{calls} calls with {trial.workers} workers are a hundred, and few more"
    )


@_law
def _what_validate_refuses_is_a_failure(make: _Make) -> None:
    """It is never a result, and is called again by the next map."""
    trial = make(validate=_is_not_thirty)
    got = trial.map(trial.items(5), return_exceptions=True)
    _holds(isinstance(got[3], ItemError) and "RefusedValue" in str(got[3].type), f"{got[3]!r} is a refused value")
    _equal([*got[:3], got[4]], [0, 10, 20, 40], "the other results")
    _equal(sorted(trial.on_disk()), [0, 1, 2, 4], "what is on disk")
    trial.map(trial.items(5), return_exceptions=True)
    _equal(trial.begun, [0, 1, 2, 3, 3, 4], "the calls")


@_law
def _an_exit_ends_the_pass_after_what_finished_is_saved(make: _Make) -> None:
    """SystemExit in a function is no failure of its item; it is run by the next call, as is the rest of its chunk."""
    for trial, options in make.each_way():
        items = trial.items(20, {5: [["raise", "SystemExit", "over"], ["return", 50]]})
        error = _raised(SystemExit, lambda trial=trial, items=items, options=options: trial.map(items, **options))  # type: ignore[misc]
        _holds("over" in str(error), f"{error!r} is what the function raised")
        _holds("item 5 " in " ".join(error.__notes__), f"a note names the item: {error.__notes__}")
        _equal(set(trial.on_disk()), set(trial.log.ended), "what is on disk")
        _equal(trial.failed, {}, "the failures")
        before = set(trial.on_disk())
        if options:
            _equal(before & {6, 7}, set(), "what came after it in its chunk and was called")
        _equal(trial.map(items, **options), [n * 10 for n in range(20)], "the results of the same call")
        _equal({n for n in before if trial.begun.count(n) > 1}, set(), "what was on disk and was called again")


@_law
def _an_exit_with_status_0_is_none_while_items_are_left(make: _Make) -> None:
    """Whatever the function means by it: who started the process takes 0 for done."""
    for number, kind in enumerate(("SystemExit(0)", "SystemExit()", "SystemExit(256)")):
        trial = make(name=f"exit{number}")
        items = trial.items(8, {3: [["raise", kind], ["return", 30]]})
        error = _raised(SystemExit, lambda trial=trial, items=items: trial.map(items))  # type: ignore[misc]
        _holds(isinstance(error.code, str) and "item 3," in error.code, f"the status is a text with it: {error.code!r}")
        _equal(trial.failed, {}, "the failures")
    trial = make(_call_batch, _acall_batch, name="batches", batch_size=2)
    error = _raised(SystemExit, lambda: trial.map(trial.items(4, {3: [["raise", "SystemExit(0)"]]})))
    _holds("items 2, 3," in str(error.code), f"the status names the batch: {error.code!r}")


@_law
def _a_panic_or_a_cancellation_is_its_items_failure(make: _Make) -> None:
    """Though it is no Exception: nobody has asked the pass to end. It stands as `ItemError`."""
    kinds = ["PanicException", "CancelledError", "CancelledError of a future", "group"]
    trial = make()
    items = trial.items(8, {n: [["raise", kind], ["return", n * 10]] for n, kind in enumerate(kinds)})
    got = trial.map(items, return_exceptions=True)
    told = [str(value.type).rpartition(".")[2] if isinstance(value, ItemError) else value for value in got]
    _equal(told, ["PanicException", *["CancelledError"] * 2, "BaseExceptionGroup", 40, 50, 60, 70], "the results")
    _equal(trial.map(items), [n * 10 for n in range(8)], "the results of the same call")


@_law
def _any_other_base_exception_ends_the_pass_and_names_the_item(make: _Make) -> None:
    """As of gevent, and of test runners, when a time is up."""
    trial = make()
    items = trial.items(8, {3: [["raise", "Elapsed"], ["return", 30]]})
    error = _raised(_Elapsed, lambda: trial.map(items))
    _holds("item 3 " in " ".join(error.__notes__), f"a note names the item: {error.__notes__}")
    _equal(set(trial.on_disk()), set(trial.log.ended), "what is on disk")
    _equal(trial.map(items), [n * 10 for n in range(8)], "the results of the same call")


# --- what cannot be written, or cannot travel ------------------------------------------------------------------------


def _spoils_only_itself(trial: _Trial, items: Sequence[Item], bad: int, **options: Any) -> None:
    _raised(ItemsFailed, lambda: trial.map(items, **options))
    _equal(sorted(trial.failed), [bad], "the failed items")
    _equal(sorted(trial.on_disk()), [n for n in range(len(items)) if n != bad], "what is on disk")


@_law
def _a_value_that_cannot_be_written_is_kept(make: _Make) -> None:
    """Its item has failed, the value is in `.unsaved`, and it is not paid for again by itself."""
    for trial, options in make.each_way():
        items = trial.items(8, {2: [["make", "a function"]]})
        _spoils_only_itself(trial, items, 2, **options)
        _equal(trial.f.errors[2].type, "UnencodableValue", "the type of the failure")
        _equal(trial.f.unsaved[2], {"deep": [_call]}, "the value that was kept")
        _raised(ItemsFailed, lambda trial=trial, items=items: trial.map(items))  # type: ignore[misc]
        _equal(trial.begun, list(range(8)), "the calls")


@_law
def _a_value_that_cannot_be_pickled_fails_only_its_item(make: _Make) -> None:
    """What it looks like is kept in `.unsaved`."""
    for trial, options in make.each_way():
        _spoils_only_itself(trial, trial.items(8, {2: [["make", "a lock"]]}), 2, **options)
        _equal(trial.f.errors[2].type, "UnencodableValue", "the type of the failure")
        _holds("lock" in repr(trial.f.unsaved[2]), f"{trial.f.unsaved[2]!r} looks like a lock")
        _equal(trial.begun, list(range(8)), "the calls")


@_law
def _an_exception_that_cannot_travel_fails_only_its_item(make: _Make) -> None:
    """Its type and message are recorded all the same."""
    for trial, options in make.each_way():
        _spoils_only_itself(trial, trial.items(8, {2: [["raise", "Strange", "how odd"]]}), 2, **options)
        error = trial.f.errors[2]
        _holds("_Strange" in (error.type or "") and error.message == "how odd (7)", f"{error!r} is what was raised")
        _equal(trial.begun, list(range(8)), "the calls")


@_law
def _an_item_that_cannot_be_pickled_fails_by_itself(make: _Make) -> None:
    """Where calls are made in this process it is called as any other."""
    for trial, options in make.each_way():
        items = trial.items(8)
        items[2]["lock"] = threading.Lock()
        if trial.engine.is_local:
            _equal(trial.map(items, **options), [n * 10 for n in range(8)], "the results")
        else:
            _spoils_only_itself(trial, items, 2, **options)


# --- chunks and batches ----------------------------------------------------------------------------------------------


@_law
def _failures_in_a_chunk_stay_per_item(make: _Make) -> None:
    """Those that failed are recorded each by itself, and only they are called again."""
    if make.engine.is_async:
        return
    trial = make()
    items = trial.items(10, _BAD)
    _raised(ItemsFailed, lambda: trial.map(items, chunksize=4))
    _equal({key: error.type for key, error in trial.failed.items()}, {1: "ValueError", 4: "KeyError", 5: "ValueError"},
           "the failures")  # fmt: skip
    _equal(trial.map(items, chunksize=4), [n * 10 for n in range(10)], "the results of the same call")
    _equal(trial.begun, [0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9], "the calls")


@_law
def _a_batch_is_a_list_of_at_most_so_many_items(make: _Make) -> None:
    """Each item has its own result, and the last batch need not be full."""
    trial = make(_call_batch, _acall_batch, batch_size=3)
    _equal(trial.map(iter(trial.items(10))), [n * 10 for n in range(10)], "the results")
    _equal(sorted(trial.log.batches), [1, 3, 3, 3], "the sizes of the batches")
    _equal(trial.map([*trial.items(10), trial.item(10)]), [n * 10 for n in range(11)], "the results with one more")
    _equal(trial.begun, list(range(11)), "the calls")


@_law
def _a_batch_that_fails_is_tried_again_item_by_item(make: _Make) -> None:
    """Only the culprit fails."""
    trial = make(_call_batch, _acall_batch, batch_size=4)
    got = trial.map(trial.items(12, {5: [["raise", "ValueError"]]}), return_exceptions=True)
    _equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [5], "the failed places")
    _equal(trial.failed[5].type, "ValueError", "the type of the failure")
    _equal(sorted(trial.on_disk()), [n for n in range(12) if n != 5], "what is on disk")


@_law
def _a_batch_of_another_length_is_an_error_that_says_both(make: _Make) -> None:
    """It cannot be told which value is whose."""
    trial = make(_call_batch, _acall_batch, batch_size=4)
    items = trial.items(8)
    items[7]["short"] = True
    got = trial.map(items, return_exceptions=True)
    _equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [7], "the failed places")
    message = trial.failed[7].message
    _holds("list of 1 item" in message and "list of 0" in message, f"both lengths are in: {message}")


# --- retries, rates, time --------------------------------------------------------------------------------------------


@_law
def _a_retry_makes_so_many_attempts(make: _Make) -> None:
    """The first one included; how many is recorded, of a result as of a failure."""
    trial = make(retry=Retry(3, on=ValueError, wait=_no_wait))
    twice: list[Deed] = [["raise", "ValueError"], ["raise", "ValueError"], ["return", "at last"]]
    items = trial.items(6, {1: twice, 2: [["raise", "ValueError"]], 3: [["raise", "KeyError"]]})
    got = trial.map(items, return_exceptions=True)
    _equal(got[1], "at last", "the result of the third attempt")
    _equal(trial.begun, [0, 1, 1, 1, 2, 2, 2, 3, 4, 5], "the calls")
    _equal(trial.on_disk()[1].get("attempts"), 3, "the attempts that a result took")
    _equal({key: error.attempts for key, error in trial.failed.items()}, {2: 3, 3: 1}, "the attempts of the failures")


@_law
def _a_retry_waits_without_a_worker(make: _Make) -> None:
    """Others go on, though as many wait as there are workers."""
    trial = make(retry=Retry(2, on=ValueError, wait=_long_wait, max_wait=_LONG))
    waits = range(trial.workers)
    others = {n + trial.workers for n in range(10)}
    items = trial.items(trial.workers + 10, {n: [["raise", "ValueError"], ["return", 0]] for n in waits})

    def leave(outcome: Outcome[Any]) -> bool:
        others.discard(outcome.key)
        return not others

    trial.stream(items, leave)
    _equal([n for n in trial.begun if n in waits], list(waits), "the calls of those that wait, when others were done")


@_law
def _a_retry_after_costs_no_attempt(make: _Make) -> None:
    """With status 429 the server did not work on it: it is called again, more often than there are attempts."""
    trial = make(retry=Retry(2, wait=_no_wait))
    busy: list[Deed] = [["raise", "TooManyRequests"]] * 4
    _equal(trial.map(trial.items(4, {1: [*busy, ["return", "at last"]]})), [0, "at last", 20, 30], "the results")
    _equal(trial.begun.count(1), 5, "the calls")
    _equal(trial.on_disk()[1].get("attempts"), 1, "the attempts")


@_law
def _a_rate_is_kept_in_every_window(make: _Make) -> None:
    """No more calls start within its seconds than its limit, retries among them.

    A call starts between when it was drawn, or had failed, and its line in the log: a window that holds both holds it.
    """
    limit, per = 2, 0.1
    trial = make(rate=Rate(limit, per=per), retry=Retry(2, on=ValueError, wait=_no_wait))
    earliest: dict[int, list[float]] = {}

    def drawn() -> Iterator[Item]:
        for item in trial.items(9, {3: [["raise", "ValueError"], ["return", 30]]}):
            earliest[item["id"]] = [clock.monotonic()]
            yield item

    _equal(trial.map(drawn()), [n * 10 for n in range(9)], "the results")
    spans = []
    for line in trial.log.lines:
        if line.what == "begin":
            spans.append((earliest[line.item][-1], line.time))
            earliest[line.item].append(line.time)
    for start in [first for first, _ in spans]:
        within = sum(start <= first and last < start + per for first, last in spans)
        _holds(within <= limit, f"{within} calls within {per:g} s are no more than {limit}")


@_law
def _a_rate_lets_go_of_what_is_drawn_when_nothing_runs(make: _Make) -> None:
    """An item that comes when all before it are done, and no permit is left, is called once there is one."""
    trial = make(rate=Rate(1, per=0.1))

    def drawn() -> Iterator[Item]:
        for item in trial.items(4):
            yield item
            if not trial.engine.is_async:  # whose loop must not be held up
                _driven(_waiting(lambda: item["id"] in trial.on_disk(), f"item {item['id']} is saved"))  # noqa: B023

    _equal(trial.map(drawn()), [0, 10, 20, 30], "the results")


@_law
def _a_call_that_takes_too_long_is_ended(make: _Make) -> None:
    """Where calls can be ended: it is a TimeoutError, and may be retried."""
    if not (make.engine.is_async or make.engine.survives):
        return
    trial = make(timeout=1.0, retry=Retry(2, on=TimeoutError, wait=_no_wait))
    late: dict[int, list[Deed]] = {1: [["sleep", _LONG], ["return", "in time"]], 2: [["sleep", _LONG]]}
    got = trial.map(trial.items(8, late), return_exceptions=True)
    _equal([*got[:2], *got[3:]], [0, "in time", 30, 40, 50, 60, 70], "the results")
    error = trial.f.errors[2]
    _equal((error.type, error.attempts), ("TimeoutError", 2), "the failure")
    _equal(trial.on_disk()[1].get("attempts"), 2, "the attempts of the one that was in time")
    _equal(trial.begun, [0, 1, 1, 2, 2, 3, 4, 5, 6, 7], "the calls")


@_law
def _a_call_that_lets_nothing_else_run_is_ended(make: _Make) -> None:
    """One that holds the interpreter's lock, in compiled code, where processes are killed."""
    if not make.engine.survives:
        return
    trial = make(timeout=1.0)
    got = trial.map(trial.items(6, {1: [["spin"]]}), return_exceptions=True)
    _equal([got[0], *got[2:]], [0, 20, 30, 40, 50], "the results")
    _equal(trial.f.errors[1].type, "TimeoutError", "the failure")


# --- input, consumers, disk ------------------------------------------------------------------------------------------


@_law
def _a_stream_yields_what_completes_once_it_is_on_disk(make: _Make) -> None:
    """Somebody else reads there what was yielded; an item's failure is its outcome's error."""
    trial = make()
    deeds = dict(_BAD)
    if trial.workers > 1:
        deeds[0] = [["recorded", 2, str(trial.directory / f"{trial.name}_results.jsonl")]]
    missing = []

    def leave(outcome: Outcome[Any]) -> bool:
        if outcome.key not in trial.on_disk("results" if outcome.ok else "errors"):
            missing.append(outcome.key)
        return False

    outcomes = trial.stream(iter(trial.items(10, deeds)), leave)
    _equal(missing, [], "what was yielded before it was on disk")
    _equal(sorted(outcome.key for outcome in outcomes), list(range(10)), "the keys that were yielded")
    _equal({outcome.key for outcome in outcomes if not outcome.ok}, set(_BAD), "the keys that failed")
    _equal([outcome.value for outcome in outcomes if outcome.ok], [o.key * 10 for o in outcomes if o.ok], "the values")
    if trial.workers > 1:
        places = [outcome.key for outcome in outcomes]
        _holds(places.index(0) > places.index(2), f"0, which ended after 2, is not yielded before it: {places}")


@_law
def _endless_input_is_drawn_as_it_is_needed(make: _Make) -> None:
    """Drawn and not on disk are never more than twice what workers are at; and 32 and as many more, with retries."""
    for retry, chunksize in itertools.product((None, Retry(2, on=ValueError, wait=_short_wait)), (1, 4)):
        trial = make(name=f"{'once' if retry is None else 'retried'} {chunksize}", retry=retry)
        if trial.engine.is_async and chunksize > 1:
            continue
        at_work = trial.workers * chunksize
        bound = 2 * at_work if retry is None else 3 * at_work + 32
        deeds: list[Deed] = [] if retry is None else [["raise", "ValueError"], ["return", 0]]
        most = 0

        def endless(trial: _Trial = trial, deeds: Sequence[Deed] = deeds) -> Iterator[Item]:
            nonlocal most
            for number in itertools.count():
                most = max(most, number + 1 - len(trial.on_disk()))
                yield trial.item(number, *deeds)

        seen = itertools.count(1)
        options: dict[str, Any] = {} if trial.engine.is_async else {"chunksize": chunksize}
        trial.stream(endless(), lambda _, seen=seen: next(seen) == 100, **options)  # type: ignore[misc]
        _holds(most <= bound, f"{most} drawn and not on disk are no more than {bound} ({trial.name})")


@_law
def _a_consumer_that_leaves_loses_nothing_that_finished(make: _Make) -> None:
    """What finished is on disk, and is not called again."""
    trial = make()
    seen = itertools.count(1)
    trial.stream((trial.item(n) for n in itertools.count()), lambda _: next(seen) == 10)
    _loses_nothing_and_goes_on(trial)


@_law
def _items_that_raise_lose_nothing_that_finished(make: _Make) -> None:
    """The source may break: what was drawn before is saved, and the error is its own."""
    trial = make()

    def breaks() -> Iterator[Item]:
        yield from trial.items(10)
        raise ConnectionError("the source is gone")

    _raised(ConnectionError, lambda: trial.map(breaks()))
    _loses_nothing_and_goes_on(trial)


def _loses_nothing_and_goes_on(trial: _Trial) -> None:
    saved, ended = set(trial.on_disk()), set(trial.log.ended)
    _equal(ended - saved, set(), "what finished and is not on disk")
    if not trial.engine.is_async:
        _equal(set(trial.begun) - saved, set(), "what began, could have finished, and is not on disk")
    _equal(trial.map(trial.items(30)), [n * 10 for n in range(30)], "the results in the end")
    _equal({n for n in saved if trial.begun.count(n) > 1}, set(), "what was on disk and was called again")


@_law
def _what_finishes_is_on_disk_though_nobody_consumes(make: _Make) -> None:
    """While the consumer sleeps, what was drawn is called and saved."""
    trial = make()
    gate, drawn = trial.directory / "gate", set()
    deeds: dict[int, list[Deed]] = {0: [["await", str(gate)]]} if trial.workers > 1 else {}

    def items() -> Iterator[Item]:
        for item in trial.items(12, deeds):
            drawn.add(item["id"])
            yield item

    def all_saved() -> bool:
        gate.touch()
        return drawn <= set(trial.on_disk())

    outcomes = trial.stream(items(), sleep_until=all_saved)
    _equal(sorted(outcome.key for outcome in outcomes), list(range(12)), "the keys that were yielded")


# --- workers that die ------------------------------------------------------------------------------------------------

_KILLED = "SIGKILL" if hasattr(signal, "SIGKILL") else "exit code"


@_law
def _an_item_that_kills_its_worker_fails_after_three_calls(make: _Make) -> None:
    """It is named with the signal or exit code, and nobody else's item is lost."""
    if not make.engine.survives:
        return
    for deed, told in ((["kill"], _KILLED), (["exit", 3], "exit code 3")):
        for trial, options in make.each_way(f"{deed[0]} "):
            got = trial.map(trial.items(12, {5: [deed]}), return_exceptions=True, **options)
            _equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [5], "the failed places")
            error = trial.f.errors[5]
            _holds("WorkerDied" in (error.type or ""), f"the failure says that the worker died: {error.type}")
            _holds(told in error.message, f"the message tells {told}: {error.message}")
            _equal(trial.begun.count(5), 3, "the calls of the item that kills")
            again = {n: count for n, count in Counter(trial.begun).items() if n != 5 and count > 2}
            _equal(again, {}, "the others that were called more than twice")


@_law
def _an_item_that_kills_its_worker_once_succeeds(make: _Make) -> None:
    """It is run again alone; and so are several that do."""
    if not make.engine.survives:
        return
    for trial, options in make.each_way():
        deeds: dict[int, list[Deed]] = {n: [["kill"], ["return", n * 10]] for n in (3, 4, 9)}
        _equal(trial.map(trial.items(12, deeds), **options), [n * 10 for n in range(12)], "the results")


@_law
def _a_batch_that_kills_its_worker_is_tried_item_by_item(make: _Make) -> None:
    """Only the culprit fails."""
    if not make.engine.survives:
        return
    trial = make(_call_batch, _acall_batch, batch_size=4)
    got = trial.map(trial.items(8, {5: [["kill"]]}), return_exceptions=True)
    _equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [5], "the failed places")
    _equal(sorted(trial.on_disk()), [0, 1, 2, 3, 4, 6, 7], "what is on disk")


# --- somebody's executor ---------------------------------------------------------------------------------------------


@_law
def _an_executor_stays_its_owners(make: _Make) -> None:
    """It takes more work after a pass, however that ended."""
    if make.engine.fresh is None:
        return
    trial = make()
    executor = trial.given["executor"]
    trial.map(trial.items(3))
    _equal(executor.submit(abs, -1).result(), 1, "what it does after a pass")
    trial.map(trial.items(6, {5: [["raise", "ValueError"]]}), return_exceptions=True)
    _equal(executor.submit(abs, -2).result(), 2, "what it does after a pass that failed")
    trial.stream((trial.item(n) for n in itertools.count()), lambda _: True)
    _equal(executor.submit(abs, -3).result(), 3, "what it does after a consumer has left")


@_law
def _an_executor_that_is_shut_down_is_reported(make: _Make) -> None:
    """As `BrokenWorkers`; nothing has failed by it, and the same line with a fresh one completes."""
    fresh = make.engine.fresh
    if fresh is None:
        return
    trial = make()
    with fresh() as executor:
        executor.shutdown()
        _raised(BrokenWorkers, lambda: trial.map(trial.items(4), executor=executor))
    _equal((trial.failed, trial.begun), ({}, []), "the failures and calls")
    with fresh() as executor:
        _equal(trial.map(trial.items(4), executor=executor), [0, 10, 20, 30], "the results of a fresh one")


@_law
def _what_a_broken_executor_was_at_has_not_failed(make: _Make) -> None:
    """Where the death of a worker breaks it: `BrokenWorkers`, and the same line with a fresh one completes."""
    fresh = make.engine.fresh
    if fresh is None or make.engine.is_local:
        return
    trial = make()
    items = trial.items(12, {5: [["kill"], ["return", 50]]})
    with fresh() as executor:
        try:
            trial.map(items, executor=executor)
        except BrokenWorkers:
            _equal(trial.failed, {}, "the failures")
            _holds(set(trial.log.ended) >= set(trial.on_disk()), "nothing is on disk that did not finish")
        except ItemsFailed:  # it replaces its workers, and reports what one died of
            _equal(sorted(trial.failed), [5], "the failures")
            _equal(executor.submit(abs, -1).result(), 1, "what it still does")
    saved, before = set(trial.on_disk()), Counter(trial.begun)
    with fresh() as executor:
        _equal(trial.map(items, executor=executor), [n * 10 for n in range(12)], "the results of a fresh one")
    _equal(saved & (Counter(trial.begun) - before).keys(), set(), "what was on disk and was called again")


LAWS: tuple[Law, ...] = tuple(_laws)
"""All laws, in the order in which they are best read. Each is a function of an engine and of an empty directory."""
