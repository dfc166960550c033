"""Storage that outlives the machine: what was uploaded is there on every other one, and nothing local is lost."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from machines import Machine, hurry, machines, until
from object_store import Mode, Proxy, s3_environment, s3_server

import checkpoint
from checkpoint import CheckpointedRunner, locks
from checkpoint.catalog import siblings
from checkpoint.catalog.paths import resolve_directory
from checkpoint.catalog.registry import REGISTRY
from checkpoint.catalog.shards import shard_of
from checkpoint.cli import main
from checkpoint.errors import CheckpointLocked, ExtraNeeded, InvalidOption, NotUploaded, StoreError
from checkpoint.maintenance.compact import compact
from checkpoint.outcomes import Uploaded
from checkpoint.remote import local_copy, numbers, session, uploader, urls
from checkpoint.remote import objects as objects_module
from checkpoint.remote import state as state_module
from checkpoint.reporting.status import list_checkpoints

pytestmark = pytest.mark.slow

fsspec = pytest.importorskip("fsspec")

ROOT = str(Path(checkpoint.__file__).parents[1])


@pytest.fixture
def url() -> Iterator[str]:
    """A prefix in memory of this process, that nobody else uses."""
    system = fsspec.filesystem("memory")
    yield "memory://bucket/prefix"
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Opens checkpoint "j" as a machine would that has this name, and so a directory of its own."""
    with machines(url, tmp_path, monkeypatch) as open_runner:
        yield open_runner


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads begin at once, and are given up soon."""
    hurry(monkeypatch)
    monkeypatch.setattr(session, "_GIVE_UP", 0.5)


def objects_of(url: str = "memory://bucket/prefix", name: str = "j") -> dict[str, bytes]:
    """What the store has of a checkpoint, by name."""
    system, root = fsspec.core.url_to_fs(f"{url}/{name}")
    system.invalidate_cache()
    return {
        path[path.index(f"/{name}/") + len(name) + 2 :]: system.cat_file(path) for path in sorted(system.find(root))
    }


def lines_of(url: str = "memory://bucket/prefix", kind: str = "results") -> list[bytes]:
    """The lines that the store has of a journal."""
    return [line for part, data in objects_of(url).items() if part.startswith(f"{kind}-") for line in data.splitlines()]


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "local", "why"),
    [
        ("memory://bucket/prefix", "memory/bucket/prefix", "readable"),
        ("memory://bucket//prefix/", "memory/bucket/prefix", "one directory for one place"),
        ("memory://bucket/a b/c%d", "memory/bucket/a b/c%25d", "nothing that a file system may refuse, and no clash"),
        ("memory://bucket", "memory/bucket", "a prefix is not needed"),
        ("MEMORY://bucket", "memory/bucket", "protocols are written either way"),
    ],
)
def test_a_url_has_a_directory_that_mirrors_it(
    given: str, local: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is beside the other checkpoints, and nothing is made by asking for it."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "here"))
    assert resolve_directory(given) == tmp_path / "here" / local, why
    assert not (tmp_path / "here").exists()


def test_the_environment_may_name_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then mirrors are in ./checkpoints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKPOINT_DIR", "memory://bucket/x")
    assert resolve_directory(None) == tmp_path / "checkpoints" / "memory" / "bucket" / "x"


@pytest.mark.parametrize(
    ("given", "path", "why"),
    [
        ("file:///a/b", "/a/b", "a file's URL is a path"),
        ("C:/a", "C:/a", "a drive is none"),
        ("a:b/c", "a:b/c", "nor is a colon"),
    ],
)
def test_what_is_no_url_is_a_path(given: str, path: str, why: str) -> None:
    """And mirrors nothing."""
    assert resolve_directory(given) == Path(os.path.realpath(path)), why
    assert urls.url_at(resolve_directory(given)) is None


@pytest.mark.parametrize(
    ("given", "match", "why"),
    [
        ("nothing://bucket/x", "protocol is one of", "told before anything runs"),
        ("http://bucket/x", "protocol is one of", "others are not opened, though fsspec has them"),
        ("reference://bucket/x", "protocol is one of", "nor those that read a file of instructions"),
        ("simplecache::s3://bucket/x", "one protocol only", "a chain opens what stands behind it too"),
        ("s3://bucket::file:///x", "one protocol only", "in any place"),
        ("memory://", "PROTOCOL://BUCKET", "no bucket"),
        ("memory://bucket/../x", "without", "it would lead out of the mirrors' directory"),
        ("memory://user:secret@host/x", "password", "it would be in logs and in file names"),
        ("nothing://user:secret@host/x", "password", "whatever the protocol"),
        ("sftp://user:secret@host/x", "password", "and before it is looked for"),
        ("sftp://user:se/cret@secret/x", "password", "which may hold a slash"),
        ("sftp://user%3Asecret@host/x", "password", "or be escaped"),
        ("memory://user:secret@host/../x", "password", "whatever else is wrong with it"),
        ("memory://u:secret@b::memory://x", "password", "in a chain"),
        ("simplecache::sftp://u:secret@b/x", "password", "in its second part"),
        ("s3:/user:secret@bucket", "password", "as pathlib spells it"),
        (Path("nothing://user:secret@host/x"), "password", "it would be a directory's name"),
        ("file://user:secret@host/x", "password", "that of a file, too"),
        ("s3://secret@bucket/x", "token", "no bucket has an @ in its name"),
        ("az://container/x?sv=1&sig=secret", "query", "a shared access signature"),
        ("gs://bucket/x#token=secret", "query", "or behind a #"),
        (Path("s3://bucket/x"), "string", "pathlib takes a slash away"),
        ("s3:/bucket/x", "PROTOCOL://BUCKET", "it would be a local directory, without a word"),
    ],
)
def test_urls_that_cannot_be_mirrored_are_refused(given: Any, match: str, why: str) -> None:
    """By what is wrong with them; a secret is not repeated."""
    with pytest.raises(InvalidOption, match=match) as caught:
        resolve_directory(given)
    assert "secret" not in str(caught.value), why


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setattr(urls, "_usable", set())
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(ExtraNeeded, match=r"pip install 'checkpoint-map\[s3\]'"):
        CheckpointedRunner("j", "s3://bucket/prefix")


def test_an_ordinary_directory_imports_none_of_it(tmp_path: Path) -> None:
    """fsspec is imported when a URL is used."""
    script = (
        "import sys, checkpoint\n"
        f"with checkpoint.CheckpointedRunner('j', {str(tmp_path)!r}) as runner: runner.save_result(1, 2)\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"fsspec", "s3fs"} & set(done.stdout.split())


# --- another machine -------------------------------------------------------------------------------------------------


def test_another_machine_finds_everything(machine: Machine) -> None:
    """Results, errors, and values that could not be encoded."""
    with machine("first") as runner:
        for number in range(100):
            runner.save_result(number, {"square": number**2})
        runner.save_error("bad", ValueError("why"))
        with pytest.raises(TypeError):
            runner.save_result("odd", {1, object})
    second = machine("second")
    assert second.get_all_results() == {number: {"square": number**2} for number in range(100)}
    assert set(second.get_all_errors()) == {"bad", "odd"}
    assert set(second.unsaved) == {"odd"}


def test_an_empty_store_is_an_empty_checkpoint(machine: Machine, tmp_path: Path) -> None:
    """And reading makes nothing."""
    assert machine("first").get_all_results() == {}
    assert not (tmp_path / "first").exists()


def test_a_reader_elsewhere_sees_what_is_uploaded_meanwhile(machine: Machine, haste: None) -> None:
    """It reads on, and fetches nothing twice."""
    writer = machine("first")
    writer.save_result(1, "one")
    reader = machine("second")
    until(lambda: reader.get_all_results() == {1: "one"})
    writer.save_result(2, "two")
    until(lambda: reader.get_all_results() == {1: "one", 2: "two"})
    lines = reader.records.store.own.results.journal.path.read_bytes().splitlines()
    assert len(lines) == len(set(lines)) == 2


def test_sessions_of_several_machines_join(machine: Machine) -> None:
    """One after the other, forth and back; nothing is uploaded twice."""
    for turn in range(6):
        with machine(("first", "second", "third")[turn % 3]) as runner:
            assert set(runner.get_all_results()) == set(range(turn))
            runner.save_result(turn, turn)
    assert len(lines_of()) == 6
    assert [name for name in objects_of() if name.startswith("owners")] == ["owners/00000006.json"]


def test_large_jobs_go_up_in_parts(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is full is not written again; each byte is once in the store; one line may be larger than a part."""
    monkeypatch.setattr(session, "SIZE", 2000)
    monkeypatch.setattr(session, "_SEALED", 1000)
    with machine("first") as runner:
        for number in range(300):
            runner.save_result(number, number)
        runner.save_result("large", "x" * 50_000)
        path = runner.records.store.own.results.journal.path
    parts = [data for name, data in objects_of().items() if name.startswith("results-")]
    assert len(parts) > 10
    assert b"".join(parts) == path.read_bytes()
    assert all(part.endswith(b"\n") for part in parts)
    assert max(len(part) for part in parts[:-2]) < 3000
    second = machine("second")
    assert second.get_result("large") == "x" * 50_000
    assert second.records.store.own.results.journal.path.read_bytes() == path.read_bytes()


