"""Spans of time, moments, sizes and rates in words: one style, whoever tells of them."""

from __future__ import annotations

__all__ = ["about", "ago", "ago_if_known", "lasted", "rate_in_words", "size_in_words", "span"]


def span(seconds: float) -> str:
    """A time in words, of at most two units: "23 s", "3 min 20 s", "2 h 5 min", "3 days 4 h"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return _pair(whole, 60, "min", 1, "s")
    if whole < 2 * 86_400:
        return _pair(whole, 3600, "h", 60, "min")
    return _pair(whole, 86_400, "days", 3600, "h") if whole < 1000 * 86_400 else f"{whole // 86_400:,} days"


def _pair(whole: int, size: int, unit: str, part: int, smaller: str) -> str:
    rest = whole % size // part
    return f"{whole // size:,} {unit}" + (f" {rest} {smaller}" if rest else "")


def ago(seconds: float) -> str:
    """How long ago, in one unit: "just now", "40 s ago", "3 min ago", "2 h ago", "5 days ago"."""
    if seconds < 2:
        return "just now"
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size or (size != 86_400 and seconds >= size):
            return f"{int(seconds // size):,} {unit} ago"
    return f"{int(seconds)} s ago"


def ago_if_known(idle: float | None) -> str:
    """How long ago something was, where that is known."""
    return "at an unknown time" if idle is None else ago(idle)


def about(seconds: float) -> str:
    """A time that is only expected, in words: "20 ms", "2.8 s", "40 s", "1 min 40 s"."""
    if seconds >= 60:
        return span(seconds)
    if seconds >= 1:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds * 1000:.0f} ms" if seconds >= 0.001 else "less than 1 ms"


def size_in_words(size: int) -> str:
    """Bytes, for people."""
    if size < 1_000:
        return f"{size} byte{'' if size == 1 else 's'}"
    amount, unit = next((size / 1000**n, unit) for n, unit in ((3, "GB"), (2, "MB"), (1, "kB")) if size >= 1000**n)
    return f"{amount:,.1f} {unit}"


def lasted(seconds: float) -> str:
    """How long a call took, in words."""
    if seconds >= 60:
        return span(seconds)
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"


def rate_in_words(rate: float) -> str:
    """A rate in words."""
    if rate >= 10:
        return f"{rate:,.0f} items/s"
    if rate >= 0.1:
        return f"{rate:.1f} items/s"
    return f"{rate * 60:.1f} items/min" if rate * 60 >= 0.1 else f"{rate * 3600:.1f} items/h"
