"""The law of a stranger's directory: looking at it runs nothing, reaches nobody, writes nowhere else, and ends.

`hostile` has what may stand in the place of each file, and the process that looks. Pairs of file and kind are drawn: by
default each file twice; CHECKPOINT_TEST_HOSTILE=wide, as in CI, takes each kind and each file, within a minute.
The seed is printed; CHECKPOINT_TEST_SEED=… draws the same again.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

import checkpoint

if not sys.platform.startswith("linux"):
    pytest.skip("it takes /proc, setrlimit and holes in files", allow_module_level=True)

import hostile
from hostile import FILES, KINDS, build, sealed

from checkpoint.journal import seal

SEED = int(os.environ.get("CHECKPOINT_TEST_SEED") or random.randrange(1 << 32))
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


# Envelopes that the codec does not bound yet: they hang, or take all memory, and are drawn by no test here.
UNBOUNDED: dict[str, Any] = {
    "fraction": {"$fraction": ["1e999999999"]},
    "npscalar": {"$npscalar": "a", "dtype": "U500000000"},
    "ndarray": {"$ndarray": "", "dtype": "V1000000000", "shape": [0]},
    "range": {"$set": [{"$range": [0, 10**15, 1]}]},
    "decimal": {"$decimal": "1e999999999"},
    "int": {"$int": "f" * 3_000_000},
}
TAGS = (
    "tuple", "set", "frozenset", "deque", "map", "dict", "OrderedDict", "Counter", "defaultdict", "bytes", "bytearray",
    "str", "float", "complex", "datetime", "date", "time", "timedelta", "zone", "uuid", "path", "class", "namedtuple",
    "enum", "extra", "attrs", "slice", "nothing", "",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([hostile.ORDERS, "1e99", "../../../../etc/passwd", "os:system", "9" * 5000, "=1+1", "$"])
)
NAMES = st.sampled_from([*(f"${tag}" for tag in TAGS), "value", "name", "zone", "maxlen", "default", "fold"]) | st.text(
    max_size=4
)
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
@settings(max_examples=20 if WIDE else 5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
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


@pytest.mark.skip(reason="to be switched on with the codec's bounds: what each envelope may cost is not held yet")
@pytest.mark.parametrize("name", UNBOUNDED)
@pytest.mark.parametrize("place", ["key", "result"])
def test_no_envelope_costs_more_than_its_bytes(tmp_path: Path, look: Look, name: str, place: str) -> None:
    """A line of a hundred bytes is no way to take an hour or a gigabyte."""
    build(tmp_path)
    with open(tmp_path / "j_results.jsonl", "ab") as file:
        file.write(sealed(**{"key": 1, "result": 1, place: UNBOUNDED[name]}))
        file.write(seal(b'{"key":2,"result":' + b"9" * 2_000_000))
    assert look(tmp_path) == {}


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
        path = os.pathsep.join([str(Path(__file__).parent), str(Path(checkpoint.__file__).parent.parent)])
        done = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path}, capture_output=True, check=False
        )
        assert done.returncode == 71, code
        assert told.encode() in done.stderr
