"""Report materializations outside any run, as Dagster events with full provenance."""

from collections.abc import Collection, Mapping

import dagster as dg

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, FeaturePipelineError, NotFoundError
from feature_pipeline.orchestration.events.data_versions import (
    InputVersion,
    event_tags,
    feature_code_version,
    read_version,
)
from feature_pipeline.orchestration.events.latest_events import PartitionEvent, latest_events
from feature_pipeline.orchestration.events.metadata import artifact_metadata
from feature_pipeline.orchestration.keys import features_key, records_key
from feature_pipeline.parallel import map_threads

COMPLETION_TAG = "feature_pipeline/completion"
"""The hook run that an event reports; runs of the asset itself are known by their run id."""


EVENTS_AT_ONCE = 500
"""Number of events built before they are stored: a hundred thousand at once would fill the
memory.
"""
_REPORTERS = 4
"""Dagster's storage answers each event after some milliseconds, most of them of waiting."""


def report_events(
    instance: dg.DagsterInstance, events: Collection[dg.AssetMaterialization]
) -> None:
    """Store these events in Dagster concurrently; no two for the same partition.

    Dagster takes the event that was stored last for the asset's latest one, and a run that reads
    any partition of the asset records its number. If it had a lower number than the partition's own
    event, what the run makes would show as stale. So each asset's last event is stored by itself.
    """
    last = {event.asset_key: event for event in events}
    others = [event for event in events if event is not last[event.asset_key]]
    map_threads(instance.report_runless_asset_event, others, _REPORTERS)
    map_threads(instance.report_runless_asset_event, last.values(), _REPORTERS)


def features_events(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    dataset: str,
    hook: str,
    heads: Mapping[str, FeatureEntry],
    damaged: dict[str, str],
) -> dict[str, dg.AssetMaterialization]:
    """Return the materializations of current artifacts of a hook, by batch.

    A batch of whose records Dagster has no event yet is left out: without a pointer to one its
    partition would show as stale. Manifests are read in parallel, Dagster is queried once per
    input.

    Args:
        store: The archive.
        archive_uri: Its address, for display.
        instance: The Dagster instance.
        dataset: The hook's dataset.
        hook: The hook.
        heads: The log entries to report, by batch.
        damaged: Receives the damaged and incomplete batches, with the reason, so that they do not
            prevent the others from being reported.
    """
    manifests: dict[str, Manifest] = {}
    for batch, manifest_or_error in zip(
        heads, map_threads(lambda head: _manifest(store, head), heads.values()), strict=True
    ):
        if isinstance(manifest_or_error, Manifest):
            manifests[batch] = manifest_or_error
        else:
            damaged[batch] = str(manifest_or_error)
    if not manifests:
        return {}
    records = latest_events(instance, records_key(dataset), heads)
    sources = {name for manifest in manifests.values() for name in manifest.inputs}
    known = {name: latest_events(instance, features_key(dataset, name), heads) for name in sources}
    try:
        registered = log.releases(store, dataset, hook)
    except (CorruptDataError, NewerVersionError) as error:
        damaged.update(dict.fromkeys(manifests, f"the hook's log of releases: {error}"))
        return {}
    releases = {entry.release.digest: entry for entry in registered}
    events = {}
    for batch, manifest in manifests.items():
        head, record_event = heads[batch], records.get(batch)
        if record_event is None or record_event.data_version is None:
            continue
        release = releases.get(manifest.release.digest)
        if release is None:
            damaged[batch] = (
                f"the log of releases, {layout.release_log(dataset, hook).rstrip('/')}, has no"
                f" {manifest.release.digest}, which made its artifact"
            )
            continue
        code_version = feature_code_version(release.release, manifest.columns, manifest.cardinality)
        inputs: dict[dg.AssetKey, InputVersion | None] = {
            records_key(dataset): InputVersion(record_event.data_version, record_event.storage_id)
        }
        for name, content_digest in manifest.inputs.items():
            source = features_key(dataset, name)
            inputs[source] = read_version(
                instance, source, batch, str(content_digest), known[name].get(batch)
            )
        tags = event_tags(str(manifest.content_digest), code_version, inputs)
        events[batch] = dg.AssetMaterialization(
            asset_key=features_key(dataset, hook),
            partition=batch,
            metadata=artifact_metadata(
                archive_uri, head.manifest, manifest, f"{archive_uri}/{layout.blob(head.manifest)}"
            ),
            tags=tags | {COMPLETION_TAG: head.completion},
        )
    return events


def _manifest(store: BlobStore, head: FeatureEntry) -> Manifest | FeaturePipelineError:
    try:
        return read.manifest_of(store, head)
    except (NotFoundError, CorruptDataError, NewerVersionError) as error:
        return error


def reports(event: PartitionEvent | None, head: FeatureEntry) -> bool:
    """Return whether Dagster's latest event of a partition is the one of this log entry."""
    return event is not None and (
        event.tags.get(COMPLETION_TAG) == head.completion
        or (head.dagster_run_id is not None and event.run_id == head.dagster_run_id)
    )
