"""Compute the digests of an artifact's outcomes, by which contents are compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format import canonical
from feature_pipeline.archive.format.outcome_columns import OutcomeColumns
from feature_pipeline.archive.format.row_bytes import MAX_SMALL_BYTES, RowBuilder, binary_parts
from feature_pipeline.model.columns import Column, row_encoder
from feature_pipeline.model.digest import ContentSum, Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeCounts, Status

_compute: Final[Any] = pc
_UUID: Final = r"\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\z"


@dataclass(frozen=True, slots=True)
class Content:
    """Digests of outcomes, independent of when or by whom they were made, and of record order."""

    content_digest: Digest
    """Equal for equal columns and equal (id, status, reason, rows): the data version."""
    rows_digest: ContentSum
    """Over the rows alone; a table is compared with it."""
    counts: OutcomeCounts

    @classmethod
    def of(cls, columns: Sequence[Column], outcomes: Sequence[Outcome]) -> "Content":
        """Return the digests and counts of `outcomes`, whose rows are in the order of `columns`.

        They equal those of `digest.RowEncoder`, but are computed a column at a time.

        Raises:
            ValueError: A text is not a UUID, or a number is not a value of its column's type.
        """
        tables = OutcomeColumns.of(columns, outcomes)
        encoder = row_encoder(columns)
        heads, keys = _heads(tables.outcomes)
        ends = pairwise(heads[1].tolist())
        key_ends = pairwise(keys[1].tolist())
        data, bounds = _rows(columns, tables)
        digests: list[bytes] = []
        of_rows: list[bytes] = []
        for (head, head_end), (key, key_end), (start, end) in zip(
            ends, key_ends, bounds, strict=True
        ):
            hasher = encoder.hasher()
            hasher.update(heads[0][head:head_end])
            hasher.update(data[start:end])
            digests.append(hasher.digest())
            # what has no rows has no key
            if key < key_end:
                hasher = encoder.hasher()
                hasher.update(keys[0][key:key_end])
                hasher.update(data[start:end])
                of_rows.append(hasher.digest())
        return cls(
            content_digest=encoder.content_digest(ContentSum.of(digests)),
            rows_digest=ContentSum.of(of_rows),
            counts=_counts(tables.outcomes),
        )


_Parts = tuple[memoryview, npt.NDArray[np.int64]]


def _heads(table: pa.Table) -> tuple[_Parts, _Parts]:
    """Return what stands before each record's rows in its two digests, with offsets.

    The second is that of its rows alone, and empty if there are none.
    """
    count = table.num_rows
    if not count:
        nothing = memoryview(b""), np.zeros(1, np.int64)
        return nothing, nothing
    is_large = table.nbytes > MAX_SMALL_BYTES
    text_type = pa.large_binary() if is_large else pa.binary()
    ids, statuses, reasons, row_counts = (
        table.column(name).combine_chunks()
        for name in ("record_id", "status", "reason", "row_count")
    )
    head = RowBuilder(count, text_type)
    for texts in (ids, statuses, reasons):
        canonical.add_text(head, texts, "s")
    numbers = np.asarray(row_counts)
    head.add_fixed(numbers, ">u4")
    key = RowBuilder(count, text_type)
    canonical.add_text(key, ids, "s")
    key.add_fixed(numbers, ">u4")
    keys = _compute.if_else(pa.array(numbers > 0), key.join_array(), pa.scalar(b"", text_type))
    return binary_parts(head.join_array()), binary_parts(keys)


def _rows(
    columns: Sequence[Column], tables: OutcomeColumns
) -> tuple[memoryview, list[tuple[int, int]]]:
    """Return the encoding of all rows, and where in it those of each outcome are."""
    rows, outcomes = tables.rows, tables.outcomes
    counts = np.asarray(outcomes.column("row_count")).astype(np.int64)
    if not rows.num_rows or not columns:
        return memoryview(b""), [(0, 0)] * len(counts)
    arrays: list[Any] = [rows.column(2 + at).combine_chunks() for at in range(len(columns))]
    data, offsets = canonical.encode_rows(
        [
            (column.kind, _uuids(array) if column.kind == "uuid" else array)
            for column, array in zip(columns, arrays, strict=True)
        ]
    )
    first: Any = pa.array(np.flatnonzero(np.asarray(rows.column(1)) == 0))
    with_rows = counts > 0
    ids = outcomes.column("record_id").filter(pa.array(with_rows))
    places = _compute.index_in(ids, rows.column(0).take(first).combine_chunks())
    starts = np.zeros(len(counts), np.int64)
    starts[with_rows] = np.asarray(first.take(places.combine_chunks()))
    return data, list(zip(offsets[starts].tolist(), offsets[starts + counts].tolist(), strict=True))


def _uuids(texts: Any) -> Any:
    """Return UUIDs as columns decode them; another writer may have used capitals."""
    if _compute.all(_compute.match_substring_regex(texts, _UUID)).as_py() is not False:
        return texts
    return pa.array(
        [None if text is None else str(UUID(text)) for text in texts.to_pylist()], texts.type
    )


def _counts(table: pa.Table) -> OutcomeCounts:
    statuses = table.column("status").combine_chunks().dictionary_encode()
    by_status = dict.fromkeys((each.value for each in Status), 0)
    numbers = np.bincount(np.asarray(statuses.indices), minlength=len(statuses.dictionary))
    names: list[Any] = statuses.dictionary.to_pylist()
    by_status |= dict(zip(names, numbers.tolist(), strict=True))
    rows = np.asarray(table.column("row_count")).astype(np.int64)
    carried = table.column("carried_from")
    return OutcomeCounts(
        records=table.num_rows,
        **by_status,
        empty=by_status[Status.PASSED] - int(np.count_nonzero(rows)),
        rows=int(rows.sum()),
        carried=len(carried) - carried.null_count,
    )
