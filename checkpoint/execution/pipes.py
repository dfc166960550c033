"""Pipes between this process and its workers: whole messages, and what is said besides answers."""

from __future__ import annotations

import os
import selectors
import struct
from collections.abc import Callable
from typing import Any

__all__ = ["DIFFERS", "END", "LOADED", "READ", "REFUSED", "STEP", "WRITE", "make_pipe", "make_selector"]


END = b""  # in place of a task
LOADED = b""  # in place of answers
REFUSED = b"!"  # begins what a worker says who cannot load what it was sent; answers begin otherwise
DIFFERS = b"?"  # begins what a worker says to which the function is another one
STEP = b"s"  # begins what is said of a step that a call takes, both ways
_SIZE = struct.Struct("!Q")
_PIECE = 1 << 16  # bytes that are read, or written together with their size, at once
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


class _Pipe:
    """Messages both ways, each after its size.

    Args:
        reader: the end of a pipe that is received from.
        writer: that of another that is sent to.
        waits: whether sending and receiving do, until all is through.
    """

    def __init__(self, reader: Any, writer: Any, *, waits: bool) -> None:
        self.reader, self.writer, self._waits = reader, writer, waits
        self._source, self._sink = reader.fileno(), writer.fileno()
        self._unsent: list[bytes | memoryview] = []
        self._expect()
        self._set_up()

    def _set_up(self) -> None:
        os.set_blocking(self._source, self._waits)
        os.set_blocking(self._sink, self._waits)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def _expect(self, rest: bytes = b"") -> None:
        self._parts: list[bytes] = [rest] if rest else []  # of a message that is not all there yet
        self._missing = _SIZE.size - len(rest)  # bytes
        self._has_size = False

    @property
    def has_more(self) -> bool:
        """Whether a part of the next message came with the last one."""
        return bool(self._parts)

    def send(self, message: bytes) -> bool:
        """Whether all of it is sent; else `flush` goes on."""
        size = _SIZE.pack(len(message))
        self._unsent += [size + message] if len(message) < _PIECE else [size, memoryview(message)]
        return self.flush()

    def flush(self) -> bool:
        """Send what goes; whether it is all."""
        try:
            while self._unsent:
                rest = self._unsent[0][os.write(self._sink, self._unsent[0]) :]
                self._unsent[:1] = [rest] if rest else []
        except BlockingIOError:
            return False
        return True

    def receive(self) -> bytes | None:
        """The next message; None: it is not all there yet.

        Raises:
            EOFError: the other end is gone.
        """
        try:
            while (message := self._complete()) is None:
                part = os.read(self._source, _PIECE)
                if not part:
                    raise EOFError
                self._parts.append(part)
                self._missing -= len(part)
        except BlockingIOError:
            return None
        return message

    def _complete(self) -> bytes | None:
        """The message, once all of it is there; what came after it is kept."""
        if self._missing <= 0 and not self._has_size:
            begun = b"".join(self._parts)
            self._parts = [begun[_SIZE.size :]]
            self._missing += _SIZE.unpack_from(begun)[0]
            self._has_size = True
        if self._missing > 0 or not self._has_size:
            return None
        message, more = b"".join(self._parts), -self._missing
        self._expect(message[len(message) - more :])
        return message[: len(message) - more] if more else message


class _WholePipe(_Pipe):
    """The same on Windows, where a pipe is not read in parts: who sends or receives waits for the whole message."""

    def _set_up(self) -> None: ...

    def send(self, message: bytes) -> bool:
        self.writer.send_bytes(message)
        return True

    def receive(self) -> bytes | None:
        return self.reader.recv_bytes() if self._waits or self.reader.poll() else None


class _Waiter(selectors.SelectSelector):
    """Selects among pipes and processes on Windows."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        from multiprocessing.connection import wait

        keys = self.get_map()
        return [(keys[one], READ) for one in wait([key.fileobj for key in keys.values()], timeout)]  # type: ignore[misc]


make_pipe: type[_Pipe] = _WholePipe if os.name == "nt" else _Pipe
make_selector: Callable[[], selectors.BaseSelector] = _Waiter if os.name == "nt" else selectors.DefaultSelector
