"""The law of machines and a store: whatever becomes of them, no order that was seen is undone.

Two to four machines with directories of their own share one URL. They save, clear, compact, end and take over; they are
killed before or after any remote call, stand still in the middle of one while another machine takes over, are restored
from copies of their directories, and have any clock. The store may heed no condition. The uploading threads are left
out: each upload is a step of its own.

A value is *superseded* by a save or a clearing whose machine saw it. Once that is in the store, no reader sees the
value any more; and a value that was seen in the store is there until somebody clears it later, or saves another one. Of
what was still owed while another machine compacted or cleared, the protocol promises less: see its page.
"""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from math import inf
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from checkpoint import CheckpointedRunner, clock, locks
from checkpoint.catalog.registry import REGISTRY
from checkpoint.errors import CheckpointError
from checkpoint.maintenance.compact import compact
from checkpoint.remote import local_copy, objects, uploader
from checkpoint.storage.lock import Lock

pytestmark = pytest.mark.slow

fsspec = pytest.importorskip("fsspec")

KEYS = ("k", "l")
BUCKETS = itertools.count()
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no power is cut here: what is quick will do


class Killed(BaseException):
    """The process is no more: nothing else is done by it."""


class Fault(NamedTuple):
    """What happens at a remote call: the machine is killed, or another one works meanwhile, before or after it."""

    call: int
    is_after: bool
    meanwhile: int | None


class Event:
    """A value that a machine saved, or a key that it cleared.

    Attributes:
        is_done: whether it is in the machine's journal.
        is_there: whether it is in the store: it was seen there, or its machine was told so.
        binds: whether what it supersedes has to be gone then.
    """

    def __init__(self, world: World, machine: Machine, key: str, value: int | None) -> None:
        self.machine, self.key, self.value = machine, key, value
        self.moment, self.epoch = next(world.moments), machine.epoch
        self.wholes = len(world.wholes)
        self.is_done = self.is_there = False
        self.binds = True


class World:
    """One store, and what passes between it and machines.

    Attributes:
        wholes: which machine replaced what is there, one after the other.
        locks: all that were made.
    """

    def __init__(self, *, heeds: bool) -> None:
        self.url = f"memory://world-{next(BUCKETS)}/prefix"
        self.heeds = heeds
        self.moments = itertools.count()
        self.acting: list[Machine] = []
        self.wholes: list[Machine] = []
        self.locks: list[Lock] = []

    def calling(self, name: str) -> Iterator[None]:
        """A remote call of the machine that acts."""
        machine = self.acting[-1] if self.acting else None
        if machine is None:
            yield
            return
        machine.reach(is_after=False)
        yield
        if name.startswith("whole-"):
            self.wholes.append(machine)
        machine.reach(is_after=True)


class Machine:
    """A directory, and the process that has it open."""

    def __init__(self, world: World, directory: Path) -> None:
        self.world, self.directory = world, directory
        self.copies: list[Path | None] = []
        self.fault: Fault | None = None
        self.work_meanwhile: Callable[[int], None] = lambda _: None
        self.calls = 0
        self.is_dead = False
        self.is_busy = False
        self.runner: CheckpointedRunner | None = None

    def reach(self, *, is_after: bool) -> None:
        """A remote call begins, or has ended."""
        if self.is_dead:
            raise Killed
        self.calls += not is_after
        fault = self.fault
        if fault is None or (fault.call, fault.is_after) != (self.calls, is_after):
            return
        self.fault = None
        if fault.meanwhile is None:
            self.is_dead = True
            raise Killed
        self.work_meanwhile(fault.meanwhile)

    @contextmanager
    def acting(self, fault: Fault | None = None) -> Iterator[None]:
        """What is done in here is done by this machine, until it is killed."""
        self.world.acting.append(self)
        self.fault, self.calls, self.is_busy = fault, 0, True
        try:
            with mock.patch.dict(os.environ, CHECKPOINT_DIR=str(self.directory)):
                yield
        finally:
            self.fault, self.is_busy = None, False
            if self.is_dead:
                self.throw_away()
            self.world.acting.pop()

    def open(self) -> CheckpointedRunner:
        if self.runner is None:
            self.runner = CheckpointedRunner("j", self.world.url, version=1)
        return self.runner

    def throw_away(self) -> None:
        """All that the process held in memory is gone, and its locks; nothing is told to the store."""
        if (session := self.session) is not None:
            session.abandon()
        self.is_dead, self.runner = True, None
        root = os.path.realpath(self.directory) + os.sep
        for path, opened in list(REGISTRY._opened.items()):
            if path[0].startswith(root):
                opened.after_fork()  # as a child lets go of what is its parent's
                del REGISTRY._opened[path]
        for lock in self.world.locks:
            if str(lock.path).startswith((root, str(self.directory))):
                lock.drop()  # one of a checkpoint that was being closed
        self.is_dead = False

    @property
    def session(self) -> uploader._Session | None:
        """The one that runs."""
        replica = None if self.runner is None else self.runner.records.store.replica
        return replica._session if isinstance(replica, uploader.Uploader) else None

    @property
    def epoch(self) -> int:
        """Of the session that runs."""
        return 0 if (session := self.session) is None else session._number.epoch


