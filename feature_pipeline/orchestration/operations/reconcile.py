"""Reconciliation: find and repair differences between archive, Dagster and tables."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import dagster as dg

from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, NotFoundError
from feature_pipeline.model.definition import Compute, HookDefinition, Materialize, inputs_first
from feature_pipeline.orchestration.assets.records import records_event
from feature_pipeline.orchestration.events.backfill_request import request_backfill
from feature_pipeline.orchestration.events.data_versions import has_read
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.events.materializations import (
    EVENTS_AT_ONCE,
    features_events,
    report_events,
)
from feature_pipeline.orchestration.events.reported_entries import known_batches, known_partitions
from feature_pipeline.orchestration.events.requested import (
    cancelled_partitions,
    partitions_under_way,
)
from feature_pipeline.orchestration.events.staleness import partition_runs
from feature_pipeline.orchestration.keys import (
    RECONCILE_TAG,
    batches_partitions,
    features_key,
    records_key,
    table_key,
)
from feature_pipeline.orchestration.operations.reconcile_tables import TableDrift, reconcile_table
from feature_pipeline.orchestration.pools import set_pools
from feature_pipeline.orchestration.resources import ArchiveResource, DatabaseResource
from feature_pipeline.orchestration.sensors.alerts import RECONCILE_JOB
from feature_pipeline.parallel import map_threads

if TYPE_CHECKING:
    from feature_pipeline.projections.catalog.database import Database


@dataclass
class Drift:
    """The differences, by dataset, hook or table; each list has batch keys."""

    partitions: dict[str, list[str]] = field(default_factory=dict)
    """Batches of the log that were not partitions in Dagster; added."""
    records: dict[str, list[str]] = field(default_factory=dict)
    """Batches whose records had no event of their digest; reported."""
    features: dict[str, list[str]] = field(default_factory=dict)
    """Artifacts without an event in Dagster; reported."""
    tables: dict[str, list[str]] = field(default_factory=dict)
    """Batches that tables lack or have in an older version; to be loaded."""
    unloaded: dict[str, list[str]] = field(default_factory=dict)
    """Batches that Dagster calls loaded and an `on_request` table lacks; its check names them."""
    unknown_partitions: dict[str, list[str]] = field(default_factory=dict)
    """Partitions in Dagster without a batch in the log."""
    behind: dict[str, list[str]] = field(default_factory=dict)
    """Features made from input features that are no longer current; to be run."""
    table_events: dict[str, list[str]] = field(default_factory=dict)
    """Loaded batches without an event in Dagster, or with one of other rows; reported."""
    changed: dict[str, list[str]] = field(default_factory=dict)
    """Batches whose rows in a table were changed by another writer; the table is to be rebuilt."""
    unfounded: dict[str, list[str]] = field(default_factory=dict)
    """Partitions that Dagster shows as materialized without an artifact: materializations that were
    reported by hand, or whose artifact was given up.
    """
    lost: dict[str, dict[str, str]] = field(default_factory=dict)
    """Batches of which Dagster or a table knows more than the archive's log; each with what."""
    to_rebuild: dict[str, list[str]] = field(default_factory=dict)
    """Every batch of the `always` tables with changed rows that are not being rebuilt already."""
    damaged: dict[str, dict[str, str]] = field(default_factory=dict)
    """Batches that could not be reported to Dagster because of damage in the archive; each with the
    reason.
    """

    def summary(self) -> str:
        """Return one line per kind of drift; "no drift" if there was none."""
        parts = [
            f"{what} {name}: {len(keys)}"
            for what, batches_of in (
                ("partitions added to", self.partitions),
                ("record events reported for", self.records),
                ("feature events reported for", self.features),
                ("batches to load into", self.tables),
                ("batches shown as loaded that are not in", self.unloaded),
                ("partitions without a batch in", self.unknown_partitions),
                ("batches to compute again in", self.behind),
                ("table events reported for", self.table_events),
                ("batches whose rows were changed by hand in", self.changed),
                ("partitions without an artifact in", self.unfounded),
                ("batches lost from the archive of", self.lost),
                ("batches damaged in the archive of", self.damaged),
            )
            for name, keys in batches_of.items()
        ]
        return "; ".join(parts) or "no drift"


def reconcile(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    database: "Database | None",
    hooks: Sequence[HookDefinition],
) -> Drift:
    """Report every batch and artifact of the archive to Dagster; list what tables lack.

    Args:
        database: None leaves the tables out.
    """
    drift = Drift()
    batches: dict[str, dict[str, BatchEntry]] = {}
    heads: dict[tuple[str, str], dict[str, FeatureEntry]] = {}
    for dataset in sorted({hook.dataset for hook in hooks} | set(log.datasets(store))):
        batches[dataset] = _reconcile_batches(store, instance, dataset, drift)
        # Also hooks of which the archive knows nothing: Dagster may know what it has lost.
        # The events of a hook point at those of its inputs.
        declared = [name for _, name in inputs_first(h for h in hooks if h.dataset == dataset)]
        for hook in dict.fromkeys([*declared, *log.hooks(store, dataset)]):
            heads[dataset, hook] = _reconcile_features(
                store, archive_uri, instance, dataset, hook, drift
            )
    for definition in hooks:
        key = features_key(definition.dataset, definition.name).to_user_string()
        if definition.compute is Compute.AUTOMATICALLY:
            # A run makes the artifact that a materialization by hand claims.
            unfounded = batches[definition.dataset].keys() & drift.unfounded.get(key, ())
            wanting = _behind(instance, definition) | unfounded
            if runnable := _without_given_up(instance, definition, wanting):
                drift.behind[key] = runnable
    if database is not None:
        for definition in hooks:
            if definition.has_table:
                own = heads[definition.dataset, definition.name]
                table_drift = reconcile_table(
                    store, archive_uri, database, instance, definition, own
                )
                _add_table(drift, definition, table_drift, own)
    return drift


