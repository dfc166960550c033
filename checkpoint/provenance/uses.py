"""Which variables a function's code reads, and what it does with each: found in its bytecode, with or without source.

The promise: `cfg["model"]` is a use of that entry and of no other; an object that is handed on is a use of all of it;
a value that the code changes in place or sets again is marked as changed. Where the code is too clever to follow, a
value counts as read whole. Nothing is run. Pythons differ in bytecode, and not in the uses that are found.

The instructions are walked through once, with a stack that holds variables in place of values: each is followed through
attributes and entries to the instruction that consumes it.
"""

from __future__ import annotations

import dis
from collections import Counter
from functools import lru_cache
from types import CodeType
from typing import Any, Final, Literal, NamedTuple

__all__ = ["CHANGING", "Const", "Ref", "Step", "Use", "Uses", "uses_of"]

CHANGING: Final = frozenset({
    "append", "extend", "insert", "remove", "pop", "clear", "sort", "reverse", "update", "setdefault", "popitem", "add",
    "discard", "appendleft", "popleft", "extendleft", "rotate", "subtract", "move_to_end", "difference_update",
    "intersection_update", "symmetric_difference_update", "__setitem__", "__delitem__", "__iadd__", "__ior__",
})  # fmt: skip

Kind = Literal[".", "[", "get", "*"]


class Step(NamedTuple):
    """One step from a value to a part of it: an attribute, an entry, what `.get` gives, or any element."""

    kind: Kind
    key: Any = None


class Const(NamedTuple):
    """A constant of the code."""

    value: Any


class Ref(NamedTuple):
    """A variable, and the steps from its value to a part of it.

    Attributes:
        root: "global", "free" (of an outer function), or "local" (an argument of the function itself).
    """

    root: str
    name: str
    path: tuple[Step, ...] = ()

    def to(self, kind: Kind, key: Any = None) -> Ref:
        """A part of it."""
        return self._replace(path=(*self.path, Step(kind, key)))


class Use(NamedTuple):
    """What the code does with a variable, or with a part of it.

    Attributes:
        how: "read" (all of it is), "tested" (whether it is there, or true), "iterated", "called", "argument" (of a
            call), "set" (the variable or part is), "changed" (the value is, in place).
        callee: of an argument, the function that it is handed to, where that is a variable.
        place: its position among the arguments, or its name; of a value that is changed, the method that changes it.
        given: of a call, its arguments as far as they are constants or variables.
    """

    ref: Ref
    how: str
    callee: Ref | None = None
    place: int | str | None = None
    given: tuple[Any, ...] = ()


class Uses(NamedTuple):
    """All that the code of a function, and the code within it, does with variables.

    Attributes:
        outer: uses of globals and of variables of outer functions.
        inner: uses of the function's own arguments.
        names: attributes that are read of anything.
        stored: attributes that are set or changed of its arguments, or of objects which the code does not make itself.
        texts: short strings, each of which may be the name of a file.
        arguments: names of positional arguments.
        followed: arguments that no statement sets again; of others nothing is known.
    """

    outer: tuple[Use, ...]
    inner: tuple[Use, ...]
    names: frozenset[str]
    stored: frozenset[str]
    texts: tuple[str, ...]
    arguments: tuple[str, ...]
    followed: frozenset[str]


@lru_cache(maxsize=4096)
def uses_of(code: CodeType) -> Uses:
    """What the code does with variables."""
    scan = _scanned(code)
    uses = dict.fromkeys(scan.uses)
    outer = tuple(use for use in uses if use.ref.root != "local")
    inner = tuple(use for use in uses if use.ref.root == "local")
    changed = [use.ref.path[0] for use in inner if use.how in ("set", "changed") and use.ref.path]
    stored = frozenset(scan.stored).union(str(step.key) for step in changed if step.kind == ".")
    arguments, texts = code.co_varnames[: code.co_argcount], tuple(dict.fromkeys(scan.texts))
    return Uses(outer, inner, frozenset(scan.names), stored, texts, arguments, scan.followed())


# --- one code object -------------------------------------------------------------------------------------------------


