"""Laws of fingerprints: what counts as the same function, what does not, and that looking never does any harm."""

from __future__ import annotations

import ast
import functools
import itertools
import linecache
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from os import environ
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
from checkpoint import checkpointed
from checkpoint.provenance.fingerprint import Fingerprint, changes, fingerprint, is_told
from checkpoint.provenance.syntax import _syntax_of, is_own_file, syntax_of
from checkpoint.provenance.uses import uses_of
from checkpoint.values.canonical import canonical

SOURCE = Path(checkpoint.__file__).parent.parent
_numbers = itertools.count()


def run_cell(source: str, *, has_source: bool = True) -> dict[str, Any]:
    """The names of a notebook's cell: code that is executed, with its source in `linecache`, or without."""
    path = f"<cell {next(_numbers)}>"
    text = textwrap.dedent(source)
    if has_source:
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    names: dict[str, Any] = {"__name__": "__main__", "checkpointed": checkpointed, "functools": functools}
    names.update(types=types, Holder=types.SimpleNamespace)
    exec(compile(text, path, "exec"), names)  # as a notebook does
    return names


def of(source: str, *, has_source: bool = True) -> Fingerprint:
    """The fingerprint of the function `f` of a cell."""
    found = fingerprint(run_cell(source, has_source=has_source)["f"])
    assert found is not None
    assert any(digest.startswith("py") for digest in found.parts.values()) != has_source
    return found


def halves(found: Fingerprint) -> tuple[str, str]:
    """What a digest says of the code, and of the values."""
    _, code, values = found.digest.split("-")
    return code, values


BASE = """
def g(x):
    return x + 1
def f(x):
    return g(x) * 2
"""
SAME = [
    ("# told\ndef g(x):\n    # and told\n    return x + 1\ndef f(x): # again\n    return g(x) * 2\n", "comments"),
    ('def g(x):\n    "told"\n    return x + 1\ndef f(x):\n    """At length."""\n    return g(x) * 2\n', "docstrings"),
    ("def g( x ):\n    return (x +\n      1)\n\n\n\ndef f(\n    x,\n):\n    return g( x )*2\n", "formatting"),
    ("def g(x: int) -> int:\n    return x + 1\ndef f(x: 'any') -> list[int]:\n    return g(x) * 2\n", "annotations"),
    ("other = 1\ndef f(x):\n    return g(x) * 2\ndef g(x):\n    return x + 1\n", "the order of functions"),
    ("def g(x):\n    return x + 1\ndef h(x):\n    return x\ndef f(x):\n    return g(x) * 2\n", "what is not called"),
    ("def g(x):\n    return x + 1\n@functools.cache\ndef f(x):\n    return g(x) * 2\n", "a decorator of Python's"),
    ("def g(x):\n    return x + 1\n@checkpointed('n', retry=3)\ndef f(x):\n    return g(x) * 2\n", "our own decorator"),
    ("def g(x):\n    return x + 1\ndef first(x):\n    return g(x) * 2\nf = first\n", "the function's own name"),
]


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "no source"])
@pytest.mark.parametrize(("after", "reason"), SAME, ids=[reason for _, reason in SAME])
def test_what_does_nothing_does_not_count(after: str, reason: str, has_source: bool) -> None:
    """The digest is the same, with and without source."""
    assert of(after, has_source=has_source).digest == of(BASE, has_source=has_source).digest


