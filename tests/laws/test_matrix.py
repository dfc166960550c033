"""The law of promises: each has a test by its name, the table is what the tests say, and the README leads to it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from promises import NAMES, PAGE, ROWS, Cause, causes, render

pytest_plugins = "pytester"
ROOT = Path(__file__).parents[2]
TESTS = causes()


def test_the_table_is_what_the_tests_say() -> None:
    """PROMISES.md is generated; this says how."""
    hint = "run: python tests/promises.py --write"
    assert PAGE.read_text("utf-8") == render(TESTS), hint


def test_every_row_has_a_test_by_its_name() -> None:
    """A promise that is not tested is not made."""
    by_name = {test.name: test.rows for test in TESTS}
    assert [row.name for row in ROWS if row.name not in by_name.get(row.test, ())] == []


def test_every_marker_names_a_row() -> None:
    """And no test says a row twice."""
    assert [test for test in TESTS if not set(test.rows) <= NAMES.keys()] == []
    assert [test for test in TESTS if len(set(test.rows)) != len(test.rows)] == []


def test_rows_are_told_apart() -> None:
    """By their names, anchors and tests; none breaks the table."""
    assert len({row.slug for row in ROWS}) == len({row.test for row in ROWS}) == len(NAMES) == len(ROWS)
    assert [row for row in ROWS if "|" in "".join(row) or "\n" in "".join(row)] == []


def test_markers_are_read_wherever_they_stand(tmp_path: Path) -> None:
    """On functions and methods, several at once, and on one case of many."""
    (tmp_path / "test_some.py").write_text(
        'import pytest\n@pytest.mark.promise("a", "b")\n@pytest.mark.promise("c")\ndef test_one() -> None: ...\n'
        "class TestMore:\n"
        '    @pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.promise("d"))])\n'
        "    async def test_two(self, n: int) -> None: ...\n"
        "@pytest.mark.soak\ndef test_three() -> None: ...\n"
    )
    found = [Cause("test_some.py", "test_one", ("a", "b", "c")), Cause("test_some.py", "test_two", ("d",))]
    assert causes(tmp_path) == found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("marker", "told"),
    [('"torn tail"', None), ('"torn tale"', "torn tale"), ("", "no row")],
    ids=["a row", "no such row", "nothing"],
)
def test_a_marker_that_names_no_row_is_an_error_at_collection(
    pytester: pytest.Pytester, marker: str, told: str | None
) -> None:
    """Before any test is run."""
    for name in ("conftest.py", "promises.py"):
        pytester.path.joinpath(name).write_text(PAGE.with_name(name).read_text("utf-8"), "utf-8")
    pytester.makeini("[pytest]\nmarkers =\n    promise(row): of the table\n")
    pytester.makepyfile(f"import pytest\n\n@pytest.mark.promise({marker})\ndef test_it() -> None: ...\n")
    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    if told is None:
        assert ran.ret == 0
    else:
        assert ran.ret == pytest.ExitCode.USAGE_ERROR
        ran.stderr.fnmatch_lines([f"*test_it*{told}*"])


def test_every_promise_of_the_readme_leads_to_its_row() -> None:
    """The README has eight rows, by name and in the order of the table, and links to the table for the rest."""
    section = (ROOT / "README.md").read_text("utf-8").partition("\n## Promises\n")[2].partition("\n## ")[0]
    shown = [line for line in section.splitlines() if line.startswith("|")][2:]
    rows = re.findall(
        r"(?m)^\| \[([^]]+)\]\(tests/PROMISES\.md#([a-z0-9-]+)\) \| [^|]+ "
        r"\| \[(test_\w+)\]\((tests/[a-z]+/test_\w+\.py)\) \|$",
        section,
    )
    assert len(rows) == len(shown) == 8
    named = [name for name, *_ in rows]
    assert named == [row.name for row in ROWS if row.name in named]
    files = {test.name: f"tests/{test.file}" for test in TESTS}
    assert rows == [(row.name, row.slug, row.test, files[row.test]) for row in map(NAMES.__getitem__, named)]
    assert "](tests/PROMISES.md)" in section


def test_the_table_has_an_anchor_for_every_row() -> None:
    """In the order of the rows, none left out."""
    anchors = re.findall(r'<a id="([^"]+)">', PAGE.read_text("utf-8"))
    assert anchors == [row.slug for row in ROWS]


@pytest.mark.slow
def test_the_command_prints_the_table() -> None:
    """It needs nothing but Python."""
    ran = subprocess.run(
        [sys.executable, "-S", str(PAGE.with_name("promises.py"))], capture_output=True, timeout=60, check=True
    )
    assert ran.stdout.decode("utf-8") == render(TESTS)
