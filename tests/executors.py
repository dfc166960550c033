"""What works on which executor: the table that the guide .github/docs/clusters.md shows.

The law: a test tries each executor that is installed, and what it sees is what the row says.

    python tests/executors.py               print the table
    python tests/executors.py --write       write it into the guide
    python tests/executors.py --try NAME    try one executor, and print what was seen as JSON
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from checkpoint import BrokenWorkers, checkpointed

__all__ = ["PAGE", "ROWS", "TRIALS", "Row", "is_installed", "render", "written"]

PAGE = Path(__file__).parent.parent / ".github" / "docs" / "clusters.md"
BEGIN, END = "<!-- begin: python tests/executors.py -->", "<!-- end -->"
LARGE = 16_000_000  # bytes of a result


# --- functions and classes of a script -------------------------------------------------------------------------------


@dataclass
class Product:
    """What `decorated` returns, and `plain` is given."""

    n: int


class Odd(Exception):
    """What they raise."""


@checkpointed("decorated", version=1)
def decorated(n: int) -> Product:
    """A function that is decorated where it is defined."""
    if n == 3:
        raise Odd(n)
    return Product(n * 10)


class Scorer:
    """Its method is mapped on an instance."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    @checkpointed("score")
    def score(self, n: int) -> Product:
        """It reads the instance."""
        return Product(n * self.factor)


def helper(product: Product) -> int:
    """What `plain` calls."""
    return product.n


def plain(product: Product) -> Product:
    """A function that is decorated under the main guard."""
    return Product(helper(product) + 1)


# --- trials ----------------------------------------------------------------------------------------------------------

Options = dict[str, Any]
YES, ENDS = "yes", "ends the pass"


def try_map(options: Options) -> str:
    """A function of the library that workers import, in the order of the items."""
    f: Any = checkpointed("map")(abs)
    return said(f.map(range(-8, 0), **options) == list(range(8, 0, -1)))


def try_closures(options: Options) -> str:
    """A lambda that refers to a variable of the function around it."""
    factor = len(options) + 7
    return said(checkpointed("closure", version=1)(lambda n: n * factor).map(range(8), **options)[7] == 7 * factor)


def try_script_functions(options: Options) -> str:
    """Decorated or not where they are defined; classes of the script as items, results and exceptions."""
    got = decorated.map(range(5), return_exceptions=True, **options)
    at_guard = checkpointed("plain", version=1, key="n")(plain)
    there = [*at_guard.map([Product(n) for n in range(4)], **options)]
    there += Scorer(3).score.map([5], **options)
    is_same = all(type(one) is Product for one in [*got[:3], *there])
    return said(
        is_same and there[3:] == [Product(4), Product(15)] and decorated.errors[3].type in ("Odd", "__main__.Odd")
    )


def try_killed(options: Options) -> str:
    """A worker dies in the middle of an item, once; nothing is recorded as failed."""
    mark = os.path.abspath("killed")

    def dies(n: int) -> int:
        if n == 5 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
        return n

    f = checkpointed("killed", version=1)(dies)
    try:
        f.map(range(8), **options)
    except BrokenWorkers:
        return said(dict(f.errors) == {}, ENDS)
    return said(len(f.results) == 8)


def try_interrupted(options: Options) -> str:
    """Ctrl-C: what has begun is saved, and the same line goes on with the same executor."""
    driver, calls = os.getpid(), os.path.abspath("calls")

    def interrupts(n: int) -> int:
        with open(calls, "a") as log:
            log.write(f"{n}\n")
        if n == 2:
            os.kill(driver, signal.SIGINT)
        return n

    told = threading.Event()
    handler = logging.Handler()
    handler.emit = lambda record: told.set()  # type: ignore[method-assign]
    logging.getLogger("checkpoint").addHandler(handler)

    def items() -> Iterator[int]:
        yield from range(24)
        told.wait()  # item 2 runs, or has run
        yield from range(24, 40)

    f = checkpointed("interrupted", version=1)(interrupts)
    try:
        f.map(items(), **options)
    except KeyboardInterrupt:
        saved = len(f.results)
        f.map(range(40), **options)
        with open(calls) as log:
            return said(0 < saved < 40 and len(log.readlines()) == 40)
    return said(False)


def try_large(options: Options) -> str:
    """Two results of 16 MB come back as they were."""
    size = LARGE

    def large(n: int) -> bytes:
        return bytes([n]) * size

    return said(checkpointed("large", version=1)(large).map([1, 2], **options)[1] == b"\2" * LARGE)


def said(holds: bool, word: str = YES) -> str:
    """What a trial has seen."""
    return word if holds else "no"


TRIALS: dict[str, Callable[[Options], str]] = {
    "map": try_map,
    "closures": try_closures,
    "functions and classes of a script": try_script_functions,
    "16 MB results": try_large,
    "Ctrl-C, and on": try_interrupted,
    "a worker is killed": try_killed,  # the last one: it may end the executor
}


# --- executors -------------------------------------------------------------------------------------------------------


def processes(method: str) -> Any:
    """A pool of the standard library."""
    return futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))