# --- who writes ------------------------------------------------------------------------------------------------------


@pytest.mark.promise("two machines on one URL")
def test_two_machines_on_one_url(machine: Machine) -> None:
    """It is told who writes, since when, and when that counts no more; readers are not."""
    first, second = machine("first"), machine("second")
    first.save_result(1, 1)
    with pytest.raises(CheckpointLocked, match=rf"process {os.getpid()} on .* since .*taken for dead") as caught:
        second.save_result(2, 2)
    assert caught.value.pid == os.getpid()
    assert caught.value.host
    assert second.get_all_results() in ({}, {1: 1})
    first.close()
    second.save_result(2, 2)
    assert second.get_all_results() == {1: 1, 2: 2}


@pytest.mark.promise("two machines on one URL")
def test_a_dead_machine_is_taken_over_and_may_come_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, haste: None
) -> None:
    """Who was taken for dead uploads no more and is told; what it saved meanwhile joins in when it is opened again."""
    first = machine("first")
    first.save_result("early", 1)
    until(lambda: first.uploaded == (0, 0.0, ""))
    uploading = first.records.store.replica
    assert isinstance(uploading, uploader.Uploader)
    assert uploading._session is not None
    hangs: Any = vars(uploading._session)["_work"]
    hangs = getattr(hangs, "_really", hangs)  # this thread takes others in no order: it plays two machines
    hangs.acquire()
    first.save_result("late", 2)
    monkeypatch.setattr(numbers, "LEASE", 0.0)
    second = machine("second")
    second.save_result("new", 3)
    assert "takes over" in caplog.text
    assert second.get_all_results() == {"early": 1, "new": 3}
    hangs.release()

    def save() -> bool:
        try:
            first.save_result("lost?", 4)
        except CheckpointLocked as error:
            return "taken over" in str(error)
        return False

    until(save)
    assert "late" not in second.get_all_results()
    second.close()
    first.close()
    again = machine("first")
    again.save_result("later", 5)
    assert again.get_all_results().items() >= {"early": 1, "late": 2, "new": 3, "later": 5}.items()
    again.close()
    assert machine("third").get_all_results() == machine("first").get_all_results()


def test_who_died_here_is_not_waited_for(machine: Machine, haste: None) -> None:
    """The local lock tells that the session of this very directory is over."""
    first = machine("first")
    first.save_result(1, 1)
    owned = first.records.store.replica
    assert isinstance(owned, uploader.Uploader)
    until(lambda: owned.uploaded().bytes == 0)
    first.records.store.writer.let_go()  # as a kill would: nothing is said to the store
    first.save_result(2, 2)
    first.close()
    assert machine("second").get_all_results() == {1: 1, 2: 2}


@pytest.mark.promise("two machines on one URL")
def test_a_store_that_heeds_no_condition_is_told_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Everything else works."""
    system = fsspec.filesystem("memory")
    write = type(system).pipe_file
    monkeypatch.setattr(type(system), "pipe_file", lambda self, path, data, mode="overwrite": write(self, path, data))
    monkeypatch.setattr(objects_module, "_told", set())
    monkeypatch.setattr(urls, "_told", set())
    for name in ("first", "second", "first"):
        with machine(name) as runner:
            runner.save_result(name, 1)
    assert caplog.text.count("cannot create an object only where there is none") == 1
    assert len(lines_of()) == 3


# --- what is replaced ------------------------------------------------------------------------------------------------


def test_compaction_and_clearing_reach_every_machine(machine: Machine) -> None:
    """Nothing that was left out comes back from another machine."""
    with machine("first") as runner:
        for number in range(50):
            runner.save_result(number % 5, number)
    expected = {number: 45 + number for number in range(5)}
    assert machine("second").get_all_results() == expected
    machine("first").close()
    assert compact("j", "memory://bucket/prefix").lines == 45
    assert len(lines_of()) == 5
    assert [name for name in objects_of() if name.startswith("results")] == ["results-00000003-whole-00000000.jsonl"]
    second = machine("second")
    assert second.get_all_results() == expected
    assert len(second.records.store.own.results.journal.path.read_bytes().splitlines()) == 5
    second.save_result("more", 1)
    second.clear()
    assert lines_of() == []
    third = machine("first")
    assert third.get_all_results() == {}
    third.save_result("anew", 1)
    third.close()
    assert machine("second").get_all_results() == {"anew": 1}


KILLS = """
import os, sys, shutil, itertools
from pathlib import Path
from fsspec import register_implementation
from fsspec.implementations.local import LocalFileSystem
import checkpoint
from checkpoint.remote import local_copy as mirror
from checkpoint.remote import urls as remote
from checkpoint.maintenance import compact as upkeep
from checkpoint.remote import numbers, session as uploads