CODE = [
    ("def f(x):\n    return x + 1\n", "def f(x):\n    return x - 1\n", "an operator"),
    ("def f(x):\n    return x + 1\n", "def f(x):\n    return x + 2\n", "a constant in the code"),
    ("def f(x):\n    return x + 1\n", "def f(x):\n    return x + 1.0\n", "the type of a constant"),
    ("def f(x):\n    return x + 1\n", "async def f(x):\n    return x + 1\n", "the kind of function"),
    (BASE, BASE.replace("x + 1", "x + 3"), "a function that it calls"),
    ("def h(x):\n    return 1\n" + BASE.replace("x + 1", "h(x)"),
     "def h(x):\n    return 2\n" + BASE.replace("x + 1", "h(x)"), "one that this calls"),
    ("def f(x):\n    return [n + 1 for n in x]\n", "def f(x):\n    return [n + 2 for n in x]\n", "a comprehension"),
    ("def f(x):\n    def i():\n        return 1\n    return i()\n",
     "def f(x):\n    def i():\n        return 2\n    return i()\n", "an inner function"),
    ("f = lambda x: x + 1\n", "f = lambda x: x + 2\n", "a lambda"),
    ("f, g = (lambda x: x + 1), (lambda x: x)\n", "g, f = (lambda x: x), (lambda x: x + 2)\n", "one of two lambdas"),
    ("class A:\n    def m(self):\n        return 1\ndef f(x):\n    return A().m()\n",
     "class A:\n    def m(self):\n        return 2\ndef f(x):\n    return A().m()\n", "a method"),
    ("class A:\n    def m(self):\n        return 1\na = A()\ndef f(x):\n    return a.m()\n",
     "class A:\n    def m(self):\n        return 2\na = A()\ndef f(x):\n    return a.m()\n", "of an object"),
    ("class B:\n    def m(self):\n        return 1\nclass A(B):\n    pass\ndef f(x):\n    return A().m()\n",
     "class B:\n    def m(self):\n        return 2\nclass A(B):\n    pass\ndef f(x):\n    return A().m()\n",
     "inherited"),
    ("class A:\n    @property\n    def p(self):\n        return 1\ndef f(x):\n    return A().p\n",
     "class A:\n    @property\n    def p(self):\n        return 2\ndef f(x):\n    return A().p\n", "a property"),
    ("class A:\n    def __init__(self):\n        self.x = 1\ndef f(x):\n    return A().x\n",
     "class A:\n    def __init__(self):\n        self.x = 2\ndef f(x):\n    return A().x\n", "a constructor"),
    ("class A:\n    @staticmethod\n    def m():\n        return 1\ndef f(x):\n    return A.m()\n",
     "class A:\n    @staticmethod\n    def m():\n        return 2\ndef f(x):\n    return A.m()\n", "a static method"),
    ("def a(x):\n    return 1\nT = {'a': a}\ndef f(x):\n    return T['a'](x)\n",
     "def a(x):\n    return 2\nT = {'a': a}\ndef f(x):\n    return T['a'](x)\n", "a table of functions"),
    ("@functools.lru_cache\ndef g(x):\n    return 1\ndef f(x):\n    return g(x)\n",
     "@functools.lru_cache\ndef g(x):\n    return 2\ndef f(x):\n    return g(x)\n", "behind a decorator"),
    ("@checkpointed('g')\ndef g(x):\n    return 1\ndef f(x):\n    return g(x)\n",
     "@checkpointed('g')\ndef g(x):\n    return 2\ndef f(x):\n    return g(x)\n", "behind ours"),
    ("def d(g):\n    def w(x):\n        return g(x) + 1\n    return w\n@d\ndef f(x):\n    return x\n",
     "def d(g):\n    def w(x):\n        return g(x) + 2\n    return w\n@d\ndef f(x):\n    return x\n", "a wrapper"),
    ("def d(g):\n    def w(x):\n        return g(x)\n    return w\n@d\ndef f(x):\n    return 1\n",
     "def d(g):\n    def w(x):\n        return g(x)\n    return w\n@d\ndef f(x):\n    return 2\n", "what is wrapped"),
    ("def g(y, x):\n    return 1\nf = functools.partial(g, 5)\n",
     "def g(y, x):\n    return 2\nf = functools.partial(g, 5)\n", "a partial"),
    ("class A:\n    def __call__(self, x):\n        return 1\nf = A()\n",
     "class A:\n    def __call__(self, x):\n        return 2\nf = A()\n", "an object that is called"),
    ("def f(x):\n    return f(x - 1) if x else 1\n", "def f(x):\n    return f(x - 1) if x else 2\n", "a recursive one"),
    ("def f(x, y=1):\n    return 1\n", "def f(x, z=1):\n    return 1\n", "the name of an argument"),
]  # fmt: skip


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "no source"])
@pytest.mark.parametrize(("before", "after", "reason"), CODE, ids=[reason for *_, reason in CODE])
def test_what_the_function_does_counts_as_code(before: str, after: str, reason: str, has_source: bool) -> None:
    """The first half of the digest differs; with what it stands for, the function at fault is named."""
    old, new = of(before, has_source=has_source), of(after, has_source=has_source)
    assert halves(old)[0] != halves(new)[0]
    told = changes(old.digest, old.detail(), new)
    assert told.code
    assert told.values == []


