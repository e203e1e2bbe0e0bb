"""boto3 clients as archives want them; `S3Store` works with any other, too."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def make_client(
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    pool: int = 32,
) -> "S3Client":
    """A boto3 S3 client set up for archives; what is not given comes from boto3's usual places.

    A custom endpoint is addressed by path, because buckets have no host names there.
    """
    config = Config(
        # requests have it anyway; unless it is said, addresses are signed the old way
        signature_version="s3v4",
        s3={"addressing_style": "path" if endpoint_url else "auto"},
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=pool,
        connect_timeout=5,
        read_timeout=60,
        # Every write carries its SHA-256 and every blob is checked against its name; boto3's own
        # CRC32 would be computed beside them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client: S3Client = boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint_url,
        region_name=region,
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        aws_session_token=session_token,
        config=config,
    )
    return client


def client_from_environment(environment: Mapping[str, str]) -> "S3Client":
    """A client by the AWS variables of `environment`, the only places looked at beside boto3's own.

    `AWS_ENDPOINT_URL_S3` goes before `AWS_ENDPOINT_URL`, `AWS_REGION` before
    `AWS_DEFAULT_REGION`.
    """
    return make_client(
        endpoint_url=environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
        region=environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
        access_key_id=environment.get("AWS_ACCESS_KEY_ID"),
        secret_access_key=environment.get("AWS_SECRET_ACCESS_KEY"),
        session_token=environment.get("AWS_SESSION_TOKEN"),
    )
