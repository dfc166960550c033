"""What a crash may leave on disk: a recorder of file operations, and a model of a POSIX file system that replays them.

The model has two sides. The *cache* is what running programs see; a killed process leaves it as it is. The *medium* is
what a power cut leaves, and what may be on it is, between two syncs, any mixture of old and new. The rules are those of
ALICE ("All File Systems Are Not Created Equal", OSDI 2014, section 3) at their weakest, with CrashMonkey's (OSDI 2018)
crash points, which are all points between two operations here:

    contents   From the last fsync of a file on, its size is any that it has had, and each page (of 512 or 4096 bytes)
               is any that it has been, independently: writes are lost, kept, reordered, or torn at any byte; where the
               size was updated and the data was not, there are NULs. fsync and fdatasync settle data and size.
    names      From the last fsync of a directory on, each name in it means anything that it has meant, independently:
               creations, renames and unlinks are lost, kept or reordered, and a rename may come before the data of
               its file. fsync of a file settles no name. (ext4 does settle it, and keeps names in order: such states
               are among these, and are drawn often.)
    renames    Replacing a name is atomic, and the old name never goes before the new one is there; both may be there.

Every state is drawn by a `random.Random`, so that its seed leads back to it.
"""

from __future__ import annotations

import builtins
import io
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

import pytest

from checkpoint.storage import files

__all__ = [
    "Create",
    "Disk",
    "Event",
    "Exchange",
    "Link",
    "Mkdir",
    "Note",
    "Recorder",
    "Rename",
    "State",
    "Sync",
    "SyncDirectory",
    "Tree",
    "Truncate",
    "Unlink",
    "Write",
    "materialize",
    "read_tree",
    "torn_sizes",
]

DIRECTORY = -1
"""The node of every directory: what is in it is told by names alone."""

Tree = dict[str, bytes | None]
"""Contents by path from the root, parents first; None is a directory."""


# --- operations -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Event:
    """An operation that was done, on names relative to the root; `node` is a file, whatever its name."""

    path: str

    def apply(self, disk: Disk) -> None:
        raise NotImplementedError

    def __str__(self) -> str:
        return f"{type(self).__name__.lower()} {self.path or '.'}"


@dataclass(frozen=True, slots=True)
class Note(Event):
    """What the workload says at this point: no operation."""

    what: Any

    def apply(self, disk: Disk) -> None:
        pass

    def __str__(self) -> str:
        return f"    -- {self.what}"


@dataclass(frozen=True, slots=True)
class Create(Event):
    """A name for a new, empty file."""

    node: int

    def apply(self, disk: Disk) -> None:
        disk.contents[self.node] = [b""]
        disk.name(self.path, self.node)


@dataclass(frozen=True, slots=True)
class Write(Event):
    """One write, as far as the system took it."""

    node: int
    offset: int
    data: bytes

    def apply(self, disk: Disk) -> None:
        old = disk.contents[self.node][-1]
        before = old[: self.offset].ljust(self.offset, b"\0")
        disk.contents[self.node].append(before + self.data + old[self.offset + len(self.data) :])

    def torn(self, size: int) -> Write:
        """Its first bytes."""
        return Write(self.path, self.node, self.offset, self.data[:size])

    def __str__(self) -> str:
        shown = repr(self.data[:40])[1:] + ("…" if len(self.data) > 40 else "")
        return f"write {self.path} [{self.offset}:{self.offset + len(self.data)}] {shown}"


@dataclass(frozen=True, slots=True)
class Truncate(Event):
    """A change of size."""

    node: int
    size: int

    def apply(self, disk: Disk) -> None:
        disk.contents[self.node].append(disk.contents[self.node][-1][: self.size].ljust(self.size, b"\0"))

    def __str__(self) -> str:
        return f"truncate {self.path} to {self.size}"


@dataclass(frozen=True, slots=True)
class Sync(Event):
    """fsync or fdatasync of a file: data and size."""

    node: int

    def apply(self, disk: Disk) -> None:
        del disk.contents[self.node][:-1]
        disk.committed = disk.step


@dataclass(frozen=True, slots=True)
class SyncDirectory(Event):
    """fsync of a directory: the names in it."""

    def apply(self, disk: Disk) -> None:
        for path, meant in list(disk.names.items()):
            if path and parent_of(path) == self.path:
                del meant[:-1]
                if meant[0][1] is None:
                    del disk.names[path]
        disk.committed = disk.step


