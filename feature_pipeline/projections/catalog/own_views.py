"""Identify the pipeline's own views in the schema that users read, and detect changes to them.

Users create views of their own in that schema, and may change existing ones. This module records
what the pipeline created, and distinguishes it from everything else.

A view is identified by its oid, and compared by its stored definition. Both change in a restore
from a dump; then the view is compared with one that is created for the purpose.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import psycopg
from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.projections.catalog.database import (
    BOOKKEEPING_SCHEMA,
    READ_SCHEMA,
    Connection,
    existing_tables,
    fetch_one,
    fetch_value,
)

# Records the definition of a view that the pipeline created.
_RECORD_VIEW: Final = """
insert into feature_pipeline.views (name, oid, definition) values (%s, %s, %s)
on conflict (name) do update set oid = excluded.oid, definition = excluded.definition"""


OUTCOMES: Final = "_outcomes"
"""The view of every record's outcome."""

_KINDS: Final = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
    "S": "sequence",
    "i": "index",
    "I": "partitioned index",
    "c": "composite type",
}

# From the catalog and no function of it: pg_get_viewdef() waits for a switch, and fails after it.
# A renamed column is in pg_attribute alone.
_FIND: Final = """
select c.oid::bigint, c.relkind::text, pg_get_userbyid(c.relowner)::text,
    md5(r.ev_action::text || array(
        select a.attname from pg_attribute a
        where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped order by a.attnum)::text)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
left join pg_rewrite r on r.ev_class = c.oid and r.rulename = '_RETURN'
where n.nspname = %s and c.relname = %s"""

# A view has a row type of its name, so that another type of that name is in its way.
_FIND_TYPE: Final = """
select pg_get_userbyid(t.typowner)::text
from pg_type t join pg_namespace n on n.oid = t.typnamespace
where n.nspname = %s and t.typname = %s and t.typrelid = 0"""


class ViewState(StrEnum):
    """The object with the name of one of the pipeline's views."""

    ABSENT = "absent"
    """Nothing."""
    UNCHANGED = "as made"
    """The pipeline's view, as it defined it."""
    CHANGED = "changed"
    """The pipeline's view, redefined or with a renamed column."""
    UNKNOWN = "unknown"
    """A view that may be the pipeline's: earlier code's, or one of a restored database."""
    FOREIGN = "foreign"
    """Something that is not the pipeline's."""


@dataclass(frozen=True, slots=True)
class ExistingView:
    """The object that has a view's name.

    `description` is for messages. `is_known` means that the pipeline created a view of this name,
    this one or one before it.
    """

    state: ViewState
    description: str
    is_known: bool = False

    @property
    def is_own(self) -> bool:
        """Whether it is certainly the pipeline's."""
        return self.state in {ViewState.UNCHANGED, ViewState.CHANGED}


def find_view(connection: Connection, name: str) -> ExistingView:
    """Look for a view of the pipeline's. Changes nothing, and does not wait."""
    row = fetch_one(connection, _FIND, [READ_SCHEMA, name])
    if row is None:
        description = _describe_type(connection, READ_SCHEMA, name)
        state = ViewState.ABSENT if description is None else ViewState.FOREIGN
        return ExistingView(state, description or "nothing")
    oid, kind, owner, definition = row
    description = _describe(kind, READ_SCHEMA, name, owner)
    recorded = _recorded(connection, name)
    is_known = recorded is not None
    if kind != "v":
        return ExistingView(ViewState.FOREIGN, description, is_known)
    if recorded is None or recorded[0] != oid:
        return ExistingView(ViewState.UNKNOWN, description, is_known)
    state = ViewState.UNCHANGED if recorded[1] == definition else ViewState.CHANGED
    return ExistingView(state, description, is_known)


def has_own_definition(connection: Connection, name: str) -> bool:
    """Return whether the view exists, is recorded, and has the pipeline's definition."""
    return find_view(connection, name).state is ViewState.UNCHANGED


