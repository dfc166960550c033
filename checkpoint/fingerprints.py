"""What a function does, as a digest: its code, that of the user's own functions it calls, and the values they read.

The promise: comments, docstrings, formatting and annotations do not count; one code with the same values has one digest
in every process; nothing of the user's is called; and what cannot be read is left out, and is no error.

The user's own is what is neither Python's nor installed. Calls are followed by name, through globals, closures, default
values, partials, decorators that keep `__wrapped__`, modules and classes. What an object of an unknown class does, and
what is imported within a function, cannot be told.

A digest is ``2-CODE-VALUES``: the number of this algorithm, what the code comes to, what the values come to, with those
of its literals that are values. Code is compared as syntax, which all Pythons share. Where the source is not that of
the code which runs, code objects are compared, and what a digest stands for names their Python. Digests with other
beginnings tell nothing.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cached_property, partial, partialmethod
from hashlib import blake2b
from itertools import islice
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
    SimpleNamespace,
)
from typing import Any, NamedTuple
from uuid import UUID
from weakref import WeakKeyDictionary

import wrapt

from checkpoint.codecs import canonical
from checkpoint.errors import shorten
from checkpoint.literals import CODE, TEXT, Change, Entry, Literal, changed_code, changed_values, short_of
from checkpoint.syntax import PYTHON, Syntax, hashed, instructions_of, is_own_file, steps_of, syntax_of, texts_of

__all__ = ["Changes", "Fingerprint", "Value", "changes", "fingerprint", "is_told", "static_attributes"]

log = logging.getLogger("checkpoint")
_ALGORITHM = "2"
_DIGEST = re.compile(r"(2)-([0-9a-f]{32})-([0-9a-f]{32})")
_BUILDERS = frozenset({"__init__", "__new__", "__post_init__", "__setstate__", "__set_name__", "__init_subclass__"})
_MOST_FUNCTIONS = 1000
_MOST_PARTS = 10_000  # of a value, and 1,000 characters for one
_MOST_SHOWN = 60
_INCOMPARABLE = "nothing that can be compared"
_SECRET_NAME = re.compile(r"key|token|passw|pwd|secret|auth|cred|cookie|bearer|private|salt|dsn|signature", re.I)
_SECRET_TEXT = re.compile(r"://[^/\s]*@|(?=[A-Za-z]*\d)[A-Za-z0-9]{20}|^(?:sk|pk|ghp|xox\w)[-_]")


class Value(NamedTuple):
    """A JSON-like value that a function reads: its digest, and how a message shows it."""

    digest: str
    shown: str


class CodeObject(NamedTuple):
    """A function as the interpreter runs it: its instructions, and digests of its texts."""

    digest: str
    texts: tuple[str, ...]  # that say what is computed
    others: tuple[str, ...]  # that stand where no literal is a value, as far as the source tells


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a function's results depend on besides their items.

    Attributes:
        name: the function's.
        digest: as it stands in records.
        parts: digests of code, by function: of its syntax, or of its code object, with the Python that made it.
        values: what the code reads, by name.
        literals: of the functions' bodies, in their order.
        objects: code objects, by function, whether there is a source or not.
    """

    name: str
    digest: str
    parts: dict[str, str]
    values: dict[str, Value]
    literals: dict[str, list[Entry]]
    objects: dict[str, CodeObject]
    _function: Any = field(repr=False, compare=False)
    _bound: bool = field(repr=False, compare=False)
    _held: dict[str, Any] = field(repr=False, compare=False)

    def detail(self) -> dict[str, Any]:
        """What the digest stands for, as JSON."""
        return {
            "parts": self.parts,
            "values": {name: list(value) for name, value in self.values.items()},
            "literals": {label: [list(entry) for entry in entries] for label, entries in self.literals.items()},
            "python": PYTHON,
            "objects": {label: [one.digest, *one.texts] for label, one in self.objects.items()},
        }

    def moved(self) -> list[str]:
        """What a pass is found to have changed, after it: variables, each with what it was and is.

        A container that was changed in place, or an object's attribute, is state of the function, and no parameter of
        it: from here on it counts as what it was at first.
        """
        after = fingerprint(self._function, bound=self._bound)
        if after is None:
            return []
        moved = []
        for name, old in self.values.items():
            new = after.values.get(name)
            if new is None or new.digest == old.digest:
                continue
            held = self._held.get(name)
            if held is not None and held is after._held.get(name):
                _settle(self._function, name, held, old)
            else:
                moved.append(f"{name}: {old.shown} → {new.shown}")
        return moved


