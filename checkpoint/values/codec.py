"""A result on disk is readable JSON, and reads back as the same value.

Plain JSON is written as it is. What JSON cannot hold stands in an *envelope*: an object whose first key starts with
"$", such as ``{"$tuple":[1,2]}`` or ``{"$class":"Summary","title":"…"}``. The value decides what is written; the
annotation of the function only names the classes that may be built again when it is read. Loading runs no code that
a file names: there is no pickle here, no import by a name found in a file, and no eval.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checkpoint.errors import UnencodableValue, quote, quote_error
from checkpoint.values.classes import name_table, neighbour, stand_in
from checkpoint.values.envelopes import Tagger, refusal, told_left_out
from checkpoint.values.limits import FIELDS, hold, hold_patterns
from checkpoint.values.plain_json import (
    FREEZE,
    SCALARS,
    SHORT,
    freeze,
    guarded,
    is_shallow,
    looks_tagged,
    parse_json,
    plain_bytes,
    read_json,
    read_json_lines,
    with_stack,
    write_json,
    write_json_lines,
)
from checkpoint.values.revivers import REVIVERS, revive_values

__all__ = ["Codec"]


class Codec:
    """What decode returns is the same as what encode was given: types at every depth, NaN, −0.0; each encode checks it.

    Safe to share between threads.

    Args:
        result_type: an annotation. The classes it names, at any depth, are built again by decode.
        on_unnamed: called once with the name of each class that `result_type` does not name, and whose objects
            therefore come back as plain data: when the first is written, or read by who names other classes.
        on_left_out: called once for each class that a library made at run time from a named one, with a sentence that
            says which private attributes its objects come back without.
        only: the envelopes that are read; default all.
        compiles: whether patterns are compiled when they are read; else their text stands for them.

    Attributes:
        secret: the field of the annotation that holds one of pydantic's secrets; "" where none does.
        on_built: called with each object of a class that decode builds, and its class; None for nobody.

    Example:
        >>> codec = Codec()
        >>> codec.encode({"point": (1, float("nan"))})
        b'{"point":{"$tuple":[1,{"$float":"nan"}]}}'
        >>> codec.decode(_)
        {'point': (1, nan)}
    """

    __slots__ = (
        "_classes", "_envelopes", "_names", "_on_left_out", "_on_unnamed", "_reported", "_written_as", "compiles",
        "on_built", "secret",
    )  # fmt: skip

    def __init__(
        self,
        result_type: Any = None,
        *,
        on_unnamed: Callable[[str], None] = lambda name: None,
        on_left_out: Callable[[str], None] = lambda text: None,
        only: frozenset[str] | None = None,
        compiles: bool = True,
    ) -> None:
        self._classes, self._names, self.secret = name_table(result_type)
        self.on_built: Callable[[type, Any], None] | None = None
        self._on_unnamed = on_unnamed
        self._on_left_out = on_left_out
        self._envelopes = REVIVERS if only is None else {tag: REVIVERS[tag] for tag in only}
        self.compiles = compiles
        self._reported: dict[str, object] = {}
        self._written_as: dict[type, type] = {}

    def encode(self, value: Any) -> bytes:
        """One line of strict JSON, without a newline, that decode turns into the same value.

        Args:
            value: plain data, and objects of dataclasses, NamedTuples, Enums, attrs, msgspec and pydantic models.

        Raises:
            UnencodableValue: the value, or the part of it at `.where`, would not read back the same.

        Example:
            >>> Codec().encode({"a": {2, 1}})
            b'{"a":{"$set":[1,2]}}'
        """
        try:  # what plain_bytes does, told flat for short values: this is the per-item path
            raw = write_json(value)
            if len(raw) > SHORT:  # each copy costs
                if type(value) is str and read_json(raw) == value:
                    return raw
                raise ValueError("it is long")
            if freeze(value, FREEZE) == freeze(read_json(raw), FREEZE) and b"$" not in raw:
                return raw
        except Exception:  # the encoders refuse it, or a property of the user's raises: the tagged path tells
            pass
        raw = b""
        plain = plain_bytes(value)
        if plain is not None and not looks_tagged(plain):
            return plain
        try:
            tagged, unnamed, left_out = with_stack(self._encode_tagged, value)
        except (UnencodableValue, MemoryError):
            raise
        except Exception as error:  # properties and the like are the user's code, and may raise anything
            raise UnencodableValue(f"result cannot be stored: {quote_error(error)}", where="result") from error
        outermost = {value.__class__} & set(unnamed)  # to name it names the classes of its fields, too
        for cls in outermost or unnamed:
            self._report(self._name_of(cls), self._on_unnamed)
        for cls, names in left_out.items():
            self._report(told_left_out(cls, self.class_to_write(cls), names), self._on_left_out)
        return bytes(tagged)

    def encode_all(self, values: list[Any]) -> list[bytes | UnencodableValue]:
        """What `encode` gives for each, or raises: checked all at once, which costs a third of one by one."""
        if len(values) == 1:
            return [self._encoded(values[0])]
        try:
            lines = write_json_lines(values)
            if b"$" not in lines and freeze(values, FREEZE) == freeze(read_json_lines(lines), FREEZE):
                raws = lines.split(b"\n")
                raws.pop()
                if max(map(len, raws), default=0) <= SHORT or all(map(is_shallow, raws)):
                    return raws  # type: ignore[return-value]
        except Exception:  # as in `encode`
            pass
        return [self._encoded(value) for value in values]

    def _encoded(self, value: Any) -> bytes | UnencodableValue:
        try:
            return self.encode(value)
        except UnencodableValue as error:
            return error

    def decode(self, raw: bytes) -> Any:
        """The value that encode wrote as these bytes.

        Args:
            raw: what encode returned.

        Raises:
            UnbuildableValue: a class has changed so that the stored object cannot be built.
            ValueError: the bytes are nothing that encode writes.

        Example:
            >>> Codec().decode(b'{"$set":[1,2]}')
            {1, 2}
        """
        if not looks_tagged(raw):
            try:
                return read_json(raw)
            except (ValueError, RecursionError):
                pass  # too many digits or too short a stack for this reader; what is truly wrong, the next one tells
        return guarded(lambda: self._read(raw))

    def _read(self, raw: bytes) -> Any:
        plain = parse_json(raw)
        if b'"$pattern"' in raw:
            hold_patterns(plain)
        return self._revive(plain)

    def revive(self, plain: Any) -> Any:
        """The value that parsed JSON stands for; what decode does after parsing.

        Args:
            plain: dicts, lists and scalars, as a JSON parser returns them.

        Raises:
            UnbuildableValue: as for decode.
            ValueError: an envelope is malformed.

        Example:
            >>> Codec().revive([{"$tuple": [1, 2]}])
            [(1, 2)]
        """
        return guarded(lambda: self._revive(plain))

    def _encode_tagged(self, value: Any) -> tuple[bytes, set[type], dict[type, list[str]]]:
        tagger = Tagger(self)
        raw = expected = write_json(tagger.tag(value))
        if tagger.unnamed:
            expected = write_json(Tagger(self, plain=True).tag(value))
        try:
            back = self._read(raw)
            same = write_json(Tagger(self, plain=bool(tagger.unnamed)).tag(back)) == expected
            reason = "it reads back as another value"
        except Exception as error:
            same, reason = False, quote_error(error)
        if same:
            return raw, tagger.unnamed, tagger.left_out
        if tagger.unnamed:
            names = ", ".join(sorted(cls.__qualname__ for cls in tagger.unnamed))
            reason += f"; name {quote(names)} in the return annotation or in result_type"
        raise refusal(value, None, reason)

    def _revive(self, plain: Any) -> Any:
        if type(plain) is dict:
            first = next(iter(plain), "")
            if first[:1] != "$":
                return revive_values(self, plain)
            reviver = self._envelopes.get(first)
            if reviver is None:
                raise ValueError(f"{quote(first)} is no envelope of this version of checkpoint")
            hold(plain, FIELDS[first])
            return reviver(self, plain)
        if type(plain) is list:
            return [part if type(part) in SCALARS else self._revive(part) for part in plain]
        return plain

    def _report(self, what: str, tell: Callable[[str], None]) -> None:
        mark = object()
        if self._reported.setdefault(what, mark) is mark:
            tell(what)

    def _report_read(self, name: str) -> None:
        """Who names no class at all wants plain data; who names others may have renamed this one."""
        if self._classes:
            self._report(name, self._on_unnamed)

    def forget_reported(self) -> None:
        """Report classes again that were reported before."""
        self._reported.clear()

    def class_to_write(self, cls: type) -> type:
        """The class whose objects decode makes of those of `cls`: itself, or the named one that it stands for."""
        if cls in self._names or not self._names:
            return cls
        written = self._written_as.get(cls)
        if written is None:
            written = stand_in(cls, self._names) or cls
            full = f"{cls.__module__}.{cls.__qualname__}"
            if written is cls and neighbour(full, self._names) is cls:
                self._names[cls] = full
            self._written_as[cls] = written
        return written

    def class_named(self, name: Any) -> Any:
        """The class that an envelope names, where the annotation leads to it; else None."""
        cls = self._classes.get(name)
        return neighbour(name, self._names) if cls is None and type(name) is str and self._names else cls

    def _name_of(self, cls: type) -> str:
        """The name to write; a class that the table does not name never takes a name that the table gives away."""
        full = f"{cls.__module__}.{cls.__qualname__}"
        free = (name for name in (cls.__name__, full) if name not in self._classes)
        return self._names.get(cls) or next(free, f"another {full}")