uploads._POLL, mirror._TURN = 0.01, 0.01
root, verb = Path(sys.argv[1]), sys.argv[2]

class Disk(LocalFileSystem):
    protocol = "disk"
    calls, most = 0, None
    @classmethod
    def _strip_protocol(cls, path):
        path = path.removeprefix("disk://")
        return path if path.startswith("/") else str(root / "bucket" / path)
    def _count(self):
        Disk.calls += 1
        if Disk.calls == Disk.most:
            os._exit(9)
    def pipe_file(self, path, data, mode="overwrite"):
        self._count()
        with open(path, "xb" if mode == "create" else "wb") as file:
            file.write(data)
    def mv(self, a, b):
        os.replace(a, b)
        self._count()
    def rm_file(self, path):
        self._count()
        os.unlink(path)

register_implementation("disk", Disk)
remote.PROTOCOLS = remote.PROTOCOLS | {"disk"}

def child(function):
    pid = os.fork()
    if not pid:
        try:
            function()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def runner(machine):
    os.environ["CHECKPOINT_DIR"] = str(root / machine)
    return checkpoint.CheckpointedRunner("j", "disk://b/p")

def fill():
    with runner("first") as opened:
        for n in range(30):
            opened.save_result(n % 5, n)

def act():
    with runner("first") as opened:
        opened.save_result("before", 1)
        opened.records.store.replica.drain()
        Disk.most = kill_at
        Disk.calls = 0
        if verb == "clear":
            opened.clear()
        elif verb == "save":
            opened.save_result("new", 2)
    if verb == "compact":
        Disk.most = kill_at
        upkeep.compact("j", "disk://b/p")

FULL = {**{n: 25 + n for n in range(5)}, "before": 1}

def check(machine):
    def look():
        with runner(machine) as opened:
            found = opened.get_all_results()
        assert found in (FULL, {**FULL, "new": 2} if verb == "save" else {}), (kill_at, machine, found)
        assert found or verb == "clear"
    return look

def go_on():
    with runner("first") as opened:
        was = opened.get_all_results()
        opened.save_result("after", 3)
    with runner("first") as opened:
        assert opened.get_all_results() == {**was, "after": 3}, (was, opened.get_all_results())

def agree():
    with runner("first") as opened:
        first = opened.get_all_results()
    with runner("third") as opened:
        assert opened.get_all_results() == first, (kill_at, first, opened.get_all_results())

for kill_at in itertools.count(1):
    shutil.rmtree(root, ignore_errors=True)
    assert child(fill) == 0
    assert child(lambda: runner("reader").close()) == 0
    code = child(act)
    assert code in (0, 9), code
    for machine in ("second", "reader"):
        assert child(check(machine)) == 0
    assert child(go_on) == 0
    assert child(agree) == 0
    if code == 0:
        print("steps", kill_at)
        break
"""


@pytest.mark.promise("a kill while a URL is compacted or cleared")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks for each step")
@pytest.mark.parametrize(("verb", "least"), [("compact", 5), ("clear", 4), ("save", 3)])
def test_a_kill_while_a_url_is_compacted_or_cleared(verb: str, least: int, tmp_path: Path) -> None:
    """For who reads elsewhere, who had read before, and who was killed and goes on."""
    script = tmp_path / "kills.py"
    script.write_text(KILLS)
    environment = os.environ | {"PYTHONPATH": ROOT, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "root"), verb],
        capture_output=True, text=True, env=environment, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[1]) > least


# --- the mirror ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["deleted", "garbage", "stale", "of another journal", "cut off while joining"])
def test_a_lost_state_loses_nothing(damage: str, machine: Machine, tmp_path: Path) -> None:
    """What only this machine has is found by comparing; it is uploaded, and nothing else is."""
    with machine("first") as runner:
        runner.save_result(1, 1)
    directory = runner.records.store.directory
    state = directory / ".j.remote"
    stale = state.read_bytes()
    with machine("second") as other:
        other.save_result(2, 2)
    with machine("first") as runner:
        runner.save_result(3, 3)
    with CheckpointedRunner("k", tmp_path / "elsewhere") as plain:
        plain.save_result(4, 4)
    journal = directory / "j_results.jsonl"
    own = plain.records.store.own.results.journal.path.read_bytes()
    journal.write_bytes(own + journal.read_bytes() if damage == "of another journal" else journal.read_bytes() + own)
    if damage == "deleted":
        state.unlink()
    elif damage == "garbage":
        state.write_bytes(b"\0{")
    elif damage == "stale":
        state.write_bytes(stale)
    elif damage == "cut off while joining":
        state.write_bytes(json.dumps(json.loads(state.read_bytes()) | {"joining": True}).encode())
    with machine("first") as runner:
        assert runner.get_all_results() == {1: 1, 2: 2, 3: 3, 4: 4}
        runner.save_result(5, 5)
    assert machine("third").get_all_results() == {1: 1, 2: 2, 3: 3, 4: 4, 5: 5}
    assert len(set(lines_of())) == 5
    assert len(lines_of()) <= (7 if damage == "stale" else 5)  # what came after the stale state looks like its own


def test_to_close_after_a_compaction_waits_for_the_store(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks for the checkpoint lets go of it itself: no thread does, which may come late."""
    late: list[str] = []
    monkeypatch.setattr(locks, "elsewhere", lambda act, name: late.append(name))
    runner = machine("first")
    runner.save_result(1, "old")
    compact("j", "memory://bucket/prefix")
    runner.save_result(2, "new")
    runner.close()
    assert (len(lines_of()), late) == (2, [])


def test_a_lost_state_brings_nothing_back_over_what_was_compacted(machine: Machine) -> None:
    """What only this machine has stands before what the store has."""
    with machine("first") as runner:
        runner.save_result(1, "old")
        runner.save_result(1, "new")
    with machine("second") as other:
        other.get_all_results()
    (other.records.store.directory / ".j.remote").unlink()
    machine("first").close()
    compact("j", "memory://bucket/prefix")
    assert machine("second").get_all_results() == {1: "new"}


