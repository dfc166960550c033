"""What surrounds a run harms no result: missing packages, deep stacks, alarms, closed streams, other threads."""

from __future__ import annotations

import collections
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy
import pytest

import checkpoint
from checkpoint import (
    CheckpointedRunner,
    CheckpointLocked,
    InvalidKey,
    JournalLost,
    StoreError,
    UnbuildableValue,
    checkpointed,
)

SOURCE = str(Path(checkpoint.__file__).parent.parent)


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def deep(levels: int, call: Callable[[], Any]) -> Any:
    """What the call returns, from so many frames further down."""
    return call() if levels == 0 else deep(levels - 1, call)


def frames_left() -> int:
    """How many frames the caller's stack has left."""
    frame, used = sys._getframe(), 0
    while frame.f_back is not None:
        frame, used = frame.f_back, used + 1
    return sys.getrecursionlimit() - used


def test_a_sound_record_that_cannot_be_read_here_is_not_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without numpy an array cannot be built: that is said, and the record is neither forgotten nor paid for again."""
    with CheckpointedRunner("n") as runner:
        runner.save_result("array", numpy.arange(3))
    before = Path("checkpoints/n_results.jsonl").read_bytes()
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "numpy", None)
        with CheckpointedRunner("n") as runner:
            with pytest.raises(UnbuildableValue, match=r"n_results.jsonl:1, key 'array': .*pip install numpy"):
                runner.get_result("array")
            assert runner.is_completed("array")
    assert Path("checkpoints/n_results.jsonl").read_bytes() == before
    with CheckpointedRunner("n") as runner:
        assert list(runner.get_result("array")) == [0, 1, 2]


def test_an_envelope_of_a_later_version_is_not_damaged() -> None:
    """What this version does not know stays for one that does."""
    from checkpoint.storage.record import seal

    Path("checkpoints").mkdir()
    path = Path("checkpoints/e_results.jsonl")
    path.write_bytes(seal(b'{"key":1,"result":{"$novel":[1]},"timestamp":"2026-01-01T00:00:00.000000Z","session":"aa"'))
    with CheckpointedRunner("e") as runner:
        with pytest.raises(UnbuildableValue, match="novel"):
            runner.get_result(1)
        assert runner.is_completed(1)
    assert b"forgotten" not in path.read_bytes()


@pytest.mark.parametrize("short", range(5, 120, 5))
def test_a_caller_deep_in_the_stack_harms_no_record(short: int) -> None:
    """The value, or Python's own RecursionError; never damage, and never a second payment."""
    value: Any = (1, 2)
    for _ in range(150):
        value = [value]
    calls: list[int] = []

    @checkpointed("deep")
    def function(n: int) -> Any:
        calls.append(n)
        return value

    function.map([1, 2], progress=False)
    before = Path("checkpoints/deep_results.jsonl").read_bytes()
    levels = frames_left() - short
    with CheckpointedRunner("deep") as runner:
        try:
            assert deep(levels, lambda: runner.get_result(1)) == value
            deep(levels, lambda: function.options().map([1, 2], progress=False))
        except RecursionError:
            pass
        assert runner.get_result(2) == value
    assert calls == [1, 2]
    assert Path("checkpoints/deep_results.jsonl").read_bytes() == before


@pytest.mark.promise("journal deleted, replaced or truncated while open")
def test_a_journal_deleted_in_the_last_second_is_noticed_when_the_pass_ends() -> None:
    """Not only by the next save a second later: a pass that ends, and close, look too."""
    path = Path("checkpoints/gone_results.jsonl")
    calls: list[int] = []

    @checkpointed("gone")
    def function(n: int) -> int:
        calls.append(n)
        if len(calls) == 4:
            path.unlink()
        return n

    with pytest.raises(JournalLost) as caught:
        function.map(range(6), progress=False)
    assert list(caught.value.keys) == [0, 1, 2, 3, 4, 5]
    assert function.map(range(6), progress=False) == [0, 1, 2, 3, 4, 5]
    runner = CheckpointedRunner("closed")
    runner.save_result("a", 1)
    Path("checkpoints/closed_results.jsonl").unlink()
    with pytest.raises(JournalLost, match="'a'"):
        runner.close()


