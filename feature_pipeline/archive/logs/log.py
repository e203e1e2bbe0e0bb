"""The append-only logs of batches, releases and features.

Creating an entry is the commit: the writer that creates number n+1 has decided what follows n.

Entries never change, so they are read once per process. A listing that races a creation may miss
it; a writer notices when it fails to create the next number.

There are two ways to read many logs. `heads`, `batches` and `feature_logs` raise at the first
damaged log: for callers that act on the whole (an export, a comparison). Their `readable_`
counterparts return what is readable and, per batch, the damage to the rest: for callers that show
or load batches one by one.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Final, TypeVar

from pydantic import Field

from feature_pipeline.archive import blobs
from feature_pipeline.archive.deletion_guard import Guard
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import DigestField, InstantField, utc_now
from feature_pipeline.archive.format.manifest import BlobRef
from feature_pipeline.archive.logs import reading
from feature_pipeline.archive.logs.cache import LruCache
from feature_pipeline.archive.logs.damage import Damage, Readable
from feature_pipeline.archive.logs.entries import LogEntry as LogEntry
from feature_pipeline.archive.logs.entries import StoredEntry
from feature_pipeline.archive.logs.entries import new_write_id as new_write_id
from feature_pipeline.archive.logs.known_lengths import (
    KnownLogs,
    check_complete,
    compare,
    known_logs,
    sightings,
)
from feature_pipeline.archive.logs.reading import append as append
from feature_pipeline.archive.logs.reading import (
    by_log,
    entries_of,
    gap,
    link,
    list_logs,
    read_all,
    read_each,
    try_read,
)
from feature_pipeline.archive.logs.reading import next_seq as next_seq
from feature_pipeline.archive.logs.reading import read_entries as read_entries
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import RecordBatch, Source
from feature_pipeline.model.release import HookRelease, ReleaseDocument
from feature_pipeline.parallel import map_threads

_CACHED_RECORDS: Final = 1 << 14
"""Records of batches that are kept in memory; those with little metadata take 1 KB each."""


class Verdict(StrEnum):
    """The status of a completion in its batch's log."""

    CURRENT = "current"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class FeatureEntry(LogEntry):
    """The log entry of one completion of a hook over a batch."""

    added: ClassVar[dict[str, int]] = {**LogEntry.added, "published_at": 2}

    dataset: str
    hook: str
    batch: str
    completion: str
    """The completion's id."""
    manifest: DigestField
    release_seq: int
    release: DigestField
    base: int
    """Seq of the log's last entry when the run was planned; 0 if there was none."""
    verdict: Verdict
    content_digest: DigestField | None
    """None when the run failed."""
    accepted_at: InstantField = Field(default_factory=utc_now)
    dagster_run_id: str | None = None
    published_at: InstantField | None = None
    """By the publisher's clock; None if unknown, and in version 1."""

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.feature_log(self.dataset, self.hook, self.batch)

    @property
    def order(self) -> tuple[int, int]:
        """The order that decides between two completions: by release, then by base.

        If these are equal, the one with the later `published_at` is later, or the later entry if
        that is not known.
        """
        return self.release_seq, self.base

    @property
    def published_or_accepted_at(self) -> datetime:
        """When the artifact was published; when it was accepted, if that is not known."""
        return self.published_at or self.accepted_at


class BatchEntry(LogEntry):
    """A submitted batch. `(submitted_at, batch)` says which of two batches owns a record."""

    dataset: str
    batch: str
    digest: DigestField
    source: Source
    records: int = Field(ge=0)
    submitted_at: InstantField
    accepted_at: InstantField = Field(default_factory=utc_now)

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.batch_log(self.dataset, self.batch)

    @property
    def order(self) -> tuple[datetime, str]:
        """Sorts batches by submission."""
        return self.submitted_at, self.batch


class StoredRelease(LogEntry):
    """A release as its log stores it."""

    release: ReleaseDocument
    digest: DigestField
    registered_at: InstantField = Field(default_factory=utc_now)

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.release_log(self.release.dataset, self.release.hook)


def release_disagreement(entry: FeatureEntry, registered: Digest) -> str | None:
    """Return how the entry's release differs from the one registered as its `release_seq`."""
    if entry.release == registered:
        return None
    return f"its release is {entry.release}, and release {entry.release_seq} is {registered}"


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """A registered release; `seq` is its order among the hook's releases."""

    seq: int
    release: HookRelease
    registered_at: datetime = field(default_factory=utc_now)
    write_id: str = ""


