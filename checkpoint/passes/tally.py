"""The tally of one pass: how many items ended and how, the outcomes that nobody has taken yet, and the bar.

The promise: what is counted is on disk. Nothing here is locked: a pass counts under its own lock.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord, ItemError, UnbuildableValue, UnencodableValue, quote
from checkpoint.execution.policies import ErrorCount
from checkpoint.outcomes import Done, Failure, Outcome, Success, Unit
from checkpoint.passes.failures import add_note, failure_of, let_go_of_frames, places_of
from checkpoint.passes.progress import Bar
from checkpoint.passes.settings import PassSettings
from checkpoint.values.keys import Key

__all__ = ["Tally"]

log = logging.getLogger("checkpoint")
_FIRST = 100  # failures that an error shows
_SHOWN = 200  # characters of a server's message


class Tally:
    """Counts how items end, keeps outcomes for `take`, and moves the bar.

    Args:
        records: of the version that the pass works on.
        settings: of the pass.
        failed_before: keys that failed in an earlier pass, with the type of the exception where it is known.

    Attributes:
        completed: how many items are done.
        errors: the failures, counted.
        failures: the first 100 of this pass, as they were raised.
        kept_aside: keys whose values could not be encoded earlier; they stand as failed.
        made: keys that were settled in this pass, well or not.
        failed: keys that failed in this pass, or earlier and are not run again.
        unparsed: how many results `parse` could not read.
        handled: the exception that the caller was handling when the pass began.
    """

    def __init__(self, records: VersionView, settings: PassSettings, failed_before: Mapping[Key, str | None]) -> None:
        self._records = records
        self._settings = settings
        self._collect = settings.collect
        self._failed_before = failed_before
        self.completed = 0
        self.errors = ErrorCount(settings.limit)
        self.failures: list[Exception] = []
        self.kept_aside: list[Key] = []
        self.made: set[Key] = set()
        self.failed: set[Key] = set()
        self.unparsed = 0
        self.handled = sys.exception()
        self._bar: Bar | None = None
        self._outcomes: deque[Outcome[Any]] = deque()

    # the bar

    def show_bar(self, total: int | None, beside: Callable[[], str] | None) -> None:
        """Show the bar, if one is wanted; `beside` returns what else it says."""
        settings = self._settings
        self._bar = Bar(total, self.completed, settings.desc, show=settings.progress, beside=beside)

    def say(self, beside: Callable[[], str]) -> None:
        """Have the bar say this, too, from now on."""
        if self._bar is not None:
            self._bar.say(beside)

    def advance(self, count: int) -> None:
        """Move the bar on by items that were run."""
        if self._bar is not None:
            self._bar.update(count, self.errors.failed)

    def tell_paused(self, seconds: float | None) -> None:
        """Have the bar say for how long calls have been held; None: they go on."""
        if self._bar is not None:
            self._bar.pause(seconds)

    def close_bar(self) -> None:
        """Put the bar away; its last line stays readable."""
        if self._bar is not None:
            self._bar.close()

    # items that are not run

    def skip(self, count: int) -> None:
        """Count so many more items as done without a call."""
        self.completed += count
        if self._bar is not None:
            self._bar.skip(count)

    def stand(self, item: Any, key: Key) -> None:
        """Count an item that has failed, in this pass or earlier, and is not run again by itself."""
        self.failed.add(key)
        if self._bar is not None:
            self._bar.skip(1)
        if self._collect:
            fresh = key in self.made
            self.keep(Outcome(item, key, None, failure_of(self._records, key), "fresh" if fresh else "resumed"))

    def keep(self, outcome: Outcome[Any]) -> None:
        """Keep an outcome for `take`."""
        self._outcomes.append(outcome)

    def outcome_of(self, item: Any, key: Key) -> Outcome[Any] | None:
        """The outcome of an item that has a result; None where that proves damaged."""
        try:
            value = self._records.load(key)
        except (DamagedRecord, KeyError) as error:
            log.warning("%s", error)
            return None
        except (UnbuildableValue, ItemError) as error:
            return Outcome(item, key, None, error, "fresh" if key in self.made else "resumed")
        return Outcome(item, key, value, None, "fresh" if key in self.made else "resumed")

    # items that were run

    def count(
        self, unit: Unit, outcome: Success | Failure, value: Any, unparsed: ItemError | None = None
    ) -> Exception | None:
        """Count how a unit ended; returns the exception of a failure, or of a result that `parse` cannot read."""
        key = unit.key
        self.made.add(key)
        error: Exception | None = None
        if type(outcome) is Success:
            self.completed += 1
            if unparsed is None:
                self.errors.run += 1
            else:
                self.errors.fail(unparsed.type or "error")
                error = self.note_unparsed(unparsed)
        else:
            assert isinstance(outcome, Failure)
            error = self._fail(key, outcome)
        if self._collect:
            self._outcomes.append(Outcome(unit.item, key, value, error, "fresh"))
        return error

    def count_result(self, key: Key) -> None:
        """Count one result as `count` does, where no outcomes are collected, and move the bar on."""
        self.made.add(key)
        self.completed += 1
        errors = self.errors
        errors.run += 1
        if self._bar is not None:
            self._bar.update(1, errors.failed)

    def count_results(self, keys: list[Key]) -> None:
        """Count results as `count_result` does, many at once."""
        self.made.update(keys)
        self.completed += len(keys)
        self.errors.run += len(keys)
        self.advance(len(keys))

    def count_equal(self, item: Any, key: Key, value: Any, error: Exception | None) -> None:
        """Count an item that waited for its equal, and shares its end."""
        if error is None:
            self.skip(1)
        elif self._bar is not None:
            self._bar.skip(1)
        if self._collect:
            self._outcomes.append(Outcome(item, key, value, error, "fresh"))

    def count_by_hand(self, key: Key, equals: int, *, failed: bool) -> None:
        """Count an item that the user saved, with so many equal ones that waited for it."""
        self.made.add(key)
        if failed:
            self.failed.add(key)
            self.errors.fail("error")
            if equals and self._bar is not None:
                self._bar.skip(equals)
            return
        self.completed += 1 + equals
        if key in self.failed:
            self.failed.discard(key)
            self.errors.retire("error")
        else:
            self.errors.run += 1

    def _fail(self, key: Key, failure: Failure) -> Exception:
        """Count it; the first ones are kept as they were raised, without the frames that hold the user's data."""
        self.failed.add(key)
        exception = failure.exception
        unencodable = isinstance(exception, UnencodableValue) and failure.type == "UnencodableValue"
        kind = failure.type or "error"
        self.errors.fail(kind, again=self._failed_so_before(key, kind), unencodable=unencodable)
        if not isinstance(exception, Exception):
            exception = failure_of(self._records, key)
        self._note(exception, key, failure.traceback)
        return exception

    def recall_unparsed(self, error: ItemError) -> None:
        """Count a result of an earlier pass that `parse` cannot read."""
        self.errors.recall(error.type or "error")
        self.note_unparsed(error)

    def note_unparsed(self, error: ItemError) -> Exception:
        """Keep what `parse` raised, as one of the first failures; it is returned."""
        self.unparsed += 1
        raised = error.__cause__ if isinstance(error.__cause__, Exception) else error
        self._note(raised, error.key, error.traceback)
        return raised

    def _note(self, exception: Exception, key: Any, traceback: str | None) -> None:
        let_go_of_frames(exception, self.handled)
        if len(self.failures) < _FIRST:
            if traceback and all(exception is not other for other in self.failures):
                add_note(exception, f"item {quote(key)}\n{places_of(traceback)}".rstrip())
            self.failures.append(exception)

    def note_row(self, finished: list[Done], ran: int, unparsed: Mapping[Key, str]) -> None:
        """Count failures in a row, in the order in which their calls ended; so many had run before them.

        Args:
            finished: calls that ended.
            ran: how many had before.
            unparsed: what `parse` raised, by the key of a result that it cannot read.
        """
        for place, done in enumerate(finished, ran + 1):
            outcome = done.outcome
            kind = outcome.type or "error" if isinstance(outcome, Failure) else unparsed.get(done.unit.key)
            if kind is not None:
                denied = (
                    f"{outcome.denied}: {outcome.message[:_SHOWN]}"
                    if isinstance(outcome, Failure) and outcome.denied
                    else ""
                )
                again = self._failed_so_before(done.unit.key, kind)
                self.errors.in_a_row(kind, place, again=again, denied=denied)

    def _failed_so_before(self, key: Key, kind: str) -> bool:
        """Whether the item failed with an exception of this type in an earlier pass."""
        return self._failed_before.get(key) == kind

    # what is asked of it

    def take(self) -> Iterator[Outcome[Any]]:
        """The outcomes that nobody has taken yet, in order."""
        outcomes = self._outcomes
        while outcomes:
            yield outcomes.popleft()

    def tell_interrupted(self, error: BaseException, total: int | None) -> None:
        """Say what a user who pressed Ctrl-C wants to know, and by which item the pass was ended, if by any.

        In a notebook that cancels the cell's task.
        """
        self.close_bar()
        ended = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "cancelled"
        of = "" if total is None else f" of {total:,}"
        notes = getattr(error, "__notes__", [])[-1:]
        saved = ", all of them saved" if self.completed else ""
        log.warning(
            "checkpoint %r: %s%s with %s%s done%s; run the same line again for the rest",
            self._records.name, ended, "".join([f" ({note})" for note in notes]), f"{self.completed:,}", of, saved,
        )  # fmt: skip

    def tell(self, total: int | None) -> None:
        """Log how many items were run, how many of them failed, and how many are done."""
        if self.errors.run:
            of = "" if total is None else f" of {total:,}"
            log.info("checkpoint %r: %d run, %d of them failed; %s done%s", self._records.name, self.errors.run,
                     self.errors.failed, f"{self.completed:,}", of)  # fmt: skip