def test_a_download_that_breaks_off_changes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is begun again: never is a part of it taken for the whole."""
    monkeypatch.setattr(session, "SIZE", 2000)
    monkeypatch.setattr(session, "_SEALED", 1000)
    with machine("first") as runner:
        for number in range(200):
            runner.save_result(number, number)
    system = fsspec.filesystem("memory")
    read = type(system).cat_file

    def broken(self: Any, path: str, **options: Any) -> bytes:
        data = bytes(read(self, path, **options))
        return data[: len(data) // 2] if path.endswith(fifth) else data

    fifth = [name for name in objects_of() if name.startswith("results-")][5]

    with monkeypatch.context() as patch:
        patch.setattr(type(system), "cat_file", broken)
        with pytest.raises(StoreError, match="broke off"):
            machine("second")
    assert len(machine("second").get_all_results()) == 200


def test_objects_that_went_from_the_store_are_uploaded_again(machine: Machine) -> None:
    """Somebody deleted the prefix: this machine has it still."""
    with machine("first") as runner:
        runner.save_result(1, 1)
    fsspec.filesystem("memory").rm("/bucket/prefix/j", recursive=True)
    with machine("first") as runner:
        runner.save_result(2, 2)
    assert machine("second").get_all_results() == {1: 1, 2: 2}


def test_the_mirror_knows_what_it_mirrors(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its path the same checkpoint is opened; the commands fetch what another machine uploaded."""
    from checkpoint.cli import main

    with machine("first") as runner:
        runner.save_result(1, 1)
    monkeypatch.setattr(urls, "_urls", {})
    with CheckpointedRunner("j", runner.records.store.directory) as by_path:
        by_path.save_result(2, 2)
    assert len(lines_of()) == 2
    machine("second").close()
    assert main(["ls", "memory://bucket/prefix", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (listed["name"], listed["done"]) == ("j", 2)
    assert main(["show", "j", "--dir", "memory://bucket/prefix"]) == 0
    assert "mirrors   memory://bucket/prefix; all of it is there" in capsys.readouterr().out


def test_who_writes_elsewhere_is_shown(
    machine: Machine, capsys: pytest.CaptureFixture[str], url: str, haste: None
) -> None:
    """Until it has ended."""
    from checkpoint.cli import main

    writer = machine("first")
    writer.save_result(1, 1)
    until(lambda: writer.uploaded == (0, 0.0, ""))
    machine("second")
    assert main(["show", "j", "--dir", url]) == 0
    assert f"writing   process {os.getpid()} on " in capsys.readouterr().out
    writer.close()
    assert main(["show", "j", "--dir", url]) == 0
    assert "writing   nobody" in capsys.readouterr().out


FORK = """
import os, sys
from checkpoint import CheckpointedRunner
from checkpoint.errors import StoreForked
runner = CheckpointedRunner("j", "memory://bucket/prefix")
runner.save_result(1, 1)
uploads = runner.records.store.replica
pid = os.fork()
if not pid:
    assert uploads._session is None
    try:
        runner.save_result(2, 2)
    except StoreForked:
        sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert uploads._session is not None and runner.uploaded.bytes
runner.close()
import fsspec
names = [path.rpartition("/")[2] for path in fsspec.filesystem("memory").find("/bucket")]
assert names == ["00000001.json", "results-00000001-at-00000000.jsonl"], names
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_uploads_nothing(tmp_path: Path) -> None:
    """Its parent does; the child ends as it would have."""
    environment = os.environ | {"PYTHONPATH": ROOT, "CHECKPOINT_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def test_what_only_this_machine_has_survives_a_compaction_elsewhere(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, haste: None
) -> None:
    """Lines that were not uploaded are kept; those that were left out do not come back."""
    first = machine("first")
    first.save_result(1, "old")
    first.save_result(1, "new")
    until(lambda: first.uploaded == (0, 0.0, ""))
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:
        patch.setattr(type(system), "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "gone")))
        first.save_result(2, "late")
        with pytest.raises(NotUploaded):
            first.close()
    monkeypatch.setattr(numbers, "LEASE", 0.0)
    machine("second").close()
    assert compact("j", "memory://bucket/prefix").lines == 1
    with machine("first") as again:
        assert again.get_all_results() == {1: "new", 2: "late"}
        assert len(again.records.store.own.results.journal.path.read_bytes().splitlines()) == 2
        again.save_result(3, 3)
    assert machine("third").get_all_results() == {1: "new", 2: "late", 3: 3}


def test_who_begins_at_one_moment_never_harms_the_other(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one finds the number taken, and changes nothing of the quicker one's."""
    first, second = machine("first"), machine("second")
    owners = objects_module.Objects.owners
    raced: list[int] = []

    def late(self: objects_module.Objects) -> list[objects_module.Owner]:
        found = owners(self)
        if not raced:
            raced.append(1)
            other = threading.Thread(target=first.save_result, args=(1, 1))
            other.start()
            other.join()
        return found

    monkeypatch.setattr(objects_module.Objects, "owners", late)
    with pytest.raises(CheckpointLocked, match="is being written by"):
        second.save_result(2, 2)
    assert json.loads(objects_of()["owners/00000001.json"])["released"] is False
    first.close()
    assert json.loads(objects_of()["owners/00000001.json"])["released"] is True


# --- failures --------------------------------------------------------------------------------------------------------


def test_uploads_that_fail_are_told_retried_and_never_waited_for(
    machine: Machine, haste: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a streak; the delay is shown; and once it works again that is told too."""
    caplog.set_level(logging.INFO, "checkpoint")
    runner = machine("first")
    runner.save_result(0, 0)
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:

        def refuse(*_: Any, **__: Any) -> None:
            raise PermissionError(13, "no more")

        patch.setattr(type(system), "pipe_file", refuse)
        for number in range(1, 100):
            runner.save_result(number, number)
        until(lambda: (told := runner.uploaded) and told.bytes and told.seconds and "no more" in told.failing)
    until(lambda: runner.uploaded == (0, 0.0, ""))
    runner.close()
    assert caplog.text.count("uploading fails") == 1
    assert caplog.text.count("uploading works again") == 1
    assert len(lines_of()) == 100


def test_what_could_not_be_uploaded_at_the_end_is_told_and_uploaded_next_time(
    machine: Machine, haste: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The pass ends all the same, and by an error, so that a script ends with a status that is not 0."""
    runner = machine("first")
    system = fsspec.filesystem("memory")
    with monkeypatch.context() as patch:

        def save_all() -> None:
            for item in runner.iterate(range(10)):
                runner.save_result(item, item)
                if item == 0:
                    until(lambda: lines_of())
                    patch.setattr(type(system), "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "gone")))

        with pytest.raises(NotUploaded, match="9 results") as caught:
            save_all()
    assert "the next opening here uploads them" in str(caught.value)
    assert caught.value.directory == str(runner.records.store.directory)
    behind = runner.uploaded
    assert behind is not None
    assert behind.bytes > 0
    runner.save_result("more", 1)
    runner.close()
    assert len(machine("second").get_all_results()) == 11


@pytest.mark.parametrize("how", ["dropped", "raises"])
def test_what_could_not_be_uploaded_is_told_where_nobody_can_catch_it(
    how: str, url: str, tmp_path: Path, haste: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At ERROR: a runner that is collected, or a block that ends by an exception of its own."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))
    opened = [CheckpointedRunner("j", url)]
    opened[0].save_result(1, 1)
    until(lambda: opened[0].uploaded == (0, 0.0, ""))
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "pipe_file", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "gone")))
    opened[0].save_result(2, 2)
    if how == "raises":
        with pytest.raises(KeyError), opened[0]:
            raise KeyError
    opened.clear()
    gc.collect()
    until(lambda: "1 result (98 bytes) are in" in caplog.text)
    assert [record.levelname for record in caplog.records if "are in" in record.getMessage()] == ["ERROR"]


@pytest.mark.parametrize(
    ("told", "beside"),
    [((0, 0.0, ""), ""), ((9, 12.0, ""), ""), ((9, 31.0, "x"), "uploads 31 s behind")],
)
def test_a_delay_stands_beside_the_bar(
    told: Any, beside: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is longer than half a minute."""
    uploading = machine("first").records.store.replica
    assert isinstance(uploading, uploader.Uploader)
    monkeypatch.setattr(uploader.Uploader, "uploaded", lambda _: Uploaded(*told))
    assert uploading.beside() == beside


@pytest.mark.promise("the store behind a URL stops, and comes back")
def test_an_unreachable_store_is_an_error_or_is_read_as_it_was(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A mirror that knows nothing would run everything anew; one that knows something reads, and does not write."""
    with machine("first") as runner:
        runner.save_result(1, 1)
    system = fsspec.filesystem("memory")
    monkeypatch.setattr(type(system), "ls", lambda *_, **__: (_ for _ in ()).throw(OSError(111, "refused")))
    with pytest.raises(StoreError, match=r"cannot list memory://bucket/prefix/j: .*refused"):
        machine("second")
    again = machine("first")
    assert again.get_all_results() == {1: 1}
    assert "as it was last seen here" in caplog.text
    with pytest.raises(StoreError, match="refused"):
        again.save_result(2, 2)


# --- a real server ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    """One for all tests of this file."""
    with s3_server() as proxy:
        yield proxy


@pytest.fixture
def bucket(server: Proxy, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty bucket."""
    for name, value in s3_environment(server.port).items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(request.node.name))}"
    fsspec.filesystem("s3").mkdir(name)
    yield f"s3://{name}/prefix"
    server.set("up")


JOB = """
import os, sys, logging
logging.basicConfig(level=logging.INFO)
for name in ("botocore", "aiobotocore", "fsspec", "s3fs", "asyncio"):
    logging.getLogger(name).setLevel(logging.ERROR)
from checkpoint import checkpointed
from checkpoint.remote import numbers, session as uploads
import checkpoint, time
uploads.EVERY, uploads._POLL, numbers.LEASE = 0.2, 0.05, float(os.environ.get("LEASE", 60))

@checkpointed("j", key="id", checkpoint_dir=sys.argv[1])
def work(item):
    with open(sys.argv[2], "a") as file:
        file.write(f"{item['id']}\\n")
    time.sleep(float(sys.argv[4]))
    return {"square": item["id"] ** 2}

assert checkpoint.__file__.startswith(os.environ["PYTHONPATH"])
found = work.map([{"id": n} for n in range(int(sys.argv[3]))], progress=False)
assert [one["square"] for one in found] == [n * n for n in range(int(sys.argv[3]))]
"""


def start_job(
    url: str, local: Path, calls: Path, items: int, pause: float = 0.0, **environment: str
) -> subprocess.Popen[str]:
    """A process that maps, with a directory of its own."""
    script = calls.with_suffix(".py")
    script.write_text(JOB)
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(script), url, str(calls), str(items), str(pause)],
        env=os.environ | {"CHECKPOINT_DIR": str(local), "PYTHONPATH": ROOT} | environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(job: subprocess.Popen[str]) -> str:
    """What it told; it has to end well."""
    _, told = job.communicate(timeout=120)
    assert job.returncode == 0, told[-3000:]
    return told


def count(path: Path) -> int:
    """How many calls a job noted."""
    return len(path.read_text().split()) if path.exists() else 0


@pytest.mark.promise("the machine is lost")
def test_the_machine_is_lost(bucket: str, tmp_path: Path) -> None:
    """On an empty directory; run again is what was not uploaded yet, and nothing else. Until the lease has passed the
    other machine is refused."""
    calls, items = tmp_path / "calls", 3000
    job = start_job(bucket, tmp_path / "first", calls, items, 0.002)
    until(lambda: count(calls) > 600 and len(lines_of(bucket)) > 300)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    before, uploaded = count(calls), len(lines_of(bucket))
    shutil.rmtree(tmp_path / "first")
    refused = start_job(bucket, tmp_path / "second", calls, items)
    _, told = refused.communicate(timeout=60)
    assert "CheckpointLocked" in told
    assert count(calls) == before
    told = finish(start_job(bucket, tmp_path / "second", calls, items, LEASE="0"))
    assert "takes over" in told
    assert count(calls) - before == items - uploaded
    assert finish(start_job(bucket, tmp_path / "third", calls, items))
    assert count(calls) - before == items - uploaded


def test_a_killed_process_goes_on_in_its_directory(bucket: str, tmp_path: Path) -> None:
    """At once, and nothing that it had saved is run again, uploaded or not; the store has all of it at the end."""
    calls, items = tmp_path / "calls", 1000
    job = start_job(bucket, tmp_path / "first", calls, items, 0.002)
    until(lambda: count(calls) > 300)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    finish(start_job(bucket, tmp_path / "first", calls, items))
    assert count(calls) <= items + 1
    assert len(set(lines_of(bucket))) == items


EXIT = """
import sys
from checkpoint import CheckpointedRunner
from checkpoint.remote import numbers, session as uploads
runner = CheckpointedRunner("j", sys.argv[1])
runner.save_result(1, 1)
assert runner.records.store.replica.drain()
runner.save_result(2, 2)
print("saved", flush=True)
sys.stdin.readline()
from aiohttp.connector import _DNSCacheTable
_DNSCacheTable.expired = lambda *_: True  # the name has to be resolved again
"""


def test_a_process_that_just_ends_uploads_first(
    bucket: str, server: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was closed, the connections have gone, and names are resolved by an executor."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{server.port}")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", EXIT, bucket],
        env=os.environ | {"CHECKPOINT_DIR": str(tmp_path), "PYTHONPATH": ROOT},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as job:  # fmt: skip
        assert job.stdout is not None
        job.stdout.readline()
        server.set("up")
        _, told = job.communicate("\n", timeout=60)
    assert (job.returncode, told) == (0, "")
    assert len(lines_of(bucket)) == 2
    assert all(json.loads(data)["released"] for name, data in objects_of(bucket).items() if name.startswith("owners"))


@pytest.mark.promise("the store behind a URL stops, and comes back")
def test_the_store_behind_a_url_stops_and_comes_back(bucket: str, server: Proxy, tmp_path: Path) -> None:
    """The job neither waits for it nor loses anything."""
    calls, items = tmp_path / "calls", 1500
    job = start_job(bucket, tmp_path / "first", calls, items, 0.002)
    until(lambda: count(calls) > 200)
    server.set("down")
    at = count(calls)
    until(lambda: count(calls) > at + 300)
    server.set("up")
    told = finish(job)
    assert "uploading fails" in told
    assert "uploading works again" in told
    assert len(lines_of(bucket)) == count(calls) == items


@pytest.mark.promise("the store behind a URL stops, and comes back")
@pytest.mark.parametrize("mode", ["slow", "cut", "503"])
def test_a_bad_line_only_delays(mode: Mode, bucket: str, server: Proxy, tmp_path: Path) -> None:
    """Slow, cut half-way, refusing: at the end everything is there, once each."""
    calls, items = tmp_path / "calls", 800
    job = start_job(bucket, tmp_path / "first", calls, items, 0.002)
    until(lambda: count(calls) > 100)
    server.set(mode)
    until(lambda: count(calls) > 600)
    server.set("up")
    finish(job)
    assert count(calls) == items
    assert len(lines_of(bucket)) == items


def test_large_values_go_up_and_come_down(bucket: str, server: Proxy, machine: Machine) -> None:
    """3,000 results and one of 20 MB; what went over the line is that, and the last part that was not full."""
    before = server.sent
    with machine("first", bucket) as runner:
        for number in range(3000):
            runner.save_result(number, number)
        runner.save_result("large", "x" * 20_000_000)
        size = runner.records.store.own.results.journal.path.stat().st_size
    assert server.sent - before < size + 3 * session._SEALED
    second = machine("second", bucket)
    assert len(second.get_all_results()) == 3001
    assert len(second.get_result("large")) == 20_000_000


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.promise("the machine is lost")
def test_shards_of_several_machines_are_read_as_one(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An array of tasks, each on a machine of its own; another count of them, and the last step, elsewhere again."""
    calls: list[int] = []

    def work(n: int) -> int:
        calls.append(n)
        return n * 10

    def on(name: str, shard: tuple[int, int] | None = None, upto: int = 40) -> list[int]:
        monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / name))
        f = checkpoint.checkpointed("array", checkpoint_dir=url)(work)
        try:
            return f.map(range(upto), shard=shard, progress=False)[:]
        finally:
            f._runner_of(shard_of(shard)).close()

    on("base", upto=5)
    assert sorted(n for i in range(2) for n in on(f"machine {i}", (i, 2))) == [n * 10 for n in range(40)]
    assert sorted(calls) == list(range(40))
    for i in range(3):
        on(f"resubmitted {i}", (i, 3))
    assert on("collects") == [n * 10 for n in range(40)]
    assert sorted(calls) == list(range(40))
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "looks"))
    (told,) = list_checkpoints(url)
    assert (told.name, told.done, told.shards) == ("array", 40, 2)