class Changes(NamedTuple):
    """How a function differs from what it was: values, as "name: old → new", and code, by function."""

    values: list[str]
    code: list[str]
    names: list[str]


def is_told(digest: str, other: str) -> bool:
    """Whether two digests tell anything of each other: one algorithm made both, and one Python where it matters."""
    mine, theirs = _DIGEST.fullmatch(digest), _DIGEST.fullmatch(other)
    return mine is not None and theirs is not None and mine[1] == theirs[1]


def changes(digest: str, detail: object, now: Fingerprint) -> Changes:
    """How a function differs from what it was.

    Args:
        digest: of then.
        detail: what `detail` gave then, as far as it was kept.
        now: as it is.
    """
    if digest == now.digest or not is_told(digest, now.digest):
        return Changes([], [], [])
    (_, old_code, old_values), (_, new_code, _) = digest.split("-"), now.digest.split("-")
    then = _checked(detail, old_code, old_values)
    if then is None:
        lost = ["a value that it reads (which one is no longer known)"] if old_code == new_code else []
        return Changes(lost, [] if lost else ["its code"], [])
    pairs = _pairs(then, now)
    values: list[str] = []
    names: list[str] = []
    for name, value in now.values.items():
        old = then.values.get(name)
        if old is not None and old[0] != value.digest:
            names.append(name)
            values.append(f"{name}: {shorten(str(old[1]), 80)} → {value.shown}")
    if all(pair.kinship == "same" for pair in pairs) and len(pairs) == len(then.parts) == len(now.parts):
        # which reads the same names, unless a value is of another kind, or class
        for name in [*(then.values.keys() - now.values.keys()), *(now.values.keys() - then.values.keys())]:
            old, new = then.values.get(name), now.values.get(name)
            names.append(name)
            shown = shorten(str(old[1]), 80) if old else _INCOMPARABLE
            values.append(f"{name}: {shown} → {new.shown if new else _INCOMPARABLE}")
    for change in _changed_literals(then, now, pairs):
        names.append(change.name)
        values.append(str(change))
    return Changes(values, _changed_parts(then, now, pairs), names)


class _Then(NamedTuple):
    """What a digest stands for, as it was kept."""

    parts: dict[str, str]
    values: dict[str, list[str]]
    literals: dict[str, list[Entry]]
    python: str
    objects: dict[str, list[str]]


def _checked(detail: object, code: str, values: str) -> _Then | None:
    """What a digest is said to stand for, where that is so."""
    try:
        literals = {label: [Entry(*entry) for entry in entries] for label, entries in detail["literals"].items()}  # type: ignore[index]
        parts, read = detail["parts"], detail["values"]  # type: ignore[index]
        sound = (_code_digest(parts), _values_digest(parts, {name: given[0] for name, given in read.items()}, literals))
        then = _Then(parts, read, literals, detail["python"], detail["objects"])  # type: ignore[index]
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        return None
    return then if sound == (code, values) else None


class _Pair(NamedTuple):
    """A function of then and of now, by their labels, and how their code compares."""

    old: str
    new: str
    kinship: str  # "same", "changed", or "unknown"
    alike: bool  # whether each literal has its counterpart


def _pairs(then: _Then, now: Fingerprint) -> list[_Pair]:
    """The functions of then that are still there, under their own names or, unchanged, under others."""
    names = {label: label for label in then.parts if label in now.parts}
    free = {digest: label for label, digest in now.parts.items() if label not in names}
    for label, digest in then.parts.items():
        if label not in names and digest in free:
            names[label] = free.pop(digest)
    mine, its = next(iter(now.parts), ""), next(iter(then.parts), "")
    if its not in names and mine not in names.values():
        names[its] = mine  # the function itself, under another name
    return [_pair(then, now, old, new) for old, new in names.items()]


def _pair(then: _Then, now: Fingerprint, old: str, new: str) -> _Pair:
    before, after = then.parts[old], now.parts[new]
    objects = then.objects.get(old), now.objects[new]
    same_object = then.python == PYTHON and objects[0] is not None and objects[0][0] == objects[1].digest
    if before == after:
        return _Pair(old, new, "same", True)
    if same_object:
        return _Pair(old, new, "same", False)
    if ":" not in before and ":" not in after:
        return _Pair(old, new, "changed", False)
    return _Pair(old, new, "changed" if then.python == PYTHON else "unknown", False)


