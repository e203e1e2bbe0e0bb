"""Replace a batch's rows in a generation, in one transaction with its progress.

Locks are always taken in this order, which prevents deadlocks between loaders: the table (shared),
the batch, its records in the order of their ids, progress rows in the order of their batches.
"""

import re
import reprlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Final

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql

from feature_pipeline.archive.format.arrow_values import text_array
from feature_pipeline.errors import ConflictError, ProjectionError
from feature_pipeline.model.digest import Digest
from feature_pipeline.projections.catalog.bookkeeping import (
    Progress,
    forget_left_out,
    has_progress,
    read_progress,
    write_left_out,
    write_progress,
    write_provenance,
)
from feature_pipeline.projections.catalog.database import (
    UNHOLDABLE,
    Connection,
    fetch_one,
    fetch_value,
    lock,
    lock_each,
)
from feature_pipeline.projections.catalog.generation import (
    Generation,
    TableState,
    ensure_key,
    lock_table,
)
from feature_pipeline.projections.rows.copy_format import COPY_HEADER, COPY_TRAILER
from feature_pipeline.projections.rows.prepare import (
    OUTCOME_KINDS,
    PreparedBatch,
    PreparedGroup,
    encode_chunks,
)

# A record belongs to the batch submitted last among those loaded, whatever became of it there.
# Equal means this batch: it replaces its own outcome. The order of claims is that of the ids.
_CLAIM: Final = """
with claimed as (
    insert into {outcomes} as o (generation, record_id, status, reason, batch, submitted_at)
    select %(generation)s, i.record_id, i.status, i.reason, %(batch)s,
        %(submitted_at)s::timestamptz
    from unnest(%(ids)s::text[], %(statuses)s::text[], %(reasons)s::text[])
        as i (record_id, status, reason)
    order by i.record_id collate "C"
    on conflict (generation, record_id) do update
        set status = excluded.status, reason = excluded.reason, batch = excluded.batch,
            submitted_at = excluded.submitted_at, is_replacement = true
        where (o.submitted_at, o.batch) <= (excluded.submitted_at, excluded.batch)
            or o.batch = excluded.batch
    returning record_id, is_replacement
)
select count(*), array_agg(record_id) filter (where is_replacement) from claimed
"""
UNKNOWN_POSITION: Final = "infinity"
"""The time of submission of a batch for which it cannot be read (`withhold`)."""
# Was the batch among those whose position was unknown when it claimed these records?
_WAS_UNPLACED: Final = """
select exists (select from {outcomes} where generation = %s and record_id = any(%s)
and batch = %s and submitted_at = 'infinity')"""


@dataclass(frozen=True, slots=True)
class Replacement:
    """The result of loading one batch into one generation.

    `progress` is that of the batch in the generation afterwards. `is_unchanged` means that no row
    was written because the content existed already. `foreign` counts the batch's records that
    belong to a batch submitted later. `left_out` gives for records the reason why PostgreSQL cannot
    store their rows. `was_unplaced` means that the batch was taken for the last of all until now,
    so that later ones may lack records.
    """

    progress: Progress
    is_unchanged: bool
    foreign: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    was_unplaced: bool = False


@dataclass(frozen=True, slots=True)
class Replaced:
    """The results for several batches."""

    done: tuple[Replacement, ...]
    refused: Mapping[str, "RefusedBatchError"] = field(default_factory=dict)


class RefusedBatchError(ProjectionError):
    """PostgreSQL refused a batch because of its rows; names the batch, record and value."""


REFUSALS: Final = (*UNHOLDABLE, psycopg.IntegrityError)
"""Errors that are about the rows, not about the server or the connection."""
_PLACE: Final = re.compile(r"^COPY .*, line (\d+)(?:, column ([^:\n]+))?", re.MULTILINE)
_SHORT: Final = reprlib.Repr()
_LONGEST_REASON: Final = 500


class TableChangedError(ConflictError):
    """The table's live or wanted generation has changed since the caller read it."""


