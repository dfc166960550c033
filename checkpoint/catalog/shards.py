"""Shards: which of many tasks an item belongs to, and what the files of each are called.

The promise: equal keys are of one shard, in every process, on every machine, with every Python; the n shards of a
checkpoint hold each key once; and no user's name is ever taken for a shard's.

A shard is written (i, n). (0, 1) is all: the checkpoint's own journals.
"""

from __future__ import annotations

import logging
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import gcd
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from checkpoint import clock
from checkpoint.errors import InvalidOption, quote
from checkpoint.outcomes import NOT_YET
from checkpoint.values.keys import Key, digest_of, identity

__all__ = ["ALL", "Shard", "ShardOption", "Share", "hash_of", "locks_in", "shard_of", "shards_in", "split_prefix"]

ShardOption = tuple[int, int] | Literal["slurm"]

log = logging.getLogger("checkpoint")
_MOST = 100_000
_FILE = re.compile(r"(.+)_(?:results\.jsonl|errors\.jsonl|unsaved\.jsonl|meta\.json)")
_LOCK = re.compile(r"\.(.+@.+)\.lock")
_PREFIX = re.compile(r"(.+)@(0|[1-9][0-9]{0,5})-of-([1-9][0-9]{0,5})")
_PAIR = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")
_WRITE = 'write shard=(i, n) with ints 0 <= i < n, such as shard=(3, 100), or shard="slurm" in a Slurm array'


def hash_of(key: Key) -> int:
    """What decides on its shard: the same for keys that are equal as in a dict."""
    return digest_of(identity(key))


class Shard(NamedTuple):
    """The part with this number, from 0, `of` so many parts of all keys."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, key: Key) -> bool:
        """Whether the key is one of its own."""
        return hash_of(key) % self.of == self.number

    def meets(self, other: Shard) -> bool:
        """Whether a key can be of both."""
        return (self.number - other.number) % gcd(self.of, other.of) == 0

    def prefix(self, name: str) -> str:
        """What its files' names begin with; `@` is not legal in a checkpoint's name."""
        return name if self.of == 1 else f"{name}@{self.number}-of-{self.of}"


ALL: Final = Shard(0, 1)
"""Every key, in the checkpoint's own journals."""


def split_prefix(prefix: str) -> tuple[str, Shard]:
    """The checkpoint's name and the shard that files with this prefix are of."""
    found = _PREFIX.fullmatch(prefix)
    if found is not None:
        shard = Shard(int(found[2]), int(found[3]))
        if 1 < shard.of <= _MOST and shard.number < shard.of:
            return found[1], shard
    return prefix, ALL


def shards_in(directory: Path, name: str) -> set[Shard]:
    """The shards of a checkpoint that have files, its own journals not counted.

    Raises:
        OSError: the directory cannot be read.
    """
    return set(_all_in(directory).get(name, ()))


def locks_in(directory: Path, name: str) -> list[Shard]:
    """The shards of a checkpoint that have a lock file: that somebody has written at some time."""
    found = [match[1] for file in os.listdir(directory) if (match := _LOCK.fullmatch(file))]
    return sorted(shard for owner, shard in map(split_prefix, found) if owner == name and shard != ALL)


_listing: tuple[tuple[str, int, int], dict[str, set[Shard]]] | None = None
_SETTLED = 0.1  # seconds; two changes of a directory that are nearer may have one modification time


def _all_in(directory: Path) -> dict[str, set[Shard]]:
    """The shards of each checkpoint. One listing answers for all of them until the directory is modified."""
    global _listing
    try:
        state = os.stat(directory)
    except OSError:  # what matters is whether it can be listed
        of, modified = None, 0.0
    else:
        of, modified = (str(directory), state.st_ino, state.st_mtime_ns), state.st_mtime_ns / 1e9
    known = _listing
    if known is not None and known[0] == of:
        return known[1]
    began = clock.now()
    found: dict[str, set[Shard]] = {}
    for file in os.listdir(directory):
        if "@" in file and (match := _FILE.fullmatch(file.removeprefix("."))):
            owner, shard = split_prefix(match[1])
            if shard != ALL:
                found.setdefault(owner, set()).add(shard)
    if of is not None and began - modified > _SETTLED:
        _listing = (of, found)
    return found


