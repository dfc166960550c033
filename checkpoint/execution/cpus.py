"""How many CPUs this process may use, and how many threads the arithmetic of each worker process may."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from math import ceil
from pathlib import Path

__all__ = ["bound_loaded", "cpu_count", "thread_variables"]

_ROOT = Path("/")
_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Which BLAS libraries and OpenMP read once, when they are loaded."""


def cpu_count(root: Path = _ROOT) -> int:
    """How many CPUs this process may use: by its affinity, and by the quotas of its control groups, rounded up.

    Args:
        root: where the files of the system are.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([count, *(max(1, ceil(quota)) for quota in _quotas(root))])


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each control group of this process allows, itself and those around it; of Linux."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":  # version 2
            base, read = root / "sys/fs/cgroup", _quota_of_2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _quota_of_1
        else:
            continue
        place = base / path.lstrip("/")
        inside = [place, *place.parents][: len(place.parents) - len(base.parents) + 1]
        for directory in inside if ".." not in place.parts else [base]:  # a container sees its own group as the root
            quota = read(directory)
            if quota is not None:
                yield quota


def _quota_of_2(directory: Path) -> float | None:
    return _ratio(*_read(directory / "cpu.max").split()[:2])


def _quota_of_1(directory: Path) -> float | None:
    return _ratio(_read(directory / "cpu.cfs_quota_us").strip(), _read(directory / "cpu.cfs_period_us").strip())


def _ratio(quota: str = "", period: str = "") -> float | None:
    """Without a quota version 2 says "max", and version 1 says -1."""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:  # another system, or a container that hides it
        return ""


def thread_variables(workers: int, environment: Mapping[str, str], cpus: int) -> dict[str, str]:
    """Variables for the environment of each worker, by which all together run about as many threads as there are CPUs.

    There are none where two workers or fewer would run at most two threads a CPU, and where the environment says how
    many already: one variable is enough, since a library may read several.

    Args:
        workers: how many processes there are.
        environment: that they would have.
        cpus: as many threads a library begins in each.

    Example:
        >>> thread_variables(8, {}, cpus=16)["OMP_NUM_THREADS"]
        '2'
        >>> thread_variables(8, {"MKL_NUM_THREADS": "4"}, cpus=16)
        {}
    """
    if workers * cpus <= 2 * cpus or not environment.keys().isdisjoint(_VARIABLES):
        return {}
    return dict.fromkeys(_VARIABLES, str(max(1, cpus // workers)))


def bound_loaded() -> None:
    """In a worker: have libraries that were loaded before it had its environment heed it.

    That takes threadpoolctl; without it they run as many threads as they began with.
    """
    told = {os.environ.get(name, "") for name in _VARIABLES}
    threads = told.pop()
    if told or not threads.isdecimal():  # they are not ours
        return
    if "numpy" in sys.modules and find_spec("threadpoolctl") is not None:
        import threadpoolctl

        threadpoolctl.threadpool_limits(int(threads))
