import dataclasses
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from feature_pipeline.archive import blobs
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.store import s3
from feature_pipeline.archive.store.base import StoredObject
from feature_pipeline.archive.store.memory import MemoryStore
from feature_pipeline.archive.store.s3 import S3Store, make_client, open_store
from feature_pipeline.archive.store.s3_transfer import Transfer
from feature_pipeline.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    StoreUnavailableError,
)
from feature_pipeline.local.seaweedfs import READY_BUCKET
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline_tests.contract.blob_store import BlobStoreTests
from feature_pipeline_tests.fixtures.s3 import make_client as plain_client
from feature_pipeline_tests.fixtures.stores import archive_client, connect

NOWHERE = "http://127.0.0.1:1"
HOSTILE = [
    ("AWS_ENDPOINT", NOWHERE),
    ("AWS_ENDPOINT_URL", NOWHERE),
    ("AWS_ENDPOINT_URL_S3", NOWHERE),
    ("AWS_CONDITIONAL_PUT", "disabled"),
    ("AWS_COPY_IF_NOT_EXISTS", "garbage"),
    ("AWS_S3_EXPRESS", "true"),
    ("AWS_SKIP_SIGNATURE", "true"),
    ("AWS_SERVER_SIDE_ENCRYPTION", "aws:kms"),
    ("AWS_SERVER_SIDE_ENCRYPTION", "garbage"),
    ("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "true"),
    ("AWS_BUCKET", "elsewhere"),
    ("AWS_ACCESS_KEY_ID", "theirs"),
    ("AWS_SESSION_TOKEN", "theirs"),
    ("AWS_TOKEN", "theirs"),
    ("AWS_PROFILE", "nobody"),
    ("AWS_CA_BUNDLE", "/nowhere"),
    ("AWS_DEFAULTS_MODE", "garbage"),
    ("AWS_RETRY_MODE", "garbage"),
    ("AWS_MAX_ATTEMPTS", "0"),
    ("AWS_USE_FIPS_ENDPOINT", "true"),
    ("AWS_REQUEST_CHECKSUM_CALCULATION", "garbage"),
    ("AWS_DEFAULT_REGION", "eu-x-1"),
    ("HTTP_PROXY", NOWHERE),
    ("http_proxy", NOWHERE),
    ("ALL_PROXY", NOWHERE),
    ("all_proxy", "socks5://127.0.0.1:1"),
]


class TestMemoryStore(BlobStoreTests):
    @pytest.fixture
    def store(self, memory_store):
        return memory_store

    def stored(self, store, key):
        kept_object = store._objects.get(key)
        return None if kept_object is None else kept_object.data

    def overwrite(self, store, key, data):
        store._put(key, data)

    def test_an_old_blob_is_written_again(self, store):
        """Else a collection could delete it between two marks while a publisher relies on it."""
        ref = blobs.put_blob(store, b"data")
        [info] = store.list_objects("blobs/")
        old = datetime.now(UTC) - blobs.GRACE * 0.6
        kept_object = store._objects[info.key]
        store._objects[info.key] = dataclasses.replace(
            kept_object, info=dataclasses.replace(kept_object.info, modified_at=old)
        )
        write = blobs.write_blob(store, b"data")
        assert (write.ref, write.is_new, write.is_restored) == (ref, False, False)
        assert store.stat(info.key).modified_at - old > timedelta(days=1)

    def test_stores_without_checksums_are_read_before_they_are_trusted(self, store):
        ref = blobs.put_blob(store, b"data")
        [info] = store.list_objects("blobs/")
        for data, expected in ((b"data", True), (b"dada", False)):
            store._put(info.key, data)
            kept_object = store._objects[info.key]
            store._objects[info.key] = dataclasses.replace(
                kept_object, info=dataclasses.replace(kept_object.info, sha256=None)
            )
            assert blobs.is_present(store, ref) is expected


@pytest.mark.s3
class TestS3Store(BlobStoreTests):
    @pytest.fixture
    def store(self, s3_store, s3_client, s3_prefix):
        self.client, self.prefix = s3_client, s3_prefix
        return s3_store

    def stored(self, store, key):
        try:
            return self.client.get_object(Bucket=store.bucket, Key=f"{self.prefix}/{key}")[
                "Body"
            ].read()
        except self.client.exceptions.NoSuchKey:
            return None

    def overwrite(self, store, key, data):
        self.client.put_object(Bucket=store.bucket, Key=f"{self.prefix}/{key}", Body=data)

    def test_lists_more_than_a_page(self, store, monkeypatch):
        for n in range(7):
            store.create(f"log/t/{n}", b"")
        paginate = store._client.get_paginator("list_objects_v2").paginate
        monkeypatch.setattr(
            store,
            "_pages",
            lambda prefix, **options: paginate(
                Bucket=store.bucket,
                Prefix=f"{self.prefix}/{prefix}",
                PaginationConfig={"PageSize": 3},
                **options,
            ),
        )
        assert [info.key for info in store.list_objects("log/t/")] == [
            f"log/t/{n}" for n in range(7)
        ]

    def test_large_files_go_in_parts_and_are_recognised(self, store, tmp_path, monkeypatch):
        monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
        monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
        path = tmp_path / "large"
        path.write_bytes(bytes(range(256)) * (13 << 12))  # 13 MiB: three parts
        first = blobs.write_file(store, path)
        again = blobs.write_file(store, path)
        assert (first.is_new, again.is_new, again.is_restored) == (True, False, False)
        [info] = store.list_objects("blobs/")
        stat = store.stat(info.key)
        assert stat.sha256 is None
        assert stat.composite_sha256 is not None
        assert stat.declared_sha256 == first.ref.digest
        assert blobs.is_present(store, first.ref)
        assert blobs.verify_blob(store, first.ref.digest, first.ref.size) == path.stat().st_size
        uploads = self.client.list_multipart_uploads(Bucket=store.bucket)
        assert not [u for u in uploads.get("Uploads", []) if u["Key"].startswith(self.prefix)]

    def test_a_wrong_digest_of_a_large_file_is_detected_by_its_parts(
        self, store, tmp_path, monkeypatch
    ):
        """Anyone who may create blobs may name one wrongly; its parts' checksum tells."""
        monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
        monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
        right, wrong = tmp_path / "right", tmp_path / "wrong"
        right.write_bytes(b"r" * (7 << 20))
        wrong.write_bytes(b"w" * (7 << 20))
        with right.open("rb") as file:
            digest, size = digest_stream(file)
        key = layout.blob(digest)
        upload = self.client.create_multipart_upload(
            Bucket=store.bucket,
            Key=f"{self.prefix}/{key}",
            ChecksumAlgorithm="SHA256",
            Metadata={"sha256": digest.hex},
        )["UploadId"]
        target = {"Bucket": store.bucket, "Key": f"{self.prefix}/{key}", "UploadId": upload}
        data = wrong.read_bytes()
        parts = []
        for number, part in enumerate((data[: 5 << 20], data[5 << 20 :]), start=1):
            answer = self.client.upload_part(
                **target, PartNumber=number, Body=part, ChecksumAlgorithm="SHA256"
            )
            parts.append(
                {
                    "PartNumber": number,
                    "ETag": answer["ETag"],
                    "ChecksumSHA256": answer["ChecksumSHA256"],
                }
            )
        self.client.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})
        assert store.stat(key).declared_sha256 == digest
        assert store.stat(key).size == size
        assert blobs.write_file(store, right).is_restored
        assert blobs.read_blob(store, digest, size) == right.read_bytes()

    def test_a_large_file_that_changes_under_the_upload_is_not_stored(
        self, store, tmp_path, monkeypatch
    ):
        monkeypatch.setattr(s3, "MULTIPART_BYTES", 6 << 20)
        monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
        path = tmp_path / "large"
        path.write_bytes(b"x" * (7 << 20))
        with pytest.raises(CorruptDataError, match="it changed"):
            store.create_file("inbox/f", path, Digest.of(b"other"), 7 << 20)
        assert self.stored(store, "inbox/f") is None

    def test_another_prefix_is_another_archive(self, store, s3_address):
        store.create("inbox/a", b"one")
        other = S3Store(self.client, s3_address.bucket, f"{self.prefix}-other")
        assert other.stat("inbox/a") is None
        assert other.identity != store.identity

    def test_opening_twice(self, store, s3_address, s3_prefix):
        again = open_store(self.client, s3_address.bucket, s3_prefix)
        assert again.identity == store.identity

    def test_opening_an_unknown_bucket(self, s3_client):
        with pytest.raises(NotFoundError, match="no bucket 'no-such-bucket'"):
            open_store(s3_client, "no-such-bucket")

    def test_absence_in_an_unknown_bucket_is_not_trusted(self, s3_client):
        """HEAD gives 404 for both: only one of them says anything about the object."""
        store = S3Store(s3_client, "no-such-bucket")
        with pytest.raises(StoreUnavailableError, match="NoSuchBucket"):
            store.stat("inbox/a")
        with pytest.raises(StoreUnavailableError):
            list(store.list_objects("inbox/"))

    def test_wrong_credentials_are_not_absence(self, s3_address, s3_prefix):
        client = make_client(
            endpoint_url=s3_address.endpoint_url,
            region=s3_address.region,
            access_key_id="WRONG",
            secret_access_key="wrong",
        )
        store = S3Store(client, s3_address.bucket, s3_prefix)
        for call in (
            lambda: store.get("inbox/a"),
            lambda: store.stat("inbox/a"),
            lambda: store.create("inbox/a", b"x"),
            lambda: list(store.list_objects("inbox/")),
        ):
            with pytest.raises(StoreUnavailableError):
                call()
        client.close()

    def test_deletions_of_any_client_have_a_deadline(self, s3_address, s3_prefix):
        """Also of one that signs addresses the old way, as boto3 does by itself."""
        client = plain_client(s3_address)
        store = S3Store(client, s3_address.bucket, s3_prefix)
        store.create("inbox/a", b"x")
        assert store.delete_before("inbox/a", store.now() + timedelta(minutes=1))
        assert store.stat("inbox/a") is None
        store.create("inbox/a", b"x")
        store.delete("inbox/a")
        assert store.stat("inbox/a") is None
        client.close()

    @pytest.mark.parametrize(("name", "value"), HOSTILE)
    def test_no_variable_of_the_shell_changes_where_objects_go(
        self, s3_address, s3_prefix, s3_client, monkeypatch, name, value
    ):
        monkeypatch.setenv(name, value)
        with connect(s3_address, s3_prefix) as store:
            assert store.create("inbox/a", b"x")
            assert not store.create("inbox/a", b"y")
            assert store.get("inbox/a").data == b"x"
        for key in (layout.PROBE, "inbox/a"):
            s3_client.head_object(Bucket=s3_address.bucket, Key=f"{s3_prefix}/{key}")

    def test_two_clients_that_see_two_stores_are_refused(
        self, s3_address, s3_prefix, s3_client, monkeypatch
    ):
        other = archive_client(s3_address)
        elsewhere = Transfer.like(other, READY_BUCKET, "s3://ready/")
        monkeypatch.setattr(Transfer, "like", lambda *_: elsewhere)
        with pytest.raises(InvalidInputError, match="see two stores"):
            open_store(other, s3_address.bucket, s3_prefix)
        other.close()

    def test_two_stores_with_an_archive_each_are_distinguished(
        self, s3_address, s3_prefix, monkeypatch
    ):
        """By the time of the probe's object: its bytes are the same in every archive."""
        now = datetime.now(UTC)
        with connect(s3_address, s3_prefix) as store:
            get = Transfer.get

            def older(self: Transfer, key: str, size: int | None) -> StoredObject:
                stored = get(self, key, size)
                moved = replace(stored.info, modified_at=now - timedelta(days=1))
                return replace(stored, info=moved)

            monkeypatch.setattr(Transfer, "get", older)
            with pytest.raises(InvalidInputError, match="see two stores"):
                store.check_is_one()

    def test_a_store_that_does_not_list_what_was_written_is_refused(self, s3_store, monkeypatch):
        monkeypatch.setattr(S3Store, "list_objects", lambda *_: iter(()))
        with pytest.raises(InvalidInputError, match=r"does not list s3://.*/probe/"):
            s3_store.check_is_one()

    @pytest.mark.parametrize("prefix", ["a//b", "a/../b", ".", "a\n"])
    def test_a_prefix_that_stores_write_in_another_way(self, s3_client, s3_address, prefix):
        with pytest.raises(InvalidInputError, match="prefix"):
            open_store(s3_client, s3_address.bucket, prefix)

    def test_a_store_that_ignores_conditions_is_refused(self, s3_client, s3_address, s3_prefix):
        for ignored in ("IfNoneMatch", "IfMatch"):
            store_client = _Ignoring(s3_client, ignored)
            with pytest.raises(InvalidInputError, match="ignores If"):
                open_store(store_client, s3_address.bucket, f"{s3_prefix}-{ignored.lower()}")


class _Ignoring:
    """A client of a store that does not know one of the conditions."""

    def __init__(self, client, ignored):
        self._client, self._ignored = client, ignored

    def __getattr__(self, name):
        return getattr(self._client, name)

    def put_object(self, **arguments):
        arguments.pop(self._ignored, None)
        return self._client.put_object(**arguments)


def test_memory_stores_are_apart():
    assert MemoryStore().identity != MemoryStore().identity
