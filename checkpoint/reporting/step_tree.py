"""An item's steps as a tree of lines.

The promise: it only reads, and tells of each step what is on disk.
"""

from __future__ import annotations

from collections.abc import Iterator

from checkpoint.catalog.taken import StepNode
from checkpoint.errors import printable, quote, shorten

__all__ = ["tree_lines"]


def tree_lines(tree: StepNode) -> list[str]:
    """An item, and below it each step that its call has taken, with those of each; one line each."""
    return list(_lines(tree, "", ""))


def _lines(node: StepNode, first: str, rest: str) -> Iterator[str]:
    yield f"{first}{node.name} {quote(node.key, 60)}: {_told(node)}"
    for place, step in enumerate(node.steps, 1):
        is_last = place == len(node.steps)
        yield from _lines(step, rest + ("└── " if is_last else "├── "), rest + ("    " if is_last else "│   "))


def _told(node: StepNode) -> str:
    record, told = node.record, [str(node.state)]
    if record is not None and record.elapsed is not None:
        told.append(f"in {record.elapsed:.3g} s")
    if record is not None and (record.attempts or 1) > 1:
        told.append(f"at attempt {record.attempts}")
    if node.version:
        told.append(f"version {quote(node.version if node.label is None else node.label, 40)}")
    if record is not None and node.state == "failed":
        told.append(printable(shorten(f"{record.type or 'error'}: {record.error}", 80)))
    return ", ".join(told)
