"""The laws of the lock: one writer, told at once who it is; readers never wait; it dies with its owner, fork or not."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from checkpoint import CheckpointedRunner, CheckpointLocked, StoreError, clock
from checkpoint.storage import lock as lock_module
from checkpoint.storage.journal import Journal
from checkpoint.storage.lock import Lock
from checkpoint.storage.record import seal

Opener = Callable[..., CheckpointedRunner]


class Child:
    """Another process with a runner of checkpoint "j"; each command is answered with one line."""

    CODE = """
import sys
from checkpoint import CheckpointedRunner
runner = CheckpointedRunner("j", sys.argv[1])
for command in sys.stdin:
    try:
        print(repr(eval(command)), flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""

    def __init__(self, directory: Path) -> None:
        command = [sys.executable, "-c", self.CODE, str(directory)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, expression: str) -> Any:
        into, out = self._pipes()
        into.write(expression + "\n")
        into.flush()
        return out.readline().rstrip("\n")

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        return self.process.stdin, self.process.stdout

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in self._pipes():
            pipe.close()


@pytest.fixture
def child(tmp_path: Path) -> Iterator[Child]:
    """Another process."""
    child = Child(tmp_path)
    yield child
    child.kill()


def bytes_of(directory: Path) -> dict[str, bytes]:
    """Every file's content, by name."""
    return {file.name: file.read_bytes() for file in directory.iterdir()}


# --- two processes --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_a_second_writer_is_told_at_once_who_writes_and_changes_nothing(
    make: Opener, tmp_path: Path, child: Child
) -> None:
    """CheckpointLocked names pid, host and since when; not one byte of any file differs afterwards."""
    assert child.ask("runner.save_result(1, 'theirs')") == "None"
    assert child.ask("globals().setdefault('running', runner.iterate([2])) and next(running)") == "2"
    runner = make()
    before = bytes_of(tmp_path)
    for attempt in (
        lambda: runner.save_result(3, "ours"),
        lambda: runner.save_error(3, "ours"),
        lambda: runner.clear([1]),
        lambda: runner.clear(),
        lambda: list(runner.iterate([1, 2, 3])),
    ):
        with pytest.raises(CheckpointLocked) as locked:
            attempt()
        error = locked.value
        assert (error.pid, error.host) == (child.process.pid, socket.gethostname())
        assert error.since is not None
        assert error.since.startswith("20")
        assert isinstance(error, BlockingIOError)
        assert str(child.process.pid) in str(error)
    assert bytes_of(tmp_path) == before


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_the_value_that_a_locked_checkpoint_refused_is_on_the_error(make: Opener, child: Child) -> None:
    """A paid-for value is never dropped."""
    child.ask("globals().setdefault('running', runner.iterate([2])) and next(running)")
    with pytest.raises(CheckpointLocked) as locked:
        make().save_result(3, "ours")
    assert locked.value.unsaved == {3: "ours"}


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_the_lock_of_a_killed_owner_needs_no_cleaning_up(make: Opener, child: Child) -> None:
    """SIGKILL lets it go; what the dead one had saved is there."""
    child.ask("globals().setdefault('running', runner.iterate([1, 2])) and next(running)")
    assert child.ask("runner.save_result(1, 'theirs')") == "None"
    runner = make()
    with pytest.raises(CheckpointLocked):
        runner.save_result(2, "ours")
    child.kill()
    runner.save_result(2, "ours")
    assert runner.get_all_results() == {1: "theirs", 2: "ours"}


@pytest.mark.slow
def test_a_reader_sees_what_is_saved_while_it_reads(make: Opener, child: Child) -> None:
    """Readers never wait and never lock: each look shows what has been acknowledged so far."""
    child.ask("globals().setdefault('running', runner.iterate(range(99))) and next(running)")
    reader = make()
    for count in range(10):
        assert child.ask(f"runner.save_result({count}, 'theirs')") == "None"
        assert reader.get_all_results() == dict.fromkeys(range(count + 1), "theirs")
        assert reader.is_completed(count)
        assert reader.progress()[0] == count + 1
    assert not reader.records.store.writer.writing


