"""Publish, announce and accept a hook run's output, retrying while the store does not answer.

An hour of compute must not be lost because a store restarts for a minute. Every step here can be
repeated.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.publish import CompletionStatus, PublishedArtifact
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.execute import Execution, completion_of_execution
from feature_pipeline.errors import OutcomeUnknownError, StoreUnavailableError
from feature_pipeline.model.digest import Digest

TIMEOUT_SECONDS: Final = 900.0
_FIRST_BACKOFF_SECONDS: Final = 1.0
_LONGEST_BACKOFF_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class StoredRun:
    """The stored artifact, and its log entry."""

    published: PublishedArtifact
    entry: FeatureEntry


def publish_with_retry(
    store: BlobStore,
    execution: Execution,
    dagster_run_id: str | None,
    say: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> StoredRun:
    """Store the execution's artifact and its entry in the batch's log. Idempotent.

    Args:
        store: The archive.
        execution: The result of a hook run; its files are read.
        dagster_run_id: The requesting Dagster run.
        say: Called each time it waits for the store.
        is_cancelled: Whether the run was cancelled by now: its result becomes history.
        timeout_seconds: How long to wait for a store that does not answer.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: It did not answer; the files are unchanged.
        FeaturePipelineError: As for `accept.accept`.
    """

    def complete(manifest: Digest) -> publish.Completion:
        status = CompletionStatus.CANCELLED if is_cancelled() else None
        return completion_of_execution(execution, manifest, dagster_run_id, status)

    backoff, end = _FIRST_BACKOFF_SECONDS, time.monotonic() + timeout_seconds
    while True:
        try:
            published, completion = publish.publish_and_enqueue(store, execution.artifact, complete)
            return StoredRun(published, accept.accept(store, completion))
        except (StoreUnavailableError, OutcomeUnknownError) as error:
            if time.monotonic() + backoff > end:
                raise
            say(f"the archive does not answer, trying again in {backoff:g} s: {error}")
        time.sleep(backoff)
        backoff = min(2 * backoff, _LONGEST_BACKOFF_SECONDS)
