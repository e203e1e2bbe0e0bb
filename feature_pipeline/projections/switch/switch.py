"""Switch a view to another generation in one transaction, keeping everything that depends on it.

Readers hold a lock on the view while their statement runs, so the change waits for them. A session
that comes after it waits too. Therefore the switch waits only briefly, gives up, lets them through
and tries again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.model.text.first_few import first_few
from feature_pipeline.projections.catalog import dependents
from feature_pipeline.projections.catalog.database import READ_SCHEMA, Connection, is_transient
from feature_pipeline.projections.catalog.dependents import View
from feature_pipeline.projections.catalog.generation import (
    Generation,
    TableState,
    lock_table,
    require_table,
)
from feature_pipeline.projections.catalog.own_views import ViewState, find_view, has_own_definition
from feature_pipeline.projections.catalog.spec import TableSpec
from feature_pipeline.projections.catalog.view import (
    comment,
    create,
    restore,
    show,
    surviving_columns,
)
from feature_pipeline.projections.switch import prepare_views
from feature_pipeline.projections.switch.prepare_views import (
    Ahead,
    ViewsChangedError,
    renames_in_place,
)

LOCK_TIMEOUT: Final = "500ms"
"""How long one attempt waits for a lock, and blocks the readers that come meanwhile."""
ATTEMPTS: Final = 60
_PAUSE_SECONDS: Final = 0.5
SNAPSHOT_WAIT_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.05

Check = Callable[[Connection, TableState], bool]
"""Decides, under the table's lock, whether to go through with a switch."""


