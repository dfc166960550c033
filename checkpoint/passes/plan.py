"""What a pass would do, without doing it: counts, what has changed since, and how long it takes.

The promise: nothing is run and nothing is written; and `map` of the same items then makes as many calls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from checkpoint.catalog.view import VersionView
from checkpoint.errors import (
    CheckpointError,
    DamagedRecord,
    InputChanged,
    InvalidOption,
    KeyChanged,
    StoreError,
    UnencodableValue,
    plural,
    quote,
    sayable,
)
from checkpoint.execution.policies import Rate
from checkpoint.passes.budget import costs_on_record, range_text, spread
from checkpoint.passes.earlier import Earlier
from checkpoint.passes.input import Input
from checkpoint.passes.settings import PassSettings
from checkpoint.storage.source import RecordSource
from checkpoint.storage.spending import cost_text, sum_of
from checkpoint.values.keys import Key, KeyFunction, item_digest
from checkpoint.words import about

if TYPE_CHECKING:
    from checkpoint.provenance.drift import Drift, Lineage

__all__ = ["Plan", "html_table", "make_plan"]

_SAMPLE = 500  # recorded durations that are looked at
_DRAWS = 200
_VERSIONS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What a `map` of some items would do; ``print`` it.

    Every item is one of `done`, `failed`, `given_up`, `paid`, `aside`, `new`, `redone` and `duplicates`.

    Attributes:
        name: the checkpoint's.
        total: how many items there are.
        done: have a result, which stays.
        failed: failed earlier and would be tried again.
        causes: how many of these by type of error, the most frequent first.
        given_up: failed for good (`GiveUp`): they stand as failed and would not be run.
        paid: failed earlier with a value that `validate` accepts as it is today: they would be done without a call.
        aside: have a value that could not be stored (`f.unsaved`): they stand as failed and would not be run.
        new: have never been run under this version.
        redone: have a result that would be computed anew, by on_change="recompute".
        duplicates: are equal to an earlier item and share its result.
        changed: of `done` and `redone`, those whose item is another one than the result was computed from.
        stale: of `done` and `redone`, those that were computed before the function changed.
        changes: how it changed since.
        unknown: of `done` and `redone`, those whose fingerprint is of another kind: what has changed cannot be told.
        accepted: of `done` and `redone`, those that count since somebody accepted them.
        notes: what else there is to know of versions.
        choices: the lines to copy, one for each way to decide; "" where there is nothing to decide.
        versions: of `failed` and `new`, how many have a result under another version, by version.
        calls: how many items would be run.
        workers: how many calls at once the times are for.
        seconds: how long that is expected to take, from the durations on record; None where there are none.
        at_least, at_most: the range in which 8 of 10 draws of recorded durations are. Retries and pauses are left out.
        spent: what the checkpoint has cost until now, in all; None where nothing was noted.
        cost: what the calls are expected to cost, from the costs on record; None where there are none.
        cost_at_least, cost_at_most: the range in which 8 of 10 draws of recorded costs are.
        refusal: the error that `map` would raise before it runs anything, or None.

    Example:
        >>> parse = checkpointed("numbers")(lambda text: float(text))
        >>> _ = parse.map(["1", "two"], return_exceptions=True, progress=False)
        >>> plan = parse.plan(["1", "two", "3"])
        >>> print(str(plan).splitlines()[0])
        1 done · 1 failed · 1 new
        >>> plan.causes
        {'ValueError': 1}
    """

    name: str
    total: int
    done: int = 0
    failed: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    aside: int = 0
    new: int = 0
    redone: int = 0
    duplicates: int = 0
    changed: int = 0
    stale: int = 0
    changes: tuple[str, ...] = ()
    unknown: int = 0
    accepted: int = 0
    notes: tuple[str, ...] = ()
    choices: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    workers: int = 1
    seconds: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    refusal: CheckpointError | None = None
    paid: int = 0
    given_up: int = 0
    spent: float | None = None
    cost: float | None = None
    cost_at_least: float | None = None
    cost_at_most: float | None = None

    @property
    def calls(self) -> int:
        """How many items would be run."""
        return self.failed + self.new + self.redone

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        rows = [f"  {name:<10}{text}" for name, text in self._rows()]
        return sayable("\n".join([self._counts(), *rows, *([f"  decide\n{self.choices}"] if self.choices else [])]))

    def _counts(self) -> str:
        parts = [f"{self.done:,} done", f"{self.failed:,} failed", f"{self.new:,} new"]
        more = [
            (self.redone, f"{self.redone:,} computed anew"),
            (self.given_up, f"{self.given_up:,} given up"),
            (self.paid, f"{self.paid:,} paid for and accepted"),
            (self.aside, f"{self.aside:,} kept aside"),
            (self.duplicates, plural(self.duplicates, "duplicate")),
            (self.changed, f"{plural(self.changed, 'item')} changed"),
            (self.stale, f"code changed since {plural(self.stale, 'result')}"),
            (self.unknown, f"{plural(self.unknown, 'result')} by code that cannot be compared"),
            (self.accepted, f"{self.accepted:,} accepted"),
        ]
        return " · ".join(parts + [text for count, text in more if count])

    def _rows(self) -> list[tuple[str, str]]:
        """(what, text) of the lines below the counts."""
        rows = [("to run", f"{self.calls:,} of {plural(self.total, 'item')}{self._time()}")]
        if self.spent is not None:
            rows.append(("cost", f"{self._cost()}{cost_text(self.spent)} spent until now"))
        if self.causes:
            causes = [f"{count:,} {name}" for name, count in list(self.causes.items())[:4]]
            rows.append(("failed", ", ".join(causes) + (", …" if len(self.causes) > 4 else "")))
        if self.changes:
            rows.append(("changed", "; ".join(self.changes[:3]) + ("; …" if len(self.changes) > 3 else "")))
        if self.versions:
            held = [f"{count:,} under {version}" for version, count in list(self.versions.items())[:3]]
            rows.append(("elsewhere", ", ".join(held) + (", …" if len(self.versions) > 3 else "")))
        rows += [("version", note) for note in self.notes]
        if self.refusal is not None:
            told = str(self.refusal)
            if self.choices:
                told = told.removesuffix(self.choices).rstrip("\n")  # they stand below
            rows.append(("refused", told))
        return rows

    def _time(self) -> str:
        if self.seconds is None or self.at_least is None or self.at_most is None or not self.calls:
            return ""
        workers = plural(self.workers, "worker")
        if self.at_most < 0.001:
            return f", in less than 1 ms with {workers}"
        return f", in about {about(self.seconds)} ({about(self.at_least)} to {about(self.at_most)}) with {workers}"

    def _cost(self) -> str:
        if self.cost_at_least is None or self.cost_at_most is None or not self.calls:
            return ""
        return f"{range_text((self.cost_at_least, self.cost_at_most), self.calls)}; "

    def _repr_html_(self) -> str:
        return html_table(f"{self.name}: {self._counts()}", self._rows())


