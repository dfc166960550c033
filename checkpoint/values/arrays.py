"""How arrays of numpy are spelled: a dtype in the terms of numpy's own file format, and the bytes that count.

The promise: equal arrays have equal bytes, since padding is zeroed; no array of Python objects is written or read.
numpy is imported where an array is read, and nowhere else.
"""

from __future__ import annotations

import math
from typing import Any

from checkpoint.values.limits import checked_dtype, checked_shape

__all__ = ["array_of", "counted_bytes", "descr_of", "dtype_of", "numpy_library", "packed"]


def descr_of(numpy: Any, dtype: Any) -> Any:
    """What numpy's own file format writes for a dtype, else None where it would not read back equal."""
    if dtype.hasobject:
        return None
    try:
        descr = dtype.str if dtype.names is None else dtype.descr
        return descr if numpy.lib.format.descr_to_dtype(descr) == dtype else None
    except (TypeError, ValueError):
        return None


def packed(numpy: Any, array: Any) -> bytes:
    """An array's bytes, its padding zeroed."""
    data = bytes(array.tobytes())
    if not data or (array.dtype.names is None and array.dtype.char not in "gG"):
        return data
    items = numpy.frombuffer(data, "u1").reshape(-1, array.dtype.itemsize)
    return bytes((items * numpy.frombuffer(counted_bytes(numpy, array.dtype), "u1")).tobytes())


def counted_bytes(numpy: Any, dtype: Any) -> bytes:
    """One for each byte of an item that counts; padding, of structures and of x86's long double, is any old memory."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return counted_bytes(numpy, base) * int(math.prod(shape))
    if dtype.names is not None:
        mask = bytearray(dtype.itemsize)
        for field, offset, *_ in dtype.fields.values():
            mask[offset : offset + field.itemsize] = counted_bytes(numpy, field)
        return bytes(mask)
    size = numpy.dtype("g").itemsize
    if dtype.char not in "gG" or numpy.finfo("g").nmant != 63:
        return b"\1" * int(dtype.itemsize)
    part = (b"\1" * 10).ljust(size, b"\0")
    return (part if dtype.isnative else part[::-1]) * int(dtype.itemsize // size)


def numpy_library() -> Any:
    """The library, which is imported for an array alone."""
    try:
        import numpy
    except ImportError as error:
        raise ValueError("the value holds a numpy array; to read it, install numpy: pip install numpy") from error
    return numpy


def dtype_of(numpy: Any, descr: Any) -> Any:
    """The dtype that a file describes, which never is of Python objects."""
    dtype = numpy.lib.format.descr_to_dtype(checked_dtype(descr))
    if dtype.hasobject:
        raise ValueError("an array of Python objects is never read: it could run code")
    return dtype


def array_of(numpy: Any, dtype: Any, shape: list[Any], data: bytes) -> Any:
    """The array of these bytes, where its shape fits them."""
    return numpy.ndarray(checked_shape(dtype, shape, len(data)), dtype, buffer=data).copy()
