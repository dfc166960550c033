"""Whether a file is the journal that it should be: what stands in its place, whether most of its lines are records.

The promise: a file that a crash may leave is never refused. A crash tears the last line, leaves pages of NULs, and
loses what was not synced. It makes no other kind of file, changes no line, and takes away nothing that meta says was
synced. So these are errors: a file of another kind; a file most of whose lines are no intact records; a file that is
gone, or that has lost more than a record, and than a tenth, of what was on the medium when meta was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from checkpoint.errors import plural, quote
from checkpoint.storage.reader import Reader
from checkpoint.storage.record import CRC_SIZE, is_whole, unsealed

__all__ = ["SYNCED", "Fault", "fault_of", "held_records", "is_most", "loss_of", "synced_bytes"]

SYNCED = "synced_bytes"  # of meta: the size of each journal, as far as it was on the medium

_WHOLE = 64 << 10  # bytes; a journal of up to so many is looked at whole
_LOOKS = 16  # places at which a longer one is looked at
_LINES = 8  # lines at each
_FIRST = 4096
_LONGEST = 1 << 20
_LONGEST_TAIL = 16 << 20
_LEAST = 3  # lines; of fewer, all may be damaged, and the file is a journal all the same
_LOST = 10  # a loss of more than one part in so many is an error


class Fault(NamedTuple):
    """Why a file is not the journal that it should be.

    Attributes:
        what: what is wrong with the file, to follow its name.
        fix: what brings the journal back.
        is_altered: whether its lines hold records and only fail their checksums.
        has_rest: whether some of what it held is still in it.
    """

    what: str
    fix: str
    is_altered: bool = False
    has_rest: bool = False


_BACK = "put the file back as it was"
_UNPACK = "put the unpacked file in its place ({} < FILE > UNPACKED; mv UNPACKED FILE)"
_UNPACK_ALL = "put the unpacked file in its place ({} FILE)"
_RECODE = (
    'write it as UTF-8 again (python -c "import pathlib, sys; p = pathlib.Path(sys.argv[1]); '
    "p.write_bytes(p.read_bytes().decode('{}').encode())\" FILE)"
)
_TO_NEWLINES = (
    'end them in newlines again (python -c "import pathlib, sys; p = pathlib.Path(sys.argv[1]); '
    'p.write_bytes(p.read_bytes().replace(bytes([13]), bytes([10])))" FILE)'
)
# What files of other kinds begin with; none of it can begin a journal that a crash has left.
_KINDS = (
    (b"version https://git-lfs", "a Git LFS pointer", "bring the file that it stands for (git lfs pull)"),
    (b"/annex/objects/", "a git-annex pointer", "bring the file that it stands for (git annex get)"),
    (b"\xff\xfe\0\0", "UTF-32 text", _RECODE.format("utf-32")),
    (b"\0\0\xfe\xff", "UTF-32 text", _RECODE.format("utf-32")),
    (b"\xff\xfe", "UTF-16 text", _RECODE.format("utf-16")),
    (b"\xfe\xff", "UTF-16 text", _RECODE.format("utf-16")),
    (b"{\0\"\0", "UTF-16 text", _RECODE.format("utf-16-le")),
    (b"\0{\0\"", "UTF-16 text", _RECODE.format("utf-16-be")),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK.format("gunzip")),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK.format("unzstd")),
    (b"PK\3\4", "a ZIP archive", _UNPACK_ALL.format("unzip")),
    (b"BZh", "compressed by bzip2", _UNPACK.format("bunzip2")),
    (b"\xfd7zXZ\0", "compressed by xz", _UNPACK.format("unxz")),
    (b"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK.format("unlz4")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK_ALL.format("7z x")),
    (b"SQLite format 3\0", "a SQLite database", _BACK),
    (b"PAR1", "a Parquet file", _BACK),
    (b"ARROW1", "an Arrow file", _BACK),
    (b"\x89HDF", "an HDF5 file", _BACK),
    (b"\x93NUMPY", "a NumPy array", _BACK),
    (b"\x80\x04\x95", "a pickle", _BACK),
    (b"\x80\x05\x95", "a pickle", _BACK),
    (b"%PDF", "a PDF", _BACK),
)  # fmt: skip
_NO_TEXT = re.compile(rb"[\0\r]")  # not in a record: what a torn one begins with ends there
_OLD_MAC = re.compile(rb"\A[^\n]*\}\r\{[^\n]*\Z")
_PRETTY = re.compile(rb'[\[{]\s*\n\s*[{"\[]')
_NO_LINES = "make it one record a line again (jq -c . FILE; of an array: jq -c '.[]' FILE)"


def fault_of(reader: Reader, *, held_records: bool = False) -> Fault | None:
    """Why the file is no journal, or None where it is one; an empty file is.

    A long file is looked at in some places.

    Args:
        reader: the file.
        held_records: whether meta counts records that were on the medium: no crash leaves nothing but NULs of these.
            Its size alone does not tell, since a recovery syncs what a crash has left.
    """
    head = reader.pread(_FIRST, 0)
    lines = [line for line in _lines_of(reader) if line.strip() and b"\0" not in line]
    damaged = [line for line in lines if not is_whole(line)]
    if lines and 2 * len(damaged) <= len(lines):
        return None
    if _OLD_MAC.match(head):
        return Fault("has lines that end in carriage returns alone, and no records", f"{_BACK}, or {_TO_NEWLINES}")
    for begins, kind, fix in _KINDS:
        if head.startswith(begins):
            return Fault(f"is {kind}, and no journal", fix)
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if len(damaged) == len(lines) and begin not in ((b"", b"{") if held_records else (b"", b"{", b"\0")):
        return _kind_of_text(head)
    if not is_most(len(damaged), len(lines)):
        return None
    return _fault_of_lines(head, damaged, len(lines))


def _fault_of_lines(head: bytes, damaged: list[bytes], looked: int) -> Fault:
    """What is wrong with a file most of whose lines are no intact records."""
    has_rest = len(damaged) < looked
    altered = sum(unsealed(line) is not None for line in damaged)
    if 2 * altered > len(damaged):
        return Fault(
            f"has lines that are sound JSON and do not fit their checksums ({altered} of {plural(looked, 'line')} "
            "that were looked at): another program wrote the file anew, such as a formatter, an editor or a conversion",
            _BACK,
            is_altered=True,
        )
    if _PRETTY.match(head):
        return _kind_of_text(head)
    if not all(map(_is_utf8, damaged)):
        return Fault(
            "has lines that are not UTF-8, and no records",
            f"{_BACK}, or {_RECODE.format('latin-1')}",
            has_rest=has_rest,
        )
    return Fault(
        f"has lines that are no records ({len(damaged)} of {plural(looked, 'line')} that were looked at); one "
        f"begins {quote(damaged[0][:60])}",
        _BACK,
        has_rest=has_rest,
    )


def is_most(damaged: int, lines: int) -> bool:
    """Whether so many damaged lines are most of a journal's; a few are not, even where there are no others."""
    return damaged >= _LEAST and 2 * damaged > lines


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _kind_of_text(head: bytes) -> Fault:
    begin = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _PRETTY.match(begin):
        return Fault("is JSON over several lines, and no journal, which has one record a line", _NO_LINES)
    if begin.startswith(b"["):
        return Fault("is a JSON array, and no journal, which has one record a line", _NO_LINES)
    if re.match(rb"<(!doctype|html|\?xml|head|body)", begin, re.IGNORECASE):
        return Fault("is HTML or XML, such as a page that asks to sign in, and no journal", _BACK)
    return Fault(f"is no journal: it begins {quote(head[:60])}", _BACK)