def html_table(caption: str, rows: Iterable[tuple[str, str]]) -> str:
    """A table of (what, text) for notebooks."""
    from html import escape

    body = "".join(
        f'<tr><th style="text-align:left">{escape(name)}</th><td style="text-align:left">{escape(text)}</td></tr>'
        for name, text in rows
    )
    return f'<table><caption style="white-space:nowrap">{escape(caption)}</caption>{body}</table>'


def make_plan(
    records: VersionView,
    items: Iterable[Any],
    key_of: KeyFunction,
    *,
    digest_of: Callable[[Any], int] = item_digest,
    lineage: Lineage | None,
    on_change: Any,
    workers: int | None,
    rates: Sequence[Rate] = (),
    judge: Callable[[Any], None] | None = None,
) -> Plan:
    """The plan of a pass.

    Args:
        records: of the version that is current.
        items: all of them, in order.
        key_of: what names an item.
        digest_of: the digest of what its result depends on.
        lineage: what the pass does where the function has changed.
        on_change: the decorator's.
        workers: how many calls at once.
        rates: the decorator's.
        judge: as in `PassSettings`.

    Raises:
        InvalidKey, DuplicateKey, InvalidOption: as the pass would.
    """
    _refuse_one_shot(items)
    records.open()
    code = _Code(records) if lineage is None else _code_of(records, lineage, on_change)
    records = code.records
    settings = PassSettings(key_of, digest_of, on_change, judge=judge)
    keyed = Input(items, settings, records.shard)
    earlier = Earlier(records, keyed, settings, lineage)
    refusal = _refusal_of(records, earlier, code)
    return _planned(code, earlier, len(keyed.keys), refusal, workers or 1, rates)


