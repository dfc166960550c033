"""A directory from a stranger, or one that strangers may write into: looking at it runs nothing and reaches nobody."""

from __future__ import annotations

import base64
import csv
import errno
import io
import json
import logging
import os
import pickle
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner, CheckpointError, CheckpointLocked, StoreError, UnencodableValue, checkpointed
from checkpoint.catalog.paths import resolve_directory
from checkpoint.cli import main
from checkpoint.remote import objects, urls
from checkpoint.reporting.status import list_checkpoints
from checkpoint.reporting.tables import export
from checkpoint.storage import files
from checkpoint.storage.lock import Lock
from checkpoint.storage.record import seal

posix = pytest.mark.skipif(os.name == "nt", reason="there are no such files, or no such users")
as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can be somebody else")
NOBODY = 65534
ORDERS = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\u2066\r\nforged line"
RAW = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\r", "\nforged")


def line(**fields: Any) -> bytes:
    """A sound line, as the library writes it."""
    fields.setdefault("timestamp", "2026-01-01T00:00:00Z")
    return seal(json.dumps(fields, separators=(",", ":")).encode()[:-1])


def sent(directory: Path, *results: bytes, errors: tuple[bytes, ...] = ()) -> Path:
    """A checkpoint "j" that somebody else made."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "j_results.jsonl").write_bytes(b"".join(results or (line(key=1, result=1),)))
    if errors:
        (directory / "j_errors.jsonl").write_bytes(b"".join(errors))
    return directory


# --- URLs that the user has not named ---------------------------------------------------------------------------------

SIGNS = [
    ("http://127.0.0.1:PORT/x", "a host of the sender's"),
    ("s3://bucket/prefix", "a bucket that this user's credentials may open"),
    ("reference://::file://DIR/refs", "instructions in a file"),
    ("memory://bucket/prefix", "a protocol that is allowed: the user has not named it"),
    ("file://DIR/elsewhere", "a directory outside"),
]


@pytest.mark.promise("untrusted checkpoints")
@pytest.mark.parametrize(("url", "why"), SIGNS)
def test_a_url_that_only_a_file_in_the_directory_names_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str, why: str
) -> None:
    """Neither by a look, nor by completion, nor by a pass that writes; the directory is a plain one."""
    directory = sent(tmp_path / "sent")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = url.replace("PORT", str(server.getsockname()[1])).replace("DIR", str(directory))
        (directory / ".mirror.json").write_text(json.dumps({"url": url}))
        monkeypatch.setattr(objects.Objects, "_open", lambda _: pytest.fail(f"it was opened: {why}"))
        for arguments in (
            ["ls", str(directory)],
            *([verb, "j", "--dir", str(directory)] for verb in ("show", "check")),
        ):
            assert main(arguments) == 0, why
        with CheckpointedRunner("j", directory) as runner:
            runner.save_result(2, 2)
            assert runner.get_all_results() == {1: 1, 2: 2}
        with pytest.raises(BlockingIOError):
            server.accept()
    capsys.readouterr()


def test_what_is_not_uploaded_is_told_once_with_what_to_pass(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A directory that mirrored a URL, and is opened by its path on a machine that has never named the URL."""
    pytest.importorskip("fsspec")
    directory = sent(tmp_path / "moved")
    (directory / ".mirror.json").write_text('{"url": "memory://bucket/prefix"}')
    with caplog.at_level(logging.WARNING, "checkpoint"):
        for key in (2, 3):
            with CheckpointedRunner("j", directory) as runner:
                runner.save_result(key, key)
    (told,) = [record.getMessage() for record in caplog.records if "not uploaded" in record.getMessage()]
    assert "checkpoint_dir='memory://bucket/prefix'" in told


