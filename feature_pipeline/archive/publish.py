"""Publish an artifact or a batch: store it and leave an inbox entry. Needs no orchestrator.

Crash safety rests on the order: blobs, the manifest or batch document among them, then the inbox
entry, which alone makes them part of the archive. If a process dies in between, blobs may be left
that no entry leads to, but never an entry without its blobs. A repeated call writes what is
missing.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from feature_pipeline.archive import blobs
from feature_pipeline.archive.blobs import BlobWrite
from feature_pipeline.archive.budget import check_budget
from feature_pipeline.archive.check_artifact import check_batch_digest, check_not_withdrawn
from feature_pipeline.archive.deletion_guard import Guard
from feature_pipeline.archive.format.documents import Document, utc_now
from feature_pipeline.archive.format.manifest import (
    LOG,
    MANIFEST_MEDIA_TYPE,
    OUTCOMES,
    PARQUET_MEDIA_TYPE,
    RAW,
    ROWS,
    BlobRef,
    FailureInfo,
    Manifest,
    ReleaseRef,
    RunInfo,
    StartInfo,
    WithoutOutput,
)
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.inbox import Completion as Completion
from feature_pipeline.archive.logs.inbox import CompletionStatus as CompletionStatus
from feature_pipeline.archive.logs.inbox import Submission as Submission
from feature_pipeline.archive.logs.inbox import enqueue
from feature_pipeline.archive.logs.log import ReleaseEntry
from feature_pipeline.archive.logs.tombstones import (
    TombstoneAction,
    TombstoneEntry,
    tombstones,
    withdrawn,
    withdrawn_by,
)
from feature_pipeline.archive.store.base import (
    BYTES_MEDIA_TYPE,
    JSON_MEDIA_TYPE,
    BlobStore,
    open_unchanged,
)
from feature_pipeline.errors import ConflictError, CorruptDataError, InvalidInputError
from feature_pipeline.model.columns import Column
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.outcomes import Outcome, OutcomeCounts, Status
from feature_pipeline.model.records import RecordBatch, check_file_name
from feature_pipeline.model.text.counted import counted
from feature_pipeline.parallel import Start, calls_in_threads, map_threads, results

if TYPE_CHECKING:
    from feature_pipeline.archive.format.content_digests import Content
    from feature_pipeline.archive.format.outcome_columns import OutcomeColumns

_IN_MEMORY_BYTES: Final = 8 << 20
"""Files up to this size are read once, larger ones twice (digest first) in bounded memory."""

_MEDIA_TYPES: Final = {".jsonl": "application/jsonl", ".json": JSON_MEDIA_TYPE}


@dataclass(frozen=True, slots=True)
class Artifact:
    """The result of one hook run over one batch, not yet stored.

    `outcomes` has one outcome per record in the batch's order, or none if the run failed.
    """

    batch: RecordBatch
    release: ReleaseEntry
    columns: tuple[Column, ...]
    cardinality: str
    run: RunInfo
    outcomes: Sequence[Outcome]
    """Of `OutcomeColumns` no object is made for a record."""
    raw: Mapping[str, Path]
    """The hook's files by name, byte for byte."""
    log: Path | None
    failure: FailureInfo | None = None
    notes: tuple[str, ...] = ()
    inputs: Mapping[str, Digest] = field(default_factory=dict)
    """Per input hook, the content digest that was read."""
    starts: tuple[StartInfo, ...] = ()
    """Every start of the hook, in order."""
    decoded_from: Mapping[str, Digest] = field(default_factory=dict)
    """By name, the digest of each raw file from which the outcomes were decoded."""

    @property
    def dataset(self) -> str:
        """The batch's dataset."""
        return self.batch.dataset

    @property
    def hook(self) -> str:
        """The release's hook."""
        return self.release.release.document.hook


