"""Find the variables of a source that each process sets to something else: times, ids, hosts, directories, API keys.

The promise: `T0 = time.time()` and what is made of it by operators, texts and paths is no parameter of a function that
reads it. A prompt that a date stands in counts less the date. Whatever a process loads or computes by other calls is
none of these, wherever its file lies: a prompt that is read from ``Path(__file__).parent`` counts.
"""

from __future__ import annotations

import ast
import linecache
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from checkpoint.provenance.literals import is_text, pieces_of
from checkpoint.provenance.statics import dict_of, is_own_module, module_of
from checkpoint.provenance.syntax import is_own_file

__all__ = ["SURROUNDINGS", "Rest", "is_clock_attribute", "omitted_of", "rest_of"]

# Variables of the environment that tell a process where it runs, and as whom.
SURROUNDINGS = re.compile(
    r"(?:HOME|USER|USERNAME|LOGNAME|HOST|HOSTNAME|PWD|OLDPWD|PATH|TMPDIR|TEMP|TMP|TZ|LANG|LANGUAGE|SHELL|TERM|DISPLAY|"
    r"COLUMNS|LINES|RANK|LOCAL_RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|CUDA_VISIBLE_DEVICES|VIRTUAL_ENV|"
    r"(?:LC|XDG|SLURM|PBS|SGE|LSB|OMP|MKL|OPENBLAS|CONDA|SSH|CI|GITHUB|JPY|CHECKPOINT)(?:_\w*)?|PYTHON\w*"
    r"|\w*(?:API_?KEY|TOKEN(?!S)|PASSWORD|PASSWD|SECRET|CREDENTIALS?|ACCESS_KEY)\w*)"
)

_CLOCKS = {
    "time": "time time_ns monotonic monotonic_ns perf_counter perf_counter_ns process_time process_time_ns thread_time "
    "ctime localtime gmtime strftime asctime tzname timezone altzone",
    "datetime": "datetime.now datetime.utcnow datetime.today date.today",
    "uuid": "uuid1 uuid4 uuid6 uuid7 uuid8 getnode",
    "os": "getpid getppid getcwd getcwdb getlogin uname urandom cpu_count process_cpu_count getuid geteuid times "
    "getloadavg sched_getaffinity path.expanduser path.abspath path.realpath",
    "socket": "gethostname getfqdn gethostbyname",
    "platform": "node uname platform machine processor release version",
    "pathlib": "Path.cwd Path.home",
    "tempfile": "mkdtemp mkstemp mktemp gettempdir NamedTemporaryFile TemporaryDirectory",
    "getpass": "getuser",
    "secrets": "token_hex token_urlsafe token_bytes randbits randbelow",
    "threading": "get_ident get_native_id current_thread main_thread",
    "multiprocessing": "current_process parent_process cpu_count",
    "locale": "getlocale getdefaultlocale getpreferredencoding",
    "sys": "executable prefix exec_prefix path",
    "torch": "cuda.is_available cuda.device_count cuda.current_device get_num_threads device",
    "psutil": "Process cpu_count virtual_memory boot_time",
    "pendulum": "now today",
    "arrow": "now utcnow",
    "pandas": "Timestamp.now Timestamp.today Timestamp.utcnow",
}
_CALLS = frozenset(f"{module}.{name}" for module, names in _CLOCKS.items() for name in names.split())
_KEEPING = frozenset({  # calls that only write a time, id or path in another way
    "str", "int", "float", "bool", "repr", "round", "abs", "min", "max", "format", "hash", "id", "tuple", "list",
    "pathlib.Path", "pathlib.PurePath", "pathlib.PosixPath", "os.fspath", "time.mktime", "uuid.UUID",
    "datetime.datetime.fromtimestamp", "datetime.datetime.utcfromtimestamp", "hashlib.md5", "hashlib.sha1",
    "hashlib.sha256", "os.path.join", "os.path.dirname", "os.path.basename", "os.path.normpath", "os.path.splitext",
})  # fmt: skip
_METHODS = frozenset({
    "isoformat", "strftime", "timestamp", "date", "time", "total_seconds", "resolve", "absolute", "expanduser",
    "joinpath", "with_suffix", "with_name", "as_posix", "replace", "split", "strip", "lower", "upper", "encode", "hex",
    "decode", "hexdigest", "format", "join", "astimezone", "rstrip", "lstrip", "zfill", "as_uri", "removesuffix",
    "removeprefix", "rsplit", "partition",
})  # fmt: skip
_HINT = re.compile(
    r"__file__|\b(?:time|datetime|date|uuid\d?|getnode|os|socket|platform|Path|tempfile|getpass|secrets|threading|"
    r"multiprocessing|locale|sys|torch|psutil|pendulum|arrow|Timestamp|perf_counter|monotonic|token_\w+|get\w+)\b"
)