def ensure_view(
    connection: Connection,
    name: str,
    query: sql.Composable,
    earlier: Sequence[sql.Composable] = (),
) -> None:
    """Give the view this definition, in the caller's transaction.

    Args:
        connection: In a transaction.
        name: The view's.
        query: What it shows.
        earlier: The definition by earlier code.

    Raises:
        ConflictError: An object that is not the pipeline's has its name, or something depends on a
            view that was changed.
    """
    existing = find_view(connection, name)
    if existing.state is ViewState.UNKNOWN:
        if not is_defined_as(connection, name, query, *earlier):
            raise in_the_way(name, existing)
    elif existing.state is ViewState.FOREIGN:
        raise in_the_way(name, existing)
    view = sql.Identifier(READ_SCHEMA, name)
    if existing.state is ViewState.ABSENT:
        create_view(connection, name, query)
        return
    try:
        with connection.transaction():
            connection.execute(sql.SQL("create or replace view {} as {}").format(view, query))
    except psycopg.errors.InvalidTableDefinition:
        try:
            connection.execute(sql.SQL("drop view {}").format(view))
        except psycopg.errors.DependentObjectsStillExist as error:
            raise ConflictError(
                f"view {READ_SCHEMA}.{name} was changed by hand and cannot be restored:"
                f" {error.diag.message_detail}: drop that, and run again"
            ) from error
        connection.execute(sql.SQL("create view {} as {}").format(view, query))
    record_view(connection, name)


def create_view(connection: Connection, name: str, query: sql.Composable) -> None:
    """Create a view that does not exist, in the caller's transaction.

    Raises:
        ConflictError: Another object has its name by now.
    """
    view = sql.Identifier(READ_SCHEMA, name)
    try:
        with connection.transaction():
            connection.execute(sql.SQL("create view {} as {}").format(view, query))
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject) as error:
        raise in_the_way(name, find_view(connection, name)) from error
    record_view(connection, name)


def record_view(connection: Connection, name: str) -> None:
    """Record the view in its current form as the pipeline's."""
    oid, _, _, definition = fetch_one(connection, _FIND, [READ_SCHEMA, name]) or (None,) * 4
    connection.execute(_RECORD_VIEW, [name, oid, definition])


def forget_view(connection: Connection, name: str) -> None:
    """Remove the record of a view of this name."""
    connection.execute("delete from feature_pipeline.views where name = %s", [name])


def is_defined_as(connection: Connection, name: str, *queries: sql.Composable) -> bool:
    """Return whether the view, ours or not, has one of these definitions. Changes nothing."""
    probe = sql.Identifier(BOOKKEEPING_SCHEMA, "_probe")
    definition = "select pg_get_viewdef(%s::text::regclass)"
    there = fetch_value(
        connection, definition, [sql.Identifier(READ_SCHEMA, name).as_string(connection)]
    )
    for query in queries:
        with connection.transaction(force_rollback=True):
            connection.execute(sql.SQL("create view {} as {}").format(probe, query))
            if fetch_value(connection, definition, [probe.as_string(connection)]) == there:
                return True
    return False


def in_the_way(name: str, existing: ExistingView) -> ConflictError:
    """Return the error for an object that is not the pipeline's and has a view's name."""
    return ConflictError(f"{READ_SCHEMA}.{name} cannot be created: {obstacle(name, existing)}")


def obstacle(name: str, existing: ExistingView) -> str:
    """Describe the object that blocks a view, and the remedy."""
    return (
        f"{existing.description} exists, which the pipeline did not create: rename or drop it, or,"
        " for a hook's table, give that another name (`table.name`)"
    )


def describe_relation(connection: Connection, schema: str, name: str) -> str | None:
    """Return the object of this name: `table public.mine of role me`; None if none."""
    row = fetch_one(connection, _FIND, [schema, name])
    if row is None:
        return _describe_type(connection, schema, name)
    return _describe(row[1], schema, name, row[2])


def _describe(kind: str, schema: str, name: str, owner: str) -> str:
    return f"{_KINDS.get(kind, 'relation')} {schema}.{name} of role {owner!r}"


def _describe_type(connection: Connection, schema: str, name: str) -> str | None:
    row = fetch_one(connection, _FIND_TYPE, [schema, name])
    return None if row is None else f"type {schema}.{name} of role {row[0]!r}"


def _recorded(connection: Connection, name: str) -> tuple[int, str] | None:
    if not existing_tables(connection, ["views"]):
        return None
    row = fetch_one(
        connection,
        "select oid::bigint, definition from feature_pipeline.views where name = %s",
        [name],
    )
    return None if row is None else (row[0], row[1])
