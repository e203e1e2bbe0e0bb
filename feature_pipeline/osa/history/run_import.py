"""Import the rows of hook runs that belong to one batch, and prove them.

Whatever process does this gives the same objects: it reads the same snapshot, and nothing here
depends on the time, or on what is done about other batches.
"""

import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_pipeline.archive import read
from feature_pipeline.archive.accept import accept
from feature_pipeline.archive.format.manifest import RAW, Manifest, RunInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import Erased
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.publish import (
    Artifact,
    Completion,
    CompletionStatus,
    publish_and_enqueue,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.assemble_artifact import notes_on
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)
from feature_pipeline.hooks.output import FEATURES
from feature_pipeline.model.definition import HookDefinition
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeKind, Status
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.osa.history.notes import notes_of
from feature_pipeline.osa.history.placement import (
    Placement,
    existing_batch,
    existing_keys,
    make_batch,
)
from feature_pipeline.osa.history.proof import Difference, differences, equal_rows
from feature_pipeline.osa.history.reconstructed import (
    RECONSTRUCTED,
    ROW_IDS,
    is_reconstructed,
    reconstructed_completion,
    server_row_ids,
)
from feature_pipeline.osa.history.table_rows import (
    HookTable,
    PublishedRecord,
    RunRows,
    TableColumns,
)
from feature_pipeline.osa.server.database import HookRun, Reader, Release

if TYPE_CHECKING:
    import pyarrow as pa

    from feature_pipeline.osa.history.lines import RunLines

UNKNOWN: Final = (
    "the output of its hook run is gone, and the server's table has no row of the record: whether"
    " it passed without rows is not known"
)
"""The reason of outcomes of records without rows."""

CANNOT_BE_IMPORTED: Final = (InvalidInputError, NotFoundError, ConflictError, CorruptDataError)
"""Errors that concern one hook run."""


@dataclass(frozen=True, slots=True)
class ImportedHook:
    """A hook whose rows are imported, as every process of an import knows it."""

    definition: HookDefinition
    convention: str
    table: TableColumns
    withdrawn: frozenset[str]
    erased: Erased


@dataclass(frozen=True, slots=True)
class Wanted:
    """A hook run whose rows are to be imported."""

    hook: int
    """The position of its hook among those of the import."""
    run: RunRows
    placement: Placement
    row: HookRun
    release: Release
    entry: FeatureEntry | None
    """The last entry of its reconstructed artifact."""
    has_output: bool
    """Whether the archive has its output, so that only ids are kept."""


@dataclass(frozen=True, slots=True)
class Group:
    """Hook runs over one batch, in order."""

    wanted: tuple[tuple[Wanted, ReleaseEntry], ...]
    """Each with its release in the archive."""
    keys: frozenset[str]
    """The batches here that may have their records."""
    records: Sequence[PublishedRecord] | InvalidInputError | None = None
    """The records of which their batch is made if there is none, with rows or without; None if
    these are not known yet. The error is the reason why there is no such batch.
    """


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result for one hook run."""

    entry: FeatureEntry | None = None
    """That of its artifact; None if there is none, or an earlier pass made it."""
    withdrawn_rows: int = 0
    problem: str | None = None
    """Why it cannot be imported."""
    lacks_batch: bool = False
    """Whether nothing was done because its batch is to be made of records that are not given."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A reconstructed artifact that is to be proven."""

    hook: int
    run_id: str
    entry: FeatureEntry


