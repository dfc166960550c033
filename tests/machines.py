"""Machines with directories of their own on one URL, as the tests of stores open them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from checkpoint import CheckpointedRunner
from checkpoint.remote import local_copy, session

__all__ = ["Machine", "hurry", "machines", "until"]

Machine = Callable[..., CheckpointedRunner]


def until(is_so: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What is waited for, once it is so."""
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return found


@contextmanager
def machines(url: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """What opens checkpoint "j" as a machine would that has this name, and so a directory of its own."""
    opened: list[CheckpointedRunner] = []
    monkeypatch.setattr(local_copy, "_LOOK_EVERY", 0.0)

    def open_runner(name: str, at: str = url, **options: Any) -> CheckpointedRunner:
        monkeypatch.setenv("CHECKPOINT_DIR", str(root / name))
        opened.append(CheckpointedRunner("j", at, **options))
        return opened[-1]

    yield open_runner
    for runner in opened:
        runner.close()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads begin at once, and so do new attempts."""
    monkeypatch.setattr(session, "EVERY", 0.05)
    monkeypatch.setattr(session, "_POLL", 0.02)
    monkeypatch.setattr(session, "_PAUSES", (0.1, 0.2))