@dataclass(frozen=True, slots=True)
class Rename(Event):
    """A name goes over to another, which it replaces."""

    to: str

    def apply(self, disk: Disk) -> None:
        node = disk.node_at(self.path)
        assert node not in (None, DIRECTORY), "directories are not renamed here"
        disk.renames.append((disk.step, self.path, self.to))
        disk.name(self.to, node)
        disk.name(self.path, None)

    def __str__(self) -> str:
        return f"rename {self.path} to {self.to}"


@dataclass(frozen=True, slots=True)
class Exchange(Event):
    """Two names change files: neither is ever without one, and what a crash leaves of each is its own."""

    to: str

    def apply(self, disk: Disk) -> None:
        one, other = disk.node_at(self.path), disk.node_at(self.to)
        disk.name(self.to, one)
        disk.name(self.path, other)

    def __str__(self) -> str:
        return f"exchange {self.path} and {self.to}"


@dataclass(frozen=True, slots=True)
class Link(Event):
    """One more name for a file."""

    to: str

    def apply(self, disk: Disk) -> None:
        disk.name(self.to, disk.node_at(self.path))

    def __str__(self) -> str:
        return f"link {self.path} as {self.to}"


@dataclass(frozen=True, slots=True)
class Unlink(Event):
    """A name, or an empty directory, goes."""

    def apply(self, disk: Disk) -> None:
        disk.name(self.path, None)


@dataclass(frozen=True, slots=True)
class Mkdir(Event):
    """A new directory."""

    def apply(self, disk: Disk) -> None:
        disk.name(self.path, DIRECTORY)


def parent_of(path: str) -> str:
    """The directory of a path; "" is the root."""
    return path.rpartition("/")[0]


# --- the file system ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class State:
    """What a crash left, and how it differs from what the programs had done."""

    tree: Tree
    choices: tuple[str, ...]


class Disk:
    """Both sides of a file system.

    Attributes:
        contents: by node, all that the file has been since its last sync: the first is on the medium, the last in the
            cache.
        names: by path, (step, node or None) of all that it has meant since its directory's last sync, alike.
        renames: (step, from, to).
        step: how many events were applied.
        committed: the step of the last sync of anything: where a journalling file system keeps names in order, those
            before it are on the medium.
    """

    def __init__(self) -> None:
        self.contents: dict[int, list[bytes]] = {}
        self.names: dict[str, list[tuple[int, int | None]]] = {"": [(0, DIRECTORY)]}
        self.renames: list[tuple[int, str, str]] = []
        self.step = 0
        self.committed = 0

    @classmethod
    def holding(cls, tree: Tree) -> Disk:
        """All of it on the medium, as after a restart of the machine."""
        disk = cls()
        for node, (path, content) in enumerate(tree.items()):
            disk.names[path] = [(0, DIRECTORY if content is None else node)]
            if content is not None:
                disk.contents[node] = [content]
        return disk

    def copy(self) -> Disk:
        """Another one, that goes its own way."""
        other = Disk()
        other.contents = {node: list(been) for node, been in self.contents.items()}
        other.names = {path: list(meant) for path, meant in self.names.items()}
        other.renames, other.step, other.committed = list(self.renames), self.step, self.committed
        return other

    def apply(self, event: Event) -> None:
        """Do it, in the cache."""
        self.step += 1
        event.apply(self)

    def name(self, path: str, node: int | None) -> None:
        """From this step on the path means the node."""
        self.names.setdefault(path, [(0, None)]).append((self.step, node))

    def node_at(self, path: str) -> int | None:
        """What the path means in the cache."""
        return self.names[path][-1][1] if path in self.names else None

    def cached(self) -> Tree:
        """What programs see, and what is there after a kill."""
        names = {path: meant[-1][1] for path, meant in self.names.items()}
        return _tree(names, {node: been[-1] for node, been in self.contents.items()})

    def after_power_cut(self, random: Random) -> State:
        """One of the states that a power cut at this point may leave."""
        names = self._draw_names(random)
        choices = []
        for path, meant in sorted(self.names.items()):
            if names[path] != meant[-1][1]:
                what = "absent" if names[path] is None else "the directory" if names[path] == DIRECTORY else "present"
                at = next(step for step, node in meant if node == names[path])
                choices.append(f"{path} is {what}" + (f", as from step {at} on" if at else ""))
        contents = {}
        every = random.choices(("kept", "lost", None), (1, 1, 6))[0]
        for path, node in sorted(names.items()):
            if node is not None and node != DIRECTORY and node not in contents:
                contents[node], how = _draw_content(self.contents[node], random, every)
                if how:
                    choices.append(f"{path} {how}")
        return State(_tree(names, contents), tuple(choices))

    def _draw_names(self, random: Random) -> dict[str, int | None]:
        style = random.choices(("kept", "in order", "each by itself", "lost"), (3, 3, 3, 1))[0]
        until = {"kept": self.step, "in order": random.randint(self.committed, self.step)}.get(style, 0)
        chosen = {}
        for path, meant in self.names.items():
            possible = [place for place, (step, _) in enumerate(meant) if step <= until or not place]
            chosen[path] = random.randrange(len(meant)) if style == "each by itself" else possible[-1]
        changed = style == "each by itself"
        while changed:  # until no old name is gone whose new one is not there
            changed = False
            for step, old, new in self.renames:
                if old in chosen and self.names[old][chosen[old]][0] >= step and new in chosen:
                    least = [place for place, (at, _) in enumerate(self.names[new]) if at >= step]
                    if least and chosen[new] < least[0]:
                        chosen[new], changed = least[0], True
        return {path: self.names[path][place][1] for path, place in chosen.items()}