def _changed_literals(then: _Then, now: Fingerprint, pairs: list[_Pair]) -> list[Change]:
    """The values among literals that differ; between a source and a code object, texts alone are compared."""
    old, new = dict(then.literals), dict(now.literals)
    known = {value.digest for value in now.values.values()}
    for pair in pairs:
        before, after = then.parts[pair.old], now.parts[pair.new]
        if pair.kinship == "same" and not pair.alike:
            old[pair.old] = new[pair.new] = []  # one code object, whose literals are the same
            known.update(entry.digest for entry in now.literals[pair.new])
        elif (":" in before) != (":" in after) or (":" in before and pair.kinship == "unknown"):
            shown = {entry.digest: entry for label in (old[pair.old], new[pair.new]) for entry in label}
            old[pair.old], new[pair.new] = (
                [shown.get(digest) or Entry(TEXT, "", "a text", digest) for digest in digests]
                for digests in (then.objects[pair.old][1:], now.objects[pair.new].texts)
            )
            known.update(now.objects[pair.new].others)
    alike = {pair.old for pair in pairs if pair.kinship == "same" and pair.alike}
    return changed_values(old, new, {pair.old: pair.new for pair in pairs}, alike, frozenset(known))


def _changed_parts(then: _Then, now: Fingerprint, pairs: list[_Pair]) -> list[str]:
    """The functions whose code differs, or cannot be compared, with the literals of their code."""
    found = []
    mine, its = next(iter(now.parts), ""), next(iter(then.parts), "")
    for pair in pairs:
        if pair.kinship == "unknown":
            found.append(
                f"{pair.new}, whose source is not that of the code which runs: {then.python} and {PYTHON} cannot be "
                "compared without it"
            )
        elif pair.kinship == "changed":
            literals = changed_code(then.literals.get(pair.old, []), now.literals.get(pair.new, []))
            label = pair.new if pair.old == pair.new else f"{pair.new}, in place of {pair.old}"
            shown = ", ".join(literals[:3]) + (", …" if len(literals) > 3 else "")
            found.append(f"{label} ({shown})" if literals else label)
    paired, there = {pair.new for pair in pairs}, {pair.old for pair in pairs}
    if (
        (its, mine) not in {(pair.old, pair.new) for pair in pairs}
        and mine != its
        and then.parts[its] != now.parts[mine]
    ):
        return [*found, f"{mine}, in place of {its}"]
    found += [f"{name}, which is called anew" for name in now.parts if name not in paired]
    found += [f"{name}, which is no longer called" for name in then.parts if name not in there]
    return found


def fingerprint(function: Any, *, bound: bool = False) -> Fingerprint | None:
    """The fingerprint of a function; None where it has no code to read, such as a builtin.

    Args:
        function: what is called with an item.
        bound: whether the attributes of the instance that it is bound to are told by a version.

    Example:
        >>> def make(model):
        ...     return lambda text: model + text
        >>> one, other, again = (fingerprint(make(model)) for model in ("a", "b", "a"))
        >>> one.digest == again.digest != other.digest
        True
        >>> changes(one.digest, one.detail(), other).values
        ["model: 'a' → 'b'"]
    """
    try:
        return _Reading(function, bound).fingerprint()
    except Exception as error:  # whatever is odd about a function, it can be mapped
        log.debug("%r has no fingerprint: %s", function, error, exc_info=True)
        return None


# --- digests ---------------------------------------------------------------------------------------------------------


def _join(texts: Iterable[str]) -> str:
    return hashed("\n".join(sorted(texts)))


def _called(parts: Mapping[str, str]) -> dict[str, str]:
    """How digests name functions: not by their files, and the function itself and its class not at all."""
    names = {label: label.partition("(")[0] for label in parts}
    own = next(iter(names.values()), "")
    prefix = own.rpartition(".")[0]
    return {label: "" if name == own else name.removeprefix(prefix) for label, name in names.items()}


def _code_digest(parts: Mapping[str, str]) -> str:
    names = _called(parts)
    return _join(f"{names[label]}={digest}" for label, digest in parts.items())


def _values_digest(parts: Mapping[str, str], values: Mapping[str, str], literals: Mapping[str, Iterable[Entry]]) -> str:
    names = _called(parts)
    digests = {label: " ".join(one.digest for one in given if one.kind != CODE) for label, given in literals.items()}
    told = [f"{names[label]}() {digest}" for label, digest in digests.items() if digest]
    return _join([*told, *(f"{name}={digest}" for name, digest in values.items())])


