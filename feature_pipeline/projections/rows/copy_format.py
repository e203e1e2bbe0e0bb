"""Encode Arrow record batches for PostgreSQL's binary COPY, one column at a time.

Binary rather than text: PostgreSQL parses neither numbers nor dates, every float64 arrives bit for
bit, and no value needs quoting. Arrow's own join kernel concatenates the bytes of each row, so that
no Python code runs for a row or a value.

Source: PostgreSQL documentation, COPY, "Binary Format"; src/backend/utils/adt (`*_recv`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_pipeline.archive.format.arrow_values import Array
from feature_pipeline.archive.format.row_bytes import (
    MAX_SMALL_BYTES,
    RowBuilder,
    characters,
    flags,
    is_valid,
    lengths,
    numbers,
    uuid_octets,
)
from feature_pipeline.errors import ProjectionError

COPY_HEADER: Final = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
"""Signature, no flags, no header extension."""
COPY_TRAILER: Final = b"\xff\xff"


_JSONB_VERSION: Final = 1
_EPOCH_DAYS: Final = 10_957
"""Days from 1970-01-01 to PostgreSQL's 2000-01-01."""
_EPOCH_MICROSECONDS: Final = _EPOCH_DAYS * 86_400_000_000


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
    return characters(encode_copy_tuples(columns))


def encode_copy_tuples(columns: Sequence[tuple[str, Array]]) -> Array:
    """Return the COPY tuple of each row, at least one, as `encode_copy_rows` joins them."""
    count = len(columns[0][1])
    is_large = sum(values.nbytes for _, values in columns) > MAX_SMALL_BYTES
    row = RowBuilder(count, pa.large_binary() if is_large else pa.binary())
    row.add_fixed(len(columns), ">i2")
    for kind, values in columns:
        _ADD_COLUMN[kind](row, values)
    return row.join_array()


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


def _check_type(values: Array, expected: pa.DataType) -> None:
    if values.type != expected:
        raise ProjectionError(f"a column of Arrow type {values.type} cannot be read as {expected}")
