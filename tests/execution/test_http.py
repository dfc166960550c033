"""A real client: httpx against an HTTP server that answers as an API of a language model does, faults included.

This file is its own client: run as a script, it is the job of a user, in a process that can be killed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

import checkpoint
from checkpoint import ItemError, ItemsFailed, Rate, RefusedValue, Results, Retry, checkpointed

# --- the server ------------------------------------------------------------------------------------------------------


@dataclass
class Request:
    """What the server saw of one request.

    Attributes:
        prompt: what was asked.
        at: when it arrived, on the monotonic clock.
        told: the status that was answered; 0 where the connection was cut, None where there is no answer yet.
    """

    prompt: str
    at: float
    told: int | None = None


class Api:
    """An API on loopback that outlives its clients. What it does to a prompt is the prompt's first word.

    ok: an answer · limited: 429 with Retry-After: 1, once · overloaded: 503, the same · broken: 500, twice · down: 500,
    each time · cut: half a body, once · gone: no answer at all, once · bad: 400 · refused: finish_reason "refusal",
    and empty: an empty text, until `relents`.

    Attributes:
        requests: all that arrived, in order.
        relents: whether what was refused is answered.
        held: how many requests wait for the gate.
        limited: when it told for the first time to come again later.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.relents = False
        self.held = 0
        self.limited: float | None = None
        self._changed = threading.Condition()
        self._answered_before_gate: float = float("inf")
        self._limited_after = 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.api = self
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.open()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    # by the test

    def hold_after(self, count: int) -> None:
        """Whoever comes after so many requests waits, until `open`."""
        self._answered_before_gate = count

    def limit_after(self, others: int) -> None:
        """The limit is reached while so many other requests are held; they are answered as soon as it is told.

        Until it is over, whoever comes is told of it too.
        """
        self.hold_after(0)
        self._limited_after = others

    def wait_held(self, count: int) -> None:
        """Wait until so many requests are held."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.held >= count, timeout=60), f"{self.held} of {count} came"

    def open(self) -> None:
        """Let go of those that are held."""
        with self._changed:
            self._answered_before_gate = float("inf")
            self._changed.notify_all()

    def asked(self, since: int = 0) -> Counter[str]:
        """How often each prompt was requested."""
        return Counter(request.prompt for request in self.requests[since:])

    @property
    def answered(self) -> Counter[str]:
        """How often each prompt was executed and answered with what costs money: a 200."""
        return Counter(request.prompt for request in self.requests if request.told == 200)

    # by its threads

    def arrive(self, prompt: str) -> tuple[Request, int]:
        """Note a request, and hold it where it must wait; how often its prompt had been requested before."""
        with self._changed:
            request = Request(prompt, time.monotonic())
            before = self.asked()[prompt]
            self.requests.append(request)
            if self._limited_after and prompt.startswith(("limited", "overloaded")) and before == 0:
                assert self._changed.wait_for(lambda: self.held >= self._limited_after, timeout=60)
                self.limited = time.monotonic()
            elif len(self.requests) > self._answered_before_gate:
                self.held += 1
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._answered_before_gate == float("inf"), timeout=60)
                self.held -= 1
        return request, before

    def over_limit(self, request: Request) -> bool:
        """Whether the request came while everybody was told to wait."""
        return self.limited is not None and self.limited < request.at < self.limited + 1.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    api: Api

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed hears no answer."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer is one write: in two, each would wait for an acknowledgement
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        api = self.server.api
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        request, before = api.arrive(prompt)
        time.sleep(0.002)  # the latency of a model
        word = prompt.partition("-")[0]
        if api.over_limit(request) or (word in ("limited", "overloaded") and before == 0):
            status = 503 if word == "overloaded" else 429
            self._tell(request, status, {"error": "come again later"}, {"Retry-After": "1"})
            if api.limited is not None:
                api.open()
        elif word == "down" or (word == "broken" and before < 2):
            self._tell(request, 500, {"error": "an internal error"})
        elif word == "bad":
            self._tell(request, 400, {"error": "the context is too long"})
        elif word in ("cut", "gone") and before == 0:
            self._cut(request, said=word == "cut")
        elif word == "refused" and not api.relents:
            self._tell(request, 200, {"finish_reason": "refusal", "text": "I cannot help with that."})
        elif word == "empty" and not api.relents:
            self._tell(request, 200, {"finish_reason": "stop", "text": ""})
        else:
            self._tell(request, 200, {"finish_reason": "stop", "text": f"answer to {prompt}"})

    def _tell(self, request: Request, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        request.told = status
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _cut(self, request: Request, *, said: bool) -> None:
        request.told = 0
        self.close_connection = True
        if said:
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b'{"finish_reason": "stop", "text": "ans')


@pytest.fixture
def api() -> Iterator[Api]:
    """A server of the test's own."""
    api = Api()
    yield api
    api.close()


