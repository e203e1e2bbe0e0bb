"""The webhook: alerts are posted as JSON to one address until they are acknowledged.

The alert state and the waiting alerts are in the sensor's cursor, which Dagster stores when the
tick has ended. If the daemon dies between a post and that, the post is repeated with the same `id`.
"""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import BaseModel, Field

from feature_pipeline import settings
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.text.json_values import json_text
from feature_pipeline.orchestration.resources import ArchiveResource
from feature_pipeline.orchestration.sensors.alerts import AlertState, poll

SENSOR = "webhook"
TICK_SECONDS = 15
POSTING_SECONDS = 20.0
POSTS_PER_TICK = 20
POST_SECONDS = 5.0
"""Maximum time of a receiver's answer: other sensors of the code location wait for this one."""
WAITING_AT_MOST = 500
GIVE_UP_AFTER_SECONDS = 24 * 3600.0
_FIRST_BACKOFF_SECONDS = 15.0
_LONGEST_BACKOFF_SECONDS = 900.0


class WaitingPost(BaseModel):
    """A document that the receiver has not acknowledged yet."""

    document: dict[str, Any]
    found_at: float
    """Seconds since the epoch."""


class WebhookState(BaseModel):
    """The sensor's stored state."""

    seen: AlertState = Field(default_factory=AlertState)
    waiting: list[WaitingPost] = Field(default_factory=list)
    failures: int = 0
    """Number of consecutive failed posts."""
    not_before: float = 0.0
    """Earliest time of the next try, in seconds since the epoch."""


class WebhookTick(BaseModel):
    """The result of one tick."""

    posted: int = 0
    dropped: int = 0
    problem: str | None = None


def parse_state(cursor: str | None) -> WebhookState:
    """Return the state of a sensor's cursor; a new one's before the first tick."""
    return WebhookState.model_validate_json(cursor) if cursor else WebhookState()


def tick(
    state: WebhookState,
    instance: dg.DagsterInstance,
    store: BlobStore,
    url: str,
    ui_url: str | None,
    clock: Callable[[], float] = time.time,
) -> WebhookTick:
    """Enqueue new alerts, and post the waiting ones, the oldest first.

    Ends at the first failed post; the delay until the next try doubles up to a quarter of an hour.
    Alerts that are not acknowledged within a day, or exceed `WAITING_AT_MOST`, are dropped.
    """
    now = clock()
    done = WebhookTick()
    for alert in poll(instance, store, state.seen):
        state.waiting.append(WaitingPost(document=alert.document(ui_url), found_at=now))
    kept = [post for post in state.waiting if now - post.found_at < GIVE_UP_AFTER_SECONDS]
    kept = kept[-WAITING_AT_MOST:]
    done.dropped = len(state.waiting) - len(kept)
    state.waiting = kept
    if now < state.not_before:
        return done
    while (
        state.waiting
        and done.posted < POSTS_PER_TICK
        and clock() - now < POSTING_SECONDS  # a tick that ends late posts again
    ):
        done.problem = post(url, state.waiting[0].document)
        if done.problem is not None:
            backoff = min(_FIRST_BACKOFF_SECONDS * 2**state.failures, _LONGEST_BACKOFF_SECONDS)
            state.failures = min(state.failures + 1, 10)
            state.not_before = now + backoff
            break
        state.failures = 0
        state.waiting.pop(0)
        done.posted += 1
    return done


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Return None: a redirected POST would arrive as a GET, if at all."""


def post(url: str, document: dict[str, Any]) -> str | None:
    """Post the document. Return None on success (2xx), otherwise the error message.

    The address may contain a token, and libraries put it into messages and logs, so no text of
    theirs is passed on.
    """
    request = urllib.request.Request(  # noqa: S310  (settings allow http and https alone)
        url,
        data=json_text(document).encode(),
        headers={"Content-Type": "application/json", "User-Agent": "feature-pipeline"},
        method="POST",
    )
    opener = urllib.request.build_opener(_NoRedirects)
    if settings.is_local(urlsplit(url).hostname or ""):
        opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=POST_SECONDS):
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"the receiver answered {error.code}"
    except (OSError, http.client.HTTPException) as error:
        return f"the receiver could not be reached ({type(error).__name__})"


def webhook_sensor() -> dg.SensorDefinition:
    """Return the sensor that posts alerts; running by default, idle without an address.

    It runs nothing, and raises nothing if a receiver is unavailable.
    """

    @dg.sensor(
        name=SENSOR,
        minimum_interval_seconds=TICK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=(
            "Posts failed runs, failing checks and quarantined entries as JSON to the address in"
            f" {settings.WEBHOOK_URL}. Without one it does nothing."
        ),
    )
    def webhook(context: dg.SensorEvaluationContext, archive: ArchiveResource) -> dg.SkipReason:
        try:
            url = settings.webhook_url()
        except InvalidInputError as error:
            context.log.error(str(error))
            return dg.SkipReason(str(error))
        if url is None:
            return dg.SkipReason(f"{settings.WEBHOOK_URL} is not set")
        state = parse_state(context.cursor)
        ui_url = settings.optional(settings.UI_URL)
        done = tick(state, context.instance, archive.store(), url, ui_url)
        context.update_cursor(state.model_dump_json())
        if done.problem:
            context.log.warning("%s; %d alerts are waiting", done.problem, len(state.waiting))
        if done.dropped:
            context.log.error(
                "%d alerts were dropped: the receiver did not take them", done.dropped
            )
        return dg.SkipReason(f"{done.posted} posted, {len(state.waiting)} waiting")

    return webhook
