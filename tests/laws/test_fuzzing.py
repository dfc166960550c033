"""The law of arbitrary bytes: whatever stands in a checkpoint's files, nothing but own errors, and no wrong value.

`fuzzing` says what is checked of each input. Here its corpus is replayed, with mutations that nothing guides; and where
atheris is installed, with ones that coverage does. What breaks the law is kept below the directory of the test.

The seed is printed; CHECKPOINT_TEST_SEED=… runs the same mutations again.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import seed_of_tests

import checkpoint
from checkpoint import CheckpointError
from checkpoint.storage import index_file, record
from checkpoint.storage.index import Index
from checkpoint.storage.journal import Journal

if sys.platform == "win32":
    pytest.skip("it takes SIGALRM and getrusage", allow_module_level=True)

import fuzzing

pytestmark = pytest.mark.slow

CORPUS = Path(__file__).parents[1] / "corpus"
SEED = seed_of_tests()
COUNT = 1000  # mutations, of each of two processes: some ten seconds


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    directory = tempfile.mkdtemp(prefix="checkpoint-fuzzing-", dir=parent)
    yield Path(directory)
    shutil.rmtree(directory)


def fuzz(memory: Path, keep: Path, *options: str, timeout: float) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own: what does not end, or takes all memory, ends nothing else."""
    command = [sys.executable, fuzzing.__file__, *options]
    library = str(Path(checkpoint.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [library, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path, "TMPDIR": str(memory)}
    return subprocess.run(
        command, cwd=keep, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_nothing_in_the_corpus_breaks_the_law(memory: Path, tmp_path: Path) -> None:
    """Every input that once did, and one for each kind of thing that may stand in the files."""
    ran = fuzz(memory, tmp_path, *map(str, sorted(CORPUS.iterdir())), timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_no_mutation_of_the_corpus_breaks_the_law(memory: Path, tmp_path: Path) -> None:
    """Thousands of them: flipped, cut, doubled, shuffled and glued."""
    print(f"CHECKPOINT_TEST_SEED={SEED}")
    files = [str(path) for path in sorted(CORPUS.iterdir())]

    def child(seed: int) -> subprocess.CompletedProcess[str]:
        return fuzz(memory, tmp_path, f"--seed={seed}", f"--count={COUNT}", *files, timeout=300)

    with ThreadPoolExecutor() as pool:
        for ran in pool.map(child, (SEED, SEED + 1)):
            assert ran.returncode == 0, f"CHECKPOINT_TEST_SEED={SEED}, kept in {tmp_path}\n{ran.stdout}{ran.stderr}"


def test_the_corpus_stays_small() -> None:
    """It is for every run: what is found is cut to what it takes, and named for what it shows."""
    sizes = {path.name: path.stat().st_size for path in CORPUS.iterdir()}
    assert sum(sizes.values()) < 60_000
    assert not [name for name in sizes if name.startswith("crash-")]


@pytest.mark.parametrize(
    ("data", "journal", "reason"),
    [
        (b'{"key":"a","result":1~!\n', b'{"key":"a","result":1,"crc":"%08x"}\n', "the right checksum"),
        (b"~0", fuzzing.RESULTS[0].line, "a planted line"),
        (b"x~Ry~Ez~Rw", b"xyw", "what is of one file is joined"),
        (b"~M{}", None, "no journal"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_input_stands_for_files(data: bytes, journal: bytes | None, reason: str) -> None:
    """Planted lines and checksums are made where they are named."""
    if journal is not None and b"%" in journal:
        journal %= zlib.crc32(b'{"key":"a","result":1')
    assert fuzzing.split(data).journals["R"] == journal


def _flipped(line: bytes) -> bytes:
    return line.replace(b"another", b"anothex")


@pytest.mark.parametrize(
    ("owner", "name", "broken", "data", "reason"),
    [
        (record, "_crc_holds", lambda line: True, _flipped(fuzzing.RESULTS[3].line), "a damaged value is believed"),
        (Journal, "repair", lambda self: b"", b"~1\n~0\n{torn", "a record is glued to a torn tail"),
        (Index, "forget", lambda self, version, key: None, b"~0\n~4\n", "what was forgotten is there"),
        (Index, "find", lambda self, version, key: None, b"~0\n", "an intact line is not found"),
        (index_file, "_checksum", lambda page, data: 0, b"~0\n~1\n~Iw\xff\x31\x10\xff", "a flipped index is believed"),
        (index_file, "_read_header", lambda fd: [].pop(), b"~0\n~Iw\xff", "an error that is no own one"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_a_store_that_breaks_the_law_is_caught(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, broken: Any, data: bytes, reason: str
) -> None:
    """The judge is worth something; and it finds nothing wrong with the same input where nothing is broken."""
    with fuzzing.place() as directory:
        fuzzing.check_input(data, directory)
        monkeypatch.setattr(owner, name, broken)
        with pytest.raises((fuzzing.Wrong, CheckpointError, IndexError)):
            fuzzing.check_input(data, directory)


guided = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="atheris is not installed: it has wheels for Linux on x86-64"
)


@guided
@pytest.mark.parametrize("seconds", [15, pytest.param(600, marks=pytest.mark.soak)])
def test_what_coverage_leads_to_breaks_no_law(memory: Path, tmp_path: Path, seconds: int) -> None:
    """Guided fuzzing, from the corpus on."""
    found = tmp_path / "found"
    found.mkdir()
    options = [f"-max_total_time={seconds}", f"-seed={SEED % (1 << 31) or 1}", str(found), str(CORPUS)]
    ran = fuzz(memory, tmp_path, "--atheris", *options, timeout=4 * seconds + 120)
    said = ran.stderr[-20_000:]
    assert ran.returncode == 0, f"CHECKPOINT_TEST_SEED={SEED}, kept in {tmp_path}\n{said}"
    assert "DONE" in said, said
