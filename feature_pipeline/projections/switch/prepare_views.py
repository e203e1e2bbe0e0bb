"""Create the views on a table on another generation before readers have to wait for them.

Filling a materialized view takes as long as its query does. Under the locks of a switch, readers of
the table and of the view would wait as long.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog import ddl, dependents, own_views
from feature_pipeline.projections.catalog.database import (
    BOOKKEEPING_SCHEMA,
    READ_SCHEMA,
    Connection,
    fetch_value,
    is_transient,
)
from feature_pipeline.projections.catalog.ddl import truncate_identifier
from feature_pipeline.projections.catalog.dependents import View
from feature_pipeline.projections.catalog.generation import Generation, require_table
from feature_pipeline.projections.catalog.own_views import ViewState, describe_relation, find_view
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import surviving_columns, view_query

_TRIAL_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.2
_LOCK_TIMEOUT: Final = "500ms"


class ViewsChangedError(Exception):
    """Views on the table were created or changed while the others were dropped or made ahead."""


class ViewMisfitError(ConflictError):
    """A view is not valid on the new columns. `reason` names it and the error."""

    def __init__(self, table: str, view: View, error: psycopg.Error) -> None:
        why = error.diag.message_primary or str(error)
        self.reason = f"{view.label} cannot be created on the new columns: {why}"
        super().__init__(
            f"table {table!r} was not switched: {self.reason}. Change or drop it, and run again"
        )


@dataclass(frozen=True, slots=True)
class Ahead:
    """Views that were created on a generation, and the ones that they replace."""

    live: Generation
    """The generation that the old ones read."""
    made: tuple[View, ...]
    """In the bookkeeping schema; the table's own first."""
    old: tuple[View, ...]
    """In the same order, as they were when these were made."""


def make_ahead(connection: Connection, spec: TableSpec, to: Generation) -> Ahead | None:
    """Create the views of a table on another generation, if a materialized one has to be filled.

    None if none has: the table's view can be changed in place, or nothing takes long. Also if the
    bookkeeping schema has a relation of one of their names; then they are filled at the switch.

    Args:
        connection: In the transaction of the switch, with a `lock_timeout`. The views' locks are
            held for a moment, to read their definitions.
        spec: The table.
        to: The generation.

    Raises:
        ConflictError: A view cannot be created again; names it and the reason.
        psycopg.errors.LockNotAvailable: The views are in use.
    """
    live = require_table(connection, spec).live
    own_view = find_view(connection, spec.name)
    if live is None or not own_view.is_own:
        return None
    if own_view.state is ViewState.UNCHANGED and renames_in_place(live.columns, to.columns):
        return None
    old = dependents.read_views(connection, sql.Identifier(READ_SCHEMA, spec.name))
    if not any(view.kind == "m" and view.is_populated for view in old):
        return None
    moved = _moved(connection, old, live, to)
    if moved is None:
        return None
    old, made = moved
    _make(connection, old, made, to, has_data=True)
    return Ahead(live, made, old)


def put_in_place(
    connection: Connection, ahead: Ahead, to: Generation, root: View, others: Sequence[View]
) -> None:
    """Move the views made ahead to the places of `root` and `others`, which are dropped already.

    Raises:
        ViewsChangedError: The views were changed since these were made.
    """
    if [_identity(view) for view in (root, *others)] != [_identity(view) for view in ahead.old]:
        raise ViewsChangedError
    names = surviving_columns(ahead.live.columns, to.columns)
    dependents.drop_view(connection, root)
    for made, old in zip(ahead.made, (root, *others), strict=True):
        dependents.move_view(connection, made, old.schema)
    own_views.record_view(connection, to.table_name)
    dependents.replace_grants(
        connection, root.identifier, dependents.carry_grants(root.grants, names)
    )
    for statement in root.triggers:
        connection.execute(statement.encode())
    for view in others:
        dependents.dress_view(connection, view)


def try_views(connection: Connection, spec: TableSpec, live: Generation) -> str | None:
    """Return why views on the table cannot be created on the wanted columns; None if they can.

    They are created, without data, on an empty table of these columns, in a transaction that is
    rolled back. Readers wait for the moment in which their definitions are read. A view that is in
    use all the time is not tried.
    """
    relation = f"_plan_{fetch_value(connection, 'select pg_backend_pid()')}"
    to = Generation(
        id=0,
        table_name=spec.name,
        relation=relation,
        digest=spec.generation_digest,
        columns=spec.columns,
        upcasters=spec.upcasters,
        created_at=datetime.now(UTC),
        switched_at=None,
    )
    for attempt in range(_TRIAL_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            with connection.transaction(force_rollback=True):
                connection.execute(f"set local lock_timeout = '{_LOCK_TIMEOUT}'".encode())
                connection.execute(ddl.create_table(relation, spec.columns))
                old = dependents.read_views(connection, sql.Identifier(READ_SCHEMA, spec.name))
                moved = _moved(connection, old, live, to)
                if moved is not None:
                    _make(connection, *moved, to, has_data=False)
            return None
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.DeadlockDetected,
            ViewsChangedError,
        ):
            continue
        except ViewMisfitError as error:
            return error.reason
    return None