def _add_table(
    drift: Drift,
    definition: HookDefinition,
    table_drift: TableDrift,
    heads: Mapping[str, FeatureEntry],
) -> None:
    key = table_key(definition.dataset, definition.table_name).to_user_string()
    for kind, batches in (
        (drift.tables, table_drift.to_load),
        (drift.unloaded, table_drift.unloaded),
        (drift.table_events, table_drift.reported),
        (drift.changed, table_drift.changed),
        (drift.unfounded, table_drift.unfounded),
    ):
        if batches:
            kind[key] = list(batches)
    if table_drift.lost:
        drift.lost[key] = dict(table_drift.lost)
    is_always = definition.table.materialize is Materialize.ALWAYS
    if table_drift.changed and is_always and not (table_drift.is_rebuilt or table_drift.lost):
        drift.to_rebuild[key] = sorted(heads)


def _behind(instance: dg.DagsterInstance, definition: HookDefinition) -> set[str]:
    """Return the partitions whose latest event was made from older input features.

    Automation requests them when an input changes; this is for changes that it did not see.
    """
    dataset = definition.dataset
    if not definition.inputs:
        return set()
    key = features_key(dataset, definition.name)
    own = latest_events(instance, key, instance.get_materialized_partitions(key))
    behind: set[str] = set()
    for name in definition.inputs:
        source = features_key(dataset, name)
        for batch, event in latest_events(instance, source, own).items():
            if event.data_version is not None and not has_read(
                own[batch], source, event.data_version
            ):
                behind.add(batch)
    return behind


def _without_given_up(
    instance: dg.DagsterInstance, definition: HookDefinition, batches: Collection[str]
) -> list[str]:
    """Return those of `batches` whose last run neither failed nor was cancelled.

    For the others, an operator decides.
    """
    if not batches:
        return []
    key = features_key(definition.dataset, definition.name)
    failed = partition_runs(instance, key, batches_partitions(definition.dataset)).failed
    return sorted(set(batches) - failed - cancelled_partitions(instance, key).keys())


def _reconcile_batches(
    store: BlobStore, instance: dg.DagsterInstance, dataset: str, drift: Drift
) -> dict[str, BatchEntry]:
    """Report to Dagster the batches that it does not know; return every batch's last entry."""
    from feature_pipeline.archive.maintenance.compare_databases import find_lost_batches

    readable = log.readable_batches(store, dataset, None, known_logs(store))
    entries = dict(readable.intact)
    name = records_key(dataset).to_user_string()
    if readable.damage:
        drift.damaged[name] = {b: str(damage.error) for b, damage in readable.damage.items()}
    if lost := find_lost_batches(store, known_batches(instance, dataset)):
        drift.lost[name] = {one.known.batch: str(one) for one in lost}
    known = set(instance.get_dynamic_partitions(dataset))
    submitted = sorted(entries.values(), key=lambda entry: entry.order)
    if absent := [entry.batch for entry in submitted if entry.batch not in known]:
        instance.add_dynamic_partitions(dataset, absent)
        drift.partitions[dataset] = absent
    if unknown := sorted(known - entries.keys() - readable.damage.keys()):
        drift.unknown_partitions[dataset] = unknown
    events = latest_events(instance, records_key(dataset), entries)
    unreported = [
        entry
        for key, entry in entries.items()
        if key not in events or events[key].data_version != str(entry.digest)
    ]
    for start in range(0, len(unreported), EVENTS_AT_ONCE):
        chunk = unreported[start : start + EVENTS_AT_ONCE]
        events_of = map_threads(lambda entry: _records_event(store, entry), chunk)
        materializations = [
            event for event in events_of if isinstance(event, dg.AssetMaterialization)
        ]
        report_events(instance, materializations)
        for entry, event in zip(chunk, events_of, strict=True):
            if isinstance(event, dg.AssetMaterialization):
                drift.records.setdefault(dataset, []).append(entry.batch)
            else:
                drift.damaged.setdefault(name, {})[entry.batch] = str(event)
    return entries


def _records_event(
    store: BlobStore, entry: BatchEntry
) -> dg.AssetMaterialization | FeaturePipelineError:
    try:
        return records_event(entry, log.batch_of(store, entry))
    except (NotFoundError, CorruptDataError) as error:
        return error


