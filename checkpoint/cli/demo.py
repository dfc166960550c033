"""`checkpoint demo`: a real job is killed part-way, started again, and shown to have lost nothing.

It measures every module of Python's own standard library. The measuring runs in a process of its own, which this one
kills. What was run is counted without the library: the measuring function itself writes a line for each call.
"""

from __future__ import annotations

import ast
import io
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from checkpoint.api.decorator import checkpointed
from checkpoint.errors import CheckpointError, ItemError

__all__ = ["DIRECTORY", "Function", "Module", "measure", "modules", "run", "work"]

DIRECTORY = "checkpoint-demo"
NAME = "stdlib"
PYTHON = platform.python_version()
_KILL_AT = 0.4  # of what is left to do
_WORTH_KILLING = 20  # modules left to do; fewer are done before anyone could look
_KILL = "TerminateProcess" if sys.platform == "win32" else "SIGKILL"
_POLL = 0.02  # seconds
_SHOWN = 10
_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__", "__phello__", "lib2to3"}
_executions: int | None = None  # the descriptor of the list of calls, in the process that measures

# --- the job ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Function:
    """A function with its cyclomatic complexity: 1, and 1 for each place where its flow may branch."""

    name: str
    complexity: int


@dataclass(frozen=True, slots=True)
class Module:
    """What is measured of a module's source.

    Attributes:
        lines: of the file.
        code: lines that hold more than a comment or nothing.
        functions: methods included.
        classes: nested ones included.
        branches: places where the flow may branch: if, for, while, except, case, assert, and, or, comprehensions.
        hardest: its most complex function, if it has any.
    """

    lines: int
    code: int
    functions: int
    classes: int
    branches: int
    hardest: Function | None


@checkpointed(NAME, key="module", version=PYTHON)
def measure(item: dict[str, str]) -> Module:
    """Read one source file and measure it.

    Raises:
        SyntaxError, tokenize.TokenError, UnicodeDecodeError: it is no source of this Python.
    """
    if _executions is not None:
        os.write(_executions, f"{PYTHON}\t{os.getpid()}\t{item['module']}\n".encode())
    source = Path(item["path"]).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a SyntaxWarning is the concern of whoever wrote the file
        tree = ast.parse(source)
    nodes, functions = list(ast.walk(tree)), list(_functions(tree))
    return Module(
        lines=len(source.splitlines()),
        code=_code_lines(source),
        functions=len(functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        branches=sum(map(_branches, nodes)),
        hardest=max(functions, key=lambda function: function.complexity, default=None),
    )


_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def _code_lines(source: bytes) -> int:
    lines: set[int] = set()
    for token in tokenize.tokenize(io.BytesIO(source).readline):
        if token.type not in _NO_CODE and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines)


def _branches(node: ast.AST) -> int:
    """How many times the flow branches at this node itself."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    kinds = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)
    return int(isinstance(node, kinds))


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[Function]:
    """Every function in it; the branches of a nested function are its own."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield Function(prefix + node.name, 1 + sum(map(_branches, _own_nodes(node))))
        inner = (
            f"{prefix}{node.name}."
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
            else prefix
        )
        yield from _functions(node, inner)


def _own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node
            yield from _own_nodes(node)


def modules(source: Path) -> list[dict[str, str]]:
    """The modules below a directory, tests and installed packages left out: `{"module": name, "path": path}`."""
    found = []
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        if _SKIPPED.isdisjoint(parts):
            name = ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)
            found.append({"module": name, "path": str(path)})
    return found


# --- the process that measures ---------------------------------------------------------------------------------------


