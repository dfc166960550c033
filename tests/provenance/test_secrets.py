"""Which values are secrets, what is written and shown of them, and how their digests are made."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from checkpoint import FunctionChanged, checkpointed
from checkpoint.cli import main
from checkpoint.provenance.fingerprint import changes, fingerprint
from checkpoint.provenance.spelling import value_of
from checkpoint.values.keys import wide_digest_of
from checkpoint.values.secrets import SECRET, difference, is_secret, sealed

# --- which -----------------------------------------------------------------------------------------------------------

BASE64 = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc"

SECRETS: list[tuple[str, Any, str]] = [
    ("PASSWORD", "hunter2", "the name"),
    ("db_password", "hunter2", "its last word"),
    ("userPassword", "hunter2", "in camel case"),
    ("cfg.db_password", b"hunter2", "of an attribute, in bytes"),
    ("cfg['password']", "hunter2", "of an entry"),
    ("connect(password)", "hunter2", "of an argument"),
    ("depends[api_key]", "abc", "of a dependency"),
    ("login[0]", "hunter2", "a part says nothing, and the whole does"),
    ("PASSWORD_NUM", 48151623, "a number that has the name of a password"),
    ("OTP_SEED", 31415.9, "or of what makes such numbers"),
    ("PIN", 4711, "a number"),
    ("API_KEY", "abc", "a key to something"),
    ("privateKey", "abc", "in camel case"),
    ("TOKEN", "abc", "alone"),
    ("pw", "hunter2", "short for it"),
    ("pass", "hunter2", "short for it"),
    ("api_keys", ["abc"], "several"),
    ("SIGNING_KEY", b"abc", "bytes"),
    ("my_secret", ["a"], "within a container"),
    ("CFG", {"user": "me", "pass": "tr0ub4dor"}, "an entry has the name"),
    ("HEADERS", [{"headers": {"Authorization": "Bearer abcdefgh"}}], "at any depth"),
    ("conn", ("host", "root", "toor123"), "what opens a connection"),
    ("seed_phrase", "correct horse battery staple", "words without grammar"),
    ("a", "postgres://me:pw@host/db", "a URL with a password"),
    ("a", "sftp://me:pa/ss@host/x", "with a slash in it"),
    ("a", "Server=h;Pwd=zz9", "a connection string"),
    ("a", '{"db_password": "x"}', "JSON as a text"),
    ("a", "Client(token='abc1', n=1)", "an object as it is spelled"),
    ("a", "Authorization: Bearer abc", "a header"),
    ("a", f"curl -H 'Bearer {JWT}'", "a text that contains one"),
    ("a", "https://h/v1?k=a8f5f167", "a URL's parameter"),
    ("a", "https://hooks.example/T0A1B2/x8YzQw", "an address that whoever knows it may use"),
    ("a", "-----BEGIN PRIVATE KEY-----\nMIIEvQ==\n", "PEM"),
    ("a", "sk-live-abc", "a known beginning"),
    ("a", "call it with ghp_16C7e42F292c6912E7710c838347Ae178B4a", "within a text"),
    ("a", "glpat-x9Xx9Xx9Xx", "a known beginning"),
    ("a", "AKIAIOSFODNN7EXAMPLE", "a known beginning"),
    ("a", "AIzaSyD-9tSrke72PouQMnMX-a7eZSW0jkFMBWY", "a known beginning"),
    ("a", "xoxb-1234-abcd", "a known beginning"),
    ("a", "hf_aBcDeFgHiJkLmNoPq", "a known beginning"),
    ("a", "110201543:AAHdqTcvCH1vGWJxfSeofSA", "a bot's"),
    ("a", JWT, "signed"),
    ("a", BASE64, "random"),
    ("a", "x9Fk2LmQ8vZt4RbN7cYw", "random"),
    ("a", "tr0ub4dor3", "a word with digits for letters"),
    ("PGPASSWORD", "hunter", "a part of a word"),
    ("userpass", "hunter", "a part of a word"),
    ("SECRETKEY", "hunter", "two words without a sign between them"),
    ("accesstoken", "hunter", "two words without a sign between them"),
    ("api_key_prod", "hunter", "what follows says where it is used"),
    ("TOTP_SEED", "JBSWY3DPEHPK3PXP", "what makes one-time passwords"),
    ("x", (("password", "abc"),), "a pair"),
    ("title_key", "x9Fk2", "no word"),
    ("a", "curl -u admin:hunter https://h", "an argument of a command"),
    ("a", "PGPASSWORD=abc psql", "a variable that is set"),
]

NONE: list[tuple[str, Any, str]] = [
    ("key", "id", "what sorts or names"),
    ("key", 1, "a number"),
    ("keys", ["a", "b"], "names of fields"),
    ("sort_key", "date", "a column"),
    ("tokenizer", "gpt2", "another word"),
    ("compass", "north", "another word"),
    ("secretary", "Jo", "another word"),
    ("author", "Ann Bee", "another word"),
    ("bypass", "yes", "another word"),
    ("max_tokens", 100, "a number"),
    ("max_tokens", "100", "a number as a text"),
    ("n_tokens", 5, "a number"),
    ("token", 5, "a number"),
    ("token_count", 7, "a number"),
    ("passes", 3, "a number"),
    ("api_key", True, "a bool"),
    ("api_key", None, "nothing"),
    ("api_key", "", "nothing"),
    ("api_key", "{key}", "what a key is put into"),
    ("eos_token", "</s>", "of a model's vocabulary"),
    ("pad_token", "<pad>", "of a model's vocabulary"),
    ("key", "Summarize the following text", "a prompt"),
    ("token", "Summarize the following text", "a prompt"),
    ("password_prompt", "Rate this password", "about passwords"),
    ("token_url", "https://example.org/token", "about tokens"),
    ("search_phrase", "what is the best of it", "words with grammar"),
    ("a", "Return the key points, within the budget of tokens", "a prompt"),
    ("a", 'Return JSON: {"answer": "...", "key": "..."}', "a prompt"),
    ("a", "SELECT id, key FROM t WHERE token = 'x' AND n=3", "a query"),
    ("a", "use sk-learn to fit", "a package"),
    ("a", "claude-3-5-sonnet-20241022", "a model"),
    ("a", "meta-llama/Meta-Llama-3.1-70B-Instruct-Turbo", "a model"),
    ("a", "mistralai/Mixtral-8x22B-Instruct-v0.1", "a model"),
    ("a", "/home/me/projects/Data2024/runs_v12/Experiment03", "a path"),
    ("a", "9f86d081884c7d659a2feaa0c55ad0159f86d081", "a commit"),
    ("a", "550e8400-e29b-41d4-a716-446655440000", "an id"),
    ("a", "https://api.example.com:8080/v1/chat/completions", "an address"),
    ("a", "s3://bucket/prefix/2024-01-01T00:00:00Z", "an address"),
    ("a", "InstructionTunedModelNameForEvaluation2024", "words"),
    ("a", "x=1, top_k=4, max_tokens=5", "numbers"),
    ("GPIO_PIN", 17, "a place on a board"),
    ("pin", "left", "a side"),
    ("labels", {"pass": "PASS", "fail": "FAIL"}, "a verdict"),
    ("weights", {"secret": 0.5, "password": 1.0}, "small numbers"),
    ("counts", {"password": 3}, "small numbers"),
    ("schema", {"password": "string", "api_key": "object"}, "types"),
    ("title_key", "title", "a column"),
    ("lookup_key", "name", "a column"),
    ("music_key", "C minor", "of music"),
    ("yes_token", "yes", "of a prompt"),
    ("separator_token", "|||", "of a prompt"),
    ("a", "Reply with key=value lines e.g. token=abc", "a prompt"),
    ("a", "password=required; token=optional", "a prompt"),
    ("search_phrase", "best pizza near town", "of a search"),
    ("seed", "big red dog barks", "of a story"),
    ("salt", "NaCl", "of a kitchen"),
    ("cookie", "chocolate chip", "of a kitchen"),
    ("auth", "none", "a choice"),
    ("a", "sk-means", "a name"),
    ("a", "git+ssh://git@github.com/a/b.git", "a user without a password"),
    ("a", "https://x.com/?code=1234", "a short number"),
    ("a", "top5per3day", "a name"),
]  # fmt: skip


@pytest.mark.promise("secrets")
@pytest.mark.parametrize(("name", "value", "why"), SECRETS, ids=[f"{name}-{why}" for name, _, why in SECRETS])
def test_what_is_a_secret(name: str, value: Any, why: str) -> None:
    """By the words of its name and the type of the value, or by its shape."""
    assert is_secret(name, value), why
    told = value_of(name, value)
    assert told is not None
    assert told.shown == SECRET


@pytest.mark.parametrize(("name", "value", "why"), NONE, ids=[f"{name}-{why}" for name, _, why in NONE])
def test_what_is_none(name: str, value: Any, why: str) -> None:
    """A message that hides what is none takes from the user what he must know to decide."""
    assert not is_secret(name, value), why


def test_looking_ends_whatever_the_value_is() -> None:
    """A container is looked at in part, and of a long text both ends."""
    nested: Any = "x"
    for _ in range(12):
        nested = [nested] * 1000
    assert not is_secret("a", nested)
    assert not is_secret("a", "a=1 " * 1_000_000)
    assert is_secret("a", "x " * 1_000_000 + "sk-live-abcdefgh12345678")


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("n", "1", "2", "n: 1 → 2"),
        ("API_KEY", SECRET, SECRET, "API_KEY: a secret that changed"),
        ("API_KEY", "'abc'", SECRET, "API_KEY: a secret that changed"),
        ("a", "'sk-live-abc'", "'none'", "a: a secret that changed"),
        ("a", SECRET, "'none'", "a: a secret that changed"),
        ("pw", "'hunter2'", "not there", "pw: a secret that changed"),
    ],
)
def test_a_secret_that_changed_is_told_by_its_name(name: str, old: str, new: str, told: str) -> None:
    """Also where an earlier version of the library wrote it down."""
    assert difference(name, old, new) == told


# --- what is on disk -------------------------------------------------------------------------------------------------

BODY = """
from checkpoint import checkpointed
API_KEY = {key!r}
PIN = 4711
DB = "postgres://u:hunter2@h/db"
CFG = {{"user": "me", "pass": "tr0ub4dor"}}
def connect(name, password="", hook="", token="a-default"):
    return str((name, password, hook, token))