# --- what a fresh reader found ---------------------------------------------------------------------------------------


def test_every_machine_has_one_order(machine: Machine, monkeypatch: pytest.MonkeyPatch, haste: None) -> None:
    """What one has not uploaded comes after what another did meanwhile, there as everywhere."""
    first = machine("first")
    first.save_result("k", 0)
    uploading = first.records.store.replica
    assert isinstance(uploading, uploader.Uploader)
    assert uploading._session is not None
    until(lambda: first.uploaded == (0, 0.0, ""))
    cut_off: Any = vars(uploading._session)["_work"]
    cut_off = getattr(cut_off, "_really", cut_off)  # this thread takes others in no order: it plays two machines
    cut_off.acquire()
    first.save_result("k", "offline")
    monkeypatch.setattr(numbers, "LEASE", 0.0)
    second = machine("second")
    second.save_result("k", "meanwhile")
    second.close()
    cut_off.release()
    first.close()
    again = machine("first")
    again.save_result("other", 1)
    again.close()
    seen = [machine(name).get_result("k") for name in ("first", "second", "third")]
    assert seen == [seen[0]] * 3


def test_a_runner_that_is_collected_by_the_uploading_thread_is_closed_all_the_same(machine: Machine) -> None:
    """Closing waits for that thread, and would for ever."""
    name = "checkpoint-upload"
    runner = CheckpointedRunner("j", "memory://bucket/prefix")
    runner.save_result(1, 1)
    thread = threading.Thread(target=runner.close, name=name)  # as a finalizer that runs there
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    until(lambda: (os.path.realpath(runner.records.checkpoint.directory), "j") not in REGISTRY)
    assert machine("second").get_result(1) == 1


