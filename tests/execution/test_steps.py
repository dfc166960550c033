"""Steps in worker processes, in chunks, in shards, under kills: what finished is paid for once, wherever it ran."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from checkpoint import Rate, Retry, checkpointed, clock

FOREVER = 30.0
posix = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture(autouse=True)
def in_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a directory of its own, which worker processes know too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHECKPOINT_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.delenv("CHECKPOINT_SHARD", raising=False)


def log_call(*what: Any) -> int:
    """Note a call where every process sees it; how many of it there are now."""
    path, line = Path(os.environ["CHECKPOINT_DIR"]).parent / "calls", " ".join(map(str, what))
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{line}\n".encode())
    os.close(file)
    return calls()[line]


def calls() -> Counter[str]:
    """What was noted."""
    path = Path(os.environ["CHECKPOINT_DIR"]).parent / "calls"
    return Counter(path.read_text().splitlines()) if path.exists() else Counter()


# The functions stand in a module, as those of users do.


@checkpointed("fib")
def fib(n: int) -> int:
    """Each number is made of the two before."""
    log_call(n)
    return n if n < 2 else int(fib.one(n - 1) + fib.one(n - 2))


@checkpointed("mapped fib")
def mapped_fib(n: int) -> int:
    """Made of the two before, by a map of them."""
    return n if n < 2 else sum(mapped_fib.map([n - 1, n - 2], progress=False))


@checkpointed("ping")
def ping(n: int) -> Any:
    """Asks for what asks for it."""
    return pong.one(n)


@checkpointed("pong")
def pong(n: int) -> Any:
    """The other half of a circle."""
    return ping.one(n)


@checkpointed("part", retry=Retry(2, wait=0))
def part(text: str) -> Any:
    """A step that may fail, or return what cannot be written."""
    made = log_call(text)
    if text.startswith("fails"):
        raise TimeoutError(text)
    if text.startswith("dies") and made == 1:
        os._exit(3)
    return [object()] if text.startswith("odd") else deep.one(len(text)) if text.startswith("deep") else text.upper()


@checkpointed("deep", version="v")
def deep(n: int) -> int:
    """A step of a step."""
    log_call("deep", n)
    return n


@checkpointed("whole", retry=Retry(2, on=TimeoutError, wait=0))
def whole(text: str) -> Any:
    """Takes one step, and says what it raised."""
    return [part.one(text), part.one("shared")]


@checkpointed("rated", rate=Rate(1, per=3600))
def rated(n: int) -> int:
    """One call an hour."""
    return n


@checkpointed("keyed", key="id")
def keyed(item: dict[str, Any]) -> Any:
    """An item whose content may change under its key."""
    return item["text"]


@checkpointed("asks")
def asks(item: Any) -> Any:
    """Whatever the test asks for."""
    return keyed.one(item) if isinstance(item, dict) else rated.one(item)


@checkpointed("slow")
async def slow(n: int) -> int:
    """A step that is awaited."""
    log_call("slow", n)
    await asyncio.sleep(0)
    return n if n < 3 else sum(await asyncio.gather(slow.one(n - 1), slow.one(n - 2)))


@checkpointed("awaits")
def awaits(n: int) -> Any:
    """A plain function that runs a loop of its own."""

    async def both() -> Any:
        return await asyncio.gather(*(slow.one(part) for part in (n, n + 1, n, 1)))

    return asyncio.run(both())


@checkpointed("on threads")
def on_threads(n: int) -> Any:
    """Takes steps from threads of its own."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(fib.one, (n, n + 1, n, 3)))


PROCESSES: dict[str, Any] = {"executor": "processes", "workers": 2, "progress": False}

# --- worker processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("chunksize", [1, 16])
def test_fibonacci_on_processes(chunksize: int) -> None:
    """Each number is computed once, by one of the workers; the largest first, so that they wait for each other."""
    assert max(fib.map(range(30, -1, -1), chunksize=chunksize, **PROCESSES)) == 832040
    assert calls() == {str(n): 1 for n in range(31)}
    assert set(fib.results) == set(range(31))