class RunImporter:
    """Imports and proves hook runs by one session with the server's database.

    Args:
        store: The archive.
        reader: The snapshot.
        hooks: The hooks of the import.
    """

    def __init__(self, store: BlobStore, reader: Reader, hooks: Sequence[ImportedHook]) -> None:
        self._store = store
        self._hooks = hooks
        self._tables = [HookTable(reader, hook.table) for hook in hooks]

    def import_group(self, group: Group) -> list[RunResult]:
        """Import hook runs over one batch; one that cannot be imported does not stop the others."""
        keys = set(group.keys)
        results: list[RunResult] = []
        for wanted, release in group.wanted:
            try:
                results.append(self._import(wanted, release, group, keys))
            except CANNOT_BE_IMPORTED as error:
                results.append(RunResult(problem=str(error)))
        return results

    def _import(
        self, wanted: Wanted, release: ReleaseEntry, group: Group, keys: set[str]
    ) -> RunResult:
        """Import the rows of a hook run; add the key of a batch that was made to `keys`."""
        from feature_pipeline.osa.history.lines import run_lines

        hook, run_id = self._hooks[wanted.hook], wanted.run.run_id
        if isinstance(group.records, InvalidInputError):
            raise group.records
        rows = None if group.records is None else self._rows(wanted)
        with_rows = self._with_rows(wanted, group.records, rows)
        batch = self._batch_of(wanted, with_rows, keys)
        if batch is None and group.records is None and wanted.placement.group is not None:
            return RunResult(lacks_batch=True)
        if not with_rows:
            return RunResult(withdrawn_rows=wanted.run.rows)
        is_new_batch = batch is None
        if batch is None:
            given = with_rows if group.records is None else group.records
            allowed = [each for each in given if each.record_id not in hook.withdrawn]
            dataset = hook.definition.dataset
            batch = make_batch(self._store, dataset, wanted.placement, run_id, allowed, keys)
            keys.add(batch.key)
        srns = {each.record_id: each.srn for each in with_rows}
        order = [record.id for record in batch.records if record.id in srns]
        lines = run_lines(order, srns, self._rows(wanted) if rows is None else rows)
        withdrawn_rows = wanted.run.rows - lines.ids.num_rows
        if self._has(wanted, batch, lines):
            return RunResult(withdrawn_rows=withdrawn_rows)
        artifact = self._artifact(wanted, release, batch, order, lines.text)
        is_history = wanted.has_output or (not is_new_batch and self._has_output(artifact))
        return RunResult(self._publish(wanted, artifact, lines, is_history), withdrawn_rows)

    def _rows(self, wanted: Wanted) -> "pa.Table":
        return self._tables[wanted.hook].rows(wanted.run.run_id)

    def _with_rows(
        self,
        wanted: Wanted,
        records: Sequence[PublishedRecord] | None,
        rows: "pa.Table | None",
    ) -> list[PublishedRecord]:
        """Return the records with rows of a hook run, in order of their origin's id."""
        if records is None or rows is None:
            return self._records(wanted.hook, wanted.run.run_id)
        withdrawn = self._hooks[wanted.hook].withdrawn
        srns = set(rows.column("record_srn").unique().to_pylist())
        return [each for each in records if each.srn in srns and each.record_id not in withdrawn]

    def _records(self, hook: int, run_id: str) -> list[PublishedRecord]:
        records = self._tables[hook].records(run_id, self._hooks[hook].convention)
        withdrawn = self._hooks[hook].withdrawn
        return [each for each in records if each.record_id not in withdrawn]

    def _batch_of(
        self, wanted: Wanted, with_rows: Sequence[PublishedRecord], keys: Collection[str]
    ) -> RecordBatch | None:
        ids = {each.record_id for each in with_rows}
        dataset = self._hooks[wanted.hook].definition.dataset
        if wanted.entry is not None:
            # where an earlier pass put it
            batch = log.read_batch(self._store, dataset, wanted.entry.batch)
            if {each.id for each in batch.records}.issuperset(ids):
                return batch
        candidates = existing_keys(wanted.placement, wanted.run.run_id, keys)
        return existing_batch(self._store, dataset, candidates, ids)

    def _has(self, wanted: Wanted, batch: RecordBatch, lines: "RunLines") -> bool:
        """Return whether the last artifact of the hook run has these rows over this batch."""
        entry = wanted.entry
        if entry is None or entry.batch != batch.key:
            return False
        manifest = self._manifest_now(wanted.hook, entry)
        stored = manifest.blobs.get(f"{RAW}{FEATURES}")
        if stored is None or stored.digest != Digest.of(lines.text):
            return False
        return bool(server_row_ids(self._store, manifest).equals(lines.ids))

    def _has_output(self, artifact: Artifact) -> bool:
        """Return whether the current artifact of the batch is a hook's output."""
        head = log.head(self._store, artifact.dataset, artifact.hook, artifact.batch.key)
        return head is not None and not is_reconstructed(read.manifest_of(self._store, head))

    def _publish(
        self, wanted: Wanted, artifact: Artifact, lines: "RunLines", is_history: bool
    ) -> FeatureEntry:
        """Publish an artifact and accept it; its inbox entry stays for Dagster's sensor.

        It was planned on nothing, and is as old as the hook run. So every real output is later. If
        the batch has the output of another hook run already, it is history from the beginning.
        """

        def complete(manifest: Digest) -> Completion:
            return Completion(
                id=reconstructed_completion(wanted.run.run_id),
                dataset=artifact.dataset,
                hook=artifact.hook,
                batch=artifact.batch.key,
                release_seq=artifact.release.seq,
                release_digest=artifact.release.release.digest,
                base=0,
                manifest=manifest,
                status=CompletionStatus.CANCELLED if is_history else CompletionStatus.SUCCEEDED,
                published_at=wanted.row.finished_at,
            )

        with tempfile.TemporaryDirectory(prefix="osa-rows-") as temporary:
            raw = {FEATURES: Path(temporary) / FEATURES, ROW_IDS: Path(temporary) / ROW_IDS}
            raw[FEATURES].write_bytes(lines.text)
            _write(lines.ids, raw[ROW_IDS])
            _, completion = publish_and_enqueue(self._store, replace(artifact, raw=raw), complete)
        return accept(self._store, completion)

    def _artifact(
        self,
        wanted: Wanted,
        release: ReleaseEntry,
        batch: RecordBatch,
        order: Sequence[str],
        text: bytes,
    ) -> Artifact:
        from feature_pipeline.archive.format.outcome_columns import OutcomeColumns
        from feature_pipeline.osa.history.lines import decode_lines

        hook = self._hooks[wanted.hook]
        feature = hook.definition.feature
        decoded = decode_lines(text, order, feature.columns, feature.cardinality)
        ids = [record.id for record in batch.records]
        unknown = set(ids).difference(order)
        others = {i: _unknown(i) for i in ids if i in unknown} | decoded.others
        refused = sum(o.kind is OutcomeKind.INVALID_OUTPUT for o in decoded.others.values())
        return Artifact(
            batch=batch,
            release=release,
            columns=tuple(feature.columns),
            cardinality=feature.cardinality.value,
            run=RunInfo(
                id=wanted.run.run_id,
                runner=RECONSTRUCTED,
                started_at=wanted.row.started_at,
                finished_at=wanted.row.finished_at,
                attempts=wanted.row.oom_retries + 1,
            ),
            outcomes=OutcomeColumns.with_rows(feature.columns, ids, decoded.rows, others),
            raw={},
            log=None,
            notes=(
                *notes_of(
                    hook.table,
                    wanted.row,
                    wanted.release,
                    with_rows=len(order),
                    unknown=len(unknown),
                    refused=refused,
                ),
                *notes_on(decoded.one_by_one),
            ),
        )

    def prove(self, imported: Imported) -> list[Difference]:
        """Compare the rows of an artifact with the server's, as they are stored here."""
        table = self._tables[imported.hook]
        manifest = self._manifest_now(imported.hook, imported.entry)
        records = {
            each.record_id: each.srn for each in self._records(imported.hook, imported.run_id)
        }
        rows = equal_rows(self._store, manifest, table, records)
        if rows is not None:
            return [Difference(rows, None)]
        return list(differences(self._store, manifest, table, records))

    def _manifest_now(self, hook: int, entry: FeatureEntry) -> Manifest:
        """Return the manifest of an entry, or what replaced it when records were erased."""
        now = self._hooks[hook].erased.manifest_now(entry.manifest)
        return read.read_manifest(self._store, now)


def _write(ids: "pa.Table", path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(ids, path, compression="zstd")


def _unknown(record_id: str) -> Outcome:
    return Outcome(
        record_id,
        Status.ERRORED,
        reason=UNKNOWN,
        kind=OutcomeKind.UNKNOWN,
        is_retryable=True,
        is_from_output=False,
    )
