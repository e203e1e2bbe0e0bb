"""Encode Arrow record batches for PostgreSQL's binary COPY, one column at a time.

Binary rather than text: PostgreSQL parses neither numbers nor dates, every float64 arrives bit for
bit, and no value needs quoting. Arrow's own join kernel concatenates the bytes of each row, so that
no Python code runs for a row or a value.

Source: PostgreSQL documentation, COPY, "Binary Format"; src/backend/utils/adt (`*_recv`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.errors import ProjectionError

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Signature, no flags, no header extension."""
COPY_TRAILER: Final = b"\xff\xff"

# The published stubs know only some of the forms that the kernels take.
_compute: Final[Any] = pc

MAX_SMALL_BYTES: Final = 1 << 29
"""Arrow's 32-bit offsets reach four times as far; lengths and headers come on top of the values."""
_JSONB_VERSION: Final = 1
_EPOCH_DAYS: Final = 10_957
"""Days from 1970-01-01 to PostgreSQL's 2000-01-01."""
_EPOCH_MICROSECONDS: Final = _EPOCH_DAYS * 86_400_000_000

Array: TypeAlias = "pa.Array[Any]"


def encode_copy_rows(columns: Sequence[tuple[str, Array]]) -> memoryview:
    """Return the COPY tuples of these columns, row by row, without header and trailer.

    Args:
        columns: For each column its kind (`columns.Column.kind`, or `ordinal` for a 32-bit integer)
            and its values, all of one length.

    Raises:
        ProjectionError: A column's Arrow type does not match its kind.
    """
    if len(columns[0][1]) == 0:
        return memoryview(b"")
    return _characters(encode_copy_tuples(columns))


def encode_copy_tuples(columns: Sequence[tuple[str, Array]]) -> Array:
    """Return the COPY tuple of each row, at least one, as `encode_copy_rows` joins them."""
    count = len(columns[0][1])
    is_large = sum(values.nbytes for _, values in columns) > MAX_SMALL_BYTES
    row = RowBuilder(count, pa.large_binary() if is_large else pa.binary())
    row.add_fixed(len(columns), ">i2")
    for kind, values in columns:
        _ADD_COLUMN[kind](row, values)
    return row.join_array()


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
        empty = pa.scalar(b"", self._text_type)
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
        py_buffer: Any = pa.py_buffer
        from_buffers: Any = pa.Array.from_buffers
        buffers = [None, py_buffer(offsets), py_buffer(data.view(np.uint8))]
        self._pieces.append(from_buffers(self._text_type, self.count, buffers))


def _add_number_like(row: RowBuilder, values: Array, encoded: npt.NDArray[Any], dtype: str) -> None:
    """Append a field of a fixed width: its length, or -1 for null, then its bytes."""
    width = 1 if encoded.ndim == 1 else encoded.shape[1]
    size = width * np.dtype(dtype).itemsize
    if values.null_count == 0:
        row.add_fixed(size, ">i4")
        row.add_fixed(encoded, dtype, width)
        return
    valid = is_valid(values)
    row.add_fixed(np.where(valid, size, -1), ">i4")
    row.add_some(encoded.astype(dtype, copy=False).reshape(row.count, -1), valid)


def _add_text(row: RowBuilder, values: Array) -> None:
    sizes = lengths(values)
    if values.null_count:
        sizes = np.where(is_valid(values), sizes, -1)
    row.add_fixed(sizes, ">i4")
    row.add_text(values)


def _add_json(row: RowBuilder, values: Array) -> None:
    sizes = lengths(values) + 1
    version = np.full(row.count, _JSONB_VERSION, np.uint8)
    if values.null_count == 0:
        row.add_fixed(sizes, ">i4")
        row.add_fixed(version, "u1")
    else:
        valid = is_valid(values)
        row.add_fixed(np.where(valid, sizes, -1), ">i4")
        row.add_some(version, valid)
    row.add_text(values)


def _add_number(row: RowBuilder, values: Array) -> None:
    _check_type(values, pa.float64())
    _add_number_like(row, values, numbers(values, np.dtype("<f8")), ">f8")


def _add_integer(row: RowBuilder, values: Array) -> None:
    _check_type(values, pa.int64())
    _add_number_like(row, values, numbers(values, np.dtype("<i8")), ">i8")


def _add_ordinal(row: RowBuilder, values: Array) -> None:
    _check_type(values, pa.int32())
    _add_number_like(row, values, numbers(values, np.dtype("<i4")), ">i4")


def _add_boolean(row: RowBuilder, values: Array) -> None:
    _check_type(values, pa.bool_())
    _add_number_like(row, values, flags(values), "u1")


def _add_date(row: RowBuilder, values: Array) -> None:
    _check_type(values, pa.date32())
    days = numbers(values, np.dtype("<i4")) - np.int32(_EPOCH_DAYS)
    _add_number_like(row, values, days, ">i4")


def _add_instant(row: RowBuilder, values: Array) -> None:
    _check_type(values, pa.timestamp("us", "UTC"))
    since = numbers(values, np.dtype("<i8")) - np.int64(_EPOCH_MICROSECONDS)
    _add_number_like(row, values, since, ">i8")


_NIBBLES: Final = np.zeros(256, np.uint8)
_NIBBLES[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
_UUID_DIGITS: Final = np.array([at for at in range(36) if at not in (8, 13, 18, 23)])


def _add_uuid(row: RowBuilder, values: Array) -> None:
    _add_number_like(row, values, uuid_octets(values), "u1")


_ADD_COLUMN: Final[dict[str, Callable[[RowBuilder, Array], None]]] = {
    "string": _add_text,
    "number": _add_number,
    "integer": _add_integer,
    "ordinal": _add_ordinal,
    "boolean": _add_boolean,
    "json": _add_json,
    "date": _add_date,
    "date-time": _add_instant,
    "uuid": _add_uuid,
}


def flags(values: Array) -> npt.NDArray[Any]:
    """Return 1 for true, 0 for false and null."""
    return np.asarray(_compute.fill_null(values, False).cast(pa.uint8()))


def uuid_octets(values: Array) -> npt.NDArray[np.uint8]:
    """Return 16 octets for each value; zeros where null.

    Raises:
        ProjectionError: A text is not 36 characters long.
    """
    # 36 lower-case characters each, as columns.py decodes them.
    filled = _compute.fill_null(values, "00000000-0000-0000-0000-000000000000")
    if (lengths(filled) != 36).any():
        raise ProjectionError("a uuid column holds text that is not 36 characters long")
    text = np.frombuffer(_characters(filled.cast(pa.large_binary())), np.uint8).reshape(-1, 36)
    digits = _NIBBLES[text[:, _UUID_DIGITS]]
    octets: npt.NDArray[np.uint8] = digits[:, ::2] * np.uint8(16) + digits[:, 1::2]
    return octets


def _check_type(values: Array, expected: pa.DataType) -> None:
    if values.type != expected:
        raise ProjectionError(f"a column of Arrow type {values.type} cannot be read as {expected}")


def is_valid(values: Array) -> npt.NDArray[np.bool_]:
    """Return which values are not null."""
    return np.asarray(values.is_valid())


def lengths(values: Array) -> npt.NDArray[np.int64]:
    """Return the bytes of each text; 0 where null.

    Raises:
        ProjectionError: The values are no text.
    """
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise ProjectionError(f"a column of Arrow type {values.type} cannot be read as text")
    return np.asarray(_compute.fill_null(_compute.binary_length(values), 0)).astype(np.int64)


def _characters(values: Array) -> memoryview:
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
