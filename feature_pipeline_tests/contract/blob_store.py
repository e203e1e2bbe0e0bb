"""What every `BlobStore` must do. Subclasses give the store and a way to look behind its back."""

import contextlib
import hashlib
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from feature_pipeline.archive.blobs import download_blob, is_present, put_file, write_blob
from feature_pipeline.archive.format.manifest import BlobRef
from feature_pipeline.archive.store.base import BlobStore, create_or_read
from feature_pipeline.errors import CorruptDataError, NotFoundError, StoreUnavailableError
from feature_pipeline.model.digest import Digest


class BlobStoreTests:
    def stored(self, store: BlobStore, key: str) -> bytes | None:
        """The bytes under `key`, read without the store; None if there are none."""
        raise NotImplementedError

    def overwrite(self, store: BlobStore, key: str, data: bytes) -> None:
        """Put `data` under `key` without the store."""
        raise NotImplementedError

    def test_creates_once(self, store):
        assert store.create("inbox/a", b"one") is True
        assert store.create("inbox/a", b"two") is False
        assert self.stored(store, "inbox/a") == b"one"

    def test_gets_what_was_created_with_its_info(self, store):
        store.create("inbox/a", b"one", "application/json")
        stored = store.get("inbox/a")
        assert stored.data == b"one"
        assert (stored.info.key, stored.info.size) == ("inbox/a", 3)
        assert stored.info.sha256 == Digest.of(b"one")
        assert stored.info.modified_at.tzinfo is not None
        assert store.stat("inbox/a") == stored.info

    def test_empty_object(self, store):
        assert store.create("inbox/empty", b"") is True
        assert store.get("inbox/empty", 0).data == b""
        with store.open("inbox/empty") as stream:
            assert list(stream.chunks) == []

    def test_absence_is_typed(self, store):
        with pytest.raises(NotFoundError, match="inbox/none"):
            store.get("inbox/none")
        with pytest.raises(NotFoundError), store.open("inbox/none"):
            pass
        assert store.stat("inbox/none") is None

    def test_size_is_checked_before_bytes(self, store):
        store.create("inbox/a", b"one")
        with pytest.raises(CorruptDataError, match="3 bytes instead of 4"):
            store.get("inbox/a", 4)
        with pytest.raises(CorruptDataError), store.open("inbox/a", 2):
            pass

    def test_replaces_only_what_was_seen(self, store):
        store.create("inbox/a", b"one")
        before = store.stat("inbox/a")
        assert store.replace("inbox/a", b"two", before.etag) is True
        assert store.replace("inbox/a", b"three", before.etag) is False
        assert self.stored(store, "inbox/a") == b"two"

    def test_replacing_nothing_creates_nothing(self, store):
        assert store.replace("inbox/none", b"x", '"0123456789abcdef0123456789abcdef"') is False
        assert self.stored(store, "inbox/none") is None

    def test_lists_sorted_by_key_whole_and_below_the_prefix_only(self, store):
        keys = [f"log/t/ref{suffix}/{n}" for suffix in ("", "-old", "_new") for n in range(3)]
        for key in keys:
            store.create(key, key.encode())
        listed = list(store.list_objects("log/t/"))
        assert [info.key for info in listed] == sorted(keys)
        assert [info.size for info in listed] == [len(key) for key in sorted(keys)]
        assert [i.key for i in store.list_objects("log/t/ref/")] == sorted(
            key for key in keys if key.startswith("log/t/ref/")
        )
        assert list(store.list_objects("log/none/")) == []

    def test_a_limited_listing_is_whole_or_longer_than_the_limit(self, store):
        keys = [f"log/t/{n}" for n in range(3)]
        for key in keys:
            store.create(key, b"")
        for limit in (3, 4):
            assert [info.key for info in store.list_objects("log/t/", limit)] == keys
        for limit in (0, 1, 2):
            cut = [info.key for info in store.list_objects("log/t/", limit)]
            assert len(cut) > limit
            assert set(cut) <= set(keys)

    def test_folders_that_consoles_make_are_no_objects(self, store):
        for key in ("log/t/", "log/t/a/", "log/t/a/1"):
            store.create(key, b"")
        assert [info.key for info in store.list_objects("log/t/")] == ["log/t/a/1"]
        assert store.list_folders("log/t/") == ["a"]

    def test_a_listing_and_a_stat_agree_on_the_etag(self, store):
        store.create("inbox/a", b"one")
        [listed] = store.list_objects("inbox/")
        assert listed.etag == store.stat("inbox/a").etag

    def test_folders(self, store):
        for key in ("log/t/b/1", "log/t/a/x/1", "log/t/a/y/1", "log/tt/c/1"):
            store.create(key, b"")
        assert store.list_folders("log/t/") == ["a", "b"]
        assert store.list_folders("log/none/") == []

    def test_deletes_what_is_there_and_what_is_not(self, store):
        store.create("inbox/a", b"one")
        store.delete("inbox/a")
        store.delete("inbox/a")
        assert store.stat("inbox/a") is None
        assert store.create("inbox/a", b"again") is True

    def test_deletes_before_a_deadline_and_not_after_it(self, store):
        store.create("inbox/a", b"one")
        with pytest.raises(StoreUnavailableError, match="inbox/a"):
            store.delete_before("inbox/a", store.now() - timedelta(minutes=1))
        assert self.stored(store, "inbox/a") == b"one"
        for _ in range(2):
            assert store.delete_before("inbox/a", store.now() + timedelta(minutes=1)) is True
            assert self.stored(store, "inbox/a") is None

    def test_its_time_is_that_of_its_objects(self, store):
        before = store.now()
        store.create("inbox/a", b"one")
        modified_at = store.stat("inbox/a").modified_at
        assert before - timedelta(seconds=1) <= modified_at
        assert modified_at <= store.now() + timedelta(seconds=1)

    def test_one_creation_wins_a_race(self, store):
        barrier = threading.Barrier(8)
        won: list[int] = []

        def race(n: int) -> None:
            barrier.wait()
            if store.create("inbox/race", str(n).encode()):
                won.append(n)

        threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert self.stored(store, "inbox/race") == str(won[0]).encode()

    def test_create_or_read_returns_the_stored_object(self, store):
        assert create_or_read(store, "inbox/a", b"mine") == b"mine"
        assert create_or_read(store, "inbox/a", b"other") == b"mine"

    def test_files(self, store, tmp_path: Path):
        data = b"x" * 3_000_000
        path = tmp_path / "file"
        path.write_bytes(data)
        digest = Digest.of(data)
        assert store.create_file("inbox/f", path, digest, len(data)) is True
        assert store.create_file("inbox/f", path, digest, len(data)) is False
        assert self.stored(store, "inbox/f") == data
        with store.open("inbox/f") as stream:
            chunks = list(stream.chunks)
        assert len(chunks) > 1
        assert b"".join(chunks) == data

    @pytest.mark.parametrize("size", [3, 3_000_000])
    def test_a_file_that_changed_is_not_stored(self, store, tmp_path: Path, size):
        path = tmp_path / "file"
        path.write_bytes(b"n" * size)
        with pytest.raises(CorruptDataError, match="it changed"):
            store.create_file("inbox/f", path, Digest.of(b"o" * size), size)
        assert self.stored(store, "inbox/f") is None

    def test_a_stream_may_be_left_early(self, store):
        store.create("inbox/a", b"x" * 3_000_000)
        for _ in range(20):  # more than a pool has connections
            with store.open("inbox/a") as stream:
                next(stream.chunks)
        assert store.get("inbox/a").info.size == 3_000_000

    # Blobs, on what the store itself answers

    @pytest.mark.parametrize("damage", [b"", b"damaged!", b"longer than it was"])
    def test_a_damaged_blob_is_never_read_and_can_be_restored(self, store, damage, caplog):
        write = write_blob(store, b"original")
        [info] = store.list_objects("blobs/")
        self.overwrite(store, info.key, damage)
        assert is_present(store, write.ref) is False
        restored = write_blob(store, b"original")
        assert (restored.is_new, restored.is_restored) == (False, True)
        assert self.stored(store, info.key) == b"original"
        assert str(write.ref.digest) in caplog.text

    def test_a_blob_comes_down_whole_or_not_at_all(self, store, tmp_path: Path):
        source, target = tmp_path / "source", tmp_path / "below" / "target"
        source.write_bytes(b"y" * 2_500_000)
        ref = put_file(store, source)
        download_blob(store, ref.digest, target, ref.size)
        assert target.read_bytes() == source.read_bytes()
        target.unlink()
        [info] = store.list_objects("blobs/")
        self.overwrite(store, info.key, b"z" * 2_500_000)
        with pytest.raises(CorruptDataError):
            download_blob(store, ref.digest, target, ref.size)
        assert list(target.parent.iterdir()) == []

    def test_presence_asks_for_size_and_checksum(self, store):
        ref = write_blob(store, b"data").ref
        assert is_present(store, ref) is True
        assert is_present(store, ref.model_copy(update={"size": 5})) is False
        absent = BlobRef(digest=Digest(hashlib.sha256(b"absent").hexdigest()), size=6)
        assert is_present(store, absent) is False

    def test_many_writers_of_one_blob(self, store):
        writes: list[bool] = []

        def put() -> None:
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(10)
            writes.append(write_blob(store, b"the same").is_new)

        barrier = threading.Barrier(6)
        threads = [threading.Thread(target=put) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(writes) == [False] * 5 + [True]
