"""Request the rest of backfills that Dagster failed because definitions or servers changed.

Dagster fails a backfill as a whole when one of its assets is renamed or deleted, and cancels the
runs that wait. The other assets, and the batches that were not begun, are requested again. Not
here: runs that failed (`repeats`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import dagster as dg

from feature_pipeline.orchestration.dagster_internals import (
    BACKFILL_ID_TAG,
    AssetGraph,
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
)
from feature_pipeline.orchestration.events.backfill_request import request_backfill
from feature_pipeline.orchestration.events.latest_events import latest_events
from feature_pipeline.orchestration.events.requested import partitions_of_run, partitions_under_way
from feature_pipeline.orchestration.keys import REPEAT_TAG, batches_partitions
from feature_pipeline.orchestration.sensors.repeat_causes import (
    config_of,
    is_backfill_of_surroundings,
    is_blocked,
)

LOOKBACK_SECONDS: Final = 86_400.0
MAX_REPEATS: Final = 50
"""About a day, with the delays of `repeats`."""
_AT_ONCE: Final = 100


@dataclass(slots=True)
class FailedBackfills:
    """Which failed backfills were looked at, and whose definitions are waited for."""

    handled: list[str] = field(default_factory=list)
    held: dict[str, list[str]] = field(default_factory=dict)
    """Assets of backfills that wait until a definition can be used, by the backfills' ids."""


def repeat_failed_backfills(
    instance: dg.DagsterInstance, graph: AssetGraph, state: FailedBackfills, now: float
) -> dict[str, int]:
    """Request what failed backfills left undone; the number of partitions by new backfill.

    A partition is left undone if it was not materialized since, no run of the backfill failed over
    it, and nothing is about to run it.
    """
    requested: dict[str, int] = {}
    after = datetime.fromtimestamp(now - LOOKBACK_SECONDS, UTC)
    filters = BulkActionsFilter(statuses=[BulkActionStatus.FAILED], created_after=after)
    failed = {each.backfill_id: each for each in instance.get_backfills(filters, limit=_AT_ONCE)}
    # What is too old to be listed needs no mark any more.
    state.handled = [each for each in state.handled if each in failed]
    state.held = {each: keys for each, keys in state.held.items() if each in failed}
    for backfill_id, backfill in failed.items():
        only = None
        if backfill_id in state.held:
            only = {dg.AssetKey.from_user_string(text) for text in state.held[backfill_id]}
            if any(is_blocked(graph, key) for key in only):
                continue
            del state.held[backfill_id]
        elif backfill_id in state.handled:
            continue
        else:
            state.handled.append(backfill_id)
        if not is_backfill_of_surroundings(backfill) or _repeats(backfill) >= MAX_REPEATS:
            continue
        left = _left(instance, graph, backfill)
        chosen = {key: batches for key, batches in left.items() if only is None or key in only}
        if blocked := [key.to_user_string() for key in chosen if is_blocked(graph, key)]:
            state.held[backfill_id] = blocked
        ready = {k: b for k, b in chosen.items() if graph.has(k) and not is_blocked(graph, k)}
        if ready:
            repeated = _request(instance, backfill, ready)
            requested[repeated] = sum(map(len, ready.values()))
    return requested


def _repeats(backfill: PartitionBackfill) -> int:
    return int(backfill.tags.get(REPEAT_TAG, "0"))


def _left(
    instance: dg.DagsterInstance, graph: AssetGraph, backfill: PartitionBackfill
) -> dict[dg.AssetKey, list[str]]:
    """Return the batches of each asset that the backfill left undone."""
    batches_left: dict[dg.AssetKey, list[str]] = {}
    if (data := backfill.asset_backfill_data) is None:
        return batches_left
    failed = _failed(instance, backfill)
    for key in sorted(data.target_subset.partitions_subsets_by_asset_key):
        partitions = batches_partitions(key.path[0])
        if graph.has(key) and graph.get(key).partitions_def != partitions:
            continue
        target = set(data.target_subset.get_partitions_subset(key).get_partition_keys())
        events = latest_events(instance, key, target)
        done = {b for b, e in events.items() if e.timestamp >= backfill.backfill_timestamp}
        left = target - done - failed.get(key, set()) - partitions_under_way(instance, key)
        in_order = [b for b in instance.get_dynamic_partitions(key.path[0]) if b in left]
        if in_order:
            batches_left[key] = in_order
    return batches_left


def _failed(
    instance: dg.DagsterInstance, backfill: PartitionBackfill
) -> dict[dg.AssetKey, set[str]]:
    """Return the batches per asset that runs of the backfill failed over: `repeats` has them."""
    failed: dict[dg.AssetKey, set[str]] = {}
    tags = {BACKFILL_ID_TAG: backfill.backfill_id}
    for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=tags)):
        for key in run.asset_selection or ():
            batches = partitions_of_run(instance, key.path[0], run)
            failed.setdefault(key, set()).update(batches or ())
    return failed


def _request(
    instance: dg.DagsterInstance,
    backfill: PartitionBackfill,
    left: Mapping[dg.AssetKey, list[str]],
) -> str:
    config = config_of(backfill.run_config or {}, left)
    return request_backfill(
        instance,
        left,
        title=f"rest of backfill {backfill.backfill_id}",
        description="Dagster failed it because an asset was renamed, deleted or unavailable.",
        tags={**backfill.tags, REPEAT_TAG: str(_repeats(backfill) + 1)},
        run_config=config or None,
    )
