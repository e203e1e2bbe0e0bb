"""A hook run's output is kept: published, announced and accepted, with patience for the store.

An hour of compute must not be lost to a store that restarts for a minute, and everything here may
be done twice.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from feature_pipeline.archive import accept, publish
from feature_pipeline.archive.logs.log import FeatureEntry
from feature_pipeline.archive.publish import CompletionStatus, PublishedArtifact
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.compute.execute import Execution, completion_of
from feature_pipeline.errors import OutcomeUnknownError, StoreUnavailableError
from feature_pipeline.model.digest import Digest

PATIENCE_SECONDS: Final = 900.0
_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Kept:
    """The artifact as it is stored, and the log entry that stands for it."""

    published: PublishedArtifact
    entry: FeatureEntry


def keep(
    store: BlobStore,
    execution: Execution,
    dagster_run_id: str | None,
    say: Callable[[str], None],
    is_cancelled: Callable[[], bool],
    patience_seconds: float = PATIENCE_SECONDS,
) -> Kept:
    """Return the execution's artifact stands in its batch's log. Idempotent.

    Args:
        store: The archive.
        execution: What a hook run left; its files are read.
        dagster_run_id: Who asked for it.
        say: Told each time the store is waited for.
        is_cancelled: Whether the run was cancelled by now: its result becomes history.
        patience_seconds: How long a store may give no answer before the wait is given up.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: It gave none; the files are as they were.
        FeaturePipelineError: As of `accept.accept`.
    """

    def complete(manifest: Digest) -> publish.Completion:
        status = CompletionStatus.CANCELLED if is_cancelled() else None
        return completion_of(execution, manifest, dagster_run_id, status)

    pause, end = _FIRST_PAUSE_SECONDS, time.monotonic() + patience_seconds
    while True:
        try:
            published, completion = publish.announce_artifact(store, execution.artifact, complete)
            return Kept(published, accept.accept(store, completion))
        except (StoreUnavailableError, OutcomeUnknownError) as error:
            if time.monotonic() + pause > end:
                raise
            say(f"the archive does not answer, trying again in {pause:g} s: {error}")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
