"""Prove that a table equals the archive, by comparing its full content."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import IsolationLevel, sql

from feature_pipeline import measure
from feature_pipeline.archive.format.arrow_values import as_numpy, number_array, text_array
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import erasures, log, tombstones
from feature_pipeline.archive.logs.erasures import Erased
from feature_pipeline.archive.read import read_manifest, read_outcomes, read_rows
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, NotFoundError, ProjectionError
from feature_pipeline.model.columns import columns_header, row_encoder
from feature_pipeline.model.digest import ContentSum, Digest
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.parallel import call_beside, map_threads
from feature_pipeline.projections.catalog import ddl
from feature_pipeline.projections.catalog.bookkeeping import Progress, all_progress, read_left_out
from feature_pipeline.projections.catalog.database import READ_SCHEMA, Connection, Database
from feature_pipeline.projections.catalog.generation import Generation, require_table
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import is_shown
from feature_pipeline.projections.proof.canonical import (
    RecordDigests,
    line_digests,
    sum_by_label,
    sum_digests,
)
from feature_pipeline.projections.proof.json_texts import canonical_texts
from feature_pipeline.projections.proof.missing_batches import (
    ProgressReport,
    compare_progress,
    current_entries,
)
from feature_pipeline.projections.proof.proof_cache import (
    KeptProof,
    content_state,
    find_proof,
    keep_proof,
)
from feature_pipeline.projections.proof.read_back import column_fields, parse, read_texts
from feature_pipeline.projections.rows import evolve
from feature_pipeline.projections.rows.prepare import one_array
from feature_pipeline.projections.rows.renamed_columns import check_carried
from feature_pipeline.projections.rows.upcast import CannotEvolveError
from feature_pipeline.projections.rows.withhold import WITHHELD, read_withheld

_MODULUS: Final = 2**256
_DIGEST_BYTES: Final = 32
_OUTCOME_FIELDS: Final = ("record_id", "status", "reason")
_MOST_LOOKED_UP: Final = 50_000
"""Number of records up to which rows are looked up by key: the statement names each of them."""


class AlteredTableError(ProjectionError):
    """The real table behind the view was altered after it was created."""


@dataclass(frozen=True, slots=True)
class Proof:
    """The content of a table and of the archive, as digests over the same canonical encoding.

    Both sides cover the artifacts that are loaded according to `progress`, each record under the
    batch that owns it. `unequal_batches` names the batches whose rows or outcomes differ from the
    archive's, including those whose artifact cannot be read or was erased; `unreadable` gives the
    reasons. For these, the table's own statement of record ownership is used. `left_out` gives for
    records the reason why PostgreSQL cannot store their rows: both sides are without these.
    """

    table_digest: ContentSum
    archive_digest: ContentSum
    rows: int
    batches: int
    unequal_batches: tuple[str, ...]
    progress: ProgressReport
    unreadable: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_equal(self) -> bool:
        """Whether the table equals the archive exactly."""
        return self.progress.is_complete and self.has_equal_content and not self.left_out

    @property
    def has_equal_content(self) -> bool:
        """Whether the loaded content equals its artifacts, except left-out records."""
        return not self.unequal_batches and self.table_digest == self.archive_digest

    def summary(self) -> str:
        """Return a one-line summary."""
        if self.has_equal_content:
            what = f"{counted(self.rows, 'row')} of {counted(self.batches, 'batch')}"
            equal = f"{what}: equal to the archive's"
            return f"{equal}; {describe_left_out(self.left_out)}" if self.left_out else equal
        named = first_few(self.unequal_batches)
        unequal = counted(len(self.unequal_batches), "batch")
        differing = f"{unequal} unequal to the archive's: {named}"
        reasons = [f"batch {batch!r}: {why}" for batch, why in self.unreadable.items()]
        return f"{differing}; {first_few(reasons, separator='; ')}" if reasons else differing


def describe_left_out(left_out: Mapping[str, str]) -> str:
    """Return one line on records whose rows PostgreSQL cannot store."""
    named = first_few([f"{record!r}: {why}" for record, why in left_out.items()], separator="; ")
    return (
        f"{counted(len(left_out), 'record')} left out, with rows that PostgreSQL cannot store:"
        f" {named}"
    )


@dataclass(slots=True)
class _Content:
    """Totals of one batch's rows and outcomes: sums of digests, and the number of rows."""

    rows: int = 0
    outcomes: int = 0
    row_count: int = 0

    def add_rows(self, digests: int, count: int) -> None:
        self.rows = (self.rows + digests) % _MODULUS
        self.row_count += count

    def add_outcomes(self, digests: int) -> None:
        self.outcomes = (self.outcomes + digests) % _MODULUS


