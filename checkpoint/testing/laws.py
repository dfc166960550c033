"""The laws that hold whatever runs the function: one suite for our own engines and for anybody's executor.

Whoever writes a `concurrent.futures.Executor` proves in three lines that `map` and `stream` keep their promises on it::

    from checkpoint.testing import check, for_executor

    check(for_executor(lambda: MyExecutor(max_workers=2)))

or has pytest name each law that does not hold::

    @pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
    def test_law(law, tmp_path):
        law(for_executor(lambda: MyExecutor(max_workers=2)), tmp_path)

Calls are counted by the function itself, in a file that all processes append to. No law asserts how long something
takes: what must happen is waited for, and what must not is counted. A law that says nothing of an engine of its kind
(such as of killed workers, where there are none) holds.
"""

from __future__ import annotations

import decimal
import gc
import importlib.util
import itertools
import os
import signal
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from checkpoint import clock
from checkpoint.errors import BrokenWorkers, ItemError, ItemsFailed, MaxCostReached, TooManyErrors
from checkpoint.execution.policies import Rate, Retry
from checkpoint.outcomes import Outcome
from checkpoint.testing.engine import Engine, Law
from checkpoint.testing.trial import (
    LONG,
    VALUES,
    VARIABLE,
    Deed,
    Elapsed,
    Item,
    Make,
    Scale,
    Trial,
    acall,
    acall_batch,
    acall_inner,
    acall_unmoved,
    call,
    call_batch,
    call_inner,
    driven,
    equal,
    holds,
    is_not_thirty,
    long_wait,
    no_wait,
    program,
    raised,
    short_wait,
    waiting,
)

__all__ = ["LAWS", "check"]


_HAS_CLOUDPICKLE = importlib.util.find_spec("cloudpickle") is not None


def check(
    engine: Engine, directory: str | os.PathLike[str] | None = None, *, laws: Sequence[Law] | None = None
) -> None:
    """Have the engine prove all laws, each in a directory of its own.

    An executor that never ends a call makes this wait for ever: run it under a time limit.

    Args:
        engine: see `for_executor`.
        directory: where subdirectories are made, which are left for who wants to look; default a temporary one.
        laws: some of `LAWS`; default all.

    Raises:
        ExceptionGroup: some do not hold: its message names them, its members say how.

    Example:
        >>> from concurrent.futures import ThreadPoolExecutor
        >>> from checkpoint.testing import for_executor
        >>> check(for_executor(lambda: ThreadPoolExecutor(2)))
    """
    broken: list[tuple[str, Exception]] = []
    with ExitStack() as stack:
        if directory is None:
            directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        for law in LAWS if laws is None else laws:
            name = getattr(law, "__name__", repr(law))
            place = Path(directory, name)
            place.mkdir(parents=True)
            try:
                law(engine, place)
            except Exception as error:  # whatever it raises, the law does not hold
                error.add_note(f"law: {name}: {law.__doc__}")
                broken.append((name, error))
    if broken:
        names = ", ".join([name for name, _ in broken])
        raise ExceptionGroup(f"{engine.name} does not keep: {names}", [error for _, error in broken])


# --- what laws are told in -------------------------------------------------------------------------------------------


_laws: list[Law] = []


def _law(body: Callable[[Make], None]) -> Law:
    """Tell a law by trials of one engine."""

    def law(engine: Engine, directory: Path) -> None:
        with ExitStack() as stack:
            body(Make(engine, stack.enter_context(engine.options()), directory, stack))

    law.__name__ = law.__qualname__ = body.__name__.lstrip("_")
    law.__doc__ = body.__doc__
    _laws.append(law)
    return law


# --- all of it, in order, once ---------------------------------------------------------------------------------------


@_law
def _results_stand_in_the_order_of_the_items(make: Make) -> None:
    """Whatever finishes first."""
    trial = make()
    slow = {0: [["after", 1]]} if trial.workers > 1 else {}
    equal(trial.map(trial.items(8, slow)), [n * 10 for n in range(8)], "the results")


@_law
def _each_item_is_called_once(make: Make) -> None:
    """No item is left out, and none is called twice."""
    trial = make()
    trial.map(trial.items(50))
    equal(trial.begun, list(range(50)), "the calls")


@_law
def _no_more_calls_are_made_at_once_than_there_are_workers(make: Make) -> None:
    """At any moment, by the log's own order."""
    trial = make()
    trial.map(trial.items(30))
    at_once = most = 0
    for line in trial.log.lines:
        at_once += 1 if line.what == "begin" else -1
        most = max(most, at_once)
    holds(most <= trial.workers, f"{most} calls at once are no more than {trial.workers} workers make")


@_law
def _two_thousand_tiny_items_are_all_done(make: Make) -> None:
    """Each once; in chunks too, the last of which is not full."""
    trial = make()
    equal(trial.map(trial.items(2000)), [n * 10 for n in range(2000)], "the results")
    equal(trial.begun, list(range(2000)), "the calls")
    if not trial.engine.is_async:
        trial = make(name="chunks")
        equal(trial.map(trial.items(2000), chunksize=70), [n * 10 for n in range(2000)], "the results of chunks")
        equal(trial.begun, list(range(2000)), "the calls in chunks")


@_law
def _no_items_make_no_results(make: Make) -> None:
    """An empty map is empty, and makes no calls."""
    trial = make()
    equal(trial.map([]), [], "the results of a list")
    equal(trial.map(iter([])), [], "the results of an iterator")
    equal(trial.stream([]), [], "the outcomes")


@_law
def _values_come_back_as_they_were(make: Make) -> None:
    """Their types at every depth, in the pass that made them, on a resumed one, and when read by key."""
    trial = make()
    names = [name for name in VALUES if name not in ("a function", "a lock")]
    want = [repr(VALUES[name]()) for name in names]
    items = [trial.item(n, ["make", name]) for n, name in enumerate(names)]
    equal([repr(value) for value in trial.map(items)], want, "the values")
    equal([repr(value) for value in trial.map(items)], want, "the resumed values")
    equal([repr(trial.f.results[n]) for n in range(len(names))], want, "the values read by key")


