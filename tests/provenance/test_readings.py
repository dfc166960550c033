"""Laws of reading: which values a fingerprint reads, how far each counts, and what is the function's own state."""

from __future__ import annotations

import importlib
import itertools
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoint.provenance.fingerprint import Changes, Fingerprint, changes, fingerprint

HEAD = """
import collections, dataclasses, datetime, functools, heapq, itertools, os, random, socket, sys, threading, time, uuid
from pathlib import Path
VALUE = {value!r}
"""
OPTIONAL = (
    "tenacity",
    "backoff",
    "jinja2",
    "omegaconf",
    "pydantic",
    "attrs",
    "google.genai",
    "numpy",
    "stamina",
    "click",
    "yaml",
    "pydantic_settings",
    "openai",
)
Load = Callable[[str, object], types.ModuleType]
_numbers = itertools.count()


def cases(text: str) -> pytest.MarkDecorator:
    """The sources of a table, each under its reason."""
    parts = [part.partition("\n") for part in text.split("## ")[1:]]
    return pytest.mark.parametrize("source", [pytest.param(source, id=reason) for reason, _, source in parts])


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Import a source as a module of its own, where VALUE is something."""

    def load(source: str, value: object = "A") -> types.ModuleType:
        for package in OPTIONAL:
            if f"import {package}" in source or f"from {package}" in source:
                pytest.importorskip(package)
        name = f"jobs_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text(HEAD.format(value=value) + source)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XX", "")
    return load


def read(function: Any, **options: Any) -> Fingerprint:
    """The fingerprint of a function."""
    found = fingerprint(function, **options)
    assert found is not None
    return found


def compare(load: Load, source: str) -> Changes:
    """How the function differs with another VALUE; with the same one, and in another module, it does not."""
    old = read(load(source, "A").f)
    assert read(load(source, "A").f).digest == old.digest
    return changes(old.digest, old.detail(), read(load(source, "BB").f))


# --- values, however they are reached --------------------------------------------------------------------------------

COUNTS = """
## beneath tenacity.retry
import tenacity
@tenacity.retry(stop=tenacity.stop_after_attempt(2))
def g(x): return VALUE
def f(x): return g(x)

## beneath backoff
import backoff
@backoff.on_exception(backoff.expo, ValueError)
def g(x): return VALUE
def f(x): return g(x)

## beneath contextlib.contextmanager
import contextlib
@contextlib.contextmanager
def g(x): yield VALUE
def f(x):
    with g(x) as y: return y

## beneath single dispatch
import functools
@functools.singledispatch
def g(x): return 1
@g.register
def _(x: int): return VALUE
def f(x): return g(x)

## beneath single dispatch of a method
import functools
class A:
    @functools.singledispatchmethod
    def g(self, x): return 1
    @g.register
    def _(self, x: int): return VALUE
def f(x): return A().g(x)

## beneath pydantic.validate_call
import pydantic
@pydantic.validate_call
def g(x: int): return VALUE
def f(x): return g(x)

## beneath a decorator of wrapt
import wrapt
@wrapt.decorator
def d(w, i, a, k): return w(*a, **k)
@d
def g(x): return VALUE
def f(x): return g(x)

## within an object of numpy
import numpy as np
g = np.vectorize(lambda x: VALUE)
def f(x): return g(x)

## beneath numpy.errstate
import numpy as np
@np.errstate(all='ignore')
def g(x): return VALUE
def f(x): return g(x)

## the value of an Enum member
import enum
class M(enum.Enum):
    A = VALUE
def f(x): return M.A.value

## an Enum member in a variable
import enum
class M(enum.Enum):
    A = VALUE
m = M.A
def f(x): return m

## a member that is found by its value
import enum
class M(str, enum.Enum):
    A = VALUE
def f(x): return M(x)

## all members of an Enum
import enum
class M(enum.StrEnum):
    A = VALUE
def f(x): return [m for m in M]

## a set
S = {VALUE, 'z'}
def f(x): return x in S

## a frozenset
S = frozenset({VALUE, 'z'})
def f(x): return x in S

## a string.Template
import string
T = string.Template(VALUE + ' $x')
def f(x): return T.substitute(x=x)

## a template of jinja2
import jinja2
T = jinja2.Template(VALUE + ' {{ x }}')
def f(x): return T.render(x=x)

## an expression in a template of jinja2
import jinja2
T = jinja2.Template('a {{ ' + VALUE + ' }}')
def f(x): return T.render(x=x)

## an entry of a mapping proxy
import types
P = types.MappingProxyType({'a': VALUE})
def f(x): return P['a']

## a whole mapping proxy
import types
P = types.MappingProxyType({'a': VALUE})
def f(x): return dict(P)

## a ChainMap
from collections import ChainMap
P = ChainMap({'b': 1}, {'a': VALUE})
def f(x): return P['a']

## an OrderedDict
from collections import OrderedDict
P = OrderedDict(a=VALUE)
def f(x): return P['a']

## an entry of a defaultdict
from collections import defaultdict
P = defaultdict(int, a=VALUE)
def f(x): return P.get('a')

## a UserDict
from collections import UserDict
P = UserDict(a=VALUE)
def f(x): return P['a']

## a subclass of UserDict
from collections import UserDict
class C(UserDict): pass
P = C(a=VALUE)
def f(x): return P['a']