@pytest.mark.slow
def test_a_reader_follows_a_clear_by_another_process(make: Opener, child: Child) -> None:
    """Files that are gone, and begun anew, are noticed by who only reads."""
    child.ask("runner.save_result(1, 'theirs')")
    reader = make()
    assert reader.is_completed(1)
    child.ask("runner.clear()")
    assert not reader.is_completed(1)
    child.ask("runner.save_result(2, 'theirs')")
    assert reader.get_all_results() == {2: "theirs"}


@pytest.mark.slow
def test_the_lock_goes_over_to_another_process_when_a_pass_ends(make: Opener, child: Child) -> None:
    """Writers take turns without closing anything, and each sees what the others saved."""
    runner = make()
    for turn in range(5):
        for key in runner.iterate([f"ours {turn}"]):
            runner.save_result(key, turn)
        assert child.ask(f"[runner.save_result(k, {turn}) for k in runner.iterate(['theirs {turn}'])]") == "[None]"
    assert len(runner.get_all_results()) == 10


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_what_another_process_finished_meanwhile_is_not_run_again(make: Opener, child: Child) -> None:
    """Done is looked up once more when the lock is taken."""
    runner = make()
    items = iter(["a", "b"])
    pending = runner.iterate(items)
    child.ask("runner.save_result('a', 1) or runner.close()")
    assert list(pending) == ["b"]


# --- one process ----------------------------------------------------------------------------------------------------


def test_two_runners_in_one_process_share_one_store(make: Opener) -> None:
    """What one has saved the other knows; neither locks the other out; the last to close lets go."""
    one, two = make(), make()
    assert one.records.store is two.records.store
    one.save_result(1, "one")
    two.save_result(2, "two")
    assert one.get_all_results() == two.get_all_results() == {1: "one", 2: "two"}
    one.close()
    two.save_result(3, "two")
    assert two.get_result(1) == "one"


def held_elsewhere(directory: Path) -> bool:
    """Whether a stranger to this process's stores finds the lock held."""
    stranger = Lock(directory / ".j.lock", "j")
    try:
        stranger.acquire()
    except CheckpointLocked:
        return True
    stranger.release()
    return False


def test_the_lock_is_let_go_when_the_last_pass_ends(make: Opener, tmp_path: Path) -> None:
    """Whichever of several that is."""
    one, two = make(), make()
    first, second = one.iterate([1, 2]), two.iterate([3, 4])
    assert (next(first), next(second)) == (1, 3)
    first.close()  # type: ignore[attr-defined]
    assert held_elsewhere(tmp_path)
    two.save_result(3, "three")
    assert list(second) == [4]
    assert not held_elsewhere(tmp_path)


def test_the_lock_is_let_go_when_the_pass_ends(make: Opener, tmp_path: Path) -> None:
    """However it ends: exhausted, left early, or by an exception."""
    runner = make()
    for leave in ("exhaust", "break", "raise"):
        running = runner.iterate([leave, "next"])
        next(running)
        runner.save_result(leave, 1)
        assert held_elsewhere(tmp_path)
        if leave == "exhaust":
            assert list(running) == ["next"]
        elif leave == "break":
            running.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(ZeroDivisionError):
                running.throw(ZeroDivisionError)  # type: ignore[attr-defined]
        assert not held_elsewhere(tmp_path)


def test_the_lock_is_let_go_on_close(make: Opener, tmp_path: Path) -> None:
    """And what was written is synced by then."""
    runner = make()
    runner.save_result(1, 1)
    assert held_elsewhere(tmp_path)
    runner.close()
    assert not held_elsewhere(tmp_path)


def test_the_lock_is_let_go_a_second_after_the_last_write_outside_a_pass(
    make: Opener, tmp_path: Path, ticker: Any
) -> None:
    """A script that saves by hand and then does something else does not keep others out; inside a pass it does."""
    runner = make()
    store = runner.records.store
    runner.save_result(1, 1)
    ticker.tick(0.9)
    assert store.writer.tend()
    runner.save_result(2, 2)
    ticker.tick(0.9)
    assert store.writer.tend()
    assert held_elsewhere(tmp_path)
    ticker.tick(0.2)
    assert not store.writer.tend(), "nothing is owed any more"
    assert not held_elsewhere(tmp_path)
    running = runner.iterate([3])
    next(running)
    ticker.tick(3600)
    assert store.writer.tend()
    assert held_elsewhere(tmp_path)
    runner.save_result(3, 3)
    assert list(running) == []
    assert not held_elsewhere(tmp_path)


