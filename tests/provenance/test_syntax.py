"""Which literals of a body are values, and that the code which runs is the code that is compared."""

from __future__ import annotations

import dataclasses
import itertools
import json
import linecache
import os
import py_compile
import shutil
import subprocess
import sys
import textwrap
import zipapp
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint.provenance.fingerprint import Changes, Fingerprint, changes, fingerprint
from checkpoint.provenance.literals import is_text

HOUSE = Path(checkpoint.__file__).parent
_numbers = itertools.count()


def of(source: str, *, has_source: bool = True) -> Fingerprint:
    """The fingerprint of `f` in a source, as a notebook's cell runs it."""
    path = f"<cell of syntax {next(_numbers)}>"
    text = textwrap.dedent(source)
    if has_source:
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    names: dict[str, Any] = {"__name__": "__main__", "dedent": textwrap.dedent}
    exec(compile(text, path, "exec"), names)
    found = fingerprint(names["f"])
    assert found is not None
    return found


def edit(before: str, after: str, *, was_there: bool = True, is_there: bool = True) -> Changes:
    """What an edit of `f` changes, told by what a journal keeps."""
    old, new = of(before, has_source=was_there), of(after, has_source=is_there)
    found = changes(old.digest, json.loads(json.dumps(old.detail())), new)
    assert (found == ([], [], [])) <= (old.digest == new.digest or was_there != is_there)
    return found


# --- literals that are values ----------------------------------------------------------------------------------------

SAYS = "Summarize the text in one sentence"
MEANS = "Summarize the text in ten words"
VALUES = [
    ("def f(x):\n    return ask('{}')\n", "a text that is handed on"),
    ("def f(x):\n    return f'{}: {x}'\n", "an f-string"),
    ("def f(x):\n    return f'{x}' ': {} ' f'{x!r:>{x}}'\n", "parts of several strings side by side"),
    ("def f(x):\n    return '{}: ' + x + '.'\n", "a concatenation"),
    ("def f(x):\n    return '{}: %s' % x\n", "a template of percents"),
    ("def f(x):\n    return '{}: {a}'.format(a=x)\n", "a template of braces"),
    (
        "def f(x):\n    prompt = dedent('''\n        {}\n        in English.\n    ''')\n    return ask(prompt)\n",
        "dedent",
    ),
    ("def f(x):\n    return ask([{'role': 'system', 'content': '{}'}, {'role': 'user', 'content': x}])\n", "messages"),
    ("def f(x):\n    return ask(messages=[{'role': 'system', 'content': '{}'}])\n", "messages that are all literal"),
    ("def f(x):\n    return ask(system='{}', user=x)\n", "an argument by keyword"),
    ("def f(x):\n    prompt = '{}' if x else 'no'\n    return ask(prompt)\n", "a choice"),
    ("def f(x):\n    def inner():\n        return '{}'\n    return inner()\n", "an inner function"),
    ("f = lambda x: '{}' + x\n", "a lambda"),
    ("def g(x):\n    return '{}' + x\ndef f(x):\n    return g(x)\n", "a function that it calls"),
    ("async def f(x):\n    return await ask('{}', x)\n", "a coroutine function"),
    ("class A:\n    def __init__(self):\n        self.p = '{}'\ndef f(x):\n    return A().p\n", "a constructor"),
    ("def f(x):\n    return options.get('prompt', '{}')\n", "what a lookup falls back on"),
]


@pytest.mark.parametrize(("form", "reason"), VALUES, ids=[reason for _, reason in VALUES])
def test_an_edited_prompt_is_a_changed_value(form: str, reason: str) -> None:
    """Whatever form it has: old and new are shown, and the code is the same."""
    found = edit(form.replace("{}", SAYS), form.replace("{}", MEANS))
    assert found.code == []
    assert len(found.values) == len(found.names) == 1
    assert "one sentence" in found.values[0]
    assert "ten words" in found.values[0].partition(" → ")[2]