CLOSURE = "def make(model):\n    def f(x):\n        return model, x\n    return f\nf = make({})\n"
CLASS = "class A:\n    def __init__(self, n):\n        self.n = n\n    def m(self, x):\n        return self.n\n"
VALUES = [
    ("M = {}\ndef f(x):\n    return M\n", "M", "a global"),
    ("M = {}\ndef g(x):\n    return M\ndef f(x):\n    return g(x)\n", "M", "a global of a function that it calls"),
    ("M = {}\ndef f(x):\n    return [M for _ in x]\n", "M", "in a comprehension"),
    ("def f(x, model={}):\n    return model\n", "model", "a default"),
    ("def f(x, *, model={}):\n    return model\n", "model", "a default by keyword"),
    ("def g(x, m={}):\n    return m\ndef f(x):\n    return g(x)\n", "m", "a default of a function that it calls"),
    (CLOSURE, "model", "a closure's cell"),
    ("for model in [{}]:\n    f = lambda x: model\n", "model", "a variable of a loop"),
    ("class C:\n    M = {}\ndef f(x):\n    return C.M\n", "C.M", "an attribute of a class"),
    ("class C:\n    M = {}\n    def m(self):\n        return self.M\ndef f(x):\n    return C().m()\n", "C.M",
     "that a method reads"),
    ("m = types.ModuleType('__main__')\nm.M = {}\ndef f(x):\n    return m.M\n", "m.M", "of a module"),
    ("a = Holder(n={})\ndef f(x):\n    return a.n\n", "a.n", "of an object, as argparse makes them"),
    ("a = Holder(b=Holder(n={}))\ndef f(x):\n    return a.b.n\n", "a.b.n", "of an object within"),
    ("def g(y, x):\n    return y\nf = functools.partial(g, {})\n", "y", "an argument that is bound"),
    ("def g(x, y):\n    return y\nf = functools.partial(g, y={})\n", "y", "by keyword"),
    (CLASS + "f = A({}).m\n", "self.n", "an attribute of a method's object"),
    (CLASS + "a = A({})\ndef f(x):\n    return a.m(x)\n", "a.n", "of an object whose method is called"),
    (CLASS.replace("m(", "__call__(") + "f = A({})\n", "self.n", "of an object that is called"),
]  # fmt: skip
PAIRS = [("1", "2"), ("'small'", "'large'"), ("[1, [2]]", "[1, [3]]"), ("{'t': 0}", "{'t': 0.0}"), ("None", "()")]


@pytest.mark.parametrize("has_source", [True, False], ids=["source", "no source"])
@pytest.mark.parametrize(("form", "name", "reason"), VALUES, ids=[reason for *_, reason in VALUES])
def test_what_the_function_reads_counts_as_a_value(form: str, name: str, reason: str, has_source: bool) -> None:
    """The second half of the digest differs, and the value is named."""
    for one, other in PAIRS:
        old, new, again = (of(form.replace("{}", value), has_source=has_source) for value in (one, other, one))
        assert old.digest == again.digest
        assert halves(old)[0] == halves(new)[0]
        told = changes(old.digest, old.detail(), new)
        assert (told.names, told.code) == ([name], [])
        assert told.values[0].startswith(f"{name}: ")


def test_another_function_in_the_same_variable_is_another_value() -> None:
    """As in a loop over scorers; a class or a builtin too."""
    form = "def a(x): return 1\ndef b(x): return 1\nfor score in [{}]:\n    f = lambda x: score(x)\n"
    old, new = of(form.replace("{}", "a")), of(form.replace("{}", "b"))
    assert changes(old.digest, old.detail(), new).values == ["score: a → b"]
    old, new = of(form.replace("{}", "len")), of(form.replace("{}", "dict"))
    assert changes(old.digest, old.detail(), new).values == ["score: len → dict"]