@_law
def _large_results_are_saved_whole(make: Make) -> None:
    """A megabyte each."""
    trial = make()
    items = [trial.item(n, ["make", "megabyte"]) for n in range(8)]
    equal([len(value) for value in trial.map(items)], [1_000_000] * 8, "the lengths of the results")
    equal(trial.failed, {}, "the failures")


@_law
def _a_value_is_saved_as_it_was_when_its_call_returned(make: Make) -> None:
    """The function may fill one buffer again in each call, of a chunk too."""
    for trial, options in make.each_way():
        items = [trial.item(n, ["fill", n]) for n in range(60)]
        equal(trial.map(items, **options), [[n] * 4 for n in range(60)], "the values")


# --- the program around it -------------------------------------------------------------------------------------------


@_law
def _a_pass_leaves_the_program_as_it_was(make: Make) -> None:
    """However it ends: signals, environment, hooks, threads of ours; descriptors and `multiprocessing`, too.

    The last two where no executor is given, which may open files and start processes when it likes.
    """
    warm = make(name="warm")
    warm.map(warm.items(4))  # what an executor starts once, and what is imported, stays
    warm.f.runner.close()
    is_ours = isinstance(warm.given.get("executor", ""), str)
    is_main = threading.current_thread() is threading.main_thread()
    for number, how in enumerate(_ENDS):
        trial = make(name=f"end{number}")
        before = program(is_ours=is_ours)
        is_interrupted = before["handlers"].get(signal.SIGINT) is signal.default_int_handler and is_main
        if is_interrupted or how is not _interrupted:
            how(trial)
        trial.f.runner.close()

        changed: list[str] = []

        def is_as_it_was(before: dict[str, Any] = before, changed: list[str] = changed) -> bool:
            gc.collect()  # what was raised leads to what it was raised by, which a thread that ends may hold
            changed[:] = _changed(before, program(is_ours=is_ours))
            return not changed

        try:
            driven(waiting(is_as_it_was, "the program is as it was"))
        except AssertionError:
            raise AssertionError(
                f"after a pass that was {how.__name__[1:]}, these are not as before: {changed}"
            ) from None


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """The parts that are not as they were; fewer threads and descriptors are no change."""
    fewer = {"threads": set(after["threads"]) <= set(before["threads"])}
    if "descriptors" in before:
        fewer["descriptors"] = after["descriptors"] <= before["descriptors"]
    return [part for part in before if not fewer.get(part, before[part] == after[part])]


def _done(trial: Trial) -> None:
    trial.map(trial.items(6))


def _raised(trial: Trial) -> None:
    raised(ItemsFailed, lambda: trial.map(trial.items(6, _BAD)))


def _interrupted(trial: Trial) -> None:
    def drawn() -> Iterator[Item]:
        for item in trial.items(20):
            if item["id"] == 3:
                signal.raise_signal(signal.SIGINT)
            yield item

    raised(KeyboardInterrupt, lambda: trial.map(drawn()))


def _cancelled(trial: Trial) -> None:
    if trial.engine.is_async:
        trial.cancelled(trial.items(20, {n: [["sleep", LONG]] for n in range(20)}))


def _left(trial: Trial) -> None:
    trial.stream(trial.items(20), lambda outcome: True)


def _collected(trial: Trial) -> None:
    trial.collected_elsewhere(iter(trial.items(20)))


_ENDS: Final = (_done, _raised, _interrupted, _cancelled, _left, _collected)


# --- resume ----------------------------------------------------------------------------------------------------------


@_law
def _a_second_map_calls_nothing(make: Make) -> None:
    """It returns the same, from disk."""
    trial = make()
    items = trial.items(10)
    first = trial.map(items)
    equal(trial.map(items), list(first), "the second map's results")
    equal(trial.map(iter(items)), list(first), "the results of a map of an iterator")
    equal(trial.begun, list(range(10)), "the calls")
    outcomes = trial.stream(items)
    equal({outcome.source for outcome in outcomes}, {"resumed"}, "where the outcomes come from")


@_law
def _what_is_cleared_is_called_again_and_nothing_else(make: Make) -> None:
    """`clear(keys)` forgets these."""
    trial = make()
    trial.map(trial.items(6))
    trial.f.clear([2, 4])
    trial.map(trial.items(6))
    equal(trial.begun, [0, 1, 2, 2, 3, 4, 4, 5], "the calls")


@_law
def _a_changed_item_does_as_on_change_says(make: Make) -> None:
    """Its old result is kept, or it alone is computed anew."""
    for policy, calls in (("keep", [0, 1, 2]), ("recompute", [0, 1, 1, 2])):
        trial = make(name=policy, on_change=policy)
        trial.map([trial.item(n, ["return", "old"]) for n in range(3)])
        changed = [trial.item(n, ["return", "new" if n == 1 else "old"]) for n in range(3)]
        again = "new" if policy == "recompute" else "old"
        equal(trial.map(changed), ["old", again, "old"], f"the results with on_change={policy!r}")
        equal(trial.begun, calls, f"the calls with on_change={policy!r}")


@_law
def _methods_are_mapped_by_the_version_of_their_instance(make: Make) -> None:
    """Another instance's results are others, and are there when it comes back."""

    def of(factor: int) -> Trial:
        return make(Scale(factor).scale, Scale(factor).ascale)

    trial = of(2)
    equal(trial.map(trial.items(3)), [0, 20, 40], "the results of the first instance")
    equal(of(3).map(trial.items(3)), [0, 30, 60], "the results of another")
    equal(of(2).map(trial.items(3)), [0, 20, 40], "the results of the first one again")
    equal(trial.begun, [0, 0, 1, 1, 2, 2], "the calls")