## a Counter
from collections import Counter
P = Counter(VALUE)
def f(x): return P.most_common(1)

## an entry of OmegaConf, as an attribute
from omegaconf import OmegaConf
cfg = OmegaConf.create({'m': {'n': VALUE}, 'k': 1})
def f(x): return cfg.m.n

## an entry of OmegaConf
from omegaconf import OmegaConf
cfg = OmegaConf.create({'m': {'n': VALUE}, 'k': 1})
def f(x): return cfg['m']['n']

## a whole configuration of OmegaConf
from omegaconf import OmegaConf
cfg = OmegaConf.create({'m': {'n': VALUE}, 'k': 1})
def f(x): return OmegaConf.to_container(cfg)

## an element of a list of OmegaConf
from omegaconf import OmegaConf
cfg = OmegaConf.create({'l': [1, VALUE]})
def f(x): return cfg.l[1]

## a whole list of OmegaConf
from omegaconf import OmegaConf
cfg = OmegaConf.create({'l': [1, VALUE]})
def f(x): return list(cfg.l)

## an entry that refers to another
from omegaconf import OmegaConf
cfg = OmegaConf.create({'a': VALUE, 'b': '${a}'})
def f(x): return cfg.b

## one of 50,000 numbers
L = list(range(50_000)) + [VALUE] + list(range(9))
def f(x): return L[x]

## one of 20,000 dicts
L = [{'q': i} for i in range(20_000)] + [{'q': VALUE}]
def f(x): return L[x]

## the last of 3 million numbers
L = tuple(range(3_000_000)) + (VALUE,)
def f(x): return L[x]

## the key of an itemgetter
from operator import itemgetter
g = itemgetter(VALUE)
def f(x): return g(x)

## the name of an attrgetter
from operator import attrgetter
g = attrgetter(VALUE)
def f(x): return g(x)

## an entry that an itemgetter gets
from operator import itemgetter
g = itemgetter('a')
cfg = {'a': VALUE, 'b': 1}
def f(x): return g(cfg)

## dataclass default
import dataclasses
@dataclasses.dataclass
class C:
    t: str = VALUE
def f(x): return C()

## dataclass slots default
import dataclasses
@dataclasses.dataclass(slots=True)
class C:
    t: str = VALUE
def f(x): return C()

## dataclass factory
import dataclasses
@dataclasses.dataclass
class C:
    t: list = dataclasses.field(default_factory=lambda: [VALUE])
def f(x): return C()

## pydantic default
import pydantic
class C(pydantic.BaseModel):
    t: str = VALUE
def f(x): return C()

## pydantic descr
import pydantic
class C(pydantic.BaseModel):
    t: str = pydantic.Field('a', description=VALUE)
def f(x): return C()

## pydantic Field default validate
import pydantic
class C(pydantic.BaseModel):
    t: str = pydantic.Field(VALUE, description='d')
def f(x): return C.model_validate(x)

## attrs default
import attrs
@attrs.define
class C:
    t: str = VALUE
def f(x): return C()

## msgspec default
import msgspec
class C(msgspec.Struct):
    t: str = VALUE
def f(x): return C()

## namedtuple default
from typing import NamedTuple
class C(NamedTuple):
    t: str = VALUE
def f(x): return C()

## own attr
class C:
    def __init__(self): self.t = VALUE; self.u = 1
c = C()
def f(x): return c.t

## an object that asdict is given
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
cfg = C(VALUE)
def f(x): return dataclasses.asdict(cfg)['t']

## an object within an f-string
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
cfg = C(VALUE)
def f(x): return f'{cfg}'

## an object that is formatted
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
cfg = C(VALUE)
def f(x): return '%s' % cfg

## a field that the helper reads
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
cfg = C(VALUE)
def g(c): return c.t
def f(x): return g(cfg)

## an object that the helper hands on
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
cfg = C(VALUE)
def g(c): return dataclasses.asdict(c)
def f(x): return g(cfg)

## an object whose method hands it on
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
    def d(self): return dataclasses.asdict(self)
cfg = C(VALUE)
def f(x): return cfg.d()

## vars(args)
import types
args = types.SimpleNamespace(t=VALUE)
def g(x, t): return t
def f(x): return g(x, **vars(args))

## **cfg
cfg = {'a': VALUE, 'b': 1}
def g(a, b): return a
def f(x): return g(**cfg)

## an entry that the helper reads
cfg = {'a': VALUE, 'b': 1}
def g(c): return c['a']
def f(x): return g(cfg)

## an entry whose key is a variable
cfg = {'a': VALUE, 'b': 1}
k = 'a'
def f(x): return cfg[k]

## a subclass of dict
class D(dict): pass
cfg = D(a=VALUE)
def f(x): return cfg['a']

## a dict with attributes
class D(dict):
    __getattr__ = dict.__getitem__
cfg = D(a=VALUE)
def f(x): return cfg.a

## a subclass of str
class D(str): pass
cfg = D(VALUE)
def f(x): return cfg + 'x'

## a subclass of list
class D(list): pass
cfg = D([VALUE])
def f(x): return cfg[0]

## namedtuple field
from typing import NamedTuple
class C(NamedTuple):
    t: str
    u: int = 1
cfg = C(VALUE)
def f(x): return cfg.t

## namedtuple asdict
from typing import NamedTuple
class C(NamedTuple):
    t: str
    u: int = 1
