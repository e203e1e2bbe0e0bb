"""Tables that lost what Dagster calls loaded, or the view it is read by: their check says so.

Belongs here: tables that are made on request, which nothing loads again by itself. Not here: tables
that are always loaded, whose batches `reconcile` asks for. Dagster cannot unsay a materialization.
"""

from collections.abc import Sequence

import dagster as dg

from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.hooks.definition import HookDefinition
from feature_pipeline.orchestration.judged_batches import NAMED_BATCHES, said_before
from feature_pipeline.orchestration.keys import table_key
from feature_pipeline.orchestration.tables import PROGRESS_CHECK, table_spec
from feature_pipeline.projections.database import Database
from feature_pipeline.projections.progress import check_progress

_UNLOADED = "unloaded"


def judge_unloaded(
    store: BlobStore, database: Database, instance: dg.DagsterInstance, definition: HookDefinition
) -> list[str]:
    """The batches that Dagster calls loaded and the table lacks; its check `progress` names them.

    The check is evaluated if they are others than it says, and passes again once there are none.
    """
    spec = table_spec(definition)
    key = table_key(definition.dataset, spec.name)
    loaded = instance.get_materialized_partitions(key)
    unloaded: list[str] = []
    if loaded:
        progress = check_progress(store, database, spec)
        unloaded = sorted(loaded.intersection(progress.missing) if progress.is_shown else loaded)
    check = dg.AssetCheckKey(key, PROGRESS_CHECK)
    if unloaded[:NAMED_BATCHES] != next(said_before(instance, check, _UNLOADED), []):
        instance.report_runless_asset_event(_evaluation(check, spec.name, unloaded))
    return unloaded


def _evaluation(
    check: dg.AssetCheckKey, table: str, unloaded: Sequence[str]
) -> dg.AssetCheckEvaluation:
    named = list(unloaded[:NAMED_BATCHES])
    return dg.AssetCheckEvaluation(
        asset_key=check.asset_key,
        check_name=check.name,
        passed=not unloaded,
        severity=dg.AssetCheckSeverity.ERROR,
        description=(
            f"{len(unloaded)} batches that Dagster calls loaded are not in features.{table}:"
            " materialize them, if the table is still wanted"
            if unloaded
            else "every batch that Dagster calls loaded is in the table"
        ),
        metadata={
            "batches": dg.MetadataValue.json(named),
            _UNLOADED: dg.MetadataValue.json(named),
        },
    )
