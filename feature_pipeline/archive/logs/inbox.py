"""The inbox and the quarantine: small documents that can be written without an orchestrator."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Self, TypeVar

from pydantic import Field, StrictInt

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import (
    DigestField,
    Document,
    InstantField,
    NewerVersionError,
    check_values,
    utc_now,
)
from feature_pipeline.archive.logs.damage import Damage, Readable
from feature_pipeline.archive.store.base import (
    BlobStore,
    ObjectInfo,
    create_or_read,
    get_small,
    read_beginning,
)
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.model.records import Source
from feature_pipeline.model.text.quoting import MOST_REASON, quoted
from feature_pipeline.parallel import map_threads

BATCH_ID: Final = "batch."
RUN_ID: Final = "run."
"""Prefix of an entry's id that gives its kind, so that batches can be accepted first."""
MOST_ENTRY_BYTES: Final = 64 << 10
"""The largest inbox object that is read: entries are small. A larger one is quarantined, cut to
this size.
"""
_MOST_RUN_ID: Final = 255


class CompletionStatus(StrEnum):
    """The end of a hook run."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    """It was cancelled; its result becomes history."""


class Completion(Document):
    """A finished hook run whose manifest and blobs are stored."""

    document_type: ClassVar[str] = "completion"
    newest: ClassVar[int] = 2
    added: ClassVar[dict[str, int]] = {"published_at": 2}
    most_bytes: ClassVar[int] = MOST_ENTRY_BYTES

    spec_version: int = 2
    id: str = Field(min_length=1)
    dataset: str
    hook: str
    batch: str
    release_seq: StrictInt
    release_digest: DigestField
    base: StrictInt = Field(
        ge=0, description="Seq of the batch's last log entry when planned, or 0."
    )
    manifest: DigestField
    status: CompletionStatus
    dagster_run_id: str | None = Field(None, max_length=_MOST_RUN_ID)
    published_at: InstantField | None = None
    """When its artifact was stored, by the publisher's clock. None if unknown, and in version 1:
    the time at which the inbox entry was written counts then.
    """

    @property
    def inbox_id(self) -> str:
        """The inbox entry's id. Two results of one run are two entries; none is lost."""
        return f"{RUN_ID}{self.id}.{self.manifest.hex[:16]}"

    def as_published(self, instant: datetime) -> Self:
        """Return the completion in the newest version, with this `published_at`."""
        return self.model_copy(update={"spec_version": self.newest, "published_at": instant})


class Submission(Document):
    """A batch whose blob and files are stored."""

    document_type: ClassVar[str] = "submission"
    most_bytes: ClassVar[int] = MOST_ENTRY_BYTES

    dataset: str
    batch: str
    digest: DigestField
    source: Source
    submitted_at: InstantField = Field(default_factory=utc_now)

    @property
    def inbox_id(self) -> str:
        """The inbox entry's id: equal for equal batches, however often submitted."""
        return f"{BATCH_ID}{self.dataset}.{self.batch}.{self.digest.hex[:16]}"


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """A waiting entry."""

    id: str
    modified_at: datetime
    """When it was written, by the store's clock."""
    content: Submission | Completion | None
    """None when it cannot be read; `problem` gives the reason."""
    problem: str | None = None
    is_newer: bool = False
    """Whether its version is newer than this code supports."""
    is_unread: bool = False
    """Whether the store did not return its bytes, so that nothing is known of it."""
    is_damaged: bool = False
    """Whether the bytes that arrived do not match the store's checksum. If they were altered on
    their way, they are right the next time.
    """


C = TypeVar("C", Submission, Completion)


def enqueue(store: BlobStore, content: C) -> C:
    """Write the entry to the inbox; return the stored entry, ours or an earlier one."""
    key = layout.inbox(content.inbox_id)
    stored = create_or_read(store, key, content.encode())
    return type(content).decode(stored, f"{key} in {store.identity}")