class _Clocks(NamedTuple):
    """The variables of one source.

    Attributes:
        names: by scope (the name of a function or class, "" for the module): the variables, each with the entries or
            attributes that are meant, or None for all of it.
        attributes: of objects, wherever they are set.
        imports: names, with the modules and names that they stand for.
        rests: by scope, what else the variables are made of.
    """

    names: dict[str, dict[str, frozenset[str] | None]]
    attributes: frozenset[str]
    imports: dict[str, str]
    rests: dict[str, dict[str, Rest]]


class Rest(NamedTuple):
    """What a variable is made of besides times, ids, hosts and directories.

    Attributes:
        texts: that say what is computed, with "{}" in the place of each part that varies.
        names: of variables.
    """

    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()


_NOTHING = Rest()
_NONE = _Clocks({}, frozenset(), {}, {})


def omitted_of(
    path: str, scope: str, name: str, modules: Mapping[str, object], depth: int = 0
) -> frozenset[str] | None:
    """The entries of a variable that are set to such; None where all of it is.

    Args:
        path: of the source.
        scope: the function's name within its module, "" for the module itself.
        name: the variable.
        modules: those that the process has loaded, by name, for what is imported from others of the user's own.
    """
    clocks = _clocks_of(path)
    found = clocks.names.get(scope, {}).get(name, _ABSENT)
    if found is not _ABSENT:
        return found
    origin = clocks.imports.get(name, "") if not scope else ""
    module, _, original = origin.rpartition(".")
    if module and original and depth < 5 and module in modules and is_own_module(module):
        file = dict_of(modules[module]).get("__file__")
        if type(file) is str:
            return omitted_of(file, "", original, modules, depth + 1)
    return frozenset()


def rest_of(path: str, scope: str, name: str) -> Rest:
    """What else a variable is made of, of which all or some entries are omitted."""
    return _clocks_of(path).rests.get(scope, {}).get(name, _NOTHING)


def is_clock_attribute(cls: type, name: str) -> bool:
    """Whether the source of a class sets this attribute of objects to a time, id, host or directory."""
    module = sys.modules.get(module_of(cls))
    path = None if module is None else dict_of(module).get("__file__")
    return type(path) is str and name in _clocks_of(path).attributes


_ABSENT: frozenset[str] = frozenset({"\0"})


def _clocks_of(path: str) -> _Clocks:
    lines = linecache.getlines(path) if is_own_file(path) else []
    known = _known.get(path)
    if known is None or known[0] is not lines:
        known = _known[path] = (lines, _read("".join(lines)))
    return known[1]


_known: dict[str, tuple[list[str], _Clocks]] = {}  # by path, with the lines that they were found in


def _read(text: str) -> _Clocks:
    if not _HINT.search(text):
        return _NONE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return _NONE
    reader = _Reader()
    reader.visit(tree)
    return _Clocks(reader.names, frozenset(reader.attributes), reader.imports, reader.rests)


