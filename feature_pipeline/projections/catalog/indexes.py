"""Indexes of a generation: an attribute that changes without loading anything."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ProjectionError
from feature_pipeline.model.definition import IndexDefinition
from feature_pipeline.projections.catalog import ddl
from feature_pipeline.projections.catalog.database import (
    BOOKKEEPING_SCHEMA,
    UNHOLDABLE,
    Connection,
    session_lock,
)
from feature_pipeline.projections.catalog.generation import Generation
from feature_pipeline.projections.catalog.spec import TableSpec

# Which indexes does the table have, and which of them are usable?
_EXISTING_INDEXES: Final = """
select i.relname, x.indisvalid from pg_index x join pg_class i on i.oid = x.indexrelid
where x.indrelid = to_regclass(%s) and not x.indisprimary"""


LOCK_TIMEOUT: Final = "120s"
"""How long the change of an index waits for transactions that are under way."""


class UnholdableRowsError(ProjectionError):
    """An index cannot store values of rows that the generation has already."""


def follow_indexes(
    connection: Connection, generation: Generation, spec: TableSpec, *, is_read: bool
) -> bool:
    """Make the generation's indexes the declared ones; return whether anything changed.

    Args:
        connection: In no transaction.
        generation: The generation.
        spec: The declaration.
        is_read: Build and drop them without blocking readers and loads: slower, and only once
            transactions that are under way have ended.

    Raises:
        UnholdableRowsError: An index cannot store a value of some row, because of its size for
            example. Nothing of that index is left.
        ProjectionError: PostgreSQL refused an index; for a unique one, the message names the
            duplicate values. Nothing of that index is left, and no valid index was dropped. Or
            transactions did not end in time; the next call continues from there.
    """
    wanted = _wanted(generation, spec)
    if _existing(connection, generation) == dict.fromkeys(wanted, True):
        return False
    with session_lock(connection, "indexes", generation.id), _lock_timeout(connection):
        existing = _existing(connection, generation)
        for name, is_valid in existing.items():
            # An invalid one is what a process that was killed left of a concurrent build.
            if not is_valid:
                _drop(connection, generation, name, is_concurrent=is_read)
        for name, index in wanted.items():
            if not existing.get(name, False):
                _create(connection, generation, index, name, is_concurrent=is_read)
        # Last: if the one that is to take its place is refused, people keep the one they have.
        for name, is_valid in existing.items():
            if is_valid and name not in wanted:
                _drop(connection, generation, name, is_concurrent=is_read)
    return True


@contextmanager
def _lock_timeout(connection: Connection) -> Iterator[None]:
    """Limit the wait of each statement for another transaction to `LOCK_TIMEOUT`."""
    connection.execute(f"set lock_timeout = '{LOCK_TIMEOUT}'".encode())
    try:
        yield
    finally:
        if not connection.broken:
            connection.execute("set lock_timeout = 0")


def missing_indexes(
    connection: Connection, generation: Generation | None, spec: TableSpec
) -> tuple[IndexDefinition, ...]:
    """Return the declared indexes that `follow_indexes` would build; all without a generation."""
    if generation is None:
        return spec.indexes
    existing = _existing(connection, generation)
    wanted = _wanted(generation, spec)
    return tuple(index for name, index in wanted.items() if not existing.get(name, False))


def surplus_indexes(
    connection: Connection, generation: Generation | None, spec: TableSpec
) -> tuple[str, ...]:
    """Return the names of the indexes that `follow_indexes` would drop."""
    if generation is None:
        return ()
    return tuple(sorted(_existing(connection, generation).keys() - _wanted(generation, spec)))


def describe_index(index: IndexDefinition) -> str:
    """Return a short description of an index."""
    what = "unique " if index.unique else ""
    keys = index.expression or ", ".join(index.columns)
    where = f" where {index.where}" if index.where else ""
    return f"{what}{index.method.value} ({keys}){where}"


def are_declared(connection: Connection, generation: Generation, spec: TableSpec) -> bool:
    """Return whether the generation's indexes are the declared ones."""
    return not (
        missing_indexes(connection, generation, spec)
        or surplus_indexes(connection, generation, spec)
    )


def _wanted(generation: Generation, spec: TableSpec) -> dict[str, IndexDefinition]:
    return {ddl.index_name(generation.relation, index): index for index in spec.indexes}


def _create(
    connection: Connection,
    generation: Generation,
    index: IndexDefinition,
    name: str,
    *,
    is_concurrent: bool,
) -> None:
    try:
        connection.execute(
            ddl.create_index(
                generation.relation, generation.columns, index, name, is_concurrent=is_concurrent
            )
        )
    except psycopg.errors.LockNotAvailable as error:
        raise _lock_timeout_error(
            generation, f"index {index.name or name!r} cannot be built"
        ) from error
    except psycopg.Error as error:
        if not connection.broken:
            # Left behind a long reader, it is invalid and goes the next time.
            with suppress(ProjectionError):
                _drop(connection, generation, name, is_concurrent=is_concurrent)
        detail = error.diag.message_detail or error.diag.message_primary or str(error)
        what = f"table {generation.table_name!r}: index {index.name or name!r}"
        reason = f"{what} cannot be built: {detail}"
        if isinstance(error, UNHOLDABLE):
            if is_concurrent:
                reason += "; `feature-pipeline rebuild` leaves out the records that it cannot store"
            raise UnholdableRowsError(reason) from error
        raise ProjectionError(reason) from error


def _drop(
    connection: Connection, generation: Generation, name: str, *, is_concurrent: bool
) -> None:
    how = sql.SQL("concurrently") if is_concurrent else sql.SQL("")
    try:
        connection.execute(
            sql.SQL("drop index {} if exists {}").format(
                how, sql.Identifier(BOOKKEEPING_SCHEMA, name)
            )
        )
    except psycopg.errors.LockNotAvailable as error:
        raise _lock_timeout_error(generation, f"index {name!r} cannot be dropped") from error


def _lock_timeout_error(generation: Generation, what: str) -> ProjectionError:
    return ProjectionError(
        f"table {generation.table_name!r}: {what} while transactions that use the table are open,"
        f" and some were for {LOCK_TIMEOUT}: end them, or run again later"
    )


def _existing(connection: Connection, generation: Generation) -> dict[str, bool]:
    """Return the names of the indexes except the primary key, and whether each is valid."""
    rows = connection.execute(_EXISTING_INDEXES, [generation.identifier.as_string(connection)])
    return dict(rows.fetchall())
