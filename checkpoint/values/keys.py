"""What names an item: its key, and the digest of its content.

Keys are str, int, float (not NaN), bool, None and tuples of those, and are equal as in a dict: `1`, `1.0` and `True`
are one key, `"1"` is another. On disk a key is written as it was given; `identity` is the same bytes for equal keys.
"""

from __future__ import annotations

import ast
import json
import re
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, time
from decimal import Decimal
from hashlib import blake2b
from itertools import islice
from pathlib import PurePath
from typing import Any
from uuid import UUID

import msgspec

from checkpoint.errors import InvalidKey, InvalidOption, quote
from checkpoint.values.canonical import canonical, canonical_all
from checkpoint.values.codec import Codec
from checkpoint.values.contents import is_kin, json_like, spell, stranger_in
from checkpoint.values.digests import LOW, Digests, are_alike, halves_of
from checkpoint.values.secrets import is_secret, sealed

__all__ = [
    "PART",
    "Crowd",
    "Key",
    "KeyFunction",
    "add_keys",
    "changed_field",
    "digest_function",
    "digest_of",
    "earlier_digests",
    "identity",
    "is_crowded",
    "is_digest_of",
    "is_same_version",
    "item_digest",
    "item_digests",
    "key_from_json",
    "key_function",
    "key_json",
    "key_spelled",
    "keys_json",
    "plain_json",
    "plain_key",
    "plain_version",
    "stands_for",
    "version_digest",
    "wide_digest_of",
]


Key = str | int | float | bool | None | tuple[Any, ...]
KeyFunction = Callable[[Any], Any]
_LONGEST_OWN_KEY = 200  # bytes; a longer item is named by its digest, so that the journal stays readable
_SURELY_SHORT = (_LONGEST_OWN_KEY - 1) // 4  # characters
_WORD = 1 << 63
_DEEPEST_KEY = 20
_MOST_DIGITS = 4300  # Python's own limit for int <-> str
_codec = Codec(only=frozenset({"$tuple", "$str", "$int", "$float"}))  # no key holds another envelope
_encode = msgspec.json.Encoder().encode
_exact = frozenset({str, int, bool, type(None)})
_WORDS = frozenset({str, int})


def plain_key(key: Any, depth: int = 0) -> Key:
    """The key as an exact builtin: subclasses and numpy scalars become what they hold.

    Raises:
        InvalidKey: it is of another type, NaN, or an int of more than 4,300 digits.
    """
    kind = type(key)
    if kind is str or kind is bool or key is None:
        return key  # type: ignore[no-any-return]
    if kind is int:
        return _checked_int(key)
    if kind is float:
        return _checked_float(key)
    if depth > _DEEPEST_KEY:
        raise InvalidKey(f"a key is a tuple more than {_DEEPEST_KEY} levels deep; use its hash as the key", key=key)
    if kind is tuple:
        return tuple([plain_key(part, depth + 1) for part in key])
    return _unusual_key(key, depth)


def _checked_int(key: int) -> int:
    if -_WORD <= key < _WORD or key.bit_length() < _MOST_DIGITS * 3:
        return key
    raise InvalidKey(f"an int key has more than {_MOST_DIGITS * 9 // 10:,} digits; use its hash as the key", key=key)


def _checked_float(key: float) -> float:
    if key != key:
        raise InvalidKey("a key is NaN, which equals nothing, itself included", key=key)
    return key


