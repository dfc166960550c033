"""Servers of object stores on loopback, in processes of their own: moto, azurite, gcp-storage-emulator and OpenSSH.

Each is behind a proxy that can be down, slow, refusing, cut, or silent.
"""

from __future__ import annotations

import getpass
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

fsspec = pytest.importorskip("fsspec")

Mode = Literal["up", "down", "slow", "cut", "503", "hang"]

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
            elif self.mode == "hang":
                try:
                    while client.recv(1 << 16):
                        pass  # whatever is asked, nothing is answered
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
def started(*command: str, environment: dict[str, str] | None = None, port: int | None = None) -> Iterator[Proxy]:
    """A server that is a process, and what is in front of it.

    Args:
        command: what starts it.
        environment: its variables, beside this process's.
        port: where it listens; by default it prints that.
    """
    output = subprocess.PIPE if port is None else subprocess.DEVNULL
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL, text=True,
        env=os.environ | (environment or {}),
    ) as server:  # fmt: skip
        try:
            if port is None:
                assert server.stdout is not None
                port = int(server.stdout.readline())
            else:
                _wait_for(port, server)
            proxy = Proxy(port)
            yield proxy
            proxy.close()
        finally:
            server.kill()


def _wait_for(port: int, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert server.poll() is None, f"the server ended with status {server.returncode}"
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def forget_file_systems() -> None:
    """fsspec keeps one file system for each set of arguments, and a server's port is in the environment."""
    for protocol in ("s3", "gs", "az", "sftp"):
        with_all = sys.modules["fsspec.registry"]._registry.get(protocol)
        if with_all is not None:
            with_all.clear_instance_cache()


@contextmanager
def s3_server() -> Iterator[Proxy]:
    """The server, and what is in front of it."""
    forget_file_systems()
    with started(sys.executable, "-c", SERVER) as proxy:
        yield proxy


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


class Store(NamedTuple):
    """A store that runs.

    Attributes:
        url: of a bucket.
        missing: of a bucket that is not there; "" where any folder may be made.
        heeds: whether it creates an object only where there is none.
        proxy: what is in front of the server.
        environment: what brings clients there.
        options: what fsspec passes to its file systems.
    """

    url: str
    missing: str
    heeds: bool
    proxy: Proxy
    environment: dict[str, str]
    options: dict[str, Any]


def _needs(*modules: str, command: str = "") -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install '.[test-all]'")
    if command and shutil.which(command, path=_PATH) is None:
        pytest.skip(f"there is no command {command}: .ci/run installs it as root on Debian")


_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))


@contextmanager
def s3_store() -> Iterator[Store]:
    """Moto."""
    _needs("s3fs", "moto")
    with s3_server() as proxy:
        yield Store("s3://laws", "s3://no-such-bucket", True, proxy, s3_environment(proxy.port), {})


AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # azurite's own


@contextmanager
def azure_store() -> Iterator[Store]:
    """Azurite."""
    _needs("adlfs", command="azurite-blob")
    port = _free_port()
    with started(
        str(shutil.which("azurite-blob")), "--silent", "--inMemoryPersistence", "--skipApiVersionCheck",
        "--disableTelemetry", "--blobHost", "127.0.0.1", "--blobPort", str(port), port=port,
    ) as proxy:  # fmt: skip
        account = "devstoreaccount1"
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={AZURE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{proxy.port}/{account};"
        )
        environment = {"AZURE_STORAGE_CONNECTION_STRING": connection}
        yield Store("az://laws", "az://no-such-container", True, proxy, environment, {})


EMULATOR = """
import sys
from gcp_storage_emulator.server import create_server
create_server("127.0.0.1", int(sys.argv[1]), in_memory=True).run()
"""


@contextmanager
def gcs_store() -> Iterator[Store]:
    """The emulator, which heeds no condition."""
    _needs("gcsfs", "gcp_storage_emulator")
    port = _free_port()
    with started(sys.executable, "-c", EMULATOR, str(port), port=port) as proxy:
        environment = {
            "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{proxy.port}",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }
        options = {"gs": {"token": "anon"}, "gcs": {"token": "anon"}}  # else it looks for credentials on the network
        yield Store("gs://laws", "gs://no-such-bucket", False, proxy, environment, options)


SSHD = """
ListenAddress 127.0.0.1
Port {port}
HostKey {place}/host
PidFile none
AuthorizedKeysFile {place}/user.pub
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin yes
Subsystem sftp internal-sftp
"""


@contextmanager
def sftp_store() -> Iterator[Store]:
    """OpenSSH."""
    _needs("paramiko", command="sshd")
    sshd, port = str(shutil.which("sshd", path=_PATH)), _free_port()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it shuts itself in; else it does not start
    with tempfile.TemporaryDirectory() as place:
        for name in ("host", "user"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", f"{place}/{name}"], check=True)
        config = Path(place, "config")
        config.write_text(SSHD.format(port=port, place=place))
        with started(sshd, "-D", "-e", "-f", str(config), port=port) as proxy:
            options = {"key_filename": f"{place}/user", "allow_agent": False, "look_for_keys": False}
            url = f"sftp://{getpass.getuser()}@127.0.0.1:{proxy.port}{place}/laws"
            yield Store(url, "", True, proxy, {"FSSPEC_SFTP": json.dumps(options)}, {"sftp": options})


STORES: dict[str, Callable[[], AbstractContextManager[Store]]] = {
    "s3": s3_store,
    "azure": azure_store,
    "gcs": gcs_store,
    "sftp": sftp_store,
}


def make_bucket(url: str) -> None:
    """The bucket, or the directory, is there."""
    system, root = fsspec.core.url_to_fs(url)
    if not system.exists(root):
        system.mkdir(root)
