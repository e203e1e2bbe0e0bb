"""Build the bytes of rows from Arrow columns, one column at a time.

Arrow's own join kernel concatenates the bytes of each row, so that no Python code runs for a row or
a value.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.arrow_values import (
    Array,
    as_numpy,
    bytes_array,
    text_scalar,
)
from feature_pipeline.errors import ProjectionError

# The published stubs know only some of the forms that the kernels take.
_compute: Final[Any] = pc

MAX_SMALL_BYTES: Final = 1 << 29
"""Arrow's 32-bit offsets reach four times as far; lengths and headers come on top of the values."""

_NIBBLES: Final = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_UUID_DIGITS: Final = np.array([at for at in range(36) if at not in (8, 13, 18, 23)])


class RowBuilder:
    """The pieces of every row, in order.

    Adjacent pieces of a fixed width are fields of one numpy record, so that byte order and position
    are handled in one pass; Arrow joins records and texts.
    """

    def __init__(self, count: int, text_type: pa.DataType) -> None:
        self.count = count
        self._text_type = text_type
        self._pieces: list[Array] = []
        self._fields: list[tuple[Any, str, int]] = []

    def add_fixed(self, values: npt.ArrayLike, dtype: str, width: int = 1) -> None:
        """Append `width` numbers of a type to every row; one number stands for all rows."""
        self._fields.append((values, dtype, width))

    def add_text(self, values: Array) -> None:
        """Append bytes of varying length, none where null."""
        self._flush()
        self._pieces.append(values.cast(self._text_type))

    def add_some(self, record: npt.NDArray[Any], is_valid: npt.NDArray[np.bool_]) -> None:
        """Append a record of fixed width where valid, nothing elsewhere."""
        self._flush()
        size = record.dtype.itemsize * (record.size // self.count)
        sizes = np.where(is_valid, size, 0)
        self._append(sizes, np.ascontiguousarray(record[is_valid]))

    def join_array(self) -> Array:
        """Return a binary value per row."""
        self._flush()
        if len(self._pieces) == 1:
            return self._pieces[0]
        empty = bytes_array(self._text_type, np.zeros(2, np.int64), b"")[0]
        joined: Array = _compute.binary_join_element_wise(
            *self._pieces, empty, null_handling="replace", null_replacement=""
        )
        return joined

    def _flush(self) -> None:
        if not self._fields:
            return
        shapes = [
            (str(at), dtype, (width,)) if width > 1 else (str(at), dtype)
            for at, (_, dtype, width) in enumerate(self._fields)
        ]
        record: npt.NDArray[Any] = np.empty(self.count, np.dtype(shapes))
        for at, (values, _, _) in enumerate(self._fields):
            record[str(at)] = values
        self._fields = []
        self._append(np.full(self.count, record.dtype.itemsize), record)

    def _append(self, sizes: npt.NDArray[np.int64], data: npt.NDArray[Any]) -> None:
        is_large = self._text_type == pa.large_binary()
        offsets = np.zeros(self.count + 1, np.int64 if is_large else np.int32)
        np.cumsum(sizes, out=offsets[1:])
        self._pieces.append(bytes_array(self._text_type, offsets, data.view(np.uint8)))


def flags(values: Array) -> npt.NDArray[Any]:
    """Return 1 for true, 0 for false and null."""
    is_true = as_numpy(values)
    return (is_true if values.null_count == 0 else is_true & is_valid(values)).view(np.uint8)


def uuid_octets(values: Array) -> npt.NDArray[np.uint8]:
    """Return 16 octets for each value; zeros where null.

    Raises:
        ProjectionError: A text is not 36 characters long.
    """
    # 36 lower-case characters each, as columns.py decodes them.
    filled = _compute.fill_null(values, text_scalar("00000000-0000-0000-0000-000000000000"))
    if (lengths(filled) != 36).any():
        raise ProjectionError("a uuid column holds text that is not 36 characters long")
    text = np.frombuffer(characters(filled.cast(pa.large_binary())), np.uint8).reshape(-1, 36)
    digits = _NIBBLES[text[:, _UUID_DIGITS]]
    octets: npt.NDArray[np.uint8] = digits[:, ::2] * np.uint8(16) + digits[:, 1::2]
    return octets


def is_valid(values: Array) -> npt.NDArray[np.bool_]:
    """Return which values are not null."""
    return as_numpy(values.is_valid())


def lengths(values: Array) -> npt.NDArray[np.int64]:
    """Return the bytes of each text; 0 where null.

    Raises:
        ProjectionError: The values are not text.
    """
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise ProjectionError(f"a column of Arrow type {values.type} cannot be read as text")
    sizes = as_numpy(_compute.binary_length(values)).astype(np.int64)
    return np.where(is_valid(values), sizes, 0) if values.null_count else sizes


def characters(values: Array) -> memoryview:
    """Return the bytes of all values of a binary array, side by side."""
    return binary_parts(values)[0]


def binary_parts(values: Array) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """Return the bytes of all values of a binary array, and their offsets."""
    buffers: Any = values.buffers()
    width = np.int64 if values.type == pa.large_binary() else np.int32
    ends = np.frombuffer(buffers[1], width)[values.offset : values.offset + len(values) + 1]
    data = memoryview(buffers[2])[int(ends[0]) : int(ends[-1])]
    return data, ends.astype(np.int64) - int(ends[0])


def numbers(values: Array, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return the values straight from Arrow's buffer; values at nulls are undefined."""
    buffers: Any = values.buffers()
    numbers: npt.NDArray[Any] = np.frombuffer(
        buffers[1], dtype, count=len(values), offset=values.offset * dtype.itemsize
    )
    return numbers
