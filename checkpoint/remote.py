"""Storage that outlives the machine: which local directory mirrors a URL, and the objects that are under it.

The promise: an object is written whole, and nobody overwrites what another session wrote; what is fetched is all of it,
or an error that names the URL. fsspec does it, with its own configuration, and is imported when a URL is first used.

    NAME/owners/00000017.json                   who writes, or wrote, in session 17; its time says when it was renewed
    NAME/results-00000017-00000000.jsonl        a run of whole lines that session 17 appended; errors-, unsaved- alike
    NAME/whole-00000018.json                    nothing of a session before 18 counts any more
    NAME/results-00000018-whole-00000000.jsonl  the journal as it was then; it counts once whole-00000018.json is there

Sessions are numbered; a number is taken by creating its owner object, exclusively where the store can.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import stat
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote as escape
from urllib.parse import unquote

from checkpoint.errors import CheckpointError, ExtraNeeded, InvalidOption, StoreError, quote, quote_error
from checkpoint.files import read_object, replacing

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "KINDS",
    "PROTOCOLS",
    "Listing",
    "Objects",
    "Part",
    "has_sign",
    "hide_secrets",
    "names_under",
    "note_url",
    "place_of",
    "remember",
    "tell_sign",
    "url_at",
]

KINDS = ("results", "errors", "unsaved")
"""The journals."""

log = logging.getLogger("checkpoint")

_SIGN = ".mirror.json"
_AT_ONCE = 8
_LONGEST_NOTE = 1 << 16
_WRITE = "give PROTOCOL://BUCKET/PREFIX"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://(.*)", re.DOTALL)  # two letters at least: a Windows drive is no URL
_MANGLED = re.compile(  # pathlib takes a slash away; and a chain of protocols is no URL of ours
    r"(?:s3a?|gs|gcs|az|abfss?|adl|sftp|ssh|memory):/[^/]|[A-Za-z][A-Za-z0-9+.\-]+:/+[^/]*@|[^/]*[^/]{2}://",
    re.IGNORECASE,
)
_PORT = re.compile(r"[^:]*:[0-9]{1,5}")
_QUERY = re.compile(r"[?&#;][^/=]*=")
_SECRETS = re.compile(r"(?<=://)[^\s/@:]*:[^\s'\"]*@|(?<=[?&])([A-Za-z0-9_.%\-]+)=[^\s&'\"<>]+")
_EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    **dict.fromkeys(("sftp", "ssh"), "sftp"),
}
_HOSTS = frozenset(
    {"sftp", "ssh", "az", "abfs", "abfss", "adl", "file", "local"}
)  # a user's name may stand before an @
PROTOCOLS = frozenset({"memory", *_EXTRAS})
"""Those that a URL may have besides that of files: no other is opened, whatever fsspec has."""

_PART = re.compile(rf"({'|'.join(KINDS)})-(\d{{8,}})-(whole-)?(\d{{8,}})\.jsonl")
_WHOLE = re.compile(r"whole-(\d{8,})\.json")
_OWNER = re.compile(r"(\d{8,})\.json")
_urls: dict[str, str] = {}  # of mirrors that this process has named
_told: set[str] = set()  # URLs where two writers are not noticed, and directories that say what is not believed
_usable: set[str] = set()  # protocols


# --- a URL, and the directory that mirrors it -------------------------------------------------------------------------


def place_of(text: str | os.PathLike[str], beside: str) -> tuple[Path, str | None]:
    """(local directory, URL that it mirrors or None) of what was given as `checkpoint_dir`.

    Args:
        text: a path or a URL.
        beside: the directory, or URL, of the environment: mirrors are made in it where it is a directory.

    Raises:
        InvalidOption: it is a URL that cannot be mirrored. One that may hold a secret is not repeated.
        ExtraNeeded: what reads such URLs is not installed.
    """
    given: Any = os.fspath(text)
    if not isinstance(given, str):
        return Path(text), None
    found = _URL.fullmatch(given)
    if found is None and not _MANGLED.match(given):
        return Path(text), None
    _refuse_secrets(given)
    if found is None or "::" in given:
        raise InvalidOption(f"checkpoint_dir is {quote(given)}; {_WRITE}, as a string, and one protocol only")
    protocol, rest = found[1].lower(), found[2]
    if protocol in ("file", "local"):
        return Path(rest), None
    if protocol not in PROTOCOLS:
        known = ", ".join(sorted(PROTOCOLS))
        raise InvalidOption(f"checkpoint_dir is {quote(given)}; {_WRITE}, where the protocol is one of: {known}")
    _check_protocol(protocol, given)
    parts = [part for part in rest.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise InvalidOption(f"checkpoint_dir is {quote(given)}; {_WRITE}, without . or ..")
    root = Path("checkpoints" if _URL.fullmatch(beside) else beside or "checkpoints")
    return root.joinpath(
        protocol, *[escape(part, safe=" ._-@=+,") for part in parts]
    ), f"{protocol}://{'/'.join(parts)}"


def _refuse_secrets(given: str) -> None:
    """Refuse a URL that may hold a password or a token, in whichever spelling, without repeating it."""
    for part in given.split("::"):
        protocol, _, rest = part.partition(":")
        if what := _secret_in(protocol.lower(), unquote(rest.removeprefix("/").removeprefix("/"))):
            raise InvalidOption(
                f"checkpoint_dir is a URL of {quote(protocol, 20)} with {what}, which logs and file names would show; "
                f"{_WRITE}, and configure credentials in the environment or in fsspec's own configuration"
            )


def _secret_in(protocol: str, rest: str) -> str:
    """What of a URL may be a secret; a password may have a slash or an @ in it."""
    bucket, _, prefix = rest.partition("/")
    user, _, host = bucket.rpartition("@")
    is_plain = ":" not in host or bucket.startswith("arn:") or (protocol in _HOSTS and _PORT.fullmatch(host))
    if ":" in user or not is_plain or (":" in host and "@" in prefix):
        return "a password"
    if user and protocol not in _HOSTS:
        return "a password or token before an @"
    return "a query, where tokens stand" if _QUERY.search(rest) else ""


def hide_secrets(text: str) -> str:
    """A message of another library without the passwords and tokens of the URLs that it repeats."""
    return _SECRETS.sub(lambda found: f"{found[1]}=***" if found[1] else "***@", text)


def _check_protocol(protocol: str, url: str) -> None:
    if protocol in _usable:
        return
    extra = _EXTRAS.get(protocol)
    try:
        import fsspec

        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        bring = f"pip install 'checkpoint-map[{extra}]'" if extra else "install fsspec and what it needs for them"
        raise ExtraNeeded(
            f"checkpoint_dir={quote(url)} needs fsspec with {protocol}, which cannot be imported ({error}): {bring}",
            name=error.name,
        ) from error
    except ValueError:
        raise InvalidOption(f"checkpoint_dir is {quote(url)}: fsspec knows no protocol {protocol!r}") from None
    _usable.add(protocol)


def note_url(directory: Path, url: str) -> None:
    """The directory mirrors the URL, as far as this process is concerned."""
    _urls[str(directory)] = url


def url_at(directory: Path) -> str | None:
    """The URL that a directory mirrors: as this process named it, or as this user's processes did before.

    No file of the directory itself is asked: whoever sent it could name any place there.

    Raises:
        ExtraNeeded: what reads such URLs is not installed.
    """
    known = _urls.get(str(directory))
    return _remembered(directory) if known is None else known


def remember(directory: Path, url: str) -> None:
    """Note in this user's own configuration which URL the directory mirrors, for commands that name the directory."""
    note = _note_of(directory)
    if note is None or _remembered(directory) == url:
        return
    try:
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with replacing(note, note.stem, 0o600) as file:
            file.write(json.dumps({"directory": str(directory), "url": url}).encode() + b"\n")
    except OSError as error:  # no home, or a read-only one: then the URL is to be named
        log.debug("%s was not written: %s", note, error)


