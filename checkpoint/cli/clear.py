"""`checkpoint clear`: keys, failures, or all of a checkpoint, after asking."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from checkpoint import locks
from checkpoint.api.runner import CheckpointedRunner
from checkpoint.catalog.checkpoint import Checkpoint
from checkpoint.catalog.locate import locate, parts_of, writer_of
from checkpoint.catalog.paths import command_line
from checkpoint.cli.arguments import add_command, both_ways, keys_written
from checkpoint.cli.terminal import print_json, print_line
from checkpoint.errors import CheckpointError, InvalidOption, JournalLost, plural, printable, quote, sayable
from checkpoint.reporting.status import failures
from checkpoint.values.keys import Key, identity, plain_json

__all__ = ["add_clear"]


def add_clear(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The command's arguments."""
    command = add_command(
        commands,
        "clear",
        _clear,
        "forget results and errors: all, or those of some keys",
        "Forget what is saved for some keys, of the version that was written last; or the failures, all or those of\n"
        "one type, given up ones too; or, without any of these, everything: all versions, files included. It asks\n"
        "first. A key is read as JSON where it is that (12, '\"12\"', true, '[1, \"a\"]' for a tuple), else as text.\n"
        "If one key is not there, nothing is forgotten.",
        "examples:\n  checkpoint clear NAME --key doc-17 --key doc-18\n  checkpoint clear NAME --key 12 --yes\n"
        "  checkpoint clear NAME --failed\n  checkpoint clear NAME --type GiveUp\n  checkpoint clear NAME\n\n"
        "exit status: 0 forgotten; 1 a key or the checkpoint is not there, it is being written, or the answer was no;\n"
        "2 wrong command line, or there is no terminal to ask on, and no --yes; 130 interrupted",
    )
    command.add_argument("--key", action="append", metavar="K", help="forget this key (may be repeated)")
    command.add_argument("--failed", action="store_true", help="forget the failures, so that they are called again")
    command.add_argument("--type", metavar="T", help="forget the failures of this type, such as ValueError")
    command.add_argument("--yes", action="store_true", help="do not ask")


def _clear(arguments: argparse.Namespace) -> int:
    directory = locate(arguments.name, arguments.dir)
    with CheckpointedRunner(arguments.name, directory) as runner:
        if any(writer_of(directory, prefix) for prefix in parts_of(arguments.name, directory).values()):
            with locks.alone(), runner.records.checkpoint.all_alone(to_clear=True):
                pass  # which says who is writing, before anybody is asked
        if arguments.key or arguments.failed or arguments.type is not None:
            return _clear_keys(arguments, runner)
        return _clear_all(arguments, runner)


def _keys_of(arguments: argparse.Namespace, runner: CheckpointedRunner) -> list[Key]:
    """Return the keys that are named, and those of the failures that are asked for.

    Raises:
        CheckpointError: one is not there, or nothing has failed so.
    """
    checkpoint, version = runner.records.open(), runner.records.version
    found = {identity(key): key for key in (_key_meant(checkpoint, version, text) for text in arguments.key or ())}
    if arguments.failed or arguments.type is not None:
        failed = list(failures(arguments.name, checkpoint.directory, type=arguments.type))
        if not failed:
            of = "" if arguments.type is None else f" of type {quote(arguments.type)}"
            raise CheckpointError(f"checkpoint {arguments.name!r} has no failures{of}; nothing was forgotten")
        found.update({identity(one.key): one.key for one in failed})
    return list(found.values())


def _clear_keys(arguments: argparse.Namespace, runner: CheckpointedRunner) -> int:
    keys = _keys_of(arguments, runner)
    checkpoint, version = runner.records.open(), runner.records.version
    held = _told(*_counts_of(checkpoint, version, keys))
    if not _agreed(arguments, f"forget {held} of {arguments.name!r}?"):
        return _declined(arguments)
    with locks.alone(), checkpoint.store.writer.alone():
        runner.records.open()
        if runner.records.version != version or not all(_is_there(checkpoint, version, key) for key in keys):
            raise CheckpointError(f"checkpoint {arguments.name!r} was written meanwhile; nothing was forgotten")
        results, errors, aside = _counts_of(checkpoint, version, keys)
        runner.clear(keys)
    if arguments.json:
        told = {"name": runner.name, "directory": str(checkpoint.directory), "keys": [plain_json(key) for key in keys]}
        print_json({**told, "results": results, "errors": errors, "aside": aside, "deleted": []})
        return 0
    print_line(f"forgot {held} of {arguments.name!r}: the next run of the job computes them anew")
    command = command_line("compact", arguments.name, str(checkpoint.directory))
    print_line(f"the old lines stay in the files until: {command}")
    return 0


