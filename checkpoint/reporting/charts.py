"""Charts as SVG, whose shapes stretch with the page and whose text does not; and figures in words."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import timedelta
from html import escape

from checkpoint.reporting.history import EPOCH, FIRST, LAST, RunHistory, Stretch, Timeline
from checkpoint.storage.spending import cost_text

__all__ = [
    "Scale",
    "counts_text",
    "curve_of",
    "histogram_of",
    "paid_of",
    "percent_text",
    "plot_of",
    "quantiles",
    "rate_text",
    "shown",
    "span_text",
    "stamp",
    "throughput_of",
]


def counts_text(story: RunHistory) -> str:
    """How many items are done, have failed and are left."""
    left = max((story.total or 0) - story.known, 0)
    return f"{story.done:,} done, {story.failed:,} failed" + (f", {left:,} left" if left else "")


# --- charts: SVG whose shapes stretch with the page and whose text does not -----------------------------------------


#
# x is in % of the width, y in pixels. Paths have no percentages: they stand in an inner drawing 1,000 units wide.


def plot_of(height: int, label: str, parts: Iterable[str]) -> str:
    """An SVG of its parts."""
    return (
        f'<div class="plot"><svg height="{height}" role="img" aria-label="{shown(label)}">'
        f"{''.join(parts)}</svg></div>\n"
    )


def _rules(step: float, top: float, height: int, above: int = 0) -> Iterator[str]:
    """Horizontal lines at round values, with their numbers."""
    for number in range(int(top / step + 1e-9) + 1):
        y = above + height - height * number * step / top
        kind = ' class="axis"' if number == 0 else ""
        yield f'<line x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"{kind}/>'
        yield f'<text x="-8" y="{y + 4:.1f}" text-anchor="end">{_short(number * step)}</text>'


def _labels(ticks: Iterable[tuple[float, str]], y: float) -> Iterator[str]:
    """Labels under an axis, of (x, text), those that fit; some of them only where there is room."""
    last, narrow = -100.0, -100.0
    for x, text in ticks:
        if x - last < 8 or x > 99:
            continue
        kind = ' class="wide"' if x - narrow < 22 or x > 94 else ""
        last, narrow = x, narrow if kind else x
        anchor = "start" if x < 2 else "middle"
        yield f'<line x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 14}" y2="{y - 10}" class="axis"/>'
        lines = "".join(
            [f'<tspan x="{x:.2f}%" dy="{14 * row}">{part}</tspan>' for row, part in enumerate(text.split("\n"))]
        )
        yield f'<text x="{x:.2f}%" y="{y + 3}" text-anchor="{anchor}"{kind}>{lines}</text>'


def _round_step(top: float, most: int, least: float = 0.0) -> float:
    """1, 2 or 5 times a power of ten, so that at most `most` of it make `top`."""
    raw = max(top / most, least, 1e-12)
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def curve_of(story: RunHistory, timeline: Timeline, bars: list[Stretch]) -> Iterator[str]:
    """The SVG of how many items were done when."""
    above, height = 8, 230
    most = len(story.moments)
    top = 1.06 * max(most, story.total or 0)
    yield from _rules(_round_step(top, 5, 1), top, height, above)
    lower, upper = [(0.0, 0)], [(0.0, 0)]
    for start, end, left, right in timeline.bins(240):
        for moment, x in ((start, left), (end, right)):
            done, failed = timeline.count(moment)
            lower.append((x, done))
            upper.append((x, done + failed))
    path, over = ([f"{10 * x:.1f},{height - height * part / top:.2f}" for x, part in line] for line in (lower, upper))
    yield (
        f'<svg y="{above}" width="100%" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none">'
        f'<path class="area" d="M{" ".join(path)} 1000,{height} 0,{height}Z"/>'
        f'<path class="area bad" d="M{" ".join(over)} {" ".join(reversed(path))}Z"/>'
        f'<path class="curve" d="M{" ".join(path)}"/></svg>'
    )
    yield from _bands(timeline, above, height)
    if story.total is not None and story.total > most:
        y = above + height - height * story.total / top
        yield f'<line class="goal" x1="0" x2="100%" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="gap" x="0.6%" y="{y + 15:.1f}">all {story.total:,} items of the last pass</text>'
    yield from _gaps(timeline, above, height)
    for start, end, left, right in bars:
        done, failed = timeline.count(end)
        told = f"{_clock(end, end - start)}: {done:,} done" + (f", {failed:,} failed" if failed else "")
        yield (
            f'<rect class="hit" x="{left:.2f}%" y="{above}" width="{right - left:.2f}%" height="{height}">'
            f"<title>{told}</title></rect>"
        )
    yield from _labels(_time_ticks(timeline), above + height + 14)


def paid_of(timeline: Timeline, bars: list[Stretch]) -> Iterator[str]:
    """The SVG of what the records had cost when; nothing where they cost nothing."""
    most = timeline.paid(timeline.end)
    if not most > 0:
        return
    above, height, top = 8, 90, 1.08 * most
    parts = [*_rules(_round_step(top, 4), top, height, above)]
    line = [(0.0, 0.0)]
    for start, end, left, right in timeline.bins(240):
        line += [(left, timeline.paid(start)), (right, timeline.paid(end))]
    path = " ".join([f"{10 * x:.1f},{height - height * cost / top:.2f}" for x, cost in line])
    parts.append(
        f'<svg y="{above}" width="100%" height="{height}" viewBox="0 0 1000 {height}" preserveAspectRatio="none">'
        f'<path class="area" d="M{path} 1000,{height} 0,{height}Z"/><path class="curve" d="M{path}"/></svg>'
    )
    for start, end, left, right in bars:
        told = f"{_clock(end, end - start)}: {cost_text(timeline.paid(end))}"
        parts.append(
            f'<rect class="hit" x="{left:.2f}%" y="{above}" width="{right - left:.2f}%" height="{height}">'
            f"<title>{told}</title></rect>"
        )
    parts += _labels(_time_ticks(timeline), above + height + 14)
    yield "<h3>Cost</h3>\n"
    yield plot_of(134, f"Cost over time, {cost_text(most)} until now", parts)


def _bands(timeline: Timeline, above: int, height: int) -> Iterator[str]:
    if timeline.pauses:
        yield (
            '<defs><pattern id="hatch" class="hatch" width="6" height="6" patternUnits="userSpaceOnUse">'
            '<path d="M-1,7 7,-1M-1,1 1,-1M5,7 7,5"/></pattern></defs>'
        )
    for pause in timeline.pauses:
        left, right = timeline.x(pause.start), timeline.x(pause.end)
        shape = f'x="{left:.2f}%" y="{above}" width="{max(right - left, 0.15):.2f}%" height="{height}"'
        yield f'<rect class="blank" {shape}/><rect fill="url(#hatch)" opacity=".5" {shape}/>'


def _gaps(timeline: Timeline, above: int, height: int) -> Iterator[str]:
    """How long each pause was, written upwards in its band, where the one before leaves room."""
    last = -10.0
    for pause in timeline.pauses:
        left, right = timeline.x(pause.start), timeline.x(pause.end)
        middle = (left + right) / 2
        what = "paused between sessions" if pause.restarts else "nothing ran"
        length = span_text(pause.end - pause.start)
        if middle - last >= 2.2 and pause.end > pause.start:
            last = middle
            yield (
                f'<svg x="{middle:.2f}%" y="{above + height / 2:.0f}" width="1" height="1" overflow="visible">'
                f'<text class="gap" transform="rotate(-90)" y="4" text-anchor="middle">{length}</text></svg>'
            )
        yield (
            f'<rect class="hit" x="{left:.2f}%" y="{above}" width="{max(right - left, 0.8):.2f}%" height="{height}">'
            f"<title>{what} for {length}, from {_clock(pause.start, 1)} to {_clock(pause.end, 1)}</title></rect>"
        )


def throughput_of(timeline: Timeline, bars: list[Stretch]) -> Iterator[str]:
    """The SVG of how many items were done in each stretch of time."""
    counted, before = [], (0, 0)
    for bar in bars:
        after = timeline.count(bar.end)
        done, failed = after[0] - before[0], after[1] - before[1]
        before = after
        if bar.end > bar.start:
            counted.append((bar, done, failed, (done + failed) / (bar.end - bar.start)))
    fastest = max([rate for *_, rate in counted], default=0.0)
    if not fastest:
        return
    factor, unit = _rate_unit(fastest)
    above, height, top = 8, 90, fastest * factor * 1.08
    parts = [*_rules(_round_step(top, 4), top, height, above)]
    for (start, end, left, right), done, failed, rate in counted:
        scale = height * factor / top / (end - start)
        y = float(above + height)
        told = f"{_clock(start, end - start)} to {_clock(end, end - start)}: {rate_text(rate)}"
        told += f" ({done:,} done, {failed:,} failed)" if failed else f" ({done:,} done)"
        place = f'x="{left + 0.04:.2f}%" width="{max(right - left - 0.16, 0.1):.2f}%"'
        parts.append(f"<g><title>{told}</title>")
        for part, kind in ((done, "bar"), (failed, "bar bad")):
            y -= part * scale
            if part:
                parts.append(f'<rect class="{kind}" {place} y="{y:.2f}" height="{part * scale:.2f}"/>')
        parts.append("</g>")
    parts += _labels(_time_ticks(timeline), above + height + 14)
    yield f"<h3>Throughput, {unit}</h3>\n"
    yield plot_of(134, f"Throughput over time, at most {rate_text(fastest)}", parts)


_STEPS: tuple[float, ...] = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 10800, 21600, 43200)
_DAY = 86400


def _time_ticks(timeline: Timeline) -> Iterator[tuple[float, str]]:
    """Round times of each stretch, the day under the first of each day."""
    worked = sum(end - start for start, end, _, _ in timeline.stretches)
    days = (_DAY * factor for factor in (1, 2, 7, 14, 30, 90, 180, 365, 3650, 36500))
    step = next((step for step in (*_STEPS, *days) if worked / step <= 8), 365000 * _DAY)
    day = ""
    for start, end, left, right in timeline.stretches:
        first = math.ceil(start / step) * step
        moments = [first + number * step for number in range(max(int((end - first) / step) + 1, 0))]
        if not moments or (right - left) < 9:
            moments = [start]
        for moment in moments:
            date, _, hour = stamp(moment, seconds=step < 60).rpartition(", ")
            date = date if step >= 30 * _DAY else date.rpartition(" ")[0]
            told = date if step >= _DAY else hour + (f"\n{date}" if date != day else "")
            if step < _DAY or date != day:
                yield timeline.x(moment), told
            day = date


class Scale:
    """Where a duration is, in % of the width; in a logarithmic scale what is too short for it stands at its left."""

    def __init__(self, low: float, high: float, *, log: bool) -> None:
        self.log = log
        if log:
            low = max(low, high / 1e9)
            self.low, self.high = math.floor(math.log10(low) * 5) / 5, math.ceil(math.log10(high) * 5 + 1e-9) / 5
        else:
            step = _round_step(high, 20)
            self.low, self.high = 0.0, step * math.ceil(high / step)

    def x(self, value: float) -> float:
        """Return the position in % of the width."""
        place = (math.log10(value) if value > 0 else -math.inf) if self.log else value
        return min(max(100 * (place - self.low) / (self.high - self.low), 0.0), 100.0)

    def value(self, x: float) -> float:
        """Return the duration at a position: the inverse of `x`."""
        place = self.low + x * (self.high - self.low) / 100
        return 10.0**place if self.log else place

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Round durations."""
        if not self.log:
            step = _round_step(self.high, 6)
            values = [number * step for number in range(int(self.high / step + 1e-9) + 1)]
        else:
            factors = (1,) if self.high - self.low > 4 else (1, 3) if self.high - self.low > 2.5 else (1, 2, 5)
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            values = [factor * 10.0**power for power in powers for factor in factors]
            values = [value for value in values if self.low - 1e-9 <= math.log10(value) <= self.high + 1e-9]
        yield from ((self.x(value), _tick(value)) for value in values)


