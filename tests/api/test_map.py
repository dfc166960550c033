"""Laws of `map` and `stream`: every item once, all of them in order, nothing that was paid for lost."""

from __future__ import annotations

import ast
import asyncio
import errno
import gc
import itertools
import linecache
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint import (
    BatchCheckpointedRunner,
    CheckpointedRunner,
    DuplicateKey,
    InputChanged,
    InvalidKey,
    InvalidOption,
    ItemError,
    ItemsFailed,
    JournalLost,
    KeyChanged,
    Outcome,
    Results,
    ResultsUnfit,
    StoreError,
    TooManyErrors,
    UnencodableValue,
    checkpointed,
)
from checkpoint.execution import signals
from checkpoint.storage.store import Store
from checkpoint.storage.writer import Writer
from checkpoint.values.inputs import Loans
from checkpoint.values.keys import item_digest


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


class Mapper:
    """A function under `checkpointed`, of one of three kinds, that notes each call."""

    def __init__(self, kind: str, name: str, body: Callable[[Any], Any], **options: Any) -> None:
        self.calls: list[Any] = []
        self._async = kind == "coroutine function"

        def run(item: Any) -> Any:
            self.calls.append(item)
            return body(item)

        async def arun(item: Any) -> Any:
            await asyncio.sleep(0)
            return run(item)

        class Holder:
            @checkpointed(name, **options)  # type: ignore[untyped-decorator]  # options of any kind
            def method(self, item: Any) -> Any:
                return run(item)

        decorate = checkpointed(name, **options)
        self.holder = Holder()
        self.f: Any = {"function": decorate(run), "coroutine function": decorate(arun), "method": self.holder.method}[
            kind
        ]

    def map(self, items: Iterable[Any], **options: Any) -> Results[Any]:
        options = {"progress": False, **options}
        if self._async:
            return asyncio.run(self._map(items, options))
        return self.f.map(items, **options)  # type: ignore[no-any-return]

    async def _map(self, items: Iterable[Any], options: dict[str, Any]) -> Results[Any]:
        return await self.f.map(items, **options)  # type: ignore[no-any-return]

    def stream(self, items: Iterable[Any], **options: Any) -> list[Outcome[Any]]:
        options = {"progress": False, **options}
        if self._async:
            return asyncio.run(self._stream(items, options))
        return list(self.f.stream(items, **options))

    async def _stream(self, items: Iterable[Any], options: dict[str, Any]) -> list[Outcome[Any]]:
        return [outcome async for outcome in self.f.stream(items, **options)]

    def taken(self) -> list[Any]:
        """The calls since the last time."""
        calls, self.calls = self.calls, []
        return calls


KINDS = ["function", "coroutine function", "method"]
Maker = Callable[..., Mapper]


@pytest.fixture(params=KINDS)
def mapper(request: pytest.FixtureRequest) -> Maker:
    """Makes a `Mapper` of each kind."""

    def make(body: Callable[[Any], Any], name: str = "m", **options: Any) -> Mapper:
        return Mapper(request.param, name, body, **options)

    return make


def square(n: int) -> int:
    """A function of one item."""
    return n * n


class Again:
    """Items that can be read twice and have no length."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = list(items)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)


class Opaque:
    """An object of a class that nothing names, with content."""

    def __init__(self, content: Any) -> None:
        self.content = content


def unencodable(tag: Any) -> Any:
    """A value that can be neither written nor pickled."""
    return {"deep": [lambda: tag]}


# --- all of it, in order, once ---------------------------------------------------------------------------------------


def test_a_map_equals_the_list_of_what_the_function_returns(mapper: Maker) -> None:
    """`f.map(items) == [f(item) for item in items]`, in the order of the items."""
    m = mapper(square)
    assert m.map([3, 1, 2]) == [9, 1, 4]
    assert m.calls == [3, 1, 2]


def test_a_second_map_runs_nothing_and_returns_the_same(mapper: Maker) -> None:
    """What is done is not run again."""
    m = mapper(square)
    first = m.map(range(5))
    assert m.map(range(5)) == first == [0, 1, 4, 9, 16]
    assert m.calls == [0, 1, 2, 3, 4]


def test_a_map_after_a_break_runs_only_the_rest(mapper: Maker) -> None:
    """An exception out of the items, a crash of sorts, loses nothing that had finished."""
    m = mapper(square)

    def breaks() -> Iterator[int]:
        yield from (1, 2)
        raise ConnectionError("the source is gone")

    with pytest.raises(ConnectionError):
        m.map(breaks())
    assert m.taken() == [1, 2]
    assert m.map([1, 2, 3]) == [1, 4, 9]
    assert m.calls == [3]


def test_equal_items_share_one_computation(mapper: Maker) -> None:
    """Duplicates are run once and stand in all their places, in the first pass and in a resumed one."""
    m = mapper(square)
    assert m.map([3, 3, 5, 3]) == [9, 9, 25, 9]
    assert m.map(iter([3, 3, 5, 3])) == [9, 9, 25, 9]
    assert m.calls == [3, 5]


def test_equal_items_that_fail_fail_once(mapper: Maker) -> None:
    """A failed duplicate is not tried again in the same pass, and stands in all its places."""
    m = mapper(lambda n: 1 // n)
    got = m.map([0, 0, 1, 0], return_exceptions=True)
    assert [type(value) for value in got] == [ItemError, ItemError, int, ItemError]
    assert m.calls == [0, 1]


ITEMS = [
    ([], "empty"),
    ([4, 2], "a list"),
    ((4, 2), "a tuple"),
    (range(3), "a range"),
    ({4, 2}, "a set: no random access, no order of its own"),
    (np.array([3, 3, 5]), "a numpy array: each read makes other scalars"),
    (np.array(["x", "x"]), "a numpy array of strings"),
    (Again([1, 1, 2]), "re-readable without a length"),
    ({"x": {}, "y": {}}.items(), "a view of unhashable values"),
]


@pytest.mark.parametrize(("items", "reason"), ITEMS, ids=[reason for _, reason in ITEMS])
def test_any_iterable_maps_as_its_list_does(mapper: Maker, items: Any, reason: str) -> None:
    """The kind of iterable makes no difference, on the first pass, on a resumed one, and from a one-shot iterator."""
    m = mapper(repr)
    want = [repr(item) for item in items]
    assert m.map(items) == want
    m.taken()
    assert m.map(items) == want
    assert m.map(iter(items)) == want
    assert m.calls == []


def test_items_that_cannot_be_iterated_over_are_refused(mapper: Maker) -> None:
    """Before anything is made."""
    with pytest.raises(InvalidOption, match="cannot be iterated"):
        mapper(square).map(5)  # type: ignore[arg-type]


def test_an_async_iterator_of_items_is_for_coroutine_functions(mapper: Maker) -> None:
    """A plain function refuses it, with the fix."""

    async def items() -> Any:
        yield 1

    m = mapper(square)
    if m._async:
        assert m.map(items()) == [1]
        return
    with pytest.raises(InvalidOption, match="collect it first"):
        m.map(items())


def test_an_unknown_option_is_refused(mapper: Maker) -> None:
    """A typing mistake in an option is told, with the options there are."""
    with pytest.raises(InvalidOption, match="retry_failed"):
        mapper(square).map([1], retryfailed=False)


class LyingLength:
    """Items that claim another length than they have."""

    def __init__(self, claimed: Any, items: list[int]) -> None:
        self.claimed, self.items = claimed, items

    def __len__(self) -> int:
        if isinstance(self.claimed, Exception):
            raise self.claimed
        return int(self.claimed)

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)


class LyingIterator(LyingLength):
    """The same, as its own iterator."""

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self.items:
            raise StopIteration
        return self.items.pop(0)


@pytest.mark.parametrize("claimed", [0, 2, 9, TypeError("no length"), NotImplementedError()], ids=repr)
@pytest.mark.parametrize("kind", [LyingLength, LyingIterator])
def test_a_length_that_lies_changes_no_result(mapper: Maker, kind: type[LyingLength], claimed: Any) -> None:
    """A length is for the bar; items are what iteration gives."""
    assert mapper(square).map(kind(claimed, [1, 2, 3])) == [1, 4, 9]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda items: items.sort(), "put in another order"),
        (lambda items: items.pop(0), "a work list that is emptied from the front"),
        (lambda items: items.insert(0, 9), "something is put in front"),
        (lambda items: items.append(9), "it grows"),
        (lambda items: items.clear(), "it is emptied"),
    ],
)
def test_a_list_is_mapped_as_it_was_whatever_the_function_does_to_it(
    mapper: Maker, change: Callable[[list[int]], Any], reason: str
) -> None:
    """Each result is that of its own item, returned and on disk."""
    items = [3, 1, 2]

    def body(n: int) -> int:
        if items:
            change(items)
        return n * 10

    m = mapper(body)
    assert m.map(items) == [30, 10, 20], reason
    assert dict(m.f.results) == {3: 30, 1: 10, 2: 20}
    assert m.calls == [3, 1, 2]


STEP = st.tuples(
    st.lists(st.integers(0, 5), max_size=6),  # the items
    st.frozensets(st.integers(0, 5), max_size=4),  # which of them fail
    st.sampled_from([list, tuple, iter, Again]),
    st.booleans(),  # retry_failed
    st.sampled_from(["map", "stream"]),
    st.sampled_from([None, "reopen", "clear all"]) | st.frozensets(st.integers(0, 5), min_size=1, max_size=2),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_passes_do_what_a_dict_would(kind: str) -> None:
    """Any passes, over any items, failing anywhere: executions, results, errors and counts are those of the model."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(STEP, max_size=5))
    def law(steps: list[Any]) -> None:
        failing_now: set[int] = set()
        run = itertools.count()

        def body(n: int) -> int:
            if n in failing_now:
                raise ValueError(n)
            return next(run)

        m = Mapper(kind, "model", body, version=1)
        m.f.clear()
        done: dict[int, int] = {}
        failed: set[int] = set()
        ran = 0
        for items, fails, shape, retry, face, then in steps:
            failing_now.clear()
            failing_now.update(fails)
            to_run = [n for n in dict.fromkeys(items) if n not in done and (retry or n not in failed)]
            drawn = items
            if shape is not iter and retry:  # what can be read twice: those that failed earlier come last
                drawn = sorted(items, key=lambda n: n in failed and n not in done)
                to_run.sort(key=lambda n: n in failed)
            for n in to_run:
                if n not in fails:
                    done[n], ran = ran, ran + 1
            failed = (failed | set(to_run)) - done.keys()
            if face == "map":
                drawn = items
                got = list(m.map(shape(items), retry_failed=retry, return_exceptions=True))
            else:
                outcomes = m.stream(shape(items), retry_failed=retry)
                got = [outcome.value if outcome.ok else outcome.error for outcome in outcomes]
                fresh = {outcome.key for outcome in outcomes if outcome.source == "fresh"}
                assert fresh == set(to_run)
            assert m.taken() == to_run
            assert [None if isinstance(value, Exception) else value for value in got] == [done.get(n) for n in drawn]
            assert dict(m.f.results) == done
            assert set(m.f.errors) == failed
            total = None if shape is iter else len(items)
            assert m.f.runner.progress() == (sum(n in done for n in items), total)
            if then == "reopen":
                m.f.runner.close()
            elif then == "clear all":
                m.f.clear()
                done, failed = {}, set()
            elif then:
                m.f.clear(then)
                done, failed = {n: value for n, value in done.items() if n not in then}, failed - then

    law()


