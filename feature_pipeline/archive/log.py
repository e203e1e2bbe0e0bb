"""The append-only logs: batches, releases, what became of each completion.

What belongs here: the kinds of entries, reading logs, and appending an entry. Creating an entry is
the commit: the writer that creates number n+1 has decided what follows n. Not here: which entry
follows (`accept`, `tombstones`), whether an entry is in its place (`logs.entries`), artifacts
(`manifest`).

Entries never change, so they are read once per process. A listing that races a creation may miss
it; a writer finds out by failing to create the next number.

There are two ways to read many logs. `heads`, `batches`, `feature_logs`, `batch_logs` raise at the
first log that is damaged: for callers that act on the whole (an export, a comparison). Their
`readable_` namesakes give what is readable and, per batch, what is wrong with the rest: for callers
that show or load batches one by one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Final, TypeVar

from pydantic import Field

from feature_pipeline.archive import blobs, layout
from feature_pipeline.archive.blob_store import BlobStore, ObjectInfo, create_or_read
from feature_pipeline.archive.cache import LruCache
from feature_pipeline.archive.documents import (
    DigestField,
    InstantField,
    NewerVersionError,
    utc_now,
)
from feature_pipeline.archive.guard import Guard
from feature_pipeline.archive.logs.damage import Damage, Readable, State
from feature_pipeline.archive.logs.entries import LogEntry as LogEntry
from feature_pipeline.archive.logs.entries import (
    StoredEntry,
    chained,
    check_follows,
    decode_entry,
    misfits,
)
from feature_pipeline.archive.logs.entries import new_write_id as new_write_id
from feature_pipeline.archive.manifest import BlobRef
from feature_pipeline.archive.threads import map_threads
from feature_pipeline.digest import Digest
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.records import RecordBatch, Source
from feature_pipeline.release import HookRelease, ReleaseDocument

_CACHED_ENTRIES: Final = 1 << 17
"""More than the batches of a full dataset; about 2 KB each."""
_CACHED_BATCHES: Final = 64
_LIST_ALL_FROM: Final = 1_000
"""Logs from which on all are listed, a thousand keys a request, in place of one after another."""


class Verdict(StrEnum):
    """What a completion became in its batch's log."""

    CURRENT = "current"
    SUPERSEDED = "superseded"
    FAILED = "failed"


class FeatureEntry(LogEntry):
    """What became of one completion of a hook over a batch."""

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
        """What decides between two completions: the later release, then the later base."""
        return self.release_seq, self.base


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
    """A release as its log holds it."""

    release: ReleaseDocument
    digest: DigestField
    registered_at: InstantField = Field(default_factory=utc_now)

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.release_log(self.release.dataset, self.release.hook)


def release_disagreement(entry: FeatureEntry, registered: Digest) -> str | None:
    """Say how the entry's release differs from the one registered as its `release_seq`."""
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


E = TypeVar("E", bound=LogEntry)
T = TypeVar("T")

_entries: LruCache[StoredEntry[Any]] = LruCache(_CACHED_ENTRIES)
_batches: LruCache[RecordBatch] = LruCache(_CACHED_BATCHES)


def forget_read_entries() -> None:
    """Entries and batches are read anew, as by a process that begins. For measuring."""
    _entries.clear()
    _batches.clear()


def read_entries(store: BlobStore, prefix: str, model: type[E]) -> list[E]:
    """Every entry of one log, in order.

    Raises:
        CorruptDataError: An entry cannot be read, is not in its place or does not follow the one
            before it, or a number is missing.
    """
    return [stored.entry for stored in read_stored(store, prefix, model)]


def read_stored(store: BlobStore, prefix: str, model: type[E]) -> list[StoredEntry[E]]:
    """As `read_entries`, with the digests of the stored bytes."""
    infos = list(store.list_objects(prefix))
    return _read_all(store, {prefix: infos} if infos else {}, model).whole().get(prefix, [])