STATE = [
    ("calls = {}\ndef f(x):\n    calls.append(x)\n", "a list that it appends to"),
    ("calls = {}\ndef f(x):\n    calls[x] = 1\n    return len(calls)\n", "a dict that it writes to"),
    ("calls = {}\ndef g(x):\n    calls['a'].append(x)\ndef f(x):\n    return g(x), calls\n", "deep inside, elsewhere"),
    ("calls = {}\ndef f(x):\n    global calls\n    calls += 1\n", "a counter"),
    ("calls = {}\ndef f(x):\n    del calls[0]\n", "what it deletes from"),
    ("def make(n):\n    def f(x):\n        nonlocal n\n        n += 1\n    return f\nf = make({})\n", "a nonlocal"),
    ("a = Holder(n={})\ndef f(x):\n    a.n += 1\n", "an attribute that it sets"),
    ("def f(x, seen={}):\n    seen[x] = 1\n", "a default that it writes to"),
    ("a = [1, {}].__iter__\ndef f(x):\n    return a\n", "what is not JSON-like"),
    ("a = {{}}\ndef f(x):\n    a.add(x)\n    return a\n", "a set that it adds to"),
    ("__file__ = {}\ndef f(x):\n    return __file__\n", "what Python itself sets"),
    ("a = {}\ndef f(x):\n    a = x\n    return a\n", "a global of the same name as a local variable"),
]


@pytest.mark.parametrize(("form", "reason"), STATE, ids=[reason for _, reason in STATE])
def test_state_and_what_cannot_be_told_do_not_count(form: str, reason: str) -> None:
    """What the function itself changes is no parameter of it."""
    assert of(form.replace("{}", "1")).digest == of(form.replace("{}", "2")).digest


def test_a_value_that_comes_or_goes_with_the_code_is_a_matter_of_the_code() -> None:
    """Only one that is read before and after can have changed."""
    old, new = of("M = 1\ndef f(x):\n    return M\n"), of("N = 2\ndef f(x):\n    return N\n")
    told = changes(old.digest, old.detail(), new)
    assert told.values == []
    assert told.code


# --- digests, lost details, other algorithms -------------------------------------------------------------------------


def test_a_digest_alone_still_tells_that_something_changed() -> None:
    """Whether code or a value, though not which; details that are not those of the digest are not believed."""
    form = "M = {}\ndef f(x):\n    return M\n"
    old, value, code = of(form.format(1)), of(form.format(2)), of(form.format(1) + "    \n".join(["", "    pass\n"]))
    assert code.digest == old.digest
    code = of("M = 1\ndef f(x):\n    return M, x\n")
    details: list[Any] = [{}, None, 5, {"parts": {}, "values": {}}, {"parts": {"f": 1}, "values": {"M": 5}}]
    for detail in (*details, value.detail()):
        assert changes(old.digest, detail, value).values == ["a value that it reads (which one is no longer known)"]
        assert changes(old.digest, detail, code)[:2] == ([], ["its code"])


UNKNOWN = [
    ("3-" + "-".join(["0" * 32] * 2), "another algorithm"),
    ("1-000000000000-000000000000", "an earlier one"),
    ("1py310-000000000000-000000000000", "code objects of another Python"),
    ("", "none"), ("2-0-0", "garbage"), ("2-" + "0" * 32, "half of one"),
]  # fmt: skip


@pytest.mark.parametrize(("digest", "reason"), UNKNOWN, ids=[reason for _, reason in UNKNOWN])
def test_fingerprints_of_another_kind_are_unknown_and_never_changed(digest: str, reason: str) -> None:
    """Nothing is said."""
    now = of(BASE)
    assert not is_told(digest, now.digest)
    assert changes(digest, now.detail(), now) == ([], [], [])


MOVED = [
    ('f"Sum up {x} for a child"', "Sum up {x} for a child", "P.format(x=x)", "an f-string into a template"),
    ('f"Sum up for a child: {x}"', "Sum up for a child: ", "P + str(x)", "an f-string into its beginning"),
    ('f"{x}: sum this up for a child"', ": sum this up for a child", "str(x) + P", "an f-string into its end"),
    ('"Sum up for a child: " + str(x)', "Sum up for a child: ", "P + str(x)", "a part of a concatenation"),
    ('"Sum up {} for a child".format(x)', "Sum up {} for a child", "P.format(x)", "a text itself"),
]


