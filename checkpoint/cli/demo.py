"""`checkpoint demo`: a job with failures is killed, resumed and retried, and its own log proves what was called.

The job is a script that is written into the demo's directory, so that you can read it, edit it and run it again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

from checkpoint import clock
from checkpoint.api.runner import CheckpointedRunner
from checkpoint.errors import plural

__all__ = ["DIRECTORY", "ITEMS", "WORKERS", "run"]

DIRECTORY = "checkpoint-demo"
ITEMS, WORKERS, KILLED_AT = 200, 4, 80
NAME = "answers"
JOB = f'''\
import os
import sys
import time

from checkpoint import ItemsFailed, checkpointed


@checkpointed("{NAME}", checkpoint_dir=".")
def answer(question: int) -> str:
    with open("calls.log", "a") as log:  # what a provider would bill
        log.write(f"{{question}}\\n")
    time.sleep(0.03)
    if question % 40 == 7 and not os.path.exists("mended"):
        raise ValueError("the question is refused")
    return f"the answer to {{question}}"


if __name__ == "__main__":
    questions = range({ITEMS})
    if sys.argv[1:] == ["plan"]:
        print(answer.plan(questions, workers={WORKERS}))
    else:
        try:
            print(len(answer.map(questions, workers={WORKERS})), "answers")
        except ItemsFailed as failed:
            sys.exit(str(failed))
'''


def run(directory: Path) -> int:
    """Run the demo in the directory; returns the exit status: 0 if each promise was kept, else 1.

    Raises:
        OSError: the directory cannot be written.
        KeyboardInterrupt: the same command goes on from there.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "job.py").write_text(JOB, encoding="utf-8")
    with suppress(FileNotFoundError):
        (directory / "mended").unlink()
    before = _saved(directory)
    if len(before) == ITEMS:
        _say(f"All {ITEMS} answers are saved already, so that nothing is called again.")
        return _ended(directory, _command(directory, "job.py") == 0 and not _calls_since(directory, _calls(directory)))

    _say(f"1. A job of {ITEMS} slow calls, of which some fail. At {KILLED_AT} results it is killed with SIGKILL.")
    _command(directory, "job.py", kill_at=KILLED_AT)
    saved, called = _saved(directory), _calls(directory)
    _say(f"killed: {plural(len(saved), 'result')} on disk", "", "2. What would the same line do?")
    _command(directory, "job.py", "plan")
    _say("", "3. The same line again: it goes on where the killed process was.")
    _command(directory, "job.py")
    _say("", "4. Why did some fail?")
    _command(directory, "-m", "checkpoint", "errors", NAME, "--dir", ".")
    _say("", "5. The cause is mended, and the same line tries only those again.")
    (directory / "mended").touch()
    failed = set(range(ITEMS)) - _saved(directory).keys()
    third = _calls(directory)
    _command(directory, "job.py")
    retried = _calls_since(directory, third)

    again = _calls_since(directory, called)
    _say("", "Proof, from calls.log, to which each call adds a line:")
    rows = [
        ("results on disk", len(_saved(directory))),
        ("calls, in all", _calls(directory).total()),
        ("saved before the kill, and called again", sum(again[key] for key in saved)),
        ("failed, and called again", sum(retried.values())),
    ]
    _say(*(f"  {label:40}{count:5,}" for label, count in rows))
    wanted = {key: f"the answer to {key}" for key in range(ITEMS)}
    is_kept = _saved(directory) == wanted and not again.keys() & saved.keys() and retried == Counter(failed)
    return _ended(directory, is_kept)


def _ended(directory: Path, is_kept: bool) -> int:
    """Say how it ended and what to type next; returns the exit status."""
    _say(
        "Nothing was lost. Nothing that was saved was called again."
        if is_kept
        else "THE PROOF FAILED, please report it"
    )
    where = shlex.quote(str(directory))
    _say("", "Try next:", f"  checkpoint show {NAME} --dir {where}", f"  checkpoint report {NAME} --dir {where}")
    _say(f"  cd {where}, edit job.py, and run: python job.py plan", f"  delete {where} to start over")
    return 0 if is_kept else 1


def _command(directory: Path, *words: str, kill_at: int = 0) -> int:
    """Run Python with these arguments in the directory, as it would be typed there; kill it at so many results."""
    typed = " ".join(words).removeprefix("-m ")
    _say(f"$ {'' if typed.startswith('checkpoint') else 'python '}{typed}")
    ours = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [ours, os.environ.get("PYTHONPATH")]))
    job = subprocess.Popen([sys.executable, *words], cwd=directory, env={**os.environ, "PYTHONPATH": path})
    try:
        while kill_at and job.poll() is None:
            if len(_saved(directory)) >= kill_at:
                job.kill()
            clock.sleep(0.02)
        return job.wait()
    finally:
        job.wait()
        if kill_at and sys.stderr.isatty():
            print(file=sys.stderr, flush=True)  # the bar of a killed process stands in an unfinished line


def _saved(directory: Path) -> dict[int, str]:
    """What is on disk."""
    with CheckpointedRunner(NAME, directory) as runner:
        return runner.get_all_results()


def _calls(directory: Path) -> Counter[int]:
    """How often each question was asked, by the job's own log."""
    try:
        return Counter(map(int, (directory / "calls.log").read_text().split()))
    except FileNotFoundError:
        return Counter()


def _calls_since(directory: Path, before: Counter[int]) -> Counter[int]:
    return _calls(directory) - before


def _say(*lines: str) -> None:
    print(*lines, sep="\n", flush=True)
