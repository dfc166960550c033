"""Worker processes see what the driver sees: its environment, its directory, and what it has set; or it is an error."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

import checkpoint
from checkpoint.execution.call import Call
from checkpoint.provenance.agreement import agreement_of
from checkpoint.provenance.fingerprint import fingerprint
from checkpoint.provenance.syntax import is_own_file

TABLE = ["word"] * 20_000

PROCESSES = 'executor="processes", workers=1, progress=False'
HEAD = """
import os, sys
from checkpoint import checkpointed
"""


def run(directory: Path, source: str, *how: str, stdin: str = "") -> str:
    """What a script prints, and the last line of what it says on stderr."""
    (directory / "job.py").write_text(HEAD + textwrap.dedent(source).replace("PROCESSES", PROCESSES))
    environment = {**os.environ, "PYTHONPATH": str(Path(checkpoint.__file__).parent.parent)}
    environment.pop("CHECKPOINT_DIR", None)
    command = [sys.executable, *how, "job.py"]
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, input=stdin, env=environment, timeout=100, check=False
    )
    return (done.stdout + "\n".join(done.stderr.splitlines()[-1:])).strip()


@pytest.mark.slow
def test_each_pass_has_the_environment_and_directory_of_its_time(tmp_path: Path) -> None:
    """Not those of the first one, at which the fork server was begun; modules see it as they are imported."""
    got = run(
        tmp_path,
        """
        AT_IMPORT = sorted(name for name in os.environ if name.startswith("MY_"))
        def f(n):
            return [AT_IMPORT, os.environ.get("MY_MODEL"), os.path.basename(os.getcwd())]
        if __name__ == "__main__":
            os.environ["MY_MODEL"] = "one"
            g = checkpointed("g", version=1, ignore="AT_IMPORT")(f)
            print(g.map([1], PROCESSES)[0])
            os.mkdir("elsewhere"); os.chdir("elsewhere")
            del os.environ["MY_MODEL"]; os.environ["MY_OTHER"] = "caf\\udce9"
            print(g.map([2], PROCESSES)[0])
        """,
    )
    assert got.splitlines()[:2] == [f"[['MY_MODEL'], 'one', '{tmp_path.name}']", "[['MY_OTHER'], None, 'elsewhere']"]


SET = [
    ("MODEL = 'small'", "MODEL = 'large'", "MODEL", "a variable"),
    ("", "MODEL = 'large'", "MODEL", "one that is not there before"),
    ("MODEL = None", "MODEL = 'large'", "MODEL", "one that had no value yet"),
    ("class Conf:\n    model = 'small'", "Conf.model = 'large'", "Conf.model", "an attribute of a class"),
    (
        "from types import SimpleNamespace\ncfg = SimpleNamespace(model='small')",
        "cfg.model = 'large'",
        "cfg.model",
        "an attribute of an object",
    ),
    (
        "import argparse",
        "args = argparse.Namespace(model='large')",
        "args.model",
        "arguments that are parsed under the guard",
    ),
    ("CFG = {'model': 'small'}", "CFG['model'] = 'large'", "CFG['model']", "an entry"),
    ("CFG = {'model': 'small'}\nALIAS = CFG", "CFG['model'] = 'large'", "CFG.get('model')", "a dict of two names"),
    (
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass C:\n    model: str\ncfg = C('small')",
        "cfg = C('large')",
        "cfg.model",
        "a frozen object that is replaced",
    ),
    (
        "import enum\nclass Mode(enum.Enum):\n    A = 'small'\n    B = 'large'\nMODE = Mode.A",
        "MODE = Mode.B",
        "MODE.value",
        "a member of an Enum",
    ),
    (
        "import numpy as np\nA = np.zeros(2)",
        "A = np.ones(2)",
        "'large' if A.sum() == 2 else A.tolist()",
        "an array that is replaced",
    ),
    (
        "import numpy as np\nA = np.zeros(300_000)\nB = A",
        "A[:] = 1",
        "'large' if A.mean() == B.mean() == 1 else 'small'",
        "an array that is filled",
    ),
    ("import lib", "lib.MODEL = 'large'", "lib.MODEL", "a variable of a module"),
    ("import lib", "lib.MODEL = 'large'", "lib.model()", "one that a function of the module reads"),
    ("import uuid\nMODEL = 'large'\nRUN = str(uuid.uuid4())", "", "(RUN and MODEL)", "an id that is made at import"),
    ("import time\nMODEL = 'large'\nNOW = time.time()", "", "(NOW and MODEL)", "the time at import"),
    ("MODEL = 'large'\nPID = os.getpid()", "", "(PID and MODEL)", "a number of the process"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("before", "under_guard", "read", "reason"), SET, ids=[reason for *_, reason in SET])
def test_what_the_driver_has_set_is_set_in_workers(
    tmp_path: Path, before: str, under_guard: str, read: str, reason: str
) -> None:
    """They import the main module anew, without what stands under its guard."""
    version = 1 if reason == "an attribute of a class" else None  # which says nothing of what workers see
    (tmp_path / "lib.py").write_text("MODEL = 'small'\ndef model():\n    return MODEL\n")
    source = (
        f"{before}\n@checkpointed('g', version={version})\ndef f(n):\n    return {read}\n"
        f"if __name__ == '__main__':\n    {under_guard or 'pass'}\n    print(f.map([1], PROCESSES)[0])\n"
    )
    assert run(tmp_path, source) == "large", reason


@pytest.mark.slow
def test_what_cannot_be_set_ends_the_pass_before_anything_is_paid(tmp_path: Path) -> None:
    """With what to pass how."""
    got = run(
        tmp_path,
        """
        import threading
        class Client:
            def __init__(self, model): self.model, self.lock = model, threading.Lock()
        @checkpointed("g")
        def f(n): open("called", "a").close(); return client.model
        if __name__ == "__main__":
            client = Client("large")
            f.map([1], PROCESSES)
        """,
    )
    assert got.startswith("checkpoint.errors.FunctionChanged: f reads other values in worker processes")
    assert "client.model" in got
    assert "functools.partial(f, model=model)" in got
    assert not (tmp_path / "called").exists()


@pytest.mark.slow
def test_code_that_was_edited_meanwhile_ends_the_pass_before_anything_is_paid(tmp_path: Path) -> None:
    """A worker would import another source than that which runs."""
    (tmp_path / "lib.py").write_text("def f(n):\n    return n + 1\n")
    got = run(
        tmp_path,
        """
        import lib
        @checkpointed("g")
        def f(n): return lib.f(n)
        if __name__ == "__main__":
            open("lib.py", "w").write("def f(n):\\n    open('called', 'a').close(); return n + 1000\\n")
            f.map([1], PROCESSES)
        """,
    )
    assert "FunctionChanged" in got
    assert "edited" in got
    assert not (tmp_path / "called").exists()


@pytest.mark.slow
def test_workers_of_a_given_executor_are_compared_and_not_changed(tmp_path: Path) -> None:
    """A difference is the same error, where calls are made elsewhere; threads see what the driver sees."""
    got = run(
        tmp_path,
        """
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
        from checkpoint import FunctionChanged
        MODEL = "small"
        def f(n): return MODEL
        if __name__ == "__main__":
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                print(checkpointed("a")(f).map([1], executor=pool, progress=False)[0])
                MODEL = "large"
                try: print(checkpointed("b")(f).map([1], executor=pool, progress=False)[0])
                except FunctionChanged as error: print(error.changes)
            with ThreadPoolExecutor(1) as pool:
                print(checkpointed("c")(f).map([1], executor=pool, progress=False)[0])
        """,
    )
    assert got.splitlines() == ["small", "(\"MODEL: 'large' → 'small'\",)", "large"]


@pytest.mark.slow
def test_an_array_that_cannot_be_set_is_an_error_too(tmp_path: Path) -> None:
    """Where workers would compute with another one, nothing is paid."""
    got = run(
        tmp_path,
        """
        import multiprocessing
        import numpy as np
        from concurrent.futures import ProcessPoolExecutor
        from checkpoint import FunctionChanged
        SMALL, LARGE = np.zeros(3), np.zeros(2_000_000)
        def f(n): return SMALL.sum()
        def g(n): return LARGE.sum()
        if __name__ == "__main__":
            SMALL, LARGE = np.ones(3), np.ones(2_000_000)
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                for function, how in ((f, {"executor": pool}), (g, {"executor": "processes", "workers": 1})):
                    try: print(checkpointed(function.__name__)(function).map([1], progress=False, **how))
                    except FunctionChanged as error: print(str(error)[:60])
        """,
    )
    assert got.splitlines() == [
        f"{name} reads other values in worker processes than in this one (here"[:60] for name in "fg"
    ]


def read_table(n: int) -> str:
    """A function that reads a large value."""
    return TABLE[n]


def test_tasks_of_a_given_executor_do_not_carry_the_values_that_are_compared() -> None:
    """Its pickle goes with every task; only workers of ours are sent what may be set there, once each."""
    function = read_table
    call = Call(function, agreement=agreement_of(fingerprint, function))
    assert len(call.shipped()) < 10_000 < len(TABLE) < len(call.shipped(sets=True))


@pytest.mark.slow
def test_a_function_that_is_chosen_under_the_guard_is_told_with_what_to_do(tmp_path: Path) -> None:
    """Starting the program again would change nothing."""
    got = run(
        tmp_path,
        """
        score = None
        @checkpointed("g")
        def f(n): return score(n)
        if __name__ == "__main__":
            score = lambda n: n + 1
            f.map([1], PROCESSES)
        """,
    )
    assert got.startswith("checkpoint.errors.FunctionChanged: worker processes run another f than this process does")
    assert "if what it calls was chosen or set as the program runs" in got


SAME = """
    import functools
    N = 1
    def outer(k):
        def inner(n): return n + k + N
        return inner
    class Scorer:
        def __init__(self, k): self.k = k
        def score(self, n): return n + self.k + N
    def plain(n): return n + 2 + N
    if __name__ == "__main__":
        add = functools.partial(lambda k, n: n + k + N, 2)
        functions = [plain, outer(2), lambda n: n + 2 + N, add, Scorer(2).score]
        print([list(checkpointed(f"g{i}", version=1)(f).map([1, 2], PROCESSES)) for i, f in enumerate(functions)])
