"""Every system call of a small pass fails, one after the other, once and for good: what was acknowledged survives it.

A scene is a small piece of work on a checkpoint. It is run once to count its calls, and then once for each of them and
each way in which it can fail. Afterwards the fault is gone, the same process goes on, and another one looks at what is
there. The calls are those of `os` and `fcntl` that touch the checkpoint's directory or the one above it.
"""

from __future__ import annotations

import base64
import errno
import gc
import io
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple

import pytest
from conftest import Ticker

from checkpoint import CheckpointedRunner, CheckpointError, ItemsFailed, StoreError, checkpointed, clock
from checkpoint.catalog.registry import REGISTRY
from checkpoint.errors import UnencodableValue
from checkpoint.maintenance import compact, repair
from checkpoint.storage.lock import Lock
from checkpoint.storage.record import parse

if sys.platform == "win32":
    pytest.skip("other calls are made there", allow_module_level=True)

import fcntl

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("frozen"),  # garbage is collected after each of thousands of plays
]

SHM = "/dev/shm" if os.path.isdir("/dev/shm") else None  # thousands of checkpoints are made


class Fault(NamedTuple):
    """How a call fails.

    Attributes:
        call: its kind.
        how: the errno; or, for a write, how many of so many bytes it takes.
        lasts: "once"; "this call" from then on; or from then on every call that fails "with it".
    """

    call: str
    how: int | Callable[[int], int]
    lasts: str

    @property
    def errno(self) -> int:
        """What the user is told: a write that takes nothing, time and again, is a full disk."""
        return self.how if isinstance(self.how, int) else errno.ENOSPC


