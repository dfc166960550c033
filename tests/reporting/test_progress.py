"""Laws of the bar: it tells the truth about this pass, it never disturbs one, and a log of it stays readable."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tqdm.std

import checkpoint
from checkpoint import BatchCheckpointedRunner, InvalidKey, ItemsFailed, checkpointed
from checkpoint.passes import progress
from checkpoint.passes.progress import Bar


class Tty(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


class Clock:
    """tqdm's clock, ticked by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time as tqdm sees it."""
    ticked = Clock()
    monkeypatch.setattr(tqdm.std, "time", ticked)
    return ticked


class Log:
    """What stands on stderr, which is no terminal."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._captured.readouterr().err
        return self._text


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Log:
    """stderr, no terminal."""
    return Log(capsys)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tqdm objects that were drawn."""
    drawn: list[Any] = []
    real = progress._draw

    def draw(*args: Any) -> Any:
        drawn.append(real(*args))
        return drawn[-1]

    monkeypatch.setattr(progress, "_draw", draw)
    return drawn


def failing(n: int) -> int:
    """Fails for what is odd."""
    if n % 2:
        raise ValueError(n)
    return n


def test_a_bar_starts_at_what_is_done(bars: list[Any], log: Log) -> None:
    """And ends at all of it; its rate is that of this pass, since tqdm leaves the initial part out."""
    f = checkpointed("f")(lambda n: n)
    f.map(range(3))
    f.map(range(10))
    first, second = bars
    assert (first.initial, first.n, first.total) == (0, 3, 3)
    assert (second.initial, second.n, second.total) == (3, 10, 10)
    assert (first.desc, second.desc) == ("f", "f")


def test_what_proves_to_be_done_counts_for_nothing_in_the_rate(bars: list[Any], log: Log) -> None:
    """A one-shot input is not known before: what is resumed moves the start, duplicates too."""
    f = checkpointed("f")(lambda n: n)
    f.map(range(3))
    f.map(iter([0, 1, 2, 3, 3, 4]))
    assert (bars[1].initial, bars[1].n) == (4, 6)


def test_the_rate_is_of_this_pass_only(clock: Clock, log: Log) -> None:
    """1,000,000 done and 10 in 10 seconds: one a second, and the time left by that."""
    bar = Bar(2_000_000, 1_000_000, None, show=True)
    clock.now += 10
    bar.update(10, 0)
    bar.close()
    assert "1.00item/s" in log.getvalue()


def test_failures_stand_behind_the_bar(log: Log) -> None:
    """How many, and nothing where there are none."""
    with pytest.raises(ItemsFailed):
        checkpointed("f")(failing).map(range(4))
    assert "2 failed" in log.getvalue()
    checkpointed("g")(lambda n: n).map(range(4))
    assert "failed" not in log.getvalue().splitlines()[-1]


def test_desc_stands_before_it(log: Log) -> None:
    """The checkpoint's name unless told."""
    f = checkpointed("name")(lambda n: n)
    f.map([1])
    f.map([1], desc="Squaring")
    assert [line.split(":")[0] for line in log.getvalue().splitlines()] == ["name", "Squaring"]


# --- where there is none ---------------------------------------------------------------------------------------------


def test_progress_false_shows_none(bars: list[Any]) -> None:
    """Nothing is drawn, nor is it by `iterate`."""
    checkpointed("f")(lambda n: n).map([1], progress=False)
    list(BatchCheckpointedRunner("r").iterate([1]))
    assert bars == []


def test_a_pass_inside_a_pass_shows_none(bars: list[Any], log: Log) -> None:
    """Nor one inside a pass without a bar: the outermost decides. Afterwards there are bars again."""
    inner = checkpointed("inner")(lambda n: n)
    checkpointed("outer")(lambda n: len(inner.map([n]))).map([1, 2])
    checkpointed("quiet")(lambda n: len(inner.map([n]))).map([3, 4], progress=False)
    assert [bar.desc for bar in bars] == ["outer"]
    inner.map([9])
    assert [bar.desc for bar in bars] == ["outer", "inner"]


def test_a_pass_outside_the_main_thread_shows_none(bars: list[Any]) -> None:
    """Threads would draw over each other."""
    thread = threading.Thread(target=lambda: checkpointed("f")(lambda n: n).map([1]))
    thread.start()
    thread.join()
    assert bars == []


