"""The command `checkpoint`: one function a command, each of which returns an exit status.

0: done. 1: it failed, and standard error says why. 2: the command line is wrong. 3: `check` found damage. 130: Ctrl-C.
141: the reader of our output went away.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from checkpoint import demo, upkeep
from checkpoint.errors import CheckpointError

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    Args:
        argv: the arguments; default those of this process.

    Raises:
        SystemExit: after --help and --version (0), and for a wrong command line (2).
    """
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except KeyboardInterrupt:
        print("checkpoint: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python's own flush at exit fails once more
        return 141
    except (CheckpointError, OSError) as error:
        print(f"checkpoint: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="checkpoint",
        description="Resumable maps: see a job killed and resumed, and look after the files of your own.",
        epilog="examples:\n  checkpoint demo\n  checkpoint check NAME\n  checkpoint compact NAME\n"
        "  checkpoint check --help\n  python -m checkpoint demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"checkpoint-map {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    _add_check(commands)
    _add_compact(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("checkpoint-map")
    except metadata.PackageNotFoundError:
        return "(not installed)"


# --- the commands ----------------------------------------------------------------------------------------------------


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "demo",
        help="watch a real job being killed and resumed (5 to 20 seconds)",
        description="Measure every module of Python's standard library in a process of its own; kill that process\n"
        "part-way; start it again; and count what was run, to prove that nothing was lost or done twice.",
        epilog="examples:\n  checkpoint demo\n  checkpoint demo --dir /tmp/demo\n\n"
        "exit status: 0 proved, 1 failed, 130 interrupted (the same command goes on from there)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "--dir",
        type=Path,
        default=Path(demo.DIRECTORY),
        metavar="DIR",
        help=f"where its files go (default: ./{demo.DIRECTORY})",
    )
    command.set_defaults(run=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    return demo.run(arguments.dir)


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add_keeper(
        commands,
        "check",
        _check,
        "tell what is sound, what is damaged, and what is lost by that",
        "Read every line of a checkpoint and verify its checksum. Nothing is changed, and a job may be writing\n"
        "meanwhile. A torn last line is normal, and no damage. With --repair, damaged lines are moved into a file\n"
        "beside the journal, not a byte of them destroyed; run the job again to compute what is missing.",
        "examples:\n  checkpoint check NAME\n  checkpoint check NAME --dir path/to/checkpoints --json\n"
        "  checkpoint check NAME --repair\n\n"
        "exit status: 0 sound, or repaired; 3 damaged; 1 it cannot be read, is not there, or is being written\n"
        "(--repair); 2 wrong command line; 130 interrupted",
    )
    command.add_argument("--repair", action="store_true", help="set damaged lines aside; refused while a job writes")


def _check(arguments: argparse.Namespace) -> int:
    repaired = upkeep.repair(arguments.name, arguments.dir) if arguments.repair else None
    found = upkeep.check(arguments.name, arguments.dir)
    if arguments.json:
        _print_json({**found.to_json(), "repaired": None if repaired is None else repaired.to_json()})
    else:
        _print(f"{found}" if repaired is None else f"{repaired}\n{found}")
    return 0 if found.is_sound else 3


def _add_compact(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add_keeper(
        commands,
        "compact",
        _compact,
        "rewrite the journals without superseded lines",
        "Leave out the lines that no longer count: results that were computed again or cleared. Everything that can\n"
        "be read stays as it is, of all versions. Each journal is replaced at once by its copy, so that it may be\n"
        "killed at any point; it takes room on the disk for that copy.",
        "examples:\n  checkpoint compact NAME\n  checkpoint compact NAME --dir path/to/checkpoints --json\n\n"
        "exit status: 0 done, or nothing to do; 1 it is being written, is not there, or could not be rewritten;\n"
        "2 wrong command line; 130 interrupted (the journals are whole)",
    )


def _compact(arguments: argparse.Namespace) -> int:
    done = upkeep.compact(arguments.name, arguments.dir)
    if arguments.json:
        _print_json(done.to_json())
    else:
        _print(str(done))
    return 0


def _add_keeper(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """A command about one checkpoint."""
    command = commands.add_parser(
        name, help=help, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("name", metavar="NAME", help="the checkpoint's name")
    command.add_argument(
        "--dir", metavar="DIR", help="where its files are (default: $CHECKPOINT_DIR, else ./checkpoints)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run)
    return command


def _print_json(told: dict[str, Any]) -> None:
    print(json.dumps(told, indent=1))


def _print(text: str) -> None:
    """What the terminal's encoding lacks, such as a path's bytes that are no text, is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
