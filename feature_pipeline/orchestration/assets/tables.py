"""The table asset of a hook: a PostgreSQL table, loaded batch by batch from the archive."""

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.model.definition import HookDefinition, Materialize
from feature_pipeline.model.digest import Digest, document_bytes
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.orchestration import conditions
from feature_pipeline.orchestration.assets.equality_check import (
    Equality,
    equality_key,
    is_selected,
    judge_equality,
)
from feature_pipeline.orchestration.dagster_internals import (
    BACKFILL_ID_TAG,
    PRIORITY_TAG,
)
from feature_pipeline.orchestration.events.backfill_request import request_backfill
from feature_pipeline.orchestration.events.check_history import NAMED_BATCHES, previously_named
from feature_pipeline.orchestration.events.data_versions import InputVersion, event_tags
from feature_pipeline.orchestration.events.latest_events import PartitionEvent, latest_events
from feature_pipeline.orchestration.events.materializations import report_events
from feature_pipeline.orchestration.events.metadata import (
    Metadata,
    column_lineage,
    column_sources,
    freshness_policy,
    shown_schema,
    table_schema,
)
from feature_pipeline.orchestration.events.requested import partitions_under_way
from feature_pipeline.orchestration.keys import (
    batches_partitions,
    features_key,
    table_key,
    tables_group,
)
from feature_pipeline.orchestration.resources import ArchiveResource, DatabaseResource
from feature_pipeline.projections.catalog.spec import TableSpec

if TYPE_CHECKING:
    from feature_pipeline.projections.catalog.database import Database
    from feature_pipeline.projections.load import LoadReport

PROGRESS_CHECK = "progress"
GENERATION_CHECK = "generation"
_REPORTED_AT_ONCE = 64
"""Number of loads whose events are stored together, with two queries to Dagster."""
_SHOWN_ENTRIES = ("dagster/column_schema", "dagster/row_count")
BATCHES_PER_RUN = 500
"""A run costs about five seconds to start and a batch milliseconds to load."""


class TableRunConfig(dg.Config):
    """The run config of a table asset."""

    rebuild: bool = Field(
        default=False,
        description=(
            "Build another table beside the one that is read, and switch to it when it is"
            " complete. All runs of one backfill fill the same new table."
        ),
    )


def table_spec(definition: HookDefinition) -> TableSpec:
    """Return the table of a hook's definition."""
    return TableSpec(
        dataset=definition.dataset,
        hook=definition.name,
        name=definition.table_name,
        columns=definition.table_columns(),
        indexes=definition.table.indexes,
        upcasters=definition.table.upcasters,
        description=definition.description,
    )


def table_code_version(spec: TableSpec) -> str:
    """Return a value that changes with the wanted generation.

    With another generation, the same artifact is loaded differently.
    """
    return Digest.of(document_bytes([spec.name, str(spec.generation_digest)])).short


