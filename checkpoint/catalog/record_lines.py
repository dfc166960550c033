"""The lines that the records of one version are written as: results, failures, and values that are kept aside.

The promise: a line is whole, sealed, and says what it is of: version, code, input, session, and when it was saved.
"""

from __future__ import annotations

import base64
import pickle
from collections.abc import Callable
from typing import Any

import msgspec

from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.errors import UnencodableValue
from checkpoint.outcomes import Encoded, Failure
from checkpoint.storage.record import seal, seal_parts
from checkpoint.values.keys import Key, key_json

__all__ = ["RecordLines", "with_notes"]

_RESULT = b'{"key":%b,"result":%b,"timestamp":"%b"%b,"input":"%032x","elapsed":%.6g,"attempts":%d%b'
_LONG = 1 << 20  # bytes of a value, of which no copy is made that can be saved
_encode_json = msgspec.json.Encoder().encode


class RecordLines:
    """What writes the lines of one version.

    Attributes:
        checkpoint: that they are of.
        version: its short digest, "" for none.
        encode: a value's JSON.
    """

    checkpoint: Checkpoint
    version: str
    encode: Callable[[Any], bytes]
    _fields: tuple[bytes, bytes]  # that name version, code and schema; and the session
    _plain_fields: bytes  # both
    _schema: bytes
    _stamp: Callable[[], bytes]

    def result_line(
        self, key: Key, raw: bytes, digest: int, elapsed: float | None = None, attempts: int | None = None,
        now: bytes = b"",
    ) -> bytes:  # fmt: skip
        """The record of an encoded result; `now` is what `stamp` gave, where several are saved together."""
        if elapsed is None or attempts is None or not digest or len(raw) > _LONG:
            return self._bare_line(key, raw, digest, elapsed, attempts, now)
        version, session = self._fields
        known = (key_json(key), raw, now or self.stamp_for(key), version, digest, elapsed, attempts, session)
        return seal(_RESULT % known)

    def stamp(self) -> bytes:
        """Now, where that is the timestamp of whatever is saved now; else b"": it is another for each key."""
        return b"" if self.checkpoint.shards else self._stamp()

    def stamp_for(self, key: Key) -> bytes:
        """Now; or later, where the record of the key in another shard is of a clock that is ahead."""
        stamp = self._stamp()
        return max(stamp, self.checkpoint.results.moment_after(self.version, key)) if self.checkpoint.shards else stamp

    def _bare_line(
        self, key: Key, raw: bytes, digest: int, elapsed: float | None, attempts: int | None, now: bytes
    ) -> bytes:
        fields = self._plain_fields
        if digest or elapsed is not None or attempts is not None:
            version, session = self._fields
            known = b',"input":"%032x"' % digest if digest else b""
            if elapsed is not None:
                known += b',"elapsed":%.6g' % elapsed
            if attempts is not None:
                known += b',"attempts":%d' % attempts
            fields = version + known + session
        stamp = now or self.stamp_for(key)
        return seal_parts(b'{"key":%b,"result":' % key_json(key), raw, b',"timestamp":"%b"%b' % (stamp, fields))

    def error_line(self, key: Key, failure: Failure, digest: int, earlier: float = 0.0) -> bytes:
        """The record of a failure; lines of attempts have told so much of its cost already."""
        version, session = self._fields
        said = with_notes(_text(failure.message), failure.notes, earlier)
        parts = [b'{"key":%b,"error":%b,"timestamp":"%b"' % (key_json(key), said, self._stamp())]
        if failure.type is not None:
            parts.append(b',"type":%b' % _text(failure.type))
        if failure.traceback is not None:
            parts.append(b',"traceback":%b' % _text(failure.traceback))
        if failure.given_up:
            parts.append(b',"given_up":true')
        if failure.paid is not None:
            parts.append(self._paid(failure.paid.value))
        if failure.attempts is not None:
            parts.append(b',"attempts":%d' % failure.attempts)
        if failure.elapsed is not None:
            parts.append(b',"elapsed":%.6g' % failure.elapsed)
        parts.append(version.removesuffix(self._schema) if self._schema else version)
        if digest:
            parts.append(b',"input":"%032x"' % digest)
        parts.append(session)
        return seal(b"".join(parts))

    def _paid(self, value: Any) -> bytes:
        """The field of a value that was paid for and is no result; its repr where it cannot be encoded."""
        try:
            raw = value.raw if type(value) is Encoded else self.encode(value)
        except UnencodableValue as error:
            raw = error
        if type(raw) is bytes:
            return b',"paid":%b' % raw
        return b',"repr":%b' % _text(_safe_repr(value.value if type(value) is Encoded else value))

    def _aside_line(self, key: Key, value: Any, digest: int, why: str) -> bytes:
        version, session = self._fields
        try:
            held = b'"pickle":%b' % _encode_json(base64.b64encode(pickle.dumps(value)).decode())
        except Exception:  # pickling runs the value's own code, which may raise anything
            held = b'"repr":%b' % _text(_safe_repr(value))
        known = b',"input":"%032x"' % digest if digest else b""
        return seal(
            b'{"key":%b,%b,"error":%b,"timestamp":"%b"%b%b%b'
            % (key_json(key), held, _text(why), self._stamp(), version, known, session)
        )


def with_notes(raw: bytes, notes: dict[str, Any] | None, earlier: float = 0.0) -> bytes:
    """An encoded result, or an error's message, with the field of what its calls noted, which a record has behind it.

    It stands before the timestamp, so that the end of a line tells the same however much was noted.

    Args:
        raw: it.
        notes: the fields; None for none.
        earlier: how much of the cost lines of failed attempts have told already.
    """
    if notes is None:
        return raw
    told = b',"earlier":%b' % _encode_json(earlier) if earlier else b""
    return b'%b,"notes":%b%b' % (raw, _encode_json(notes), told)


def _text(text: str) -> bytes:
    """A JSON string of any text; a lone surrogate becomes a replacement character, since a message is for people."""
    try:
        return _encode_json(text)
    except UnicodeEncodeError:
        return _encode_json(text.encode("utf-8", "replace").decode())


def _safe_repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception as error:  # a value's own __repr__ may raise anything
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"