@_law
def _closures_and_lambdas_are_mapped(make: Make) -> None:
    """They travel by cloudpickle to other processes; where that is missing, nothing is said here."""
    add = 5

    async def closure(item: Item) -> int:
        return int(await acall(item)) + add

    trial = make(lambda item: call(item) + add, closure)
    if trial.engine.is_local or _HAS_CLOUDPICKLE:
        equal(trial.map(trial.items(4)), [5, 15, 25, 35], "the results")


@_law
def _a_pass_inside_of_a_pass_runs(make: Make) -> None:
    """A function may map another checkpoint, where calls are made in this process."""
    if not make.engine.is_local:
        return
    trial = make(call_inner, acall_inner)
    inner = trial.items(3)
    items = [{"id": n, "directory": str(trial.directory), "inner": inner} for n in range(3)]
    equal(trial.map(items), [[0, 10, 20]] * 3, "the results")
    equal(trial.map(items), [[0, 10, 20]] * 3, "the resumed results")
    equal(trial.begun, [0, 0, 0, 1, 1, 1, 2, 2, 2], "the calls inside")


@_law
def _maps_at_once_call_each_item_once(make: Make) -> None:
    """Two of one process whose items overlap: each has all of its results, and what one has begun the other awaits."""
    trial = make()
    items = trial.items(12)
    equal(
        trial.maps([items[:8], items[4:]]), [[n * 10 for n in range(8)], [n * 10 for n in range(4, 12)]], "the results"
    )
    equal(trial.begun, list(range(12)), "the calls")


@_law
def _each_call_has_the_callers_context_and_leaves_nothing_in_it(make: Make) -> None:
    """Context variables where calls are made in this process, and the settings of arithmetic on every engine."""
    variable = "set by the caller" if make.engine.is_local else "not set"
    token = VARIABLE.set("set by the caller")
    try:
        with decimal.localcontext() as numbers:
            numbers.prec = 40
            for trial, options in make.each_way():
                got = trial.map([trial.item(n, ["look and leave"]) for n in range(12)], **options)
                equal(got, [[variable, 40]] * 12, "the variable, and the precision of decimal, in each call")
            trial = make(call_batch, acall_batch, name="batches", batch_size=3)
            got = trial.map([trial.item(n, ["look and leave"]) for n in range(12)])
            equal(got[::3], [[variable, 40]] * 4, "the same, in each batch")
            equal((VARIABLE.get(), decimal.getcontext().prec), ("set by the caller", 40), "the caller's own")
    finally:
        VARIABLE.reset(token)


# --- equal items -----------------------------------------------------------------------------------------------------


@_law
def _equal_items_share_one_call(make: Make) -> None:
    """One result stands in all their places, and `stream` yields an outcome for each."""
    trial = make()
    one, two = trial.item(1), trial.item(2)
    equal(trial.map([one, two, dict(one), one]), [10, 20, 10, 10], "the results")
    trial = make(name="stream")
    one, two = trial.item(1), trial.item(2, ["raise", "ValueError"])
    outcomes = trial.stream(iter([one, two, dict(one), two, one]))
    equal(sorted((outcome.key, outcome.ok) for outcome in outcomes), [(1, True)] * 3 + [(2, False)] * 2, "outcomes")
    equal(trial.begun, [1, 2], "the calls")


@_law
def _an_item_whose_equal_runs_waits_for_it(make: Make) -> None:
    """It is not called a second time meanwhile, and shares its end."""
    trial = make()
    if trial.workers < 2:
        return
    for number, then in enumerate(([], ["raise", "ValueError"], [], ["raise", "ValueError"])):
        gate = trial.directory / f"gate {number}"
        item = trial.item(number, ["await", str(gate), *then])

        def drawn(item: Item = item, gate: Path = gate) -> Iterator[Item]:
            yield item
            yield dict(item)
            gate.touch()
            yield item

        if number < 2:
            ends = [outcome.ok for outcome in trial.stream(drawn())]
        else:
            ends = [not isinstance(value, ItemError) for value in trial.map(drawn(), return_exceptions=True)]
        equal(ends, [not then] * 3, "whether each of the equal items has a result")
        equal(trial.begun.count(number), 1, "the calls of the equal items")


# --- failures --------------------------------------------------------------------------------------------------------


_BAD: Final[dict[int, list[Deed]]] = {
    1: [["raise", "ValueError"], ["return", 10]],
    4: [["raise", "KeyError"], ["return", 40]],
    5: [["raise", "ValueError"], ["return", 50]],
}


@_law
def _failures_do_not_stop_the_rest(make: Make) -> None:
    """All others are run and saved; then `ItemsFailed` counts by type, and the same call runs only the failed again."""
    trial = make()
    items = trial.items(10, _BAD)
    error = raised(ItemsFailed, lambda: trial.map(items))
    equal(sorted(trial.on_disk()), [0, 2, 3, 6, 7, 8, 9], "what is on disk")
    holds("2 ValueError" in str(error) and "1 KeyError" in str(error), f"the message counts by type: {error}")
    equal(len(error.exceptions), 3, "how many exceptions it has")
    assert error.results is not None
    equal([n for n, value in enumerate(error.results) if isinstance(value, ItemError)], [1, 4, 5], "the failed places")
    equal(trial.map(items), [n * 10 for n in range(10)], "the results of the same call")
    equal(trial.begun, [0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9], "the calls")
    equal(trial.failed, {}, "the failures that are left")


@_law
def _failures_stand_in_their_places_where_asked_for(make: Make) -> None:
    """With `return_exceptions`, as `ItemError`."""
    trial = make()
    got = trial.map(trial.items(7, _BAD), return_exceptions=True)
    told = [value.type if isinstance(value, ItemError) else value for value in got]
    equal(told, [0, "ValueError", 20, 30, "KeyError", "ValueError", 60], "the results")


