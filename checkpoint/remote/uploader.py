"""The replica of journals that are kept in a store: sessions are begun, asked how far they are, and ended.

The promise: saving never waits for the store. A session begins only where no other one is heard of, and with all that
the store has; it ends when everything is up, or says what is not.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from checkpoint.clock import Stamper
from checkpoint.errors import CheckpointLocked, NotUploaded, StoreError
from checkpoint.outcomes import Uploaded
from checkpoint.remote import numbers
from checkpoint.remote.behind import told_waiting, waiting
from checkpoint.remote.local_copy import LocalCopy
from checkpoint.remote.numbers import as_json, said_in, take, writer_there
from checkpoint.remote.objects import Owner
from checkpoint.remote.patience import telling
from checkpoint.remote.session import EVERY, Session
from checkpoint.remote.urls import remember
from checkpoint.storage.journal import Journal

__all__ = ["Uploader"]

log = logging.getLogger("checkpoint")

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
        self._session: Session | None = None
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
            if take(mirror, number, self._owner) is None:
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
            self.mirror.objects.put(self._number.name, as_json({**self._owner, "released": True}))
        except StoreError as error:
            log.debug("%s", error)

    def _refuse_if_owned(self, number: Owner) -> None:
        objects, name = self.mirror.objects, number.name
        try:
            owner = said_in(objects.read(name))
            if owner.get("released") or (owner.get("token") and owner["token"] in self.mirror.tokens()):
                return  # the second is one of this directory, which died, since the local lock is ours
            age = self._age(name)
        except FileNotFoundError:
            return
        who = f"process {owner.get('pid')} on {owner.get('host')} since {owner.get('since')}"
        if age < numbers.LEASE:
            left = numbers.LEASE - age
            raise self._locked(owner, who, f"it was heard of {age:.0f} s ago, and is taken for dead at "
                               f"{numbers.LEASE:.0f} s without a word (in {left:.0f} s)")  # fmt: skip
        log.warning(
            "checkpoint %r in %s was being written by %s, which was last heard of %s ago: this process takes over",
            self.mirror.name, self.mirror.url, who, "long" if age == inf else f"{age:.0f} s",
        )  # fmt: skip

    def _refuse_if_overtaken(self, number: Owner) -> None:
        """What a later session saved was just brought here: what this one saves stands below it everywhere else."""
        last = max(self.mirror.objects.owners(), default=number)
        if last.epoch > number.epoch:
            try:
                owner = said_in(self.mirror.objects.read(last.name))
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
        self._session = Session(self.mirror, self._journals, self._number, self._owner)
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

    def _lacking(self, session: Session) -> NotUploaded | None:
        """What is here only, if anything is; a session that was taken over tells that itself."""
        mirror = self.mirror
        if session.ended_by is not None or not waiting(mirror).bytes:
            return None
        return NotUploaded(
            f"checkpoint {mirror.name!r}: {told_waiting(mirror)} are in {mirror.directory} only, and not in "
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