cfg = C(VALUE)
def f(x): return cfg._asdict()

## the docstring of a model whose schema is read
import pydantic
class C(pydantic.BaseModel):
    '''DOC'''
    n: int = 0
C.__doc__ = VALUE
def f(x): return C.model_json_schema()

## a docstring that is read
def g(): pass
g.__doc__ = VALUE
def f(x): return g.__doc__

## getdoc
import inspect
class Q: pass
Q.__doc__ = VALUE
def f(x): return inspect.getdoc(Q)

## a scalar of numpy
import numpy as np
W = np.float32(len(VALUE))
def f(x): return W * x

## timedelta
import datetime
D = datetime.timedelta(len(VALUE))
def f(x): return D

## classmethod
class C:
    M = VALUE
    @classmethod
    def make(cls, x): return cls.M
f = C.make

## partial
import functools
def g(m, x): return m
f = functools.partial(g, VALUE)

## nested entry
PROMPTS = {'a': [VALUE, 2]}
def f(x): return PROMPTS['a'][0]

## own getitem
class Cfg:
    def __init__(self): self._d = {'m': VALUE}
    def __getitem__(self, k): return self._d[k]
cfg = Cfg()
def f(x): return cfg['m']

## own getattr
class Cfg:
    def __init__(self): self._d = {'m': VALUE}
    def __getattr__(self, k): return self.__dict__['_d'][k]
cfg = Cfg()
def f(x): return cfg.m

## property
class Cfg:
    def __init__(self): self._d = {'m': VALUE}
    @property
    def m(self): return self._d['m']
cfg = Cfg()
def f(x): return cfg.m

## list of own
import dataclasses
@dataclasses.dataclass
class C:
    t: str
cfgs = [C(VALUE), C('z')]
def f(x): return [c.t for c in cfgs]

## list of own asdict
import dataclasses, json
@dataclasses.dataclass
class C:
    t: str
cfgs = [C(VALUE), C('z')]
def f(x): return [dataclasses.asdict(c) for c in cfgs]

## nested asdict
import dataclasses
@dataclasses.dataclass
class I:
    t: str
@dataclasses.dataclass
class C:
    i: I
cfg = C(I(VALUE))
def f(x): return dataclasses.asdict(cfg)

## int key
CFG = {'x': {1: VALUE}}
def f(x): return CFG['x'][1]

## int-key dict
CFG = {1: VALUE}
def f(x): return CFG

## installed pydantic obj
import google.genai.types as t
C = t.GenerateContentConfig(system_instruction=VALUE)
def f(x): return client(config=C)
def client(config): return str(config)

## cache
from functools import cache
@cache
def load(): return VALUE
def f(x): return load()

## callable obj
class A:
    def __call__(self, x): return VALUE
g = A()
def f(x): return g(x)

## kw handed
TOOLS = {'a': VALUE}
def f(x): return x.run(tools=TOOLS)

## kw scalar
def g(x, *, m): return m
def f(x): return g(x, m=VALUE)

## async
import asyncio
async def g(): return VALUE
async def f(x): return await g()

## nested fn
P = VALUE
def f(x):
    def inner(): return P
    return inner()

## ternary
def f(x):
    y = VALUE if x else 'b'
    return y

## try
def f(x):
    try: return VALUE
    except Exception: return 1

## match
def f(x):
    match x:
        case {'a': 1}: return VALUE
        case _: return 2

## unpack
lines = (VALUE, 'b')
def f(x):
    a, *b = lines
    return a

## match class
import dataclasses
@dataclasses.dataclass
class C:
    t: str
C2 = C(VALUE)
def f(x):
    match C2:
        case C(t='q'): return 1
    return 2

## the function itself beneath tenacity
import tenacity
@tenacity.retry(stop=tenacity.stop_after_attempt(2))
def f(x): return VALUE

## beneath a decorator of the user's own
import functools
def deco(fn):
    @functools.wraps(fn)
    def w(*a, **k): return fn(*a, **k)
    return w
@deco
def g(x): return VALUE
def f(x): return g(x)

## beneath stamina
import stamina
@stamina.retry(on=ValueError)
def g(x): return VALUE
def f(x): return g(x)

## what a context manager gives
import contextlib
class M(contextlib.ContextDecorator):
    def __enter__(self): return VALUE
    def __exit__(self, *a): pass
def f(x):
    with M() as m: return m

## click callback
import click
@click.command()
def g(): return VALUE
def f(x): return g.callback()

## a function in a registry
class R:
    reg = {}
    def add(self, fn): self.reg['k'] = fn; return fn
r = R()
@r.add
def g(x): return VALUE
def f(x): return r.reg['k'](x)

## a function in a dict of functions
REG = {}
def register(fn): REG[fn.__name__] = fn; return fn
@register
def g(x): return VALUE
def f(x): return REG['g'](x)

## method reads field
import dataclasses
@dataclasses.dataclass(frozen=True)
class P:
    system: str
    user: str = 'u'
    def render(self, x): return self.system + self.user + x
p = P(VALUE)
def f(x): return p.render(x)

## join
PROMPTS = [VALUE, 'b']
def f(x): return '\\n'.join(PROMPTS)

## a nested value that is handed on
import json
S = {'a': [{'b': VALUE}]}
def f(x): return json.dumps(S)

## yaml
import yaml
S = yaml.safe_load('a: ' + VALUE)
def f(x): return S['a']

