"""The right to write one store's journals: taken, kept, and given back.

The promise: whoever writes holds the lock, is up to date, and notices within a second that a journal or the lock is not
theirs any more; after a failure nothing is written until the journals are opened anew. Several passes share the lock.

To take it: replica's turn, lock, `replica.begin`, journals up to date and sound, torn ends repaired, `replica.start`,
`host.begun`. To give it back: places checked, journals synced, indexes and meta written, `replica.finish`, lock.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from math import inf
from pathlib import Path
from typing import Any, TypeVar

from checkpoint import clock
from checkpoint.errors import CheckpointLocked, JournalLost, NotUploaded, StoreError, StoreForked
from checkpoint.storage.files import store_error
from checkpoint.storage.host import Host
from checkpoint.storage.journal import Journal
from checkpoint.storage.journals import Journals
from checkpoint.storage.lock import INSTEAD, Lock
from checkpoint.storage.meta import Meta
from checkpoint.storage.names import Names

__all__ = ["LOCK_LOOK", "Writer", "in_time"]


log = logging.getLogger("checkpoint")
_SECOND = 1.0
_IDLE = 30.0  # seconds after which who writes to a store lets go: taking hold of it again costs some requests
_META_EVERY = 30.0
LOCK_LOOK = 0.02
"""Seconds from one look at a lock that another process holds to the next."""
_LOOK_AFAR = 1.0  # the same where to look takes requests
T = TypeVar("T")


class _Running:
    """A pass, for as long as its frame holds this."""

    __slots__ = ("__weakref__",)


class Writer:
    """Who writes the journals of one store in this process.

    Args:
        name: what the files begin with.
        directory: absolute.
        lock: the store's, in this process.
        journals: with the replica that they have.
        meta: what is written as writing ends, and from time to time.
        host: what the store is part of.
        experiment: what meta calls it.
        instead: what else whoever finds it locked can do.
        share: how many such stores are opened together: they leave as much to be read anew as one.

    Attributes:
        writing: whether this process holds the lock.
        wrote_at: when something was written last; monotonic.
        check_at: until then `begin` need not look whether the files are still there; monotonic.
        steps: calls for single items that run, whose results will be written: meanwhile the lock is kept.
        names: those of the directory and the journals, and whether they are on the medium.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        lock: threading.RLock,
        journals: Journals,
        meta: Meta,
        host: Host,
        *,
        experiment: str,
        instead: str = INSTEAD,
        share: int = 1,
    ) -> None:
        self.name = name
        self.directory = directory
        self.lock = lock
        self.own = journals
        self.replica = journals.replica
        self.meta = meta
        self.writing = False
        self.wrote_at = 0.0
        self.check_at = 0.0
        self.steps: weakref.WeakSet[Any] = weakref.WeakSet()
        self.names = Names(directory)
        self._host = host
        self._experiment = experiment
        self._share = share
        self._owner = Lock(directory / f".{name}.lock", name, instead)
        self._running: list[weakref.ref[_Running]] = []
        self._forked = False
        self._failure: StoreError | None = None
        self._is_durable = False  # whether records were to be on the medium when they counted, since the lock was taken
        self._goes_on = False  # whether it is cleared or repaired whatever is in the journals' places

    @property
    def looks_every(self) -> float:
        """Seconds from one look at a lock that another process holds to the next."""
        return _LOOK_AFAR if self.replica.is_remote else LOCK_LOOK

    def begin(self) -> None:
        """Hold the lock, be up to date, and be able to append: at once where that is so already.

        Raises:
            CheckpointLocked: another process writes.
            StoreError: naming what is not writable, or why this store refuses.
        """
        if self.writing and clock.monotonic() < self.check_at:
            return
        with self.lock:
            self._refuse_if_unfit()
            if not self.writing:
                self._take_lock()
            self._check_places()

    def tell_paused(self, *, is_paused: bool) -> None:
        """Have the lock file say whether calls are held, for who looks on from outside."""
        with self.lock:
            if self.writing:
                self._owner.sign(is_paused=is_paused)

    def _refuse_if_unfit(self) -> None:
        if self._forked:
            raise StoreForked(
                f"checkpoint {self.name!r} was opened by the parent of this forked process and cannot be written here; "
                "make a new runner in the child, under another name, or send the results to the parent"
            )
        if self._failure is not None:
            failure = copy(self._failure)
            failure.unsaved = {}  # each carries its own
            raise failure

    def _take_lock(self) -> None:
        self._host.make_room()
        try:
            self.names.make_directory(is_new=self.own.results.is_empty and self.own.errors.is_empty)
        except OSError as error:
            raise store_error(error, "cannot make the directory", self.directory) from error
        self.replica.take_turn()
        try:
            self._open_to_write()
        finally:
            self.replica.end_turn()
        try:
            self._host.begun()
        except BaseException:
            self.let_go()
            raise
        if not self.in_pass:
            self.meta.reread()
        self.writing, self._is_durable = True, False
        self.check_at = clock.monotonic() + _SECOND
        self.wrote_at = self.meta.written_at = clock.monotonic()
        self._host.maintain()
        if self.meta.read().get("total_items", -1) != self.meta.total:  # who looks on sees how much this pass has to do
            self.write_meta()

    def _open_to_write(self) -> None:
        self._owner.acquire()
        try:
            self.replica.begin()
            self.own.refresh()
            self.own.examine()
            self.refuse()  # before the end of one is repaired
            for each in (self.own.results, self.own.errors) if self.own.fault is None else ():
                each.open_to_write(is_fresh=True)
                each.forget_unsound()
            self.names.settle([each.journal.reader for each in self.own])
            self.own.unsaved.refresh()
            self.replica.start()
        except BaseException:
            self.let_go()
            raise

    def _check_places(self, *, at_once: bool = False) -> None:
        """Notice a journal that was cut, deleted or replaced, and a lock: once a second, and before writing ends."""
        if clock.monotonic() < self.check_at and not at_once:
            return
        try:
            self.replica.check()
            self.own.check_places()
        except (CheckpointLocked, JournalLost) as error:
            raise self.fail(error) from None
        try:
            self._owner.check()
        except StoreError as error:
            raise self.fail(error) from error.__cause__
        self.check_at = clock.monotonic() + _SECOND

    def fail(self, error: StoreError) -> StoreError:
        """Refuse every later write: what is known of the files no longer holds. The next pass opens them anew."""
        self._failure = error
        self.check_at = -inf  # the next write looks, and finds it
        return error

    def sync(self, journal: Journal) -> None:
        """What was appended is on the medium when this returns.

        Raises:
            StoreError: nobody knows what is on the medium; nothing more is written.
        """
        self._is_durable = True
        try:
            journal.sync()
        except StoreError as error:
            raise self.fail(error) from error.__cause__

    @property
    def owes(self) -> bool:
        """Whether a sync was left to `pay`."""
        return any(each.journal.is_owed for each in self.own)

    def pay(self) -> None:
        """What passes that have ended left to be synced is on the medium when this returns.

        Raises:
            StoreError: nobody knows; nothing more is written by this opening.
        """
        try:
            has_paid = self.own.pay(self.lock)
        except StoreError as error:
            with self.lock:
                raise self.fail(error) from error.__cause__
        if has_paid:
            self._tell_paid()

    def _tell_paid(self) -> None:
        """Meta says what is on the medium; where others have written since, or are at it, that is theirs to say."""
        with self.lock:
            if self.writing or self._failure is not None or not self.meta.is_as_written():
                return
            try:
                self._owner.acquire()
            except StoreError:
                return
            try:
                if all(each.is_as_known() for each in self.own) and self.meta.is_as_written():
                    self.replace_meta()
            except (StoreError, OSError) as error:
                log.debug("%s was not written: %s", self.meta.path, error)
            finally:
                self._owner.release()

    def _owe(self, journal: Journal) -> bool:
        try:
            return journal.owe()
        except StoreError as error:
            raise self.fail(error) from error.__cause__

    # whether the journals are what they should be

    def refuse(self) -> None:
        """Raise where a journal is none, or has lost something; unless it is cleared or repaired.

        Raises:
            JournalLost: with what to do.
        """
        if not self._goes_on:
            self._host.refuse()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Clear or repair what else would be refused."""
        before, self._goes_on = self._goes_on, True
        try:
            yield
        finally:
            self._goes_on = before

    def begin_anew(self) -> None:
        """Begin whatever is in the journals' places, and whatever failed before: they are about to be cleared."""
        with self.lock:
            if self._failure is not None:
                self._start_anew()
            with self.going_on():
                self.begin()
            self.replica.suspend()

    # passes

    @contextmanager
    def a_pass(self) -> Iterator[None]:
        """A pass runs, beside others of this process; the lock is let go when the last one ends."""
        with self.lock:
            if not self.in_pass:
                self._running.clear()
                if self._failure is not None:
                    self._start_anew()
                self.meta.pass_since = clock.Stamper()().decode()
            running = _Running()
            mine = weakref.ref(running)
            self._running.append(mine)
        raised: BaseException | None = None
        try:
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            try:
                self.replica.drain()  # here, and not under the lock that others wait for to save
            finally:
                self._end_pass(mine, raised)

    def _end_pass(self, running: weakref.ref[_Running], raised: BaseException | None) -> None:
        with self.lock:
            with suppress(ValueError):  # of the parent of this forked process
                self._running.remove(running)
            if self.in_pass:
                return
            try:
                if self.writing and self.steps and self._failure is None:
                    self._bring_up_to_date()
                else:
                    self.stop(may_owe=raised is None)
            except StoreError as error:
                # A StoreError that is raised holds values that are nowhere else; what is not uploaded is here.
                if raised is None or not (isinstance(raised, StoreError) or isinstance(error, NotUploaded)):
                    raise
                log.error("%s", error)

    @property
    def in_pass(self) -> bool:
        """Whether a pass runs, which is over when its frame is: Ctrl-C between any two lines leaves none behind."""
        return any(running() is not None for running in self._running)

    def _start_anew(self) -> None:
        self._failure = None
        self.let_go()
        self.own.reopen()
        self._host.start_anew()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock while no pass runs and no thread of this process writes; it is let go at the end.

        Raises:
            CheckpointLocked: a pass of this process is running, or another process writes.
            StoreError: as `begin`.
        """
        with self.lock:
            if self.in_pass:
                raise _pass_running(self.own, self.meta.pass_since)
            if self._failure is not None:
                self._start_anew()
            self.begin()
            try:
                self._check_places(at_once=True)
                yield
            finally:
                self.stop()

    # letting go

    def stop(self, *, may_owe: bool = False) -> None:
        """Everything on the medium, meta and index up to date, the lock let go.

        Args:
            may_owe: whether the sync may be left to `tend`, or `pay`.

        Raises:
            NotUploaded: all of it is here, and the replica has not all of it.
        """
        if not self.writing:
            return
        try:
            self._bring_up_to_date(may_owe=may_owe and not self.replica.is_remote)
        finally:
            try:
                self.replica.finish()
            finally:
                self.let_go()

    def _bring_up_to_date(self, *, may_owe: bool = False) -> None:
        """All on the medium, index and meta written; where it `may_owe` that, the tending thread syncs in a moment."""
        if self._failure is None:
            self._check_places(at_once=True)
            for each in self.own:
                if not (may_owe and not self._is_durable and self._owe(each.journal)):
                    self.sync(each.journal)
                each.write_index_if_worth(growth=0.5, rows=100_000 // self._share, size=(32 << 20) // self._share)
            if self.meta.owed:
                self.write_meta()

    def let_go(self) -> None:
        """Give the lock back as things are."""
        self.writing = False
        self.replica.let_go()
        for shelf in self.own:
            shelf.journal.stop_writing()
        self._owner.release()

    def give_up(self) -> None:
        """Let go of the lock, where no pass runs: it was taken for something that is not done."""
        with self.lock, suppress(StoreError):
            if not self.in_pass and not self.steps:
                try:
                    self.stop()
                except NotUploaded as error:
                    log.error("%s", error)

    # housekeeping, by a thread that lives while something is owed

    def tend(self) -> bool:
        """Sync what was written, keep meta and index from falling far behind; False once nothing is owed."""
        try:
            self._sync_aside()
            self.pay()
            with self.lock:
                if self.writing and self._failure is None:
                    self._check_places()
        except StoreError as error:
            log.error("%s", error)
        with self.lock:
            if not self.writing:
                return self.owes
            if not self.in_pass and not self.steps and self._is_idle():
                try:
                    self.stop()
                except StoreError as error:
                    log.error("%s", error)
                return False
            owed = self.meta.owed and clock.monotonic() - self.meta.written_at >= _META_EVERY
        if owed:
            self.write_meta()
        for shelf in self.own:
            # It is for whoever opens what a kill leaves behind: so much is read in the time that writing it would take.
            shelf.write_index_if_worth(growth=0.5, rows=500_000, size=256 << 20)
        return True

    def _is_idle(self) -> bool:
        """Whether nothing was written for a while; where a replica lags behind, letting go would wait for it."""
        idle = clock.monotonic() - self.wrote_at
        return idle >= (_IDLE if self.replica.is_remote else _SECOND) and self.replica.is_settled

    def stop_if_idle(self) -> None:
        """Stop writing at once, and owe nothing, where no pass runs and no thread is at it."""
        if not self.lock.acquire(blocking=False):
            return
        try:
            if not self.in_pass and not self.steps and not self.replica.is_remote:
                self.stop()
                self.pay()
        except StoreError as error:
            log.error("%s", error)
        finally:
            self.lock.release()

    def _sync_aside(self) -> None:
        for shelf in self.own:
            try:
                with self.lock:
                    sync = shelf.journal.lend() if self.writing else None
                if sync is not None:
                    sync()
            except StoreError as error:
                with self.lock:
                    raise self.fail(error) from error.__cause__

    # meta

    def write_meta(self) -> None:
        """Replace the file atomically. It tells people and is rebuildable: failing to write it is not an error."""
        with self.lock:
            self.meta.owed = False
            self.meta.written_at = clock.monotonic()
            try:
                self.replace_meta()
            except OSError as error:
                log.debug("%s was not written: %s", self.meta.path, error)

    def replace_meta(self, *, durable: bool = False) -> None:
        cost = self.own.spending.to_meta()
        text = self.meta.compose(self._experiment, self._host.summary(), self.own.note_synced(), cost)
        self.meta.replace(text, f"{self.name}_meta", durable=durable)
        self.own.spending.note_meta(cost)

    def after_fork(self, lock: threading.RLock) -> None:
        """In a forked child: drop the parent's lock, never write."""
        self.lock = lock
        self._forked = True
        self.writing = False
        self.steps = weakref.WeakSet()
        self._running = []
        for each in self.own:
            each.journal.stop_writing()
            each.journal.forget_owed()
        self._owner.drop()


def in_time(act: Callable[[], T], timeout: float, *, every: float = LOCK_LOOK) -> T:
    """What an act returns that writes; it is tried until no other process writes, or so many seconds are over.

    Raises:
        CheckpointLocked: another process writes still.
    """
    end, is_told = clock.monotonic() + timeout, False
    while True:
        try:
            return act()
        except CheckpointLocked as error:
            left = end - clock.monotonic()
            if left <= 0:
                raise
            if not is_told:
                log.info("%s; waiting at most %.3g s (lock_timeout)", error, left)
                is_told = True
        clock.sleep(min(every, left))


def _pass_running(journals: Journals, since: str) -> CheckpointLocked:
    path = journals.results.journal.path
    return CheckpointLocked(
        f"a pass over checkpoint {journals.name!r} in {path.parent} is running in this process (since {since}); "
        "finish or close it first, or use another name",
        errno=errno.EWOULDBLOCK, strerror="locked", filename=str(path), pid=os.getpid(), since=since,
    )  # fmt: skip
