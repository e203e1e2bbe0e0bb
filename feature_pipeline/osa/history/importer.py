"""Import rows of the server's tables whose hook output is gone, as reconstructed artifacts.

Every row of a table falls into one class: its hook run's output is in the archive; the storage
still has it, and `sync` takes it; its record was withdrawn here; it cannot be placed, with a
reason; its convention is not followed; or it is imported. The classes are counted and their sum is
compared with the table.

All reads are of one snapshot. One hook run is in memory at a time. A pass that ended anywhere is
completed by the next, which makes the same artifacts: they contain no time of the pass.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_pipeline.archive import read
from feature_pipeline.archive.accept import accept
from feature_pipeline.archive.format.manifest import RAW, Manifest, RunInfo
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import Erased, erased
from feature_pipeline.archive.logs.log import FeatureEntry, ReleaseEntry
from feature_pipeline.archive.logs.tombstones import withdrawn
from feature_pipeline.archive.publish import (
    Artifact,
    Completion,
    CompletionStatus,
    publish_and_enqueue,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.collect import notes_on
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
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.osa.definitions import (
    FollowedHook,
    followed_hooks,
    register_up_to,
    server_release,
)
from feature_pipeline.osa.history.placement import (
    Placement,
    existing_batch,
    is_in_storage,
    make_batch,
    place_run,
)
from feature_pipeline.osa.history.proof import Difference, differences, equal_rows
from feature_pipeline.osa.history.reconstructed import (
    RECONSTRUCTED,
    ROW_IDS,
    is_reconstructed,
    reconstructed_completion,
    reconstructed_run,
    server_row_ids,
)
from feature_pipeline.osa.history.result import HookImport, ImportResult
from feature_pipeline.osa.history.table_rows import (
    HookTable,
    PublishedRecord,
    RunRows,
    published_batches,
)
from feature_pipeline.osa.server.database import (
    PASSED,
    Definitions,
    HookRun,
    Reader,
    Release,
    Server,
)
from feature_pipeline.osa.server.notes import release_note, run_note
from feature_pipeline.osa.server.schema import HISTORY
from feature_pipeline.osa.server.storage import ServerStorage
from feature_pipeline.osa.settings import OsaSettings

if TYPE_CHECKING:
    import pyarrow as pa

UNKNOWN: Final = (
    "the output of its hook run is gone, and the server's table has no row of the record: whether"
    " it passed without rows is not known"
)
"""The reason of outcomes of records without rows."""

_CANNOT_BE_IMPORTED: Final = (InvalidInputError, NotFoundError, ConflictError, CorruptDataError)
"""Errors that concern one hook run."""


@dataclass
class _Hook:
    """A hook while it is imported."""

    followed: FollowedHook
    definition: HookDefinition
    table: HookTable
    result: HookImport
    withdrawn: frozenset[str]
    erased: Erased
    outputs: frozenset[str]
    """Hook runs whose output the archive has."""
    imported: dict[str, FeatureEntry]
    """By hook run, the last entry of its reconstructed artifact."""

    @property
    def dataset(self) -> str:
        return self.definition.dataset

    @property
    def name(self) -> str:
        return self.definition.name


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A hook run whose rows are to be imported."""

    hook: _Hook
    run: RunRows
    placement: Placement
    row: HookRun
    release: Release
    has_output: bool
    """Whether the archive has its output, so that only ids are kept."""