@dataclass(frozen=True, slots=True)
class _Artifact:
    """What was read of a batch's artifact, once for all that is asked about it."""

    manifest: Manifest
    record_ids: list[Any]
    outcome_digests: bytes
    """`_DIGEST_BYTES` for each record, side by side."""
    misread: str | None
    """Why its rows are not those that it declares (`check_carried`)."""


def prove(
    store: BlobStore,
    database: Database,
    spec: TableSpec,
    batches: Collection[str] | None = None,
    *,
    may_reuse: bool = False,
) -> Proof:
    """Read back what the view shows, completely, and compare it with the archive.

    Rows are read through the view, so that a changed view is noticed. The table is read in one
    snapshot, so that concurrent loads do not disturb it. Memory grows with the number of records,
    not of rows.

    Args:
        store: The archive.
        database: The table's database.
        spec: The table.
        batches: Compare only the records of these, at a cost that depends on them and not on what
            is loaded; everything in the table if None. Rows of a record that none of them has are
            then not checked.
        may_reuse: Whether to return the last full proof if nothing has changed since.

    Raises:
        NotFoundError: The table does not exist, or nothing of it was proved yet.
        AlteredTableError: Its real table was altered.
        StoreUnavailableError: The store did not answer.
    """
    with database.connect(f"table {spec.name!r}") as connection:
        live = _require_live(connection, spec)
        is_read = is_shown(connection, spec.name)
        if may_reuse and batches is None and is_read:
            proof = prove_once(store, connection, spec, live)
        else:
            source = _read_by_people(connection, spec, live)
            proof = prove_generation(store, connection, spec, live, batches, source)
    return replace(proof, progress=replace(proof.progress, is_shown=is_read))


def _require_live(connection: Connection, spec: TableSpec) -> Generation:
    live = require_table(connection, spec).live
    if live is None:
        raise NotFoundError(
            f"table {spec.name!r} has no live generation yet: load the missing batches first"
        )
    if not live.is_whole:
        raise AlteredTableError(
            f"table {spec.name!r}: generation {live.relation} was altered by hand: load any batch,"
            " or run `feature-pipeline rebuild`, to build it again"
        )
    return live


def _read_by_people(connection: Connection, spec: TableSpec, live: Generation) -> sql.Identifier:
    """Return the view if it has the compared columns; otherwise the generation.

    In the latter case users read something other than the table, and `is_shown` shows that.
    """
    columns = connection.execute(
        "select a.attname, format_type(a.atttypid, a.atttypmod) from pg_attribute a"
        " join pg_class c on c.oid = a.attrelid join pg_namespace n on n.oid = c.relnamespace"
        " where n.nspname = %s and c.relname = %s and a.attnum > 0 and not a.attisdropped",
        [READ_SCHEMA, spec.name],
    )
    is_like = ddl.column_types(live.columns).items() <= dict(columns.fetchall()).items()
    return sql.Identifier(READ_SCHEMA, spec.name) if is_like else live.identifier


def prove_once(
    store: BlobStore, connection: Connection, spec: TableSpec, generation: Generation
) -> Proof:
    """Return the full proof of any generation; the stored one, if nothing has changed since."""
    progress = all_progress(connection, generation.id)
    withdrawn = tombstones.withdrawn(store, spec.dataset)
    state = content_state(connection, generation, progress, withdrawn)
    if kept := find_proof(connection, generation, state):
        compared = compare_progress(current_entries(store, spec, None), progress)
        digest = kept.rows_digest
        left_out = read_left_out(connection, generation.id)
        return Proof(digest, digest, kept.rows, kept.batches, (), compared, left_out=left_out)
    proof = prove_generation(store, connection, spec, generation)
    if proof.has_equal_content:
        kept_proof = KeptProof(proof.table_digest, proof.rows, proof.batches)
        keep_proof(connection, generation, state, kept_proof)
    return proof


def prove_generation(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    generation: Generation,
    batches: Collection[str] | None = None,
    source: sql.Identifier | None = None,
) -> Proof:
    """Prove any generation, live or not; its rows are read from `source` if that is given."""
    with measure.timed(spec.name, "proof"):
        return _prove_generation(store, connection, spec, generation, batches, source)