def _lines_of(reader: Reader) -> Iterator[bytes]:
    """Whole lines: all of a short file, some of a long one; what follows the last newline is left out."""
    size = reader.size()
    if size <= _WHOLE:
        yield from reader.pread(size, 0).split(b"\n")[:-1]
        return
    for place in range(_LOOKS):
        start = place * size // _LOOKS
        wanted, data = _FIRST, b""
        while wanted <= _LONGEST and data.count(b"\n") < 2 and len(data) < size - start:
            wanted *= 4
            data = reader.pread(wanted, start)
        lines = data.split(b"\n")[:-1]
        yield from lines[:_LINES] if start == 0 else lines[1 : 1 + _LINES]


def synced_bytes(meta: Mapping[str, Any], kind: str) -> int:
    """How many bytes of a journal were on the medium when meta was written; 0 where it does not say.

    Where meta is of a release that did not write it, and counts results: at least one.
    """
    said = meta.get(SYNCED)
    if not isinstance(said, dict):
        counted = meta.get("completed_items")
        return int(kind == "results" and type(counted) is int and counted > 0)
    size = said.get(kind)
    return size if type(size) is int and size > 0 else 0


def held_records(meta: Mapping[str, Any], kind: str) -> bool:
    """Whether meta counts records of a journal, on the medium."""
    counted = meta.get({"results": "completed_items", "errors": "failed_items"}.get(kind, ""))
    return type(counted) is int and counted > 0 and synced_bytes(meta, kind) > 0


def _whole_lines(reader: Reader, synced: int) -> tuple[int, bytes]:
    """How many bytes its whole lines are, and what follows these: a crash tears nothing that was on the medium.

    What follows is not looked at where it is too long for a line that anybody would read whole, such as a hole.
    """
    size = reader.size()
    if size == 0 or reader.pread(1, size - 1) == b"\n":
        return size, b""
    begin = max(0, size - _LONGEST_TAIL)
    last = reader.pread(size - begin, begin)
    newline = last.rfind(b"\n")
    if newline < 0 and begin:
        return size, b""
    offset, torn = begin + newline + 1, last[newline + 1 :]
    return (size, torn) if offset >= synced or is_whole(torn) else (offset, torn)


def loss_of(reader: Reader | None, synced: int, results: Any) -> Fault | None:
    """What a journal has lost of what was on the medium, where that is too much to go on.

    Checksums that were deleted by hand, and one record, are no loss.

    Args:
        reader: None where there is no file.
        synced: bytes that were on the medium.
        results: how many results meta counts.
    """
    size, torn = (0, b"") if reader is None else _whole_lines(reader, synced)
    if size >= synced:
        return None
    counted = f" ({plural(results, 'result')})" if type(results) is int and results > 0 else ""
    if reader is None or reader.size() == 0:
        return Fault(f"is gone or empty, and meta knows that it held records{counted}", "put the file back")
    lost = synced - size
    if lost * _LOST <= synced:
        return None
    longest = 0
    for _, block in reader.blocks(0):
        lines = block.split(b"\n")
        lost -= CRC_SIZE * sum(b'"crc":' not in line for line in lines[:-1])
        longest = max(longest, *map(len, lines))
    longest = max(longest, len(_NO_TEXT.split(torn, 1)[0]))
    if lost * _LOST <= synced or lost <= longest + 1:
        return None
    return Fault(
        f"has {size:,} bytes of whole lines, and {synced:,} were on disk when meta was written{counted}: it was cut, "
        "or restored half-way, or lines were deleted",
        "put the whole file back",
        has_rest=True,
    )
