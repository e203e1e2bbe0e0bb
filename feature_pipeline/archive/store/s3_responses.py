"""Interpret S3's answers, which boto3 returns as untyped dictionaries."""

import base64
from typing import Any, Final

import botocore.exceptions as boto_errors
import urllib3.exceptions as http_errors

from feature_pipeline.archive.store.base import ObjectInfo
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.digest import Digest

NO_ANSWER_ERRORS: Final = (boto_errors.BotoCoreError, http_errors.HTTPError)
"""No answer came, or it broke off. Of an answer that is an error, boto3 reads the body where it
translates no error of the connection: urllib3's leaves it as it is.
"""


def required(key: str, response: Any, name: str) -> Any:
    """Return a part of an answer that every S3 server gives.

    Raises:
        InvalidInputError: The answer lacks it.
    """
    value = response.get(name)
    if value is None:
        raise InvalidInputError(
            f"the store's answer for {key} has no {name}: it is not compatible with S3;"
            " `feature-pipeline check-store` names what it lacks"
        )
    return value


def object_info(key: str, response: Any) -> ObjectInfo:
    """Return an object's metadata from an answer to HEAD or GET."""
    checksum = response.get("ChecksumSHA256")
    whole = checksum is not None and "-" not in checksum
    declared = response.get("Metadata", {}).get("sha256")
    return ObjectInfo(
        key=key,
        size=required(key, response, "ContentLength"),
        modified_at=required(key, response, "LastModified"),
        etag=required(key, response, "ETag"),
        sha256=_checksum_digest(checksum) if whole else None,
        composite_sha256=None if whole else checksum,
        declared_sha256=_declared_digest(declared) if declared is not None else None,
    )


def _checksum_digest(checksum: str) -> Digest | None:
    try:
        return Digest(base64.b64decode(checksum, validate=True).hex())
    except ValueError:
        return None


def _declared_digest(text: str) -> Digest | None:
    try:
        return Digest(text)
    except InvalidInputError:
        return None


def base64_text(data: bytes) -> str:
    """Return Base64, as S3 writes checksums."""
    return base64.b64encode(data).decode()


def status(error: boto_errors.ClientError) -> int:
    """Return the HTTP status of a refusal; 0 if there is none."""
    return error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)


def code(error: boto_errors.ClientError) -> str:
    """Return the S3 error code of a refusal; empty if there is none."""
    return error.response.get("Error", {}).get("Code", "")


def retries(error: boto_errors.ClientError) -> int:
    """Return how often boto3 had retried before this refusal; any may have been acted on."""
    return error.response.get("ResponseMetadata", {}).get("RetryAttempts", 0)


def explained(http_status: int) -> str:
    """Return what a user should know beyond the text of the store's answer."""
    if http_status in {500, 507}:
        return " (a store with a full disk answers like this: check its free space and its log)"
    return ""
