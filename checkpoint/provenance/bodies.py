"""The code of a function and of the functions that it calls: what a journal keeps of it, and how two such differ.

The promise: code is compared as syntax where both have a source that fits, else as code objects of one Python, and the
same in either way is the same. What can be compared in neither way is said to be so. Literals that are values are
compared in every case: in a code object its texts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from types import CodeType, MappingProxyType
from typing import Any, NamedTuple

from checkpoint.errors import shorten
from checkpoint.provenance.literals import (  # fmt: skip
    CODE,
    TEXT,
    Change,
    Entry,
    Literal,
    changed_code,
    changed_values,
    is_text,
    named,
    short_of,
)
from checkpoint.provenance.syntax import PYTHON, Syntax, constants_of, hashed, instructions_of, syntax_of
from checkpoint.values.canonical import canonical
from checkpoint.values.secrets import SECRET, is_opaque, is_secret, is_secret_text

__all__ = ["Bodies", "BodyReader", "Compared", "compare", "counterparts", "texts_within"]

_FIELDS = re.compile(r"\{[^{}]*\}")
_MOST_TEXT = 60
_MOST_CODE = 24
_MOST_PARTS = 10_000


class CodeObject(NamedTuple):
    """A function as the interpreter runs it: its instructions, and digests of its texts."""

    digest: str
    texts: tuple[str, ...]  # that say what is computed
    others: tuple[str, ...] = ()  # that stand where no literal is a value, as far as the source tells


@dataclass(frozen=True, slots=True)
class Bodies:
    """Functions by label, "name() in file", the mapped one first.

    Attributes:
        parts: digests of syntax, without the literals that are values; of a code object, with its Python, "py311:…".
        literals: of each, in their order.
        objects: code objects, whether there is a source or not.
        python: that made these.
        secrets: of each function, the digests of its literals that are secrets: plain ones, which are not kept.
    """

    parts: dict[str, str]
    literals: dict[str, list[Entry]]
    objects: dict[str, CodeObject]
    python: str
    secrets: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, detail: Any) -> Bodies:
        """Bodies as `detail` gave them; any error of a lookup or of a type where they are not sound."""
        return cls(
            dict(detail["parts"]),
            {label: [Entry(*entry) for entry in entries] for label, entries in detail["literals"].items()},
            {label: CodeObject(one[0], tuple(one[1:])) for label, one in detail["objects"].items()},
            detail["python"],
        )

    def detail(self) -> dict[str, Any]:
        """The bodies as JSON."""
        return {
            "parts": self.parts,
            "literals": {label: [list(entry) for entry in entries] for label, entries in self.literals.items()},
            "objects": {label: [one.digest, *one.texts] for label, one in self.objects.items()},
            "python": self.python,
        }

    def code(self) -> list[str]:
        """Lines for a digest of the code."""
        return [f"{name}={self.parts[label]}" for label, name in self._names().items()]

    def values(self) -> list[str]:
        """Lines for a digest of the literals that are values."""
        lines = []
        for label, name in self._names().items():
            if digests := [one.digest for one in self.literals[label] if one.kind != CODE]:
                lines.append(f"{name}() {' '.join(digests)}")
        return lines

    def names(self) -> list[str]:
        """Variables and arguments that are given literals which are values."""
        return [name for label, entries in self.literals.items() for one in entries for name in _names_of(one, label)]

    def without(self, is_ignored: Callable[[str], bool], labels: Mapping[str, str] = MappingProxyType({})) -> Bodies:
        """The same, less the literals that are given to some names.

        Args:
            is_ignored: whether a name is one of these.
            labels: what functions are called in names, where that is another label than they have here.
        """
        literals = {
            label: [one for one in entries if not any(map(is_ignored, _names_of(one, labels.get(label, label))))]
            for label, entries in self.literals.items()
        }
        return replace(self, literals=literals)

    def sealed(self, mine: Mapping[str, Mapping[str, str]]) -> Bodies:
        """The same with other digests of literals.

        Args:
            mine: by function, the digests that are replaced, and by which.
        """
        literals, objects = dict(self.literals), dict(self.objects)
        for label in mine.keys() & self.parts.keys():
            new, one = mine[label], objects[label]
            literals[label] = [
                entry._replace(digest=new[entry.digest], shown=SECRET) if entry.digest in new else entry
                for entry in literals[label]
            ]
            texts, others = (tuple(new.get(digest, digest) for digest in part) for part in (one.texts, one.others))
            objects[label] = CodeObject(one.digest, texts, others)
        return replace(self, literals=literals, objects=objects)

    def _names(self) -> dict[str, str]:
        """How digests name functions: not by their files, and the mapped one and its class not at all."""
        names = {label: label.partition("(")[0] for label in self.parts}
        own = next(iter(names.values()), "")
        prefix = own.rpartition(".")[0]
        return {label: "" if name == own else name.removeprefix(prefix) for label, name in names.items()}


def _names_of(entry: Entry, label: str) -> list[str]:
    """The names of a literal, as `ignore=` may have them: the one in messages, and shorter ones.

    Args:
        entry: the literal.
        label: of the function that it stands in.
    """
    if entry.kind == CODE:
        return []
    call, _, argument = entry.name.rstrip(")").partition("(")
    short = [argument, f"{call}.{argument}"] if argument else [call] if call else []
    return [*short, named(entry, label)]


class BodyReader:
    """Reads functions, one after the other."""

    def __init__(self) -> None:
        self._parts: dict[str, list[str]] = {}
        self._literals: dict[str, list[Entry]] = {}
        self._objects: dict[str, list[CodeObject]] = {}
        self._secrets: dict[str, frozenset[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, label: str, code: CodeType, scope: dict[str, Any]) -> Syntax | None:
        """Read one function: its syntax, where its source fits.

        Args:
            label: "name() in file"; functions of one name and file count together.
            code: of the function.
            scope: its globals.
        """
        syntax = syntax_of(code, scope)
        entries, found, secrets = _said_by(code, syntax)
        self._parts.setdefault(label, []).append(f"{PYTHON}:{found.digest}" if syntax is None else syntax.digest)
        self._literals.setdefault(label, []).extend(entries)
        self._objects.setdefault(label, []).append(found)
        if secrets:
            self._secrets[label] = self._secrets.get(label, frozenset()) | secrets
        return syntax

    def bodies(self) -> Bodies:
        """All that were read."""
        return Bodies(
            {label: _joined(digests) for label, digests in self._parts.items()},
            self._literals,
            {label: _joined_objects(given) for label, given in self._objects.items()},
            PYTHON,
            self._secrets,
        )


_Said = tuple[list[Entry], CodeObject, frozenset[str]]
_said: dict[tuple[CodeType, str, str], _Said] = {}
_MOST_SAID = 4096


def _said_by(code: CodeType, syntax: Syntax | None) -> _Said:
    """The literals of a code object, the object itself, and the digests of its secrets, worked out once."""
    place = (code, code.co_filename, "" if syntax is None else syntax.digest)
    if (known := _said.get(place)) is not None:
        return known
    constants = constants_of(code)
    texts = {one.value: _digest_of(one.value) for one in constants if one.kind == TEXT}
    literals = constants if syntax is None else syntax.literals
    quiet = {piece for one in literals if one.kind == CODE for piece in str(one.value).split("{}")}
    found = CodeObject(
        instructions_of(code),
        tuple(digest for text, digest in texts.items() if text not in quiet),
        tuple(digest for text, digest in texts.items() if text in quiet),
    )
    if len(_said) >= _MOST_SAID:
        _said.clear()
    entries = [_entry(literal) for literal in short_of(literals)]
    secrets = {entry.digest for entry in entries if entry.shown == SECRET} - {""}
    secrets.update(digest for text, digest in texts.items() if is_secret_text(text))
    _said[place] = entries, found, frozenset(secrets)
    return _said[place]


def _joined(digests: list[str]) -> str:
    """One digest for the functions of one name."""
    if len(digests) == 1:
        return digests[0]
    joined = hashed("\n".join(sorted(digests)))
    return f"{PYTHON}:{joined}" if any(":" in digest for digest in digests) else joined


def _joined_objects(given: list[CodeObject]) -> CodeObject:
    if len(given) == 1:
        return given[0]
    texts, others = (tuple(text for one in given for text in one[place]) for place in (1, 2))
    return CodeObject(hashed("\n".join(sorted(one.digest for one in given))), texts, others)


# --- literals --------------------------------------------------------------------------------------------------------


def _entry(literal: Literal) -> Entry:
    """A literal as the journal keeps it."""
    kind, name, value = literal
    if kind == CODE:
        return Entry(kind, name, _shown(name, value, _MOST_CODE), "")
    return Entry(kind, name, _shown(name, value, _MOST_TEXT), _digest_of(value))


def _digest_of(value: Any) -> str:
    """The digest of a literal; a text has the one that it has as the value of a variable."""
    data = canonical(value) if type(value) is str else repr(_ordered(value)).encode("utf-8", "surrogatepass")
    return hashed(value) if data is None else blake2b(data, digest_size=16).hexdigest()


def _ordered(value: Any) -> Any:
    """A literal whose spelling is the same in each process: sets have an order of their own there."""
    if type(value) is set:
        return ("set", sorted(map(repr, value)))
    if type(value) in (list, tuple):
        return (type(value).__name__, *map(_ordered, value))
    return {name: _ordered(part) for name, part in value.items()} if type(value) is dict else value


def _shown(name: str, value: Any, most: int) -> str:
    """A literal as messages show it: of a long text both ends, and of a secret nothing."""
    if is_secret(name, value):
        return SECRET
    if type(value) in (int, float, complex, bool, type(None)):
        return shorten(repr(value), most)
    told = value if type(value) is str else repr(value)
    if is_opaque(told) or type(value) is bytes:
        return f"a {type(value).__name__} of {len(told):,} characters"
    if type(value) is not str:
        return shorten(told, most)
    if len(value) <= most:
        return repr(value)
    return f"{value[: most // 2]!r} … {value[-most // 4 :]!r} ({len(value):,} characters)"


def texts_within(values: Iterable[Any]) -> set[str]:
    """The digests of texts, in containers too, and of what f-strings are that are made of them.

    So a text is not gone that moved into a constant: `f"Sum up: {x}"` into "Sum up: " or "Sum up: {x}".
    """
    found: set[str] = set()
    todo, left = list(values), _MOST_PARTS
    while todo and left > 0:
        one = todo.pop()
        left -= 1
        if type(one) is str and is_text(one):
            for text in {one, _FIELDS.sub("{}", one)}:
                found.update(map(_digest_of, (text, text + "{}", "{}" + text, "{}" + text + "{}")))
        elif type(one) in (list, tuple, dict):
            todo += islice(one.values() if type(one) is dict else one, left)
    return found


# --- comparing -------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """How bodies differ.

    Attributes:
        values: literals that changed or are gone.
        code: functions whose code differs or cannot be compared, in words.
        same: whether there are the same functions with the same code.
    """

    values: list[Change]
    code: list[str]
    same: bool


class _Pair(NamedTuple):
    """A function of then and of now, by their labels, and how their code compares."""

    old: str
    new: str
    kinship: str  # "same", "changed", or "unknown"
    alike: bool  # whether each literal has its counterpart


def compare(then: Bodies, now: Bodies, known: Iterable[str]) -> Compared:
    """How bodies differ from what they were.

    Args:
        then: as they were.
        now: as they are.
        known: digests of values that the code reads: a text that moved into a constant is not gone.
    """
    pairs = _pairs(then, now)
    same = all(pair.kinship == "same" for pair in pairs) and len(pairs) == len(then.parts) == len(now.parts)
    return Compared(_changed_literals(then, now, pairs, set(known)), _changed_parts(then, now, pairs), same)


def counterparts(then: Bodies, now: Bodies) -> dict[str, str]:
    """The functions of then that are still there, by their labels, and what each is called now."""
    return {pair.old: pair.new for pair in _pairs(then, now)}


def _pairs(then: Bodies, now: Bodies) -> list[_Pair]:
    """The functions of then that are still there, under their own names or, unchanged, under others."""
    names = {label: label for label in then.parts if label in now.parts}
    free = {digest: label for label, digest in now.parts.items() if label not in names}
    for label, digest in then.parts.items():
        if label not in names and digest in free:
            names[label] = free.pop(digest)
    if then.python == now.python:  # a source that is run where there is none, as by exec
        objects = {now.objects[label].digest: label for label in free.values()}
        for label in [one for one in then.parts if one not in names]:
            if (found := objects.pop(then.objects[label].digest, None)) is not None:
                names[label] = found
    return [_pair(then, now, old, new) for old, new in names.items()]


def _pair(then: Bodies, now: Bodies, old: str, new: str) -> _Pair:
    before, after = then.parts[old], now.parts[new]
    if before == after:
        return _Pair(old, new, "same", True)
    if then.python == now.python and then.objects[old].digest == now.objects[new].digest:
        return _Pair(old, new, "same", False)
    is_told = ":" not in before + after or then.python == now.python
    return _Pair(old, new, "changed" if is_told else "unknown", False)


def _changed_literals(then: Bodies, now: Bodies, pairs: list[_Pair], known: set[str]) -> list[Change]:
    """The values among literals that differ; between a source and a code object, texts alone are compared."""
    old, new = dict(then.literals), dict(now.literals)
    for pair in pairs:
        is_object = [":" in parts[label] for parts, label in ((then.parts, pair.old), (now.parts, pair.new))]
        if pair.kinship == "same" and not pair.alike:
            old[pair.old] = new[pair.new] = []  # one code object, whose literals are the same
            known.update(entry.digest for entry in now.literals[pair.new])
        elif is_object in ([True, False], [False, True]):
            shown = {entry.digest: entry for entry in (*old[pair.old], *new[pair.new])}
            old[pair.old], new[pair.new] = (
                [shown.get(digest) or Entry(TEXT, "", "a text", digest) for digest in one.texts]
                for one in (then.objects[pair.old], now.objects[pair.new])
            )
            known.update(now.objects[pair.new].others)
    alike = {pair.old for pair in pairs if pair.kinship == "same" and pair.alike}
    return changed_values(old, new, {pair.old: pair.new for pair in pairs}, alike, frozenset(known))


def _changed_parts(then: Bodies, now: Bodies, pairs: list[_Pair]) -> list[str]:
    """The functions whose code differs, or cannot be compared, with the literals of their code."""
    found = []
    for pair in pairs:
        if pair.kinship == "unknown":
            found.append(
                f"{pair.new}, whose source is not that of the code which runs: {then.python} and {now.python} cannot "
                "be compared without it"
            )
        elif pair.kinship == "changed":
            literals = changed_code(then.literals[pair.old], now.literals[pair.new])
            shown = ", ".join(literals[:3]) + (", …" if len(literals) > 3 else "")
            found.append(f"{pair.new} ({shown})" if literals else pair.new)
    its, mine = next(iter(then.parts), ""), next(iter(now.parts), "")  # the mapped function itself
    old, new = _rest(then.parts, {pair.old for pair in pairs}), _rest(now.parts, {pair.new for pair in pairs})
    if its in old and mine in new:
        return [*found, f"{mine}, in place of {its}"]
    found += [f"{name}, which is called anew" for name in new]
    found += [f"{name}, which is no longer called" for name in old]
    return found


def _rest(parts: Mapping[str, str], paired: set[str]) -> list[str]:
    return [label for label in parts if label not in paired]