def _read_all(
    store: BlobStore, logs: Mapping[str, Sequence[ObjectInfo]], model: type[E]
) -> Readable[list[StoredEntry[E]]]:
    """Every entry of each of these logs."""
    flat = [info for infos in logs.values() for info in infos]
    read = iter(map_threads(lambda info: _try_read(store, info, model), flat))
    found: dict[str, list[StoredEntry[E]]] = {}
    damage: dict[str, Damage] = {}
    for name, infos in logs.items():
        entries, problem = _in_order(store, infos, [next(read) for _ in infos])
        if problem is None:
            found[name] = entries
        else:
            damage[name] = problem
    return Readable(found, damage)


def _in_order(
    store: BlobStore, infos: Sequence[ObjectInfo], read: Sequence[StoredEntry[E] | Damage]
) -> tuple[list[StoredEntry[E]], Damage | None]:
    """The entries of one log, or the first thing that is wrong with it."""
    entries: list[StoredEntry[E]] = []
    for info, one in zip(infos, read, strict=True):
        if isinstance(one, Damage):
            return [], one
        wanted = entries[-1].entry.seq + 1 if entries else layout.FIRST_SEQ
        if one.entry.seq != wanted:
            return [], _gap(store, layout.entry(one.entry.log_prefix, wanted), info.key)
        entries.append(one)
    for misfit, problem in misfits(entries):
        key = layout.entry(misfit.entry.log_prefix, misfit.entry.seq)
        error = CorruptDataError(f"log entry {key} in {store.identity}: {problem}")
        return [], Damage.of(key, error)
    return entries, None


def _link(store: BlobStore, before: StoredEntry[E], after: StoredEntry[E]) -> Damage | None:
    try:
        check_follows(before, after, store.identity)
    except CorruptDataError as error:
        return Damage.of(layout.entry(after.entry.log_prefix, after.entry.seq), error)
    return None


def _gap(store: BlobStore, absent: str, later: str) -> Damage:
    """What was current may be in an entry that is gone: an older one must not be taken for it."""
    message = f"the log has a gap: {absent} in {store.identity} is missing, and {later} is there"
    return Damage(absent, State.MISSING, CorruptDataError(message))


def _try_read(store: BlobStore, info: ObjectInfo, model: type[E]) -> StoredEntry[E] | Damage:
    try:
        return _read_entry(store, info, model)
    except (CorruptDataError, NotFoundError, StoreUnavailableError, NewerVersionError) as error:
        return Damage.of(info.key, error)


def _read_entry(store: BlobStore, info: ObjectInfo, model: type[E]) -> StoredEntry[E]:
    # The etag makes a log that was deleted and begun anew a different one.
    cache_key = (store.identity, info.key, info.etag)
    stored = _entries.get(cache_key)
    if stored is None or not isinstance(stored.entry, model):
        data = store.get(info.key).data
        stored = decode_entry(model, info.key, data, store.identity)
        _entries.put(cache_key, stored)
    return stored


def append(
    store: BlobStore,
    prefix: str,
    model: type[E],
    decide: Callable[[list[E]], E],
    known: Sequence[E] | None = None,
) -> tuple[E, bool]:
    """The log holds the entry that `decide` wants; with whether this call appended it.

    The entry is written in the newest version and names the one before it, whatever `decide` says
    of that.

    Args:
        store: Where the log is.
        prefix: The log's.
        model: The log's kind of entry.
        decide: Given the log's entries, one of them (nothing to append) or a new one whose `seq`
            follows the last. Asked again each time another writer was faster.
        known: The log's entries, if they were just read.

    Raises:
        CorruptDataError: What is in the place of the next entry does not follow the last.
        OutcomeUnknownError: The store did not answer and a read-back could not settle it.
    """
    entries = read_entries(store, prefix, model) if known is None else list(known)
    while True:
        decided = decide(entries)
        if any(decided is entry for entry in entries):
            return decided, False
        last = StoredEntry.of(entries[-1]) if entries else None
        appended = chained(decided, last)
        key = layout.entry(prefix, appended.seq)
        data = appended.encode()
        stored = create_or_read(store, key, data)
        if stored == data:
            return appended, True
        other = decode_entry(model, key, stored, store.identity)
        if last is not None:
            check_follows(last, other, store.identity)
        entries.append(other.entry)