@pytest.mark.parametrize(("inline", "text", "read", "reason"), MOVED, ids=[reason for *_, reason in MOVED])
def test_a_text_that_moves_into_a_constant_is_not_gone(inline: str, text: str, read: str, reason: str) -> None:
    """The code differs, and the text is what it was; with another text it is not."""
    old = of(f"def f(x):\n    return {inline}\n")
    moved = of(f"P = {text!r}\ndef f(x):\n    return {read}\n")
    assert not changes(old.digest, old.detail(), moved).values
    assert changes(old.digest, old.detail(), moved).code
    edited = of(f"P = {text.replace('child', 'king')!r}\ndef f(x):\n    return {read}\n")
    assert changes(old.digest, old.detail(), edited).values


def test_a_source_that_is_run_without_a_file_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file says it first, and then a cell that nobody keeps."""
    source = "P = 'p'\ndef g(x):\n    return P, x, 'a text of three words'\ndef f(x):\n    return g(x)\n"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "jobs_of_a_file.py").write_text(source)
    old = fingerprint(__import__("jobs_of_a_file").f)
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "<cell 3>", "exec"), scope)
    now = fingerprint(scope["f"])
    assert old is not None
    assert now is not None
    assert changes(old.digest, old.detail(), now) == ([], [], [])


def test_a_text_that_takes_the_place_of_another_is_a_changed_value() -> None:
    """PROMPT_1 is kept, and the function reads PROMPT_2; or one is renamed and edited at once."""
    old = of("A = 'Sum up {} for a child'\ndef f(x):\n    return A.format(x)\n")
    other = of("B = 'Sum up {} for a king'\ndef f(x):\n    return B.format(x)\n")
    assert changes(old.digest, old.detail(), other).values == ["A: 'Sum up {} for a child' → B, 'Sum up {} for a king'"]
    renamed = of("B = 'Sum up {} for a child'\ndef f(x):\n    return B.format(x)\n")
    assert not changes(old.digest, old.detail(), renamed).values
    added = of("A = 'Sum up {} for a child'\nB = 'And do it in one line'\ndef f(x):\n    return A.format(x) + B\n")
    assert not changes(old.digest, old.detail(), added).values


def test_what_changed_is_named_by_function_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that moved to another file or got another name did not change."""
    monkeypatch.syspath_prepend(tmp_path)
    before = "def prompt(x):\n    return 1\ndef foot(x):\n    return 2\ndef f(x):\n    return prompt(x), foot(x)\n"

    def load(name: str, text: str) -> Fingerprint:
        (tmp_path / f"{name}.py").write_text(text)
        found = fingerprint(__import__(name).f)
        assert found is not None
        return found

    old = load("jobs_a", before)
    (tmp_path / "again").mkdir()
    new = load("jobs_b", before.replace("return 1", "return 3"))
    assert set(old.parts) == {"f() in jobs_a.py", "prompt() in jobs_a.py", "foot() in jobs_a.py"}
    assert changes(old.digest, old.detail(), new).code == [
        "prompt() in jobs_b.py, which is called anew", "prompt() in jobs_a.py, which is no longer called",
    ]  # fmt: skip
    assert load("jobs_c", before).digest == old.digest


# --- the code that runs ----------------------------------------------------------------------------------------------

CHILD = """
import sys, os
sys.path.insert(0, os.getcwd())
from checkpoint.provenance.fingerprint import fingerprint
import jobs
{then}
print(fingerprint(jobs.f).digest)
"""


def in_a_child(then: str = "", **variables: str) -> str:
    """The digest of `jobs.f` in a process of its own, after some statements."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"} | variables
    done = subprocess.run(
        [sys.executable, "-c", CHILD.format(then=then)], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_files_that_change_on_disk_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process reads what it runs: the same digest in each, another one after an edit, the first one after undo."""
    monkeypatch.chdir(tmp_path)
    Path("tools.py").write_text("UNIT = 'kg'\ndef weigh(x):\n    return x, UNIT\n")
    text = "from tools import weigh\n\ndef f(x):\n    return weigh(x)\n"
    Path("jobs.py").write_text(text)
    first = in_a_child(PYTHONHASHSEED="1")
    assert in_a_child(PYTHONHASHSEED="2") == first
    assert in_a_child(PYTHONOPTIMIZE="2") == first
    Path("jobs.py").write_text("# told\nimport os\n" + text)
    assert in_a_child() == first
    Path("tools.py").write_text("UNIT = 'kg'\ndef weigh(x):\n    return x * 2, UNIT\n")
    edited = in_a_child()
    assert edited.split("-")[1] != first.split("-")[1]
    Path("tools.py").write_text("UNIT = 'lb'\ndef weigh(x):\n    return x, UNIT\n")
    valued = in_a_child()
    assert valued.split("-")[1] == first.split("-")[1]
    assert valued.split("-")[2] != first.split("-")[2]
    Path("tools.py").write_text("UNIT = 'kg'\ndef weigh(x):\n    return x, UNIT\n")
    assert in_a_child() == first


