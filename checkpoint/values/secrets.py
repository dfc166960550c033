"""Tell which values are secrets, by name or by shape, and make digests of them that are slow to try.

The promise: a value that is a secret by this rule is neither written to disk in plain nor shown in a message, which
says "a secret that changed" and its name; and whoever has the files pays a memory-hard function (scrypt) for each
password that he tries, and pays it again for each checkpoint. Numbers, prompts, paths, names of models, dates and ids
are no secrets because a name says `key` or `tokens`.

The salt is the checkpoint's name, and a detail in the journal says it. So all shards that begin at once on many
machines have one salt without talking to each other, and copies, mirrors and compaction cannot lose it. It is no secret
itself: it keeps a table that was made for one checkpoint from serving for another one, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import scrypt
from itertools import islice
from math import ceil
from typing import Any, Final

from checkpoint.errors import quote

__all__ = ["SECRET", "difference", "is_opaque", "is_secret", "is_secret_text", "mark", "quoted", "sealed"]

SECRET: Final = "a secret"
"""How messages and details show a value that is one."""

_MOST_PARTS = 1000  # of a container that is looked at
_MOST_TEXT = 4096  # characters at either end of a text

# --- by name ---------------------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Names that hold one of these are of a secret whatever the value is, a number too.
_STRONG = _words("""
    password passwords passwd pwd passphrase passphrases passcode passcodes secret secrets pin otp totp hotp cvv
""")
_STRONG_PARTS = re.compile(  # of a word: "PGPASSWORD", "mypassword1", "userpass"
    r"passw(?:or)?d|passphrase|passwort|kennwort|^(?:user|db|my|root|admin|smtp|mail|ssh|login)pass$"
)
# Names that hold one of these are of a secret where the value is text that is no word.
_WEAK = _words("""
    credential credentials creds cred auth cookie cookies dsn salt jwt sas webhook login conn
""")
_OF_TEXT = _words("authorization authentication bearer pw")  # where it is any text
_WEAK_PARTS = re.compile(r"(?:api|secret|private|access|auth|priv|signing)_?(?:key|token)s?$")  # "accesstoken"
# So are names that end in one of these; behind one of _OF_ACCESS also where the text is a word.
_LAST = _words("key token pass")
_OF_ACCESS = _words("""
    api access auth private secret bot refresh session signing client service account license subscription master
    encryption hmac ssh gpg app consumer storage shared deploy admin pair openai anthropic google aws azure hf
""")
_PLURALS = _words("keys tokens")
# A name that ends in one of these is about a secret, and is none.
_ABOUT = _words("""
    prompt prompts template instruction instructions message question query pattern regex re field fields column columns
    name names header label path file filename dir folder length len count size limit min max type kind url uri endpoint
    env var variable policy model tokenizer encoder strength required enabled expires ttl timeout scheme method mode
    schema format version
""")
_AT_THE_END = _words("prod dev staging live value val str raw b64 hex new old current backup")  # "api_key_prod"
_PHRASES = _words("phrase mnemonic")  # of words without grammar, from which a key is made
_OF_PHRASES = _words("seed pass recovery backup wallet secret")
_USERS = _words("user username u login email host")  # "pass" is a password beside one of these
_TYPES = _words("""
    string str object int integer float number bool boolean text varchar category bytes date datetime null none any
    required optional hidden true false yes no on off
