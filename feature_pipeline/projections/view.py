"""The view that people read a table by: whether it is there, what it shows, putting it back.

What belongs here: `features.<table>` itself. Not here: which generation it is to show
(`generation`), its change to another one (`switch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from psycopg import sql

from feature_pipeline.column_sources import pair_columns
from feature_pipeline.columns import Column
from feature_pipeline.errors import ConflictError
from feature_pipeline.projections import dependents, table_schema
from feature_pipeline.projections.database import READ_SCHEMA, Connection, fetch_one
from feature_pipeline.projections.dependents import Grant

if TYPE_CHECKING:
    from feature_pipeline.projections.generation import Generation
    from feature_pipeline.projections.table_spec import TableSpec

_VIEW: Final = sql.SQL("view")

# One statement: between two, a switch could change what is live.
_READS_LIVE: Final = """
select c.relkind = 'v' and exists (
    select from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass
        and d.objid = r.oid and d.refclassid = 'pg_class'::regclass
    join feature_pipeline.tables t on t.name = %(table)s
    join feature_pipeline.generations g on g.id = t.live
    where r.ev_class = c.oid
        and d.refobjid = to_regclass(format('feature_pipeline.%%I', g.relation)))
from pg_class c join pg_namespace n on n.oid = c.relnamespace
where n.nspname = %(schema)s and c.relname = %(table)s"""


def is_shown(connection: Connection, table: str) -> bool:
    """Whether the view of this name is there and reads the table's live generation."""
    return _reads_live(connection, table) is True


def put_back(connection: Connection, generation: Generation, spec: TableSpec) -> None:
    """The view shows the generation, if somebody dropped it: with comments and what grants we know.

    Grants are those that it had before the last switch; the bookkeeping holds no others.

    Args:
        connection: In a transaction that holds the table's lock.
        generation: The live one.
        spec: The table.

    Raises:
        ConflictError: Something else has taken the view's name.
    """
    reads = _reads_live(connection, spec.name)
    if reads:
        return
    if reads is not None:
        raise ConflictError(
            f"table {spec.name!r}: {READ_SCHEMA}.{spec.name} is not the view of generation"
            f" {generation.relation} but something else: rename or drop it, and run again"
        )
    show(connection, generation)
    comment(connection, generation, spec)
    dependents.replace_grants(
        connection,
        sql.Identifier(READ_SCHEMA, spec.name),
        _known_grants(connection, generation),
    )


def show(
    connection: Connection, generation: Generation, options: sql.Composable | None = None
) -> None:
    """The view shows this generation, with these options (`with (...)`) if it has any.

    Raises:
        psycopg.errors.InvalidTableDefinition: The view's columns are not a beginning of the
            generation's.
    """
    names = list(table_schema.column_kinds(generation.columns))
    connection.execute(
        sql.SQL("create or replace view {} {} as select {} from {}").format(
            sql.Identifier(READ_SCHEMA, generation.table_name),
            options or sql.SQL(""),
            sql.SQL(", ").join(map(sql.Identifier, names)),
            generation.identifier,
        )
    )


def comment(connection: Connection, generation: Generation, spec: TableSpec) -> None:
    """The view and its columns are described as the definition and the generation describe them."""
    for statement in table_schema.comments(
        _VIEW, READ_SCHEMA, spec.name, spec.description, generation.columns
    ):
        connection.execute(statement)


def kept_names(before: Sequence[Column], after: Sequence[Column]) -> dict[str, str]:
    """Per column of a view that stays when its columns change, the name that it has then."""
    names = {name: name for name in table_schema.column_kinds(())}
    for column, source in zip(after, pair_columns(before, after).sources, strict=True):
        if source is not None:
            names[source.name] = column.name
    return names


def _reads_live(connection: Connection, table: str) -> bool | None:
    """Whether what has the view's name is a view that reads what is live; None if nothing has."""
    row = fetch_one(connection, _READS_LIVE, {"schema": READ_SCHEMA, "table": table})
    return None if row is None else bool(row[0])


def _known_grants(connection: Connection, live: Generation) -> list[Grant]:
    """The grants of before the last switch, of roles and columns that are still there."""
    row = fetch_one(
        connection,
        "select s.grants, g.columns from feature_pipeline.switches s"
        " left join feature_pipeline.generations g on g.relation = s.from_relation"
        " where s.table_name = %s order by s.id desc limit 1",
        [live.table_name],
    )
    if row is None:
        return []
    grants, written = row
    before = live.columns
    if written is not None:
        before = tuple(Column.model_validate(column) for column in written)
    names = kept_names(before, live.columns)
    roles = {role for (role,) in connection.execute("select rolname from pg_roles")}
    return [
        grant
        for grant in dependents.carry_grants([Grant(*grant) for grant in grants], names)
        if grant.grantee is None or grant.grantee in roles
    ]
