"""The protocol of object stores, and the meaning of their answers.

Every operation raises `StoreUnavailableError` when the store refused or could not be reached.
Operations that write raise `OutcomeUnknownError` when they may have happened anyway. An object
counts as absent only if the store itself answered so.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest
from feature_pipeline.regular_files import open_regular

JSON_MEDIA_TYPE: Final = "application/json"
BYTES_MEDIA_TYPE: Final = "application/octet-stream"

_CREATE_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Metadata of an object, without its bytes."""

    key: str
    size: int
    modified_at: datetime
    etag: str
    """Changes whenever the object is written; the condition of `replace`."""
    sha256: Digest | None = None
    """The checksum of the whole object that the store verified on upload; None in listings, from
    stores that keep none, and for objects uploaded in parts."""
    composite_sha256: str | None = None
    """For an object uploaded in parts: the store's checksum over the parts' checksums."""
    declared_sha256: Digest | None = None
    """For an object uploaded in parts: the digest given by its writer; not verified by the
    store.
    """


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes with its metadata."""

    info: ObjectInfo
    data: bytes


@dataclass(frozen=True, slots=True)
class ObjectStream:
    """An object being read. Leaving its context closes the connection."""

    info: ObjectInfo
    chunks: Iterator[bytes]


class BlobStore(Protocol):
    """Objects by key, with conditional writes. Thread-safe."""

    @property
    def identity(self) -> str:
        """Location of the objects, equal for stores over the same ones; for display and caches."""
        ...

    def create(self, key: str, data: bytes, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """Create the object unless one exists; return whether it was created.

        False may be caused by an earlier attempt of this very call whose answer was lost: compare
        the stored object with `data`.

        Raises:
            OutcomeUnknownError: It may or may not have been created.
        """
        ...

    def create_file(self, key: str, path: Path, digest: Digest, size: int) -> bool:
        """Create the object as `create` does, from a file, in bounded memory.

        Raises:
            CorruptDataError: The file does not match `digest` and `size`; nothing was created.
        """
        ...

    def replace(self, key: str, data: bytes, etag: str, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """Replace the object if its `etag` is still this one; return whether it was replaced."""
        ...

    def replace_file(self, key: str, path: Path, digest: Digest, size: int, etag: str) -> bool:
        """Replace the object as `replace` does, from a file."""
        ...

    def get(self, key: str, size: int | None = None) -> StoredObject:
        """Return the object.

        Raises:
            NotFoundError: The store answered that there is none.
            CorruptDataError: Its size is not `size` (checked before its bytes are read), or its
                bytes do not match the store's own checksum.
        """
        ...

    def open(self, key: str, size: int | None = None) -> AbstractContextManager[ObjectStream]:
        """Open the object as a stream; errors as for `get`, also in mid-stream."""
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """Return the object's metadata; None only if the store answers that there is none."""
        ...

    def list_objects(self, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """List every object below `prefix`, sorted by key. Reads all pages before returning.

        Leaves out the empty objects by which consoles and file browsers represent folders: no key
        of an archive ends in `/`.

        Args:
            prefix: Of the keys.
            limit: Read no more pages once there are more objects than this. If more are returned,
                any others may be missing.
        """
        ...

    def list_folders(self, prefix: str) -> list[str]:
        """List the names directly below `prefix` (ending in `/`) that have objects."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object, if it exists."""
        ...

    def now(self) -> datetime:
        """Return the store's own time, at most a second behind it.

        Modification times are by this clock. Times that several machines must agree on are measured
        by it alone: the machines' own clocks differ, and jump.
        """
        ...

    def delete_before(self, key: str, deadline: datetime) -> bool:
        """Delete the object, by a request that the store refuses after `deadline`.

        The store compares its own clock when the request arrives: neither a slow network, nor a
        retry, nor a stalled process can make it act later.

        Returns:
            True if no request of this call can still arrive. False if an earlier attempt had no
            answer: that one may act until `deadline`.

        Raises:
            StoreUnavailableError: It did not happen; the deadline has passed, or the store refused.
            OutcomeUnknownError: It may happen until `deadline`.
        """
        ...

    def matches_file(self, info: ObjectInfo, path: Path) -> bool | None:
        """Return whether an object uploaded in parts has the checksum that `path` would get.

        None if the store's answer does not show it.
        """
        ...


def get_small(store: BlobStore, key: str, most_bytes: int) -> StoredObject:
    """Return the object; if it is larger than the limit, it is not read.

    Raises:
        NotFoundError: There is none.
        CorruptDataError: It is larger, or damaged.
    """
    info = store.stat(key)
    if info is None:
        raise NotFoundError(f"{store.identity}: no object {key!r}")
    if info.size > most_bytes:
        raise CorruptDataError(
            f"{key} in {store.identity} has {info.size:,} bytes; at most {most_bytes:,} are read"
        )
    return store.get(key, info.size)


def read_beginning(store: BlobStore, key: str, most_bytes: int) -> bytes:
    """Return the first bytes of the object, at most this many.

    Raises:
        NotFoundError: There is none.
    """
    data = bytearray()
    with store.open(key) as stream:
        for chunk in stream.chunks:
            data += chunk
            if len(data) >= most_bytes:
                break
    return bytes(data[:most_bytes])


def open_unchanged(path: Path) -> BinaryIO:
    """Open a local file that is being stored; it was a regular file when that began.

    Raises:
        CorruptDataError: It is gone, or something else by now.
    """
    try:
        return open_regular(path)
    except (FileNotFoundError, InvalidInputError) as error:
        problem = "is gone" if isinstance(error, FileNotFoundError) else str(error)
        raise CorruptDataError(f"file {path} {problem}: it changed while it was stored") from error


def create_or_read(
    store: BlobStore, key: str, data: bytes, media_type: str = JSON_MEDIA_TYPE
) -> bytes:
    """Create the object; return its bytes: `data`, or what another writer stored.

    Include something unique in `data` (a write id) if "mine" and "equal" must be distinguished.

    Raises:
        OutcomeUnknownError: The store did not answer and reading back could not settle it.
    """
    for _ in range(_CREATE_ATTEMPTS):
        unknown: OutcomeUnknownError | None = None
        try:
            if store.create(key, data, media_type):
                return data
        except OutcomeUnknownError as error:
            unknown = error
        try:
            return store.get(key).data
        except NotFoundError:
            if unknown is not None:
                raise unknown from None  # it did not happen, though the store was asked repeatedly
            # The store was settling another write at that moment (409). Creating again is safe: at
            # most one creation ever succeeds.
            continue
        except StoreUnavailableError as error:
            if unknown is None:
                raise
            raise OutcomeUnknownError(f"{unknown}; reading it back failed: {error}") from unknown
    raise StoreUnavailableError(
        f"{store.identity}: creating {key!r} was refused {_CREATE_ATTEMPTS} times because it"
        " exists, but reading it found nothing"
    )
