"""The laws of a store, on servers of each kind that run on loopback: what holds in memory holds there too."""

from __future__ import annotations

import asyncio
import errno
import io
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from machines import Machine, hurry, machines, until
from object_store import STORES, Store, forget_file_systems, make_bucket

from checkpoint import checkpointed
from checkpoint.cli import main
from checkpoint.errors import CheckpointLocked, InvalidOption, NotUploaded, StoreError
from checkpoint.maintenance.compact import compact
from checkpoint.remote import objects, patience, session, urls
from checkpoint.remote.objects import Objects
from checkpoint.remote.urls import place_of

pytestmark = pytest.mark.slow

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(scope="module", params=[pytest.param(kind, marks=pytest.mark.xdist_group(kind)) for kind in STORES])
def running(request: pytest.FixtureRequest) -> Iterator[Store]:
    """A server of each kind, for all tests of this file."""
    with STORES[request.param]() as store:
        yield store


@pytest.fixture
def store(running: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """Clients of this process go there."""
    forget_file_systems()
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    for protocol, options in running.options.items():
        monkeypatch.setitem(fsspec.config.conf, protocol, options)
    running.proxy.set("up")
    make_bucket(running.url)
    yield running
    running.proxy.set("up")
    forget_file_systems()


@pytest.fixture
def url(store: Store, request: pytest.FixtureRequest) -> str:
    """A prefix that holds nothing, and that no other test uses."""
    return f"{store.url}/{request.node.name.partition('[')[0]}-{request.node.name.count('coroutine')}"


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Opens checkpoint "j" as a machine would that has this name, and so a directory of its own."""
    with machines(url, tmp_path, monkeypatch) as open_runner:
        yield open_runner


# --- URLs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told", "why"),
    [
        ("s3:///prefix", "no bucket can be called ''", "none is given, and a prefix is none"),
        ("s3://ab/x", "no bucket can be called 'ab'", "too short"),
        ("s3://my bucket/x", "no bucket can be called", "no spaces"),
        ("s3://-bucket/x", "no bucket can be called", "a hyphen at an end"),
        ("s3://a..b/x", "no bucket can be called", "two dots"),
        ("s3://192.168.0.1/x", "no bucket can be called", "an address"),
        ("gs://Bucket/x", "no bucket can be called", "a capital"),
        ("gs://google/x", "no bucket can be called", "Google's own"),
        ("az://my_container/x", "no container can be called", "an underscore"),
        ("az://a--b/x", "no container can be called", "two hyphens"),
        ("abfs://Container@account/x", "no container can be called", "a capital, before the account"),
        ("sftp:///x", "whose host cannot be", "none is given"),
        ("sftp://:22/x", "whose host cannot be", "a port alone"),
        ("sftp://user@/x", "whose host cannot be", "a user alone"),
        ("sftp://host:/x", "whose host cannot be", "no port after the colon"),
        ("sftp://host:99999/x", "whose host cannot be", "no such port"),
    ],
)
def test_names_that_cannot_be_are_refused_at_once(
    url: str, told: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before credentials are looked for, which may take a minute; and before it matters what is installed."""
    monkeypatch.setattr(urls, "_check_protocol", lambda *_: None)
    with pytest.raises(InvalidOption, match=told):
        place_of(url, "")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://bucket.with-dots/x", "ordinary"),
        ("s3://Old_Bucket/x", "buckets of 2017 may be called so"),
        ("s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/mine/x", "an access point"),
        ("gs://bucket_1/x", "underscores are Google's"),
        ("az://container-1/x", "ordinary"),
        ("az://$root/x", "Azure's own"),
        ("abfs://container@account.dfs.core.windows.net/x", "with the account"),
        ("sftp://user@host:2222/x", "with a port"),
        ("sftp://10.0.0.1/x", "an address"),
        ("memory:///x", "memory has no buckets"),
    ],
)
def test_names_that_may_be_are_not(url: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider knows better."""
    monkeypatch.setattr(urls, "_check_protocol", lambda *_: None)
    assert place_of(url, "")[1], why


# --- buckets ---------------------------------------------------------------------------------------------------------


def test_a_prefix_that_holds_nothing_is_an_empty_checkpoint(url: str, machine: Machine, capsys: Any) -> None:
    """Whoever reads it makes nothing."""
    assert machine("first").get_all_results() == {}
    assert main(["ls", url]) == 0
    assert machine("second").get_all_results() == {}


def test_a_bucket_that_is_not_there_is_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever reads is told as well as whoever writes, and each time: a mistyped URL is no empty checkpoint."""
    if not store.missing:
        pytest.skip("any folder may be made there")
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))
    called: list[int] = []
    place, csv = f"{store.missing}/prefix", str(tmp_path / "x.csv")

    @checkpointed("j", checkpoint_dir=place, version=1)
    def work(n: int) -> int:
        called.append(n)
        return n

    told = r"there is no (bucket|container) 'no-such-.*make the (bucket|container), or name another"
    for read in (lambda: len(work.results), lambda: work.plan(range(3)), lambda: work.map(range(3), progress=False)):
        for _ in range(2):
            with pytest.raises(StoreError, match=told):
                read()
    for command in (["ls", place], ["show", "j", "--dir", place], ["export", "j", csv, "--dir", place]):
        assert main(command) == 1
        assert "there is no" in capsys.readouterr().err
    assert not called