@contextmanager
def dask_client() -> Iterator[Any]:
    """A client of a cluster of this machine, whose deaths are told at once."""
    distributed = importlib.import_module("distributed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    importlib.import_module("dask").config.set({"distributed.scheduler.allowed-failures": 0})
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@contextmanager
def dask_executor() -> Iterator[Any]:
    """What the client gives as an executor of PEP 3148."""
    with dask_client() as client:
        yield client.get_executor()


@contextmanager
def ray() -> Iterator[str]:
    """Ray on this machine."""
    package = importlib.import_module("ray")
    package.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield "ray"
    package.shutdown()


@contextmanager
def submitit() -> Iterator[Any]:
    """Jobs of this machine, each a process of its own."""
    package = importlib.import_module("submitit")
    package.Job._results_timeout_s = 1  # for what a dead job may have written
    yield package.LocalExecutor(os.path.abspath("jobs"))


def executorlib() -> Any:
    """Two processes that stay, and are begun again."""
    package = importlib.import_module("executorlib")
    return package.SingleNodeExecutor(max_workers=2, block_allocation=True, restart_limit=9)


@contextmanager
def parsl() -> Iterator[Any]:
    """Two workers of Parsl's HighThroughputExecutor."""
    package, concurrent = importlib.import_module("parsl"), importlib.import_module("parsl.concurrent")
    many = importlib.import_module("parsl.executors").HighThroughputExecutor(
        label="here",
        address="127.0.0.1",
        max_workers_per_node=2,
        provider=importlib.import_module("parsl.providers").LocalProvider(init_blocks=1, max_blocks=1),
    )
    with concurrent.ParslPoolExecutor(package.Config([many], run_dir=os.path.abspath("parsl"))) as executor:
        yield executor


@contextmanager
def ipyparallel() -> Iterator[Any]:
    """Two engines, each a process."""
    package = importlib.import_module("ipyparallel")
    with package.Cluster(n=2, log_level=logging.ERROR) as client:
        yield client.executor()


class Row(NamedTuple):
    """An executor, and what is seen of it.

    Attributes:
        name: what it is called in the table.
        package: what must be installed.
        make: gives a context with what is given as ``executor=``.
        seen: for trials whose word is not "yes".
        is_local: whether it calls in this process.
        chunksize: how many calls make a task.
        is_slow: whether it takes half a minute, and CI leaves it out.
    """

    name: str
    package: str
    make: Callable[[], Any]
    seen: dict[str, str] = {}  # noqa: RUF012  # nobody changes it
    is_local: bool = False
    chunksize: int = 1
    is_slow: bool = False

    def word(self, trial: str) -> str:
        """What the table says."""
        return self.seen.get(trial, YES)


KILLED = "a worker is killed"
ROWS = (
    Row("`ThreadPoolExecutor`", "", lambda: futures.ThreadPoolExecutor(2), {KILLED: "–"}, is_local=True),
    Row("`ProcessPoolExecutor`, fork", "", lambda: processes("fork"), {KILLED: ENDS}),
    Row("`ProcessPoolExecutor`, forkserver", "", lambda: processes("forkserver"), {KILLED: ENDS}),
    Row("`ProcessPoolExecutor`, spawn", "", lambda: processes("spawn"), {KILLED: ENDS}),
    Row("loky", "loky", lambda: importlib.import_module("loky").ProcessPoolExecutor(2), {KILLED: ENDS}),
    Row(
        "joblib: `joblib.externals.loky.get_reusable_executor()`",
        "joblib",
        lambda: importlib.import_module("joblib.externals.loky").get_reusable_executor(2),
        {KILLED: ENDS},
    ),
    Row("pebble: `ThreadPool`", "pebble", lambda: importlib.import_module("pebble").ThreadPool(2), {KILLED: "–"},
        is_local=True),
    Row("Dask: `Client`", "distributed", dask_client),
    Row("Dask: `client.get_executor()`", "distributed", dask_executor),
    Row('Ray: `"ray"`', "ray", ray),
    Row("submitit", "submitit", submitit, chunksize=8, is_slow=True),
    Row("executorlib", "executorlib", executorlib),
    Row("mpi4py: `MPIPoolExecutor`", "mpi4py", lambda: importlib.import_module("mpi4py.futures").MPIPoolExecutor(2),
        {KILLED: "ends the job"}),
    Row("Parsl: `ParslPoolExecutor`", "parsl", parsl, chunksize=8, is_slow=True),
    Row("ipyparallel: `client.executor()`", "ipyparallel", ipyparallel),
)  # fmt: skip


def is_installed(row: Row) -> bool:
    """Whether it can be tried here."""
    return not row.package or importlib.util.find_spec(row.package) is not None


def tried(row: Row) -> Iterator[tuple[str, str]]:
    """(trial, what was seen), in a directory of its own; it may end this process."""
    os.chdir(tempfile.mkdtemp(dir=os.getcwd()))
    warnings.simplefilter("ignore")  # of packages
    with row.make() as executor:
        options = {"executor": executor, "workers": 2, "chunksize": row.chunksize, "progress": False}
        for name, trial in TRIALS.items():
            if row.is_local and trial is try_killed:
                yield name, "–"
                continue
            try:
                yield name, trial(options)
            except Exception as error:
                yield name, f"{type(error).__name__}: {error}"


# --- the page --------------------------------------------------------------------------------------------------------


def render() -> str:
    """The table, in Markdown."""
    lines = ["| `executor=` | " + " | ".join(TRIALS) + " |", "| --- |" + " --- |" * len(TRIALS)]
    lines += [f"| {row.name} | " + " | ".join([row.word(trial) for trial in TRIALS]) + " |" for row in ROWS]
    return "\n".join(lines) + "\n"


def written(page: str) -> str:
    """The guide with the table in it."""
    head, _, rest = page.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{render()}\n{END}{rest.partition(END)[2]}"


def main(arguments: list[str]) -> None:
    """Print the table, write it, or try one executor."""
    if arguments[:1] == ["--try"]:
        (row,) = [row for row in ROWS if row.name == arguments[1]]
        for name, word in tried(row):
            print(json.dumps([name, word]), flush=True)
    elif arguments == ["--write"]:
        PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
    else:
        print(render(), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
