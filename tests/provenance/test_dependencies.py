"""Laws of `depends=` and `ignore=`, and of reruns that change nothing: other processes, hosts, directories, clocks."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from checkpoint import FunctionChanged, InvalidOption, checkpointed
from checkpoint.provenance.fingerprint import Fingerprint, changes, fingerprint

SOURCE = Path(checkpoint.__file__).parent.parent


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each test has a directory of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ask(n: int) -> int:
    """A function that reads nothing."""
    return n


def read(depends: Any = (), ignore: Any = (), function: Any = ask) -> Fingerprint:
    """The fingerprint with these options."""
    found = fingerprint(function, depends=depends, ignore=ignore)
    assert found is not None
    return found


# --- depends= --------------------------------------------------------------------------------------------------------


def schema(default: int, doc: str) -> type:
    """A dataclass with a default and a docstring."""
    cls = dataclasses.make_dataclass("Invoice", [("total", int, dataclasses.field(default=default))])
    cls.__module__, cls.__doc__ = __name__, doc
    return cls


DEPENDS = [
    ("a b", "a c", "depends[0]", "a text"),
    ({"a": 1}, {"a": 2}, "depends[a]", "a dict, by its keys"),
    ([1, {"x": 1}], [1, {"x": 2}], "depends[1]", "one of several"),
    ([{1, 2}], [{1, 3}], "depends[0]", "a set"),
    ([string.Template("$a")], [string.Template("$b")], "depends[0]", "a template"),
    (schema(1, "d"), schema(2, "d"), "depends[Invoice]", "a class, by its defaults"),
    (schema(1, "d"), schema(1, "e"), "depends[Invoice]", "a class, by its docstring"),
]


@pytest.mark.parametrize(("old", "new", "name", "reason"), DEPENDS, ids=[reason for *_, reason in DEPENDS])
def test_what_results_depend_on_counts_as_a_value(old: Any, new: Any, name: str, reason: str) -> None:
    """Under a name that says what it is."""
    first, second = read(old), read(new)
    assert first.digest == read(old).digest
    assert name in first.values
    assert changes(first.digest, first.detail(), second).names == [name]


def test_files_count_by_their_content(directory: Path) -> None:
    """A file, and all files of a directory; wherever they lie."""
    Path("prompts").mkdir()
    Path("prompts/a.txt").write_text("one")
    for path in (Path("prompts/a.txt"), Path("prompts"), directory / "prompts" / "a.txt"):
        Path("prompts/a.txt").write_text("one")
        first = read([path])
        Path("prompts/a.txt").write_text("two")
        found = changes(first.digest, first.detail(), read([path]))
        assert found.names == [f"depends[{path.name if path.is_absolute() else path.as_posix()}]"]


def test_functions_count_as_those_that_are_called() -> None:
    """Their code is code, and the values that they read are values."""

    def make(model: str) -> Any:
        def build(n: int) -> str:
            return model

        return build

    first, second = read([make("a")]), read([make("b")])
    assert changes(first.digest, first.detail(), second).values == ["model: 'a' → 'b'"]
    assert any("build()" in name for name in first.parts)


REFUSED = [
    ([Path("missing.txt")], "which cannot be read", "a file that is not there"),
    (["prompt.txt"], r"write pathlib.Path\('prompt.txt'\)", "the name of a file that is there, as a text"),
    ([object()], "which cannot be compared", "an object"),
    ({"client": object()}, "client", "an object, by its name"),
]


@pytest.mark.parametrize(("depends", "match", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_cannot_be_compared_is_refused_before_anything_is_paid(depends: Any, match: str, reason: str) -> None:
    """With the fix."""
    Path("prompt.txt").write_text("Be brief.")
    calls: list[int] = []
    with pytest.raises(InvalidOption, match=match):
        checkpointed("n", depends=depends)(lambda n: calls.append(n)).map([1], progress=False)
    assert calls == []


def test_a_changed_file_is_refused_and_a_dependency_that_is_added_is_not() -> None:
    """Nobody knows which content the old results are of."""
    Path("prompt.txt").write_text("one")
    assert checkpointed("n")(ask).map([1], progress=False) == [1]
    mapped = checkpointed("n", depends=[Path("prompt.txt")])(ask)
    assert mapped.map([1, 2], progress=False) == [1, 2]
    Path("prompt.txt").write_text("two, and longer")
    with pytest.raises(FunctionChanged, match=r"depends\[prompt.txt\]: a file of 3 bytes") as caught:
        mapped.map([1, 2, 3], progress=False)
    assert "ignore=" not in str(caught.value)


# --- ignore= ---------------------------------------------------------------------------------------------------------


def make(model: str, workers: int, **options: Any) -> Any:
    """A function of two values."""
    cfg = {"model": model, "workers": workers}
    return checkpointed("n", **options)(lambda n: (n, cfg["model"], cfg["workers"]))


IGNORED = [('cfg["workers"]',), ("cfg",)]


@pytest.mark.parametrize("ignore", IGNORED)
def test_names_as_messages_give_them_are_left_out(ignore: tuple[str, ...]) -> None:
    """The message shows them; with them, the old results count, and later changes of it are none."""
    make("a", 1).map([1], progress=False)
    with pytest.raises(FunctionChanged) as caught:
        make("a", 2).map([1], progress=False)
    assert """ignore='cfg["workers"]'""" in str(caught.value)
    assert make("a", 2, ignore=ignore).map([1], progress=False) == [(1, "a", 1)]
    assert make("a", 3, ignore=ignore).map([1, 2], progress=False) == [(1, "a", 1), (2, "a", 3)]


def test_a_name_that_no_value_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once, with those that there are."""
    for _ in range(2):
        make("a", 1, ignore="T0").map([1], progress=False)
    assert caplog.text.count("ignore= names 'T0'") == 1
    assert 'cfg["model"]' in caplog.text


