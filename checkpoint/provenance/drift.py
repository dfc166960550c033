"""By which code the results of a checkpoint were computed, how the code that is there differs, and what was decided.

The promise: nothing is deleted because something changed. A value that differs stops a pass before anything is paid
for; code that differs is told by every process that maps, until somebody decides. Within a version that the user named,
both are told and neither stops anything.

Records carry the digest of a fingerprint; the first record of each in a journal says what it stands for. Whoever
accepts old results adds a line to the journal (`storage.notes`), so that it counts on every machine.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from checkpoint.catalog.decisions import question_of
from checkpoint.catalog.paths import command_line
from checkpoint.catalog.view import VersionView
from checkpoint.errors import CheckpointLocked, FunctionChanged, StoreError, plural, quote
from checkpoint.provenance.fingerprint import Changes, Fingerprint, changes, is_told, reads
from checkpoint.values.secrets import SECRET, is_secret, quoted

__all__ = [
    "Drift",
    "Lineage",
    "Takeover",
    "drift_of",
    "mislabelled",
    "takeover_of",
]

log = logging.getLogger("checkpoint")
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Drift:
    """How a function differs from what computed results.

    Attributes:
        values: that it reads, as "name: old → new".
        code: its functions that differ.
        names: of the values.
        stale: where the results begin that were computed by what it was.
        unknown: where those begin whose fingerprint is of another algorithm: nobody can tell what has changed since.
        question: the digest by which `checkpoint accept` knows what is to be accepted.
    """

    values: tuple[str, ...]
    code: tuple[str, ...]
    names: tuple[str, ...]
    stale: frozenset[int]
    unknown: frozenset[int] = field(default=frozenset())
    question: str = ""

    def __str__(self) -> str:
        return summarize([*self.values, *self.code])


def drift_of(records: VersionView, code: Fingerprint) -> Drift | None:
    """How the function differs from what computed the results of this version; None where nothing is left to decide.

    It reads the journal where records of the version name other fingerprints that nobody has accepted.

    Args:
        records: their store is up to date.
        code: of the function as it is.
    """
    checkpoint, version = records.checkpoint, records.version
    known = {old: detail for old, detail in checkpoint.codes_of(version).items() if old != code.digest}
    open_ = known.keys() - {old for old, new in checkpoint.accepted if new == code.digest} if known else set()
    compared: dict[str, Changes | None] = {}
    for old, detail in known.items():
        if old in open_:
            found = changes(old, detail, code) if is_told(old, code.digest) else None
            if found is None or found.values or found.code:
                compared[old] = found
    if not compared:
        return None
    places = checkpoint.results.places_by_code(version)
    live = [old for old in compared if old in places]
    if not live:
        return None
    differ = [(old, found) for old in live if (found := compared[old]) is not None]
    shown = next((found for _, found in reversed(differ) if found.values), differ[-1][1] if differ else None)
    return Drift(
        tuple(shown.values) if shown else (),
        tuple(shown.code) if shown else (),
        tuple(shown.names) if shown else (),
        frozenset(offset for old, _ in differ for offset in places[old]),
        frozenset(offset for old in live if compared[old] is None for offset in places[old]),
        question_of(checkpoint, version, code.digest),
    )


# --- versions that begin ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Takeover:
    """What there is of no version when a function gets its first one: how many results, and whether they count."""

    count: int
    counts: bool


def takeover_of(records: VersionView, code: Fingerprint) -> Takeover | None:
    """Whether results of no version count for a version that has none; None where there is nothing to say of them.

    They do where each part of the version is a value that the function reads, and where the function is what computed
    all of them. Where they do not, that is said of the first version of a function only.
    """
    checkpoint, version = records.checkpoint, records.version
    results = checkpoint.results
    if not version or version in results.versions or not (count := results.count("")):
        return None
    label = checkpoint.versions.get(version)  # None: one that holds a secret
    counts = False
    if label is not None and all(reads(code, part) for _, part in parts_of(label)):
        mine = {code.digest, code.unsealed, *(old for old, new in checkpoint.accepted if new == code.digest)}
        counts = count == sum(len(places) for name, places in results.places_by_code("").items() if name in mine)
    is_first = not any(results.count(other) for other in results.versions - {"", version})
    return Takeover(count, counts) if counts or is_first else None


def parts_of(version: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(path, part) of each value that a version is made of."""
    if isinstance(version, Mapping) and version:
        for name, part in version.items():
            yield from parts_of(part, (*path, str(name)))
    elif isinstance(version, (list, tuple)) and version:
        for place, part in enumerate(version):
            yield from parts_of(part, (*path, str(place)))
    else:
        yield path, version


