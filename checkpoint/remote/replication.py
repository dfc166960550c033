"""Which replica the journals of a directory have: one behind its URL, or none.

The promise: a directory is brought to a URL only where this user named it; what a file in the directory says is told
and not believed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from checkpoint.remote.urls import has_sign, tell_sign, url_at
from checkpoint.storage.journal import Journal
from checkpoint.storage.replica import NoReplica, Replica

__all__ = ["replica_of"]


def replica_of(name: str, directory: Path, journals: Mapping[str, Journal]) -> Replica:
    """The replica of the journals whose files begin with `name`.

    Args:
        name: what the files begin with.
        directory: where they are.
        journals: by kind.

    Raises:
        ExtraNeeded: what reads such URLs is not installed.
    """
    url = url_at(directory)
    if url is None and not has_sign(directory):
        return _Unnamed(directory)
    from checkpoint.remote.local_copy import LocalCopy

    copy = LocalCopy(name, directory, url or "", {kind: journal.path for kind, journal in journals.items()})
    if url is None:
        if copy.is_behind():
            tell_sign(directory)
        return _Unnamed(directory)
    from checkpoint.remote.uploader import Uploader

    return Uploader(copy, journals)


class _Unnamed(NoReplica):
    """A directory for which this user named no URL; a file in it may name one, which is told when writing begins."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def take_turn(self) -> None:
        """Say that nothing is uploaded, where a file in the directory says that it is."""
        if has_sign(self._directory):
            tell_sign(self._directory)
