"""Request a Dagster backfill of batches: from runs, sensors and commands alike."""

import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any

import dagster as dg

from feature_pipeline.orchestration.dagster_internals import AssetGraphSubset, PartitionBackfill
from feature_pipeline.orchestration.keys import batches_partitions


def request_backfill(
    instance: dg.DagsterInstance,
    wanted: Mapping[dg.AssetKey, Collection[str]],
    *,
    title: str,
    description: str,
    tags: Mapping[str, str],
    run_config: Mapping[str, Any] | None = None,
) -> str:
    """Request one backfill of these batches of each asset; return its id.

    Dagster's daemon runs it, each partition after those it depends on. Without a daemon it waits.

    Args:
        instance: The Dagster instance.
        wanted: Batches by asset. Every asset is partitioned by the batches of its dataset.
        title: Shown in the list of backfills.
        description: Why it was requested.
        tags: Of the backfill and its runs.
        run_config: Of its runs.
    """
    backfill_id = uuid.uuid4().hex[:8]
    subsets = {
        key: batches_partitions(key.path[0]).empty_subset().with_partition_keys(batches)
        for key, batches in wanted.items()
    }
    instance.add_backfill(
        PartitionBackfill.from_asset_graph_subset(
            backfill_id=backfill_id,
            backfill_timestamp=time.time(),
            tags=tags,
            dynamic_partitions_store=instance,
            # Its decorator hides the named tuple's fields from mypy.
            asset_graph_subset=AssetGraphSubset(subsets, set()),  # type: ignore[call-arg]
            title=title,
            description=description,
            run_config=run_config,
        )
    )
    return backfill_id