@_law
def _a_failure_is_recorded_with_what_explains_it(make: Make) -> None:
    """Type, message, a traceback that names the user's function, attempts, and seconds."""
    trial = make()
    trial.map(trial.items(3, {1: [["raise", "ValueError", "the message"]]}), return_exceptions=True)
    error = trial.f.errors[1]
    equal((error.key, error.type, error.message, error.attempts), (1, "ValueError", "the message", 1), "the failure")
    name = "acall" if trial.engine.is_async else "call"
    holds(f"in {name}\n" in error.traceback, f"the traceback names {name}: {error.traceback}")
    elapsed = trial.on_disk("errors")[1].get("elapsed")
    holds(isinstance(elapsed, (int, float)) and elapsed >= 0, f"elapsed is a number of seconds: {elapsed}")
    done = trial.on_disk()[0]
    holds(isinstance(done.get("elapsed"), (int, float)), "a result is recorded with its seconds too")


@_law
def _old_failures_stand_where_they_are_not_retried(make: Make) -> None:
    """With `retry_failed=False` they are not called, and do not raise by themselves."""
    trial = make()
    items = trial.items(10, _BAD)
    trial.map(items, return_exceptions=True)
    got = trial.map([*items, trial.item(10)], retry_failed=False)
    equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [1, 4, 5], "the failed places")
    equal(trial.begun, list(range(11)), "the calls")


@_law
def _max_errors_ends_the_pass(make: Make) -> None:
    """Only what ran meanwhile is run beyond it; what is left is run by the next call."""
    trial = make()
    items = trial.items(40, {n: [["raise", "ValueError"], ["return", n * 10]] for n in range(0, 40, 2)})
    error = raised(TooManyErrors, lambda: trial.map(items, max_errors=2))
    holds("max_errors=2" in str(error), f"the message says why: {error}")
    bad = sum(n % 2 == 0 for n in trial.begun)
    holds(3 <= bad <= 2 + trial.workers, f"{bad} failures with max_errors=2 and {trial.workers} workers are enough")
    holds(set(trial.log.ended) == set(trial.on_disk()), "what finished is on disk")
    trial.map(items, return_exceptions=True)
    equal(trial.map(items), [n * 10 for n in range(40)], "the results in the end")


@_law
def _a_hundred_failures_of_one_type_end_the_pass(make: Make) -> None:
    """The key or the quota is dead: the rest is not tried."""
    trial = make()
    items = [trial.item(n, ["raise", "RuntimeError"]) for n in range(150)]
    raised(TooManyErrors, lambda: trial.map(items))
    calls = len(trial.begun)
    holds(100 <= calls <= 99 + trial.workers, f"{calls} calls with {trial.workers} workers are a hundred, and few more")


@_law
def _what_validate_refuses_is_a_failure(make: Make) -> None:
    """It is never a result, its error keeps it, and it is called again by the next map."""
    trial = make(validate=is_not_thirty)
    got = trial.map(trial.items(5), return_exceptions=True)
    holds(isinstance(got[3], ItemError) and "RefusedValue" in str(got[3].type), f"{got[3]!r} is a refused value")
    equal(got[3].value, 30, "what was paid for, in its error")
    equal([*got[:3], got[4]], [0, 10, 20, 40], "the other results")
    equal(sorted(trial.on_disk()), [0, 1, 2, 4], "what is on disk")
    trial.map(trial.items(5), return_exceptions=True)
    equal(trial.begun, [0, 1, 2, 3, 3, 4], "the calls")


@_law
def _an_exit_ends_the_pass_after_what_finished_is_saved(make: Make) -> None:
    """SystemExit in a function is no failure of its item; it is run by the next call, as is the rest of its chunk."""
    for trial, options in make.each_way():
        items = trial.items(20, {5: [["raise", "SystemExit", "over"], ["return", 50]]})
        error = raised(SystemExit, lambda trial=trial, items=items, options=options: trial.map(items, **options))  # type: ignore[misc]
        holds("over" in str(error), f"{error!r} is what the function raised")
        holds("item 5 " in " ".join(error.__notes__), f"a note names the item: {error.__notes__}")
        equal(set(trial.on_disk()), set(trial.log.ended), "what is on disk")
        equal(trial.failed, {}, "the failures")
        before = set(trial.on_disk())
        if options:
            equal(before & {6, 7}, set(), "what came after it in its chunk and was called")
        equal(trial.map(items, **options), [n * 10 for n in range(20)], "the results of the same call")
        equal({n for n in before if trial.begun.count(n) > 1}, set(), "what was on disk and was called again")


@_law
def _an_exit_with_status_0_is_none_while_items_are_left(make: Make) -> None:
    """Whatever the function means by it: who started the process takes 0 for done."""
    for number, kind in enumerate(("SystemExit(0)", "SystemExit()", "SystemExit(256)")):
        trial = make(name=f"exit{number}")
        items = trial.items(8, {3: [["raise", kind], ["return", 30]]})
        error = raised(SystemExit, lambda trial=trial, items=items: trial.map(items))  # type: ignore[misc]
        holds(isinstance(error.code, str) and "item 3," in error.code, f"the status is a text with it: {error.code!r}")
        equal(trial.failed, {}, "the failures")
    trial = make(call_batch, acall_batch, name="batches", batch_size=2)
    error = raised(SystemExit, lambda: trial.map(trial.items(4, {3: [["raise", "SystemExit(0)"]]})))
    holds("items 2, 3," in str(error.code), f"the status names the batch: {error.code!r}")


@_law
def _a_panic_or_a_cancellation_is_its_items_failure(make: Make) -> None:
    """Though it is no Exception: nobody has asked the pass to end. It stands as `ItemError`."""
    kinds = ["PanicException", "CancelledError", "CancelledError of a future", "group"]
    trial = make()
    items = trial.items(8, {n: [["raise", kind], ["return", n * 10]] for n, kind in enumerate(kinds)})
    got = trial.map(items, return_exceptions=True)
    told = [str(value.type).rpartition(".")[2] if isinstance(value, ItemError) else value for value in got]
    equal(told, ["PanicException", *["CancelledError"] * 2, "BaseExceptionGroup", 40, 50, 60, 70], "the results")
    equal(trial.map(items), [n * 10 for n in range(8)], "the results of the same call")


