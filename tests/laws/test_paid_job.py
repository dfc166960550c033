"""The law of paid jobs: whatever happens, the provider, the journals and `show` agree on what was paid.

A job of three steps an item asks a server on this machine, which refuses a twentieth of all calls, is away for a while,
and takes a hundred times more for one answer than for another. The job is killed at random moments, ends at its budget,
and is run to its end. What the server was paid and no journal knows are calls that were in flight at a kill, and no
others.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import checkpoint

pytestmark = pytest.mark.slow

STEPS = ("outlines", "drafts", "verdicts")
WORKERS = 8
DEADLINE = 600.0
UNLIMITED = 1e9

JOB = '''
import http.client, json, os, sys, threading
from checkpoint import MaxCostReached, Rate, Retry, checkpointed, note

port, run = int(sys.argv[1]), sys.argv[2]
quota = Rate(400, per=1)
retry = Retry(attempts=4, wait=0.05, max_wait=0.5)

class Refused(Exception):
    """An answer other than 200, as clients raise it."""

def ask(step, prompt):
    """What the model answers, which costs `cents`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        asked = json.dumps({"step": step, "prompt": prompt, "by": [run, os.getpid(), threading.get_ident()]})
        connection.request("POST", "/", asked)
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    if response.status != 200:
        refused = Refused(f"HTTP {response.status}")
        refused.status_code, refused.headers = response.status, dict(response.headers)
        raise refused
    answer = json.loads(answer)
    note(cost=answer["cents"])
    return answer

@checkpointed("outlines", rate=quota, retry=retry, ignore=["port", "run"])
def outline(topic: str) -> dict:
    return ask("outlines", topic)

@checkpointed("drafts", rate=quota, retry=retry, ignore=["port", "run"])
def draft(outlined: dict) -> dict:
    return ask("drafts", outlined["text"])

@checkpointed("verdicts", rate=quota, retry=retry, ignore=["port", "run"])
def judge(drafted: dict) -> dict:
    return ask("verdicts", drafted["text"])

@checkpointed("articles", key="id", ignore=["port", "run"])
def article(item: dict) -> str:
    parts = [outline.one(item["topic"])]
    for step in (draft, judge):
        parts.append(step.one(parts[-1]))
    note(cost=sum(part["cents"] for part in parts))
    return parts[-1]["text"]

if __name__ == "__main__":
    items, budget, executor = int(sys.argv[3]), float(sys.argv[4]), sys.argv[5] if sys.argv[5:] else None
    topics = [{"id": number, "topic": f"topic {number}"} for number in range(items)]
    try:
        done = len(article.map(topics, workers=8, executor=executor, max_cost=budget, progress=False))
    except MaxCostReached as reached:
        print(json.dumps({"spent": reached.spent, "left": reached.left}))
    else:
        print(json.dumps({"done": done}))
