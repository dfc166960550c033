"""What is done, and with what: three journals under one lock, shared by everyone in the process who names them.

The promise: what `append` has returned for is there at the next opening, and is found by its key; who only reads never
waits; whoever writes holds the lock. Opening reads the index files and the journals' tails.

    NAME_results.jsonl   what succeeded          .NAME_*.index    rebuildable
    NAME_errors.jsonl    what failed             .NAME.lock       who writes
    NAME_meta.json       counts, for people      .NAME_unsaved.jsonl, .NAME_*.aside   kept: values, bytes

Where the directory mirrors a URL, `mirror` and `uploads` bring the journals from there and back.
"""

from __future__ import annotations

import atexit
import errno
import json
import logging
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from math import inf
from pathlib import Path
from typing import Any

import msgspec

from checkpoint import clock
from checkpoint.errors import (
    CheckpointLocked,
    InvalidName,
    InvalidOption,
    JournalLost,
    StoreClosed,
    StoreError,
    StoreForked,
    quote,
)
from checkpoint.index import Index
from checkpoint.journal import Journal, Record, fsync_directory, open_file, open_safely, seal, store_error
from checkpoint.keys import Key, key_json
from checkpoint.lock import Lock
from checkpoint.mirror import Mirror
from checkpoint.remote import KINDS, note_url, place_of, url_at
from checkpoint.shelf import Shelf
from checkpoint.uploads import Uploads

__all__ = ["SCHEMA_VERSION", "Entry", "Store", "check_name", "forgetting", "open_store", "resolve_directory"]

SCHEMA_VERSION = "2.0.0"
log = logging.getLogger("checkpoint")

_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9 ._\-]*")
_NAMED: dict[str, Key] = {"True": True, "False": False, "None": None}
_SECOND = 1.0
_IDLE = 30.0  # seconds after which who writes to a store lets go: taking hold of it again costs some requests
_META_EVERY = 30.0
_MOST_CODES = 100  # that meta explains


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A record to append: what the index needs, and its line."""

    version: str
    key: Key
    digest: int
    line: bytes


class Forgetting(Entry, frozen=True, gc=False):
    """A record that the key has none any more."""


def check_name(name: Any) -> str:
    """The name, if it is one safe file-name component.

    Raises:
        InvalidName: before any file is made.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > 200:
        raise InvalidName(
            f"a checkpoint's name is {quote(name)}; it must be 1 to 200 letters (a-z, A-Z), digits, space, '.', '_' "
            "and '-', not starting with a dot or a space, since it names files",
            name=name,
        )
    return name


def resolve_directory(checkpoint_dir: str | os.PathLike[str] | None) -> Path:
    """The directory: the argument, else $CHECKPOINT_DIR, else ./checkpoints; absolute, whatever chdir does later.

    For a URL it is the local directory that mirrors it.
    """
    named = os.environ.get("CHECKPOINT_DIR") or "checkpoints"
    if checkpoint_dir is None:
        checkpoint_dir = named
    if not isinstance(checkpoint_dir, (str, os.PathLike)) or not os.fspath(checkpoint_dir):
        raise InvalidOption(f"checkpoint_dir is {quote(checkpoint_dir)}; give a directory's path")
    path, url = place_of(checkpoint_dir, named)
    try:
        directory = Path(os.path.realpath(path.expanduser()))
    except ValueError as error:
        raise InvalidOption(f"checkpoint_dir is {quote(checkpoint_dir)}: {error}") from None
    if url is not None:
        note_url(directory, url)
    return directory


class _Running:
    """A pass, for as long as its frame holds this."""

    __slots__ = ("__weakref__",)


