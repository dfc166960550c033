"""What a function does, as a digest: its code, that of the user's own functions it calls, and the values they read.

The promise: comments, docstrings, formatting and annotations do not count; one code with the same values has one digest
in every process; nothing of the user's is called; and what cannot be read is left out, and is no error.

A digest is ``2-CODE-VALUES``: the number of this algorithm, what the code comes to, what the values come to, with those
of its literals that are values. A value that is a secret counts by a digest that is slow to try (`values.secrets`);
records of earlier versions have the digest as it is without that, and are known to be of the same values.

Code is compared as syntax, which all Pythons share. Where the source is not that of the code which runs, code objects
are compared, and what a digest stands for names their Python. Digests with other beginnings tell nothing.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from inspect import getattr_static
from types import FunctionType, MappingProxyType, MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from checkpoint.errors import InvalidOption, shorten
from checkpoint.provenance.bodies import Bodies, compare, counterparts, texts_within
from checkpoint.provenance.dependencies import dependencies_of, ignored_names, is_ignored
from checkpoint.provenance.literals import is_text
from checkpoint.provenance.readings import read
from checkpoint.provenance.spelling import Value, name_of, value_of
from checkpoint.provenance.statics import of_class, static_attributes
from checkpoint.provenance.syntax import hashed
from checkpoint.values.secrets import SECRET, difference, sealed

__all__ = ["Changes", "Fingerprint", "Value", "changes", "fingerprint", "is_told", "reads", "static_attributes"]

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
        unsealed: as it stands in records of earlier versions, which made plain digests of secrets.
        bodies: the code, by function.
        values: those that the code reads, by name, and those of `depends=`.
        looked: arrays, files and variables of the environment that the code reads, by name: a difference is told, and
            never refused.
        unread: values that the code reads and that cannot be compared, by name, with their classes.
        ignored: the names of `ignore=`.
        unused: those of them that no value has.
    """

    name: str
    digest: str
    unsealed: str
    bodies: Bodies
    values: dict[str, Value]
    looked: dict[str, Value]
    unread: dict[str, str]
    ignored: tuple[str, ...]
    unused: tuple[str, ...]
    _function: Any = field(repr=False, compare=False)
    _options: dict[str, Any] = field(repr=False, compare=False)
    _plain: dict[str, str] = field(repr=False, compare=False)  # digests of the values that are secrets, by name
    _held: dict[str, Any] = field(repr=False, compare=False)
    _texts: dict[str, str] = field(repr=False, compare=False)

    @property
    def parts(self) -> dict[str, str]:
        """Digests of code, by function."""
        return self.bodies.parts

    def detail(self) -> dict[str, Any]:
        """What the digest stands for, as JSON."""
        return {
            **self.bodies.detail(),
            "values": {name: list(value) for name, value in self.values.items()},
            "looked": {name: list(value) for name, value in self.looked.items()},
            "ignored": list(self.ignored),
            **({"salt": self._salt} if self._plain or self.bodies.secrets else {}),
        }

    @property
    def _salt(self) -> str:
        return str(self._options["salt"])

    def _in_mine(self, then: _Then) -> _Then:
        """What was kept by an earlier version, or under another name of the checkpoint, with digests as of here.

        Only of secrets that are the same are they known.
        """
        salts = () if then.salt in (None, self._salt) else (then.salt,)

        def mine(plain: str) -> dict[str, str]:
            now = sealed(plain, self._salt)
            return {plain: now, **{sealed(plain, salt): now for salt in salts}}

        def told(part: dict[str, list[str]]) -> dict[str, list[str]]:
            seals = {name: mine(self._plain[name]) for name in part.keys() & self._plain.keys()}
            return {name: [seals.get(name, {}).get(of, of), *rest] for name, (of, *rest) in part.items()}

        secrets, parts = self.bodies.secrets, self.bodies.parts
        every = frozenset().union(*secrets.values())  # those of a function that is called otherwise
        seals: dict[str, dict[str, str]] = {}
        for label in then.bodies.parts if secrets else ():
            digests = secrets.get(label, frozenset() if label in parts else every)
            seals[label] = {old: new for plain in digests for old, new in mine(plain).items()}
        return then._replace(bodies=then.bodies.sealed(seals), values=told(then.values), looked=told(then.looked))

    def is_value(self, name: str, value: Any) -> bool:
        """Whether the value of this name that the function reads is this one."""
        like = value_of(name, value)
        return like is not None and like.digest == self._plain.get(name, self.values[name].digest)

    def is_in_reach(self, name: str) -> bool:
        """Whether this name of a value, written beside the function, is that value."""
        root, *steps = name.split(".")
        inner = _innermost(self._function)
        if inner is None or name not in self.values or not all(map(str.isidentifier, (root, *steps))):
            return False
        try:
            value = _variable(inner, root)
            for step in steps:
                value = getattr_static(value, step)
        except (LookupError, AttributeError, ValueError):
            return False
        return self.is_value(name, value)

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
                _settle(self._function, name, held, Value(self._plain.get(name, old.digest), old.shown))
            else:
                moved.append(difference(name, old.shown, new.shown))
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
    if digest in (now.digest, now.unsealed) or not is_told(digest, now.digest):
        return Changes([], [], [])
    (_, old_code, old_values), (_, new_code, _) = digest.split("-"), now.digest.split("-")
    then = _checked(detail, old_code, old_values)
    if then is not None:
        then = now._in_mine(then)
    if then is None:
        lost = ["a value that it reads (which one is no longer known)"] if old_code == new_code else []
        return Changes(lost, [] if lost else ["its code"], [])
    ignored = (*then.ignored, *now.ignored)
    known = {value.digest for value in now.values.values()} | texts_within((now._held, now._texts))
    before = _without(then.bodies, ignored, counterparts(then.bodies, now.bodies))
    compared = compare(before, _without(now.bodies, ignored), known)
    values, fields, names = _changed(then, now, ignored, is_same=compared.same)
    for name, new_name, value in () if compared.same else _replaced(then, now, known, ignored):
        names.append(new_name)
        old_shown = shorten(str(then.values[name][1]), 80)
        is_open = SECRET not in (old_shown, value.shown)
        values.append(difference(name, old_shown, f"{new_name}, {value.shown}" if is_open else SECRET))
    looked = [
        difference(name, shorten(str(then.looked[name][1]), 80), value.shown)
        for name, value in now.looked.items()
        if name in then.looked and then.looked[name][0] != value.digest
    ]
    names += [change.name for change in compared.values]
    return Changes([*values, *map(str, compared.values)], [*compared.code, *fields, *looked], names)


