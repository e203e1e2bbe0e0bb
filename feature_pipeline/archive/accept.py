"""Accept batches and completions: turn an inbox entry into a log entry.

Any process that has an entry may call this: acceptance is idempotent, and the log decides between
concurrent callers.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, assert_never

from feature_pipeline.archive import read
from feature_pipeline.archive.check_artifact import (
    check_artifact,
    check_batch_digest,
    check_not_withdrawn,
    check_present,
)
from feature_pipeline.archive.completion_verdict import decide_verdict
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import (
    Document,
    NewerVersionError,
    check_values,
    instant_text,
    utc_now,
)
from feature_pipeline.archive.format.manifest import BlobRef, Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.inbox import Completion as Completion
from feature_pipeline.archive.logs.inbox import CompletionStatus
from feature_pipeline.archive.logs.inbox import InboxEntry as InboxEntry
from feature_pipeline.archive.logs.inbox import Submission as Submission
from feature_pipeline.archive.logs.inbox import is_batch as is_batch
from feature_pipeline.archive.logs.inbox import list_waiting as list_waiting
from feature_pipeline.archive.logs.inbox import quarantine as quarantine
from feature_pipeline.archive.logs.inbox import quarantined as quarantined
from feature_pipeline.archive.logs.inbox import read_waiting as read_waiting
from feature_pipeline.archive.logs.inbox import remove as remove
from feature_pipeline.archive.logs.inbox import requeue as requeue
from feature_pipeline.archive.logs.inbox import waiting as waiting
from feature_pipeline.archive.logs.known_lengths import check_complete, known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, ReleaseEntry
from feature_pipeline.archive.logs.losses import losses
from feature_pipeline.archive.logs.tombstones import (
    TombstoneEntry,
    barred_since,
    tombstones,
    withdrawn_by,
)
from feature_pipeline.archive.publish import check_same_batch
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch
from feature_pipeline.model.release import HookRelease
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.parallel import WORKERS, map_threads

logger = logging.getLogger(__name__)

WAIT_LIMIT: Final = timedelta(hours=1)
"""How long an entry may wait for objects that it names before it is quarantined."""
EARLIEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
"""Earliest plausible time: no correct clock shows an earlier one."""
CLOCKS_DIFFER: Final = timedelta(days=1)
"""How far a writer's clock may be ahead of the store's. Later times decide which batch owns a
record and which artifact is current, so a time far ahead would decide that permanently.
"""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The entry is in its log. Remove it from the inbox when it is no longer needed there."""

    entry: FeatureEntry | BatchEntry
    is_new: bool
    """Whether this call appended it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The entry could not be accepted yet; it stays in the inbox."""

    reason: str


@dataclass(frozen=True, slots=True)
class Quarantined:
    """The entry cannot be accepted and was moved to the quarantine."""

    id: str
    reason: str


@dataclass
class _Round:
    """The values that one round of acceptance reads once for all entries.

    A round may miss a withdrawal that is made while it runs. `erase` finds the artifacts that were
    accepted that way.
    """

    store: BlobStore
    workers: int = WORKERS
    """Concurrent requests within one entry; 1 if entries themselves are processed concurrently."""
    _releases: dict[tuple[str, str], list[ReleaseEntry]] = field(default_factory=dict)
    _tombstones: dict[str, list[TombstoneEntry]] = field(default_factory=dict)

    def release(self, dataset: str, hook: str, seq: int) -> ReleaseEntry | None:
        known = self._releases.get((dataset, hook), [])
        if seq > len(known):
            known = log.releases(self.store, dataset, hook)
            self._releases[dataset, hook] = known
        return known[seq - layout.FIRST_SEQ] if layout.FIRST_SEQ <= seq <= len(known) else None

    def withdrawn(self, dataset: str) -> set[str]:
        return withdrawn_by(self.tombstones(dataset))

    def tombstones(self, dataset: str) -> list[TombstoneEntry]:
        if dataset not in self._tombstones:
            self._tombstones[dataset] = tombstones(self.store, dataset)
        return self._tombstones[dataset]


def accept_entries(
    store: BlobStore, entries: Sequence[InboxEntry]
) -> list[Accepted | Waiting | Quarantined]:
    """Accept each entry, leave it waiting, or quarantine it; none is ever lost.

    An entry that refers to something that may still arrive (an unknown batch or release, missing or
    damaged bytes, a newer document), or whose own bytes arrived damaged, waits for up to
    `WAIT_LIMIT`. If the store does not answer, it waits without limit. Batches are processed first,
    then each batch's completions in order of publication; completions of different batches
    concurrently.

    Returns:
        The result for each entry, in the order given.
    """
    acceptance = _Round(store, workers=1)
    results_by_id: dict[str, Accepted | Waiting | Quarantined] = {}
    for are_batches in (True, False):
        chosen = [e for e in entries if isinstance(e.content, Submission) is are_batches]
        logs: dict[object, list[InboxEntry]] = {}
        for entry in sorted(chosen, key=_published_at):
            logs.setdefault(_log_of(entry), []).append(entry)
        results = map_threads(
            lambda group: [(entry.id, _accept_entry(acceptance, entry)) for entry in group],
            logs.values(),
        )
        results_by_id.update(result for group in results for result in group)
    return [results_by_id[entry.id] for entry in entries]


