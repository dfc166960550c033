"""The law of machines and a store: whatever becomes of them, no order that was seen is undone.

Two to four machines with directories of their own share one URL. They save, clear, compact, end and take over; they are
killed before or after any remote call, stand still in the middle of one while another machine takes over, are restored
from copies of their own directories or of another machine's, have disks that damage lines, and any clock. The store may
be slow, heed no condition, and list late.

What is saved is older than what is saved in a later session, or later in its own. Once a value is in the store, no
reader sees an older one of its key; it is there until somebody clears it; what a clearing has cleared never comes back;
and in the end the store has whatever a machine has saved. Of what was still owed while another machine compacted, the
protocol promises less: see its page.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from conftest import IS_EXPLORING
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from world import DEAD, Event, Fault, Killed, Machine, World, void

from checkpoint import CheckpointedRunner
from checkpoint.errors import CheckpointError, StoreError
from checkpoint.maintenance.compact import compact
from checkpoint.maintenance.repair import repair
from checkpoint.remote.uploader import Uploader

pytestmark = pytest.mark.slow

KEYS = ("k", "l", "m", "n")
MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # no power is cut here: what is quick will do

faults = st.one_of(
    st.none(),
    st.builds(Fault, st.integers(1, 20), st.booleans(), st.one_of(st.none(), st.integers(0, 3))),
)
places, keys = st.integers(0, 3), st.lists(st.sampled_from(KEYS), min_size=1, max_size=5)
pauses = st.sampled_from([1.0, 1.0, DEAD])


class Machines(RuleBasedStateMachine):
    """Some machines beside what was seen of them."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="checkpoint-machines-", dir=MEMORY))
        self.values, self.names = itertools.count(1), itertools.count()
        self.superseded: list[tuple[int, Event]] = []  # a value, and what its machine knew it to be replaced by
        self.cleared: list[tuple[int, int, str]] = []  # when a clearing was begun, in which session, of which key
        self.copies: list[tuple[Path | None, bool]] = []  # of directories, and whether one was damaged

    @initialize(
        count=st.integers(2, 4), heeds=st.booleans(), latency=st.sampled_from([0.0, 0.1, 7.0]), seed=st.integers(0, 99)
    )
    def begin(self, count: int, heeds: bool, latency: float, seed: int) -> None:
        self.world = World(self.root, heeds=heeds, latency=latency, seed=seed)
        self.machines = [Machine(self.world, f"machine {number}") for number in range(count)]
        for machine in self.machines:
            machine.work_meanwhile = self.work_meanwhile
        self.world.open(lambda: self.world.acting[-1].lose())

    def teardown(self) -> None:
        try:
            if hasattr(self, "machines"):
                self.agree()
        finally:
            for machine in getattr(self, "machines", []):
                machine.throw_away()  # else the sessions of a history that fails would be waited for at exit
            self.world.close()
            shutil.rmtree(self.root, ignore_errors=True)

    # what was seen

    def note(self, machine: Machine, key: str, value: int | None, seen: int | None) -> Event:
        """A machine is about to save or clear, and sees this."""
        event = Event(self.world, machine, key, value)
        self.world.events.append(event)
        if seen is not None:
            self.superseded.append((seen, event))
        return event

    def arrive(self, event: Event) -> None:
        """It is in the store."""
        if not event.is_there:
            event.is_there, event.arrived = True, next(self.world.moments)

    def judge(self, who: str, found: dict[str, int], *, is_fresh: bool) -> None:
        """No order that was seen is undone."""
        events = self.world.events
        seen = {event.key: event for event in events if event.value is not None and found.get(event.key) == event.value}
        assert {key: event.value for key, event in seen.items()} == found, f"{who} sees what nobody saved"
        for event in seen.values() if is_fresh else ():
            self.arrive(event)
        for value, by in self.superseded:
            is_seen = by.key in found and found[by.key] == value
            assert not (is_seen and by.is_there and by.binds), f"{who} sees {value}, superseded by {by}"
        for event in seen.values():
            assert event.epoch >= self.world.cleared, f"{who} sees {event}, which session {self.world.cleared} cleared"
        for event in events:
            if event.is_there and event.binds and event.key in seen and event.epoch >= self.world.cleared:
                assert not seen[event.key].is_before(event), (
                    f"{who} sees {seen[event.key]}, which is older than {event}"
                )
        for event in events if is_fresh else ():
            if event.value is not None and event.is_there and event.key not in found:
                later = [
                    moment
                    for moment, epoch, key in self.cleared
                    if key in (event.key, "") and (moment > event.moment or epoch > event.epoch)
                ]
                assert later, f"{who} does not see {event}, which nobody cleared"

    def look_on(self) -> None:
        """A machine that has nothing, and all that do not write, look at the store."""
        assert not self.world.damaged_lines()
        self.judge("a fresh reader", self.read_anew(), is_fresh=True)
        for machine in self.machines:
            if machine.session is None and not machine.is_busy and not machine.is_damaged:
                with machine.acting():
                    self.judge(machine.directory.name, machine.open().get_all_results(), is_fresh=False)

    def read_anew(self) -> dict[str, int]:
        reader = Machine(self.world, f"reader {next(self.names)}")
        with reader.acting():
            found = reader.open().get_all_results()
            reader.throw_away()
        shutil.rmtree(reader.directory, ignore_errors=True)
        return found

    # what they do

    def work(self, place: int, fault: Fault | None, act: Callable[[Machine], None], *, pause: float = 1.0) -> None:
        """Have a machine do something, after a while; whatever comes of it, everybody looks on."""
        machine = self.machines[place % len(self.machines)]
        if machine.is_busy:
            return
        self.world.pass_time(pause)
        with suppress(Killed, CheckpointError), machine.acting(fault):
            machine.open()
            act(machine)
        if self.world.hides is None:
            self.look_on()

    def work_meanwhile(self, place: int) -> None:
        """Another machine takes over, saves, and ends."""

        def act(machine: Machine) -> None:
            self._save(machine, KEYS[:2])
            self._end(machine)

        self.work(place, None, act, pause=DEAD)

    def _begin(self, machine: Machine) -> CheckpointedRunner:
        runner = machine.open()
        runner.records.store.writer.begin()
        return runner

    def _save(self, machine: Machine, keys: tuple[str, ...] | list[str]) -> None:
        for key in keys:
            runner, value = self._begin(machine), next(self.values)
            event = self.note(machine, key, value, runner.get_result(key))
            runner.save_result(key, value)
            event.is_done = True

    def _clear_key(self, machine: Machine, key: str) -> None:
        runner = self._begin(machine)
        seen = runner.get_result(key)
        self.cleared.append((next(self.world.moments), machine.epoch, key))
        if seen is not None:
            event = self.note(machine, key, None, seen)
            runner.clear([key])
            event.is_done = True

    def _clear(self, machine: Machine) -> None:
        runner = self._begin(machine)
        seen = runner.get_all_results()
        self.cleared.append((next(self.world.moments), machine.epoch + 1, ""))
        events = [self.note(machine, key, None, value) for key, value in seen.items()]
        runner.clear()
        for event in events:
            self.arrive(event)
        machine.runner = None
        runner.close()

    def _compact(self, machine: Machine) -> None:
        compact("j", self.world.url)

    def _upload(self, machine: Machine) -> None:
        """All that the machine has saved is in the store, unless it fails."""
        if (session := machine.session) is not None:
            waiting = self._waiting(machine)
            session.attempt()
            if session.ended_by is None and not session.failing and session.uploaded().bytes == 0:
                self._acknowledge(waiting)

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

    def _waiting(self, machine: Machine) -> list[Event]:
        mine = [event for event in self.world.events if event.machine is machine]
        return [event for event in mine if event.is_done and not event.is_there]

    def _acknowledge(self, waiting: list[Event]) -> None:
        for event in waiting:
            if not event.is_lost:
                self.arrive(event)

    @rule(place=places, keys=keys, fault=faults, pause=pauses, uploads=st.booleans())
    def save(self, place: int, keys: list[str], fault: Fault | None, pause: float, uploads: bool) -> None:
        def act(machine: Machine) -> None:
            self._save(machine, keys)
            if uploads:
                self._upload(machine)

        self.work(place, fault, act, pause=pause)

    @rule(place=places, fault=faults)
    def upload(self, place: int, fault: Fault | None) -> None:
        self.work(place, fault, self._upload)

    @rule(place=places, fault=faults)
    def end(self, place: int, fault: Fault | None) -> None:
        self.work(place, fault, self._end)

    @rule(place=places, key=st.sampled_from(KEYS), fault=faults, pause=pauses)
    def clear_key(self, place: int, key: str, fault: Fault | None, pause: float) -> None:
        def act(machine: Machine) -> None:
            self._clear_key(machine, key)
            self._upload(machine)

        self.work(place, fault, act, pause=pause)

    @rule(place=places, fault=faults, pause=pauses)
    def clear(self, place: int, fault: Fault | None, pause: float) -> None:
        self.work(place, fault, self._clear, pause=pause)

    @rule(place=places, fault=faults, pause=pauses)
    def compact(self, place: int, fault: Fault | None, pause: float) -> None:
        self.work(place, fault, self._compact, pause=pause)

    @rule(
        place=places, keys=keys, other=st.integers(1, 3), others=keys, ends=st.sampled_from(["", "compact", "clear"]),
        is_killed=st.booleans(),
    )  # fmt: skip
    def overtake(self, place: int, keys: list[str], other: int, others: list[str], ends: str, is_killed: bool) -> None:
        """A machine owes what it saved while another one takes over, and comes back."""
        self.work(place, None, lambda machine: self._save(machine, keys), pause=DEAD)
        if is_killed:
            self.kill(place)

        def act(machine: Machine) -> None:
            self._save(machine, others)
            if ends:
                self._compact(machine) if ends == "compact" else self._clear(machine)
            self._end(machine)

        self.work(place + other, None, act, pause=DEAD)
        self.work(place, None, self._upload)

    @rule(place=places, other=st.integers(1, 3), keys=keys, others=keys)
    def begin_at_once(self, place: int, other: int, keys: list[str], others: list[str]) -> None:
        """Two machines begin at one moment, where no condition is heeded and listings are late."""
        one, two = place % len(self.machines), (place + other) % len(self.machines)
        if self.world.heeds or one == two or any(machine.is_busy for machine in self.machines):
            return
        self.world.pass_time(DEAD)
        self.world.hides = next(self.world.moments)
        try:
            for each, saved in ((one, keys), (two, others)):
                self.work(each, None, partial(self._save, keys=saved))
            for each in (one, two):
                self.work(each, None, self._upload, pause=0.0)
        finally:
            self.world.hides = None
        self.look_on()

    # what becomes of them

    @rule(place=places)
    def kill(self, place: int) -> None:
        machine = self.machines[place % len(self.machines)]
        if not machine.is_busy:
            with machine.acting():
                machine.throw_away()
            self.look_on()

    @rule(place=places)
    def copy(self, place: int) -> None:
        machine = self.machines[place % len(self.machines)]
        copy = self.root / f"copy {next(self.names)}"
        if machine.directory.exists():
            shutil.copytree(machine.directory, copy)
        self.copies.append((copy if machine.directory.exists() else None, machine.is_damaged))

    @rule(place=places, which=st.integers(0, 9))
    def restore(self, place: int, which: int) -> None:
        """From a copy of its directory, or of that of another machine."""
        if not self.copies:
            return
        machine = self.machines[place % len(self.machines)]
        with machine.acting():
            machine.restore(*self.copies[which % len(self.copies)])
        self.look_on()

    @rule(place=places, keys=keys, line=st.integers(0, 9))
    def damage(self, place: int, keys: list[str], line: int) -> None:
        """A disk damages a line, of those that were uploaded or of those that were not."""

        def act(machine: Machine) -> None:
            self._save(machine, keys)
            machine.damage(line)

        self.work(place, None, act)

    @rule(place=places)
    def repair(self, place: int) -> None:
        self.work(place, None, self._repair, pause=DEAD)

    def _repair(self, machine: Machine) -> None:
        try:
            repair("j", self.world.url)
        except StoreError as error:
            if error.errno != errno.ENOENT:  # nothing is there any more: it was cleared
                raise
        machine.is_damaged = False

    @rule(seconds=st.integers(-(10**9), 10**9))
    def throw_the_clock(self, seconds: int) -> None:
        self.world.today = max(0.0, 1_800_000_000.0 + seconds)

    def agree(self) -> None:
        """When all have ended, they and whoever comes later have the same, and whatever anybody saved is there."""
        for machine in self.machines:
            if machine.is_damaged:
                self.world.pass_time(DEAD)
                with machine.acting():
                    machine.throw_away()
                    self._repair(machine)
        for _ in range(2):  # what the first one owes, the last one has to be told
            for place, machine in enumerate(self.machines):
                self.work(place, None, lambda machine: void(self._begin(machine)), pause=DEAD)
                self.work(place, None, self._end)
                assert machine.session is None, machine.directory.name
        for machine in self.machines:
            self._acknowledge(self._waiting(machine))
        self.look_on()
        found = self.read_anew()
        for machine in self.machines:
            with machine.acting():
                runner = machine.open()
                replica = runner.records.store.replica
                assert isinstance(replica, Uploader)
                assert replica.uploaded().bytes == 0, machine.directory.name
                assert runner.get_all_results() == found, machine.directory.name
                machine.throw_away()