@pytest.mark.parametrize(("form", "reason"), VALUES, ids=[reason for _, reason in VALUES])
def test_an_edited_prompt_is_a_changed_value_where_the_code_changes_too(form: str, reason: str) -> None:
    """A text that is gone; and one that only came is code."""
    before = form.replace("{}", SAYS)
    after = before.replace("def f(x):\n", "def f(x):\n    x = x + 1\n").replace("lambda x:", "lambda x: x and")
    found = edit(before, after.replace(SAYS, MEANS))
    assert len(found.values) == 1
    assert len(found.code) == 1
    assert edit(before, after).values == []


ARGUMENTS = [
    ("0.5", "0.7"), ("1", "True"), ("'small'", "'large'"), ("['a', 'b']", "['b', 'a']"), ("None", "0"), ("-1", "1"),
    ("{'type': 'json'}", "{'type': 'text'}"), ("b'a'", "b'b'"), ("0.0", "-0.0"), ("{1, 2}", "{1, 3}"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), ARGUMENTS)
def test_a_literal_that_is_given_by_keyword_is_a_value(old: str, new: str) -> None:
    """It is named by what is called; one that comes or goes is code."""
    form = "def f(x):\n    return client.create(model, temperature={}, prompt=x)\n"
    found = edit(form.replace("{}", old), form.replace("{}", new))
    assert found.code == []
    assert found.names == ["create(temperature) in f()"]
    longer = edit(form.replace("{}", old), form.replace("{}", new).replace("return", "y = x\n    return"))
    assert longer.names == found.names
    without = form.replace("temperature={}, ", "")
    assert edit(form.replace("{}", old), without).values == edit(without, form.replace("{}", old)).values == []


NONE = [
    ("def f(x):\n    return x['{}']\n", "a subscript"),
    ("def f(x):\n    return x.get('{}')\n", "a lookup"),
    ("def f(x):\n    raise ValueError(f'{}: {x}')\n", "an exception"),
    ("def f(x):\n    assert x, '{}'\n    return x\n", "an assertion"),
    ("def f(x):\n    log.info('{}', x, stacklevel={n})\n    return x\n", "a message of logging"),
    ("def f(x):\n    self.logger.warning(f'{}')\n    return x\n", "and of a logger elsewhere"),
    ("def f(x):\n    print('{}', end='{n}')\n    return x\n", "what is printed"),
    ("def f(x):\n    return re.search(r'{} (\\d+)', x)\n", "a regular expression"),
    ("def f(x):\n    pattern = r'{}: \\s*(\\d+)'\n    return match(pattern, x)\n", "by its looks"),
    ("def f(x):\n    return Path('{}').read_text()\n", "a path"),
    (
        "def f(x):\n    name = '/home/{n}/projects/data/all_of_it/rows.jsonl'\n    return load(name)\n",
        "by its looks too",
    ),
    ("def f(x):\n    if '{}' in x or x.startswith('{}'):\n        return 1\n    return 2\n", "a test of an answer"),
    ("def f(x):\n    match x:\n        case '{}':\n            return 1\n    return 2\n", "a case"),
    ("def f(x):\n    return x.split('{}')[0].replace('{}', '')\n", "what an answer is cut at"),
    ("def f(x):\n    return {'{}': x}\n", "a field of the result"),
    ("def f(x):\n    return ask(x, timeout={n})\n", "how long a call may take"),
    ("def f(x):\n    return x + {n}\n", "a number"),
    ("def f(x):\n    return 'short {n}'\n", "a short text"),
]


@pytest.mark.parametrize(("form", "reason"), NONE, ids=[reason for _, reason in NONE])
def test_what_reads_and_what_reports_is_code(form: str, reason: str) -> None:
    """Mending a parser refuses nothing; the edit is told, with what it was and is."""
    found = edit(form.replace("{}", SAYS).replace("{n}", "3"), form.replace("{}", MEANS).replace("{n}", "4"))
    assert found.values == []
    (code,) = found.code
    assert code.startswith("f() in a cell (")
    assert " → " in code