@checkpointed("job", on_change="error")
def f(x, *, session_token="kwsecret99"):
    told = "the address is https://hooks.example.org/T0A1B2/x8YzQw and no other"
    return len(connect(DB, password="swordfish", token=API_KEY) + str(PIN) + str(CFG) + told)
"""
WORDS = ("sk-live-abc", "4711", "hunter2", "tr0ub4dor", "a-default", "kwsecret99", "x8YzQw", "swordfish")


def job(directory: Path, key: str = "sk-live-abc", *, body: str = BODY) -> Any:
    """The function of a program."""
    path = directory / "job.py"
    path.write_text(body.format(key=key))
    return runpy.run_path(str(path))["f"]


def written(directory: Path) -> str:
    """All that is in the files of the checkpoints."""
    return "".join(path.read_text() for path in (directory / "checkpoints").iterdir())


def details(directory: Path) -> list[Any]:
    """What fingerprints stand for, by the journal."""
    lines = (directory / "checkpoints" / "job_results.jsonl").read_text().splitlines()
    return [line["detail"] for line in map(json.loads, lines) if "detail" in line]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.promise("secrets")
def test_no_secret_is_in_a_file(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in meta nor in journals, as a global, a default, a parameter or a part of a text; nor in the logs."""
    with caplog.at_level(logging.DEBUG, "checkpoint"):
        job(here).map([1], progress=False)
    assert [word for word in WORDS if word in written(here) + caplog.text] == []


