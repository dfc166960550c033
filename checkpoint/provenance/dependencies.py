"""Resolve `depends=` and `ignore=`: what a function's results depend on that its code does not show, and what not.

The promise: a file counts by its content, a class by its schema, a function as one that is called, a template by its
text, and any other value as JSON. What cannot be compared is refused, before anything is paid.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path, PurePath
from types import FunctionType
from typing import Any

from checkpoint.errors import InvalidOption, quote
from checkpoint.provenance.fields import schema_of
from checkpoint.provenance.spelling import Value, array_value, name_of, value_of
from checkpoint.provenance.syntax import hashed

__all__ = ["check_depends", "dependencies_of", "ignored_names", "is_ignored"]


def check_depends(depends: Any) -> None:
    """Refuse what cannot be a dependency.

    Raises:
        InvalidOption: naming it, and what can be.
    """
    for name, value in _named(depends):
        if not (_is_path(value) or _is_code(value)):
            _value(name, value)


def ignored_names(ignore: Any) -> tuple[str, ...]:
    """The names of `ignore=`.

    Raises:
        InvalidOption: it is neither a name nor a sequence of names.
    """
    names = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(names, (tuple, list, set, frozenset)) or not all(isinstance(one, str) and one for one in names):
        raise InvalidOption(
            f'ignore is {quote(ignore)}; give the names of values as messages show them: ignore=("T0", "cfg.workers")'
        )
    return tuple(sorted(names)) if isinstance(names, (set, frozenset)) else tuple(names)


def is_ignored(name: str, ignored: tuple[str, ...]) -> bool:
    """Whether a value's name is one of these, or a part of one."""
    return any(name == one or name.startswith((f"{one}.", f"{one}[", f"{one} of ")) for one in ignored)


def dependencies_of(depends: Any) -> tuple[dict[str, Value], tuple[Any, ...]]:
    """The values that `depends=` adds, by name, and the functions.

    Raises:
        InvalidOption: a file is missing, or a value cannot be compared.
    """
    values: dict[str, Value] = {}
    functions: list[Any] = []
    for name, value in _named(depends):
        if _is_path(value):
            values[f"depends[{name}]"] = _content(Path(value))
        elif isinstance(value, type):
            values[f"depends[{name}]"] = Value(hashed(str(schema_of(value))), f"the class {name_of(value)}")
        elif _is_code(value):
            functions.append(value)
        else:
            values[f"depends[{name}]"] = _value(name, value)
    return values, tuple(functions)


def _named(depends: Any) -> Iterator[tuple[str, Any]]:
    """Each dependency with its name: its key, its path, its own name, or its place."""
    if isinstance(depends, dict):
        yield from ((str(name), value) for name, value in depends.items())
        return
    for place, value in enumerate(depends if isinstance(depends, (tuple, list)) else (depends,)):
        if _is_path(value):
            yield PurePath(value).as_posix() if not PurePath(value).is_absolute() else PurePath(value).name, value
        else:
            yield (name_of(value) if _is_code(value) else None) or str(place), value


def _is_path(value: Any) -> bool:
    return isinstance(value, PurePath)


def _is_code(value: Any) -> bool:
    return isinstance(value, (type, FunctionType)) or callable(getattr(value, "__wrapped__", None))


def _value(name: str, value: Any) -> Value:
    if isinstance(value, str) and len(value) < 250 and "\n" not in value and os.path.isfile(value):
        raise InvalidOption(
            f"depends= has the text {quote(value)}, which is the name of a file: write pathlib.Path({value!r}), and "
            "its content counts"
        )
    found = array_value(value) or value_of(name, [value])
    if found is None or not _is_known(value):
        raise InvalidOption(
            f"depends= has a {type(value).__name__} (place {name}), which cannot be compared; give a pathlib.Path, a "
            "template, a class, a function, or a JSON value that says what matters, such as its settings as a dict"
        )
    return found if array_value(value) else value_of(name, value) or found


def _is_known(value: Any) -> bool:
    return array_value(value) is not None or value_of("", value) is not None


def _content(path: Path) -> Value:
    """A file by its content; a directory by those of its files, with their names."""
    try:
        if path.is_dir():
            files = sorted(one for one in path.rglob("*") if one.is_file() and not one.name.startswith("."))
            told = [f"{one.relative_to(path).as_posix()} {blake2b(one.read_bytes()).hexdigest()}" for one in files]
            return Value(hashed("\n".join(told)), f"{len(files):,} files")
        data = path.read_bytes()
    except OSError as error:
        raise InvalidOption(
            f"depends= names the file {str(path)!r}, which cannot be read ({error.strerror or error}) from "
            f"{os.getcwd()!r}; give a path that leads there from anywhere: "
            f"pathlib.Path(__file__).parent / {path.name!r}"
        ) from error
    digest = blake2b(data, digest_size=16).hexdigest()
    return Value(digest, f"a file of {len(data):,} bytes ({digest[:6]})")