@pytest.mark.parametrize(
    ("owed", "told", "why"),
    [(0, 0, "everything is there: a reader need not know"), (9, 1, "the last bytes are nowhere else")],
)
def test_a_reader_is_told_only_where_something_is_owed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, owed: int, told: int, why: str
) -> None:
    """The state file says what the store has."""
    directory = sent(tmp_path / "moved")
    size = (directory / "j_results.jsonl").stat().st_size
    (directory / ".mirror.json").write_text('{"url": "memory://bucket/prefix"}')
    (directory / ".j.remote").write_text(json.dumps({"journals": {"results": {"end": size - owed}}}))
    with caplog.at_level(logging.WARNING, "checkpoint"), CheckpointedRunner("j", directory) as runner:
        assert runner.get_result(1) == 1
    assert sum("not uploaded" in record.getMessage() for record in caplog.records) == told, why


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The local directory of a URL that an earlier process of this user has named."""
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "checkpoints"))
    with CheckpointedRunner("j", "memory://bucket/own") as runner:
        runner.save_result(1, 1)
        directory = runner.records.store.directory
    monkeypatch.setattr(urls, "_urls", {})
    yield directory
    fsspec.filesystem("memory").store.clear()


def test_what_this_user_named_before_is_remembered(mirror: Path) -> None:
    """So that a command may name the directory; no file in the directory says so."""
    assert urls.url_at(mirror) == "memory://bucket/own"
    assert not (mirror / ".mirror.json").exists()
    assert resolve_directory(str(mirror)) == mirror


def _write_url(note: Path, url: str) -> None:
    note.write_text(json.dumps({**json.loads(note.read_text()), "url": url}))


def _link(note: Path) -> None:
    note.rename(note.with_name("other"))
    note.symlink_to(note.with_name("other"))


@posix
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda note: note.chmod(0o622), "others may write the file"),
        (lambda note: note.parent.chmod(0o777), "others may put another in its place"),
        (lambda note: os.chown(note, NOBODY, NOBODY), "it is another user's"),
        (_link, "a link may lead to anybody's"),
        (lambda note: _write_url(note, "http://host/x"), "no such protocol is opened"),
        (lambda note: _write_url(note, "sftp://u:secret@host/x"), "nor one with a password"),
        (lambda note: note.write_text('{"url": "memory://bucket/own"}'), "it is of another directory"),
        (lambda note: note.write_text("[" * 100_000), "garbage"),
    ],
)
def test_a_note_that_others_may_have_written_is_not_believed(mirror: Path, spoil: Any, why: str) -> None:
    """It is this user's own file, in a directory of this user's own."""
    note = urls._note_of(mirror)
    assert note is not None
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    if "another user" in why and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    spoil(note)
    assert urls.url_at(mirror) is None, why


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot open sftp://me:pa@ss/w@host/x: no", "cannot open sftp://***@host/x: no"),
        ("GET https://a.blob/x?sv=1&sig=ab%2Fc&se=2 403", "GET https://a.blob/x?sv=***&sig=***&se=*** 403"),
        ("sftp://host:22/x is down", "sftp://host:22/x is down"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_messages_of_other_libraries_lose_their_secrets(text: str, shown: str) -> None:
    """They repeat URLs that they made themselves, signed ones among them."""
    assert urls.hide_secrets(text) == shown


# --- links, hard links, and files that others planted -----------------------------------------------------------------

OURS = ("j_results.jsonl", "j_errors.jsonl", ".j_unsaved.jsonl", ".j.lock", ".j_results.aside")


def work(directory: Path) -> None:
    """Write every kind of file, as far as that can be done."""
    with CheckpointedRunner("j", directory) as runner:
        with suppress(StoreError):
            runner.save_result(2, "value")
        with suppress(StoreError):
            runner.save_error(3, "failed")
        with suppress(StoreError, UnencodableValue):
            runner.save_result(4, object())
    for verb in ("compact", "check"):
        main([verb, "j", "--dir", str(directory), *(["--repair"] if verb == "check" else [])])


@pytest.mark.promise("symlinks, permissions")
@posix
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("kind", ["symbolic link", "hard link"])
def test_what_lies_elsewhere_is_never_written(tmp_path: Path, name: str, kind: str) -> None:
    """Journals and values kept aside too: neither appended to, nor cut where their last line is torn."""
    directory = sent(tmp_path / "sent")
    victim, text = tmp_path / "profile", "alias ls='ls -l'\n# a last line without newline"
    victim.write_text(text)
    (directory / name).unlink(missing_ok=True)
    if kind == "symbolic link":
        (directory / name).symlink_to(victim)
    else:
        (directory / name).hardlink_to(victim)
    work(directory)
    assert victim.read_text() == text


@pytest.mark.promise("symlinks, permissions")
@posix
@pytest.mark.parametrize(
    ("link", "number", "advice"),
    [
        ("symlink_to", errno.ELOOP, "put the file that it leads to in its place"),
        ("hardlink_to", errno.EMLINK, "cp FILE"),
    ],
)
def test_a_linked_journal_is_read_and_writing_says_what_to_do(
    tmp_path: Path, link: str, number: int, advice: str
) -> None:
    """The user may have made it himself: the results are there, and the error has the way out."""
    elsewhere = sent(tmp_path / "elsewhere") / "j_results.jsonl"
    (tmp_path / "here").mkdir()
    getattr(tmp_path / "here" / "j_results.jsonl", link)(elsewhere)
    with CheckpointedRunner("j", tmp_path / "here") as runner:
        assert runner.get_all_results() == {1: 1}
        with pytest.raises(StoreError, match=advice) as refused:
            runner.save_result(2, 2)
        assert refused.value.errno == number


@pytest.mark.promise("symlinks, permissions")
@as_root
@pytest.mark.parametrize("name", ["j_results.jsonl", "j_errors.jsonl", ".j.lock", ".j_results.aside"])
def test_in_a_directory_for_anybody_only_our_own_files_are_written(tmp_path: Path, name: str) -> None:
    """A file that another user put there is refused by its name, and holds nothing of ours."""
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o1777)
    planted = directory / name
    planted.touch()
    os.chown(planted, NOBODY, NOBODY)
    planted.chmod(0o666)
    if "aside" in name:
        (directory / "j_results.jsonl").write_bytes(b'{"torn')
    with CheckpointedRunner("j", directory) as runner, pytest.raises(StoreError, match="another user"):
        runner.save_result(1, "private")
    assert planted.read_bytes() == b""


@as_root
@pytest.mark.parametrize(
    ("mode", "owner", "why"),
    [(0o2775, NOBODY, "a team's directory"), (0o1777, 0, "the directory is its owner's"), (0o755, NOBODY, "by root")],
)
def test_files_of_others_are_written_where_that_is_meant(tmp_path: Path, mode: int, owner: int, why: str) -> None:
    """Only a sticky directory says that its files are each one's own."""
    directory = sent(tmp_path / "team")
    directory.chmod(mode)
    os.chown(directory / "j_results.jsonl", owner, -1)
    with CheckpointedRunner("j", directory) as runner:
        runner.save_result(2, 2)
        assert runner.get_result(2) == 2, why


