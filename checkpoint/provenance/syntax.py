"""Read the code of a function: a digest of its syntax, and its literals.

The promise: comments, docstrings, formatting and annotations do not count, nor does the Python that runs. The digest is
that of the code which runs: sources are kept as they were when they were first seen, and one that does not compile to
the code at hand is not used. Where there is none, the code object is read instead, and that differs between Pythons.
"""

from __future__ import annotations

import ast
import dis
import linecache
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache, partial
from hashlib import blake2b
from types import CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple

from checkpoint import locks
from checkpoint.provenance.literals import CODE, TEXT, Literal, Places, is_text, pieces_of

__all__ = [
    "PYTHON", "Syntax", "constants_of", "hashed", "instructions_of", "is_own_file", "keep_sources", "syntax_of",
]  # fmt: skip

PYTHON = f"py{sys.version_info[0]}{sys.version_info[1]}"  # whose code objects these are

_FUTURES = annotations.compiler_flag  # the only one that changes what is compiled


def hashed(text: str) -> str:
    """32 hex digits that stand for a text."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


# --- what is the user's own ------------------------------------------------------------------------------------------

_FOREIGN = tuple(
    os.path.normcase(os.path.join(os.path.realpath(os.path.dirname(path)), ""))
    for path in (os.__file__, os.path.dirname(__file__))
)


@lru_cache(maxsize=1 << 16)  # each pass on workers asks for every imported module: more than there are of them
def is_own_file(path: str) -> bool:
    """Whether a file is the user's own: neither Python's, nor installed, nor this package's."""
    if path.startswith("<"):
        return not path.startswith("<frozen")  # a notebook, a prompt, or exec
    try:
        whole = os.path.normcase(os.path.realpath(path))
    except ValueError:  # no path at all
        return True
    return not whole.startswith(_FOREIGN) and not re.search(r"[/\\](?:site|dist)-packages[/\\]", whole)


# --- syntax ----------------------------------------------------------------------------------------------------------

_NOT_CODE = frozenset({"annotation", "returns", "type_comment", "type_params", "type_ignores", "kind", "ctx"})
_OUTSIDE = frozenset({"name", "decorator_list"})
_CLOSES = re.compile(r"[\s#)\]}]|(?:else|elif|except|finally)\b|$")
_parsing = locks.lock("parsing")  # the filters of warnings are one for all threads


_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


class Syntax(NamedTuple):
    """A function's syntax: its digest without the literals that are values, and all its literals."""

    digest: str
    literals: tuple[Literal, ...]


def syntax_of(code: CodeType, scope: dict[str, Any] | None = None) -> Syntax | None:
    """The syntax that the code was compiled from; None where there is no source, or one that was edited since.

    Args:
        code: of a function.
        scope: its globals, where the loader of its module is found: a zip file has sources, too.
    """
    path = code.co_filename
    return _syntax_of(code, path, _keep(path, scope).count)


@lru_cache(maxsize=4096)
def _syntax_of(code: CodeType, path: str, count: int) -> Syntax | None:  # code of two files may be equal
    for lines in _sources[path].kept:
        if not 0 < code.co_firstlineno <= len(lines):
            continue
        for first, last in _extents(lines, code.co_firstlineno - 1):
            text = "\n" * first + "".join(lines[first:last])
            for node, made in _compiled(text, path, code.co_flags & _FUTURES):
                if _is_same(made, code):
                    return _described(node)
        if (found := _rewritten(lines, path, code)) is not None:
            return _described(found)
    return None


def _described(node: _Function) -> Syntax | None:
    try:
        spelling = _Spelling(node)
        return Syntax(hashed(spelling.spell(node)), tuple(spelling.literals))
    except RecursionError:
        return None


# --- sources ---------------------------------------------------------------------------------------------------------

_MOST_SOURCES = 8  # of one file, that are kept: it may be edited and loaded again any number of times


class _Sources:
    """The sources of one file: as it was first seen, and as it was last.

    Attributes:
        kept: lines, of each.
        count: how many there have been.
    """

    def __init__(self) -> None:
        self.kept: list[list[str]] = []
        self.count = 0

    def add(self, lines: list[str]) -> None:
        """Keep lines that are new."""
        if lines and not any(lines is one or lines == one for one in self.kept):
            self.kept = [*self.kept[:1], *self.kept[max(1, len(self.kept) - _MOST_SOURCES + 2) :], lines]
            self.count += 1


_sources: dict[str, _Sources] = {}  # by path