def _is_plain(value: Any) -> bool:
    """Whether it is made of exact builtins, and not so large that looking at it takes time."""
    left, todo = _MOST_PARTS, [value]
    while todo:
        one = todo.pop()
        left -= 1
        kind = type(one)
        if kind is str:
            left -= len(one) // 1000
        elif kind is list or kind is tuple:
            left -= len(one)
            if left > 0:
                todo += one
        elif kind is dict:
            left -= len(one)
            if left > 0:
                todo += [*one, *one.values()]
        elif kind is int:
            left -= one.bit_length() // 64
        elif not (kind is float or kind is bool or one is None):
            return False
        if left < 0:
            return False
    return True


def _value(name: str, value: Any) -> Value | None:
    """The value, where it is JSON-like, or a function or class, which counts by its name; else None."""
    if _is_plain(value):
        data = canonical(value)
        return None if data is None else Value(blake2b(data, digest_size=6).hexdigest(), _shown(name, value))
    told = _spelled(value)
    if told is not None:
        is_open = len(told) <= _MOST_SHOWN and not (_SECRET_NAME.search(name + told) or _SECRET_TEXT.search(told))
        return Value(hashed(f"spelled {told}"), told if is_open else f"a {type(value).__name__}")
    called = _name_of(value)
    if called is None or called.rpartition(".")[2] == name.rpartition(".")[2]:
        return None
    return Value(hashed(f"named {called}"), called)


_CONSTANTS = (bytes, complex, range, Decimal, date, datetime, time, timedelta, UUID)
_DEEPEST = 20


def _spelled(value: Any, depth: int = 0) -> str | None:
    """A constant that is no JSON, or a container of such, as text that is the same in every process."""
    kind = type(value)
    if _is_plain(value):
        data = canonical(value)
        return None if data is None else data.decode("utf-8", "surrogatepass")
    if kind in _CONSTANTS:
        return repr(value)
    if kind is re.Pattern:
        return f"re.compile({value.pattern!r}, {value.flags})"
    if issubclass(kind, PurePath) and kind.__module__.partition(".")[0] == "pathlib":
        return f"Path({str(value)!r})"
    if issubclass(kind, Enum):
        name = _dict_of(value).get("_name_")
        return f"{kind.__qualname__}.{name}" if type(name) is str else None
    for base, spell in ((str, str.__str__), (int, int.__repr__), (float, float.__repr__)):
        if issubclass(kind, base):
            return f"{kind.__qualname__}({spell(value)!r})"
    return None if depth > _DEEPEST else _spelled_parts(value, kind, depth + 1)


def _spelled_parts(value: Any, kind: type, depth: int) -> str | None:
    def spell(part: Any) -> str:
        return _spelled(part, depth) or f"a {type(part).__name__}"

    if kind is dict:
        return f"{{{', '.join(sorted(f'{spell(name)}: {spell(part)}' for name, part in value.items()))}}}"
    if kind is frozenset:  # a set is one of what is changed elsewhere, more often than not
        return f"frozenset({', '.join(sorted(map(spell, value)))})"
    if kind is list or issubclass(kind, tuple):
        parts = (list if kind is list else tuple).__iter__(value)
        return f"{kind.__qualname__}({', '.join(map(spell, islice(parts, _MOST_PARTS)))})"
    return None


def _shown(name: str, value: Any) -> str:
    """A value as meta and messages may show it: short, and nothing that may be a secret."""
    kind = type(value)
    if kind is int and value.bit_length() > 100:
        return "a large int"
    if kind in (int, float, bool, type(None)):
        return repr(value)
    if _SECRET_NAME.search(name):
        return f"a {kind.__name__} that is not shown"
    if kind is not str:
        told = (canonical(value) or b"").decode("utf-8", "replace") if len(value) <= _MOST_SHOWN else ""
        is_open = 0 < len(told) <= _MOST_SHOWN and not (_SECRET_NAME.search(told) or _SECRET_TEXT.search(told))
        return told if is_open else f"a {kind.__name__} of {len(value):,}"
    if len(value) <= _MOST_SHOWN and not _SECRET_TEXT.search(value):
        return repr(value)
    return f"a str of {len(value):,} characters"


def _name_of(value: Any) -> str | None:
    """The name of a function or class."""
    kind = type(value)
    if kind is FunctionType or kind is BuiltinFunctionType:
        return str(value.__qualname__).replace("<locals>.", "")
    if issubclass(kind, type):
        return str(type.__dict__["__qualname__"].__get__(value)).replace("<locals>.", "")
    return None