def _published_at(entry: InboxEntry) -> tuple[datetime, str]:
    content = entry.content
    known = content.published_at if isinstance(content, Completion) else None
    return known or entry.modified_at, entry.id


def _log_of(entry: InboxEntry) -> object:
    """Return the log that the entry goes to; entries of one log are processed in sequence."""
    match entry.content:
        case Submission(dataset=dataset, batch=batch):
            return dataset, batch
        case Completion(dataset=dataset, hook=hook, batch=batch):
            return dataset, hook, batch
        case _:
            return entry.id


def _accept_entry(acceptance: _Round, entry: InboxEntry) -> Accepted | Waiting | Quarantined:
    try:
        match entry.content:
            case Submission() as submission:
                return Accepted(*_accept_batch(acceptance, submission, entry.modified_at))
            case Completion() as completion:
                timed = _with_time(completion, entry.modified_at)
                return Accepted(*_accept(acceptance, timed, entry.modified_at))
            case None if entry.is_unread:
                raise StoreUnavailableError(entry.problem)
            case None if entry.is_damaged:
                raise CorruptDataError(entry.problem)
            case None if entry.is_newer:
                raise NewerVersionError(entry.problem)
            case None:
                raise InvalidInputError(entry.problem)
            case _:
                assert_never(entry.content)
    except (StoreUnavailableError, OutcomeUnknownError) as error:
        return Waiting(str(error))
    except (InvalidInputError, ConflictError) as error:
        if not isinstance(error, NewerVersionError):
            return _quarantine(acceptance.store, entry, str(error))
        reason = str(error)
    except (NotFoundError, CorruptDataError) as error:
        reason = str(error)
    except Exception as error:
        # The one place where a round goes over objects: whatever one holds, it costs itself.
        reason = f"{type(error).__name__}: {error}"
        logger.exception("inbox entry %s cannot be accepted", quoted(entry.id))
    if utc_now() - entry.modified_at < WAIT_LIMIT:
        return Waiting(reason)
    return _quarantine(acceptance.store, entry, reason)


def _quarantine(store: BlobStore, entry: InboxEntry, reason: str) -> Waiting | Quarantined:
    reason = quoted(reason, MOST_REASON)
    try:
        quarantine(store, entry, reason)
    except (StoreUnavailableError, OutcomeUnknownError, CorruptDataError) as error:
        return Waiting(f"{reason}; it could not be moved to the quarantine: {error}")
    return Quarantined(entry.id, reason)


def _with_time(completion: Completion, left_at: datetime) -> Completion:
    """Return the completion with `published_at`, by default when its inbox entry was written."""
    return completion if completion.published_at else completion.as_published(left_at)


def accept_batch(store: BlobStore, submission: Submission) -> BatchEntry:
    """Append the batch to its log, once.

    Raises:
        NotFoundError: Its blob or a record's file is not stored.
        CorruptDataError: A stored blob does not match its name.
        ConflictError: The dataset has another batch of this key.
        InvalidInputError: The submission and the batch do not agree, or a record is withdrawn.
        OutcomeUnknownError: The store did not answer and a read-back could not settle it.
    """
    return _accept_batch(_Round(store), submission, utc_now())[0]