T = TypeVar("T")

_batches: LruCache[RecordBatch] = LruCache(_CACHED_RECORDS, lambda b: max(1, len(b.records)))


def forget_read_entries() -> None:
    """Clear the cache of entries and batches, as if the process began. For measuring."""
    reading.forget()
    _batches.clear()


def trim_read_entries(entries: int, records: int) -> None:
    """Keep in the cache at most so many entries, and batches with so many records.

    For a process that runs for months and reads each entry within minutes, or never again.
    """
    reading.trim(entries)
    _batches.trim(records)


# Features


def read_log(store: BlobStore, dataset: str, hook: str, batch: str) -> list[FeatureEntry]:
    """Return every entry of a batch under a hook, in order; empty if nothing was accepted."""
    return read_entries(store, layout.feature_log(dataset, hook, batch), FeatureEntry)


def last_current(entries: Iterable[FeatureEntry]) -> FeatureEntry | None:
    """Return the entry whose artifact is the batch's current one."""
    current = None
    for entry in entries:
        if entry.verdict is Verdict.CURRENT:
            current = entry
    return current


def head(store: BlobStore, dataset: str, hook: str, batch: str) -> FeatureEntry | None:
    """Return the batch's current entry, reading from the log's end; None if there is none."""
    infos = list(store.list_objects(layout.feature_log(dataset, hook, batch)))
    entry = _last_current_of(store, infos)
    if isinstance(entry, Damage):
        raise entry.error
    return entry


def heads(
    store: BlobStore, dataset: str, hook: str, batches: Collection[str] | None = None
) -> dict[str, FeatureEntry]:
    """Return the current entry of every batch that has one, by batch, in batch order.

    Entries that this process has read are not read again. A damaged log raises: use
    `readable_heads` to process batches one by one.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        batches: Read only these, at a cost that depends on their number and not on the archive's
            size.
    """
    return readable_heads(store, dataset, hook, batches).whole()


def readable_heads(
    store: BlobStore,
    dataset: str,
    hook: str,
    batches: Collection[str] | None = None,
    known: KnownLogs | None = None,
) -> Readable[FeatureEntry]:
    """Return the heads as `heads` does, and the damage of logs whose head cannot be determined.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        batches: Read only these, at a cost that depends on their number and not on the archive's
            size.
        known: Compare the logs with their known lengths (`known_lengths.known_logs`, read before
            this call): a log whose end is lost counts as damaged. Without it, the last existing
            entry is taken for the log's end.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    every = layout.feature_logs(dataset, hook)
    logs = list_logs(store, every, batches)
    read = read_each(logs, lambda infos: _last_current_of(store, infos))
    return _without_lost(store, read, known, every, logs, batches)


def _without_lost(
    store: BlobStore,
    read: Readable[T],
    known: KnownLogs | None,
    every: str,
    logs: Mapping[str, Sequence[ObjectInfo]],
    names: Collection[str] | None,
) -> Readable[T]:
    """Return the result without logs that are shorter than known, which become damage."""
    if known is None:
        return read
    if names is not None:
        # Logs that were not listed would look as if they were gone.
        known = known.only({f"{every}{name}/" for name in names})
    seen = sightings(info for infos in logs.values() for info in infos)
    short = {
        shortfall.log.removeprefix(every).rstrip("/"): shortfall.damage
        for shortfall in compare(store, known, every, seen)
    }
    if names is not None:
        short = {name: damage for name, damage in short.items() if name in names}
    # What reading showed says more.
    damage = {**short, **read.damage}
    intact = {name: value for name, value in read.intact.items() if name not in damage}
    return Readable(intact, dict(sorted(damage.items())))


def feature_logs(store: BlobStore, dataset: str, hook: str) -> dict[str, list[FeatureEntry]]:
    """Return every entry of every batch under a hook, by batch, in one listing.

    A damaged log raises: use `readable_feature_logs` to process batches one by one.
    """
    return readable_feature_logs(store, dataset, hook).whole()


def readable_feature_logs(
    store: BlobStore,
    dataset: str,
    hook: str,
    batches: Collection[str] | None = None,
    known: KnownLogs | None = None,
) -> Readable[list[FeatureEntry]]:
    """Return the logs as `feature_logs` does, and the damage of those that cannot be read.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        batches: Read only these, at a cost that depends on their number and not on the archive's
            size.
        known: As for `readable_heads`.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    every = layout.feature_logs(dataset, hook)
    logs = list_logs(store, every, batches)
    read = entries_of(read_all(store, logs, FeatureEntry))
    return _without_lost(store, read, known, every, logs, batches)


