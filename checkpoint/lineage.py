"""By which code the results of a checkpoint were computed, and how the code that is there differs from that.

The promise: nothing is deleted because something changed. A value that differs stops a pass before anything is paid
for; code that differs is told, once for each fingerprint, with what changed and how many results precede it.

Records carry the digest, meta says what it stands for: where meta is lost, it is still told that something changed.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from checkpoint.errors import CheckpointError, FunctionChanged, plural
from checkpoint.fingerprints import Changes, Fingerprint, changes, is_told
from checkpoint.records import Records

__all__ = ["Drift", "Lineage", "drift_of"]

log = logging.getLogger("checkpoint")


@dataclass(frozen=True, slots=True)
class Drift:
    """How a function differs from what computed results.

    Attributes:
        values: that it reads, as "name: old → new".
        code: its functions that differ.
        names: of the values.
        stale: where the results begin that were computed by what it was.
    """

    values: tuple[str, ...]
    code: tuple[str, ...]
    names: tuple[str, ...]
    stale: frozenset[int]

    def __str__(self) -> str:
        return summarize([*self.values, *self.code])


def drift_of(records: Records, code: Fingerprint, *, exact: bool = True) -> Drift | None:
    """How the function differs from what computed the results of this version, or None where it does not.

    Args:
        records: their store is up to date.
        code: of the function as it is.
        exact: whether code that differs, and has been told, is wanted too; that reads the journal.
    """
    known = _known(records)
    compared: dict[str, Changes] = {}
    for digest, detail in known.items():
        if is_told(digest, code.digest):
            found = changes(digest, detail, code)
            if found.values or found.code:
                compared[digest] = found
    has_values = any(found.values for found in compared.values())
    if not compared or not (exact or has_values or code.digest not in known):
        return None
    offsets = records.store.results.codes(records.version)
    live = [digest for digest in compared if digest in offsets]
    if not live:
        return None
    by_value = [digest for digest in live if compared[digest].values] or live
    shown = compared[by_value[-1]]
    stale = frozenset(offset for digest in live for offset in offsets[digest])
    return Drift(tuple(shown.values), tuple(shown.code), tuple(shown.names), stale)


def _known(records: Records) -> dict[str, Any]:
    """What computed results of this version, the last one last: as meta has it, or, where that is lost, the journal."""
    store, version = records.store, records.version
    known = store.codes_of(version)
    last = store.results.last_code(version)
    if store.has_meta and (not last or last in known):
        return known
    store.learn_codes()
    known = store.codes_of(version)
    if not (store.has_meta and last in known):
        for digest in store.results.codes(version):
            known.setdefault(digest, {})
    return known


class Lineage:
    """What a pass does about a function that has changed.

    Args:
        code: the function's fingerprint.
        on_change: "keep", "recompute" or "error"; None keeps what other code computed, and refuses other values.

    Attributes:
        stale: where the results begin that are to be computed anew.
    """

    def __init__(self, code: Fingerprint, on_change: str | None) -> None:
        self.code = code
        self.stale: frozenset[int] = frozenset()
        self._on_change = on_change
        self._noted = False

    def begin(self, records: Records) -> None:
        """Look what has changed, before anything is paid for.

        Raises:
            FunctionChanged: a value; or anything, with on_change="error".
        """
        records.set_code(self.code.digest)
        drift = drift_of(records, self.code, exact=self._on_change in ("recompute", "error"))
        if drift is None:
            return
        self.take(drift)
        if (refusal := self.refusal(records.name, drift)) is not None:
            raise refusal
        self._tell(records, drift)

    def take(self, drift: Drift) -> None:
        """What has changed is known."""
        if self._on_change == "recompute":
            self.stale = drift.stale

    def _tell(self, records: Records, drift: Drift) -> None:
        told = (records.version, self.code.digest)
        if told in records.store.told:
            return
        records.store.told.add(told)
        fate = (
            "those of these items are computed anew"
            if self._on_change == "recompute"
            else "they are kept; on_change='recompute' computes them anew, and version= tells them apart"
        )
        log.warning(
            "checkpoint %r: %s changed (%s); %s precede%s it: %s",
            records.name, self.code.name, drift, plural(len(drift.stale), "result"),
            "s" if len(drift.stale) == 1 else "", fate,
        )  # fmt: skip
        with suppress(CheckpointError):  # where it cannot be noted now, it is told again next time
            records.store.begin_writing()
            self.note(records)

    def refusal(self, name: str, drift: Drift) -> FunctionChanged | None:
        """The error that ends the pass before it begins, or None."""
        count, code = len(drift.stale), self.code.name
        computed = f"{plural(count, 'result')} {'was' if count == 1 else 'were'} computed"
        if drift.values and self._on_change in (None, "error"):
            names = [name if name.replace(".", "").isidentifier() else "…" for name in drift.names]
            version = f"[{', '.join(names)}]" if len(names) > 1 else (*names, "…")[0]
            message = (
                f"checkpoint {name!r}: {code} reads other values than it did when {computed}: {drift}. To "
                f"keep both apart, name what they depend on: @checkpointed(…, version={version}); else "
                'on_change="recompute" replaces them, and "keep" keeps results that do not depend on it'
            )
            if ignorable := tuple(name for name in drift.names if name in self.code.values):
                message += f"; where results never depend on it, leave it out: ignore={ignorable!r}"
        elif self._on_change == "error":
            message = (
                f"checkpoint {name!r}: {code} changed since {computed}: {drift}; choose "
                'on_change="keep" or "recompute", or name a version= of what it does'
            )
        else:
            return None
        return FunctionChanged(message, changes=(*drift.values, *drift.code), count=count)

    def note(self, records: Records) -> None:
        """Records of this code may follow: meta says what it stands for before one is there."""
        if not self._noted:
            self._noted = True
            records.store.note_code(records.version, self.code.digest, self.code.detail())

    def end(self, records: Records) -> None:
        """What is saved from here on is not of the pass."""
        records.set_code("")


def summarize(told: list[str], limit: int = 3) -> str:
    """The first of a list, and how many more there are."""
    shown = "; ".join(told[:limit])
    return shown if len(told) <= limit else f"{shown}; and {len(told) - limit} more"
