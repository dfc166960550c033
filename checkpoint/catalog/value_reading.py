"""What records hold, as it is read: the value that went in, what `parse` makes of it, and failures.

The promise: what is read is the same as what was saved, or an error that names the line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from checkpoint.errors import InvalidOption, ItemError, UnbuildableValue, printable, quote
from checkpoint.outcomes import describe_exception
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import Record
from checkpoint.values.keys import Key
from checkpoint.values.plain_json import decode_foreign

__all__ = ["ValueReading", "item_error", "parsed_by"]


class ValueReading:
    """What reads values from records.

    Attributes:
        decode: the value that was encoded as these bytes.
        parse: what is made of each value that is read; None: it is read as it is.
    """

    decode: Callable[[bytes], Any]
    parse: Callable[[Any], Any] | None = None

    def error_of(self, key: Any, record: Record) -> ItemError:
        """What stands in a failed item's place, with the value that was paid for, if its record has one."""
        error = item_error(key, record)
        if raw := bytes(record.paid):
            try:
                error.value = self.decode(raw)
            except ValueError:
                error.value = None
            except UnbuildableValue:  # its class has changed: whoever looks why it failed gets what is there
                error.value = decode_foreign(raw)
        elif record.repr is not None:
            error.value = record.repr
        return error

    def _value(self, reader: Reader, offset: int, record: Record, key: Key) -> Any:
        value = self._decoded(reader, offset, record, key)
        return value if self.parse is None else self.parsed(key, value, record.attempts, record.elapsed)

    def parsed(self, key: Key, value: Any, attempts: int | None = None, elapsed: float | None = None) -> Any:
        """What `parse` makes of a value that was decoded for it.

        Raises:
            ItemError: it raised; `.value` is the value, and `__cause__` what was raised.
        """
        assert self.parse is not None
        return parsed_by(self.parse, key, value, attempts, elapsed)

    def _decoded(self, reader: Reader, offset: int, record: Record, key: Key) -> Any:
        raw = bytes(record.result)
        try:
            return self.decode(raw) if record.crc or record.session else decode_foreign(raw)
        except UnbuildableValue as error:
            raise UnbuildableValue(
                f"{reader.where(offset)}, key {quote(key)}: {error}", cls=error.cls, field=error.field
            ) from None
        except ValueError as error:
            if not record.crc:
                raise reader.damaged(offset, f"its result cannot be decoded: {error}", key=key) from None
            # The bytes are those that were written: it is this process that lacks what it takes to read them.
            raise UnbuildableValue(f"{reader.where(offset)}, key {quote(key)}: {error}") from None

    value_of = _value  # for who has read the record


def parsed_by(
    parse: Callable[[Any], Any], key: Key, value: Any, attempts: int | None = None, elapsed: float | None = None
) -> Any:
    """What `parse` makes of the value of a key.

    Raises:
        ItemError: it raised; `.value` is the value, and `__cause__` what was raised.
    """
    try:
        made = parse(value)
        if hasattr(made, "__await__"):
            raise InvalidOption(f"parse returned {quote(made)}; it must be a plain function of the value")
        return made
    except Exception as error:
        told = describe_exception(error, skip=1)
        raise ItemError(
            f"item {quote(key)} failed: parse raised {printable(f'{told.type}: {told.message}')}; what was paid "
            f"for is kept, and is the .value of this error",
            key=key,
            type=told.type,
            message=told.message,
            traceback=told.traceback,
            attempts=attempts,
            elapsed=elapsed,
            value=value,
            given_up=told.given_up,
        ) from error


def item_error(key: Any, record: Record) -> ItemError:
    """What stands in a failed item's place."""
    message = record.error or ""
    shown = f"{record.type}: {message}" if record.type else message
    return ItemError(
        f"item {quote(key)} {'was given up' if record.given_up else 'failed'}: {printable(shown)}",
        key=key,
        type=record.type,
        message=message,
        traceback=record.traceback,
        attempts=record.attempts,
        elapsed=record.elapsed,
        given_up=record.given_up,
    )