@dataclass(frozen=True, slots=True)
class PublishedArtifact:
    """A stored artifact. It becomes current only when its completion is accepted."""

    manifest_digest: Digest
    manifest: Manifest
    bytes_stored: int
    """Number of bytes that the store did not have before, manifest included."""
    restored: tuple[Digest, ...] = ()
    """Blobs that were damaged and have the right bytes again."""
    refs: tuple[BlobRef, ...] = ()
    """Every blob of the artifact, its manifest included."""


def publish_artifact(store: BlobStore, artifact: Artifact) -> PublishedArtifact:
    """Store the artifact's blobs and its manifest. Equal artifacts are stored once.

    The manifest is sent with the blobs that it names: it is nothing before an inbox entry names it.

    Raises:
        InvalidInputError: The outcomes are not one per record of the batch; nothing was written.
        CorruptDataError: A raw file has changed since the outcomes were decoded from it.
        StoreUnavailableError, OutcomeUnknownError: Some blobs may be stored.
    """
    from feature_pipeline.archive.format.content_digests import Content
    from feature_pipeline.archive.format.encode import encode_table
    from feature_pipeline.archive.format.outcome_columns import OutcomeColumns

    check_outcomes(artifact)
    outcomes = OutcomeColumns.of(artifact.columns, artifact.outcomes)
    content = Content.of(artifact.columns, outcomes)
    with calls_in_threads() as start:
        uploads = _Uploads(store, start)
        for name, path in artifact.raw.items():
            expected = artifact.decoded_from.get(name)
            uploads.add_file(f"{RAW}{check_file_name(name)}", path, expected=expected)
        if artifact.log is not None:
            uploads.add_file(LOG, artifact.log, "text/plain; charset=utf-8")
        if artifact.failure is None:
            # Encoded while the raw files are on their way.
            uploads.add(ROWS, encode_table(outcomes.rows), PARQUET_MEDIA_TYPE)
            uploads.add(OUTCOMES, encode_table(outcomes.outcomes), PARQUET_MEDIA_TYPE)
        manifest = _manifest(artifact, outcomes, content, uploads.refs())
        data = Manifest.check_size(
            manifest.encode(), f"batch {artifact.batch.key!r}: its manifest", "make batches smaller"
        )
        uploads.add("manifest", data, MANIFEST_MEDIA_TYPE)
        writes = uploads.writes()
    return PublishedArtifact(
        manifest_digest=writes[-1].ref.digest,
        manifest=manifest,
        bytes_stored=sum(write.ref.size for write in writes if write.is_new),
        restored=tuple(write.ref.digest for write in writes if write.is_restored),
        refs=tuple(write.ref for write in writes),
    )


class _Uploads:
    """Blobs of one artifact, on their way to the store; those with equal bytes are sent once."""

    def __init__(self, store: BlobStore, start: Start) -> None:
        self._store, self._start = store, start
        self._refs: dict[str, BlobRef] = {}
        self._large: dict[str, tuple[str, Future[BlobWrite]]] = {}
        """Media type and upload of files whose digest is not known until they were read."""
        self._uploads: dict[Digest | str, Future[BlobWrite]] = {}

    def add_file(
        self,
        name: str,
        path: Path,
        media_type: str | None = None,
        *,
        expected: Digest | None = None,
    ) -> None:
        """Send the file's bytes, which must have the digest `expected`, if there is one."""
        media_type = media_type or _MEDIA_TYPES.get(path.suffix, BYTES_MEDIA_TYPE)
        with open_unchanged(path) as file:
            is_small = os.fstat(file.fileno()).st_size <= _IN_MEMORY_BYTES
            data = file.read() if is_small else b""
        if is_small:
            if expected is not None and (digest := Digest.of(data)) != expected:
                raise CorruptDataError(f"file {path} is {digest} and should be {expected}")
            self.add(name, data, media_type)
        else:
            upload = self._start(partial(blobs.write_file, self._store, path, media_type, expected))
            self._uploads[name], self._large[name] = upload, (media_type, upload)

    def add(self, name: str, data: bytes, media_type: str) -> None:
        """Send these bytes."""
        digest = Digest.of(data)
        self._refs[name] = BlobRef(digest=digest, size=len(data), media_type=media_type)
        if digest not in self._uploads:
            write = partial(blobs.write_blob, self._store, data, media_type, digest)
            self._uploads[digest] = self._start(write)

    def refs(self) -> dict[str, BlobRef]:
        """Return references by name, once large files have been sent."""
        for name, (media_type, upload) in self._large.items():
            ref = upload.result().ref
            self._refs[name] = ref.model_copy(update={"media_type": media_type})
        return dict(self._refs)

    def writes(self) -> list[BlobWrite]:
        """Return the results in order, once everything has been sent."""
        return results(self._uploads.values())


