"""The items of a pass that differ from what their results were computed from.

The promise: an item counts as changed only where both digests are of the same part of an item; where that cannot be
told, the result is kept, and a message says so.
"""

from __future__ import annotations

import logging
from typing import Any

from checkpoint.errors import InputChanged, plural, quote
from checkpoint.passes.settings import PassSettings
from checkpoint.values.digests import are_alike
from checkpoint.values.keys import PART, Key, changed_field, is_digest_of, item_digest

__all__ = ["Changes"]

log = logging.getLogger("checkpoint")
_MOST_FIELDS = 8  # that a message names
_FIRST = 100  # keys that an error lists


class Changes:
    """Counts the items that changed, and keeps what a message says of them.

    Args:
        name: the checkpoint's.
        settings: of the pass.

    Attributes:
        count: how many items changed.
    """

    def __init__(self, name: str, settings: PassSettings) -> None:
        self._name = name
        self._settings = settings
        self.count = 0
        self._keys: list[Key] = []
        self._how = ""  # of the first of them, where that can be told
        self._others: list[Any] = []  # its fields that did not change
        self._incomparable = 0  # done, and computed from what another `input=` names

    def differs(self, digest: int, item: Any) -> bool:
        """Whether the item is another one than that with this digest; False where that cannot be told."""
        now = self._settings.digest_of(item)
        if not now or are_alike(digest, now):
            return False
        if not (now ^ digest) & PART:
            return bool(now & PART) or not is_digest_of(digest, item, now)
        if digest & PART or not are_alike(digest, item_digest(item)):
            self._incomparable += 1
        return False

    def add(self, key: Key, item: Any, digest: int) -> None:
        """Count an item that differs from the one with this digest."""
        self.count += 1
        if not self._keys and self._settings.refuses_changes and not digest & PART:
            field, self._how = changed_field(item, digest)
            self._others = [name for name in item if name != field] if field else []
        if len(self._keys) < _FIRST:
            self._keys.append(key)

    def refuse(self) -> None:
        """Refuse items that changed, where the settings say so.

        Raises:
            InputChanged: naming the keys, and what can be done.
        """
        if not self.count or not self._settings.refuses_changes:
            return
        verb = (
            "differs from the one that its result was"
            if self.count == 1
            else "differ from those that their results were"
        )
        such = f"{'' if self.count == 1 else 'such as '}{quote(self._keys[0])}"
        such += f": {self._how}" if self._how else ""
        of = self._others if len(self._others) <= _MOST_FIELDS else []
        fields = repr(of[0] if len(of) == 1 else tuple(of)) if of and all(type(one) is str for one in of) else "…"
        depend = "results depend on these fields alone" if of else "name the fields that results depend on"
        raise InputChanged(
            f"checkpoint {self._name!r}: {plural(self.count, 'item')} {verb} computed from (key {such}). Nothing was "
            "run; decide:\n"
            "    f.accept(items)        # the results are right for these items too\n"
            '    on_change="recompute"  # in the decorator: they are computed anew; or f.clear(keys) for some of them\n'
            '    on_change="keep"       # in the decorator: results stay, whatever becomes of their items\n'
            f"    input={fields}  # in the decorator: {depend}, and then f.accept(items)",
            keys=self._keys,
            count=self.count,
        )

    def tell(self) -> None:
        """Warn of items that changed and were not refused."""
        if self.count and not self._settings.refuses_changes:
            kept = "kept; on_change='recompute' or clear(keys) computes them anew"
            fate = kept if self._settings.on_change == "keep" else "computed anew"
            log.warning(
                "checkpoint %r: %s changed since their results were computed (keys such as %s): the results are %s",
                self._name, plural(self.count, "item"), quote(self._keys[:3]), fate,
            )  # fmt: skip

    def tell_incomparable(self) -> None:
        """Warn of results that were computed from another part of the item than `input=` names."""
        if self._incomparable:
            verb = "was" if self._incomparable == 1 else "were"
            log.warning(
                "checkpoint %r: %s computed from an item that differs in what input= names, or beside it: input= was "
                "another one then, so that this cannot be told, and the results are kept; f.accept(items) decides it",
                self._name, f"{plural(self._incomparable, 'result')} {verb}",
            )  # fmt: skip