# --- which one is meant ----------------------------------------------------------------------------------------------


def shard_of(option: ShardOption | None, environ: Mapping[str, str] = os.environ) -> Shard:
    """The shard that an option means; None obeys ``$CHECKPOINT_SHARD`` (``3/100`` or ``slurm``), and else is all.

    Raises:
        InvalidOption: it means none; the message says what to write.
    """
    if option is None:
        told = environ.get("CHECKPOINT_SHARD", "").strip()
        return _told(told, environ) if told else ALL
    if option == "slurm":
        return _of_slurm(environ)
    if not (isinstance(option, tuple | list) and len(option) == 2 and all(type(part) is int for part in option)):
        raise InvalidOption(f"shard is {quote(option)}; {_WRITE}")
    return _checked(Shard(*option), f"shard is {quote(option)}")


def _told(text: str, environ: Mapping[str, str]) -> Shard:
    if text == "slurm":
        return _of_slurm(environ)
    pair = _PAIR.fullmatch(text)
    if pair is None:
        raise InvalidOption(f"$CHECKPOINT_SHARD is {quote(text)}; set it to i/n, such as 3/100, or to slurm")
    return _checked(Shard(int(pair[1]), int(pair[2])), f"$CHECKPOINT_SHARD is {quote(text)}")


def _checked(shard: Shard, what: str) -> Shard:
    if not 0 <= shard.number < shard.of:
        last = f"; the shards of {shard.of} are 0 to {shard.of - 1}" if shard.of > 0 else ""
        raise InvalidOption(f"{what}{last}; {_WRITE}")
    if shard.of > _MOST:
        raise InvalidOption(f"{what}: more than {_MOST:,} shards; give each task more items")
    return shard


def _of_slurm(environ: Mapping[str, str]) -> Shard:
    """The place of this task in its Slurm array.

    The variables are those of https://slurm.schedmd.com/job_array.html. An array with gaps has no such place: what one
    task leaves undone when others are left out would belong to none.
    """
    fix = "submit it as an array without gaps (sbatch --array=0-99), or write shard=(i, n)"
    names = [f"SLURM_ARRAY_TASK_{part}" for part in ("ID", "COUNT", "MIN", "MAX")]
    if missing := [name for name in names if name not in environ]:
        raise InvalidOption(f'shard="slurm", and ${missing[0]} is not set: this is no task of a Slurm array; {fix}')
    step_told = environ.get("SLURM_ARRAY_TASK_STEP", "1")
    try:
        task, count, first, last = (int(environ[name]) for name in names)
        step = int(step_told)
        fits = step > 0 and first + (count - 1) * step == last and (task - first) % step == 0
    except ValueError:
        fits = False
    if not fits or not first <= task <= last:
        shown = ", ".join(f"{name.removeprefix('SLURM_ARRAY_TASK_')} {quote(environ[name])}" for name in names)
        raise InvalidOption(f'shard="slurm", and the array has gaps ({shown}, STEP {quote(step_told)}); {fix}')
    return _checked(Shard((task - first) // step, count), f'shard="slurm" is task {task}')


# --- which items are its own -----------------------------------------------------------------------------------------


class Share:
    """The items of an input whose keys are of one shard; it is read as lazily, and as often, as the input is.

    Args:
        items: all of them.
        key_of: what names the item at a place.
        shard: whose items are wanted.

    Attributes:
        places: of those that were drawn, where each is in the whole input.
    """

    def __init__(self, items: Iterable[Any], key_of: Callable[[int, Any], Key], shard: Shard) -> None:
        self._items = items
        self._key_of = key_of
        self._shard = shard
        self.places = array("q")

    def __iter__(self) -> Iterator[Any]:
        place = own = 0
        for item in self._items:
            if item is NOT_YET:
                yield item
                continue
            if self._shard.has(self._key_of(place, item)):
                self.places[own : own + 1] = array("q", (place,))
                own += 1
                yield item
            place += 1