def check_outcomes(artifact: Artifact) -> None:
    """Check that the artifact has one outcome per record, in the batch's order.

    Raises:
        InvalidInputError: It does not, or the run failed and it has outcomes.
    """
    release = artifact.release.release.document
    if release.dataset != artifact.dataset:
        raise InvalidInputError(
            f"release {release.version!r} of hook {release.hook!r} belongs to dataset"
            f" {release.dataset!r}, but batch {artifact.batch.key!r} to {artifact.dataset!r}: both"
            " must belong to one dataset"
        )
    record_ids, without_output = _about_records(artifact.outcomes)
    wanted = [] if artifact.failure else [record.id for record in artifact.batch.records]
    odd = [each for each in without_output if each.status is Status.PASSED]
    if odd:
        raise InvalidInputError(
            f"artifact of {artifact.hook!r} over batch {artifact.batch.key!r}: record"
            f" {odd[0].record_id!r} is {odd[0].status} without any output about it"
        )
    if record_ids != wanted:
        wrong = next(
            (pair for pair in zip(record_ids, wanted, strict=False) if pair[0] != pair[1]),
            f"{counted(len(record_ids), 'outcome')} for {counted(len(wanted), 'record')}",
        )
        raise InvalidInputError(
            f"artifact of {artifact.hook!r} over batch {artifact.batch.key!r}: outcomes are not one"
            f" per record in the batch's order: {wrong}"
        )


def _about_records(outcomes: Sequence[Outcome]) -> tuple[list[str], Collection[Outcome]]:
    """Return the ids of the records, and the outcomes of those without output."""
    from feature_pipeline.archive.format.outcome_columns import OutcomeColumns

    if isinstance(outcomes, OutcomeColumns):
        return outcomes.record_ids, outcomes.without_output.values()
    return [each.record_id for each in outcomes], [o for o in outcomes if not o.is_from_output]


def _manifest(
    artifact: Artifact, outcomes: "OutcomeColumns", content: "Content", refs: Mapping[str, BlobRef]
) -> Manifest:
    release = artifact.release.release
    has_failed = artifact.failure is not None
    return Manifest(
        dataset=artifact.dataset,
        hook=artifact.hook,
        batch=artifact.batch.key,
        batch_digest=artifact.batch.digest,
        release=ReleaseRef(
            seq=artifact.release.seq,
            digest=release.digest,
            version=release.document.version,
            image=release.document.image,
        ),
        columns=artifact.columns,
        cardinality=artifact.cardinality,
        inputs=dict(artifact.inputs),
        run=artifact.run,
        starts=artifact.starts,
        counts=OutcomeCounts() if has_failed else content.counts,
        blobs=dict(sorted(refs.items())),
        content_digest=None if has_failed else content.content_digest,
        rows_digest=None if has_failed else content.rows_digest,
        failure=artifact.failure,
        without_output={i: _without_output(each) for i, each in outcomes.without_output.items()},
        notes=artifact.notes,
    )


def _without_output(outcome: Outcome) -> WithoutOutput:
    limits = outcome.limits
    return WithoutOutput(
        kind=None if outcome.kind is None else str(outcome.kind),
        reason=outcome.reason or "",
        retryable=outcome.is_retryable,
        memory_bytes=None if limits is None else limits.memory_bytes,
        timeout_seconds=None if limits is None else limits.timeout_seconds,
        scratch_bytes=None if limits is None else limits.scratch_bytes,
    )


