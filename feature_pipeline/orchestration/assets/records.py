"""The records asset of a dataset: its submitted batches."""

import dagster as dg

from feature_pipeline.archive import blobs
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.log import BatchEntry
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.text.json_values import json_instant
from feature_pipeline.orchestration.events.data_versions import event_tags
from feature_pipeline.orchestration.keys import batches_partitions, records_key
from feature_pipeline.orchestration.resources import ArchiveResource

RECORDS_CODE_VERSION = "1"


def records_asset(dataset: str) -> dg.AssetsDefinition:
    """Return the asset `<dataset>/records`; materializing a partition verifies its batch again.

    Batches are materialized by the inbox sensor when they are accepted; a run of this asset reads
    every file of the batch and compares it with its digest.
    """

    @dg.asset(
        key=records_key(dataset),
        partitions_def=batches_partitions(dataset),
        code_version=RECORDS_CODE_VERSION,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1),
        group_name=dataset,
        kinds={"s3"},
        description=(
            f"Batches of dataset `{dataset}`, as submitted by deposition, harvest, fork or"
            " import. Materializing a partition verifies its stored bytes again."
        ),
    )
    def verify_records(
        context: dg.AssetExecutionContext, archive: ArchiveResource
    ) -> dg.MaterializeResult[None]:
        store = archive.store()
        batch = log.read_batch(store, dataset, context.partition_key)
        total = 0
        for record in batch.records:
            for file in record.files:
                try:
                    total += blobs.verify_blob(store, file.blob, file.size)
                except CorruptDataError as error:
                    raise CorruptDataError(
                        f"record {record.id!r} of batch {batch.key!r}: file {file.name!r}: {error}"
                    ) from error
        return dg.MaterializeResult(
            data_version=dg.DataVersion(str(batch.digest)),
            metadata=batch_metadata(batch) | {"verified_bytes": dg.MetadataValue.int(total)},
        )

    return verify_records


def records_event(entry: BatchEntry, batch: RecordBatch) -> dg.AssetMaterialization:
    """Return the materialization of an accepted batch, for use outside any run."""
    return dg.AssetMaterialization(
        asset_key=records_key(batch.dataset),
        partition=batch.key,
        metadata=batch_metadata(batch) | {"submitted_at": json_instant(entry.submitted_at)},
        tags=event_tags(str(batch.digest), RECORDS_CODE_VERSION, {}),
    )


def batch_metadata(batch: RecordBatch) -> dict[str, dg.MetadataValue]:
    """Return the counts of a batch."""
    files = [file for record in batch.records for file in record.files]
    return {
        "records": dg.MetadataValue.int(len(batch.records)),
        "files": dg.MetadataValue.int(len(files)),
        "bytes": dg.MetadataValue.int(sum(file.size for file in files)),
        "source": dg.MetadataValue.text(batch.document.source.value),
        "digest": dg.MetadataValue.text(str(batch.digest)),
    }