def replace_batches(
    connection: Connection,
    state: TableState,
    generation: Generation,
    group: PreparedGroup,
    *,
    is_forced: bool = False,
    given_up: Mapping[str, tuple[int, Digest]] = MappingProxyType({}),
) -> Replaced:
    """Load each batch of `group` into the generation, unless it has something newer.

    While an empty generation is filled, most batches and records are new to it: all of them then
    share one transaction, one COPY of rows and one of outcomes. Otherwise each batch has a
    transaction of its own, and claims its records. If PostgreSQL refuses a batch, the others are
    still loaded; if it cannot store the rows of a record, the rest of its batch is.

    Args:
        connection: In no transaction.
        state: The table as the caller knows it.
        generation: One of those that are loaded.
        group: The batches, for this generation.
        is_forced: Write rows again even if they exist, but never an older log entry's.
        given_up: By batch, the log entry (number, manifest) that it was loaded from and that was
            given up: an older entry replaces it.

    Raises:
        TableChangedError: `state` is out of date; some of the batches may have been loaded.
        psycopg.Error: PostgreSQL failed; some of the batches may have been loaded.
    """
    try:
        with connection.transaction():
            first = _load_first(connection, state, generation, group)
    except (psycopg.errors.DeadlockDetected, *REFUSALS):
        # A record is in a batch that was loaded before, or is being loaded. Claims decide whose it
        # is; they take three times as long as COPY, which is right whenever batches do not overlap.
        # Or one of the batches is refused: loading each separately shows which.
        first = None
    if first is not None:
        return Replaced(tuple(first))
    done: list[Replacement] = []
    refused: dict[str, RefusedBatchError] = {}
    # Claims find records. Rows that keep the key from being built are found before any is read.
    with suppress(*REFUSALS):
        ensure_key(connection, generation)
    for prepared in group.batches:
        try:
            done.append(_replace_one(connection, state, generation, prepared, is_forced, given_up))
        except RefusedBatchError as error:
            refused[prepared.batch] = error
    return Replaced(tuple(done), refused)


def _load_first(
    connection: Connection, state: TableState, generation: Generation, group: PreparedGroup
) -> list[Replacement] | None:
    """Load batches that are new to the generation; None if it already has one of them."""
    batches = sorted(prepared.batch for prepared in group.batches)
    lock_table(connection, generation.table_name, is_shared=True)
    lock_each(connection, [("batch", generation.id, batch) for batch in batches])
    check_state(connection, state)
    if has_progress(connection, generation.id, batches):
        return None
    copy_rows(connection, generation.outcomes, OUTCOME_KINDS, [group.encoded_outcomes])
    chunks = (chunk for prepared in group.batches for chunk in prepared.chunks(None))
    copy_rows(connection, generation.identifier, group.batches[0].kinds, chunks)
    progress = [_progress(prepared, prepared.row_count(None)) for prepared in group.batches]
    write_progress(connection, generation.id, sorted(progress, key=lambda one: one.batch))
    return [Replacement(one, is_unchanged=False, foreign=0) for one in progress]


def _replace_one(
    connection: Connection,
    state: TableState,
    generation: Generation,
    prepared: PreparedBatch,
    is_forced: bool,
    given_up: Mapping[str, tuple[int, Digest]],
) -> Replacement:
    entry = given_up.get(prepared.batch)
    return replace_batch(
        connection, state, generation, prepared, is_forced=is_forced, given_up=entry
    )


