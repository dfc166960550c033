"""Read what stands in a checkpoint's meta file: counts, for people; nothing depends on it that a journal tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoint.storage.files import read_object

__all__ = ["SCHEMA_VERSION", "count_or_none", "meta_in"]


SCHEMA_VERSION = "2.0.0"


def meta_in(path: Path) -> dict[str, Any]:
    """What a meta file says."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}  # missing, empty or garbage: rebuilt from the journals


def count_or_none(value: Any) -> int | None:
    """The value if it is a count, else None."""
    return value if type(value) is int and value >= 0 else None