def _last_current_of(store: BlobStore, infos: Sequence[ObjectInfo]) -> FeatureEntry | Damage | None:
    following: StoredEntry[FeatureEntry] | None = None
    for info in reversed(infos):
        stored = try_read(store, info, FeatureEntry)
        if isinstance(stored, Damage):
            return stored
        if following is not None:
            if stored.entry.seq != following.entry.seq - 1:
                break
            if (problem := link(store, stored, following)) is not None:
                return problem
        if stored.entry.verdict is Verdict.CURRENT:
            return stored.entry
        following = stored
    if following is not None and following.entry.seq != layout.FIRST_SEQ:
        prefix, seq = following.entry.log_prefix, following.entry.seq
        return gap(store, layout.entry(prefix, seq - 1), layout.entry(prefix, seq))
    return None


# Batches


def batch_entries(store: BlobStore, dataset: str, batch: str) -> list[BatchEntry]:
    """Return the batch's log: one entry, and one more for every redaction."""
    return read_entries(store, layout.batch_log(dataset, batch), BatchEntry)


def batch_entry(store: BlobStore, dataset: str, batch: str) -> BatchEntry:
    """Return the batch's last entry.

    Raises:
        NotFoundError: No such batch was accepted.
    """
    entries = batch_entries(store, dataset, batch)
    if not entries:
        raise NotFoundError(
            f"dataset {dataset!r} has no batch {batch!r}; submit it, or wait for the inbox"
        )
    return entries[-1]


def batches(
    store: BlobStore, dataset: str, names: Collection[str] | None = None
) -> dict[str, BatchEntry]:
    """Return the last entry of every batch of a dataset, by batch, in the order of keys.

    A damaged entry raises: use `readable_batches` to process batches one by one.

    Args:
        store: The archive.
        dataset: The dataset.
        names: Read only these, at a cost that depends on their number and not on the archive's
            size.
    """
    return readable_batches(store, dataset, names).whole()


def readable_batches(
    store: BlobStore,
    dataset: str,
    names: Collection[str] | None = None,
    known: KnownLogs | None = None,
) -> Readable[BatchEntry]:
    """Return the batches as `batches` does, and the damage of those that cannot be read.

    Args:
        store: The archive.
        dataset: The dataset.
        names: Read only these, at a cost that depends on their number and not on the archive's
            size.
        known: As for `readable_heads`.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    every = layout.batch_logs(dataset)
    logs = list_logs(store, every, names)

    def last(infos: Sequence[ObjectInfo]) -> BatchEntry | Damage:
        stored = try_read(store, infos[-1], BatchEntry)
        return stored if isinstance(stored, Damage) else stored.entry

    return _without_lost(store, read_each(logs, last), known, every, logs, names)


def readable_batch_logs(
    store: BlobStore, dataset: str, known: KnownLogs | None = None
) -> Readable[list[BatchEntry]]:
    """Return every entry of every batch of a dataset, by batch, and the damage, in one listing.

    Args:
        store: The archive.
        dataset: The dataset.
        known: As for `readable_heads`.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    every = layout.batch_logs(dataset)
    logs = by_log(every, store.list_objects(every))
    read = entries_of(read_all(store, logs, BatchEntry))
    return _without_lost(store, read, known, every, logs, None)


def read_batch(store: BlobStore, dataset: str, batch: str) -> RecordBatch:
    """Return the current version of the batch.

    Raises:
        NotFoundError: No such batch was accepted, or its blob is gone.
        CorruptDataError: Its blob has other bytes.
    """
    return batch_of(store, batch_entry(store, dataset, batch))


def batch_of(store: BlobStore, entry: BatchEntry) -> RecordBatch:
    """Return the batch that the log entry names.

    Every reader that starts from the log uses this function, so that an entry and a batch that do
    not belong together count as damage.

    Raises:
        NotFoundError: The blob is gone.
        CorruptDataError: It has other bytes, or is not the batch of this entry.
    """
    batch = read_batch_blob(store, entry.digest)
    if problem := batch_disagreement(entry, batch):
        key = layout.entry(entry.log_prefix, entry.seq)
        raise CorruptDataError(f"log entry {key} in {store.identity}: {problem}")
    return batch


