"""The S3 properties that the archive needs, and a test of each on a store.

Each test uses objects below `probe/`, which are removed afterwards. Opening an archive tests only
the conditional writes (`open_store`); this module tests everything, which takes some seconds.
"""

import hashlib
import secrets
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import botocore.exceptions as boto_errors

from feature_pipeline.archive.format.layout import PROBE
from feature_pipeline.archive.store import s3_delete
from feature_pipeline.archive.store.s3 import S3Store
from feature_pipeline.archive.store.s3_responses import (
    NO_ANSWER_ERRORS,
    base64_text,
    required,
    status,
)
from feature_pipeline.errors import FeaturePipelineError
from feature_pipeline.model.digest import Digest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import CompletedPartTypeDef

_WRITERS: Final = 8
_ROUNDS: Final = 10
_NO_ETAG: Final = '"00000000000000000000000000000000"'
_SIGNED_FOR: Final = timedelta(seconds=2)
_PAUSE_SECONDS: Final = 0.2
_CLOCK_TOLERANCE: Final = timedelta(minutes=5)
"""S3 refuses requests whose clock differs by more than a quarter of an hour."""


@dataclass(frozen=True, slots=True)
class _Place:
    """The store under test, with its client."""

    store: S3Store
    client: "S3Client"
    prefix: str
    folder: str

    def target(self, key: str) -> dict[str, Any]:
        """An object in boto3's parameters."""
        return {"Bucket": self.store.bucket, "Key": f"{self.prefix}{self.folder}{key}"}


class _Lacking(Exception):
    """The store does not behave as the property requires; the text gives the difference."""


@dataclass(frozen=True, slots=True)
class StoreProperty:
    """A property, the reason for it, and how the store deviates from it (None if it has it).

    The archive works without an optional property: `needed_for` describes the effect.
    """

    name: str
    needed_for: str
    is_required: bool
    failure: str | None

    @property
    def is_present(self) -> bool:
        """Whether the store has it."""
        return self.failure is None


def check_store(client: "S3Client", bucket: str, prefix: str = "") -> list[StoreProperty]:
    """Test each property below `prefix` in `bucket`.

    Raises:
        NotFoundError: There is no such bucket.
        StoreUnavailableError: The store could not be reached.
    """
    store = S3Store(client, bucket, prefix)
    store.check_bucket()
    prefix = prefix.strip("/")
    folder = f"{PROBE.rpartition('/')[0]}/check-{secrets.token_hex(8)}/"
    place = _Place(store, client, f"{prefix}/" if prefix else "", folder)
    try:
        return [
            StoreProperty(name, needed_for, is_required, _try(check, place))
            for name, needed_for, is_required, check in _CHECKS
        ]
    finally:
        # What a store cannot delete is small, and read by nothing.
        with suppress(FeaturePipelineError):
            for info in store.list_objects(folder):
                store.delete(info.key)


def _try(check: Callable[[_Place], None], place: _Place) -> str | None:
    try:
        check(place)
    except (_Lacking, FeaturePipelineError) as error:
        return str(error)
    except (boto_errors.ClientError, *NO_ANSWER_ERRORS) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _need(condition: object, otherwise: str) -> None:
    if not condition:
        raise _Lacking(otherwise)


def _conditional_creation(place: _Place) -> None:
    store, folder = place.store, place.folder
    key = folder + "created"
    _need(store.create(key, b"first"), "If-None-Match: * refused a key that was not there")
    _need(not store.create(key, b"second"), "PUT with If-None-Match: * wrote over an object")
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / "third"  # files go by another client than small objects
        path.write_bytes(b"third")
        written = store.create_file(key, path, Digest.of(b"third"), 5)
    _need(not written, "PUT with If-None-Match: * wrote over an object")
    _need(store.get(key).data == b"first", "a refused PUT changed the object")


def _one_creator(place: _Place) -> None:
    store, folder = place.store, place.folder
    for number in range(3):
        key = f"{folder}race-{number}"
        bodies = [bytes([65 + writer]) for writer in range(_WRITERS)]
        with ThreadPoolExecutor(_WRITERS) as pool:
            won = list(pool.map(lambda body, key=key: store.create(key, body), bodies))
        _need(
            sum(won) == 1, f"{sum(won)} of {_WRITERS} writers concurrent writers created one object"
        )
        stored = store.get(key).data
        _need(
            stored == bodies[won.index(True)],
            "the object has the bytes of a writer other than the winner",
        )


def _conditional_replacement(place: _Place) -> None:
    store, folder = place.store, place.folder
    key = folder + "replaced"
    _need(not store.replace(key, b"new", _NO_ETAG), "PUT with If-Match created an object")
    _need(store.stat(key) is None, "a refused PUT with If-Match created an object")
    store.create(key, b"old")
    _need(not store.replace(key, b"new", _NO_ETAG), "PUT ignored an If-Match that did not hold")
    etag = store.get(key).info.etag
    _need(store.replace(key, b"new", etag), "PUT refused an If-Match that held")
    _need(store.get(key).data == b"new", "a PUT with If-Match that succeeded changed nothing")


def _reads_after_writes(place: _Place) -> None:
    store, folder = place.store, place.folder
    for number in range(_ROUNDS):
        key = f"{folder}round/{number}"
        store.create(key, b"1")
        _need(store.stat(key) is not None, "HEAD did not find an object that was just written")
        _need(key in _listed(store, folder), "LIST did not name an object that was just written")
        store.replace(key, b"22", store.get(key).info.etag)
        _need(store.get(key).data == b"22", "GET gave the bytes before the last write")
        store.delete(key)
        _need(store.stat(key) is None, "HEAD found an object that was just deleted")
        _need(key not in _listed(store, folder), "LIST named an object that was just deleted")


