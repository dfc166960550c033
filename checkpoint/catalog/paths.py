"""Where a checkpoint is: names that are safe, the directory that was meant, and commands to copy that name both."""

from __future__ import annotations

import errno
import os
import re
import shlex
from pathlib import Path
from typing import Any

from checkpoint.errors import InvalidName, InvalidOption, JournalLost, quote
from checkpoint.remote.urls import note_url, place_of, url_at
from checkpoint.storage.condition import Fault

__all__ = ["Directory", "check_name", "command_line", "is_mirror", "lost_journal", "resolve_directory"]


_NAME = re.compile(r"[A-Za-z0-9_\-][A-Za-z0-9 ._\-]*")


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


def is_mirror(directory: Path) -> bool:
    """Whether the directory mirrors a URL."""
    return url_at(directory) is not None


def command_line(verb: str, name: str, directory: str) -> str:
    """What to type to have a command look at this checkpoint."""
    words = ["checkpoint", verb, name]
    if directory != str(resolve_directory(None)):
        words += ["--dir", directory]
    return shlex.join(words)


def lost_journal(path: Path, fault: Fault, name: str, directory: Path) -> JournalLost:
    """The error for a journal that is none, or that has lost what it held, with each way out."""
    check, clear = (command_line(verb, name, str(directory)) for verb in ("check", "clear"))
    ways = [fault.fix[0].upper() + fault.fix[1:]]
    if fault.is_altered:
        ways.append(f"to take the lines as they are, without their checksums: {check} --repair")
    elif fault.has_rest:
        ways.append(f"to go on with what is there: {check} --repair")
    ways.append(f"to forget all of it and compute it anew: {clear}")
    return JournalLost(
        f"checkpoint {name!r}: {path} {fault.what}. Nothing was run or written. {'; '.join(ways)}",
        errno=errno.ESTALE,
        strerror="not the journal that was written",
        filename=str(path),
    )


class Directory:
    """Where a checkpoint is: found when it is first asked for, so that `chdir` later changes nothing.

    Where no directory was given, $CHECKPOINT_DIR names it; a program that sets this to another value means another
    directory, and gets it.

    Args:
        given: as `checkpoint_dir`; None for the default.
    """

    def __init__(self, given: str | os.PathLike[str] | None) -> None:
        self._given = given
        self._found: dict[str, Path] = {}

    def find(self) -> Path:
        """The absolute path.

        Raises:
            InvalidOption: the argument names no directory.
        """
        named = "" if self._given is not None else os.environ.get("CHECKPOINT_DIR", "")
        found = self._found.get(named)
        return self._found.setdefault(named, resolve_directory(self._given)) if found is None else found
