"""Engines that the user already has: Dask, Ray, Slurm by submitit or executorlib, MPI; each as an executor.

`executor_of` gives what `ExecutorWorkers` drives: PEP 3148's `submit`, and the number of workers. Nothing is imported
before it is used. A call travels as bytes that say all of it, the code of ``__main__`` included: a cluster's workers
have not got the driver's main module, and clusters look for tasks of theirs in what they are given. They call, and
answer in bytes; the driver alone writes. No cluster is told to try a call again, and none keeps an answer that came.
"""

from __future__ import annotations

import inspect
import pickle
from asyncio import CancelledError
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import ModuleType
from typing import Any, NamedTuple, Protocol
from uuid import uuid4

from checkpoint import locks
from checkpoint.errors import BrokenWorkers, ExtraNeeded, InvalidOption, quote, quote_error
from checkpoint.execution.threads import begin_thread

__all__ = ["Ray", "Submits", "call_there", "executor_of", "refuse_lookalike"]

_LOOK_UP = 1.0  # seconds after which it is seen that a cluster has ended without a word
_SOON, _LATER = 0.005, 1.0  # seconds between two looks at jobs that do not tell when they are done


class Submits(Protocol):
    """What can be given as ``executor=``: `submit(function, *given)` returns what has `done()` and `result()`."""

    @property
    def submit(self) -> Callable[..., Any]:
        """Have the function called with what follows it."""


_INSTEAD = {
    "pebble": 'pebble.ThreadPool, or executor="processes", which keeps timeout= too',
    "multiprocessing": 'executor="processes", or a concurrent.futures.ProcessPoolExecutor',
    "pathos": 'executor="processes": with cloudpickle installed it takes closures and lambdas too',
    "multiprocess": 'executor="processes": with cloudpickle installed it takes closures and lambdas too',
    "mpire": 'executor="processes"',
    "joblib": "joblib.externals.loky.get_reusable_executor()",
    "gevent": "threads (workers=8): after monkey.patch_all() they are greenlets",
    "parsl": "parsl.concurrent.ParslPoolExecutor(config)",
    "ipyparallel": "client.executor(), or the executor of a view",
    "distributed": "a client of it: distributed.Client(cluster)",
    "ray": '"ray", or checkpoint.clusters.Ray(num_gpus=1)',
    "mpi4py": "mpi4py.futures.MPIPoolExecutor(), or what `with MPICommExecutor() as executor` gives",
    "asyncio": "a coroutine function, whose map is awaited: await f.map(items, workers=8)",
}
_OURS = (
    'give "processes", "ray", an object with `submit` as concurrent.futures.Executor has, or leave it out for threads '
    "(workers=8)"
)
_KNOWN = frozenset({"distributed", "submitit", "executorlib", "mpi4py", "pebble", "ray"})


def refuse_lookalike(given: Any) -> None:
    """Refuse what has no `submit` as executors have it, before anything is run or paid for.

    What is no `Executor`, and of no package that is known, is given a function that does nothing, to see what it gives.

    Raises:
        InvalidOption: saying what to use.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> refuse_lookalike(ThreadPoolExecutor(2))
    """
    why = _unlike(given)
    if why is None:
        return
    kinds = given.__mro__ if isinstance(given, type) else type(given).__mro__
    packages = [kind.__module__.partition(".")[0] for kind in kinds]
    if isinstance(given, ModuleType):
        packages = [given.__name__.partition(".")[0]]
    use = next((f"use {_INSTEAD[package]}" for package in packages if package in _INSTEAD), _OURS)
    raise InvalidOption(f"executor is {quote(given)}{why}; {use}")


def _unlike(given: Any) -> str | None:
    """In what it differs from an executor."""
    submit = getattr(given, "submit", None)
    if not callable(submit):
        return "" if isinstance(given, str) else ", which has no submit(function, *args)"
    if isinstance(given, type):
        return ", a class; give one that is made of it"
    if "gevent" in _packages_of(given):
        return ", whose calls end only while gevent's hub has its turn"
    if getattr(given, "asynchronous", False) is True:
        return ", which is asynchronous; give a client that is not"
    try:
        signature = inspect.signature(submit)
        bound = signature.bind(_nothing, None).arguments
    except TypeError:
        return f", whose submit does not take a function and its argument: submit{signature}"
    except ValueError:  # one that is compiled says nothing of itself
        bound = {}
    for name in list(bound)[1:]:
        if signature.parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL:
            return f", whose submit takes {quote(name)} before the function's arguments: submit{signature}"
    if inspect.iscoroutinefunction(submit):
        return ", whose submit is a coroutine function"
    if isinstance(given, Executor) or _KNOWN & _packages_of(given):
        return None
    return _unlike_future(submit)


