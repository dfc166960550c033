"""Whether another process runs what this one runs: the same code, over the same values.

Worker processes import the program's modules anew. What the program has set since (an option of its command line, under
the main guard) is not there, and a file that was edited meanwhile is imported as it is now. So the driver sends what
its function reads; a worker compares, takes over what it may, and refuses to make calls where a difference is left.
"""

from __future__ import annotations

import inspect
import pickle
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import copy
from enum import Enum
from pathlib import PurePath
from types import MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

from checkpoint.errors import FunctionChanged
from checkpoint.provenance.fingerprint import Fingerprint, is_told
from checkpoint.provenance.spelling import Value, is_array
from checkpoint.provenance.syntax import is_own_file
from checkpoint.values.secrets import difference

__all__ = ["Agreement", "agreement_of"]

_LABEL = re.compile(r"""([^\W\d]\w*)((?:\.[^\W\d]\w*|\[(?:'[^'\\]*'|"[^"\\]*"|\d+)\])*)""")
_STEP = re.compile(r"""\.(\w+)|\['([^']*)'\]|\["([^"]*)"\]|\[(\d+)\]""")
_MOST_BYTES = 8_000_000  # of a value that is sent along
_MOST_SHOWN = 3

Reader = Callable[[Any], Fingerprint | None]
"""Reads the fingerprint of a function, as it is here."""


class _Sent(NamedTuple):
    """A value that the function reads.

    Attributes:
        module, variable: these lead to it.
        steps: from there on: whether it is an attribute (else an entry), and which.
        pickled: the value.
        is_holder: whether it only leads to what is read: it is taken over where there is no other that could.
    """

    module: str
    variable: str
    steps: tuple[tuple[bool, str | int], ...]
    pickled: bytes
    is_holder: bool = False


class Agreement:
    """What the function of the driver is and reads, on its way to another process.

    Args:
        read: how a fingerprint is read here, and there.
        now: the one of the driver's function.
    """

    def __init__(self, read: Reader, now: Fingerprint) -> None:
        self._read = read
        self._name, self._digest, self._parts = now.name, now.digest, now.parts
        values = _comparable(now)
        self._values = {name: value.digest for name, value in values.items()}
        self._shown = {name: value.shown for name, value in values.items()}
        modules = [(name, scope.get("__file__")) for name, scope in _own_modules()]
        self._files = {PurePath(path).name for name, path in modules if name != "__main__" and isinstance(path, str)}
        self._sent = list(_values_of(values))

    def without_values(self) -> Agreement:
        """The same for a process in which no values are set."""
        bare = copy(self)
        bare._sent = []
        return bare

    def check(self, function: Any, *, takes_over: bool, travelled: bool) -> None:
        """See that the function does here what it does in the driver.

        Args:
            function: it, in this process.
            takes_over: whether values that differ may be set here.
            travelled: whether its code came with it, and was not imported here.

        Raises:
            FunctionChanged: it does not; the message says why, and what to pass how.
        """
        values, code = self._differences(function, travelled=travelled)
        if values and takes_over:
            main = _scope_of_main(function)
            for sent in self._sent:
                _take_over(sent, main)
            values, code = self._differences(function, travelled=travelled)
        if values or code:
            raise FunctionChanged(self._message(values, code), changes=(*values, *code))

    def _differences(self, function: Any, *, travelled: bool) -> tuple[list[str], list[str]]:
        """Values, as "name: there → here", and code, by function."""
        now = self._read(function)
        if now is None:
            return [], []
        comparable = is_told(self._digest, now.digest)
        mine, theirs = {*self._parts.values()}, {*now.parts.values()}
        same = not comparable or mine == theirs
        values, there_now = [], _comparable(now)
        for name in dict.fromkeys([*self._values, *there_now]):
            here = there_now.get(name)
            is_known = here is not None and name in self._values
            differs = here.digest != self._values[name] if here is not None and is_known else same and not travelled
            if differs:
                there = self._shown.get(name, "not there")
                values.append(difference(name, there, "not there" if here is None else here.shown))
        if not comparable:  # the source is not that of the code which runs, as where a test runner rewrote it
            return values, []
        if travelled:  # then only what it calls of imported modules may be another
            code = [name for name, digest in self._parts.items() if now.parts.get(name, digest) != digest]
            return values, [name for name in code if name.rpartition(" in ")[2] in self._files]
        code = [name for name, digest in self._parts.items() if digest not in theirs]
        return values, code + [name for name, digest in now.parts.items() if digest not in mine]

    def _message(self, values: list[str], code: list[str]) -> str:
        told = "; ".join([*values, *code][:_MOST_SHOWN])
        rest = len(values) + len(code) - _MOST_SHOWN
        told += f"; and {rest} more" if rest > 0 else ""
        if code:
            handed = ": put it in the item, or define it where every process does, outside of the main guard"
            return (
                f"worker processes run another {self._name} than this process does ({told}): they import its module "
                "as it is now. If it was edited since this process imported it, start the program again; if what it "
                f"calls was chosen or set as the program runs, workers do not see that{handed}; or leave executor= out "
                "for threads (workers=8)"
            )
        return (
            f"{self._name} reads other values in worker processes than in this one (here → there: {told}). They import "
            "its modules anew, and what was set since is not there. Hand it over with the function: "
            "functools.partial(f, model=model), an attribute of the object whose method is mapped, or a part of each "
            "item; or leave executor= out for threads (workers=8)"
        )