def enqueue_completion(store: BlobStore, completion: Completion) -> Completion:
    """Leave the completion in the inbox, from which any later process can accept it.

    Its manifest must be stored. Idempotent: the first call fixes when it was published, which is
    now unless `completion` says.

    Returns:
        The completion as it waits.
    """
    if completion.published_at is None:
        completion = completion.as_published(utc_now())
    return enqueue(store, completion)


def publish_and_enqueue(
    store: BlobStore, artifact: Artifact, complete: Callable[[Digest], Completion]
) -> tuple[PublishedArtifact, Completion]:
    """Store the artifact and leave its completion, protected against concurrent deletions.

    Args:
        store: The archive.
        artifact: What to publish.
        complete: Returns the completion of the manifest with this digest.

    Raises:
        InvalidInputError: A record of the batch is withdrawn, or was erased since the batch was
            read. The completion may wait in the inbox; acceptance quarantines it.
    """
    guard = Guard(store)
    published = publish_artifact(store, artifact)
    completion = enqueue_completion(store, complete(published.manifest_digest))
    # An erasure that begins after this check finds the completion waiting.
    _check_not_withdrawn(store, artifact)
    if guard.find_lost(published.refs):
        _check_not_withdrawn(store, artifact)
        publish_artifact(store, artifact)
    return published, completion


def _check_not_withdrawn(store: BlobStore, artifact: Artifact) -> None:
    """Check that no record of the artifact is withdrawn, or was erased from its batch.

    Raises:
        InvalidInputError: One is, or was: the artifact will not be accepted.
    """
    batch, dataset = artifact.batch, artifact.dataset
    ids = [record.id for record in batch.records]
    check_not_withdrawn(dataset, ids, withdrawn(store, dataset))
    if entries := log.batch_entries(store, dataset, batch.key):
        check_batch_digest(entries, batch.digest, f"artifact of run {artifact.run.id}")


def submit_batch(
    store: BlobStore,
    batch: RecordBatch,
    files: Mapping[Digest, Path],
    submitted_at: datetime | None = None,
) -> Submission:
    """Store the batch and its records' files, and leave it in the inbox.

    Submitting the same batch again changes nothing; an accepted batch does not enter the inbox
    again.

    Args:
        store: The archive.
        batch: What to submit.
        files: Paths of files, by digest; not needed for those that the archive has already.
        submitted_at: When the batch came to be, if that is not now: batches submitted later own
            its records.

    Raises:
        InvalidInputError: A file is neither given nor stored, a record is withdrawn, or the dataset
            is full. If a record was withdrawn before, nothing was stored; if meanwhile, the batch
            may wait in the inbox, and acceptance quarantines it.
        CorruptDataError: A given file does not have its digest.
        ConflictError: The dataset has another batch of this key, or records were erased from it
            since: submit records that are allowed again in another batch.
    """
    submission = Submission(
        dataset=batch.dataset,
        batch=batch.key,
        digest=batch.digest,
        source=batch.document.source,
        submitted_at=submitted_at or utc_now(),
    )
    data = Document.check_size(
        batch.encode(),
        f"batch {batch.key!r}: its document",
        "submit fewer records a batch (--batch-size), or put long metadata into files",
    )
    ids = [record.id for record in batch.records]
    withdrawals = tombstones(store, batch.dataset)
    check_not_withdrawn(batch.dataset, ids, withdrawn_by(withdrawals))
    known = log.batch_entries(store, batch.dataset, batch.key)
    if known:
        check_same_batch(store, known, submission)
    else:
        check_budget(store, batch.dataset)
    guard = Guard(store)
    refs = _store_batch(store, batch, data, files)
    submitted_at = known[0].submitted_at if known else enqueue(store, submission).submitted_at
    # An erasure that begins after this check finds the batch waiting or accepted.
    _check_not_erased_meanwhile(store, batch, withdrawals)
    if not known and guard.find_lost(refs):
        _check_not_erased_meanwhile(store, batch, withdrawals)
        _store_batch(store, batch, data, files)
    return submission.model_copy(update={"submitted_at": submitted_at})