@pytest.mark.slow
@pytest.mark.promise("calls that would wait for each other")
def test_a_circle_on_processes_is_refused() -> None:
    """As on threads."""
    errors = ping.map([1], return_exceptions=True, **PROCESSES).errors
    assert "ping(1) → pong(1) → ping(1)" in errors[1].message
    assert "CircularCall" in str(pong.errors[1].type)


@pytest.mark.slow
def test_steps_of_workers_are_recorded_as_others_are() -> None:
    """Results, failures, retries, what cannot be written, and the steps that each took."""
    result = whole.map(["deep", "fails", "odd", "a"], return_exceptions=True, **PROCESSES)
    assert (result[0], result[3]) == ([4, "SHARED"], ["A", "SHARED"])
    assert result.errors["fails"].type == "TimeoutError"
    assert (whole.errors["fails"].attempts, part.errors["fails"].attempts) == (1, 2)
    assert result.errors["odd"].type.endswith("UnencodableValue")
    assert list(part.unsaved) == ["odd"]
    assert calls() == {"deep": 1, "deep 4": 1, "fails": 2, "odd": 1, "a": 1, "shared": 1}
    assert whole.map(["odd"], return_exceptions=True, **PROCESSES).errors
    assert calls()["odd"] == 1
    whole.clear(["deep"], steps=True)
    assert (set(part.results), set(deep.results)) == ({"A".lower()}, set())


@pytest.mark.slow
def test_another_item_under_a_known_key_is_refused_there_too() -> None:
    """What changed is told as here."""
    assert keyed.one({"id": 1, "text": "a"}) == "a"
    assert asks.map([{"id": 1, "text": "a"}], **PROCESSES) == ["a"]
    error = asks.map([{"id": 1, "text": "b"}], return_exceptions=True, **PROCESSES).errors
    assert "1 item differs" in next(iter(error.values())).message


@pytest.mark.slow
def test_workers_and_the_driver_share_calls_and_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's thread waits for a worker's call; a permit that one used is not there for the other."""
    with ThreadPoolExecutor(2) as threads:
        mapped = threads.submit(awaits.map, [6, 7], **PROCESSES)
        assert asyncio.run(slow.one(8)) == 34
        assert mapped.result(FOREVER) == [[13, 21, 13, 1], [21, 34, 21, 1]]
    assert set(calls().values()) == {1}
    assert rated.one(1) == 1
    assert asks.map([1], **PROCESSES) == [1]
    turns = next(one.turns for one in rated._self_singles.values())
    with ThreadPoolExecutor(1) as threads:
        mapped = threads.submit(asks.map, [2], **PROCESSES)
        while not turns._waiting and not mapped.done():
            clock.sleep(0.01)
        assert not mapped.done()
        now = clock.monotonic
        turns._schedule._now = lambda: now() + 3601
        assert mapped.result(FOREVER) == [2]


@pytest.mark.slow
def test_steps_from_threads_of_a_worker() -> None:
    """Each thread gets the answer to its own question."""
    assert on_threads.map([10, 20], **PROCESSES) == [[55, 89, 55, 2], [6765, 10946, 6765, 2]]
    assert set(calls().values()) == {1}


@pytest.mark.slow
@pytest.mark.promise("who runs a key is cancelled, or its worker dies")
def test_a_worker_that_dies_of_a_step_leaves_it_to_others() -> None:
    """The item is run again, and so is its step; nobody waits for the dead."""
    assert whole.map(["dies", "dies", "b"], **PROCESSES) == [["DIES", "SHARED"], ["DIES", "SHARED"], ["B", "SHARED"]]
    assert calls()["dies"] == 2


def test_given_executors_say_that_they_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes can neither write nor ask; their threads can."""
    with ProcessPoolExecutor(1) as pool:
        errors = fib.map([3], executor=pool, progress=False, return_exceptions=True).errors
    assert "StepRefused" in str(errors[3].type)
    assert 'executor="processes"' in errors[3].message
    with ThreadPoolExecutor(3) as threads:
        assert max(fib.map(range(20, -1, -1), executor=threads, chunksize=5, progress=False)) == 6765


