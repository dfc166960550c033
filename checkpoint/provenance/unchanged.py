"""Whether all that a reading of a function looked at is what it was, so that the function need not be read again.

The promise: where nothing is said to have changed, a reading would find the same. That is told of functions only whose
code, and that of all functions that they call, reads plain constants: any other value may have changed inside.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import lru_cache
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, ModuleType
from typing import Any, Final

from checkpoint.provenance.noted import SCALARS, may_be_secret
from checkpoint.provenance.resolver import DOCUMENTS
from checkpoint.provenance.statics import dict_of, is_own_class, is_own_module, mro_of
from checkpoint.provenance.syntax import is_own_file

__all__ = ["Unchanged"]

_ABSENT: Final = object()
_MOST = 200  # functions: to look at more takes as long as reading them
# What leads to more than constants: the environment, files, docstrings, and what looks names up by itself.
_LEADS_ON = DOCUMENTS | {
    "environ", "getenv", "open", "read", "readlines", "read_text", "read_bytes", "load", "safe_load", "globals", "vars",
    "__dict__", "__wrapped__", "getattr",
}  # fmt: skip


class _TellsNothing(Exception):
    """A function reads more than plain constants."""


class Unchanged:
    """What a reading of a plain function saw.

    Args:
        function: that was read.

    Attributes:
        is_known: whether it is known at all; else it holds never.
    """

    __slots__ = ("_cells", "_functions", "_variables", "is_known")

    def __init__(self, function: Any) -> None:
        self._functions: list[tuple[FunctionType, CodeType, object]] = []
        self._variables: list[tuple[dict[str, Any], str, object]] = []  # of modules
        self._cells: list[tuple[CellType, object]] = []
        self.is_known = False
        try:
            self._see_all(function)
            self.is_known = True
        except (_TellsNothing, ValueError):  # the latter: a cell that is not filled yet
            self._functions, self._variables, self._cells = [], [], []

    def holds(self) -> bool:
        """Whether a reading would find the same."""
        return (
            self.is_known
            and all(_is_plain(function, code, defaults) for function, code, defaults in self._functions)
            and all(scope.get(name, _ABSENT) is value for scope, name, value in self._variables)
            and all(cell.cell_contents is value for cell, value in self._cells)
        )

    def _see_all(self, root: Any) -> None:
        todo, seen, variables = [root], set[int](), set[tuple[int, str]]()
        while todo:
            function = todo.pop()
            if id(function) in seen:
                continue
            seen.add(id(function))
            if type(function) is not FunctionType or len(seen) > _MOST:
                raise _TellsNothing
            code, defaults, scope = function.__code__, function.__defaults__, function.__globals__
            if not _is_plain(function, code, defaults) or not {*map(type, defaults or ())} <= SCALARS:
                raise _TellsNothing
            self._functions.append((function, code, defaults))
            if not is_own_file(code.co_filename):
                if function.__closure__ or function is root:
                    raise _TellsNothing  # it may wrap one that is the user's own
                continue
            names = _names_in(code)
            if not names.isdisjoint(_LEADS_ON):
                raise _TellsNothing
            first = code.co_argcount - len(defaults or ())
            for name, value in zip(code.co_varnames[first : code.co_argcount], defaults or (), strict=True):
                todo += _check(name, value)
            for cell, name in zip(function.__closure__ or (), code.co_freevars, strict=True):
                value = cell.cell_contents
                self._cells.append((cell, value))
                todo += _check(name, value)
            for name in names:
                if (id(scope), name) not in variables:
                    variables.add((id(scope), name))
                    value = scope.get(name, _ABSENT)
                    self._variables.append((scope, name, value))
                    todo += _check(name, value)


def _is_plain(function: FunctionType, code: CodeType, defaults: object) -> bool:
    """Whether a function has this code still, these defaults, and nothing else that counts."""
    return (
        function.__code__ is code
        and function.__defaults__ is defaults
        and not function.__kwdefaults__
        and not function.__dict__
    )


def _check(name: str, value: Any) -> Iterator[FunctionType]:
    """Yield the value if it is a function, which is to be seen too.

    Raises:
        _TellsNothing: it may hold more than it shows.
    """
    kind = type(value)
    if kind is FunctionType:
        yield value
    elif kind in SCALARS:
        if may_be_secret(name, value):
            raise _TellsNothing  # whether it counts, the environment says
    elif kind is ModuleType:
        if value is os or is_own_module(dict_of(value).get("__name__")):
            raise _TellsNothing
    elif issubclass(kind, type):
        if any(map(is_own_class, mro_of(value))):
            raise _TellsNothing
    elif not (value is _ABSENT or kind is BuiltinFunctionType):
        raise _TellsNothing


@lru_cache(maxsize=1024)
def _names_in(code: CodeType) -> frozenset[str]:
    """Names of variables of the module, and of attributes, in code and what is defined within it."""
    inner = [constant for constant in code.co_consts if type(constant) is CodeType]
    return frozenset(code.co_names).union(*map(_names_in, inner))