@pytest.mark.promise("secrets")
def test_no_digest_of_a_secret_is_a_plain_one(here: Path) -> None:
    """A word list does not find it: what is on disk is a scrypt of it, as is whatever comprises it."""
    found = job(here)
    found.map([1], progress=False)
    (detail,) = details(here)
    for name, value in (("API_KEY", "sk-live-abc"), ("PIN", 4711), ("password", "swordfish")):
        like = value_of(name, value)
        assert like is not None
        assert like.digest not in written(here)
        assert hashlib.blake2b(repr(value).encode(), digest_size=16).hexdigest() not in written(here)
    assert detail["values"]["PIN"][1] == SECRET
    code = found._fingerprint()
    assert code.digest in written(here)
    assert code.unsealed not in written(here)
    assert code.unsealed.rpartition("-")[2] not in written(here)


@pytest.mark.promise("secrets")
def test_another_secret_is_told_by_its_name(here: Path) -> None:
    """As an error before anything is paid, in plan, and in the command's words."""
    job(here).map([1], progress=False)
    other = job(here, "sk-live-xyz")
    with pytest.raises(FunctionChanged, match="API_KEY: a secret that changed") as refused:
        other.map([1], progress=False)
    told = str(refused.value) + str(other.plan([1])) + "".join(refused.value.changes)
    assert [word for word in (*WORDS, "sk-live-xyz") if word in told] == []
    job(here).map([1], progress=False)  # it is what it was


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ('password="swordfish"', 'password="marlin"', "password.* a secret that changed"),
        ("x8YzQw and", "y9YzQw and", "told in f.*: a secret that changed"),
        ('"a-default"', '"b-default"', "token.*: a secret that changed"),
    ],
)
def test_a_literal_that_is_a_secret_is_told_by_its_name(here: Path, old: str, new: str, told: str) -> None:
    """One that stands in the code."""
    job(here).map([1], progress=False)
    with pytest.raises(FunctionChanged, match=told) as refused:
        job(here, body=BODY.replace(old, new)).map([1], progress=False)
    assert [word for word in (*WORDS, "marlin", "y9YzQw", "b-default") if word in str(refused.value)] == []