def table_asset(definition: HookDefinition) -> dg.AssetsDefinition:
    """Return the asset `<dataset>/tables/<table>`, with many partitions per run."""
    spec = table_spec(definition)
    dataset, columns = definition.dataset, spec.columns
    key, source = table_key(dataset, spec.name), features_key(dataset, definition.name)
    code_version = table_code_version(spec)
    always = definition.table.materialize is Materialize.ALWAYS

    @dg.asset(
        key=key,
        partitions_def=batches_partitions(dataset),
        deps=[source],
        code_version=code_version,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=BATCHES_PER_RUN),
        automation_condition=conditions.tables() if always else None,
        # A run of many partitions emits one event per partition itself, each with its own data
        # version: a data version set on an output would be stamped on all of them.
        output_required=False,
        check_specs=[
            dg.AssetCheckSpec(
                PROGRESS_CHECK,
                asset=key,
                description=(
                    "Each batch of this run, and each that failed the check before, is loaded"
                    " from the artifact that is current in the archive's log."
                ),
            ),
            dg.AssetCheckSpec(
                GENERATION_CHECK,
                asset=key,
                description=(
                    "The table's view shows the columns and indexes of this definition. While"
                    " another table with them is being built beside the one that is read, the check"
                    " warns and shows its progress."
                ),
            ),
        ],
        group_name=tables_group(dataset),
        kinds={"postgres", "table"},
        owners=list(definition.owners),
        freshness_policy=freshness_policy(definition),
        tags={"feature_pipeline/hook": definition.name},
        description=(
            f"Table `features.{spec.name}`, rebuilt from S3 at any time.\n\n"
            f"{definition.description or ''}"
        ),
        metadata={
            "dagster/table_name": f"features.{spec.name}",
            "dagster/column_schema": table_schema(columns),
            "dagster/column_lineage": column_lineage(source, columns),
            "column_sources": column_sources(source, columns),
        },
    )
    def load_table(
        context: dg.AssetExecutionContext,
        config: TableRunConfig,
        archive: ArchiveResource,
        database: DatabaseResource,
    ) -> Iterator[
        dg.MaterializeResult[None]
        | dg.AssetMaterialization
        | dg.AssetCheckResult
        | dg.AssetCheckEvaluation
    ]:
        from feature_pipeline.projections.catalog.generation import request_rebuild
        from feature_pipeline.projections.load import load_batches
        from feature_pipeline.projections.proof.missing_batches import check_progress

        store, target = archive.store(), database.database()
        batches = list(context.partition_keys)
        absent: list[str] = []
        # Of a run of one partition Dagster makes the event; of several, one would be made for each.
        is_single = len(batches) == 1
        if not is_single:
            # One hook run that failed must not keep hundreds of batches from the table.
            readable = log.readable_heads(store, dataset, definition.name, batches)
            # What is damaged is given to the load, which names it.
            present = readable.intact.keys() | readable.damage.keys()
            absent = [batch for batch in batches if batch not in present]
            batches = [batch for batch in batches if batch in present] or batches
        if config.rebuild:
            token = context.run.tags.get(BACKFILL_ID_TAG, context.run.run_id)
            with target.connect(f"table {spec.name!r}") as connection:
                request_rebuild(connection, spec, token)
        inputs = latest_events(context.instance, source, batches)
        done: list[str] = []

        def loaded(
            report: "LoadReport", shown: Metadata
        ) -> dg.MaterializeResult[None] | dg.AssetMaterialization:
            event = inputs.get(report.batch)
            if event is None or event.data_version != str(report.content_digest):
                # accepted since the events were read
                event = latest_events(context.instance, source, [report.batch]).get(report.batch)
            tags = load_tags(report, code_version, source, event)
            metadata = load_metadata(report, archive.uri) | shown
            is_first = report.batch not in done
            done.append(report.batch)
            context.log.info(
                "%s: %d rows%s",
                report.batch,
                report.rows,
                ", unchanged" if report.is_unchanged else "",
            )
            # A run may load batches that came while it verified a generation: they are not its own.
            # And its own a second time, into a generation that is being built.
            if is_single and report.batch == batches[0] and is_first:
                return dg.MaterializeResult(
                    asset_key=key,
                    metadata=metadata,
                    data_version=dg.DataVersion(report.data_version),
                    tags=tags,
                )
            return dg.AssetMaterialization(
                asset_key=key, partition=report.batch, metadata=metadata, tags=tags
            )

        last: LoadReport | None = None
        try:
            for report in load_batches(store, target, spec, batches):
                if last is not None:
                    yield loaded(last, {})
                last = report
        except Exception:
            if last is not None:  # it is loaded all the same
                yield loaded(last, {})
            raise
        if last is not None:
            # The UI reads columns, lineage and the number of rows from the latest event alone: one
            # a run is enough, and what is shown is known once the load has ended.
            yield loaded(last, shown_metadata(target, definition))
        before = previously_named(
            context.instance, dg.AssetCheckKey(key, PROGRESS_CHECK), "batches"
        )
        progress = check_progress(store, target, spec, {*batches, *before})
        yield dg.AssetCheckResult(
            asset_key=key,
            check_name=PROGRESS_CHECK,
            passed=progress.is_complete and not absent,
            description=progress.summary() + _absent(absent),
            metadata={
                "loaded": len(done),
                "batches": progress.wrong()[:NAMED_BATCHES],
                "problems": {**progress.to_json(), "without_artifact": absent},
            },
        )
        yield generation_result(context, key, store, target, spec)
        if not is_selected(context, equality_key(spec)):
            yield _proved(context, store, target, spec, batches)

    return load_table


def _proved(
    context: dg.AssetExecutionContext,
    store: BlobStore,
    database: "Database",
    spec: TableSpec,
    batches: Sequence[str],
) -> dg.AssetCheckEvaluation:
    """Evaluate `equals_archive` for the batches of a run that does not execute it by itself."""
    key = equality_key(spec)
    try:
        equality = judge_equality(store, database, context.instance, spec, batches)
    except FeaturePipelineError as error:
        named = dg.MetadataValue.json(list(batches[:NAMED_BATCHES]))
        equality = Equality(False, f"it could not be proved: {error}", {"batches": named})
    return dg.AssetCheckEvaluation(
        asset_key=key.asset_key,
        check_name=key.name,
        passed=equality.passed,
        description=equality.description,
        metadata=equality.metadata,
    )


def _absent(batches: Sequence[str]) -> str:
    if not batches:
        return ""
    return f"; {len(batches)} of this run have no artifact to load: {first_few(batches)}"