class System:
    """The system's calls on files under `root`: counted, made to fail, and watched.

    Attributes:
        fault: what fails, from its `nth` call on.
        failed: (call, path) of those that failed.
        wrongs: what must never be done: to write or sync by a descriptor whose sync has failed, for one.
        unsynced: files that were written since they were synced.
        owed: journals and directories whose names a power cut would take.
        open: the descriptors under `root`, with their paths.
    """

    CALLS = ("open", "write", "pread", "read", "lseek", "fstat", "ftruncate", "fdatasync", "fsync", "dup")
    PATHS = ("stat", "replace", "unlink", "mkdir")
    TOGETHER: ClassVar[dict[int, set[str]]] = {
        errno.ENOSPC: {"write", "file.write", "fdatasync", "fsync", "mkdir", "create", "replace"},
        errno.EACCES: {"open", "create", "stat", "replace", "unlink", "mkdir"},
        errno.EMFILE: {"open", "create", "dup"},
    }

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self._root = str(root)
        self._real = {name: getattr(os, name) for name in (*self.CALLS, *self.PATHS, "close", "fdopen")}
        self._real["flock"], self._real["io.open"] = fcntl.flock, io.open
        self.open: dict[int, str] = {}
        self._files: dict[int, int] = {}  # by descriptor, the opening that it comes from: a copy of it shares it
        self._openings = itertools.count()
        self._spoilt: dict[int, str] = {}  # openings whose sync, or write, has failed for good
        self.calls: Counter[str] = Counter()
        self.fault: Fault | None = None
        self.nth = 0
        self._failing = False
        self.failed: list[tuple[str, str]] = []
        self.wrongs: list[str] = []
        self.owed: set[str] = set()
        self.unsynced: set[str] = set()
        self._lock = threading.RLock()
        for name in self.CALLS[1:]:
            patch.setattr(os, name, self._by_descriptor(name))
        for name in self.PATHS:
            patch.setattr(os, name, self._by_path(name))
        patch.setattr(fcntl, "flock", self._by_descriptor("flock"))
        for room in ("reader", "journal"):
            patch.setattr(f"checkpoint.storage.{room}.pread", os.pread)
        patch.setattr(os, "open", self._open)
        patch.setattr(os, "close", self._close)
        patch.setattr(os, "fdopen", self._fdopen)
        patch.setattr(io, "open", self._io_open)

    def heal(self) -> None:
        """Nothing fails any more."""
        self._failing = False

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Nothing fails meanwhile, and nothing is counted."""
        failing, counted = self._failing, self.calls.copy()
        self._failing = False
        try:
            yield
        finally:
            self._failing, self.calls = failing, counted

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, (str, os.PathLike)) and (str(path) + "/").startswith(self._root + "/")

    def begin(self, fault: Fault | None, nth: int) -> None:
        """From here on calls count."""
        self.calls.clear()
        self.owed.clear()
        self.fault, self.nth, self._failing = fault, nth, True

    def check(self, call: str, path: str, size: int = 0) -> int:
        """Count the call, and raise where it is to fail; how many of `size` bytes it takes."""
        with self._lock:
            self.calls[call] += 1
            fault = self.fault
            if fault is None or not self._fails(fault, call):
                return size
            self.failed.append((call, path))
        if isinstance(fault.how, int):
            raise OSError(fault.how, os.strerror(fault.how), path)
        return min(size, fault.how(size))

    def _fails(self, fault: Fault, call: str) -> bool:
        if not self._failing:
            return False
        if fault.lasts == "with it" and self.failed:
            return call in self.TOGETHER.get(fault.errno, {call})
        if call != fault.call or (fault.lasts == "once" and self.failed):
            return False
        return self.calls[call] >= self.nth

    def _by_path(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(path: Any, *arguments: Any, **named: Any) -> Any:
            if not self._is_ours(path):
                return real(path, *arguments, **named)
            self.check(name, str(path))
            made = real(path, *arguments, **named)
            if name == "mkdir":
                self.owed.add(str(path))
            return made

        return call

    def _by_descriptor(self, name: str) -> Callable[..., Any]:
        real = self._real[name]

        def call(fd: int, *arguments: Any) -> Any:
            path = self.open.get(fd)
            if path is None:
                return real(fd, *arguments)
            spoilt = self._spoilt.get(self._files[fd])
            if spoilt is not None and name in ("write", spoilt):
                self.wrongs.append(f"{name} of {path}, though one by this descriptor has failed")
            try:
                size = self.check(name, path, len(arguments[0]) if name == "write" else 0)
            except OSError as error:
                if name == "fdatasync" or (name == "write" and error.errno == errno.EIO):
                    self._spoilt[self._files[fd]] = name
                raise
            if name == "write":
                self.unsynced.add(path)
            elif name == "fdatasync":
                self.unsynced.discard(path)
            if name in ("fsync", "fdatasync"):
                self.owed -= {name for name in self.owed if os.path.dirname(name) == path}
                return None  # it takes long, and no test here cuts the power
            if name == "write":
                return real(fd, bytes(arguments[0])[:size])
            made = real(fd, *arguments)
            if name == "dup":
                self.open[made], self._files[made] = path, self._files[fd]
            return made

        return call

    def _open(self, path: Any, flags: int, *arguments: Any, **named: Any) -> int:
        if not self._is_ours(path):
            return self._real["open"](path, flags, *arguments, **named)  # type: ignore[no-any-return]
        self.check("create" if flags & os.O_CREAT else "open", str(path))
        if flags & os.O_CREAT and str(path).endswith(".jsonl") and not os.path.lexists(path):
            self.owed.add(str(path))
        fd: int = self._real["open"](path, flags, *arguments, **named)
        self.open[fd], self._files[fd] = str(path), next(self._openings)
        return fd

    def _io_open(self, path: Any, *arguments: Any, **named: Any) -> Any:
        if self._is_ours(path):
            self.check("open", str(path))
        return self._real["io.open"](path, *arguments, **named)

    def _close(self, fd: int) -> None:
        self.open.pop(fd, None)
        self._real["close"](fd)

    def _fdopen(self, fd: int, mode: str = "r", *arguments: Any, **named: Any) -> Any:
        if fd not in self.open:
            return self._real["fdopen"](fd, mode, *arguments, **named)
        buffered = io.BufferedWriter(_File(self, fd))
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")


class _File(io.FileIO):
    """What `os.fdopen` gives, with writes that can fail."""

    def __init__(self, system: System, fd: int) -> None:
        super().__init__(fd, "wb")
        self._system = system

    def write(self, data: Any, /) -> int:
        size = self._system.check("file.write", self._system.open[self.fileno()], len(data))
        return super().write(bytes(data)[:size])

    def close(self) -> None:
        if not self.closed:
            self._system.open.pop(self.fileno(), None)
        super().close()


# --- scenes ----------------------------------------------------------------------------------------------------------


def value_of(key: Any) -> list[Any]:
    """What is saved for a key, always."""
    return [key, "x" * 50]


class Stage:
    """Where a scene is played, and what was asked for and told.

    Attributes:
        saved: results that were acknowledged.
        told: error messages that were acknowledged, by key.
        unsaved: what the errors' `.unsaved` held.
        doubtful: keys of which nobody can say whether they are there: forgetting them failed half-way.
        gone: keys whose forgetting was acknowledged.
        errors: what was raised.
        damaged: a damaged line, which is set aside and never destroyed.
        again: what was cut off by the fault and is run again.
    """

    def __init__(self, directory: Path, ticker: Ticker, system: System, begin: Callable[[], None]) -> None:
        self.directory = directory
        self.ticker = ticker
        self.begin = begin
        self._system = system
        self._failed_before = 0
        self._durable = False
        self.runner: CheckpointedRunner | None = None
        self.saved: dict[Any, Any] = {}
        self.told: dict[Any, str] = {}
        self.unsaved: dict[Any, Any] = {}
        self.doubtful: set[Any] = set()
        self.gone: set[Any] = set()
        self.computed: Counter[Any] = Counter()
        self.errors: list[StoreError] = []
        self.damaged = b""
        self.again: Callable[[], None] = lambda: None

    def open(self, **options: Any) -> CheckpointedRunner | None:
        """A runner, or None where it cannot be opened."""
        self._failed_before = len(self._system.failed)
        self._durable = options.get("durability") == "power"
        with self.noting():
            self.runner = CheckpointedRunner("j", self.directory, **options)
        return self.runner

    @property
    def may_refuse(self) -> bool:
        """Whether nobody knows what is on the medium since something failed after the runner was opened."""
        failed, fault = self._system.failed[self._failed_before :], self._system.fault
        journals = [call for call, path in failed if path.endswith(".jsonl")]
        return "fdatasync" in journals or (bool(journals) and fault is not None and fault.errno == errno.EIO)

    @contextmanager
    def noting(self, unsaved: dict[Any, Any] | None = None) -> Iterator[None]:
        """The store may fail here; its error holds just these values."""
        try:
            yield
        except StoreError as error:
            told = error
        else:
            return
        forget_frames(told)
        self.errors.append(told)
        assert unsaved in (None, told.unsaved), "`.unsaved` is what was not written"
        self.unsaved.update(told.unsaved)

    def save(self, key: Any) -> None:
        assert self.runner is not None
        self.gone.discard(key)  # where cutting it back fails too, it may be there
        with self.noting({key: value_of(key)}):
            self.runner.save_result(key, value_of(key))
            self.saved[key] = value_of(key)
            self.doubtful.discard(key)
            journal = str(self.directory / "j_results.jsonl")
            names = {str(self.directory), journal}
            assert not (self._durable and journal in self._system.unsynced), "acknowledged, and not on the medium"
            assert not names & self._system.owed, "acknowledged in a file whose name is not on the medium"

    def save_error(self, key: Any) -> None:
        assert self.runner is not None
        with self.noting({}):
            self.runner.save_error(key, f"{key} failed")
            self.told[key] = f"{key} failed"

    def read(self) -> None:
        """What can be read is right."""
        assert self.runner is not None
        with self.noting({}):
            self.check_values(self.runner.get_all_results())
            for key, message in self.runner.get_all_errors().items():
                assert "failed" in message or key == "odd", "no other error than those that were saved"

    def check_values(self, found: dict[Any, Any], among: Iterable[Any] | None = None) -> None:
        """All that was acknowledged is there (among these keys), and nothing is wrong."""
        known = self.saved.keys() - self.doubtful
        assert {key: value for key, value in found.items() if value != value_of(key)} == {}
        assert (known if among is None else known.intersection(among)) <= found.keys(), "acknowledged, and not there"
        assert self.gone & found.keys() == set(), "forgotten, and there"

    def kept_on_disk(self) -> set[Any]:
        """The keys whose values are there, now that nobody writes; this look does not fail."""
        with self._system.at_rest():
            check_lock_is_free(self)
            return on_disk(self.directory / "j_results.jsonl") | on_disk(self.directory / ".j_unsaved.jsonl")

    def close(self) -> None:
        runner, self.runner = self.runner, None
        if runner is not None:
            with self.noting({}):
                runner.close()

    def tend(self) -> None:
        """What the thread that tends does: it never raises."""
        assert self.runner is not None
        self.ticker.tick(0.6)
        self.runner.records.store.writer.tend()


def forget_frames(error: BaseException | None) -> None:
    """They hold descriptors."""
    if error is not None:
        error.__traceback__ = None
        forget_frames(error.__cause__)
        forget_frames(error.__context__)


def by_hand(stage: Stage, **options: Any) -> None:
    """Results, errors and a value that is kept aside; housekeeping; closing; opening; reading."""
    stage.begin()
    if stage.open(**options) is None:
        return
    for key in range(3):
        stage.save(key)
    stage.save_error("bad")
    assert stage.runner is not None
    odd = object()
    with stage.noting({"odd": odd}), suppress(UnencodableValue):
        stage.runner.save_result("odd", odd)
    stage.tend()
    stage.ticker.tick(1.5)
    stage.save(3)
    stage.runner.records.store.own.results.write_index()
    stage.read()
    stage.save(4)
    stage.close()
    if stage.open(**options) is not None:
        stage.save(5)
        stage.read()


def by_hand_durably(stage: Stage) -> None:
    """The same, each record synced."""
    by_hand(stage, durability="power")


def a_pass_by_hand(stage: Stage) -> None:
    """iterate, over a checkpoint that holds some."""
    prepare(stage, ["a", 0, 1], errors=["bad"])
    if stage.open() is None:
        return
    assert stage.runner is not None
    with stage.noting():
        for key in stage.runner.iterate([0, 1, 2, 3, 4, "bad"]):
            stage.ticker.tick(0.4)
            stage.save_error(key) if key == 3 else stage.save(key)
    stage.read()


def clearing_all(stage: Stage) -> None:
    """clear(), and saving after it."""
    prepare(stage, range(3), errors=["bad"], aside=True)
    if stage.open() is None:
        return
    assert stage.runner is not None
    before = set(stage.saved)
    stage.doubtful |= before
    with stage.noting({}):
        stage.runner.clear()
        stage.gone |= before
        stage.doubtful -= before
        for key in before:
            del stage.saved[key]
        stage.told.clear()
    stage.told.clear()
    stage.read()
    stage.save("after")
    stage.read()


def clearing_some(stage: Stage) -> None:
    """clear(keys), and saving after it."""
    prepare(stage, range(4), errors=["bad"], aside=True)
    if stage.open() is None:
        return
    assert stage.runner is not None
    stage.told.clear()
    stage.doubtful |= {1, 2}
    with stage.noting({}):
        stage.runner.clear([1, 2, "bad", "odd"])
        stage.gone |= {1, 2}
        stage.doubtful -= {1, 2}
        for key in (1, 2):
            del stage.saved[key]
    stage.read()
    stage.save("after")
    stage.save(1)


def after_a_crash(stage: Stage) -> None:
    """A torn record, one that only lacks its newline, and no meta: both are mended at the first save."""
    prepare(stage, range(3), errors=["bad", "worse"], torn=True)
    if stage.open() is None:
        return
    stage.read()
    stage.save("after")
    stage.save_error("after too")
    stage.read()
    stage.tend()
    stage.close()
    if stage.open() is not None:
        stage.read()


def housekeeping(stage: Stage) -> None:
    """Meta and indexes written time and again, by the thread that tends and as a pass ends; they are only caches."""
    prepare(stage, range(5), errors=["bad"], indexed=True)
    if stage.open() is None:
        return
    assert stage.runner is not None
    own = stage.runner.records.store
    for turn in range(2):
        stage.save(f"turn {turn}")
        stage.ticker.tick(31)
        own.writer.tend()
        for shelf in (own.own.results, own.own.errors):
            shelf.write_index()
        stage.read()
    with stage.noting({}):
        assert stage.runner.is_completed(3)
        assert not stage.runner.is_completed("absent")


def upkeeping(stage: Stage) -> None:
    """Damage set aside, superseded lines left out; cut off at any point, each can be run again."""
    prepare(stage, [0, 1, 2, 3, 0, 1], errors=["bad", "bad"], aside=True, damaged=True)

    def upkeep_all() -> None:
        repair.repair("j", stage.directory)
        compact.compact("j", stage.directory)

    stage.again = upkeep_all
    with stage.noting({}):
        upkeep_all()
    if stage.open() is not None:
        if not stage.errors:
            stage.read()
        stage.save("after")


def mapping(stage: Stage, workers: int | None = None, **options: Any) -> None:
    """map, some of whose items fail, over a checkpoint that holds some; the same process maps again."""
    prepare(stage, ["a", 0, 1])
    map_once(stage, workers, **options)


def mapping_durably(stage: Stage) -> None:
    """The same, each record synced."""
    mapping(stage, durability="power")


def mapping_with_threads(stage: Stage) -> None:
    """The same by three threads."""
    mapping(stage, 3)


BAD = ("fails", "odd")
ITEMS = [0, 1, 2, 3, "fails", 4, "odd", 5, 6]


def map_once(stage: Stage, workers: int | None = None, **options: Any) -> None:
    """One map; what was computed is on disk, or in `.unsaved`."""
    made: dict[Any, Any] = {}

    def function(key: Any) -> Any:
        stage.ticker.tick(0.3)
        stage.computed[key] += 1
        if key == "fails":
            raise LookupError("it failed")
        made[key] = object() if key == "odd" else value_of(key)
        return made[key]

    with stage.noting():
        mapper = checkpointed("j", checkpoint_dir=stage.directory, version=None, **options)(function)
        with closing(mapper.runner):
            try:
                found = list(mapper.map(ITEMS, workers=workers, progress=False))
            except ItemsFailed as error:
                found = list(error.results or ())
            stage.check_values({key: value for key, value in zip(ITEMS, found, strict=True) if key not in BAD}, ITEMS)
    there = stage.kept_on_disk()
    lost = made.keys() - there
    assert all(stage.unsaved.get(key) == made[key] for key in lost), f"{sorted(lost, key=str)} are nowhere"
    stage.saved.update({key: value for key, value in made.items() if key not in stage.unsaved and key != "odd"})


def on_disk(path: Path) -> set[Any]:
    """The keys of the whole records in a journal."""
    with suppress(FileNotFoundError):
        lines = path.read_bytes().split(b"\n")[:-1]
        return {json.loads(line)["key"] for line in lines if is_sound(line)}
    return set()


def is_sound(line: bytes) -> bool:
    """Whether it is one of our records, as it was written."""
    try:
        return bool(parse(line).crc)
    except ValueError:
        return False


SCENES: dict[str, Callable[[Stage], None]] = {
    "by hand": by_hand,
    "by hand, durably": by_hand_durably,
    "a pass by hand": a_pass_by_hand,
    "clearing all": clearing_all,
    "clearing some": clearing_some,
    "after a crash": after_a_crash,
    "housekeeping": housekeeping,
    "upkeep": upkeeping,
    "map": mapping,
    "map, durably": mapping_durably,
    "map with threads": mapping_with_threads,
}


@cache
def prepared(keys: tuple[Any, ...], errors: tuple[Any, ...], aside: bool, indexed: bool) -> dict[str, bytes]:
    """The files of a checkpoint that holds these."""
    with TemporaryDirectory() as directory:
        with CheckpointedRunner("j", directory) as runner:
            for key in keys:
                runner.save_result(key, value_of(key))
            for key in errors:
                runner.save_error(key, f"{key} failed")
            if aside:
                with suppress(UnencodableValue):
                    runner.save_result("odd", object())
            if indexed:
                for shelf in (runner.records.store.own.results, runner.records.store.own.errors):
                    shelf.write_index()
        return {file.name: file.read_bytes() for file in Path(directory).iterdir()}


def prepare(
    stage: Stage,
    keys: Iterable[Any],
    errors: Iterable[Any] = (),
    *,
    aside: bool = False,
    indexed: bool = False,
    torn: bool = False,
    damaged: bool = False,
) -> None:
    """The stage's checkpoint holds these already; what comes now may fail."""
    keys, errors = tuple(keys), tuple(errors)
    stage.directory.mkdir()
    files = dict(prepared(keys, errors, aside, indexed))
    if torn:
        files["j_results.jsonl"] += b'{"key":"torn","result":[1,2'
        files["j_errors.jsonl"] = files["j_errors.jsonl"][:-1]
        del files["j_meta.json"]
    if damaged:
        files["j_results.jsonl"] = files["j_results.jsonl"].replace(b'{"key":3,"result":[3', b'{"key":3,"result":[4')
        stage.damaged = next(line for line in files["j_results.jsonl"].split(b"\n") if line.startswith(b'{"key":3'))
        keys = tuple(key for key in keys if key != 3)
    for name, data in files.items():
        (stage.directory / name).write_bytes(data)
    stage.saved.update({key: value_of(key) for key in keys})
    stage.told.update({key: f"{key} failed" for key in errors})
    stage.begin()


