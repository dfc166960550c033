"""The law of a stranger's directory: looking at it runs nothing, reaches nobody, writes nowhere else, and ends.

`hostile` has what may stand in the place of each file, and the process that looks. Pairs of file and kind are drawn: by
default each file twice; CHECKPOINT_TEST_HOSTILE=wide, as in CI, takes each kind and each file, within a minute.
The seed is printed; CHECKPOINT_TEST_SEED=… draws the same again.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from importlib.util import find_spec
from ipaddress import IPv4Address
from itertools import count, product
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy
import pandas  # type: ignore[import-untyped,unused-ignore]
import pydantic
import pydantic_core
import pytest
from conftest import seed_of_tests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import checkpoint

if not sys.platform.startswith("linux"):
    pytest.skip("it takes /proc, setrlimit and holes in files", allow_module_level=True)

import hostile
from hostile import FILES, KINDS, build, sealed

from checkpoint.storage.record import seal
from checkpoint.values import limits
from checkpoint.values.codec import Codec

pytestmark = pytest.mark.slow

SEED = seed_of_tests()
WIDE = os.environ.get("CHECKPOINT_TEST_HOSTILE") == "wide"
_OF_INDEX = {kind for kind in KINDS if kind.startswith("an index")}
Look = Callable[[Path], dict[str, str]]


def pairs() -> list[tuple[str, str]]:
    """(kind, file) drawn by the seed."""
    chance = random.Random(SEED)
    others = [kind for kind in KINDS if kind not in _OF_INDEX]
    drawn = [(chance.choice(others), file) for file in (*FILES, *(() if WIDE else FILES))]
    kinds = list(KINDS) if WIDE else [chance.choice(sorted(_OF_INDEX))]
    return drawn + [(kind, ".j_results.index" if kind in _OF_INDEX else chance.choice(FILES[:4])) for kind in kinds]


@pytest.fixture(scope="module")
def look(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Look]:
    """Looks at a directory by every verb; returns what broke the law."""
    root = str(Path(checkpoint.__file__).parent.parent)
    output, number = tmp_path_factory.mktemp("output"), count()
    process = subprocess.Popen(
        [sys.executable, hostile.__file__],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": root, "CHECKPOINT_DIR": str(output / "none")},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(directory: Path) -> dict[str, str]:
        stdin.write(json.dumps([str(directory), str(output / str(next(number)))]) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())  # type: ignore[no-any-return]

    yield ask
    stdin.close()
    stdout.close()
    process.wait()


@pytest.mark.promise("untrusted checkpoints")
def test_whatever_stands_in_the_place_of_a_file(tmp_path: Path, look: Look) -> None:
    """Each verb ends within 5 s and 500 MB, with an exit status of its own; a file outside is as it was."""
    print(f"CHECKPOINT_TEST_SEED={SEED}")
    victim = tmp_path / "victim"
    victim.write_text("a file of this user's, without newline")
    wrong = {}
    for number, (kind, file) in enumerate(pairs()):
        directory = tmp_path / str(number)
        build(directory)
        KINDS[kind](directory / file, random.Random(f"{SEED} {number}"), victim)
        if found := look(directory):
            wrong[kind, file] = found
        assert victim.read_text() == "a file of this user's, without newline", (kind, file)
        assert not victim.with_name("made").exists(), (kind, file)
    assert not wrong, "\n".join(f"{kind} as {file}: {found}" for (kind, file), found in wrong.items())


@pytest.mark.promise("untrusted checkpoints")
def test_everything_is_hostile_at_once(tmp_path: Path, look: Look) -> None:
    """A kind drawn for each file."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    chance = random.Random(SEED)
    for number in range(10 if WIDE else 3):
        directory = tmp_path / str(number)
        build(directory)
        for file in FILES:
            kind = chance.choice([kind for kind in KINDS if kind not in _OF_INDEX and "one hash" not in kind])
            KINDS[kind](directory / file, chance, victim)
        assert look(directory) == {}, f"CHECKPOINT_TEST_SEED={SEED}"
    assert victim.read_text() == "precious"


