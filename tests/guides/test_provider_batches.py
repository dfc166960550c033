"""The recipe for a provider's batch API, as the guide shows it: killed at any request, it submits nothing twice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from batch_server import BatchServer
from test_readme import ENVIRONMENT, ROOT, read_blocks

pytestmark = pytest.mark.slow

pytest.importorskip("httpx")

(RECIPE,) = [
    block.text
    for block in read_blocks((ROOT / ".github" / "docs" / "provider-batches.md").read_text(encoding="utf-8"))
    if block.language == "py"
]
TEXTS = ["good", "bad", "fair"]
REQUESTS = 10  # of two batches: an upload, a batch, a poll that comes too early, one that does not, the answers


def begin(server: BatchServer, directory: Path, recipe: str = RECIPE) -> subprocess.Popen[str]:
    """Start the recipe on three reviews, two in a batch."""
    (directory / "reviews.py").write_text(recipe, encoding="utf-8")
    reviews = [json.dumps({"id": number, "text": text}) for number, text in enumerate(TEXTS)]
    (directory / "reviews.jsonl").write_text("\n".join(reviews), encoding="utf-8")
    given = {"OPENAI_BASE_URL": server.url, "OPENAI_API_KEY": "key", "SIZE": "2", "POLL": "0.01"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore::ResourceWarning", "reviews.py"], cwd=directory, env=ENVIRONMENT | given,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


def finish(server: BatchServer, directory: Path, recipe: str = RECIPE) -> None:
    """Run it to its end: each item was submitted once, and has a result."""
    printed, said = begin(server, directory, recipe).communicate(timeout=60)
    assert printed == "3 reviews\n", said
    assert server.submitted == {"0": 1, "1": 1, "2": 1}
    assert len(server.batches) == 2
    lines = (directory / "checkpoints" / "reviews_results.jsonl").read_text(encoding="utf-8").splitlines()
    results = {record["key"]: record["result"] for record in map(json.loads, lines)}
    assert results == {str(n): f"IS THIS REVIEW POSITIVE? {text.upper()}" for n, text in enumerate(TEXTS)}


def test_the_recipe_is_short() -> None:
    """Under 60 lines, all of them shown."""
    assert len([line for line in RECIPE.splitlines() if line.strip()]) < 60


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("request_number", range(1, REQUESTS + 1))
def test_killed_at_any_request_nothing_is_submitted_twice(tmp_path: Path, request_number: int, when: str) -> None:
    """SIGKILL when the server has done what was asked for, and has not answered yet, or just has."""
    with BatchServer() as server:
        started, victims = threading.Event(), list[subprocess.Popen[str]]()

        def kill(number: int, moment: str) -> bool:
            if (number, moment) != (request_number, when):
                return False
            assert started.wait(60)
            victims[0].kill()
            return True

        server.kill = kill
        victims.append(begin(server, tmp_path))
        started.set()
        victims[0].communicate(timeout=60)
        assert len(server.requests) >= request_number
        server.kill = lambda number, when: False
        finish(server, tmp_path)


def test_a_batch_that_is_not_done_holds_no_worker(tmp_path: Path) -> None:
    """One worker collects the second batch while the first one is not done."""
    with BatchServer() as server:
        server.polls["0"] = lambda: "GET content" in server.requests
        finish(server, tmp_path, RECIPE.replace("workers=8", "workers=1"))
        assert "workers=8" in RECIPE


def test_another_prompt_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    """And makes other batches where that is wanted: the provider does not take them for those that there are."""
    edited = RECIPE.replace("Is this review positive?", "Does the writer like it?")
    with BatchServer() as server:
        finish(server, tmp_path)
        before = len(server.requests)
        _, said = begin(server, tmp_path, edited).communicate(timeout=60)
        assert "FunctionChanged" in said
        assert len(server.requests) == before
        wanted = edited.replace("retry=5)", 'retry=5, on_change="recompute")')
        begin(server, tmp_path, wanted).communicate(timeout=60)
        assert len(server.batches) == len(server.by_idempotency_key) == 4