def generation_result(
    context: dg.AssetExecutionContext,
    key: dg.AssetKey,
    store: BlobStore,
    database: "Database",
    spec: TableSpec,
) -> dg.AssetCheckResult:
    """Return whether users read what the definition declares; if not, request one fill.

    A generation that is being built is filled by a backfill of the batches that it lacks: the first
    run to find any requests it, and the others join it. Batches that are being loaded, or whose
    features are being computed, are left out: they are loaded anyway, and the backfill would load
    them twice.
    """
    from feature_pipeline.projections.switch.finalize import request_fill, table_report

    report = table_report(store, database, spec)
    if report is None:  # dropped since
        return dg.AssetCheckResult(
            asset_key=key,
            check_name=GENERATION_CHECK,
            passed=False,
            description=f"{spec.name} does not exist any more",
        )
    requested: dict[str, Any] = {}
    waiting = [] if report.is_older_code else _not_under_way(context.instance, spec, report.missing)
    if waiting:
        with database.connect(f"table {spec.name!r}") as connection:
            is_ours = request_fill(connection, spec)
        if is_ours:
            fill = request_load(context.instance, key, waiting, "fill")
            requested = {"backfill": fill, "plan": _planned(store, database, spec)}
            context.log.info("backfill %s requested: %s", fill, report.summary())
    return dg.AssetCheckResult(
        asset_key=key,
        check_name=GENERATION_CHECK,
        passed=report.is_settled,
        severity=dg.AssetCheckSeverity.WARN,
        description=report.summary(),
        metadata={
            "live": report.live or "",
            "building": report.building or "",
            "missing": len(report.missing),
            **requested,
        },
    )


def _not_under_way(
    instance: dg.DagsterInstance, spec: TableSpec, batches: Sequence[str]
) -> list[str]:
    if not batches:
        return []
    keys = table_key(spec.dataset, spec.name), features_key(spec.dataset, spec.hook)
    busy = set().union(*(partitions_under_way(instance, key) for key in keys))
    return [batch for batch in batches if batch not in busy]


def _planned(store: BlobStore, database: "Database", spec: TableSpec) -> dg.MetadataValue:
    """Return the plan's text; a failure to plan does not prevent the fill from being requested."""
    from feature_pipeline.projections.preview import plan_table

    try:
        return dg.MetadataValue.json(plan_table(store, database, spec).to_json())
    except FeaturePipelineError as error:
        return dg.MetadataValue.text(str(error))


def request_load(
    instance: dg.DagsterInstance, table: dg.AssetKey, batches: Sequence[str], why: str
) -> str:
    """Request one Dagster backfill of the table asset over these batches; return its id."""
    return request_backfill(
        instance,
        {table: batches},
        title=f"{why} {table.to_user_string()}",
        description="Batches that the archive has and the table lacks.",
        tags={f"feature_pipeline/{why}": "true", PRIORITY_TAG: conditions.TABLES_PRIORITY},
    )


def load_tags(
    report: "LoadReport", code_version: str, source: dg.AssetKey, event: PartitionEvent | None
) -> dict[str, str]:
    """Return a loaded batch's provenance: the content read, and Dagster's event of it.

    Args:
        event: The latest event of the features' partition, if Dagster has one.
    """
    content = str(report.content_digest)
    is_same = event is not None and event.data_version == content
    read = InputVersion(content, event.storage_id if event is not None and is_same else None)
    return event_tags(report.data_version, code_version, {source: read})


def table_event(
    definition: HookDefinition,
    report: "LoadReport",
    event: PartitionEvent | None,
    archive_uri: str | None = None,
) -> dg.AssetMaterialization:
    """Return the materialization of a batch loaded outside any run.

    Args:
        event: The latest event of the features' partition, if Dagster has one.
        archive_uri: The archive's address, for display.
    """
    spec = table_spec(definition)
    source = features_key(definition.dataset, definition.name)
    return dg.AssetMaterialization(
        asset_key=table_key(definition.dataset, spec.name),
        partition=report.batch,
        metadata=load_metadata(report, archive_uri),
        tags=load_tags(report, table_code_version(spec), source, event),
    )


def report_loads(
    instance: dg.DagsterInstance,
    definition: HookDefinition,
    reports: "Iterable[LoadReport]",
    database: "Database",
    archive_uri: str | None = None,
) -> "Generator[LoadReport]":
    """Yield the reports as they come; report all of them to Dagster by the end.

    A partition whose event is already right gets no other. Batches loaded before an error are
    reported before it is raised. The last event describes the table as a whole.
    """
    unreported: list[LoadReport] = []
    try:
        for report in reports:
            if len(unreported) == _REPORTED_AT_ONCE:
                _report_missing(instance, definition, unreported, archive_uri, {})
                unreported = []
            unreported.append(report)
            yield report
    finally:
        shown = shown_metadata(database, definition) if unreported else {}
        if unreported and not _report_missing(instance, definition, unreported, archive_uri, shown):
            report_shown(instance, definition, database, archive_uri)


