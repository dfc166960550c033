"""Whether those who share a quota may call, by what the server answered last.

The promise: one refusal holds nobody but its own item. Three in a row from different items, or five different items
among the last twenty answers, hold all who share the quota; then one call at a time asks, until one is answered. While
calls are held, what is refused costs no attempt, so that an outage uses up no item. After the patience without an
answer, what waits fails. Nothing here waits.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections import deque
from enum import Enum, auto
from itertools import takewhile
from typing import Any, Protocol

from checkpoint import locks
from checkpoint.execution.policies import Again

__all__ = ["Gate", "Ruling"]

log = logging.getLogger("checkpoint")

_LAST = 20  # answers that are looked at
_QUARTER = 5
_ROW = 3
_POLL = 0.1  # seconds: another pass asks, and tells nobody of the answer


class Started(Protocol):
    """A call, and when it was begun."""

    began: float


class Ruling(Enum):
    """What a refusal means for the item that was refused."""

    ALONE = auto()  # it was refused by itself
    HELD = auto()  # it costs no attempt: the server refuses everybody
    FAILS = auto()  # the patience is over


class Gate:
    """Open, or held; asked from any thread.

    Attributes:
        is_calm: whether it is open, and none of the last twenty answers was a refusal: then no answer need be told.
        held_since: when it was closed, on the clock of who tells; None while it is open.
        answers: grows when the server answers after a refusal.
    """

    def __init__(self) -> None:
        self._lock = locks.lock("gate")
        self._users: weakref.WeakSet[Any] = weakref.WeakSet()
        self.answers = 0
        self._has_told = False
        self._reset()

    def _reset(self) -> None:
        self.is_calm = True
        self.held_since: float | None = None
        self._last: deque[Any] = deque(maxlen=_LAST)  # who was refused, or None for an answer
        self._first = 0.0  # when it was refused first, since the last answer
        self._opened = -math.inf
        self._probe: Started | None = None
        self._asker: weakref.ref[Any] | None = None  # whose call the probe is
        self._next = 0.0  # when the next probe may start
        self._failed = 0  # probes
        self._has_given_up = False

    def join(self, user: Any) -> None:
        """The user, a schedule, shares the quota from now on. Where it is alone, what was before is forgotten."""
        with self._lock:
            if not self._users:
                self._reset()
            self._users.add(user)

    def leave(self, user: Any) -> None:
        """The user's pass is over; what it was asking, another may ask."""
        with self._lock:
            self._users.discard(user)
            if self._asker is not None and self._asker() is user:
                self._probe = self._asker = None

    @property
    def is_doubted(self) -> bool:
        """Whether the last answer was a refusal: an item that was not refused yet tells more than one that was."""
        return not self.is_calm and (self.held_since is not None or not self._is_answered_last)

    @property
    def has_given_up(self) -> bool:
        """Whether the patience is over, and the server has not answered since."""
        return self._has_given_up

    # calls that start

    def wait(self, user: Any, now: float) -> float:
        """Seconds until a call may start; infinite where the user's own call asks."""
        with self._lock:
            if self.held_since is None:
                return 0.0
            asker = self._asker and self._asker()
            if asker is not None:
                return math.inf if asker is user else _POLL
            return max(self._next - now, 0.0)

    def start(self, user: Any, attempt: Started, now: float) -> bool:
        """Whether the call may start now; where the gate is held it is the one that asks."""
        with self._lock:
            if self.held_since is None:
                return True
            if now < self._next or (self._asker is not None and self._asker() is not None):
                return False
            self._probe, self._asker = attempt, weakref.ref(user)
            return True

    def lost(self, attempt: Started) -> None:
        """The call has no answer: it was not made, or its worker died."""
        with self._lock:
            if self._probe is attempt:
                self._probe = self._asker = None

    # answers

    def answered(self, attempt: Started, now: float) -> None:
        """The server answered the call, with whatever."""
        with self._lock:
            held = self.held_since
            if held is not None:
                if self._probe is not attempt:
                    return  # it was under way when the gate was closed
                last = self._first
                self._reset()
                self._opened = now
            self.answers += 1
            self._last.append(None)
            self._has_given_up = False
            self.is_calm = not any(self._last)
        if held is not None:
            log.info("calls go on: the server answers again, after %.3g s", now - last)

    def refused(
        self, who: Any, attempt: Started, why: Again, now: float, *, backoff: list[float], patience: float
    ) -> Ruling:
        """The call was refused, or had no answer.

        Args:
            who: whose refusal it is; the same for each attempt of an item.
            attempt: the call.
            why: the refusal.
            now: seconds, on the clock of all who share the gate.
            backoff: seconds until the first probe, the second …; the last one stands for all after it.
            patience: seconds without an answer after which what waits fails.
        """
        with self._lock:
            message = ""
            if attempt.began < self._opened:
                return Ruling.HELD  # it tells of an outage that is over
            if self._has_given_up:
                return Ruling.FAILS
            if self.held_since is None:
                if self._is_answered_last:
                    self._first = now
                self._last.append(who)
                self.is_calm = False
                if not self._is_outage():
                    return Ruling.ALONE
                self.held_since = now
                message = self._closed(why)
            elif self._probe is attempt:
                self._probe = self._asker = None
                self._failed += 1
                if now - self._first >= patience:
                    self._give_up(now)
            if self.held_since is not None:
                wait = max(why.after or 0.0, backoff[min(self._failed, len(backoff) - 1)])
                self._next = min(max(self._next, now + wait), self._first + patience)
            ruling = Ruling.FAILS if self._has_given_up else Ruling.HELD
            level = logging.INFO if self._has_told else logging.WARNING
            self._has_told = self._has_told or bool(message)
        if ruling is Ruling.FAILS:
            log.warning("no answer for %.3g s (Retry's patience): what waits fails, the last time with %s",
                        now - self._first, why.trouble)  # fmt: skip
        elif message:
            log.log(level, "%s", message)
        return ruling

    @property
    def _is_answered_last(self) -> bool:
        return not self._last or self._last[-1] is None

    def _is_outage(self) -> bool:
        row = set(takewhile(lambda who: who is not None, reversed(self._last)))
        return len(row) >= _ROW or len(set(self._last) - {None}) >= _QUARTER

    def _closed(self, why: Again) -> str:
        asks = "" if why.after is None else f"; the server asks for {why.after:.3g} s (Retry-After)"
        return (
            f"calls are paused: several items in a row were refused, the last one with {why.trouble}{asks}. One call "
            "at a time asks whether they may go on; no item loses an attempt"
        )

    def _give_up(self, now: float) -> None:
        self._last.clear()
        self.held_since, self._failed, self._has_given_up, self._opened = None, 0, True, -math.inf