def _held(value: Any) -> Any:
    """What a numpy scalar holds; anything else, and what has a unit, as it is: 3 months are not 3 years."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, numpy.generic) or value.dtype.kind in "mM":
        return value
    return value.item()


def _unusual_key(key: Any, depth: int) -> Key:
    held = _held(key)
    if held is not key:
        if type(held) in (str, int, float, bool):
            return plain_key(held)
    elif isinstance(key, str):
        return str.__str__(key)
    elif isinstance(key, int):
        return _checked_int(int.__int__(key))
    elif isinstance(key, float):
        return _checked_float(float.__float__(key))
    elif isinstance(key, tuple):
        return tuple([plain_key(part, depth + 1) for part in tuple.__iter__(key)])
    raise InvalidKey(
        f"a key is {quote(key)}, a {type(key).__name__}; keys are str, int, float, bool, None and tuples of those",
        key=key,
    )


def key_json(key: Key) -> bytes:
    """The key as it stands in a record."""
    if type(key) in _exact:
        try:
            return _encode(key)
        except (UnicodeEncodeError, OverflowError, ValueError, TypeError):
            pass  # a lone surrogate, or an int that only the codec's envelope holds
    if type(key) is tuple:  # as the codec would, without its second look: a key's parts are plain
        return b'{"$tuple":[%b]}' % b",".join([key_json(part) for part in key])
    return _codec.encode(key)


def keys_json(keys: Sequence[Key]) -> bytes:
    """The keys as a JSON array, each of them as `key_json` spells it."""
    if _exact.issuperset(map(type, keys)):
        try:
            return _encode(keys)
        except (UnicodeEncodeError, OverflowError, ValueError, TypeError):
            pass
    return b"[%b]" % b",".join(map(key_json, keys))


def key_from_json(key: Any) -> Key:
    """A key from the parsed JSON of a record: its inverse.

    Raises:
        ValueError: it is no key.
    """
    if type(key) not in _exact and type(key) is not float:
        key = plain_key(_codec.revive(key))
    return key  # type: ignore[no-any-return]


_NAMED: dict[str, Key] = {"True": True, "False": False, "None": None}
_LONGEST_SPELLED = 4096
# What repr makes of a tuple of keys, and nothing that the parser of Python would warn of.
_TUPLE = re.compile(
    r"""\((?:'(?:[^'\\]|\\[\\'nrtxuU])*+'|"(?:[^"\\]|\\[\\"nrtxuU])*+"|[0-9.e+-]++|True|False|None|[(), ])++"""
)


def key_spelled(text: str) -> Key:
    """The number, bool, None or tuple whose str() this is, or else the text: lines by hand name keys by their str()."""
    for read in (int, float, _NAMED.__getitem__, _tuple_spelled):
        try:
            key: Key = read(text)
        except (ValueError, KeyError):
            continue
        if str(key) == text:
            return key
    return text


def _tuple_spelled(text: str) -> Key:
    if len(text) > _LONGEST_SPELLED or not _TUPLE.fullmatch(text):
        raise ValueError("it is no tuple")
    try:
        return plain_key(ast.literal_eval(text))
    except (SyntaxError, TypeError, MemoryError, RecursionError, InvalidKey) as error:
        raise ValueError(str(error)) from None


def identity(key: Key) -> bytes:
    """The same bytes for keys that are equal as in a dict, others for others."""
    if type(key) is str:
        return b"s" + key.encode("utf-8", "surrogatepass")
    if key is None:
        return b"n"
    if isinstance(key, tuple):
        parts = [identity(part) for part in key]
        return b"t" + b"".join([b"%d:%b" % (len(part), part) for part in parts])
    if isinstance(key, float) and not key.is_integer():
        return b"f" + struct.pack(">d", key)
    return b"i%x" % int(key)


# --- keys of one hash ------------------------------------------------------------------------------------------------


#
# The hashes of numbers and tuples are known: of keys that all have one, a dict finds each by looking at all of them.

_MOST_ALIKE = 16

_MOST_COUNTED = 100_000


def is_crowded(keys: Sequence[Key]) -> bool:
    """Whether more than a few distinct keys of a run of lines have one hash."""
    if _ONLY_TEXT.issuperset(map(type, keys)):
        return False
    hashes = len(set(map(hash, keys)))
    return len(keys) - hashes > _MOST_ALIKE and len(set(keys)) - hashes > _MOST_ALIKE


_ONLY_TEXT = frozenset({str})


class Crowd:
    """Sees that of the keys that are read one by one no more than a few distinct ones have one hash."""

    def __init__(self) -> None:
        self._alike: dict[int, list[Key]] = {}

    def check(self, key: Key) -> None:
        """See that a table of keys stays fast when this one enters it.

        Raises:
            ValueError: it is one of many that have one hash, which no honest keys have.
        """
        if type(key) is str:
            return
        if len(self._alike) > _MOST_COUNTED:
            self._alike.clear()
        alike = self._alike.setdefault(hash(key), [])
        if key in alike:
            return
        if len(alike) >= _MOST_ALIKE:
            raise ValueError(f"its key has the same hash as {_MOST_ALIKE} others, made to slow every reader down")
        alike.append(key)


# --- digests --------------------------------------------------------------------------------------------------------


def digest_of(data: bytes) -> int:
    """A 63-bit digest, never 0: 0 stands for none, and 63 bits fit a signed word."""
    made = _HIGH()
    made.update(data)
    return int.from_bytes(made.digest(), "big") >> 1 or 1


def _digests_of(several: Sequence[bytes]) -> Digests:
    """`wide_digest_of` of each, in half the time."""
    digests = bytearray()
    for data in several:
        high, low = _HIGH(), _LOW()
        high.update(data)
        low.update(data)
        digests += high.digest()
        digests += low.digest()
    highs, lows = halves_of(bytes(digests))
    return Digests([half >> 1 or 1 for half in highs], [half or 1 for half in lows] if 0 in lows else lows)


def wide_digest_of(data: bytes) -> int:
    """A digest of 127 bits, which decides whether two things are the same: `digest_of` and 64 bits besides, not all 0.

    So the digests of earlier versions, of 63 bits, are the beginnings of these.
    """
    high, low = _HIGH(), _LOW()
    high.update(data)
    low.update(data)
    return (int.from_bytes(high.digest(), "big") >> 1 or 1) << 64 | (int.from_bytes(low.digest(), "big") or 1)


_HIGH = blake2b(digest_size=8).copy  # a copy of a hash is made in half the time of a new one
_LOW = blake2b(digest_size=8, person=b"low").copy


def plain_version(version: Any) -> Any:
    """The version with what numpy's scalars in it hold: numbers of a configuration are often some of those."""
    kind = type(version)
    if kind is dict:
        return {key: plain_version(value) for key, value in version.items()}
    if kind is list or kind is tuple:
        return kind(map(plain_version, version))
    return _held(version)


def version_digest(version: Any, what: str, salt: str = "") -> str:
    """32 hex digits that stand for a JSON value: a version's name in records.

    Args:
        version: the value; the digest of one that holds a secret is slow to try.
        what: how an error calls it.
        salt: of the checkpoint.

    Raises:
        InvalidOption: the value is not JSON-like.
    """
    version = plain_version(version)
    data = canonical(version)
    if data is None:
        raise InvalidOption(f"{what} is {quote(version)}, no JSON value; give str, numbers, lists or dicts of them")
    digest = f"{wide_digest_of(data):032x}"
    return sealed(digest, salt) if is_secret("", version) else digest


def earlier_digests(version: Any) -> list[str]:
    """What earlier versions of this library called a version, in 16 hex digits."""
    return [f"{digest_of(data):016x}" for data in map(canonical, _spelled_before(version)) if data is not None]


def stands_for(digest: str, version: Any) -> bool:
    """Whether a digest in a record is that of a version, which is no secret."""
    data = canonical(version)
    return data is not None and digest in (f"{wide_digest_of(data):032x}", f"{digest_of(data):016x}")


def is_same_version(label: Any, version: Any) -> bool:
    """Whether the value of a version, as it is kept, is this one, or as it was spelled before."""
    data = canonical(label)
    return data is not None and data in map(canonical, _spelled_before(version))


def _spelled_before(version: Any) -> list[Any]:
    """A version, and where it is that of an instance, with digests of attributes that were half as long."""
    parts = version.get("instance") if type(version) is dict and len(version) == 1 else None
    if type(parts) is not dict:
        return [version]
    before = {name: part[:16] if type(part) is str and _WIDE.fullmatch(part) else part for name, part in parts.items()}
    return [{"instance": before}, version]


_WIDE = re.compile(r"[0-9a-f]{32}")


def item_digest(item: Any) -> int:
    """The digest of an item's content, or 0 where it is not known; a numpy scalar counts as what it holds."""
    if type(item) in _WORDS:  # their canonical spelling is their JSON
        try:
            return wide_digest_of(_encode(item))
        except (UnicodeEncodeError, OverflowError, ValueError):
            pass  # one that only the codec's envelope holds
    data = spell(item)
    return 0 if data is None else wide_digest_of(data)


def is_digest_of(digest: int, item: Any, now: int) -> bool:
    """Whether the item has this digest: `now`, or the one that it had before moments of numpy kept their unit."""
    if are_alike(digest, now):
        return True
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(item, (numpy.datetime64, numpy.timedelta64)):
        return False
    data = canonical(item.item())
    return data is not None and are_alike(digest, wide_digest_of(data))


def changed_field(item: Any, digest: int) -> tuple[str, str]:
    """(name, how it differs) of the field by which a dict is another item than that of this digest, or ("", "").

    Of a number the name is empty.

    Items are not kept: we try whether it had no such field, or held the same in another type.
    """
    if type(item) is not dict:
        likes = (other for other in _likes(_held(item)) if are_alike(digest, item_digest(other)))
        return "", "".join([f"it was {quote(other, 60)}, and is {quote(item, 60)}" for other in islice(likes, 1)])
    for name, value in item.items():
        if are_alike(digest, item_digest({other: part for other, part in item.items() if other != name})):
            return str(name), f"field {quote(name, 60)} is new"
        for other in _likes(value):
            if are_alike(digest, item_digest({**item, name: other})):
                return str(name), f"field {quote(name, 60)} was {quote(other, 60)}, and is {quote(value, 60)}"
    return "", ""


def _likes(value: Any) -> list[Any]:
    """Values that look like this one, and are of another type: a column of ints with a gap holds floats."""
    if value is None:
        return [float("nan"), ""]
    if isinstance(value, bool):
        return [int(value), str(value)]
    if isinstance(value, int):
        return [float(value), str(value)] if value.bit_length() < 64 else []
    if isinstance(value, float):
        return [*([int(value)] if value.is_integer() else []), str(value), *([None] if value != value else [])]
    likes: list[Any] = []
    if isinstance(value, str) and len(value) < 25:
        for kind in (int, float):
            try:
                likes.append(kind(value))
            except ValueError:
                continue
    return likes


PART = 1 << 127
"""The bit that a digest has which is of a part of the item, as `input=` names it, and not of all of it."""


def digest_function(option: str | Sequence[str] | Callable[[Any], Any] | None) -> Callable[[Any], int]:
    """The digest of what an item's result depends on: of all of it, or of what `input=` names.

    Raises:
        InvalidOption: the option is of another kind. The function that is returned raises it, too, where an item has no
            such field, or the content of what is named is not known.
    """
    if option is None:
        return item_digest
    part_of = option if callable(option) else _fields_of(option)

    def digest(item: Any) -> int:
        try:
            part = part_of(item)
        except InvalidKey as error:
            raise InvalidOption(f"input={quote(option)}: {error}; or input=lambda x: x.get(…)") from None
        found = item_digest(part)
        if not found:
            raise InvalidOption(
                f"input={quote(option)} gives {quote(part)} for the item {quote(item)}, of which it cannot be told "
                "whether it changes; give fields, or a function that returns plain data"
            )
        return found | PART

    return digest


def _fields_of(option: str | Sequence[str]) -> Callable[[Any], Any]:
    names = (option,) if isinstance(option, str) else tuple(option) if isinstance(option, (list, tuple)) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise InvalidOption(
            f"input is {quote(option)}; give the name of a field, a list of names, or a function of the item"
        )
    if len(names) == 1:
        return lambda item: _field(item, names[0])
    return lambda item: {name: _field(item, name) for name in names}


def item_digests(items: list[Any]) -> Digests:
    """`item_digest` of each."""
    if _WORDS.issuperset(map(type, items)):
        try:
            return _digests_of(list(map(_encode, items)))
        except (UnicodeEncodeError, OverflowError, ValueError):
            pass
    elif (spelled := canonical_all(items)) is not None:
        return _digests_of(spelled)
    found = [item_digest(item) for item in items]
    return Digests([digest >> 64 for digest in found], [digest & LOW for digest in found])


# --- from item to key -----------------------------------------------------------------------------------------------


def key_function(key: str | KeyFunction | None) -> KeyFunction:
    """What names an item: `key` itself, the field it names, or the item's own content.

    The result returns plain keys, and raises `InvalidKey` with the conversion to write.
    """
    if key is None:
        return _own_key
    if isinstance(key, str):
        return _field_key(key)
    if not callable(key):
        raise InvalidOption(
            f"key is {quote(key)}, a {type(key).__name__}; give a function, a field's name, or None for the item itself"
        )
    return _checked_key(key)


def add_keys(keys: list[Key], function: KeyFunction, items: Sequence[Any]) -> None:
    """Add what a key function gives for each item; where it raises, or stops, of those before that one."""
    if function is _own_key:
        kinds = set(map(type, items))
        if kinds == {str} and max(map(len, items)) <= _SURELY_SHORT:
            keys.extend(items)
            return
        if kinds == {int} and min(items) >= -_WORD and max(items) < _WORD:
            keys.extend(items)
            return
    keys.extend(map(function, items))


def _checked_key(function: KeyFunction) -> KeyFunction:
    def of(item: Any) -> Key:
        key = function(item)
        if type(key) is str:
            return key
        try:
            return plain_key(key)
        except InvalidKey as error:
            raise InvalidKey(f"{error}; {_advice(key, 'the key', 'have the key function return ')}", key=key) from None

    return of


def _field_key(name: str) -> KeyFunction:
    def of(item: Any) -> Key:
        key = _field(item, name)
        if type(key) is str:
            return key
        try:
            return plain_key(key)
        except InvalidKey as error:
            access = f"x[{name!r}]" if isinstance(item, Mapping) else f"x.{name}"
            raise InvalidKey(f"{error}; {_advice(key, access, 'write key=lambda x: ')}", key=key) from None

    return of


def _field(item: Any, name: str) -> Any:
    if type(item) is dict or isinstance(item, Mapping):
        try:
            return item[name]
        except KeyError:
            pass
    try:
        return getattr(item, name)
    except AttributeError:
        pass
    try:
        return item[name]  # a row of a database or of a numpy array is no Mapping
    except (LookupError, TypeError, ValueError):
        raise InvalidKey(
            f"{quote(item)} has no field {name!r}; "
            + (_TABLE if _is_of_iterrows(item) else "name a field that every item has, or write key=lambda x: …"),
            key=None,
        ) from None


def _own_key(item: Any) -> Key:
    kind = type(item)
    if (kind is int and -_WORD <= item < _WORD) or (kind is str and len(item) <= _SURELY_SHORT):
        return item  # type: ignore[no-any-return]  # what the rest comes to, told first: most items are such
    if isinstance(item, float):
        if item != item:  # its text could be hashed, but it equals nothing
            raise InvalidKey(f"a key is NaN, which equals nothing, itself included; {_advice(item, '', '')}", key=item)
        return plain_key(item)
    try:
        key = plain_key(item)
        if len(identity(key)) <= _LONGEST_OWN_KEY:
            return key
    except InvalidKey:
        pass  # no key itself, but its content may name it
    data = json_like(item)
    if data is not None:
        return "h1:" + blake2b(data, digest_size=16).hexdigest()
    raise InvalidKey(
        f"the item {quote(item)} is a {type(item).__name__}{_why_unnamed(item)}, and no key was given; "
        f"{_suggestion(item)}",
        key=item,
    )


def _why_unnamed(item: Any) -> str:
    """Which part of a container JSON does not hold."""
    found = stranger_in(item)
    if found is None or found[1] is item:
        return ""
    where, part = found
    kind = type(part)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
    return f" that is not JSON-like, since {where} is a {module}{kind.__name__}"


# --- what to write instead -------------------------------------------------------------------------------------------


#
# We never propose a text that is cut, that differs on the next run, or that leaves out what tells items apart.

_TEXTS: tuple[type, ...] = (UUID, date, time, Decimal, PurePath)  # whose str() is all that they hold

_TABLE = (
    'map the DataFrame itself: f.map(df) gives its rows as dicts, as df.to_dict("records") does, and key= is the name '
    "of a column"
)


def _advice(key: Any, access: str, write: str) -> str:
    """What to write in place of a key that is none."""
    if _is_nan(key):
        return (
            "drop such items (of pandas: .dropna()), or name them by something that each of them has (rows of a "
            'DataFrame: f.map(df.rename_axis("row").reset_index()) with key="row")'
        )
    text = _as_text(key, access)
    return write + (text or "something that tells the items apart and is the same on the next run")


def _is_nan(key: Any, depth: int = 0) -> bool:
    if isinstance(key, tuple):
        return depth <= _DEEPEST_KEY and any(_is_nan(part, depth + 1) for part in key)
    if type(key).__name__ in ("NAType", "NaTType"):
        return True
    try:
        return bool(key != key)
    except Exception:  # an array has no truth, and a class of the user's may raise anything
        return False


def _as_text(key: Any, access: str) -> str:
    """An expression that makes a key of a value of this kind; "" where we know none."""
    numpy = sys.modules.get("numpy")
    if isinstance(key, _TEXTS) or (numpy and isinstance(key, (numpy.datetime64, numpy.timedelta64))):
        return f"str({access})"
    if isinstance(key, (bytes, bytearray)):
        return f"hashlib.sha256({access}).hexdigest()"
    if isinstance(key, list) and _are_keys(key):
        return f"tuple({access})"
    if isinstance(key, (set, frozenset)) and _are_keys(key):
        return f"tuple(sorted({access}{'' if _have_an_order(key) else ', key=repr'}))"
    if isinstance(key, (list, dict)) and json_like(key) is not None:
        return f"json.dumps({access}, sort_keys=True)"
    if isinstance(key, int):
        return f"hex({access})"
    if numpy and isinstance(key, numpy.ndarray):  # the str() of a large array leaves most of it out
        return f"({access}.dtype.str, *{access}.shape, hashlib.sha256({access}.tobytes()).hexdigest())"
    return ""


def _are_keys(parts: Iterable[Any]) -> bool:
    try:
        for part in parts:
            plain_key(part)
    except InvalidKey:
        return False
    return True


def _have_an_order(parts: Iterable[Any]) -> bool:
    try:
        sorted(parts)
    except TypeError:
        return False
    return True


def _is_of_iterrows(item: Any) -> bool:
    part = item[1] if type(item) is tuple and len(item) == 2 else item
    return is_kin(part, "pandas", "Series")


def _suggestion(item: Any) -> str:
    """The conversion to write: one that is the same on the next run, and another for each item."""
    if _is_of_iterrows(item):
        return _TABLE
    fields: list[str] = list(getattr(item, "__dataclass_fields__", ())) or list(
        getattr(type(item), "model_fields", ()) or getattr(type(item), "__struct_fields__", ())
    )
    if isinstance(item, Mapping):
        named = next((name for name in item if type(name) is str and name.lower() in _NAMES), None)
        field = f"key={named!r}, or " if named is not None else ""
        return f"write {field}key=lambda x: str(x[…]) with a field that tells the items apart"
    if fields:
        named = next((name for name in fields if name.lower() in _NAMES), None)
        several = "".join(f"x.{name}, " for name in fields[:4])
        chosen = f"key={named!r}" if named is not None else f"key=lambda x: ({several}…)"
        return f"write {chosen} (a field, or several, that tell the items apart)"
    text = _as_text(item, "x")
    if not text:
        return "write key=lambda x: … with something that tells the items apart on each run, such as an id"
    return "write key=str" if text == "str(x)" else f"write key=lambda x: {text}, or an id"


_NAMES = frozenset({"id", "key", "uuid", "uid"})


def plain_json(key: Key) -> Any:
    """A key as parsed JSON: as it stands in a record."""
    return json.loads(key_json(key))