@posix
def test_no_temporary_file_has_a_name_that_can_be_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two that are made for one file, each has another name, and neither was there before."""
    made: list[Path] = []

    def note(path: Path, flags: int, mode: int = 0o666) -> int:
        if path.name.endswith(".tmp"):
            assert flags & os.O_EXCL
            made.append(path)
        return open_file(path, flags, mode)

    open_file = files.open_file
    monkeypatch.setattr(files, "open_file", note)
    with CheckpointedRunner("j", tmp_path) as runner:
        for key in range(2):
            runner.save_result(key, key)
            runner.records.store.own.results.write_index()
            runner.records.store.writer.write_meta()
    assert len(set(made)) == len(made) >= 4


@pytest.mark.promise("symlinks, permissions")
@posix
@pytest.mark.parametrize(
    ("umask", "mode", "why"),
    [
        (0o022, 0o600, "who may only read the directory cannot hold it"),
        (0o002, 0o660, "a group that writes does"),
        (0o000, 0o666, "as does anybody, where the user says so"),
        (0o077, 0o600, "nobody else"),
    ],
)
def test_who_may_not_write_the_lock_cannot_open_it(tmp_path: Path, umask: int, mode: int, why: str) -> None:
    """Whoever can open a file, if only to read, can lock it."""
    before = os.umask(umask)
    try:
        lock = Lock(tmp_path / ".j.lock", "j")
        lock.acquire()
        lock.release()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / ".j.lock").stat().st_mode) == mode, why


@posix
def test_a_lock_of_an_earlier_release_is_closed_to_readers(tmp_path: Path) -> None:
    """It was made with the mode of all files."""
    (tmp_path / ".j.lock").touch(0o644)
    (tmp_path / ".j.lock").chmod(0o644)
    lock = Lock(tmp_path / ".j.lock", "j")
    lock.acquire()
    lock.release()
    assert stat.S_IMODE((tmp_path / ".j.lock").stat().st_mode) == 0o600


@posix
def test_the_default_report_is_not_written_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its name can be guessed, and the sender's directory may be the current one."""
    sent(tmp_path / "checkpoints")
    (tmp_path / "profile").write_text("precious")
    (tmp_path / "j_report.html").symlink_to(tmp_path / "profile")
    monkeypatch.chdir(tmp_path)
    assert main(["report", "j"]) == 1
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "profile").read_text() == "precious"


