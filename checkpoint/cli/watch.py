"""`checkpoint watch`: a job as it goes on, in a live view, in lines, or as JSON."""

from __future__ import annotations

import argparse
import errno
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from checkpoint import clock
from checkpoint.catalog.paths import command_line
from checkpoint.cli.arguments import add_command
from checkpoint.cli.terminal import console_here, drawing_of, print_line, title_of
from checkpoint.errors import StoreError, plural, quote
from checkpoint.reporting.status import Observer, Survey
from checkpoint.storage.spending import cost_text
from checkpoint.words import span

__all__ = ["add_watch"]


_GRACE = 2  # looks at a checkpoint that nobody writes, before `watch` ends


def add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = add_command(
        commands,
        "watch",
        _watch,
        "follow a job that is running elsewhere",
        "What `show` tells of a job that is running in another terminal, again and again: live on a terminal (with\n"
        "the extra checkpoint-map[cli]), else a line each time. It ends when nobody writes any more, or at Ctrl-C;\n"
        "the job does not notice. A checkpoint that is not there yet is waited for.",
        "examples:\n  checkpoint watch NAME\n  checkpoint watch NAME --interval 60 >> progress.log\n"
        "  checkpoint watch NAME --json\n"
        "  checkpoint watch NAME && notify-send done\n\n"
        "exit status: 0 complete: each item has a result; 3 complete with failures: each has a result or an error;\n"
        "4 ended early: items are left that nobody is at, as after a kill; 1 there is no such checkpoint, or it\n"
        "cannot be read; 2 wrong command line; 130 Ctrl-C",
        json="print a line of JSON each time",
    )
    command.add_argument(
        "--wait",
        type=_wait,
        default=30.0,
        metavar="SECONDS",
        help="for the first record of a checkpoint that is not there yet (default: 30)",
    )
    command.add_argument(
        "--interval", type=_seconds, metavar="SECONDS", help="between two looks (default: 1 when live, else 10)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{quote(text)} is no number of seconds; give one from 0.05 to 86400")
    return seconds


def _wait(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{quote(text)} is no number of seconds; give one from 0 to 86400")
    return seconds


def _observer(arguments: argparse.Namespace) -> Observer:
    """The checkpoint, once it is there: a job that has just begun has saved nothing yet.

    Raises:
        StoreError: it is not there in time, or cannot be read.
    """
    end, is_told = clock.monotonic() + arguments.wait, False
    while True:
        try:
            return Observer(arguments.name, arguments.dir)
        except StoreError as error:
            if error.errno != errno.ENOENT or clock.monotonic() >= end:
                raise
            if not is_told:
                print_line(f"{error}; waiting {span(arguments.wait)} for its first record", sys.stderr)
                is_told = True
        clock.sleep(min(0.2, arguments.wait))


def _watch(arguments: argparse.Namespace) -> int:
    console = None if arguments.json else console_here()
    interval = arguments.interval or (10.0 if console is None else 1.0)
    try:
        observed = _observer(arguments)
    except KeyboardInterrupt:
        return _INTERRUPTED
    with observed as observer:
        looks = _looks(observer, interval)
        try:
            if arguments.json:
                seen = _watch_json(looks)
            elif console is None:
                seen = _watch_lines(looks)
            else:
                seen = _watch_live(looks, console)
        except KeyboardInterrupt:
            return _INTERRUPTED
    if not arguments.json:
        ended, cost = "", "" if seen.cost is None else f" · cost {cost_text(seen.cost)}"
        if _status_of(seen) == _ENDED_EARLY:
            left = "items" if seen.left is None else plural(seen.left, "item")
            ended = f"; it ended early, and {left} {'is' if seen.left == 1 else 'are'} left"
        print_line(f"nobody is writing {seen.name!r} any more: {seen.counts()}{cost}{ended}")
        if seen.failed:
            print_line(f"why each failed: {command_line('errors', seen.name, seen.directory)}")
    return _status_of(seen)


_FAILURES, _ENDED_EARLY, _INTERRUPTED = 3, 4, 130


def _status_of(seen: Survey) -> int:
    """The exit status: whether the job has ended, and how.

    Where no total is known (a one-shot input that was not drawn to its end, or a loop by hand), nobody can tell whether
    items are left: then it has ended.
    """
    if seen.left:
        return _ENDED_EARLY
    return _FAILURES if seen.failed else 0


def _looks(observer: Observer, interval: float) -> Iterator[Survey]:
    """Look until nobody has been writing for a while; where that cannot be told, until nothing is left."""
    quiet = 0
    while True:
        seen = observer.look()
        quiet = quiet + 1 if seen.writer is None or (not seen.writer and seen.left == 0) else 0
        yield seen
        if quiet > _GRACE:
            return
        clock.sleep(min(interval, 1.0) if quiet else interval)


def _watch_json(looks: Iterable[Survey]) -> Survey:
    for seen in looks:
        print(json.dumps(seen.to_json()), flush=True)
    return seen


def _watch_lines(looks: Iterable[Survey]) -> Survey:
    """A line each time; and one for each cause of errors when it first comes up."""
    last, known = "", set()
    for seen in looks:
        cost = "" if seen.cost is None else f"cost {cost_text(seen.cost)}"
        told = " · ".join(part for part in (seen.counts(), cost, seen.pace() if seen.writer else "") if part)
        if told != last or seen.writer:
            print_line(f"{datetime.fromtimestamp(seen.asked_at):%H:%M:%S}  {told}")
            last = told
        for cause in seen.causes[:5]:
            if (signature := (cause.type, cause.where, "" if cause.where else cause.message)) not in known:
                known.add(signature)
                print_line(f"{'':10}{cause}")
        sys.stdout.flush()
    return seen


def _watch_live(looks: Iterable[Survey], console: Any) -> Survey:
    from rich.live import Live
    from rich.panel import Panel

    with Live(console=console, auto_refresh=False) as live:
        for seen in looks:
            rows = [row for row in seen.rows() if row[0] in ("done", "writing", "rate", "calls", "cost", "errors")]
            if seen.recent:
                rows.append(("latest", [f"{quote(last.key, 40)}  {last.text}" for last in seen.recent]))
            live.update(Panel(drawing_of(seen, rows), title=title_of(seen), title_align="left"), refresh=True)
    return seen