def waiting(store: BlobStore) -> list[InboxEntry]:
    """Return the waiting entries: batches before completions, each oldest first."""
    return read_waiting(store, list_waiting(store))


def list_waiting(store: BlobStore) -> list[ObjectInfo]:
    """List the waiting objects in the order of `waiting`, without reading them."""
    return sorted(
        store.list_objects(layout.INBOX),
        key=lambda i: (not is_batch(i), i.modified_at, i.key),
    )


def read_waiting(store: BlobStore, infos: Iterable[ObjectInfo]) -> list[InboxEntry]:
    """Read those entries that still wait, in the order given."""
    entries = map_threads(lambda info: _read(store, info), infos)
    return [entry for entry in entries if entry is not None]


def is_batch(info: ObjectInfo) -> bool:
    """Return whether the key is that of a submitted batch."""
    return info.key.removeprefix(layout.INBOX).startswith(BATCH_ID)


def _read(store: BlobStore, info: ObjectInfo) -> InboxEntry | None:
    entry_id = info.key.removeprefix(layout.INBOX)
    if info.size > MOST_ENTRY_BYTES:
        problem = f"{quoted(info.key)} {Completion.too_large(info.size)}"
        return InboxEntry(entry_id, info.modified_at, None, problem)
    try:
        data = store.get(info.key, info.size).data
    except NotFoundError:
        return None  # another process accepted and removed it since the listing
    except CorruptDataError as error:
        return InboxEntry(entry_id, info.modified_at, None, str(error), is_damaged=True)
    except StoreUnavailableError as error:
        # The store may refuse one object alone: a key of its own encrypts it, or it is in a
        # storage class that is not read at once.
        return InboxEntry(entry_id, info.modified_at, None, str(error), is_unread=True)
    return read_entry(entry_id, info.modified_at, data)


def read_entry(entry_id: str, modified_at: datetime, data: bytes) -> InboxEntry:
    """Parse `data` as an entry; if that fails, return an entry with the problem."""
    model = Submission if entry_id.startswith(BATCH_ID) else Completion
    try:
        content = model.decode(data, f"{layout.INBOX}{quoted(entry_id)}")
        check_values(content)
    except InvalidInputError as error:
        is_newer = isinstance(error, NewerVersionError)
        return InboxEntry(entry_id, modified_at, None, str(error), is_newer)
    if content.inbox_id != entry_id:
        problem = f"{layout.INBOX}{quoted(entry_id)} holds the entry {quoted(content.inbox_id)}"
        return InboxEntry(entry_id, modified_at, None, problem)
    return InboxEntry(entry_id, modified_at, content)


def remove(store: BlobStore, entry_id: str) -> None:
    """Remove the entry from the inbox."""
    store.delete(f"{layout.INBOX}{entry_id}")


class QuarantinedEntry(Document):
    """An entry that could not be accepted, unchanged, with the reason."""

    document_type: ClassVar[str] = "quarantined entry"
    most_bytes: ClassVar[int] = 1 << 20

    id: str
    reason: str
    entry: str
    """The inbox entry's text: the first `MOST_ENTRY_BYTES` of it."""
    left_at: InstantField
    quarantined_at: InstantField = Field(default_factory=utc_now)

    def inbox_entry(self) -> InboxEntry:
        """Return the entry as the inbox would read it."""
        return read_entry(self.id, self.left_at, self.entry.encode())


def quarantine(store: BlobStore, entry: InboxEntry, reason: str) -> QuarantinedEntry | None:
    """Write the entry with the reason to the quarantine and remove it from the inbox.

    Returns None if it no longer waits. Blobs that it names stay: the quarantine is one of the
    roots.
    """
    try:
        data = read_beginning(store, f"{layout.INBOX}{entry.id}", MOST_ENTRY_BYTES)
    except NotFoundError:
        return None
    document = QuarantinedEntry(
        id=entry.id,
        reason=quoted(reason, MOST_REASON),
        entry=data.decode(errors="backslashreplace"),
        left_at=entry.modified_at,
    )
    # The quarantine before the inbox: the entry is always in one of them, and can be read there.
    key = quarantine_key(entry.id)
    stored = create_or_read(store, key, document.encode())
    stored_entry = QuarantinedEntry.decode(stored, f"{key} in {store.identity}", CorruptDataError)
    remove(store, entry.id)
    return stored_entry


