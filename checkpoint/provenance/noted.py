"""Note what a reading of code comes to: values that are read, state that the code sets, and files that it names.

The promise: a value that the code itself sets or changes is state, and does not count; neither does a secret that the
environment gives; and a file counts by its content, not by its path.
"""

from __future__ import annotations

import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from hashlib import blake2b
from pathlib import PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any, NamedTuple, TypeAlias

from checkpoint.provenance.clocks import SURROUNDINGS
from checkpoint.provenance.spelling import Value, array_value, is_array, is_plain, value_of
from checkpoint.provenance.statics import (
    dict_of,
    is_mapping,
    is_own_class,
    items_of,
    label_of,
    root_of,
)
from checkpoint.provenance.uses import Const, Ref, Uses

__all__ = ["SCALARS", "At", "NamedFiles", "Noted", "Place", "is_path", "may_be_secret", "writes"]

Place: TypeAlias = tuple[Any, ...]  # what holds a value, by its id, and under which name
SCALARS = frozenset({str, int, float, bool, type(None), bytes})
_HOLDERS = frozenset({list, dict, set, deque, bytearray})
_OPEN = Ref("global", "open")
_READERS = frozenset({"read_text", "read_bytes", "open", "read", "readlines", "load", "safe_load"})
_WRITERS = frozenset(
    {"write_text", "write_bytes", "write", "writelines", "touch", "unlink", "dump", "mkdir", "savefig"}
)
# Broader than `values.secrets`: what the environment gives, too, and may be a secret, is another on each machine.
_SECRET_NAME = re.compile(r"key|token|passw|pwd|secret|auth|cred|cookie|bearer|private|salt|dsn|signature", re.I)
_SECRET_TEXT = re.compile(r"://[^/\s]*@|(?=[A-Za-z]*\d)[A-Za-z0-9]{20}|^(?:sk|pk|ghp|xox\w)[-_]")
_WRITING = re.compile(r"[rwaxbt]*[wax+][bt+]*")


class At(NamedTuple):
    """A value that a function comes to.

    Attributes:
        place: what holds it, and under which name.
        name: as messages name it.
        owner: the function that reads it.
        value: itself.
        holder: the object that has it as an attribute or entry, if any.
        trail: the places and objects on the way to it.
        omitted: entries that are times, ids, hosts or directories.
        attributes: of the objects on the way.
    """

    place: Place
    name: str
    owner: str
    value: Any
    holder: Any = None
    trail: tuple[Any, ...] = ()
    omitted: frozenset[str] = frozenset()
    attributes: tuple[str, ...] = ()

    def part(self, place: Place, name: str, value: Any, holder: Any = None) -> At:
        """A part of the value."""
        attributes = self.attributes if holder is None else (*self.attributes, place[-1])
        trail = (*self.trail, self.place, id(self.value))
        return At(place, name, self.owner, value, holder, trail, attributes=attributes)


class Noted:
    """The values that the code reads, and the state that it sets or changes: a value that is state does not count.

    Attributes are state by name, whichever object they are of; all else by its place, or by the id of a changed object.

    Attributes:
        alive: objects that places are named by the ids of: no other one may get such an id.
    """

    def __init__(self) -> None:
        self.alive: list[Any] = []
        self._reads: dict[Place, tuple[At, bool]] = {}
        self._stored: set[str] = set()  # attributes that the code sets
        self._set: set[Any] = set()  # places that the code sets, and ids of what it changes in place
        self._entered: set[int] = set()  # ids of objects of which it sets a part

    def note(self, at: At, *, deep: bool = True) -> None:
        """Note that the code reads a value: all of it, or only which one it is, if not `deep`."""
        if at.place and at.name and (at.place not in self._reads or (deep and not self._reads[at.place][1])):
            self._reads[at.place] = (at, deep)

    def reads(self) -> Iterator[At]:
        """Yield the values that are read, state among them."""
        return (at for at, _ in self._reads.values())

    def set_attributes(self, names: frozenset[str]) -> None:
        """Note that the code sets attributes of these names, of whichever object."""
        self._stored |= names

    def set_variable(self, place: Place) -> None:
        """Note that the code sets a variable."""
        self._set.add(place)

    def set_part(self, at: At, key: Any) -> None:
        """Note that the code sets a part of a value: a module's variable, an attribute or an entry."""
        if type(at.value) is ModuleType:
            self._set.add((id(dict_of(at.value)), key))
            return
        self._set.add((id(at.value), key))
        if is_plain(at.value) and type(at.value) not in (list, dict):
            self._set.add(at.place)
        self._entered.add(id(at.value))
        self.alive.append(at.value)

    def change(self, at: At) -> None:
        """Note that the code changes a value in place, which is its state then."""
        self._set.add(at.place)
        if not (type(at.value) in SCALARS or issubclass(type(at.value), type)):
            self._set.add(id(at.value))
            self.alive.append(at.value)

    def _is_state(self, at: At) -> bool:
        """Whether the code itself sets or changes a value, or what holds it."""
        if at.holder is not None and not self._stored.isdisjoint((at.place[-1], *at.attributes)):
            return True
        if not self._set:
            return False
        here = (at.place, id(at.value))
        return not self._set.isdisjoint((*here, *at.trail)) or (
            id(at.value) in self._entered and not is_own_class(type(at.value))
        )

    def _is_secret(self, at: At) -> bool:
        """Whether a value is an API key or the like that the environment gives: another one changes no result."""
        value = at.value
        return may_be_secret(at.name, value) and not self._secrets.isdisjoint((value, value.rpartition(" ")[2]))

    @cached_property
    def _secrets(self) -> frozenset[str]:
        return frozenset(
            value for name, value in os.environ.items() if len(value) >= 8 and SURROUNDINGS.fullmatch(name)
        )

    def values(self) -> tuple[dict[str, Value], dict[str, Any], dict[str, str], dict[str, str]]:
        """Spell the values that are read and are no state: values, holders, unread and texts, as in `Found`."""
        values: dict[str, Value] = {}
        held: dict[str, Any] = {}
        unread: dict[str, str] = {}
        texts: dict[str, str] = {}
        for at, deep in self._reads.values():
            if at.holder is os.environ or self._is_state(at) or self._is_secret(at):
                continue
            value = value_of(at.name, _without(at.value, at.omitted), deep=deep)
            if value is None:
                if _is_opaque(at.value) and not is_array(at.value):
                    unread[at.name] = f"{root_of(type(at.value))}.{label_of(type(at.value))}"
                continue
            name = at.name
            if name in values:
                name = f"{name} of {at.owner}()" if at.owner else f"{name}#2"
            while name in values:
                name += "'"
            values[name] = value
            held[name] = at.value if type(at.value) in _HOLDERS else at.holder
            if type(at.value) is str:
                texts[name] = at.value
        return values, held, unread, texts

    def looked(self) -> dict[str, Value]:
        """Spell the arrays that are read, and the variables of the environment.

        Machines differ in their environment, and a program may set it for one map and not for the next.
        """
        found: dict[str, Value] = {}
        for at, _ in self._reads.values():
            is_variable = at.holder is os.environ
            value = value_of(at.name, at.value) if is_variable else array_value(at.value)
            if value is not None and not self._is_state(at):
                name = f"the {'variable' if is_variable else 'array'} {at.name}"
                while name in found:
                    name += "'"
                found[name] = value
        return found