def _accept_batch(
    acceptance: _Round, submission: Submission, left_at: datetime
) -> tuple[BatchEntry, bool]:
    store = acceptance.store
    known = log.batch_entries(store, submission.dataset, submission.batch)
    if known:
        check_same_batch(store, known, submission)
        return known[-1], False
    subject = f"batch {submission.batch!r} of dataset {submission.dataset!r}: submitted at"
    _check_instant(subject, submission.submitted_at, left_at)
    _check_size(store, submission.digest, f"batch {submission.batch!r}")
    batch = log.read_batch_blob(store, submission.digest)
    if (batch.dataset, batch.key) != (submission.dataset, submission.batch):
        raise InvalidInputError(
            f"submission of {submission.dataset}/{submission.batch} names batch blob"
            f" {submission.digest}, which is {batch.dataset}/{batch.key}"
        )
    ids = [record.id for record in batch.records]
    check_not_withdrawn(batch.dataset, ids, acceptance.withdrawn(batch.dataset))
    _check_not_erased_since(submission, ids, acceptance.tombstones(batch.dataset))
    refs = [
        BlobRef(digest=file.blob, size=file.size)
        for record in batch.records
        for file in record.files
    ]
    subject = f"batch {batch.key!r} of dataset {batch.dataset!r}"
    check_present(store, refs, subject, acceptance.workers)

    def decide(entries: list[BatchEntry]) -> BatchEntry:
        if entries:
            check_same_batch(store, entries, submission)
            return entries[-1]
        return BatchEntry(
            seq=layout.FIRST_SEQ,
            dataset=batch.dataset,
            batch=batch.key,
            digest=submission.digest,
            source=batch.document.source,
            records=len(batch.records),
            submitted_at=submission.submitted_at,
        )

    prefix = layout.batch_log(batch.dataset, batch.key)
    return log.append(store, prefix, BatchEntry, decide, known)


def _check_not_erased_since(
    submission: Submission, ids: Collection[str], tombstones_then: Collection[TombstoneEntry]
) -> None:
    """Check that every formerly withdrawn record was submitted after its lift."""
    if broken := barred_since(tombstones_then, submission.submitted_at).intersection(ids):
        raise InvalidInputError(
            f"batch {submission.batch!r} of dataset {submission.dataset!r} was submitted"
            f" {submission.submitted_at:%Y-%m-%d %H:%M} UTC, and record {min(broken)!r} was erased"
            " and allowed again since: submit the batch again"
        )


def accept(store: BlobStore, completion: Completion) -> FeatureEntry:
    """Append the completion to its batch's log, once.

    Readers see the old head or the new one. The entry is `current` unless an artifact of a later
    release, or of a run planned later, is; the result of a cancelled run is `superseded`, a failed
    run is `failed`. Zero rows are a valid artifact.

    Returns:
        The log entry that stands for it: ours, or the one an earlier call appended.

    Raises:
        NotFoundError: The batch or release is not known yet, or a blob is missing.
        CorruptDataError: A stored blob does not match its name.
        InvalidInputError: The artifact breaks the contract: see `contract.check_artifact`.
        OutcomeUnknownError: The store did not answer and a read-back could not settle it.
    """
    return _accept(_Round(store), completion, utc_now())[0]


def _accept(
    acceptance: _Round, completion: Completion, left_at: datetime
) -> tuple[FeatureEntry, bool]:
    store = acceptance.store
    prefix = layout.feature_log(completion.dataset, completion.hook, completion.batch)
    entries = log.read_entries(store, prefix, FeatureEntry)
    if (done := _find(entries, completion)) is not None:
        return done, False
    base = _base(store, completion, prefix, entries)
    completion = completion.model_copy(update={"base": base})
    release = _known_release(acceptance, completion)
    _check_size(store, completion.manifest, f"completion {completion.id}")
    manifest = read.read_manifest(store, completion.manifest)
    _check_names(manifest, completion, release)
    check_values(manifest)
    times = {
        "published at": completion.published_at,
        "started at": manifest.run.started_at,
        "finished at": manifest.run.finished_at,
    }
    for subject, instant in times.items():
        _check_instant(f"completion {completion.id}: {subject}", instant, left_at)
    batch = _known_batch(store, manifest)
    withdrawn_ids = acceptance.withdrawn(completion.dataset)
    outcomes = check_artifact(store, manifest, batch, withdrawn_ids, acceptance.workers)
    if outcomes is not None:
        # Before the entry: what a log names is in the memory, wherever this process dies.
        from feature_pipeline.archive.logs import answers

        memory = layout.answers(completion.dataset, completion.hook, release.program)
        answers.remember(store, memory, completion.manifest, answers.own_answers(outcomes.outcomes))

    def decide(entries: list[FeatureEntry]) -> FeatureEntry:
        if (done := _find(entries, completion)) is not None:
            return done
        return FeatureEntry(
            seq=log.next_seq(entries),
            dataset=completion.dataset,
            hook=completion.hook,
            batch=completion.batch,
            completion=completion.id,
            manifest=completion.manifest,
            release_seq=completion.release_seq,
            release=completion.release_digest,
            base=completion.base,
            verdict=decide_verdict(entries, completion, manifest),
            content_digest=manifest.content_digest,
            dagster_run_id=completion.dagster_run_id,
            published_at=completion.published_at,
        )

    return log.append(store, prefix, FeatureEntry, decide, entries)


