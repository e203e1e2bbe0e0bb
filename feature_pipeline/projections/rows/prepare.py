"""Prepare one batch for a table: read, check, evolve and encode it, without a database."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_pipeline.archive.format.arrow_values import number_array, repeat, text_array
from feature_pipeline.archive.format.layout import FIRST_SEQ
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.read import manifest_of, read_outcomes, read_rows
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.digest import ContentSum, Digest
from feature_pipeline.projections.catalog.ddl import column_kinds
from feature_pipeline.projections.catalog.generation import Generation
from feature_pipeline.projections.rows import copy_format, evolve
from feature_pipeline.projections.rows.renamed_columns import check_carried

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

CHUNK_ROWS: Final = 16_384
"""Rows encoded at a time. With the widest rows seen (2 KB) a chunk is 32 MB."""


OUTCOME_KINDS: Final = {
    "generation": "ordinal",
    "record_id": "string",
    "status": "string",
    "reason": "string",
    "batch": "string",
    "submitted_at": "date-time",
}
"""The columns of `outcomes` that a load fills, as `copy_format` encodes them."""


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """The content of a batch's head, ready to be loaded into one generation."""

    batch: str
    submitted_at: datetime
    entry: FeatureEntry
    manifest: Manifest
    content_digest: Digest
    rows_digest: ContentSum
    outcomes: pa.Table
    """record_id, status and reason, sorted by record id."""
    rows: pa.Table
    kinds: dict[str, str]
    withdrawn: frozenset[str]
    """Records that must not appear; `outcomes` and `rows` are without them."""
    is_redacted: bool
    """Whether records were erased from the batch."""
    encoded: tuple[memoryview, ...] | None
    """COPY rows of all of `rows`, if they were encoded ahead."""

    @property
    def size(self) -> int:
        """Bytes of rows in Arrow's form."""
        return self.rows.nbytes

    def record_ids(self) -> list[str]:
        """Return the batch's records, sorted."""
        ids: list[Any] = self.outcomes["record_id"].to_pylist()
        return ids

    def chunks(self, owned: Sequence[str] | None) -> Iterator[memoryview]:
        """Yield COPY rows of the owned records, all if None."""
        if owned is None and self.encoded is not None:
            yield from self.encoded
            return
        yield from encode_chunks(self.owned_rows(owned), self.batch, self.kinds)

    def owned_rows(self, owned: Sequence[str] | None) -> pa.Table:
        """Return the rows that `chunks` encodes, in their order."""
        if owned is None:
            return self.rows
        return self.rows.filter(pc.is_in(self.rows["record_id"], text_array(owned)))

    def row_count(self, owned: Sequence[str] | None) -> int:
        """Return the number of rows of `chunks`."""
        if owned is None:
            return len(self.rows)
        is_owned = pc.is_in(self.rows["record_id"], text_array(owned))
        return is_owned.to_pylist().count(True)


@dataclass(frozen=True, slots=True)
class PreparedGroup:
    """Batches that may be loaded into one generation in one transaction."""

    batches: tuple[PreparedBatch, ...]
    encoded_outcomes: memoryview
    """COPY rows of all their outcomes, in the order of record ids."""