def quarantine_key(entry_id: str) -> str:
    """Return the key under which an inbox entry of this id is quarantined."""
    try:
        return layout.quarantine(entry_id)
    except InvalidInputError:
        # Every writer of the bucket can leave an object of any name in the inbox.
        return layout.quarantine(f"unnamed.{Digest.of(entry_id.encode()).hex}")


def quarantined(store: BlobStore) -> list[QuarantinedEntry]:
    """Return the whole quarantine, oldest first.

    A damaged entry raises: use `readable_quarantined` to process entries one by one.
    """
    return list(readable_quarantined(store).whole().values())


def readable_quarantined(store: BlobStore) -> Readable[QuarantinedEntry]:
    """Return the readable quarantined entries by id, oldest first, and the damage of the others.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    infos = list(store.list_objects(layout.QUARANTINE))
    entries: list[QuarantinedEntry] = []
    damage: dict[str, Damage] = {}
    for info, entry in zip(
        infos, map_threads(lambda info: _try_quarantined(store, info.key), infos), strict=True
    ):
        if isinstance(entry, Damage):
            damage[layout.last_part(info.key)] = entry
        elif entry is not None:
            entries.append(entry)
    ordered = sorted(entries, key=lambda entry: (entry.quarantined_at, entry.id))
    return Readable({entry.id: entry for entry in ordered}, damage)


def _try_quarantined(store: BlobStore, key: str) -> QuarantinedEntry | Damage | None:
    try:
        return read_quarantined(store, key)
    except NotFoundError:
        return None  # requeued or discarded since the listing
    except (CorruptDataError, InvalidInputError, StoreUnavailableError) as error:
        return Damage.of(key, error)


def read_quarantined(store: BlobStore, key: str) -> QuarantinedEntry:
    """Return the document of a quarantined entry.

    Raises:
        InvalidInputError: It is not one; the message names its key.
    """
    stored_entry = get_small(store, key, QuarantinedEntry.most_bytes)
    return decode_quarantined(stored_entry.data, key, f"{key} in {store.identity}")


def decode_quarantined(data: bytes, key: str, where: str) -> QuarantinedEntry:
    """Return the document stored under `key`, after checking that this is its place.

    Raises:
        InvalidInputError: It is none, or that of another entry.
    """
    document = QuarantinedEntry.decode(data, where)
    if (place := quarantine_key(document.id)) != key:
        raise InvalidInputError(f"quarantined entry {where} says that it is {quoted(place)}")
    return document


def requeue(store: BlobStore, entry_ids: Iterable[str]) -> None:
    """Move the entries back to the inbox unchanged.

    Raises:
        NotFoundError: An entry is not in the quarantine.
    """
    for entry_id in entry_ids:
        key = quarantine_key(entry_id)
        stored_entry = read_quarantined(store, key)
        data = stored_entry.entry.encode()
        content = stored_entry.inbox_entry().content
        if isinstance(content, Completion) and content.published_at is None:
            data = content.as_published(
                stored_entry.left_at
            ).encode()  # what it counted as until now
        create_or_read(store, f"{layout.INBOX}{entry_id}", data)
        store.delete(key)


def discard(store: BlobStore, entry_ids: Iterable[str]) -> None:
    """Delete the entries from the quarantine; blobs that only they name may be collected.

    Raises:
        NotFoundError: An entry is not in the quarantine.
    """
    for entry_id in entry_ids:
        key = quarantine_key(entry_id)
        if store.stat(key) is None:
            raise NotFoundError(f"entry {entry_id!r} is not in the quarantine")
        store.delete(key)
