"""What a function does, as a digest: its code, that of the user's own functions it calls, and the values they read.

The promise: comments, docstrings, formatting and annotations do not count; one code with the same values has one digest
in every process; nothing of the user's is called; and what cannot be read is left out, and is no error.

A digest is ``2-CODE-VALUES``: the number of this algorithm, what the code comes to, what the values come to, with those
of its literals that are values. Code is compared as syntax, which all Pythons share. Where the source is not that of
the code which runs, code objects are compared, and what a digest stands for names their Python. Digests with other
beginnings tell nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from checkpoint.dependencies import dependencies_of, ignored_names, is_ignored
from checkpoint.errors import InvalidOption, shorten
from checkpoint.literals import CODE, TEXT, Change, Entry, changed_code, changed_values
from checkpoint.readings import CodeObject, read
from checkpoint.spelling import Value, name_of
from checkpoint.statics import of_class, static_attributes
from checkpoint.syntax import PYTHON, hashed

__all__ = ["Changes", "Fingerprint", "Value", "changes", "fingerprint", "is_told", "static_attributes"]

log = logging.getLogger("checkpoint")
_ALGORITHM = "2"
_DIGEST = re.compile(r"(2)-([0-9a-f]{32})-([0-9a-f]{32})")
_INCOMPARABLE = "nothing that can be compared"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a function's results depend on besides their items.

    Attributes:
        name: the function's.
        digest: as it stands in records.
        parts: digests of code, by function: of its syntax, or of its code object, with the Python that made it.
        values: those that the code reads, by name, and those of `depends=`.
        literals: of the functions' bodies, in their order.
        objects: code objects, by function, whether there is a source or not.
        looked: arrays and files that the code reads, by name: a difference is told, and never refused.
        unread: values that the code reads and that cannot be compared, by name, with their classes.
        ignored: the names of `ignore=`.
        unused: those of them that no value has.
    """

    name: str
    digest: str
    parts: dict[str, str]
    values: dict[str, Value]
    literals: dict[str, list[Entry]]
    objects: dict[str, CodeObject]
    looked: dict[str, Value]
    unread: dict[str, str]
    ignored: tuple[str, ...]
    unused: tuple[str, ...]
    _function: Any = field(repr=False, compare=False)
    _options: dict[str, Any] = field(repr=False, compare=False)
    _held: dict[str, Any] = field(repr=False, compare=False)

    def detail(self) -> dict[str, Any]:
        """What the digest stands for, as JSON."""
        return {
            "parts": self.parts,
            "values": {name: list(value) for name, value in self.values.items()},
            "literals": {label: [list(entry) for entry in entries] for label, entries in self.literals.items()},
            "python": PYTHON,
            "objects": {label: [one.digest, *one.texts] for label, one in self.objects.items()},
            "looked": {name: list(value) for name, value in self.looked.items()},
            "ignored": list(self.ignored),
        }

    def moved(self) -> list[str]:
        """What a pass is found to have changed, after it: variables, each with what it was and is.

        A container that was changed in place, or an object's attribute, is state of the function, and no parameter of
        it: from here on it counts as what it was at first.
        """
        after = _fingerprint(self._function, **self._options)
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
        left_out = (*then.ignored, *now.ignored)
        for name in [*(then.values.keys() - now.values.keys()), *(now.values.keys() - then.values.keys())]:
            if name.startswith("depends[") or is_ignored(name, left_out):
                continue  # it did not count then, or does not now
            old, new = then.values.get(name), now.values.get(name)
            names.append(name)
            shown = shorten(str(old[1]), 80) if old else _INCOMPARABLE
            values.append(f"{name}: {shown} → {new.shown if new else _INCOMPARABLE}")
    for change in _changed_literals(then, now, pairs):
        names.append(change.name)
        values.append(str(change))
    return Changes(values, [*_changed_parts(then, now, pairs), *_changed_looks(then, now)], names)


class _Then(NamedTuple):
    """What a digest stands for, as it was kept."""

    parts: dict[str, str]
    values: dict[str, list[str]]
    literals: dict[str, list[Entry]]
    python: str
    objects: dict[str, list[str]]
    looked: dict[str, list[str]]
    ignored: tuple[str, ...]


def _checked(detail: object, code: str, values: str) -> _Then | None:
    """What a digest is said to stand for, where that is so."""
    kept: Any = detail
    try:
        then = _Then(
            kept["parts"], kept["values"],
            {label: [Entry(*entry) for entry in entries] for label, entries in kept["literals"].items()},
            kept["python"], kept["objects"], kept["looked"], tuple(kept["ignored"]),
        )  # fmt: skip
        looked, read = ({name: given[0] for name, given in part.items()} for part in (then.looked, then.values))
        sound = (_code_digest(then.parts, looked), _values_digest(then.parts, read, then.literals))
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