# --- the law ---------------------------------------------------------------------------------------------------------


def play(scene: str, root: Path, fault: Fault | None = None, nth: int = 0) -> System:
    """Play the scene under the fault, go on without it, and look at what is there."""
    with pytest.MonkeyPatch.context() as patch:
        ticker = Ticker()
        patch.setattr(clock, "monotonic", ticker)
        patch.setattr(REGISTRY, "maintain", lambda _: None)
        patch.setattr(logging.getLogger("checkpoint"), "propagate", False)  # who keeps records keeps descriptors
        system = System(root, patch)
        stage = Stage(root / "checkpoints", ticker, system, lambda: system.begin(fault, nth))
        try:
            SCENES[scene](stage)
            system.heal()
            counted = system.calls.copy()
            check_errors(stage, system, fault)
            go_on(stage, system, fault)
        finally:
            system.heal()
            stage.close()
        stage.errors.clear()
        check_let_go(stage, system)
        look(stage)
        system.calls = counted
        return system


def check_errors(stage: Stage, system: System, fault: Fault | None) -> None:
    """Each is an own one, and the OSError with its errno and its file's name."""
    if fault is None or not system.failed:
        assert stage.errors == []
    for error in stage.errors:
        assert isinstance(error, CheckpointError)
        assert isinstance(error, OSError)
        assert fault is not None
        assert error.errno == fault.errno, error
        assert str(error.filename).startswith(str(stage.directory.parent)), error
        assert os.strerror(error.errno) in str(error) or not isinstance(fault.how, int)
    assert system.wrongs == []
    if stage.computed and any(call == "fdatasync" and path.endswith(".jsonl") for call, path in system.failed):
        assert stage.errors, "a pass whose sync failed has not ended well"