@_law
def _any_other_base_exception_ends_the_pass_and_names_the_item(make: Make) -> None:
    """As of gevent, and of test runners, when a time is up."""
    trial = make()
    items = trial.items(8, {3: [["raise", "Elapsed"], ["return", 30]]})
    error = raised(Elapsed, lambda: trial.map(items))
    holds("item 3 " in " ".join(error.__notes__), f"a note names the item: {error.__notes__}")
    equal(set(trial.on_disk()), set(trial.log.ended), "what is on disk")
    equal(trial.map(items), [n * 10 for n in range(8)], "the results of the same call")


# --- what cannot be written, or cannot travel ------------------------------------------------------------------------


def _spoils_only_itself(trial: Trial, items: Sequence[Item], bad: int, **options: Any) -> None:
    raised(ItemsFailed, lambda: trial.map(items, **options))
    equal(sorted(trial.failed), [bad], "the failed items")
    equal(sorted(trial.on_disk()), [n for n in range(len(items)) if n != bad], "what is on disk")


@_law
def _a_value_that_cannot_be_written_is_kept(make: Make) -> None:
    """Its item has failed, the value is in `.unsaved`, and it is not paid for again by itself."""
    for trial, options in make.each_way():
        items = trial.items(8, {2: [["make", "a function"]]})
        _spoils_only_itself(trial, items, 2, **options)
        equal(trial.f.errors[2].type, "UnencodableValue", "the type of the failure")
        equal(trial.f.unsaved[2], {"deep": [call]}, "the value that was kept")
        raised(ItemsFailed, lambda trial=trial, items=items: trial.map(items))  # type: ignore[misc]
        equal(trial.begun, list(range(8)), "the calls")


@_law
def _a_value_that_cannot_be_pickled_fails_only_its_item(make: Make) -> None:
    """What it looks like is kept in `.unsaved`."""
    for trial, options in make.each_way():
        _spoils_only_itself(trial, trial.items(8, {2: [["make", "a lock"]]}), 2, **options)
        equal(trial.f.errors[2].type, "UnencodableValue", "the type of the failure")
        holds("lock" in repr(trial.f.unsaved[2]), f"{trial.f.unsaved[2]!r} looks like a lock")
        equal(trial.begun, list(range(8)), "the calls")


@_law
def _an_exception_that_cannot_travel_fails_only_its_item(make: Make) -> None:
    """Its type and message are recorded all the same."""
    for trial, options in make.each_way():
        _spoils_only_itself(trial, trial.items(8, {2: [["raise", "Strange", "how odd"]]}), 2, **options)
        error = trial.f.errors[2]
        holds("_Strange" in (error.type or "") and error.message == "how odd (7)", f"{error!r} is what was raised")
        equal(trial.begun, list(range(8)), "the calls")


@_law
def _an_item_that_cannot_be_pickled_fails_by_itself(make: Make) -> None:
    """Where calls are made in this process it is called as any other."""
    for trial, options in make.each_way():
        items = trial.items(8)
        items[2]["lock"] = threading.Lock()
        if trial.engine.is_local:
            equal(trial.map(items, **options), [n * 10 for n in range(8)], "the results")
        else:
            _spoils_only_itself(trial, items, 2, **options)
            equal(trial.f.errors[2].type, "checkpoint.errors.UnsendableItem", "the type of the failure")
            holds(2 not in trial.begun, "the function is not called with it")


# --- chunks and batches ----------------------------------------------------------------------------------------------


@_law
def _failures_in_a_chunk_stay_per_item(make: Make) -> None:
    """Those that failed are recorded each by itself, and only they are called again."""
    if make.engine.is_async:
        return
    trial = make()
    items = trial.items(10, _BAD)
    raised(ItemsFailed, lambda: trial.map(items, chunksize=4))
    equal({key: error.type for key, error in trial.failed.items()}, {1: "ValueError", 4: "KeyError", 5: "ValueError"},
           "the failures")  # fmt: skip
    equal(trial.map(items, chunksize=4), [n * 10 for n in range(10)], "the results of the same call")
    equal(trial.begun, [0, 1, 1, 2, 3, 4, 4, 5, 5, 6, 7, 8, 9], "the calls")


@_law
def _a_batch_is_a_list_of_at_most_so_many_items(make: Make) -> None:
    """Each item has its own result, and the last batch need not be full."""
    trial = make(call_batch, acall_batch, batch_size=3)
    equal(trial.map(iter(trial.items(10))), [n * 10 for n in range(10)], "the results")
    equal(sorted(trial.log.batches), [1, 3, 3, 3], "the sizes of the batches")
    equal(trial.map([*trial.items(10), trial.item(10)]), [n * 10 for n in range(11)], "the results with one more")
    equal(trial.begun, list(range(11)), "the calls")


@_law
def _a_batch_that_fails_is_tried_again_item_by_item(make: Make) -> None:
    """Only the culprit fails."""
    trial = make(call_batch, acall_batch, batch_size=4)
    got = trial.map(trial.items(12, {5: [["raise", "ValueError"]]}), return_exceptions=True)
    equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [5], "the failed places")
    equal(trial.failed[5].type, "ValueError", "the type of the failure")
    equal(sorted(trial.on_disk()), [n for n in range(12) if n != 5], "what is on disk")


@_law
def _a_batch_of_another_length_is_an_error_that_says_both(make: Make) -> None:
    """It cannot be told which value is whose."""
    trial = make(call_batch, acall_batch, batch_size=4)
    items = trial.items(8)
    items[7]["short"] = True
    got = trial.map(items, return_exceptions=True)
    equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [7], "the failed places")
    message = trial.failed[7].message
    holds("list of 1 item" in message and "list of 0" in message, f"both lengths are in: {message}")


# --- retries, rates, time --------------------------------------------------------------------------------------------


