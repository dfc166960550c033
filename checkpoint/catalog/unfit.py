"""Find the results on disk that the classes of the annotation can no longer build, before anything is paid for.

Each record carries a digest of the schema under which it was saved. Meta says what a digest stands for, and which later
schemas all of its results fit. Results are read only where a digest differs from the present one and meta does not say.
No validator runs.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from checkpoint.catalog.schemas import ROOT, Moved, Schema, fits, spell
from checkpoint.catalog.view import VersionView
from checkpoint.errors import CheckpointError, ResultsUnfit, UnbuildableValue, plural, quote
from checkpoint.values.classes import field_types, is_validated, name_table
from checkpoint.values.codec import Codec
from checkpoint.values.keys import Key

__all__ = ["Unfit", "find_unfit"]


@dataclasses.dataclass(frozen=True, slots=True)
class Unfit:
    """Results that the present classes cannot build, or would build with a value of another type.

    Attributes:
        keys: theirs.
        reasons: what is wrong, the most frequent first, with how many results.
        error: what a pass raises.
    """

    keys: frozenset[Key]
    reasons: tuple[str, ...]
    error: ResultsUnfit


def find_unfit(records: VersionView, *, only_look: bool = False) -> Unfit | None:
    """The results of this version that do not fit the classes any more, or None.

    Args:
        records: their store is up to date.
        only_look: whether nothing is to be written: else meta notes that results fit, and they are not read again.
    """
    schema, checkpoint, version = records.schema, records.checkpoint, records.version
    if schema is None or not checkpoint.results.count(version):
        return None
    noted = checkpoint.schemas_of(version)
    last = checkpoint.results.last_schema(version)
    trusted = checkpoint.has_meta and bool(noted) and (last is None or last in noted)
    if not trusted or any(not _fits_already(schema, *one) for one in noted.items()):
        checkpoint.learn_meta()
        noted = checkpoint.schemas_of(version)
        trusted = trusted or (checkpoint.has_meta and bool(noted) and (last is None or last in noted))
    doubtful = {digest for digest, one in noted.items() if not _fits_already(schema, digest, one)}
    if trusted and not doubtful:
        return None
    search = _Search(schema, noted)
    for _, _, key, record in checkpoint.results.sound_places(version, lambda: None):
        if record.crc or record.session:
            search.look(key, record.schema, bytes(record.result))
    unfit = search.unfit(records)
    if unfit is None:
        with suppress(CheckpointError):  # where it cannot be noted, the results are read again next time
            if not (only_look or records.only_reads):
                checkpoint.note_fit(version, {digest: noted.get(digest) for digest in search.seen}, schema.digest)
    return unfit


def _fits_already(schema: Schema, digest: str, noted: Mapping[str, Any]) -> bool:
    if digest == schema.digest or schema.digest in noted.get("fits", ()):
        return True
    return isinstance(noted.get("classes"), dict) and not schema.moved_since(noted["classes"])


class _Search:
    """Reads results of other schemas, and counts what does not fit."""

    def __init__(self, schema: Schema, noted: Mapping[str, Any]) -> None:
        self.seen: set[str] = set()
        self._schema, self._noted = schema, noted
        self._moved: dict[str, Moved | None] = {}
        self._codec = Codec(schema.annotation, on_unnamed=self._note_unnamed)
        self._codec.on_built = self._note_built
        self._hints = {name: (cls, dict(field_types(cls))) for cls, name in name_table(schema.annotation).names.items()}
        self._names = {cls: name for name, (cls, _) in self._hints.items()}
        self._found: dict[Key, tuple[str, type | None, str | None]] = {}
        self._now: list[tuple[str, type | None, str | None]] = []
        self._current: Moved | None = None
        self._key: Key = None
        # of results whose schema is unknown, it shows only when all are seen
        self._maybe: dict[tuple[str, str], dict[Key, tuple[str, type | None, str | None]]] = {}
        self._well: set[tuple[str, str]] = set()
        self._strangers: dict[Key, str] = {}
        self._is_built = False
        self._total = 0

    def look(self, key: Key, digest: str, raw: bytes) -> None:
        """Read one result."""
        self._total += 1
        self.seen.add(digest)
        if digest == self._schema.digest:
            return
        moved = self._moved_of(digest)
        if moved is not None and not moved:
            return
        self._current, self._key, self._now = moved, key, []
        self._codec.forget_reported()
        try:
            value = self._codec.decode(raw)
        except UnbuildableValue as error:
            reason = str(error).removesuffix(", or set version= to compute these results anew")
            self._now.insert(0, (reason, error.cls, error.field))
        except ValueError:
            return  # reading it says what is missing on this machine
        else:
            self._check_field(ROOT, ROOT, value, self._schema.annotation, None)
        if self._now:
            self._found[key] = self._now[0]

    def _moved_of(self, digest: str) -> Moved | None:
        """How the classes moved since that schema; None where nobody knows what it was."""
        if digest not in self._moved:
            classes = self._noted.get(digest, {}).get("classes")
            fits = self._schema.digest in self._noted.get(digest, {}).get("fits", ())
            nothing = Moved(frozenset(), frozenset(), frozenset())
            known = self._schema.moved_since(classes) if isinstance(classes, dict) else None
            self._moved[digest] = nothing if fits else known
        return self._moved[digest]

    def _note_unnamed(self, name: str) -> None:
        if self._current is None:
            if not name.startswith("another "):
                self._strangers.setdefault(self._key, name)
        elif name in self._current.gone:
            self._now.append((self._is_renamed(name), None, None))

    def _is_renamed(self, name: str) -> str:
        named = ", ".join(name for name in self._schema.classes if name != ROOT) or "none"
        return f"they hold objects of class {name}, and the annotation names {named}: was it renamed?"

    def _note_built(self, cls: Any, made: Any) -> None:
        self._is_built = True
        name = self._names.get(cls)
        if name is None:
            return
        moved = self._current
        for field, hint in self._hints[name][1].items():
            if (moved is None and is_validated(cls)) or (moved is not None and (name, field) in moved.retyped):
                with suppress(AttributeError):
                    self._check_field(name, field, object.__getattribute__(made, field), hint, cls)

    def _check_field(self, name: str, field: str, value: Any, hint: Any, cls: Any) -> None:
        moved, place = self._current, (name, field)
        if name == ROOT and (moved is None or place not in moved.retyped):
            return
        config = getattr(cls, "model_config", {})
        if fits(value, hint, raw_enums=bool(config.get("use_enum_values"))):
            if value is not None:
                self._well.add(place)
            return
        where = f"{name}.{field}" if field else "the result"
        reason = (f"{where} is {spell(hint)}, and {quote(value, 40)}, a {type(value).__name__}, is stored", cls, field)
        if moved is not None:
            self._now.append(reason)
        elif value is not None:
            self._maybe.setdefault(place, {})[self._key] = reason

    def unfit(self, records: VersionView) -> Unfit | None:
        """All that was found."""
        found = dict(self._found)
        for place, maybe in self._maybe.items():
            if place not in self._well:
                found = {**maybe, **found}
        if not self._is_built:
            found = {**{key: (self._is_renamed(name), None, None) for key, name in self._strangers.items()}, **found}
        if not found:
            return None
        counts = Counter(reason.partition(", and ")[0] if ", a " in reason else reason for reason, *_ in found.values())
        first = next(iter(found))
        reason, cls, field = found[first]
        before = records.checkpoint.versions.get(records.version)
        spelled = quote(before, 60) if before is not None or not records.version else "…"  # a secret is not noted
        named = spell(self._schema.annotation)
        made = f"{named}(**old, …)" if named.isidentifier() else "…"
        error = ResultsUnfit(
            f"checkpoint {records.name!r}: {plural(len(found), 'result')} of {self._total:,} on disk "
            f"{'does' if len(found) == 1 else 'do'} not fit the class that the annotation names: {reason} (key "
            f"{quote(first, 60)}). Nothing was run; either\n"
            "    put the class back as it was, or give the field a default or an alias, so that old results fit;\n"
            '    or write on_change="recompute" in the decorator: these results are computed anew;\n'
            "    or write a version= of the new class in the decorator: it keeps both, and before the next map\n"
            f"    f.accept(version={spelled}, convert=lambda old: {made}) makes new results of the old ones, "
            "which it gets as plain JSON, without a call",
            cls=cls,
            field=field,
            count=len(found),
        )
        return Unfit(frozenset(found), tuple(reason for reason, _ in counts.most_common()), error)
