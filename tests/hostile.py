r"""A directory of somebody who means harm, looked at by every verb, with limits, in a process of its own.

Run as a script, it reads a directory a line from standard input, and answers each with a line of JSON: what broke the
law, by verb. A verb is forked, may take 5 s of processor time and 500 MB, and runs nothing and reaches nobody: an audit
hook ends it at the first subprocess, connection, unpickling, or change outside of the directory and that of its output.

    python tests/hostile.py --atheris [LIBFUZZER'S OPTIONS] [CORPUS]

lets coverage lead to what stands in the files, with the same limits and the same hook. An input is a whole directory:

    ~@ ~A … ~K    what follows stands in the place of that file of FILES, which is honest where none does
    ~!            the line so far gets its right checksum, whatever it says
    ~? and a byte the file is of that kind of KINDS
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

if "--atheris" in sys.argv:
    import atheris

    instrumented = atheris.instrument_imports(include=["checkpoint"])
else:
    instrumented = contextlib.nullcontext()
with instrumented:
    from checkpoint import CheckpointedRunner, CheckpointError, checkpointed
    from checkpoint.cli import main
    from checkpoint.storage import index_file as segments
    from checkpoint.storage.blocks import BlockSums
    from checkpoint.storage.reader import Reader
    from checkpoint.storage.record import seal
    from checkpoint.values.digests import Digests
    from checkpoint.values.limits import FIELDS as ENVELOPES

__all__ = ["FILES", "KINDS", "ORDERS", "SEEDS", "build", "put", "sealed"]

SECONDS, WAITING, MEMORY = 5, 60, 500 << 20
ORDERS = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\u2066\r\nforged line"
RAW = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\r", "\nforged")
VERBS = {
    "ls": ["ls", "DIR"],
    "show": ["show", "j", "--dir", "DIR"],
    "show --json": ["show", "j", "--json", "--dir", "DIR"],
    "errors": ["errors", "j", "--traceback", "--dir", "DIR"],
    "check": ["check", "j", "--dir", "DIR"],
    "report": ["report", "j", "--dir", "DIR", "--out", "o.html"],
    "export": ["export", "j", "o.csv", "--errors", "--dir", "DIR"],
    "plan": [],
}
FILES = (
    "j_results.jsonl", "j_errors.jsonl", ".j_unsaved.jsonl", "j_meta.json", ".j_results.index", ".j_errors.index",
    ".j.lock", ".j_results.aside", ".j.remote", ".mirror.json", "j@0-of-2_results.jsonl", "j@1-of-2_meta.json",
)  # fmt: skip


def sealed(**fields: Any) -> bytes:
    """A line with a right checksum."""
    fields.setdefault("timestamp", "2026-01-01T00:00:00Z")
    return seal(json.dumps(fields, separators=(",", ":")).encode()[:-1])


class Bomb:
    """What tells that it was unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("true",))


def build(directory: Path) -> None:
    """An honest checkpoint with every kind of file."""
    with CheckpointedRunner("j", directory, version="v") as runner:
        for key in range(40):
            runner.save_result(key, {"text": f"value of {key}", "n": key})
        for bad in ("bad", "worse"):
            runner.save_error(bad, ValueError(f"{bad} failed"))
        for shelf in (runner.records.store.own.results, runner.records.store.own.errors):
            shelf.write_index()
    kept = base64.b64encode(pickle.dumps(Bomb())).decode()
    (directory / ".j_unsaved.jsonl").write_bytes(sealed(key="odd", pickle=kept, repr="odd"))
    (directory / "j@0-of-2_results.jsonl").write_bytes(sealed(key="shard", result=1))


# --- what may stand in the place of a file ----------------------------------------------------------------------------


def _write(content: Callable[[random.Random, bytes], bytes]) -> Callable[[Path, random.Random, Path], None]:
    def put(path: Path, chance: random.Random, victim: Path) -> None:
        before = path.read_bytes() if path.is_file() else b""
        path.unlink(missing_ok=True)
        path.write_bytes(content(chance, before))

    return put


