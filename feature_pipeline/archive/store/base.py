"""What the archive asks of an object store, and what each answer means.

Every operation raises `StoreUnavailableError` when the store refused or could not be reached.
Operations that write raise `OutcomeUnknownError` when they may have happened all the same. Absence
is said only when the store itself said it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final, Protocol

from feature_pipeline.errors import (
    CorruptDataError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest

JSON_MEDIA_TYPE: Final = "application/json"
BYTES_MEDIA_TYPE: Final = "application/octet-stream"

_CREATE_ATTEMPTS: Final = 4


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of an object without sending its bytes."""

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
    """For an object uploaded in parts: what its writer said; not verified by the store."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's bytes with what the store says of it."""

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
        """Equal for stores over the same objects: where they are, for people and caches."""
        ...

    def create(self, key: str, data: bytes, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """Return the object exists if it did not before: True; it is untouched if it did: False.

        False may stand for an earlier attempt of this very call whose answer was lost: compare what
        is there with what was to be written.

        Raises:
            OutcomeUnknownError: It may or may not have been created.
        """
        ...

    def create_file(self, key: str, path: Path, digest: Digest, size: int) -> bool:
        """As `create`, from a file of `size` bytes with this digest, in bounded memory.

        Raises:
            CorruptDataError: The file is not what `digest` and `size` say; nothing was created.
        """
        ...

    def replace(self, key: str, data: bytes, etag: str, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """The object is `data` (True) if its `etag` was still this one; else untouched (False)."""
        ...

    def replace_file(self, key: str, path: Path, digest: Digest, size: int, etag: str) -> bool:
        """As `replace`, from a file."""
        ...

    def get(self, key: str, size: int | None = None) -> StoredObject:
        """Return the object.

        Raises:
            NotFoundError: The store says that there is none.
            CorruptDataError: Its size is not `size` (found before its bytes are read), or its
                bytes are not what the store's own checksum says.
        """
        ...

    def open(self, key: str, size: int | None = None) -> AbstractContextManager[ObjectStream]:
        """The object as a stream; errors as of `get`, and `StoreUnavailableError` in mid-stream."""
        ...

    def stat(self, key: str) -> ObjectInfo | None:
        """What the store says of the object; None only when it says that there is none."""
        ...

    def list_objects(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below `prefix`, sorted by key. Reads all pages before the first is given.

        Not the empty objects by which consoles and file browsers show folders: no key of an archive
        ends in `/`.
        """
        ...

    def list_folders(self, prefix: str) -> list[str]:
        """The names directly below `prefix` (which ends in `/`) that have objects below them."""
        ...

    def delete(self, key: str) -> None:
        """The object is not there, whether or not it was."""
        ...

    def now(self) -> datetime:
        """Return the store's own time, at most a second behind it.

        Modification times are by this clock. What several machines agree on is measured by it
        alone: their own clocks differ, and jump.
        """
        ...

    def delete_before(self, key: str, deadline: datetime) -> bool:
        """Delete the object, by a request that the store refuses after `deadline`.

        The store compares its own clock when the request arrives: neither a slow network, nor a
        retry, nor a process that stood still can make it act later.

        Returns:
            Whether nothing of this call can still arrive. False if an earlier attempt of it had no
            answer: that one may act until `deadline`.

        Raises:
            StoreUnavailableError: It did not happen; the deadline has passed, or the store refused.
            OutcomeUnknownError: It may happen until `deadline`.
        """
        ...

    def matches_file(self, info: ObjectInfo, path: Path) -> bool | None:
        """Return whether an object uploaded in parts has the checksum that `path` would get.

        None when the store's answer does not tell.
        """
        ...


def get_small(store: BlobStore, key: str, most_bytes: int) -> StoredObject:
    """Return the object, if it is as small as it must be; else it is not read.

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
    """Return the first bytes of the object, at most so many.

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


def create_or_read(
    store: BlobStore, key: str, data: bytes, media_type: str = JSON_MEDIA_TYPE
) -> bytes:
    """The object exists, and these are its bytes: `data`, or what another writer stored.

    Give `data` something of its own (a write id) where "mine" and "the same" must be told apart.

    Raises:
        OutcomeUnknownError: The store did not answer and reading back could not settle it.
    """
    unknown: OutcomeUnknownError | None = None
    for _ in range(_CREATE_ATTEMPTS):
        try:
            if store.create(key, data, media_type):
                return data
        except OutcomeUnknownError as error:
            unknown = error
        try:
            return store.get(key).data
        except NotFoundError:
            # Either the lost write did not happen, or (409) the store was settling another write
            # at that moment. Creating again is safe: at most one creation ever succeeds.
            continue
        except StoreUnavailableError as error:
            if unknown is None:
                raise
            raise OutcomeUnknownError(f"{unknown}; reading it back failed: {error}") from unknown
    if unknown is not None:
        raise unknown
    raise StoreUnavailableError(
        f"{store.identity}: creating {key!r} was refused {_CREATE_ATTEMPTS} times as already there,"
        " and reading it found nothing"
    )