@pytest.mark.slow
def test_a_module_that_is_reloaded_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As notebooks do."""
    monkeypatch.chdir(tmp_path)
    Path("jobs.py").write_text("def f(x):\n    return x + 1\n")
    reload = (
        "import importlib; fingerprint(jobs.f); open('jobs.py', 'w').write('def f(x):\\n    return x * 22\\n'); "
        "importlib.reload(jobs)"
    )
    assert in_a_child(reload) == in_a_child()


def functions_of(path: str) -> Iterator[types.CodeType]:
    """The code of each named function in a file."""
    todo = [compile(Path(path).read_text("utf-8"), path, "exec")]
    while todo:
        code = todo.pop()
        todo += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        if code.co_flags & 2 and not code.co_name.startswith("<"):
            yield code


@pytest.mark.slow
@pytest.mark.parametrize("module", ["textwrap", "fractions", "enum", "functools", "ast", "asyncio.tasks"])
def test_formatting_does_not_count_for_whole_modules(module: str, tmp_path: Path) -> None:
    """Each function of Python's own modules has the digest of the same one as `ast.unparse` writes it."""
    __import__(module)
    path = sys.modules[module].__file__
    assert path is not None
    text = Path(path).read_text("utf-8")
    other = tmp_path / "other.py"
    other.write_text(ast.unparse(ast.parse(text)), "utf-8")
    pairs = list(zip(functions_of(path), functions_of(str(other)), strict=True))
    assert len(pairs) > 12
    digests = set()
    for one, same in pairs:
        mine, its = syntax_of(one), syntax_of(same)
        assert mine is not None, one
        assert its is not None, same
        assert mine.digest == its.digest, one
        digests.add(mine.digest)
    assert len(digests) > 0.8 * len(pairs)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4) | st.tuples(inner),
    max_leaves=12,
)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(VALUE, VALUE)
def test_values_are_one_where_their_canonical_spelling_is(one: Any, other: Any) -> None:
    """In a cell; and what is shown of them is short."""

    def make(model: Any) -> Callable[[int], Any]:
        return lambda x: model

    first, second = fingerprint(make(one)), fingerprint(make(other))
    assert first is not None
    assert second is not None
    assert (first.digest == second.digest) == (canonical(one) == canonical(other))
    assert all(len(value.shown) <= 130 for value in first.values.values())


# --- odd functions, hostile objects ----------------------------------------------------------------------------------