@_law
def _a_retry_makes_so_many_attempts(make: Make) -> None:
    """The first one included; how many is recorded, of a result as of a failure."""
    trial = make(retry=Retry(3, on=ValueError, wait=no_wait))
    twice: list[Deed] = [["raise", "ValueError"], ["raise", "ValueError"], ["return", "at last"]]
    items = trial.items(6, {1: twice, 2: [["raise", "ValueError"]], 3: [["raise", "KeyError"]]})
    got = trial.map(items, return_exceptions=True)
    equal(got[1], "at last", "the result of the third attempt")
    equal(trial.begun, [0, 1, 1, 1, 2, 2, 2, 3, 4, 5], "the calls")
    equal(trial.on_disk()[1].get("attempts"), 3, "the attempts that a result took")
    equal({key: error.attempts for key, error in trial.failed.items()}, {2: 3, 3: 1}, "the attempts of the failures")


@_law
def _what_a_call_notes_is_in_its_record(make: Make) -> None:
    """Of calls that return and of those that raise; each has its own, and the costs of several attempts add up."""
    for trial, options in make.each_way():
        odd = {n: [["pay", n / 8, "ValueError" if n % 2 else ""]] for n in range(12)}
        trial.map(trial.items(13, odd), return_exceptions=True, **options)
        saved = {**trial.on_disk(), **trial.on_disk("errors")}
        noted = {key: record.get("notes") for key, record in saved.items()}
        equal(noted, {n: {"cost": n / 8, "paid": True} for n in range(12)} | {12: None}, "the notes in the records")
        equal(trial.spent, 66 / 8, "what was spent")
    trial = make(name="again", retry=Retry(3, on=ValueError, wait=no_wait))
    trial.map(trial.items(6, {2: [["pay", 0.5, "ValueError"], ["pay", 0.25, "ValueError"], ["pay", 1.0]]}))
    equal(trial.on_disk()[2].get("notes"), {"cost": 1.75, "paid": True}, "the notes of three attempts")
    equal(trial.spent, 1.75, "what they cost in all")


@_law
def _max_cost_is_exceeded_by_the_calls_in_flight_at_most(make: Make) -> None:
    """Though costs vary a hundredfold; and what ran is saved."""
    for trial, options in make.each_way():
        items = trial.items(60, {n: [["pay", (1.0, 0.01, 0.3, 0.02)[n % 4]]] for n in range(60)})
        reached = raised(MaxCostReached, lambda: trial.map(items, max_cost=4, **options))  # noqa: B023
        in_flight = trial.workers * options.get("chunksize", 1)
        holds(3.0 <= trial.spent <= 4 + in_flight, f"{trial.spent} was spent of 4")
        equal(reached.spent, trial.spent, "what the error says that was spent")
        equal(len(trial.on_disk()), len(trial.log.ended), "the results on disk")


@_law
def _a_retry_waits_without_a_worker(make: Make) -> None:
    """Others go on, though as many wait as there are workers."""
    trial = make(retry=Retry(2, on=ValueError, wait=long_wait, max_wait=LONG))
    waits = range(trial.workers)
    others = {n + trial.workers for n in range(10)}
    items = trial.items(trial.workers + 10, {n: [["raise", "ValueError"], ["return", 0]] for n in waits})

    def leave(outcome: Outcome[Any]) -> bool:
        others.discard(outcome.key)
        return not others

    trial.stream(items, leave)
    equal([n for n in trial.begun if n in waits], list(waits), "the calls of those that wait, when others were done")


@_law
def _a_retry_after_costs_no_attempt(make: Make) -> None:
    """With status 429 the server did not work on it: it is called again, more often than there are attempts."""
    trial = make(retry=Retry(2, wait=no_wait))
    busy: list[Deed] = [["raise", "TooManyRequests"]] * 4
    equal(trial.map(trial.items(4, {1: [*busy, ["return", "at last"]]})), [0, "at last", 20, 30], "the results")
    equal(trial.begun.count(1), 5, "the calls")
    equal(trial.on_disk()[1].get("attempts"), 1, "the attempts")


@_law
def _a_rate_is_kept_in_every_window(make: Make) -> None:
    """No more calls start within its seconds than its limit, retries among them.

    A call starts between when it was drawn, or had failed, and its line in the log: a window that holds both holds it.
    """
    limit, per = 2, 0.1
    trial = make(rate=Rate(limit, per=per), retry=Retry(2, on=ValueError, wait=no_wait))
    earliest: dict[int, list[float]] = {}

    def drawn() -> Iterator[Item]:
        for item in trial.items(9, {3: [["raise", "ValueError"], ["return", 30]]}):
            earliest[item["id"]] = [clock.monotonic()]
            yield item

    equal(trial.map(drawn()), [n * 10 for n in range(9)], "the results")
    spans = []
    for line in trial.log.lines:
        if line.what == "begin":
            spans.append((earliest[line.item][-1], line.time))
            earliest[line.item].append(line.time)
    for start in [first for first, _ in spans]:
        within = sum(start <= first and last < start + per for first, last in spans)
        holds(within <= limit, f"{within} calls within {per:g} s are no more than {limit}")


@_law
def _a_rate_lets_go_of_what_is_drawn_when_nothing_runs(make: Make) -> None:
    """An item that comes when all before it are done, and no permit is left, is called once there is one."""
    trial = make(rate=Rate(1, per=0.1))

    def drawn() -> Iterator[Item]:
        for item in trial.items(4):
            yield item
            if not trial.engine.is_async:  # whose loop must not be held up
                driven(waiting(lambda: item["id"] in trial.on_disk(), f"item {item['id']} is saved"))  # noqa: B023

    equal(trial.map(drawn()), [0, 10, 20, 30], "the results")


