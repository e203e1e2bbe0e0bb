"""The lease under which a collection deletes, so that publishers know when to look again.

What belongs here: the object `gc/sweep`, taking, renewing and outlasting it. Not here: what may be
deleted (`gc`).

Stores delete without a condition, and an object written again with the same bytes has the same
etag. So a collection cannot delete "this blob unless somebody wrote it meanwhile". Instead it
takes the lease, then looks, then deletes; a publisher writes an old blob again, then waits until
the lease that it finds is renewed or over, then looks. Whichever came first, one of the two sees
the other.
"""

import time
from datetime import timedelta
from typing import ClassVar, Final, Self
from uuid import uuid4

from pydantic import Field

from feature_pipeline.archive import layout
from feature_pipeline.archive.blob_store import (
    JSON_MEDIA_TYPE,
    BlobStore,
    StoredObject,
    create_or_read,
)
from feature_pipeline.archive.documents import Document, InstantField, instant_text, utc_now
from feature_pipeline.errors import ConflictError, NotFoundError

LEASE: Final = timedelta(minutes=3)
MARGIN: Final = timedelta(minutes=1)
"""Deleting stops so long before the lease ends, and others wait so long after it: clocks differ,
and a request may hang."""

_POLL_SECONDS: Final = 0.1


class SweepDocument(Document):
    """Who may delete, and until when."""

    what: ClassVar[str] = "sweep lease"

    holder: str = Field(default_factory=lambda: uuid4().hex)
    until: InstantField


class Sweep:
    """A lease that is held."""

    def __init__(self, store: BlobStore, document: SweepDocument) -> None:
        self._store = store
        self._document = document

    @classmethod
    def take(cls, store: BlobStore) -> Self:
        """The lease is ours.

        Raises:
            ConflictError: Another collection holds it.
            OutcomeUnknownError: The store did not answer; the lease, if taken, ends by itself.
        """
        document = SweepDocument(until=utc_now() + LEASE)
        data = document.encode()
        if create_or_read(store, layout.GC_SWEEP, data) != data:
            held = _read(store)
            if held is not None:
                until = _decode(held).until
                if utc_now() < until + MARGIN:
                    raise ConflictError(
                        f"another collection may delete in {store.identity} until"
                        f" {instant_text(until)}: run this one again later"
                    )
            if held is None or not store.replace(layout.GC_SWEEP, data, held.info.etag):
                raise ConflictError(f"another collection has just ended or begun: {store.identity}")
        return cls(store, document)

    def renew(self) -> None:
        """The lease is ours for another `LEASE`. Call it before looking at what is to be deleted.

        Between two renewals whatever was looked at was also deleted: others rely on that.

        Raises:
            ConflictError: It had ended, or somebody else took it.
        """
        held = _read(self._store)
        if held is None or held.data != self._document.encode() or not self.is_safe:
            raise ConflictError(
                f"the lease {layout.GC_SWEEP} in {self._store.identity} ended, or was taken by"
                " another collection: run this one again"
            )
        document = self._document.model_copy(update={"until": utc_now() + LEASE})
        if not self._store.replace(
            layout.GC_SWEEP, document.encode(), held.info.etag, JSON_MEDIA_TYPE
        ):
            raise ConflictError(f"the lease {layout.GC_SWEEP} was taken by another collection")
        self._document = document

    @property
    def is_safe(self) -> bool:
        """Whether a request that begins now ends while the lease is ours."""
        return utc_now() < self._document.until - MARGIN

    def end(self) -> None:
        """The lease is given back, if it is still ours; publishers that wait go on."""
        held = _read(self._store)
        if held is not None and held.data == self._document.encode() and self.is_safe:
            self._store.delete(layout.GC_SWEEP)


def outlast(store: BlobStore) -> None:
    """Whatever a collection had looked at before this call, it has deleted or left alone by now."""
    first = _read(store)
    held = first
    while (
        first is not None
        and held is not None
        and held.data == first.data
        and utc_now() < _decode(held).until + MARGIN
    ):
        time.sleep(_POLL_SECONDS)
        held = _read(store)


def _decode(held: StoredObject) -> SweepDocument:
    return SweepDocument.decode(held.data, layout.GC_SWEEP)


def _read(store: BlobStore) -> StoredObject | None:
    try:
        return store.get(layout.GC_SWEEP)
    except NotFoundError:
        return None
