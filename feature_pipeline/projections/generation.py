"""Generations: the real tables behind a view, which one is live, and which one is wanted.

What belongs here: creating, finding and dropping generations. Not here: rows (`load`), the change
of the live generation (`switch`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from psycopg import sql

from feature_pipeline.columns import Column
from feature_pipeline.digest import Digest
from feature_pipeline.errors import ConflictError, NotFoundError
from feature_pipeline.projections import table_schema
from feature_pipeline.projections.bookkeeping import ensure_schemas, has_bookkeeping
from feature_pipeline.projections.database import (
    BOOKKEEPING_SCHEMA,
    READ_SCHEMA,
    Connection,
    fetch_one,
    fetch_value,
    lock,
)
from feature_pipeline.projections.table_spec import TableSpec

_VIEW: Final = sql.SQL("view")


@dataclass(frozen=True, slots=True)
class Generation:
    """One real table that a view shows, showed or will show."""

    id: int
    table_name: str
    relation: str
    digest: Digest
    columns: tuple[Column, ...]
    created_at: datetime
    switched_at: datetime | None

    @property
    def identifier(self) -> sql.Identifier:
        """The table, qualified."""
        return sql.Identifier(BOOKKEEPING_SCHEMA, self.relation)

    @property
    def outcomes(self) -> sql.Identifier:
        """The partition of `outcomes` that belongs to it."""
        return sql.Identifier(BOOKKEEPING_SCHEMA, outcomes_partition(self.id))


@dataclass(frozen=True, slots=True)
class TableState:
    """Which generation of a table is read, and which one, if another, is being built."""

    live: Generation
    building: Generation | None
    is_pinned: bool

    @property
    def wanted(self) -> Generation:
        """The generation that the definition asks for."""
        return self.building or self.live

    @property
    def fed(self) -> tuple[Generation, ...]:
        """The generations that a batch is loaded into, the wanted one first."""
        return (self.live,) if self.building is None else (self.building, self.live)


def outcomes_partition(generation: int) -> str:
    """The name of the generation's partition of `outcomes`."""
    return f"_outcomes_{generation}"


def ensure_table(connection: Connection, spec: TableSpec) -> TableState:
    """The table's view, live generation and wanted generation exist; nothing is loaded.

    The first generation of a table is live from the start. Later ones are built beside it.

    Raises:
        ConflictError: Another hook's table has this name.
        ProjectionError: PostgreSQL refused something.
    """
    ensure_schemas(connection)
    state = read_table(connection, spec)
    if state is not None and _is_settled(connection, state, spec):
        return state
    with connection.transaction():
        lock(connection, "table", spec.name)
        state = read_table(connection, spec)
        if state is None:
            return _create_table(connection, spec)
        if not _is_older(connection, spec):
            _follow_definition(connection, state, spec)
    return require_table(connection, spec)


def read_table(connection: Connection, spec: TableSpec) -> TableState | None:
    """The table as it stands, None if it does not exist. Changes nothing.

    Raises:
        ConflictError: Another hook's table has this name.
    """
    if not has_bookkeeping(connection):
        return None
    row = fetch_one(
        connection,
        "select dataset, hook, live, wanted, is_pinned from feature_pipeline.tables"
        " where name = %s",
        [spec.name],
    )
    if row is None:
        return None
    dataset, hook, live, wanted, is_pinned = row
    if (dataset, hook) != (spec.dataset, spec.hook):
        raise ConflictError(
            f"table {spec.name!r} already shows {dataset}/features/{hook}, so it cannot show"
            f" {spec.asset}: give one of them another table name, or drop the old table"
        )
    if live is None:
        return None
    generations = {generation.id: generation for generation in list_generations(connection, spec)}
    building = generations.get(wanted) if wanted != live else None
    return TableState(generations[live], building, is_pinned)


def require_table(connection: Connection, spec: TableSpec) -> TableState:
    """The table as it stands.

    Raises:
        NotFoundError: It does not exist.
    """
    state = read_table(connection, spec)
    if state is None:
        raise NotFoundError(
            f"table {spec.name!r} of {spec.asset} does not exist: materialize it first"
        )
    return state


def list_generations(connection: Connection, spec: TableSpec) -> list[Generation]:
    """Every generation of the table, oldest first."""
    rows = connection.execute(
        "select id, table_name, relation, digest, columns, created_at, switched_at"
        " from feature_pipeline.generations where table_name = %s order by id",
        [spec.name],
    )
    return [_generation(row) for row in rows]


def create_indexes(connection: Connection, generation: Generation, spec: TableSpec) -> None:
    """Every declared index of the generation exists; those no longer declared are gone."""
    wanted = {table_schema.index_name(generation.relation, index): index for index in spec.indexes}
    existing = _index_names(connection, generation)
    for name in existing - wanted.keys():
        connection.execute(
            sql.SQL("drop index {}").format(sql.Identifier(BOOKKEEPING_SCHEMA, name))
        )
    for name, index in wanted.items():
        if name not in existing:
            connection.execute(
                table_schema.create_index(generation.relation, generation.columns, index, name)
            )


def drop_generation(connection: Connection, generation: Generation) -> None:
    """The generation, its outcomes and its progress are gone. It is neither live nor wanted."""
    connection.execute(
        sql.SQL("drop table if exists {}, {}").format(generation.identifier, generation.outcomes)
    )
    connection.execute(
        "delete from feature_pipeline.progress where generation = %s", [generation.id]
    )
    connection.execute("delete from feature_pipeline.generations where id = %s", [generation.id])