# --- the client ------------------------------------------------------------------------------------------------------

KINDS = [("threads", 8), ("tasks", 32)]


def is_answer(answer: dict[str, str]) -> bool:
    """Whether the model has answered."""
    return answer["finish_reason"] != "refusal" and answer["text"] != ""


def ask_all(
    kind: str, url: str, directory: Path, prompts: list[str], workers: int, *, retry_failed: bool = True,
    timeout: float = 60.0, **options: Any,
) -> Results[Any]:  # fmt: skip
    """The job as a user writes it: by threads with a client, or by tasks with an asynchronous one."""
    retry = Retry(attempts=5, on=(httpx.TransportError,), wait=0.01)
    decorate: Any = checkpointed(
        "answers", key="id", checkpoint_dir=directory, validate=is_answer, **{"retry": retry, **options}
    )
    settings: Any = {"base_url": url, "timeout": timeout, "trust_env": False}
    docs = [{"id": prompt} for prompt in prompts]
    how: Any = {"workers": workers, "progress": False, "return_exceptions": True, "retry_failed": retry_failed}

    def read(response: httpx.Response) -> Any:
        response.raise_for_status()
        return response.json()

    async def ask_all_by_tasks() -> Any:
        async with httpx.AsyncClient(**settings) as client:

            @decorate  # type: ignore[untyped-decorator]  # options of any kind
            async def ask(doc: dict[str, str]) -> dict[str, str]:
                return read(await client.post("/v1/chat", json={"prompt": doc["id"]}))  # type: ignore[no-any-return]

            return await ask.map(docs, **how)

    if kind == "tasks":
        return asyncio.run(ask_all_by_tasks())

    with httpx.Client(**settings) as client:

        @decorate  # type: ignore[untyped-decorator]
        def ask(doc: dict[str, str]) -> dict[str, str]:
            return read(client.post("/v1/chat", json={"prompt": doc["id"]}))  # type: ignore[no-any-return]

        return ask.map(docs, **how)  # type: ignore[no-any-return]


