"""Digests are on disk: those of functions, versions, items and keys stay what they are, with every Python.

What was written down may be written anew, where it is meant to change: ``python tests/laws/test_golden.py``.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import pytest

import checkpoint
from checkpoint.catalog.shards import hash_of
from checkpoint.provenance.fingerprint import fingerprint
from checkpoint.provenance.version import version_of
from checkpoint.values.keys import digest_of, identity, item_digest, key_json, version_digest

HERE = Path(__file__).parents[1] / "data" / "golden"
WRITTEN = HERE / "digests.json"
SOURCE = Path(checkpoint.__file__).parent.parent
KEYS: tuple[Any, ...] = (
    "a", "", "1", "é", "\u2028", 0, 1, -1, 2**53, 2**70, True, None, 0.5, 1.0, -0.0, 1e300,
    (), ("a",), ("a", 1), (("a", None), 2.5), "long " * 50,
)  # fmt: skip
ITEMS: tuple[Any, ...] = (
    0, 1, 2**70, 0.1, -0.0, True, None, "text", "é", b"bytes", [], [1, "a", None], (1, 2), {}, {"b": 1, "a": [2]},
    {1: "one"}, {"nested": {"deep": [{"er": (1,)}]}}, {3, 1, 2}, frozenset({"x"}), date(2026, 1, 31),
    datetime(2026, 1, 31, 12, 30), datetime(2026, 1, 31, 12, 30, tzinfo=UTC), timedelta(days=1, seconds=2),
    Decimal("1.50"), UUID(int=7), PurePosixPath("a/b"), 1 + 2j, range(3), "long " * 500, float("inf"),
)  # fmt: skip
VERSIONS: tuple[Any, ...] = ("v", 1, {"prompt": "Summarize", "size": 2}, ["a", 1], True, "")


def functions() -> Any:
    """The module with the forty functions; no test imports it by name."""
    if "golden_functions" not in sys.modules:
        spec = importlib.util.spec_from_file_location("golden_functions", HERE / "functions.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["golden_functions"] = module
        spec.loader.exec_module(module)
    return sys.modules["golden_functions"]


def digest_of_function(function: Any) -> list[str]:
    """Its digest, and the digest of all that its journal keeps of it but the code objects of one Python."""
    found = fingerprint(function)
    assert found is not None
    detail = {name: part for name, part in found.detail().items() if name not in ("objects", "python")}
    return [found.digest, f"{digest_of(json.dumps(detail, sort_keys=True).encode()):016x}"]


def digests() -> dict[str, Any]:
    """All of them, as JSON."""
    rooms = functions()
    return {
        "functions": {name: digest_of_function(function) for name, function in rooms.FUNCTIONS.items()},
        "instances": {
            name: version_digest(version_of(None, function.__get__(instance, type(instance)), instance), "version")
            for name, (function, instance) in rooms.INSTANCES.items()
            if not isinstance(instance, type)
        }
        | {
            name: version_digest(version_of(None, function, instance), "version")
            for name, (function, instance) in rooms.INSTANCES.items()
            if isinstance(instance, type)
        },
        "versions": [[str(value), version_digest(value, "version")] for value in VERSIONS],
        "items": [[type(item).__name__, f"{item_digest(item):032x}"] for item in ITEMS],
        "keys": [[key_json(key).decode(), identity(key).hex(), f"{hash_of(key):x}"] for key in KEYS],
    }


@pytest.mark.parametrize("kind", ["functions", "instances", "versions", "items", "keys"])
def test_digests_stay_what_they_are(kind: str) -> None:
    """One that moved would have every user's results computed anew, or given for what they are not."""
    written = json.loads(WRITTEN.read_text("utf-8"))
    assert digests()[kind] == written[kind]


@pytest.mark.slow
def test_digests_are_the_same_in_another_process() -> None:
    """Under another hash seed, and where nothing of these tests was imported before."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONHASHSEED": "7"}
    script = f"import runpy; print(runpy.run_path({str(Path(__file__))!r})['as_text'](), end='')"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == WRITTEN.read_text("utf-8")


def as_text() -> str:
    """What is in the file."""
    return json.dumps(digests(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    WRITTEN.write_text(as_text(), "utf-8")