def _identity(view: View) -> tuple[object, ...]:
    return view.oid, view.definition, view.options, view.is_populated, view.indexes


def _moved(
    connection: Connection, old: Sequence[View], live: Generation, to: Generation
) -> tuple[tuple[View, ...], tuple[View, ...]] | None:
    """Return the views with their definitions in the bookkeeping schema on the new columns.

    PostgreSQL itself rewrites their definitions: they are moved, columns renamed, and all of it is
    rolled back. None if names in that schema are taken.
    """
    names = [view.name for view in old]
    if len(set(names)) < len(names) or any(
        describe_relation(connection, BOOKKEEPING_SCHEMA, name) for name in names
    ):
        return None
    dependents.check_restorable(old)
    root = old[0].identifier
    with connection.transaction(force_rollback=True):
        # A reader of a view locks that first, and then what it reads.
        for view in reversed(old):
            dependents.lock_view(connection, view)
        old = dependents.read_views(connection, root)
        dependents.check_restorable(old)
        if [view.name for view in old] != names:
            raise ViewsChangedError
        moved = [dependents.move_view(connection, view, BOOKKEEPING_SCHEMA) for view in old]
        if follows_renames(live, to):
            rename_columns(connection, moved[0], live, surviving_columns(live.columns, to.columns))
        made = dependents.read_views(connection, moved[0].identifier)
    by_oid = {view.oid: view for view in made}
    return tuple(old), tuple(by_oid[view.oid] for view in old)


def _make(
    connection: Connection,
    old: Sequence[View],
    made: Sequence[View],
    to: Generation,
    *,
    has_data: bool,
) -> None:
    root, *others = made
    connection.execute(
        sql.SQL("create view {} {} as {}").format(
            root.identifier, dependents.view_options(root), view_query(to)
        )
    )
    for view, before in zip(others, old[1:], strict=True):
        try:
            dependents.recreate_view(connection, view, has_data=has_data and view.is_populated)
        except psycopg.Error as error:
            if is_transient(error):
                raise
            raise ViewMisfitError(to.table_name, before, error) from error


def renames_in_place(old: Sequence[Column], new: Sequence[Column]) -> list[tuple[str, str]]:
    """Return (old, new) names of columns if the live view can become the new one in place.

    That is possible if columns were only renamed or appended; views on it then follow
    automatically. Empty if it is not.
    """
    if len(new) < len(old):
        return []
    kept = surviving_columns(old, new)
    names = [("record_id", "record_id")]
    for before, after in zip(old, new, strict=False):
        if before.kind != after.kind or kept.get(before.name) != after.name:
            return []
        names.append((before.name, after.name))
    return names


def follows_renames(live: Generation, to: Generation) -> bool:
    """Return whether views have to be rewritten to read columns under their new names.

    A column that is dropped, and whose name another one takes, must not be mistaken for that.
    """
    names = surviving_columns(live.columns, to.columns)
    taken = {column.name for column in to.columns}
    return any(
        names.get(c.name) != c.name and (c.name in names or c.name in taken) for c in live.columns
    )


def rename_columns(
    connection: Connection, root: View, live: Generation, names: Mapping[str, str]
) -> None:
    """Give the columns of a table's view their new names; dropped columns have none."""
    # By way of unused names: a new one may be that of a column that is dropped.
    passing = {
        column.name: f"{truncate_identifier(column.name, 45)} ({position}, dropped)"
        for position, column in enumerate(live.columns)
        if names.get(column.name) != column.name
    }
    rename_each(connection, root, passing.items())
    rename_each(
        connection,
        root,
        [(between, names[old]) for old, between in passing.items() if old in names],
    )


def rename_each(connection: Connection, view: View, renames: Iterable[tuple[str, str]]) -> None:
    """Give the columns of the view other names."""
    for old, new in renames:
        if old != new:
            connection.execute(
                sql.SQL("alter view {} rename column {} to {}").format(
                    view.identifier, sql.Identifier(old), sql.Identifier(new)
                )
            )
