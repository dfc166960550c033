"""What the journals of a directory and a store have in common, and what is owed by which session.

The promise: what a session appended is a stream, a run of bytes with places. Names and sizes of parts tell which of
it is in the store, so that a span of a journal is owed exactly as long as none has it.
"""

from __future__ import annotations

import os
import zlib
from typing import NamedTuple

import msgspec

from checkpoint.remote.objects import Listing, Part, Stretch
from checkpoint.storage.reader import Reader

__all__ = ["Held", "Owed", "State", "covers", "date", "end_stream", "find_own", "mark_of", "news_of", "token_before"]

_ENDS = 4096


class Owed(NamedTuple):
    """A span of a journal that the store lacks: bytes of a stream, which is what one session appended.

    Attributes:
        start, stop: where it is in the journal.
        epoch: of the session that appended it; -1 where nobody noted it.
        token: of that session, where its number may be that of another one too.
        at: its place in the stream.
    """

    start: int
    stop: int
    epoch: int = -1
    token: str = ""
    at: int = 0

    def part(self, kind: str) -> Part:
        """Where it stands in the order of parts."""
        return Part(self.epoch, True, True, self.token, self.at, "", kind, self.stop - self.start)

    @property
    def stream(self) -> str:
        """As `Part.stream`."""
        return self.part("").stream

    def between(self, at: int, end: int) -> Owed:
        """The bytes of it from one place of the stream to another."""
        start = self.start + max(0, at - self.at)
        return self._replace(start=start, stop=min(self.stop, self.start + end - self.at), at=max(at, self.at))

    def less(self, stretches: list[Stretch]) -> list[Owed]:
        """What of it is not in these stretches of the stream, which are in order."""
        left, at, end = [], self.at, self.at + self.stop - self.start
        for start, stop in stretches:
            if start < end and stop > at:
                left += [self.between(at, start)] if start > at else []
                at = stop
        return [*left, self.between(at, end)] if at < end else left


class Held(msgspec.Struct):
    """What one journal and the store have in common.

    Attributes:
        have: how many bytes of each part are in the journal.
        end: the bytes before it are in the store, but for those that are owed.
        owed: spans before `end` that are not in the store yet.
        mark: of the journal's bytes before `end`.
        since: where the stream of the session begins that appended last.
    """

    have: dict[str, int] = {}
    end: int = 0
    owed: list[Owed] = []
    mark: str = ""
    since: int = 0

    def spans(self, end: int, epoch: int, token: str) -> list[Owed]:
        """What is not in the store of a journal that ends there, and that this session appended to last."""
        if end <= self.end:
            return self.owed
        return [*self.owed, Owed(self.end, end, epoch, token, self.end - self.since)]


class State(msgspec.Struct):
    """What the journals and the store have in common.

    Attributes:
        whole: the session of the last whole, as it was when this was written.
        epoch: the session that appended last; -1 where an earlier release wrote this.
        token: its token, where its number may be that of another one too.
        tokens: of the sessions that wrote from this directory, the last ones.
        joining: whether journals are being changed; where that was cut off, nothing is known.
        sent: seconds since the epoch, when everything was in the store.
    """

    whole: int = 0
    epoch: int = -1
    token: str = ""
    tokens: list[str] = []
    joining: bool = False
    sent: float = 0.0
    journals: dict[str, Held] = {}

    def spans(self, kind: str, end: int) -> list[Owed]:
        """What the store lacks of a journal that ends there."""
        return self.journals.get(kind, Held()).spans(end, self.epoch, self.token)


def mark_of(reader: Reader | None, end: int) -> str:
    """What tells the first `end` bytes of a journal from those of another."""
    if reader is None or end == 0:
        return ""
    size = min(end, _ENDS)
    return f"{zlib.crc32(reader.pread(size, 0)):08x}{zlib.crc32(reader.pread(size, end - size)):08x}"


def date(state: State) -> None:
    """An earlier release noted no session: what is owed stood behind all that it had seen, in a stream unknown."""
    names = [name for held in state.journals.values() for name in held.have]
    state.epoch = max([state.whole, *[int(name.split("-")[1]) for name in names]])
    state.token = _new_token()
    at = dict.fromkeys(state.journals, 0)
    for kind, held in state.journals.items():
        held.since = held.end
        for place, owed in enumerate(held.owed):
            held.owed[place] = owed._replace(epoch=state.epoch, token=state.token, at=at[kind])
            at[kind] += owed.stop - owed.start
        held.since -= at[kind]


def covers(listing: Listing, state: State) -> bool:
    """Whether everything that was taken from the store, or brought there, is there."""
    sizes = {part.name: part.size for part in listing.parts}
    return all(sizes.get(name, -1) >= size for held in state.journals.values() for name, size in held.have.items())


def news_of(parts: list[Part], held: Held) -> list[tuple[Part, int]]:
    """What the journal lacks: (part, how much of it is there)."""
    known = ((part, max(part.skip, held.have.get(part.name, 0))) for part in parts)
    return [(part, size) for part, size in known if part.size > size]


def find_own(listing: Listing, kind: str, held: Held) -> None:
    """What a session uploaded without having noted it is owed no more: names and sizes tell which bytes it was."""
    owed: list[Owed] = []
    for each in held.owed:
        end = each.at + each.stop - each.start
        for part in listing.of(kind):
            is_own = part.is_placed and part.stream == each.stream
            if is_own and part.number < end and part.number + part.size > each.at:
                held.have[part.name] = max(held.have.get(part.name, 0), min(part.size, end - part.number))
        owed += each.less(listing.has(kind, each.stream))
    held.owed = owed


def end_stream(state: State, epoch: int) -> None:
    """What is appended from here on, by whoever holds no session, is of a stream of its own."""
    state.epoch, state.token = epoch, _new_token()
    for held in state.journals.values():
        held.since = held.end


def _new_token() -> str:
    """What nobody else has."""
    return os.urandom(8).hex()


def token_before(listing: Listing, epoch: int) -> str:
    """One that nobody else has, and that stands before all that are in this session."""
    tokens = [part.token for part in listing.parts if part.epoch == epoch and part.token]
    first = min(tokens, default="f")
    return "0" * (1 + len(first) - len(first.lstrip("0"))) + _new_token()
