"""What is saved is brought to a store, beside the work: sessions, and the thread of each.

The promise: saving never waits for the store; what was uploaded and seen to be in order counts, and nothing else does;
a session that sees a newer one stops uploading, and its local files stay. The thread reads whole, acknowledged
lines of the local journals, and writes objects of its own session only, so that a writer that was thought dead and
comes back overwrites nothing. What an earlier session owed goes up under that session's number. A line that this disk
has damaged never goes up.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

import msgspec

from checkpoint import clock, locks
from checkpoint.clock import Stamper
from checkpoint.errors import CheckpointLocked, JournalLost, NotUploaded, StoreError, plural
from checkpoint.outcomes import Uploaded
from checkpoint.remote import patience
from checkpoint.remote.local_copy import LocalCopy, may_go_up
from checkpoint.remote.objects import Marker, Owner, Part
from checkpoint.remote.patience import telling
from checkpoint.remote.state import Held, Owed, State, mark_of
from checkpoint.remote.urls import remember
from checkpoint.storage.journal import Journal
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import forgets_damage

__all__ = ["Uploaded", "Uploader", "writer_there"]

log = logging.getLogger("checkpoint")

EVERY = 5.0
"""Seconds between two uploads."""

SIZE = 8 << 20
"""Bytes that are uploaded at once, and sooner than that."""

_SEALED = 1 << 20  # a part of so many bytes is not written again: a slow job would upload each byte many times
_LEASE = 60.0  # seconds after which a session that was not renewed may be taken for dead
_RENEW = 15.0
_POLL = 0.25
_PAUSES = (1.0, 60.0)  # seconds after a first failure, and at most
_HASTE = 5.0  # at most, while somebody waits
_GIVE_UP = 60.0  # seconds of failures that are waited for at the end
_STALLED = 180.0  # the same without a failure being told: a large part over a slow line
_CANDIDATES = 5


class Uploader:
    """The store's side of one checkpoint that is mirrored here: the `Replica` of its journals.

    Args:
        mirror: the local side.
        journals: by kind, as the local store has them open.
    """

    def __init__(self, mirror: LocalCopy, journals: Mapping[str, Journal]) -> None:
        self.mirror = mirror
        self._journals = journals
        self._session: _Session | None = None
        self._number = Owner(0)
        self._owner: dict[str, Any] = {}

    is_remote = True

    # whoever reads

    def look(self) -> None:
        """As `LocalCopy.look`."""
        self.mirror.look()

    # taking it

    def take_turn(self) -> None:
        """As `LocalCopy.take_turn`."""
        self.mirror.take_turn()

    def end_turn(self) -> None:
        """As `LocalCopy.end_turn`."""
        self.mirror.end_turn()

    def begin(self) -> None:
        """Begin a session, and bring what others uploaded before; call it in turn and under the local lock.

        Raises:
            CheckpointLocked: another machine, or mirror, writes.
            StoreError: the store cannot be reached.
        """
        with telling(self.mirror.objects):
            self._begin()

    def _begin(self) -> None:
        mirror, token = self.mirror, os.urandom(8).hex()
        self._owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": Stamper()().decode(),
            "token": token,
            "released": False,
        }
        own = "" if mirror.objects.heeds_conditions(f"owners/asked-{token}.json") else token
        for _ in range(_CANDIDATES):
            listing, owners = mirror.objects.look(), mirror.objects.owners()
            for each in owners:
                if each.epoch == owners[-1].epoch:
                    self._refuse_if_owned(each)
            number = Owner(max([listing.greatest, mirror.greatest(), *[each.epoch for each in owners]]) + 1, own)
            remember(mirror.directory, mirror.url)
            mirror.note_token(token)
            if _take(mirror, number, self._owner) is None:
                self._number = number
                break
        else:
            raise StoreError(f"{mirror.objects.url} gets new sessions all the time", filename=mirror.objects.url)
        try:
            mirror.pull()
            self._refuse_if_overtaken(number)
            mirror.begin_stream(number.epoch, number.token)
            mirror.objects.delete([old.name for old in owners])
        except BaseException:
            self.let_go()
            raise

    def _release(self) -> None:
        try:
            self.mirror.objects.put(self._number.name, _json({**self._owner, "released": True}))
        except StoreError as error:
            log.debug("%s", error)

    def _refuse_if_owned(self, number: Owner) -> None:
        objects, name = self.mirror.objects, number.name
        try:
            owner = _said(objects.read(name))
            if owner.get("released") or (owner.get("token") and owner["token"] in self.mirror.tokens()):
                return  # the second is one of this directory, which died, since the local lock is ours
            age = self._age(name)
        except FileNotFoundError:
            return
        who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
        if age < _LEASE:
            raise self._locked(owner, who, f"it was heard of {age:.0f} s ago, and is taken for dead at {_LEASE:.0f} s "
                               f"without a word (in {_LEASE - age:.0f} s)")  # fmt: skip
        log.warning(
            "checkpoint %r in %s was being written by %s, which was last heard of %s ago: this process takes over",
            self.mirror.name, self.mirror.url, who, "long" if age == inf else f"{age:.0f} s",
        )  # fmt: skip

    def _refuse_if_overtaken(self, number: Owner) -> None:
        """What a later session saved was just brought here: what this one saves stands below it everywhere else."""
        last = max(self.mirror.objects.owners(), default=number)
        if last.epoch > number.epoch:
            try:
                owner = _said(self.mirror.objects.read(last.name))
            except FileNotFoundError:
                owner = {}
            who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
            raise self._locked(owner, who, "it began while this one did")

    def _age(self, name: str) -> float:
        """Seconds since an object was written, by the store's clock and not by ours."""
        objects, probe = self.mirror.objects, f"owners/clock-{os.urandom(4).hex()}.json"
        objects.put(probe, b"{}\n")
        try:
            now, then = objects.modified(probe), objects.modified(name)
        finally:
            objects.delete([probe])
        return inf if now is None or then is None else max(0.0, (now - then).total_seconds())

    def _locked(self, owner: Mapping[str, Any], who: str, how: str) -> CheckpointLocked:
        return CheckpointLocked(
            f"checkpoint {self.mirror.name!r} in {self.mirror.url} is being written by {who}; {how}. Wait for it or "
            "stop it, or use another name or checkpoint_dir. Reading needs no lock",
            errno=errno.EWOULDBLOCK,
            strerror="locked",
            filename=self.mirror.objects.url,
            pid=owner.get("pid"),
            host=owner.get("host"),
            since=owner.get("since"),
        )

    def start(self) -> None:
        """Upload from here on, in a thread of its own."""
        self._session = _Session(self.mirror, self._journals, self._number, self._owner)
        self._session.start()

    # while it is written

    def check(self) -> None:
        """Raise what has ended the session, if anything has.

        Raises:
            CheckpointLocked: another session has begun.
        """
        if self._session is not None and self._session.ended_by is not None:
            raise self._session.ended_by

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to upload."""
        return self._session is None or self._session.uploaded().bytes == 0

    def uploaded(self) -> Uploaded:
        """How far the store is behind."""
        if self._session is not None:
            return self._session.uploaded()
        return waiting(self.mirror)

    def writer_there(self) -> dict[str, Any] | None:
        """As the function `writer_there`."""
        return writer_there(self.mirror)

    def beside(self) -> str:
        """What stands beside a bar: nothing while uploads keep up."""
        told = self.uploaded()
        return f"uploads {told.seconds:,.0f} s behind" if told.seconds > 6 * EVERY else ""

    # ending

    def drain(self) -> bool:
        """Wait until everything is up; False where uploads have failed for a minute."""
        return self._session is None or self._session.drain()

    def has_drained(self) -> bool:
        """`drain` for who asks again and again, and waits himself."""
        return self._session is None or self._session.has_drained()

    def finish(self) -> None:
        """Wait as `drain` does, and end the session.

        Raises:
            NotUploaded: the wait was given up; where Ctrl-C ended it, that is told at ERROR.
        """
        session = self._session
        if session is None:
            return
        try:
            lacking = None if session.finish() else self._lacking(session)
        except BaseException:
            if (lacking := self._lacking(session)) is not None:
                log.error("%s", lacking)
            raise
        finally:
            self.let_go()
        if lacking is not None:
            raise lacking

    def _lacking(self, session: _Session) -> NotUploaded | None:
        """What is here only, if anything is; a session that was taken over tells that itself."""
        mirror = self.mirror
        if session.ended_by is not None or not waiting(mirror).bytes:
            return None
        return NotUploaded(
            f"checkpoint {mirror.name!r}: {_told_waiting(mirror)} are in {mirror.directory} only, and not in "
            f"{mirror.url}: {session.failing or 'it takes too long'}; the next opening here uploads them",
            errno=errno.EIO,
            strerror=session.failing,
            filename=mirror.url,
            directory=str(mirror.directory),
        )

    def let_go(self) -> None:
        """End the session as it is. Whoever takes over need not wait where its end can be told."""
        session, self._session = self._session, None
        if session is not None:
            session.abandon()
        elif self._number.epoch:
            self._release()  # it was never started
        self._number = Owner(0)

    # another journal

    def suspend(self) -> None:
        """A journal is about to be replaced: everything is up, and nothing is uploaded until the end.

        Raises:
            StoreError: the store has not everything.
        """
        session = self._session
        if session is not None and not session.suspend():
            raise StoreError(
                f"checkpoint {self.mirror.name!r} is left as it is, since {self.mirror.url} lacks what is here: "
                f"{session.failing or 'uploading takes too long'}",
                errno=errno.EIO,
                strerror=session.failing,
                filename=self.mirror.url,
            )

    def lines_of(self, kind: str) -> Iterator[bytes]:
        """The journal as the store has it; call it when `suspend` has returned."""
        return self.mirror.lines_there(kind)

    def clear(self) -> None:
        """The store holds nothing of the checkpoint when this returns.

        Raises:
            StoreError: it holds what it held.
        """
        assert self._session is not None
        self._session.clear()

    def after_fork(self) -> None:
        """In a forked child: the parent's session is none of its own."""
        self._session, self._number = None, Owner(0)
        self.mirror.after_fork()