# --- another machine -------------------------------------------------------------------------------------------------


@pytest.mark.promise("the machine is lost")
def test_another_machine_finds_everything(url: str, machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    """Results, errors, and values that could not be encoded; and commands find the checkpoint by its URL."""
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
    assert main(["ls", url]) == 0
    assert "j" in capsys.readouterr().out.split()


def test_sessions_of_several_machines_join(url: str, machine: Machine) -> None:
    """One after the other, forth and back; nothing is uploaded twice, and one owner is left."""
    for turn in range(6):
        with machine(("first", "second", "third")[turn % 3]) as runner:
            assert set(runner.get_all_results()) == set(range(turn))
            runner.save_result(turn, turn)
    there = Objects(url, "j")
    lines = [line for _, _, data in there.fetch((part, 0) for part in there.look().parts) for line in data.splitlines()]
    assert len(lines) == 6
    assert [owner.epoch for owner in there.owners()] == [6]


def test_compaction_and_clearing_reach_every_machine(url: str, machine: Machine) -> None:
    """Nothing that was left out comes back from another machine."""
    with machine("first") as runner:
        for number in range(50):
            runner.save_result(number % 5, number)
    expected = {number: 45 + number for number in range(5)}
    assert machine("second").get_all_results() == expected
    machine("first").close()
    assert compact("j", url).lines == 45
    second = machine("second")
    assert second.get_all_results() == expected
    second.save_result("more", 1)
    second.clear()
    third = machine("first")
    assert third.get_all_results() == {}
    third.save_result("anew", 1)
    third.close()
    assert machine("second").get_all_results() == {"anew": 1}


@pytest.mark.filterwarnings("ignore:Sending a large body")  # aiohttp's, to the clients of Azure and GCS
def test_large_values_go_up_and_come_down(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts that are full, and in one that is larger than all."""
    monkeypatch.setattr(session, "SIZE", 1 << 20)
    with machine("first") as runner:
        for number in range(1000):
            runner.save_result(number, "y" * 2000)
        runner.save_result("large", "x" * 5_000_000)
        path = runner.records.store.own.results.journal.path
    second = machine("second")
    assert len(second.get_all_results()) == 1001
    assert second.records.store.own.results.journal.path.read_bytes() == path.read_bytes()


# --- who writes ------------------------------------------------------------------------------------------------------


def test_an_object_is_created_only_where_there_is_none(
    store: Store, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the other machine was a moment quicker than a look; a store that cannot see to that is told of."""
    monkeypatch.setattr(objects, "_told", set())
    first, second = Objects(url, "j"), Objects(url, "j")
    assert first.heeds_conditions("owners/probe-00000001.json") is store.heeds
    first.create("owners/00000001.json", b"1")
    assert first.read("owners/00000001.json") == b"1"
    assert ("cannot create an object only where there is none" in caplog.text) is not store.heeds
    if store.heeds:
        monkeypatch.setattr(type(first._open()[0]), "exists", lambda *_, **__: False)
        with pytest.raises(FileExistsError):
            second.create("owners/00000001.json", b"2")
        assert first.read("owners/00000001.json") == b"1"


@pytest.mark.promise("two machines on one URL")
def test_two_machines_on_one_url(machine: Machine) -> None:
    """The second is told who writes; once that has ended it goes on."""
    first, second = machine("first"), machine("second")
    first.save_result(1, 1)
    with pytest.raises(CheckpointLocked, match=r"process [0-9]+ on .* since .*taken for dead"):
        second.save_result(2, 2)
    first.close()
    second.save_result(2, 2)
    assert second.get_all_results() == {1: 1, 2: 2}


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.fixture
def haste(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads begin at once, and so do new attempts."""
    hurry(monkeypatch)
    monkeypatch.setattr(objects, "_PATIENCE", 1.5)  # clients try again for half a minute


@pytest.mark.promise("the store behind a URL stops, and comes back")
def test_uploads_go_on_once_the_store_is_back(store: Store, url: str, machine: Machine, haste: None) -> None:
    """Over new connections: those of before are dead. The session goes on, and is said to."""
    with machine("first") as runner:
        runner.save_result(1, 1)
        until(lambda: runner.uploaded == (0, 0.0, ""))
        store.proxy.set("down")
        runner.save_result(2, 2)
        until(lambda: (told := runner.uploaded) and told.failing)
        store.proxy.set("up")
        until(lambda: runner.uploaded == (0, 0.0, ""))
        owner = Objects(url, "j")
        name = owner.owners()[-1].name
        before = owner.modified(name)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(session, "_RENEW", 0.0)
            until(lambda: owner.modified(name) != before)
    assert machine("second").get_all_results() == {1: 1, 2: 2}


def test_a_store_that_never_answers_fails_in_time(
    store: Store, url: str, machine: Machine, haste: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told, and what waits goes up once it answers; who opens it gets an error."""
    if "sftp" in store.options:
        monkeypatch.setitem(fsspec.config.conf, "sftp", {**store.options["sftp"], "banner_timeout": 1.5})
    with machine("first") as runner:
        runner.save_result(1, 1)
        until(lambda: runner.uploaded == (0, 0.0, ""))
        store.proxy.set("hang")
        runner.save_result(2, 2)
        until(lambda: (told := runner.uploaded) and told.failing)
        with pytest.raises(StoreError, match=r"cannot list .*/j: "):
            machine("second")
        store.proxy.set("up")
    assert machine("second").get_all_results() == {1: 1, 2: 2}


def test_what_sftp_wrote_only_in_part_is_an_error() -> None:
    """Answers come after the writes, and those that come as a file is closed are lost."""
    written = io.BytesIO()

    class Full:
        """A connection to a disk with room for three bytes."""

        def open(self, path: str, mode: str) -> Any:
            return self

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def set_pipelined(self, pipelined: bool) -> None:
            pass

        def write(self, data: bytes) -> None:
            written.write(data[:3])

        def stat(self, path: str) -> Any:
            return SimpleNamespace(st_size=len(written.getvalue()))

    with pytest.raises(OSError, match="3 of 5 bytes were written") as caught:
        objects._write_by_sftp(Full(), "a", b"12345")
    assert caught.value.errno == errno.EIO


@pytest.mark.promise("the store behind a URL stops, and comes back")
def test_a_wait_for_a_silent_store_is_told(
    store: Store, url: str, machine: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who opens it is told what for, before anything is given up."""
    monkeypatch.setattr(patience, "SLOW", 0.1)
    store.proxy.set("hang")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(machine, "first")
        until(lambda: f"{url}/j has not answered" in caplog.text)
        assert f"waiting for it to list {url}/j" in caplog.text
        store.proxy.set("up")
        opening.exception()
    assert machine("first").get_all_results() == {}


@pytest.mark.promise("the store behind a URL stops, and comes back")
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_the_end_of_a_job_tells_what_is_not_uploaded(
    kind: str,
    store: Store,
    url: str,
    tmp_path: Path,
    haste: None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """How much, where it is, and what it waits for; and at last it ends by an error. The same line makes up for it."""
    monkeypatch.setattr(patience, "SLOW", 0.1)
    monkeypatch.setattr(session, "_GIVE_UP", 0.5)
    monkeypatch.setattr(session, "_STALLED", 0.5)
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path))

    @checkpointed("j", checkpoint_dir=url, version=1)
    def work(n: int) -> int:
        if n == 2:
            store.proxy.set("hang")
        return n

    @checkpointed("j", checkpoint_dir=url, version=1)
    async def awaited(n: int) -> int:
        return work(n)

    def run() -> Any:
        return work.map(range(3), progress=False) if kind == "plain" else asyncio.run(awaited.map(range(3)))

    with pytest.raises(NotUploaded, match=r"results? \(.*bytes\) are in .* only, and not in .*next opening") as caught:
        run()
    assert caught.value.filename == url
    assert Path(caught.value.directory).is_relative_to(tmp_path)
    told = [record for record in caplog.records if "the end has waited for" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.WARNING]
    assert f"are in {caught.value.directory} only" in told[0].getMessage()
    store.proxy.set("up")
    monkeypatch.setattr(session, "_GIVE_UP", 60.0)
    monkeypatch.setattr(session, "_STALLED", 60.0)
    assert list(work.map(range(4), progress=False)) == [0, 1, 2, 3]
    assert work.runner.uploaded == (0, 0.0, "")