@pytest.mark.slow
def test_runners_that_come_and_go_in_threads_never_lock_each_other_out() -> None:
    """Whatever the order of closing and opening, one process has one store for a path."""
    seen: collections.Counter[str] = collections.Counter()

    def work(number: int) -> None:
        for turn in range(300):
            try:
                with CheckpointedRunner("busy") as runner:
                    runner.save_result((number, turn), turn)
                seen["saved"] += 1
            except CheckpointLocked:
                seen["locked out"] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"saved": 900}
    assert len(CheckpointedRunner("busy").get_all_results()) == 900


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="there is no SIGALRM")
def test_an_alarm_in_the_middle_of_a_write_is_no_disk_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TimeoutError that the user's handler raises passes through, and the store goes on."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError("my limit")

    runner, write, rung = CheckpointedRunner("alarm"), os.write, list[bool]()
    runner.save_result(0, 0)

    def write_late(fd: int, data: Any) -> int:
        if not rung:
            rung.append(True)
            os.kill(os.getpid(), signal.SIGALRM)
        return write(fd, data)

    before = signal.signal(signal.SIGALRM, ring)
    try:
        monkeypatch.setattr("checkpoint.storage.files.os.write", write_late)
        with pytest.raises(TimeoutError, match="my limit") as caught:
            runner.save_result(1, 1)
        assert not isinstance(caught.value, StoreError)
    finally:
        signal.signal(signal.SIGALRM, before)
    runner.save_result(2, 2)
    assert runner.get_all_results() == {0: 0, 2: 2}
    runner.close()


def test_a_key_too_deep_to_be_written_is_refused_before_anything_is_paid_for() -> None:
    """Whatever its depth, it is InvalidKey, and names the item."""
    calls: list[int] = []

    def deep_key(n: int) -> Any:
        key: Any = n
        for _ in range(n):
            key = (key,)
        return key

    for levels in (22, 250, 5000):
        function = checkpointed("keys", key=deep_key)(calls.append)
        with pytest.raises(InvalidKey, match="item 1: a key is a tuple more than 20 levels deep"):
            function.map([1, levels], progress=False)
    assert calls == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Unix descriptors")
def test_what_others_print_never_lands_in_a_journal() -> None:
    """With stdin, stdout and stderr closed, files get no descriptor that C code writes to."""
    program = (
        "import os\nfrom checkpoint import CheckpointedRunner\nrunner = CheckpointedRunner('c')\n"
        "for n in range(3):\n    runner.save_result(n, n)\n"
        "    for fd in (1, 2):\n        try: os.write(fd, b'libfoo: warning')\n        except OSError: pass\n"
    )
    shell = f'"{sys.executable}" -c "$PROGRAM" 0<&- 1>&- 2>&-'
    environment = {**os.environ, "PYTHONPATH": SOURCE, "PROGRAM": program}
    assert subprocess.run(shell, shell=True, env=environment).returncode == 0
    assert b"libfoo" not in Path("checkpoints/c_results.jsonl").read_bytes()
    assert CheckpointedRunner("c").get_all_results() == {0: 0, 1: 1, 2: 2}


def test_the_first_save_of_a_runner_made_by_hand_joins_the_version_that_is_there() -> None:
    """Results that another process saved meanwhile stay in sight."""
    late = CheckpointedRunner("v")
    with CheckpointedRunner("v", version="A") as other:
        other.save_result("a", 1)
    late.save_result("b", 2)
    assert late.get_all_results() == CheckpointedRunner("v", version="A").get_all_results() == {"a": 1, "b": 2}


def test_a_field_of_a_row_is_a_key() -> None:
    """Rows of sqlite3 and of structured arrays are no mappings, and have fields all the same."""
    database = sqlite3.connect(":memory:")
    database.row_factory = sqlite3.Row
    rows = list(database.execute("select 7 as id, 'x' as text"))
    database.close()
    assert checkpointed("sql", key="id")(lambda row: row["text"]).map(rows, progress=False).to_dict() == {7: "x"}
    array = numpy.array([(1, 2.0), (3, 4.0)], dtype=[("id", "i8"), ("x", "f8")])
    function = checkpointed("rows", key="id")(lambda row: float(row["x"]))
    assert function.map(array, progress=False).to_dict() == {1: 2.0, 3: 4.0}