@dataclass
class Importer:
    """Imports what the server's tables alone still have.

    Args:
        store: The archive.
        server: The server's database.
        storage: The server's files; None if they are gone.
        settings: What is followed.
        definitions: The hooks of this project, by dataset and name.
    """

    store: BlobStore
    server: Server
    storage: ServerStorage | None
    settings: OsaSettings
    definitions: Mapping[tuple[str, str], HookDefinition]
    keeps_ids: bool = False
    """Whether rows of outputs in the archive are kept, too, as superseded artifacts: for a restored
    table their ids and times are known then.
    """

    def run(self, *, is_dry: bool = False) -> ImportResult:
        """Import the rows, and prove that they equal the server's. Idempotent.

        Args:
            is_dry: Only count what would be imported.

        Raises:
            NotFoundError: The storage is not there, or a hook has no table.
            InvalidInputError: The database is not a known server's, may not be read, or has a
                column of another type.
            ProjectionError, StoreUnavailableError, OutcomeUnknownError: The database, the storage
                or the archive did not answer. What was imported before stays.
        """
        if self.storage is not None:
            self.storage.check()
        result = ImportResult()
        with (
            self.server.connect() as connection,
            self.server.session(HISTORY, connection) as reader,
        ):
            deployed = reader.definitions()
            hooks = list(self._hooks(reader, deployed, result))
            for convention in dict.fromkeys(each.followed.convention.id for each in hooks):
                of_convention = [h for h in hooks if h.followed.convention.id == convention]
                self._import(reader, deployed, convention, of_convention, is_dry=is_dry)
            for hook in hooks:
                if not is_dry:
                    self._prove(hook)
                result.hooks.append(hook.result)
        return result

    def _hooks(
        self, reader: Reader, deployed: Definitions, result: ImportResult
    ) -> Iterator[_Hook]:
        """Yield the followed hooks that this project defines, each with its checked table."""
        followed = followed_hooks(deployed, self.settings)
        conventions: dict[str, set[str]] = {}
        for each in followed:
            conventions.setdefault(each.hook.name, set()).add(each.convention.id)
        for each in followed:
            dataset, name = each.definition.dataset, each.hook.name
            definition = self.definitions.get((dataset, name))
            if definition is None:
                result.undefined.append(f"{dataset}/{name}")
                continue
            columns, ours = each.definition.feature.columns, definition.feature.columns
            table = HookTable.of(reader, name, columns, ours)
            by_convention = table.rows_by_convention()
            others = {
                str(other): rows
                for other, rows in by_convention.items()
                if other not in conventions[name]
            }
            entries = [
                entry
                for entries in log.feature_logs(self.store, dataset, name).values()
                for entry in entries
            ]
            imported = {reconstructed_run(entry.completion): entry for entry in entries}
            yield _Hook(
                followed=each,
                definition=definition,
                table=table,
                result=HookImport(
                    dataset,
                    name,
                    table_rows=by_convention.get(each.convention.id, 0),
                    other_rows=others,
                    undeclared=table.undeclared,
                ),
                withdrawn=frozenset(withdrawn(self.store, dataset)),
                erased=erased(self.store, dataset),
                outputs=frozenset(entry.completion for entry in entries),
                imported={run: entry for run, entry in imported.items() if run is not None},
            )

    def _import(
        self,
        reader: Reader,
        deployed: Definitions,
        convention: str,
        hooks: Sequence[_Hook],
        *,
        is_dry: bool,
    ) -> None:
        """Import the rows of a convention's records.

        Batches that the archive lacks are made of one pass over the records, batch by batch.
        """
        later: dict[tuple[str, str], list[_Wanted]] = {}
        for wanted in self._wanted(reader, deployed, convention, hooks):
            if is_dry:
                _count(wanted, is_new=wanted.run.run_id not in wanted.hook.imported)
                continue
            if (located := self._locate(wanted)) is None:
                continue
            with_rows, batch = located
            if batch is None and wanted.placement.group is not None:
                later.setdefault(wanted.placement.group, []).append(wanted)
            else:
                self._try(wanted, with_rows, batch, with_rows)
        if not later:
            return
        for group, records in published_batches(reader, convention, {run for run, _ in later}):
            run, index = group
            for wanted in later.get((run, index), ()) if index is not None else ():
                # another hook may have made the batch
                if (located := self._locate(wanted)) is None:
                    continue
                if isinstance(records, InvalidInputError):
                    _refuse(wanted.hook, wanted.run, records)
                else:
                    self._try(wanted, *located, records)

    def _wanted(
        self, reader: Reader, deployed: Definitions, convention: str, hooks: Sequence[_Hook]
    ) -> Iterator[_Wanted]:
        """Yield the hook runs to import; count the rows of the others."""
        for hook in hooks:
            runs = hook.table.runs(convention)
            ingests = {o.ingest_run for run in runs for o in run.by_origin if o.ingest_run}
            batches = reader.batches_ingested(ingests)
            rows = reader.hook_runs([run.run_id for run in runs])
            for run in runs:
                has_output = run.run_id in hook.outputs
                if has_output:
                    hook.result.archived_rows += run.rows
                    if not self.keeps_ids:
                        continue
                try:
                    placement = place_run(run, hook.name, batches)
                    if not has_output and self._is_stored(placement, hook, run):
                        hook.result.stored_rows += run.rows
                        continue
                    row, release = _released(run.run_id, rows, deployed, hook.name)
                except _CANNOT_BE_IMPORTED as error:
                    _refuse(hook, run, error)
                    continue
                yield _Wanted(hook, run, placement, row, release, has_output)

    def _is_stored(self, placement: Placement, hook: _Hook, run: RunRows) -> bool:
        storage = self.storage
        return storage is not None and is_in_storage(storage, placement, hook.name, run.run_id)

    def _locate(self, wanted: _Wanted) -> tuple[list[PublishedRecord], RecordBatch | None] | None:
        """Return the records with rows, and their batch if there is one; None if this fails."""
        try:
            with_rows = self._records(wanted)
            return with_rows, self._batch_of(wanted, with_rows)
        except _CANNOT_BE_IMPORTED as error:
            _refuse(wanted.hook, wanted.run, error)
            return None

    def _records(self, wanted: _Wanted) -> list[PublishedRecord]:
        hook = wanted.hook
        records = hook.table.records(wanted.run.run_id, hook.followed.convention.id)
        return [each for each in records if each.record_id not in hook.withdrawn]

    def _batch_of(
        self, wanted: _Wanted, with_rows: Sequence[PublishedRecord]
    ) -> RecordBatch | None:
        ids = {each.record_id for each in with_rows}
        run_id, dataset = wanted.run.run_id, wanted.hook.dataset
        entry = wanted.hook.imported.get(run_id)
        if entry is not None:
            # where an earlier pass put it
            batch = log.read_batch(self.store, dataset, entry.batch)
            if {each.id for each in batch.records}.issuperset(ids):
                return batch
        return existing_batch(self.store, dataset, wanted.placement, run_id, ids)

    def _try(
        self,
        wanted: _Wanted,
        with_rows: Sequence[PublishedRecord],
        batch: RecordBatch | None,
        records: Sequence[PublishedRecord],
    ) -> None:
        """Import the rows of a hook run; one that cannot be imported holds up no other.

        Args:
            wanted: The hook run.
            with_rows: The records with its rows.
            batch: The batch here, if there is one.
            records: The records of which it is made otherwise.
        """
        hook, run = wanted.hook, wanted.run
        try:
            if not with_rows:
                if not wanted.has_output:
                    hook.result.withdrawn_rows += run.rows
                return
            if batch is None:
                allowed = [each for each in records if each.record_id not in hook.withdrawn]
                batch = make_batch(self.store, hook.dataset, wanted.placement, run.run_id, allowed)
            self._publish(wanted, with_rows, batch)
        except _CANNOT_BE_IMPORTED as error:
            _refuse(hook, run, error)

    def _publish(
        self, wanted: _Wanted, with_rows: Sequence[PublishedRecord], batch: RecordBatch
    ) -> None:
        """Publish and accept the rows of a hook run over a batch, unless the archive has them."""
        from feature_pipeline.osa.history.lines import run_lines

        hook, run_id = wanted.hook, wanted.run.run_id
        srns = {each.record_id: each.srn for each in with_rows}
        order = [record.id for record in batch.records if record.id in srns]
        lines = run_lines(order, srns, hook.table.rows(run_id))
        text, ids = lines.text, lines.ids
        withdrawn_rows = wanted.run.rows - ids.num_rows
        if self._has(hook, run_id, batch, text, ids):
            _count(wanted, is_new=False, withdrawn_rows=withdrawn_rows)
            return
        artifact = self._artifact(wanted, batch, order, text)
        with tempfile.TemporaryDirectory(prefix="osa-rows-") as temporary:
            raw = {FEATURES: Path(temporary) / FEATURES, ROW_IDS: Path(temporary) / ROW_IDS}
            raw[FEATURES].write_bytes(text)
            _write(ids, raw[ROW_IDS])
            self._accept(wanted, replace(artifact, raw=raw))
        _count(wanted, is_new=True, withdrawn_rows=withdrawn_rows)

    def _has(
        self, hook: _Hook, run_id: str, batch: RecordBatch, text: bytes, ids: "pa.Table"
    ) -> bool:
        """Return whether the last artifact of the hook run has these rows over this batch."""
        entry = hook.imported.get(run_id)
        if entry is None or entry.batch != batch.key:
            return False
        manifest = _manifest_now(self.store, hook, entry)
        stored = manifest.blobs.get(f"{RAW}{FEATURES}")
        if stored is None or stored.digest != Digest.of(text):
            return False
        return bool(server_row_ids(self.store, manifest).equals(ids))

    def _artifact(
        self, wanted: _Wanted, batch: RecordBatch, order: Sequence[str], text: bytes
    ) -> Artifact:
        from feature_pipeline.archive.format.outcome_columns import OutcomeColumns
        from feature_pipeline.osa.history.lines import decode_lines

        hook = wanted.hook
        feature = hook.definition.feature
        decoded = decode_lines(text, order, feature.columns, feature.cardinality)
        ids = [record.id for record in batch.records]
        unknown = set(ids).difference(order)
        others = {i: _unknown(i) for i in ids if i in unknown} | decoded.others
        refused = sum(o.kind is OutcomeKind.INVALID_OUTPUT for o in decoded.others.values())
        return Artifact(
            batch=batch,
            release=self._registered(wanted),
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
                *_notes(wanted, len(ids) - len(unknown), len(unknown), refused),
                *notes_on(decoded.one_by_one),
            ),
        )

    def _registered(self, wanted: _Wanted) -> ReleaseEntry:
        hook, release = wanted.hook, wanted.release
        known = register_up_to(self.store, hook.followed.hook, release, hook.dataset)
        return known[server_release(release, hook.dataset).digest]

    def _accept(self, wanted: _Wanted, artifact: Artifact) -> None:
        """Publish an artifact and accept it; its inbox entry stays for Dagster's sensor.

        It was planned on nothing, and is as old as the hook run. So every real output is later. If
        the batch has the output of another hook run already, it is history from the beginning.
        """
        hook, key = wanted.hook, artifact.batch.key
        head = log.head(self.store, hook.dataset, hook.name, key)
        is_history = head is not None and not is_reconstructed(read.manifest_of(self.store, head))

        def complete(manifest: Digest) -> Completion:
            return Completion(
                id=reconstructed_completion(wanted.run.run_id),
                dataset=hook.dataset,
                hook=hook.name,
                batch=key,
                release_seq=artifact.release.seq,
                release_digest=artifact.release.release.digest,
                base=0,
                manifest=manifest,
                status=CompletionStatus.CANCELLED
                if is_history or wanted.has_output
                else CompletionStatus.SUCCEEDED,
                published_at=wanted.row.finished_at,
            )

        _, completion = publish_and_enqueue(self.store, artifact, complete)
        hook.imported[wanted.run.run_id] = accept(self.store, completion)

    def _prove(self, hook: _Hook) -> None:
        """Compare every imported row with the server's, as they are stored here."""
        result = hook.result
        for run_id, entry in sorted(hook.imported.items()):
            is_kept = run_id in hook.outputs
            if run_id in result.unplaced or (is_kept and not self.keeps_ids):
                continue
            manifest = _manifest_now(self.store, hook, entry)
            records = {
                each.record_id: each.srn
                for each in hook.table.records(run_id, hook.followed.convention.id)
                if each.record_id not in hook.withdrawn
            }
            rows = equal_rows(self.store, manifest, hook.table, records)
            if rows is not None:
                result.count(Difference(rows, None), run_id, is_kept=is_kept)
                continue
            for each in differences(self.store, manifest, hook.table, records):
                result.count(each, run_id, is_kept=is_kept)


