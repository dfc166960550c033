"""How far the store is behind, as the files of a directory tell: with no session, and whoever asks.

The promise: it is read from the journals and their state, so that it is right after a kill too.
"""

from __future__ import annotations

from checkpoint import clock
from checkpoint.errors import plural
from checkpoint.outcomes import Uploaded
from checkpoint.remote.local_copy import LocalCopy
from checkpoint.remote.state import Owed, State
from checkpoint.storage.reader import Reader

__all__ = ["told_waiting", "waiting"]

_BLOCK = 8 << 20


def waiting(mirror: LocalCopy) -> Uploaded:
    """What is in the journals here, and not in the store, as the files tell."""
    state = mirror.load() or State()
    behind = sum(span.stop - span.start for kind in mirror.paths for span in _spans_of(mirror, state, kind))
    seconds = max(0.0, clock.now() - state.sent) if behind and state.sent else 0.0
    return Uploaded(behind, seconds, "")


def _spans_of(mirror: LocalCopy, state: State, kind: str) -> list[Owed]:
    reader = Reader.open(mirror.paths[kind])
    return [] if reader is None else state.spans(kind, reader.size())


def told_waiting(mirror: LocalCopy) -> str:
    """How much is not in the store, in words."""
    return f"{plural(_results_waiting(mirror), 'result')} ({plural(waiting(mirror).bytes, 'byte')})"


def _results_waiting(mirror: LocalCopy) -> int:
    reader, state = Reader.open(mirror.paths["results"]), mirror.load() or State()
    if reader is None:
        return 0
    spans = _spans_of(mirror, state, "results")
    return sum(
        reader.pread(min(_BLOCK, span.stop - at), at).count(b"\n")
        for span in spans
        for at in range(span.start, span.stop, _BLOCK)
    )