def _prove_generation(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    generation: Generation,
    batches: Collection[str] | None,
    source: sql.Identifier | None,
) -> Proof:
    is_over = Event()
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction(), ThreadPoolExecutor(1, "archive") as beside:
            progress = all_progress(connection, generation.id, batches)
            records, artifacts = None, {}
            if batches is not None:
                artifacts = _read_artifacts(store, progress, is_over)
                records = _records(store, connection, spec, generation, artifacts, progress)
            withheld = read_withheld(connection, generation, records)
            neighbours = _neighbours(connection, generation, progress, records)
            loaded = {**progress, **neighbours}
            unread = {batch: one for batch, one in loaded.items() if batch not in artifacts}
            # The archive is waited for, and PostgreSQL computes, while the other's part is hashed.
            reading = beside.submit(_read_artifacts, store, unread, is_over)
            try:
                table = _table_content(
                    connection, generation, batches, records, source, has_withheld=bool(withheld)
                )
                left_out = read_left_out(connection, generation.id)
                artifacts |= reading.result()
            finally:
                is_over.set()
    finally:
        connection.isolation_level = None
    archive, unreadable = _archive_content(
        store,
        connection,
        spec,
        generation,
        progress,
        loaded,
        artifacts,
        left_out.keys(),
        _rightly(store, spec, withheld),
    )
    differing = [
        batch
        for batch in sorted(table.keys() | archive.keys())
        if table.get(batch, _Content()) != archive.get(batch, _Content())
        or (batch in archive and progress[batch].rows != archive[batch].row_count)
    ]
    return Proof(
        table_digest=ContentSum(sum(part.rows for part in table.values()) % _MODULUS),
        archive_digest=ContentSum(sum(part.rows for part in archive.values()) % _MODULUS),
        rows=sum(part.row_count for part in table.values()),
        batches=len(progress),
        unequal_batches=tuple(sorted({*differing, *unreadable})),
        progress=compare_progress(current_entries(store, spec, batches), progress),
        unreadable=unreadable,
        left_out=left_out,
    )


def _read_artifacts(
    store: BlobStore, loaded: Mapping[str, Progress], is_over: Event
) -> dict[str, _Artifact | str]:
    """Return each batch's artifact, or why it cannot be read; none is read after `is_over`."""

    def read(one: Progress) -> _Artifact | str:
        return "it was not read" if is_over.is_set() else _read_artifact(store, one.manifest)

    return dict(zip(loaded, map_threads(read, list(loaded.values())), strict=True))


def _read_artifact(store: BlobStore, digest: Digest) -> _Artifact | str:
    try:
        manifest = read_manifest(store, digest)
        outcomes = read_outcomes(store, manifest)
    except (NotFoundError, CorruptDataError, NewerVersionError) as error:
        return str(error)
    misread = None
    try:
        check_carried(store, manifest, outcomes)
    except (NotFoundError, CorruptDataError, CannotEvolveError) as error:
        misread = str(error)
    digests = b"".join(_outcome_digests(outcomes))
    return _Artifact(manifest, outcomes["record_id"].to_pylist(), digests, misread)


def _unless_erased(artifact: _Artifact | str, one: Progress, erased: Erased) -> _Artifact | str:
    """Return the artifact, or why it cannot be compared.

    An erased artifact no longer determines its batch's content, even if its deletion is still to
    come.
    """
    if one.manifest in erased.manifests:
        return f"artifact {one.manifest.short}, which it was loaded from, was erased"
    return artifact


def _records(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    generation: Generation,
    artifacts: Mapping[str, _Artifact | str],
    progress: Mapping[str, Progress],
) -> set[str]:
    """Return every record that is in these batches' artifacts."""
    erased = erasures.erased(store, spec.dataset)
    records: set[str] = set()
    for batch, one in progress.items():
        artifact = _unless_erased(artifacts[batch], one, erased)
        if isinstance(artifact, str):
            records.update(_owned_records(connection, generation, batch))
        else:
            records.update(artifact.record_ids)
    return records


def _rightly(store: BlobStore, spec: TableSpec, withheld: Mapping[str, str]) -> dict[str, str]:
    """Return the withheld records, by record, whose batch has an artifact or a damaged log.

    If it has neither, the record belongs to an earlier batch, and is missing there.
    """
    if not withheld:
        return {}
    current = current_entries(store, spec, set(withheld.values()))
    owners = current.keys() | current.damage.keys()
    return {record: batch for record, batch in withheld.items() if batch in owners}