def _changed(then: _Then, now: Fingerprint, ignored: tuple[str, ...], *, is_same: bool) -> Changes:
    """Values that differ under one name, and fields of classes that came or went; the code `is_same` or is not."""
    values: list[str] = []
    names: list[str] = []
    fields: list[str] = []
    swapped = _swapped(then, now)
    for name in [*then.values, *(now.values.keys() - then.values.keys())]:
        old, new = then.values.get(name), now.values.get(name)
        if old is None or new is None:
            # one code reads the same names in one Python, unless a value is of another kind
            is_alike = is_same and then.bodies.python == now.bodies.python
            if not is_alike or name.startswith("depends[") or is_ignored(name, ignored):
                continue
            if name not in now.unread and name.partition(".")[2] not in swapped and _is_of_class(name, now):
                fields.append(f"{name} is new" if old is None else f"{name} is gone")
                continue
        elif old[0] == new.digest:
            continue
        names.append(name)
        shown = _INCOMPARABLE if old is None else shorten(str(old[1]), 80)
        values.append(difference(name, shown, _INCOMPARABLE if new is None else new.shown))
    return Changes(values, fields, names)


def _swapped(then: _Then, now: Fingerprint) -> set[str]:
    """Attributes that one class had and another has with another value: an object of another class is read.

    A subclass that overrides an attribute is one, and is no field that came or went.
    """
    was = {name.partition(".")[2]: old[0] for name, old in then.values.items()}
    came = {name.partition(".")[2]: new.digest for name, new in now.values.items() if name not in then.values}
    has = {name.partition(".")[2]: new.digest for name, new in now.values.items()}
    gone = {name.partition(".")[2]: old[0] for name, old in then.values.items() if name not in now.values}
    pairs = ((was, came), (gone, has))
    return {name for one, other in pairs for name in one.keys() & other.keys() - {""} if one[name] != other[name]}


