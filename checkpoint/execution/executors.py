"""Workers of an executor that somebody else made: any of PEP 3148.

A task travels as a parcel. Where the executor calls in this process, a parcel is called as it is. Where it pickles it,
the parcel becomes bytes of bytes: the call, and the items. So whatever an executor raises by itself is about the
executor, and never about an item or a call of the function.

A worker keeps the calls that it has loaded. A call that is large travels with so many tasks as there are workers; the
others bring its digest alone, and a worker that lacks it says so and is sent the task once more, whole.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from concurrent.futures import Executor, Future
from hashlib import blake2b
from importlib.util import find_spec
from typing import Any, Final, NamedTuple
from uuid import uuid4

from checkpoint import locks
from checkpoint.errors import (
    BrokenWorkers,
    ExtraNeeded,
    FunctionChanged,
    UnsendableItem,
    quote,
    quote_error,
)
from checkpoint.execution.answers import Answer, Fatal
from checkpoint.execution.call import Arrived, Call, arrived
from checkpoint.execution.chunk import Chunk
from checkpoint.execution.interfaces import Broken, Died, Report, Task, Unsent, inputs_of
from checkpoint.execution.threads import chunk_of
from checkpoint.execution.transport import pickled_inputs, unloadable

__all__ = ["ExecutorWorkers", "make_calls"]

_LARGE = 1_000_000  # bytes of a call that does not travel with every task
_KEPT = 4  # calls, by a worker
# fmt: off
_DEATHS = frozenset({
    "KilledWorker",  # of Dask, after `distributed.scheduler.allowed-failures` more that it did not tell of
    "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError",  # of Ray
    "UncompletedJobError", "ExecutorlibSocketError",  # of submitit, and executorlib
    "EngineError",  # of ipyparallel, as the `ename` of an error from elsewhere
    "WorkerLost", "ManagerLost",  # of Parsl
    "WorkerDied",  # ours
})
# fmt: on


class ExecutorWorkers:
    """Any `concurrent.futures.Executor`. It stays its owner's: it is not shut down here.

    Args:
        call, report: as for threads.
        executor: what calls are submitted to.
        count: how many workers it has, as far as is known.
    """

    settles = False
    shares_blame = True

    def __init__(self, call: Call, executor: Executor, count: int, report: Report) -> None:
        self._batch = call.batch
        self._shipping = _Shipping(
            call, count, has_main=_has_main(executor), stays=getattr(executor, "stays", True) is not False
        )
        self._executor = executor
        self._report = report
        self._futures: set[Future[Any]] = set()
        self._is_closed = False
        self._is_first = True

    def start(self, task: Task) -> None:
        """Submit the task's calls.

        Raises:
            UnsendableItem: the first item of all cannot travel; nothing was called.
        """
        parcel = _Parcel(self._shipping, inputs_of(task, batch=self._batch))
        if len(task) > 1:
            parcel.chunk = chunk_of(task, self._report)
        if self._is_first:
            self._is_first = False
            parcel.is_first = True
            if _is_remote(self._executor):
                parcel.check_first()
        self._submit(task, parcel)

    def _submit(self, task: Task, parcel: _Parcel) -> None:
        try:
            future = self._executor.submit(make_calls, parcel)
            when_done = future.add_done_callback  # what has none is no future, and cannot be cancelled either
            self._futures.add(future)
            when_done(lambda future: self._done(task, parcel, future))
        except Exception as error:
            self._report([(task, self._meaning(error, parcel))])

    def _done(self, task: Task, parcel: _Parcel, future: Future[Any]) -> None:
        self._futures.discard(future)
        if parcel.chunk is not None and parcel.chunk.is_split:
            task = task[parcel.chunk.first :][:1]
        try:
            answers: Any = future.result()
        except BaseException as error:
            answers = self._meaning(error, parcel)
        if isinstance(answers, (Lacking, Unloaded, Unread)):
            if self._shipping.sends_again(parcel, answers) and not self._is_closed:
                self._submit(task, parcel)
                return
            answers = self._refused(answers)
        elif isinstance(answers, Arrival):
            self._shipping.note_arrival(answers)
            answers = answers.answers
        if not isinstance(answers, (list, bytes, Broken, Died, Unsent)) or answers == []:
            answers = Broken(_broke(self._executor, TypeError(f"it gave {quote(answers)} for a call")))
        self._report([(task, answers)])

    def _refused(self, answers: Lacking | Unloaded | Unread) -> Broken | Unsent:
        if isinstance(answers, Unread):
            return Unsent(unloadable(answers.why))
        why = answers.why if isinstance(answers, Unloaded) else "they do not keep it"
        return Broken(_broke(self._executor, BrokenWorkers(self._shipping.cannot_load(why))))

    def _meaning(self, error: BaseException, parcel: _Parcel) -> Any:
        """What an exception of the executor's own says of the task."""
        if parcel.fault is not None:
            return parcel.fault
        names = {kind.__name__ for kind in type(error).__mro__} | {str(getattr(error, "ename", ""))}
        if names & _DEATHS:
            return Died(getattr(error, "exitcode", None), quote_error(error))
        if isinstance(error, Exception) or "CancelledError" in names:
            return Broken(_broke(self._executor, error))
        return [Fatal(error, is_of_call=False)]

    def close(self) -> None:
        """Cancel what has not begun."""
        self._is_closed = True
        for future in list(self._futures):
            future.cancel()