HONEST: tuple[Any, ...] = (
    (1,), {1}, frozenset({1}), deque([1]), {"$a": 1}, {1: 1}, OrderedDict(a=1), Counter("a"), defaultdict(list, a=[1]),
    "\ud800", b"a", bytearray(b"a"), 1 << 20_000, math.inf, 1j, range(3), slice(3), Fraction(1, 3), Decimal(1),
    timedelta(1),
    date(2026, 1, 1), datetime(2026, 1, 1, tzinfo=UTC), time(1), UTC, UUID(int=1), Path("a"), IPv4Address(1),
    pydantic_core.Url("http://a/"), pydantic.NameEmail(name="a", email="a@b.c"), re.compile("a"), numpy.arange(3),
    numpy.float64(1), pandas.Timestamp(0), os.times(), msgspec.UNSET,
)  # fmt: skip
_HASH = (1 << 61) - 1  # multiples of it have one hash
SPELLED = r"\u005b\u0001-\uffff]"
# What would take an hour or a gigabyte, if it was built.
COSTLY: dict[str, Any] = {
    "a fraction": {"$fraction": ["1e999999999"]},
    "a fraction of floats": {"$fraction": [1e300, 1]},
    "a fraction of two large primes": {"$fraction": [{"$int": "f" * 500_000}, {"$int": "e" * 499_999 + "f"}]},
    "a numpy string": {"$npscalar": "a", "dtype": "U500000000"},
    "a numpy string of a number": {"$npscalar": 10**9, "dtype": "S1"},
    "a numpy scalar of many": {"$npscalar": 1, "dtype": {"$tuple": ["u1", {"$tuple": [10**9]}]}},
    "an array of nothing, wide": {"$ndarray": "", "dtype": "V1000000000", "shape": [0]},
    "an array of nothing, long": {"$ndarray": "", "dtype": "i8", "shape": [10**9, 0]},
    "an array of many dimensions": {"$ndarray": "", "dtype": "i8", "shape": [0] + [10**9] * 5},
    "an array of fields without bytes": {
        "$ndarray": "A" * 40_000, "dtype": [{"$tuple": [f"f{n}", "V0" if n else "u1"]} for n in range(9000)],
        "shape": [30_000],
    },
    "a range": {"$set": [{"$range": [0, 10**15, 1]}]},
    "a decimal": {"$decimal": "1e999999999"},
    "an int": {"$int": "f" * 3_000_000},
    "a float": {"$float": "1" * 1_000_000},
    "a set of one hash": {"$set": [n * _HASH for n in range(60_000)]},
    "a dict of one hash": {"$map": [[{"$tuple": [n * _HASH, 1]}, 1] for n in range(40_000)]},
    "a counter of one hash": {"$Counter": [[n * _HASH, 1] for n in range(60_000)]},
    "a pattern of many classes": {"$pattern": "[\0-\U0010ffff]" * 1900, "flags": 34},
    "patterns of a class each": [{"$pattern": f"[\x01-\uffff]x{n}", "flags": 34} for n in range(1500)],
    "a pattern whose classes are spelled": {"$pattern": {"$str": f'"{SPELLED * 900}"'}, "flags": 34},
    "arrays of nothing": [{"$ndarray": "", "dtype": "|i1", "shape": [1_000_000, 0]}] * 30,
    "arrays of items without bytes": [{"$ndarray": "", "dtype": "|V0", "shape": [1_000_000]}] * 20,
    "deep arrays of nothing": [{"$ndarray": "", "dtype": "|i1", "shape": [1] * 18 + [1000, 1000, 0]}] * 10,
    "a deep pattern": {"$pattern": "(" * 4000 + ")" * 4000, "flags": 32},
    "a long address": {"$url": "http://" + "\u00fc" * 60_000, "type": "Url"},
    "a zone that is a file": {"$datetime": "2026-01-01T00:00:00", "zone": "../../../../../dev/zero"},
}  # fmt: skip
TAGS = tuple(limits.FIELDS)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([hostile.ORDERS, "1e99", "../../../../etc/passwd", "os:system", "9" * 5000, "=1+1", "$"])
)
NAMES = st.sampled_from(
    [*TAGS, "$extra", "$attrs", "$", *{name for fields in limits.FIELDS.values() for name in fields}]
) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS, lambda parts: st.lists(parts, max_size=4) | st.dictionaries(NAMES, parts, max_size=3), max_leaves=12
)
FIELDS = st.fixed_dictionaries(
    {"key": SCALARS | VALUES},
    optional={
        "result": VALUES,
        "timestamp": SCALARS,
        "version": SCALARS,
        "code": VALUES,
        "input": SCALARS,
        "forgotten": SCALARS,
        "error": SCALARS,
        "type": SCALARS,
        "traceback": SCALARS,
        "attempts": SCALARS,
        "elapsed": SCALARS,
        "session": SCALARS,
        "pickle": SCALARS,
        "repr": SCALARS,
        "schema": VALUES,
        "from": VALUES,
        "detail": VALUES,
        "value": VALUES,
        "notes": VALUES,
        "steps": VALUES,
    },
)
_directories = count()