def _owned_records(connection: Connection, generation: Generation, batch: str) -> list[str]:
    """Return the records that the batch owns according to the table."""
    rows = connection.execute(
        sql.SQL("select record_id from {} where generation = %s and batch = %s").format(
            generation.outcomes
        ),
        [generation.id, batch],
    )
    return [row[0] for row in rows]


def _neighbours(
    connection: Connection,
    generation: Generation,
    progress: Mapping[str, Progress],
    records: Collection[str] | None,
) -> dict[str, Progress]:
    """Return other batches that own some of these records according to the table.

    They decide which batch owns them.
    """
    if records is None:
        return {}
    owners = connection.execute(
        sql.SQL(
            "select distinct batch from {} where generation = %s and record_id = any(%s)"
        ).format(generation.outcomes),
        [generation.id, sorted(records)],
    )
    others = {row[0] for row in owners} - progress.keys()
    return all_progress(connection, generation.id, others) if others else {}


def _table_content(
    connection: Connection,
    generation: Generation,
    batches: Collection[str] | None,
    records: Collection[str] | None,
    source: sql.Identifier | None,
    *,
    has_withheld: bool,
) -> dict[str, _Content]:
    """Return the table's content by batch."""
    content: dict[str, _Content] = {}
    where: sql.Composable = sql.SQL("")
    if batches is not None:
        where = sql.SQL("where batch = any({})").format(sql.Literal(sorted(batches)))
    if records is not None and len(records) <= _MOST_LOOKED_UP:
        # No index leads from a batch to its rows; the primary key leads from a record.
        where = sql.SQL("{} and record_id = any({})").format(where, sql.Literal(sorted(records)))
    rows = source or generation.identifier
    _add_rows(content, connection, generation, rows, where)
    _add_outcomes(content, connection, generation, where, has_withheld=has_withheld)
    return content


def _add_rows(
    content: dict[str, _Content],
    connection: Connection,
    generation: Generation,
    source: sql.Identifier,
    where: sql.Composable,
) -> None:
    """Add the digests of every record that has rows to its batch's content."""
    columns, fields = generation.columns, column_fields(generation.columns)
    # The order of the primary key: an index gives it.
    tail = sql.SQL("{} order by record_id, ordinal").format(where)
    digests = RecordDigests(row_encoder(columns), [column.kind for column in columns])
    last_record: list[pa.Table] = []

    def add(rows: pa.Table) -> None:
        arrays = [
            canonical_texts(rows[column.name])
            if column.kind == "json"
            else one_array(rows[column.name])
            for column in columns
        ]
        labels = one_array(rows["batch"])
        keys = [one_array(rows["record_id"]), labels]
        records = digests.of(keys, one_array(rows["ordinal"]), arrays)
        first = number_array(pa.int64(), records.starts)
        for batch, total, count in sum_by_label(
            labels.take(first), records.digests, records.row_counts
        ):
            content.setdefault(batch, _Content()).add_rows(total, count)

    def add_text(text: bytes) -> None:
        rows = pa.concat_tables([*last_record, parse(text, fields)])
        # The last record may go on in the next chunk.
        end = _start_of_last_record(rows)
        last_record[:] = [rows.slice(end)]
        add(rows.slice(0, end))

    with closing(read_texts(connection, source, fields, tail)) as texts:
        call_beside(add_text, texts)
    for rows in last_record:
        add(rows)


def _add_outcomes(
    content: dict[str, _Content],
    connection: Connection,
    generation: Generation,
    where: sql.Composable,
    *,
    has_withheld: bool,
) -> None:
    """Add the digests of every outcome to its batch's content, except withheld records."""
    fields = dict.fromkeys((*_OUTCOME_FIELDS, "batch"), pa.string())

    def add_text(text: bytes) -> None:
        lines = parse(text, fields)
        if has_withheld:
            lines = lines.filter(pc.invert(_is_in(lines["status"], [WITHHELD])))
        digests = _outcome_digests(lines)
        once = np.ones(len(digests), np.int64)
        for batch, total, _ in sum_by_label(one_array(lines["batch"]), digests, once):
            content.setdefault(batch, _Content()).add_outcomes(total)

    with closing(read_texts(connection, generation.outcomes, fields, where)) as texts:
        call_beside(add_text, texts)


def _start_of_last_record(rows: pa.Table) -> int:
    ids = rows["record_id"]
    is_last: Any = pc.equal(ids, ids[len(ids) - 1])
    return int(np.argmax(as_numpy(one_array(is_last))))