def _reconcile_features(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    dataset: str,
    hook: str,
    drift: Drift,
) -> dict[str, FeatureEntry]:
    """Report to Dagster the artifacts that it does not know; return the hook's current entries."""
    from feature_pipeline.archive.maintenance.compare_databases import find_lost

    key = features_key(dataset, hook)
    name = key.to_user_string()
    readable = log.readable_heads(store, dataset, hook, None, known_logs(store))
    heads = dict(readable.intact)
    known = known_partitions(instance, key)
    if readable.damage:
        drift.damaged[name] = {b: str(damage.error) for b, damage in readable.damage.items()}
    lost = find_lost(store, known.entries(dataset, hook), heads)
    if lost:
        drift.lost[name] = {one.known.batch: str(one) for one in lost}
    absent = known.events.keys() - heads.keys() - readable.damage.keys()
    if unfounded := sorted(absent - {one.known.batch for one in lost}):
        drift.unfounded[name] = unfounded
    unreported = [
        batch
        for batch, head in heads.items()
        if batch not in known.events or known.events[batch].data_version != str(head.content_digest)
    ]
    for start in range(0, len(unreported), EVENTS_AT_ONCE):
        chunk = {batch: heads[batch] for batch in unreported[start : start + EVENTS_AT_ONCE]}
        damaged: dict[str, str] = {}
        events = features_events(store, archive_uri, instance, dataset, hook, chunk, damaged)
        report_events(instance, events.values())
        if damaged:
            drift.damaged.setdefault(name, {}).update(damaged)
        if events:
            drift.features.setdefault(name, []).extend(events)
    return heads


def request_runs(
    instance: dg.DagsterInstance,
    wanted: Mapping[str, Iterable[str]],
    *,
    is_rebuild: bool = False,
) -> list[str]:
    """Request one Dagster backfill per asset for the batches it needs; return their ids.

    Leaves out batches that are being run, or are part of a running backfill.

    Args:
        instance: The Dagster instance.
        wanted: Batches by asset.
        is_rebuild: Whether the assets are tables that are to be rebuilt and switched to.
    """
    ids = []
    for asset, lacking in wanted.items():
        key = dg.AssetKey.from_user_string(asset)
        busy = partitions_under_way(instance, key)
        batches = [batch for batch in lacking if batch not in busy]
        if not batches or (is_rebuild and busy):
            continue
        rebuild = {"ops": {"__".join(key.path): {"config": {"rebuild": True}}}}
        ids.append(
            request_backfill(
                instance,
                {key: batches},
                title=f"reconcile {asset}",
                description=(
                    "Rows were changed by hand: the table is rebuilt."
                    if is_rebuild
                    else "Batches that the asset lacks, or has in an older version."
                ),
                tags={RECONCILE_TAG: "true"},
                run_config=rebuild if is_rebuild else None,
            )
        )
    return ids


def reconcile_job(hooks: Sequence[HookDefinition]) -> dg.JobDefinition:
    """Return the job `reconcile`, which repairs drift and requests the necessary runs."""

    @dg.op(name="find_and_repair_drift", description="Compares the logs, Dagster and the tables.")
    def find_and_repair(
        context: dg.OpExecutionContext, archive: ArchiveResource, database: DatabaseResource
    ) -> None:
        set_pools(context.instance, hooks)
        drift = reconcile(
            archive.store(), archive.uri, context.instance, database.database(), hooks
        )
        context.log.info(drift.summary())
        wanted = {**drift.behind, **drift.tables}
        if wanted or drift.to_rebuild:
            ids = request_runs(context.instance, wanted)
            ids += request_runs(context.instance, drift.to_rebuild, is_rebuild=True)
            context.log.info("backfills requested: %s", ", ".join(ids))
        if drift.unfounded:
            context.log.warning(
                "Dagster shows partitions as materialized that have no artifact, as when a"
                " materialization is reported by hand: %s. Hooks that compute automatically are"
                " run for them; of the others, materialize the partitions",
                drift.unfounded,
            )
        if drift.damaged or drift.lost:
            raise dg.Failure(
                description=(
                    "the archive lacks known objects: run `feature-pipeline repair` to see"
                    f" what can be restored; {drift.summary()}; the rest was reconciled"
                ),
                metadata={
                    "damaged": dg.MetadataValue.json(drift.damaged),
                    "lost": dg.MetadataValue.json(drift.lost),
                },
                allow_retries=False,
            )

    @dg.job(
        name=RECONCILE_JOB,
        description=(
            "Compares the archive, Dagster's events and the tables; reports events that Dagster"
            " lacks, and requests backfills of batches that tables lack."
        ),
    )
    def reconcile_all() -> None:
        find_and_repair()

    return reconcile_all


def reconcile_schedule() -> dg.ScheduleDefinition:
    """Return the schedule that runs `reconcile` every hour; running by default."""
    return dg.ScheduleDefinition(
        name="reconcile_hourly",
        job_name=RECONCILE_JOB,
        cron_schedule="17 * * * *",
        description="Finds and repairs drift between archive, Dagster and tables, every hour.",
        default_status=dg.DefaultScheduleStatus.RUNNING,
    )
