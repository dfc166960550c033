"""Laws of the decorator: the function stays what it was, and gets `.map`, wherever it goes."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import functools
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from conftest import shown

import checkpoint
from checkpoint import (
    CheckpointedFunction,
    CheckpointedRunner,
    CheckpointLocked,
    InvalidFunction,
    InvalidName,
    InvalidOption,
    VersionNeeded,
    checkpointed,
)

SOURCE = Path(checkpoint.__file__).parent.parent


@pytest.fixture(autouse=True)
def _in_a_fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHECKPOINT_DIR", raising=False)


def run_script(script: str, **variables: str) -> str:
    """What a Python program prints, run in the current directory."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **variables}
    Path("script.py").write_text(textwrap.dedent(script))
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def raw(n: int, *, factor: int = 2) -> int:
    """Multiplies."""
    if n < 0:
        raise ValueError("negative")
    return n * factor


@checkpointed("by_name")
def by_name(n: int, *, factor: int = 2) -> int:
    """Multiplies."""
    return n * factor


assigned = checkpointed("assigned")(raw)


@checkpointed("coroutine")
async def coroutine(n: int) -> int:
    """Multiplies, later."""
    return n * 2


@dataclasses.dataclass
class Point:
    """A class of values."""

    x: int


def make_point(x: int, extra: int = 0) -> Point:
    """Makes one."""
    return Point(x)


class Scorer:
    """A class with mapped methods of every kind."""

    def __init__(self, model: str) -> None:
        self.model = model

    @checkpointed("score")
    def score(self, text: str) -> str:
        """Scores."""
        return f"{self.model}:{text}"

    @checkpointed("class_outside")
    @classmethod
    def class_outside(cls, text: str) -> str:
        return f"{cls.__name__}:{text}"

    @classmethod
    @checkpointed("class_inside")
    def class_inside(cls, text: str) -> str:
        return f"{cls.__name__}:{text}"

    @checkpointed("static_outside")
    @staticmethod
    def static_outside(text: str) -> str:
        return text

    @staticmethod
    @checkpointed("static_inside")
    def static_inside(text: str) -> str:
        return text

    @checkpointed("later")
    async def later(self, text: str) -> str:
        return f"{self.model}:{text}"


class Child(Scorer):
    """Overrides a mapped method, and calls it."""

    @checkpointed("child")
    def score(self, text: str) -> str:
        return "child " + super().score(text)


# --- the plain call --------------------------------------------------------------------------------------------------


def test_the_plain_call_is_untouched() -> None:
    """Arguments, exceptions and what it returns are the function's; nothing is saved."""
    assert (assigned(3), assigned(3, factor=5), assigned(n=1)) == (6, 15, 2)
    with pytest.raises(ValueError, match="negative"):
        assigned(-1)
    with pytest.raises(TypeError):
        assigned()  # type: ignore[call-arg]
    assert asyncio.run(coroutine(2)) == 4
    assert os.listdir() == []


def test_what_is_known_of_the_function_is_untouched() -> None:
    """Name, docstring, signature, hints, module, attributes, the kind of function it is."""
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__annotations__", "__defaults__"):
        assert getattr(assigned, name) == getattr(raw, name)
    method: Any = Scorer("a").score
    assert (method.__name__, method.__doc__) == ("score", "Scores.")
    assert typing.get_type_hints(method) == {"text": str, "return": str}
    assert str(inspect.signature(method)) == "(text: 'str') -> 'str'"
    assert inspect.signature(assigned) == inspect.signature(raw)
    assert typing.get_type_hints(assigned) == typing.get_type_hints(raw)
    assert inspect.iscoroutinefunction(coroutine)
    assert asyncio.iscoroutinefunction(coroutine) if sys.version_info < (3, 14) else True
    assert not inspect.iscoroutinefunction(assigned)
    assert inspect.unwrap(assigned) is raw
    assert repr(assigned).startswith("<checkpointed 'assigned' raw")
    assert inspect.getsource(assigned) == inspect.getsource(raw)


