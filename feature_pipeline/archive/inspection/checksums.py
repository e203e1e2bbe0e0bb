"""Restore the checksums that the store keeps, for objects that were restored without them.

A tool that copies or restores objects may drop the SHA-256 that the archive sends with each. The
bytes are right all the same, but without the checksum publishers must read a blob to trust it.
"""

import tempfile
from collections.abc import Collection
from pathlib import Path

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.log_kinds import kind_of
from feature_pipeline.archive.logs.entries import decode_entry
from feature_pipeline.archive.store.base import JSON_MEDIA_TYPE, BlobStore
from feature_pipeline.errors import CorruptDataError, NotFoundError, OutcomeUnknownError
from feature_pipeline.parallel import WORKERS, map_threads


def restore_checksums(store: BlobStore, keys: Collection[str], workers: int = WORKERS) -> int:
    """Rewrite these blobs and log entries unchanged; return how many were rewritten.

    Inbox and quarantine entries are left alone, because their age is that of the object. An object
    that changes meanwhile is left as it is.

    Raises:
        StoreUnavailableError: The store refused.
    """
    return sum(map_threads(lambda key: _restore(store, key), sorted(keys), workers))


def _restore(store: BlobStore, key: str) -> bool:
    try:
        if key.startswith(layout.BLOBS):
            return _restore_blob(store, key)
        if key.startswith(layout.LOGS):
            stored = store.get(key)
            model, _ = kind_of(key)
            decode_entry(model, key, stored.data, store.identity)
            return store.replace(key, stored.data, stored.info.etag, JSON_MEDIA_TYPE)
    except (NotFoundError, CorruptDataError, OutcomeUnknownError):
        pass  # it is not what was verified; the next verification reports it
    return False


def _restore_blob(store: BlobStore, key: str) -> bool:
    digest, info = layout.parse_blob(key), store.stat(key)
    if info is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blob"
        blobs.download_blob(store, digest, path, info.size)
        return store.replace_file(key, path, digest, info.size, info.etag)
