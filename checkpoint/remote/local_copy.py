"""The local directory of a checkpoint in a store: what the store has and the journals lack is brought into them.

The promise: no line is lost, local or not; a journal never holds a part of what is being fetched; what was fetched is
not fetched again. A state file tells what the journals and the store have in common. It is rebuildable: where it is
lost, or is not of these journals, both are read and joined.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import BinaryIO

import msgspec

from checkpoint import clock
from checkpoint.errors import CheckpointLocked, StoreError
from checkpoint.remote.objects import Listing, Objects, Part
from checkpoint.remote.patience import telling
from checkpoint.remote.urls import remember
from checkpoint.storage.files import (
    fsync,
    fsync_directory,
    index_path,
    open_safely,
    read_object,
    replacing,
    store_error,
)
from checkpoint.storage.journal import Journal
from checkpoint.storage.lock import Lock
from checkpoint.storage.reader import Reader

__all__ = ["Held", "LocalCopy", "State", "mark_of"]

log = logging.getLogger("checkpoint")

_LOOK_EVERY = 5.0
_LOOK_FAILING = 60.0  # an attempt that fails may take long, and who reads waits for it
_TURN = 0.05
_TOKENS = 4
_TRIES = 5
_ENDS = 4096
_BLOCK = 1 << 20


class Held(msgspec.Struct):
    """What one journal and the store have in common.

    Attributes:
        have: how many bytes of each part are in the journal.
        end: the bytes before it are in the store, but for those that are owed.
        owed: spans before `end` that are not in the store yet.
        mark: of the journal's bytes before `end`.
    """

    have: dict[str, int] = {}
    end: int = 0
    owed: list[tuple[int, int]] = []
    mark: str = ""

    def spans(self, end: int) -> list[tuple[int, int]]:
        """What is not in the store of a journal that ends there."""
        return [*self.owed, *([(self.end, end)] if end > self.end else [])]


class State(msgspec.Struct):
    """What the journals and the store have in common.

    Attributes:
        whole: the session before which nothing counts, as it was when this was written.
        tokens: of the sessions that wrote from this directory, the last ones.
        joining: whether journals are being changed; where that was cut off, nothing is known.
        sent: seconds since the epoch, when everything was in the store.
    """

    whole: int = 0
    tokens: list[str] = []
    joining: bool = False
    sent: float = 0.0
    journals: dict[str, Held] = {}


def mark_of(reader: Reader | None, end: int) -> str:
    """What tells the first `end` bytes of a journal from those of another."""
    if reader is None or end == 0:
        return ""
    size = min(end, _ENDS)
    return f"{zlib.crc32(reader.pread(size, 0)):08x}{zlib.crc32(reader.pread(size, end - size)):08x}"


class LocalCopy:
    """The local directory of one checkpoint in a store.

    Args:
        name: the checkpoint's.
        directory: the local one.
        url: what it mirrors.
        journals: by kind.

    Attributes:
        objects: what is in the store.
        state: as it was last read or written.
    """

    def __init__(self, name: str, directory: Path, url: str, journals: Mapping[str, Path]) -> None:
        self.name = name
        self.directory = directory
        self.url = url
        self.paths = journals
        self.objects = Objects(url, name)
        self.state = State()
        self._state_path = directory / f".{name}.remote"
        self._turn = Lock(directory / f".{name}.pull", name)
        self._lock = Lock(directory / f".{name}.lock", name)
        self._looked_at = -inf
        self._failing = False
        self._own = f"{os.getpid()}.{os.urandom(8).hex()}"  # in names of temporary files, which nobody can guess

    # the state file

    def load(self) -> State | None:
        """The state, if it is of these journals."""
        state = self._read()
        return None if state is None or state.joining or not all(map(self._fits, state.journals.items())) else state

    def _read(self) -> State | None:
        try:
            return msgspec.convert(read_object(self._state_path), State)
        except (OSError, ValueError):
            return None

    def is_behind(self) -> bool:
        """Whether the state file names journals that have more than the store."""
        state = self._read()
        if state is None or not state.journals:
            return False
        readers = {kind: Reader.open(path) for kind, path in self.paths.items()}
        sizes = {kind: 0 if reader is None else reader.size() for kind, reader in readers.items()}
        return any(state.journals.get(kind, Held()).spans(size) for kind, size in sizes.items())

    def tokens(self) -> list[str]:
        """Of the sessions that wrote from this directory, the last ones."""
        state = self._read()
        return [] if state is None else state.tokens

    def note_token(self, token: str) -> None:
        """A session is about to begin from this directory: who finds it here later knows that it is over."""
        state = self._read() or State(joining=True)
        state.tokens = [*state.tokens[1 - _TOKENS :], token]
        self.save(state)

    def _fits(self, item: tuple[str, Held]) -> bool:
        kind, held = item
        if kind not in self.paths:
            return False
        reader = Reader.open(self.paths[kind])
        size = 0 if reader is None else reader.size()
        return (
            size >= held.end >= 0
            and all(0 <= a < b <= held.end for a, b in held.owed)
            and self._is_marked(reader, held)
        )

    @staticmethod
    def _is_marked(reader: Reader | None, held: Held) -> bool:
        return mark_of(reader, held.end) == held.mark

    def save(self, state: State) -> None:
        """Replace the state file."""
        self.state = state
        try:
            with replacing(self._state_path, f"{self.name}.remote") as file:
                file.write(msgspec.json.encode(state))
        except OSError as error:
            raise store_error(error, "cannot write", self._state_path) from error

    # whose turn it is

    def take_turn(self) -> None:
        """Wait until nobody else brings anything into the journals. Writers take it before the lock, so that a reader
        who holds both refuses none."""
        while True:
            try:
                self._turn.acquire()
                return
            except CheckpointLocked:
                clock.sleep(_TURN)

    def end_turn(self) -> None:
        """Let others."""
        self._turn.release()

    def after_fork(self) -> None:
        """In a forked child: it holds nothing of its parent's."""
        self._turn.drop()
        self._lock.drop()

    # reading

    def look(self) -> None:
        """Bring what others uploaded into the journals, unless somebody writes them here, or it was done just now.

        Raises:
            StoreError: the store cannot be reached, and nothing of it is known here.
        """
        if clock.monotonic() - self._looked_at < (_LOOK_FAILING if self._failing else _LOOK_EVERY):
            return
        try:
            with telling(self.objects):
                self._look()
            self._failing = False
        except StoreError as error:
            if not self._state_path.exists():
                raise  # and the next look asks again: nobody reads an empty checkpoint instead
            if not self._failing:
                log.warning("checkpoint %r is read as it was last seen here: %s", self.name, error)
            self._failing = True
        self._looked_at = clock.monotonic()

    def _look(self) -> None:
        listing = self.objects.look()
        if not listing.greatest and not self._state_path.exists():
            return  # nothing is made of nothing
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            remember(self.directory, self.url)
        except OSError as error:
            raise store_error(error, "cannot make the mirror", self.directory) from error
        self.take_turn()
        try:
            self._lock.acquire()
        except CheckpointLocked:
            return  # whoever writes here has all of it
        else:
            self.pull()
        finally:
            self._lock.release()
            self.end_turn()

    def pull(self) -> None:
        """Bring what the store has into the journals; call it in turn and under the lock.

        Raises:
            StoreError: it cannot be reached, or not be written here.
        """
        for _ in range(_TRIES):
            listing = self.objects.look()
            try:
                self._join(listing)
                self._looked_at = clock.monotonic()
                return
            except FileNotFoundError as error:
                log.debug("%s changed while it was read: %s", self.objects.url, error)
            except OSError as error:
                if isinstance(error, StoreError):
                    raise
                raise store_error(error, "cannot bring together", self.directory) from error
        raise StoreError(f"{self.objects.url} changes all the time", filename=self.objects.url)

    def _join(self, listing: Listing) -> None:
        state = self.load()
        if state is not None and listing.whole == state.whole and _covers(listing, state):
            if any(self._comes_before(listing.of(kind), state.journals.get(kind, Held()), kind) for kind in self.paths):
                self._rebuild(listing, state)
            else:
                self._append(listing, state)
        elif state is not None and listing.whole > state.whole:
            self._rebuild(listing, state)
        else:
            self._rebuild(listing, None)

    def _comes_before(self, parts: list[Part], held: Held, kind: str) -> bool:
        """Whether what is news goes before what the journal has: the last record wins, here and on every machine."""
        news = [part for part, _ in _news(parts, held)]
        if not news:
            return False
        reader = Reader.open(self.paths[kind])
        if reader is not None and held.spans(reader.size()):
            return True
        return news[0] < max((part for part in parts if part.name in held.have), default=news[0])

    # what is appended

    def _append(self, listing: Listing, state: State) -> None:
        news = {kind: _news(listing.of(kind), state.journals.get(kind, Held())) for kind in self.paths}
        if not any(news.values()):
            self.state = state
            return
        fetched = {kind: self._fetch(kind, wanted, None) for kind, wanted in news.items() if wanted}
        self.save(msgspec.structs.replace(state, joining=True))
        for kind, have in fetched.items():
            held = state.journals.setdefault(kind, Held())
            state.journals[kind] = self._append_one(kind, held, {**held.have, **have})
        self.save(state)

    def _append_one(self, kind: str, held: Held, have: dict[str, int]) -> Held:
        """The fetched file's lines go behind those of the journal, or it is the journal where there is none."""
        path, fetched = self.paths[kind], self._temporary(kind)
        if not path.exists():
            return self._install(kind, have, fetched.stat().st_size, [])
        journal = Journal(path)
        try:
            journal.open_to_write()
            assert journal.reader is not None
            start = journal.end = journal.reader.size()
            for chunk in _chunks(fetched):
                journal.append(chunk)
            journal.sync()
            end = journal.end
        finally:
            journal.close()
        fetched.unlink()
        return self._held(kind, have, end, held.spans(start))

    def _held(self, kind: str, have: dict[str, int], end: int, owed: list[tuple[int, int]]) -> Held:
        return Held(have, end, owed, mark_of(Reader.open(self.paths[kind]), end))

    def _temporary(self, kind: str) -> Path:
        return self.directory / f".{self.name}_{kind}.pull.{self._own}.tmp"

    def _fetch(self, kind: str, wanted: Iterable[tuple[Part, int]], seen: set[int] | None) -> dict[str, int]:
        """Write the lines to the temporary file, synced; returns how many bytes of each part there are then."""
        have: dict[str, int] = {}
        with self._writing(self._temporary(kind)) as file:
            for part, start, data in self.objects.fetch(wanted):
                cut = data.rfind(b"\n") + 1
                file.write(memoryview(data)[:cut])
                have[part.name] = start + cut
                if seen is not None:
                    seen.update(map(_digest, data[:cut].split(b"\n")))
            _settle(file)
        return have

    @staticmethod
    def _writing(path: Path) -> BinaryIO:
        path.unlink(missing_ok=True)
        return os.fdopen(open_safely(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")

    def _take_place(self, kind: str) -> None:
        """The temporary file is the journal. Its index goes first: none is ever taken for another journal's."""
        path = self.paths[kind]
        index_path(path).unlink(missing_ok=True)
        fsync_directory(self.directory)
        os.replace(self._temporary(kind), path)
        fsync_directory(self.directory)

    # what is built anew

    def _rebuild(self, listing: Listing, state: State | None) -> None:
        """Journals of what the store has, and of what only they have.

        Args:
            listing: what the store has.
            state: where it is known, only what is owed is kept: the rest was compacted or cleared elsewhere.
        """
        tokens = self.tokens()
        first = state is None and listing.whole > 0
        built = {}
        for kind in self.paths:
            held = None if state is None else state.journals.get(kind, Held())
            built[kind] = self._build(kind, listing.of(kind), held, first=first)
        # A state that is lost here lets what was cleared elsewhere come back: only renames are left to do.
        self.save(State(joining=True, tokens=tokens))
        journals = {kind: Held() if found is None else self._install(kind, *found) for kind, found in built.items()}
        self.save(State(whole=listing.whole, tokens=tokens, journals=journals))

    def _build(
        self, kind: str, parts: list[Part], held: Held | None, *, first: bool
    ) -> tuple[dict[str, int], int, list[tuple[int, int]]] | None:
        """Write the temporary file that is to be the journal; None where the journal stays as it is.

        Args:
            kind: which journal.
            parts: what the store has of it.
            held: what the journal has in common with the store, where that is known.
            first: what only the journal has goes before the rest: nothing that was compacted away is to win again.

        Returns:
            What a `Held` says: have, end, owed.
        """
        reader = self._repaired(kind)
        if not parts and (held is None or reader is None):
            return None  # all there is, is owed
        seen: set[int] | None = set() if held is None and reader is not None else None
        have = self._fetch(kind, [(part, 0) for part in parts], seen)
        if reader is None:
            return have, sum(have.values()), []
        kept = (
            _lacking(reader, seen) if seen is not None else _pieces(reader, held.spans(reader.size()) if held else [])
        )
        if first:
            own = self._put_before(kind, kept)
            return have, own + sum(have.values()), [(0, own)] if own else []
        with os.fdopen(open_safely(self._temporary(kind), os.O_WRONLY | os.O_APPEND), "ab") as file:
            for chunk in kept:
                file.write(chunk)
            _settle(file)
        return have, sum(have.values()), []

    def _install(self, kind: str, have: dict[str, int], end: int, owed: list[tuple[int, int]]) -> Held:
        self._take_place(kind)
        return self._held(kind, have, end, owed)

    def _put_before(self, kind: str, chunks: Iterable[bytes]) -> int:
        fetched, joined = self._temporary(kind), self._temporary(f"{kind}.first")
        with self._writing(joined) as file:
            own = sum(map(file.write, chunks))
            for chunk in _chunks(fetched):
                file.write(chunk)
            _settle(file)
        os.replace(joined, fetched)
        return own

    def _repaired(self, kind: str) -> Reader | None:
        """The journal, ending in a whole line."""
        path = self.paths[kind]
        if not path.exists():
            return None
        journal = Journal(path)
        try:
            journal.open_to_write()
            return journal.reader
        finally:
            journal.close()


def _covers(listing: Listing, state: State) -> bool:
    """Whether everything that was taken from the store, or brought there, is there."""
    sizes = {part.name: part.size for part in listing.parts}
    return all(sizes.get(name, -1) >= size for held in state.journals.values() for name, size in held.have.items())


def _news(parts: list[Part], held: Held) -> list[tuple[Part, int]]:
    return [(part, known) for part in parts if part.size > (known := held.have.get(part.name, 0))]


def _digest(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big")


def _lacking(reader: Reader, seen: set[int]) -> Iterator[bytes]:
    """The lines that are not among those seen."""
    for _, block in reader.blocks(0):
        lines = block.split(b"\n")
        lines.pop()
        lacking = [line + b"\n" for line in lines if _digest(line) not in seen]
        if lacking:
            yield b"".join(lacking)


def _pieces(reader: Reader, spans: list[tuple[int, int]]) -> Iterator[bytes]:
    for start, stop in spans:
        for at in range(start, stop, _BLOCK):
            yield reader.pread(min(_BLOCK, stop - at), at)


def _chunks(path: Path) -> Iterator[bytes]:
    """Runs of whole lines of a file of whole lines."""
    reader = Reader.open(path)
    assert reader is not None
    for _, block in reader.blocks(0):
        yield block


def _settle(file: BinaryIO) -> None:
    file.flush()
    fsync(file.fileno())
