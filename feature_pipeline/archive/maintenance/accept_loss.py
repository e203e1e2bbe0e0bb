"""Determine which ends of logs an operator may give up, from the findings about them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.findings import Finding
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.damage import State
from feature_pipeline.archive.logs.known_lengths import known_logs
from feature_pipeline.archive.logs.losses import Loss
from feature_pipeline.archive.maintenance import loss_entries
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.text.counted import counted

_GIVEN_UP = frozenset({State.LOST, State.MISSING, State.CORRUPT})


@dataclass(frozen=True, slots=True)
class GivenUp:
    """The part of one log that is given up."""

    log: str
    entries: int
    """Number of entries that it keeps."""
    known_entries: int
    """Number of entries that it is known to have had."""
    removed: int
    """Number of objects beyond its new end that are removed; the loss's entry keeps their text."""

    def __str__(self) -> str:
        kept = f"{self.log} keeps {self.entries} of {counted(self.known_entries, 'entry')}"
        text = f"; the text of {self.removed} is stored in the loss entry"
        return kept + (text if self.removed else "")


def plan_losses(store: BlobStore, findings: Iterable[Finding]) -> list[Loss]:
    """Return how the logs of these findings would continue. Writes nothing.

    Only findings about log entries count: lost or corrupt ones, and missing ones before others of
    their log. A log keeps every entry before the first that is absent or does not follow the one
    before it.

    Raises:
        StoreUnavailableError: An entry cannot be read now: that it is lost is not known.
        NewerVersionError: An entry's version is newer than this code supports.
    """
    ends: dict[str, int] = {}
    for finding in findings:
        if finding.state not in _GIVEN_UP or not finding.key.startswith(layout.LOGS):
            continue
        if finding.key.startswith(layout.LOSS_LOGS):
            continue
        if finding.key.endswith("/"):
            prefix, seq = finding.key, 0
        else:
            key = layout.parse_entry(finding.key)
            prefix, seq = key.log, key.seq
            if finding.state is State.MISSING and not _continues(store, prefix, seq):
                continue  # what other objects need is needed whether or not it is given up
        ends[prefix] = max(seq, ends.get(prefix, 0))
    known = known_logs(store)
    planned = (
        loss_entries.plan_loss(store, prefix, known, entries)
        for prefix, entries in sorted(ends.items())
    )
    return [loss for loss in planned if loss is not None]


def accept_losses(
    store: BlobStore, planned: Sequence[Loss], *, by: str, reason: str
) -> list[GivenUp]:
    """Record that these ends of logs are given up, then remove the objects beyond them.

    Args:
        store: The archive.
        planned: From `plan_losses`.
        by: The person who decides.
        reason: Why.

    Raises:
        ConflictError: A log has changed since it was planned.
        InvalidInputError: `by` or `reason` is empty.
        StoreUnavailableError, OutcomeUnknownError: The store did not answer. Plan again.
    """
    by_dataset: dict[str, list[Loss]] = {}
    for loss in planned:
        by_dataset.setdefault(layout.dataset_of(loss.log), []).append(loss)
    for dataset, ones in by_dataset.items():
        loss_entries.accept_losses(store, dataset, ones, by=by, reason=reason)
    log.forget_read_entries()
    return [
        GivenUp(loss.log, loss.entries, loss.known_entries, len(loss.removed)) for loss in planned
    ]


def _continues(store: BlobStore, prefix: str, seq: int) -> bool:
    return any(layout.parse_entry(i.key).seq > seq for i in store.list_objects(prefix))
