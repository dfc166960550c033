"""A checkpoint as one HTML file: what a run did, for people who were not there.

The promise: the file stands by itself (no network, no code but its own), and is there whole or not at all; whatever
keys, messages and results hold is shown and never run; nothing is locked or changed, so that a job may go on meanwhile.
Figures are of the current version, and of the last record of each key. What was not recorded is not guessed.

Memory grows with records by a few numbers each, not by their values.
"""

from __future__ import annotations

import base64
import hashlib
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from datetime import timedelta
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from checkpoint import clock
from checkpoint.decisions import decided_of, undecided_of
from checkpoint.errors import DamagedRecord, InvalidOption, plural, shorten
from checkpoint.history import EPOCH, EXAMINED, FIRST, LAST, Story, Stretch, Timeline, gather, known, moment_of
from checkpoint.journal import Record
from checkpoint.places import command_line, locate
from checkpoint.records import LATEST, Records
from checkpoint.shelf import key_of
from checkpoint.tables import json_text, replacing, tidy, tidy_result

__all__ = ["write_report"]

_CAUSES = 30
_TEXT_ROOM = 16 << 20  # characters of results in all; past that each has
_LEAST_ROOM = 1000  # so many, and at most
_MOST_ROOM = 100_000


def write_report(
    name: str, path: str | os.PathLike[str] | None = None, checkpoint_dir: str | os.PathLike[str] | None = None
) -> Path:
    """Write what a checkpoint's runs did as one self-contained HTML file; returns its path.

    Args:
        name: the checkpoint's.
        path: the file; default NAME_report.html in the current directory. What is there is replaced, whole.
        checkpoint_dir: default ``$CHECKPOINT_DIR``, else ``./checkpoints``.

    Raises:
        InvalidName: as for a runner.
        StoreError: there is no such checkpoint, or the file cannot be written.
        InvalidOption: the path is a directory's; or none is given, and the default one is a symbolic link.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_result(3, 9)
        >>> write_report("squares").name
        'squares_report.html'
    """
    directory = locate(name, checkpoint_dir)
    with closing(Records(name, directory, version=LATEST, power=False, result_type=None)) as records:
        target = Path(f"{name}_report.html" if path is None else path)
        if path is None and target.is_symlink():
            raise InvalidOption(f"{target} is a symbolic link, which may lead anywhere; name the file to write: --out")
        story = gather(records)
        with replacing(target) as file:
            for part in _page(records, story):
                file.write(part.encode())
        return target


# --- the page -------------------------------------------------------------------------------------------------------


def _page(records: Records, story: Story) -> Iterator[str]:
    script = _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    timeline = Timeline(story) if story.moments else None
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{_text(records.name)} · checkpoint report</title>\n<style>\n{_resource('report.css')}</style>\n"
        "</head><body>\n<main>\n"
    )
    yield from _header(records, story, timeline)
    if story.known:
        yield from _figures(story, timeline)
    if timeline is not None and timeline.end > timeline.start:
        yield from _progress(story, timeline)
    yield from _latency(story)
    yield from _errors(records, story)
    yield from _retries(story)
    yield from _slow(story)
    yield from _versions(records, story)
    yield from _results(records, story)
    yield (
        f"</main>\n<footer>Written {_stamp(clock.now())} by checkpoint, from {_text(str(records.store.directory))}. "
        f"Times are UTC.</footer>\n<script>{script}</script>\n</body></html>\n"
    )


def _resource(name: str) -> str:
    return files("checkpoint").joinpath(name).read_text("utf-8")