def local(counted: list[Any]) -> tuple[Any, Any]:
    """Functions without a name, which travel by their code."""
    g: Any = checkpointed("g")(lambda n: n * 2)
    f: Any = checkpointed("f")(lambda n: [g.one(n), len(counted)])
    return f, g


@pytest.mark.slow
def test_functions_without_a_name_are_those_of_the_driver() -> None:
    """A worker that asks about one means that which was sent, with the options and the runner that it has here."""
    f, g = local([1])
    assert f.map([1, 2], **PROCESSES) == [[2, 1], [4, 1]]
    assert (g.one(1), dict(g.results)) == (2, {1: 2, 2: 4})
    assert len(g._self_singles) == 1


# --- chunks, shards, signals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [None, 5])
def test_a_map_within_a_call_keeps_no_call_of_its_chunk_waiting(chunksize: int | None) -> None:
    """It may need what stands behind it in the chunk, as a step may."""
    with ThreadPoolExecutor(2) as executor:
        spread: Any = {"executor": executor, "workers": 2, "chunksize": chunksize}
        assert max(mapped_fib.map(range(30), progress=False, **spread)) == 514229


@pytest.mark.parametrize("chunksize", [2, 7, 64])
def test_fibonacci_in_chunks_of_threads(chunksize: int) -> None:
    """A call that takes steps keeps no call of its chunk waiting."""
    for order in (1, -1):
        fib.clear()
        assert max(fib.map(range(30)[::order], workers=3, chunksize=chunksize, progress=False)) == 514229
    assert calls() == {str(n): 2 for n in range(30)}


def test_failures_within_a_chunk_that_is_split() -> None:
    """Those before and after the call that takes a step are their own."""

    @checkpointed("f")
    def f(n: int) -> int:
        log_call(n)
        if n % 2:
            raise ValueError(n)
        return fib.one(2) if n == 6 else n

    result = f.map(range(10), workers=1, executor=None, chunksize=10, progress=False, return_exceptions=True)
    again = f.options(name="again").map(range(10), workers=2, chunksize=10, progress=False, return_exceptions=True)
    for one in (result, again):
        assert set(one.errors) == {1, 3, 5, 7, 9}
        assert one[::2] == [0, 2, 4, 1, 8]