class _Null:
    """What calls find beside their function where there is no `self`."""


class _Result:
    """An object that the code makes, or gets of a call."""


_NULL, _RESULT = _Null(), _Result()


class _Saved(NamedTuple):
    """What a name stood for before a comprehension took it for its own."""

    value: Any


class _Made(NamedTuple):
    """A function that the code makes."""

    code: CodeType


_IDLE = frozenset({
    "RESUME", "NOP", "CACHE", "EXTENDED_ARG", "MAKE_CELL", "COPY_FREE_VARS", "PRECALL", "KW_NAMES", "SETUP_ANNOTATIONS",
    "RETURN_CONST", "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "NOT_TAKEN", "GET_YIELD_FROM_ITER",
    "GET_ITER", "POP_BLOCK", "ASYNC_GEN_WRAP", "LIST_TO_TUPLE", "POP_EXCEPT", "JUMP",
    "DELETE_FAST", "DELETE_NAME", "GET_AWAITABLE",
})  # fmt: skip
_TAKING = (
    "STORE_",
    "DELETE_",
    "POP_",
    "END_",
    "RETURN_",
    "RAISE_",
    "LIST_",
    "SET_",
    "MAP_",
    "DICT_",
    "JUMP_IF_",
    "RERAISE",
)
_ENDING = frozenset({
    "RETURN_VALUE", "RETURN_CONST", "JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "RAISE_VARARGS",
    "RERAISE", "JUMP",
})  # fmt: skip
_LOCALS = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW"})
_TWO_LOCALS = frozenset({"LOAD_FAST_LOAD_FAST", "LOAD_FAST_BORROW_LOAD_FAST_BORROW"})
_CELLS = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_GLOBALS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})
_CALLS = frozenset({"CALL", "CALL_KW", "CALL_FUNCTION_EX"})
_TESTS = frozenset({"TO_BOOL", "UNARY_NOT", "IS_OP"})