def run(histories: int) -> None:
    """CHECKPOINT_TEST_HISTORIES says how many instead; what fails is made small where new ones are looked for."""
    limits = settings(
        max_examples=int(os.environ.get("CHECKPOINT_TEST_HISTORIES") or histories),
        stateful_step_count=20,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.generate, *([Phase.shrink] if IS_EXPLORING else [])],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    run_state_machine_as_test(Machines, settings=limits)


def test_machines() -> None:
    """The same histories as ever: what breaks one of the promises is caught by one of them (tests/mutants.py)."""
    run(30)


@pytest.mark.parametrize("is_killed", [False, True], ids=["goes on", "killed"])
@pytest.mark.parametrize("ends", ["", "compact", "clear"])
@pytest.mark.parametrize("heeds", [False, True], ids=["no condition", "conditions"])
def test_takeovers(heeds: bool, ends: str, is_killed: bool) -> None:
    """What random histories come to only now and then: each kind of takeover, of one machine and then of the next."""
    history = Machines()
    history.begin(count=3, heeds=heeds, latency=0.1, seed=1)
    try:
        history.save(place=0, keys=["k", "l"], fault=None, pause=1.0, uploads=True)
        history.begin_at_once(place=1, other=1, keys=["l"], others=["k"])
        history.copy(place=0)
        history.overtake(place=0, keys=["k", "m"], other=1, others=["k", "l"], ends=ends, is_killed=is_killed)
        history.save(place=2, keys=["l"], fault=Fault(3, True, None), pause=DEAD, uploads=True)
        history.overtake(place=1, keys=["n"], other=1, others=["m", "m"], ends="compact", is_killed=is_killed)
        history.restore(place=2, which=0)
        history.damage(place=0, keys=["k"] if is_killed else ["k", "n"], line=0)
        history.compact(place=0, fault=None, pause=DEAD)
        history.save(place=1, keys=["k"], fault=None, pause=1.0, uploads=False)
        history.save(place=2, keys=["k"], fault=Fault(4, False, 1), pause=1.0, uploads=True)
    finally:
        history.teardown()


@pytest.mark.soak
def test_many_machines() -> None:
    """Very many."""
    run(2000)