# --- reading twice ---------------------------------------------------------------------------------------------------


def test_items_that_come_in_another_order_when_read_again_are_refused(mapper: Maker) -> None:
    """Else a result would be filed under another item's key."""

    class Shuffled(Again):
        def __iter__(self) -> Iterator[Any]:
            self.items.reverse()
            return iter(self.items)

    m = mapper(square)
    with pytest.raises(DuplicateKey, match=r"another order.*list\(items\)"):
        m.map(Shuffled([1, 2, 3]))
    assert m.calls == []


def test_a_sequence_that_is_drawn_anew_is_keyed_anew(mapper: Maker) -> None:
    """Only lists, tuples and ranges are trusted to give the same item twice."""

    class Augmented(list[int]):
        reads = 0

        def __iter__(self) -> Iterator[int]:
            self.reads += 1
            return (item + 10 * self.reads for item in list.__iter__(self))

    m = mapper(square)
    items = Augmented([1, 2])
    with pytest.raises(DuplicateKey):
        m.map(items)
    assert m.calls == []


def test_items_that_are_gone_when_read_again_are_refused(mapper: Maker) -> None:
    """A generator in a re-readable coat gives nothing the second time: that is no empty result."""

    class Coat:
        def __init__(self) -> None:
            self.once = iter([1, 2, 3])

        def __iter__(self) -> Iterator[int]:
            yield from self.once

    with pytest.raises(InvalidOption, match=r"3 items when they were first read, and 0.*list\(items\)"):
        mapper(square).map(Coat())
    with pytest.raises(InvalidOption, match="second time"):
        mapper(square).stream(Coat())


def test_items_whose_iterator_is_always_the_same_are_one_shot(mapper: Maker) -> None:
    """An object that hands out the one iterator it has is read once, and so loses nothing."""

    class Handle:
        def __init__(self) -> None:
            self.once = iter([1, 2, 3])

        def __iter__(self) -> Iterator[int]:
            return self.once

    assert mapper(square).map(Handle()) == [1, 4, 9]


def test_a_one_shot_input_is_drawn_at_most_one_ahead(mapper: Maker) -> None:
    """Items are held one at a time: drawn when the one before is on disk."""
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for n in range(20):
            drawn.append(n)
            yield n

    m = mapper(lambda n: len(drawn) - n)
    assert m.map(items()) == [1] * 20


def test_values_are_let_go_when_they_are_on_disk(mapper: Maker) -> None:
    """Memory grows with keys, not with items or values."""

    values: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def body(n: int) -> Any:
        value = np.full(3, n)
        values.append(weakref.ref(value))
        alive.append(sum(ref() is not None for ref in values))
        return value

    mapper(body).map(range(50))
    assert max(alive) <= 2


# --- keys ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "items",
    [
        [{"id": 1, "x": 1}, {"id": 2}, {"id": 1, "x": 2}],
        ({"id": 1, "x": 1}, {"id": 2}, {"id": 1, "x": 2}),
        Again([{"id": 1, "x": 1}, {"id": 2}, {"id": 1, "x": 2}]),
    ],
    ids=["list", "tuple", "re-readable"],
)
def test_unequal_items_with_one_key_are_refused_before_anything_runs(mapper: Maker, items: Any) -> None:
    """Both places are named."""
    m = mapper(str, key="id")
    with pytest.raises(DuplicateKey, match=r"items 0 and 2 .*key, 1,") as caught:
        m.map(items)
    assert (caught.value.places, caught.value.key, m.calls) == ((0, 2), 1, [])


def test_unequal_items_with_one_key_are_refused_at_the_second_one_of_a_one_shot_input(mapper: Maker) -> None:
    """What came before is saved, and the second one is not run."""
    m = mapper(str, key="id")
    with pytest.raises(DuplicateKey) as caught:
        m.map(iter([{"id": 1, "x": 1}, {"id": 2}, {"id": 1, "x": 2}]))
    assert (caught.value.places, len(m.calls)) == ((0, 2), 2)
    assert len(m.f.results) == 2


def test_one_object_twice_is_one_item_even_where_its_content_cannot_be_told(mapper: Maker) -> None:
    """Equal means the same input digest, or the same object."""
    one = Opaque(1)
    m = mapper(lambda o: o.content, key="content")
    assert m.map([one, one]) == [1, 1]
    assert m.map(iter([one, one])) == [1, 1]
    with pytest.raises(DuplicateKey):
        m.map([one, Opaque(1)])


@pytest.mark.parametrize("items", [[1, 1.0], [True, 1], [0.0, -0.0]], ids=str)
def test_equal_keys_of_unlike_items_are_refused(mapper: Maker, items: list[Any]) -> None:
    """`1`, `1.0` and `True` are one key, but `str` of them differs: one would get the other's result."""
    with pytest.raises(DuplicateKey):
        mapper(str).map(items)


def test_an_invalid_key_is_told_before_anything_is_paid_for(mapper: Maker) -> None:
    """It names the item's place and the conversion to write."""
    m = mapper(square, key=lambda n: n if n < 2 else date(2026, 1, n))
    with pytest.raises(InvalidKey, match=r"item 2: .*str\("):
        m.map([0, 1, 2])
    assert m.calls == []


def test_a_key_function_that_raises_is_told_with_the_item(mapper: Maker) -> None:
    """Its own exception, with a note that names the place."""
    m = mapper(square, key=lambda n: {0: "a"}[n])
    with pytest.raises(KeyError) as caught:
        m.map([0, 1])
    assert caught.value.__notes__ == ["while the key of item 1 was asked for: 1"]
    assert m.calls == []


def test_a_key_function_that_fails_is_not_called_again(tmp_path: Path) -> None:
    """What it raised once is told, whatever it would say the second time: else results had keys nobody finds again."""
    counter = itertools.count()
    calls: list[str] = []

    def key(item: str) -> int:
        number = next(counter)
        if number == 3:
            raise OSError("for a moment")
        return number

    @checkpointed("keyed", key=key, checkpoint_dir=tmp_path)
    def f(item: str) -> str:
        calls.append(item)
        return item

    with pytest.raises(OSError, match="for a moment") as caught:
        f.map(["a", "b", "c", "d", "e"], progress=False)
    assert caught.value.__notes__ == ["while the key of item 3 was asked for: 'd'"]
    assert calls == []
    assert next(counter) == 4


