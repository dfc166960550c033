"""Digests that decide whether a result counts: long enough, and those of earlier versions go on being compared."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint import DuplicateKey, InputChanged, KeyChanged, checkpointed
from checkpoint.values import keys
from checkpoint.values.digests import LOW, Digests, are_alike, are_apart, digest_from, halves_of
from checkpoint.values.keys import item_digest, item_digests


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    """The records of a journal."""
    text = (directory / "checkpoints" / f"{name}_results.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """All contents have one digest of 63 bits, as if somebody had found them."""

    class Same:
        def update(self, data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return (5 << 1).to_bytes(8, "big")

    monkeypatch.setattr(keys, "_HIGH", Same)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- long enough -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("shortened")
@pytest.mark.parametrize("lost", [(), (".j_results.index",)], ids=["with an index file", "without"])
def test_items_whose_short_digests_are_one_are_told_apart(here: Path, lost: tuple[str, ...]) -> None:
    """Fresh from memory, from the file of the index, and from the journal."""
    items = [{"id": n, "text": "a"} for n in range(50)]
    f = checkpointed("j", key="id")(lambda item: 1)
    f.map(items, progress=False)
    others = [{"id": n, "text": "b"} for n in range(50)]
    assert item_digest(items[0]) >> 64 == item_digest(others[0]) >> 64 == 5
    with pytest.raises(InputChanged, match="50 items differ"):
        f.map(others, progress=False)
    f.runner.records.store.own.results.write_index()
    f.runner.close()
    for name in lost:
        (here / "checkpoints" / name).unlink()
    again = checkpointed("j", key="id")(lambda item: 1)
    assert again.map(items, progress=False) == [1] * 50
    with pytest.raises(InputChanged, match="50 items differ"):
        again.map(others, progress=False)


@pytest.mark.usefixtures("shortened")
def test_two_items_of_one_key_are_told_apart(here: Path) -> None:
    """Those that differ do not share one result."""
    with pytest.raises(DuplicateKey):
        checkpointed("j", key="id")(lambda item: 1).map([{"id": 1, "text": "a"}, {"id": 1, "text": "b"}])


@pytest.mark.usefixtures("shortened")
def test_a_part_of_an_item_is_told_apart(here: Path) -> None:
    """As `input=` names it."""
    f = checkpointed("j", key="id", input="text")(lambda item: 1)
    f.map([{"id": 1, "text": "a", "at": 1}], progress=False)
    f.map([{"id": 1, "text": "a", "at": 2}], progress=False)
    with pytest.raises(InputChanged):
        f.map([{"id": 1, "text": "b", "at": 2}], progress=False)


@pytest.mark.usefixtures("shortened")
def test_versions_whose_short_digests_are_one_are_told_apart(here: Path) -> None:
    """Each is named by 127 bits."""
    one, other = (checkpointed("j", version=version)(lambda n: n) for version in "ab")
    one.map([1], progress=False)
    assert other.plan([1]).done == 0


def test_what_is_on_disk_has_128_bits(here: Path) -> None:
    """Version, attributes of an instance within it, code, values and input."""

    class Client:
        def __init__(self) -> None:
            self.model = "small"

        @checkpointed("instance", key="id")
        def run(self, item: dict[str, Any]) -> str:
            return self.model

    Client().run.map([{"id": 1}], progress=False)
    (line,) = lines(here, "instance")
    assert [len(line[field]) for field in ("version", "input", "code")] == [32, 32, 2 + 32 + 1 + 32]
    assert [len(part) for part in line["value"]["instance"].values()] == [32]


# --- those of earlier versions ---------------------------------------------------------------------------------------


def test_an_item_that_is_another_than_that_of_an_old_record(old: dict[str, Any], tmp_path: Path) -> None:
    """A short digest is compared as far as it goes."""
    job = old["jobs"](tmp_path / "checkpoints")[1]
    assert {len(line["input"]) for line in lines(tmp_path, "versioned")} == {16}
    with pytest.raises(InputChanged, match="4 items differ"):
        job.map([{**item, "text": "another"} for item in old["ITEMS"]], progress=False)
    assert job.accept(old["ITEMS"]) == 0  # they are of these


def test_an_old_version_goes_on_under_its_name(old: dict[str, Any], tmp_path: Path) -> None:
    """One version has one name in a checkpoint; what is added has long digests of its items."""
    job = old["jobs"](tmp_path / "checkpoints")[1]
    job.map([*old["ITEMS"], {"id": 99, "text": "one more"}], progress=False)
    found = lines(tmp_path, "versioned")
    assert len({line["version"] for line in found}) == 1
    assert [len(line["input"]) for line in found] == [16, 16, 16, 16, 32]
    assert (old["CALLS"], job.results[99]) == ([99], 990)


def test_an_old_name_of_a_version_is_believed_where_its_value_is_that(
    old: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal has the value, and it is compared in full."""
    job = old["jobs"](tmp_path / "checkpoints")[1]
    short = keys.earlier_digests({"prompt": "Say it", "model": "small"})
    monkeypatch.setattr("checkpoint.catalog.checkpoint.earlier_digests", lambda _: short)
    assert job.plan(old["ITEMS"]).done == 4
    assert job.options(version={"prompt": "Say it not", "model": "small"}).plan(old["ITEMS"]).done == 0


