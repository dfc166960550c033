"""What a checkpoint has cost in all: its own journals, and those of every shard, whether it reads their results or not.

The promise: the sum is that of all journals in the directory, as of now; new shards are found within a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from pathlib import Path

from checkpoint import clock
from checkpoint.catalog.shards import ALL, Shard, shards_in
from checkpoint.storage.reader import Reader
from checkpoint.storage.spending import Spending

__all__ = ["OtherShards"]

_LOOKS = 1.0  # seconds from look to look at the directory


class OtherShards:
    """The shards that a checkpoint does not read, since they hold no key of its own; their cost counts all the same.

    Args:
        name, directory, shard: the checkpoint's.
    """

    def __init__(self, name: str, directory: Path, shard: Shard) -> None:
        self._name, self._directory, self._shard = name, directory, shard
        self._looks_at = -inf
        self._spending: dict[Shard, Spending] = {}

    def spending(self) -> list[Spending]:
        """Of each of them."""
        if self._shard == ALL:
            return []  # it reads them all
        now = clock.monotonic()
        if now >= self._looks_at:
            self._looks_at = now + _LOOKS
            for shard in self._shards():
                if not shard.meets(self._shard) and shard not in self._spending:
                    self._spending[shard] = Spending(_Files(shard.prefix(self._name), self._directory))
        return list(self._spending.values())

    def _shards(self) -> set[Shard]:
        try:
            return shards_in(self._directory, self._name)
        except OSError:
            return set()  # there is no directory yet


class _Files:
    """The journals of a shard that nobody here reads for their records."""

    def __init__(self, prefix: str, directory: Path) -> None:
        self.meta_path = directory / f"{prefix}_meta.json"
        self._logs = {kind: _File(directory / f"{prefix}_{kind}.jsonl") for kind in ("results", "errors")}

    def by_kind(self) -> Iterator[tuple[str, _File]]:
        """(kind, journal) of each."""
        return iter(self._logs.items())


class _File:
    """One of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: Reader | None = None

    @property
    def reader(self) -> Reader | None:
        """What reads the file that is there now."""
        if self._reader is None or not self._reader.is_current():
            self._reader = Reader.open(self._path)
            if self._reader is not None:
                self._reader.let_go_when_idle()
        return self._reader