def replace_batch(
    connection: Connection,
    state: TableState,
    generation: Generation,
    prepared: PreparedBatch,
    *,
    is_forced: bool = False,
    given_up: tuple[int, Digest] | None = None,
) -> Replacement:
    """Load the batch of `prepared` into the generation, unless it has something newer.

    Rows, outcomes and progress change together or not at all. Loading the same again, or an older
    log entry, changes nothing.

    Args:
        connection: In no transaction.
        state: The table as the caller knows it.
        generation: One of those that are loaded.
        prepared: The batch, for this generation.
        is_forced: Write its rows again even if they exist, but never an older log entry's.
        given_up: The log entry (number, manifest) that it was loaded from, if its loss was
            accepted: an older entry replaces it.

    Raises:
        TableChangedError: `state` is out of date; nothing changed.
        RefusedBatchError: PostgreSQL refused its rows because of others'; nothing changed.
        psycopg.Error: Something else went wrong; nothing changed.
    """
    with connection.transaction():
        lock_table(connection, generation.table_name, is_shared=True)
        lock(connection, "batch", generation.id, prepared.batch)
        check_state(connection, state)
        loaded = read_progress(connection, generation.id, prepared.batch)
        is_given_up = loaded is not None and (loaded.seq, loaded.manifest) == given_up
        if loaded is not None and not is_given_up and loaded.seq >= prepared.entry.seq + is_forced:
            return Replacement(loaded, is_unchanged=True, foreign=0)
        # Rows of another release may go through another upcaster.
        is_same = (
            loaded is not None
            and loaded.content_digest == prepared.content_digest
            and (not generation.upcasters or loaded.release == prepared.manifest.release.version)
        )
        if loaded is not None and is_same and not is_forced:
            # How many rows they are may be changing: a later batch may be claiming some of them.
            progress = _progress(prepared, loaded.rows)
            write_provenance(connection, generation.id, progress)
            return Replacement(progress, is_unchanged=True, foreign=0)
        return _replace(connection, generation, prepared, loaded, is_forced=is_forced)


def _replace(
    connection: Connection,
    generation: Generation,
    prepared: PreparedBatch,
    loaded: Progress | None,
    *,
    is_forced: bool,
) -> Replacement:
    was_unplaced = loaded is None and _was_unplaced(connection, generation, prepared)
    owned_count, replaced = _claim(connection, generation, prepared)
    lost: dict[str, int] = {}
    # A batch always has the same records, except erased ones. If it was loaded and
    # has a record without an earlier outcome, it was loaded under other ids.
    is_scan = is_forced or (loaded is not None and len(replaced) < owned_count)
    if loaded is not None or is_scan:
        replaced = replaced + _forget_others(connection, generation, prepared, is_scan=is_scan)
    if replaced:
        lost = _delete_rows(connection, generation, replaced)
    if is_scan or (loaded is not None and lost.get(prepared.batch, 0) != loaded.rows):
        _delete_batch_rows(connection, generation, prepared.batch)
    total = len(prepared.outcomes)
    owned = None if owned_count == total else _owned(connection, generation, prepared)
    rows = prepared.row_count(owned)
    left_out = _copy_owned(connection, generation, prepared, owned) if rows else {}
    if left_out:
        is_left_out = pc.is_in(prepared.owned_rows(owned)["record_id"], text_array(list(left_out)))
        rows -= is_left_out.to_pylist().count(True)
    write_left_out(connection, generation.id, prepared.batch, left_out)
    progress = _progress(prepared, rows)
    for batch in sorted({prepared.batch, *lost}):
        if batch == prepared.batch:
            write_progress(connection, generation.id, [progress])
        else:
            _subtract_rows(connection, generation, batch, lost[batch])
    return Replacement(
        progress,
        is_unchanged=False,
        foreign=total - owned_count,
        left_out=left_out,
        was_unplaced=was_unplaced,
    )


def _copy_owned(
    connection: Connection,
    generation: Generation,
    prepared: PreparedBatch,
    owned: Sequence[str] | None,
) -> dict[str, str]:
    """Write the owned records' rows; return why PostgreSQL cannot store the rows of some.

    Raises:
        RefusedBatchError: Rows are refused because of others', as by a unique index.
    """
    try:
        with connection.transaction():
            copy_rows(connection, generation.identifier, prepared.kinds, prepared.chunks(owned))
            return {}
    except psycopg.IntegrityError as error:
        raise _refusal(prepared, prepared.owned_rows(owned), error) from error
    except UNHOLDABLE:
        # The error names a line of COPY, which may be a later one than that of the row.
        return dict(_copy_parts(connection, generation, prepared, prepared.owned_rows(owned)))