def test_inputs_of_old_records_are_found_under_other_keys(old: dict[str, Any], tmp_path: Path) -> None:
    """A key function that has changed is noticed."""
    job = old["jobs"](tmp_path / "checkpoints")[1].options(key=lambda item: f"key {item['id']}")
    with pytest.raises(KeyChanged, match="under other keys"):
        job.map(old["ITEMS"], progress=False)


# --- how they are kept -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        ("0" * 16, 0),
        ("1" * 16, 0x1111111111111111 << 64),
        ("1" * 32, int("1" * 32, 16)),
        ("0", 0),
        ("-1", (2**64 - 1) << 64),
    ],
)
def test_digests_in_records(text: str, digest: int) -> None:
    """Those of 16 digits are upper halves; whatever stands in a line is 128 bits."""
    assert digest_from(text) == digest


def test_what_is_alike() -> None:
    """A short digest is the beginning of a long one; two long ones must be equal."""
    long = item_digest({"a": 1})
    assert are_alike(long, long)
    assert are_alike(long >> 64 << 64, long)
    assert not are_alike(long, long ^ 1)
    assert not are_alike((long >> 64) + 1 << 64, long)


def test_many_digests() -> None:
    """They come back from bytes as they were."""
    several = list(item_digests([{"a": n} for n in range(5)]))
    kept = Digests([one >> 64 for one in several], [one & (1 << 64) - 1 for one in several])
    assert list(kept) == list(Digests.of(kept.tobytes())) == several
    assert list(kept.part(slice(1, 3)) + kept.part(slice(0, 1))) == [*several[1:3], several[0]]
    kept.put(slice(0, 2), kept.part(slice(3, 5)))
    kept[2] = 7
    assert [*kept] == [*several[3:5], 7, *several[3:5]]
    assert [list(Digests.none(2)), len(Digests.none(3))] == [[0, 0], 3]
    halves = halves_of(b"".join(one.to_bytes(16, "big") for one in several))
    assert list(Digests(*halves)) == several


@pytest.mark.slow
@given(
    st.lists(st.integers(0, 3).map(lambda n: n * 0x0101010101010101) | st.integers(0, LOW), max_size=20),
    st.sets(st.integers(0, 3).map(lambda n: n * 0x0101010101010101) | st.integers(0, LOW), max_size=12),
)
def test_halves_are_found_as_a_set_finds_them(halves: list[int], wanted: set[int]) -> None:
    """`are_apart` says what `isdisjoint` says, whichever bytes stand beside each other."""
    assert are_apart(wanted, array("Q", halves)) is wanted.isdisjoint(halves)
    assert not are_apart({5}, array("Q", [*halves, 5]))


def test_digests_of_many_are_those_of_each() -> None:
    """Whether all are exactly JSON, and are spelled at once, or some hold what JSON does not."""
    plain = [{"b": number, "a": [number, {"q": str(number)}], "é\n": None} for number in range(50)]
    odd = [(1, 2), {"$a": 1}, {"x": {1, 2}}, {"n": float("nan")}, {"k": 2**70}, object(), True, 1.0, "\ud800", b"x"]
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    several: list[list[Any]] = [[], plain, [1, "a"], ["a\nb", 2**80], *([*plain[:3], one] for one in [*odd, deep])]
    for items in several:
        assert list(item_digests(items)) == [item_digest(item) for item in items]
