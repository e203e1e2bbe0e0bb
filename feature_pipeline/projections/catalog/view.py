"""The view through which users read a table: check, create and restore it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from psycopg import sql

from feature_pipeline.errors import ConflictError
from feature_pipeline.model.column_sources import pair_columns
from feature_pipeline.model.columns import Column
from feature_pipeline.projections.catalog import ddl, dependents, own_views
from feature_pipeline.projections.catalog.database import (
    READ_SCHEMA,
    Connection,
    fetch_one,
    fetch_value,
)
from feature_pipeline.projections.catalog.dependents import Grant
from feature_pipeline.projections.catalog.own_views import ViewState

if TYPE_CHECKING:
    from feature_pipeline.projections.catalog.generation import Generation
    from feature_pipeline.projections.catalog.spec import TableSpec

# Which grants did the view have at the last switch, and on which columns?
_KNOWN_GRANTS: Final = """
select s.grants, g.columns from feature_pipeline.switches s
left join feature_pipeline.generations g on g.relation = s.from_relation
where s.table_name = %s order by s.id desc limit 1"""


_VIEW: Final = sql.SQL("view")

# Whether the view, if it is one, reads the generation that is live.
_READS_LIVE: Final = """
select exists (
    select from pg_class c join pg_namespace n on n.oid = c.relnamespace
    join pg_rewrite r on r.ev_class = c.oid
    join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        and d.refclassid = 'pg_class'::regclass
    join pg_class real on real.oid = d.refobjid
    join feature_pipeline.generations g on g.relation = real.relname
    join feature_pipeline.tables t on t.live = g.id and t.name = %(table)s
    where n.nspname = %(schema)s and c.relname = %(table)s and c.relkind = 'v')"""


def is_shown(connection: Connection, table: str) -> bool:
    """Return whether the view of this name shows the complete live generation.

    A view that earlier code created without recording it counts if it reads that generation.
    """
    view = own_views.find_view(connection, table)
    has_own_definition = view.state is ViewState.UNCHANGED or (
        view.state is ViewState.UNKNOWN and not view.is_known
    )
    return has_own_definition and bool(
        fetch_value(connection, _READS_LIVE, {"schema": READ_SCHEMA, "table": table})
    )


def check_free(connection: Connection, table: str) -> None:
    """Check that the view can be created: its name is free, or the pipeline's.

    Raises:
        ConflictError: Another object has it; names the object and the remedy.
    """
    view = own_views.find_view(connection, table)
    if view.state in {ViewState.FOREIGN, ViewState.UNKNOWN}:
        raise own_views.in_the_way(table, view)


def restore(connection: Connection, generation: Generation, spec: TableSpec) -> None:
    """Create the view again if it was dropped, with the known grants.

    These are the grants that it had before the last switch; the bookkeeping has no others. A
    changed view stays as it is: restoring its definition waits for readers (`switch`).

    Args:
        connection: In a transaction that holds the table's lock.
        generation: The live one.
        spec: The table.

    Raises:
        ConflictError: Another object has taken the view's name.
    """
    view = own_views.find_view(connection, spec.name)
    if view.state is ViewState.UNKNOWN and own_views.is_defined_as(
        connection, spec.name, view_query(generation)
    ):
        own_views.record_view(connection, spec.name)
    elif view.state in {ViewState.UNKNOWN, ViewState.FOREIGN}:
        raise ConflictError(
            f"table {spec.name!r}: {READ_SCHEMA}.{spec.name} is not the view of generation"
            f" {generation.relation}: {own_views.obstacle(spec.name, view)}"
        )
    elif view.state is ViewState.ABSENT:
        create(connection, generation, spec)


def create(connection: Connection, generation: Generation, spec: TableSpec) -> None:
    """Create the view of a generation, with comments, and with the grants before the last switch.

    Raises:
        ConflictError: Another object has its name.
    """
    own_views.create_view(connection, spec.name, view_query(generation))
    comment(connection, generation, spec)
    if (grants := _known_grants(connection, generation)) is not None:
        dependents.replace_grants(connection, sql.Identifier(READ_SCHEMA, spec.name), grants)


def show(
    connection: Connection, generation: Generation, options: sql.Composable | None = None
) -> None:
    """Make the view show this generation, with these options (`with (...)`), if any.

    Args:
        connection: In a transaction that holds the table's lock, and in which the view was found to
            be the pipeline's, or was dropped.
        generation: The generation.
        options: The view's.

    Raises:
        psycopg.errors.InvalidTableDefinition: The view's columns are not a prefix of the
            generation's.
    """
    connection.execute(
        sql.SQL("create or replace view {} {} as {}").format(
            sql.Identifier(READ_SCHEMA, generation.table_name),
            options or sql.SQL(""),
            view_query(generation),
        )
    )
    own_views.record_view(connection, generation.table_name)


def view_query(generation: Generation) -> sql.Composed:
    """Return the query of a generation's view: every column and every row."""
    names = ddl.column_kinds(generation.columns)
    return sql.SQL("select {} from {}").format(
        sql.SQL(", ").join(map(sql.Identifier, names)), generation.identifier
    )


def comment(connection: Connection, generation: Generation, spec: TableSpec) -> None:
    """Comment the view and its columns from the definition and the generation."""
    for statement in ddl.comments(
        _VIEW, READ_SCHEMA, spec.name, spec.description, generation.columns
    ):
        connection.execute(statement)


def surviving_columns(before: Sequence[Column], after: Sequence[Column]) -> dict[str, str]:
    """Return, for each column of a view that survives a change of columns, its new name."""
    names = {name: name for name in ddl.column_kinds(())}
    for column, source in zip(after, pair_columns(before, after).sources, strict=True):
        if source is not None:
            names[source.name] = column.name
    return names


def _known_grants(connection: Connection, live: Generation) -> list[Grant] | None:
    """Return the grants before the last switch, of roles and columns that still exist.

    None if the table was never switched: a new view then gets the default privileges.
    """
    row = fetch_one(connection, _KNOWN_GRANTS, [live.table_name])
    if row is None:
        return None
    grants, written = row
    before = live.columns
    if written is not None:
        before = tuple(Column.model_validate(column) for column in written)
    names = surviving_columns(before, live.columns)
    roles = {role for (role,) in connection.execute("select rolname from pg_roles")}
    return [
        grant
        for grant in dependents.carry_grants([Grant(*grant) for grant in grants], names)
        if grant.grantee is None or grant.grantee in roles
    ]
