"""Blobs that are written first and named afterwards are there once they are named.

What belongs here: what a publisher does about deletions beside it. Not here: the lease under which
blobs are deleted (`lease`), what may be deleted (`maintenance.deletion`).
"""

from collections.abc import Collection

from feature_pipeline.archive import blobs, lease
from feature_pipeline.archive.format.manifest import BlobRef
from feature_pipeline.archive.store.base import BlobStore


class Guard:
    """Looks for deletions between two moments: before the first blob, and after they are named.

    Make one before anything is written or looked for. Without a deletion it costs two requests.

    Args:
        store: The archive.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._before = lease.read(store)

    def find_lost(self, refs: Collection[BlobRef]) -> list[BlobRef]:
        """Find those of `refs` that a deletion beside this publisher has taken.

        Call it once something names them: an entry of the inbox or of a log. Write those again that
        it gives; from then on every deletion finds them named.

        Args:
            refs: Every blob that is named now, whether it was written or was there before.
        """
        digests = [ref.digest for ref in refs]
        now = lease.read(self._store)
        if now == self._before and (now is None or not now.may_delete(digests)):
            return []
        lease.wait(self._store, digests)
        return blobs.find_missing(self._store, refs)