def drop_table(connection: Connection, spec: TableSpec) -> bool:
    """The view, its generations and their bookkeeping are gone; whether there was anything.

    Views of other people on it make PostgreSQL refuse, and nothing is dropped.
    """
    if read_table(connection, spec) is None:
        return False
    with connection.transaction():
        lock(connection, "table", spec.name)
        view = sql.Identifier(READ_SCHEMA, spec.name)
        connection.execute(sql.SQL("drop view if exists {}").format(view))
        for generation in list_generations(connection, spec):
            drop_generation(connection, generation)
        connection.execute("delete from feature_pipeline.tables where name = %s", [spec.name])
    return True


def show(connection: Connection, generation: Generation) -> None:
    """The view shows this generation.

    Raises:
        psycopg.errors.InvalidTableDefinition: The view's columns are not a beginning of the
            generation's.
    """
    names = list(table_schema.column_kinds(generation.columns))
    connection.execute(
        sql.SQL("create or replace view {} as select {} from {}").format(
            sql.Identifier(READ_SCHEMA, generation.table_name),
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


def _create_table(connection: Connection, spec: TableSpec) -> TableState:
    connection.execute(
        "insert into feature_pipeline.tables (name, dataset, hook) values (%s, %s, %s)"
        " on conflict (name) do nothing",
        [spec.name, spec.dataset, spec.hook],
    )
    generation = _create_generation(connection, spec)
    create_indexes(connection, generation, spec)
    connection.execute(
        "update feature_pipeline.tables set live = %s, wanted = %s, wanted_order = %s"
        " where name = %s",
        [generation.id, generation.id, spec.order, spec.name],
    )
    connection.execute(
        "update feature_pipeline.generations set switched_at = now() where id = %s",
        [generation.id],
    )
    show(connection, generation)
    comment(connection, generation, spec)
    return require_table(connection, spec)


def _follow_definition(connection: Connection, state: TableState, spec: TableSpec) -> None:
    """Make the wanted generation that of `spec`, under the table's lock."""
    wanted = state.wanted
    if wanted.digest != spec.generation_digest:
        if state.building is not None:
            # Half built for a definition that nobody asks for any more.
            drop_generation(connection, state.building)
        if state.live.digest == spec.generation_digest:
            wanted = state.live
        else:
            wanted = _create_generation(connection, spec)
    connection.execute(
        "update feature_pipeline.tables set wanted = %s, wanted_order = %s where name = %s",
        [wanted.id, spec.order, spec.name],
    )
    connection.execute(
        "update feature_pipeline.generations set columns = %s where id = %s",
        [_columns_json(spec.columns), wanted.id],
    )
    if wanted.id == state.live.id:
        create_indexes(connection, wanted, spec)
        comment(connection, _by_id(connection, spec, wanted.id), spec)


def _create_generation(connection: Connection, spec: TableSpec) -> Generation:
    number = fetch_value(
        connection,
        "insert into feature_pipeline.generations (table_name, relation, digest, columns)"
        " values (%s, 'new', %s, %s) returning id",
        [spec.name, str(spec.generation_digest), _columns_json(spec.columns)],
    )
    relation = table_schema.relation_name(spec, number)
    connection.execute(
        "update feature_pipeline.generations set relation = %s where id = %s", [relation, number]
    )
    connection.execute(table_schema.create_table(relation, spec.columns))
    partition = sql.Identifier(BOOKKEEPING_SCHEMA, outcomes_partition(number))
    # Made apart and attached: "partition of" would lock readers of every table's outcomes out.
    connection.execute(
        sql.SQL(
            "create table {} (like feature_pipeline.outcomes including all,"
            " constraint is_of_generation check (generation = {}))"
        ).format(partition, sql.Literal(number))
    )
    connection.execute(
        sql.SQL(
            "alter table feature_pipeline.outcomes attach partition {} for values in ({})"
        ).format(partition, sql.Literal(number))
    )
    return _by_id(connection, spec, number)


def _is_settled(connection: Connection, state: TableState, spec: TableSpec) -> bool:
    """Whether `ensure_table` has nothing to do: the usual case, decided without a lock."""
    if _is_older(connection, spec):
        return True
    wanted = state.wanted
    if wanted.columns != spec.columns or wanted.digest != spec.generation_digest:
        return False
    if wanted.id != state.live.id:
        return True
    names = {table_schema.index_name(wanted.relation, index) for index in spec.indexes}
    return names == _index_names(connection, wanted) and spec.description == fetch_value(
        connection,
        "select obj_description(to_regclass(%s), 'pg_class')",
        [sql.Identifier(READ_SCHEMA, spec.name).as_string(connection)],
    )


def _is_older(connection: Connection, spec: TableSpec) -> bool:
    order = fetch_value(
        connection,
        "select wanted_order from feature_pipeline.tables where name = %s",
        [spec.name],
    )
    return spec.order < int(order)


def _index_names(connection: Connection, generation: Generation) -> set[str]:
    rows = connection.execute(
        "select i.relname from pg_index x join pg_class i on i.oid = x.indexrelid"
        " where x.indrelid = to_regclass(%s) and not x.indisprimary",
        [generation.identifier.as_string(connection)],
    )
    return {row[0] for row in rows}


def _by_id(connection: Connection, spec: TableSpec, number: int) -> Generation:
    return next(
        generation for generation in list_generations(connection, spec) if generation.id == number
    )


def _columns_json(columns: Sequence[Column]) -> str:
    return json.dumps(
        [column.model_dump(mode="json") for column in columns],
        ensure_ascii=False,
    )


def _generation(row: tuple[Any, ...]) -> Generation:
    number, table_name, relation, digest, columns, created_at, switched_at = row
    return Generation(
        id=number,
        table_name=table_name,
        relation=relation,
        digest=Digest.parse(digest),
        columns=tuple(Column.model_validate(column) for column in columns),
        created_at=created_at,
        switched_at=switched_at,
    )
