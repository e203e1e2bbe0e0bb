"""The append-only logs: batches, releases, what became of each completion.

What belongs here: entries, reading them, and appending one. Creating an entry is the commit:
whoever creates number n+1 has decided what follows n. Not here: which entry follows
(`accept`, `tombstones`), artifacts (`manifest`).

Entries never change, so they are read once per process. A listing that races a creation may miss
it; whoever appends finds out by failing to create the next number.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, Final, TypeVar
from uuid import uuid4

from pydantic import Field

from feature_pipeline.archive import blobs, layout
from feature_pipeline.archive.blob_store import BlobStore, ObjectInfo, create_or_read
from feature_pipeline.archive.cache import LruCache
from feature_pipeline.archive.documents import (
    DigestField,
    Document,
    InstantField,
    utc_now,
)
from feature_pipeline.archive.threads import map_threads
from feature_pipeline.digest import Digest
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError
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


def new_write_id() -> str:
    """Tells this writer's entry from an equal one of somebody else."""
    return uuid4().hex


class LogEntry(Document):
    """An entry of any log. `seq` is also in its key."""

    what: ClassVar[str] = "log entry"

    seq: int = Field(ge=layout.FIRST_SEQ)
    write_id: str = Field(default_factory=new_write_id)


class FeatureEntry(LogEntry):
    """What became of one completion of a hook over a batch."""

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
    def order(self) -> tuple[datetime, str]:
        """Sorts batches by submission."""
        return self.submitted_at, self.batch


class StoredRelease(LogEntry):
    """A release as its log holds it."""

    release: ReleaseDocument
    digest: DigestField
    registered_at: InstantField = Field(default_factory=utc_now)


@dataclass(frozen=True, slots=True)
class ReleaseEntry:
    """A registered release; `seq` is its order among the hook's releases."""

    seq: int
    release: HookRelease
    registered_at: datetime = field(default_factory=utc_now)
    write_id: str = ""


E = TypeVar("E", bound=LogEntry)

_entries: LruCache[LogEntry] = LruCache(_CACHED_ENTRIES)
_batches: LruCache[RecordBatch] = LruCache(_CACHED_BATCHES)


def forget_read_entries() -> None:
    """Entries and batches are read anew, as by a process that begins. For measuring."""
    _entries.clear()
    _batches.clear()


def read_entries(store: BlobStore, prefix: str, model: type[E]) -> list[E]:
    """Every entry of one log, in order.

    Raises:
        CorruptDataError: An entry cannot be read, or a number is missing.
    """
    infos = list(store.list_objects(prefix))
    _check_gapless(store, prefix, infos)
    return map_threads(lambda info: _read_entry(store, info, model), infos)


def _check_gapless(store: BlobStore, prefix: str, infos: Sequence[ObjectInfo]) -> None:
    found = [layout.parse_entry(info.key).seq for info in infos]
    if found != list(range(layout.FIRST_SEQ, layout.FIRST_SEQ + len(found))):
        raise CorruptDataError(f"log {prefix} in {store.identity} has a gap: entries {found[:20]}")


def _read_entry(store: BlobStore, info: ObjectInfo, model: type[E]) -> E:
    # The etag makes a log that was deleted and begun anew a different one.
    cache_key = (store.identity, info.key, info.etag)
    entry = _entries.get(cache_key)
    if not isinstance(entry, model):
        entry = _decode(store, info.key, store.get(info.key).data, model)
        _entries.put(cache_key, entry)
    return entry


def _decode(store: BlobStore, key: str, data: bytes, model: type[E]) -> E:
    entry = model.decode(data, f"{key} in {store.identity}", broken=CorruptDataError)
    if entry.seq != layout.parse_entry(key).seq:
        raise CorruptDataError(f"log entry {key} in {store.identity} says that it is {entry.seq}")
    return entry


def append(
    store: BlobStore,
    prefix: str,
    model: type[E],
    decide: Callable[[list[E]], E],
    known: Sequence[E] | None = None,
) -> tuple[E, bool]:
    """The log holds the entry that `decide` wants; with whether this call appended it.

    Args:
        store: Where the log is.
        prefix: The log's.
        model: The log's kind of entry.
        decide: Given the log's entries, one of them (nothing to append) or a new one whose `seq`
            follows the last. Asked again each time another writer was faster.
        known: The log's entries, if they were just read.

    Raises:
        OutcomeUnknownError: The store did not answer and a read-back could not settle it.
    """
    entries = read_entries(store, prefix, model) if known is None else list(known)
    while True:
        decided = decide(entries)
        if any(decided is entry for entry in entries):
            return decided, False
        key = layout.entry(prefix, decided.seq)
        data = decided.encode()
        stored = create_or_read(store, key, data)
        if stored == data:
            return decided, True
        entries.append(_decode(store, key, stored, model))


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
    return _last_current_of(
        store, list(store.list_objects(layout.feature_log(dataset, hook, batch)))
    )