## configparser
import configparser
c = configparser.ConfigParser()
c.read_string('[a]\\nm = ' + VALUE)
def f(x): return c['a']['m']

## configparser.get
import configparser
c = configparser.ConfigParser()
c.read_string('[a]\\nm = ' + VALUE)
def f(x): return c.get('a', 'm')

## settings
import pydantic_settings as ps
class S(ps.BaseSettings):
    m: str = VALUE
s = S()
def f(x): return s.m

## model_dump
import pydantic
class S(pydantic.BaseModel):
    m: str
    n: int = 1
s = S(m=VALUE)
def f(x): return s.model_dump()

## struct field
import msgspec
class S(msgspec.Struct):
    m: str
    n: int = 1
s = S(m=VALUE)
def f(x): return s.m

## a whole msgspec struct
import msgspec
class S(msgspec.Struct):
    m: str
    n: int = 1
s = S(m=VALUE)
def f(x): return msgspec.to_builtins(s)

## a whole attrs object
import attrs
@attrs.define
class S:
    m: str
    n: int = 1
s = S(m=VALUE)
def f(x): return attrs.asdict(s)

## singledispatch default
import functools
@functools.singledispatch
def g(x): return VALUE
@g.register(str)
def _(x): return 1
def f(x): return g(x)

## items alias
P = {'a': VALUE}
def f(x):
    p = P
    return {k: v for k, v in p.items()}

## ctor
P = {'a': VALUE, 'b': 1}
class A:
    def __init__(self, cfg): self.cfg = cfg
    def m(self): return self.cfg['a']
def f(x): return A(P).m()

## bound method global
class A:
    def __init__(self, model): self.model = model
    def m(self, x): return self.model
a = A(VALUE)
f2 = a.m
def f(x): return f2(x)

## merge
DEFAULTS = dict(model=VALUE)
def g(x, **kw): return kw
def f(x): return g(x, **{**DEFAULTS, 'a': 1})

## fstring fmt
MODEL = VALUE
def f(x): return f'{MODEL!r:>10}'

## nested lambda
MODEL = VALUE
f = lambda x: (lambda: MODEL)()

## getattr hook
MODEL = VALUE
class A:
    def __getattr__(self, n): return MODEL
a = A()
def f(x): return a.zzz

## class attr via inst
class Base:
    MODEL = VALUE
class A(Base): pass
a = A()
def f(x): return a.MODEL

## flags
import enum
class M(enum.IntFlag):
    A = 1
    B = len(VALUE) * 4
def f(x): return M.B | M.A

## namedtuple whole
from collections import namedtuple
C = namedtuple('C', 'a b')
c = C(VALUE, 1)
def f(x): return c

## regex
import re
P = re.compile(VALUE)
def f(x): return P.findall(x)

## zone
from zoneinfo import ZoneInfo
Z = ZoneInfo('Europe/Berlin' if VALUE == 'A' else 'UTC')
def f(x): return Z

## own template
import string
class T(string.Template): pass
t = T(VALUE)
def f(x): return t.safe_substitute()

## helper partial
from functools import partial
def g(m, x): return m
h = partial(g, VALUE)
def f(x): return h(x)

## reduce
from functools import reduce
L = [VALUE]
def f(x): return reduce(lambda a, b: a + b, L)

## closure helper
def outer():
    m = VALUE
    def g(): return m
    return g
g = outer()
def f(x): return g()

## async with
async def f(x):
    async with Ctx() as c: return VALUE
class Ctx:
    async def __aenter__(self): return self
    async def __aexit__(self, *a): pass

## messages
SYSTEM = VALUE
MESSAGES = [{'role': 'system', 'content': SYSTEM}]
def f(x): return MESSAGES + [x]

## dict getattr
class Cfg(dict):
    def __getattr__(self, k): return self[k]
cfg = Cfg(m=VALUE, n=1)
def f(x): return cfg.m

## enum property
import enum
class M(enum.Enum):
    A = ('x', VALUE)
    @property
    def p(self): return self.value[1]
def f(x): return M.A.p

## annotated descr
import typing, pydantic
class S(pydantic.BaseModel):
    m: typing.Annotated[str, pydantic.Field(description=VALUE)]
def f(x): return S.model_json_schema()

## the description of a field of a class within
import pydantic
class I(pydantic.BaseModel):
    m: str = pydantic.Field(description=VALUE)
class S(pydantic.BaseModel):
    i: list[I]
def f(x): return S.model_json_schema()

## the description of a field of a class that is handed on
import pydantic, json
class I(pydantic.BaseModel):
    m: str = pydantic.Field(description=VALUE)
def f(x): return client.create(response_model=I)
class C:
    pass
import openai
client = openai

## a prompt that the date stands in
SYSTEM = f"You are a {VALUE} assistant. Today is {datetime.date.today()}."
def f(x): return SYSTEM

## a prompt that the date is put into
PROMPT = "You are a " + VALUE + " assistant. Today is {day}."
SYSTEM = PROMPT.format(day=datetime.date.today())
def f(x): return SYSTEM

## an entry that the date stands in
CFG = {'system': f"You are a {VALUE} assistant. Today is {datetime.date.today()}.", 'n': 1}
def f(x): return CFG['system']

