"""Withhold the records of a batch that cannot be read: no earlier batch answers for them.

The batch claims its records as any other does (`write`), with the status `WITHHELD` and without
rows or progress. So it does not matter which of the batches is loaded first. The batch is missing
from the table until it is loaded; its load then replaces the claim.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
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
    entry = last_readable_entry(store, spec.dataset, batch)
    # If its position cannot be read either, it is taken for the last of all.
    submitted_at = UNKNOWN_POSITION if entry is None else entry.submitted_at
    ids = records_of_batch(store, spec.dataset, spec.hook, batch) - set(withdrawn)
    while True:
        state = require_table(connection, spec)
        try:
            for generation in state.write_targets:
                _withhold(connection, state, generation, batch, submitted_at, sorted(ids))
        except TableChangedError:
            continue
        return


def _withhold(
    connection: Connection,
    state: TableState,
    generation: Generation,
    batch: str,
    submitted_at: datetime | str,
    record_ids: list[str],
) -> None:
    with suppress(*REFUSALS):
        ensure_key(connection, generation)
    with connection.transaction():
        lock_table(connection, generation.table_name, is_shared=True)
        lock(connection, "batch", generation.id, batch)
        check_state(connection, state)
        if read_progress(connection, generation.id, batch) is not None:
            return
        _, replaced = claim_records(
            connection,
            generation,
            batch,
            submitted_at,
            record_ids,
            statuses=[WITHHELD] * len(record_ids),
            reasons=[None] * len(record_ids),
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
