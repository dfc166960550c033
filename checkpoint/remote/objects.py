"""The objects of a checkpoint that are under a URL: written, listed and fetched.

The promise: an object is written whole, and nobody overwrites what another session wrote; what is fetched is all of it,
or an error that names the URL. No call waits for ever, and after one that failed the file system is opened anew.

    NAME/owners/00000017.json                   who writes, or wrote, in session 17; its time says when it was renewed
    NAME/results-00000017-00000000.jsonl        a run of whole lines that session 17 appended; errors-, unsaved- alike
    NAME/whole-00000018.json                    nothing of a session before 18 counts any more
    NAME/results-00000018-whole-00000000.jsonl  the journal as it was then; it counts once whole-00000018.json is there

Sessions are numbered; a number is taken by creating its owner object, exclusively where the store can.
"""

from __future__ import annotations

import errno
import logging
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint import clock
from checkpoint.errors import CheckpointError, StoreError, quote, quote_error
from checkpoint.remote.patience import telling
from checkpoint.remote.urls import EXTRAS, hide_secrets, url_at
from checkpoint.storage.journal import KINDS

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Listing", "Objects", "Part", "names_under"]


log = logging.getLogger("checkpoint")
_AT_ONCE = 8
_PATIENCE = 60.0  # seconds for an answer
_CONNECT = 15.0  # seconds for a connection, over sftp: else the system waits for two minutes
_SLOWEST = 10_000  # bytes a second: a line that is slower counts as one that is dead
_PART = re.compile(rf"({'|'.join(KINDS)})-(\d{{8,}})-(whole-)?(\d{{8,}})\.jsonl")
_WHOLE = re.compile(r"whole-(\d{8,})\.json")
_OWNER = re.compile(r"(\d{8,})\.json")
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


class Part(NamedTuple):
    """An object that holds lines of a journal. Their order is that of the journal."""

    epoch: int
    late: bool  # not of the journal as a whole
    number: int
    kind: str
    size: int

    @property
    def name(self) -> str:
        """What the object is called."""
        return f"{self.kind}-{self.epoch:08}-{'' if self.late else 'whole-'}{self.number:08}.jsonl"


class Listing(NamedTuple):
    """What is there.

    Attributes:
        parts: those that count, in order.
        whole: the session before which nothing counts, or 0.
        greatest: the greatest session of any object.
        stale: names of objects that do not count.
    """

    parts: list[Part]
    whole: int
    greatest: int
    stale: list[str]

    def of(self, kind: str) -> list[Part]:
        """The parts of one journal."""
        return [part for part in self.parts if part.kind == kind]


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
        """What is there of a checkpoint."""
        sizes = {
            entry["name"].rpartition("/")[2]: entry["size"] for entry in self._entries() if entry["type"] == "file"
        }
        wholes = {int(found[1]) for name in sizes if (found := _WHOLE.fullmatch(name))}
        parts = sorted(
            Part(int(found[2]), not found[3], int(found[4]), found[1], size)
            for name, size in sizes.items()
            if (found := _PART.fullmatch(name))
        )
        whole = max(wholes, default=0)
        counting = [part for part in parts if part.epoch >= whole and (part.late or part.epoch == whole)]
        stale = {part.name for part in parts} - {part.name for part in counting}
        stale |= {f"whole-{old:08}.json" for old in wholes if old < whole}
        return Listing(counting, whole, max((whole, *[part.epoch for part in parts])), sorted(stale))

    def owners(self) -> list[int]:
        """The sessions that have an owner, in order."""
        names = [entry["name"].rpartition("/")[2] for entry in self._entries("owners")]
        return sorted(int(found[1]) for name in names if (found := _OWNER.fullmatch(name)))

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

    def create(self, name: str, data: bytes) -> None:
        """Write an object that is not there; where the store cannot see to that, say so once.

        Raises:
            FileExistsError: it is there.
        """
        if not self._created_alone(name, data):
            url = self.url.rpartition("/")[0]
            if url not in _told:
                _told.add(url)
                log.warning(
                    "%s: this store cannot create an object only where there is none, so that two machines that begin "
                    "to write one checkpoint at one moment are not noticed at once; nothing is lost by it", url,
                )  # fmt: skip

    def _created_alone(self, name: str, data: bytes) -> bool:
        """Create an object; returns whether the store saw to it that there was none."""
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
    """Write a file that is not there; returns whether the file system saw to it."""
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
    is_own = getattr(system, "async_impl", False) or type(system).pipe_file is not AbstractFileSystem.pipe_file
    if not is_own:
        return False  # that of fsspec looks first, and writes then
    try:
        system.pipe_file(path, data, mode="create", **bound)
    except FileExistsError:
        return True
    return False  # it took the condition, and did not heed it


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
    try:
        _opened_alone(connection, path).close()
    except FileExistsError:
        return True
    with connection.open(path, "w") as file:  # the server did not heed it, and the file is empty now
        file.write(data)
    return False


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
