"""Type checkers see the function's own signature, and `Results[R]` from `.map`: mypy --strict and pyright agree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import checkpoint

pytestmark = pytest.mark.slow

PRELUDE = """\
from collections.abc import Sequence
from checkpoint import CheckpointedFunction, Rate, Results, Retry, checkpointed

class Summary: ...

@checkpointed("sync", key="id", version={"model": "m"})
def f(doc: dict[str, str], strict: bool = False) -> Summary:
    return Summary()

@checkpointed("async")
async def af(n: int) -> str:
    return str(n)

@checkpointed("batch", batch_size=8, retry=Retry(5), rate=["9/s", Rate(9)], validate=bool)
def bf(docs: list[int]) -> list[float]:
    return []

@checkpointed("abatch", batch_size=8)
async def abf(docs: list[int]) -> list[float]:
    return []

class Scorer:
    @checkpointed("bmethod", batch_size=2)
    def scores(self, texts: list[str]) -> list[float]:
        return []

    @checkpointed("method")
    def score(self, text: str) -> float:
        return 0.5

    @checkpointed("amethod")
    async def ascore(self, text: str) -> float:
        return 0.5

    @checkpointed("class")
    @classmethod
    def make(cls, text: str) -> int:
        return 1

    @checkpointed("static")
    @staticmethod
    def plain(text: str) -> bytes:
        return b""

def read(text: str) -> Summary:
    return Summary()

@checkpointed("parsed", key="id", parse=read)
def pf(doc: dict[str, str]) -> str:
    return ""

@checkpointed("aparsed", parse=lambda text: len(text))
async def apf(n: int) -> str:
    return ""

@checkpointed("bparsed", batch_size=2, parse=read)
def bpf(docs: list[int]) -> list[str]:
    return []

