"""What is printed: to a terminal with rich where it is there, else plain text; all of it shown, none of it run."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from checkpoint.errors import printable, sayable
from checkpoint.reporting.status import Survey

__all__ = [
    "console_here",
    "drawing_of",
    "print_json",
    "print_line",
    "print_parts",
    "print_table",
    "title_of",
]


def console_here() -> Any:
    """What draws, or None: not on a terminal, not in an encoding that has its characters, or rich is not installed."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb" or not _is_utf8(sys.stdout):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _is_utf8(stream: Any) -> bool:
    try:
        return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    except LookupError:
        return False


def title_of(seen: Survey) -> Any:
    """The checkpoint's name and directory, for rich to print."""
    from rich.text import Text

    return Text.assemble((printable(seen.name), "bold"), (f"  {printable(seen.directory)}", "dim"))


_STYLES = {"errors": "red", "latest": "dim"}


def drawing_of(seen: Survey, rows: Iterable[tuple[str, list[str]]]) -> Any:
    """The rows under a bar, for rich to print."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    if seen.total and seen.done <= seen.total:
        grid.add_row("", ProgressBar(seen.total, seen.done, width=60))
    for label, lines in rows:
        grid.add_row(label, Text("\n".join(map(printable, lines)), style=_STYLES.get(label, "")))
    return grid


def print_table(head: Sequence[tuple[str, str]], rows: Sequence[tuple[str, ...]]) -> None:
    """Print rows under a head, in columns."""
    shown = [tuple(map(printable, row)) for row in rows]
    names = tuple(name for name, _ in head)
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    console = console_here()
    if console is not None and console.width >= sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], 30):
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for place, (name, side) in enumerate(head):
            table.add_column(name, justify="right" if side == ">" else "left", no_wrap=place < len(head) - 1)
        for row in shown:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    for row in (names, *shown):
        cells = (f"{cell:{side}{width}}" for cell, width, (_, side) in zip(row, widths, head, strict=True))
        print_line("  ".join(cells).rstrip())


def print_parts(*parts: tuple[str, str]) -> None:
    """One line of (text, style); a leading newline stands for an empty line before it."""
    texts = [(text if text == "\n" else printable(text), style) for text, style in parts]
    console = console_here()
    if console is None:
        print_line("".join(text for text, _ in texts))
    else:
        from rich.text import Text

        console.print(Text.assemble(*texts), soft_wrap=True)


def print_json(told: dict[str, Any]) -> None:
    """Print one JSON object."""
    print(json.dumps(told, indent=1))


def print_line(text: str, stream: Any = None) -> None:
    """Lines of text. What a terminal would take for an order, and what its encoding lacks, is escaped."""
    stream = stream or sys.stdout
    lines = "\n".join(map(printable, text.split("\n")))
    print(sayable(lines, stream), file=stream)
