"""Signed addresses of single objects, valid for a limited time."""

from datetime import timedelta
from typing import TYPE_CHECKING, Final

import botocore.exceptions as boto_errors

from feature_pipeline.errors import InvalidInputError, StoreUnavailableError
from feature_pipeline.settings import check_prefix

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LONGEST: Final = timedelta(days=7)
"""Maximum lifetime with signature version 4. An address signed with a session's credentials stops
working with the session, whatever its own lifetime.
"""


class S3Signer:
    """Signs addresses with the credentials of `client`; nothing is sent.

    Args:
        client: Its credentials determine what an address may do, and how long it works.
        bucket: The archive's bucket.
        prefix: The archive's prefix, put before every key.
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str = "") -> None:
        self._client = client
        self._bucket = bucket
        prefix = check_prefix(prefix).strip("/")
        self._prefix = f"{prefix}/" if prefix else ""

    def sign_get(self, key: str, seconds: float) -> str:
        """Return an address that reads the object."""
        return self._sign("get_object", key, seconds)

    def sign_put(self, key: str, seconds: float) -> str:
        """Return an address that writes the object."""
        return self._sign("put_object", key, seconds)

    def _sign(self, method: str, key: str, seconds: float) -> str:
        if not 0 < seconds <= LONGEST.total_seconds():
            raise InvalidInputError(
                f"an address cannot be signed for {seconds:.0f} s: S3 allows at most"
                f" {LONGEST.total_seconds():.0f} s; shorten the hook's limits.timeout"
            )
        try:
            url: str = self._client.generate_presigned_url(
                method,
                Params={"Bucket": self._bucket, "Key": self._prefix + key},
                ExpiresIn=int(seconds),
            )
        except boto_errors.BotoCoreError as error:
            raise StoreUnavailableError(f"{key}: cannot be signed: {error}") from error
        if "X-Amz-Signature=" not in url:
            raise InvalidInputError(
                "the S3 client signs URLs with an old signature version, which stores refuse:"
                " create it with signature_version='s3v4'"
            )
        return url