def keep_sources(function: Any) -> None:
    """Keep the sources of a function's module, and of the user's own modules that it uses, as they are on disk now.

    A file that is edited while the job still loads its data speaks for the next run, and not for this one.
    """
    while isinstance(function, partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if type(function) is not FunctionType:
        function = next((vars(base)["__call__"] for base in type(function).__mro__ if "__call__" in vars(base)), None)
    todo: list[Any] = []
    while type(function) is FunctionType:
        _keep(function.__code__.co_filename, function.__globals__)
        todo.append(function.__globals__)
        function = function.__dict__.get("__wrapped__")
    seen: set[int] = set()
    while todo:
        scope = todo.pop()
        if id(scope) in seen:
            continue
        seen.add(id(scope))
        path = scope.get("__file__")
        if type(path) is str:
            if not is_own_file(path):
                continue
            _keep(path, scope)
        for value in list(scope.values()):
            if type(value) is ModuleType:
                todo.append(value.__dict__)
            elif type(value) is FunctionType:
                todo.append(value.__globals__)


def _keep(path: str, scope: dict[str, Any] | None) -> _Sources:
    """Keep the source of a file as it is now, where it differs from those that are kept."""
    lines: list[str] = []
    with suppress(ValueError, OSError, ImportError):  # no path at all, or a loader that cannot
        linecache.checkcache(path)
        lines = linecache.getlines(path, scope)
    if not lines and path == "<string>" and "-c" in sys.orig_argv[:-1]:
        lines = sys.orig_argv[sys.orig_argv.index("-c") + 1].splitlines(keepends=True)
    sources = _sources.setdefault(path, _Sources())
    sources.add(lines)
    return sources


def _extents(lines: list[str], at: int) -> Iterator[tuple[int, int]]:
    """Where the statement at the margin that holds a line may begin and end, and then the whole file."""
    first = at
    while first and _CLOSES.match(lines[first]):
        first -= 1
    last = at
    while last < len(lines) and lines[last].startswith("@"):
        last += 1
    last += 1
    while last < len(lines) and _CLOSES.match(lines[last]):
        last += 1
    yield first, last
    yield 0, len(lines)


@lru_cache(maxsize=8)
def _compiled(text: str, path: str, flags: int) -> list[tuple[_Function, CodeType]]:
    """Each function of a source, with its code."""
    try:
        with _parsing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
            codes = _codes_within(compile(tree, path, "exec", flags, dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return _matched(tree, codes)


def _matched(tree: ast.Module, codes: list[CodeType]) -> list[tuple[_Function, CodeType]]:
    by_place: defaultdict[tuple[str, int], list[_Function]] = defaultdict(list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda):
            by_place["<lambda>", node.lineno].append(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            by_place[node.name, first].append(node)
    found = [(_innermost(code, by_place[code.co_name, code.co_firstlineno]), code) for code in codes]
    return [(node, code) for node, code in found if node is not None]


def _innermost(code: CodeType, nodes: list[_Function]) -> _Function | None:
    """The one of several functions on a line that the code is of."""
    if len(nodes) < 2:
        return nodes[0] if nodes else None
    places = [place for place in code.co_positions() if None not in place and place[3]]
    begins, ends = [place[::2] for place in places], [place[1::2] for place in places]
    around = [node for node in nodes if places and _begin(node) <= min(begins) and max(ends) <= _end(node)]
    return max(around, key=_begin, default=None)


def _rewritten(lines: list[str], path: str, code: CodeType) -> _Function | None:
    """The function in a source whose assertions pytest has rewritten: the code is not that of the source."""
    pytest = sys.modules.get("_pytest.assertion.rewrite")
    if pytest is None or "@pytest_ar" not in code.co_names:
        return None
    for tree, made in _rewritten_by(pytest, "".join(lines), path, code.co_flags & _FUTURES):
        if _is_same(made, code):
            return tree
    return None


@lru_cache(maxsize=8)
def _rewritten_by(pytest: ModuleType, source: str, path: str, flags: int) -> list[tuple[_Function, CodeType]]:
    try:
        with _parsing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree, plain = ast.parse(source), ast.parse(source)
            pytest.rewrite_asserts(tree, source.encode("utf-8", "surrogatepass"), path)
            codes = _codes_within(compile(tree, path, "exec", flags, dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return _matched(plain, codes)


def _begin(node: _Function) -> tuple[int, int]:
    body = node.body[0] if isinstance(node.body, list) else node.body
    return body.lineno, body.col_offset


def _end(node: _Function) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _codes_within(code: CodeType) -> list[CodeType]:
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return inner + [found for one in inner for found in _codes_within(one)]


def _is_same(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects do the same, at the same line; `==` compares columns too."""
    if any(getattr(one, name) != getattr(other, name) for name in _ALIKE) or len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _is_same(mine, theirs)
        if isinstance(mine, CodeType) and isinstance(theirs, CodeType)
        else (type(mine), repr(mine)) == (type(theirs), repr(theirs)) or mine == theirs
        for mine, theirs in zip(one.co_consts, other.co_consts, strict=True)
    )


_ALIKE = (
    "co_name", "co_firstlineno", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount",
    "co_kwonlyargcount", "co_posonlyargcount",
)  # fmt: skip


class _Spelling:
    """The syntax in words of our own, since `ast.dump` differs between Pythons; literals that are values stand apart.

    Attributes:
        literals: of the body, in their order.
    """

    def __init__(self, tree: _Function) -> None:
        self.literals: list[Literal] = []
        self._tree = tree
        self._places = Places(tree)

    def spell(self, node: Any, name: str = "", quiet: bool = False) -> str:
        """The words for a node.

        Args:
            node: a node, a list of such, or a plain field.
            name: of the variable or argument that it is a part of.
            quiet: whether it stands where no literal is a value.
        """
        if isinstance(node, list):
            return f"[{' '.join(self.spell(one, name, quiet) for one in node if not _is_idle(one))}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        quiet, name = quiet or id(node) in self._places.quiet, self._places.names.get(id(node), name)
        if not quiet and (given := self._places.keyword(node)) is not None:
            self.literals.append(given)
            return "Literal()"
        if (pieces := pieces_of(node)) is not None:
            return self._spell_text(node, pieces, name, quiet)
        if (value := _number_of(node)) is not _NONE:
            self._add_code(node, value)
            return _spell_constant(value)
        return self._spell_fields(node, name, quiet)

    def _spell_text(self, node: ast.AST, pieces: list[str | ast.AST], name: str, quiet: bool) -> str:
        text = self._places.text_of(node, pieces)
        is_value = not quiet and is_text("".join(piece if isinstance(piece, str) else "{}" for piece in pieces))
        if is_value:
            self.literals.append(Literal(TEXT, name, text))
        else:
            self._add_code(node, text)
        told = [
            self.spell(piece, name, quiet) if not isinstance(piece, str) else "." if is_value else repr(piece)
            for piece in pieces
        ]
        return f"Text({' '.join(told)})"

    def _spell_fields(self, node: ast.AST, name: str, quiet: bool) -> str:
        kind = "Assign" if isinstance(node, ast.AnnAssign) else type(node).__name__
        parts = []
        for field in node._fields:
            value = getattr(node, field, None)
            if value is None or value == [] or field in _NOT_CODE or (node is self._tree and field in _OUTSIDE):
                continue
            if isinstance(node, ast.AnnAssign):
                if field == "simple":
                    continue
                if field == "target":
                    field, value = "targets", [value]
            if node is self._tree and isinstance(value, ast.arguments):
                value = _without_defaults(value)
            parts.append(f"{field}={self.spell(value, name, quiet)}")
        return f"{kind}({' '.join(parts)})"

    def _add_code(self, node: ast.AST, value: Any) -> None:
        self.literals.append(Literal(CODE, self._places.names.get(id(node), ""), value))


def _is_idle(node: Any) -> bool:
    """Whether a statement does nothing: a docstring, `pass`, a bare annotation."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.AnnAssign) and node.value is None)


def _without_defaults(arguments: ast.arguments) -> ast.arguments:
    """Defaults of the function itself are values; how many there are is told by what calls do."""
    kept = {name: getattr(arguments, name) for name in arguments._fields if name not in ("defaults", "kw_defaults")}
    return ast.arguments(**kept, defaults=[], kw_defaults=[])


_NONE = object()


def _number_of(node: ast.AST) -> Any:
    """The constant that a node is, with its sign; `_NONE` where it is none."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and isinstance(node.operand, ast.Constant):
        value: Any = node.operand.value
        return -value if type(value) in (int, float, complex) else _NONE
    return _NONE


def _spell_constant(value: Any) -> str:
    text = hex(value) if type(value) is int else repr(value)
    return f"{type(value).__name__}:{text}"


# --- code objects, where there is no source --------------------------------------------------------------------------

_HAS_DOCSTRING = 0x4000000  # from Python 3.13 on


@lru_cache(maxsize=4096)
def instructions_of(code: CodeType) -> str:
    """The digest of a code object: its instructions by name, with what they refer to; docstrings left out."""
    docstring = _docstring_of(code)
    told = [str(getattr(code, name)) for name in ("co_argcount", "co_kwonlyargcount", "co_posonlyargcount")]
    told += [" ".join(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])]
    for step in dis.get_instructions(code):
        if step.opname in ("RESUME", "NOP", "CACHE", "EXTENDED_ARG"):
            continue
        value = step.argval
        if isinstance(value, CodeType):
            value = instructions_of(value)
        elif isinstance(value, frozenset):
            value = sorted(map(_spell_constant, value))
        elif step.opcode in dis.hasconst:
            value = "docstring" if value is docstring and docstring is not None else _spell_constant(value)
        told.append(f"{step.opname} {value}")
    return hashed("\n".join(told))


@lru_cache(maxsize=4096)
def constants_of(code: CodeType) -> tuple[Literal, ...]:
    """The constants of a code object, and of all code within it: texts that say what is computed, and others."""
    docstring = _docstring_of(code)
    found: dict[str, Literal] = {}
    todo: list[Any] = list(code.co_consts)
    while todo:
        one = todo.pop(0)
        if isinstance(one, CodeType):
            todo[:0] = constants_of(one)
        elif isinstance(one, Literal):
            found[repr(one)] = one
        elif isinstance(one, (tuple, frozenset)):
            todo[:0] = one if isinstance(one, tuple) else sorted(one, key=repr)
        elif one is not None and one is not docstring:
            literal = Literal(TEXT if type(one) is str and is_text(one) else CODE, "", one)
            found[repr(literal)] = literal
    return tuple(found.values())


def _docstring_of(code: CodeType) -> str | None:
    documented = sys.version_info < (3, 13) or code.co_flags & _HAS_DOCSTRING
    first = code.co_consts[0] if documented and code.co_consts else None
    return first if type(first) is str else None
