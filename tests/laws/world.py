"""A world of machines and one store, for `test_machines.py`: nothing in it depends on a clock, a thread or chance.

Time passes at remote calls only, by the latency of the store, and where a history says so. Leases lapse by it. Threads
are left out: each upload is a step of its own. Tokens are drawn from a seed. So a history that fails, fails again.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest

from checkpoint import CheckpointedRunner, clock, locks
from checkpoint.catalog.registry import REGISTRY
from checkpoint.remote import local_copy, objects, session, uploader
from checkpoint.storage.lock import Lock
from checkpoint.storage.record import forgets_damage, is_intact

__all__ = ["DEAD", "Event", "Fault", "Killed", "Machine", "World", "void"]

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")

DEAD = 61.0
"""Seconds without a word after which a machine is taken for dead."""

_CALLS = ("put", "create", "read", "look", "owners", "fetch", "delete")
_BUCKETS = itertools.count()
_BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(BaseException):
    """The process is no more: nothing else is done by it."""


class Fault(NamedTuple):
    """What happens at a remote call: the machine is killed, or others work meanwhile, before or after it."""

    call: int
    is_after: bool
    meanwhile: int | None


class Event:
    """A value that a machine saved, or a key that it cleared.

    Attributes:
        is_done: whether it is in the machine's journal.
        is_there: whether it is in the store: it was seen there, or its machine was told so.
        arrived: when that was known.
        binds: whether nothing that is older may be seen once it is there.
        is_lost: whether nobody need have it: the machine's directory was restored, or its disk damaged the line.
    """

    def __init__(self, world: World, machine: Machine, key: str, value: int | None) -> None:
        self.machine, self.key, self.value = machine, key, value
        self.moment, self.epoch = next(world.moments), machine.epoch
        self.is_done = self.is_there = self.is_lost = False
        self.binds = self.epoch >= world.whole  # else it was taken over, and what it saves stands before the whole
        self.arrived = 0

    def is_before(self, other: Event) -> bool:
        """Whether it is older, for every reader; of two that began at one moment either may come first."""
        if self.epoch == other.epoch:
            return self.machine is other.machine and self.moment < other.moment
        return self.epoch < other.epoch

    def __repr__(self) -> str:
        return str({**vars(self), "machine": self.machine.directory.name})


class World:
    """One store, and what passes between it and machines.

    Args:
        root: where directories are made.
        heeds: whether the store heeds conditions.
        latency: seconds of each call.
        seed: of what is drawn: tokens.

    Attributes:
        whole: the session that wrote the last whole.
        cleared: nothing that was saved in a session before this one is there any more.
        hides: whether listings are late: a machine does not see what another one writes meanwhile.
    """

    def __init__(self, root: Path, *, heeds: bool, latency: float, seed: int) -> None:
        self.url = f"memory://world-{next(_BUCKETS)}/prefix"
        self.root, self.heeds, self.latency = root, heeds, latency
        self.time = 1000.0
        self.today = 1_800_000_000.0  # as machines tell it
        self.moments = itertools.count(1)
        self.acting: list[Machine] = []
        self.locks: list[Lock] = []
        self.events: list[Event] = []
        self.whole = self.cleared = 0
        self.hides: int | None = None
        self._written: dict[str, tuple[int, Machine]] = {}
        self._late: list[Callable[[], object]] = []
        self._chance = random.Random(seed)
        self._patches = ExitStack()

    def open(self, on_aside: Callable[[], None]) -> None:
        """From here on the library is in this world."""
        enter = self._patches.enter_context

        def patch(owner: Any, name: str, value: Any) -> None:
            enter(mock.patch.object(owner, name, value))

        for name in _CALLS:
            patch(objects.Objects, name, self._reaching(getattr(objects.Objects, name), name))
        patch(objects.Objects, "_entries", self._listing(objects.Objects._entries))
        if not self.heeds:
            system = type(fsspec.filesystem("memory"))
            write = system.pipe_file
            patch(system, "pipe_file", lambda self, path, data, mode="": write(self, path, data))
        self._keep_time(patch)
        make, waits = Lock.__init__, nullcontext()

        def made(lock: Lock, *given: Any) -> None:
            make(lock, *given)
            self.locks.append(lock)

        patch(Lock, "__init__", made)
        patch(locks, "elsewhere", lambda act, name: self._late.append(act))
        patch(os, "urandom", lambda size=1: self._chance.randbytes(size))
        for module in (local_copy, uploader):
            patch(module, "telling", lambda asked: waits)
        patch(session.Session, "start", void)
        patch(session.Session, "_wait", _wait_at_once)
        patch(local_copy, "_LOOK_EVERY", -1.0)
        patch(local_copy, "_LOOK_FAILING", -1.0)
        patch(local_copy.LocalCopy, "pull", self._pulling(local_copy.LocalCopy.pull))
        patch(REGISTRY, "maintain", void)
        patch(os, "fsync", void)
        enter(mock.patch.object(os, "fdatasync", void, create=True))
        log = logging.getLogger("checkpoint")
        patch(log, "handlers", [_Aside(on_aside)])
        patch(log, "propagate", False)
        enter(mock.patch.dict(os.environ, XDG_CONFIG_HOME=str(self.root / "configuration")))
        enter(locks.alone())

    def _keep_time(self, patch: Callable[[Any, str, Any], None]) -> None:
        world = self

        class Now(datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return _BEGIN + timedelta(seconds=world.time)

        patch(memory, "datetime", Now)
        patch(clock, "monotonic", lambda: self.time)
        patch(clock, "now", lambda: self.today)
        patch(clock, "sleep", self.pass_time)
        patch(clock.Stamper.__init__, "__defaults__", (lambda: self.today,))

    def close(self) -> None:
        """The library is what it was."""
        self._patches.close()
        self._late.clear()
        fsspec.filesystem("memory").store.clear()
        fsspec.filesystem("memory").pseudo_dirs[:] = [""]

    def pass_time(self, seconds: float) -> None:
        """So much later."""
        self.time += seconds
        self.today += seconds

    def let_go(self) -> None:
        """What a thread would have done by now."""
        while self._late:
            self._late.pop(0)()

    # remote calls

    def _reaching(self, real: Callable[..., Any], method: str) -> Callable[..., Any]:
        def call(objects: objects.Objects, *given: Any) -> Any:
            machine = self.acting[-1] if self.acting else None
            if machine is not None:
                self.pass_time(self.latency)
                machine.reach(is_after=False)
            answer = real(objects, *given)
            if method == "fetch":
                answer = iter(list(answer))
            if machine is not None:
                if method in ("put", "create"):
                    self._note_written(machine, *given)
                machine.reach(is_after=True)
            return answer

        return call

    def _note_written(self, machine: Machine, name: str, data: bytes) -> None:
        self._written[name] = next(self.moments), machine
        if not fnmatch(name, "whole-*.json"):
            return
        self.whole = max(self.whole, int(name.split("-")[1].removesuffix(".json")))
        self.cleared = max(self.cleared, json.loads(data).get("cleared", 0))
        for event in self.events:  # what this machine had not taken in stands before its whole
            taken = event.is_there and event.arrived < machine.pulled_at
            event.binds = event.binds and (taken or event.machine is machine)

    def _listing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def entries(objects: objects.Objects, folder: str = "") -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = real(objects, folder)
            return [entry for entry in found if not self._is_hidden(entry["name"])]

        return entries

    def _is_hidden(self, path: str) -> bool:
        if self.hides is None or not self.acting:
            return False
        for name, (moment, machine) in self._written.items():
            if path.endswith(f"/j/{name}"):
                return moment > self.hides and machine is not self.acting[-1]
        return False

    def _pulling(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def pull(copy: local_copy.LocalCopy) -> None:
            moment = next(self.moments)
            real(copy)
            if self.acting:
                self.acting[-1].pulled_at = moment

        return pull

    # what is there

    def damaged_lines(self) -> list[str]:
        """The lines that the store has and that no disk may have brought there."""
        store = fsspec.filesystem("memory").store
        return [
            f"{path}: {line!r}"
            for path, file in store.items()
            if path.endswith(".jsonl")
            for line in file.getvalue().splitlines(keepends=True)
            if not is_intact(line) or forgets_damage(line)
        ]


class Machine:
    """A directory, and the process that has it open.

    Attributes:
        copies: of its directory, as it was.
        pulled_at: when it last began to bring what the store has.
        is_damaged: whether its disk has damaged a line: then it need not read what others do.
    """

    def __init__(self, world: World, name: str) -> None:
        self.world, self.directory = world, world.root / name
        self.work_meanwhile: Callable[[int], None] = void
        self.runner: CheckpointedRunner | None = None
        self.pulled_at = self.calls = 0
        self.is_busy = self.is_damaged = False
        self._fault: Fault | None = None
        self._is_dead = False

    def reach(self, *, is_after: bool) -> None:
        """A remote call begins, or has ended."""
        if self._is_dead:
            raise Killed
        self.calls += not is_after
        fault = self._fault
        if fault is None or (fault.call, fault.is_after) != (self.calls, is_after):
            return
        self._fault = None
        if fault.meanwhile is None:
            self._is_dead = True
            raise Killed
        self.work_meanwhile(fault.meanwhile)

    @contextmanager
    def acting(self, fault: Fault | None = None) -> Iterator[None]:
        """What is done in here is done by this machine, until it is killed."""
        self.world.acting.append(self)
        self._fault, self.calls, self.is_busy = fault, 0, True
        try:
            with mock.patch.dict(os.environ, CHECKPOINT_DIR=str(self.directory)):
                yield
                self.world.let_go()
        finally:
            self._fault, self.is_busy = None, False
            if self._is_dead:
                self.throw_away()
            self.world.acting.pop()

    def open(self) -> CheckpointedRunner:
        """Its runner."""
        if self.runner is None:
            self.runner = CheckpointedRunner("j", self.world.url, version=1)
        return self.runner

    def throw_away(self) -> None:
        """All that the process held in memory is gone, and its locks; nothing is told to the store."""
        if (session := self.session) is not None:
            session.abandon()
        self._is_dead, self.runner = True, None
        root = os.path.realpath(self.directory) + os.sep
        for path, opened in list(REGISTRY._opened.items()):
            if path[0].startswith(root):
                opened.after_fork()  # as a child lets go of what is its parent's
                del REGISTRY._opened[path]
        for lock in self.world.locks:
            if str(lock.path).startswith((root, str(self.directory) + os.sep)):
                lock.drop()  # one of a checkpoint that was being closed
        self._is_dead = False

    def restore(self, copy: Path | None, is_damaged: bool) -> None:
        """The directory is what it was; what was not uploaded since may be lost."""
        self.throw_away()
        shutil.rmtree(self.directory, ignore_errors=True)
        if copy is not None:
            shutil.copytree(copy, self.directory)
        self.is_damaged = is_damaged
        self.lose()

    def lose(self) -> None:
        """What the machine has not brought to the store may never come there."""
        for event in self.world.events:
            if event.machine is self and not event.is_there:
                event.is_lost, event.binds = True, False

    def damage(self, place: int) -> None:
        """The disk changes a byte in a line of the journal, while nobody has it open."""
        self.throw_away()
        for path in self.directory.rglob("j_results.jsonl"):
            lines = path.read_bytes().splitlines(keepends=True)
            if lines:
                at = place % len(lines)
                lines[at] = lines[at].replace(b'"result":', b'"resulT":', 1)
                path.write_bytes(b"".join(lines))
                self.is_damaged = True
                self.lose()

    @property
    def session(self) -> session.Session | None:
        """The one that runs."""
        replica = None if self.runner is None else self.runner.records.store.replica
        return replica._session if isinstance(replica, uploader.Uploader) else None

    @property
    def epoch(self) -> int:
        """Of the session that runs."""
        return 0 if (session := self.session) is None else session._number.epoch


class _Aside(logging.Handler):
    """What was told of lines that are set aside."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if "set aside in" in record.getMessage():
            self._tell()


def _wait_at_once(self: session.Session, is_done: Callable[[], bool]) -> bool:
    """What waits for the thread does its work."""
    self._try_at = -inf
    for _ in range(3):
        if is_done():
            return True
        if self.ended_by is None and not self._gave_up:
            self.attempt()
    return is_done()


def void(*_: Any) -> None:
    """Nothing comes of it."""