def prepare_batch(
    store: BlobStore,
    generation: Generation,
    batch: BatchEntry,
    entry: FeatureEntry,
    withdrawn: frozenset[str] = frozenset(),
) -> PreparedBatch:
    """Convert the artifact of `entry` to rows of the generation, checking its bytes.

    Args:
        store: The archive.
        generation: Whose columns the rows take.
        batch: The batch, for its order among the others.
        entry: The log entry to load.
        withdrawn: Records that must not appear, whatever the artifact contains.

    Raises:
        CannotEvolveError: The artifact's columns or values do not fit the generation's.
        CorruptDataError: Stored bytes do not match their digest.
        StoreUnavailableError: The store did not answer.
    """
    manifest = manifest_of(store, entry)
    if manifest.content_digest is None or manifest.rows_digest is None:
        raise CorruptDataError(
            f"manifest {entry.manifest} of batch {batch.batch!r} is current in the log, but"
            " belongs to a failed hook run"
        )
    written = _without(read_rows(store, manifest), withdrawn)
    archived = read_outcomes(store, manifest)
    check_carried(store, manifest, archived)
    rows = evolve.artifact_rows(manifest, written, generation.columns, generation.upcasters)
    kinds = column_kinds(generation.columns)
    outcomes = _sorted(_without(archived, withdrawn))
    is_small = len(rows) <= CHUNK_ROWS
    return PreparedBatch(
        batch=batch.batch,
        submitted_at=batch.submitted_at,
        entry=entry,
        manifest=manifest,
        content_digest=manifest.content_digest,
        rows_digest=manifest.rows_digest,
        outcomes=outcomes,
        rows=rows,
        kinds=kinds,
        withdrawn=withdrawn,
        is_redacted=batch.seq > FIRST_SEQ,
        encoded=tuple(encode_chunks(rows, batch.batch, kinds)) if is_small else None,
    )


def prepare_group(batches: Sequence[PreparedBatch], generation: Generation) -> PreparedGroup:
    """Prepare these batches, at least one, for one transaction."""
    tables = []
    for prepared in batches:
        table, count = prepared.outcomes, len(prepared.outcomes)
        table = table.append_column("batch", repeat(text_array([prepared.batch]), count))
        submitted_at = repeat(_instant(prepared.submitted_at), count)
        tables.append(table.append_column("submitted_at", submitted_at))
    # Every loader takes records in this order, so that none waits for another in a circle.
    outcomes = tables[0] if len(tables) == 1 else pa.concat_tables(tables).sort_by("record_id")
    values = {name: one_array(outcomes[name]) for name in outcomes.column_names}
    values["generation"] = repeat(
        number_array(pa.int32(), np.array([generation.id], np.int32)), len(outcomes)
    )
    encoded = copy_format.encode_copy_rows([(kind, values[n]) for n, kind in OUTCOME_KINDS.items()])
    return PreparedGroup(tuple(batches), encoded)


def encode_chunks(rows: pa.Table, batch: str, kinds: dict[str, str]) -> Iterator[memoryview]:
    """Yield COPY rows of `rows`, `CHUNK_ROWS` at a time."""
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows.slice(start, CHUNK_ROWS)
        label = repeat(text_array([batch]), len(chunk))
        yield copy_format.encode_copy_rows(
            [
                (kind, label if name == "batch" else one_array(chunk[name]))
                for name, kind in kinds.items()
            ]
        )


def one_array(values: pa.ChunkedArray[Any]) -> pa.Array[Any]:
    """Return the values in one piece; copied only if they were in several."""
    # The published stubs of pyarrow mistake both for chunked arrays.
    concat: Any = pa.concat_arrays
    if values.num_chunks == 0:
        empty: pa.Array[Any] = pa.nulls(0, values.type)
        return empty
    array: pa.Array[Any] = values.chunks[0] if values.num_chunks == 1 else concat(values.chunks)
    return array


def _instant(time: datetime) -> pa.Array[Any]:
    microseconds = (time - _EPOCH) // timedelta(microseconds=1)
    return number_array(pa.timestamp("us", "UTC"), np.array([microseconds], np.int64))


def _without(table: pa.Table, withdrawn: frozenset[str]) -> pa.Table:
    if not withdrawn:
        return table
    is_withdrawn = pc.is_in(table["record_id"], text_array(sorted(withdrawn)))
    return table.filter(pc.invert(is_withdrawn))


def _sorted(table: pa.Table) -> pa.Table:
    # By bytes of UTF-8, which is the order of collation "C": every loader claims in this order.
    return table.select(["record_id", "status", "reason"]).sort_by("record_id")