class Store:
    """One checkpoint on disk. Get it by `open_store`: there is one for each path in a process.

    Args:
        name: a safe file-name component.
        directory: absolute.

    Attributes:
        results, errors, unsaved: the journals with their indexes.
        total: how many items the last pass had, where it knew.
        versions: what digests of versions stand for.
        codes: what digests of code stand for, and the versions whose results they may have computed.
        told: (version, code) of changes that this process has told.
        uploads: what brings the journals to the store that the directory mirrors; None for an ordinary directory.
    """

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        self.lock = threading.RLock()
        self.results = Shelf(directory / f"{name}_results.jsonl", self.lock)
        self.errors = Shelf(directory / f"{name}_errors.jsonl", self.lock)
        self.unsaved = Shelf(directory / f".{name}_unsaved.jsonl", self.lock)
        self.meta_path = directory / f"{name}_meta.json"
        self.users = 0
        self._shelves = (self.results, self.errors, self.unsaved)
        self._writer = Lock(directory / f".{name}.lock", name)
        self._running: weakref.ref[_Running] | None = None
        self._pass_since = ""
        self._writing = False
        self._forked = False
        self._failure: StoreError | None = None
        self._check_at = 0.0  # monotonic; until then a save need not look whether its file is still there
        self._wrote_at = 0.0
        self._meta_at = 0.0
        self._meta_owed = False
        self._meta = self._read_meta()
        self.total: int | None = _count_or_none(self._meta.get("total_items"))
        known = self._meta.get("versions")
        self.versions: dict[str, Any] = dict(known) if isinstance(known, dict) else {}
        self.codes: dict[str, dict[str, Any]] = {}
        self.told: set[tuple[str, str]] = set()
        self._take_codes(self._meta)
        self.uploads = self._mirrored()
        if self.uploads is not None:
            self.uploads.mirror.look()
        for shelf in self._shelves:
            shelf.reopen()

    def _mirrored(self) -> Uploads | None:
        url = url_at(self.directory)
        if url is None:
            return None
        journals = {kind: shelf.journal for kind, shelf in zip(KINDS, self._shelves, strict=True)}
        paths = {kind: journal.path for kind, journal in journals.items()}
        return Uploads(Mirror(self.name, self.directory, url, paths), journals)

    # reading

    def refresh(self) -> None:
        """See what other processes wrote since the last look. The writer need not look: nobody else writes."""
        if not self._writing:
            with self.lock:
                if not self._writing:
                    if self.uploads is not None:
                        self.uploads.mirror.look()
                    for shelf in self._shelves:
                        shelf.refresh()

    @property
    def latest(self) -> str:
        """The version of the last record, results before errors; "" is none."""
        return self.results.index.latest or self.errors.index.latest

    # writing

    @property
    def writing(self) -> bool:
        """Whether this process holds the lock."""
        return self._writing

    def begin_writing(self) -> None:
        """Hold the lock, be up to date, and be able to append: at once where that is so already.

        Raises:
            CheckpointLocked: another process writes.
            StoreError: naming what is not writable, or why this store refuses.
        """
        if self._writing and clock.monotonic() < self._check_at:
            return
        with self.lock:
            self._refuse_if_unfit()
            if not self._writing:
                self._take_lock()
            self._check_places()

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
        try:
            _make_directory(self.directory, is_new=self.results.is_empty and self.errors.is_empty)
        except OSError as error:
            raise store_error(error, "cannot make the directory", self.directory) from error
        if self.uploads is None:
            self._open_to_write()
        else:
            self.uploads.mirror.take_turn()
            try:
                self._open_to_write()
            finally:
                self.uploads.mirror.end_turn()
            _close_early()
        self._writing = True
        self._check_at = clock.monotonic() + _SECOND
        self._wrote_at = self._meta_at = clock.monotonic()
        _tend(self)
        if self._read_meta().get("total_items", -1) != self.total:  # who looks on sees how much this pass has to do
            self._write_meta()

    def _open_to_write(self) -> None:
        self._writer.acquire()
        try:
            if self.uploads is not None:
                self.uploads.begin()
            for shelf in (self.results, self.errors):
                shelf.open_to_write()
            self._settle_names()
            self.unsaved.refresh()
            if self.uploads is not None:
                self.uploads.start()
        except BaseException:
            self._let_go()
            raise

    def _settle_names(self) -> None:
        """Who made or replaced a journal may have been killed before its name was on the medium."""
        try:
            fsync_directory(self.directory)
        except PermissionError:
            pass  # it may be written in, and not be opened
        except OSError as error:
            raise store_error(error, "cannot sync", self.directory) from error

    def _check_places(self, *, at_once: bool = False) -> None:
        """Notice a journal that was cut, deleted or replaced: once a second, and before writing ends."""
        if clock.monotonic() < self._check_at and not at_once:
            return
        if self.uploads is not None:
            try:
                self.uploads.check()
            except CheckpointLocked as error:
                raise self._fail(error) from None
        for shelf in self._shelves:
            try:
                shelf.journal.check_place()
            except JournalLost as error:
                raise self._fail(self._first_lost() or self._at_risk(shelf, error)) from None
        self._check_at = clock.monotonic() + _SECOND

    def _first_lost(self) -> JournalLost | None:
        """Files that go together do not go at one moment: results are told before errors."""
        for shelf in self._shelves:
            try:
                shelf.journal.check_place()
            except JournalLost as error:
                return self._at_risk(shelf, error)
        return None

    def _at_risk(self, shelf: Shelf, error: JournalLost) -> JournalLost:
        reader = shelf.journal.reader
        assert reader is not None
        if reader.is_current():
            keys = shelf.index.keys_from(min(error.intact, reader.tail()[0]))
        else:
            lost = Index()
            lost.scan(reader)  # the open descriptor still reads the file that has no name any more
            keys = lost.keys_from(0)
        shown = ", ".join([quote(key, 60) for key in keys[:10]]) + (", …" if len(keys) > 10 else "")
        return JournalLost(
            f"{error}; {len(keys):,} keys are at risk: {shown or 'none'}. Nothing more is written to it: restore the "
            "file, or run the same line again to compute them anew",
            errno=error.errno,
            strerror=error.strerror,
            filename=error.filename,
            intact=error.intact,
            keys=keys,
        )

    def _fail(self, error: StoreError) -> StoreError:
        """Refuse every later write: what is known of the files no longer holds. The next pass opens them anew."""
        self._failure = error
        self._check_at = -inf  # the next write looks, and finds it
        return error

    def append(self, shelf: Shelf, entries: Sequence[Entry], *, durable: bool = False) -> None:
        """Append records under one write, and one sync where `durable`.

        Raises:
            StoreError: none of them is on disk.
        """
        with self.lock:
            now = self._wrote_at = clock.monotonic()
            if not self._writing or now >= self._check_at:
                self.begin_writing()
            journal, index = shelf.journal, shelf.index
            if not journal.writable:
                shelf.open_to_write()
                index = shelf.index
            lines = entries[0].line if len(entries) == 1 else b"".join([entry.line for entry in entries])
            offset = self._write(shelf, lines)
            for entry in entries:
                if type(entry) is Forgetting:
                    index.forget(entry.version, entry.key)
                else:
                    index.add(entry.version, entry.key, offset, entry.digest)
                offset += len(entry.line)
            index.end = journal.end
            if durable:
                self._sync(journal)

    def append_one(self, shelf: Shelf, version: str, key: Key, digest: int, line: bytes) -> None:
        """`append` for one record that need not be durable: the per-item path, told flat because it is hot."""
        with self.lock:
            now = self._wrote_at = clock.monotonic()
            if not self._writing or now >= self._check_at:
                self.begin_writing()
            offset = self._write(shelf, line)
            index = shelf.index
            index.add(version, key, offset, digest)
            index.end = shelf.journal.end

    def _write(self, shelf: Shelf, lines: bytes) -> int:
        journal = shelf.journal
        try:
            if journal.in_doubt or journal.end != shelf.index.end:
                shelf.settle_doubt()
            known = journal.end
            offset = journal.append(lines)
        except StoreError as error:
            raise self._unwritten(shelf, error) from error.__cause__
        if offset != known:
            self._learn_foreign(shelf)
        self._meta_owed = True
        return offset

    def _unwritten(self, shelf: Shelf, error: StoreError) -> StoreError:
        """A full disk passes; a file that was cut, or an I/O error, means that nobody knows what is on the medium."""
        if isinstance(error, JournalLost):
            return self._fail(self._at_risk(shelf, error))
        return self._fail(error) if error.errno == errno.EIO else error

    def _learn_foreign(self, shelf: Shelf) -> None:
        """Another program appended lines before ours: they count too."""
        if shelf.journal.reader is not None:
            shelf.index.scan(shelf.journal.reader)

    def _sync(self, journal: Journal) -> None:
        try:
            journal.sync()
        except StoreError as error:
            raise self._fail(error) from error.__cause__

    def confirm(self) -> None:
        """What was found is on the medium when this returns: its writer may have been killed before it synced it."""
        for shelf in (self.results, self.errors):
            reader = shelf.journal.reader
            if reader is not None:
                try:
                    reader.sync()
                except StoreError as error:
                    raise self._fail(error) from error.__cause__

    def forget(self, version: str, keys: Iterable[Key], session: bytes, *, durable: bool = False) -> int:
        """Append what forgets the keys' records under the version; returns how many keys had one."""
        keys = list(keys)
        forgotten: set[int] = set()
        with self.lock:
            self.begin_writing()
            for shelf in self._shelves:
                known = [(place, key) for place, key in enumerate(keys) if shelf.find(version, key) is not None]
                forgotten.update(place for place, _ in known)
                if known:
                    self.append(shelf, [forgetting(version, key, session) for _, key in known], durable=durable)
        return len(forgotten)

    def discard(self, shelf: Shelf, version: str, key: Key, offset: int, session: bytes) -> None:
        """The key's record proved damaged: it is not done from now on, and on disk too where that can be said.

        A later record of the key, or a file that is no longer the current one, is another matter.
        """
        with self.lock:
            place = shelf.find(version, key)
            if place is None or place.offset != offset:
                return
            try:
                self.append(shelf, [forgetting(version, key, session)])
            except (StoreError, StoreForked) as error:
                log.debug("the damage of key %s was not noted on disk: %s", quote(key), error)
                shelf.index.forget(version, key)

    def clear(self) -> None:
        """Forget everything: unlink the journals, indexes and meta. The lock file and bytes set aside stay."""
        with self.lock:
            if self._failure is not None:
                self._start_anew()
            self.begin_writing()
            if self.uploads is not None:
                self.uploads.suspend()
                self.uploads.clear()
            try:
                for shelf in self._shelves:
                    shelf.unlink()
                self.meta_path.unlink(missing_ok=True)
                fsync_directory(self.directory)
            except OSError as error:
                self._let_go()  # what is left is opened anew
                raise store_error(error, "cannot delete", self.directory) from error
            self.total, self.versions, self._meta, self._meta_owed = None, {}, {}, False
            self.codes, self.told = {}, set()
            self._stop_writing()

    def replace(self, shelf: Shelf, chunks: Iterable[bytes]) -> None:
        """A journal of these lines takes the place of the shelf's; call it inside of `alone`.

        Raises:
            StoreError: as `Shelf.replace`.
        """
        if self.uploads is not None:
            self.uploads.suspend()
        shelf.replace(chunks)

    # passes

    @contextmanager
    def a_pass(self) -> Iterator[None]:
        """One pass at a time on one checkpoint; the lock is let go when it ends.

        Raises:
            CheckpointLocked: another pass of this process is running.
        """
        with self.lock:
            if self._in_pass:
                raise self._pass_running()
            if self._failure is not None:
                self._start_anew()
            self._pass_since = clock.Stamper()().decode()
            running = _Running()
            self._running = weakref.ref(running)
        values_on_error = False
        try:
            self.refresh()
            yield
        except StoreError:
            values_on_error = True
            raise
        finally:
            try:
                if self.uploads is not None:
                    self.uploads.drain()  # here, and not under the lock that others wait for to save
            finally:
                self._end_pass(values_on_error=values_on_error)

    def _end_pass(self, *, values_on_error: bool) -> None:
        with self.lock:
            self._running = None
            try:
                self._stop_writing()
            except StoreError as error:
                if not values_on_error:
                    raise
                log.error("%s", error)  # the one that is raised holds values that are nowhere else

    @property
    def _in_pass(self) -> bool:
        """A pass is over when its frame is: Ctrl-C between any two lines never leaves one that nobody ends."""
        return self._running is not None and self._running() is not None

    def _pass_running(self) -> CheckpointLocked:
        return CheckpointLocked(
            f"a pass over checkpoint {self.name!r} in {self.directory} is running in this process (since "
            f"{self._pass_since}); finish or close it first, or use another name",
            errno=errno.EWOULDBLOCK,
            strerror="locked",
            filename=str(self.results.journal.path),
            pid=os.getpid(),
            since=self._pass_since,
        )

    def _start_anew(self) -> None:
        self._failure = None
        self._let_go()
        for shelf in self._shelves:
            shelf.reopen()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the lock while no pass runs and no thread of this process writes; it is let go at the end.

        Raises:
            CheckpointLocked: a pass of this process is running, or another process writes.
            StoreError: as `begin_writing`.
        """
        with self.lock:
            if self._in_pass:
                raise self._pass_running()
            if self._failure is not None:
                self._start_anew()
            self.begin_writing()
            try:
                self._check_places(at_once=True)
                yield
            finally:
                self._stop_writing()

    # letting go

    def _stop_writing(self) -> None:
        """Everything on the medium, meta and index up to date, the lock let go."""
        if not self._writing:
            return
        try:
            if self._failure is None:
                self._check_places(at_once=True)
                for shelf in self._shelves:
                    self._sync(shelf.journal)
                    shelf.write_index_if_worth(growth=0.25, rows=100_000, size=32 << 20)
                if self._meta_owed:
                    self._write_meta()
        finally:
            try:
                if self.uploads is not None:
                    self.uploads.finish()
            finally:
                self._let_go()

    def _let_go(self) -> None:
        self._writing = False
        if self.uploads is not None:
            self.uploads.let_go()
        for shelf in self._shelves:
            shelf.journal.stop_writing()
        self._writer.release()

    def close(self) -> None:
        """Let go of the lock and every descriptor."""
        with self.lock:
            try:
                self._stop_writing()
            finally:
                for shelf in self._shelves:
                    shelf.close()

    # housekeeping, by a thread that lives while something is owed

    def tend(self) -> bool:
        """Sync what was written, keep meta and index from falling far behind; False once nothing is owed."""
        try:
            self._sync_aside()
            with self.lock:
                if self._writing and self._failure is None:
                    self._check_places()
        except StoreError as error:
            log.error("%s", error)
        with self.lock:
            if not self._writing:
                return False
            if not self._in_pass and self._is_idle():
                try:
                    self._stop_writing()
                except StoreError as error:
                    log.error("%s", error)
                return False
            owed = self._meta_owed and clock.monotonic() - self._meta_at >= _META_EVERY
        if owed:
            self._write_meta()
        for shelf in self._shelves:
            shelf.write_index_if_worth(growth=0.5, rows=100_000, size=64 << 20)
        return True

    def _is_idle(self) -> bool:
        """Whether nothing was written for a while; where uploads lag behind, letting go would wait for them."""
        idle = clock.monotonic() - self._wrote_at
        if self.uploads is None:
            return idle >= _SECOND
        return idle >= _IDLE and self.uploads.is_settled

    def _sync_aside(self) -> None:
        for shelf in self._shelves:
            try:
                with self.lock:
                    sync = shelf.journal.lend() if self._writing else None
                if sync is not None:
                    sync()
            except StoreError as error:
                with self.lock:
                    raise self._fail(error) from error.__cause__

    # meta

    def _read_meta(self) -> dict[str, Any]:
        try:
            with os.fdopen(open_file(self.meta_path, os.O_RDONLY), "rb") as file:
                meta = json.loads(file.read())
        except (OSError, ValueError, RecursionError):
            return {}  # missing, empty or garbage: rebuilt from the journals
        return meta if isinstance(meta, dict) else {}

    def _write_meta(self) -> None:
        """Replace the file atomically. It tells people and is rebuildable: failing to write it is not an error."""
        with self.lock:
            self._meta_owed = False
            self._meta_at = clock.monotonic()
            try:
                self._replace_meta(json.dumps(self._compose_meta(), indent=1) + "\n")
            except OSError as error:
                log.debug("%s was not written: %s", self.meta_path, error)

    def _replace_meta(self, text: str) -> None:
        temporary = self.meta_path.with_name(f".{self.name}_meta.{os.getpid()}.tmp")
        fd = open_safely(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.meta_path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _compose_meta(self) -> dict[str, Any]:
        version, now = self.latest, clock.Stamper()().decode()
        completed = self.results.count(version)
        return {
            "experiment_name": self.name,
            "started_at": self._meta.setdefault("started_at", now),
            "last_updated": now,
            "total_items": self.total,
            "completed_items": completed,
            "failed_items": self.failed_count(version),
            "schema_version": SCHEMA_VERSION,
            "versions": dict(self.versions),  # other threads open versions meanwhile
            "codes": self.codes,
        }

    # what computed results

    @property
    def has_meta(self) -> bool:
        """Whether meta was sound, or has been written since."""
        return bool(self._meta)

    def codes_of(self, version: str) -> dict[str, Any]:
        """What may have computed results of the version, by digest, the last one last."""
        return {digest: known for digest, known in self.codes.items() if version in known["versions"]}

    def learn_codes(self) -> None:
        """Learn what other processes noted."""
        self._take_codes(self._read_meta())

    def _take_codes(self, meta: dict[str, Any]) -> None:
        noted = meta.get("codes")
        for digest, known in noted.items() if isinstance(noted, dict) else ():
            if isinstance(known, dict) and isinstance(known.get("versions"), list):
                self.codes.setdefault(digest, known)

    def note_code(self, version: str, digest: str, detail: dict[str, Any]) -> None:
        """Results of the version may be computed by this code from here on; meta says so when this returns."""
        with self.lock:
            known = self.codes.get(digest)
            if known is not None and version in known["versions"] and next(reversed(self.codes)) == digest:
                return
            self.learn_codes()
            versions = self.codes.pop(digest, {"versions": []})["versions"]
            self.codes[digest] = {**detail, "versions": [*versions, *([] if version in versions else [version])]}
            for old in list(self.codes)[:-_MOST_CODES]:
                del self.codes[old]
            self._write_meta()

    def failed_count(self, version: str) -> int:
        """How many keys have an error and no result."""
        return sum(not self.is_retired(version, key, error) for key, error in self.errors.sound(version))

    def is_retired(self, version: str, key: Key, error: Record) -> bool:
        """Whether a result retires the key's error; one without checksum stands for any key of equal str()."""
        if self.results.find(version, key) is not None:
            return True
        return not error.crc and self.results.find(version, _key_spelled(str(key))) is not None

    # forks

    def after_fork(self) -> None:
        """In a forked child: drop the parent's lock, never write."""
        self.lock = threading.RLock()
        for shelf in self._shelves:
            shelf.lock = self.lock
            shelf.index.after_fork()
        self._forked = True
        self._writing = False
        self._running = None
        for shelf in self._shelves:
            shelf.journal.stop_writing()
        self._writer.drop()
        if self.uploads is not None:
            self.uploads.after_fork()


