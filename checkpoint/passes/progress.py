"""The bar: it starts at what is done, its rate and time left come from this pass only, failures stand behind it.

There is no bar inside another pass, outside the main thread, or twice. Not on a terminal it is a line every ten seconds
and one at the end, so that a log stays readable. tqdm draws it; it is imported when the first bar is.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from checkpoint import clock

__all__ = ["Bar"]

log = logging.getLogger("checkpoint")
_LINE_EVERY = 10.0
_BROKEN = (OSError, ValueError, AttributeError)  # the stream was closed, or is none that can be written to
_open: weakref.WeakSet[Bar] = weakref.WeakSet()  # those of running passes; only the outermost shows a bar


class _Lines:
    """A stream that turns what tqdm draws in place into lines, less the first, which says that nothing is done yet."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = False

    def write(self, text: str) -> int:
        drawn = text.strip("\r\n ")
        if drawn and self._begun:
            self._stream.write(drawn + "\n")
        self._begun = self._begun or bool(drawn)
        return len(text)

    def flush(self) -> None:
        flush = getattr(self._stream, "flush", None)  # tqdm, too, can do without
        if flush is not None:
            flush()


class Bar:
    """One pass's bar, or its absence. Nobody watching (a closed terminal, a broken pipe) never ends a pass.

    Args:
        total: how many items there are, or None.
        done: how many of them are done already.
        desc: what stands before it.
        show: whether it is wanted.
        beside: what else is to be said at the moment, if anything is.
    """

    def __init__(
        self,
        total: int | None,
        done: int,
        desc: str | None,
        *,
        show: bool,
        beside: Callable[[], str] | None = None,
    ) -> None:
        self._beside = beside
        outermost = not _open
        _open.add(self)
        self._bar: Any = None
        self._failed, self._paused = 0, ""
        self._is_live = False  # it is drawn in place, on a terminal
        self._drawn = -_LINE_EVERY  # when it was last drawn for a pause
        self._closed = False
        if show and outermost and threading.current_thread() is threading.main_thread() and sys.stderr is not None:
            with self._watched():
                self._bar = _draw(total, done, desc)
                self._is_live = _is_terminal(sys.stderr)
                if self._is_live:
                    log.addFilter(self._make_room)

    def _make_room(self, _: logging.LogRecord) -> bool:
        """A message of ours stands on a line of its own; the bar is drawn again when it next moves."""
        if self._bar is not None:
            with self._watched():
                self._bar.clear()
        return True

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except _BROKEN:
            self._give_up()

    def _give_up(self) -> None:
        """Show nothing more."""
        if self._bar is not None:
            self._bar.disable = True  # or tqdm would try once more when it is collected
        self._bar = None

    def say(self, beside: Callable[[], str]) -> None:
        """Say this, too, from now on."""
        before = self._beside
        self._beside = beside if before is None else lambda: ", ".join(filter(None, (before(), beside())))

    def update(self, count: int, failed: int) -> None:
        """So many more items have been dealt with; so many have failed in all."""
        if self._bar is None:
            return
        try:  # as `_watched` does, which takes longer than the update
            if failed or self._beside is not None:
                self._failed = failed
                self._bar.set_postfix_str(self._told(), refresh=False)
            self._bar.update(count)
        except _BROKEN:
            self._give_up()

    def _told(self) -> str:
        """The words behind the bar."""
        told = (
            f"{self._failed:,} failed" if self._failed else "",
            self._paused,
            self._beside() if self._beside is not None else "",
        )
        return ", ".join(filter(None, told))

    def pause(self, seconds: float | None) -> None:
        """No calls have been made for so many seconds; None: they are made again."""
        if self._bar is None:
            return
        paused = "" if seconds is None else f"paused {seconds:.0f} s"
        if paused == self._paused:
            return
        with self._watched():
            self._paused = paused
            now = clock.monotonic()
            is_due = self._is_live or seconds is None or now - self._drawn >= _LINE_EVERY
            self._bar.set_postfix_str(self._told(), refresh=is_due)
            self._drawn = now if is_due else self._drawn

    def skip(self, count: int) -> None:
        """So many more items needed no work: they count, but not for the rate."""
        if self._bar is not None:
            with self._watched():
                self._bar.initial += count
                self._bar.update(count)

    def close(self) -> None:
        """Leave the last line as it stands."""
        if self._closed:
            return
        self._closed = True
        log.removeFilter(self._make_room)
        _open.discard(self)
        if self._bar is not None:
            with self._watched():
                if told := self._told():  # what a pass has cost, say, as it is now
                    self._bar.set_postfix_str(told, refresh=False)
                self._bar.close()


def _draw(total: int | None, done: int, desc: str | None) -> Any:
    options: dict[str, Any] = {"total": total, "initial": done, "desc": desc, "unit": "item", "dynamic_ncols": True}
    if "ipykernel" in sys.modules:
        from tqdm.auto import tqdm as notebook

        return notebook(**options)
    from tqdm import tqdm

    class Quiet(tqdm):  # type: ignore[type-arg,unused-ignore]
        monitor_interval = 0  # no thread of tqdm's: a live thread makes a user's fork warn

    if not _has_width(sys.stderr):
        options.update(dynamic_ncols=False, ncols=100, nrows=25)
    if _is_terminal(sys.stderr):
        return Quiet(**options)
    options.update(file=_Lines(sys.stderr), mininterval=_LINE_EVERY)
    return Quiet(**options)


def _is_terminal(stream: Any) -> bool:
    """Whether the stream says that it is a terminal; what stands in for stderr may have `write` and nothing else."""
    isatty = getattr(stream, "isatty", None)
    return isatty is not None and bool(isatty())


def _has_width(stream: TextIO) -> bool:
    """Whether it tells a width; a terminal of a container or of a script is often 0 columns wide."""
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):
        return False
