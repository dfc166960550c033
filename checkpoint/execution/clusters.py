"""Engines that the user already has: Dask, Ray, Slurm by submitit or executorlib, MPI; each as an executor.

`executor_of` gives what `ExecutorWorkers` drives: PEP 3148's `submit`, and the number of workers. Nothing is imported
before it is used. A call travels as bytes that say all of it, the code of ``__main__`` included: a cluster's workers
have not got the driver's main module, and clusters look for tasks of theirs in what they are given. They call, and
answer in bytes; the driver alone writes. No cluster is told to try a call again, and none keeps an answer that came.
"""

from __future__ import annotations

import pickle
import threading
from asyncio import CancelledError
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, Protocol
from uuid import uuid4
from weakref import WeakKeyDictionary

from checkpoint import locks
from checkpoint.errors import BrokenWorkers, ExtraNeeded, FunctionChanged, WorkerDied, quote_error
from checkpoint.execution.call import Call, Shipped

__all__ = ["Ray", "Submits", "call_there", "executor_of"]

_LOOK_UP = 1.0  # seconds after which it is seen that a cluster has ended without a word
_SOON, _LATER = 0.005, 1.0  # seconds between two looks at jobs that do not tell when they are done
# fmt: off
_DEATHS = frozenset({
    "KilledWorker",  # of Dask, after `distributed.scheduler.allowed-failures` more that it did not tell of
    "WorkerCrashedError", "OutOfMemoryError", "NodeDiedError", "ObjectLostError",  # of Ray
    "UncompletedJobError", "ExecutorlibSocketError",  # of submitit, and executorlib
})
# fmt: on


class Submits(Protocol):
    """What can be given as ``executor=``: `submit(function, *given)` returns what has `done()` and `result()`."""

    @property
    def submit(self) -> Callable[..., Any]:
        """Have the function called with what follows it."""


def executor_of(given: Any) -> Any:
    """What makes the calls where the user gave this as ``executor=``: itself, if it is such an executor already.

    Its `_max_workers` is how many calls it makes at once, where that is known.

    Args:
        given: "ray", or an object with `submit`.

    Raises:
        ExtraNeeded: Ray is not installed.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> pool = ThreadPoolExecutor(2)
        >>> executor_of(pool) is pool
        True
    """
    if isinstance(given, str):
        return Ray()
    packages = {kind.__module__.partition(".")[0] for kind in type(given).__mro__}
    travels = bool(packages & {"executorlib", "mpi4py", "submitit"})
    if isinstance(given, Executor) and not travels:
        return given
    return _Dask(given) if "distributed" in packages else _Other(given, travels=travels)


# --- on the cluster's side -------------------------------------------------------------------------------------------


class _Raised(NamedTuple):
    """In place of an answer. Clusters wrap exceptions, each in its own way, and some keep only their text."""

    error: Exception


def call_there(packed: bytes) -> Any:
    """What a cluster's worker does: load the function with what it is given, and call it."""
    try:
        function, given = pickle.loads(packed)
    except Exception as error:  # unpickling runs the items' own code
        return _Raised(pickle.UnpicklingError(f"a worker of the cluster cannot load the item: {quote_error(error)}"))
    try:
        return function(*given)
    except (BrokenWorkers, FunctionChanged) as error:
        return _Raised(error)


# --- on the driver's -------------------------------------------------------------------------------------------------