def _tree(names: dict[str, int | None], contents: dict[int, bytes]) -> Tree:
    tree: Tree = {}
    for path in sorted(names):
        node = names[path]
        if node is not None and path and (not parent_of(path) or parent_of(path) in tree):
            tree[path] = None if node == DIRECTORY else contents[node]
    return tree


def _draw_content(been: list[bytes], random: Random, every: str | None) -> tuple[bytes, str]:
    """(content, how it differs from the last) of a file that has been all these since its last sync."""
    first, last = been[0], been[-1]
    if len(been) == 1:
        return last, ""
    style = (
        every or random.choices(("kept", "lost", "a prefix", "torn", "NUL-filled", "reordered"), (2, 2, 2, 4, 3, 5))[0]
    )
    place = random.randrange(len(been) - 1)
    old, new = been[place], been[place + 1]
    if style == "kept":
        return last, ""
    if style == "lost":
        content = first
    elif style == "a prefix":
        content = old
    elif style == "torn":
        at = _cut(old, new, random)
        content = new[:at] + old[at:]
    elif style == "NUL-filled":
        at = _cut(old, new, random)
        end = random.choice((len(new), random.randint(at, max(at, len(new)))))
        content = new[:at] + bytes(end - at) + new[end:]
    else:
        content = _reordered(been, random)
    if content == last:
        return last, ""
    return content, f"{style}: {len(content)} bytes, of {len(first)} synced and {len(last)} written"


def _cut(old: bytes, new: bytes, random: Random) -> int:
    """Where a change from old to new is torn: at any byte, often at that of a page."""
    start = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), None)
    if start is None:
        start = min(len(old), len(new))
    at = random.randint(start, max(start, len(new)))
    page = at - at % random.choice((512, 4096))
    return page if page >= start and random.random() < 0.5 else at


def _reordered(been: list[bytes], random: Random) -> bytes:
    size = len(random.choice(been))
    page = random.choice((512, 4096))
    parts = []
    for at in range(0, size, page):
        parts.append(random.choice(been)[at : at + page].ljust(page, b"\0"))
    return b"".join(parts)[:size]