def _planned(
    code: _Code,
    earlier: Earlier,
    items: int,
    refusal: tuple[CheckpointError | None, str],
    workers: int,
    rates: Sequence[Rate],
) -> Plan:
    """The plan in numbers: what becomes of each key, and how long the calls take."""
    records, drift = code.records, code.drift
    fates: dict[str, list[Key]] = {
        "done": [],
        "aside": [],
        "redone": [],
        "given_up": [],
        "paid": [],
        "failed": [],
        "new": [],
    }
    for key, fate in earlier.foresee():
        fates[fate].append(key)
    there = [*fates["done"], *fates["redone"]]
    counts = {fate: len(keys) for fate, keys in fates.items()}
    calls = counts["failed"] + counts["new"] + counts["redone"]
    seconds = _expected(_durations(records), calls, workers, rates)
    spent = records.checkpoint.spent_if_known()
    costs = costs_on_record(records) if spent is not None else []
    span = spread(costs, calls)
    return Plan(
        records.name,
        items,
        causes=_causes(records, fates["failed"]),
        duplicates=items - sum(counts.values()),
        changed=earlier.changes.count,
        stale=0 if drift is None else _count_in(records, drift.stale, there),
        changes=() if drift is None else (*drift.values, *drift.code),
        unknown=0 if drift is None else _count_in(records, drift.unknown, there),
        accepted=_count_in(records, code.accepted, there),
        notes=code.notes,
        choices=refusal[1],
        versions=_elsewhere(records, [*fates["failed"], *fates["new"]]),
        workers=workers,
        seconds=seconds and seconds[1],
        at_least=seconds and seconds[0],
        at_most=seconds and seconds[2],
        refusal=refusal[0],
        spent=None if spent is None else sum_of(spent),
        cost=fmean(costs) * calls if costs else None,
        cost_at_least=span and span[0],
        cost_at_most=span and span[1],
        **counts,
    )


class _Code(NamedTuple):
    """How the function bears on a plan: the version whose results count, what has changed, and what is said of it."""

    records: VersionView
    drift: Drift | None = None
    accepted: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()
    refusal: CheckpointError | None = None
    choices: str = ""


def _code_of(records: VersionView, lineage: Lineage, on_change: Any) -> _Code:
    from checkpoint.catalog.decisions import accepted_in  # these are large
    from checkpoint.provenance.drift import drift_of

    notes = list(filter(None, [lineage.mislabelled(records)]))
    if (takeover := lineage.takeover(records)) is not None:
        notes.append(lineage.taken_over(takeover) if takeover.counts else lineage.left_aside(records, takeover))
        if takeover.counts:
            records = copy(records)
            records.version = ""  # whose results `map` takes before it looks
    drift = drift_of(records, lineage.code)
    accepted = accepted_in(records, lineage.code.digest)
    refusal, choices = None, ""
    if drift is not None:
        lineage.take(drift)
        refusal = lineage.refusal(records, drift)
        choices = "" if on_change in ("keep", "recompute") else lineage.choices(records, drift)
    return _Code(records, drift, accepted, tuple(notes), refusal, choices)


