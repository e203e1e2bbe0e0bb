"""Whether a table is what the archive says: by progress, cheaply, and by content, in full.

What belongs here: comparing. Not here: mending what differs (`rebuild`).
"""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from psycopg import IsolationLevel, sql

from feature_pipeline.archive import log, tombstones
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.encode import iter_record_rows
from feature_pipeline.archive.manifest import Manifest
from feature_pipeline.archive.read import read_manifest, read_outcomes, read_rows
from feature_pipeline.columns import columns_header, row_encoder
from feature_pipeline.digest import ContentSum, Digest, Value, canonical_json, document_bytes
from feature_pipeline.projections import evolve
from feature_pipeline.projections.bookkeeping import Progress, all_progress
from feature_pipeline.projections.database import Connection, Database
from feature_pipeline.projections.generation import Generation, require_table
from feature_pipeline.projections.progress import (
    ProgressReport,
    compare_progress,
    current_entries,
)
from feature_pipeline.projections.table_spec import TableSpec

_FETCH_ROWS: Final = 5_000
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class Proof:
    """A table's content beside the archive's, as digests over the same canonical encoding.

    Both sides are of the artifacts that `progress` says are loaded, each record under the batch
    that owns it. `unequal_batches` names the batches whose rows or outcomes are not the archive's.
    """

    table_digest: ContentSum
    archive_digest: ContentSum
    rows: int
    batches: int
    unequal_batches: tuple[str, ...]
    progress: ProgressReport

    @property
    def is_equal(self) -> bool:
        """Whether the table is exactly what the archive says."""
        return self.progress.is_complete and self.has_equal_content

    @property
    def has_equal_content(self) -> bool:
        """Whether what is loaded equals its artifacts, complete or not."""
        return not self.unequal_batches and self.table_digest == self.archive_digest

    def summary(self) -> str:
        """One line for people."""
        if self.has_equal_content:
            return f"{self.rows} rows of {self.batches} batches equal the archive's"
        named = ", ".join(self.unequal_batches[:_SHOWN])
        more = ", ..." if len(self.unequal_batches) > _SHOWN else ""
        return f"{len(self.unequal_batches)} batches differ from the archive: {named}{more}"


@dataclass(slots=True)
class _Content:
    """What one batch's rows and outcomes come to."""

    rows: ContentSum = field(default_factory=ContentSum)
    outcomes: ContentSum = field(default_factory=ContentSum)
    row_count: int = 0


