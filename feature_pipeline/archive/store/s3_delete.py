"""DELETE requests that a store refuses after a deadline.

A request may arrive long after it was sent: it is retried, waits in a proxy, or its process stalled
before sending it. Here the deadline is part of the signature, so the store itself enforces it, by
its own clock.

Source: Amazon S3 API reference, "Authenticating requests: using query parameters": `X-Amz-Expires`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

import botocore.exceptions as boto_errors

from feature_pipeline.archive.format.documents import instant_text, utc_now
from feature_pipeline.errors import StoreUnavailableError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_SIGNING_ATTEMPTS: Final = 3
_QUERY_SIGNER: Final = "s3v4-query"
_SHORTEST: Final = timedelta(seconds=1)
"""A signature's lifetime is a whole number of seconds."""

_address: ContextVar[str | None] = ContextVar("address", default=None)


def prepare(client: "S3Client") -> None:
    """Let `sent_to` decide where this client's DELETE requests go. Idempotent.

    Addresses of DELETE requests are signed with version 4, whatever the client uses for others: by
    default boto3 would sign them with version 2, which most stores refuse.
    """
    events = client.meta.events
    events.register("before-send.s3.DeleteObject", _redirect, unique_id=f"{__name__}.redirect")
    # The stubs know of no event that is answered.
    choose: Any = _choose
    events.register("choose-signer.s3.DeleteObject", choose, unique_id=f"{__name__}.choose")


@contextmanager
def sent_to(address: str) -> Iterator[None]:
    """Send each attempt of prepared clients' DELETE requests to this signed address.

    The client's own connections, proxies, certificates and retries are used.
    """
    token = _address.set(address)
    try:
        yield
    finally:
        _address.reset(token)


def _choose(signature_version: str, **_: object) -> str | None:
    return _QUERY_SIGNER if signature_version.endswith("-query") else None


def _redirect(request: Any, **_: object) -> None:
    address = _address.get()
    if address is None:
        return
    request.url = address
    # Only one of two signatures may be sent, and no `x-amz-` header that the address leaves out.
    for name in list(request.headers):
        if name.lower() == "authorization" or name.lower().startswith("x-amz-"):
            del request.headers[name]


def sign(
    client: "S3Client",
    bucket: str,
    key: str,
    deadline: datetime,
    clock: Callable[[], datetime] = utc_now,
) -> str:
    """Return an address that deletes the object and does not work after `deadline`.

    Raises:
        StoreUnavailableError: The deadline has passed by this machine's clock, or there are no
            credentials to sign with.
    """
    for _ in range(_SIGNING_ATTEMPTS):
        left = deadline - clock()
        if left < _SHORTEST:
            break
        try:
            address: str = client.generate_presigned_url(
                "delete_object",
                Params={"Bucket": bucket, "Key": key},
                ExpiresIn=int(left.total_seconds()),
            )
        except boto_errors.BotoCoreError as error:
            raise StoreUnavailableError(f"DELETE {key}: it cannot be signed: {error}") from error
        # The process may have stood still between the clock and the signature.
        if _expires_at(address) <= deadline:
            return address
    raise StoreUnavailableError(
        f"DELETE {key}: it was not sent, because its deadline {instant_text(deadline)} has"
        f" passed by the store's clock; this machine's clock shows {instant_text(clock())}: set it"
        " if it is wrong"
    )


def _expires_at(address: str) -> datetime:
    query = parse_qs(urlsplit(address).query)
    [signed_at], [seconds] = query["X-Amz-Date"], query["X-Amz-Expires"]
    instant = datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return instant + timedelta(seconds=int(seconds))
