"""Completions of artifacts: what their inbox entries say."""

from datetime import datetime

from feature_pipeline.archive.logs.inbox import Completion, CompletionStatus
from feature_pipeline.archive.publish import Artifact
from feature_pipeline.model.digest import Digest


def completion_of(
    artifact: Artifact,
    manifest: Digest,
    *,
    base: int,
    status: CompletionStatus | None = None,
    dagster_run_id: str | None = None,
    published_at: datetime | None = None,
) -> Completion:
    """Return the completion of a stored artifact, for the inbox.

    Args:
        artifact: The artifact.
        manifest: Digest of its stored manifest.
        base: Seq of the batch's last log entry when the run was planned, or 0.
        status: The end of the run, if it does not follow from the artifact's failure.
        dagster_run_id: The Dagster run that reports it.
        published_at: When the artifact was stored; by default when its entry is written.
    """
    if status is None:
        is_failed = artifact.failure is not None
        status = CompletionStatus.FAILED if is_failed else CompletionStatus.SUCCEEDED
    return Completion(
        id=artifact.run.id,
        dataset=artifact.dataset,
        hook=artifact.hook,
        batch=artifact.batch.key,
        release_seq=artifact.release.seq,
        release_digest=artifact.release.release.digest,
        base=base,
        manifest=manifest,
        status=status,
        dagster_run_id=dagster_run_id,
        published_at=published_at,
    )
