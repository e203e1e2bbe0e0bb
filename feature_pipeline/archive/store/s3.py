"""Objects in an S3 bucket, through any boto3 client. Only this module and its helpers use boto3.

Servers differ: with concurrent conditional writes to one key, SeaweedFS 4.48 takes whole seconds,
and AWS answers some with 409, which may mean "ask again" as well as "it exists" (412).

Errors of the driver are translated here. A failed write "did not happen" if the store refused it
before any other attempt. After a lost answer or a server error, its outcome is unknown.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import botocore.exceptions as boto_errors
import urllib3.exceptions as http_errors

from feature_pipeline.archive.format.layout import BLOBS, PROBE
from feature_pipeline.archive.store import s3_delete, s3_measure
from feature_pipeline.archive.store.base import (
    BYTES_MEDIA_TYPE,
    ObjectInfo,
    ObjectStream,
    StoredObject,
    open_unchanged,
)
from feature_pipeline.archive.store.memory import check_size
from feature_pipeline.archive.store.s3_client import make_client as make_client
from feature_pipeline.archive.store.s3_responses import (
    NO_ANSWER_ERRORS,
    base64_text,
    code,
    explained,
    object_info,
    required,
    retries,
    status,
)
from feature_pipeline.archive.store.s3_transfer import Transfer
from feature_pipeline.errors import (
    CorruptDataError,
    FeaturePipelineError,
    InvalidInputError,
    NotFoundError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from feature_pipeline.model.digest import Digest, digest_stream
from feature_pipeline.settings import check_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

T = TypeVar("T")

MULTIPART_BYTES: Final = 64 << 20
"""Files larger than this are uploaded in parts: memory stays bounded, and a lost part is sent
again.
"""
PART_BYTES: Final = 32 << 20
"""Fixed, because the checksum of an object uploaded in parts depends on it. S3 allows 10,000
parts, so 320 GB a file."""
_PART_WORKERS: Final = 4
_CHUNK_BYTES: Final = 1 << 20
_READ_ATTEMPTS: Final = 3

_EXISTS: Final = frozenset({409, 412})
"""412: the condition does not hold. 409: another write to the key was in progress."""
_NEVER_SENT: Final = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.ParamValidationError,
    boto_errors.EndpointProviderError,
)
_BODY_ERRORS: Final = (
    boto_errors.IncompleteReadError,
    boto_errors.ResponseStreamingError,
    boto_errors.ReadTimeoutError,
    boto_errors.ConnectionClosedError,
    http_errors.HTTPError,
    OSError,
)


def open_to_read(client: "S3Client", bucket: str, prefix: str = "") -> "S3Store":
    """Open the store below `prefix` in `bucket` with credentials that may not be able to write.

    Raises:
        NotFoundError: There is no such bucket.
        StoreUnavailableError: The store refused, or could not be reached.
    """
    store = S3Store(client, bucket, prefix)
    store.check_bucket()
    return store


def open_store(client: "S3Client", bucket: str, prefix: str = "") -> "S3Store":
    """Open the store below `prefix` in `bucket`, after probing that it can hold an archive.

    The probe writes one small object, once in the life of an archive, reads it by both clients of
    the store, and lists it. This detects a store that ignores conditions, clients that reach two
    stores, and a prefix that the store changes, before anything is written there.

    Raises:
        NotFoundError: There is no such bucket.
        InvalidInputError: The store ignores `If-None-Match` or `If-Match` (an archive on it would
            lose data to concurrent writers), does not list what was written, or its two clients
            reach two stores; or the prefix is invalid.
        StoreUnavailableError: The store could not be reached.
    """
    store = open_to_read(client, bucket, prefix)
    body = b'{"what":"learns whether conditional writes hold"}'
    # The key stays, so opening an archive again finds the condition upheld by the first request.
    if store.create(PROBE, body) and store.create(PROBE, body):
        raise InvalidInputError(
            f"{store.identity} ignores If-None-Match; the archive needs a store with conditional"
            " writes (AWS S3, MinIO, Ceph, SeaweedFS)"
        )
    if store.replace(PROBE, body, etag='"00000000000000000000000000000000"'):
        raise InvalidInputError(
            f"{store.identity} ignores If-Match; the archive needs a store with conditional writes"
            " (AWS S3, MinIO, Ceph, SeaweedFS)"
        )
    store.check_is_one()
    return store


class S3Store:
    """A `BlobStore` in an S3 bucket.

    Args:
        client: Any boto3 S3 client; clients are thread-safe.
        prefix: Put before every key; one bucket can hold several archives.
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        prefix = check_prefix(prefix).strip("/")
        self._prefix = f"{prefix}/" if prefix else ""
        self._where = f"s3://{bucket}/{self._prefix}"
        self._identity = f"{client.meta.endpoint_url}/{bucket}/{self._prefix}"
        self._transfer = Transfer.like(client, bucket, f"s3://{bucket}/")
        s3_delete.prepare(client)
        s3_measure.watch(client)

    @property
    def identity(self) -> str:
        """Endpoint, bucket and prefix."""
        return self._identity

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self._bucket

    def uri(self, key: str) -> str:
        """Return the `s3://` address of an object."""
        return f"{self._where}{key}"

    def check_bucket(self) -> None:
        """Check that the bucket exists and may be used.

        Raises:
            NotFoundError: There is no such bucket.
        """
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except boto_errors.ClientError as error:
            if status(error) == 404:
                raise NotFoundError(
                    f"there is no bucket {self._bucket!r} at {self._client.meta.endpoint_url};"
                    " create it, or name another"
                ) from error
            raise self._refused("HEAD", "", error) from error
        except NO_ANSWER_ERRORS as error:
            raise self._unreachable("HEAD", "", error) from error

    def check_is_one(self) -> None:
        """Check that one client reads and lists what the other wrote.

        Two stores would not have written two objects of one key and content in the same second.

        Raises:
            InvalidInputError: It does not.
        """
        transfer = self._transfer_of(PROBE)
        objects = [_fingerprint(lambda: self._read(PROBE))]
        if transfer is not None:
            objects.append(_fingerprint(lambda: transfer.get(self._prefix + PROBE, None)))
        if None in objects or len(set(objects)) > 1:
            raise InvalidInputError(
                f"the two clients of {self.identity} see two stores: {self.uri(PROBE)} as boto3"
                " reads it is not what obstore reads or wrote; look for variables and files of AWS,"
                " or a proxy, that only one of them uses"
            )
        if PROBE not in {info.key for info in self.list_objects(PROBE.rpartition("/")[0] + "/")}:
            raise InvalidInputError(
                f"{self.identity} does not list {self.uri(PROBE)}, which exists: it"
                f" stores keys below the prefix {self._prefix!r} in another way; choose another"
                " prefix"
            )

    def create(self, key: str, data: bytes, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """See `BlobStore.create`."""
        transfer = self._transfer_of(key)
        if transfer is not None:
            return transfer.put(self._prefix + key, data, media_type, "create")
        return self._put(key, data, media_type, {"IfNoneMatch": "*"})

    def replace(self, key: str, data: bytes, etag: str, media_type: str = BYTES_MEDIA_TYPE) -> bool:
        """See `BlobStore.replace`."""
        transfer = self._transfer_of(key)
        if transfer is not None:
            return transfer.put(self._prefix + key, data, media_type, {"e_tag": etag})
        return self._put(key, data, media_type, {"IfMatch": etag})

    def create_file(self, key: str, path: Path, digest: Digest, size: int) -> bool:
        """See `BlobStore.create_file`."""
        return self._put_file(key, path, digest, size, {"IfNoneMatch": "*"})

    def replace_file(self, key: str, path: Path, digest: Digest, size: int, etag: str) -> bool:
        """See `BlobStore.replace_file`."""
        return self._put_file(key, path, digest, size, {"IfMatch": etag})

    def get(self, key: str, size: int | None = None) -> StoredObject:
        """See `BlobStore.get`. A body that is cut short is requested again."""
        # Other objects are not named by their bytes: only boto3 compares them with the checksum
        # that the store keeps.
        transfer = self._transfer_of(key) if key.startswith(BLOBS) else None
        if transfer is not None:
            stored = transfer.get(self._prefix + key, size)
            return replace(stored, info=replace(stored.info, key=key))
        return self._read(key, size)

    def _read(self, key: str, size: int | None = None) -> StoredObject:
        """Read with boto3, whatever the key."""
        for attempt in range(1, _READ_ATTEMPTS + 1):
            response = self._get(key)
            body = response["Body"]
            info = object_info(key, response)
            try:
                # Closed on every path: a body left unread holds one of the pool's connections.
                with body:
                    check_size(self.uri(key), info.size, size)
                    return StoredObject(info, body.read())
            except boto_errors.FlexibleChecksumError as error:
                raise CorruptDataError(f"{self.uri(key)}: {error}") from error
            except _BODY_ERRORS as error:
                if attempt == _READ_ATTEMPTS:
                    raise self._unreachable("GET", key, error) from error
        raise AssertionError

    @contextmanager
    def open(self, key: str, size: int | None = None) -> Iterator[ObjectStream]:
        """See `BlobStore.open`."""
        response = self._get(key)
        info = object_info(key, response)
        with response["Body"] as body:
            check_size(self.uri(key), info.size, size)
            yield ObjectStream(info, self._chunks(key, body, info.size))

    def stat(self, key: str) -> ObjectInfo | None:
        """See `BlobStore.stat`."""
        try:
            response = self._client.head_object(
                Bucket=self._bucket, Key=self._prefix + key, ChecksumMode="ENABLED"
            )
        except boto_errors.ClientError as error:
            if status(error) != 404:
                raise self._refused("HEAD", key, error) from error
        except NO_ANSWER_ERRORS as error:
            raise self._unreachable("HEAD", key, error) from error
        else:
            return object_info(key, response)
        # HEAD has no body, so its 404 does not say what is missing. A GET does.
        try:
            with self.open(key) as stream:
                return stream.info
        except NotFoundError:
            return None

    def list_objects(self, prefix: str, limit: int | None = None) -> Iterator[ObjectInfo]:
        """See `BlobStore.list_objects`."""
        infos: list[ObjectInfo] = []
        for page in self._pages(prefix):
            infos += [
                ObjectInfo(
                    key=item["Key"][len(self._prefix) :],
                    size=item["Size"],
                    modified_at=item["LastModified"],
                    etag=required(item["Key"], item, "ETag"),
                )
                for item in page.get("Contents", [])
                if not item["Key"].endswith("/")
            ]
            if limit is not None and len(infos) > limit:
                break
        # Stores over folders list siblings in another order than AWS.
        return iter(sorted(infos, key=lambda info: info.key))

    def list_folders(self, prefix: str) -> list[str]:
        """See `BlobStore.list_folders`."""
        start = len(self._prefix + prefix)
        return sorted(
            folder["Prefix"][start:].rstrip("/")
            for page in self._pages(prefix, Delimiter="/")
            for folder in page.get("CommonPrefixes", [])
        )

    def delete(self, key: str) -> None:
        """See `BlobStore.delete`."""
        self._write(
            "DELETE",
            key,
            lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key),
        )

    def now(self) -> datetime:
        """See `BlobStore.now`."""
        try:
            answer = self._client.head_bucket(Bucket=self._bucket)
        except boto_errors.ClientError as error:
            raise self._refused("HEAD", "", error) from error
        except NO_ANSWER_ERRORS as error:
            raise self._unreachable("HEAD", "", error) from error
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        try:
            return parsedate_to_datetime(date)
        except ValueError as error:
            raise StoreUnavailableError(
                f"HEAD {self._where}: the answer has no Date, so the store's time is not known"
            ) from error

    def delete_before(self, key: str, deadline: datetime) -> bool:
        """See `BlobStore.delete_before`."""
        address = s3_delete.sign(self._client, self._bucket, self._prefix + key, deadline)
        attempts_before: list[int] = []

        def send() -> None:
            with s3_delete.sent_to(address):
                answer = self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
            attempts_before.append(answer["ResponseMetadata"].get("RetryAttempts", 0))

        self._write("DELETE", key, send)
        return attempts_before == [0]

    def matches_file(self, info: ObjectInfo, path: Path) -> bool | None:
        """See `BlobStore.matches_file`."""
        if info.composite_sha256 is None:
            return None
        sums = []
        with open_unchanged(path) as file:
            while part := file.read(PART_BYTES):
                sums.append(hashlib.sha256(part).digest())
        if not info.composite_sha256.endswith(f"-{len(sums)}"):
            return None  # uploaded by another program, in other parts
        expected = base64_text(hashlib.sha256(b"".join(sums)).digest())
        return info.composite_sha256 == f"{expected}-{len(sums)}"

    def _transfer_of(self, key: str) -> Transfer | None:
        return self._transfer if Transfer.can_transfer(self._prefix + key) else None

    def _put(self, key: str, data: bytes, media_type: str, condition: dict[str, Any]) -> bool:
        return self._put_body(key, data, hashlib.sha256(data).digest(), media_type, condition)

    def _put_body(
        self,
        key: str,
        body: bytes | BinaryIO,
        sha256: bytes,
        media_type: str,
        condition: dict[str, Any],
    ) -> bool:
        return self._write(
            "PUT",
            key,
            lambda: self._client.put_object(
                Bucket=self._bucket,
                Key=self._prefix + key,
                Body=body,
                ContentType=media_type,
                ChecksumSHA256=base64_text(sha256),
                **condition,
            ),
        )

    def _put_file(
        self, key: str, path: Path, digest: Digest, size: int, condition: dict[str, Any]
    ) -> bool:
        if size > MULTIPART_BYTES:
            return self._put_parts(key, path, digest, condition)
        sha256 = bytes.fromhex(digest.hex)
        try:
            with open_unchanged(path) as file:
                return self._put_body(key, file, sha256, BYTES_MEDIA_TYPE, condition)
        except StoreUnavailableError as error:
            # The store compares the bytes with the checksum and says no in a way of its own.
            with open_unchanged(path) as file:
                actual, _ = digest_stream(file)
            if actual != digest:
                raise CorruptDataError(f"file {path} is not {digest}: it changed") from error
            raise

    def _put_parts(self, key: str, path: Path, digest: Digest, condition: dict[str, Any]) -> bool:
        target: dict[str, Any] = {"Bucket": self._bucket, "Key": self._prefix + key}
        upload: dict[str, Any] = {}

        def begin() -> None:
            upload["UploadId"] = self._client.create_multipart_upload(
                **target,
                ContentType=BYTES_MEDIA_TYPE,
                ChecksumAlgorithm="SHA256",
                Metadata={"sha256": digest.hex},
            )["UploadId"]

        self._write("POST", key, begin)
        try:
            parts = self._upload_parts(key, path, digest, {**target, **upload})
            created = self._write(
                "POST",
                key,
                lambda: self._client.complete_multipart_upload(
                    **target, **upload, MultipartUpload={"Parts": parts}, **condition
                ),
            )
        except OutcomeUnknownError:
            raise  # it may be complete: aborting it is for the bucket's lifecycle rule
        except BaseException:
            self._abort(target, upload)
            raise
        if not created:
            self._abort(target, upload)
        return created

    def _upload_parts(
        self, key: str, path: Path, digest: Digest, upload: dict[str, Any]
    ) -> "list[CompletedPartTypeDef]":
        hasher = hashlib.sha256()

        def send(number: int, data: bytes) -> "CompletedPartTypeDef":
            checksum = base64_text(hashlib.sha256(data).digest())
            etags: list[str] = []
            self._write(
                "PUT",
                key,
                lambda: etags.append(
                    required(
                        key,
                        self._client.upload_part(
                            **upload, PartNumber=number, Body=data, ChecksumSHA256=checksum
                        ),
                        "ETag",
                    )
                ),
            )
            return {"PartNumber": number, "ETag": etags[0], "ChecksumSHA256": checksum}

        parts: list[CompletedPartTypeDef] = []
        with open_unchanged(path) as file, ThreadPoolExecutor(_PART_WORKERS) as pool:
            number = 1
            while group := _read_parts(file, hasher):
                numbers = range(number, number + len(group))
                parts.extend(pool.map(send, numbers, group))
                number += len(group)
        if hasher.hexdigest() != digest.hex:
            raise CorruptDataError(f"file {path} is not {digest}: it changed")
        return parts

    def _abort(self, target: dict[str, Any], upload: dict[str, Any]) -> None:
        try:
            self._client.abort_multipart_upload(**target, **upload)
        except (boto_errors.ClientError, *NO_ANSWER_ERRORS):
            # Parts without an object are invisible and are removed by the bucket's lifecycle rule;
            # the error or answer that led here matters more.
            return

    def _get(self, key: str) -> Any:
        try:
            return self._client.get_object(
                Bucket=self._bucket, Key=self._prefix + key, ChecksumMode="ENABLED"
            )
        except boto_errors.ClientError as error:
            if status(error) == 404 and code(error) == "NoSuchKey":
                raise NotFoundError(f"no object {self.uri(key)}") from error
            raise self._refused("GET", key, error) from error
        except NO_ANSWER_ERRORS as error:
            raise self._unreachable("GET", key, error) from error

    def _chunks(self, key: str, body: Any, size: int) -> Iterator[bytes]:
        left = size
        try:
            while chunk := body.read(_CHUNK_BYTES):
                left -= len(chunk)
                yield chunk
        except boto_errors.FlexibleChecksumError as error:
            raise CorruptDataError(f"{self.uri(key)}: {error}") from error
        except _BODY_ERRORS as error:
            raise self._unreachable("GET", key, error) from error
        if left:
            # Read in pieces, a body that ends early is not noticed by boto3 or urllib3.
            raise StoreUnavailableError(f"GET {self.uri(key)}: the answer ended {left} bytes early")

    def _pages(self, prefix: str, **options: Any) -> Iterator[Any]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + prefix, **options
        )
        try:
            yield from pages
        except boto_errors.ClientError as error:
            raise self._refused("LIST", prefix, error) from error
        except NO_ANSWER_ERRORS as error:
            raise self._unreachable("LIST", prefix, error) from error

    def _write(self, verb: str, key: str, call: Callable[[], object]) -> bool:
        """Return whether a write happened; False if its condition did not hold."""
        try:
            call()
        except boto_errors.ClientError as error:
            http_status, s3_code = status(error), code(error)
            if http_status in _EXISTS or (http_status == 404 and s3_code == "NoSuchKey"):
                # 404: AWS's answer to If-Match on a key that is gone.
                return False
            if http_status >= 500 or retries(error) > 0:
                # A server error may come after the act; so may a refusal that follows a retry.
                raise OutcomeUnknownError(
                    f"{verb} {self.uri(key)}: no clear answer ({http_status} {s3_code}): {error}"
                    f"{explained(http_status)}"
                ) from error
            raise self._refused(verb, key, error) from error
        except _NEVER_SENT as error:
            raise self._unreachable(verb, key, error) from error
        except NO_ANSWER_ERRORS as error:
            raise OutcomeUnknownError(f"{verb} {self.uri(key)}: no answer: {error}") from error
        return True

    def _refused(self, verb: str, key: str, error: boto_errors.ClientError) -> FeaturePipelineError:
        message = error.response.get("Error", {}).get("Message", "")
        # The answer to HEAD has no body, so boto3 gives its status for a code.
        what = "" if code(error) == str(status(error)) else f" {code(error)}:"
        return StoreUnavailableError(
            f"{verb} {self.uri(key)}: {status(error)}{what} {message}"
            f" (endpoint {self._client.meta.endpoint_url})"
        )

    def _unreachable(self, verb: str, key: str, error: Exception) -> FeaturePipelineError:
        return StoreUnavailableError(f"{verb} {self.uri(key)}: {error}")


def _fingerprint(read: Callable[[], StoredObject]) -> tuple[bytes, datetime] | None:
    """Return what tells an object from an equal one in another store; None if absent."""
    try:
        stored = read()
    except NotFoundError:
        return None
    # Stores give the time to the second in some answers, and to the millisecond in others.
    return stored.data, stored.info.modified_at.replace(microsecond=0)


def _read_parts(file: BinaryIO, hasher: Any) -> list[bytes]:
    """Return the next parts, as many as are sent at once; empty at the file's end."""
    group: list[bytes] = []
    while len(group) < _PART_WORKERS and (part := file.read(PART_BYTES)):
        hasher.update(part)
        group.append(part)
    return group