# --- past the user's hooks -------------------------------------------------------------------------------------------


def _is_own_module(name: Any) -> bool:
    if type(name) is not str or name == "__main__":
        return type(name) is str  # whatever runs the main module, such as a profiler, may have left its own file there
    module = sys.modules.get(name)
    path = None if module is None else _dict_of(module).get("__file__")
    return type(path) is str and is_own_file(path)


def _dict_of(value: Any) -> Mapping[str, Any]:
    """The attributes that an object, module or class holds itself, past the user's hooks."""
    if issubclass(type(value), type):
        return type.__dict__["__dict__"].__get__(value)  # type: ignore[no-any-return]
    descriptor = _of_class(type(value), "__dict__")
    if type(descriptor) not in (GetSetDescriptorType, MemberDescriptorType):
        return {}  # it has none, or a property of the user's in its place
    held = descriptor.__get__(value)
    return held if type(held) is dict else {}


def _mro(cls: Any) -> tuple[type, ...]:
    return type.__dict__["__mro__"].__get__(cls)  # type: ignore[no-any-return]


def _of_class(cls: Any, name: str) -> Any:
    return next((_dict_of(base)[name] for base in _mro(cls) if name in _dict_of(base)), None)


def static_attributes(instance: Any) -> Iterator[tuple[str, Any]]:
    """What the instance's own dict and slots hold, past the user's hooks."""
    for name, value in _dict_of(instance).items():
        if type(_of_class(type(instance), name)) is not cached_property:  # which is made anew when it is asked for
            yield name, value
    for cls in _mro(type(instance)):
        for name, member in _dict_of(cls).items():
            if type(member) is MemberDescriptorType and not name.endswith("__"):
                try:
                    yield name, member.__get__(instance)
                except AttributeError:
                    continue


# --- reading a function ----------------------------------------------------------------------------------------------


class _Read(NamedTuple):
    """A value that was come by: its place, its name, whose it is, the value, and what it is held by."""

    place: tuple[Any, ...]
    name: str
    owner: str
    value: Any
    holder: Any