def _is_of_class(name: str, now: Fingerprint) -> bool:
    """Whether a value is that of a class, as a field's default is: such come and go as code does."""
    root = name.partition(".")[0]
    if any(held.partition(".")[0] == root and issubclass(type(holder), type) for held, holder in now._held.items()):
        return True
    inner = _innermost(now._function)
    try:
        return "." in name and inner is not None and issubclass(type(_variable(inner, root)), type)
    except (LookupError, ValueError):
        return False


def _variable(function: FunctionType, name: str) -> Any:
    """What a function sees under a name; an error where that is nothing."""
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    return cells[name].cell_contents if name in cells else function.__globals__[name]


def _replaced(
    then: _Then, now: Fingerprint, known: set[str], ignored: tuple[str, ...]
) -> Iterator[tuple[str, str, Value]]:
    """Each text that the code read and that is gone, with the name and value of the text that it reads instead.

    So PROMPT_2 takes the place of PROMPT_1, or one is renamed and edited at once.
    """
    there = known | {entry.digest for entries in now.bodies.literals.values() for entry in entries}
    was = {digest for digest, *_ in then.values.values()}
    was |= {entry.digest for entries in then.bodies.literals.values() for entry in entries}
    came = [
        name
        for name, text in now._texts.items()
        if name not in then.values and name in now.values and is_text(text) and now.values[name].digest not in was
    ]
    for name, (digest, told, *_) in then.values.items():
        is_gone = name not in now.values and digest not in there and not is_ignored(name, ignored)
        if came and is_gone and (_LONG_TEXT.fullmatch(str(told)) or (str(told)[:1] in "'\"" and is_text(str(told)))):
            new = came.pop(0)
            yield name, new, now.values[new]


_LONG_TEXT = re.compile(r"a str of [\d,]+ characters")


class _Then(NamedTuple):
    """What a digest stands for, as it was kept."""

    bodies: Bodies
    values: dict[str, list[str]]
    looked: dict[str, list[str]]
    ignored: tuple[str, ...]
    salt: str | None


def _checked(detail: object, code: str, values: str) -> _Then | None:
    """What a digest is said to stand for, where that is so."""
    try:
        bodies, read, looked = Bodies.of(detail), detail["values"], detail["looked"]  # type: ignore[index]
        told = ({name: given[0] for name, given in part.items()} for part in (looked, read))
        sound = (_code_digest(bodies, next(told)), _values_digest(bodies, next(told)))
        salt = detail.get("salt")  # type: ignore[attr-defined]
        then = _Then(bodies, read, looked, tuple(detail["ignored"]), salt if type(salt) is str else None)  # type: ignore[index]
    except (TypeError, KeyError, ValueError, AttributeError, IndexError):
        return None
    return then if sound == (code, values) else None


def _code_digest(bodies: Bodies, looked: Mapping[str, str]) -> str:
    return _join([*bodies.code(), *(f"{name}={digest}" for name, digest in looked.items())])


def _values_digest(bodies: Bodies, values: Mapping[str, str]) -> str:
    return _join([*bodies.values(), *(f"{name}={digest}" for name, digest in values.items())])


def _without(bodies: Bodies, ignored: tuple[str, ...], labels: Mapping[str, str] = MappingProxyType({})) -> Bodies:
    return bodies.without(lambda name: is_ignored(name, ignored), labels) if ignored else bodies


def reads(code: Fingerprint, value: Any) -> list[str]:
    """The names of what the function reads that has this value."""
    return [name for name in code.values if code.is_value(name, value)]


