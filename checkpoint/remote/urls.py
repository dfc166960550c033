"""Which local directory mirrors a URL: URLs are checked, remembered beside the journals, and shown without secrets.

The promise: a secret in a URL is refused, or hidden where it is shown; a note in a directory is believed only where it
is this user's own. fsspec does the rest, with its own configuration, and is imported when a URL is first used.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import quote as escape
from urllib.parse import unquote

from checkpoint.errors import CheckpointError, ExtraNeeded, InvalidOption, quote
from checkpoint.storage.files import read_object, replacing

__all__ = ["EXTRAS", "PROTOCOLS", "has_sign", "hide_secrets", "note_url", "place_of", "remember", "tell_sign", "url_at"]


log = logging.getLogger("checkpoint")
_SIGN = ".mirror.json"
_LONGEST_NOTE = 1 << 16
_WRITE = "give PROTOCOL://BUCKET/PREFIX"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://(.*)", re.DOTALL)  # two letters at least: a Windows drive is no URL

_MANGLED = re.compile(  # pathlib takes a slash away; and a chain of protocols is no URL of ours
    r"(?:s3a?|gs|gcs|az|abfss?|adl|sftp|ssh|memory):/[^/]|[A-Za-z][A-Za-z0-9+.\-]+:/+[^/]*@|[^/]*[^/]{2}://",
    re.IGNORECASE,
)

_PORT = re.compile(r"[^:]*:[0-9]{0,5}")
_QUERY = re.compile(r"[?&#;][^/=]*=")
_SECRETS = re.compile(r"(?<=://)[^\s/@:]*:[^\s'\"]*@|(?<=[?&])([A-Za-z0-9_.%\-]+)=[^\s&'\"<>]+")

EXTRAS = {
    **dict.fromkeys(("s3", "s3a"), "s3"),
    **dict.fromkeys(("gs", "gcs"), "gcs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "azure"),
    **dict.fromkeys(("sftp", "ssh"), "sftp"),
}

_HOSTS = frozenset(
    {"sftp", "ssh", "az", "abfs", "abfss", "adl", "file", "local"}
)  # a user's name may stand before an @

_NAMES = {  # of an extra: how its providers let a bucket be called, and in which words
    "s3": (
        re.compile(
            r"(?!.*\.\.)(?![0-9.]+\Z)[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]|arn:.+"
        ),  # old ones are so long
        "bucket",
        "3 to 63 letters, digits, dots and hyphens, with a letter or digit at both ends",
    ),
    "gcs": (
        re.compile(r"(?!goog|.*\.\.)(?![0-9.]+\Z)[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
        "bucket",
        "3 to 63 small letters, digits, dots, hyphens and underscores, with a letter or digit at both ends",
    ),
    "azure": (
        re.compile(r"(?=.{3,63}\Z)[a-z0-9]+(?:-[a-z0-9]+)*|\$[a-z]+"),
        "container",
        "3 to 63 small letters and digits, with single hyphens between them",
    ),
}
_HOST = re.compile(r"[A-Za-z0-9._-]+(?::([0-9]+))?")

PROTOCOLS = frozenset({"memory", *EXTRAS})
"""Those that a URL may have besides that of files: no other is opened, whatever fsspec has."""
_urls: dict[str, str] = {}  # of mirrors that this process has named
_told: set[str] = set()  # URLs where two writers are not noticed, and directories that say what is not believed
_usable: set[str] = set()  # protocols


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
    _check_bucket(protocol, rest.partition("/")[0], given)
    _check_protocol(protocol, given)
    parts = [part for part in rest.split("/") if part]
    if not parts or any(part in (".", "..") for part in parts):
        raise InvalidOption(f"checkpoint_dir is {quote(given)}; {_WRITE}, without . or ..")
    root = Path("checkpoints" if _URL.fullmatch(beside) else beside or "checkpoints")
    return root.joinpath(
        protocol, *[escape(part, safe=" ._-@=+,") for part in parts]
    ), f"{protocol}://{'/'.join(parts)}"


def _check_bucket(protocol: str, bucket: str, given: str) -> None:
    """Refuse a bucket or host that cannot be: else its client looks for credentials first, and tries again and again.

    Raises:
        InvalidOption: saying how the provider lets them be called.
    """
    if protocol in ("memory", "adl") or protocol not in EXTRAS:
        return
    if EXTRAS[protocol] == "sftp":
        found = _HOST.fullmatch(bucket.rpartition("@")[2])
        if found is None or not 0 < int(found[1] or 22) < 1 << 16:
            raise InvalidOption(
                f"checkpoint_dir is {quote(given)}, whose host cannot be; give {protocol}://USER@HOST:PORT/DIRECTORY, "
                "where USER@ and :PORT (1 to 65535) may be left out"
            )
        return
    pattern, what, rule = _NAMES[EXTRAS[protocol]]
    if not pattern.fullmatch(bucket.partition("@")[0]):
        raise InvalidOption(
            f"checkpoint_dir is {quote(given)}, but no {what} can be called {quote(bucket)}: their names are {rule}; "
            f"{_WRITE}"
        )


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
    extra = EXTRAS.get(protocol)
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