class _Reading:
    """One reading of a function and of what it leads to."""

    def __init__(self, function: Any, bound: bool) -> None:
        self._root = function
        self._bound = bound
        self._todo: list[Any] = []
        self._alive: list[Any] = []  # what places are named by the ids of
        self._seen: set[int] = set()
        self._parts: dict[str, list[str]] = {}
        self._literals: dict[str, list[Entry]] = {}
        self._objects: dict[str, list[CodeObject]] = {}
        self._reads: dict[tuple[Any, ...], _Read] = {}
        self._names: set[str] = set()  # attributes that are read anywhere
        self._stored: set[str] = set()
        self._changed: set[tuple[Any, ...]] = set()  # places whose values the code itself changes
        self._classes: dict[int, Any] = {}
        self._members: set[tuple[int, str]] = set()
        self._instances: list[tuple[str, Any]] = []

    def fingerprint(self) -> Fingerprint | None:
        self._follow(self._root, "")
        while self._todo and len(self._seen) < _MOST_FUNCTIONS:
            self._read(self._todo.pop(0))
            if not self._todo:
                self._read_members()
                self._follow_attributes()
        if not self._parts:
            return None
        for label, instance in self._instances:
            self._read_instance(label, instance)
        parts = {name: _joined(digests) for name, digests in self._parts.items()}
        objects = {name: _joined_objects(given) for name, given in self._objects.items()}
        values, held = self._values()
        digests = {name: value.digest for name, value in values.items()}
        return Fingerprint(
            next(iter(parts)).partition("(")[0],
            f"{_ALGORITHM}-{_code_digest(parts)}-{_values_digest(parts, digests, self._literals)}",
            parts, values, self._literals, objects, self._root, self._bound, held,
        )  # fmt: skip

    # functions

    def _follow(self, value: Any, label: str, *, depth: int = 0) -> None:
        """Whatever code of the user's own stands behind a value is to be read."""
        kind = type(value)
        if kind is FunctionType:
            self._add(value)
        elif kind is MethodType:
            self._add(value.__func__)
            self._follow_instance(value.__self__, label or "self", told=self._bound and value is self._root)
        elif kind is partial:
            self._follow_partial(value)
        elif kind is staticmethod or kind is classmethod:
            self._follow(value.__func__, label)
        elif kind is property:
            for part in (value.fget, value.fset):
                self._follow(part, label)
        elif kind is cached_property or kind is partialmethod:
            self._follow(value.func, label)
        elif issubclass(kind, type):
            self._add_class(value)
        elif kind in (list, tuple, dict) and not depth:
            for one in islice(value.values() if kind is dict else value, 200):
                if not _is_plain(one):
                    self._follow(one, "", depth=1)
        elif issubclass(kind, wrapt.FunctionWrapper) or issubclass(kind, wrapt.BoundFunctionWrapper):
            self._follow(object.__getattribute__(value, "__wrapped__"), label)
        elif kind is not ModuleType and not _is_plain(value):
            wrapped = _dict_of(value).get("__wrapped__")
            if wrapped is not None:
                self._follow(wrapped, label)
            self._follow_instance(value, label or "self", called=value is self._root)

    def _add(self, function: Any) -> None:
        if type(function) is not FunctionType:
            self._follow(function, "")
        elif id(function) not in self._seen:
            self._seen.add(id(function))
            self._alive.append(function)
            self._todo.append(function)

    def _follow_partial(self, given: Any) -> None:
        self._alive.append(given)
        function = given.func
        names = getattr(_code_of(function), "co_varnames", ())
        shift = type(function) is MethodType
        for place, value in enumerate(given.args):
            name = names[place + shift] if place + shift < len(names) else f"argument {place + 1}"
            self._note((id(given), name), name, "", value, None)
            self._follow(value, name)
        for name, value in given.keywords.items():
            self._note((id(given), name), name, "", value, None)
            self._follow(value, name)
        self._follow(function, "")

    def _read(self, function: FunctionType) -> None:
        code = function.__code__
        if self._parts and not is_own_file(code.co_filename):
            return
        syntax, steps = syntax_of(code, function.__globals__), steps_of(code)
        name = str(function.__qualname__).replace("<locals>.", "")
        label = f"{name}() in {_file_of(code.co_filename)}"
        digest = f"{PYTHON}:{instructions_of(code)}" if syntax is None else syntax.digest
        self._parts.setdefault(label, []).append(digest)
        self._read_literals(label, code, syntax)
        self._names |= steps.names
        cells = _cells(function)
        if function.__name__ not in _BUILDERS:
            self._stored |= steps.stored - (syntax.given if syntax else frozenset())
            self._note_changes(function, cells, steps.written, syntax)
        self._read_defaults(function, name)
        wrapped = _dict_of(function).get("__wrapped__")
        if wrapped is not None:
            self._follow(wrapped, "")
        for is_global, root, asked in steps.chains:
            if root.startswith("__"):
                continue
            if is_global:
                self._read_global(function.__globals__, root, asked, name)
            elif root in cells:
                self._read_cell(cells[root], root, asked, name, wrapped)

    def _read_literals(self, label: str, code: CodeType, syntax: Syntax | None) -> None:
        """The literals of a body; without a source, the texts of its code object."""
        texts = {text: _text_digest(text) for text in texts_of(code)}
        literals = [Literal(TEXT, "", text) for text in texts] if syntax is None else syntax.literals
        self._literals.setdefault(label, []).extend(map(_entry, short_of(literals)))
        quiet = {piece for one in literals if one.kind == CODE for piece in str(one.value).split("{}")}
        self._objects.setdefault(label, []).append(CodeObject(
            instructions_of(code),
            tuple(digest for text, digest in texts.items() if text not in quiet),
            tuple(digest for text, digest in texts.items() if text in quiet),
        ))  # fmt: skip

    def _note_changes(
        self, function: FunctionType, cells: dict[str, CellType], written: frozenset[str], syntax: Syntax | None
    ) -> None:
        """Variables that the code itself changes are its state."""
        for chain in {*((name,) for name in written), *(syntax.changed if syntax else ())}:
            root, *attributes = chain
            self._stored.update(attributes[:1])
            if root in cells:
                self._changed.add((id(cells[root]), *attributes))
            elif root in function.__code__.co_varnames:
                self._changed.add((id(function), root, *attributes))
            else:
                self._changed.add((id(function.__globals__), root, *attributes))

    def _read_defaults(self, function: FunctionType, owner: str) -> None:
        code, given = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(given) : code.co_argcount]
        for name, value in {**dict(zip(names, given, strict=True)), **(function.__kwdefaults__ or {})}.items():
            self._note((id(function), name), name, owner, value, None)
            self._follow(value, name)

    def _read_cell(self, cell: CellType, name: str, asked: tuple[str, ...], owner: str, wrapped: Any) -> None:
        try:
            value = cell.cell_contents
        except ValueError:
            return  # not set yet
        if value is not wrapped or wrapped is None:
            self._resolve((id(cell),), name, owner, value, asked)

    def _read_global(self, scope: dict[str, Any], name: str, asked: tuple[str, ...], owner: str) -> None:
        if name in scope:
            self._resolve((id(scope), name), name, owner, scope[name], asked)

    def _resolve(self, place: tuple[Any, ...], name: str, owner: str, value: Any, asked: tuple[str, ...]) -> None:
        """Follow the attributes that are asked of a variable as far as they are data, of modules, classes, objects."""
        holder: Any = None
        for attribute in asked:
            if attribute.startswith("__") or _is_plain(value):
                break
            if type(value) is ModuleType:
                found = _dict_of(value)
                if not _is_own_module(found.get("__name__")) or attribute not in found:
                    return
                holder, place = None, (id(found), attribute)
            elif issubclass(type(value), type):
                if _of_class(value, attribute) is None:
                    break
                self._add_class(value)
                found, holder, place = {attribute: _of_class(value, attribute)}, value, (*place, attribute)
            else:
                found = dict(static_attributes(value)) if asked else {}
                if attribute not in found or _is_data_descriptor(_of_class(type(value), attribute)):
                    break
                holder, place = value, (*place, attribute)
            name, value = f"{name}.{attribute}", found[attribute]
        self._note(place, name, owner, value, holder)
        self._follow(value, name)

    # classes and objects

    def _add_class(self, cls: Any) -> None:
        for base in _mro(cls):
            if id(base) not in self._classes and _is_own_module(_dict_of(base).get("__module__")):
                self._classes[id(base)] = base

    def _read_members(self) -> None:
        """Of each class of the user's own: the functions whose names are read anywhere, and the special ones."""
        for number, cls in list(self._classes.items()):
            for name, member in _dict_of(cls).items():
                special = name.startswith("__") and name.endswith("__")
                if (number, name) in self._members or not (special or name in self._names):
                    continue
                self._members.add((number, name))
                if special and type(member) is not FunctionType:
                    continue
                if type(member) is FunctionType and member.__code__.co_filename == "<string>":
                    continue  # made by dataclass or NamedTuple
                if _is_plain(member):
                    if not (self._bound and self._is_of_root(cls)):
                        owner = str(_name_of(cls))
                        self._note((number, name), f"{owner.rpartition('.')[2]}.{name}", owner, member, cls)
                else:
                    self._follow(member, name, depth=1)

    def _is_of_root(self, cls: Any) -> bool:
        held = getattr(self._root, "__self__", None) if type(self._root) is MethodType else None
        return any(base is cls for base in _mro(held if issubclass(type(held), type) else type(held)))

    def _follow_instance(self, value: Any, label: str, *, told: bool = False, called: bool = False) -> None:
        cls = value if issubclass(type(value), type) else type(value)
        before = len(self._classes)
        self._add_class(cls)
        if called and len(self._classes) == before:
            return
        if called:
            self._add_call(cls)
        holds_only = cls is SimpleNamespace or (cls.__module__, cls.__name__) == ("argparse", "Namespace")
        if cls is not value and not told and (holds_only or id(cls) in self._classes):
            self._alive.append(value)
            self._instances.append((label, value))

    def _add_call(self, cls: Any) -> None:
        call = _of_class(cls, "__call__")
        if call is not None:
            self._add(call)

    def _follow_attributes(self) -> None:
        """Functions and objects that an object of the user's own class holds are code that it calls."""
        for label, instance in list(self._instances):
            for name, value in static_attributes(instance):
                if name in self._names and (id(instance), name) not in self._members:
                    self._members.add((id(instance), name))
                    self._follow(value, f"{label}.{name}")

    def _read_instance(self, label: str, instance: Any) -> None:
        """What the methods of the user's own class read of an object."""
        for name, value in static_attributes(instance):
            if name in self._names:
                self._note((id(instance), name), f"{label}.{name}", "", value, instance)

    # values

    def _note(self, place: tuple[Any, ...], name: str, owner: str, value: Any, holder: Any) -> None:
        self._reads.setdefault(place, _Read(place, name, owner, value, holder))

    def _is_state(self, read: _Read) -> bool:
        place = read.place
        if read.holder is not None and place[-1] in self._stored:
            return True
        return any(place[: len(changed)] == changed[: len(place)] for changed in self._changed)

    def _values(self) -> tuple[dict[str, Value], dict[str, Any]]:
        anchor = _anchor(self._root)
        settled = {} if anchor is None else _settled.get(anchor, {})
        values: dict[str, Value] = {}
        held: dict[str, Any] = {}
        objects: set[tuple[int, str]] = set()
        for read in self._reads.values():
            attribute = (id(read.holder), str(read.place[-1]))
            if self._is_state(read) or (read.holder is not None and attribute in objects):
                continue
            value = _value(read.name, read.value)
            if value is None:
                continue
            objects.add(attribute)
            name = read.name
            if name in values:
                name = f"{name} of {read.owner}()" if read.owner else f"{name}#2"
            while name in values:
                name += "'"
            holder = read.value if type(read.value) in (list, dict) else read.holder
            if name in settled and settled[name][0] is holder:
                value = settled[name][1]
            values[name], held[name] = value, holder
        return values, held


