"""Where checkpoints are: which a directory holds, the files of each, and who is writing.

The promise: it only looks. No lock is taken, since trying it would refuse a writer that comes just now.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import socket
from pathlib import Path
from typing import Any

from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.paths import check_name, command_line, resolve_directory
from checkpoint.catalog.registry import open_checkpoint
from checkpoint.catalog.shards import ALL, Shard, shards_in, split_prefix
from checkpoint.errors import InvalidName, StoreError
from checkpoint.remote.objects import names_under
from checkpoint.remote.urls import url_at
from checkpoint.storage.files import store_error
from checkpoint.storage.journal import Journal
from checkpoint.storage.lock import Lock

__all__ = [
    "aside_name",
    "command_line",
    "locate",
    "names_in",
    "parts_of",
    "paths_of",
    "size_of",
    "writer_of",
]

_SHOWN = 10
_FILE = re.compile(r"([^.].*)_(?:results\.jsonl|errors\.jsonl|meta\.json)")


def names_in(directory: Path) -> list[str]:
    """The names of the checkpoints in a directory, and in the store that it mirrors; none where it is not there.

    Raises:
        StoreError: it cannot be read.
    """
    try:
        files = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        files = []
    except OSError as error:
        raise store_error(error, "cannot read", directory) from error
    found = {match[1] for file in files if (match := _FILE.fullmatch(file))}
    names = {split_prefix(prefix)[0] for prefix in found.union(names_under(directory))}
    return sorted(name for name in names if _is_name(name))


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidName:
        return False
    return True


def locate(name: str, checkpoint_dir: str | os.PathLike[str] | None = None) -> Path:
    """The directory, if the checkpoint is there; what the store has that it mirrors is brought first.

    Raises:
        InvalidName: as for a runner.
        StoreError: it is not; the message lists those that are, and the one that may be meant.
    """
    directory = resolve_directory(checkpoint_dir)
    check_name(name)
    if url_at(directory) is not None:
        user = _User()  # it is held: one that is collected is detached by a thread, at any time
        open_checkpoint(name, directory, user)()
    try:
        if any(_is_there(path) for path in (*paths_of(name, directory), directory / f"{name}_meta.json")):
            return directory
        if len(parts_of(name, directory)) > 1:
            return directory
    except OSError as error:
        raise store_error(error, "cannot read", directory) from error
    there = [other for other in names_in(directory) if other != name]  # a store may have an owner of it, and no more
    shown = ", ".join(there[:_SHOWN]) + (", …" if len(there) > _SHOWN else "")
    hint = f"there are: {shown}" if there else "nor is there any other; name the directory by --dir (checkpoint_dir=)"
    named = _FILE.fullmatch(name)
    owner = split_prefix(named[1])[0] if named else ""
    meant = [owner] if owner in there else difflib.get_close_matches(name, there, 1)
    did = f"did you mean {meant[0]!r}? " if meant else ""
    raise StoreError(
        f"there is no checkpoint {name!r} in {url_at(directory) or directory}; {did}{hint}",
        errno=errno.ENOENT,
        strerror="no such checkpoint",
        filename=str(directory),
    )


class _User:
    """Who opens a checkpoint, which brings what it mirrors."""

    checkpoint: Checkpoint


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def parts_of(name: str, directory: Path) -> dict[Shard, str]:
    """What the names of its files begin with: of its own journals, and of those of each shard that has files."""
    try:
        shards = shards_in(directory, name)
    except (FileNotFoundError, NotADirectoryError):
        shards = set()
    return {shard: shard.prefix(name) for shard in (ALL, *sorted(shards, key=lambda shard: (shard.of, shard)))}


def paths_of(name: str, directory: Path) -> tuple[Path, Path, Path]:
    """Those of the results, the errors, and the values that could not be encoded."""
    return directory / f"{name}_results.jsonl", directory / f"{name}_errors.jsonl", directory / f".{name}_unsaved.jsonl"


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0


def aside_name(path: str | Path) -> str:
    """What the file is called that keeps what repairs set aside of a journal."""
    return Journal(Path(path)).aside.name


def writer_of(directory: Path, name: str) -> dict[str, Any] | None:
    """Who holds the writer's lock; {} where that cannot be told.

    Linux lists the locks of the processes that can be seen from here; those of other containers cannot.
    """
    lock = Lock(directory / f".{name}.lock", name)
    try:
        inode = lock.path.lstat().st_ino
    except OSError:
        return None
    try:
        held = re.search(rf" FLOCK +ADVISORY +WRITE .*:{inode} ", Path("/proc/locks").read_text("ascii", "replace"))
    except OSError:
        return {}
    owner = lock.owner()
    if held:
        paused = {"paused": owner["paused"]} if "paused" in owner else {}
        return {part: owner.get(part) for part in ("pid", "host", "since")} | paused
    return None if owner.get("host") in (None, socket.gethostname()) else {}