@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_step_is_written_to_the_shard_of_its_task(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks hold two locks; what a task has paid for it does not pay again, whatever the step's key."""
    g: Any = checkpointed("g")(lambda n: log_call("g", n))
    f: Any = checkpointed("f")(lambda n: g.one(n + 100))

    def run(number: int) -> Any:
        if by == "environment":
            monkeypatch.setenv("CHECKPOINT_SHARD", f"{number}/2")
            return f.map(range(6), progress=False)
        return f.map(range(6), progress=False, shard=(number, 2))

    for _ in range(2):
        for number in range(2):
            run(number)
        monkeypatch.delenv("CHECKPOINT_SHARD", raising=False)
        for name in Path("checkpoints").glob("f*"):
            name.unlink()
        f._self_runners.clear()
    assert set(calls().values()) == {1}
    assert {path.name for path in Path("checkpoints").glob("g*_results.jsonl")} == {
        "g@0-of-2_results.jsonl", "g@1-of-2_results.jsonl"
    }  # fmt: skip
    assert [g.one(n + 100) for n in range(6)] == [1] * 6
    assert len(dict(g.results)) == 6


@posix
def test_items_that_run_may_take_steps_after_ctrl_c() -> None:
    """Within the grace; then the map ends as ever, and what finished is there."""

    @checkpointed("f")
    def f(n: int) -> int:
        if n == 1:
            signal.raise_signal(signal.SIGINT)
        return fib.one(n + 3)

    with pytest.raises(KeyboardInterrupt):
        f.map(range(5), progress=False)
    assert dict(f.results) == {0: 2, 1: 3}
    assert set(fib.results) == {0, 1, 2, 3, 4}


# --- kills ------------------------------------------------------------------------------------------------------------

KILLED = """
import os, sys, time, random
from checkpoint import checkpointed
sys.path.insert(0, os.environ["HERE"])

def log(*what):
    file = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (" ".join(what) + "\\n").encode())
    os.close(file)

@checkpointed("step")
def step(text: str) -> str:
    log("called", text)
    time.sleep(random.random() / 500)
    return text * 2

@checkpointed("item")
def item(n: int) -> str:
    made = ""
    for name in "abc":
        made += step.one(f"{n}{name}")
        log("returned", f"{n}{name}")
    return made

if __name__ == "__main__":
    print(len(item.map(range(100), progress=False, **eval(sys.argv[1]))))
"""


def killed(times: int, how: str) -> None:
    """Kill the job so often at random moments, then let it end: no step that returned is called again."""
    Path("job.py").write_text(KILLED)
    chance, returned = random.Random(how), set[str]()
    environment = {**os.environ, "HERE": str(Path(__file__).parent)}
    for left in range(times, -1, -1):
        begun = len(Path("log").read_text().splitlines()) if Path("log").exists() else 0
        job = subprocess.Popen([sys.executable, "job.py", how], env=environment, stdout=subprocess.PIPE)
        if left:
            wanted = begun + chance.randrange(1, 600 // times + 2)
            while job.poll() is None and (not Path("log").exists() or Path("log").read_bytes().count(b"\n") < wanted):
                clock.sleep(0.001)
            job.kill()
        out, _ = job.communicate(timeout=FOREVER * 4)
        lines = [line.split() for line in Path("log").read_text().splitlines()[begun:]]
        again = {text for what, text in lines if what == "called"} & returned
        assert not again, f"paid for twice: {again}"
        returned |= {text for what, text in lines if what == "returned"}
    assert out == b"100\n"
    assert len(returned) == 300


@pytest.mark.slow
@posix
@pytest.mark.promise("a kill in the middle of an item", "SIGKILL, OOM kill, SIGTERM, Ctrl-C")
@pytest.mark.parametrize("how", ["dict()", "dict(workers=4)", "dict(workers=2, executor='processes')"])
def test_a_kill_in_the_middle_of_an_item(how: str) -> None:
    """Killed at random moments, with three steps an item."""
    killed(4, how)


@posix
@pytest.mark.soak
@pytest.mark.parametrize("how", ["dict()", "dict(workers=4)", "dict(workers=2, executor='processes')"])
def test_very_many_kills(how: str) -> None:
    """Two hundred kills."""
    killed(200, how)


# --- an agent ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("a kill in the middle of an item")
def test_an_agent_never_reads_an_answer_to_a_question_that_it_did_not_see() -> None:
    """Its tools answer otherwise after a resume: a turn whose messages differ is another step, and is asked anew."""
    asked: list[str] = []
    is_killed = threading.Event()

    @checkpointed("turn")
    def turn(messages: list[str]) -> str:
        asked.append(messages[-1])
        return f"answer to {' | '.join(messages)}"

    @checkpointed("agent")
    def agent(task: str) -> list[str]:
        messages = [task]
        for number in range(8):
            answer = turn.one(messages)
            assert answer == f"answer to {' | '.join(messages)}"
            if number == 5 and not is_killed.is_set():
                is_killed.set()
                raise OSError("killed")
            weather = "rain" if is_killed.is_set() and number >= 3 else "sun"
            messages = [*messages, f"answered {number}", f"tool {weather} {number}"]
        return messages

    agent.map(["a"], progress=False, return_exceptions=True)
    assert len(asked) == 6
    (messages,) = agent.map(["a"], progress=False)
    assert len(asked) == 6 + 4  # turns 0 to 3 stand; from the first that saw another weather on they are asked
    assert [message for message in messages if "rain" in message] == [f"tool rain {number}" for number in range(3, 8)]
