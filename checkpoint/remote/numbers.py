"""The numbers of sessions: who has one, how it is taken, and when its owner counts as dead.

The promise: of two sessions that begin at one moment one gets the number, where the store heeds conditions; where it
does not, at least one withdraws, as long as listings are up to date.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from checkpoint import clock
from checkpoint.errors import StoreError
from checkpoint.remote.local_copy import LocalCopy
from checkpoint.remote.objects import Owner

__all__ = ["LEASE", "as_json", "said_in", "take", "writer_there"]

LEASE = 60.0
"""Seconds after which a session that was not renewed may be taken for dead."""

_PAUSE = 0.25  # seconds at most, where two have withdrawn


def writer_there(mirror: LocalCopy) -> dict[str, Any] | None:
    """Who writes from another machine (pid, host, since), as far as can be told by our clock: only to be shown."""
    try:
        owners = mirror.objects.owners()
        owner = said_in(mirror.objects.read(owners[-1].name)) if owners else {"released": True}
        moment = None if owner.get("released") else mirror.objects.modified(owners[-1].name)
    except (FileNotFoundError, StoreError):
        return None
    if moment is None or clock.now() - moment.timestamp() > LEASE:
        return None
    return {part: owner.get(part) for part in ("pid", "host", "since")}


def as_json(said: Mapping[str, Any]) -> bytes:
    """What an owner object holds."""
    return json.dumps(said).encode() + b"\n"


def said_in(data: bytes) -> dict[str, Any]:
    """What one says; nothing where it cannot be read."""
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def take(mirror: LocalCopy, number: Owner, owner: dict[str, Any]) -> dict[str, Any] | None:
    """Take the number; returns who was quicker, or None. An answer that was lost on the way may have been ours."""
    objects = mirror.objects
    if number.token:
        return _take_and_look(mirror, number, owner)
    try:
        objects.create(number.name, as_json(owner))
    except FileExistsError:
        try:
            there = said_in(objects.read(number.name))
        except FileNotFoundError:
            return {}
        return None if there.get("token") == owner["token"] else there
    return None


def _take_and_look(mirror: LocalCopy, number: Owner, owner: dict[str, Any]) -> dict[str, Any] | None:
    """The same where no object can be created exclusively: each writes its own first, and withdraws if there are two.

    Of two that do so at one moment, the second one to write sees the first.
    """
    objects = mirror.objects
    objects.put(number.name, as_json(owner))
    others = [each for each in objects.owners() if each.epoch >= number.epoch and each != number]
    if not others:
        return None
    objects.delete([number.name])
    clock.sleep(_PAUSE * int.from_bytes(os.urandom(1)) / 256)  # both may have withdrawn
    try:
        return said_in(objects.read(others[-1].name))
    except FileNotFoundError:
        return {}
