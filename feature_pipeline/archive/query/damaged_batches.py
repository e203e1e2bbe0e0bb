"""Find the records and the position of a batch of which a part cannot be read.

They are looked for wherever the archive has them, because records of a damaged batch must not be
answered by an earlier batch.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from feature_pipeline.archive import read
from feature_pipeline.archive.format import layout
from feature_pipeline.archive.format.documents import NewerVersionError
from feature_pipeline.archive.format.encode import RECORD_ID
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.logs.damage import Damage, State
from feature_pipeline.archive.logs.entries import LogEntry
from feature_pipeline.archive.logs.log import BatchEntry, FeatureEntry
from feature_pipeline.archive.logs.reading import try_read
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import CorruptDataError, InvalidInputError, NotFoundError

E = TypeVar("E", bound=LogEntry)

_UNREADABLE: Final = (NotFoundError, CorruptDataError, InvalidInputError, NewerVersionError)


def last_readable_entry(store: BlobStore, dataset: str, batch: str) -> BatchEntry | None:
    """Return the last entry of the batch's log that can be read by itself; None if none can.

    Raises:
        StoreUnavailableError: The store did not answer.
    """
    entries = _readable_entries(store, layout.batch_log(dataset, batch), BatchEntry)
    return entries[-1] if entries else None


def records_of_batch(store: BlobStore, dataset: str, hook: str, batch: str) -> frozenset[str]:
    """Return the ids of the batch's records, from whatever can be read.

    That is its batch document, as its log or one of the hook's manifests names it, or else the
    outcomes of one of these.

    Raises:
        NotFoundError: Nothing that names the records can be read; the message gives the first
            reason.
        StoreUnavailableError: The store did not answer.
    """
    first: Exception | None = None
    for read_ids in _sources(store, dataset, hook, batch):
        try:
            return frozenset(read_ids())
        except _UNREADABLE as error:
            first = first or error
    raise NotFoundError(f"nothing in {store.identity} names them" if first is None else str(first))


def _sources(
    store: BlobStore, dataset: str, hook: str, batch: str
) -> Iterator[Callable[[], Collection[str]]]:
    if (entry := last_readable_entry(store, dataset, batch)) is not None:
        yield partial(_ids_in_document, store, entry)
    entries = _readable_entries(store, layout.feature_log(dataset, hook, batch), FeatureEntry)
    for read_ids in (_ids_of_manifest, _ids_in_outcomes):
        for of_hook in reversed(entries):
            yield partial(read_ids, store, of_hook)


def _readable_entries(store: BlobStore, prefix: str, model: type[E]) -> Sequence[E]:
    entries = []
    for info in store.list_objects(prefix):
        stored = try_read(store, info, model)
        if not isinstance(stored, Damage):
            entries.append(stored.entry)
        elif stored.state is State.UNREADABLE:
            raise stored.error
    return entries


def _ids_in_document(store: BlobStore, entry: BatchEntry) -> list[str]:
    return [record.id for record in log.batch_of(store, entry).records]


def _ids_of_manifest(store: BlobStore, entry: FeatureEntry) -> list[str]:
    digest = read.manifest_of(store, entry).batch_digest
    return [record.id for record in log.read_batch_blob(store, digest).records]


def _ids_in_outcomes(store: BlobStore, entry: FeatureEntry) -> list[str]:
    outcomes = read.read_outcomes(store, read.manifest_of(store, entry))
    ids: list[Any] = outcomes.column(RECORD_ID).to_pylist()
    return ids
