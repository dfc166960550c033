"""Set damage aside: lines that cannot be read leave their journal, and not a byte of them is destroyed.

What counts stays, in its order, byte for byte; and so does what tells how damaged lines are read, as long as there are
any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint.catalog.locate import aside_name, locate, parts_of, paths_of, size_of
from checkpoint.catalog.shards import Shard
from checkpoint.errors import StoreError, plural
from checkpoint.maintenance.audit import Audit, Damage
from checkpoint.maintenance.rewriting import alone_with, discard_leftovers, own_logs
from checkpoint.storage.condition import fault_of
from checkpoint.storage.files import store_error
from checkpoint.storage.journal import Journal
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import is_whole, unsealed
from checkpoint.storage.store import forgetting

__all__ = ["Repair", "repair"]


_BLOCK = 1 << 19


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair` did.

    Attributes:
        name, directory: the checkpoint's.
        moved: the damaged lines that were set aside.
        torn: bytes of torn tails that were.
        forgotten: how many lines were written in the place of damaged ones, so that no older record of their keys
            counts again.
        taken: how many lines were written in their places as they are, without the checksums that they failed.
    """

    name: str
    directory: str
    moved: tuple[Damage, ...]
    torn: int
    forgotten: int
    taken: int = 0

    def to_json(self) -> dict[str, Any]:
        """`moved_lines`, `moved_bytes`, `torn_bytes`, `forgotten`, `taken`."""
        return {
            "moved_lines": len(self.moved),
            "moved_bytes": sum(damage.size for damage in self.moved),
            "torn_bytes": self.torn,
            "forgotten": self.forgotten,
            "taken": self.taken,
        }

    def __str__(self) -> str:
        done = []
        paths = dict.fromkeys(damage.path for damage in self.moved)
        for path in paths:
            count = sum(damage.path == path for damage in self.moved)
            done.append(f"{path}: {plural(count, 'damaged line')} set aside in {aside_name(path)}")
        if self.torn:
            done.append(f"a torn tail of {plural(self.torn, 'byte')} was set aside")
        if self.taken:
            done.append(f"{plural(self.taken, 'line')} of them stay as they are, without checksum: not verified")
        return "\n".join(done) or f"checkpoint {self.name!r} in {self.directory}: nothing to repair"


def repair(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Repair:
    """Move damaged lines and a torn tail into the files of bytes set aside; the rest stays byte for byte, in order.

    They are kept there, synced, before a journal loses them. Where a damaged line hides an older record of its key, a
    line that forgets the key takes its place: what is lost is computed again, and no value of old comes back.

    Where most lines hold records and only fail their checksums, another program wrote the file anew: these lines stay,
    without their checksums. Where a journal is shorter than meta knows, what is there counts from then on.

    Args:
        name: the checkpoint's.
        checkpoint_dir: as for `check`.

    Raises:
        CheckpointLocked: another process writes it, or one of its shards, or a pass of this one is running.
        JournalLost: another kind of file is in a journal's place, or it is gone.
        StoreError: it could not be done; the journals are as they were, or those before this one are done.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_result(3, 9)
        >>> print(repair("squares").moved)
        ()
    """
    directory = locate(name, checkpoint_dir)
    done = [_repair_one(name, directory, shard) for shard in parts_of(name, directory)]
    moved = tuple(damage for part in done for damage in part.moved)
    torn, forgotten, taken = (sum(getattr(part, count) for part in done) for count in ("torn", "forgotten", "taken"))
    return Repair(name, str(directory), moved, torn, forgotten, taken)


def _repair_one(name: str, directory: Path, shard: Shard) -> Repair:
    prefix = shard.prefix(name)
    before = sum(size_of(Journal(path).aside) for path in paths_of(prefix, directory))
    torn = sum(map(_torn_bytes, paths_of(prefix, directory)))
    moved: list[Damage] = []
    forgotten = taken = 0
    with alone_with(name, directory, shard, repairs=True) as store:
        discard_leftovers(prefix, directory)
        for shelf, reader in own_logs(store):
            fault = fault_of(reader)
            ledger = Audit(reader, decode=shelf is store.own.results)
            if not ledger.damage:
                continue
            if store.mend(shelf, [(damage.offset, damage.size) for damage in ledger.damage]):
                moved += ledger.damage
                continue
            bare = _unsealed(ledger, reader) if fault is not None and fault.is_altered else {}
            instead = {**_forgettings(ledger), **bare}
            try:
                shelf.journal.set_aside((d.offset, reader.pread(d.size, d.offset)) for d in ledger.damage)
            except StoreError:
                raise
            except OSError as error:
                raise store_error(error, "cannot set damaged lines aside in", shelf.journal.aside) from error
            store.replace(shelf, _without(reader, ledger.damage, instead, ledger.end))
            moved += ledger.damage
            forgotten += len(instead) - len(bare)
            taken += len(bare)
        after = sum(size_of(shelf.journal.aside) for shelf in store.own)
    return Repair(name, str(directory), tuple(moved), torn if after > before else 0, forgotten, taken)


def _torn_bytes(path: Path) -> int:
    reader = Reader.open(path)
    tail = b"" if reader is None else reader.tail()[1]
    return 0 if is_whole(tail) else len(tail)


def _forgettings(ledger: Audit) -> dict[int, bytes]:
    """By offset of a damaged line, the line that takes its place so that nothing older counts again."""
    session = os.urandom(4).hex().encode()
    return {claim.at: forgetting(claim.version, claim.key, session, damaged=True).line for claim in ledger.uncovered()}


def _unsealed(ledger: Audit, reader: Reader) -> dict[int, bytes]:
    """By offset of a line that only fails its checksum, the line without it."""
    bare = {damage.offset: unsealed(reader.pread(damage.size, damage.offset)) for damage in ledger.damage}
    return {offset: line + b"\n" for offset, line in bare.items() if line is not None}


def _without(reader: Reader, damage: Sequence[Damage], instead: dict[int, bytes], end: int) -> Iterator[bytes]:
    """The journal's bytes up to `end` but for the damaged lines."""
    at = 0
    for line in damage:
        yield from _bytes_between(reader, at, line.offset)
        yield instead.get(line.offset, b"")
        at = line.offset + line.size
    yield from _bytes_between(reader, at, end)


def _bytes_between(reader: Reader, start: int, stop: int) -> Iterator[bytes]:
    while start < stop:
        data = reader.pread(min(_BLOCK, stop - start), start)
        if not data:
            raise reader.damaged(start, "the file was cut while it was read")
        yield data
        start += len(data)
