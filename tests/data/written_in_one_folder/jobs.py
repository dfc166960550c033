"""The jobs that the checkpoints beside it were written by, when all modules of the library lay in one folder.

`python jobs.py` writes them anew, in `journals` of the working directory.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint import CheckpointedRunner, checkpointed

DIRECTORY = Path("journals")


@dataclass
class Reading:
    """A result of a class."""

    name: str
    values: tuple[float, ...]


class Shy:
    """What is pickled, and cannot be unpickled."""

    def __reduce__(self) -> Any:
        return (int, ("no number",))


@checkpointed("readings", checkpoint_dir=DIRECTORY, key="name")
def read(item: dict[str, Any]) -> Reading:
    """One of the items fails."""
    print("called", file=sys.stderr)
    return Reading(item["name"], tuple(float(value) for value in item["values"]))


@checkpointed("kept", checkpoint_dir=DIRECTORY)
def keep(n: int) -> Any:
    """In a process of its own, two of its results cannot travel back."""
    print("called", file=sys.stderr)
    return (n, threading.Lock(), Shy())[n]


@checkpointed("parts", checkpoint_dir=DIRECTORY, version={"prompt": "Summarize", "size": 2})
def part(n: int) -> list[int]:
    """Is written in two shards."""
    print("called", file=sys.stderr)
    return [n, n * n]


ITEMS = [{"name": "a", "values": [1, 2.5]}, {"name": "b", "values": []}, {"name": "c", "values": ["x"]}]


def told(results: Iterable[Any]) -> list[str]:
    """Each as text; what the words are of an error of ours, they may change."""
    return [repr(one) if not isinstance(one, Exception) else type(one).__name__ for one in results]


def run() -> None:
    """Map all of them, and show what comes of it."""
    print(told(read.map(ITEMS, progress=False, return_exceptions=True)))
    print(told(keep.map(range(3), progress=False, executor="processes", workers=1, return_exceptions=True)))
    for shard in ((0, 2), (1, 2)):
        print(told(part.map(range(6), progress=False, shard=shard)))


def write() -> None:
    """The checkpoints, lines without a checksum among them."""
    run()
    with CheckpointedRunner("by_hand", checkpoint_dir=DIRECTORY) as runner:
        runner.save_result("with", {"n": 1})
        runner.save_error("failed", ValueError("it was empty"))
    with (DIRECTORY / "by_hand_results.jsonl").open("ab") as journal:
        journal.write(b'{"key":"without","result":{"n":2},"timestamp":"2026-01-01T00:00:00.000000+00:00"}\n')
        journal.write(b'{"key":7,"result":[1]}\n')


if __name__ == "__main__":
    write()
