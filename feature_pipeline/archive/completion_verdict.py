"""The verdict on a completion: whether its artifact becomes the current one of its batch."""

from collections.abc import Sequence

from feature_pipeline.archive.format.manifest import Manifest
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.inbox import Completion, CompletionStatus
from feature_pipeline.archive.logs.log import FeatureEntry, Verdict


def decide_verdict(
    entries: Sequence[FeatureEntry], completion: Completion, manifest: Manifest
) -> Verdict:
    """Return the verdict on a completion that is accepted after these entries.

    An artifact becomes current unless it failed, was cancelled, or the current one was planned, or
    at least published, after it.
    """
    if manifest.is_failed:
        return Verdict.FAILED
    if completion.status is CompletionStatus.CANCELLED:
        return Verdict.SUPERSEDED
    current = log.last_current(entries)
    if current is not None and is_before(completion, current):
        return Verdict.SUPERSEDED
    return Verdict.CURRENT


def is_before(completion: Completion | FeatureEntry, current: FeatureEntry) -> bool:
    """Return whether the current artifact was planned, or at least published, after this one."""
    order = completion.release_seq, completion.base
    if order != current.order:
        return order < current.order
    if completion.published_at is None or current.published_at is None:
        return False
    return completion.published_at < current.published_at
