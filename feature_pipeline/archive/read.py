"""Read a manifest and its verified rows and outcomes, by the manifest's digest.

Everything is checked on the way: size first, then digest, then that the tables have the declared
columns. The log decides which manifest is current (`log.head`).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.manifest import LOG, OUTCOMES, RAW, ROWS, BlobRef, Manifest
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import GrantedLimits, Outcome, Status, outcome_kind

if TYPE_CHECKING:
    import pyarrow as pa

    from feature_pipeline.archive.format.outcome_columns import OutcomeColumns


def read_manifest(store: BlobStore, digest: Digest) -> Manifest:
    """Return the manifest with this digest.

    Raises:
        NotFoundError: There is no such blob.
        CorruptDataError: It has other bytes.
        InvalidInputError: It is not a manifest, or its version is newer than this code supports.
    """
    return Manifest.decode(blobs.read_blob(store, digest), str(digest))


def manifest_of(store: BlobStore, entry: FeatureEntry) -> Manifest:
    """Return the manifest that the log entry names.

    Every reader that starts from the log uses this function, so that an entry and a manifest that
    do not belong together count as damage.

    Raises:
        NotFoundError: There is no such blob.
        CorruptDataError: It has other bytes, or is not the manifest of this entry.
        InvalidInputError: It is not a manifest, or its version is newer than this code supports.
    """
    manifest = read_manifest(store, entry.manifest)
    if problem := disagreement(entry, manifest):
        key = layout.entry(entry.log_prefix, entry.seq)
        raise CorruptDataError(f"log entry {key} in {store.identity}: {problem}")
    return manifest


def disagreement(entry: FeatureEntry, manifest: Manifest) -> str | None:
    """Return how the entry and the manifest that it names differ; None if they match."""
    has_failed = entry.verdict is Verdict.FAILED
    compared = {
        "dataset": (entry.dataset, manifest.dataset),
        "hook": (entry.hook, manifest.hook),
        "batch": (entry.batch, manifest.batch),
        "release": (entry.release, manifest.release.digest),
        "release_seq": (entry.release_seq, manifest.release.seq),
        "content_digest": (entry.content_digest, manifest.content_digest),
        "failed": (has_failed, manifest.is_failed),
    }
    for field, (ours, theirs) in compared.items():
        if ours != theirs:
            return f"its {field} is {ours}, that of its manifest {entry.manifest} is {theirs}"
    return None


def read_rows(store: BlobStore, manifest: Manifest) -> "pa.Table":
    """Return the artifact's record_id, ordinal and own declared columns; no rows if it failed.

    Raises:
        NotFoundError, CorruptDataError: The blob is missing, or does not match the manifest.
    """
    from feature_pipeline.archive.format.encode import check_rows_schema, rows_schema

    if manifest.is_failed:
        return rows_schema(manifest.columns).empty_table()
    table = _read_table(store, manifest, ROWS)
    check_rows_schema(table, manifest.columns, f"{_name(manifest)}: rows")
    return table


def read_outcomes(store: BlobStore, manifest: Manifest) -> "pa.Table":
    """Return the artifact's outcomes as `OUTCOMES_SCHEMA`, one per record; none if it failed."""
    from feature_pipeline.archive.format.encode import OUTCOMES_SCHEMA

    if manifest.is_failed:
        return OUTCOMES_SCHEMA.empty_table()
    return _read_table(store, manifest, OUTCOMES)


def read_artifact_outcomes(store: BlobStore, manifest: Manifest) -> list[Outcome]:
    """Read the artifact's outcomes with their rows, in the batch's order; none if it failed.

    Raises:
        NotFoundError, CorruptDataError: A blob is missing, or does not match the manifest; or the
            two tables and the manifest do not agree.
    """
    from feature_pipeline.archive.format.encode import decode_outcomes

    return _with_stated(
        manifest,
        decode_outcomes(
            manifest.columns, read_rows(store, manifest), read_outcomes(store, manifest)
        ),
    )


