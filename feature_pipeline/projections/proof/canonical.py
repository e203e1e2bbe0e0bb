"""Encode Arrow columns canonically for comparing content, one column at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.model.digest import RowEncoder
from feature_pipeline.projections.rows.copy_format import (
    MAX_SMALL_BYTES,
    Array,
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

_compute: Final[Any] = pc


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


@dataclass(frozen=True, slots=True)
class Records:
    """The digest of each record of a table, in its order."""

    starts: npt.NDArray[np.int64]
    """The position of each record's first row."""
    row_counts: npt.NDArray[np.int64]
    digests: list[bytes]


class RecordDigests:
    """One digest per record, from rows that come in the order of records and ordinals.

    Args:
        encoder: For the columns of the rows.
        kinds: Of these columns.
    """

    def __init__(self, encoder: RowEncoder, kinds: Sequence[str]) -> None:
        self._encoder, self._kinds = encoder, kinds

    def of(self, keys: Sequence[Array], ordinals: Array, columns: Sequence[Array]) -> Records:
        """Return the digests of the records.

        Args:
            keys: The columns that identify records, the record's id first.
            ordinals: 0..n-1 in each record; anything else gives a digest that no artifact has.
            columns: The values.
        """
        count = len(ordinals)
        if count == 0:
            return Records(np.zeros(0, np.int64), np.zeros(0, np.int64), [])
        is_first = np.ones(count, np.bool_)
        is_first[1:] = np.logical_or.reduce([_changes(key) for key in keys])
        starts = np.flatnonzero(is_first)
        row_counts = np.diff(starts, append=count)
        positions = np.arange(count) - np.repeat(starts, row_counts)
        gaps = np.add.reduceat(positions != np.asarray(ordinals), starts).tolist()
        first: Any = pa.array(starts)
        heads, head_offsets = _heads(keys[0].take(first), row_counts)
        data, offsets = encode_rows(list(zip(self._kinds, columns, strict=True)))
        row_offsets = np.append(offsets[starts] if columns else starts * 0, len(data))
        bounds = zip(pairwise(head_offsets.tolist()), pairwise(row_offsets.tolist()), strict=True)
        digests: list[bytes] = []
        for at, ((head, head_end), (rows, rows_end)) in enumerate(bounds):
            hasher = self._encoder.hasher()
            hasher.update(heads[head:head_end])
            hasher.update(data[rows:rows_end])
            if gaps[at]:
                given = np.asarray(ordinals)[starts[at] : starts[at] + row_counts[at]]
                hasher.update(b"ordinals" + given.tobytes())
            digests.append(hasher.digest())
        return Records(starts, row_counts, digests)


def _heads(
    record_ids: Array, row_counts: npt.NDArray[np.int64]
) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """Return what stands before each record's rows, concatenated, and its offsets."""
    head = RowBuilder(len(record_ids), pa.binary())
    _add_text(head, record_ids, "s")
    head.add_fixed(row_counts, ">u4")
    return binary_parts(head.join_array())


def line_digests(columns: Sequence[Array]) -> list[bytes]:
    """Return one SHA-256 per row of these text columns."""
    data, offsets = encode_rows([("string", values) for values in columns])
    sha256 = hashlib.sha256
    return [sha256(data[start:end]).digest() for start, end in pairwise(offsets.tolist())]


def sum_digests(digests: Sequence[bytes]) -> int:
    """Return the sum of these SHA-256, each alone or several side by side, without a modulus."""
    return _as_number(_words(digests).sum(axis=0))


def sum_by_label(
    labels: Array, digests: Sequence[bytes], counts: npt.NDArray[np.int64]
) -> Iterator[tuple[str, int, int]]:
    """Return for each label the sums of its digests and of its counts, one of each per value."""
    if not digests:
        return
    encoded: Any = _compute.dictionary_encode(labels)
    codes = np.asarray(encoded.indices)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sums = np.add.reduceat(_words(digests)[order], starts, axis=0)
    totals = np.add.reduceat(counts[order], starts).tolist()
    names = encoded.dictionary.take(pa.array(codes[order][starts])).to_pylist()
    yield from zip(names, map(_as_number, sums), totals, strict=True)


def _words(digests: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Return eight 32-bit words a digest: 2^32 of them can be added without an overflow."""
    return np.frombuffer(b"".join(digests), ">u4").reshape(-1, 8).astype(np.uint64)


def _as_number(words: npt.NDArray[np.uint64]) -> int:
    number = 0
    for word in words.tolist():
        number = (number << 32) + word
    return number


def _changes(key: Array) -> npt.NDArray[np.bool_]:
    """Return whether each value but the first differs from the one before it."""
    differs: npt.NDArray[np.bool_] = np.asarray(_compute.not_equal(key[1:], key[:-1]))
    return differs


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


def _add_text(row: RowBuilder, values: Array, tag: str) -> None:
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
    "string": lambda row, values: _add_text(row, values, "s"),
    "json": lambda row, values: _add_text(row, values, "j"),
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