def work(directory: str, source: str) -> int:
    """Measure what is not measured yet: the whole job is one call of `map`. Returns the exit status."""
    import logging

    global _executions
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    _executions = os.open(_log(Path(directory)), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        measure.options(checkpoint_dir=directory).map(modules(Path(source)), return_exceptions=True)
    except CheckpointError as error:
        print(f"checkpoint demo: {error}", file=sys.stderr)
        return 1
    return 0


def _log(directory: Path) -> Path:
    return directory / "executions.log"


# The child takes over this process's sys.path, so that it is the same package that runs, whatever lies in the working
# directory and whether or not the package is installed.
_CHILD = "import sys; sys.path = sys.argv[3:]; from checkpoint.cli.demo import work; sys.exit(work(*sys.argv[1:3]))"


@contextmanager
def _child(directory: Path, source: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The process that measures; it does not outlive this block. Ctrl-C reaches this process only."""
    sys.stdout.flush()
    command = [sys.executable, "-P", "-c", _CHILD, str(directory), str(source), *map(str, sys.path)]
    if sys.platform == "win32":
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, creationflags=subprocess.CREATE_NEW_PROCESS_GROUP)
    else:  # a blocked signal stays blocked in the child, and reaches this process once it is unblocked
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


# --- the process that watches ----------------------------------------------------------------------------------------


def run(directory: Path, source: Path | None = None) -> int:
    """Run the demo; returns the exit status: 0, or 1 where the job or the proof failed, or 130 after Ctrl-C.

    Args:
        directory: where its files go; made if need be.
        source: a directory of Python files; default the standard library.
    """
    source = Path(sysconfig.get_path("stdlib")) if source is None else source
    names = frozenset([item["module"] for item in modules(source)])
    directory.mkdir(parents=True, exist_ok=True)
    _log(directory).touch()
    _say(f"Measuring the {len(names)} Python modules in {source}", f"Files go to {_shown(directory)}{os.sep}", "")
    try:
        with _terminable():
            return _run(directory, source, names)
    except KeyboardInterrupt:
        saved = len(names & _results(directory).keys())
        _end_bar()
        _say(f"Interrupted. {saved} of {len(names)} modules are saved. Run the same command again to go on.")
        return 130


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends this process by an exception, so that the one that measures is ended too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(directory: Path, source: Path, names: frozenset[str]) -> int:
    saved = len(names & _results(directory).keys())
    rounds: list[Round] = []
    if len(names) - saved >= _WORTH_KILLING:
        _say(f"First run of measure.map(modules). {_so_far(saved, names)}It will be killed part-way.")
        kill_at = saved + round(_KILL_AT * (len(names) - saved))
        rounds.append(_round(directory, source, names, kill_at))
        if not rounds[0].killed:
            return _broken(rounds[0]) if rounds[0].status else _too_quick(directory)
        _end_bar()
        saved = len(names & _results(directory).keys())
        _say(f"Killed by {_KILL}. {saved} of {len(names)} results are on disk.", "")
        _say("Second run, the same call again.")
    elif saved < len(names):
        _say(f"An earlier run has measured {saved} of {len(names)} already. The rest is run.")
    else:
        _say(f"An earlier run has measured all {saved} already. measure.map(modules), once more:")
    rounds.append(_round(directory, source, names))
    if rounds[-1].status:
        return _broken(rounds[-1])
    job = measure.options(checkpoint_dir=directory)
    proved = _prove(directory, names, rounds)
    _tell_failures(job.errors)
    hardest = _tell_hardest({name: module for name, module in job.results.items() if name in names})
    _tell_next(directory, hardest)
    return 0 if proved else 1


def _so_far(saved: int, names: frozenset[str]) -> str:
    return f"{saved} of {len(names)} are saved from an earlier one. " if saved else ""


def _broken(ended: Round) -> int:
    _say("", f"The measuring process ended with status {ended.status}; what it said stands above.")
    return 1


def _too_quick(directory: Path) -> int:
    _say(
        "",
        f"It was done before it could be killed, so there is nothing to show. Delete {_shown(directory)}, try again.",
    )
    return 1


@dataclass(frozen=True, slots=True)
class Round:
    """One process's part.

    Attributes:
        saved: the modules that had a result when it started.
        failed: those that had an error and no result.
        ran: what it then ran, counted without the library.
        killed: whether it was killed.
        status: its exit status.
    """

    saved: frozenset[str]
    failed: frozenset[str]
    ran: Counter[str]
    killed: bool
    status: int


def _round(directory: Path, source: Path, names: frozenset[str], kill_at: int | None = None) -> Round:
    """Have one process measure; kill it once so many results are saved."""
    results, errors = _results(directory), measure.options(checkpoint_dir=directory).errors
    saved, failed, calls = names & results.keys(), names & errors.keys(), len(_calls(directory))
    with _child(directory, source) as child:
        killed = False
        while not killed and not _has_ended(child):
            if killed := kill_at is not None and len(results) >= kill_at:
                child.kill()
        status = child.wait()
    return Round(saved, failed, Counter(_calls(directory)[calls:]), killed, status)


def _results(directory: Path) -> Mapping[str, Module]:
    """What is saved, read while the other process writes."""
    return measure.options(checkpoint_dir=directory).results


def _calls(directory: Path) -> list[str]:
    """The modules in the order in which they were run, by this Python."""
    rows = [line.split("\t") for line in _log(directory).read_text().splitlines()]
    return [row[2] for row in rows if len(row) == 3 and row[0] == PYTHON]


def _has_ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(_POLL)
    except subprocess.TimeoutExpired:
        return False
    return True


# --- what is told ----------------------------------------------------------------------------------------------------


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)


def _end_bar() -> None:
    """The bar of a killed process stands in an unfinished line."""
    if sys.stderr.isatty():
        print(file=sys.stderr, flush=True)


def _prove(directory: Path, names: frozenset[str], rounds: Sequence[Round]) -> bool:
    """Compare what was run with what is saved; returns whether every promise was kept."""
    last = rounds[-1]
    job = measure.options(checkpoint_dir=directory)
    with_result, failed = names & job.results.keys(), names & job.errors.keys()
    lost = names - with_result - failed
    again = [name for part in rounds for name in part.ran if name in part.saved or part.ran[name] > 1]
    in_flight = [name for part in rounds[:-1] for name in part.ran.keys() & last.ran.keys() - last.failed]
    _say("", f"Proof, from {_log(directory).name}: the measuring function writes a line there for each call")
    rows = [
        ("modules", len(names)),
        ("  with a result", len(with_result)),
        ("  failed", len(failed)),
        ("  lost", len(lost)),
    ]
    if before := len(rounds[0].saved & names):
        rows += [("saved by an earlier run", before)]
    if len(rounds) > 1:
        rows += [("run by the killed process", rounds[0].ran.total()), ("run by the next one", last.ran.total())]
    else:
        rows += [("run by this process", last.ran.total())]
    rows += [("run again though saved", len(again))]
    if len(rounds) > 1:
        rows += [("run again, in flight when killed", len(in_flight))]
    _say(*[f"  {label:34}{count:6,}" for label, count in rows])
    kept = not lost and not again and len(in_flight) <= len(rounds) - 1
    if kept:
        _say("Nothing was lost. Nothing that was saved was run again.")
    else:
        _say("THE PROOF FAILED, please report it:", *[f"  {name}" for name in [*lost, *again, *in_flight]])
    return kept


def _tell_failures(errors: Mapping[str, ItemError]) -> None:
    if errors:
        _say("", "Could not be measured; tried again at the next run")
        _say(*[f"  {name}: {error.type}: {error.message}" for name, error in errors.items()])


def _tell_hardest(results: Mapping[str, Module]) -> list[str]:
    """Show the modules that branch most; returns their names."""
    ranked = sorted(results, key=lambda name: (-results[name].branches, name))[:_SHOWN]
    rows = [_row(name, results[name]) for name in ranked]
    _say("", f"The {len(rows)} most complex modules, by the places where their flow may branch")
    header = ("module", "branches", "lines", "functions", "classes", "most complex function")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        _say(f"  {row[0].ljust(widths[0])}  {'  '.join(cells)}  {row[-1]}")
    return ranked


def _row(name: str, module: Module) -> tuple[str, ...]:
    hardest = f"{module.hardest.name} ({module.hardest.complexity})" if module.hardest else "-"
    return (name, f"{module.branches:,}", f"{module.lines:,}", f"{module.functions:,}", f"{module.classes:,}", hardest)


def _tell_next(directory: Path, hardest: Sequence[str]) -> None:
    where = _shown(directory)
    journal = os.path.join(where, f"{NAME}_results.jsonl")
    read = (
        f"from checkpoint import CheckpointedRunner; print(CheckpointedRunner({json.dumps(NAME)}, {json.dumps(where)})"
    )
    python = [_shown(Path(sys.executable)), "-c"]
    first = hardest[0] if hardest else "ast"
    windows = sys.platform == "win32"
    commands = [
        (["more", journal] if windows else ["head", "-n", "3", journal], "the results, one a line"),
        ([*python, f"{read}.get_result({json.dumps(first)}))"], "one of them in Python"),
        ([*python, f"{read}.progress())"], "how many there are"),
        (_same_command(directory), "runs nothing again: all is done"),
        (["rmdir", "/s", "/q", where] if windows else ["rm", "-r", where], "to start over"),
    ]
    _say("", f"The files are in {where}{os.sep}. Try next:")
    for command, why in commands:
        _say(f"  # {why}", f"  {_quoted(command)}")


def _same_command(directory: Path) -> list[str]:
    begin = Path(sys.argv[0])
    start = [_shown(Path(sys.executable)), "-m", "checkpoint"] if begin.name == "__main__.py" else [_shown(begin)]
    return [*start, "demo", *(["--dir", _shown(directory)] if directory != Path(DIRECTORY) else [])]


def _quoted(command: Iterable[str]) -> str:
    return subprocess.list2cmdline(command) if sys.platform == "win32" else shlex.join(command)


def _shown(path: Path) -> str:
    """As short as it can be typed here."""
    try:
        return str(Path(os.path.abspath(path)).relative_to(Path.cwd()))
    except ValueError:
        return str(path)
