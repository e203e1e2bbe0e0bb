"""The lease for deleting blobs, which lets publishers detect concurrent deletions.

Stores delete without a condition that distinguishes a blob from an equal one written a moment ago.
So a deletion first takes the lease with the blobs to delete, then checks which of them are named,
then deletes. A publisher reads the lease before its first blob and again after its blobs are named.
Whichever comes first, one of the two sees the other.

The object remains when a lease is over, so that a publisher sees that there was one.

All times are the store's, and the store refuses a deletion that arrives after the lease: no
machine's clock, slow request or stalled process can break the order.
"""

import threading
import time
from collections.abc import Callable, Collection
from datetime import datetime, timedelta
from typing import ClassVar, Final, Self
from uuid import uuid4

from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import (
    DigestField,
    Document,
    InstantField,
    instant_text,
)
from feature_pipeline.archive.store.base import (
    JSON_MEDIA_TYPE,
    BlobStore,
    StoredObject,
    create_or_read,
)
from feature_pipeline.errors import (
    ConflictError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest

LEASE: Final = timedelta(minutes=3)
MARGIN: Final = timedelta(seconds=15)
"""How long others wait after an expired lease: a store has many machines, whose clocks differ by
less.
"""

_FIRST_BACKOFF_SECONDS: Final = 0.1
_LONGEST_BACKOFF_SECONDS: Final = 2.0
_MOST_OF: Final = 0.8
"""Fraction of a lease after which no further deletion is begun, since it could be refused."""


class LeaseDocument(Document):
    """Who may delete which blobs, and until when. A working object, not part of the format."""

    document_type: ClassVar[str] = "deletion lease"

    holder: str = Field(default_factory=lambda: uuid4().hex)
    number: int = 0
    """How often this holder has written it: equal bytes mean that nothing happened between."""
    until: InstantField
    """By the store's clock."""
    condemned: tuple[DigestField, ...] = ()
    """Blobs that may be deleted under it."""
    is_over: bool = False
    """Whether every deletion under it has ended."""

    def may_delete(self, digests: Collection[Digest]) -> bool:
        """Return whether one of these may be deleted under this lease."""
        return not self.is_over and not set(self.condemned).isdisjoint(digests)


def read(store: BlobStore) -> LeaseDocument | None:
    """Return the current lease; None if there never was one."""
    stored = _read(store)
    return None if stored is None else _decode(stored)


def wait(store: BlobStore, digests: Collection[Digest]) -> None:
    """Wait until no deletion decided before this call can still delete one of these."""
    first = read(store)
    if first is None or not first.may_delete(digests):
        return
    backoff = _FIRST_BACKOFF_SECONDS
    while read(store) == first and store.now() < first.until + MARGIN:
        time.sleep(backoff)
        backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)