def fingerprint(
    function: Any, *, bound: bool = False, depends: Any = (), ignore: Any = (), salt: str = ""
) -> Fingerprint | None:
    """The fingerprint of a function; None where it has no code to read, such as a builtin.

    Args:
        function: what is called with an item.
        bound: whether the attributes of the instance that it is bound to are told by a version.
        depends: what else its results depend on, as `checkpointed` takes it.
        ignore: the names of values that do not count.
        salt: of the checkpoint, for digests of secrets.

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
        return _fingerprint(function, bound=bound, depends=depends, ignore=ignore, salt=salt)
    except InvalidOption:
        raise
    except Exception as error:  # whatever is odd about a function, it can be mapped
        log.warning(
            "the code of %s cannot be read (%s: %s): whether it has changed is not noticed; name a version=",
            name_of(function) or type(function).__name__, type(error).__name__, error,
        )  # fmt: skip
        log.debug("the code that cannot be read", exc_info=True)
        return None


def _fingerprint(function: Any, *, bound: bool, depends: Any, ignore: Any, salt: str) -> Fingerprint | None:
    added, functions = dependencies_of(depends)
    ignored = ignored_names(ignore)
    found = read(function, bound=bound, extra=functions)
    if not found.bodies.parts and not added:
        return None
    settled = _settled_of(function)
    values = {
        name: settled[name][1] if name in settled and settled[name][0] is found.held.get(name) else value
        for name, value in found.values.items()
        if not is_ignored(name, ignored)
    }
    looked = {name: value for name, value in found.looked.items() if not is_ignored(name.split(maxsplit=2)[2], ignored)}
    values |= added
    bodies = _without(found.bodies, ignored)
    known = [*found.values, *found.unread, *found.bodies.names(), *(name.split(maxsplit=2)[2] for name in found.looked)]
    plain = {name: value.digest for part in (values, looked) for name, value in part.items() if value.shown == SECRET}
    unsealed = digest = _digest(bodies, values, looked)
    if plain or bodies.secrets:
        values, looked = (
            {name: Value(sealed(plain[name], salt), SECRET) if name in plain else value for name, value in part.items()}
            for part in (values, looked)
        )
        bodies = bodies.sealed(_seals(bodies, salt))
        digest = _digest(bodies, values, looked)
    return Fingerprint(
        next(iter(bodies.parts), "the function").partition("(")[0],
        digest, unsealed, bodies, values, looked,
        {name: cls for name, cls in found.unread.items() if not is_ignored(name, ignored)},
        ignored,
        tuple(one for one in ignored if not any(is_ignored(name, (one,)) for name in known)),
        function, {"bound": bound, "depends": depends, "ignore": ignore, "salt": salt}, plain, found.held, found.texts,
    )  # fmt: skip


# --- digests ---------------------------------------------------------------------------------------------------------


def _digest(bodies: Bodies, values: Mapping[str, Value], looked: Mapping[str, Value]) -> str:
    code = _code_digest(bodies, {name: value.digest for name, value in looked.items()})
    return f"{_ALGORITHM}-{code}-{_values_digest(bodies, {name: value.digest for name, value in values.items()})}"


def _seals(bodies: Bodies, salt: str) -> dict[str, dict[str, str]]:
    """By function, what takes the place of the plain digests of its secrets."""
    return {label: {digest: sealed(digest, salt) for digest in digests} for label, digests in bodies.secrets.items()}


def _join(texts: Iterable[str]) -> str:
    return hashed("\n".join(sorted(texts)))


# --- state that was pinned -------------------------------------------------------------------------------------------

_settled: WeakKeyDictionary[FunctionType, dict[str, tuple[Any, Value]]] = WeakKeyDictionary()


def _anchor(value: Any) -> FunctionType | None:
    """What state is remembered by: the function inside."""
    while type(value) in (MethodType, partial):
        value = value.__func__ if type(value) is MethodType else value.func
    if type(value) is not FunctionType:
        value = of_class(type(value), "__call__")
    return value if type(value) is FunctionType else None


def _innermost(function: Any) -> FunctionType | None:
    """The function below decorators that keep what they wrap."""
    found = _anchor(function)
    while found is not None and "__wrapped__" in vars(found):
        found = _anchor(vars(found)["__wrapped__"])
    return found


def _settled_of(function: Any) -> dict[str, tuple[Any, Value]]:
    anchor = _anchor(function)
    return {} if anchor is None else _settled.get(anchor, {})


def _settle(function: Any, name: str, holder: Any, value: Value) -> None:
    anchor = _anchor(function)
    if anchor is not None:
        _settled.setdefault(anchor, {})[name] = (holder, value)