def _unlike_future(submit: Callable[..., Any]) -> str | None:
    try:
        future = submit(_nothing)
    except Exception:  # that it is shut down, or broken, is told when it is given work
        return None
    if callable(getattr(future, "done", None)) and callable(getattr(future, "result", None)):
        return None
    if inspect.iscoroutine(future):
        future.close()
    return f", whose submit gives {quote(future)}, which has no done() and result()"


def _nothing() -> None:
    """What is submitted to see what `submit` gives."""


def _packages_of(given: Any) -> set[str]:
    return {kind.__module__.partition(".")[0] for kind in type(given).__mro__}


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
    packages = _packages_of(given)
    travels = bool(packages & {"executorlib", "mpi4py", "submitit"})
    if isinstance(given, Executor) and not travels:
        return given
    if "distributed" in packages:
        return _Dask(given)
    stays = "submitit" not in packages and ("executorlib" not in packages or _restarts(given))
    return _Other(given, travels=travels, stays=stays)


# --- on the cluster's side -------------------------------------------------------------------------------------------


def call_there(packed: bytes) -> Any:
    """What a cluster's worker does: load the function with what it is given, and call it."""
    function, given = pickle.loads(packed)
    return function(*given)


# --- on the driver's -------------------------------------------------------------------------------------------------


class _Raised(NamedTuple):
    """In place of what a task has come to."""

    error: BaseException


class _Cluster(Executor):
    """An executor over something that has tasks of its own; while any are under way, one thread waits for them all."""

    _max_workers: int | None = None
    travels = True  # what it is given is pickled
    stays = True  # a worker makes more than one task

    def __init__(self) -> None:
        self._lock = locks.lock("cluster")
        self._under_way: dict[Future[Any], Any] = {}  # and the cluster's task for each
        self._inbox: SimpleQueue[Future[Any] | None] = SimpleQueue()  # those whose tasks are done; None: look
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
            return _Raised(error)

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
            BrokenWorkers: there is no thread to be had.
            Exception: whatever pickling what it is given raises.
        """
        if self._is_shut:
            raise RuntimeError(f"{self!r} is shut down")
        future: Future[Any] = Future()
        task = self._begin(*self._packed(function, given))
        with self._lock:
            self._under_way[future] = task
            is_watched, self._is_watched = self._is_watched, True
        future.add_done_callback(self._let_go)
        self._tell_when_done(task, lambda _: self._inbox.put(future))
        if not is_watched:
            try:
                begin_thread(self._watch, "checkpoint-cluster")
            except BrokenWorkers:
                self._is_watched = False
                raise
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
        """What the cluster is to call, and with what: bytes, in which it looks for no tasks of its own."""
        return call_there, (pickle.dumps((function, given), pickle.HIGHEST_PROTOCOL),)

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
        stays: whether a worker makes more than one task.
    """

    def __init__(self, executor: Any, *, travels: bool, stays: bool) -> None:
        super().__init__()
        self._executor, self.travels, self.stays = executor, travels, stays
        self._polls, self._pause = False, _SOON
        counts = [getattr(executor, name, None) for name in ("_max_workers", "max_workers", "num_workers")]
        self._max_workers = next((count for count in counts if isinstance(count, int) and count > 0), None)

    def __repr__(self) -> str:
        return repr(self._executor)

    def _result(self, task: Any) -> Any:
        answer = super()._result(task)
        if isinstance(answer, _Raised) and self.travels and _restarts(self._executor):  # it has no worker left
            return _Raised(BrokenWorkers(quote_error(answer.error)))
        return answer

    def _packed(self, function: Callable[..., Any], given: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        return super()._packed(function, given) if self.travels else (function, given)

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
            begin_thread(self._settle, "checkpoint-job", [future])
        return []

    def _cancel(self, task: Any) -> None:
        with suppress(AttributeError):
            task.cancel()


def _restarts(executor: Any) -> bool:
    """Whether it is one of executorlib's whose workers stay; those that die it begins again by itself."""
    info = getattr(executor, "info", None)
    return isinstance(info, dict) and "restart_limit" in info


def _is_done(job: Any) -> bool:
    try:
        return bool(job.done())
    except Exception:  # which `result` raises, too
        return True