"""
LAUNCHERS = [
    ((), "", "as a script"),
    (("-m", "pdb", "-c", "c"), "q\nq\n", "under pdb"),
    (("-m", "cProfile", "-o", "profile"), "", "under cProfile"),
    (("-c", "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"), "", "as debugpy runs it"),
    (("-O",), "", "without assertions"),
    (("-c", "exec(compile(open('job.py').read(), '<string>', 'exec'))"), "", "as a text"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("how", "stdin", "reason"), LAUNCHERS, ids=[reason for *_, reason in LAUNCHERS])
def test_functions_of_any_kind_run_in_workers_whatever_runs_the_script(
    tmp_path: Path, how: tuple[str, ...], stdin: str, reason: str
) -> None:
    """A debugger or a profiler puts a main module of its own in place, or none."""
    assert str([[4, 5]] * 5) in run(tmp_path, SAME, *how, stdin=stdin), reason


@pytest.mark.slow
def test_each_imported_module_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are: libraries of models and clouds bring thousands, and each pass asks for all of them."""
    for number in range(6000):
        module = ModuleType(f"imported_{number}")
        module.__file__ = f"/nowhere/imported_{number}.py"
        monkeypatch.setitem(sys.modules, module.__name__, module)
    read = partial(fingerprint, ignore=())
    agreement_of(read, run)
    known = is_own_file.cache_info().misses
    agreement_of(read, run)
    assert is_own_file.cache_info().misses == known