def _copy_parts(
    connection: Connection, generation: Generation, prepared: PreparedBatch, rows: pa.Table
) -> Iterator[tuple[str, str]]:
    """Halve rows of which some cannot be stored, until each of these is alone."""
    ids = rows["record_id"].unique()
    if len(ids) == 1:
        parts = [rows]
    else:
        first = pc.is_in(rows["record_id"], ids.slice(0, len(ids) // 2))
        parts = [rows.filter(first), rows.filter(pc.invert(first))]
    for part in parts:
        chunks = encode_chunks(part, prepared.batch, prepared.kinds)
        try:
            with connection.transaction():
                copy_rows(connection, generation.identifier, prepared.kinds, chunks)
        except psycopg.IntegrityError as error:
            raise _refusal(prepared, part, error) from error
        except UNHOLDABLE as error:
            if part is rows:
                yield str(ids[0]), _reason(error)
            else:
                yield from _copy_parts(connection, generation, prepared, part)


def _reason(error: psycopg.Error) -> str:
    diagnostics = error.diag
    parts = [diagnostics.message_primary or str(error), diagnostics.message_detail]
    return "; ".join(part for part in parts if part)[:_LONGEST_REASON]


def _refusal(prepared: PreparedBatch, rows: pa.Table, error: psycopg.Error) -> RefusedBatchError:
    """Return the error of a batch, with the row that COPY was at, if that is known.

    Args:
        prepared: The batch.
        rows: The rows of the COPY.
        error: PostgreSQL's.
    """
    where = ""
    place = _PLACE.search(error.diag.context or "")
    refused = rows.slice(int(place[1]) - 1, 1).to_pylist() if place else []
    if place and refused:
        [row] = refused
        record_id, ordinal = row.pop("record_id"), row.pop("ordinal")
        if place[2] in row:
            row = {place[2]: row[place[2]]}
        values = ", ".join(
            f"{name} = {_SHORT.repr(value)}" for name, value in row.items() if value is not None
        )
        where = f" record {record_id!r}, row {ordinal} ({values})"
    return RefusedBatchError(
        f"batch {prepared.batch!r}: PostgreSQL refused{where}: {_reason(error)}"
    )


def _claim(
    connection: Connection, generation: Generation, prepared: PreparedBatch
) -> tuple[int, list[str]]:
    """Claim the batch's records; return how many it owns, and which had an outcome before."""
    outcomes = prepared.outcomes
    return claim_records(
        connection,
        generation,
        prepared.batch,
        prepared.submitted_at,
        prepared.record_ids(),
        statuses=outcomes["status"].to_pylist(),
        reasons=outcomes["reason"].to_pylist(),
    )


def claim_records(
    connection: Connection,
    generation: Generation,
    batch: str,
    submitted_at: datetime | str,
    record_ids: list[str],
    *,
    statuses: list[Any],
    reasons: list[Any],
) -> tuple[int, list[str]]:
    """Make the batch the owner of these records, unless a later one is.

    Returns:
        How many it owns, and which of them had an outcome before.
    """
    row = fetch_one(
        connection,
        sql.SQL(_CLAIM).format(outcomes=generation.outcomes),
        {
            "generation": generation.id,
            "batch": batch,
            "submitted_at": submitted_at,
            "ids": record_ids,
            "statuses": statuses,
            "reasons": reasons,
        },
    )
    count, replaced = row or (0, None)
    return count, replaced or []


def _was_unplaced(connection: Connection, generation: Generation, prepared: PreparedBatch) -> bool:
    query = sql.SQL(_WAS_UNPLACED).format(outcomes=generation.outcomes)
    parameters = [generation.id, prepared.record_ids(), prepared.batch]
    return bool(fetch_value(connection, query, parameters))


def _owned(connection: Connection, generation: Generation, prepared: PreparedBatch) -> list[str]:
    """Return the batch's own records. They are locked by the claim, so this answer stays true."""
    rows = connection.execute(
        sql.SQL(
            "select record_id from {} where generation = %s and record_id = any(%s) and batch = %s"
        ).format(generation.outcomes),
        [generation.id, prepared.record_ids(), prepared.batch],
    )
    return [row[0] for row in rows]


def _forget_others(
    connection: Connection, generation: Generation, prepared: PreparedBatch, *, is_scan: bool
) -> list[str]:
    """Remove the batch's outcomes of records that it does not have, and return their ids.

    A batch loses records only to erasure. If it was redacted, it may have been loaded last before
    that, and the withdrawal lifted since.

    Args:
        connection: In the load's transaction.
        generation: The generation.
        prepared: The batch.
        is_scan: Check every outcome of the batch, as for a redacted one, by a scan without index.
            Otherwise check withdrawn records alone.
    """
    is_scan = is_scan or prepared.is_redacted
    if not (prepared.withdrawn or is_scan):
        return []
    chosen = "record_id <> all(%s)" if is_scan else "record_id = any(%s)"
    ids = prepared.record_ids() if is_scan else sorted(prepared.withdrawn)
    rows = connection.execute(
        sql.SQL(
            "delete from {} where generation = %s and {} and batch = %s returning record_id"
        ).format(generation.outcomes, sql.SQL(chosen)),
        [generation.id, ids, prepared.batch],
    )
    return [row[0] for row in rows]


def forget_records(
    connection: Connection,
    generation: Generation,
    record_ids: Collection[str],
    batch: str | None = None,
) -> None:
    """Remove everything about these records from the generation, in the caller's transaction.

    Args:
        connection: In a transaction that holds the table's lock.
        generation: The generation.
        record_ids: The records.
        batch: Remove only those that this batch owns; all of them if None.
    """
    if not record_ids:
        return
    gone = connection.execute(
        sql.SQL(
            "delete from {} where generation = %s and record_id = any(%s)"
            " and batch = coalesce(%s, batch) returning record_id"
        ).format(generation.outcomes),
        [generation.id, sorted(record_ids), batch],
    )
    give_up_rows(connection, generation, [row[0] for row in gone])


def give_up_rows(connection: Connection, generation: Generation, record_ids: list[str]) -> None:
    """Delete the records' rows, in the caller's transaction: their batches have fewer."""
    for owner, count in sorted(_delete_rows(connection, generation, record_ids).items()):
        _subtract_rows(connection, generation, owner, count)


def _subtract_rows(connection: Connection, generation: Generation, batch: str, count: int) -> None:
    connection.execute(
        "update feature_pipeline.progress set rows = rows - %s"
        " where generation = %s and batch = %s",
        [count, generation.id, batch],
    )


def _delete_rows(
    connection: Connection, generation: Generation, record_ids: list[str]
) -> dict[str, int]:
    """Delete the records' rows; return the number by batch."""
    forget_left_out(connection, generation.id, record_ids)
    rows = connection.execute(
        sql.SQL(
            "with gone as (delete from {} where record_id = any(%s) returning batch)"
            " select batch, count(*) from gone group by batch"
        ).format(generation.identifier),
        [record_ids],
    )
    return dict(rows.fetchall())


def _delete_batch_rows(connection: Connection, generation: Generation, batch: str) -> None:
    """Delete every row of the batch, also of records without an outcome, by a scan."""
    connection.execute(
        sql.SQL("delete from {} where batch = %s").format(generation.identifier), [batch]
    )


def copy_rows(
    connection: Connection,
    table: sql.Identifier,
    columns: Iterable[str],
    chunks: Iterable[memoryview],
) -> None:
    """Add these rows, encoded by `copy_format`, to the table, in the caller's transaction."""
    statement = sql.SQL("copy {} ({}) from stdin (format binary)").format(
        table, sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        copy.write(COPY_HEADER)
        for chunk in chunks:
            copy.write(chunk)
        copy.write(COPY_TRAILER)


def check_state(connection: Connection, state: TableState) -> None:
    """Raise TableChangedError if the table is no longer as the caller knows it."""
    # Without this, a loader that looked before a switch would feed the old generation after it,
    # and the table would miss a batch that Dagster calls loaded.
    row = fetch_one(
        connection,
        "select live, wanted from feature_pipeline.tables where name = %s",
        [state.wanted.table_name],
    )
    if row != (None if state.live is None else state.live.id, state.wanted.id):
        raise TableChangedError(
            f"table {state.wanted.table_name!r} was switched, dropped or redefined meanwhile"
        )


def _progress(prepared: PreparedBatch, rows: int) -> Progress:
    manifest = prepared.manifest
    return Progress(
        batch=prepared.batch,
        seq=prepared.entry.seq,
        manifest=prepared.entry.manifest,
        content_digest=prepared.content_digest,
        rows_digest=prepared.rows_digest,
        release=manifest.release.version,
        release_digest=manifest.release.digest,
        run=manifest.run.id,
        rows=rows,
        loaded_at=datetime.now(UTC),
    )