def next_seq(entries: Sequence[LogEntry]) -> int:
    """The number that follows the last entry."""
    return entries[-1].seq + 1 if entries else layout.FIRST_SEQ


# Features


def read_log(store: BlobStore, dataset: str, hook: str, batch: str) -> list[FeatureEntry]:
    """Everything that became of a batch under a hook, in order; empty if nothing was accepted."""
    return read_entries(store, layout.feature_log(dataset, hook, batch), FeatureEntry)


def last_current(entries: Iterable[FeatureEntry]) -> FeatureEntry | None:
    """The entry whose artifact is the batch's current one."""
    current = None
    for entry in entries:
        if entry.verdict is Verdict.CURRENT:
            current = entry
    return current


def head(store: BlobStore, dataset: str, hook: str, batch: str) -> FeatureEntry | None:
    """The batch's current entry; None if no artifact is. Reads from the log's end."""
    infos = list(store.list_objects(layout.feature_log(dataset, hook, batch)))
    found = _last_current_of(store, infos)
    if isinstance(found, Damage):
        raise found.error
    return found


def heads(
    store: BlobStore, dataset: str, hook: str, batches: Collection[str] | None = None
) -> dict[str, FeatureEntry]:
    """The current entry of every batch that has one, by batch, in batch order.

    Entries that this process has seen are not read again. One damaged log raises: use
    `readable_heads` where batches are dealt with one by one.

    Args:
        store: The archive.
        dataset: The hook's.
        hook: Whose artifacts.
        batches: Look at these alone, which costs what they are, not what is archived.
    """
    return readable_heads(store, dataset, hook, batches).whole()


def readable_heads(
    store: BlobStore, dataset: str, hook: str, batches: Collection[str] | None = None
) -> Readable[FeatureEntry]:
    """As `heads`, with what is wrong with each log whose current entry cannot be told.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    logs = _logs_of(
        store,
        layout.feature_logs(dataset, hook),
        lambda batch: layout.feature_log(dataset, hook, batch),
        batches,
    )
    return _each(logs, lambda infos: _last_current_of(store, infos))


def _each(
    logs: Mapping[str, Sequence[ObjectInfo]],
    read: Callable[[Sequence[ObjectInfo]], T | Damage | None],
) -> Readable[T]:
    found: dict[str, T] = {}
    damage: dict[str, Damage] = {}
    for name, one in zip(logs, map_threads(read, logs.values()), strict=True):
        if isinstance(one, Damage):
            damage[name] = one
        elif one is not None:
            found[name] = one
    return Readable(found, damage)


def _logs_of(
    store: BlobStore, every: str, one: Callable[[str], str], names: Collection[str] | None
) -> dict[str, list[ObjectInfo]]:
    """What is in each of these logs that has an entry; in all below `every` if None."""
    if names is None:
        return _by_log(every, store.list_objects(every))
    if len(names) > _LIST_ALL_FROM:
        logs, wanted = _by_log(every, store.list_objects(every)), set(names)
        return {name: infos for name, infos in logs.items() if name in wanted}
    ordered = sorted(set(names))
    found = map_threads(lambda name: list(store.list_objects(one(name))), ordered)
    return {name: infos for name, infos in zip(ordered, found, strict=True) if infos}


def feature_logs(store: BlobStore, dataset: str, hook: str) -> dict[str, list[FeatureEntry]]:
    """Every entry of every batch under a hook, by batch: one listing.

    One damaged log raises: use `readable_feature_logs` where batches are dealt with one by one.
    """
    return readable_feature_logs(store, dataset, hook).whole()


def readable_feature_logs(
    store: BlobStore, dataset: str, hook: str, batches: Collection[str] | None = None
) -> Readable[list[FeatureEntry]]:
    """As `feature_logs`, with what is wrong with each log that cannot be read whole.

    Args:
        store: The archive.
        dataset: The hook's.
        hook: Whose logs.
        batches: Look at these alone, which costs what they are, not what is archived.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    logs = _logs_of(
        store,
        layout.feature_logs(dataset, hook),
        lambda batch: layout.feature_log(dataset, hook, batch),
        batches,
    )
    return _entries_of(_read_all(store, logs, FeatureEntry))