def _note_of(directory: Path) -> Path | None:
    """Where this user notes what a directory mirrors; None where there is no place for it."""
    named = os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME", "")
    try:
        usual = Path.home() / ("Library/Application Support" if sys.platform == "darwin" else ".config")
    except RuntimeError:
        usual = Path()
    root = Path(named) if os.path.isabs(named) else usual
    if not root.is_absolute():
        return None
    return root / "checkpoint" / "mirrors" / f"{blake2b(os.fsencode(directory), digest_size=16).hexdigest()}.json"


def _remembered(directory: Path) -> str | None:
    note = _note_of(directory)
    if note is None or not os.path.lexists(note):
        return None
    try:
        if not (_is_own(note.parent) and _is_own(note)):
            log.warning("%s is not believed: others may write it, or it is not this user's", note)
            return None
        said = read_object(note, _LONGEST_NOTE)
    except (OSError, ValueError):
        return None
    url = said.get("url")
    if said.get("directory") != str(directory) or not isinstance(url, str):
        return None
    try:
        return place_of(url, "")[1]
    except InvalidOption:
        return None


def _is_own(path: Path) -> bool:
    """Whether nobody else can have written it."""
    state = os.lstat(path)
    if stat.S_ISLNK(state.st_mode):
        return False
    return not hasattr(os, "geteuid") or (state.st_uid == os.geteuid() and not state.st_mode & 0o022)


def has_sign(directory: Path) -> bool:
    """Whether a file in the directory says which URL it mirrors: earlier releases wrote it, and believed it."""
    return os.path.lexists(directory / _SIGN)