@pytest.mark.promise("untrusted checkpoints")
@seed(SEED)
@settings(
    max_examples=20 if WIDE else 5,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate],  # each look takes a second, and what failed is small enough to be read
)
@given(st.lists(FIELDS, min_size=10, max_size=60), st.lists(FIELDS, max_size=10), VALUES)
def test_lines_of_any_json_with_envelopes(
    tmp_path_factory: pytest.TempPathFactory, look: Look, results: list[Any], errors: list[Any], meta: Any
) -> None:
    """Sealed, so that nothing but their content stands against them."""
    directory = tmp_path_factory.mktemp(f"lines{next(_directories)}")
    build(directory)
    for name, lines in (("j_results.jsonl", results), ("j_errors.jsonl", errors), (".j_unsaved.jsonl", errors)):
        with open(directory / name, "ab") as file:
            file.writelines(sealed(**fields) for fields in lines)
    (directory / "j_meta.json").write_text(
        json.dumps({"versions": {"": meta}, "codes": {"x": meta}, "last_pass": meta})
    )
    assert look(directory) == {}


@pytest.mark.promise("untrusted checkpoints")
def test_no_envelope_costs_more_than_its_bytes(tmp_path: Path, look: Look) -> None:
    """A line of a hundred bytes is no way to take an hour or a gigabyte, as a key or as a result."""

    def wrong(names: Iterable[str], directory: Path) -> dict[str, str]:
        build(directory)
        with open(directory / "j_results.jsonl", "ab") as file:
            for name in names:
                file.write(sealed(key=COSTLY[name], result=1))
                file.write(sealed(key=name, result=COSTLY[name]))
                file.write(sealed(key={"$tuple": [name, COSTLY[name]]}, result=1))
                file.write(
                    sealed(key=f"{name} 2", result=1, version="ab" * 16, value=COSTLY[name], detail=COSTLY[name])
                )
        return look(directory)

    if wrong(COSTLY, tmp_path / "all"):
        assert not {name: found for name in COSTLY if (found := wrong([name], tmp_path / name))}
        pytest.fail("all of them together cost too much, and none alone")


@pytest.mark.promise("untrusted checkpoints")
@pytest.mark.parametrize("digits", [20_000, 500_000, 2_000_000])
def test_a_number_of_many_digits_ends(tmp_path: Path, look: Look, digits: int) -> None:
    """In a line of ours as key or result, and in one of another program."""
    build(tmp_path)
    with open(tmp_path / "j_results.jsonl", "ab") as file:
        file.write(seal(b'{"key":1,"result":' + b"9" * digits))
        file.write(seal(b'{"key":' + b"9" * digits + b',"result":1'))
        file.write(b'{"key":2,"result":' + b"9" * digits + b"}\n")
    assert look(tmp_path) == {}


