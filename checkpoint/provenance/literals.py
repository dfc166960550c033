"""Which literals of a function's body are values, as an edited prompt is, and how two readings of them differ.

The promise: a text of 20 characters or three words, and a literal that is given as a keyword argument, say what is
computed. Subscripts, lookups, comparisons, regular expressions, paths, and texts that only report do not: mending a
parser and running the failures again is daily work. All other literals are code, and are shown where they differ.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import SequenceMatcher
from typing import Any, NamedTuple

from checkpoint.values.secrets import SECRET, difference

__all__ = [
    "CODE", "KEYWORD", "TEXT", "Change", "Entry", "Literal", "Places", "changed_code", "changed_values", "is_text",
    "named", "pieces_of", "short_of",
]  # fmt: skip

TEXT, KEYWORD, CODE = "text", "keyword", "code"
_FIELD = "{}"  # stands for what an f-string or a concatenation fills in
_MOST_CODE = 100  # literals of one function that are kept to be shown
_NOTHING = object()


class Literal(NamedTuple):
    """A literal of a body: its kind, the variable or argument that it is given to, and its value.

    The value of an f-string, or of a concatenation, is its text with "{}" in the place of each part that varies.
    """

    kind: str
    name: str
    value: Any


class Entry(NamedTuple):
    """A literal as the journal keeps it: its value as a digest (empty for code), and how a message shows it."""

    kind: str
    name: str
    shown: str
    digest: str


# --- which texts count -----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W\d_]{1,}")
_UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\u0e00-\u0e7f]")  # scripts that set few spaces
_PATH = re.compile(r"(?!\w+://)\S*[/\\]\S*|[\w.{}*-]+\.[A-Za-z]\w{0,5}")
_NAME = re.compile(r"[a-z]+(?:[_.][a-z]+)+")  # of a field, a column, an attribute: what subscripts hold
_PATTERN = re.compile(r"\\[dDwWsSbB](?![A-Za-z])|\(\?[:P=!<aims]|\[\^|\.[*+]\?|\.[*+]\)|\]\s?[*+?{]|^\^|\\[.()\[\]]")


def is_text(text: str) -> bool:
    """Whether a text says what is computed, by its looks: a prompt, a query, a name of a model.

    Words of scripts that set no spaces are reckoned as two characters each.
    """
    plain = text.replace(_FIELD, " ")
    words = sum(1 for part in plain.split() if _WORD.search(part)) + len(_UNSPACED.findall(plain)) // 2
    if not _WORD.search(plain) or not (words >= 3 or len(plain.strip()) >= 20):
        return False
    if _NAME.fullmatch(text) or _PATH.fullmatch(text.strip()):
        return False
    return words >= 12 or not _PATTERN.search(text)


def pieces_of(node: ast.AST) -> list[str | ast.AST] | None:
    """The parts of a text, an f-string or a concatenation with one: texts, and what varies; None for anything else.

    Texts that stand side by side are one, as they are to the compiler, and empty ones are none.
    """
    found: list[str | ast.AST] = []
    has_text, todo = False, [node]
    while todo:
        one = todo.pop()
        if isinstance(one, ast.Constant) and type(one.value) is str:
            has_text = True
            if found and isinstance(found[-1], str):
                found[-1] += one.value
            elif one.value:
                found.append(one.value)
        elif isinstance(one, ast.JoinedStr):
            has_text = True
            todo += reversed(one.values)
        elif isinstance(one, ast.BinOp) and isinstance(one.op, ast.Add):
            todo += (one.right, one.left)
        else:
            found.append(one)
    return found if has_text else None


# --- where they stand ------------------------------------------------------------------------------------------------

_REPORTS = frozenset({
    "debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "log", "print", "pprint", "echo",
    "secho", "print_exc", "tqdm", "trange", "set_description", "set_description_str", "set_postfix", "set_postfix_str",
    "add_note", "deprecated", "getLogger", "fail", "skip",
})  # fmt: skip
_LOOKS = (
    "get", "pop", "setdefault", "getenv", "get_text", "startswith", "endswith", "removeprefix", "removesuffix", "split",
    "rsplit", "partition", "rpartition", "find", "rfind", "index", "rindex", "find_all", "findall", "findtext",
    "iterfind", "finditer", "select", "select_one", "xpath", "css", "cssselect", "strip", "lstrip", "rstrip", "count",
    "strptime", "strftime", "encode", "decode", "open", "Path", "PurePath", "import_module", "isin", "__import__",
    "replace",
)  # fmt: skip
_LOOKUPS = dict.fromkeys(_LOOKS, 1) | dict.fromkeys(("getattr", "hasattr", "setattr", "delattr", "isinstance"), 2)
_MODULES = frozenset({"re", "regex", "re2", "glob", "fnmatch", "path", "warnings", "logging", "logger", "log"})
_MANNER = frozenset({
    "timeout", "retries", "max_retries", "verbose", "progress", "show_progress", "desc", "n_jobs", "workers",
    "max_workers", "num_workers", "exist_ok", "parents", "missing_ok", "exc_info", "stacklevel", "flush", "daemon",
    "help", "stdout", "stderr",
})  # fmt: skip
_TRIMS: dict[str, Callable[[str], str]] = {"dedent": textwrap.dedent, "cleandoc": inspect.cleandoc}
_Names = ast.Name | ast.Attribute


class Places:
    """Where each literal of a function stands.

    Attributes:
        names: variables and arguments, by the id of the node that is given to them.
        keywords: the same, as "call(argument)", of literals that are given as keyword arguments.
        quiet: ids of nodes in which no literal is a value.
        trims: what is done to a text at once, by the id of its node: dedent(), cleandoc(), .strip().
    """

    def __init__(self, tree: ast.AST) -> None:
        self.names: dict[int, str] = {}
        self.keywords: dict[int, str] = {}
        self.quiet: set[int] = set()
        self.trims: dict[int, Callable[[str], str]] = {}
        for node in ast.walk(tree):
            self._place(node)

    def _place(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            self.names[id(node.value)] = _last_name(node.targets[0])
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
            self.names[id(node.value)] = _last_name(node.target)
        elif isinstance(node, (ast.Raise, ast.Assert, ast.MatchValue)):
            self.quiet.add(id(node))
        elif isinstance(node, ast.Subscript):
            self.quiet.add(id(node.slice))
        elif isinstance(node, ast.Compare):
            self.quiet.update(id(one) for one in (node.left, *node.comparators) if literal_of(one) is not _NOTHING)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                self.quiet.add(id(key))
                if isinstance(key, ast.Constant) and type(key.value) is str:
                    self.names[id(value)] = key.value
        elif isinstance(node, ast.Call):
            self._place_call(node)

    def _place_call(self, node: ast.Call) -> None:
        callee = _last_name(node.func)
        of = {_root_name(node.func), _last_name(node.func.value)} if isinstance(node.func, ast.Attribute) else set()
        if callee in _REPORTS or callee.endswith(("Error", "Exception", "Warning")) or of & _MODULES:
            self.quiet.update(map(id, [*node.args, *node.keywords]))
        elif callee in _LOOKUPS:
            self.quiet.update(map(id, node.args[: _LOOKUPS[callee]]))
            if callee.startswith("find"):
                self.quiet.update(map(id, node.keywords))
        if callee in _TRIMS and len(node.args) == 1:
            self.trims[id(node.args[0])] = _TRIMS[callee]
        elif callee == "strip" and not node.args and isinstance(node.func, ast.Attribute):
            self.trims[id(node.func.value)] = str.strip
        for keyword in node.keywords:
            if keyword.arg:
                self.names[id(keyword.value)] = keyword.arg
                if keyword.arg in _MANNER:
                    self.quiet.add(id(keyword))
                else:
                    self.keywords[id(keyword.value)] = f"{callee}({keyword.arg})"

    def keyword(self, node: ast.AST) -> Literal | None:
        """The literal, where it is given as a keyword argument; texts within a container count by themselves."""
        name = self.keywords.get(id(node))
        if name is None:
            return None
        if (pieces := pieces_of(node)) is not None:
            if len(pieces) > 1 or (pieces and not isinstance(pieces[0], str)):
                return None
            text = self.text_of(node, pieces)
            return Literal(TEXT, self.names[id(node)], text) if is_text(text) else Literal(KEYWORD, name, text)
        value = literal_of(node)
        if value is _NOTHING or any(
            isinstance(one, ast.Constant) and type(one.value) is str and is_text(one.value) for one in ast.walk(node)
        ):
            return None
        return Literal(KEYWORD, name, value)

    def text_of(self, node: ast.AST, pieces: list[str | ast.AST]) -> str:
        """The text that is made of pieces, trimmed as the code does at once."""
        text = "".join(piece if isinstance(piece, str) else "\0" for piece in pieces)
        return self.trims.get(id(node), str)(text).replace("\0", _FIELD)


def short_of(literals: Iterable[Literal]) -> list[Literal]:
    """All literals that are values, and as many of the others as are kept to be shown."""
    left, found = _MOST_CODE, []
    for one in literals:
        left -= one.kind == CODE
        if one.kind != CODE or left >= 0:
            found.append(one)
    return found


# --- how two readings differ -----------------------------------------------------------------------------------------


class Change(NamedTuple):
    """A value literal that an earlier code had, as a message shows it, and what stands in its place."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return difference(self.name, self.old, self.new)