@_law
def _a_call_that_takes_too_long_is_ended(make: Make) -> None:
    """Where calls can be ended: it is a TimeoutError, and may be retried."""
    if not (make.engine.is_async or make.engine.survives):
        return
    trial = make(timeout=1.0, retry=Retry(2, on=TimeoutError, wait=no_wait))
    late: dict[int, list[Deed]] = {1: [["sleep", LONG], ["return", "in time"]], 2: [["sleep", LONG]]}
    got = trial.map(trial.items(8, late), return_exceptions=True)
    equal([*got[:2], *got[3:]], [0, "in time", 30, 40, 50, 60, 70], "the results")
    error = trial.f.errors[2]
    equal((error.type, error.attempts), ("TimeoutError", 2), "the failure")
    equal(trial.on_disk()[1].get("attempts"), 2, "the attempts of the one that was in time")
    equal(trial.begun, [0, 1, 1, 2, 2, 3, 4, 5, 6, 7], "the calls")


@_law
def _a_call_that_lets_nothing_else_run_is_ended(make: Make) -> None:
    """One that holds the interpreter's lock, in compiled code, where processes are killed."""
    if not make.engine.survives:
        return
    trial = make(timeout=1.0)
    got = trial.map(trial.items(6, {1: [["spin"]]}), return_exceptions=True)
    equal([got[0], *got[2:]], [0, 20, 30, 40, 50], "the results")
    equal(trial.f.errors[1].type, "TimeoutError", "the failure")


# --- input, consumers, disk ------------------------------------------------------------------------------------------


@_law
def _a_stream_yields_what_completes_once_it_is_on_disk(make: Make) -> None:
    """Somebody else reads there what was yielded; an item's failure is its outcome's error."""
    trial = make()
    deeds = dict(_BAD)
    if trial.workers > 1:
        deeds[0] = [["recorded", 2, str(trial.directory / f"{trial.name}_results.jsonl")]]
    missing = []

    def leave(outcome: Outcome[Any]) -> bool:
        if outcome.key not in trial.on_disk("results" if outcome.ok else "errors"):
            missing.append(outcome.key)
        return False

    outcomes = trial.stream(iter(trial.items(10, deeds)), leave)
    equal(missing, [], "what was yielded before it was on disk")
    equal(sorted(outcome.key for outcome in outcomes), list(range(10)), "the keys that were yielded")
    equal({outcome.key for outcome in outcomes if not outcome.ok}, set(_BAD), "the keys that failed")
    equal([outcome.value for outcome in outcomes if outcome.ok], [o.key * 10 for o in outcomes if o.ok], "the values")
    if trial.workers > 1:
        places = [outcome.key for outcome in outcomes]
        holds(places.index(0) > places.index(2), f"0, which ended after 2, is not yielded before it: {places}")


@_law
def _endless_input_is_drawn_as_it_is_needed(make: Make) -> None:
    """Drawn and not on disk are never more than twice what workers are at; and 32 and as many more, with retries."""
    for retry, chunksize in itertools.product((None, Retry(2, on=ValueError, wait=short_wait)), (1, 4)):
        trial = make(name=f"{'once' if retry is None else 'retried'} {chunksize}", retry=retry)
        if trial.engine.is_async and chunksize > 1:
            continue
        at_work = trial.workers * chunksize
        bound = 2 * at_work if retry is None else 3 * at_work + 32
        deeds: list[Deed] = [] if retry is None else [["raise", "ValueError"], ["return", 0]]
        most = 0

        def endless(trial: Trial = trial, deeds: Sequence[Deed] = deeds) -> Iterator[Item]:
            nonlocal most
            for number in itertools.count():
                most = max(most, number + 1 - len(trial.on_disk()))
                yield trial.item(number, *deeds)

        seen = itertools.count(1)
        options: dict[str, Any] = {} if trial.engine.is_async else {"chunksize": chunksize}
        trial.stream(endless(), lambda _, seen=seen: next(seen) == 100, **options)  # type: ignore[misc]
        holds(most <= bound, f"{most} drawn and not on disk are no more than {bound} ({trial.name})")


@_law
def _a_consumer_that_leaves_loses_nothing_that_finished(make: Make) -> None:
    """What finished is on disk, and is not called again."""
    trial = make()
    seen = itertools.count(1)
    trial.stream((trial.item(n) for n in itertools.count()), lambda _: next(seen) == 10)
    _loses_nothing_and_goes_on(trial)


@_law
def _items_that_raise_lose_nothing_that_finished(make: Make) -> None:
    """The source may break: what was drawn before is saved, and the error is its own."""
    trial = make()

    def breaks() -> Iterator[Item]:
        yield from trial.items(10)
        raise ConnectionError("the source is gone")

    raised(ConnectionError, lambda: trial.map(breaks()))
    _loses_nothing_and_goes_on(trial)


def _loses_nothing_and_goes_on(trial: Trial) -> None:
    saved, ended = set(trial.on_disk()), set(trial.log.ended)
    equal(ended - saved, set(), "what finished and is not on disk")
    if not trial.engine.is_async:
        equal(set(trial.begun) - saved, set(), "what began, could have finished, and is not on disk")
    equal(trial.map(trial.items(30)), [n * 10 for n in range(30)], "the results in the end")
    equal({n for n in saved if trial.begun.count(n) > 1}, set(), "what was on disk and was called again")


@_law
def _a_map_that_is_interrupted_begins_nothing_more(make: Make) -> None:
    """What was handed over by then ends, and is saved; the same line runs the rest, each item once.

    A map of a coroutine function is cancelled, and its calls return all the same. Any other is sent a Ctrl-C while it
    draws, where that is caught: in the main thread, and where nobody handles it.
    """
    trial = make(call, acall_unmoved)
    gate, count = trial.directory / "gate", trial.workers
    at_once = count > 1 or trial.engine.is_async
    items = trial.items(50, {n: [["await", str(gate)]] for n in range(count) if at_once})

    def drawn() -> Iterator[Item]:
        yield from items[:count]
        if at_once:
            driven(waiting(lambda: len(trial.begun) > 0, "a worker makes a call"))
        signal.raise_signal(signal.SIGINT)
        gate.touch()
        yield from items[count:]

    if trial.engine.is_async:
        trial.cancel_map(items, lambda: len(trial.begun) == count, gate.touch)
    elif threading.current_thread() is threading.main_thread() and _is_caught(signal.SIGINT):
        raised(KeyboardInterrupt, lambda: trial.map(drawn()))
    else:
        return
    holds(trial.begun[-1] < count, f"only what {count} workers had been given is called: {trial.begun}")
    equal(sorted(trial.on_disk()), trial.begun, "the results on disk")
    equal(trial.map(items), [n * 10 for n in range(50)], "the results of the same line")
    equal(trial.begun, list(range(50)), "the calls")