def _entries_of(read: Readable[list[StoredEntry[E]]]) -> Readable[list[E]]:
    found = {name: [stored.entry for stored in entries] for name, entries in read.found.items()}
    return Readable(found, read.damage)


def _by_log(every: str, infos: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """What is below `every`, by the folder that it is in."""
    logs: dict[str, list[ObjectInfo]] = {}
    for info in infos:
        logs.setdefault(info.key.removeprefix(every).rpartition("/")[0], []).append(info)
    return logs


def _last_current_of(store: BlobStore, infos: Sequence[ObjectInfo]) -> FeatureEntry | Damage | None:
    following: StoredEntry[FeatureEntry] | None = None
    for info in reversed(infos):
        stored = _try_read(store, info, FeatureEntry)
        if isinstance(stored, Damage):
            return stored
        if following is not None:
            if stored.entry.seq != following.entry.seq - 1:
                break
            if (problem := _link(store, stored, following)) is not None:
                return problem
        if stored.entry.verdict is Verdict.CURRENT:
            return stored.entry
        following = stored
    if following is not None and following.entry.seq != layout.FIRST_SEQ:
        prefix, seq = following.entry.log_prefix, following.entry.seq
        return _gap(store, layout.entry(prefix, seq - 1), layout.entry(prefix, seq))
    return None


# Batches


def batch_entries(store: BlobStore, dataset: str, batch: str) -> list[BatchEntry]:
    """The batch's log: one entry, and one more for every redaction."""
    return read_entries(store, layout.batch_log(dataset, batch), BatchEntry)


def batch_entry(store: BlobStore, dataset: str, batch: str) -> BatchEntry:
    """The batch's last entry.

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
    """The last entry of every batch of a dataset, by batch, in the order of keys.

    One damaged entry raises: use `readable_batches` where batches are dealt with one by one.

    Args:
        store: The archive.
        dataset: Whose batches.
        names: Look at these alone, which costs what they are, not what is archived.
    """
    return readable_batches(store, dataset, names).whole()


def readable_batches(
    store: BlobStore, dataset: str, names: Collection[str] | None = None
) -> Readable[BatchEntry]:
    """As `batches`, with what is wrong with each batch whose last entry cannot be read.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    logs = _logs_of(
        store,
        layout.batch_logs(dataset),
        lambda batch: layout.batch_log(dataset, batch),
        names,
    )

    def last(infos: Sequence[ObjectInfo]) -> BatchEntry | Damage:
        stored = _try_read(store, infos[-1], BatchEntry)
        return stored if isinstance(stored, Damage) else stored.entry

    return _each(logs, last)


def batch_logs(store: BlobStore, dataset: str) -> dict[str, list[BatchEntry]]:
    """Every entry of every batch of a dataset, by batch: one listing.

    One damaged log raises: use `readable_batch_logs` where batches are dealt with one by one.
    """
    return readable_batch_logs(store, dataset).whole()


def readable_batch_logs(store: BlobStore, dataset: str) -> Readable[list[BatchEntry]]:
    """As `batch_logs`, with what is wrong with each log that cannot be read whole.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    every = layout.batch_logs(dataset)
    return _entries_of(_read_all(store, _by_log(every, store.list_objects(every)), BatchEntry))


def read_batch(store: BlobStore, dataset: str, batch: str) -> RecordBatch:
    """The batch as it stands.

    Raises:
        NotFoundError: No such batch was accepted, or its blob is gone.
        CorruptDataError: Its blob holds other bytes.
    """
    return batch_of(store, batch_entry(store, dataset, batch))


def batch_of(store: BlobStore, entry: BatchEntry) -> RecordBatch:
    """Return the batch that the log entry names.

    Every reader that comes from the log reads batches by this function, so that an entry and a
    batch that do not belong together are damage and never data.

    Raises:
        NotFoundError: The blob is gone.
        CorruptDataError: It holds other bytes, or is not the batch of this entry.
    """
    batch = read_batch_blob(store, entry.digest)
    if problem := batch_disagreement(entry, batch):
        key = layout.entry(entry.log_prefix, entry.seq)
        raise CorruptDataError(f"log entry {key} in {store.identity}: {problem}")
    return batch


def batch_disagreement(entry: BatchEntry, batch: RecordBatch) -> str | None:
    """Say in what the entry and the batch that it names differ; None if they belong together."""
    compared = {
        "dataset": (entry.dataset, batch.dataset),
        "batch": (entry.batch, batch.key),
        "source": (entry.source, batch.document.source),
        "number of records": (entry.records, len(batch.records)),
    }
    for what, (ours, theirs) in compared.items():
        if ours != theirs:
            return f"its {what} is {ours}, that of its batch document {entry.digest} is {theirs}"
    return None


def read_batch_blob(store: BlobStore, digest: Digest) -> RecordBatch:
    """The batch with this digest, whether or not it was accepted."""
    cache_key = (store.identity, digest)
    batch = _batches.get(cache_key)
    if batch is None:
        batch = RecordBatch.decode(blobs.read_blob(store, digest))
        _batches.put(cache_key, batch)
    return batch


def datasets(store: BlobStore) -> list[str]:
    """Every dataset that has a batch or a release, sorted."""
    found = store.list_folders(layout.BATCH_LOGS) + store.list_folders(layout.RELEASE_LOGS)
    return sorted(set(found))


def hooks(store: BlobStore, dataset: str) -> list[str]:
    """Every hook with a release in the dataset, sorted."""
    return store.list_folders(f"{layout.RELEASE_LOGS}{dataset}/")


# Releases


def releases(store: BlobStore, dataset: str, hook: str) -> list[ReleaseEntry]:
    """The hook's releases in the order of registration."""
    entries = read_entries(store, layout.release_log(dataset, hook), StoredRelease)
    return [release_entry(entry) for entry in entries]


def release(store: BlobStore, dataset: str, hook: str, digest: Digest) -> ReleaseEntry:
    """The last registration of the release with this digest.

    Raises:
        NotFoundError: It was never registered.
    """
    for entry in reversed(releases(store, dataset, hook)):
        if entry.release.digest == digest:
            return entry
    raise NotFoundError(f"hook {hook!r} of dataset {dataset!r} has no release {digest}")


def register_release(
    store: BlobStore, release: HookRelease, code: Mapping[str, Path]
) -> ReleaseEntry:
    """The release is the last in its hook's log, and its code files are stored.

    Registering the last release again appends nothing; going back to an earlier one does.

    Args:
        store: Where to.
        release: What to register.
        code: Where each of the release's code files is, by name.

    Raises:
        InvalidInputError: A code file is not given.
        CorruptDataError: A code file is not what the release says.
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
    """The entry as a value.

    Raises:
        CorruptDataError: Its document is not what its digest says.
    """
    release = HookRelease.of(stored.release)
    if release.digest != stored.digest:
        raise CorruptDataError(
            f"release entry {stored.seq} of hook {stored.release.hook!r} says {stored.digest}, its"
            f" document is {release.digest}"
        )
    return ReleaseEntry(stored.seq, release, stored.registered_at, stored.write_id)
