"""Withhold the records of a batch that cannot be read: no earlier batch answers for them.

The batch claims its records as any other does (`write`), with the status `WITHHELD` and without
rows or progress. So it does not matter which of the batches is loaded first. The batch is missing
from the table until it is loaded; its load then replaces the claim.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from psycopg import sql

from feature_pipeline.archive.query.damaged_batches import last_readable_entry, records_of_batch
from feature_pipeline.archive.store.base import BlobStore
from feature_pipeline.projections.catalog.bookkeeping import read_progress
from feature_pipeline.projections.catalog.database import Connection, lock
from feature_pipeline.projections.catalog.generation import (
    Generation,
    TableState,
    ensure_key,
    lock_table,
    require_table,
)
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.rows.write import (
    REFUSALS,
    UNKNOWN_POSITION,
    TableChangedError,
    check_state,
    claim_records,
    give_up_rows,
)

WITHHELD: Final = "withheld"
"""The status of a record whose batch cannot be read. `features._outcomes` shows none of them."""

# Which records does a batch own that is not in the generation?
_READ_WITHHELD: Final = "select record_id, batch from {} where generation = %s and status = %s"


@dataclass(frozen=True, slots=True)
class UnreadableBatch:
    """A batch that claims its records without rows."""

    batch: str
    record_ids: tuple[str, ...]
    """Sorted, without withdrawn ones."""
    submitted_at: datetime | None
    """None if that cannot be read either: then it is taken for the last of all."""


def find_unreadable(
    store: BlobStore, spec: TableSpec, batch: str, withdrawn: Collection[str]
) -> UnreadableBatch:
    """Return what is known of a batch whose artifact, log or document cannot be read.

    Raises:
        NotFoundError: It is not known which records the batch has.
        StoreUnavailableError: The store did not answer.
    """
    entry = last_readable_entry(store, spec.dataset, batch)
    record_ids = records_of_batch(store, spec.dataset, spec.hook, batch) - set(withdrawn)
    submitted_at = None if entry is None else entry.submitted_at
    return UnreadableBatch(batch, tuple(sorted(record_ids)), submitted_at)


def withhold_batch(
    store: BlobStore,
    connection: Connection,
    spec: TableSpec,
    batch: str,
    withdrawn: Collection[str],
) -> None:
    """Claim the records of an unreadable batch in every generation that is loaded.

    The rows that earlier batches have of them are deleted. A generation that the batch was loaded
    into before does not change: its rows stay.

    Args:
        store: The archive.
        connection: In no transaction.
        spec: The table, which exists.
        batch: The batch.
        withdrawn: Records that must not appear.

    Raises:
        NotFoundError: It is not known which records the batch has; nothing changed.
        StoreUnavailableError: The store did not answer; nothing changed.
    """
    unreadable = find_unreadable(store, spec, batch, withdrawn)
    while True:
        state = require_table(connection, spec)
        try:
            for generation in state.write_targets:
                _withhold(connection, state, generation, unreadable)
        except TableChangedError:
            continue
        return


def _withhold(
    connection: Connection, state: TableState, generation: Generation, unreadable: UnreadableBatch
) -> None:
    with suppress(*REFUSALS):
        ensure_key(connection, generation)
    with connection.transaction():
        lock_table(connection, generation.table_name, is_shared=True)
        lock(connection, "batch", generation.id, unreadable.batch)
        check_state(connection, state)
        if read_progress(connection, generation.id, unreadable.batch) is not None:
            return
        ids = list(unreadable.record_ids)
        submitted_at = unreadable.submitted_at
        _, replaced = claim_records(
            connection,
            generation,
            unreadable.batch,
            UNKNOWN_POSITION if submitted_at is None else submitted_at,
            ids,
            statuses=[WITHHELD] * len(ids),
            reasons=[None] * len(ids),
        )
        give_up_rows(connection, generation, replaced)


def read_withheld(
    connection: Connection, generation: Generation, records: Collection[str] | None
) -> Mapping[str, str]:
    """Return the withheld records among these, or all of them, each with its batch."""
    query = sql.SQL(_READ_WITHHELD).format(generation.outcomes)
    parameters: list[object] = [generation.id, WITHHELD]
    if records is not None:
        query = sql.SQL("{} and record_id = any(%s)").format(query)
        parameters.append(sorted(records))
    return dict(connection.execute(query, parameters).fetchall())