def _is_caught(number: int) -> bool:
    return signal.getsignal(number) is signal.default_int_handler


@_law
def _what_finishes_is_on_disk_though_nobody_consumes(make: Make) -> None:
    """While the consumer sleeps, what was drawn is called and saved."""
    trial = make()
    gate, drawn = trial.directory / "gate", set()
    deeds: dict[int, list[Deed]] = {0: [["await", str(gate)]]} if trial.workers > 1 else {}

    def items() -> Iterator[Item]:
        for item in trial.items(12, deeds):
            drawn.add(item["id"])
            yield item

    def all_saved() -> bool:
        gate.touch()
        return drawn <= set(trial.on_disk())

    outcomes = trial.stream(items(), sleep_until=all_saved)
    equal(sorted(outcome.key for outcome in outcomes), list(range(12)), "the keys that were yielded")


# --- workers that die ------------------------------------------------------------------------------------------------


_KILLED = "SIGKILL" if hasattr(signal, "SIGKILL") else "exit code"


@_law
def _an_item_that_kills_its_worker_fails_after_three_calls(make: Make) -> None:
    """It is named with the signal or exit code, and nobody else's item is lost."""
    if not make.engine.survives:
        return
    for deed, told in ((["kill"], _KILLED), (["exit", 3], "exit code 3")):
        for trial, options in make.each_way(f"{deed[0]} "):
            got = trial.map(trial.items(12, {5: [deed]}), return_exceptions=True, **options)
            equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [5], "the failed places")
            error = trial.f.errors[5]
            holds("WorkerDied" in (error.type or ""), f"the failure says that the worker died: {error.type}")
            holds(told in error.message, f"the message tells {told}: {error.message}")
            equal(trial.begun.count(5), 3, "the calls of the item that kills")
            again = {n: count for n, count in Counter(trial.begun).items() if n != 5 and count > 2}
            equal(again, {}, "the others that were called more than twice")


@_law
def _an_item_that_kills_its_worker_once_succeeds(make: Make) -> None:
    """It is run again alone; and so are several that do."""
    if not make.engine.survives:
        return
    for trial, options in make.each_way():
        deeds: dict[int, list[Deed]] = {n: [["kill"], ["return", n * 10]] for n in (3, 4, 9)}
        equal(trial.map(trial.items(12, deeds), **options), [n * 10 for n in range(12)], "the results")


@_law
def _a_batch_that_kills_its_worker_is_tried_item_by_item(make: Make) -> None:
    """Only the culprit fails."""
    if not make.engine.survives:
        return
    trial = make(call_batch, acall_batch, batch_size=4)
    got = trial.map(trial.items(8, {5: [["kill"]]}), return_exceptions=True)
    equal([n for n, value in enumerate(got) if isinstance(value, ItemError)], [5], "the failed places")
    equal(sorted(trial.on_disk()), [0, 1, 2, 3, 4, 6, 7], "what is on disk")


# --- somebody's executor ---------------------------------------------------------------------------------------------


@_law
def _an_executor_stays_its_owners(make: Make) -> None:
    """It takes more work after a pass, however that ended."""
    if make.engine.fresh is None:
        return
    trial = make()
    executor = trial.given["executor"]
    trial.map(trial.items(3))
    equal(executor.submit(abs, -1).result(), 1, "what it does after a pass")
    trial.map(trial.items(6, {5: [["raise", "ValueError"]]}), return_exceptions=True)
    equal(executor.submit(abs, -2).result(), 2, "what it does after a pass that failed")
    trial.stream((trial.item(n) for n in itertools.count()), lambda _: True)
    equal(executor.submit(abs, -3).result(), 3, "what it does after a consumer has left")


@_law
def _an_executor_that_is_shut_down_is_reported(make: Make) -> None:
    """As `BrokenWorkers`; nothing has failed by it, and the same line with a fresh one completes."""
    fresh = make.engine.fresh
    if fresh is None:
        return
    trial = make()
    with fresh() as executor:
        executor.shutdown()
        raised(BrokenWorkers, lambda: trial.map(trial.items(4), executor=executor))
    equal((trial.failed, trial.begun), ({}, []), "the failures and calls")
    with fresh() as executor:
        equal(trial.map(trial.items(4), executor=executor), [0, 10, 20, 30], "the results of a fresh one")


@_law
def _what_a_broken_executor_was_at_has_not_failed(make: Make) -> None:
    """Where the death of a worker breaks it: `BrokenWorkers`, and the same line with a fresh one completes."""
    fresh = make.engine.fresh
    if fresh is None or make.engine.is_local:
        return
    trial = make()
    items = trial.items(12, {5: [["kill"], ["return", 50]]})
    with fresh() as executor:
        try:
            trial.map(items, executor=executor)
        except BrokenWorkers:
            equal(trial.failed, {}, "the failures")
            holds(set(trial.log.ended) >= set(trial.on_disk()), "nothing is on disk that did not finish")
        except ItemsFailed:  # it replaces its workers, and reports what one died of
            equal(sorted(trial.failed), [5], "the failures")
            equal(executor.submit(abs, -1).result(), 1, "what it still does")
    saved, before = set(trial.on_disk()), Counter(trial.begun)
    with fresh() as executor:
        equal(trial.map(items, executor=executor), [n * 10 for n in range(12)], "the results of a fresh one")
    equal(saved & (Counter(trial.begun) - before).keys(), set(), "what was on disk and was called again")


LAWS: tuple[Law, ...] = tuple(_laws)
"""All laws, in the order in which they are best read. Each is a function of an engine and of an empty directory."""
