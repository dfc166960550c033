"""What is promised when things go wrong, and which tests cause it: the table that PROMISES.md beside this file shows.

The law: each row has a test by its name, most in test_promises.py, which really causes the fault; the marker
`@pytest.mark.promise("torn tail", …)` says of any test which rows it causes. A row without a test is not promised.

    python tests/promises.py            print the table
    python tests/promises.py --write    write PROMISES.md
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["NAMES", "PAGE", "ROWS", "Cause", "Row", "causes", "render"]

TESTS = Path(__file__).parent
PAGE = TESTS / "PROMISES.md"


class Row(NamedTuple):
    """A fault, and what holds all the same.

    Attributes:
        name: the fault, as markers name it.
        promise: in Markdown.
        detail: more of the fault, where its name says too little.
    """

    name: str
    promise: str
    detail: str = ""

    @property
    def slug(self) -> str:
        """The anchor of the row."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def test(self) -> str:
        """The test by the name of the row."""
        return "test_" + self.slug.replace("-", "_")


ROWS = (
    Row(
        "SIGKILL, OOM kill, SIGTERM, Ctrl-C",
        "every acknowledged result is there at the next start with the value that was saved, and its item is not run "
        "again. Only what was in flight is: at most `workers × chunksize` calls, or one batch a worker; where chunks "
        "adapt, one call a worker and what it finished in 20 ms. The first "
        "SIGTERM or Ctrl-C in a pass of the main thread lets even that finish, and saves it; the second stops at once",
    ),
    Row(
        "power loss, kernel crash",
        'the checkpoint opens and resumes. `durability="process"` (default): what was fsynced (at least once a '
        'second, and on close) is there. `durability="power"`: every acknowledged result is. No power is cut: file '
        "operations are recorded, and the states drawn that a POSIX file system may leave of them",
    ),
    Row(
        "torn tail",
        "set aside (never destroyed) and cut off before the next append; its item runs again. It is never glued to a "
        "later record",
        "a last line that is cut, or filled with NULs",
    ),
    Row(
        "damaged line in the middle",
        "every intact record before and after it is kept. A logged warning names file and line; `checkpoint check` "
        "lists all of them; the bytes stay. Framing is checked when a file is scanned, the checksum whenever a value "
        "is read, everything by `check`; a value found damaged raises `DamagedRecord`, and is not done in this process "
        "from then on. Reading appends nothing: it leaves a note beside the journal where it can, and the next pass "
        "looks at the line again and computes what is damaged still. A line without a checksum cannot tell",
    ),
    Row(
        "a journal edited beside readers",
        "no value is read under another key, whatever is edited while readers and `Results` are open and whatever "
        "index file lies there: sorted, joined, formatted, restored, replaced, cut, or written in place with the same "
        "size. A line that moved is found by its key, by an open reader within 50 ms (of a long journal that also "
        "grows, within 100 times what it takes to read it), or an error says what happened. Reading changes no byte",
        "by another program",
    ),
    Row(
        "disk full, quota, file-size limit",
        "the save raises a `StoreError`, which is also an OSError with its errno, and names the file; the file is cut "
        "back to its last whole record; once there is room the same process goes on. A pass stops admitting, waits for "
        "what runs, and tries once more; the error's `.unsaved` is every value not written",
    ),
    Row(
        "EIO on write or fsync",
        "the save fails and is not acknowledged; the store refuses more until it is opened anew, which the next pass "
        "does; fsync is never retried as if it could succeed: what was to be synced is written again first, by another "
        "process too, which a mark beside the journal tells, and lines that prove damaged then are run again. EIO on "
        "read is an error, never an empty checkpoint",
    ),
    Row(
        "too many open files",
        "a checkpoint that nobody writes and of which no Results is kept has no descriptor open: a sweep over any "
        "number of names runs with 256. Where too many are kept the error says so and what to do, and they stay "
        "readable",
    ),
    Row(
        "read-only directory or file",
        "reading works; the first save, or a pass that would have to save, says what is not writable before anything "
        "is run",
    ),
    Row(
        "two writing processes",
        "the second gets `CheckpointLocked` at once with pid, host and since when, and changes nothing. A dead owner's "
        "lock needs no cleaning up. Where the lock's file is deleted while it is held, it is made again within a "
        "second, or its owner stops, if another was there first; and a line that still grows is never cut off as torn",
    ),
    Row(
        "fork",
        "a child reads, and gets `StoreForked` when it writes through its parent's runner; nothing is written twice; "
        "the parent goes on; a forked child does not keep the lock of a dead parent",
    ),
    Row("threads", "one runner may be shared; every acknowledged record is whole"),
    Row(
        "clock jumps",
        "order in the file decides, never a timestamp; between the journals of shards that have records of one key the "
        "later timestamp counts, and either is a valid result",
    ),
    Row(
        "journal deleted, replaced or truncated while open",
        "noticed at once when cut, within a second when deleted or replaced; `JournalLost` lists the keys at risk; "
        "nothing goes on being written into a file that nobody will find",
    ),
    Row(
        "bytes that are no UTF-8, NULs, BOM, CRLF",
        "damage of that line only; BOM and CRLF are read through",
    ),
    Row(
        "a journal that is none",
        "an error before anything is run, which names the kind of file and each way out, from every door that writes "
        "or reads: never an empty checkpoint. A journal is none when most of its lines are no intact records, when it "
        "is gone, or when it has lost more than a tenth of what was synced when meta was written. Lines that were only "
        "spaced out or escaped otherwise count: their checksums fit what they were",
        "a Git LFS pointer, UTF-16, gzip, HTML, 0 bytes, half a backup, a formatter's rewrite; or it is gone",
    ),
    Row(
        "giant or deep records",
        "a 50 MB result round-trips, and a long text is saved with two copies of it in memory; a giant or "
        "100,000-deep line in the file damages that line only, and a line "
        "without end, a hole, or keys of one hash cost no more than their bytes; no message quotes more than 200 "
        "characters of data",
    ),
    Row(
        "a worker process dies",
        "its own item is run again alone, and fails with the signal's name the third time; all others are run",
        "out of memory, a segfault, a kill",
    ),
    Row(
        "hostile names",
        "a name is one file-name component of letters (a–z, A–Z), digits, space, `.`, `_`, `-`, not starting with a "
        "dot or a space, at most 200 bytes: else `InvalidName` (a ValueError) before any file is made",
    ),
    Row(
        "untrusted checkpoints",
        "opening and reading runs no code from the files, and connects to no place that they name: only your call, the "
        "environment and your own configuration say which URL a directory mirrors. Only `f.unsaved[key]` opens a "
        "pickle. What is printed, logged or raised tells a terminal nothing; text in CSV is no formula",
    ),
    Row(
        "symlinks, permissions",
        "no file is written through a symlink, or where it has another name (a hard link): it is read, and the first "
        "save says what to do. In a directory for anybody (1777) only this user's own files are written. Temporary "
        "files have names that cannot be guessed. New files follow the umask; the lock can be opened only by who may "
        "write it",
    ),
    Row(
        "secrets",
        "errors keep type, message and plain traceback; never locals, arguments or the environment. A value that is a "
        "secret by name or shape is neither written nor shown, and its digest is slow to try",
    ),
    Row(
        "meta or index missing, empty, garbage, stale",
        "rebuilt from the journals; never stops a resume, never changes a result",
    ),
    Row("a crash during recovery", "recovery can be run again from any point of itself"),
    Row(
        "NFS, network drives",
        "one writer is as safe as the server's locks and fsync; where a file system has no locks, the first save says "
        "so, with the ways out; where it cannot sync, that is told once: there a kill loses nothing, and a power cut "
        "may. Several hosts on one name are not promised",
    ),
    Row(
        "a given executor breaks",
        "`BrokenWorkers`; what it had in flight has not failed, and is run again by the same line with a fresh one",
        "a worker of somebody else's pool dies",
    ),
    Row("the parent of worker processes is killed", "no worker outlives it for longer than a moment"),
    Row(
        "shards killed, and resubmitted with another count",
        "every acknowledged result is there, whichever shard saved it; readers see one checkpoint meanwhile; only what "
        "was in flight is run again. While tasks of one count run, one of another count gets `CheckpointLocked`, which "
        "names that count",
    ),
    Row(
        "the machine is lost",
        "with a `checkpoint_dir` behind a URL everything uploaded is there on the next machine. What was not uploaded "
        "is run again: that of 5 s or 8 MB, and of the upload under way; `runner.uploaded` tells how much it is",
        "its disk too",
    ),
    Row(
        "the store behind a URL stops, and comes back",
        "saving goes on and waits for nothing; nothing local is lost; the failure is told, retried, and caught up "
        "with. Who waits for five seconds is told what for; what is not uploaded when the job ends is told by "
        "`NotUploaded`, and so by its exit status. An opening that has never seen the store is an error, never an "
        "empty checkpoint, and so is a bucket that is not there; a mirror reads what it saw last",
        "or is slow, refuses, cuts connections, or never answers",
    ),
    Row(
        "two machines on one URL",
        "the second gets `CheckpointLocked` with pid, host, since when, and when it may take over: after 60 s without "
        "a word. A writer that was taken for dead and comes back is told; nothing of either is lost. Where a "
        "store cannot create an object exclusively, that is told once, and no two sessions write one object",
    ),
    Row(
        "a machine that was killed comes back to a URL",
        "what it had uploaded is known as its own, and what it still owes goes up under the session that saved it: "
        "nothing that was saved, cleared or compacted later is undone. What it owed when everything was cleared is set "
        "aside, and told",
        "or its directory is restored from a copy",
    ),
    Row(
        "a disk damages a line that is in a store",
        "nothing of that reaches the store: the damaged line is not uploaded, nor is what forgets its key; `check "
        "--repair` and `compact` take the sound line from the store",
    ),
    Row(
        "a kill while a URL is compacted or cleared",
        "every reader sees the old or the new, and no result is lost",
    ),
    Row(
        "an answer that is refused, or cannot be parsed",
        "what was paid for is on disk as soon as its failure is, survives a kill and compaction, and is the value of "
        "`f.errors[key]`. A mended `validate` or `parse` takes it without a call; what was given up is left alone",
    ),
    Row(
        "an outage of the provider",
        "with `retry=` no item fails of it: three refusals (429, 5xx) or lost connections in a row, from different "
        "items, hold all calls that share the quota; one call at a time asks, and nothing costs an attempt meanwhile. "
        "After `Retry(patience=900)` seconds without an answer what waits fails",
        "away, overloaded, or cutting connections",
    ),
    Row(
        "a dead key",
        "ten items in a row that are denied (HTTP 401, 402, 403, no credit) end the pass, with the reason; the other "
        "items are not called. `max_errors=` sets another limit",
    ),
    Row(
        "a kill in the middle of an item",
        "what `one` returned for is there at the next start: no step that finished is called again, serial, on "
        "threads and in worker processes; a step whose item differs from that of before is another one",
        "or its failure, or its retry",
    ),
    Row(
        "calls that would wait for each other",
        "`CircularCall` shows the circle, directly or through others, by `one` and by maps, on threads, tasks and "
        "worker processes; nobody hangs",
    ),
    Row(
        "who runs a key is cancelled, or its worker dies",
        "of those who wait for the key one makes the call, once",
    ),
    Row(
        "a checkpoint of schema 1.0.0",
        "opens and resumes; its lines count for any key of equal `str()`, and stay as they are",
    ),
    Row(
        "a kill while money is spent",
        "what calls noted as cost is in the sum at the next start, that of failed attempts whose retry waits included; "
        "what was in flight is not. The sum survives `clear`, computing anew and compaction",
    ),
    Row(
        "a job that costs more than it may",
        "no call begins for which what was spent, by whichever run, and what is in flight leave no room: `max_cost` is "
        "exceeded by the calls in flight at most, and what ran is saved",
    ),
)
NAMES = {row.name: row for row in ROWS}


