"""The program that made the checkpoints beside it, by a version of the library with short and plain digests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from checkpoint import checkpointed

API_KEY = "sk-live-abc"
PASSWORD_NUM = 48151623
DB = "postgres://u:hunter2@h/db"
CFG = {"user": "me", "pass": "tr0ub4dor"}
PROMPT = "Say what it is"
ITEMS = [{"id": n, "text": f"text {n}"} for n in range(4)]
CALLS: list[Any] = []


def connect(name: str, password: str = "", token: str = "default-token") -> str:
    """What is given secrets as literals and as a default."""
    return f"{name} {bool(password)} {bool(token)}"


def secretive(item: dict[str, Any]) -> str:
    """What reads secrets of every kind."""
    CALLS.append(item["id"])
    hook = "https://hooks.example.org/T0A1B2/x8YzQw"
    told = connect(DB, password="hunter2", token=API_KEY) + str(PASSWORD_NUM) + CFG["pass"] + CFG["user"] + hook
    return f"{PROMPT} {len(told)}"


def plain(item: dict[str, Any]) -> int:
    """What reads none."""
    CALLS.append(item["id"])
    return int(item["id"]) * 10


class Client:
    """What has a secret as an attribute."""

    def __init__(self, model: str, api_key: str) -> None:
        self.model, self.api_key = model, api_key

    @checkpointed("instance", key="id")
    def run(self, item: dict[str, Any]) -> str:
        """Depend on the instance."""
        CALLS.append(item["id"])
        return f"{self.model} {len(self.api_key)}"


def jobs(directory: str | Path) -> list[Any]:
    """Decorated functions of each kind, over the checkpoints of a directory."""

    def made(name: str, function: Any, **options: Any) -> Any:
        return checkpointed(name, key="id", checkpoint_dir=directory, **options)(function)

    return [
        made("secretive", secretive, on_change="error"),
        made("versioned", plain, version={"prompt": "Say it", "model": "small"}),
        made("secret_version", plain, version={"prompt": "Say it", "api_key": "sk-live-abc"}),
        made("part", plain, input="text"),
        Client("small", "sk-live-abc").run.options(checkpoint_dir=directory),
    ]


if __name__ == "__main__":
    for job in jobs(Path(__file__).parent / "checkpoints"):
        job.map(ITEMS, progress=False)