def _refusal_of(records: VersionView, earlier: Earlier, code: _Code) -> tuple[CheckpointError | None, str]:
    """The error that the pass would raise, or None; and what to do where the function changed."""
    refusal, choices = code.refusal, code.choices
    try:
        records.refuse_secrets()
    except UnencodableValue as error:
        refusal = refusal or error
    unfit = earlier.find_unfit(only_look=True)
    if unfit is not None:
        refusal, choices = unfit.error, ""
    try:
        earlier.compare()
        earlier.refuse()
    except (InputChanged, KeyChanged) as error:
        refusal = refusal or error
    return refusal, choices


def _refuse_one_shot(items: Any) -> None:
    try:
        once = iter(items) is items
    except TypeError:
        return  # a pass tells
    if once:
        raise InvalidOption(
            f"items is {quote(items)}, which can be read only once: plan would leave nothing for map. Make a list "
            "first: items = list(items); f.plan(items)"
        )


def _causes(records: VersionView, keys: list[Key]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key in keys:
        try:
            found = records.checkpoint.errors.read(records.version, key)
        except DamagedRecord:
            found = None
        counts[(found[2].type if found is not None else None) or "error"] += 1
    return dict(counts.most_common())


def _count_in(records: VersionView, offsets: frozenset[int], keys: list[Key]) -> int:
    """How many of the keys have their record at one of these offsets."""
    if not offsets:
        return 0
    places, _ = records.checkpoint.results.find_all(records.version, keys)
    return sum(offset in offsets for offset in places)


def _elsewhere(records: VersionView, keys: list[Key]) -> dict[str, int]:
    """How many of the keys have a result under each other version; of the twenty versions that have most."""
    checkpoint = records.checkpoint
    others = [version for version in checkpoint.results.versions if version != records.version]
    if not keys or not others:
        return {}
    others.sort(key=checkpoint.results.count, reverse=True)
    counts = {
        version: sum(checkpoint.results.find(version, key) is not None for key in keys)
        for version in others[:_VERSIONS]
    }
    return {
        "no version"
        if not version
        else quote(checkpoint.versions[version], 60)
        if version in checkpoint.versions
        else version: n
        for version, n in sorted(counts.items(), key=lambda pair: -pair[1])
        if n
    }


# --- time ------------------------------------------------------------------------------------------------------------


def _durations(records: VersionView) -> list[float]:
    """How long calls took: a sample of the results, or of the failures, or of the version that has most results."""
    results, errors = records.checkpoint.results, records.checkpoint.errors
    for shelf in (results, errors):
        if found := _durations_on(shelf, records.version):
            return found
    others = sorted(results.versions - {records.version}, key=results.count, reverse=True)
    return _durations_on(results, others[0]) if others else []


def _durations_on(shelf: RecordSource, version: str) -> list[float]:
    reader, offsets = shelf.sample(version, _SAMPLE)
    found = []
    for offset in offsets:
        try:
            elapsed = reader.read(offset).elapsed if reader is not None else None
        except (DamagedRecord, StoreError):
            continue
        if elapsed is not None and 0 <= elapsed < float("inf"):
            found.append(elapsed)
    return found


def _expected(
    sample: list[float], calls: int, workers: int, rates: Sequence[Rate]
) -> tuple[float, float, float] | None:
    """(low, expected, high) seconds of the calls.

    Each draw takes as many recorded durations at random as there are calls, or as there are on record, and scales them
    up: few calls spread as single ones do, many as their mean is known.
    """
    if not sample:
        return None
    if not calls:
        return (0.0, 0.0, 0.0)
    paced = max([(calls - rate.limit) / rate.limit * rate.per for rate in rates if rate.cost is None], default=0.0)
    random, size = Random(calls), min(calls, len(sample))
    totals = []
    for _ in range(_DRAWS):
        drawn = random.choices(sample, k=size)
        totals.append(max(sum(drawn) * calls / size / workers, max(drawn), paced))
    totals.sort()
    expected = max(fmean(sample) * calls / workers, fmean(totals), paced)
    low, high = totals[_DRAWS // 10], totals[-_DRAWS // 10]
    return (min(low, expected), expected, max(high, expected))