# --- what a method depends on ----------------------------------------------------------------------------------------


class Parent:
    model = "parent"
    unread = "same"

    def __init__(self) -> None:
        self.asked = 0

    def helper(self) -> str:
        return "plain"

    @cached_property
    def prompt(self) -> str:
        return "prompt"

    @checkpointed("by-model")
    def by_model(self, item: int) -> str:
        return f"{self.model} {item}"

    @checkpointed("by-helper")
    def by_helper(self, item: int) -> str:
        return f"{self.helper()} {item}"

    @checkpointed("by-prompt")
    def by_prompt(self, item: int) -> str:
        return self.prompt

    @checkpointed("by-class")
    @classmethod
    def by_class(cls, item: int) -> str:
        return cls.model

    @checkpointed("counting")
    def counting(self, item: int) -> int:
        self.asked += 1
        return item


class Child(Parent):
    model = "child"
    unread = "other"

    def helper(self) -> str:
        return "overridden"


class Same(Parent):
    unread = "third"


@pytest.mark.parametrize("method", ["by_model", "by_helper", "by_class"])
def test_a_subclass_never_gets_the_results_of_its_parent(method: str) -> None:
    """Class attributes that the method reads, and methods it calls that are overridden, are part of the version."""
    first = getattr(Parent(), method).map([1], progress=False)
    second = getattr(Child(), method).map([1], progress=False)
    assert first != second
    assert list(first) == list(getattr(Parent(), method).map([1], progress=False))


@pytest.mark.parametrize("method", ["by_model", "by_helper", "by_class"])
def test_a_subclass_that_changes_nothing_of_it_shares_the_results(method: str) -> None:
    """What the method does not read tells nothing apart."""
    assert getattr(Same(), method).runner.records.version == getattr(Parent(), method).runner.records.version


def test_what_is_cached_on_use_does_not_change_the_version() -> None:
    """A cached property is made anew when it is asked for: it is no state of its own."""
    parent = Parent()
    before = parent.by_prompt.runner.records.version
    parent.by_prompt.map([1], progress=False)
    assert "prompt" in vars(parent)
    assert parent.by_prompt.runner.records.version == before