def _entry(literal: Literal) -> Entry:
    """A literal as the journal keeps it; texts have the digest that they have as values of variables."""
    kind, name, value = literal
    if kind == CODE:
        return Entry(kind, name, _shown_literal(name, value, 24), "")
    digest = _text_digest(value) if type(value) is str else hashed(repr(_sorted(value)))
    return Entry(kind, name, _shown_literal(name, value, _MOST_SHOWN), digest)


def _text_digest(text: str) -> str:
    found = _value("", text)
    return hashed(text) if found is None else found.digest


def _sorted(value: Any) -> Any:
    """A literal whose spelling is one for each value: sets have an order of their own in each process."""
    if type(value) is set:
        return ("set", sorted(map(repr, value)))
    if type(value) in (list, tuple):
        return (type(value).__name__, *map(_sorted, value))
    return {name: _sorted(part) for name, part in value.items()} if type(value) is dict else value


def _shown_literal(name: str, value: Any, most: int) -> str:
    """A literal as messages show it: of a long text the ends, and of a secret nothing."""
    if type(value) is not str:
        told = repr(value)
        if type(value) in (int, float, complex, bool, type(None)):
            return shorten(told, most)
        if _SECRET_NAME.search(name + told) or _SECRET_TEXT.search(told):
            return f"a {type(value).__name__} that is not shown"
        return shorten(told, most)
    if _SECRET_NAME.search(name) or _SECRET_TEXT.search(value):
        return f"a str of {len(value):,} characters"
    if len(value) <= most:
        return repr(value)
    return f"{value[: most // 2]!r} … {value[-most // 4 :]!r} ({len(value):,} characters)"


