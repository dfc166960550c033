"""The steps that items' calls have taken, as records list them: other checkpoints of the same directory.

The promise: what is found is what the records on disk say; to forget an item with its steps forgets these first, so
that a kill in between leaves the item, which still lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from checkpoint.catalog.view import VersionView
from checkpoint.errors import DamagedRecord
from checkpoint.storage.record import Record, steps_in
from checkpoint.values.keys import Key, plain_json

__all__ = ["StepNode", "forget_with_steps", "step_tree"]

Where = tuple[str, str]  # a checkpoint, and the digest of a version


@dataclass(slots=True)
class StepNode:
    """One item, or step, and the steps that its call has taken.

    Attributes:
        name: of its checkpoint.
        key: of it.
        version: the digest of its version, "" for none.
        label: what that stands for, where it is known.
        state: what is on disk of it.
        record: that; None where there is none.
        steps: those of its own call; of one that stands above already, none.
    """

    name: str
    key: Key
    version: str
    label: object = None
    state: Literal["done", "failed", "not there"] = "not there"
    record: Record | None = None
    steps: list[StepNode] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """It and all below it, as JSON."""
        told = {"name": self.name, "key": plain_json(self.key), "version": self.version, "label": self.label}
        return {**told, "state": self.state, "steps": [step.to_json() for step in self.steps]}

    def below(self) -> Iterator[StepNode]:
        """Each step, those of steps before the step."""
        for step in self.steps:
            yield from step.below()
            yield step


class _Views:
    """The records of checkpoints in one directory, each opened once."""

    def __init__(self, directory: Path, opened: ExitStack, known: Iterable[VersionView] = ()) -> None:
        self._directory, self._opened = directory, opened
        self._views: dict[Where, VersionView] = {(view.name, view.version): view for view in known}

    def of(self, name: str, version: str) -> VersionView:
        view = self._views.get((name, version))
        if view is None:
            view = VersionView(name, self._directory, version=None, power=False, result_type=None)
            view.version = version
            self._opened.callback(view.close)
            self._views[name, version] = view
        return view


@contextmanager
def _views(directory: Path, *known: VersionView) -> Iterator[_Views]:
    with ExitStack() as opened:
        yield _Views(directory, opened, known)


def step_tree(records: VersionView, key: Key) -> StepNode:
    """An item of one version with the steps that its call has taken, and those of each."""
    with _views(records.checkpoint.directory, records) as views:
        return _node(views, (records.name, key, records.version), set())


def _node(views: _Views, step: tuple[str, Key, str], seen: set[tuple[str, Key, str]]) -> StepNode:
    name, key, version = step
    view = views.of(name, version)
    checkpoint = view.open()
    node = StepNode(name, key, version, checkpoint.versions.get(version))
    try:
        done = checkpoint.results.read(version, key)
        failed = checkpoint.errors.read(version, key) if done is None else None
    except DamagedRecord:
        return node
    if (found := done or failed) is None:
        return node
    node.state, node.record = "done" if done else "failed", found[2]
    if step not in seen:
        seen.add(step)
        node.steps = [_node(views, inner, seen) for inner in steps_in(found[2])]
    return node


def forget_with_steps(records: VersionView, keys: list[Key]) -> int:
    """Forget these keys under the version, and the steps that their calls have taken; how many were known.

    Raises:
        CheckpointLocked: another process writes one of the checkpoints.
    """
    with _views(records.checkpoint.directory, records) as views:
        seen: set[tuple[str, Key, str]] = set()
        nodes = [_node(views, (records.name, key, records.version), seen) for key in keys]
        steps: dict[Where, dict[Key, None]] = {}
        for node in nodes:
            for step in node.below():
                steps.setdefault((step.name, step.version), {})[step.key] = None
        forgotten = sum(views.of(*where).forget(inner) for where, inner in steps.items())
        return forgotten + records.forget(keys)