def decode_bounded(
    manifest: Manifest, rows: bytes, outcomes: bytes, records: int
) -> "OutcomeColumns":
    """Decode an artifact's tables that any writer may have made, as `read_artifact_outcomes` does.

    Args:
        manifest: The artifact's; it did not fail.
        rows: The bytes of its rows.
        outcomes: The bytes of its outcomes.
        records: Number of records in the batch.

    Raises:
        InvalidInputError: A table exceeds the limits, or does not match the manifest.
        CorruptDataError: As for `read_artifact_outcomes`.
    """
    from feature_pipeline.archive.format.encode import (
        OUTCOMES_SCHEMA,
        decode_outcomes,
        outcomes_without_rows,
        read_bounded,
        rows_schema,
    )
    from feature_pipeline.archive.format.outcome_columns import OutcomeColumns

    subject = f"{_name(manifest)}: {OUTCOMES}"
    outcome_table = read_bounded(outcomes, subject, OUTCOMES_SCHEMA, records)
    subject = f"{_name(manifest)}: {ROWS}"
    table = read_bounded(rows, subject, rows_schema(manifest.columns), manifest.counts.rows)
    decoded = OutcomeColumns(manifest.columns, table, outcome_table)
    if not decoded.is_sound():
        decode_outcomes(manifest.columns, table, outcome_table)  # raises what is wrong
    if not (stated := manifest.without_output):
        return decoded
    _check_stated(manifest, decoded.record_ids)
    places = [at for at, record_id in enumerate(decoded.record_ids) if record_id in stated]
    known = outcomes_without_rows(outcome_table.take(places))
    without_output = {each.record_id: _with_limits(manifest, each) for each in known}
    return OutcomeColumns(manifest.columns, table, outcome_table, without_output)


def _with_stated(manifest: Manifest, outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes, with the manifest's values for those without output."""
    if not manifest.without_output:
        return outcomes
    _check_stated(manifest, [outcome.record_id for outcome in outcomes])
    return [_with_limits(manifest, outcome) for outcome in outcomes]


def _check_stated(manifest: Manifest, record_ids: Sequence[str]) -> None:
    """Check that the records without output are among these."""
    if odd := sorted(manifest.without_output.keys() - set(record_ids)):
        raise CorruptDataError(f"{_name(manifest)}: without_output names {odd[:5]}, no records")


def _with_limits(manifest: Manifest, outcome: Outcome) -> Outcome:
    if outcome.record_id not in manifest.without_output:
        return outcome
    stated = outcome_without_output(manifest, outcome.record_id)
    full = replace(stated, action=outcome.action, carried_from=outcome.carried_from)
    if replace(full, is_from_output=True, limits=None) != outcome:
        raise CorruptDataError(
            f"{_name(manifest)}: record {outcome.record_id!r} is {outcome.status}"
            f" ({outcome.kind}: {outcome.reason}) in its outcomes, and {full.kind}: {full.reason}"
            " in without_output"
        )
    return full


def outcome_without_output(manifest: Manifest, record_id: str) -> Outcome:
    """Return the outcome that the manifest has for a record without output.

    Raises:
        KeyError: It has none.
    """
    stated = manifest.without_output[record_id]
    limits = None
    if (
        stated.memory_bytes is not None
        and stated.timeout_seconds is not None
        and stated.scratch_bytes is not None
    ):
        limits = GrantedLimits(stated.memory_bytes, stated.timeout_seconds, stated.scratch_bytes)
    return Outcome(
        record_id,
        Status.REJECTED if stated.kind is None else Status.ERRORED,
        reason=stated.reason,
        kind=None if stated.kind is None else outcome_kind(stated.kind),
        is_retryable=stated.retryable,
        is_from_output=False,
        limits=limits,
    )


def raw_names(manifest: Manifest) -> list[str]:
    """Return the names of the hook's own files in the artifact, sorted."""
    return sorted(name.removeprefix(RAW) for name in manifest.blobs if name.startswith(RAW))


def read_raw(store: BlobStore, manifest: Manifest, name: str) -> bytes:
    """Return one of the hook's own files, byte for byte.

    Raises:
        NotFoundError: The artifact has no file of this name, or its blob is gone.
    """
    return read_named(store, manifest, f"{RAW}{name}")


def read_log_text(store: BlobStore, manifest: Manifest) -> str:
    """Return the hook's log; empty if none is stored."""
    if LOG not in manifest.blobs:
        return ""
    return read_named(store, manifest, LOG).decode(errors="replace")


def read_named(store: BlobStore, manifest: Manifest, name: str) -> bytes:
    """Return the bytes of one of the manifest's blobs, by its name there."""
    ref = blob_ref(manifest, name)
    return blobs.read_blob(store, ref.digest, ref.size)


def blob_ref(manifest: Manifest, name: str) -> BlobRef:
    """Return the digest and size of one of the manifest's blobs, by its name there.

    Raises:
        NotFoundError: The manifest names no such blob.
    """
    try:
        return manifest.blobs[name]
    except KeyError:
        raise NotFoundError(
            f"{_name(manifest)} has no {name!r}; it has {', '.join(sorted(manifest.blobs))}"
        ) from None


def _read_table(store: BlobStore, manifest: Manifest, name: str) -> "pa.Table":
    from feature_pipeline.archive.format.encode import read_parquet

    return read_parquet(read_named(store, manifest, name), f"{_name(manifest)}: {name}")


def _name(manifest: Manifest) -> str:
    return f"artifact {manifest.dataset}/{manifest.hook}/{manifest.batch} of run {manifest.run.id}"
