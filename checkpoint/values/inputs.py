"""What can be mapped: how items are drawn from what was given, and what is refused because it would give others.

The promise: tables give their rows as dicts, a dataset without an iterator ends at its length, and what would run over
letters, column names or keys without a word is refused. Nothing is copied whole, and no package is imported: classes
are recognised by their names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

from checkpoint.errors import InvalidOption, quote
from checkpoint.values.classes import kind_of, record_of
from checkpoint.values.contents import is_kin
from checkpoint.values.keys import Key, item_digest

__all__ = ["Loans", "index_of", "is_one_shot", "items_of", "length_of", "refuse_groups"]

_CELLS = 1 << 16  # of a table that are Python objects at once
_MOST_ROWS = 4096  # of a block
_ASYNC = "; the map of a coroutine function takes asynchronous iterators, else collect it first: [x async for x in …]"


def items_of(given: Any) -> Iterable[Any]:
    """The items that were given: rows of a table as dicts, values of an Arrow array, or what Python iterates over.

    The rows of a pandas DataFrame are the dicts of ``df.to_dict("records")``: scalars of Python, pandas' Timestamps
    and its marks for what is missing. Those of polars and Arrow hold scalars of Python, and None for what is missing.

    Raises:
        InvalidOption: a text, bytes or a mapping, or a table of another kind; the message has the fix.
    """
    if type(given) in (list, tuple, range):
        return given  # type: ignore[no-any-return]
    _refuse_parts(given)
    for (root, name), read in _TABLES.items():
        if is_kin(given, root, name):
            return read(given)
    kind = type(given)
    if any(cls.__name__ in ("DataFrame", "LazyFrame") for cls in kind.__mro__) and hasattr(kind, "columns"):
        raise InvalidOption(
            f"items is a {kind.__module__}.{kind.__qualname__}, which does not give its rows one by one; make it a "
            "pandas, polars or Arrow table first, as .to_pandas(), .compute() or .collect() do"
        )
    if not hasattr(kind, "__iter__") and hasattr(kind, "__getitem__") and length_of(given) is not None:
        return _ByPlace(given)
    return given  # type: ignore[no-any-return]


def _refuse_parts(given: Any) -> None:
    """Refuse what Python iterates over by parts that nobody means.

    Raises:
        InvalidOption: with the fix.
    """
    if isinstance(given, (str, bytes, bytearray, memoryview)):
        parts = "characters" if isinstance(given, str) else "bytes"
        raise InvalidOption(
            f"items is {quote(given, 80)}, a {type(given).__name__}, whose items would be its {parts}; for one item "
            "write [item]; for the lines of a file: open(path).read().splitlines()"
        )
    if isinstance(given, Mapping):
        raise InvalidOption(
            f"items is {quote(given, 80)}, a {type(given).__name__}, whose items would be its keys alone; for one item "
            "write [item]; else list(items), items.values(), or list(items.items()) for pairs of key and value"
        )


def index_of(given: Any) -> Any:
    """The index of the pandas DataFrame or Series that was given; of anything else None."""
    if is_kin(given, "pandas", "DataFrame") or is_kin(given, "pandas", "Series"):
        return given.index
    return None


def is_one_shot(items: Any) -> bool:
    """Whether the items can be read only once.

    Raises:
        InvalidOption: they cannot be iterated over.
    """
    try:
        first = iter(items)
    except TypeError:
        hint = _ASYNC if hasattr(items, "__aiter__") else ""
        raise InvalidOption(f"items is {quote(items)}, which cannot be iterated over{hint}") from None
    return first is items or (not isinstance(items, Sized) and first is iter(items))


def length_of(items: Any) -> int | None:
    """How many items there are, where that is known without reading them."""
    try:
        return len(items) if isinstance(items, Sized) else None
    except (TypeError, ValueError, NotImplementedError, OverflowError):
        return None  # a class that has __len__, and an object of it that has no length


def refuse_groups(item: Any) -> None:
    """A group of itertools.groupby is empty once the next group is drawn.

    Raises:
        InvalidOption: the item is one, or holds one; with the fix.
    """
    if any(type(part) is _GROUP for part in (item if type(item) is tuple else (item,))):
        raise InvalidOption(
            "items are groups of itertools.groupby, and each is empty as soon as the next one is drawn, before its "
            "call is done; make lists of them: ((key, list(group)) for key, group in groupby(…))"
        )


class Loans:
    """Mutable objects that calls are working on, to find those that come again changed before that is done.

    Objects are compared while they are held here, so that none has the place in memory of one that is gone.
    """

    def __init__(self) -> None:
        self._held: dict[int, tuple[Any, list[Key]]] = {}  # an object, and the keys of the items that hold it
        self._lent: dict[Key, _Loan] = {}
        self._ended: list[Key] = []  # whose calls have ended since an item was drawn

    def __bool__(self) -> bool:
        return bool(self._held)

    def lend(self, item: Any, key: Key, digest: int) -> None:
        """A call works on the item, whose content has this digest; 0 where that is not known."""
        parts = _mutable_parts(item)
        if parts:
            inner = [part for part in parts if part is not item]
            self._lent[key] = _Loan(item, parts, digest, () if digest else tuple(map(item_digest, inner)))
            for part in parts:
                self._held.setdefault(id(part), (part, []))[1].append(key)

    def ended(self, key: Key) -> None:
        """Its call is done; it counts until the next item is drawn, since drawing that may have changed it already."""
        self._ended.append(key)

    def end_all(self) -> None:
        """All calls are done."""
        self._held.clear()
        self._lent.clear()
        self._ended.clear()

    def taken(self, item: Any, key: Key) -> tuple[Any, list[Key]] | None:
        """An object of this item that earlier ones of other keys are, or hold and were changed by, and their keys.

        None where there is none: what is the same for all items may well be one object. What has ended is let go of.
        """
        found = None
        for part in _mutable_parts(item) if self._held else ():
            _, others = self._held.get(id(part), (None, []))
            # the others were as they had been when the last one was drawn
            if others and others[-1] != key and self._lent[others[-1]].is_spoilt(part):
                found = part, [other for other in others if other != key and self._lent[other].is_spoilt(part)]
        for ended in self._ended:
            if (loan := self._lent.pop(ended, None)) is not None:
                for part in loan.parts:
                    others = self._held[id(part)][1]
                    others.remove(ended)
                    if not others:
                        del self._held[id(part)]
        self._ended.clear()
        return found


@dataclass(frozen=True, slots=True)
class _Loan:
    """An item that a call works on.

    Attributes:
        item: it.
        parts: the mutable objects that it is or holds.
        digest: of its content before the call; 0 where that is not known.
        inner: then the digests of its parts, less that of itself.
    """

    item: Any
    parts: tuple[Any, ...]
    digest: int
    inner: tuple[int, ...]

    def is_spoilt(self, part: Any) -> bool:
        """Whether a part that came again tells that the item is not what it was."""
        if part is self.item:
            return True
        if self.digest:
            return item_digest(self.item) != self.digest
        inner = [one for one in self.parts if one is not self.item]
        known = next((digest for one, digest in zip(inner, self.inner, strict=True) if one is part), 0)
        return known != 0 and item_digest(part) != known


def _mutable_parts(item: Any) -> tuple[Any, ...]:
    """The item itself and the objects that it holds, at any depth up to four, less what cannot be changed."""
    if type(item) in _FIXED:
        return ()
    parts: dict[int, Any] = {}
    _add_mutable(parts, item, 4)
    return tuple(parts.values())


def _add_mutable(parts: dict[int, Any], value: Any, depth: int) -> None:
    if not isinstance(value, tuple):
        parts[id(value)] = value
    if depth:
        inner = _inner_of(value)
        if not _FIXED.issuperset(map(type, inner)):
            for part in inner:
                if type(part) not in _FIXED and id(part) not in parts:
                    _add_mutable(parts, part, depth - 1)


def _inner_of(value: Any) -> Collection[Any]:
    """What a container, or an object of a class with fields, holds."""
    if isinstance(value, dict):
        return dict.values(value)
    if isinstance(value, (list, tuple, deque)):
        return value
    kind: Any = type(value)
    if kind_of(kind) is None or isinstance(value, BaseException):
        return ()
    try:
        return record_of(value).fields.values()
    except Exception:  # reading a field may run the user's code
        return ()


_FIXED = frozenset({str, bytes, int, float, bool, complex, type(None), frozenset, date, datetime, Decimal, UUID})
_GROUP = type(next(groupby("a"))[1])


class _Rows:
    """Items that are read in blocks, as often as they are asked for.

    Args:
        length: how many there are.
        size: how many make a block.
        block: gives the items from one place up to another.
    """

    def __init__(self, length: int, size: int, block: Callable[[int, int], list[Any]]) -> None:
        self._length = length
        self._size = max(1, min(size, _MOST_ROWS))
        self._block = block

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._length, self._size):
            yield from self._block(start, min(start + self._size, self._length))

    def __repr__(self) -> str:
        return f"<a table of {self._length:,} rows>"


class _ByPlace:
    """Items of what has a length and gives each by its place, but no iterator: a dataset of torch or keras."""

    def __init__(self, given: Any) -> None:
        self._given = given

    def __len__(self) -> int:
        return len(self._given)

    def __iter__(self) -> Iterator[Any]:
        for place in range(len(self._given)):
            try:
                item = self._given[place]
            except IndexError:
                return
            except Exception as error:
                error.add_note(f"while item {place} of items was asked for by its place, since it has no iterator")
                raise
            yield item


def _pandas_rows(frame: Any) -> _Rows:
    _refuse_twins(frame.columns.tolist(), "items.loc[:, ~items.columns.duplicated()]")
    frame = frame.copy(deep=False)  # a column that the function adds is none of these items'
    size = _CELLS // max(len(frame.columns), 1)
    return _Rows(len(frame), size, lambda start, stop: frame.iloc[start:stop].to_dict("records"))


def _polars_rows(frame: Any) -> _Rows:
    size = _CELLS // max(frame.width, 1)
    return _Rows(frame.height, size, lambda start, stop: frame.slice(start, stop - start).to_dicts())


def _arrow_rows(table: Any) -> _Rows:
    _refuse_twins(table.schema.names, "items.rename_columns([…])")
    size = _CELLS // max(table.num_columns, 1)
    return _Rows(table.num_rows, size, lambda start, stop: table.slice(start, stop - start).to_pylist())


def _arrow_values(column: Any) -> _Rows:
    return _Rows(len(column), _MOST_ROWS, lambda start, stop: column.slice(start, stop - start).to_pylist())


def _refuse_twins(names: list[Any], fix: str) -> None:
    """A dict holds one value for each name.

    Raises:
        InvalidOption: two columns have one name.
    """
    seen: set[Any] = set()
    for name in names:
        if name in seen:
            raise InvalidOption(
                f"items has two columns that are called {quote(name)}, and a row as a dict holds one of them; "
                f"rename one, or drop it: {fix}"
            )
        seen.add(name)


_TABLES: dict[tuple[str, str], Callable[[Any], _Rows]] = {
    ("pandas", "DataFrame"): _pandas_rows,
    ("polars", "DataFrame"): _polars_rows,
    ("pyarrow", "Table"): _arrow_rows,
    ("pyarrow", "RecordBatch"): _arrow_rows,
    ("pyarrow", "ChunkedArray"): _arrow_values,
    ("pyarrow", "Array"): _arrow_values,
}