def tell_sign(directory: Path) -> None:
    """Say once that what such a file says is not believed, and what to pass."""
    if str(directory) in _told:
        return
    _told.add(str(directory))
    try:
        url = read_object(directory / _SIGN, _LONGEST_NOTE).get("url")
        if isinstance(url, str):
            place_of(url, "")  # one with a secret is not repeated
    except (OSError, ValueError, CheckpointError):
        url = None
    told, named = (quote(url), quote(url)) if isinstance(url, str) else ("a URL", "URL")
    log.warning(
        "%s is not uploaded: a file %s there says that it mirrors %s, but anybody may have written that. If it is "
        "right, name the URL instead of the directory: checkpoint_dir=%s, or --dir", directory, _SIGN, told, named,
    )  # fmt: skip


def names_under(directory: Path) -> list[str]:
    """The names that the store has under the URL that a directory mirrors; none for any other directory.

    Raises:
        StoreError: it cannot be reached.
    """
    url = url_at(directory)
    return [] if url is None else sorted(Objects(url).folders())


# --- the objects ------------------------------------------------------------------------------------------------------


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
    """

    def __init__(self, url: str, name: str = "") -> None:
        self.url = f"{url}/{name}" if name else url
        self._protocol = url.partition(":")[0]
        self._opened: tuple[int, Any, str] = (0, None, "")

    def _open(self) -> tuple[Any, str]:
        """(file system, path); a forked child needs one of its own."""
        pid, system, root = self._opened
        if pid != os.getpid():
            from fsspec.core import url_to_fs

            system, root = url_to_fs(self.url)
            self._opened = (os.getpid(), system, root)
        return system, root

    @contextmanager
    def _reaching(self, doing: str, name: str = "") -> Iterator[tuple[Any, str]]:
        """(file system, path), with whatever goes wrong told as one of ours; what is missing or there as it is."""
        try:
            system, root = self._open()
            yield system, f"{root}/{name}" if name else root
        except (FileNotFoundError, FileExistsError, CheckpointError):
            raise
        except Exception as error:  # each file system has its own
            where = f"{self.url}/{name}" if name else self.url
            number = (error.errno if isinstance(error, OSError) else None) or errno.EIO
            told = f"cannot {doing} {where}: {hide_secrets(quote_error(error))}"
            raise StoreError(told, errno=number, strerror=hide_secrets(str(error)), filename=where) from error

    def _entries(self, folder: str = "") -> list[dict[str, Any]]:
        with self._reaching("list", folder) as (system, path):
            system.invalidate_cache()
            try:
                return list(system.ls(path, detail=True))
            except (FileNotFoundError, NotADirectoryError):
                return []

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
            return bytes(system.cat_file(path))

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
            data = bytes(system.cat_file(path, start=start, end=part.size))
        if len(data) != part.size - start:
            told = f"{self.url}/{part.name} broke off: {len(data):,} of {part.size - start:,} bytes came"
            raise StoreError(told, errno=errno.EIO, strerror="broken off", filename=self.url)
        return data

    def put(self, name: str, data: bytes) -> None:
        """Write an object, in the place of one that this session wrote before."""
        with self._reaching("write", name) as (system, path):
            try:
                if self._protocol in _EXTRAS and _EXTRAS[self._protocol] != "sftp":
                    system.pipe_file(path, data)
                else:  # a file may be seen, and be left, half-written
                    system.makedirs(path.rpartition("/")[0], exist_ok=True)
                    system.pipe_file(f"{path}.tmp", data)
                    system.mv(f"{path}.tmp", path)
            except FileNotFoundError as error:
                raise self._no_bucket(name, error) from error

    def _no_bucket(self, name: str, error: OSError) -> StoreError:
        why = hide_secrets(str(error))
        told = f"cannot write {self.url}/{name}: {why}; make the bucket, or name another"
        return StoreError(told, errno=errno.ENOENT, strerror=why, filename=self.url)

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
        from fsspec.spec import AbstractFileSystem

        with self._reaching("create", name) as (system, path):
            if self._protocol not in _EXTRAS or _EXTRAS[self._protocol] == "sftp":
                system.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                system.pipe_file(path, data, mode="create")
            except FileExistsError:
                raise
            except FileNotFoundError as error:
                raise self._no_bucket(name, error) from error
            except (NotImplementedError, TypeError, ValueError):
                if system.exists(path):
                    raise FileExistsError(path) from None
                system.pipe_file(path, data)
                return False
            is_own = getattr(system, "async_impl", False) or type(system).pipe_file is not AbstractFileSystem.pipe_file
            if not is_own:
                return False  # that of fsspec looks first, and writes then
            try:
                system.pipe_file(path, data, mode="create")
            except FileExistsError:
                return True
            return False  # it took the condition, and did not heed it

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
