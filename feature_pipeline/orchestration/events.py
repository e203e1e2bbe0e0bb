"""Materializations that happened outside any run, as Dagster events with full provenance.

Belongs here: the event that stands for an artifact in the archive. Not here: when to emit it
(`inbox_sensor`, `reconcile`).
"""

import dagster as dg

from feature_pipeline.archive import layout, log, read
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.log import FeatureEntry
from feature_pipeline.orchestration.features import feature_code_version
from feature_pipeline.orchestration.keys import features_key, records_key
from feature_pipeline.orchestration.metadata import artifact_metadata
from feature_pipeline.orchestration.provenance import InputVersion, event_tags, latest_events

COMPLETION_TAG = "feature_pipeline/completion"
"""Which hook run an event reports; runs of the asset itself are known by their run id."""


def features_event(
    store: BlobStore,
    archive_uri: str,
    instance: dg.DagsterInstance,
    dataset: str,
    hook: str,
    batch: str,
    head: FeatureEntry,
) -> dg.AssetMaterialization | None:
    """The materialization that stands for a batch's current artifact.

    None while Dagster has no event of the batch's records: without a pointer to one the partition
    would show as stale.
    """
    manifest = read.read_manifest(store, head.manifest)
    records = latest_events(instance, records_key(dataset), [batch]).get(batch)
    if records is None or records.data_version is None:
        return None
    inputs: dict[dg.AssetKey, InputVersion | None] = {
        records_key(dataset): InputVersion(records.data_version, records.storage_id)
    }
    for source, content_digest in manifest.inputs.items():
        key = features_key(dataset, source)
        known = latest_events(instance, key, [batch]).get(batch)
        inputs[key] = InputVersion(str(content_digest), known.storage_id if known else None)
    release = log.release(store, dataset, hook, head.release)
    tags = event_tags(
        str(manifest.content_digest),
        feature_code_version(release.release, manifest.columns),
        inputs,
    )
    uri = f"{archive_uri}/{layout.blob(head.manifest)}"
    return dg.AssetMaterialization(
        asset_key=features_key(dataset, hook),
        partition=batch,
        metadata=artifact_metadata(archive_uri, head.manifest, manifest, uri),
        tags=tags | {COMPLETION_TAG: head.completion},
    )
