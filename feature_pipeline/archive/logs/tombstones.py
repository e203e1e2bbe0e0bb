"""Withdrawn records: a log per dataset that acceptance, loading, switching and recovery obey."""

from collections.abc import Collection
from datetime import datetime
from enum import StrEnum

from pydantic import Field

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import InstantField, utc_now
from feature_pipeline.archive.logs.known_lengths import check_complete, known_logs
from feature_pipeline.archive.logs.log import LogEntry, append, next_seq, read_entries
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError
from feature_pipeline.model.records import check_record_id


class TombstoneAction(StrEnum):
    """What an entry does to its records."""

    WITHDRAW = "withdraw"
    LIFT = "lift"


class TombstoneEntry(LogEntry):
    """Records withdrawn, or allowed again."""

    dataset: str
    action: TombstoneAction
    record_ids: tuple[str, ...] = Field(min_length=1)
    reason: str
    made_at: InstantField = Field(default_factory=utc_now)

    @property
    def log_prefix(self) -> str:
        """See `LogEntry.log_prefix`."""
        return layout.tombstone_log(self.dataset)

    def apply(self, ids: set[str]) -> None:
        """Return the withdrawn records after this entry, given those before it."""
        if self.action is TombstoneAction.WITHDRAW:
            ids.update(self.record_ids)
        else:
            ids.difference_update(self.record_ids)


def tombstones(store: BlobStore, dataset: str) -> list[TombstoneEntry]:
    """Return the dataset's withdrawals and lifts, in order.

    The log's end is compared with what is known of it: without its last entry, erased records would
    be accepted, loaded and shown again.

    Raises:
        CorruptDataError: The log is damaged, or has lost its end.
    """
    check_complete(store, known_logs(store), layout.tombstone_log(dataset))
    return stored_tombstones(store, dataset)


def stored_tombstones(store: BlobStore, dataset: str) -> list[TombstoneEntry]:
    """Return the entries that exist, even if the log has lost its end: for repairing it.

    Raises:
        CorruptDataError: The log is damaged.
    """
    return read_entries(store, layout.tombstone_log(dataset), TombstoneEntry)


def withdrawn(store: BlobStore, dataset: str) -> set[str]:
    """Return the ids of the records that are withdrawn now."""
    return withdrawn_by(tombstones(store, dataset))


def withdrawn_by(entries: Collection[TombstoneEntry]) -> set[str]:
    """Return the ids of the records that are withdrawn after these entries."""
    ids: set[str] = set()
    for entry in entries:
        entry.apply(ids)
    return ids


def barred_since(entries: Collection[TombstoneEntry], instant: datetime) -> set[str]:
    """Return the ids of the records that a submission made at `instant` must not contain.

    These are the withdrawn records, and those that were allowed again only after `instant`.
    """
    ids: set[str] = set()
    for entry in entries:
        if entry.action is TombstoneAction.LIFT and entry.made_at <= instant:
            ids.difference_update(entry.record_ids)
        else:
            ids.update(entry.record_ids)
    return ids


def withdraw(
    store: BlobStore, dataset: str, record_ids: Collection[str], reason: str
) -> TombstoneEntry:
    """Withdraw the records: nothing about them is accepted or loaded from now on."""
    return _append(store, dataset, record_ids, reason, TombstoneAction.WITHDRAW)


def lift(
    store: BlobStore, dataset: str, record_ids: Collection[str], reason: str
) -> TombstoneEntry:
    """Allow the records again; erased data does not come back.

    Call it only after an erasure that was begun has been completed: `erase.lift` ensures that.
    """
    return _append(store, dataset, record_ids, reason, TombstoneAction.LIFT)


def check_withdrawn(
    dataset: str, record_ids: Collection[str], withdrawn_ids: Collection[str]
) -> None:
    """Check that these records are withdrawn, so that they can be allowed again.

    Raises:
        InvalidInputError: A record is not.
    """
    if absent := set(record_ids) - set(withdrawn_ids):
        raise InvalidInputError(
            f"dataset {dataset!r}: record {min(absent)!r} is not withdrawn: nothing to lift"
        )


def _append(
    store: BlobStore,
    dataset: str,
    record_ids: Collection[str],
    reason: str,
    action: TombstoneAction,
) -> TombstoneEntry:
    ids = tuple(sorted({check_record_id(record_id) for record_id in record_ids}))
    if not ids:
        raise InvalidInputError(f"dataset {dataset!r}: no record ids to {action.value}")

    def decide(entries: list[TombstoneEntry]) -> TombstoneEntry:
        already = withdrawn_by(entries)
        if entries and entries[-1].action is action and entries[-1].record_ids == ids:
            return entries[-1]
        if action is TombstoneAction.LIFT:
            check_withdrawn(dataset, ids, already)
        return TombstoneEntry(
            seq=next_seq(entries), dataset=dataset, action=action, record_ids=ids, reason=reason
        )

    return append(store, layout.tombstone_log(dataset), TombstoneEntry, decide)[0]
