# PYTHON_ARGCOMPLETE_OK
"""The command `checkpoint`: one function a command, each of which returns an exit status.

argparse parses: a dozen commands need no more, it starts fast, and it is always there. Of the extra `[cli]`,
argcomplete completes commands, options and names in the shell, and rich draws on a terminal; without them all is
plain text.

0: done. 1: it failed, and standard error says why. 2: the command line is wrong. 3: `check` found damage. 130: Ctrl-C.
141: the reader of our output went away.
"""

from __future__ import annotations

import argparse
import codecs
import errno
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from checkpoint import clock, demo, survey, tables, upkeep
from checkpoint.causes import Cause
from checkpoint.decisions import accept_code, meant_by
from checkpoint.errors import CheckpointError, InvalidKey, InvalidOption, JournalLost, plural, printable, quote, shorten
from checkpoint.journal import store_error
from checkpoint.keys import Key, earlier_digests, identity, key_from_json, plain_key, version_digest
from checkpoint.ledger import plain_json
from checkpoint.places import command_line, locate, names_in, parts_of, size_in_words, writer_of
from checkpoint.records import LATEST, Records
from checkpoint.remote import url_at
from checkpoint.runner import CheckpointedRunner
from checkpoint.store import Store, resolve_directory
from checkpoint.survey import Observer, Summary, Survey, ago

__all__ = ["main"]

_SHOWN_CAUSES = 50
_SHOWN_KEYS = 8
_GRACE = 2  # looks at a checkpoint that nobody writes, before `watch` ends
_STATUSES = "2 wrong command line; 130 interrupted"


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
        _print(f"checkpoint: {error}", sys.stderr)
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
    parser.add_argument("--version", action="version", version=f"checkpoint-map {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_ls, _add_show, _add_watch, _add_errors, _add_report, _add_export, _add_accept, _add_clear, _add_check,
        _add_compact, _add_demo,
    ):  # fmt: skip
        add(commands)
    return parser


def _version() -> str:
    try:
        return metadata.version("checkpoint-map")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and exit; without argcomplete it gets no answer, and no output either."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)
    argcomplete.autocomplete(parser)


