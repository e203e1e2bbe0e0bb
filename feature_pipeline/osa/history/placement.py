"""Find the batch here that the rows of a hook run of the server belong to.

The batch made of the server's storage is used if the archive has it and it has every record with
rows. Otherwise the batch is made of `public.records`, without files, under a key of its own:

- of every record that the server published from the batch of the ingest, or from the deposition;
- of the records with rows of the hook run, if these do not belong to a single batch: old records
  name none.

Such a batch counts as submitted when the server published its last record, which is before any
batch that is made of the storage was submitted. So that one owns its records, once it comes.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError

from feature_pipeline.archive.accept import accept_batch
from feature_pipeline.archive.logs import log
from feature_pipeline.archive.publish import submit_batch
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.errors import InvalidInputError, NotFoundError
from feature_pipeline.model.records import Record, RecordBatch, Source, check_batch_key
from feature_pipeline.model.text.quoting import problems, quoted
from feature_pipeline.osa.history.table_rows import PublishedRecord, RunRows, metadata_of
from feature_pipeline.osa.server.ids import (
    deposition_folder,
    deposition_key,
    history_key,
    hook_run_id,
    ingest_key,
    local_id,
    run_key,
)
from feature_pipeline.osa.server.output import RUN, stated_ids
from feature_pipeline.osa.server.storage import (
    Place,
    ServerStorage,
    batch_place,
    deposition_place,
    output_place,
)


@dataclass(frozen=True, slots=True)
class Placement:
    """The records that the rows of a hook run belong to."""

    name: str
    """Key of the batch that is made of the storage; or that of the hook run's records alone."""
    place: Place | None
    """Where the storage has that batch; None if the hook run does not belong to a single batch."""
    group: tuple[str, str] | None
    """Ingest run and batch index, if every record that was published from it is in its batch."""
    source: Source


def place_run(run: RunRows, hook: str, batches_ingested: Mapping[str, int]) -> Placement:
    """Return the batch or records that the rows of a hook run belong to.

    Args:
        run: The rows.
        hook: The hook.
        batches_ingested: Number of batches by ingest run.

    Raises:
        InvalidInputError: Their records are of ingests and of depositions, or of neither.
    """
    kinds = {origin.type for origin in run.by_origin}
    if kinds == {"deposition"}:
        srns = sorted({origin.deposition or "" for origin in run.by_origin})
        if len(srns) == 1:
            place = deposition_place(deposition_folder(srns[0]))
            name = deposition_key(local_id(srns[0]))
            return Placement(name, place, None, Source.DEPOSITION)
        return Placement(run_key(run.run_id), None, None, Source.DEPOSITION)
    if kinds != {"ingest"}:
        shown = ", ".join(sorted(quoted(str(each)) for each in kinds))
        raise InvalidInputError(
            f"the records with its rows are of type {shown}: expected ingest or deposition"
        )
    ingests = {origin.ingest_run for origin in run.by_origin}
    ingest = next(iter(ingests))
    index = None
    if len(ingests) == 1 and ingest is not None:
        index = _index(run, hook, ingest, batches_ingested.get(ingest, 0))
    if ingest is None or index is None:
        return Placement(run_key(run.run_id), None, None, Source.HARVEST)
    place = batch_place(ingest, index)
    if any(origin.batch_index is None for origin in run.by_origin):
        # Only rows show which of its old records belong to this batch.
        return Placement(ingest_key(ingest, index), place, None, Source.HARVEST)
    return Placement(ingest_key(ingest, index), place, (ingest, str(index)), Source.HARVEST)


def _index(run: RunRows, hook: str, ingest: str, batches: int) -> int | None:
    """Return the index of the one batch that the hook run was over; None if there is none.

    Its id follows from ingest run, index and hook.
    """
    stated = {origin.batch_index for origin in run.by_origin}
    known = {each for each in stated if each is not None}
    if len(known) > 1:
        return None
    if known:
        (text,) = known
        candidates: Sequence[int] = [int(text)] if text.isdecimal() and text.isascii() else []
    else:
        candidates = range(batches)
    return next((i for i in candidates if hook_run_id(ingest, i, hook) == run.run_id), None)


def is_in_storage(storage: ServerStorage, placement: Placement, hook: str, run_id: str) -> bool:
    """Return whether the storage still has the output of a hook run.

    Raises:
        InvalidInputError: `run.json` is not one.
        StoreUnavailableError: The storage did not answer.
    """
    if placement.place is None:
        return False
    place = output_place(placement.place, hook) / RUN
    try:
        text = storage.read(place)
    except NotFoundError:
        return False
    return stated_ids(text, place)[0] == run_id


def existing_keys(placement: Placement, run_id: str, keys: Collection[str]) -> list[str]:
    """Return which of a dataset's batches may have the records of a hook run, in order of use.

    The batch that is made of the storage comes first, the last one of a deposition.
    """
    present: list[str] = []
    if placement.source is Source.DEPOSITION and placement.place is not None:
        local = placement.name.removeprefix(deposition_key(""))
        present += reversed(_numbered(partial(deposition_key, local), keys))
    elif placement.place is not None and placement.name in keys:
        present.append(placement.name)
    name = history_name(placement, run_id)
    return [*present, *reversed(_numbered(partial(history_key, name), keys))]


def existing_batch(
    store: BlobStore, dataset: str, keys: Sequence[str], wanted: Collection[str]
) -> RecordBatch | None:
    """Return the first of these accepted batches that has all of the records; None if none has."""
    for key in keys:
        entries = log.batch_entries(store, dataset, key)
        batch = log.read_batch_blob(store, entries[-1].digest) if entries else None
        if batch is not None and {each.id for each in batch.records}.issuperset(wanted):
            return batch
    return None


def history_name(placement: Placement, run_id: str) -> str:
    """Return what names the batch that is made of `public.records`."""
    is_whole = placement.group is not None or placement.source is Source.DEPOSITION
    return placement.name if is_whole else run_key(run_id)


def make_batch(
    store: BlobStore,
    dataset: str,
    placement: Placement,
    run_id: str,
    records: Sequence[PublishedRecord],
    keys: Collection[str],
) -> RecordBatch:
    """Submit and accept a batch of records of the server, without their files.

    Args:
        store: The archive.
        dataset: The dataset.
        placement: What the rows of the hook run are of.
        run_id: The hook run.
        records: The records.
        keys: Those of batches that are there; the batch has another one.

    Raises:
        InvalidInputError: They cannot be a batch.
        ConflictError: Another process made another batch of this key since.
    """
    name = history_name(placement, run_id)
    key = check_batch_key(history_key(name, 1 + len(_numbered(partial(history_key, name), keys))))
    made = tuple(_record(each) for each in records)
    batch = RecordBatch.create(dataset, key, placement.source, made)
    published_at = max(each.published_at for each in records)
    accept_batch(store, submit_batch(store, batch, {}, published_at))
    return batch


def _record(published: PublishedRecord) -> Record:
    try:
        return Record.model_validate(
            {"id": published.record_id, "metadata": metadata_of(published) or {}}
        )
    except ValidationError as error:
        raise InvalidInputError(f"record {published.srn}: {problems(error)}") from error


def _numbered(key: Callable[[int], str], keys: Collection[str]) -> list[str]:
    """Return those of the keys of numbers 1, 2, … that are there, up to the first that is not."""
    return list(itertools.takewhile(keys.__contains__, map(key, itertools.count(1))))