@pytest.mark.slow
def test_shards_that_begin_at_once_agree(here: Path) -> None:
    """The salt is the name of the checkpoint: there is nothing to agree on."""
    job(here)
    script = "import runpy; runpy.run_path('job.py')['f'].map(range(6), shard=({0}, 3), progress=False)"
    running = [
        subprocess.Popen([sys.executable, "-c", script.format(shard)], cwd=here, env={**os.environ})
        for shard in range(3)
    ]
    assert [one.wait() for one in running] == [0, 0, 0]
    lines = [json.loads(line) for path in here.rglob("*_results.jsonl") for line in path.read_text().splitlines()]
    assert len(lines) == 6
    assert len({line["code"] for line in lines}) == 1
    assert len({json.dumps(line["detail"]["values"]) for line in lines if "detail" in line}) == 1


def test_two_checkpoints_have_two_digests_of_one_secret() -> None:
    """A table made for one does not serve for the other."""
    assert sealed("ab", "job") != sealed("ab", "other")
    assert len(sealed("ab", "job")) == 32


def test_a_checkpoint_under_another_name_is_of_the_same_values(here: Path) -> None:
    """A copy: the detail says by which salt its digests were made."""
    job(here).map([1], progress=False)
    for path in list((here / "checkpoints").glob("job_*")):
        shutil.copy(path, path.with_name(path.name.replace("job_", "copy_")))
    copy = job(here).options(name="copy")
    assert copy.map([1], progress=False) == job(here).map([1], progress=False)
    assert copy.plan([1]).changes == ()
    with pytest.raises(FunctionChanged, match="API_KEY: a secret that changed"):
        job(here, "sk-live-xyz").options(name="copy").map([1], progress=False)


def test_compaction_keeps_what_the_secrets_were(here: Path) -> None:
    """And a lost meta file loses nothing."""
    job(here).map([1, 2], progress=False)
    job(here).clear([2])
    assert main(["compact", "job"]) == 0
    (here / "checkpoints" / "job_meta.json").unlink()
    assert job(here).plan([1]).changes == ()
    with pytest.raises(FunctionChanged, match="API_KEY: a secret that changed"):
        job(here, "sk-live-xyz").map([1], progress=False)


def test_a_version_that_holds_a_secret_is_not_written_down(here: Path) -> None:
    """Its results are known by its digest."""
    f = checkpointed("v", version={"prompt": "Say it", "api_key": "sk-live-abc"})(lambda n: n)
    f.map([1], progress=False)
    assert "sk-live-abc" not in written(here)
    assert f.plan([1]).done == 1
    assert f.options(version={"prompt": "Say it", "api_key": "sk-live-xyz"}).plan([1]).done == 0


