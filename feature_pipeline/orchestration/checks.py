"""Asset checks: what Dagster's green cannot say.

Belongs here: looking at all current artifacts of a hook, or at a whole table. Not here: the check
of one load's own batches (`tables`). A dropped table or a damaged object leaves Dagster's
partitions green; these checks fail and name the batches.
"""

from collections.abc import Sequence

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)

from feature_pipeline.archive import log, read
from feature_pipeline.hooks.definition import HookDefinition
from feature_pipeline.orchestration.keys import features_key, table_key
from feature_pipeline.orchestration.resources import ArchiveResource, DatabaseResource
from feature_pipeline.orchestration.tables import table_spec
from feature_pipeline.projections.proof import prove

OUTCOMES_CHECK = "outcomes"
EQUALITY_CHECK = "equals_archive"
SHOWN_BATCHES = 50


def feature_checks(definition: HookDefinition) -> Sequence[dg.AssetChecksDefinition]:
    """Checks of a feature asset: `outcomes`."""
    dataset, hook = definition.dataset, definition.name

    @dg.asset_check(
        asset=features_key(dataset, hook),
        name=OUTCOMES_CHECK,
        description="No record of a current artifact errored; failing batches are named.",
    )
    def outcomes(
        context: dg.AssetCheckExecutionContext, archive: ArchiveResource
    ) -> dg.AssetCheckResult:
        store = archive.store()
        totals = dict.fromkeys(("records", "passed", "rejected", "errored", "rows"), 0)
        failing: dict[str, int] = {}
        heads = log.heads(store, dataset, hook)
        for batch, head in heads.items():
            counts = read.read_manifest(store, head.manifest).counts
            for name in totals:
                totals[name] += getattr(counts, name)
            if counts.errored:
                failing[batch] = counts.errored
        shown = dict(sorted(failing.items(), key=lambda item: -item[1])[:SHOWN_BATCHES])
        return dg.AssetCheckResult(
            passed=not failing,
            severity=dg.AssetCheckSeverity.WARN,
            description=(
                f"{totals['errored']} of {totals['records']} records errored, in"
                f" {len(failing)} of {len(heads)} batches"
            ),
            metadata={**totals, "failing_batches": dg.MetadataValue.json(shown)},
        )

    return [outcomes]


def table_checks(definition: HookDefinition) -> Sequence[dg.AssetChecksDefinition]:
    """Checks of a table asset: `equals_archive`. None for hooks without a table."""
    if not definition.has_table:
        return []
    spec = table_spec(definition)

    @dg.asset_check(
        asset=table_key(definition.dataset, spec.name),
        name=EQUALITY_CHECK,
        description=(
            "The digest of the rows read back from PostgreSQL equals the archive's. In a run of"
            " partitions: of these; executed alone: of the whole table, which reads all of it."
        ),
    )
    def equals_archive(
        context: dg.AssetCheckExecutionContext,
        archive: ArchiveResource,
        database: DatabaseResource,
    ) -> dg.AssetCheckResult:
        store, target = archive.store(), database.database()
        batches = run_batches(context, definition.dataset)
        proof = prove(store, target, spec, batches)
        return dg.AssetCheckResult(
            passed=proof.is_equal,
            description=proof.summary(),
            metadata={
                "rows": proof.rows,
                "table_digest": str(proof.table_digest),
                "archive_digest": str(proof.archive_digest),
                "batches": dg.MetadataValue.json(list(proof.unequal_batches[:SHOWN_BATCHES])),
                "progress": dg.MetadataValue.json(proof.progress.to_json()),
            },
        )

    return [equals_archive]


def run_batches(context: dg.AssetCheckExecutionContext, dataset: str) -> list[str] | None:
    """The partitions that this run is about; None for a run of no partition.

    Checks are not partitioned (partitioned checks are in preview), so the run's tags are read.
    """
    tags = context.run.tags
    if (single := tags.get(PARTITION_NAME_TAG)) is not None:
        return [single]
    first, last = (
        tags.get(ASSET_PARTITION_RANGE_START_TAG),
        tags.get(ASSET_PARTITION_RANGE_END_TAG),
    )
    if first is None or last is None:
        return None
    keys = list(context.instance.get_dynamic_partitions(dataset))
    return keys[keys.index(first) : keys.index(last) + 1]