class NamedFiles:
    """The files that the code names and reads, whose contents are values.

    A text of the code or a value that is read may name one. Code that writes files names its own output, which is none.

    Attributes:
        is_any_read: whether the code reads any files.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[str, tuple[str, ...]]] = []  # that may name files, with the path of the code
        self._paths: dict[Place, str] = {}  # of files, which lie elsewhere on each machine
        self._written: set[Place] = set()  # places of paths that the code writes to
        self._written_names: set[str] = set()  # and attributes of code that writes files
        self.is_any_read = False

    def read_code(self, code: CodeType, uses: Uses) -> bool:
        """Note the texts that may name files which the code reads; whether it writes some instead."""
        if writes(uses):
            self._written_names |= uses.names
            return True
        opened = any(use.ref == _OPEN and use.how == "called" for use in uses.outer)
        self.is_any_read |= opened or not uses.names.isdisjoint(_READERS)
        if uses.texts:
            self._texts.append((code.co_filename, uses.texts))
        return False

    def note_path(self, place: Place, value: Any) -> None:
        """Note a path of this machine, which may name a file that is read."""
        if is_path(value):
            self._paths[place] = str(value)

    def note_written(self, place: Place) -> None:
        """Note that the code writes to the path at a place."""
        self._written.add(place)

    def values(self, reads: Iterable[At]) -> dict[str, Value]:
        """Digest the files that exist, of those that the code or the values which it reads name."""
        named = {text: os.path.dirname(path) for path, texts in self._texts for text in texts}
        for place, path in [*((at.place, at.value) for at in reads), *self._paths.items()]:
            is_attribute = place[-1:] and place[-1] in self._written_names
            if is_path(path) and place not in self._written and not is_attribute:
                named.setdefault(str(path), "")
        found = {}
        for text, directory in named.items():
            for path in (text, os.path.join(directory, text)) if directory else (text,):
                if (value := _file_value(path)) is not None:
                    found[f"the file {PurePath(text).name}"] = value
                    break
        return found


def _without(value: Any, omitted: frozenset[str]) -> Any:
    """A mapping less some of its entries."""
    if not omitted or not is_mapping(value):
        return value
    return {key: part for key, part in items_of(value) or () if key not in omitted}


def may_be_secret(name: str, value: Any) -> bool:
    """Whether a value looks like an API key, by its name or by itself."""
    if type(value) is not str or not 8 <= len(value) < 1000:
        return False
    return bool(_SECRET_NAME.search(name) or _SECRET_TEXT.search(value))


def _is_opaque(value: Any) -> bool:
    """Whether a value is an object of an installed class that may hold what a result depends on."""
    kind = type(value)
    if kind in (FunctionType, BuiltinFunctionType, MethodType, ModuleType) or issubclass(kind, type):
        return False
    root = root_of(kind)
    return root not in sys.stdlib_module_names and root not in ("builtins", "checkpoint", "") and not is_own_class(kind)


def writes(uses: Uses) -> bool:
    """Whether the code writes files."""
    opened = [use for use in uses.outer if use.ref == _OPEN and use.how == "called"]
    modes = [given.value for use in opened for given in use.given[1:2] if type(given) is Const]
    is_opened = any(type(mode) is str and _WRITING.fullmatch(mode) for mode in modes)
    return is_opened or not uses.names.isdisjoint(_WRITERS)


def is_path(value: Any) -> bool:
    """Whether a value may be the name of a file."""
    return (type(value) is str and 0 < len(value) < 200) or issubclass(type(value), PurePath)


def _file_value(path: str) -> Value | None:
    """The digest of a file's content; None where there is none."""
    try:
        if not os.path.isfile(path) or path.endswith((".py", ".pyc")):
            return None
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = blake2b(str(size).encode() + file.read(1 << 20), digest_size=16)
            if size > 2 << 20:
                file.seek(-(1 << 20), os.SEEK_END)
            digest.update(file.read(1 << 20))
    except (OSError, ValueError):
        return None
    return Value(digest.hexdigest(), f"a file of {size:,} bytes")