## a prompt that a function makes of the date
KIND = VALUE
def system(): return f"You are a {KIND} assistant. Today is {datetime.date.today()}."
SYSTEM = system() + " You are a " + KIND + " assistant."
def f(x): return SYSTEM

## a constant of a module that is known by name alone
M = sys.modules[__name__]
PROMPT_1 = VALUE
def f(x): return getattr(M, f"PROMPT_{x}")

## a constant in vars of a module
M = sys.modules[__name__]
PROMPT_1 = VALUE
def f(x): return vars(M)[f"PROMPT_{x}"]
"""


@cases(COUNTS)
def test_a_value_counts_however_it_is_reached(load: Load, source: str) -> None:
    """Another value is a change of a value, whatever stands between it and the function."""
    assert compare(load, source).values


NEIGHBOURS = """
## another entry of a mapping proxy
import types
P = types.MappingProxyType({'a': 1, 'b': VALUE})
def f(x): return P['a']

## another entry of OmegaConf
from omegaconf import OmegaConf
cfg = OmegaConf.create({'m': {'n': VALUE}, 'k': 1})
def f(x): return cfg.k

## an entry that the itemgetter does not get
from operator import itemgetter
g = itemgetter('b')
cfg = {'a': VALUE, 'b': 1}
def f(x): return g(cfg)

## another attribute of an object
class C:
    def __init__(self): self.t = VALUE; self.u = 1
c = C()
def f(x): return c.u

## a field that the helper does not read
import dataclasses
@dataclasses.dataclass
class C:
    t: str
    u: int = 1
cfg = C(VALUE)
def g(c): return c.u
def f(x): return g(cfg)

## another argument of a script
import argparse
args = argparse.Namespace(t=VALUE, u=1)
def f(x): return args.u

## another entry of a dict
cfg = {'a': VALUE, 'b': 1}
def f(x): return cfg['b']

## another entry of a nested dict
cfg = {'a': {'c': VALUE}, 'b': {'d': 1}}
def f(x): return cfg['b']['d'], cfg.get('b')

## an entry that the helper does not read
cfg = {'a': VALUE, 'b': 1}
def g(c): return c['b']
def f(x): return g(cfg)

## another field of a named tuple
from typing import NamedTuple
class C(NamedTuple):
    t: str
    u: int = 1
cfg = C(VALUE)
def f(x): return cfg.u

## the docstring of a model that is only built
import pydantic
class C(pydantic.BaseModel):
    n: int = 0
C.__doc__ = VALUE
def f(x): return C(n=x)

## a docstring that is not read
def g(): pass
g.__doc__ = VALUE
def f(x): return g()

## another entry of a bound argument
import functools
cfg = {'a': VALUE, 'b': 1}
def g(m, x): return m['b']
f = functools.partial(g, cfg)

## another entry of a closure's dict
def mk():
    cfg = {'m': VALUE, 'k': 1}
    def f(x): return cfg['k']
    return f
f = mk()

## an entry that a decorated helper does not read
import functools
cfg = {'a': 1, 'b': VALUE}
def deco(fn):
    @functools.wraps(fn)
    def w(*a, **k): return fn(*a, **k)
    return w
@deco
def g(c): return c['a']
def f(x): return g(cfg)

## model neighbour
import pydantic
class S(pydantic.BaseModel):
    m: str
    n: int = 1
s = S(m=VALUE)
def f(x): return s.n

## alias neighbour
P = {'a': VALUE, 'b': 1}
def f(x):
    model, temp = P['b'], 1
    return model

## another attribute of an object within
import types
ns = types.SimpleNamespace(inner=types.SimpleNamespace(v=VALUE, w=1))
def f(x): return ns.inner.w

## class attr neighbour
class A:
    MODEL = VALUE
    OTHER = 1
def f(x): return A.OTHER

## enum neighbour
import enum
class M(enum.Enum):
    A = VALUE
    B = 'b'
def f(x): return M.B.value

## dict getattr neighbour item
class Cfg(dict):
    def __getattr__(self, k): return self[k]
cfg = Cfg(m=VALUE, n=1)
def f(x): return cfg['n']
"""


@cases(NEIGHBOURS)
def test_of_a_container_or_object_only_the_part_that_is_read_counts(load: Load, source: str) -> None:
    """Its neighbours may change."""
    assert compare(load, source) == ([], [], [])


ARRAYS = """
## a small array
import numpy as np
W = np.full(3, float(len(VALUE)))
def f(x): return W @ x

## a large array
import numpy as np
W = np.zeros(1_000_000); W[:500000] = len(VALUE)
def f(x): return W[x]
"""


@cases(ARRAYS)
def test_an_array_that_differs_is_told_and_never_refused(load: Load, source: str) -> None:
    """Another BLAS computes other last bits: it stands among the code, with old and new."""
    found = compare(load, source)
    assert found.values == []
    assert "the array W: an array of" in found.code[0]


ENVIRONMENT = """
## os.environ[…]
os.environ['XX'] = VALUE
def f(x): return os.environ['XX']

## os.getenv
os.environ['XX'] = VALUE
def f(x): return os.getenv('XX')

## "…" in os.environ
os.environ['XX'] = VALUE
def f(x): return os.environ['XX'] if 'XX' in os.environ else x

## os.environ.get
os.environ['XX'] = VALUE
def f(x): return os.environ.get('XX', 'd')

## from os import environ
from os import environ, getenv
os.environ['XX'] = VALUE
def f(x): return environ['XX']

