"""One journal with its index: where records are, by key, and what of that is to be believed.

The promise: a key leads to the place of its last record, whatever became of the index file and whoever edits the
journal beside it; what was read or written of it before counts as long as it still stands there. Nothing is written but
the index file, notes of damage, and the repair of a torn end.
"""

from __future__ import annotations

import logging
import os
import threading
import zlib
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from checkpoint import locks
from checkpoint.errors import DamagedRecord, StoreError
from checkpoint.storage.blocks import State, Trust
from checkpoint.storage.damage import DamageNotes, SkippedLines
from checkpoint.storage.files import fsync_directory, index_path
from checkpoint.storage.index import Index, Place
from checkpoint.storage.index_file import IndexDamaged
from checkpoint.storage.journal import Journal
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record
from checkpoint.values.digests import Digests
from checkpoint.values.keys import Key, key_from_json

__all__ = ["IndexedJournal", "key_of"]

log = logging.getLogger("checkpoint")
_T = TypeVar("_T")


class IndexedJournal:
    """One journal and its index.

    Args:
        path: the journal's.
        lock: the store's: whoever opens files anew holds it.

    Attributes:
        settled: the versions whose next record need not say what a digest stands for.
    """

    def __init__(self, path: Path, lock: threading.RLock) -> None:
        self.journal = Journal(path)
        self._skipped = SkippedLines(path)
        self.index = Index(self._skipped.note)
        self.lock = lock
        self.settled: set[str] = set()
        self._index_path = index_path(path)
        self._filing = locks.lock("filing")
        self._trust = Trust()
        self._notes_of_damage = DamageNotes(path)
        self._damaged_lines: dict[tuple[str, Key], str] = {}  # checksums of lines whose values were
        self._known_damage: dict[tuple[str, Key], Place] = {}  # what this process takes for missing, though it is there

    # learning

    def refresh(self) -> None:
        """Learn what others wrote since; start anew where the file is another one, shorter, or written anew."""
        reader = self.journal.reader
        if reader is None or not reader.is_current():
            self.reopen()
            return
        state, end = reader.state(), self.index.end
        if state[0] < end or not self.journal.is_as_known():
            self.reopen()
            return
        if state[0] > end:
            self._learn()
        if self._trust.has_news(state) and not self._fits_still(reader, end, state):
            self.reopen()

    def is_as_known(self) -> bool:
        """Whether nobody has written the journal since it was looked at.

        Raises:
            StoreError: the system reported an error.
        """
        reader = self.journal.reader
        if reader is None:
            return not os.path.lexists(self.journal.path)
        return reader.is_current() and reader.size() == self.index.end and self.journal.is_as_known()

    def _fits_still(self, reader: Reader, end: int, state: State) -> bool:
        """Whether what was known up to `end` is to be asked still, although the journal was written."""
        try:
            return self._trust.look(reader, self.index.sums, end, state)
        except (IndexDamaged, OSError):
            return False

    def reopen(self) -> None:
        """Read the index file and the journal's tail. Who looks up meanwhile finds what was known before."""
        reader = Reader.open(self.journal.path)
        self.settled = set()
        if reader is None and self.journal.reader is None and self.index.end == 0:
            return  # there is no file yet: what is known of it, which is nothing, stays valid
        trust = Trust()
        index = Index(self._skipped.note) if reader is None else self._opened(reader, trust)
        self.journal.close()
        self.journal.reader, self.index, self._trust = reader, index, trust
        self.journal.learned(index.end)
        if reader is not None:
            reader.let_go_when_idle()
        self._skipped.tell(reader)
        self._heed_notes()

    def _opened(self, reader: Reader, trust: Trust) -> Index:
        """What the file of the index and the journal's tail say; where they do not fit, what the whole journal says."""
        index, state = Index(self._skipped.note), reader.state()
        try:
            is_loaded = index.load(self._index_path, reader)
            filed = index.end
            index.scan(reader)
            trust.assure(state)
            if not is_loaded or index.is_sealed(state) or trust.suspect(reader, index.sums, filed, state):
                return index
        except (IndexDamaged, OSError):
            pass
        return self._scanned(reader, trust)

    def _scanned(self, reader: Reader, trust: Trust) -> Index:
        """What the whole journal says."""
        self._skipped.clear()
        index, state = Index(self._skipped.note), reader.state()
        index.scan(reader)
        trust.assure(state)
        return index

    def replace(self, chunks: Iterable[bytes]) -> None:
        """A journal of these lines takes the place of this one, and is opened. Call it under the lock.

        Raises:
            StoreError: as `Journal.replace`.
        """
        try:
            self.journal.replace(chunks, first=self._unlink_index)
            self._unlink_index()  # one that a thread wrote meanwhile
        finally:
            self.reopen()

    def _unlink_index(self) -> None:
        """It is gone for good before the journal that it is of: no index file is ever taken for another journal's."""
        if os.path.lexists(self._index_path):
            self._index_path.unlink(missing_ok=True)
            fsync_directory(self._index_path.parent)

    def open_to_write(self, *, is_fresh: bool = False) -> None:
        """Repair the end of the journal and learn what is there; call it under the lock.

        Args:
            is_fresh: whether it was refreshed under the lock already.
        """
        if not is_fresh:
            self.refresh()
        self.journal.open_to_write()
        if self.journal.reader is not None:
            self.journal.reader.let_go_when_idle()
        self._learn()
        self._look_at_notes()

    def settle_doubt(self) -> None:
        """After an exception in the middle of an append, or between it and the index: look what came of it."""
        self.journal.repair()
        self._learn()

    def _learn(self) -> None:
        """Read on: what was appended, or repaired, is in the file but not yet in the index."""
        if self.journal.reader is not None:
            try:
                self.index.scan(self.journal.reader)
            except IndexDamaged:
                self._rebuilt()
            self.journal.learned(self.index.end)
            self._skipped.tell(self.journal.reader)

    # looking up

    def find(self, version: str, key: Key) -> Place | None:
        """Where the key's last record is."""
        if self._trust.doubt is not None:
            return self._find_in_doubt(version, key)
        try:  # what `_ask` does, in less time
            return self.index.find(version, key)
        except (IndexDamaged, OSError):
            return self._rebuilt().find(version, key)

    def _find_in_doubt(self, version: str, key: Key) -> Place | None:
        """What is found stands in a block that fits; where nothing is found, all blocks do."""
        with self.lock:
            reader = self.journal.reader
            try:
                place = self.index.find(version, key)
                if reader is None or self._trust.fits(reader, None if place is None else place.offset):
                    return place
            except (IndexDamaged, OSError):
                pass
            return self._rebuilt().find(version, key)

    def find_all(self, version: str, keys: list[Key]) -> tuple[array[int], Digests]:
        """Where the last record of each key is, as `Index.find_all` tells it."""
        return self._ask(lambda index: index.find_all(version, keys))

    def count(self, version: str) -> int:
        """How many keys have a record."""
        with self.lock:
            return self._ask(lambda index: index.count(version))

    def hashes(self, version: str) -> list[tuple[bytes, int]]:
        """As `Index.hashes` tells it."""
        return self._ask(lambda index: list(index.hashes(version)))

    def _ask(self, question: Callable[[Index], _T]) -> _T:
        """What the index answers of many keys: if it proves wrong, what one answers that is read from the journal."""
        try:
            if self._trust.doubt is not None:
                self._settle_trust()
            return question(self.index)
        except (IndexDamaged, OSError):
            return question(self._rebuilt())

    def _settle_trust(self) -> None:
        with self.lock:
            reader = self.journal.reader
            if reader is not None and not self._trust.fits(reader):
                self._rebuilt()

    def learn_anew(self) -> None:
        """What is known is not to be trusted: read the journal instead."""
        self._rebuilt()

    def _rebuilt(self) -> Index:
        """The index is of other bytes: the journal is read instead; who was writing goes on writing."""
        with self.lock:
            log.info("%s does not fit %s, which is read anew", self._index_path, self.journal.path)
            try:
                self._index_path.unlink(missing_ok=True)
            except OSError:
                pass  # a read-only directory: it is found out again next time
            reader = self.journal.reader
            self.index = Index(self._skipped.note) if reader is None else self._scanned(reader, self._trust)
            if not self.journal.writable:
                self.journal.learned(self.index.end)
            self._skipped.tell(reader)
            self._heed_notes()
            return self.index

    def _is_moved(self, reader: Reader, offset: int) -> bool:
        """Whether the index is of other bytes than those that are there: then it is learned anew."""
        with self.lock:
            try:
                if self.index.sums.fits_at(reader, offset):
                    return False
            except IndexDamaged:
                pass
            self._rebuilt()
            return True

    # damage

    def note_damage(self, version: str, key: Key) -> None:
        """The key's record proved damaged: it is not found any more, and who opens the journal next looks again."""
        with self.lock:
            place, reader = self.find(version, key), self.journal.reader
            if place is not None and reader is not None and self._is_sound(version, key, place):
                self._damaged_lines[version, key] = _sum_at(reader, place.offset)  # it is read, but not decoded
            self._take_for_missing(version, key)
        self._notes_of_damage.add((version, key), self._damaged_lines.get((version, key), ""))

    def _take_for_missing(self, version: str, key: Key) -> None:
        if (place := self.find(version, key)) is not None:
            self._known_damage[version, key] = place
            self.index.forget(version, key)

    def _heed_notes(self) -> None:
        """Look again at what readers found damaged, in the journal as it is now."""
        self._known_damage = {}
        reader = self.journal.reader
        noted = self._notes_of_damage.read() if reader is not None else {}
        self._damaged_lines |= noted
        for version, key in [*self._damaged_lines] if reader is not None else ():
            if (place := self.find(version, key)) is not None and not self._is_sound(version, key, place):
                self._take_for_missing(version, key)

    def _is_sound(self, version: str, key: Key, place: Place) -> bool:
        """Whether the line can be read, and is another than the one that was found damaged: that may not be decoded."""
        reader = self.journal.reader
        assert reader is not None
        try:
            known = self._damaged_lines.get((version, key))
            if known and known == _sum_at(reader, place.offset):
                return False
            record = reader.read(place.offset)
            return key_of(reader, record, place.offset) == (key if record.crc else str(key))
        except DamagedRecord:
            return False

    def _look_at_notes(self) -> None:
        """Under the lock: what is sound after all counts again, and only what is damaged still stays noted."""
        noted = self._notes_of_damage.read()
        self._damaged_lines |= noted
        known = dict.fromkeys([*noted, *self._known_damage])
        if not known:
            return
        for (version, key), place in list(self._known_damage.items()):
            if self.find(version, key) is None and self._is_sound(version, key, place):
                latest = self.index.latest
                self.index.add(version, key, place.offset, place.digest)
                self.index.latest = latest
                del self._known_damage[version, key]
        for version, key in noted:
            if (found := self.find(version, key)) is not None and not self._is_sound(version, key, found):
                self._take_for_missing(version, key)
        left = {
            each: self._damaged_lines.get(each, "")
            for each in known
            if each in self._known_damage and self.find(*each) is None
        }
        if left != noted:
            self._notes_of_damage.keep(left)

    # the file of the index

    def write_index_if_worth(self, growth: float, rows: int, size: int) -> None:
        """Write the index file, once what it lacks is large in itself and by comparison."""
        filed, covered = self.index.filed
        lacks, lacking = self.index.recent, self.index.end - covered
        if (lacks > rows or lacking > size) and (lacks > growth * filed or lacking > growth * covered):
            self.write_index()
        with self.lock:
            self._vouch()

    def _vouch(self) -> None:
        """Whoever writes lets go of the journal: the index, and its file, are right of it as it is now."""
        reader, trust = self.journal.reader, self._trust
        if reader is None or not self.journal.writable:
            return
        try:
            state = reader.state()
        except StoreError as error:
            log.debug("the index %s was not sealed: %s", self._index_path, error)
            return
        if state[0] != self.index.end or self.journal.in_doubt:
            return
        if trust.doubt is not None:
            trust.seen = state  # what was in doubt is so still
            return
        trust.assure(state)
        try:
            self.index.seal(self._index_path, state)
        except OSError as error:
            log.debug("the index %s was not sealed: %s", self._index_path, error)

    def write_index(self) -> None:
        """Write the index file. It is only a cache: failing to write it is not an error."""
        if not self._filing.acquire(blocking=False):
            return  # another thread is at it; we do not wait for it, since who ends a pass holds a lock that it needs
        try:
            with self.lock:
                index, reader = self.index, self.journal.reader
                snapshot = index.snapshot()
            try:
                if reader is not None:
                    segment = snapshot.write(self._index_path, reader)
                    if segment is not None:
                        index.wrote(snapshot, segment)
                    if not reader.is_current():  # the journal was replaced meanwhile
                        self._index_path.unlink(missing_ok=True)
            except IndexDamaged:  # the file before, which this one was to be made from
                if index.reads_file:
                    self._rebuilt()
                else:
                    index.drop_base()
            except (OSError, ValueError) as error:  # the latter for versions that only a line by hand can have
                log.debug("the index %s was not written: %s", self._index_path, error)
        finally:
            self._filing.release()

    # the end

    def close(self) -> None:
        """Let go of both files; `refresh` opens them again."""
        self.journal.close()
        self.index, self._trust = Index(self._skipped.note), Trust()

    def unlink(self) -> None:
        """Delete journal and index; whoever has them open reads on."""
        self.close()
        self.journal.path.unlink(missing_ok=True)
        self._index_path.unlink(missing_ok=True)
        self._notes_of_damage.unlink()


def key_of(reader: Reader, record: Record, offset: int) -> Key:
    """The key on a record: as text where the line stands for any key of equal str()."""
    try:
        key = key_from_json(record.key)
    except ValueError as error:
        raise reader.damaged(offset, str(error)) from None
    return key if record.crc else str(key)


def _sum_at(reader: Reader, offset: int) -> str:
    """The sum of the bytes of a line; "" where they cannot be read."""
    try:
        return f"{zlib.crc32(reader.line_at(offset)):08x}"
    except (DamagedRecord, StoreError):
        return ""
