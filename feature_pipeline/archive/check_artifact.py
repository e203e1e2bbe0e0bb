"""Check the stored bytes of an artifact before it is accepted."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from feature_pipeline.archive import blobs, read
from feature_pipeline.archive.format.manifest import OUTCOMES, ROWS, BlobRef, Manifest
from feature_pipeline.archive.logs.log import BatchEntry
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import FeaturePipelineError, InvalidInputError, NotFoundError
from feature_pipeline.model.columns import check_columns
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.text.counted import counted
from feature_pipeline.model.text.quoting import quoted_list
from feature_pipeline.parallel import WORKERS

if TYPE_CHECKING:
    from feature_pipeline.archive.format.content_digests import Content
    from feature_pipeline.archive.format.outcome_columns import OutcomeColumns


def check_artifact(
    store: BlobStore,
    manifest: Manifest,
    batch: RecordBatch,
    withdrawn: Collection[str],
    workers: int = WORKERS,
) -> "OutcomeColumns | None":
    """Check that the artifact's blobs are stored and match the manifest.

    There must be one outcome per record of the batch and no others; rows only of records that
    passed, with ordinals from 0; the declared columns, with required ones never null and at most
    one row where the cardinality is one; counts and digests equal to the manifest's when computed
    again; and no withdrawn record. A failed run has no outcomes: only its blobs must be present,
    and no record may be withdrawn.

    Returns:
        The outcomes; None if the run failed.

    Raises:
        NotFoundError: A blob is missing.
        CorruptDataError: A blob does not match its name, or the two tables do not agree.
        InvalidInputError: The contract is broken.
    """
    subject = f"artifact of run {manifest.run.id}"
    # Rows and outcomes are read, which says more than asking whether they are there.
    others = [ref for name, ref in manifest.blobs.items() if name not in {ROWS, OUTCOMES}]
    check_present(store, others, subject, workers)
    # Of a failed run too: what it left names the records that it was given.
    given_ids = [record.id for record in batch.records]
    check_not_withdrawn(manifest.dataset, given_ids, withdrawn)
    if manifest.is_failed:
        return None
    check_columns(manifest.columns)
    outcomes, content = _decoded(store, manifest, subject, len(given_ids))
    if odd := set(outcomes.record_ids) ^ set(given_ids):
        raise InvalidInputError(
            f"{subject}: its outcomes do not match the batch's records:"
            f" {quoted_list(sorted(odd), 5)}"
        )
    _check_values(manifest, outcomes, subject)
    stated = (manifest.content_digest, manifest.rows_digest, manifest.counts)
    if stated != (content.content_digest, content.rows_digest, content.counts):
        raise InvalidInputError(
            f"{subject}: its tables give {content.content_digest} ({content.counts}), but its"
            f" manifest has {manifest.content_digest} ({manifest.counts})"
        )
    return outcomes


def _decoded(
    store: BlobStore, manifest: Manifest, subject: str, records: int
) -> "tuple[OutcomeColumns, Content]":
    """Decode the artifact's tables and compute their digests.

    Raises:
        NotFoundError, CorruptDataError: A blob is missing or damaged: it may still arrive.
        InvalidInputError: The bytes match the manifest but are not valid tables of this artifact:
            they are too large, or contain impossible values (text that is not a UUID, a date beyond
            the calendar). They will not change, so acceptance does not wait.
    """
    import pyarrow as pa

    from feature_pipeline.archive.format.content_digests import Content

    rows, outcome_bytes = (read.read_named(store, manifest, name) for name in (ROWS, OUTCOMES))
    try:
        outcomes = read.decode_bounded(manifest, rows, outcome_bytes, records)
        return outcomes, Content.of(manifest.columns, outcomes)
    except InvalidInputError:
        raise
    except (FeaturePipelineError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        # A writer of blobs may have written any Parquet; one must not stop the others.
        raise InvalidInputError(f"{subject}: its tables cannot be decoded: {error}") from error


def _check_values(manifest: Manifest, outcomes: "OutcomeColumns", subject: str) -> None:
    required = [i for i, column in enumerate(manifest.columns) if column.required]
    counts: list[Any] = outcomes.outcomes.column("row_count").to_pylist()
    has_many = manifest.cardinality == "one" and max(counts, default=0) > 1
    if not has_many and not any(outcomes.rows.column(2 + i).null_count for i in required):
        return
    for outcome in outcomes:
        if manifest.cardinality == "one" and len(outcome.rows) > 1:
            raise InvalidInputError(
                f"{subject}: record {outcome.record_id!r} has {len(outcome.rows)} rows, and the"
                " cardinality is one"
            )
        for row in outcome.rows:
            if nulls := [manifest.columns[i].name for i in required if row[i] is None]:
                raise InvalidInputError(
                    f"{subject}: record {outcome.record_id!r}: required column {nulls[0]!r} is null"
                )


def check_present(
    store: BlobStore, refs: Collection[BlobRef], subject: str, workers: int = WORKERS
) -> None:
    """Check that every blob is stored with the size and checksum that its name states.

    Raises:
        NotFoundError: A blob is not.
    """
    if missing := blobs.find_missing(store, refs, workers):
        raise NotFoundError(
            f"{subject}: blob {missing[0].digest} of {missing[0].size} bytes is missing or damaged"
            + (f", as well as {counted(len(missing) - 1, 'other')}" if len(missing) > 1 else "")
        )


def check_not_withdrawn(
    dataset: str, record_ids: Collection[str], withdrawn: Collection[str]
) -> None:
    """Check that none of the records is withdrawn.

    Raises:
        InvalidInputError: A record is.
    """
    if broken := set(withdrawn).intersection(record_ids):
        raise InvalidInputError(
            f"record {min(broken)!r} of dataset {dataset!r} is withdrawn"
            + (f", as well as {counted(len(broken) - 1, 'other')}" if len(broken) > 1 else "")
            + "; lift the withdrawal first"
        )


def check_batch_digest(entries: Sequence[BatchEntry], made_of: Digest, subject: str) -> None:
    """Check that the batch which an artifact was made of is the current one.

    Args:
        entries: The batch's log; not empty.
        made_of: Digest of the batch document that the artifact names.
        subject: The artifact, for the message.

    Raises:
        InvalidInputError: Records were erased from the batch since, or it is another batch.
    """
    last = entries[-1]
    if made_of == last.digest:
        return
    if made_of in [entry.digest for entry in entries]:
        raise InvalidInputError(
            f"{subject}: records were erased from batch {last.batch!r} of dataset {last.dataset!r}"
            f" after it was planned; while they are withdrawn, `feature-pipeline erase --dataset"
            f" {last.dataset}` removes them from this output too"
        )
    raise InvalidInputError(
        f"{subject}: it was made from batch document {made_of}, but batch {last.batch!r} of"
        f" dataset {last.dataset!r} is now {last.digest}"
    )
