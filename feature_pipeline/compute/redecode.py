"""Decode the raw output of archived artifacts again, for example after a decoder bug.

Raw output is authoritative; rows and outcomes were derived from it by a decoder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from feature_pipeline.archive import blobs, read
from feature_pipeline.archive.accept import accept
from feature_pipeline.archive.deletion_guard import Guard
from feature_pipeline.archive.format.content_digests import Content
from feature_pipeline.archive.format.encode import encode_outcomes, encode_rows
from feature_pipeline.archive.format.manifest import (
    MANIFEST_MEDIA_TYPE,
    OUTCOMES,
    PARQUET_MEDIA_TYPE,
    ROWS,
    BlobRef,
    Manifest,
)
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict
from feature_pipeline.archive.publish import Completion, CompletionStatus, enqueue_completion
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, NotFoundError
from feature_pipeline.hooks.output import decode_output
from feature_pipeline.model.column_sources import raw_keys
from feature_pipeline.model.columns import Column
from feature_pipeline.model.definition import Cardinality
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome

NOTE: Final = "rows and outcomes were derived from the raw output again"


@dataclass(frozen=True, slots=True)
class DecodedAgain:
    """The result of decoding one batch's raw output again.

    `entry` is the batch's current log entry now. `changed` are the records whose content changed;
    it is empty if only the derived tables had to be replaced.
    """

    batch: str
    entry: FeatureEntry
    is_new: bool
    """Whether a successor was made current by this call."""
    changed: tuple[str, ...] = ()
    damage: str | None = None
    """Objects that were missing or damaged, and were restored."""


def decode_batch_again(store: BlobStore, head: FeatureEntry) -> DecodedAgain:
    """Make the batch's current artifact equal to what today's decoder reads in its raw output.

    If nothing changed and its tables are intact, nothing is written. Damaged tables that come out
    byte for byte are restored in place. Otherwise a successor with the same release, run, columns
    and raw files is published and accepted; readers see the old artifact or the new one.
    Idempotent, and safe beside hook runs: one that was planned from the old artifact and is
    accepted later replaces the successor as it would have replaced the old one.

    Raises:
        NotFoundError: Raw output that the artifact was made of is gone.
        CorruptDataError: Raw output is damaged, or the table of outcomes, which alone records what
            was carried over from where.
        InvalidInputError: Today's decoder cannot read a file that an earlier one could.
        OutcomeUnknownError, StoreUnavailableError: The store did not answer; call it again.
    """
    manifest = read.manifest_of(store, head)
    before: dict[str, Outcome] | None
    damage: str | None = None
    try:
        before = {o.record_id: o for o in read.read_artifact_outcomes(store, manifest)}
    except (NotFoundError, CorruptDataError) as error:
        before, damage = None, str(error)
    after = _decode(store, head, manifest)
    changed = tuple(
        o.record_id for o in after if before and _comparable(before[o.record_id]) != _comparable(o)
    )
    if before is not None and not changed:
        return DecodedAgain(head.batch, head, is_new=False)
    guard = Guard(store)
    successor = _store_successor(store, manifest, after)
    if successor.blobs == manifest.blobs:
        return DecodedAgain(head.batch, head, is_new=False, damage=damage)
    ref = _put_manifest(store, successor)
    completion = _enqueue_successor(store, head, ref.digest)
    if guard.find_lost([*successor.blobs.values(), ref]):
        _put_manifest(store, _store_successor(store, manifest, after))
    entry = accept(store, completion)
    # Not current: a hook run was accepted meanwhile, and was decoded by this decoder.
    is_new = entry.verdict is Verdict.CURRENT
    return DecodedAgain(head.batch, entry, is_new=is_new, changed=changed, damage=damage)


@dataclass(frozen=True, slots=True)
class _RecordSource:
    record_id: str
    action: Digest | None
    source: Digest | None
    """The manifest that computed it, or its successor if it was erased; None if it is this one."""


def _record_sources(store: BlobStore, manifest: Manifest) -> list[_RecordSource]:
    """Return the records and their sources, in the batch's order, without their outcomes."""
    try:
        table = read.read_outcomes(store, manifest)
    except (NotFoundError, CorruptDataError):
        if manifest.counts.carried:
            raise
        batch = log.read_batch_blob(store, manifest.batch_digest)
        return [_RecordSource(record.id, None, None) for record in batch.records]
    now = erased(store, manifest.dataset).manifest_now
    names = ("record_id", "action", "carried_from")
    return [
        _RecordSource(
            record_id, action and Digest.parse(action), source and now(Digest.parse(source))
        )
        for record_id, action, source in zip(*(table[n].to_pylist() for n in names), strict=True)
    ]


