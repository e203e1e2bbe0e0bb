"""Create boto3 clients for archives; `S3Store` works with any other, too.

A client gets every setting explicitly. If keys are given, AWS's variables and files are not read.
Otherwise they supply credentials and a default region, and nothing else: an endpoint, retry mode or
signing option of the shell would not affect obstore, which sends the archive's small objects, and
the two clients must behave alike.
"""

import contextlib
import os
import urllib.parse
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

import boto3
import botocore.exceptions as boto_errors
import botocore.session
from botocore.config import Config
from botocore.utils import parse_timestamp

from feature_pipeline import settings
from feature_pipeline.errors import InvalidInputError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_CHAIN: Final = frozenset(
    {
        "profile",
        "region",
        "config_file",
        "credentials_file",
        "metadata_service_timeout",
        "metadata_service_num_attempts",
        "ec2_metadata_service_endpoint",
        "ec2_metadata_service_endpoint_mode",
        "ec2_metadata_v1_disabled",
        "imds_use_ipv6",
        "sts_regional_endpoints",
    }
)
"""Settings with which botocore finds credentials and a region."""
_USER_AGENT: Final = "feature-pipeline"
"""Given, because botocore composes its own for every request, which takes a tenth of its time."""


def make_client(
    *,
    endpoint_url: str | None = None,
    region: str | None = None,
    access_key_id: str | None = None,
    secret_access_key: str | None = None,
    session_token: str | None = None,
    pool: int = 32,
) -> "S3Client":
    """Make a boto3 S3 client set up for archives.

    Args:
        endpoint_url: For stores other than AWS. Requests are path-style, because buckets have no
            host names there.
        region: By default boto3's; if keys are given, the endpoint's.
        access_key_id: With `secret_access_key`: credentials. Without them, boto3's usual sources
            are used.
        secret_access_key: See `access_key_id`.
        session_token: Of temporary credentials.
        pool: Number of connections that are kept open.

    Raises:
        InvalidInputError: AWS's variables or files name a profile that does not exist, for example.
    """
    options: dict[str, Any] = {
        "ignore_configured_endpoint_urls": True,
        "defaults_mode": "legacy",
    }
    config = Config(
        # requests have it anyway; unless it is said, addresses are signed the old way
        signature_version="s3v4",
        s3={
            "addressing_style": "path" if endpoint_url else "auto",
            "us_east_1_regional_endpoint": "legacy",
            "use_accelerate_endpoint": False,
        },
        retries={"mode": "standard", "total_max_attempts": 4},
        max_pool_connections=pool,
        connect_timeout=5,
        read_timeout=60,
        # Every write carries its SHA-256 and every blob is checked against its name; boto3's own
        # CRC32 would be computed beside them.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        use_dualstack_endpoint=False,
        use_fips_endpoint=False,
        disable_request_compression=True,
        user_agent=_USER_AGENT,
        proxies=proxies_for(endpoint_url or "https://s3.amazonaws.com"),
        **options,
    )
    try:
        client: S3Client = boto_session(is_explicit=access_key_id is not None).client(
            "s3",
            endpoint_url=endpoint_url,
            region_name=region,
            aws_access_key_id=access_key_id,
            aws_secret_access_key=secret_access_key,
            aws_session_token=session_token,
            verify=settings.ca_bundle() if is_encrypted(endpoint_url) else None,
            config=config,
        )
    except (boto_errors.BotoCoreError, ValueError) as error:
        raise InvalidInputError(f"cannot create an S3 client: {error}") from error
    return client


def client_of(where: settings.S3Settings) -> "S3Client":
    """Make the client that reaches the archive's bucket.

    Raises:
        InvalidInputError: See `make_client`.
    """
    return make_client(
        endpoint_url=where.endpoint_url,
        region=where.region,
        access_key_id=where.access_key_id,
        secret_access_key=where.secret_access_key,
        session_token=where.session_token,
    )


def boto_session(*, is_explicit: bool) -> boto3.session.Session:
    """Make a session that reads only credentials from AWS's variables and files, or nothing.

    Args:
        is_explicit: Whether credentials are given to the clients that it makes.
    """
    variables: dict[str, Any] = {}
    for name, (_, _, default, convert) in botocore.session.Session.SESSION_VARIABLES.items():
        if is_explicit or name not in _CHAIN:
            variables[name] = (None, None, default, convert)
    if is_explicit:
        for name in ("config_file", "credentials_file"):
            variables[name] = (None, None, os.devnull, None)
    core = botocore.session.Session(session_vars=variables)
    factory = core.get_component("response_parser_factory")
    factory.set_parser_defaults(timestamp_parser=parse_instant)
    return boto3.session.Session(botocore_session=core)


def parse_instant(value: Any) -> datetime:
    """Parse a timestamp of an answer to what botocore makes of it, many times as fast.

    A listing has one for every object, and botocore tries format after format.
    """
    for parse in (_parse_iso, parsedate_to_datetime):  # in listings; in headers
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            instant = parse(value)
            if instant.tzinfo is not None:
                return instant
    parsed: datetime = parse_timestamp(value)
    return parsed


def _parse_iso(text: str) -> datetime:
    # Digits alone are seconds since 1970.
    if text[4:5] != "-":
        raise ValueError(text)
    return datetime.fromisoformat(text)


def is_encrypted(endpoint_url: str | None) -> bool:
    """Return whether the endpoint uses TLS; AWS always does."""
    return endpoint_url is None or urllib.parse.urlsplit(endpoint_url).scheme == "https"


def proxies_for(url: str) -> dict[str, str]:
    """Return the proxies by which botocore reaches `url`; none for a server on this machine."""
    proxy = settings.proxy_for(url)
    return {} if proxy is None else {urllib.parse.urlsplit(url).scheme: proxy}
