"""What the records of a checkpoint cost, by version: whatever became of them since.

The promise: journals alone are enough to tell, up to the last line that is on disk. A record that was computed again,
forgotten or cleared has cost what it cost. Each line is read once; nothing is read before somebody asks.

    {"key":…,"result":…,"notes":{"cost":0.5,…},"timestamp":…}     a record cost so much
    {…,"notes":{"cost":0.5,…},"earlier":0.2,"timestamp":…}        of which lines of attempts that failed say 0.2
    {"spent":{"3f0e…":[12.5,40]},"timestamp":"…","crc":"…"}       no record: what an attempt cost that failed, and whose
                                                                  call goes on; or 40 records that are gone from here

Meta keeps the sums, and up to where they reach, so that the next process reads only what follows.
"""

from __future__ import annotations

import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any, Protocol

import msgspec

from checkpoint import clock, locks
from checkpoint.storage.meta import meta_in, state_of
from checkpoint.storage.reader import PROBE, Reader
from checkpoint.storage.record import LONGEST_LOOSE, NoRecord, Record, parse, seal

__all__ = [
    "COST",
    "Cost",
    "Costs",
    "Spending",
    "added_up",
    "cost_in",
    "cost_of",
    "cost_text",
    "notes_of",
    "spent_line",
    "sum_of",
]

COST = "cost"
"""Of meta: the sums."""
_MARKS = (b',"notes":{', b'{"spent":{')


class Cost(msgspec.Struct):
    """What records cost.

    Attributes:
        total: the sum.
        count: how many records it is of.
        most: what the dearest cost, of those that are still in the journals.
    """

    total: float = 0.0
    count: int = 0
    most: float = 0.0

    def add(self, other: Cost) -> None:
        """Add what others cost."""
        self.total += other.total
        self.count += other.count
        self.most = max(self.most, other.most)


Costs = dict[str, Cost]


class _Journal(Protocol):
    @property
    def reader(self) -> Reader | None: ...


class _Journals(Protocol):
    meta_path: Path

    def by_kind(self) -> Iterator[tuple[str, Any]]: ...


class _Notes(msgspec.Struct):
    cost: float = 0.0


_decode_cost = msgspec.json.Decoder(_Notes).decode
_decode_notes = msgspec.json.Decoder(dict[str, Any]).decode


def notes_of(record: Record) -> dict[str, Any]:
    """The fields that the calls of a record noted; none where a line of another program has no object there."""
    try:
        return _decode_notes(record.notes) if bytes(record.notes) else {}
    except (ValueError, RecursionError):
        return {}


def cost_in(record: Record) -> float | None:
    """The cost that a record names, of all attempts; None where it names none."""
    raw = bytes(record.notes)
    if b'"cost"' not in raw:
        return None
    try:
        cost = _decode_cost(raw).cost
    except (ValueError, RecursionError):
        return None
    return cost if 0 <= cost < inf else None  # a line of another program may have anything there


def cost_of(record: Record) -> float | None:
    """What a record adds to the sum: None where it names no cost, or is a copy of one that does."""
    cost = cost_in(record) if record.origin is None else None
    if cost is None:
        return None
    earlier = record.earlier if isinstance(record.earlier, (int, float)) else 0.0
    return max(0.0, cost - earlier)


def sum_of(costs: Costs) -> float:
    """What all versions cost."""
    return sum([cost.total for cost in costs.values()])


def cost_text(cost: float) -> str:
    """A cost in three figures, or to the whole unit."""
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.3g}"


def spent_line(costs: Mapping[str, Cost]) -> bytes:
    """The line that says what was spent, and has no record."""
    sums = {version: (cost.total, cost.count) for version, cost in costs.items()}
    return seal(b'{"spent":%b,"timestamp":"%b"' % (msgspec.json.encode(sums), clock.Stamper()()))


def added_up(many: Iterator[Costs] | list[Costs]) -> Costs:
    """By version, what several sums come to."""
    total: Costs = {}
    for costs in many:
        for version, cost in costs.items():
            total.setdefault(version, Cost()).add(cost)
    return total