def _changed_looks(then: _Then, now: Fingerprint) -> list[str]:
    """The arrays and files that differ."""
    return [
        f"{name}: {shorten(str(then.looked[name][1]), 80)} → {value.shown}"
        for name, value in now.looked.items()
        if name in then.looked and then.looked[name][0] != value.digest
    ]


def fingerprint(function: Any, *, bound: bool = False, depends: Any = (), ignore: Any = ()) -> Fingerprint | None:
    """The fingerprint of a function; None where it has no code to read, such as a builtin.

    Args:
        function: what is called with an item.
        bound: whether the attributes of the instance that it is bound to are told by a version.
        depends: what else its results depend on, as `checkpointed` takes it.
        ignore: the names of values that do not count.

    Raises:
        InvalidOption: something of `depends` is not there, or cannot be compared.

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
        return _fingerprint(function, bound=bound, depends=depends, ignore=ignore)
    except InvalidOption:
        raise
    except Exception as error:  # whatever is odd about a function, it can be mapped
        log.warning(
            "the code of %s cannot be read (%s: %s): whether it has changed is not noticed; name a version=",
            name_of(function) or type(function).__name__, type(error).__name__, error,
        )  # fmt: skip
        log.debug("the code that cannot be read", exc_info=True)
        return None


def _fingerprint(function: Any, *, bound: bool, depends: Any, ignore: Any) -> Fingerprint | None:
    added, functions = dependencies_of(depends)
    ignored = ignored_names(ignore)
    found = read(function, bound=bound, extra=functions)
    if not found.parts and not added:
        return None
    settled = _settled_of(function)
    values = {
        name: settled[name][1] if name in settled and settled[name][0] is found.held.get(name) else value
        for name, value in found.values.items()
        if not is_ignored(name, ignored)
    }
    looked = {name: value for name, value in found.looked.items() if not is_ignored(name.split(maxsplit=2)[2], ignored)}
    values |= added
    code = _code_digest(found.parts, {name: value.digest for name, value in looked.items()})
    digests = {name: value.digest for name, value in values.items()}
    known = [*found.values, *found.unread, *(name.split(maxsplit=2)[2] for name in found.looked)]
    return Fingerprint(
        next(iter(found.parts), "the function").partition("(")[0],
        f"{_ALGORITHM}-{code}-{_values_digest(found.parts, digests, found.literals)}",
        found.parts, values, found.literals, found.objects, looked,
        {name: cls for name, cls in found.unread.items() if not is_ignored(name, ignored)},
        ignored,
        tuple(one for one in ignored if not any(is_ignored(name, (one,)) for name in known)),
        function, {"bound": bound, "depends": depends, "ignore": ignore}, found.held,
    )  # fmt: skip


# --- digests ---------------------------------------------------------------------------------------------------------


def _join(texts: Iterable[str]) -> str:
    return hashed("\n".join(sorted(texts)))


def _called(parts: Mapping[str, str]) -> dict[str, str]:
    """How digests name functions: not by their files, and the function itself and its class not at all."""
    names = {label: label.partition("(")[0] for label in parts}
    own = next(iter(names.values()), "")
    prefix = own.rpartition(".")[0]
    return {label: "" if name == own else name.removeprefix(prefix) for label, name in names.items()}


def _code_digest(parts: Mapping[str, str], looked: Mapping[str, str]) -> str:
    names = _called(parts)
    told = [f"{names[label]}={digest}" for label, digest in parts.items()]
    return _join([*told, *(f"{name}={digest}" for name, digest in looked.items())])


def _values_digest(parts: Mapping[str, str], values: Mapping[str, str], literals: Mapping[str, Iterable[Entry]]) -> str:
    names = _called(parts)
    digests = {label: " ".join(one.digest for one in given if one.kind != CODE) for label, given in literals.items()}
    told = [f"{names[label]}() {digest}" for label, digest in digests.items() if digest]
    return _join([*told, *(f"{name}={digest}" for name, digest in values.items())])


# --- state that was pinned -------------------------------------------------------------------------------------------

_settled: WeakKeyDictionary[FunctionType, dict[str, tuple[Any, Value]]] = WeakKeyDictionary()


def _anchor(value: Any) -> FunctionType | None:
    """What state is remembered by: the function inside."""
    while type(value) in (MethodType, partial):
        value = value.__func__ if type(value) is MethodType else value.func
    if type(value) is not FunctionType:
        value = of_class(type(value), "__call__")
    return value if type(value) is FunctionType else None


def _settled_of(function: Any) -> dict[str, tuple[Any, Value]]:
    anchor = _anchor(function)
    return {} if anchor is None else _settled.get(anchor, {})


def _settle(function: Any, name: str, holder: Any, value: Value) -> None:
    anchor = _anchor(function)
    if anchor is not None:
        _settled.setdefault(anchor, {})[name] = (holder, value)
