"""What a pass is told to do about failures: frozen policies, checked when built; what counts is another object."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from checkpoint.errors import InvalidOption, quote

__all__ = ["Durability", "ErrorCount", "ErrorLimit", "OnChange", "check_choice"]

Durability = Literal["process", "power"]
OnChange = Literal["keep", "recompute", "error"]

_ENOUGH_FOR_A_FRACTION = 100


def check_choice(name: str, value: object, choices: object) -> None:
    """Raise `InvalidOption` unless the value is one of a Literal's."""
    allowed = get_args(choices)
    if value not in allowed:
        raise InvalidOption(f"{name} is {quote(value)}; it is one of {', '.join(map(repr, allowed))}")


@dataclass(frozen=True, slots=True)
class ErrorLimit:
    """When failures end a pass.

    Args:
        max_errors: more failures than this end it: a count (0: the first one does), or a fraction between 0 and 1 of
            what has run, once a hundred have. None: no limit.
        in_a_row: that many failures of one type, with nothing else before them, end it: the key or the quota is dead.
        unencodable: that many values that cannot be written end it: the code is at fault.
    """

    max_errors: int | float | None = None
    in_a_row: int = 100
    unencodable: int = 3

    def __post_init__(self) -> None:
        limit = self.max_errors
        if limit is None:
            return
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not limit >= 0:
            raise InvalidOption(f"max_errors is {quote(limit)}; give a count (0 or more) or a fraction between 0 and 1")
        if isinstance(limit, float) and not limit < 1:
            raise InvalidOption(f"max_errors is {limit}; a float is a fraction below 1, a count is an int")


class ErrorCount:
    """What one pass has seen of successes and failures.

    Attributes:
        by_type: how many failures of each exception type.
        failed: how many in all.
        run: how many items were run.
    """

    def __init__(self, limit: ErrorLimit) -> None:
        self._limit = limit
        self.by_type: Counter[str] = Counter()
        self.failed = 0
        self.run = 0
        self._unencodable = 0

    def succeeded(self) -> None:
        """One more item has its result."""
        self.run += 1

    def fail(self, kind: str, *, unencodable: bool = False) -> None:
        """One more item failed, with an exception of this type."""
        self.run += 1
        self.failed += 1
        self._unencodable += unencodable
        self.by_type[kind] += 1

    def retire(self, kind: str) -> None:
        """One of the failures of this type has its result after all."""
        self.failed -= 1
        self.by_type[kind] -= 1
        self.by_type += Counter()  # drops what is down to zero

    def verdict(self) -> str | None:
        """Why the pass must end now, or None."""
        limit = self._limit
        if self._unencodable >= limit.unencodable:
            return f"{self._unencodable} results could not be written: the function returns what cannot be stored"
        if self.failed == self.run >= limit.in_a_row and len(self.by_type) == 1:
            return f"the first {self.run} items all failed with {next(iter(self.by_type))}"
        if limit.max_errors is None:
            return None
        if isinstance(limit.max_errors, float):
            over = self.run >= _ENOUGH_FOR_A_FRACTION and self.failed > limit.max_errors * self.run
            return f"more than {limit.max_errors:.0%} of {self.run} items failed" if over else None
        return f"more than max_errors={limit.max_errors} items failed" if self.failed > limit.max_errors else None