def heads(
    store: BlobStore, dataset: str, hook: str, batches: Collection[str] | None = None
) -> dict[str, FeatureEntry]:
    """The current entry of every batch that has one, by batch, in batch order.

    Entries that this process has seen are not read again.

    Args:
        store: The archive.
        dataset: The hook's.
        hook: Whose artifacts.
        batches: Look at these alone, which costs what they are, not what is archived.
    """
    logs = _logs_of(
        store,
        layout.feature_logs(dataset, hook),
        lambda batch: layout.feature_log(dataset, hook, batch),
        batches,
    )
    found = map_threads(lambda infos: _last_current_of(store, infos), logs.values())
    return {batch: entry for batch, entry in zip(logs, found, strict=True) if entry is not None}


def _logs_of(
    store: BlobStore, every: str, one: Callable[[str], str], names: Collection[str] | None
) -> dict[str, list[ObjectInfo]]:
    """What is in each of these logs that has an entry; in all below `every` if None."""
    if names is None:
        return _by_log(store.list_objects(every))
    if len(names) > _LIST_ALL_FROM:
        logs, wanted = _by_log(store.list_objects(every)), set(names)
        return {name: infos for name, infos in logs.items() if name in wanted}
    ordered = sorted(set(names))
    found = map_threads(lambda name: list(store.list_objects(one(name))), ordered)
    return {name: infos for name, infos in zip(ordered, found, strict=True) if infos}


def feature_logs(store: BlobStore, dataset: str, hook: str) -> dict[str, list[FeatureEntry]]:
    """Every entry of every batch under a hook, by batch: one listing."""
    return _read_logs(store, layout.feature_logs(dataset, hook), FeatureEntry)


def _read_logs(store: BlobStore, prefix: str, model: type[E]) -> dict[str, list[E]]:
    logs = _by_log(store.list_objects(prefix))
    for infos in logs.values():
        _check_gapless(store, prefix, infos)
    flat = [info for infos in logs.values() for info in infos]
    found = iter(map_threads(lambda info: _read_entry(store, info, model), flat))
    return {name: [next(found) for _ in infos] for name, infos in logs.items()}


def _by_log(infos: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    logs: dict[str, list[ObjectInfo]] = {}
    for info in infos:
        logs.setdefault(layout.parse_entry(info.key).name, []).append(info)
    return logs


def _last_current_of(store: BlobStore, infos: Sequence[ObjectInfo]) -> FeatureEntry | None:
    following = None
    for info in reversed(infos):
        seq = layout.parse_entry(info.key).seq
        if following is not None and seq != following - 1:
            raise CorruptDataError(_gap(store, info.key, following))
        entry = _read_entry(store, info, FeatureEntry)
        if entry.verdict is Verdict.CURRENT:
            return entry
        following = seq
    if following is not None and following != layout.FIRST_SEQ:
        raise CorruptDataError(_gap(store, infos[0].key, following))
    return None


def _gap(store: BlobStore, key: str, following: int) -> str:
    """What was current may be in an entry that is gone: an older one must not be taken for it."""
    return f"the log of {key} in {store.identity} has a gap before entry {following}"


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

    Args:
        store: The archive.
        dataset: Whose batches.
        names: Look at these alone, which costs what they are, not what is archived.
    """
    logs = _logs_of(
        store,
        layout.batch_logs(dataset),
        lambda batch: layout.batch_log(dataset, batch),
        names,
    )
    last = map_threads(lambda infos: _read_entry(store, infos[-1], BatchEntry), logs.values())
    return dict(zip(logs, last, strict=True))


def batch_logs(store: BlobStore, dataset: str) -> dict[str, list[BatchEntry]]:
    """Every entry of every batch of a dataset, by batch: one listing."""
    return _read_logs(store, layout.batch_logs(dataset), BatchEntry)


def read_batch(store: BlobStore, dataset: str, batch: str) -> RecordBatch:
    """The batch as it stands.

    Raises:
        NotFoundError: No such batch was accepted, or its blob is gone.
        CorruptDataError: Its blob holds other bytes.
    """
    return read_batch_blob(store, batch_entry(store, dataset, batch).digest)


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
    map_threads(
        lambda file: blobs.put_file(store, code[file.name], expected=file.blob), document.code
    )

    def decide(entries: list[StoredRelease]) -> StoredRelease:
        if entries and entries[-1].digest == release.digest:
            return entries[-1]
        return StoredRelease(seq=next_seq(entries), release=document, digest=release.digest)

    entry, _ = append(store, prefix, StoredRelease, decide, known)
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
