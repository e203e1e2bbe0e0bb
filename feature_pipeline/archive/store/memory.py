"""Objects in this process's memory: the real protocol without a server, for tests."""

import itertools
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from feature_pipeline.archive.format.documents import instant_text, utc_now
from feature_pipeline.archive.store.base import (
    BYTES_MEDIA_TYPE,
    ObjectInfo,
    ObjectStream,
    StoredObject,
    open_unchanged,
)
from feature_pipeline.errors import CorruptDataError, NotFoundError, StoreUnavailableError
from feature_pipeline.model.digest import Digest

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _StoredBytes:
    data: bytes
    info: ObjectInfo


class MemoryStore:
    """A `BlobStore` that ends with the process.

    Args:
        clock: The store's own time.
    """

    def __init__(self, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._objects: dict[str, _StoredBytes] = {}
        self._lock = threading.Lock()
        self._etags = itertools.count(1)
        self._identity = f"memory://{uuid.uuid4().hex}"

    @property
    def identity(self) -> str:
        """Unique to this store."""
        return self._identity

    def create(self, key: str, data: bytes, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """See `BlobStore.create`."""
        with self._lock:
            if key in self._objects:
                return False
            self._put(key, data)
            return True

    def create_file(self, key: str, path: Path, digest: Digest, size: int) -> bool:
        """See `BlobStore.create_file`."""
        return self.create(key, _read_file(path, digest, size))

    def replace(self, key: str, data: bytes, etag: str, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """See `BlobStore.replace`."""
        with self._lock:
            stored = self._objects.get(key)
            if stored is None or stored.info.etag != etag:
                return False
            self._put(key, data)
            return True

    def replace_file(self, key: str, path: Path, digest: Digest, size: int, etag: str) -> bool:
        """See `BlobStore.replace_file`."""
        return self.replace(key, _read_file(path, digest, size), etag)

    def get(self, key: str, size: int | None = None) -> StoredObject:
        """See `BlobStore.get`."""
        with self._lock:
            stored = self._objects.get(key)
        if stored is None:
            raise NotFoundError(f"{self._identity}: no object {key!r}")
        check_size(f"{self._identity}: {key!r}", stored.info.size, size)
        return StoredObject(stored.info, stored.data)

    @contextmanager
    def open(self, key: str, size: int | None = None) -> Iterator[ObjectStream]:
        """See `BlobStore.open`."""
        stored = self.get(key, size)
        view = memoryview(stored.data)
        yield ObjectStream(
            stored.info,
            (bytes(view[i : i + _CHUNK_BYTES]) for i in range(0, len(view), _CHUNK_BYTES)),
        )

    def stat(self, key: str) -> ObjectInfo | None:
        """See `BlobStore.stat`."""
        with self._lock:
            stored = self._objects.get(key)
        return None if stored is None else stored.info

    def list_objects(self, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """See `BlobStore.list_objects`."""
        with self._lock:
            infos = [
                stored.info
                for key, stored in self._objects.items()
                if key.startswith(prefix) and not key.endswith("/")
            ]
        infos.sort(key=lambda info: info.key)
        return iter(infos if limit is None else infos[: limit + 1])

    def list_folders(self, prefix: str) -> list[str]:
        """See `BlobStore.list_folders`."""
        with self._lock:
            rest = [key[len(prefix) :] for key in self._objects if key.startswith(prefix)]
        return sorted({name.partition("/")[0] for name in rest if "/" in name})

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`."""
        with self._lock:
            self._objects.pop(key, None)

    def now(self) -> datetime:
        """See `BlobStore.now`."""
        return self._clock()

    def delete_before(self, key: str, deadline: datetime) -> bool:
        """See `BlobStore.delete_before`."""
        with self._lock:
            if (now := self._clock()) > deadline:
                raise StoreUnavailableError(
                    f"DELETE {key}: it arrived at {instant_text(now)} but had to be refused after"
                    f" {instant_text(deadline)}"
                )
            self._objects.pop(key, None)
        return True

    def matches_file(self, info: ObjectInfo, path: Path) -> bool | None:
        """See `BlobStore.matches_file`. Nothing is uploaded in parts here."""
        return None

    def _put(self, key: str, data: bytes) -> None:
        info = ObjectInfo(
            key=key,
            size=len(data),
            modified_at=self._clock(),
            etag=f'"{next(self._etags)}"',
            sha256=Digest.of(data),
        )
        self._objects[key] = _StoredBytes(bytes(data), info)


def check_size(what: str, stored: int, expected: int | None) -> None:
    """Check that an object has the expected size.

    Raises:
        CorruptDataError: It does not.
    """
    if expected is not None and stored != expected:
        raise CorruptDataError(f"{what} has {stored} bytes instead of {expected}")


def _read_file(path: Path, digest: Digest, size: int) -> bytes:
    with open_unchanged(path) as file:
        data = file.read()
    if len(data) != size or Digest.of(data) != digest:
        raise CorruptDataError(f"file {path} is not {digest} of {size} bytes: it changed")
    return data