# --- what a terminal, a spreadsheet or a display would obey -----------------------------------------------------------


@pytest.fixture
def obeyed(tmp_path: Path) -> Path:
    """A checkpoint whose every text holds orders to a terminal."""
    trace = f'Traceback (most recent call last):\n  File "{ORDERS}.py", line 3, in {ORDERS}\n    {ORDERS}\n'
    directory = sent(
        tmp_path / "sent",
        line(key=ORDERS, result=ORDERS, session=ORDERS, code=ORDERS),
        f"damaged {ORDERS}\n".encode(),
        line(key=2, result={ORDERS: ORDERS}),
        errors=(line(key=f"e{ORDERS}", error=ORDERS, type=ORDERS, traceback=trace),),
    )
    (directory / ".j.lock").write_text(json.dumps({"pid": ORDERS, "host": ORDERS, "since": ORDERS}))
    (directory / "j_meta.json").write_text(json.dumps({"versions": {"": ORDERS}, "codes": {ORDERS: {ORDERS: ORDERS}}}))
    return directory


@pytest.mark.promise("untrusted checkpoints")
@pytest.mark.parametrize(
    "arguments", ["ls", "show j", "errors j --traceback", "errors j --type x", "check j", "report j"]
)
def test_no_command_tells_a_terminal_what_to_do(
    obeyed: Path, arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands in the files, nothing but lines of what can be seen is printed."""
    monkeypatch.chdir(obeyed.parent)
    verb, *rest = arguments.split()
    main([verb, *rest, *([str(obeyed)] if verb == "ls" else ["--dir", str(obeyed)])])
    printed = "".join(capsys.readouterr())
    assert not [raw for raw in RAW if raw in printed]


@pytest.mark.promise("untrusted checkpoints")
def test_errors_and_logs_of_ours_hold_no_orders(obeyed: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They repeat what files say: of an item that failed, of damage, and of who holds the lock."""

    @checkpointed("j", checkpoint_dir=obeyed, version=None)
    def function(item: str) -> None:
        raise ValueError(item)

    told: list[str] = []
    for use in (
        lambda: function.map([f"e{ORDERS}"], progress=False, retry_failed=False),
        lambda: CheckpointedRunner("j", obeyed).get_result("nothing"),
    ):
        try:
            use()
        except CheckpointError as error:
            told += [str(error), *getattr(error, "__notes__", [])]
            told += [str(member) for member in getattr(error, "exceptions", ()) if isinstance(member, CheckpointError)]
        except KeyError:
            pass
    told += [str(error) for error in function.errors.values()]
    told += [repr(function.errors), repr(function.results), str(function.errors)]
    told += [record.getMessage() for record in caplog.records]
    assert not [(raw, text) for text in told for raw in RAW if raw in text]
    function.runner.close()


def test_a_forged_lock_is_described_by_what_may_be_true(tmp_path: Path) -> None:
    """A pid is a number, and a host has no line breaks."""
    path = tmp_path / ".j.lock"
    path.write_text(json.dumps({"pid": ORDERS, "host": ORDERS, "since": [1]}))
    owner = Lock(path, "j").owner()
    assert owner.keys() == {"host"}
    error = CheckpointLocked(f"held on {ORDERS}")
    assert not [raw for raw in RAW[:-1] if raw in str(error)]


FORMULAS = ["=1+1", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", "＝1+1"]


@pytest.mark.parametrize("raw", [False, True], ids=["text", "raw"])
def test_a_spreadsheet_runs_no_text_and_numbers_stay_numbers(tmp_path: Path, raw: bool) -> None:
    """Text that would be a formula begins with an apostrophe, in keys, values, errors and headers."""
    directory = sent(
        tmp_path / "sent",
        *(line(key=formula, result={"=head": formula, "n": -5, "x": -1.5e300, "s": "-7.5"}) for formula in FORMULAS),
        errors=(line(key="e", error="=1+1", type="=T"),),
    )
    export("j", tmp_path / "o.csv", directory, errors=True, raw=raw)
    head, *rows = csv.reader(io.StringIO((tmp_path / "o.csv").read_bytes().decode(), newline=""))
    mark = "" if raw else "'"
    assert head[:5] == ["key", f"{mark}=head", "n", "x", "s"]
    assert [row[0] for row in rows] == [*(mark + formula for formula in FORMULAS), "e"]
    assert {tuple(row[2:5]) for row in rows[:-1]} == {("-5", "-1.5e300", "-7.5")}
    assert rows[-1][5:7] == [f"{mark}=1+1", f"{mark}=T"]


def test_a_carriage_return_makes_no_row(tmp_path: Path) -> None:
    """Readers take a lone one for the end of a row: what holds it is quoted."""
    directory = sent(tmp_path / "sent", line(key="a", result="x\rforged,row\ry"), line(key="b", result="z"))
    export("j", tmp_path / "o.csv", directory)
    data = (tmp_path / "o.csv").read_bytes()
    assert b'\na,"x\rforged,row\ry",' in data
    assert data.count(b"\n") == 3
    pandas = pytest.importorskip("pandas")
    assert list(pandas.read_csv(tmp_path / "o.csv")["result"]) == ["x\rforged,row\ry", "z"]


class Opened:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("opened",))


@pytest.mark.promise("untrusted checkpoints")
@pytest.mark.parametrize(
    "use",
    ["2 in u", "3 in u", "u == {}", "u == {2: 1}", "u != {2: 1}", "repr(u)", "str(u)", "len(u)", "list(u)", "bool(u)",
     "u.keys() == {2}", "repr(u.items())", "repr(u.values())", "f.plan([1, 2])", "f.clear(u)"],
)  # fmt: skip
def test_a_pickle_is_opened_by_its_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    """Whoever looks whether it is there, compares or shows it runs nothing."""
    monkeypatch.chdir(tmp_path)
    directory = sent(tmp_path / "sent", errors=(line(key=2, error="x"),))
    kept = base64.b64encode(pickle.dumps(Opened())).decode()
    (directory / ".j_unsaved.jsonl").write_bytes(line(key=2, pickle=kept, repr="kept"))
    f = checkpointed("j", checkpoint_dir=directory, version=None)(abs)
    u = f.unsaved
    eval(use, {"f": f, "u": u})
    assert not Path("opened").exists()
    if "clear" not in use:
        u.get(2)
        assert Path("opened").exists(), "this is how it is asked for"
    f.runner.close()


# --- modules that lie in the working directory ------------------------------------------------------------------------

SHADOWS = [
    "msgspec",
    "tqdm",
    "wrapt",
    "json",
    "csv",
    "logging",
    "argparse",
    "fsspec",
    "difflib",
    "shlex",
    "rich",
    "pickle",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "why"),
    [(["-m", "checkpoint"], "as anybody types it"), (["-mcheckpoint"], "in one word"),
     (["-X", "utf8", "-m", "checkpoint"], "behind options of Python's"), (["-P", "-m", "checkpoint"], "safe anyway")],
)  # fmt: skip
def test_running_the_module_imports_nothing_from_the_working_directory(
    tmp_path: Path, options: list[str], why: str
) -> None:
    """Modules of the standard library are not to be had there either."""
    sent(tmp_path / "checkpoints")
    for name in SHADOWS:
        (tmp_path / f"{name}.py").write_text("import os; os.mkdir('imported')\nraise ImportError('planted')\n")
    root = str(Path(files.__file__).parent.parent.parent)
    for arguments in (["ls"], ["export", "j", "o.csv"]):
        done = subprocess.run(
            [sys.executable, *options, *arguments],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not (tmp_path / "imported").exists(), why
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_another_modules_path_is_left_alone(tmp_path: Path) -> None:
    """A job that is run by -m, and imports the package, finds its neighbours."""
    (tmp_path / "job.py").write_text("import sys, checkpoint, neighbour\nprint(sys.path[0])\n")
    (tmp_path / "neighbour.py").touch()
    root = str(Path(files.__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "job"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()) == tmp_path


# --- a directory of very many -----------------------------------------------------------------------------------------


def test_listing_looks_at_the_directory_a_few_times_however_many_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look costs by the number of files: one for each checkpoint would cost by its square."""
    for number in range(50):
        (tmp_path / f"n{number}_results.jsonl").touch()
    (tmp_path / "n7@1-of-3_results.jsonl").write_bytes(line(key=1, result=1))
    os.utime(tmp_path, (1, 1))
    looks: list[Any] = []
    listdir = os.listdir

    def look(path: Any = ".") -> list[str]:
        looks.append(path)
        return listdir(path)

    monkeypatch.setattr(os, "listdir", look)
    found = list_checkpoints(tmp_path)
    assert (len(found), sum(held.shards for held in found)) == (50, 1)
    assert len(looks) < 5


# --- readers that end -------------------------------------------------------------------------------------------------

_HASH = (1 << 61) - 1


@pytest.mark.promise("giant or deep records")
@pytest.mark.parametrize("wrap", [lambda n: n, lambda n: {"$tuple": [n, 1]}, float], ids=["ints", "tuples", "floats"])
def test_keys_of_one_hash_are_damage_and_the_others_are_there(tmp_path: Path, wrap: Any) -> None:
    """A dict looks at all keys of one hash; honest keys, and one key in very many versions, are no crowd."""
    crowd = [line(key=wrap(n * _HASH + 7) if wrap is not float else 2.0**61 * n, result=n) for n in range(1, 60)]
    directory = sent(
        tmp_path / "sent",
        *crowd,
        *(line(key=n, result=n) for n in range(200, 260)),
        *(line(key=7, result=n, version=f"{n:016x}") for n in range(60)),
        line(key=1000, result=1),
    )
    with CheckpointedRunner("j", directory, version=None) as runner:
        found = runner.get_all_results()
        assert {n: n for n in range(200, 260)}.items() <= found.items()
        assert found[1000] == 1
    assert len(found) <= 60 + 1 + (60 if wrap is float else 20)


@pytest.mark.slow
@pytest.mark.promise("giant or deep records")
@pytest.mark.parametrize(
    ("content", "found", "why"),
    [
        (b"x" * (40 << 20) + b"\n", None, "no record begins so"),
        (b'{"key":2,"result":"' + b"x" * (70 << 20) + b'"}\n', None, "no checksum, and too long to be read whole"),
        (line(key=2, result="x" * (40 << 20)), "x" * (40 << 20), "a record of ours may be as long as it likes"),
        (b'{"key":2,"result":"' + b"x" * (40 << 20) + b'"}\n', "x" * (40 << 20), "so may one of schema 1.0.0"),
    ],
    ids=["garbage", "loose and giant", "sealed", "loose"],
)  # fmt: skip
def test_a_line_of_many_megabytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, found: Any, why: str
) -> None:
    """What can be no record is not read whole; what is one is found, with the lines before and behind it."""
    directory = sent(tmp_path / "sent", line(key=1, result=1), content, line(key=3, result=3))
    with CheckpointedRunner("j", directory) as runner:
        assert (runner.get_result(1), runner.get_result(3)) == (1, 3)
        if found is None:
            assert not runner.is_completed(2), why
        else:
            assert runner.get_result(2 if b"crc" in content[-40:] else "2") == found, why


@pytest.mark.slow
@posix
@pytest.mark.promise("giant or deep records")
@pytest.mark.parametrize("name", ["j_results.jsonl", "j_errors.jsonl", ".j_unsaved.jsonl", "j_meta.json", ".j.lock"])
def test_a_hole_of_a_terabyte_is_not_read(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It travels as nothing in an archive."""
    directory = sent(tmp_path / "sent")
    with open(directory / name, "ab") as file:
        try:
            file.truncate(1 << 40)
        except OSError:
            file.truncate(1 << 34)  # as large as this file system has them
        if not hasattr(os, "SEEK_DATA") or os.lseek(file.fileno(), 1 << 20, os.SEEK_HOLE) > 1 << 21:
            pytest.skip("there are no holes in files here")
    for verb in ("show", "check", "errors"):
        assert main([verb, "j", "--dir", str(directory)]) in (0, 3)
    capsys.readouterr()