def test_docstrings_and_annotations_are_nothing() -> None:
    """No code, and no value."""
    form = "def f(x: '{}') -> '{}':\n    '''{}'''\n    y: '{}' = x\n    return y\n"
    assert of(form.replace("{}", SAYS)).digest == of(form.replace("{}", MEANS)).digest


ASK = "def f(x):\n    p = '{}'\n    return ask(p, x)\n"
KEPT = [
    (ASK, "P = '{}'\ndef f(x):\n    return ask(P, x)\n", "into a constant"),
    (ASK, "P = {'a': ['{}']}\ndef f(x):\n    return ask(P['a'][0], x)\n", "into a table"),
    (ASK, "def g():\n    return '{}'\ndef f(x):\n    return ask(g(), x)\n", "into a function of its own"),
    ("def f(x):\n    return '{}: ' + x\n", "def f(x):\n    return f'{}: {x}'\n", "from a sum to an f-string"),
    ("def f(x):\n    return '{} and more'\n",
     "def f(x):\n    y = x\n    return ('{}'\n        ' and '\n        'more')\n", "cut into lines"),
    ("def f(x):\n    return ask(dedent('''\n        {}\n        '''))\n",
     "def f(x):\n    if x:\n        return ask(dedent('''\n            {}\n            '''))\n    return x\n",
     "with another margin, for dedent"),
    (ASK, "def f(x):\n    p = '{}'\n    return ask(p, x, 'as a numbered list')\n", "beside another"),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "reason"), KEPT, ids=[reason for *_, reason in KEPT])
def test_a_text_that_moves_is_not_gone(before: str, after: str, reason: str) -> None:
    """The edit is told as one of code."""
    found = edit(before.replace("{}", SAYS), after.replace("{}", SAYS))
    assert found.values == []
    assert found.code


def test_texts_that_change_places_are_changed() -> None:
    """No text is gone, and each says something else than it did."""
    form = "def f(x):\n    return ask('{}' if x else '{}')\n"
    one, other = form.replace("{}", SAYS, 1).replace("{}", MEANS), form.replace("{}", MEANS, 1).replace("{}", SAYS)
    assert len(edit(one, other).values) == 2
    form = "def a():\n    return '{}'\ndef b():\n    return '{}'\ndef f(x):\n    return a() if x else b()\n"
    one, other = form.replace("{}", SAYS, 1).replace("{}", MEANS), form.replace("{}", MEANS, 1).replace("{}", SAYS)
    assert len(edit(one, other).values) == 2


def test_code_that_changes_places_is_changed() -> None:
    """Two functions whose bodies are exchanged are other functions."""
    form = "def a(x):\n    return x + {}\ndef b(x):\n    return x * {}\ndef f(x):\n    return a(b(x))\n"
    assert edit(form.replace("{}", "1", 1).replace("{}", "2"), form.replace("{}", "2", 1).replace("{}", "1")).code
    one = "def a(x):\n    return x + 1\ndef b(x):\n    return x * 2\ndef f(x):\n    return a(b(x)) if x else b(a(x))\n"
    assert edit(one, one.replace("x + 1", "_").replace("x * 2", "x + 1").replace("_", "x * 2")).code


def test_white_space_that_is_sent_is_part_of_a_text() -> None:
    """A model sees it; what dedent and strip take away, it does not."""
    form = "def f(x):\n    return {}('''\n        Summarize the text:{}\n    ''')\n"
    assert edit(form.format("ask", ""), form.format("ask", " ")).values
    form = "def f(x):\n    return ask('''\n        Summarize the text:{}\n    '''.strip())\n"
    assert of(form.replace("{}", "")).digest == of(form.replace("{}", "  \n")).digest


