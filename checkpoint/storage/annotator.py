"""What is added to records so that a journal alone tells what their digests stand for.

The promise: the first record of a version holds the version's value, the first record of a fingerprint its detail.
"""

from __future__ import annotations

from typing import Any

from checkpoint.storage.journals import Journals
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.meta import Meta
from checkpoint.storage.notes import detail_field, value_field
from checkpoint.storage.record import with_fields

__all__ = ["Annotator"]


class Annotator:
    """What the journals of one store are to say of versions and code, and do not say yet.

    Args:
        journals: the store's. `KeyedLog.settled` has the versions of which nothing is left to be said.
        meta: what knows the values of versions.
    """

    def __init__(self, journals: Journals, meta: Meta) -> None:
        self._journals = journals
        self._meta = meta
        # By version and code: how many passes compute with it, and the field of its detail.
        self._computing: dict[str, dict[str, tuple[int, bytes]]] = {}

    def begin(self, version: str, code: str, detail: Any) -> None:
        """Records of the version are computed by this code from here on: the first one in each journal says so."""
        passes, _ = self._computing.setdefault(version, {}).get(code, (0, b""))
        self._computing[version][code] = passes + 1, detail_field(detail)
        for each in self._journals:
            each.settled.discard(version)

    def end(self, version: str, code: str) -> None:
        """A pass that computed with this code is over."""
        codes = self._computing.get(version, {})
        passes, detail = codes.get(code, (0, b""))
        if passes > 1:
            codes[code] = passes - 1, detail
        elif codes.pop(code, None) is not None and not codes:
            del self._computing[version]

    def annotate(self, log: KeyedLog, version: str, lines: list[bytes]) -> int:
        """Add to one of the lines what the journal does not say yet of its version and code; which one, or -1."""
        if log is self._journals.unsaved:
            return -1
        notes = log.notes()
        place, fields = -1, b""
        for code, (_, detail) in self._computing.get(version, {}).items():
            place = next((place for place, line in enumerate(lines) if _names(line, code)), -1)
            fields = b"" if place < 0 or code in notes.details else detail
            if fields:
                break
        if version and version not in notes.labels and version in self._meta.labels:
            fields += value_field(self._meta.labels[version])
        if not fields:
            return -1
        place = max(place, 0)
        lines[place] = with_fields(lines[place], fields)
        return place

    def wrote(self, log: KeyedLog, version: str, lines: list[bytes], noted: int) -> None:
        """Lines of the version are written; the one at the offset `noted` (-1: none) says what digests stand for."""
        if noted >= 0:
            log.index.notes.append(noted)
        codes = self._computing.get(version, {})
        named = [code for code in codes if any(_names(line, code) for line in lines)]
        if named:
            log.index.note_codes(version, named)
        known = log.notes().details if len(codes) > 1 else named
        if all(code in known for code in codes):
            log.settled.add(version)


def _names(line: bytes, code: str) -> bool:
    """Whether a record names this code."""
    return b',"code":"%b"' % code.encode() in line