class Hostile:
    """Says no to everything that is asked of it."""

    model = property(lambda self: 1 / 0)
    data = 5

    def _no(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the user's code was called")

    __getattr__ = __eq__ = __hash__ = __repr__ = __str__ = __len__ = __iter__ = __bool__ = __getitem__ = _no
    __contains__ = __dir__ = __format__ = __index__ = __float__ = __setattr__ = _no

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError("the user's code was called")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise AssertionError("the user's code was called")

    @property
    def __dict__(self) -> Any:  # type: ignore[override]
        raise AssertionError("the user's code was called")


class HostileMeta(type):
    """A class of classes that says no."""

    def __getattribute__(cls, name: str) -> Any:
        raise AssertionError("the user's code was called")

    def __instancecheck__(cls, instance: Any) -> bool:
        raise AssertionError("the user's code was called")

    __subclasscheck__ = __eq__ = __hash__ = __repr__ = __dir__ = __instancecheck__  # type: ignore[assignment]


class HostileClass(metaclass=HostileMeta):
    """One of these."""

    data = 5


class HostileStr(str):
    """A str with code of its own."""

    def __str__(self) -> str:
        raise AssertionError("the user's code was called")

    __repr__ = __hash__ = __len__ = __iter__ = __getitem__ = __str__  # type: ignore[assignment]


HOSTILE = Hostile()


class Around:
    """An ordinary class with hostile members."""

    member = HOSTILE
    slot = HostileStr("b")

    def __init__(self) -> None:
        self.member = HOSTILE
        self.slot = HostileStr("c")

    def __call__(self, x: int) -> Any:
        """Reads them."""
        return self.member, self.slot, AROUND.member.x, Around.member.y


AROUND = Around()
HOSTILE_CLASS = HostileClass
HOSTILE_STR = HostileStr("a")


def reads_the_hostile(x: int, given: Any = HOSTILE) -> Any:
    """Reads all of them, and attributes of them."""
    return HOSTILE, HOSTILE.model, HOSTILE.seen.a.b, HOSTILE_CLASS, HOSTILE_CLASS.data, HOSTILE_STR, HOSTILE_STR.upper()


def test_nothing_of_the_users_is_called() -> None:
    """No `repr`, `==`, `hash`, `len`, property, `__getattr__`, or metaclass: of what is read, bound, or within."""
    inside = [HOSTILE]
    for function in (
        reads_the_hostile, functools.partial(reads_the_hostile, given=HOSTILE), lambda x: (inside, HOSTILE),
        AROUND, AROUND.__call__, functools.partial(lambda y, x: y, HOSTILE),
        types.MethodType(lambda self, x: self.model, HOSTILE),
    ):  # fmt: skip
        found = fingerprint(function)
        assert found is not None
        assert found.moved() == []
    assert fingerprint(HOSTILE) is None or True


async def coroutine(x: int) -> int:  # noqa: D103
    return x


def generator(x: int) -> Iterator[int]:  # noqa: D103
    yield x


def deep() -> Any:
    """A function of an expression that nests as deep as Python compiles."""
    return eval("lambda x: " + "-" * 80 + "x")


class Plain:
    """A class."""


ODD = [
    (lambda x: x, True, "a lambda"),
    (
        lambda x: (
            x,
        ),
        True, "a lambda over several lines",
    ),
    (len, False, "a builtin"),
    ([].append, False, "a method of a builtin"),
    (str.upper, False, "a method descriptor"),
    (functools.partial(len), False, "a partial of a builtin"),
    (functools.partial(functools.partial(coroutine)), True, "a partial of a partial"),
    (coroutine, True, "a coroutine function"),
    (generator, True, "a generator function"),
    (deep(), True, "a deep expression without source"),
    (run_cell("f = lambda x: " + "-" * 300 + "x")["f"], True, "one with source"),
    (Plain, True, "a class without code"),
    (functools.singledispatch(coroutine), True, "a generic function"),
    (functools.lru_cache(coroutine), True, "a cached one"),
    (types.FunctionType(coroutine.__code__.replace(co_filename="", co_firstlineno=10**6), {}), True, "no such line"),
    (types.FunctionType(coroutine.__code__.replace(co_filename="/dev/null"), {}), True, "an empty file"),
    (types.FunctionType(coroutine.__code__.replace(co_filename=os.curdir), {}), True, "a directory"),
    (types.FunctionType(coroutine.__code__.replace(co_filename="a\0b"), {}), True, "no path"),
    (None, False, "nothing"),
    (5, False, "no function"),
    (types, False, "a module"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "has_one", "reason"), ODD, ids=[reason for *_, reason in ODD])
def test_odd_functions_are_no_error(function: Any, has_one: bool, reason: str) -> None:
    """They have a fingerprint or none, and the same one each time."""
    found, again = fingerprint(function), fingerprint(function)
    assert found == again
    if not has_one or function is Plain:
        assert found is None
    else:
        assert found is not None


def test_source_that_warns_or_is_broken_is_no_matter(recwarn: pytest.WarningsRecorder) -> None:
    """What the compiler has to say was said when the code was compiled."""
    path = f"<cell {next(_numbers)}>"
    lines = ["def f(x):\n", "    return x is 5, '\\d'\n"]
    linecache.cache[path] = (1, None, lines, path)
    names: dict[str, Any] = {}
    with pytest.warns(SyntaxWarning):
        exec(compile("".join(lines), path, "exec"), names)
    recwarn.clear()
    found = fingerprint(names["f"])
    assert found is not None
    assert not any(digest.startswith("py") for digest in found.parts.values())
    assert not recwarn.list
    path = f"<cell {next(_numbers)}>"
    exec(compile("def f(x):\n    return x\n", path, "exec"), names)
    linecache.cache[path] = (1, None, ["def f(x:\n", "\0"], path)
    found = fingerprint(names["f"])
    assert found is not None
    assert all(digest.startswith("py") for digest in found.parts.values())


def test_cells_that_are_not_set_yet_are_left_out() -> None:
    """As of a recursive function while it is made."""

    def f(x: int) -> Any:
        return later, x

    assert fingerprint(f) is not None
    later = 5
    found = fingerprint(f)
    assert found is not None
    assert "later" in found.values


FILES = [
    (os.__file__, False, "Python's own"), (pytest.__file__, False, "installed"), (checkpoint.__file__, False, "ours"),
    ("<frozen importlib._bootstrap>", False, "frozen"), ("<stdin>", True, "typed"), (__file__, True, "the user's"),
    ("/home/u/env/lib/python3.12/site-packages/x.py", False, "installed elsewhere"), ("jobs.py", True, "relative"),
    ("a\0b", True, "no path"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "own", "reason"), FILES, ids=[reason for *_, reason in FILES])
def test_the_users_own_is_what_is_neither_pythons_nor_installed(path: str, own: bool, reason: str) -> None:
    """By the file."""
    assert is_own_file(path) is own


def test_installed_functions_are_not_followed_but_for_the_one_that_is_mapped() -> None:
    """An upgrade of a library is no change of the user's code."""
    found = of("import textwrap\ndef f(x):\n    return textwrap.dedent(x)\n")
    assert list(found.parts) == [f"f() in {next(iter(found.parts)).partition(' in ')[2]}"]
    mapped = fingerprint(textwrap.dedent)
    assert mapped is not None
    assert list(mapped.parts) == ["dedent() in textwrap.py"]


def test_what_is_known_of_code_is_remembered() -> None:
    """A second look compiles nothing."""
    names = run_cell(BASE)
    fingerprint(names["f"])
    before = (_syntax_of.cache_info().misses, uses_of.cache_info().misses)
    fingerprint(names["f"])
    assert (_syntax_of.cache_info().misses, uses_of.cache_info().misses) == before


# --- what is shown ---------------------------------------------------------------------------------------------------

SHOWN = [
    ("model", "gpt-small", "'gpt-small'", "a short text"),
    ("model", "claude-3-5-sonnet-20241022", "'claude-3-5-sonnet-20241022'", "a model's name"),
    ("prompt", "x" * 61, "a str of 61 characters", "a long one"),
    ("t", 0.5, "0.5", "a number"), ("flag", True, "True", "a bool"), ("t", None, "None", "None"),
    ("n", 1 << 200, "a large int", "a huge int"), ("c", [1, 2], "[1,2]", "a short container"),
    ("c", list(range(40)), "a list of 40", "a long one"), ("c", {"api_key": "x"}, "a secret", "a secret within"),
    ("api_key", "abc", "a secret", "a name like a secret's"),
    ("TOKEN", "abc", "a secret", "in capitals"),
    ("password", "abc", "a secret", "another"), ("my_secret", ["a"], "a secret", "more"),
    ("text", "sk-proj-abc", "a secret", "a text like a secret"),
    ("text", "9f86d081884c7d659a2feaa0c55ad015", "a str of 32 characters", "hex"),
    ("url", "postgres://me:pw@host/db", "a secret", "a password in an address"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "shown", "reason"), SHOWN, ids=[reason for *_, reason in SHOWN])
def test_no_secret_and_no_long_text_is_shown(name: str, value: Any, shown: str, reason: str) -> None:
    """Meta holds what is shown, and digests."""
    found = of(f"{name} = {value!r}\ndef f(x):\n    return {name}\n")
    assert found.values[name].shown == shown
    if shown not in (repr(value), "None"):
        assert repr(value) not in repr(found.detail())


def test_to_ask_whether_a_variable_is_there_reads_that_one_alone() -> None:
    """Any other one of the environment may be another on each machine."""

    def asks(n: int) -> Any:
        return n if "JOB_MODE" in os.environ else ["JOB_SIZE" not in environ]

    names = {'the variable os.environ["JOB_MODE"]', 'the variable os.environ["JOB_SIZE"]'}
    found = fingerprint(asks)
    assert found is not None
    assert set(found.looked) == names