def _check_not_erased_meanwhile(
    store: BlobStore, batch: RecordBatch, before: Sequence[TombstoneEntry]
) -> None:
    """Check that no record of the batch was withdrawn after the tombstones `before`.

    Raises:
        InvalidInputError: One was, even if it is allowed again by now.
    """
    since = tombstones(store, batch.dataset)[len(before) :]
    barred = {i for e in since if e.action is TombstoneAction.WITHDRAW for i in e.record_ids}
    if broken := barred.intersection(record.id for record in batch.records):
        raise InvalidInputError(
            f"batch {batch.key!r} of dataset {batch.dataset!r}: record {min(broken)!r}"
            + (f" and {counted(len(broken) - 1, 'other')}" if len(broken) > 1 else "")
            + f" {'was' if len(broken) == 1 else 'were'} withdrawn while the batch was submitted,"
            " so what was submitted about them is not accepted: submit the other records as"
            " another batch, or lift the withdrawal and submit all of them again"
        )


def check_same_batch(
    store: BlobStore, entries: Sequence[log.BatchEntry], submission: Submission
) -> None:
    """Check that the accepted batch is the submitted one.

    Args:
        store: The archive.
        entries: The batch's log; not empty.
        submission: What is submitted.

    Raises:
        ConflictError: It is not, or it is submitted again after records were erased from it: a
            batch never changes, and erased data does not come back.
    """
    first = entries[0]
    already = (
        f"dataset {first.dataset!r} has a batch {first.batch!r} already, submitted"
        f" {first.submitted_at:%Y-%m-%d %H:%M} UTC"
    )
    is_erased = entries[-1].digest != first.digest and (
        submission.submitted_at != first.submitted_at
    )
    if first.digest != submission.digest:
        # Records may have been erased from it while it waited.
        is_erased = submission.digest in erased(store, submission.dataset).batches
    if first.digest != submission.digest and not is_erased:
        raise ConflictError(
            f"{already} with other records ({first.digest.short}, not {submission.digest.short});"
            " a batch never changes: submit these records under another key"
        )
    if is_erased:
        raise ConflictError(
            f"{already}, from which records were erased since; a batch never changes: submit those"
            " that may come again under another key"
        )


def _store_batch(
    store: BlobStore, batch: RecordBatch, data: bytes, files: Mapping[Digest, Path]
) -> list[BlobRef]:
    """Store the batch and its files."""
    refs = _store_files(store, batch, files)
    return [*refs, blobs.put_blob(store, data, JSON_MEDIA_TYPE)]


def _store_files(
    store: BlobStore, batch: RecordBatch, files: Mapping[Digest, Path]
) -> list[BlobRef]:
    wanted = {file.blob: (record, file) for record in batch.records for file in record.files}
    given = [digest for digest in wanted if digest in files]
    refs = [BlobRef(digest=d, size=wanted[d][1].size) for d in wanted if d not in files]
    if missing := blobs.find_missing(store, refs):
        record, file = wanted[missing[0].digest]
        raise InvalidInputError(
            f"batch {batch.key!r}: file {file.name!r} of record {record.id!r}"
            f" ({file.digest}, {file.size} bytes) is neither supplied nor in the archive"
            + (f"; nor are {counted(len(missing) - 1, 'other')}" if len(missing) > 1 else "")
        )
    # What nothing named until now may be about to be collected.
    map_threads(lambda ref: blobs.renew(store, ref), refs)
    writes = map_threads(lambda d: blobs.write_file(store, files[d], expected=d), given)
    for digest, write in zip(given, writes, strict=True):
        record, file = wanted[digest]
        if write.ref.size != file.size:
            raise InvalidInputError(
                f"batch {batch.key!r}: file {file.name!r} of record {record.id!r} has"
                f" {write.ref.size} bytes, but the batch states {file.size}"
            )
    return [*refs, *(write.ref for write in writes)]