## from os import getenv
from os import environ, getenv
os.environ['XX'] = VALUE
def f(x): return getenv('XX')

## a number of tokens, which is no secret
os.environ['MAX_TOKENS'] = VALUE
def f(x): return os.environ['MAX_TOKENS']

## a name that only begins as one of a job scheduler's
os.environ['CITY'] = VALUE
def f(x): return os.environ['CITY']
"""


@cases(ENVIRONMENT)
def test_a_variable_of_the_environment_that_differs_is_told_and_never_refused(load: Load, source: str) -> None:
    """Machines differ in their environment, and a program may set it for one map and not for the next."""
    found = compare(load, source)
    assert found.values == []
    assert found.code[0].startswith("the variable os.environ[")
    assert " → " in found.code[0]


# --- state -----------------------------------------------------------------------------------------------------------

STATE = """
## lazy
M = None
class Model:
    def __init__(self): self.w = 1
def load():
    global M
    if M is None: M = Model()
    return M
def f(x): return load().w

## shuffle
L = [1,2,3,4,5]
def g(x):
    random.shuffle(L); return L[0]
def f(x): return g(x)

## heap
L = [5,3,1]
def f(x): heapq.heapify(L); heapq.heappush(L, 2); return L[0]

## heap from
from heapq import heappush
L = [5,3,1]
def f(x): heappush(L, 2); return L[0]

## count
C = itertools.count()
def f(x): return next(C)

## class counter
class S: pass
S.n = 0
def f(x): S.n += 1; return S.n

## ns counter
import types
st = types.SimpleNamespace(n=0)
def f(x): st.n += 1; return st.n

## own counter
class Stats:
    def __init__(self): self.n = 0
    def add(self): self.n += 1
st = Stats()
def f(x): st.add(); return st.n

## dict counter
STATS = {'n': 0}
def f(x): STATS['n'] += 1; return STATS['n']

## dict via param
STATS = {'n': 0}
def bump(s): s['n'] = s['n'] + 1
def f(x): bump(STATS); return STATS['n']

## list via param
L = []
def add(l, x): l.append(x)
def f(x): add(L, x); return len(L)

## setattr
class O: pass
o = O(); o.a = 1
def f(x): setattr(o, 'a', 5); return o.a

## setattr dyn
class O: pass
o = O(); o.a = 1
def f(x):
    for k in ('a', 'b'): setattr(o, k, x)
    return o.a

## cache
@functools.lru_cache
def g(x): return x
def f(x): return g(x)

## dict cache
CACHE = {}
def f(x):
    if x not in CACHE: CACHE[x] = x
    return CACHE[x]

## setdefault
CACHE = {}
def f(x): return CACHE.setdefault(x, 1)

## cached_property
class A:
    @functools.cached_property
    def c(self): return object()
    def m(self): self.c; return 1
a = A()
def f(x): return a.m()

## lazy attr
class A:
    def __init__(self): self._client = None; self.calls = []
    def m(self):
        if self._client is None: self._client = 'made'
        self.calls.append(1)
        return self._client
a = A()
def f(x): return a.m()

## singleton
class A:
    _inst = None
    @classmethod
    def get(cls):
        if cls._inst is None: cls._inst = cls()
        return cls._inst
    def __init__(self): self.k = 1
def f(x): return A.get().k

## lock
lock = threading.Lock()
def f(x):
    with lock: return x

## thread local
tl = threading.local()
def f(x):
    if not hasattr(tl, 'c'): tl.c = 'client'
    return tl.c

## function attr
def f(x):
    if not hasattr(f, 'c'): f.c = 'client'
    return f.c

## function attr counter
def f(x):
    f.n = getattr(f, 'n', 0) + 1
    return f.n

## set add
DONE = set()
def f(x): DONE.add(x); return len(DONE)

## deque
D = collections.deque([1,2])
def f(x): D.append(x); D.popleft(); return D[0]

## defaultdict
D = collections.defaultdict(list)
def f(x): D[x].append(1); return len(D)

## counter
D = collections.Counter()
def f(x): D[x] += 1; return D[x]

## counter update
D = collections.Counter()
def f(x): D.update([x]); return D[x]

## nonlocal
def mk():
    n = 0
    def f(x):
        nonlocal n
        n += 1
        return n
    return f
f = mk()

## rng
R = random.Random(3)
def f(x): return R.random()

## np rng
import numpy as np
R = np.random.default_rng(3)
def f(x): return R.random()

## buffer
import numpy as np
B = np.zeros(3)
def f(x): B[:] = x; return B.sum()

## buffer aug
import numpy as np
B = np.zeros(3)
def f(x): B[0] += 1; return B.sum()

## buffer out
import numpy as np
B = np.zeros(3)
def f(x): np.add(B, 1, out=B); return B.sum()

## logger
import logging
log = logging.getLogger('x')
def f(x): log.info('a'); return x

## default list
def f(x, seen=[]):
    seen.append(x); return len(seen)

## globals()
def f(x):
    globals()['G'] = 5
    return G


## globals() helper
G = None
def init():
    globals()['G'] = 5
def f(x):
    if G is None: init()
    return G


## or
G = None
def f(x):
    global G
    G = G or {'a': 1}
    return G['a']


## pool entry
POOL = {'c': None}
def client():
    if POOL['c'] is None: POOL['c'] = dict(a=1)
    return POOL['c']
