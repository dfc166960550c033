"""Arrays of numbers as columns: where all of a column have one shape and dtype, they are kept as the bytes they are.

The promise: a vector says what its array held, bit by bit; a column of them is a fixed-size list of that very dtype.
Any other array is a list.
"""

from __future__ import annotations

import binascii
import math
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["Vector", "VectorType", "arrow_array", "arrow_vector_type", "numpy_arrays", "vector_in"]

# By numpy's spelling of a dtype: what Arrow calls it, bytes of an item, and what a list of them has.
_NATIVE = "<" if sys.byteorder == "little" else ">"
_DTYPES: dict[str, tuple[str, int, type]] = {
    "|i1": ("int8", 1, int),
    "|u1": ("uint8", 1, int),
    **{f"{_NATIVE}i{size}": (f"int{8 * size}", size, int) for size in (2, 4, 8)},
    **{f"{_NATIVE}u{size}": (f"uint{8 * size}", size, int) for size in (2, 4, 8)},
    f"{_NATIVE}f4": ("float32", 4, float),
    f"{_NATIVE}f8": ("float64", 8, float),
}
_MOST_DIMENSIONS = 8


class VectorType(NamedTuple):
    """What all vectors of a column have in common."""

    dtype: str  # as numpy spells it
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return math.prod(self.shape)

    @property
    def item(self) -> type:
        """What a list of them has: int or float."""
        return _DTYPES[self.dtype][2]

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest int that the dtype holds."""
        bits = 8 * _DTYPES[self.dtype][1]
        return (0, (1 << bits) - 1) if self.dtype[1] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)


class Vector(NamedTuple):
    """An array of numbers that is not spelled out."""

    kind: VectorType
    data: bytes

    def tolist(self) -> list[Any]:
        """The numbers, in lists."""
        code: Any = _CODES[_DTYPES[self.kind.dtype][0]]
        return _nested(memoryview(self.data).cast(code).tolist(), self.kind.shape)


_CODES = {
    "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I", "uint64": "Q",
    "float32": "f", "float64": "d",
}  # fmt: skip


def _nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    for size in reversed(shape[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)]
    return flat


def vector_in(env: dict[str, Any]) -> Vector | None:
    """The vector in an envelope of an array; None for an array of any other kind, or what is no array."""
    if env.keys() != {"$ndarray", "dtype", "shape"}:
        return None
    text, dtype, shape = env["$ndarray"], env["dtype"], env["shape"]
    if type(dtype) is not str or dtype not in _DTYPES or type(shape) is not list or type(text) is not str:
        return None
    if not 0 < len(shape) <= _MOST_DIMENSIONS or any(type(size) is not int or size < 1 for size in shape):
        return None
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        return None
    kind = VectorType(dtype, tuple(shape))
    return Vector(kind, data) if len(data) == kind.size * _DTYPES[dtype][1] else None


def arrow_vector_type(pa: Any, kind: VectorType) -> Any:
    """Arrow's type: lists of fixed size, one within the other."""
    made = getattr(pa, _DTYPES[kind.dtype][0])()
    for size in reversed(kind.shape):
        made = pa.list_(made, size)
    return made


def arrow_array(pa: Any, kind: VectorType, vectors: Sequence[Vector | None]) -> Any:
    """An Arrow array of vectors, of which some may be missing."""
    name, size, _ = _DTYPES[kind.dtype]
    missing = bytes(kind.size * size)
    data = pa.py_buffer(bytearray().join([missing if vector is None else vector.data for vector in vectors]))
    count = len(vectors) * kind.size
    made = pa.Array.from_buffers(getattr(pa, name)(), count, [None, data])
    for place in range(len(kind.shape) - 1, -1, -1):
        count //= kind.shape[place]
        valid = None
        if place == 0 and None in vectors:
            valid = pa.array([vector is not None for vector in vectors], pa.bool_()).buffers()[1]
        made = pa.Array.from_buffers(pa.list_(made.type, kind.shape[place]), count, [valid], children=[made])
    return made


def numpy_arrays(numpy: Any, kind: VectorType, column: Any) -> list[Any]:
    """A numpy array for each row of a column that `arrow_array` made, or None. They may be changed."""
    rows: list[Any] = []
    for chunk in column.chunks:
        data = chunk.buffers()[-1]  # not copied: it is nobody else's
        arrays = list(numpy.frombuffer(data, kind.dtype, len(chunk) * kind.size).reshape(len(chunk), *kind.shape))
        if chunk.null_count:
            arrays = [
                array if valid else None for array, valid in zip(arrays, chunk.is_valid().to_pylist(), strict=True)
            ]
        rows += arrays
    return rows