@pytest.mark.slow
def test_functions_of_other_kinds_can_be_mapped() -> None:
    """Partials, callable objects, builtins, lambdas, and coroutine functions of each kind."""

    class Doubler:
        def __call__(self, n: int) -> int:
            return n * 2

    class Later:
        async def __call__(self, n: int) -> int:
            return n * 2

    plain: list[Any] = [functools.partial(raw, factor=2), Doubler(), lambda n: n * 2, [None, 2, 4].__getitem__]
    for place, function in enumerate(plain):
        mapped: Any = checkpointed(f"plain{place}")(function)
        assert mapped.map([1, 2], progress=False) == [2, 4]
    later: list[Any] = [Later(), functools.partial(coroutine.__wrapped__)]
    for place, function in enumerate(later):
        mapped = checkpointed(f"later{place}")(function)
        assert asyncio.run(mapped.map([1, 2], progress=False)) == [2, 4]


@pytest.mark.slow
def test_what_a_partial_or_an_object_returns_is_rebuilt_too() -> None:
    """The annotation is that of the function inside."""

    class Maker:
        def __call__(self, n: int) -> Point:
            return Point(n)

    for name, function in (("partial", functools.partial(make_point, extra=1)), ("object", Maker())):
        mapped: Any = checkpointed(name)(function)
        assert mapped.map([1], progress=False) == [Point(1)]
    assert checkpointed("cached")(functools.lru_cache(make_point)).map([1], progress=False) == [Point(1)]


# --- what is refused -------------------------------------------------------------------------------------------------


def generator(n: int) -> Any:  # noqa: D103
    yield n


async def async_generator(n: int) -> Any:  # noqa: D103
    yield n


def nothing() -> None: ...  # noqa: D103
def two(a: int, b: int) -> None: ...  # noqa: D103
def keyword(a: int, *, b: int) -> None: ...  # noqa: D103
def only_keyword(*, a: int) -> None: ...  # noqa: D103
def only_keywords(**a: int) -> None: ...  # noqa: D103


REFUSED = [
    (generator, "generator function", "a generator function gives more than one value"),
    (async_generator, "generator function", "so does an asynchronous one"),
    (Scorer, "not <class", "a class"),
    (5, "not 5", "what is no function"),
    (nothing, "no argument", "no place for the item"),
    (two, "2 required arguments", "more than the item"),
    (keyword, "2 required arguments", "a required keyword too"),
    (only_keyword, "no argument", "the item has no place"),
    (only_keywords, "no argument", "nor here"),
    (functools.partial(two), "2 required arguments", "a partial that binds nothing"),
]


@pytest.mark.parametrize(("function", "says", "reason"), REFUSED, ids=[reason for *_, reason in REFUSED])
def test_what_cannot_be_mapped_is_refused_at_decoration(function: Any, says: str, reason: str) -> None:
    """With what it is, before any file is made."""
    with pytest.raises(InvalidFunction, match=says):
        checkpointed("n")(function)
    assert os.listdir() == []


@pytest.mark.slow
def test_one_item_may_stand_in_any_shape_of_one_argument() -> None:
    """A default, `*args`, positional-only, and further arguments with defaults."""

    def positional(n: int, /) -> int:
        return n

    def default(n: int = 0, m: int = 1) -> int:
        return n * m

    def variadic(*args: int, **kwargs: int) -> int:
        return args[0]

    for function in (positional, default, variadic):
        assert checkpointed(function.__name__)(function).map([3], progress=False) == [3]


def test_a_bare_decorator_is_told_to_take_a_name() -> None:
    """`@checkpointed` without one."""
    with pytest.raises(InvalidName, match=r"write @checkpointed\("):
        checkpointed(raw)  # type: ignore[call-overload]


