"""The whole history of one key: each record of it that is still in the files, of all versions, and which of them count.

The promise: it only reads, beside whoever writes; what a line says is told as it stands there, superseded lines and
those that forget included. The journals are read whole.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.locate import locate
from checkpoint.catalog.view import LATEST, VersionView
from checkpoint.errors import plural, printable, quote, shorten
from checkpoint.reporting.columns import json_text, jsonable, tidy_result
from checkpoint.storage.keyed_log import KeyedLog
from checkpoint.storage.record import Record, parse
from checkpoint.storage.spending import cost_in, cost_text, notes_of
from checkpoint.values.keys import Key, identity, key_from_json, plain_json
from checkpoint.words import lasted

__all__ = ["KeyHistory", "Occasion", "history_of"]

_SHOWN = 100  # characters


@dataclass(frozen=True, slots=True)
class Occasion:
    """One record of the key.

    Attributes:
        kind: "result", "error" or "forgotten".
        counts: whether it is what the checkpoint holds of the key, under its version.
        record: it.
        label: what its version stands for; None where that is not known, and for no version.
    """

    kind: str
    counts: bool
    record: Record
    label: Any

    def to_json(self) -> dict[str, Any]:
        """A JSON object; these names stay.

        `kind`, `counts`, `timestamp`, `version`, `label`, `session`; where known `attempts`, `elapsed`, `cost`,
        `notes` (without the cost), `from`; of a result `result`, of an error `type`, `message`, `traceback`.
        """
        record, notes = self.record, _notes(self.record)
        told = {
            "kind": self.kind,
            "counts": self.counts,
            "timestamp": record.timestamp,
            "version": record.version,
            "label": self.label,
            "session": record.session,
        }
        more = {"attempts": record.attempts, "elapsed": record.elapsed, "cost": cost_in(record), "notes": notes or None}
        told.update({name: value for name, value in (*more.items(), ("from", record.origin)) if value is not None})
        if self.kind == "result":
            told["result"] = _plain(record)
        if self.kind == "error":
            told.update({"type": record.type, "message": record.error, "traceback": record.traceback})
        return told

    def lines(self) -> Iterator[str]:
        """For people: when and how it went; the value or the error; and what was noted."""
        record, cost = self.record, cost_in(self.record)
        parts = [record.timestamp or "no time", self.kind + (" (counts)" if self.counts else "")]
        if record.version:
            parts.append(f"version {record.version}" + ("" if self.label is None else f" {quote(self.label, 60)}"))
        if record.attempts is not None:
            parts.append(plural(record.attempts, "attempt"))
        if record.elapsed is not None:
            parts.append(lasted(record.elapsed))
        if cost is not None:
            parts.append(f"cost {cost_text(cost)}")
        yield " · ".join(parts)
        if self.kind == "result":
            yield f"  {shorten(json_text(_plain(record)), _SHOWN)}"
        if self.kind == "error":
            yield f"  {shorten(f'{record.type}: {record.error}' if record.type else record.error or '', _SHOWN)}"
        for name, value in _notes(record).items():
            yield f"  note {name}: {shorten(json_text(value), _SHOWN)}"


@dataclass(frozen=True, slots=True)
class KeyHistory:
    """Everything that the files say about one key. `str()` is for people, `to_json` for programs.

    Attributes:
        name, directory: the checkpoint's.
        key: it.
        occasions: its records, the earliest first; none where nothing is known of it.
    """

    name: str
    directory: str
    key: Key
    occasions: tuple[Occasion, ...]

    def to_json(self) -> dict[str, Any]:
        """`name`, `directory`, `key`, `records`, as `Occasion.to_json` has them."""
        return {
            "name": self.name,
            "directory": self.directory,
            "key": plain_json(self.key),
            "records": [occasion.to_json() for occasion in self.occasions],
        }

    def __str__(self) -> str:
        told = [f"key {quote(self.key)} of checkpoint {self.name!r} in {self.directory}"]
        told += [f"  {line}" for occasion in self.occasions for line in occasion.lines()]
        costs = [cost for occasion in self.occasions if (cost := cost_in(occasion.record)) is not None]
        if len(costs) > 1:
            told.append(f"  cost {cost_text(sum(costs))} in all")
        return "\n".join(map(printable, told))


def history_of(
    name: str, keys: Sequence[Key], checkpoint_dir: str | os.PathLike[str] | None = None
) -> list[KeyHistory]:
    """The history of each of the keys of which any is known.

    Args:
        name: the checkpoint's.
        keys: they.
        checkpoint_dir: default ``$CHECKPOINT_DIR``, else ``./checkpoints``.

    Raises:
        InvalidName, StoreError: as `survey`.

    Example:
        >>> with CheckpointedRunner("squares") as runner:
        ...     runner.save_error(3, ValueError("odd"))
        ...     runner.save_result(3, 9)
        >>> (history,) = history_of("squares", [3, 4])
        >>> [(occasion.kind, occasion.counts) for occasion in history.occasions]
        [('error', False), ('result', True)]
    """
    directory = locate(name, checkpoint_dir)
    with closing(VersionView(name, directory, version=LATEST, power=False, result_type=None)) as records:
        checkpoint = records.open()
        found: dict[bytes, list[Occasion]] = {identity(key): [] for key in keys}
        for part in checkpoint.parts:
            for log, kind in zip(part, ("result", "error"), strict=True):
                for key, occasion in _occasions(checkpoint, log, kind, found.keys(), keys):
                    found[identity(key)].append(occasion)
        return [
            KeyHistory(name, str(directory), key, tuple(_judged(checkpoint, key, found[identity(key)])))
            for key in keys
            if found[identity(key)]
        ]


def _occasions(
    checkpoint: Checkpoint, log: KeyedLog, kind: str, wanted: Any, keys: Sequence[Key]
) -> Iterator[tuple[Key, Occasion]]:
    """(key, occasion) of each sound line of one of the keys."""
    texts = {str(key): key for key in keys}
    if log.reader is None:
        return
    for _, block in log.reader.blocks(0, lambda offset, size: None):
        for line in block.split(b"\n"):
            try:
                record = parse(line)
                key = key_from_json(record.key)
            except ValueError:  # empty, damaged, or no record
                continue
            if not record.crc:  # it stands for any key of equal str()
                key = texts.get(str(key), key)
            if identity(key) in wanted:
                label = checkpoint.versions.get(record.version) if record.version else None
                yield key, Occasion("forgotten" if record.forgotten else kind, False, record, label)


def _judged(checkpoint: Checkpoint, key: Key, occasions: list[Occasion]) -> Iterator[Occasion]:
    """The same in order of time, and which of them count: of each version the result, or the error without one."""
    held: dict[str, Record] = {}
    for version in {occasion.record.version for occasion in occasions}:
        for source in (checkpoint.results, checkpoint.errors):
            found = source.read(version, key)
            if found is not None:
                held[version] = found[2]
                break
    for occasion in sorted(occasions, key=attrgetter("record.timestamp")):
        record, last = occasion.record, held.get(occasion.record.version)
        if last is None or occasion.kind == "forgotten":
            yield occasion
        else:
            yield replace(occasion, counts=(record.crc, record.timestamp) == (last.crc, last.timestamp))


def _notes(record: Record) -> dict[str, Any]:
    """Return the noted fields other than the cost."""
    return {name: _followed(value) for name, value in notes_of(record).items() if name != "cost"}


def _followed(value: Any) -> Any:
    """The value; a text in its place where another program nested it deeper than can be followed."""
    try:
        json_text(value)
    except ValueError:
        return "(nested too deep to be shown)"
    return value


def _plain(record: Record) -> Any:
    raw = bytes(record.result)
    try:
        return jsonable(tidy_result(raw, sealed=bool(record.crc or record.session)))
    except ValueError:  # too deep, or an envelope of another version: what stands in the file
        return raw.decode("utf-8", "replace")