def _names(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    try:
        return names_in(resolve_directory(parsed_args.dir))
    except (CheckpointError, OSError):
        return []


def _add(
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


# --- ls --------------------------------------------------------------------------------------------------------------


def _add_ls(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "ls",
        help="list the checkpoints of a directory",
        description="Each checkpoint of a directory: how many items are done and have failed, of the version that was\n"
        "written last; how large its files are; when it was last written; and who is writing it.",
        epilog="examples:\n  checkpoint ls\n  checkpoint ls path/to/checkpoints --json\n\n"
        f"exit status: 0 done, also where there are none; 1 the directory is not there; {_STATUSES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "dir", nargs="?", metavar="DIR", help="the directory (default: $CHECKPOINT_DIR, else ./checkpoints)"
    )
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_ls)


def _ls(arguments: argparse.Namespace) -> int:
    directory = resolve_directory(arguments.dir)
    if arguments.dir is not None and not directory.is_dir() and url_at(directory) is None:
        number = errno.ENOTDIR if os.path.lexists(directory) else errno.ENOENT
        raise store_error(OSError(number, os.strerror(number)), "cannot list", directory)
    found = survey.list_checkpoints(directory)
    if arguments.json:
        _print_json({"directory": str(directory), "checkpoints": [held.to_json() for held in found]})
    elif found:
        _print_table(_HEAD, [_ls_row(held) for held in found])
    else:
        _print("\n".join(_none_in(directory)))
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


def _ls_row(held: Summary) -> tuple[str, ...]:
    if held.why:
        return (held.name, "?", "?", "?", size_in_words(held.size), "?", f"cannot be read: {shorten(held.why)}")
    moment = survey.moment_of(held.last)
    return (
        held.name,
        f"{held.done:,}",
        f"{'' if held.is_exact else '~'}{held.failed:,}",
        "–" if held.total is None else f"{held.total:,}",
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
    _add(
        commands,
        "show",
        _show,
        "tell how far a job is, how fast, and why items failed",
        "What a checkpoint holds and how its job is going: counts, rate and time left, causes of errors, versions,\n"
        "the last activity, who is writing, files. Nothing is changed, and a job may be writing meanwhile.",
        "examples:\n  checkpoint show NAME\n  checkpoint show NAME --dir path/to/checkpoints --json\n\n"
        f"exit status: 0 done; 1 there is no such checkpoint, or it cannot be read; {_STATUSES}",
    )


def _show(arguments: argparse.Namespace) -> int:
    seen = survey.survey(arguments.name, arguments.dir)
    if arguments.json:
        _print_json(seen.to_json())
        return 0
    console = _console()
    if console is None:
        _print(str(seen))
    else:
        console.print(_title(seen))
        console.print(_drawn(seen, list(seen.rows())))
    if seen.failed:
        _print(f"why each failed: {command_line('errors', seen.name, seen.directory)}")
    return 0


# --- watch -----------------------------------------------------------------------------------------------------------


def _add_watch(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
        commands,
        "watch",
        _watch,
        "follow a job that is running elsewhere",
        "What `show` tells of a job that is running in another terminal, again and again: live on a terminal (with\n"
        "the extra checkpoint-map[cli]), else a line each time. It ends when nobody writes any more, or at Ctrl-C;\n"
        "the job does not notice.",
        "examples:\n  checkpoint watch NAME\n  checkpoint watch NAME --interval 60 >> progress.log\n"
        "  checkpoint watch NAME --json\n\n"
        "exit status: 0 the job has ended, or Ctrl-C; 1 there is no such checkpoint, or it cannot be read; 2 wrong\n"
        "command line",
        json="print a line of JSON each time",
    )
    command.add_argument(
        "--interval", type=_seconds, metavar="SECONDS", help="between two looks (default: 1 when live, else 10)"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.05 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{quote(text)} is no number of seconds; give one from 0.05 to 86400")
    return seconds


def _watch(arguments: argparse.Namespace) -> int:
    console = None if arguments.json else _console()
    interval = arguments.interval or (10.0 if console is None else 1.0)
    with Observer(arguments.name, arguments.dir) as observer:
        looks = _looks(observer, interval)
        try:
            if arguments.json:
                seen = _watch_json(looks)
            elif console is None:
                seen = _watch_lines(looks)
            else:
                seen = _watch_live(looks, console)
        except KeyboardInterrupt:
            return 0
    if not arguments.json:
        _print(f"nobody is writing {seen.name!r} any more: {seen.counts()}")
        if seen.failed:
            _print(f"why each failed: {command_line('errors', seen.name, seen.directory)}")
    return 0


def _looks(observer: Observer, interval: float) -> Iterator[Survey]:
    """Look until nobody has been writing for a while; where that cannot be told, until nothing is left."""
    quiet = 0
    while True:
        seen = observer.look()
        quiet = quiet + 1 if seen.writer is None or (not seen.writer and seen.left == 0) else 0
        yield seen
        if quiet > _GRACE:
            return
        clock.sleep(min(interval, 1.0) if quiet else interval)


def _watch_json(looks: Iterable[Survey]) -> Survey:
    for seen in looks:
        print(json.dumps(seen.to_json()), flush=True)
    return seen


def _watch_lines(looks: Iterable[Survey]) -> Survey:
    """A line each time; and one for each cause of errors when it first comes up."""
    last, known = "", set()
    for seen in looks:
        told = " · ".join(part for part in (seen.counts(), seen.pace() if seen.writer else "") if part)
        if told != last or seen.writer:
            _print(f"{datetime.fromtimestamp(seen.asked_at):%H:%M:%S}  {told}")
            last = told
        for cause in seen.causes[:5]:
            if (signature := (cause.type, cause.where, "" if cause.where else cause.message)) not in known:
                known.add(signature)
                _print(f"{'':10}{cause}")
        sys.stdout.flush()
    return seen


def _watch_live(looks: Iterable[Survey], console: Any) -> Survey:
    from rich.live import Live
    from rich.panel import Panel

    with Live(console=console, auto_refresh=False) as live:
        for seen in looks:
            rows = [row for row in seen.rows() if row[0] in ("done", "writing", "rate", "calls", "errors")]
            if seen.recent:
                rows.append(("latest", [f"{quote(last.key, 40)}  {last.text}" for last in seen.recent]))
            live.update(Panel(_drawn(seen, rows), title=_title(seen), title_align="left"), refresh=True)
    return seen


# --- errors ----------------------------------------------------------------------------------------------------------


def _add_errors(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
        commands,
        "errors",
        _errors,
        "tell why items failed, by cause",
        "The items that failed and have no result, grouped by what caused it: the type of the exception and the\n"
        "place that it came from, the most frequent first. --json lists each of them.",
        "examples:\n  checkpoint errors NAME\n  checkpoint errors NAME --traceback\n"
        "  checkpoint errors NAME --type ValueError --json\n\n"
        f"exit status: 0 done, also where there are none; 1 there is no such checkpoint, or it cannot be read;\n"
        f"{_STATUSES}",
    )
    command.add_argument("--traceback", action="store_true", help="print one whole traceback of each cause")
    command.add_argument("--type", metavar="T", help="only errors of this type, such as ValueError")


def _errors(arguments: argparse.Namespace) -> int:
    directory = locate(arguments.name, arguments.dir)
    found = survey.failures(arguments.name, directory, type=arguments.type)
    if arguments.json:
        failed = list(found)
        _print_json(
            {
                "name": arguments.name,
                "directory": str(directory),
                "count": len(failed),
                "causes": [survey.cause_json(cause, traceback=arguments.traceback) for cause in survey.causes(failed)],
                "errors": [failure.to_json(traceback=arguments.traceback) for failure in failed],
            }
        )
        return 0
    causes = survey.causes(found)
    if not causes:
        _print(_no_errors(arguments, directory))
        return 0
    count = sum(cause.count for cause in causes)
    _print(f"{plural(count, 'failure')} of {arguments.name!r}, {plural(len(causes), 'cause')}")
    for cause in causes[:_SHOWN_CAUSES]:
        _print_cause(cause, traceback=arguments.traceback)
    if len(causes) > _SHOWN_CAUSES:
        _print(f"\n… and {plural(len(causes) - _SHOWN_CAUSES, 'more cause')}, which --json lists")
    return 0


def _no_errors(arguments: argparse.Namespace, directory: Path) -> str:
    if arguments.type is None:
        return f"no errors: nothing of {arguments.name!r} has failed and has no result"
    types = {cause.type or "error" for cause in survey.causes(survey.failures(arguments.name, directory))}
    there = f"; there are: {', '.join(map(printable, sorted(types)))}" if types else ""
    return f"no errors of type {quote(arguments.type)} in {arguments.name!r}{there}"


def _print_cause(cause: Cause, *, traceback: bool) -> None:
    place = f" at {cause.where}" if cause.where else ""
    keys = [quote(key, 60) for key in cause.keys[:_SHOWN_KEYS]]
    more = f", … ({cause.count - len(keys):,} more)" if cause.count > len(keys) else ""
    _print_parts(("\n", ""), (f"{cause.count:,} × ", "bold"), (cause.type or "error", "bold red"), (place, "cyan"))
    _print_parts(("  message  ", "dim"), (shorten(cause.message, 300), ""))
    _print_parts(("  keys     ", "dim"), (", ".join(keys) + more, ""))
    if traceback:
        for line in (cause.traceback or "no traceback was recorded").rstrip("\n").split("\n"):
            _print_parts((f"  {line.expandtabs(4)}", ""))


# --- report ----------------------------------------------------------------------------------------------------------


def _add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
        commands,
        "report",
        _report,
        "write a report as one HTML file",
        "One self-contained HTML file: progress over time, throughput, errors by cause, slowest items, and the\n"
        "results in a table that can be searched. A job may be writing meanwhile.",
        "examples:\n  checkpoint report NAME\n  checkpoint report NAME --out report.html\n\n"
        f"exit status: 0 written; 1 there is no such checkpoint, or it could not be written; {_STATUSES}",
        json="",
    )
    command.add_argument("--out", metavar="FILE", help="where it goes (default: NAME_report.html)")


def _report(arguments: argparse.Namespace) -> int:
    from checkpoint.report import write_report

    directory = locate(arguments.name, arguments.dir)
    path = write_report(arguments.name, arguments.out, checkpoint_dir=directory)
    _print(f"the report of {arguments.name!r} is in {path}")
    return 0


# --- export ----------------------------------------------------------------------------------------------------------


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
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
        f"installed, or the file could not be written; {_STATUSES}",
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
    seen = survey.survey(arguments.name, arguments.dir)
    version = LATEST if arguments.of_version is None else _version_meant(seen, arguments.of_version)
    rows = tables.export(
        seen.name, arguments.out, seen.directory, errors=arguments.errors, version=version, raw=arguments.raw
    )
    path = os.path.realpath(arguments.out)
    size = os.path.getsize(path)
    if arguments.json:
        _print_json({"name": seen.name, "directory": seen.directory, "path": path, "rows": rows, "bytes": size})
    else:
        _print(f"{plural(rows, 'row')} of {seen.name!r} in {path} ({size_in_words(size)})")
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
    meant = [value for value in _json_or_text(text) if not known.isdisjoint(_digests(value, seen.name))]
    if len(meant) > 1:
        raise InvalidOption(f"both {quote(meant[0])} and {quote(meant[1])} are versions; {_both(meant[0], text)}")
    return meant[0] if meant else _json_or_text(text)[0]


def _digests(version: Any, name: str) -> list[str]:
    """What records of the checkpoint may call a version."""
    return [""] if version is None else [version_digest(version, "--version", name), *earlier_digests(version)]


def _json_or_text(text: str) -> list[Any]:
    """What a word of the command line may stand for: its JSON, and the text itself."""
    try:
        return [json.loads(text), text]
    except (ValueError, RecursionError):
        return [text]


def _both(value: Any, text: str) -> str:
    """How to write each of the two that one word may stand for."""
    as_json, as_text = shlex.quote(f" {text}"), shlex.quote(json.dumps(text))
    return f"write {as_json} (with a space) for {quote(value)}, and {as_text} for the text"


# --- accept ----------------------------------------------------------------------------------------------------------


def _add_accept(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
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
            with closing(Records(arguments.name, directory, version=None, power=True, result_type=None)) as records:
                records.version = version
                counts.update(accept_code(records, code))
    if arguments.json:
        told = {"name": arguments.name, "directory": str(directory), "for": meant[0][1]}
        _print_json({**told, "accepted": [{"code": old, "results": count} for old, count in counts.items()]})
    elif not counts:
        _print(f"nothing to accept: that was decided before, or no result of other code is left of {arguments.name!r}")
    else:
        results, codes = plural(counts.total(), "result"), plural(len(counts), "fingerprint")
        _print(f"accepted {results} of {arguments.name!r}: what {codes} computed counts for {meant[0][1]} from now on")
    return 0


# --- clear -----------------------------------------------------------------------------------------------------------


def _add_clear(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
        commands,
        "clear",
        _clear,
        "forget results and errors: all, or those of some keys",
        "Forget what is saved for some keys, of the version that was written last; or, without --key, everything:\n"
        "all versions, files included. It asks first. A key is read as JSON where it is that (12, '\"12\"', true,\n"
        "'[1, \"a\"]' for a tuple), else as text. One key that is not there, and nothing is forgotten.",
        "examples:\n  checkpoint clear NAME --key doc-17 --key doc-18\n  checkpoint clear NAME --key 12 --yes\n"
        "  checkpoint clear NAME\n\n"
        "exit status: 0 forgotten; 1 a key or the checkpoint is not there, it is being written, or the answer was no;\n"
        "2 wrong command line, or there is no terminal to ask on, and no --yes; 130 interrupted",
    )
    command.add_argument("--key", action="append", metavar="K", help="forget this key (may be repeated)")
    command.add_argument("--yes", action="store_true", help="do not ask")


def _clear(arguments: argparse.Namespace) -> int:
    directory = locate(arguments.name, arguments.dir)
    with CheckpointedRunner(arguments.name, directory) as runner:
        if any(writer_of(directory, prefix) for prefix in parts_of(arguments.name, directory).values()):
            with runner.records.store.all_alone(to_clear=True):
                pass  # which says who is writing, before anybody is asked
        if arguments.key:
            return _clear_keys(arguments, runner)
        return _clear_all(arguments, runner)


def _clear_keys(arguments: argparse.Namespace, runner: CheckpointedRunner) -> int:
    store, version = runner.records.open(), runner.records.version
    found = {identity(key): key for key in (_key_meant(store, version, text) for text in arguments.key)}
    keys = list(found.values())
    held = _told(*_counts_of(store, version, keys))
    if not _agreed(arguments, f"forget {held} of {arguments.name!r}?"):
        return _declined(arguments)
    with store.alone():
        runner.records.open()
        if runner.records.version != version or not all(_is_there(store, version, key) for key in keys):
            raise CheckpointError(f"checkpoint {arguments.name!r} was written meanwhile; nothing was forgotten")
        results, errors, aside = _counts_of(store, version, keys)
        runner.clear(keys)
    if arguments.json:
        told = {"name": runner.name, "directory": str(store.directory), "keys": [plain_json(key) for key in keys]}
        _print_json({**told, "results": results, "errors": errors, "aside": aside, "deleted": []})
        return 0
    _print(f"forgot {held} of {arguments.name!r}: the next run of the job computes them anew")
    command = command_line("compact", arguments.name, str(store.directory))
    _print(f"the old lines stay in the files until: {command}")
    return 0


def _clear_all(arguments: argparse.Namespace, runner: CheckpointedRunner) -> int:
    store, directory = runner.records.store, runner.records.store.directory
    try:
        runner.records.open()
    except JournalLost as error:  # of which this is a way out
        if not arguments.json:
            _print(str(error))
    counts = [store.results, store.errors, store.unsaved]
    results, errors, aside = (sum(map(shelf.count, shelf.versions)) for shelf in counts)
    held = _told(results, errors, aside)
    if not _agreed(arguments, f"forget all of {arguments.name!r}, {held}, and delete its files?"):
        return _declined(arguments)
    prefixes = parts_of(arguments.name, directory).values()
    with store.all_alone(to_clear=True):
        before = [file for prefix in prefixes for file in _files_of(prefix, directory)]
        runner.clear()
    kept = [file for prefix in prefixes for file in _files_of(prefix, directory)]
    deleted = [path for path in before if path not in kept]
    if arguments.json:
        told = {"name": arguments.name, "directory": str(directory), "keys": None, "deleted": deleted}
        _print_json({**told, "results": results, "errors": errors, "aside": aside})
        return 0
    _print(f"forgot all of {arguments.name!r}, {held}; deleted {plural(len(deleted), 'file')} in {directory}")
    if kept:
        _print(f"kept: {', '.join(kept)} (the lock, and what repairs have set aside)")
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


def _places(store: Store, version: str, key: Key) -> tuple[int, ...]:
    """Where the key's records are, in results, errors and values kept aside."""
    shelves = (store.results, store.errors, store.unsaved)
    return tuple(place.offset if (place := shelf.find(version, key)) is not None else -1 for shelf in shelves)


def _is_there(store: Store, version: str, key: Key) -> bool:
    return max(_places(store, version, key)) >= 0


def _counts_of(store: Store, version: str, keys: Iterable[Key]) -> tuple[int, int, int]:
    places = [_places(store, version, key) for key in keys]
    results, errors, aside = (sum(held[part] >= 0 for held in places) for part in range(3))
    return results, errors, aside


def _key_meant(store: Store, version: str, text: str) -> Key:
    """The key that is written so and is there: as JSON, or as the text itself.

    Raises:
        InvalidOption: two keys are written so.
        CheckpointError: there is none.
    """
    keys = _keys_written(text)
    there = [key for key in keys if _is_there(store, version, key)]
    if len({_places(store, version, key) for key in there}) > 1:
        raise InvalidOption(f"the keys {quote(there[0])} and {quote(there[1])} are both there; {_both(keys[0], text)}")
    if there:
        return there[-1]
    others = [other for other in store.results.versions - {version} if _is_there_as(store, other, keys)]
    of = f"; it is there under {_labels(store, others)}, which is not the version written last" if others else ""
    raise CheckpointError(
        f"key {quote(keys[0])} is not in checkpoint {store.name!r} in {store.directory}{of}; nothing was forgotten"
    )


def _is_there_as(store: Store, version: str, keys: Iterable[Key]) -> bool:
    return any(_is_there(store, version, key) for key in keys)


def _labels(store: Store, versions: Iterable[str]) -> str:
    told = [quote(store.versions.get(version, version), 60) if version else "no version" for version in versions]
    return ", ".join(sorted(told)[:3])


def _keys_written(text: str) -> list[Key]:
    """What a word of the command line may stand for: the key that its JSON makes, where it makes one, and the text."""
    keys: list[Key] = []
    for value in _json_or_text(text):
        try:
            keys.append(_key_of(value))
        except (InvalidKey, ValueError, RecursionError):
            continue
    return keys


def _key_of(value: Any) -> Key:
    """A list stands for a tuple; an object as it stands in a journal."""
    if isinstance(value, dict):
        return key_from_json(value)
    return plain_key(_as_tuple(value))


def _as_tuple(value: Any) -> Any:
    return tuple([_as_tuple(part) for part in value]) if isinstance(value, list) else value


def _agreed(arguments: argparse.Namespace, question: str) -> bool:
    """Whether the person at the terminal says yes.

    Raises:
        SystemExit: there is none to ask (2).
    """
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        _print(f"checkpoint: {question} there is no terminal to ask on; say --yes", sys.stderr)
        raise SystemExit(2)
    print(_encodable(printable(f"{question} [y/N] "), sys.stderr), end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _declined(arguments: argparse.Namespace) -> int:
    _print("nothing was forgotten", sys.stderr)
    return 1


# --- check, compact, demo --------------------------------------------------------------------------------------------


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = _add(
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
    repaired = upkeep.repair(arguments.name, arguments.dir) if arguments.repair else None
    found = upkeep.check(arguments.name, arguments.dir)
    if arguments.json:
        _print_json({**found.to_json(), "repaired": None if repaired is None else repaired.to_json()})
    else:
        _print(f"{found}" if repaired is None else f"{repaired}\n{found}")
    return 0 if found.is_sound else 3


def _add_compact(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    _add(
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
    done = upkeep.compact(arguments.name, arguments.dir)
    if arguments.json:
        _print_json(done.to_json())
    else:
        _print(str(done))
    return 0


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


# --- to the terminal -------------------------------------------------------------------------------------------------


def _console() -> Any:
    """What draws, or None: not on a terminal, not in an encoding that has its characters, or rich is not installed."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb" or not _is_utf8(sys.stdout):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return Console(file=sys.stdout, highlight=False, markup=False, emoji=False)


def _is_utf8(stream: Any) -> bool:
    try:
        return codecs.lookup(stream.encoding or "utf-8").name == "utf-8"
    except LookupError:
        return False


def _title(seen: Survey) -> Any:
    from rich.text import Text

    return Text.assemble((printable(seen.name), "bold"), (f"  {printable(seen.directory)}", "dim"))


_STYLES = {"errors": "red", "latest": "dim"}


def _drawn(seen: Survey, rows: Iterable[tuple[str, list[str]]]) -> Any:
    """The rows under a bar, for rich to print."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    if seen.total and seen.done <= seen.total:
        grid.add_row("", ProgressBar(seen.total, seen.done, width=60))
    for label, lines in rows:
        grid.add_row(label, Text("\n".join(map(printable, lines)), style=_STYLES.get(label, "")))
    return grid


def _print_table(head: Sequence[tuple[str, str]], rows: Sequence[tuple[str, ...]]) -> None:
    shown = [tuple(map(printable, row)) for row in rows]
    names = tuple(name for name, _ in head)
    widths = [max(map(len, column)) for column in zip(names, *shown, strict=True)]
    console = _console()
    if console is not None and console.width >= sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], 30):
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for place, (name, side) in enumerate(head):
            table.add_column(name, justify="right" if side == ">" else "left", no_wrap=place < len(head) - 1)
        for row in shown:
            table.add_row(*map(Text, row))
        console.print(table)
        return
    for row in (names, *shown):
        cells = (f"{cell:{side}{width}}" for cell, width, (_, side) in zip(row, widths, head, strict=True))
        _print("  ".join(cells).rstrip())


def _print_parts(*parts: tuple[str, str]) -> None:
    """One line of (text, style); a leading newline stands for an empty line before it."""
    texts = [(text if text == "\n" else printable(text), style) for text, style in parts]
    console = _console()
    if console is None:
        _print("".join(text for text, _ in texts))
    else:
        from rich.text import Text

        console.print(Text.assemble(*texts), soft_wrap=True)


def _print_json(told: dict[str, Any]) -> None:
    print(json.dumps(told, indent=1))


def _print(text: str, stream: Any = None) -> None:
    """Lines of text. What a terminal would take for an order, and what its encoding lacks, is escaped."""
    stream = stream or sys.stdout
    lines = "\n".join(map(printable, text.split("\n")))
    print(_encodable(lines, stream), file=stream)


_PLAINER = str.maketrans({"×": "x", "·": "|", "…": "...", "–": "-", "−": "-"})


def _encodable(text: str, stream: Any) -> str:
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(_PLAINER).encode(encoding, "backslashreplace").decode(encoding)
    return text
