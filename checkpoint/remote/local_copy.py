"""The local directory of a checkpoint in a store: what the store has and the journals lack is brought into them.

The promise: no line is lost, local or not; the lines of a journal are in the order of sessions, whenever they came; a
journal never holds a part of what is being fetched; what was fetched is not fetched again. A state file tells what the
journals and the store have in common, and what is owed by which session. It is rebuildable: where it is lost, or is not
of these journals, both are read and joined.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import BinaryIO

import msgspec

from checkpoint import clock
from checkpoint.errors import CheckpointLocked, StoreError, plural
from checkpoint.remote.objects import Listing, Objects, Part
from checkpoint.remote.patience import telling
from checkpoint.remote.state import (
    Held,
    Owed,
    State,
    covers,
    date,
    end_stream,
    find_own,
    mark_of,
    news_of,
    token_before,
)
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
from checkpoint.storage.record import forgets_damage, is_intact

__all__ = ["LocalCopy", "may_go_up"]

log = logging.getLogger("checkpoint")

_LOOK_EVERY = 5.0
_LOOK_FAILING = 60.0  # an attempt that fails may take long, and who reads waits for it
_TURN = 0.05
_TOKENS = 4
_TRIES = 5
_BLOCK = 1 << 20


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
        if state is None or state.joining or not all(map(self._fits, state.journals.items())):
            return None
        if state.epoch < 0:
            date(state)
        return state

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
        return any(state.spans(kind, size) for kind, size in sizes.items())

    def tokens(self) -> list[str]:
        """Of the sessions that wrote from this directory, the last ones."""
        state = self._read()
        return [] if state is None else state.tokens

    def greatest(self) -> int:
        """The greatest session that is known here: its objects may have been deleted, or not be listed yet."""
        state = self._read() or State()
        return max(
            [0, state.epoch, state.whole, *[owed.epoch for held in state.journals.values() for owed in held.owed]]
        )

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
            and all(0 <= owed.start < owed.stop <= held.end for owed in held.owed)
            and mark_of(reader, held.end) == held.mark
        )

    def save(self, state: State, *, durable: bool = False) -> None:
        """Replace the state file."""
        self.state = state
        try:
            with replacing(self._state_path, f"{self.name}.remote") as file:
                file.write(msgspec.json.encode(state))
                if durable:
                    _settle(file)
            if durable:
                fsync_directory(self.directory)
        except OSError as error:
            raise store_error(error, "cannot write", self._state_path) from error

    def begin_stream(self, epoch: int, token: str) -> None:
        """What is appended from here on is this session's: it is noted before anything is."""
        state = self.state
        state.epoch, state.token = epoch, token
        for kind in self.paths:
            held = state.journals.setdefault(kind, Held())
            held.since = held.end
        self.save(state, durable=True)

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
        if not listing.parts and not listing.whole and not self._state_path.exists():
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
        if state is not None:
            self._owe(state)
        if state is None or listing.whole < state.whole:
            self._rebuild(listing, None)
        elif listing.whole > state.whole:
            self._rebuild(listing, state)
        elif not covers(listing, state):
            self._rebuild(listing, None)
        else:
            for kind in self.paths:
                find_own(listing, kind, state.journals[kind])
            if any(self._comes_before(listing.of(kind), state.journals[kind]) for kind in self.paths):
                self._rebuild(listing, state)
            else:
                self._append(listing, state)

    def _owe(self, state: State) -> None:
        """What was appended since the state was written is owed by the session that appended last."""
        for kind in self.paths:
            held = state.journals.setdefault(kind, Held())
            reader = _repaired(self.paths[kind])
            end = 0 if reader is None else reader.size()
            held.owed, held.end = held.spans(end, state.epoch, state.token), end
            held.mark = mark_of(reader, end)

    @staticmethod
    def _comes_before(parts: list[Part], held: Held) -> bool:
        """Whether what is news goes before what the journal has: its order is one on every machine."""
        news = [part for part, _ in news_of(parts, held)]
        if not news:
            return False
        there = [part for part in parts if part.name in held.have] + [owed.part(news[0].kind) for owed in held.owed]
        return news[0] < max(there, default=news[0])

    def lines_there(self, kind: str) -> Iterator[bytes]:
        """A journal as the store has it, in runs of whole lines."""
        for _, _, data in self.objects.fetch(news_of(self.objects.look().of(kind), Held())):
            yield data[: data.rfind(b"\n") + 1]

    # what is appended

    def _append(self, listing: Listing, state: State) -> None:
        news = {kind: news_of(listing.of(kind), state.journals.get(kind, Held())) for kind in self.paths}
        if not any(news.values()):
            self.state = state
            return  # what is owed is found again
        fetched = {kind: self._fetch(kind, wanted)[0] for kind, wanted in news.items() if wanted}
        self.save(msgspec.structs.replace(state, joining=True))
        for kind, have in fetched.items():
            held = state.journals.setdefault(kind, Held())
            state.journals[kind] = self._append_one(kind, held, {**held.have, **have})
        end_stream(state, listing.greatest)
        self.save(state)

    def _append_one(self, kind: str, held: Held, have: dict[str, int]) -> Held:
        """The fetched file's lines go behind those of the journal, or it is the journal where there is none."""
        path, fetched = self.paths[kind], self._temporary(kind)
        if not path.exists():
            size = fetched.stat().st_size
            self._take_place(kind)
            return self._held(kind, have, size, [])
        journal = Journal(path)
        try:
            journal.open_to_write()
            assert journal.reader is not None
            journal.end = journal.reader.size()
            for chunk in _chunks(fetched):
                journal.append(chunk)
            journal.sync()
            end = journal.end
        finally:
            journal.close()
        fetched.unlink()
        return self._held(kind, have, end, held.owed)

    def _held(self, kind: str, have: dict[str, int], end: int, owed: list[Owed]) -> Held:
        return Held(have, end, owed, mark_of(Reader.open(self.paths[kind]), end), end)

    def _temporary(self, kind: str) -> Path:
        return self.directory / f".{self.name}_{kind}.pull.{self._own}.tmp"

    def _fetch(
        self,
        kind: str,
        wanted: Iterable[tuple[Part, int]],
        owed: Sequence[Owed] = (),
        seen: set[int] | None = None,
    ) -> tuple[dict[str, int], list[Owed]]:
        """Write lines to the temporary file, synced: those of parts, and those that are owed in their places.

        Returns:
            How many bytes of each part there are then, and where what is owed is.
        """
        have: dict[str, int] = {}
        placed: list[Owed] = []
        left = deque(sorted(owed, key=lambda each: each.part(kind)))
        reader = Reader.open(self.paths[kind]) if left else None
        with _writing(self._temporary(kind)) as file:

            def place(before: Part | None) -> None:
                while left and (before is None or left[0].part(kind) < before):
                    assert reader is not None
                    each, start = left.popleft(), file.tell()
                    for piece in _pieces(reader, each):
                        file.write(piece)
                    placed.append(each._replace(start=start, stop=file.tell()))

            for part, start, data in self.objects.fetch(wanted):
                place(part)
                cut = data.rfind(b"\n") + 1
                file.write(memoryview(data)[:cut])
                have[part.name] = start + cut
                if seen is not None:
                    seen.update(map(_digest, data[:cut].split(b"\n")))
            place(None)
            _settle(file)
        return have, placed

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
        raw, cleared = self._read() or State(), listing.marker.cleared
        # Nobody knows which session wrote what only the journals have: it goes before the rest.
        oldest = 0 if raw.epoch >= 0 and raw.whole < cleared else cleared
        unknown = Owed(0, 0, oldest, token_before(listing, oldest))
        built = {}
        for kind in self.paths:
            if state is None:
                built[kind] = self._join_unknown(kind, listing, unknown)
            else:
                built[kind] = self._build(kind, listing, state.journals.get(kind, Held()))
        # What was cleared elsewhere is known by `whole`, should only some of the renames be done.
        self.save(State(whole=raw.whole, epoch=raw.epoch, tokens=raw.tokens, joining=True))
        done = State(whole=listing.whole, tokens=raw.tokens)
        for kind, (have, owed) in built.items():
            if self._temporary(kind).exists():
                self._take_place(kind)
            reader = Reader.open(self.paths[kind])
            done.journals[kind] = self._held(kind, have, 0 if reader is None else reader.size(), owed)
        end_stream(done, listing.greatest)
        self.save(done)

    def _build(self, kind: str, listing: Listing, held: Held) -> tuple[dict[str, int], list[Owed]]:
        """Write the temporary file that is to be the journal: what the store has, and what is owed.

        Returns:
            What a `Held` says: have, owed.
        """
        find_own(listing, kind, held)
        wanted = news_of(listing.of(kind), Held())
        if not wanted and _repaired(self.paths[kind]) is None:
            return {}, []
        cleared = [owed for owed in held.owed if owed.epoch < listing.marker.cleared]
        self._set_aside(kind, cleared)
        return self._fetch(kind, wanted, [owed for owed in held.owed if owed not in cleared])

    def _join_unknown(self, kind: str, listing: Listing, unknown: Owed) -> tuple[dict[str, int], list[Owed]]:
        """`_build`, where nothing is known of the journal: its lines are compared with those of the store."""
        reader, wanted = _repaired(self.paths[kind]), news_of(listing.of(kind), Held())
        if reader is None and not wanted:
            return {}, []
        seen: set[int] = set()
        have, _ = self._fetch(kind, wanted, seen=seen)
        if reader is None:
            return have, []
        if unknown.epoch < listing.marker.cleared:
            self._set_aside(kind, list(_lacking_spans(reader, seen)))
            return have, []
        own = self._put_before(kind, _lacking(reader, seen, _keep_damage))
        return have, [unknown._replace(stop=own)] if own else []

    def _set_aside(self, kind: str, spans: Sequence[Owed]) -> None:
        """Keep beside the journal what is not to come back, and tell it."""
        reader = Reader.open(self.paths[kind])
        if reader is None or not spans:
            return
        pieces = [(each.start, reader.pread(each.stop - each.start, each.start)) for each in spans]
        journal = Journal(self.paths[kind])
        journal.set_aside(pieces)
        log.warning(
            "checkpoint %r was cleared on another machine while %s here were not in %s yet: set aside in %s", self.name,
            plural(sum(piece.count(b"\n") for _, piece in pieces), "line"), self.url, journal.aside,
        )  # fmt: skip

    def _put_before(self, kind: str, chunks: Iterable[bytes]) -> int:
        fetched, joined = self._temporary(kind), self._temporary(f"{kind}.first")
        with _writing(joined) as file:
            own = sum(map(file.write, chunks))
            for chunk in _chunks(fetched):
                file.write(chunk)
            _settle(file)
        os.replace(joined, fetched)
        return own


