"""Blobs: bytes stored once under their digest, checked on every read, restored when damaged."""

import contextlib
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeVar

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import utc_now
from feature_pipeline.archive.format.manifest import BlobRef
from feature_pipeline.archive.store.base import (
    BYTES_MEDIA_TYPE,
    BlobStore,
    ObjectInfo,
    ObjectStream,
    open_unchanged,
)
from feature_pipeline.errors import (
    CorruptDataError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.parallel import WORKERS, map_threads

T = TypeVar("T")

logger = logging.getLogger(__name__)

GRACE: Final = timedelta(days=7)
"""How long an orphaned blob is left alone. A publisher rewrites a blob older than half of it, so
that no blob it relies on can be between the two marks of a collection.
"""

_WRITE_ATTEMPTS: Final = 6
_DOWNLOAD_ATTEMPTS: Final = 3


@dataclass(frozen=True, slots=True)
class BlobWrite:
    """The result of writing a blob; in every case it is stored now."""

    ref: BlobRef
    is_new: bool
    """Whether this call stored its bytes under a key that had no object."""
    is_restored: bool = False
    """Whether other bytes were stored under its name and were replaced."""


def put_blob(store: BlobStore, data: bytes, media_type: str = BYTES_MEDIA_TYPE) -> BlobRef:
    """Store `data` under its digest."""
    return write_blob(store, data, media_type).ref


def write_blob(
    store: BlobStore,
    data: bytes,
    media_type: str = BYTES_MEDIA_TYPE,
    digest: Digest | None = None,
) -> BlobWrite:
    """Store `data` as `put_blob` does, and return what was stored under its name before.

    Args:
        digest: The digest of `data`, if the caller has computed it.
    """
    digest = digest or Digest.of(data)
    key = layout.blob(digest)
    ref = BlobRef(digest=digest, size=len(data), media_type=media_type)
    # Hooks leave empty files all the time: this blob nearly always exists, so it is asked for.
    if not data and _is_fresh(store, ref):
        return BlobWrite(ref, is_new=False)
    return _write(
        store,
        ref,
        create=lambda: store.create(key, data, media_type),
        replace=lambda etag: store.replace(key, data, etag, media_type),
        path=None,
    )


def put_file(
    store: BlobStore,
    path: Path,
    media_type: str = BYTES_MEDIA_TYPE,
    expected: Digest | None = None,
) -> BlobRef:
    """Store the file's bytes under their digest, reading it twice in bounded memory.

    Raises:
        CorruptDataError: The file is not `expected`, or changed while it was read.
    """
    return write_file(store, path, media_type, expected).ref


def write_file(
    store: BlobStore,
    path: Path,
    media_type: str = BYTES_MEDIA_TYPE,
    expected: Digest | None = None,
) -> BlobWrite:
    """Store the file as `put_file` does, and return what was stored under its name before."""
    with open_unchanged(path) as file:
        digest, size = digest_stream(file)
    if expected is not None and digest != expected:
        raise CorruptDataError(f"file {path} has the digest {digest}, expected {expected}")
    key = layout.blob(digest)
    return _write(
        store,
        BlobRef(digest=digest, size=size, media_type=media_type),
        create=lambda: store.create_file(key, path, digest, size),
        replace=lambda etag: store.replace_file(key, path, digest, size, etag),
        path=path,
    )


def _write(
    store: BlobStore,
    ref: BlobRef,
    create: Callable[[], bool],
    replace: Callable[[str], bool],
    path: Path | None,
) -> BlobWrite:
    """Create the object; if one exists, trust it, refresh it or replace it.

    Creating first costs one round trip in the common case; asking first would always cost two.
    """
    key = layout.blob(ref.digest)
    is_restored = False
    unknown: OutcomeUnknownError | None = None
    for _ in range(_WRITE_ATTEMPTS):
        try:
            if create():
                return BlobWrite(ref, is_new=True, is_restored=is_restored)
            unknown = None
        except OutcomeUnknownError as error:
            unknown = error
        info = _stat_after(store, key, unknown)
        if info is None and unknown is not None:
            raise unknown  # it did not happen, and the store has asked several times already
        if info is None:
            continue  # what was there is gone: create again
        is_right = _is_right(store, info, ref, path)
        if is_right and not _is_old(info):
            return BlobWrite(ref, is_new=False, is_restored=is_restored)
        if not is_right:
            logger.error(
                "blob %s in %s had %d bytes that do not match its name; replaced by %d bytes",
                ref.digest,
                store.identity,
                info.size,
                ref.size,
            )
            is_restored = True
        # If another writer was faster, the next round sees what it left.
        with contextlib.suppress(OutcomeUnknownError):
            if replace(info.etag):
                return BlobWrite(ref, is_new=False, is_restored=is_restored)
    if unknown is not None:
        raise unknown
    raise StoreUnavailableError(
        f"{store.identity}: writing blob {ref.digest} was overtaken {_WRITE_ATTEMPTS} times"
    )


def _is_old(info: ObjectInfo) -> bool:
    return utc_now() - info.modified_at >= GRACE / 2


def _is_fresh(store: BlobStore, ref: BlobRef) -> bool:
    try:
        info = store.stat(layout.blob(ref.digest))
    except StoreUnavailableError:
        return False  # a publisher may be allowed to create and not to ask: let it create
    return info is not None and _is_right(store, info, ref, None) and not _is_old(info)


def _stat_after(
    store: BlobStore, key: str, unknown: OutcomeUnknownError | None
) -> ObjectInfo | None:
    try:
        return store.stat(key)
    except StoreUnavailableError as error:
        if unknown is None:
            raise
        raise OutcomeUnknownError(f"{unknown}; reading it failed: {error}") from unknown


def _is_right(store: BlobStore, info: ObjectInfo, ref: BlobRef, path: Path | None) -> bool:
    """Return whether a stored object has the bytes that its name states."""
    if info.size != ref.size:
        return False
    if info.sha256 is not None:
        return info.sha256 == ref.digest
    if info.composite_sha256 is not None:
        if path is not None and (answer := store.matches_file(info, path)) is not None:
            return answer
        # Its parts' checksums were verified on upload; that they are the parts of these bytes is
        # the writer's word until they are read.
        if info.declared_sha256 is not None:
            return info.declared_sha256 == ref.digest
    return _bytes_are(store, info.key, ref)


def _bytes_are(store: BlobStore, key: str, ref: BlobRef) -> bool:
    """Read the bytes and return whether they have the digest, for stores without checksums."""
    hasher = hashlib.sha256()
    try:
        with store.open(key, ref.size) as stream:
            for chunk in stream.chunks:
                hasher.update(chunk)
    except (NotFoundError, CorruptDataError):
        return False
    return hasher.hexdigest() == ref.digest.hex


def is_present(store: BlobStore, ref: BlobRef) -> bool:
    """Return whether the blob is stored with the size and checksum of its name and `ref`."""
    info = store.stat(layout.blob(ref.digest))
    return info is not None and _is_right(store, info, ref, None)


def find_missing(
    store: BlobStore, refs: Collection[BlobRef], workers: int = WORKERS
) -> list[BlobRef]:
    """Return those of `refs` that are not stored, or not stored correctly."""
    unique = list({ref.digest: ref for ref in refs}.values())
    present = map_threads(lambda ref: is_present(store, ref), unique, workers)
    return [ref for ref, is_there in zip(unique, present, strict=True) if not is_there]


def renew(store: BlobStore, ref: BlobRef) -> None:
    """Make the stored blob as safe as a new one, so that no collection is about to delete it.

    Raises:
        NotFoundError, CorruptDataError: It is not stored, or has other bytes.
    """
    info = store.stat(layout.blob(ref.digest))
    if info is not None and not _is_old(info):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blob"
        download_blob(store, ref.digest, path, ref.size)
        write_file(store, path, ref.media_type, ref.digest)


def read_blob(store: BlobStore, digest: Digest, size: int | None = None) -> bytes:
    """Return the bytes with this digest, after checking first the size (if given), then the digest.

    Raises:
        NotFoundError: There is no such blob.
        CorruptDataError: Other bytes are stored under its name.
    """

    def read() -> bytes:
        data = store.get(layout.blob(digest), size).data
        if (actual := Digest.of(data)) != digest:
            raise CorruptDataError(
                f"blob {digest} in {store.identity} has bytes whose digest is {actual}"
            )
        return data

    return _read_twice(read)


def _read_twice(read: Callable[[], T]) -> T:
    """Return what `read` returns; if the bytes are wrong, once more: they may be so on their way.

    What is stored cannot become right by being read again, but a run that fails over it waits for
    an operator.
    """
    try:
        return read()
    except CorruptDataError:
        return read()


def verify_blob(store: BlobStore, digest: Digest, size: int | None = None) -> int:
    """Read the whole blob, check its digest, and return its size in bytes.

    Raises:
        NotFoundError, CorruptDataError: As for `read_blob`.
    """

    def read() -> int:
        with open_blob(store, digest, size) as stream:
            return sum(len(chunk) for chunk in stream.chunks)

    return _read_twice(read)


@contextlib.contextmanager
def open_blob(store: BlobStore, digest: Digest, size: int | None = None) -> Iterator[ObjectStream]:
    """Stream the blob; the digest is checked when the last chunk is taken.

    Do nothing final with the chunks before the iteration has ended without an error.
    """
    with store.open(layout.blob(digest), size) as stream:
        yield ObjectStream(stream.info, _checked(store, digest, stream.chunks))


def _checked(store: BlobStore, digest: Digest, chunks: Iterator[bytes]) -> Iterator[bytes]:
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
        yield chunk
    if hasher.hexdigest() != digest.hex:
        raise CorruptDataError(
            f"blob {digest} in {store.identity} has bytes whose digest is"
            f" sha256:{hasher.hexdigest()}"
        )


def download_blob(store: BlobStore, digest: Digest, path: Path, size: int | None = None) -> None:
    """Write exactly the blob's bytes to `path`, completely or not at all.

    Raises:
        NotFoundError, CorruptDataError: As for `read_blob`; nothing is at `path` then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _read_twice(lambda: _download(store, digest, path, size))


def _download(store: BlobStore, digest: Digest, path: Path, size: int | None) -> None:
    for attempt in range(1, _DOWNLOAD_ATTEMPTS + 1):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{digest.short}-")
        try:
            with os.fdopen(handle, "wb") as file, open_blob(store, digest, size) as stream:
                for chunk in stream.chunks:
                    file.write(chunk)
            Path(name).chmod(0o644)  # mkstemp makes it private; a hook runs as another user
            Path(name).replace(path)
        except StoreUnavailableError:
            Path(name).unlink()
            if attempt == _DOWNLOAD_ATTEMPTS:
                raise
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        else:
            return