def _instead(make: Callable[[Path, Path], Any]) -> Callable[[Path, random.Random, Path], None]:
    def put(path: Path, chance: random.Random, victim: Path) -> None:
        path.unlink(missing_ok=True)
        make(path, victim)

    return put


def _sparse(head: bytes, tail: bytes = b"") -> Callable[[Path, Path], None]:
    def make(path: Path, victim: Path) -> None:
        with open(path, "wb") as file:
            file.write(head)
            file.truncate(1 << 36)
            if tail:
                file.seek(0, os.SEEK_END)
                file.write(tail)

    return make


def _socket(path: Path, victim: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        before = Path.cwd()
        os.chdir(path.parent)  # an address has at most some hundred bytes
        made.bind(path.name)
        os.chdir(before)


def _flipped(chance: random.Random, before: bytes) -> bytes:
    data = bytearray(before or b"{}")
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def _lying_index(offset: Callable[[int], int]) -> Callable[[Path, random.Random, Path], None]:
    """One whose checksums hold, and which leads anywhere."""

    def put(path: Path, chance: random.Random, victim: Path) -> None:
        journal = path.with_name("j_results.jsonl")
        reader = Reader.open(journal)
        if reader is None:
            return
        keys: list[Any] = list(range(40))
        places = array("q", [offset(key) for key in keys])
        news = segments.Delta(keys, places, Digests.none(40), [], {}, [])
        damage = [(offset(key), ORDERS) for key in keys]
        name = path.with_name(".j_results.index")
        at = [offset(key) for key in keys]
        sums = BlockSums()
        sums.add(reader.pread(reader.size(), 0))
        segments.IndexFile.write(
            name, reader, None, {"": news, "v": news}, reader.size(), ORDERS, damage, at, {"v": [ORDERS]}, sums.state()
        )

    return put


_HASH = (1 << 61) - 1
_DEEP = 50_000
_META: list[Any] = [
    {"versions": {"a": [[[]]], "": {"$x": 1}}, "codes": {"a": 1, "b": {"parts": 3}}, "total_items": 10**30},
    {"versions": {ORDERS: ORDERS}, "codes": {ORDERS: {"versions": [ORDERS], "parts": {ORDERS: ORDERS}}}},
    {"codes": {"x": {"versions": [""], "parts": ORDERS, "values": [1], "names": {"a": 1}}}, "last_pass": {}},
    {"pid": ORDERS, "host": ORDERS, "since": ORDERS, "url": "http://127.0.0.1:9/x"},
    {"pid": [1], "host": {"a": 1}, "since": 5, "url": "reference://::file:///etc"},
    {"url": "sftp://user:secret@127.0.0.1:9/x", "journals": {"results": {"end": -5, "owed": [[-9, 1 << 62]]}}},
    {"journals": {"results": {"end": 1 << 62}}, "tokens": [ORDERS] * 9, "whole": -1, "sent": 1e308},
    [], 1, "x", None,
]  # fmt: skip
KINDS: dict[str, Callable[[Path, random.Random, Path], None]] = {
    "empty": _write(lambda chance, before: b""),
    "NULs": _write(lambda chance, before: bytes(1 << 17)),
    "noise": _write(lambda chance, before: chance.randbytes(1 << 15)),
    "cut": _write(lambda chance, before: before[: chance.randrange(len(before) + 1)]),
    "flipped": _write(_flipped),
    "twice": _write(lambda chance, before: before + before),
    "newlines": _write(lambda chance, before: b"\n" * 200_000),
    "small objects": _write(lambda chance, before: b"{}\n" * 20_000),
    "brackets": _write(lambda chance, before: b"[" * 100_000),
    "deep keys": _write(lambda chance, before: seal(b'{"key":' + b'{"$tuple":[' * _DEEP + b"]}" * _DEEP)),
    "deep values": _write(lambda chance, before: seal(b'{"key":1,"result":' + b"[" * _DEEP + b"]" * _DEEP)),
    "a key of digits": _write(lambda chance, before: seal(b'{"key":' + b"9" * 2_000_000 + b',"result":1')),
    "an exponent": _write(lambda chance, before: seal(b'{"key":1e' + b"9" * 100_000 + b',"result":1')),
    "keys of one hash": _write(
        lambda chance, before: b"".join([sealed(key=n * _HASH + 7, result=1) for n in range(1, 20_000)])
    ),
    "tuples of one hash": _write(
        lambda chance, before: b"".join([sealed(key={"$tuple": [n * _HASH + 7, 1]}, result=1) for n in range(1, 9_000)])
    ),
    "damaged keys of one hash": _write(
        lambda chance, before: b"".join(
            [sealed(key=n * _HASH + 7, result=1).replace(b"2026", b"2027") for n in range(1, 20_000)]
        )
    ),
    "one key": _write(lambda chance, before: b'{"key":"k","result":1}\n' * 20_000),
    "versions": _write(
        lambda chance, before: b"".join([sealed(key=n, result=1, version=f"{n:016x}") for n in range(3_000)])
    ),
    "codes": _write(
        lambda chance, before: b"".join([sealed(key=n, result=1, code=f"1-{n:012x}") for n in range(9_000)])
    ),
    "sessions": _write(
        lambda chance, before: b"".join([sealed(key=n, result=1, session=f"{n:08x}") for n in range(9_000)])
    ),
    "orders": _write(
        lambda chance, before: sealed(key=ORDERS, result={ORDERS: ORDERS}, version=ORDERS, code=ORDERS, session=ORDERS)
        + sealed(key=f"e{ORDERS}", error=ORDERS, type=ORDERS, traceback=ORDERS, timestamp=ORDERS)
        + f"damaged {ORDERS}\n".encode()
    ),
    "numbers": _write(
        lambda chance, before: b"".join(
            [
                seal(b'{"key":1,"result":1,"timestamp":"%b","elapsed":%b,"attempts":%b' % parts)
                for parts in ((b"9999-12-31T23:59:59-23:59", b"1e999", b"9" * 40), (b"9" * 100_000, b"-1e308", b"-5"))
            ]
        )
    ),
    "long texts": _write(
        lambda chance, before: sealed(key=9, error="x" * 3_000_000, type="T" * 999_999, traceback='  File "' * 300_000)
    ),
    "a long line": _write(lambda chance, before: b"x" * (40 << 20)),
    "a long record": _write(lambda chance, before: seal(b'{"key":1,"result":"' + b"x" * (40 << 20) + b'"')),
    "meta": _write(lambda chance, before: json.dumps(chance.choice(_META)).encode()),
    "an infinite number": _write(lambda chance, before: b'{"total_items": Infinity, "versions": {"x": NaN}}'),
    "a large meta": _write(lambda chance, before: b'{"versions": [' + b"[]," * 8_000_000 + b"1]}"),
    "a hole": _instead(_sparse(b"")),
    "a hole in a record": _instead(_sparse(b'{"key":1,"result":"')),
    "a hole with an end": _instead(_sparse(b"", b'\n{"key":1,"result":1}\n')),
    "a pipe": _instead(lambda path, victim: os.mkfifo(path)),
    "a socket": _instead(_socket),
    "a directory": _instead(lambda path, victim: path.mkdir()),
    "a link to a file": _instead(lambda path, victim: path.symlink_to(victim)),
    "a link to a device": _instead(lambda path, victim: path.symlink_to("/dev/zero")),
    "a link to nothing": _instead(lambda path, victim: path.symlink_to(victim.with_name("made"))),
    "a link to itself": _instead(lambda path, victim: path.symlink_to(path)),
    "a link to a directory": _instead(lambda path, victim: path.symlink_to("/")),
    "a hard link": _instead(lambda path, victim: path.hardlink_to(victim)),
    "an index below 0": _lying_index(lambda key: -key - 1),
    "an index beyond": _lying_index(lambda key: (1 << 62) + key),
    "an index within lines": _lying_index(lambda key: 7 + 3 * key),
}  # fmt: skip


# --- the process that looks -------------------------------------------------------------------------------------------

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = (
    "subprocess.", "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.startfile", "pty.", "pickle.",
    "socket.", "urllib.", "http.", "ftplib.", "smtplib.", "ctypes.dlopen", "webbrowser.",
)  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
            "os.chown", "os.utime", "shutil.")  # fmt: skip


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    os.write(2, f"refused: {event} {arguments!r}\n".encode("ascii", "backslashreplace"))
    os._exit(71)


