"""What an artifact must be to be accepted, asked of the bytes that are stored.

What belongs here: checks of one artifact or batch against what it names. Not here: which entry of
a log it becomes (`accept`), checks of the whole archive (`verify`).
"""

from collections.abc import Collection, Sequence

import pyarrow as pa

from feature_pipeline.archive import blobs, read
from feature_pipeline.archive.format.encode import Content
from feature_pipeline.archive.format.manifest import OUTCOMES, ROWS, BlobRef, Manifest
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import FeaturePipelineError, InvalidInputError, NotFoundError
from feature_pipeline.model.columns import check_columns
from feature_pipeline.model.outcomes import Outcome
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.parallel import WORKERS


def check_artifact(
    store: BlobStore,
    manifest: Manifest,
    batch: RecordBatch,
    withdrawn: Collection[str],
    workers: int = WORKERS,
) -> list[Outcome]:
    """Return the outcomes if the artifact's blobs are stored and say what the manifest says.

    One outcome per record of the batch and no others; rows only of records that passed, their
    ordinals from 0; the declared columns, required ones never null, at most one row where the
    cardinality is one; counts and digests computed again equal the manifest's; no record
    withdrawn. Of a failed run, which has no outcomes, the presence of its blobs is asked, and that
    no record is withdrawn.

    Raises:
        NotFoundError: A blob is missing.
        CorruptDataError: A blob is not what its name says, or the two tables do not agree.
        InvalidInputError: The contract is broken.
    """
    what = f"artifact of run {manifest.run.id}"
    # Rows and outcomes are read, which says more than asking whether they are there.
    others = [ref for name, ref in manifest.blobs.items() if name not in {ROWS, OUTCOMES}]
    check_present(store, others, what, workers)
    # Of a failed run too: what it left names the records that it was given.
    given = [record.id for record in batch.records]
    check_not_withdrawn(manifest.dataset, given, withdrawn)
    if manifest.is_failed:
        return []
    check_columns(manifest.columns)
    outcomes, content = _decoded(store, manifest, what, len(given))
    ids = [outcome.record_id for outcome in outcomes]
    if set(ids) != {record.id for record in batch.records}:
        odd = set(ids) ^ {record.id for record in batch.records}
        raise InvalidInputError(
            f"{what}: outcomes are not those of the batch's records: {sorted(odd)[:5]}"
        )
    _check_values(manifest, outcomes, what)
    said = (manifest.content_digest, manifest.rows_digest, manifest.counts)
    if said != (content.content_digest, content.rows_digest, content.counts):
        raise InvalidInputError(
            f"{what}: its tables say {content.content_digest} ({content.counts}), its manifest"
            f" {manifest.content_digest} ({manifest.counts})"
        )
    return outcomes


def _decoded(
    store: BlobStore, manifest: Manifest, what: str, records: int
) -> tuple[list[Outcome], Content]:
    """What the artifact's tables say, and the digests of it.

    Raises:
        NotFoundError, CorruptDataError: A blob is missing or damaged: it may come.
        InvalidInputError: The bytes are those that the manifest names, and no tables of this
            artifact: they will not change, so nothing is waited for. They hold too much, or what no
            value of their columns can be: text that is no UUID, a date beyond the calendar.
    """
    rows, said = (read.read_named(store, manifest, name) for name in (ROWS, OUTCOMES))
    try:
        outcomes = read.decode_bounded(manifest, rows, said, records)
        return outcomes, Content.of(manifest.columns, outcomes)
    except InvalidInputError:
        raise
    except (FeaturePipelineError, ValueError, TypeError, OverflowError, pa.ArrowException) as error:
        # A writer of blobs may have written any Parquet; one must not stop the others.
        raise InvalidInputError(f"{what}: its tables cannot be decoded: {error}") from error


def _check_values(manifest: Manifest, outcomes: Sequence[Outcome], what: str) -> None:
    required = [i for i, column in enumerate(manifest.columns) if column.required]
    for outcome in outcomes:
        if manifest.cardinality == "one" and len(outcome.rows) > 1:
            raise InvalidInputError(
                f"{what}: record {outcome.record_id!r} has {len(outcome.rows)} rows, and the"
                " cardinality is one"
            )
        for row in outcome.rows:
            if any(row[i] is None for i in required):
                raise InvalidInputError(
                    f"{what}: record {outcome.record_id!r}: a required column is null"
                )


def check_present(
    store: BlobStore, refs: Collection[BlobRef], what: str, workers: int = WORKERS
) -> None:
    """Return if every blob is stored with the size and checksum that its name says.

    Raises:
        NotFoundError: One is not.
    """
    if missing := blobs.find_missing(store, refs, workers):
        raise NotFoundError(
            f"{what}: blob {missing[0].digest} of {missing[0].size} bytes is missing or damaged"
            + (f", and so are {len(missing) - 1} others" if len(missing) > 1 else "")
        )


def check_not_withdrawn(
    dataset: str, record_ids: Collection[str], withdrawn: Collection[str]
) -> None:
    """Return if none of the records is withdrawn.

    Raises:
        InvalidInputError: One is.
    """
    if broken := set(withdrawn).intersection(record_ids):
        raise InvalidInputError(
            f"record {min(broken)!r} of dataset {dataset!r} is withdrawn"
            + (f", and so are {len(broken) - 1} others" if len(broken) > 1 else "")
            + "; lift the withdrawal first"
        )
