"""`one` in a worker process of ours: the driver looks up, says who calls, and records; the call is made here.

The promise: a key is called once, whichever process asks; and where nobody can be asked, that is said.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from checkpoint.api.options import Options
from checkpoint.api.single import SingleCalls
from checkpoint.catalog.view import tell_left_out, tell_unnamed
from checkpoint.errors import StepRefused
from checkpoint.execution.asked_step import AskedStep
from checkpoint.execution.caller import caller
from checkpoint.execution.chunk import chunk_here
from checkpoint.execution.conversation import Conversation, driver, is_here
from checkpoint.execution.steps import Steps, in_a_thread
from checkpoint.execution.transport import portable_bytes
from checkpoint.outcomes import Unit
from checkpoint.values.codec import Codec
from checkpoint.values.keys import digest_function, key_function

__all__ = ["AskingSingles", "driver_to_ask"]


def driver_to_ask(name: str) -> Conversation | None:
    """Whom to ask for single items of a checkpoint of this name; None where this process looks and writes itself.

    Raises:
        StepRefused: an item's call runs in a process that is neither the driver's nor a worker of ours.
    """
    call, conversation = caller(), driver()
    if conversation is not None and is_here(conversation):
        return conversation
    if conversation is not None:
        where = "a process that a worker has forked"
    elif call is not None and getattr(call[0], "is_elsewhere", False):
        where = "a worker of an executor that was given"
    else:
        return None
    raise StepRefused(
        f"checkpoint {name!r}: one() is called in {where}, which can neither ask the process that writes the "
        "checkpoint nor write it itself. It can be called in the process that maps (serial, on threads, in coroutines) "
        'and in its own worker processes: executor="processes"'
    )


class AskingSingles(SingleCalls):
    """Asks the driver for single items of one function.

    Args:
        options: of the decorator.
        annotation: of one result.
        name: what the function is called in messages.
    """

    _advance = staticmethod(in_a_thread)  # the driver is waited for, while the loop goes on

    def __init__(self, options: Options, annotation: Any, name: str) -> None:
        super().__init__(options, name)
        self._key_of, self._digest_of = key_function(options.key), digest_function(options.input)
        codec = Codec(
            annotation,
            on_unnamed=partial(tell_unnamed, options.name),
            on_left_out=partial(tell_left_out, options.name),
        )
        self._encode, self._decode = codec.encode, codec.decode

    def one(self, face: Any, item: Any, asked: Conversation) -> Any:
        """The decoded result of the item, by a plain function."""
        port = self._port(face, item, asked)
        return self._parsed(port.unit.key, self._driven(face, port))

    async def one_async(self, face: Any, item: Any, asked: Conversation) -> Any:
        """The decoded result of the item, by a coroutine function."""
        port = self._port(face, item, asked)
        return self._parsed(port.unit.key, await self._awaited(face, port))

    def _port(self, face: Any, item: Any, asked: Conversation) -> AskedStep:
        if (chunk := chunk_here()) is not None:
            chunk.split()
        unit = Unit(item, self._key_of(item), self._digest_of(item))
        call = caller()
        parent = call[0].number if call is not None and isinstance(call[0], AskedStep) else None
        return AskedStep(asked, portable_bytes(face, self._name), unit, parent, self._encode, self._decode)

    def _steps(self, port: Any, ring: Any) -> Steps:
        return port.steps()  # type: ignore[no-any-return]
