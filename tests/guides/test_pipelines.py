"""What the guide to pipelines shows beside what it prints: short scripts, and the shape of their journals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_readme import ENVIRONMENT, ROOT, Block, read_blocks

pytestmark = pytest.mark.slow

BLOCKS = read_blocks((ROOT / ".github" / "docs" / "pipelines.md").read_text(encoding="utf-8"))
SCRIPTS = [block for block in BLOCKS if block.language == "python"]
SHOWN = [json.loads(block.text) for block in BLOCKS if block.language == "json"]


def is_shown(shown: Any, real: Any) -> bool:
    """Whether the real value is the one that is shown, where an ellipsis stands for anything."""
    if isinstance(shown, dict):
        order = [name for name in real if name in shown]
        return order == list(shown) and all(is_shown(shown[name], real[name]) for name in shown)
    if isinstance(shown, list):
        shown = shown[:-1] if shown and shown[-1] == "…" else shown
        return len(real) >= len(shown) and all(map(is_shown, shown, real))
    return bool(shown == real) or (isinstance(shown, str) and shown.endswith("…") and real.startswith(shown[:-1]))


@pytest.mark.parametrize(
    ("script", "shown"), list(zip(SCRIPTS, SHOWN, strict=True)), ids=["data", "agent", "models", "texts"]
)
def test_each_pipeline_is_short_and_writes_the_line_that_is_shown(script: Block, shown: Any, tmp_path: Path) -> None:
    """Under 60 lines; its journals have a record of that key with these fields, in this order."""
    assert len(script.text.splitlines()) < 60
    (tmp_path / "block.py").write_text(script.text, encoding="utf-8")
    subprocess.run(
        [sys.executable, "block.py"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, timeout=120, check=True
    )
    journals = sorted(tmp_path.glob("checkpoints/*_results.jsonl"))
    records = [json.loads(line) for path in journals for line in path.read_text(encoding="utf-8").splitlines()]
    records = [record for record in records if record["key"] == shown["key"]]
    assert any(is_shown(shown, record) for record in records), records[:2]
