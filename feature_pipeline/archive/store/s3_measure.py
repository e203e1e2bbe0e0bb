"""Counts of requests to the store, for `feature_pipeline.measure`."""

from typing import TYPE_CHECKING, Any

from feature_pipeline import measure
from feature_pipeline.model.instruments import HTTP_STATUS, NO_ANSWER, S3_REQUESTS, S3_RETRIES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


def watch(client: "S3Client") -> None:
    """Count what this client sends from now on. Idempotent."""
    events = client.meta.events
    events.register("response-received.s3", _answered, unique_id=f"{__name__}.answered")
    events.register("before-send.s3", _sent, unique_id=f"{__name__}.sent")


def count_request(operation: str, status: str, *, is_retry: bool) -> None:
    """Count one request that was answered, or was not.

    Args:
        operation: As S3 names it: `GetObject`.
        status: The answer's HTTP status, or `NO_ANSWER`.
        is_retry: Whether it repeats one that had no clear answer.
    """
    measure.count_labelled(S3_REQUESTS, 1, {"operation": operation, HTTP_STATUS: status})
    if is_retry:
        measure.count(S3_RETRIES, 1, operation=operation)


def _sent(request: Any, event_name: str, **_: object) -> None:
    # "before-send.s3.GetObject"; botocore counts attempts in the request's headers
    if measure.is_connected() and _attempt(request) > 1:
        measure.count(S3_RETRIES, 1, operation=event_name.rpartition(".")[2])


def _attempt(request: Any) -> int:
    value = request.headers.get("amz-sdk-request", b"")
    text = value.decode() if isinstance(value, bytes) else str(value)
    for part in text.split(";"):
        name, _, number = part.strip().partition("=")
        if name == "attempt" and number.isdecimal():
            return int(number)
    return 1


def _answered(
    event_name: str, response_dict: dict[str, Any] | None, exception: Exception | None, **_: object
) -> None:
    if not measure.is_connected():
        return
    has_answer = exception is None and response_dict is not None
    status = str(response_dict["status_code"]) if has_answer and response_dict else NO_ANSWER
    count_request(event_name.rpartition(".")[2], status, is_retry=False)
