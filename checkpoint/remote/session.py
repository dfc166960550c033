"""One session, and its thread: what is saved is brought to the store, beside the work.

The promise: what was uploaded and seen to be in order counts, and nothing else does; a session that sees a newer one
stops uploading, and its local files stay. The thread reads whole, acknowledged lines of the local journals, and writes
objects of its own session only. What an earlier session owed goes up under that session's number. A line that this disk
has damaged never goes up. Who waits at the end is told for what, and does not wait for ever.
"""

from __future__ import annotations

import errno
import logging
import threading
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

import msgspec

from checkpoint import clock, locks
from checkpoint.clock import Stamper
from checkpoint.errors import CheckpointLocked, JournalLost, StoreError, plural
from checkpoint.outcomes import Uploaded
from checkpoint.remote import numbers, patience
from checkpoint.remote.behind import told_waiting, waiting
from checkpoint.remote.local_copy import LocalCopy, may_go_up
from checkpoint.remote.numbers import as_json, said_in, take
from checkpoint.remote.objects import Marker, Owner, Part
from checkpoint.remote.state import Held, Owed, State, mark_of
from checkpoint.storage.journal import Journal
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import forgets_damage

__all__ = ["EVERY", "Session"]

log = logging.getLogger("checkpoint")

EVERY = 5.0
"""Seconds between two uploads."""

SIZE = 8 << 20
"""Bytes that are uploaded at once, and sooner than that."""

_SEALED = 1 << 20  # a part of so many bytes is not written again: a slow job would upload each byte many times
_RENEW = 15.0
_POLL = 0.25
_PAUSES = (1.0, 60.0)  # seconds after a first failure, and at most
_HASTE = 5.0  # at most, while somebody waits
_GIVE_UP = 60.0  # seconds of failures that are waited for at the end
_STALLED = 180.0  # the same without a failure being told: a large part over a slow line