class DeletionLease:
    """A lease held by this process."""

    def __init__(self, store: BlobStore, document: LeaseDocument, began: float) -> None:
        self._store = store
        self._document = document
        self._began = began
        self._length = LEASE
        self._is_answered = True
        self._lock = threading.Lock()

    @classmethod
    def acquire(cls, store: BlobStore) -> Self:
        """Take the lease.

        Raises:
            ConflictError: Another deletion holds it.
            OutcomeUnknownError: The store did not answer; the lease, if taken, expires.
        """
        began = time.monotonic()
        now = store.now()
        document = LeaseDocument(until=now + LEASE)
        data = document.encode()
        if create_or_read(store, layout.GC_LEASE, data) != data:
            stored = store.get(layout.GC_LEASE)
            lease = _decode(stored)
            if not lease.is_over and now < lease.until + MARGIN:
                raise ConflictError(
                    f"another deletion is under way in {store.identity}, or ended without"
                    f" releasing the lease, which lasts until {instant_text(lease.until)}: run this"
                    " one again later"
                )
            if not _replace(store, data, stored.info.etag):
                raise ConflictError(
                    f"another deletion has just begun in {store.identity}: run this one again later"
                )
        return cls(store, document, began)

    @classmethod
    def acquire_when_free(cls, store: BlobStore, say: Callable[[str], None]) -> Self:
        """Take the lease, after waiting for another deletion to end.

        Args:
            store: The archive.
            say: Called once with the reason for waiting.
        """
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                return cls.acquire(store)
            except ConflictError as error:
                # One that died holds it for a few minutes at most.
                if backoff == _FIRST_BACKOFF_SECONDS:
                    say(f"waiting: {error}")
                time.sleep(backoff)
                backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)

    def condemn(self, digests: Collection[Digest], at_least: timedelta = LEASE) -> None:
        """Extend the lease for these blobs alone. Check which are named afterwards, then delete.

        Every earlier decision has been carried out or dropped by then: publishers rely on that.

        Args:
            digests: What may be deleted from now on.
            at_least: How long checking and deleting may take.

        Raises:
            ConflictError: Another deletion took the lease.
        """
        while not self._is_answered and self._store.now() <= self._document.until:
            time.sleep(_LONGEST_BACKOFF_SECONDS)  # a request without an answer may still arrive
        began = time.monotonic()
        self._length = max(LEASE, at_least)
        self._write(
            {
                "until": self._store.now() + self._length,
                "condemned": tuple(sorted(digests)),
            }
        )
        self._began = began
        self._is_answered = True

    @property
    def has_time(self) -> bool:
        """Whether there is time for another deletion. The store refuses one that is too late."""
        return time.monotonic() - self._began < _MOST_OF * self._length.total_seconds()

    @property
    def until(self) -> datetime:
        """Until when deletions under it may arrive, by the store's clock."""
        return self._document.until

    def delete(self, digest: Digest) -> None:
        """Delete a condemned blob.

        Raises:
            StoreUnavailableError: It did not happen; the lease may be over.
            OutcomeUnknownError: It may happen until the lease is over.
        """
        is_answered = False
        try:
            is_answered = self._store.delete_before(layout.blob(digest), self.until)
        except StoreUnavailableError:
            is_answered = True
            raise
        finally:
            with self._lock:
                self._is_answered = self._is_answered and is_answered

    def end(self) -> None:
        """Release the lease, so that waiting publishers continue.

        If a deletion had no answer, it may still arrive: the lease then expires by itself.
        """
        if self._is_answered:
            self._write({"is_over": True, "condemned": ()})

    def _write(self, update: dict[str, object]) -> None:
        stored = _read(self._store)
        if stored is None or stored.data != self._document.encode():
            raise self._taken_over()
        document = self._document.model_copy(update={"number": self._document.number + 1, **update})
        if not _replace(self._store, document.encode(), stored.info.etag):
            raise self._taken_over()
        self._document = document

    def _taken_over(self) -> ConflictError:
        return ConflictError(
            f"the lease {layout.GC_LEASE} in {self._store.identity} ended, and another deletion"
            " took it: run this one again"
        )


def _replace(store: BlobStore, data: bytes, etag: str) -> bool:
    """Write `data` as the lease; return whether it is stored. No two writers' bytes are equal."""
    unknown: OutcomeUnknownError | None = None
    try:
        if store.replace(layout.GC_LEASE, data, etag, JSON_MEDIA_TYPE):
            return True
    except OutcomeUnknownError as error:
        unknown = error
    # A refusal may be of a second attempt, whose first one succeeded without an answer.
    stored = _read(store)
    if stored is not None and stored.data == data:
        return True
    if unknown is not None and stored is not None and stored.info.etag == etag:
        raise unknown
    return False


def _decode(stored: StoredObject) -> LeaseDocument:
    return LeaseDocument.decode(stored.data, layout.GC_LEASE)


def _read(store: BlobStore) -> StoredObject | None:
    try:
        return store.get(layout.GC_LEASE)
    except NotFoundError:
        return None