def agreement_of(read: Reader, function: Any) -> Agreement | None:
    """What is sent along with a function; None where it has no code to read."""
    now = read(function)
    return None if now is None else Agreement(read, now)


# --- values ----------------------------------------------------------------------------------------------------------

_ARRAY = "the array "  # what a fingerprint names them by


def _comparable(now: Fingerprint) -> dict[str, Value]:
    """What must be the same there as here: values, and arrays. Files and the environment are another matter."""
    arrays = {name.removeprefix(_ARRAY): value for name, value in now.looked.items() if name.startswith(_ARRAY)}
    return {**arrays, **now.values}


def _values_of(names: Iterable[str]) -> Iterator[_Sent]:
    """The values of those names that variables of the user's own modules lead to; and these, for where there are none.

    A name may be that of variables of several modules: each of them gets its own value, and so no other than it has.
    """
    wholes: dict[tuple[str, str], bytes | None] = {}
    modules = list(_own_modules())
    for name in names:
        label = _LABEL.match(name)
        if label is None:
            continue
        steps = tuple(_step(found) for found in _STEP.finditer(label[2]))
        for module, scope in modules:
            if label[1] not in scope:
                continue
            place = (module, label[1])
            if place not in wholes:
                wholes[place] = _pickled(scope[label[1]])
                if wholes[place] is not None and steps:
                    yield _Sent(*place, (), wholes[place] or b"", is_holder=True)
            try:
                value = _walk(scope[label[1]], steps)
            except (AttributeError, LookupError, TypeError):
                continue
            pickled = _pickled(value)
            if pickled is not None:
                yield _Sent(*place, steps, pickled)


def _own_modules() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, module in list(sys.modules.items()):
        if type(module) is ModuleType and name != "__mp_main__":
            path = vars(module).get("__file__")
            if name == "__main__" or (isinstance(path, str) and is_own_file(path)):
                yield name, vars(module)


def _pickled(value: Any) -> bytes | None:
    """Data; no module, class or function, which a worker has by its name."""
    if isinstance(value, (ModuleType, type)) or callable(value):
        return None
    try:
        pickled = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
    except Exception:  # pickling runs the value's own code
        return None
    return pickled if len(pickled) <= _MOST_BYTES else None


def _step(found: re.Match[str]) -> tuple[bool, str | int]:
    attribute, *keys, number = found.groups()
    if attribute is not None:
        return True, attribute
    return False, int(number) if number is not None else next(key for key in keys if key is not None)


def _walk(value: Any, steps: Iterable[tuple[bool, Any]]) -> Any:
    for is_attribute, name in steps:
        if is_attribute:
            found = inspect.getattr_static(value, name)
            value = found.__get__(value) if type(found) is MemberDescriptorType else found
        else:
            value = value[name]
    return value


def _scope_of_main(function: Any) -> dict[str, Any]:
    """The variables that functions of the main module see, which multiprocessing copied into that module."""
    module = vars(sys.modules["__main__"])
    members = [member for value in module.values() if isinstance(value, type) for member in vars(value).values()]
    for one in (function, *module.values(), *members):
        with suppress(AttributeError):
            while True:  # past the user's hooks; decorators keep what they wrap
                one = object.__getattribute__(one, "__wrapped__")
        scope = getattr(getattr(one, "__func__", one), "__globals__", None) if callable(one) else None
        if isinstance(scope, dict) and scope.get("__name__") == "__mp_main__":
            return scope
    return module


def _take_over(sent: _Sent, main: dict[str, Any]) -> None:
    """Set a value that differs here; where that fails, the next comparison says so."""
    try:
        scope = main if sent.module == "__main__" else vars(sys.modules[sent.module])
        before = scope.get(sent.variable)
        if sent.is_holder and getattr(before, "__dict__", None) is not None and not isinstance(before, Enum):
            return  # an object stays the one that others hold, too; its parts are set
        value = pickle.loads(sent.pickled)
        if not sent.steps:
            _put(scope, sent.variable, value)
            return
        *way, (is_attribute, name) = sent.steps
        holder = _walk(scope[sent.variable], way)
        if is_attribute:
            _set_attribute(holder, str(name), value)
        else:
            _put(holder, name, value)
    except Exception:  # the user's classes may refuse in any way
        return


def _put(holder: Any, key: Any, value: Any) -> None:
    """Set an entry; a list, dict or array that is there stays the same object, which others hold, too."""
    before: Any = holder.get(key) if isinstance(holder, dict) else holder[key]
    if type(before) is type(value) is dict:
        before.clear()
        before.update(value)
    elif type(before) is type(value) is list:
        before[:] = value
    elif _are_alike(before, value):
        before[...] = value
    else:
        holder[key] = value


def _are_alike(before: Any, value: Any) -> bool:
    """Whether they are arrays, and the first one can hold what the other one does."""
    if not (is_array(before) and is_array(value) and before.flags.writeable):
        return False
    return bool(before.shape == value.shape and before.dtype == value.dtype)


def _set_attribute(holder: Any, name: str, value: Any) -> None:
    try:
        setattr(holder, name, value)
    except AttributeError:  # it is frozen
        object.__setattr__(holder, name, value)
