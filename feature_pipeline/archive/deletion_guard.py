"""Protect a publisher's blobs against deletions until an entry names them."""

from collections.abc import Collection

from feature_pipeline.archive import blobs, deletion_lease
from feature_pipeline.archive.format.manifest import BlobRef
from feature_pipeline.archive.store.base import BlobStore


class Guard:
    """Detects deletions between a publisher's first blob and its log or inbox entry.

    Create it before anything is written or looked up. Without a deletion it costs two requests.

    Args:
        store: The archive.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._before = deletion_lease.read(store)

    def find_lost(self, refs: Collection[BlobRef]) -> list[BlobRef]:
        """Return those of `refs` that a concurrent deletion has taken.

        Call it once an entry of the inbox or of a log names them, and write the returned blobs
        again; from then on every deletion finds them named.

        Args:
            refs: Every blob that is named now, whether it was written or existed before.
        """
        digests = [ref.digest for ref in refs]
        now = deletion_lease.read(self._store)
        if now == self._before and (now is None or not now.may_delete(digests)):
            return []
        deletion_lease.wait(self._store, digests)
        return blobs.find_missing(self._store, refs)