def _report_missing(
    instance: dg.DagsterInstance,
    definition: HookDefinition,
    reports: "Sequence[LoadReport]",
    archive_uri: str | None,
    shown: Metadata,
) -> bool:
    """Report missing events to Dagster, the last with `shown`; return whether there were any.

    Args:
        shown: Metadata of the table as a whole.
    """
    batches = [report.batch for report in reports]
    features = latest_events(instance, features_key(definition.dataset, definition.name), batches)
    known = latest_events(instance, table_key(definition.dataset, definition.table_name), batches)
    events = [table_event(definition, r, features.get(r.batch), archive_uri) for r in reports]
    news = [
        event
        for batch, event in zip(batches, events, strict=True)
        if batch not in known or known[batch].tags != event.tags
    ]
    if not news:
        return False
    *others, last = news
    report_events(instance, others)
    # Dagster shows the columns of the event that it has stored last.
    report_events(instance, [last.with_metadata({**last.metadata, **shown})])
    return True


def report_shown(
    instance: dg.DagsterInstance,
    definition: HookDefinition,
    database: "Database",
    archive_uri: str | None = None,
) -> bool:
    """Report the table's columns and row count if Dagster shows others; return whether it did.

    The event of a loaded batch is repeated with them: its data version is the same, so that nothing
    becomes stale.
    """
    from feature_pipeline.projections.load import fed_loads

    shown = shown_metadata(database, definition)
    latest = instance.get_latest_materialization_event(
        table_key(definition.dataset, definition.table_name)
    )
    known = None if latest is None else latest.asset_materialization
    if not shown or known is None or all(known.metadata.get(n) == shown[n] for n in _SHOWN_ENTRIES):
        return False
    loads = fed_loads(database, table_spec(definition))
    if not loads:
        return False
    load = loads.get(known.partition or "") or next(iter(loads.values()))
    source = features_key(definition.dataset, definition.name)
    event = latest_events(instance, source, [load.batch]).get(load.batch)
    materialization = table_event(definition, load, event, archive_uri)
    report_events(instance, [materialization.with_metadata({**materialization.metadata, **shown})])
    return True


def load_metadata(report: "LoadReport", archive_uri: str | None = None) -> Metadata:
    """Return the metadata of one table partition's materialization.

    Args:
        archive_uri: The archive's address; without it, the manifest's is left out.
    """
    counts: dict[str, int] = {"rows": report.rows, "seq": report.seq}
    if report.counts is not None:
        counts |= {
            "records": report.counts.records,
            "passed": report.counts.passed,
            "rejected": report.counts.rejected,
            "errored": report.counts.errored,
        }
    metadata: Metadata = {
        # Not numbers of their own: Dagster would plot those of one batch after the other as the
        # table's, which would seem to shrink.
        "batch": dg.MetadataValue.json(counts),
        "unchanged": dg.MetadataValue.bool(report.is_unchanged),
        "manifest": dg.MetadataValue.text(str(report.manifest)),
        "content_digest": dg.MetadataValue.text(str(report.content_digest)),
        "rows_digest": dg.MetadataValue.text(str(report.rows_digest)),
        "generation": dg.MetadataValue.text(report.generation),
        "duration": dg.MetadataValue.text(f"{report.seconds:.3f} s"),
        "release": dg.MetadataValue.text(f"{report.release} ({report.release_digest.short})"),
    }
    if archive_uri is not None:
        uri = f"{archive_uri}/{layout.blob(report.manifest)}"
        metadata["manifest_uri"] = dg.MetadataValue.text(uri)
    return metadata


def shown_metadata(database: "Database", definition: HookDefinition) -> Metadata:
    """Return metadata of the whole table, as PostgreSQL has it: columns, their sources, rows.

    Empty if the table does not exist.
    """
    from feature_pipeline.projections.catalog.shown_table import read_shown_table

    spec = table_spec(definition)
    shown = read_shown_table(database, spec.name)
    if shown is None:
        return {}
    source = features_key(definition.dataset, definition.name)
    names = {column.name for column in shown.columns}
    there = [column for column in spec.columns if column.name in names]
    return {
        "dagster/row_count": dg.MetadataValue.int(shown.rows),
        "dagster/column_schema": dg.MetadataValue.table_schema(
            shown_schema(shown.columns, spec.columns)
        ),
        "dagster/column_lineage": dg.MetadataValue.column_lineage(column_lineage(source, there)),
    }