def test_who_writes_does_not_wait_for_the_store_to_read(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Though shards are there."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "shards"))

    def work(n: int) -> int:
        return n

    f = checkpoint.checkpointed("j", checkpoint_dir="memory://bucket/prefix", version=1)(work)
    for i in range(2):
        f.map(range(6), shard=(i, 2), progress=False)
        f._runner_of(shard_of((i, 2))).close()
    runner = machine("writes", version=1)
    runner.save_result("by hand", 1)

    def hang(*_: Any) -> Any:
        raise AssertionError("the store was asked")

    monkeypatch.setattr(siblings, "names_under", hang)
    monkeypatch.setattr(local_copy.LocalCopy, "look", hang)
    monkeypatch.setattr(siblings, "_ASK_EVERY", 0.0)
    assert runner.is_completed(3)
    assert len(runner.get_all_results()) == 7


def test_an_event_loop_goes_on_while_the_end_waits_for_uploads(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, haste: None
) -> None:
    """Until all is up."""
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))
    went_on = threading.Event()
    put = objects_module.Objects.put

    def slow(self: objects_module.Objects, name: str, data: bytes) -> None:
        if name.startswith("results"):
            assert went_on.wait(30), "the loop stood still"
        put(self, name, data)

    monkeypatch.setattr(objects_module.Objects, "put", slow)

    async def work(n: int) -> int:
        return n

    async def main() -> list[int]:
        f = checkpoint.checkpointed("j", checkpoint_dir=url)(work)
        mapped = asyncio.ensure_future(f.map(range(5), progress=False))
        while not lines_there():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert not mapped.done()
        went_on.set()
        return list(await mapped)

    def lines_there() -> bool:
        journals = list(tmp_path.rglob("j_results.jsonl"))
        return bool(journals) and journals[0].read_bytes().count(b"\n") == 5

    assert asyncio.run(main()) == list(range(5))
    assert len(lines_of()) == 5