def mislabelled(code: Fingerprint, version: Any, others: Sequence[Any]) -> str:
    """What a version says that the function does not do, in words; "" where nothing is known of it.

    A part of another version was what the function reads; this version has another value there, which it does not read.

    Args:
        code: of the function.
        version: the value of the version.
        others: values of other versions of the function as it is.
    """
    mine = dict(parts_of(version))
    for other in others:
        for path, was in parts_of(other):
            if path in mine and mine[path] != was and _is_named(path, was):
                names = reads(code, was)
                if names and not reads(code, mine[path]):
                    where = f"{'.'.join(path)} " if path else ""
                    return f"the version says {where}{_shown(path, mine[path])}, and {names[0]} is {_shown(path, was)}"
    return ""


def _shown(path: tuple[str, ...], part: Any) -> str:
    return SECRET if is_secret(path[-1] if path else "", part) else quote(part, 60)


def _is_named(path: tuple[str, ...], part: Any) -> bool:
    """Whether a part is no value that another one may equal by chance."""
    return (isinstance(part, str) and len(part) > 2) or bool(path and not path[-1].isdigit() and part is not None)


# --- what a pass does ------------------------------------------------------------------------------------------------


class Lineage:
    """What a pass does about a function that has changed.

    Args:
        code: the function's fingerprint.
        on_change: "keep", "recompute" or "error"; None keeps what other code computed, and refuses other values.
        label: the version that the user named; then nothing is refused or computed anew.
        base: the version of the function that this one is a copy of by `options`.

    Attributes:
        stale: where the results begin that are to be computed anew.
    """

    def __init__(self, code: Fingerprint, on_change: str | None, label: Any = None, base: Any = None) -> None:
        self.code = code
        self.stale: frozenset[int] = frozenset()
        self._on_change = on_change
        self._label = label
        self._base = base
        self._begun = False
        self._is_noted = False

    def begin(self, records: VersionView) -> None:
        """Look what has changed, before anything is paid for.

        Raises:
            FunctionChanged: a value; or anything, with on_change="error".
        """
        records.set_code(self.code.digest)
        self._accept_unsealed(records)
        if not self._begun:
            self._begun = True
            self._begin_version(records)
        if self._on_change == "keep" and not log.isEnabledFor(logging.INFO):
            return
        drift = drift_of(records, self.code)
        if drift is None:
            return
        self.take(drift)
        if (refusal := self.refusal(records, drift)) is not None:
            raise refusal
        if self._is_news(records, "drift"):
            level = logging.INFO if self._on_change == "keep" else logging.WARNING
            log.log(level, "%s", self.told(records, drift))

    def stands_for(self, records: VersionView, code: str) -> bool:
        """Whether what code of this fingerprint returned counts for the function as it is.

        That is: it is the same, was accepted, or the user said by `version=` or on_change="keep" that it stays.
        """
        if self._label is not None or self._on_change == "keep" or code in (self.code.digest, self.code.unsealed):
            return True
        return (code, self.code.digest) in records.checkpoint.accepted

    def _accept_unsealed(self, records: VersionView) -> None:
        """What an earlier version of this library noted by a plain digest of the same secrets counts everywhere."""
        checkpoint, old, new = records.checkpoint, self.code.unsealed, self.code.digest
        if (
            old == new
            or old not in checkpoint.results.codes.get(records.version, ())
            or (old, new) in checkpoint.accepted
        ):
            return
        with suppress(CheckpointLocked, StoreError):  # it counts here all the same
            checkpoint.accept_codes([old], new)

    def _is_news(self, records: VersionView, what: str) -> bool:
        """Whether this process has not told it yet."""
        told = (f"{what} {records.version}", self.code.digest)
        is_news = told not in records.store.meta.told
        records.store.meta.told.add(told)
        return is_news

    def _begin_version(self, records: VersionView) -> None:
        if (told := self.mislabelled(records)) and self._is_news(records, "label"):
            log.warning("checkpoint %r: %s", records.name, told)
        takeover = self.takeover(records)
        if takeover is None:
            return
        if takeover.counts:
            records.checkpoint.accept_version("", records.version)
            log.info("checkpoint %r: %s", records.name, self.taken_over(takeover))
        elif self._is_news(records, "first version"):
            log.warning("checkpoint %r: %s", records.name, self.left_aside(records, takeover))

    def takeover(self, records: VersionView) -> Takeover | None:
        """As `takeover_of`; the version that an instance has by itself takes nothing over: it may be another's."""
        takeover = takeover_of(records, self.code)
        return takeover if takeover is None or self._label is not None else Takeover(takeover.count, counts=False)

    def mislabelled(self, records: VersionView) -> str:
        """What the version says that the function does not do; "" where nothing is known of it."""
        if self._label is None:
            return ""
        checkpoint = records.checkpoint
        known = checkpoint.versions
        mine = {self.code.digest, self.code.unsealed}
        others = [
            known[version]
            for version, codes in checkpoint.results.codes.items()
            if version in known and version != records.version and not mine.isdisjoint(codes)
        ]
        told = mislabelled(self.code, self._label, [*([] if self._base is None else [self._base]), *others])
        if not told:
            return ""
        return (
            f"{told}: version= only names what results depend on, and changes nothing that {self.code.name} reads, so "
            "that the results of both versions will be alike. Set the value itself where the function reads it, and "
            "write version= of it"
        )

    def taken_over(self, takeover: Takeover) -> str:
        """That results of no version count for the first one."""
        return (
            f"{plural(takeover.count, 'result')} of no version count for version {quoted(self._label, 60)}, since it "
            f"names what {self.code.name} reads, and that is what it was"
        )

    def left_aside(self, records: VersionView, takeover: Takeover) -> str:
        """That results of no version do not count for the first one, and how to take them."""
        label = records.checkpoint.versions.get(records.version, self._label)
        return (
            f"{plural(takeover.count, 'result')} of no version {'is' if takeover.count == 1 else 'are'} left aside, "
            f"since {self.code.name} has a version now, {quoted(label, 60)}: its items are computed anew. If the "
            f"old results are of this version, stop and write:\n    {self._short}.accept(version=None)"
        )

    def take(self, drift: Drift) -> None:
        """What has changed is known."""
        if self._on_change == "recompute" and self._label is None:
            self.stale = drift.stale

    @property
    def _short(self) -> str:
        name = self.code.name.rpartition(".")[2]
        return name if name.isidentifier() else "f"

    def told(self, records: VersionView, drift: Drift) -> str:
        """What has changed, what becomes of the results, and how to decide."""
        parts = []
        if drift.stale:
            within = "" if self._label is None else f" within version {quoted(self._label, 60)}"
            one = len(drift.stale) == 1
            parts.append(
                f"{self.code.name} changed{within} ({drift}); {plural(len(drift.stale), 'result')} "
                f"precede{'s' if one else ''} it: {self._fate(drift)}"
            )
        if drift.unknown:
            one = len(drift.unknown) == 1
            parts.append(
                f"{plural(len(drift.unknown), 'result')} {'was' if one else 'were'} computed by code whose fingerprint "
                f"is of another kind, so that whether {self.code.name} has changed since cannot be told: "
                f"{'it is' if one else 'they are'} kept"
            )
        text = f"checkpoint {records.name!r}: {'. '.join(parts)}"
        if self._on_change in ("keep", "recompute") and not drift.unknown:
            return text
        return f"{text}. This is said in each run until you decide:\n{self.choices(records, drift)}"

    def _fate(self, drift: Drift) -> str:
        if self._label is not None:
            return "they are kept, since the version is the same"
        return "those of these items are computed anew" if self._on_change == "recompute" else "they are kept"

    def choices(self, records: VersionView, drift: Drift) -> str:
        """The lines to copy, one for each way to decide."""
        directory = str(records.checkpoint.directory)
        command = f"{command_line('accept', records.name, directory)} {drift.question}"
        rows = [(command, f"the old results are still right; in Python: {self._short}.accept()")]
        if self._label is None:
            if drift.stale:
                rows.append(('on_change="recompute"', "in the decorator: the old results are computed again"))
            else:  # of code that nobody can compare, none is computed anew because of an option set long ago
                rows.append(
                    (f"{self._short}.clear(list({self._short}.results))", "forget them: they are computed again")
                )
            version = self._version_to_write(records, drift)
            rows.append((f"version={version}", "in the decorator: keeps the results of both apart"))
        else:
            version = _unused_label(records)
            rows.append((f"version={version}", "another version: its results are computed, and the old ones stay"))
        ignorable = [name for name in drift.names if not name.startswith("depends[")]
        if ignorable:
            ignored = ignorable[0] if len(ignorable) == 1 else tuple(ignorable)
            on = "it" if len(ignorable) == 1 else "them"
            rows.append((f"ignore={ignored!r}", f"in the decorator: results do not depend on {on}"))
        width = max(len(text) for text, _ in rows[1:])
        return "\n".join([f"    {text:<{width}}  # {what}" for text, what in rows])

    def _version_to_write(self, records: VersionView, drift: Drift) -> str:
        """The expression of a version that tells apart what differs, as the user may write it beside the function.

        A secret is never a part of it: results do not depend on which one it is, and a version is a name.
        """
        told = [name for name in drift.names if f"{name}: {SECRET} that changed" not in drift.values]
        parts = list(dict.fromkeys(name if self.code.is_in_reach(name) else _unused_label(records) for name in told))
        return f"[{', '.join(parts)}]" if len(parts) > 1 else (*parts, _unused_label(records))[0]

    def refusal(self, records: VersionView, drift: Drift) -> FunctionChanged | None:
        """The error that ends the pass before it begins, or None."""
        if self._label is not None or not drift.stale:
            return None
        count, code = len(drift.stale), self.code.name
        computed = f"{plural(count, 'result')} {'was' if count == 1 else 'were'} computed"
        if drift.values and self._on_change in (None, "error"):
            what = f"{code} reads other values than it did when {computed}: {drift}"
        elif self._on_change == "error":
            what = f"{code} changed since {computed}: {drift}"
        else:
            return None
        message = f"checkpoint {records.name!r}: {what}. Nothing was run; decide:\n{self.choices(records, drift)}"
        return FunctionChanged(message, changes=(*drift.values, *drift.code), count=count)

    def note(self, records: VersionView) -> None:
        """Records of this code may follow: the first one in each journal says what it stands for."""
        if not self._is_noted:
            self._is_noted = True
            records.store.begin_computing(records.version, self.code.digest, self.code.detail())

    def end(self, records: VersionView) -> None:
        """What is saved from here on is not of the pass."""
        records.set_code("")
        if self._is_noted:
            records.store.end_computing(records.version, self.code.digest)


def _unused_label(records: VersionView) -> str:
    """A text, as it is written, that no version of the checkpoint has."""
    taken = [str(label) for label in records.checkpoint.versions.values()]
    return f'"{next(number for number in itertools.count(2) if str(number) not in taken)}"'


def summarize(told: list[str], limit: int = _SHOWN) -> str:
    """The first of a list, and how many more there are."""
    shown = "; ".join(told[:limit])
    return shown if len(told) <= limit else f"{shown}; and {len(told) - limit} more"