def _broke(executor: Executor, error: BaseException) -> BrokenWorkers:
    return BrokenWorkers(
        f"the executor {quote(executor)} takes no more work: {quote_error(error)}. What it was at is not marked as "
        "failed: run the same line again with a fresh one"
    )


def _has_main(executor: Executor) -> bool:
    """Whether its workers import the driver's main module, or are copies of it."""
    return any(kind.__module__ == "concurrent.futures.process" for kind in type(executor).__mro__)


_REMOTE: Final = frozenset({"loky", "joblib", "ipyparallel", "parsl", "distributed"})


def _is_remote(executor: Executor) -> bool:
    """Whether it is known that it pickles what it is given."""
    packages = {kind.__module__.partition(".")[0] for kind in type(executor).__mro__}
    return _has_main(executor) or bool(packages & _REMOTE) or getattr(executor, "travels", False) is True


# --- on the way ------------------------------------------------------------------------------------------------------


class _Shipping:
    """How one call travels to the workers of an executor; from any thread.

    Args:
        call: it.
        count: how many workers there are, as far as is known.
        has_main: whether they have got the driver's main module.
        stays: whether a worker makes more than one task.
    """

    def __init__(self, call: Call, count: int, *, has_main: bool, stays: bool) -> None:
        self.call = call
        self.whole = not has_main
        self._count, self._stays = count, stays
        self._lock = locks.lock("shipping")
        self._shipped: bytes | None = None
        self._digest = b""
        self._sent = self._lacked = 0  # tasks that brought the call, and that found a worker without it
        self._is_kept = False  # whether a worker was seen to have kept it
        self._why = ""  # it could not be sent as it was to be

    def load(self, *, whole: bool) -> tuple[bytes, bytes | None]:
        """The call's digest, and the call where the task is to bring it.

        Raises:
            BrokenWorkers, ExtraNeeded: the call cannot travel.
        """
        with self._lock:
            if self._shipped is None:
                self._shipped = self._pickled()
                self._digest = blake2b(self._shipped, digest_size=16).digest()
            if self._is_bare and not whole:
                return self._digest, None
            self._sent += 1
            return self._digest, self._shipped

    @property
    def _is_bare(self) -> bool:
        """Whether a task may do without the call: those that bring it have reached the workers, or may have."""
        if not self._stays or self._shipped is None or len(self._shipped) < _LARGE or self._sent < self._count:
            return False
        return self._is_kept or self._lacked <= self._count

    def _pickled(self) -> bytes:
        if self.whole and find_spec("cloudpickle") is not None:
            try:
                return self.call.shipped_whole()
            except (BrokenWorkers, ExtraNeeded) as error:  # workers may have its module all the same
                self._why = str(error)
        return self.call.shipped()

    def note_arrival(self, arrival: Arrival) -> None:
        """A worker has made calls."""
        self._is_kept = self._is_kept or arrival.was_there

    def sends_again(self, parcel: _Parcel, answer: Lacking | Unloaded | Unread) -> bool:
        """Whether a parcel that a worker could not open goes once more, and brings more than it did."""
        if isinstance(answer, Lacking):
            with self._lock:
                self._lacked += 1
            parcel.brings_call, again = True, not parcel.brings_call
            return again
        if find_spec("cloudpickle") is None:
            return False
        if isinstance(answer, Unread):
            parcel.whole, again = True, not (parcel.whole or self.whole)
            return again
        with self._lock:
            was_whole = parcel.whole
            parcel.whole = parcel.brings_call = True
            if not self.whole:
                self.whole, self._shipped = True, None
        return not was_whole and not self._why

    def cannot_load(self, why: str) -> str:
        """The message of workers that cannot load the call."""
        told = f"its workers cannot load {self.call.name}: {why}"
        if self._why:
            return f"{told}; {self._why}"
        if find_spec("cloudpickle") is None:
            return f"{told}; install checkpoint-map[processes], whose cloudpickle takes functions of scripts along"
        return told


