"""The three journals of one store, and whether they are what they should be.

The promise: a file in a journal's place that is none, or that has lost what was on the medium, is found before anything
is read from it or written to it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from checkpoint.errors import JournalLost, quote
from checkpoint.storage.condition import SYNCED, Fault, fault_of, held_records, loss_of, synced_bytes
from checkpoint.storage.index import Index
from checkpoint.storage.journal import KINDS, Journal
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.meta import meta_in
from checkpoint.storage.replica import NoReplica, Replica
from checkpoint.storage.spending import Spending
from checkpoint.values.keys import Key

__all__ = ["Journals", "at_risk", "size_of"]

log = logging.getLogger("checkpoint")


class Journals:
    """The journals of results, errors and values that could not be encoded, whose files begin with one name.

    Args:
        name: what the files begin with.
        directory: where they are.
        lock: the store's.

    Attributes:
        replica: what keeps them elsewhere too.
        meta_path: where the meta file is that counts them.
        is_counted_alone: whether it counts nothing else, also where it was written by an earlier release.
        fault: the first of them that is none, or has lost something, and what is wrong with it.
        synced: by kind, how many bytes are on the medium at least.
        spending: what their records cost.
    """

    def __init__(self, name: str, directory: Path, lock: threading.RLock) -> None:
        paths = (f"{name}_results.jsonl", f"{name}_errors.jsonl", f".{name}_unsaved.jsonl")
        self.all = self.results, self.errors, self.unsaved = [KeyedLog(directory / path, lock) for path in paths]
        self.name = name
        self.replica: Replica = NoReplica()
        self.meta_path = directory / f"{name}_meta.json"
        self.is_counted_alone = True
        self.fault: tuple[Path, Fault] | None = None
        self.synced: dict[str, int] = {}
        self.spending = Spending(self)

    def __iter__(self) -> Iterator[KeyedLog]:
        return iter(self.all)

    def by_kind(self) -> Iterator[tuple[str, KeyedLog]]:
        """(kind, log) of each."""
        return zip(KINDS, self.all, strict=True)

    @property
    def files(self) -> dict[str, Journal]:
        """By kind, the journal alone."""
        return {kind: each.journal for kind, each in self.by_kind()}

    # the files

    def reopen(self) -> None:
        """Read them anew."""
        for each in self.all:
            each.reopen()

    def refresh(self) -> None:
        """Learn what others wrote since."""
        for each in self.all:
            each.refresh()

    def close(self) -> None:
        """Let go of the files; `refresh` opens them again."""
        for each in self.all:
            each.close()

    def knows(self, version: str, keys: list[Key]) -> bool:
        """Whether any of the keys has a record in any of them."""
        return any(max(each.find_all(version, keys)[0], default=-1) >= 0 for each in self.all)

    def after_fork(self, lock: threading.RLock) -> None:
        """In a forked child: another lock, and nothing of what the parent was at."""
        for each in self.all:
            each.lock = lock
            each.index.after_fork()
        self.spending.after_fork()
        self.replica.after_fork()

    # whether they are what they should be

    def examine(self) -> None:
        """Look whether the files are journals, where they were opened anew since the last look.

        Another process may clear or compact meanwhile. It takes what meta says back first: what the same meta says
        before and after the journals are looked at holds of them.
        """
        one, two, three = self.all
        if one.index is one.examined and two.index is two.examined and three.index is three.examined:
            return
        said: dict[str, Any] | None = None
        while (found := self._first_fault(meta := meta_in(self.meta_path))) is not None and meta != said:
            said = meta
            self.refresh()
        self.fault = found
        if found is None:
            self.synced = {kind: min(synced_bytes(meta, kind), size_of(each)) for kind, each in self.by_kind()}
        for each in self.all:
            each.examined = each.index

    def _first_fault(self, meta: dict[str, Any]) -> tuple[Path, Fault] | None:
        """The first journal that is none, or has lost what was on the medium; errors that are lost are only told."""
        is_believed = (SYNCED in meta or self.is_counted_alone) and not self.replica.is_remote
        for kind, each in self.by_kind():
            path, reader = each.journal.path, each.journal.reader
            says = meta if is_believed else {}
            synced = synced_bytes(says, kind)
            fault = None if reader is None else fault_of(reader, held_records=held_records(says, kind))
            if fault is None and synced:
                size = size_of(each)
                fault = loss_of(reader, synced, meta.get("completed_items"))
                is_short = fault is not None or size + 1 < synced  # without its last newline a file is whole
                if is_short and (fault is None or kind == "errors"):
                    log.warning(
                        "%s has %d bytes, and %d were on disk when meta was written: lines were deleted, or the file "
                        "is an older copy; what they held is not known any more", path, size, synced,
                    )  # fmt: skip
                    fault = None
            if fault is not None:
                return path, fault
        return None

    def forget_fault(self) -> None:
        """Look again the next time."""
        self.fault = None
        for each in self.all:
            each.examined = None

    def check_places(self) -> None:
        """Notice one that was cut, deleted or replaced.

        Raises:
            JournalLost: with the keys that are at risk.
        """
        for each in self.all:
            try:
                each.journal.check_place()
            except JournalLost as error:
                raise self._first_lost() or at_risk(each, error) from None

    def _first_lost(self) -> JournalLost | None:
        """Files that go together do not go at one moment: results are told before errors."""
        for each in self.all:
            try:
                each.journal.check_place()
            except JournalLost as error:
                return at_risk(each, error)
        return None

    # what is on the medium

    def note_synced(self) -> dict[str, int]:
        """Bytes of each journal that are on the medium, which is what is there at least after any crash."""
        for kind, each in self.by_kind():
            synced = max(self.synced.get(kind, 0), each.journal.synced)
            if synced:
                self.synced[kind] = synced
        return dict(self.synced)

    def pay(self, lock: threading.RLock) -> bool:
        """Sync what was left to be synced later; whether any was. The lock is the store's, held while that is noted.

        Raises:
            StoreError: nobody knows what is on the medium.
        """
        has_paid = False
        for kind, each in self.by_kind():
            end, reader = each.journal.pay()
            with lock:
                if end and reader is each.journal.reader:  # else it was replaced meanwhile
                    self.synced[kind] = max(end, self.synced.get(kind, 0))
                    has_paid = True
        return has_paid

    def note_shorter(self) -> bool:
        """Whether one is shorter than was noted: its torn end was its only line."""
        shorter = {kind: size for kind, each in self.by_kind() if self.synced.get(kind, 0) > (size := size_of(each))}
        self.synced.update(shorter)
        return bool(shorter)


def at_risk(each: KeyedLog, error: JournalLost) -> JournalLost:
    """The error, with the keys whose records are gone."""
    reader = each.journal.reader
    assert reader is not None
    if reader.is_current():
        keys = each.index.keys_from(min(error.intact, reader.tail()[0]))
    else:
        lost = Index()
        lost.scan(reader)  # the open descriptor still reads the file that has no name any more
        keys = lost.keys_from(0)
    shown = ", ".join([quote(key, 60) for key in keys[:10]]) + (", …" if len(keys) > 10 else "")
    return JournalLost(
        f"{error}; {len(keys):,} keys are at risk: {shown or 'none'}. Nothing more is written to it: put the file "
        "back and run the same line again, which tells what else can be done",
        errno=error.errno,
        strerror=error.strerror,
        filename=error.filename,
        intact=error.intact,
        keys=keys,
    )


def size_of(each: KeyedLog) -> int:
    """How many bytes a journal has, as it is open."""
    return 0 if each.journal.reader is None else each.journal.reader.size()