_Entries = Mapping[str, list[Entry]]


def changed_values(
    old: _Entries, new: _Entries, pairs: Mapping[str, str], alike: Iterable[str], known: frozenset[str]
) -> list[Change]:
    """The values among literals that changed or are gone.

    Args:
        old: literals by function.
        new: the same, of the code as it is.
        pairs: functions of `old`, and each one's name in `new`.
        alike: those of them that differ in literals at most, so that each literal has its counterpart.
        known: digests of values that the code reads elsewhere: a text that moved into a constant is not gone.
    """
    alike = set(alike)
    found = [
        _change(one, other, pairs[label])
        for label in pairs
        if label in alike
        for one, other in zip(_values_in(old[label]), _values_in(new[pairs[label]]), strict=False)
        if one.digest != other.digest
    ]
    kept = {pairs[label] for label in alike}
    before = {label: _values_in(entries) for label, entries in old.items() if label not in alike}
    after = {label: _values_in(entries) for label, entries in new.items() if label not in kept}
    found += _changed_texts(before, after, pairs, _digests(old), _digests(new) | known)
    found += _changed_keywords(before, after)
    return list(dict.fromkeys(found))


def _changed_texts(
    before: _Entries, after: _Entries, pairs: Mapping[str, str], was: frozenset[str], there: frozenset[str]
) -> Iterator[Change]:
    """Each text that is gone, with the new one that most likely replaces it."""
    came = [
        (label, entry)
        for label, entries in after.items()
        for entry in {entry.digest: entry for entry in entries if entry.kind == TEXT}.values()
        if entry.digest not in was
    ]
    for label, entries in before.items():
        for entry in entries:
            if entry.kind != TEXT or entry.digest in there:
                continue
            home = pairs.get(label, label)
            ranked = sorted(came, key=lambda one: (one[0] != home, one[1].name != entry.name))
            if ranked and (ranked[0][0] == home or label not in pairs):
                came.remove(ranked[0])
                yield _change(entry, ranked[0][1], home)
            else:
                yield Change(named(entry, home), entry.shown, "it is gone")


