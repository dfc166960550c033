"""What a checkpoint's meta file says: counts, for people, and what digests stand for.

The promise: the file is replaced at once or not at all, and is rebuildable: no journal tells less where it is gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from checkpoint import clock
from checkpoint.storage.condition import SYNCED
from checkpoint.storage.files import fsync, fsync_directory, read_object, replacing
from checkpoint.storage.source import RecordSource
from checkpoint.values.secrets import is_secret

__all__ = ["SCHEMA_VERSION", "Meta", "Summary", "count_or_none", "meta_in", "state_of"]

SCHEMA_VERSION = "2.0.0"
_MOST_CODES = 100  # that meta explains


class Summary(NamedTuple):
    """What the journals hold of the version of the last record, and what their notes say."""

    completed: int
    failed: int
    versions: Mapping[str, Any]
    codes: Mapping[str, Any]


class Meta:
    """One meta file: what was read of it, and what it is to say.

    Args:
        path: where the file is.
        told: (version, code) of changes that this process has told.

    Attributes:
        said: what the file said when it was read last.
        owed: whether what it is to say has changed since it was written.
        written_at: when it was written last; monotonic.
        total: how many items the last pass over the store's own journals had, where it knew.
        pass_since: when the pass that runs began, or the last one of this process; "" for none.
        labels: by digest, values of versions: as this process and meta files say; journals say them too.
        details: by fingerprint, what it stands for, likewise.
        schemas: what digests of schemas stand for: the classes of results, the versions whose results they may be of,
            and which later schemas all of them fit.
    """

    def __init__(self, path: Path, told: set[tuple[str, str]]) -> None:
        self.path = path
        self.told = told
        self.said = meta_in(path)
        self.owed = False
        self._written: object = None  # the state of the file that was written here last
        self.written_at = 0.0
        self.total = count_or_none(self.said.get("total_items"))
        self.pass_since = ""
        self.labels: dict[str, Any] = {}
        self.details: dict[str, Any] = {}
        self.schemas: dict[str, dict[str, Any]] = {}
        self.note(self.said)

    def read(self) -> dict[str, Any]:
        """What the file says at this moment."""
        return meta_in(self.path)

    def reread(self) -> None:
        """Begin with what the last pass said, wherever it ran."""
        self.said = self.read() or self.said
        self.total = count_or_none(self.said.get("total_items"))
        self.pass_since = ""

    def note(self, said: Mapping[str, Any]) -> None:
        """Learn what a meta file says that digests stand for: of old journals, which do not say it."""
        for kind, known in (("versions", self.labels), ("codes", self.details), ("schemas", self.schemas)):
            noted = said.get(kind)
            for digest, told in noted.items() if isinstance(noted, dict) else ():
                if kind == "schemas" and not (isinstance(told, dict) and isinstance(told.get("versions"), list)):
                    continue
                if not (kind == "versions" and is_secret("", told)):
                    known.setdefault(digest, told)

    def versions(self, results: RecordSource, errors: RecordSource) -> dict[str, Any]:
        """By digest, the values of versions, as far as they are known here and in journals."""
        known = dict(self.labels)  # other threads open versions meanwhile
        for source in (errors, results):
            known.update(source.notes().labels)
        return known

    def codes(self, results: RecordSource, errors: RecordSource) -> dict[str, Any]:
        """By fingerprint, what it stands for, as far as that is known here and in journals."""
        noted = {**errors.notes().details, **results.notes().details}
        return {**{code: told for code, told in self.details.items() if code not in noted}, **noted}

    def name_version(self, digest: str, version: Any) -> None:
        """Note that the digest stands for this version; one that holds a secret is not written down."""
        if not is_secret("", version):
            self.labels.setdefault(digest, version)

    # schemas

    def knows_schema(self, version: str, digest: str) -> bool:
        """Whether results of the version may be saved under this schema, and its classes are known."""
        known = self.schemas.get(digest)
        return known is not None and version in known["versions"] and "classes" in known

    def schemas_of(self, version: str, accepted: Iterable[str]) -> dict[str, Any]:
        """The schemas that results of the version may have been saved under, by digest; "" for none.

        Args:
            version: whose results.
            accepted: versions whose results were accepted for it.
        """
        found: dict[str, Any] = {}
        for each in (version, *accepted):
            theirs = {digest: known for digest, known in self.schemas.items() if each in known["versions"]}
            found.update(theirs or ({} if each == version else {"": {}}))
        return found

    def enter_schema(self, version: str, digest: str, parts: dict[str, Any]) -> None:
        """Note that results of the version may be of this schema, and what is known of it."""
        known = self.schemas.pop(digest, {"versions": []})
        versions = known["versions"]
        self.schemas[digest] = {**known, **parts, "versions": [*versions, *([] if version in versions else [version])]}
        for old in list(self.schemas)[:-_MOST_CODES]:
            del self.schemas[old]

    def enter_fit(self, version: str, digest: str, schema: str) -> None:
        """Note that all results of the version that are of the first schema fit the second one."""
        fits = self.schemas.get(digest, {}).get("fits", [])
        self.enter_schema(version, digest, {"fits": [*fits, *({schema, digest} - {*fits, digest})][-_MOST_CODES:]})

    # writing

    def compose(self, name: str, summary: Summary, synced: dict[str, int], cost: Mapping[str, Any]) -> str:
        """The text that the file is to have.

        Args:
            name: the checkpoint's.
            summary: what the journals hold.
            synced: by kind, how many bytes of each journal are on the medium.
            cost: what `Spending.to_meta` gave.
        """
        now = clock.Stamper()().decode()
        said = {
            "experiment_name": name,
            "started_at": self.said.setdefault("started_at", now),
            "last_updated": now,
            "last_pass": self.pass_since or self.said.get("last_pass", ""),
            "total_items": self.total,
            "completed_items": summary.completed,
            "failed_items": summary.failed,
            "schema_version": SCHEMA_VERSION,
            SYNCED: synced,
            "versions": summary.versions,
            "codes": dict(list(summary.codes.items())[-_MOST_CODES:]),
            **({"schemas": self.schemas} if self.schemas else {}),
            **cost,
        }
        text = json.dumps(said)
        try:
            return msgspec.json.format(text, indent=1) + "\n"  # at once: `json` indents in Python
        except ValueError:  # NaN, which a version may hold
            return json.dumps(said, indent=1) + "\n"

    def replace(self, text: str, temporary: str, *, durable: bool = False) -> None:
        """Replace the file atomically; where `durable`, its name and bytes are on the medium when this returns.

        Raises:
            OSError: it is what it was.
        """
        with replacing(self.path, temporary, at_leisure=not durable) as file:
            file.write(text.encode())
            if durable:
                file.flush()
                fsync(file.fileno())
        if durable:
            fsync_directory(self.path.parent)
        self._written = state_of(self.path)

    def is_as_written(self) -> bool:
        """Whether the file is the one that was written here last."""
        return self._written is not None and state_of(self.path) == self._written

    def clear(self) -> None:
        """Forget what was read and noted; versions keep their names, and the file is the caller's to delete."""
        self.total, self.said, self.owed = None, {}, False
        self.details, self.schemas = {}, {}
        self.told.clear()


def state_of(path: Path) -> object:
    """What another file in its place would not have; None where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def meta_in(path: Path) -> dict[str, Any]:
    """What a meta file says."""
    try:
        return read_object(path)
    except (OSError, ValueError):
        return {}  # missing, empty or garbage: rebuilt from the journals


def count_or_none(value: Any) -> int | None:
    """The value if it is a count, else None."""
    return value if type(value) is int and value >= 0 else None
