"""The objects of a checkpoint that are under a URL: written, listed and fetched.

The promise: an object is written whole, and nobody overwrites what another session wrote; what is fetched is all of it,
or an error that names the URL. No call waits for ever, and after one that failed the file system is opened anew.

    NAME/owners/00000017.json                   who writes, or wrote, in session 17; its time says when it was renewed
    NAME/results-00000017-at-00000000.jsonl     whole lines that session 17 appended, from that byte on; errors- alike
    NAME/results-00000018-whole-00000000.jsonl  the journal as session 18 compacted it, where there is
    NAME/whole-00000018.json                    what it took in: no part of an older session counts that holds only that

Sessions are numbered; a number is taken by creating its owner object, exclusively where the store can. Where it cannot,
names carry the session's token. The protocol is on a page of its own: .github/docs/object-store-protocol.md.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from checkpoint import clock
from checkpoint.errors import CheckpointError, StoreError, quote, quote_error
from checkpoint.remote.patience import telling
from checkpoint.remote.urls import EXTRAS, hide_secrets, url_at
from checkpoint.storage.journal import KINDS

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Listing", "Marker", "Objects", "Owner", "Part", "Stretch", "merged", "names_under"]


log = logging.getLogger("checkpoint")
_AT_ONCE = 8
_PATIENCE = 60.0  # seconds for an answer
_CONNECT = 15.0  # seconds for a connection, over sftp: else the system waits for two minutes
_SLOWEST = 10_000  # bytes a second: a line that is slower counts as one that is dead
_TOKEN = "[0-9a-f]{4,}"
_PART = re.compile(
    rf"({'|'.join(KINDS)})-(\d{{8,}})-(whole-|at-)?(\d{{8,}})(?:-({_TOKEN}))?(?:\.by-({_TOKEN}))?\.jsonl"
)
_WHOLE = re.compile(rf"whole-(\d{{8,}})(?:-({_TOKEN}))?\.json")
_OWNER = re.compile(rf"(\d{{8,}})(?:-({_TOKEN}))?\.json")
_TRIES = 5
_WITH_BUCKETS = {
    protocol: "container" if extra == "azure" else "bucket"
    for protocol, extra in EXTRAS.items()
    if extra != "sftp" and protocol != "adl"  # what its accounts hold are folders
}
_told: set[str] = set()  # URLs where two writers are not noticed, and directories that say what is not believed


def names_under(directory: Path) -> list[str]:
    """The names that the store has under the URL that a directory mirrors; none for any other directory.

    Raises:
        StoreError: it cannot be reached.
    """
    url = url_at(directory)
    if url is None:
        return []
    objects = Objects(url)
    with telling(objects):
        return sorted(objects.folders())


Stretch = tuple[int, int]
"""Bytes of a stream: from, and up to."""


class Owner(NamedTuple):
    """Who writes, or wrote, in a session. The last one is the greatest."""

    epoch: int
    token: str = ""  # only where numbers cannot be taken by one session alone

    @property
    def name(self) -> str:
        """What the object is called."""
        return f"owners/{_numbered(self.epoch, self.token)}.json"


class Part(NamedTuple):
    """An object that holds lines of a journal. Their order is that of the journal.

    Attributes:
        epoch: of the session that appended the lines.
        is_late: not of the journal as a whole.
        is_placed: it says which bytes of the session's stream it holds; those of earlier releases did not.
        token: of that session, where its number may be that of another one too.
        number: of the part; where it is placed, at which byte of the stream it begins.
        by: the token of the session that uploaded it, where that is a later one.
        kind: the journal.
        size: in bytes.
        skip: so many bytes at its beginning stand in parts before it, or in the whole.
    """

    epoch: int
    is_late: bool
    is_placed: bool
    token: str
    number: int
    by: str
    kind: str
    size: int
    skip: int = 0

    @property
    def name(self) -> str:
        """What the object is called."""
        place = f"{'at-' if self.is_placed else ''}{'' if self.is_late else 'whole-'}{self.number:08}"
        by = f".by-{self.by}" if self.by else ""
        return f"{self.kind}-{self.epoch:08}-{_numbered(place, self.token)}{by}.jsonl"

    @property
    def stream(self) -> str:
        """Which stream of its journal it is of."""
        return _numbered(self.epoch, self.token)


def _numbered(number: int | str, token: str) -> str:
    text = f"{number:08}" if isinstance(number, int) else number
    return f"{text}-{token}" if token else text


class Marker(msgspec.Struct):
    """What an object says from which on a journal is counted.

    Attributes:
        cleared: nothing of a session before this one counts.
        taken: by journal and stream, the bytes that are in a whole, or were superseded in it.
        since: when it was written, by that machine's clock.
    """

    cleared: int = 0
    taken: dict[str, dict[str, list[Stretch]]] = {}
    since: str = ""

    def taken_of(self, kind: str, stream: str) -> list[Stretch]:
        """The bytes of one stream."""
        return self.taken.get(kind, {}).get(stream, [])

    def taking(self, kind: str, stream: str, stretch: Stretch) -> None:
        """Those of a whole that is about to be written, too."""
        streams = self.taken.setdefault(kind, {})
        streams[stream] = merged([*streams.get(stream, []), stretch])


def merged(stretches: Iterable[Stretch]) -> list[Stretch]:
    """The same bytes, in order, in as few stretches as can be."""
    found: list[Stretch] = []
    for start, stop in sorted(stretches):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        elif start < stop:
            found.append((start, stop))
    return found


class Listing(NamedTuple):
    """What is there.

    Attributes:
        parts: those that count, in order.
        whole: the session that wrote the last whole, or 0.
        greatest: the greatest session of any object.
        stale: names of objects that do not count.
        marker: what the last whole says.
    """

    parts: list[Part]
    whole: int
    greatest: int
    stale: list[str]
    marker: Marker

    def of(self, kind: str) -> list[Part]:
        """The parts of one journal."""
        return [part for part in self.parts if part.kind == kind]

    def has(self, kind: str, stream: str) -> list[Stretch]:
        """The bytes of a stream that are in the store, or were."""
        there = [
            (part.number, part.number + part.size)
            for part in self.parts
            if part.kind == kind and part.is_placed and part.stream == stream
        ]
        return merged([*self.marker.taken_of(kind, stream), *there])


def _counting(parts: Iterable[Part], whole: int, token: str, marker: Marker) -> list[Part]:
    """The parts that count, in order, each with what stands before it already."""
    found: list[Part] = []
    ends: dict[tuple[str, str], int] = {}
    for part in sorted(parts):
        if part.epoch < marker.cleared:
            continue
        if not part.is_late:
            if (part.epoch, part.token) == (whole, token):
                found.append(part)
            continue
        if not part.is_placed:
            if part.epoch >= whole:
                found.append(part)
            continue
        skip = _held_before(part, marker.taken_of(part.kind, part.stream))
        if skip == part.size and (skip or part.epoch < whole):
            continue  # all of it is in the whole
        key = part.kind, part.stream
        end = ends.get(key, 0)
        ends[key] = max(end, part.number + part.size)
        found.append(part._replace(skip=min(part.size, max(skip, end - part.number))))
    return found


def _held_before(part: Part, taken: Sequence[Stretch]) -> int:
    """How many bytes at the beginning of a part are taken."""
    return next((min(stop - part.number, part.size) for start, stop in taken if start <= part.number < stop), 0)


class Objects:
    """The objects under a URL.

    Args:
        url: as `place_of` made it.
        name: of a checkpoint; "" for all of them.

    Attributes:
        waits_for: what the store was asked for and has not answered, in words, or "".
        answered_at: when it answered last; monotonic.
    """

    def __init__(self, url: str, name: str = "") -> None:
        self.url = f"{url}/{name}" if name else url
        self._protocol = url.partition(":")[0]
        self._opened: tuple[int, Any, str] = (0, None, "")
        self.waits_for, self.answered_at = "", -inf
        self._markers: dict[str, Marker] = {}  # the last one that was read

    def _open(self) -> tuple[Any, str]:
        """(file system, path); a forked child needs one of its own."""
        pid, system, root = self._opened
        if pid != os.getpid():
            from fsspec.core import url_to_fs

            system, root = url_to_fs(self.url, **_options(self._protocol))
            if (connection := getattr(system, "ftp", None)) is not None:  # else paramiko waits for ever
                connection.get_channel().settimeout(_PATIENCE)
            self._opened = (os.getpid(), system, root)
        return system, root

    def _let_go(self, system: Any) -> None:
        """Open the file system anew the next time: it may have failed for its connection, and fsspec would keep it."""
        if system is not None and self._opened[1] is system:
            self._opened = (0, None, "")
            type(system).clear_instance_cache()

    def _bound(self, size: int = 0) -> dict[str, float]:
        """How long a call may take that moves so many bytes: clients that try again wait for half an hour."""
        return {"timeout": _PATIENCE + size / _SLOWEST} if self._protocol in _WITH_BUCKETS else {}

    @contextmanager
    def _reaching(self, doing: str, name: str = "") -> Iterator[tuple[Any, str]]:
        """(file system, path), with whatever goes wrong told as one of ours; what is missing or there as it is."""
        system: Any = None
        self.waits_for = f"{doing} {self.url}/{name}" if name else f"{doing} {self.url}"
        try:
            system, root = self._open()
            yield system, f"{root}/{name}" if name else root
        except (FileNotFoundError, FileExistsError, CheckpointError):
            raise
        except Exception as error:  # each file system has its own
            where = f"{self.url}/{name}" if name else self.url
            if type(error).__name__ == "ResourceNotFoundError":  # that of Azure's client, which adlfs lets through
                raise FileNotFoundError(errno.ENOENT, hide_secrets(quote_error(error)), where) from error
            self._let_go(system)
            is_silent = isinstance(error, TimeoutError) or type(error).__name__ == "FSTimeoutError"
            why = "it does not answer" if is_silent and not str(error) else hide_secrets(quote_error(error))
            number = (error.errno if isinstance(error, OSError) else None) or errno.EIO
            told = f"cannot {doing} {where}: {why}"
            raise StoreError(told, errno=number, strerror=hide_secrets(str(error)), filename=where) from error
        finally:
            self.waits_for, self.answered_at = "", clock.monotonic()

    def _entries(self, folder: str = "") -> list[dict[str, Any]]:
        with self._reaching("list", folder) as (system, path):
            system.invalidate_cache()
            try:
                return list(system.ls(path, detail=True, **self._bound()))
            except NotADirectoryError:
                return []
            except FileNotFoundError as error:
                if not self._has_bucket(system, path):
                    raise self._no_bucket("list", folder, error) from error
                return []

    def _has_bucket(self, system: Any, path: str) -> bool:
        """Whether a prefix that holds nothing is in a bucket: where buckets are folders, any folder may yet be made.

        Who may not look at the bucket, but may list what is in it, is told that it is there.
        """
        if self._protocol not in _WITH_BUCKETS:
            return True
        try:
            system.info(system.split_path(path)[0], **self._bound())
        except FileNotFoundError:
            return False
        except Exception as error:  # each file system has its own
            log.debug("%s: it is not known whether the bucket is there: %s", self.url, error)
        return True

    def folders(self) -> Iterator[str]:
        """The names of the folders."""
        for entry in self._entries():
            if entry["type"] == "directory":
                yield entry["name"].rstrip("/").rpartition("/")[2]

    def look(self) -> Listing:
        """What is there of a checkpoint.

        Raises:
            StoreError: it cannot be reached, or changes all the time.
        """
        for _ in range(_TRIES):
            sizes = {
                entry["name"].rpartition("/")[2]: entry["size"] for entry in self._entries() if entry["type"] == "file"
            }
            wholes = {(int(found[1]), found[2] or ""): name for name in sizes if (found := _WHOLE.fullmatch(name))}
            whole, token = max(wholes, default=(0, ""))
            try:
                marker = self._marker(wholes[whole, token]) if wholes else Marker()
            except FileNotFoundError:
                continue  # a newer one took its place
            parts = [
                Part(
                    int(found[2]), found[3] != "whole-", found[3] == "at-", found[5] or "", int(found[4]),
                    found[6] or "", found[1], size,
                )
                for name, size in sizes.items()
                if (found := _PART.fullmatch(name))
            ]  # fmt: skip
            counting = _counting(parts, whole, token, marker)
            stale = {part.name for part in parts} - {part.name for part in counting}
            stale |= {name for numbered, name in wholes.items() if numbered < (whole, token)}
            greatest = max((whole, *[part.epoch for part in parts]))
            return Listing(counting, whole, greatest, sorted(stale), marker)
        raise StoreError(f"{self.url} changes all the time", filename=self.url)

    def _marker(self, name: str) -> Marker:
        """What it says, which never changes; those of earlier releases say nothing of this."""
        if name not in self._markers:
            try:
                self._markers = {name: msgspec.json.decode(self.read(name), type=Marker)}
            except ValueError as error:
                told = f"{self.url}/{name} cannot be read: {error}; restore it, or clear the checkpoint"
                raise StoreError(told, errno=errno.EIO, strerror=str(error), filename=self.url) from error
        return self._markers[name]

    def owners(self) -> list[Owner]:
        """The sessions that have an owner, in order."""
        names = [entry["name"].rpartition("/")[2] for entry in self._entries("owners")]
        return sorted(Owner(int(found[1]), found[2] or "") for name in names if (found := _OWNER.fullmatch(name)))

    def read(self, name: str) -> bytes:
        """A small object.

        Raises:
            FileNotFoundError: it is not there.
            StoreError: it cannot be read.
        """
        with self._reaching("read", name) as (system, path):
            return bytes(system.cat_file(path, **self._bound()))

    def fetch(self, wanted: Iterable[tuple[Part, int]]) -> Iterator[tuple[Part, int, bytes]]:
        """(part, start, its bytes from there on) of each (part, start), in order, several being under way at once.

        Raises:
            FileNotFoundError: a part is not there any more.
            StoreError: one cannot be read, or not to its end.
        """
        from concurrent.futures import ThreadPoolExecutor

        at_once = _AT_ONCE if getattr(self._open()[0], "async_impl", False) else 1
        queue: deque[tuple[Part, int, Future[bytes]]] = deque()
        with ThreadPoolExecutor(at_once, thread_name_prefix="checkpoint-fetch") as pool:
            try:
                for part, start in wanted:
                    queue.append((part, start, pool.submit(self._read_part, part, start)))
                    if len(queue) > at_once:
                        first, begin, future = queue.popleft()
                        yield first, begin, future.result()
                while queue:
                    first, begin, future = queue.popleft()
                    yield first, begin, future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _read_part(self, part: Part, start: int) -> bytes:
        with self._reaching("read", part.name) as (system, path):
            data = bytes(system.cat_file(path, start=start, end=part.size, **self._bound(part.size - start)))
        if len(data) != part.size - start:
            told = f"{self.url}/{part.name} broke off: {len(data):,} of {part.size - start:,} bytes came"
            raise StoreError(told, errno=errno.EIO, strerror="broken off", filename=self.url)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write an object, in the place of one that this session wrote before."""
        try:
            with self._reaching("write", name) as (system, path):
                if self._protocol in _WITH_BUCKETS:
                    system.pipe_file(path, data, **self._bound(len(data)))
                else:  # a file may be seen, and be left, half-written
                    _make_folder(system, path.rpartition("/")[0])
                    if (connection := getattr(system, "ftp", None)) is not None:
                        _write_by_sftp(connection, f"{path}.tmp", data)
                    else:
                        system.pipe_file(f"{path}.tmp", data)
                    system.mv(f"{path}.tmp", path)
        except FileNotFoundError as error:
            raise self._no_bucket("write", name, error) from error

    def _no_bucket(self, doing: str, name: str, error: OSError) -> StoreError:
        where, why = f"{self.url}/{name}" if name else self.url, hide_secrets(quote_error(error))
        if what := _WITH_BUCKETS.get(self._protocol, ""):
            bucket = self.url.partition("://")[2].partition("/")[0]
            why = f"there is no {what} {quote(bucket)}; make the {what}, or name another (checkpoint_dir=, or --dir)"
        told = f"cannot {doing} {where}: {why}"
        return StoreError(told, errno=errno.ENOENT, strerror=hide_secrets(str(error)), filename=where)

    def heeds_conditions(self, probe: str) -> bool:
        """Whether the store creates an object only where there is none; where it does not, that is told once.

        Args:
            probe: the name of an object that nobody else writes. It is deleted.
        """
        try:
            heeds = self._created_alone(probe, b"{}\n") and not self._is_created(probe)
        finally:
            self.delete([probe])
        url = self.url.rpartition("/")[0]
        if not heeds and url not in _told:
            _told.add(url)
            log.warning(
                "%s: this store cannot create an object only where there is none, so that two machines that begin to "
                "write one checkpoint at one moment may both go on if its listings are late; they write different "
                "objects then, and every reader has the lines of both in one order", url,
            )  # fmt: skip
        return heeds

    def _is_created(self, name: str) -> bool:
        try:
            self.create(name, b"{}\n")
        except FileExistsError:
            return False
        return True

    def create(self, name: str, data: bytes) -> None:
        """Write an object that is not there, as far as the store sees to that.

        Raises:
            FileExistsError: it is there.
        """
        self._created_alone(name, data)

    def _created_alone(self, name: str, data: bytes) -> bool:
        """`create`, and whether it is the store that looks whether it is there, and not the client before it writes."""
        try:
            with self._reaching("create", name) as (system, path):
                if self._protocol not in _WITH_BUCKETS:
                    _make_folder(system, path.rpartition("/")[0])
                return _create(system, path, data, self._bound())
        except FileNotFoundError as error:
            raise self._no_bucket("create", name, error) from error

    def modified(self, name: str) -> datetime | None:
        """When the object was written, by the store's clock; None where the store does not tell."""
        with self._reaching("look at", name) as (system, path):
            system.invalidate_cache()
            try:
                moment = system.modified(path)
            except NotImplementedError:
                moment = system.info(path).get("mtime")
        return moment if isinstance(moment, datetime) else None

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, as far as that can be done: what is left over does not count."""
        for name in names:
            try:
                with self._reaching("delete", name) as (system, path):
                    system.rm_file(path)
            except (FileNotFoundError, StoreError) as error:
                log.debug("%s was not deleted: %s", name, error)


def _options(protocol: str) -> dict[str, float]:
    """What bounds the time of connecting; where the user's configuration does not, and it is fsspec's own sftp."""
    if EXTRAS.get(protocol) != "sftp":
        return {}
    from fsspec import get_filesystem_class
    from fsspec.config import conf

    is_own = get_filesystem_class(protocol).__module__ == "fsspec.implementations.sftp"
    return {"timeout": _CONNECT} if is_own and "timeout" not in conf.get(protocol, {}) else {}


def _make_folder(system: Any, path: str) -> None:
    try:
        system.makedirs(path, exist_ok=True)
    except OSError:  # another machine may have been quicker
        if not system.isdir(path):
            raise


def _create(system: Any, path: str, data: bytes, bound: dict[str, float]) -> bool:
    """Write a file that is not there; returns whether it is the store that looks, and not the client."""
    from fsspec.spec import AbstractFileSystem

    if (connection := getattr(system, "ftp", None)) is not None:
        return _create_by_sftp(connection, path, data)
    try:
        system.pipe_file(path, data, mode="create", **bound)
    except (NotImplementedError, TypeError, ValueError):
        if system.exists(path):
            raise FileExistsError(path) from None
        system.pipe_file(path, data)
        return False
    # That of fsspec looks first, and writes then.
    return getattr(system, "async_impl", False) or type(system).pipe_file is not AbstractFileSystem.pipe_file


def _write_by_sftp(connection: Any, path: str, data: bytes) -> None:
    """Write a file without waiting for the answer to each 32 KB, as fsspec does: that takes a round trip each."""
    with connection.open(path, "w") as file:
        file.set_pipelined(True)
        file.write(data)
    if (size := connection.stat(path).st_size) != len(data):  # paramiko drops what goes wrong as it closes
        raise OSError(errno.EIO, f"{size:,} of {len(data):,} bytes were written")


def _create_by_sftp(connection: Any, path: str, data: bytes) -> bool:
    """As `_create`, by SFTP_FLAG_EXCL, which fsspec does not use: it looks first, and writes then."""
    with _opened_alone(connection, path) as file:
        file.write(data)
    return True


def _opened_alone(connection: Any, path: str) -> Any:
    try:
        return connection.open(path, "wx")
    except OSError as error:
        if error.errno is not None:
            raise
        try:
            connection.stat(path)  # the protocol has no status for "it is there": OpenSSH answers "Failure"
        except FileNotFoundError:
            raise error from None
        raise FileExistsError(errno.EEXIST, "it is there", path) from error