def test_a_function_without_secrets_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is as it always was."""
    monkeypatch.setattr("checkpoint.values.secrets.scrypt", lambda *_, **__: pytest.fail("it was called"))
    model = "small"
    found = fingerprint(lambda n: f"{model} {n}", salt="job")
    assert found is not None
    assert found.digest == found.unsealed
    assert "salt" not in found.detail()


# --- checkpoints of earlier versions ---------------------------------------------------------------------------------


def test_what_was_written_with_plain_and_short_digests_counts(
    old: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is computed anew, and nothing is told: of secrets, versions, instances and inputs."""
    with caplog.at_level(logging.INFO, "checkpoint"):
        for job in old["jobs"](tmp_path / "checkpoints"):
            plan = job.plan(old["ITEMS"])
            assert (plan.done, plan.new, plan.changes) == (4, 0, ())
            assert len(job.map(old["ITEMS"], progress=False)) == 4
    assert old["CALLS"] == []
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_secret_that_is_another_than_that_of_an_old_checkpoint(old: dict[str, Any], tmp_path: Path) -> None:
    """It is known by the plain digest."""
    old["secretive"].__globals__["API_KEY"] = "sk-live-xyz"
    with pytest.raises(FunctionChanged, match=r"API_KEY: a secret that changed\. Nothing was run"):
        old["jobs"](tmp_path / "checkpoints")[0].map(old["ITEMS"], progress=False)


def test_what_follows_an_old_record_leaves_nothing_to_decide(
    old: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command, which has no function to ask, is told by the journal that both digests are of one code."""
    job = old["jobs"](tmp_path / "checkpoints")[0]
    job.map([*old["ITEMS"], {"id": 99, "text": "one more"}], progress=False)
    assert old["CALLS"] == [99]
    assert main(["show", "secretive"]) == 0
    assert "nobody has decided" not in capsys.readouterr().out


def test_an_old_detail_is_compared_by_plain_digests(old: dict[str, Any], tmp_path: Path) -> None:
    """Also where something else has changed: only that is told."""
    line = json.loads((tmp_path / "checkpoints" / "secretive_results.jsonl").read_text().splitlines()[0])
    old["secretive"].__globals__["PROMPT"] = "Say it again"
    code = fingerprint(old["secretive"], salt="secretive")
    assert code is not None
    assert changes(line["code"], line["detail"], code).values == ["PROMPT: 'Say what it is' → 'Say it again'"]


def test_a_secret_within_an_attribute_is_slow_to_try(tmp_path: Path) -> None:
    """The version of an instance holds digests of its attributes: that of one that holds a secret is not on disk."""

    class Client:
        def __init__(self, password: str) -> None:
            self.cfg = {"password": password}

        @checkpointed("j", checkpoint_dir=tmp_path)
        def call(self, item: int) -> bool:
            return bool(self.cfg["password"])

    Client("hunter2").call.map([1], progress=False)
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    plain = wide_digest_of(b'{"password":"hunter2"}')
    assert f"{plain:032x}"[:16].encode() not in written
    assert b"hunter2" not in written
    assert Client("hunter2").call.plan([1]).done == 1
    assert Client("hunter3").call.plan([1]).done == 0


def test_a_secret_is_no_version_that_a_message_proposes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it proposes is to ignore the secret, or a version by another name."""
    monkeypatch.setitem(globals(), "SERVICE_KEY", "a1")
    f = checkpointed("j", checkpoint_dir=tmp_path)(asks_a_service)
    f.map([1], progress=False)
    monkeypatch.setitem(globals(), "SERVICE_KEY", "b2")
    with pytest.raises(FunctionChanged) as refused:
        checkpointed("j", checkpoint_dir=tmp_path)(asks_a_service).map([1], progress=False)
    message = str(refused.value)
    assert "SERVICE_KEY: a secret that changed" in message
    assert "ignore='SERVICE_KEY'" in message
    assert "version=SERVICE_KEY" not in message


SERVICE_KEY = ""


def asks_a_service(item: int) -> bool:
    """Read a secret."""
    return bool(SERVICE_KEY)