def _keep_damage(reader: Reader, pieces: list[tuple[int, bytes]]) -> None:
    """Lines that this disk has damaged stay here, beside the journal."""
    Journal(reader.path).set_aside(pieces)
    log.info("%s: %s set aside; what the store has counts", reader.path, plural(len(pieces), "damaged line"))


def _writing(path: Path) -> BinaryIO:
    path.unlink(missing_ok=True)
    return os.fdopen(open_safely(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")


def _repaired(path: Path) -> Reader | None:
    """The journal, ending in a whole line."""
    if not path.exists():
        return None
    journal = Journal(path)
    try:
        journal.open_to_write()
        return journal.reader
    finally:
        journal.close()


def _digest(line: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big")


def may_go_up(line: bytes) -> bool:
    """Whether a line is as it was written: what this disk did to it, and what was concluded from that, stays here."""
    return is_intact(line) and not forgets_damage(line)


def _lacking(
    reader: Reader, seen: set[int], on_damage: Callable[[Reader, list[tuple[int, bytes]]], None]
) -> Iterator[bytes]:
    """The lines that are not among those seen; those that are damaged are told instead."""
    damaged = []
    for span in _lacking_spans(reader, seen):
        line = reader.pread(span.stop - span.start, span.start)
        if may_go_up(line):
            yield line
        else:
            damaged.append((span.start, line))
    if damaged:
        on_damage(reader, damaged)


def _lacking_spans(reader: Reader, seen: set[int]) -> Iterator[Owed]:
    """Where they are."""
    for start, block in reader.blocks(0):
        at = start
        for line in block.split(b"\n")[:-1]:
            if _digest(line) not in seen:
                yield Owed(at, at + len(line) + 1)
            at += len(line) + 1


def _pieces(reader: Reader, span: Owed) -> Iterator[bytes]:
    for at in range(span.start, span.stop, _BLOCK):
        yield reader.pread(min(_BLOCK, span.stop - at), at)


def _chunks(path: Path) -> Iterator[bytes]:
    """Runs of whole lines of a file of whole lines."""
    reader = Reader.open(path)
    assert reader is not None
    for _, block in reader.blocks(0):
        yield block


def _settle(file: BinaryIO) -> None:
    file.flush()
    fsync(file.fileno())