'''


def price(step: str, prompt: str) -> int:
    """What an answer costs in cents: one to a hundred, and most of them little."""
    return min(100, int(1000 / (9 + blake2b(f"{step} {prompt}".encode()).digest()[0])) - 2)


class Provider(ThreadingHTTPServer):
    """Answers a prompt for its price; refuses one call in twenty, and is away for so many seconds in between.

    Attributes:
        paid: the answers that were charged, as (step, prompt).
        last: the answer that each worker was charged last, by its run, its process and its thread.
        asked, refused, cut: how many calls there were, and how many of them had no answer.
    """

    daemon_threads = True

    def __init__(self, seed: int, away_at: int, away_for: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.lock = threading.Lock()
        self.chance = random.Random(seed)
        self.paid: list[tuple[str, str]] = []
        self.last: dict[tuple[str, int, int], tuple[str, str]] = {}
        self.asked = self.refused = self.cut = 0
        self._away_at, self._away_for, self._back_at = away_at, away_for, 0.0
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked was killed meanwhile."""

    def decide(self, step: str, prompt: str, worker: tuple[str, int, int]) -> int:
        """The status of the answer, which is charged with it; 0: no answer."""
        with self.lock:
            self.asked += 1
            if self.asked == self._away_at:
                self._back_at = time.monotonic() + self._away_for
            if time.monotonic() < self._back_at:
                self.cut += 1
                return 0
            if self.chance.random() < 0.05:
                self.refused += 1
                return 429
            self.paid.append((step, prompt))
            self.last[worker] = (step, prompt)
            return 200

    def in_flight(self, runs: list[str]) -> Counter[tuple[str, str]]:
        """The answers that may have been under way to these runs when they were killed: one a worker."""
        return Counter(answer for (run, *_), answer in self.last.items() if run in runs)


class _Handler(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        step, prompt = asked["step"], asked["prompt"]
        threading.Event().wait(0.01)  # what a model takes
        status = self.server.decide(step, prompt, tuple(asked["by"]))
        if status == 0:
            self.close_connection = True
            return
        cents = price(step, prompt)
        data = json.dumps({"text": f"{step} of {prompt}", "cents": cents}).encode() if status == 200 else b"{}"
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0.1")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Job:
    """The job in a directory of its own, run against a provider.

    Attributes:
        killed: the runs that were killed.
    """

    def __init__(self, directory: Path, provider: Provider, items: int, executor: list[str]) -> None:
        self._directory, self._provider, self._words = directory, provider, [str(items), *executor]
        self._runs = 0
        self.killed: list[str] = []
        self._environment = os.environ | {"PYTHONPATH": str(Path(checkpoint.__file__).parents[1])}
        self._environment.pop("CHECKPOINT_DIR", None)
        (directory / "job.py").write_text(JOB, encoding="utf-8")

    def _begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *words], cwd=self._directory, env=self._environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
        )  # fmt: skip

    def _run(self, budget: float) -> subprocess.Popen[str]:
        self._runs += 1
        items, *executor = self._words
        return self._begin("job.py", str(self._provider.server_port), str(self._runs), items, str(budget), *executor)

    def kill_after(self, calls: int, delay: float) -> None:
        """Run it, and kill it so many seconds after the provider was asked so many times more."""
        until = self._provider.asked + calls
        job = self._run(UNLIMITED)
        end = time.monotonic() + DEADLINE
        while job.poll() is None and self._provider.asked < until and time.monotonic() < end:
            threading.Event().wait(0.001)
        threading.Event().wait(delay)
        is_running = job.poll() is None
        job.kill()
        _, said = job.communicate(timeout=60)
        assert is_running, said
        self.killed.append(str(self._runs))

    def finish(self, budget: float = UNLIMITED) -> dict[str, Any]:
        """Run it until it ends; what it says."""
        printed, said = self._run(budget).communicate(timeout=DEADLINE)
        assert printed, said
        told: dict[str, Any] = json.loads(printed)
        return told

    def shown(self, name: str) -> dict[str, Any]:
        """What `checkpoint show` says."""
        printed, said = self._begin("-m", "checkpoint", "show", name, "--json").communicate(timeout=60)
        assert printed, said
        told: dict[str, Any] = json.loads(printed)
        return told

    def records(self, name: str) -> list[dict[str, Any]]:
        """The lines of results."""
        path = self._directory / "checkpoints" / f"{name}_results.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("executor", [[], ["processes"]], ids=["threads", "processes"])
@pytest.mark.parametrize(
    ("items", "kills", "away_for"),
    [
        pytest.param(200, 3, 0.7, id="200 items"),
        pytest.param(1000, 10, 30.0, id="1,000 items", marks=pytest.mark.soak),
    ],
)
def test_provider_journal_and_show_agree_to_the_cent(
    tmp_path: Path, items: int, kills: int, away_for: float, executor: list[str]
) -> None:
    """But for calls that were in flight at a kill, which the provider counts."""
    seed = random.randrange(1 << 32) if items > 200 else 7
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    provider = Provider(seed, away_at=items, away_for=away_for)
    try:
        job = Job(tmp_path, provider, items, executor)
        for _ in range(kills):
            job.kill_after(chance.randrange(10, 3 * items // (kills + 2)), chance.random() / 10)
        spent = job.shown("articles")["cost"] or 0.0
        budget = spent + 100
        reached = job.finish(budget)
        assert reached["left"] > 0
        assert spent <= reached["spent"] <= budget + WORKERS * 3 * 100  # the calls in flight
        assert job.shown("articles")["cost"] == reached["spent"]
        assert job.finish() == {"done": items}
        assert provider.refused
        assert provider.cut
    finally:
        provider.shutdown()
        provider.server_close()

    recorded: Counter[tuple[str, str]] = Counter()
    in_journals: dict[str, int] = defaultdict(int)
    for name in STEPS:
        for record in job.records(name):
            prompt = record["result"]["text"].removeprefix(f"{name} of ")
            recorded[name, prompt] += 1
            assert record["notes"]["cost"] == price(name, prompt)
            in_journals[name] += record["notes"]["cost"]
    charged = Counter(provider.paid)
    lost = charged - recorded
    assert recorded - charged == Counter()
    assert set(recorded.values()) == {1}
    assert len(recorded) == 3 * items
    assert lost - provider.in_flight(job.killed) == Counter()  # nothing else is lost
    assert lost.total() <= kills * WORKERS

    for name in STEPS:
        paid = sum(price(*answer) for answer in provider.paid if answer[0] == name)
        missing = sum(price(*answer) * count for answer, count in lost.items() if answer[0] == name)
        assert job.shown(name)["cost"] == in_journals[name] == paid - missing
    assert job.shown("articles")["cost"] == sum(in_journals.values())
    assert len(job.records("articles")) == items
