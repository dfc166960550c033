"""The command `checkpoint`: one function a command, each of which returns an exit status.

argparse parses: a dozen commands need no more, it starts fast, and it is always there. Of the extra `[cli]`,
argcomplete completes commands, options and names in the shell, and rich draws on a terminal; without them all is
plain text.

0: done. 1: it failed, and standard error says why. 2: the command line is wrong. 3: `check` found damage. 130: Ctrl-C.
141: the reader of our output went away.
"""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from checkpoint import clock, version
from checkpoint.api.runner import CheckpointedRunner
from checkpoint.catalog.decisions import accept_code, meant_by
from checkpoint.catalog.locate import locate, names_in
from checkpoint.catalog.paths import command_line, resolve_directory
from checkpoint.catalog.taken import step_tree
from checkpoint.catalog.view import LATEST, VersionView
from checkpoint.cli import demo
from checkpoint.cli.arguments import STATUSES, add_command, both_ways, json_or_text, keys_written
from checkpoint.cli.clear import add_clear
from checkpoint.cli.terminal import console_here, drawing_of, print_json, print_line, print_parts, print_table, title_of
from checkpoint.cli.watch import add_watch
from checkpoint.errors import CheckpointError, InvalidOption, plural, printable, quote, shorten
from checkpoint.maintenance import check, compact, repair
from checkpoint.remote.urls import url_at
from checkpoint.reporting import sampling, tables
from checkpoint.reporting import status as status_module
from checkpoint.reporting.causes import Cause
from checkpoint.reporting.status import Summary, Survey
from checkpoint.reporting.step_tree import tree_lines
from checkpoint.storage.files import store_error
from checkpoint.storage.spending import cost_text
from checkpoint.values.keys import earlier_digests, version_digest
from checkpoint.words import ago, size_in_words

__all__ = ["main"]


