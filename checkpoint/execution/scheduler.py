"""When the next call may start: retries that wait, permits of rates, and pauses. What changes during a pass is here.

A waiting item is an entry in a heap, never a worker that sleeps. Nothing here waits: whoever drives asks `take`, and
how long until asking again makes sense. It is not shared between threads without a lock.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Any

import msgspec

from checkpoint import clock
from checkpoint.errors import quote_error
from checkpoint.execution.policies import Again, Rate, Retry
from checkpoint.execution.quota import Permit, cost_of, permits_of
from checkpoint.outcomes import Unit

__all__ = ["MOST_LATER", "MOST_WAITS", "PATIENCE", "Attempt", "BadCost", "Schedule"]

log = logging.getLogger("checkpoint")

MOST_WAITS = 10
"""So many waits for a Retry-After, without a success between them, or of one item, are taken as no attempt."""

PATIENCE = 15 * 60.0
"""Seconds of such waits."""

MOST_LATER = 32
"""Retries that may wait, besides as many as there are workers, before nothing else is begun."""

_LONGEST = 3600.0  # seconds after which to look again in any case: what waits on locks takes no span of any length


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One call to be made, and what became of it so far: an item, or a batch of them.

    Attributes:
        units: what it works on.
        made: how many attempts were made that count.
        deaths: how many workers died of it.
        alone: it travels alone, since something died or broke of it and others.
        quiet: nothing else is to be under way with it: what it does next decides on it.
        waits: how often it was told to come again later.
        began: when it was last taken to be called, on the monotonic clock; told where there are retries.
    """

    units: list[Unit]
    alone: bool = False
    quiet: bool = False
    made: int = 0
    deaths: int = 0
    began: float = 0.0
    waits: int = 0
    costs: list[float] | None = None