class Cause(NamedTuple):
    """A test that says which rows it causes."""

    file: str
    name: str
    rows: tuple[str, ...]


def causes(directory: Path = TESTS) -> list[Cause]:
    """Every marked test of the directory, in the order of files and lines; nothing is imported for it."""
    return [
        Cause(path.relative_to(directory).as_posix(), node.name, rows)
        for path in sorted(directory.glob("**/test_*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (rows := tuple(_marked(node)))
    ]


def _marked(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The rows on a function's markers, and on those of its single cases."""
    for decorator in node.decorator_list:
        for call in ast.walk(decorator):
            if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.promise":
                yield from (ast.literal_eval(argument) for argument in call.args)


def render(tests: list[Cause]) -> str:
    """The table, in Markdown."""
    lines = [
        "# What holds when things go wrong",
        "",
        "*Acknowledged* means that `save_result` has returned, or that a pass has yielded the result. The first test",
        "of each row has its name and causes the fault; the others cause it too, each in its own way. This file is",
        "written by `python tests/promises.py --write`, from what the tests say.",
        "",
        "| fault | promise | tests |",
        "| --- | --- | --- |",
    ]
    for row in ROWS:
        fault = f'<a id="{row.slug}"></a>{row.name}' + (f" ({row.detail})" if row.detail else "")
        links = [f"[{test.name}]({test.file})" for test in _in_order(row, tests)]
        lines.append(f"| {fault} | {row.promise} | {', '.join(links)} |")
    return "\n".join(lines) + "\n"


def _in_order(row: Row, tests: list[Cause]) -> list[Cause]:
    """The tests of a row: the one by its name, and then the others as they stand."""
    return sorted((test for test in tests if row.name in test.rows), key=lambda test: test.name != row.test)


if __name__ == "__main__":
    table = render(causes())
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(table, "utf-8", newline="\n")
    else:
        sys.stdout.buffer.write(table.encode())