class _ReadOn:
    """What was read of one journal.

    Attributes:
        end: up to where.
        probe: the checksum of the last bytes before that.
        costs: the sums.
    """

    def __init__(self, said: Any = None) -> None:
        self._reader: Callable[[], Reader | None] = lambda: None  # its owner closes it by letting go of it
        self.end, self.probe = 0, 0
        self.costs: Costs = {}
        try:
            held = msgspec.convert(said, _Said)
        except msgspec.ValidationError:
            return
        self.end, self.probe, self.costs = held.end, held.probe, held.by

    def read_on(self, reader: Reader | None) -> Costs:
        """The sums, with what was appended; of a file that is another one, all of it. None: there is no file."""
        if reader is None:
            return {}
        if reader is not self._reader() and not self._continues(reader):
            self.end, self.probe, self.costs = 0, 0, {}
        self._reader = weakref.ref(reader)
        if reader.size() > self.end:
            self._read_from(reader)
        return self.costs

    def _read_from(self, reader: Reader) -> None:
        long: list[tuple[int, int]] = []
        for offset, block in reader.blocks(self.end, lambda offset, size: long.append((offset, size))):
            self._read_long(reader, long)
            if any(mark in block for mark in _MARKS):
                for line in block.split(b"\n"):
                    self._read(line)
            self.end = offset + len(block)
        self._read_long(reader, long)
        self.probe = _probe(reader, self.end)

    def _continues(self, reader: Reader) -> bool:
        return 0 < self.end <= reader.size() and _probe(reader, self.end) == self.probe

    def _read_long(self, reader: Reader, found: list[tuple[int, int]]) -> None:
        for offset, size in found:
            if size <= LONGEST_LOOSE:
                self._read(reader.pread(size, offset))
            self.end = offset + size + 1
        found.clear()

    def _read(self, line: bytes) -> None:
        if not any(mark in line for mark in _MARKS):
            return
        try:
            record = parse(line)
        except NoRecord as found:
            for version, (total, count) in (found.spent or {}).items():
                if 0 <= total < inf:
                    self.costs.setdefault(version, Cost()).add(Cost(total, count))
            return
        except ValueError:
            return  # damaged: `check` tells of it
        cost = cost_of(record)
        if cost is not None:
            self.costs.setdefault(record.version, Cost()).add(Cost(cost, 1, cost))


class _Said(msgspec.Struct):
    """What meta says of one journal."""

    end: int
    probe: int
    by: dict[str, Cost]


def _probe(reader: Reader, end: int) -> int:
    start = max(0, end - PROBE)
    return zlib.crc32(reader.pread(end - start, start))


class Spending:
    """What the journals of one store cost: each is read on from where it was read to.

    Args:
        journals: of the store.

    Attributes:
        is_used: whether somebody asked.
        is_told: whether meta has been told that something cost something.
    """

    def __init__(self, journals: _Journals) -> None:
        self._journals = journals
        self._lock = locks.rlock("spending")
        self._read: dict[str, _ReadOn] | None = None
        self.is_used = self.is_told = False
        self._without: object = None  # the state of the meta file that knew of no cost

    def costs(self) -> Costs:
        """By version, what its records cost, those included that are on disk since a moment ago.

        Raises:
            StoreError: a journal cannot be read.
        """
        return added_up([costs for _, costs in self._look()])

    def by_kind(self) -> dict[str, Costs]:
        """By kind of journal, what its records cost."""
        return dict(self._look())

    def _look(self) -> list[tuple[str, Costs]]:
        with self._lock:
            self.is_used = True
            if self._read is None:
                said = meta_in(self._journals.meta_path).get(COST)
                self._read = {kind: _ReadOn(said.get(kind) if isinstance(said, dict) else None) for kind in _KINDS}
            known = self._read
            logs = [(kind, log) for kind, log in self._journals.by_kind() if kind in _KINDS]
            return [(kind, added_up([known[kind].read_on(log.reader)])) for kind, log in logs]

    def known(self) -> Costs | None:
        """The same where it costs little to tell: None where meta is there and knows of no cost."""
        return None if not self.is_used and self._knows_of_none() else self.costs()

    def _knows_of_none(self) -> bool:
        """Whether meta is there and knows of no cost; it is read once."""
        state = state_of(self._journals.meta_path)
        if state is None or state != self._without:
            meta = meta_in(self._journals.meta_path)
            if not meta or COST in meta:
                return False
            self._without = state
        return True

    def note_meta(self, cost: Mapping[str, Any]) -> None:
        """Meta was just written, with what `to_meta` gave."""
        self._without = None if cost else state_of(self._journals.meta_path)

    def to_meta(self) -> dict[str, Any]:
        """What meta keeps; nothing where nothing has cost anything, as far as anybody here knows."""
        if not (self.is_used or self.is_told):
            if self._knows_of_none():
                return {}
            said = meta_in(self._journals.meta_path)
            return {COST: said[COST]} if COST in said else {}
        if not self.costs() or self._read is None:
            return {}
        sums = {kind: _Said(read.end, read.probe, read.costs) for kind, read in self._read.items()}
        return {COST: msgspec.to_builtins(sums)}

    def after_fork(self) -> None:
        """In a forked child: the lock may have been held by a thread that is not here."""
        self._lock = locks.rlock("spending")


_KINDS = ("results", "errors")
