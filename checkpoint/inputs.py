"""What can be mapped: how items are drawn from what was given, and what is refused because it would give others.

The promise: tables give their rows as dicts, a dataset without an iterator ends at its length, and what would run over
letters, column names or keys without a word is refused. Nothing is copied whole, and no package is imported: classes
are recognised by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any
from uuid import UUID

from checkpoint.contents import is_kin
from checkpoint.errors import InvalidOption, quote
from checkpoint.keys import Key

__all__ = ["Loans", "index_of", "is_one_shot", "items_of", "length_of", "refuse_groups"]

_CELLS = 1 << 16  # of a table that are Python objects at once
_MOST_ROWS = 4096  # of a block


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
        hint = "; an async iterator must be collected first" if hasattr(items, "__aiter__") else ""
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
        self._held: dict[int, tuple[Any, Any, Key]] = {}  # the object, its item, and the key of that
        self._ended: list[Any] = []  # items whose calls have ended since one was drawn

    def __bool__(self) -> bool:
        return bool(self._held)

    def lend(self, item: Any, key: Key) -> None:
        """A call works on the item."""
        for part in _mutable_parts(item):
            self._held[id(part)] = (part, item, key)

    def ended(self, item: Any) -> None:
        """Its call is done; it counts until the next item is drawn, since drawing that may have changed it already."""
        self._ended.append(item)

    def end_all(self) -> None:
        """All calls are done."""
        self._held.clear()
        self._ended.clear()

    def taken(self, item: Any, key: Key) -> tuple[Any, Any, Key] | None:
        """(object, item, key) of an earlier item, of another key, that an object in this item belongs to; else None.

        What has ended is let go of.
        """
        found = None
        for part in _mutable_parts(item):
            earlier = self._held.get(id(part))
            if earlier is not None and earlier[2] != key:
                found = earlier
        for item in self._ended:
            for part in _mutable_parts(item):
                if (held := self._held.get(id(part))) is not None and held[1] is item:
                    del self._held[id(part)]
        self._ended.clear()
        return found


def _mutable_parts(item: Any) -> tuple[Any, ...]:
    """The item itself, or the elements of a tuple, less what cannot be changed."""
    kind = type(item)
    if kind in _FIXED:
        return ()
    return (item,) if kind is not tuple else tuple([part for part in item if type(part) not in _FIXED])


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