def f(x): return client()['a']

## attr list
class Cfg:
    pass
cfg = Cfg(); cfg.items = []
def f(x): cfg.items.append(x); return cfg.items

## attr list via method
class Cfg:
    def __init__(self): self.items = []
    def push(self, x): self.items.append(x)
cfg = Cfg()
def f(x): cfg.push(x); return len(cfg.items)

## own setitem
class N:
    def __init__(self): self.d = {}
    def __setitem__(self, k, v): self.d[k] = v
    def __getitem__(self, k): return self.d[k]
c = N()
def f(x): c[x] = 1; return c[x]

## queue
import queue
Q = queue.Queue()
Q.put(1)
def f(x): Q.put(2); return Q.get()

## iterator
it = iter([1,2,3,4,5,6,7,8])
def f(x): return next(it)

## alias
L = [1,2,3]
def f(x):
    l = L
    l.append(x)
    return len(L)

## elements
L = [[1],[2]]
def f(x):
    for l in L: l.append(x)
    return len(L[0])

## sort
L = [1,2,3]
def f(x):
    L.sort(key=lambda v: -v); return L[0]

## slice assign
L = [1,2,3]
def f(x):
    L[:] = [3, 2, 1]; return L[0]

## iadd
L = [1,2,3]
def f(x):
    global L
    L += [1]
    return L[0]

## helper attr
def g():
    g.calls += 1
    return g.calls
g.calls = 0
def f(x): return g()

## contextvar
import contextvars
V = contextvars.ContextVar('v', default=1)
def f(x): V.set(2); return V.get()

## errors list
E = []
def f(x):
    try: return 1/x
    except Exception as e: E.append(str(e)); return len(E)

## last
LAST = 0.0
def wait():
    global LAST
    LAST = time.time()
def f(x): wait(); return x, LAST

## dataclass state
from dataclasses import dataclass, field
@dataclass
class T:
    n: int = 0
    log: list = field(default_factory=list)
t = T()
def add(t): t.n += 1; t.log.append(1)
def f(x): add(t); return t.n

## asdict state
from dataclasses import dataclass, asdict
@dataclass
class T:
    n: int = 0
t = T()
def f(x): t.n += 1; return asdict(t)
"""


@cases(STATE)
def test_what_the_function_makes_or_changes_is_its_state(load: Load, source: str) -> None:
    """Before the first call and after the second its fingerprint is one."""
    module = load(source, "A")
    before = read(module.f)
    module.f(1)
    module.f(2)
    after = read(module.f)
    assert changes(before.digest, before.detail(), after) == ([], [], [])
    assert after.digest == before.digest


CLOCKS = """
## T0 = time.time()
T0 = time.time()
def f(x): return T0

## from time import time as now
from time import time as now
T0 = now()
def f(x): return T0

## RUN = uuid.uuid4().hex
RUN = uuid.uuid4().hex
def f(x): return RUN

## RUN = f'run-{uuid.uuid4()}'
RUN = f'run-{uuid.uuid4()}'
def f(x): return RUN

## OUT = Path(f'out/{time.time()}')
OUT = Path(f'out/{time.time()}')
def f(x): return OUT

## T0 = datetime.datetime.now()
T0 = datetime.datetime.now()
def f(x): return T0.isoformat()

## T0 = datetime.datetime.now().isoformat()
T0 = datetime.datetime.now().isoformat()
NAME = 'a' + T0
def f(x): return NAME

## CFG = {'model': 'a', 't': time.time()}
CFG = {'model': 'a', 't': time.time()}
def f(x): return CFG

## CFG = dict(model='a', t=time.time())
CFG = dict(model='a', t=time.time())
def f(x): return CFG['model'], CFG['t']

## @dataclasses.dataclass
@dataclasses.dataclass
class C:
    m: str
    t: float = dataclasses.field(default_factory=time.time)
c = C('a')
def f(x): return dataclasses.asdict(c)

## class C:
class C:
    def __init__(self): self.t = time.time(); self.m = 'a'
    def age(self): return time.time() - self.t, self.m
c = C()
def f(x): return c.age()

## HERE = Path(__file__).parent
HERE = Path(__file__).parent
def f(x): return HERE / 'a'

## HERE = os.path.dirname(os.path.abspath(__file__))
HERE = os.path.dirname(os.path.abspath(__file__))
P = os.path.join(HERE, 'x')
def f(x): return P

## def mk():
def mk():
    t0 = time.perf_counter()
    def f(x): return t0
    return f
f = mk()

## def f(x, t0=time.time()): return t0
def f(x, t0=time.time()): return t0

## class K:
class K:
    T0 = time.time()
def f(x): return K.T0

## import uuid as u
import uuid as u
class K:
    ID = str(u.uuid4())
    def m(self): return self.ID
def f(x): return K().m()

## T0: float = time.monotonic()
T0: float = time.monotonic()
def f(x): return x - T0 > 5

## a, T0 = 1, time.time()
a, T0 = 1, time.time()
def f(x): return T0, a

## def run_id(): return uuid.uuid4().hex
def run_id(): return uuid.uuid4().hex
RUN = run_id()
def f(x): return RUN

## T0 = 0.0
T0 = 0.0
if True:
    T0 = time.time()
def f(x): return T0

## D = {}
D = {}
D['t'] = time.time()
def f(x): return D['t']

