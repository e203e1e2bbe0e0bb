"""Partitions that are requested, running or cancelled, from Dagster's runs and backfills."""

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

import dagster as dg

from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.orchestration.dagster_internals import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    BACKFILL_ID_TAG,
    BULK_ACTION_TERMINAL_STATUSES,
    PARTITION_NAME_TAG,
    AssetGraphSubset,
    BulkActionsFilter,
    BulkActionStatus,
    PartitionBackfill,
)
from feature_pipeline.orchestration.events.staleness import partition_runs
from feature_pipeline.orchestration.keys import batches_partitions

_CANCELLED: Final = [dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED]
_RUNS_REMEMBERED: Final = 20_000
_BACKFILLS_REMEMBERED: Final = 200
_AT_ONCE: Final = 500
_RUNS_SEARCHED: Final = 50
"""Number of a partition's runs, of any asset, that are searched for one asset's."""


@dataclass(frozen=True, slots=True)
class _CancelledRun:
    assets: frozenset[dg.AssetKey]
    partition: str | None
    partition_range: tuple[str, str] | None
    at: float


_runs: LruCache[_CancelledRun] = LruCache(_RUNS_REMEMBERED)
"""Cancelled runs do not change; a process reads each once."""
_backfills: LruCache[frozenset[str]] = LruCache(_BACKFILLS_REMEMBERED)


def partitions_of_run(
    instance: dg.DagsterInstance, dataset: str, run: dg.DagsterRun
) -> list[str] | None:
    """Return the partitions of a run; None for a run of no partition."""
    single, ends = _named(run)
    if single is not None:
        return [single]
    return None if ends is None else _between(instance, dataset, *ends)


def last_run(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> dg.RunRecord | None:
    """Return the last run of an asset's partition; None if there is none among the last ones.

    Runs over a range of partitions are not considered. A run without a selection is of all assets
    of its job.
    """
    filters = dg.RunsFilter(tags={PARTITION_NAME_TAG: partition})
    for record in instance.get_run_records(filters, limit=_RUNS_SEARCHED):
        if not record.dagster_run.asset_selection or key in record.dagster_run.asset_selection:
            return record
    return None


def cancelled_partitions(instance: dg.DagsterInstance, key: dg.AssetKey) -> dict[str, float]:
    """Return partitions that a user cancelled, by run or backfill, with the last time of that.

    In seconds since the epoch. Only the last cancelled runs and backfills are read; the caller must
    check whether their partitions were requested again since.
    """
    cancelled: dict[str, float] = {}
    dataset = key.path[0]
    for run in _cancelled_runs(instance):
        if key not in run.assets:
            continue
        if run.partition is not None:
            partitions = [run.partition]
        elif run.partition_range is not None:
            partitions = _between(instance, dataset, *run.partition_range)
        else:
            continue
        for partition in partitions:
            cancelled[partition] = max(run.at, cancelled.get(partition, 0.0))
    statuses = [BulkActionStatus.CANCELING, BulkActionStatus.CANCELED]
    for backfill in instance.get_backfills(
        filters=BulkActionsFilter(statuses=statuses), limit=_BACKFILLS_REMEMBERED
    ):
        at = backfill.backfill_end_timestamp or (
            time.time()
            if backfill.status is BulkActionStatus.CANCELING
            else backfill.backfill_timestamp
        )
        # Also those whose runs were not begun: that is most of a large backfill.
        for partition in _targets_once(backfill, key):
            cancelled[partition] = max(at, cancelled.get(partition, 0.0))
    return cancelled


def partitions_under_way(instance: dg.DagsterInstance, key: dg.AssetKey) -> set[str]:
    """Return partitions of an asset that are running, queued, or that a backfill will still run.

    What a backfill has requested already is running, queued or ended: it requests nothing twice.
    """
    busy = set(partition_runs(instance, key, batches_partitions(key.path[0])).running)
    active = [s for s in BulkActionStatus if s not in BULK_ACTION_TERMINAL_STATUSES]
    for backfill in instance.get_backfills(filters=BulkActionsFilter(statuses=active)):
        busy |= _left_to_request(backfill, key)
    return busy


def _cancelled_runs(instance: dg.DagsterInstance) -> Iterator[_CancelledRun]:
    ids = instance.get_run_ids(dg.RunsFilter(statuses=_CANCELLED), limit=_RUNS_REMEMBERED)
    known = {run_id: _runs.get(run_id) for run_id in ids}
    yield from (run for run in known.values() if run is not None)
    unread = [run_id for run_id, run in known.items() if run is None]
    given_up = _given_up(instance) if unread else ()
    for start in range(0, len(unread), _AT_ONCE):
        for record in instance.get_run_records(
            dg.RunsFilter(run_ids=unread[start : start + _AT_ONCE])
        ):
            run = _cancelled_run(record, given_up)
            if record.end_time is not None:
                _runs.put(record.dagster_run.run_id, run)
            yield run


def _cancelled_run(record: dg.RunRecord, given_up: Collection[str]) -> _CancelledRun:
    run = record.dagster_run
    single, ends = _named(run)
    assets = frozenset(run.asset_selection or ())
    if run.tags.get(BACKFILL_ID_TAG) in given_up:
        assets = frozenset()
    return _CancelledRun(assets, single, ends, record.end_time or time.time())


def _given_up(instance: dg.DagsterInstance) -> set[str]:
    """Return the ids of backfills that the daemon failed and whose runs it cancelled.

    This happens when the code location does not load, for example. No user asked for it.
    """
    filters = BulkActionsFilter(statuses=[BulkActionStatus.FAILING, BulkActionStatus.FAILED])
    backfills = instance.get_backfills(filters=filters, limit=_BACKFILLS_REMEMBERED)
    return {backfill.backfill_id for backfill in backfills}


def _named(run: dg.DagsterRun) -> tuple[str | None, tuple[str, str] | None]:
    tags = run.tags
    first, last = (
        tags.get(ASSET_PARTITION_RANGE_START_TAG),
        tags.get(ASSET_PARTITION_RANGE_END_TAG),
    )
    ends = None if first is None or last is None else (first, last)
    return tags.get(PARTITION_NAME_TAG), ends


def _between(instance: dg.DagsterInstance, dataset: str, first: str, last: str) -> list[str]:
    keys = list(instance.get_dynamic_partitions(dataset))
    if first not in keys or last not in keys:
        return []
    return keys[keys.index(first) : keys.index(last) + 1]


def _targets_once(backfill: PartitionBackfill, key: dg.AssetKey) -> frozenset[str]:
    """Return `_targets` of a backfill whose targets no longer change."""
    known = _backfills.get((backfill.backfill_id, key))
    if known is None:
        known = frozenset(_targets(backfill, key))
        _backfills.put((backfill.backfill_id, key), known)
    return known


def _targets(backfill: PartitionBackfill, key: dg.AssetKey) -> set[str]:
    data = backfill.asset_backfill_data
    return set() if data is None else _partitions(data.target_subset, key)


def _left_to_request(backfill: PartitionBackfill, key: dg.AssetKey) -> set[str]:
    data = backfill.asset_backfill_data
    if data is None:
        return set()
    done = (data.requested_subset, data.failed_and_downstream_subset)
    return _targets(backfill, key).difference(*(_partitions(subset, key) for subset in done))


def _partitions(subset: AssetGraphSubset, key: dg.AssetKey) -> set[str]:
    if key not in subset.asset_keys:
        return set()
    return set(subset.get_partitions_subset(key).get_partition_keys())