class _Parcel:
    """A task on its way: called in this process as it is, or pickled, and opened where it arrives.

    Attributes:
        given: what the task's calls are given.
        is_first: whether it holds the first item of all.
        whole: whether its items bring what is defined in ``__main__``, though workers should have that.
        brings_call: whether it brings the call, though the worker should have that.
        fault: what of it could not be pickled.
        chunk: gives back calls of it, where it is called in this process.
    """

    def __init__(self, shipping: _Shipping, given: list[Any]) -> None:
        self._shipping, self.given = shipping, given
        self.is_first = self.whole = self.brings_call = False
        self.fault: Broken | Unsent | None = None
        self.chunk: Chunk | None = None

    def many(self) -> list[Answer]:
        """The answers, in this process."""
        return self._shipping.call.many(self.given, chunk=self.chunk)

    def check_first(self) -> None:
        """Raise `UnsendableItem` where its first item cannot travel."""
        first = self.given[0][0] if self._shipping.call.batch else self.given[0]
        pickled_inputs([first], whole=self._shipping.whole)

    def __dask_tokenize__(self) -> str:
        """Another one each time: what Dask takes for the same task it does not do again, and gives the same error."""
        return uuid4().hex

    def _fail_if_first(self) -> None:
        try:
            self.check_first()
        except UnsendableItem as error:
            self.fault = Broken(error)

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            call = self._shipping.load(whole=self.brings_call)
        except (BrokenWorkers, ExtraNeeded) as error:
            self.fault = Broken(error)
            raise
        try:
            items = pickled_inputs(self.given, whole=self._shipping.whole or self.whole)
        except UnsendableItem as error:
            self.fault = Unsent(error)
            if self.is_first:  # and it was not known that it would be pickled
                self._fail_if_first()
            raise
        return (_Arrived, (*call, items))


# --- on the worker's side --------------------------------------------------------------------------------------------


class Arrival(NamedTuple):
    """The answers of a task in another process, packed; and whether its worker had the call already."""

    answers: bytes
    was_there: bool


class Lacking(NamedTuple):
    """In place of answers: the worker has not got the call."""

    digest: bytes


class Unloaded(NamedTuple):
    """In place of answers: the worker cannot load the call."""

    why: str


class Unread(NamedTuple):
    """In place of answers: the worker cannot load the items."""

    why: str


class _Arrived(NamedTuple):
    """A parcel in another process. It is opened when it is called: one that fails to load may end its worker."""

    digest: bytes
    shipped: bytes | None
    items: bytes

    def many(self) -> Arrival | Lacking | Unloaded | Unread | Broken:
        """The answers, or why there are none; never an exception, which executors wrap, each in its own way."""
        try:
            call, was_there = _kept_call(self.digest, self.shipped)
        except Exception as error:  # unpickling runs the user's own code
            return Unloaded(quote_error(error))
        if call is None:
            return Lacking(self.digest)
        try:
            call.agree(takes_over=False)
        except FunctionChanged as refusal:
            return Broken(refusal)
        try:
            given = pickle.loads(self.items)
        except Exception as error:
            return Unread(quote_error(error))
        return Arrival(call.many(given), was_there)


_calls: OrderedDict[bytes, Arrived] = OrderedDict()  # that this process has loaded, the last one used last
_calls_lock = locks.rlock("loading")


def _kept_call(digest: bytes, shipped: bytes | None) -> tuple[Arrived | None, bool]:
    """The call, and whether it was there already; None where it is not, and was not brought."""
    with _calls_lock:
        call = _calls.get(digest)
        was_there = call is not None
        if call is None and shipped is not None:
            call = _calls[digest] = arrived(shipped)
            if len(_calls) > _KEPT:
                _calls.popitem(last=False)
        if call is not None:
            _calls.move_to_end(digest)
        return call, was_there


def make_calls(parcel: _Parcel | _Arrived) -> Any:
    """What a worker of an executor does."""
    return parcel.many()
