"""Encode Arrow columns canonically (`digest.RowEncoder`), one column at a time."""

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
    binary_parts,
    flags,
    is_valid,
    lengths,
    numbers,
    uuid_octets,
)

_NULL: Final = ord("N")
_NAN_BITS: Final = 0x7FF8_0000_0000_0000


def encode_rows(columns: Sequence[tuple[str, Array]]) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """Return every row's canonical encoding, concatenated, and the offsets of the rows.

    Args:
        columns: For each column its kind and its values, all of one length. A `json` column has
            canonical text.
    """
    count = len(columns[0][1]) if columns else 0
    if count == 0:
        return memoryview(b""), np.zeros(1, np.int64)
    is_large = sum(values.nbytes for _, values in columns) > MAX_SMALL_BYTES
    row = RowBuilder(count, pa.large_binary() if is_large else pa.binary())
    for kind, values in columns:
        _ADD_COLUMN[kind](row, values)
    return binary_parts(row.join_array())


def _add_tag(row: RowBuilder, values: Array, tag: str) -> npt.NDArray[np.bool_] | None:
    """Append the tag of each value; return which of them are valid, None if all are."""
    if values.null_count == 0:
        row.add_fixed(ord(tag), "u1")
        return None
    valid = is_valid(values)
    row.add_fixed(np.where(valid, ord(tag), _NULL), "u1")
    return valid


def _add_fixed(
    row: RowBuilder, values: Array, tag: str, data: npt.NDArray[Any], dtype: str
) -> None:
    valid = _add_tag(row, values, tag)
    if valid is None:
        row.add_fixed(data, dtype, 1 if data.ndim == 1 else data.shape[1])
    else:
        row.add_some(data.astype(dtype, copy=False).reshape(row.count, -1), valid)


def add_text(row: RowBuilder, values: Array, tag: str) -> None:
    """Append each text: its tag, length and bytes."""
    valid = _add_tag(row, values, tag)
    sizes = lengths(values)
    if valid is None:
        row.add_fixed(sizes, ">u4")
    else:
        row.add_some(sizes.astype(">u4").reshape(row.count, -1), valid)
    row.add_text(values)


def _add_number(row: RowBuilder, values: Array) -> None:
    data = numbers(values, np.dtype("<f8"))
    bits = np.where(np.isnan(data), np.uint64(_NAN_BITS), data.view(np.uint64))
    _add_fixed(row, values, "d", bits, ">u8")


def _add_boolean(row: RowBuilder, values: Array) -> None:
    tags = np.where(flags(values) != 0, ord("T"), ord("F"))
    if values.null_count:
        tags = np.where(is_valid(values), tags, _NULL)
    row.add_fixed(tags, "u1")


_ADD_COLUMN: Final[dict[str, Callable[[RowBuilder, Array], None]]] = {
    "string": lambda row, values: add_text(row, values, "s"),
    "json": lambda row, values: add_text(row, values, "j"),
    "number": _add_number,
    "integer": lambda row, values: _add_fixed(
        row, values, "i", numbers(values, np.dtype("<i8")), ">i8"
    ),
    "boolean": _add_boolean,
    "date": lambda row, values: _add_fixed(
        row, values, "D", numbers(values, np.dtype("<i4")).astype(np.int64), ">i8"
    ),
    "date-time": lambda row, values: _add_fixed(
        row, values, "t", numbers(values, np.dtype("<i8")), ">i8"
    ),
    "uuid": lambda row, values: _add_fixed(row, values, "u", uuid_octets(values), "u1"),
}