def test_without_stderr_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under pythonw."""
    monkeypatch.setattr(sys, "stderr", None)
    assert checkpointed("f")(lambda n: n).map([1]) == [1]


@pytest.mark.parametrize("at", ["first", "later", "closed"])
def test_a_stream_that_breaks_ends_no_pass(monkeypatch: pytest.MonkeyPatch, clock: Clock, at: str) -> None:
    """A closed terminal or a broken pipe: nobody is watching, and the items are run and saved all the same."""

    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            if at == "first" or clock.now > 1005:
                raise BrokenPipeError(32, "Broken pipe")
            return len(text)

    stream = Broken()
    monkeypatch.setattr(sys, "stderr", stream)
    if at == "closed":
        stream.close()

    def body(n: int) -> int:
        clock.now += 20
        return n

    assert checkpointed("f")(body).map(range(5)) == [0, 1, 2, 3, 4]
    assert not progress._open


class Writer:
    """What stands in for stderr and can only be written to, such as an adapter to a logger."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Flusher(Writer):
    """It can be flushed, too."""

    def flush(self) -> None: ...


class Closed(Flusher):
    """It was closed, and says so as a file does."""

    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


@pytest.mark.parametrize(
    ("stream", "shows", "reason"),
    [
        (Writer(), True, "tqdm needs no more than write"),
        (Flusher(), True, "an adapter to a logger"),
        (Closed(), False, "closed"),
        (object(), False, "nothing can be written to it"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, (str, bool)) else None,
)
def test_whatever_stands_in_for_stderr_a_pass_runs(
    monkeypatch: pytest.MonkeyPatch, stream: Any, shows: bool, reason: str
) -> None:
    """A bar as tqdm draws it, or none: never an error."""
    monkeypatch.setattr(sys, "stderr", stream)
    assert checkpointed("f")(lambda n: n).map([1, 2]) == [1, 2]
    assert ("2/2" in getattr(stream, "text", "")) == shows, reason
    assert not progress._open


def test_an_abandoned_pass_leaves_room_for_the_next_bar(bars: list[Any], log: Log) -> None:
    """Whatever ends a pass, the next one is the outermost again."""
    f = checkpointed("f")(lambda n: n)
    next(iter(f.stream([1, 2])))
    with pytest.raises(InvalidKey):
        checkpointed("g")(lambda n: n).map([object()])
    f.map([1, 2])
    assert len(bars) == 2


def test_tqdm_keeps_no_thread(bars: list[Any], log: Log) -> None:
    """A live thread makes a user's fork warn."""

    before = {thread.ident for thread in threading.enumerate()}  # a bar of tqdm's own may have left one

    def threads(n: int) -> list[str]:
        return [type(thread).__name__ for thread in threading.enumerate() if thread.ident not in before]

    assert "TMonitor" not in checkpointed("f")(threads).map([1])[0]


# --- what is read ----------------------------------------------------------------------------------------------------


def run_for(clock: Clock, seconds: Iterator[float]) -> Callable[[int], int]:
    """A function whose calls take this long."""

    def body(n: int) -> int:
        clock.now += next(seconds)
        return n

    return body


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock, log: Log) -> None:
    """A hundred items of a second each: at most eleven lines, whole, without carriage returns."""
    checkpointed("f")(run_for(clock, iter([1.0] * 100))).map(range(100))
    text = log.getvalue()
    lines = text.splitlines()
    assert "\r" not in text
    assert text.endswith("\n")
    assert 5 <= len(lines) <= 11
    assert "100/100" in lines[-1]
    assert all(line.startswith("f: ") for line in lines)


def test_a_short_pass_logs_one_line(clock: Clock, log: Log) -> None:
    """The last one."""
    checkpointed("f")(run_for(clock, iter([0.001] * 1000))).map(range(1000))
    (line,) = log.getvalue().splitlines()
    assert "1000/1000" in line


def test_a_terminal_is_drawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With carriage returns, and the last state left as a line."""
    stream = Tty()
    monkeypatch.setattr(sys, "stderr", stream)
    checkpointed("f")(lambda n: n).map(range(3))
    text = stream.getvalue()
    assert "\r" in text
    assert text.endswith("\n")
    assert "3/3" in text.split("\r")[-1]


@pytest.mark.skipif(os.name == "nt", reason="there is no pty on Windows")
def test_a_real_terminal_shows_the_last_state_after_an_exception(tmp_path: Path) -> None:
    """The bar stands on a line of its own, and the traceback below it."""
    import pty

    script = (
        "from checkpoint import checkpointed\n"
        "def items():\n    yield from range(3)\n    raise ConnectionError('gone')\n"
        "checkpointed('f')(lambda n: n).map(items())\n"
    )
    controller, terminal = pty.openpty()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(checkpoint.__file__).parent.parent),
        "TERM": "xterm",
        "PYTHON_COLORS": "0",
    }
    child = subprocess.Popen([sys.executable, "-c", script], stderr=terminal, cwd=tmp_path, env=environment)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # Linux: the other end was closed
            break
        if not part:
            break
        shown += part
    assert child.wait() == 1
    os.close(controller)
    bar, _, rest = shown.decode().partition("Traceback")
    assert bar.endswith("\r\n")
    assert "3item" in bar.rstrip("\r\n").split("\r")[-1]
    assert "ConnectionError: gone" in rest