class _Reader(ast.NodeVisitor):
    """Goes through a source, scope by scope."""

    def __init__(self) -> None:
        self.names: dict[str, dict[str, frozenset[str] | None]] = {}
        self.attributes: set[str] = set()
        self.imports: dict[str, str] = {}
        self.rests: dict[str, dict[str, Rest]] = {}
        self._scope = ""
        self._functions: dict[str, Rest] = {}  # whose results are such

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            self.imports[one.asname or one.name.partition(".")[0]] = (
                one.name if one.asname else one.name.partition(".")[0]
            )

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for one in node.names:
            self.imports[one.asname or one.name] = f"{node.module or ''}.{one.name}"

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        arguments = node.args
        positional = [*arguments.posonlyargs, *arguments.args]
        defaults = [None] * (len(positional) - len(arguments.defaults)) + arguments.defaults
        inner = f"{self._scope}.{node.name}".lstrip(".")
        for argument, default in [
            *zip(positional, defaults, strict=True),
            *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True),
        ]:
            if default is not None and self._is_clock(default):
                self.names.setdefault(inner, {})[argument.arg] = None
        returned = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
        if not self._scope and (clocks := [value for value in returned if self._is_clock(value)]):
            self._functions[node.name] = Rest(self._rest(clocks).texts)
        self._within(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for one in node.body:
            if isinstance(one, (ast.Assign, ast.AnnAssign)) and one.value is not None and self._is_clock(one.value):
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                self.attributes |= {target.id for target in targets if isinstance(target, ast.Name)}
        self._within(node)

    def _within(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        before, self._scope = self._scope, f"{self._scope}.{node.name}".lstrip(".")
        for one in node.body:
            self.visit(one)
        self._scope = before

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """A lambda sets nothing."""

    def visit_Assign(self, node: ast.Assign) -> None:
        self._assign(node.targets, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._assign([node.target], node.value)

    def _assign(self, targets: list[ast.expr], value: ast.expr) -> None:
        entries = None if self._is_clock(value) else self._clock_entries(value)
        for target in targets:
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
                for one, other in zip(target.elts, value.elts, strict=True):
                    self._assign([one], other)
            elif isinstance(target, ast.Name):
                held = self.names.setdefault(self._scope, {})
                if entries is None or entries:
                    held[target.id] = entries
                    parts = [value] if entries is None else [part for _, part in self._entries(value)]
                    self.rests.setdefault(self._scope, {})[target.id] = self._rest(
                        [part for part in parts if self._is_clock(part)]
                    )
            elif isinstance(target, ast.Attribute) and entries is None:
                self.attributes.add(target.attr)
            elif isinstance(target, ast.Subscript) and entries is None and isinstance(target.value, ast.Name):
                self._assign_entry(target.value.id, target.slice)

    def _assign_entry(self, name: str, key: ast.expr) -> None:
        held = self.names.setdefault(self._scope, {})
        before = held.get(name, frozenset())
        if before is not None and isinstance(key, ast.Constant):
            held[name] = before | {str(key.value)}

    def _clock_entries(self, value: ast.expr) -> frozenset[str]:
        """The entries of a dict, or the keyword arguments of a call, that are such."""
        return frozenset(key for key, part in self._entries(value) if self._is_clock(part))

    def _entries(self, value: ast.expr) -> Iterator[tuple[str, ast.expr]]:
        if isinstance(value, ast.Dict):
            for key, part in zip(value.keys, value.values, strict=True):
                if isinstance(key, ast.Constant):
                    yield str(key.value), part
        elif isinstance(value, ast.Call):
            for keyword in value.keywords:
                yield str(keyword.arg), keyword.value

    def _rest(self, values: list[ast.expr]) -> Rest:
        """The texts and variables of expressions, those of which a variable within them is made included."""
        texts: list[str] = []
        names: list[str] = []
        todo: list[ast.AST] = list(reversed(values))
        while todo:
            node = todo.pop()
            if isinstance(node, ast.Name):
                known = self.rests.get(self._scope, {}).get(node.id) or self._functions.get(node.id)
                texts += known.texts if known else ()
                names += known.names if known else (node.id,)
            elif (pieces := pieces_of(node)) is not None:
                text = "".join(piece if isinstance(piece, str) else "{}" for piece in pieces)
                texts += [text] if is_text(text) else []
                todo += [piece for piece in reversed(pieces) if isinstance(piece, ast.AST)]
            else:
                todo += reversed(list(ast.iter_child_nodes(node)))
        return Rest(tuple(texts), tuple(names))

    def _dotted(self, node: ast.expr) -> str:
        if isinstance(node, ast.Name):
            return self.imports.get(node.id, node.id)
        return f"{self._dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"

    def _is_clock(self, node: ast.expr) -> bool:
        """Whether an expression is a time, id, host or directory, or made of such."""
        if isinstance(node, ast.Name):
            scope: str | None = self._scope
            while scope is not None:
                if node.id in self.names.get(scope, {}):
                    return self.names[scope][node.id] is None
                scope = None if not scope else scope.rpartition(".")[0]
            return node.id == "__file__"
        if isinstance(node, ast.Call):
            return self._is_clock_call(node)
        if isinstance(node, ast.Attribute):
            return self._dotted(node) in _CALLS or self._is_clock(node.value)
        if isinstance(node, ast.Subscript) and self._dotted(node.value) == "os.environ":
            return _is_surrounding(node.slice)
        if isinstance(node, (ast.Lambda, ast.Dict, ast.Constant)):
            return False
        if isinstance(node, ast.IfExp):
            return any(map(self._is_clock, (node.test, node.body, node.orelse)))
        return any(isinstance(one, ast.expr) and self._is_clock(one) for one in _parts_of(node))

    def _is_clock_call(self, node: ast.Call) -> bool:
        name = self._dotted(node.func)
        if name in _CALLS or name in self._functions:
            return True
        if name in _OF_ENVIRONMENT:
            return bool(node.args) and _is_surrounding(node.args[0])
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        factory = next((keyword.value for keyword in node.keywords if keyword.arg == "default_factory"), None)
        if factory is not None:
            return self._dotted(factory) in _CALLS or (isinstance(factory, ast.Lambda) and self._is_clock(factory.body))
        if name in _KEEPING:
            return any(map(self._is_clock, given))
        if isinstance(node.func, ast.Attribute) and node.func.attr in _METHODS:
            return self._is_clock(node.func.value) or any(map(self._is_clock, given))
        return False


_OF_ENVIRONMENT = frozenset({"os.getenv", "os.environ.get", "os.environ.setdefault", "os.environ.pop"})


def _is_surrounding(node: ast.expr) -> bool:
    """Whether an expression is the name of a variable that tells a process where it runs, and as whom."""
    return isinstance(node, ast.Constant) and type(node.value) is str and bool(SURROUNDINGS.fullmatch(node.value))


def _parts_of(node: ast.AST) -> list[ast.AST]:
    parts = list(ast.iter_child_nodes(node))
    return [one.value if isinstance(one, ast.FormattedValue) else one for one in parts]