def go_on(stage: Stage, system: System, fault: Fault | None) -> None:
    """The fault is gone: the same runner saves, or refuses with the old error, and then a pass opens the files anew."""
    if stage.damaged:
        stage.close()
        stage.again()
    if stage.runner is None:
        stage.open()
    assert stage.runner is not None
    left = [key for key in stage.unsaved if key != "odd"] + ["last"]
    for key in left:
        known = len(stage.errors)
        stage.save(key)
        if len(stage.errors) > known:
            assert fault is not None
            assert stage.may_refuse, f"it still refuses: {stage.errors[-1]}"
            assert stage.errors[-1].errno == fault.errno
    for key in stage.runner.iterate([*left, "more"]):
        stage.runner.save_result(key, value_of(key))
        stage.saved[key] = value_of(key)
        stage.gone.discard(key)
    stage.check_values(stage.runner.get_all_results())
    stage.close()
    if stage.computed:
        stage.computed.clear()
        there = stage.kept_on_disk()
        map_once(stage)
        assert set(stage.computed) == {key for key in ITEMS if key not in there}, "only the rest is computed"
    assert system.wrongs == []


def check_let_go(stage: Stage, system: System) -> None:
    """No descriptor is left open, and the lock is free."""
    for generation in range(3):  # errors hold the frames that they came through
        if system.open:
            gc.collect(generation)
    end = time.monotonic() + 10
    while system.open and time.monotonic() < end:
        time.sleep(0.001)  # a worker thread that ends holds what it was called with
        gc.collect()
    assert system.open == {}
    assert (str(stage.directory), "j") not in REGISTRY
    check_lock_is_free(stage)