@pytest.mark.parametrize("shape", [list, iter], ids=["re-readable", "one-shot"])
def test_new_items_are_no_alarm(mapper: Maker, caplog: pytest.LogCaptureFixture, shape: Callable[[Any], Any]) -> None:
    """Though none of their keys is known: today's documents are others than yesterday's."""
    m = mapper(lambda item: item["x"], key="id")
    m.map([{"id": f"monday {n}", "x": n} for n in range(150)])
    m.map(shape([{"id": f"tuesday {n}", "x": n} for n in range(150)]))
    assert [record.levelname for record in caplog.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize("shape", [list, iter], ids=["re-readable", "one-shot"])
def test_known_items_under_other_keys_are_an_error_before_anything_runs(
    mapper: Maker, caplog: pytest.LogCaptureFixture, shape: Callable[[Any], Any]
) -> None:
    """The key function has changed; on_change="recompute" goes on, and says it."""
    items = [{"id": n, "x": n} for n in range(120)]
    mapper(lambda item: item["x"], key="id").map(items)
    m = mapper(lambda item: item["x"], key=lambda item: f"n/{item['id']}")
    with pytest.raises(KeyChanged, match=r"key 'n/0' now, 0 before.*put the key back") as caught:
        m.map(shape(items))
    assert (caught.value.keys[0], caught.value.before[0]) == ("n/0", 0)
    assert m.calls == []
    assert "other keys" in str(m.f.plan(items))
    anew = mapper(lambda item: item["x"], key=lambda item: f"n/{item['id']}", on_change="recompute")
    assert anew.map(shape(items)) == list(range(120))
    assert "under other keys" in caplog.text


def test_items_of_which_a_part_counts_may_have_one_part_in_common(mapper: Maker) -> None:
    """Two new items with the text of an old one are no change of the key."""
    m = mapper(lambda item: item["x"], key="id", input="text")
    m.map([{"id": n, "text": "", "x": n} for n in range(3)])
    assert m.map([{"id": n, "text": "", "x": n} for n in (7, 8)]) == [7, 8]


# --- a changed input -------------------------------------------------------------------------------------------------


def before_and_after() -> tuple[list[dict[str, int]], list[dict[str, int]]]:
    """Three items, and the same with the last two changed."""
    return [{"id": i, "x": 1} for i in range(3)], [{"id": i, "x": 1 + (i > 0)} for i in range(3)]


@pytest.mark.parametrize("shape", [list, iter], ids=["re-readable", "one-shot"])
@pytest.mark.parametrize(
    ("on_change", "want", "said"),
    [("keep", [1, 1, 1], "2 items changed"), ("recompute", [1, 2, 2], "anew")],
)
def test_a_changed_item_obeys_on_change_and_is_reported(
    mapper: Maker,
    caplog: pytest.LogCaptureFixture,
    shape: Callable[[Any], Any],
    on_change: Any,
    want: list[int],
    said: str,
) -> None:
    """A known key whose item has another content keeps its result, or is computed anew; both are said once."""
    before, after = before_and_after()
    m = mapper(lambda item: item["x"], key="id", on_change=on_change)
    m.map(before)
    m.taken()
    assert m.map(shape(after)) == want
    assert len(m.taken()) == sum(value == 2 for value in want)
    assert said in caplog.text
    assert m.f.runner.progress()[0] == 3
    if on_change == "recompute":
        assert m.map(after) == want
        assert m.calls == []


def test_on_change_is_not_promised_for_items_whose_changes_cannot_be_told(mapper: Maker) -> None:
    """Asking for it with such items is an error before anything runs, and not silence."""
    for on_change in ("recompute", "error"):
        m = mapper(lambda item: 1, key=lambda item: str(type(item)), on_change=on_change)
        with pytest.raises(InvalidOption, match=r"item 1 is <object .*leave on_change out"):
            m.map(["a", object()])
        assert m.calls == []


@pytest.mark.parametrize("on_change", [None, "error"])
def test_a_changed_item_is_an_error_before_anything_runs(mapper: Maker, on_change: Any) -> None:
    """It names all keys, where the items can be read twice; the first one of a one-shot input; and each way out."""
    before, after = before_and_after()
    m = mapper(lambda item: item["x"], key="id", on_change=on_change)
    m.map(before)
    m.taken()
    with pytest.raises(InputChanged) as caught:
        m.map([{"id": 7}, *after])
    assert (caught.value.keys, caught.value.count) == ([1, 2], 2)
    for way in ("f.accept(items)", "input=", 'on_change="recompute"', 'on_change="keep"', "f.clear(keys)"):
        assert way in str(caught.value)
    assert m.calls == []
    assert m.f.plan(after).refusal is not None
    with pytest.raises(InputChanged) as caught:
        m.map(iter(after))
    assert caught.value.keys == [1]


FIELDS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"id": 1}, {"id": 1, "lang": "en"}, "field 'lang' is new", "a column that was added"),
    ({"id": 1, "n": 3}, {"id": 1, "n": 3.0}, "field 'n' was 3, and is 3.0", "a column that has a gap since"),
    ({"id": 1, "n": 3}, {"id": 1, "n": "3"}, "field 'n' was 3, and is '3'", "another reader of the same file"),
    ({"id": 1, "n": None}, {"id": 1, "n": float("nan")}, "field 'n' was None, and is nan", "another table"),
]


@pytest.mark.parametrize(("before", "after", "says", "reason"), FIELDS, ids=[row[-1] for row in FIELDS])
def test_a_changed_item_is_told_by_its_field_where_that_can_be_found_out(
    mapper: Maker, before: dict[str, Any], after: dict[str, Any], says: str, reason: str
) -> None:
    """Items are not kept, so that most changes of a value cannot be shown."""
    m = mapper(lambda item: 1, key="id")
    m.map([before])
    with pytest.raises(InputChanged, match=says):
        m.map([after])


def test_items_without_a_digest_raise_no_alarm(mapper: Maker, tmp_path: Path) -> None:
    """Neither those of old records, nor those whose content is not known."""
    m = mapper(lambda item: 1, key=lambda item: str(type(item)))
    m.map([object()])
    m.map([object()])
    plain = mapper(lambda item: item["x"], key="id")
    plain.f.runner.save_result(5, "by hand")
    assert plain.map([{"id": 5, "x": 1}]) == ["by hand"]


INPUTS: list[tuple[Any, str]] = [
    ("text", "a field"),
    (["text"], "a list of one field"),
    (("text", "lang"), "several fields"),
    (lambda item: item["text"].strip(), "a function of the item"),
]


@pytest.mark.parametrize("shape", [list, iter], ids=["re-readable", "one-shot"])
@pytest.mark.parametrize(("option", "reason"), INPUTS, ids=[reason for _, reason in INPUTS])
def test_input_names_what_counts_of_an_item(
    mapper: Maker, option: Any, reason: str, shape: Callable[[Any], Any]
) -> None:
    """Another time of download is no other input; another text is."""
    m = mapper(lambda item: item["text"], key="id", input=option)

    def items(text: str, at: int) -> list[dict[str, Any]]:
        return [{"id": n, "text": text, "lang": "en", "downloaded": at} for n in range(3)]

    m.map(items("a", 1))
    m.taken()
    assert m.map(shape(items("a", 2))) == ["a", "a", "a"]
    assert m.calls == []
    with pytest.raises(InputChanged):
        m.map(shape(items("b", 1)))
    assert m.map([*items("a", 1)[:1], *items("a", 2)[:1]]) == ["a", "a"], "equal in what counts: one result"