class _Scan:
    """One walk through the instructions of a code object, each looked at once."""

    def __init__(self, code: CodeType) -> None:
        self.uses: list[Use] = []
        self.names: set[str] = set()
        self.stored: set[str] = set()
        self.texts: list[str] = []
        self._code = code
        self._stack: list[Any] = []
        self._states: dict[int, list[Any]] = {}
        self._closures = frozenset((*code.co_cellvars, *code.co_freevars))
        count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
        self._arguments = frozenset(code.co_varnames[:count])
        self._set = Counter(self._arguments)
        self._known: dict[str, Any] = {".0": _ITERATED}
        self._scoped: set[str] = set()  # names of comprehensions that are part of this code
        self._keywords: tuple[str, ...] = ()

    def run(self) -> None:
        steps = list(dis.get_instructions(self._code))
        for step in steps:
            if step.opname.startswith(("STORE_FAST", "STORE_DEREF", "STORE_NAME", "DELETE_FAST", "DELETE_DEREF")):
                given = step.argval if type(step.argval) is tuple else (step.argval,)
                self._set.update(given[:1] if step.opname == "STORE_FAST_LOAD_FAST" else given)
            elif step.opname == "LOAD_FAST_AND_CLEAR":  # and it is stored again, after the comprehension and its errors
                self._set.subtract([step.argval, step.argval])
                self._scoped.add(step.argval)
        self.texts += [
            one for one in self._code.co_consts if type(one) is str and 2 < len(one) < 200 and "\n" not in one
        ]
        reached = True
        for step in steps:
            if step.opname in ("CACHE", "EXTENDED_ARG"):
                continue
            if step.offset in self._states:
                self._merge(self._states[step.offset] if reached else None, step.offset)
            elif not reached:
                self._stack = []
            reached = step.opname not in _ENDING
            self._step(step)

    def _merge(self, other: list[Any] | None, offset: int) -> None:
        """Two ways lead here: where they differ in a value, both values count as read."""
        if other is None:
            self._stack = list(self._states[offset])
            return
        depth = min(len(self._stack), len(other))
        mine, its = self._stack[len(self._stack) - depth :], other[len(other) - depth :]
        for place, (one, two) in enumerate(zip(mine, its, strict=True)):
            if one != two:
                self._take(one, "read")
                self._take(two, "read")
                mine[place] = None
        self._stack = mine

    def followed(self) -> frozenset[str]:
        """The arguments that are set once, by the caller."""
        return frozenset(name for name in self._arguments if self._set[name] == 1)

    # the stack

    def _push(self, *values: Any) -> None:
        self._stack += values

    def _pop(self) -> Any:
        return self._stack.pop() if self._stack else None

    def _pops(self, count: int) -> list[Any]:
        return [self._pop() for _ in range(count)][::-1]

    def _take(self, value: Any, how: str) -> None:
        if type(value) is Ref:
            self.uses.append(Use(value, how))
        elif type(value) is _Made:
            self._enter(value.code)

    def _enter(self, code: CodeType, iterated: Any = None) -> None:
        """Code within this code: what it reads of our variables is read here."""
        inner = _scanned(code)
        self.names |= inner.names
        self.stored |= inner.stored
        self.texts += inner.texts
        for use in inner.uses:
            ref, callee = self._outward(use.ref, iterated), use.callee
            if ref is not None:
                given = tuple(self._outward(one, iterated) if type(one) is Ref else one for one in use.given)
                self.uses.append(Use(ref, use.how, callee and self._outward(callee, iterated), use.place, given))

    def _outward(self, ref: Ref, iterated: Any) -> Ref | None:
        """A variable of code within this code, as it is called here; None where it is unknown here."""
        if ref.root == "global":
            return ref
        found = self._cell(ref.name) if ref.root == "free" else iterated if ref.root == _ITERATED.root else None
        return found._replace(path=found.path + ref.path) if type(found) is Ref else None

    # variables

    def _local(self, name: str) -> Any:
        if name in self._known and (self._set[name] <= 1 or name in self._scoped):
            return self._known[name]
        return Ref("local", name) if name in self._arguments and self._set[name] == 1 else None

    def _cell(self, name: str) -> Any:
        return Ref("free", name) if name in self._code.co_freevars else self._local(name)

    def _assign(self, name: str, value: Any) -> None:
        if type(value) is _Saved:
            self._known[name] = value.value
        elif self._set[name] == 1 or name in self._scoped:
            self._known[name] = value
            if type(value) is _Made:
                self._take(value, "read")
        else:
            self._take(value, "read")

    # instructions

    def _step(self, step: dis.Instruction) -> None:
        """Follow one instruction; here those that load, call or move values on the stack."""
        name, argval = step.opname, step.argval
        if name in _CALLS:
            self._call(step)
        elif name in _LOCALS:
            self._push(None if argval in self._closures else self._local(argval))
        elif name == "LOAD_FAST_AND_CLEAR":
            self._push(_Saved(self._local(argval)))
        elif name in _TWO_LOCALS:
            self._push(*map(self._local, argval))
        elif name in _GLOBALS:
            self._load_global(step)
        elif name in _CELLS:
            self._push(self._cell(argval))
        elif name in ("LOAD_CONST", "LOAD_SMALL_INT"):
            self._push(Const(argval))
        elif name == "PUSH_NULL":
            self._push(_NULL)
        elif name in ("LOAD_ATTR", "LOAD_METHOD"):
            self._load_attribute(step)
        elif name in ("LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD"):
            self._load_super(step)
        elif name == "BINARY_SUBSCR" or (name == "BINARY_OP" and step.argrepr == "[]"):
            self._subscript()
        elif name in ("MAKE_FUNCTION", "SET_FUNCTION_ATTRIBUTE"):
            self._make_function(step)
        elif name == "KW_NAMES":
            self._keywords = argval if type(argval) is tuple else self._code.co_consts[step.arg or 0]
        elif name == "COPY":
            self._push(self._stack[-step.arg] if len(self._stack) >= (step.arg or 1) else None)  # type: ignore[operator]
        elif name == "SWAP":
            self._swap(step.arg or 1)
        elif name.startswith(("STORE_", "DELETE_")):
            self._store(step)
        else:
            self._step_further(step)
        self._leave(step)

    def _store(self, step: dis.Instruction) -> None:
        """A variable, an attribute or an entry is set or deleted."""
        name, argval = step.opname, step.argval
        if name in ("STORE_FAST", "STORE_NAME"):
            self._assign(argval, self._pop())
        elif name == "STORE_FAST_STORE_FAST":
            for one in argval:
                self._assign(one, self._pop())
        elif name == "STORE_FAST_LOAD_FAST":
            self._assign(argval[0], self._pop())
            self._push(self._local(argval[1]))
        elif name in ("STORE_GLOBAL", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_DEREF"):
            self._store_outside(name, argval)
        elif name in ("STORE_ATTR", "DELETE_ATTR"):
            holder = self._pop()
            self._take(self._pop() if name == "STORE_ATTR" else None, "read")
            self._store_attribute(holder, argval)
        elif name in ("STORE_SUBSCR", "DELETE_SUBSCR"):
            key, holder = self._pop(), self._pop()
            self._take(self._pop() if name == "STORE_SUBSCR" else None, "read")
            self._take(key, "read")
            self._store_entry(holder, key)
        elif name == "STORE_SLICE":
            *parts, holder, _, _ = self._pops(4)
            for part in parts:
                self._take(part, "read")
            self._take(holder, "changed")
        elif name not in _IDLE:
            self._step_unknown(step)

    def _step_further(self, step: dis.Instruction) -> None:
        """What is neither a load, nor a call, nor a store: operators, loops, unpacking and tests."""
        name, argval = step.opname, step.argval
        if name == "BINARY_OP" and step.argrepr.endswith("="):
            other, mine = self._pop(), self._pop()
            self._take(other, "read")
            self._take(mine, "read")
            self._take(mine, "changed")
            self._push(None)
        elif name == "FOR_ITER":
            above = self._stack[-1] if self._stack else None
            self._take(above, "iterated")
            self._states.setdefault(argval, [*self._stack[:-1], *_AFTER_LOOP])
            self._push(above.to("*") if type(above) is Ref else None)
        elif name == "SEND":  # where it jumps to, an answer takes the place of what is awaited
            awaited = 2 + dis.stack_effect(step.opcode, step.arg, jump=True)
            self._states.setdefault(argval, [*self._stack[:-2], *[None] * awaited])
            self._step_unknown(step)
        elif name == "UNPACK_SEQUENCE":
            whole = self._pop()
            parts = [whole.to("[", place) if type(whole) is Ref else None for place in range(step.arg or 0)]
            self._push(*reversed(parts))
        elif name == "CONTAINS_OP" and self._tests_variable():
            pass
        elif name in ("BEFORE_WITH", "BEFORE_ASYNC_WITH"):
            self._take(self._pop(), "tested")
            self._push(None, None)
        elif name == "POP_TOP" or name in _TESTS or name.startswith(("POP_JUMP", "JUMP_IF")):
            self._test(step)
        elif name not in _IDLE:
            self._step_unknown(step)

    def _tests_variable(self) -> bool:
        """Whether the instruction is `"X" in os.environ`, which reads that variable alone; it is taken if so."""
        key, holder = self._stack[-2:] if len(self._stack) > 1 else (None, None)
        if type(key) is not Const or type(key.value) is not str or type(holder) is not Ref:
            return False
        if (holder.path[-1].key if holder.path else holder.name) != "environ":
            return False
        self._pops(2)
        self._take(holder.to("get", key.value), "read")
        self._push(None)
        return True

    def _step_unknown(self, step: dis.Instruction) -> None:
        """Whatever an instruction takes from the stack counts as read."""
        effect = dis.stack_effect(step.opcode, step.arg, jump=False)
        if step.opname == "UNPACK_EX":
            self._take(self._pop(), "read")
            self._push(*[None] * (effect + 1))
        elif effect > 0:
            self._push(*[None] * effect)
        elif step.opname.startswith(_TAKING):
            for value in self._pops(-effect):
                self._take(value, "read")
        else:
            for value in self._pops(1 - effect):
                self._take(value, "read")
            self._push(_RESULT if step.opname.startswith("BUILD_") else None)

    def _test(self, step: dis.Instruction) -> None:
        if step.opname.startswith("JUMP_IF"):  # and/or: the value stays where it jumps, and goes where it does not
            self._states.setdefault(step.argval, list(self._stack))
            self._take(self._pop(), "tested")
            return
        for value in self._pops(2 if step.opname == "IS_OP" else 1):
            self._take(value, "tested")
        if step.opname in _TESTS:
            self._push(None)

    def _leave(self, step: dis.Instruction) -> None:
        """The state is remembered for where the instruction may jump to."""
        if step.opcode in _JUMPS and step.opname not in ("FOR_ITER", "SEND") and not step.opname.startswith("JUMP_IF"):
            self._states.setdefault(step.argval, list(self._stack))

    def _swap(self, place: int) -> None:
        while len(self._stack) < place:
            self._stack.insert(0, None)
        self._stack[-1], self._stack[-place] = self._stack[-place], self._stack[-1]

    def _load_global(self, step: dis.Instruction) -> None:
        effect = dis.stack_effect(step.opcode, step.arg)
        ref = Ref("global", str(step.argval))
        if step.opname == "LOAD_NAME" and step.argval in self._known:
            ref = self._known[step.argval]
        if effect < 2:
            if step.opname == "LOAD_FROM_DICT_OR_GLOBALS":
                self._pop()
            self._push(ref)
        else:
            self._push(*((ref, _NULL) if _NULL_IS_ABOVE else (_NULL, ref)))

    def _load_attribute(self, step: dis.Instruction) -> None:
        holder, name = self._pop(), str(step.argval)
        self.names.add(name)
        self._push(holder.to(".", name) if type(holder) is Ref else None)
        if dis.stack_effect(step.opcode, step.arg) == 1:
            self._push(_NULL)

    def _load_super(self, step: dis.Instruction) -> None:
        self._pops(3)
        self.names.add(str(step.argval))
        self._push(*[None] * (3 + dis.stack_effect(step.opcode, step.arg)))

    def _subscript(self) -> None:
        key, holder = self._pop(), self._pop()
        self._take(key, "read")
        if type(holder) is not Ref:
            self._push(None)
        elif type(key) is Const and type(key.value) in (str, int, bool, type(None), tuple):
            self._push(_scope_name(holder, key) or holder.to("[", key.value))
        else:
            self._take(holder, "read")
            self._push(holder.to("*"))

    def _make_function(self, step: dis.Instruction) -> None:
        code = self._pop()
        if step.opname == "SET_FUNCTION_ATTRIBUTE":  # of the function that was made just before
            self._take(self._pop(), "read")
            self._push(code)
            return
        if not _SETS_ATTRIBUTES:
            for flag in (8, 4, 2, 1):
                if (step.arg or 0) & flag:
                    self._take(self._pop(), "read")
        self._push(_Made(code.value) if type(code) is Const and isinstance(code.value, CodeType) else None)

    # what is changed

    def _store_outside(self, name: str, variable: str) -> None:
        value = self._pop() if name.startswith("STORE") else None
        if name.endswith("DEREF") and variable not in self._code.co_freevars:
            self._assign(variable, value)
            return
        self._take(value, "read")
        self.uses.append(Use(Ref("global" if name.endswith("GLOBAL") else "free", variable), "set"))

    def _store_attribute(self, holder: Any, name: str) -> None:
        if type(holder) is Ref and holder.root != "local":
            self.uses.append(Use(holder.to(".", name), "set"))
        elif type(holder) is Ref:
            self.uses.append(Use(holder.to(".", name), "set"))
            self.stored.add(name)
        elif type(holder) is not _Result:
            self.stored.add(name)

    def _store_entry(self, holder: Any, key: Any) -> None:
        if type(holder) is not Ref:
            return
        if (scope := _scope_name(holder, key)) is not None:
            self.uses.append(Use(scope, "set"))
        elif type(key) is Const and type(key.value) in (str, int):
            self.uses.append(Use(holder.to("[", key.value), "set"))
        else:
            self.uses.append(Use(holder, "changed"))

    # calls

    def _call(self, step: dis.Instruction) -> None:
        if step.opname == "CALL_FUNCTION_EX":
            for value in self._pops(-dis.stack_effect(step.opcode, step.arg) - 1):
                self._take(value, "read")
            self._take(self._callee(), "called")
            self._push(_RESULT)
            return
        keywords, self._keywords = self._keywords, ()
        if step.opname == "CALL_KW":
            names = self._pop()
            keywords = names.value if type(names) is Const else ()
        arguments = self._pops(step.arg or 0)
        below, above = self._pops(2)
        if below is _NULL or above is _NULL:
            callee = above if below is _NULL else below
        else:  # a function, and its first argument
            callee, arguments = below, [above, *arguments]
        split = len(arguments) - len(keywords)
        self._push(self._called(callee, arguments[:split], dict(zip(keywords, arguments[split:], strict=False))))

    def _callee(self) -> Any:
        below, above = self._pops(2)
        return above if below is _NULL else below

    def _called(self, callee: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
        """What a call gives, after its arguments and the function have been used."""
        if type(callee) is _Made:
            self._enter(callee.code, arguments[0] if arguments else None)
            for value in [*arguments[".0" in callee.code.co_varnames :], *named.values()]:
                self._take(value, "read")
            return _RESULT
        if type(callee) is Ref:
            part = self._part_that_is_got(callee, arguments)
            if part is not None:
                for value in arguments[2:] if callee == _GETATTR else arguments[1:]:
                    self._take(value, "read")
                return part
            if callee == _GLOBALS_CALL and not arguments:
                return _SCOPE
            if callee == _SETATTR and len(arguments) == 3 and type(arguments[1]) is Const:
                self._take(arguments[2], "read")
                self._store_attribute(arguments[0], str(arguments[1].value))
                return None
            if callee.path and callee.path[-1].kind == "." and callee.path[-1].key in CHANGING:
                self.uses.append(Use(callee._replace(path=callee.path[:-1]), "changed", place=callee.path[-1].key))
            given = tuple(value if type(value) in (Const, Ref) else None for value in arguments)
            self.uses.append(Use(callee, "called", given=given))
        target = callee if type(callee) is Ref else None
        places: list[tuple[int | str, Any]] = [*enumerate(arguments), *named.items()]
        for place, value in places:
            if type(value) is Ref:
                self.uses.append(Use(value, "argument", target, place))
            else:
                self._take(value, "read")
        return _RESULT

    def _part_that_is_got(self, callee: Ref, arguments: list[Any]) -> Ref | None:
        """`cfg.get("model")` and `getattr(cfg, "model")` are parts of `cfg`."""
        if callee == _GETATTR and len(arguments) in (2, 3):
            holder, name = arguments[:2]
            if type(holder) is Ref and type(name) is Const and type(name.value) is str:
                self.names.add(name.value)
                return holder.to(".", name.value)
        if callee.path and callee.path[-1] == Step(".", "get") and 0 < len(arguments) < 3:
            key = arguments[0]
            if type(key) is Const and type(key.value) in (str, int):
                return callee._replace(path=callee.path[:-1]).to("get", key.value)
        return None


_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_SCOPE, _GLOBALS_CALL = Ref("scope", ""), Ref("global", "globals")
_GETATTR, _SETATTR = Ref("global", "getattr"), Ref("global", "setattr")
_ITERATED = Ref("iterated", "")  # what a comprehension goes through
_NULL_IS_ABOVE = "CALL_KW" in dis.opmap  # the order of a function and its self, since Python 3.13
_SETS_ATTRIBUTES = "SET_FUNCTION_ATTRIBUTE" in dis.opmap
_AFTER_LOOP = (None, None) if "END_FOR" in dis.opmap else ()  # an iterator and a value, which END_FOR takes


def _scope_name(holder: Ref, key: Any) -> Ref | None:
    """`globals()["x"]` is x."""
    if holder == _SCOPE and type(key) is Const and type(key.value) is str:
        return Ref("global", key.value)
    return None


@lru_cache(maxsize=4096)
def _scanned(code: CodeType) -> _Scan:
    scan = _Scan(code)
    scan.run()
    return scan