def check_lock_is_free(stage: Stage) -> None:
    """Whoever wants to write may."""
    lock = Lock(stage.directory / ".j.lock", "j")
    lock.acquire()
    lock.release()


def look(stage: Stage) -> None:
    """Whoever opens it anew finds all that was acknowledged, whole lines only, and nothing wrong."""
    with CheckpointedRunner("j", stage.directory, version=None) as runner:
        stage.check_values(runner.get_all_results())
        found = runner.get_all_errors()
        done = set(runner.get_all_results())
        assert {key: text for key, text in stage.told.items() if key not in done and found.get(key) != text} == {}
        assert runner.progress()[0] == len(done)
    lines = (stage.directory / "j_results.jsonl").read_bytes().splitlines(keepends=True)
    assert all(line.endswith(b"\n") and is_sound(line) for line in lines)
    if stage.damaged:
        asides = (stage.directory / ".j_results.aside").read_bytes().splitlines()
        assert stage.damaged in {base64.b64decode(json.loads(line)["bytes"]).rstrip(b"\n") for line in asides}


@cache
def counts(scene: str) -> Counter[str]:
    """How many calls of each kind the scene makes where nothing fails; the laws hold then too."""
    with TemporaryDirectory(prefix="checkpoint-calls-", dir=SHM) as root:
        return play(scene, Path(root).resolve()).calls


