"""When the next call may start: retries that wait, permits of rates, and gates. What changes during a pass is here.

A waiting item is an entry in a heap, never a worker that sleeps. Nothing here waits: whoever drives asks `take`, and
how long until asking again makes sense. It is not shared between threads without a lock.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Any

import msgspec

from checkpoint import clock
from checkpoint.errors import quote_error
from checkpoint.execution.gate import Gate, Ruling
from checkpoint.execution.policies import Again, Rate, Retry
from checkpoint.execution.quota import Permit, cost_of, quota_of
from checkpoint.outcomes import Unit

__all__ = ["MOST_LATER", "MOST_WAITS", "Attempt", "BadCost", "Schedule"]

log = logging.getLogger("checkpoint")

MOST_WAITS = 10
"""So many waits of one item for a Retry-After, while others are answered, cost no attempt. Where a patience is given,
that is the bound of those of a second and more."""

MOST_LATER = 32
"""Retries that may wait, besides as many as there are workers, before nothing else is begun."""

_BRIEF = 1.0  # seconds: who is told to come again so soon is not waited for without end
_LONGEST = 3600.0  # seconds after which to look again in any case: what waits on locks takes no span of any length


class Attempt(msgspec.Struct, eq=False, gc=False):
    """One call to be made, and what became of it so far: an item, or a batch of them.

    Attributes:
        units: what it works on.
        made: how many attempts were made that count.
        deaths: how many workers died of it.
        alone: it travels alone, since something died or broke of it and others.
        quiet: nothing else is to be under way with it: what it does next decides on it.
        waits: how often it was told to come again later, while others were answered.
        since: when it was first told so; negative: never.
        answers: how often the server had answered others by then.
        doubted: how often it had at the first refusal: is the item at fault, or the server? Negative: never refused.
        decided: whether it had answered others since, when the last call began.
        bad: why it cannot be called at all, if it cannot.
        began: when it was last taken to be called, on the monotonic clock; told where there are retries.
        notes: the fields that attempts before noted.
    """

    units: list[Unit]
    alone: bool = False
    quiet: bool = False
    made: int = 0
    deaths: int = 0
    began: float = 0.0
    waits: int = 0
    since: float = -1.0
    answers: int = -1
    doubted: int = -1
    decided: bool = False
    costs: list[float] | None = None
    notes: dict[str, Any] | None = None
    bad: Exception | None = None


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
        self._permits = [quota_of(rate).permits for rate in self._rates]
        self._taken: list[Permit] = []  # of each, for the call that was taken last
        self._now = now or clock.monotonic
        self._ready: deque[Attempt] = deque()
        self._later: list[tuple[float, int, Attempt]] = []
        self._due: deque[Attempt] = deque()  # was in `_later`, and goes before what is ready
        self._order = count()
        self._has_bad = False  # whether one was added that cannot be called
        self._tried: dict[Any, Attempt] = {}  # by key, what was tried before another pass was at it
        self._gates: list[Gate] = []
        self._probes: list[float] = []  # told when something was refused: the user's `wait` is asked for it
        if retry is not None:
            self._share_gates()

    def _share_gates(self) -> None:
        self._gates = [quota_of(rate).gate for rate in self._rates] or [Gate()]
        for gate in self._gates:
            gate.join(self)

    @property
    def is_plain(self) -> bool:
        """Whether calls are made in the order they come, each at once and once."""
        return self._retry is None and not self._rates

    @property
    def ready(self) -> int:
        """How many calls wait for nothing but a worker, a permit or an open gate."""
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
        if room <= 0 and self.wants_fresh:
            return 1
        return room if len(self._later) < ready + MOST_LATER else 0

    @property
    def wants_fresh(self) -> bool:
        """Whether an item that was not refused yet should be called next, and there is none: is it the server?"""
        return not self._ready and any(gate.is_doubted for gate in self._gates)

    def add(self, attempt: Attempt) -> None:
        """To be called as soon as may be, after those that were added before."""
        self._ready.append(attempt)
        self._has_bad = self._has_bad or attempt.bad is not None

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
        if not queue:
            return None
        is_held = bool(self._gates) and self.held_since is not None
        if self._due and self._ready and not queue[0].quiet and any(gate.is_doubted for gate in self._gates):
            queue = self._ready
        if is_held and any(gate.wait(self, self._now()) for gate in self._gates):
            return None
        if (queue[0].alone and not first) or (queue[0].quiet and not only):
            return None
        if self._has_bad and (bad := queue[0].bad) is not None:
            raise BadCost(queue.popleft(), bad)
        if self._rates and not self._permitted(queue):
            return None
        attempt = queue[0]
        if self._retry is not None:
            attempt.began = self._now()
            if attempt.doubted >= 0:
                attempt.decided = attempt.doubted != self.answers
            if is_held and not self._starts(attempt):
                self._give_back()
                return None
        queue.popleft()
        return attempt

    def _starts(self, attempt: Attempt) -> bool:
        """Whether all gates let the call start; none is kept by it else."""
        if all(gate.start(self, attempt, attempt.began) for gate in self._gates):
            return True
        self.lost(attempt)
        return False

    def keep(self, attempt: Attempt, called: list[Unit]) -> None:
        """Of the call that was just taken only these units are called here; where there is none, no permit is used.

        Others may come back, and then have been tried as often.
        """
        if not called:
            self._give_back()
            self.lost(attempt)
        if len(called) < len(attempt.units) and (attempt.made or attempt.deaths or attempt.waits):
            kept = {unit.key for unit in called}
            self._tried.update((unit.key, attempt) for unit in attempt.units if unit.key not in kept)
        attempt.units = called

    def put_back(self, attempt: Attempt) -> None:
        """The call that was just taken does not begin yet: it is the next one, and no permit is used."""
        self._give_back()
        self.lost(attempt)
        self.at_once(attempt)

    def come_back(self, unit: Unit) -> None:
        """The unit was not called, since another pass was at it, and is to be called as soon as may be."""
        attempt, before = Attempt([unit]), self._tried.pop(unit.key, None)
        if before is not None:
            attempt.made, attempt.deaths, attempt.waits = before.made, before.deaths, before.waits
            attempt.alone, attempt.quiet = before.alone, before.quiet
            attempt.notes = None if before.units else before.notes  # else those that are called have them
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
        held = max([gate.wait(self, now) for gate in self._gates], default=0.0)
        return min(max(min(moments) - now, held, 0.0), _LONGEST)

    def _longest_wait(self, attempt: Attempt, now: float) -> float:
        costs = attempt.costs or [0.0] * len(self._rates)
        return max([permits.wait(cost, now) for permits, cost in zip(self._permits, costs, strict=True)], default=0.0)

    @property
    def held_since(self) -> float | None:
        """When calls were held, as the server refused them all; None where they are not."""
        since = None
        for gate in self._gates:
            held = gate.held_since
            since = held if since is None else since if held is None else min(held, since)
        return since

    @property
    def paused(self) -> float | None:
        """For how many seconds calls have been held; None where they are not."""
        since = self.held_since
        return None if since is None else max(self._now() - since, 0.0)

    @property
    def waits_for_retry(self) -> bool:
        """Whether calls that failed are to be made again."""
        return bool(self._later or self._due)

    @property
    def answers(self) -> int:
        """Grows when the server answers somebody after a refusal."""
        return sum(gate.answers for gate in self._gates)

    @property
    def has_given_up(self) -> bool:
        """Whether the patience is over, and the server has not answered since."""
        return any(gate.has_given_up for gate in self._gates)

    def answered(self, attempt: Attempt) -> None:
        """The server answered the call: it returned, or failed in a way of its own."""
        for gate in self._gates:
            if not gate.is_calm:
                gate.answered(attempt, self._now())

    def lost(self, attempt: Attempt) -> None:
        """The call has no answer, and is made again or not."""
        for gate in self._gates:
            gate.lost(attempt)

    def close(self) -> None:
        """The pass is over: others that share its quotas go on."""
        for gate in self._gates:
            gate.leave(self)

    def again(self, attempt: Attempt, why: Again | None) -> bool:
        """Whether the failed call is made once more; it is scheduled if so.

        One of whose steps was given up in doubt is put off without a policy, too: other items tell whether it is the
        server. Once that has answered others, the call is at fault.
        """
        if self._retry is None and why is not None and why.of_step:
            self._retry = Retry()
            self._share_gates()
        retry = self._retry
        if why is None or not why.trouble:
            self.answered(attempt)
        if retry is None or why is None:
            attempt.made += 1
            return False
        now, after = self._now(), why.after or 0.0
        if after > retry.patience:
            self.answered(attempt)
        elif why.trouble:
            ruling = self._refused(attempt, why, now)
            if ruling is Ruling.HELD:
                self._put(attempt, now + after)
                return True
            if attempt.doubted < 0:
                attempt.doubted = self.answers
            if ruling is Ruling.FAILS or (why.of_step and attempt.decided):
                attempt.made += 1
                return False
        if why.after is not None and self._is_patient(attempt, why, now):
            self._put(attempt, now + after)
            return True
        attempt.made += 1
        if attempt.made >= retry.attempts or after > retry.patience:
            return False
        try:
            after = max(retry.delay(attempt.made), after)
        except Exception as error:  # the user's `wait`: what was called is not lost for it
            log.warning("Retry's wait failed, and the call is not tried again: %s", quote_error(error))
            return False
        self._put(attempt, now + after)
        return True

    def _refused(self, attempt: Attempt, why: Again, now: float) -> Ruling:
        retry, who = self._retry, (id(self), attempt.units[0].key)
        assert retry is not None
        self._probes = self._probes or retry.probes()
        rulings = {
            gate.refused(who, attempt, why, now, backoff=self._probes, patience=retry.patience) for gate in self._gates
        }
        return next(ruling for ruling in (Ruling.FAILS, Ruling.HELD, Ruling.ALONE) if ruling in rulings)

    def _is_patient(self, attempt: Attempt, why: Again, now: float) -> bool:
        """Whether the wait for a Retry-After costs no attempt."""
        assert self._retry is not None
        assert why.after is not None
        attempt.since = now if attempt.since < 0 else attempt.since
        is_bounded = why.after < _BRIEF or not self._retry.is_patience_given
        if is_bounded and attempt.waits >= MOST_WAITS:
            return False
        if now + why.after - attempt.since > self._retry.patience:
            return False
        answers = self.answers
        if not why.trouble or why.after < _BRIEF or answers != attempt.answers:
            attempt.waits += 1  # others are answered: it is this one that is refused
        attempt.answers = answers
        return True

    def at_once(self, attempt: Attempt) -> None:
        """To be called before anything that was not yet: it was called before."""
        self._ready.appendleft(attempt)

    def _put(self, attempt: Attempt, due: float) -> None:
        heapq.heappush(self._later, (due, next(self._order), attempt))


class BadCost(Exception):
    """The size or cost of a call could not be told: `.attempt`, which is scheduled no more, and `.error`."""

    def __init__(self, attempt: Attempt, error: Exception) -> None:
        super().__init__(str(error))
        self.attempt, self.error = attempt, error
