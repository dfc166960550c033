"""Arguments that several commands share, and the meanings of a word on the command line."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from typing import Any

from checkpoint.catalog.locate import names_in
from checkpoint.catalog.paths import resolve_directory
from checkpoint.errors import CheckpointError, InvalidKey, quote
from checkpoint.values.keys import Key, key_from_json, plain_key

__all__ = ["STATUSES", "add_command", "both_ways", "json_or_text", "keys_written"]


STATUSES = "2 wrong command line; 130 interrupted"


def _names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    try:
        return names_in(resolve_directory(parsed_args.dir))
    except (CheckpointError, OSError):
        return []


def add_command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
    epilog: str,
    *,
    json: str = "print one JSON object",
) -> argparse.ArgumentParser:
    """A command about one checkpoint."""
    command = commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = command.add_argument("name", metavar="NAME", help="the checkpoint's name")
    named.completer = _names  # type: ignore[attr-defined]  # argcomplete's way to say what may stand there
    command.add_argument(
        "--dir", metavar="DIR", help="where its files are (default: $CHECKPOINT_DIR, else ./checkpoints)"
    )
    if json:
        command.add_argument("--json", action="store_true", help=json)
    command.set_defaults(run=run)
    return command


def json_or_text(text: str) -> list[Any]:
    """Return the values that a word of the command line may mean: its JSON, and the text itself."""
    try:
        return [json.loads(text), text]
    except (ValueError, RecursionError):
        return [text]


def both_ways(value: Any, text: str) -> str:
    """Say how to write each of the two values that one word may mean."""
    as_json, as_text = shlex.quote(f" {text}"), shlex.quote(json.dumps(text))
    return f"write {as_json} (with a space) for {quote(value)}, and {as_text} for the text"


def keys_written(text: str) -> list[Key]:
    """Return the keys that a word may mean: that of its JSON, if it makes one, and the text."""
    keys: list[Key] = []
    for value in json_or_text(text):
        try:
            keys.append(_key_of(value))
        except (InvalidKey, ValueError, RecursionError):
            continue
    return keys


def _key_of(value: Any) -> Key:
    """Return the key of a JSON value: a list means a tuple, and an object is read as in a journal."""
    if isinstance(value, dict):
        return key_from_json(value)
    return plain_key(_as_tuple(value))


def _as_tuple(value: Any) -> Any:
    return tuple([_as_tuple(part) for part in value]) if isinstance(value, list) else value