LONG = "You are a careful assistant. " * 40
SHOWN = [
    (f"return ask('{LONG}')", f"return ask('{LONG}Be brief.')", ["characters)"], "a long text"),
    (f"return ask('{LONG}a{LONG}')", f"return ask('{LONG}b{LONG}')", ["[", "]"], "that differs in the middle"),
    ("return ask(api_key='abc')", "return ask(api_key='def')", ["a secret that changed"], "a secret's name"),
    ("return ask('Bearer sk-proj-a1b2c3d4e5f6g7h8i9j0k1')", "return ask('Bearer sk-proj-z1b2c3d4e5f6g7h8i9j0k1')",
     ["a secret that changed"], "a secret's looks"),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other", "told", "reason"), SHOWN, ids=[reason for *_, reason in SHOWN])
def test_what_is_shown_is_short_tells_apart_and_hides_secrets(
    one: str, other: str, told: list[str], reason: str
) -> None:
    """And so is what the journal keeps."""
    before, after = (of(f"def f(x):\n    {body}\n") for body in (one, other))
    (found,) = changes(before.digest, before.detail(), after).values
    old, _, new = found.partition(" → ")
    assert old.partition(": ")[2] != new
    assert all(part in found for part in told)
    assert len(found) < 250
    assert len(json.dumps(before.detail())) < 1000
    assert "sk-proj" not in found + json.dumps(before.detail())
    assert "abc" not in found + json.dumps(before.detail()).replace(before.digest, "")


def test_a_lost_detail_still_refuses_an_edited_prompt() -> None:
    """Literals that are values are in the half of the digest that is of values."""
    form = "def f(x):\n    return ask('{}')\n"
    old, new = of(form.format(SAYS)), of(form.format(MEANS))
    assert changes(old.digest, None, new).values


LOOKS = [
    ("Summarize the text", True, "three words"), ("gpt-4o-mini-2024-07-18", True, "20 characters"),
    ("要約してください。短く。", True, "a script without spaces"), ("Résumez le texte", True, "letters of any script"),
    ("Be terse.", False, "two words"), ("-" * 40, False, "a ruler"), ("{} {} {}", False, "only fields"),
    ("data/all_the_rows/of_today.jsonl", False, "a path"), ("{}/v1/results/{}.json", False, "one that is filled in"),
    (r"^(\w+)\s+(\d+)$", False, "a regular expression"), ("annotation.review_comment", False, "the name of a field"),
    ("Put the answer into \\boxed{} and nothing else", True, "a command of TeX"),
    ("https://api.example.com/v1/chat", True, "an address"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "reason"), LOOKS, ids=[reason for *_, reason in LOOKS])
def test_a_text_says_what_is_computed_by_its_looks(text: str, expected: bool, reason: str) -> None:
    """20 characters, or three words, and neither a path nor a pattern nor a name."""
    assert is_text(text) == expected


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(st.text(min_size=1, max_size=80), st.text(max_size=80), st.booleans())
def test_every_edit_of_a_literal_is_told(one: str, other: str, is_source_kept: bool) -> None:
    """As a value or as code, with a source and without: silence means that nothing differs."""
    form = "def f(x):\n    y = {!r}\n    return ask(y, x)\n"
    found = edit(form.format(one), form.format(other), was_there=is_source_kept, is_there=is_source_kept)
    assert bool(found.values or found.code) == (one != other)


# --- the code that runs ----------------------------------------------------------------------------------------------

JOB = """
import sys
from checkpoint import checkpointed
import tools
PROMPT = "Summarize in one sentence"
@checkpointed("job", on_change="error")
def f(x):
    return PROMPT, tools.helper(x)
if __name__ == "__main__":
    print("up", flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.readline()
    print(f.map(range(int(sys.argv[2])), progress=False)[:1])
"""
TOOLS = "def helper(x):\n    size = 3\n    return x + size\n"
SAID = "up\n[('Summarize in one sentence', 3)]\n"
WITHOUT_CACHE = os.environ | {"PYTHONPATH": str(HOUSE.parent), "PYTHONDONTWRITEBYTECODE": "1"}


def run(*command: str, **variables: str) -> tuple[str, str]:
    """What a Python prints, and what it reports."""
    done = subprocess.run(
        [sys.executable, *command], env=WITHOUT_CACHE | variables, capture_output=True, text=True, timeout=120
    )
    return done.stdout, done.stderr


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a job and the module that it uses."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "tools.py").write_text(TOOLS)
    return tmp_path


EDITS = [
    ("tools.py", "size = 3", "size = 300", "helper() in tools.py (size: 3 → 300)", "the code of a helper"),
    ("job.py", "PROMPT, tools", "tools, PROMPT, tools", "f() in job.py", "the function's own code"),
    ("job.py", "one sentence", "ten words", "PROMPT: 'Summarize in one sentence' → 'Summarize in ten", "a value"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("file", "old", "new", "told", "reason"), EDITS, ids=[reason for *_, reason in EDITS])
def test_what_is_saved_while_the_job_loads_counts_for_the_next_run(
    job: Path, file: str, old: str, new: str, told: str, reason: str
) -> None:
    """The first run computes with the code that it loaded, and its records say so."""
    text = (job / file).read_text()
    with subprocess.Popen(
        [sys.executable, "job.py", "wait", "2"],
        env=WITHOUT_CACHE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        (job / file).write_text(text.replace(old, new))
        assert running.communicate("\n")[0] == SAID.removeprefix("up\n")
    stderr = run("job.py", "go", "4")[1]
    assert "FunctionChanged" in stderr
    assert told in stderr
    (job / file).write_text(text)
    assert run("job.py", "go", "4") == (SAID, "")


@pytest.mark.slow
def test_a_source_that_never_fitted_is_compared_by_code_objects(job: Path) -> None:
    """A file that is saved before the function is decorated: the edit is told, and undoing it is no change."""
    early = "text = open('tools.py').read()\nopen('tools.py', 'w').write(text.replace('size = 3', 'size = 300'))\n"
    (job / "early.py").write_text(JOB.replace("PROMPT =", early + "PROMPT =", 1))
    assert run("job.py", "go", "2")[1] == ""
    assert run("early.py", "go", "3") == (SAID, "")
    assert "3 → 300)" in run("job.py", "go", "4")[1]
    (job / "tools.py").write_text(TOOLS)
    assert run("job.py", "go", "4") == (SAID, "")


@pytest.mark.slow
def test_a_zip_file_has_its_sources(job: Path) -> None:
    """Nothing is told of the same files in a directory, and an edit is told."""
    assert run("job.py", "go", "2")[1] == ""
    (job / "app").mkdir()
    (job / "app" / "__main__.py").write_text(JOB)
    for size in (3, 5):
        (job / "app" / "tools.py").write_text(TOOLS.replace("3", str(size)))
        zipapp.create_archive(job / "app", job / "job.pyz")
        stderr = run("job.pyz", "go", "3")[1]
        assert ("(size: 3 → 5)" in stderr) == bool(stderr) == (size == 5)


@pytest.mark.slow
def test_compiled_files_alone_are_compared_with_each_other_and_with_their_sources(job: Path) -> None:
    """Nothing is told of the same code, and an edit is told in either direction."""

    def compile_with(size: int) -> None:
        for file, text in (("job", JOB), ("tools", TOOLS.replace("3", str(size)))):
            (job / f"{file}.py").write_text(text)
            py_compile.compile(f"{file}.py", f"{file}.pyc", doraise=True)
            (job / f"{file}.py").unlink()

    assert run("job.py", "go", "2")[1] == ""
    compile_with(3)
    assert run("job.pyc", "go", "3") == (SAID, "")
    compile_with(5)
    assert "helper() in tools.py (" in run("job.pyc", "go", "4")[1]
    (job / "job.py").write_text(JOB)
    (job / "tools.py").write_text(TOOLS)
    assert run("job.py", "go", "4") == (SAID, "")


def test_code_that_cannot_be_compared_is_told_and_never_silent() -> None:
    """Without a source, code objects of two Pythons say nothing of each other; texts are compared all the same."""
    source = "def f(x):\n    return ask('Summarize the text', x)\n"
    old, new = of(source), of(source, has_source=False)
    assert changes(old.digest, old.detail(), new) == ([], [], [])
    other = old.detail() | {"python": "py309"}
    (told,) = changes(old.digest, other, new).code
    assert told.startswith("f() in a cell, whose source is not that of the code which runs")
    assert changes(old.digest, other, new).values == []
    edited = of(source.replace("text", "rows"), has_source=False)
    assert changes(old.digest, other, edited).values == ["a text in f(): 'Summarize the text' → 'Summarize the rows'"]


def test_a_name_that_another_python_does_not_find_is_no_change() -> None:
    """What is read of variables is found in code objects, which differ between Pythons."""
    old, new = of("M = 1\ndef f(x):\n    return x\n"), of("M = 1\ndef f(x):\n    return x\n")
    read = of("M = 1\ndef f(x):\n    return M\n").values
    digest = new.digest[:-32] + "0" * 32
    both = dataclasses.replace(new, values=read, digest=digest, unsealed=digest)
    assert changes(old.digest, old.detail(), both).names == ["M"]
    assert changes(old.digest, old.detail() | {"python": "py309"}, both) == ([], [], [])


HARMLESS = [
    ("job.py", {"PYTHONOPTIMIZE": "1"}, "assertions are left out"),
    ("job.py", {"PYTHONOPTIMIZE": "2"}, "docstrings are left out"),
    ("job.py", {"PYTHONNODEBUGRANGES": "1"}, "columns are left out"),
    ("job.py", {"PYTHONHASHSEED": "5"}, "another order of sets"),
    ("-c", {}, "a text of the command line"),
    ("rewritten", {}, "a module whose assertions pytest rewrites"),
    ("traced", {}, "a trace, as of a debugger or of coverage"),
]
CHECKED = JOB.replace("    return PROMPT", '    "Do it."\n    assert x in range(99), {5, "a", x}\n    return PROMPT')


@pytest.mark.slow
@pytest.mark.parametrize(("way", "variables", "reason"), HARMLESS, ids=[reason for *_, reason in HARMLESS])
def test_how_a_job_is_run_does_not_count(job: Path, way: str, variables: dict[str, str], reason: str) -> None:
    """The digest is the same, not only comparable."""
    text = CHECKED.partition("if __name__")[0]
    text += "from checkpoint.provenance.fingerprint import fingerprint\nDIGEST = fingerprint(f).digest\n"
    (job / "job.py").write_text(text + "print(DIGEST)\n")
    expected, stderr = run("job.py")
    assert stderr == ""
    if way == "-c":
        assert run("-c", text + "print(DIGEST)\n")[0] == expected
    elif way == "traced":
        trace = "import sys, runpy; sys.settrace(lambda *_: None); runpy.run_path('job.py')"
        assert run("-c", trace)[0] == expected
    elif way == "rewritten":
        (job / "test_it.py").write_text(text + "def test_it():\n    print('DIGEST', DIGEST)\n")
        out = run("-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "test_it.py")[0]
        assert f"DIGEST {expected}" in out
    else:
        assert run(way, **variables)[0] == expected


# --- the Pythons -----------------------------------------------------------------------------------------------------

READER = """
import json, sys, types
house = sys.argv[1]
package = types.ModuleType("checkpoint")
package.__path__ = [house]
sys.modules["checkpoint"] = package
from checkpoint.provenance.syntax import syntax_of
found = {}
for path in sys.argv[2:]:
    try:
        with open(path, encoding="utf-8") as file:
            todo = [compile(file.read(), path, "exec", dont_inherit=True)]
    except SyntaxError:  # a newer Python's library
        continue
    while todo:
        code = todo.pop()
        todo += [one for one in code.co_consts if isinstance(one, types.CodeType)]
        if code.co_flags & 2 and (code.co_name == "<lambda>" or not code.co_name.startswith("<")):
            syntax = syntax_of(code, {})
            found_here = None if syntax is None else [syntax.digest, repr(syntax.literals)]
            found.setdefault(f"{path}:{code.co_firstlineno}:{code.co_qualname}", []).append(found_here)
json.dump(found, sys.stdout)
"""
LIBRARY = (
    "argparse", "dataclasses", "difflib", "enum", "fractions", "functools", "inspect", "optparse", "statistics",
    "tarfile", "textwrap", "traceback", "typing", "asyncio/tasks", "http/client", "logging/__init__",
)  # fmt: skip
FORMS = r"""
def strings(x, k):
    return f"{x:>{k}}" f"{x!r:{k}.{k}}" "a" f"{{x}}" f"{x=}" f"{x = !s:^{k}}" f'{x["a"]}' f"" "" '''
      b\n
    ''' f"\N{BULLET} {x:%Y-%m-%d} {x:,}" + "c" "d"
def cases(x):
    match x:
        case {"a": [1, *rest], **others} | {"b": [rest, *others]}: return others
        case str() | -1 | None | (1.5 + 2j): return [*x]
def folded(x):
    "    A docstring\n\n    with a margin."
    return -1, 2 ** 10, "a" * 3, (1, (2, 3)), x in {1, 2}, not x, 1 if 0 else 2, 1_000, 0x10, 1e3, ..., b"a" b"b"
def comprehensions(x, total=0):
    return [(lambda: y)() + (total := total + y) for y in x], {y: z for y, z in x}, {y for y in x if y}
async def waits(x):
    async with x as a, x.b as (c, d): return [await y async for y in a]
def outer(x):
    def inner(y: int = 3, /, *, z: "str" = "a") -> list[int]:
        nonlocal x
        x = y
        return super(inner).z
    try: return inner
    except* ValueError as error: raise error from None
    finally: del x
"""


def pythons() -> list[str]:
    """Other Pythons, from 3.11 on, that are found here: one of each minor version."""
    found = []
    for minor in {11, 12, 13, 14} - {sys.version_info[1]}:
        kept = sorted((Path.home() / ".pyenv" / "versions").glob(f"3.{minor}.*/bin/python"))
        found += [str(path) for path in [*kept[-1:], shutil.which(f"python3.{minor}")] if path][:1]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("python", pythons() or [pytest.param("", marks=pytest.mark.skip("no other Python is found"))])
def test_every_python_reads_one_source_alike(python: str, tmp_path: Path) -> None:
    """Digests and literals: of the standard library, and of odd forms."""
    home = Path(os.__file__).parent
    paths = [tmp_path / "forms.py"]
    paths[0].write_text(FORMS)
    for name in LIBRARY:
        paths.append(tmp_path / f"{name.replace('/', '_')}.py")
        shutil.copy(home / f"{name}.py", paths[-1])
    (tmp_path / "reader.py").write_text(READER)
    command = [str(tmp_path / "reader.py"), str(HOUSE), *map(str, paths)]
    mine, theirs = (
        json.loads(
            subprocess.run([one, "-P", *command], capture_output=True, text=True, check=True, timeout=300).stdout
        )
        for one in (sys.executable, python)
    )
    both = mine.keys() & theirs.keys()
    assert len(both) > 1000
    assert any(name.startswith(f"{paths[0]}:") for name in both)
    assert [name for name in both if mine[name] != theirs[name]] == []
