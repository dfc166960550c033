"""Leave superseded lines out of journals. What counts stays, in its order, byte for byte."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.catalog.locate import locate, parts_of
from checkpoint.catalog.paths import command_line
from checkpoint.catalog.shards import Shard
from checkpoint.errors import plural
from checkpoint.maintenance.audit import Audit
from checkpoint.maintenance.check import kept_lines, left_lines
from checkpoint.maintenance.rewriting import alone_with, discard_leftovers, own_logs
from checkpoint.words import size_in_words

__all__ = ["Compaction", "compact"]


@dataclass(frozen=True, slots=True)
class Compaction:
    """What `compact` did.

    Attributes:
        name, directory: the checkpoint's.
        lines, size: how many superseded lines, and bytes, of the journals were left out.
        left: bytes of the journals as they are.
        damaged: how many damaged lines stay in them.
        leftovers: (path, bytes) of the temporary files that were deleted.
    """

    name: str
    directory: str
    lines: int
    size: int
    left: int
    damaged: int
    leftovers: tuple[tuple[str, int], ...]

    def to_json(self) -> dict[str, Any]:
        """`name`, `directory`, `freed_lines`, `freed_bytes`, `bytes` (left), `damaged_lines`, `leftovers`."""
        return {
            "name": self.name,
            "directory": self.directory,
            "freed_lines": self.lines,
            "freed_bytes": self.size,
            "bytes": self.left,
            "damaged_lines": self.damaged,
            "leftovers": [{"path": path, "bytes": size} for path, size in self.leftovers],
        }

    def __str__(self) -> str:
        what = f"freed {size_in_words(self.size)}, {plural(self.lines, 'line')}; {size_in_words(self.left)} are left"
        if not self.lines:
            what = f"nothing to compact: each of its lines counts ({size_in_words(self.left)})"
        told = [f"checkpoint {self.name!r} in {self.directory}: {what}"]
        if self.leftovers:
            size = sum(size for _, size in self.leftovers)
            told.append(
                f"deleted {plural(len(self.leftovers), 'temporary file')} of a killed process ({size_in_words(size)})"
            )
        if self.damaged:
            command = command_line("check", self.name, self.directory)
            told.append(f"{plural(self.damaged, 'damaged line')} left in place: {command} --repair sets damage aside")
        return "\n".join(told)


def compact(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Compaction:
    """Rewrite each journal without its superseded lines; nothing that can be read from it changes.

    What counts stays, of every version, in its order, byte for byte; so do damaged lines, and all of a journal in which
    they would be most of what is left: `repair` it first. What
    was spent on records that are left out stays in the sum. Each journal is replaced at
    once, when its copy is on the medium: it takes room for that copy. Who reads an old one, such as a `Results`, goes
    on reading it. Where every line counts, nothing is written.

    Args:
        name: the checkpoint's.
        checkpoint_dir: as for `check`.

    Raises:
        CheckpointLocked: another process writes it, or one of its shards, or a pass of this one is running.
        StoreError: it could not be done (disk full …); the journals are as they were, or those before this one are
            compacted.

    Example:
        >>> with CheckpointedRunner("cubes") as runner:
        ...     runner.save_result(3, 9)
        ...     runner.save_result(3, 27)
        >>> compact("cubes").lines
        1
    """
    directory = locate(name, checkpoint_dir)
    done = [_compact_one(name, directory, shard) for shard in parts_of(name, directory)]
    lines, size, left, damaged = (
        sum(getattr(part, count) for part in done) for count in ("lines", "size", "left", "damaged")
    )
    leftovers = tuple(leftover for part in done for leftover in part.leftovers)
    return Compaction(name, str(directory), lines, size, left, damaged, leftovers)


def _compact_one(name: str, directory: Path, shard: Shard) -> Compaction:
    prefix = shard.prefix(name)
    lines = size = left = damaged = 0
    with alone_with(name, directory, shard) as store:
        leftovers = discard_leftovers(prefix, directory)
        for shelf, reader in own_logs(store):
            before, ledger = reader.size(), Audit(reader, decode=shelf is store.own.results)
            if ledger.damage and store.mend(shelf, [(damage.offset, damage.size) for damage in ledger.damage]):
                assert shelf.journal.reader is not None
                reader = shelf.journal.reader
                ledger = Audit(reader, decode=shelf is store.own.results)
            kept = kept_lines(ledger)
            if kept is not None:
                store.replace(shelf, left_lines(ledger, reader, kept))
                assert shelf.journal.reader is not None
                lines += ledger.lines - len(kept)
                size += before - shelf.journal.reader.size()
            left += shelf.journal.reader.size() if shelf.journal.reader is not None else 0
            damaged += len(ledger.damage)
    return Compaction(name, str(directory), lines, size, left, damaged, leftovers)
