"""Compute Dagster's status of many partitions at once: stale, failed, running.

Dagster's resolver queries its storage several times per partition, about 20 ms, which for a hundred
thousand is half an hour. The rule here is its own, over events read 500 at a time, about 0.2 ms a
partition. A test compares the two.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import dagster as dg

from feature_pipeline.orchestration.dagster_internals import (
    NULL_EVENT_POINTER,
    get_and_update_asset_status_cache_value,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from feature_pipeline.orchestration.events.data_versions import has_read
from feature_pipeline.orchestration.events.latest_events import PartitionEvent, latest_events


def stale_partitions(
    instance: dg.DagsterInstance,
    key: dg.AssetKey,
    code_version: str,
    inputs: Sequence[dg.AssetKey],
    partitions: Iterable[str],
) -> set[str]:
    """Return the partitions that Dagster shows as stale; a missing one is not stale.

    Args:
        instance: The Dagster instance.
        key: An asset whose partitions have the keys of its inputs' partitions.
        code_version: The asset's current one.
        inputs: The asset's current inputs.
        partitions: The partitions to check.
    """
    wanted = list(partitions)
    events = latest_events(instance, key, wanted)
    known = {source: latest_events(instance, source, events) for source in inputs}
    return {
        batch
        for batch, event in events.items()
        if event.code_version != code_version
        or any(_is_changed(event, source, known[source].get(batch)) for source in inputs)
        or _has_other_inputs(event, inputs)
    }


def _is_changed(event: PartitionEvent, source: dg.AssetKey, now: PartitionEvent | None) -> bool:
    """Return whether the input's data version differs from the one that `event` was made from."""
    read = event.tags.get(get_input_data_version_tag(source))
    pointer = event.tags.get(get_input_event_pointer_tag(source), NULL_EVENT_POINTER)
    if read is None:
        return True  # it was not an input then
    # Without a pointer Dagster compares the latest event with itself.
    if now is None or pointer == NULL_EVENT_POINTER or now.storage_id <= int(pointer):
        return False
    if now.data_version is None:
        return True
    return not has_read(event, source, now.data_version)


def _has_other_inputs(event: PartitionEvent, inputs: Collection[dg.AssetKey]) -> bool:
    prefix = get_input_data_version_tag(dg.AssetKey("-")).removesuffix("-")
    known = {get_input_data_version_tag(source) for source in inputs}
    return any(tag.startswith(prefix) and tag not in known for tag in event.tags)


@dataclass(frozen=True, slots=True)
class PartitionRuns:
    """The status of the last runs of partitions."""

    failed: frozenset[str] = frozenset()
    running: frozenset[str] = frozenset()
    """Queued or started."""


def partition_runs(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: dg.PartitionsDefinition[str]
) -> PartitionRuns:
    """Return the partitions of an asset that Dagster shows as failed, and as in progress."""
    status = get_and_update_asset_status_cache_value(instance, key, partitions, instance)
    if status is None:  # nothing was ever asked of the asset
        return PartitionRuns()
    return PartitionRuns(
        frozenset(status.deserialize_failed_partition_subsets(partitions).get_partition_keys()),
        frozenset(
            status.deserialize_in_progress_partition_subsets(partitions).get_partition_keys()
        ),
    )