@pytest.mark.slow
def test_an_unreachable_runner_is_let_go_of_in_the_middle_of_opening_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection may finalize a runner at any moment, also inside the registry of stores: it never deadlocks."""
    import gc

    from checkpoint.catalog import registry

    real = vars(registry)["Checkpoint"]

    def collect_first(*arguments: Any) -> Any:
        gc.collect()
        return real(*arguments)

    monkeypatch.setattr(registry, "Checkpoint", collect_first)
    first = CheckpointedRunner("gone", tmp_path)
    first.save_result(1, 1)
    first.itself = first  # type: ignore[attr-defined]  # only a collection finds it
    del first
    done = threading.Event()

    def open_another() -> None:
        with CheckpointedRunner("other", tmp_path) as runner:
            runner.save_result(1, 1)
        done.set()

    threading.Thread(target=open_another, daemon=True).start()
    assert done.wait(30)


def test_an_interrupt_while_locking_leaves_no_lock_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right behind the system call: a descriptor that nobody knows would keep the lock for good."""
    real = lock_module._lock

    def interrupted(fd: int) -> None:
        real(fd)
        raise KeyboardInterrupt

    lock = Lock(tmp_path / ".j.lock", "j")
    with monkeypatch.context() as patch:
        patch.setattr(lock_module, "_lock", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    assert not lock.held
    lock.acquire()
    lock.release()


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_a_lock_file_that_is_deleted_is_made_again_within_a_second(
    make: Opener, tmp_path: Path, ticker: Any, child: Child
) -> None:
    """Else another process would find none, and write too."""
    runner = make()
    runner.save_result("a", 1)
    (tmp_path / ".j.lock").unlink()
    ticker.tick(1.1)
    runner.save_result("b", 2)
    assert child.ask("runner.save_result('c', 3)") == "CheckpointLocked"
    runner.save_result("d", 4)
    runner.close()
    assert make().get_all_results() == {"a": 1, "b": 2, "d": 4}


@pytest.mark.slow
@pytest.mark.promise("two writing processes")
def test_who_finds_that_another_has_taken_a_deleted_lock_writes_no_more(
    make: Opener, tmp_path: Path, ticker: Any, child: Child
) -> None:
    """Who was first there goes on."""
    runner = make()
    runner.save_result("a", 1)
    (tmp_path / ".j.lock").unlink()
    assert child.ask("runner.save_result('b', 2)") == "None"
    ticker.tick(1.1)
    with pytest.raises(CheckpointLocked) as caught:
        runner.save_result("c", 3)
    assert caught.value.pid == child.process.pid
    assert caught.value.unsaved == {"c": 3}
    assert child.ask("runner.save_result('d', 4)") == "None"
    assert child.ask("runner.get_all_results()") == "{'a': 1, 'b': 2, 'd': 4}"


@pytest.mark.promise("two writing processes")
@pytest.mark.parametrize("moment", ["before bytes are set aside", "just before the cut"])
@pytest.mark.skipif(os.name == "nt", reason="an open file cannot be deleted there")
def test_a_line_that_grows_is_never_cut_by_who_holds_a_new_lock(
    make: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The lock's file was deleted while its owner was writing: the end of the journal is taken for a writer's line."""
    with make() as first:
        first.save_result(1, "one")
    line = seal(b'{"key":2,"result":"%b","timestamp":"2026-01-01T00:00:00.000Z"' % (b"x" * 5000))
    journal = tmp_path / "j_results.jsonl"
    known = journal.read_bytes()
    journal.write_bytes(known + line[:2000])

    def grows(*_: object) -> None:
        with journal.open("ab") as other:
            other.write(line[len(journal.read_bytes()) - len(known) :][:1500])

    second = make()
    with monkeypatch.context() as patched:
        if moment == "just before the cut":
            patched.setattr(Journal, "set_aside", grows)
            patched.setattr(clock, "sleep", lambda _: None)
        else:
            patched.setattr(clock, "sleep", grows)
        with pytest.raises(CheckpointLocked, match=r"lock's file was deleted .* wait for that process") as told:
            second.save_result(3, "three")
    assert told.value.unsaved == {3: "three"}
    assert journal.read_bytes() == known + line[:3500]
    assert not held_elsewhere(tmp_path)
    grows()  # the other process ends its line
    grows()
    second.save_result(3, "three")
    assert second.get_all_results() == {1: "one", 2: "x" * 5000, 3: "three"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "nothing: the disk was full when it was signed"),
        (b"\xff\x00garbage", "no text"),
        (b"[1]", "no object"),
        (b"{}", "an object without a word in it"),
        (b"[" * 5000, "deeper than Python reads"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_lock_file_that_says_nothing_still_locks(tmp_path: Path, text: bytes, reason: str) -> None:
    """The lock is the system's; the text is for people."""
    path = tmp_path / ".j.lock"
    owner, other = Lock(path, "j"), Lock(path, "j")
    owner.acquire()
    path.write_bytes(text)
    with pytest.raises(CheckpointLocked) as locked:
        other.acquire()
    assert locked.value.pid is None
    owner.release()
    other.acquire()
    assert json.loads(path.read_bytes())["pid"] == os.getpid()
    other.release()


@pytest.mark.promise("NFS, network drives")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK], ids=["Lustre", "NFS"])
def test_a_file_system_without_locks_is_told_with_each_way_out(
    make: Opener, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """One writer cannot be promised there: the first save is refused, with its value, and reading works."""

    def fail(fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with make() as runner:
        runner.save_result(1, "one")
    monkeypatch.setattr(lock_module, "_lock", fail)
    runner = make()
    with pytest.raises(StoreError, match=r"-o flock.*choose a checkpoint_dir on another file system") as told:
        runner.save_result(2, "two")
    assert (told.value.errno, told.value.unsaved) == (code, {2: "two"})
    assert runner.get_all_results() == {1: "one"}


@pytest.mark.promise("symlinks, permissions")
def test_the_lock_never_follows_a_link(make: Opener, tmp_path: Path) -> None:
    """A link planted in its place would have another file overwritten: it is an own error, and nothing happens."""
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / ".j.lock").symlink_to(target)
    with pytest.raises(StoreError):
        make().save_result(1, 1)
    assert target.read_text() == "precious"


# --- forks ----------------------------------------------------------------------------------------------------------

FORK = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 on: there is a thread that tends
from checkpoint import CheckpointedRunner, CheckpointLocked, StoreForked
directory = sys.argv[1]
runner = CheckpointedRunner("j", directory)

def in_child(body):
    pid = os.fork()
    if not pid:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid

def wait(pid):
    status = os.waitpid(pid, 0)[1]
    assert status == 0, status

def refused(call):
    try:
        call()
    except StoreForked as error:
        assert "fork" in str(error)
    else:
        raise AssertionError("not refused")
"""


def run_forking(directory: Path, body: str) -> None:
    """Run a script whose children check themselves; it must end well and quietly."""
    ran = subprocess.run(
        [sys.executable, "-c", FORK + body, str(directory)], capture_output=True, text=True, timeout=60
    )
    assert (ran.returncode, ran.stderr) == (0, "")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


@pytest.mark.slow
@pytest.mark.promise("fork")
@needs_fork
def test_a_forked_child_reads_and_is_refused_to_write(tmp_path: Path, make: Opener) -> None:
    """Its parent's runner reads in the child, and every write is an own error; the parent goes on undisturbed."""
    run_forking(
        tmp_path,
        """
runner.save_result(1, "parent")
def body():
    assert runner.get_all_results() == {1: "parent"}
    assert runner.is_completed(1) and not runner.is_completed(2)
    refused(lambda: runner.save_result(2, "child"))
    refused(lambda: runner.save_error(2, "child"))
    refused(lambda: runner.clear())
    refused(lambda: list(runner.iterate([1, 2])))
    assert list(runner.iterate([1])) == []
    runner.close()
wait(in_child(body))
runner.save_result(2, "parent")
assert runner.get_all_results() == {1: "parent", 2: "parent"}
""",
    )
    assert make().get_all_results() == {1: "parent", 2: "parent"}
    assert (tmp_path / "j_results.jsonl").read_bytes().count(b"\n") == 2


@pytest.mark.slow
@pytest.mark.promise("fork")
@needs_fork
def test_a_fork_in_the_middle_of_a_pass_writes_nothing_twice(tmp_path: Path, make: Opener) -> None:
    """Neither the child's end, with the pass's generator in its hands, nor its own passes touch a byte."""
    run_forking(
        tmp_path,
        """
running = runner.iterate(range(6))
pids = []
for key in running:
    def body():
        try:
            refused(lambda: runner.save_result(key, "child"))
            refused(lambda: list(runner.iterate(range(6))))
            running.close()
            refused(lambda: list(runner.iterate(range(6))))
            assert list(runner.iterate(range(key))) == []
        finally:
            runner.close()
    if key == 3:
        before = os.stat(os.path.join(directory, "j_results.jsonl")).st_size
        wait(in_child(body))
        assert os.stat(os.path.join(directory, "j_results.jsonl")).st_size == before
    runner.save_result(key, "parent")
""",
    )
    assert make().get_all_results() == dict.fromkeys(range(6), "parent")
    assert (tmp_path / "j_results.jsonl").read_bytes().count(b"\n") == 6


@pytest.mark.slow
@pytest.mark.promise("fork")
@needs_fork
def test_a_child_that_ends_the_ordinary_way_writes_nothing(tmp_path: Path, make: Opener) -> None:
    """A child that runs Python's own end, atexit included, leaves the parent's lock and files alone."""
    run_forking(
        tmp_path,
        """
running = runner.iterate(range(3))
next(running)
runner.save_result(0, "parent")
pid = os.fork()
if not pid:
    sys.exit(0)
wait(pid)
stranger = __import__("subprocess").run([sys.executable, "-c", '''
import sys
from checkpoint import CheckpointedRunner, CheckpointLocked
try:
    CheckpointedRunner("j", sys.argv[1]).save_result(9, "stranger")
except CheckpointLocked:
    sys.exit(7)
''', directory])
assert stranger.returncode == 7, "the parent still holds the lock"
""",
    )
    assert make().get_all_results() == {0: "parent"}


@pytest.mark.slow
@pytest.mark.promise("fork")
@needs_fork
def test_a_new_runner_in_a_forked_child_works_once_the_parent_lets_go(tmp_path: Path, make: Opener) -> None:
    """While the parent writes it is locked out like any other process; afterwards it writes like any other."""
    run_forking(
        tmp_path,
        """
runner.save_result(1, "parent")
def body():
    own = CheckpointedRunner("j", directory)
    try:
        own.save_result(2, "child")
    except CheckpointLocked as error:
        assert error.pid == os.getppid()
    else:
        raise AssertionError
wait(in_child(body))
runner.close()
def body():
    with CheckpointedRunner("j", directory) as own:
        own.save_result(2, "child")
wait(in_child(body))
""",
    )
    assert make().get_all_results() == {1: "parent", 2: "child"}


@pytest.mark.slow
@pytest.mark.promise("fork")
@needs_fork
def test_a_forked_child_does_not_keep_the_lock_of_a_dead_parent(tmp_path: Path, make: Opener) -> None:
    """The parent is killed while a child of it lives on: the next writer is not kept waiting by an orphan."""
    code = """
running = runner.iterate(range(3))
next(running)
runner.save_result(0, "parent")
def body():
    print(os.getpid(), flush=True)
    os.read(0, 1)  # until the test is over
in_child(body)
os.read(0, 1)
"""
    command = [sys.executable, "-c", FORK + code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = int(parent.stdout.readline())
        runner = make()
        with pytest.raises(CheckpointLocked):
            runner.save_result(1, "ours")
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        os.kill(orphan, 0)  # it lives
        runner.save_result(1, "ours")
        assert runner.get_all_results() == {0: "parent", 1: "ours"}


@pytest.mark.slow
@pytest.mark.promise("fork", "threads")
@needs_fork
def test_a_fork_while_threads_save_loses_nothing(tmp_path: Path, make: Opener) -> None:
    """Whatever the threads were doing at that moment, the child neither hangs nor writes, and the parent goes on."""
    run_forking(
        tmp_path,
        """
import threading
def save(thread):
    for n in range(100):
        runner.save_result((thread, n), n)
threads = [threading.Thread(target=save, args=(t,)) for t in range(4)]
for thread in threads:
    thread.start()
def body():
    refused(lambda: runner.save_result("child", 1))
    found = runner.get_all_results()
    assert all(value == key[1] for key, value in found.items())
for _ in range(8):
    wait(in_child(body))
for thread in threads:
    thread.join()
assert len(runner.get_all_results()) == 400
""",
    )
    assert len(make().get_all_results()) == 400
    assert (tmp_path / "j_results.jsonl").read_bytes().count(b"\n") == 400