@contextmanager
def job(kind: str, url: str, directory: Path, prompts: list[str], workers: int) -> Iterator[subprocess.Popen[str]]:
    """The same in a process of its own, which does not outlive the test."""
    package = str(Path(checkpoint.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, __file__, kind, url, str(directory), str(workers), *prompts],
        env=os.environ | {"PYTHONPATH": package}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            process.kill()


def saved(directory: Path, journal: str = "results") -> dict[str, dict[str, Any]]:
    """The whole lines of a journal, by key: what is acknowledged."""
    try:
        lines = (directory / f"answers_{journal}.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    return {record["key"]: record for record in map(json.loads, lines[:-1])}


def until(condition: Callable[[], bool]) -> None:
    """Poll, for a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not happen within a minute"
        time.sleep(0.001)


def wanted(prompt: str) -> dict[str, str]:
    """The answer to a prompt."""
    return {"finish_reason": "stop", "text": f"answer to {prompt}"}


# Among 120 prompts, all faults; those of the server far from each other, or they are taken for an outage.
FAULTS = {
    3: "limited", 11: "refused", 13: "empty", 15: "bad", 25: "broken", 45: "cut", 70: "refused", 80: "gone",
    95: "broken", 100: "bad", 115: "cut",
}  # fmt: skip
PROMPTS = [f"{FAULTS.get(n, 'ok')}-{n}" for n in range(120)]
FAILING = {prompt for prompt in PROMPTS if prompt.startswith(("refused", "empty", "bad"))}


# --- killed and resumed ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_a_killed_job_asks_again_only_what_was_in_flight(kind: str, workers: int, api: Api, tmp_path: Path) -> None:
    """With every worker at the server, all that the server has answered is saved; a resumed job asks for the rest."""
    api.hold_after(60)
    with job(kind, api.url, tmp_path, PROMPTS, workers) as killed:
        api.wait_held(workers)
        before = len(api.requests)
        held = {request.prompt for request in api.requests if request.told is None}
        done, failed = saved(tmp_path), saved(tmp_path, "errors")
        killed.kill()
    assert len(held) == workers
    assert set(done) | set(failed) == set(api.answered) | {r.prompt for r in api.requests if r.told == 400}
    assert len(done) > 20
    assert set(failed) <= FAILING

    api.open()
    results = ask_all(kind, api.url, tmp_path, PROMPTS, workers)
    again = api.asked(since=before)
    assert set(again) == set(PROMPTS) - set(done), "no acknowledged item is requested twice, every other one is"
    assert set(saved(tmp_path)) == set(PROMPTS) - FAILING
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert type(result) is ItemError if prompt in FAILING else result == wanted(prompt)


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize(("kind", "workers"), KINDS)
@pytest.mark.parametrize("lines", [1, 17, 50])
def test_a_kill_at_any_moment_costs_no_more_than_was_in_flight(
    kind: str, workers: int, lines: int, api: Api, tmp_path: Path
) -> None:
    """Executions are counted at the server: one for each item, and one more for at most each worker."""
    prompts = [prompt for prompt in PROMPTS if not prompt.startswith("limited")]
    with job(kind, api.url, tmp_path, prompts, workers) as killed:
        until(lambda: len(saved(tmp_path)) >= lines)
        killed.kill()
    done, before = set(saved(tmp_path)), len(api.requests)
    results = ask_all(kind, api.url, tmp_path, prompts, workers)
    assert done.isdisjoint(api.asked(since=before))
    executed = {prompt: count for prompt, count in api.answered.items() if prompt not in FAILING}
    assert set(executed) == set(prompts) - FAILING
    assert sum(executed.values()) - len(executed) <= workers
    assert [result for result in results if type(result) is dict] == [*map(wanted, executed_in(prompts))]


def executed_in(prompts: list[str]) -> list[str]:
    """Those that have an answer, in order."""
    return [prompt for prompt in prompts if prompt not in FAILING]


@pytest.mark.slow
@pytest.mark.promise("SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send to one process")
@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_an_interrupted_job_pays_for_nothing_twice(kind: str, workers: int, api: Api, tmp_path: Path) -> None:
    """Ctrl-C: what the server is at may finish and is saved; a resumed job asks for none of it."""
    api.hold_after(60)
    with job(kind, api.url, tmp_path, PROMPTS, workers) as interrupted:
        assert interrupted.stderr is not None
        api.wait_held(workers)
        interrupted.send_signal(signal.SIGINT)
        told = ""
        while "stopping" not in told:
            line = interrupted.stderr.readline()
            assert line, told
            told += line
        api.open()
        told += interrupted.stderr.read()
        assert interrupted.wait(60) == -signal.SIGINT, told
    assert "run the same line again for the rest" in told
    assert len(api.requests) == 60 + workers, "nothing is begun after Ctrl-C"
    before = len(api.requests)
    ask_all(kind, api.url, tmp_path, PROMPTS, workers)
    executed = {prompt: count for prompt, count in api.answered.items() if prompt not in FAILING}
    assert executed == dict.fromkeys(executed_in(PROMPTS), 1)
    assert set(api.asked(since=before)) & FAILING == FAILING


# --- faults ----------------------------------------------------------------------------------------------------------

STATUS_ERROR, REFUSED = "httpx.HTTPStatusError", "checkpoint.errors.RefusedValue"
TABLE = [
    # prompt, requests, attempts, failure, reason
    ("ok-1", 1, 1, None, "answered at once"),
    ("limited-1", 2, 1, None, "a 429 with Retry-After is no attempt"),
    ("overloaded-1", 2, 1, None, "nor is a 503 with Retry-After"),
    ("broken-1", 3, 3, None, "two 500s, then an answer"),
    ("down-1", 5, 5, STATUS_ERROR, "500 at each of five attempts"),
    ("cut-1", 2, 2, None, "a connection that was cut half-way through the body"),
    ("gone-1", 2, 2, None, "a connection that was closed without an answer"),
    ("bad-1", 1, 1, STATUS_ERROR, "what is wrong with a 400 does not go away"),
    ("refused-1", 1, 1, REFUSED, "an answer all the same: asking again at once would pay twice"),
    ("empty-1", 1, 1, REFUSED, "validate's False"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("threads", 1), *KINDS])
def test_each_fault_costs_what_it_should(kind: str, workers: int, api: Api, tmp_path: Path) -> None:
    """Requests as the server counts them, attempts and failures as the records say."""
    # One after the other: three of these in a row are an outage.
    results = [ask_all(kind, api.url, tmp_path, [prompt], workers)[0] for prompt, *_ in TABLE]
    done, failed, asked = saved(tmp_path), saved(tmp_path, "errors"), api.asked()
    for (prompt, requests, attempts, failure, reason), result in zip(TABLE, results, strict=True):
        assert asked[prompt] == requests, reason
        record = failed[prompt] if failure else done[prompt]
        assert (record["attempts"], record.get("type")) == (attempts, failure), reason
        assert (prompt in done, prompt in failed) == (failure is None, failure is not None), reason
        if failure:
            assert (type(result), result.type, result.attempts) == (ItemError, failure, attempts), reason
        else:
            assert result == wanted(prompt), reason


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_a_refused_prompt_is_a_failure_and_never_a_result(kind: str, workers: int, api: Api, tmp_path: Path) -> None:
    """It is requested again on the next run, as failures are; not if they are to stand; and no more once answered."""
    prompts = ["ok-1", "refused-1", "empty-1"]
    first = ask_all(kind, api.url, tmp_path, prompts, workers)
    assert [type(result) for result in first] == [dict, ItemError, ItemError]
    assert set(saved(tmp_path)) == {"ok-1"}
    assert "I cannot help with that" in first[1].message

    stand = ask_all(kind, api.url, tmp_path, prompts, workers, retry_failed=False)
    assert (list(stand), api.asked()) == (list(first), Counter(prompts))

    again = ask_all(kind, api.url, tmp_path, prompts, workers)
    assert list(again) == list(first)
    assert api.asked() == {"ok-1": 1, "refused-1": 2, "empty-1": 2}

    api.relents = True
    for _ in range(2):
        assert ask_all(kind, api.url, tmp_path, prompts, workers) == [*map(wanted, prompts)]
        assert api.asked() == {"ok-1": 1, "refused-1": 3, "empty-1": 3}


NETWORK = [
    ("httpx.ConnectError", "nobody listens: ConnectionRefusedError, as httpx raises it"),
    ("httpx.ReadTimeout", "nobody answers: TimeoutError, as httpx raises it"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("failure", "reason"), NETWORK, ids=[reason for _, reason in NETWORK])
@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_a_retry_covers_the_network_by_default(
    kind: str, workers: int, failure: str, reason: str, api: Api, tmp_path: Path
) -> None:
    """OSError and TimeoutError are tried again by default, also where the client wraps them in its own exceptions.

    httpcore raises its own `from None`, so that no explicit cause leads from httpx's to the system's.
    """
    api.hold_after(0)
    if failure == "httpx.ConnectError":
        api.close()
    how: Any = {"retry": Retry(attempts=3, wait=0.01), "timeout": 0.1}
    (result,) = ask_all(kind, api.url, tmp_path, ["ok-1"], workers, **how)
    assert (result.type, result.attempts) == (failure, 3), reason


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), KINDS)
def test_a_failure_says_what_the_server_answered(kind: str, workers: int, api: Api, tmp_path: Path) -> None:
    """`map` raises httpx's own exception, with its response; the record names type and status."""
    with pytest.raises(ItemsFailed) as failed:
        ask_and_raise(kind, api.url, tmp_path, workers)
    (error,) = failed.value.exceptions
    assert isinstance(error, httpx.HTTPStatusError)
    assert error.response.json() == {"error": "the context is too long"}
    assert "400 Bad Request" in saved(tmp_path, "errors")["bad-1"]["error"]


def ask_and_raise(kind: str, url: str, directory: Path, workers: int) -> None:
    """One prompt that fails, by `map` with its defaults."""
    with httpx.Client(base_url=url, trust_env=False) as client:

        def post(doc: dict[str, str]) -> Any:
            response = client.post("/v1/chat", json={"prompt": doc["id"]})
            response.raise_for_status()
            return response.json()

        async def apost(doc: dict[str, str]) -> Any:
            return await asyncio.to_thread(post, doc)

        docs = [{"id": "bad-1"}, {"id": "ok-1"}]
        decorate = checkpointed("answers", key="id", checkpoint_dir=directory)
        if kind == "threads":
            decorate(post).map(docs, workers=workers, progress=False)
            return

        async def run() -> None:
            await decorate(apost).map(docs, workers=workers, progress=False)

        asyncio.run(run())


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers", "word"), [(*KINDS[0], "limited"), (*KINDS[1], "limited"),
                                                       (*KINDS[0], "overloaded")])  # fmt: skip