def test_a_wait_that_is_interrupted_tells_what_is_only_here(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By Ctrl-C, say."""
    runner = machine("first")
    runner.save_result(1, 1)

    def interrupt(self: Any) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "finish", interrupt)
    store = runner.records.store
    assert store.replica.is_remote
    with pytest.raises(KeyboardInterrupt):
        store.replica.finish()
    assert "1 result" in caplog.text
    assert "the next opening here uploads them" in caplog.text


def test_ls_of_a_url_needs_no_mirror(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """And what is not there is told by its URL."""
    with machine("first") as runner:
        runner.save_result(1, 1)
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "fresh"))
    assert main(["ls", "memory://bucket/prefix"]) == 0
    assert "j" in capsys.readouterr().out
    assert main(["show", "none", "--dir", "memory://bucket/prefix"]) == 1
    assert "in memory://bucket/prefix" in capsys.readouterr().err


# --- what is owed ----------------------------------------------------------------------------------------------------


@pytest.fixture
def killed_when_uploaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[CheckpointedRunner, int], None]:
    """Kills the process of a runner when a part with so many lines is in the store, before that is noted here."""

    def kill(runner: CheckpointedRunner, lines: int) -> None:
        def end(self: session.Session, *_: Any) -> None:
            self._over.set()

        with monkeypatch.context() as patch:
            patch.setattr(session.Session, "_count", end)
            uploading = runner.records.store.replica
            assert isinstance(uploading, uploader.Uploader)
            assert uploading._session is not None
            uploading._session.attempt()
            assert len(lines_of()) == lines
            runner.records.store.writer.let_go()
        runner.close()

    return kill


def kill_unseen(runner: CheckpointedRunner) -> None:
    """The process is killed; nothing is told to the store."""
    runner.records.store.writer.let_go()
    runner.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is uploaded but at the end, or by the test; and no lease is waited for."""
    monkeypatch.setattr(session, "EVERY", 1e9)
    monkeypatch.setattr(numbers, "LEASE", -1.0)


@pytest.mark.promise("a machine that was killed comes back to a URL")
def test_a_machine_that_was_killed_comes_back_to_a_url(
    machine: Machine, slow: None, killed_when_uploaded: Callable[[CheckpointedRunner, int], None]
) -> None:
    """What it had uploaded, and what it had not, stands where it was saved: newer values win, here and everywhere."""
    first = machine("first")
    for key, value in (("k", "old"), ("other", 1), ("p", "early")):
        first.save_result(key, value)
    first.clear(["p"])
    killed_when_uploaded(first, 4)
    with machine("second") as second:
        assert second.get_all_results() == {"k": "old", "other": 1}
        second.clear(["k"])
        second.save_result("k", "new")
        second.save_result("p", "paid for")
    with machine("first") as again:
        assert again.get_all_results() == {"k": "new", "other": 1, "p": "paid for"}
        again.save_result("z", 0)
    expected = {"k": "new", "other": 1, "p": "paid for", "z": 0}
    assert [machine(name).get_all_results() for name in ("first", "second", "third")] == [expected] * 3
    assert len(lines_of()) == len(set(lines_of())) == 8


@pytest.mark.promise("a machine that was killed comes back to a URL")
def test_what_is_owed_goes_up_under_its_own_session(machine: Machine, slow: None) -> None:
    """However late: it never stands behind what was saved in a later one."""
    first = machine("first")
    first.save_result("k", "owed")
    first.save_result("only here", 1)
    kill_unseen(first)
    with machine("second") as second:
        second.save_result("k", "meanwhile")
    with machine("first") as again:
        assert again.get_result("k") == "meanwhile"
        again.save_result("z", 0)
    names = [name for name in objects_of() if name.startswith("results-")]
    assert [name.split("-")[1] for name in names] == ["00000001", "00000002", "00000003"]
    assert ".by-" in names[0]
    for name in ("first", "second", "third"):
        assert machine(name).get_all_results() == {"k": "meanwhile", "only here": 1, "z": 0}


@pytest.mark.promise("a machine that was killed comes back to a URL")
def test_what_a_whole_took_in_is_owed_no_more(
    machine: Machine, slow: None, killed_when_uploaded: Callable[[CheckpointedRunner, int], None]
) -> None:
    """It does not come back, although the part has gone; what the whole never saw counts where nothing newer does."""
    first = machine("first")
    first.save_result("cleared", 1)
    first.save_result("k", "old")
    killed_when_uploaded(first, 2)
    shutil.copytree(first.records.store.directory, first.records.store.directory.with_name("copy"))
    with machine("first") as again:
        again.save_result("k", "owed")
        again.save_result("late", 1)
        kill_unseen(again)
    with machine("second") as second:
        second.clear(["cleared"])
        second.save_result("k", "new")
    compact("j", "memory://bucket/prefix")
    with machine("first") as back:
        assert back.get_all_results() == {"k": "new", "late": 1}
        back.save_result("z", 0)
    expected = {"k": "new", "late": 1, "z": 0}
    assert machine("third").get_all_results() == expected
    directory = first.records.store.directory
    shutil.rmtree(directory)
    directory.with_name("copy").rename(directory)  # restored, from when all of it was owed
    with machine("first") as restored:
        assert restored.get_all_results() == expected
        restored.save_result("y", 0)
    assert machine("fourth").get_all_results() == {**expected, "y": 0}


def test_what_is_owed_when_all_is_cleared_is_set_aside(
    machine: Machine, slow: None, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told where, and does not come back, even after a compaction; what is saved later counts."""
    first = machine("first")
    first.save_result("k", "owed")
    kill_unseen(first)
    with machine("second") as second:
        second.clear()
        second.save_result("new", 1)
    machine("second").close()
    with machine("second") as second:
        second.save_result("new", 2)
    compact("j", "memory://bucket/prefix")
    with machine("first") as again:
        assert again.get_all_results() == {"new": 2}
        aside = again.records.store.directory / ".j_results.aside"
        again.save_result("z", 0)
    assert f"1 line here were not in memory://bucket/prefix yet: set aside in {aside}" in caplog.text
    assert len(aside.read_bytes().splitlines()) == 1
    assert machine("third").get_all_results() == {"new": 2, "z": 0}


@pytest.mark.promise("a machine that was killed comes back to a URL")
def test_a_directory_that_is_restored_brings_nothing_old_back(machine: Machine, slow: None) -> None:
    """What it owed then was uploaded since: it is known by its place in what its session appended."""
    first = machine("first")
    first.save_result("k", "old")
    directory = first.records.store.directory
    shutil.copytree(directory, directory.with_name("copy"))
    first.close()
    with machine("second") as second:
        second.save_result("k", "new")
    shutil.rmtree(directory)
    directory.with_name("copy").rename(directory)
    with machine("first") as restored:
        assert restored.get_result("k") == "new"
        restored.save_result("z", 0)
    assert machine("third").get_all_results() == {"k": "new", "z": 0}
    assert len(lines_of()) == 3


def test_what_was_owed_to_an_empty_store_is_seen_by_others(machine: Machine) -> None:
    """Somebody deleted the prefix, and nothing else was saved since."""
    with machine("first") as runner:
        runner.save_result(1, 1)
    fsspec.filesystem("memory").rm("/bucket/prefix/j", recursive=True)
    with machine("first") as runner:
        runner.records.store.writer.begin()
    assert machine("second").get_all_results() == {1: 1}


def test_an_earlier_release_wrote_the_state_and_the_objects(machine: Machine, slow: None) -> None:
    """Its parts are numbered, its wholes say nothing, and its state names no session; all of it is read."""
    first = machine("first")
    first.save_result("uploaded", 1)
    first.close()
    system, old = fsspec.filesystem("memory"), "/bucket/prefix/j/results-00000001-00000000.jsonl"
    system.mv("/bucket/prefix/j/results-00000001-at-00000000.jsonl", old)
    path = first.records.store.own.results.journal.path
    end = path.stat().st_size
    state = first.records.store.directory / ".j.remote"
    held = {"have": {old.rpartition("/")[2]: end}, "end": end, "owed": [], "mark": json.loads(state.read_bytes())
            ["journals"]["results"]["mark"]}  # fmt: skip
    line = path.read_bytes()
    with CheckpointedRunner("other", path.parent) as plain:
        plain.save_result("owed", 2)
    path.write_bytes(line + plain.records.store.own.results.journal.path.read_bytes())
    state.write_bytes(json.dumps({"whole": 0, "tokens": [], "sent": 1.0, "journals": {"results": held}}).encode())
    with machine("first") as runner:
        assert runner.get_all_results() == {"uploaded": 1, "owed": 2}
        runner.save_result("new", 3)
    assert machine("second").get_all_results() == {"uploaded": 1, "owed": 2, "new": 3}
    assert len(lines_of()) == 3


def test_an_upload_takes_what_was_there_when_it_began(
    machine: Machine, slow: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that come faster than a round trip do not keep it going: it pauses, and takes them the next time."""
    runner = machine("first")
    runner.save_result(0, 0)
    put, sizes = objects_module.Objects.put, list[int]()

    def meanwhile(self: objects_module.Objects, name: str, data: bytes) -> None:
        put(self, name, data)
        if name.startswith("results-") and len(sizes) < 10:
            sizes.append(data.count(b"\n"))
            runner.save_result(len(sizes), 0)

    uploading = runner.records.store.replica
    assert isinstance(uploading, uploader.Uploader)
    assert uploading._session is not None
    with monkeypatch.context() as patch:
        patch.setattr(objects_module.Objects, "put", meanwhile)
        patch.setattr(locks_of(uploading._session), "acquire", lambda *_: True)
        patch.setattr(locks_of(uploading._session), "release", lambda *_: None)
        uploading._session.attempt()
    assert sizes == [1]
    assert runner.uploaded is not None
    assert runner.uploaded.bytes > 0


def locks_of(session: session.Session) -> Any:
    """The lock of uploading: one thread plays the one that saves, too."""
    return vars(session)["_work"]


# --- stores that heed no condition -----------------------------------------------------------------------------------


@pytest.fixture
def heedless(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store takes the condition, and does not heed it."""
    system = type(fsspec.filesystem("memory"))
    write = system.pipe_file
    monkeypatch.setattr(system, "pipe_file", lambda self, path, data, mode="overwrite": write(self, path, data))


def begin_while(
    other: CheckpointedRunner, monkeypatch: pytest.MonkeyPatch, *, hides: bool
) -> Callable[[objects_module.Objects], list[objects_module.Owner]]:
    """`owners` as it is when another machine begins between the first look and the taking of the number."""
    owners = objects_module.Objects.owners
    begun: list[bool] = []

    def late(self: objects_module.Objects) -> list[objects_module.Owner]:
        found = owners(self)
        if not begun:
            begun.append(True)
            thread = threading.Thread(target=other.save_result, args=("other", 1))
            thread.start()
            thread.join()
            return found
        mine = other.records.store.replica
        assert isinstance(mine, uploader.Uploader)
        return [each for each in owners(self) if not hides or each != mine._number]

    return late


@pytest.mark.promise("two machines on one URL")
def test_two_that_begin_at_one_moment_see_each_other_where_no_condition_is_heeded(
    machine: Machine, heedless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one withdraws."""
    first, second = machine("first"), machine("second")
    monkeypatch.setattr(objects_module.Objects, "owners", begin_while(first, monkeypatch, hides=False))
    with pytest.raises(CheckpointLocked, match="is being written by"):
        second.save_result("mine", 2)
    first.close()
    second.save_result("mine", 2)
    second.close()
    assert machine("third").get_all_results() == {"other": 1, "mine": 2}


@pytest.mark.promise("two machines on one URL")
def test_two_that_do_not_see_each_other_write_different_objects(
    machine: Machine, heedless: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listings are late: both go on under one number; nothing of either is lost, and all read one order."""
    first, second = machine("first"), machine("second")
    with monkeypatch.context() as patch:
        patch.setattr(objects_module.Objects, "owners", begin_while(first, monkeypatch, hides=True))
        second.save_result("mine", 2)
        for runner in (first, second):
            runner.save_result("both", runner is first)
        second.close()
    first.close()
    assert len({name for name in objects_of() if name.startswith("results-00000001-at-00000000-")}) == 2
    found = machine("third").get_all_results()
    assert found.keys() == {"other", "mine", "both"}
    assert [machine(name).get_all_results() for name in ("first", "second")] == [found] * 2


# --- what this disk did ----------------------------------------------------------------------------------------------


def damage(runner: CheckpointedRunner) -> None:
    """A flipped bit, in the journal of this machine."""
    path = runner.records.store.own.results.journal.path
    path.write_bytes(path.read_bytes().replace(b"value 2", b"valqe 2"))


FIVE: dict[Any, Any] = {number: f"value {number}" for number in range(5)}


def save_five(runner: CheckpointedRunner) -> CheckpointedRunner:
    """Values of which one can be damaged."""
    for number, value in FIVE.items():
        runner.save_result(number, value)
    return runner


@pytest.mark.promise("a disk damages a line that is in a store")
def test_a_disk_damages_a_line_that_is_in_a_store(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads it finds the damage, and what follows from that stays on this machine."""
    monkeypatch.setattr(state_module, "_ENDS", 64)  # else a small journal is compared as a whole
    with save_five(machine("first")) as runner:
        pass
    damage(runner)
    with machine("first") as runner:
        with pytest.raises(checkpoint.DamagedRecord):
            runner.get_result(2)
        runner.save_result("more", 1)
    assert machine("third").get_all_results() == {**FIVE, "more": 1}
    assert not any(b"forgotten" in line for line in lines_of())


@pytest.mark.promise("a disk damages a line that is in a store")
@pytest.mark.parametrize("rewrites", ["repair", "compact"])
def test_a_journal_that_is_rewritten_takes_the_lines_of_the_store(
    rewrites: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The damaged line is set aside; its sound one is read again, here and elsewhere."""
    monkeypatch.setattr(state_module, "_ENDS", 64)
    with save_five(machine("first")) as runner:
        runner.save_result(0, "value 0")
    damage(runner)
    if rewrites == "repair":
        assert main(["check", "j", "--dir", "memory://bucket/prefix", "--repair"]) in (0, 1)
        assert "1 damaged line set aside" in capsys.readouterr().out
    else:
        assert compact("j", "memory://bucket/prefix").damaged == 0
    for name in ("first", "second"):
        assert machine(name).get_all_results() == FIVE
    assert (runner.records.store.directory / ".j_results.aside").exists()


@pytest.mark.promise("a disk damages a line that is in a store")
def test_a_damaged_line_is_not_uploaded(machine: Machine, slow: None, caplog: pytest.LogCaptureFixture) -> None:
    """It is told; the lines before and behind it are there."""
    runner = save_five(machine("first"))
    damage(runner)
    runner.close()
    assert "j_results.jsonl:3: a damaged line is not uploaded" in caplog.text
    assert len([name for name in objects_of() if name.startswith("results-")]) == 2
    assert len(lines_of()) == 4
    assert machine("second").get_all_results() == {key: value for key, value in FIVE.items() if key != 2}
