"""What is known of damaged lines of one journal: those that scans skip, and those that a reader has met.

The promise: whoever finds a line damaged changes no byte of the journal. The key is noted in a hidden file beside it,
where that can be written, and whoever opens the journal next looks at its line again. The file may be deleted at will.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from checkpoint.errors import printable, shorten
from checkpoint.storage.files import open_safely, replacing, write_all
from checkpoint.storage.reader import Reader
from checkpoint.values.keys import Key, key_from_json, key_json

__all__ = ["DamageNotes", "SkippedLines"]

log = logging.getLogger("checkpoint")
_SHOWN = 10
_MOST = 1 << 20  # bytes of the file that are read, and written


class SkippedLines:
    """The damaged lines of one journal that scans have found and nobody was warned of yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[tuple[int, str]] = []

    def note(self, offset: int, why: str) -> None:
        """A scan found a damaged line."""
        self._lines.append((offset, why))

    def clear(self) -> None:
        """The lines are read again, and are found again then."""
        self._lines = []

    def tell(self, reader: Reader | None) -> None:
        """Give one warning for all the damage of one scan: it comes with each opening, since the bytes stay."""
        damage, self._lines = self._lines, []
        if not damage or reader is None:
            return
        numbers = [reader.line_number(offset) for offset, _ in damage[:_SHOWN]]
        where, why = f"{self._path}:{numbers[0]}", printable(shorten(damage[0][1]))
        if len(damage) == 1:
            log.warning("%s: damaged line skipped: %s; its bytes stay in the file", where, why)
            return
        others = ", ".join(map(str, numbers[1:])) + (", …" if len(damage) > _SHOWN else "")
        log.warning("%s: damaged line skipped: %s; so are lines %s; their bytes stay in the file", where, why, others)


class _Note(msgspec.Struct):
    key: object
    version: str = ""
    line: str = ""


Noted = tuple[str, Key]  # (version, key)


class DamageNotes:
    """The keys whose lines were found damaged by a reader, on disk.

    Args:
        journal: the path of the journal that they are of.
    """

    def __init__(self, journal: Path) -> None:
        self.path = journal.with_name(f".{journal.stem.lstrip('.')}.damaged")

    def add(self, noted: Noted, line: str) -> None:
        """Note a key, where that can be written; with the checksum of its line, where only the value is damaged."""
        try:
            fd = open_safely(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                if os.fstat(fd).st_size < _MOST:
                    write_all(fd, _line(noted, line))
            finally:
                os.close(fd)
        except OSError as error:
            log.debug("the damage of a record was not noted in %s: %s", self.path, error)

    def read(self) -> dict[Noted, str]:
        """The keys that are noted, with what `add` was told of their lines; what is no note is passed over."""
        try:
            fd = open_safely(self.path, os.O_RDONLY)
        except OSError:
            return {}
        try:
            with os.fdopen(fd, "rb") as file:
                lines = file.read(_MOST).split(b"\n")
        except OSError:
            return {}
        found: dict[Noted, str] = {}
        for line in lines:
            try:
                note = _decode(line)
                found[note.version, key_from_json(note.key)] = note.line
            except (ValueError, RecursionError):
                continue
        return found

    def keep(self, noted: Mapping[Noted, str]) -> None:
        """These stay, and no others; call it under the lock of who writes the journal."""
        lines = b"".join([_line(each, line) for each, line in noted.items()])
        try:
            if lines:
                with replacing(self.path, self.path.name.removeprefix(".")) as file:
                    file.write(lines)
            else:
                self.unlink()
        except OSError as error:
            log.debug("%s was not brought up to date: %s", self.path, error)

    def unlink(self) -> None:
        """Delete the file.

        Raises:
            OSError: it is there still.
        """
        self.path.unlink(missing_ok=True)


_decode = msgspec.json.Decoder(_Note).decode


def _line(noted: Noted, line: str) -> bytes:
    version, key = noted
    told = b',"line":"%b"' % line.encode() if line else b""
    return b'{"key":%b,"version":%b%b}\n' % (key_json(key), msgspec.json.encode(version), told)