def _header(records: Records, story: Story, timeline: Timeline | None) -> Iterator[str]:
    yield f'<header><div class="brand">Checkpoint report</div><h1>{_text(records.name)}</h1>\n'
    told = []
    if timeline is not None:
        first, last = _stamp(timeline.start), _stamp(timeline.end)
        told.append(f"{first} to {last} UTC" if first != last else f"{last} UTC")
    if records.version:
        label = records.store.versions.get(records.version, records.version)
        told.append(f'version <span class="mono">{_text(shorten(_key_text(label), 120))}</span>')
    if told:
        yield f'<p class="lead">{" · ".join(told)}</p>\n'
    whole = max(story.total or 0, story.known)
    if whole:
        shares = [("", story.done), ("bad", story.failed)]
        parts = [f'<i class="{kind}" style="width:{100 * part / whole:.3f}%"></i>' for kind, part in shares if part]
        yield f'<div class="meter" role="img" aria-label="{_settled(story)}">{"".join(parts)}</div>\n'
    yield "</header>\n"
    if story.damaged:
        yield (
            f'<section class="note"><b class="bad">{plural(story.damaged, "damaged record")}</b>: not counted here. '
            f"Run <code>checkpoint check {_text(_word(records.name))}</code> to see where.</section>\n"
        )
    yield from _decisions(records)
    if not story.known:
        yield '<section><h2>Nothing here yet</h2><p class="quiet">No result and no failure is recorded.</p></section>\n'


def _decisions(records: Records) -> Iterator[str]:
    """What nobody has decided of results that other code computed, and what was accepted."""
    store, version = records.store, records.version
    open_ = undecided_of(store, version, max(1, store.results.count(version)))
    if open_ is not None:
        command = f"{command_line('accept', records.name, str(store.directory))} {open_.question}"
        yield (
            f'<section class="note"><b>{_text(str(open_))}</b>. Where they are still right: '
            f"<code>{_text(command)}</code></section>\n"
        )
    if told := decided_of(store, version):
        yield f'<section class="note"><b>Accepted</b>: {_text("; ".join(told))}</section>\n'


def _settled(story: Story) -> str:
    left = max((story.total or 0) - story.known, 0)
    return f"{story.done:,} done, {story.failed:,} failed" + (f", {left:,} left" if left else "")


def _figures(story: Story, timeline: Timeline | None) -> Iterator[str]:
    known, total = story.known, story.total
    done = ""
    if total is not None:
        done = f"of {total:,}" if total >= known else f"the last pass had {plural(total, 'item')}"
    median, p95 = _quantiles(story.durations, (0.5, 0.95))
    calls = f"of {plural(story.timed, 'item')}, last attempts" if story.timed else ""
    rate, active = None, ""
    if timeline is not None and timeline.active > 0:
        number, unit = _rate(len(story.moments) / timeline.active).split()
        rate = f"{number} <span>{unit}</span>"
        active = f"in {_span(timeline.active)} of work"
    when, until = None, ""
    if timeline is not None:
        when, until = _span(timeline.end - timeline.start), "from first to last activity"
    last = f"last: {_stamp(timeline.end)}" if timeline is not None else ""
    tiles = [
        ("Done", f"{story.done:,}", done),
        ("Failed", f"{story.failed:,}", f"{_percent(story.failed, known)} of what was tried" if story.failed else ""),
        ("Throughput", rate, active),
        ("Sessions", f"{len(story.sessions):,}" if story.sessions else None, last),
        ("Median duration", None if median is None else _span(median), "of results"),
        ("95th percentile", None if p95 is None else _span(p95), "of results"),
        ("Call time", _span(story.call_time) if story.timed else None, calls),
        ("Time span", when, until),
    ]
    yield '<section class="figures" aria-label="Figures">\n'
    for label, value, note in tiles:
        kind = ' class="none"' if value is None else ' class="bad"' if label == "Failed" and story.failed else ""
        told = "not recorded" if value is None else value
        yield f"<div><dl><dt>{label}</dt><dd{kind}>{told}</dd></dl><small>{note if value else ''}</small></div>\n"
    yield "</section>\n"


# --- charts: SVG whose shapes stretch with the page and whose text does not -----------------------------------------
#
# x is in % of the width, y in pixels. Paths have no percentages: they stand in an inner drawing 1,000 units wide.