def batch_disagreement(entry: BatchEntry, batch: RecordBatch) -> str | None:
    """Return how the entry and the batch that it names differ; None if they match."""
    compared = {
        "dataset": (entry.dataset, batch.dataset),
        "batch": (entry.batch, batch.key),
        "source": (entry.source, batch.document.source),
        "number of records": (entry.records, len(batch.records)),
    }
    for field_name, (ours, theirs) in compared.items():
        if ours != theirs:
            return (
                f"its {field_name} is {ours}, that of its batch document {entry.digest} is {theirs}"
            )
    return None


def read_batch_blob(store: BlobStore, digest: Digest) -> RecordBatch:
    """Return the batch with this digest, whether or not it was accepted."""
    cache_key = (store.identity, digest)
    batch = _batches.get(cache_key)
    if batch is None:
        batch = RecordBatch.decode(blobs.read_blob(store, digest))
        _batches.put(cache_key, batch)
    return batch


def datasets(store: BlobStore) -> list[str]:
    """Return every dataset that has a batch or a release, sorted."""
    folders = store.list_folders(layout.BATCH_LOGS) + store.list_folders(layout.RELEASE_LOGS)
    return sorted(set(folders))


def hooks(store: BlobStore, dataset: str) -> list[str]:
    """Return every hook with a release in the dataset, sorted."""
    return store.list_folders(f"{layout.RELEASE_LOGS}{dataset}/")


# Releases


def releases(
    store: BlobStore, dataset: str, hook: str, known: KnownLogs | None = None
) -> list[ReleaseEntry]:
    """Return the hook's releases in the order of registration.

    Args:
        store: The archive.
        dataset: The hook's dataset.
        hook: The hook.
        known: As for `readable_heads`.

    Raises:
        CorruptDataError: The log is damaged, or has lost its end.
    """
    prefix = layout.release_log(dataset, hook)
    if known is not None:
        check_complete(store, known, prefix)
    entries = read_entries(store, prefix, StoredRelease)
    return [release_entry(entry) for entry in entries]


def release(store: BlobStore, dataset: str, hook: str, digest: Digest) -> ReleaseEntry:
    """Return the last registration of the release with this digest.

    Raises:
        NotFoundError: It was never registered.
    """
    for entry in reversed(releases(store, dataset, hook)):
        if entry.release.digest == digest:
            return entry
    raise NotFoundError(f"hook {hook!r} of dataset {dataset!r} has no release {digest}")


def register_release(
    store: BlobStore,
    release: HookRelease,
    code: Mapping[str, Path],
    *,
    is_restored: bool = False,
) -> ReleaseEntry:
    """Store the release's code files and make it the last in its hook's log.

    Registering the last release again appends nothing; going back to an earlier one does.

    Args:
        store: The archive.
        release: The release.
        code: Path of each of the release's code files, by name.
        is_restored: The release is the one that a log which has lost its end had in this place.

    Raises:
        InvalidInputError: A code file is not given.
        CorruptDataError: A code file does not match the release; or the log has lost its end, so
            that the number of a release which artifacts name would be given to this one.
    """
    document = release.document
    for file in document.code:
        if file.name not in code:
            raise InvalidInputError(
                f"release {document.version!r} of hook {document.hook!r}: no path was given for"
                f" code file {file.name!r}"
            )
    prefix = layout.release_log(document.dataset, document.hook)
    known = read_entries(store, prefix, StoredRelease)
    if known and known[-1].digest == release.digest:
        return release_entry(known[-1])
    if not is_restored:
        check_complete(store, known_logs(store), prefix)
    guard = Guard(store)

    def put_code() -> list[BlobRef]:
        return map_threads(
            lambda file: blobs.put_file(store, code[file.name], expected=file.blob), document.code
        )

    refs = put_code()

    def decide(entries: list[StoredRelease]) -> StoredRelease:
        if entries and entries[-1].digest == release.digest:
            return entries[-1]
        return StoredRelease(seq=next_seq(entries), release=document, digest=release.digest)

    entry, _ = append(store, prefix, StoredRelease, decide, known)
    if guard.find_lost(refs):
        put_code()
    return release_entry(entry)


def release_entry(stored: StoredRelease) -> ReleaseEntry:
    """Return the entry as a value.

    Raises:
        CorruptDataError: Its document does not match its digest.
    """
    release = HookRelease.of(stored.release)
    if release.digest != stored.digest:
        raise CorruptDataError(
            f"release entry {stored.seq} of hook {stored.release.hook!r} states {stored.digest},"
            f" but its document is {release.digest}"
        )
    return ReleaseEntry(stored.seq, release, stored.registered_at, stored.write_id)
