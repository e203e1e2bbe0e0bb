"""Encode Arrow columns canonically for comparing content, one column at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.arrow_values import Array, as_numpy, number_array
from feature_pipeline.archive.format.canonical import add_text, encode_rows
from feature_pipeline.archive.format.row_bytes import RowBuilder, binary_parts
from feature_pipeline.model.digest import RowEncoder

_compute: Final[Any] = pc


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
        gaps = np.add.reduceat(positions != as_numpy(ordinals), starts).tolist()
        first = number_array(pa.int64(), starts)
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
                given = as_numpy(ordinals)[starts[at] : starts[at] + row_counts[at]]
                hasher.update(b"ordinals" + given.tobytes())
            digests.append(hasher.digest())
        return Records(starts, row_counts, digests)


def _heads(
    record_ids: Array, row_counts: npt.NDArray[np.int64]
) -> tuple[memoryview, npt.NDArray[np.int64]]:
    """Return what stands before each record's rows, concatenated, and its offsets."""
    head = RowBuilder(len(record_ids), pa.binary())
    add_text(head, record_ids, "s")
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
    codes = as_numpy(encoded.indices)
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    sums = np.add.reduceat(_words(digests)[order], starts, axis=0)
    totals = np.add.reduceat(counts[order], starts).tolist()
    chosen = number_array(pa.int32(), codes[order][starts])
    names = encoded.dictionary.take(chosen).to_pylist()
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
    return as_numpy(_compute.not_equal(key[1:], key[:-1]))