_PARTS: tuple[Any, ...] = (
    "1e999999999", 10**18, -1, 1e308, "x" * 300_000, [10**15] * 5, [["a", "V1000000000"]], {"$int": "f" * 100_000}, {},
    None, [{"$fraction": ["1e9999999"]}] * 3, {"$range": [0, 10**15, 1]}, {"$decimal": "1e999999999"}, "[" * 9000,
)  # fmt: skip


@pytest.mark.promise("untrusted checkpoints")
def test_no_field_of_an_envelope_makes_it_costly(tmp_path: Path, look: Look) -> None:
    """Each field of each envelope in turn holds what costs most where it is believed; the others are as written."""
    build(tmp_path)
    honest: dict[str, dict[str, Any]] = {}
    for value in HONEST:
        plain = json.loads(Codec().encode(value))
        honest[next(iter(plain))] = plain
    assert set(honest) | {"$class", "$enum", "$namedtuple"} >= set(limits.FIELDS)
    with open(tmp_path / "j_results.jsonl", "ab") as file:
        for number, (tag, part) in enumerate(product(limits.FIELDS, _PARTS)):
            for name in limits.FIELDS[tag]:
                file.write(sealed(key=f"{number} {name}", result={**honest.get(tag, {tag: "Name"}), name: part}))
    assert look(tmp_path) == {}


def test_an_input_stands_for_a_directory(tmp_path: Path) -> None:
    """What coverage leads to is put where it says; a line that asks for it has its right checksum."""
    build(tmp_path)
    (tmp_path / "victim").write_text("precious")
    hostile.put(b'~@{"key":"a","result":1~!\n{"key":"b"}\n~C[1]~A~?\x0b', tmp_path, tmp_path / "victim")
    assert (tmp_path / "j_results.jsonl").read_bytes() == seal(b'{"key":"a","result":1') + b'{"key":"b"}\n'
    assert (tmp_path / "j_meta.json").read_bytes() == b"[1]"
    assert (tmp_path / "j@0-of-2_results.jsonl").read_bytes() == sealed(key="shard", result=1)


@pytest.mark.promise("untrusted checkpoints")
@pytest.mark.skipif(find_spec("atheris") is None, reason="atheris is not installed: it has wheels for Linux on x86-64")
@pytest.mark.parametrize("seconds", [20, pytest.param(600, marks=pytest.mark.soak)])
def test_no_directory_that_coverage_leads_to_breaks_the_law(tmp_path: Path, seconds: int) -> None:
    """Every verb looks at it, within 5 s and 500 MB, and does nothing else."""
    (tmp_path / "found").mkdir()
    root = str(Path(checkpoint.__file__).parent.parent)
    options = [f"-max_total_time={seconds}", f"-seed={SEED % (1 << 31) or 1}", str(tmp_path / "found")]
    ran = subprocess.run(
        [sys.executable, hostile.__file__, "--atheris", *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=4 * seconds + 120, check=False,
        env=os.environ | {"PYTHONPATH": root, "CHECKPOINT_DIR": str(tmp_path / "none"), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    said = ran.stderr[-20_000:]
    assert ran.returncode == 0, f"CHECKPOINT_TEST_SEED={SEED}, kept in {tmp_path}\n{said}"
    assert "DONE" in said, said


def test_the_judge_is_worth_something(tmp_path: Path, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it must refuse, it refuses: in a process of its own, since a hook stays."""
    for code, told in (
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "socket."),
        ("import subprocess; subprocess.run(['true'])", "subprocess.Popen"),
        ("import os; os.system('true')", "os.system"),
        ("open('/tmp/never-made-by-a-test', 'w')", "open"),
        ("import pickle; pickle.loads(b'cos\\nsystem\\n.')", "pickle."),
        ("import os; os.mkdir('/tmp/never-made-by-a-test')", "os.mkdir"),
    ):
        script = f"import hostile; hostile.guard(({str(tmp_path)!r},))\n{code}"
        path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(checkpoint.__file__).parent.parent)])
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
        )
        assert done.returncode == 71, code
        assert told.encode() in done.stderr
