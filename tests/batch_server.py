"""A provider's batch API on this machine: as much of OpenAI's as a job needs that is killed and goes on.

POST /files and POST /batches (with an Idempotency-Key), GET /batches/ID and GET /files/ID/content. A batch is done
after so many polls; its answers are the prompts in capitals. The server counts what it was asked for, and may kill who
asks.
"""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["BatchServer"]


class BatchServer(ThreadingHTTPServer):
    """Serves on a port of its own, in threads; use it in a `with` statement.

    Attributes:
        url: to which paths are appended.
        polls: how often a batch is not done yet, by the custom_id of its first line; one time where it is not named.
        requests: method and kind of path of each request, in order.
        submitted: how often each custom_id was in a batch that was created.
        batches: those that were created, by id.
        kill: called with the number of each request, from 1 on, before the answer is sent and after it; returns
            whether it killed who asks.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock = threading.Lock()
        self.polls: dict[str, Callable[[], bool] | int] = {}
        self.requests: list[str] = []
        self.submitted: Counter[str] = Counter()
        self.files: dict[str, str] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.by_idempotency_key: dict[str, str] = {}
        self.polled: Counter[str] = Counter()
        self.kill: Callable[[int, str], bool] = lambda number, when: False
        self._thread = threading.Thread(target=self.serve_forever, args=[0.01], daemon=True)

    def __enter__(self) -> BatchServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asked was killed meanwhile."""

    # what is asked for, under the lock

    def create_file(self, body: bytes) -> dict[str, Any]:
        """Keep the lines of an upload, which is the part of the form that has JSON."""
        (lines,) = re.findall(rb"\r\n\r\n(\{.*?\})\s*\r\n--", body, re.DOTALL)
        return {"id": self._keep(lines.decode()), "object": "file", "purpose": "batch"}

    def _keep(self, text: str) -> str:
        self.files[name := f"file-{len(self.files) + 1}"] = text
        return name

    def create_batch(self, body: bytes, idempotency_key: str | None) -> dict[str, Any]:
        """The batch; the one that there is where its key was seen before."""
        if idempotency_key in self.by_idempotency_key:
            return self.batches[self.by_idempotency_key[idempotency_key or ""]]
        lines = [json.loads(line) for line in self.files[json.loads(body)["input_file_id"]].splitlines()]
        self.submitted.update(line["custom_id"] for line in lines)
        name = f"batch-{len(self.batches) + 1}"
        self.batches[name] = {"id": name, "object": "batch", "status": "validating", "lines": lines}
        if idempotency_key is not None:
            self.by_idempotency_key[idempotency_key] = name
        return self.batches[name]

    def poll(self, name: str) -> dict[str, Any]:
        """The batch, which is done after as many polls as `polls` says, or once that says so."""
        batch = self.batches[name]
        polls = self.polls.get(batch["lines"][0]["custom_id"], 1)
        self.polled[name] += 1
        is_done = self.polled[name] > polls if isinstance(polls, int) else polls()
        if is_done and batch["status"] != "completed":
            answers = [json.dumps(_answer(line)) for line in batch["lines"]]
            batch.update(status="completed", output_file_id=self._keep("\n".join(answers)))
        elif not is_done:
            batch["status"] = "in_progress"
        return batch


def _answer(line: dict[str, Any]) -> dict[str, Any]:
    message = {"role": "assistant", "content": line["body"]["messages"][-1]["content"].upper()}
    return {
        "custom_id": line["custom_id"],
        "response": {"status_code": 200, "body": {"choices": [{"index": 0, "message": message}]}},
        "error": None,
    }


class _Handler(BaseHTTPRequestHandler):
    server: BatchServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/files":
            self._serve("POST file", lambda: self.server.create_file(body))
        else:
            key = self.headers["Idempotency-Key"]
            self._serve("POST batch", lambda: self.server.create_batch(body, key))

    def do_GET(self) -> None:
        kind, name = self.path.split("/")[2:4]
        if kind == "files":
            self._serve("GET content", lambda: self.server.files[name])
        else:
            self._serve("GET batch", lambda: self.server.poll(name))

    def _serve(self, kind: str, make: Callable[[], Any]) -> None:
        server = self.server
        with server.lock:
            server.requests.append(kind)
            number, made = len(server.requests), make()
            text = made if isinstance(made, str) else json.dumps({k: v for k, v in made.items() if k != "lines"})
        if server.kill(number, "before"):
            return
        data = text.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()
        server.kill(number, "after")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