def _released(
    run_id: str, rows: Mapping[str, HookRun], deployed: Definitions, hook: str
) -> tuple[HookRun, Release]:
    """Return the row of a hook run, and its release.

    Raises:
        NotFoundError: `public.hook_runs` or `public.hook_releases` has no such row.
    """
    row = rows.get(run_id)
    if row is None:
        raise NotFoundError("public.hook_runs has no row of it: its release is not known")
    release = deployed.release(row.release_id)
    if release is None or release.hook != hook:
        raise NotFoundError(
            f"public.hook_runs names release {row.release_id}, which is no release of hook {hook!r}"
            " in public.hook_releases"
        )
    return row, release


def _refuse(hook: _Hook, run: RunRows, error: Exception) -> None:
    hook.result.unplaced[run.run_id] = quoted(str(error), MOST_REASON)
    hook.result.unplaced_rows += 0 if run.run_id in hook.outputs else run.rows


def _count(wanted: _Wanted, *, is_new: bool, withdrawn_rows: int = 0) -> None:
    result, rows = wanted.hook.result, wanted.run.rows - withdrawn_rows
    if wanted.has_output:
        result.kept_rows += rows
        return
    result.withdrawn_rows += withdrawn_rows
    if is_new:
        result.new_runs.append(wanted.run.run_id)
        result.new_rows += rows
    else:
        result.unchanged_runs += 1
        result.unchanged_rows += rows


