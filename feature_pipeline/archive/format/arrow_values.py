"""Make and read Arrow values by their buffers.

pyarrow's own converters (`pa.array`, `pa.scalar`, `np.asarray` of an array) import pandas where it
is installed, to recognize its objects: half a second and 45 MB in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Array: TypeAlias = "pa.Array[Any]"

_from_buffers: Final[Any] = pa.Array.from_buffers
_py_buffer: Final[Any] = pa.py_buffer
_repeat: Final[Any] = pa.repeat


def text_array(texts: Sequence[str]) -> Array:
    """Return these texts as strings."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    is_large = int(offsets[-1]) > np.iinfo(np.int32).max
    kind = pa.large_string() if is_large else pa.string()
    return bytes_array(kind, offsets, b"".join(encoded))


def bytes_array(kind: pa.DataType, offsets: npt.NDArray[Any], data: Any) -> Array:
    """Return an array of a text or binary type.

    Args:
        kind: The type.
        offsets: Of the values in `data`, and the end of the last.
        data: Any buffer.
    """
    is_large = kind in (pa.large_string(), pa.large_binary())
    ends = np.ascontiguousarray(offsets, np.int64 if is_large else np.int32)
    array: Array = _from_buffers(kind, len(ends) - 1, [None, _py_buffer(ends), _py_buffer(data)])
    return array


def number_array(kind: pa.DataType, numbers: npt.NDArray[Any]) -> Array:
    """Return numbers as an array of a type of the same width, like an instant's."""
    data = np.ascontiguousarray(numbers)
    array: Array = _from_buffers(kind, len(data), [None, _py_buffer(data)])
    return array


def text_scalar(text: str) -> pa.Scalar[Any]:
    """Return the text as a string."""
    scalar: pa.Scalar[Any] = text_array([text])[0]
    return scalar


def null_scalar(kind: pa.DataType) -> pa.Scalar[Any]:
    """Return the type's null."""
    nulls: Any = pa.nulls
    scalar: pa.Scalar[Any] = nulls(1, kind)[0]
    return scalar


def repeat(values: Array, count: int) -> Array:
    """Return the first of the values `count` times."""
    repeated: Array = _repeat(values[0], count)
    return repeated


def as_numpy(values: Array) -> npt.NDArray[Any]:
    """Return booleans, or numbers of a fixed width; what stands for nulls is undefined."""
    data: Any = values.buffers()[1] or b""
    if pa.types.is_boolean(values.type):
        bits = np.frombuffer(data, np.uint8)
        first, start = divmod(values.offset, 8)
        last = -(-(values.offset + len(values)) // 8)
        unpacked = np.unpackbits(bits[first:last], bitorder="little")
        return unpacked[start : start + len(values)].view(np.bool_)
    dtype = np.dtype(values.type.to_pandas_dtype())
    numbers: npt.NDArray[Any] = np.frombuffer(
        data, dtype, count=len(values), offset=values.offset * dtype.itemsize
    )
    return numbers
