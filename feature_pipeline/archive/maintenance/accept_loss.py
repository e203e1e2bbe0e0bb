"""Giving up what is lost: logs go on without entries that cannot be brought back.

What belongs here: what would be given up, and the entry that says so. Not here: noticing a loss
(`archive.logs.known`, `known`), bringing things back (`repair`).

The entry is written first: it keeps the text of every object behind the new end of a log, so that
nothing that could still be read is lost with it. Then these objects are removed, and the log's
numbers are used again. Stopped in between, the same call goes on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from feature_pipeline.archive import layout, log
from feature_pipeline.archive.blob_store import BlobStore
from feature_pipeline.archive.logs.damage import State
from feature_pipeline.archive.logs.entries import StoredEntry, decode_entry, link_problem
from feature_pipeline.archive.logs.kinds import kind_of
from feature_pipeline.archive.logs.losses import Loss, LossEntry, RemovedEntry, losses
from feature_pipeline.archive.objects import Finding
from feature_pipeline.digest import Digest
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError

_GIVEN_UP = frozenset({State.LOST, State.MISSING, State.CORRUPT})


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What is given up of one log."""

    log: str
    entries: int
    """How many entries it keeps."""
    known_entries: int
    """How many it is known to have had."""
    removed: int
    """How many objects behind its new end are removed; the loss's entry keeps their text."""

    def __str__(self) -> str:
        kept = f"{self.log} keeps {self.entries} of {self.known_entries} entries"
        text = f"; the text of {self.removed} is kept in the record of the loss"
        return kept + (text if self.removed else "")


def plan_losses(store: BlobStore, findings: Iterable[Finding]) -> list[Loss]:
    """Return how the logs of these findings would go on. Writes nothing.

    Only log entries that are lost or corrupt count, and missing ones before others of their log. A
    log keeps every entry before the first that is not there or does not follow the one before it.
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
            if finding.state is State.MISSING and not _goes_on(store, prefix, seq):
                continue  # what other objects need is needed whether or not it is given up
        ends[prefix] = max(seq, ends.get(prefix, 0))
    return [_loss(store, prefix, known) for prefix, known in sorted(ends.items())]


def accept_losses(
    store: BlobStore, planned: Sequence[Loss], *, by: str, reason: str
) -> list[GivenUp]:
    """Write that these ends of logs are given up, then remove what is behind them.

    Args:
        store: The archive.
        planned: From `plan_losses`.
        by: The person who decides.
        reason: Why.

    Raises:
        InvalidInputError: `by` or `reason` is empty.
        StoreUnavailableError, OutcomeUnknownError: The store did not answer. Plan again.
    """
    if not by or not reason:
        raise InvalidInputError("accepting a loss needs who accepts it, and why")
    by_dataset: dict[str, list[Loss]] = {}
    for loss in planned:
        by_dataset.setdefault(layout.dataset_of(loss.log), []).append(loss)
    for dataset, ones in by_dataset.items():
        entry = LossEntry(
            seq=layout.FIRST_SEQ, dataset=dataset, losses=tuple(ones), by=by, reason=reason
        )

        def decide(entries: list[LossEntry], entry: LossEntry = entry) -> LossEntry:
            for known in entries:
                if known.write_id == entry.write_id:
                    return known
            return entry.model_copy(update={"seq": log.next_seq(entries)})

        log.append(store, layout.loss_log(dataset), LossEntry, decide)
        remove_given_up(store, dataset)
    log.forget_read_entries()
    return [
        GivenUp(loss.log, loss.entries, loss.known_entries, len(loss.removed)) for loss in planned
    ]


def remove_given_up(store: BlobStore, dataset: str) -> None:
    """Remove the objects that the last accepted loss of each log put behind its end.

    One that holds other bytes than the loss kept was written since, and stays.
    """
    last = {loss.log: loss for entry in losses(store, dataset) for loss in entry.losses}
    for loss in last.values():
        for removed in loss.removed:
            key = layout.entry(loss.log, removed.seq)
            try:
                data = store.get(key).data
            except NotFoundError:
                continue
            except CorruptDataError:
                data = None
            if data is None or _text(data) == removed.text:
                store.delete(key)


def _goes_on(store: BlobStore, prefix: str, seq: int) -> bool:
    return any(layout.parse_entry(i.key).seq > seq for i in store.list_objects(prefix))


def _loss(store: BlobStore, prefix: str, known: int) -> Loss:
    model, _ = kind_of(prefix)
    kept: StoredEntry[log.LogEntry] | None = None
    removed: list[RemovedEntry] = []
    last_seen = 0
    for info in store.list_objects(prefix):
        seq = layout.parse_entry(info.key).seq
        last_seen = max(last_seen, seq)
        try:
            data = store.get(info.key).data
        except CorruptDataError as error:
            removed.append(RemovedEntry(seq=seq, text=f"(the store does not give it: {error})"))
            continue
        entry = None
        if not removed:
            try:
                entry = decode_entry(model, info.key, data, store.identity)
            except (CorruptDataError, InvalidInputError):
                entry = None
        follows = entry is not None and (
            entry.entry.seq == layout.FIRST_SEQ
            if kept is None
            else link_problem(kept, entry) is None
        )
        if entry is not None and follows:
            kept = entry
        else:
            removed.append(RemovedEntry(seq=seq, text=_text(data)))
    return Loss(
        log=prefix,
        entries=0 if kept is None else kept.entry.seq,
        last=None if kept is None else Digest.of(kept.entry.encode()),
        known_entries=max(known, last_seen),
        removed=tuple(removed),
    )


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace")
