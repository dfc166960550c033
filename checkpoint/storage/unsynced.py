"""The mark beside a journal that says that a sync of it has failed: `.NAME_results.unsynced`.

The promise: whoever writes the journal next learns of a failed sync, also in another process. It is no cache. Linux
tells of a failed write-back once, and counts the pages as written from then on: to sync once more succeeds and does
nothing, whoever does it. Only what is written again is synced. After a crash of the system the mark says nothing any
more: what can be read then is what the medium has.
"""

from __future__ import annotations

import json
import logging
import os
from functools import lru_cache
from pathlib import Path

from checkpoint.clock import Stamper
from checkpoint.storage.files import fsync_directory, read_object, replacing, store_error

__all__ = ["leave_mark", "marked_from", "remove_mark"]

log = logging.getLogger("checkpoint")


@lru_cache(maxsize=256)  # it is looked for in each pass
def _mark_of(journal: Path) -> Path:
    return journal.with_name(f".{journal.stem.lstrip('.')}.unsynced")


def leave_mark(journal: Path, start: int, why: OSError) -> None:
    """Note that bytes of the journal from `start` on may not be on the medium; an earlier mark counts too.

    Where it cannot be noted, only this process knows.
    """
    mark, before = _mark_of(journal), marked_from(journal)
    said = {"from": start if before is None else min(start, before), "timestamp": Stamper()().decode()}
    said["error"] = why.strerror or str(why)
    try:
        with replacing(mark, mark.stem.lstrip(".")) as file:
            file.write(json.dumps(said).encode() + b"\n")
    except OSError as error:
        log.debug("%s was not written: %s", mark, error)


def marked_from(journal: Path) -> int | None:
    """From where on bytes of the journal may not be on the medium, as a mark says; None where there is none."""
    mark = _mark_of(journal)
    if not os.path.lexists(mark):
        return None
    try:
        start = read_object(mark).get("from")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return 0  # it is there, and says nothing
    return start if type(start) is int and start >= 0 else 0


def remove_mark(journal: Path) -> None:
    """All of the journal is on the medium.

    Raises:
        StoreError: the mark may be there still.
    """
    mark = _mark_of(journal)
    try:
        if os.path.lexists(mark):
            mark.unlink(missing_ok=True)
            fsync_directory(mark.parent)
    except OSError as error:
        raise store_error(error, "cannot delete", mark) from error
