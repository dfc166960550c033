"""An S3 server on loopback, in a process of its own, behind a proxy that can be down, slow, refusing, or cut."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Mode = Literal["up", "down", "slow", "cut", "503"]

SERVER = """
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
server._thread.join()
"""
REFUSAL = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: 58\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>no</Message></Error>\n"
)


class Proxy:
    """A TCP proxy on loopback. `mode` says what it does with connections; 'down' closes those that are open too.

    Attributes:
        port: where it listens when it is not down.
        sent: bytes that clients have sent.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.mode: Mode = "up"
        self.sent = 0
        self._open: set[socket.socket] = set()
        self._listen()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def set(self, mode: Mode) -> None:
        """Behave so from here on; connections that are open end."""
        was, self.mode = self.mode, mode
        if mode == "down":
            self._stop_listening()
        elif was == "down":
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._listen()
        for connection in list(self._open):
            _end(connection)

    def _stop_listening(self) -> None:
        _end(self._listener)
        self._listener.close()

    def close(self) -> None:
        self._stop_listening()
        for connection in list(self._open):
            _end(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with client:
            if self.mode == "503":
                try:
                    client.recv(1 << 20)
                    client.sendall(REFUSAL)
                except OSError:
                    pass
            elif self.mode != "down":
                with socket.create_connection(("127.0.0.1", self._target)) as server:
                    self._open.add(server)
                    back = threading.Thread(target=self._pass_on, args=(server, client, False), daemon=True)
                    back.start()
                    self._pass_on(client, server, True)
                    back.join()
                    self._open.discard(server)
        self._open.discard(client)

    def _pass_on(self, source: socket.socket, target: socket.socket, is_client: bool) -> None:
        passed = 0
        try:
            while data := source.recv(1 << 16):
                if self.mode == "slow":
                    threading.Event().wait(0.05)
                passed += len(data)
                self.sent += len(data) * is_client
                if self.mode == "cut" and passed > 2000:  # in the middle of a request, or of an answer
                    target.sendall(data[: len(data) // 2])
                    break
                target.sendall(data)
        except OSError:
            pass
        _end(source)
        _end(target)


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """The server, and what is in front of it."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        try:
            proxy = Proxy(int(server.stdout.readline()))
            yield proxy
            proxy.close()
        finally:
            server.kill()


def s3_environment(port: int) -> dict[str, str]:
    """What makes S3 clients go there, and give up soon."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_MAX_ATTEMPTS": "1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
