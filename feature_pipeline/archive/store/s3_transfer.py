"""Read and write whole objects, one request each, with obstore: three times boto3's rate.

boto3 spends a millisecond of Python on every request, which dominates the cost of small objects.
"""

import os
import random
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import obstore
from botocore.client import BaseClient
from obstore import exceptions as errors
from obstore.store import S3Store as ObjectStore

from feature_pipeline import settings
from feature_pipeline.archive.store.base import ObjectInfo, StoredObject
from feature_pipeline.archive.store.memory import check_size
from feature_pipeline.archive.store.s3_measure import count_request
from feature_pipeline.archive.store.s3_responses import explained, required
from feature_pipeline.errors import NotFoundError, OutcomeUnknownError, StoreUnavailableError
from feature_pipeline.model.instruments import NO_ANSWER

if TYPE_CHECKING:
    from obstore import UpdateVersion
    from obstore.store import ClientConfig, S3Config, S3Credential

Condition: TypeAlias = 'Literal["create"] | UpdateVersion'
"""Condition of a PUT: that there is no object, or that its ETag is this."""

_ATTEMPTS: Final = 4
_FIRST_BACKOFF_SECONDS: Final = 0.1
_CREDENTIALS_LIFETIME: Final = timedelta(minutes=1)
"""How long obstore keeps credentials before it asks again; boto3 renews expired ones."""
_SAFE_KEY: Final = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")
"""Keys that no client encodes in another way on its path to the server."""
_REFUSED: Final = re.compile(r"status code: 4(?!08|29)\d\d")
_STATUS: Final = re.compile(r"status code: ([1-5]\d\d)\b")
_ANSWER: Final = re.compile(
    r"status code: (\d{3}).*?<Code>([^<]*)</Code>.*?<Message>([^<]*)</Message>", re.DOTALL
)
_CLIENT_OPTIONS: Final["ClientConfig"] = {
    "connect_timeout": "5s",
    "read_timeout": "60s",
    "timeout": "15m",
}

_UNSETTABLE: Final = "AWS_SERVER_SIDE_ENCRYPTION"
"""obstore reads it from the environment, and no explicit setting selects its default."""
_NO_PROXY: Final = "http://127.0.0.1:9"
"""A proxy setting that is never used: without one, obstore takes the environment's."""

_process: int | None = None
"""The process that obstore's threads run in: a forked child inherits them stopped."""