def _make_directory(path: Path, *, is_new: bool) -> None:
    """The directory is there, and its name survives a power cut: of a new one also where its maker was just killed."""
    missing = [new for new in (path, *path.parents) if not new.exists()]
    if is_new or missing:
        there = missing[-1].parent if missing else path
        try:
            fsync_directory(there.parent)  # each is synced before the next is made: only the deepest may be in doubt
        except PermissionError:
            pass  # the user's own, where we cannot look
    for new in reversed(missing):
        new.mkdir(exist_ok=True)
        fsync_directory(new.parent)


def forgetting(version: str, key: Key, session: bytes) -> Forgetting:
    """The record that forgets a key's."""
    head = b'{"key":%b,"forgotten":true,"timestamp":"%b"' % (key_json(key), clock.Stamper()())
    if version:
        head += b',"version":"%b"' % version.encode()
    return Forgetting(version, key, 0, seal(head + b',"session":"%b"' % session))


def _key_spelled(text: str) -> Key:
    """The number, bool or None whose str() this is, or else the text."""
    for read in (int, float, _NAMED.__getitem__):
        try:
            key: Key = read(text)
        except (ValueError, KeyError):
            continue
        if str(key) == text:
            return key
    return text


def _count_or_none(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None


# --- one store for each path in a process ----------------------------------------------------------------------------

_stores: dict[tuple[str, str], Store] = {}
_stores_lock = threading.RLock()  # a collection inside it may finalize another runner, which takes it again


def open_store(name: str, directory: Path, user: object) -> Callable[[], None]:
    """Attach `user` to the store of that path, as its `store`; returns what detaches it, once.

    The store is closed when its last user is detached or collected.
    """
    path = (os.path.realpath(directory), name)
    with _stores_lock:
        store = _stores.get(path)
        if store is None:
            store = Store(name, directory)
        store.users += 1
        _stores[path] = store
    user.store = store  # type: ignore[attr-defined]
    return weakref.finalize(user, _detach, path, store)


def _detach(path: tuple[str, str], store: Store) -> None:
    with _stores_lock:
        store.users -= 1
        if store.users:
            return
    try:
        # Before it is forgotten, or another one would meet its lock; who attaches meanwhile opens it again.
        store.close()
    finally:
        with _stores_lock:
            if not store.users and _stores.get(path) is store:
                del _stores[path]


# --- the thread that tends -------------------------------------------------------------------------------------------

_tended: set[Store] = set()
_tending: threading.Thread | None = None
_tend_lock = threading.Lock()
_wake = threading.Event()
_ending = False


def _tend(store: Store) -> None:
    """See that the store is looked after. The thread is a daemon and ends when nothing is owed."""
    global _tending
    with _tend_lock:
        _tended.add(store)
        if _tending is None and not _ending:
            _tending = threading.Thread(target=_tend_all, name="checkpoint-tend", daemon=True)
            _tending.start()


def _tend_all() -> None:
    global _tending
    try:
        _tend_each()
    except BaseException:
        with _tend_lock:
            _tending = None  # the next write begins another
        raise


def _tend_each() -> None:
    global _tending
    while True:
        if _wake.wait(_SECOND / 2):
            return
        for store in list(_tended):
            if not store.tend():
                with _tend_lock:
                    if not store._writing:
                        _tended.discard(store)
        with _tend_lock:
            if not _tended:
                _tending = None
                return


def _close_all() -> None:
    for store in list(_stores.values()):
        try:
            store.close()
        except (StoreError, StoreClosed) as error:
            log.error("%s", error)
    _end_tending()


_closes_early = False


def _close_early() -> None:
    """See that uploads end before executors do: a name is resolved in one, and at exit it takes no more work.

    `threading` has a list for that, which concurrent.futures is on; it has no public name.
    """
    global _closes_early
    if not _closes_early:
        _closes_early = True
        import concurrent.futures.thread  # noqa: F401  # the list is called backwards: it comes after us

        try:
            threading._register_atexit(_close_mirrored)  # type: ignore[attr-defined]
        except (AttributeError, RuntimeError):
            pass  # another Python, or one that ends already: what cannot be uploaded at exit is told


def _close_mirrored() -> None:
    for store in list(_stores.values()):
        if store.uploads is not None and not store._in_pass:
            try:
                store.close()
            except (StoreError, StoreClosed) as error:
                log.error("%s", error)


def _end_tending() -> None:
    """A thread that the interpreter stops while it holds a store's lock would keep whoever ends a pass after that."""
    global _ending
    with _tend_lock:
        _ending, thread = True, _tending
    _wake.set()
    if thread is not None:
        thread.join()


def _after_fork() -> None:
    global _stores_lock, _tend_lock, _tending
    _stores_lock, _tend_lock, _tending = threading.RLock(), threading.Lock(), None
    for store in _stores.values():
        store.after_fork()
    _stores.clear()
    _tended.clear()


atexit.register(_close_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