def _changed_keywords(before: _Entries, after: _Entries) -> Iterator[Change]:
    """Each argument that was given one literal and is given another; one that comes or goes is code."""
    olds, news = _by_name(before), _by_name(after)
    for name, given in olds.items():
        gone = [one for digest, one in given.items() if digest not in news.get(name, {})]
        came = [one for digest, one in news.get(name, {}).items() if digest not in given]
        for (_, old), (label, new) in zip(gone, came, strict=False):
            yield _change(old, new, label)


def _by_name(entries: _Entries) -> dict[str, dict[str, tuple[str, Entry]]]:
    found: dict[str, dict[str, tuple[str, Entry]]] = {}
    for label, given in entries.items():
        for entry in given:
            if entry.kind == KEYWORD:
                found.setdefault(entry.name, {})[entry.digest] = (label, entry)
    return found


def changed_code(old: list[Entry], new: list[Entry]) -> list[str]:
    """The literals of a function's code that differ, as "name: old → new", where each has its counterpart."""
    was, now = ([(one.name, one.shown) for one in entries if one.kind == CODE] for entries in (old, new))
    found = []
    for what, a, b, c, d in SequenceMatcher(None, was, now, autojunk=False).get_opcodes():
        if what == "replace" and b - a == d - c:
            for (name, before), (_, after) in zip(was[a:b], now[c:d], strict=True):
                if before != after and SECRET not in (before, after):  # an earlier version hid it in other words
                    found.append(difference(name, before, after).removeprefix(": "))
    return found


def _values_in(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.kind != CODE]


def _digests(entries: _Entries) -> frozenset[str]:
    return frozenset(entry.digest for given in entries.values() for entry in given if entry.digest)


def _change(old: Entry, new: Entry, label: str) -> Change:
    """What a message says of two literals; where what is shown of both is the same, parts of their digests follow."""
    if old.shown != new.shown or new.shown == SECRET:
        return Change(named(old, label), old.shown, new.shown)
    return Change(named(old, label), f"{old.shown} [{old.digest[:6]}]", f"{new.shown} [{new.digest[:6]}]")


def named(entry: Entry, label: str) -> str:
    """The name of a literal in messages and in `ignore=`: the variable or argument, and the function."""
    return f"{entry.name or 'a text'} in {label.partition(' in ')[0]}"


def literal_of(node: ast.AST) -> Any:
    """The value of a literal, of numbers, texts and containers of such; `_NOTHING` where it is none."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return _NOTHING


def _last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _root_name(node: ast.AST) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
