"""Give up the end of a log: record it permanently, and let the log continue.

The order makes it crash-safe: first the entry is written, then the objects beyond the new end are
removed. Between the two the log has a gap, which readers refuse; repeating the call removes the
rest.
"""

from collections.abc import Sequence

from feature_pipeline.archive.format import layout
from feature_pipeline.archive.inspection.log_kinds import kind_of
from feature_pipeline.archive.logs.entries import LogEntry, StoredEntry, decode_entry, link_problem
from feature_pipeline.archive.logs.erasures import erased
from feature_pipeline.archive.logs.known_lengths import KnownLogs, known_logs
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry, batch_of
from feature_pipeline.archive.logs.losses import Loss, LossEntry, RemovedEntry, losses
from feature_pipeline.archive.logs.reading import append, next_seq
from feature_pipeline.archive.read import manifest_of
from feature_pipeline.archive.store.base import BlobStore, ObjectInfo
from feature_pipeline.errors import (
    ConflictError,
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
)


def plan_loss(
    store: BlobStore, log: str, known: KnownLogs | None = None, known_entries: int = 0
) -> Loss | None:
    """Return what accepting the loss of the log's end would give up; None if nothing is lost.

    The log keeps its entries up to the first that is missing, damaged or not in its place. The
    entries beyond it are given up: those known to have existed, and those that exist and can no
    longer follow. Publish again what can be read of them (`Loss.removed`) before or after: nothing
    else protects the blobs that they name.

    Args:
        store: The archive.
        log: The log's prefix.
        known: What is known of all logs; read if None.
        known_entries: Number of entries that another witness (a table, Dagster) knows.

    Raises:
        StoreUnavailableError: An entry cannot be read now: that it is lost is not known.
        NewerVersionError: An entry's version is newer than this code supports.
    """
    known = known_logs(store) if known is None else known
    model, _ = kind_of(log)
    line = known.below(log).get(log)
    kept: list[StoredEntry[LogEntry]] = []
    infos = [info for info in store.list_objects(log) if _is_entry(info.key, log)]
    for info in infos:
        entry = _read_next(store, model, info, kept)
        if entry is None:
            break
        kept.append(entry)
    is_replaced = (
        line is not None
        and line.digest is not None
        and line.entries <= len(kept)
        and kept[line.entries - 1].digest != line.digest
    )
    # What does not fit the next entry or the census may be the entry that was damaged.
    if kept and (is_replaced or len(kept) < len(infos)) and not _is_supported(store, kept[-1]):
        kept.pop()
    removed = tuple(
        RemovedEntry(seq=seq, text=text)
        for seq, text in (_text(store, info) for info in infos[len(kept) :])
    )
    most = max(len(infos), known_entries, 0 if line is None else line.entries)
    if most <= len(kept) and not removed and not is_replaced:
        return None
    return Loss(
        log=log,
        entries=len(kept),
        last=kept[-1].digest if kept else None,
        known_entries=most,
        known_last=None if line is None else line.digest,
        removed=removed,
    )


def _is_entry(key: str, log: str) -> bool:
    """Return whether the key is an entry's of this log; other objects are not part of a log."""
    try:
        return layout.parse_entry(key).log == log
    except InvalidInputError:
        return False


def _read_next(
    store: BlobStore,
    model: type[LogEntry],
    info: ObjectInfo,
    kept: Sequence[StoredEntry[LogEntry]],
) -> StoredEntry[LogEntry] | None:
    """Return the entry, if it follows the kept ones."""
    try:
        entry = decode_entry(model, info.key, store.get(info.key).data, store.identity)
    except (CorruptDataError, NotFoundError):
        return None
    if entry.entry.seq != len(kept) + layout.FIRST_SEQ:
        return None
    return None if kept and link_problem(kept[-1], entry) else entry


def _is_supported(store: BlobStore, stored: StoredEntry[LogEntry]) -> bool:
    """Return whether the document that the entry names, if any, is stored and belongs to it."""
    entry = stored.entry
    if not isinstance(entry, FeatureEntry | BatchEntry):
        return True
    try:
        erased_now = erased(store, entry.dataset)
    except CorruptDataError:
        return True  # what it names may have been erased
    try:
        if isinstance(entry, FeatureEntry):
            return entry.manifest in erased_now.manifests or bool(manifest_of(store, entry))
        return entry.digest in erased_now.batches or bool(batch_of(store, entry))
    except (NotFoundError, CorruptDataError, InvalidInputError):
        return False


def _text(store: BlobStore, info: ObjectInfo) -> tuple[int, str]:
    try:
        text = store.get(info.key).data.decode(errors="backslashreplace")
    except (CorruptDataError, NotFoundError):
        text = ""  # the store itself says that its bytes are not those that were written
    return layout.parse_entry(info.key).seq, text


def accept_losses(
    store: BlobStore, dataset: str, planned: Sequence[Loss], *, by: str, reason: str
) -> LossEntry:
    """Give up the ends of these logs of a dataset permanently. Idempotent.

    From then on each of the logs is as long as its `Loss` states, and continues from there.

    Args:
        store: The archive.
        dataset: The dataset of the logs.
        planned: What `plan_loss` returned and a person has confirmed.
        by: Who gives it up.
        reason: Why.

    Raises:
        ConflictError: A log has changed since it was planned; nothing was given up.
        InvalidInputError: Nothing is planned, a log belongs to another dataset, or `by` or `reason`
            is empty.
        StoreUnavailableError, OutcomeUnknownError: The store did not answer; call it again.
    """
    if not planned:
        raise InvalidInputError(f"dataset {dataset!r}: no loss to accept")
    if not by or not reason:
        raise InvalidInputError("accepting a loss requires a person (by) and a reason")
    for loss in planned:
        if layout.dataset_of(loss.log) != dataset:
            raise InvalidInputError(f"log {loss.log} does not belong to dataset {dataset!r}")
    known = known_logs(store)

    def decide(entries: list[LossEntry]) -> LossEntry:
        if entries and entries[-1].losses == tuple(planned):
            return entries[-1]
        for loss in planned:
            now = plan_loss(store, loss.log, known, loss.known_entries)
            if now != loss:
                raise ConflictError(
                    f"log {loss.log} has changed since its loss was planned: plan it again"
                )
        return LossEntry(
            seq=next_seq(entries), dataset=dataset, losses=tuple(planned), by=by, reason=reason
        )

    entry, _ = append(store, layout.loss_log(dataset), LossEntry, decide)
    _remove_behind(store, planned)
    return entry


def remove_given_up(store: BlobStore, dataset: str) -> None:
    """Remove the objects beyond the end set by each log's last accepted loss. Idempotent.

    An interrupted call of `accept_losses` leaves them. An object whose bytes differ from those in
    the loss's entry was written since, and stays.

    Raises:
        StoreUnavailableError, OutcomeUnknownError: The store did not answer; call it again.
    """
    last = {loss.log: loss for entry in losses(store, dataset) for loss in entry.losses}
    _remove_behind(store, list(last.values()))


def _remove_behind(store: BlobStore, given_up: Sequence[Loss]) -> None:
    for loss in given_up:
        for removed in loss.removed:
            _remove(store, layout.entry(loss.log, removed.seq), removed.text)


def _remove(store: BlobStore, key: str, text: str) -> None:
    """Remove an object beyond the new end, unless the log has grown there since."""
    try:
        data = store.get(key).data
    except NotFoundError:
        return
    except CorruptDataError:
        data = b""
    if data.decode(errors="backslashreplace") == text:
        store.delete(key)