_SHOWN_CAUSES = 50
_SHOWN_KEYS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status.

    Args:
        argv: the arguments; default those of this process.

    Raises:
        SystemExit: after --help and --version (0), and for a wrong command line (2).
    """
    if sys.stdout is None:  # it was closed by whoever started us
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        _complete(parser)
    arguments = parser.parse_args(argv)
    try:
        status = int(arguments.run(arguments))
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("checkpoint: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python's own flush at exit fails once more
        return 141
    except (CheckpointError, OSError) as error:
        print_line(f"checkpoint: {error}", sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="checkpoint",
        description="Resumable maps: look at the checkpoints of your jobs while they run and after, take the results\n"
        "away, redo what is wrong, and look after the files.",
        epilog="examples:\n  checkpoint demo\n  checkpoint ls\n  checkpoint show NAME\n  checkpoint watch NAME\n"
        "  checkpoint errors NAME --traceback\n  checkpoint export NAME results.csv\n"
        "  checkpoint accept NAME DIGEST\n  checkpoint clear NAME --key KEY\n"
        "  checkpoint check NAME\n  checkpoint compact NAME\n  checkpoint check --help\n  python -m checkpoint demo\n\n"
        "completion of commands, options and names in bash and zsh, with the extra checkpoint-map[cli]:\n"
        '  eval "$(register-python-argcomplete checkpoint)"',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"checkpoint-map {version.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_ls, _add_show, add_watch, _add_errors, _add_report, _add_export, _add_accept, add_clear, _add_check,
        _add_compact, _add_demo,
    ):  # fmt: skip
        add(commands)
    return parser


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and exit; without argcomplete it gets no answer, and no output either."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)
    argcomplete.autocomplete(parser)


# --- ls --------------------------------------------------------------------------------------------------------------


def _add_ls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "ls",
        help="list the checkpoints of a directory",
        description="Each checkpoint of a directory: how many items are done and have failed, of the version that was\n"
        "written last; how large its files are; when it was last written; and who is writing it.",
        epilog="examples:\n  checkpoint ls\n  checkpoint ls path/to/checkpoints --json\n\n"
        f"exit status: 0 done, also where there are none; 1 the directory is not there; {STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "dir", nargs="?", metavar="DIR", help="the directory (default: $CHECKPOINT_DIR, else ./checkpoints)"
    )
    command.add_argument("--dir", metavar="DIR", dest="named", help="the same, as the other commands have it")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_ls)


def _ls(arguments: argparse.Namespace) -> int:
    if arguments.named is not None:
        if arguments.dir is not None:
            raise InvalidOption("ls takes one directory: DIR or --dir DIR")
        arguments.dir = arguments.named
    directory = resolve_directory(arguments.dir)
    if arguments.dir is not None and not directory.is_dir() and url_at(directory) is None:
        number = errno.ENOTDIR if os.path.lexists(directory) else errno.ENOENT
        raise store_error(OSError(number, os.strerror(number)), "cannot list", directory)
    found = status_module.list_checkpoints(directory)
    if arguments.json:
        print_json({"directory": str(directory), "checkpoints": [held.to_json() for held in found]})
    elif found:
        has_cost = any(held.cost is not None for held in found)
        rows = [_ls_row(held, has_cost=has_cost) for held in found]
        print_table((*_HEAD[:4], ("cost", ">"), *_HEAD[4:]) if has_cost else _HEAD, rows)
    else:
        print_line("\n".join(_none_in(directory)))
    return 0


def _none_in(directory: Path) -> Iterator[str]:
    what = "" if directory.is_dir() else ", which is not there"
    yield f"there are no checkpoints in {directory}{what}"
    below = directory / "checkpoints"
    if names_in(below):
        yield f"there are in {below}: checkpoint ls {shlex.quote(str(below))}"
    else:
        yield "name another directory: checkpoint ls DIR"


_HEAD = (("name", "<"), ("done", ">"), ("failed", ">"), ("total", ">"), ("size", ">"), ("last record", "<"), ("", "<"))


def _ls_row(held: Summary, *, has_cost: bool) -> tuple[str, ...]:
    cost = ("–" if held.cost is None else cost_text(held.cost),) if has_cost else ()
    if held.why:
        why = f"cannot be read: {shorten(held.why)}"
        return (held.name, "?", "?", "?", *cost, size_in_words(held.size), "?", why)
    moment = sampling.moment_of(held.last)
    return (
        held.name,
        f"{held.done:,}",
        f"{'' if held.is_exact else '~'}{held.failed:,}",
        "–" if held.total is None else f"{held.total:,}",
        *cost,
        size_in_words(held.size),
        "–" if moment is None else ago(clock.now() - moment),
        _who_writes(held),
    )


def _who_writes(held: Summary) -> str:
    """Who is writing, and what there is to decide or was."""
    told = f"process {held.writer.get('pid')} is writing" if held.writer else ""
    if held.shards:
        told = plural(held.shards, "shard") + (f", {held.writers:,} being written" if held.writers else "")
    decisions = "changed, see show" if held.undecided else "accepted old results" if held.accepted else ""
    return "; ".join(filter(None, [told, decisions]))


# --- show ------------------------------------------------------------------------------------------------------------


def _add_show(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = add_command(
        commands,
        "show",
        _show,
        "tell how far a job is, how fast, and why items failed",
        "What a checkpoint holds and how its job is going: counts, rate and time left, causes of errors, versions,\n"
        "the last activity, who is writing, what was spent, files. With --key, the history of one key: its attempts,\n"
        "errors, notes, durations and versions, forgotten ones too, until `compact` leaves them out. A key is read as\n"
        "JSON where it is that, else as text. Nothing is changed, and a job may be writing meanwhile.",
        "examples:\n  checkpoint show NAME\n  checkpoint show NAME --dir path/to/checkpoints --json\n"
        "  checkpoint show NAME --key doc-17\n\n"
        "exit status: 0 done; 1 there is no such checkpoint, nothing is known of the key, or it cannot be read;\n"
        f"{STATUSES}",
    )
    command.add_argument("--key", metavar="K", help="tell the whole history of this key")


def _show(arguments: argparse.Namespace) -> int:
    if arguments.key is not None:
        return _show_key(arguments)
    seen = status_module.survey(arguments.name, arguments.dir)
    if arguments.json:
        print_json(seen.to_json())
        return 0
    console = console_here()
    if console is None:
        print_line(str(seen))
    else:
        console.print(title_of(seen))
        console.print(drawing_of(seen, list(seen.rows())))
    if seen.failed:
        print_line(f"why each failed: {command_line('errors', seen.name, seen.directory)}")
    return 0


def _show_key(arguments: argparse.Namespace) -> int:
    from checkpoint.reporting.key_history import history_of

    keys = keys_written(arguments.key)
    found = history_of(arguments.name, keys, arguments.dir)
    if len(found) > 1:
        raise InvalidOption(
            f"the keys {quote(found[0].key)} and {quote(found[1].key)} are both there; "
            f"{both_ways(keys[0], arguments.key)}"
        )
    if not found:
        raise CheckpointError(
            f"nothing is known of key {quote(keys[0])} in checkpoint {arguments.name!r}: it never ran, or `compact` "
            "has left its lines out"
        )
    history = found[0]
    with CheckpointedRunner(arguments.name, locate(arguments.name, arguments.dir)) as runner:
        tree = step_tree(runner.records, history.key)
        lines = tree_lines(tree) if tree.steps else []
    if arguments.json:
        print_json({**history.to_json(), "steps": tree.to_json()["steps"]})
    else:
        print_line(str(history))
        for line in lines:
            print_line(line)
    return 0


# --- errors ----------------------------------------------------------------------------------------------------------


def _add_errors(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = add_command(
        commands,
        "errors",
        _errors,
        "tell why items failed, by cause",
        "The items that failed and have no result, grouped by what caused it: the type of the exception and the\n"
        "place that it came from, the most frequent first. --json lists each of them.",
        "examples:\n  checkpoint errors NAME\n  checkpoint errors NAME --traceback\n"
        "  checkpoint errors NAME --type ValueError --json\n\n"
        f"exit status: 0 done, also where there are none; 1 there is no such checkpoint, or it cannot be read;\n"
        f"{STATUSES}",
    )
    command.add_argument("--traceback", action="store_true", help="print one whole traceback of each cause")
    command.add_argument("--type", metavar="T", help="only errors of this type, such as ValueError")


def _errors(arguments: argparse.Namespace) -> int:
    directory = locate(arguments.name, arguments.dir)
    found = status_module.failures(arguments.name, directory, type=arguments.type)
    if arguments.json:
        failed = list(found)
        print_json(
            {
                "name": arguments.name,
                "directory": str(directory),
                "count": len(failed),
                "causes": [
                    status_module.cause_json(cause, traceback=arguments.traceback)
                    for cause in status_module.causes(failed)
                ],
                "errors": [failure.to_json(traceback=arguments.traceback) for failure in failed],
            }
        )
        return 0
    causes = status_module.causes(found)
    if not causes:
        print_line(_no_errors(arguments, directory))
        return 0
    count = sum(cause.count for cause in causes)
    print_line(f"{plural(count, 'failure')} of {arguments.name!r}, {plural(len(causes), 'cause')}")
    for cause in causes[:_SHOWN_CAUSES]:
        _print_cause(cause, traceback=arguments.traceback)
    if len(causes) > _SHOWN_CAUSES:
        print_line(f"\n… and {plural(len(causes) - _SHOWN_CAUSES, 'more cause')}, which --json lists")
    return 0


def _no_errors(arguments: argparse.Namespace, directory: Path) -> str:
    if arguments.type is None:
        return f"no errors: nothing of {arguments.name!r} has failed and has no result"
    types = {cause.type or "error" for cause in status_module.causes(status_module.failures(arguments.name, directory))}
    there = f"; there are: {', '.join(map(printable, sorted(types)))}" if types else ""
    return f"no errors of type {quote(arguments.type)} in {arguments.name!r}{there}"


def _print_cause(cause: Cause, *, traceback: bool) -> None:
    place = (f" at {cause.where}" if cause.where else "") + (", given up" if cause.given_up else "")
    keys = [quote(key, 60) for key in cause.keys[:_SHOWN_KEYS]]
    more = f", … ({cause.count - len(keys):,} more)" if cause.count > len(keys) else ""
    print_parts(("\n", ""), (f"{cause.count:,} × ", "bold"), (cause.type or "error", "bold red"), (place, "cyan"))
    print_parts(("  message  ", "dim"), (shorten(cause.message, 300), ""))
    print_parts(("  keys     ", "dim"), (", ".join(keys) + more, ""))
    if traceback:
        for line in (cause.traceback or "no traceback was recorded").rstrip("\n").split("\n"):
            print_parts((f"  {line.expandtabs(4)}", ""))


# --- report ----------------------------------------------------------------------------------------------------------


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = add_command(
        commands,
        "report",
        _report,
        "write a report as one HTML file",
        "One self-contained HTML file: progress over time, throughput, errors by cause, slowest items, and the\n"
        "results in a table that can be searched. A job may be writing meanwhile.",
        "examples:\n  checkpoint report NAME\n  checkpoint report NAME --out report.html\n\n"
        f"exit status: 0 written; 1 there is no such checkpoint, or it could not be written; {STATUSES}",
        json="",
    )
    command.add_argument("--out", metavar="FILE", help="where it goes (default: NAME_report.html)")


def _report(arguments: argparse.Namespace) -> int:
    from checkpoint.reporting.report import write_report

    directory = locate(arguments.name, arguments.dir)
    path = write_report(arguments.name, arguments.out, checkpoint_dir=directory)
    print_line(f"the report of {arguments.name!r} is in {path}")
    return 0


# --- export ----------------------------------------------------------------------------------------------------------


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = add_command(
        commands,
        "export",
        _export,
        "write the results as CSV, JSON lines or Parquet",
        "A row for each result: its key, its fields as columns, when it was saved, how long it took and how many\n"
        "attempts. The file's ending says which kind of file; what is there is replaced. Parquet needs the extra\n"
        "checkpoint-map[parquet]. A job may be writing meanwhile.",
        "examples:\n  checkpoint export NAME results.csv\n  checkpoint export NAME results.parquet --errors\n"
        "  checkpoint export NAME old.jsonl --version '\"prompt-1\"'\n\n"
        "exit status: 0 written; 1 there is no such checkpoint or version, a record is damaged, a package is not\n"
        f"installed, or the file could not be written; {STATUSES}",
    )
    command.add_argument("out", metavar="OUT", help="the file: .csv, .jsonl or .parquet")
    command.add_argument("--errors", action="store_true", help="a row for each item that failed, too")
    command.add_argument(
        "--raw",
        action="store_true",
        help="in CSV, leave text as it is: else what a spreadsheet would run as a formula begins with '",
    )
    command.add_argument(
        "--version",
        metavar="V",
        dest="of_version",
        help="the version: a JSON value, or what `show` calls it (default: that of the last record)",
    )


def _export(arguments: argparse.Namespace) -> int:
    seen = status_module.survey(arguments.name, arguments.dir)
    version = LATEST if arguments.of_version is None else _version_meant(seen, arguments.of_version)
    rows = tables.export(
        seen.name, arguments.out, seen.directory, errors=arguments.errors, version=version, raw=arguments.raw
    )
    path = os.path.realpath(arguments.out)
    size = os.path.getsize(path)
    if arguments.json:
        print_json({"name": seen.name, "directory": seen.directory, "path": path, "rows": rows, "bytes": size})
    else:
        print_line(f"{plural(rows, 'row')} of {seen.name!r} in {path} ({size_in_words(size)})")
    return 0


def _version_meant(seen: Survey, text: str) -> Any:
    """The version that is written so: by its digest, as JSON, or as the text itself.

    Raises:
        InvalidOption: two versions are written so.
    """
    for held in seen.versions:
        if held.version and held.version == text:
            return held
    known = {held.version for held in seen.versions}
    meant = [value for value in json_or_text(text) if not known.isdisjoint(_digests(value, seen.name))]
    if len(meant) > 1:
        raise InvalidOption(f"both {quote(meant[0])} and {quote(meant[1])} are versions; {both_ways(meant[0], text)}")
    if not meant and text == "no version" and "" in known:
        return None  # as `show` calls it
    return meant[0] if meant else json_or_text(text)[0]


def _digests(version: Any, name: str) -> list[str]:
    """What records of the checkpoint may call a version."""
    return [""] if version is None else [version_digest(version, "--version", name), *earlier_digests(version)]


# --- accept ----------------------------------------------------------------------------------------------------------


def _add_accept(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = add_command(
        commands,
        "accept",
        _accept,
        "say that old results are still right, though the function has changed",
        "Results that earlier code computed, or code that read other values, count for the function as it is, from\n"
        "now on and on every machine: `map` neither refuses them nor tells of them. DIGEST is what the message of\n"
        "`map`, or `plan`, has printed. Nothing is computed, no result changes, and the job's code is not needed.",
        "examples:\n  checkpoint accept NAME DIGEST\n  checkpoint accept NAME DIGEST --dir path/to/checkpoints\n\n"
        "exit status: 0 accepted, now or before; 1 the digest is none that was printed for the results as they are,\n"
        "there is no such checkpoint, or it is being written; 2 wrong command line; 130 interrupted",
    )
    command.add_argument("digest", metavar="DIGEST", help="what the message has printed")


def _accept(arguments: argparse.Namespace) -> int:
    directory = locate(arguments.name, arguments.dir)
    with CheckpointedRunner(arguments.name, directory) as runner:
        meant = meant_by(runner.records.open(), arguments.digest)
        if not meant:
            raise CheckpointError(
                f"{quote(arguments.digest)} stands for no change of checkpoint {arguments.name!r} in {directory} as it "
                "is: copy the line that `map` or `plan` prints, again where results came in between; or call "
                "f.accept() in Python"
            )
        counts: Counter[str] = Counter()
        for version, code in meant:
            with closing(VersionView(arguments.name, directory, version=None, power=True, result_type=None)) as records:
                records.version = version
                counts.update(accept_code(records, code))
    if arguments.json:
        told = {"name": arguments.name, "directory": str(directory), "for": meant[0][1]}
        print_json({**told, "accepted": [{"code": old, "results": count} for old, count in counts.items()]})
    elif not counts:
        print_line(
            f"nothing to accept: that was decided before, or no result of other code is left of {arguments.name!r}"
        )
    else:
        results = plural(counts.total(), "result")
        print_line(f"accepted {results} of {arguments.name!r}: from now on they count for the function as it is")
    return 0


# --- check, compact, demo --------------------------------------------------------------------------------------------


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = add_command(
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
    locate(arguments.name, arguments.dir)
    repaired = repair.repair(arguments.name, arguments.dir) if arguments.repair else None
    found = check.check(arguments.name, arguments.dir)
    if arguments.json:
        print_json({**found.to_json(), "repaired": None if repaired is None else repaired.to_json()})
    else:
        print_line(f"{found}" if repaired is None else f"{repaired}\n{found}")
    return 0 if found.is_sound else 3


def _add_compact(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add_command(
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
    locate(arguments.name, arguments.dir)
    done = compact.compact(arguments.name, arguments.dir)
    if arguments.json:
        print_json(done.to_json())
    else:
        print_line(str(done))
    return 0


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "demo",
        help="watch a job being killed, resumed and retried (5 to 20 seconds)",
        description="A job with failures runs in a process of its own, is killed part-way, and is started again; then\n"
        "what failed is retried. The job counts its calls, which proves that nothing was lost or done twice.",
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