def _listed(store: S3Store, folder: str) -> set[str]:
    return {info.key for info in store.list_objects(folder + "round/")}


def _whole_listings(place: _Place) -> None:
    store, folder = place.store, f"{place.folder}pages/"
    names = ["a", "a.b", "a/1", "a/2", "b-c", "b_c/1", "b_c=d"]
    for name in names:
        store.create(folder + name, b"")
    pages = place.client.get_paginator("list_objects_v2").paginate(
        Bucket=store.bucket, Prefix=place.prefix + folder, PaginationConfig={"PageSize": 2}
    )
    listed = [item["Key"] for page in pages for item in page.get("Contents", [])]
    _need(
        sorted(listed) == sorted(f"{place.prefix}{folder}{name}" for name in names),
        f"LIST in pages of two gave {len(listed)} keys instead of {len(names)}, or others",
    )
    folders = store.list_folders(folder)
    _need(folders == ["a", "b_c"], f"LIST with a delimiter gave the folders {folders}")


def _conditional_parts(place: _Place) -> None:
    target, client = place.target("parts"), place.client
    _need(_upload_in_parts(client, target, b"first"), "an upload in parts was refused")
    _need(
        not _upload_in_parts(client, target, b"second"),
        "completing an upload in parts ignored If-None-Match",
    )
    data = place.store.get(f"{place.folder}parts").data
    _need(data == b"first", "an upload in parts has other bytes than its parts")


def _upload_in_parts(client: "S3Client", target: dict[str, Any], data: bytes) -> bool:
    upload: dict[str, Any] = {
        "UploadId": client.create_multipart_upload(**target, ChecksumAlgorithm="SHA256")["UploadId"]
    }
    checksum = base64_text(hashlib.sha256(data).digest())
    part = client.upload_part(**target, **upload, PartNumber=1, Body=data, ChecksumSHA256=checksum)
    parts: list[CompletedPartTypeDef] = [
        {
            "PartNumber": 1,
            "ETag": required(target["Key"], part, "ETag"),
            "ChecksumSHA256": checksum,
        }
    ]
    try:
        client.complete_multipart_upload(
            **target, **upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
        )
    except boto_errors.ClientError as error:
        if status(error) not in {409, 412}:
            raise
        client.abort_multipart_upload(**target, **upload)
        return False
    return True


def _checksums(place: _Place) -> None:
    store, key = place.store, f"{place.folder}checked"
    wrong = base64_text(bytes(32))
    try:
        place.client.put_object(**place.target("checked"), Body=b"data", ChecksumSHA256=wrong)
    except boto_errors.ClientError:
        _need(store.stat(key) is None, "a PUT that was refused for its checksum left an object")
    else:
        raise _Lacking("PUT took bytes whose SHA-256 is not the one that came with them")
    store.create(key, b"data")
    info = store.stat(key)
    has_checksum = info is not None and info.sha256 == Digest.of(b"data")
    _need(has_checksum, "HEAD does not give the SHA-256 that came with the bytes")


def _signatures_end(place: _Place) -> None:
    store, key = place.store, f"{place.folder}deadline"
    store.create(key, b"")
    store.delete_before(key, datetime.now(UTC) + timedelta(minutes=5))
    _need(store.stat(key) is None, "DELETE by a signed address deleted nothing")
    store.create(key, b"")
    target = place.target("deadline")
    deadline = datetime.now(UTC) + _SIGNED_FOR
    address = s3_delete.sign(place.client, target["Bucket"], target["Key"], deadline)
    # by the store's clock, and whole seconds of it
    end = store.now() + 2 * _SIGNED_FOR
    while store.now() <= end:
        time.sleep(_PAUSE_SECONDS)
    try:
        with s3_delete.sent_to(address):
            place.client.delete_object(**target)
    except boto_errors.ClientError:
        _need(store.stat(key) is not None, "a refused DELETE deleted the object")
    else:
        raise _Lacking("DELETE by a signed address was accepted after the address had expired")


def _clock(place: _Place) -> None:
    store, folder = place.store, place.folder
    key = folder + "clock"
    before = store.now()
    store.create(key, b"")
    apart = abs(store.get(key).info.modified_at - before)
    _need(apart < _CLOCK_TOLERANCE, f"Last-Modified is {apart} from the answers' Date")


_CHECKS: Final[tuple[tuple[str, str, bool, Callable[[_Place], None]], ...]] = (
    ("conditional creation", "If-None-Match: log entries are never overwritten", True,
     _conditional_creation),
    ("one creator", "of concurrent writers, exactly one appends", True, _one_creator),
    ("conditional replacement", "If-Match: only a damaged object is replaced", True,
     _conditional_replacement),
    ("conditional uploads in parts", "the same for files above 64 MiB", True, _conditional_parts),
    ("reads after writes", "what is accepted is seen by the next reader", True,
     _reads_after_writes),
    ("whole listings", "every batch, log and blob is listed; the order is irrelevant", True,
     _whole_listings),
    ("signatures end", "no deletion or upload arrives after its deadline", True, _signatures_end),
    ("a clock", "ages of objects are compared with the store's own time", True, _clock),
    ("checksums", "without them, presence is proved by reading every object", False, _checksums),
)  # fmt: skip
