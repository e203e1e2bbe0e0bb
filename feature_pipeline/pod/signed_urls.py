"""Transfer bytes to and from signed URLs, with retries while the store is busy."""

import hashlib
import http.client
import io
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final, TypeVar

ATTEMPTS: Final = 6
MOST_FILE_BYTES: Final = 5 << 30
"""Maximum size of one S3 PUT; a signed address allows one."""
CHUNK_BYTES: Final = 1 << 20
_CALL_SECONDS: Final = 60.0
_FIRST_BACKOFF_SECONDS: Final = 0.5
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})

T = TypeVar("T")
# the environment's proxies are not the archive's: a store is reached directly or not at all
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TransferError(Exception):
    """A failed transfer; the message names the file, never the signed URL."""


def download(url: str, path: Path, digest: str, size: int) -> None:
    """Download the object at `url` to `path` and check its size and SHA-256 (`sha256:<hex>`).

    Raises:
        TransferError: It does not exist, or is something else.
    """

    def once() -> None:
        hasher, received = hashlib.sha256(), 0
        with _OPENER.open(_request(url), timeout=_CALL_SECONDS) as answer, path.open("wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                hasher.update(chunk)
                received += len(chunk)
                file.write(chunk)
        if received != size or f"sha256:{hasher.hexdigest()}" != digest:
            raise TransferError(f"received {received} bytes, sha256:{hasher.hexdigest()}")

    path.parent.mkdir(parents=True, exist_ok=True)
    _with_retry(once, f"{path.name} ({digest}, {size} bytes)")


def download_bytes(url: str, subject: str) -> bytes:
    """Return the object at `url`."""

    def once() -> bytes:
        with _OPENER.open(_request(url), timeout=_CALL_SECONDS) as answer:
            data: bytes = answer.read()
            return data

    return _with_retry(once, subject)


def upload(url: str, file: io.BufferedReader, subject: str) -> tuple[str, int]:
    """Upload the bytes of `file` to `url`; return their SHA-256 (`sha256:<hex>`) and size.

    Raises:
        TransferError: The store did not take them.
    """
    digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    size = file.tell()

    def once() -> None:
        file.seek(0)
        _put(url, file, size)

    _with_retry(once, subject)
    return digest, size


def upload_bytes(url: str, data: bytes, subject: str) -> None:
    """Upload `data` to `url`."""
    _with_retry(lambda: _put(url, data, len(data)), subject)


def _put(url: str, body: BinaryIO | bytes, size: int) -> None:
    # no body for no bytes: an empty stream would be sent in chunks, which S3 refuses
    request = _request(url, body if size else b"", "PUT")
    request.add_header("Content-Length", str(size))
    # urllib would name a form's type, and a signature may cover it
    request.add_header("Content-Type", "application/octet-stream")
    with _OPENER.open(request, timeout=_CALL_SECONDS) as answer:
        answer.read()


def _request(
    url: str, data: BinaryIO | bytes | None = None, method: str = "GET"
) -> urllib.request.Request:
    if not url.startswith(("https://", "http://")):
        raise TransferError("the URL does not begin with https:// or http://")
    return urllib.request.Request(url, data=data, method=method)  # noqa: S310  (checked above)


def _with_retry(call: Callable[[], T], subject: str) -> T:
    backoff = _FIRST_BACKOFF_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except urllib.error.HTTPError as error:
            # On one line: the end of a pod's log is shown, and it must hold the whole message.
            body = " ".join(error.read(300).decode(errors="replace").split())
            problem = f"HTTP {error.code} {error.reason}: {body}"
            is_last = attempt == ATTEMPTS or error.code not in _PASSING
        except (OSError, http.client.HTTPException, TransferError) as error:
            problem, is_last = f"{type(error).__name__}: {error}", attempt == ATTEMPTS
        if is_last:
            raise TransferError(f"{subject}: {problem} (attempt {attempt})")
        time.sleep(backoff)
        backoff *= 2
    raise AssertionError("the last attempt returns or raises")