def guard(roots: tuple[str, ...]) -> None:
    """End this process at what only looking does not do."""

    def outside(path: Any, *, follows: bool = True) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        text = os.fsdecode(path)
        real = os.path.realpath(text) if follows else os.path.join(os.path.realpath(os.path.dirname(text)), "x")
        return not real.startswith((*roots, "/dev/null"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if flags & _WRITES and outside(path, follows=not flags & os.O_NOFOLLOW):
                _refuse(event, arguments)
        elif event.startswith(_CHANGES):
            if any(outside(part, follows=False) for part in arguments):
                _refuse(event, arguments)
        elif event.startswith(_REFUSED) and event != "socket.gethostname":  # which asks this machine alone
            _refuse(event, arguments)

    sys.addaudithook(hook)


def _plan(directory: str) -> None:
    @checkpointed("j", checkpoint_dir=directory, version="v")
    def function(item: int) -> int:
        return item

    try:
        print(ascii(str(function.plan([1, 2, 99]))))
        print(ascii(repr(function.results)), ascii(repr(function.errors)), len(function.unsaved))
    except (CheckpointError, OSError) as error:
        print(f"checkpoint: {error}", file=sys.stderr)


def _look(verb: str, directory: str, output: str) -> int:
    os.chdir(output)
    if verb == "plan":
        _plan(directory)
        return 0
    return main([directory if part == "DIR" else part for part in VERBS[verb]])


def _run(verb: str, directory: str, output: str) -> str:
    """What broke the law; "" for nothing."""
    told = os.path.join(output, "told")
    pid = os.fork()
    if not pid:
        status = 70
        try:
            fd = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.alarm(WAITING)
            guard((directory + os.sep, output + os.sep))
            status = _look(verb, directory, output)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    _, waited = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(waited)
    text = Path(told).read_bytes().decode("utf-8", "replace")
    if raw := [raw for raw in RAW if raw in text]:
        return f"it told a terminal {raw!a}: {text[-300:]!a}"
    if code in (0, 1, 3):
        return ""
    means = {-signal.SIGKILL: f"over {SECONDS} s", -signal.SIGXCPU: f"over {SECONDS} s", -signal.SIGALRM: "it waited"}
    return f"exit status {code} ({means.get(code, 'a fault, or something refused')}): {text[-600:]!a}"


def _import_what_values_need() -> None:
    """It is the user's own, and trusted; but its import does what only looking does not do."""
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # each thread takes memory
    for library in ("numpy", "pandas", "pydantic.networks"):
        importlib.import_module(library)


def serve() -> None:
    """Answer until standard input ends."""
    _import_what_values_need()
    for line in sys.stdin:
        directory, output = json.loads(line)
        os.makedirs(output, exist_ok=True)
        wrong = {verb: told for verb in VERBS if (told := _run(verb, directory, output))}
        print(json.dumps(wrong), flush=True)


# --- guided by coverage -----------------------------------------------------------------------------------------------

# Links that lead outside are left to the other tests: the hook would refuse to make them.
_SMALL = tuple(
    kind for kind in KINDS if not re.search("hash|long|large|index|versions|codes|sessions|one key|a link to a d", kind)
)
SEEDS = (
    b'~@{"key":1,"result":{"$fraction":["1e9"]}~!\n{"key":{"$tuple":[1,2]},"result":{"$set":[{"$range":[0,9,1]}]}~!\n',
    b'~@{"key":"a","result":{"$ndarray":"AA==","dtype":"V9","shape":[0]}~!\n{"key":0,"result":1,"forgotten":true~!\n',
    b'~@{"key":"a","result":{"$class":"C","a":{"$npscalar":1,"dtype":"U9"}},"version":"v","code":"1-a-b"~!\n',
    b'~A{"key":"bad","error":"x","type":"T","traceback":"File","attempts":1,"elapsed":1.5,"session":"a"~!\n',
    b'~B{"key":"odd","pickle":"gASVAA==","repr":"x","from":"T"~!\n~@{"key":"odd","result":1}\n',
    b'~C{"versions":{"v":{"value":1}},"codes":{"1-a":{"versions":["v"],"parts":{}}},"total_items":9,"last_pass":{}}',
    b'~I{"url":"reference://x::file:///etc"}~H{"journals":{"results":{"end":9,"owed":[[0,9]]}},"tokens":["a"]}',
    b'~F{"pid":1,"host":"h","since":"2026-01-01T00:00:00Z"}~J{"key":1,"result":1~!\n~K{"versions":[]}',
    b"~?\x01~@~Dw~E~?\x11",
)


def put(data: bytes, directory: Path, victim: Path) -> None:
    """Make the files that an input stands for, in a directory that is honest."""
    for part in re.split(rb"~(?=[@-K])", data)[1:]:
        path, content = directory / FILES[part[0] - ord("@")], part[1:]
        if content[:2] == b"~?" and len(content) > 2:
            with contextlib.suppress(OSError):  # what stands there may be a directory by now
                KINDS[_SMALL[content[2] % len(_SMALL)]](path, random.Random(len(data)), victim)
        elif not path.is_dir():
            path.unlink(missing_ok=True)
            path.write_bytes(re.sub(rb"([^\n]*?)~!\n?", lambda line: seal(line[1]), content))


def fuzz() -> None:
    """The command, guided by coverage: it runs until something breaks the law, or the time is over."""
    _import_what_values_need()
    root = Path(tempfile.mkdtemp(prefix="checkpoint-hostile-"))
    honest, victim, told = root / "honest", root / "victim", root / "told"
    honest.mkdir()
    build(honest)
    victim.write_text("precious")
    seeds = root / "seeds"
    seeds.mkdir()
    for seed in SEEDS:
        (seeds / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    screen = os.open(told, os.O_RDWR | os.O_CREAT)
    os.dup2(screen, 1)
    sys.stderr = sys.stdout  # libFuzzer's own words go to the descriptor
    guard((str(root) + os.sep,))

    def look(data: bytes) -> None:
        directory, output = root / "c", root / "output"
        shutil.copytree(honest, directory)
        output.mkdir()
        try:
            put(data, directory, victim)
            for verb in VERBS:
                os.ftruncate(screen, 0)
                began = time.process_time()
                status = _look(verb, str(directory), str(output))
                sys.stdout.flush()
                if time.process_time() - began > SECONDS:
                    raise AssertionError(f"{verb} takes more than {SECONDS} s")
                said = told.read_bytes().decode("utf-8", "replace")
                if status not in (0, 1, 3) or any(raw in said for raw in RAW):
                    raise AssertionError(f"{verb} ends with {status}, and says {said[-600:]!a}")
            if victim.read_text() != "precious":
                raise AssertionError("a file elsewhere was written")
        finally:
            shutil.rmtree(directory)
            shutil.rmtree(output)

    words = root / "words"
    words.write_text("\n".join(f'"{name}"' for fields in ENVELOPES.values() for name in fields))
    options = [f"-timeout={SECONDS * len(VERBS)}", "-rss_limit_mb=1000", f"-malloc_limit_mb={MEMORY >> 20}"]
    options += ["-max_len=4096", "-len_control=0", f"-dict={words}", f"-artifact_prefix={Path.cwd()}{os.sep}"]
    given = [option for option in sys.argv if option != "--atheris"]
    atheris.Setup([given[0], *options, *given[1:], str(seeds)], look)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    fuzz() if "--atheris" in sys.argv else serve()