class Session:
    """One session, and its thread: a daemon.

    Attributes:
        failing: why the last upload failed, or "".
        ended_by: what has ended the session, or None.
    """

    def __init__(
        self, mirror: LocalCopy, journals: Mapping[str, Journal], number: Owner, owner: dict[str, Any]
    ) -> None:
        self._mirror, self._journals, self._number, self._owner = mirror, journals, number, owner
        self.failing = ""
        self.ended_by: CheckpointLocked | None = None
        # A journal that is deleted meanwhile is uploaded to its end: who has it open reads on.
        self._readers = {kind: reader for kind in journals if (reader := Reader.open(mirror.paths[kind])) is not None}
        self._tails: dict[str, tuple[int, bytes]] = {}  # of each journal, the part that grows: its place, its lines
        self._work = locks.lock("uploading")  # held while objects are written
        self._counting = locks.lock(
            "counting"
        )  # held while the state is: an upload that hangs may end after the session
        self._wake, self._moved = threading.Event(), threading.Condition()
        self._hasty = self._ending = self._replaced = self._gave_up = False
        self._over = threading.Event()
        self._cleared = self._suspended = False
        now = clock.monotonic()
        self._renewed_at = self._uploaded_at = self._worked_at = now
        self._waiting_since = now if self._behind() else inf
        self._pause = 0.0
        self._asked_at = self._try_at = -inf
        self._is_told = False  # that the end waits
        self._thread = threading.Thread(target=self._run, name="checkpoint-upload", daemon=True)

    def start(self) -> None:
        self._thread.start()

    # what is left to do

    def _held(self, kind: str) -> Held:
        return self._mirror.state.journals.get(kind) or Held()

    def _spans(self, kind: str) -> list[Owed]:
        return self._mirror.state.spans(kind, self._journals[kind].end)

    def _behind(self) -> int:
        """Bytes of acknowledged lines that are not in the store."""
        if self._suspended:
            return 0
        return sum(span.stop - span.start for kind in self._journals for span in self._spans(kind))

    def uploaded(self) -> Uploaded:
        behind = self._behind()
        seconds = max(0.0, clock.monotonic() - self._waiting_since) if behind and self._waiting_since < inf else 0.0
        return Uploaded(behind, seconds, self.failing)

    # the thread

    def _run(self) -> None:
        while not self._over.is_set():
            self._wake.wait(_POLL)
            self._wake.clear()
            now = clock.monotonic()
            behind = self._behind()
            if behind and self._waiting_since == inf:
                self._waiting_since = now
            if self._is_due(now, behind):
                self.attempt()

    def attempt(self) -> None:
        """Do what there is to do for the store, here and now; the thread does this from time to time."""
        try:
            with self._work:
                self._step()
        except CheckpointLocked as error:
            self._end_by(error)
        except JournalLost as error:  # the local store tells it
            self.failing, self._gave_up = str(error), True
            self._over.set()
        except (StoreError, FileNotFoundError, FileExistsError) as error:
            self._failed(error)
        else:
            self._worked()

    def _is_due(self, now: float, behind: int) -> bool:
        if now < self._try_at:
            return False
        if self._hasty or self._ending or now - self._renewed_at >= _RENEW:
            return True
        return behind > 0 and (now - self._uploaded_at >= EVERY or behind >= SIZE)

    def _step(self) -> None:
        """Upload what there is, renew, and end if that is wanted and all is up."""
        if self._over.is_set():
            return
        if self._replaced and self._ending:
            self._upload_whole()
        elif not self._suspended:
            begun = clock.monotonic()
            ends = {kind: journal.end for kind, journal in self._journals.items()}
            for kind, end in ends.items():  # what comes meanwhile waits for the next time
                while (spans := self._mirror.state.spans(kind, end)) and not self._over.is_set():
                    self._upload(kind, spans[0])
            if self._over.is_set():
                return
            self._uploaded_at = clock.monotonic()
            self._waiting_since = begun if self._behind() else inf
        if self._ending and not self._behind():
            self._put_owner(released=True)
            self._over.set()
        elif clock.monotonic() - self._renewed_at >= _RENEW:
            self._check_ours()

    def _upload(self, kind: str, span: Owed) -> None:
        """Some of the lines of a span. Where this session appended them, the part that grows is written anew."""
        data, left_out = self._lines(kind, span)
        if data:
            is_own = (span.epoch, span.token) == self._number
            at, before = self._tails.get(kind, (span.at, b"")) if is_own else (span.at, b"")
            if at + len(before) != span.at:
                at, before = span.at, b""  # something between them was left out
            whole = before + data
            by = "" if is_own else self._owner["token"]
            part = Part(span.epoch, True, True, span.token, at, by, kind, len(whole))
            self._mirror.objects.put(part.name, whole)
            self._check_ours()  # else nobody might read it before what came later
            self._count(kind, span, len(data), part)
            if is_own:
                self._tails[kind] = (span.at + len(data), b"") if len(whole) >= _SEALED else (at, whole)
        elif left_out:
            self._count(kind, span, left_out, None)
        self._note_work()

    def _count(self, kind: str, span: Owed, size: int, part: Part | None) -> None:
        """The first bytes of a span are in the store, at the end of a part; or they are left out."""
        with self._counting:
            if self._over.is_set():
                return
            held, stop = self._mirror.state.journals.setdefault(kind, Held()), span.start + size
            if held.owed:
                held.owed[:1] = (
                    [span.between(span.at + size, span.at + span.stop - span.start)] if stop < span.stop else []
                )
            else:
                held.end, held.mark = stop, mark_of(self._readers[kind], stop)
            if part is not None:
                held.have[part.name] = part.size
            self._mirror.state.sent = clock.now()
            self._mirror.save(self._mirror.state)

    def _lines(self, kind: str, span: Owed) -> tuple[bytes, int]:
        """Whole lines from the beginning of a span on, about `SIZE` bytes, as far as they are as they were written.

        Returns:
            The lines; or none, and the size of the first one, where that is damaged.
        """
        reader = self._readers.get(kind)
        if reader is None:
            reader = Reader.open(self._journals[kind].path)
            if reader is None:
                raise JournalLost(f"{self._journals[kind].path} was deleted")
            self._readers[kind] = reader
        most = span.stop - span.start
        size = min(SIZE, most)
        data = reader.pread(size, span.start)
        while not (cut := data.rfind(b"\n") + 1) and len(data) == size < most:
            size = min(2 * size, most)
            data = reader.pread(size, span.start)
        if not cut:
            raise JournalLost(f"{reader.path} was cut")
        sound, first = _sound(data[:cut])
        if not sound and not forgets_damage(first):
            log.warning("%s: a damaged line is not uploaded; its bytes stay in the file", reader.where(span.start))
        return data[:sound], 0 if sound else len(first)

    def _check_ours(self) -> None:
        """Whether no other session has begun; and from time to time say that this one goes on."""
        owners = self._mirror.objects.owners()
        if owners and owners[-1].epoch > self._number.epoch:
            raise self._superseded(owners[-1])
        if clock.monotonic() - self._renewed_at >= _RENEW:
            self._put_owner(released=False)

    def _put_owner(self, *, released: bool) -> None:
        self._mirror.objects.put(self._number.name, as_json({**self._owner, "released": released}))
        self._renewed_at = clock.monotonic()

    def _superseded(self, number: Owner) -> CheckpointLocked:
        try:
            owner = said_in(self._mirror.objects.read(number.name))
        except (FileNotFoundError, StoreError):
            owner = {}
        pid, host, since = owner.get("pid"), owner.get("host"), owner.get("since")
        return CheckpointLocked(
            f"checkpoint {self._mirror.name!r} in {self._mirror.url} was taken over by process {pid} on {host} since "
            f"{since}, since this one was not heard of for {numbers.LEASE:.0f} s; what it saved is in "
            f"{self._mirror.directory}, and is uploaded when it is opened there to write the next time",
            errno=errno.EWOULDBLOCK,
            strerror="locked",
            filename=self._mirror.objects.url,
            pid=pid,
            host=host,
            since=since,
        )

    def _replaced_elsewhere(self) -> CheckpointLocked:
        """A session that was taken for dead wrote a whole, of what there was before this one."""
        return CheckpointLocked(
            f"checkpoint {self._mirror.name!r} in {self._mirror.url} was compacted or cleared by a session that was "
            f"taken for dead; what is in {self._mirror.directory} only is uploaded when it is opened there to write "
            "the next time",
            errno=errno.EWOULDBLOCK, strerror="locked", filename=self._mirror.objects.url,
        )  # fmt: skip

    def _end_by(self, error: CheckpointLocked) -> None:
        self.ended_by, self.failing = error, str(error)
        log.error("%s", error)
        self._over.set()
        self._note_work()

    def _failed(self, error: Exception) -> None:
        behind = self.uploaded()
        if not self.failing:
            log.warning(
                "checkpoint %r: uploading fails: %s; %s wait here (for %.0f s), saving goes on, and it is tried again",
                self._mirror.name, error, plural(behind.bytes, "byte"), behind.seconds,
            )  # fmt: skip
        self.failing = str(error)
        least, most = _PAUSES
        self._pause = min(max(2 * self._pause, least), _HASTE if self._hasty or self._ending else most)
        self._try_at = clock.monotonic() + self._pause
        self._note_work(worked=False)

    def _worked(self) -> None:
        if self.failing:
            log.info("checkpoint %r: uploading works again", self._mirror.name)
        self.failing, self._pause, self._try_at = "", 0.0, -inf
        if not self._behind():
            self._hasty = False
        self._note_work()

    def _note_work(self, *, worked: bool = True) -> None:
        with self._moved:
            if worked:
                self._worked_at = clock.monotonic()
            self._moved.notify_all()

    # who waits for it

    def drain(self) -> bool:
        """Wait until everything is up."""
        self._hasty = True
        return self._wait(lambda: not self._behind())

    def has_drained(self) -> bool:
        """Whether `drain` would return at once; it is hurried on."""
        if not self._hasty:
            self._hasty, self._asked_at = True, clock.monotonic()
            self._wake.set()
        self._tell_wait(self._asked_at)
        self._gave_up = self._gave_up or self._is_idle_since(self._asked_at)
        return self._gave_up or self.ended_by is not None or not self._behind()

    def _is_idle_since(self, begun: float) -> bool:
        idle = clock.monotonic() - max(begun, self._worked_at)
        return idle > (_GIVE_UP if self.failing else _STALLED)

    def finish(self) -> bool:
        """Wait until everything is up and the session has ended."""
        self._ending = True
        return self._wait(lambda: self._over.is_set()) and self.ended_by is None

    def _wait(self, is_done: Any) -> bool:
        self._try_at = -inf
        begun = clock.monotonic()
        self._wake.set()
        with self._moved:
            while not is_done():
                if self.ended_by or self._gave_up or self._is_idle_since(begun):
                    self._gave_up = True
                    return False
                self._moved.wait(_POLL)
                self._tell_wait(begun)
        return True

    def _tell_wait(self, begun: float) -> None:
        """Say once what the end waits for, when it has waited for a while."""
        waited = clock.monotonic() - begun
        if self._is_told or waited < patience.SLOW or self._gave_up or self.ended_by is not None:
            return
        self._is_told = True
        mirror = self._mirror
        held = f"{told_waiting(mirror)} are in {mirror.directory} only" if waiting(mirror).bytes else "all is there"
        log.warning(
            "checkpoint %r: the end has waited for %s for %.0f s: %s; %s. The wait ends after %.0f s of failures, or "
            "%.0f s without an answer; Ctrl-C ends it too, and the next opening here uploads what is left",
            mirror.name, mirror.url, waited, held, self.failing or mirror.objects.waits_for or "it is being uploaded",
            _GIVE_UP, _STALLED,
        )  # fmt: skip

    def abandon(self) -> None:
        """Whatever is under way counts no more."""
        with self._counting:
            self._over.set()
        self._wake.set()

    # another journal

    def suspend(self) -> bool:
        if self._suspended:
            return True
        if not self.drain():
            return False
        with self._work:
            self._suspended = self._replaced = True
        return True

    def clear(self) -> None:
        with self._work:
            try:
                self._take_next_number()
                said = self._taking(cleared=self._number.epoch)
                assert said is not None
                self._put_marker(said)
            except CheckpointLocked as error:
                self._end_by(error)
                raise
            except (FileNotFoundError, FileExistsError) as error:
                raise StoreError(str(error), errno=errno.EIO, filename=self._mirror.objects.url) from error
            self._cleared = True

    def _take_next_number(self) -> None:
        """What a session writes as a whole, it writes under a number of its own: nothing else is in it."""
        self._check_ours()
        old, number = self._number, self._number._replace(epoch=self._number.epoch + 1)
        if take(self._mirror, number, self._owner) is not None:
            raise self._superseded(number)
        self._number, self._tails = number, {}
        self._mirror.objects.delete([old.name])

    def _taking(self, *, cleared: int = 0) -> Marker | None:
        """What a whole says that is made of the journals as they are; None where they do not know the last one."""
        listing, state = self._mirror.objects.look(), self._mirror.state
        if listing.whole != state.whole and not cleared:
            return None
        said = msgspec.convert(msgspec.to_builtins(listing.marker), Marker)
        said.cleared, said.since = cleared or said.cleared, Stamper()().decode()
        for part in listing.parts:
            have = state.journals.get(part.kind, Held()).have.get(part.name, 0)
            if part.is_placed and have:
                said.taking(part.kind, part.stream, (part.number, part.number + have))
        return said

    def _put_marker(self, said: Marker) -> None:
        """From here on readers see the new whole, and until here the old one."""
        self._check_ours()
        number = self._number
        name = f"whole-{number.epoch:08}{f'-{number.token}' if number.token else ''}.json"
        self._mirror.objects.put(name, msgspec.json.encode(said) + b"\n")
        self._check_ours()  # what a session cannot say to be so, it does not acknowledge

    def _upload_whole(self) -> None:
        journals: dict[str, Held] = {}
        if not self._cleared:
            said = self._taking()
            if said is None:
                self._check_ours()
                raise self._replaced_elsewhere()
            self._take_next_number()
            for kind, journal in self._journals.items():
                journals[kind] = self._put_whole(kind, Reader.open(journal.path))
            self._put_marker(said)
        with self._counting:
            if not self._over.is_set():
                (epoch, token), tokens = self._number, self._mirror.state.tokens
                self._mirror.save(State(epoch, epoch, token, tokens, sent=clock.now(), journals=journals))
        self._replaced = False
        self._mirror.objects.delete(self._mirror.objects.look().stale)

    def _put_whole(self, kind: str, reader: Reader | None) -> Held:
        held = Held()
        for number, data in enumerate(_runs(reader)):
            epoch, token = self._number
            part = Part(epoch, False, False, token, number, "", kind, len(data))
            self._mirror.objects.put(part.name, data)
            self._check_ours()
            held.have[part.name] = len(data)
            self._note_work()
        held.end = held.since = 0 if reader is None else reader.size()
        held.mark = mark_of(reader, held.end)
        return held


def _sound(lines: bytes) -> tuple[int, bytes]:
    """How many bytes of the first lines may go up, and the line that may not."""
    size = 0
    for line in _split(lines):
        if not may_go_up(line):
            return size, line
        size += len(line)
    return size, b""


def _split(lines: bytes) -> Iterator[bytes]:
    """The lines, with their newlines; nothing else splits them."""
    at = 0
    while (stop := lines.find(b"\n", at) + 1) > 0:
        yield lines[at:stop]
        at = stop


def _runs(reader: Reader | None) -> Iterator[bytes]:
    """Runs of whole lines of about `SIZE` bytes, less those that this disk has damaged."""
    lines: list[bytes] = []
    for _, block in reader.blocks(0) if reader is not None else ():
        lines += [line for line in _split(block) if may_go_up(line)]
        if sum(map(len, lines)) >= SIZE:
            yield b"".join(lines)
            lines = []
    if lines:
        yield b"".join(lines)