def test_a_method_that_changes_what_it_depends_on_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Its next map would compute everything anew without a word."""
    Parent().counting.map([1], progress=False)
    assert "Parent.counting changes self.asked while it runs" in caplog.text
    assert "version=lambda self" in caplog.text


class Deep:
    factor = 2

    def base(self, item: int) -> int:
        return item * self.factor

    @property
    def extra(self) -> int:
        return 1

    @classmethod
    def more(cls) -> int:
        return 1


class Middle(Deep):
    def base(self, item: int) -> int:
        return super().base(item)

    @checkpointed("by-super")
    def by_super(self, item: int) -> int:
        return self.base(item)

    @checkpointed("by-property")
    def by_property(self, item: int) -> int:
        return item + self.extra

    @checkpointed("by-class-method")
    def by_class_method(self, item: int) -> int:
        return item + self.more()


class Leaf(Middle):
    factor = 10

    @property
    def extra(self) -> int:
        return 10

    @classmethod
    def more(cls) -> int:
        return 10


class Slotted:
    __slots__ = ("__hidden",)

    def __init__(self, hidden: int) -> None:
        self.__hidden = hidden

    @checkpointed("by-slot")
    def by_slot(self, item: int) -> int:
        return item * self.__hidden


@pytest.mark.parametrize("method", ["by_super", "by_property", "by_class_method"])
def test_what_is_reached_through_super_and_descriptors_counts_too(method: str) -> None:
    """Whatever kind of member it is, and however it is reached."""
    assert getattr(Middle(), method).map([1], progress=False) == [2]
    assert getattr(Leaf(), method).map([1], progress=False) == [10 if method == "by_super" else 11]


def test_private_slots_tell_instances_apart() -> None:
    """Their names are mangled, and they are state all the same."""
    assert Slotted(2).by_slot.map([1], progress=False) == [2]
    assert Slotted(10).by_slot.map([1], progress=False) == [10]


def test_a_name_that_is_not_read_from_an_object_needs_no_version() -> None:
    """A global, or an import, may be called as an attribute is."""

    class Dumper:
        def __init__(self) -> None:
            self.json = object()

        @checkpointed("dumper")
        def dump(self, item: int) -> str:
            import json

            return json.dumps(item)

    assert Dumper().dump.map([1], progress=False) == ["1"]


@pytest.mark.slow
def test_failures_that_stand_need_no_lock() -> None:
    """Where nothing is run, another writer is in nobody's way."""

    @checkpointed("stands")
    def function(n: int) -> int:
        if n == 2:
            raise ValueError("two")
        return n

    function.map([1, 2], progress=False, return_exceptions=True)
    program = (
        "from checkpoint import CheckpointedRunner\nrunner = CheckpointedRunner('stands')\n"
        "items = runner.iterate([1, 78])\nnext(items)\nprint('held', flush=True)\ninput()\n"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        found = function.map([1, 2], progress=False, retry_failed=False, return_exceptions=True)
        assert found[0] == 1
        assert "two" in str(found[1])
        with pytest.raises(CheckpointLocked):
            function.map([1, 2], progress=False)
        other.communicate(b"\n")


def test_a_pass_of_a_runner_made_by_hand_that_saves_nothing_does_not_bind_it() -> None:
    """It goes on following the version of the last record."""
    with CheckpointedRunner("bound", version=None) as first:
        first.save_result(2, 2)
    late = CheckpointedRunner("bound")
    assert list(late.iterate([2])) == []
    with CheckpointedRunner("bound", version="y") as other:
        other.save_result(9, 9)
    assert late.get_result(9) == 9


@pytest.mark.parametrize("value", [{numpy.str_("a"): 1}, [{numpy.str_("a"): []}], [numpy.float64(1)]], ids=repr)
def test_a_numpy_scalar_never_reads_back_as_a_plain_one(value: Any) -> None:
    """Equal, and a buffer for marshal, is not the same."""
    with CheckpointedRunner("scalars") as runner:
        runner.save_result(1, value)
        back = runner.get_result(1)
    assert back == value
    (mine,), (theirs,) = back, value
    while type(theirs) is dict:
        (mine,), (theirs,) = mine, theirs
    assert type(mine) is type(theirs)


@pytest.mark.promise("clock jumps")
@pytest.mark.parametrize("moment", [-0.0015, -5.0, 0.0, 1e12, 1e18, 1795000000.5])
def test_whatever_the_clock_says_a_record_has_a_timestamp(moment: float) -> None:
    """Clocks jump: order in the file decides."""
    from checkpoint.clock import Stamper

    assert len(Stamper(lambda: moment)()) == len(b"2026-03-01T12:00:00.123Z")


AT_THE_END = """
import sys
from checkpoint import CheckpointedRunner

class Job:
    def __init__(self):
        self.make, self.directory = CheckpointedRunner, sys.argv[1]  # names of the main module are gone by then
        self.runner = self.make("j", self.directory)
        self.runner.save_result(1, "before")

    def __del__(self):
        self.runner.save_result(2, "at the end")
        self.runner.save_error(3, "at the end")
        self.make("other", self.directory).save_result(1, "at the end")

job = Job()
"""


@pytest.mark.slow
def test_a_save_from_del_as_the_interpreter_ends_is_saved(tmp_path: Path) -> None:
    """Nothing can be imported there, and no file be opened by its usual door; it neither hangs nor prints."""
    command = [sys.executable, "-c", AT_THE_END, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with CheckpointedRunner("j", tmp_path) as runner:
        assert runner.get_all_results() == {1: "before", 2: "at the end"}
        assert runner.get_all_errors() == {3: "at the end"}
    assert CheckpointedRunner("other", tmp_path).get_all_results() == {1: "at the end"}
