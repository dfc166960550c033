"""README and guides are run: every block of Python, with what it prints, and the commands by `.ci/run`."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import os
import re
import secrets
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from test_layers import MAY_IMPORT

import checkpoint
from checkpoint import BatchCheckpointedRunner, CheckpointedRunner, checkpointed
from checkpoint.api.options import PassOptions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = sorted((ROOT / ".github" / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *GUIDES]
REFERENCE = (ROOT / ".github" / "docs" / "reference.md").read_text(encoding="utf-8")
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(Path(checkpoint.__file__).parents[1]),
    "PYTHONUTF8": "1",
    # What executorlib uses of pydantic, and Ray of asyncio; and Dask, when another test has a cluster too.
    "PYTHONWARNINGS": "error,ignore:`pydantic.config.Extra` is,ignore:Support for class-based `config` is,"
    "ignore:There is no current event loop,ignore:Port 8787 is already in use",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # where mpiexec is installed
    "RAY_AUTH_TOKEN": secrets.token_hex(),  # else Ray writes one into the home directory
}
ENVIRONMENT.pop("CHECKPOINT_DIR", None)


class Block(NamedTuple):
    """A fenced block: its language, its text, the line it begins at, and the text block right after it, if any."""

    language: str
    text: str
    line: int
    printed: str | None


def read_blocks(text: str) -> list[Block]:
    """The fenced blocks of a Markdown text, in order."""
    found = list(re.finditer(r"^```(\w+)\n(.*?)^```$\n?", text, re.MULTILINE | re.DOTALL))
    blocks = []
    for block, after in zip_longest(found, found[1:]):
        follows = after is not None and after[1] == "text" and not text[block.end() : after.start()].strip()
        printed = after[2] if after is not None and follows else None
        blocks.append(Block(block[1], block[2], text.count("\n", 0, block.start()) + 1, printed))
    return blocks


BLOCKS = read_blocks(README)
OPTIONAL = ("distributed", "ray", "submitit", "executorlib", "mpi4py", "joblib")
NEEDED = {"to_pandas(": "pyarrow", "to_polars(": "polars", "memory://": "fsspec"}


def marks(text: str) -> list[pytest.MarkDecorator]:
    """An example for a package that cannot be had on every system, or is not in [test], is skipped where it is not."""
    needed = [name for name in OPTIONAL if re.search(rf"(?m)^(?:import|from) {name}\b", text)]
    needed += [package for use, package in NEEDED.items() if use in text]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return [pytest.mark.skipif(bool(missing), reason=f"not installed: {missing}")] if needed else []


PYTHON = [
    pytest.param(block, id=f"{page.name}:{block.line}", marks=marks(block.text) + [pytest.mark.slow] * (page in GUIDES))
    for page in PAGES
    for block in read_blocks(page.read_text(encoding="utf-8"))
    if block.language == "python"
]


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON)
def test_every_python_block_runs_by_itself_and_prints_what_is_shown(block: Block, tmp_path: Path) -> None:
    """As a script in an empty directory, with warnings as errors; a resumed run succeeds too."""
    script = tmp_path / "block.py"
    script.write_text(block.text, encoding="utf-8")
    for run in ("first", "resumed"):
        ended = subprocess.run(
            [sys.executable, script.name], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True,
            encoding="utf-8", timeout=120,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        if run == "first":
            assert ended.stdout == (block.printed or "")


def test_the_pythons_that_are_tried_are_the_same_everywhere() -> None:
    """In the README, among the classifiers and, in a clone, in the matrix of CI."""
    (told,) = re.findall(r"It is tried on Python (.*?);", README)
    tried = re.findall(r"3\.\d+", told)
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r"Python :: (3\.\d+)", project) == tried
    matrix = ROOT / ".github" / "workflows" / "ci.yml"
    if matrix.exists():
        (line,) = re.findall(r"python: \[(.*)\]", matrix.read_text(encoding="utf-8"))
        assert re.findall(r"3\.\d+", line) == tried


@pytest.mark.skipif(sys.platform == "win32", reason="the bash found first may be that of another system")
def test_the_two_commands_are_single_lines_that_ci_runs() -> None:
    """The README has exactly two shell blocks of one line; `.ci/run` takes them from there, so none can drift."""
    commands = [block.text.strip() for block in BLOCKS if block.language == "bash"]
    assert len(commands) == 2
    for command, end in zip(commands, ("checkpoint demo", 'pytest -q -n auto -m "not slow"'), strict=True):
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv")
        assert command.endswith(end)
    listed = subprocess.run(
        ["bash", ".ci/run", "--list"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=60,
        check=True,
    )
    assert listed.stdout.splitlines() == commands


def sections_of(page: Path) -> set[str]:
    """The names by which links find the sections of a page."""
    text = page.read_text(encoding="utf-8")
    titles = re.findall(r"(?m)^#+ (.+)$", text)
    anchors = re.findall(r'<a id="([^"]+)">', text)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles} | {*anchors}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    """Files that a page points to exist, and so do their sections."""
    for target in set(re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))):
        path, _, section = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not section or section in sections_of(file), target


def test_the_readme_is_two_screens_and_leads_to_every_guide() -> None:
    """It has at most 230 lines; what else there is to say stands in a guide that it links to, or a guide does."""
    assert len(README.splitlines()) <= 230
    linked = {target for page in PAGES for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text("utf-8"))}
    assert {page.name for page in GUIDES} <= {Path(target).name for target in linked}


def arguments_of(function: Any) -> list[str]:
    """The names of a function's arguments, less self and what stands for others."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD]