class Schedule:
    """What is to be called, in which order, and when.

    Args:
        retry: which failures are tried again; None: none.
        rates: all of them must permit a call.
        now: seconds on a clock that never goes back.
    """

    def __init__(
        self, retry: Retry | None = None, rates: Iterable[Rate] = (), *, now: clock.Clock | None = None
    ) -> None:
        self._retry = retry
        self._rates = list(rates)
        self._permits = [permits_of(rate) for rate in self._rates]
        self._taken: list[Permit] = []  # of each, for the call that was taken last
        self._now = now or clock.monotonic
        self._ready: deque[Attempt] = deque()
        self._later: list[tuple[float, int, Attempt]] = []
        self._due: deque[Attempt] = deque()  # was in `_later`, and goes before what is ready
        self._order = count()
        self._tried: dict[Any, Attempt] = {}  # by key, what was tried before another pass was at it
        self._paused_until = -math.inf
        self._has_paused = False
        self._waits = 0  # for a Retry-After, since the last success
        self._first_wait: float | None = None
        self._last_wait = -math.inf  # when it ended, or will

    @property
    def is_plain(self) -> bool:
        """Whether calls are made in the order they come, each at once and once."""
        return self._retry is None and not self._rates

    @property
    def ready(self) -> int:
        """How many calls wait for nothing but a worker, a permit or the end of a pause."""
        self._wake()
        return len(self._due) + len(self._ready)

    @property
    def wants_quiet(self) -> bool:
        """Whether the next call starts only once nothing is under way."""
        queue = self._due or self._ready
        return bool(queue) and queue[0].quiet

    def room(self, ready: int, ahead: int = 0) -> int:
        """How many more may be added, if any: until so many are ready or ahead, and not too many wait for a retry."""
        room = ready + ahead - len(self._due) - len(self._ready)
        return room if len(self._later) < ready + MOST_LATER else 0

    def add(self, attempt: Attempt) -> None:
        """To be called as soon as may be, after those that were added before."""
        self._ready.append(attempt)

    def take(self, *, first: bool = True, only: bool = True) -> Attempt | None:
        """The next call that may start now, its permits taken; None: see `wait`.

        Args:
            first: whether it is the first of its task: one that travels alone is no other.
            only: whether nothing is under way: else one that wants quiet is not taken.

        Raises:
            BadCost: what the call costs cannot be told, or is too much.
        """
        if self._later:
            self._wake()
        queue = self._due or self._ready
        if not queue or (self._paused_until > -math.inf and self._now() < self._paused_until):
            return None
        if (queue[0].alone and not first) or (queue[0].quiet and not only):
            return None
        if self._rates and not self._permitted(queue):
            return None
        attempt = queue.popleft()
        if self._retry is not None:
            attempt.began = self._now()
        return attempt

    def keep(self, attempt: Attempt, called: list[Unit]) -> None:
        """Of the call that was just taken only these units are called here; where there is none, no permit is used.

        Others may come back, and then have been tried as often.
        """
        if not called:
            self._give_back()
        if len(called) < len(attempt.units) and (attempt.made or attempt.deaths or attempt.waits):
            kept = {unit.key for unit in called}
            self._tried.update((unit.key, attempt) for unit in attempt.units if unit.key not in kept)
        attempt.units = called

    def come_back(self, unit: Unit) -> None:
        """The unit was not called, since another pass was at it, and is to be called as soon as may be."""
        attempt, before = Attempt([unit]), self._tried.pop(unit.key, None)
        if before is not None:
            attempt.made, attempt.deaths, attempt.waits = before.made, before.deaths, before.waits
            attempt.alone, attempt.quiet = before.alone, before.quiet
        self.at_once(attempt)

    def _wake(self) -> None:
        later = self._later
        if later:
            now = self._now()
            while later and later[0][0] <= now:
                self._due.append(heapq.heappop(later)[2])

    def _permitted(self, queue: deque[Attempt]) -> bool:
        costs = self._costs(queue)
        now = self._now()  # counting tokens takes time
        if any(permits.wait(cost, now) for permits, cost in zip(self._permits, costs, strict=True)):
            return False
        self._taken = []
        for permits, cost in zip(self._permits, costs, strict=True):
            if (permit := permits.take(cost, now)) is None:
                self._give_back()
                return False
            self._taken.append(permit)
        return True

    def _give_back(self) -> None:
        """The call whose permits were taken last does not start."""
        for permits, taken in zip(self._permits, self._taken, strict=False):
            permits.give_back(taken)
        self._taken = []

    def _costs(self, queue: deque[Attempt]) -> list[float]:
        attempt = queue[0]
        if attempt.costs is None:
            try:
                attempt.costs = [cost_of(rate, attempt.units) for rate in self._rates]
            except Exception as error:
                queue.popleft()
                raise BadCost(attempt, error) from error
        return attempt.costs

    def wait(self, least: int = 1) -> float | None:
        """Seconds until `take` may give something; None: not before something is added.

        Args:
            least: how many calls must be ready before the next one is taken.
        """
        ready, now = self.ready, self._now()
        moments = [self._later[0][0]] if self._later else []
        if ready and ready >= least:
            moments.append(now + self._longest_wait((self._due or self._ready)[0], now))
        if not moments:
            return None
        return min(max(min(moments) - now, self._paused_until - now, 0.0), _LONGEST)

    def _longest_wait(self, attempt: Attempt, now: float) -> float:
        costs = attempt.costs or [0.0] * len(self._rates)
        return max([permits.wait(cost, now) for permits, cost in zip(self._permits, costs, strict=True)], default=0.0)

    def succeeded(self) -> None:
        """A call returned: whoever was asked to wait for was worth it."""
        if self._first_wait is not None:
            self._waits, self._first_wait = 0, None

    def again(self, attempt: Attempt, why: Again | None) -> bool:
        """Whether the failed call is made once more; it is scheduled if so."""
        retry = self._retry
        if retry is None or why is None:
            attempt.made += 1
            return False
        now = self._now()
        if why.after is not None and self._is_patient(attempt, why.after, now):
            if why.pause:
                if now + why.after > self._paused_until + 1.0:
                    level = logging.INFO if self._has_paused else logging.WARNING
                    log.log(level, "pausing all calls for %.3g s, as the server asks (Retry-After)", why.after)
                    self._has_paused = True
                self._paused_until = max(self._paused_until, now + why.after)
            self._put(attempt, now + why.after)
            return True
        attempt.made += 1
        after = why.after or 0.0
        if attempt.made >= retry.attempts or after > PATIENCE:
            return False
        try:
            after = max(retry.delay(attempt.made), after)
        except Exception as error:  # the user's `wait`: what was called is not lost for it
            log.warning("Retry's wait failed, and the call is not tried again: %s", quote_error(error))
            return False
        self._put(attempt, now + after)
        return True

    def _is_patient(self, attempt: Attempt, after: float, now: float) -> bool:
        """Whether the wait costs no attempt. Calls that were under way when a wait began all tell of the same one."""
        if attempt.waits >= MOST_WAITS:
            return False  # others succeed: it is this one that is refused
        begins = attempt.began >= self._last_wait
        first = now if self._first_wait is None else self._first_wait
        if self._waits + begins > MOST_WAITS or now + after - first > PATIENCE:
            return False
        attempt.waits += 1
        self._waits += begins
        self._first_wait = first
        self._last_wait = max(self._last_wait, now + after)
        return True

    def at_once(self, attempt: Attempt) -> None:
        """To be called before anything that was not yet: it was called before."""
        self._ready.appendleft(attempt)

    def _put(self, attempt: Attempt, due: float) -> None:
        heapq.heappush(self._later, (due, next(self._order), attempt))


class BadCost(Exception):
    """What a call costs could not be told: `.attempt`, which is scheduled no more, and `.error`."""

    def __init__(self, attempt: Attempt, error: Exception) -> None:
        super().__init__(str(error))
        self.attempt, self.error = attempt, error