class Transfer:
    """Objects of a bucket, at the endpoint and with the credentials of a boto3 client."""

    def __init__(self, store: ObjectStore, where: str) -> None:
        self._store = store
        self._where = where

    @classmethod
    def like(cls, client: object, bucket: str, where: str) -> Self | None:
        """Return a transfer to the client's endpoint; None if obstore cannot do it.

        Args:
            where: How errors name the bucket: the text before its keys.
        """
        if not isinstance(client, BaseClient) or not re.fullmatch(r"[a-z0-9.\-]+", bucket):
            return None  # a client of the caller's, or an access point, whose address boto3 makes
        if _UNSETTABLE in os.environ:
            return None
        global _process
        _process = _process or os.getpid()
        # boto3 does not say elsewhere whose credentials a client signs with.
        credentials = getattr(getattr(client, "_request_signer", None), "_credentials", None)
        if credentials is None:
            return None

        def frozen() -> "S3Credential":
            now = credentials.get_frozen_credentials()
            return {
                "access_key_id": now.access_key,
                "secret_access_key": now.secret_key,
                "token": now.token,
                "expires_at": datetime.now(UTC) + _CREDENTIALS_LIFETIME,
            }

        endpoint: str = client.meta.endpoint_url
        config: S3Config = {
            "bucket": bucket,
            # Both: the variable of the second outranks the first.
            "endpoint": endpoint,
            "aws_endpoint_url_s3": endpoint,
            "region": client.meta.region_name or "us-east-1",
            "virtual_hosted_style_request": False,
            "checksum_algorithm": "SHA256",
            # What follows is obstore's default, and given so that AWS_* variables do not change it.
            "conditional_put": "etag",
            "copy_if_not_exists": "multipart",
            "disable_tagging": False,
            "request_payer": False,
            "s3_express": False,
            "skip_signature": False,
            "unsigned_payload": False,
        }
        store = ObjectStore(
            config=config,
            client_options=_client_options(client, endpoint),
            # Repeated here, where an answer that was lost is not forgotten over the next one.
            retry_config={"max_retries": 0},
            credential_provider=frozen,
        )
        return cls(store, where)

    @staticmethod
    def can_transfer(key: str) -> bool:
        """Return whether this process may transfer, and the key is the same for every client."""
        return os.getpid() == _process and _SAFE_KEY.fullmatch(key) is not None

    def put(self, key: str, data: bytes, media_type: str, condition: Condition) -> bool:
        """Write `data`; return whether it is stored, False if the condition did not hold.

        The store compares the bytes with their SHA-256 and keeps it.

        Raises:
            StoreUnavailableError: The store refused; nothing was written.
            OutcomeUnknownError: No clear answer came.
        """
        unclear: Exception | None = None
        for attempt in range(_ATTEMPTS):
            if attempt:
                _pause(attempt)
            try:
                obstore.put(
                    self._store,
                    key,
                    data,
                    attributes={"Content-Type": media_type},
                    mode=condition,
                    use_multipart=False,
                )
            except (errors.AlreadyExistsError, errors.PreconditionError):
                _count("PutObject", "412", attempt)
                return False
            except FileNotFoundError as error:
                _count("PutObject", "404", attempt)
                if "NoSuchKey" in str(error):
                    return False  # AWS's answer to If-Match on a key that is gone
                raise self._unavailable("PUT", key, error) from error
            except errors.BaseError as error:
                _count("PutObject", _status(error), attempt)
                if not _is_refusal(error):
                    unclear = error
                elif unclear is None:
                    raise self._unavailable("PUT", key, error) from error
                else:
                    break
            else:
                _count("PutObject", "200", attempt)
                return True
        raise OutcomeUnknownError(
            f"PUT {self._where}{key}: no clear answer: {_shown(unclear)}"
        ) from unclear

    def get(self, key: str, size: int | None) -> StoredObject:
        """Return the object; its `info` is without checksums. See `BlobStore.get`."""
        for attempt in range(_ATTEMPTS):
            if attempt:
                _pause(attempt)
            try:
                answer = obstore.get(self._store, key)
                info = _info(key, answer.meta)
                check_size(f"{self._where}{key}", info.size, size)
                data = answer.bytes().to_bytes()
            except FileNotFoundError as error:
                _count("GetObject", "404", attempt)
                if "NoSuchKey" in str(error):
                    raise NotFoundError(f"no object {self._where}{key}") from error
                raise self._unavailable("GET", key, error) from error
            except errors.BaseError as error:
                _count("GetObject", _status(error), attempt)
                if _is_refusal(error) or attempt == _ATTEMPTS - 1:
                    raise self._unavailable("GET", key, error) from error
            else:
                _count("GetObject", "200", attempt)
                return StoredObject(info, data)
        raise AssertionError

    def _unavailable(self, verb: str, key: str, error: Exception) -> StoreUnavailableError:
        return StoreUnavailableError(f"{verb} {self._where}{key}: {_shown(error)}")


def _client_options(client: BaseClient, endpoint: str) -> "ClientConfig":
    """Return connection options equal to the client's, whatever proxies the environment has."""
    parts = urlsplit(endpoint)
    proxies: dict[str, str] | None = getattr(client.meta.config, "proxies", None)
    proxy = settings.proxy_for(endpoint) if proxies is None else proxies.get(parts.scheme)
    options: ClientConfig = {
        **_CLIENT_OPTIONS,
        "allow_http": parts.scheme == "http",
        "proxy_url": proxy or _NO_PROXY,
    }
    if proxy is None:
        options["proxy_excludes"] = parts.hostname or ""
    bundle = settings.ca_bundle() if parts.scheme == "https" else None
    if bundle is not None:
        options["root_certificate"] = Path(bundle).read_bytes()
    return options


def _info(key: str, meta: Any) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        size=meta["size"],
        modified_at=meta["last_modified"],
        etag=required(key, meta, "e_tag"),
    )


def _is_refusal(error: Exception) -> bool:
    """Return whether the store refused, rather than failed or did not answer."""
    refusals = (errors.PermissionDeniedError, errors.UnauthenticatedError, errors.InvalidPathError)
    return isinstance(error, refusals) or _REFUSED.search(str(error)) is not None


def _count(operation: str, status: str, attempt: int) -> None:
    count_request(operation, status, is_retry=attempt > 0)


def _status(error: Exception) -> str:
    match = _STATUS.search(str(error))
    return match[1] if match else NO_ANSWER


def _shown(error: Exception | None) -> str:
    text = str(error).partition("\n\nDebug source")[0]
    if (answer := _ANSWER.search(text)) is None:
        return text
    status, code, message = answer.groups()
    return f"{status} {code}: {message}{explained(int(status))}"


def _pause(attempt: int) -> None:
    longest = _FIRST_BACKOFF_SECONDS * 2**attempt
    time.sleep(random.uniform(longest / 2, longest))  # noqa: S311