FAULTS = [
    ("write", errno.ENOSPC, "a full disk"),
    ("write", errno.EDQUOT, "a quota"),
    ("write", errno.EIO, "a broken disk"),
    ("write", errno.EINTR, "a signal whose handler raised"),
    ("write", lambda size: size // 2, "half of it"),
    ("write", lambda size: 1, "one byte"),
    ("write", lambda size: 0, "nothing, and no error"),
    ("file.write", errno.ENOSPC, "a full disk"),
    ("file.write", errno.EIO, "a broken disk"),
    ("file.write", lambda size: size // 2 + 1, "half of it"),
    ("fdatasync", errno.EIO, "a broken disk"),
    ("fdatasync", errno.ENOSPC, "a disk that allocates late"),
    ("fdatasync", errno.EINTR, "a network drive"),
    ("fsync", errno.EIO, "a broken disk"),
    ("fsync", errno.ENOSPC, "a full disk"),
    ("create", errno.ENOSPC, "no inode left"),
    ("create", errno.EACCES, "another user's"),
    ("create", errno.EROFS, "a read-only file system"),
    ("create", errno.EMFILE, "too many open files"),
    ("open", errno.EACCES, "another user's"),
    ("open", errno.EIO, "a broken disk"),
    ("open", errno.EINTR, "a slow network drive"),
    ("open", errno.EMFILE, "too many open files"),
    ("dup", errno.EMFILE, "too many open files"),
    ("replace", errno.EACCES, "another user's"),
    ("replace", errno.EIO, "a broken disk"),
    ("ftruncate", errno.EIO, "a broken disk"),
    ("ftruncate", errno.EINTR, "a network drive"),
    ("lseek", errno.EIO, "a broken disk"),
    ("unlink", errno.EACCES, "another user's"),
    ("unlink", errno.EIO, "a broken disk"),
    ("pread", errno.EIO, "a broken disk"),
    ("read", errno.EIO, "a broken disk"),
    ("fstat", errno.EIO, "a broken disk"),
    ("stat", errno.EIO, "a broken disk"),
    ("stat", errno.EACCES, "a directory that may not be searched"),
    ("mkdir", errno.EACCES, "another user's"),
    ("mkdir", errno.ENOSPC, "a full disk"),
    ("flock", errno.ENOLCK, "a file system without locks"),
    ("flock", errno.EINTR, "a network drive"),
]


def faults() -> Iterator[Any]:
    """Each with the ways in which it lasts."""
    how: Any
    for call, how, reason in FAULTS:
        code = errno.errorcode[how] if isinstance(how, int) else reason
        for lasts in ("once", "this call", "with it"):
            if lasts == "with it" and (not isinstance(how, int) or how not in System.TOGETHER):
                continue
            yield pytest.param(Fault(call, how, lasts), id=f"{call}: {code}, {lasts}")


@pytest.mark.promise(
    "disk full, quota, file-size limit", "EIO on write or fsync", "read-only directory or file", "NFS, network drives"
)
@pytest.mark.parametrize("fault", list(faults()))
@pytest.mark.parametrize("scene", SCENES)
def test_a_call_that_fails_loses_nothing_that_was_acknowledged(scene: str, fault: Fault) -> None:
    """Whichever call of its kind fails: the error is an own one, the process goes on or says why it cannot, and what
    was acknowledged is there when the checkpoint is opened anew.
    """
    total = counts(scene)[fault.call]
    for nth in range(1, total + 1):
        with TemporaryDirectory(prefix="checkpoint-calls-", dir=SHM) as root:
            try:
                play(scene, Path(root).resolve(), fault, nth)
            except BaseException as error:
                error.add_note(f"call {nth} of {total} failed")
                raise