## try:
try:
    T0 = time.time()
except Exception: T0 = 0
def f(x): return T0

## SALT = os.urandom(4)
SALT = os.urandom(4)
def f(x): return SALT

## T = time.strftime('%H:%M:%S.') + str(time.time_ns())
T = time.strftime('%H:%M:%S.') + str(time.time_ns())
def f(x): return T

## ID = id(object()), hash(('a', time.time()))
ID = id(object()), hash(('a', time.time()))
def f(x): return ID
"""


@cases(CLOCKS)
def test_times_ids_hosts_and_directories_are_no_parameters(load: Load, source: str) -> None:
    """Each process sets them to something else."""
    first = read(load(source, "A").f)
    now = time.time_ns()
    while time.time_ns() < now + 1000:
        pass
    assert read(load(source, "A").f).digest == first.digest


SURROUNDED = """
## an API key
KEY = os.environ["OPENAI_API_KEY"]
def f(x): return KEY

## an API key that may be absent
KEY = os.getenv("OPENAI_API_KEY") or ""
def f(x): return KEY

## an API key in a header
HEADERS = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "X": VALUE}
def g(headers): return headers
def f(x): return g(headers=HEADERS)

## an API key of a client
class Client:
    def __init__(self): self.auth = os.environ.get("OPENAI_API_KEY")
    def ask(self, x): return self.auth
c = Client()
def f(x): return c.ask(x)

## an API key that a client is given
class Client:
    def __init__(self, key): self.key = key
    def ask(self, x): return self.key
c = Client(os.environ["OPENAI_API_KEY"])
def f(x): return c.ask(x)

## an API key of settings
import pydantic_settings
class S(pydantic_settings.BaseSettings):
    openai_api_key: str
s = S()
def f(x): return s.openai_api_key

## an API key as a default
def f(x, key=os.environ["OPENAI_API_KEY"]): return key

## a rank
RANK = int(os.environ.get("RANK", 0))
def f(x): return RANK

## a directory
DATA = os.path.join(os.environ["HOME"], "data")
def f(x): return DATA
"""


@cases(SURROUNDED)
def test_a_variable_that_holds_an_api_key_a_rank_or_a_home_is_no_parameter(
    load: Load, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that was renewed, or another rank, changes no result."""
    found = []
    for number in ("1", "2"):
        for name in ("OPENAI_API_KEY", "RANK", "HOME"):
            monkeypatch.setenv(name, number if name == "RANK" else f"/secret/of/{number}")
        found.append(read(load(source, "A").f).digest)
    assert found[0] == found[1]


FILES_READ = """
## below the directory of the source
HERE = Path(__file__).parent
def f(x): return (HERE / "prompt.txt").read_text()

## by a constant
PROMPT = Path(__file__).parent / "prompt.txt"
def f(x): return PROMPT.read_text()

## by another function
PROMPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "prompt.txt")
def load():
    with open(PROMPT) as file: return file.read()
def f(x): return load()
"""


@cases(FILES_READ)
def test_a_file_beside_the_source_that_the_function_reads_is_told(load: Load, source: str, tmp_path: Path) -> None:
    """Wherever the directory is, another content of the file is told."""
    (tmp_path / "prompt.txt").write_text("Be brief.")
    old = read(load(source, "A").f)
    (tmp_path / "prompt.txt").write_text("Be verbose.")
    found = changes(old.digest, old.detail(), read(load(source, "A").f))
    assert not found.values
    assert "prompt.txt" in found.code[0]


CACHES = """
## by a constant
CACHE = Path(__file__).parent / "cache.json"
def load(): return CACHE.read_text()
def save(text): CACHE.write_text(text)
def f(x): save(load() + "x")

## by an argument
CACHE = str(Path(__file__).parent / "cache.json")
def load(path):
    with open(path) as file: return file.read()
def save(path, text):
    with open(path, "w") as file: file.write(text)
def f(x): save(CACHE, load(CACHE) + "x")

## by an attribute
class Cache:
    def __init__(self, path): self.path = path
    def load(self): return self.path.read_text()
    def save(self, text): self.path.write_text(text)
cache = Cache(Path(__file__).parent / "cache.json")
def f(x): cache.save(cache.load() + "x")
"""


@cases(CACHES)
def test_a_file_that_the_function_writes_is_its_state(load: Load, source: str, tmp_path: Path) -> None:
    """A cache on disk grows as the function runs, and is no value that it reads."""
    (tmp_path / "cache.json").write_text("x")
    module = load(source, "A")
    before = read(module.f)
    module.f(1)
    assert read(module.f).digest == before.digest


CONTENTS = """
## a prompt beside the source
PROMPT = (Path(__file__).parent / "prompt.txt").read_text()
def f(x): return PROMPT

## what a function loads from there
def load(path): return path.read_text()
CFG = load(Path(__file__).parent / "prompt.txt")
def f(x): return CFG
"""


@cases(CONTENTS)
def test_what_is_read_from_a_file_beside_the_source_counts(load: Load, source: str, tmp_path: Path) -> None:
    """The directory is no parameter, and what lies in it is one."""
    (tmp_path / "prompt.txt").write_text("Be brief.")
    old = read(load(source, "A").f)
    (tmp_path / "prompt.txt").write_text("Be verbose.")
    assert changes(old.digest, old.detail(), read(load(source, "A").f)).values