class _Session:
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
        self._mirror.objects.put(self._number.name, _json({**self._owner, "released": released}))
        self._renewed_at = clock.monotonic()

    def _superseded(self, number: Owner) -> CheckpointLocked:
        try:
            owner = _said(self._mirror.objects.read(number.name))
        except (FileNotFoundError, StoreError):
            owner = {}
        pid, host, since = owner.get("pid"), owner.get("host"), owner.get("since")
        return CheckpointLocked(
            f"checkpoint {self._mirror.name!r} in {self._mirror.url} was taken over by process {pid} on {host} since "
            f"{since}, since this one was not heard of for {_LEASE:.0f} s; what it saved is in "
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
        held = f"{_told_waiting(mirror)} are in {mirror.directory} only" if waiting(mirror).bytes else "all is there"
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
        if _take(self._mirror, number, self._owner) is not None:
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


def waiting(mirror: LocalCopy) -> Uploaded:
    """What is in the journals here, and not in the store, as the files tell."""
    state = mirror.load() or State()
    behind = sum(span.stop - span.start for kind in mirror.paths for span in _spans_of(mirror, state, kind))
    seconds = max(0.0, clock.now() - state.sent) if behind and state.sent else 0.0
    return Uploaded(behind, seconds, "")


def _spans_of(mirror: LocalCopy, state: State, kind: str) -> list[Owed]:
    reader = Reader.open(mirror.paths[kind])
    return [] if reader is None else state.spans(kind, reader.size())


def writer_there(mirror: LocalCopy) -> dict[str, Any] | None:
    """Who writes from another machine (pid, host, since), as far as can be told by our clock: only to be shown."""
    try:
        owners = mirror.objects.owners()
        owner = _said(mirror.objects.read(owners[-1].name)) if owners else {"released": True}
        moment = None if owner.get("released") else mirror.objects.modified(owners[-1].name)
    except (FileNotFoundError, StoreError):
        return None
    if moment is None or clock.now() - moment.timestamp() > _LEASE:
        return None
    return {part: owner.get(part) for part in ("pid", "host", "since")}


def _told_waiting(mirror: LocalCopy) -> str:
    """How much is not in the store, in words."""
    return f"{plural(_results_waiting(mirror), 'result')} ({plural(waiting(mirror).bytes, 'byte')})"


def _results_waiting(mirror: LocalCopy) -> int:
    reader, state = Reader.open(mirror.paths["results"]), mirror.load() or State()
    if reader is None:
        return 0
    spans = _spans_of(mirror, state, "results")
    return sum(
        reader.pread(min(SIZE, span.stop - at), at).count(b"\n")
        for span in spans
        for at in range(span.start, span.stop, SIZE)
    )


def _json(said: Mapping[str, Any]) -> bytes:
    return json.dumps(said).encode() + b"\n"


def _said(data: bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _take(mirror: LocalCopy, number: Owner, owner: dict[str, Any]) -> dict[str, Any] | None:
    """Take the number; returns who was quicker, or None. An answer that was lost on the way may have been ours."""
    objects = mirror.objects
    if number.token:
        return _take_and_look(mirror, number, owner)
    try:
        objects.create(number.name, _json(owner))
    except FileExistsError:
        try:
            there = _said(objects.read(number.name))
        except FileNotFoundError:
            return {}
        return None if there.get("token") == owner["token"] else there
    return None


def _take_and_look(mirror: LocalCopy, number: Owner, owner: dict[str, Any]) -> dict[str, Any] | None:
    """The same where no object can be created exclusively: each writes its own first, and withdraws if there are two.

    Of two that do so at one moment, the second one to write sees the first.
    """
    objects = mirror.objects
    objects.put(number.name, _json(owner))
    others = [each for each in objects.owners() if each.epoch >= number.epoch and each != number]
    if not others:
        return None
    objects.delete([number.name])
    clock.sleep(_POLL * int.from_bytes(os.urandom(1)) / 256)  # both may have withdrawn
    try:
        return _said(objects.read(others[-1].name))
    except FileNotFoundError:
        return {}