def _base(
    store: BlobStore, completion: Completion, prefix: str, entries: Sequence[FeatureEntry]
) -> int:
    """Return the number of the last entry that the run was planned on.

    If the entry was given up since, that is the last one that the log kept.

    Raises:
        NotFoundError: It names an entry that the log does not have, or no longer has.
    """
    last = log.next_seq(entries) - 1
    if completion.base <= last:
        return completion.base
    given_up = [
        loss.known_entries
        for entry in losses(store, completion.dataset)
        for loss in entry.losses
        if loss.log == prefix
    ]
    if completion.base <= max(given_up, default=0):
        return last
    raise NotFoundError(
        f"completion {completion.id}: it was planned on entry"
        f" {quoted(str(completion.base), 20)} of its batch's log, which has {last}"
    )


def _check_size(store: BlobStore, digest: Digest, subject: str) -> None:
    """Check that a document that an entry names is small enough to be read.

    Raises:
        InvalidInputError: It is not.
    """
    info = store.stat(layout.blob(digest))
    if info is not None and info.size > Document.most_bytes:
        raise InvalidInputError(
            f"{subject}: its document {digest} {Document.too_large(info.size)}: make batches"
            " smaller"
        )


def _check_instant(subject: str, instant: datetime | None, left_at: datetime) -> None:
    """Check that a time stated by the writer is plausible.

    Args:
        subject: Whose time, for the message.
        instant: The time; None if it is not stated.
        left_at: When the entry was written, by the store's clock.

    Raises:
        InvalidInputError: It is before 2000, or more than a day after `left_at`.
    """
    if instant is not None and not EARLIEST <= instant <= left_at + CLOCKS_DIFFER:
        raise InvalidInputError(
            f"{subject} {instant_text(instant)}, and was left in the inbox at"
            f" {instant_text(left_at)}: set the writer's clock, and publish or submit again"
        )


def _find(entries: Sequence[FeatureEntry], completion: Completion) -> FeatureEntry | None:
    """Return the entry of this completion; a second result of one run is another completion."""
    for entry in entries:
        if (entry.completion, entry.manifest) == (completion.id, completion.manifest):
            return entry
    return None


def _known_release(acceptance: _Round, completion: Completion) -> HookRelease:
    seq, name = (
        completion.release_seq,
        f"hook {completion.hook!r} of dataset {completion.dataset!r}",
    )
    if seq < layout.FIRST_SEQ:
        raise InvalidInputError(f"completion {completion.id}: {name} has no release {seq}")
    entry = acceptance.release(completion.dataset, completion.hook, seq)
    if entry is None:
        prefix = layout.release_log(completion.dataset, completion.hook)
        check_complete(acceptance.store, known_logs(acceptance.store), prefix)
        raise NotFoundError(f"completion {completion.id}: {name} has no release {seq} yet")
    if entry.release.digest != completion.release_digest:
        raise InvalidInputError(
            f"completion {completion.id}: release {seq} of {name} is {entry.release.digest}, not"
            f" {completion.release_digest}"
        )
    return entry.release


def _check_names(manifest: Manifest, completion: Completion, release: HookRelease) -> None:
    stated = {
        "dataset": (manifest.dataset, completion.dataset),
        "hook": (manifest.hook, completion.hook),
        "batch": (manifest.batch, completion.batch),
        "release": (manifest.release.digest, completion.release_digest),
        "release seq": (manifest.release.seq, completion.release_seq),
    }
    for subject, (in_manifest, in_completion) in stated.items():
        if in_manifest != in_completion:
            raise InvalidInputError(
                f"completion {completion.id}: {subject} is {in_completion}, but its"
                f" manifest has {in_manifest}"
            )
    registered = release.document.version, release.document.image
    if (manifest.release.version, manifest.release.image) != registered:
        raise InvalidInputError(
            f"completion {completion.id}: its manifest names version"
            f" {quoted(manifest.release.version)!r} with image"
            f" {quoted(str(manifest.release.image))}, but release {completion.release_seq} is"
            f" version {registered[0]!r} with image {registered[1]}"
        )
    # A cancelled run may have failed or not.
    if completion.status is not CompletionStatus.CANCELLED and manifest.is_failed != (
        completion.status is CompletionStatus.FAILED
    ):
        raise InvalidInputError(
            f"completion {completion.id} is {completion.status.value}, but by its manifest"
            f" the run {'failed' if manifest.is_failed else 'did not fail'}"
        )


def _known_batch(store: BlobStore, manifest: Manifest) -> RecordBatch:
    entries = log.batch_entries(store, manifest.dataset, manifest.batch)
    if not entries:
        raise NotFoundError(
            f"artifact of run {manifest.run.id}: batch {manifest.batch!r} of dataset"
            f" {manifest.dataset!r} is not known yet"
        )
    check_batch_digest(entries, manifest.batch_digest, f"artifact of run {manifest.run.id}")
    return log.read_batch_blob(store, manifest.batch_digest)
