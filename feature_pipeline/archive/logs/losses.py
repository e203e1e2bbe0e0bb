"""Accepted losses: a log per dataset that gives up the ends of other logs.

A log whose end is lost is reported as lost until its entries are restored or an entry here gives
them up. From then on the shorter log is the whole log, and its numbers are used again.
"""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import DigestField, InstantField, Part, utc_now
from feature_pipeline.archive.logs.damage import Readable
from feature_pipeline.archive.logs.entries import LogEntry, StoredEntry
from feature_pipeline.archive.logs.reading import by_log, read_all, read_entries
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.model.text.counted import counted


class RemovedEntry(Part):
    """A log entry that was removed because it lay beyond the new end of a shortened log."""

    seq: int = Field(ge=layout.FIRST_SEQ)
    text: str
    """The stored bytes; those that are not UTF-8 are written as escapes."""


class Loss(Part):
    """The end of one log without the entries that are given up."""

    log: str
    """The log's prefix."""
    entries: int = Field(ge=0)
    """Number of entries that the log keeps."""
    last: DigestField | None
    """Digest of the stored bytes of the last of them; None if there is none."""
    known_entries: int = Field(ge=0)
    """Number of entries that it was known to have."""
    known_last: DigestField | None = None
    """Digest of the last of those, if it is known."""
    removed: tuple[RemovedEntry, ...] = ()


class LossEntry(LogEntry):
    """Losses that were accepted together."""

    dataset: str
    losses: tuple[Loss, ...] = Field(min_length=1)
    by: str = Field(min_length=1)
    """The person or program that gave them up."""
    reason: str = Field(min_length=1)
    accepted_at: InstantField = Field(default_factory=utc_now)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for loss in self.losses:
            if layout.dataset_of(loss.log) != self.dataset:
                raise ValueError(f"log {loss.log} does not belong to dataset {self.dataset}")
            if (loss.entries == 0) != (loss.last is None):
                raise ValueError(
                    f"log {loss.log}: {counted(loss.entries, 'entry')}, but the last one is"
                    f" {loss.last}"
                )
        return self

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.loss_log(self.dataset)


def losses(store: BlobStore, dataset: str) -> list[LossEntry]:
    """Return every accepted loss of the dataset, in order."""
    return read_entries(store, layout.loss_log(dataset), LossEntry)


def accepted(entries: Sequence[LossEntry]) -> dict[str, Loss]:
    """Return, by log, its last accepted loss."""
    return {loss.log: loss for entry in entries for loss in entry.losses}


def readable_losses(store: BlobStore) -> Readable[list[StoredEntry[LossEntry]]]:
    """Return the accepted losses of every dataset, by dataset, with what cannot be read."""
    logs = by_log(layout.LOSS_LOGS, store.list_objects(layout.LOSS_LOGS))
    return read_all(store, logs, LossEntry)