@pytest.mark.parametrize("ignore", [5, [1], ("",), {"a": 1}])
def test_ignore_takes_names(ignore: Any) -> None:
    """Anything else is refused at decoration."""
    with pytest.raises(InvalidOption, match="ignore is"):
        checkpointed("n", ignore=ignore)


def test_a_field_with_a_default_that_a_class_comes_to_have_is_told_and_not_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the way out that is offered where results do not fit a class; another default is another value."""

    def labels(**fields: Any) -> Any:
        cls = dataclasses.make_dataclass("Label", [("n", int), *((name, str, value) for name, value in fields.items())])
        cls.__module__ = __name__
        return checkpointed("n")(lambda n: cls(n).n)

    labels(topic="a").map([1], progress=False)
    assert labels(topic="a", reason="").map([1], progress=False) == [1]
    assert "reason is new" in caplog.text
    assert labels().map([1], progress=False) == [1]
    assert "topic is gone" in caplog.text
    with pytest.raises(FunctionChanged, match="topic: 'a' → 'b'"):
        labels(topic="b").map([1], progress=False)


def test_what_cannot_be_compared_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, with the way to name what matters."""
    httpx = pytest.importorskip("httpx")
    client = httpx.Client()
    caplog.set_level(logging.INFO, "checkpoint")
    for _ in range(2):
        checkpointed("n")(lambda n: (client.base_url, n)[1]).map([1], progress=False)
    assert caplog.text.count("which cannot be compared") == 1
    assert "client" in caplog.text
    assert "depends=" in caplog.text


# --- files that the code reads ---------------------------------------------------------------------------------------

LOADER = """
def load(name):
    with open(name) as file:
        return file.read()
def f(n):
    return load("prompt.txt")
"""
FILES = [
    ("def f(n):\n    return open('prompt.txt').read()\n", "open"),
    ("from pathlib import Path\ndef f(n):\n    return Path('prompt.txt').read_text()\n", "a path"),
    ("from pathlib import Path\nP = Path('prompt.txt')\ndef f(n):\n    return P.read_text()\n", "a path in a variable"),
    (LOADER, "a loader"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "reason"), FILES, ids=[reason for _, reason in FILES])