def materialize(tree: Tree, root: Path) -> None:
    """Make it real, below a directory that is there and empty."""
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def read_tree(root: Path) -> Tree:
    """What is really there."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        found[path.relative_to(root).as_posix()] = None if path.is_dir() else path.read_bytes()
    return dict(sorted(found.items()))


# --- the recorder ---------------------------------------------------------------------------------------------------


class Recorder:
    """Records what this process does to files below a directory, by any thread, in the order in which it is done.

    It stands in for functions of `os` while it is entered; each operation and its event are one step under a lock. What
    writes by other ways (a file of `open` that is not below the root, `mmap`, `sendfile`) is not seen: leaving it
    asserts that the events, replayed, give what is really there.

    Args:
        root: the directory.
        disk: what is on it, and how much of that is on the medium; default: all.

    Attributes:
        base: the disk before the first event.
        events: what was done, and what the workload noted.
    """

    def __init__(self, root: Path, disk: Disk | None = None) -> None:
        self.root = os.path.realpath(root)
        self.base = disk.copy() if disk is not None else Disk.holding(read_tree(root))
        self.events: list[Event] = []
        self._lock = threading.RLock()
        self._patch = pytest.MonkeyPatch()
        self._nodes: dict[tuple[int, int], tuple[int, str]] = {}
        self._directories: dict[tuple[int, int], str] = {}
        self._held: list[int] = []  # descriptors that keep inode numbers from being used again
        self._next = max(self.base.contents, default=-1) + 1
        self._real_exchange = files.exchange
        self._real = {name: getattr(os, name) for name in _RECORDED if hasattr(os, name)}

    def note(self, what: Any) -> None:
        """The workload says something at this point."""
        self._add(Note("", what))

    def __enter__(self) -> Self:
        self._know_directory("")
        for path, meant in self.base.names.items():
            node = meant[-1][1]
            if node == DIRECTORY:
                self._know_directory(path)
            elif node is not None:
                self._know(path, node)
        for name in self._real:
            self._patch.setattr(os, name, getattr(self, f"_{name}"))
        self._patch.setattr(files, "exchange", self._exchange)
        self._patch.setattr(builtins, "open", self._builtin_open)
        self._patch.setattr(io, "open", self._builtin_open)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._patch.undo()
        for fd in self._held:
            os.close(fd)
        if error is None:
            disk = self.base.copy()
            for event in self.events:
                disk.apply(event)
            assert disk.cached() == read_tree(Path(self.root)), "something was done that was not recorded"

    # what is known

    def _add(self, event: Event) -> None:
        with self._lock:
            self.events.append(event)

    def _relative(self, path: Any) -> str | None:
        """The path from the root, or None where it is not below it."""
        if isinstance(path, int):
            return None
        full = os.path.join(os.path.realpath(os.path.dirname(os.fspath(path))), os.path.basename(os.fspath(path)))
        return full[len(self.root) + 1 :] if full.startswith(self.root + "/") else None

    def _know(self, path: str, node: int) -> None:
        fd = self._real["open"](os.path.join(self.root, path), os.O_RDONLY)
        self._held.append(fd)
        known = os.fstat(fd)
        self._nodes[known.st_dev, known.st_ino] = (node, path)

    def _know_directory(self, path: str) -> None:
        known = os.stat(os.path.join(self.root, path))
        self._directories[known.st_dev, known.st_ino] = path

    def _file(self, fd: int) -> tuple[int, str] | None:
        """(node, first name) of a file of ours."""
        known = os.fstat(fd)
        return self._nodes.get((known.st_dev, known.st_ino)) if stat.S_ISREG(known.st_mode) else None

    # the functions it stands in for

    def _open(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        name = self._relative(path)
        if name is None or not flags & (os.O_CREAT | os.O_TRUNC):
            return self._real["open"](path, flags, mode, **options)  # type: ignore[no-any-return]
        with self._lock:
            existed = os.path.lexists(path)
            fd: int = self._real["open"](path, flags, mode, **options)
            if not existed:
                node, self._next = self._next, self._next + 1
                self._know(name, node)
                self._add(Create(name, node))
            elif flags & os.O_TRUNC and (known := self._file(fd)):
                self._add(Truncate(name, known[0], 0))
            return fd

    def _write(self, fd: int, data: Any) -> int:
        if (known := self._file(fd)) is None:
            return self._real["write"](fd, data)  # type: ignore[no-any-return]
        with self._lock:
            written: int = self._real["write"](fd, data)
            offset = os.lseek(fd, 0, os.SEEK_CUR) - written
            self._add(Write(known[1], known[0], offset, bytes(data)[:written]))
            return written

    def _pwrite(self, fd: int, data: Any, offset: int) -> int:
        with self._lock:
            written: int = self._real["pwrite"](fd, data, offset)
            if known := self._file(fd):
                self._add(Write(known[1], known[0], offset, bytes(data)[:written]))
            return written

    def _ftruncate(self, fd: int, size: int) -> None:
        with self._lock:
            self._real["ftruncate"](fd, size)
            if known := self._file(fd):
                self._add(Truncate(known[1], known[0], size))

    def _truncate(self, path: Any, size: int) -> None:
        fd = self._real["open"](path, os.O_WRONLY)
        try:
            self._ftruncate(fd, size)
        finally:
            os.close(fd)

    def _fsync(self, fd: int) -> None:
        self._synced("fsync", fd)

    def _fdatasync(self, fd: int) -> None:
        self._synced("fdatasync", fd)

    def _synced(self, call: str, fd: int) -> None:
        with self._lock:
            self._real[call](fd)
            known = os.fstat(fd)
            place = (known.st_dev, known.st_ino)
            if stat.S_ISDIR(known.st_mode) and place in self._directories:
                self._add(SyncDirectory(self._directories[place]))
            elif place in self._nodes:
                node, path = self._nodes[place]
                self._add(Sync(path, node))

    def _rename(self, source: Any, target: Any, **options: Any) -> None:
        old, new = self._relative(source), self._relative(target)
        with self._lock:
            self._real["rename"](source, target, **options)
            assert (old is None) == (new is None), "a file was moved into the directory or out of it"
            if old is not None and new is not None:
                self._add(Rename(old, new))

    _replace = _rename

    def _exchange(self, new: Any, old: Any) -> bool:
        """As `files.exchange`, which asks the C library."""
        one, other = self._relative(new), self._relative(old)
        with self._lock:
            is_done = self._real_exchange(new, old, unlink=lambda path: None)
            if is_done and one is not None and other is not None:
                self._add(Exchange(one, other))
        if is_done:
            os.unlink(new)
        return is_done

    def _link(self, source: Any, target: Any, **options: Any) -> None:
        old, new = self._relative(source), self._relative(target)
        with self._lock:
            self._real["link"](source, target, **options)
            if old is not None and new is not None:
                self._add(Link(old, new))

    def _unlink(self, path: Any, **options: Any) -> None:
        name = self._relative(path)
        with self._lock:
            self._real["unlink"](path, **options)
            if name is not None:
                self._add(Unlink(name))

    _remove = _unlink

    def _rmdir(self, path: Any, **options: Any) -> None:
        name = self._relative(path)
        with self._lock:
            self._real["rmdir"](path, **options)
            if name is not None:
                self._add(Unlink(name))

    def _mkdir(self, path: Any, *mode: Any, **options: Any) -> None:
        name = self._relative(path)
        with self._lock:
            self._real["mkdir"](path, *mode, **options)
            if name is not None:
                self._know_directory(name)
                self._add(Mkdir(name))

    def _fdopen(self, fd: int, mode: str = "r", *args: Any, **options: Any) -> Any:
        if self._file(fd) is None or not set(mode) & set("wax+"):
            return self._real["fdopen"](fd, mode, *args, **options)
        return _written_by_os(fd, mode, **options)

    def _builtin_open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not set(mode) & set("wax+") or isinstance(file, int) or self._relative(file) is None:
            return _REAL_OPEN(file, mode, *args, **options)
        how = {"w": os.O_CREAT | os.O_TRUNC, "a": os.O_CREAT | os.O_APPEND, "x": os.O_CREAT | os.O_EXCL, "r": 0}
        fd = os.open(file, (os.O_RDWR if "+" in mode else os.O_WRONLY) | how[mode.strip("bt+")] | os.O_CLOEXEC, 0o666)
        return _written_by_os(fd, mode, **options)


_REAL_OPEN = open
_RECORDED = (
    "open", "write", "pwrite", "ftruncate", "truncate", "fsync", "fdatasync", "rename", "replace", "link", "unlink",
    "remove", "rmdir", "mkdir", "fdopen",
)  # fmt: skip


class _Raw(io.RawIOBase):
    """A descriptor that is written to by `os.write`, where Python's own files write past it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return os.write(self._fd, data)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._fd)


def _written_by_os(fd: int, mode: str, **options: Any) -> Any:
    assert "+" not in mode, "a file that is read and written through Python's buffers cannot be recorded"
    buffer = io.BufferedWriter(_Raw(fd))
    options.pop("buffering", None)
    return buffer if "b" in mode else io.TextIOWrapper(buffer, **options)


def torn_sizes(event: Event, random: Random, count: int) -> Iterator[int]:
    """How many bytes of a write a kill in the middle of it may leave: at the page's boundaries, and any."""
    if not isinstance(event, Write) or len(event.data) < 2:
        return
    start, end = event.offset, event.offset + len(event.data)
    pages = [at - start for at in range(start - start % 4096 + 4096, end, 4096)]
    yield from random.sample(pages, min(len(pages), count))
    for _ in range(count):
        yield random.randrange(1, len(event.data))
