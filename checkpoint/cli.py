"""The command `checkpoint`: one function a command, each of which returns an exit status.

0: done. 1: it failed, and standard error says why. 2: the command line is wrong. 130: Ctrl-C. 141: the reader of our
output went away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from checkpoint import demo
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
        description="Resumable maps: see a job killed and resumed.",
        epilog="examples:\n  checkpoint demo\n  checkpoint demo --help\n  python -m checkpoint demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"checkpoint-map {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
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