def prove(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: Collection[str] | None = None,
) -> Proof:
    """Read the live table back in full and compare it with the archive.

    The table is read in one snapshot, so loads that go on meanwhile do not disturb it. Memory
    grows with the number of records, not of rows.

    Args:
        store: The archive.
        database: Where the table is.
        spec: The table.
        batches: Compare the rows of these alone; of all if None.

    Raises:
        NotFoundError: The table does not exist.
        CorruptDataError: Stored bytes are not what their digest says.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        state = require_table(connection, spec)
        return prove_generation(store, connection, spec, state.live, batches)


def prove_generation(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    generation: Generation,
    batches: Collection[str] | None = None,
) -> Proof:
    """`prove` for any generation, live or not."""
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            progress = all_progress(connection, generation.id)
            table = _table_content(connection, generation, batches)
    finally:
        connection.isolation_level = None
    archive = _archive_content(store, spec, generation, progress, batches)
    if batches is not None:
        progress = {batch: progress[batch] for batch in batches if batch in progress}
    differing = [
        batch
        for batch in sorted(table.keys() | archive.keys())
        if table.get(batch, _Content()) != archive.get(batch, _Content())
        or (batch in progress and progress[batch].rows != archive[batch].row_count)
    ]
    return Proof(
        table_digest=sum((part.rows for part in table.values()), ContentSum()),
        archive_digest=sum((part.rows for part in archive.values()), ContentSum()),
        rows=sum(part.row_count for part in table.values()),
        batches=len(progress),
        unequal_batches=tuple(differing),
        progress=compare_progress(current_entries(store, spec, batches), progress),
    )


def _table_content(
    connection: Connection, generation: Generation, batches: Collection[str] | None
) -> dict[str, _Content]:
    """Per batch, what the table holds."""
    content: dict[str, _Content] = {}
    encoder = row_encoder(generation.columns)
    chosen = None if batches is None else sorted(batches)
    rows = _read_rows(connection, generation, chosen)
    for (record_id, batch), group in groupby(rows, key=lambda row: (row[0], row[1])):
        part = content.setdefault(batch, _Content())
        values: list[tuple[Value, ...]] = []
        for row in group:
            # A gap in the ordinals is a row that is not the archive's; NULLs stand for it.
            values.extend([(None,) * len(generation.columns)] * max(0, row[2] - len(values)))
            values.append(row[3])
        part.rows += ContentSum.of([encoder.rows_digest(record_id, encoder.rows(values))])
        part.row_count += len(values)
    with connection.cursor("outcomes") as cursor:
        cursor.itersize = _FETCH_ROWS
        cursor.execute(
            sql.SQL(
                "select record_id, status, reason, batch from {}"
                " where %(batches)s::text[] is null or batch = any(%(batches)s)"
            ).format(generation.outcomes),
            {"batches": chosen},
        )
        for record_id, status, reason, batch in cursor:
            part = content.setdefault(batch, _Content())
            part.outcomes += _outcome_digest(record_id, status, reason)
    return content


def _read_rows(
    connection: Connection, generation: Generation, batches: list[str] | None
) -> Iterator[tuple[str, str, int, tuple[Value, ...]]]:
    """(record id, batch, ordinal, values), by record and ordinal; JSON is canonical."""
    columns = generation.columns
    fields: list[sql.Composable] = [sql.SQL("record_id"), sql.SQL("batch"), sql.SQL("ordinal")]
    fields += [
        sql.SQL("{}::text" if column.kind in {"json", "uuid"} else "{}").format(
            sql.Identifier(column.name)
        )
        for column in columns
    ]
    query = sql.SQL(
        "select {} from {} where %(batches)s::text[] is null or batch = any(%(batches)s)"
        " order by record_id, ordinal, batch"
    ).format(sql.SQL(", ").join(fields), generation.identifier)
    json_at = [at for at, column in enumerate(columns) if column.kind == "json"]
    with connection.cursor("rows", binary=True) as cursor:
        cursor.itersize = _FETCH_ROWS
        cursor.execute(query, {"batches": batches})
        for record_id, batch, ordinal, *values in cursor:
            for at in json_at:
                if values[at] is not None:
                    values[at] = canonical_json(json.loads(values[at]))
            yield record_id, batch, ordinal, tuple(values)


def _archive_content(
    store: BlobStore,
    spec: TableSpec,
    generation: Generation,
    progress: dict[str, Progress],
    batches: Collection[str] | None,
) -> dict[str, _Content]:
    """Per batch loaded, what the archive says: its records' outcomes and rows, if it owns them."""
    entries = log.batches(store, spec.dataset)
    withdrawn = frozenset(tombstones.withdrawn(store, spec.dataset))
    manifests = {batch: read_manifest(store, held.manifest) for batch, held in progress.items()}
    owners: dict[str, str] = {}
    # Later batches overwrite earlier ones: what is left is each record's owner.
    for batch in sorted(manifests, key=lambda batch: entries[batch].order):
        record_ids: list[Any] = read_outcomes(store, manifests[batch])["record_id"].to_pylist()
        for record_id in record_ids:
            if record_id not in withdrawn:
                owners[record_id] = batch
    return {
        batch: _batch_content(store, manifest, generation, batch, owners)
        for batch, manifest in manifests.items()
        if batches is None or batch in batches
    }


def _batch_content(
    store: BlobStore,
    manifest: Manifest,
    generation: Generation,
    batch: str,
    owners: dict[str, str],
) -> _Content:
    content, columns = _Content(), generation.columns
    outcomes = read_outcomes(store, manifest).select(["record_id", "status", "reason"])
    foreign: list[str] = []
    for line in outcomes.to_pylist():
        if owners.get(line["record_id"]) != batch:
            foreign.append(line["record_id"])
            continue
        content.outcomes += _outcome_digest(line["record_id"], line["status"], line["reason"])
    if (
        not foreign
        and manifest.rows_digest is not None
        and columns_header(manifest.columns) == columns_header(columns)
    ):
        # Acceptance computed it from these rows; the blob's bytes are checked by their digest.
        content.rows, content.row_count = manifest.rows_digest, manifest.counts.rows
        return content
    written = read_rows(store, manifest)
    rows = evolve.artifact_rows(manifest, written, columns, generation.upcasters)
    if foreign:
        is_foreign = pc.is_in(rows["record_id"], pa.array(foreign, pa.string()))
        rows = rows.filter(pc.invert(is_foreign))
    encoder = row_encoder(columns)
    for record_id, values in iter_record_rows(rows, columns):
        content.rows += ContentSum.of([encoder.rows_digest(record_id, encoder.rows(values))])
        content.row_count += len(values)
    return content


def _outcome_digest(record_id: str, status: str, reason: str | None) -> ContentSum:
    return ContentSum.parse(Digest.of(document_bytes([record_id, status, reason])).hex)