OPTIONS = [
    ({"key": 5}, "key"), ({"durability": "often"}, "durability"), ({"on_change": "ask"}, "on_change"),
    ({"on_change": True}, "on_change"), ({"version": object()}, "version"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named"), OPTIONS, ids=[shown(options) for options, _ in OPTIONS])
def test_wrong_options_are_told_at_decoration(options: dict[str, Any], named: str) -> None:
    """And by `.options()`."""
    with pytest.raises(InvalidOption, match=named):
        checkpointed("n", **options)
    with pytest.raises(InvalidOption, match=named):
        assigned.options(**options)


def test_an_unknown_option_names_those_there_are() -> None:
    """A typing mistake is no new option."""
    with pytest.raises(InvalidOption, match="checkpoint_dir"):
        assigned.options(dir="x")


# --- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_method_is_mapped_on_its_instance() -> None:
    """Each instance has its own version: its attributes."""
    assert Scorer("a").score.map(["x"], progress=False) == ["a:x"]
    assert Scorer("b").score.map(["x"], progress=False) == ["b:x"]
    assert dict(Scorer("a").score.results) == {"x": "a:x"}
    assert asyncio.run(Scorer("a").later.map(["x"], progress=False)) == ["a:x"]
    assert len(Path("checkpoints/score_results.jsonl").read_bytes().splitlines()) == 2


def test_a_method_on_the_class_is_refused_at_once() -> None:
    """It has no instance; the message shows the call to write. The plain call is fine."""
    assert Scorer.score(Scorer("a"), "x") == "a:x"
    unbound: Any = Scorer.score
    for use in (
        lambda: unbound.map(["x"]), lambda: next(unbound.stream(["x"])), lambda: unbound.runner,
        lambda: unbound.results, lambda: asyncio.run(Scorer.later.map(["x"])),
    ):  # fmt: skip
        with pytest.raises(InvalidFunction, match=r"Scorer\(\.\.\.\)\.\w+\.map\(items\)"):
            use()
    assert os.listdir() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["class_outside", "class_inside", "static_outside", "static_inside"])
@pytest.mark.parametrize("holder", [Scorer, Scorer("a")], ids=["class", "instance"])
def test_class_and_static_methods_are_mapped_in_either_order_of_decorators(name: str, holder: Any) -> None:
    """On the class and on an instance: the same results, since neither depends on the instance."""
    method = getattr(holder, name)
    want = ["Scorer:x"] if name.startswith("class") else ["x"]
    assert [method("x")] == want
    if name == "class_inside" and sys.version_info >= (3, 13):  # from there on @classmethod tells nobody the class
        with pytest.raises(InvalidFunction, match="@checkpointed stands above @classmethod"):
            method.map(["x"], progress=False)
        return
    assert method.map(["x"], progress=False) == want
    assert method.runner.records.version == ""
    assert getattr(Scorer("b"), name).map(["x"], progress=False) == want


def test_a_method_that_takes_no_item_is_refused() -> None:
    """At the first map: at decoration, `self` could be the item of a static method."""

    class Empty:
        @checkpointed("empty")
        def method(self) -> int:
            return 1

    with pytest.raises(InvalidFunction, match="takes no item"):
        Empty().method.map([1])


@pytest.mark.slow
def test_methods_are_inherited_and_overridden() -> None:
    """`super()` calls the plain method; each has its own checkpoint."""
    child = Child("m")
    assert child.score("x") == "child m:x"
    assert child.score.map(["x"], progress=False) == ["child m:x"]
    assert super(Child, child).score.map(["x"], progress=False) == ["m:x"]
    assert dict(child.score.results) == {"x": "child m:x"}
    assert dict(Scorer("m").score.results) == {"x": "m:x"}


@pytest.mark.slow
def test_a_method_that_reads_what_cannot_be_told_needs_a_version() -> None:
    """It names the attribute and the code to write; an attribute that the method does not read is no matter."""

    class Client:
        def __init__(self) -> None:
            self.model, self.session, self.other = "m", object(), object()

        def _post(self, n: int) -> int:
            return n if self.session else 0

        @checkpointed("direct")
        def direct(self, n: int) -> int:
            return n if self.session else 0

        @checkpointed("indirect")
        def indirect(self, n: int) -> int:
            return self._post(n)

        @checkpointed("apart")
        def apart(self, n: int) -> str:
            return f"{self.model}{n}"

        @checkpointed("named", version=lambda self: self.model)
        def named(self, n: int) -> int:
            return self._post(n)

    for method in (Client().direct, Client().indirect):
        with pytest.raises(VersionNeeded, match=r"reads self\.session, a object.*version=lambda self: self\.model"):
            method.map([1])
    assert Client().apart.map([1], progress=False) == ["m1"]
    assert Client().named.map([1], progress=False) == [1]


@pytest.mark.slow
def test_a_method_with_slots_has_their_attributes_as_its_version() -> None:
    """Whether they stand in `__dict__` or not."""

    class Slotted:
        __slots__ = ("model",)

        def __init__(self, model: str) -> None:
            self.model = model

        @checkpointed("slotted")
        def run(self, n: int) -> str:
            return self.model

    assert [Slotted(model).run.map([1], progress=False)[0] for model in "aba"] == ["a", "b", "a"]


@pytest.mark.promise("secrets")
def test_a_secret_attribute_is_not_written_down() -> None:
    """A default version consists of digests."""

    class Client:
        def __init__(self) -> None:
            self.token = "s3cr3t-token"

        @checkpointed("client")
        def run(self, n: int) -> int:
            return n

    Client().run.map([1], progress=False)
    for path in Path("checkpoints").iterdir():
        assert b"s3cr3t" not in path.read_bytes()


# --- versions --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_another_version_is_computed_anew_and_the_old_one_counts_again() -> None:
    """Going back costs nothing."""
    calls: list[int] = []

    def f(n: int) -> int:
        calls.append(n)
        return len(calls)

    one, other = checkpointed("f", version="v1")(f), checkpointed("f", version={"model": "m", "t": 0})(f)
    assert [one.map([7], progress=False)[0], other.map([7], progress=False)[0]] == [1, 2]
    assert one.map([7], progress=False) == [1]
    assert one.options(version={"t": 0, "model": "m"}).map([7], progress=False) == [2]
    assert (dict(one.results), dict(other.results)) == ({7: 1}, {7: 2})
    one.clear([7])
    assert (dict(one.results), dict(other.results)) == ({}, {7: 2})


def test_a_version_function_needs_an_instance() -> None:
    """A plain function has none."""
    with pytest.raises(InvalidOption, match="there is none"):
        checkpointed("f", version=lambda self: 1)(raw).map([1])


@pytest.mark.slow
def test_a_version_function_of_a_class_method_is_given_the_class() -> None:
    """That is what it is bound to."""

    class Base:
        model = "base"

        @checkpointed("versioned", version=lambda cls: cls.model)
        @classmethod
        def run(cls, n: int) -> str:
            return cls.model

    class Derived(Base):
        model = "derived"

    assert [cls.run.map([1], progress=False)[0] for cls in (Base, Derived)] == ["base", "derived"]


@pytest.mark.slow
def test_closures_are_mapped_each_under_its_version() -> None:
    """As in a loop over models."""

    def make(model: str) -> CheckpointedFunction[[int], str]:
        @checkpointed("models", version=model)
        def run(n: int) -> str:
            return f"{model}{n}"

        return run

    assert [make(model).map([1], progress=False)[0] for model in ("a", "b", "a")] == ["a1", "b1", "a1"]


# --- pickling --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [by_name, coroutine], ids=["function", "coroutine function"])
def test_a_decorated_function_pickles_by_reference(function: Any) -> None:
    """Where its name leads back to it: the same object."""
    assert pickle.loads(pickle.dumps(function)) is function


def test_copies_and_undecorated_names_pickle_by_parts() -> None:
    """`g = checkpointed("n")(raw)`, and what `.options()` makes."""
    for function in (assigned, by_name.options(name="other"), coroutine.options(version=1)):
        back: Any = pickle.loads(pickle.dumps(function))
        assert type(back) is type(function)
        assert back.__wrapped__ is function.__wrapped__
        assert back.runner.name == function.runner.name
        assert back._self_options == function._self_options


def test_a_bound_method_pickles_with_its_instance() -> None:
    """And so it has `.map` where it arrives."""
    back = pickle.loads(pickle.dumps(Scorer("a").score))
    assert back("x") == "a:x"
    assert back.map(["x"], progress=False) == ["a:x"]


def test_copy_and_deepcopy_return_the_function_itself() -> None:
    """As for any function."""
    for function in (by_name, assigned, coroutine):
        assert copy.copy(function) is function
        assert copy.deepcopy({"f": function})["f"] is function


@pytest.mark.slow
def test_cloudpickle_keeps_map_in_a_fresh_process() -> None:
    """Of a function of `__main__`, a recursive one, a closure, a copy, and a method of a class of `__main__`."""
    run_script(
        """
        import cloudpickle
        from checkpoint import checkpointed

        @checkpointed("main")
        def main(n):
            return helper(n)

        def helper(n):
            return n if n == 0 else 1 + main(n - 1)

        def make(k):
            @checkpointed("closure")
            def inner(n):
                return n + k
            return inner

        class Holder:
            @checkpointed("method")
            def method(self, n):
                return n

        functions = [main, make(0), main.options(name="copy"), Holder().method, checkpointed("given")(helper)]
        open("pickled", "wb").write(cloudpickle.dumps(functions))
        """
    )
    told = run_script(
        """
        import pickle
        functions = pickle.load(open("pickled", "rb"))
        print(*[f(3) for f in functions], *[f.map([4], progress=False)[0] for f in functions])
        """
    )
    assert told == "3 3 3 3 3 4 4 4 4 4"


def test_cloudpickle_takes_an_imported_function_by_reference() -> None:
    """Where it has a name, the name travels."""
    assert pickle.loads(cloudpickle.dumps(by_name)) is by_name


@pytest.mark.slow
def test_a_spawned_pool_calls_the_plain_function() -> None:
    """It travels by its name, and workers write nothing."""
    told = run_script(
        """
        import multiprocessing, os
        from checkpoint import checkpointed

        @checkpointed("pooled")
        def pooled(n):
            return n * 2

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(pooled, [1, 2]), os.path.exists("checkpoints"))
        """
    )
    assert told == "[2, 4] False"


@pytest.mark.slow
def test_a_failed_map_in_a_worker_reaches_its_parent() -> None:
    """An exception that does not unpickle would leave the pool waiting for ever."""
    told = run_script(
        """
        import multiprocessing
        from checkpoint import ItemsFailed, checkpointed

        class Stubborn(Exception):
            def __init__(self, *, code):
                super().__init__(f"code {code}")

        def fails(n):
            raise Stubborn(code=n)

        def job(n):
            return list(checkpointed("worker")(fails).map([n], progress=False))

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                try:
                    pool.apply(job, (1,))
                except ItemsFailed as error:
                    print(error.exceptions[0].message, len(error.results))
        """
    )
    assert told == "code 1 1"


# --- options, seed, results, errors ----------------------------------------------------------------------------------


def test_options_make_a_copy_and_leave_the_function() -> None:
    """Any argument, `name` included."""
    calls: list[int] = []

    def body(n: int) -> int:
        calls.append(n)
        return n

    f = checkpointed("one")(body)
    g = f.options(name="two", key=lambda n: f"k{n}")
    assert f.map([1], progress=False) == g.map([1], progress=False) == [1]
    assert calls == [1, 1]
    assert (list(f.results), list(g.results)) == ([1], ["k1"])
    assert f.options().map([1], progress=False) == [1]
    assert calls == [1, 1]


@pytest.mark.slow
def test_options_of_a_method_stay_bound() -> None:
    """An instance's copy is called and mapped without the instance."""
    for holder, name in ((Scorer("a"), "score"), (Scorer, "class_outside"), (Scorer, "static_outside")):
        method = getattr(holder, name)
        copied = method.options(name="copied_" + name)
        assert copied("x") == method("x")
        assert copied.map(["x"], progress=False) == [method("x")]
        assert (copied.runner.records.store.directory / f"copied_{name}_results.jsonl").exists()


@pytest.mark.slow
def test_seeds_are_the_same_in_every_process_and_release() -> None:
    """64 bits of name and key; equal keys have equal seeds."""
    f = checkpointed("simulations")(lambda run: run)
    assert f.seed(7) == 18196424338275921620
    assert f.seed(("a", 1.0)) == f.seed(("a", True)) == 9396453063315247226
    assert f.options(version=2).seed(7) == f.seed(7) != f.options(name="others").seed(7)
    script = "from checkpoint import checkpointed; print(checkpointed('simulations')(abs).seed(7))"
    assert run_script(script, PYTHONHASHSEED="1") == "18196424338275921620"


@pytest.mark.slow
def test_seeds_are_spread() -> None:
    """No two of ten thousand are equal, and each bit is set in about half of them."""
    f = checkpointed("simulations")(lambda run: run)
    seeds = [f.seed(n) for n in range(10_000)]
    assert len(set(seeds)) == 10_000
    for bit in range(64):
        assert 4500 < sum(seed >> bit & 1 for seed in seeds) < 5500


@pytest.mark.slow
def test_results_and_errors_are_mappings_read_on_demand() -> None:
    """By key, in the order in which they were saved; they see what comes later, and nobody writes through them."""
    f = checkpointed("f", key=lambda n: f"k{n}")(lambda n: 6 // n)
    results, errors = f.results, f.errors
    assert isinstance(results, Mapping)
    assert isinstance(errors, Mapping)
    assert (len(results), list(results), dict(errors)) == (0, [], {})
    f.map([3, 0, 1], return_exceptions=True, progress=False)
    assert dict(results) == {"k3": 2, "k1": 6}
    assert list(results.items()) == [("k3", 2), ("k1", 6)]
    assert ("k3" in results, "k0" in results, "k0" in errors, results.get("k0")) == (True, False, True, None)
    assert errors["k0"].type == "ZeroDivisionError"
    assert (len(results), len(errors), list(errors)) == (2, 1, ["k0"])
    with pytest.raises(KeyError):
        results["k9"]
    with pytest.raises(KeyError):
        errors["k3"]
    with pytest.raises(TypeError):
        results["k3"] = 5  # type: ignore[index]
    assert "2 results" in repr(results)
    assert "1 errors" in repr(errors)


@pytest.mark.slow
def test_results_see_what_another_process_writes() -> None:
    """Without being opened again."""
    f = checkpointed("shared")(lambda n: n)
    results = f.results
    assert dict(results) == {}
    run_script("from checkpoint import checkpointed; checkpointed('shared')(lambda n: n * 10).map([1], progress=False)")
    assert dict(results) == {1: 10}
    assert f.map([1], progress=False) == [10]


def test_clear_forgets_all_or_some() -> None:
    """What is forgotten is computed again."""
    calls: list[int] = []
    f = checkpointed("f")(calls.append)
    f.map([1, 2], progress=False)
    f.clear([1])
    f.map([1, 2], progress=False)
    f.clear()
    f.map([1, 2], progress=False)
    assert calls == [1, 2, 1, 1, 2]


def test_the_runner_behind_a_function_is_opened_again_after_close() -> None:
    """A closed one is not handed out."""
    f = checkpointed("f")(lambda n: n)
    f.map([1], progress=False)
    assert f.runner is f.runner
    f.runner.close()
    assert f.map([1], progress=False) == [1]
    assert isinstance(f.runner, CheckpointedRunner)
    assert f.runner.name == "f"


# --- threads, forks --------------------------------------------------------------------------------------------------


def test_threads_may_map_different_functions_at_once() -> None:
    """Each has its own pass."""
    got: dict[int, list[int]] = {}
    start = threading.Barrier(4)

    def work(index: int) -> None:
        f = checkpointed(f"f{index}")(lambda n: n + index)
        start.wait()
        got[index] = list(f.map(range(50), progress=False))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {index: [n + index for n in range(50)] for index in range(4)}


def test_threads_that_map_one_function_at_once_lose_nothing() -> None:
    """One pass runs; the other ones are told so at once; afterwards all is there."""
    f = checkpointed("one")(lambda n: n)
    start = threading.Barrier(4)
    ends: list[Any] = []

    def work(index: int) -> None:
        start.wait()
        try:
            ends.append(list(f.map(range(index * 10, index * 10 + 10), progress=False)))
        except CheckpointLocked as error:
            ends.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 4
    assert any(isinstance(end, list) for end in ends)
    assert f.map(range(40), progress=False) == list(range(40))


FORK = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    from checkpoint import CheckpointError, checkpointed

    f = checkpointed("parent")(lambda n: n)
    f.map([1], progress=False)
    {before}
    child = os.fork()
    if child == 0:
        try:
            {child}
            os._exit(0)
        except CheckpointError as error:
            print(type(error).__name__, flush=True)
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status == 0, status
    {after}
"""
FORKS = [
    ("pass", "f.options(name='child').map([1], progress=False)", "", "another name in the child"),
    ("pass", "assert list(f.map([1, 2], progress=False)) == [1, 2]", "", "the same one, while the parent is idle"),
    ("pass", "assert dict(f.results) == {1: 1}", "", "reading in the child"),
    ("s = f.stream([2, 3], progress=False); next(s)", "f.map([4], progress=False)", "CheckpointLocked",
     "the same one, while the parent writes"),
    ("r = f.runner", "r.save_result(5, 5)", "StoreForked", "the parent's own runner"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.promise("fork")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on Windows")
@pytest.mark.parametrize(("before", "child", "says", "reason"), FORKS, ids=[reason for *_, reason in FORKS])
def test_a_forked_child_works_without_loss_or_is_told(before: str, child: str, says: str, reason: str) -> None:
    """And its parent goes on."""
    after = "assert list(f.map([1, 9], progress=False)) == [1, 9]" if "stream" not in before else "list(s)"
    assert run_script(FORK.format(before=before, child=child, after=after)) == says


# --- coroutines where no loop awaits them ----------------------------------------------------------------------------


async def awaited(n: int) -> int:
    """A coroutine function."""
    return n


def plainly(n: int) -> Any:
    """A plain wrapper around it."""
    return awaited(n)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"executor": "processes", "workers": 1}], ids=str)
def test_a_coroutine_behind_a_plain_wrapper_is_told_with_what_to_do(tmp_path: Path, options: dict[str, Any]) -> None:
    """Nothing is recorded of it, and nothing warns of what was never awaited."""
    f = checkpointed("plainly", checkpoint_dir=tmp_path)(plainly)
    with pytest.raises(InvalidFunction, match=r"the coroutine awaited, which nobody awaits.*put @checkpointed beneath"):
        f.map([1, 2], progress=False, **options)
    assert dict(f.errors) == {}


def test_a_map_that_no_loop_of_asyncio_awaits_is_told_with_what_to_do(tmp_path: Path) -> None:
    """As under trio, or whoever drives coroutines by hand."""
    f = checkpointed("looped", checkpoint_dir=tmp_path)(awaited)
    with pytest.raises(InvalidFunction, match=r"loop of asyncio.*asyncio\.run.*trio\.to_thread"):
        f.map([1], progress=False).send(None)
    assert not f.results


def test_a_map_under_trio_is_told_with_what_to_do(tmp_path: Path) -> None:
    """And what it says works."""
    trio = pytest.importorskip("trio")
    f = checkpointed("trio", checkpoint_dir=tmp_path)(awaited)

    async def main() -> Any:
        with pytest.raises(InvalidFunction, match="trio"):
            await f.map([1], progress=False)
        return await trio.to_thread.run_sync(lambda: asyncio.run(f.map([1], progress=False)))

    assert trio.run(main) == [1]