def _joined(digests: list[str]) -> str:
    """One digest for the functions of one name."""
    if len(digests) == 1:
        return digests[0]
    tagged = any(":" in digest for digest in digests)
    return f"{PYTHON}:{_join(digests)}" if tagged else _join(digests)


def _joined_objects(given: list[CodeObject]) -> CodeObject:
    if len(given) == 1:
        return given[0]
    texts, others = ([text for one in given for text in one[place]] for place in (1, 2))
    return CodeObject(_join(one.digest for one in given), tuple(texts), tuple(others))


def _file_of(path: str) -> str:
    """A file as messages name it; each run of a notebook's cell has another one."""
    return "a cell" if path.startswith("<") or "ipykernel" in path else PurePath(path).name


def _cells(function: FunctionType) -> dict[str, CellType]:
    return dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))


def _code_of(function: Any) -> CodeType | None:
    function = function.__func__ if type(function) is MethodType else function
    return function.__code__ if type(function) is FunctionType else None


def _is_data_descriptor(member: Any) -> bool:
    return (
        member is not None
        and type(member) is not MemberDescriptorType
        and _of_class(type(member), "__set__") is not None
    )


_settled: WeakKeyDictionary[FunctionType, dict[str, tuple[Any, Value]]] = WeakKeyDictionary()


def _anchor(value: Any) -> FunctionType | None:
    """What state is remembered by: the function inside."""
    while type(value) in (MethodType, partial):
        value = value.__func__ if type(value) is MethodType else value.func
    if type(value) is not FunctionType:
        value = _of_class(type(value), "__call__")
    return value if type(value) is FunctionType else None


def _settle(function: Any, name: str, holder: Any, value: Value) -> None:
    anchor = _anchor(function)
    if anchor is not None:
        _settled.setdefault(anchor, {})[name] = (holder, value)