def histogram_of(durations: array[float], scale: Scale, marks: dict[str, float | None]) -> Iterator[str]:
    """The SVG of how many calls took how long."""
    above, height = 50, 140
    bins = min(max(int(math.sqrt(len(durations)) * 2), 8), 48)
    counts = Counter(min(int(scale.x(value) * bins / 100), bins - 1) for value in durations)
    top = max(counts.values()) * 1.05
    yield from _rules(_round_step(top, 4, 1), top, height, above)
    width = 100 / bins
    for place, count in sorted(counts.items()):
        share = height * count / top
        told = f"{span_text(scale.value(place * width))} to {span_text(scale.value((place + 1) * width))}: {count:,}"
        yield (
            f'<rect class="bar" x="{place * width + 0.1:.2f}%" width="{width - 0.2:.2f}%" '
            f'y="{above + height - share:.2f}" height="{share:.2f}"><title>{told}</title></rect>'
        )
    for row, (name, value) in enumerate(marks.items()):
        if value is not None:
            x, y = scale.x(value), 12 + 15 * row
            side = ("end", -6) if x > 60 else ("start", 6)
            yield f'<line class="mark" x1="{x:.2f}%" x2="{x:.2f}%" y1="{y - 9}" y2="{above + height}"/>'
            yield (
                f'<text class="strong" x="{x:.2f}%" dx="{side[1]}" y="{y}" text-anchor="{side[0]}">'
                f"{name} {span_text(value)}</text>"
            )
    yield from _labels(scale.ticks(), above + height + 14)


