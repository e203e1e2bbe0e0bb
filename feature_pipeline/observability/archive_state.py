"""What waits, what was refused, and what is stored, as samples."""

from collections import Counter
from datetime import datetime
from typing import Final

from feature_pipeline.archive import accept
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.logs.inbox import (
    Completion,
    InboxEntry,
    Submission,
    readable_quarantined,
)
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.instruments import (
    ARCHIVE_OBJECTS,
    ARCHIVE_SIZE,
    INBOX_AGE,
    INBOX_ENTRIES,
    QUARANTINE_AGE,
    QUARANTINE_ENTRIES,
)
from feature_pipeline.observability.samples import Sample, sample

_ENTRY_KINDS: Final = ("batch", "completion", "unreadable")
_OBJECT_KINDS: Final = {
    layout.BLOBS: "blobs",
    layout.FEATURE_LOGS: "feature_logs",
    layout.LOGS: "other_logs",
    layout.CENSUS: "census",
    layout.INBOX: "inbox",
    layout.QUARANTINE: "quarantine",
    layout.ANSWERS: "answers",
    layout.UPLOADS: "uploads",
}
"""By the beginning of a key, the longest first."""
_OTHER: Final = "other"


def waiting_samples(store: BlobStore, now: datetime) -> list[Sample]:
    """Read the inbox and the quarantine.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    waiting = accept.waiting(store)
    readable = readable_quarantined(store)
    entries = [entry.inbox_entry() for entry in readable.intact.values()]
    entered = [entry.quarantined_at for entry in readable.intact.values()]
    inbox = Counter(_kind(entry) for entry in waiting)
    quarantine = Counter(_kind(entry) for entry in entries)
    quarantine["unreadable"] += len(readable.damage)
    return [
        *(sample(INBOX_ENTRIES, inbox[kind], kind=kind) for kind in _ENTRY_KINDS),
        *(sample(QUARANTINE_ENTRIES, quarantine[kind], kind=kind) for kind in _ENTRY_KINDS),
        sample(INBOX_AGE, _age(now, [entry.modified_at for entry in waiting])),
        sample(QUARANTINE_AGE, _age(now, entered)),
    ]


def object_samples(store: BlobStore) -> list[Sample]:
    """Return count and size of all stored objects, by kind; one listing request per 1,000.

    Raises:
        StoreUnavailableError: The store could not list objects.
    """
    objects: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for info in store.list_objects(""):
        kind = next((k for begin, k in _OBJECT_KINDS.items() if info.key.startswith(begin)), _OTHER)
        objects[kind] += 1
        sizes[kind] += info.size
    kinds = (*_OBJECT_KINDS.values(), _OTHER)
    return [
        *(sample(ARCHIVE_OBJECTS, objects[kind], kind=kind) for kind in kinds),
        *(sample(ARCHIVE_SIZE, sizes[kind], kind=kind) for kind in kinds),
    ]


def _kind(entry: InboxEntry) -> str:
    if isinstance(entry.content, Submission):
        return "batch"
    return "completion" if isinstance(entry.content, Completion) else "unreadable"


def _age(now: datetime, instants: list[datetime]) -> float:
    return max((now - min(instants)).total_seconds(), 0.0) if instants else 0.0
