"""Bytes that change on their way are read again; bytes that are stored so are damage."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from feature_pipeline.archive import blobs
from feature_pipeline.archive.store.base import ObjectStream, StoredObject
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.errors import CorruptDataError
from feature_pipeline.model.digest import Digest

DATA = b"a value"


class Flipping(MemoryStore):
    """The first `left` reads return one other byte."""

    left = 0

    def get(self, key: str, size: int | None = None) -> StoredObject:
        stored = super().get(key, size)
        return StoredObject(stored.info, self._flip(stored.data))

    @contextmanager
    def open(self, key: str, size: int | None = None) -> Iterator[ObjectStream]:
        stored = self.get(key, size)
        yield ObjectStream(stored.info, iter([stored.data]))

    def _flip(self, data: bytes) -> bytes:
        if self.left <= 0:
            return data
        self.left -= 1
        return bytes([data[0] ^ 1]) + data[1:]


@pytest.fixture
def store() -> Flipping:
    return Flipping()


def download(store: Flipping, digest: Digest, folder: Path) -> bytes:
    blobs.download_blob(store, digest, folder / "blob")
    return (folder / "blob").read_bytes()


READERS: list[Callable[[Flipping, Digest, Path], object]] = [
    lambda store, digest, _: blobs.read_blob(store, digest),
    lambda store, digest, _: b"." * blobs.verify_blob(store, digest),
    download,
]


@pytest.mark.parametrize("read", READERS, ids=["read", "verify", "download"])
def test_a_byte_that_changed_on_its_way_is_read_again(store: Flipping, read, tmp_path: Path):
    digest = blobs.put_blob(store, DATA).digest
    store.left = 1
    assert len(read(store, digest, tmp_path)) == len(DATA)
    assert store.left == 0


@pytest.mark.parametrize("read", READERS, ids=["read", "verify", "download"])
def test_wrong_bytes_that_stay_are_damage(store: Flipping, read, tmp_path: Path):
    digest = blobs.put_blob(store, DATA).digest
    store.left = 10
    with pytest.raises(CorruptDataError, match="has bytes whose digest is"):
        read(store, digest, tmp_path)
    assert store.left == 8
    assert list(tmp_path.iterdir()) == []