def test_the_api_tables_name_every_argument_and_nothing_else() -> None:
    """Signatures in the reference are those of the code; so are the methods that any page names."""
    flat = " ".join(REFERENCE.split())
    for name, function in {
        "checkpointed": checkpointed,
        "CheckpointedRunner": CheckpointedRunner,
        "iterate": CheckpointedRunner.iterate,
        "save_result": CheckpointedRunner.save_result,
        "save_error": CheckpointedRunner.save_error,
        "iterate_with_progress": BatchCheckpointedRunner.iterate_with_progress,
        "iterate_batches": BatchCheckpointedRunner.iterate_batches,
    }.items():
        shown = re.search(rf"`{name}\(([^`]*)\)`", flat)
        assert shown is not None, name
        names = [part.split("=")[0].strip() for part in shown[1].split(",") if part.strip() != "*"]
        assert names == arguments_of(function), name
    decorated = checkpointed("any")(lambda item: item)
    for name in {name for page in PAGES for name in re.findall(r"`f\.(\w+)", page.read_text(encoding="utf-8"))}:
        assert hasattr(type(decorated), name), name
    options = re.search(r"`f\.map\(items, ([^`]*)\)`", flat)
    assert options is not None
    named = {part.split("=")[0].strip() for part in options[1].split(",")} - {"*"}
    assert named == {*PassOptions.__annotations__, "return_exceptions"}


def test_the_reference_names_every_error() -> None:
    """Each public error stands in the table, under a builtin error that it is."""
    rows = re.findall(r"(?m)^\| (`.*) \| `(\w+)` \|$", REFERENCE.partition("\n## Errors\n")[2])
    listed = {name: parent for names, parent in rows for name in re.findall(r"\w+", names)}
    errors = {name for name in checkpoint.__all__ if isinstance(getattr(checkpoint, name), type)}
    errors = {name for name in errors if issubclass(getattr(checkpoint, name), Exception)} - {"CheckpointError"}
    assert listed.keys() == errors
    for name, parent in listed.items():
        assert issubclass(getattr(checkpoint, name), getattr(builtins, parent)), name


def test_every_public_name_is_importable_and_the_pages_use_no_other() -> None:
    """What blocks import from `checkpoint` is public."""
    used = {
        line for page in PAGES for line in re.findall(r"(?m)^from checkpoint import (.+)$", page.read_text("utf-8"))
    }
    assert {name.strip() for line in used for name in line.split(",")} <= set(checkpoint.__all__)


def test_contributing_names_files_that_exist_and_a_glossary_of_25_words() -> None:
    """A stranger is led to what is there; the table of folders is the one that the tests hold."""
    page = ROOT / ".github" / "CONTRIBUTING.md"
    text = page.read_text(encoding="utf-8")
    if (ROOT / "checkpoint").is_dir():  # in a clone, and not beside an installed package
        folders = [ROOT, ROOT / "checkpoint", ROOT / ".github"]
        for path in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md))`", text):
            assert any((folder / path).exists() for folder in folders), path
    words = text.partition("\n## Glossary\n")[2].partition("\n## ")[0]
    assert len(re.findall(r"(?m)^\| [a-z]", words)) - 1 == 25
    rows = re.findall(r"(?m)^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", text.partition("\n## The house\n")[2])
    assert {folder for folder, _ in rows} == MAY_IMPORT.keys()
    for folder, may in rows:
        if not may.startswith("all above"):
            assert set(may.split(", ")) - {"–"} == MAY_IMPORT[folder], folder