def test_input_may_be_given_to_a_checkpoint_that_has_results(mapper: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Their digests are of whole items: whether what counts of these has changed is not known, and that is said."""
    caplog.set_level("INFO", "checkpoint")
    mapper(lambda item: item["x"], key="id").map([{"id": 1, "x": 1, "at": 1}, {"id": 2, "x": 1, "at": 1}])
    m = mapper(lambda item: item["x"], key="id", input="x")
    assert m.map([{"id": 1, "x": 1, "at": 2}, {"id": 2, "x": 1, "at": 1}]) == [1, 1]
    assert "1 result was computed from an item that differs in what input= names" in caplog.text
    assert "WARNING" in caplog.text
    caplog.clear()
    older = [{"id": 1, "x": 1, "at": 2}]
    assert m.f.accept(older) == 1, "as the message says"
    assert m.map(older) == [1]
    assert "input= was another one then" not in caplog.text
    with pytest.raises(InputChanged):
        m.map([{"id": 1, "x": 2, "at": 2}])
    assert m.map([{"id": 3, "x": 1, "at": 1}]) == [1]
    m.f.runner.close()
    with pytest.raises(InputChanged):
        m.map([{"id": 3, "x": 2, "at": 1}])
    whole = mapper(lambda item: item["x"], key="id")
    assert whole.map([{"id": 3, "x": 5, "at": 1}]) == [1], "and so where it is taken away"


BAD_INPUTS: list[tuple[Any, str]] = [
    (5, "neither"), ([], "no name"), ([1], "no names"), ({"text"}, "a set, which has no order"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "reason"), BAD_INPUTS, ids=[reason for _, reason in BAD_INPUTS])
def test_an_input_of_another_kind_is_refused_at_decoration(option: Any, reason: str) -> None:
    """With what to give."""
    with pytest.raises(InvalidOption, match="input is"):
        checkpointed("n", input=option)


@pytest.mark.parametrize("option", ["txet", lambda item: object()], ids=["a typing error", "no content"])
def test_an_input_that_cannot_be_told_is_refused_before_its_item_runs(mapper: Maker, option: Any) -> None:
    """And not silently without effect."""
    m = mapper(lambda item: 1, key="id", input=option)
    with pytest.raises(InvalidOption, match="input="):
        m.map([{"id": 1, "text": "a"}])
    assert m.calls == []


def test_a_few_results_that_are_all_known_under_other_keys_are_enough(mapper: Maker) -> None:
    """A trial of ten items before a run of many; of two, they may well be equal by chance."""
    docs = [{"id": n, "text": str(n)} for n in range(50)]
    mapper(lambda doc: 1, "trial", key="id").map(docs[:10])
    m = mapper(lambda doc: 1, "trial", key="text")
    for shape in (list, iter):
        with pytest.raises(KeyChanged, match="on disk under other keys"):
            m.map(shape(docs))
    assert m.calls == []
    mapper(lambda doc: 1, "two", key="id").map(docs[:2])
    assert len(mapper(lambda doc: 1, "two", key="text").map(docs)) == 50


def test_a_second_stage_notices_that_the_first_was_computed_anew(mapper: Maker, tmp_path: Path) -> None:
    """Its items are the results of the first."""
    docs = [{"id": n} for n in range(3)]

    def first(suffix: str) -> Any:
        f = checkpointed("first", key="id", checkpoint_dir=tmp_path, version=suffix)
        return f(lambda doc: {"id": doc["id"], "summary": f"{doc['id']}{suffix}".encode()})

    second = checkpointed("second", key="id", checkpoint_dir=tmp_path)(lambda summary: len(summary["summary"]))
    assert second.map(first("a").map(docs, progress=False), progress=False) == [2, 2, 2]
    assert second.map(first("a").map(docs, progress=False), progress=False) == [2, 2, 2]
    with pytest.raises(InputChanged, match="3 items"):
        second.map(first("bb").map(docs, progress=False), progress=False)


def test_equal_items_are_counted(mapper: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """At INFO, with how to ask for several samples; nothing is said where all differ."""
    caplog.set_level("INFO", "checkpoint")
    m = mapper(square)
    m.map([1, 2, 3])
    assert "equal to an earlier one" not in caplog.text
    for shape in (list, iter):
        caplog.clear()
        m.map(shape([5, 5, 5, 6, 6]))
        assert "3 of 5 items were equal to an earlier one" in caplog.text
        assert "(item, n) for item in items" in caplog.text
        caplog.clear()
        with pytest.raises(InvalidKey):
            m.map(shape([5, 5, math.nan]))
        assert "equal to an earlier one" not in caplog.text, "nor of items that were refused"
    caplog.clear()
    with pytest.raises(DuplicateKey):
        mapper(square, key=lambda item: 1).map([8, 9])
    assert "equal to an earlier one" not in caplog.text


# --- items that share an object ------------------------------------------------------------------------------------


def buffers() -> Iterator[dict[str, Any]]:
    """One dict, filled again for each item."""
    frame: dict[str, Any] = {}
    for n in range(6):
        frame["id"], frame["x"] = n, n * n
        yield frame


class Buffered:
    """The same, as often as it is read."""

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return buffers()


def in_tuples() -> Iterator[tuple[int, Any]]:
    """One array, filled again for each item."""
    frame = np.zeros(3)
    for n in range(6):
        frame[:] = n * n
        yield n, frame


def in_dicts() -> Iterator[dict[str, Any]]:
    """An array again, in a dict that is another one for each item."""
    return ({"id": n, "frame": frame} for n, frame in in_tuples())


def in_lists() -> Iterator[list[Any]]:
    """A list, two containers deep."""
    frame = [0]
    for n in range(6):
        frame[0] = n * n
        yield [n, {"deep": frame}]


@dataclass
class Frame:
    id: int
    frame: Any


def in_objects() -> Iterator[Frame]:
    """An array in an object of a class with fields."""
    return (Frame(n, frame) for n, frame in in_tuples())


def beside_clients() -> Iterator[dict[str, Any]]:
    """An array in a dict whose digest is not known."""
    client = object()
    return ({"id": n, "frame": frame, "client": client} for n, frame in in_tuples())


SHARED: list[tuple[Callable[[], Any], Any, Callable[[Any], Any], str]] = [
    (buffers, "id", lambda item: item["x"], "a reused dict"),
    (Buffered, "id", lambda item: item["x"], "one that can be read again"),
    (in_tuples, lambda item: item[0], lambda item: int(item[1][0]), "a reused array in a tuple"),
    (in_dicts, "id", lambda item: int(item["frame"][0]), "in a dict"),
    (in_lists, lambda item: item[0], lambda item: item[1]["deep"][0], "in a dict in a list"),
    (in_objects, "id", lambda item: int(item.frame[0]), "in a dataclass"),
    (beside_clients, "id", lambda item: int(item["frame"][0]), "beside an object of unknown content"),
]
GROUPS: list[tuple[Callable[[], Any], str]] = [
    (lambda: itertools.groupby(range(6), lambda n: n // 2), "groups"),
    (lambda: (group for _, group in itertools.groupby(range(6), lambda n: n // 2)), "groups alone"),
]


@pytest.mark.parametrize(("items", "key", "function", "reason"), SHARED, ids=[row[-1] for row in SHARED])
def test_an_object_that_comes_again_is_right_where_calls_follow_each_other(
    items: Callable[[], Any], key: Any, function: Callable[[Any], Any], reason: str, tmp_path: Path
) -> None:
    """As in a loop."""
    f = checkpointed("n", key=key, checkpoint_dir=tmp_path)(function)
    assert f.map(items(), progress=False) == [n * n for n in range(6)]


def run_ahead(how: str, items: Any, key: Any, function: Callable[[Any], Any], directory: Path) -> None:
    """Run over the items so that one is drawn while the call of another is not done."""
    options: dict[str, Any] = {"key": key, "checkpoint_dir": directory}

    async def call(item: Any) -> Any:
        await asyncio.sleep(0)
        return function(item)

    if how == "workers":
        checkpointed("n", **options)(function).map(items, progress=False, workers=2)
    elif how == "batches":
        several = checkpointed("n", **options, batch_size=2)
        several(lambda batch: [function(item) for item in batch]).map(items, progress=False)
    elif how == "tasks":
        asyncio.run(checkpointed("n", **options)(call).map(items, progress=False, workers=2))
    else:
        list(BatchCheckpointedRunner("n", directory).iterate_batches(items, key_fn=key, batch_size=2))


@pytest.mark.parametrize(("items", "key", "function", "reason"), SHARED, ids=[row[-1] for row in SHARED])
@pytest.mark.parametrize("how", ["workers", "batches", "tasks", "by hand"])
def test_an_object_that_comes_again_too_early_is_an_error_and_leaves_no_wrong_result(
    items: Callable[[], Any], key: Any, function: Callable[[Any], Any], reason: str, how: str, tmp_path: Path
) -> None:
    """What its first call makes of it is not kept."""
    with pytest.raises(InvalidOption, match=r"one object with .*copy\.deepcopy"):
        run_ahead(how, items(), key, function, tmp_path)
    with CheckpointedRunner("n", tmp_path) as runner:
        assert all(value == n * n for n, value in runner.get_all_results().items())


def test_all_calls_that_a_reused_object_spoils_are_known() -> None:
    """An earlier one too, whose content was that of the last one until the object was filled again."""
    loans, frame = Loans(), np.zeros(3)
    items = [{"id": n, "frame": frame} for n in range(3)]
    for n, item in enumerate(items[:2]):
        assert loans.taken(item, n) is None
        loans.lend(item, n, item_digest(item))
    frame[:] = 4
    loans.ended(0)
    taken = loans.taken(items[2], 2)
    assert taken is not None
    assert taken[0] is frame
    assert taken[1] == [0, 1]


@pytest.mark.parametrize(("items", "reason"), GROUPS, ids=[reason for _, reason in GROUPS])
def test_groups_are_refused_where_they_would_be_empty(items: Callable[[], Any], reason: str, tmp_path: Path) -> None:
    """With what to write; in a loop of calls they are right."""
    counter = itertools.count()
    f = checkpointed("n", key=lambda item: next(counter), checkpoint_dir=tmp_path)(
        lambda item: sum(item[1] if type(item) is tuple else item)
    )
    assert f.map(items(), progress=False) == [1, 5, 9]
    with pytest.raises(InvalidOption, match=r"list\(group\)"):
        f.map(items(), progress=False, workers=2)
    with pytest.raises(InvalidOption, match=r"list\(group\)"):
        f.map(list(items()), progress=False)


def test_what_is_the_same_for_all_items_may_be_one_object(tmp_path: Path) -> None:
    """A setting in each tuple; objects that cannot be changed; and one that comes again when its call is done."""
    setting = {"scale": 10}
    f = checkpointed("n", key=lambda item: item[0], checkpoint_dir=tmp_path)(lambda item: item[0] * item[1]["scale"])
    assert f.map(((n, setting) for n in range(40)), progress=False, workers=4) == [n * 10 for n in range(40)]
    runner = BatchCheckpointedRunner("b", tmp_path)
    assert [batch[0]["x"] for batch in runner.iterate_batches(buffers(), key_fn="id", batch_size=1)] == [
        n * n for n in range(6)
    ]


def test_results_that_are_saved_under_other_keys_than_were_asked_for_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else each run hands all of them out again."""
    with CheckpointedRunner("hand", tmp_path) as runner:
        for item in runner.iterate([{"id": n} for n in range(5)], key_fn="id"):
            runner.save_result(str(item["id"]), 1)
    assert "5 results were saved under keys that are of no item (such as '0')" in caplog.text


def test_a_recomputation_that_fails_stands_as_failed(mapper: Maker) -> None:
    """The result of the item that was must not stand in the place of the one that is."""
    before, after = before_and_after()
    m = mapper(lambda item: 1 // (2 - item["x"]), key="id", on_change="recompute")
    m.map(before)
    for call in (m.map, m.map):
        got = call([*after, after[2]], return_exceptions=True)
        assert [type(value).__name__ for value in got] == ["int", "ItemError", "ItemError", "ItemError"]
    assert len(m.taken()) == 3 + 2 + 2
    got = m.map(after, return_exceptions=True, retry_failed=False)
    assert [type(value).__name__ for value in got] == ["int", "ItemError", "ItemError"]
    assert m.calls == []
    assert [type(outcome.error).__name__ for outcome in m.stream([*after, after[2]])] == [
        "NoneType", "ZeroDivisionError", "ZeroDivisionError", "ItemError",
    ]  # fmt: skip


def test_an_old_failure_of_another_input_does_not_stand_for_a_changed_one(mapper: Maker) -> None:
    """It failed, then succeeded, then its item changed: with retry_failed=False it is run all the same."""
    outcome: dict[str, Any] = {"fails": True}

    def body(item: dict[str, int]) -> int:
        if outcome["fails"]:
            raise OSError("down")
        return item["x"]

    m = mapper(body, key="id", on_change="recompute")
    m.map([{"id": 1, "x": 1}], return_exceptions=True)
    outcome["fails"] = False
    m.map([{"id": 1, "x": 1}])
    assert m.map([{"id": 1, "x": 2}], retry_failed=False) == [2]


def test_an_unencodable_recomputation_ends_no_pass(mapper: Maker) -> None:
    """Its value is kept aside, and the old result does not stand in its place."""
    m = mapper(lambda item: unencodable(1) if item["x"] == 2 else item["x"], key="id", on_change="recompute")
    m.map([{"id": 1, "x": 1}])
    for _ in range(2):
        got = m.map([{"id": 1, "x": 2}, {"id": 2, "x": 1}], return_exceptions=True)
        assert [type(value).__name__ for value in got] == ["ItemError", "int"]


# --- the law of values -----------------------------------------------------------------------------------------------


@dataclass
class Point:
    """A class of values."""

    x: float
    y: float


VALUES = [
    (float("nan"), "NaN"),
    (-0.0, "a signed zero"),
    (float("-inf"), "an infinity"),
    ((1, (2, [3])), "tuples at depth"),
    ({1: "a", (2, 3): None}, "keys that are no strings"),
    ({"$tuple": [1]}, "what looks like an envelope"),
    (b"\xff", "bytes"),
    ({3, 1}, "a set"),
    (date(2026, 1, 2), "a date"),
    (Decimal("1.10"), "a Decimal"),
    ("\ud800", "a lone surrogate"),
    (10**30, "a huge int"),
    (np.float32(0.1), "a numpy scalar"),
    (None, "None: done all the same"),
]


@pytest.mark.parametrize(("value", "reason"), VALUES, ids=[reason for _, reason in VALUES])
def test_a_value_is_the_same_on_the_first_and_on_a_resumed_pass(mapper: Maker, value: Any, reason: str) -> None:
    """And the same as what the function returned: type and repr, NaN included."""
    m = mapper(lambda _: value)
    fresh, resumed = m.map([1])[0], m.map([1])[0]
    assert (type(fresh), repr(fresh)) == (type(resumed), repr(resumed)) == (type(value), repr(value))
    assert len(m.calls) == 1


def test_a_typed_value_is_its_class_on_both_runs() -> None:
    """The return annotation names the class, local ones and strings included."""

    @dataclass
    class Local:
        n: int

    @checkpointed("typed")
    def f(n: int) -> Local:
        return Local(n)

    assert f.map([1], progress=False) == f.map([1], progress=False) == [Local(1)]


def test_an_array_is_the_same_on_both_runs(mapper: Maker) -> None:
    """dtype and shape too."""
    value = np.array([[1.0, np.nan]], dtype=">f4")
    m = mapper(lambda _: value)
    for got in (m.map([1])[0], m.map([1])[0]):
        np.testing.assert_array_equal(got, value)
        assert got.dtype == value.dtype


def test_an_object_of_an_unnamed_class_is_plain_on_both_runs(mapper: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Not an object now and a dict later; one message says how to get the class."""
    m = mapper(lambda n: Point(n, 0.0))
    want = {"x": 1, "y": 0.0}
    assert m.map([1, 2])[0] == m.map([1, 2])[0] == want
    assert caplog.text.count("come back as plain JSON") == 1


def test_a_value_that_does_not_fit_the_annotation_is_the_same_on_both_runs() -> None:
    """The value decides, and the annotation only names."""

    @checkpointed("unfit")
    def f(n: int) -> Point:
        return {"x": "not a point", "n": (n,)}  # type: ignore[return-value]

    assert f.map([1], progress=False) == f.map([1], progress=False) == [{"x": "not a point", "n": (1,)}]


def test_a_mutable_value_is_decoded_at_each_access(mapper: Maker) -> None:
    """Nobody changes a result for others."""
    got = mapper(lambda n: [n]).map([1])
    got[0].append(2)
    assert got[0] == [1]


# --- failures --------------------------------------------------------------------------------------------------------


class Picky(Exception):
    """An exception that pickles and does not unpickle."""

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


@dataclass(frozen=True)
class Frozen(Exception):
    """An exception whose attributes cannot be set."""

    code: int


def failing(n: int) -> int:
    """Fails for what is odd."""
    if n % 2:
        raise ValueError(f"odd: {n}")
    return n


def test_failures_do_not_stop_the_rest(mapper: Maker) -> None:
    """Every other item is run and saved; then `ItemsFailed` says how many, of what type, how many are done, where."""
    m = mapper(failing)
    with pytest.raises(ItemsFailed) as caught:
        m.map(range(6))
    error = caught.value
    assert len(m.calls) == 6
    assert not isinstance(error, TooManyErrors)
    path = str(Path("checkpoints/m_results.jsonl").resolve())
    for part in (
        "3 of 6 items failed",
        "3 ValueError",
        "3 items are done",
        path,
        "run the same line again to try only the rest",
    ):
        assert part in str(error)
    assert [str(one) for one in error.exceptions] == ["odd: 1", "odd: 3", "odd: 5"]
    assert error.results is not None
    assert [type(value) for value in error.results] == [int, ItemError] * 3


@pytest.mark.promise("secrets")
def test_the_originals_carry_their_key_and_their_traceback_as_text(mapper: Maker) -> None:
    """And no frames, nor do the exceptions that they lead to: frames hold the user's data."""

    def body(n: int) -> int:
        try:
            raise KeyError("inner")
        except KeyError as inner:
            raise ExceptionGroup("outer", [ValueError("member")]) from inner

    with pytest.raises(ItemsFailed) as caught:
        mapper(body).map(["some-key"])
    (original,) = caught.value.exceptions
    assert isinstance(original, ExceptionGroup)
    for one in (original, original.__cause__, original.exceptions[0]):
        assert one is not None
        assert one.__traceback__ is None
    note = "".join(original.__notes__)
    assert "'some-key'" in note
    assert "in body" in note
    assert "engines.py" not in note


def test_the_exception_that_the_caller_is_handling_keeps_its_traceback(mapper: Maker) -> None:
    """It is the context of whatever the function raises meanwhile, and none of ours."""
    m = mapper(failing)
    outer = OSError("the caller's")
    try:
        raise outer
    except OSError:
        m.map([1], return_exceptions=True)
    assert outer.__traceback__ is not None


@pytest.mark.parametrize(
    ("exception", "reason"),
    [
        (Picky(code=1), "does not unpickle"),
        (Frozen(1), "attributes cannot be set"),
        (ItemsFailed("inner", [ValueError()]), "a map inside a map"),
        (BlockingIOError(11, "x"), "an OSError, as a store error is"),
        (ValueError("\ud800"), "a message that is no UTF-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_exception_is_a_failure_of_its_item_alone(mapper: Maker, exception: Exception, reason: str) -> None:
    """It is recorded, raised in the group at the end, and can be read by the next pass."""

    def body(n: int) -> int:
        if n == 1:
            raise exception
        return n

    m = mapper(body)
    with pytest.raises(ItemsFailed) as caught:
        m.map([0, 1, 2])
    assert caught.value.exceptions == (exception,)
    assert [outcome.ok for outcome in m.stream([0, 1, 2], retry_failed=False)] == [True, False, True]
    back = pickle.loads(pickle.dumps(caught.value))
    assert len(back.exceptions) == 1
    assert [type(value) for value in back.results] == [int, ItemError, int]


def test_a_stop_iteration_of_the_function_ends_nothing() -> None:
    """It is a failure like any other, though it ends the generators that it passes through."""
    empty: Iterator[int] = iter(())
    f = checkpointed("stop")(lambda n: next(empty) if n == 1 else n)
    assert [outcome.ok for outcome in f.stream([0, 1, 2], progress=False)] == [True, False, True]


def test_the_group_holds_at_most_100_and_counts_all(mapper: Maker) -> None:
    """A million failures are counted by type, and the first 100 are shown."""
    m = mapper(failing)
    with pytest.raises(ItemsFailed) as caught:
        m.map(range(300))
    assert len(caught.value.exceptions) == 100
    assert "150 of 300 items failed (150 ValueError)" in str(caught.value)


def test_return_exceptions_puts_failures_in_their_places(mapper: Maker) -> None:
    """As asyncio.gather does; each knows key, type, message and traceback."""
    got = mapper(failing).map([0, 1], return_exceptions=True)
    assert got[0] == 0
    error = got[1]
    assert isinstance(error, ItemError)
    assert (error.key, error.type, error.message, error.attempts) == (1, "ValueError", "odd: 1", 1)
    assert "in failing" in (error.traceback or "")
    assert got.errors == {1: error}


def test_the_next_map_tries_only_what_failed(mapper: Maker) -> None:
    """A later success retires the error."""
    m = mapper(lambda n: n if n != 1 or os.path.exists("mended") else {}[n])
    m.map([0, 1, 2], return_exceptions=True)
    assert dict(m.f.errors) == {1: ItemError("", key=1, type="KeyError", message="1")}
    m.taken()
    Path("mended").touch()
    assert m.map([0, 1, 2]) == [0, 1, 2]
    assert m.calls == [1]
    assert dict(m.f.errors) == {}


def test_with_retry_failed_false_old_failures_stand_and_do_not_raise(mapper: Maker) -> None:
    """They raise only together with a failure of this pass."""
    m = mapper(failing)
    m.map([0, 1], return_exceptions=True)
    m.taken()
    got = m.map([0, 1, 2], retry_failed=False)
    assert (got[0], got[2], type(got[1])) == (0, 2, ItemError)
    assert m.taken() == [2]
    with pytest.raises(ItemsFailed) as caught:
        m.map([0, 1, 3], retry_failed=False)
    assert [str(one) for one in caught.value.exceptions] == ["odd: 3"]


MAX_ERRORS = [
    (0, 2, "the first failure ends it"),
    (2, 6, "the third one does"),
    (None, 200, "no limit"),
    (0.9, 200, "never over the fraction"),
    (0.3, 100, "a fraction counts once a hundred have run"),
]


@pytest.mark.parametrize(("limit", "runs", "reason"), MAX_ERRORS, ids=[reason for *_, reason in MAX_ERRORS])
def test_max_errors_ends_the_pass_early(mapper: Maker, limit: Any, runs: int, reason: str) -> None:
    """What was not run is told by its place in `.results`, and run by the same call."""
    m = mapper(failing)
    kind = ItemsFailed if runs == 200 else TooManyErrors
    with pytest.raises(kind) as caught:
        m.map(range(200), max_errors=limit)
    assert len(m.calls) == runs
    results = caught.value.results
    assert results is not None
    assert len(results) == 200
    not_run = [value for value in results if isinstance(value, ItemError) and value.type == "NotRun"]
    assert len(not_run) == 200 - runs
    assert results[0] == 0


@pytest.mark.parametrize("limit", [-1, 1.0, 1.5, float("nan"), True, "1"], ids=repr)
def test_max_errors_of_another_kind_is_refused(mapper: Maker, limit: Any) -> None:
    """A float is a fraction below 1, a count is an int."""
    m = mapper(square)
    with pytest.raises(InvalidOption, match="max_errors"):
        m.map([1], max_errors=limit)
    assert m.calls == []


def test_100_in_a_row_with_one_exception_type_end_the_pass(mapper: Maker) -> None:
    """A dead key or quota is not paid for a million times, wherever in the pass it dies."""

    def body(n: int) -> int:
        if n < 50:
            return n
        raise (KeyError if n == 60 else PermissionError)(n)

    m = mapper(body)
    with pytest.raises(TooManyErrors, match="100 items in a row failed with PermissionError") as caught:
        m.map(range(300), return_exceptions=True)
    assert m.taken() == list(range(161))
    assert caught.value.results is not None
    assert caught.value.results[:50] == list(range(50))
    with pytest.raises(ItemsFailed) as failed:
        m.map(range(300), max_errors=1000)
    assert not isinstance(failed.value, TooManyErrors), "an explicit limit is the only one"


@pytest.mark.slow
def test_a_fifth_that_fails_in_between_is_no_row(mapper: Maker) -> None:
    """The row is counted in the order in which calls end, however many are settled together."""

    def body(n: int) -> int:
        if n % 5:
            raise ValueError(n)
        return n

    m = mapper(body)
    assert len(m.map(range(1000), return_exceptions=True).errors) == 800


@pytest.mark.slow
@pytest.mark.parametrize("shape", [list, Again, lambda items: (item for item in items)], ids=["list", "again", "once"])
@pytest.mark.parametrize("limit", [None, 150, 0.5], ids=str)
def test_old_failures_keep_neither_new_items_nor_a_finished_job_from_being_read(
    mapper: Maker, shape: Callable[[Any], Any], limit: Any
) -> None:
    """They are tried again behind all that never ran, and where they fail as they did, that is no news."""

    def body(n: int) -> int:
        if n < 120:
            raise ValueError(n)
        return n

    m = mapper(body)
    m.map(range(300), return_exceptions=True, max_errors=1000)
    m.taken()
    got = m.map(shape([*range(303)]), return_exceptions=True, max_errors=limit)
    assert [n for n, value in enumerate(got) if isinstance(value, ItemError)] == list(range(120))
    ran = m.taken()
    if shape in (list, Again):
        assert ran == [300, 301, 302, *range(120)]
    assert sorted(ran) == [*range(120), 300, 301, 302]
    with pytest.raises(ItemsFailed) as caught:
        m.map(shape([*range(303)]), max_errors=limit)
    assert not isinstance(caught.value, TooManyErrors)
    assert caught.value.results == got


def test_old_failures_that_fail_in_another_way_are_news(mapper: Maker) -> None:
    """The key has died since: the breaker sees it."""
    kind: type[Exception] = ValueError

    def body(n: int) -> int:
        raise kind(n)

    m = mapper(body)
    m.map(range(200), return_exceptions=True, max_errors=1000)
    m.taken()
    kind = PermissionError
    with pytest.raises(TooManyErrors, match="100 items in a row failed with PermissionError") as caught:
        m.map(range(200))
    assert len(m.taken()) == 100
    assert caught.value.results is not None
    kinds = [value.type for value in caught.value.results]
    assert kinds == ["PermissionError"] * 100 + ["ValueError"] * 100, "those that did not run stand as they failed"


def test_a_part_of_an_error_has_the_results_of_the_whole(mapper: Maker) -> None:
    """As ``except*`` makes it."""
    m = mapper(failing)
    with pytest.raises(ItemsFailed) as caught:
        m.map([1, 2, 3])
    part, rest = caught.value.split(lambda one: str(one) == "odd: 1")
    for one in (part, rest):
        assert isinstance(one, ItemsFailed)
        assert one.results == caught.value.results


# --- values that cannot be written -----------------------------------------------------------------------------------


def test_an_unencodable_value_is_kept_aside_and_not_paid_for_again(mapper: Maker) -> None:
    """Its item fails and names the path to the culprit; the value is opened by `.unsaved`."""
    m = mapper(lambda n: {"deep": [complex] if n == 1 else []})
    with pytest.raises(ItemsFailed) as caught:
        m.map([0, 1, 2])
    (error,) = caught.value.exceptions
    assert isinstance(error, UnencodableValue)
    assert "result['deep'][0]" in error.where
    assert error.key == 1
    assert "f.clear(f.unsaved) and run the same line again" in str(caught.value)
    m.taken()
    with pytest.raises(ItemsFailed) as caught:
        m.map([0, 1, 2])
    assert m.calls == []
    assert isinstance(caught.value.exceptions[0], ItemError)
    assert dict(m.f.unsaved) == {1: {"deep": [complex]}}


def test_an_unsaved_value_saved_by_hand_makes_its_item_done(mapper: Maker) -> None:
    """In a form that can be stored."""
    m = mapper(lambda n: unencodable(n))
    m.map([1], return_exceptions=True)
    assert "lambda" in m.f.unsaved[1]  # a lambda does not pickle: its repr was kept
    m.f.runner.save_result(1, "by hand")
    assert m.map([1]) == ["by hand"]
    assert dict(m.f.unsaved) == {}
    assert len(m.calls) == 1


def test_clearing_an_unsaved_key_runs_it_again(mapper: Maker) -> None:
    """That is how to ask for it."""
    good = False
    m = mapper(lambda n: n if good else unencodable(n))
    m.map([1], return_exceptions=True)
    good = True
    m.f.clear([1])
    assert m.map([1]) == [1]


def test_the_third_unencodable_value_ends_the_pass(mapper: Maker) -> None:
    """The code is at fault, and each further item would be paid for in vain."""
    m = mapper(unencodable)
    with pytest.raises(TooManyErrors, match="3 results could not be written"):
        m.map(range(10))
    assert m.calls == [0, 1, 2]
    assert len(m.f.unsaved) == 3


def test_an_unsaved_value_whose_error_is_gone_still_stands_as_failed(mapper: Maker) -> None:
    """Somebody deleted the errors' journal: the pass goes on."""
    m = mapper(lambda n: unencodable(n) if n == 1 else n)
    m.map([1], return_exceptions=True)
    m.f.runner.close()
    os.unlink("checkpoints/m_errors.jsonl")
    with pytest.raises(ItemsFailed) as caught:
        m.map([1, 2])
    assert "see .unsaved" in str(caught.value.exceptions[0])
    assert list(m.f.errors) == [1]
    assert {outcome.item: outcome.ok for outcome in m.stream([1, 2])} == {1: False, 2: True}


# --- when the store fails --------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`full(True)`: writing to a journal fails from now on."""
    state = {"full": False}
    write = os.write

    def limited(fd: int, data: Any) -> int:
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr("checkpoint.storage.files.os.write", limited)
    return lambda full: state.update(full=full)


def test_a_value_that_the_store_could_not_write_is_in_the_error(
    mapper: Maker, full_disk: Callable[[bool], None]
) -> None:
    """The pass ends; `.unsaved` has the paid-for value; what came before is saved; the same call goes on."""

    def body(n: int) -> Any:
        full_disk(n == 2)
        return [n]

    m = mapper(body)
    with pytest.raises(StoreError) as caught:
        m.map(range(5))
    full_disk(False)
    error = caught.value
    assert isinstance(error, OSError)
    assert (error.errno, error.unsaved) == (errno.ENOSPC, {2: [2]})
    assert error.filename.endswith("m_results.jsonl")
    assert pickle.loads(pickle.dumps(error)).unsaved == {2: [2]}
    for key, value in error.unsaved.items():
        m.f.runner.save_result(key, value)
    assert list(m.f.results) == [0, 1, 2]
    m.taken()
    assert m.map([0, 1, 2, 3]) == [[0], [1], [2], [3]]
    assert m.calls == [3]


def test_a_write_that_fails_once_is_tried_once_more(mapper: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised, lost, or written twice."""
    append, failures = Store.append, iter([True])

    def flaky(self: Store, *args: Any, **kwargs: Any) -> None:
        if next(failures, False):
            raise StoreError("full", errno=errno.ENOSPC)
        append(self, *args, **kwargs)

    monkeypatch.setattr(Store, "append", flaky)
    assert mapper(square).map([1, 2]) == [1, 4]
    assert Path("checkpoints/m_results.jsonl").read_bytes().count(b"\n") == 2


def test_an_unencodable_value_on_a_full_disk_is_in_the_error(mapper: Maker, full_disk: Callable[[bool], None]) -> None:
    """It can be neither written nor kept aside: the error is the only place left."""

    def body(n: int) -> Any:
        full_disk(True)
        return unencodable(n)

    with pytest.raises(StoreError) as caught:
        mapper(body).map([1])
    full_disk(False)
    assert list(caught.value.unsaved) == [1]


def test_an_interrupt_ends_the_pass_and_loses_only_what_was_in_flight(mapper: Maker) -> None:
    """KeyboardInterrupt in the function; handlers are as they were."""
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    angry = True

    def body(n: int) -> int:
        if n == 2 and angry:
            raise KeyboardInterrupt
        return n

    m = mapper(body, version="any")  # what it reads is a switch of the test
    with pytest.raises(KeyboardInterrupt):
        m.map(range(4))
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    angry = False
    assert list(m.f.results) == [0, 1]
    m.taken()
    assert m.map(range(4)) == [0, 1, 2, 3]
    assert m.calls == [2, 3]


@cache
def lines_left_out(path: str) -> frozenset[int]:
    """Lines at which a trace does not stand for a signal.

    The exit of a `with` and a `try:` are told as lines too; a signal is not handled there: before the lock is let go,
    and where no handler around it is in force. From Python 3.12 on, what a trace raises in a comprehension passes by
    the handlers around it; what a signal raises does not.
    """
    lines = linecache.getlines(path)
    found = {number for number, line in enumerate(lines, start=1) if line.lstrip().startswith("with ")}
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, (ast.With, ast.Try)):
            inner = (each for each in ast.walk(node) if isinstance(each, ast.Try) and each is not node)
            found.update(each.lineno for each in inner)
        elif sys.version_info >= (3, 12) and isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp)):
            found.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return frozenset(found)


class Interrupter:
    """Raises KeyboardInterrupt before the n-th line that runs in our package, in this thread."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE) or path.endswith(UNTRACED) or frame.f_code.co_name in UNPROTECTED:
            return None
        left_out = lines_left_out(path)

        def before_line(frame: FrameType, event: str, argument: Any) -> Any:
            if event == "line" and frame.f_lineno not in left_out:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
            return before_line

        return before_line

    def run(self, call: Callable[[], Any]) -> bool:
        """Whether it was interrupted."""
        gc.collect()  # what earlier tests left is not to be finalized, and interrupted, in this call
        gc.disable()
        traced = sys.gettrace()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(traced)
            gc.enable()
            for number, handler in handlers.items():  # what a signal raises comes after its handler has put them back
                signal.signal(number, handler)
        return False


PACKAGE = str(Path(checkpoint.__file__).parent) + os.sep
# The locks of `threading` have no lines either; a signal that comes while handlers are put back is taken by ours.
UNTRACED = ("clock.py", "locks.py", "signals.py")
# A pass is entered and left, and an object made and unmade, in a line or two that Python gives no protection to.
UNPROTECTED = ("__init__", "__del__", "_detach")


@pytest.mark.slow
@pytest.mark.parametrize("start", range(5))
def test_an_interrupt_at_any_line_loses_only_what_was_in_flight(frozen: None, start: int) -> None:
    """The next map returns all of it and calls at most one item again; every 35th line is tried, from five starts.

    Each has a directory of its own: to look through what the others left takes more lines each time.
    """
    for at in itertools.count(1 + start * 7, 35):
        m = Mapper("function", "interrupted", square, checkpoint_dir=str(at))
        interrupter = Interrupter(at)
        interrupted = interrupter.run(lambda m=m: m.map([1, 2, 3]))  # type: ignore[misc]
        assert not signals._passes, at
        if not interrupted:
            assert interrupter.left > 0
            return
        acknowledged = set(m.f.results)
        called = m.taken()
        assert m.map([1, 2, 3]) == [1, 4, 9]
        assert not acknowledged & set(m.calls)
        assert len(set(called) & set(m.calls)) <= 1
        m.f.runner.close()


def test_results_cleared_while_the_pass_runs_are_missed(mapper: Maker) -> None:
    """A place without a result is told, never returned as if it were one."""
    m: Mapper

    def body(n: int) -> int:
        if n == 2:
            m.f.clear([0])
        return n

    m = mapper(body, version=1)
    with pytest.raises(JournalLost, match="cleared while the pass ran") as caught:
        m.map(range(4))
    assert caught.value.keys == [0]
    assert m.map([0, 1, 2, 3]) == [0, 1, 2, 3]


# --- passes inside of passes -----------------------------------------------------------------------------------------


def test_a_map_may_map_another_checkpoint(mapper: Maker) -> None:
    """Passes nest, and each resumes by itself."""
    inner = Mapper("function", "inner", square)
    m = mapper(lambda n: sum(inner.map(range(n))))
    assert m.map([2, 3, 4]) == [1, 5, 14]
    assert inner.calls == [0, 1, 2, 3]


def test_a_map_may_map_its_own_checkpoint_inside_it() -> None:
    """What the inner one computes is there for the outer one."""
    f: Any = checkpointed("same")(lambda n: f.map([n - 1, n - 2], progress=False) and n if n > 1 else n)
    assert f.map([5, 4, 3], progress=False) == [5, 4, 3]
    assert sorted(f.results) == [0, 1, 2, 3, 4, 5]


@pytest.mark.slow
def test_what_another_process_finishes_before_this_one_writes_is_not_run_again() -> None:
    """The lock is taken at the first item to run, and what was saved until then is looked at again."""
    f = checkpointed("other")(square)
    calls: list[int] = []
    script = "from checkpoint import checkpointed; checkpointed('other')(lambda n: n * n).map([1, 2, 3])"
    begin = Writer.begin

    def late(self: Writer) -> None:
        if not calls:
            calls.append(1)
            subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=_environment())
        begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "begin", late)
        outcomes = list(f.stream([1, 2, 3], progress=False))
    assert [(outcome.value, outcome.source) for outcome in outcomes] == [(n * n, "resumed") for n in (1, 2, 3)]
    assert f.runner.progress() == (3, 3)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parent.parent)}


# --- stream ----------------------------------------------------------------------------------------------------------


def test_a_stream_yields_an_outcome_for_each_item(mapper: Maker) -> None:
    """Resumed or fresh, value or error; a failure is never raised."""
    m = mapper(failing, key=lambda n: f"k{n}")
    m.map([0])
    got = m.stream([0, 1, 2, 2])
    assert [(o.item, o.key, o.value, o.source) for o in got] == [
        (0, "k0", 0, "resumed"), (1, "k1", None, "fresh"), (2, "k2", 2, "fresh"), (2, "k2", 2, "fresh"),
    ]  # fmt: skip
    assert [o.ok for o in got] == [True, False, True, True]
    assert isinstance(got[1].error, ValueError)
    again = m.stream([1], retry_failed=False)
    assert [(o.source, type(o.error)) for o in again] == [("resumed", ItemError)]


def test_a_stream_takes_endless_input_and_lets_go_when_its_consumer_stops() -> None:
    """What was yielded is on disk, and so is what was finished; the next pass may start at once."""
    m = Mapper("function", "endless", square)
    got = list(itertools.islice(m.f.stream(itertools.count(), progress=False), 3))
    assert [outcome.value for outcome in got] == [0, 1, 4]
    assert m.map([0, 1, 2]) == [0, 1, 4]
    assert m.calls == [0, 1, 2]


def test_an_async_stream_lets_go_when_its_consumer_stops() -> None:
    """At once, not when the event loop gets round to closing its generator."""
    m = Mapper("coroutine function", "endless", square)

    async def main() -> None:
        async for outcome in m.f.stream(itertools.count(), progress=False):
            if outcome.item == 2:
                break
        assert await m.f.map([0, 1, 2, 3], progress=False) == [0, 1, 4, 9]

    asyncio.run(main())
    assert m.calls == [0, 1, 2, 3]


def test_an_async_map_that_is_cancelled_keeps_what_finished_and_lets_go() -> None:
    """Cancellation ends the pass."""

    async def main() -> list[int]:
        reached = asyncio.Event()

        @checkpointed("cancelled")
        async def f(n: int) -> int:
            if n == 2 and not reached.is_set():
                reached.set()
                await asyncio.Event().wait()
            return n

        task = asyncio.create_task(f.map(range(4), progress=False))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert list(f.results) == [0, 1]
        return list(await f.map(range(4), progress=False))

    assert asyncio.run(main()) == [0, 1, 2, 3]


def test_what_a_stream_yields_is_on_disk_before(mapper: Maker) -> None:
    """Another reader sees it while the consumer holds it."""
    m = Mapper("function", "seen", square)
    for outcome in m.f.stream([1, 2, 3], progress=False):
        lines = Path("checkpoints/seen_results.jsonl").read_bytes().splitlines()
        assert len(lines) == outcome.item


def test_an_exception_of_the_consumer_lets_go_of_the_lock() -> None:
    """As `break` does."""
    m = Mapper("function", "thrown", square)

    def consume() -> None:
        for outcome in m.f.stream([1, 2], progress=False):
            raise ZeroDivisionError(outcome)

    with pytest.raises(ZeroDivisionError):
        consume()
    assert m.map([1, 2]) == [1, 4]


def test_a_stored_object_that_can_no_longer_be_built_ends_a_stream_before_it_begins() -> None:
    """The item is not paid for again."""

    @dataclass
    class Thing:
        n: int

    def f(n: int) -> Thing:
        return Thing(n)

    mapped = checkpointed("built", result_type=Thing)(f)
    mapped.map([1], progress=False)
    path = Path("checkpoints/built_results.jsonl")

    @dataclass
    class Thing2:
        m: int

    Thing2.__name__, Thing2.__qualname__ = Thing.__name__, Thing.__qualname__
    other = checkpointed("built", result_type=Thing2)(f)
    with pytest.raises(ResultsUnfit, match="Thing"):
        next(other.stream([1], progress=False))
    assert path.read_bytes().count(b"\n") == 1


def test_a_damaged_value_is_computed_again_and_counted_once(mapper: Maker) -> None:
    """A stream reads each value, and so finds out; the rest is resumed."""
    m = mapper(lambda n: f"value {n}")
    m.map([0, 1, 2])
    m.taken()
    m.f.runner.close()
    path = Path("checkpoints/m_results.jsonl")
    path.write_bytes(path.read_bytes().replace(b"value 1", b"value 7"))
    got = m.stream([0, 1, 2])
    assert [(o.value, o.source) for o in got] == [
        ("value 0", "resumed"), ("value 1", "fresh"), ("value 2", "resumed"),
    ]  # fmt: skip
    assert m.calls == [1]
    assert m.f.runner.progress() == (3, 3)


def test_too_many_errors_end_a_stream_after_the_outcome_that_tells_it(mapper: Maker) -> None:
    """The last failure is yielded before the error is raised."""
    m = Mapper("function", "many", failing)
    got: list[Outcome[int]] = []
    with pytest.raises(TooManyErrors):
        got.extend(m.f.stream(range(9), max_errors=0, progress=False))
    assert [outcome.ok for outcome in got] == [True, False]


# --- Results ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_results_are_a_sequence_that_equals_a_list() -> None:
    """Indexing, slices, iteration, len, reversed, contains, index, count, equality: as a list of the same values."""
    f = checkpointed("sequence")(lambda n: n % 3)

    @given(st.lists(st.integers(0, 9), max_size=8), st.integers(-9, 9), st.slices(8))
    def law(items: list[int], index: int, part: slice) -> None:
        results, values = f.map(items, progress=False), [n % 3 for n in items]
        assert results == values
        assert values == results
        assert results != [*values, 0]
        assert (len(results), list(results), list(reversed(results))) == (len(values), values, values[::-1])
        assert results[part] == values[part]
        assert type(results[part]) is list
        assert [n in results for n in range(4)] == [n in values for n in range(4)]
        assert [results.count(n) for n in range(4)] == [values.count(n) for n in range(4)]
        for n in set(values):
            assert results.index(n) == values.index(n)
        if -len(values) <= index < len(values):
            assert results[index] == values[index]
        else:
            with pytest.raises(IndexError):
                results[index]

    law()


def test_results_know_keys_errors_and_values_by_key(mapper: Maker) -> None:
    """In the order of the items."""
    got = mapper(failing, key=lambda n: f"k{n}").map([2, 1, 2], return_exceptions=True)
    assert got.item_keys == ["k2", "k1", "k2"]
    assert list(got.errors) == ["k1"]
    assert got.to_dict() == {"k2": 2, "k1": got[1]}


def test_results_are_no_dict_key_and_show_their_first_values(mapper: Maker) -> None:
    """Like a list; a long one is cut short."""
    got = mapper(square).map(range(30))
    with pytest.raises(TypeError):
        hash(got)
    assert repr(got).startswith("Results([0, 1, 4,")
    assert "10 more" in repr(got)


def test_results_pickle_as_a_list(mapper: Maker) -> None:
    """They travel without their files."""
    got = pickle.loads(pickle.dumps(mapper(square).map([1, 2])))
    assert got == [1, 4]
    assert type(got) is list


def test_results_keep_their_values_whatever_happens_later(mapper: Maker) -> None:
    """`clear()`, `clear(keys)`, a recomputation, `close()`, even the end of the directory."""
    salt = 0
    m = mapper(lambda n: n + salt, version="any")  # what it reads is a switch of the test
    first = m.map([1, 2])
    salt = 100
    m.f.clear([1])
    second = m.map([1, 2])
    m.f.clear()
    third = m.map([1, 2])
    m.f.runner.close()
    for path in Path("checkpoints").iterdir():
        path.unlink()
    assert (list(first), list(second), list(third)) == ([1, 2], [101, 2], [101, 102])
    assert first.item_keys == [1, 2]


def test_results_cost_8_bytes_an_item(mapper: Maker) -> None:
    """And their own descriptor: no value is held."""
    got = mapper(lambda n: "x" * 100).map(range(1000))
    assert sys.getsizeof(got._places) <= 8 * 1000 * 1.25 + 100
    assert got._keys is None


def test_results_of_a_map_can_be_mapped(mapper: Maker) -> None:
    """They are items like any others."""
    first = mapper(square, name="first").map([1, 2])
    assert mapper(lambda n: n + 1, name="second").map(first) == [2, 5]


def test_results_read_a_checkpoint_of_the_original(mapper: Maker) -> None:
    """Lines without a checksum, whose keys are strings, stand in their places; keys are those of the items."""
    Path("checkpoints").mkdir()
    Path("checkpoints/m_results.jsonl").write_text('{"key": "1", "result": 10, "timestamp": "2025-01-01T00:00:00"}\n')
    m = mapper(square)
    got = m.map([1, 2])
    assert got == [10, 4]
    assert got.item_keys == [1, 2]
    assert got.to_dict() == {1: 10, 2: 4}


def test_one_info_line_says_what_is_resumed(mapper: Maker, caplog: pytest.LogCaptureFixture) -> None:
    """Done, failed and total, by `logging`."""
    m = mapper(failing)
    with caplog.at_level(logging.INFO, "checkpoint"):
        m.map([0, 1], return_exceptions=True)
        assert "resuming" not in caplog.text
        m.map([0, 1, 2], return_exceptions=True)
    assert [line for line in caplog.messages if line.startswith("resuming")] == [
        "resuming 'm': 1 done, 1 failed, 3 in total"
    ]


def test_a_runner_by_hand_reads_what_a_map_wrote(mapper: Maker) -> None:
    """One format, two faces."""
    m = mapper(square)
    m.map([1, 2])
    assert CheckpointedRunner("m").get_all_results() == {1: 1, 2: 4}


def test_a_failure_while_results_are_raised_shows_no_frames_of_the_engine(mapper: Maker) -> None:
    """What people read is theirs."""
    with pytest.raises(ItemsFailed) as caught:
        mapper(failing).map([1])
    assert "odd: 1" in "".join(traceback.format_exception(caught.value))