def test_a_limit_that_several_meet_pauses_the_whole_pass(
    kind: str, workers: int, word: str, api: Api, tmp_path: Path
) -> None:
    """From the third 429 or 503 in a row until its time is over, only those requests come that nothing could hold back.

    All workers are at the server when it tells one of them of its limit, and the others get their answers. Each of
    these may have been given one or two more items before it was known, and is then told of the limit itself.
    """
    prompts = [f"{word}-0", *(f"ok-{n}" for n in range(1, 200))]
    api.limit_after(workers - 1)
    results = ask_all(kind, api.url, tmp_path, prompts, workers, retry=Retry(attempts=1))
    assert results == [*map(wanted, prompts)]
    early = [request for request in api.requests if api.over_limit(request)]
    assert len(early) <= 2 * workers + 3
    assert {record["attempts"] for record in saved(tmp_path).values()} == {1}, "and it costs no attempt"
    assert api.asked() == Counter(prompts) + Counter(request.prompt for request in early) + Counter(prompts[:1])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("threads", 1), *KINDS])
def test_a_rate_is_kept_as_the_server_sees_it(kind: str, workers: int, api: Api, tmp_path: Path) -> None:
    """The first 10 requests may come at once, the next 10 not before 0.4 s are over, and so on; retries are among them.

    A request never arrives before it is let go, so that this holds however long it is under way.
    """
    prompts = [f"{'broken' if n in (2, 11) else 'ok'}-{n}" for n in range(30)]
    began = time.monotonic()
    results = ask_all(kind, api.url, tmp_path, prompts, workers, rate=Rate(10, per=0.4))
    assert results == [*map(wanted, prompts)]
    assert len(api.requests) == 30 + 4
    early = [n for n, request in enumerate(api.requests) if request.at < began + n // 10 * 0.4]
    assert early == []


# --- tenacity and stamina below --------------------------------------------------------------------------------------


class Flaky:
    """Fails so many times for each item; calls are counted."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls: Counter[int] = Counter()

    def __call__(self, n: int) -> int:
        self.calls[n] += 1
        if self.calls[n] <= self.failures:
            raise ConnectionError(f"cut {self.calls[n]}")
        return n * n


def by_tenacity(**options: Any) -> Any:
    """Three attempts by tenacity, without waiting; where it is not installed the test is skipped."""

    def decorate(function: Any) -> Any:
        tenacity = pytest.importorskip("tenacity")
        return tenacity.retry(stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none(), **options)(function)

    return decorate


def by_stamina(function: Any) -> Any:
    """The same by stamina."""
    stamina = pytest.importorskip("stamina")
    retry = stamina.retry(on=ConnectionError, attempts=3, wait_initial=0.0, wait_max=0.0, wait_jitter=0.0)
    return retry(function)


STACKS = [
    # below, the failure's type, reason
    (by_tenacity(), "tenacity.RetryError", "tenacity's own error, by default"),
    (by_tenacity(reraise=True), "ConnectionError", "the original, where tenacity is asked for it"),
    (by_stamina, "ConnectionError", "the original, as stamina does"),
]
IDS = ["tenacity", "tenacity, reraise", "stamina"]


@pytest.fixture
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="stamina")


def map_stacked(kind: str, below: Any, flaky: Flaky, directory: Path, items: int = 4, **options: Any) -> Results[Any]:
    """`@checkpointed` above a decorator that retries, over so many items."""
    decorate: Any = checkpointed("answers", checkpoint_dir=directory, **options)
    how: Any = {"workers": 4, "progress": False, "return_exceptions": True}
    if kind == "threads":

        @decorate  # type: ignore[untyped-decorator]  # a decorator of any kind
        @below  # type: ignore[untyped-decorator]
        def f(n: int) -> int:
            return flaky(n)

        return f.map(range(items), **how)  # type: ignore[no-any-return]

    @decorate  # type: ignore[untyped-decorator]
    @below  # type: ignore[untyped-decorator]
    async def g(n: int) -> int:
        await asyncio.sleep(0)
        return flaky(n)

    async def run() -> Any:
        return await g.map(range(items), **how)

    return asyncio.run(run())


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("kind", ["threads", "tasks"])
@pytest.mark.parametrize(("below", "failure", "reason"), STACKS, ids=IDS)
def test_attempts_below_happen_inside_one_call(
    kind: str, below: Any, failure: str, reason: str, tmp_path: Path
) -> None:
    """Whatever a decorator below does is one call, and one attempt, to the record."""
    flaky = Flaky(2)
    assert map_stacked(kind, below, flaky, tmp_path) == [0, 1, 4, 9]
    assert flaky.calls == dict.fromkeys(range(4), 3)
    assert {record["attempts"] for record in saved(tmp_path).values()} == {1}


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("kind", ["threads", "tasks"])
@pytest.mark.parametrize(("below", "failure", "reason"), STACKS, ids=IDS)
def test_who_gives_up_below_is_a_failure(kind: str, below: Any, failure: str, reason: str, tmp_path: Path) -> None:
    """Its error is the failure, and the record tells of what led to it; the next run calls again."""
    flaky = Flaky(3)
    results = map_stacked(kind, below, flaky, tmp_path)
    assert [type(result) for result in results] == [ItemError] * 4
    failed = saved(tmp_path, "errors")
    assert {record["type"] for record in failed.values()} == {failure}, reason
    assert {record["attempts"] for record in failed.values()} == {1}
    assert all("ConnectionError: cut 3" in record["traceback"] for record in failed.values())
    assert map_stacked(kind, below, flaky, tmp_path) == [0, 1, 4, 9]
    assert flaky.calls == dict.fromkeys(range(4), 4)


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("kind", ["threads", "tasks"])
@pytest.mark.parametrize(("below", "failure", "reason"), STACKS, ids=IDS)
@pytest.mark.parametrize(("failures", "calls", "attempts"), [(2, 3, 1), (4, 5, 2), (9, 6, 2)])
def test_retries_above_multiply_those_below(
    kind: str, below: Any, failure: str, reason: str, failures: int, calls: int, attempts: int, tmp_path: Path
) -> None:
    """`retry=` sees the error that comes out of the call, and what it was raised from: two times three attempts.

    Of two items, since three that lose their connection in a row are taken for an outage.
    """
    flaky = Flaky(failures)
    map_stacked(kind, below, flaky, tmp_path, 2, retry=Retry(attempts=2, wait=0.0))
    assert flaky.calls == dict.fromkeys(range(2), calls)
    records = saved(tmp_path, "errors" if failures == 9 else "results")
    assert {record["attempts"] for record in records.values()} == {attempts}
    assert {record.get("type") for record in records.values()} == {failure if failures == 9 else None}


@pytest.mark.usefixtures("_quiet")
def test_a_retry_after_is_honoured_through_what_gives_up_below(tmp_path: Path) -> None:
    """`RetryError` is raised from what happened, and that speaks for it: a 429 costs no attempt."""
    statuses = iter([429, 429, 200])
    tenacity = pytest.importorskip("tenacity")
    told = httpx.MockTransport(lambda _: httpx.Response(next(statuses), headers={"Retry-After": "0"}))
    with httpx.Client(transport=told) as client:

        @checkpointed("answers", checkpoint_dir=tmp_path, retry=1)
        @tenacity.retry(stop=tenacity.stop_after_attempt(2), wait=tenacity.wait_none())  # type: ignore[untyped-decorator]
        def ask(n: int) -> int:
            return client.get(f"http://api/{n}").raise_for_status().status_code

        assert ask.map([1], progress=False) == [200]
    assert [record["attempts"] for record in saved(tmp_path).values()] == [1]


def test_what_is_refused_is_asked_again_at_once_only_if_that_is_said(tmp_path: Path) -> None:
    """`on=RefusedValue` retries what `validate` refuses; by default each refusal is paid for once a run."""
    answers = iter(["", "", "an answer"])
    ask = checkpointed("answers", checkpoint_dir=tmp_path, validate=bool, retry=Retry(5, on=RefusedValue, wait=0.0))(
        lambda n: next(answers)
    )
    assert ask.map([1], progress=False) == ["an answer"]
    assert saved(tmp_path)[1]["attempts"] == 3  # type: ignore[index]


if __name__ == "__main__":
    _, its_kind, its_url, its_directory, its_workers, *its_prompts = sys.argv
    ask_all(its_kind, its_url, Path(its_directory), its_prompts, int(its_workers))