def _clear_all(arguments: argparse.Namespace, runner: CheckpointedRunner) -> int:
    checkpoint, directory = runner.records.checkpoint, runner.records.checkpoint.directory
    try:
        runner.records.open()
    except JournalLost as error:  # of which this is a way out
        if not arguments.json:
            print_line(str(error))
    counts = [checkpoint.results, checkpoint.errors, checkpoint.unsaved]
    results, errors, aside = (sum(map(shelf.count, shelf.versions)) for shelf in counts)
    held = _told(results, errors, aside)
    if not _agreed(arguments, f"forget all of {arguments.name!r}, {held}, and delete its files?"):
        return _declined(arguments)
    prefixes = parts_of(arguments.name, directory).values()
    with locks.alone(), checkpoint.all_alone(to_clear=True):
        before = [file for prefix in prefixes for file in _files_of(prefix, directory)]
        runner.clear()
    kept = [file for prefix in prefixes for file in _files_of(prefix, directory)]
    deleted = [path for path in before if path not in kept]
    if arguments.json:
        told = {"name": arguments.name, "directory": str(directory), "keys": None, "deleted": deleted}
        print_json({**told, "results": results, "errors": errors, "aside": aside})
        return 0
    print_line(f"forgot all of {arguments.name!r}, {held}; deleted {plural(len(deleted), 'file')} in {directory}")
    if kept:
        spent = ", and journals that only say what was spent" if any(file.endswith("s.jsonl") for file in kept) else ""
        print_line(f"kept: {', '.join(kept)} (the lock, and what repairs have set aside{spent})")
    return 0


def _files_of(name: str, directory: Path) -> list[str]:
    parts = [f"{name}_results.jsonl", f"{name}_errors.jsonl", f"{name}_meta.json"]
    hidden = [f".{name}_{kind}" for kind in ("results", "errors", "unsaved")]
    parts += [f".{name}_unsaved.jsonl", *(f"{part}.{end}" for part in hidden for end in ("index", "aside"))]
    return [part for part in (*parts, f".{name}.lock") if os.path.lexists(directory / part)]


def _told(results: int, errors: int, aside: int) -> str:
    parts = [plural(results, "result")] if results or not (errors or aside) else []
    if errors:
        parts.append(plural(errors, "error"))
    if aside:
        parts.append(f"{plural(aside, 'value')} kept aside")
    return " and ".join(parts) if len(parts) < 3 else f"{parts[0]}, {parts[1]} and {parts[2]}"


def _places(checkpoint: Checkpoint, version: str, key: Key) -> tuple[int, ...]:
    """Return where the key's records are: in results, errors and values kept aside."""
    shelves = (checkpoint.results, checkpoint.errors, checkpoint.unsaved)
    return tuple(place.offset if (place := shelf.find(version, key)) is not None else -1 for shelf in shelves)


def _is_there(checkpoint: Checkpoint, version: str, key: Key) -> bool:
    return max(_places(checkpoint, version, key)) >= 0


def _counts_of(checkpoint: Checkpoint, version: str, keys: Iterable[Key]) -> tuple[int, int, int]:
    places = [_places(checkpoint, version, key) for key in keys]
    results, errors, aside = (sum(held[part] >= 0 for held in places) for part in range(3))
    return results, errors, aside


def _key_meant(checkpoint: Checkpoint, version: str, text: str) -> Key:
    """The key that is written so and is there: as JSON, or as the text itself.

    Raises:
        InvalidOption: two keys are written so.
        CheckpointError: there is none.
    """
    keys = keys_written(text)
    there = [key for key in keys if _is_there(checkpoint, version, key)]
    if len({_places(checkpoint, version, key) for key in there}) > 1:
        raise InvalidOption(
            f"the keys {quote(there[0])} and {quote(there[1])} are both there; {both_ways(keys[0], text)}"
        )
    if there:
        return there[-1]
    others = [other for other in checkpoint.results.versions - {version} if _is_there_as(checkpoint, other, keys)]
    of = f"; it is there under {_labels(checkpoint, others)}, which is not the version written last" if others else ""
    raise CheckpointError(
        f"key {quote(keys[0])} is not in checkpoint {checkpoint.store.name!r} in {checkpoint.directory}{of}; "
        "nothing was forgotten"
    )


def _is_there_as(checkpoint: Checkpoint, version: str, keys: Iterable[Key]) -> bool:
    return any(_is_there(checkpoint, version, key) for key in keys)


def _labels(checkpoint: Checkpoint, versions: Iterable[str]) -> str:
    told = [quote(checkpoint.versions.get(version, version), 60) if version else "no version" for version in versions]
    return ", ".join(sorted(told)[:3])


def _agreed(arguments: argparse.Namespace, question: str) -> bool:
    """Whether the person at the terminal says yes.

    Raises:
        SystemExit: there is none to ask (2).
    """
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        print_line(f"checkpoint: {question} there is no terminal to ask on; say --yes", sys.stderr)
        raise SystemExit(2)
    print(sayable(printable(f"{question} [y/N] "), sys.stderr), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _declined(arguments: argparse.Namespace) -> int:
    print_line("nothing was forgotten", sys.stderr)
    return 1
