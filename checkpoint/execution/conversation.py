"""What a worker process of ours and its driver say to each other: tasks and answers, and the steps that calls take.

The promise: whoever asks, from whichever thread of the worker, gets the answer to its own question; and what is asked
in a process that is no worker of ours, or in one that it forked, is known to be so.
"""

from __future__ import annotations

import os
import pickle
import struct
import threading
from itertools import count
from typing import Any

from checkpoint import locks
from checkpoint.execution.pipes import STEP

__all__ = ["Conversation", "driver", "is_here", "reply_of", "take_up"]

_HEAD = struct.Struct("!cQ")


class Conversation:
    """The worker's end.

    Args:
        pipe: to the driver.
        pid: of the worker.
    """

    def __init__(self, pipe: Any, pid: int) -> None:
        self._pipe = pipe
        self.pid = pid
        self._turn = threading.Condition(locks.lock("speaking"))
        self._sending = locks.lock("sending")
        self._come: dict[int, bytes] = {}  # by the number of who asked; 0 is the task to be made next
        self._is_read = self._is_over = False
        self._numbers = count(1)

    def number(self) -> int:
        """One that no other step of the worker has."""
        return next(self._numbers)

    def next_task(self) -> bytes:
        """The call to load, or the inputs of a task; b"" at the end.

        Raises:
            EOFError, OSError: the driver is gone.
        """
        return self._receive(0)

    def send(self, message: bytes) -> None:
        """Say something that is no question."""
        with self._sending:
            self._pipe.send(message)

    def ask(self, number: int, *request: Any) -> tuple[Any, ...]:
        """What the driver answers to the request of a step.

        Raises:
            EOFError, OSError: the driver is gone.
        """
        self.send(STEP + pickle.dumps((number, *request), pickle.HIGHEST_PROTOCOL))
        return pickle.loads(self._receive(number))  # type: ignore[no-any-return]

    def _receive(self, wanted: int) -> bytes:
        """What comes for this number; one thread reads for all."""
        while True:
            with self._turn:
                while wanted not in self._come and self._is_read and not self._is_over:
                    self._turn.wait()
                if wanted in self._come:
                    return self._come.pop(wanted)
                if self._is_over:
                    raise EOFError
                self._is_read = True
            number, message = -1, b""
            try:
                message = self._pipe.receive()
                number, message = _numbered(message)
            finally:
                with self._turn:
                    self._is_read = False
                    if number < 0:
                        self._is_over = True
                    else:
                        self._come[number] = message
                    self._turn.notify_all()


def _numbered(message: bytes) -> tuple[int, bytes]:
    if message[:1] != STEP:
        return 0, message
    return _HEAD.unpack_from(message)[1], message[_HEAD.size :]


def reply_of(number: int, *reply: Any) -> bytes:
    """The driver's answer to a step."""
    return _HEAD.pack(STEP, number) + pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)


_driver: Conversation | None = None


def take_up(conversation: Conversation) -> None:
    """This process is a worker of ours."""
    global _driver
    _driver = conversation


def driver() -> Conversation | None:
    """The conversation with the driver; None where this process is no worker of ours.

    In a process that a worker has forked it is that of the worker, with whose pid it is known.
    """
    return _driver


def is_here(conversation: Conversation) -> bool:
    """Whether the conversation is this process's own."""
    return conversation.pid == os.getpid()