def _archive_content(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    generation: Generation,
    progress: Mapping[str, Progress],
    loaded: Mapping[str, Progress],
    artifacts: Mapping[str, _Artifact | str],
    left_out: Collection[str],
    withheld: Mapping[str, str],
) -> tuple[dict[str, _Content], dict[str, str]]:
    """Return the archive's content of each batch of `progress`, or why it cannot be read.

    Only records that the batch owns count.

    Args:
        store: The archive.
        connection: To the tables' database.
        spec: The table.
        generation: The generation that is compared; rows are converted to its columns.
        progress: Progress of the batches to compare.
        loaded: `progress`, and that of the loaded batches that may own records of those batches.
        artifacts: By batch of `loaded`, its artifact, or why it cannot be read.
        left_out: Records whose rows are not compared.
        withheld: Records of batches that cannot be read, each with its batch.
    """
    submitted = log.readable_batches(store, spec.dataset, loaded)
    entries = submitted.intact
    erased = erasures.erased(store, spec.dataset)
    lost = loaded.keys() - entries.keys()
    unreadable = dict.fromkeys(lost, f"it is not in the log of batches of {spec.dataset!r}")
    unreadable |= {batch: str(damage.error) for batch, damage in submitted.damage.items()}
    usable: dict[str, _Artifact] = {}
    owners: dict[str, str] = {}
    # Later batches overwrite earlier ones: what is left is each record's owner.
    for batch in [*lost, *sorted(entries, key=lambda batch: entries[batch].order)]:
        artifact = unreadable.get(batch) or _unless_erased(artifacts[batch], loaded[batch], erased)
        if isinstance(artifact, str):
            unreadable[batch] = artifact
            ids: list[Any] = _owned_records(connection, generation, batch)
        else:
            usable[batch] = artifact
            ids = artifact.record_ids
        owners.update(dict.fromkeys(ids, batch))
    owners |= withheld
    for record_id in tombstones.withdrawn(store, spec.dataset):
        owners.pop(record_id, None)
    content: dict[str, _Content] = {}
    manifests = {batch: artifact.manifest for batch, artifact in usable.items()}
    unreadable |= evolve.contradictions(manifests, generation.columns, generation.upcasters)
    for batch in sorted(progress.keys() & usable.keys()):
        try:
            content[batch] = _batch_content(
                store, usable[batch], generation, batch, owners, left_out
            )
        except (NotFoundError, CorruptDataError, CannotEvolveError) as error:
            unreadable[batch] = str(error)
    return content, {
        batch: unreadable[batch] for batch in sorted(unreadable.keys() & progress.keys())
    }


def _batch_content(
    store: BlobStore,
    artifact: _Artifact,
    generation: Generation,
    batch: str,
    owners: dict[str, str],
    left_out: Collection[str],
) -> _Content:
    if artifact.misread is not None:
        raise CannotEvolveError(artifact.misread)
    content, columns, manifest = _Content(), generation.columns, artifact.manifest
    foreign = [one for one in artifact.record_ids if owners.get(one) != batch]
    digests = artifact.outcome_digests
    own = [digests]
    if foreign:
        own = [
            digests[at * _DIGEST_BYTES : (at + 1) * _DIGEST_BYTES]
            for at, record_id in enumerate(artifact.record_ids)
            if owners.get(record_id) == batch
        ]
    content.add_outcomes(sum_digests(own))
    without = [*foreign, *left_out]
    if (
        not without
        and manifest.rows_digest is not None
        and columns_header(manifest.columns) == columns_header(columns)
        and evolve.upcaster_for(manifest, columns, generation.upcasters) is None
    ):
        # Acceptance computed it from these rows; the blob's bytes are checked by their digest.
        content.add_rows(manifest.rows_digest.value, manifest.counts.rows)
        return content
    rows = evolve.artifact_rows(manifest, read_rows(store, manifest), columns, generation.upcasters)
    if without:
        rows = rows.filter(pc.invert(_is_in(rows["record_id"], without)))
    encoder = RecordDigests(row_encoder(columns), [column.kind for column in columns])
    arrays = [one_array(rows[column.name]) for column in columns]
    records = encoder.of([one_array(rows["record_id"])], one_array(rows["ordinal"]), arrays)
    content.add_rows(sum_digests(records.digests), len(rows))
    return content


def _is_in(values: pa.ChunkedArray[Any], chosen: list[str]) -> Any:
    return pc.is_in(values, text_array(chosen))


def _outcome_digests(lines: pa.Table) -> list[bytes]:
    """Return one digest per record of its outcome."""
    return line_digests([one_array(lines[name]) for name in _OUTCOME_FIELDS])