def _plot(height: int, label: str, parts: Iterable[str]) -> str:
    return (
        f'<div class="plot"><svg height="{height}" role="img" aria-label="{_text(label)}">'
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


def _progress(story: Story, timeline: Timeline) -> Iterator[str]:
    yield f'<section><h2>Progress</h2><p class="quiet">{_course(story, timeline)}</p>\n'
    legend = '<span><i></i>done</span><span><i class="bad"></i>failed</span>'
    if timeline.pauses:
        legend += '<span><i class="pause"></i>pause, with its length (long ones are folded)</span>'
    yield f'<div class="legend">{legend}</div>\n'
    bars = list(timeline.bins(min(max(len(story.moments) // 4, 1), 72)))
    yield _plot(274, f"Progress over time: {_settled(story)}", _curve(story, timeline, bars))
    yield from _throughput(timeline, bars)
    yield from _sessions(story)
    yield "</section>\n"


def _course(story: Story, timeline: Timeline) -> str:
    parts = [f"{plural(len(story.moments), 'item')} in {_span(timeline.active)} of work"]
    if len(story.sessions) > 1:
        parts.append(f"{len(story.sessions):,} sessions")
    longest = max([pause.end - pause.start for pause in timeline.pauses], default=0.0)
    if longest > 0:
        parts.append(f"longest pause {_span(longest)}")
    missing = story.known - len(story.moments)
    return " · ".join(parts) + (f" · {plural(missing, 'item')} without a time are left out" if missing else "")


def _curve(story: Story, timeline: Timeline, bars: list[Stretch]) -> Iterator[str]:
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
        length = _span(pause.end - pause.start)
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


def _throughput(timeline: Timeline, bars: list[Stretch]) -> Iterator[str]:
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
        told = f"{_clock(start, end - start)} to {_clock(end, end - start)}: {_rate(rate)}"
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
    yield _plot(134, f"Throughput over time, at most {_rate(fastest)}", parts)


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
            date, _, hour = _stamp(moment, seconds=step < 60).rpartition(", ")
            date = date if step >= 30 * _DAY else date.rpartition(" ")[0]
            told = date if step >= _DAY else hour + (f"\n{date}" if date != day else "")
            if step < _DAY or date != day:
                yield timeline.x(moment), told
            day = date


def _sessions(story: Story) -> Iterator[str]:
    if len(story.sessions) < 2:
        return
    shown = list(story.sessions.values())[-30:]
    rest = f", the last {len(shown)}" if len(shown) < len(story.sessions) else ""
    yield f"<details><summary>{plural(len(story.sessions), 'session')}{rest}</summary>"
    yield '<div class="scroll"><table><thead><tr><th>#</th><th>began</th><th>last record</th>'
    yield '<th class="n">lasted</th><th class="n">done</th><th class="n">failed</th><th class="n">rate</th></tr>'
    yield "</thead><tbody>"
    for session in shown:
        lasted = session.ended - session.began
        rate = _rate((session.done + session.failed) / lasted) if lasted > 0 else "–"
        bad = ' class="n bad"' if session.failed else ' class="n"'
        yield (
            f"<tr><td>{session.number:,}</td><td>{_stamp(session.began)}</td><td>{_stamp(session.ended)}</td>"
            f'<td class="n">{_span(lasted)}</td><td class="n">{session.done:,}</td><td{bad}>{session.failed:,}</td>'
            f'<td class="n">{rate}</td></tr>\n'
        )
    yield "</tbody></table></div></details>\n"


def _latency(story: Story) -> Iterator[str]:
    if not story.done:
        return
    yield "<section><h2>Durations</h2>"
    if not story.durations:
        yield '<p class="quiet">Not recorded.</p></section>\n'
        return
    marks = dict(zip(("median", "p95", "p99"), _quantiles(story.durations, (0.5, 0.95, 0.99)), strict=True))
    shown = " · ".join([f"{name} {_span(value)}" for name, value in marks.items() if value is not None])
    low, high = min(story.durations), max(story.durations)
    yield f'<p class="quiet">How long the last attempt of each result took: {shown} · longest {_span(high)}</p>\n'
    if len(story.durations) > 1 and high > low:
        least = min([value for value in story.durations if value > 0])
        scale = _Scale(least, high, log=high / least > 100)
        yield _plot(214, f"Distribution of durations: {shown}", _histogram(story.durations, scale, marks))
    yield "</section>\n"


class _Scale:
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
        """In % of the width."""
        place = (math.log10(value) if value > 0 else -math.inf) if self.log else value
        return min(max(100 * (place - self.low) / (self.high - self.low), 0.0), 100.0)

    def value(self, x: float) -> float:
        """Its inverse."""
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


def _histogram(durations: array[float], scale: _Scale, marks: dict[str, float | None]) -> Iterator[str]:
    above, height = 50, 140
    bins = min(max(int(math.sqrt(len(durations)) * 2), 8), 48)
    counts = Counter(min(int(scale.x(value) * bins / 100), bins - 1) for value in durations)
    top = max(counts.values()) * 1.05
    yield from _rules(_round_step(top, 4, 1), top, height, above)
    width = 100 / bins
    for place, count in sorted(counts.items()):
        share = height * count / top
        told = f"{_span(scale.value(place * width))} to {_span(scale.value((place + 1) * width))}: {count:,}"
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
                f"{name} {_span(value)}</text>"
            )
    yield from _labels(scale.ticks(), above + height + 14)


# --- lists and tables -----------------------------------------------------------------------------------------------


def _errors(records: Records, story: Story) -> Iterator[str]:
    if not story.failed:
        return
    told = f"{plural(story.failed, 'item')} failed · {plural(len(story.causes), 'cause')}"
    if story.unexamined:
        told += f" of the first {EXAMINED:,} failures"
    yield f'<section id="errors"><h2>Errors</h2><p class="quiet">{told}</p>\n'
    for cause in story.causes[:_CAUSES]:
        place = f'<span class="quiet mono">{_text(cause.where)}</span>' if cause.where else ""
        share = _percent(cause.count, story.failed - story.unexamined)
        yield (
            f'<div class="cause"><b>{cause.count:,}<small>{share}</small></b>'
            f"<div><strong>{_text(cause.type or 'error')}</strong>{place}"
            f"<p>{_text(shorten(cause.message, 600))}</p>"
        )
        keys = "".join([f"<span>{_text(shorten(_key_text(key), 60))}</span>" for key in cause.keys[:8]])
        more = f" and {cause.count - 8:,} more" if cause.count > 8 else ""
        yield f'<div class="keys">{keys}{more}</div>'
        if cause.traceback:
            lines = _text(shorten(cause.traceback, 20_000))
            yield f"<details><summary>Traceback of {_text(shorten(_key_text(cause.keys[0]), 60))}</summary>"
            yield f"<pre>{lines}</pre></details>"
        yield "</div></div>\n"
    if len(story.causes) > _CAUSES:
        more = plural(len(story.causes) - _CAUSES, "more cause")
        yield f'<p class="quiet">{more}: <code>checkpoint errors {_text(_word(records.name))}</code></p>\n'
    yield "</section>\n"


def _retries(story: Story) -> Iterator[str]:
    again = {number: count for number, count in sorted(story.attempts.items()) if number > 1}
    if not again:
        return
    needed, tried = sum(again.values()), sum(story.attempts.values())
    failed = sum(count for number, count in story.failed_after.items() if number > 1)
    end = f"{failed:,} of them failed all the same" if failed else "all of them succeeded in the end"
    yield (
        f'<section><h2>Retries</h2><p class="quiet">{plural(needed, "item")} of {tried:,} '
        f'({_percent(needed, tried)}) took more than one attempt · {end}</p>\n<div class="bars">'
    )
    most = max(again.values())
    shown = list(again.items())[:12]
    for number, count in shown:
        bad = story.failed_after[number]
        told = f"{count:,}" + (f" · {bad:,} failed" if bad else "")
        yield (
            f'<span>{number:,} attempts</span><span class="track"><i style="width:{65 * count / most:.2f}%"></i>'
            f"<b>{told}</b></span>\n"
        )
    yield "</div>"
    if len(again) > len(shown):
        yield f'<p class="quiet">… and up to {max(again):,} attempts</p>'
    yield "</section>\n"


def _slow(story: Story) -> Iterator[str]:
    if len(story.slowest) < 2:
        return
    yield '<section class="stack"><h2>Slowest items</h2><p class="quiet">The longest last attempts</p>'
    yield '<div class="scroll"><table><thead><tr><th>key</th><th class="n">duration</th><th class="n">attempts</th>'
    yield '<th class="n">at</th></tr></thead><tbody>\n'
    for slow in sorted(story.slowest, reverse=True):
        moment, attempts, failed = slow.record
        tag = '<span class="tag">failed</span>' if failed else ""
        yield (
            f'<tr><td class="key">{tag}{_text(shorten(_key_text(slow.key), 200))}</td>'
            f'<td class="n">{_span(slow.elapsed)}</td>'
            f'{_attempts(attempts)}<td class="n quiet">{_stamp(moment, seconds=True)}</td></tr>\n'
        )
    yield "</tbody></table></div></section>\n"


def _versions(records: Records, story: Story) -> Iterator[str]:
    if len(story.versions) < 2:
        return
    yield '<section><h2>Versions</h2><p class="quiet">The rest of this report is of the current one</p>'
    yield '<div class="scroll"><table><thead><tr><th>version</th><th class="n">results</th><th class="n">failed</th>'
    yield "</tr></thead><tbody>\n"
    for version in story.versions:
        current = version.version == records.version
        counts = (story.done, story.failed) if current else (version.results, version.errors)
        label = version.label if version.label is not None else version.version or "none"
        mark = " <b>· current</b>" if current else ""
        yield (
            f'<tr><td><span class="mono">{_text(shorten(_key_text(label), 300))}</span>{mark}</td>'
            f'<td class="n">{counts[0]:,}</td><td class="n">{counts[1]:,}</td></tr>\n'
        )
    yield "</tbody></table></div></section>\n"


def _results(records: Records, story: Story) -> Iterator[str]:
    if not story.known:
        return
    yield f'<section id="results" class="stack"><h2>Results</h2><p class="quiet">{_extent(records, story)}</p>\n'
    yield (
        '<div class="search" hidden><input type="search" placeholder="Search keys, results, errors" '
        'aria-label="Search the table of results" autocomplete="off" spellcheck="false">'
        '<output aria-live="polite"></output></div>\n'
        '<div class="scroll" tabindex="0" role="region" aria-label="Results"><table><thead><tr><th>key</th>'
        '<th>result</th><th>saved</th><th class="n">duration</th><th class="n">attempts</th></tr></thead><tbody>\n'
    )
    room = _TEXT_ROOM
    for failed, places in ((False, story.shown), (True, story.shown_failed)):
        for reader, offset in places:
            try:
                record = reader.read(offset)
                key = key_of(reader, record, offset)
            except DamagedRecord:  # it was sound when it was counted
                continue
            short, full = _failure_text(record) if failed else _value_text(record)
            most = max(_LEAST_ROOM, min(_MOST_ROOM, room))
            room -= min(len(full), most)
            yield _result_row(key, record, short, full, most, failed=failed)
    yield "</tbody></table></div></section>\n"


def _extent(records: Records, story: Story) -> str:
    parts = [
        f"the first {len(shown):,} of {count:,} {noun}" if len(shown) < count else plural(count, noun.removesuffix("s"))
        for shown, count, noun in (
            (story.shown, story.done, "results"),
            (story.shown_failed, story.failed, "failures"),
        )
        if count
    ]
    told = " and ".join(parts)
    whole = len(story.shown) == story.done and len(story.shown_failed) == story.failed
    rest = "" if whole else f"; export the rest: <code>checkpoint export {_text(_word(records.name))} OUT.csv</code>"
    return told[0].upper() + told[1:] + rest


def _result_row(key: Any, record: Record, short: str, full: str, most: int, *, failed: bool) -> str:
    tag = '<span class="tag">failed</span>' if failed else ""
    if len(short) <= 180 and (full == short or "\n" not in full.strip() or (not failed and len(short) <= 90)):
        cell = f'<span class="mono">{_text(short)}</span>'
    else:
        cut = f"\n… {len(full) - most:,} more characters" if len(full) > most else ""
        cell = (
            f'<details><summary class="mono">{_text(shorten(short, 180))}</summary>'
            f"<pre>\n{_text(full[:most] + cut)}</pre></details>"
        )
    moment, elapsed = moment_of(record.timestamp), known(record.elapsed)
    when = f' data-v="{moment:.3f}">{_stamp(moment, seconds=True)}' if moment == moment else ' data-v="">–'
    took = _EMPTY
    if elapsed is not None:
        took = f'" data-v="{elapsed:.6g}"><span class="label">took </span>{_span(elapsed)}'
    return (
        f'<tr><td class="key">{tag}{_text(_key_text(key))}</td><td class="value">{cell}</td><td class="when"{when}</td>'
        f'<td class="n{took}</td>{_attempts(record.attempts)}</tr>\n'
    )


_EMPTY = ' empty" data-v="">–'


def _attempts(attempts: int | None) -> str:
    if attempts is None:
        return f'<td class="n{_EMPTY}</td>'
    kind = "" if attempts > 1 else " empty"
    return f'<td class="n{kind}" data-v="{attempts}">{attempts:,}<span class="label"> attempts</span></td>'


def _value_text(record: Record) -> tuple[str, str]:
    """(on one line, to be read) of a result: plain JSON, and as for text, the text."""
    raw = bytes(record.result)
    try:
        value = tidy_result(raw, sealed=bool(record.crc or record.session))
        line = json_text(value)
    except ValueError:  # too deep, or an envelope of another version: what stands in the file
        text = raw.decode("utf-8", "replace")
        return text, text
    if type(value) is str:
        return line, value
    try:
        return line, msgspec.json.format(line, indent=2)
    except (ValueError, RecursionError):
        return line, line


def _failure_text(record: Record) -> tuple[str, str]:
    told = f"{record.type}: {record.error}" if record.type else record.error or ""
    return " ".join(told.split()), told


# --- words ----------------------------------------------------------------------------------------------------------

_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\uffff]"
)


def _text(text: str) -> str:
    """Any text as HTML: what is not seen, or turns the direction of what is near it, is spelled out."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    return escape(_HIDDEN.sub(_spelled, text))


def _spelled(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"


def _key_text(key: Any) -> str:
    told = tidy(key)
    return told if type(told) is str else json_text(told)


def _word(name: str) -> str:
    """A checkpoint's name as a word of a command line."""
    return f"'{name}'" if " " in name else name


def _quantiles(values: array[float], wanted: tuple[float, ...]) -> list[float | None]:
    """Exact ones: the least value that so large a part of all does not exceed."""
    if not values:
        return [None] * len(wanted)
    ordered = sorted(values)
    return [ordered[max(math.ceil(part * len(ordered)) - 1, 0)] for part in wanted]


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.1f} %" if share >= 0.1 else "< 0.1 %"


def _three(value: float) -> str:
    """Three digits that count, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _short(value: float) -> str:
    """A number on an axis."""
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value >= 1e4 else f"{value:,.10g}"


def _tick(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= factor * 0.9999:
            return f"{seconds / factor:,.6g} {unit}"
    return f"{seconds * 1e9:.3g} ns" if seconds else "0"


def _span(seconds: float) -> str:
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


def _rate(rate: float) -> str:
    factor, unit = _rate_unit(rate)
    return f"{_three(rate * factor)} {unit}"


def _stamp(moment: float, *, seconds: bool = False) -> str:
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
    return _stamp(moment, seconds=step < 120)
