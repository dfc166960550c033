"""What a pass returns, and what a checkpoint holds, read from disk on demand.

`Results` keeps 16 bytes an item, a descriptor of the file, and no value: each access decodes anew, and sees that the
record that it reads is of its item's key.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import ItemsView, Iterator, Mapping, Sequence, Set, ValuesView
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, overload

from checkpoint.catalog.view import VersionView, view_at
from checkpoint.errors import (
    CheckpointError,
    ItemError,
    ItemsFailed,
    JournalLost,
    MaxCostReached,
    TooManyErrors,
    plural,
    quote,
)
from checkpoint.outcomes import NOT_RUN
from checkpoint.passes.budget import Budget, costs_on_record, range_text, spread
from checkpoint.passes.failures import failure_of, let_go_of_frames
from checkpoint.passes.pipeline import Pass
from checkpoint.reporting.causes import Cause, causes_of, summarize
from checkpoint.storage.spending import cost_text
from checkpoint.values.keys import plain_key
from checkpoint.values.marks import marks_of

if TYPE_CHECKING:
    import pandas  # type: ignore[import-untyped,unused-ignore]  # its stubs are another distribution
    import polars

    from checkpoint.catalog.view import VersionCount
    from checkpoint.reporting.tables import Table

__all__ = ["KeyedErrors", "KeyedResults", "Results", "finish", "raise_verdict"]

R = TypeVar("R", covariant=True)
V = TypeVar("V", covariant=True)
_SHOWN = 20
_FIRST = 10


def _table_of(*args: Any, **options: Any) -> Table:
    from checkpoint.reporting.tables import (
        Table,  # imported by who wants one: it takes as long as half of what a pass needs
    )

    return Table(*args, **options)


def _saved(records: VersionView, **options: Any) -> Table:
    from checkpoint.reporting.tables import Table

    return Table.saved(records, **options)


class _Rows:
    """What can be taken away as rows: a record each, in order."""

    __slots__ = ()

    def _table(self, *, errors: bool) -> Table:
        raise NotImplementedError

    def to_pandas(self, *, errors: bool = False) -> pandas.DataFrame:
        """A pandas DataFrame: key, a column for each field of the results, timestamp, elapsed, attempts.

        Nested fields have dotted names, a result without fields is the column "result", and a field called as a
        column of the record's own is "result.NAME". A column whose types differ from row to row is JSON text.

        Args:
            errors: whether there are columns `error` and `type`, and of a whole checkpoint rows for items that failed.
                The results of a map have a row for each item in any case.

        Raises:
            ExtraNeeded: install ``checkpoint-map[pandas]``.
            DamagedRecord: a row's bytes are not those that were written; its key is not done from now on.

        Example:
            >>> squares = checkpointed("squares as rows")(lambda n: {"n": n, "square": n * n})
            >>> squares.map([3, 5], progress=False).to_pandas()["square"].to_list()
            [9, 25]
        """
        return self._table(errors=errors).to_pandas()  # type: ignore[no-any-return,unused-ignore]

    def to_polars(self, *, errors: bool = False) -> polars.DataFrame:
        """A polars DataFrame of the same columns.

        Args:
            errors: as in `to_pandas`.

        Raises:
            ExtraNeeded: install ``checkpoint-map[polars]``.
            DamagedRecord: as in `to_pandas`.

        Example:
            >>> squares = checkpointed("squares as columns")(lambda n: {"n": n, "square": n * n})
            >>> squares.map([3, 5], progress=False).to_polars()["square"].to_list()
            [9, 25]
        """
        return self._table(errors=errors).to_polars()  # type: ignore[no-any-return]

    def to_parquet(self, path: str | os.PathLike[str], *, errors: bool = False) -> None:
        """A Parquet file of the same columns takes the place of what is at `path`: whole, or not at all.

        It takes the memory of some ten thousand rows, however many there are.

        Args:
            path: the file.
            errors: as in `to_pandas`.

        Raises:
            ExtraNeeded: install ``checkpoint-map[parquet]``.
            StoreError: the file cannot be written.
            DamagedRecord: as in `to_pandas`.

        Example:
            >>> squares = checkpointed("squares as a file")(lambda n: {"n": n, "square": n * n})
            >>> squares.map([3, 5], progress=False).to_parquet("squares.parquet")
        """
        self._table(errors=errors).write_parquet(path)

    def _repr_html_(self) -> str:
        from html import escape

        try:
            table, count, caption = self._shown()
            return table.to_html(count, caption)
        except CheckpointError as error:  # whoever only looks is told, and not stopped
            return f"<p>{escape(str(error))}</p>"

    def _shown(self) -> tuple[Table, int, str]:
        """The first rows, how many there are, and what to say of them."""
        raise NotImplementedError


class Results(_Rows, Sequence[R]):
    """The results of a pass, in the order of its items; equals a list of the same values.

    It keeps the values it was made with, whatever is cleared, compacted or computed later. Each access reads and
    decodes anew: keep what you change. Slices are lists. Failed items are `ItemError` objects, where failures were
    asked for. Its tables have a row for each item in its place, nulls where it failed, and as a pandas DataFrame the
    index of the DataFrame or Series that was mapped: ``df.join(results.to_pandas())`` is right.

    Example:
        >>> squares = checkpointed("squares")(lambda n: n * n)
        >>> results = squares.map([3, 3, 5])
        >>> results == [9, 9, 25], results[-1], results[:2], results.to_dict()
        (True, 25, [9, 9], {3: 9, 5: 25})
    """

    __slots__ = ("_errors", "_held", "_index", "_keys", "_marks", "_places", "_records", "_results")

    def __init__(self, running: Pass) -> None:
        self._records = running.records
        checkpoint = running.records.checkpoint
        with checkpoint.store.lock:
            self._places: array[int] = running.places()
            self._results, self._errors = checkpoint.results.reader, checkpoint.errors.reader
            has_errors = not checkpoint.errors.is_empty and any(NOT_RUN < place < 0 for place in self._places)
            readers = (self._results, self._errors if has_errors else None)
            self._held = [reader.hold() for reader in readers if reader is not None]
            # Keys are read from the records; but a line without checksum, or none at all, does not tell them.
            loose = checkpoint.results.has_loose or checkpoint.errors.has_loose
            told = not loose and NOT_RUN not in self._places
        self._keys = None if told else list(running.input.keys)
        self._marks = marks_of(running.input.keys)
        self._index = running.input.index

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int, /) -> R: ...
    @overload
    def __getitem__(self, index: slice, /) -> list[R]: ...
    def __getitem__(self, index: int | slice, /) -> R | list[R]:
        if isinstance(index, slice):
            return [self._load(number)[1] for number in range(len(self))[index]]
        try:
            number = range(len(self))[index]
        except IndexError:
            raise IndexError(f"index {index} is out of range for {len(self)} results") from None
        return self._load(number)[1]  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[R]:
        number, count = 0, len(self)
        has_failed = self._keys is not None or min(self._places, default=0) < 0
        ends = [place for place, offset in enumerate(self._places) if offset < 0] if has_failed else []
        for end in (*ends, count):
            while number < end:
                for value in self._run(number, end):
                    number += 1
                    yield value
                if number < end:
                    number += 1
                    yield self._load(number - 1)[1]
            if number < count:
                number += 1
                yield self._load(number - 1)[1]

    def _run(self, first: int, end: int) -> Iterator[Any]:
        """The values of results from a number on, as far as they can be read at once."""
        if self._keys is not None or self._results is None:
            return iter(())
        offsets, marks = (map(held.__getitem__, range(first, end)) for held in (self._places, self._marks))
        return self._records.load_run(self._results, offsets, marks)

    def _load(self, number: int) -> tuple[Any, Any]:
        """(key, value or error) of an item: the record at its place is of its key, or is looked for."""
        place, mark = self._places[number], self._marks[number]
        text = "" if self._keys is None else str(self._keys[number])
        if place >= 0:
            assert self._results is not None
            try:
                return self._records.load_at(self._results, place, mark, text)
            except ItemError as error:  # of `parse`
                let_go_of_frames(error, None)
                return error.key, error
        if place == NOT_RUN:
            message = "it was not run, since the pass was ended early"
            return None, ItemError(message, message=message, type="NotRun")
        assert self._errors is not None
        return self._records.load_error_at(self._errors, ~place, mark, text)

    @property
    def item_keys(self) -> list[Any]:
        """The key of each item, in order.

        It is not called `keys`: pandas takes an object that has `keys` for a mapping, and aligns it by index.
        """
        return list(self._keys) if self._keys is not None else [self._load(number)[0] for number in range(len(self))]

    @property
    def errors(self) -> dict[Any, ItemError]:
        """The failures among them, by key."""
        keys = self._keys or [None] * len(self)
        parses = self._records.parse is not None
        failed = [
            (keys[number], self._load(number)) for number, place in enumerate(self._places) if place < 0 or parses
        ]
        return {told if key is None else key: error for key, (told, error) in failed if isinstance(error, ItemError)}

    def unparsed(self, made: Set[Any]) -> Iterator[ItemError]:
        """The error of each key that `parse` cannot read, but for those of items made in the pass."""
        if self._records.parse is None:
            return
        seen: set[int] = set()
        for number, place in enumerate(self._places):
            if place < 0 or place in seen:
                continue
            seen.add(place)
            _, error = self._load(number)
            if isinstance(error, ItemError) and error.key not in made:
                yield error

    def _not_run(self) -> list[Any]:
        """The keys of items that were not run."""
        if NOT_RUN not in self._places:
            return []
        return [key for key, place in zip(self.item_keys, self._places, strict=True) if place == NOT_RUN]

    def to_dict(self) -> dict[Any, R]:
        """The values by key."""
        keys = self._keys or [None] * len(self)
        pairs = [(key, self._load(number)) for number, key in enumerate(keys)]
        return {told if self._keys is None else key: value for key, (told, value) in pairs}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (list, Results)):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list

    def _table(self, *, errors: bool) -> Table:
        readers = self._results, self._errors
        return _table_of(
            self._records, self._places, *readers, self._keys, failures=errors, index=self._index, marks=self._marks
        )

    def _shown(self) -> tuple[Table, int, str]:
        failed = sum(place < 0 for place in self._places)
        told = f", {failed:,} of them failed" if failed else ""
        keys = None if self._keys is None else self._keys[:_FIRST]
        first = _table_of(
            self._records, self._places[:_FIRST], self._results, self._errors, keys,
            failures=failed > 0, marks=self._marks,
        )  # fmt: skip
        return first, len(self), f"{plural(len(self), 'result')}{told}"

    def __repr__(self) -> str:
        shown = [quote(value, 80) for value in self[:_SHOWN]]
        more = [f"… {len(self) - _SHOWN:,} more"] if len(self) > _SHOWN else []
        return f"Results([{', '.join(shown + more)}])"

    def __reduce__(self) -> tuple[Any, ...]:
        return (list, (list(self),))


class _Keyed(Mapping[Any, V], Generic[V]):
    """A read-only mapping by key that reads from disk on demand, and sees what is saved later."""

    def __init__(self, records: VersionView) -> None:
        self._records = records

    def __reduce__(self) -> tuple[Any, ...]:
        return (_read_again, (type(self), *self._records.address()))

    def _items(self) -> Iterator[tuple[Any, V]]:
        raise NotImplementedError

    @property
    def versions(self) -> list[VersionCount]:
        """What the checkpoint holds of each version, the oldest first: `.label`, `.results` and `.errors` (counts).

        A label is the value that was given to `version=`, or None where that is not known any more.

        Example:
            >>> scale = checkpointed("doubled", version={"by": 2})(lambda n: n * 2)
            >>> _ = scale.map([1, 2], progress=False)
            >>> [(version.label, version.results) for version in scale.results.versions]
            [({'by': 2}, 2)]
        """
        from checkpoint.reporting.tables import versions_of

        return versions_of(self._records)

    def of(self, version: Any) -> Self:
        """The same of another version, to be read and compared.

        Args:
            version: a value as given to `version=`, None for none, or one of `versions`.

        Raises:
            InvalidOption: there is nothing of it; the message says what there is.

        Example:
            >>> double = checkpointed("scaled", version={"by": 2})(lambda n: n * 2)
            >>> triple = checkpointed("scaled", version={"by": 3})(lambda n: n * 3)
            >>> double.map([1, 2], progress=False), triple.map([2], progress=False)
            (Results([2, 4]), Results([6]))
            >>> before = triple.results.of({"by": 2})
            >>> {key: (before[key], value) for key, value in triple.results.items()}
            {2: (4, 6)}
        """
        from checkpoint.reporting.tables import of_version

        return type(self)(of_version(self._records, version))

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._items())

    def items(self) -> ItemsView[Any, V]:
        """(key, value) of each, as it was when iterating began, whatever is cleared meanwhile."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """The value of each, as it was when iterating began, whatever is cleared meanwhile."""
        return _Values(self)

    def __len__(self) -> int:
        return sum(1 for _ in self._items())

    def __repr__(self) -> str:
        first = islice(self._items(), 5)
        shown = ", ".join([f"{quote(key, 40)}: {quote(value, 80)}" for key, value in first])
        kind = type(self).__name__.removeprefix("Keyed").lower()
        return f"<{len(self):,} {kind} of checkpoint {self._records.name!r}: {shown}>"


def _read_again(kind: type[_Keyed[V]], *address: Any) -> _Keyed[V]:
    """A mapping that was pickled, over the same records."""
    return kind(view_at(*address))


class _Items(ItemsView[Any, V]):
    """Items that are read in one go: not looked up one by one, since they may be cleared by then."""

    _mapping: _Keyed[V]

    def __iter__(self) -> Iterator[tuple[Any, V]]:
        return self._mapping._items()


class _Values(ValuesView[V]):
    """Values that are read in one go."""

    _mapping: _Keyed[V]

    def __iter__(self) -> Iterator[V]:
        return (value for _, value in self._mapping._items())

    def __contains__(self, value: object) -> bool:
        return any(held is value or held == value for held in self)


class KeyedResults(_Rows, _Keyed[V]):
    """The results of a checkpoint by key, in the order in which they were saved."""

    def _table(self, *, errors: bool) -> Table:
        return _saved(self._records, errors=errors)

    def _shown(self) -> tuple[Table, int, str]:
        first = _saved(self._records, at_most=_FIRST)
        return first, len(self), f"{plural(len(self), 'result')} of checkpoint {self._records.name!r}"

    def _items(self) -> Iterator[tuple[Any, V]]:
        return self._records.iter_results()

    def __iter__(self) -> Iterator[Any]:
        return self._records.iter_keys()

    def __len__(self) -> int:
        return self._records.count()[0]

    def __getitem__(self, key: Any) -> V:
        return self._records.load(plain_key(key))  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        key = plain_key(key)
        self._records.results_for(key)
        return self._records.is_done(key)


class KeyedErrors(_Rows, _Keyed[ItemError]):
    """The failures of a checkpoint by key: of items that have no result, or one that `parse` cannot read.

    To find the latter each result is read: `errors[key]` reads one, and to go over all of them reads all.

    Its tables have the columns `error` and `type` in any case.
    """

    def _table(self, *, errors: bool) -> Table:
        return _saved(self._records, results=False, errors=True)

    def _shown(self) -> tuple[Table, int, str]:
        failed = self._records.count()[1]
        first = _saved(self._records, results=False, errors=True, at_most=_FIRST)
        return first, failed, f"{plural(failed, 'error')} of checkpoint {self._records.name!r}"

    def _items(self) -> Iterator[tuple[Any, ItemError]]:
        errors = chain(self._records.iter_errors(), self._records.iter_unparsed())
        return ((error.key, error) for error in errors)

    def __getitem__(self, key: Any) -> ItemError:
        key = plain_key(key)
        if self._records.parse is not None:
            try:
                self._records.load(key)
            except KeyError:
                pass
            except ItemError as error:
                return error
        return self._records.load_error(key)

    def causes(self) -> list[Cause]:
        """The failures grouped by type and by where they came from, the most frequent first."""
        return causes_of(self.values())

    def __str__(self) -> str:
        return summarize(self.causes())


# --- how a pass ends -------------------------------------------------------------------------------------------------


def finish(running: Pass, *, return_exceptions: bool) -> Results[Any]:
    """The results of a pass that has run.

    Raises:
        ItemsFailed: items failed and that was not asked for.
        TooManyErrors: the pass was ended early.
        InvalidOption: the items were fewer when they were read again.
        JournalLost: results of this pass were cleared while it ran.
    """
    raise_verdict(running)
    running.input.check_drawn()
    results: Results[Any] = Results(running)
    if lost := results._not_run():
        raise JournalLost(
            f"{len(lost):,} results were cleared while the pass ran, those of keys {quote(lost[:3])} among them; run "
            "the same line again to compute them anew",
            keys=lost[:100],
        )
    if return_exceptions:
        return results
    for error in results.unparsed(running.tally.made):
        if not error.given_up:  # what earlier runs gave up stands in its place, and raises nothing
            running.tally.recall_unparsed(error)
    if not (running.tally.errors.failed or running.tally.kept_aside):
        return results
    raise _failed(ItemsFailed, running, results)


def raise_verdict(running: Pass) -> None:
    """Raise `TooManyErrors`, or `MaxCostReached`, where the pass must end."""
    if running.budget is not None and running.budget.is_reached:
        raise _cost_reached(running, running.budget)
    if running.verdict:
        raise _failed(TooManyErrors, running, Results(running))


def _cost_reached(running: Pass, budget: Budget) -> MaxCostReached:
    spent, total, done = budget.spent, running.input.total, running.tally.completed
    failed = running.tally.errors.failed + len(running.tally.kept_aside)
    left = None if total is None else max(0, total - done - failed)
    expected = None if left is None else spread(costs_on_record(running.records), left)
    told = [f"{cost_text(spent)} of max_cost={budget.limit:g} is spent, and another call might exceed it"]
    told.append(
        f"{plural(done, 'item')} {'is' if done == 1 else 'are'} done" + (f", {failed:,} failed" if failed else "")
    )
    if left is not None:
        what = "" if expected is None else f", which will cost {range_text(expected, left)}"
        told.append(f"{left:,} {'is' if left == 1 else 'are'} left{what}")
    told.append("what ran is saved: the same call with a larger max_cost does only the rest")
    reached = MaxCostReached(
        f"checkpoint {running.records.name!r}: {'; '.join(told)}",
        max_cost=budget.limit, spent=spent, left=left, expected=expected,
    )  # fmt: skip
    reached.results = Results(running)
    return reached


def _failed(kind: type[ItemsFailed], running: Pass, results: Results[Any]) -> ItemsFailed:
    aside = [failure_of(running.records, key) for key in running.tally.kept_aside[:100]]
    members = [*running.tally.failures, *aside][:100]
    failed = running.tally.errors.failed + len(running.tally.kept_aside)
    group = kind(_summary(running, failed), members)
    group.results = results
    return group


def _summary(running: Pass, failed: int) -> str:
    counts = ", ".join([f"{count:,} {name}" for name, count in running.tally.errors.by_type.most_common(8)])
    of = f" of {running.input.total:,}" if running.input.total is not None else ""
    parts = [f"{failed:,}{of} items failed" + (f" ({counts})" if counts else "")]
    if running.verdict:
        parts.append(f"the pass was ended early, since {running.verdict}")
    path = running.records.store.own.results.journal.path
    done = plural(running.tally.completed, "item")
    parts.append(f"{done} {'is' if running.tally.completed == 1 else 'are'} done, in {path}")
    unparsed = running.tally.unparsed
    if unparsed:
        parts.append(
            f"parse raised for {unparsed:,} of these, whose results are kept: they are parsed again without a call"
        )
    unwritten = len(running.tally.kept_aside) + running.tally.errors.by_type["UnencodableValue"]
    if unwritten + unparsed < failed or running.verdict:
        parts.append("run the same line again to try only the rest")
    if unwritten:
        parts.append(
            f"the values of {unwritten:,} could not be written and are in .unsaved: fix the function, then "
            "f.clear(f.unsaved) and run the same line again"
        )
    return "; ".join(parts)