class _Cluster(Executor):
    """An executor over something that has tasks of its own; while any are under way, one thread waits for them all."""

    _max_workers: int | None = None

    def __init__(self) -> None:
        self._lock = locks.lock("cluster")
        self._under_way: dict[Future[Any], Any] = {}  # and the cluster's task for each
        self._inbox: SimpleQueue[Future[Any] | None] = SimpleQueue()  # those whose tasks are done; None: look
        self._whole: WeakKeyDictionary[Call, Shipped] = WeakKeyDictionary()
        self._is_watched = self._is_shut = False

    # what each does in its own way

    def _begin(self, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        """A task of the cluster's, which has `result()`."""
        raise NotImplementedError

    def _tell_when_done(self, task: Any, tell: Callable[[Any], None]) -> None:
        task.add_done_callback(tell)

    def _results(self, tasks: list[Any]) -> list[Any]:
        """What each has come to; nothing of it stays on the cluster."""
        return [self._result(task) for task in tasks]

    def _result(self, task: Any) -> Any:
        try:
            return task.result()
        except (Exception, CancelledError) as error:
            return _Raised(self._meaning(error))

    def _meaning(self, error: BaseException) -> Exception:
        """That a worker has died of it; or else that the cluster does not work: no function's own exception is here."""
        names = {kind.__name__ for kind in type(error).__mro__}
        return (WorkerDied if names & _DEATHS else BrokenWorkers)(quote_error(error))

    def _cancel(self, task: Any) -> None:
        task.cancel()

    def _is_gone(self) -> bool:
        """Whether the cluster has ended, and its tasks may not tell."""
        return False

    # what all do

    def submit(self, function: Callable[..., Any], /, *given: Any) -> Future[Any]:  # type: ignore[override]
        """Have a worker call the function.

        Raises:
            RuntimeError: it is shut down.
            BrokenWorkers, ExtraNeeded: the function cannot travel.
        """
        if self._is_shut:
            raise RuntimeError(f"{self!r} is shut down")
        future: Future[Any] = Future()
        try:
            packed = self._packed(function, given)
        except (BrokenWorkers, ExtraNeeded):
            raise
        except Exception as error:  # pickling runs the items' own code
            future.set_exception(error)
            return future
        task = self._begin(*packed)
        with self._lock:
            self._under_way[future] = task
            is_watched, self._is_watched = self._is_watched, True
        future.add_done_callback(self._let_go)
        self._tell_when_done(task, lambda _: self._inbox.put(future))
        if not is_watched:
            threading.Thread(target=self._watch, name="checkpoint-cluster", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more; the cluster goes on."""
        self._is_shut = True
        with self._lock:
            under_way = list(self._under_way)
        for future in under_way if cancel_futures else ():
            future.cancel()
        if wait:
            futures.wait(under_way)

    def _packed(self, function: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """What the cluster is to call, and with what."""
        for call in given:
            if isinstance(call, Call) and call not in self._whole:
                self._whole[call] = Shipped(call.shipped_whole())
        import cloudpickle  # `shipped_whole` has refused where there is none

        shipped = [self._whole[one] if isinstance(one, Call) else one for one in given]
        return call_there, (cloudpickle.dumps((function, shipped)),)

    def _let_go(self, future: Future[Any]) -> None:
        """A future is done; where it was cancelled, so is its task."""
        with self._lock:
            task = self._under_way.pop(future, None)
        if task is not None:
            future.set_running_or_notify_cancel()
            with suppress(Exception):  # the cluster may be gone
                self._cancel(task)
            self._inbox.put(None)

    # in the thread

    def _watch(self) -> None:
        try:
            while self._is_needed():
                self._settle(self._next())
        except BaseException as error:  # nobody waits for ever
            with self._lock:
                self._is_watched = False
                broken = list(self._under_way)
            self._settle(broken, _Raised(BrokenWorkers(quote_error(error))))

    def _is_needed(self) -> bool:
        with self._lock:
            self._is_watched = bool(self._under_way)
            return self._is_watched

    def _next(self) -> list[Future[Any]]:
        """All that are done, once some may be."""
        done: list[Future[Any] | None] = []
        try:
            done.append(self._inbox.get(timeout=_LOOK_UP))
            while True:
                done.append(self._inbox.get_nowait())
        except Empty:
            if not done and self._is_gone():
                raise BrokenWorkers("it has ended") from None
        return [future for future in done if future is not None]

    def _settle(self, done: list[Future[Any]], why: _Raised | None = None) -> None:
        """Let who waits for them know; each once, and whoever takes it first from those under way."""
        with self._lock:
            taken = [(future, self._under_way.pop(future)) for future in done if future in self._under_way]
        try:
            answers = self._results([task for _, task in taken]) if why is None else [why] * len(taken)
        except Exception as error:
            answers = [_Raised(BrokenWorkers(quote_error(error)))] * len(taken)
        for (future, _), answer in zip(taken, answers, strict=True):
            if not future.set_running_or_notify_cancel():
                continue
            if isinstance(answer, _Raised):
                future.set_exception(answer.error)
            else:
                future.set_result(answer)


# --- one by one ------------------------------------------------------------------------------------------------------


class _Dask(_Cluster):
    """A `distributed.Client`; it fetches together what has come together."""

    def __init__(self, client: Any) -> None:
        super().__init__()
        self._client = client

    @property
    def _max_workers(self) -> int | None:  # type: ignore[override]
        with suppress(Exception):  # it is closed, which is told when it is given work
            return sum(self._client.nthreads().values()) or None
        return None

    def __repr__(self) -> str:
        return repr(self._client)

    def _begin(self, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        return self._client.submit(function, *given, key=f"checkpoint-{uuid4().hex}", pure=False, retries=0)

    def _results(self, tasks: list[Any]) -> list[Any]:
        answers: dict[Any, Any] = {}
        here = [task for task in tasks if task.status == "finished"]
        with suppress(Exception, CancelledError):  # of one of them: each is asked by itself
            answers = dict(zip(here, self._client.gather(here), strict=True))
        results = [answers[task] if task in answers else self._result(task) for task in tasks]
        for task in tasks:
            task.release()
        return results

    def _cancel(self, task: Any) -> None:
        task.release()  # nobody else wants it; and unlike `cancel` it does not wait for the scheduler

    def _is_gone(self) -> bool:
        return self._client.status in ("closing", "closed")


class Ray(_Cluster):
    """Ray as an executor: the cluster that this process has joined; if none, `ray.init()` joins or starts one.

    Args:
        options: of `ray.remote`, for each call (chunk, batch): num_cpus, num_gpus, resources, runtime_env …

    Raises:
        ExtraNeeded: Ray is not installed.

    Example:
        >>> from checkpoint.clusters import Ray
        >>> def embed_all(embed, texts):
        ...     return embed.map(texts, executor=Ray(num_gpus=1), workers=8)
    """

    def __init__(self, **options: Any) -> None:
        try:
            import ray
        except ImportError as error:
            what = f"Ray cannot be imported ({error}): pip install 'checkpoint-map[ray]'"
            raise ExtraNeeded(what, name="ray") from error
        super().__init__()
        self._ray: Any = ray
        self._remote: Any = ray.remote(**{**options, "max_retries": 0, "retry_exceptions": False})(call_there)
        self._cpus = options.get("num_cpus") or 1

    @property
    def _max_workers(self) -> int | None:  # type: ignore[override]
        self._join()
        return int(self._ray.cluster_resources().get("CPU", 0) / self._cpus) or None

    def _join(self) -> None:
        if not self._ray.is_initialized():
            self._ray.init()

    def _begin(self, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        self._join()
        return self._remote.remote(*given).future()  # it is told by Ray: `ray.wait` would have to be asked

    def _cancel(self, task: Any) -> None:
        self._ray.cancel(task.object_ref)

    def _is_gone(self) -> bool:
        return not self._ray.is_initialized()


class _Other(_Cluster):
    """An object with `submit`. Jobs that do not tell when they are done, as those of submitit, are looked at.

    Args:
        executor: the object.
        travels: whether calls go as bytes; else it is given what an executor of this process would be.
    """

    def __init__(self, executor: Any, *, travels: bool) -> None:
        super().__init__()
        self._executor, self._travels = executor, travels
        self._polls, self._pause = False, _SOON
        counts = [getattr(executor, name, None) for name in ("_max_workers", "max_workers", "num_workers")]
        self._max_workers = next((count for count in counts if isinstance(count, int) and count > 0), None)

    def __repr__(self) -> str:
        return repr(self._executor)

    def _meaning(self, error: BaseException) -> Exception:
        if not self._travels and isinstance(error, Exception):
            return error
        info = getattr(self._executor, "info", None)
        if isinstance(info, dict) and "restart_limit" in info:  # executorlib: it tells when it has no worker left
            return BrokenWorkers(quote_error(error))
        return super()._meaning(error)

    def _packed(self, function: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        return super()._packed(function, given) if self._travels else (function, given)

    def _begin(self, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
        return self._executor.submit(function, *given)

    def _tell_when_done(self, task: Any, tell: Callable[[Any], None]) -> None:
        if hasattr(task, "add_done_callback"):
            task.add_done_callback(tell)
        else:
            self._polls, self._pause = True, _SOON
            self._inbox.put(None)

    def _next(self) -> list[Future[Any]]:
        if not self._polls:
            return super()._next()
        with self._lock:
            under_way = list(self._under_way.items())
        done = [future for future, job in under_way if _is_done(job)]
        self._pause = _SOON if done else min(self._pause * 1.5, _LATER)
        if not done:
            with suppress(Empty):
                self._inbox.get(timeout=self._pause)
        for future in done:  # submitit waits 15 s for what a dead job may have written
            threading.Thread(target=self._settle, args=([future],), name="checkpoint-job", daemon=True).start()
        return []

    def _cancel(self, task: Any) -> None:
        with suppress(AttributeError):
            task.cancel()


def _is_done(job: Any) -> bool:
    try:
        return bool(job.done())
    except Exception:  # which `result` raises, too
        return True
