"""The law of the tests: a store that breaks a promise is caught, by each test that `mutants` names for it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from mutants import MUTANTS, Breaker, Run

from checkpoint import clock
from checkpoint.storage import journal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOUND = ""
CATCHERS = list(dict.fromkeys(test for mutant in MUTANTS.values() for test in mutant.tests))


class Child(NamedTuple):
    """A run of pytest that has ended; `run` is None where it did not come as far as its report."""

    status: int
    output: str
    run: Run | None

    def cases(self, test: str) -> dict[str, str]:
        """The outcomes of a test's cases, by node id."""
        assert self.run is not None, self.output
        found = {case: outcome for case, outcome in self.run.cases.items() if case == test or f"{test}[" in case}
        assert found, f"{test} was not run:\n{self.output}"
        return found


def pytest_under(mutant: str, tests: tuple[str, ...] | list[str], directory: Path) -> Child:
    """These tests in a process whose store is broken by the mutant; by none, if it is "". Run from the root."""
    report = directory / f"{mutant or 'sound'}.json"
    library = str(Path(journal.__file__).parent.parent.parent)
    path = os.pathsep.join(filter(None, [library, str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "", "PYTHONPATH": path}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHECKPOINT_TEST_PASSED")}
    chosen = {"CHECKPOINT_MUTANT": mutant, "CHECKPOINT_MUTANT_REPORT": str(report)}
    base = ["--basetemp", str(directory / (mutant or "sound")), "-p", "no:cacheprovider", "-p", "mutants"]
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "pytest", "-q", "--tb=short", *base, *tests],
        cwd=ROOT, env=environment | plugins | chosen, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    run = Run(**json.loads(report.read_text())) if report.exists() else None
    return Child(ran.returncode, ran.stdout + ran.stderr, run)


@pytest.fixture(scope="module")
def children(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Child]]]:
    """The runs of the mutants that this session asks for, and the one of the sound store, as many at once as can."""
    directory = tmp_path_factory.mktemp("mutants")
    chosen = [item.callspec.params.get("name") for item in request.session.items if hasattr(item, "callspec")]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 4)) as pool:
        futures = {SOUND: pool.submit(pytest_under, SOUND, CATCHERS, directory)}
        for name, mutant in MUTANTS.items():
            if name in chosen:
                futures[name] = pool.submit(pytest_under, name, mutant.tests, directory)
        yield futures
        for future in futures.values():
            future.cancel()


@pytest.mark.parametrize("name", MUTANTS)
def test_a_store_that_breaks_a_promise_is_caught(children: dict[str, Future[Child]], name: str) -> None:
    """Each of its tests fails, by what it found; and what was broken was really used."""
    child = children[name].result()
    outcomes = {test: child.cases(test) for test in MUTANTS[name].tests}
    if all(set(cases.values()) == {"skipped"} for cases in outcomes.values()):
        pytest.skip("its tests cannot be run here")
    assert child.run is not None
    assert child.run.calls, "it breaks nothing"
    assert all(child.run.calls.values()), f"never called: {child.run.calls}"
    for test, cases in outcomes.items():
        assert "failed" in cases.values(), f"{test} did not notice: {cases}\n{child.output}"
    assert child.status == pytest.ExitCode.TESTS_FAILED, child.output


def test_the_sound_store_passes_all_of_them(children: dict[str, Future[Child]]) -> None:
    """They fail for what a mutant breaks, and not for how they are run here."""
    child = children[SOUND].result()
    for test in CATCHERS:
        assert set(child.cases(test).values()) <= {"passed", "skipped"}, child.output
    assert child.status == pytest.ExitCode.OK, child.output


def test_a_mutant_of_what_is_not_there_ends_the_run(tmp_path: Path) -> None:
    """A function that was renamed is told by its name: the mutant would break nothing."""
    with pytest.raises(KeyError, match="_no_such_function"):
        Breaker().replace(journal, "_no_such_function", lambda real: real)
    child = pytest_under("no_such_mutant", CATCHERS[:1], tmp_path)
    assert (child.status, child.run) == (pytest.ExitCode.INTERNAL_ERROR, None), child.output
    assert "no_such_mutant" in child.output


def test_a_function_is_replaced_wherever_it_was_imported_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rooms that import a function by its name call the replaced one too, and each call is counted."""
    for room in (journal, clock):
        monkeypatch.setattr(room, "_borrowed", os.getpid, raising=False)
    breaker = Breaker()
    breaker.replace(journal, "_borrowed", lambda real: lambda: -1)
    for room in (journal, clock):
        assert vars(room)["_borrowed"]() == -1
    assert breaker.calls == {"checkpoint.storage.journal._borrowed": 2}