class Warnings(logging.Handler):
    """What was told of lines that are set aside."""

    def __init__(self, tell: Callable[[], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        if "set aside in" in record.getMessage():
            self._tell()


def _wait_at_once(self: uploader._Session, is_done: Callable[[], bool]) -> bool:
    """What waits for the thread does its work."""
    self._try_at = -inf
    for _ in range(3):
        if is_done():
            return True
        if self.ended_by is None and not self._gave_up:
            self.attempt()
    return is_done()


faults = st.one_of(
    st.none(),
    st.builds(Fault, st.integers(1, 14), st.booleans(), st.one_of(st.none(), st.integers(0, 3))),
)
places, keys = st.integers(0, 3), st.sampled_from(KEYS)


class Machines(RuleBasedStateMachine):
    """Some machines beside what was seen of them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="checkpoint-machines-", dir=MEMORY))
        self.values = itertools.count(1)
        self.readers = itertools.count()
        self.events: list[Event] = []
        self.superseded: list[tuple[int, Event]] = []  # a value, and what its machine knew it to be replaced by
        self.cleared: list[tuple[int, int, str]] = []  # when a clearing was begun, in which session, of which key
        self.patches = ExitStack()

    @initialize(count=st.integers(2, 4), heeds=st.booleans())
    def begin(self, count: int, heeds: bool) -> None:
        self.world = World(heeds=heeds)
        self.machines = [Machine(self.world, self.root / f"machine {number}") for number in range(count)]
        for machine in self.machines:
            machine.work_meanwhile = self.work_meanwhile
        self._patch()

    def _patch(self) -> None:
        world, enter = self.world, self.patches.enter_context
        for name in ("put", "create", "read", "look", "owners", "fetch", "delete"):
            enter(mock.patch.object(objects.Objects, name, _reaching(world, getattr(objects.Objects, name), name)))
        if not world.heeds:
            system = type(fsspec.filesystem("memory"))
            write = system.pipe_file
            enter(mock.patch.object(system, "pipe_file", lambda self, path, data, mode="": write(self, path, data)))
        make = Lock.__init__

        def made(self: Lock, *given: Any) -> None:
            make(self, *given)
            world.locks.append(self)

        enter(mock.patch.object(Lock, "__init__", made))
        enter(mock.patch.object(uploader._Session, "start", void))
        enter(mock.patch.object(uploader._Session, "_wait", _wait_at_once))
        enter(mock.patch.object(REGISTRY, "maintain", void))
        enter(mock.patch.object(local_copy, "_LOOK_EVERY", -1.0))
        enter(mock.patch.object(local_copy, "_LOOK_FAILING", -1.0))
        enter(mock.patch.object(uploader, "_LEASE", 60.0))
        enter(mock.patch.object(os, "fsync", void))
        enter(mock.patch.object(os, "fdatasync", void, create=True))
        enter(mock.patch.object(clock, "sleep", void))
        log = logging.getLogger("checkpoint")
        enter(mock.patch.object(log, "handlers", [Warnings(self.set_aside)]))
        enter(mock.patch.object(log, "propagate", False))
        enter(mock.patch.dict(os.environ, XDG_CONFIG_HOME=str(self.root / "configuration")))
        enter(locks.alone())

    def teardown(self) -> None:
        try:
            if hasattr(self, "machines"):
                self.agree()
        finally:
            self.patches.close()
            fsspec.filesystem("memory").store.clear()
            shutil.rmtree(self.root, ignore_errors=True)

    # what was seen

    def set_aside(self) -> None:
        """What the machine owed is known not to come back."""
        for event in self.events:
            if event.machine is self.world.acting[-1]:
                event.binds = event.binds and event.is_there

    def note(self, machine: Machine, key: str, value: int | None, seen: int | None) -> Event:
        """A machine is about to save or clear, and sees this."""
        event = Event(self.world, machine, key, value)
        self.events.append(event)
        if seen is not None:
            self.superseded.append((seen, event))
        return event

    def arrive(self, event: Event) -> None:
        """It is in the store."""
        if not event.is_there:
            event.is_there = True
            event.binds = event.binds and all(by is event.machine for by in self.world.wholes[event.wholes :])

    def judge(self, who: str, found: dict[str, int], *, is_fresh: bool) -> None:
        """No order that was seen is undone."""
        for event in self.events:
            if is_fresh and event.value is not None and found.get(event.key) == event.value:
                self.arrive(event)
        for value, by in self.superseded:
            seen = by.key in found and found[by.key] == value
            assert not (seen and by.is_there and by.binds), f"{who} sees {value}, superseded by {vars(by)}"
        for event in self.events if is_fresh else ():
            if event.value is not None and event.is_there and event.key not in found:
                later = [
                    moment
                    for moment, epoch, key in self.cleared
                    if key in (event.key, "") and (moment > event.moment or epoch > event.epoch)
                ]
                assert later, f"{who} does not see {vars(event)}, which nobody cleared"

    def look_on(self) -> None:
        """A machine that has nothing, and all that do not write, look at the store."""
        self.judge("a fresh reader", self.read_anew(), is_fresh=True)
        for place, machine in enumerate(self.machines):
            if machine.session is None and not machine.is_busy:
                with machine.acting():
                    self.judge(f"machine {place}", machine.open().get_all_results(), is_fresh=False)

    def read_anew(self) -> dict[str, int]:
        reader = Machine(self.world, self.root / f"reader {next(self.readers)}")
        with reader.acting():
            found = reader.open().get_all_results()
            reader.throw_away()
        shutil.rmtree(reader.directory, ignore_errors=True)
        return found

    # what they do

    def work(self, place: int, fault: Fault | None, act: Callable[[Machine], None], *, lapsed: bool) -> None:
        """Have a machine do something; whatever comes of it, everybody looks on."""
        machine = self.machines[place % len(self.machines)]
        if machine.is_busy:
            return
        lease = mock.patch.object(uploader, "_LEASE", -1.0 if lapsed else 60.0)
        with suppress(Killed, CheckpointError), lease, machine.acting(fault):
            machine.open()
            act(machine)
        self.look_on()

    def work_meanwhile(self, place: int) -> None:
        """Another machine takes over, saves, and ends."""

        def act(machine: Machine) -> None:
            self._save(machine, KEYS[0])
            self._end(machine)

        self.work(place, None, act, lapsed=True)

    def _begin(self, machine: Machine) -> CheckpointedRunner:
        runner = machine.open()
        runner.records.store.writer.begin()
        return runner

    def _save(self, machine: Machine, key: str) -> None:
        runner, value = self._begin(machine), next(self.values)
        event = self.note(machine, key, value, runner.get_result(key))
        runner.save_result(key, value)
        event.is_done = True

    def _upload(self, machine: Machine) -> None:
        """All that the machine has saved is in the store, unless it fails."""
        if (session := machine.session) is not None:
            waiting = self._waiting(machine)
            session.attempt()
            if session.ended_by is None and not session.failing and session.uploaded().bytes == 0:
                self._acknowledge(waiting)

    def _waiting(self, machine: Machine) -> list[Event]:
        mine = [event for event in self.events if event.machine is machine]
        return [event for event in mine if event.is_done and not event.is_there]

    def _acknowledge(self, waiting: list[Event]) -> None:
        for event in waiting:
            if event.binds:
                self.arrive(event)

    def _end(self, machine: Machine) -> None:
        if (session := machine.session) is not None and machine.runner is not None:
            waiting = self._waiting(machine)
            runner, machine.runner = machine.runner, None
            try:
                runner.close()
            except Killed:
                machine.runner = runner
                raise
            if session.ended_by is None and not session.failing:
                self._acknowledge(waiting)

    @rule(place=places, key=keys, fault=faults, lapsed=st.booleans(), uploads=st.booleans())
    def save(self, place: int, key: str, fault: Fault | None, lapsed: bool, uploads: bool) -> None:
        def act(machine: Machine) -> None:
            self._save(machine, key)
            if uploads:
                self._upload(machine)

        self.work(place, fault, act, lapsed=lapsed)

    @rule(place=places, fault=faults)
    def upload(self, place: int, fault: Fault | None) -> None:
        self.work(place, fault, self._upload, lapsed=False)

    @rule(place=places, fault=faults)
    def end(self, place: int, fault: Fault | None) -> None:
        self.work(place, fault, self._end, lapsed=False)

    @rule(place=places, key=keys, fault=faults, lapsed=st.booleans())
    def clear_key(self, place: int, key: str, fault: Fault | None, lapsed: bool) -> None:
        def act(machine: Machine) -> None:
            runner = self._begin(machine)
            seen = runner.get_result(key)
            self.cleared.append((next(self.world.moments), machine.epoch, key))
            if seen is not None:
                event = self.note(machine, key, None, seen)
                runner.clear([key])
                event.is_done = True
            self._upload(machine)

        self.work(place, fault, act, lapsed=lapsed)

    @rule(place=places, fault=faults, lapsed=st.booleans())
    def clear(self, place: int, fault: Fault | None, lapsed: bool) -> None:
        def act(machine: Machine) -> None:
            runner = self._begin(machine)
            seen = runner.get_all_results()
            self.cleared.append((next(self.world.moments), machine.epoch, ""))
            events = [self.note(machine, key, None, value) for key, value in seen.items()]
            runner.clear()
            for event in events:
                self.arrive(event)
            machine.runner = None
            runner.close()

        self.work(place, fault, act, lapsed=lapsed)

    @rule(place=places, fault=faults, lapsed=st.booleans())
    def compact(self, place: int, fault: Fault | None, lapsed: bool) -> None:
        self.work(place, fault, lambda _: void(compact("j", self.world.url)), lapsed=lapsed)

    # what becomes of them

    @rule(place=places)
    def kill(self, place: int) -> None:
        machine = self.machines[place % len(self.machines)]
        with machine.acting():
            machine.throw_away()
        self.look_on()

    @rule(place=places)
    def copy(self, place: int) -> None:
        machine = self.machines[place % len(self.machines)]
        copy = self.root / f"copy {next(self.readers)}"
        if machine.directory.exists():
            shutil.copytree(machine.directory, copy)
        machine.copies.append(copy if machine.directory.exists() else None)

    @rule(place=places, which=st.integers(0, 9))
    def restore(self, place: int, which: int) -> None:
        machine = self.machines[place % len(self.machines)]
        if not machine.copies:
            return
        with machine.acting():
            machine.throw_away()
            shutil.rmtree(machine.directory, ignore_errors=True)
            if (copy := machine.copies[which % len(machine.copies)]) is not None:
                shutil.copytree(copy, machine.directory)
            self.set_aside()  # what it had not uploaded may be lost
        self.look_on()

    @rule(seconds=st.integers(-(10**9), 10**9))
    def throw_the_clock(self, seconds: int) -> None:
        moment = max(0, 1_800_000_000 + seconds)
        self.patches.enter_context(mock.patch.object(clock, "now", return_value=moment))
        self.patches.enter_context(mock.patch.object(clock.Stamper.__init__, "__defaults__", (lambda: moment,)))

    def agree(self) -> None:
        """When all have ended, they and whoever comes later have the same."""
        for _ in range(2):  # what the first one owes, the last one has to be told
            for place in range(len(self.machines)):
                self.work(place, None, lambda machine: void(self._begin(machine)), lapsed=True)
                self.work(place, None, self._end, lapsed=True)
        found = self.read_anew()
        for place, machine in enumerate(self.machines):
            with machine.acting():
                runner = machine.open()
                assert runner.get_all_results() == found, f"machine {place}"
                machine.throw_away()


def _reaching(world: World, real: Callable[..., Any], method: str) -> Callable[..., Any]:
    def call(self: objects.Objects, *given: Any) -> Any:
        name = given[0] if given and isinstance(given[0], str) else ""
        reaching = world.calling(name if method == "put" else "")
        next(reaching)
        answer = real(self, *given)
        if method == "fetch":
            answer = iter(list(answer))
        for _ in reaching:
            pass
        return answer

    return call


def void(_: Any) -> None:
    """Nothing comes of it."""


@pytest.mark.soak
def test_many_machines() -> None:
    """CHECKPOINT_TEST_HISTORIES says how many histories. Of 25 one failed, once, on a busy machine."""
    limits = settings(
        max_examples=int(os.environ.get("CHECKPOINT_TEST_HISTORIES") or 2000),
        stateful_step_count=20,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(Machines, settings=limits)