annotated: CheckpointedFunction[[dict[str, str], bool], Summary]
docs: list[dict[str, str]] = []
scorer = Scorer()
async def main() -> None:
"""

REVEALED = [
    ("f({}, strict=True)", "Summary", "the plain call keeps its type"),
    ("f.map(docs)", "Results[Summary]", "a map is of what the function returns"),
    ("f.map(docs)[0]", "Summary", "an index gives one"),
    ("f.map(docs)[:2]", "list[Summary]", "a slice gives a list"),
    ("f.map(docs, return_exceptions=True)", "Results[Summary | ItemError]", "failures stand in their places"),
    ("f.map(docs, progress=False, max_errors=0.5)[0]", "Summary", "options are known"),
    ("next(f.stream(docs))", "Outcome[Summary]", "a stream is of outcomes"),
    ("next(f.stream(docs)).value", "Summary | None", "whose value may be missing"),
    ("f.results['a']", "Summary", "results are by key"),
    ("f.errors['a']", "ItemError", "and so are errors"),
    ("f.seed(1)", "int", "a seed is an int"),
    ("f.options(name='x')({})", "Summary", "a copy is of the same kind"),
    ("await af(1)", "str", "a coroutine function is awaited"),
    ("f.one({'a': 'b'})", "Summary", "one result"),
    ("await af.one(1)", "str", "of a coroutine function it is awaited"),
    ("scorer.score.one('x')", "float", "of a method"),
    ("await scorer.ascore.one('x')", "float", "of a coroutine method"),
    ("Scorer.make.one('x')", "int", "of a class method"),
    ("bf.one(1)", "float", "of a function of batches that of the item"),
    ("await af.map([1])", "Results[str]", "and so is its map"),
    ("(await af.map([1], return_exceptions=True))[0]", "str | ItemError", "with failures too"),
    ("[o.value async for o in af.stream([1])]", "list[str | None]", "its stream is asynchronous"),
    ("scorer.score('x')", "float", "a method has no self to give"),
    ("scorer.score.map(['x'])", "Results[float]", "nor has its map"),
    ("await scorer.ascore.map(['x'])", "Results[float]", "a coroutine method"),
    ("Scorer.make.map(['x'])", "Results[int]", "a class method"),
    ("Scorer.plain.map(['x'])", "Results[bytes]", "a static method"),
    ("f.map(docs, workers=8, executor='processes', chunksize=64, grace=5)", "Results[Summary]", "engines are known"),
    ("bf([1])", "Sequence[float]", "a function of batches is called with a list"),
    ("bf.map([1])", "Results[float]", "and its results are those of items"),
    ("next(bf.stream([1])).value", "float | None", "in a stream too"),
    ("await abf.map([1])", "Results[float]", "a coroutine function of batches"),
    ("await abf([1])", "Sequence[float]", "which is called with a list too"),
    ("scorer.scores.map(['x'])", "Results[float]", "a method of batches"),
    ("pf.map(docs)", "Results[Summary]", "a map with a parser is of what that returns"),
    ("pf({})", "str", "and a call of what the function does"),
    ("pf.results['a']", "Summary", "results are parsed"),
    ("next(pf.stream(docs)).value", "Summary | None", "and so are outcomes"),
    ("await apf.map([1])", "Results[int]", "a parsed coroutine function"),
    ("await apf(1)", "str", "and its call"),
    ("bpf.map([1])", "Results[Summary]", "a parsed function of batches"),
    ("bpf([1])", "list[str]", "and its call"),
    ("checkpointed('lambda')(lambda n: 1).map([1])", "Results[int]", "a lambda"),
]
WRONG = [
    ("f()", "an argument is missing"),
    ("f(1)", "an argument of another type"),
    ("f({}, loose=True)", "an argument that is not there"),
    ("f.map(docs, retryfailed=True)", "an option that is not there"),
    ("f.map(5)", "items that are none"),
    ("f.one(docs, workers=2)", "one has no options"),
    ("scorer.score(5)", "an argument of a method"),
    ("scorer.score(scorer, 'x')", "self is bound"),
    ("f.results['a'] = Summary()", "results are read only"),
    ("checkpointed('n', durability='often')", "a choice that is none"),
    ("f.map(docs, executor='gpu')", "an executor that is none"),
    ("checkpointed('n', retry='3')", "a policy that is none"),
    ("checkpointed('n', batch_size=2)(len)", "a function of batches that returns no list"),
    ("checkpointed('n', parse='json')", "a parser that is none"),
    ("checkpointed()", "a name is needed"),
    ("for _ in af.stream([1]): ...", "an asynchronous stream in a plain loop"),
    ("r: Results[str] = f.map(docs)", "results of another type"),
]
SOURCE = (
    PRELUDE
    + "".join([f"    reveal_type({expression})\n" for expression, _, _ in REVEALED])
    + "".join([f"    {statement}\n" for statement, _ in WRONG])
)
FIRST = PRELUDE.count("\n") + 1


def plain(kind: str) -> str:
    """A type as both checkers would write it: without modules, `builtins.` and quotes."""
    kind = re.sub(r"\b(?:[a-z_]\w*\.)+", "", kind)
    return re.sub(r"Union\[(.*)\]", lambda m: m[1].replace(", ", " | "), kind).replace("None | ", "None | ")


class Checked:
    """What a type checker said, by line: the types revealed, and the errors."""

    def __init__(self) -> None:
        self.types: dict[int, str] = {}
        self.errors: dict[int, str] = {}


@pytest.fixture(scope="module")
def snippet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that both check."""
    path = tmp_path_factory.mktemp("typing") / "snippet.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def mypy(snippet: Path) -> Checked:
    """What mypy --strict says."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", str(snippet.parent)]
    done = subprocess.run(
        [*command, "--config-file", str(_config(snippet)), str(snippet)],
        capture_output=True, text=True, cwd=snippet.parent, env=_environment(),
    )  # fmt: skip
    checked = Checked()
    for line in done.stdout.splitlines():
        match = re.match(r".*?snippet\.py:(\d+): (\w+): (.*)", line)
        if match and (revealed := re.fullmatch(r'Revealed type is "(.*)"', match[3])):
            checked.types[int(match[1])] = plain(revealed[1])
        elif match and match[2] == "error":
            checked.errors[int(match[1])] = match[3]
    assert checked.types, done.stdout + done.stderr
    return checked


def _environment() -> dict[str, str]:
    """Where the package is not installed, mypy is told where it is; a directory of installed ones it knows."""
    source = Path(checkpoint.__file__).parent.parent
    return dict(os.environ) if source.name == "site-packages" else {**os.environ, "MYPYPATH": str(source)}


def _config(snippet: Path) -> Path:
    path = snippet.with_name("mypy.ini")
    path.write_text("[mypy]\n[mypy-wrapt.*,tqdm.*]\nignore_missing_imports = True\n")
    return path


@pytest.fixture(scope="module")
def pyright(snippet: Path) -> Checked:
    """What pyright says; it needs node, or a network to fetch it."""
    program = shutil.which("pyright", path=str(Path(sys.executable).parent)) or shutil.which("pyright")
    if program is None:
        pytest.skip("pyright is not installed")
    source = Path(checkpoint.__file__).parent.parent
    settings = {"typeCheckingMode": "standard", "extraPaths": [str(source)], "include": [snippet.name]}
    snippet.with_name("pyrightconfig.json").write_text(json.dumps(settings))
    command = [program, "--outputjson", "--pythonpath", sys.executable, "-p", str(snippet.parent)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        said = json.loads(done.stdout)["generalDiagnostics"]
    except (ValueError, KeyError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"pyright cannot run here: {error!r}")
    checked = Checked()
    for told in said:
        line = told["range"]["start"]["line"] + 1
        revealed = re.match(r'Type of ".*" is "(.*)"', told["message"], re.DOTALL)
        if revealed:
            checked.types[line] = plain(revealed[1])
        elif told["severity"] == "error":
            checked.errors[line] = told["message"]
    return checked


@pytest.mark.parametrize(
    ("line", "want"),
    [(FIRST + place, want) for place, (_, want, _) in enumerate(REVEALED)],
    ids=[reason for *_, reason in REVEALED],
)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_types_are_revealed(request: pytest.FixtureRequest, checker: str, line: int, want: str) -> None:
    """What an expression is to a type checker."""
    checked: Checked = request.getfixturevalue(checker)
    assert checked.types.get(line) == want, checked.errors.get(line)
    assert line not in checked.errors


@pytest.mark.parametrize(
    "line",
    [FIRST + len(REVEALED) + place for place, _ in enumerate(WRONG)],
    ids=[reason for _, reason in WRONG],
)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_what_is_wrong_is_an_error(request: pytest.FixtureRequest, checker: str, line: int) -> None:
    """Before it is run."""
    checked: Checked = request.getfixturevalue(checker)
    assert line in checked.errors


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_decorating_is_no_error(request: pytest.FixtureRequest, checker: str) -> None:
    """Functions, coroutine functions, methods, class and static methods, under strict rules."""
    checked: Checked = request.getfixturevalue(checker)
    assert not {line: text for line, text in checked.errors.items() if line < FIRST}