def _manifest_now(store: BlobStore, hook: _Hook, entry: FeatureEntry) -> Manifest:
    """Return the manifest of an entry, or what replaced it when records were erased."""
    return read.read_manifest(store, hook.erased.manifest_now(entry.manifest))


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


def _notes(wanted: _Wanted, with_rows: int, unknown: int, refused: int) -> list[str]:
    """Return what a reader must know of the rows; no id of a record, which may be erased.

    Args:
        wanted: The hook run.
        with_rows: Number of records with rows.
        unknown: Number of records without.
        refused: Number of records with rows that no outcome can have.
    """
    hook = wanted.hook
    notes = [
        f"reconstructed from PostgreSQL: the rows of the server's table features.\""
        f'{hook.table.name}" with this run_id; the output of the hook run was not found',
        f"outcomes are known of {counted(with_rows, 'record')} with rows; those of"
        f" {counted(unknown, 'other')} are not",
    ]
    if refused:
        notes.append(
            f"{counted(refused, 'record')} with rows that no outcome can have: they are in"
            f" {FEATURES} alone"
        )
    columns = {kind: [c.name for c in hook.table.columns if c.kind == kind] for kind in _KINDS}
    notes += [
        f"{text}: {first_few(columns[kind])}" for kind, text in _KINDS.items() if columns[kind]
    ]
    if hook.table.undeclared:
        notes.append(
            f"columns that the server's hook does not declare were left out:"
            f" {first_few(hook.table.undeclared)}"
        )
    if wanted.row.status != PASSED:
        notes.append(run_note(wanted.row))
    return [*notes, release_note(wanted.release)]


_KINDS: Final[Mapping[str, str]] = {
    "number": "the table has float64, so whether the hook wrote 1 or 1.0 is not known, and digits"
    " beyond float64 are lost",
    "integer": "the server truncates numbers in integer columns: 1.5 became 1",
    "json": "the table has arrays and objects as JSON strings, which were parsed; a string that is"
    " JSON cannot be told from these",
}
"""By kind of column, what the server's table lost."""
