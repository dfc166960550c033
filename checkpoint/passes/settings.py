"""The settings of one pass.

The promise: they are decided before the pass begins, and nothing changes them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from checkpoint.execution.policies import ErrorLimit, OnChange
from checkpoint.values.keys import KeyFunction, item_digest

__all__ = ["PassSettings"]


@dataclass(frozen=True, slots=True)
class PassSettings:
    """How one pass treats its items.

    Attributes:
        key_of: returns the key of an item.
        digest_of: returns the digest of the part of an item that its result depends on, 0 where it is not known.
        on_change: what to do where a known key's item has changed: "keep" the result, "recompute" it, or "error"; None
            is "error" for items whose changes can be told.
        overlapping: whether an item may be drawn while the call of an earlier one is not done.
        retry_failed: whether items that failed earlier are run again.
        limit: when failures end the pass.
        max_cost: what the checkpoint may have cost in all; None: whatever it costs.
        collect: whether the pass keeps outcomes for `take`.
        progress: whether the pass shows a bar.
        desc: the text before the bar.
        lock_timeout: seconds that the pass waits while another process writes.
        locks_first: whether it takes the lock before it draws from input that can be read once only.
        judge: raises where a value that was refused earlier is still no result; None: such values are left alone.
        parse: what is made of each value that is read.
    """

    key_of: KeyFunction
    digest_of: Callable[[Any], int] = item_digest
    on_change: OnChange | None = "keep"
    overlapping: bool = False
    retry_failed: bool = True
    limit: ErrorLimit = field(default_factory=ErrorLimit)
    max_cost: float | None = None
    collect: bool = False
    progress: bool = False
    desc: str | None = None
    lock_timeout: float = 0.0
    locks_first: bool = False
    judge: Callable[[Any], None] | None = None
    parse: Callable[[Any], Any] | None = None

    @property
    def refuses_changes(self) -> bool:
        """Whether items that changed end the pass."""
        return self.on_change in (None, "error")