""")
_GRAMMAR = _words("a an and are as at be by for from in is it of on or that the this to was what which who with you")
_NUMBERS = (int, float, complex)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_PART_OF_NAME = re.compile(r"[.\[\]()'\"]+")
_PHRASE = re.compile(r"[a-z]+(?: [a-z]+){3,}")
_PROSE = re.compile(r"(?:[^\W\d]{2,}[,.:;!?)]*\s+){2}\S")  # three words
_STANDS_FOR = re.compile(r"[<\[{$%].*|\s*", re.S)  # "<pad>", "{token}", "$TOKEN"


_SEED, _PIN = -1, 3


@lru_cache(maxsize=4096)
def _says_secret(name: str) -> float:
    """3 or 2: whatever the value is; 1: where it is text; 0.5: where it is text and no word; 0: no.

    3 is of a PIN, which has four digits at least, and `_SEED` of words without grammar.
    """
    parts = [part for part in _PART_OF_NAME.split(name) if part]
    words = [word.lower() for word in _WORDS.findall(parts[-1])] if parts else []
    if len(parts) > 1 and all(len(word) < 2 for word in words):  # `creds[0]`, `login.p`
        words = [word.lower() for word in _WORDS.findall(parts[-2])]
    if len(words) > 1 and words[-1] in _AT_THE_END:
        words.pop()
    if not words or words[-1] in _ABOUT:
        return 0
    *before, last = words
    if not _STRONG.isdisjoint(words) or any(map(_STRONG_PARTS.search, words)):
        return _PIN if "pin" in words else 2
    if any(map(_WEAK_PARTS.search, words)) or not _OF_TEXT.isdisjoint(words):
        return 1
    if not _WEAK.isdisjoint(words):
        return 0.5
    if last in _PHRASES and (not before or before[-1] in _OF_PHRASES):
        return _SEED
    if last in _LAST:
        return (last != "key") if not before else 1 if before[-1] in _OF_ACCESS else 0.5
    return int(last in _PLURALS and bool(before) and before[-1] in _OF_ACCESS)


def _is_by_name(name: str, value: Any) -> bool:
    told = _says_secret(name)
    if not told:
        return False
    if type(value) is str and told < 2:
        if told == _SEED:
            return _PHRASE.fullmatch(value) is not None and _GRAMMAR.isdisjoint(value.split())
        if _PROSE.match(value):
            return False
    return any(_may_be(part, told) for _, part in _within(name, value))


def _may_be(value: Any, told: float) -> bool:
    """Whether a value that is no container is a secret where its name says so."""
    kind = type(value)
    if told == _SEED:
        return False
    if kind is str:
        if told == _PIN:
            return len(value) >= 4 and value.isdecimal()
        if _STANDS_FOR.fullmatch(value) is not None or value.lower() in _TYPES:
            return False
        return told >= 1 or _is_no_word(value)
    if kind is bytes:
        return len(value) > 0
    return told >= 2 and kind is not bool and issubclass(kind, _NUMBERS) and abs(value) >= _LEAST_NUMBER


def _is_no_word(text: str) -> bool:
    """Whether digits or signs stand among letters, or very many letters in a row; spaces are no signs."""
    begin = text[:200]
    letters = sum(map(str.isalpha, begin))
    if letters == len(begin):
        return letters >= 16
    inner = begin.strip(" .,:;!?")
    return letters > 0 and any(not (sign.isalpha() or sign in " _") for sign in inner)


_LEAST_NUMBER = 1000  # smaller ones count or weigh something


def _within(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """(name, value) of a value and of its parts, as far as they are builtins, and no more than some of them."""
    todo = [(name, value)]
    for _ in range(_MOST_PARTS):
        if not todo:
            return
        name, value = todo.pop()
        kind = type(value)
        if kind not in (str, bytes) and issubclass(kind, (str, bytes)):
            value = str.__str__(value) if issubclass(kind, str) else bytes.__getitem__(value, slice(None))
        yield name, value
        if kind is dict:
            entries = [(key if type(key) is str else "", part) for key, part in islice(value.items(), _MOST_PARTS)]
            if "pass" in value and _USERS.isdisjoint(key for key, _ in entries):
                entries = [("" if key == "pass" else key, part) for key, part in entries]
            todo += entries
        elif kind in (list, tuple, set, frozenset):
            todo += [("", part) for part in islice(value, _MOST_PARTS)]
            if kind in (list, tuple) and len(value) == 2 and type(value[0]) is str and _says_secret(value[0]) >= 2:
                todo.append((value[0], value[1]))


# --- by shape --------------------------------------------------------------------------------------------------------

_SHAPE = re.compile(
    r"""
    -----BEGIN\ [A-Z0-9 ]+-----
    | \w://(?:[^/\s@:]*:[^/\s@]|[\w-]{20,})[^/\s@]*@             # a URL with a password, or with a key for a user
    | \bcurl\b.*\s(?:-u|--user)[\s=]*[^\s:]+:\S
    | \w://[^\s:/@]*:(?!\d+/)[^\s@]+@                           # a password with a slash in it
    | ^(?:sk|pk|rk)[-_](?:live|test|proj|ant|or|svcacct)[-_]\S+$
    | (?<![A-Za-z0-9])(?:sk|pk|rk)[-_](?=[\w-]*\d)[\w-]{16,}
    | (?<![A-Za-z0-9])(?:gh[pousr]_\w{6}|github_pat_\w|glpat-\w|xox[abeoprs]-\w|xapp-\w|(?:AKIA|ASIA)[0-9A-Z]{12}
        |AIza[\w-]{10}|ya29\.\w|hf_[A-Za-z0-9]{16}|npm_[A-Za-z0-9]{16}|pypi-[\w-]{16}|SG\.[\w-]{16}|dop_v1_\w|nvapi-\w
        |gsk_[A-Za-z0-9]{16}|AGE-SECRET-KEY-|eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*|\d{6,12}:[\w-]{14})
    | \bAuthorization:\s*\S | \bBearer\s+(?=\S*[\d._~+/=-]\S)\S{6} | \bBasic\s+(?=\S*[\d=])[A-Za-z0-9+/]{6}
    | (?<!\w)(?=\w{8})(?i:[a-z]+[0134][a-z]{1,3}[0134][a-z]+)\d*(?!\w)    # a word with digits for letters
    | https?://hooks?\.\S+/\S | /api/webhooks/\S
    | [?&](?i:k|api_?key|key|token|\w*_token|sig|\w*signature|secret|\w*_secret|pass|password|pwd|auth|code|sas)
        =(?=[^&\s]*\d)[^&\s{<$]{6}
    """,
    re.X,
)
_ASSIGNED = re.compile(r"""(\w+)(?:=|['"]\s*:\s*)(['"]?)([^\s'",;&(){}\[\]<$%]+)""")  # name=value, "name": "value"
_RUN = re.compile(r"[A-Za-z0-9]{16,}")
_LONG_RUN = re.compile(r"[A-Za-z0-9+/_=-]{20,}")
_AWS = re.compile(r"(?=.*\d)(?=.*[a-z])(?=.*[A-Z])[A-Za-z0-9+/]{40}")  # of Amazon, with slashes in it
_HEX = re.compile(r"[0-9a-f]+|[0-9A-F]+")
_CHUNK = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_OPAQUE = re.compile(r"(?=[A-Za-z]*\d)[A-Za-z0-9]{20}|[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@lru_cache(maxsize=4096)
def _is_shaped(text: str) -> bool:
    if _SHAPE.search(text):
        return True
    if "=" in text or ":" in text:
        for name, _, value in _ASSIGNED.findall(text):
            if (_says_secret(name) >= 2 or _is_no_word(value)) and _is_by_name(name, _number_or(value)):
                return True
    return any(_is_random(run) for run in _LONG_RUN.findall(text))


def _number_or(text: str) -> Any:
    return int(text) if text.isdecimal() and len(text) < 20 else text


def _is_random(text: str) -> bool:
    """Whether a text without spaces is no word, path, date, hex digest or name that people gave.

    Names consist of words, so that few characters are followed by one of another kind; random texts change all along.
    """
    if len(text) == 40 and _AWS.fullmatch(text) and len({*text}) >= 20 and len(_CHUNK.findall(text)) >= 10:
        return True
    for run in _RUN.findall(text):
        mixed = sum(any(map(kind, run)) for kind in (str.isdigit, str.islower, str.isupper))
        if mixed < 2 or _HEX.fullmatch(run) or len({*run}) < 10:
            continue
        if len(_CHUNK.findall(run)) >= ceil(len(run) / 3.5) and (mixed == 3 or any(map(str.isdigit, run))):
            return True
    return False


def is_secret_text(text: str) -> bool:
    """Whether a text is a secret by its shape, or contains one: a key in a known form, a URL with a password, a PEM.

    Example:
        >>> is_secret_text("postgres://me:pw@host/db"), is_secret_text("claude-3-5-sonnet-20241022")
        (True, False)
    """
    if len(text) > 2 * _MOST_TEXT:
        return _is_shaped(text[:_MOST_TEXT]) or _is_shaped(text[-_MOST_TEXT:])
    return len(text) > 3 and _is_shaped(text)


def is_opaque(text: str) -> bool:
    """Whether a text has no meaning to a reader: a digest or an id. It is no secret as such, and need not be shown."""
    return _OPAQUE.search(text) is not None


# --- both ------------------------------------------------------------------------------------------------------------


def is_secret(name: str, value: Any) -> bool:
    """Whether a value is a secret, or holds one: text by its shape, and whatever has the name of one.

    Args:
        name: of a variable, an attribute (`cfg.password`), an entry, an argument (`connect(password)`), or "".
        value: any; containers are looked at as far as they consist of exact builtins.

    Example:
        >>> is_secret("API_KEY", "abc"), is_secret("max_tokens", 100), is_secret("key", "id")
        (True, False, False)
    """
    for inner, part in _within(name, value):
        if type(part) is str and (part in _marked or is_secret_text(part)):
            return True
        if type(part) is bytes and is_secret_text(part[: 2 * _MOST_TEXT].decode("latin-1")):
            return True
        if inner and _is_by_name(inner, part):
            return True
    return False


_marked: set[str] = set()


_judged: set[tuple[str, str]] = set()


def mark(name: str, value: Any, digest: str) -> None:
    """Let the digest of a value that is a secret count as one, wherever it stands, as in the version of an instance.

    A value is looked at once: the version of an instance is asked for at each access to its results.
    """
    if (name, digest) in _judged:
        return
    if len(_judged) >= _MOST_SEALED:
        _judged.clear()
    _judged.add((name, digest))
    if is_secret(name, value):
        _marked.add(digest)


# --- what is written and shown ---------------------------------------------------------------------------------------

_sealed: dict[tuple[str, str], str] = {}
_MOST_SEALED = 10_000


def sealed(digest: str, salt: str) -> str:
    """The digest of a secret that may stand on disk, made of the plain one: 128 bits that are slow to try.

    It takes about 40 ms and 8 MB, once in a process for each secret.

    Args:
        digest: of the value.
        salt: of the checkpoint.
    """
    place = digest, salt
    if (known := _sealed.get(place)) is None:
        if len(_sealed) >= _MOST_SEALED:
            _sealed.clear()
        whole = b"checkpoint\0" + salt.encode("utf-8", "surrogatepass")
        known = scrypt(digest.encode(), salt=whole, n=1 << 13, r=8, p=1, maxmem=1 << 24, dklen=16).hex()
        _sealed[place] = known
    return known


def difference(name: str, old: str, new: str) -> str:
    """What a message says of a value that differs: "name: old → new", and of a secret its name alone.

    Args:
        name: the value's.
        old: how the value was shown, by an earlier version of this library maybe, which hid less.
        new: how it is shown.
    """
    if SECRET in (old, new) or is_secret("", old) or (name and is_secret(name, old.strip("'\""))):
        return f"{name}: {SECRET} that changed"
    return f"{name}: {old} → {new}"


def quoted(value: Any, limit: int) -> str:
    """A value that the user gave as an option, as a message may quote it: nothing of a secret."""
    return SECRET if is_secret("", _plain(value)) else quote(value, limit)


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