def _decode(store: BlobStore, head: FeatureEntry, manifest: Manifest) -> list[Outcome]:
    records = _record_sources(store, manifest)
    # no output is about these: what the manifest states of them is all there is
    decoded = {i: read.outcome_without_output(manifest, i) for i in manifest.without_output}
    with_output = [one for one in records if one.record_id not in decoded]
    for source in {one.source for one in with_output}:
        ids = [one.record_id for one in with_output if one.source == source]
        origin = manifest if source is None else read.read_manifest(store, source)
        cardinality = Cardinality(manifest.cardinality)
        for outcome in decode_raw(store, origin, ids, manifest.columns, cardinality):
            decoded[outcome.record_id] = outcome
    return [
        replace(decoded[one.record_id], action=one.action, carried_from=one.source)
        for one in records
    ]


def decode_raw(
    store: BlobStore,
    manifest: Manifest,
    record_ids: Sequence[str],
    columns: Sequence[Column],
    cardinality: Cardinality,
) -> tuple[Outcome, ...]:
    """Decode an archived artifact's raw output for these records under these columns.

    Raises:
        NotFoundError, CorruptDataError: A raw file is missing or damaged.
        UnclearColumnError: The artifact's own columns do not determine which of these a column is.
        InvalidInputError: A raw file is truncated or does not parse.
    """
    raw = {name: read.read_raw(store, manifest, name) for name in read.raw_names(manifest)}
    # What the keys mean was declared when the hook ran.
    keys = raw_keys(manifest.columns, columns)
    return decode_output(raw, record_ids, columns, cardinality, {}, keys).outcomes


def _comparable(outcome: Outcome) -> object:
    # NaN differs from itself: texts of values are compared.
    return (outcome.status, outcome.reason, outcome.kind, outcome.is_retryable, repr(outcome.rows))


def _store_successor(store: BlobStore, manifest: Manifest, outcomes: list[Outcome]) -> Manifest:
    content = Content.of(manifest.columns, outcomes)
    tables = {ROWS: encode_rows(manifest.columns, outcomes), OUTCOMES: encode_outcomes(outcomes)}
    refs = {n: blobs.put_blob(store, data, PARQUET_MEDIA_TYPE) for n, data in tables.items()}
    return manifest.model_copy(
        update={
            "blobs": dict(sorted({**manifest.blobs, **refs}.items())),
            "counts": content.counts,
            "content_digest": content.content_digest,
            "rows_digest": content.rows_digest,
            "notes": (*(n for n in manifest.notes if n != NOTE), NOTE),
        }
    )


def _put_manifest(store: BlobStore, successor: Manifest) -> BlobRef:
    return blobs.put_blob(store, successor.encode(), MANIFEST_MEDIA_TYPE)


def _enqueue_successor(store: BlobStore, head: FeatureEntry, successor: Digest) -> Completion:
    """Enqueue the completion of the successor's manifest, and return it.

    Its base is the old artifact's: it decodes the same run again, and is not newer.
    """
    completion = Completion(
        id=f"decoded-again-{head.manifest.hex[:24]}",
        dataset=head.dataset,
        hook=head.hook,
        batch=head.batch,
        release_seq=head.release_seq,
        release_digest=head.release,
        base=head.base,
        manifest=successor,
        status=CompletionStatus.SUCCEEDED,
        # As old as the artifact that it replaces: an answer published since replaces both.
        published_at=head.published_or_accepted_at,
    )
    return enqueue_completion(store, completion)
