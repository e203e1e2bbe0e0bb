"""The batches that a check covers: those of its run, and those that failed it before.

A check has one colour for all partitions: an evaluation in the run of one batch must not turn green
what another batch made red.
"""

from collections.abc import Iterator, Sequence

import dagster as dg

from feature_pipeline.model.text.counted import counted
from feature_pipeline.orchestration.events.requested import partitions_of_run

NAMED_BATCHES = 200
"""Number of failed batches that an evaluation names, and that later ones check again."""
_EVALUATIONS_BEFORE = 100
"""Number of earlier evaluations that are read: runs end concurrently."""


def run_batches(context: dg.AssetCheckExecutionContext, dataset: str) -> list[str] | None:
    """Return the partitions of this run; None for a run of no partition.

    Checks are not partitioned (partitioned checks are in preview), so the run's tags are read.
    """
    return partitions_of_run(context.instance, dataset, context.run)


def earlier_values(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, entry: str
) -> Iterator[object]:
    """Yield the values of one metadata entry in a check's earlier evaluations."""
    for record in instance.event_log_storage.get_asset_check_execution_history(
        key, limit=_EVALUATIONS_BEFORE
    ):
        event = record.event.dagster_event if record.event else None
        if event is not None and event.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            value = event.asset_check_evaluation_data.metadata.get(entry)
            if value is not None:
                yield value.value


def previously_named(instance: dg.DagsterInstance, key: dg.AssetCheckKey, entry: str) -> set[str]:
    """Return the batches that earlier evaluations named in an entry of their metadata."""
    return {
        str(batch)
        for named in earlier_values(instance, key, entry)
        if isinstance(named, dict | list)
        for batch in named
    }


def report_named(
    instance: dg.DagsterInstance,
    key: dg.AssetCheckKey,
    entry: str,
    batches: Sequence[str],
    descriptions: tuple[str, str],
) -> None:
    """Evaluate a check outside any run, if its last evaluation named other batches in an entry.

    Args:
        instance: The Dagster instance.
        key: The check.
        entry: Of its metadata.
        batches: The failed ones; the check passes if there are none.
        descriptions: The problem; the text for a pass if there are none.
    """
    named = list(batches[:NAMED_BATCHES])
    if named == next(earlier_values(instance, key, entry), []):
        return
    wrong, right = descriptions
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=key.asset_key,
            check_name=key.name,
            passed=not batches,
            severity=dg.AssetCheckSeverity.ERROR,
            description=f"{counted(len(batches), 'batch')} {wrong}" if batches else right,
            metadata={
                "batches": dg.MetadataValue.json(named),
                entry: dg.MetadataValue.json(named),
            },
        )
    )