def test_a_file_that_the_code_names_and_reads_is_told_when_it_differs(
    source: str, reason: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is never refused, since a function may also write it."""
    monkeypatch.syspath_prepend(directory)
    module = f"files_{reason.replace(' ', '_')}"
    (directory / f"{module}.py").write_text(source)
    Path("prompt.txt").write_text("one")
    function = __import__(module).f
    first = read(function=function)
    Path("prompt.txt").write_text("four")
    found = changes(first.digest, first.detail(), read(function=function))
    assert found == ([], ["the file prompt.txt: a file of 3 bytes → a file of 4 bytes"], [])


def test_files_that_the_code_writes_are_none_of_these(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log grows with each call."""
    monkeypatch.syspath_prepend(directory)
    (directory / "logs.py").write_text("def f(n):\n    with open('calls.log', 'a') as file:\n        file.write('x')\n")
    Path("calls.log").write_text("")
    function = __import__("logs").f
    first = read(function=function)
    function(1)
    assert read(function=function).digest == first.digest


# --- harmless reruns -------------------------------------------------------------------------------------------------

JOB = """
import datetime, enum, json, logging, os, pathlib, random, socket, sys, tempfile, threading, time, uuid
from dataclasses import asdict, dataclass, field
from checkpoint import checkpointed
from checkpoint.provenance.fingerprint import fingerprint

T0 = time.time()
STARTED = datetime.datetime.now().astimezone()
TODAY = f"{STARTED:%H:%M:%S.%f}"
RUN = uuid.uuid4().hex
LABEL = f"{socket.gethostname()}-{os.getpid()}-{RUN}"
HERE = pathlib.Path(__file__).resolve().parent
CWD = os.getcwd()
SCRATCH = tempfile.mkdtemp()
HOME = os.path.expanduser("~")
TAGS = {"red", "green", "blue", "yellow", "a longer one"}
ORDER = {name: len(name) for name in TAGS}
STATS = {"calls": 0, "model": "small"}
POOL = list(range(20))
CLIENT = None

class Mode(enum.Enum):
    FAST = "fast"
    SLOW = frozenset({"x", "y", "z"})

@dataclass
class Config:
    model: str = "small"
    started: float = field(default_factory=time.time)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

CFG = Config()

class Client:
    def __init__(self):
        self.made, self.model, self.lock = time.time(), "small", threading.Lock()
    def ask(self, n):
        with self.lock:
            return self.model, n, self.made

def client():
    global CLIENT
    if CLIENT is None:
        CLIENT = Client()
    return CLIENT

def ask(n):
    random.shuffle(POOL)
    STATS["calls"] += 1
    logging.getLogger("job").debug("%s %s %s", LABEL, TODAY, time.time() - T0)
    client().ask(n)
    names = [HERE / "x", CWD, SCRATCH, HOME, os.environ.get("HOME"), os.environ.get("TZ"), os.getenv("LC_ALL")]
    return len(names) and [STATS["model"], Mode.FAST.value, sorted(TAGS), ORDER, asdict(CFG)["model"], n]

if __name__ == "__main__":
    mapped = checkpointed("job", checkpoint_dir=sys.argv[1])(ask)
    results = mapped.map(range(4), progress=False, **json.loads(sys.argv[2]))
    found = fingerprint(ask)
    print(json.dumps([found.digest, sorted(found.values), len(results)]))
"""

RERUNS: list[tuple[dict[str, str], str, dict[str, Any], str]] = [
    ({}, ".", {}, "nothing but another process"),
    ({"PYTHONHASHSEED": "1"}, ".", {}, "another hash seed"),
    ({"PYTHONHASHSEED": "4242"}, ".", {}, "yet another hash seed"),
    ({"TZ": "Asia/Tokyo"}, ".", {}, "another time zone"),
    ({"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, ".", {}, "another locale"),
    ({"HOME": "/nowhere", "USER": "other", "HOSTNAME": "other"}, ".", {}, "another user"),
    ({"PYTHONOPTIMIZE": "1"}, ".", {}, "without assertions"),
    ({"TMPDIR": "elsewhere"}, "elsewhere", {}, "a copy in another directory"),
    ({}, ".", {"workers": 2}, "threads"),
    ({}, ".", {"executor": "processes", "workers": 2}, "worker processes"),
]


@pytest.mark.slow
def test_reruns_that_change_nothing_have_one_fingerprint_and_are_not_refused(directory: Path) -> None:
    """Other processes, directories, hash seeds, time zones and locales, with clocks and ids of each process's own."""
    (directory / "elsewhere").mkdir()
    told = {}
    for variables, place, options, reason in RERUNS:
        job = directory / place / "job.py"
        job.write_text(JOB)
        done = subprocess.run(
            [sys.executable, str(job), str(directory / "checkpoints"), json.dumps(options)],
            cwd=job.parent, env=os.environ | {"PYTHONPATH": str(SOURCE)} | variables, text=True, timeout=60,
            capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, (reason, done.stderr)
        assert "changed" not in done.stderr, (reason, done.stderr)
        told[reason] = json.loads(done.stdout)
    assert all(one == told["nothing but another process"] for one in told.values()), told
    digest, values, count = told["nothing but another process"]
    assert digest.startswith("2-")
    assert {"TAGS", "ORDER", "CFG.model", 'STATS["model"]', "Mode.FAST.value"} <= set(values)
    assert count == 4