# --- words ----------------------------------------------------------------------------------------------------------


_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]"
)


def shown(text: str) -> str:
    """Return any text as HTML, with invisible and direction-changing characters spelled out."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    return escape(_HIDDEN.sub(_spelled, text))


def _spelled(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def quantiles(values: array[float], wanted: tuple[float, ...]) -> list[float | None]:
    """Return exact quantiles: the least value that the given share of all values does not exceed."""
    if not values:
        return [None] * len(wanted)
    ordered = sorted(values)
    return [ordered[max(math.ceil(part * len(ordered)) - 1, 0)] for part in wanted]


def percent_text(part: int, whole: int) -> str:
    """A share in percent."""
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


def _three(value: float) -> str:
    """Return a number with three significant digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(value: float) -> str:
    """A number on an axis."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.10g}"


def _tick(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * 0.9999:
            return f"{seconds / factor:,.6g} {unit}"
    return f"{seconds * 1e9:.3g} ns" if seconds else "0"


def span_text(seconds: float) -> str:
    """A length of time in at most two units."""
    if seconds < 59.95:
        for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
            if seconds >= factor * 0.9995:
                return f"{_three(seconds / factor)} {unit}"
        return "0 s" if seconds <= 0 else "< 1 µs"
    for size, unit, part, below in ((_DAY, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        whole, rest = divmod(round(seconds / part), size // part)
        if whole:
            return f"{whole:,} {unit}" + (f" {rest} {below}" if rest else "")
    return f"{seconds:.0f} s"


def _rate_unit(rate: float) -> tuple[float, str]:
    return (1.0, "items/s") if rate >= 1 else (60.0, "items/min") if rate * 60 >= 1 else (3600.0, "items/h")


def rate_text(rate: float) -> str:
    """A rate with its unit."""
    factor, unit = _rate_unit(rate)
    return f"{_three(rate * factor)} {unit}"


def stamp(moment: float, *, seconds: bool = False) -> str:
    """A moment for people: "3 May 2026, 09:12"."""
    if moment != moment:
        return "–"
    told = EPOCH + timedelta(seconds=min(max(moment, FIRST), LAST))
    return (
        f"{told.day} {_MONTHS[told.month - 1]} {told.year}, {told:%H:%M:%S}"
        if seconds
        else (f"{told.day} {_MONTHS[told.month - 1]} {told.year}, {told:%H:%M}")
    )


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _clock(moment: float, step: float) -> str:
    return stamp(moment, seconds=step < 120)
