"""A checkpoint as one HTML file: what a run did, for people who were not there.

The promise: the file stands by itself (no network, no code but its own), and is there whole or not at all; whatever
keys, messages and results hold is shown and never run; nothing is locked or changed, so that a job may go on meanwhile.
Figures are of the current version, and of the last record of each key. What was not recorded is not guessed.

Memory grows with records by a few numbers each, not by their values.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from checkpoint import clock
from checkpoint.catalog.decisions import decided_of, undecided_of
from checkpoint.catalog.locate import locate
from checkpoint.catalog.paths import command_line
from checkpoint.catalog.view import LATEST, VersionView
from checkpoint.errors import DamagedRecord, InvalidOption, plural, shorten
from checkpoint.reporting.charts import (
    Scale,
    counts_text,
    curve_of,
    histogram_of,
    paid_of,
    percent_text,
    plot_of,
    quantiles,
    rate_text,
    shown,
    span_text,
    stamp,
    throughput_of,
)
from checkpoint.reporting.columns import json_text, tidy, tidy_result
from checkpoint.reporting.history import EXAMINED, RunHistory, Timeline, gather, known, moment_of
from checkpoint.reporting.tables import replacing
from checkpoint.storage.keyed_log import key_of
from checkpoint.storage.record import Record
from checkpoint.storage.spending import cost_text

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
    with closing(VersionView(name, directory, version=LATEST, power=False, result_type=None)) as records:
        target = Path(f"{name}_report.html" if path is None else path)
        if path is None and target.is_symlink():
            raise InvalidOption(f"{target} is a symbolic link, which may lead anywhere; name the file to write: --out")
        story = gather(records)
        with replacing(target) as file:
            for part in _page(records, story):
                file.write(part.encode())
        return target


# --- the page -------------------------------------------------------------------------------------------------------


def _page(records: VersionView, story: RunHistory) -> Iterator[str]:
    script = _resource("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    timeline = Timeline(story) if story.moments else None
    yield (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{shown(records.name)} · checkpoint report</title>\n<style>\n{_resource('report.css')}</style>\n"
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
        f"</main>\n<footer>Written {stamp(clock.now())} by checkpoint, from {shown(str(records.store.directory))}. "
        f"Times are UTC.</footer>\n<script>{script}</script>\n</body></html>\n"
    )


def _resource(name: str) -> str:
    return files("checkpoint.reporting").joinpath(name).read_text("utf-8")


def _header(records: VersionView, story: RunHistory, timeline: Timeline | None) -> Iterator[str]:
    yield f'<header><div class="brand">Checkpoint report</div><h1>{shown(records.name)}</h1>\n'
    told = []
    if timeline is not None:
        first, last = stamp(timeline.start), stamp(timeline.end)
        told.append(f"{first} to {last} UTC" if first != last else f"{last} UTC")
    if records.version:
        label = records.checkpoint.versions.get(records.version, records.version)
        told.append(f'version <span class="mono">{shown(shorten(_key_text(label), 120))}</span>')
    if told:
        yield f'<p class="lead">{" · ".join(told)}</p>\n'
    whole = max(story.total or 0, story.known)
    if whole:
        shares = [("", story.done), ("bad", story.failed)]
        parts = [f'<i class="{kind}" style="width:{100 * part / whole:.3f}%"></i>' for kind, part in shares if part]
        yield f'<div class="meter" role="img" aria-label="{counts_text(story)}">{"".join(parts)}</div>\n'
    yield "</header>\n"
    if story.damaged:
        yield (
            f'<section class="note"><b class="bad">{plural(story.damaged, "damaged record")}</b>: not counted here. '
            f"Run <code>checkpoint check {shown(_word(records.name))}</code> to see where.</section>\n"
        )
    yield from _decisions(records)
    if not story.known:
        yield '<section><h2>Nothing here yet</h2><p class="quiet">No result and no failure is recorded.</p></section>\n'


def _decisions(records: VersionView) -> Iterator[str]:
    """Return what is undecided about results of other code, and what was accepted."""
    checkpoint, version = records.checkpoint, records.version
    open_ = undecided_of(checkpoint, version, max(1, checkpoint.results.count(version)))
    if open_ is not None:
        command = f"{command_line('accept', records.name, str(checkpoint.directory))} {open_.question}"
        yield (
            f'<section class="note"><b>{shown(str(open_))}</b>. Where they are still right: '
            f"<code>{shown(command)}</code></section>\n"
        )
    if told := decided_of(checkpoint, version):
        yield f'<section class="note"><b>Accepted</b>: {shown("; ".join(told))}</section>\n'


def _figures(story: RunHistory, timeline: Timeline | None) -> Iterator[str]:
    known, total = story.known, story.total
    done = ""
    if total is not None:
        done = f"of {total:,}" if total >= known else f"the last pass had {plural(total, 'item')}"
    median, p95 = quantiles(story.durations, (0.5, 0.95))
    calls = f"of {plural(story.timed, 'item')}, last attempts" if story.timed else ""
    rate, active = None, ""
    if timeline is not None and timeline.active > 0:
        number, unit = rate_text(len(story.moments) / timeline.active).split()
        rate = f"{number} <span>{unit}</span>"
        active = f"in {span_text(timeline.active)} of work"
    when, until = None, ""
    if timeline is not None:
        when, until = span_text(timeline.end - timeline.start), "from first to last activity"
    last = f"last: {stamp(timeline.end)}" if timeline is not None else ""
    tiles = [
        ("Done", f"{story.done:,}", done),
        (
            "Failed",
            f"{story.failed:,}",
            f"{percent_text(story.failed, known)} of what was tried" if story.failed else "",
        ),
        ("Throughput", rate, active),
        ("Sessions", f"{len(story.sessions):,}" if story.sessions else None, last),
        ("Median duration", None if median is None else span_text(median), "of results"),
        ("95th percentile", None if p95 is None else span_text(p95), "of results"),
        ("Call time", span_text(story.call_time) if story.timed else None, calls),
        ("Time span", when, until),
    ]
    if story.spent is not None:
        tiles.insert(2, ("Cost", cost_text(story.spent), "of all versions, records that count no more included"))
    yield '<section class="figures" aria-label="Figures">\n'
    for label, value, note in tiles:
        kind = ' class="none"' if value is None else ' class="bad"' if label == "Failed" and story.failed else ""
        told = "not recorded" if value is None else value
        yield f"<div><dl><dt>{label}</dt><dd{kind}>{told}</dd></dl><small>{note if value else ''}</small></div>\n"
    yield "</section>\n"


# --- charts: SVG whose shapes stretch with the page and whose text does not -----------------------------------------


def _progress(story: RunHistory, timeline: Timeline) -> Iterator[str]:
    yield f'<section><h2>Progress</h2><p class="quiet">{_course(story, timeline)}</p>\n'
    legend = '<span><i></i>done</span><span><i class="bad"></i>failed</span>'
    if timeline.pauses:
        legend += '<span><i class="pause"></i>pause, with its length (long ones are folded)</span>'
    yield f'<div class="legend">{legend}</div>\n'
    bars = list(timeline.bins(min(max(len(story.moments) // 4, 1), 72)))
    yield plot_of(274, f"Progress over time: {counts_text(story)}", curve_of(story, timeline, bars))
    yield from throughput_of(timeline, bars)
    yield from paid_of(timeline, bars)
    yield from _sessions(story)
    yield "</section>\n"


def _course(story: RunHistory, timeline: Timeline) -> str:
    parts = [f"{plural(len(story.moments), 'item')} in {span_text(timeline.active)} of work"]
    if len(story.sessions) > 1:
        parts.append(f"{len(story.sessions):,} sessions")
    longest = max([pause.end - pause.start for pause in timeline.pauses], default=0.0)
    if longest > 0:
        parts.append(f"longest pause {span_text(longest)}")
    missing = story.known - len(story.moments)
    return " · ".join(parts) + (f" · {plural(missing, 'item')} without a time are left out" if missing else "")


def _sessions(story: RunHistory) -> Iterator[str]:
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
        rate = rate_text((session.done + session.failed) / lasted) if lasted > 0 else "–"
        bad = ' class="n bad"' if session.failed else ' class="n"'
        yield (
            f"<tr><td>{session.number:,}</td><td>{stamp(session.began)}</td><td>{stamp(session.ended)}</td>"
            f'<td class="n">{span_text(lasted)}</td><td class="n">{session.done:,}</td><td{bad}>{session.failed:,}</td>'
            f'<td class="n">{rate}</td></tr>\n'
        )
    yield "</tbody></table></div></details>\n"


def _latency(story: RunHistory) -> Iterator[str]:
    if not story.done:
        return
    yield "<section><h2>Durations</h2>"
    if not story.durations:
        yield '<p class="quiet">Not recorded.</p></section>\n'
        return
    marks = dict(zip(("median", "p95", "p99"), quantiles(story.durations, (0.5, 0.95, 0.99)), strict=True))
    shown = " · ".join([f"{name} {span_text(value)}" for name, value in marks.items() if value is not None])
    low, high = min(story.durations), max(story.durations)
    yield f'<p class="quiet">How long the last attempt of each result took: {shown} · longest {span_text(high)}</p>\n'
    if len(story.durations) > 1 and high > low:
        least = min([value for value in story.durations if value > 0])
        scale = Scale(least, high, log=high / least > 100)
        yield plot_of(214, f"Distribution of durations: {shown}", histogram_of(story.durations, scale, marks))
    yield "</section>\n"


# --- lists and tables -----------------------------------------------------------------------------------------------


def _errors(records: VersionView, story: RunHistory) -> Iterator[str]:
    if not story.failed:
        return
    told = f"{plural(story.failed, 'item')} failed · {plural(len(story.causes), 'cause')}"
    if story.unexamined:
        told += f" of the first {EXAMINED:,} failures"
    yield f'<section id="errors"><h2>Errors</h2><p class="quiet">{told}</p>\n'
    for cause in story.causes[:_CAUSES]:
        place = f'<span class="quiet mono">{shown(cause.where)}</span>' if cause.where else ""
        share = percent_text(cause.count, story.failed - story.unexamined)
        yield (
            f'<div class="cause"><b>{cause.count:,}<small>{share}</small></b>'
            f"<div><strong>{shown(cause.type or 'error')}{', given up' * cause.given_up}</strong>{place}"
            f"<p>{shown(shorten(cause.message, 600))}</p>"
        )
        keys = "".join([f"<span>{shown(shorten(_key_text(key), 60))}</span>" for key in cause.keys[:8]])
        more = f" and {cause.count - 8:,} more" if cause.count > 8 else ""
        yield f'<div class="keys">{keys}{more}</div>'
        if cause.traceback:
            lines = shown(shorten(cause.traceback, 20_000))
            yield f"<details><summary>Traceback of {shown(shorten(_key_text(cause.keys[0]), 60))}</summary>"
            yield f"<pre>{lines}</pre></details>"
        yield "</div></div>\n"
    if len(story.causes) > _CAUSES:
        more = plural(len(story.causes) - _CAUSES, "more cause")
        yield f'<p class="quiet">{more}: <code>checkpoint errors {shown(_word(records.name))}</code></p>\n'
    yield "</section>\n"


def _retries(story: RunHistory) -> Iterator[str]:
    again = {number: count for number, count in sorted(story.attempts.items()) if number > 1}
    if not again:
        return
    needed, tried = sum(again.values()), sum(story.attempts.values())
    failed = sum(count for number, count in story.failed_after.items() if number > 1)
    end = f"{failed:,} of them failed all the same" if failed else "all of them succeeded in the end"
    yield (
        f'<section><h2>Retries</h2><p class="quiet">{plural(needed, "item")} of {tried:,} '
        f'({percent_text(needed, tried)}) took more than one attempt · {end}</p>\n<div class="bars">'
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


def _slow(story: RunHistory) -> Iterator[str]:
    if len(story.slowest) < 2:
        return
    yield '<section class="stack"><h2>Slowest items</h2><p class="quiet">The longest last attempts</p>'
    yield '<div class="scroll"><table><thead><tr><th>key</th><th class="n">duration</th><th class="n">attempts</th>'
    yield '<th class="n">at</th></tr></thead><tbody>\n'
    for slow in sorted(story.slowest, reverse=True):
        moment, attempts, failed = slow.record
        tag = '<span class="tag">failed</span>' if failed else ""
        yield (
            f'<tr><td class="key">{tag}{shown(shorten(_key_text(slow.key), 200))}</td>'
            f'<td class="n">{span_text(slow.elapsed)}</td>'
            f'{_attempts(attempts)}<td class="n quiet">{stamp(moment, seconds=True)}</td></tr>\n'
        )
    yield "</tbody></table></div></section>\n"


def _versions(records: VersionView, story: RunHistory) -> Iterator[str]:
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
            f'<tr><td><span class="mono">{shown(shorten(_key_text(label), 300))}</span>{mark}</td>'
            f'<td class="n">{counts[0]:,}</td><td class="n">{counts[1]:,}</td></tr>\n'
        )
    yield "</tbody></table></div></section>\n"


def _results(records: VersionView, story: RunHistory) -> Iterator[str]:
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


def _extent(records: VersionView, story: RunHistory) -> str:
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
    rest = "" if whole else f"; export the rest: <code>checkpoint export {shown(_word(records.name))} OUT.csv</code>"
    return told[0].upper() + told[1:] + rest


def _result_row(key: Any, record: Record, short: str, full: str, most: int, *, failed: bool) -> str:
    tag = '<span class="tag">failed</span>' if failed else ""
    if len(short) <= 180 and (full == short or "\n" not in full.strip() or (not failed and len(short) <= 90)):
        cell = f'<span class="mono">{shown(short)}</span>'
    else:
        cut = f"\n… {len(full) - most:,} more characters" if len(full) > most else ""
        cell = (
            f'<details><summary class="mono">{shown(shorten(short, 180))}</summary>'
            f"<pre>\n{shown(full[:most] + cut)}</pre></details>"
        )
    moment, elapsed = moment_of(record.timestamp), known(record.elapsed)
    when = f' data-v="{moment:.3f}">{stamp(moment, seconds=True)}' if moment == moment else ' data-v="">–'
    took = _EMPTY
    if elapsed is not None:
        took = f'" data-v="{elapsed:.6g}"><span class="label">took </span>{span_text(elapsed)}'
    return (
        f'<tr><td class="key">{tag}{shown(_key_text(key))}</td><td class="value">{cell}</td><td class="when"{when}</td>'
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


def _key_text(key: Any) -> str:
    told = tidy(key)
    return told if type(told) is str else json_text(told)


def _word(name: str) -> str:
    """A checkpoint's name as a word of a command line."""
    return f"'{name}'" if " " in name else name
