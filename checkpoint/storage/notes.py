"""What a journal says that its digests stand for, and which results somebody accepted.

The promise: journals alone are enough to tell. The first record of a version holds the version's value, the first
record of a fingerprint holds its detail, and a line that accepts counts in every process and on every machine.

    …,"detail":{"parts":…,"values":…},"value":{"prompt":"…","model":"small"},"crc":"…"}
    {"accepts":"2-…-…","for":"2-…-…","timestamp":"…","crc":"…"}     results of some code count for other code, too
    {"accepts":"","for":"3f0e…","timestamp":"…","crc":"…"}          results of a version ("" is none) for another one
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from checkpoint import clock
from checkpoint.errors import UnencodableValue
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Acceptance, NoRecord, parse, seal
from checkpoint.values.codec import Codec
from checkpoint.values.keys import stands_for
from checkpoint.values.secrets import is_secret

__all__ = ["Notes", "accepting", "detail_field", "value_field"]

_codec = Codec(only=frozenset({"$tuple", "$dict", "$map", "$str", "$int", "$float"}))  # what is JSON-like
_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class Notes:
    """What was read so far.

    Attributes:
        labels: by digest, the values of versions.
        details: by fingerprint, what it stands for.
        accepted: the lines that accept, in the order of the journal.
    """

    labels: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    accepted: list[Acceptance] = field(default_factory=list)

    def counting_for(self, version: str) -> list[str]:
        """The versions whose records may count for a version: its own, and those that were accepted for it."""
        found = [version]
        for each in found:  # which grows
            found += [line.accepts for line in self.accepted if line.of == each and line.accepts not in found]
        return found

    def read(self, reader: Reader, offsets: Iterable[int]) -> None:
        """Add what the lines at these offsets say; of damaged ones nothing."""
        for offset in offsets:
            try:
                record = parse(reader.line_at(offset))
            except NoRecord as found:
                if found.acceptance is not None:
                    self.accepted.append(found.acceptance)
                continue
            except ValueError:
                continue
            if not record.crc:
                continue
            if record.detail and type(record.code) is str:
                self.details.setdefault(record.code, _decoded(record.detail))
            if record.value and record.version not in self.labels:
                value = _decoded(record.value)
                if stands_for(record.version, value) and not is_secret(
                    "", value
                ):  # earlier versions wrote secrets down
                    self.labels[record.version] = value

    def add(self, other: Notes) -> None:
        """Add what another journal says."""
        self.labels = {**other.labels, **self.labels}
        self.details = {**other.details, **self.details}
        self.accepted += other.accepted


def _decoded(raw: msgspec.Raw) -> Any:
    try:
        return _codec.decode(bytes(raw))
    except ValueError:
        return None


def detail_field(detail: Any) -> bytes:
    """The field of a record that says what its fingerprint stands for; b"" where no line can hold it."""
    return _field(b"detail", detail)


def value_field(value: Any) -> bytes:
    """The field of a record that says what its version is; b"" where no line can hold it."""
    return _field(b"value", value)


def _field(name: bytes, value: Any) -> bytes:
    try:
        return b',"%b":%b' % (name, _codec.encode(value))
    except UnencodableValue:
        return b""


def accepting(old: str, new: str) -> bytes:
    """The line that accepts the results of some code for other code, or those of a version for another version."""
    return seal(b'{"accepts":%b,"for":%b,"timestamp":"%b"' % (_encode(old), _encode(new), clock.Stamper()()))