def switch(
    connection: Connection, spec: TableSpec, to: Generation, check: Check, *, is_pinned: bool
) -> bool:
    """Make the view show generation `to`, with the pipeline's definition, or change nothing.

    Its grants, and the views that read it with everything that depends on them, are preserved; a
    dump of them is in `feature_pipeline.switches`. The first generation's view is created.
    Switching to the live generation restores a view that was changed.

    Args:
        connection: In no transaction.
        spec: The table.
        to: The generation to show.
        check: Called under the table's lock, when no load is under way; False means not now.
        is_pinned: Whether the table then stays with `to` until it is unpinned.

    Returns:
        Whether it was done.

    Raises:
        ConflictError: A view on the table could not be created again, or something else depends on
            it; names them. Or an object that is not the pipeline's has the view's name. Or readers
            held the view during every attempt.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            with connection.transaction() as transaction:
                connection.execute(f"set local lock_timeout = '{LOCK_TIMEOUT}'".encode())
                ahead = prepare_views.make_ahead(connection, spec, to)
                is_done = _switch(connection, spec, to, check, ahead, is_pinned=is_pinned)
                if not is_done:
                    raise psycopg.Rollback(transaction)  # what was made ahead goes
            return is_done
        except (
            psycopg.errors.LockNotAvailable,
            psycopg.errors.DeadlockDetected,
            ViewsChangedError,
        ):
            continue
        except psycopg.errors.DependentObjectsStillExist as error:
            raise ConflictError(
                f"table {spec.name!r} was not switched: columns are dropped or changed, and"
                f" objects that the pipeline cannot recreate depend on them:"
                f" {error.diag.message_detail}"
            ) from error
    raise _in_use(connection, spec)


def _in_use(connection: Connection, spec: TableSpec) -> ConflictError:
    return ConflictError(
        f"table {spec.name!r} was not switched: at each of {ATTEMPTS} attempts it was in use, by"
        f" {_holders(connection, spec)}; end long transactions, or run again"
    )


def _switch(
    connection: Connection,
    spec: TableSpec,
    to: Generation,
    check: Check,
    ahead: Ahead | None,
    *,
    is_pinned: bool,
) -> bool:
    """Switch within one transaction; views made ahead are kept while locks are requested."""
    attempts = 1 if ahead is None else ATTEMPTS
    for attempt in range(attempts):
        if attempt:
            time.sleep(_PAUSE_SECONDS)
        try:
            # A savepoint: locks that were taken are given back with it.
            with connection.transaction():
                lock_table(connection, spec.name)
                state = require_table(connection, spec)
                if not check(connection, state):
                    return False
                _show(connection, spec, state.live, to, ahead)
                connection.execute(
                    "update feature_pipeline.tables set live = %s, is_pinned = %s where name = %s",
                    [to.id, is_pinned, spec.name],
                )
                connection.execute(
                    "update feature_pipeline.generations set switched_at = now() where id = %s",
                    [to.id],
                )
                return True
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            if ahead is None:
                raise
    raise _in_use(connection, spec)


def wait_for_older_snapshots(connection: Connection, spec: TableSpec) -> None:
    """Wait until every other transaction under way in this database has ended.

    A transaction whose snapshot is older than a generation's rows would see it empty. `create index
    concurrently` waits in the same way, for the same reason.

    Raises:
        ConflictError: Some did not end in `SNAPSHOT_WAIT_SECONDS`; names their processes.
    """
    waiting = _transactions(connection)
    deadline = time.monotonic() + SNAPSHOT_WAIT_SECONDS
    while waiting:
        if time.monotonic() > deadline:
            processes = ", ".join(str(process) for process in sorted(waiting.values()))
            raise ConflictError(
                f"table {spec.name!r} was not switched: transactions that began before its rows"
                f" were loaded are still open, in server processes {processes}; end them"
                " (pg_terminate_backend), or run again later"
            )
        time.sleep(_POLL_SECONDS)
        current = _transactions(connection)
        waiting = {key: process for key, process in waiting.items() if key in current}


def _transactions(connection: Connection) -> dict[str, int]:
    """Return the transactions of sessions of this database: virtual id to process."""
    # usesysid is null for PostgreSQL's own workers, which read no tables of ours.
    rows = connection.execute(
        "select l.virtualxid, l.pid from pg_locks l"
        " join pg_stat_activity a on a.pid = l.pid"
        " where l.locktype = 'virtualxid' and l.granted and a.datname = current_database()"
        " and a.usesysid is not null and l.pid <> pg_backend_pid()"
    )
    return dict(rows.fetchall())


def _show(
    connection: Connection,
    spec: TableSpec,
    live: Generation | None,
    to: Generation,
    ahead: Ahead | None,
) -> None:
    view = find_view(connection, spec.name)
    if view.state is ViewState.ABSENT or (live is None and not view.is_own):
        create(connection, to, spec)  # or refused: something else has its name
        return
    if live is None:
        # It shows a generation of which the bookkeeping knows nothing any more.
        _change_view(connection, spec, to, to, [], None)
        return
    restore(connection, live, spec)
    is_unchanged = has_own_definition(connection, spec.name)
    renames = renames_in_place(live.columns, to.columns) if is_unchanged else []
    _change_view(connection, spec, live, to, renames, ahead)


def _change_view(
    connection: Connection,
    spec: TableSpec,
    live: Generation,
    to: Generation,
    renames: Sequence[tuple[str, str]],
    ahead: Ahead | None,
) -> None:
    """Make the view show `to`: in place by these renames, or dropped and created again if none.

    Raises:
        ViewsChangedError: The views made ahead no longer match.
    """
    if ahead is not None and (renames or ahead.live.id != live.id):
        raise ViewsChangedError
    root = sql.Identifier(READ_SCHEMA, spec.name)
    others: tuple[View, ...] = ()
    if not renames:
        others = _put_away(connection, root)
    # Taken before the view and its grants are read: no session changes them in between.
    connection.execute(sql.SQL("lock table {} in access exclusive mode").format(root))
    view, *dependent_views = dependents.read_views(connection, root)
    if renames:
        _write_dump(connection, spec, live, to, view, dependent_views)
        _change_in_place(connection, to, view, renames)
    elif dependent_views:
        raise ViewsChangedError
    else:
        _write_dump(connection, spec, live, to, view, others)
        if ahead is not None:
            prepare_views.put_in_place(connection, ahead, to, view, others)
        else:
            _recreate(connection, live, to, view, others)
    comment(connection, to, spec)


def _put_away(connection: Connection, root: sql.Identifier) -> tuple[View, ...]:
    """Drop every view that reads `root`, to be created again in this transaction.

    This precedes the lock on `root`: a reader of a view locks that first, and then what it reads.
    In any other order readers of the view and this session would deadlock, at every attempt.
    """
    views = dependents.read_views(connection, root)
    dependents.check_restorable(views)
    for view in reversed(views[1:]):
        dependents.lock_view(connection, view)
    # As they are now that no session can change them.
    views = dependents.read_views(connection, root)
    dependents.check_restorable(views)
    for view in reversed(views[1:]):
        dependents.drop_view(connection, view)
    return views[1:]


def _change_in_place(
    connection: Connection, to: Generation, view: View, renames: Sequence[tuple[str, str]]
) -> None:
    prepare_views.rename_each(connection, view, renames)
    show(connection, to, dependents.view_options(view))


def _recreate(
    connection: Connection, live: Generation, to: Generation, root: View, others: Sequence[View]
) -> None:
    names = surviving_columns(live.columns, to.columns)
    if others and prepare_views.follows_renames(live, to):
        others = _follow_renames(connection, live, root, others, names)
    dependents.drop_view(connection, root)
    show(connection, to, dependents.view_options(root))
    dependents.replace_grants(
        connection, root.identifier, dependents.carry_grants(root.grants, names)
    )
    for statement in root.triggers:
        connection.execute(statement.encode())
    for view in others:
        try:
            dependents.restore_view(connection, view)
        except psycopg.Error as error:
            if is_transient(error):
                raise
            raise prepare_views.ViewMisfitError(to.table_name, view, error) from error


def _follow_renames(
    connection: Connection,
    live: Generation,
    root: View,
    others: Sequence[View],
    names: Mapping[str, str],
) -> list[View]:
    """Return the views as they read `root` once its columns are renamed.

    PostgreSQL itself rewrites them: they are created, the columns renamed, and they are dropped
    again.
    """
    for view in others:
        dependents.create_view(connection, view, has_data=False)
    prepare_views.rename_columns(connection, root, live, names)
    now = {
        view.label: view.definition for view in dependents.read_views(connection, root.identifier)
    }
    for view in reversed(others):
        dependents.drop_view(connection, view)
    return [replace(view, definition=now[view.label]) for view in others]


def _write_dump(
    connection: Connection,
    spec: TableSpec,
    live: Generation,
    to: Generation,
    root: View,
    others: Sequence[View],
) -> None:
    connection.execute(
        "insert into feature_pipeline.switches"
        " (table_name, from_relation, to_relation, grants, dependents)"
        " values (%s, %s, %s, %s, %s)",
        [
            spec.name,
            live.relation,
            to.relation,
            json.dumps(root.to_json()["grants"]),
            json.dumps([view.to_json() for view in others]),
        ],
    )


def _holders(connection: Connection, spec: TableSpec) -> str:
    views = dependents.read_views(connection, sql.Identifier(READ_SCHEMA, spec.name))
    rows = connection.execute(
        "select distinct l.pid, a.usename from pg_locks l"
        " left join pg_stat_activity a on a.pid = l.pid"
        " where l.relation = any(%s::oid[]) and l.granted and l.pid <> pg_backend_pid()"
        " order by 1",
        [[view.oid for view in views]],
    ).fetchall()
    readers = first_few(f"process {pid} of {user}" for pid, user in rows)
    return readers or "loads, or sessions that have ended since"
